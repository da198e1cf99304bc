"""The council's own routes: an answer with its evidence, the stream of events, recorded runs."""

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamoot.agents.types import Message
from llamoot.council.council import Council, answered
from llamoot.council.events import CouncilFailed, Event, encode
from llamoot.council.folds import Transcript
from llamoot.council.run import Run
from llamoot.council.store import Store
from llamoot.errors import BadRequest, LlamootError
from llamoot.server.registry import Lease
from llamoot.server.routes import openai_failure, route
from llamoot.server.schema import MessageBody, decode
from llamoot.server.state import State, state_of
from llamoot.server.stream import EventStream, unless_gone
from llamoot.server.translate import messages_of


class CouncilBody(Struct, kw_only=True):
    """Body of both council routes: `prompt` or `messages`, and which council."""

    prompt: str | None = None
    messages: list[MessageBody] | None = None
    council: str | None = None
    model: str | None = None
    idempotency_key: str | None = None


def _conversation(body: CouncilBody) -> tuple[Message, ...]:
    if body.messages:
        return messages_of(body.messages)
    if not body.prompt:
        raise BadRequest("prompt: a prompt or messages are needed", "prompt")
    return (Message("user", body.prompt),)


async def _start(request: Request) -> tuple[Lease, Run]:
    """The leased council, and its run begun."""
    state = state_of(request)
    body = decode(await request.body(), CouncilBody)
    messages = _conversation(body)
    name = body.council or body.model
    if name and not name.startswith("council/"):
        name = f"council/{name}"
    if not name:
        councils = (e.name for e in state.registry.entries.values() if e.kind == "council")
        name = next(councils, None)
    if name is None:
        raise BadRequest("no council is served here; name councils in llamoot.toml", "council")
    lease = await state.registry.lease(name)
    council = lease.entry.details.get("council")
    if not isinstance(council, Council):
        lease.release()
        raise BadRequest(f"'{lease.name}' is not a council", "council")
    key = request.headers.get("idempotency-key") or body.idempotency_key or ""
    try:
        return lease, council.start(messages, key=key)
    except LlamootError:
        lease.release()
        raise


@route
async def council_completions(request: Request) -> Response | EventStream:
    lease, run = await _start(request)
    try:
        done = await unless_gone(request.receive, run.wait())
        if done is None:
            run.cancel()
            return Response(status_code=499)
        return JSONResponse(answer_body(answered(done)))
    finally:
        lease.release()


@route
async def council_transcript(request: Request) -> Response | EventStream:
    lease, run = await _start(request)

    def leave() -> None:
        """Who started the run from here and leaves ends it; a page follows by its id instead."""
        if request.query_params.get("keep") is None and not run.over:
            run.cancel()
        lease.release()

    stream = EventStream(_frames(run, 0), openai_failure, leave, {"x-run-id": run.id})
    await stream.open(request.receive)
    return stream


async def _frames(run: Run, start: int) -> AsyncGenerator[bytes, None]:
    async for event in run.follow(start):
        yield frame(event)


def frame(event: Event) -> bytes:
    """One event of a run as a server-sent event, its number as the id."""
    return b"id: %d\ndata: %s\n\n" % (event.seq, encode(event))


def answer_body(done: Transcript) -> dict[str, Any]:
    """The answer with what speaks for and against it."""
    return {
        "object": "council.answer",
        "run": done.run,
        "answer": done.text,
        "how": done.how,
        "agreement": done.agreement,
        "dissent": msgspec.to_builtins(done.dissent),
        "warnings": [warning.message for warning in done.warnings],
        "usage": msgspec.to_builtins(done.usage),
        "calls": done.calls,
        "seconds": done.seconds,
        "cost": done.cost,
    }


def _store(request: Request) -> Store:
    store = state_of(request).store
    if store is None:
        raise BadRequest("this server keeps no runs", "run")
    return store


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"{name}: must be a whole number", name)
    return int(text)


@route
async def list_runs(request: Request) -> Response | EventStream:
    limit = _number(request.query_params.get("limit", "50"), "limit")
    rows = _store(request).runs(min(limit, 500), request.query_params.get("q", ""))
    data = [msgspec.to_builtins(row) for row in rows]
    return JSONResponse({"object": "list", "data": data})


@route
async def run_events(request: Request) -> Response | EventStream:
    """All events so far as a list; with `Accept: text/event-stream`, those to come as well."""
    name = request.path_params["run"]
    seen = request.headers.get("last-event-id")
    first = _number(request.query_params.get("start", "0"), "start")
    if seen is not None:
        first = _number(seen, "last-event-id") + 1
    live = _live(state_of(request), name)
    if "text/event-stream" in request.headers.get("accept", ""):
        events = _frames(live, first) if live else _past(_store(request), name, first)
        stream = EventStream(events, openai_failure, lambda: None)
        await stream.open(request.receive)
        return stream
    found = live.events[first:] if live else _store(request).events(_id(request, name), first)
    return Response(
        b"[" + b",".join(encode(e) for e in found) + b"]", media_type="application/json"
    )


def _id(request: Request, name: str) -> str:
    return _store(request).find(name).id


async def _past(store: Store, name: str, start: int) -> AsyncGenerator[bytes, None]:
    row = store.find(name)
    events = store.events(row.id, start)
    for event in events:
        yield frame(event)
    ended = row.state != "running" or (events and isinstance(events[-1], CouncilFailed))
    if not ended:
        note = b'{"type":"interrupted","message":"the process that ran it ended"}'
        yield b"data: " + note + b"\n\n"


def _live(state: State, name: str) -> Run | None:
    for entry in state.registry.entries.values():
        council = entry.details.get("council")
        if isinstance(council, Council) and name in council.live:
            return council.live[name]
    return None


@route
async def stop_run(request: Request) -> Response | EventStream:
    run = _live(state_of(request), request.path_params["run"])
    if run is not None:
        run.cancel()
    return JSONResponse({"stopped": run is not None})
