"""Attention over the paged cache gives what its numpy twin gives, in every variant."""

from typing import Any

import numpy as np
import pytest

from llamoot.errors import BadRequest
from llamoot.kernels.cache import LayerCache, Shape, block_bytes, copy_block
from llamoot.kernels.compiled import Compiled
from llamoot.kernels.step import BLOCK
from llamoot.kernels.table import Attention, Buf, Kernels
from pairs import assert_same, make_step, run_pair

pytestmark = pytest.mark.kernel

RNG = np.random.default_rng(5)
FIRST = [(40, 0), (1, 0), (9, 0)]


def attend(
    how: Attention, type: Any = "f32", twin_type: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """(twin, compiled) result for a batch whose keys are all written in the same step."""
    kv, d, v = how.n_kv_heads, how.head_dim, how.v_dim
    shapes = {
        "q": (how.n_heads * d, 1),
        "k": (kv * d, 1),
        "v": (kv * v, 1),
        "out": (how.n_heads * v, 1),
    }

    def forward(k: Kernels, x: dict[str, Buf], executor: Any) -> None:
        kind = type if isinstance(executor, Compiled) else twin_type or type
        cache = executor.cache(64, kv, d, v, kind)
        k.store(cache, x["k"], x["v"])
        k.attend(x["out"], x["q"], cache, how)

    return run_pair(FIRST, shapes, forward)["out"]


SHAPES = [(4, 4, 16, 16), (6, 2, 32, 32), (16, 8, 128, 128), (8, 1, 40, 24), (71, 1, 8, 8)]


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("heads,kv,d,v", SHAPES)
def test_shapes_and_cache_types(heads: int, kv: int, d: int, v: int, type: str) -> None:
    how = Attention(heads, kv, d, v, 0.3 / d**0.5)
    if type == "q8_0":
        exact, near = attend(how, type, "f32")
        assert 0 < np.square(exact - near).sum() / np.square(exact).sum() < 1e-4
    else:
        assert_same(attend(how, type=type))


VARIANTS = {
    "window": {"window": 5},
    "window of blocks": {"window": 40},
    "symmetric window": {"causal": False, "symmetric_window": True, "window": 12},
    "not causal": {"causal": False},
    "chunk": {"chunk": 16},
    "softcap": {"softcap": 3.0},
    "sinks": {"sinks": RNG.standard_normal(6).astype(np.float32)},
    "alibi": {"alibi": (2.0 ** -np.arange(6)).astype(np.float32)},
    "all": {
        "window": 20,
        "softcap": 2.0,
        "sinks": np.full(6, 4, np.float32),
        "alibi": np.full(6, 0.1, np.float32),
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    assert_same(attend(Attention(6, 2, 20, 20, 0.1, **VARIANTS[name])))


def long_context(
    threads: int, rows: int, length: int, how: Attention, type: str = "f32", others: int = 0
) -> np.ndarray:
    """The last `rows` rows of a sequence of `length`, after the earlier ones went in chunks."""
    rng = np.random.default_rng(11)
    q, k = rng.standard_normal((2, length, how.n_heads * how.head_dim)).astype(np.float32)
    batch = [(rows, 0)] + [(1, 0)] * others
    step = make_step(batch, max_tokens=64, context=1024)
    executor = Compiled(step, threads)
    cache = executor.cache(step.max_blocks * len(batch), how.n_kv_heads, how.head_dim, 16, type)
    bufs = {name: executor.buffer(how.n_heads * how.head_dim) for name in ("q", "k", "out")}
    kv = bufs["k"].columns(0, how.n_kv_heads * how.head_dim)

    def forward(kernels: Kernels) -> None:
        kernels.store(cache, kv, kv)
        kernels.attend(bufs["out"], bufs["q"], cache, how)

    executor.record(forward)
    blocks = [step.table[i].copy() for i in range(len(batch))]
    start = 0
    while start < length:
        n = min(64 - others, length - rows - start) if start < length - rows else rows
        step.clear()
        step.add([0] * n, start, blocks[0], "none")
        for i in range(others):
            step.add([0], 3, blocks[i + 1], "none")
        bufs["q"].data[:n], bufs["k"].data[:n] = q[start : start + n], k[start : start + n]
        executor.run()
        start += n
    result = bufs["out"].data[:rows].copy()
    executor.close()
    return result


LONG = Attention(4, 2, 16, 16, 0.25)


@pytest.mark.parametrize("how", [LONG, Attention(4, 2, 16, 16, 0.25, window=300)])
def test_split_keys_equal_whole_ones(how: Attention) -> None:
    split = long_context(2, 1, 1000, how)
    whole = long_context(2, 40, 1000, how)[-1:]
    assert np.array_equal(whole, split)


def test_sinks_count_once_in_split_keys() -> None:
    how = Attention(4, 2, 16, 16, 0.25, sinks=np.full(4, 3, np.float32))
    assert np.array_equal(long_context(2, 40, 900, how)[-2:], long_context(2, 2, 900, how))


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_neither_threads_nor_neighbours_change_a_bit(rows: int) -> None:
    alone = long_context(1, rows, 700, LONG)
    for threads, others in ((2, 0), (3, 0), (2, 3)):
        assert np.array_equal(alone, long_context(threads, rows, 700, LONG, others=others))


def test_eight_bit_cache_is_close_to_float() -> None:
    exact, near = (long_context(2, 4, 600, LONG, type) for type in ("f32", "q8_0"))
    assert 0 < np.square(exact - near).sum() / np.square(exact).sum() < 1e-4


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
def test_copied_block_holds_the_same(type: str) -> None:
    layers = [LayerCache(Shape(2, 40, 24), 5, type) for _ in range(2)]
    for layer in layers:
        for array in (layer.k, layer.v):
            array.view(np.uint8)[:] = RNG.integers(0, 100, array.view(np.uint8).shape)
    before = layers[1].k[3].copy()
    copy_block(layers, 3, 1)
    for layer in layers:
        assert np.array_equal(layer.k[1], layer.k[3]) and np.array_equal(layer.v[1], layer.v[3])
    assert np.array_equal(layers[1].k[3], before)
    assert layers[0].n_bytes == 5 * block_bytes(Shape(2, 40, 24), type)


def test_eight_bit_cache_takes_eight_and_a_half_bits() -> None:
    assert block_bytes(Shape(8, 128, 128), "q8_0") == 2 * 8 * 128 * BLOCK * 34 // 32


def test_unknown_cache_type_is_refused() -> None:
    with pytest.raises(BadRequest, match="q4_0"):
        LayerCache(Shape(1, 8, 8), 1, "q4_0")
