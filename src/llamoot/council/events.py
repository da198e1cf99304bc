"""The events of a run: typed, numbered, only ever appended. Everything shown is a fold of them.

`seq` counts from 0 without a gap; `at` is seconds since the epoch. An event never holds a key.
"""

import time
from typing import Any

import msgspec
from msgspec import Struct

from llamoot.agents.types import Format, Message, Usage


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class Event(Struct, tag_field="type", tag=_snake, kw_only=True, omit_defaults=True):
    """Base of all events; the driver fills in `seq` and `at`."""

    seq: int = -1
    at: float = 0.0


class Position(Struct, frozen=True, omit_defaults=True):
    """An answer and the seats that hold it."""

    answer: str
    seats: tuple[str, ...]
    weight: float = 0.0


class MemberInfo(Struct, frozen=True, omit_defaults=True):
    """A seat for the record."""

    label: str
    id: str
    model: str
    persona: str = ""


class CouncilStarted(Event):
    run: str
    council: str
    protocol: str
    kind: str
    messages: tuple[Message, ...]
    members: tuple[MemberInfo, ...]
    chairs: tuple[str, ...]
    quorum: int
    format: Format | None = None
    settings: dict[str, Any] = {}


class CouncilResumed(Event):
    """A killed run goes on, or `chair` writes a finished one anew."""

    chair: str = ""


class RoundStarted(Event):
    round: int
    stage: str
    seats: tuple[str, ...]
    seconds: float | None = None


class Token(Event):
    """A piece of an expert's answer."""

    round: int
    seat: str
    text: str = ""
    reasoning: str = ""


class SynthesisToken(Event):
    """A piece of the last stage's text; a new `seat` starts the text anew."""

    round: int
    seat: str
    text: str = ""
    reasoning: str = ""


class Answer(Event):
    """A call that was answered."""

    round: int
    seat: str
    text: str
    reasoning: str = ""
    status: str = "ok"
    confidence: float | None = None
    usage: Usage = Usage()
    seconds: float = 0.0
    cost: float = 0.0
    reused: bool = False  # taken from another run, not asked in this one


class ExpertFailed(Event):
    """A call without an answer: empty, refused, timeout, error, cancelled or budget."""

    round: int
    seat: str
    status: str
    code: str = ""
    message: str = ""
    partial: str = ""
    usage: Usage = Usage()
    seconds: float = 0.0
    cost: float = 0.0
    reused: bool = False


class RoundFinished(Event):
    round: int
    answered: int
    asked: int


class Convergence(Event):
    round: int
    likeness: float
    measure: str  # canonical, cosine or lexical
    converged: bool = False


class Ballot(Event):
    """What a seat voted for: an answer in canonical form, or a ranking of seats, best first."""

    seat: str
    choice: str | None = None  # None: an abstention
    ranking: tuple[tuple[str, ...], ...] = ()
    weight: float = 1.0
    problems: tuple[str, ...] = ()


class Decision(Event):
    """How the outcome was reached; `flips` are changes of mind, seat: from → to."""

    how: str
    answer: str = ""
    positions: tuple[Position, ...] = ()
    agreement: float = 1.0
    flips: tuple[str, ...] = ()


class Warned(Event, tag="warning"):
    """Something the reader of the answer should know; the run goes on."""

    code: str
    message: str
    seat: str = ""


class CouncilFinished(Event):
    text: str
    how: str
    seat: str = ""
    agreement: float = 1.0
    dissent: tuple[Position, ...] = ()
    usage: Usage = Usage()
    calls: int = 0
    seconds: float = 0.0
    cost: float = 0.0


class CouncilFailed(Event):
    """The run ended without an answer.

    `code`: quorum_lost, synthesizer_failed, embedder_failed, cancelled, deadline, budget,
    config_error or internal.
    """

    code: str
    message: str
    round: int = 0
    required: int = 0
    actual: int = 0
    usage: Usage = Usage()
    calls: int = 0
    seconds: float = 0.0
    cost: float = 0.0


AnyEvent = (
    CouncilStarted | CouncilResumed | RoundStarted | Token | SynthesisToken | Answer | ExpertFailed
    | RoundFinished | Convergence | Ballot | Decision | Warned | CouncilFinished | CouncilFailed
)  # fmt: skip

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode(event: Event) -> bytes:
    return _encoder.encode(event)


def decode(body: bytes) -> AnyEvent:
    return _decoder.decode(body)


def stamp(event: Event, seq: int) -> None:
    event.seq, event.at = seq, time.time()
