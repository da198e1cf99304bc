"""What a model writes, taken apart as it grows: text, reasoning, tool calls.

The parser is one coroutine over a growing buffer. It holds text back only while that may still
begin a marker. A region that turns out not to be a call is given out as the text it is: nothing
is lost. Pieces of any size give the same result.
"""

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llamoot.text.arguments import as_object, coerce, gemma_object, python_call
from llamoot.text.reading import NotACall, Reader, Sink, Steps
from llamoot.text.syntax import PLAIN, Syntax

ARGUMENTS = ("arguments", "parameters")
FUNCTION, PARAMETER = ("<function=", "<invoke name="), ("<parameter=", "<parameter name=")
# What may still become a header of harmony: "assistant to=functions.x<|channel|>…".
HEADER = re.compile(r"\s*(?:assistant|a[sitan]*$)?\s*(?:to=[^<]*|to?$)?(?:<.*)?$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of tool call `index`: its name first, then its arguments as JSON text."""

    index: int
    name: str = ""
    arguments: str = ""


class Delta(NamedTuple):
    """What one step added."""

    text: str = ""
    reasoning: str = ""
    tools: tuple[CallPiece, ...] = ()


def functions(tools: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Names to the schemas of their parameters, from OpenAI's form or the flat one."""
    flat = [tool.get("function", tool) for tool in tools]
    return {tool["name"]: tool.get("parameters") or {} for tool in flat}


class OutputParser(Reader):
    """Feed it text, it gives out what each piece added; `finish` gives out the rest."""

    def __init__(
        self,
        syntax: Syntax = PLAIN,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        reasoning: bool = False,
    ) -> None:
        """`reasoning`: the prompt opened a reasoning region. Without tools no call is looked for,
        except where the family wraps everything (harmony)."""
        self.syntax, self.known = syntax, functions(tools)
        self.n_calls = 0
        super().__init__()
        self._fresh = False
        self._text_out: list[str] = []
        self._reasoning_out: list[str] = []
        self._calls_out: list[CallPiece] = []
        self._held, self._begun = "", False
        harmony = "harmony" in syntax.calls.values()
        self._steps = self._harmony() if harmony else self._run(reasoning)
        next(self._steps, None)

    def feed(self, text: str) -> Delta:
        """Take the next piece of output."""
        self._buffer += text
        next(self._steps, None)
        return self._drain()

    def finish(self) -> Delta:
        """The output is complete: give out what was held back."""
        self._closed = True
        for _ in self._steps:
            pass
        if self._held:
            self._reasoning_out.append(self._held)
        return self._drain()

    def _drain(self) -> Delta:
        calls: list[CallPiece] = []
        for piece in self._calls_out:
            if calls and not piece.name and calls[-1].index == piece.index:
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.arguments)
            else:
                calls.append(piece)
        delta = Delta("".join(self._text_out), "".join(self._reasoning_out), tuple(calls))
        self._text_out, self._reasoning_out, self._calls_out = [], [], []
        return delta

    # What is given out

    def _text(self, text: str) -> None:
        if self._fresh:
            text = text.lstrip("\r\n")
        if text:
            self._fresh = False
            self._text_out.append(text)

    def _reason(self, text: str) -> None:
        """Reasoning without the newlines between it and its markers."""
        if self._fresh:
            text = text.lstrip("\r\n")
        if text:
            self._fresh = False
            text = self._held + text
            solid = text.rstrip("\r\n")
            self._held = text[len(solid) :]
            self._reasoning_out.append(solid)

    def _call(self, name: str) -> None:
        self._calls_out.append(CallPiece(self.n_calls, name))
        self.n_calls += 1
        self._begun = True

    def _arguments(self, text: str) -> None:
        if text:
            self._calls_out.append(CallPiece(self.n_calls - 1, "", text))

    def _whole(self, name: str, arguments: str) -> None:
        self._call(name)
        self._arguments(arguments)
        self._done()

    def _done(self) -> None:
        """A call is complete: what follows is no longer part of it."""
        self._taken, self._begun = [], False

    # Regions

    def _run(self, reasoning: bool) -> Steps:
        think = dict(self.syntax.think)
        calls = self.syntax.calls if self.known else {}
        if reasoning:
            yield from self._reasoning(think)
        if self.syntax.bare_json and self.known:
            yield from self._bare()
        while True:
            marker = yield from self._until([*think, *calls, *self.syntax.drop], self._text)
            if not marker:
                return
            if marker in think:
                yield from self._reasoning({marker: think[marker]})
            elif marker in calls:
                yield from self._region(marker, getattr(self, f"_{calls[marker]}"))

    def _reasoning(self, think: Mapping[str, str]) -> Steps:
        self._fresh = True
        yield from self._until(list(think.values()), self._reason)
        self._held, self._fresh = "", True

    def _region(self, marker: str, parse: Callable[[str], Steps]) -> Steps:
        self._taken, self._begun = [marker], False
        try:
            yield from parse(marker)
        except NotACall:
            if not self._begun:
                self._text("".join(self._taken))
        else:
            self._fresh = True
        self._taken = None

    def _bare(self) -> Steps:
        """Llama 3: an answer that is one JSON object with a known name is a call."""
        while not self._buffer.strip() and not self._closed:
            yield
        if self._buffer.lstrip().startswith("{"):
            yield from self._region("", lambda _: self._object(strict=True))

    def _object(self, strict: bool = False) -> Steps:
        """{"name": …, "arguments": {…}}; arguments stream if the name comes first."""
        yield from self._expect("{")
        name, late, begun = "", "", False
        while (char := (yield from self._peek())) != "}":
            if char == ",":
                self._take(1)
                continue
            key = yield from self._json()
            yield from self._expect(":")
            if key in ARGUMENTS and name and not begun:
                begun = True
                if (yield from self._peek()) == "{":
                    self._call(name)
                    yield from self._value(self._arguments)
                else:
                    late = as_object((yield from self._json()))
                    self._whole(name, late)
                continue
            value = yield from self._json()
            if key in ("name", "tool_name"):
                name = value
            elif key == "function" and isinstance(value, dict):
                name, late = value.get("name", ""), as_object(value.get("arguments", {}))
            elif key in ARGUMENTS:
                late = as_object(value)
            if not isinstance(name, str) or (strict and not self._plausible(key, name)):
                raise NotACall
        self._take(1)
        if not name:
            raise NotACall
        if not begun:
            self._whole(name, late or "{}")
        self._done()

    def _plausible(self, key: str, name: str) -> bool:
        return key in ("name", "type", "id", *ARGUMENTS) and (not name or name in self.known)

    def _objects(self) -> Steps:
        """One call, or a list of calls."""
        if (yield from self._peek()) != "[":
            yield from self._object()
            return
        self._take(1)
        while (char := (yield from self._peek())) != "]":
            if char == ",":
                self._take(1)
            else:
                yield from self._object()
        self._take(1)

    def _list(self, marker: str) -> Steps:
        """Mistral, Granite: calls as JSON after the marker, or name[ARGS]{…}."""
        if (yield from self._peek()) in ("[", "{"):
            yield from self._objects()
            return
        name, end = yield from self._body("[ARGS]", "[CALL_ID]", "{")
        if end == "[CALL_ID]":
            _, end = yield from self._body("[ARGS]", "{")
        if end == "{":
            self._buffer = "{" + self._buffer
        self._call(name.strip())
        yield from self._value(self._arguments)
        self._done()

    def _tag(self, marker: str) -> Steps:
        """<tool_call> … </tool_call> around JSON, around <function=…>, or around <arg_key>s."""
        close = "</" + marker[1:]
        char = yield from self._peek()
        if char in ("{", "["):
            yield from self._objects()
        elif char == "<":
            yield from self._xml(close)
            return
        else:
            yield from self._glm(close)
            return
        rest: list[str] = []
        yield from self._until((close,), rest.append)
        if "".join(rest).strip("}] \r\n\t"):
            raise NotACall

    def _xml(self, close: str) -> Steps:
        """Qwen 3.5: <function=name> <parameter=key> value </parameter> … </function>.

        MiniMax writes <invoke name="…"> and <parameter name="…">. The tags repeat for more calls.
        """
        found = (yield from self._body(*FUNCTION))[1]
        while found in FUNCTION:
            name = (yield from self._body(">"))[0].strip(' "')
            schema, values = self.known.get(name, {}), dict[str, Any]()
            while (yield from self._body(*PARAMETER, "</function>", "</invoke>"))[1] in PARAMETER:
                key = (yield from self._body(">"))[0].strip(' "')
                value, _ = yield from self._body("</parameter>")
                value = value.removeprefix("\n").removesuffix("\n")
                values[key] = coerce(value, schema, key)
            self._whole(name, json.dumps(values, ensure_ascii=False))
            rest: list[str] = []
            found = yield from self._until((*FUNCTION, close), rest.append)
            if "".join(rest).strip():
                raise NotACall

    def _glm(self, close: str) -> Steps:
        """GLM: name, then <arg_key>k</arg_key> <arg_value>v</arg_value> …"""
        name, end = yield from self._body("<arg_key>", close)
        schema, values = self.known.get(name.strip(), {}), dict[str, Any]()
        while end == "<arg_key>":
            key, _ = yield from self._body("</arg_key>")
            yield from self._body("<arg_value>")
            value, _ = yield from self._body("</arg_value>")
            values[key.strip()] = coerce(value, schema, key.strip())
            _, end = yield from self._body("<arg_key>", close)
        self._whole(name.strip(), json.dumps(values, ensure_ascii=False))

    def _sections(self, marker: str) -> Steps:
        """DeepSeek, Kimi: begin, name, separator, JSON (fenced or not), end; several in a row."""
        section, begin, *_ = self.syntax.calls
        separator, end, section_end, *_ = self.syntax.inner
        while True:
            if marker == section:
                _, marker = yield from self._body(begin, section_end)
            if marker != begin:
                return
            name, _ = yield from self._body(separator)
            if name.strip() == "function":  # the type comes first, and the name ends its line
                name, _ = yield from self._body("\n")
            name = name.strip().removeprefix("functions.").partition(":")[0]
            _, brace = yield from self._body("{")
            self._buffer = brace + self._buffer
            self._call(name)
            yield from self._value(self._arguments)
            self._done()
            yield from self._until((end,), lambda _: None)
            marker = section

    def _gemma(self, marker: str) -> Steps:
        """Gemma 4: call:name{key:<|"|>text<|"|>,…}<tool_call|>."""
        body, _ = yield from self._body("<tool_call|>")
        head = re.match(r"\s*call:\s*([^\s{]+)\s*", body)
        found = gemma_object(body[head.end() :]) if head else None
        if head is None or found is None:
            raise NotACall
        self._whole(head.group(1), json.dumps(found, ensure_ascii=False))

    def _python(self, marker: str) -> Steps:
        """Llama 3 after <|python_tag|>: JSON calls, name.call(key="value"), or a program."""
        if (yield from self._peek()) == "{":
            while (yield from self._peek()):
                yield from self._object()
                if (yield from self._peek()) == ";":
                    self._take(1)
            return
        program: list[str] = []
        yield from self._until((), program.append)
        found = python_call("".join(program)) or ("python", {"code": "".join(program)})
        self._whole(found[0], json.dumps(found[1], ensure_ascii=False))

    def _harmony(self) -> Steps:
        """gpt-oss: messages with a header that names a channel and perhaps a function."""
        ends = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
        while True:
            header, body = yield from self._header()
            named = re.search(r"to=(?:functions\.)?([^\s<]+)", header)
            sink: Sink = self._text
            if not body:
                self._text("" if "<|" in header or header == "assistant" else header)
            elif named:
                self._call(named.group(1))
                sink = self._arguments
            elif "<|channel|>analysis" in header:
                self._fresh, sink = True, self._reason
            end = yield from self._until(ends, sink)
            if not end:
                return
            self._held, self._fresh = "", sink == self._reason
            if end == "<|channel|>":
                self._buffer = end + self._buffer

    def _header(self) -> Generator[None, None, tuple[str, bool]]:
        """What stands before a body; or nothing, and False, where plain text begins or all ends."""
        while True:
            before, found, after = self._buffer.partition("<|message|>")
            if not HEADER.match(before):
                return "", False
            if found:
                self._buffer = after
                return before, True
            if self._closed:
                return self._take(len(self._buffer)), False
            yield
