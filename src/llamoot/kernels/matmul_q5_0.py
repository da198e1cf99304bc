"""Q5_0: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q5_0
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    move_short,
    move_vectors,
    pack_op,
    spread_bits,
    store_word,
    word,
)


@expand
def _move(source: int, out: int, lane: int) -> None:
    move_short(source, out + 2 * lane)
    move_vectors(source + 6, out + 32 + 4 * lane, 4)
    store_word(out + 288 + 4 * lane, spread_bits(word(source + 2)))


matmul = int8_op(__name__, Q5_0)
pack = pack_op(__name__, 22, Q5_0.bytes, _move)
embed = embed_op(__name__, Q5_0)
