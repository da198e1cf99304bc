"""A real server on loopback for tests: uvicorn in a thread, spoken to over sockets."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from llamoot.server.app import create_app
from llamoot.server.connections import Connection
from llamoot.server.gate import Limits
from llamoot.server.registry import Entry, Registry
from llamoot.server.state import State


@contextmanager
def serving(state: State, limits: Limits | None = None) -> Iterator[int]:
    """The port of a running server."""
    config = uvicorn.Config(
        create_app(state, limits or Limits()),
        port=0,
        http=Connection,
        ws="none",
        lifespan="on",
        log_level="error",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def agents(*given: Any) -> State:
    """A state that serves these agents under their ids."""
    return State(Registry([Entry(a.id, "remote", lambda a=a: a) for a in given]))


def call(
    port: int, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str = ""
) -> tuple[int, dict[str, str], Any]:
    """(status, headers, body); JSON bodies are decoded, others are text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    connection.request(method, path, raw, headers or {})
    response = connection.getresponse()
    text = response.read().decode()
    found = {k.lower(): v for k, v in response.getheaders()}
    connection.close()
    is_json = found.get("content-type", "").startswith("application/json")
    return response.status, found, json.loads(text) if is_json else text


def events(text: str) -> list[Any]:
    """The payloads of a stream of events; "[DONE]" stays a string."""
    payloads = [
        line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")
    ]
    return [p if p == "[DONE]" else json.loads(p) for p in payloads]
