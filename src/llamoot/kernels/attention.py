"""Attention over the paged cache: queries grouped by the key/value head they share.

`attend` does tiles of queries (see `attention_plan`) and writes the result, or, for a sequence
whose keys are cut into parts, each part's sums; `merge` puts parts together.
"""

from typing import NamedTuple

from numba import float32, int64

from llamoot.kernels.atomics import claim
from llamoot.kernels.attention_block import (
    FROM,
    GREATEST,
    NEVER,
    PLACE,
    SLOPE,
    TOTAL,
    UNTIL,
    Tile,
    add_scaled,
    one_block,
    scale_query,
)
from llamoot.kernels.attention_plan import MAX_PARTS, PART_BLOCKS, PIECE, SPLIT_ROWS, TILE
from llamoot.kernels.op import inner, op
from llamoot.kernels.simd import (
    LANES,
    load_float,
    load_floats,
    load_int,
    mul,
    splat,
    store,
    zero_floats,
)
from llamoot.kernels.vector import exp, first_lane, put


class Unit(NamedTuple):
    """One piece of the work: a tile of one sequence, one key/value head, one part of the keys."""

    seq: int
    tile: int
    head: int
    part: int
    parts: int
    part_blocks: int


@inner
def _cut(rows: int, blocks: int) -> tuple[int, int]:
    """How many parts the keys of a sequence make, and blocks of each."""
    if rows > SPLIT_ROWS:
        return 1, blocks
    size = max(PART_BLOCKS, -(-blocks // MAX_PARTS))
    return max(1, -(-blocks // size)), size


@inner
def _unit(number: int, seqs: int, first: int, length: int, kv_heads: int, group: int) -> Unit:
    """Piece `number` of all sequences; seq is -1 behind the last. Long tiles come first."""
    for seq in range(seqs):
        rows = load_int(first + 4 * seq + 4) - load_int(first + 4 * seq)
        blocks = -(-load_int(length + 4 * seq) // PIECE)
        parts, size = _cut(rows, blocks)
        tiles = -(-rows * group // TILE)
        if number < tiles * kv_heads * parts:
            tile = tiles - 1 - number // (kv_heads * parts)
            rest = number % (kv_heads * parts)
            return Unit(seq, tile, rest // parts, rest % parts, parts, size)
        number -= tiles * kv_heads * parts
    return Unit(int64(-1), int64(0), int64(0), int64(0), int64(1), int64(0))


@inner
def _sink(sinks: int, head: int) -> float:
    value: float = load_float(sinks + 4 * head) if sinks != 0 else float32(NEVER)
    return value


@inner
def _finish(out: int, sums: int, dims: int, top: float, total: float, sink: float) -> None:
    """out = sums / total, a sink's share taken into account"""
    highest = max(top, sink)
    shrink = _exp(top - highest)
    whole = total * shrink
    if sink > 0.5 * NEVER:
        whole += _exp(sink - highest)
    by = splat(float32(shrink / whole) if whole > 0 else float32(0.0))
    for c in range(0, dims, LANES):
        put(out + 4 * c, mul(load_floats(sums + 4 * c), by), dims - c)


@inner
def _exp(x: float) -> float:
    """e ** x of one number, as the vectors have it."""
    value: float = first_lane(exp(splat(float32(x))))
    return value


@op
def attend(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    q: int,
    q_stride: int,
    k: int,
    k_block: int,
    v: int,
    v_block: int,
    type: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    v_dim: int,
    scale: float,
    softcap: float,
    back: int,
    ahead: int,
    chunk: int,
    sinks: int,
    alibi: int,
    pos: int,
    first: int,
    length: int,
    table: int,
    table_stride: int,
    memory: int,
    memory_bytes: int,
    query_stride: int,
    sum_stride: int,
    keys_at: int,
    values_at: int,
    sums_at: int,
    scores_at: int,
    state_at: int,
    partial: int,
) -> None:
    """rows is the number of sequences; `back` and `ahead` how far a query sees"""
    own, group = memory + thread * memory_bytes, heads // kv_heads
    unit = _unit(claim(work), rows, first, length, kv_heads, group)
    while unit.seq >= 0:
        begin = load_int(first + 4 * unit.seq)
        pairs = (load_int(first + 4 * unit.seq + 4) - begin) * group
        reach, start = load_int(length + 4 * unit.seq), unit.tile * TILE
        n = min(TILE, pairs - start)
        tile = Tile(
            n,
            own,
            query_stride,
            own + keys_at,
            own + values_at,
            own + sums_at,
            sum_stride,
            own + scores_at,
            own + state_at,
            head_dim,
            v_dim,
            type,
            softcap,
            alibi,
        )
        lowest, highest = int64(reach), int64(0)
        for i in range(n):
            row, head = begin + (start + i) // group, unit.head * group + (start + i) % group
            place = load_int(pos + 4 * row)
            low, high = max(0, place - back), min(reach, place + ahead + 1)
            if chunk > 0:
                low = max(low, place // chunk * chunk)
            lowest, highest = min(lowest, low), max(highest, high)
            _begin(tile, i, place, low, high)
            if alibi != 0:
                store(tile.state + SLOPE + 4 * i, load_float(alibi + 4 * head))
            here = q + row * q_stride + 4 * head * head_dim
            scale_query(own + i * query_stride, here, head_dim, scale)
        block = max(lowest // PIECE, unit.part * unit.part_blocks)
        last = min(-(-highest // PIECE), (unit.part + 1) * unit.part_blocks)
        blocks = table + unit.seq * table_stride
        while block < last:
            number = load_int(blocks + 4 * block)
            live = min(PIECE, highest - block * PIECE)
            at_k, at_v = k + number * k_block, v + number * v_block
            one_block(tile, at_k, at_v, kv_heads, unit.head, block * PIECE, live)
            block += 1
        for i in range(n):
            row, head = begin + (start + i) // group, unit.head * group + (start + i) % group
            sums = tile.sums + i * sum_stride
            top = load_float(tile.state + GREATEST + 4 * i)
            total = load_float(tile.state + TOTAL + 4 * i)
            if unit.parts == 1:
                place = out + row * out_stride + 4 * head * v_dim
                _finish(place, sums, v_dim, top, total, _sink(sinks, head))
            else:
                slot = (unit.seq * SPLIT_ROWS + row - begin) * heads + head
                slot = partial + (slot * MAX_PARTS + unit.part) * (sum_stride + 8)
                for c in range(0, v_dim, LANES):
                    store(slot + 8 + 4 * c, load_floats(sums + 4 * c))
                store(slot, top)
                store(slot + 4, total)
        unit = _unit(claim(work), rows, first, length, kv_heads, group)


@inner
def _begin(tile: Tile, i: int, place: int, low: int, high: int) -> None:
    """Query i at position `place`, which sees positions low … high - 1."""
    state = tile.state
    store(state + GREATEST + 4 * i, float32(NEVER))
    store(state + TOTAL + 4 * i, float32(0.0))
    store(state + SLOPE + 4 * i, float32(0.0))
    store(state + FROM + 8 * i, int64(low))
    store(state + UNTIL + 8 * i, int64(high))
    store(state + PLACE + 8 * i, int64(place))
    for c in range(0, tile.sum_stride, 4 * LANES):
        store(tile.sums + i * tile.sum_stride + c, zero_floats())


@op
def merge(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    heads: int,
    v_dim: int,
    sum_stride: int,
    sinks: int,
    first: int,
    length: int,
    partial: int,
    memory: int,
    memory_bytes: int,
) -> None:
    """Put the parts of each sequence's keys together; one piece is one sequence and head"""
    own = memory + thread * memory_bytes
    piece = claim(work)
    while piece < rows * heads:
        seq, head = piece // heads, piece % heads
        begin, end = load_int(first + 4 * seq), load_int(first + 4 * seq + 4)
        parts, _ = _cut(end - begin, -(-load_int(length + 4 * seq) // PIECE))
        if parts > 1:
            for row in range(begin, end):
                slot = (seq * SPLIT_ROWS + row - begin) * heads + head
                slot = partial + slot * MAX_PARTS * (sum_stride + 8)
                top = float32(NEVER)
                for part in range(parts):
                    top = max(top, load_float(slot + part * (sum_stride + 8)))
                for c in range(0, sum_stride, 4 * LANES):
                    store(own + c, zero_floats())
                total = float32(0.0)
                for part in range(parts):
                    here = slot + part * (sum_stride + 8)
                    by = _exp(load_float(here) - top)
                    total = float32(total + load_float(here + 4) * by)
                    add_scaled(own, here + 8, v_dim, float32(by))
                place = out + row * out_stride + 4 * head * v_dim
                _finish(place, own, v_dim, top, total, _sink(sinks, head))
        piece = claim(work)
