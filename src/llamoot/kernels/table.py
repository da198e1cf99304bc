"""The kernel table: every operation a forward pass may use, and what each promises.

`Twins` (numpy, at once, exact) and `Recorder` (compiled, written to the tape) implement it with
the same names and arguments. Output first. A forward pass knows nothing else of either.

Shapes: T live tokens, O live outputs (rows whose logits are wanted), H heads, D head dimension.
Every activation is float32. A `Buf` is allocated at capacity; kernels work on its live rows only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Rows = Literal["tokens", "outputs", "logits"]
CacheType = Literal["f32", "f16", "q8_0"]
Act = Literal[
    "silu", "gelu", "gelu_quick", "gelu_erf", "relu", "relu2", "sigmoid", "softplus", "tanh"
]


@dataclass(eq=False)
class Buf:
    """Working memory: `data` is (capacity, width), rows possibly strided (a column slice).

    `rows` says which count of the step header is alive; experts' buffers hold `per_row` rows
    for each live one (token-major). An operation works on the live rows of its output; "logits"
    are the first of the outputs, none when only hidden rows are wanted.
    """

    data: Floats
    rows: Rows = "tokens"
    per_row: int = 1
    root: "Buf | None" = None  # the buffer this one is a column slice of

    def columns(self, start: int, stop: int) -> "Buf":
        """View of some columns, for fused projections."""
        return Buf(self.data[:, start:stop], self.rows, self.per_row, self.root or self)


@dataclass(eq=False)
class Weight:
    """A matrix (rows, cols), or (experts, rows, cols), in the form its executor multiplies fastest.

    `rows` are outputs: y (T, rows) = x (T, cols) @ W.T, as GGUF stores them.
    """

    name: str
    type: int  # GGUF tensor type id of the file
    shape: tuple[int, ...]
    data: Any  # executor's own: packed bytes, or float32 for twins
    layout: str = ""  # executor's own: which kernel multiplies it
    note: str = ""  # what was converted at load, for `inspect`


@dataclass(frozen=True)
class Rope:
    """Rotary positions. `freqs[i]` is the angle per position of pair i, all scaling included."""

    kind: Literal["adjacent", "halves"]
    freqs: Floats  # (n_rot / 2,)
    n_rot: int  # dimensions rotated, the first of each head
    scale: float = 1.0  # multiplies cos and sin (YaRN, LongRoPE)


@dataclass(frozen=True)
class Attention:
    """How queries meet keys."""

    n_heads: int
    n_kv_heads: int
    head_dim: int  # of queries and keys
    v_dim: int  # of values
    scale: float
    causal: bool = True
    window: int = 0  # 0: none; else keys with pos_q - pos_k >= window are not seen
    symmetric_window: bool = False  # encoders: window / 2 on either side
    chunk: int = 0  # 0: none; else only keys of the same chunk of positions (llama4)
    softcap: float = 0.0
    sinks: Floats | None = None  # (H,) extra logits that take part in the sum only
    alibi: Floats | None = None  # (H,) slopes


@dataclass(frozen=True)
class Routing:
    """How tokens choose experts, in llama.cpp's order of steps."""

    top_k: int
    gate: Literal["softmax", "sigmoid", "softmax_after", "sqrt_softplus"]
    bias: Floats | None = None  # (experts,) added for the selection only
    normalize: bool = True
    scale: float = 1.0
    n_groups: int = 1
    top_groups: int = 1
    factor: Floats | None = None  # (experts,) multiplies the weight of a chosen expert at the end
    scale_input: bool = False  # llama4: the weight multiplies the expert's input, not its output
    extra: dict[str, float] = field(default_factory=dict)


class Cache(Protocol):
    """Keys and values of one layer, in blocks of `step.BLOCK` positions; layout is the kernels'.

    The first axis of both arrays is the block, so one block is copied by `k[to] = k[from]`.
    """

    k: npt.NDArray[Any]
    v: npt.NDArray[Any]


class Kernels(Protocol):
    """The operations. Where an output may be the same buffer as an input, it is said."""

    def embed(self, out: Buf, table: Weight, scale: float = 1.0) -> None:
        """out (T, dim) = table[tokens] * scale"""

    def embed_pos(self, out: Buf, x: Buf, table: Weight, offset: int = 0) -> None:
        """out = x + table[pos + offset]; in place allowed"""

    def rmsnorm(self, out: Buf, x: Buf, weight: Floats | None, eps: float, groups: int = 1) -> None:
        """Each row in `groups` equal parts, each divided by its root mean square, times weight.

        weight is (width / groups,), or (width,) for one per group; in place allowed.
        """

    def layernorm(
        self,
        out: Buf,
        x: Buf,
        weight: Floats | None,
        bias: Floats | None,
        eps: float,
        groups: int = 1,
    ) -> None:
        """Mean 0, variance 1 in each of `groups` parts, * weight + bias; in place allowed"""

    def matmul(self, out: Buf, w: Weight, x: Buf, bias: Floats | None = None) -> None:
        """out (rows) = x @ w.T + bias"""

    def add(self, out: Buf, a: Buf, b: Buf, scale: float = 1.0) -> None:
        """out = a + b * scale; in place allowed"""

    def add_vector(self, out: Buf, x: Buf, v: Floats) -> None:
        """out = x + v on every row; in place allowed"""

    def mul(self, out: Buf, a: Buf, b: Buf) -> None:
        """out = a * b; in place allowed.

        Where b is narrower, each of its columns multiplies an equal part of a's columns: width 1
        multiplies the row, width H multiplies head by head.
        """

    def mul_vector(self, out: Buf, x: Buf, v: Floats) -> None:
        """out = x * v on every row; in place allowed"""

    def scale(self, out: Buf, x: Buf, factor: float) -> None:
        """out = x * factor; in place allowed"""

    def clamp(self, out: Buf, x: Buf, limit: float) -> None:
        """out = min(max(x, -limit), limit); in place allowed"""

    def softcap(self, out: Buf, x: Buf, cap: float) -> None:
        """out = cap * tanh(x / cap); in place allowed"""

    def act(self, out: Buf, x: Buf, kind: Act) -> None:
        """out = kind(x); in place allowed"""

    def glu(
        self, out: Buf, gate: Buf, up: Buf, kind: Act, limit: float = 0.0, alpha: float = 0.0
    ) -> None:
        """out = kind(gate) * up; in place on either allowed.

        With `alpha` (gpt-oss): g = min(gate, limit), u = clamp(up, limit),
        out = g * sigmoid(alpha * g) * (u + 1). With `limit` alone: kind(min(gate, limit)) *
        clamp(up, limit).
        """

    def rope(self, x: Buf, heads: int, rope: Rope) -> None:
        """Rotate each of `heads` heads of every row by its position, in place"""

    def scale_by_pos(self, out: Buf, x: Buf, floor: int, beta: float, offset: int = 0) -> None:
        """out = x * (1 + beta * log(1 + (pos + offset) // floor)): temperature of long positions"""

    def store(self, cache: Cache, k: Buf, v: Buf) -> None:
        """Write keys (T, KV*D) and values (T, KV*V) at each token's place in the cache"""

    def attend(self, out: Buf, q: Buf, cache: Cache, how: Attention) -> None:
        """out (T, H*V) = softmax(q k * scale …) v over the cached positions each token may see"""

    def gather(self, out: Buf, x: Buf) -> None:
        """out (O, dim) = x[rows whose logits are wanted]"""

    def route(self, ids: Buf, weights: Buf, logits: Buf, how: Routing) -> None:
        """Choose experts. ids (T, k) hold whole numbers as float32; weights (T, k)"""

    def matmul_experts(
        self, out: Buf, w: Weight, x: Buf, ids: Buf, bias: Floats | None = None
    ) -> None:
        """out (T*k, rows) = x @ w[expert].T + bias[expert]; x is (T, cols) or (T*k, cols)"""

    def combine_experts(self, out: Buf, x: Buf, weights: Buf | None) -> None:
        """out (T, dim) = sum over j of weights[t, j] * x[t*k + j]; without weights a plain sum"""

    def conv(self, out: Buf, x: Buf, weight: Floats, bias: Floats | None, state: Floats) -> None:
        """Causal convolution along each sequence, channel by channel; not in place.

        out[t, c] = bias[c] + sum over j of weight[j, c] * x[t - (K - 1) + j, c]; weight is (K, C).
        state (slots, K - 1, C) holds the rows before this step, and then this step's last ones.
        A state is zero for a sequence that begins at position 0; so it is below.
        """

    def scan(self, out: Buf, x: Buf, dt: Buf, b: Buf, c: Buf, a: Floats, state: Floats) -> None:
        """Selective state space of H heads of P values: Mamba (P = 1) and Mamba-2; not in place.

        Token by token, for head h: s = s * exp(dt[h] * a[h]) + dt[h] * x[h] outer b[g], then
        out[h] = s @ c[g]. x and out are (T, H*P), dt (T, H), b and c (T, G*N), g = h // (H / G),
        a (H, N), state (slots, H, P, N).
        """

    def delta(
        self, out: Buf, q: Buf, k: Buf, v: Buf, decay: Buf, beta: Buf, state: Floats, tiled: bool
    ) -> None:
        """Gated delta rule; not in place.

        Token by token, for value head h of key head g: s = s * exp(decay[h]), then
        s = s + beta[h] * (v[h] - s @ k[g]) outer k[g], then out[h] = s @ q[g] / sqrt(D).
        q and k are (T, G*D), v and out (T, H*V), beta (T, H), decay (T, H) or (T, H*D),
        state (slots, H, V, D). g = h % G where `tiled`, else h // (H / G).
        """

    def spread(self, out: Buf, x: Buf, weights: Buf) -> None:
        """out (T*k, dim)[t*k + j] = x[t] * weights[t, j]"""


class Executor(Protocol):
    """Who runs a forward pass: numpy twins at once, or a tape of compiled kernels.

    Both are made by `(step: Step, threads: int = 0)`.
    """

    kernels: Kernels

    def buffer(self, width: int, rows: Rows = "tokens", per_row: int = 1) -> Buf:
        """Working memory for `per_row` rows of `width` floats for each token (or output)."""
        ...

    def cache(
        self, n_blocks: int, n_kv_heads: int, head_dim: int, v_dim: int, type: CacheType
    ) -> Cache:
        """Keys and values of one layer, zeroed."""
        ...

    def table(
        self, name: str, raw: npt.NDArray[np.uint8], type: int, shape: tuple[int, ...]
    ) -> Weight:
        """A matrix whose rows are looked up; `matmul` takes it too: embeddings may be tied."""
        ...

    def weight(
        self, name: str, raw: npt.NDArray[np.uint8], type: int, shape: tuple[int, ...]
    ) -> Weight:
        """A matrix in this executor's form. `raw` is the file's bytes; shape is numpy order."""
        ...

    def record(self, forward: Callable[[Kernels], None]) -> None:
        """Remember the forward pass; called once, before the first `run`."""
        ...

    def run(self) -> None:
        """Execute the forward pass for what the step header holds."""
        ...

    def close(self) -> None:
        """Stop threads and free memory; safe to call twice."""
        ...
