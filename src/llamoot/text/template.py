"""Chat templates: a conversation becomes the prompt its model was trained on.

Messages and tools are plain dictionaries in OpenAI's form, or flat ({"name", "arguments"} for a
call, {"name", "description", "parameters"} for a tool).
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from jinja2.exceptions import SecurityError, TemplateError

from llamoot.errors import BadRequest, ModelFileError
from llamoot.gguf.metadata import Metadata, Strings
from llamoot.text.adapt import as_text, calls_as_text, complete_tool, fold_system, one_call_each
from llamoot.text.mask import Mask
from llamoot.text.sandbox import (
    MAX_SOURCE,
    SECONDS,
    Environment,
    Refused,
    check_size,
    deadline,
)
from llamoot.text.syntax import HERMES, Syntax, detect, opens_reasoning
from llamoot.text.tokenizer import Part, Tokenizer

log = logging.getLogger("llamoot")
KEY = "tokenizer.chat_template"
CHATML = (
    "{{ bos_token if add_bos else '' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Whatever an expression of a template can raise when its inputs do not suit it.
FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
OWN_TEXT = ("content", "reasoning", "reasoning_content", "thinking")
Message = Mapping[str, Any]


class Prompt(NamedTuple):
    """A rendered conversation: encode `parts` with add_special=False."""

    parts: list[Part]
    text: str
    reasoning: bool  # the answer starts inside a reasoning region
    stop: tuple[str, ...] = ()  # texts that end the answer, where no token does


class ChatTemplate:
    """One model's template. Safe to share between threads."""

    def __init__(
        self,
        source: str,
        *,
        tool_source: str = "",
        tokens: Mapping[str, Any] | None = None,
        control: Sequence[str] = (),
        path: object = "model",
        notes: tuple[str, ...] = (),
        adapt: bool = False,
    ) -> None:
        """`tool_source`: the template to use with tools, if the file has two; `tokens`: variables
        such as bos_token; `control`: names no input may forge; `adapt`: what the template cannot
        express (tools, a system message) is written in words instead of being left out.
        ModelFileError if the template is broken."""
        self.path, self.source, self.notes, self.adapt = path, source, notes, adapt
        self._tokens, self._control = dict(tokens or {}), tuple(control)
        self._template = self._compile(source)
        self._tool_template = self._compile(tool_source) if tool_source else self._template
        self.takes_tools = bool(re.search(r"\btools\b", tool_source or source))
        self.syntax: Syntax = detect(tool_source or source)
        lacks_end = source == CHATML and "<|im_end|>" not in self._control
        self.stop = ("<|im_end|>",) if lacks_end else ()
        if adapt and not self.takes_tools:
            both = self.syntax.calls | HERMES.calls, self.syntax.inner + HERMES.inner
            self.syntax = replace(self.syntax, calls=both[0], inner=both[1])

    def _compile(self, source: str) -> Any:
        if len(source) > MAX_SOURCE:
            raise ModelFileError(self.path, KEY, f"is longer than {MAX_SOURCE} characters")
        try:
            return Environment().from_string(source)
        except (*FAILURES, SyntaxError) as error:
            raise ModelFileError(self.path, KEY, f"cannot be read: {_short(error)}") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        **arguments: Any,
    ) -> Prompt:
        """The prompt of a conversation; `arguments` are the template's own (enable_thinking, …).

        BadRequest where the template refuses the messages or cannot make sense of them,
        ModelFileError where it runs too long or writes too much.
        """
        mask = Mask(self._control)
        functions = [dict(tool.get("function", tool)) for tool in tools]
        chat = [self._message(message) for message in messages]
        if self.adapt:
            functions = [complete_tool(function) for function in functions]
        offered = [{"type": "function", "function": function} for function in functions]
        if self.adapt:
            chat, offered = self._adapted(chat, offered)
        hidden = [_masked(mask, message) for message in chat]
        text = self._render(hidden, mask.hide(offered), add_generation_prompt, mask.hide(arguments))
        parts = mask.reveal(text)
        text = "".join(part.text for part in parts)
        reasoning = add_generation_prompt and opens_reasoning(text, self.syntax)
        return Prompt(parts, text, reasoning, self.stop)

    def _adapted(
        self, chat: list[dict[str, Any]], tools: list[Any]
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """Messages and tools, with what the template has no place for written into the texts."""
        if tools and not self.takes_tools:
            chat, tools = as_text(chat, tools), []
        elif "tool_calls" not in self.source:
            chat = [calls_as_text(message) for message in chat]
        elif any(len(m.get("tool_calls", ())) > 1 for m in chat) and not self._takes_calls:
            chat = one_call_each(chat)
        if chat and chat[0]["role"] in ("system", "developer") and not self._keeps_system:
            chat = fold_system(chat)
        return chat, tools

    def _render(
        self, messages: list[dict[str, Any]], tools: list[Any], generate: bool, args: Any
    ) -> str:
        template = self._tool_template if tools else self._template
        values = {"documents": None, **self._tokens, **args, "messages": messages}
        values |= {"tools": tools or None, "add_generation_prompt": generate}
        token = deadline.set(time.monotonic() + SECONDS)
        out, size = list[str](), 0
        try:
            for piece in template.generate(**values):
                out.append(piece)
                size += len(piece)
                check_size(size)
        except Refused as error:
            raise BadRequest(f"the chat template refuses: {error}", "messages") from None
        except SecurityError as error:
            raise ModelFileError(self.path, KEY, f"is not run: {_short(error)}") from None
        except FAILURES as error:
            raise BadRequest(
                f"the chat template cannot render these messages: {_short(error)}", "messages"
            ) from None
        finally:
            deadline.reset(token)
        return "".join(out)

    def _probe(self, *messages: dict[str, Any]) -> str | None:
        try:
            return self._render(list(messages), [], False, {})
        except (BadRequest, ModelFileError):
            return None

    @cached_property
    def _keeps_system(self) -> bool:
        """Whether a system message reaches the prompt."""
        text = self._probe({"role": "system", "content": "probe17"}, _USER)
        return (text is not None and "probe17" in text) or self._probe(_USER) is None

    @cached_property
    def _no_content(self) -> str | None:
        """The content of a turn that only calls tools: none, where the template knows that."""
        empty = self._probe(_USER, _turn("", "f"))
        none = self._probe(_USER, _turn(None, "f"))
        return None if none is not None and (empty is None or len(none) < len(empty)) else ""

    @cached_property
    def _takes_calls(self) -> bool:
        """Whether a turn may have several calls."""
        both = self._probe(_USER, _turn(self._no_content, "probe17", "probe18"))
        return both is not None and "probe17" in both and "probe18" in both

    def _message(self, message: Message) -> dict[str, Any]:
        """A message as templates expect it: arguments as objects, no key that says nothing."""
        out = {key: value for key, value in message.items() if value not in (None, "", (), [])}
        out["role"] = str(message.get("role", ""))
        if not out["role"]:
            raise BadRequest("a message has no role", "messages")
        if self.adapt and out["role"] == "developer" and "developer" not in self.source:
            out["role"] = "system"  # OpenAI's newer name for it
        out["content"] = message.get("content", "")
        if self.adapt and out["content"] is None:
            out["content"] = ""
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        if reasoning:
            out["reasoning_content"] = reasoning
            if "message.thinking" in self.source and not out["content"]:
                out["thinking"] = reasoning
        if "tool_calls" in out:
            out["tool_calls"] = [self._call(call) for call in out["tool_calls"]]
            if self.adapt and not out["content"]:
                out["content"] = self._no_content
        if "tool_call_id" in out:
            out["tool_call_id"] = self._id(str(out["tool_call_id"]))
        return out

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            with suppress(ValueError):  # else it is shown to the model as it was written
                arguments = json.loads(arguments)
        function = {"name": function.get("name", ""), "arguments": arguments}
        return {"id": self._id(str(call.get("id", ""))), "type": "function", "function": function}

    def _id(self, text: str) -> str:
        """Mistral's templates take nine letters or digits and nothing else."""
        if (
            not self.adapt
            or "length != 9" not in self.source
            or re.fullmatch("[A-Za-z0-9]{9}", text)
        ):
            return text
        return hashlib.sha256(text.encode()).hexdigest()[:9]


_USER = {"role": "user", "content": "hello"}


def _turn(content: str | None, *names: str) -> dict[str, Any]:
    calls = [
        {"id": f"aaaaaaaa{n}", "type": "function", "function": {"name": name, "arguments": {}}}
        for n, name in enumerate(names)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _masked(mask: Mask, message: dict[str, Any]) -> dict[str, Any]:
    own = OWN_TEXT if message["role"] == "assistant" else ()
    return {
        key: value if key == "role" else mask.hide(value, names_only=key in own)
        for key, value in message.items()
    }


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__


def load_template(metadata: Metadata, tokenizer: Tokenizer, path: object = "model") -> ChatTemplate:
    """The template a model file carries, or ChatML and a warning where it carries none."""
    source, tools = metadata.maybe(KEY, "", str), metadata.maybe(f"{KEY}.tool_use", "", str)
    notes: tuple[str, ...] = ()
    names = metadata.maybe("tokenizer.chat_templates", ())
    if not source and isinstance(names, Strings) and len(names):
        source = metadata.maybe(f"{KEY}.{names[0]}", "", str)
    if not source:
        notes = ("the file has no chat template: ChatML is used",)
        log.warning("%s: %s", path, notes[0])
    tokens: dict[str, Any] = {"add_bos": tokenizer.add_bos}
    for name in ("bos", "eos", "unk", "pad"):
        i = getattr(tokenizer, name)
        tokens[f"{name}_token"] = "" if i is None else tokenizer.piece(i).decode("utf-8", "replace")
    return ChatTemplate(
        source or CHATML,
        tool_source=tools,
        tokens=tokens,
        control=tokenizer.control_names,
        path=path,
        notes=notes,
        adapt=True,
    )
