"""Matrix products by type and number of tokens, as shares of what this machine can do.

    python bench/engine/matmul.py [--types Q4_K,Q6_K] [--tokens 1,8,512] [--json]

Every call takes another of several matrices, together larger than the caches, as in a model. All
cells are measured in turn, round by round, and the table shows medians. GB/s counts packed
weights once; GMAC/s counts the multiplications of the product.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llamoot.gguf.types import TensorType
from llamoot.kernels.memory import address, aligned
from llamoot.kernels.pack import LAYOUTS, pack
from llamoot.kernels.pool import Pool, lease


def clock(pool: Pool) -> Callable[[], float]:
    """Time on the wall; with one thread its own time, which other programs disturb less."""
    return time.thread_time if pool.threads == 1 else time.perf_counter


def seconds(pool: Pool, run: Callable[[], None]) -> float:
    """How long one run takes."""
    begin = clock(pool)()
    run()
    return clock(pool)() - begin


def ceilings(pool: Pool) -> dict[str, Callable[[], float]]:
    """Bytes read, in GB/s, and int8 multiply-adds, in GMAC/s, of all threads together."""
    data, out = aligned(1 << 28, np.uint8), aligned(64, np.int64)
    data[:] = 1
    common = {"x": address(data), "out": address(out)}
    turns, lanes = 1 << 16, 16 if pool.library.target.has("avx512bw") else 8

    def read() -> float:
        t = seconds(pool, lambda: pool.call("limits.read", rows=256, size=1 << 20, **common))
        return data.size / t / 1e9

    def multiply() -> float:
        t = seconds(pool, lambda: pool.call("limits.multiply", rows=32, turns=turns, **common))
        return 32 * turns * 8 * lanes * 4 / t / 1e9

    return {"read": read, "multiply": multiply}


@dataclass
class Case:
    """One type: its matrices, and a product with any number of tokens."""

    pool: Pool
    kind: TensorType
    rows: int
    columns: int
    n_matrices: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        shape = (self.rows, self.columns)
        raw = rng.integers(0, 60, self.kind.nbytes(shape), dtype=np.uint8)
        self.weights = [
            pack(self.pool, "w", raw, self.kind, shape).data for _ in range(self.n_matrices)
        ]
        self.turn = 0
        width = 2 if self.weights[0].layout.records else 4
        self.x = aligned((512, width * self.columns), np.uint8)
        self.y = aligned((512, self.rows), np.float32)

    def run(self, tokens: int, times: int) -> float:
        """Seconds of one product, the mean of `times` with different matrices."""
        begin = clock(self.pool)()
        for _ in range(times):
            packed = self.weights[self.turn % self.n_matrices]
            self.turn += 1
            self.pool.call(
                f"{packed.layout.module}.matmul",
                rows=tokens,
                x=address(self.x),
                x_stride=self.x.strides[0],
                y=address(self.y),
                y_stride=self.y.strides[0],
                bias=0,
                plan=0,
                share=1,
                **packed.own_words,
            )
        return (clock(self.pool)() - begin) / times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default=",".join(kind.name for kind in LAYOUTS))
    parser.add_argument("--tokens", default="1,2,4,8,64,512")
    parser.add_argument("--shape", default="12288x1024", help="rows x columns of a matrix")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pool = lease(args.threads)
    rows, columns = map(int, args.shape.split("x"))
    counts = [int(n) for n in args.tokens.split(",")]
    kinds = [TensorType[name] for name in args.types.split(",")]
    cases = []
    for kind in kinds:
        n_matrices = max(2, (1 << 27) // kind.nbytes((rows, columns)))
        cases.append(Case(pool, kind, rows, columns, n_matrices))
    limits = ceilings(pool)
    cells: dict[tuple[str, int], list[float]] = {}
    tops: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(args.rounds):
        for name, measure in limits.items():
            tops[name].append(measure())
        for case in cases:
            for n in counts:
                times = case.n_matrices if n <= 8 else max(1, 512 // n)
                cells.setdefault((case.kind.name, n), []).append(case.run(n, times))
    top = {name: max(values) for name, values in tops.items()}
    lines = []
    for case in cases:
        size = case.weights[0].data.size
        for n in counts:
            t = statistics.median(cells[case.kind.name, n])
            gbs, gmacs = size / t / 1e9, rows * columns * n / t / 1e9
            lines.append(
                {
                    "type": case.kind.name,
                    "tokens": n,
                    "us": t * 1e6,
                    "gbs": gbs,
                    "of_read": gbs / top["read"],
                    "gmacs": gmacs,
                    "of_int8": gmacs / top["multiply"],
                }
            )
    report(args, pool, top, lines)


def report(
    args: argparse.Namespace, pool: Pool, top: dict[str, float], lines: list[dict[str, object]]
) -> None:
    """A table for people, or JSON."""
    about = {"cpu": pool.library.target.cpu, "threads": pool.threads, "shape": args.shape, **top}
    if args.json:
        json.dump({"about": about, "cells": lines}, sys.stdout, indent=1)
        return
    print(
        "  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in about.items())
    )
    print(
        f"{'type':>6} {'tokens':>6} {'µs':>9} {'GB/s':>7} {'of read':>8} "
        f"{'GMAC/s':>8} {'of int8':>8}"
    )
    for c in lines:
        print(
            f"{c['type']:>6} {c['tokens']:>6} {c['us']:>9.1f} {c['gbs']:>7.1f} "
            f"{c['of_read']:>8.0%} {c['gmacs']:>8.1f} {c['of_int8']:>8.0%}"
        )


if __name__ == "__main__":
    main()
