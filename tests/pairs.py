"""One small forward pass, run by the numpy twins and by the compiled kernels on the same data."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llamoot.kernels.compiled import Compiled
from llamoot.kernels.step import BLOCK, Step
from llamoot.kernels.table import Buf, Kernels
from llamoot.kernels.twins import Twins

Forward = Callable[[Kernels, dict[str, Buf], Any], None]
Batch = Sequence[tuple[int, int]]  # (tokens, start) of each sequence


def make_step(batch: Batch, max_tokens: int = 64, context: int = 512) -> Step:
    """A step that holds `batch`; cache blocks are dealt out backwards, so that order matters."""
    per_seq = -(-context // BLOCK)
    step = Step(max_tokens, max(4, len(batch)), per_seq)
    free = list(range(per_seq * len(batch)))
    for n, start in batch:
        blocks = [free.pop() for _ in range(per_seq)]
        step.add(list(range(n)), start, blocks, "last")
    step.want_logits(True)
    return step


def run_pair(
    batch: Batch,
    shapes: dict[str, tuple[int, int]],
    forward: Forward,
    threads: int = 2,
    seed: int = 0,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(twins, compiled) contents of every buffer; `shapes` are (width, rows for each token).

    `forward` gets the executor last, for weights and caches. Buffers begin as random numbers.
    """
    step = make_step(batch)
    results: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for kind in (Twins, Compiled):
        rng, executor = np.random.default_rng(seed), kind(step, threads)
        bufs = {}
        for name, (width, per_row) in shapes.items():
            bufs[name] = executor.buffer(width, "tokens", per_row)
            bufs[name].data[:] = rng.standard_normal(bufs[name].data.shape) * 3
        executor.record(lambda k, b=bufs, e=executor: forward(k, b, e))
        executor.run()
        for name, buf in bufs.items():
            results[name].append(buf.data.copy())
        executor.close()
    return {name: (pair[0], pair[1]) for name, pair in results.items()}


def assert_same(pair: tuple[np.ndarray, np.ndarray], tolerance: float = 2e-6) -> None:
    """Equal up to `tolerance` of the greatest value."""
    twin, compiled = pair
    scale = max(1.0, float(np.abs(twin).max()))
    np.testing.assert_allclose(compiled, twin, rtol=0, atol=tolerance * scale)
