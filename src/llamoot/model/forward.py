"""The forward pass, written once over the kernel table: it asks for traits, never for a name.

`Forward` is a function of the kernels: with twins its calls run at once, with a recorder they
become the tape. What changes from step to step is in the step header, so nothing here depends on
how many tokens there are. Buffers: x is the residual stream, h what a norm made of it, o what
attention returns, f what the feed-forward returns. The last layer goes on with the rows whose
logits are wanted, and with no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llamoot.kernels.table import Attention, Buf, Cache, Kernels, Rope
from llamoot.model.config import Config, Layer
from llamoot.model.feed import Feed
from llamoot.model.scratch import Scratch
from llamoot.model.weights import Bound, Weights


@dataclass(eq=False)
class Block:
    """One layer, ready to run."""

    layer: Layer
    weights: Bound
    rope: Rope | None
    how: Attention
    cache: Cache


def norm(
    k: Kernels, config: Config, out: Buf, x: Buf, weights: Bound, name: str, groups: int = 1
) -> None:
    """out = the norm `name` of x, of the architecture's kind."""
    weight, bias = weights.vector(name), weights.bias(name)
    t = config.traits
    post = t.post_eps and name in (t.attn_post_norm, t.ffn_post_norm)
    eps = t.post_eps if post else config.eps
    if config.norm == "layer":
        k.layernorm(out, x, weight, bias, eps, groups)
        return
    k.rmsnorm(out, x, weight, eps, groups)
    if bias is not None:
        k.add_vector(out, out, bias)


class Forward:
    """The whole pass. Logits end in buffer `logits`, final hidden rows in `hidden`."""

    def __init__(
        self, config: Config, weights: Weights, blocks: Sequence[Block], scratch: Scratch
    ) -> None:
        self.config, self.weights, self.blocks, self.s = config, weights, blocks, scratch
        self.feed = Feed(config, scratch)

    def __call__(self, k: Kernels) -> None:
        self._embed(k)
        for i, block in enumerate(self.blocks):
            self._layer(k, i, block)
        self._head(k)

    def _embed(self, k: Kernels) -> None:
        c, w, x = self.config, self.weights.model, self.s.get("x")
        k.embed(x, w.matrices["token_embd"], c.embed_scale)
        if "token_types" in w.vectors:
            k.add_vector(x, x, w.vectors["token_types"].reshape(-1, c.dim)[0].copy())
        if c.traits.learned_positions:
            k.embed_pos(x, x, w.matrices["position_embd"])
        if c.traits.embd_norm:
            norm(k, c, x, x, w, c.traits.embd_norm)
        if c.traits.embd_bare_norm:
            k.rmsnorm(x, x, None, c.eps)

    def _layer(self, k: Kernels, i: int, block: Block) -> None:
        c, w, t = self.config, block.weights, self.config.traits
        x, h, o = self.s.get("x"), self.s.get("h"), self.s.get("o")
        into, early = x, self.feed.before(k, w, x)
        if t.attn_norm:
            norm(k, c, h, x, w, t.attn_norm)
            into = h
        # Falcon-40B gives attention a norm of its own and leaves the first to the feed-forward.
        second = "attn_norm_2" in w.vectors
        if second:
            norm(k, c, self.s.get("f"), x, w, "attn_norm_2")
        self._attention(k, block, self.s.get("f") if second else into)
        if i == len(self.blocks) - 1:
            x, into, o = self._only_outputs(k, into is h)
            early = self._gathered(k, early) if early is not None else None
        rows = x.rows
        h, f = (
            self.s.get("h" if rows == "tokens" else "h_out", rows=rows),
            self.s.get("f", rows=rows),
        )
        if t.attn_post_norm and not t.norm_after_add:
            norm(k, c, o, o, w, t.attn_post_norm)
        own = bool(t.ffn_norm) and (t.bare_norm or t.ffn_norm in w.vectors)
        parallel = c.parallel or (t.parallel == "normless" and not own)
        if not parallel:
            k.add(x, x, o, c.residual_scale)
            if t.norm_after_add:
                norm(k, c, x, x, w, t.attn_post_norm)
            into = x
        if own:
            norm(k, c, h, x, w, t.ffn_norm)
            into = h
        self.feed.run(k, i, w, f, into, early)
        if t.ffn_post_norm and not t.norm_after_add:
            norm(k, c, f, f, w, t.ffn_post_norm)
        if parallel:
            k.add(x, x, o, c.residual_scale)
        k.add(x, x, f, c.residual_scale)
        if t.norm_after_add:
            norm(k, c, x, x, w, t.ffn_post_norm)

    def _only_outputs(self, k: Kernels, normed: bool) -> tuple[Buf, Buf, Buf]:
        """Rows whose logits are wanted: of the residual, of its norm and of attention's result."""
        rows = []
        for name, needed in (("x", True), ("h", normed), ("o", True)):
            out = self.s.get(f"{name}_out", rows="outputs")
            if needed:
                k.gather(out, self.s.get(name))
            rows.append(out)
        return rows[0], rows[1] if normed else rows[0], rows[2]

    def _gathered(self, k: Kernels, early: Buf) -> Buf:
        out = self.s.get("early_out", early.data.shape[1], "outputs")
        k.gather(out, early)
        return out

    def _attention(self, k: Kernels, block: Block, h: Buf) -> None:
        """o = what attention makes of h"""
        layer, w, how = block.layer, block.weights, block.how
        q, keys, values = self._project(k, layer, w, h)
        self._place(k, block, q, keys)
        k.store(block.cache, keys, values)
        attended = self.s.get("attended", layer.n_heads * layer.v_dim)
        k.attend(attended, q, block.cache, how)
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
        parts = self.s.get("q", n_q), self.s.get("k", n_k), self.s.get("v", n_v)
        for name, part in zip(("attn_q", "attn_k", "attn_v"), parts):
            k.matmul(part, w.matrices[name], h, w.bias(name))
            if self.config.clamp_qkv:
                k.clamp(part, part, self.config.clamp_qkv)
        return parts

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

    def _head(self, k: Kernels) -> None:
        c, w = self.config, self.weights.model
        x, hidden = self.s.get("x_out", rows="outputs"), self.s.get("hidden")
        if c.traits.output_norm:
            norm(k, c, hidden, x, w, c.traits.output_norm)
        else:
            k.scale(hidden, x, 1.0)
        if c.traits.headless:
            return
        logits = self.s.get("logits")
        k.matmul(logits, w.matrices["output"], hidden, w.bias("output"))
        if c.logit_scale != 1.0:
            k.scale(logits, logits, c.logit_scale)
        if c.final_softcap:
            k.softcap(logits, logits, c.final_softcap)
