"""Latent attention (MLA): keys and values of all heads come from one short row per position.

Absorbed form: queries are carried into the latent space, so the cache holds one key/value head
[rotated part | latent] and attention is that of one shared head; the values are its latent part.
Where a file has the joint matrix `attn_kv_b` instead, keys and values are expanded per head.
Each head is laid out with its rotated part first, because a kernel rotates the first dimensions.
"""

import numpy as np

from llamoot.kernels.table import Buf, Kernels
from llamoot.model.block import Block, by_head
from llamoot.model.config import Config
from llamoot.model.scratch import Scratch
from llamoot.model.weights import Bound


class Latent:
    """Buffer o = latent attention of h."""

    def __init__(self, config: Config, scratch: Scratch) -> None:
        self.config, self.s = config, scratch

    def run(self, k: Kernels, block: Block, h: Buf) -> None:
        c, w, heads = self.config, block.weights, block.layer.n_heads
        low = self.s.get("kv_low")
        k.matmul(low, w.matrices["attn_kv_a_mqa"], h)
        latent, turned = low.columns(0, c.kv_rank), low.columns(c.kv_rank, c.kv_rank + c.n_turned)
        k.rmsnorm(latent, latent, w.vector("attn_kv_a_norm"), c.eps)
        q = by_head(self._queries(k, w, h), heads)
        plain, pe = q.columns(0, c.n_plain), q.columns(c.n_plain, c.n_plain + c.n_turned)
        if "attn_kv_b" in w.matrices:
            attended = self._expanded(k, block, latent, turned, plain, pe)
        else:
            attended = self._absorbed(k, block, latent, turned, plain, pe)
        k.matmul(self.s.get("o"), w.matrices["attn_output"], attended, w.bias("attn_output"))

    def _queries(self, k: Kernels, w: Bound, h: Buf) -> Buf:
        q = self.s.get("q")
        if "attn_q_a" not in w.matrices:
            k.matmul(q, w.matrices["attn_q"], h)
            return q
        low = self.s.get("q_low")
        k.matmul(low, w.matrices["attn_q_a"], h)
        k.rmsnorm(low, low, w.vector("attn_q_a_norm"), self.config.eps)
        k.matmul(q, w.matrices["attn_q_b"], low)
        return q

    def _absorbed(
        self, k: Kernels, block: Block, latent: Buf, turned: Buf, plain: Buf, pe: Buf
    ) -> Buf:
        c, w, heads = self.config, block.weights, block.layer.n_heads
        ids = self._head_ids(heads)
        wide, key = self.s.get("q_wide"), self.s.get("k")
        split = by_head(wide, heads)
        k.scale(split.columns(0, c.n_turned), pe, 1.0)
        width = c.n_turned + c.kv_rank
        k.matmul_experts(split.columns(c.n_turned, width), w.matrices["attn_k_b"], plain, ids)
        k.scale(key.columns(0, c.n_turned), turned, 1.0)
        k.scale(key.columns(c.n_turned, width), latent, 1.0)
        if block.rope is not None:
            k.rope(wide, heads, block.rope)
            k.rope(key, 1, block.rope)
        self._temper(k, wide)
        k.store(block.keys, key, key.columns(c.n_turned, width))
        attended = self.s.get("attended")
        k.attend(attended, wide, block.keys, block.how)
        values = self.s.get("values")
        k.matmul_experts(
            by_head(values, heads), w.matrices["attn_v_b"], by_head(attended, heads), ids
        )
        return values

    def _expanded(
        self, k: Kernels, block: Block, latent: Buf, turned: Buf, plain: Buf, pe: Buf
    ) -> Buf:
        c, w, heads = self.config, block.weights, block.layer.n_heads
        both, wide, keys, values = (self.s.get(n) for n in ("kv_both", "q_wide", "k", "v"))
        k.matmul(both, w.matrices["attn_kv_b"], latent)
        split, width = by_head(both, heads), c.n_turned + c.n_plain
        for out, own, shared in ((wide, plain, pe), (keys, split.columns(0, c.n_plain), None)):
            parts = by_head(out, heads)
            if c.n_plain:
                k.scale(parts.columns(c.n_turned, width), own, 1.0)
            if shared is not None:
                k.scale(parts.columns(0, c.n_turned), shared, 1.0)
            else:
                k.spread(parts.columns(0, c.n_turned), turned, self._ones(heads))
            if block.rope is not None:
                k.rope(out, heads, block.rope)
        k.scale(by_head(values, heads), split.columns(c.n_plain, split.data.shape[1]), 1.0)
        self._temper(k, wide)
        k.store(block.keys, keys, values)
        attended = self.s.get("attended")
        k.attend(attended, wide, block.keys, block.how)
        return attended

    def _temper(self, k: Kernels, q: Buf) -> None:
        c = self.config
        if c.temperature_scale:
            k.scale_by_pos(q, q, c.temperature_floor, c.temperature_scale)

    def _head_ids(self, heads: int) -> Buf:
        """0, 1, … heads - 1 in every row: each head is the expert of its own row."""
        ids = self.s.get("head_ids")
        ids.data[:] = np.arange(heads, dtype=np.float32)
        return ids

    def _ones(self, heads: int) -> Buf:
        ones = self.s.get("head_ids", heads)
        ones.data[:] = 1
        return ones
