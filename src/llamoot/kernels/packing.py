"""From rows of a file to packed weights. Build time only: imports numba.

A packing operation is made from one function that moves one super-block of one row to its places
among 16. The order within the packed form is described in forms.py. Missing rows of the last
group stay zero, as the memory was.
"""

from collections.abc import Callable
from typing import Any

from llamoot.kernels.atomics import claim
from llamoot.kernels.op import Op, expand, op
from llamoot.kernels.simd import (
    load_byte,
    load_int,
    load_short,
    store,
    to_byte,
    to_int,
    to_short,
)

ROWS = 16
VECTOR = 64

Move = Callable[..., Any]


def pack_op(module: str, source_bytes: int, packed_bytes: int, move: Move) -> Op:
    """`move(source, out, lane)` moves one super-block; `rows` of the operation are groups."""

    def pack(
        work: int,
        rows: int,
        thread: int,
        threads: int,
        source: int,
        out: int,
        supers: int,  # super-blocks of a row
        n_out: int,  # rows of one matrix; each begins a new group
    ) -> None:
        """Pack `rows` groups of 16 rows; a group is claimed at a time."""
        groups = (n_out + ROWS - 1) // ROWS
        row_bytes = supers * source_bytes
        while True:
            group = claim(work)
            if group >= rows:
                break
            first = group % groups * ROWS
            row = source + (group // groups * n_out + first) * row_bytes
            lanes = min(ROWS, n_out - first)
            to = out + group * supers * packed_bytes
            for _ in range(supers):
                for lane in range(lanes):
                    move(row + lane * row_bytes, to, lane)
                row += source_bytes
                to += packed_bytes

    pack.__module__ = module
    return op(pack)


@expand
def move_short(source: int, out: int) -> None:
    """Two bytes."""
    store(out, load_short(source))


@expand
def move_vectors(source: int, out: int, n: int) -> None:
    """`n` times four bytes, each to the same lane of the next vector."""
    for i in range(n):
        store(out + VECTOR * i, load_int(source + 4 * i))


LOW = 0x0F0F0F0F


@expand
def join_nibbles(first: int, last: int, moved: int) -> int:
    """The nibbles at bit `moved` (0 or 4) of two words of four bytes, the second above."""
    return ((first >> moved) & LOW) | (((last >> moved) & LOW) << 4)


@expand
def word(address: int) -> int:
    """Four bytes as a number that is not negative."""
    return int(load_int(address)) & 0xFFFFFFFF


@expand
def store_word(address: int, value: int) -> None:
    """The lowest four bytes of a number."""
    store(address, to_int(value))


@expand
def join_pairs(source: int, moved: int) -> int:
    """The bits `moved`, `moved` + 1 of each byte of four words: those of word i to bits 2 i."""
    joined = 0
    for i in range(4):
        joined |= ((word(source + 4 * i) >> moved) & 0x03030303) << (2 * i)
    return joined


@expand
def move_byte(source: int, out: int) -> None:
    """One byte."""
    store(out, load_byte(source))


@expand
def negate_short(source: int, out: int) -> None:
    """An f16 with its sign turned."""
    store(out, to_short(load_short(source) ^ 0x8000))


@expand
def move_scales(source: int, out: int, step: int) -> None:
    """The 12 bytes of eight scales and eight minima of six bits, to `out` + `step` times block.

    The first four of each are the low bits of bytes 0…3 and 4…7; the last four have their low
    nibbles in bytes 8…11 and their high bits above those of the first.
    """
    for block in range(4):
        low, high = load_byte(source + block), load_byte(source + 4 + block)
        both = load_byte(source + 8 + block)
        at = out + step * block
        store(at, to_byte(low & 63))
        store(at + ROWS, to_byte(high & 63))
        at += 4 * step
        store(at, to_byte((both & 15) | (low >> 6) << 4))
        store(at + ROWS, to_byte(both >> 4 | (high >> 6) << 4))


def float_pack_op(module: str, load: Any, size: int) -> Op:
    """Packing of numbers of `size` bytes that `load` reads; a super-block is one column."""

    def pack(
        work: int,
        rows: int,
        thread: int,
        threads: int,
        source: int,
        out: int,
        supers: int,
        n_out: int,
    ) -> None:
        """Pack `rows` groups of 16 rows; a group is claimed at a time."""
        groups, row_bytes = (n_out + ROWS - 1) // ROWS, size * supers
        while True:
            group = claim(work)
            if group >= rows:
                break
            first = group % groups * ROWS
            row = source + (group // groups * n_out + first) * row_bytes
            lanes = min(ROWS, n_out - first)
            to = out + group * supers * size * ROWS
            for begin in range(0, supers, ROWS):
                for lane in range(lanes):
                    for column in range(begin, min(begin + ROWS, supers)):
                        value = load(row + lane * row_bytes + size * column)
                        store(to + size * (ROWS * column + lane), value)

    pack.__module__ = module
    return op(pack)


@expand
def store_byte(address: int, value: int) -> None:
    """The lowest byte of a number."""
    store(address, to_byte(value))


@expand
def join_bits(source: int, moved: int) -> int:
    """The bit `moved` of each byte of eight words: that of word i to bit i."""
    joined = 0
    for i in range(8):
        joined |= ((word(source + 4 * i) >> moved) & 0x01010101) << i
    return joined


@expand
def spread_bits(bits: int) -> int:
    """32 bits of 32 columns: bit 4 i + k to bit i of byte k."""
    spread = 0
    for k in range(4):
        x = (bits >> k) & 0x11111111
        x = (x | x >> 3) & 0x03030303
        x = (x | x >> 6) & 0x000F000F
        spread |= ((x | x >> 12) & 0xFF) << (8 * k)
    return spread


@expand
def move_nibble_pairs(source: int, out: int, step: int) -> None:
    """128 bytes, 32 for two blocks: low nibbles are the first one's, high the second's."""
    for pair in range(4):
        for i in range(4):
            at = source + 32 * pair + 4 * i
            first, last = word(at), word(at + 16)
            to = out + 2 * pair * step + VECTOR * i
            store_word(to, join_nibbles(first, last, 0))
            store_word(to + step, join_nibbles(first, last, 4))
