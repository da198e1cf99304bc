"""Q6_K: packing and products."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q6_K
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    join_nibbles,
    join_pairs,
    move_byte,
    move_short,
    pack_op,
    store_word,
    word,
)

BLOCK = Q6_K.block_bytes


@expand
def _move(source: int, out: int, lane: int) -> None:
    """128 bytes of nibbles, 64 of pairs of high bits, 16 scales, the super-scale."""
    move_short(source + 208, out + 2 * lane)
    to = out + 32
    for block in range(8):
        half, quarter = block // 4, block % 4
        scale = source + 192 + 2 * block
        move_byte(scale, to + lane)
        move_byte(scale + 1, to + 16 + lane)
        low = source + 64 * half + 32 * (quarter % 2)
        at = to + 32 + 4 * lane
        for i in range(4):
            nibbles = join_nibbles(word(low + 4 * i), word(low + 16 + 4 * i), quarter // 2 * 4)
            store_word(at + 64 * i, nibbles)
        high = source + 128 + 32 * half
        store_word(at + 256, join_pairs(high, 2 * quarter))
        store_word(at + 320, join_pairs(high + 16, 2 * quarter))
        to += BLOCK


matmul = int8_op(__name__, Q6_K)
pack = pack_op(__name__, 210, Q6_K.bytes, _move)
embed = embed_op(__name__, Q6_K)
