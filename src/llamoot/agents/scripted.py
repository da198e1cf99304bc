"""An agent that plays a script: the double for tests of councils, servers and clients.

It keeps the agent contract exactly (one finish token or one raised `AgentError`, nothing after),
keeps time against a fixed schedule, and counts what was asked, what runs and what was cancelled.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from msgspec import Struct

from llamoot.agents.types import ChatRequest, ChatToken, Logprob, ToolCall, ToolPiece, Usage
from llamoot.errors import AgentError, Timeout


class Reply(Struct, frozen=True, kw_only=True):
    """One scripted answer. Times are seconds; token i is due at `first_delay + i * delay`."""

    text: str = ""  # cut into words, spaces kept
    tokens: tuple[str, ...] = ()  # instead of `text`: the exact pieces
    reasoning: tuple[str, ...] = ()  # pieces that come before the text
    refusal: str = ""
    tools: tuple[ToolCall, ...] = ()  # each sent as two pieces
    finish_reason: str = ""  # default: tool_calls where there are tools, else stop
    usage: Usage | None = None  # default: counted in words and tokens
    logprob: float | None = None  # of every text token
    first_delay: float = 0.0
    delay: float = 0.0
    error: AgentError | None = None  # raised instead of the finish token
    hang: bool = False  # after the tokens, wait for ever


Script = str | AgentError | Reply
Answer = Callable[[ChatRequest], Script]


class ScriptedAgent:
    """Plays one script for ever, a list of them in turn (the last repeats), or a function's."""

    def __init__(
        self,
        id: str = "A",
        script: Script | Sequence[Script] | Answer = "",
        *,
        model: str = "scripted",
        timeout: float | None = None,
        context_length: int | None = None,
    ) -> None:
        self.id, self.model = id, model
        self.timeout, self.context_length = timeout, context_length
        self.requests: list[ChatRequest] = []
        self.running = self.cancelled = self.closed = 0
        self._script = script

    def _next(self, request: ChatRequest) -> Reply:
        script = self._script
        if callable(script):
            script = script(request)
        elif not isinstance(script, str | AgentError | Reply):
            script = script[min(len(self.requests), len(script)) - 1]
        if isinstance(script, AgentError):
            return Reply(error=script)
        return Reply(text=script) if isinstance(script, str) else script

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        """Stream the scripted answer; `max_tokens` cuts it as a model would."""
        self.requests.append(request)
        self.running += 1
        ended = False
        try:
            reply = self._next(request)
            loop = asyncio.get_running_loop()
            start, limit = loop.time(), None
            if self.timeout is not None:
                limit = start + self.timeout
            pieces = _pieces(reply, request)
            partial = ""
            for i, piece in enumerate(pieces):
                due = start + reply.first_delay + i * reply.delay
                if limit is not None and due > limit:
                    await asyncio.sleep(limit - loop.time())
                    raise Timeout(self.id, "total", self.timeout or 0.0, partial=partial)
                await asyncio.sleep(max(0.0, due - loop.time()))
                if piece.finish_reason and reply.hang:
                    await asyncio.sleep(3600.0 if limit is None else limit - loop.time())
                    raise Timeout(self.id, "total", self.timeout or 3600.0, partial=partial)
                ended = bool(piece.finish_reason)
                if ended and reply.error is not None:
                    raise reply.error
                partial += piece.text
                yield piece
        except AgentError:
            ended = True
            raise
        finally:
            self.running -= 1
            self.cancelled += not ended

    async def close(self) -> None:
        """Count it; a script holds nothing."""
        self.closed += 1


def words(text: str) -> list[str]:
    """Cut into words that keep the space before them: what a tokenizer's pieces look like."""
    out = text.split(" ")
    return [w if i == 0 else " " + w for i, w in enumerate(out) if w or i]


def _pieces(reply: Reply, request: ChatRequest) -> list[ChatToken]:
    text, max_tokens = list(reply.tokens) or words(reply.text), request.sampling.max_tokens
    cut = max_tokens is not None and len(text) > max_tokens
    if cut:
        text = text[:max_tokens]
    out = [ChatToken(reasoning=piece) for piece in reply.reasoning]
    for piece in text:
        logprobs = () if reply.logprob is None else (Logprob(piece, reply.logprob),)
        out.append(ChatToken(text=piece, logprobs=logprobs))
    if reply.refusal:
        out.append(ChatToken(refusal=reply.refusal))
    for i, call in enumerate(reply.tools):
        out.append(ChatToken(tools=(ToolPiece(i, call.id, call.name),)))
        out.append(ChatToken(tools=(ToolPiece(i, arguments=call.arguments),)))
    finish = reply.finish_reason or ("tool_calls" if reply.tools else "stop")
    prompt = sum(len(message.content.split()) for message in request.messages)
    usage = reply.usage or Usage(
        prompt_tokens=prompt,
        completion_tokens=len(text) + len(reply.reasoning),
        reasoning_tokens=len(reply.reasoning),
    )
    out.append(ChatToken(finish_reason="length" if cut else finish, usage=usage))
    return out
