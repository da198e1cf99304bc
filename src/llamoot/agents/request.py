"""The body of a chat request as an OpenAI-compatible server reads it. No I/O.

Only what was asked for is sent: an absent field leaves the server its default.
"""

from collections.abc import Sequence
from typing import Any, Literal

from llamoot.agents.endpoint import Origin
from llamoot.agents.types import ChatRequest, Format, Message, Sampling, Tool

Replay = Literal["none", "last", "always"]  # reasoning of earlier turns: send it back?

# Hosts that refuse unknown fields, or know a limit only under its newer name.
_STRICT = ("api.openai.com", ".openai.azure.com", "api.mistral.ai")
_NEWER = ("api.openai.com", ".openai.azure.com")
_PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
    "frequency_penalty", "presence_penalty", "dry_multiplier", "dry_base", "dry_allowed_length",
    "xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta", "seed",
)  # fmt: skip


def chat_body(
    request: ChatRequest, model: str, origin: Origin, replay: Replay = "none"
) -> dict[str, Any]:
    """The JSON object to send for `request`, before what was learned of the server is applied."""
    strict = origin.host.endswith(_STRICT)
    body: dict[str, Any] = {"model": model, "messages": _messages(request.messages, replay)}
    body.update(_sampling(request.sampling, origin.host.endswith(_NEWER)))
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        body["tool_choice"] = _choice(request.tool_choice)
        if not request.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    if request.format is not None:
        body.update(_format(request.format, strict))
    arguments = dict(request.template_args)
    if "reasoning_effort" in arguments:
        body["reasoning_effort"] = arguments.pop("reasoning_effort")
    if arguments and not strict:
        body["chat_template_kwargs"] = arguments
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    return body


def _sampling(sampling: Sampling, newer: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in _PLAIN:
        value = getattr(sampling, name)
        if value is not None:
            out[name] = value
    if sampling.mirostat_tau is not None:
        out["mirostat"] = 2
    if sampling.logit_bias:
        out["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.max_tokens is not None:
        # Ollama ignores the newer name without a word, OpenAI's reasoning models refuse the older.
        out["max_completion_tokens" if newer else "max_tokens"] = sampling.max_tokens
    if sampling.stop:
        out["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        out["logprobs"] = True
        if sampling.logprobs:
            out["top_logprobs"] = sampling.logprobs
    return out


def _messages(messages: Sequence[Message], replay: Replay) -> list[dict[str, Any]]:
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    out = []
    for i, message in enumerate(messages):
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            row["content"] = message.content or None
            row["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id:
            row["tool_call_id"] = message.tool_call_id
        if message.name:
            row["name"] = message.name
        if message.reasoning and (replay == "always" or (replay == "last" and i > last_user)):
            row["reasoning_content"] = message.reasoning
        out.append(row)
    return out


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice(choice: str) -> Any:
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def _format(format: Format, strict: bool) -> dict[str, Any]:
    if format.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if format.kind == "schema":
        schema = {"name": format.name, "schema": format.value, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if strict:
        return {}  # no field for it there; who asked reads the answer anyway
    body: dict[str, Any] = {"structured_outputs": {format.kind: format.value}}
    if format.kind == "grammar":
        body["grammar"] = format.value
    return body
