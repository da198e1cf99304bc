"""Q4_K: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q4_K
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    move_nibble_pairs,
    move_scales,
    move_short,
    negate_short,
    pack_op,
)

BLOCK = Q4_K.block_bytes


@expand
def _move(source: int, out: int, lane: int) -> None:
    """Two super-scales, 12 bytes of scales, 128 of nibbles."""
    move_short(source, out + 2 * lane)
    negate_short(source + 2, out + 32 + 2 * lane)
    move_scales(source + 4, out + 64 + lane, BLOCK)
    move_nibble_pairs(source + 16, out + 64 + 32 + 4 * lane, BLOCK)


matmul = int8_op(__name__, Q4_K)
pack = pack_op(__name__, 144, Q4_K.bytes, _move)
embed = embed_op(__name__, Q4_K)
