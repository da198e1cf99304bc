"""The known defects of the agent that this one follows, one test each, named after it."""

import asyncio
import contextlib
import copy
import gzip
import pickle
import socket
import time
import tracemalloc

import pytest

from asking import ASK, KEY, ask, listen, quick, with_server
from llamoot.agents.accumulate import Incoming
from llamoot.agents.endpoint import Endpoint, Secret
from llamoot.agents.http import OpenAIAgent
from llamoot.agents.misbehave import Act, MisbehavingServer, answer
from llamoot.agents.sse import EventParser, EventTooLong
from llamoot.agents.types import ChatRequest, Format, Message, Sampling, Tool, ToolCall
from llamoot.errors import Stream, Timeout, Transport
from wire_rows import GOOD, LO, STOP, H, choice, chunk, event, stream

pytestmark = pytest.mark.pure


def test_01_crlf_and_cr_framing_is_not_silent_loss() -> None:
    for end in (b"\r\n", b"\r"):
        assert ask(Act(body=GOOD.replace(b"\n", end))).text == "Hello"


def test_02_final_frame_without_blank_line_is_not_discarded() -> None:
    heard = ask(Act(body=stream(H, chunk("lo", finish="stop"), done=False)[:-2]))
    assert heard.text == "Hello" and heard.tokens[-1].finish_reason == "stop"


def test_03_early_clean_eof_is_not_success() -> None:
    heard = ask(Act(body=stream(H, LO, done=False)))
    assert isinstance(heard.error, Stream) and heard.error.partial == "Hello"


def test_04_error_frames_inside_a_200_stream_do_not_vanish() -> None:
    told = {"error": {"message": "no memory"}}
    for body in (event(told), b"event: error\n" + event(told), stream(chunk(finish="error"))):
        heard = ask(Act(body=event(H) + body), retries=0)
        assert isinstance(heard.error, Stream) and heard.error.partial == "Hel"


@pytest.mark.parametrize("body", [b"<html>login</html>", b"", b"Bad gateway", b'{"ok":true}'])
def test_05_a_200_that_is_no_stream_is_an_error(body: bytes) -> None:
    heard = ask(Act(body=body, content_type="text/html"), retries=0)
    assert isinstance(heard.error, Stream) and not heard.tokens


def test_05_a_204_is_an_error() -> None:
    heard = ask(Act(status=204, framing="length"), retries=0)
    assert isinstance(heard.error, Stream)


def test_06_bom_before_the_first_frame_loses_no_token() -> None:
    assert ask(Act(body=b"\xef\xbb\xbf" + GOOD)).text == "Hello"


def test_07_an_agent_that_says_nothing_has_failed() -> None:
    heard = ask(Act(body=stream(STOP)), retries=0)
    assert isinstance(heard.error, Stream) and "no text" in str(heard.error)


def test_08_utf8_is_not_decoded_per_network_chunk() -> None:
    text = "日本語 😀 Grüße"
    assert ask(Act(body=answer(text), drip=1)).text == text


def test_09_one_undecodable_frame_does_not_kill_the_answer() -> None:
    odd = [{"choices": 7}, {"choices": [None]}, choice(delta=[1]), choice(delta={"content": 5})]
    heard = ask(Act(body=event(H) + b"data: {oops\n\n" + stream(*odd, LO, STOP)))
    assert heard.error is None and heard.text == "Hello"


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.openai.com", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://api.perplexity.ai/chat/completions",
         "https://api.perplexity.ai/chat/completions"),
        ("https://g/v1beta/openai/", "https://g/v1beta/openai/chat/completions"),
        ("localhost:8080", "http://localhost:8080/v1/chat/completions"),
        ("gpu-box:8000", "http://gpu-box:8000/v1/chat/completions"),
        ("192.168.1.5:8000", "http://192.168.1.5:8000/v1/chat/completions"),
        ("models.example.com:8443", "https://models.example.com:8443/v1/chat/completions"),
        ("[::1]:8080", "http://[::1]:8080/v1/chat/completions"),
        ("http://[::1]:8080//v1//", "http://[::1]:8080/v1/chat/completions"),
        ("https://a.openai.azure.com/openai/deployments/D?api-version=2024-10-21",
         "https://a.openai.azure.com/openai/deployments/D/chat/completions?api-version=2024-10-21"),
        ("https://a.openai.azure.com/?api-version=2024-10-21",
         "https://a.openai.azure.com/openai/deployments/m/chat/completions?api-version=2024-10-21"),
        ("https://a.openai.azure.com", "https://a.openai.azure.com/openai/v1/chat/completions"),
        ("https://a.openai.azure.com/openai/v1/",
         "https://a.openai.azure.com/openai/v1/chat/completions"),
    ],
)  # fmt: skip
def test_10_base_urls_with_v1_and_queries_are_joined_rightly(base: str, url: str) -> None:
    assert Endpoint(base, model="m").shown("chat/completions") == url


def test_10_extra_headers_and_other_keys_than_bearer_are_sent() -> None:
    heard = ask(Act(body=GOOD), headers={"X-Team": "blue"})
    sent = heard.server.requests[0].headers
    assert sent["x-team"] == "blue" and sent["authorization"] == f"Bearer {KEY}"
    azure = Endpoint("https://a.openai.azure.com", key=KEY).headers
    assert azure["api-key"] == Secret(KEY) and "authorization" not in azure


def refuse(name: str) -> Act:
    body = b'{"error":{"message":"Unsupported parameter: \'%s\'","param":"%s"}}'
    return Act(status=400, body=body % (name.encode(), name.encode()), framing="length")


def test_11_max_tokens_is_sent_as_max_completion_tokens_where_the_server_wants_it() -> None:
    request = ChatRequest(messages=ASK.messages, sampling=Sampling(max_tokens=9, temperature=0.5))
    heard = ask([refuse("max_tokens"), refuse("temperature"), Act(body=GOOD)], request, path="/11")
    bodies = [r.json() for r in heard.server.requests]
    assert heard.text == "Hello" and len(bodies) == 3
    assert "max_completion_tokens" not in bodies[0] and bodies[1]["max_completion_tokens"] == 9
    assert "max_tokens" not in bodies[2] and "temperature" not in bodies[2]


def test_12_nothing_follows_an_error_whatever_the_chunking() -> None:
    body = event(H) + event({"error": "boom"}) + event(LO) + event(STOP)
    whole = Incoming("A")
    assert [t.text for t in whole.feed(body)] == ["Hel"] and whole.failure is not None
    for k in range(len(body)):
        cut = Incoming("A")
        tokens = cut.feed(body[:k]) + cut.feed(body[k:]) + cut.end()
        assert [t.text for t in tokens] == ["Hel"] and cut.failure is not None


def test_13_there_is_one_finish_and_it_is_last() -> None:
    for body in (stream(H, STOP, LO, STOP), stream(H, LO, STOP, chunk(finish="length"))):
        tokens = ask(Act(body=body)).tokens
        assert [bool(t.finish_reason) for t in tokens] == [False, False, True]


def test_14_choices_are_told_apart_by_index_not_by_place() -> None:
    other = {**LO, "choices": [{"index": 1, "delta": {"content": "X"}}, *LO["choices"]]}
    assert ask(Act(body=stream(H, other, STOP))).text == "Hello"


SILENT = Act(body=b"", end="hang")
STUCK = Act(body=event(H), end="hang")
PINGS = Act(body=(b": ping\n\n",) * 200, gap=0.02)


@pytest.mark.parametrize(
    ("act", "limits", "timer", "partial"),
    [
        (Act(before=9.0), {"first_token": 0.15}, "first_token", ""),
        (SILENT, {"first_token": 0.15}, "first_token", ""),
        (PINGS, {"first_token": 0.15, "idle": 5.0}, "first_token", ""),
        (STUCK, {"idle": 0.15}, "idle", "Hel"),
        (Act(body=(event(H),) * 99, gap=0.02), {"total": 0.2}, "total", "Hel"),
    ],
    ids=["no head", "no byte", "comments only", "stall", "drip for ever"],
)
def test_15_every_limit_is_applied(
    act: Act, limits: dict[str, float], timer: str, partial: str
) -> None:
    start = time.perf_counter()
    heard = ask(act, timers=quick(**limits), retries=0)
    assert isinstance(heard.error, Timeout) and heard.error.timer == timer
    assert heard.error.partial.startswith(partial) and time.perf_counter() - start < 2.0


def test_15_connect_is_limited() -> None:
    # A full queue of a listener that accepts nobody: further connections get no answer.
    with socket.socket() as listener, contextlib.ExitStack() as crowd:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        place = listener.getsockname()
        for _ in range(3):
            guest = crowd.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(place)
        agent = OpenAIAgent(
            "A", "m", f"http://127.0.0.1:{place[1]}", timers=quick(connect=0.2), retries=0
        )
        start = time.perf_counter()
        _, error = asyncio.run(listen(agent))
    assert isinstance(error, Timeout) and error.timer == "connect"
    assert time.perf_counter() - start < 1.0


def test_15_write_is_limited() -> None:
    big = ChatRequest(messages=(Message("user", "x" * (24 << 20)),))
    heard = ask(Act(deaf=True), big, timers=quick(write=0.3, first_token=9.0), retries=0)
    assert isinstance(heard.error, Timeout) and heard.error.timer == "write"


def test_15_reading_an_error_body_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamoot.agents.client._ERROR_BODY_S", 0.2)
    start = time.perf_counter()
    heard = ask(Act(status=500, body=b"oh", end="hang"), retries=0)
    assert isinstance(heard.error, Transport) and heard.error.http_status == 500
    assert time.perf_counter() - start < 1.5


def test_16_a_429_and_a_503_do_not_cost_the_round() -> None:
    busy = Act(status=429, headers={"retry-after-ms": "30"}, body=b'{"error":"busy"}')
    down = Act(status=503, headers={"retry-after": "0.03"}, body=b"down")
    start = time.perf_counter()
    heard = ask([busy, down, Act(body=GOOD)])
    assert heard.text == "Hello" and len(heard.server.requests) == 3
    assert 0.06 < time.perf_counter() - start < 1.5


def test_16_nothing_is_repeated_once_something_was_delivered() -> None:
    heard = ask([Act(body=event(H), end="cut"), Act(body=GOOD)])
    assert heard.text == "Hel" and isinstance(heard.error, Stream)
    assert len(heard.server.requests) == 1


def test_17_closing_the_stream_closes_the_socket() -> None:
    async def scene(server: MisbehavingServer) -> None:
        agent = OpenAIAgent("A", "m", server.url)
        tokens = agent.chat(ASK)
        await anext(tokens)
        await tokens.aclose()
        assert await server.gone(1)

    with_server(STUCK, scene)


def test_17_cancelling_before_the_first_token_closes_the_socket() -> None:
    async def scene(server: MisbehavingServer) -> None:
        task = asyncio.create_task(listen(OpenAIAgent("A", "m", server.url)))
        while not server.requests:
            await asyncio.sleep(0.005)
        task.cancel()
        assert await server.gone(1)

    with_server(Act(before=30.0), scene)


def test_17_request_id_is_sent() -> None:
    request = ChatRequest(messages=ASK.messages, request_id="run-7")
    assert ask(Act(body=GOOD), request).server.requests[0].headers["x-request-id"] == "run-7"


def test_18_failures_are_told_apart_by_type_not_by_text() -> None:
    heard = ask(Act(status=401, body=b'{"error":{"message":"bad key","code":"invalid_api_key"}}'))
    assert isinstance(heard.error, Transport) and heard.error.http_status == 401
    assert not heard.error.retryable and heard.error.code == "invalid_api_key"
    heard = ask(Act(status=429, body=b"slow down"), retries=0)
    assert isinstance(heard.error, Transport) and heard.error.retryable
    refused = OpenAIAgent("A", "m", "http://127.0.0.1:9", retries=0)
    _, error = asyncio.run(listen(refused))
    assert isinstance(error, Transport) and error.http_status is None and error.retryable
    nowhere = OpenAIAgent("A", "m", "http://nowhere.invalid", retries=0, proxy="")
    _, error = asyncio.run(listen(nowhere))
    assert isinstance(error, Transport) and error.http_status is None


def test_19_error_text_is_bounded_and_holds_no_secret() -> None:
    body = (f"wrong key {KEY} in request: " + "x" * 100_000).encode()
    heard = ask(Act(status=400, body=body))
    assert isinstance(heard.error, Transport)
    assert len(str(heard.error)) < 900 and KEY not in str(heard.error) + heard.error.body


def test_20_no_repr_shows_the_key() -> None:
    agent = OpenAIAgent("A", "m", f"http://user:{KEY}@h/v1?key={KEY}", key=KEY, headers={"x": KEY})
    secret = Secret(KEY)
    shown = [repr(agent), str(agent.endpoint), repr(agent.endpoint), repr(vars(agent.endpoint))]
    shown += [repr(secret), str(secret), f"{secret}", repr([secret]), repr(vars(agent.client))]
    assert not any(KEY in text for text in shown)
    for write in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            write(secret)


def test_21_usage_ids_and_limits_are_kept() -> None:
    headers = {"x-request-id": "r1", "x-ratelimit-remaining-tokens": "99"}
    heard = ask(Act(body=answer("a", "b"), headers=headers))
    usage, info = heard.tokens[-1].usage, heard.agent.last_call
    assert usage is not None and (usage.prompt_tokens, usage.completion_tokens) == (7, 2)
    assert (info.served_model, info.response_id, info.request_id) == ("m", "chatcmpl-1", "r1")
    assert info.limits == {"x-ratelimit-remaining-tokens": "99"} and info.first_token_s > 0
    assert heard.server.requests[0].json()["stream_options"] == {"include_usage": True}


def test_22_reasoning_tools_refusals_and_parts_are_surfaced() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    body = stream(
        chunk(reasoning_content="hm"),
        chunk(content=[{"type": "text", "text": "Hello"}]),
        chunk(refusal="no"),
        chunk(tool_calls=[call]),
        chunk(finish="tool_calls"),
    )
    tokens = ask(Act(body=body)).tokens
    assert [t.reasoning for t in tokens if t.reasoning] == ["hm"]
    assert [t.text for t in tokens if t.text] == ["Hello"]
    assert [t.refusal for t in tokens if t.refusal] == ["no"]
    assert [p.name for t in tokens for p in t.tools] == ["f"]


def test_22_logprobs_are_surfaced() -> None:
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.5}]
    row = {"token": "a", "logprob": -0.1, "top_logprobs": top}
    part = choice(delta={"content": "a"}, logprobs={"content": [row]})
    (first, _) = ask(Act(body=stream(part, STOP))).tokens
    assert first.logprobs[0].logprob == -0.1 and first.logprobs[0].top[1].token == "b"


def test_23_buffers_are_capped_and_parsing_is_linear() -> None:
    with pytest.raises(EventTooLong):
        parser = EventParser(limit=1 << 20)
        for _ in range(20):
            parser.feed(b"x" * 100_000)
    heard = Incoming("A", limit=1 << 20)
    heard.feed(b"data: " + b"x" * (2 << 20))
    assert isinstance(heard.failure, Stream)

    def seconds(size: int) -> float:
        body, parser = b"data: " + b"x" * size + b"\n\n", EventParser()
        start = time.perf_counter()
        for i in range(0, len(body), 16):
            parser.feed(body[i : i + 16])
        return time.perf_counter() - start

    seconds(100_000)
    assert seconds(1_600_000) < 16 * 4 * max(seconds(100_000), 0.002)


def test_23_a_zip_bomb_is_stopped() -> None:
    body = gzip.compress(b"data: " + b"x" * (64 << 20))
    tracemalloc.start()
    heard = ask(Act(body=body, headers={"content-encoding": "gzip"}), retries=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(heard.error, Stream) and peak < 160 << 20


def test_24_agents_of_one_host_share_connections() -> None:
    async def scene(server: MisbehavingServer) -> None:
        agents = [OpenAIAgent(name, "m", server.url) for name in "ABC"]
        for agent in agents * 2:
            await listen(agent)
        assert (server.connections, len(server.requests)) == (1, 6)
        for agent in agents:
            await agent.close()

    with_server(Act(body=GOOD), scene)


def test_25_proxies_of_the_environment_do_not_apply_to_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(Act(body=GOOD)).text == "Hello"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_25_credentials_never_cross_origins(status: int) -> None:
    async def scene(server: MisbehavingServer) -> None:
        other = server.url.replace("127.0.0.1", "localhost")
        act = Act(status=status, headers={"location": f"{other}/chat/completions"})
        async with MisbehavingServer(act) as first:
            agent = OpenAIAgent("A", "m", first.url, key=KEY, headers={"x-api-key": KEY})
            _, error = await listen(agent)
            assert isinstance(error, Transport) and "redirects" in str(error)
            assert "localhost" in str(error) and KEY not in str(error)
        assert not server.requests

    with_server(Act(body=GOOD), scene)


def test_25_a_redirect_on_the_same_server_keeps_the_post() -> None:
    there = Act(status=308, headers={"location": "/v2/chat/completions?x=1"}, framing="length")
    heard = ask([there, Act(body=GOOD)])
    assert heard.text == "Hello"
    assert [r.target for r in heard.server.requests] == [
        "/v1/chat/completions",
        "/v2/chat/completions?x=1",
    ]
    assert heard.server.requests[1].json()["messages"]


def test_26_a_chunk_costs_microseconds() -> None:
    one = event(chunk(" word"))
    best = 1e9
    for _ in range(5):
        got, start = Incoming("A"), time.process_time()
        for _ in range(20):
            got.feed(one * 100)
        best = min(best, (time.process_time() - start) / 2000)
    assert best < 15e-6  # bench/agents/chunk.py measures; this only catches a disaster


def test_27_the_agents_own_model_is_asked_for() -> None:
    request = ChatRequest(messages=ASK.messages, model="council/five")
    assert ask(Act(body=GOOD), request).server.requests[0].json()["model"] == "m"


def test_28_every_knob_reaches_the_wire() -> None:
    request = ChatRequest(
        messages=(
            Message("system", "Be brief"),
            Message("user", "Hi", name="Ann"),
            Message("assistant", tool_calls=(ToolCall("c1", "f", "{}"),)),
            Message("tool", "42", tool_call_id="c1"),
        ),
        sampling=Sampling(
            temperature=0.0, top_k=5, top_p=0.9, min_p=0.1, repeat_penalty=1.1, seed=7,
            frequency_penalty=0.2, presence_penalty=0.3, logit_bias={5: -1.0}, max_tokens=3,
            stop=("x",), logprobs=2,
        ),
        tools=(Tool("f", "does f", {"type": "object"}, True),),
        tool_choice="f",
        parallel_tool_calls=False,
        format=Format("schema", {"type": "object"}),
        template_args={"reasoning_effort": "low", "enable_thinking": False},
    )  # fmt: skip
    sent = ask(Act(body=GOOD), request, extra={"user": "u1"}).server.requests[0].json()
    assert sent["messages"][2] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    assert sent["messages"][3] == {"role": "tool", "content": "42", "tool_call_id": "c1"}
    assert sent["logit_bias"] == {"5": -1.0} and sent["top_logprobs"] == 2 and sent["logprobs"]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert sent["chat_template_kwargs"] == {"enable_thinking": False} and sent["user"] == "u1"
    for name, value in (("temperature", 0.0), ("top_k", 5), ("min_p", 0.1), ("seed", 7),
                        ("max_tokens", 3), ("stop", ["x"]), ("reasoning_effort", "low"),
                        ("parallel_tool_calls", False), ("repeat_penalty", 1.1)):  # fmt: skip
        assert sent[name] == value
    assert "n" not in sent and "typical_p" not in sent


def test_29_the_tests_that_were_missing_are_here() -> None:
    """Each gap named by the report has its test: most are rows of test_wire_rows.py."""
    from wire_rows import ROWS

    numbers = {row.number for row in ROWS}
    assert {1, 8, 17, 19, 23, 31, 33, 35, 61, 62, 65, 71} <= numbers
