"""`llamoot bench`: how fast a model is here, against what the memory of this machine allows."""

import json as jsonlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from llamoot.cli.options import Argument, Option
from llamoot.errors import BadRequest
from llamoot.kernels.cores import usable
from llamoot.kernels.step import BLOCK
from llamoot.model.plan import cache_block_bytes
from llamoot.model.runner import Runner, open_runner
from llamoot.model.weights import specs_of, tensor_of

PROBE_BYTES = 256 << 20  # larger than any cache


def bench(
    model: Annotated[Path, Argument(help="a GGUF file")],
    prompt: Annotated[int, Option("--prompt", "-p", min=1, help="prompt tokens")] = 512,
    decode: Annotated[int, Option("--decode", "-n", min=1, help="decoded tokens")] = 32,
    together: Annotated[int, Option("--together", "-s", min=2, help="sequences")] = 4,
    rounds: Annotated[int, Option("--rounds", "-r", min=1, help="median of")] = 3,
    cache: Annotated[str, Option("--cache-type", help="f16, q8_0 or f32")] = "f16",
    threads: Annotated[int, Option("--threads", min=0, help="0: one per core")] = 0,
    json: Annotated[bool, Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Prompt speed, decoding alone and together, and their share of the read bandwidth."""
    if cache not in ("f32", "f16", "q8_0"):
        raise BadRequest(f"'{cache}' is not a cache type; take f32, f16 or q8_0", "cache-type")
    started = time.perf_counter()
    runner = open_runner(
        model,
        context=prompt + decode,
        max_tokens=min(prompt, 512),
        max_seqs=together,
        n_blocks=together * -(-(prompt + decode) // BLOCK),
        cache_type=cache,  # type: ignore[arg-type]
        threads=threads,
    )
    if not runner.has_logits:
        runner.close()
        raise BadRequest("this model is an encoder; there is nothing to decode", "model")
    load = time.perf_counter() - started
    bandwidth = read_bandwidth(threads or usable())
    measured = measure(runner, prompt, decode, together, rounds)
    report = {
        "model": str(model),
        "load_s": round(load, 3),
        "read_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        **measured,
        **shares(runner, measured, prompt, bandwidth),
    }
    runner.close()
    if json:
        print(jsonlib.dumps(report))
        return
    width = max(len(key) for key in report)
    for key, value in report.items():
        print(f"{key:{width}}  {value}")


def measure(
    runner: Runner, prompt: int, decode: int, together: int, rounds: int
) -> dict[str, float]:
    """Tokens per second: medians over `rounds`, the three measures taken in turn."""
    tokens = [(37 * i + 11) % runner.config.n_vocab for i in range(prompt)]
    fill(runner, tokens, together)  # first touch of memory, and caches for decoding
    times: dict[str, list[float]] = {"prompt": [], "decode": [], "together": []}
    for _ in range(rounds):
        times["prompt"].append(timed(lambda: fill(runner, tokens, 1)))
        times["decode"].append(timed(lambda: go_on(runner, prompt, decode, 1)))
        times["together"].append(timed(lambda: go_on(runner, prompt, decode, together)))
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        f"prompt_{prompt}_tok_s": round(prompt / middle["prompt"], 1),
        "decode_1_tok_s": round(decode / middle["decode"], 1),
        f"decode_{together}_tok_s": round(together * decode / middle["together"], 1),
    }


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _blocks(runner: Runner, seq: int) -> list[int]:
    per = runner.step.max_blocks
    return list(range(seq * per, (seq + 1) * per))


def fill(runner: Runner, tokens: list[int], n: int) -> None:
    """Evaluate the prompt in `n` sequences, one after the other; logits of the last token."""
    step = runner.step
    for seq in range(n):
        for start in range(0, len(tokens), step.max_tokens):
            some = tokens[start : start + step.max_tokens]
            last = start + len(some) == len(tokens)
            step.clear()
            step.add(some, start, _blocks(runner, seq), "last" if last else "none")
            runner.run()


def go_on(runner: Runner, start: int, n_tokens: int, n: int) -> None:
    """Decode `n_tokens` greedily in each of `n` sequences of one batch."""
    latest = [1] * n
    for pos in range(start, start + n_tokens):
        runner.step.clear()
        for seq in range(n):
            runner.step.add([latest[seq]], pos, _blocks(runner, seq), "last")
        latest = [int(i) for i in runner.run().argmax(axis=1)]


def shares(
    runner: Runner, measured: dict[str, float], prompt: int, bandwidth: float
) -> dict[str, Any]:
    """Bytes that one decoded token has to read, and how much of the bandwidth that uses."""
    config = runner.config
    weights = 0.0
    for spec in (spec for part in specs_of(runner.gguf, config) for spec in part):
        tensor = tensor_of(runner.gguf, spec.name)
        if tensor is None or (spec.kind == "table" and "output.weight" in runner.gguf.tensors):
            continue
        routed = "_exps." in spec.name and config.experts.count
        weights += tensor.nbytes * (config.experts.used / config.experts.count if routed else 1)
    cached = cache_block_bytes(config, runner.cache_type) / BLOCK * prompt
    return {
        "bytes_per_token_mb": round((weights + cached) / 1e6, 1),
        "decode_1_share_of_bandwidth": round(
            measured["decode_1_tok_s"] * (weights + cached) / bandwidth, 3
        ),
    }


def read_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory together; best of four."""
    data = np.ones(PROBE_BYTES // 4, np.float32)
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        best = min(
            timed(lambda: list(pool.map(np.maximum.reduce, parts)))  # type: ignore[arg-type]
            for _ in range(4)
        )
    return data.nbytes / best
