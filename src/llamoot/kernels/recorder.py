"""`Kernels` that writes every operation to a tape: which compiled kernel, on which memory."""

from typing import Any, get_args

import numpy as np

from llamoot.errors import LlamootError
from llamoot.kernels.attention_plan import most_parts, partial_floats, plan
from llamoot.kernels.cache import TYPES, LayerCache
from llamoot.kernels.products import emit_embed, emit_embed_pos, emit_experts, emit_matmul
from llamoot.kernels.step import BLOCK
from llamoot.kernels.table import Act, Attention, Buf, Cache, Floats, Rope, Routing, Weight
from llamoot.kernels.tape import Array, Tape

ACTS: tuple[str, ...] = get_args(Act)
GATES = ("softmax", "sigmoid", "softmax_after", "sqrt_softplus")
KINDS = ("halves", "adjacent")
FAR = 1 << 40  # further than any position
MOST = 1024  # dimensions of a head, experts of a layer: what fits the kernels' own memory


class Recorder:
    """The operations, recorded; nothing is computed until the tape runs."""

    def __init__(self, tape: Tape) -> None:
        """Everything goes to `tape`."""
        self._tape = tape
        self._step = tape.step
        self._angles: dict[tuple[bytes, str, float], Array] = {}
        self._shared: dict[str, Array] = {}

    def embed(self, out: Buf, table: Weight, scale: float = 1.0) -> None:
        """out (T, dim) = table[tokens] * scale"""
        emit_embed(self._tape, out, table, scale)

    def embed_pos(self, out: Buf, x: Buf, table: Weight, offset: int = 0) -> None:
        """out = x + table[pos + offset]"""
        emit_embed_pos(self._tape, out, x, table, offset)

    def matmul(self, out: Buf, w: Weight, x: Buf, bias: Floats | None = None) -> None:
        """out (rows) = x @ w.T + bias"""
        emit_matmul(self._tape, out, w, x, bias)

    def matmul_experts(
        self, out: Buf, w: Weight, x: Buf, ids: Buf, bias: Floats | None = None
    ) -> None:
        """out (T*k, rows) = x @ w[expert].T + bias[expert]"""
        emit_experts(self._tape, out, w, x, ids, bias)

    def rmsnorm(self, out: Buf, x: Buf, weight: Floats | None, eps: float, groups: int = 1) -> None:
        """Each of `groups` parts of a row divided by its root mean square, times weight"""
        width = x.data.shape[1]
        own = _floats(weight)
        repeat = int(own is not None and own.size == width)
        values = {"groups": groups, "weight": own, "repeat": repeat, "eps": eps}
        self._rows("norm.rmsnorm", out, [x], x=x, width=width, **values)

    def layernorm(
        self,
        out: Buf,
        x: Buf,
        weight: Floats | None,
        bias: Floats | None,
        eps: float,
        groups: int = 1,
    ) -> None:
        """Mean 0, variance 1 in each of `groups` parts, * weight + bias"""
        width = x.data.shape[1]
        own, shift = _floats(weight), _floats(bias)
        repeat = int(any(v is not None and v.size == width for v in (own, shift)))
        values = {"groups": groups, "weight": own, "bias": shift, "repeat": repeat, "eps": eps}
        self._rows("norm.layernorm", out, [x], x=x, width=width, **values)

    def add(self, out: Buf, a: Buf, b: Buf, scale: float = 1.0) -> None:
        """out = a + b * scale"""
        self._rows("rows.add", out, [a, b], a=a, b=b, width=a.data.shape[1], by=scale)

    def add_vector(self, out: Buf, x: Buf, v: Floats) -> None:
        """out = x + v on every row"""
        width = x.data.shape[1]
        self._rows("rows.add", out, [x], a=x, b=_floats(v), b_stride=0, width=width, by=1.0)

    def mul(self, out: Buf, a: Buf, b: Buf) -> None:
        """out = a * b; a narrower b multiplies parts of a"""
        width, parts = a.data.shape[1], b.data.shape[1]
        if parts == width:
            self._rows("rows.multiply", out, [a, b], a=a, b=b, width=width)
        else:
            self._rows("rows.multiply_parts", out, [a, b], a=a, b=b, width=width, parts=parts)

    def mul_vector(self, out: Buf, x: Buf, v: Floats) -> None:
        """out = x * v on every row"""
        width = x.data.shape[1]
        self._rows("rows.multiply", out, [x], a=x, b=_floats(v), b_stride=0, width=width)

    def scale(self, out: Buf, x: Buf, factor: float) -> None:
        """out = x * factor"""
        self._rows("rows.scale", out, [x], x=x, width=x.data.shape[1], by=factor)

    def clamp(self, out: Buf, x: Buf, limit: float) -> None:
        """out = min(max(x, -limit), limit)"""
        self._rows("rows.clamp", out, [x], x=x, width=x.data.shape[1], limit=limit)

    def softcap(self, out: Buf, x: Buf, cap: float) -> None:
        """out = cap * tanh(x / cap)"""
        self._rows("rows.softcap", out, [x], x=x, width=x.data.shape[1], cap=cap)

    def act(self, out: Buf, x: Buf, kind: Act) -> None:
        """out = kind(x)"""
        self._rows("act.act", out, [x], x=x, width=x.data.shape[1], kind=ACTS.index(kind))

    def glu(
        self, out: Buf, gate: Buf, up: Buf, kind: Act, limit: float = 0.0, alpha: float = 0.0
    ) -> None:
        """out = kind(gate) * up, or gpt-oss's form with alpha"""
        values: dict[str, Any] = {"gate": gate, "up": up, "width": gate.data.shape[1]}
        if alpha > 0:
            self._rows("act.glu_alpha", out, [gate, up], alpha=alpha, limit=limit, **values)
        else:
            code = ACTS.index(kind)
            self._rows("act.glu", out, [gate, up], kind=code, limit=limit, **values)

    def rope(self, x: Buf, heads: int, rope: Rope) -> None:
        """Rotate each of `heads` heads of every row by its position, in place"""
        values = {"heads": heads, "head_dim": x.data.shape[1] // heads}
        table, pairs, kind = self._table(rope), rope.n_rot // 2, KINDS.index(rope.kind)
        values |= {"pairs": pairs, "kind": kind}
        self._tape.add("rope.rotate", x, [x, table], [x], x=x, table=table, **values)

    def scale_by_pos(self, out: Buf, x: Buf, floor: int, beta: float, offset: int = 0) -> None:
        """out = x * (1 + beta * log(1 + (pos + offset) // floor))"""
        pos = np.arange(self._step.max_blocks * BLOCK) + offset
        factors = (1 + beta * np.log(1 + pos // floor)).astype(np.float32)
        values = {"pos": self._step.pos, "factors": factors}
        self._rows("rows.scale_by_pos", out, [x], x=x, width=x.data.shape[1], **values)

    def store(self, cache: Cache, k: Buf, v: Buf) -> None:
        """Write keys and values at each token's place in the cache"""
        assert isinstance(cache, LayerCache)
        shape = cache.shape
        sides = (
            (k, cache.k, shape.head_dim, BLOCK, 1),
            (v, cache.v, shape.v_dim, 1, shape.v_dim),
        )
        for x, array, dims, dim_stride, pos_stride in sides:
            _at_most(dims, "dimensions of a head")
            self._tape.add(
                "store.store_rows",
                x,
                [x],
                [array],
                x=x,
                cache=array,
                block_bytes=array.strides[0],
                pos=self._step.pos,
                seq=self._step.seq,
                table=self._step.table,
                table_stride=self._step.table.strides[0],
                heads=shape.n_kv_heads,
                dims=dims,
                dim_stride=dim_stride,
                pos_stride=pos_stride,
                type=TYPES.index(cache.type),
            )

    def attend(self, out: Buf, q: Buf, cache: Cache, how: Attention) -> None:
        """out (T, H*V) = softmax(q k * scale …) v over the cached positions"""
        assert isinstance(cache, LayerCache)
        cut, step = plan(how.head_dim, how.v_dim), self._step
        memory = self._common("memory", self._tape.pool.threads * cut.n_bytes // 4)
        floats = partial_floats(step.max_seqs, step.max_blocks, how.n_heads, how.v_dim)
        partial, sinks = self._common("partial", floats), _floats(how.sinks)
        both: dict[str, Any] = {
            "heads": how.n_heads,
            "head_dim": how.head_dim,
            "v_dim": how.v_dim,
            "sinks": sinks,
            "first": step.first,
            "length": step.length,
            "memory": memory,
            "partial": partial,
            "parts": most_parts(step.max_blocks),
        }
        back, ahead = _sight(how)
        reads = [q, cache.k, cache.v]
        self._tape.add(
            "attention.attend",
            "seqs",
            reads,
            [out, partial, memory],
            out=out,
            q=q,
            k=cache.k,
            k_block=cache.k.strides[0],
            v=cache.v,
            v_block=cache.v.strides[0],
            type=TYPES.index(cache.type),
            kv_heads=how.n_kv_heads,
            scale=how.scale,
            softcap=how.softcap,
            back=back,
            ahead=ahead,
            chunk=how.chunk,
            alibi=_floats(how.alibi),
            pos=step.pos,
            table=step.table,
            table_stride=step.table.strides[0],
            **both,
        )
        self._tape.add("attention.merge", "seqs", [partial], [out, memory], out=out, **both)

    def gather(self, out: Buf, x: Buf) -> None:
        """out (O, dim) = x[rows whose logits are wanted]"""
        wanted = self._step.out
        self._rows("rows.gather", out, [x], x=x, width=x.data.shape[1], wanted=wanted)

    def route(self, ids: Buf, weights: Buf, logits: Buf, how: Routing) -> None:
        """Choose experts"""
        _at_most(logits.data.shape[1], "experts")
        self._tape.add(
            "route.route",
            logits,
            [logits],
            [ids, weights],
            ids=ids,
            weights=weights,
            logits=logits,
            experts=logits.data.shape[1],
            top_k=how.top_k,
            gate=GATES.index(how.gate),
            bias=_floats(how.bias),
            normalize=int(how.normalize),
            groups=how.n_groups,
            top_groups=how.top_groups,
            factor=_floats(how.factor),
            scale=how.scale,
        )

    def combine_experts(self, out: Buf, x: Buf, weights: Buf | None) -> None:
        """out (T, dim) = sum over j of weights[t, j] * x[t*k + j]"""
        top_k = x.per_row // out.per_row
        own: dict[str, Any] = {"weights": weights} if weights else _NO_WEIGHTS
        width = out.data.shape[1]
        reads = [x, weights] if weights else [x]
        self._rows("rows.combine", out, reads, x=x, width=width, top_k=top_k, **own)

    def spread(self, out: Buf, x: Buf, weights: Buf) -> None:
        """out (T*k, dim)[t*k + j] = x[t] * weights[t, j]"""
        values = {"weights": weights, "width": x.data.shape[1], "top_k": out.per_row // x.per_row}
        self._rows("rows.spread", out, [x, weights], x=x, **values)

    def conv(self, out: Buf, x: Buf, weight: Floats, bias: Floats | None, state: Floats) -> None:
        """Causal convolution along each sequence"""
        taps, width = weight.shape
        values = {"weight": _floats(weight), "bias": _floats(bias), "taps": taps, "width": width}
        self._recurrent("conv", out, state, [x], x=x, **values)

    def scan(self, out: Buf, x: Buf, dt: Buf, b: Buf, c: Buf, a: Floats, state: Floats) -> None:
        """Selective state space, token by token"""
        heads, size, n = state.shape[1:]
        shape = {"heads": heads, "size": size, "n": n, "groups": b.data.shape[1] // n}
        reads = [x, dt, b, c]
        self._recurrent("scan", out, state, reads, x=x, dt=dt, b=b, c=c, a=_floats(a), **shape)

    def delta(
        self, out: Buf, q: Buf, k: Buf, v: Buf, decay: Buf, beta: Buf, state: Floats, tiled: bool
    ) -> None:
        """Gated delta rule, token by token"""
        heads, size, n = state.shape[1:]
        values: dict[str, Any] = {"heads": heads, "size": size, "n": n, "tiled": int(tiled)}
        values |= {"groups": q.data.shape[1] // n, "by": n**-0.5}
        values["own_decay"] = int(decay.data.shape[1] != heads)
        buffers = {"q": q, "k": k, "v": v, "decay": decay, "beta": beta}
        self._recurrent("delta", out, state, list(buffers.values()), **buffers, **values)

    def _recurrent(
        self, kernel: str, out: Buf, state: Floats, reads: list[Buf], **values: Any
    ) -> None:
        step = self._step
        values |= {"pos": step.pos, "slot": step.slot, "first": step.first, "state": state}
        kernel = f"recurrent.{kernel}"
        self._tape.add(kernel, "seqs", [*reads, state], [out, state], out=out, **values)

    def _rows(self, kernel: str, out: Buf, reads: list[Buf], **values: Any) -> None:
        """An operation on the rows of `out`."""
        self._tape.add(kernel, out, reads, [out], out=out, **values)

    def _table(self, rope: Rope) -> Array:
        """Cosines and sines of this step's positions, made once for all layers that share them."""
        key = (rope.freqs.tobytes(), rope.kind, rope.scale)
        if key not in self._angles:
            pairs = rope.n_rot // 2
            table = self._tape.array((self._step.max_tokens, 4 * pairs), np.float32)
            freqs = _floats(rope.freqs)
            self._tape.add(
                "rope.angles",
                "tokens",
                [],
                [table],
                table=table,
                pos=self._step.pos,
                freqs=freqs,
                pairs=pairs,
                kind=KINDS.index(rope.kind),
                scale=rope.scale,
            )
            self._angles[key] = table
        return self._angles[key]

    def _common(self, name: str, floats: int) -> Array:
        """Memory that all layers use one after the other."""
        if name not in self._shared or self._shared[name].size < floats:
            self._shared[name] = self._tape.array(floats, np.float32)
        return self._shared[name]


_NO_WEIGHTS: dict[str, Any] = {"weights": None, "weights_stride": 0}


def _at_most(number: int, what: str) -> None:
    if number > MOST:
        raise LlamootError(f"{number} {what} are more than the compiled kernels take ({MOST})")


def _floats(values: Floats | None) -> Floats | None:
    """As the kernels read it: contiguous float32."""
    return None if values is None else np.ascontiguousarray(values, np.float32)


def _sight(how: Attention) -> tuple[int, int]:
    """How many positions before and after its own a query sees."""
    if how.window and how.symmetric_window:
        back = ahead = how.window // 2
    else:
        back, ahead = (how.window - 1 if how.window else FAR), FAR
    return back, 0 if how.causal else ahead
