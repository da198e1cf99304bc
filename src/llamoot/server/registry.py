"""The models a server offers: opened on first use, unloaded by least recent use.

Two requests for one cold model load it once. A model in use is never unloaded. Local models,
remote endpoints and councils are entries of one table; a council's members are leases too, taken
by the council's own agents.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from llamoot.agents.types import Agent
from llamoot.errors import Overloaded, UnknownModel


@runtime_checkable
class Loadable(Protocol):
    """What a local agent adds: it is loaded before use and knows how much memory it takes."""

    async def load(self) -> None: ...
    @property
    def n_bytes(self) -> int: ...


@dataclass
class Entry:
    """One name in the table."""

    name: str
    kind: Literal["local", "remote", "council"]
    open: Callable[[], Agent | Awaitable[Agent]]
    details: dict[str, Any] = field(default_factory=dict)  # shown in /v1/models
    created: int = field(default_factory=lambda: int(time.time()))
    agent: Agent | None = None
    users: int = 0
    last_used: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def n_bytes(self) -> int:
        return self.agent.n_bytes if isinstance(self.agent, Loadable) else 0


class Lease:
    """The right to use an agent until `release`, which may be called more than once."""

    def __init__(self, entry: Entry) -> None:
        assert entry.agent is not None
        self.entry, self.agent, self._held = entry, entry.agent, True

    @property
    def name(self) -> str:
        return self.entry.name

    def release(self) -> None:
        if self._held:
            self._held = False
            self.entry.users -= 1
            self.entry.last_used = time.monotonic()


class Registry:
    """Names to agents within a memory budget in bytes (0: no budget)."""

    def __init__(self, entries: Iterable[Entry], memory: int = 0) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.memory = memory
        self._room = asyncio.Lock()  # one model at a time is measured and loaded

    def find(self, name: str | None) -> Entry:
        """The entry of a name. With one model served, any name means it, as clients expect."""
        if name in self.entries:
            return self.entries[name]
        if len(self.entries) == 1 or not name:
            return next(iter(self.entries.values()))
        known = ", ".join(sorted(self.entries))
        raise UnknownModel(f"the model '{name}' is not served here; there are: {known}", "model")

    async def lease(self, name: str | None) -> Lease:
        """Open the model if it is not, and hold it."""
        entry = self.find(name)
        entry.users += 1
        try:
            async with entry.lock:
                if entry.agent is None:
                    await self._open(entry)
            return Lease(entry)
        except BaseException:
            entry.users -= 1
            raise

    async def _open(self, entry: Entry) -> None:
        opened = entry.open()
        agent = await opened if isinstance(opened, Awaitable) else opened
        if not isinstance(agent, Loadable):
            entry.agent = agent
            return
        async with self._room:
            try:
                await self._make_room(entry, int(entry.details.get("n_bytes", 0)))
                await agent.load()
            except BaseException:
                await agent.close()
                raise
            entry.agent = agent
            await self._trim()

    async def _make_room(self, wanted: Entry, n_bytes: int) -> None:
        """Unload idle models, the longest unused first, until the new one fits."""
        while self.memory and self.loaded_bytes() + n_bytes > self.memory:
            if not (idle := self._idle()):
                if self.loaded_bytes() == 0:
                    return  # alone it may try: the engine refuses with numbers if it must
                message = f"no memory for '{wanted.name}' while other models are in use"
                raise Overloaded(message, retry_after=5.0)
            await self.unload(min(idle, key=lambda e: e.last_used))

    async def _trim(self) -> None:
        """A loaded model with its cache is larger than its file: unload idle ones again."""
        while self.memory and self.loaded_bytes() > self.memory and (idle := self._idle()):
            await self.unload(min(idle, key=lambda e: e.last_used))

    def _idle(self) -> list[Entry]:
        return [e for e in self.entries.values() if e.agent and not e.users and e.n_bytes]

    async def unload(self, entry: Entry) -> None:
        agent, entry.agent = entry.agent, None
        if agent is not None:
            await agent.close()

    def loaded_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self.entries.values())

    async def close(self) -> None:
        for entry in self.entries.values():
            await self.unload(entry)


def model_body(entry: Entry) -> dict[str, Any]:
    """The `model` object; `meta` carries what the entry knows of itself."""
    plain = (int, float, str, list)
    shown = {key: value for key, value in entry.details.items() if isinstance(value, plain)}
    context = entry.agent.context_length if entry.agent else entry.details.get("context_length")
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "llamoot",
        "max_model_len": context,
        "meta": {"kind": entry.kind, "loaded": entry.agent is not None, **shown},
    }
