"""Bytes of one answer in, tokens out, and a verdict at the end. No I/O.

`Incoming` holds the rules of how an answer ends (`agents/types.py`): success needs a finish reason
that was really sent; what breaks off, makes no sense, holds nothing or reports an error is a
typed failure that keeps the text received so far. The same bytes give the same tokens and the
same verdict wherever they are cut.
"""

import json
from collections.abc import Iterable

import msgspec

from llamoot.agents import wire
from llamoot.agents.endpoint import Secret, redact
from llamoot.agents.problems import Problem, is_overflow, loads, problem_in, problem_of
from llamoot.agents.sse import LIMIT, EventParser, EventTooLong
from llamoot.agents.think import ThinkSplitter
from llamoot.agents.toolcalls import ToolCalls
from llamoot.agents.types import ChatToken, ToolPiece, Usage
from llamoot.agents.wire import Choice, Chunk, Delta
from llamoot.errors import AgentError, Stream

JUNK_LIMIT = 16  # data lines that are not JSON, before the answer is given up
_FAILED = {"error", "abort", "aborted", "cancelled", "insufficient_system_resource"}
_FINISH = {
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "safety": "content_filter",
    "tool_calls": "tool_calls",
    "length": "length",
    "content_filter": "content_filter",
}
_BLANK = b" \t\r\n\xef\xbb\xbf"
_read = msgspec.json.Decoder(Chunk).decode


class Incoming:
    """One answer being received. Read `failure` after every `feed`; `done` means stop reading."""

    def __init__(
        self, agent_id: str, secrets: Iterable[Secret] = (), *, limit: int = LIMIT
    ) -> None:
        self.agent_id = agent_id
        self.done = False
        self.failure: AgentError | None = None
        self.finish = ""  # the finish reason, in the contract's words
        self.usage: Usage | None = None
        self.response_id = self.model = ""
        self._secrets = tuple(secrets)
        self._parser = EventParser(limit)
        self._limit = limit
        self._mode = ""  # sse, json or page, once the first byte that counts is seen
        self._head = b""  # the first bytes, for error messages
        self._body: list[bytes] = []  # of a JSON body
        self._size = 0
        self._whole = False  # the body is one document, not one per line
        self._text: list[str] = []
        self._thought: list[str] = []
        self._refused = self._high = ""
        self._splitter = ThinkSplitter()
        self._plain = False  # text needs no more than to be handed on
        self._calls = ToolCalls()
        self._junk = 0
        self._last_payload = b""  # that carried the finish reason; relays send it twice

    @property
    def partial(self) -> str:
        """Text received so far."""
        return "".join(self._text)

    def feed(self, data: bytes) -> list[ChatToken]:
        """Tokens that `data` completes. What follows a failure or the end is ignored."""
        out: list[ChatToken] = []
        if self.done or self.failure is not None:
            return out
        if self._mode != "sse":
            data = self._sniff(data)
            if self._mode == "json":
                self._json(data, out)
            if self._mode != "sse":
                return out
        try:
            events = self._parser.feed(data)
        except EventTooLong as error:
            self._fail(f"sent too much at once: {error}")
            return out
        self._events(events, out)
        return out

    def end(self) -> list[ChatToken]:
        """The connection ended, or `done` was seen: last tokens, then `failure` or `last()`."""
        out: list[ChatToken] = []
        if self.failure is not None:
            return out
        if not self.done:
            if self._mode == "sse":
                self._events(self._parser.finish(), out)
            elif self._mode == "json":
                self._document(b"".join(self._body), out)
            elif self._mode == "page":
                problem = problem_in(self._head)
                self._fail(f"answered with {problem.message}; is the base URL right?")
            else:
                self._fail("sent an empty answer", retryable=True)
        if self.failure is None:
            self._conclude(out)
        return out

    def last(self) -> ChatToken:
        """The token that ends a successful answer."""
        return ChatToken(finish_reason=self.finish, usage=self.usage)

    def _sniff(self, data: bytes) -> bytes:
        if self._mode == "json":
            return data
        start = data.lstrip(_BLANK)
        if self._mode == "page" or start or len(self._head) < 3:
            self._head += data  # blanks before the first byte are not kept, a cut mark is
        if start and not self._mode:
            self._mode = {b"{": "json", b"[": "json", b"<": "page"}.get(start[:1], "sse")
        if self._mode == "page" and len(self._head) > 2048:
            self.end()
        return self._head if self._mode == "sse" else start

    def _events(self, events: list[tuple[str, bytes]], out: list[ChatToken]) -> None:
        text = self._text
        for name, payload in events:
            if not name and self._plain:
                try:
                    chunk = _read(payload)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    self._payload(name, payload, out)
                else:
                    # The usual chunk, a few letters and nothing else, takes the short way.
                    choices = chunk.choices
                    if (
                        choices
                        and len(choices) == 1
                        and (choice := choices[0]).finish_reason is None
                        and (delta := choice.delta) is not None
                        and delta.content
                        and delta.content.isascii()
                        and chunk.usage is None
                        and chunk.error is None
                        and choice.index == 0
                        and choice.logprobs is None
                        and delta.tool_calls is None
                        and not delta.reasoning
                        and not delta.reasoning_content
                        and not delta.refusal
                        and delta.reasoning_details is None
                        and choice.message is None
                        and chunk.x_groq is None
                    ):
                        text.append(delta.content)
                        out.append(ChatToken(delta.content))
                        continue
                    self._chunk(chunk, payload, out)
            else:
                self._payload(name, payload, out)
            if self.done or self.failure is not None:
                return

    def _payload(self, name: str, payload: bytes, out: list[ChatToken]) -> None:
        """One event's data, of any name and any content."""
        bare = payload.strip()
        if bare == b"[DONE]":
            self.done = True
            return
        try:
            if name == "error":
                found = problem_of(loads(bare))
                self._report(found or Problem(bare.decode("utf-8", "replace")))
                return
            chunk = wire.decode(bare)
        except ValueError:
            if name == "error":
                self._report(Problem(bare.decode("utf-8", "replace")))
            elif b"\n" in bare:
                # Events separated by one LF instead of two arrive joined.
                self._events([(name, line) for line in bare.split(b"\n") if line], out)
            else:
                self._count_junk(bare)
            return
        if chunk is not None:
            self._chunk(chunk, bare, out)
        elif bare != b"null":
            self._count_junk(bare)

    def _count_junk(self, payload: bytes) -> None:
        self._junk += 1
        if self._junk > JUNK_LIMIT:
            shown = self._shown(payload)
            self._fail(f"sent {self._junk} events that are not JSON, such as '{shown}'")

    def _json(self, data: bytes, out: list[ChatToken]) -> None:
        """A body of bare JSON: one document, or one per line. Collects until one is complete."""
        self._body.append(data)
        self._size += len(data)
        if self._size > self._limit:
            self._fail(f"sent too much at once: a body is longer than {self._limit} bytes")
        elif b"\n" in data and not self._whole:
            *lines, rest = b"".join(self._body).split(b"\n")
            for i, line in enumerate(lines):
                if self.failure is not None or self.done:
                    return
                bare = line.strip()
                if not bare:
                    continue
                try:
                    value = loads(bare)
                except ValueError:
                    value = None
                if not isinstance(value, dict):
                    self._whole = True
                    rest = b"\n".join([*lines[i:], rest])
                    break
                self._payload("", bare, out)
            self._body = [rest]
            self._size = len(rest)

    def _document(self, body: bytes, out: list[ChatToken]) -> None:
        bare = body.strip(_BLANK)
        if not bare:
            return
        try:
            value = loads(bare)
        except ValueError:
            if not self.finish:
                shown = self._shown(bare)
                self._fail(f"sent JSON that breaks off or makes no sense: '{shown}'")
            return
        for row in value if isinstance(value, list) else [value]:
            if isinstance(row, dict):
                self._payload("", bare if row is value else json.dumps(row).encode(), out)

    def _chunk(self, chunk: Chunk, payload: bytes, out: list[ChatToken]) -> None:
        if chunk.error:
            self._report(problem_of({"error": chunk.error}) or Problem(str(chunk.error)))
            return
        if chunk.object == "error" or (chunk.choices is None and chunk.usage is None):
            value = loads(payload)
            problem = problem_of(value) if chunk.done is None else None
            if problem is not None:
                self._report(problem)
                return
            chunk = wire.lenient(value)
        self.response_id = self.response_id or chunk.id or ""
        self.model = self.model or chunk.model or ""
        used = chunk.usage or (chunk.x_groq.usage if chunk.x_groq else None)
        if used is not None:
            self.usage = wire.usage_of(used)
        if chunk.timings is not None and self.usage is not None:
            self.usage = msgspec.structs.replace(
                self.usage,
                prefill_s=(chunk.timings.prompt_ms or 0.0) / 1000.0,
                decode_s=(chunk.timings.predicted_ms or 0.0) / 1000.0,
            )
        for choice in chunk.choices or ():
            if choice.index == 0:
                self._choice(choice, payload, out)
        if chunk.done:
            self.done = True

    def _choice(self, choice: Choice, payload: bytes, out: list[ChatToken]) -> None:
        if self.finish and payload == self._last_payload:
            return
        text = reasoning = refusal = ""
        tools: tuple[ToolPiece, ...] = ()
        delta, whole = choice.delta, choice.message
        if delta is not None and not _empty(delta):
            text, reasoning, refusal, tools = self._delta(delta)
        elif whole is not None:
            text, reasoning, refusal, tools = self._message(whole)
        elif choice.text:
            text, reasoning = self._said(choice.text)
        logprobs = wire.logprobs_of(choice)
        if text or reasoning or refusal or tools or logprobs:
            self._text.append(text)
            self._thought.append(reasoning)
            self._refused += refusal
            out.append(ChatToken(text, reasoning, refusal, tools, logprobs))
        reason = choice.finish_reason
        if reason:
            reason = reason.lower()
            if reason in _FAILED:
                self._fail(f"ended its answer with '{reason}'", retryable=True)
                return
            self.finish = _FINISH.get(reason, "stop")
            self._last_payload = payload

    def _delta(self, delta: Delta) -> tuple[str, str, str, tuple[ToolPiece, ...]]:
        text, thought = self._said(delta.content) if delta.content else ("", "")
        reasoning = delta.reasoning or delta.reasoning_content or ""
        if not reasoning and delta.reasoning_details is not None:
            reasoning = wire.reasoning_in(delta.reasoning_details)
        tools = self._calls.add(delta.tool_calls) if delta.tool_calls else ()
        refusal = wire.whole_characters(delta.refusal or "")
        return text, wire.whole_characters(reasoning) + thought, refusal, tools

    def _message(self, whole: Delta) -> tuple[str, str, str, tuple[ToolPiece, ...]]:
        """A message sent whole; after its own deltas it adds nothing but what was missing."""
        known, thought, calls = self.partial, "".join(self._thought), self._calls.count
        self._splitter = ThinkSplitter()
        text, reasoning, refusal, tools = self._delta(whole)
        rest = self._splitter.finish()
        text, reasoning = text + rest[0], reasoning + rest[1]
        return (
            text.removeprefix(known),
            reasoning.removeprefix(thought),
            refusal.removeprefix(self._refused),
            () if calls else tools,
        )

    def _said(self, text: str) -> tuple[str, str]:
        """Text and reasoning, surrogate pairs joined, also those cut between two chunks."""
        thought = ""
        if self._high or not text.isascii():
            text = self._high + text
            self._high = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
            text = wire.whole_characters(text[:-1] if self._high else text)
        if not self._splitter.plain:
            text, thought = self._splitter.feed(text)
        self._plain = self._splitter.plain and not self._high
        return text, thought

    def _conclude(self, out: list[ChatToken]) -> None:
        text, thought = self._splitter.finish()
        text, self._high = text + ("\ufffd" if self._high else ""), ""
        if text or thought:
            self._text.append(text)
            self._thought.append(thought)
            out.append(ChatToken(text, thought))
        missing = self._calls.close()
        if self._calls.count and (self.finish == "stop" or (self.done and not self.finish)):
            self.finish = "tool_calls"
        elif self.finish == "tool_calls" and not self._calls.count:
            self.finish = "stop"
        if self.finish and missing:
            out.append(ChatToken(tools=missing))
        if not self.finish:
            told = "ended without saying why: no finish reason came, so the answer is cut"
            self._fail(told if self._anything() else self._nothing(), retryable=True)
        elif self.finish in ("stop", "length") and not self._anything():
            self._fail(f"finished with '{self.finish}' but sent no text", retryable=True)

    def _anything(self) -> bool:
        return bool(any(self._text) or any(self._thought) or self._refused or self._calls.count)

    def _nothing(self) -> str:
        shown = self._shown(self._head)
        return f"sent no chunk of an answer; it began with '{shown}'"

    def _shown(self, payload: bytes) -> str:
        # Redacted before it is cut: half a key is a key's half.
        return redact(payload[:2000].decode("utf-8", "replace"), self._secrets, 160)

    def _report(self, problem: Problem) -> None:
        code = problem.code or problem.type
        fatal = code.isdigit() and 400 <= int(code) < 500 and int(code) not in (408, 409, 425, 429)
        fatal = fatal or code in ("invalid_request_error", "insufficient_quota", "content_filter")
        over = is_overflow(problem)
        label = f" ({code})" if code else ""
        self._fail(f"reported an error{label}: {problem.message}", retryable=not fatal and not over)
        if over and self.failure is not None:
            self.failure.code = "context_length_exceeded"

    def _fail(self, message: str, *, retryable: bool = False) -> None:
        self.failure = Stream(
            self.agent_id,
            redact(message, self._secrets),
            partial=self.partial,
            retryable=retryable and not self._anything(),
        )


def _empty(delta: Delta) -> bool:
    return not (
        delta.content
        or delta.tool_calls
        or delta.refusal
        or delta.reasoning
        or delta.reasoning_content
        or delta.reasoning_details
    )
