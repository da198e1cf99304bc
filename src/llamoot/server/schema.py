"""What `/v1/chat/completions` and `/v1/completions` accept, typed.

Every field of OpenAI's own schema is known here: it is honoured, it has no effect by its nature
(`user`, `metadata`, …), or it is refused with a 400 that names it. The sampling extras are the
ones llama-server and vLLM accept. `null` means absent everywhere.
"""

import re
from typing import Any, Literal

import msgspec
from msgspec import Struct

from llamoot.errors import BadRequest


class Part(Struct):
    type: str
    text: str | None = None
    refusal: str | None = None


class CallFunction(Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class Call(Struct):
    function: CallFunction
    id: str = ""
    type: str = "function"


class MessageBody(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class ToolFunction(Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Struct):
    type: str
    function: ToolFunction | None = None


class ChoiceFunction(Struct):
    name: str


class ToolChoice(Struct):
    function: ChoiceFunction
    type: str = "function"


class Schema(Struct):
    schema: dict[str, Any] | None = None
    name: str = "answer"
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None
    schema: dict[str, Any] | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class StructuredOutputs(Struct):
    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class SamplingBody(Struct, kw_only=True):
    """The sampling fields that chat and plain completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    logit_bias: dict[str, float] | list[list[float]] | None = None
    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    lora: dict[str, float] | None = None
    # Without effect by their nature: they describe the caller or hosted accounts.
    user: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None


class ChatBody(SamplingBody, kw_only=True):
    """Body of `/v1/chat/completions`."""

    messages: list[MessageBody]
    tools: list[ToolBody] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    verbosity: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    deliberation: bool | None = None  # a council's working in the reasoning channel; default true
    store: bool | None = None
    # Known and not supported: refused by name when they ask for something.
    audio: Any = None
    modalities: list[str] | None = None
    prediction: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None


class CompletionBody(SamplingBody, kw_only=True):
    """Body of `/v1/completions`."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


_PLACE = re.compile(r" - at `\$?\.?(.*?)`$")


def decode(body: bytes, kind: type[Any]) -> Any:
    """Typed body, or BadRequest naming the field."""
    try:
        return msgspec.json.decode(_known(body, kind), type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        missing = re.search(r"missing required field `(\w+)`", text)
        param = place.group(1) if place else ""
        if missing:
            param = f"{param}.{missing.group(1)}" if param else missing.group(1)
        raise BadRequest(f"{param or 'body'}: {_PLACE.sub('', text)}", param or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None


def _known(body: bytes, kind: type[Any]) -> bytes:
    """Refuse fields no peer knows; msgspec would skip a misspelt one in silence."""
    raw = msgspec.json.decode(body)
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        if key not in known and value is not None:
            raise BadRequest(f"{key}: this field is not supported", key)
    return body
