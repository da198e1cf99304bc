"""Frameworks over the clients: LangChain, openai-agents and the AI SDK, unmodified."""

import asyncio
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, ToolCall
from llamoot.errors import Transport
from serving import agents, call, serving

pytestmark = pytest.mark.peer
SCRIPT = pathlib.Path(__file__).parent / "clients" / "ai_sdk.mjs"


class Embedding(ScriptedAgent):
    """A scripted agent that also has vectors, as a local model has."""

    async def embed(self, inputs: Any) -> tuple[list[list[float]], int]:
        return [[1.0, 0.0, float(i)] for i, _ in enumerate(inputs)], len(inputs)


def _calls_once(request: ChatRequest) -> Reply:
    """Calls the tool, and speaks once its result is there."""
    if request.messages[-1].role == "tool":
        return Reply(text=f"It is {request.messages[-1].content}.")
    return Reply(tools=(ToolCall("c1", "add", '{"a": 1}'),))


@pytest.fixture
def port() -> Iterator[int]:
    given = [
        Embedding("m", "Good morning, world."),
        ScriptedAgent("caller", _calls_once),
        ScriptedAgent("slow", Reply(text="word " * 400, delay=0.02)),
        ScriptedAgent("thinker", Reply(text="42", reasoning=("well", " then"))),
        ScriptedAgent("json", '{"x": 1}'),
        ScriptedAgent("broken", Reply(text="well", error=Transport("broken", "reset"))),
    ]
    with serving(agents(*given)) as number:
        yield number


def cancelled(port: int, model: str) -> int:
    """How many answers of the model were cancelled, once there is one; waits a little."""
    line = f'llamoot:requests_total{{model="{model}",outcome="cancelled"}} '
    limit = time.monotonic() + 5
    while line not in (text := call(port, "/metrics")[2]) and time.monotonic() < limit:
        time.sleep(0.05)
    return int(text.partition(line)[2].partition("\n")[0] or 0)


def chat_model(port: int, model: str, **more: Any) -> Any:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    base = f"http://127.0.0.1:{port}/v1"
    return langchain.ChatOpenAI(model=model, base_url=base, api_key="x", max_retries=0, **more)


SCHEMA = {
    "title": "answer",
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
}
ADD = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain(port: int, responses: bool) -> None:
    how = {"use_responses_api": responses, "stream_usage": True}
    model = chat_model(port, "m", **how)
    done = model.invoke("hi")
    assert done.text == "Good morning, world." and done.usage_metadata["output_tokens"] > 0
    chunks = list(model.stream("hi"))
    assert "".join(chunk.text for chunk in chunks) == "Good morning, world." and len(chunks) > 2
    whole = sum(chunks[1:], chunks[0])
    assert whole.usage_metadata["output_tokens"] == done.usage_metadata["output_tokens"]
    caller = chat_model(port, "caller", **how).bind_tools([ADD])
    made = caller.invoke("hi").tool_calls[0]
    assert (made["name"], made["args"], made["id"]) == ("add", {"a": 1}, "c1")
    pieces = list(caller.stream("hi"))
    assert sum(pieces[1:], pieces[0]).tool_calls[0]["args"] == {"a": 1}
    for method in ("json_schema", "function_calling"):
        name = "json" if method == "json_schema" else "caller"
        wanted = SCHEMA if method == "json_schema" else SCHEMA | {"title": "add"}
        shaped = chat_model(port, name, **how).with_structured_output(wanted, method=method)
        assert shaped.invoke("hi") in ({"x": 1}, {"a": 1})
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with pytest.raises(openai.NotFoundError):
        chat_model(port, "none", **how).invoke("hi")
    stream = chat_model(port, "slow", **how).stream("hi")
    next(stream)
    stream.close()
    assert cancelled(port, "slow") == 1


def test_langchain_embeds(port: int) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    base = f"http://127.0.0.1:{port}/v1"
    model = langchain.OpenAIEmbeddings(
        model="m", base_url=base, api_key="x", check_embedding_ctx_length=False
    )
    assert model.embed_documents(["a", "b"]) == [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_openai_agents(port: int, responses: bool) -> None:
    sdk = pytest.importorskip("agents", reason="openai-agents is not installed")
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    sdk.set_tracing_disabled(True)
    kind = sdk.OpenAIResponsesModel if responses else sdk.OpenAIChatCompletionsModel

    @sdk.function_tool
    def add(a: int) -> int:
        """adds"""
        return a + 41

    async def play() -> None:
        base = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as client:

            def agent(name: str) -> Any:
                model = kind(model=name, openai_client=client)
                return sdk.Agent(name="A", instructions="Be brief.", model=model, tools=[add])

            done = await sdk.Runner.run(agent("m"), "hi")
            assert done.final_output == "Good morning, world."
            done = await sdk.Runner.run(agent("caller"), "hi")
            assert done.final_output == "It is 42."
            stream = sdk.Runner.run_streamed(agent("caller"), "hi")
            seen = [event.type async for event in stream.stream_events()]
            assert stream.final_output == "It is 42." and "raw_response_event" in seen
            with pytest.raises(openai.NotFoundError):
                await sdk.Runner.run(agent("none"), "hi")

    asyncio.run(play())


def test_the_ai_sdk(port: int) -> None:
    """Needs node, and in $AI_SDK (or beside the script) the packages ai, @ai-sdk/openai and
    @ai-sdk/openai-compatible."""
    node = shutil.which("node")
    folder = pathlib.Path(os.environ.get("AI_SDK", SCRIPT.parent))
    if node is None or not (folder / "node_modules" / "ai").is_dir():
        pytest.skip("node or the AI SDK is not installed")
    base = f"http://127.0.0.1:{port}/v1"
    done = subprocess.run(
        [node, SCRIPT, base, folder], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "embeddings"
    assert cancelled(port, "slow") == 3
