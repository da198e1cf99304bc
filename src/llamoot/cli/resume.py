"""`llamoot resume`: go on with a run that was killed; what was answered is not asked again."""

import asyncio
from typing import Annotated, Any

import msgspec

from llamoot import api
from llamoot.cli import ask as asking
from llamoot.cli.options import Argument, Option
from llamoot.council.council import recorded_panel
from llamoot.council.folds import Transcript
from llamoot.council.store import Store


def resume(
    run: Annotated[str, Argument(help="a run's id, the beginning of it, or last")] = "last",
    json: asking.Json = False,
    events: Annotated[bool, Option("--events", help="events as JSON lines")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="nothing but the answer")] = False,
    deadline: asking.Deadline = None,
) -> None:
    """Continue a run from its last complete answer."""
    with asking.watcher(quiet, events) as listener:
        done = asyncio.run(again(run, listener, deadline=deadline))
    asking.finish(done, json, events, quiet, False)


async def again(
    name: str, listener: Any, chair: str = "", deadline: float | None = None
) -> Transcript:
    """Open the recorded panel again and go on, or let `chair` write the last stage anew."""
    store = Store(api.runs_file())
    id = store.find(name).id
    panel = recorded_panel(store.events(id))
    if deadline is not None:
        rules = msgspec.structs.replace(panel.rules, deadline=deadline)
        panel = msgspec.structs.replace(panel, rules=rules)
    council = api.Council.of(panel, store)
    try:
        run = council.rechair(id, chair, listener) if chair else council.resume(id, listener)
        return await asking.played(run)
    finally:
        await council.close()
        store.close()
