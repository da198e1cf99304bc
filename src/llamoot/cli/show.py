"""`llamoot show`: one recorded run."""

from typing import Annotated

from llamoot import api
from llamoot.cli import render
from llamoot.cli.options import Argument, Option
from llamoot.council.events import Event, encode
from llamoot.council.folds import Transcript
from llamoot.council.store import Store


def recorded(run: str) -> list[Event]:
    """The events of a run by its id, the beginning of it, its key, or 'last'."""
    store = Store(api.runs_file())
    try:
        return list(store.events(store.find(run).id))
    finally:
        store.close()


def show(
    run: Annotated[str, Argument(help="a run's id, the beginning of it, or last")] = "last",
    json: Annotated[bool, Option("--json", help="one JSON object")] = False,
    events: Annotated[bool, Option("--events", help="events as JSON lines")] = False,
) -> None:
    """Show rounds, answers, votes and cost of a run."""
    found = recorded(run)
    if events:
        for event in found:
            print(encode(event).decode())
        return
    done = Transcript.of(found)
    if json:
        render.print_json(render.outcome(done))
    else:
        print(render.markdown(done))
