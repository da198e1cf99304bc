"""Write the pages of docs/ that come from the code: files, configuration, environment, verbs.

python docs/generate.py            writes them
python docs/generate.py --check    fails where one is not what the code says
"""

import ast
import pathlib
import sys

from llamoot import env
from llamoot.cli.main import VERBS
from llamoot.council import config

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"


def files() -> str:
    """Every source file with the first sentence of its docstring, in reading order."""
    lines = ["# The files, in reading order", ""]
    lines.append("No file imports one that stands below it. Written by `docs/generate.py`.")
    folder = None
    for name in (ROOT / "tests" / "files.txt").read_text().split():
        here = name.rpartition("/")[0] or "the top"
        if here != folder:
            folder = here
            lines += ["", f"## {folder}", "", "| file | what lives there |", "|---|---|"]
        text = ast.get_docstring(ast.parse((ROOT / "src" / "llamoot" / name).read_text())) or ""
        first = text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        sentence = first.partition(". ")[0].rstrip(".:")
        lines.append(f"| `{name.rpartition('/')[2]}` | {sentence} |")
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """The keys of llamoot.toml, from the structs that read it."""
    lines = ["# llamoot.toml", ""]
    lines.append(
        "Found in the working directory, then in the user's configuration folder. Unknown keys "
        "are errors that name the nearest valid one. `llamoot config check` checks a file, "
        "`llamoot config explain` shows every value and where it comes from, `llamoot init` "
        "writes a first one. Examples stand in `examples/`. Written by `docs/generate.py`."
    )
    tables = (
        ("[endpoints.NAME]", config.Endpoint),
        ("[agents.NAME], and the entries of `members`", config.AgentConf),
        ("[councils.NAME]", config.CouncilConf),
    )
    for title, kind in tables:
        doc = " ".join((kind.__doc__ or "").split())
        lines += ["", f"## {title}", "", doc, "", "| key | type | default |", "|---|---|---|"]
        annotations = kind.__annotations__
        defaults = dict(
            zip(kind.__struct_fields__[-len(kind.__struct_defaults__) :], kind.__struct_defaults__)
        )
        for field in kind.__struct_fields__:
            shown = annotations[field]
            name = shown if isinstance(shown, str) else getattr(shown, "__name__", str(shown))
            name = str(shown) if "|" in str(shown) or "[" in str(shown) else name
            name = name.replace("llamoot.council.config.", "").replace("|", "or")
            default = repr(defaults[field]) if field in defaults else "required"
            lines.append(f"| `{field}` | {name} | `{default}` |")
    return "\n".join(lines) + "\n"


def environment() -> str:
    """The environment variables, from env.py."""
    lines = ["# Environment variables", "", "Written by `docs/generate.py` from `env.py`.", ""]
    lines += ["| variable | default | meaning |", "|---|---|---|"]
    for row in env.VARIABLES.values():
        default = "" if row.default in (None, "", False) else f"`{row.default}`"
        lines.append(f"| `{row.name}` | {default} | {row.sentence} |")
    return "\n".join(lines) + "\n"


def verbs() -> str:
    """The verbs of the command line."""
    lines = ["# Verbs", "", "`llamoot VERB --help` explains each. Written by `docs/generate.py`."]
    lines += ["", "| verb | what it does |", "|---|---|"]
    lines += [f"| `{verb}` | {sentence} |" for verb, sentence in VERBS.items()]
    return "\n".join(lines) + "\n"


PAGES = {
    "files.md": files,
    "configuration.md": configuration,
    "environment.md": environment,
    "verbs.md": verbs,
}


def main() -> int:
    old = []
    for name, make in PAGES.items():
        text = make()
        path = DOCS / name
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text() != text:
                old.append(name)
        else:
            path.write_text(text)
    if old:
        print(f"docs/{', docs/'.join(old)}: run `python docs/generate.py`", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
