"""How packed weights are read, type by type. Build time only: imports numba.

Sixteen rows are interleaved. A *super-block* is a head (scales that several blocks share) and
some blocks; a block is 32 columns: its own scales, then the quants. The quants of four columns of
16 rows are one vector of 64 bytes; a part of a byte (a nibble, two bits, one bit) belongs to the
same lane of another vector. `part` is the row, of the 16, at which the registers of this target
begin: 0 where they hold all 16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamoot.kernels.op import expand
from llamoot.kernels.simd import (
    as_floats,
    either,
    floats,
    ints,
    load_bytes,
    load_floats,
    load_halves,
    load_quads,
    mask_bits,
    mul,
    positive_floats,
    shift,
    splat,
)
from llamoot.kernels.tables import DOUBLED, NONLINEAR, lookup

VECTOR = 64  # bytes of one vector of quants: four columns of 16 rows
HALF_SCALES, BYTE_SCALES = 32, 16  # bytes of 16 scales

Reader = Callable[..., Any]


@dataclass(frozen=True)
class Form:
    """One packed layout. Sizes in bytes, for 16 rows."""

    head_bytes: int
    blocks: int  # of a super-block
    scale_bytes: int  # of a block, before its quants
    quant_bytes: int
    head: Reader  # (address, part) -> tuple of float vectors
    scales: Reader  # (address, part, head) -> (scale, …) as `kind` says
    quants: Reader  # (address, part) -> eight vectors, in the order of columns
    kind: str  # "one": a scale; "min": a scale and a minimum; "two", "two mins": per 16 columns
    wide: bool = False  # quants are signed bytes instead of 0…127
    bias: int = 0  # what every small quant is too large by

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.scale_bytes + self.quant_bytes

    @property
    def bytes(self) -> int:
        """Bytes of one super-block."""
        return self.head_bytes + self.blocks * self.block_bytes


@expand
def no_head(p: int, part: int) -> Any:
    return ()


@expand
def half_head(p: int, part: int) -> Any:
    return (floats(load_halves(p + 2 * part)),)


@expand
def two_halves_head(p: int, part: int) -> Any:
    q = p + 2 * part
    return (floats(load_halves(q)), floats(load_halves(q + HALF_SCALES)))


@expand
def half_scale(p: int, part: int, head: Any) -> Any:
    return (floats(load_halves(p + 2 * part)),)


@expand
def half_scale_min(p: int, part: int, head: Any) -> Any:
    q = p + 2 * part
    return (floats(load_halves(q)), floats(load_halves(q + HALF_SCALES)))


@expand
def byte_scale_min(p: int, part: int, head: Any) -> Any:
    """Unsigned bytes times the two scales of the head, of which the second is negative."""
    q = p + part
    scale = mul(positive_floats(load_bytes(q)), head[0])
    return (scale, mul(positive_floats(load_bytes(q + BYTE_SCALES)), head[1]))


@expand
def two_byte_scales(p: int, part: int, head: Any) -> Any:
    """Signed bytes, for the first and the last 16 columns, times the scale of the head."""
    q = p + part
    first = mul(floats(load_bytes(q)), head[0])
    return (first, mul(floats(load_bytes(q + BYTE_SCALES)), head[0]))


@expand
def nibbles(p: int, part: int) -> Any:
    """Four bits: columns 0…15 low, 16…31 high."""
    q = p + 4 * part
    a, b = load_quads(q), load_quads(q + VECTOR)
    c, d = load_quads(q + 2 * VECTOR), load_quads(q + 3 * VECTOR)
    low = (mask_bits(a, 15), mask_bits(b, 15), mask_bits(c, 15), mask_bits(d, 15))
    return (*low, shift(a, -4), shift(b, -4), shift(c, -4), shift(d, -4))


@expand
def whole_bytes(p: int, part: int) -> Any:
    q = p + 4 * part
    low = (
        load_quads(q),
        load_quads(q + VECTOR),
        load_quads(q + 2 * VECTOR),
        load_quads(q + 3 * VECTOR),
    )
    q += 4 * VECTOR
    return (
        *low,
        load_quads(q),
        load_quads(q + VECTOR),
        load_quads(q + 2 * VECTOR),
        load_quads(q + 3 * VECTOR),
    )


@expand
def six_bits(p: int, part: int) -> Any:
    """Nibbles, then two vectors of pairs of high bits: bits 0-1 belong to the first vector, …"""
    a, b, c, d, e, f, g, h = nibbles(p, part)
    low = load_quads(p + 4 * part + 4 * VECTOR)
    high = load_quads(p + 4 * part + 5 * VECTOR)
    return (
        either(a, mask_bits(shift(low, 4), 48)),
        either(b, mask_bits(shift(low, 2), 48)),
        either(c, mask_bits(low, 48)),
        either(d, mask_bits(shift(low, -2), 48)),
        either(e, mask_bits(shift(high, 4), 48)),
        either(f, mask_bits(shift(high, 2), 48)),
        either(g, mask_bits(high, 48)),
        either(h, mask_bits(shift(high, -2), 48)),
    )


@expand
def five_bits(p: int, part: int) -> Any:
    """Nibbles, then a vector of high bits: bit i belongs to vector i."""
    a, b, c, d, e, f, g, h = nibbles(p, part)
    high = load_quads(p + 4 * part + 4 * VECTOR)
    return (
        either(a, mask_bits(shift(high, 4), 16)),
        either(b, mask_bits(shift(high, 3), 16)),
        either(c, mask_bits(shift(high, 2), 16)),
        either(d, mask_bits(shift(high, 1), 16)),
        either(e, mask_bits(high, 16)),
        either(f, mask_bits(shift(high, -1), 16)),
        either(g, mask_bits(shift(high, -2), 16)),
        either(h, mask_bits(shift(high, -3), 16)),
    )


@expand
def two_bits(p: int, part: int) -> Any:
    """Two vectors of pairs of bits."""
    low = load_quads(p + 4 * part)
    high = load_quads(p + 4 * part + VECTOR)
    return (
        mask_bits(low, 3),
        mask_bits(shift(low, -2), 3),
        mask_bits(shift(low, -4), 3),
        shift(low, -6),
        mask_bits(high, 3),
        mask_bits(shift(high, -2), 3),
        mask_bits(shift(high, -4), 3),
        shift(high, -6),
    )


@expand
def three_bits(p: int, part: int) -> Any:
    """Two vectors of pairs, then a vector of high bits."""
    a, b, c, d, e, f, g, h = two_bits(p, part)
    high = load_quads(p + 4 * part + 2 * VECTOR)
    return (
        either(a, mask_bits(shift(high, 2), 4)),
        either(b, mask_bits(shift(high, 1), 4)),
        either(c, mask_bits(high, 4)),
        either(d, mask_bits(shift(high, -1), 4)),
        either(e, mask_bits(shift(high, -2), 4)),
        either(f, mask_bits(shift(high, -3), 4)),
        either(g, mask_bits(shift(high, -4), 4)),
        either(h, mask_bits(shift(high, -5), 4)),
    )


def looked_up(table: int) -> Reader:
    """Nibbles that are places in one of `lookup`'s tables."""

    @expand
    def quants(p: int, part: int) -> Any:
        a, b, c, d, e, f, g, h = nibbles(p, part)
        low = (lookup(a, table), lookup(b, table), lookup(c, table), lookup(d, table))
        high = (lookup(e, table), lookup(f, table), lookup(g, table), lookup(h, table))
        return (*low, *high)

    return quants


@expand
def exponent_scale(p: int, part: int, head: Any) -> Any:
    """A byte e for 2^(e - 128): half of what MXFP4 means, whose values are doubled here."""
    return (mul(as_floats(shift(ints(load_bytes(p + part)), 23)), splat(np.float32(0.5))),)


@expand
def byte_scale(p: int, part: int, head: Any) -> Any:
    """Signed bytes times the scale of the head."""
    return (mul(floats(load_bytes(p + part)), head[0]),)


@expand
def two_scales_mins(p: int, part: int, head: Any) -> Any:
    """Unsigned bytes: scales of both halves, then minima of both halves."""
    q = p + part
    first = mul(positive_floats(load_bytes(q)), head[0])
    last = mul(positive_floats(load_bytes(q + BYTE_SCALES)), head[0])
    low = mul(positive_floats(load_bytes(q + 2 * BYTE_SCALES)), head[1])
    return (first, last, low, mul(positive_floats(load_bytes(q + 3 * BYTE_SCALES)), head[1]))


@expand
def two_float_scales(p: int, part: int, head: Any) -> Any:
    """Floats, for the first and the last 16 columns."""
    q = p + 4 * part
    return (load_floats(q), load_floats(q + VECTOR))


Q4_0 = Form(0, 1, 32, 256, no_head, half_scale, nibbles, "one", bias=8)
Q4_1 = Form(0, 1, 64, 256, no_head, half_scale_min, nibbles, "min")
Q5_0 = Form(0, 1, 32, 320, no_head, half_scale, five_bits, "one", bias=16)
Q5_1 = Form(0, 1, 64, 320, no_head, half_scale_min, five_bits, "min")
Q8_0 = Form(0, 1, 32, 512, no_head, half_scale, whole_bytes, "one", wide=True)
Q2_K = Form(64, 8, 64, 128, two_halves_head, two_scales_mins, two_bits, "two mins")
Q3_K = Form(32, 8, 32, 192, half_head, two_byte_scales, three_bits, "two", bias=4)
Q4_K = Form(64, 8, 32, 256, two_halves_head, byte_scale_min, nibbles, "min")
Q5_K = Form(64, 8, 32, 320, two_halves_head, byte_scale_min, five_bits, "min")
Q6_K = Form(32, 8, 32, 384, half_head, two_byte_scales, six_bits, "two", bias=32)
IQ4_NL = Form(0, 1, 32, 256, no_head, half_scale, looked_up(NONLINEAR), "one", wide=True)
IQ4_XS = Form(32, 8, 16, 256, half_head, byte_scale, looked_up(NONLINEAR), "one", wide=True)
MXFP4 = Form(0, 1, 16, 256, no_head, exponent_scale, looked_up(DOUBLED), "one", bias=12)
# Where types without a form of their own are brought: signed bytes with float scales.
BYTES8 = Form(0, 1, 128, 512, no_head, two_float_scales, whole_bytes, "two", wide=True)
