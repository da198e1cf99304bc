"""MXFP4: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import MXFP4
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    move_byte,
    move_vectors,
    pack_op,
)


@expand
def _move(source: int, out: int, lane: int) -> None:
    move_byte(source, out + lane)
    move_vectors(source + 1, out + 16 + 4 * lane, 4)


matmul = int8_op(__name__, MXFP4)
pack = pack_op(__name__, 17, MXFP4.bytes, _move)
embed = embed_op(__name__, MXFP4)
