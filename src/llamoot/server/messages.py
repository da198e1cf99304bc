"""`/v1/messages`: Anthropic's API over the same streams, with `count_tokens`."""

import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from llamoot.agents.types import Agent, ChatRequest, ChatToken, Message, Sampling, Tool, ToolCall
from llamoot.errors import BadRequest
from llamoot.server.gather import Choice, drained, written
from llamoot.server.stream import event
from llamoot.server.translate import check_range


class Block(Struct, kw_only=True):
    """One content block."""

    type: str
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: Any = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None
    is_error: bool | None = None
    cache_control: Any = None
    citations: Any = None


class Turn(Struct, kw_only=True):
    role: str
    content: str | list[Block]


class MessageTool(Struct, kw_only=True):
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    cache_control: Any = None


class MessagesBody(Struct, kw_only=True):
    """Body of `/v1/messages`; `max_tokens` is required there, not for counting."""

    messages: list[Turn]
    model: str | None = None
    max_tokens: int | None = None
    system: str | list[Block] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[MessageTool] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    metadata: Any = None
    service_tier: Any = None
    cache_control: Any = None
    context_management: Any = None
    output_config: Any = None


def _text(content: Any, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    try:
        blocks = msgspec.convert(content, list[Block])
    except msgspec.ValidationError as error:
        raise BadRequest(f"{place}: {error}", place) from None
    wrong = next((b.type for b in blocks if b.type != "text"), None)
    if wrong:
        raise BadRequest(f"{place}: '{wrong}' blocks are not supported, only text", place)
    return "".join(block.text or "" for block in blocks)


def _turn(turn: Turn, place: str) -> Iterator[Message]:
    """One turn; tool results of a user turn become turns of their own, before its text."""
    if turn.role not in ("user", "assistant", "system"):
        raise BadRequest(f"{place}.role: '{turn.role}' is not user or assistant", f"{place}.role")
    blocks = turn.content
    if isinstance(blocks, str):
        yield Message(turn.role, blocks)  # type: ignore[arg-type]
        return
    text, thought, calls = [], [], []
    for i, block in enumerate(blocks):
        where = f"{place}.content[{i}]"
        if block.type == "text":
            text.append(block.text or "")
        elif block.type == "thinking":
            thought.append(block.thinking or "")
        elif block.type == "tool_use":
            arguments = msgspec.json.encode(block.input or {}).decode()
            calls.append(ToolCall(block.id or f"toolu_{i}", block.name or "", arguments))
        elif block.type == "tool_result":
            body = _text(block.content, where)
            yield Message("tool", body, tool_call_id=block.tool_use_id or "")
        elif block.type != "redacted_thinking":
            raise BadRequest(f"{where}.type: '{block.type}' is not supported", f"{where}.type")
    if text or calls:
        said, why = "".join(text), "".join(thought)
        yield Message(turn.role, said, why, tuple(calls))  # type: ignore[arg-type]


def request_of(body: MessagesBody, request_id: str, counting: bool = False) -> ChatRequest:
    """The body in the agents' own form."""
    if body.max_tokens is None and not counting:
        raise BadRequest("max_tokens: is required", "max_tokens")
    if body.max_tokens is not None and body.max_tokens < 1:
        raise BadRequest("max_tokens: must be at least 1", "max_tokens")
    check_range("temperature", body.temperature, 0, 100)
    check_range("top_p", body.top_p, 0, 1)
    messages = [Message("system", system)] if (system := _text(body.system, "system")) else []
    for i, turn in enumerate(body.messages):
        messages += _turn(turn, f"messages[{i}]")
    if not messages:
        raise BadRequest("messages: at least one message is needed", "messages")
    wanted = body.tool_choice or {"type": "auto"}
    choices = {"auto": "auto", "none": "none", "any": "required"}
    tools = [Tool(t.name, t.description or "", t.input_schema) for t in body.tools or ()]
    choice = choices.get(str(wanted.get("type")), str(wanted.get("name", "")))
    if choice not in (*choices.values(), *(tool.name for tool in tools)):
        raise BadRequest(f"tool_choice: no tool named '{choice}' is offered", "tool_choice")
    if choice == "required" and not tools:
        raise BadRequest("tool_choice: 'any' needs tools", "tool_choice")
    thinking = (body.thinking or {}).get("type")
    return ChatRequest(
        messages=tuple(messages),
        model=body.model or "",
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            max_tokens=body.max_tokens,
            stop=tuple(body.stop_sequences or ()),
        ),
        tools=tuple(tools),
        tool_choice=choice,
        template_args={"enable_thinking": thinking == "enabled"} if thinking else {},
        request_id=request_id,
    )


STOPS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class Writer:
    """The growing message and the events that tell of its growth."""

    def __init__(self, model: str) -> None:
        self.choice, self.blocks = Choice(), list[dict[str, Any]]()
        self.arguments: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.open = False
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex[:24]}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self.blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }

    def begin(self) -> Iterator[bytes]:
        message = self.message | {"content": []}
        yield event({"type": "message_start", "message": message}, "message_start")

    def _open(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._shut()
        self.blocks.append(block)
        self.arguments, self.open = [], True
        kind, index = "content_block_start", len(self.blocks) - 1
        yield event({"type": kind, "index": index, "content_block": block}, kind)

    def _shut(self) -> Iterator[bytes]:
        if not self.open:
            return
        self.open = False
        block, kind = self.blocks[-1], "content_block_stop"
        if block["type"] == "tool_use":
            try:
                block["input"] = msgspec.json.decode("".join(self.arguments) or "{}")
            except msgspec.DecodeError:
                block["input"] = {}
        yield event({"type": kind, "index": len(self.blocks) - 1}, kind)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        kind = "content_block_delta"
        return event({"type": kind, "index": len(self.blocks) - 1, "delta": delta}, kind)

    def add(self, token: ChatToken) -> Iterator[bytes]:
        """The events of one token."""
        self.choice.add(token)
        if token.reasoning:
            yield from self._text("thinking", token.reasoning, {"signature": ""})
        if token.text or token.refusal:
            yield from self._text("text", token.text or token.refusal, {})
        for piece in token.tools:
            if piece.index not in self.calls:
                name = piece.id or f"toolu_{uuid.uuid4().hex[:24]}"
                block = {"type": "tool_use", "id": name, "name": piece.name, "input": {}}
                self.calls[piece.index] = block
                yield from self._open(block)
            if piece.arguments:
                self.arguments.append(piece.arguments)
                part = {"type": "input_json_delta", "partial_json": piece.arguments}
                yield self._delta(part)

    def _text(self, kind: str, text: str, more: dict[str, str]) -> Iterator[bytes]:
        if not self.open or self.blocks[-1]["type"] != kind:
            yield from self._open({"type": kind, kind: "", **more})
        self.blocks[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def end(self) -> Iterator[bytes]:
        """Close what is open and say how it ended."""
        yield from self._shut()
        usage = self.choice.usage
        reason, met = self.choice.finish_reason, self.choice.stopped_by
        self.message["stop_reason"] = STOPS.get(reason, "stop_sequence" if met else "end_turn")
        self.message["stop_sequence"] = met or None
        self.message["usage"] = {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
        }
        delta = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        kind = "message_delta"
        yield event({"type": kind, "delta": delta, "usage": self.message["usage"]}, kind)
        yield event({"type": "message_stop"}, "message_stop")


async def whole(agent: Agent, request: ChatRequest, writer: Writer) -> dict[str, Any]:
    """The message, made by the same code as the stream."""
    await drained(written(agent, request, writer))
    return writer.message
