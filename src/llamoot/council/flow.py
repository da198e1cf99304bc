"""The shape of a protocol: a generator that yields one round at a time and returns a verdict.

A protocol is pure: it yields `Round` (questions asked side by side, or one after another until
one is answered), `Measure` (how alike are these texts?) or `Note` (something for the record), is
sent what came of it, and returns a `Verdict`. It never waits, opens or stores anything, so tests
and replays play it by hand. Deadlines, quorum and budgets belong to `convene.py`.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

from msgspec import Struct

from llamoot.agents.types import Format, Message
from llamoot.council.events import Ballot, Convergence, Decision, Position, Warned

Stage = Literal["draft", "revise", "ballot", "synthesis"]


def labels(count: int) -> list[str]:
    """A … Z, AA, AB, …: as many different names as there are experts."""
    names = []
    for n in range(1, count + 1):
        name = ""
        while n:
            n, rest = divmod(n - 1, 26)
            name = chr(65 + rest) + name
        names.append(name)
    return names


class Seat(Struct, frozen=True):
    """An expert as a protocol sees it. `size` is in billions of parameters, None if unknown."""

    label: str
    model: str = ""
    persona: str = ""
    weight: float = 1.0
    size: float | None = None
    constrained: bool = False  # its output can be held to a format


class Ask(Struct, frozen=True):
    """One question to one seat. `cool`: judge or write up, do not explore."""

    seat: str
    messages: tuple[Message, ...]
    format: Format | None = None
    drafts: tuple[str, ...] = ()
    cool: bool = False
    logprobs: bool = False


class Reply(Struct, frozen=True):
    """What came of an ask: ok, truncated, or why there is no answer; `error` is for the record."""

    seat: str
    text: str = ""
    status: str = "ok"  # ok truncated empty refused timeout error cancelled budget
    confidence: float | None = None  # geometric mean probability of its tokens, where known

    @property
    def answered(self) -> bool:
        return self.status in ("ok", "truncated") and bool(self.text.strip())


class Round(Struct, frozen=True):
    """Asks side by side or, with `one_of`, alternatives tried in order until one is answered.

    `after`: how many rounds may still follow; the driver shares the deadline out by it.
    `settled(replies)`: nothing the open asks could say would change the outcome; end them.
    """

    stage: Stage
    asks: tuple[Ask, ...]
    after: int = 0
    settled: Callable[[Sequence[Reply]], bool] | None = None
    one_of: bool = False


class Measure(Struct, frozen=True):
    """Sent back: the smallest pairwise likeness of the texts, 0 to 1, and how it was measured."""

    texts: tuple[str, ...]


class Note(Struct, frozen=True):
    """Something that belongs into the record; nothing is sent back."""

    event: Ballot | Convergence | Decision | Warned


class Verdict(Struct, frozen=True):
    """The answer, how it came about, and who thought otherwise. Empty text: nobody answered."""

    text: str
    how: str = "vote"  # vote, synthesis, chair, single, verbatim
    seat: str = ""
    agreement: float = 1.0
    dissent: tuple[Position, ...] = ()


Flow = Generator[Round | Measure | Note, Any, Verdict]
