"""Which tensors a model of given numbers has: names, shapes, and which may be missing.

Computed from the numbers alone plus which alternatives (fused or apart) a file uses, so that
binding and the memory plan speak of the same list before any weight is read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from llamoot.model.config import Config, Layer

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
    if find("output.weight"):
        yield Spec("output.weight", ((vocab, dim),))
    yield Spec("output.bias", ((vocab,),), "vector", False)
    n_rot = max((layer.n_rot for layer in config.layers), default=0)
    for name in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
        yield Spec(f"{name}.weight", ((n_rot // 2,),), "vector", False)


def layer_specs(config: Config, i: int, find: Find) -> Iterator[Spec]:
    """Tensors of layer `i`, with their whole names."""
    layer, prefix = config.layers[i], f"blk.{i}."

    def here(name: str) -> tuple[int, ...] | None:
        return find(prefix + name)

    for part in (_norms(config), _attention(config, layer, here), _ffn(config, layer, here)):
        for spec in part:
            if spec.name not in config.traits.ignored:
                yield Spec(prefix + spec.name, spec.shapes, spec.kind, spec.needed)


def _norm(config: Config, name: str, width: int, needed: bool = True) -> Iterator[Spec]:
    yield Spec(f"{name}.weight", ((width,),), "vector", needed and not config.traits.bare_norm)
    yield Spec(f"{name}.bias", ((width,),), "vector", False)


def _linear(name: str, rows: int, cols: int) -> Iterator[Spec]:
    yield Spec(f"{name}.weight", ((rows, cols),))
    yield Spec(f"{name}.bias", ((rows,),), "vector", False)


def _norms(config: Config) -> Iterator[Spec]:
    t, dim = config.traits, config.dim
    if t.attn_norm:
        yield from _norm(config, t.attn_norm, dim)
        yield from _norm(config, "attn_norm_2", dim, False)
    if t.ffn_norm:
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
        yield from _linear("attn_q", q, dim)
        yield from _linear("attn_k", k, dim)
        yield from _linear("attn_v", v, dim)
    yield from _linear("attn_output", dim, layer.n_heads * layer.v_dim)
    for name, heads in (("attn_q_norm", layer.n_heads), ("attn_k_norm", layer.n_kv_heads)):
        d = layer.head_dim
        shapes = ((d,), (heads * d,), (heads, d))
        yield Spec(f"{name}.weight", shapes, "vector", False)
        yield Spec(f"{name}.bias", shapes, "vector", False)
    yield Spec("attn_sinks.weight", ((layer.n_heads,),), "vector", False)
    if find("attn_gate.weight"):
        wide = layer.n_heads * layer.v_dim
        yield Spec("attn_gate.weight", ((wide, dim), (layer.n_heads, dim)))


def _ffn(config: Config, layer: Layer, find: Find) -> Iterator[Spec]:
    routed = find("ffn_gate_inp.weight")
    if routed:
        yield from _experts(config, layer.ff, find)
    if not routed or config.traits.dense_and_experts:
        yield from _dense(config, layer.ff)


def _dense(config: Config, ff: int) -> Iterator[Spec]:
    shape, dim = config.traits.ffn, config.dim
    if shape == "gated":
        yield from _linear("ffn_gate", ff, dim)
    yield from _linear("ffn_up", ff * (2 if shape == "fused" else 1), dim)
    yield from _linear("ffn_down", dim, ff)


def _experts(config: Config, dense_ff: int, find: Find) -> Iterator[Spec]:
    e, dim = config.experts, config.dim
    n, ff = e.count, e.ff
    yield from _linear("ffn_gate_inp", n, dim)
    yield Spec("exp_probs_b.bias", ((n,),), "vector", False)
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
    found = find("ffn_up_shexp.weight") or (0,)
    width = found[0] if found[0] in allowed else allowed[0]
    yield Spec("ffn_up_shexp.weight", ((width, dim),))
    if find("ffn_gate_shexp.weight"):
        yield Spec("ffn_gate_shexp.weight", ((width, dim),))
    yield Spec("ffn_down_shexp.weight", ((dim, width),))
    if find("ffn_gate_inp_shexp.weight"):
        yield Spec("ffn_gate_inp_shexp.weight", ((dim,), (1, dim)))
