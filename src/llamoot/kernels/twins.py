"""The numpy twins: every operation of `table.py` at once, in float32, as plainly as possible.

They are the documentation of the kernels and their oracle: slow, exact, one line per idea. A twin
shares nothing with the kernel it checks. Matrices are decoded to float32 when they are opened.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot.kernels.step import BLOCK, Step
from llamoot.kernels.table import (
    Act,
    Attention,
    Buf,
    Cache,
    CacheType,
    Floats,
    Kernels,
    Rope,
    Routing,
    Rows,
    Weight,
)
from llamoot.quant.decode import decode


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _erf(x: Floats) -> Floats:
    """Abramowitz and Stegun 7.1.26, in float64: absolute error below 1.5e-7."""
    z = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.3275911 * z)
    poly = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    return np.asarray(np.sign(x) * (1 - poly * np.exp(-z * z)), np.float32)


ACTS: dict[Act, Callable[[Floats], Floats]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: np.asarray(
        0.5 * x * (1 + np.tanh(0.79788456 * x * (1 + 0.044715 * x * x))), np.float32
    ),
    "gelu_quick": lambda x: x * _sigmoid(np.float32(1.702) * x),
    "gelu_erf": lambda x: np.float32(0.5) * x * (1 + _erf(x * np.float32(0.70710678))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "tanh": lambda x: np.tanh(x),
}


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


@dataclass
class PlainCache:
    """(blocks, BLOCK, kv_heads, dim) of keys and of values; q8_0 keeps rounded floats."""

    k: npt.NDArray[Any]
    v: npt.NDArray[Any]
    type: CacheType


def _round_q8(x: Floats) -> Floats:
    """What x becomes in blocks of 32 int8 with one half-precision scale."""
    parts = x.reshape(*x.shape[:-1], -1, 32)
    d = np.abs(parts).max(axis=-1, keepdims=True) / 127
    q = np.rint(np.divide(parts, d, out=np.zeros_like(parts), where=d > 0))
    return np.asarray(q * d.astype(np.float16), np.float32).reshape(x.shape)


class TwinKernels:
    """`Kernels` in numpy. Live rows are read from the step header at every call."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def _live(self, b: Buf) -> Floats:
        """The rows of a buffer that this step uses, as a view."""
        step = self.step
        n = {"tokens": step.n_tokens, "outputs": step.n_outputs, "logits": step.n_logits}[b.rows]
        return b.data[: n * b.per_row]

    def embed(self, out: Buf, table: Weight, scale: float = 1.0) -> None:
        tokens = self.step.tokens[: self.step.n_tokens]
        self._live(out)[:] = table.data[tokens] * np.float32(scale)

    def embed_pos(self, out: Buf, x: Buf, table: Weight, offset: int = 0) -> None:
        pos = self.step.pos[: self.step.n_tokens]
        self._live(out)[:] = self._live(x) + table.data[pos + offset]

    def rmsnorm(self, out: Buf, x: Buf, weight: Floats | None, eps: float, groups: int = 1) -> None:
        rows = self._live(x)
        parts = rows.reshape(len(rows), groups, -1)
        mean = np.mean(np.square(parts, dtype=np.float64), axis=-1, keepdims=True)
        self._scaled(out, parts * (1 / np.sqrt(mean + eps)), weight, None)

    def layernorm(
        self,
        out: Buf,
        x: Buf,
        weight: Floats | None,
        bias: Floats | None,
        eps: float,
        groups: int = 1,
    ) -> None:
        rows = self._live(x)
        parts = rows.reshape(len(rows), groups, -1).astype(np.float64)
        parts = parts - parts.mean(axis=-1, keepdims=True)
        variance = np.mean(parts * parts, axis=-1, keepdims=True)
        self._scaled(out, parts / np.sqrt(variance + eps), weight, bias)

    def _scaled(
        self, out: Buf, parts: npt.NDArray[Any], weight: Floats | None, bias: Floats | None
    ) -> None:
        y = parts.astype(np.float32)
        if weight is not None:
            y = y * weight.reshape(-1, y.shape[2])
        if bias is not None:
            y = y + bias.reshape(-1, y.shape[2])
        self._live(out)[:] = y.reshape(len(y), -1)

    def matmul(self, out: Buf, w: Weight, x: Buf, bias: Floats | None = None) -> None:
        result = self._live(out)
        y = self._live(x)[: len(result)] @ w.data.T
        result[:] = y if bias is None else y + bias

    def add(self, out: Buf, a: Buf, b: Buf, scale: float = 1.0) -> None:
        self._live(out)[:] = self._live(a) + self._live(b) * np.float32(scale)

    def add_vector(self, out: Buf, x: Buf, v: Floats) -> None:
        self._live(out)[:] = self._live(x) + v

    def mul(self, out: Buf, a: Buf, b: Buf) -> None:
        left, right = self._live(a), self._live(b)
        parts = left.reshape(len(left), right.shape[1], -1) * right[:, :, None]
        self._live(out)[:] = parts.reshape(left.shape)

    def mul_vector(self, out: Buf, x: Buf, v: Floats) -> None:
        self._live(out)[:] = self._live(x) * v

    def scale(self, out: Buf, x: Buf, factor: float) -> None:
        self._live(out)[:] = self._live(x) * np.float32(factor)

    def clamp(self, out: Buf, x: Buf, limit: float) -> None:
        self._live(out)[:] = np.clip(self._live(x), -limit, limit)

    def softcap(self, out: Buf, x: Buf, cap: float) -> None:
        self._live(out)[:] = np.float32(cap) * np.tanh(self._live(x) / np.float32(cap))

    def act(self, out: Buf, x: Buf, kind: Act) -> None:
        self._live(out)[:] = ACTS[kind](self._live(x))

    def glu(
        self, out: Buf, gate: Buf, up: Buf, kind: Act, limit: float = 0.0, alpha: float = 0.0
    ) -> None:
        g, u = self._live(gate), self._live(up)
        if limit > 0:
            g, u = np.minimum(g, np.float32(limit)), np.clip(u, -limit, limit)
        if alpha > 0:
            self._live(out)[:] = g * _sigmoid(np.float32(alpha) * g) * (u + 1)
        else:
            self._live(out)[:] = ACTS[kind](g) * u

    def rope(self, x: Buf, heads: int, rope: Rope) -> None:
        rows = self._live(x)
        pos = self.step.pos[: len(rows)].astype(np.float32)
        angle = pos[:, None] * rope.freqs[None, :]
        cos = (np.cos(angle) * np.float32(rope.scale))[:, None, :]
        sin = (np.sin(angle) * np.float32(rope.scale))[:, None, :]
        y = rows.reshape(len(rows), heads, -1).copy()
        half = rope.n_rot // 2
        if rope.kind == "adjacent":
            first, second = slice(0, rope.n_rot, 2), slice(1, rope.n_rot, 2)
        else:
            first, second = slice(0, half), slice(half, rope.n_rot)
        a, b = y[:, :, first].copy(), y[:, :, second].copy()
        y[:, :, first], y[:, :, second] = a * cos - b * sin, a * sin + b * cos
        rows[:] = y.reshape(rows.shape)

    def scale_by_pos(self, out: Buf, x: Buf, floor: int, beta: float, offset: int = 0) -> None:
        pos = self.step.pos[: self.step.n_tokens] + offset
        factor = 1 + beta * np.log(1 + pos // floor)
        self._live(out)[:] = self._live(x) * factor.astype(np.float32)[:, None]

    def store(self, cache: Cache, k: Buf, v: Buf) -> None:
        assert isinstance(cache, PlainCache)
        n = self.step.n_tokens
        pos, seq = self.step.pos[:n], self.step.seq[:n]
        block = self.step.table[seq, pos // BLOCK]
        for array, x in ((cache.k, self._live(k)), (cache.v, self._live(v))):
            rows = x.reshape(n, *array.shape[2:])
            array[block, pos % BLOCK] = _round_q8(rows) if cache.type == "q8_0" else rows

    def attend(self, out: Buf, q: Buf, cache: Cache, how: Attention) -> None:
        queries, result = self._live(q), self._live(out)
        for seq in range(self.step.n_seqs):
            rows = slice(int(self.step.first[seq]), int(self.step.first[seq + 1]))
            length = int(self.step.length[seq])
            blocks = self.step.table[seq, : (length + BLOCK - 1) // BLOCK]
            keys, values = (
                a[blocks].reshape(-1, *a.shape[2:])[:length].astype(np.float32)
                for a in (cache.k, cache.v)
            )
            hidden = self._hidden(self.step.pos[rows], length, how)
            result[rows] = _attend_one(queries[rows], keys, values, hidden, how)

    def _hidden(self, pos: npt.NDArray[np.int32], length: int, how: Attention) -> Floats:
        """(queries, keys): 0 where a query may look, -inf where it may not; alibi apart."""
        far = pos[:, None] - np.arange(length)[None, :]
        no = (far < 0) if how.causal else np.zeros(far.shape, bool)
        if how.window and how.symmetric_window:
            no |= np.abs(far) > how.window // 2
        elif how.window:
            no |= far >= how.window
        if how.chunk:
            no |= np.arange(length)[None, :] < (pos[:, None] // how.chunk) * how.chunk
        mask = np.where(no, np.float32(-np.inf), np.float32(0))
        if how.alibi is None:
            return np.broadcast_to(mask, (how.n_heads, *mask.shape))
        return np.asarray(mask - how.alibi[:, None, None] * np.abs(far), np.float32)

    def gather(self, out: Buf, x: Buf) -> None:
        wanted = self.step.out[: self.step.n_outputs]
        self._live(out)[:] = self._live(x)[wanted]

    def route(self, ids: Buf, weights: Buf, logits: Buf, how: Routing) -> None:
        x = self._live(logits).astype(np.float32)
        gates: dict[str, Callable[[Floats], Floats]] = {
            "softmax": _softmax,
            "sigmoid": _sigmoid,
            "softmax_after": lambda x: x,
            "sqrt_softplus": lambda x: np.sqrt(np.logaddexp(x, np.float32(0))),
        }
        probs = gates[how.gate](x)
        ranked = probs if how.bias is None else probs + how.bias
        if how.n_groups > 1:
            ranked = _best_groups(ranked, how)
        chosen = np.argsort(-ranked, axis=1, kind="stable")[:, : how.top_k]
        w = np.take_along_axis(probs, chosen, axis=1)
        if how.gate == "softmax_after":
            w = _softmax(w)
        if how.normalize:
            # 2^-14 is llama.cpp's guard against a sum that vanished.
            w = w / np.maximum(w.sum(axis=1, keepdims=True), np.float32(6.103515625e-5))
        self._live(ids)[:] = chosen
        factor = np.float32(1) if how.factor is None else how.factor[chosen]
        self._live(weights)[:] = w * np.float32(how.scale) * factor

    def matmul_experts(
        self, out: Buf, w: Weight, x: Buf, ids: Buf, bias: Floats | None = None
    ) -> None:
        chosen = self._live(ids).astype(np.int64).ravel()
        top_k = self._live(ids).shape[1]
        rows, result = self._live(x), self._live(out)
        if x.per_row == 1:
            rows = np.repeat(rows, top_k, axis=0)
        for expert in np.unique(chosen):
            mine = chosen == expert
            y = rows[mine] @ w.data[expert].T
            result[mine] = y if bias is None else y + bias[expert]

    def combine_experts(self, out: Buf, x: Buf, weights: Buf | None) -> None:
        rows, result = self._live(x), self._live(out)
        parts = rows.reshape(len(result), -1, rows.shape[1])
        if weights is not None:
            parts = parts * self._live(weights)[:, :, None]
        result[:] = parts.sum(axis=1)

    def _sequences(self, state: Floats) -> Iterator[tuple[slice, Floats]]:
        """Rows of each sequence and its state, as a view; zeroed where the sequence begins."""
        step = self.step
        for seq in range(step.n_seqs):
            first, stop = int(step.first[seq]), int(step.first[seq + 1])
            own = state[step.slot[seq]]
            if step.pos[first] == 0:
                own[:] = 0
            yield slice(first, stop), own

    def conv(self, out: Buf, x: Buf, weight: Floats, bias: Floats | None, state: Floats) -> None:
        rows, result, taps = self._live(x), self._live(out), len(weight)
        for mine, own in self._sequences(state):
            seen = np.concatenate([own, rows[mine]])
            n = len(seen) - (taps - 1)
            y = sum((weight[j] * seen[j : j + n] for j in range(taps)), np.float32(0))
            result[mine] = y if bias is None else y + bias
            own[:] = seen[n:]

    def scan(self, out: Buf, x: Buf, dt: Buf, b: Buf, c: Buf, a: Floats, state: Floats) -> None:
        heads, size, n = state.shape[1:]
        rows, times, result = self._live(x), self._live(dt), self._live(out)
        parts = [self._live(p).reshape(len(rows), -1, n) for p in (b, c)]
        into, read = (np.repeat(p, heads // p.shape[1], axis=1) for p in parts)
        for mine, own in self._sequences(state):
            for t in range(mine.start, mine.stop):
                step = times[t][:, None, None]
                fresh = step * rows[t].reshape(heads, size, 1) * into[t][:, None, :]
                own[:] = own * np.exp(step * a[:, None, :]) + fresh
                result[t] = (own * read[t][:, None, :]).sum(axis=2).ravel()

    def delta(
        self, out: Buf, q: Buf, k: Buf, v: Buf, decay: Buf, beta: Buf, state: Floats, tiled: bool
    ) -> None:
        heads, size, dim = state.shape[1:]
        rows, result = self._live(v), self._live(out)
        parts = [self._live(p).reshape(len(rows), -1, dim) for p in (q, k)]
        times = heads // parts[0].shape[1]
        queries, keys = (
            np.tile(p, (1, times, 1)) if tiled else np.repeat(p, times, axis=1) for p in parts
        )
        fade = np.exp(self._live(decay)).reshape(len(rows), heads, 1, -1)
        by = self._live(beta)[:, :, None]
        for mine, own in self._sequences(state):
            for t in range(mine.start, mine.stop):
                own *= fade[t]
                wrong = rows[t].reshape(heads, size) - (own @ keys[t][:, :, None])[:, :, 0]
                own += (by[t] * wrong)[:, :, None] * keys[t][:, None, :]
                seen = (own @ queries[t][:, :, None])[:, :, 0]
                result[t] = (seen * np.float32(dim**-0.5)).ravel()

    def spread(self, out: Buf, x: Buf, weights: Buf) -> None:
        rows = self._live(x)[:, None, :] * self._live(weights)[:, :, None]
        self._live(out)[:] = rows.reshape(-1, rows.shape[2])


def _attend_one(q: Floats, keys: Floats, values: Floats, hidden: Floats, how: Attention) -> Floats:
    """One sequence: q (n, H*D), keys (L, KV, D), values (L, KV, V) -> (n, H*V)."""
    group = how.n_heads // how.n_kv_heads
    heads = q.reshape(len(q), how.n_kv_heads, group, how.head_dim).transpose(1, 2, 0, 3)
    scores = heads @ keys.transpose(1, 2, 0)[:, None] * np.float32(how.scale)
    if how.softcap:
        scores = np.float32(how.softcap) * np.tanh(scores / np.float32(how.softcap))
    scores = scores.reshape(how.n_heads, len(q), -1) + hidden
    if how.sinks is not None:
        sinks = np.broadcast_to(how.sinks[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, sinks], axis=2)
    p = _softmax(scores)[:, :, : len(keys)].reshape(how.n_kv_heads, group, len(q), -1)
    result = p @ values.transpose(1, 0, 2)[:, None]
    return np.asarray(result.transpose(2, 0, 1, 3).reshape(len(q), -1), np.float32)


def _best_groups(ranked: Floats, how: Routing) -> Floats:
    """Only experts of the groups whose two best sum highest stay in the race."""
    groups = ranked.reshape(len(ranked), how.n_groups, -1)
    score = np.sort(groups, axis=2)[:, :, -2:].sum(axis=2)
    best = np.argsort(-score, axis=1, kind="stable")[:, : how.top_groups]
    stay = np.zeros(score.shape, bool)
    np.put_along_axis(stay, best, True, axis=1)
    return np.where(stay[:, :, None], groups, np.float32(-np.inf)).reshape(ranked.shape)


class Twins:
    """`Executor` that runs the forward pass in numpy, anew at every step."""

    def __init__(self, step: Step, threads: int = 0) -> None:
        del threads  # numpy's own
        self._step = step
        self.kernels: Kernels = TwinKernels(step)
        self._forward: Callable[[Kernels], None] | None = None

    def buffer(self, width: int, rows: Rows = "tokens", per_row: int = 1) -> Buf:
        capacity = self._step.max_outputs if rows == "logits" else self._step.max_tokens
        return Buf(np.zeros((capacity * per_row, width), np.float32), rows, per_row)

    def cache(
        self, n_blocks: int, n_kv_heads: int, head_dim: int, v_dim: int, type: CacheType
    ) -> Cache:
        kept = np.float16 if type == "f16" else np.float32
        k = np.zeros((n_blocks, BLOCK, n_kv_heads, head_dim), kept)
        return PlainCache(k, np.zeros((n_blocks, BLOCK, n_kv_heads, v_dim), kept), type)

    def weight(
        self, name: str, raw: npt.NDArray[np.uint8], type: int, shape: tuple[int, ...]
    ) -> Weight:
        values = decode(raw, type, shape)
        return Weight(name, type, shape, values, "float32")

    table = weight

    def record(self, forward: Callable[[Kernels], None]) -> None:
        self._forward = forward

    def run(self) -> None:
        assert self._forward is not None, "record a forward pass first"
        self._forward(self.kernels)

    def close(self) -> None:
        self._forward = None
