"""The clients people already use, unmodified, against the server: chat, stream, tools, schema,
embeddings, errors and cancellation; every object is validated against the client's own types."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llamoot.agents.http import OpenAIAgent
from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, Logprob, Message, ToolCall, TopLogprob
from serving import agents, call, serving

pytestmark = pytest.mark.peer
SAY = [{"role": "user", "content": "hi"}]
TOOL = {"name": "add", "description": "adds", "parameters": {"type": "object"}}


class Embedding(ScriptedAgent):
    """A scripted agent that also has vectors, as a local model has."""

    async def embed(self, inputs: Any) -> tuple[list[list[float]], int]:
        return [[1.0, 0.0, float(i)] for i, _ in enumerate(inputs)], len(inputs)


@pytest.fixture
def talker() -> ScriptedAgent:
    return Embedding("m", "Good morning, world.")


@pytest.fixture
def port(talker: ScriptedAgent) -> Iterator[int]:
    caller = ScriptedAgent("caller", Reply(tools=(ToolCall("c1", "add", '{"a": 1}'),)))
    slow = ScriptedAgent("slow", Reply(text="word " * 400, delay=0.02))
    thinker = ScriptedAgent("thinker", Reply(text="42", reasoning=("well", " then")))
    with serving(agents(talker, caller, slow, thinker)) as number:
        yield number


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as one:
        yield one


def valid(thing: Any) -> Any:
    """The object again, after its own type checked it strictly: the SDK never does by itself."""
    return type(thing).model_validate(thing.model_dump(mode="json", exclude_unset=True))


def test_openai_chats(client: Any) -> None:
    done = valid(client.chat.completions.create(model="m", messages=SAY))
    assert done.choices[0].message.content == "Good morning, world."
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_openai_streams(client: Any) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="m", messages=SAY, stream=True, stream_options=options
    )
    chunks = [valid(chunk) for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Good morning, world." and chunks[-1].usage.completion_tokens > 0


def test_openai_calls_tools(client: Any) -> None:
    tools = [{"type": "function", "function": TOOL}]
    done = valid(client.chat.completions.create(model="caller", messages=SAY, tools=tools))
    made = done.choices[0].message.tool_calls[0]
    assert (made.id, made.function.name, made.function.arguments) == ("c1", "add", '{"a": 1}')
    with client.chat.completions.stream(model="caller", messages=SAY, tools=tools) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'


def test_openai_sends_a_schema_on(client: Any, talker: ScriptedAgent) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    client.chat.completions.create(model="m", messages=SAY, response_format=wanted)
    assert talker.requests[-1].format.kind == "schema"
    assert talker.requests[-1].format.value == schema


def test_openai_reads_logprobs(port: int) -> None:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")

    class Certain(ScriptedAgent):
        """Every token comes with its log-probability."""

        async def chat(self, request: Any) -> Any:
            async for token in super().chat(request):
                row = Logprob(token.text, -0.5, (TopLogprob("x", -1.0),))
                yield type(token)(
                    text=token.text,
                    logprobs=(row,) if token.text else (),
                    finish_reason=token.finish_reason,
                    usage=token.usage,
                )

    with serving(agents(Certain("m", "a b"))) as number:
        base = f"http://127.0.0.1:{number}/v1"
        with openai.OpenAI(base_url=base, api_key="x") as one:
            done = valid(
                one.chat.completions.create(model="m", messages=SAY, logprobs=True, top_logprobs=1)
            )
    assert [row.logprob for row in done.choices[0].logprobs.content] == [-0.5, -0.5]


def test_openai_embeds(client: Any) -> None:
    done = valid(client.embeddings.create(model="m", input=["a", "b"]))
    assert [row.embedding for row in done.data] == [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]


def test_openai_lists_and_retrieves_models(client: Any) -> None:
    assert {valid(model).id for model in client.models.list()} >= {"m", "slow"}
    assert valid(client.models.retrieve("m")).id == "m"


def test_openai_raises_its_own_errors(client: Any) -> None:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with pytest.raises(openai.NotFoundError) as wrong:
        client.chat.completions.create(model="none", messages=SAY)
    assert wrong.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="m", messages=[])
    assert wrong.value.param == "messages"


def test_openai_closing_a_stream_cancels(client: Any) -> None:
    stream = client.chat.completions.create(model="slow", messages=SAY, stream=True)
    next(iter(stream))
    stream.close()
    limit = time.monotonic() + 5
    while time.monotonic() < limit and 'outcome="cancelled"' not in _metrics(client):
        time.sleep(0.05)
    assert 'llamoot:requests_total{model="slow",outcome="cancelled"} 1' in _metrics(client)


def _metrics(client: Any) -> str:
    return str(call(client.base_url.port, "/metrics")[2])


def test_openai_responses_whole_and_streamed(client: Any) -> None:
    done = valid(client.responses.create(model="thinker", input="hi"))
    assert done.output_text == "42" and done.status == "completed"
    kinds = [valid(e).type for e in client.responses.create(model="m", input="hi", stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    tools = [{"type": "function", **TOOL}]
    made = client.responses.create(model="caller", input="hi", tools=tools)
    assert [item.type for item in valid(made).output] == ["function_call"]


def test_anthropic_whole_streamed_tools_and_errors(port: int) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the anthropic package is not installed")
    base = f"http://127.0.0.1:{port}"
    with anthropic.Anthropic(base_url=base, api_key="x", max_retries=0) as client:
        done = valid(client.messages.create(model="m", max_tokens=50, messages=SAY))
        assert done.content[0].text == "Good morning, world." and done.stop_reason == "end_turn"
        with client.messages.stream(model="thinker", max_tokens=50, messages=SAY) as stream:
            assert "".join(stream.text_stream) == "42"
            assert [b.type for b in valid(stream.get_final_message()).content] == [
                "thinking",
                "text",
            ]
        tools = [{"name": "add", "input_schema": {"type": "object"}}]
        made = client.messages.create(model="caller", max_tokens=9, messages=SAY, tools=tools)
        assert made.stop_reason == "tool_use" and valid(made).content[0].input == {"a": 1}
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="none", max_tokens=9, messages=SAY)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="m", max_tokens=0, messages=SAY)


def test_our_own_agent_reads_what_our_server_writes(port: int) -> None:
    async def ask() -> tuple[str, str, str | None]:
        agent = OpenAIAgent("A", "thinker", f"http://127.0.0.1:{port}/v1")
        request = ChatRequest(messages=(Message("user", "hi"),))
        tokens = [token async for token in agent.chat(request)]
        await agent.close()
        text = "".join(t.text for t in tokens)
        return text, "".join(t.reasoning for t in tokens), tokens[-1].finish_reason

    assert asyncio.run(ask()) == ("42", "well then", "stop")
