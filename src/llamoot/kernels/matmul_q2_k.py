"""Q2_K: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q2_K
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    join_pairs,
    move_short,
    negate_short,
    pack_op,
    store_byte,
    store_word,
)
from llamoot.kernels.simd import load_byte

BLOCK = Q2_K.block_bytes


@expand
def _move(source: int, out: int, lane: int) -> None:
    """16 scales and minima of four bits, 64 bytes of pairs of bits, two super-scales."""
    move_short(source + 80, out + 2 * lane)
    negate_short(source + 82, out + 32 + 2 * lane)
    to = out + 64
    for block in range(8):
        for half in range(2):
            both = load_byte(source + 2 * block + half)
            store_byte(to + 16 * half + lane, both & 15)
            store_byte(to + 32 + 16 * half + lane, both >> 4)
        quants = source + 16 + 32 * (block // 4)
        store_word(to + 64 + 4 * lane, join_pairs(quants, block % 4 * 2))
        store_word(to + 128 + 4 * lane, join_pairs(quants + 16, block % 4 * 2))
        to += BLOCK


matmul = int8_op(__name__, Q2_K)
pack = pack_op(__name__, 84, Q2_K.bytes, _move)
embed = embed_op(__name__, Q2_K)
