"""A model's numbers, read once from the metadata of its file: nothing else looks up a key.

Missing keys are an error unless GGUF gives a default. What differs from layer to layer is in
`Layer`; what differs from architecture to architecture in `traits.py`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from llamoot.errors import ModelFileError
from llamoot.gguf.metadata import Strings
from llamoot.gguf.reader import GGUF
from llamoot.model.architectures import ARCHITECTURES
from llamoot.model.traits import Gate, Traits

GATES: dict[int, Gate] = {1: "softmax", 2: "sigmoid", 3: "softmax_after", 4: "sqrt_softplus"}
Kind = Literal["attention", "latent", "conv", "mamba", "mamba2", "delta", "beside", "none"]
FULL_EVERY = 4  # layers, where a hybrid's file does not say
CONVS = {"conv": "shortconv.conv"}
POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


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

    @property
    def recurrent(self) -> bool:
        """Whether it has a state instead of, or beside, a cache."""
        return self.kind not in ("attention", "latent", "none")

    @property
    def cached(self) -> bool:
        """Whether it keeps keys and values."""
        return self.kind in ("attention", "latent", "beside")

    @property
    def conv(self) -> str:
        """Name of its convolution."""
        return CONVS.get(self.kind, "ssm_conv1d")


@dataclass(frozen=True)
class Experts:
    """Mixture of experts; `count` 0 means there is none."""

    count: int = 0
    used: int = 0
    ff: int = 0
    shared_ff: int = 0
    shared_count: int = 0
    gate: Gate = "softmax"
    normalize: bool = True
    scale: float = 1.0
    n_groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True)
class StateSpace:
    """Numbers of recurrent layers."""

    taps: int = 0  # of the convolution
    inner: int = 0  # channels
    state: int = 0  # numbers kept for each channel
    heads: int = 0  # Mamba-2 and delta: heads; Mamba: rank of the time steps
    groups: int = 1  # heads share inputs and outputs by groups
    bare_norms: bool = False  # weightless norms of time step, input and output (Mamba)


@dataclass(frozen=True)
class RopeScaling:
    """How positions beyond the training context are squeezed."""

    type: str  # none, linear, yarn, longrope
    factor: float
    original: int  # context before scaling
    attn_factor: float
    log_multiplier: float
    beta_fast: float
    beta_slow: float


@dataclass(frozen=True)
class Config:
    """All numbers of one model."""

    arch: str
    traits: Traits
    layers: tuple[Layer, ...]
    dim: int
    n_vocab: int
    context: int  # positions it was trained for
    norm: Literal["rms", "layer"]
    eps: float
    experts: Experts
    rope_base: float
    rope_base_windowed: float
    rope_sections: tuple[int, ...]
    rope_scaling: RopeScaling
    window: int
    attn_scale: float  # 0: by head_dim
    attn_softcap: float
    clamp_qkv: float
    alibi: float
    attn_out_scale: float
    temperature_scale: float
    temperature_floor: int
    embed_scale: float
    residual_scale: float
    logit_scale: float
    final_softcap: float
    causal: bool
    parallel: bool  # see Traits.parallel; "normless" is decided layer by layer
    pooling: str
    q_rank: int  # latent attention: of the queries, 0 for none
    kv_rank: int  # of keys and values
    n_turned: int  # dimensions of a head that are rotated
    n_plain: int  # and that are not
    ssm: StateSpace
    glu_limits: tuple[float, ...]  # of experts, by layer
    glu_limits_shared: tuple[float, ...]

    @property
    def recurrent(self) -> bool:
        """Whether a sequence has a state that cannot be shared or taken back."""
        return any(layer.recurrent for layer in self.layers)


class _Keys:
    """Keys below `<architecture>.`, with values per layer spread out."""

    def __init__(self, gguf: GGUF) -> None:
        self.gguf, self.arch = gguf, gguf.architecture
        self.n_layers = int(self.need("block_count", int))
        if not 0 < self.n_layers <= 1024:
            raise ModelFileError(gguf.path, f"{self.arch}.block_count", "is not in 1..1024")

    def need(self, key: str, kind: type) -> Any:
        return self.gguf.metadata.need(f"{self.arch}.{key}", kind)

    def whole(self, key: str, default: int = 0) -> int:
        return int(self.gguf.metadata.maybe(f"{self.arch}.{key}", default, int))

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


def traits_of(gguf: GGUF) -> Traits:
    """The row of the file's architecture; an unknown one is refused by name."""
    if gguf.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelFileError(
            gguf.path,
            "general.architecture",
            f"'{gguf.architecture}' is not known; known are {known}",
        )
    return ARCHITECTURES[gguf.architecture]


def read_config(gguf: GGUF) -> Config:
    """All numbers of the model in `gguf`; ModelFileError names a key that is missing or wrong."""
    traits, keys = traits_of(gguf), _Keys(gguf)
    dim = int(keys.need("embedding_length", int))
    norm = _norm(keys, traits)
    eps_key = traits.eps_key or f"attention.layer_norm_{'rms_' if norm == 'rms' else ''}epsilon"
    base = keys.number("rope.freq_base", 10000.0)
    window = _window(keys, traits)
    layers = _layers(keys, traits, dim, window)
    context = int(keys.need("context_length", int))
    if traits.sparse:
        context = min(context, keys.whole("attention.indexer.top_k") or context)
    return Config(
        arch=keys.arch,
        traits=traits,
        layers=layers,
        dim=dim,
        n_vocab=_n_vocab(keys),
        context=context,
        norm=norm,
        eps=float(keys.need(eps_key, float)),
        experts=_experts(keys, traits),
        rope_base=base,
        rope_base_windowed=keys.number("rope.freq_base_swa", traits.window_base or base),
        rope_sections=tuple(int(n) for n in _array(keys, "rope.dimension_sections")),
        rope_scaling=_scaling(keys, traits, context),
        window=window,
        attn_scale=_attn_scale(keys, traits, dim, layers),
        attn_softcap=keys.number("attn_logit_softcapping", traits.attn_softcap)
        if traits.attn_softcap
        else 0.0,
        clamp_qkv=keys.number("attention.clamp_kqv"),
        alibi=_alibi(keys, traits),
        attn_out_scale=keys.number("attention.value_scale") or 1.0,
        temperature_scale=keys.number("attention.temperature_scale", traits.temperature_scale)
        if traits.temperature
        else 0.0,
        temperature_floor=_temperature_floor(keys, traits, context),
        embed_scale=_embed_scale(keys, traits, dim),
        residual_scale=_residual_scale(keys, traits),
        logit_scale=_logit_scale(keys, traits, dim),
        final_softcap=_final_softcap(keys, traits),
        causal=keys.flag("attention.causal", traits.causal),
        parallel=traits.parallel == "yes"
        or (traits.parallel == "file" and keys.flag("use_parallel_residual", True)),
        pooling=POOLINGS.get(keys.whole("pooling_type", traits.pooling), "none"),
        q_rank=keys.whole("attention.q_lora_rank") if traits.latent else 0,
        kv_rank=keys.whole("attention.kv_lora_rank") if traits.latent else 0,
        n_turned=layers[0].n_rot,
        n_plain=_head_dim(keys, layers) - layers[0].n_rot,
        ssm=_state_space(keys),
        glu_limits=_limits(keys, "swiglu_clamp_exp"),
        glu_limits_shared=_limits(keys, "swiglu_clamp_shexp"),
    )


def _array(keys: _Keys, key: str) -> list[Any]:
    value = keys.gguf.metadata.maybe(f"{keys.arch}.{key}", None)
    return value.tolist() if isinstance(value, np.ndarray) else []


def _limits(keys: _Keys, key: str) -> tuple[float, ...]:
    return tuple(float(v) for v in keys.each(key, 0.0))


def _n_vocab(keys: _Keys) -> int:
    """Rows of the embedding table: the table itself is the truth, converters pad it."""
    table = keys.gguf.tensors.get("token_embd.weight")
    if table is not None:
        return table.shape[0]
    tokens = keys.gguf.metadata.maybe("tokenizer.ggml.tokens", None)
    return len(tokens) if isinstance(tokens, Strings) else keys.whole("vocab_size")


def _norm(keys: _Keys, traits: Traits) -> Literal["rms", "layer"]:
    if traits.norm == "either":
        return "rms" if keys.number("attention.layer_norm_rms_epsilon") else "layer"
    return traits.norm


def _alibi(keys: _Keys, traits: Traits) -> float:
    if traits.alibi_at_layers not in (0, keys.n_layers):
        return 0.0
    return keys.number("attention.max_alibi_bias") or traits.alibi


def _window(keys: _Keys, traits: Traits) -> int:
    if not traits.window or keys.n_layers < traits.window_min_layers:
        return 0
    return keys.whole("attention.sliding_window", max(traits.window, 0))


def _windowed(keys: _Keys, traits: Traits, window: int) -> list[bool]:
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


def _layers(keys: _Keys, traits: Traits, dim: int, window: int) -> tuple[Layer, ...]:
    heads = keys.each("attention.head_count")
    kv_heads = keys.each("attention.head_count_kv", None)
    ff = keys.each("feed_forward_length")
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
        kv = heads[i] if kv_heads[i] is None else kv_heads[i]
        if n_rot > k_dim or n_rot % 2 or (kv and heads[i] % kv):
            where = f"{keys.arch}.attention of layer {i}"
            shape = f"{heads[i]} heads, {kv} key/value heads of {k_dim}, {n_rot} rotated"
            raise ModelFileError(keys.gguf.path, where, f"{shape}: these do not fit together")
        inner = ff[i] // 2 if traits.ff_halved else ff[i]
        has_ffn = not traits.no_ffn and (bool(inner) or not traits.one_mixer)
        kind = _kind(traits, kv, has_ffn, listed[i])
        layers.append(Layer(heads[i], kv, k_dim, v_dim, n_rot, windowed[i], inner, kind, has_ffn))
    return tuple(layers)


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


def _listed(keys: _Keys) -> list[bool]:
    """Which layers the file calls recurrent: an array, or all but every n-th."""
    key = "attention.recurrent_layers"
    if isinstance(keys.gguf.metadata.maybe(f"{keys.arch}.{key}", None), np.ndarray):
        return [bool(v) for v in keys.each(key)]
    every = keys.whole("full_attention_interval", FULL_EVERY) or FULL_EVERY
    return [(i + 1) % every != 0 for i in range(keys.n_layers)]


def _state_space(keys: _Keys) -> StateSpace:
    return StateSpace(
        taps=keys.whole("ssm.conv_kernel") or keys.whole("shortconv.l_cache"),
        inner=keys.whole("ssm.inner_size"),
        state=keys.whole("ssm.state_size"),
        heads=keys.whole("ssm.time_step_rank"),
        groups=keys.whole("ssm.group_count") or 1,
        bare_norms=keys.flag("ssm.dt_b_c_rms"),
    )


def _head_dim(keys: _Keys, layers: tuple[Layer, ...]) -> int:
    """Of a head before it is carried into the latent space."""
    return keys.whole("attention.key_length_mla") or layers[0].head_dim


def _roped(keys: _Keys, traits: Traits, window: int) -> list[bool]:
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


def _experts(keys: _Keys, traits: Traits) -> Experts:
    count = keys.whole("expert_count")
    if count <= 1 and not traits.one_expert:
        return Experts()
    used = max(keys.each("expert_used_count"))
    ff = max(keys.each("expert_feed_forward_length")) or max(keys.each("feed_forward_length"))
    if traits.expert_ff_divided and not max(keys.each("expert_feed_forward_length")):
        ff //= used
    if not 0 < used <= count:
        where = f"{keys.arch}.expert_used_count"
        raise ModelFileError(keys.gguf.path, where, f"{used} of {count} experts cannot be used")
    normalize = traits.norm_topk
    return Experts(
        count=count,
        used=used,
        ff=ff,
        shared_ff=keys.whole("expert_shared_feed_forward_length"),
        shared_count=keys.whole("expert_shared_count"),
        gate=GATES.get(keys.whole("expert_gating_func"), traits.gate),
        normalize=keys.flag("expert_weights_norm") if normalize is None else normalize,
        scale=keys.number("expert_weights_scale") or 1.0,
        n_groups=max(keys.whole("expert_group_count"), 1),
        top_groups=max(keys.whole("expert_group_used_count"), 1),
    )


def _scaling(keys: _Keys, traits: Traits, context: int) -> RopeScaling:
    factor = keys.number("rope.scaling.factor") or keys.number("rope.scale_linear") or 1.0
    return RopeScaling(
        type=keys.text("rope.scaling.type", "linear"),
        factor=factor,
        original=keys.whole("rope.scaling.original_context_length", context) or context,
        attn_factor=keys.number("rope.scaling.attn_factor", 1.0),
        log_multiplier=keys.number("rope.scaling.yarn_log_multiplier")
        * (10 if traits.yarn_tenths else 1),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def _attn_scale(keys: _Keys, traits: Traits, dim: int, layers: tuple[Layer, ...]) -> float:
    if traits.attn_scale_dim_at:
        if len(layers) == traits.attn_scale_dim_at:
            return 1 / math.sqrt(dim / layers[0].n_heads)
        return 0.0
    return keys.number(traits.attn_scale_key)


def _temperature_floor(keys: _Keys, traits: Traits, context: int) -> int:
    original = keys.whole("rope.scaling.original_context_length", context)
    return keys.whole("attention.temperature_length") or traits.temperature_floor or original


def _embed_scale(keys: _Keys, traits: Traits, dim: int) -> float:
    if traits.embed_scale == "sqrt_dim":
        return math.sqrt(dim)
    return keys.number("embedding_scale") or traits.embed_factor


def _residual_scale(keys: _Keys, traits: Traits) -> float:
    default = traits.residual_depth / math.sqrt(keys.n_layers)
    return keys.number("residual_scale") or default or 1.0


def _logit_scale(keys: _Keys, traits: Traits, dim: int) -> float:
    if not traits.logit_scale:
        return 1.0
    default = traits.logit_dim / dim or traits.logit_factor
    scale = keys.number("logit_scale") or default
    return scale if traits.logit_scale == "mul" else 1 / scale


def _final_softcap(keys: _Keys, traits: Traits) -> float:
    if not traits.final_softcap:
        return 0.0
    return keys.number("final_logit_softcapping", max(traits.final_softcap, 0.0))
