"""ScriptedAgent keeps the agent contract, so that what is tested with it is tested truly."""

import asyncio
import time

import pytest

from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, ChatToken, Message, Sampling, ToolCall, Usage
from llamoot.errors import AgentError, Stream, Timeout

pytestmark = pytest.mark.pure
ASK = ChatRequest(messages=(Message("user", "What is 17 + 25?"),))


def play(agent: ScriptedAgent, request: ChatRequest = ASK) -> list[ChatToken]:
    async def run() -> list[ChatToken]:
        return [token async for token in agent.chat(request)]

    return asyncio.run(run())


def test_text_is_unchanged_and_the_last_token_alone_is_finished() -> None:
    tokens = play(ScriptedAgent("A", " It  is\n42. "))
    assert "".join(t.text for t in tokens) == " It  is\n42. "
    assert [t.finish_reason for t in tokens[:-1]] == [None] * (len(tokens) - 1)
    assert tokens[-1].finish_reason == "stop"
    assert isinstance(tokens[-1].usage, Usage) and tokens[-1].usage.prompt_tokens == 5


def test_an_error_comes_last_and_nothing_follows() -> None:
    agent = ScriptedAgent("A", Reply(tokens=("4", "2"), error=Stream("A", "broke off")))

    async def run() -> tuple[list[str], str]:
        seen = []
        try:
            async for token in agent.chat(ASK):
                seen.append(token.text)
        except AgentError as error:
            return seen, str(error)
        return seen, ""

    assert asyncio.run(run()) == (["4", "2"], "A: broke off")
    assert (agent.running, agent.cancelled) == (0, 0)


def test_replies_are_played_in_turn_and_the_last_repeats() -> None:
    agent = ScriptedAgent("A", ["one", Reply(text="two")])
    heard = ["".join(t.text for t in play(agent)) for _ in range(3)]
    assert heard == ["one", "two", "two"] and len(agent.requests) == 3


def test_a_function_answers_what_it_is_asked() -> None:
    agent = ScriptedAgent("A", lambda request: request.messages[-1].content.upper())
    assert "".join(t.text for t in play(agent)) == "WHAT IS 17 + 25?"


def test_max_tokens_cuts_with_finish_length() -> None:
    request = ChatRequest(messages=ASK.messages, sampling=Sampling(max_tokens=2))
    tokens = play(ScriptedAgent("A", "a b c d"), request)
    assert "".join(t.text for t in tokens) == "a b" and tokens[-1].finish_reason == "length"


def test_tool_calls_stream_name_first_and_finish_with_tool_calls() -> None:
    tokens = play(ScriptedAgent("A", Reply(tools=(ToolCall("c1", "add", '{"a":1}'),))))
    pieces = [p for t in tokens for p in t.tools]
    assert [(p.index, p.id, p.name, p.arguments) for p in pieces] == [
        (0, "c1", "add", ""),
        (0, "", "", '{"a":1}'),
    ]
    assert tokens[-1].finish_reason == "tool_calls"


def test_schedule_is_kept_and_does_not_drift() -> None:
    agent = ScriptedAgent("A", Reply(tokens=("x",) * 50, first_delay=0.05, delay=0.002))
    start = time.perf_counter()
    play(agent)
    assert 0.14 < time.perf_counter() - start < 1.0


def test_timeout_is_kept() -> None:
    agent = ScriptedAgent("A", Reply(text="late", hang=True), timeout=0.05)
    with pytest.raises(Timeout) as caught:
        play(agent)
    assert caught.value.timer == "total" and caught.value.partial == "late"


def test_closing_early_is_counted_as_cancelled() -> None:
    agent = ScriptedAgent("A", Reply(text="a b c", hang=True))

    async def run() -> None:
        stream = agent.chat(ASK)
        await anext(stream)
        assert agent.running == 1
        await stream.aclose()

    asyncio.run(run())
    assert (agent.running, agent.cancelled) == (0, 1)
