"""`llamoot models`: the model files that are here."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from llamoot import env
from llamoot.agents.files import BUILT_IN, local_models
from llamoot.cli.options import Option
from llamoot.errors import ModelFileError
from llamoot.gguf.reader import open_gguf
from llamoot.gguf.types import FileType


def models(
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> None:
    """The model files of the models folder, and the built-in one."""
    folder = env.models_folder()
    paths = [*([BUILT_IN] if BUILT_IN.is_file() else []), *local_models()]
    rows = [describe(path) for path in paths]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print(f"no models in {folder}; `llamoot pull REPO` downloads one", file=sys.stderr)
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        size = f"{row['bytes'] / 1e6:10.1f} MB"
        what = row.get("error") or (
            f"{row['architecture']:12} {row['quant']:8} {row['parameters'] / 1e6:9.1f} M  "
            f"context {row['context'] or '?'}"
        )
        print(f"{row['name']:{width}}  {size}  {what}")
    stopped = sorted(folder.rglob("*.part")) if folder.is_dir() else []
    for part in stopped:
        print(f"{part}: a download that was stopped; pull it again to go on", file=sys.stderr)


def describe(path: Path) -> dict[str, Any]:
    """What the file's header says; a broken file is a row with an error."""
    size = sum(p.stat().st_size for p in _parts(path))
    row: dict[str, Any] = {"name": path.stem, "path": str(path), "bytes": size}
    try:
        with open_gguf(path) as file:
            kind = file.metadata.maybe("general.file_type", None)
            known = kind in FileType.__members__.values() if kind is not None else False
            return row | {
                "architecture": file.architecture,
                "quant": FileType(kind).name if known else "?",
                "parameters": sum(tensor.n_elements for tensor in file.tensors.values()),
                "context": file.metadata.maybe(f"{file.architecture}.context_length", None),
                "title": file.metadata.maybe("general.name", ""),
            }
    except ModelFileError as error:
        return row | {"error": str(error)}


def _parts(path: Path) -> list[Path]:
    stem, _, n = path.stem.rpartition("-00001-of-")
    return sorted(path.parent.glob(f"{stem}-*-of-{n}.gguf")) if stem else [path]
