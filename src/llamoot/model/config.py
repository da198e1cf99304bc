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
from llamoot.model.layers import Keys, Layer, layers_of, window_of
from llamoot.model.traits import Gate, Traits

GATES: dict[int, Gate] = {1: "softmax", 2: "sigmoid", 3: "softmax_after", 4: "sqrt_softplus"}
POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


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
    per_layer: int  # width of the embeddings that every layer has of its own; 0 for none
    glu_limits: tuple[float, ...]  # of experts, by layer
    glu_limits_shared: tuple[float, ...]

    @property
    def recurrent(self) -> bool:
        """Whether a sequence has a state that cannot be shared or taken back."""
        return any(layer.recurrent for layer in self.layers)


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
    traits, keys = traits_of(gguf), Keys(gguf)
    dim = keys.positive("embedding_length")
    norm = _norm(keys, traits)
    eps_key = traits.eps_key or f"attention.layer_norm_{'rms_' if norm == 'rms' else ''}epsilon"
    base = keys.number("rope.freq_base", 10000.0)
    window = window_of(keys, traits)
    layers = layers_of(keys, traits, dim, window)
    context = keys.positive("context_length")
    if traits.sparse:
        # Within so many positions its keys are all chosen, so plain attention is the same.
        each = keys.whole("attention.indexer.block_size") or 1
        context = min(context, keys.whole("attention.indexer.top_k") * each or context)
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
        n_turned=keys.whole("rope.dimension_count", layers[0].n_rot),
        n_plain=_head_dim(keys, layers) - keys.whole("rope.dimension_count", layers[0].n_rot),
        ssm=_state_space(keys, traits, layers),
        per_layer=keys.whole("embedding_length_per_layer_input") if traits.per_layer else 0,
        glu_limits=_limits(keys, "swiglu_clamp_exp"),
        glu_limits_shared=_limits(keys, "swiglu_clamp_shexp"),
    )


def _array(keys: Keys, key: str) -> list[Any]:
    value = keys.gguf.metadata.maybe(f"{keys.arch}.{key}", None)
    return value.tolist() if isinstance(value, np.ndarray) else []


def _limits(keys: Keys, key: str) -> tuple[float, ...]:
    values = keys.each(key, 0.0)
    if not all(isinstance(v, int | float) for v in values):
        raise ModelFileError(keys.gguf.path, f"{keys.arch}.{key}", "is not one number per layer")
    return tuple(float(v) for v in values)


def _n_vocab(keys: Keys) -> int:
    """Rows of the embedding table: the table itself is the truth, converters pad it."""
    table = keys.gguf.tensors.get("token_embd.weight")
    if table is not None:
        return table.shape[0]
    tokens = keys.gguf.metadata.maybe("tokenizer.ggml.tokens", None)
    return len(tokens) if isinstance(tokens, Strings) else keys.whole("vocab_size")


def _norm(keys: Keys, traits: Traits) -> Literal["rms", "layer"]:
    if traits.norm == "either":
        return "rms" if keys.number("attention.layer_norm_rms_epsilon") else "layer"
    return traits.norm


def _alibi(keys: Keys, traits: Traits) -> float:
    if traits.alibi_at_layers not in (0, keys.n_layers):
        return 0.0
    return keys.number("attention.max_alibi_bias") or traits.alibi


def _state_space(keys: Keys, traits: Traits, layers: tuple[Layer, ...]) -> StateSpace:
    if traits.recurrent == "kda":
        heads, dim = max(layer.n_heads for layer in layers), keys.whole("kda.head_dim")
        return StateSpace(keys.whole("ssm.conv_kernel"), heads * dim, dim, heads, heads)
    space = StateSpace(
        taps=keys.whole("ssm.conv_kernel") or keys.whole("shortconv.l_cache"),
        inner=keys.whole("ssm.inner_size"),
        state=keys.whole("ssm.state_size"),
        heads=keys.whole("ssm.time_step_rank"),
        groups=keys.whole("ssm.group_count") or 1,
        bare_norms=keys.flag("ssm.dt_b_c_rms"),
    )
    headed = traits.recurrent in ("mamba2", "delta")
    if headed and (not space.heads or space.inner % space.heads or space.heads % space.groups):
        where = f"{keys.arch}.ssm.time_step_rank"
        raise ModelFileError(keys.gguf.path, where, f"{space.heads} does not divide the channels")
    return space


def _head_dim(keys: Keys, layers: tuple[Layer, ...]) -> int:
    """Of a head before it is carried into the latent space."""
    return keys.whole("attention.key_length_mla") or layers[0].head_dim


def _experts(keys: Keys, traits: Traits) -> Experts:
    count = keys.whole("expert_count")
    if count <= 1 and not traits.one_expert:
        return Experts()
    used = max(keys.counts("expert_used_count"))
    ff = max(keys.counts("expert_feed_forward_length")) or max(keys.counts("feed_forward_length"))
    if traits.expert_ff_divided and not max(keys.counts("expert_feed_forward_length")):
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


def _scaling(keys: Keys, traits: Traits, context: int) -> RopeScaling:
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


def _attn_scale(keys: Keys, traits: Traits, dim: int, layers: tuple[Layer, ...]) -> float:
    if traits.attn_scale_dim_at:
        if len(layers) == traits.attn_scale_dim_at:
            return 1 / math.sqrt(dim / layers[0].n_heads)
        return 0.0
    return keys.number(traits.attn_scale_key)


def _temperature_floor(keys: Keys, traits: Traits, context: int) -> int:
    original = keys.whole("rope.scaling.original_context_length", context)
    return keys.whole("attention.temperature_length") or traits.temperature_floor or original


def _embed_scale(keys: Keys, traits: Traits, dim: int) -> float:
    if traits.embed_scale == "sqrt_dim":
        return math.sqrt(dim)
    return keys.number("embedding_scale") or traits.embed_factor


def _residual_scale(keys: Keys, traits: Traits) -> float:
    default = traits.residual_depth / math.sqrt(keys.n_layers)
    return keys.number("residual_scale") or default or 1.0


def _logit_scale(keys: Keys, traits: Traits, dim: int) -> float:
    if not traits.logit_scale:
        return 1.0
    default = traits.logit_dim / dim or traits.logit_factor
    scale = keys.number("logit_scale") or default
    return scale if traits.logit_scale == "mul" else 1 / scale


def _final_softcap(keys: Keys, traits: Traits) -> float:
    if not traits.final_softcap:
        return 0.0
    return keys.number("final_logit_softcapping", max(traits.final_softcap, 0.0))
