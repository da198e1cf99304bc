"""IQ4_XS: packing, products and look-up."""

from llamoot.kernels.embed import embed_op
from llamoot.kernels.forms import IQ4_XS
from llamoot.kernels.matmul import int8_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import (
    move_short,
    move_vectors,
    pack_op,
    store_byte,
)
from llamoot.kernels.simd import load_byte, load_short

BLOCK = IQ4_XS.block_bytes


@expand
def _move(source: int, out: int, lane: int) -> None:
    """The super-scale, six-bit scales less 32 (high bits first), nibbles."""
    move_short(source, out + 2 * lane)
    high = load_short(source + 2)
    to = out + 32
    for block in range(8):
        low = (load_byte(source + 4 + block // 2) >> (block % 2 * 4)) & 15
        store_byte(to + lane, (low | ((high >> (2 * block)) & 3) << 4) - 32)
        move_vectors(source + 8 + 16 * block, to + 16 + 4 * lane, 4)
        to += BLOCK


matmul = int8_op(__name__, IQ4_XS)
pack = pack_op(__name__, 136, IQ4_XS.bytes, _move)
embed = embed_op(__name__, IQ4_XS)
