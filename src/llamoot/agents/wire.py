"""The JSON that OpenAI-compatible servers send, read by type; and what goes wrong in it.

`decode` reads one chunk of a stream, or a whole completion, into `Chunk`. The usual shape is read
by msgspec in about a microsecond; every other shape (null and missing fields, content in parts,
arguments as objects, Ollama's own lines, broken UTF-8, lone surrogates) is read leniently into
the same `Chunk`, so that nothing behind it knows which server spoke.
"""

import json
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llamoot.agents.problems import loads
from llamoot.agents.types import Logprob, TopLogprob, Usage


class FunctionDelta(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class ToolDelta(Struct):
    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(Struct):
    """A delta of a stream, or the whole message of a completion that was not streamed."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolDelta] | None = None
    reasoning_details: Raw | None = None  # read only where nothing else holds reasoning


class TopEntry(Struct, gc=False):
    token: str
    logprob: float


class LogprobEntry(Struct):
    token: str
    logprob: float
    top_logprobs: list[TopEntry] | None = None


class Logprobs(Struct):
    content: list[LogprobEntry] | None = None


class Choice(Struct):
    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class UsageBody(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None


class GroqExtra(Struct):
    usage: UsageBody | None = None


class Timings(Struct):
    prompt_ms: float | None = None
    predicted_ms: float | None = None


class Chunk(Struct):
    choices: list[Choice] | None = None
    usage: UsageBody | None = None
    error: Any = None
    object: str | None = None
    id: str | None = None
    model: str | None = None
    x_groq: GroqExtra | None = None
    timings: Timings | None = None
    done: bool | None = None  # Ollama's own stream, which has no choices


_CHUNK = msgspec.json.Decoder(Chunk)


def decode(payload: bytes) -> Chunk | None:
    """The chunk in `payload`; None for JSON that is no object. Raises ValueError: not JSON."""
    try:
        return _CHUNK.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = loads(payload)
    return lenient(value) if isinstance(value, dict) else None


def lenient(value: dict[str, Any]) -> Chunk:
    """A chunk from JSON in which any field may have any type."""
    done = value.get("done")
    if isinstance(done, bool) and "choices" not in value:
        return _from_ollama(value, done)
    choices = value.get("choices")
    chunk = Chunk(
        choices=[_choice(c) for c in choices if isinstance(c, dict)]
        if isinstance(choices, list)
        else None,
        usage=_usage(value.get("usage")),
        error=value.get("error"),
        object=_text(value.get("object")),
        id=_text(value.get("id")),
        model=_text(value.get("model")),
    )
    groq = value.get("x_groq")
    if isinstance(groq, dict):
        chunk.x_groq = GroqExtra(_usage(groq.get("usage")))
    return chunk


def _from_ollama(value: dict[str, Any], done: bool) -> Chunk:
    message = value.get("message")
    delta = _delta(message) if isinstance(message, dict) else None
    if isinstance(message, dict) and isinstance(message.get("thinking"), str) and delta:
        delta.reasoning = message["thinking"]
    if delta is None and isinstance(value.get("response"), str):
        delta = Delta(content=value["response"])
    reason = (_text(value.get("done_reason")) or "stop") if done else None
    usage = None
    if "eval_count" in value or "prompt_eval_count" in value:
        usage = UsageBody(_int(value.get("prompt_eval_count")), _int(value.get("eval_count")))
    choice = Choice(delta=delta, finish_reason=reason)
    return Chunk(choices=[choice], usage=usage, error=value.get("error"), done=done)


def _choice(value: dict[str, Any]) -> Choice:
    delta, message = value.get("delta"), value.get("message")
    return Choice(
        index=_int(value.get("index")) or 0,
        delta=_delta(delta) if isinstance(delta, dict) else None,
        message=_delta(message) if isinstance(message, dict) else None,
        text=_text(value.get("text")),
        finish_reason=_text(value.get("finish_reason")),
        logprobs=_logprobs(value.get("logprobs")),
    )


def _delta(value: dict[str, Any]) -> Delta:
    content, thinking = _parts(value.get("content"))
    calls = value.get("tool_calls")
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list) and isinstance(value.get("function_call"), dict):
        calls = [{"index": 0, "function": value["function_call"]}]
    reasoning = _text(value.get("reasoning"))
    if not reasoning:
        reasoning = _text(value.get("reasoning_content")) or thinking or None
    details = value.get("reasoning_details")
    return Delta(
        content=content,
        reasoning=reasoning,
        refusal=_text(value.get("refusal")),
        tool_calls=[_tool(c) for c in calls if isinstance(c, dict)]
        if isinstance(calls, list)
        else None,
        reasoning_details=Raw(json.dumps(details).encode()) if isinstance(details, list) else None,
    )


def _parts(content: Any) -> tuple[str | None, str]:
    """Text and thinking of a content that is text, a list of parts, or something else."""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None, ""
    text, thinking = [], []
    for part in content:
        if isinstance(part, str):
            text.append(part)
        elif isinstance(part, dict):
            kind = part.get("type")
            if kind in ("thinking", "reasoning"):
                inner = _parts(part.get("thinking", part.get("text", part.get("content"))))
                thinking.append((inner[0] or "") + inner[1])
            elif isinstance(part.get("text"), str):
                text.append(part["text"])
    return "".join(text), "".join(thinking)


def reasoning_in(details: Raw) -> str:
    """Readable text of OpenRouter's `reasoning_details`."""
    value = loads(bytes(details))
    if not isinstance(value, list):
        return ""
    rows = [row for row in value if isinstance(row, dict)]
    return "".join(_text(row.get("text")) or _text(row.get("summary")) or "" for row in rows)


def _tool(value: dict[str, Any]) -> ToolDelta:
    function = value.get("function")
    if not isinstance(function, dict):
        function = value
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return ToolDelta(
        index=_int(value.get("index")),
        id=_text(value.get("id")),
        function=FunctionDelta(_text(function.get("name")), arguments),
    )


def _logprobs(value: Any) -> Logprobs | None:
    rows = value.get("content") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        return None
    out = []
    for row in rows:
        try:
            out.append(msgspec.convert(row, LogprobEntry))
        except msgspec.ValidationError:
            continue  # a probability that cannot be read is left out, never guessed
    return Logprobs(out)


def _usage(value: Any) -> UsageBody | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens_details"), value.get("completion_tokens_details")
    return UsageBody(
        _int(value.get("prompt_tokens")),
        _int(value.get("completion_tokens")),
        PromptDetails(_int(prompt.get("cached_tokens"))) if isinstance(prompt, dict) else None,
        CompletionDetails(_int(completion.get("reasoning_tokens")))
        if isinstance(completion, dict)
        else None,
        _int(value.get("prompt_cache_hit_tokens")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _int(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return int(value) if abs(value) < 2**53 else None


def encode(body: Any) -> bytes:
    """JSON of a request; half characters, which UTF-8 cannot hold, are replaced."""
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        text = json.dumps(body, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
        return text.decode("utf-16-le", "replace").encode()


def whole_characters(text: str) -> str:
    """Surrogate pairs joined; halves without a partner become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def logprobs_of(choice: Choice) -> tuple[Logprob, ...]:
    """The log-probabilities of one chunk in the words of the contract."""
    rows = choice.logprobs.content if choice.logprobs else None
    return tuple(
        Logprob(
            whole_characters(row.token),
            row.logprob,
            tuple(TopLogprob(whole_characters(t.token), t.logprob) for t in row.top_logprobs or ()),
        )
        for row in rows or ()
    )


def usage_of(body: UsageBody) -> Usage:
    """Token counts in the words of the contract."""
    cached = body.prompt_cache_hit_tokens or 0
    if body.prompt_tokens_details is not None:
        cached = body.prompt_tokens_details.cached_tokens or cached
    thought = 0
    if body.completion_tokens_details is not None:
        thought = body.completion_tokens_details.reasoning_tokens or 0
    return Usage(
        prompt_tokens=body.prompt_tokens or 0,
        cached_tokens=cached,
        completion_tokens=body.completion_tokens or 0,
        reasoning_tokens=thought,
    )
