"""Endpoints, refusals, retries and learned downgrades as plain functions, without a socket."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamoot.agents.accumulate import Incoming
from llamoot.agents.capabilities import Capability
from llamoot.agents.endpoint import Endpoint, Origin, Secret, redact
from llamoot.agents.problems import Problem, is_overflow, problem_in
from llamoot.agents.request import chat_body
from llamoot.agents.retry import backoff, retry_after, retryable
from llamoot.agents.think import ThinkSplitter
from llamoot.agents.types import ChatRequest, Format, Message, Sampling
from llamoot.agents.wire import decode, encode
from llamoot.errors import ConfigError

pytestmark = pytest.mark.pure
ASK = ChatRequest(messages=(Message("user", "Hi"),))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "delta", "message", "content", "index", "finish_reason", "id",
                         "tool_calls", "function", "name", "arguments", "usage", "error", "text",
                         "logprobs", "token", "logprob", "reasoning", "done", "object", "type",
                         "prompt_tokens", "x_groq", "reasoning_details", "detail", "code"]),
        inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON)
def test_no_json_raises_out_of_an_answer(value: object) -> None:
    body = json.dumps(value).encode()
    for frame in (b"data: %s\n\n" % body, b"event: error\ndata: %s\n\n" % body, body):
        answer = Incoming("A")
        answer.feed(frame)
        answer.end()
        assert answer.failure is not None or answer.last().finish_reason, "one end or the other"


@given(st.binary(max_size=200))
def test_no_bytes_raise_out_of_an_error_body(body: bytes) -> None:
    assert problem_in(body).message


@given(st.dictionaries(st.text(max_size=5), st.text(alphabet=st.characters(), max_size=9)))
def test_every_text_can_be_sent(body: dict[str, str]) -> None:
    sent = json.loads(encode(body))
    assert len(sent) <= len(body)
    encode({"half": "a\ud83d", "pair": "\ud83d\ude00"}).decode("utf-8")


def test_halves_of_a_character_are_replaced_and_pairs_joined_when_sent() -> None:
    assert json.loads(encode({"x": "a\ud83d", "y": "\ud83d\ude00"})) == {"x": "a\ufffd", "y": "😀"}


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ('{"error":{"message":"m","type":"t","param":"p","code":"c"}}',
         Problem("m", "c", "t", "p")),
        ('{"error":{"code":500,"message":"m","type":"server_error"}}',
         Problem("m", "500", "server_error")),
        ('{"error":"m"}', Problem("m")),
        ('{"error":"m","error_type":"overloaded"}', Problem("m", "", "overloaded")),
        ('{"detail":"m"}', Problem("m")),
        ('{"detail":[{"loc":["body","seed"],"msg":"m","type":"x"}]}',
         Problem("body.seed: m", "", "x", "seed")),
        ('{"object":"error","message":"m","type":"t","param":null,"code":404}',
         Problem("m", "404", "t")),
        ('{"object":"error","message":{"detail":[{"loc":["body","n"],"msg":"m"}]}}',
         Problem("body.n: m", "", "", "n")),
        ('{"type":"error","error":{"type":"t","message":"m"},"request_id":"r"}',
         Problem("m", "", "t")),
        ('{"message":"m","code":7}', Problem("m", "7")),
        ("data: {\"error\":{\"message\":\"m\"}}\n\n", Problem("m")),
        ("<html><title>m</title></html>", Problem("an HTML page: m", type="html")),
        ("m", Problem("m")),
        ("", Problem("an empty body")),
    ],
)  # fmt: skip
def test_the_message_is_found_in_every_shape_of_error_body(body: str, want: Problem) -> None:
    found = problem_in(body.encode())
    assert found.message == want.message and found.code == want.code and found.param == want.param
    assert want.type in ("", found.type)


@pytest.mark.parametrize(
    "text",
    ['{"error":{"message":"x","code":"context_length_exceeded"}}',
     '{"error":{"code":400,"message":"request exceeds","type":"exceed_context_size_error"}}',
     '{"message":"This model\'s maximum context length is 4096 tokens."}'],
)  # fmt: skip
def test_overflow_is_recognised_at_three_kinds_of_server(text: str) -> None:
    assert is_overflow(problem_in(text.encode()))


# -- endpoints and keys -------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "ftp://h", "http://", "http://h:port", "file:///x"])
def test_what_is_no_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError):
        Endpoint(url)


def test_control_characters_in_headers_are_refused_and_keys_are_stripped() -> None:
    with pytest.raises(ConfigError):
        Endpoint("http://h", headers={"X-A": "b\r\nX-C: d"})
    assert Endpoint("http://h", key="sk-x\n").headers["authorization"] == Secret("Bearer sk-x")


def test_a_user_and_password_in_the_url_are_sent_but_never_shown() -> None:
    endpoint = Endpoint("https://ann:s3cret@h/v1")
    assert endpoint.headers["authorization"] == Secret("Basic YW5uOnMzY3JldA==")
    assert endpoint.shown() == "https://h/v1"


def test_queries_are_kept_on_the_wire_and_hidden_when_shown() -> None:
    endpoint = Endpoint("https://h/v1?api-version=1&key=abcdef")
    assert endpoint.target("models") == "/v1/models?api-version=1&key=abcdef"
    assert endpoint.shown("models") == "https://h/v1/models?api-version=1&key=***"


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("a.localhost", True),
     ("10.0.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_loopback_is_known(host: str, is_loopback: bool) -> None:
    assert Origin("http", host, 80).loopback == is_loopback


@pytest.mark.parametrize(
    "text",
    ["key sk-abcdefgh1234 was", "Authorization: Bearer abcdefgh1234", "?api_key=abcdefgh1234&b",
     "https://u:abcdefgh1234@h/", '"api_key": "abcdefgh1234"', "got abcdefgh1234"],
)  # fmt: skip
def test_keys_are_redacted_known_or_not(text: str) -> None:
    shown = redact(text, [Secret("abcdefgh1234")] if text.startswith("got") else [])
    assert "abcdefgh" not in shown


@given(st.text(), st.integers(1, 900))
def test_redacted_text_is_one_bounded_line(text: str, limit: int) -> None:
    shown = redact(text, [Secret("abc")], limit)
    assert len(shown) <= limit and "\n" not in shown


# -- retries ------------------------------------------------------------------------------


def test_backoff_doubles_to_a_cap_with_at_most_a_quarter_off() -> None:
    for attempt, full in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)):
        waits = [backoff(attempt) for _ in range(50)]
        assert all(w is not None and 0.75 * full <= w <= full for w in waits)
        assert len(set(waits)) > 1, "jitter"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 7.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 7.0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 7.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:29 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=784111770.0) == seconds


def test_a_wish_to_wait_is_granted_but_not_for_ever() -> None:
    for asked in (0.2, 3.0, 60.0):
        wait = backoff(0, asked)
        assert wait is not None and asked <= wait <= asked + 1.0
    assert backoff(0, 61.0) is None


def test_the_server_may_say_whether_to_retry() -> None:
    assert retryable(503, {}) and not retryable(503, {"x-should-retry": "false"})
    assert not retryable(400, {}) and retryable(400, {"x-should-retry": "true"})
    assert not retryable(429, {}, "insufficient_quota")


# -- downgrades and bodies ----------------------------------------------------------------


def test_one_refusal_changes_one_parameter() -> None:
    capability = Capability()
    body: dict[str, object] = {
        "model": "m",
        "messages": [],
        "seed": 1,
        "temperature": 1,
        "top_p": 1,
    }
    problem = Problem("seed, temperature and top_p are unknown")
    seen = [set(capability.apply(body))]
    while capability.learn(problem, body, capability.apply(body)) and len(seen) < 9:
        seen.append(set(capability.apply(body)))
    assert [len(a - b) for a, b in itertools.pairwise(seen)] == [1] * (len(seen) - 1)
    assert {"model", "messages"} <= seen[-1]


def test_what_another_call_has_learned_is_asked_again_without_learning_more() -> None:
    capability, body = Capability(), {"model": "m", "messages": [], "seed": 1}
    assert capability.learn(Problem("no seed"), body, body)
    assert capability.learn(Problem("no seed"), body, body)
    assert capability.apply(body) == {"model": "m", "messages": [], "random_seed": 1}


@pytest.mark.parametrize(
    ("host", "name"),
    [("api.openai.com", "max_completion_tokens"), ("127.0.0.1", "max_tokens"),
     ("x.openai.azure.com", "max_completion_tokens"), ("api.mistral.ai", "max_tokens")],
)  # fmt: skip
def test_the_limit_goes_under_the_name_the_host_reads(host: str, name: str) -> None:
    request = ChatRequest(messages=ASK.messages, sampling=Sampling(max_tokens=5))
    assert chat_body(request, "m", Origin("https", host, 443))[name] == 5


@pytest.mark.parametrize(
    ("replay", "kept"), [("none", []), ("last", [False, True]), ("always", [True, True])]
)
def test_reasoning_is_sent_back_only_where_wanted(replay: str, kept: list[bool]) -> None:
    messages = (
        Message("user", "a"),
        Message("assistant", "b", reasoning="r1"),
        Message("user", "c"),
        Message("assistant", "d", reasoning="r2"),
    )
    body = chat_body(ChatRequest(messages=messages), "m", Origin("http", "h", 80), replay)  # type: ignore[arg-type]
    said = ["reasoning_content" in m for m in body["messages"] if m["role"] == "assistant"]
    assert said == (kept or [False, False])


def test_formats_reach_servers_in_the_words_they_know() -> None:
    local, hosted = Origin("http", "h", 80), Origin("https", "api.openai.com", 443)

    def body(kind: str, value: object, origin: Origin = local) -> dict[str, object]:
        format = Format(kind, value)  # type: ignore[arg-type]
        return chat_body(ChatRequest(messages=ASK.messages, format=format), "m", origin)

    assert body("json", None)["response_format"] == {"type": "json_object"}
    assert body("choice", ["a", "b"])["structured_outputs"] == {"choice": ["a", "b"]}
    assert body("grammar", "root ::= x")["grammar"] == "root ::= x"
    assert "structured_outputs" not in body("regex", "a+", hosted)


def test_a_chunk_of_the_usual_shape_is_read_by_type() -> None:
    found = decode(b'{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}')
    assert found is not None and found.choices and found.usage
    assert found.choices[0].delta is not None and found.choices[0].delta.content == "a"


THOUGHT = "\n<think>\nhm < /think></think>\n\nHello <think>"


@pytest.mark.parametrize(
    ("whole", "text", "reasoning"),
    [
        (THOUGHT, "Hello <think>", "\nhm < /think>"),
        ("Hello", "Hello", ""),
        (" <thin", " <thin", ""),
        ("<think>cut </thi", "", "cut </thi"),
        ("<think></think>42", "42", ""),
        ("  \n", "  \n", ""),
    ],
)
def test_thinking_at_the_start_is_told_from_text_whatever_the_cuts(
    whole: str, text: str, reasoning: str
) -> None:
    for size in range(1, len(whole) + 1):
        splitter = ThinkSplitter()
        parts = [splitter.feed(whole[i : i + size]) for i in range(0, len(whole), size)]
        parts.append(splitter.finish())
        assert ("".join(p[0] for p in parts), "".join(p[1] for p in parts)) == (text, reasoning)
