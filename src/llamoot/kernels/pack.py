"""Matrices of a file as the kernels multiply them: 16 rows interleaved (see forms.py).

Packing runs on the thread pool, once, at load. A weight takes as much memory as in the file, a few
percent more where six-bit scales become bytes.
"""

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot.gguf.types import TensorType as T
from llamoot.kernels.memory import address, aligned
from llamoot.kernels.pool import Pool
from llamoot.kernels.table import Floats, Weight

GROUP = 16  # rows interleaved
CHUNK = 1 << 16  # bytes of weights that a thread claims at once, about
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where the kernels of a type are and what they take."""

    module: str  # with the operations `pack` and `matmul`
    columns: int  # of one super-block
    super_bytes: int  # of 16 rows of one super-block
    records: bool  # activations as 8-bit records, not floats


LAYOUTS = {
    T.F32: Layout("matmul_f32", 1, 64, False),
    T.F16: Layout("matmul_f16", 1, 32, False),
    T.BF16: Layout("matmul_bf16", 1, 32, False),
    T.Q4_0: Layout("matmul_q4_0", 32, 288, True),
    T.Q8_0: Layout("matmul_q8_0", 32, 544, True),
    T.Q4_K: Layout("matmul_q4_k", 256, 64 + 8 * 288, True),
    T.Q6_K: Layout("matmul_q6_k", 256, 32 + 8 * 416, True),
}


@dataclass(frozen=True, eq=False)
class Packed:
    """Packed bytes of one matrix, or of several of the same shape (experts), one after another."""

    data: Bytes
    layout: Layout
    experts: int
    rows: int
    columns: int

    @property
    def supers(self) -> int:
        """Super-blocks of a row."""
        return self.columns // self.layout.columns

    @property
    def group_bytes(self) -> int:
        """Bytes of 16 rows."""
        return self.supers * self.layout.super_bytes

    @property
    def groups(self) -> int:
        """Groups of 16 rows of one matrix, the last one perhaps not full."""
        return -(-self.rows // GROUP)

    @property
    def own_words(self) -> dict[str, int]:
        """What the operation `matmul` must know of these weights."""
        return {
            "w": address(self.data),
            "group_bytes": self.group_bytes,
            "supers": self.supers,
            "n_out": self.rows,
            "chunk": max(1, CHUNK // self.group_bytes),
        }


def pack(pool: Pool, name: str, raw: Bytes, kind: int, shape: tuple[int, ...]) -> Weight:
    """The matrix, or experts' matrices, `raw` of tensor type `kind`; shape is numpy order."""
    type = T(kind)
    layout = LAYOUTS[type]
    experts, rows, columns = (1, *shape) if len(shape) == 2 else shape
    empty = Packed(np.empty(0, np.uint8), layout, experts, rows, columns)
    n_groups = experts * empty.groups
    data = _memory(n_groups * empty.group_bytes)
    packed = Packed(data, layout, experts, rows, columns)
    source = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    pool.call(
        f"{layout.module}.pack",
        rows=n_groups,
        source=address(source),
        out=address(data),
        supers=packed.supers,
        n_out=rows,
    )
    return Weight(name, kind, shape, packed, layout.module)


def padded(bias: Floats, experts: int, rows: int) -> Floats:
    """A bias for each of `experts` * `rows` outputs, each expert's filled up to whole groups."""
    groups = -(-rows // GROUP)
    whole: Floats = aligned((experts, groups * GROUP), np.float32)
    whole[:, :rows] = bias.reshape(experts, rows)
    return whole


def _memory(n_bytes: int) -> Bytes:
    """Zeros, in large pages where the system has them: fewer faults now, fewer misses later."""
    size = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    room: Any = mmap.mmap(-1, max(size, mmap.PAGESIZE))
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= 1 << 21:
        room.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(room, np.uint8, n_bytes)
