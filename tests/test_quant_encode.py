"""Encoders lose no more than llama.cpp's, and what they write is what the decoder reads."""

import ctypes
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamoot.gguf.types import TensorType as T
from llamoot.quant.decode import decode
from llamoot.quant.encode import ENCODERS, encode

pytestmark = pytest.mark.kernel

# Largest root mean square error on normal values of variance 1, from below 2 % above llama.cpp's.
BOUNDS = {
    T.F16: 0.0003,
    T.BF16: 0.0025,
    T.Q8_0: 0.0055,
    T.Q6_K: 0.0181,
    T.Q5_K: 0.0369,
    T.Q5_1: 0.0387,
    T.Q5_0: 0.0437,
    T.Q4_K: 0.0729,
    T.IQ4_NL: 0.0778,
    T.IQ4_XS: 0.0784,
    T.Q4_1: 0.0799,
    T.Q4_0: 0.0878,
    T.MXFP4: 0.1174,
    T.Q3_K: 0.1540,
    T.Q2_K: 0.3029,
    T.TQ1_0: 0.8236,
    T.TQ2_0: 0.8236,
}


def normal(rows: int = 64, cols: int = 1024) -> Any:
    return np.random.default_rng(5).standard_normal((rows, cols), dtype=np.float32)


def error(values: Any, kind: T, raw: Any) -> float:
    return float(np.sqrt(np.mean((decode(raw.reshape(-1), kind, values.shape) - values) ** 2)))


@pytest.mark.parametrize("kind", BOUNDS)
def test_loss_is_bounded(kind: T) -> None:
    x = normal()
    raw = encode(x, kind)
    assert raw.shape == (64, 1024 // kind.block * kind.block_bytes) and raw.dtype == np.uint8
    assert error(x, kind, raw) <= BOUNDS[kind]


@pytest.mark.peer
@pytest.mark.parametrize("spread", ["normal", "heavy tails", "all positive"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_loss_is_at_most_2_percent_above_ggml(kind: T, spread: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the measure")
    folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    x = normal()
    if spread == "heavy tails":
        x = x**3
    elif spread == "all positive":
        x = np.abs(x) + 1
    ours = encode(x, kind)
    theirs = np.empty_like(ours)
    library.ggml_quantize_chunk(
        int(kind),
        ctypes.c_void_p(x.ctypes.data),
        ctypes.c_void_p(theirs.ctypes.data),
        ctypes.c_int64(0),
        ctypes.c_int64(x.shape[0]),
        ctypes.c_int64(x.shape[1]),
        None,
    )
    assert error(x, kind, ours) <= 1.02 * error(x, kind, theirs)


@pytest.mark.parametrize("kind", [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.BF16, T.TQ1_0, T.TQ2_0])
def test_simple_types_are_written_byte_for_byte_as_the_gguf_package_does(kind: T) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is the measure")
    x = normal()
    theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(int(kind)))
    assert np.array_equal(encode(x, kind), theirs.view(np.uint8))


@pytest.mark.parametrize("kind", ENCODERS)
def test_constant_rows_survive(kind: T) -> None:
    """Zeros stay zeros; one value alone, however small or large, stays near itself."""
    x = np.zeros((4, 256), np.float32)
    x[1], x[2], x[3] = 1.0, -3e-3, 1e4
    y = decode(encode(x, kind).reshape(-1), kind, x.shape)
    assert np.isfinite(y).all() and not y[0].any()
    assert np.allclose(y[1:], x[1:], rtol=0.26)  # MXFP4 has no step between 4 and 6


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(list(ENCODERS)), st.integers(0, 2**32), st.floats(2.0**-10, 2.0**10), st.data()
)
def test_threads_and_rows_do_not_change_a_byte(
    kind: T, seed: int, scale: float, data: st.DataObject
) -> None:
    x = np.random.default_rng(seed).standard_normal((6, 512), dtype=np.float32) * scale
    x = x.astype(np.float32)
    together = encode(x, kind, threads=2)
    row = data.draw(st.integers(0, 5))
    assert np.array_equal(together[row], encode(x[row : row + 1], kind)[0])
    assert np.isfinite(decode(together.reshape(-1), kind, x.shape)).all()


def test_decoded_values_encode_to_themselves() -> None:
    """A second pass through the same type adds (almost) nothing: the first one's grid is kept."""
    x = normal()
    for kind in (T.Q8_0, T.Q4_0, T.Q5_0, T.TQ2_0):
        once = decode(encode(x, kind).reshape(-1), kind, x.shape)
        twice = decode(encode(once, kind).reshape(-1), kind, x.shape)
        assert np.abs(twice - once).max() <= 2e-3 * np.abs(x).max()


def test_a_type_without_an_encoder_is_named() -> None:
    with pytest.raises(ValueError, match="IQ2_XXS"):
        encode(normal(), T.IQ2_XXS)
