"""`/v1/completions`: prompts without a chat template, for models that are not spoken to."""

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from llamoot.agents.types import ChatRequest, ChatToken, Logprob, Usage
from llamoot.errors import BadRequest
from llamoot.server.chat import usage_body
from llamoot.server.gather import Choice, merge, spread, total
from llamoot.server.schema import CompletionBody
from llamoot.server.stream import DONE, event
from llamoot.server.translate import MAX_LOGPROBS, check_range, format_of, refuse, sampling_of

Prompt = str | list[int]


class Completer(Protocol):
    """An agent that also continues raw prompts: local models do."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def context_length(self) -> int | None: ...
    def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]: ...
    def complete(self, prompt: Prompt, request: ChatRequest) -> AsyncIterator[ChatToken]: ...
    async def detokenize(self, ids: list[int]) -> str: ...
    async def close(self) -> None: ...


class Continuing:
    """A completer seen as an agent: `chat` continues one fixed prompt."""

    def __init__(self, completer: Completer, prompt: Prompt) -> None:
        self.completer, self.prompt = completer, prompt
        self.id, self.model = completer.id, completer.model
        self.timeout, self.context_length = completer.timeout, completer.context_length

    def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        return self.completer.complete(self.prompt, request)

    async def close(self) -> None:
        """The completer belongs to the server."""


def prompts_of(body: CompletionBody) -> list[Prompt]:
    """One or several prompts, as text or as token ids."""
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not given:
        raise BadRequest("prompt: is empty", "prompt")
    if all(isinstance(one, int) for one in given):
        return [[one for one in given if isinstance(one, int)]]
    prompts: list[Prompt] = [one for one in given if not isinstance(one, int)]
    if len(prompts) < len(given):
        raise BadRequest("prompt: texts and token ids cannot be mixed", "prompt")
    return prompts


def request_of(body: CompletionBody, request_id: str) -> ChatRequest:
    """The sampling side of the body; the prompt goes its own way."""
    refuse(body, "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise BadRequest("best_of: only the value of n is supported", "best_of")
    check_range("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    if body.echo and body.logprobs is not None:
        raise BadRequest("echo: not together with logprobs: a prompt's are not kept", "echo")
    return ChatRequest(
        messages=(),
        model=body.model or "",
        sampling=sampling_of(body, body.logprobs),
        format=format_of(body),
        adapters=body.lora or {},
        request_id=request_id,
    )


def logprobs_body(rows: list[Logprob], offset: int) -> dict[str, Any]:
    """The older API's parallel lists; offsets count characters of the text."""
    offsets = []
    for row in rows:
        offsets.append(offset)
        offset += len(row.token)
    return {
        "tokens": [row.token for row in rows],
        "token_logprobs": [row.logprob for row in rows],
        "top_logprobs": [{top.token: top.logprob for top in row.top} for row in rows],
        "text_offset": offsets,
    }


async def _echoes(completer: Completer, prompts: list[Prompt], echo: bool) -> list[str]:
    if not echo:
        return [""] * len(prompts)
    return [p if isinstance(p, str) else await completer.detokenize(p) for p in prompts]


async def whole(
    completer: Completer, body: CompletionBody, request: ChatRequest, model: str
) -> dict[str, Any]:
    """The `text_completion` object; choices of one prompt lie side by side."""
    prompts, n = prompts_of(body), body.n or 1
    created, usages = int(time.time()), [Usage()]
    rows: list[dict[str, Any]] = []
    echoes = await _echoes(completer, prompts, bool(body.echo))
    for prompt, echo in zip(prompts, echoes):
        choices = [Choice() for _ in range(n)]
        arrivals = merge(Continuing(completer, prompt), spread(request, n))
        try:
            async for index, token in arrivals:
                choices[index].add(token)
        finally:
            await arrivals.aclose()
        for choice in choices:
            usages.append(choice.usage)
            with_logprobs = body.logprobs is not None
            rows.append(
                {
                    "text": echo + "".join(choice.text),
                    "index": len(rows),
                    "logprobs": (
                        logprobs_body(choice.logprobs, len(echo)) if with_logprobs else None
                    ),
                    "finish_reason": choice.finish_reason,
                }
            )
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": rows,
        "usage": usage_body(total(usages)),
    }


async def chunks(
    completer: Completer, body: CompletionBody, request: ChatRequest, model: str
) -> AsyncGenerator[bytes, None]:
    """The stream of the same; prompts follow one another."""
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    prompts, n, usages = prompts_of(body), body.n or 1, [Usage()]
    include = bool(body.stream_options and body.stream_options.include_usage)
    echoes = await _echoes(completer, prompts, bool(body.echo))

    def chunk(index: int, text: str, token: ChatToken, at: int) -> bytes:
        logprobs = logprobs_body(list(token.logprobs), at) if token.logprobs else None
        choice = {"text": text, "index": index, "logprobs": logprobs}
        choice["finish_reason"] = token.finish_reason
        return event(head | {"choices": [choice]} | ({"usage": None} if include else {}))

    for i, (prompt, echo) in enumerate(zip(prompts, echoes)):
        length = [len(echo)] * n
        if echo:
            for k in range(n):
                yield chunk(i * n + k, echo, ChatToken(), 0)
        arrivals = merge(Continuing(completer, prompt), spread(request, n))
        try:
            async for k, token in arrivals:
                if token.text or token.finish_reason or token.logprobs:
                    yield chunk(i * n + k, token.text, token, length[k])
                length[k] += len(token.text)
                if token.usage is not None:
                    usages.append(token.usage)
        finally:
            await arrivals.aclose()
    if include:
        yield event(head | {"choices": [], "usage": usage_body(total(usages))})
    yield DONE
