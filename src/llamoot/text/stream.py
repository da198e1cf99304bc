"""Token ids to growing text: never half a character, never a stop string, nothing lost."""

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from llamoot.text.output import Delta, OutputParser
from llamoot.text.syntax import PLAIN, Syntax
from llamoot.text.tokenizer import Tokenizer


class StopStrings:
    """Passes text through up to the first stop string; holds back what may begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self.found: str | None = None
        self._held = ""

    def feed(self, text: str) -> str:
        """The text that is safe to show now; after a stop nothing more."""
        if self.found is not None or not self.stops:
            return "" if self.found is not None else text
        text, self._held = self._held + text, ""
        hits = [(at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if hits:
            at, self.found = min(hits)
            return text[:at]
        for size in range(min(len(text), max(map(len, self.stops)) - 1), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self.stops):
                text, self._held = text[:-size], text[-size:]
                break
        return text

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return "" if self.found is not None else held


class TextStream:
    """One answer: feed ids, get what each added; `stopped` is the stop string that ended it.

    Stop strings are looked for in the visible text, not in reasoning or tool calls.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        syntax: Syntax = PLAIN,
        tools: Sequence[Mapping[str, Any]] = (),
        stop: Sequence[str] = (),
        reasoning: bool = False,
        after_special: bool = False,
    ) -> None:
        """`reasoning`: the prompt ends inside a reasoning region. `after_special`: it ends with a
        special token, after which vocabularies that put a space before each text drop it again."""
        self._tokenizer, self._syntax = tokenizer, syntax
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStrings(stop)
        self._parser = OutputParser(syntax, tools, reasoning=reasoning)
        self._strip = after_special and tokenizer.vocab.add_space

    @property
    def stopped(self) -> str | None:
        return self._stops.found

    @property
    def n_calls(self) -> int:
        """Tool calls begun so far."""
        return self._parser.n_calls

    def feed(self, *ids: int) -> Delta:
        """What these tokens add. Control tokens add nothing, unless the family marks with them."""
        text = ""
        for i in ids:
            piece = self._tokenizer.piece(i)
            if self._tokenizer.is_control(i):
                text += self._decoder.decode(b"", True)
                name = piece.decode("utf-8", "replace")
                text += name if name in self._syntax.markers else ""
                continue
            if self._strip and piece:
                piece, self._strip = piece.removeprefix(b" "), False
            text += self._decoder.decode(piece)
        return self._visible(self._parser.feed(text))

    def finish(self) -> Delta:
        """What was held back; an incomplete character becomes U+FFFD."""
        first = self._visible(self._parser.feed(self._decoder.decode(b"", True)))
        last = self._visible(self._parser.finish())
        return Delta(
            first.text + last.text + self._stops.finish(),
            first.reasoning + last.reasoning,
            first.tools + last.tools,
        )

    def _visible(self, delta: Delta) -> Delta:
        if self._stops.found is not None:
            return Delta()
        return delta._replace(text=self._stops.feed(delta.text))
