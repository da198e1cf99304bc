"""One block of each tensor type as a numpy dtype, fields in the order of the file.

`d` is a block's scale, `m` and `dmin` its minimum, `qs` the low bits of the elements, `qh` their
high bits, `scales` those of parts of the block. Source: ggml-common.h of llama.cpp.
"""

from typing import Any

import numpy as np

from llamoot.gguf.types import TensorType as T

_FIELDS: dict[T, list[tuple[Any, ...]]] = {
    T.Q4_0: [("d", "<f2"), ("qs", "u1", 16)],
    T.Q4_1: [("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)],
    T.Q5_0: [("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)],
    T.Q5_1: [("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)],
    T.Q8_0: [("d", "<f2"), ("qs", "i1", 32)],
    T.Q8_1: [("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)],
    T.Q2_K: [("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")],
    T.Q3_K: [("qh", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")],
    T.Q4_K: [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)],
    T.Q5_K: [
        ("d", "<f2"),
        ("dmin", "<f2"),
        ("scales", "u1", 12),
        ("qh", "u1", 32),
        ("qs", "u1", 128),
    ],
    T.Q6_K: [("qs", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")],
    T.Q8_K: [("d", "<f4"), ("qs", "i1", 256), ("sums", "<i2", 16)],
    T.IQ2_XXS: [("d", "<f2"), ("qs", "<u4", (8, 2))],
    T.IQ2_XS: [("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)],
    T.IQ2_S: [
        ("d", "<f2"),
        ("qs", "u1", 32),
        ("signs", "u1", 32),
        ("qh", "u1", 8),
        ("scales", "u1", 8),
    ],
    T.IQ3_XXS: [("d", "<f2"), ("qs", "u1", 64), ("scales", "<u4", 8)],
    T.IQ3_S: [
        ("d", "<f2"),
        ("qs", "u1", 64),
        ("qh", "u1", 8),
        ("signs", "u1", 32),
        ("scales", "u1", 4),
    ],
    T.IQ1_S: [("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)],
    T.IQ1_M: [("qs", "u1", 32), ("qh", "u1", 16), ("scales", "<u2", 4)],
    T.IQ4_NL: [("d", "<f2"), ("qs", "u1", 16)],
    T.IQ4_XS: [("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)],
    T.TQ1_0: [("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")],
    T.TQ2_0: [("qs", "u1", 64), ("d", "<f2")],
    T.MXFP4: [("e", "u1"), ("qs", "u1", 16)],
    T.NVFP4: [("scales", "u1", 4), ("qs", "u1", (4, 8))],
    T.Q1_0: [("d", "<f2"), ("qs", "u1", 16)],
    T.Q2_0: [("d", "<f2"), ("qs", "u1", 16)],
}
LAYOUT: dict[T, np.dtype[np.void]] = {kind: np.dtype(row) for kind, row in _FIELDS.items()}
