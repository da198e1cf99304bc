"""Keys and values of one layer, in blocks of 32 positions, as float32, float16 or 8-bit.

Keys lie with the positions innermost, K (block, head, dim, position): one vector holds one
dimension of 16 positions, and a score needs no horizontal sum. Values lie with the dimensions
innermost, V (block, head, position, dim), for the same reason.

q8_0 has one float16 scale for 32 dimensions of one position, as llama.cpp's. Its arrays are
records: field `q` int8 as above, field `d` float16 (head, dims / 32, position). So the first axis
is always the block, and `k[target] = k[source]` copies all there is (copy on write).
Arrays begin as zeros that cost no memory until they are touched.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamoot.errors import BadRequest
from llamoot.kernels.memory import aligned
from llamoot.kernels.step import BLOCK

CacheType = Literal["f32", "f16", "q8_0"]
TYPES = ("f32", "f16", "q8_0")  # kernels know a type by its place here
GROUP = 32  # dimensions that share a scale


@dataclass(frozen=True)
class Shape:
    """What one layer keeps for each position."""

    n_kv_heads: int
    head_dim: int
    v_dim: int


class LayerCache:
    """The cache of one layer: `k` and `v`, whose first axis counts blocks."""

    k: npt.NDArray[Any]
    v: npt.NDArray[Any]

    def __init__(self, shape: Shape, n_blocks: int, type: str = "f32") -> None:
        """`n_blocks` blocks of `step.BLOCK` positions; BadRequest for an unknown type."""
        if type not in TYPES:
            message = f"cache type '{type}' is not one of {', '.join(TYPES)}"
            raise BadRequest(message, "cache_type")
        self.shape, self.type = shape, type
        heads = shape.n_kv_heads
        self.k = _zeros(type, n_blocks, (heads, shape.head_dim, BLOCK), shape.head_dim)
        self.v = _zeros(type, n_blocks, (heads, BLOCK, shape.v_dim), shape.v_dim)

    def copy_block(self, source: int, target: int) -> None:
        """Copy the positions of one block."""
        self.k[target] = self.k[source]
        self.v[target] = self.v[source]

    @property
    def n_bytes(self) -> int:
        """Address space of the layer, in bytes; touched blocks cost memory."""
        return self.k.nbytes + self.v.nbytes


def copy_block(layers: Iterable[LayerCache], source: int, target: int) -> None:
    """Copy one block in every layer; a block number means the same positions in all of them."""
    for layer in layers:
        layer.copy_block(source, target)


def block_bytes(shape: Shape, type: str) -> int:
    """Bytes that one block of one layer costs."""
    return LayerCache(shape, 1, type).n_bytes


def _zeros(type: str, n_blocks: int, block: tuple[int, int, int], dims: int) -> npt.NDArray[Any]:
    if type == "q8_0":
        scales = (block[0], -(-dims // GROUP), BLOCK)
        record = np.dtype([("q", np.int8, block), ("d", np.float16, scales)])
        return aligned(n_blocks, record)
    return aligned((n_blocks, *block), np.float16 if type == "f16" else np.float32)
