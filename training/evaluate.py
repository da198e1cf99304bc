"""How often the built-in model is right, by kind, on problems it never saw.

    python training/evaluate.py src/llamoot/models/abacus.gguf --problems 1000 --seed 7

Greedy answers through the engine itself; unreadable answers count as wrong. Prints a table with
95 % Wilson intervals and writes the figures as JSON.
"""

import argparse
import asyncio
import json
import pathlib
from collections import defaultdict
from itertools import islice

from llamoot.agents.local import LocalAgent
from llamoot.agents.types import ChatRequest, Message, Sampling
from llamoot.council.answers import canonical, detect
from llamoot.council.evidence import wilson
from llamoot.council.problems import Problem, problems


async def answer(agent: LocalAgent, problem: Problem) -> str:
    """The model's greedy answer, without its working."""
    request = ChatRequest(
        messages=(Message("user", problem.question),),
        sampling=Sampling(temperature=0.0, max_tokens=128),
    )
    return "".join([token.text async for token in agent.chat(request)])


async def evaluate(path: pathlib.Path, n: int, seed: int) -> dict[str, list[int]]:
    """kind -> [right, asked]"""
    agent = LocalAgent("abacus", path)
    gate = asyncio.Semaphore(8)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    async def one(problem: Problem) -> None:
        async with gate:
            text = await answer(agent, problem)
        kind = detect(problem.question)
        right = canonical(text, kind) == canonical(problem.answer, kind)
        counts[problem.kind][0] += right
        counts[problem.kind][1] += 1
        if not right:
            print(f"wrong: {problem.question} -> {text!r}, not {problem.answer}")

    await asyncio.gather(*(one(p) for p in islice(problems(seed, "test"), n)))
    await agent.close()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    counts = asyncio.run(evaluate(options.model, options.problems, options.seed))
    counts["all"] = [sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values())]
    rows = {}
    for kind, (right, n) in sorted(counts.items()):
        low, high = wilson(right, n)
        rows[kind] = {"right": right, "asked": n, "share": right / n, "low": low, "high": high}
        print(f"{kind:12} {right:5} of {n:5}   {right / n:6.1%}   [{low:.1%}, {high:.1%}]")
    if options.out:
        figures = {"seed": options.seed, "problems": options.problems, "kinds": rows}
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
