"""The server over real, small models and a council of both: what is promised with real tokens."""

import http.client
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llamoot.agents.catalog import open_agent
from llamoot.agents.files import BUILT_IN
from llamoot.agents.local import LocalAgent
from llamoot.agents.model import Model, close_model, open_model
from llamoot.agents.types import AgentSpec
from llamoot.council.config import parse
from llamoot.server.build import registry_of
from llamoot.server.registry import Entry, Registry
from llamoot.server.state import State
from serving import call, events, serving

pytestmark = pytest.mark.model

CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "What is 27 + 48?"}]
ENDLESS = {"logit_bias": {"1": -100, "2": -100}, "max_tokens": 400}  # never ends by itself
SUM = {
    "type": "object",
    "properties": {"sum": {"enum": [1, 2]}},
    "required": ["sum"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SUM}}


@pytest.fixture(scope="session")
def stories(shared: pathlib.Path) -> pathlib.Path:
    path = shared / "models" / "stories260K.gguf"
    if not path.is_file():
        pytest.skip("stories260K.gguf is not beside this checkout")
    return path


@pytest.fixture(scope="module")
def port(shared: pathlib.Path) -> Iterator[int]:
    """A server of both models and a council of them."""
    path = shared / "models" / "stories260K.gguf"
    if not (path.is_file() and BUILT_IN.is_file()):
        pytest.skip("one of the two model files is absent")
    config = parse(
        f"""
        [agents.abacus]
        model = "{BUILT_IN}"
        [agents.stories]
        model = "{path}"
        [councils.both]
        members = ["abacus", "stories"]
        protocol = "vote"
        """,
        "test",
    )
    # Opened here first: a machine's very first start compiles kernels for a while.
    held = [open_model(path), open_model(BUILT_IN)]
    with serving(State(registry_of([], [], config, None))) as number:
        yield number
    for model in held:
        close_model(model)


BOTH = pytest.mark.parametrize("model", ["abacus", "stories"])


def said(payloads: list[Any]) -> tuple[str, str]:
    """Text and reasoning of a stream's chunks."""
    deltas = [c["choices"][0]["delta"] for c in payloads[:-1] if c["choices"]]
    return (
        "".join(d.get("content") or "" for d in deltas),
        "".join(d.get("reasoning_content") or "" for d in deltas),
    )


@BOTH
def test_whole_and_streamed_greedy_answers_are_the_same(port: int, model: str) -> None:
    asked = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": 24}
    one, two = (call(port, CHAT, asked)[2] for _ in range(2))
    text, reasoning = said(events(call(port, CHAT, asked | {"stream": True})[2]))
    message = one["choices"][0]["message"]
    assert message == two["choices"][0]["message"]
    assert text == (message["content"] or "")
    assert reasoning == message.get("reasoning_content", "")
    assert text + reasoning
    assert one["usage"]["completion_tokens"] <= 24


@BOTH
def test_one_seed_gives_one_text_beside_any_neighbours(port: int, model: str) -> None:
    asked = {"model": model, "messages": ASK, "seed": 7, "max_tokens": 16, "temperature": 1}
    alone = call(port, CHAT, asked)[2]["choices"][0]["message"]
    several = call(port, CHAT, asked | {"n": 4})[2]["choices"]
    assert several[0]["message"] == alone


def test_logprobs_are_of_the_tokens_that_were_said(port: int) -> None:
    asked = {"model": "stories", "messages": ASK, "max_tokens": 6, "temperature": 0}
    body = call(port, CHAT, asked | {"logprobs": True, "top_logprobs": 3})[2]
    (choice,) = body["choices"]
    rows = choice["logprobs"]["content"]
    assert len(rows) == 6 and all(row["logprob"] <= 0 for row in rows)
    assert all(row["top_logprobs"][0]["token"] == row["token"] for row in rows)
    assert "".join(row["token"] for row in rows) == choice["message"]["content"]


def test_stop_strings_end_the_text_before_them(port: int) -> None:
    asked = {"model": "stories", "messages": ASK, "max_tokens": 40, "temperature": 0}
    full = call(port, CHAT, asked)[2]["choices"][0]["message"]["content"]
    cut = call(port, CHAT, asked | {"stop": [full[5:8]]})[2]["choices"][0]
    assert cut["message"]["content"] == full[: full.index(full[5:8])]
    assert cut["finish_reason"] == "stop"


@BOTH
def test_a_schema_makes_json_of_any_model(port: int, model: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": SUM}}
    asked = {"model": model, "messages": ASK, "response_format": wanted, "max_tokens": 80}
    choice = call(port, CHAT, asked | {"seed": 1})[2]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert json.loads(choice["message"]["content"])["sum"] in (1, 2)


def test_a_required_tool_is_called_whole_and_streamed(port: int) -> None:
    asked = {"model": "abacus", "messages": ASK, "tools": [TOOL], "tool_choice": "required"}
    asked |= {"max_tokens": 100, "seed": 3}
    choice = call(port, CHAT, asked)[2]["choices"][0]
    assert choice["finish_reason"] == "tool_calls", choice
    made = choice["message"]["tool_calls"][0]["function"]
    assert made["name"] == "add" and json.loads(made["arguments"])["sum"] in (1, 2)
    chunks = events(call(port, CHAT, asked | {"stream": True})[2])[:-1]
    pieces = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    assert pieces[0]["id"] and pieces[0]["function"]["name"] == "add"
    assert "".join(p["function"].get("arguments", "") for p in pieces) == made["arguments"]


def test_raw_prompts_as_text_and_as_ids_are_continued_alike(port: int) -> None:
    how = {"model": "stories", "temperature": 0, "max_tokens": 10}
    ids = call(port, "/tokenize", {"model": "stories", "content": "Once", "add_special": True})[2]
    text = call(port, "/v1/completions", how | {"prompt": "Once", "echo": True})[2]["choices"][0]
    same = call(port, "/v1/completions", how | {"prompt": ids["tokens"]})[2]["choices"][0]
    assert text["text"] == "Once" + same["text"] and text["finish_reason"] == "length"
    chunks = events(call(port, "/v1/completions", how | {"prompt": "Once", "stream": True})[2])
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == same["text"]
    rows = call(port, "/v1/completions", how | {"prompt": "Once", "logprobs": 2})[2]["choices"][0]
    assert "".join(rows["logprobs"]["tokens"]) == same["text"]
    assert len(rows["logprobs"]["top_logprobs"][0]) == 2


def test_tokens_there_and_back(port: int) -> None:
    body = {"model": "abacus", "content": "27 + 48"}
    ids = call(port, "/tokenize", body)[2]["tokens"]
    back = call(port, "/detokenize", {"model": "abacus", "tokens": ids})[2]["content"]
    assert back == "27 + 48"
    prompt = call(port, "/apply-template", {"model": "abacus", "messages": ASK})[2]["prompt"]
    assert "What is 27 + 48?" in prompt
    count = call(port, "/v1/messages/count_tokens", {"model": "abacus", "messages": ASK})[2]
    asked = {"model": "abacus", "messages": ASK, "max_tokens": 1}
    assert call(port, CHAT, asked)[2]["usage"]["prompt_tokens"] == count["input_tokens"]


def test_embeddings_have_length_one_and_tell_texts_apart(port: int) -> None:
    rows = call(port, "/v1/embeddings", {"model": "stories", "input": ["a cat", "7 8 9"]})[2]
    one, two = (row["embedding"] for row in rows["data"])
    assert abs(sum(x * x for x in one) - 1) < 1e-4 and one != two
    ids = call(port, "/tokenize", {"model": "stories", "content": "a cat", "add_special": True})[2]
    again = call(port, "/v1/embeddings", {"model": "stories", "input": ids["tokens"]})[2]
    assert again["data"][0]["embedding"] == pytest.approx(one, abs=1e-5)
    assert rows["usage"]["prompt_tokens"] > ids["count"]


def test_responses_and_messages_say_what_chat_says(port: int) -> None:
    full = {"model": "stories", "messages": ASK, "temperature": 0}
    text = call(port, CHAT, full | {"max_tokens": 12})[2]["choices"][0]["message"]["content"]
    asked = {"model": "stories", "input": ASK[0]["content"], "temperature": 0}
    response = call(port, "/v1/responses", asked | {"max_output_tokens": 12})[2]
    assert response["output"][0]["content"][0]["text"] == text
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    message = call(port, "/v1/messages", full | {"max_tokens": 12})[2]
    assert message["content"][0]["text"] == text and message["stop_reason"] == "max_tokens"
    how = full | {"max_tokens": 12, "stop_sequences": [text[4:6]]}
    stopped = call(port, "/v1/messages", how)[2]
    assert stopped["stop_reason"] == "stop_sequence" and stopped["stop_sequence"] == text[4:6]


def test_a_prompt_beyond_the_context_is_400_with_the_numbers(port: int) -> None:
    ask = [{"role": "user", "content": "word " * 3000}]
    for stream in (False, True):
        body = {"model": "stories", "messages": ask, "stream": stream}
        status, _, answer = call(port, CHAT, body)
        assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
        assert "512" in answer["error"]["message"]


def test_a_council_of_both_answers_with_its_evidence(port: int) -> None:
    status, _, body = call(port, CHAT, {"model": "council/both", "messages": ASK})
    assert status == 200 and body["choices"][0]["message"]["content"].strip()
    assert body["council"]["run"] and body["council"]["calls"] >= 2
    parts = (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"])
    assert all(parts) and body["usage"]["total_tokens"] == sum(parts)


def wait(until: Any, seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def model(stories: pathlib.Path) -> Iterator[Model]:
    """The very model that the server opens, for a look inside."""
    opened = open_model(stories)
    yield opened
    close_model(opened)


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_cancels_and_frees_every_block(
    stories: pathlib.Path, model: Model, stream: bool
) -> None:
    agent = LocalAgent("S", stories)
    with serving(State(Registry([Entry("S", "local", lambda: agent)]))) as port:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = {"messages": ASK, "n": 16, "stream": stream, **ENDLESS}
        before = model.engine.n_generated
        client.request("POST", CHAT, json.dumps(body))
        wait(lambda: model.engine.n_generated - before >= 64)
        client.sock.close()
        wait(lambda: model.engine.n_running == 0 and model.engine.n_waiting == 0)
        assert model.engine.n_generated - before < 16 * 400
        assert model.engine.blocks.n_free == model.engine.n_blocks
        assert call(port, CHAT, {"messages": ASK, "max_tokens": 4})[0] == 200


def test_two_requests_for_one_cold_model_load_it_once(stories: pathlib.Path) -> None:
    opened = []

    def open_once() -> LocalAgent:
        opened.append(LocalAgent("S", stories))
        return opened[-1]

    with serving(State(Registry([Entry("S", "local", open_once)]))) as port:
        got: list[int] = []
        body = {"messages": ASK, "max_tokens": 4}
        threads = [
            threading.Thread(target=lambda: got.append(call(port, CHAT, body)[0])) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [200] * 4 and len(opened) == 1


def test_the_longest_unused_model_is_unloaded_within_the_budget(
    stories: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    entries = []
    for name in "abc":
        path = shutil.copy(stories, tmp_path / f"{name}.gguf")
        spec = AgentSpec(id=name, model=str(path))
        details = {"n_bytes": stories.stat().st_size}
        entries.append(Entry(name, "local", lambda s=spec: open_agent(s), details))
    sizer = open_model(stories)
    budget = 2 * sizer.n_bytes + 1
    close_model(sizer)
    with serving(State(Registry(entries, budget))) as port:

        def use(name: str) -> list[str]:
            body = {"model": name, "messages": ASK, "max_tokens": 2}
            assert call(port, CHAT, body)[0] == 200
            models = call(port, "/v1/models")[2]["data"]
            return [m["id"] for m in models if m["meta"]["loaded"]]

        assert [use(name) for name in "abacab"] == [
            ["a"],
            ["a", "b"],
            ["a", "b"],
            ["a", "c"],
            ["a", "c"],
            ["a", "b"],
        ]


def test_sigterm_lets_running_answers_end(stories: pathlib.Path) -> None:
    code = "from llamoot.cli.main import main; main()"
    words = ["serve", str(stories), "--port", "0", "--preload", "--no-record"]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "http://" in line)
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        wait(lambda: call(port, "/health")[0] == 200, 60)
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("POST", CHAT, json.dumps({"messages": ASK, "stream": True, **ENDLESS}))
        response = client.getresponse()
        text = response.read(300).decode()
        server.terminate()
        text += response.read().decode()
        client.close()
        assert events(text)[-1] == "[DONE]" and '"finish_reason":"length"' in text
        assert server.wait(30) in (0, -signal.SIGTERM)  # the signal is passed on at the end
        with pytest.raises(OSError):
            call(port, "/health")
