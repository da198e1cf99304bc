"""Broken, odd and hostile requests: every one is answered with a 4xx in the shape of its route."""

import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, ChatToken
from llamoot.council.agent import CouncilAgent
from llamoot.council.config import parse
from llamoot.council.council import Council
from llamoot.council.panel import panel
from llamoot.errors import (
    AgentError,
    ContextOverflow,
    LlamootError,
    ModelFileError,
    Overloaded,
    Stream,
    Timeout,
    Transport,
)
from llamoot.server.gate import Limits
from llamoot.server.registry import Entry, Registry
from llamoot.server.state import State
from serving import agents, call, events, serving

pytestmark = pytest.mark.pure
HELLO = {"model": "A", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
COUNCIL = '[councils.two]\nmembers = [{model="x", script=["1"]}, {model="y", script=["2"]}]'


class Local(ScriptedAgent):
    """A scripted agent with all that a local model offers."""

    async def embed(self, inputs: Any) -> tuple[list[list[float]], int]:
        return [[0.6, 0.8] for _ in inputs], len(inputs)

    async def tokenize(self, text: str, **how: bool) -> list[int]:
        return [ord(c) for c in text]

    async def detokenize(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    async def apply_template(self, request: ChatRequest) -> str:
        return "\n".join(message.content for message in request.messages)

    async def complete(self, prompt: Any, request: ChatRequest) -> AsyncIterator[ChatToken]:
        async for token in self.chat(request):
            yield token


VALID: dict[str, dict[str, Any]] = {
    CHAT: HELLO
    | {"max_tokens": 5, "temperature": 0.5, "stop": ["x"], "n": 2, "tools": [TOOL]}
    | {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}
    | {"stream_options": {"include_usage": True}, "logit_bias": {"1": 2}, "logprobs": True},
    "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 4, "echo": True, "n": 1},
    "/v1/embeddings": {"input": ["a"], "dimensions": 1, "encoding_format": "base64"},
    "/v1/responses": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
        ],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
        "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "f"}],
    },
    "/v1/messages": {
        "max_tokens": 5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "content": "1"}]},
        ],
        "system": [{"type": "text", "text": "s"}],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled"},
    },
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/council/completions": {"prompt": "What is 1 + 1?"},
    "/v1/council/transcript": {"messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"content": "abc", "add_special": True},
    "/detokenize": {"tokens": [1, 2]},
    "/apply-template": HELLO,
}


def _open_council() -> CouncilAgent:
    def open_agent(spec: Any) -> ScriptedAgent:
        return ScriptedAgent(spec.id, "1")

    return CouncilAgent(Council(panel(parse(COUNCIL, "test"), "two"), open_agent))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    agent, council = Local("A", "hello"), _open_council()
    entry = Entry("council/two", "council", lambda: council, {"council": council.council})
    registry = Registry([Entry("A", "local", lambda: agent), entry])
    with serving(State(registry)) as number:
        yield number


def check(port: int, path: str, body: Any) -> int:
    """Ask; a refusal is a 4xx with the error object of its route. Returns the status."""
    status, _, answer = call(port, path, body)
    assert status == 200 or 400 <= status < 500, (status, body, answer)
    if status != 200:
        error = answer["error"]
        assert isinstance(error["message"], str) and error["message"]
        assert isinstance(error["type"], str)
        if "/messages" in path:
            assert answer["type"] == "error" and answer["request_id"]
        else:
            assert error.keys() >= {"message", "type", "param", "code"}
            assert isinstance(error["code"], str)
            assert error["param"] is None or isinstance(error["param"], str)
    return status


@pytest.mark.parametrize("path", VALID)
def test_the_valid_body_of_every_route_is_answered(port: int, path: str) -> None:
    status, _, answer = call(port, path, VALID[path])
    assert status == 200, answer


DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
BROKEN = {
    "empty": b"",
    "half": b'{"model": "A"',
    "an array": b"[]",
    "a number": b"1",
    "null": b"null",
    "two": b"{}{}",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "overlong UTF-8": b'{"model": "\xc0\xaf"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "a raw surrogate": b'{"model": "\xed\xa0\x80"}',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "too large a number": b'{"temperature": 1e999}',
    "a control character": b'{"model": "\x01"}',
    "deep": DEEP,
    "deep arrays": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "form data": b"model=A&messages=hi",
    "a BOM": b"\xef\xbb\xbf{}",
}


@pytest.mark.parametrize("path", VALID)
def test_what_is_no_json_is_400(port: int, path: str) -> None:
    for name, body in BROKEN.items():
        assert check(port, path, body) == 400, name


def test_deep_json_where_any_json_may_stand_is_no_fault_of_ours(port: int) -> None:
    for depth in (100, 400, 900):
        deep = '{"properties":' * depth + "{}" + "}" * depth
        for name in ("metadata", "json_schema", "user", "chat_template_kwargs"):
            check(
                port,
                CHAT,
                f'{{"messages":[{{"role":"user","content":"a"}}],"model":"A",'
                f'"{name}":{deep}}}'.encode(),
            )
        check(port, "/v1/responses", f'{{"input":"a","metadata":{deep}}}'.encode())
        check(port, "/v1/responses", f'{{"input":"a","stream":true,"metadata":{deep}}}'.encode())
        tool = f'"tools":[{{"name":"f","input_schema":{deep}}}]'
        turn = '"messages":[{"role":"user","content":"a"}]'
        check(port, "/v1/messages", f'{{"max_tokens":5,{turn},{tool}}}'.encode())


ODD = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"n_predict": -2}, "n_predict"),
    ({"n": 17}, "n"),
    ({"top_p": 1.1}, "top_p"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"xtc_probability": 2}, "xtc_probability"),
    ({"mirostat": 1}, "mirostat"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"grammar": "root ::= x", "guided_regex": "a"}, "response_format"),
    ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages"),
    ({"tools": [{"type": "browser"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"store": True}, "store"),
]


@pytest.mark.parametrize(("change", "param"), ODD, ids=[json.dumps(o[0])[:50] for o in ODD])
def test_an_odd_value_is_400_and_named(port: int, change: dict[str, Any], param: str) -> None:
    status, _, body = call(port, CHAT, HELLO | change)
    assert status == 400 and body["error"]["param"] == param


@pytest.mark.parametrize("change", [{"max_tokens": 10**30}, {"seed": 2**70}, {"n_predict": -1}])
def test_large_numbers_are_taken_as_meant(port: int, change: dict[str, Any]) -> None:
    assert check(port, CHAT, HELLO | change) == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, Any]:
    """A route and its valid body with one to three places replaced, removed or added."""
    path = draw(st.sampled_from(sorted(VALID)))
    body = json.loads(json.dumps(VALID[path]))
    body["stream"] = draw(st.booleans()) if path not in ("/tokenize", "/detokenize") else None
    for _ in range(draw(st.integers(1, 3))):
        place: Any = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 4)) == 0:
                del place[key]
            else:
                place[key] = draw(json_values)
            break
    return path, body


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=mutated())
def test_no_body_makes_a_5xx(port: int, asked: tuple[str, Any]) -> None:
    check(port, *asked)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(sorted(VALID)), body=st.binary(max_size=40) | json_values)
def test_nothing_at_all_makes_a_5xx(port: int, path: str, body: Any) -> None:
    check(port, path, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    "path",
    [
        "/v1/council/runs?limit=%C2%B2",
        "/v1/council/runs?limit=" + "9" * 5000,
        "/v1/council/runs/none?start=-1",
        "/v1/council/runs/%00%ff",
        "/v1/models/%ff%00",
        "/v1/models/../../etc/passwd",
        "/runs/%2e%2e%2f",
    ],
)
def test_odd_paths_are_never_5xx(port: int, path: str) -> None:
    assert call(port, path)[0] < 500


def raw(port: int, data: bytes) -> bytes:
    """The first line of the answer to these very bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(data)
        return client.recv(4000).split(b"\r\n")[0]


@pytest.mark.parametrize("host", [b"[", b"[::1", b"a b", b"\xff\xfe", b"", b"evil.example", b"]:1"])
def test_a_host_that_makes_no_sense_is_refused(port: int, host: bytes) -> None:
    line = raw(port, b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert b" 403 " in line or b" 400 " in line


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400(port: int, head: bytes) -> None:
    try:
        line = raw(port, head)
    except ConnectionError:
        line = b""
    assert line == b"" or b" 400 " in line
    assert call(port, "/health")[0] == 200


FAILURES = [
    (ContextOverflow(600, 512), 400, "context_length_exceeded"),
    (Overloaded("the queue is full"), 429, "rate_limit_exceeded"),
    (Transport("A", "connection refused"), 502, "agent_unreachable"),
    (Stream("A", "broke off"), 502, None),
    (Timeout("A", "idle", 1.0), 504, None),
    (ModelFileError("x.gguf", "magic", "is wrong"), 500, None),
]


@pytest.mark.parametrize(("error", "status", "code"), FAILURES, ids=lambda v: str(v)[:30])
def test_every_failure_has_its_status_and_the_shape_of_its_route(
    error: LlamootError, status: int, code: str | None
) -> None:
    failing = ScriptedAgent("A", error if isinstance(error, AgentError) else Reply(error=error))
    with serving(agents(failing)) as port:
        got, headers, body = call(port, CHAT, HELLO)
        assert got == status and isinstance(body["error"]["code"], str)
        assert code is None or body["error"]["code"] == code
        assert ("retry-after" in headers) == (status == 429)
        got, _, body = call(port, "/v1/messages", HELLO | {"max_tokens": 5})
        assert got == status and body["type"] == "error" and "code" not in body["error"]
        got, _, body = call(port, "/v1/responses", {"model": "A", "input": "hi"})
        assert got == status and body["error"]["message"]


def test_a_failure_in_the_middle_ends_each_stream_in_its_own_way() -> None:
    broken = ScriptedAgent("A", Reply(text="well then", error=Transport("A", "reset")))
    with serving(agents(broken)) as port:
        text = call(port, "/v1/messages", HELLO | {"max_tokens": 5, "stream": True})[2]
        last = events(text)[-1]
        assert last["type"] == "error" and "reset" in last["error"]["message"]
        text = call(port, "/v1/responses", {"model": "A", "input": "hi", "stream": True})[2]
        last = events(text)[-1]
        assert last["type"] == "response.failed" and last["response"]["status"] == "failed"


def test_loading_is_503_with_retry_after_and_health_needs_no_key() -> None:
    state = agents(ScriptedAgent("A", "x"))
    state.ready = False
    with serving(state, Limits(keys=("k",))) as port:
        status, headers, body = call(port, "/health")
        assert status == 503 and headers["retry-after"] and body["error"]["code"] == "loading"
        state.ready = True
        assert call(port, "/health")[0] == call(port, "/v1/health")[0] == 200
        assert b" 200 " in raw(port, b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n")


def test_anthropics_routes_refuse_in_anthropics_shape() -> None:
    with serving(agents(ScriptedAgent("A", "x")), Limits(keys=("k",), max_body=100)) as port:
        status, _, body = call(port, "/v1/messages", HELLO)
        assert status == 401 and body["error"]["type"] == "authentication_error"
        key = {"x-api-key": "k"}
        status, _, body = call(port, "/v1/messages", b"x" * 200, key)
        assert status == 413 and body["error"]["type"] == "request_too_large"
        status, _, body = call(port, "/v1/messages", {"messages": [], "max_tokens": 1}, key)
        assert status == 400 and body["error"]["type"] == "invalid_request_error"
