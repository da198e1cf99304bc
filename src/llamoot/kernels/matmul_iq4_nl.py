"""IQ4_NL: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import IQ4_NL
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
    move_vectors(source + 2, out + 32 + 4 * lane, 4)


matmul = int8_op(__name__, IQ4_NL)
pack = pack_op(__name__, 18, IQ4_NL.bytes, _move)
embed = embed_op(__name__, IQ4_NL)
