"""Signed bytes with a float scale for 16 columns: what types without a form are brought to."""

from typing import Any

import numpy as np

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import BYTES8
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import inner
from llamoot.kernels.packing import pack_op, store_byte
from llamoot.kernels.simd import load_float, store

NEAR = np.float32(1e-3)  # how far from a whole number a value may be that is meant to be one


@inner
def _fits(source: int, by: Any) -> bool:
    """True if 16 floats times `by` are whole."""
    for column in range(16):
        value = load_float(source + 4 * column) * by
        if abs(value - np.rint(value)) > NEAR:
            return False
    return True


@inner
def _half(source: int, out: int, scale: int) -> None:
    """16 columns: as they are, where the greatest is one of few whole numbers of a scale.

    Codebooks hold small numbers, so nearly always that is so; else the greatest becomes 127.
    """
    most = np.float32(0)
    for column in range(16):
        most = max(most, abs(load_float(source + 4 * column)))
    if most == 0:
        return
    greatest = 1
    while greatest < 64 and not _fits(source, np.float32(greatest) / most):
        greatest += 1
    if greatest == 64:
        greatest = 127
    store(scale, most / np.float32(greatest))
    by = np.float32(greatest) / most
    for column in range(16):
        whole = int(np.rint(load_float(source + 4 * column) * by))
        store_byte(out + 64 * (column // 4) + column % 4, whole)


@inner
def _move(source: int, out: int, lane: int) -> None:
    """32 floats."""
    _half(source, out + 128 + 4 * lane, out + 4 * lane)
    _half(source + 64, out + 128 + 256 + 4 * lane, out + 64 + 4 * lane)


matmul = int8_op(__name__, BYTES8)
pack = pack_op(__name__, 128, BYTES8.bytes, _move)
embed = embed_op(__name__, BYTES8)
