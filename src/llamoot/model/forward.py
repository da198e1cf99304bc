"""The forward pass, written once over the kernel table: it asks for traits, never for a name.

`Forward` is a function of the kernels: with twins its calls run at once, with a recorder they
become the tape. What changes from step to step is in the step header, so nothing here depends on
how many tokens there are. Buffers: x is the residual stream, h what a norm made of it, o what
attention returns, f what the feed-forward returns. The last layer goes on with the rows whose
logits are wanted, and with no others.
"""

from collections.abc import Sequence
from typing import Protocol

from llamoot.kernels.table import Buf, Kernels
from llamoot.model.attention import Attend
from llamoot.model.block import Block, norm
from llamoot.model.config import Config
from llamoot.model.feed import Feed
from llamoot.model.latent import Latent
from llamoot.model.perlayer import PerLayer
from llamoot.model.recurrent import Delta, Kda, Mamba, Mamba2, ShortConv
from llamoot.model.scratch import Scratch
from llamoot.model.weights import Bound, Weights


class Mixer(Protocol):
    """The half of a layer in which tokens meet: buffer o is what it makes of h."""

    def run(self, k: Kernels, block: Block, h: Buf) -> None: ...


class Forward:
    """The whole pass. Logits end in buffer `logits`, final hidden rows in `hidden`."""

    def __init__(
        self, config: Config, weights: Weights, blocks: Sequence[Block], scratch: Scratch
    ) -> None:
        self.config, self.weights, self.blocks, self.s = config, weights, blocks, scratch
        self.feed = Feed(config, scratch)
        self.own = PerLayer(config, scratch)
        self.mixers: dict[str, Mixer] = {
            "attention": Attend(config, scratch),
            "latent": Latent(config, scratch),
            "conv": ShortConv(config, scratch),
            "mamba": Mamba(config, scratch),
            "mamba2": Mamba2(config, scratch),
            "delta": Delta(config, scratch),
            "kda": Kda(config, scratch),
        }

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
        if c.per_layer:
            self.own.begin(k, w, x)
        if c.traits.embd_bare_norm:
            k.rmsnorm(x, x, None, c.eps)

    def _layer(self, k: Kernels, i: int, block: Block) -> None:
        c, w, t = self.config, block.weights, self.config.traits
        x, h, o = self.s.get("x"), self.s.get("h"), self.s.get("o")
        into, early, mixes = x, self.feed.before(k, w, x), block.layer.kind != "none"
        if t.attn_norm:
            norm(k, c, h, x, w, t.attn_norm)
            into = h
        if mixes:
            self._mix(k, block, x, into)
        if i == len(self.blocks) - 1:
            x, into, o = self._only_outputs(k, into is h, mixes)
            early = self._gathered(k, early) if early is not None else None
        own = bool(t.ffn_norm) and (t.bare_norm or t.ffn_norm in w.vectors)
        parallel = c.parallel or (t.parallel == "normless" and not own)
        if mixes:
            if t.attn_post_norm and not t.norm_after_add:
                norm(k, c, o, o, w, t.attn_post_norm)
            if not parallel:
                k.add(x, x, o, c.residual_scale)
                into = x
            if t.norm_after_add:
                norm(k, c, x, x, w, t.attn_post_norm)
        if block.layer.has_ffn:
            self._feed(k, i, w, x, into if parallel or not mixes else x, own, early)
        if parallel:
            k.add(x, x, o, c.residual_scale)
        if c.per_layer:
            self.own.add(k, i, w, x)
        if "layer_output_scale" in w.vectors:
            k.scale(x, x, float(w.vectors["layer_output_scale"][0]))

    def _feed(
        self, k: Kernels, i: int, w: Bound, x: Buf, into: Buf, own: bool, early: Buf | None
    ) -> None:
        """x += feed-forward(into), which gets a norm of x where the layer has its `own`."""
        c, t, rows = self.config, self.config.traits, x.rows
        f = self.s.get("f", rows=rows)
        if own:
            into = self.s.get("h" if rows == "tokens" else "h_out", rows=rows)
            norm(k, c, into, x, w, t.ffn_norm)
        self.feed.run(k, i, w, f, into, x if t.doubled_norms else early)
        if t.ffn_post_norm and not t.norm_after_add:
            norm(k, c, f, f, w, t.ffn_post_norm)
        k.add(x, x, f, c.residual_scale)
        if t.norm_after_add:
            norm(k, c, x, x, w, t.ffn_post_norm)

    def _mix(self, k: Kernels, block: Block, x: Buf, into: Buf) -> None:
        """o = what the layer's mixer makes of `into`."""
        f, o = self.s.get("f"), self.s.get("o")
        if block.layer.kind == "beside":
            self.mixers["attention"].run(k, block, into)
            k.scale(f, o, 1.0)
            self.mixers[self.config.traits.recurrent].run(k, block, into)
            k.add(o, o, f)
            return
        # Falcon-40B gives attention a norm of its own and leaves the first to the feed-forward.
        if "attn_norm_2" in block.weights.vectors:
            norm(k, self.config, f, x, block.weights, "attn_norm_2")
            into = f
        self.mixers[block.layer.kind].run(k, block, into)

    def _only_outputs(self, k: Kernels, normed: bool, mixes: bool) -> tuple[Buf, Buf, Buf]:
        """Rows whose logits are wanted: of the residual, of its norm and of the mixer's result."""
        rows = []
        for name, needed in (("x", True), ("h", normed), ("o", mixes)):
            out = self.s.get(f"{name}_out", rows="outputs")
            if needed:
                k.gather(out, self.s.get(name))
            rows.append(out)
        return rows[0], rows[1] if normed else rows[0], rows[2]

    def _gathered(self, k: Kernels, early: Buf) -> Buf:
        out = self.s.get("early_out", early.data.shape[1], "outputs")
        k.gather(out, early)
        return out

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
