"""Activations to 8 bits: rows of float32 become rows of records (see record.py)."""

from typing import Any

import numpy as np

from llamoot.kernels.atomics import claim
from llamoot.kernels.op import inner, op
from llamoot.kernels.record import (
    COLUMNS,
    LESS,
    LESS_HIGH,
    LESS_LOW,
    RECORD,
    SCALE,
    SUM,
    SUM_HIGH,
    SUM_LOW,
)
from llamoot.kernels.simd import (
    LANES,
    absolute,
    greater,
    ints,
    largest,
    load_floats,
    low_bytes,
    mul,
    nearest,
    splat,
    store,
    total,
    zero_floats,
)

HALF = COLUMNS // 2
PIECE = 64  # records that a thread claims at once


@inner
def _half(x: int, out: int, by: Any) -> int:
    """Sixteen columns times `by`, rounded, as bytes at `out`; returns their sum."""
    whole = 0
    for lane in range(0, HALF, LANES):
        rounded = ints(nearest(mul(load_floats(x + 4 * lane), splat(by))))
        store(out + lane, low_bytes(rounded))
        whole += total(rounded)
    return whole


@inner
def write_record(x: int, out: int) -> None:
    """32 floats at `x` to one record at `out`. The greatest becomes 127; zeros stay zeros."""
    most = zero_floats()
    for lane in range(0, COLUMNS, LANES):
        most = greater(most, absolute(load_floats(x + 4 * lane)))
    scale = largest(most) / np.float32(127)
    # A scale so small that its inverse overflows stands for zeros.
    by = np.float32(1) / scale if scale > np.float32(1e-37) else np.float32(0)
    low = np.float32(_half(x, out, by))
    high = np.float32(_half(x + 4 * HALF, out + HALF, by))
    store(out + SCALE, scale)
    store(out + SUM, scale * (low + high))
    store(out + LESS, -(low + high))
    store(out + LESS_LOW, -low)
    store(out + LESS_HIGH, -high)
    store(out + SUM_LOW, scale * low)
    store(out + SUM_HIGH, scale * high)


@op
def quantize(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    x: int,
    x_stride: int,
    records: int,
    out: int,
    out_stride: int,
) -> None:
    """`records` records for each live row; strides are in bytes."""
    pieces = (records + PIECE - 1) // PIECE
    while True:
        piece = claim(work)
        if piece >= rows * pieces:
            break
        row, first = piece // pieces, piece % pieces * PIECE
        for i in range(first, min(first + PIECE, records)):
            write_record(x + row * x_stride + 4 * COLUMNS * i, out + row * out_stride + RECORD * i)
