"""Embeddings that every layer has of its own, mixed from the token and its embedding (gemma 4)."""

from llamoot.kernels.table import Buf, Kernels
from llamoot.model.config import Config
from llamoot.model.scratch import Scratch
from llamoot.model.weights import Bound


class PerLayer:
    """Made once before the layers (`begin`), added gated at the end of each (`add`)."""

    def __init__(self, config: Config, scratch: Scratch) -> None:
        self.config, self.s = config, scratch

    def begin(self, k: Kernels, w: Bound, x: Buf) -> None:
        """Buffer ple (T, layers * width) from the token's own rows and a product of x."""
        c, own, made = self.config, self.s.get("ple"), self.s.get("ple_own")
        k.embed(own, w.matrices["per_layer_token_embd"], c.per_layer**0.5)
        k.matmul(made, w.matrices["per_layer_model_proj"], x)
        k.scale(made, made, c.dim**-0.5)
        k.rmsnorm(made, made, w.vector("per_layer_proj_norm"), c.eps, len(c.layers))
        k.add(own, own, made)
        k.scale(own, own, 0.5**0.5)

    def add(self, k: Kernels, i: int, w: Bound, x: Buf) -> None:
        """x += norm(proj(gelu(gate(x)) * the rows of layer i))"""
        c, rows = self.config, x.rows
        own = self.s.get("ple").columns(i * c.per_layer, (i + 1) * c.per_layer)
        if rows == "outputs":
            narrow = self.s.get("ple_out", rows=rows)
            k.gather(narrow, own)
            own = narrow
        gate, f = self.s.get("ple_gate", rows=rows), self.s.get("f", rows=rows)
        k.matmul(gate, w.matrices["inp_gate"], x)
        k.glu(gate, gate, own, "gelu")
        k.matmul(f, w.matrices["proj"], gate)
        k.rmsnorm(f, f, w.vector("post_norm"), c.eps)
        k.add(x, x, f)
