"""Reasoning that a server leaves in the text between <think> and </think>. No I/O."""

_OPEN, _CLOSE = "<think>", "</think>"


class ThinkSplitter:
    """Pieces of text in, (text, reasoning) out. Only a block at the very start is reasoning."""

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"  # start, inside, after (blanks are dropped), plain

    @property
    def plain(self) -> bool:
        """Nothing is held and nothing will be split any more."""
        return self._state == "plain"

    def feed(self, piece: str) -> tuple[str, str]:
        """What is certain of `piece` and of what was held before it."""
        if self._state == "start":
            self._held += piece
            bare = self._held.lstrip()
            if not bare or (len(bare) < len(_OPEN) and _OPEN.startswith(bare)):
                return "", ""
            if not bare.startswith(_OPEN):
                return self.finish()
            self._state, self._held, piece = "inside", "", bare[len(_OPEN) :]
        thought = ""
        if self._state == "inside":
            self._held += piece
            thought, close, piece = self._held.partition(_CLOSE)
            if not close:
                keep = _overlap(thought)
                self._held = thought[len(thought) - keep :]
                return "", thought[: len(thought) - keep]
            self._state, self._held = "after", ""
        if self._state == "after":
            piece = piece.lstrip()
            if not piece:
                return "", thought
            self._state = "plain"
        return piece, thought

    def finish(self) -> tuple[str, str]:
        """What was held when nothing more comes."""
        held, self._held = self._held, ""
        inside = self._state == "inside"
        self._state = "plain"
        return ("", held) if inside else (held, "")


def _overlap(text: str) -> int:
    """Length of the longest end of `text` that begins a closing tag."""
    longest = min(len(text), len(_CLOSE) - 1)
    return next((n for n in range(longest, 0, -1) if _CLOSE.startswith(text[-n:])), 0)
