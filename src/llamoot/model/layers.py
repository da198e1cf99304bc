"""What differs from layer to layer, and the keys of a file it is read from."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llamoot.errors import ModelFileError
from llamoot.gguf.reader import GGUF
from llamoot.model.traits import Traits

Kind = Literal["attention", "latent", "conv", "mamba", "mamba2", "delta", "kda", "beside", "none"]
WIDEST = 1 << 24  # numbers of all heads of a token
MOST = 1 << 32  # no count of a model is that large
FULL_EVERY = 4  # layers, where a hybrid's file does not say
CONVS = {"conv": "shortconv.conv"}


@dataclass(frozen=True)
class Layer:
    """What one layer needs to know about itself. Sizes in elements."""

    n_heads: int
    n_kv_heads: int
    head_dim: int  # of queries and keys
    v_dim: int  # of values
    n_rot: int  # rotated dimensions of a head; 0 for none
    windowed: bool
    ff: int
    kind: Kind = "attention"
    has_ffn: bool = True
    shares: int = -1  # the layer whose keys and values it reads instead of own ones

    @property
    def recurrent(self) -> bool:
        """Whether it has a state instead of, or beside, a cache."""
        return self.kind not in ("attention", "latent", "none")

    @property
    def cached(self) -> bool:
        """Whether it keeps keys and values."""
        return self.kind in ("attention", "latent", "beside")

    @property
    def caches(self) -> bool:
        """Whether the cache is its own."""
        return self.cached and self.shares < 0

    @property
    def conv(self) -> str:
        """Name of its convolution."""
        return CONVS.get(self.kind, "ssm_conv1d")


class Keys:
    """Keys below `<architecture>.`, with values per layer spread out."""

    def __init__(self, gguf: GGUF) -> None:
        self.gguf, self.arch = gguf, gguf.architecture
        self.n_layers = int(self.need("block_count", int))
        if not 0 < self.n_layers <= 1024:
            raise ModelFileError(gguf.path, f"{self.arch}.block_count", "is not in 1..1024")

    def need(self, key: str, kind: type) -> Any:
        return self.gguf.metadata.need(f"{self.arch}.{key}", kind)

    def positive(self, key: str) -> int:
        """A count that must be there and not 0."""
        value = self._sane(key, self.need(key, int))
        if not value:
            raise ModelFileError(self.gguf.path, f"{self.arch}.{key}", "is 0")
        return value

    def whole(self, key: str, default: int = 0) -> int:
        return self._sane(key, self.gguf.metadata.maybe(f"{self.arch}.{key}", default, int))

    def _sane(self, key: str, value: Any) -> int:
        """A count; anything else, or one no model has, is an error that names the key."""
        if isinstance(value, int | float) and 0 <= value < MOST:
            return int(value)
        where = f"{self.arch}.{key}"
        raise ModelFileError(self.gguf.path, where, f"{value!r} is not a count below {MOST}")

    def counts(self, key: str, default: int = 0) -> list[int]:
        """One count per layer."""
        return [self._sane(key, value) for value in self.each(key, default)]

    def number(self, key: str, default: float = 0.0) -> float:
        return float(self.gguf.metadata.maybe(f"{self.arch}.{key}", default, float))

    def flag(self, key: str, default: bool = False) -> bool:
        return bool(self.gguf.metadata.maybe(f"{self.arch}.{key}", default, bool))

    def text(self, key: str, default: str) -> str:
        return str(self.gguf.metadata.maybe(f"{self.arch}.{key}", default, str))

    def has(self, key: str) -> bool:
        return f"{self.arch}.{key}" in self.gguf.metadata

    def each(self, key: str, default: Any = 0) -> list[Any]:
        """One value per layer, where the file has one number for all or an array."""
        value = self.gguf.metadata.maybe(f"{self.arch}.{key}", default)
        if isinstance(value, np.ndarray):
            if len(value) < self.n_layers:
                where = f"{self.arch}.{key}"
                raise ModelFileError(
                    self.gguf.path, where, f"has {len(value)} values for {self.n_layers} layers"
                )
            return [v.item() for v in value[: self.n_layers]]
        return [value] * self.n_layers


def window_of(keys: Keys, traits: Traits) -> int:
    if not traits.window or keys.n_layers < traits.window_min_layers:
        return 0
    return keys.whole("attention.sliding_window", max(traits.window, 0))


def _windowed(keys: Keys, traits: Traits, window: int) -> list[bool]:
    """Which layers look through a window."""
    if not window:
        return [False] * keys.n_layers
    key = "attention.sliding_window_pattern"
    if isinstance(keys.gguf.metadata.maybe(f"{keys.arch}.{key}", None), np.ndarray):
        return [bool(v) for v in keys.each(key)]
    step = keys.whole(key, traits.window_step)
    if step == 0:
        return [True] * keys.n_layers
    full = 0 if traits.window_full_first else step - 1
    return [i % step != full for i in range(keys.n_layers)]


def layers_of(keys: Keys, traits: Traits, dim: int, window: int) -> tuple[Layer, ...]:
    heads = keys.counts("attention.head_count")
    shared = keys.has("attention.head_count_kv")
    kv_heads = keys.counts("attention.head_count_kv") if shared else heads
    ff = keys.counts("feed_forward_length")
    windowed, roped = _windowed(keys, traits, window), _roped(keys, traits, window)
    listed = _listed(keys)
    each = dim // max(heads) if max(heads) else 0
    layers = []
    for i in range(keys.n_layers):
        own = "_swa" if windowed[i] else ""
        k_dim = keys.whole("attention.key_length", each)
        v_dim = keys.whole("attention.value_length", each)
        n_rot = keys.whole("rope.dimension_count", k_dim)
        k_dim = keys.whole(f"attention.key_length{own}", k_dim)
        v_dim = keys.whole(f"attention.value_length{own}", v_dim)
        n_rot = keys.whole(f"rope.dimension_count{own}", n_rot) if roped[i] else 0
        kv = kv_heads[i]
        wide = max(heads[i], kv) * max(k_dim, v_dim) >= WIDEST
        if n_rot > k_dim or n_rot % 2 or (kv and (heads[i] % kv or not heads[i])) or wide:
            where = f"{keys.arch}.attention of layer {i}"
            shape = f"{heads[i]} heads, {kv} key/value heads of {k_dim}, {n_rot} rotated"
            raise ModelFileError(keys.gguf.path, where, f"{shape}: these do not fit together")
        inner = ff[i] // 2 if traits.ff_halved else ff[i]
        has_ffn = not traits.no_ffn and (bool(inner) or not traits.one_mixer)
        kind = _kind(traits, kv, has_ffn, listed[i])
        shares = _shared(keys, i, windowed)
        own_ = Layer(heads[i], kv, k_dim, v_dim, n_rot, windowed[i], inner, kind, has_ffn, shares)
        layers.append(own_)
    return tuple(layers)


def _shared(keys: Keys, i: int, windowed: list[bool]) -> int:
    """The last layers may read the cache of the last ones of their kind before them, else -1."""
    first = keys.n_layers - keys.whole("attention.shared_kv_layers")
    return first - (2 if windowed[i] else 1) if i >= first else -1


def _kind(traits: Traits, kv_heads: int, has_ffn: bool, listed: bool) -> Kind:
    """What mixes the tokens in a layer."""
    if traits.one_mixer and has_ffn:
        return "none"
    if traits.recurrent:
        if traits.recurrent_where == "beside":
            return "beside"
        where = {"no_heads": not kv_heads, "listed": listed, "all": True}
        if where[traits.recurrent_where]:
            return traits.recurrent
    return "latent" if traits.latent else "attention"


def _listed(keys: Keys) -> list[bool]:
    """Which layers the file calls recurrent: an array, or all but every n-th."""
    key = "attention.recurrent_layers"
    if isinstance(keys.gguf.metadata.maybe(f"{keys.arch}.{key}", None), np.ndarray):
        return [bool(v) for v in keys.each(key)]
    every = keys.whole("full_attention_interval", FULL_EVERY) or FULL_EVERY
    return [(i + 1) % every != 0 for i in range(keys.n_layers)]


def _roped(keys: Keys, traits: Traits, window: int) -> list[bool]:
    """Which layers turn queries and keys by their position."""
    n = keys.n_layers
    if not traits.rope or traits.rope_at_layers not in (0, n):
        return [False] * n
    if traits.rope_if_finetuned and not keys.flag("rope.scaling.finetuned", True):
        return [False] * n
    roped = [bool(v) for v in keys.each("attention.rope_pattern", 1)]
    if traits.no_rope_step and (window or not traits.window):
        roped = [r and (i + 1) % traits.no_rope_step != 0 for i, r in enumerate(roped)]
    if traits.rope_windowed_only and window:
        dense = keys.whole("leading_dense_block_count") if traits.rope_leading_dense else 0
        windowed = _windowed(keys, traits, window)
        roped = [r and (w or i < dense) for i, (r, w) in enumerate(zip(roped, windowed))]
    return roped
