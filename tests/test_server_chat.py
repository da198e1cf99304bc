"""What clients of `/v1/chat/completions` and its neighbours get, over a real socket."""

import http.client
import json
import time

import pytest

from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ToolCall
from llamoot.errors import Transport
from llamoot.server import stream
from serving import agents, call, events, serving

pytestmark = pytest.mark.pure
HELLO = {"model": "A", "messages": [{"role": "user", "content": "hi"}]}


def test_a_plain_answer_has_every_key_that_openai_requires() -> None:
    with serving(agents(ScriptedAgent("A", "Hello there."))) as port:
        status, headers, body = call(port, "/v1/chat/completions", HELLO)
    assert status == 200 and headers["x-request-id"]
    assert {"id", "object", "created", "model", "choices", "usage"} <= body.keys()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello there.", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    assert body["usage"]["total_tokens"] == (
        body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    )


def test_a_stream_says_the_same_as_the_plain_answer() -> None:
    asked = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
    with serving(agents(ScriptedAgent("A", "Grüße, 世界!"))) as port:
        _, headers, text = call(port, "/v1/chat/completions", asked)
        _, _, plain = call(port, "/v1/chat/completions", HELLO)
    assert headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(text)
    said = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert said == plain["choices"][0]["message"]["content"] == "Grüße, 世界!"
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"] == plain["usage"]
    finishes = [c["choices"][0]["finish_reason"] for c in chunks]
    assert finishes.count(None) == len(finishes) - 1 and finishes[-1] == "stop"
    assert len({(c["id"], c["created"], c["model"]) for c in [*chunks, usage]}) == 1


def test_reasoning_has_its_own_channel() -> None:
    agent = ScriptedAgent("A", Reply(text="42", reasoning=("let me", " think")))
    with serving(agents(agent)) as port:
        _, _, body = call(port, "/v1/chat/completions", HELLO)
        _, _, quiet = call(port, "/v1/chat/completions", HELLO | {"deliberation": False})
    assert body["choices"][0]["message"]["reasoning_content"] == "let me think"
    assert body["choices"][0]["message"]["content"] == "42"
    assert "reasoning_content" not in quiet["choices"][0]["message"]


def test_tool_calls_come_out_whole_and_streamed() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    agent = ScriptedAgent("A", Reply(tools=(ToolCall("c1", "f", '{"x": 1}'),)))
    with serving(agents(agent)) as port:
        _, _, body = call(port, "/v1/chat/completions", HELLO | {"tools": tools})
        _, _, text = call(port, "/v1/chat/completions", HELLO | {"tools": tools, "stream": True})
    message = body["choices"][0]["message"]
    assert message["content"] is None and body["choices"][0]["finish_reason"] == "tool_calls"
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    pieces = [
        call_piece
        for chunk in events(text)[:-1]
        for call_piece in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert pieces[0]["id"] == "c1" and pieces[0]["function"]["arguments"] == ""
    assert "".join(p["function"].get("arguments", "") for p in pieces) == '{"x": 1}'


def test_n_choices_are_told_apart_by_index() -> None:
    agent = ScriptedAgent("A", ["one", "two", "three"])
    with serving(agents(agent)) as port:
        _, _, body = call(port, "/v1/chat/completions", HELLO | {"n": 3, "seed": 5})
    assert sorted(c["message"]["content"] for c in body["choices"]) == ["one", "three", "two"]
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert sorted(r.sampling.seed for r in agent.requests) == [5, 6, 7]


def test_an_agent_that_fails_before_the_first_token_is_a_status() -> None:
    broken = ScriptedAgent("A", Transport("A", "connection refused"))
    with serving(agents(broken)) as port:
        for stream in (False, True):
            status, _, body = call(port, "/v1/chat/completions", HELLO | {"stream": stream})
            assert status == 502 and body["error"]["code"] == "agent_unreachable"
            assert isinstance(body["error"]["code"], str) and "param" in body["error"]


def test_an_agent_that_fails_later_is_an_error_frame_and_no_finish() -> None:
    broken = ScriptedAgent("A", Reply(text="well", error=Transport("A", "reset")))
    with serving(agents(broken)) as port:
        _, _, text = call(port, "/v1/chat/completions", HELLO | {"stream": True})
    *chunks, error, done = events(text)
    assert "reset" in error["error"]["message"] and done == "[DONE]"
    assert all(c["choices"][0]["finish_reason"] is None for c in chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_the_agent(stream: bool) -> None:
    agent = ScriptedAgent("A", Reply(text="word " * 500, delay=0.02))
    with serving(agents(agent)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = json.dumps(HELLO | {"stream": stream})
        connection.request("POST", "/v1/chat/completions", body)
        limit = time.monotonic() + 5
        while not agent.running and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.1)
        assert agent.running == 1
        connection.sock.close()
        while agent.running and time.monotonic() < limit:
            time.sleep(0.01)
    assert agent.running == 0 and agent.cancelled == 1


BAD = [
    (b"{", 400, None),
    (b"\xff\xfe", 400, None),
    (b"[]", 400, None),
    (b"", 400, None),
    (b"{}", 400, "messages"),
    ({**HELLO, "messages": []}, 400, "messages"),
    ({**HELLO, "max_tokens": "many"}, 400, "max_tokens"),
    ({**HELLO, "temperature": -1}, 400, "temperature"),
    ({**HELLO, "n": 0}, 400, "n"),
    ({**HELLO, "audio": {"voice": "x"}}, 400, "audio"),
    ({**HELLO, "tempratur": 1}, 400, "tempratur"),
    ({**HELLO, "top_logprobs": 3}, 400, "top_logprobs"),
    ({**HELLO, "tool_choice": {"function": {"name": "g"}}}, 400, "tool_choice"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_request_names_its_field(body: object, status: int, param: str | None) -> None:
    with serving(agents(ScriptedAgent("A", "hi"))) as port:
        got, _, answer = call(port, "/v1/chat/completions", body)
    assert got == status and answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param


def test_unknown_model_path_and_method_have_their_statuses() -> None:
    with serving(agents(ScriptedAgent("A", "x"), ScriptedAgent("B", "y"))) as port:
        status, _, body = call(port, "/v1/chat/completions", HELLO | {"model": "C"})
        assert status == 404 and body["error"]["code"] == "model_not_found"
        status, _, body = call(port, "/v1/nothing")
        assert status == 404 and body["error"]["code"] == "not_found"
        status, headers, _ = call(port, "/v1/chat/completions")
        assert status == 405 and headers["allow"] == "POST"
        status, _, body = call(port, "/v1/models")
        assert [m["id"] for m in body["data"]] == ["A", "B"]
        assert call(port, "/v1/models/B")[2]["id"] == "B"
        assert call(port, "/v1/models/C")[0] == 404


def test_responses_events_are_numbered_and_end_with_completed() -> None:
    agent = ScriptedAgent("A", Reply(text="Hello you", reasoning=("hm",)))
    asked = {"model": "A", "input": "hi", "stream": True}
    with serving(agents(agent)) as port:
        _, _, text = call(port, "/v1/responses", asked)
        _, _, plain = call(port, "/v1/responses", asked | {"stream": False})
    found = events(text)
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    assert found[0]["type"] == "response.created" and found[-1]["type"] == "response.completed"
    said = "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta")
    assert said == "Hello you"
    assert [item["type"] for item in plain["output"]] == ["reasoning", "message"]
    assert plain["output"][1]["content"][0]["text"] == "Hello you"


def test_messages_speak_anthropic() -> None:
    agent = ScriptedAgent("A", Reply(text="Hi!", tools=(ToolCall("t1", "f", '{"a": 2}'),)))
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    asked = {"model": "A", "max_tokens": 50, "messages": HELLO["messages"], "tools": tools}
    with serving(agents(agent)) as port:
        _, _, body = call(port, "/v1/messages", asked)
        _, _, text = call(port, "/v1/messages", asked | {"stream": True})
        status, _, error = call(port, "/v1/messages", {"model": "A"})
    assert body["type"] == "message" and body["stop_reason"] == "tool_use"
    assert body["content"][1] == {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 2}}
    kinds = [e["type"] for e in events(text)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert status == 400 and error["type"] == "error"
    assert error["error"]["type"] == "invalid_request_error"


def test_a_stream_pings_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PING_SECONDS", 0.1)
    monkeypatch.setattr(stream, "FIRST_TOKEN_WAIT", 0.1)
    agent = ScriptedAgent("A", Reply(text="hello you", first_delay=0.6, delay=0.4))
    with serving(agents(agent)) as port:
        _, _, text = call(port, "/v1/chat/completions", HELLO | {"stream": True})
    assert text.startswith(": waiting\n\n") and ": waiting" in text[text.index("hello") :]
    said = [c["choices"][0]["delta"].get("content") for c in events(text)[:-1]]
    assert "".join(filter(None, said)) == "hello you"
