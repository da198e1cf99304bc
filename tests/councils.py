"""Councils of scripted agents, for tests."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from llamoot.agents.scripted import ScriptedAgent
from llamoot.agents.types import Agent, AgentSpec, ChatRequest, Sampling
from llamoot.council import prompts
from llamoot.council.calls import Rules
from llamoot.council.council import Council
from llamoot.council.flow import labels
from llamoot.council.folds import Transcript
from llamoot.council.panel import Panel, Place

SUM = "What is 17 + 25? Answer with a number."
OPEN = "Explain why the sky is blue."


def stage_of(request: ChatRequest) -> str:
    """Which stage a request belongs to, as its last turn tells."""
    text = request.messages[-1].content
    if prompts.SYNTHESIS in text:
        return "synthesis"
    if prompts.LIST not in text:
        return "draft"
    return "ballot" if "Rank the entries" in text else "revise"


def seat(agents: Sequence[Agent], **changes: Any) -> Council:
    """A council of these agents, labelled A, B, …; `chair` adds one that only writes.

    Other keywords are fields of Rules, Panel or (as dicts by label) Place.
    """
    store, embedder = changes.pop("store", None), changes.pop("embedder", None)
    chair = changes.pop("chair", None)
    places_changes = changes.pop("places", {})
    names = labels(len(agents))
    by_id: dict[str, Agent] = dict(zip(names, agents))
    places = [
        Place(label=n, spec=AgentSpec(id=n, model=a.model), **places_changes.get(n, {}))
        for n, a in by_id.items()
    ]
    chairs = list(names)
    if chair is not None:
        by_id["chair"] = chair
        spec = AgentSpec(id="chair", model=chair.model)
        places.append(Place(label="chair", spec=spec, expert=False))
        chairs.insert(0, "chair")
    rules = {k: changes.pop(k) for k in list(changes) if k in Rules.__struct_fields__}
    rules.setdefault("quorum", (len(agents) + 1) // 2)
    rules.setdefault("deadline", 20.0)
    changes.setdefault("seed", 1)
    panel = Panel(
        name=changes.pop("name", "test"),
        places=tuple(places),
        chairs=tuple(chairs),
        rules=Rules(**rules),
        **changes,
    )
    return Council(panel, lambda spec: by_id[spec.id], store=store, embedder=embedder)


def play(council: Council, question: Any = SUM, **options: Any) -> Transcript:
    """The transcript of one run, whatever it came to."""

    async def run() -> Transcript:
        done = await council.start(question, **options).wait()
        await council.close()
        return done

    return asyncio.run(run())


def by_stage(**texts: Any) -> Callable[[ChatRequest], Any]:
    """A script that answers by stage; `draft` stands for stages without one."""
    return lambda request: texts.get(stage_of(request), texts.get("draft", ""))


def scripted(*scripts: Any) -> list[ScriptedAgent]:
    return [ScriptedAgent(name, script) for name, script in zip(labels(len(scripts)), scripts)]


COOL = Sampling(temperature=0.0)
