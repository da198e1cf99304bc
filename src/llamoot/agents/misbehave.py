"""A server on loopback that misbehaves as it is told: hang, drip, cut, reset, lie, refuse.

The double for everything that speaks HTTP. It is not a mock: bytes go over a real socket, and
what it received and who hung up on it can be read afterwards.
"""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

from msgspec import Struct


class Received(Struct, frozen=True):
    """One request as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int  # which socket it came on, counted from 0

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Act(Struct, frozen=True, kw_only=True):
    """One response, and how it goes wrong. Times are seconds."""

    status: int = 200
    headers: dict[str, str] = {}
    content_type: str = "text/event-stream"
    body: bytes | tuple[bytes, ...] = b""  # several pieces are written one by one
    framing: Literal["chunked", "length", "close"] = "chunked"
    before: float = 0.0  # silence before the head
    gap: float = 0.0  # silence between pieces
    drip: int = 0  # cut the body into pieces of so many bytes
    cut_at: int | None = None  # stop after so many bytes of the body …
    end: Literal["proper", "cut", "reset", "hang"] = "proper"  # … and then do this
    raw: bytes | None = None  # send exactly this instead of any response
    deaf: bool = False  # do not even read the request


Play = Sequence[Act] | Act | Callable[[Received], Act]


def event(payload: Any) -> bytes:
    """One event of a stream: JSON of `payload`, or its text as it is."""
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
    return f"data: {text}\n\n".encode("utf-8", "surrogatepass")


def chunk(text: str | None = None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk in OpenAI's shape."""
    if text is not None:
        delta["content"] = text
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def answer(*pieces: str, finish: str = "stop", usage: bool = True) -> bytes:
    """A whole well-made stream that says `pieces`."""
    counts = {"prompt_tokens": 7, "completion_tokens": len(pieces), "total_tokens": 7 + len(pieces)}
    out = [event(chunk("", role="assistant")), *(event(chunk(piece)) for piece in pieces)]
    out.append(event(chunk(finish=finish)))
    if usage:
        out.append(event({**chunk(), "choices": [], "usage": counts}))
    return b"".join([*out, event("[DONE]")])


class MisbehavingServer:
    """`async with MisbehavingServer(play) as server:` … `server.url` is its base URL."""

    def __init__(self, play: Play, tls: ssl.SSLContext | None = None) -> None:
        self._play, self._tls = play, tls
        self.requests: list[Received] = []
        self.connections = 0
        self.hung_up = 0  # responses during which the client closed the socket
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def gone(self, count: int = 1, within: float = 2.0) -> bool:
        """Did the client hang up on `count` responses, now or within that time?"""
        until = asyncio.get_running_loop().time() + within
        while self.hung_up < count and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.005)
        return self.hung_up >= count

    def _next(self, request: Received) -> Act:
        play = self._play
        if isinstance(play, Act):
            return play
        if callable(play):
            return play(request)
        return play[min(len(self.requests), len(play)) - 1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        number, self.connections = self.connections, self.connections + 1
        if isinstance(self._play, Act) and self._play.deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(3600)
        try:
            while (request := await _receive(reader, number)) is not None:
                self.requests.append(request)
                if not await self._perform(self._next(request), reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up += 1
        except asyncio.CancelledError:
            pass  # the server is being closed, and nobody waits for this task's result
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _perform(
        self, act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Play one act; True where the connection may be used again."""
        await self._pause(act.before, reader)
        if act.raw is not None:
            writer.write(act.raw)
            await writer.drain()
        else:
            await self._respond(act, reader, writer)
        if act.end == "hang":
            await self._pause(3600.0, reader)
        if act.end == "reset":
            hard = struct.pack("ii", 1, 0)  # close by RST, dropping what is not sent yet
            await asyncio.sleep(0.02)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
            writer.transport.abort()
        return act.end == "proper" and act.raw is None and act.framing != "close"

    async def _respond(
        self, act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        pieces = [act.body] if isinstance(act.body, bytes) else list(act.body)
        whole = b"".join(pieces)
        sent = whole[: act.cut_at]
        if act.drip:
            pieces = [sent[i : i + act.drip] for i in range(0, len(sent), act.drip)]
        elif act.cut_at is not None:
            pieces = [sent]
        headers = {"content-type": act.content_type, **act.headers}
        if act.framing == "chunked":
            headers["transfer-encoding"] = "chunked"
        elif act.framing == "length":
            headers["content-length"] = str(len(whole))
        lines = [f"HTTP/1.1 {act.status} Status", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        for piece in pieces:
            if piece:
                framed = b"%x\r\n%s\r\n" % (len(piece), piece)
                writer.write(framed if act.framing == "chunked" else piece)
            await writer.drain()
            await self._pause(act.gap, reader)
        if act.framing == "chunked" and act.end == "proper":
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def _pause(self, seconds: float, reader: asyncio.StreamReader) -> None:
        """Wait, but notice at once when the client hangs up."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                if not await reader.read(1):
                    raise ConnectionResetError("the client hung up")
        except TimeoutError:
            return


async def _receive(reader: asyncio.StreamReader, connection: int) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *rows = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {k.lower(): v.strip() for k, _, v in (row.partition(":") for row in rows)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, target, headers, body, connection)
