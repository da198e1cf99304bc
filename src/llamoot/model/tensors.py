"""Which tensors a model of given numbers has: names, shapes, and which may be missing.

Computed from the numbers alone plus which alternatives (fused or apart) a file uses, so that
binding and the memory plan speak of the same list before any weight is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from llamoot.model.config import Config
from llamoot.model.layers import Layer

Find = Callable[[str], tuple[int, ...] | None]  # shape of a tensor of the file, by name
Kind = Literal["matrix", "vector", "table"]


@dataclass(frozen=True)
class Spec:
    """One tensor; `shapes` are the allowed ones in numpy order, the first is the usual one."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    kind: Kind = "matrix"
    needed: bool = True


def model_specs(config: Config, find: Find) -> Iterator[Spec]:
    """Tensors outside the layers."""
    t, dim, vocab = config.traits, config.dim, config.n_vocab
    yield Spec("token_embd.weight", ((vocab, dim),), "table")
    if t.learned_positions:
        yield Spec("position_embd.weight", ((config.context, dim),), "table")
    if t.embd_norm:
        yield from _norm(config, t.embd_norm, dim)
    if t.output_norm:
        yield from _norm(config, t.output_norm, dim)
    if config.per_layer:
        wide = config.per_layer * len(config.layers)
        yield Spec("per_layer_token_embd.weight", ((vocab, wide),), "table")
        yield Spec("per_layer_model_proj.weight", ((wide, dim),))
        yield Spec("per_layer_proj_norm.weight", ((config.per_layer,),), "vector")
    if t.token_types:
        types = find("token_types.weight") or (1,)
        n_types = types[0] if len(types) > 1 else 1
        yield Spec("token_types.weight", ((n_types, dim),), "vector", False)
    for name in ("dense_2", "dense_3"):  # heads of an embedding model, after pooling
        head = find(f"{name}.weight")
        if head is not None and len(head) == 2:
            yield Spec(f"{name}.weight", (head,), "vector")
    if find("output.weight") and not t.headless:
        yield Spec("output.weight", ((vocab, dim),))
    if "output.bias" not in t.ignored:
        yield Spec("output.bias", ((vocab,),), "vector", False)
    n_rot = max((layer.n_rot for layer in config.layers), default=0)
    for name in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
        if n_rot and f"{name}.weight" not in t.ignored:
            yield Spec(f"{name}.weight", ((n_rot // 2,),), "vector", False)


def layer_specs(config: Config, i: int, find: Find) -> Iterator[Spec]:
    """Tensors of layer `i`, with their whole names."""
    layer, prefix = config.layers[i], f"blk.{i}."

    def here(name: str) -> tuple[int, ...] | None:
        return find(prefix + name)

    parts = [_norms(config, layer)]
    parts += [MIXERS[kind](config, layer, here) for kind in _kinds(config, layer)]
    if layer.has_ffn:
        parts.append(_ffn(config, layer, here))
    if config.per_layer:
        parts.append(_per_layer(config))
    for part in parts:
        for spec in part:
            if spec.name not in config.traits.ignored:
                yield Spec(prefix + spec.name, spec.shapes, spec.kind, spec.needed)


def _norm(config: Config, name: str, width: int, needed: bool = True) -> Iterator[Spec]:
    yield Spec(f"{name}.weight", ((width,),), "vector", needed and not config.traits.bare_norm)
    yield Spec(f"{name}.bias", ((width,),), "vector", False)


def _linear(name: str, rows: int, cols: int) -> Iterator[Spec]:
    yield Spec(f"{name}.weight", ((rows, cols),))
    yield Spec(f"{name}.bias", ((rows,),), "vector", False)


def _kinds(config: Config, layer: Layer) -> list[str]:
    """The mixers of a layer."""
    if layer.kind == "none":
        return []
    return ["attention", config.traits.recurrent] if layer.kind == "beside" else [layer.kind]


def conv_channels(config: Config, layer: Layer) -> int:
    """How many channels the convolution of a recurrent layer has."""
    m, kind = config.ssm, config.traits.recurrent
    if kind == "conv":
        return config.dim
    return m.inner + (0 if kind == "mamba" else 2 * m.groups * m.state)


def _norms(config: Config, layer: Layer) -> Iterator[Spec]:
    t, dim = config.traits, config.dim
    if t.attn_norm:
        yield from _norm(config, t.attn_norm, dim)
        yield from _norm(config, "attn_norm_2", dim, False)
    if t.ffn_norm and layer.has_ffn:
        yield from _norm(config, t.ffn_norm, dim, t.parallel != "normless")
    for name in (t.attn_post_norm, t.ffn_post_norm):
        if name:
            yield from _norm(config, name, dim)


def _attention(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    q, k = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    v, dim = layer.n_kv_heads * layer.v_dim, config.dim
    if find("attn_qkv.weight"):
        yield from _linear("attn_qkv", q + k + v, dim)
    else:
        yield from _linear("attn_q", q * (2 if config.traits.q_gated else 1), dim)
        if layer.shares < 0:
            yield from _linear("attn_k", k, dim)
        if layer.shares < 0 and not (config.traits.v_norm and find("attn_v.weight") is None):
            yield from _linear("attn_v", v, dim)
    yield from _linear("attn_output", dim, layer.n_heads * layer.v_dim)
    for name, heads in (("attn_q_norm", layer.n_heads), ("attn_k_norm", layer.n_kv_heads)):
        d = layer.head_dim
        shapes = ((d,), (heads * d,), (heads, d))
        if layer.shares >= 0 and name == "attn_k_norm":
            continue
        if find("attn_q_norm.weight") and (find("attn_k_norm.weight") or layer.shares >= 0):
            yield Spec(f"{name}.weight", shapes, "vector")
            yield Spec(f"{name}.bias", shapes, "vector", False)
    yield Spec("layer_output_scale.weight", ((1,),), "vector", False)
    yield Spec("attn_sinks.weight", ((layer.n_heads,),), "vector", False)
    if find("attn_gate.weight"):
        wide = layer.n_heads * layer.v_dim
        yield Spec("attn_gate.weight", ((wide, dim), (layer.n_heads, dim)))


def _latent(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    c, h, dim = config, layer.n_heads, config.dim
    head = c.n_plain + c.n_turned
    if find("attn_q_a.weight") or c.q_rank:
        yield Spec("attn_q_a.weight", ((c.q_rank, dim),))
        yield Spec("attn_q_a_norm.weight", ((c.q_rank,),), "vector")
        yield Spec("attn_q_b.weight", ((h * head, c.q_rank),))
    else:
        yield Spec("attn_q.weight", ((h * head, dim),))
    yield Spec("attn_kv_a_mqa.weight", ((c.kv_rank + c.n_turned, dim),))
    yield Spec("attn_kv_a_norm.weight", ((c.kv_rank,),), "vector")
    rows = (find("attn_output.weight") or (0, h))[-1] // h  # of the values of one head
    if find("attn_kv_b.weight"):
        yield Spec("attn_kv_b.weight", ((h * (c.n_plain + rows), c.kv_rank),))
    else:
        yield Spec("attn_k_b.weight", ((h, c.kv_rank, c.n_plain),))
        yield Spec("attn_v_b.weight", ((h, rows, c.kv_rank),))
    yield from _linear("attn_output", dim, h * rows)


def _ffn(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    routed = find("ffn_gate_inp.weight")
    if routed is not None:
        yield from _experts(config, layer.ff, find)
    beside = config.traits.dense_and_experts and find("ffn_up.weight")
    if routed is None or beside:
        # Arctic's dense feed-forward is as wide as the model, whatever the file counts.
        found = find("ffn_up.weight")
        wide = bool(beside) and found is not None and found[0] == config.dim
        yield from _dense(config, config.dim if wide else layer.ff)


def _per_layer(config: Config) -> Iterator[Spec]:
    yield Spec("inp_gate.weight", ((config.per_layer, config.dim),))
    yield Spec("proj.weight", ((config.dim, config.per_layer),))
    yield Spec("post_norm.weight", ((config.dim,),), "vector")


def _dense(config: Config, ff: int) -> Iterator[Spec]:
    shape, dim = config.traits.ffn, config.dim
    if shape == "gated":
        yield from _linear("ffn_gate", ff, dim)
    yield from _linear("ffn_up", ff * (2 if shape == "fused" else 1), dim)
    yield from _linear("ffn_down", dim, ff)
    yield Spec("ffn.act.scales", ((ff,),), "vector", False)


def _experts(config: Config, dense_ff: int, find: Find) -> Iterator[Spec]:
    e, dim = config.experts, config.dim
    n, ff = e.count, e.ff
    yield from _linear("ffn_gate_inp", n, dim)
    for name in ("exp_probs_b.bias", "exp_probs_b"):
        yield Spec(name, ((n,),), "vector", False)
    yield Spec("ffn_down_exps.scale", ((n,),), "vector", False)
    if config.traits.doubled_norms:
        yield Spec("ffn_gate_inp.scale", ((dim,),), "vector")
        for name in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            yield from _norm(config, name, dim)
    if config.traits.experts_norm:
        yield from _norm(config, config.traits.experts_norm, dim)
    fused = find("ffn_gate_up_exps.weight")
    names = [("ffn_gate_up_exps", 2 * ff)] if fused else [("ffn_up_exps", ff)]
    if find("ffn_gate_exps.weight"):
        names.append(("ffn_gate_exps", ff))
    for name, rows in names:
        yield Spec(f"{name}.weight", ((n, rows, dim),))
        yield Spec(f"{name}.bias", ((n, rows),), "vector", False)
    yield Spec("ffn_down_exps.weight", ((n, dim, ff),))
    yield Spec("ffn_down_exps.bias", ((n, dim),), "vector", False)
    if find("ffn_up_shexp.weight"):
        yield from _shared(config, dense_ff, find)


def _shared(config: Config, ff: int, find: Find) -> Iterator[Spec]:
    """The expert that every token visits; its width is told by few files."""
    e, dim = config.experts, config.dim
    count = max(e.shared_count, 1)
    allowed = [w for w in (e.shared_ff, e.shared_ff * count, e.ff * count, e.ff, ff) if w]
    found = (find("ffn_up_shexp.weight") or (0,))[0]
    gated = find("ffn_gate_shexp.weight") is not None
    times = 1 if gated or found in allowed else 2  # gate and up in one
    width = found // times if found // times in allowed else allowed[0]
    yield Spec("ffn_up_shexp.weight", ((times * width, dim),))
    if gated:
        yield Spec("ffn_gate_shexp.weight", ((width, dim),))
    yield Spec("ffn_down_shexp.weight", ((dim, width),))
    if find("ffn_gate_inp_shexp.weight"):
        yield Spec("ffn_gate_inp_shexp.weight", ((dim,), (1, dim)))


def _short_conv(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    dim = config.dim
    yield Spec("shortconv.in_proj.weight", ((3 * dim, dim),))
    yield Spec("shortconv.conv.weight", ((dim, config.ssm.taps),), "vector")
    yield Spec("shortconv.out_proj.weight", ((dim, dim),))


def _scanned(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    """What both Mambas and delta nets have."""
    m, channels = config.ssm, conv_channels(config, layer)
    yield Spec("ssm_conv1d.weight", ((channels, m.taps),), "vector")
    yield Spec("ssm_conv1d.bias", ((channels,),), "vector", False)
    yield Spec("ssm_out.weight", ((config.dim, m.inner),))


def _mamba(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    m, dim = config.ssm, config.dim
    yield from _scanned(config, layer, find)
    yield Spec("ssm_in.weight", ((2 * m.inner, dim),))
    yield Spec("ssm_x.weight", ((m.heads + 2 * m.state, m.inner),))
    yield from _linear("ssm_dt", m.inner, m.heads)
    yield Spec("ssm_a.weight", ((m.inner, m.state),), "vector")
    yield Spec("ssm_d.weight", ((m.inner,),), "vector")
    for name, width in (("dt", m.heads), ("b", m.state), ("c", m.state)):
        yield Spec(f"ssm_{name}_norm.weight", ((width,),), "vector", False)


def _mamba2(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    m = config.ssm
    yield from _scanned(config, layer, find)
    rows = 2 * m.inner + 2 * m.groups * m.state + m.heads
    yield Spec("ssm_in.weight", ((rows, config.dim),))
    yield Spec("ssm_dt.bias", ((m.heads,),), "vector")
    for name in ("ssm_a", "ssm_d"):
        yield Spec(f"{name}.weight", ((m.heads, 1), (m.heads,)), "vector")
    yield Spec("ssm_norm.weight", ((m.groups, m.inner // m.groups), (m.inner,)), "vector", False)


def _delta(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    m, dim = config.ssm, config.dim
    yield from _scanned(config, layer, find)
    yield Spec("attn_qkv.weight", ((2 * m.groups * m.state + m.inner, dim),))
    yield Spec("attn_gate.weight", ((m.inner, dim),))
    yield Spec("ssm_dt.bias", ((m.heads,),), "vector")
    yield Spec("ssm_a.weight", ((m.heads,),), "vector")
    yield Spec("ssm_norm.weight", ((m.inner // m.heads,),), "vector")
    if find("ssm_ba.weight"):
        yield Spec("ssm_ba.weight", ((2 * m.heads, dim),))
        return
    yield Spec("ssm_beta.weight", ((m.heads, dim),))
    yield Spec("ssm_alpha.weight", ((m.heads, dim),))


def _kda(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    m, dim = config.ssm, config.dim
    for part in "qkv":
        yield Spec(f"attn_{part}.weight", ((m.inner, dim),))
        shapes = ((m.inner, 1, m.taps), (m.inner, m.taps))
        yield Spec(f"ssm_conv1d_{part}.weight", shapes, "vector")
    for part in "fg":
        yield Spec(f"ssm_{part}_a.weight", ((m.state, dim),))
        yield Spec(f"ssm_{part}_b.weight", ((m.inner, m.state),))
    yield Spec("ssm_beta.weight", ((m.heads, dim),))
    yield Spec("ssm_dt.bias", ((m.inner,),), "vector")
    yield Spec("ssm_a.weight", ((m.heads,), (m.heads, 1)), "vector")
    yield Spec("ssm_norm.weight", ((m.state,),), "vector")
    yield Spec("attn_output.weight", ((dim, m.inner),))


MIXERS: dict[str, Callable[[Config, Layer, Find], Iterator[Spec]]] = {
    "attention": _attention,
    "latent": _latent,
    "conv": _short_conv,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "delta": _delta,
    "kda": _kda,
}
