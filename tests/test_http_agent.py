"""The HTTP agent over real sockets: what it repeats, learns, shares, refuses and keeps secret."""

import asyncio
import contextlib
import io
import json
import logging
import pathlib
import random
import ssl
import subprocess
import sys
import time
import traceback

import msgspec
import pytest

from asking import ASK, KEY, ask, listen, quick, with_server
from llamoot.agents.client import Client, Timers
from llamoot.agents.embeddings import RemoteEmbedder, list_models
from llamoot.agents.endpoint import Endpoint
from llamoot.agents.http import OpenAIAgent
from llamoot.agents.misbehave import Act, MisbehavingServer, Received, answer
from llamoot.agents.types import ChatRequest, Message, Sampling
from llamoot.errors import ConfigError, Stream, Timeout, Transport
from wire_rows import GOOD, H, chunk, event, stream

pytestmark = pytest.mark.pure
SAMPLED = ChatRequest(
    messages=ASK.messages, sampling=Sampling(temperature=0.5, seed=7, max_tokens=9)
)


def refuse(body: object, status: int = 400) -> Act:
    text = json.dumps(body).encode()
    return Act(status=status, body=text, framing="length", content_type="application/json")


# -- learned downgrades -------------------------------------------------------------------

OPENAI = {
    "error": {
        "message": "Unsupported value: 'temperature' does not support 0.5 with this model.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "unsupported_value",
    }
}
MISTRAL = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"],
                       "msg": "Extra inputs are not permitted"}]}  # fmt: skip
USAGE = {
    "object": "error",
    "message": {
        "detail": [
            {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}
        ]
    },
}
LIMIT = {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this "
                   "model. Use 'max_completion_tokens' instead."}}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "gone", "new"),
    [
        (OPENAI, 400, "temperature", {}),
        (MISTRAL, 422, "seed", {"random_seed": 7}),
        (USAGE, 422, "stream_options", {}),
        (LIMIT, 400, "max_tokens", {"max_completion_tokens": 9}),
    ],
    ids=["temperature", "seed", "stream_options", "max_tokens"],
)
def test_a_refused_parameter_is_dropped_or_renamed_alone_and_remembered(
    body: object, status: int, gone: str, new: dict[str, int]
) -> None:
    async def scene(server: MisbehavingServer) -> None:
        for name in "AB":  # the second agent of the endpoint and model knows already
            _, error = await listen(OpenAIAgent(name, "m", server.url, retries=0), SAMPLED)
            assert error is None
        first, second, third = (request.json() for request in server.requests)
        assert second == {**{k: v for k, v in first.items() if k != gone}, **new}
        assert third == second and gone in first
        other = OpenAIAgent("C", "another", server.url, retries=0)
        await listen(other, SAMPLED)
        assert gone in server.requests[3].json(), "another model is asked afresh"

    with_server([refuse(body, status), Act(body=GOOD)], scene)


def test_both_names_of_a_parameter_refused_drops_it() -> None:
    first = refuse({"message": "unknown field `seed`"})
    second = refuse({"message": "unknown field `random_seed`"})
    sent = [r.json() for r in ask([first, second, Act(body=GOOD)], SAMPLED).server.requests]
    assert "random_seed" in sent[1] and not {"seed", "random_seed"} & set(sent[2])


def test_a_server_that_does_not_stream_is_asked_for_a_whole_answer() -> None:
    whole = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}
    plays = [refuse({"error": "'stream' is not supported"}), refuse(whole, 200)]
    heard = ask(plays, path="/whole")
    assert heard.text == "Hello"
    assert not {"stream", "stream_options"} & set(heard.server.requests[1].json())


@pytest.mark.parametrize(
    "message",
    ["Invalid 'messages': too short", "max_tokens is too large: 9", "bad request",
     "This model's maximum context length is 10 tokens, max_tokens is 9"],
)  # fmt: skip
def test_nothing_is_learned_where_nothing_can_be_left_out(message: str) -> None:
    heard = ask(refuse({"error": {"message": message}}), SAMPLED)
    assert isinstance(heard.error, Transport) and len(heard.server.requests) == 1
    overflow = "context length" in message
    assert heard.error.code == ("context_length_exceeded" if overflow else "agent_unreachable")


def test_a_server_that_refuses_everything_is_given_up() -> None:
    def play(request: Received) -> Act:
        names = [n for n in request.json() if n not in ("model", "messages")]
        return refuse({"error": {"message": f"unknown '{names[0]}'" if names else "no"}})

    heard = ask(play, SAMPLED)
    assert isinstance(heard.error, Transport) and len(heard.server.requests) <= 9


# -- retries ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 501])
def test_the_callers_own_mistakes_are_not_repeated(status: int) -> None:
    heard = ask(Act(status=status, body=b"no"))
    assert isinstance(heard.error, Transport) and heard.error.http_status == status
    assert len(heard.server.requests) == 1


@pytest.mark.parametrize(
    "act",
    [
        Act(status=529, headers={"retry-after-ms": "1"}),
        Act(raw=b"", end="reset"),
        Act(raw=b"", end="cut"),
        Act(body=b"", framing="length"),
        Act(raw=b"SSH-2.0-OpenSSH\r\n"),
        Act(body=event({"error": {"message": "overloaded", "type": "server_error"}})),
        Act(body=b": ping\n\n", end="reset"),
    ],
    ids=["529", "reset", "closed", "empty", "no http", "error frame", "reset after ping"],
)
def test_what_failed_before_the_first_token_is_repeated(act: Act) -> None:
    heard = ask([act, Act(body=GOOD)])
    assert heard.error is None and heard.text == "Hello" and len(heard.server.requests) == 2


def test_repeats_end_and_the_last_error_is_told() -> None:
    heard = ask(Act(status=503, headers={"retry-after-ms": "1"}, body=b"down"), retries=2)
    assert isinstance(heard.error, Transport) and heard.error.http_status == 503
    assert len(heard.server.requests) == 3


def test_a_server_that_asks_for_a_long_wait_is_given_up_and_its_wish_is_told() -> None:
    heard = ask(Act(status=429, headers={"retry-after": "999"}))
    assert isinstance(heard.error, Transport) and heard.error.retry_after == 999
    assert len(heard.server.requests) == 1


def test_no_wait_goes_beyond_the_total_limit() -> None:
    start = time.perf_counter()
    heard = ask(Act(status=503, headers={"retry-after": "5"}), timers=quick(total=1.0))
    assert isinstance(heard.error, Transport) and time.perf_counter() - start < 0.9


def test_an_exhausted_quota_is_not_asked_again() -> None:
    body = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    heard = ask(refuse(body, 429))
    assert heard.error is not None and heard.error.code == "insufficient_quota"
    assert len(heard.server.requests) == 1


def test_a_loading_model_is_waited_for() -> None:
    loading = refuse({"error": {"code": 503, "message": "Loading model"}}, 503)
    heard = ask([loading, loading, Act(body=GOOD)], retries=0)
    assert heard.text == "Hello"


def test_a_stale_pooled_socket_is_asked_once_more_on_a_new_one() -> None:
    async def scene(server: MisbehavingServer) -> None:
        agent = OpenAIAgent("A", "m", server.url, retries=0)
        for _ in range(2):
            assert (await listen(agent))[1] is None
        assert server.connections == 2

    seen: set[int] = set()

    def play(request: Received) -> Act:
        # The second request on a socket finds it dead, as after the server's idle timeout.
        stale = request.connection in seen
        seen.add(request.connection)
        return Act(raw=b"", end="cut") if stale else Act(body=GOOD)

    with_server(play, scene)


def test_an_early_refusal_of_a_large_body_is_heard() -> None:
    big = ChatRequest(messages=(Message("user", "x" * (4 << 20)),))
    heard = ask(Act(status=413, body=b'{"error":"too big"}', framing="length"), big)
    assert isinstance(heard.error, Transport) and heard.error.http_status == 413


def test_any_bytes_from_a_server_end_in_an_answer_or_a_typed_error() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    good = head + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
    chance = random.Random(5)

    def play(request: Received) -> Act:
        raw = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            at, kind = chance.randrange(len(raw)), chance.randrange(3)
            if kind == 0:
                raw[at] = chance.randrange(256)
            elif kind == 1:
                del raw[at : at + chance.randrange(40)]
            else:
                raw[at:at] = chance.choice([b"\r\n", b"\0", b"9" * 30, b"data: ", b"\xff", b"{"])
        return Act(raw=bytes(raw), end=chance.choice(["cut", "proper", "reset"]))

    async def scene(server: MisbehavingServer) -> None:
        for i in range(300):
            tokens, error = await listen(OpenAIAgent("A", "m", server.url, retries=0))
            ends = [t for t in tokens if t.finish_reason]
            assert len(ends) == (error is None), i
            assert error is None or error.partial == "".join(t.text for t in tokens)

    with_server(play, scene)


LENGTH = b"Content-Length: %d\r\n\r\n" % len(GOOD)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH + GOOD,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH + GOOD,
        b"HTTP/1.0 200 OK\r\n\r\n" + GOOD,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + GOOD,
        b"HTTP/1.1 200\r\n" + LENGTH + GOOD,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n%x;ext=1\r\n" % len(GOOD)
        + GOOD
        + b"\r\n0\r\nTrailer: x\r\n\r\n",
    ],
    ids=["100", "103", "http/1.0", "until close", "no reason", "extension and trailer"],
)
def test_every_legal_framing_of_a_response_is_read(raw: bytes) -> None:
    heard = ask(Act(raw=raw), retries=0)
    assert heard.error is None and heard.text == "Hello"


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_compression_that_cannot_be_read_is_a_typed_error(coding: str) -> None:
    heard = ask(Act(body=b"\x1f\x8bnonsense", headers={"content-encoding": coding}))
    assert isinstance(heard.error, Transport if coding != "gzip" else Stream)
    assert len(heard.server.requests) == 1 and not heard.tokens


def test_headers_without_end_are_cut_off() -> None:
    heard = ask(Act(raw=b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200_000, end="hang"), retries=0)
    assert isinstance(heard.error, Transport)


def test_an_unspeakable_host_and_a_missing_ca_file_are_typed_errors() -> None:
    agent = OpenAIAgent("A", "m", f"http://{'a' * 70}.example", retries=0, proxy="")
    _, error = asyncio.run(listen(agent))
    assert isinstance(error, Transport)
    with pytest.raises(ConfigError, match="ca_file"):
        OpenAIAgent("A", "m", "https://h", ca_file="/nowhere/ca.pem")


# -- connections --------------------------------------------------------------------------


def test_many_calls_at_once_share_a_bounded_number_of_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llamoot.agents.pool.MOST", 16)

    async def scene(server: MisbehavingServer) -> None:
        agents = [OpenAIAgent(f"A{i}", "m", server.url) for i in range(300)]
        results = await asyncio.gather(*(listen(agent) for agent in agents))
        assert all(error is None for _, error in results)
        assert server.connections <= 16

    with_server(Act(body=GOOD), scene)


def test_the_socket_is_used_again_although_the_end_of_the_body_came_late() -> None:
    async def scene(server: MisbehavingServer) -> None:
        agent = OpenAIAgent("A", "m", server.url)
        for _ in range(3):
            assert (await listen(agent))[1] is None
            await asyncio.sleep(0.2)  # the last bytes follow [DONE] 100 ms later
        assert server.connections == 1

    with_server(Act(body=(GOOD, b"\n"), gap=0.05), scene)


def test_a_finished_answer_does_not_wait_for_a_server_that_never_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llamoot.agents.http._TAIL_S", 0.1)
    start = time.perf_counter()
    heard = ask(Act(body=stream(H, chunk(finish="stop"), done=False), end="hang"))
    assert heard.text == "Hel" and heard.error is None and time.perf_counter() - start < 1.0


def test_a_slow_reader_holds_the_server_up_instead_of_filling_memory() -> None:
    async def scene(server: MisbehavingServer) -> None:
        tokens = OpenAIAgent("A", "m", server.url).chat(ASK)
        await anext(tokens)
        await asyncio.sleep(0.3)
        frame = tokens.ag_frame  # type: ignore[attr-defined]
        assert frame.f_locals["connection"]._queued < 8 << 20
        await tokens.aclose()  # type: ignore[attr-defined]

    with_server(Act(body=event(chunk("x" * 65536)) * 600), scene)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
               "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
               "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.pem"]  # fmt: skip
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl makes no certificate here: {error}")
    return folder


def served_with(certificate: pathlib.Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "ca.pem", certificate / "key.pem")
    return context


def test_a_custom_ca_is_trusted_and_an_unknown_one_is_not(certificate: pathlib.Path) -> None:
    async def run() -> None:
        async with MisbehavingServer(Act(body=GOOD), served_with(certificate)) as server:
            known = OpenAIAgent("A", "m", server.url, ca_file=str(certificate / "ca.pem"))
            tokens, error = await listen(known)
            assert error is None and len(tokens) == 3
            _, error = await listen(OpenAIAgent("A", "m", server.url))
            assert isinstance(error, Transport) and "certificate" in str(error)
            assert not error.retryable

    asyncio.run(run())


class Proxy:
    """A small forward proxy: CONNECT is tunnelled, everything else is noted and refused."""

    def __init__(self) -> None:
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, target, _ = head.split("\r\n")[0].split(" ")
        if method != "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD)
            await writer.drain()
            return
        host, port = target.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
                sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


def test_https_goes_through_a_proxy_by_a_tunnel_with_its_own_password(
    certificate: pathlib.Path,
) -> None:
    async def run() -> None:
        proxy = Proxy()
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with MisbehavingServer(Act(body=GOOD), served_with(certificate)) as server:
            agent = OpenAIAgent(
                "A", "m", server.url, key=KEY, ca_file=str(certificate / "ca.pem"),
                proxy=f"http://user:pass@127.0.0.1:{port}",
            )  # fmt: skip
            tokens, error = await listen(agent)
            assert error is None and len(tokens) == 3
            assert proxy.heads[0].startswith("CONNECT 127.0.0.1:")
            assert "Proxy-Authorization: Basic dXNlcjpwYXNz" in proxy.heads[0]
            assert KEY not in proxy.heads[0]
            assert "proxy-authorization" not in server.requests[0].headers
            await agent.close()
        listener.close()

    asyncio.run(run())


def test_http_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        proxy = Proxy()
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("http_proxy", raising=False)
        monkeypatch.setenv("NO_PROXY", "other.example,.internal")
        monkeypatch.delenv("no_proxy", raising=False)
        tokens, error = await listen(OpenAIAgent("A", "m", "http://models.example:81/v1"))
        assert error is None and len(tokens) == 3
        first = proxy.heads[0].split("\r\n")[0]
        assert first == "POST http://models.example:81/v1/chat/completions HTTP/1.1"
        listener.close()

    asyncio.run(run())


def test_offline_forbids_other_machines_but_not_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMOOT_OFFLINE", "1")
    assert ask(Act(body=GOOD)).text == "Hello"
    _, error = asyncio.run(listen(OpenAIAgent("A", "m", "https://models.example")))
    assert isinstance(error, Transport) and "LLAMOOT_OFFLINE" in str(error)


# -- secrets ------------------------------------------------------------------------------


def test_the_key_is_in_no_log_error_repr_traceback_or_dump(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    acts = [
        Act(status=401, body=echo),
        Act(status=500, body=f"Authorization: Bearer {KEY}".encode()),
        Act(body=event(H) + b"data: " + echo + b"\n\n"),
        Act(body=f"<html>{KEY}</html>".encode()),
        Act(body=b'{"oops": "' + KEY.encode()),
        Act(body=b"".join(b"data: " + KEY.encode() + b"\n\n" for _ in range(30))),
        Act(status=302, headers={"location": f"http://h/?key={KEY}"}),
        Act(raw=KEY.encode()),
        Act(before=9.0),
    ]
    written = io.StringIO()
    for act in acts:
        for path in ("", f"?key={KEY}"):
            heard = ask(act, timers=quick(first_token=0.1, total=0.3), retries=0, path=path)
            assert heard.error is not None
            fields = {k: str(v) for k, v in vars(heard.error).items()}
            written.write(repr(fields) + repr(heard.error) + repr(heard.agent) + repr(heard.tokens))
            written.write(msgspec.json.encode(heard.agent.last_call).decode())
            written.write("".join(traceback.format_exception(heard.error)))
            assert heard.server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in written.getvalue() + caplog.text
    assert KEY[3:] not in written.getvalue() + caplog.text


# -- embeddings, models -------------------------------------------------------------------


def test_embeddings_come_in_order_and_in_both_forms() -> None:
    def play(request: Received) -> Act:
        texts = request.json()["input"]
        rows = [{"index": i, "embedding": [float(len(t)), 1.0]} for i, t in enumerate(texts)]
        if "bbb" in texts:
            rows[0]["embedding"] = "AABAQAAAgD8="  # 3.0, 1.0 as base64 of float32
        return refuse({"data": rows[::-1]}, 200)

    async def scene(server: MisbehavingServer) -> None:
        embedder = RemoteEmbedder("e", server.url, batch=2)
        assert await embedder.embed(["a", "bb", "bbb"]) == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
        assert [len(r.json()["input"]) for r in server.requests] == [2, 1]

    with_server(play, scene)


@pytest.mark.parametrize(
    "body", [{"data": []}, {"data": [{"embedding": []}]}, {"data": [{"embedding": ["x"]}]}, [], {}]
)
def test_unusable_embeddings_are_an_error(body: object) -> None:
    async def scene(server: MisbehavingServer) -> None:
        with pytest.raises(Stream):
            await RemoteEmbedder("e", server.url).embed(["a"])

    with_server(refuse(body, 200), scene)


def test_the_models_of_an_endpoint_are_listed() -> None:
    async def scene(server: MisbehavingServer) -> None:
        client = Client("A", Endpoint(server.url), Timers())
        served = [(m.id, m.context_length) for m in await list_models(client)]
        assert served == [("m1", 8192), ("m2", 4096), ("m3", None)]
        assert server.requests[0].method == "GET" and server.requests[0].target == "/v1/models"

    rows = [{"id": "m1", "max_model_len": 8192}, {"id": "m2", "meta": {"n_ctx_train": 4096}}]
    with_server(refuse({"data": [*rows, {}, {"name": "m3"}]}, 200), scene)


# -- peers, start-up ----------------------------------------------------------------------


@pytest.mark.peer
def test_openai_and_this_agent_hear_the_same_text_from_the_same_server() -> None:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    pieces = ("Grüße", " aus", " 日本", " 😀", "\n")

    async def scene(server: MisbehavingServer) -> None:
        tokens, error = await listen(OpenAIAgent("A", "m", server.url))
        client = openai.AsyncOpenAI(base_url=server.url, api_key="x")
        parts = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        theirs = [p.choices[0].delta.content or "" async for p in parts if p.choices]
        await client.close()
        assert error is None and "".join(t.text for t in tokens) == "".join(theirs)
        assert "".join(theirs) == "".join(pieces)

    with_server(Act(body=answer(*pieces), drip=5), scene)


def test_the_first_request_is_sent_early_and_without_the_engine() -> None:
    code = (
        "import asyncio, sys, time\n"
        "from llamoot.agents.catalog import open_agent\n"
        "from llamoot.agents.types import *\n"
        "async def main():\n"
        "    agent = open_agent(AgentSpec(id='A', model='m', base_url=sys.argv[1]))\n"
        "    ask = ChatRequest(messages=(Message('user', 'Hi'),))\n"
        "    text = ''.join([t.text async for t in agent.chat(ask)])\n"
        "    print(text, time.process_time())\n"
        "asyncio.run(main())\n"
        "assert not {'numba', 'numpy', 'llvmlite'} & set(sys.modules), 'the engine was imported'\n"
    )

    async def scene(server: MisbehavingServer) -> None:
        for i in range(2):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, server.url, stdout=subprocess.PIPE
            )
            while len(server.requests) <= i:
                await asyncio.sleep(0.002)
            said, _ = await process.communicate()
            assert process.returncode == 0
            assert said.startswith(b"Hello ")
            # CPU, not clock: other processes must not decide a test.
            assert float(said.split()[1]) < 0.4, "seconds until the first answer"

    with_server(Act(body=GOOD), scene)


def test_a_timeout_of_nothing_delivered_keeps_its_name() -> None:
    heard = ask(Act(before=9.0), timers=quick(first_token=0.1))
    assert isinstance(heard.error, Timeout) and "first_token" in str(heard.error)
    assert len(heard.server.requests) == 1, "a limit that ran out is not run again"
