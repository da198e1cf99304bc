"""`llamoot plan`: what a question would cost. Nothing is asked and nothing is spent."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from llamoot import api
from llamoot.agents.files import find_model
from llamoot.agents.types import Message
from llamoot.cli import ask as asking
from llamoot.cli import render
from llamoot.cli.options import Argument
from llamoot.council.folds import Transcript
from llamoot.council.panel import Panel
from llamoot.council.plan import Plan, learn, predict


def plan(
    question: Annotated[str, Argument(help="the question")],
    config: asking.Config = None,
    council: asking.Name = None,
    member: asking.Members = None,
    protocol: asking.Protocol = None,
    samples: asking.Samples = None,
    json: asking.Json = False,
) -> None:
    """Predict calls, tokens, seconds, money and memory, from recorded runs where there are any."""
    changes = {"council": council, "protocol": protocol, "samples": samples}
    made = api.panel(asyncio.run(api.configure(config, member or [], **changes)))
    store = api.store_or_memory(None, render.note)
    runs = store.transcripts()
    store.close()
    said = predict(made, [Message("user", question)], learn(runs))
    weights = memory(made)
    past = [d for d in runs if d.started and d.started.council == made.name and d.text]
    errors = _past_errors(made, past)
    if json:
        render.print_json(
            {**msgspec.structs.asdict(said), "weights_bytes": weights, "past_errors": errors}
        )
        return
    print(f"protocol  {said.protocol} on a {said.kind}: {' → '.join(said.rounds)}")
    print(f"calls     {said.calls} at most")
    print(f"tokens    {said.read + said.written:,} ({said.read:,} read, {said.written:,} written)")
    print(f"seconds   {said.seconds:.1f}, limit {made.rules.deadline or 0:g}")
    print(f"cost      {said.cost:.4f}" if said.cost else "cost      no money")
    print(f"memory    {weights / 1e6:,.0f} MB of weights" if weights else "memory    none here")
    how = "recorded runs of these models" if said.measured else "rules of thumb"
    print(f"based on  {how}", end="")
    print(f"; off by {errors['tokens']:.0%} in tokens so far" if "tokens" in errors else "")


def memory(made: Panel) -> int:
    """Bytes of the local model files that would be opened, each counted once."""
    local: set[Path] = set()
    for place in made.places:
        if not place.spec.base_url and not place.spec.script:
            local.add(find_model(place.spec.model))
    return sum(path.stat().st_size for path in local)


def _past_errors(made: Panel, past: list[Transcript]) -> dict[str, float]:
    """Mean size of the error that predictions for earlier runs of this council would have had."""
    found: dict[str, list[float]] = {}
    for i, done in enumerate(past[:10]):
        assert done.started is not None
        said: Plan = predict(made, done.started.messages, learn(past[i + 1 :]))
        for name, error in said.errors(done).items():
            found.setdefault(name, []).append(abs(error))
    return {name: sum(errors) / len(errors) for name, errors in found.items()}
