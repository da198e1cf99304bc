"""Q4_K: packing and products."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q4_K
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import inline
from llamoot.kernels.packing import (
    join_nibbles,
    move_scales,
    move_short,
    negate_short,
    pack_op,
    store_word,
    word,
)

BLOCK = Q4_K.block_bytes


@inline
def _move(source: int, out: int, lane: int) -> None:
    move_short(source, out + 2 * lane)
    negate_short(source + 2, out + 32 + 2 * lane)
    move_scales(source + 4, out + 64 + lane, BLOCK)
    out += 64 + 32 + 4 * lane
    for pair in range(4):
        for i in range(4):
            at = source + 16 + 32 * pair + 4 * i
            first, last = word(at), word(at + 16)
            to = out + 2 * pair * BLOCK + 64 * i
            store_word(to, join_nibbles(first, last, 0))
            store_word(to + BLOCK, join_nibbles(first, last, 4))


matmul = int8_op(__name__, Q4_K)
pack = pack_op(__name__, 144, Q4_K.bytes, _move)
embed = embed_op(__name__, Q4_K)
