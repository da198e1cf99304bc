"""The local agent keeps the agent contract over a real, tiny model."""

import asyncio
import json
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from llamoot.agents.local import LocalAgent
from llamoot.agents.model import Model
from llamoot.agents.types import ChatRequest, ChatToken, Format, Message, Sampling, Tool
from llamoot.engine.budget import Settings
from llamoot.errors import BadRequest, ContextOverflow, Timeout
from llamoot.gguf.reader import open_gguf
from llamoot.gguf.writer import Writer

pytestmark = pytest.mark.model

START = "Once upon a time, there was a little girl named Lily."


def play(work: Callable[[Callable[..., LocalAgent]], Awaitable[None]], path: pathlib.Path) -> None:
    """Run `work` with a maker of agents of `path`; all are closed afterwards."""

    async def whole() -> None:
        agents = []

        def make(id: str = "A", **options: Any) -> LocalAgent:
            agents.append(LocalAgent(id, path, **options))
            return agents[-1]

        try:
            await work(make)
        finally:
            for agent in agents:
                await agent.close()
                await agent.close()

    asyncio.run(whole())


async def gather(stream: AsyncIterator[ChatToken]) -> tuple[str, list[ChatToken]]:
    tokens = [token async for token in stream]
    return "".join(token.text for token in tokens), tokens


def asking(max_tokens: int = 20, **sampling: Any) -> ChatRequest:
    how = Sampling(**({"temperature": 0.0, "max_tokens": max_tokens} | sampling))
    return ChatRequest(messages=(), sampling=how)


@pytest.fixture
def stories(shared: pathlib.Path) -> pathlib.Path:
    return shared / "models/stories260K.gguf"


def test_a_continuation_is_the_references(stories: pathlib.Path, shared: pathlib.Path) -> None:
    case = json.loads((shared / "models/stories260K.expected.json").read_text())["cases"][0]

    async def work(make: Any) -> None:
        n = len(case["greedy_ids"])
        text, tokens = await gather(make().complete(case["prompt"], asking(n)))
        assert text == case["greedy_text"]
        assert [t.finish_reason for t in tokens if t.finish_reason] == ["length"]
        usage = tokens[-1].usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(case["prompt_ids"]), n)
        assert usage.prefill_s > 0 and usage.decode_s > 0 and usage.load_s > 0

    play(work, stories)


def test_agents_of_one_file_share_its_engine_and_prefix(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agents = [make(name) for name in "ABC"]
        models = await asyncio.gather(*(agent.load() for agent in agents))
        assert models[0] is models[1] is models[2]
        long = START * 5
        tails = (" She liked", " Her mom said", " The dog ran")
        asked = [a.complete(long + t, asking()) for a, t in zip(agents, tails)]
        texts = [text for text, _ in await asyncio.gather(*map(gather, asked))]
        n = len(models[0].tokenize(long))
        assert models[0].engine.n_prompt <= n + 3 * 32
        for tail, text in zip(tails, texts):
            assert (await gather(agents[0].complete(long + tail, asking())))[0] == text

    play(work, stories)


def test_closing_a_stream_frees_everything_within_a_step(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        stream = agent.complete(START, asking(400))
        async for _ in stream:
            break
        model: Model = await agent.load()
        assert agent.busy == 1
        await stream.aclose()
        assert agent.busy == 0
        await gather(agent.complete("x", asking(1)))
        assert model.engine.n_running == 0
        assert model.engine.blocks.n_free == model.engine.n_blocks

    play(work, stories)


def test_a_cancelled_task_frees_everything(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        model: Model = await agent.load()
        tasks = [
            asyncio.create_task(gather(agent.complete(START, asking(400, seed=i))))
            for i in range(12)
        ]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await gather(agent.complete("x", asking(1)))
        assert model.engine.n_running == model.engine.n_waiting == 0

    play(work, stories)


def test_who_gives_up_while_the_file_opens_leaves_nothing_open(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        opening = asyncio.create_task(agent.load())
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await agent.close()
        other = make("B", settings=Settings(context=128))
        assert (await other.load()).context_length == 128

    play(work, stories)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        whole, _ = await gather(agent.complete(START, asking(60)))
        stop = whole[20:26]
        text, tokens = await gather(agent.complete(START, asking(60, stop=(stop,))))
        assert text == whole[: whole.index(stop)]
        assert tokens[-1].finish_reason == "stop"
        assert tokens[-1].usage is not None and tokens[-1].usage.completion_tokens < 60

    play(work, stories)


def test_overflow_names_both_numbers_and_computes_nothing(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        model: Model = await agent.load()
        with pytest.raises(ContextOverflow) as caught:
            await gather(agent.complete(START * 60, asking()))
        assert caught.value.n_context == agent.context_length == 512
        assert caught.value.n_prompt == len(model.tokenize(START * 60))
        assert model.engine.n_steps == 0

    play(work, stories)


def test_logprobs_come_with_each_token(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        text, tokens = await gather(make().complete(START, asking(12, logprobs=3)))
        logprobs = [p for token in tokens for p in token.logprobs]
        assert len(logprobs) == 12
        assert "".join(p.token for p in logprobs) == text
        for p in logprobs:
            assert len(p.top) == 3 and p.logprob <= 0
            assert p.top[0].logprob == pytest.approx(p.logprob) and p.top[0].token == p.token

    play(work, stories)


def test_a_file_without_template_is_talked_to_all_the_same(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        request = ChatRequest(
            messages=(Message("user", "Tell me a story"),),
            sampling=Sampling(temperature=0.0, max_tokens=10),
        )
        assert "Tell me a story" in await agent.apply_template(request)
        text, tokens = await gather(agent.chat(request))
        assert text and tokens[-1].finish_reason == "length"
        again, tokens = await gather(agent.chat(request))
        usage = tokens[-1].usage
        assert again == text and usage is not None
        assert usage.cached_tokens == usage.prompt_tokens - 1

    play(work, stories)


def test_a_format_is_kept_and_drafts_change_no_word(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        schema = {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
            "required": ["ok", "n"],
            "additionalProperties": False,
        }
        request = ChatRequest(
            messages=(),
            sampling=Sampling(max_tokens=200, seed=1),
            format=Format("schema", schema),
        )
        text, tokens = await gather(agent.complete("{", request))
        assert set(json.loads(text)) == {"ok", "n"} and tokens[-1].finish_reason == "stop"
        plain, _ = await gather(agent.complete(START, asking(120)))
        drafted = ChatRequest(messages=(), sampling=asking(120).sampling, drafts=(plain,))
        assert (await gather(agent.complete(START, drafted)))[0] == plain
        with pytest.raises(BadRequest, match="regex"):
            await gather(agent.complete("x", ChatRequest(messages=(), format=Format("regex", "("))))

    play(work, stories)


def test_a_timeout_keeps_the_text_so_far(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make(timeout=0.3, settings=Settings(context=20_000))
        await agent.load()
        text = ""
        with pytest.raises(Timeout) as caught:
            async for token in agent.complete(START, asking(19_000, seed=1)):
                text += token.text
        assert caught.value.timer == "total" and caught.value.partial == text
        assert agent.busy == 0

    play(work, stories)


def test_embeddings_are_of_length_one_and_count_their_tokens(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        texts = [START, "The dog was sad.", START]
        vectors, n = await agent.embed(texts)
        assert n == sum([len(await agent.tokenize(text)) for text in texts])
        assert vectors[0] @ vectors[0] == pytest.approx(1)
        assert vectors[0] @ vectors[2] == pytest.approx(1) and vectors[0] @ vectors[1] < 0.99
        ids = await agent.tokenize(START)
        assert (await agent.detokenize(ids)).strip() == START

    play(work, stories)


def test_more_context_than_the_open_engine_has_is_refused(stories: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        await make("A", settings=Settings(context=256)).load()
        with pytest.raises(BadRequest, match="context of 256"):
            await make("B", settings=Settings(context=512)).load()

    play(work, stories)


def test_a_loaded_model_generates_for_plain_programs(stories: pathlib.Path) -> None:
    model = Model(stories)
    try:
        text = model.generate("Once upon a time", 12, temperature=0.0)
        assert text.startswith(", there was")
        ids = model.tokenize("Once upon a time")
        best = int(model.logits(ids)[-1].argmax())
        assert model.detokenize([best]).strip() == ","
    finally:
        model.close()


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}assistant:"
    "{% if enable_thinking %} <think>{% endif %}"
)


@pytest.fixture
def talking(stories: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """stories260K with a chat template whose answers may begin with reasoning."""
    path = tmp_path / "talking.gguf"
    with open_gguf(stories) as base, Writer(path) as out:
        for key in base.metadata:
            out.add(key, base.metadata[key])
        out.add("tokenizer.chat_template", TEMPLATE)
        for name, tensor in base.tensors.items():
            out.declare(name, tensor.type, tensor.shape)
        for tensor in base.tensors.values():
            out.write(tensor.raw)
    return path


def test_a_prompt_that_opens_reasoning_is_answered_with_reasoning(talking: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        request = ChatRequest(
            messages=(Message("user", "Tell me a story"),),
            sampling=Sampling(temperature=0.0, max_tokens=12),
            template_args={"enable_thinking": True},
        )
        assert (await make().apply_template(request)).endswith("assistant: <think>")
        text, tokens = await gather(make().chat(request))
        assert text == "" and "".join(token.reasoning for token in tokens)
        usage = tokens[-1].usage
        assert usage is not None and usage.reasoning_tokens > 0

    play(work, talking)


def test_the_files_template_is_used_and_a_format_binds_the_answer(talking: pathlib.Path) -> None:
    async def work(make: Any) -> None:
        agent = make()
        request = ChatRequest(
            messages=(Message("system", "Be brief."), Message("user", "Yes or no?")),
            sampling=Sampling(seed=3),
            format=Format("choice", ["yes", "no"]),
        )
        prompt = await agent.apply_template(request)
        assert prompt == "system: Be brief.\nuser: Yes or no?\nassistant:"
        text, tokens = await gather(agent.chat(request))
        assert text in ("yes", "no") and tokens[-1].finish_reason == "stop"

    play(work, talking)


ADD = Tool(
    "add",
    "adds",
    {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    | {"additionalProperties": False},
)


@pytest.mark.parametrize("choice", ["required", "add"])
def test_a_required_tool_is_called_in_the_familys_syntax(
    talking: pathlib.Path, choice: str
) -> None:
    request = ChatRequest(
        messages=(Message("user", "Add."),),
        sampling=Sampling(seed=3),
        tools=(ADD,),
        tool_choice=choice,
    )

    async def work(make: Any) -> None:
        agent = make()
        assert '"add"' in await agent.apply_template(request)
        text, tokens = await gather(agent.chat(request))
        pieces = [piece for token in tokens for piece in token.tools]
        assert text == "" and tokens[-1].finish_reason == "tool_calls"
        assert pieces[0].name == "add" and pieces[0].id.startswith("call_")
        assert json.loads("".join(p.arguments for p in pieces))["a"] in (1, 2)

    play(work, talking)


def test_a_tool_that_is_not_offered_cannot_be_required(talking: pathlib.Path) -> None:
    request = ChatRequest(messages=(Message("user", "x"),), tools=(ADD,), tool_choice="multiply")

    async def work(make: Any) -> None:
        with pytest.raises(BadRequest, match="no tool 'multiply' is offered"):
            await gather(make().chat(request))

    play(work, talking)
