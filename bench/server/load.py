"""Tokens per second through the server beside the engine's own, and a soak with disconnects.

    python bench/server/load.py MODEL [--threads 2] [--rounds 3] [--tokens 16]
    python bench/server/load.py MODEL --soak 60

Server and engine share one process and one opened model; the clients are another process. Rounds
are interleaved (engine, server, engine, …) with prompts that no other round has.
`--json FILE` adds the figures to a file.
"""

import argparse
import asyncio
import gc
import json
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import uvicorn

from llamoot.agents.local import LocalAgent
from llamoot.agents.model import Model, close_model, open_model
from llamoot.engine.budget import Settings
from llamoot.engine.sampler import Params
from llamoot.engine.sequence import Output, Sequence
from llamoot.server.app import create_app
from llamoot.server.connections import Connection
from llamoot.server.gate import Limits
from llamoot.server.registry import Entry, Registry
from llamoot.server.state import State

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from clients import prompt

CLIENTS = (1, 4, 16)


async def own(model: Model, clients: int, tokens: int, number: int) -> dict[str, Any]:
    """The same prompts straight to the engine."""
    loop, left, total = asyncio.get_running_loop(), clients, 0
    done = asyncio.Event()

    def ended(n: int) -> None:
        nonlocal left, total
        left, total = left - 1, total + n
        if not left:
            done.set()

    seqs = []
    for client in range(clients):
        ids = prompt(number, client, model.config.n_vocab)
        seq = Sequence(ids, Params(temperature=0), max_new=tokens, stop_ids=model.tokenizer.eog)

        def tell(output: Output, seq: Sequence = seq) -> None:
            if output.finish:
                loop.call_soon_threadsafe(ended, seq.n_new)

        seq.sink = tell
        seqs.append(seq)
    began = time.perf_counter()
    for seq in seqs:
        model.engine.submit(seq)
    await done.wait()
    seconds = time.perf_counter() - began
    first = max(seq.first_token - seq.submitted for seq in seqs)
    return {"tokens": total, "seconds": seconds, "first": first}


async def others(*words: object) -> dict[str, Any]:
    """What `clients.py` printed."""
    file = pathlib.Path(__file__).with_name("clients.py")
    made = await asyncio.create_subprocess_exec(
        sys.executable, file, *map(str, words), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await made.communicate()
    seen: dict[str, Any] = json.loads(out)
    return seen


async def load(model: Model, port: int, rounds: int, tokens: int) -> dict[str, Any]:
    """For each number of clients: tokens per second of both, their ratio, the processor time that
    the server's own thread spends on a token, and when the last client had its first token."""
    vocab, rows = model.config.n_vocab, {}
    await others("load", port, 1, 4, 999_999, vocab)
    times: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {n: [] for n in CLIENTS}
    for number in range(rounds):
        for n in CLIENTS:
            alone = await own(model, n, tokens, number * 200 + n)
            spent = time.thread_time()
            through = await others("load", port, n, tokens, number * 200 + 100 + n, vocab)
            through["spent"] = time.thread_time() - spent
            times[n].append((alone, through))
    for n, pairs in times.items():
        speeds = [[run["tokens"] / run["seconds"] for run in pair] for pair in pairs]
        rows[str(n)] = {
            "engine_tokens_per_s": round(statistics.median(a for a, _ in speeds), 2),
            "server_tokens_per_s": round(statistics.median(b for _, b in speeds), 2),
            "best_engine": round(max(a for a, _ in speeds), 2),
            "best_server": round(max(b for _, b in speeds), 2),
            "median_ratio": round(statistics.median(b / a for a, b in speeds), 3),
            "ratios": [round(b / a, 3) for a, b in speeds],
            "server_ms_per_token": round(
                statistics.median(1e3 * b["spent"] / b["tokens"] for _, b in pairs), 3
            ),
            "engine_last_first_token_s": round(statistics.median(a["first"] for a, _ in pairs), 3),
            "server_last_first_token_s": round(statistics.median(b["first"] for _, b in pairs), 3),
        }
        print(n, rows[str(n)], flush=True)
    return rows


def state_of_things(model: Model) -> dict[str, int]:
    """What must not grow."""
    gc.collect()
    fds = pathlib.Path("/proc/self/fd")
    links = [os.readlink(one) for one in fds.iterdir() if one.is_symlink()]
    status = pathlib.Path("/proc/self/status").read_text()
    return {
        "memory_kb": int(status.partition("VmRSS:")[2].split()[0]),
        "blocks_in_use": model.engine.n_blocks - model.engine.blocks.n_free,
        "sequences": model.engine.n_running + model.engine.n_waiting,
        "tasks": len(asyncio.all_tasks()),
        "sockets": sum(link.startswith("socket:") for link in links),
        "objects": len(gc.get_objects()),
    }


async def soak(model: Model, port: int, seconds: float) -> dict[str, Any]:
    """State before and after random traffic with random disconnects; a fifth of it is warm-up."""
    await others("soak", port, seconds / 5, 16)
    await asyncio.sleep(1)
    before = state_of_things(model)
    print("before", before, flush=True)
    seen = await others("soak", port, seconds * 4 / 5, 16)
    await asyncio.sleep(1)
    after = state_of_things(model)
    print("after", after, seen, flush=True)
    return {"seconds": seconds, "before": before, "after": after, "answers": seen}


async def run(args: argparse.Namespace) -> dict[str, Any]:
    settings = Settings(context=512, max_seqs=16, threads=args.threads)
    model = open_model(args.model, settings)
    agent = LocalAgent("m", args.model, settings=settings)
    app = create_app(State(Registry([Entry("m", "local", lambda: agent)])), Limits())
    config = uvicorn.Config(app, port=0, http=Connection, ws="none", log_level="error")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    if args.soak:
        found = await soak(model, port, args.soak)
    else:
        found = await load(model, port, args.rounds, args.tokens)
    server.should_exit = True
    await running
    close_model(model)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--soak", type=float, default=0.0)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    before = os.getloadavg()
    found = asyncio.run(run(args))
    if args.json:
        kept = json.loads(args.json.read_text()) if args.json.exists() else {}
        name = f"soak {pathlib.Path(args.model).stem}" if args.soak else "load"
        state = {"cores": os.cpu_count(), "load_before": [round(x, 1) for x in before]}
        state["load_after"] = [round(x, 1) for x in os.getloadavg()]
        kept[name] = {"model": pathlib.Path(args.model).stem, "machine": state, "figures": found}
        args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
