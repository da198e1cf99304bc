"""`/v1/chat/completions`: OpenAI's objects made from agents' streams, streamed or whole."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from llamoot.agents.types import Agent, ChatRequest, ChatToken, Logprob, Usage
from llamoot.server.gather import Choice, merge, spread, total
from llamoot.server.stream import DONE, event

Extra = Callable[[], dict[str, Any]]


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def timings_body(usage: Usage) -> dict[str, Any]:
    """llama-server's extension: tokens and milliseconds of the two phases."""
    fresh = usage.prompt_tokens - usage.cached_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": fresh,
        "prompt_ms": round(usage.prefill_s * 1e3, 3),
        "prompt_per_second": round(fresh / usage.prefill_s, 3) if usage.prefill_s else 0.0,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(usage.decode_s * 1e3, 3),
        "predicted_per_second": (
            round(usage.completion_tokens / usage.decode_s, 3) if usage.decode_s else 0.0
        ),
    }


def logprobs_body(logprobs: "list[Logprob] | tuple[Logprob, ...]") -> dict[str, Any]:
    def one(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = [
        one(row.token, row.logprob)
        | {"top_logprobs": [one(top.token, top.logprob) for top in row.top]}
        for row in logprobs
    ]
    return {"content": content, "refusal": None}


def message_body(choice: Choice) -> dict[str, Any]:
    text = "".join(choice.text)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not choice.calls else None,
        "refusal": "".join(choice.refusal) or None,
    }
    if reasoning := "".join(choice.reasoning):
        message["reasoning_content"] = reasoning
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in choice.tool_calls()
        ]
    return message


async def whole(
    agent: Agent, request: ChatRequest, n: int, model: str, extra: Extra
) -> dict[str, Any]:
    """The `chat.completion` object. `extra` adds what is known at the end."""
    created, choices = int(time.time()), [Choice() for _ in range(n)]
    arrivals = merge(agent, spread(request, n))
    try:
        async for index, token in arrivals:
            choices[index].add(token)
    finally:
        await arrivals.aclose()
    usage = total([choice.usage for choice in choices])
    with_logprobs = request.sampling.logprobs is not None
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": i,
                "message": message_body(choice),
                "finish_reason": choice.finish_reason,
                "logprobs": logprobs_body(choice.logprobs) if with_logprobs else None,
            }
            for i, choice in enumerate(choices)
        ],
        "usage": usage_body(usage),
        "timings": timings_body(usage),
        "system_fingerprint": None,
        **extra(),
    }


def deltas(token: ChatToken) -> Iterator[dict[str, Any]]:
    """What one token changes; a tool call's arguments never come with its name."""
    delta: dict[str, Any] = {}
    if token.text:
        delta["content"] = token.text
    if token.reasoning:
        delta["reasoning_content"] = token.reasoning
    if token.refusal:
        delta["refusal"] = token.refusal
    if delta or token.logprobs:
        yield delta or {"content": ""}
    for piece in token.tools:
        if piece.name:
            head = {"name": piece.name, "arguments": ""}
            call = {"index": piece.index, "id": piece.id, "type": "function", "function": head}
            yield {"tool_calls": [call]}
        if piece.arguments:
            body = {"index": piece.index, "function": {"arguments": piece.arguments}}
            yield {"tool_calls": [body]}


async def chunks(
    agent: Agent,
    request: ChatRequest,
    n: int,
    model: str,
    extra: Extra,
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """The stream: role, pieces, one finish per choice, the usage if asked for, `[DONE]`."""
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }
    with_logprobs = request.sampling.logprobs is not None

    def chunk(index: int, delta: dict[str, Any], finish: str | None, token: ChatToken) -> bytes:
        logprobs = logprobs_body(token.logprobs) if with_logprobs and token.logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        tail = {"usage": None} if include_usage else {}
        return event(head | {"choices": [choice]} | tail)

    usages: dict[int, Usage] = {}
    begun: set[int] = set()
    arrivals = merge(agent, spread(request, n))
    try:
        async for index, token in arrivals:
            if index not in begun:
                begun.add(index)
                yield chunk(index, {"role": "assistant", "content": ""}, None, ChatToken())
            for i, delta in enumerate(deltas(token)):
                yield chunk(index, delta, None, ChatToken() if i else token)
            if token.usage is not None:
                usages[index] = token.usage
            if token.finish_reason is not None:
                yield chunk(index, {}, token.finish_reason, ChatToken())
    finally:
        await arrivals.aclose()
    usage = total(list(usages.values()))
    if include_usage:
        tail = {"choices": [], "usage": usage_body(usage), "timings": timings_body(usage)}
        yield event(head | tail | extra())
    yield DONE
