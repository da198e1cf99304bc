"""`llamoot replay`: a recorded run played again, asking nobody; or its drafts under a new chair."""

import asyncio
from typing import Annotated

from llamoot.cli import ask as asking
from llamoot.cli.options import Argument, Option
from llamoot.cli.resume import again
from llamoot.cli.show import recorded
from llamoot.council.folds import Transcript


def replay(
    run: Annotated[str, Argument(help="a run's id, the beginning of it, or last")] = "last",
    chair: Annotated[str, Option(help="label or model that writes the end anew")] = "",
    json: asking.Json = False,
    events: Annotated[bool, Option("--events", help="events as JSON lines")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="nothing but the answer")] = False,
) -> None:
    """Show a run as it went. With --chair, its drafts are kept and only the end is asked."""
    with asking.watcher(quiet, events) as listener:
        if chair:
            done = asyncio.run(again(run, listener, chair))
        else:
            found = recorded(run)
            for event in found:
                listener(event)
            done = Transcript.of(found)
    asking.finish(done, json, events, quiet, False)
