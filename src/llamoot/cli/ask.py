"""`llamoot ask`: a council answers. The answer goes to stdout, everything else to stderr."""

import asyncio
import importlib
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from llamoot import api
from llamoot.agents.files import BUILT_IN
from llamoot.agents.types import Message
from llamoot.cli import render
from llamoot.cli.options import Argument, Option
from llamoot.council.council import answered
from llamoot.council.events import Event, encode
from llamoot.council.folds import Transcript
from llamoot.council.plan import learn, predict
from llamoot.council.run import Run
from llamoot.errors import BadRequest

_ONLY_CALCULATES = (
    "the built-in model only calculates; for a real one: `llamoot pull` lists small models, "
    "OPENAI_BASE_URL names an endpoint, `llamoot init` writes what is found into a file"
)

Config = Annotated[Path | None, Option("--config", "-c", help="configuration file")]
Name = Annotated[str | None, Option("--council", help="which council of the file")]
Members = Annotated[
    list[str] | None,
    Option(
        "--member",
        "--experts",
        "-m",
        help="an agent of the file, URL#MODEL, a GGUF file or a model's name; *N for N samples",
    ),
]
Protocol = Annotated[
    str | None,
    Option("--protocol", "-p", help="solo, vote, synthesize, debate, review or auto"),
]
Samples = Annotated[int | None, Option("--samples", min=1, help="samples of each member")]
Deadline = Annotated[float | None, Option("--deadline", min=0.01, help="seconds in all")]
Json = Annotated[bool, Option("--json", help="one JSON object on stdout")]


def ask(
    question: Annotated[str, Argument(help="the question; - reads it from stdin")],
    config: Config = None,
    council: Name = None,
    member: Members = None,
    protocol: Protocol = None,
    samples: Samples = None,
    deadline: Deadline = None,
    quorum: Annotated[int | None, Option(min=1, help="answers that are enough")] = None,
    max_rounds: Annotated[int | None, Option("--rounds", min=1, help="of a debate")] = None,
    key: Annotated[str, Option("--key", help="idempotency key: the same run again")] = "",
    json: Json = False,
    events: Annotated[bool, Option("--events", help="events as JSON lines")] = False,
    show_dissent: Annotated[bool, Option("--show-dissent", help="who disagreed")] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="nothing but the answer")] = False,
) -> None:
    """Ask a council. Without a configuration it is made of what is found on this machine."""
    if question == "-":
        question = sys.stdin.read()
    if not question.strip():
        raise BadRequest("the question is empty", "question")
    changes = {
        "council": council,
        "protocol": protocol,
        "samples": samples,
        "deadline": deadline,
        "quorum": quorum,
        "max_rounds": max_rounds,
    }
    with watcher(quiet, events) as listener:
        done = asyncio.run(_ask(question, config, member or [], changes, key, listener, quiet))
    finish(done, json, events, quiet, show_dissent)


async def _ask(
    question: str,
    path: Path | None,
    members: list[str],
    changes: dict[str, Any],
    key: str,
    listener: Any,
    quiet: bool,
) -> Transcript:
    config = await api.configure(path, members, **changes)
    if config.origin.startswith(("found", "the model")) and not quiet:
        render.note(f"no llamoot.toml: asking {config.origin}")
        if config.origin.endswith(BUILT_IN.name):
            render.note(_ONLY_CALCULATES)
    store = api.store_or_memory(None, render.note)
    made = api.panel(config)
    council = api.Council.of(made, store)
    try:
        done = await played(council.start(question, key=key, listener=listener))
        if not quiet:
            before = [past for past in store.transcripts() if past.run != done.run]
            said = predict(made, [Message("user", question)], learn(before))
            render.note(render.plan_line(said.errors(done)))
        return done
    finally:
        await council.close()
        store.close()


async def played(run: Run) -> Transcript:
    """The run, once it is over; Ctrl-C ends every open call first."""
    try:
        return await run.wait()
    except asyncio.CancelledError:
        run.cancel()
        await run.wait()
        raise


def watcher(quiet: bool, events: bool) -> AbstractContextManager[Any]:
    """What is told of every event: JSON lines, live lanes on a terminal, or plain lines."""
    if events:
        return Lines()
    if quiet:
        return Silent()
    if sys.stderr.isatty():
        # rich costs as much time to import as a first request may take; only terminals pay it.
        lanes: AbstractContextManager[Any] = importlib.import_module("llamoot.cli.lanes").Lanes()
        return lanes
    return render.Plain()


class Silent(render.Plain):
    def __call__(self, event: Event) -> None:
        """Say nothing."""


class Lines(render.Plain):
    def __call__(self, event: Event) -> None:
        """One JSON object per line, as it happens."""
        sys.stdout.write(encode(event).decode() + "\n")
        sys.stdout.flush()


def finish(done: Transcript, json: bool, events: bool, quiet: bool, dissent: bool) -> None:
    """Print what the run came to; raises CouncilFailed where it came to nothing."""
    if json:
        render.print_json(render.outcome(done))
    answered(done)
    if not json and not events:
        print(done.text, flush=True)
    if not quiet:
        render.note(render.how_line(done))
        if dissent and done.dissent:
            render.note("dissent:")
            for line in render.dissent_lines(done):
                render.note(line)
        render.note(render.cost_line(done))
