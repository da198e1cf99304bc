"""Server-sent events from bytes that arrive in any pieces. No I/O.

The rules are WHATWG's (event streams, "parsing an event stream") with three leniencies that
chat servers need: what stands before the end of the stream without its blank line is handed out
by `finish`; a field `error` and a bare line of JSON are handed out as events named `error` and
`line`, because some servers put their only error message there. Time is linear in the bytes,
whatever the cuts; one line or event longer than the limit raises `EventTooLong`.
"""

Event = tuple[str, bytes]  # name ("" where none was given), data lines joined with LF

LIMIT = 32 << 20  # bytes; base64 images in one line reach several MB
_BOM = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """One line or event is longer than the parser's limit."""


class EventParser:
    """`feed` bytes, get complete events; `finish` once at the end of the stream."""

    __slots__ = ("_cr", "_data", "_held", "_limit", "_name", "_pieces", "_size", "_start")

    def __init__(self, limit: int = LIMIT) -> None:
        self._pieces: list[bytes] = []  # of the line that is not complete yet
        self._held = 0  # bytes in `_pieces`
        self._data: list[bytes] = []  # data lines of the event that is not complete yet
        self._size = 0  # bytes in `_data`
        self._name = ""
        self._limit = limit
        self._start = True  # a byte order mark may still come
        self._cr = False  # the last byte was CR: a following LF belongs to it

    def feed(self, chunk: bytes) -> list[Event]:
        """Events that `chunk` completes. Raises EventTooLong."""
        if self._start:
            chunk = self._without_bom(chunk)
        if self._cr and chunk:
            self._cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        if b"\r" in chunk:
            # A CR ends its line at once, so that a stream of lone CRs is not one event late.
            self._cr = chunk[-1:] == b"\r"
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk:
            self._hold(chunk)
            return []
        if self._pieces:
            self._pieces.append(chunk)
            chunk = b"".join(self._pieces)
            self._pieces.clear()
        lines = chunk.split(b"\n")
        rest = lines.pop()
        out = self._lines(lines)
        self._held = 0
        self._hold(rest)
        return out

    def finish(self) -> list[Event]:
        """What stood at the end without its blank line."""
        line = b"".join(self._pieces)
        self._pieces.clear()
        return self._lines([line, b""] if line else [b""])

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._held += len(piece)
            if self._held > self._limit:
                raise EventTooLong(f"a line is longer than {self._limit} bytes")

    def _without_bom(self, chunk: bytes) -> bytes:
        head = b"".join(self._pieces) + chunk
        self._pieces.clear()
        self._held = 0
        if len(head) < 3 and _BOM.startswith(head):
            self._hold(head)
            return b""
        self._start = False
        return head.removeprefix(_BOM)

    def _lines(self, lines: list[bytes]) -> list[Event]:
        out: list[Event] = []
        data, limit = self._data, self._limit
        for line in lines:
            if not line:
                if data:
                    joined = data.pop() if len(data) == 1 else b"\n".join(data)
                    if joined:
                        out.append((self._name, joined))
                    data.clear()
                    self._size = 0
                self._name = ""
            elif line.startswith(b"data: ") and not data and len(line) <= limit:
                data.append(line[6:])  # the usual event has one line: the short way
                self._size = len(line)
            elif line[:5] == b"data:":
                self._append(line[5:].removeprefix(b" "))
            elif line[0] != 58:  # not a comment
                self._other(line, out)
        return out

    def _append(self, value: bytes) -> None:
        self._data.append(value)
        self._size += len(value)
        if self._size > self._limit:
            raise EventTooLong(f"an event is longer than {self._limit} bytes")

    def _other(self, line: bytes, out: list[Event]) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"data":
            self._append(b"")
        elif field == b"error":
            out.append(("error", value))
        elif line.lstrip()[:1] == b"{":
            out.append(("line", line))
        # id and retry serve reconnection, which a generation must never do by itself.
