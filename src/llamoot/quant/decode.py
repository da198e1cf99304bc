"""Every tensor type as float32: the readable specification, bit for bit what llama.cpp gives.

Each function takes blocks (n,) of its LAYOUT and returns float32 (n, elements of a block).
"""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot.gguf.types import TensorType as T
from llamoot.quant.codebooks import E2M1, NONLINEAR
from llamoot.quant.decode_codebook import DECODERS as CODEBOOK_DECODERS
from llamoot.quant.decode_codebook import column, nibbles
from llamoot.quant.layout import LAYOUT

Blocks = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

PLAIN = {  # types that are numpy's own
    T.F32: "<f4",
    T.F16: "<f2",
    T.F64: "<f8",
    T.I8: "i1",
    T.I16: "<i2",
    T.I32: "<i4",
    T.I64: "<i8",
}


def decode(raw: Bytes, kind: int, shape: int | tuple[int, ...]) -> Floats:
    """The elements in `raw` as float32 of `shape` (a number: flat); integers become floats.

    `raw` is exactly as many bytes as the shape takes in blocks of tensor type `kind`.
    """
    kind = T(kind)
    n_values = prod(shape) if isinstance(shape, tuple) else shape
    assert n_values % kind.block == 0, f"{n_values} values are not whole {kind.name} blocks"
    assert raw.size == n_values // kind.block * kind.block_bytes, "the bytes are not that many"
    if kind in PLAIN:
        return raw.view(PLAIN[kind]).astype(np.float32).reshape(shape)
    if kind is T.BF16:
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite in a broken file
        return DECODERS[kind](raw.view(LAYOUT[kind])).reshape(shape)


def shifts(bits: Bytes, *amounts: int) -> Bytes:
    """(n, k) bytes as (n, k / 32 or 1, amounts, 32 or k): each run of bytes at each shift."""
    run = min(32, bits.shape[1])
    parts = bits.reshape(len(bits), -1, 1, run)
    return parts >> np.array(amounts, np.uint8)[:, None]


def bit32(qh: Bytes) -> Bytes:
    """(n, 4) bytes as (n, 32) single bits."""
    return np.unpackbits(qh, axis=1, bitorder="little")


def q4_0(b: Blocks) -> Floats:
    """d * (q - 8)"""
    return column(b["d"]) * (nibbles(b["qs"]).astype(np.float32) - 8)


def q4_1(b: Blocks) -> Floats:
    """d * q + m"""
    return column(b["d"]) * nibbles(b["qs"]).astype(np.float32) + column(b["m"])


def q5_0(b: Blocks) -> Floats:
    """d * (q - 16); the fifth bits lie together"""
    q = nibbles(b["qs"]) | bit32(b["qh"]) << 4
    return column(b["d"]) * (q.astype(np.float32) - 16)


def q5_1(b: Blocks) -> Floats:
    """d * q + m"""
    q = nibbles(b["qs"]) | bit32(b["qh"]) << 4
    return column(b["d"]) * q.astype(np.float32) + column(b["m"])


def q8(b: Blocks) -> Floats:
    """q * d: Q8_0, Q8_1 and Q8_K"""
    return b["qs"].astype(np.float32) * column(b["d"])


def q2_k(b: Blocks) -> Floats:
    """16 parts of 16: d * scale * q - dmin * min, scale and min 4 bits each"""
    scale = column(b["d"]) * (b["scales"] & 15).astype(np.float32)
    low = column(b["dmin"]) * (b["scales"] >> 4).astype(np.float32)
    q = (shifts(b["qs"], 0, 2, 4, 6) & 3).reshape(-1, 16, 16).astype(np.float32)
    return scale[..., None] * q - low[..., None]


def q3_k(b: Blocks) -> Floats:
    """16 parts of 16: d * (scale - 32) * q; a third bit of 0 takes 4 off"""
    low = shifts(b["scales"][:, :8], 0, 4).reshape(-1, 16) & 15
    high = shifts(b["scales"][:, 8:], 0, 2, 4, 6).reshape(-1, 16) & 3
    scale = column(b["d"]) * ((low | high << 4).astype(np.float32) - 32)
    q = (shifts(b["qs"], 0, 2, 4, 6) & 3).reshape(-1, 16, 16).astype(np.float32)
    third = (shifts(b["qh"], *range(8)) & 1).reshape(-1, 16, 16)
    return scale[..., None] * (q - (4 - 4 * third.astype(np.float32)))


def scales_k4(scales: Bytes) -> tuple[Bytes, Bytes]:
    """(n, 12) bytes as (n, 8) scales and (n, 8) minima of 6 bits, of Q4_K and Q5_K.

    The first four of each are the low 6 bits of bytes 0-3 and 4-7; the others have 4 bits in
    bytes 8-11 and the 2 highest on top of the first four.
    """
    d, m, both = scales[:, :4], scales[:, 4:8], scales[:, 8:]
    return (
        np.concatenate([d & 63, both & 15 | (d >> 6) << 4], axis=1),
        np.concatenate([m & 63, both >> 4 | (m >> 6) << 4], axis=1),
    )


def q4_k(b: Blocks) -> Floats:
    """8 parts of 32: d * scale * q - dmin * min"""
    scale, low = _scale_and_min(b)
    q = (shifts(b["qs"], 0, 4) & 15).reshape(-1, 8, 32)
    return scale * q.astype(np.float32) - low


def q5_k(b: Blocks) -> Floats:
    """8 parts of 32: d * scale * q - dmin * min, with a plane of fifth bits"""
    scale, low = _scale_and_min(b)
    q = (shifts(b["qs"], 0, 4) & 15).reshape(-1, 8, 32)
    q |= (shifts(b["qh"], *range(8)) & 1).reshape(-1, 8, 32) << 4
    return scale * q.astype(np.float32) - low


def _scale_and_min(b: Blocks) -> tuple[Floats, Floats]:
    scale, low = scales_k4(b["scales"])
    return (
        (column(b["d"]) * scale.astype(np.float32))[..., None],
        (column(b["dmin"]) * low.astype(np.float32))[..., None],
    )


def q6_k(b: Blocks) -> Floats:
    """16 parts of 16: d * scale * (q - 32); two halves of 128 elements, each 4 runs of 32"""
    scale = column(b["d"]) * b["scales"].astype(np.float32)
    low = b["qs"].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    high = shifts(b["qh"], 0, 2, 4, 6) & 3
    q = low.reshape(-1, 16, 16) | high.reshape(-1, 16, 16) << 4
    return scale[..., None] * (q.astype(np.float32) - 32)


def tq1_0(b: Blocks) -> Floats:
    """d * (-1, 0 or 1), five to a byte as fractions in base 3: times 3 ** k, top digit of 256"""
    parts = []
    for digits, n in ((b["qs"][:, :32], 5), (b["qs"][:, 32:], 5), (b["qh"], 4)):
        powers = np.array([1, 3, 9, 27, 81][:n], np.uint8)
        parts.append((digits[:, None, :] * powers[:, None]).reshape(len(b), -1))
    q = np.concatenate(parts, axis=1).astype(np.uint16) * 3 >> 8
    return column(b["d"]) * (q.astype(np.float32) - 1)


def tq2_0(b: Blocks) -> Floats:
    """d * (-1, 0 or 1), two bits each"""
    q = (shifts(b["qs"], 0, 2, 4, 6) & 3).reshape(-1, 256)
    return column(b["d"]) * (q.astype(np.float32) - 1)


def q1_0(b: Blocks) -> Floats:
    """d or -d by one bit"""
    q = np.unpackbits(b["qs"], axis=1, bitorder="little")
    return column(b["d"]) * (2 * q.astype(np.float32) - 1)


def q2_0(b: Blocks) -> Floats:
    """d * (q - 1), four neighbours to a byte"""
    q = (b["qs"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1, 64)
    return column(b["d"]) * (q.astype(np.float32) - 1)


def iq4_nl(b: Blocks) -> Floats:
    """d * table[q]"""
    return column(b["d"]) * NONLINEAR[nibbles(b["qs"])].astype(np.float32)


def iq4_xs(b: Blocks) -> Floats:
    """8 parts of 32: d * (scale - 32) * table[q], scales of 4 + 2 bits"""
    low = (b["scales_l"][..., None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 8)
    high = b["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scale = column(b["d"]) * ((low | high << 4).astype(np.float32) - 32)
    q = nibbles(b["qs"].reshape(-1, 16)).reshape(-1, 8, 32)
    return scale[..., None] * NONLINEAR[q].astype(np.float32)


def mxfp4(b: Blocks) -> Floats:
    """2 ** (e - 128) * table[q]: the table is doubled, so the exponent is one less"""
    e = b["e"].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << e, (e - 1) << 23)
    return bits.view(np.float32)[:, None] * E2M1[nibbles(b["qs"])].astype(np.float32)


def nvfp4(b: Blocks) -> Floats:
    """4 parts of 16: scale / 2 * table[q]; the scale has 4 bits of exponent and 3 of mantissa"""
    code = b["scales"]
    exponent, mantissa = (code >> 3 & 15).astype(np.float32), (code & 7).astype(np.float32)
    scale = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * np.exp2(exponent - 7))
    scale = np.where((code == 0) | (code == 0x7F), 0, scale * 0.5).astype(np.float32)
    q = nibbles(b["qs"].reshape(-1, 8)).reshape(-1, 4, 16)
    return scale[..., None] * E2M1[q].astype(np.float32)


DECODERS: dict[T, Callable[[Any], Floats]] = {
    T.Q4_0: q4_0,
    T.Q4_1: q4_1,
    T.Q5_0: q5_0,
    T.Q5_1: q5_1,
    T.Q8_0: q8,
    T.Q8_1: q8,
    T.Q2_K: q2_k,
    T.Q3_K: q3_k,
    T.Q4_K: q4_k,
    T.Q5_K: q5_k,
    T.Q6_K: q6_k,
    T.Q8_K: q8,
    T.IQ4_NL: iq4_nl,
    T.IQ4_XS: iq4_xs,
    T.TQ1_0: tq1_0,
    T.TQ2_0: tq2_0,
    T.MXFP4: mxfp4,
    T.NVFP4: nvfp4,
    T.Q1_0: q1_0,
    T.Q2_0: q2_0,
    **CODEBOOK_DECODERS,
}
