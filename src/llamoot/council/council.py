"""A council: a panel whose agents are open, ready to be asked, resumed and replayed."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from llamoot import env
from llamoot.agents.types import (
    Agent,
    AgentSpec,
    ChatRequest,
    ChatToken,
    Embedder,
    Format,
    Message,
    Sampling,
)
from llamoot.council.calls import Member, sound
from llamoot.council.config import expand
from llamoot.council.convene import convene
from llamoot.council.events import Answer as Answered
from llamoot.council.events import (
    AnyEvent,
    CouncilFailed,
    CouncilFinished,
    CouncilResumed,
    CouncilStarted,
    Event,
    ExpertFailed,
    MemberInfo,
    RoundFinished,
    RoundStarted,
    Warned,
)
from llamoot.council.folds import Transcript
from llamoot.council.panel import Panel
from llamoot.council.protocols import PROTOCOLS
from llamoot.council.run import Listener, Run, new_id
from llamoot.council.store import Store
from llamoot.errors import BadRequest, ContextOverflow, LlamootError, Transport
from llamoot.errors import CouncilFailed as Failed

Open = Callable[[AgentSpec], Agent]
_CHARACTERS = 8  # a token stands for fewer characters than this in any usual text
_LONGEST = 3600.0  # seconds that a run without a deadline of another process is waited for
_POLL = 0.1  # seconds between looks at a run of another process


class Absent:
    """Sits in for an agent that could not be opened; says why when it is asked."""

    def __init__(self, spec: AgentSpec, error: LlamootError) -> None:
        self.id, self.model, self.error = spec.id, spec.model, error
        self.timeout: float | None = None
        self.context_length: int | None = None

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        raise Transport(self.id, f"could not be opened: {self.error}")
        yield ChatToken()  # makes this a stream

    async def close(self) -> None:
        """Nothing is held."""


class Council:
    """Opens no connection and loads no model before the first question.

    An agent that cannot be opened does not prevent the council from being asked: it fails in its
    rounds, and the quorum decides.
    """

    def __init__(
        self,
        panel: Panel,
        open_agent: Open,
        *,
        store: Store | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        self.panel, self.store, self.embedder = panel, store, embedder
        self.name = panel.name
        self.live: dict[str, Run] = {}
        self._open = open_agent
        self._agents: dict[bytes, Agent] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def context_length(self) -> int | None:
        """What every expert can hold: the least of their context lengths, where any is known."""
        known = [m.agent.context_length for m in self.members(self.panel)]
        return min((length for length in known if length), default=None)

    def members(self, panel: Panel) -> list[Member]:
        """The panel's places with their agents; places of one spec share one agent."""
        return [
            Member(
                place.seat(),
                self._agent(place.spec),
                place.sampling,
                place.input_price,
                place.output_price,
                place.logprobs,
            )
            for place in panel.places
        ]

    def _agent(self, spec: AgentSpec) -> Agent:
        key = msgspec.json.encode(spec)
        found = self._agents.get(key)
        if found is None:
            headers = {name: expand(value) for name, value in spec.headers.items()}
            try:
                found = self._open(msgspec.structs.replace(spec, headers=headers))
            except LlamootError as error:
                found = Absent(spec, error)
            self._agents[key] = found
        return found

    # Asking

    def start(
        self,
        messages: str | Sequence[Message],
        *,
        key: str = "",
        listener: Listener | None = None,
        format: Format | None = None,
        sampling: Sampling | None = None,
    ) -> Run:
        """Begin a run and return at once. With `key`, a run that already has it is joined.

        Raises BadRequest or ContextOverflow before any call where the question cannot be put.
        """
        if isinstance(messages, str):
            messages = [Message("user", messages)]
        panel = self._checked(messages, sampling)
        run = Run(new_id(), self.store, listener)
        if self.store is not None:
            question = messages[-1].content
            try:
                id = self.store.create(run.id, self.name, question, key or None)
            except LlamootError as error:
                run.store, id = None, run.id
                run.late = str(error)
            if id != run.id:
                return self._join(id, listener)
        case = panel.case(messages, format)
        run.emit(
            CouncilStarted(
                run=run.id,
                council=self.name,
                protocol=panel.protocol,
                kind=case.kind.name,
                messages=tuple(messages),
                members=tuple(_info(panel)),
                chairs=panel.chairs,
                quorum=panel.rules.quorum,
                format=format,
                settings=msgspec.to_builtins(panel),
            )
        )
        if run.late:
            run.emit(Warned(code="not_recorded", message=run.late))
        return self._play(run, panel)

    def _checked(self, messages: Sequence[Message], sampling: Sampling | None) -> Panel:
        if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
            raise BadRequest("the last message must be a question of the user", "messages")
        if any(sound(message.content) != message.content for message in messages):
            raise BadRequest("the question is not valid Unicode text", "messages")
        panel = self.panel.seeded(random.getrandbits(31))
        if sampling is not None:
            last = Sampling(max_tokens=sampling.max_tokens, stop=sampling.stop)
            rules = msgspec.structs.replace(panel.rules, last=last)
            rest = msgspec.structs.replace(sampling, max_tokens=None, stop=(), logprobs=None)
            given = msgspec.structs.asdict(rest)
            changed = {f: v for f, v in given.items() if v not in (None, ()) and f != "seed"}
            places = tuple(
                msgspec.structs.replace(
                    place, sampling=msgspec.structs.replace(place.sampling, **changed)
                )
                for place in panel.places
            )
            panel = msgspec.structs.replace(panel, places=places, rules=rules)
            if sampling.seed is not None:
                panel = msgspec.structs.replace(self.panel, places=places, rules=rules, seed=None)
                panel = panel.seeded(sampling.seed)
        self._fits(messages)
        return panel

    def _fits(self, messages: Sequence[Message]) -> None:
        least = sum(len(message.content) for message in messages) // _CHARACTERS
        lengths = [m.agent.context_length for m in self.members(self.panel)]
        fitting = sum(length is None or least < length for length in lengths)
        if fitting < self.panel.rules.quorum:
            raise ContextOverflow(least, max(length for length in lengths if length))

    def _play(self, run: Run, panel: Panel) -> Run:
        started = run.transcript.started
        assert started is not None
        case = panel.case(started.messages, started.format)
        self.live[run.id] = run
        run.task = asyncio.create_task(
            convene(
                run,
                PROTOCOLS[panel.protocol](case),
                self.members(panel),
                panel.rules,
                strongest=next((c for c in panel.chairs), ""),
                embedder=self.embedder,
                scrub=_scrubber(panel),
            )
        )
        run.task.add_done_callback(lambda task: self._ended(run, task))
        return run

    def _ended(self, run: Run, task: "asyncio.Task[None]") -> None:
        self.live.pop(run.id, None)
        error = None if task.cancelled() else task.exception()
        if not run.over:  # a fault of llamoot itself: the run still ends with a typed event
            what = f"{type(error).__name__}: {error}" if error else "the run was cancelled"
            code = "internal" if error else "cancelled"
            run.emit(CouncilFailed(code=code, message=_scrubber(self.panel)(what)))

    async def ask(
        self, question: str | Sequence[Message], *, key: str = "", listener: Listener | None = None
    ) -> Transcript:
        """The transcript of a finished run. Raises CouncilFailed where there is no answer."""
        run = self.start(question, key=key, listener=listener)
        try:
            done = await run.wait()
        except asyncio.CancelledError:
            run.cancel()
            await run.wait()
            raise
        return answered(done)

    # Runs that exist

    def _join(self, id: str, listener: Listener | None) -> Run:
        """The run `id` again: live, finished, of another process, or left behind and resumed."""
        if id in self.live:
            return self.live[id]
        assert self.store is not None
        row = self.store.find(id)
        if row.state == "running" and not row.alive:
            return self.resume(id, listener)
        run = Run(id, None, listener)
        run.load(self.store.events(id))
        if not run.over:
            run.task = asyncio.create_task(self._watch(run, self.store))
        return run

    async def _watch(self, run: Run, store: Store) -> None:
        """Follow a run that another process is playing, for as long as it may take."""
        started = run.transcript.started
        limit = recorded_panel(run.events).rules.deadline if started else None
        ends = time.monotonic() + (limit or _LONGEST) + 10
        while not run.over:
            for event in store.events(run.id, len(run.events)):
                run.emit(event)
            if not run.over and (not store.find(run.id).alive or time.monotonic() > ends):
                message = "the process that ran it ended; `llamoot resume` continues it"
                run.emit(CouncilFailed(code="cancelled", message=message))
            await asyncio.sleep(_POLL)

    def resume(self, id: str, listener: Listener | None = None) -> Run:
        """Go on with a killed run: what was answered stays, only the rest is asked.

        A finished run is returned as it is; one that failed is tried again from its answers.
        """
        store, past = self._past(id)
        run = Run(id, store, listener)
        finished = any(isinstance(event, CouncilFinished) for event in past)
        run.load(past)
        if finished:
            run.store = None
            return run
        store.claim(id)
        run.emit(CouncilResumed())
        return self._play(run, recorded_panel(past))

    def rechair(self, id: str, chair: str, listener: Listener | None = None) -> Run:
        """A new run from the recorded drafts of `id`, its last stage written by `chair`."""
        store, past = self._past(id)
        panel = recorded_panel(past)
        found = [p.label for p in panel.places if chair in (p.label, p.spec.id, p.spec.model)]
        if not found:
            names = ", ".join(f"{p.label} ({p.spec.id})" for p in panel.places)
            raise BadRequest(
                f"nobody called '{chair}' sat in this run; there were {names}", "chair"
            )
        chairs = (found[0], *(label for label in panel.chairs if label != found[0]))
        panel = msgspec.structs.replace(panel, chairs=chairs)
        started = past[0]
        assert isinstance(started, CouncilStarted)
        run = Run(new_id(), store, listener)
        store.create(run.id, self.name, started.messages[-1].content)
        begin = msgspec.structs.replace(
            started, run=run.id, chairs=chairs, settings=msgspec.to_builtins(panel)
        )
        run.emit(begin)
        run.emit(CouncilResumed(chair=found[0]))
        for event in _drafts(past):
            run.emit(event)
        return self._play(run, panel)

    def _past(self, id: str) -> tuple[Store, list[AnyEvent]]:
        if self.store is None:
            raise BadRequest("this council keeps no runs", "run")
        return self.store, self.store.events(self.store.find(id).id)

    async def close(self) -> None:
        """End what is running and close every agent."""
        for run in list(self.live.values()):
            run.cancel()
            await run.wait()
        agents, self._agents = list(self._agents.values()), {}
        for agent in agents:
            await agent.close()


def answered(done: Transcript) -> Transcript:
    """`done` itself; raises CouncilFailed where the run ended without an answer."""
    if done.failure is not None:
        raise Failed(done.failure.code, done.failure.message, done.run)
    return done


def _info(panel: Panel) -> list[MemberInfo]:
    return [MemberInfo(p.label, p.spec.id, p.spec.model, p.persona) for p in panel.places]


def recorded_panel(past: Sequence[Event]) -> Panel:
    """The panel that a run was started with."""
    started = past[0]
    assert isinstance(started, CouncilStarted)
    return msgspec.convert(started.settings, Panel)


def _drafts(past: Sequence[Event]) -> list[Event]:
    """Everything said before the last stage, as it is needed to play a run again; the calls were
    paid for by the run they come from."""
    last = {e.round for e in past if isinstance(e, RoundStarted) and e.stage == "synthesis"}
    free: list[Event] = []
    for event in past:
        if getattr(event, "round", 0) in last:
            continue
        if isinstance(event, Answered | ExpertFailed):
            free.append(msgspec.structs.replace(event, reused=True))
        elif isinstance(event, RoundStarted | RoundFinished):
            free.append(msgspec.structs.replace(event))
    return free


def _scrubber(panel: Panel) -> Callable[[str], str]:
    """Takes the keys this panel uses out of a text, should a server ever echo one."""
    names = {place.spec.api_key_env for place in panel.places} - {""}
    headers = [v for p in panel.places for v in p.spec.headers.values() if "${" in v]
    keys = [key for key in (env.secret(name) for name in sorted(names)) if len(key) > 3]
    keys += [expand(value) for value in headers]

    def scrub(text: str) -> str:
        for key in keys:
            text = text.replace(key, "***")
        return text

    return scrub
