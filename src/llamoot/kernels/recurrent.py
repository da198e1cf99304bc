"""Layers with a state instead of a cache: short convolution, Mamba's scan, the gated delta rule.

A piece is one sequence and some of its channels, heads or rows of the state; it goes through the
sequence's tokens in order, so a result depends neither on threads nor on how tokens are cut into
steps. The state of a sequence that begins at position 0 is cleared first. Build time only.
"""

from typing import Any

from numba import float32

from llamoot.kernels.atomics import claim
from llamoot.kernels.op import inline, inner, op
from llamoot.kernels.simd import LANES, fma, load_float, load_int, mul, splat, stack, zero_floats
from llamoot.kernels.simd import store as write
from llamoot.kernels.vector import exp, get, put, sum_floats

CHANNELS = 256  # of a convolution, in one piece
STATE_ROWS = 16  # of a state matrix, in one piece
ROOM = 4096  # bytes: a row of a state has at most 1024 numbers


@inner
def _clear(address: int, n: int) -> None:
    for c in range(0, n, LANES):
        put(address + 4 * c, zero_floats(), n - c)


@inline
def _tap(
    x: int, x_stride: int, state: int, width: int, row: int, before: int, c: int, n: int
) -> Any:
    """Row `row` of the sequence from column c on; rows before the first come from the state."""
    if row >= 0:
        return get(x + row * x_stride + 4 * c, n)
    return get(state + 4 * ((before + row) * width + c), n)


@op
def conv(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    weight: int,
    bias: int,
    state: int,
    width: int,
    taps: int,
    pos: int,
    slot: int,
    first: int,
) -> None:
    """out[t] = bias + sum of weight[j] * x[t - (taps - 1) + j]; the last rows stay in the state"""
    parts = -(-width // CHANNELS)
    before = taps - 1
    piece = claim(work)
    while piece < rows * parts:
        seq, start = piece // parts, piece % parts * CHANNELS
        end = min(start + CHANNELS, width)
        begin, stop = load_int(first + 4 * seq), load_int(first + 4 * seq + 4)
        own = state + 4 * load_int(slot + 4 * seq) * before * width
        if load_int(pos + 4 * begin) == 0:
            for j in range(before):
                _clear(own + 4 * (j * width + start), end - start)
        here, n = x + begin * x_stride, stop - begin
        for c in range(start, end, LANES):
            left = end - c
            for t in range(n):
                total = zero_floats()
                if bias != 0:
                    total = get(bias + 4 * c, left)
                for j in range(taps):
                    v = _tap(here, x_stride, own, width, t - before + j, before, c, left)
                    total = fma(v, get(weight + 4 * (j * width + c), left), total)
                put(out + (begin + t) * out_stride + 4 * c, total, left)
            for j in range(before):
                v = _tap(here, x_stride, own, width, n - before + j, before, c, left)
                put(own + 4 * (j * width + c), v, left)
        piece = claim(work)


@op
def scan(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    dt: int,
    dt_stride: int,
    b: int,
    b_stride: int,
    c: int,
    c_stride: int,
    a: int,
    state: int,
    heads: int,
    size: int,
    n: int,
    groups: int,
    pos: int,
    slot: int,
    first: int,
) -> None:
    """s = s * exp(dt * a) + dt * x outer b; out = s @ c"""
    parts = -(-size // STATE_ROWS)
    fade = stack(ROOM)
    piece = claim(work)
    while piece < rows * heads * parts:
        seq, head = piece // (heads * parts), piece // parts % heads
        start = piece % parts * STATE_ROWS
        end = min(start + STATE_ROWS, size)
        begin, stop = load_int(first + 4 * seq), load_int(first + 4 * seq + 4)
        own = state + 4 * ((load_int(slot + 4 * seq) * heads + head) * size) * n
        if load_int(pos + 4 * begin) == 0:
            _clear(own + 4 * start * n, (end - start) * n)
        group = head // (heads // groups)
        for t in range(begin, stop):
            step = load_float(dt + t * dt_stride + 4 * head)
            for i in range(0, n, LANES):
                write(fade + 4 * i, exp(mul(splat(step), get(a + 4 * (head * n + i), n - i))))
            into = b + t * b_stride + 4 * group * n
            read = c + t * c_stride + 4 * group * n
            for p in range(start, end):
                fresh = splat(step * load_float(x + t * x_stride + 4 * (head * size + p)))
                row, total = own + 4 * p * n, zero_floats()
                for i in range(0, n, LANES):
                    old = mul(get(row + 4 * i, n - i), get(fade + 4 * i, n - i))
                    v = fma(fresh, get(into + 4 * i, n - i), old)
                    put(row + 4 * i, v, n - i)
                    total = fma(v, get(read + 4 * i, n - i), total)
                write(out + t * out_stride + 4 * (head * size + p), sum_floats(total))
        piece = claim(work)


@inner
def _delta_row(row: int, fade: int, q: int, k: int, n: int, value: float, beta: float) -> float:
    """One row of the state through one token; returns its product with the query."""
    known = zero_floats()
    for i in range(0, n, LANES):
        v = mul(get(row + 4 * i, n - i), get(fade + 4 * i, n - i))
        put(row + 4 * i, v, n - i)
        known = fma(v, get(k + 4 * i, n - i), known)
    wrong = splat(float32(beta * (value - sum_floats(known))))
    total = zero_floats()
    for i in range(0, n, LANES):
        v = fma(wrong, get(k + 4 * i, n - i), get(row + 4 * i, n - i))
        put(row + 4 * i, v, n - i)
        total = fma(v, get(q + 4 * i, n - i), total)
    result: float = sum_floats(total)
    return result


@op
def delta(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    q: int,
    q_stride: int,
    k: int,
    k_stride: int,
    v: int,
    v_stride: int,
    decay: int,
    decay_stride: int,
    own_decay: int,
    beta: int,
    beta_stride: int,
    state: int,
    heads: int,
    groups: int,
    tiled: int,
    size: int,
    n: int,
    by: float,
    pos: int,
    slot: int,
    first: int,
) -> None:
    """Gated delta rule; `own_decay`: a decay for each of n numbers, not one for the head"""
    parts = -(-size // STATE_ROWS)
    fade = stack(ROOM)
    piece = claim(work)
    while piece < rows * heads * parts:
        seq, head = piece // (heads * parts), piece // parts % heads
        start = piece % parts * STATE_ROWS
        end = min(start + STATE_ROWS, size)
        begin, stop = load_int(first + 4 * seq), load_int(first + 4 * seq + 4)
        own = state + 4 * ((load_int(slot + 4 * seq) * heads + head) * size) * n
        if load_int(pos + 4 * begin) == 0:
            _clear(own + 4 * start * n, (end - start) * n)
        group = head % groups if tiled != 0 else head // (heads // groups)
        for t in range(begin, stop):
            if own_decay != 0:
                place = decay + t * decay_stride + 4 * head * n
                for i in range(0, n, LANES):
                    write(fade + 4 * i, exp(get(place + 4 * i, n - i)))
            else:
                one = exp(splat(load_float(decay + t * decay_stride + 4 * head)))
                for i in range(0, n, LANES):
                    write(fade + 4 * i, one)
            query, key = q + t * q_stride + 4 * group * n, k + t * k_stride + 4 * group * n
            share = load_float(beta + t * beta_stride + 4 * head)
            for p in range(start, end):
                value = load_float(v + t * v_stride + 4 * (head * size + p))
                seen = _delta_row(own + 4 * p * n, fade, query, key, n, value, share)
                write(out + t * out_stride + 4 * (head * size + p), float32(seen * by))
        piece = claim(work)
