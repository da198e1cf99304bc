"""Attention over the cache: one fused product or three, norms and positions, output gate."""

from llamoot.kernels.table import Buf, Kernels
from llamoot.model.block import Block, by_head, norm
from llamoot.model.config import Config
from llamoot.model.layers import Layer
from llamoot.model.scratch import Scratch
from llamoot.model.weights import Bound


class Attend:
    """Plain attention: every query head reads the keys and values of its key/value head."""

    def __init__(self, config: Config, scratch: Scratch) -> None:
        self.config, self.s = config, scratch

    def run(self, k: Kernels, block: Block, h: Buf) -> None:
        """Buffer o = what attention makes of h"""
        layer, w, how = block.layer, block.weights, block.how
        q, keys, values = self._project(k, layer, w, h)
        self._place(k, block, q, keys)
        if layer.shares < 0:
            if self.config.traits.v_norm:
                k.rmsnorm(values, values, None, self.config.eps, layer.n_kv_heads)
            k.store(block.keys, keys, values)
        attended = self.s.get("attended", layer.n_heads * layer.v_dim)
        k.attend(attended, q, block.keys, how)
        if self.config.traits.q_gated:
            k.mul(attended, attended, self.s.get("q_gate"))
        if "attn_gate" in w.matrices:
            gate_w = w.matrices["attn_gate"]
            gate = self.s.get("attn_gate", gate_w.shape[0])
            k.matmul(gate, gate_w, h)
            k.act(gate, gate, self.config.traits.attn_gate)
            k.mul(attended, attended, gate)
        o = self.s.get("o")
        k.matmul(o, w.matrices["attn_output"], attended, w.bias("attn_output"))
        if self.config.attn_out_scale != 1.0:
            k.scale(o, o, self.config.attn_out_scale)

    def _project(self, k: Kernels, layer: Layer, w: Bound, h: Buf) -> tuple[Buf, Buf, Buf]:
        """Queries, keys and values of h, from one fused product or three."""
        n_q, n_k = layer.n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
        n_v = layer.n_kv_heads * layer.v_dim
        if "attn_qkv" in w.matrices:
            qkv = self.s.get("qkv", n_q + n_k + n_v)
            k.matmul(qkv, w.matrices["attn_qkv"], h, w.bias("attn_qkv"))
            if self.config.clamp_qkv:
                k.clamp(qkv, qkv, self.config.clamp_qkv)
            cut = n_q + n_k
            return qkv.columns(0, n_q), qkv.columns(n_q, cut), qkv.columns(cut, cut + n_v)
        if self.config.traits.q_gated:
            return self._gated(k, layer, w, h)
        parts = self.s.get("q", n_q), self.s.get("k", n_k), self.s.get("v", n_v)
        for name, part in zip(("attn_q", "attn_k", "attn_v"), parts):
            if name not in w.matrices:  # another layer's, or the values are the keys
                if name == "attn_v" and layer.shares < 0:
                    k.scale(part, parts[1], 1.0)
                continue
            k.matmul(part, w.matrices[name], h, w.bias(name))
            if self.config.clamp_qkv:
                k.clamp(part, part, self.config.clamp_qkv)
        return parts

    def _gated(self, k: Kernels, layer: Layer, w: Bound, h: Buf) -> tuple[Buf, Buf, Buf]:
        """The same where each head's query is followed by the gate of its output."""
        heads, dim = layer.n_heads, layer.head_dim
        both, q, gate = (self.s.get(name) for name in ("q", "q_own", "q_gate"))
        keys, values = self.s.get("k"), self.s.get("v")
        for name, out in (("attn_q", both), ("attn_k", keys), ("attn_v", values)):
            k.matmul(out, w.matrices[name], h, w.bias(name))
        split = by_head(both, heads)
        k.scale(by_head(q, heads), split.columns(0, dim), 1.0)
        k.act(by_head(gate, heads), split.columns(dim, 2 * dim), "sigmoid")
        return q, keys, values

    def _place(self, k: Kernels, block: Block, q: Buf, keys: Buf) -> None:
        """Norms and positions of queries and keys, in the order of the architecture."""
        c, t, layer, w = self.config, self.config.traits, block.layer, block.weights
        pairs = ((q, layer.n_heads, "attn_q_norm"), (keys, layer.n_kv_heads, "attn_k_norm"))
        for late in (False, True):
            for buf, heads, name in pairs:
                weight = w.vector(name)
                if weight is not None and t.qk_norm_after_rope == late:
                    whole = weight.ndim == 1 and weight.size != layer.head_dim
                    norm(k, c, buf, buf, w, name, 1 if whole else heads)
                if late and t.qk_norm_l2 and block.rope is not None:
                    k.rmsnorm(buf, buf, None, c.eps, heads)
                if not late and block.rope is not None:
                    k.rope(buf, heads, block.rope)
        if c.temperature_scale and (t.temperature == "all" or block.rope is None):
            k.scale_by_pos(q, q, c.temperature_floor, c.temperature_scale, t.temperature_offset)
