"""F32 matrices: packing and products with float activations."""

from llamoot.kernels.embed import float_embed_op
from llamoot.kernels.matmul import float_op
from llamoot.kernels.packing import float_pack_op
from llamoot.kernels.simd import load_float, load_floats, load_int

matmul = float_op(__name__, load_floats, 4)
pack = float_pack_op(__name__, load_int, 4)
embed = float_embed_op(__name__, load_float, 4)
