"""Server-sent events and the two ways an answer leaves: as a stream or whole.

Rules kept here (WHATWG event streams and what OpenAI's clients tolerate): one JSON object per
`data:` line, the whole event in one write, keep-alive only as a comment, never an event without
data. Errors that happen before the first token get a real HTTP status; later ones are an error
frame. A client that leaves closes the agent's stream, streamed answer or not.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from llamoot.errors import LlamootError

log = logging.getLogger("llamoot.server")
T = TypeVar("T")
PING = b": waiting\n\n"
PING_SECONDS = 15.0
WRITE_SECONDS = 60.0  # a client that takes nothing for this long is treated as gone
FIRST_TOKEN_WAIT = 20.0  # after this long without a token, headers go out so that pings can
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

encode = msgspec.json.Encoder().encode


def event(payload: Any, name: str = "") -> bytes:
    """One event, ready to be written."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + encode(payload) + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def gone(receive: Receive) -> None:
    """Return when the client has left."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None when the client left first; then `work` was cancelled."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


class EventStream:
    """An ASGI response that writes events as they come and pings while nothing comes."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        failure: Callable[[LlamootError], bytes],
        release: Callable[[], None],
        headers: dict[str, str] | None = None,
    ) -> None:
        """`failure` makes the frame for an error after the headers went out; `release` gives
        back what the stream holds, however it ends."""
        self.events, self.failure, self.release = events, failure, release
        self.headers = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        self._first: asyncio.Future[bytes] | None = None
        self._sending, self._since = False, 0.0  # whether a write is under way, and since when

    async def open(self, receive: Receive) -> None:
        """Wait for the first event (bounded), so that an early error can still be a status.

        ClientDisconnect if the client leaves meanwhile.
        """
        self._first = first = asyncio.ensure_future(anext(self.events))
        leaving = asyncio.ensure_future(gone(receive))
        both = {first, leaving}
        try:
            await asyncio.wait(both, timeout=FIRST_TOKEN_WAIT, return_when="FIRST_COMPLETED")
            if first.done() and not isinstance(first.exception(), StopAsyncIteration | None):
                first.result()
            elif leaving.done():
                raise ClientDisconnect
        except BaseException:
            await self._close()
            raise
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._since = asyncio.get_running_loop().time()
        works = (self._write(send), self._keep(send), gone(receive))
        tasks = [asyncio.ensure_future(work) for work in works]
        writing, keeping, _ = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            elif keeping.done():
                log.warning("a client that does not read was given up")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._close()

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": HEADERS + self.headers}
        await send(start)
        try:
            if self._first is not None:
                await self._put(send, await self._first)
            async for chunk in self.events:
                await self._put(send, chunk)
        except StopAsyncIteration:
            pass  # there was not even a first event
        except LlamootError as error:
            await self._put(send, self.failure(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, send: Send, chunk: bytes) -> None:
        """One event in one write; `_keep` watches how long it takes."""
        clock = asyncio.get_running_loop().time
        self._sending, self._since = True, clock()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sending, self._since = False, clock()

    async def _keep(self, send: Send) -> None:
        """Ping while nothing comes; return when a write takes too long.

        One task for the whole stream: a timer for each event would cost more than the event.
        """
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(PING_SECONDS, WRITE_SECONDS) / 4)
            quiet = clock() - self._since
            if self._sending and quiet >= WRITE_SECONDS:
                return
            if not self._sending and quiet >= PING_SECONDS:
                await self._put(send, PING)

    async def _close(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self.events.aclose()
        self.release()
