"""Folds over events: the transcript of a run, from which everything else is shown."""

from msgspec import Struct

from llamoot.agents.types import Usage
from llamoot.council.events import (
    Answer,
    Ballot,
    Convergence,
    CouncilFailed,
    CouncilFinished,
    CouncilResumed,
    CouncilStarted,
    Decision,
    Event,
    ExpertFailed,
    MemberInfo,
    Position,
    RoundFinished,
    RoundStarted,
    Warned,
)


def add_usage(one: Usage, other: Usage) -> Usage:
    """The sum, field by field."""
    return Usage(*(getattr(one, n) + getattr(other, n) for n in Usage.__struct_fields__))


class RoundFold(Struct):
    """What happened in one round, by seat."""

    stage: str
    seats: tuple[str, ...]
    answers: dict[str, Answer] = {}
    failures: dict[str, ExpertFailed] = {}
    finished: bool = False
    likeness: float | None = None

    @property
    def outcomes(self) -> dict[str, Answer | ExpertFailed]:
        return {**self.failures, **self.answers}


class Transcript(Struct):
    """A run as far as its events tell it. `state`: running, finished or failed."""

    run: str = ""
    started: CouncilStarted | None = None
    rounds: dict[int, RoundFold] = {}
    ballots: list[Ballot] = []
    convergence: list[Convergence] = []
    decisions: list[Decision] = []
    warnings: list[Warned] = []
    state: str = "running"
    text: str = ""
    how: str = ""
    seat: str = ""
    agreement: float = 0.0
    dissent: tuple[Position, ...] = ()
    failure: CouncilFailed | None = None
    usage: Usage = Usage()
    calls: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, events: list[Event]) -> "Transcript":
        """The fold of a whole log."""
        transcript = cls()
        for event in events:
            transcript.add(event)
        return transcript

    @property
    def question(self) -> str:
        return self.started.messages[-1].content if self.started else ""

    @property
    def members(self) -> dict[str, MemberInfo]:
        return {m.label: m for m in self.started.members} if self.started else {}

    def add(self, event: Event) -> None:
        """Take in the next event."""
        if isinstance(event, CouncilStarted):
            self.started, self.run = event, event.run
        elif isinstance(event, CouncilResumed):
            self._again()
        elif isinstance(event, RoundStarted):
            self.rounds.setdefault(event.round, RoundFold(event.stage, event.seats))
        elif isinstance(event, Answer | ExpertFailed):
            self._outcome(event)
        elif isinstance(event, RoundFinished):
            self.rounds[event.round].finished = True
        elif isinstance(event, Ballot):
            self.ballots.append(event)
        elif isinstance(event, Convergence):
            self.convergence.append(event)
            if event.round in self.rounds:
                self.rounds[event.round].likeness = event.likeness
        elif isinstance(event, Decision):
            self.decisions.append(event)
        elif isinstance(event, Warned):
            self.warnings.append(event)
        elif isinstance(event, CouncilFinished):
            self.state, self.text, self.how, self.seat = (
                "finished",
                event.text,
                event.how,
                event.seat,
            )
            self.agreement, self.dissent, self.seconds = (
                event.agreement,
                event.dissent,
                event.seconds,
            )
        elif isinstance(event, CouncilFailed):
            self.state, self.failure, self.seconds = "failed", event, event.seconds

    def _again(self) -> None:
        """A failed run is tried again: its last round is open, and who failed in it is asked."""
        if self.failure is not None and self.rounds:
            last = self.rounds[max(self.rounds)]
            last.finished = False
            last.failures.clear()
        self.state, self.failure = "running", None

    def _outcome(self, event: Answer | ExpertFailed) -> None:
        fold = self.rounds[event.round]
        if isinstance(event, Answer):
            fold.answers[event.seat] = event
            fold.failures.pop(event.seat, None)
        else:
            fold.failures[event.seat] = event
            fold.answers.pop(event.seat, None)
        if not event.reused:
            self.usage = add_usage(self.usage, event.usage)
            self.calls += 1
            self.cost += event.cost
