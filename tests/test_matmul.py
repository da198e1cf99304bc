"""Products of packed weights against float64, for every type, shape and number of tokens."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llamoot.gguf.types import TensorType as T
from llamoot.kernels.memory import address, aligned
from llamoot.kernels.pack import LAYOUTS, pack, padded
from llamoot.kernels.pool import Pool, lease
from llamoot.kernels.products import emit_embed, emit_experts, emit_matmul
from llamoot.kernels.record import COLUMNS, RECORD, SCALE
from llamoot.kernels.step import Step
from llamoot.kernels.table import Buf, Weight
from llamoot.kernels.tape import Tape
from llamoot.kernels.target import parse
from llamoot.quant.decode import decode
from llamoot.quant.layout import LAYOUT

pytestmark = pytest.mark.kernel

Array = npt.NDArray[Any]
FLOATS = (T.F32, T.F16, T.BF16)
CONVERTED = (T.IQ2_XXS, T.IQ1_M, T.TQ1_0, T.NVFP4, T.Q1_0, T.F64)
SCALES = ("d", "m", "dmin")
# What a slow lowering is tested with: each kind of scales and quants once.
KINDS = (T.F16, T.Q8_0, T.Q2_K, T.IQ4_NL)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return lease(2)


def random_bytes(kind: T, n: int, rng: np.random.Generator) -> Array:
    """`n` random elements of a type, with scales of ordinary size."""
    normal = rng.standard_normal(n).astype(np.float32)
    if kind is T.BF16:
        return (normal.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    if kind in (T.F32, T.F16, T.F64):
        return normal.astype({T.F32: "f4", T.F16: "f2", T.F64: "f8"}[kind]).view(np.uint8)
    n_blocks = n // kind.block
    raw = rng.integers(0, 256, (n_blocks, kind.block_bytes), dtype=np.uint8)
    if kind is T.MXFP4:
        raw[:, 0] = rng.integers(118, 125, n_blocks)
    if kind is T.NVFP4:
        raw[:, :4] = rng.integers(30, 60, (n_blocks, 4))
    if kind is T.IQ1_M:  # the scale is spread over the high nibbles of the last words
        raw[:, 49::2] = raw[:, 49::2] & 15 | 0x10
    blocks = raw.reshape(-1).view(LAYOUT[kind])
    for name in set(SCALES) & set(blocks.dtype.names or ()):
        if blocks.dtype[name] == np.dtype("<f2"):
            blocks[name] = rng.uniform(0.001, 0.01, n_blocks).astype(np.float16)
    return raw.reshape(-1)


def matrix(pool: Pool, kind: T, shape: tuple[int, ...], seed: int = 0) -> tuple[Weight, Array]:
    """A random weight, packed, and what its elements are."""
    n = int(np.prod(shape))
    raw = random_bytes(kind, n, np.random.default_rng(seed))
    return pack(pool, "w", raw, kind, shape), decode(raw, kind, n).reshape(shape).astype(np.float64)


def quantized(pool: Pool, x: Array) -> tuple[Array, Array]:
    """The 8-bit form of rows, and the values it stands for."""
    n = x.shape[1] // COLUMNS
    out = aligned((len(x), n * RECORD), np.uint8)
    pool.call(
        "quantize.quantize",
        rows=len(x),
        x=address(x),
        x_stride=x.strides[0],
        records=n,
        out=address(out),
        out_stride=n * RECORD,
    )
    records = out.reshape(len(x), n, RECORD)
    whole = records[:, :, :COLUMNS].view(np.int8).astype(np.float64)
    scale = np.ascontiguousarray(records[:, :, SCALE : SCALE + 4]).view(np.float32)
    return out, (whole * scale).reshape(x.shape)


def product(pool: Pool, w: Weight, x: Array, bias: Array | None = None) -> tuple[Array, Array]:
    """x @ w.T + bias by the kernel, and the activations that it used."""
    packed = w.data
    form, used = quantized(pool, x) if packed.layout.records else (x, x.astype(np.float64))
    y = np.full((len(x), packed.rows + 3), 7, np.float32)
    pad = None if bias is None else padded(bias, 1, packed.rows)
    pool.call(
        f"{w.layout}.matmul",
        rows=len(x),
        x=address(form),
        x_stride=form.strides[0],
        y=address(y),
        y_stride=y.strides[0],
        bias=address(pad),
        plan=0,
        share=1,
        **packed.own_words,
    )
    assert (y[:, packed.rows :] == 7).all(), "columns beyond the matrix were written"
    return y[:, : packed.rows], used


def normal(rows: int, columns: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def check_product(pool: Pool, kind: T, rows: int, columns: int, tokens: int) -> None:
    w, exact = matrix(pool, kind, (rows, columns))
    x, bias = normal(tokens, columns), normal(1, rows, 2)[0]
    y, used = product(pool, w, x, bias)
    true = used @ exact.T + bias
    size = np.abs(used) @ np.abs(exact).T + np.abs(bias)  # what roundings are relative to
    assert np.max(np.abs(y - true) / size) < 2e-6
    energy = np.sum(x.astype(np.float64) ** 2 @ exact.T**2)  # of a product of unrelated signs
    assert np.sum((y - (x @ exact.T + bias)) ** 2) <= 1e-3 * energy


@pytest.mark.parametrize("kind", list(LAYOUTS), ids=lambda kind: kind.name)
def test_products_are_those_of_the_decoded_weights(pool: Pool, kind: T) -> None:
    for rows, tokens in ((1, 1), (37, 3), (48, 8), (50, 75)):
        check_product(pool, kind, rows, 512, tokens)


@pytest.mark.parametrize("kind", CONVERTED, ids=lambda kind: kind.name)
def test_types_without_a_layout_lose_nothing(pool: Pool, kind: T) -> None:
    check_product(pool, kind, 21, 512, 5)
    w, _ = matrix(pool, kind, (21, 512))
    assert kind.name in w.note


@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("columns", [1, 8, 33])
def test_float_matrices_may_have_any_number_of_columns(pool: Pool, kind: T, columns: int) -> None:
    check_product(pool, kind, 19, columns, 6)


@pytest.mark.parametrize("kind", [T.Q4_0, T.Q6_K, T.F16], ids=lambda kind: kind.name)
def test_a_row_does_not_depend_on_its_batch(pool: Pool, kind: T) -> None:
    w, _ = matrix(pool, kind, (40, 512))
    x = normal(75, 512)
    together, _ = product(pool, w, x)
    for begin, end in ((0, 1), (3, 5), (8, 15), (20, 75)):
        apart, _ = product(pool, w, np.ascontiguousarray(x[begin:end]))
        assert np.array_equal(apart, together[begin:end])


def test_activations_keep_their_greatest_and_their_zeros(pool: Pool) -> None:
    x = normal(3, 96)
    x[1] = 0
    x[2, :32] *= 1e-30
    _, used = quantized(pool, x)
    assert np.array_equal(used[1], np.zeros(96))
    scale = np.abs(x.reshape(3, 3, 32)).max(-1, keepdims=True) / 127
    assert np.all(np.abs(used.reshape(3, 3, 32) - x.reshape(3, 3, 32)) <= 0.5001 * scale)


class Recorded:
    """A tape with the buffers of one operation."""

    def __init__(self, pool: Pool, tokens: int) -> None:
        self.step = Step(64, 4, 8)
        self.step.add(list(range(tokens)), 0, list(range(8)), "all")
        self.tape = Tape(self.step, pool)

    def buffer(self, width: int, per_row: int = 1) -> Buf:
        return Buf(aligned((64 * per_row, width), np.float32), "tokens", per_row)

    def run(self) -> None:
        self.tape.finish()
        self.tape.run()


@pytest.mark.parametrize("kind", [T.Q4_K, T.F32], ids=lambda kind: kind.name)
@pytest.mark.parametrize("tokens", [1, 5, 33])
@pytest.mark.parametrize("shared", [True, False], ids=["x of tokens", "x of choices"])
def test_experts_multiply_the_rows_that_chose_them(
    pool: Pool, kind: T, tokens: int, shared: bool
) -> None:
    experts, per_token, rows, columns = 7, 3, 21, 256
    w, exact = matrix(pool, kind, (experts, rows, columns))
    r = Recorded(pool, tokens)
    x, ids = r.buffer(columns, 1 if shared else per_token), r.buffer(per_token)
    out, bias = r.buffer(rows, per_token), normal(experts, rows, 3)
    x.data[:] = normal(*x.data.shape)
    rng = np.random.default_rng(4)
    ids.data[:] = np.argsort(rng.random((64, experts)), axis=1)[:, :per_token]
    emit_experts(r.tape, out, w, x, ids, bias)
    r.run()
    used = x.data if kind is T.F32 else quantized(pool, x.data)[1]
    for t in range(tokens):
        for j in range(per_token):
            e = int(ids.data[t, j])
            true = exact[e] @ used[t if shared else t * per_token + j] + bias[e]
            got = out.data[t * per_token + j]
            assert np.allclose(got, true, rtol=0, atol=1e-5 * np.abs(true).max())
    assert not out.data[tokens * per_token :].any(), "rows beyond the live ones were written"


@pytest.mark.parametrize(
    "kind", [T.F16, T.Q5_1, T.Q3_K, T.Q6_K, T.MXFP4], ids=lambda kind: kind.name
)
def test_look_ups_give_the_rows_of_the_table(pool: Pool, kind: T) -> None:
    w, exact = matrix(pool, kind, (70, 256))
    r = Recorded(pool, 6)
    r.step.tokens[:6] = (0, 69, 15, 16, 33, 69)
    out = r.buffer(256)
    emit_embed(r.tape, out, w, 3.0)
    r.run()
    assert np.allclose(out.data[:6], 3 * exact[r.step.tokens[:6]], rtol=1e-6, atol=1e-6)


def test_one_8_bit_form_serves_all_products_of_a_buffer(pool: Pool) -> None:
    a, _ = matrix(pool, T.Q4_0, (32, 64), 5)
    b, _ = matrix(pool, T.Q8_0, (16, 64), 6)
    r = Recorded(pool, 2)
    x, y, z = r.buffer(64), r.buffer(32), r.buffer(16)
    emit_matmul(r.tape, y, a, x, None)
    emit_matmul(r.tape, z, b, x, None)
    names = [entry.kernel for entry in r.tape.entries]
    assert names == ["quantize.quantize", "matmul_q4_0.matmul", "matmul_q8_0.matmul"]


TARGETS = {  # what to compile for, and the lowering that this must give
    "avx2": ("x86-64-v3", "", "avx2"),
    "generic": ("x86-64", "", "generic"),
    "avx512": ("x86-64-v4", "", "avx512"),
    "avx-vnni": ("x86-64-v3", "+avxvnni", "avx-vnni"),
}


def runs_here(cpu: str, flags: str) -> bool:
    """True if this machine has the instructions of that target."""
    host = parse("", "")
    return host.features.issuperset(parse(cpu, flags).features - {"sahf", "cx16"})


@pytest.mark.parametrize("name", TARGETS)
def test_other_lowerings_give_the_same_products(name: str) -> None:
    cpu, flags, lowering = TARGETS[name]
    if not runs_here(cpu, flags):
        pytest.skip(f"this machine cannot run {cpu} {flags}")
    kinds = KINDS if name in ("avx2", "generic") else (T.Q8_0,)
    own = {"LLAMOOT_CPU": cpu, "LLAMOOT_CPU_FEATURES": flags}
    done = subprocess.run(
        [sys.executable, __file__, *[str(int(kind)) for kind in kinds]],
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] == lowering
    print(f"lowering {lowering}: {done.stdout.strip()}")


if __name__ == "__main__":
    from llamoot.kernels.dot import LOWERING

    chosen = lease(2)
    for number in sys.argv[1:]:
        for shape in ((37, 512, 1), (37, 512, 6), (20, 256, 19)):
            check_product(chosen, T(int(number)), *shape)
    print(LOWERING, *(T(int(number)).name for number in sys.argv[1:]))
