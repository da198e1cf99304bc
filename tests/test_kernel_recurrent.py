"""Layers with a state: kernels against their twins, however a sequence is cut into steps."""

import numpy as np
import pytest

from llamoot.kernels.compiled import Compiled
from llamoot.kernels.step import Step
from llamoot.kernels.table import Buf, Executor, Floats, Kernels
from llamoot.kernels.twins import Twins

pytestmark = pytest.mark.kernel

SEQS = [(5, 2), (1, 0), (9, 3)]  # tokens and slot of each sequence


def run(
    kind: type[Twins] | type[Compiled], name: str, sizes: dict[str, int], cuts: list[int]
) -> tuple[Floats, Floats]:
    """Outputs of all tokens, sequence by sequence, and the states; `cuts` are steps' ends."""
    step = Step(32, 4, 4)
    executor: Executor = kind(step, 2)
    rng = np.random.default_rng(5)
    heads, size, n, groups = (sizes[key] for key in ("heads", "size", "n", "groups"))
    widths, state, call = operation(name, heads, size, n, groups)
    total = sum(length for length, _ in SEQS)
    values = {key: rng.standard_normal((total, w), np.float32) for key, w in widths.items()}
    for key in ("dt", "beta"):
        if key in values:
            values[key] = np.abs(values[key])
    if "decay" in values:
        values["decay"] = -np.abs(values["decay"])
    buffers = {key: executor.buffer(w) for key, w in widths.items()}
    out = executor.buffer(widths["x"])
    state[:] = 7  # what an earlier sequence has left
    executor.record(lambda k: call(k, out, buffers))
    results = np.zeros((total, widths["x"]), np.float32)
    starts = np.cumsum([0, *(length for length, _ in SEQS)])
    begun = 0
    for cut in cuts:
        step.clear()
        rows = []
        for (length, slot), start in zip(SEQS, starts):
            first, stop = min(begun, length), min(cut, length)
            if stop > first:
                step.slot[step.n_seqs] = slot
                step.add([0] * (stop - first), first, [0], "none")
                rows += list(range(start + first, start + stop))
        for key, buffer in buffers.items():
            buffer.data[: len(rows)] = values[key][rows]
        executor.run()
        results[rows] = out.data[: len(rows)]
        begun = cut
    executor.close()
    return results, state[[slot for _, slot in SEQS]].copy()


def operation(name: str, heads: int, size: int, n: int, groups: int):  # type: ignore[no-untyped-def]
    """Widths of the inputs, a state for four sequences, and the call."""
    rng = np.random.default_rng(3)
    wide = heads * size
    if name == "conv":
        weight, bias = rng.standard_normal((n, wide), np.float32), np.ones(wide, np.float32)
        state = np.zeros((4, n - 1, wide), np.float32)

        def conv(k: Kernels, out: Buf, b: dict[str, Buf]) -> None:
            k.conv(out, b["x"], weight, bias, state)

        return {"x": wide}, state, conv
    state = np.zeros((4, heads, size, n), np.float32)
    if name == "scan":
        a = -np.abs(rng.standard_normal((heads, n), np.float32))

        def scan(k: Kernels, out: Buf, b: dict[str, Buf]) -> None:
            k.scan(out, b["x"], b["dt"], b["b"], b["c"], a, state)

        return {"x": wide, "dt": heads, "b": groups * n, "c": groups * n}, state, scan
    own = n if name == "delta_own" else 1

    def delta(k: Kernels, out: Buf, b: dict[str, Buf]) -> None:
        k.delta(out, b["q"], b["k"], b["x"], b["decay"], b["beta"], state, name == "delta_tiled")

    widths = {"x": wide, "q": groups * n, "k": groups * n, "decay": heads * own, "beta": heads}
    return widths, state, delta


SIZES = [
    {"heads": 4, "size": 8, "n": 4, "groups": 2},
    {"heads": 2, "size": 37, "n": 19, "groups": 1},
    {"heads": 300, "size": 1, "n": 16, "groups": 1},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ["conv", "scan", "delta", "delta_tiled", "delta_own"])
def test_kernels_agree_with_their_twins(name: str, sizes: dict[str, int]) -> None:
    wanted, kept = run(Twins, name, sizes, [9])
    got, state = run(Compiled, name, sizes, [9])
    scale = max(1.0, float(np.abs(wanted).max()))
    assert np.abs(got - wanted).max() < 1e-5 * scale
    assert np.abs(state - kept).max() < 1e-5 * max(1.0, float(np.abs(kept).max()))


@pytest.mark.parametrize("kind", [Twins, Compiled])
@pytest.mark.parametrize("name", ["conv", "scan", "delta"])
def test_state_goes_on_from_step_to_step(name: str, kind: type[Twins] | type[Compiled]) -> None:
    whole, kept = run(kind, name, SIZES[0], [9])
    for cuts in ([1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 9]):
        parts, state = run(kind, name, SIZES[0], cuts)
        assert np.abs(parts - whole).max() < 1e-5 * max(1.0, float(np.abs(whole).max()))
        assert np.abs(state - kept).max() < 1e-5 * max(1.0, float(np.abs(kept).max()))
