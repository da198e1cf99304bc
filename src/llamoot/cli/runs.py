"""`llamoot runs`: what is recorded, newest first."""

import time
from typing import Annotated

import msgspec

from llamoot import api
from llamoot.cli import render
from llamoot.cli.options import Argument, Option
from llamoot.council.store import Store


def runs(
    words: Annotated[str, Argument(help="only runs with these words")] = "",
    limit: Annotated[int, Option("--limit", "-n", min=1, help="how many")] = 20,
    json: Annotated[bool, Option("--json", help="as JSON")] = False,
) -> None:
    """List recorded runs."""
    store = Store(api.runs_file())
    rows = store.runs(limit, words)
    store.close()
    if json:
        render.print_json([msgspec.to_builtins(row) for row in rows])
        return
    for row in rows:
        state = "broken off" if row.state == "running" and not row.alive else row.state
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.created))
        text = render.brief(row.question, 40)
        print(f"{row.id}  {when}  {state:10}  {text}  → {render.brief(row.answer, 30)}")
    if not rows:
        render.note("no runs are recorded yet; `llamoot ask` makes one")
