"""The 73 ways in which chat servers are odd or broken, as bytes, and what must come of each.

Numbers are those of the list in docs (bad or odd input on the wire). A row may have several
variants. `want` says the text, or the error with the text kept; never neither.
"""

import gzip
import json
from dataclasses import dataclass, field
from typing import Any

from llamoot.agents.misbehave import Act, chunk, event

Call = tuple[str, str, str]  # id, name, arguments


@dataclass(frozen=True)
class Want:
    """The outcome: everything an answer holds, or the error that ends it."""

    text: str = "Hello"
    finish: str = "stop"
    reasoning: str = ""
    refusal: str = ""
    calls: tuple[Call, ...] = ()
    completion_tokens: int | None = None  # None: not looked at
    error: str = ""  # class name
    says: str = ""  # a part of the error message


@dataclass(frozen=True)
class Row:
    number: int
    name: str
    body: bytes
    want: Want = Want()
    act: dict[str, Any] = field(default_factory=dict)

    def play(self, **more: Any) -> Act:
        return Act(**{"body": self.body, **self.act, **more})


def raw(text: str) -> bytes:
    return text.encode()


def stream(*payloads: Any, done: bool = True) -> bytes:
    return b"".join([*(event(p) for p in payloads), event("[DONE]") if done else b""])


def choice(**fields: Any) -> dict[str, Any]:
    return {**chunk(), "choices": [{"index": 0, **fields}]}


def tool(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {k: fields.pop(k) for k in ("name", "arguments") if k in fields}
    return chunk(finish=finish, tool_calls=[{**fields, "function": function}])


H, LO, STOP = chunk("Hel"), chunk("lo"), chunk(finish="stop")
GOOD = stream(H, LO, STOP)
CUT = Want(error="Stream", text="Hello")
FAILED = Want(error="Stream", text="Hel")
CALL = Want(text="", finish="tool_calls", calls=(("c1", "f", '{"a":1}'),))
TOOLS = chunk(finish="tool_calls")
USED = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    ],
    "usage": USED,
}
PIECES = (event(H), b": \n\n", event(LO), event(STOP))


def _framing() -> list[Row]:
    crlf, cr = GOOD.replace(b"\n", b"\r\n"), GOOD.replace(b"\n", b"\r")
    mixed = event(H).replace(b"\n", b"\r\n") + event(LO).replace(b"\n", b"\r") + event(STOP)
    many = event(json.dumps(chunk("Hello"), indent=1).replace("\n", "\ndata: "))
    split = "Grüße 日本語 😀"
    odd = "a\u2028b\u0085c\x0bd\x0ce"
    bad = event(chunk("He@@llo")).replace(b"@@", b"\xff\xc3")
    cut = event(chunk("x@@y")).replace(b"@@", b"\xf0\x9f\x98")
    return [
        Row(1, "crlf", crlf),
        Row(1, "lone cr", cr),
        Row(1, "mixed ends", mixed),
        Row(2, "bom", b"\xef\xbb\xbf" + GOOD),
        Row(3, "no space", GOOD.replace(b"data: ", b"data:")),
        Row(4, "two spaces", GOOD.replace(b"data: ", b"data:  ")),
        Row(5, "done and space", GOOD.replace(b"[DONE]", b"[DONE] ")),
        Row(5, "done and cr", GOOD.replace(b"[DONE]\n", b"[DONE]\r\n")),
        Row(6, "no done", stream(H, LO, STOP, done=False)),
        Row(7, "no finish", stream(H, LO, done=False), CUT),
        Row(7, "empty delta at the end", stream(H, LO, chunk(), done=False), CUT),
        Row(7, "done without finish", stream(H, LO), CUT),
        Row(8, "finish without blank line", stream(H, LO, STOP, done=False)[:-2]),
        Row(8, "finish without blank, one lf", stream(H, LO, STOP, done=False)[:-1]),
        Row(9, "done without blank line", GOOD[:-2]),
        Row(10, "data after done", GOOD + event(chunk(" more")) + event("[DONE]")),
        Row(11, "comments", b": OPENROUTER PROCESSING\n\n:\n\n"
            + GOOD.replace(b"\n\n", b"\n\n:k\n")),
        Row(12, "comment inside",
            GOOD.replace(b"data: {", b": c\ndata: {").replace(b"}\n", b"}\n:\n")),
        Row(13, "ping event", b"event: ping\n\n" + GOOD.replace(b"\n\n", b"\n\nevent: ping\n\n")),
        Row(14, "retry and id", b"retry: 3000\n\nid: 7\n\n" + GOOD + b"id: 8\n\n"),
        Row(15, "empty data", b"data:\n\ndata: \n\ndata\n\n" + GOOD),
        Row(16, "event names", GOOD.replace(b"data:", b"event: message\ndata:")),
        Row(16, "own event name", GOOD.replace(b"data:", b"event: delta\ndata:")),
        Row(17, "json over lines", many + event(STOP)),
        Row(18, "single lf", GOOD.replace(b"\n\n", b"\n") + b"\n"),
        Row(19, "utf-8", stream(chunk(split), STOP), Want(text=split)),
        Row(20, "unicode line ends", stream(chunk(odd), STOP), Want(text=odd)),
        Row(21, "invalid utf-8", bad + event(STOP), Want(text="He\ufffd\ufffdllo")),
        Row(21, "cut character", cut + event(STOP), Want(text="x\ufffdy")),
        Row(22, "lone surrogate", raw('data: {"choices":[{"delta":{"content":"a\\ud83d b"}}]}\n\n')
            + event(STOP), Want(text="a\ufffd b")),
        Row(22, "split emoji", raw('data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
            'data: {"choices":[{"delta":{"content":"\\ude00b"}}]}\n\n')
            + event(STOP), Want(text="a😀b")),
    ]  # fmt: skip


def _errors() -> list[Row]:
    told = {"error": {"message": "out of memory", "type": "server_error", "code": None}}
    says = Want(error="Stream", text="Hel", says="out of memory")
    one = event(H)
    bare = {"message": "out of memory", "code": 500}
    old = {"object": "error", "message": "out of memory", "type": "X", "param": None, "code": 500}
    router = {**chunk(finish="error"), "error": {"code": 502, "message": "out of memory"}}
    junk = b"data: upstream said hello\n\n"
    return [
        Row(23, "error frame", one + stream(told), says),
        Row(24, "error text", one + stream({"error": "out of memory"}), says),
        Row(25, "event error", one + b"event: error\n" + event(told), says),
        Row(26, "bare event error", one + b"event: error\n" + event(bare), says),
        Row(26, "event error in words", one + b"event: error\ndata: out of memory\n\n", says),
        Row(27, "object error", one + stream(old), says),
        Row(28, "error field", one + b"error: " + raw(json.dumps(told["error"])) + b"\n\n", says),
        Row(29, "bare json line", one + b'{"error":"out of memory"}\n', says),
        Row(30, "error and finish", one + stream(router), says),
        Row(31, "junk between", one + junk + stream(LO, STOP)),
        Row(31, "only junk", junk * 40, Want(text="", error="Stream", says="upstream said")),
        Row(32, "null", b"data: null\n\n" + one + b"data: null\n\n" + stream(LO, STOP)),
    ]


def _chunks() -> list[Row]:
    azure = {
        "choices": [],
        "created": 0,
        "id": "",
        "model": "",
        "object": "",
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}],
    }
    filtered = {
        **chunk(),
        "choices": [
            {
                "index": 0,
                "finish_reason": None,
                "content_filter_results": {},
                "content_filter_offsets": {"start_offset": 3},
            }
        ],
    }
    used = {**chunk(), "choices": [], "usage": USED}
    three = Want(completion_tokens=3)

    def count(n: int, base: dict[str, Any]) -> dict[str, Any]:
        return {**base, "usage": {**USED, "completion_tokens": n}}

    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
             {"type": "text", "text": "Hello"}]  # fmt: skip
    small = [{"choices": [{"delta": {"content": "Hello"}}]},
             {"choices": [{"delta": {}, "finish_reason": "stop"}]}]  # fmt: skip
    empty = [chunk("Hel", finish=""), chunk("lo", finish=""), STOP]
    details = [{"type": "reasoning.text", "text": "hm"}]
    null = choice(delta=None, finish_reason="stop")
    whole = choice(message={"role": "assistant", "content": "Hello"}, finish_reason="stop")
    both = choice(delta={}, message={"role": "assistant", "content": "Hello"}, finish_reason="stop")
    return [
        Row(33, "azure first chunk", stream(azure, H, LO, STOP)),
        Row(34, "choice without delta", stream(H, filtered, LO, STOP)),
        Row(35, "usage chunk", stream(H, LO, STOP, used), three),
        Row(36, "usage with the finish", stream(H, LO, {**STOP, "usage": USED}), three),
        Row(36, "usage null after", stream(H, LO, {**STOP, "usage": USED}, {**used, "usage": None}),
            three),
        Row(37, "running usage", stream(count(1, H), count(2, LO), count(3, STOP)), three),
        Row(38, "choices null", stream(H, LO, STOP, {**used, "choices": None}), three),
        Row(38, "choices absent", stream(H, LO, STOP, {"usage": USED}), three),
        Row(39, "x_groq", stream(H, LO, {**STOP, "x_groq": {"id": "r", "usage": USED}}), three),
        Row(40, "roles", stream(chunk(role="assistant", content=None),
            chunk("Hel", role="assistant"), chunk("lo", role="assistant"), STOP)),
        Row(41, "parts", stream(chunk(content=parts), STOP), Want(reasoning="hm")),
        Row(42, "delta null", stream(H, LO, null)),
        Row(42, "delta missing", stream(H, LO, choice(finish_reason="stop"))),
        Row(43, "message for delta", stream(whole)),
        Row(43, "message after deltas", stream(H, LO, both)),
        Row(44, "nothing but the needed", stream(*small)),
        Row(45, "empty finish", stream(*empty)),
        Row(46, "eos_token", stream(H, LO, chunk(finish="eos_token"))),
        Row(46, "abort", stream(H, LO, chunk(finish="abort")), CUT),
        Row(46, "error", stream(H, LO, chunk(finish="error")), CUT),
        Row(47, "final twice", stream(H, chunk("lo", finish="stop"), chunk("lo", finish="stop"))),
        Row(47, "finish twice", stream(H, LO, STOP, STOP)),
        Row(48, "text after finish", stream(H, STOP, LO)),
        Row(49, "reasoning_content", stream(chunk(reasoning_content="hm"), H, LO, STOP),
            Want(reasoning="hm")),
        Row(49, "reasoning", stream(chunk(reasoning="hm", content=""), H, LO, STOP),
            Want(reasoning="hm")),
        Row(49, "both fields", stream(chunk(reasoning="hm", reasoning_content="hm"), H, LO, STOP),
            Want(reasoning="hm")),
        Row(49, "details", stream(chunk(reasoning_details=details), H, LO, STOP),
            Want(reasoning="hm")),
        Row(49, "think tags", stream(chunk("<think>hm</think>\n\nHel"), LO, STOP),
            Want(reasoning="hm")),
        Row(50, "refusal", stream(chunk(refusal="I "), chunk(refusal="won't"), STOP),
            Want(text="", refusal="I won't")),
    ]  # fmt: skip


def _tools() -> list[Row]:
    half, rest = {"arguments": '{"a"'}, {"arguments": ":1}"}
    first = tool(id="c1", name="f", arguments='{"a"', type="function")
    second = chunk(
        tool_calls=[{"index": 0, "id": "c2", "function": {"name": "g", "arguments": "{}"}}]
    )
    two = Want(text="", finish="tool_calls", calls=(("c1", "f", '{"a":1}'), ("c2", "g", "{}")))
    made = Want(text="", finish="tool_calls", calls=(("call_0", "f", '{"a":1}'),))
    full = tool(index=0, id="c1", name="f", arguments='{"a":1}')
    other = {**LO, "choices": [{"index": 1, "delta": {"content": "XX"}, "finish_reason": None}]}
    over = {**LO, "choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]}
    return [
        Row(51, "no index", stream(first, tool(id="c1", **rest), TOOLS), CALL),
        Row(51, "neither index nor id", stream(first, tool(**rest), TOOLS), CALL),
        Row(52, "index starts at 1", stream(tool(index=1, id="c1", name="f", **half),
            tool(index=1, **rest), TOOLS), CALL),
        Row(53, "no id",
            stream(tool(index=0, name="f", **half), tool(index=0, **rest), TOOLS), made),
        Row(54, "id repeated", stream(tool(index=0, id="c1", name="f", **half),
            tool(index=0, id="c1", name=None, **rest), TOOLS), CALL),
        Row(54, "id and name empty", stream(tool(index=0, id="c1", name="f", **half),
            tool(index=0, id="", name="", **rest), TOOLS), CALL),
        Row(55, "name repeated", stream(tool(index=0, id="c1", name="f", **half),
            tool(index=0, name="f", **rest), TOOLS), CALL),
        Row(56, "arguments as object", stream(tool(index=0, id="c1", name="f", arguments={"a": 1}),
            TOOLS), CALL),
        Row(57, "arguments null", stream(tool(index=0, id="c1", name="f", arguments=None), TOOLS),
            Want(text="", finish="tool_calls", calls=(("c1", "f", "{}"),))),
        Row(57, "arguments empty", stream(tool(index=0, id="c1", name="f", arguments=""), TOOLS),
            Want(text="", finish="tool_calls", calls=(("c1", "f", "{}"),))),
        Row(58, "two calls, one index", stream(full, second, TOOLS), two),
        Row(59, "finish stop", stream(full, STOP), CALL),
        Row(59, "finish tool_calls without any", stream(H, LO, TOOLS)),
        Row(60, "cut by length", stream(tool(index=0, id="c1", name="f", **half),
            chunk(finish="length")),
            Want(text="", finish="length", calls=(("c1", "f", '{"a"'),))),
        Row(61, "n of two", stream(other, H, other, LO, over, STOP)),
    ]  # fmt: skip


def _bodies() -> list[Row]:
    big = "x" * (8 << 20)
    ollama = [{"model": "m", "message": {"role": "assistant", "content": t}, "done": False}
              for t in ("Hel", "lo")]  # fmt: skip
    last = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True,
            "done_reason": "stop", "prompt_eval_count": 5, "eval_count": 3}  # fmt: skip
    lines = b"".join(raw(json.dumps(x)) + b"\n" for x in [*ollama, last])
    chunks = b"".join(raw(json.dumps(x)) + b"\n" for x in [H, LO, STOP])
    as_json = {"content_type": "application/json", "framing": "length"}
    page = b"<!doctype html><html><head><title>Please log in</title></head><body>x</body></html>"
    html = {"content_type": "text/html", "framing": "length"}
    whole = raw(json.dumps(COMPLETION))
    told = raw(json.dumps({"error": {"message": "out of memory", "code": 502}}))
    zipped = {"headers": {"content-encoding": "gzip"}}
    nd = {"content_type": "application/x-ndjson"}
    cut = {"end": "cut", "cut_at": len(stream(H, done=False)) + 20}
    slow = {"gap": 0.05, "body": (b":\n\n",) * 10 + (GOOD,)}
    bad = {"status": 422, "content_type": "application/json", "framing": "length"}

    def refused(number: int, name: str, body: bytes, says: str, **act: Any) -> Row:
        want = Want(text="", error="Transport", says=says)
        return Row(number, name, body, want, {**bad, **act})

    detail = {"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "missing"}]}
    nested = {"object": "error", "message": {"detail": [{"loc": ["body", "x"], "msg": "bad x"}]}}
    return [
        Row(62, "8 MB line", stream(chunk(big), STOP), Want(text=big)),
        Row(63, "ndjson of ollama", lines, Want(completion_tokens=3), nd),
        Row(63, "ndjson of chunks", chunks, Want(), nd),
        Row(64, "json for a stream", whole, Want(completion_tokens=3), as_json),
        Row(64, "pretty json", raw(json.dumps(COMPLETION, indent=2)), Want(), as_json),
        Row(65, "html", page, Want(text="", error="Stream", says="Please log in"), html),
        Row(66, "error with 200", told, Want("", error="Stream", says="out of memory"), as_json),
        Row(67, "empty", b"", Want(text="", error="Stream", says="empty answer"), as_json),
        Row(68, "blank lines first", b"\n\n \n" + whole, Want(), as_json),
        Row(69, "gzip", gzip.compress(GOOD), Want(), zipped),
        Row(70, "text/plain", GOOD, Want(), {"content_type": "text/plain"}),
        Row(71, "chunked body cut", GOOD, FAILED, cut),
        Row(71, "reset", GOOD, FAILED, {**cut, "end": "reset"}),
        Row(71, "length not reached", GOOD, FAILED, {**cut, "framing": "length"}),
        Row(72, "comments for long", GOOD, Want(), slow),
        refused(73, "error text", raw('{"error":"no such thing"}'), "no such thing"),
        refused(73, "detail", raw(json.dumps(detail)), "messages: field required"),
        refused(73, "nested message", raw(json.dumps(nested)), "bad x"),
        refused(73, "html", page, "Please log in", content_type="text/html"),
        refused(73, "sse", event({"error": {"message": "no such thing"}}), "no such thing"),
        refused(73, "openai", raw('{"error":{"message":"no such thing"}}'), "no such thing"),
    ]  # fmt: skip


ROWS = [*_framing(), *_errors(), *_chunks(), *_tools(), *_bodies()]
