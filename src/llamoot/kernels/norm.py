"""RMS and layer normalisation of each row, or of each of its equal parts (heads).

Sums are kept in one float32 for each lane and added up in one order, so a row's result does not
depend on its neighbours. Address 0 stands for a weight or bias that is not there; `repeat` says
whether each part has its own (1) or all share them (0).
"""

import math

from numba import float32

from llamoot.kernels.op import inner, op
from llamoot.kernels.pieces import row_pieces
from llamoot.kernels.simd import LANES, add, fma, mul, splat, sub, zero_floats
from llamoot.kernels.vector import get, lanes, put, sum_floats, where_below


@inner
def _sum(x: int, n: int) -> float:
    total = zero_floats()
    for c in range(0, n, LANES):
        total = add(total, get(x + 4 * c, n - c))
    result: float = sum_floats(total)
    return result


@inner
def _squares(x: int, n: int, mean: float) -> float:
    """Sum of (x - mean) ** 2; lanes behind the end do not count."""
    total, m = zero_floats(), splat(mean)
    for c in range(0, n, LANES):
        left = splat(float32(n - c))
        v = where_below(lanes(), left, sub(get(x + 4 * c, n - c), m), zero_floats())
        total = fma(v, v, total)
    result: float = sum_floats(total)
    return result


@inner
def _scaled(out: int, x: int, n: int, mean: float, by: float, weight: int, bias: int) -> None:
    """out = (x - mean) * by * weight + bias; address 0 for what is not there"""
    m, factor = splat(mean), splat(by)
    for c in range(0, n, LANES):
        v = mul(sub(get(x + 4 * c, n - c), m), factor)
        if weight != 0:
            v = mul(v, get(weight + 4 * c, n - c))
        if bias != 0:
            v = add(v, get(bias + 4 * c, n - c))
        put(out + 4 * c, v, n - c)


@op
def rmsnorm(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    groups: int,
    weight: int,
    repeat: int,
    eps: float,
) -> None:
    """Each part divided by its root mean square"""
    n = width // groups
    first, stop = row_pieces(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for part in range(groups):
                at = 4 * n * part
                here = x + row * x_stride + at
                by = 1.0 / math.sqrt(_squares(here, n, float32(0.0)) / n + eps)
                own = weight + repeat * at
                _scaled(out + row * out_stride + at, here, n, float32(0.0), float32(by), own, 0)
        first, stop = row_pieces(work, rows, width)


@op
def layernorm(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    groups: int,
    weight: int,
    bias: int,
    repeat: int,
    eps: float,
) -> None:
    """Each part less its mean, divided by its deviation"""
    n = width // groups
    first, stop = row_pieces(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for part in range(groups):
                at = 4 * n * part
                here = x + row * x_stride + at
                mean = float32(_sum(here, n) / n)
                by = 1.0 / math.sqrt(_squares(here, n, mean) / n + eps)
                own = weight + repeat * at if weight != 0 else 0
                shift = bias + repeat * at if bias != 0 else 0
                _scaled(out + row * out_stride + at, here, n, mean, float32(by), own, shift)
        first, stop = row_pieces(work, rows, width)
