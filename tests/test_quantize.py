"""`quantize` writes what llama.cpp would, whole or not at all."""

import ctypes
import importlib.util
import json
import pathlib
import sys
from types import ModuleType

import numpy as np
import pytest

from llamoot.cli.main import main
from llamoot.errors import BadRequest, ModelFileError
from llamoot.gguf.reader import open_gguf
from llamoot.gguf.types import FileType as F
from llamoot.gguf.types import TensorType
from llamoot.gguf.writer import Writer
from llamoot.quant.choose import DEFAULT
from llamoot.quant.convert import convert, file_type, plan
from llamoot.quant.decode import decode

pytestmark = pytest.mark.kernel
MAKE = pathlib.Path(__file__).parents[1] / "bench" / "engine" / "make.py"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", MAKE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make"] = module
    spec.loader.exec_module(module)
    return module


def small(make: ModuleType, path: pathlib.Path, **changes: object) -> pathlib.Path:
    """A float file of a small llama-like model that llama.cpp accepts."""
    values = {
        "arch": "qwen3", "layers": 17, "dim": 256, "heads": 4, "kv_heads": 2, "head_dim": 64,
        "ff": 512, "vocab": 512, "context": 128, "rope_base": 1e4, "eps": 1e-5, "vocab_file": "",
        "qk_norm": True,
    }  # fmt: skip
    shape = make.Shape(**{**values, **changes})
    rng = np.random.default_rng(3)
    with Writer(path) as out:
        make.describe(out, "small", shape, F.F32, path.with_name("no vocabulary"))
        for name, dims in make.tensors(shape).items():
            out.declare(name, TensorType.F32, dims)
        for dims in make.tensors(shape).values():
            out.write(rng.standard_normal(dims, dtype=np.float32))
    return path


MIXTURE = {"arch": "qwen3moe", "ff": 256, "experts_used": 2, "layers": 4,
           "extra": {"expert_feed_forward_length": 256}}  # fmt: skip
CHANGES = {
    "grouped by two": {"ff": 256},
    "grouped by four": {"arch": "llama", "layers": 9, "heads": 8, "qk_norm": False, "ff": 256,
                        "head_dim": 32, "tied": False, "extra": {"rope.dimension_count": 32}},
    "narrow rows": {"dim": 96, "ff": 160, "heads": 2, "kv_heads": 2, "head_dim": 48, "layers": 9},
    "eight experts": {**MIXTURE, "experts": 8},
    "four experts": {**MIXTURE, "experts": 4},
}  # fmt: skip
MIXED = (F.Q2_K, F.Q3_K_M, F.Q3_K_L, F.Q4_K_S, F.Q4_K_M, F.Q5_K_M, F.MXFP4_MOE)
EVERY = tuple(set(DEFAULT) - {F.F32})


@pytest.mark.peer
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_types_are_chosen_as_llama_cpp_chooses(
    make: ModuleType, tmp_path: pathlib.Path, changes: dict[str, object]
) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the measure")
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    source, theirs = small(make, tmp_path / "a.gguf", **changes), tmp_path / "theirs.gguf"
    for kind in EVERY if changes.get("arch") == "llama" or "dim" in changes else MIXED:
        options = llama_cpp.llama_model_quantize_default_params()
        options.nthread, options.ftype = 2, int(kind)
        status = llama_cpp.llama_model_quantize(
            str(source).encode(), str(theirs).encode(), ctypes.byref(options)
        )
        assert status == 0
        with open_gguf(source) as ours, open_gguf(theirs) as peer:
            chosen = plan(ours, kind)
            differs = {n: (chosen[n].name, t.type.name) for n, t in peer.tensors.items()
                       if chosen[n] != t.type}  # fmt: skip
            assert not differs, kind.name


def test_the_result_is_the_same_model_in_fewer_bits(
    make: ModuleType, tmp_path: pathlib.Path
) -> None:
    source = small(make, tmp_path / "a.gguf", layers=2)
    done = convert(source, tmp_path / "b.gguf", F.Q4_K_M, threads=2)
    with open_gguf(source) as before, open_gguf(tmp_path / "b.gguf") as after:
        assert list(before.tensors) == list(after.tensors)
        for name, tensor in after.tensors.items():
            was = before.tensors[name]
            a = decode(was.raw, was.type, was.shape)
            b = decode(tensor.raw, tensor.type, tensor.shape)
            assert np.sqrt(np.mean((a - b) ** 2)) <= 0.08
        for key, value in before.metadata.items():
            if key not in ("general.file_type", "general.quantization_version"):
                assert np.array_equal(np.array(value), np.array(after.metadata[key])), key
        assert after.metadata["general.file_type"] == F.Q4_K_M
        assert done["bytes"] == sum(t.nbytes for t in after.tensors.values())
    assert done["tensors"]["Q4_K"] and done["tensors"]["Q6_K"] and done["requantised"] == 0


def test_parts_become_one_file(make: ModuleType, tmp_path: pathlib.Path) -> None:
    source = small(make, tmp_path / "a.gguf", layers=2)
    with open_gguf(source) as gguf, Writer(tmp_path / "p.gguf", part_bytes=1 << 20) as out:
        out.add("general.architecture", "qwen3")
        for tensor in gguf.tensors.values():
            out.declare(tensor.name, tensor.type, tensor.shape)
        for tensor in gguf.tensors.values():
            out.write(tensor.raw)
    first = next(tmp_path.glob("p-00001-of-*.gguf"))
    convert(first, tmp_path / "b.gguf", F.F32)
    with open_gguf(source) as a, open_gguf(tmp_path / "b.gguf") as b:
        assert "split.count" not in b.metadata and len(b.parts) == 1
        assert all(np.array_equal(a.tensors[n].raw, t.raw) for n, t in b.tensors.items())


def test_the_command_reports_and_warns(
    make: ModuleType, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = small(make, tmp_path / "a.gguf", layers=1)
    with pytest.raises(SystemExit) as end:
        main(["quantize", str(source), str(tmp_path / "b.gguf"), "q8_0", "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0 and json.loads(out)["file_type"] == "Q8_0" and "note" not in err
    with pytest.raises(SystemExit):
        main(["quantize", str(tmp_path / "b.gguf"), str(tmp_path / "c.gguf"), "Q4_0"])
    out, err = capsys.readouterr()
    assert "quantised before" in err and "Q4_0" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "c.gguf"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("Q4_KM", "did you mean Q4_K_M"), ("zebra", "there are"), ("IQ2_XXS", "importance matrix")],
)
def test_an_unknown_type_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        file_type(name)


def test_the_same_file_and_a_missing_folder_are_refused(
    make: ModuleType, tmp_path: pathlib.Path
) -> None:
    source = small(make, tmp_path / "a.gguf", layers=1)
    with pytest.raises(BadRequest, match="file to be read"):
        convert(source, tmp_path / "." / "a.gguf", F.Q8_0)
    with pytest.raises(BadRequest, match="is no folder"):
        convert(source, tmp_path / "none" / "b.gguf", F.Q8_0)


def test_a_broken_weight_is_named_and_nothing_is_left(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "a.gguf"
    with Writer(source) as out:
        out.add("general.architecture", "llama")
        out.declare("blk.0.attn_q.weight", TensorType.F32, (2, 32))
        out.write(np.full((2, 32), np.nan, np.float32))
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_q\.weight.*finite"):
        convert(source, tmp_path / "b.gguf", F.Q8_0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_full_disk_is_said_before_anything_is_written(
    make: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small(make, tmp_path / "a.gguf", layers=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(BadRequest, match="MB free"):
        convert(source, tmp_path / "b.gguf", F.Q8_0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
