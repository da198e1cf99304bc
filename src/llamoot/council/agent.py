"""A council is an agent: it can sit in another council, and a server serves it like a model.

Deliberation goes to `reasoning`, an expert at a time; the answer goes to `text` as it is written.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from llamoot.agents.types import ChatRequest, ChatToken
from llamoot.council.council import Council
from llamoot.council.events import (
    Answer,
    CouncilFailed,
    CouncilFinished,
    Event,
    ExpertFailed,
    SynthesisToken,
)
from llamoot.council.folds import Transcript
from llamoot.errors import Stream, Timeout, Transport

_KEPT = 256  # reports


class CouncilAgent:
    """An `Agent` over a council. `name` is what it is called in a catalogue: council/NAME."""

    def __init__(self, council: Council, id: str = "") -> None:
        self.council = council
        self.id = self.model = id or f"council/{council.name}"
        self.timeout = council.panel.rules.deadline
        self._reports: OrderedDict[str, dict[str, Any]] = OrderedDict()

    @property
    def context_length(self) -> int | None:
        return self.council.context_length

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        """Stream one deliberation. Turns with tools belong to one actor: the strongest member.

        Closing the stream early cancels the run, and with it every open call.
        """
        if request.tools or request.messages[-1].role == "tool":
            async for token in self._actor(request):
                yield token
            return
        council = self.council
        run = council.start(request.messages, format=request.format, sampling=request.sampling)
        answer = _Writing()
        try:
            async for event in run.follow():
                piece = answer.take(event)
                if piece is not None:
                    yield piece
                if isinstance(event, CouncilFailed):
                    raise self._error(event, answer.said)
                if isinstance(event, CouncilFinished):
                    self._keep(request.request_id, run.transcript)
                    yield ChatToken(finish_reason=answer.finish, usage=event.usage)
        finally:
            if not run.over:
                run.cancel()
                await run.wait()

    async def _actor(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        panel = self.council.panel
        members = {m.seat.label: m for m in self.council.members(panel)}
        agent = members[panel.chairs[0]].agent
        stream = agent.chat(msgspec.structs.replace(request, model=agent.model))
        try:
            async for token in stream:
                yield token
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()

    def _error(self, event: CouncilFailed, said: str) -> Exception:
        if event.code == "deadline":
            return Timeout(self.id, "total", self.timeout or event.seconds, partial=said)
        if said:
            return Stream(self.id, f"{event.code}: {event.message}", partial=said)
        return Transport(self.id, f"{event.code}: {event.message}")

    def _keep(self, request_id: str, done: Transcript) -> None:
        self._reports[request_id] = {
            "run": done.run,
            "how": done.how,
            "agreement": done.agreement,
            "dissent": [msgspec.to_builtins(position) for position in done.dissent],
            "warnings": [warning.message for warning in done.warnings],
            "calls": done.calls,
            "seconds": done.seconds,
            "cost": done.cost,
        }
        while len(self._reports) > _KEPT:
            self._reports.popitem(last=False)

    def report(self, request_id: str) -> dict[str, Any]:
        """Run id, agreement, dissent and cost of a finished request; empty if not known."""
        return self._reports.get(request_id, {})

    async def close(self) -> None:
        """Close every agent of the council."""
        await self.council.close()


class _Writing:
    """From events to tokens: keeps what has been said of the answer, so that nothing is said
    twice and a fallback's text begins on a line of its own."""

    def __init__(self) -> None:
        self.said, self.seat, self.finish = "", "", "stop"

    def take(self, event: Event) -> ChatToken | None:
        if isinstance(event, SynthesisToken):
            text = event.text
            if event.seat != self.seat:
                text = ("\n\n" if self.said else "") + text
                self.seat, self.said = event.seat, ""
            self.said += event.text
            return ChatToken(text=text, reasoning=event.reasoning)
        if isinstance(event, Answer):
            self.finish = "length" if event.status == "truncated" else "stop"
            if event.text == self.said:
                return None
            return ChatToken(reasoning=f"{event.seat}: {event.text.strip()}\n\n")
        if isinstance(event, ExpertFailed):
            return ChatToken(reasoning=f"{event.seat}: no answer ({event.status})\n\n")
        if isinstance(event, CouncilFinished):
            if event.how not in ("synthesis", "single"):
                self.finish = "stop"
            if self.said and event.text.strip() == self.said.strip():
                return None
            return ChatToken(text=("\n\n" if self.said else "") + event.text)
        return None
