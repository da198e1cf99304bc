"""From the bodies of `schema.py` to the agents' own request; ranges are checked here, once."""

from typing import Any

import msgspec

from llamoot.agents.types import (
    ChatRequest,
    Format,
    Message,
    Role,
    Sampling,
    Tool,
    ToolCall,
)
from llamoot.errors import BadRequest
from llamoot.server.schema import (
    ChatBody,
    MessageBody,
    Part,
    SamplingBody,
    StructuredOutputs,
    ToolBody,
    ToolChoice,
)

MAX_CHOICES = 16
MAX_LOGPROBS = 20


def refuse(body: Any, *names: str) -> None:
    """400 for each of the named fields that is set."""
    for name in names:
        value = getattr(body, name)
        if value not in (None, False):
            raise BadRequest(f"{name}: this field is not supported", name)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """400 unless low <= value <= high."""
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name}: must be between {low:g} and {high:g}, not {value:g}", name)


def text_of(content: str | list[Part] | None, place: str) -> str:
    """Plain text of a content field; a part that is not text is refused by its place."""
    if not isinstance(content, list):
        return content or ""
    for i, part in enumerate(content):
        if part.type not in ("text", "input_text", "output_text", "refusal"):
            where = f"{place}.content[{i}].type"
            raise BadRequest(f"{where}: '{part.type}' is not supported, only text", where)
    return "".join(part.text or part.refusal or "" for part in content)


def messages_of(bodies: list[MessageBody]) -> tuple[Message, ...]:
    """The conversation in the agents' own form."""
    if not bodies:
        raise BadRequest("messages: at least one message is needed", "messages")
    roles: dict[str, Role] = {"developer": "system", "function": "tool"}
    done = []
    for i, body in enumerate(bodies):
        if body.content is None and body.role in ("system", "developer", "user"):
            raise BadRequest(f"messages[{i}].content: is needed", f"messages[{i}].content")
        calls = []
        for j, call in enumerate(body.tool_calls or ()):
            arguments = call.function.arguments
            if not isinstance(arguments, str):
                arguments = msgspec.json.encode(arguments).decode()
            calls.append(ToolCall(call.id or f"call_{i}_{j}", call.function.name, arguments))
        done.append(
            Message(
                role=roles.get(body.role, body.role),  # type: ignore[arg-type]
                content=text_of(body.content, f"messages[{i}]"),
                reasoning=body.reasoning_content or body.reasoning or "",
                tool_calls=tuple(calls),
                tool_call_id=body.tool_call_id or "",
                name=body.name or "",
            )
        )
    return tuple(done)


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not text for text in stops):
        raise BadRequest("stop: an empty string cannot end an answer", "stop")
    return stops


def bias_of(bias: dict[str, float] | list[list[float]] | None) -> dict[int, float] | None:
    """Token id -> addend, from OpenAI's map or llama-server's pairs."""
    if not bias:
        return None
    try:
        pairs = bias.items() if isinstance(bias, dict) else [(a, b) for a, b in bias]
        return {int(token): float(value) for token, value in pairs}
    except (ValueError, TypeError):
        raise BadRequest("logit_bias: keys must be token ids", "logit_bias") from None


def limit_of(body: SamplingBody) -> int | None:
    """The most tokens to generate; llama-server's -1 means as many as fit."""
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        limit: int | None = getattr(body, name)
        if limit is None:
            continue
        if limit == -1 and name == "n_predict":
            return None
        if limit < 1:
            raise BadRequest(f"{name}: must be at least 1, not {limit}", name)
        return limit
    return None


def sampling_of(body: SamplingBody, logprobs: int | None) -> Sampling:
    """Ranges are checked here once; agents trust them."""
    check_range("temperature", body.temperature, 0, 100)
    check_range("top_p", body.top_p, 0, 1)
    check_range("min_p", body.min_p, 0, 1)
    check_range("typical_p", body.typical_p, 0, 1)
    check_range("frequency_penalty", body.frequency_penalty, -2, 2)
    check_range("presence_penalty", body.presence_penalty, -2, 2)
    check_range("n", body.n, 1, MAX_CHOICES)
    check_range("repeat_penalty", body.repeat_penalty, 0.01, 100)
    check_range("repetition_penalty", body.repetition_penalty, 0.01, 100)
    check_range("dry_multiplier", body.dry_multiplier, 0, 100)
    check_range("dry_base", body.dry_base, 0, 100)
    check_range("xtc_probability", body.xtc_probability, 0, 1)
    check_range("xtc_threshold", body.xtc_threshold, 0, 1)
    check_range("mirostat_tau", body.mirostat_tau, 0.01, 100)
    check_range("mirostat_eta", body.mirostat_eta, 0.001, 100)
    check_range("logprobs", logprobs, 0, MAX_LOGPROBS)
    if body.mirostat not in (None, 0, 2):
        raise BadRequest("mirostat: only 0 (off) and 2 are supported", "mirostat")
    return Sampling(
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repeat_penalty=body.repeat_penalty or body.repetition_penalty,
        repeat_last_n=body.repeat_last_n,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        dry_multiplier=body.dry_multiplier,
        dry_base=body.dry_base,
        dry_allowed_length=body.dry_allowed_length,
        xtc_probability=body.xtc_probability,
        xtc_threshold=body.xtc_threshold,
        mirostat_tau=(body.mirostat_tau or 5.0) if body.mirostat == 2 else None,
        mirostat_eta=(body.mirostat_eta or 0.1) if body.mirostat == 2 else None,
        logit_bias=bias_of(body.logit_bias),
        seed=body.seed,
        max_tokens=limit_of(body),
        stop=stops_of(body.stop),
        logprobs=logprobs,
    )


def _schema_in(text: str, place: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"{place}: is not a JSON schema: {error}", place) from None


def format_of(body: SamplingBody) -> Format | None:
    """The one constraint asked for; two at once are refused."""
    asked = []
    wanted = body.response_format
    if wanted and wanted.type == "json_object":
        asked.append(Format("schema", wanted.schema) if wanted.schema else Format("json"))
    if wanted and wanted.type == "json_schema":
        if wanted.json_schema is None:
            place = "response_format.json_schema"
            raise BadRequest(f"{place}: is needed with type 'json_schema'", place)
        asked.append(Format("schema", wanted.json_schema.schema or {}, wanted.json_schema.name))
    outputs = body.structured_outputs or StructuredOutputs()
    schema = outputs.json
    if isinstance(schema, str):
        schema = _schema_in(schema, "structured_outputs.json")
    for kind, value in (
        ("schema", body.json_schema),
        ("schema", body.guided_json),
        ("schema", schema),
        ("regex", body.guided_regex or outputs.regex),
        ("choice", body.guided_choice or outputs.choice),
        ("grammar", body.grammar or outputs.grammar),
    ):
        if value:
            asked.append(Format(kind, value))  # type: ignore[arg-type]
    if len(asked) > 1:
        raise BadRequest("response_format: more than one output constraint", "response_format")
    return asked[0] if asked else None


def tools_of(bodies: list[ToolBody] | None) -> tuple[Tool, ...]:
    done = []
    for i, body in enumerate(bodies or ()):
        if body.type != "function" or body.function is None:
            where = f"tools[{i}].type"
            raise BadRequest(f"{where}: only 'function' tools are supported", where)
        f = body.function
        if not f.name:
            raise BadRequest(f"tools[{i}].function.name: is empty", f"tools[{i}].function.name")
        done.append(Tool(f.name, f.description or "", f.parameters, bool(f.strict)))
    return tuple(done)


def choice_of(choice: str | ToolChoice | None, tools: tuple[Tool, ...]) -> str:
    """auto, none, required or the name of an offered tool."""
    if choice is None:
        return "auto"
    name = choice if isinstance(choice, str) else choice.function.name
    names = {tool.name for tool in tools}
    if isinstance(choice, str) and name not in ("auto", "none", "required"):
        raise BadRequest(f"tool_choice: '{name}' is not auto, none or required", "tool_choice")
    if not isinstance(choice, str) and name not in names:
        raise BadRequest(f"tool_choice: no tool named '{name}' is offered", "tool_choice")
    if name == "required" and not tools:
        raise BadRequest("tool_choice: 'required' needs tools", "tool_choice")
    return name


def request_of(body: ChatBody, request_id: str) -> ChatRequest:
    """The whole chat body in the agents' own form."""
    refuse(body, "audio", "prediction", "web_search_options", "functions", "function_call", "store")
    if body.modalities and body.modalities != ["text"]:
        raise BadRequest("modalities: only text is supported", "modalities")
    check_range("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS)
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("top_logprobs: needs logprobs to be true", "top_logprobs")
    tools = tools_of(body.tools)
    args = dict(body.chat_template_kwargs or {})
    if taken := args.keys() & {"messages", "tools"}:
        where = f"chat_template_kwargs.{min(taken)}"
        raise BadRequest(f"{where}: belongs into the field of that name", where)
    if body.enable_thinking is not None:
        args["enable_thinking"] = body.enable_thinking
    if body.reasoning_effort is not None:
        args["reasoning_effort"] = body.reasoning_effort
        args.setdefault("enable_thinking", body.reasoning_effort not in ("none", "minimal"))
    return ChatRequest(
        messages=messages_of(body.messages),
        model=body.model or "",
        sampling=sampling_of(body, (body.top_logprobs or 0) if body.logprobs else None),
        tools=tools,
        tool_choice=choice_of(body.tool_choice, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=format_of(body),
        template_args=args,
        adapters=body.lora or {},
        request_id=request_id,
    )
