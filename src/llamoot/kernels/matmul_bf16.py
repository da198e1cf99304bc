"""BF16 matrices: packing and products with float activations."""

from typing import Any

from llamoot.kernels.embed import float_embed_op
from llamoot.kernels.matmul import float_op
from llamoot.kernels.op import expand
from llamoot.kernels.packing import float_pack_op
from llamoot.kernels.simd import as_floats, brain_at, ints, load_short, load_shorts, shift


@expand
def _load(address: int) -> Any:
    return as_floats(shift(ints(load_shorts(address)), 16))


matmul = float_op(__name__, _load, 2)
pack = float_pack_op(__name__, load_short, 2)
embed = float_embed_op(__name__, brain_at, 2)
