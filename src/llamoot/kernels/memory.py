"""Arrays whose addresses compiled code is given: aligned to cache lines, never moved."""

from typing import Any

import numpy as np
import numpy.typing as npt

LINE = 64


def aligned(shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
    """Zeros that begin on a cache line; a vector may be read past the end of them."""
    kind = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * kind.itemsize
    raw = np.zeros(n_bytes + 2 * LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + n_bytes].view(kind).reshape(shape)


def address(array: npt.NDArray[Any] | None) -> int:
    """Where an array begins; 0 for none."""
    return 0 if array is None else int(array.ctypes.data)
