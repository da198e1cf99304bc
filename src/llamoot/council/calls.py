"""The open calls of a run: started, listened to, ended, and every outcome recorded once."""

import asyncio
import math
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from llamoot.agents.types import Agent, ChatRequest, ChatToken, Sampling, Usage
from llamoot.council.events import Answer, ExpertFailed, SynthesisToken, Token
from llamoot.council.flow import Ask, Reply, Round, Seat
from llamoot.council.run import Run
from llamoot.errors import LlamootError, Timeout

_CLOSING = 0.4  # seconds an agent gets to close a cancelled call
_DEFAULT = Sampling()


class Rules(Struct, frozen=True, kw_only=True):
    """Bounds of a run. Seconds, tokens (prompt and answer), money; None means no such bound."""

    quorum: int = 1
    deadline: float | None = None
    grace: float | None = None  # None: as long as the quorum took, at least 2 s
    reserve: float = 0.3  # share of time and budget kept for the last stage
    threshold: float = 0.9
    max_total_tokens: int | None = None
    max_cost: float | None = None
    last: Sampling = Sampling()  # max_tokens and stop of the text that is the answer


class Member(Struct, frozen=True):
    """A seat with the agent that fills it. Prices are money per million tokens."""

    seat: Seat
    agent: Agent
    sampling: Sampling = _DEFAULT
    input_price: float = 0.0
    output_price: float = 0.0
    logprobs: bool = False

    def cost(self, usage: Usage) -> float:
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        return (prompt * self.input_price + answer * self.output_price) / 1e6


def sound(text: str) -> str:
    """`text` with halves of surrogate pairs replaced: such text could not be written down."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Call(Struct, eq=False):
    """An open call: what it has said so far."""

    ask: Ask
    member: Member
    began: float
    text: list[str] = []
    reasoning: list[str] = []
    refusal: str = ""
    logprob: float = 0.0
    measured: int = 0
    pieces: int = 0
    usage: Usage | None = None
    finish: str | None = None
    spent_out: bool = False  # ended because the budget is spent

    def take(self, token: ChatToken) -> tuple[str, str]:
        """Keep what the token brings; its text and reasoning, fit to be recorded."""
        text, reasoning = sound(token.text), sound(token.reasoning)
        if text:
            self.text.append(text)
        if reasoning:
            self.reasoning.append(reasoning)
        self.refusal += token.refusal
        for item in token.logprobs if token.text else ():
            if math.isfinite(item.logprob):
                self.logprob += item.logprob
                self.measured += 1
        self.pieces += bool(token.text or token.reasoning)
        self.usage = token.usage or self.usage
        self.finish = token.finish_reason
        return text, reasoning

    def spent(self) -> Usage:
        return self.usage or Usage(completion_tokens=self.pieces)


class Calls:
    """What is open now. Every call that was started ends in one `answer` or `expert_failed`."""

    def __init__(
        self,
        run: Run,
        members: Mapping[str, Member],
        rules: Rules,
        scrub: Callable[[str], str],
    ) -> None:
        self.run, self.members, self.rules, self.scrub = run, members, rules, scrub
        self.clock = asyncio.get_running_loop().time
        self.number = 0  # of the round being played
        self.open: dict[asyncio.Task[None], Call] = {}

    def start(self, ask: Ask, round: Round) -> asyncio.Task[None]:
        member = self.members[ask.seat]
        call = Call(ask, member, self.clock())
        sampling = member.sampling
        if ask.cool and sampling.temperature is not None:
            sampling = msgspec.structs.replace(sampling, temperature=min(sampling.temperature, 0.2))
        if round.stage == "synthesis":
            limit, stop = self.rules.last.max_tokens, self.rules.last.stop
            sampling = msgspec.structs.replace(
                sampling, max_tokens=limit or sampling.max_tokens, stop=stop or sampling.stop
            )
        if ask.logprobs and member.logprobs:
            sampling = msgspec.structs.replace(sampling, logprobs=0)
        request = ChatRequest(
            messages=ask.messages,
            model=member.agent.model,
            sampling=sampling,
            format=ask.format,
            drafts=ask.drafts,
            request_id=f"{self.run.id}-{self.number}-{ask.seat}",
        )
        kind = SynthesisToken if round.stage == "synthesis" else Token
        task = asyncio.create_task(self._listen(call, request, kind, not round.after))
        self.open[task] = call
        return task

    async def _listen(
        self, call: Call, request: ChatRequest, kind: type[Token | SynthesisToken], last: bool
    ) -> None:
        """Take in the stream of one call up to its finish; closing the stream frees the agent."""
        stream = call.member.agent.chat(request)
        number, seat, emit = self.number, call.ask.seat, self.run.emit
        try:
            async for token in stream:
                text, reasoning = call.take(token)
                if text or reasoning:
                    emit(kind(round=number, seat=seat, text=text, reasoning=reasoning))
                call.spent_out = token.finish_reason is None and self.over_budget(last)
                if token.finish_reason is not None or call.spent_out:
                    return
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    async def close(
        self, tasks: list[asyncio.Task[None]], status: str, why: str
    ) -> dict[str, Reply]:
        """End open calls; an agent that does not let go within a moment is left behind."""
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=_CLOSING)
        replies = {}
        for task in tasks:
            seat = self.open[task].ask.seat
            late = task in running
            replies[seat] = self._failed(task, status, status, why) if late else self.outcome(task)
        return replies

    def outcome(self, task: asyncio.Task[None]) -> Reply:
        """Record what came of a call that has ended by itself."""
        call = self.open[task]
        error = task.exception()
        if isinstance(error, Timeout):
            return self._failed(task, "timeout", error.code, str(error))
        if isinstance(error, LlamootError):
            return self._failed(task, "error", error.code, str(error))
        if error is not None:
            return self._failed(task, "error", "internal", f"{type(error).__name__} in it: {error}")
        text = "".join(call.text)
        if call.spent_out:
            return self._failed(task, "budget", "budget", "the budget is spent")
        if call.finish is None:
            return self._failed(task, "error", "agent_stream_broken", "ended without a finish")
        if call.finish == "content_filter" or (call.refusal and not text.strip()):
            return self._failed(task, "refused", "refused", call.refusal[:200] or "filtered")
        if not text.strip():
            what = "reasoning but no answer" if call.reasoning else "an empty answer"
            return self._failed(task, "empty", "empty", what)
        del self.open[task]
        status = "truncated" if call.finish == "length" else "ok"
        confidence = math.exp(call.logprob / call.measured) if call.measured else None
        self.run.emit(
            Answer(
                round=self.number,
                seat=call.ask.seat,
                text=text,
                reasoning="".join(call.reasoning),
                status=status,
                confidence=confidence,
                usage=call.spent(),
                seconds=self.clock() - call.began,
                cost=call.member.cost(call.spent()),
            )
        )
        return Reply(call.ask.seat, text, status, confidence)

    def _failed(self, task: asyncio.Task[None], status: str, code: str, message: str) -> Reply:
        call = self.open.pop(task)
        self.run.emit(
            ExpertFailed(
                round=self.number,
                seat=call.ask.seat,
                status=status,
                code=code,
                message=self.scrub(sound(message)),
                partial=self.scrub("".join(call.text)),
                usage=call.spent(),
                seconds=self.clock() - call.began,
                cost=call.member.cost(call.spent()),
            )
        )
        return Reply(call.ask.seat, "", status)

    def over_budget(self, last: bool) -> bool:
        rules = self.rules
        if rules.max_total_tokens is None and rules.max_cost is None:
            return False
        share = 1.0 if last else 1.0 - rules.reserve
        done = self.run.transcript
        tokens = done.usage.prompt_tokens + done.usage.completion_tokens
        tokens += sum(call.pieces for call in self.open.values())
        cost = done.cost + sum(c.member.cost(c.spent()) for c in self.open.values())
        return bool(
            (rules.max_total_tokens is not None and tokens >= rules.max_total_tokens * share)
            or (rules.max_cost is not None and cost >= rules.max_cost * share)
        )
