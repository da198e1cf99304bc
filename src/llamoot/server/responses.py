"""`/v1/responses`: OpenAI's item-based API, stateless, over the same streams.

Every event carries its type, sequence number and indices; the last one is response.completed,
response.incomplete (cut by max_output_tokens) or response.failed.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from llamoot.agents.types import Agent, ChatRequest, ChatToken, Format, Message, Tool, ToolCall
from llamoot.errors import BadRequest, LlamootError
from llamoot.server.errors import error_body
from llamoot.server.gather import Choice, drained, written
from llamoot.server.schema import Part
from llamoot.server.stream import event
from llamoot.server.translate import check_range, refuse, text_of


class Item(Struct, kw_only=True):
    """One input item: a message, a function call or its output."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: Any = None
    status: str | None = None
    encrypted_content: Any = None


class ResponseTool(Struct, kw_only=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(Struct, kw_only=True):
    type: str
    name: str = "answer"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: Any = None


class Reasoning(Struct, kw_only=True):
    effort: str | None = None
    summary: Any = None
    generate_summary: Any = None


class ResponsesBody(Struct, kw_only=True):
    """Body of `/v1/responses`."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None  # nothing is kept; the answer says so
    include: list[str] | None = None
    truncation: str | None = None
    user: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    stream_options: Any = None
    top_logprobs: int | None = None
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None


def messages_of(body: ResponsesBody) -> tuple[Message, ...]:
    """The conversation; calls and their outputs become assistant and tool turns."""
    done = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return (*done, Message("user", body.input))
    for i, item in enumerate(body.input):
        place = f"input[{i}]"
        if item.type == "function_call":
            call = ToolCall(item.call_id or f"call_{i}", item.name or "", item.arguments or "{}")
            if done and done[-1].role == "assistant":
                calls = (*done[-1].tool_calls, call)
                done[-1] = msgspec.structs.replace(done[-1], tool_calls=calls)
            else:
                done.append(Message("assistant", tool_calls=(call,)))
        elif item.type == "function_call_output":
            text = text_of(item.output, place)
            done.append(Message("tool", text, tool_call_id=item.call_id or ""))
        elif item.type == "message":
            role = {"developer": "system"}.get(item.role or "user", item.role or "user")
            if role not in ("system", "user", "assistant"):
                where = f"{place}.role"
                raise BadRequest(f"{where}: '{role}' is not a role", where)
            done.append(Message(role, text_of(item.content, place)))  # type: ignore[arg-type]
        elif item.type != "reasoning":
            where = f"{place}.type"
            raise BadRequest(f"{where}: '{item.type}' items are not supported", where)
    if not done:
        raise BadRequest("input: is empty", "input")
    return tuple(done)


def _tools(body: ResponsesBody) -> tuple[Tool, ...]:
    done = []
    for i, tool in enumerate(body.tools or ()):
        if tool.type != "function" or not tool.name:
            where = f"tools[{i}].type"
            raise BadRequest(f"{where}: only 'function' tools are supported", where)
        done.append(Tool(tool.name, tool.description or "", tool.parameters, bool(tool.strict)))
    return tuple(done)


def _format(body: ResponsesBody) -> Format | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Format("json")
    if wanted.type != "json_schema" or wanted.schema is None:
        where = "text.format"
        raise BadRequest(f"{where}: must be text, json_object or json_schema", where)
    return Format("schema", wanted.schema, wanted.name)


def _format_body(body: ResponsesBody) -> dict[str, Any]:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return {"type": "text"}
    named: dict[str, Any] = msgspec.to_builtins(wanted)
    return named if wanted.type == "json_schema" else {"type": wanted.type}


def request_of(body: ResponsesBody, request_id: str) -> ChatRequest:
    """The body in the agents' own form."""
    refuse(body, "previous_response_id", "conversation", "prompt", "background")
    check_range("temperature", body.temperature, 0, 100)
    check_range("top_p", body.top_p, 0, 1)
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise BadRequest("max_output_tokens: must be at least 1", "max_output_tokens")
    if body.truncation not in (None, "disabled"):
        raise BadRequest("truncation: only 'disabled' is supported", "truncation")
    if body.top_logprobs or "message.output_text.logprobs" in (body.include or ()):
        raise BadRequest("top_logprobs: only in /v1/chat/completions", "top_logprobs")
    choice = body.tool_choice or "auto"
    name = choice if isinstance(choice, str) else str(choice.get("name", ""))
    tools = _tools(body)
    if name not in ("auto", "none", "required", *(tool.name for tool in tools)):
        raise BadRequest(f"tool_choice: no tool named '{name}' is offered", "tool_choice")
    if name == "required" and not tools:
        raise BadRequest("tool_choice: 'required' needs tools", "tool_choice")
    effort = body.reasoning.effort if body.reasoning else None
    args: dict[str, Any] = {}
    if effort is not None:
        thinking = effort not in ("none", "minimal")
        args = {"reasoning_effort": effort, "enable_thinking": thinking}
    sampling = msgspec.convert(
        {
            "temperature": body.temperature,
            "top_p": body.top_p,
            "max_tokens": body.max_output_tokens,
        },
        type(ChatRequest(messages=()).sampling),
    )
    return ChatRequest(
        messages=messages_of(body),
        model=body.model or "",
        sampling=sampling,
        tools=tools,
        tool_choice=name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=_format(body),
        template_args=args,
        request_id=request_id,
    )


class Writer:
    """The growing response object and the events that tell of its growth."""

    def __init__(self, body: ResponsesBody, model: str) -> None:
        self.choice, self.number, self.output = Choice(), -1, list[dict[str, Any]]()
        self.open: dict[str, Any] | None = None  # the item being written, last of `output`
        self.calls: dict[int, dict[str, Any]] = {}
        self.response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": model,
            "output": self.output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": _format_body(body)},
            "tool_choice": body.tool_choice or "auto",
            "tools": msgspec.to_builtins(body.tools or []),
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "metadata": body.metadata or {},
        }

    def event(self, kind: str, **fields: Any) -> bytes:
        self.number += 1
        return event({"type": kind, "sequence_number": self.number, **fields}, kind)

    def begin(self) -> Iterator[bytes]:
        yield self.event("response.created", response=self.response)
        yield self.event("response.in_progress", response=self.response)

    def _at(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": self.output.index(item)}

    def _open(self, item: dict[str, Any]) -> Iterator[bytes]:
        yield from self._shut()
        self.output.append(item)
        self.open = item
        index = len(self.output) - 1
        yield self.event("response.output_item.added", output_index=index, item=item)

    def _shut(self) -> Iterator[bytes]:
        """Finish the item being written: its done events, then the item whole."""
        item, self.open = self.open, None
        if item is None:
            return
        at, kind = self._at(item), item["type"]
        item["status"] = "completed"
        if kind == "message":
            part = item["content"][0]
            text = {"content_index": 0, "text": part["text"], "logprobs": []}
            yield self.event("response.output_text.done", **at, **text)
            yield self.event("response.content_part.done", **at, content_index=0, part=part)
        elif kind == "reasoning":
            text = {"content_index": 0, "text": item["content"][0]["text"]}
            yield self.event("response.reasoning_text.done", **at, **text)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self.event("response.function_call_arguments.done", **at, **done)
        index = at["output_index"]
        yield self.event("response.output_item.done", output_index=index, item=item)

    def add(self, token: ChatToken) -> Iterator[bytes]:
        """The events of one token."""
        self.choice.add(token)
        if token.reasoning:
            yield from self._text("reasoning", token.reasoning)
        if token.text or token.refusal:
            yield from self._text("message", token.text or token.refusal)
        for piece in token.tools:
            if piece.index not in self.calls:
                item = {"id": f"fc_{uuid.uuid4().hex[:24]}", "type": "function_call"}
                item |= {"status": "in_progress", "name": piece.name, "arguments": ""}
                item["call_id"] = piece.id or f"call_{uuid.uuid4().hex[:24]}"
                self.calls[piece.index] = item
                yield from self._open(item)
            item = self.calls[piece.index]
            if piece.arguments:
                item["arguments"] += piece.arguments
                kind = "response.function_call_arguments.delta"
                yield self.event(kind, **self._at(item), delta=piece.arguments)

    def _text(self, kind: str, text: str) -> Iterator[bytes]:
        if self.open is None or self.open["type"] != kind:
            yield from self._open(self._new(kind))
            if kind == "message" and self.open is not None:
                part = self.open["content"][0]
                at = self._at(self.open)
                yield self.event("response.content_part.added", **at, content_index=0, part=part)
        assert self.open is not None
        self.open["content"][0]["text"] += text
        at = self._at(self.open) | {"content_index": 0, "delta": text}
        if kind == "message":
            yield self.event("response.output_text.delta", **at, logprobs=[])
        else:
            yield self.event("response.reasoning_text.delta", **at)

    def _new(self, kind: str) -> dict[str, Any]:
        if kind == "message":
            content = [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
            name = f"msg_{uuid.uuid4().hex[:24]}"
            head = {"id": name, "type": kind, "role": "assistant"}
            return head | {"status": "in_progress", "content": content}
        text = [{"type": "reasoning_text", "text": ""}]
        name = f"rs_{uuid.uuid4().hex[:24]}"
        return {"id": name, "type": kind, "summary": [], "content": text, "status": "in_progress"}

    def end(self) -> Iterator[bytes]:
        """Close what is open and say how it ended."""
        yield from self._shut()
        cut = self.choice.finish_reason in ("length", "content_filter")
        self.response["status"] = status = "incomplete" if cut else "completed"
        if cut:
            reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
            self.response["incomplete_details"] = {"reason": reasons[self.choice.finish_reason]}
        usage = self.choice.usage
        self.response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        yield self.event(f"response.{status}", response=self.response)

    def failed(self, error: LlamootError) -> bytes:
        """The last event of a response that broke off."""
        text = error_body(error)["error"]
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": text["message"]}
        return self.event("response.failed", response=self.response)


async def whole(agent: Agent, request: ChatRequest, writer: Writer) -> dict[str, Any]:
    """The response object, made by the same code as the stream."""
    await drained(written(agent, request, writer))
    return writer.response
