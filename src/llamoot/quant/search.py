"""Searches for the scale of each part of a block that loses least; compiled, without the GIL.

The methods are llama.cpp's (ggml-quants.c: make_qx_quants, make_q3_quants, make_qkx2_quants,
quantize_row_iq4_nl_impl without an importance matrix). Each function reads parts x (n, k) and
fills one value per part.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from llamoot.quant.codebooks import NONLINEAR

FAST = {"reassoc", "contract", "nsz"}  # sums may be reordered; NaN and infinity keep their meaning
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Numba's, with everything this file wants of it."""
    fast: F = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)(function)
    return fast


EPSILON = np.float32(1e-15)  # a part with nothing larger has scale 0
# Code whose value is nearest, by floor(2 * value) + 256: all midpoints are multiples of 0.5.
_MIDDLES = (NONLINEAR[1:].astype(np.float64) + NONLINEAR[:-1]) / 2
NEAREST = np.searchsorted(_MIDDLES, np.arange(-256, 256) / 2, side="right").astype(np.uint8)


@compiled
def _largest(x: Any) -> Any:
    """The element farthest from zero, with its sign."""
    low, high = np.float32(0), np.float32(0)
    for i in range(len(x)):
        low, high = min(low, x[i]), max(high, x[i])
    return high if high > -low else low


@compiled
def symmetric(x: Any, n_max: int, scales: Any) -> None:
    """x ~ scale * l, l in -n_max … n_max - 1, weighted by x²: 19 scales are tried."""
    for part in range(len(x)):
        v = x[part]
        largest = _largest(v)
        best, scales[part] = np.float32(0), np.float32(0)
        if abs(largest) < EPSILON:
            continue
        for step in range(-9, 10):
            inverse = -(np.float32(n_max) + np.float32(0.1) * np.float32(step)) / largest
            xl, ll = np.float32(0), np.float32(0)
            for i in range(len(v)):
                l = np.rint(inverse * v[i])
                l = min(max(l, np.float32(-n_max)), np.float32(n_max - 1))
                w = v[i] * v[i]
                xl += w * v[i] * l
                ll += w * l * l
            if ll > 0 and xl * xl > best * ll:
                scales[part] = xl / ll
                best = xl * xl / ll


@compiled
def refined(x: Any, n_max: int, scales: Any) -> None:
    """x ~ scale * l as in `symmetric`; instead of trying scales, single l are moved five times."""
    levels = np.empty(x.shape[1], np.float32)
    for part in range(len(x)):
        v = x[part]
        largest = _largest(v)
        scales[part] = np.float32(0)
        if abs(largest) < EPSILON:
            continue
        inverse = -np.float32(n_max) / largest
        xl, ll = np.float32(0), np.float32(0)
        for i in range(len(v)):
            l = np.rint(inverse * v[i])
            levels[i] = min(max(l, np.float32(-n_max)), np.float32(n_max - 1))
            w = v[i] * v[i]
            xl += w * v[i] * levels[i]
            ll += w * levels[i] * levels[i]
        for _ in range(5):
            changed = False
            for i in range(len(v)):
                w = v[i] * v[i]
                xl_rest = xl - w * v[i] * levels[i]
                if xl_rest <= 0:
                    continue
                ll_rest = ll - w * levels[i] * levels[i]
                l = np.rint(v[i] * ll_rest / xl_rest)
                l = min(max(l, np.float32(-n_max)), np.float32(n_max - 1))
                if l == levels[i]:
                    continue
                xl_new, ll_new = xl_rest + w * v[i] * l, ll_rest + w * l * l
                if ll_new > 0 and xl_new * xl_new * ll > xl * xl * ll_new:
                    levels[i], xl, ll, changed = l, xl_new, ll_new, True
            if not changed:
                break
        if ll > 0:
            scales[part] = xl / ll


@compiled
def _error(v: Any, weights: Any, levels: Any, scale: Any, low: Any, absolute: bool) -> Any:
    total = np.float32(0)
    if absolute:
        for i in range(len(v)):
            total += weights[i] * abs(scale * levels[i] + low - v[i])
    else:
        for i in range(len(v)):
            miss = scale * levels[i] + low - v[i]
            total += weights[i] * miss * miss
    return total


@compiled
def with_minimum(
    x: Any, n_max: int, first: float, n_steps: int, absolute: bool, scales: Any, minima: Any
) -> None:
    """x ~ scale * l - minimum, l in 0 … n_max: ranges are tried, each solved by least squares.

    The next range begins at the best minimum so far. The error is squared and weighted by |x|
    plus the part's root mean square, or `absolute` and weighted by |x| alone.
    """
    levels, weights = np.empty(x.shape[1], np.float32), np.empty(x.shape[1], np.float32)
    for part in range(len(x)):
        v = x[part]
        low, high, square = np.float32(0), v[0], np.float32(0)
        for i in range(len(v)):
            low, high = min(low, v[i]), max(high, v[i])
            square += v[i] * v[i]
        scales[part], minima[part] = np.float32(0), -low
        if high == low:
            continue
        mean = np.float32(0) if absolute else np.sqrt(square / np.float32(len(v)))
        sum_w, sum_x = np.float32(0), np.float32(0)
        for i in range(len(v)):
            weights[i] = mean + abs(v[i])
            sum_w += weights[i]
            sum_x += weights[i] * v[i]
        best = np.float32(np.inf)
        for step in range(-1, n_steps + 1):
            widen = np.float32(0) if step < 0 else np.float32(first + 0.1 * step)
            inverse = (widen + np.float32(n_max)) / (high - low)
            sum_l, sum_ll, sum_xl = np.float32(0), np.float32(0), np.float32(0)
            for i in range(len(v)):
                l = np.rint(inverse * (v[i] - low))
                l = min(max(l, np.float32(0)), np.float32(n_max))
                levels[i] = l
                sum_l += weights[i] * l
                sum_ll += weights[i] * l * l
                sum_xl += weights[i] * l * v[i]
            a_scale, a_low = np.float32(1) / inverse, low
            if step >= 0:
                determinant = sum_w * sum_ll - sum_l * sum_l
                if determinant <= 0:
                    continue
                a_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
                a_low = (sum_ll * sum_x - sum_l * sum_xl) / determinant
                if a_low > 0:
                    a_scale, a_low = sum_xl / sum_ll, np.float32(0)
            error = _error(v, weights, levels, a_scale, a_low, absolute)
            if error < best:
                best, low, scales[part], minima[part] = error, a_low, a_scale, -a_low


@compiled
def nonlinear(x: Any, values: Any, nearest: Any, scales: Any) -> None:
    """x ~ scale * values[code], weighted by x²: 16 scales are tried."""
    for part in range(len(x)):
        v = x[part]
        largest = _largest(v)
        best, scales[part] = np.float32(0), np.float32(0)
        if abs(largest) < EPSILON:
            continue
        for step in range(-8, 8):
            around = values[0] + np.float32(step) if step > -8 else -values[0]
            inverse = around / largest
            xq, qq = np.float32(0), np.float32(0)
            for i in range(len(v)):
                place = np.int64(np.floor(2 * inverse * v[i])) + 256
                q = values[nearest[min(max(place, 0), 511)]]
                w = v[i] * v[i]
                xq += w * q * v[i]
                qq += w * q * q
            if qq > 0 and xq * xq > best * qq:
                scales[part] = xq / qq
                best = xq * xq / qq
