"""Who sits in a council and by which rules, as plain data: made from a configuration, recorded
with every run, and enough to open the same council again. It names keys and never holds one.
"""

import re
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from llamoot.agents.types import AgentSpec, Format, Message, Sampling
from llamoot.council.answers import Kind, KindName, detect
from llamoot.council.calls import Rules
from llamoot.council.config import AgentConf, Config, CouncilConf, resolve
from llamoot.council.flow import Seat, labels
from llamoot.council.protocols import Case

SAMPLE_TEMPERATURE = 0.8  # of several samples of one model, where none is set


class Place(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One seat: the agent that fills it and how it is asked. `expert` False: only a chair."""

    label: str
    spec: AgentSpec
    persona: str = ""
    sampling: Sampling = Sampling()
    weight: float = 1.0
    size: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    logprobs: bool = False
    constrained: bool = False
    expert: bool = True

    def seat(self) -> Seat:
        return Seat(
            self.label, self.spec.model, self.persona, self.weight, self.size, self.constrained
        )


class Panel(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A council as data. `chairs`: labels from the strongest on."""

    name: str
    places: tuple[Place, ...]
    chairs: tuple[str, ...]
    protocol: str = "auto"
    kind: str = ""
    rules: Rules = Rules()
    min_rounds: int = 1
    max_rounds: int = 2
    layers: int = 1
    early_stop: bool = True
    freeze: bool = True
    seed: int | None = None
    embedder: AgentSpec | None = None

    def case(self, messages: Sequence[Message], format: Format | None = None) -> Case:
        """What a protocol is given for this question."""
        seats = {place.label: place.seat() for place in self.places}
        return Case(
            messages=tuple(messages),
            seats=tuple(seats[place.label] for place in self.places if place.expert),
            chairs=tuple(seats[label] for label in self.chairs),
            kind=_kind(self.kind, messages[-1].content, format),
            format=format,
            min_rounds=self.min_rounds,
            max_rounds=self.max_rounds,
            threshold=self.rules.threshold,
            layers=self.layers,
            early_stop=self.early_stop,
            freeze=self.freeze,
            seed=self.seed or 0,
        )

    def seeded(self, seed: int) -> "Panel":
        """This panel with its seed fixed, so that samples differ and a run can be repeated."""
        base = seed if self.seed is None else self.seed
        places = tuple(
            place
            if place.sampling.seed is not None or place.spec.base_url
            else msgspec.structs.replace(
                place, sampling=msgspec.structs.replace(place.sampling, seed=base + i)
            )
            for i, place in enumerate(self.places)
        )
        return msgspec.structs.replace(self, seed=base, places=places)


def _kind(name: str, question: str, format: Format | None) -> Kind:
    found = detect(question, format)
    if not name or name == found.name:
        return found
    return Kind(msgspec.convert(name, KindName))


def panel(config: Config, name: str = "") -> Panel:
    """The panel of the council `name`; experts are labelled A, B, … in their order."""
    name, conf = config.council(name)
    where = f"councils.{name}"
    entries = [resolve(config, entry, f"{where}.members") for entry in conf.members]
    names = labels(sum(entry.samples for entry in entries))
    experts: list[Place] = []
    for entry in entries:
        for sample in range(entry.samples):
            experts.append(_place(config, entry, names[len(experts)], sample))
    wanted = [c for c in (conf.synthesizer, *conf.fallbacks) if c is not None]
    chairs: list[Place] = []
    for entry in (resolve(config, c, f"{where}.synthesizer") for c in wanted):
        label = "chair" if not chairs else f"chair{len(chairs) + 1}"
        made = _place(config, entry, label, 0, expert=False)
        same = [place for place in experts if place.spec == made.spec]
        chairs.append(same[0] if same and made.persona == same[0].persona else made)
    by_strength = sorted(experts, key=lambda p: (-(p.size or 0.0), -p.weight, names.index(p.label)))
    for place in by_strength:
        if place.spec not in [chair.spec for chair in chairs]:
            chairs.append(place)
    extra = [chair for chair in chairs if not chair.expert]
    return _made(config, name, conf, [*experts, *extra], chairs)


def _made(
    config: Config, name: str, conf: CouncilConf, places: list[Place], chairs: list[Place]
) -> Panel:
    experts = sum(place.expert for place in places)
    limits = [limit for limit in (conf.deadline, conf.max_seconds) if limit is not None]
    rules = Rules(
        quorum=conf.quorum or (experts + 1) // 2,
        deadline=min(limits),
        grace=conf.grace,
        reserve=conf.reserve,
        threshold=conf.threshold,
        max_total_tokens=conf.max_total_tokens,
        max_cost=conf.max_cost,
    )
    embedder = None
    if conf.embedder is not None:
        found = resolve(config, conf.embedder, f"councils.{name}.embedder")
        embedder = spec_of(config, found)
    return Panel(
        name=name,
        places=tuple(places),
        chairs=tuple(dict.fromkeys(chair.label for chair in chairs)),
        protocol=conf.protocol,
        kind=conf.kind,
        rules=rules,
        min_rounds=conf.min_rounds,
        max_rounds=conf.max_rounds,
        layers=conf.layers,
        early_stop=conf.early_stop,
        freeze=conf.freeze,
        seed=conf.seed,
        embedder=embedder,
    )


def _place(config: Config, conf: AgentConf, label: str, sample: int, expert: bool = True) -> Place:
    spec = spec_of(config, conf)
    local = not spec.base_url and not spec.script
    temperature = conf.temperature
    if temperature is None and conf.samples > 1:
        temperature = SAMPLE_TEMPERATURE
    return Place(
        label=label,
        spec=spec,
        persona=conf.persona,
        sampling=Sampling(
            temperature=temperature,
            top_p=conf.top_p,
            max_tokens=conf.max_tokens,
            seed=None if conf.seed is None else conf.seed + sample,
        ),
        weight=conf.weight,
        size=conf.size if conf.size is not None else size_of(conf.model),
        input_price=conf.input_price,
        output_price=conf.output_price,
        logprobs=local if conf.logprobs is None else conf.logprobs,
        constrained=local if conf.constrained is None else conf.constrained,
        expert=expert,
    )


def spec_of(config: Config, conf: AgentConf) -> AgentSpec:
    """What opens the agent: what the entry says itself stands before what its endpoint says."""
    end = config.endpoints.get(conf.endpoint)
    first = conf.first_token_timeout
    idle, total = conf.idle_timeout, conf.timeout
    return AgentSpec(
        id=conf.agent or conf.model or conf.endpoint or "scripted",
        model=conf.model,
        base_url=conf.base_url or (end.base_url if end else ""),
        api_key_env=conf.api_key_env or (end.api_key_env if end else ""),
        headers=end.headers if end else {},
        proxy=end.proxy if end else "",
        ca_file=end.ca_file if end else "",
        connect_timeout=end.connect_timeout if end else None,
        write_timeout=end.write_timeout if end else None,
        first_token_timeout=first if first is not None or not end else end.first_token_timeout,
        idle_timeout=idle if idle is not None or not end else end.idle_timeout,
        timeout=total if total is not None or not end else end.timeout,
        retries=end.retries if end else None,
        context_length=conf.context_length,
        script=conf.script,
    )


def size_of(model: str) -> float | None:
    """Billions of parameters as the model's name tells them: 'qwen3-0.6b' is 0.6."""
    found = re.findall(r"(?<![\d.])(\d+(?:\.\d+)?)\s?([bmk])(?![a-z])", model.lower())
    if not found:
        return None
    number, unit = found[-1]
    return float(number) * {"b": 1.0, "m": 1e-3, "k": 1e-6}[unit]
