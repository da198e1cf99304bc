"""Rows of a packed table as floats, one for each token. Build time only: imports numba."""

from typing import Any

import numpy as np

from llamoot.kernels.atomics import claim
from llamoot.kernels.forms import VECTOR, Form
from llamoot.kernels.op import Op, inner, op
from llamoot.kernels.record import COLUMNS
from llamoot.kernels.simd import LANES, load_float, load_int, load_signed, stack, store

GROUP = 16
QUANTS = VECTOR * COLUMNS // 4  # bytes of a block's quants, one byte each
SCALES = 4 * VECTOR  # at most four vectors of scales and minima


def _row_of(form: Form) -> Any:
    """(group address, lane, super-blocks, place): write a row's floats, plus what is there."""
    head_bytes, step, scale_bytes = form.head_bytes, form.block_bytes, form.scale_bytes
    head, scales, quants, blocks = form.head, form.scales, form.quants, form.blocks
    bias, halves = (0 if form.wide else form.bias), form.kind.startswith("two")
    minima = "min" in form.kind

    @inner
    def block(p: int, shared: Any, part: int, lane: int, out: int, by: float) -> None:
        bytes_, factors = stack(QUANTS), stack(SCALES)
        found = quants(p + scale_bytes, part)
        for i in range(8):
            store(bytes_ + VECTOR * i, found[i])
        used = scales(p, part, shared)
        for i in range(len(used)):
            store(factors + VECTOR * i, used[i])
        for column in range(COLUMNS):
            which = column // 16 if halves else 0
            factor = load_float(factors + VECTOR * which + 4 * lane)
            least = np.float32(0)
            if minima:
                least = load_float(factors + VECTOR * (which + 1 + halves) + 4 * lane)
            q = load_signed(bytes_ + VECTOR * (column // 4) + 4 * lane + column % 4) - bias
            place = out + 4 * column
            store(place, load_float(place) + (np.float32(q) * factor + least) * np.float32(by))

    @inner
    def row(p: int, lane: int, supers: int, out: int, by: float) -> None:
        part = lane // LANES * LANES
        for _ in range(supers):
            shared = head(p, part)
            p += head_bytes
            for _ in range(blocks):
                block(p, shared, part, lane - part, out, by)
                p += step
                out += 4 * COLUMNS

    return row


def _float_row_of(read: Any, size: int) -> Any:
    """The same for weights of `size` bytes that `read` makes a float32 of; supers are columns."""

    @inner
    def row(p: int, lane: int, supers: int, out: int, by: float) -> None:
        p += size * lane
        for column in range(supers):
            place = out + 4 * column
            store(place, load_float(place) + read(p) * np.float32(by))
            p += size * GROUP

    return row


def _rows_op(module: str, row: Any) -> Op:
    def embed(
        work: int,
        rows: int,
        thread: int,
        threads: int,
        ids: int,  # int32 of each row
        first: int,  # added to them
        w: int,
        group_bytes: int,
        supers: int,
        n_out: int,  # rows of the table; ids beyond them give the last
        columns: int,
        x: int,  # what to add to, or 0
        x_stride: int,
        out: int,
        out_stride: int,
        scale: float,
    ) -> None:
        """out = x + table[ids + first] * scale"""
        while True:
            i = claim(work)
            if i >= rows:
                break
            place, other = out + i * out_stride, x + i * x_stride
            for column in range(0, 4 * columns, 4):
                store(place + column, load_float(other + column) if x else np.float32(0))
            which = min(max(load_int(ids + 4 * i) + first, 0), n_out - 1)
            row(w + which // GROUP * group_bytes, which % GROUP, supers, place, scale)

    embed.__module__ = module
    return op(embed)


def embed_op(module: str, form: Form) -> Op:
    """The look-up operation for weights of this form; `module` is the file it is for."""
    return _rows_op(module, _row_of(form))


def float_embed_op(module: str, read: Any, size: int) -> Op:
    """The look-up operation for float weights."""
    return _rows_op(module, _float_row_of(read, size))
