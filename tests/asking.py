"""Ask an agent once over a real socket, and say all that came of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from llamoot.agents.client import Timers
from llamoot.agents.http import OpenAIAgent
from llamoot.agents.misbehave import MisbehavingServer, Play
from llamoot.agents.types import ChatRequest, ChatToken, Message
from llamoot.errors import AgentError

ASK = ChatRequest(messages=(Message("user", "Hi"),))
KEY = "sk-0123456789abcdefKEY"


@dataclass
class Heard:
    """The tokens, and the error that ended them where there was one."""

    tokens: list[ChatToken]
    error: AgentError | None
    server: MisbehavingServer
    agent: OpenAIAgent

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


async def listen(agent: Any, request: ChatRequest = ASK) -> tuple[list[ChatToken], Any]:
    tokens: list[ChatToken] = []
    try:
        async for token in agent.chat(request):
            tokens.append(token)
    except AgentError as error:
        return tokens, error
    return tokens, None


def ask(play: Play, request: ChatRequest = ASK, *, path: str = "", **options: Any) -> Heard:
    """Ask an `OpenAIAgent` with `options` at a server that plays `play`."""

    async def run() -> Heard:
        async with MisbehavingServer(play) as server:
            options.setdefault("key", KEY)
            agent = OpenAIAgent("A", "m", server.url + path, **options)
            tokens, error = await asyncio.wait_for(listen(agent, request), 20)
            await agent.close()
            return Heard(tokens, error, server, agent)

    return asyncio.run(run())


def with_server(play: Play, scene: Callable[[MisbehavingServer], Awaitable[Any]]) -> Any:
    """Run `scene` beside a server that plays `play`."""

    async def run() -> Any:
        async with MisbehavingServer(play) as server:
            return await asyncio.wait_for(scene(server), 20)

    return asyncio.run(run())


def quick(**limits: float) -> Timers:
    """Short timers for tests."""
    return Timers(**{"connect": 1.0, "write": 1.0, "first_token": 1.0, "idle": 1.0, **limits})
