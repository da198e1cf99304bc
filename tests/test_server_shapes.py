"""The keys that OpenAI's OpenAPI file requires, for each object the server writes."""

from collections.abc import Iterator
from typing import Any

import pytest

from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, ChatToken
from serving import agents, call, events, serving

pytestmark = pytest.mark.pure
ASK = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens"}
RESPONSE = {
    *("id", "object", "created_at", "status", "error", "incomplete_details", "instructions"),
    *("model", "tools", "tool_choice", "output", "parallel_tool_calls", "metadata"),
    *("temperature", "top_p"),
}


class Speaker(ScriptedAgent):
    """A scripted agent that also continues raw prompts and has vectors."""

    async def complete(self, prompt: Any, request: ChatRequest) -> Any:
        async for token in self.chat(request):
            yield token

    async def detokenize(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    async def embed(self, inputs: Any) -> tuple[list[list[float]], int]:
        return [[0.6, 0.8] for _ in inputs], len(inputs)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    script = Reply(text="one two", reasoning=("well",), logprob=-0.5)
    with serving(agents(Speaker("A", script), ScriptedAgent("B", "x"))) as number:
        yield number


def constant(chunks: list[dict[str, Any]]) -> None:
    """What may not change over one stream does not; `created` is in seconds."""
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert isinstance(chunks[0]["created"], int) and chunks[0]["created"] < 1e11


@pytest.mark.parametrize("logprobs", [False, True])
def test_chat_completion(port: int, logprobs: bool) -> None:
    body = call(port, "/v1/chat/completions", {"messages": ASK, "logprobs": logprobs})[2]
    assert body.keys() >= {"id", "object", "created", "model", "choices", "usage"}
    assert body["object"] == "chat.completion" and body["usage"].keys() >= USAGE
    (choice,) = body["choices"]
    assert choice.keys() >= {"index", "message", "finish_reason", "logprobs"}
    assert choice["message"].keys() >= {"role", "content", "refusal"}
    if logprobs:
        rows = choice["logprobs"]["content"]
        assert all(r.keys() >= {"token", "logprob", "bytes", "top_logprobs"} for r in rows)
        assert [r["token"] for r in rows] == ["one", " two"]


def test_chat_completion_chunk(port: int) -> None:
    asked = {"messages": ASK, "stream": True, "n": 2, "stream_options": {"include_usage": True}}
    *chunks, done = events(call(port, "/v1/chat/completions", asked)[2])
    constant(chunks)
    assert done == "[DONE]" and chunks[-1]["choices"] == [] and chunks[-1]["usage"].keys() >= USAGE
    for chunk in chunks[:-1]:
        assert chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None
        assert chunk["choices"][0].keys() >= {"index", "delta", "finish_reason"}
    firsts = [c["choices"][0] for c in chunks[:-1] if "role" in c["choices"][0]["delta"]]
    assert sorted(choice["index"] for choice in firsts) == [0, 1]


def test_text_completion(port: int) -> None:
    asked = {"prompt": "say", "logprobs": 0}
    body = call(port, "/v1/completions", asked)[2]
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert choice.keys() >= {"text", "index", "logprobs", "finish_reason"}
    assert choice["logprobs"].keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(column) for column in choice["logprobs"].values()}) == 1
    *chunks, done = events(call(port, "/v1/completions", asked | {"stream": True})[2])
    constant(chunks)
    assert done == "[DONE]" and all("usage" not in chunk for chunk in chunks)
    echo = call(port, "/v1/completions", {"prompt": [104, 105], "echo": True})[2]["choices"][0]
    assert echo["text"] == "hione two"


def test_embeddings_and_models(port: int) -> None:
    body = call(port, "/v1/embeddings", {"model": "A", "input": ["a", "b"]})[2]
    assert body.keys() >= {"object", "model", "data", "usage"} and body["object"] == "list"
    assert [row["index"] for row in body["data"]] == [0, 1]
    assert all(row.keys() == {"object", "index", "embedding"} for row in body["data"])
    for path in ("/v1/models", "/models"):
        listed = call(port, path)[2]
        assert listed["object"] == "list"
        assert all(m.keys() >= {"id", "object", "created", "owned_by"} for m in listed["data"])
        assert call(port, f"{path}/B")[2]["object"] == "model"


def test_response_and_its_events(port: int) -> None:
    body = call(port, "/v1/responses", {"input": "hi"})[2]
    assert body.keys() >= RESPONSE and body["object"] == "response"
    found = events(call(port, "/v1/responses", {"input": "hi", "stream": True})[2])
    assert found[-1]["response"].keys() >= RESPONSE
    needed = {"type", "item_id", "output_index", "content_index", "delta", "sequence_number"}
    deltas = [e for e in found if e["type"] == "response.output_text.delta"]
    assert deltas and all(e.keys() >= needed | {"logprobs"} for e in deltas)
    added = [e for e in found if e["type"] == "response.output_item.added"]
    assert [e["output_index"] for e in added] == [0, 1]
    assert {e["item"]["id"] for e in added} == {
        item["id"] for item in found[-1]["response"]["output"]
    }


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_an_ending_is_told_in_the_words_of_each_api(reason: str) -> None:
    ended = ScriptedAgent("A", Reply(text="a", finish_reason=reason))
    with serving(agents(ended)) as port:
        chat = call(port, "/v1/chat/completions", {"messages": ASK})[2]
        response = call(port, "/v1/responses", {"input": "hi"})[2]
        message = call(port, "/v1/messages", {"messages": ASK, "max_tokens": 9})[2]
    assert chat["choices"][0]["finish_reason"] == reason
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(reason)
    assert response["status"] == ("incomplete" if cut else "completed")
    assert response["incomplete_details"] == ({"reason": cut} if cut else None)
    words = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
    assert message["stop_reason"] == words[reason]


def test_the_stop_string_met_is_named_to_anthropics_clients() -> None:
    class Stopped(ScriptedAgent):
        async def chat(self, request: ChatRequest) -> Any:
            yield ChatToken(text="ab", finish_reason="stop", stopped_by="END")

    asked = {"messages": ASK, "max_tokens": 9, "stop_sequences": ["END"]}
    with serving(agents(Stopped("A"))) as port:
        body = call(port, "/v1/messages", asked)[2]
        delta = events(call(port, "/v1/messages", asked | {"stream": True})[2])[-2]["delta"]
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    assert delta == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
