"""How products and look-ups of packed weights are written to a tape. Imports no numba."""

from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from llamoot.kernels.memory import aligned
from llamoot.kernels.pack import Packed, padded
from llamoot.kernels.record import COLUMNS, RECORD
from llamoot.kernels.table import Buf, Floats, Weight
from llamoot.kernels.tape import Span, Tape, span

Array = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

# Memory for the 8-bit form of a buffer: written again each time the buffer is.
_RECORDS: "WeakKeyDictionary[Tape, dict[Span, Bytes]]" = WeakKeyDictionary()


def emit_matmul(tape: Tape, out: Buf, w: Weight, x: Buf, bias: Floats | None) -> None:
    """out = x @ w.T + bias"""
    _emit(tape, out, w, x, bias, None, 1)


def emit_experts(tape: Tape, out: Buf, w: Weight, x: Buf, ids: Buf, bias: Floats | None) -> None:
    """out (T*k, rows) = x @ w[expert].T + bias[expert]; x has T or T*k rows, ids (T, k)."""
    experts, per_token = w.shape[0], ids.data.shape[1]
    plan: Array = tape.derived("plan", ids, lambda: _plan(tape, ids, experts))
    _emit(tape, out, w, x, bias, plan, per_token // x.per_row)


def emit_embed(tape: Tape, out: Buf, table: Weight, scale: float) -> None:
    """out = table[tokens] * scale"""
    _look_up(tape, out, None, table, tape.step.tokens, 0, scale)


def emit_embed_pos(tape: Tape, out: Buf, x: Buf, table: Weight, offset: int) -> None:
    """out = x + table[pos + offset]"""
    _look_up(tape, out, x, table, tape.step.pos, offset, 1.0)


def _emit(
    tape: Tape,
    out: Buf,
    w: Weight,
    x: Buf,
    bias: Floats | None,
    plan: Array | None,
    share: int,
) -> None:
    packed: Packed = w.data
    assert x.data.shape[1] == packed.columns and out.data.shape[1] == packed.rows, w.name
    form: Bytes | Floats = x.data
    if packed.layout.records:
        form = tape.derived("records", x, lambda: _records(tape, x))
    tape.add(
        f"{packed.layout.module}.matmul",
        rows=out,
        reads=[form if packed.layout.records else x, plan],
        writes=[out],
        x=form,
        x_stride=form.strides[0],
        y=out,
        bias=None if bias is None else padded(bias, packed.experts, packed.rows),
        plan=plan,
        share=share,
        **packed.own_words,
    )


def _records(tape: Tape, x: Buf) -> Bytes:
    """The 8-bit form of `x`, by an operation on the tape."""
    rows, n = x.data.shape[0], x.data.shape[1] // COLUMNS
    kept = _RECORDS.setdefault(tape, {})
    if span(x) not in kept:
        kept[span(x)] = aligned((rows, n * RECORD), np.uint8)
    made = kept[span(x)]
    tape.add(
        "quantize.quantize",
        rows=x,
        reads=[x],
        writes=[made],
        x=x,
        records=n,
        out=made,
        out_stride=n * RECORD,
    )
    return made


def _plan(tape: Tape, ids: Buf, experts: int) -> Array:
    """The order of rows by expert, by an operation on the tape."""
    capacity, per_token = ids.data.shape
    plan = tape.array(2 + 3 * experts + capacity * per_token, np.int64)
    begins = tape.array(experts, np.int64)
    tape.add(
        "experts.plan",
        rows=ids,
        reads=[ids],
        writes=[plan, begins],
        ids=ids,
        per_token=per_token,
        n_experts=experts,
        plan=plan,
        begins=begins,
    )
    return plan


def _look_up(
    tape: Tape,
    out: Buf,
    x: Buf | None,
    table: Weight,
    ids: npt.NDArray[np.int32],
    first: int,
    scale: float,
) -> None:
    packed: Packed = table.data
    words = packed.own_words
    words.pop("chunk")
    tape.add(
        f"{packed.layout.module}.embed",
        rows=out,
        reads=[] if x is None else [x],
        writes=[out],
        ids=ids,
        first=first,
        columns=packed.columns,
        x=0 if x is None else x.data,
        x_stride=0 if x is None else x.data.strides[0],
        out=out,
        scale=scale,
        **words,
    )
