"""What a council costs on top of its members: python bench/bench_council.py [debates]

Part 1: eight scripted experts of 200 tokens each; the time of the council over the time of its
slowest member. Part 2: that many debates of three experts at once (default 1,000) in one process,
against a server on loopback in another; errors, seconds, peak memory. Prints JSON at the end.
"""

import asyncio
import json
import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection

from llamoot.agents.catalog import open_agent
from llamoot.agents.misbehave import Act, MisbehavingServer, Received, answer
from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import AgentSpec, ChatRequest, Message
from llamoot.council import prompts
from llamoot.council.calls import Rules
from llamoot.council.council import Council
from llamoot.council.panel import Panel, Place

QUESTION = "What is 17 + 25? Answer with a number."
DRAFTS = {"A": "It is 42.", "B": "I make it 43.", "C": "41"}


def says(request: Received) -> Act:
    """Three different drafts; in the second round everyone agrees."""
    body = request.json()
    revised = prompts.LIST in body["messages"][-1]["content"]
    text = "So it is 42." if revised else DRAFTS[body["model"]]
    return Act(body=answer(*(piece + " " for piece in text.split())))


def serve(pipe: Connection) -> None:
    async def run() -> None:
        async with MisbehavingServer(says) as server:
            pipe.send(server.url)
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
            pipe.send((len(server.requests), server.connections))

    asyncio.run(run())


def panel(
    base_url: str = "", protocol: str = "debate", names: str = "ABC", early: bool = True
) -> Panel:
    places = tuple(
        Place(label=n, spec=AgentSpec(id=n, model=n, base_url=base_url, timeout=600)) for n in names
    )
    rules = Rules(quorum=len(names), deadline=600.0)
    return Panel(
        name="bench",
        places=places,
        chairs=tuple(names),
        protocol=protocol,
        rules=rules,
        early_stop=early,
    )


async def overhead(repeats: int = 9) -> dict[str, float]:
    """Seconds over the slowest member, which needs 200 x 5 ms."""
    over = []
    reply = Reply(tokens=("w ",) * 199 + ("42",), delay=0.005)
    for _ in range(repeats):
        made = panel(protocol="vote", names="ABCDEFGH", early=False)
        council = Council(made, lambda spec: ScriptedAgent(spec.id, reply))
        council.panel = made
        alone = ScriptedAgent("alone", reply)
        began = time.perf_counter()
        async for _ in alone.chat(ChatRequest(messages=(Message("user", QUESTION),))):
            pass
        single = time.perf_counter() - began
        began = time.perf_counter()
        await council.ask(QUESTION)
        over.append(time.perf_counter() - began - single)
    return {"median_ms": statistics.median(over) * 1e3, "best_ms": min(over) * 1e3}


async def debates(count: int, base_url: str) -> dict[str, float | str]:
    council = Council(panel(base_url), open_agent)
    began = time.perf_counter()
    runs = [council.start(QUESTION) for _ in range(count)]
    done = [await run.wait() for run in runs]
    seconds = time.perf_counter() - began
    await council.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    failures = [f.message for d in done for r in d.rounds.values() for f in r.failures.values()]
    return {
        "debates": count,
        "answered_42": sum(d.text == "42" for d in done),
        "failed_calls": len(failures),
        "calls": sum(d.calls for d in done),
        "seconds": round(seconds, 2),
        "peak_mb": round(peak, 1),
        "first_failure": failures[0] if failures else "",
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    base_url = here.recv()
    found = {"overhead": asyncio.run(overhead()), "at_once": asyncio.run(debates(count, base_url))}
    here.send(None)
    requests, connections = here.recv()
    found["server"] = {"requests": requests, "connections": connections}
    server.join()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
