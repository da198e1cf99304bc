"""Write keys and values into the paged cache, as float32, float16 or 8-bit with scales.

One operation serves both: keys have the positions innermost, values the dimensions; only the two
strides differ. Types are the places in `cache.TYPES`.
"""

from numba import float32

from llamoot.kernels.op import inner, op
from llamoot.kernels.pieces import row_pieces
from llamoot.kernels.simd import (
    LANES,
    absolute,
    ints,
    load_byte,
    load_float,
    load_int,
    load_short,
    low_bytes,
    mul,
    nearest,
    splat,
    stack,
    store,
    zero_floats,
)
from llamoot.kernels.vector import get, halves, more, top_float

F32, F16, Q8_0 = range(3)
BLOCK, GROUP = 32, 32  # as in `step` and `cache`
ROOM = 4160  # bytes: a head of 1024 floats and a vector


@inner
def _quantise(x: int, dims: int, out: int, scales: int) -> None:
    """Bytes to `out`, and for each 32 of them a float16 scale; scales are BLOCK apart."""
    for start in range(0, dims, GROUP):
        left, top = min(GROUP, dims - start), zero_floats()
        for c in range(0, left, LANES):
            top = more(top, absolute(get(x + 4 * (start + c), left - c)))
        d = float32(top_float(top) / float32(127.0))
        by = splat(float32(1.0) / d if d > 0 else float32(0.0))
        for c in range(0, left, LANES):
            v = get(x + 4 * (start + c), left - c)
            store(out + start + c, low_bytes(ints(nearest(mul(v, by)))))
        room = stack(64)
        store(room, halves(splat(d)))
        store(scales + start // GROUP * BLOCK * 2, load_short(room))


@inner
def _scatter(room: int, out: int, dims: int, type: int, stride: int) -> None:
    """Elements side by side in `room` to places `stride` elements apart."""
    if type == Q8_0:
        for d in range(dims):
            store(out + d * stride, load_byte(room + d))
    elif type == F16:
        for d in range(dims):
            store(out + 2 * d * stride, load_short(room + 2 * d))
    else:
        for d in range(dims):
            store(out + 4 * d * stride, load_float(room + 4 * d))


@inner
def _convert(x: int, dims: int, type: int, room: int, scales: int) -> None:
    if type == Q8_0:
        _quantise(x, dims, room, scales)
    else:
        for c in range(0, dims, LANES):
            v = get(x + 4 * c, dims - c)
            if type == F16:
                store(room + 2 * c, halves(v))
            else:
                store(room + 4 * c, v)


@op
def store_rows(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    x: int,
    x_stride: int,
    cache: int,
    block_bytes: int,
    pos: int,
    seq: int,
    table: int,
    table_stride: int,
    heads: int,
    dims: int,
    dim_stride: int,
    pos_stride: int,
    type: int,
) -> None:
    """Each row's heads to the place of its position; strides are in elements"""
    size = 4 if type == F32 else 2 if type == F16 else 1
    groups = -(-dims // GROUP)
    first, stop = row_pieces(work, rows, heads * dims)
    while first < stop:
        room = stack(ROOM)
        for row in range(first, stop):
            at = load_int(pos + 4 * row)
            blocks = table + load_int(seq + 4 * row) * table_stride
            block = cache + load_int(blocks + 4 * (at // BLOCK)) * block_bytes
            slot = at % BLOCK
            scales = block + heads * dims * BLOCK + 2 * slot
            for head in range(heads):
                own = scales + head * groups * BLOCK * 2
                _convert(x + row * x_stride + 4 * head * dims, dims, type, room, own)
                place = block + size * (head * dims * BLOCK + slot * pos_stride)
                _scatter(room, place, dims, type, dim_stride)
        first, stop = row_pieces(work, rows, heads * dims)
