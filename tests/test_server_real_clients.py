"""The official clients over real models and a council of them; every object keeps its type."""

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

from llamoot.agents.files import BUILT_IN
from llamoot.agents.model import close_model, open_model
from llamoot.council.config import parse
from llamoot.server.build import registry_of
from llamoot.server.state import State
from serving import serving

pytestmark = pytest.mark.peer
openai = pytest.importorskip("openai", reason="the openai package is not installed")
SAY = [{"role": "user", "content": "What is 2 + 2?"}]
EACH = pytest.mark.parametrize("model", ["abacus", "stories", "council/both"])


@pytest.fixture(scope="module")
def port(shared: pathlib.Path) -> Iterator[int]:
    path = shared / "models" / "stories260K.gguf"
    if not (path.is_file() and BUILT_IN.is_file()):
        pytest.skip("one of the two model files is absent")
    text = (
        f'agents.abacus.model = "{BUILT_IN}"\nagents.stories.model = "{path}"\n'
        '[councils.both]\nmembers = ["abacus", "stories"]\nprotocol = "vote"\n'
    )
    held = [open_model(path), open_model(BUILT_IN)]  # a first start compiles kernels for a while
    with serving(State(registry_of([], [], parse(text, "test"), None))) as number:
        yield number
    for model in held:
        close_model(model)


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as one:
        yield one


def valid(thing: Any) -> Any:
    """The object again, after its own type checked it strictly: the SDK never does by itself."""
    return type(thing).model_validate(thing.model_dump(mode="json", exclude_unset=True))


@EACH
def test_openai_chats_and_streams(client: Any, model: str) -> None:
    how = {"model": model, "messages": SAY, "max_tokens": 30}
    done = valid(client.chat.completions.create(**how))
    assert done.choices[0].finish_reason in ("stop", "length") and done.usage.completion_tokens
    options = {"include_usage": True}
    stream = client.chat.completions.create(**how, stream=True, stream_options=options)
    chunks = [valid(chunk) for chunk in stream]
    assert chunks[-1].usage.total_tokens and len(chunks) > 3


@EACH
def test_openai_responses(client: Any, model: str) -> None:
    how = {"model": model, "input": "What is 2 + 2?", "max_output_tokens": 30}
    done = valid(client.responses.create(**how))
    assert done.status in ("completed", "incomplete") and done.usage.output_tokens
    kinds = [valid(event).type for event in client.responses.create(**how, stream=True)]
    assert kinds[-1] in ("response.completed", "response.incomplete")


@EACH
def test_anthropic_messages(port: int, model: str) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the anthropic package is not installed")
    base = f"http://127.0.0.1:{port}"
    with anthropic.Anthropic(base_url=base, api_key="x", max_retries=0) as one:
        how = {"model": model, "max_tokens": 30, "messages": SAY}
        assert valid(one.messages.create(**how)).usage.output_tokens
        with one.messages.stream(**how) as stream:
            assert valid(stream.get_final_message()).stop_reason in ("end_turn", "max_tokens")
        if model == "abacus":
            counted = one.messages.count_tokens(model=model, messages=SAY)
            assert counted.input_tokens > 3


def test_a_schema_a_tool_and_vectors_from_the_built_in_model(client: Any) -> None:
    kind = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}
    kind["additionalProperties"] = False
    how: dict[str, Any] = {"model": "abacus", "messages": SAY, "max_tokens": 100, "seed": 3}
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": kind}}
    text = valid(client.chat.completions.create(**how, response_format=shape)).choices[0].message
    assert '"x"' in text.content
    tools = [{"type": "function", "function": {"name": "f", "parameters": kind}}]
    done = valid(client.chat.completions.create(**how, tools=tools, tool_choice="required"))
    assert done.choices[0].message.tool_calls[0].function.name == "f"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**how | {"messages": [SAY[0] | {"content": "x" * 9999}]})
    assert wrong.value.code == "context_length_exceeded"
    rows = valid(client.embeddings.create(model="stories", input=["a", "b"])).data
    assert len(rows) == 2 and rows[0].embedding != rows[1].embedding
