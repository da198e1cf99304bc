"""Verbs that look into one model: logits, embed, bench."""

import json
import pathlib

import numpy as np
import pytest

from llamoot.cli.main import main

pytestmark = pytest.mark.model


@pytest.fixture
def model(shared: pathlib.Path) -> str:
    return str(shared / "models" / "stories260K.gguf")


def said(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one call."""
    with pytest.raises(SystemExit) as end:
        main(args)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_logits_are_written_and_shown(
    model: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "l.npy"
    args = ["logits", model, "--tokens", "1,403,407,261,378", "--out", str(file), "--json"]
    code, out, _ = said(args, capsys)
    scores, report = np.load(file), json.loads(out)
    assert code == 0 and scores.dtype == np.float32
    assert list(scores.shape) == report["shape"] == [5, 512]
    best, logprob = report["positions"][-1]["top"][0]
    assert best == scores[-1].argmax() == 432
    assert abs(logprob + 0.0317) < 1e-3


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--tokens", "1,x"], "not a list of token ids"),
        (["--tokens", "1,512"], "token 512"),
        (["--tokens", ""], "no tokens"),
        (["--tokens", "1", "--cache-type", "q3"], "not a cache type"),
    ],
)
def test_wrong_use_is_one_sentence(
    args: list[str], sentence: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(["logits", model, *args], capsys)
    assert code == 2 and out == "" and sentence in err and err.count("\n") == 1


def test_embedding_of_tokens_has_length_one(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(["embed", model, "--tokens", "1,403", "-t", "1", "--json"], capsys)
    vectors = np.array(json.loads(out)["embeddings"])
    assert code == 0 and vectors.shape == (2, 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_bench_reports_speed_and_share(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(["bench", model, "-p", "20", "-n", "4", "-r", "1", "--json"], capsys)
    report = json.loads(out)
    assert code == 0
    wanted = {"prompt_20_tok_s", "decode_1_tok_s", "decode_4_tok_s", "read_bandwidth_gb_s"}
    assert all(report[key] > 0 for key in wanted)
    assert report["decode_1_share_of_bandwidth"] > 0
