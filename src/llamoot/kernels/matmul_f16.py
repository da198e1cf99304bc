"""F16 matrices: packing and products with float activations."""

from typing import Any

from llamoot.kernels.embed import float_embed_op
from llamoot.kernels.matmul import float_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import float_pack_op
from llamoot.kernels.simd import floats, half_at, load_halves, load_short


@expand
def _load(address: int) -> Any:
    return floats(load_halves(address))


matmul = float_op(__name__, _load, 2)
pack = float_pack_op(__name__, load_short, 2)
embed = float_embed_op(__name__, half_at, 2)
