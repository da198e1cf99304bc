"""What a question would cost, before anything is spent; and afterwards, how wrong that was."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from llamoot.agents.types import Message
from llamoot.council.folds import Transcript
from llamoot.council.panel import Panel, Place

_LENGTHS = {"number": 60, "choice": 40, "boolean": 40, "span": 40, "json": 120, "code": 400}
_OPEN, _BALLOT, _SPEED, _START = 500, 60, 20.0, 0.5  # tokens, tokens, tokens per s, s
_CHARACTERS = 4  # per token, as a rule of thumb


class Habit(Struct):
    """What recorded answers of a model teach: sums over `calls` calls."""

    calls: int = 0
    written: int = 0
    seconds: float = 0.0


class Plan(Struct, frozen=True):
    """A prediction. `calls` is the most there can be; `measured`: whether recorded runs of all
    these models stand behind it."""

    protocol: str
    kind: str
    calls: int
    read: int
    written: int
    seconds: float
    cost: float
    rounds: tuple[str, ...]
    measured: bool

    def errors(self, done: Transcript) -> dict[str, float]:
        """Predicted over actual, less one, for tokens and seconds; 0.1 is 10 % too much."""
        tokens = done.usage.prompt_tokens + done.usage.completion_tokens
        pairs = {
            "tokens": (self.read + self.written, tokens),
            "seconds": (self.seconds, done.seconds),
        }
        return {name: said / real - 1 for name, (said, real) in pairs.items() if real > 0}


def learn(runs: Iterable[Transcript]) -> dict[str, Habit]:
    """Habits of the models that answered in these runs."""
    habits: dict[str, Habit] = {}
    for done in runs:
        models = {label: member.model for label, member in done.members.items()}
        for fold in done.rounds.values():
            for seat, answer in fold.answers.items():
                habit = habits.setdefault(models.get(seat, ""), Habit())
                habit.calls += 1
                habit.written += answer.usage.completion_tokens
                habit.seconds += answer.seconds
    return habits


def predict(panel: Panel, messages: Sequence[Message], habits: dict[str, Habit]) -> Plan:
    """Calls, tokens, seconds and money of asking `panel` this."""
    case = panel.case(messages)
    kind, protocol = case.kind, panel.protocol
    experts = [place for place in panel.places if place.expert]
    if protocol == "auto":
        small = all(place.size is not None and place.size <= 8 for place in panel.places)
        exact = kind.exact and kind.name != "code"
        protocol = "vote" if exact else "solo" if small or len(experts) == 1 else "synthesize"
        protocol = "solo" if len(experts) == 1 else protocol
    chair = next(place for place in panel.places if place.label == panel.chairs[0])
    rounds: list[tuple[str, list[Place]]] = [("draft", experts)]
    if protocol == "solo":
        rounds = [("synthesis", [chair])]
    elif protocol == "debate":
        rounds += [("revise", experts)] * (panel.max_rounds - 1)
    elif protocol == "review":
        rounds += [("ballot", experts)]
    elif protocol == "synthesize":
        rounds += [("revise", experts)] * (panel.layers - 1)
    if protocol in ("synthesize", "review") or (protocol == "debate" and not kind.exact):
        rounds += [("synthesis", [chair])]
    asked = sum(len(message.content) for message in messages) // _CHARACTERS + 8
    usual = _LENGTHS.get(kind.name, _OPEN)
    seconds = cost = 0.0
    read = written = 0
    drafts = 0
    for stage, places in rounds:
        slowest = 0.0
        for place in places:
            out = _BALLOT if stage == "ballot" else _written(place, habits, usual)
            into = asked + (drafts if stage != "draft" else 0)
            read, written = read + into, written + out
            cost += (into * place.input_price + out * place.output_price) / 1e6
            slowest = max(slowest, _seconds(place, habits, out))
        seconds += slowest
        if stage in ("draft", "revise"):
            drafts = sum(_written(place, habits, usual) for place in places)
    return Plan(
        protocol,
        kind.name,
        sum(len(places) for _, places in rounds),
        read,
        written,
        seconds,
        cost,
        tuple(stage for stage, _ in rounds),
        all(place.spec.model in habits for place in experts),
    )


def _written(place: Place, habits: dict[str, Habit], usual: int) -> int:
    habit = habits.get(place.spec.model)
    length = round(habit.written / habit.calls) if habit and habit.calls else usual
    return min(length, place.sampling.max_tokens or length)


def _seconds(place: Place, habits: dict[str, Habit], written: int) -> float:
    habit = habits.get(place.spec.model)
    if habit and habit.written:
        return habit.seconds / habit.written * written
    return _START + written / _SPEED
