"""Activations, alone and gated. A kind is its place in `table.Act`."""

from typing import Any

from llamoot.kernels.op import inline, op
from llamoot.kernels.pieces import cut
from llamoot.kernels.simd import LANES, add, fma, mul, splat, zero_floats
from llamoot.kernels.vector import constant, erf, get, less, more, put, sigmoid, softplus, tanh

SILU, GELU, GELU_QUICK, GELU_ERF, RELU, RELU2, SIGMOID, SOFTPLUS, TANH = range(9)


@inline
def _activate(kind: int, x: Any) -> Any:
    if kind == SILU:
        return mul(x, sigmoid(x))
    if kind == GELU:
        inside = mul(x, fma(mul(x, x), constant(0.044715 * 0.79788456), constant(0.79788456)))
        return mul(mul(x, constant(0.5)), add(constant(1.0), tanh(inside)))
    if kind == GELU_QUICK:
        return mul(x, sigmoid(mul(x, constant(1.702))))
    if kind == GELU_ERF:
        return mul(mul(x, constant(0.5)), add(constant(1.0), erf(mul(x, constant(0.70710678)))))
    if kind == SIGMOID:
        return sigmoid(x)
    if kind == SOFTPLUS:
        return softplus(x)
    if kind == TANH:
        return tanh(x)
    y = more(zero_floats(), x)
    return mul(y, y) if kind == RELU2 else y


@op
def act(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    kind: int,
) -> None:
    """out = kind(x)"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                v = _activate(kind, get(x + row * x_stride + 4 * c, end - c))
                put(out + row * out_stride + 4 * c, v, end - c)
        first, stop, start, end = cut(work, rows, width)


@op
def glu(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    gate: int,
    gate_stride: int,
    up: int,
    up_stride: int,
    width: int,
    kind: int,
    limit: float,
) -> None:
    """out = kind(gate) * up, both limited where `limit` is above 0"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                g = get(gate + row * gate_stride + 4 * c, end - c)
                u = get(up + row * up_stride + 4 * c, end - c)
                if limit > 0:
                    g = less(splat(limit), g)
                    u = less(splat(limit), more(splat(-limit), u))
                put(out + row * out_stride + 4 * c, mul(_activate(kind, g), u), end - c)
        first, stop, start, end = cut(work, rows, width)


@op
def glu_alpha(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    gate: int,
    gate_stride: int,
    up: int,
    up_stride: int,
    width: int,
    alpha: float,
    limit: float,
) -> None:
    """out = g * sigmoid(alpha * g) * (u + 1), g and u limited where `limit` is above 0"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                g = get(gate + row * gate_stride + 4 * c, end - c)
                u = get(up + row * up_stride + 4 * c, end - c)
                if limit > 0:
                    g = less(splat(limit), g)
                    u = less(splat(limit), more(splat(-limit), u))
                gated = mul(g, sigmoid(mul(g, splat(alpha))))
                put(out + row * out_stride + 4 * c, fma(gated, u, gated), end - c)
        first, stop, start, end = cut(work, rows, width)
