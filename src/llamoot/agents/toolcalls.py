"""Which piece of a streamed tool call belongs to which call. No I/O.

Servers key pieces by index, by id, by position, or not at all; they repeat ids and names, leave
them empty, or reuse an index for the next call. Handed out are pieces with our own index, id and
name first.
"""

import json

from llamoot.agents.types import ToolPiece
from llamoot.agents.wire import ToolDelta


class _Call:
    __slots__ = ("arguments", "given", "id", "index", "key", "name")

    def __init__(self, index: int, key: int | None, id: str, name: str) -> None:
        self.index, self.key = index, key
        self.given = bool(id)  # by the server; else made up, and a later id may still be it
        self.id = id or f"call_{index}"
        self.name = name
        self.arguments: list[str] = []

    def complete(self) -> bool:
        try:
            return isinstance(json.loads("".join(self.arguments)), dict)
        except ValueError:
            return False


class ToolCalls:
    """The calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    @property
    def count(self) -> int:
        """Calls seen."""
        return len(self._calls)

    def add(self, deltas: list[ToolDelta]) -> tuple[ToolPiece, ...]:
        """The pieces in one chunk."""
        return tuple(
            piece
            for place, delta in enumerate(deltas)
            if (piece := self._piece(place, len(deltas), delta)) is not None
        )

    def close(self) -> tuple[ToolPiece, ...]:
        """Calls that got no arguments take none: `{}`."""
        return tuple(
            ToolPiece(call.index, arguments="{}") for call in self._calls if not call.arguments
        )

    def _piece(self, place: int, of: int, delta: ToolDelta) -> ToolPiece | None:
        function = delta.function
        name = (function.name if function else None) or ""
        arguments = (function.arguments if function else None) or ""
        call = self._find(place, of, delta, name)
        fresh = call is None
        if call is None:
            call = _Call(len(self._calls), delta.index, delta.id or "", name)
            self._calls.append(call)
        elif delta.id and not call.given:
            call.given, call.id = True, delta.id
        late = name if not fresh and not call.name else ""
        call.name = call.name or name
        if arguments:
            call.arguments.append(arguments)
        if fresh:
            return ToolPiece(call.index, call.id, call.name, arguments)
        return ToolPiece(call.index, "", late, arguments) if arguments or late else None

    def _find(self, place: int, of: int, delta: ToolDelta, name: str) -> _Call | None:
        calls, call = self._calls, None
        if delta.id:
            for known in calls:
                if known.given and known.id == delta.id:
                    return known
        if delta.index is not None:
            call = next((c for c in reversed(calls) if c.key == delta.index), None)
        elif delta.id:
            call = calls[-1] if calls and not calls[-1].given else None
        elif of > 1:
            call = calls[place - of] if len(calls) >= of else None
        else:
            call = calls[-1] if calls else None
        if call is None or (delta.id and call.given):
            return None  # a new id on a used index is a new call
        if name and (delta.index is None or call.name != name) and call.complete():
            return None
        return call
