"""The inner loops of attention: one tile of queries against one block of 32 cached positions.

Keys and values of the block are first brought to float32 in the thread's own memory, whatever the
cache's type; then scores, a running softmax and the weighted sum of the values, four queries at a
time. A query's numbers never depend on the other queries of its tile.
"""

from typing import NamedTuple

from numba import float32

from llamoot.kernels.attention_plan import (
    FACTOR,
    FROM,
    GREATEST,
    LINE,
    PIECE,
    PLACE,
    SLOPE,
    TOTALS,
    UNTIL,
)
from llamoot.kernels.dot import add_outer_tile, same_tile
from llamoot.kernels.op import inner
from llamoot.kernels.simd import (
    LANES,
    absolute,
    add,
    floats,
    fma,
    load_bytes,
    load_float,
    load_floats,
    load_halves,
    load_long,
    mul,
    splat,
    stack,
    store,
    sub,
    zero_floats,
)
from llamoot.kernels.vector import (
    divide,
    exp,
    first_lane,
    lanes,
    more,
    sum_floats,
    tanh,
    top_float,
    where_below,
)

F32, F16, Q8_0 = range(3)
GROUP = 32
NEVER = -1e30  # a score that is not seen; finite, so that no difference is NaN


class Tile(NamedTuple):
    """One thread's memory and what all its queries have in common."""

    n: int  # queries, at most 32
    queries: int
    query_stride: int
    keys: int
    values: int
    sums: int  # of the part at hand, before they are divided by the total
    all_sums: int  # of the parts before
    sum_stride: int
    scores: int
    state: int
    head_dim: int
    v_dim: int
    type: int
    softcap: float
    alibi: int


class Part(NamedTuple):
    """What a part of the keys says of one query, apart from its sums."""

    top: float
    total: float


@inner
def load_keys(to: int, block: int, heads: int, head: int, dims: int, type: int) -> None:
    """One head's keys (dim, position) as float32."""
    start = head * dims * PIECE
    if type == F32:
        for i in range(0, dims * PIECE, LANES):
            store(to + 4 * i, load_floats(block + 4 * (start + i)))
    elif type == F16:
        for i in range(0, dims * PIECE, LANES):
            store(to + 4 * i, floats(load_halves(block + 2 * (start + i))))
    else:
        groups = -(-dims // GROUP)
        scales = block + heads * dims * PIECE + 2 * PIECE * groups * head
        for group in range(groups):
            for lane in range(0, PIECE, LANES):
                by = floats(load_halves(scales + 2 * (PIECE * group + lane)))
                for d in range(group * GROUP, min(dims, (group + 1) * GROUP)):
                    i = PIECE * d + lane
                    store(to + 4 * i, mul(floats(load_bytes(block + start + i)), by))


@inner
def load_values(to: int, block: int, heads: int, head: int, dims: int, type: int) -> None:
    """One head's values (position, dim) as float32, rows filled up to 32 dims with anything."""
    filled = -(-dims // PIECE) * PIECE
    start = head * dims * PIECE
    if type == Q8_0:
        _load_scaled_values(to, block, heads, head, dims)
        return
    for pos in range(PIECE):
        row, out = start + pos * dims, to + 4 * filled * pos
        for i in range(0, dims, LANES):
            if type == F32:
                store(out + 4 * i, load_floats(block + 4 * (row + i)))
            else:
                store(out + 4 * i, floats(load_halves(block + 2 * (row + i))))


@inner
def _load_scaled_values(to: int, block: int, heads: int, head: int, dims: int) -> None:
    groups = -(-dims // GROUP)
    scales = block + heads * dims * PIECE + 2 * PIECE * groups * head
    own, start = stack(128), block + head * dims * PIECE
    for group in range(groups):
        for lane in range(0, PIECE, LANES):
            by = floats(load_halves(scales + 2 * (PIECE * group + lane)))
            store(own + 4 * lane, by)
        row, out = start + group * GROUP, to + 4 * PIECE * group
        for pos in range(PIECE):
            by = splat(load_float(own + 4 * pos))
            for i in range(0, GROUP, LANES):
                store(out + 4 * i, mul(floats(load_bytes(row + i)), by))
            row += dims
            out += 4 * PIECE * groups


@inner
def scores_of(tile: Tile) -> None:
    """scores (query, 32 positions) = queries · keys"""
    q, s = tile.query_stride, 4 * PIECE
    for query in range(0, tile.n, 4):
        at = tile.queries + query * q
        rows = (at, at + q, at + 2 * q, at + 3 * q)
        for lane in range(0, PIECE, 2 * LANES):
            a, b = same_tile(zero_floats(), rows), same_tile(zero_floats(), rows)
            key = tile.keys + 4 * lane
            for d in range(tile.head_dim):
                a = add_outer_tile(a, load_floats(key + 128 * d), rows, 4 * d)
                b = add_outer_tile(b, load_floats(key + 128 * d + 4 * LANES), rows, 4 * d)
            out = tile.scores + query * s + 4 * lane
            store(out, a[0])
            store(out + s, a[1])
            store(out + 2 * s, a[2])
            store(out + 3 * s, a[3])
            store(out + 4 * LANES, b[0])
            store(out + s + 4 * LANES, b[1])
            store(out + 2 * s + 4 * LANES, b[2])
            store(out + 3 * s + 4 * LANES, b[3])


@inner
def _mask(tile: Tile, query: int, base: int) -> None:
    """Apply cap, slope and range to one query's scores."""
    row, here = tile.scores + 4 * PIECE * query, tile.state
    start = splat(float32(load_long(here + FROM + 8 * query) - base))
    end = splat(float32(load_long(here + UNTIL + 8 * query) - base))
    slope = splat(load_float(here + SLOPE + 4 * query))
    away = splat(float32(base - load_long(here + PLACE + 8 * query)))
    cap, never = splat(tile.softcap), splat(float32(NEVER))
    for lane in range(0, PIECE, LANES):
        v, at = load_floats(row + 4 * lane), add(lanes(), splat(float32(lane)))
        if tile.softcap > 0:
            v = mul(cap, tanh(divide(v, cap)))
        if tile.alibi != 0:
            v = sub(v, mul(slope, absolute(add(at, away))))
        v = where_below(at, end, where_below(at, start, never, v), never)
        store(row + 4 * lane, v)


@inner
def _fade(before: float, top: float) -> float:
    """What sums against the greatest score `before` are worth against `top`."""
    value: float = float32(1.0)
    if top != before:
        value = first_lane(exp(splat(float32(before - top))))
    return value


@inner
def soften(tile: Tile, base: int) -> None:
    """Scores to weights, against the greatest score so far; factors for the sums so far."""
    plain = tile.softcap == 0 and tile.alibi == 0
    for query in range(tile.n):
        row, mine = tile.scores + 4 * PIECE * query, tile.state + 4 * query
        start = load_long(tile.state + FROM + 8 * query) - base
        end = load_long(tile.state + UNTIL + 8 * query) - base
        if end <= 0 or start >= PIECE:
            store(mine + FACTOR, float32(1.0))
            for lane in range(0, PIECE, LANES):
                store(row + 4 * lane, zero_floats())
            continue
        if start > 0 or end < PIECE or not plain:
            _mask(tile, query, base)
        highest = load_floats(row)
        for lane in range(LANES, PIECE, LANES):
            highest = more(highest, load_floats(row + 4 * lane))
        before = load_float(mine + GREATEST)
        top = float32(max(before, top_float(highest)))
        factor, shift = _fade(before, top), splat(top)
        store(mine + GREATEST, top)
        store(mine + FACTOR, float32(factor))
        totals = tile.state + TOTALS + LINE * query
        total = mul(load_floats(totals), splat(float32(factor)))
        for lane in range(0, PIECE, LANES):
            weight = exp(sub(load_floats(row + 4 * lane), shift))
            total = add(total, weight)
            store(row + 4 * lane, weight)
        store(totals, total)


@inner
def add_values(tile: Tile, live: int) -> None:
    """sums (query, dim) = sums * factor + weights · values of the first `live` positions"""
    s, w = tile.sum_stride, 4 * PIECE
    for query in range(0, tile.n, 4):
        at = tile.scores + query * w
        rows = (at, at + w, at + 2 * w, at + 3 * w)
        f = tile.state + FACTOR + 4 * query
        f0, f1 = splat(load_float(f)), splat(load_float(f + 4))
        f2, f3 = splat(load_float(f + 8)), splat(load_float(f + 12))
        for c in range(0, tile.v_dim, 2 * LANES):
            o = tile.sums + query * s + 4 * c
            p = o + 4 * LANES
            a = (
                mul(load_floats(o), f0),
                mul(load_floats(o + s), f1),
                mul(load_floats(o + 2 * s), f2),
                mul(load_floats(o + 3 * s), f3),
            )
            b = (
                mul(load_floats(p), f0),
                mul(load_floats(p + s), f1),
                mul(load_floats(p + 2 * s), f2),
                mul(load_floats(p + 3 * s), f3),
            )
            value = tile.values + 4 * c
            for i in range(live):
                a = add_outer_tile(a, load_floats(value), rows, 4 * i)
                b = add_outer_tile(b, load_floats(value + 4 * LANES), rows, 4 * i)
                value += s
            store(o, a[0])
            store(o + s, a[1])
            store(o + 2 * s, a[2])
            store(o + 3 * s, a[3])
            store(p, b[0])
            store(p + s, b[1])
            store(p + 2 * s, b[2])
            store(p + 3 * s, b[3])


@inner
def one_block(tile: Tile, k: int, v: int, heads: int, head: int, base: int, live: int) -> None:
    """The block at addresses k and v, whose first position is `base`; `live` of it are written."""
    load_keys(tile.keys, k, heads, head, tile.head_dim, tile.type)
    scores_of(tile)
    soften(tile, base)
    load_values(tile.values, v, heads, head, tile.v_dim, tile.type)
    add_values(tile, live)


@inner
def clear(tile: Tile) -> None:
    """Begin a part: no sums yet."""
    for query in range(tile.n):
        store(tile.state + GREATEST + 4 * query, float32(NEVER))
        store(tile.state + TOTALS + LINE * query, zero_floats())
        for c in range(0, tile.sum_stride, 4 * LANES):
            store(tile.sums + query * tile.sum_stride + c, zero_floats())


@inner
def join(top_place: int, total_place: int, sums: int, part: int, dims: int, own: Part) -> None:
    """Add a part of the keys to what is known of a query: greatest score, total and sums."""
    if own.top <= 0.5 * NEVER:
        return
    before = load_float(top_place)
    top = float32(max(before, own.top))
    old, new = _fade(before, top), _fade(own.top, top)
    store(top_place, top)
    store(total_place, float32(load_float(total_place) * old + own.total * new))
    for c in range(0, dims, LANES):
        v = mul(load_floats(sums + 4 * c), splat(float32(old)))
        store(sums + 4 * c, fma(load_floats(part + 4 * c), splat(float32(new)), v))


@inner
def part_of(tile: Tile, query: int) -> Part:
    """Greatest score and total of a query in the part at hand."""
    total = sum_floats(load_floats(tile.state + TOTALS + LINE * query))
    return Part(load_float(tile.state + GREATEST + 4 * query), total)


@inner
def scale_query(out: int, q: int, dims: int, by: float) -> None:
    """One query times the scale of its scores."""
    for c in range(0, dims, LANES):
        store(out + 4 * c, mul(load_floats(q + 4 * c), splat(by)))
