"""Float32 to blocks of the usual types, by llama.cpp's methods and with its losses.

The search for scales is compiled (`search.py`); rounding and packing are numpy, the mirror image
of `decode.py`. Each function takes float32 (n, elements of a block) and returns n blocks.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot.gguf.types import TensorType as T
from llamoot.quant import search
from llamoot.quant.codebooks import E2M1, NONLINEAR
from llamoot.quant.decode import PLAIN
from llamoot.quant.layout import LAYOUT

# Float32, uint8 and structured arrays; numpy's own annotations lose the type at every operation.
Floats = Any
Bytes = Any
Blocks = Any

CHUNK = 1 << 19  # elements worked on at a time by one thread
VALUES = NONLINEAR.astype(np.float32)


def encode(values: npt.NDArray[np.float32], kind: T, threads: int = 1) -> npt.NDArray[np.uint8]:
    """Rows of float32 (rows, cols) as blocks: uint8 (rows, bytes of a row).

    `cols` is a whole number of blocks. ValueError names a type that cannot be encoded.
    """
    rows = values.shape[0]
    if kind in PLAIN:
        return np.ascontiguousarray(values).astype(PLAIN[kind]).view(np.uint8)
    if kind not in ENCODERS:
        raise ValueError(f"{kind.name} cannot be written; it needs an importance matrix")
    assert values.shape[1] % kind.block == 0, f"{values.shape} is not whole {kind.name} blocks"
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, kind.block)
    out = np.empty((len(blocks), kind.block_bytes), np.uint8)
    step = max(CHUNK // kind.block, 1)

    def work(start: int) -> None:
        with np.errstate(all="ignore"):
            done = ENCODERS[kind](blocks[start : start + step])
        out[start : start + step] = done.view(np.uint8).reshape(-1, kind.block_bytes)

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(0, len(blocks), step)))
    else:
        for start in range(0, len(blocks), step):
            work(start)
    return out.reshape(rows, -1)


def bf16(x: Floats) -> Any:
    """The upper half of the float, rounded to nearest even; a NaN stays one."""
    bits = x.view(np.uint32)
    rounded = bits + (0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 64, rounded).astype(np.uint16)


def _new(kind: T, n: int) -> Any:
    return np.zeros(n, LAYOUT[kind])


def _inverse(d: Floats) -> Floats:
    """1 / d, and 0 where d is 0."""
    return np.divide(1, d, out=np.zeros_like(d), where=d != 0)


def _half(d: Floats) -> Floats:
    """What remains of d after its way through f16."""
    return d.astype(np.float16).astype(np.float32)


def _pair(q: Bytes) -> Bytes:
    """(n, 2k) codes as (n, k) bytes: the first half is the low nibbles."""
    k = q.shape[1] // 2
    return q[:, :k] | q[:, k:] << 4


def _farthest(x: Floats) -> Floats:
    """(n, 1): the element of each row farthest from zero, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)


def q4_0(x: Floats) -> Blocks:
    """The element farthest from zero becomes -8"""
    b = _new(T.Q4_0, len(x))
    d = _farthest(x) / -8
    b["qs"] = _pair(np.clip(np.trunc(x * _inverse(d) + 8.5), 0, 15).astype(np.uint8))
    b["d"] = d[:, 0]
    return b


def q5_0(x: Floats) -> Blocks:
    """The element farthest from zero becomes -16"""
    b = _new(T.Q5_0, len(x))
    d = _farthest(x) / -16
    q = np.clip(np.trunc(x * _inverse(d) + 16.5), 0, 31).astype(np.uint8)
    b["qs"], b["qh"] = _pair(q & 15), np.packbits(q >> 4, axis=1, bitorder="little")
    b["d"] = d[:, 0]
    return b


def q4_1(x: Floats) -> Blocks:
    """The range from smallest to largest in 15 steps"""
    b = _new(T.Q4_1, len(x))
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / 15
    b["qs"] = _pair(np.clip(np.trunc((x - low) * _inverse(d) + 0.5), 0, 15).astype(np.uint8))
    b["d"], b["m"] = d[:, 0], low[:, 0]
    return b


def q5_1(x: Floats) -> Blocks:
    """The range from smallest to largest in 31 steps"""
    b = _new(T.Q5_1, len(x))
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / 31
    q = np.clip(np.trunc((x - low) * _inverse(d) + 0.5), 0, 31).astype(np.uint8)
    b["qs"], b["qh"] = _pair(q & 15), np.packbits(q >> 4, axis=1, bitorder="little")
    b["d"], b["m"] = d[:, 0], low[:, 0]
    return b


def _away(x: Floats) -> Floats:
    """Rounded to nearest, halves away from zero, as C's roundf."""
    whole = np.trunc(x)
    return whole + np.trunc(2 * (x - whole))


def q8_0(x: Floats) -> Blocks:
    """The element farthest from zero becomes 127 or -127"""
    b = _new(T.Q8_0, len(x))
    d = np.abs(x).max(axis=1, keepdims=True) / 127
    b["qs"], b["d"] = _away(x * _inverse(d)), d[:, 0]
    return b


def _parts(x: Floats, size: int) -> Floats:
    return x.reshape(-1, size)


def _quads(q: Bytes) -> Bytes:
    """(n, 256) codes of 2 bits as (n, 64): four runs of 32 to each run of 32 bytes."""
    runs = q.reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.bitwise_or.reduce(runs, axis=2).reshape(-1, 64)


def _planes(q: Bytes) -> Bytes:
    """(n, 256) bits as (n, 32): eight runs of 32, one to each bit."""
    runs = q.reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(runs, axis=1)


def _sixteen(q: Bytes) -> Bytes:
    """(n, 256) codes of 4 bits as (n, 128): two runs of 32 to each run of 32 bytes."""
    runs = q.reshape(-1, 4, 2, 32)
    return (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(-1, 128)


def _two_levels(
    x: Floats, size: int, n_max: int, steps: tuple[float, int, bool], top: int
) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
    """d, dmin (n,), scales, minima (n, parts) up to `top`, and codes (n, 256)."""
    n = len(x)
    scales, minima = np.empty((n, 256 // size), np.float32), np.empty((n, 256 // size), np.float32)
    search.with_minimum(_parts(x, size), n_max, *steps, scales.reshape(-1), minima.reshape(-1))
    d, dmin = (s.max(axis=1, keepdims=True) / np.float32(top) for s in (scales, minima))
    s = np.clip(np.rint(scales * _inverse(d)), 0, top)
    m = np.clip(np.rint(minima * _inverse(dmin)), 0, top)
    step, low = (_half(d) * s)[..., None], (_half(dmin) * m)[..., None]
    parts = x.reshape(n, -1, size)
    q = np.clip(np.rint((parts + low) * _inverse(step)), 0, n_max).astype(np.uint8)
    return d[:, 0], dmin[:, 0], s.astype(np.uint8), m.astype(np.uint8), q.reshape(n, 256)


def q2_k(x: Floats) -> Blocks:
    """16 parts of 16, scale and minimum 4 bits each"""
    b = _new(T.Q2_K, len(x))
    b["d"], b["dmin"], s, m, q = _two_levels(x, 16, 3, (-0.5, 15, True), 15)
    b["scales"], b["qs"] = s | m << 4, _quads(q)
    return b


def _pack_k4(s: Bytes, m: Bytes) -> Bytes:
    """The inverse of `decode.scales_k4`."""
    low = [one[:, :4] | one[:, 4:] >> 4 << 6 for one in (s, m)]
    return np.concatenate([*low, s[:, 4:] & 15 | m[:, 4:] << 4], axis=1)


def q4_k(x: Floats) -> Blocks:
    """8 parts of 32, scale and minimum 6 bits each"""
    b = _new(T.Q4_K, len(x))
    b["d"], b["dmin"], s, m, q = _two_levels(x, 32, 15, (-1.0, 20, False), 63)
    b["scales"], b["qs"] = _pack_k4(s, m), _sixteen(q)
    return b


def q5_k(x: Floats) -> Blocks:
    """As Q4_K, with a plane of fifth bits"""
    b = _new(T.Q5_K, len(x))
    b["d"], b["dmin"], s, m, q = _two_levels(x, 32, 31, (-0.5, 15, False), 63)
    b["scales"], b["qs"], b["qh"] = _pack_k4(s, m), _sixteen(q & 15), _planes(q >> 4)
    return b


def _one_level(scales: Floats, steps: int) -> tuple[Floats, Floats]:
    """d (n,) and whole scales (n, parts): the scale farthest from zero becomes -steps."""
    d = _farthest(scales) / np.float32(-steps)
    whole = np.clip(np.rint(scales * _inverse(d)), -steps, steps - 1)
    return d[:, 0], whole


def _codes(x: Floats, d: Floats, whole: Floats, n_max: int) -> Bytes:
    """(n, 256) codes from 0: each part's elements over its scale, plus n_max."""
    step = (_half(d)[:, None] * whole)[..., None]
    l = np.rint(x.reshape(*whole.shape, -1) * _inverse(step))
    return (np.clip(l, -n_max, n_max - 1) + n_max).astype(np.uint8).reshape(-1, 256)


def q3_k(x: Floats) -> Blocks:
    """16 parts of 16, scales of 6 bits; a plane of third bits"""
    b = _new(T.Q3_K, len(x))
    scales = np.empty((len(x), 16), np.float32)
    search.refined(_parts(x, 16), 4, scales.reshape(-1))
    b["d"], whole = _one_level(scales, 32)
    q = _codes(x, b["d"].astype(np.float32), whole, 4)
    s = (whole + 32).astype(np.uint8)
    b["scales"][:, :8] = _pair(s & 15)
    high = (s >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    b["scales"][:, 8:] = np.bitwise_or.reduce(high, axis=1)
    b["qs"], b["qh"] = _quads(q & 3), _planes(q >> 2)
    return b


def q6_k(x: Floats) -> Blocks:
    """16 parts of 16, scales of 8 bits"""
    b = _new(T.Q6_K, len(x))
    scales = np.empty((len(x), 16), np.float32)
    search.symmetric(_parts(x, 16), 32, scales.reshape(-1))
    b["d"], b["scales"] = _one_level(scales, 128)
    q = _codes(x, b["d"].astype(np.float32), b["scales"].astype(np.float32), 32)
    runs = (q & 15).reshape(-1, 2, 2, 64)
    b["qs"] = (runs[:, :, 0] | runs[:, :, 1] << 4).reshape(-1, 128)
    b["qh"] = _quads(q >> 4)
    return b


def _nonlinear_codes(x: Floats, d: Floats) -> Bytes:
    """The nearest code of IQ4_NL for x / d; d has a last dimension of 1."""
    place = np.floor(2 * (x * _inverse(d))).clip(-256, 255)
    return search.NEAREST[place.astype(np.int16) + 256]


def iq4_nl(x: Floats) -> Blocks:
    """Codes of a table that is denser near zero"""
    b = _new(T.IQ4_NL, len(x))
    scales = np.empty(len(x), np.float32)
    search.nonlinear(x, VALUES, search.NEAREST, scales)
    b["d"], b["qs"] = scales, _pair(_nonlinear_codes(x, scales[:, None]))
    return b


def iq4_xs(x: Floats) -> Blocks:
    """8 parts of 32 codes as in IQ4_NL, with scales of 6 bits"""
    b = _new(T.IQ4_XS, len(x))
    scales = np.empty((len(x), 8), np.float32)
    search.nonlinear(_parts(x, 32), VALUES, search.NEAREST, scales.reshape(-1))
    b["d"], whole = _one_level(scales, 32)
    step = (b["d"].astype(np.float32)[:, None] * whole)[..., None]
    q = _nonlinear_codes(x.reshape(-1, 8, 32), step)
    b["qs"] = (q[..., :16] | q[..., 16:] << 4).reshape(-1, 128)
    s = (whole + 32).astype(np.uint8)
    b["scales_l"] = s[:, 0::2] & 15 | s[:, 1::2] << 4
    high = (s >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    b["scales_h"] = np.bitwise_or.reduce(high, axis=1)
    return b


def _ternary(x: Floats) -> tuple[Floats, Bytes]:
    """d (n,) and codes 0, 1, 2 for -d, 0, d."""
    d = np.abs(x).max(axis=1, keepdims=True)
    return d[:, 0], (_away(x * _inverse(d)) + 1).astype(np.uint8)


def tq1_0(x: Floats) -> Blocks:
    """Five digits in base 3 as a fraction of 256, rounded up"""
    b = _new(T.TQ1_0, len(x))
    b["d"], q = _ternary(x)

    def packed(digits: Bytes, n: int) -> Bytes:
        powers = np.array([81, 27, 9, 3, 1][:n], np.uint16)[:, None]
        number = (digits.reshape(len(x), n, -1) * powers).sum(axis=1)
        return ((number * 256 + 242) // 243).astype(np.uint8)

    b["qs"][:, :32], b["qs"][:, 32:] = packed(q[:, :160], 5), packed(q[:, 160:240], 5)
    b["qh"] = packed(q[:, 240:], 4)
    return b


def tq2_0(x: Floats) -> Blocks:
    """Two bits each"""
    b = _new(T.TQ2_0, len(x))
    b["d"], q = _ternary(x)
    b["qs"] = _quads(q)
    return b


def mxfp4(x: Floats) -> Blocks:
    """A power of two as scale, so that the largest element is at most 6 of it"""
    b = _new(T.MXFP4, len(x))
    largest = np.abs(x).max(axis=1)
    e = np.where(largest > 0, np.floor(np.log2(largest)) + 125, 0).clip(0, 254).astype(np.uint8)
    scaled = np.ldexp(x, 128 - e.astype(np.int32)[:, None])
    middles = (E2M1[1:8] + E2M1[:7].astype(np.float32)) / 2
    q = np.searchsorted(middles, np.abs(scaled)).astype(np.uint8)
    b["e"], b["qs"] = e, _pair(q | (np.signbit(scaled) & (q > 0)).astype(np.uint8) << 3)
    return b


ENCODERS: dict[T, Callable[[Floats], Any]] = {
    T.BF16: bf16,
    T.Q4_0: q4_0,
    T.Q4_1: q4_1,
    T.Q5_0: q5_0,
    T.Q5_1: q5_1,
    T.Q8_0: q8_0,
    T.Q2_K: q2_k,
    T.Q3_K: q3_k,
    T.Q4_K: q4_k,
    T.Q5_K: q5_k,
    T.Q6_K: q6_k,
    T.IQ4_NL: iq4_nl,
    T.IQ4_XS: iq4_xs,
    T.TQ1_0: tq1_0,
    T.TQ2_0: tq2_0,
    T.MXFP4: mxfp4,
}
