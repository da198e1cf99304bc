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
from llamoot.quant.decode import decode

GROUP = 16  # rows interleaved
CHUNK = 1 << 16  # bytes of weights that a thread claims at once, about
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where the kernels of a type are and what they take."""

    module: str  # with the operations `pack` and `matmul`
    columns: int  # of one super-block
    super_bytes: int  # of 16 rows of one super-block
    records: bool = True  # activations as 8-bit records, not floats


LAYOUTS = {
    T.F32: Layout("matmul_f32", 1, 64, False),
    T.F16: Layout("matmul_f16", 1, 32, False),
    T.BF16: Layout("matmul_bf16", 1, 32, False),
    T.Q4_0: Layout("matmul_q4_0", 32, 288),
    T.Q4_1: Layout("matmul_q4_1", 32, 320),
    T.Q5_0: Layout("matmul_q5_0", 32, 352),
    T.Q5_1: Layout("matmul_q5_1", 32, 384),
    T.Q8_0: Layout("matmul_q8_0", 32, 544),
    T.Q2_K: Layout("matmul_q2_k", 256, 64 + 8 * 192),
    T.Q3_K: Layout("matmul_q3_k", 256, 32 + 8 * 224),
    T.Q4_K: Layout("matmul_q4_k", 256, 64 + 8 * 288),
    T.Q5_K: Layout("matmul_q5_k", 256, 64 + 8 * 352),
    T.Q6_K: Layout("matmul_q6_k", 256, 32 + 8 * 416),
    T.IQ4_NL: Layout("matmul_iq4_nl", 32, 288),
    T.IQ4_XS: Layout("matmul_iq4_xs", 256, 32 + 8 * 272),
    T.MXFP4: Layout("matmul_mxfp4", 32, 272),
}
BYTES8 = Layout("matmul_bytes8", 32, 640)
WHOLE = (T.F64, T.I8, T.I16, T.I32, T.I64)  # numbers that become F32


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
    """The matrix, or experts' matrices, `raw` of tensor type `kind`; shape is numpy order.

    A type without a layout of its own becomes bytes, with a scale for each 16 columns; the
    weight's note says so.
    """
    type = T(kind)
    layout, note = LAYOUTS.get(type, BYTES8), ""
    if type in WHOLE:
        layout = LAYOUTS[T.F32]
    if type not in LAYOUTS:
        note = f"{type.name} as {'F32' if type in WHOLE else '8-bit rows, a scale for 16 columns'}"
    experts, rows, columns = (1, *shape) if len(shape) == 2 else shape
    empty = Packed(np.empty(0, np.uint8), layout, experts, rows, columns)
    data = _memory(experts * empty.groups * empty.group_bytes)
    packed = Packed(data, layout, experts, rows, columns)
    source = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    if type in LAYOUTS:
        _pack(pool, packed, source, 0, experts)
        _let_go(raw)
        return Weight(name, kind, shape, packed, layout.module)
    n_bytes = source.size // experts
    for expert in range(experts):
        part = source[expert * n_bytes : (expert + 1) * n_bytes]
        _pack(pool, packed, decode(part, type, rows * columns).view(np.uint8), expert, 1)
    return Weight(name, kind, shape, packed, layout.module, note)


def _pack(pool: Pool, packed: Packed, source: Bytes, first: int, n: int) -> None:
    """Pack `n` experts' matrices that lie one after another in `source`."""
    pool.call(
        f"{packed.layout.module}.pack",
        rows=n * packed.groups,
        source=address(source),
        out=address(packed.data) + first * packed.groups * packed.group_bytes,
        supers=packed.supers,
        n_out=packed.rows,
    )


def padded(bias: Floats, experts: int, rows: int) -> Floats:
    """A bias for each of `experts` * `rows` outputs, each expert's filled up to whole groups."""
    groups = -(-rows // GROUP)
    whole: Floats = aligned((experts, groups * GROUP), np.float32)
    whole[:, :rows] = bias.reshape(experts, rows)
    return whole


def _let_go(raw: Bytes) -> None:
    """Unmap the pages of a mapped file that have been read; a later look brings them back."""
    base: Any = raw
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    if not isinstance(base, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    try:
        base.size()  # fails for memory without a file, whose contents would be lost
    except OSError:
        return
    offset = address(raw) - address(np.frombuffer(base, np.uint8))
    first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (offset + raw.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        base.madvise(mmap.MADV_DONTNEED, first, length)


def _memory(n_bytes: int) -> Bytes:
    """Zeros, in large pages where the system has them: fewer faults now, fewer misses later."""
    size = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    room: Any = mmap.mmap(-1, max(size, mmap.PAGESIZE))
    if hasattr(mmap, "MADV_HUGEPAGE") and size >= 1 << 21:
        room.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(room, np.uint8, n_bytes)
