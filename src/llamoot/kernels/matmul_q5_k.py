"""Q5_K: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q5_K
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    join_bits,
    move_nibble_pairs,
    move_scales,
    move_short,
    negate_short,
    pack_op,
    store_word,
)

BLOCK = Q5_K.block_bytes


@expand
def _move(source: int, out: int, lane: int) -> None:
    """Two super-scales, 12 bytes of scales, 32 of high bits, 128 of nibbles."""
    move_short(source, out + 2 * lane)
    negate_short(source + 2, out + 32 + 2 * lane)
    move_scales(source + 4, out + 64 + lane, BLOCK)
    to = out + 64 + 32 + 4 * lane
    move_nibble_pairs(source + 48, to, BLOCK)
    for block in range(8):
        store_word(to + 256 + BLOCK * block, join_bits(source + 16, block))


matmul = int8_op(__name__, Q5_K)
pack = pack_op(__name__, 176, Q5_K.bytes, _move)
embed = embed_op(__name__, Q5_K)
