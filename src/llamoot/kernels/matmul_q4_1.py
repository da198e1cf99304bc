"""Q4_1: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import Q4_1
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    move_short,
    move_vectors,
    pack_op,
)


@expand
def _move(source: int, out: int, lane: int) -> None:
    move_short(source, out + 2 * lane)
    move_short(source + 2, out + 32 + 2 * lane)
    move_vectors(source + 4, out + 64 + 4 * lane, 4)


matmul = int8_op(__name__, Q4_1)
pack = pack_op(__name__, 20, Q4_1.bytes, _move)
embed = embed_op(__name__, Q4_1)
