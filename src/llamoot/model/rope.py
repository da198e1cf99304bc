"""Frequency tables of rotary positions: plain, linear, YaRN, Llama-3 factors, LongRoPE.

Everything that scales positions ends in one table of angles per position and one factor of the
cosines and sines, so that a kernel knows nothing of it. Formulas as in llama.cpp (ggml_rope).
"""

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from llamoot.kernels.table import Floats, Rope
from llamoot.model.config import Config, RopeScaling
from llamoot.model.layers import Layer

Doubles = npt.NDArray[np.float64]


def rope_of(config: Config, layer: Layer, factors: Floats | None) -> Rope | None:
    """The rope of one layer, or None; `factors` (n_rot / 2,) divide the frequencies."""
    n = layer.n_rot
    if not n:
        return None
    windowed = layer.windowed
    base = config.rope_base_windowed if windowed else config.rope_base
    powers = np.arange(0, n, 2, dtype=np.float64) / n
    freqs = np.power(base, -powers)
    if windowed and config.traits.window_no_factors:
        factors = None
    if factors is not None:
        freqs = freqs / factors[: n // 2].astype(np.float64)
    scaling, scale = config.rope_scaling, config.rope_scaling.attn_factor
    if windowed and config.traits.window_unscaled:
        scale = 1.0
    elif scaling.type == "yarn":
        freqs = _yarn(freqs, n, base, scaling)
        scale *= _yarn_magnitude(scaling, config.traits.yarn_even)
    elif scaling.type != "none":
        freqs = freqs / scaling.factor
    freqs = freqs * _moving(config, n // 2)
    return Rope(_kind(config), freqs.astype(np.float32), n, scale)


def _kind(config: Config) -> Literal["adjacent", "halves"]:
    sectioned = config.traits.rope_sections and any(config.rope_sections)
    return "halves" if sectioned else config.traits.rope or "adjacent"


def _yarn(freqs: Doubles, n: int, base: float, scaling: RopeScaling) -> Doubles:
    """Fast pairs keep their frequency, slow ones are interpolated, a ramp lies between."""

    def pair_of(rotations: float) -> float:
        return n * math.log(scaling.original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(pair_of(scaling.beta_fast)))
    high = min(n - 1.0, math.ceil(pair_of(scaling.beta_slow)))
    ramp = (np.arange(n // 2) - low) / max(0.001, high - low)
    keep = 1 - np.clip(ramp, 0, 1)
    return np.asarray(freqs / scaling.factor * (1 - keep) + freqs * keep)


def _yarn_magnitude(scaling: RopeScaling, even: bool) -> float:
    """Factor of cosines and sines; with a log multiplier the paper's two factors cancel."""
    if even:
        return 1.0
    if scaling.log_multiplier == 0 or scaling.factor <= 1:
        return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return (0.1 * math.log(scaling.factor) + 1.0) / (
        0.1 * scaling.log_multiplier * math.log(scaling.factor) + 1.0
    )


def attention_scale(config: Config, layer: Layer) -> float:
    """Factor of the products of queries and keys."""
    if layer.kind != "latent":
        return config.attn_scale or layer.head_dim**-config.traits.attn_scale_power
    scaling, magnitude = config.rope_scaling, 1.0
    if scaling.type == "yarn" and scaling.factor > 1:
        magnitude = _yarn_magnitude(scaling, config.traits.yarn_even)
        magnitude *= 1 + 0.1 * scaling.log_multiplier * math.log(scaling.factor)
    return magnitude**2 / math.sqrt(config.n_plain + config.n_turned)


def _moving(config: Config, n_pairs: int) -> Doubles:
    """1 for pairs that turn with a text position, 0 for those of M-RoPE's fourth section.

    A text token stands at the same place of the first three axes and at 0 of the fourth.
    """
    sections = config.rope_sections
    if not config.traits.rope_sections or not any(sections):
        return np.ones(n_pairs)
    pair = np.arange(n_pairs) % sum(sections)
    if config.traits.rope_sections == "blocks":
        return (pair < sum(sections[:3])).astype(np.float64)
    limit = 3 * np.array(sections)[np.arange(3)][pair % 3]
    return (pair < limit).astype(np.float64)


def factors_of(config: Config, vectors: dict[str, Floats], context: int) -> Floats | None:
    """Llama-3's factors, or LongRoPE's short or long ones by the context that is opened."""
    if "rope_freqs" in vectors:
        return vectors["rope_freqs"]
    long = context > config.rope_scaling.original
    return vectors.get("rope_factors_long" if long else "rope_factors_short")


def alibi_slopes(n_heads: int, largest: float) -> Floats:
    """(H,) slopes of ALiBi; heads beyond a power of two lie between the others."""
    power = 1 << (n_heads.bit_length() - 1)
    first, second = 2.0 ** (-largest / power), 2.0 ** (-largest / 2 / power)
    slopes = [
        first ** (h + 1) if h < power else second ** (2 * (h - power) + 1) for h in range(n_heads)
    ]
    return np.array(slopes, np.float32)
