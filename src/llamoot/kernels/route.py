"""Which experts a token goes to, and with what weights, in llama.cpp's order of steps.

gate -> bias for the selection only -> best groups -> top k -> weights without the bias ->
softmax of the chosen -> normalised -> scaled. A gate is its place in `recorder.GATES`.
"""

from numba import float32

from llamoot.kernels.op import inner, op
from llamoot.kernels.pieces import row_pieces
from llamoot.kernels.simd import (
    LANES,
    add,
    load_float,
    load_floats,
    splat,
    stack,
    store,
    sub,
    zero_floats,
)
from llamoot.kernels.vector import divide, exp, get, more, put, root, sigmoid, softplus, sum_floats

SOFTMAX, SIGMOID, SOFTMAX_AFTER, SQRT_SOFTPLUS = range(4)
ROOM = 4160  # bytes: 1024 experts and a vector
OUT, TAKEN = -1e30, -3e38  # what an expert's rank becomes when its group is out, or it is chosen
LEAST = 6.103515625e-5  # llama.cpp's guard against a sum that vanished


@inner
def softmax(out: int, x: int, n: int) -> None:
    """out = softmax(x), in place allowed"""
    top, total = splat(load_float(x)), zero_floats()
    for i in range(n):
        top = more(top, splat(load_float(x + 4 * i)))
    for c in range(0, n, LANES):
        put(out + 4 * c, exp(sub(get(x + 4 * c, n - c), top)), n - c)
    for c in range(0, n, LANES):
        total = add(total, get(out + 4 * c, n - c))
    whole = splat(sum_floats(total))
    for c in range(0, n, LANES):
        put(out + 4 * c, divide(get(out + 4 * c, n - c), whole), n - c)


@inner
def _gate(out: int, x: int, n: int, kind: int) -> None:
    if kind == SOFTMAX:
        softmax(out, x, n)
        return
    for c in range(0, n, LANES):
        v = get(x + 4 * c, n - c)
        if kind == SIGMOID:
            v = sigmoid(v)
        elif kind == SQRT_SOFTPLUS:
            v = root(softplus(v))
        store(out + 4 * c, v)


@inner
def _best(ranks: int, n: int) -> int:
    """Place of the greatest rank that is not taken; the first of equals."""
    at, top = -1, 0.0
    for i in range(n):
        rank = load_float(ranks + 4 * i)
        if rank != float32(TAKEN) and (at < 0 or rank > top):
            at, top = i, rank
    return max(at, 0)


@inner
def _keep_groups(ranks: int, n: int, groups: int, keep: int) -> None:
    """Experts of all but the `keep` groups whose two best sum highest are out of the race."""
    size, sums = n // groups, stack(ROOM)
    for group in range(groups):
        first = second = float32(TAKEN)
        for i in range(group * size, (group + 1) * size):
            rank = load_float(ranks + 4 * i)
            if rank > first:
                first, second = rank, first
            elif rank > second:
                second = rank
        store(sums + 4 * group, float32(first + second))
    for _ in range(keep):
        store(sums + 4 * _best(sums, groups), float32(TAKEN))
    for group in range(groups):
        if load_float(sums + 4 * group) != float32(TAKEN):
            for i in range(group * size, (group + 1) * size):
                store(ranks + 4 * i, float32(OUT))


@inner
def _weigh(weights: int, top_k: int, kind: int, normalize: int, scale: float) -> None:
    if kind == SOFTMAX_AFTER:
        softmax(weights, weights, top_k)
    total = 0.0
    for j in range(top_k):
        total += load_float(weights + 4 * j)
    by = scale / max(total, LEAST) if normalize != 0 else scale
    for j in range(top_k):
        store(weights + 4 * j, float32(load_float(weights + 4 * j) * by))


@op
def route(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    ids: int,
    ids_stride: int,
    weights: int,
    weights_stride: int,
    logits: int,
    logits_stride: int,
    experts: int,
    top_k: int,
    gate: int,
    bias: int,
    normalize: int,
    groups: int,
    top_groups: int,
    factor: int,
    scale: float,
) -> None:
    """ids (T, k) as whole float32 numbers, weights (T, k); address 0 for no bias"""
    first, stop = row_pieces(work, rows, experts)
    while first < stop:
        probs, ranks = stack(ROOM), stack(ROOM)
        for row in range(first, stop):
            _gate(probs, logits + row * logits_stride, experts, gate)
            for c in range(0, experts, LANES):
                v = load_floats(probs + 4 * c)
                store(ranks + 4 * c, add(v, get(bias + 4 * c, experts - c)) if bias != 0 else v)
            if groups > 1:
                _keep_groups(ranks, experts, groups, top_groups)
            for j in range(top_k):
                chosen = _best(ranks, experts)
                store(ranks + 4 * chosen, float32(TAKEN))
                store(ids + row * ids_stride + 4 * j, float32(chosen))
                store(weights + row * weights_stride + 4 * j, load_float(probs + 4 * chosen))
            _weigh(weights + row * weights_stride, top_k, gate, normalize, scale)
            if factor != 0:
                for j in range(top_k):
                    chosen = int(load_float(ids + row * ids_stride + 4 * j))
                    own = weights + row * weights_stride + 4 * j
                    store(own, float32(load_float(own) * load_float(factor + 4 * chosen)))
        first, stop = row_pieces(work, rows, experts)
