"""Several sequences decoded together: tokens per second, beside llama.cpp's on the same machine.

    python bench/engine/parallel.py MODEL [--threads 2] [--rounds 6] [--json FILE]

Rounds are interleaved (ours, theirs, ours, …); given are the fastest and the median step of each.
"""

import argparse
import ctypes
import json
import statistics
import time
from typing import Any

from llamoot.engine.engine import Engine
from llamoot.engine.sampler import Params
from llamoot.engine.sequence import Sequence
from llamoot.model.runner import open_runner

TOGETHER, PROMPT, STEPS = (1, 4, 8), 32, 10
Times = dict[int, list[float]]


class Ours:
    """The engine with its sampler, as a council uses it."""

    def __init__(self, model: str, threads: int) -> None:
        runner = open_runner(model, max_seqs=8, context=512, threads=threads)
        self.engine, self.count = Engine(runner, runner.n_blocks), 0

    def steps(self, n: int) -> list[float]:
        self.count += 1
        for i in range(n):
            vocab = self.engine.runner.config.n_vocab
            ids = [(7919 * (self.count + j) + i) % (vocab - 300) + 260 for j in range(PROMPT)]
            params = Params(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, seed=i)
            self.engine.submit(Sequence(ids, params, max_new=STEPS + 1))
        while not self.engine.n_running or self.engine.n_waiting or self._prompts():
            self.engine.step()
        times = []
        while self.engine.n_running:
            started = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - started)
        return times

    def _prompts(self) -> bool:
        return any(seq.n_new == 0 for seq in self.engine.scheduler.running)


class Theirs:
    """llama.cpp's decode of a batch of one token per sequence; its sampling is left out."""

    def __init__(self, model: str, threads: int) -> None:
        import llama_cpp as lib

        self.lib: Any = lib
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(model.encode(), params)
        how = lib.llama_context_default_params()
        how.n_ctx, how.n_seq_max, how.n_batch, how.kv_unified = 4096, 8, 512, True
        how.n_threads = how.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, how)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self.lib.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, pos, seq, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, pos, 1
            batch.seq_id[i][0], batch.logits[i] = seq, wanted
        assert self.lib.llama_decode(self.context, batch) == 0
        self.lib.llama_get_logits_ith(self.context, ctypes.c_int32(-1))
        self.lib.llama_batch_free(batch)

    def steps(self, n: int) -> list[float]:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        for seq in range(n):
            self.decode([(300 + j + seq, j, seq, j == PROMPT - 1) for j in range(PROMPT)])
        times = []
        for step in range(STEPS):
            started = time.perf_counter()
            self.decode([(400 + step + seq, PROMPT + step, seq, True) for seq in range(n)])
            times.append(time.perf_counter() - started)
        return times


def figures(times: Times) -> dict[str, dict[str, float]]:
    return {
        str(n): {
            "best": round(n / min(each), 1),
            "median": round(n / statistics.median(each), 1),
        }
        for n, each in times.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--json")
    args = options.parse_args()
    ours, theirs = Ours(args.model, args.threads), Theirs(args.model, args.threads)
    times: tuple[Times, Times] = ({n: [] for n in TOGETHER}, {n: [] for n in TOGETHER})
    for _ in range(args.rounds):
        for n in TOGETHER:
            for side, all_times in zip((ours, theirs), times):
                all_times[n] += side.steps(n)
    out = {"model": args.model, "ours": figures(times[0]), "llama.cpp": figures(times[1])}
    print(json.dumps(out, indent=1))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(out, file, indent=1)


if __name__ == "__main__":
    main()
