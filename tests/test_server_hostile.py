"""Clients that are broken, gone or hostile: the server answers the others meanwhile."""

import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from llamoot.agents.local import LocalAgent
from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.server import connections
from llamoot.server.gate import Limits
from llamoot.server.registry import Entry, Registry
from llamoot.server.state import State
from serving import agents, call, serving

pytestmark = pytest.mark.pure
CHAT = "/v1/chat/completions"
HELLO = {"model": "B", "messages": [{"role": "user", "content": "hi"}]}
PATIENCE = 3.0  # seconds that another client may have to wait on a busy machine


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def post(body: bytes, path: str = CHAT) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def served(port: int) -> float:
    """Seconds that another client waits for its answer now."""
    began = time.monotonic()
    assert call(port, CHAT, HELLO)[0] == 200
    return time.monotonic() - began


def wait(until: Callable[[], bool], seconds: float = 8) -> None:
    limit = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def slow() -> ScriptedAgent:
    return ScriptedAgent("A", Reply(text="word " * 5000, delay=0.01))


@pytest.fixture
def port(slow: ScriptedAgent) -> Iterator[int]:
    with serving(agents(slow, ScriptedAgent("B", "hello"))) as number:
        yield number


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_killed_outright_cancels_its_answer(
    port: int, slow: ScriptedAgent, stream: bool
) -> None:
    body = json.dumps(HELLO | {"model": "A", "stream": stream})
    code = (
        "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]));"
        "c.request('POST', sys.argv[2], sys.argv[3]); c.getresponse().read()"
    )
    client = subprocess.Popen([sys.executable, "-c", code, str(port), CHAT, body])
    wait(lambda: slow.running == 1)
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    wait(lambda: slow.cancelled == 1, 2)
    assert slow.running == 0 and served(port) < PATIENCE


def test_leaving_before_the_first_token_cancels_too() -> None:
    silent = ScriptedAgent("A", Reply(text="word", first_delay=60))
    with serving(agents(silent)) as port:
        for stream in (True, False):
            client = connect(port)
            client.sendall(post(json.dumps(HELLO | {"stream": stream}).encode()))
            wait(lambda: silent.running == 1)
            client.close()
            wait(lambda: silent.running == 0, 2)
    assert silent.cancelled == 2


def test_hundreds_of_dripping_clients_are_shut_out_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    with serving(agents(ScriptedAgent("B", "hello")), Limits(body_seconds=1.0)) as port:
        heads = [b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ", post(b"{" + b" " * 60)[:-50]]
        clients = [connect(port) for _ in range(300)]
        for i, client in enumerate(clients):
            client.sendall(heads[i % 2])
        ends = time.monotonic() + 10
        open_clients = list(clients)
        while open_clients and time.monotonic() < ends:
            for client in list(open_clients):
                try:
                    client.send(b"a")
                except OSError:
                    open_clients.remove(client)
            assert served(port) < PATIENCE
            time.sleep(0.1)
        for client in clients:
            client.close()
    assert not open_clients


def test_clients_that_never_read_disturb_nobody_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llamoot.server.stream.WRITE_SECONDS", 1.0)
    endless = ScriptedAgent("A", Reply(tokens=("word " * 2000,) * 3000))
    with serving(agents(endless, ScriptedAgent("B", "hello"))) as port:
        deaf = [connect(port) for _ in range(4)]
        for client in deaf:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(post(json.dumps(HELLO | {"model": "A", "stream": True}).encode()))
        wait(lambda: endless.running == 4)
        assert served(port) < PATIENCE
        wait(lambda: endless.running == 0)
        for client in deaf:
            client.close()


def test_thousands_of_idle_connections_leave_room_for_others(port: int) -> None:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    n = min(4000, (most - 500) // 2)  # both ends of each live in this process
    if n < 500:
        pytest.skip(f"this process may open {most} files only")
    idle = []
    try:
        idle = [connect(port) for _ in range(n)]
        for client in idle[::2]:  # half of them have asked something and stay
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert all(client.recv(20).startswith(b"HTTP/1.1 200") for client in idle[::2])
        assert served(port) < PATIENCE
    finally:
        for client in idle:
            client.close()
    assert served(port) < PATIENCE


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_100_mb_is_refused_without_being_kept(port: int, announced: bool) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = []

    def send() -> None:
        with closing(connect(port)) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n"
            piece = b"x" * (1 << 20)
            if announced:
                head += f"Content-Length: {100 << 20}\r\n\r\n"
            else:
                head += "Transfer-Encoding: chunked\r\n\r\n"
                piece = b"100000\r\n" + piece + b"\r\n"
            client.sendall(head.encode())
            try:
                for _ in range(100):
                    client.sendall(piece)
            except OSError:
                pass  # refused and closed before it was all sent
            try:
                answers.append(client.recv(100))
            except OSError:
                answers.append(b"")

    sender = threading.Thread(target=send)
    sender.start()
    waits = []
    while sender.is_alive() or not waits:
        waits.append(served(port))
    sender.join()
    assert max(waits) < PATIENCE
    assert answers[0] == b"" or b" 413 " in answers[0]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000, f"{grown} kB"


@pytest.mark.model
def test_a_prompt_of_ten_million_characters_holds_nobody_up(shared: pathlib.Path) -> None:
    path = shared / "models" / "stories260K.gguf"
    if not path.is_file():
        pytest.skip("stories260K.gguf is not beside this checkout")
    local = LocalAgent("S", path)
    entries = [Entry("S", "local", lambda: local)]
    entries.append(Entry("B", "remote", lambda: ScriptedAgent("B", "hello")))
    with serving(State(Registry(entries))) as port:
        call(port, CHAT, HELLO | {"model": "S", "max_tokens": 1})
        got = []
        body = HELLO | {"model": "S"}
        body["messages"] = [{"role": "user", "content": "some word " * 1_000_000}]

        def ask() -> None:
            with closing(connect(port)) as client:
                client.settimeout(120)
                head = post(json.dumps(body).encode())
                client.sendall(head.replace(b"localhost", b"localhost\r\nConnection: close", 1))
                got.append(client.recv(4000) + client.recv(4000))

        asking = threading.Thread(target=ask)
        asking.start()
        waits = []
        while asking.is_alive():
            waits.append(served(port))
            time.sleep(0.02)
        asking.join()
    assert b" 400 " in got[0] and b"context_length_exceeded" in got[0]
    assert max(waits) < PATIENCE, f"{max(waits):.2f} s"
