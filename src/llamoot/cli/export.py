"""`llamoot export`: a run as a document."""

from pathlib import Path
from typing import Annotated

import msgspec

from llamoot.cli import render
from llamoot.cli.options import Argument, Option
from llamoot.cli.show import recorded
from llamoot.council.events import encode
from llamoot.council.folds import Transcript


def export(
    run: Annotated[str, Argument(help="a run's id, the beginning of it, or last")] = "last",
    out: Annotated[Path | None, Option("--out", "-o", help="file; else stdout")] = None,
    json: Annotated[bool, Option("--json", help="all events, as JSON")] = False,
) -> None:
    """Write a run as Markdown, or with --json as a list of its events."""
    found = recorded(run)
    if json:
        body = b"[" + b",\n".join(encode(event) for event in found) + b"]"
        text = msgspec.json.format(body, indent=2).decode()
    else:
        text = render.markdown(Transcript.of(found))
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", "utf-8")
        render.note(f"wrote {out}")
