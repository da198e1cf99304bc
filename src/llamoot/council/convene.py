"""The driver: plays a protocol with real agents. The only asynchronous file of the council.

Rounds are asked side by side. One deadline bounds the run; every round gets its share and the
last stage a reserve. A round ends when all have answered, when the outcome is certain, when the
grace after the quorum is over (the strongest gets twice as long), when its time or the budget
is spent. Ending closes every open call. Whatever an agent does, the run ends in time with
`council_finished` or `council_failed`.
"""

import asyncio
import math
from collections.abc import Callable, Sequence

import msgspec

from llamoot.agents.types import Embedder
from llamoot.council.calls import Calls, Member, Rules
from llamoot.council.events import (
    Answer,
    Convergence,
    CouncilFailed,
    CouncilFinished,
    Event,
    RoundFinished,
    RoundStarted,
    Warned,
)
from llamoot.council.flow import Ask, Flow, Measure, Note, Reply, Round, Verdict
from llamoot.council.folds import RoundFold
from llamoot.council.measures import smallest_cosine, smallest_overlap
from llamoot.council.run import Run
from llamoot.errors import LlamootError


class _Ended(LlamootError):
    """The run cannot go on; `event` says why."""

    def __init__(self, event: CouncilFailed) -> None:
        super().__init__(event.message)
        self.event = event


async def convene(
    run: Run,
    flow: Flow,
    members: Sequence[Member],
    rules: Rules,
    *,
    strongest: str = "",
    embedder: Embedder | None = None,
    scrub: Callable[[str], str] = str,
) -> None:
    """Play `flow` to its end within `rules`; rounds that `run` already holds are not asked again.

    Never raises for what agents do; cancelling it closes all calls and records `cancelled`.
    """
    await _Sitting(run, {m.seat.label: m for m in members}, rules, strongest, embedder, scrub).play(
        flow
    )


class _Sitting:
    def __init__(
        self,
        run: Run,
        members: dict[str, Member],
        rules: Rules,
        strongest: str,
        embedder: Embedder | None,
        scrub: Callable[[str], str],
    ) -> None:
        self.run, self.rules = run, rules
        self.strongest, self.embedder, self.scrub = strongest, embedder, scrub
        self.calls = Calls(run, members, rules, scrub)
        self.clock = self.calls.clock
        self.began = self.clock()
        self.ends = self.began + rules.deadline if rules.deadline else math.inf
        self.number = 0
        self.past = [_key(event) for event in run.events]
        self.likenesses = [
            e.likeness
            for e in run.events
            if isinstance(e, Convergence) and e.measure != "canonical"
        ]

    async def play(self, flow: Flow) -> None:
        """Step through the protocol; every way out records an end."""
        try:
            verdict = await self._steps(flow)
            if not verdict.text.strip():
                raise _Ended(self._nobody())
            self._finish(verdict)
        except _Ended as end:
            self._fail(end.event)
        except asyncio.CancelledError:
            await self.calls.close(list(self.calls.open), "cancelled", "the run was cancelled")
            self._fail(CouncilFailed(code="cancelled", message="the run was cancelled"))

    async def _steps(self, flow: Flow) -> Verdict:
        answer: list[Reply] | float | None = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict
            if isinstance(step, Round):
                self.number = self.calls.number = self.number + 1
                answer = await self._round(step)
            elif isinstance(step, Measure):
                answer = await self._likeness(step)
            else:
                self._note(step)
                answer = None

    def _note(self, note: Note) -> None:
        """Record it, unless an earlier life of this run already did."""
        if isinstance(note.event, Convergence):
            note.event.round = self.number
        key = _key(note.event)
        if key in self.past:
            self.past.remove(key)
        else:
            self.run.emit(note.event)

    async def _round(self, round: Round) -> list[Reply]:
        fold = self.run.transcript.rounds.get(self.number)
        known = _known(fold, round) if fold else {}
        if fold is None:
            seats = tuple(ask.seat for ask in round.asks)
            limit = self._share(round)
            seconds = None if math.isinf(limit) else max(limit, 0.0)
            self.run.emit(
                RoundStarted(round=self.number, stage=round.stage, seats=seats, seconds=seconds)
            )
        if fold is None or not fold.finished:
            play = self._in_turn if round.one_of else self._side_by_side
            await play(round, known)
            answered = sum(reply.answered for reply in known.values())
            self.run.emit(
                RoundFinished(round=self.number, answered=answered, asked=len(round.asks))
            )
        replies = [known[ask.seat] for ask in round.asks if ask.seat in known]
        if round.stage == "draft":
            # Who was cut short because the outcome was certain is not missing.
            self._need_quorum(sum(r.answered or r.status == "cancelled" for r in replies))
        return replies

    def _need_quorum(self, actual: int) -> None:
        need = self.rules.quorum
        if actual >= need:
            return
        late = self.clock() >= self.ends
        message = f"{actual} of {need} required experts answered in round {self.number}"
        raise _Ended(
            CouncilFailed(
                code="deadline" if late else "quorum_lost",
                message=message + self._causes(),
                round=self.number,
                required=need,
                actual=actual,
            )
        )

    def _causes(self) -> str:
        fold = self.run.transcript.rounds.get(self.number)
        found = (
            [f"{f.seat}: {f.message or f.status}" for f in fold.failures.values()] if fold else []
        )
        return "; " + "; ".join(found) if found else ""

    def _nobody(self) -> CouncilFailed:
        code = "deadline" if self.clock() >= self.ends else "quorum_lost"
        if self.calls.over_budget(last=True):
            code = "budget"
        message = "no expert gave an answer" + self._causes()
        return CouncilFailed(code=code, message=message, round=self.number)

    def _share(self, round: Round) -> float:
        """Seconds for this round: the last one gets all that is left, others an equal part of
        what is left when the reserve is kept back."""
        left = self.ends - self.clock()
        if not round.after or math.isinf(left):
            return left
        assert self.rules.deadline is not None
        return max(left - self.rules.reserve * self.rules.deadline, 0.0) / round.after

    # A round of parallel calls

    async def _side_by_side(self, round: Round, known: dict[str, Reply]) -> None:
        began = self.clock()
        ends = began + self._share(round)
        mine = {
            self.calls.start(ask, round): ask
            for ask in round.asks
            if ask.seat not in known and not self.calls.over_budget(not round.after)
        }
        for ask in round.asks:
            if ask.seat not in known and ask not in mine.values():
                known[ask.seat] = self._refuse(ask)
        quorum_at: float | None = None
        while mine:
            if round.settled and round.settled(list(known.values())):
                await self._drop(mine, known, "cancelled", "the outcome was already certain")
                break
            if self.calls.over_budget(not round.after):
                await self._drop(mine, known, "budget", "the budget is spent")
                break
            answered = sum(reply.answered for reply in known.values())
            if quorum_at is None and answered >= self.rules.quorum:
                quorum_at = self.clock()
            stop = ends if quorum_at is None else min(ends, self._patience(began, quorum_at, mine))
            if self.clock() >= stop:
                why = "the time for this round is over" if stop >= ends else "the quorum waited"
                await self._drop(mine, known, "timeout", why)
                break
            wait = None if math.isinf(stop) else stop - self.clock()
            done, _ = await asyncio.wait(mine, timeout=wait, return_when="FIRST_COMPLETED")
            for task in sorted(done, key=lambda task: round.asks.index(mine[task])):
                known[mine.pop(task).seat] = self.calls.outcome(task)

    def _patience(
        self, began: float, quorum_at: float, mine: dict[asyncio.Task[None], Ask]
    ) -> float:
        grace = self.rules.grace
        if grace is None:
            grace = max(2.0, quorum_at - began)
        twice = any(ask.seat == self.strongest for ask in mine.values())
        return quorum_at + grace * (2 if twice else 1)

    async def _drop(
        self, mine: dict[asyncio.Task[None], Ask], known: dict[str, Reply], status: str, why: str
    ) -> None:
        known |= await self.calls.close(list(mine), status, why)
        mine.clear()

    # A ladder: one after another until one answers

    async def _in_turn(self, round: Round, known: dict[str, Reply]) -> None:
        for i, ask in enumerate(round.asks):
            if ask.seat in known:
                if known[ask.seat].answered:
                    return
                continue
            left = self.ends - self.clock()
            if left <= 0 or self.calls.over_budget(not round.after):
                known[ask.seat] = self._refuse(ask)
                continue
            more = i + 1 < len(round.asks)
            limit = None if math.isinf(left) else left / 2 if more else left
            task = self.calls.start(ask, round)
            await asyncio.wait([task], timeout=limit)
            if task.done():
                known[ask.seat] = self.calls.outcome(task)
            else:
                known |= await self.calls.close([task], "timeout", "the time for it is over")
            if known[ask.seat].answered:
                return

    def _refuse(self, ask: Ask) -> Reply:
        """Not asked at all: time or budget is spent. No call, so no event of one."""
        return Reply(ask.seat, "", "timeout" if self.clock() >= self.ends else "budget")

    # Likeness and end

    async def _likeness(self, measure: Measure) -> float:
        if self.likenesses:
            return self.likenesses.pop(0)
        value, how = smallest_overlap(measure.texts), "lexical"
        if self.embedder is not None:
            limit = min(20.0, max((self.ends - self.clock()) * 0.2, 0.1))
            task = asyncio.ensure_future(self.embedder.embed(list(measure.texts)))
            await asyncio.wait([task], timeout=limit)
            if task.done() and not task.cancelled() and task.exception() is None:
                value, how = smallest_cosine(task.result()), "cosine"
            else:
                error = task.exception() if task.done() and not task.cancelled() else None
                task.cancel()
                why = f"the embedder failed ({error or 'too slow'}); words are compared instead"
                self.run.emit(Warned(code="embedder_failed", message=self.scrub(why)))
        done = value >= self.rules.threshold
        self.run.emit(Convergence(round=self.number, likeness=value, measure=how, converged=done))
        return value

    def _finish(self, verdict: Verdict) -> None:
        done = self.run.transcript
        self.run.emit(
            CouncilFinished(
                text=verdict.text,
                how=verdict.how,
                seat=verdict.seat,
                agreement=verdict.agreement,
                dissent=verdict.dissent,
                usage=done.usage,
                calls=done.calls,
                seconds=self.clock() - self.began,
                cost=done.cost,
            )
        )

    def _fail(self, event: CouncilFailed) -> None:
        done = self.run.transcript
        event.usage, event.calls, event.cost = done.usage, done.calls, done.cost
        event.seconds = self.clock() - self.began
        event.message = self.scrub(event.message)
        self.run.emit(event)


def _known(fold: RoundFold, round: Round) -> dict[str, Reply]:
    """Replies an earlier life of the run recorded: all of a finished round; of a broken-off one
    the answers, and the failed rungs of a ladder."""
    known = {}
    for seat, outcome in fold.outcomes.items():
        if isinstance(outcome, Answer):
            known[seat] = Reply(seat, outcome.text, outcome.status, outcome.confidence)
        elif fold.finished or round.one_of:
            known[seat] = Reply(seat, "", outcome.status)
    if fold.finished:
        for ask in round.asks:
            known.setdefault(ask.seat, Reply(ask.seat, "", "cancelled"))
    return known


def _key(event: Event) -> object:
    body = msgspec.structs.asdict(event)
    return type(event).__name__, repr(
        sorted((k, v) for k, v in body.items() if k not in ("seq", "at"))
    )
