"""Who is let in, what is too large or too slow, and that one bad client disturbs nobody."""

import http.client
import socket
import time
from pathlib import Path

import pytest

from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.errors import ConfigError
from llamoot.server import connections
from llamoot.server.gate import Limits, read_keys
from serving import agents, call, serving

pytestmark = pytest.mark.pure
HELLO = {"model": "A", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def test_a_key_is_needed_where_keys_are_set() -> None:
    limits = Limits(keys=("first-key", "second-key"))
    with serving(agents(ScriptedAgent("A", "hi")), limits) as port:
        status, headers, body = call(port, CHAT, HELLO)
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert body["error"]["code"] == "invalid_api_key"
        assert call(port, CHAT, HELLO, {"Authorization": "Bearer second-key"})[0] == 200
        assert call(port, CHAT, HELLO, {"x-api-key": "first-key"})[0] == 200
        assert call(port, CHAT, HELLO, {"x-api-key": "first-kez"})[0] == 401
        assert call(port, "/health")[0] == 200 and call(port, "/v1/models")[0] == 401


def test_keys_never_show_in_a_repr() -> None:
    assert "very-secret" not in repr(Limits(keys=("very-secret",)))


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nothing\n\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(file)


def test_other_hosts_and_origins_are_refused() -> None:
    limits = Limits(origins=("https://app.example",))
    with serving(agents(ScriptedAgent("A", "hi")), limits) as port:
        status, _, body = call(port, "/v1/models", headers={"Host": "evil.example"})
        assert status == 403 and body["error"]["code"] == "host_not_allowed"
        status, _, body = call(port, CHAT, HELLO, {"Origin": "https://evil.example"})
        assert status == 403 and body["error"]["code"] == "origin_not_allowed"
        _, headers, _ = call(port, CHAT, HELLO, {"Origin": "https://app.example"})
        assert headers["access-control-allow-origin"] == "https://app.example"
        wish = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        status, headers, _ = call(port, CHAT, headers=wish, method="OPTIONS")
        assert status == 204 and "authorization" in headers["access-control-allow-headers"]


def test_a_body_that_is_too_large_is_413_and_names_the_limit() -> None:
    with serving(agents(ScriptedAgent("A", "hi")), Limits(max_body=1000)) as port:
        status, _, body = call(port, CHAT, b"x" * 2000)
        assert status == 413 and "1000" in body["error"]["message"]
        client = socket.create_connection(("127.0.0.1", port))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(3):
            client.sendall(b"200\r\n" + b"y" * 512 + b"\r\n")
        assert b"413" in client.recv(2000).split(b"\r\n")[0]
        client.close()


def test_a_body_that_drips_is_408() -> None:
    with serving(agents(ScriptedAgent("A", "hi")), Limits(body_seconds=0.3)) as port:
        client = socket.create_connection(("127.0.0.1", port))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
        )
        client.sendall(head.encode())
        began = time.monotonic()
        assert b"408" in client.recv(2000).split(b"\r\n")[0]
        assert time.monotonic() - began < 3
        client.close()


def test_compressed_bodies_are_415() -> None:
    with serving(agents(ScriptedAgent("A", "hi"))) as port:
        assert call(port, CHAT, b"xx", {"Content-Encoding": "gzip"})[0] == 415


def test_headers_that_drip_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with serving(agents(ScriptedAgent("A", "hi"))) as port:
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /health HTTP/1.1\r\nHo")
        client.settimeout(5)
        assert client.recv(100) == b""
        assert call(port, "/health")[0] == 200
        client.close()


def test_a_full_server_answers_429_with_retry_after() -> None:
    slow = ScriptedAgent("A", Reply(text="x " * 200, delay=0.05))
    with serving(agents(slow), Limits(max_requests=1)) as port:
        first = http.client.HTTPConnection("127.0.0.1", port)
        first.request("POST", CHAT, b'{"messages":[{"role":"user","content":"x"}]}')
        limit = time.monotonic() + 5
        while not slow.running and time.monotonic() < limit:
            time.sleep(0.01)
        status, headers, body = call(port, CHAT, HELLO)
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert body["error"]["code"] == "rate_limit_exceeded"
        first.close()


def test_a_client_that_never_reads_disturbs_nobody() -> None:
    long = ScriptedAgent("A", Reply(text="word " * 200_000))
    with serving(agents(long, ScriptedAgent("B", "hello"))) as port:
        deaf = socket.create_connection(("127.0.0.1", port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = b'{"model":"A","stream":true,"messages":[{"role":"user","content":"x"}]}'
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.sendall(head.encode() + body)
        time.sleep(0.3)
        began = time.monotonic()
        assert call(port, CHAT, HELLO | {"model": "B"})[0] == 200
        assert time.monotonic() - began < 3
        deaf.close()


def test_the_page_allows_nothing_from_elsewhere() -> None:
    with serving(agents(ScriptedAgent("A", "hi"))) as port:
        status, headers, text = call(port, "/")
        assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
        assert "http://" not in text and "https://" not in text
        for part in ("page.css", "page.js", "view.js", "icon.svg", "runs/abc"):
            assert call(port, f"/{part}")[0] == 200
        assert call(port, "/nothing.js")[0] == 404


def test_metrics_count_what_was_answered() -> None:
    with serving(agents(ScriptedAgent("A", "one two three"))) as port:
        call(port, CHAT, HELLO)
        _, headers, text = call(port, "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'llamoot:requests_total{model="A",outcome="stop"} 1' in text
    assert 'llamoot:time_to_first_token_seconds_count{model="A"} 1' in text
    assert "llamacpp:tokens_predicted_total 0" not in text
