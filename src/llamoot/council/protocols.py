"""The protocols: how a council comes from a question to one answer. All pure; see `flow.py`.

Defaults follow the published evidence: what can be counted is voted on without discussion; open
questions get independent drafts and one synthesis by the strongest; debate is short, without
names or counts, and who agrees with the most is left alone. Whatever fails, the ladder goes
down to a vote and then to the best single answer, verbatim: an error text is never an answer.
"""

import random
from collections.abc import Callable, Generator, Sequence
from typing import Any

from msgspec import Struct

from llamoot.agents.types import Format, Message
from llamoot.council import prompts
from llamoot.council.answers import TEXT, Kind, canonical, surface
from llamoot.council.ballots import borda, copeland, read_ranking, tally, unassailable, winners
from llamoot.council.events import Ballot, Convergence, Decision, Position, Warned
from llamoot.council.flow import Ask, Flow, Measure, Note, Reply, Round, Seat, Verdict, labels


class Case(Struct, frozen=True):
    """What is asked, who sits, and the rules. `chairs`: seats from strongest to weakest."""

    messages: tuple[Message, ...]
    seats: tuple[Seat, ...]
    chairs: tuple[Seat, ...]
    kind: Kind = TEXT
    format: Format | None = None
    min_rounds: int = 1
    max_rounds: int = 2
    threshold: float = 0.9
    layers: int = 1
    early_stop: bool = True
    freeze: bool = True
    seed: int = 0

    @property
    def question(self) -> str:
        return self.messages[-1].content

    def rank(self, label: str) -> int:
        """Place of a seat among the chairs; who is no chair comes after them, by label."""
        order = [seat.label for seat in self.chairs]
        order += [seat.label for seat in self.seats if seat.label not in order]
        return order.index(label)


def solo(case: Case) -> Flow:
    """One answer, by the strongest who gives one."""
    order = [
        *case.chairs,
        *(s for s in case.seats if s.label not in {c.label for c in case.chairs}),
    ]
    asks = tuple(_opening(case, seat, hint=False) for seat in order)
    replies = yield Round("synthesis", asks, one_of=True)
    found = [reply for reply in replies if reply.answered]
    return Verdict(found[0].text, "single", found[0].seat) if found else Verdict("", "single")


def vote(case: Case) -> Flow:
    """Independent answers, counted in canonical form; ends when the outcome is certain."""
    settled = _settled(case) if case.early_stop and case.kind.exact else None
    asks = tuple(_opening(case, seat, logprobs=True) for seat in case.seats)
    replies = yield Round("draft", asks, settled=settled)
    return (yield from _count(case, replies))


def synthesize(case: Case) -> Flow:
    """Independent drafts, further layers that read the ones before, then one final text."""
    asks = tuple(_opening(case, seat, hint=False) for seat in case.seats)
    drafts = yield Round("draft", asks, after=case.layers)
    held = _answered(drafts)
    for layer in range(1, case.layers):
        common = prompts.listing(_entries(held))
        asks = tuple(
            Ask(seat.label, prompts.ask(case.messages, common, seat.persona, prompts.REVISE_ANEW))
            for seat in case.seats
        )
        held = _answered((yield Round("revise", asks, after=case.layers - layer))) or held
    return (yield from _synthesis(case, held))


def debate(case: Case) -> Flow:
    """Answers, then rounds of reading the others', until they converge; then vote or synthesis."""
    asks = tuple(_opening(case, seat, logprobs=True) for seat in case.seats)
    rounds = case.max_rounds - 1 + (not case.kind.exact)  # that may follow the first
    held = {r.seat: r for r in _answered((yield Round("draft", asks, after=rounds)))}
    flips: list[str] = []
    for number in range(1, case.max_rounds):
        converged = yield from _converged(case, list(held.values()))
        if (converged and number >= case.min_rounds) or len(held) < 2:
            break
        askers = _unconvinced(case, list(held.values())) if number >= case.min_rounds else None
        asks = tuple(_revision(case, held, seat, askers) for seat in case.seats)
        asks = tuple(ask for ask in asks if askers is None or ask.seat in askers)
        replies = _answered((yield Round("revise", asks, after=rounds - number)))
        for reply in replies:
            flips += _flip(case, held.get(reply.seat), reply)
        held |= {reply.seat: reply for reply in replies}
    last = sorted(held.values(), key=lambda reply: case.rank(reply.seat))
    if case.kind.exact:
        return (yield from _count(case, last, tuple(flips)))
    return (yield from _synthesis(case, last))


def review(case: Case) -> Flow:
    """Answers, blind ballots on one another, then a chair who sees texts and order, no names."""
    asks = tuple(_opening(case, seat, hint=False) for seat in case.seats)
    held = _answered((yield Round("draft", asks, after=2)))
    if len(held) < 3:
        return (yield from _synthesis(case, held))
    papers = {seat.label: _paper(case, held, i, seat) for i, seat in enumerate(case.seats)}
    asks = tuple(paper[0] for paper in papers.values())
    replies = yield Round("ballot", asks, after=1)
    ballots = []
    for reply in replies:
        names = papers[reply.seat][1]
        ranking, problems = read_ranking(reply.text, list(names)) if reply.answered else ((), ())
        groups = tuple(tuple(names[n] for n in group) for group in ranking)
        if reply.answered:
            yield Note(Ballot(seat=reply.seat, ranking=groups, problems=problems))
        if groups:
            ballots.append((groups, frozenset(names.values())))
    if not ballots:
        yield Note(Warned(code="no_ballots", message="no ballot could be read; nothing is ranked"))
        return (yield from _synthesis(case, held))
    points, duels = borda(ballots), copeland(ballots)
    order = sorted(held, key=lambda r: (-points.get(r.seat, 0), -duels.get(r.seat, 0), r.seat))
    positions = tuple(Position(r.seat, (r.seat,), points.get(r.seat, 0.0)) for r in order)
    yield Note(Decision(how="review", answer=order[0].seat, positions=positions))
    return (yield from _synthesis(case, order, ranked=True))


def auto(case: Case) -> Flow:
    """By the kind of answer: a vote on what can be counted, else one synthesis.

    Small models (all known to be at most 8 billion parameters) gain nothing from a synthesis
    they write themselves: their strongest answers alone.
    """
    if len(case.seats) == 1:
        return (yield from solo(case))
    if case.kind.exact and case.kind.name != "code":
        return (yield from vote(case))
    if all(seat.size is not None and seat.size <= 8 for seat in (*case.seats, *case.chairs)):
        why = "all members are small: a synthesis would not help, the strongest answers alone"
        yield Note(Warned(code="solo", message=why + "; --protocol synthesize asks them all"))
        return (yield from solo(case))
    return (yield from synthesize(case))


PROTOCOLS: dict[str, Callable[[Case], Flow]] = {
    "solo": solo,
    "vote": vote,
    "synthesize": synthesize,
    "debate": debate,
    "review": review,
    "auto": auto,
}


def _opening(case: Case, seat: Seat, hint: bool = True, logprobs: bool = False) -> Ask:
    mark = prompts.hint(case.kind, case.question) if hint else ""
    messages = prompts.ask(case.messages, mark, seat.persona)
    return Ask(seat.label, messages, format=case.format, logprobs=logprobs and case.kind.exact)


def _answered(replies: Sequence[Reply]) -> list[Reply]:
    return [reply for reply in replies if reply.answered]


def _entries(held: Sequence[Reply]) -> list[tuple[str, str]]:
    """Distinct texts, numbered: a text given twice stands once, so that nobody sees counts."""
    texts = dict.fromkeys(reply.text.strip() for reply in held)
    return [(str(i), text) for i, text in enumerate(texts, 1)]


def _votes(
    case: Case, replies: Sequence[Reply]
) -> tuple[list[tuple[Reply, str]], dict[str, float]]:
    """The readable votes, and each voter's weight: by confidence where every vote has one."""
    cast = [(r, form) for r in replies if r.answered and (form := canonical(r.text, case.kind))]
    weights = {seat.label: seat.weight for seat in case.seats}
    if cast and all(reply.confidence is not None for reply, _ in cast):
        weights |= {r.seat: weights[r.seat] * (r.confidence or 0.0) for r, _ in cast}
    return cast, weights


def _settled(case: Case) -> Callable[[Sequence[Reply]], bool]:
    plain = {seat.label: seat.weight for seat in case.seats}

    def settled(replies: Sequence[Reply]) -> bool:
        heard = {reply.seat for reply in replies}
        outstanding = sum(weight for label, weight in plain.items() if label not in heard)
        cast, weights = _votes(case, replies)
        by_count = unassailable(tally((form, plain[r.seat]) for r, form in cast), outstanding)
        by_weight = unassailable(tally((form, weights[r.seat]) for r, form in cast), outstanding)
        return by_count is not None and by_count == by_weight

    return settled


def _count(
    case: Case, replies: Sequence[Reply], flips: tuple[str, ...] = ()
) -> Generator[Note, Any, Verdict]:
    """Record the ballots, count them; without a readable one the best single answer stands."""
    cast, weights = _votes(case, replies)
    read = {reply.seat: form for reply, form in cast}
    answered = _answered(replies)
    for reply in answered:
        choice = read.get(reply.seat)
        yield Note(Ballot(seat=reply.seat, choice=choice, weight=weights[reply.seat]))
    if not cast:
        if answered and case.kind.exact:
            why = f"no answer could be read as {case.kind.name}; the best one stands as it is"
            yield Note(Warned(code="unreadable", message=why))
        return _verbatim(case, answered)
    scores = tally((form, weights[reply.seat]) for reply, form in cast)
    tied = winners(scores)
    speakers = [(reply, form) for reply, form in cast if form in tied]
    speaker, winner = min(speakers, key=lambda item: case.rank(item[0].seat))
    if len(tied) > 1:
        why = "the vote is a tie; the answer of the strongest of the tied stands"
        yield Note(Warned(code="tie", message=why))
    positions = tuple(
        Position(form, tuple(r.seat for r, f in cast if f == form), scores[form])
        for form in sorted(scores, key=lambda form: -scores[form])
    )
    agreement = sum(form == winner for _, form in cast) / len(answered)
    done = Decision(
        how="vote", answer=winner, positions=positions, agreement=agreement, flips=flips
    )
    yield Note(done)
    dissent = tuple(position for position in positions if position.answer != winner)
    text = surface(speaker.text, case.kind)
    return Verdict(text, "vote", speaker.seat, agreement, dissent)


def _synthesis(
    case: Case, held: Sequence[Reply], ranked: bool = False
) -> Generator[Round | Note, Any, Verdict]:
    """One final text by the first chair who writes one; else down the ladder."""
    texts = {canonical(reply.text, TEXT) for reply in held}
    if not held:
        return Verdict("")
    if len(texts) == 1:
        return Verdict(held[0].text, "single", held[0].seat)
    common = prompts.listing(_entries(held), prompts.RANKED if ranked else "")
    hint = prompts.hint(case.kind, case.question)
    messages = prompts.ask(case.messages, common, prompts.SYNTHESIS, hint)
    drafts = tuple(reply.text for reply in held)
    asks = tuple(
        Ask(seat.label, messages, format=case.format, drafts=drafts, cool=True)
        for seat in case.chairs
    )
    replies = yield Round("synthesis", asks, one_of=True)
    found = _answered(replies)
    if found:
        return Verdict(found[0].text, "synthesis", found[0].seat)
    why = "nobody could write the synthesis; the best single answer stands"
    yield Note(Warned(code="synthesizer_failed", message=why))
    if case.kind.exact:
        return (yield from _count(case, held))
    return _verbatim(case, held, ranked)


def _verbatim(case: Case, held: Sequence[Reply], ranked: bool = False) -> Verdict:
    """The best single answer as it is: whole before truncated, then by rank or strength."""
    if not held:
        return Verdict("")
    order = list(held) if ranked else sorted(held, key=lambda reply: case.rank(reply.seat))
    best = min(order, key=lambda reply: reply.status != "ok")
    return Verdict(best.text.strip(), "verbatim", best.seat)


def _converged(case: Case, held: list[Reply]) -> Generator[Note | Measure, Any, bool]:
    if not case.kind.exact:
        likeness: float = yield Measure(tuple(reply.text for reply in held))
        return likeness >= case.threshold
    forms = [canonical(reply.text, case.kind) for reply in held]
    most = max((forms.count(form) for form in forms if form), default=0)
    share = most / len(held) if held else 0.0
    done = share >= case.threshold
    yield Note(Convergence(round=0, likeness=share, measure="canonical", converged=done))
    return done


def _unconvinced(case: Case, held: list[Reply]) -> set[str] | None:
    """Seats to ask again: all but those who hold the leading answer. None: everyone."""
    if not case.freeze or not case.kind.exact:
        return None
    forms = {reply.seat: canonical(reply.text, case.kind) for reply in held}
    leading = winners(tally((form, 1.0) for form in forms.values() if form))
    if len(leading) != 1:
        return None
    return {seat.label for seat in case.seats if forms.get(seat.label) != leading[0]}


def _revision(case: Case, held: dict[str, Reply], seat: Seat, askers: set[str] | None) -> Ask:
    entries = _entries(list(held.values()))
    own = held.get(seat.label)
    mine = next((n for n, text in entries if own and own.text.strip() == text), None)
    tail = prompts.REVISE.format(own=mine) if mine else prompts.REVISE_ANEW
    mark = prompts.hint(case.kind, case.question)
    common = prompts.listing(entries)
    messages = prompts.ask(case.messages, common, mark, seat.persona, tail)
    return Ask(seat.label, messages, format=case.format, logprobs=case.kind.exact)


def _flip(case: Case, before: Reply | None, after: Reply) -> list[str]:
    if before is None:
        return []
    old, new = canonical(before.text, case.kind), canonical(after.text, case.kind)
    return [f"{after.seat}: {old} → {new}"] if case.kind.exact and old != new else []


def _paper(case: Case, held: Sequence[Reply], index: int, seat: Seat) -> tuple[Ask, dict[str, str]]:
    """A blind ballot paper, and what its labels stand for: the seat's own answer is no candidate.

    Reviewers of one model read one common list, forwards or backwards, so that its evaluation
    is shared and the bias of position cancels; different models get lists of their own order
    without their own answer.
    """
    shared = len({s.model for s in case.seats}) == 1 and len(case.seats) > 1
    shown = list(held) if shared else [reply for reply in held if reply.seat != seat.label]
    random.Random(case.seed if shared else f"{case.seed}/{seat.label}").shuffle(shown)
    if shared and index % 2:
        shown.reverse()
    names = dict(zip(labels(len(shown)), (reply.seat for reply in shown)))
    common = prompts.listing([(n, r.text) for n, r in zip(names, shown)])
    own = next((name for name, label in names.items() if label == seat.label), None)
    names = {name: label for name, label in names.items() if label != seat.label}
    one, two = [*names, "", ""][1], [*names, ""][0]
    tail = prompts.RANK.format(one=one, two=two) + (
        prompts.LEAVE_OUT.format(own=own) if own else ""
    )
    messages = prompts.ask(case.messages, common, tail)
    form = _ballot_form(list(names)) if seat.constrained else None
    return Ask(seat.label, messages, format=form, cool=True), names


def _ballot_form(names: list[str]) -> Format:
    items = {"type": "array", "items": {"enum": names}, "minItems": 1, "maxItems": len(names)}
    schema = {
        "type": "object",
        "properties": {"ranking": items},
        "required": ["ranking"],
        "additionalProperties": False,
    }
    return Format("schema", schema, "ballot")
