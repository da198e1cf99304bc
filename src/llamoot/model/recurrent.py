"""Layers with a state of fixed size: short convolution, Mamba, Mamba-2 and gated delta nets.

Each reads buffer h and fills buffer o. Their states lie in `Block.states`, one row for each
sequence that a runner keeps; the kernels clear a state where a sequence begins.
"""

import numpy as np

from llamoot.kernels.table import Buf, Floats, Kernels
from llamoot.model.block import Block, by_head
from llamoot.model.config import Config
from llamoot.model.scratch import Scratch
from llamoot.model.weights import Bound


def taps(w: Bound, name: str) -> Floats:
    """A convolution (C, K) of the file as the kernels read it: (K, C); three may stand for one."""
    names = [name] if name in w.vectors else [f"{name}_{part}" for part in "qkv"]
    parts = [w.vectors[n].reshape(-1, w.vectors[n].shape[-1]) for n in names]
    return np.ascontiguousarray(np.concatenate(parts).T)


class Recurrent:
    """What the kinds share: numbers, buffers, and a convolution with its activation."""

    def __init__(self, config: Config, scratch: Scratch) -> None:
        self.config, self.s = config, scratch

    def _conv(self, k: Kernels, block: Block, x: Buf, activate: bool = True) -> Buf:
        w, name = block.weights, block.layer.conv
        out = self.s.get("conv", x.data.shape[1])
        k.conv(out, x, taps(w, name), w.bias(name), block.states["conv"])
        if activate:
            k.act(out, out, "silu")
        return out


class ShortConv(Recurrent):
    """LFM2: out_proj(c * conv(b * x)), where b, c and x come from one product."""

    def run(self, k: Kernels, block: Block, h: Buf) -> None:
        w, dim = block.weights, self.config.dim
        wide = self.s.get("ssm_wide")
        k.matmul(wide, w.matrices["shortconv.in_proj"], h)
        b, c, x = (wide.columns(i * dim, (i + 1) * dim) for i in range(3))
        k.mul(x, x, b)
        y = self._conv(k, block, x, activate=False)
        k.mul(y, y, c)
        k.matmul(self.s.get("o"), w.matrices["shortconv.out_proj"], y)


class Mamba(Recurrent):
    """The first Mamba: every channel a head of its own, time steps from a low-rank product."""

    def run(self, k: Kernels, block: Block, h: Buf) -> None:
        m, w = self.config.ssm, block.weights
        wide = self.s.get("ssm_wide")
        k.matmul(wide, w.matrices["ssm_in"], h)
        x, z = wide.columns(0, m.inner), wide.columns(m.inner, 2 * m.inner)
        x = self._conv(k, block, x)
        low, cut = self.s.get("ssm_low"), m.heads + m.state
        k.matmul(low, w.matrices["ssm_x"], x)
        dt, b, c = (
            low.columns(0, m.heads),
            low.columns(m.heads, cut),
            low.columns(cut, cut + m.state),
        )
        for part, name in ((dt, "ssm_dt_norm"), (b, "ssm_b_norm"), (c, "ssm_c_norm")):
            if name in w.vectors or self.config.ssm.bare_norms:
                k.rmsnorm(part, part, w.vector(name), self.config.eps)
        step = self.s.get("ssm_dt")
        k.matmul(step, w.matrices["ssm_dt"], dt, w.bias("ssm_dt"))
        k.act(step, step, "softplus")
        y = self.s.get("ssm_out")
        k.scan(y, x, step, b, c, w.vectors["ssm_a"], block.states["scan"])
        k.mul_vector(x, x, w.vectors["ssm_d"])
        k.add(y, y, x)
        k.glu(y, z, y, "silu")
        k.matmul(self.s.get("o"), w.matrices["ssm_out"], y)


class Mamba2(Recurrent):
    """Mamba-2: heads with one decay each, keys and queries shared by groups of heads."""

    def run(self, k: Kernels, block: Block, h: Buf) -> None:
        m, w = self.config.ssm, block.weights
        mixed = m.inner + 2 * m.groups * m.state
        wide = self.s.get("ssm_wide")
        k.matmul(wide, w.matrices["ssm_in"], h)
        z, dt = wide.columns(0, m.inner), wide.columns(m.inner + mixed, m.inner + mixed + m.heads)
        k.add_vector(dt, dt, w.vectors["ssm_dt.bias"])
        k.act(dt, dt, "softplus")
        xbc = self._conv(k, block, wide.columns(m.inner, m.inner + mixed))
        cut = m.inner + m.groups * m.state
        x, b, c = xbc.columns(0, m.inner), xbc.columns(m.inner, cut), xbc.columns(cut, mixed)
        a = np.repeat(w.vectors["ssm_a"].reshape(m.heads, 1), m.state, axis=1)
        y = self.s.get("ssm_out")
        k.scan(y, x, dt, b, c, a, block.states["scan"])
        k.mul_vector(x, x, np.repeat(w.vectors["ssm_d"].ravel(), m.inner // m.heads))
        k.add(y, y, x)
        k.glu(y, z, y, "silu")
        if "ssm_norm" in w.vectors:
            k.rmsnorm(y, y, w.vectors["ssm_norm"].ravel(), self.config.eps, m.groups)
        k.matmul(self.s.get("o"), w.matrices["ssm_out"], y)


class Delta(Recurrent):
    """Gated delta net: an associative memory that is corrected, not only added to."""

    def run(self, k: Kernels, block: Block, h: Buf) -> None:
        c, m, w = self.config, self.config.ssm, block.weights
        mixed = self.s.get("qkv", 2 * m.groups * m.state + m.inner)
        k.matmul(mixed, w.matrices["attn_qkv"], h)
        z = self.s.get("attn_gate", m.inner)
        k.matmul(z, w.matrices["attn_gate"], h)
        beta, decay = self._rates(k, w, h)
        qkv = self._conv(k, block, mixed)
        wide = m.groups * m.state
        q, keys = qkv.columns(0, wide), qkv.columns(wide, 2 * wide)
        for part in (q, keys):  # to length 1, as llama.cpp does it
            k.rmsnorm(part, part, None, c.eps / m.state, m.groups)
            k.scale(part, part, m.state**-0.5)
        v, y = qkv.columns(2 * wide, 2 * wide + m.inner), self.s.get("ssm_out")
        tiled = "ssm_ba" not in w.matrices
        k.delta(y, q, keys, v, decay, beta, block.states["scan"], tiled)
        k.rmsnorm(y, y, w.vectors["ssm_norm"], c.eps, m.heads)
        k.glu(y, z, y, "silu")
        k.matmul(self.s.get("o"), w.matrices["ssm_out"], y)

    def _rates(self, k: Kernels, w: Bound, h: Buf) -> tuple[Buf, Buf]:
        """How much of an error is corrected, and the logarithm of what is kept, by head."""
        m = self.config.ssm
        beta, decay = self.s.get("ssm_beta"), self.s.get("ssm_decay")
        if "ssm_ba" in w.matrices:  # both in one product, by key head
            both, each = self.s.get("ssm_ba"), m.heads // m.groups
            k.matmul(both, w.matrices["ssm_ba"], h)
            split = by_head(both, m.groups)
            k.scale(by_head(beta, m.groups), split.columns(0, each), 1.0)
            k.scale(by_head(decay, m.groups), split.columns(each, 2 * each), 1.0)
        else:
            k.matmul(beta, w.matrices["ssm_beta"], h)
            k.matmul(decay, w.matrices["ssm_alpha"], h)
        k.act(beta, beta, "sigmoid")
        k.add_vector(decay, decay, w.vectors["ssm_dt.bias"])
        k.act(decay, decay, "softplus")
        k.mul_vector(decay, decay, w.vectors["ssm_a"].ravel())
        return beta, decay


class Kda(Recurrent):
    """Kimi's delta attention: a delta net whose every number fades at its own rate."""

    def run(self, k: Kernels, block: Block, h: Buf) -> None:
        c, m, w = self.config, self.config.ssm, block.weights
        mixed = self.s.get("qkv", 3 * m.inner)
        for i, name in enumerate(("attn_q", "attn_k", "attn_v")):
            k.matmul(mixed.columns(i * m.inner, (i + 1) * m.inner), w.matrices[name], h)
        qkv = self._conv(k, block, mixed)
        q, keys, v = (qkv.columns(i * m.inner, (i + 1) * m.inner) for i in range(3))
        for part in (q, keys):
            k.rmsnorm(part, part, None, c.eps / m.state, m.heads)
            k.scale(part, part, m.state**-0.5)
        beta, fade, gate = (self.s.get(n) for n in ("ssm_beta", "ssm_fade", "ssm_gate"))
        k.matmul(beta, w.matrices["ssm_beta"], h)
        k.act(beta, beta, "sigmoid")
        low = self.s.get("ssm_low")
        k.matmul(low, w.matrices["ssm_f_a"], h)
        k.matmul(fade, w.matrices["ssm_f_b"], low)
        k.add_vector(fade, fade, w.vectors["ssm_dt.bias"])
        k.act(fade, fade, "softplus")
        k.mul_vector(fade, fade, np.repeat(w.vectors["ssm_a"].ravel(), m.state))
        y = self.s.get("ssm_out")
        k.delta(y, q, keys, v, fade, beta, block.states["scan"], False)
        k.rmsnorm(y, y, w.vectors["ssm_norm"], c.eps, m.heads)
        k.matmul(low, w.matrices["ssm_g_a"], h)
        k.matmul(gate, w.matrices["ssm_g_b"], low)
        k.glu(y, gate, y, "sigmoid")
        k.matmul(self.s.get("o"), w.matrices["attn_output"], y)
