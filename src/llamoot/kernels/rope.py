"""Rotary positions: one table of cosines and sines for each step, then a rotation for each head.

The angle is formed in float32, as llama.cpp does, and its cosine in double precision. The tables
are (T, n_rot): for `halves` cos | sin of the pairs; for `adjacent` the two are spread over the
pairs' lanes, cos c0 c0 c1 c1 … in one table and sin -s0 s0 -s1 s1 … in the other.
"""

import math

from numba import float32, float64

from llamoot.kernels.op import inner, op
from llamoot.kernels.pieces import row_pieces
from llamoot.kernels.simd import LANES, fma, load_float, load_int, mul, store, sub
from llamoot.kernels.vector import get, put, swap_pairs

HALVES, ADJACENT = range(2)
_HALF_PI = (1.5707963267341256, 6.077100506506192e-11)  # pi / 2 in two parts


@inner
def _sin_cos(angle: float) -> tuple[float, float]:
    """Sine and cosine of a double: reduced to a quarter turn, then polynomials (Cephes)."""
    quarter = math.floor(angle * 0.6366197723675814 + 0.5)
    x = angle - quarter * _HALF_PI[0] - quarter * _HALF_PI[1]
    z = x * x
    s = ((1.58962301576546568e-10 * z - 2.50507477628578072e-8) * z + 2.75573136213857245e-6) * z
    s = ((s - 1.98412698295895385e-4) * z + 8.33333333332211858e-3) * z - 1.66666666666666307e-1
    c = ((-1.13585365213876817e-11 * z + 2.08757008419747316e-9) * z - 2.75573141792967388e-7) * z
    c = ((c + 2.48015872888517045e-5) * z - 1.38888888888730564e-3) * z + 4.16666666666665929e-2
    sine, cosine = x + x * z * s, 1.0 - 0.5 * z + z * z * c
    turn = int(quarter) & 3
    if turn == 1:
        return cosine, -sine
    if turn == 2:
        return -sine, -cosine
    if turn == 3:
        return -cosine, sine
    return sine, cosine


@op
def angles(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    table: int,
    pos: int,
    freqs: int,
    pairs: int,
    kind: int,
    scale: float,
) -> None:
    """Tables of 4 * pairs floats for each row: 2 * pairs for the cosines, as many for the sines."""
    first, stop = row_pieces(work, rows, 16 * pairs)
    while first < stop:
        for row in range(first, stop):
            at, place = float32(load_int(pos + 4 * row)), table + row * 16 * pairs
            for i in range(pairs):
                angle = float32(at * load_float(freqs + 4 * i))
                s, c = _sin_cos(float64(angle))
                sine, cosine = float32(s * scale), float32(c * scale)
                if kind == HALVES:
                    store(place + 4 * i, cosine)
                    store(place + 8 * pairs + 4 * i, sine)
                else:
                    store(place + 8 * i, cosine)
                    store(place + 8 * i + 4, cosine)
                    store(place + 8 * pairs + 8 * i, -sine)
                    store(place + 8 * pairs + 8 * i + 4, sine)
        first, stop = row_pieces(work, rows, 16 * pairs)


@inner
def _halves(x: int, cos: int, sin: int, pairs: int) -> None:
    for i in range(0, pairs, LANES):
        left = pairs - i
        a, b = get(x + 4 * i, left), get(x + 4 * (pairs + i), left)
        c, s = get(cos + 4 * i, left), get(sin + 4 * i, left)
        put(x + 4 * i, sub(mul(a, c), mul(b, s)), left)
        put(x + 4 * (pairs + i), fma(a, s, mul(b, c)), left)


@inner
def _adjacent(x: int, cos: int, sin: int, pairs: int) -> None:
    for i in range(0, 2 * pairs, LANES):
        left = 2 * pairs - i
        v = get(x + 4 * i, left)
        turned = fma(swap_pairs(v), get(sin + 4 * i, left), mul(v, get(cos + 4 * i, left)))
        put(x + 4 * i, turned, left)


@op
def rotate(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    x: int,
    x_stride: int,
    heads: int,
    head_dim: int,
    table: int,
    pairs: int,
    kind: int,
) -> None:
    """Rotate the first 2 * pairs dimensions of each head by the row's angles, in place"""
    first, stop = row_pieces(work, rows, heads * head_dim)
    while first < stop:
        for row in range(first, stop):
            cos = table + row * 16 * pairs
            sin = cos + 8 * pairs
            for head in range(heads):
                here = x + row * x_stride + 4 * head * head_dim
                if kind == HALVES:
                    _halves(here, cos, sin, pairs)
                else:
                    _adjacent(here, cos, sin, pairs)
        first, stop = row_pieces(work, rows, heads * head_dim)
