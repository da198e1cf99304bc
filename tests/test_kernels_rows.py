"""Every row-wise operation gives what its numpy twin gives, on odd shapes and slices too."""

import inspect
import typing

import numpy as np
import pytest

from llamoot.errors import LlamootError
from llamoot.kernels.compiled import Compiled
from llamoot.kernels.recorder import Recorder
from llamoot.kernels.table import Act, Buf, Kernels, Rope, Routing
from llamoot.kernels.twins import TwinKernels
from pairs import assert_same, make_step, run_pair

pytestmark = pytest.mark.kernel

BATCH = [(5, 0), (1, 17), (3, 250)]
WIDTHS = [1, 7, 16, 40, 129]
RNG = np.random.default_rng(1)


def vector(n: int) -> np.ndarray:
    return RNG.standard_normal(n).astype(np.float32)


def check(width: int, call, **more: tuple[int, int]) -> None:
    """`call(k, out, a, b)` on buffers of `width`, apart and in place."""
    shapes = {"out": (width, 1), "a": (width, 1), "b": (width, 1), **more}
    apart = run_pair(BATCH, shapes, lambda k, x, e: call(k, x["out"], x["a"], x["b"]))
    assert_same(apart["out"])
    for name in ("a", "b"):
        assert np.array_equal(*apart[name]), "an input was written"
    place = run_pair(BATCH, shapes, lambda k, x, e: call(k, x["a"], x["a"], x["b"]))
    assert_same(place["a"])


def test_recorder_and_twins_have_the_same_signatures() -> None:
    for name, member in inspect.getmembers(Kernels, inspect.isfunction):
        if not name.startswith("_"):
            table = inspect.signature(member)
            assert inspect.signature(getattr(Recorder, name)) == table, name
            assert inspect.signature(getattr(TwinKernels, name)) == table, name


@pytest.mark.parametrize("width", WIDTHS)
def test_arithmetic_equals_the_twins(width: int) -> None:
    v = vector(width)
    check(width, lambda k, out, a, b: k.add(out, a, b, 0.37))
    check(width, lambda k, out, a, b: k.add_vector(out, a, v))
    check(width, lambda k, out, a, b: k.mul(out, a, b))
    check(width, lambda k, out, a, b: k.mul_vector(out, a, v))
    check(width, lambda k, out, a, b: k.scale(out, a, -1.5))
    check(width, lambda k, out, a, b: k.clamp(out, a, 1.25))
    check(width, lambda k, out, a, b: k.softcap(out, a, 2.5))
    check(width, lambda k, out, a, b: k.scale_by_pos(out, a, 100, 0.3, 7))


@pytest.mark.parametrize("kind", typing.get_args(Act))
def test_activations_equal_the_twins(kind: Act) -> None:
    for width in (3, 64):
        check(width, lambda k, out, a, b: k.act(out, a, kind))
        check(width, lambda k, out, a, b: k.glu(out, a, b, kind))
        check(width, lambda k, out, a, b: k.glu(out, a, b, kind, limit=1.5))
    check(20, lambda k, out, a, b: k.glu(out, a, b, kind, limit=2.0, alpha=1.702))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("part", [5, 16, 100])
def test_norms_equal_the_twins(groups: int, part: int) -> None:
    width = groups * part
    for w, b in ((vector(part), vector(part)), (vector(width), vector(width))):
        check(width, lambda k, out, a, x, w=w: k.rmsnorm(out, a, w, 1e-5, groups))
        check(width, lambda k, out, a, x, w=w, b=b: k.layernorm(out, a, w, b, 1e-5, groups))
        check(width, lambda k, out, a, x, w=w: k.layernorm(out, a, w, None, 1e-5, groups))
        check(width, lambda k, out, a, x, b=b: k.layernorm(out, a, None, b, 1e-5, groups))
    check(width, lambda k, out, a, x: k.rmsnorm(out, a, None, 1e-6, groups))
    check(width, lambda k, out, a, x: k.layernorm(out, a, None, None, 1e-6, groups))


def test_layernorm_survives_a_large_mean() -> None:
    def forward(k: Kernels, x: dict[str, Buf], e: object) -> None:
        k.scale(x["a"], x["a"], 1e-2)
        k.add_vector(x["a"], x["a"], np.full(37, 100, np.float32))
        k.layernorm(x["out"], x["a"], None, None, 1e-5)

    pairs = run_pair(BATCH, {"out": (37, 1), "a": (37, 1)}, forward)
    assert_same(pairs["out"], 1e-4)


def test_rows_wider_than_a_piece_equal_the_twins() -> None:
    check(9001, lambda k, out, a, b: k.add(out, a, b))
    check(9001, lambda k, out, a, b: k.glu(out, a, b, "silu"))


def test_column_slices_are_worked_on_alone() -> None:
    def forward(k: Kernels, x: dict[str, Buf], e: object) -> None:
        left, middle = x["a"].columns(3, 20), x["a"].columns(20, 37)
        k.add(left, left, middle)
        k.act(middle, middle, "silu")

    assert_same(run_pair(BATCH, {"a": (50, 1)}, forward)["a"])


@pytest.mark.parametrize("kind", ["halves", "adjacent"])
@pytest.mark.parametrize("head_dim,n_rot", [(8, 8), (64, 64), (80, 20), (36, 10)])
def test_rope_equals_the_twin(kind: str, head_dim: int, n_rot: int) -> None:
    freqs = (10000.0 ** -(np.arange(n_rot // 2) / (n_rot / 2))).astype(np.float32)
    rope = Rope(kind, freqs, n_rot, 1.2)

    def forward(k: Kernels, x: dict[str, Buf], e: object) -> None:
        k.rope(x["a"], 3, rope)
        k.rope(x["b"].columns(0, head_dim), 1, rope)

    pairs = run_pair(BATCH, {"a": (3 * head_dim, 1), "b": (head_dim + 4, 1)}, forward)
    assert_same(pairs["a"])
    assert_same(pairs["b"])


def test_rope_is_exact_at_far_positions() -> None:
    rope = Rope("halves", np.array([1.0, 0.3, 0.01], np.float32), 6)
    far = [(2, 500), (1, 509)]
    pairs = run_pair(far, {"a": (6, 1)}, lambda k, x, e: k.rope(x["a"], 1, rope))
    assert_same(pairs["a"])


def test_gather_takes_the_wanted_rows() -> None:
    def forward(k: Kernels, x: dict[str, Buf], e: object) -> None:
        out = Buf(x["out"].data, "outputs")
        k.gather(out, x["a"])

    assert_same(run_pair(BATCH, {"out": (21, 1), "a": (21, 1)}, forward)["out"])


@pytest.mark.parametrize("width", [4, 33])
def test_experts_rows_are_spread_and_combined(width: int) -> None:
    def forward(k: Kernels, x: dict[str, Buf], e: object) -> None:
        k.spread(x["wide"], x["a"], x["w"])
        k.combine_experts(x["out"], x["wide"], x["w"])
        k.combine_experts(x["plain"], x["wide"], None)

    shapes = {"a": (width, 1), "w": (3, 1), "wide": (width, 3), "out": (width, 1)}
    pairs = run_pair(BATCH, shapes | {"plain": (width, 1)}, forward)
    for name in ("wide", "out", "plain"):
        assert_same(pairs[name])


@pytest.mark.parametrize("parts", [1, 4])
def test_a_narrow_factor_multiplies_parts(parts: int) -> None:
    def forward(k: Kernels, x: dict[str, Buf], e: object) -> None:
        k.mul(x["out"], x["a"], x["b"])

    pairs = run_pair(BATCH, {"out": (44, 1), "a": (44, 1), "b": (parts, 1)}, forward)
    assert_same(pairs["out"])


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "softmax_after", "sqrt_softplus"])
@pytest.mark.parametrize("experts,k,groups,top_groups", [(8, 2, 1, 1), (60, 6, 4, 2), (5, 1, 1, 1)])
def test_routing_equals_the_twin(
    gate: str, experts: int, k: int, groups: int, top_groups: int
) -> None:
    for bias in (None, vector(experts)):
        how = Routing(k, gate, bias, gate != "softmax_after", 2.5, groups, top_groups)

        def forward(kernels: Kernels, x: dict[str, Buf], e: object, how: Routing = how) -> None:
            kernels.route(x["ids"], x["w"], x["logits"], how)

        shapes = {"ids": (k, 1), "w": (k, 1), "logits": (experts, 1)}
        pairs = run_pair(BATCH, shapes, forward)
        assert np.array_equal(*pairs["ids"])
        assert_same(pairs["w"], 1e-5)


def test_what_the_kernels_cannot_hold_is_refused() -> None:
    executor = Compiled(make_step(BATCH), 1)
    logits, ids = executor.buffer(1025), executor.buffer(2)
    with pytest.raises(LlamootError, match="1025 experts"):
        executor.record(lambda k: k.route(ids, ids, logits, Routing(2, "softmax")))
    executor.close()
