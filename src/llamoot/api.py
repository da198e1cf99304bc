"""The council for people: from a file, from names, or from what is found on this machine."""

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamoot import env
from llamoot.agents.catalog import open_agent
from llamoot.agents.discovery import discover
from llamoot.agents.embeddings import RemoteEmbedder
from llamoot.agents.files import find_model
from llamoot.agents.types import AgentSpec, Embedder, Message
from llamoot.council import council
from llamoot.council import panel as panels
from llamoot.council.config import AgentConf, Config, CouncilConf, check, find, load
from llamoot.council.events import Event
from llamoot.council.folds import Transcript
from llamoot.council.panel import Panel
from llamoot.council.store import Store
from llamoot.errors import ConfigError, LlamootError

_MEMBER = re.compile(r"(?P<what>.+?)(?:\*(?P<samples>\d+))?")
_WEIGHTS_PER_BYTE = 1.7
_SAMPLES = 3  # of one model, where one is all there is


def runs_file() -> Path:
    """The file that runs are kept in."""
    return env.data_folder() / "runs.sqlite"


def member(text: str, config: Config) -> AgentConf:
    """A member from a word: an agent of the file, URL#MODEL, a GGUF file or a catalogue name;
    with *N, N samples of it."""
    found = _MEMBER.fullmatch(text)
    what, samples = (found["what"], int(found["samples"] or 1)) if found else (text, 1)
    if what in config.agents:
        made = config.agents[what]
        return AgentConf(agent=what, samples=samples if samples > 1 else made.samples)
    if re.match(r"https?://", what):
        base_url, _, model = what.partition("#")
        own = base_url.rstrip("/") == str(env.get("OPENAI_BASE_URL")).rstrip("/")
        key = "OPENAI_API_KEY" if own else ""
        return AgentConf(
            base_url=base_url, model=model or "default", api_key_env=key, samples=samples
        )
    return AgentConf(model=what, samples=samples)


async def configure(
    path: str | Path | None = None, members: Iterable[str] = (), **changes: Any
) -> Config:
    """The configuration to use. With `members`, a council "ask" of these becomes its default;
    without them and without a file, what discovery finds does. `changes` are keys of a council
    (None: as it is) and `council`, the name of the one to use."""
    name = changes.pop("council", None) or ""
    samples = changes.pop("samples", None)
    file = find(path)
    config = load(file) if file else Config(origin="llamoot")
    chosen = tuple(member(text, config) for text in members)
    if chosen:
        name, conf = "ask", CouncilConf(members=chosen)
    elif file:
        name, conf = config.council(name)
    else:
        found, origin = _found(await discover())
        config = msgspec.structs.replace(config, origin=origin)
        name, conf = name or "found", CouncilConf(members=found)
    if samples is not None:
        one = tuple(_sampled(config, entry, samples) for entry in conf.members)
        conf = msgspec.structs.replace(conf, members=one)
    given = {key: value for key, value in changes.items() if value is not None}
    conf = msgspec.structs.replace(conf, **given)
    councils = {name: conf, **{k: v for k, v in config.councils.items() if k != name}}
    config = msgspec.structs.replace(config, default=name, councils=councils)
    check(config)
    return config


def _sampled(config: Config, entry: str | AgentConf, samples: int) -> AgentConf:
    conf = member(entry, config) if isinstance(entry, str) else entry
    return msgspec.structs.replace(conf, samples=samples)


def _found(specs: Sequence[AgentSpec]) -> tuple[tuple[AgentConf, ...], str]:
    """Members of a council without a file, and a sentence on where they come from."""
    remote = [spec for spec in specs if spec.base_url][:4]
    if remote:
        places = ", ".join(dict.fromkeys(spec.base_url for spec in remote))
        samples = _SAMPLES if len(remote) == 1 else 1
        return tuple(
            AgentConf(
                base_url=spec.base_url,
                model=spec.model,
                api_key_env=spec.api_key_env,
                samples=samples,
            )
            for spec in remote
        ), f"found at {places}"
    if not specs:
        raise ConfigError(
            "llamoot",
            "members",
            "there is no llamoot.toml, no endpoint and no model here; "
            "`llamoot pull` downloads a model, OPENAI_BASE_URL names an endpoint",
        )
    paths = {spec.model: find_model(spec.model) for spec in specs}
    best = max(specs, key=lambda spec: paths[spec.model].stat().st_size)
    made = AgentConf(model=best.model, samples=_SAMPLES)
    return (made,), f"the model file {paths[best.model].name}"


def panel(config: Config, name: str = "") -> Panel:
    """The panel of a council; a local model whose name does not tell its size is given the one
    that its file has at four to five bits a weight."""
    made = panels.panel(config, name)
    places = []
    for place in made.places:
        if place.size is None and not place.spec.base_url and not place.spec.script:
            try:
                size = find_model(place.spec.model).stat().st_size * _WEIGHTS_PER_BYTE / 1e9
            except LlamootError:  # it will say so when it is asked
                size = None
            place = msgspec.structs.replace(place, size=size)
        places.append(place)
    return msgspec.structs.replace(made, places=tuple(places))


def store_or_memory(path: Path | None, warn: Callable[[str], None]) -> Store:
    """The file of runs; where it cannot be written, one in memory, and `warn` is told."""
    try:
        return Store(path or runs_file())
    except LlamootError as error:
        warn(str(error))
        return Store(":memory:")


def open_embedder(spec: AgentSpec | None) -> Embedder | None:
    """What measures likeness: an endpoint's `/v1/embeddings` or a local model."""
    if spec is None:
        return None
    if spec.base_url:
        key = env.secret(spec.api_key_env) if spec.api_key_env else ""
        return RemoteEmbedder(spec.model, spec.base_url, key=key, headers=spec.headers)
    return _LocalEmbedder(spec)


class _LocalEmbedder:
    """An embedder over a local agent, opened when it is first needed."""

    def __init__(self, spec: AgentSpec) -> None:
        self._spec = spec
        self._agent: Any = None

    async def embed(self, texts: list[str]) -> list[list[float]]:
        if self._agent is None:
            self._agent = open_agent(self._spec)
        vectors, _ = await self._agent.embed(texts)
        return [[float(x) for x in vector] for vector in vectors]


class Council(council.Council):
    """A council that is ready to be asked.

    >>> council = await llamoot.Council.open("llamoot.toml")
    >>> done = await council.ask("What is 17 + 25?")
    >>> done.text, done.agreement, done.usage.completion_tokens
    """

    _runner: asyncio.Runner | None = None

    @classmethod
    async def open(
        cls,
        path: str | Path | None = None,
        members: Iterable[str] = (),
        *,
        store: Store | None = None,
        **changes: Any,
    ) -> "Council":
        """From a file, from `members`, or from what is found; see `configure`."""
        return cls.of(panel(await configure(path, members, **changes)), store)

    @classmethod
    def of(cls, made: Panel, store: Store | None = None) -> "Council":
        """A council of this panel."""
        return cls(made, open_agent, store=store, embedder=open_embedder(made.embedder))

    @classmethod
    def open_sync(
        cls, path: str | Path | None = None, members: Iterable[str] = (), **changes: Any
    ) -> "Council":
        """As `open`, for programs without an event loop."""
        return asyncio.run(cls.open(path, members, **changes))

    def ask_sync(
        self,
        question: str | Sequence[Message],
        *,
        listener: Callable[[Event], None] | None = None,
    ) -> Transcript:
        """As `ask`, for programs without an event loop; connections stay open between calls."""
        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(self.ask(question, listener=listener))

    def close_sync(self) -> None:
        """Close the agents that `ask_sync` opened."""
        if self._runner is not None:
            self._runner.run(self.close())
            self._runner.close()
            self._runner = None
