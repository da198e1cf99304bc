"""The types whose quants are indices into a codebook: IQ1_S to IQ3_S."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot.gguf.types import TensorType as T
from llamoot.quant.codebooks import SIGNS, codebook

Blocks = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

EIGHT = np.arange(8, dtype=np.uint8)
DELTA = np.float32(0.125)


def column(values: npt.NDArray[Any]) -> Floats:
    """(n,) as float32 (n, 1)."""
    return values.astype(np.float32)[:, None]


def nibbles(qs: Bytes) -> Bytes:
    """(n, k) bytes as (n, 2k) halves: all low ones, then all high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def plus_minus(signs: Bytes) -> Floats:
    """(…) bytes as (…, 8) factors: a bit of 1 is minus."""
    return 1 - 2 * (signs[..., None] >> EIGHT & 1).astype(np.float32)


def sevens(word: npt.NDArray[np.uint32]) -> Floats:
    """(n, 8) words as (n, 8, 4, 8) factors from four sign indices of 7 bits."""
    index = word[..., None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return plus_minus(SIGNS[index])


def halves(scales: Bytes) -> Bytes:
    """(n, k) bytes as (n, 2k): each byte's low half, then its high half."""
    both: Bytes = np.bitwise_and(scales[..., None] >> np.array([0, 4], np.uint8), np.uint8(15))
    return both.reshape(len(scales), -1)


def iq2_xxs(b: Blocks) -> Floats:
    """8 parts of 32: four codebook bytes, then four sign indices and a scale of 4 bits"""
    scale = column(b["d"]) * (np.float32(0.5) + (b["qs"][..., 1] >> 28).astype(np.float32))
    index = np.ascontiguousarray(b["qs"][..., 0]).view(np.uint8).reshape(-1, 8, 4)
    scale = (scale * np.float32(0.25))[..., None, None]
    values: Floats = scale * codebook(T.IQ2_XXS)[index] * sevens(b["qs"][..., 1])
    return values


def iq2_xs(b: Blocks) -> Floats:
    """16 parts of 16: codebook index of 9 bits and sign index of 7, twice"""
    scale = column(b["d"]) * (np.float32(0.5) + halves(b["scales"]).astype(np.float32))
    scale = (scale * np.float32(0.25))[..., None, None]
    group = codebook(T.IQ2_XS)[b["qs"] & 511].reshape(-1, 16, 2, 8)
    values: Floats = scale * group * plus_minus(SIGNS[b["qs"] >> 9]).reshape(-1, 16, 2, 8)
    return values


def iq2_s(b: Blocks) -> Floats:
    """16 parts of 16: codebook index of 8 + 2 bits, a byte of signs, twice"""
    scale = column(b["d"]) * (np.float32(0.5) + halves(b["scales"]).astype(np.float32))
    scale = (scale * np.float32(0.25))[..., None, None]
    high = b["qh"][..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    index = b["qs"] | high.reshape(-1, 32).astype(np.uint16) << 8
    group = codebook(T.IQ2_S)[index].reshape(-1, 16, 2, 8)
    values: Floats = scale * group * plus_minus(b["signs"]).reshape(-1, 16, 2, 8)
    return values


def iq3_xxs(b: Blocks) -> Floats:
    """8 parts of 32: eight codebook bytes of 4 elements; four sign indices and a scale"""
    scale = column(b["d"]) * (np.float32(0.5) + (b["scales"] >> 28).astype(np.float32))
    scale = (scale * np.float32(0.5))[..., None, None]
    group = codebook(T.IQ3_XXS)[b["qs"]].reshape(-1, 8, 4, 8)
    values: Floats = scale * group * sevens(b["scales"])
    return values


def iq3_s(b: Blocks) -> Floats:
    """8 parts of 32: codebook index of 8 + 1 bits of 4 elements, bytes of signs"""
    scale = column(b["d"]) * (1 + 2 * halves(b["scales"]).astype(np.float32))
    high = (b["qh"][..., None] >> EIGHT & 1).reshape(-1, 64)
    group = codebook(T.IQ3_S)[b["qs"] | high.astype(np.uint16) << 8].reshape(-1, 8, 4, 8)
    values: Floats = scale[..., None, None] * group * plus_minus(b["signs"]).reshape(-1, 8, 4, 8)
    return values


def iq1_s(b: Blocks) -> Floats:
    """8 parts of 32: codebook index of 8 + 3 bits; each part is moved up or down by an eighth"""
    qh = b["qh"]
    scale = column(b["d"]) * (2 * (qh >> 12 & 7).astype(np.float32) + 1)
    move = np.where(qh >> 15, -DELTA, DELTA)[..., None, None]
    high = (qh[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 32)
    group = codebook(T.IQ1_S)[b["qs"] | high << 8].reshape(-1, 8, 4, 8)
    values: Floats = scale[..., None, None] * (group + move)
    return values


def iq1_m(b: Blocks) -> Floats:
    """16 parts of 16, moved by an eighth in groups of 8; d is the top 4 bits of the scale words"""
    words = b["scales"]
    bits = (words & 0xF000) >> np.array([12, 8, 4, 0], np.uint16)
    d = np.bitwise_or.reduce(bits, axis=1).astype(np.uint16).view(np.float16)
    part = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    scale = (column(d) * (2 * part.astype(np.float32) + 1))[..., None, None]
    high = (b["qh"][..., None] >> np.array([0, 4], np.uint8)).reshape(-1, 32)
    group = codebook(T.IQ1_S)[b["qs"] | (high & 7).astype(np.uint16) << 8].reshape(-1, 16, 2, 8)
    move = np.where(high & 8, -DELTA, DELTA).reshape(-1, 16, 2, 1)
    values: Floats = scale * (group + move)
    return values


DECODERS: dict[T, Callable[[Any], Floats]] = {
    T.IQ2_XXS: iq2_xxs,
    T.IQ2_XS: iq2_xs,
    T.IQ2_S: iq2_s,
    T.IQ3_XXS: iq3_xxs,
    T.IQ3_S: iq3_s,
    T.IQ1_S: iq1_s,
    T.IQ1_M: iq1_m,
}
