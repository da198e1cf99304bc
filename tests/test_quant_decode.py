"""Every tensor type decodes bit for bit as the gguf package (and ggml itself) decodes it."""

import ctypes
import pathlib

import numpy as np
import pytest

from llamoot.gguf.types import TensorType
from llamoot.quant.codebooks import codebook
from llamoot.quant.decode import decode
from llamoot.quant.layout import LAYOUT

pytestmark = pytest.mark.pure

# What the gguf package has no decoder for: numpy's own types, and blocks of activations.
NUMPY = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
ONLY_GGML = ("Q8_1", "Q8_K", "Q1_0", "Q2_0")


def blocks(kind: TensorType, n: int = 256) -> np.ndarray:
    """Random bytes: every bit pattern, infinite and undefined scales among them."""
    rng = np.random.default_rng(int(kind))
    return rng.integers(0, 256, (n, kind.block_bytes), np.uint8)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.reshape(-1).view(np.uint32), b.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("kind", [t for t in TensorType if t.name not in {*NUMPY, *ONLY_GGML}])
def test_decodes_like_the_gguf_package(kind: TensorType) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is the measure")
    raw = blocks(kind)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(int(kind)))
    assert same_bits(decode(raw.reshape(-1), kind, 256 * kind.block), theirs)


@pytest.mark.parametrize("name", NUMPY)
def test_plain_types_become_floats(name: str) -> None:
    kind = TensorType[name]
    values = np.arange(-8, 8).astype(NUMPY[name])
    assert np.array_equal(decode(values.view(np.uint8), kind, (4, 4)), values.reshape(4, 4))


@pytest.mark.peer
@pytest.mark.parametrize("kind", [t for t in LAYOUT if t is not TensorType.Q8_1])
def test_decodes_like_ggml(kind: TensorType) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the measure")
    folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("*ggml-base.*"))))
    raw = blocks(kind)
    theirs = np.empty(256 * kind.block, np.float32)
    name = kind.name.lower() if not kind.name.endswith("_K") else kind.name[:-1].lower() + "K"
    row = getattr(library, f"dequantize_row_{name}")
    row(ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(theirs.ctypes.data), theirs.size)
    ours = decode(raw.reshape(-1), kind, theirs.size)
    known = ~np.isnan(theirs)  # compilers differ in which NaN a sum of two keeps
    assert same_bits(ours[known], theirs[known]) and np.isnan(ours[~known]).all()


def test_q8_1_is_q8_0_with_a_sum() -> None:
    raw = blocks(TensorType.Q8_1)
    shorter = np.concatenate([raw[:, :2], raw[:, 4:]], axis=1)
    ours = decode(raw.reshape(-1), TensorType.Q8_1, 256 * 32)
    assert same_bits(ours, decode(shorter.reshape(-1), TensorType.Q8_0, 256 * 32))


def test_layouts_are_as_long_as_their_blocks() -> None:
    assert all(layout.itemsize == kind.block_bytes for kind, layout in LAYOUT.items())
    assert set(LAYOUT) == {t for t in TensorType if t.block > 1}


@pytest.mark.parametrize(
    ("kind", "groups"), [("IQ2_XXS", 256), ("IQ2_XS", 512), ("IQ2_S", 1024), ("IQ1_S", 2048)]
)
def test_codebooks_hold_as_many_groups_as_an_index_reaches(kind: str, groups: int) -> None:
    assert codebook(TensorType[kind]).shape == (groups, 8)
