"""Reading a text that is still growing: coroutines that yield where they need more of it."""

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

Steps = Generator[None, None, Any]
Sink = Callable[[str], object]


class NotACall(Exception):
    """What looked like a call is none."""


class Reader:
    """A buffer that `feed` fills; the methods take from it what they name, or wait."""

    def __init__(self) -> None:
        self._buffer, self._closed = "", False
        self._taken: list[str] | None = None  # what was read since the region began

    def _take(self, n: int) -> str:
        text, self._buffer = self._buffer[:n], self._buffer[n:]
        if self._taken is not None:
            self._taken.append(text)
        return text

    def _until(self, markers: Sequence[str], sink: Sink) -> Steps:
        """Pass text to `sink` up to the first marker, which is swallowed and returned; "" = end."""
        pattern = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))))
        while True:
            hit = pattern.search(self._buffer) if markers else None
            if hit:
                sink(self._take(hit.start()))
                return self._take(len(hit.group()))
            keep = 0 if self._closed else _overlap(self._buffer, markers)
            sink(self._take(len(self._buffer) - keep))
            if self._closed:
                return ""
            yield

    def _body(self, *markers: str) -> Generator[None, None, tuple[str, str]]:
        """Text up to a marker that must come, and the marker."""
        found: list[str] = []
        marker = yield from self._until(markers, found.append)
        if not marker:
            raise NotACall
        return "".join(found), marker

    def _peek(self) -> Generator[None, None, str]:
        """The next character that is no space; spaces before it are swallowed. "" = end."""
        while True:
            solid = self._buffer.lstrip()
            self._take(len(self._buffer) - len(solid))
            if solid or self._closed:
                return solid[:1]
            yield

    def _expect(self, char: str) -> Steps:
        if (yield from self._peek()) != char:
            raise NotACall
        self._take(1)

    def _value(self, sink: Sink) -> Steps:
        """Pass one JSON value to `sink` as it is written, in pieces."""
        yield from self._peek()
        depth, quoted, escaped = 0, False, False
        while True:
            for at, char in enumerate(self._buffer):
                if escaped or (quoted and char not in '\\"'):
                    escaped = False
                    continue
                if depth == 0 and not quoted and char in ",]} \r\n\t":
                    sink(self._take(at))
                    return
                if quoted:
                    escaped, quoted = char == "\\", char == "\\"
                elif char == '"':
                    quoted = True
                    continue
                depth += (char in "{[") - (char in "}]") if not quoted else 0
                if depth == 0 and not quoted and char in '"}]':
                    sink(self._take(at + 1))
                    return
            sink(self._take(len(self._buffer)))
            if self._closed:
                if depth or quoted:
                    raise NotACall
                return
            yield

    def _json(self) -> Generator[None, None, Any]:
        found: list[str] = []
        yield from self._value(found.append)
        try:
            return json.loads("".join(found))
        except ValueError:
            raise NotACall from None


def _overlap(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a marker."""
    for size in range(min(len(text), max(map(len, markers), default=1) - 1), 0, -1):
        tail = text[-size:]
        if any(marker.startswith(tail) for marker in markers):
            return size
    return 0
