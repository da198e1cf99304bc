"""The engine beside llama.cpp on the same file, same threads, interleaved in one run.

    python bench/engine/compare.py MODEL [--threads 2] [--rounds 3] [--depth 4000] [--json FILE]

Measured as wall time, medians of interleaved rounds: a prompt of 512 tokens, decoding 1, 4 and 8
sequences together, and decoding one sequence behind `depth` tokens with an f16 and a q8_0 cache.
Needs llama-cpp-python. Where its AMX path crashes (`tilezero`), it has to be built or started
without AMX; the result says what it was built with.
"""

import argparse
import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import llama_cpp as lib
import numpy as np

from llamoot.kernels.step import BLOCK
from llamoot.model.runner import Runner, open_runner

PROMPT, STEPS = 512, 8
REST = 0.05  # seconds between the two, so that neither's spinning threads disturb the other


class Ours:
    """A runner fed by hand, as the engine feeds it."""

    def __init__(self, model: str, threads: int, depth: int, cache: str) -> None:
        context = max(depth + 64, 2 * PROMPT)
        blocks = -(-context // BLOCK) + 8 * 8
        self.runner: Runner = open_runner(
            model,
            context=context,
            max_tokens=PROMPT,
            max_seqs=8,
            n_blocks=blocks,
            cache_type=cache,
            threads=threads,
        )
        self.blocks = list(range(blocks))

    def prompt(self, n: int) -> float:
        """Seconds for a prompt of n tokens, in steps of 512."""
        ids = np.arange(n) * 7919 % 20_000 + 1000
        started = time.perf_counter()
        for start in range(0, n, PROMPT):
            step = self.runner.step
            step.clear()
            part = ids[start : start + PROMPT].astype(np.int32)
            last = "last" if start + PROMPT >= n else "none"
            step.add(part, start, self.blocks[: -(-(start + len(part)) // BLOCK)], last)
            self.runner.run()
        return time.perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        """Seconds for one step of n sequences at position depth; median of a few."""
        times = []
        for i in range(STEPS):
            step = self.runner.step
            step.clear()
            for seq in range(n):
                pos, need = depth + i, -(-(depth + i + 1) // BLOCK)
                mine = self.blocks[seq * need : (seq + 1) * need] if n > 1 else self.blocks[:need]
                step.add([1000 + i + seq], pos, mine, "last")
            started = time.perf_counter()
            self.runner.run()
            times.append(time.perf_counter() - started)
        return statistics.median(times)


class Theirs:
    """llama.cpp through its C interface, its defaults but for what is compared."""

    def __init__(self, model: str, threads: int, depth: int, cache: str) -> None:
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(
            model.encode(), lib.llama_model_default_params()
        )
        how = lib.llama_context_default_params()
        how.n_ctx, how.n_seq_max = max(depth + 64, 8 * 256, 2 * PROMPT), 8
        how.n_batch = how.n_ubatch = PROMPT
        how.kv_unified = True
        how.n_threads = how.n_threads_batch = threads
        if cache == "q8_0":
            how.type_k = how.type_v = lib.GGML_TYPE_Q8_0
        self.context = lib.llama_init_from_model(self.model, how)
        assert self.context, "llama.cpp could not make a context"

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, pos, seq, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, pos, 1
            batch.seq_id[i][0], batch.logits[i] = seq, wanted
        assert lib.llama_decode(self.context, batch) == 0
        if rows[-1][3]:
            lib.llama_get_logits_ith(self.context, ctypes.c_int32(-1))
        lib.llama_batch_free(batch)

    def clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)

    def prompt(self, n: int) -> float:
        self.clear()
        started = time.perf_counter()
        for start in range(0, n, PROMPT):
            stop = min(n, start + PROMPT)
            rows = [(i * 7919 % 20_000 + 1000, i, 0, i == n - 1) for i in range(start, stop)]
            self._decode(rows)
        return time.perf_counter() - started

    def decode(self, n: int, depth: int) -> float:
        """At depth 0 the sequences begin with 128 tokens; deeper ones follow `prompt(depth)`."""
        if n > 1 or depth <= 128:
            self.clear()
            for seq in range(n):
                self._decode([(1000 + j + seq, j, seq, j == 127) for j in range(128)])
            depth = 128
        else:
            lib.llama_memory_seq_rm(lib.llama_get_memory(self.context), 0, depth, -1)
        times = []
        for i in range(STEPS):
            started = time.perf_counter()
            self._decode([(1000 + i + seq, depth + i, seq, True) for seq in range(n)])
            times.append(time.perf_counter() - started)
        return statistics.median(times)


def measure(
    sides: dict[str, Callable[[], float]], rounds: int, times: dict[str, list[float]]
) -> None:
    """One interleaved comparison."""
    for _ in range(rounds):
        for name, run in sides.items():
            time.sleep(REST)
            times.setdefault(name, []).append(run())


def compare(
    model: str, threads: int, rounds: int, depth: int, kept: Callable[[dict[str, Any]], None]
) -> None:
    """tokens per second of both and their ratio; `kept` is told of every case that is done."""
    cases: dict[str, dict[str, float]] = {}

    def case(
        name: str, tokens: int, ours: Callable[[], float], theirs: Callable[[], float]
    ) -> None:
        times: dict[str, list[float]] = {}
        measure({"ours": ours, "theirs": theirs}, rounds, times)
        mine, other = (tokens / statistics.median(times[side]) for side in ("ours", "theirs"))
        best, their_best = (tokens / min(times[side]) for side in ("ours", "theirs"))
        cases[name] = {
            "llamoot": round(mine, 2),
            "llama.cpp": round(other, 2),
            "ratio": round(mine / other, 3),
            "ratio of the best": round(best / their_best, 3),
        }
        print(f"{name:28} {mine:8.1f} {other:8.1f}   {mine / other:.2f}", flush=True)
        kept(cases)

    ours, theirs = Ours(model, threads, 0, "f16"), Theirs(model, threads, 0, "f16")
    ours.prompt(64), theirs.prompt(64)
    case("prompt of 512", PROMPT, lambda: ours.prompt(PROMPT), lambda: theirs.prompt(PROMPT))
    for n in (1, 4, 8):
        together = f"decode, {n} together"
        case(together, n, lambda n=n: ours.decode(n, 128), lambda n=n: theirs.decode(n, 128))
    ours.runner.close()
    for cache in ("f16", "q8_0") if depth else ():
        ours, theirs = Ours(model, threads, depth, cache), Theirs(model, threads, depth, cache)
        ours.prompt(depth), theirs.prompt(depth)
        name = f"decode behind {depth}, {cache}"
        case(name, 1, lambda a=ours: a.decode(1, depth), lambda b=theirs: b.decode(1, depth))
        ours.runner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=4000)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = {
        "model": os.path.basename(options.model),
        "threads": options.threads,
        "rounds": options.rounds,
        "load before": round(os.getloadavg()[0], 2),
        "llama-cpp-python": lib.__version__,
        "built with": lib.llama_print_system_info().decode(),
    }

    def keep(cases: dict[str, Any]) -> None:
        if options.json:
            with open(options.json, "w") as file:
                json.dump(found | {"cases": cases}, file, indent=1)
                file.write("\n")

    compare(options.model, options.threads, options.rounds, options.depth, keep)


if __name__ == "__main__":
    main()
