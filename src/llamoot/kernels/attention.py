"""Attention over the paged cache: queries grouped by the key/value head they share.

`attend` does tiles of queries and writes the result, or, for a sequence of few rows, what each
part of its keys gives; `merge` joins those. See `attention_plan` for the cut.
"""

from typing import NamedTuple

from numba import float32, int64

from llamoot.kernels.atomics import claim
from llamoot.kernels.attention_block import (
    NEVER,
    Part,
    Tile,
    clear,
    join,
    one_block,
    part_of,
    scale_query,
)
from llamoot.kernels.attention_plan import (
    ALL_GREATEST,
    ALL_TOTAL,
    FROM,
    LINE,
    PART_BLOCKS,
    PIECE,
    PLACE,
    SLOPE,
    SPLIT_ROWS,
    TILE,
    UNTIL,
    plan,
)
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


class Call(NamedTuple):
    """What one call of `attend` works on; the names are those of its parameters."""

    out: int
    out_stride: int
    q: int
    q_stride: int
    k: int
    k_block: int
    v: int
    v_block: int
    heads: int
    kv_heads: int
    group: int
    scale: float
    back: int
    ahead: int
    chunk: int
    sinks: int
    alibi: int
    pos: int
    first: int
    length: int
    table: int
    table_stride: int
    partial: int
    parts: int  # room for so many in `partial`


class Unit(NamedTuple):
    """One piece of the work: a tile of one sequence, one key/value head, all parts or one."""

    seq: int
    begin: int  # row of the batch where the sequence begins
    start: int  # first of the tile's (row, head) pairs
    n: int
    head: int
    part: int  # -1 for all


_plan = inner(plan)


@inner
def _unit(number: int, seqs: int, call: Call) -> Unit:
    """Piece `number` of all sequences; n is 0 behind the last. Long tiles come first."""
    for seq in range(seqs):
        begin = load_int(call.first + 4 * seq)
        rows = load_int(call.first + 4 * seq + 4) - begin
        parts = _parts(rows, load_int(call.length + 4 * seq))
        tiles = -(-rows * call.group // TILE)
        if number < tiles * call.kv_heads * parts:
            start = (tiles - 1 - number // (call.kv_heads * parts)) * TILE
            rest = number % (call.kv_heads * parts)
            part = rest % parts if parts > 1 else int64(-1)
            n = min(TILE, rows * call.group - start)
            return Unit(int64(seq), int64(begin), start, n, rest // parts, part)
        number -= tiles * call.kv_heads * parts
    return Unit(int64(0), int64(0), int64(0), int64(0), int64(0), int64(0))


@inner
def _parts(rows: int, length: int) -> int:
    """Into how many units the keys of a sequence are cut."""
    return 1 if rows > SPLIT_ROWS else max(1, -(-length // (PART_BLOCKS * PIECE)))


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


@inner
def _sink(sinks: int, head: int) -> float:
    value: float = load_float(sinks + 4 * head) if sinks != 0 else float32(NEVER)
    return value


@inner
def _begin(tile: Tile, unit: Unit, call: Call) -> tuple[int, int]:
    """Fetch the queries and what each may see; returns the range that any of them sees."""
    reach = load_int(call.length + 4 * unit.seq)
    lowest, highest = int64(reach), int64(0)
    for i in range(tile.n):
        row = unit.begin + (unit.start + i) // call.group
        head = unit.head * call.group + (unit.start + i) % call.group
        place = int64(load_int(call.pos + 4 * row))
        low, high = max(0, place - call.back), min(reach, place + call.ahead + 1)
        if call.chunk > 0:
            low = max(low, place // call.chunk * call.chunk)
        lowest, highest = min(lowest, low), max(highest, high)
        state = tile.state
        store(state + FROM + 8 * i, int64(low))
        store(state + UNTIL + 8 * i, int64(high))
        store(state + PLACE + 8 * i, place)
        slope = load_float(call.alibi + 4 * head) if call.alibi != 0 else float32(0.0)
        store(state + SLOPE + 4 * i, float32(slope))
        store(state + ALL_GREATEST + 4 * i, float32(NEVER))
        store(state + ALL_TOTAL + 4 * i, float32(0.0))
        for c in range(0, tile.sum_stride, 4 * LANES):
            store(tile.all_sums + i * tile.sum_stride + c, zero_floats())
        here = call.q + row * call.q_stride + 4 * head * tile.head_dim
        scale_query(tile.queries + i * tile.query_stride, here, tile.head_dim, call.scale)
    return lowest, highest


@inner
def _part(tile: Tile, unit: Unit, call: Call, part: int, lowest: int, highest: int) -> None:
    """All blocks of one part of the keys."""
    clear(tile)
    block = max(lowest // PIECE, part * PART_BLOCKS)
    last = min(-(-highest // PIECE), (part + 1) * PART_BLOCKS)
    while block < last:
        number = load_int(call.table + unit.seq * call.table_stride + 4 * block)
        live = min(PIECE, highest - block * PIECE)
        k, v = call.k + number * call.k_block, call.v + number * call.v_block
        one_block(tile, k, v, call.kv_heads, unit.head, block * PIECE, live)
        block += 1


@inner
def _whole(tile: Tile, unit: Unit, call: Call, lowest: int, highest: int) -> None:
    """All parts in order, and the result."""
    size = PART_BLOCKS * PIECE
    for part in range(lowest // size, -(-highest // size)):
        _part(tile, unit, call, part, lowest, highest)
        for i in range(tile.n):
            place, sums = tile.state + 4 * i, i * tile.sum_stride
            top, total = place + ALL_GREATEST, place + ALL_TOTAL
            own = part_of(tile, i)
            join(top, total, tile.all_sums + sums, tile.sums + sums, tile.v_dim, own)
    for i in range(tile.n):
        row = unit.begin + (unit.start + i) // call.group
        head = unit.head * call.group + (unit.start + i) % call.group
        out = call.out + row * call.out_stride + 4 * head * tile.v_dim
        top = load_float(tile.state + ALL_GREATEST + 4 * i)
        total = load_float(tile.state + ALL_TOTAL + 4 * i)
        sums, sink = tile.all_sums + i * tile.sum_stride, _sink(call.sinks, head)
        _finish(out, sums, tile.v_dim, top, total, sink)


@inner
def _apart(tile: Tile, unit: Unit, call: Call, lowest: int, highest: int) -> None:
    """One part, left in `partial` for `merge`."""
    _part(tile, unit, call, unit.part, lowest, highest)
    for i in range(tile.n):
        row = (unit.start + i) // call.group
        head = unit.head * call.group + (unit.start + i) % call.group
        slot = ((unit.seq * SPLIT_ROWS + row) * call.heads + head) * call.parts + unit.part
        place, own = call.partial + slot * (tile.sum_stride + 8), part_of(tile, i)
        store(place, float32(own.top))
        store(place + 4, float32(own.total))
        for c in range(0, tile.v_dim, LANES):
            store(place + 8 + 4 * c, load_floats(tile.sums + i * tile.sum_stride + 4 * c))


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
    partial: int,
    parts: int,
) -> None:
    """rows is the number of sequences; a query sees `back` positions back and `ahead` ahead"""
    at, group = _plan(head_dim, v_dim), heads // kv_heads
    own = memory + thread * at.n_bytes
    # fmt: off
    call = Call(
        out, out_stride, q, q_stride, k, k_block, v, v_block, heads, kv_heads, group, scale,
        back, ahead, chunk, sinks, alibi, pos, first, length, table, table_stride, partial, parts,
    )
    unit = _unit(claim(work), rows, call)
    while unit.n > 0:
        tile = Tile(
            unit.n, own, at.query_stride, own + at.keys, own + at.values, own + at.sums,
            own + at.all_sums, at.sum_stride, own + at.scores, own + at.state, head_dim, v_dim,
            type, softcap, alibi,
        )
        # fmt: on
        lowest, highest = _begin(tile, unit, call)
        if unit.part < 0:
            _whole(tile, unit, call, lowest, highest)
        else:
            _apart(tile, unit, call, lowest, highest)
        unit = _unit(claim(work), rows, call)


@op
def merge(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    heads: int,
    head_dim: int,
    v_dim: int,
    sinks: int,
    first: int,
    length: int,
    memory: int,
    partial: int,
    parts: int,
) -> None:
    """Join the parts that were done apart; one piece is one sequence and head"""
    at = _plan(head_dim, v_dim)
    state, sum_stride = memory + thread * at.n_bytes, at.sum_stride
    sums = state + LINE
    piece = claim(work)
    while piece < rows * heads:
        seq, head = piece // heads, piece % heads
        begin, end = load_int(first + 4 * seq), load_int(first + 4 * seq + 4)
        mine = _parts(end - begin, load_int(length + 4 * seq))
        for row in range(begin, end if mine > 1 else begin):
            slot = ((seq * SPLIT_ROWS + row - begin) * heads + head) * parts
            store(state, float32(NEVER))
            store(state + 4, float32(0.0))
            for c in range(0, sum_stride, 4 * LANES):
                store(sums + c, zero_floats())
            for part in range(mine):
                place = partial + (slot + part) * (sum_stride + 8)
                own = Part(load_float(place), load_float(place + 4))
                join(state, state + 4, sums, place + 8, v_dim, own)
            top, total = load_float(state), load_float(state + 4)
            place = out + row * out_stride + 4 * head * v_dim
            _finish(place, sums, v_dim, top, total, _sink(sinks, head))
        piece = claim(work)
