"""What the routes of one server share, and the agent that counts what passes through."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
from starlette.requests import Request

from llamoot.agents.types import Agent, ChatRequest, ChatToken
from llamoot.council.store import Store
from llamoot.errors import LlamootError
from llamoot.server.gather import close
from llamoot.server.metrics import Metrics, Watch
from llamoot.server.registry import Lease, Registry


@dataclass
class State:
    """One server's models, figures and recorded runs. `ready` is false until models are open."""

    registry: Registry
    store: Store | None = None
    metrics: Metrics = field(default_factory=Metrics)
    ready: bool = True
    started: float = 0.0


def state_of(request: Request) -> State:
    """The state that `create_app` put into the application."""
    state = request.app.state.server
    assert isinstance(state, State)
    return state


def request_id(request: Request) -> str:
    """The caller's id if it sent one that is safe to repeat, else a new one."""
    given = request.headers.get("x-request-id", "")
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex


class Watched:
    """An agent whose answers are timed and counted."""

    def __init__(self, lease: Lease, metrics: Metrics) -> None:
        self.agent, self.metrics, self.name = lease.agent, metrics, lease.name
        self.id, self.model = lease.agent.id, lease.agent.model
        self.timeout, self.context_length = lease.agent.timeout, lease.agent.context_length

    def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        return self.watch(self.agent.chat(request))

    async def watch(self, stream: AsyncIterator[ChatToken]) -> AsyncIterator[ChatToken]:
        """The stream itself, with its times taken."""
        watch: Watch = self.metrics.watch(self.name)
        outcome = "cancelled"
        self.metrics.processing += 1
        try:
            async for token in stream:
                watch.token(token)
                if token.finish_reason is not None:
                    outcome = token.finish_reason
                yield token
        except LlamootError as error:
            outcome = error.code
            raise
        finally:
            self.metrics.processing -= 1
            watch.end(outcome)
            await close(stream)

    async def close(self) -> None:
        """The agent belongs to the registry."""


class Quiet:
    """An agent whose reasoning stays with it."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.id, self.model = agent, agent.id, agent.model
        self.timeout, self.context_length = agent.timeout, agent.context_length

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        stream = self.agent.chat(request)
        try:
            async for token in stream:
                yield msgspec.structs.replace(token, reasoning="")
        finally:
            await close(stream)

    async def close(self) -> None:
        """The agent belongs to the registry."""


def watched(lease: Lease, metrics: Metrics) -> Agent:
    return Watched(lease, metrics)
