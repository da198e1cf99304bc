"""One layer, ready to run, and what every kind of layer shares."""

from dataclasses import dataclass

from llamoot.kernels.table import Attention, Buf, Cache, Floats, Kernels, Rope
from llamoot.model.config import Config
from llamoot.model.layers import Layer
from llamoot.model.weights import Bound


@dataclass(eq=False)
class Block:
    """A layer's numbers, weights and memory. A layer without attention has no `how`."""

    layer: Layer
    weights: Bound
    rope: Rope | None
    how: Attention
    cache: Cache | None
    states: dict[str, Floats]  # of a recurrent layer: (slots, …)

    @property
    def keys(self) -> Cache:
        """The cache of a layer that has one."""
        assert self.cache is not None, "this layer attends to nothing"
        return self.cache


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


def by_head(buf: Buf, heads: int) -> Buf:
    """The same memory with one row for each head of each token; `buf` must be whole rows."""
    data = buf.data.reshape(buf.data.shape[0] * heads, -1)
    return Buf(data, buf.rows, buf.per_row * heads, buf.root or buf)
