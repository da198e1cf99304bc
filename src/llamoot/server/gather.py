"""From agents' streams to complete choices: several at once, in one order of arrival."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from llamoot.agents.types import Agent, ChatRequest, ChatToken, Logprob, ToolCall, Usage

Arrival = tuple[int, ChatToken]


async def merge(agent: Agent, requests: list[ChatRequest]) -> AsyncGenerator[Arrival, None]:
    """(choice, token) of every request, as they arrive; closing it closes every stream."""
    if len(requests) == 1:
        stream = agent.chat(requests[0])
        try:
            async for token in stream:
                yield 0, token
        finally:
            await close(stream)
        return
    queue: asyncio.Queue[Arrival | BaseException | None] = asyncio.Queue(maxsize=64)
    tasks = [asyncio.create_task(_feed(agent, r, i, queue)) for i, r in enumerate(requests)]
    try:
        open_streams = len(tasks)
        while open_streams:
            item = await queue.get()
            if item is None:
                open_streams -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(
    agent: Agent,
    request: ChatRequest,
    index: int,
    queue: "asyncio.Queue[Arrival | BaseException | None]",
) -> None:
    stream = agent.chat(request)
    try:
        async for token in stream:
            await queue.put((index, token))
        await queue.put(None)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        await queue.put(error)
    finally:
        await close(stream)


async def close(stream: AsyncIterator[ChatToken]) -> None:
    """Close an agent's stream; an iterator that is no generator has nothing to close."""
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()


def spread(request: ChatRequest, n: int) -> list[ChatRequest]:
    """n requests for one prompt; a given seed is the first's, the others count on from it."""
    if n == 1:
        return [request]
    seed = request.sampling.seed
    seeds = [None if seed is None else seed + i for i in range(n)]
    return [
        msgspec.structs.replace(
            request, sampling=msgspec.structs.replace(request.sampling, seed=one)
        )
        for one in seeds
    ]


@dataclass
class Choice:
    """One complete answer, put together from its tokens."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)  # index -> id, name, arguments
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: str = "stop"
    stopped_by: str = ""
    usage: Usage = field(default_factory=Usage)

    def add(self, token: ChatToken) -> None:
        self.text.append(token.text)
        self.reasoning.append(token.reasoning)
        self.refusal.append(token.refusal)
        self.logprobs += token.logprobs
        for piece in token.tools:
            call = self.calls.setdefault(piece.index, ["", "", ""])
            call[0] = call[0] or piece.id
            call[1] = call[1] or piece.name
            call[2] += piece.arguments
        if token.finish_reason is not None:
            self.finish_reason, self.stopped_by = token.finish_reason, token.stopped_by
        if token.usage is not None:
            self.usage = token.usage

    def tool_calls(self) -> list[ToolCall]:
        return [ToolCall(*self.calls[i]) for i in sorted(self.calls)]


def total(usages: list[Usage]) -> Usage:
    """Field by field sum; choices of one prompt count it once each, as they were evaluated."""
    if not usages:
        return Usage()
    fields = msgspec.structs.fields(Usage)
    return Usage(**{f.name: sum(getattr(u, f.name) for u in usages) for f in fields})


class Writer(Protocol):
    """One API's growing answer: tokens in, its events out."""

    def begin(self) -> Iterator[bytes]: ...
    def add(self, token: ChatToken) -> Iterator[bytes]: ...
    def end(self) -> Iterator[bytes]: ...


async def written(
    agent: Agent, request: ChatRequest, writer: Writer
) -> AsyncGenerator[bytes, None]:
    """The writer's events, the first once the agent has said something."""
    stream = agent.chat(request)
    begun = False
    try:
        async for token in stream:
            if not begun:
                begun = True
                for one in writer.begin():
                    yield one
            for one in writer.add(token):
                yield one
    finally:
        await close(stream)
    for one in writer.end():
        yield one


async def drained(events: AsyncGenerator[bytes, None]) -> None:
    """Let a stream run to its end for what it leaves in its writer."""
    async for _ in events:
        pass
    await events.aclose()
