"""`inspect` tells what a file holds, whatever the file."""

import json
import pathlib
from typing import Any

import pytest

from llamoot.cli.main import main
from llamoot.gguf.types import TensorType
from llamoot.gguf.writer import Writer

pytestmark = pytest.mark.pure


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["inspect", *map(str, args)])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def strange(tmp_path: pathlib.Path) -> pathlib.Path:
    """A good file of an architecture that nobody knows, with text meant for a terminal."""
    path = tmp_path / "strange.gguf"
    with Writer(path) as out:
        out.add("general.architecture", "zebra")
        out.add("zebra.\x1b[31mstripes", "a\x1b[0m" + "b" * 500)
        out.add("zebra.list", list(range(1000)))
        out.add("zebra.nothing", float("nan"))
        for name in ("blk.0.a", "blk.1.a", "b"):
            out.declare(name, TensorType.Q8_0, (4, 64))
        for _ in range(3):
            out.write(bytes(4 * 68))
    return path


def test_a_model_shows_metadata_tensors_and_memory(
    shared: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared / "models" / "stories260K.gguf"
    code, out, err = run(capsys, path)
    assert code == 0 and not err
    assert "llama.attention.layer_norm_rms_epsilon  1e-05" in out
    assert "blk.*.attn_q.weight (5)" in out and "640 B per token" in out
    assert "blk.3.attn_q.weight" in run(capsys, path, "--tensors")[1]


def test_json_holds_every_tensor_and_the_plan(
    shared: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: dict[str, Any] = json.loads(
        run(capsys, shared / "models" / "stories260K.gguf", "--json")[1]
    )
    assert len(found["tensors"]) == 48 == found["types"]["F32"]["tensors"]
    assert found["tensors"][0]["shape"] == [512, 64]
    assert found["metadata"]["tokenizer.ggml.tokens"]["count"] == 512
    memory = found["memory"]
    # 5 layers x 4 heads x 8 dimensions, keys and values, 2 bytes each
    assert memory["cache_per_token"]["f16"] == 5 * 4 * 8 * 2 * 2
    assert memory["cache_for_context"]["f16"] == 512 * memory["cache_per_token"]["f16"]
    parts = memory["weights"] + memory["cache_for_context"]["q8_0"] + memory["compute"]
    assert memory["total"]["q8_0"] == parts and memory["weights"] == found["bytes"]


def test_an_unknown_architecture_is_shown_without_a_plan(
    strange: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, strange)
    assert code == 0 and "blk.*.a (2)" in out and "'zebra' is not known" in out
    assert "\x1b" not in out, "a file's text never reaches the terminal raw"
    found = json.loads(run(capsys, strange, "--json")[1])
    assert found["metadata"]["zebra.list"] == {"count": 1000, "first": [0, 1, 2, 3, 4, 5]}
    assert found["metadata"]["zebra.nothing"] == "nan"
    assert "zebra" in found["memory"]["unknown"]


def test_a_broken_file_is_one_sentence(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"no" * 50)
    code, out, err = run(capsys, path)
    assert code == 1 and not out and str(path) in err and err.count("\n") == 1
    code, out, err = run(capsys, tmp_path / "absent.gguf")
    assert code == 1 and "No such file" in err and err.count("\n") == 1
