"""The fault matrix: whatever one member does in whichever stage, the run ends well and in time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from councils import OPEN, SUM, seat, stage_of
from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, ChatToken
from llamoot.council.folds import Transcript
from llamoot.errors import Overloaded, Stream, Timeout, Transport

pytestmark = pytest.mark.pure

MARK = "FAULTY"  # in every error and every partial text: must never reach an answer
DEADLINE = 2.0


class Rude:
    """An agent that breaks the contract itself, in one stage; else it plays the script."""

    timeout: float | None = None
    context_length: int | None = None

    def __init__(self, kind: str, stage: str, good: Callable[[ChatRequest], Any]) -> None:
        self.kind, self.stage = kind, stage
        self.inner = ScriptedAgent("rude", good)
        self.id = self.model = "rude"

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        if stage_of(request) != self.stage:
            async for token in self.inner.chat(request):
                yield token
            return
        yield ChatToken(text=MARK)
        if self.kind == "crash":
            raise ValueError(MARK)
        if self.kind == "deaf":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(5)  # does not let go
        if self.kind == "chatter":
            while True:
                await asyncio.sleep(0.01)
                yield ChatToken(text=MARK)

    async def close(self) -> None:
        """Nothing is held."""


FAULTS: dict[str, Any] = {
    "unreachable": Transport("x", f"connection refused {MARK}"),
    "http 500": Transport("x", f"500 {MARK}", http_status=500, body=MARK),
    "overloaded": Overloaded(f"queue full {MARK}"),
    "timer": Timeout("x", "first_token", 1.0, partial=MARK),
    "hang": Reply(hang=True),
    "hang after text": Reply(text=f"{MARK} so far", hang=True),
    "broken off": Reply(text=f"{MARK} half", error=Stream("x", f"cut at byte k {MARK}")),
    "drip": Reply(tokens=(MARK,) * 50, delay=0.4),
    "empty": Reply(text="  "),
    "only reasoning": Reply(reasoning=(MARK,)),
    "refused": Reply(refusal=f"I cannot {MARK}"),
    "filtered": Reply(text=MARK, finish_reason="content_filter"),
}
RUDE = ("crash", "deaf", "chatter", "no finish")
STAGES = {
    "solo": ("synthesis",),
    "vote": ("draft",),
    "synthesize": ("draft", "revise", "synthesis"),
    "debate": ("draft", "revise", "synthesis"),
    "review": ("draft", "ballot", "synthesis"),
}


def script(fault: Any, stage: str, own: str) -> Callable[[ChatRequest], Any]:
    """Good answers, differing by member; `fault` in `stage`. Solo asks a plain question."""

    def answer(request: ChatRequest) -> Any:
        here = stage_of(request)
        if here == stage and fault is not None:
            if isinstance(fault, Overloaded):
                raise fault
            return fault
        if here == "ballot":
            return '{"ranking": ["A", "B"]}'
        if here == "synthesis":
            return f"The final text of {own}."
        return f"{own} thinks it is {'42' if SUM in request.messages[-1].content else own}."

    return answer


async def cell(protocol: str, stage: str, who: str, fault: str) -> tuple[Transcript, float]:
    asked = "draft" if protocol == "solo" else stage
    agents: dict[str, Any] = {}
    for name in ("A", "B", "C", "chair"):
        if name == who and fault in RUDE:
            agents[name] = Rude(fault, asked, script(None, asked, name))
        else:
            bad = FAULTS[fault] if name == who else None
            agents[name] = ScriptedAgent(name, script(bad, asked, name))
    chair = agents.pop("chair")
    council = seat(
        list(agents.values()),
        chair=chair,
        protocol=protocol,
        deadline=DEADLINE,
        max_rounds=2,
        min_rounds=2,
        layers=2,
        threshold=1.0,
    )
    question = SUM if protocol == "vote" else OPEN
    loop = asyncio.get_running_loop()
    began = loop.time()
    done = await council.start(question).wait()
    return done, loop.time() - began


def test_every_fault_in_every_stage_ends_in_time_with_a_typed_result() -> None:
    cells = [
        (protocol, stage, who, fault)
        for protocol, stages in STAGES.items()
        for stage in stages
        for who in ("A", "B", "C", "chair")
        for fault in (*FAULTS, *RUDE)
    ]

    async def all_cells() -> list[tuple[Transcript, float]]:
        results: list[tuple[Transcript, float]] = []
        for start in range(0, len(cells), 80):
            results += await asyncio.gather(*(cell(*c) for c in cells[start : start + 80]))
        return results

    table: dict[tuple[str, str], Counter[str]] = {}
    slowest = 0.0
    for (protocol, stage, who, fault), (done, seconds) in zip(cells, asyncio.run(all_cells())):
        where = f"{protocol}/{stage}/{who}/{fault}"
        assert done.state == "finished", f"{where}: {done.failure}"
        assert MARK not in done.text and done.text.strip(), where
        assert seconds < DEADLINE + 1.0, f"{where} took {seconds:.2f} s"
        slowest = max(slowest, seconds)
        table.setdefault((protocol, stage), Counter())[done.how] += 1
    print(f"\n{len(cells)} cells, each ended with an answer; slowest {slowest:.2f} s")
    for (protocol, stage), ways in table.items():
        print(f"  {protocol:11} {stage:10} " + ", ".join(f"{w} {n}" for w, n in ways.items()))


@pytest.mark.parametrize("protocol", STAGES)
@pytest.mark.parametrize("fault", [*FAULTS])
def test_when_everyone_fails_the_run_fails_with_a_code(protocol: str, fault: str) -> None:
    bad = {name: ScriptedAgent(name, script(FAULTS[fault], "draft", name)) for name in "ABC"}
    council = seat(list(bad.values()), protocol=protocol, deadline=0.3)

    async def run() -> tuple[Transcript, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        done = await council.start(SUM).wait()
        return done, loop.time() - began

    done, seconds = asyncio.run(run())
    assert done.state == "failed" and done.text == "" and done.failure is not None
    assert done.failure.code in ("quorum_lost", "deadline") and done.failure.message
    assert seconds < 1.3
    assert all(agent.running == 0 for agent in bad.values())
