"""The feed-forward half of a layer: gated, plain or fused, dense or a mixture of experts."""

import numpy as np

from llamoot.kernels.table import Buf, Kernels, Routing, Weight
from llamoot.model.config import Config
from llamoot.model.scratch import Scratch
from llamoot.model.weights import Bound

ALPHA, LIMIT = 1.702, 7.0  # gpt-oss


class Feed:
    """f = feed-forward(h), for the rows that `f` counts."""

    def __init__(self, config: Config, scratch: Scratch) -> None:
        self.config, self.s = config, scratch

    def run(self, k: Kernels, i: int, w: Bound, f: Buf, h: Buf, early: Buf | None) -> None:
        """Layer `i` with weights `w`; `early` is what `before` made of the layer's input."""
        c, t = self.config, self.config.traits
        if "ffn_gate_inp" not in w.matrices:
            self._dense(k, w, "", f, h, 0.0)
            return
        if t.doubled_norms:
            self._doubled(k, w, f, h, early)
            return
        self._routed(k, w, f, h, early, c.glu_limits[i])
        for kind, limit in (("_shexp", c.glu_limits_shared[i]), ("", 0.0)):
            if f"ffn_up{kind}" in w.matrices:
                other = self.s.get("routed", rows=f.rows)
                self._dense(k, w, kind, other, h, limit)
                if kind and "ffn_gate_inp_shexp" in w.matrices:
                    gate = self.s.get("shared_gate", rows=f.rows)
                    k.matmul(gate, w.matrices["ffn_gate_inp_shexp"], h)
                    k.act(gate, gate, "sigmoid")
                    k.mul(other, other, gate)
                k.add(f, f, other)
                scale = t.shared_scale if kind else t.dense_and_experts
                if scale != 1.0:
                    k.scale(f, f, scale)

    def _doubled(self, k: Kernels, w: Bound, f: Buf, h: Buf, x: Buf | None) -> None:
        """f = norm(dense(h)) + norm(experts(norm(x))), routed by a scaled norm of x (gemma 4)."""
        assert x is not None
        c, normed, rows = self.config, self.s.get("early", rows=f.rows), f.rows
        k.rmsnorm(normed, x, w.vectors["ffn_gate_inp.scale"] * np.float32(c.dim**-0.5), c.eps)
        router = self.s.get("router", c.experts.count, rows)
        k.matmul(router, w.matrices["ffn_gate_inp"], normed)
        k.rmsnorm(normed, x, w.vector("pre_ffw_norm_2"), c.eps)
        self._chosen(k, w, f, normed, router, 0.0)
        k.rmsnorm(f, f, w.vector("post_ffw_norm_2"), c.eps)
        other = self.s.get("routed", rows=rows)
        self._dense(k, w, "", other, h, 0.0)
        k.rmsnorm(other, other, w.vector("post_ffw_norm_1"), c.eps)
        k.add(f, f, other)

    def before(self, k: Kernels, w: Bound, x: Buf) -> Buf | None:
        """What the experts need of the layer's input: its routing, or a norm of it, or nothing."""
        t = self.config.traits
        if "ffn_gate_inp" not in w.matrices:
            return None
        if t.router_reads_input:
            router = self.s.get("router", self.config.experts.count)
            k.matmul(router, w.matrices["ffn_gate_inp"], x, w.bias("ffn_gate_inp"))
            return router
        if t.experts_norm:
            normed = self.s.get("early")
            k.rmsnorm(normed, x, w.vector(t.experts_norm), self.config.eps)
            return normed
        return None

    def _dense(self, k: Kernels, w: Bound, kind: str, f: Buf, h: Buf, limit: float) -> None:
        """`kind` is "" or "_shexp", the end of the tensors' names."""
        t, act = self.config.traits, self.config.traits.act
        alpha, limit = (ALPHA, LIMIT) if t.clamped else (0.0, limit)
        up_w, down_w = w.matrices[f"ffn_up{kind}"], w.matrices[f"ffn_down{kind}"]
        width = down_w.shape[1]
        up = self.s.get("up", up_w.shape[0], f.rows)
        k.matmul(up, up_w, h, w.bias(f"ffn_up{kind}"))
        inner = up
        if f"ffn_gate{kind}" in w.matrices:
            gate = self.s.get("gate", width, f.rows)
            name = f"ffn_gate{kind}"
            k.matmul(gate, w.matrices[name], h, w.bias(name))
            k.glu(up, gate, up, act, limit, alpha)
        elif up_w.shape[0] == 2 * width:
            inner = up.columns(0, width)
            k.glu(inner, inner, up.columns(width, 2 * width), act, limit, alpha)
        else:
            k.act(up, up, act)
            scales = w.vector("ffn.act.scales")
            if scales is not None:
                k.mul_vector(up, up, np.float32(1) / scales)
        k.matmul(f, down_w, inner, w.bias(f"ffn_down{kind}"))

    def _routed(
        self, k: Kernels, w: Bound, f: Buf, h: Buf, early: Buf | None, limit: float
    ) -> None:
        e, t, rows = self.config.experts, self.config.traits, f.rows
        if early is not None and t.router_reads_input:
            router = early
        else:
            h = early if early is not None else h
            router = self.s.get("router", e.count, rows)
            k.matmul(router, w.matrices["ffn_gate_inp"], h, w.bias("ffn_gate_inp"))
        self._chosen(k, w, f, h, router, limit)

    def _chosen(self, k: Kernels, w: Bound, f: Buf, h: Buf, router: Buf, limit: float) -> None:
        """f = the weighted sum of what the chosen experts make of h"""
        t, rows = self.config.traits, f.rows
        ids, weights = self.s.get("expert_ids", rows=rows), self.s.get("expert_weights", rows=rows)
        k.route(ids, weights, router, self._routing(w))
        if t.experts_weigh_input:
            spread = self.s.get("expert_input", rows=rows)
            k.spread(spread, h, weights)
            h = spread
        inner = self._expert_inner(k, w, h, ids, limit)
        down = self.s.get("expert_down", rows=rows)
        k.matmul_experts(down, w.matrices["ffn_down_exps"], inner, ids, w.bias("ffn_down_exps"))
        k.combine_experts(f, down, None if t.experts_weigh_input else weights)

    def _expert_inner(self, k: Kernels, w: Bound, h: Buf, ids: Buf, limit: float) -> Buf:
        """Activated inner rows of every chosen expert, (T*k, ff)."""
        t, rows = self.config.traits, ids.rows
        act = t.experts_act or t.act
        alpha, limit = (ALPHA, LIMIT) if t.clamped else (0.0, limit)
        fused = "ffn_gate_up_exps" if "ffn_gate_up_exps" in w.matrices else "ffn_up_exps"
        up_w: Weight = w.matrices[fused]
        up = self.s.get("expert_up", up_w.shape[1], rows)
        k.matmul_experts(up, up_w, h, ids, w.bias(fused))
        if fused == "ffn_gate_up_exps":
            half = up_w.shape[1] // 2
            inner = up.columns(0, half)
            k.glu(inner, inner, up.columns(half, 2 * half), act, limit, alpha)
            return inner
        if "ffn_gate_exps" in w.matrices:
            gate = self.s.get("expert_gate", up_w.shape[1], rows)
            name = "ffn_gate_exps"
            k.matmul_experts(gate, w.matrices[name], h, ids, w.bias(name))
            k.glu(up, gate, up, act, limit, alpha)
        else:
            k.act(up, up, act)
        return up

    def _routing(self, w: Bound) -> Routing:
        e = self.config.experts
        return Routing(
            top_k=e.used,
            gate=e.gate,
            bias=w.vectors.get("exp_probs_b.bias", w.vector("exp_probs_b")),
            normalize=e.normalize,
            scale=e.scale,
            factor=w.vector("ffn_down_exps.scale"),
            n_groups=e.n_groups,
            top_groups=e.top_groups,
            scale_input=self.config.traits.experts_weigh_input,
        )
