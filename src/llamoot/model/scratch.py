"""Working memory of a forward pass: named buffers, as wide as the widest layer needs them."""

from collections.abc import Iterator
from dataclasses import dataclass

from llamoot.kernels.table import Buf, Executor, Rows
from llamoot.model.config import Config
from llamoot.model.layers import Layer
from llamoot.model.tensors import Spec, conv_channels


@dataclass(frozen=True)
class Need:
    """One buffer: `width` floats for each of `per_row` rows of every token."""

    name: str
    width: int
    per_row: int = 1
    rows: Rows = "tokens"


def needs(config: Config, specs: list[list[Spec]]) -> list[Need]:
    """Every buffer of the model, widest first of each name."""
    widest: dict[str, Need] = {}
    for need in _each(config, specs):
        if need.name not in widest or widest[need.name].width < need.width:
            widest[need.name] = need
    return list(widest.values())


# Buffers that a product fills: matrix -> buffer.
FILLED = {
    "shortconv.in_proj": "ssm_wide",
    "ssm_in": "ssm_wide",
    "ssm_x": "ssm_low",
    "ssm_f_a": "ssm_low",
    "ssm_f_b": "ssm_fade",
    "ssm_g_b": "ssm_gate",
    "ssm_dt": "ssm_dt",
    "ssm_beta": "ssm_beta",
    "ssm_alpha": "ssm_decay",
    "ssm_ba": "ssm_ba",
    "attn_q_a": "q_low",
    "attn_q_b": "q",
    "attn_kv_a_mqa": "kv_low",
    "attn_kv_b": "kv_both",
    "attn_qkv": "qkv",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_gate": "attn_gate",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_gate_shexp": "gate",
    "ffn_up_shexp": "up",
    "ffn_gate_inp_shexp": "shared_gate",
    "ffn_gate_inp": "router",
    "ffn_up_exps": "expert_up",
    "ffn_gate_exps": "expert_gate",
    "ffn_gate_up_exps": "expert_up",
    "ffn_down_exps": "expert_down",
}


def _each(config: Config, specs: list[list[Spec]]) -> Iterator[Need]:
    for name in ("x", "h", "o", "f", "x_out", "h_out", "o_out"):
        yield Need(name, config.dim)
    yield Need("hidden", config.dim, rows="outputs")
    if not config.traits.headless:
        yield Need("logits", config.n_vocab, rows="logits")
    used = config.experts.used
    for layer in config.layers:
        yield Need("attended", max(layer.n_heads * layer.v_dim, 1))
        if layer.kind == "latent":
            yield from _latent(layer)
        if layer.recurrent:
            yield Need("conv", conv_channels(config, layer))
            yield Need("qkv", conv_channels(config, layer))
            yield Need("ssm_out", max(config.ssm.inner, 1))
            yield Need("ssm_beta", max(config.ssm.heads, 1))
            yield Need("ssm_decay", max(config.ssm.heads, 1))
        yield Need("v", max(layer.n_kv_heads * layer.v_dim, 1))
        if config.traits.q_gated and layer.cached:
            yield Need("q_own", layer.n_heads * layer.head_dim)
            yield Need("q_gate", layer.n_heads * layer.head_dim)
    for spec in (spec for layer_specs in specs[1:] for spec in layer_specs):
        matrix = spec.name.removesuffix(".weight").split(".", 2)[-1]
        if matrix == "attn_v_b":
            yield Need("values", spec.shapes[0][0] * spec.shapes[0][1])
        if matrix in FILLED and spec.kind == "matrix":
            shape = spec.shapes[0] if len(spec.shapes[0]) > 1 else (1, 1)
            per_row = used if matrix.endswith("_exps") else 1
            yield Need(FILLED[matrix], shape[-2], per_row)
    if config.per_layer:
        yield Need("ple", config.per_layer * len(config.layers))
        yield Need("ple_own", config.per_layer * len(config.layers))
        yield Need("ple_out", config.per_layer)
        yield Need("ple_gate", config.per_layer)
    if used:
        yield Need("expert_ids", used)
        yield Need("expert_weights", used)
        yield Need("expert_input", config.dim if config.traits.experts_weigh_input else 1, used)
        yield Need("routed", config.dim)
        t = config.traits
        if t.router_reads_input:
            yield Need("early_out", config.experts.count)
        elif t.experts_norm or t.doubled_norms:
            yield Need("early", config.dim)
            yield Need("early_out", config.dim)


def _latent(layer: Layer) -> Iterator[Need]:
    """Queries and keys as they meet in the cache, and the values of all heads after it."""
    yield Need("q_wide", layer.n_heads * layer.head_dim)
    yield Need("k", layer.n_kv_heads * layer.head_dim)
    yield Need("v", layer.n_kv_heads * layer.v_dim)
    yield Need("head_ids", layer.n_heads)


class Scratch:
    """The buffers, made once; `get` hands out the columns that a layer uses."""

    def __init__(self, wanted: list[Need], executor: Executor) -> None:
        self._buffers = {n.name: executor.buffer(n.width, n.rows, n.per_row) for n in wanted}
        self._views: dict[tuple[str, int, Rows], Buf] = {}

    def get(self, name: str, width: int = 0, rows: Rows | None = None) -> Buf:
        """Buffer `name`, its first `width` columns (0: all), its live rows counted as `rows`."""
        whole = self._buffers[name]
        width, rows = width or whole.data.shape[1], rows or whole.rows
        if width == whole.data.shape[1] and rows == whole.rows:
            return whole
        key = (name, width, rows)
        if key not in self._views:
            data = whole.data[:, :width]
            self._views[key] = Buf(data, rows, whole.per_row, whole)
        return self._views[key]
