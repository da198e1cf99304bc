"""Vector instructions against numpy, in every lowering that this machine can run."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numba import njit

from llamoot.kernels import simd
from llamoot.kernels.dot import (
    BIAS,
    LOWERING,
    dot_small_tile,
    dot_wide_tile,
    read_addresses,
    zero_tile,
)
from llamoot.kernels.memory import address, aligned
from llamoot.kernels.simd import LANES, floats, half_at, load_floats, load_halves, load_quads
from llamoot.kernels.tables import DOUBLED, NONLINEAR, lookup
from llamoot.kernels.target import parse
from llamoot.kernels.vector import store_part
from llamoot.quant import codebooks

pytestmark = pytest.mark.kernel


def floats_of_halves(x: int, out: int, n: int) -> None:
    for i in range(0, n, LANES):
        simd.store(out + 4 * i, floats(load_halves(x + 2 * i)))


def float_of_each_half(x: int, out: int, n: int) -> None:
    for i in range(n):
        simd.store(out + 4 * i, half_at(x + 2 * i))


@pytest.mark.parametrize("convert", [floats_of_halves, float_of_each_half])
def test_every_finite_half_becomes_its_float(convert: Any) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits[np.isfinite(bits.view(np.float16))].copy()
    out = aligned(halves.size, np.float32)
    njit(convert)(address(halves), address(out), halves.size)
    assert np.array_equal(out, halves.view(np.float16).astype(np.float32))


@njit
def store_some(x: int, out: int, n: int) -> None:
    store_part(out, load_floats(x), n)


def test_a_partial_store_touches_nothing_beyond() -> None:
    x = np.arange(1, LANES + 1, dtype=np.float32)
    for n in range(LANES + 1):
        out = np.full(LANES, -1, np.float32)
        store_some(address(x), address(out), n)
        assert np.array_equal(out, np.where(np.arange(LANES) < n, x, -1))


@njit
def small_sums(w: int, table: int, out: int) -> None:
    base = read_addresses(table, 2)
    sums = dot_small_tile(zero_tile(base), load_quads(w), base, 4)
    simd.store(out, sums[0])
    simd.store(out + 4 * LANES, sums[1])


@njit
def wide_sums(w: int, table: int, out: int) -> None:
    base = read_addresses(table, 2)
    sums = dot_wide_tile(zero_tile(base), load_quads(w), base, 4)
    simd.store(out, sums[0])
    simd.store(out + 4 * LANES, sums[1])


@pytest.mark.parametrize("wide", [False, True], ids=["small", "wide"])
def test_sums_of_four_products_are_exact_at_the_extremes(wide: bool) -> None:
    rng = np.random.default_rng(0)
    low = -128 if wide else 0
    for weights in (
        np.full((LANES, 4), 127),
        np.full((LANES, 4), low),
        rng.integers(low, 128, (LANES, 4)),
    ):
        for x in (np.full((2, 4), -127), np.full((2, 4), 127), rng.integers(-127, 128, (2, 4))):
            w, rows = weights.astype(np.int8), aligned((2, 64), np.int8)
            rows[:, 4:8] = x
            table = address(rows) + 64 * np.arange(2)
            out = aligned((2, LANES), np.int32)
            (wide_sums if wide else small_sums)(address(w), address(table), address(out))
            extra = BIAS * x.sum(1, keepdims=True) if wide else 0
            assert np.array_equal(out, x @ weights.T + extra)


@njit
def look_up(x: int, nonlinear: int, doubled: int) -> None:
    simd.store(nonlinear, lookup(load_quads(x), NONLINEAR))
    simd.store(doubled, lookup(load_quads(x), DOUBLED))


def test_look_ups_are_those_of_the_tables() -> None:
    places = np.arange(4 * LANES, dtype=np.int8) % 16
    nonlinear, doubled = np.zeros_like(places), np.zeros_like(places)
    look_up(address(places), address(nonlinear), address(doubled))
    assert np.array_equal(nonlinear, codebooks.NONLINEAR[places])
    assert np.array_equal(doubled, codebooks.E2M1[places] + 12)


TARGETS = {  # what to compile for, and the lowering that this must give
    "avx2": ("x86-64-v3", "", "avx2"),
    "generic": ("x86-64", "", "generic"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_other_lowerings_pass_the_same_tests(name: str) -> None:
    cpu, flags, lowering = TARGETS[name]
    target = parse(cpu, flags)
    if not parse("", "").features.issuperset(target.features - {"sahf", "cx16"}):
        pytest.skip(f"this machine cannot run {cpu} {flags}")
    own = {
        "LLAMOOT_CPU": cpu,
        "LLAMOOT_CPU_FEATURES": flags,
        "NUMBA_CPU_NAME": target.cpu,
        "NUMBA_CPU_FEATURES": target.flags,
    }
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "not other_lowerings"]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    shown = subprocess.run(
        [sys.executable, __file__], env=os.environ | own, capture_output=True, text=True
    )
    assert shown.stdout.strip() == lowering


if __name__ == "__main__":
    print(LOWERING)
