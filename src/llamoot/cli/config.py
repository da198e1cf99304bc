"""`llamoot config`: check the file, or explain where each value comes from."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from llamoot import api
from llamoot.cli import render
from llamoot.cli.options import Argument, Option
from llamoot.council.config import explain, find, load, nearest
from llamoot.council.panel import panel
from llamoot.errors import BadRequest


def config(
    action: Annotated[str, Argument(help="check or explain")] = "check",
    file: Annotated[Path | None, Option("--config", "-c", help="the file")] = None,
    council: Annotated[str, Option("--council", help="which council")] = "",
    json: Annotated[bool, Option("--json", help="as JSON")] = False,
) -> None:
    """Check llamoot.toml, or show each setting of a council with its value and origin."""
    if action not in ("check", "explain"):
        near = nearest(action, ("check", "explain"))
        hint = f"; did you mean '{near}'?" if near else ""
        raise BadRequest(f"config can check or explain, not '{action}'{hint}", "action")
    path = find(file)
    if action == "check":
        if path is None:
            raise BadRequest("there is no llamoot.toml here; `llamoot init` writes one", "config")
        found = load(path)
        seats = {name: len(panel(found, name).places) for name in found.councils}
        if json:
            render.print_json({"file": str(path), "councils": seats})
        else:
            counts = ", ".join(f"{name} ({n} seats)" for name, n in seats.items())
            print(f"{path}: fine; councils: {counts or 'none'}")
        return
    rows = explain(asyncio.run(api.configure(path, council=council or None)), council)
    if json:
        render.print_json([dict(zip(("key", "value", "origin"), map(_plain, row))) for row in rows])
        return
    width = max(len(key) for key, _, _ in rows)
    for key, value, origin in rows:
        print(f"{key:{width}}  {_plain(value)!s:30}  {origin}")


def _plain(value: object) -> object:
    return msgspec.to_builtins(value)
