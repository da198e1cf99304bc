"""Where model files are: a path, the models folder, the built-in model. Light to import."""

import difflib
from pathlib import Path

from llamoot import env
from llamoot.errors import UnknownModel

BUILT_IN = Path(__file__).parents[1] / "models" / "abacus.gguf"


def find_model(name: str) -> Path:
    """The GGUF file called `name`: a path, a file of the models folder with or without its
    ending, or the built-in model ("", "abacus"). Raises UnknownModel."""
    if name in ("", BUILT_IN.stem) and BUILT_IN.is_file():
        return BUILT_IN
    folder = env.models_folder()
    given = Path(name).expanduser()
    for path in (given, folder / name, folder / f"{name}.gguf"):
        if name and path.is_file():
            return path
    if name and given.is_dir():
        raise UnknownModel(f"'{name}' is a folder; name a model file in it", "model")
    known = {path.stem: path for path in local_models()}
    meant = [path for stem, path in known.items() if name and stem.lower() == name.lower()]
    meant = meant or [p for stem, p in known.items() if name and name.lower() in stem.lower()]
    if len(meant) == 1:
        return meant[0]
    if meant:
        names = ", ".join(sorted(path.stem for path in meant))
        raise UnknownModel(f"'{name}' may be any of {names} in {folder}; write more of it", "model")
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else "`llamoot pull` downloads models"
    raise UnknownModel(f"no model file '{name}', neither here nor in {folder}; {hint}", "model")


def local_models() -> list[Path]:
    """Model files of the models folder: first parts of split files, no projectors."""
    folder = env.models_folder()
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.rglob("*.gguf"))
        if "mmproj" not in path.name.lower()
        and ("-of-" not in path.stem or "-00001-of-" in path.stem)
    ]
