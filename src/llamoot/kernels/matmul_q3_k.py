"""Q3_K: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q3_K
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    join_bits,
    join_pairs,
    move_short,
    pack_op,
    store_byte,
    store_word,
)
from llamoot.kernels.simd import load_byte

BLOCK = Q3_K.block_bytes


@expand
def _scale(scales: int, which: int) -> int:
    """Six bits less 32: eight bytes of nibbles, the first eight low, then pairs of high bits."""
    low = (load_byte(scales + which % 8) >> (which // 8 * 4)) & 15
    return int(low | ((load_byte(scales + 8 + which % 4) >> (which // 4 * 2)) & 3) << 4) - 32


@expand
def _move(source: int, out: int, lane: int) -> None:
    """32 bytes of high bits, 64 of pairs of bits, 12 of scales, the super-scale."""
    move_short(source + 108, out + 2 * lane)
    to = out + 32
    for block in range(8):
        store_byte(to + lane, _scale(source + 96, 2 * block))
        store_byte(to + 16 + lane, _scale(source + 96, 2 * block + 1))
        quants = source + 32 + 32 * (block // 4)
        store_word(to + 32 + 4 * lane, join_pairs(quants, block % 4 * 2))
        store_word(to + 96 + 4 * lane, join_pairs(quants + 16, block % 4 * 2))
        store_word(to + 160 + 4 * lane, join_bits(source, block))
        to += BLOCK


matmul = int8_op(__name__, Q3_K)
pack = pack_op(__name__, 110, Q3_K.bytes, _move)
embed = embed_op(__name__, Q3_K)
