"""Logits of every known architecture against what llama.cpp computed for the same file."""

import pathlib
import runpy
import sys
from collections.abc import Callable

import numpy as np
import pytest

from llamoot.kernels.step import BLOCK
from llamoot.kernels.table import Floats
from llamoot.model.architectures import ARCHITECTURES
from llamoot.model.runner import EXECUTORS, Runner, open_runner, run_alone

pytestmark = pytest.mark.model

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "golden"
SKELETONS = sorted(path.stem for path in (SHARED / "skeletons").glob("*.json"))
KNOWN = [n for n in SKELETONS if n.rsplit("-", 1)[0] in ARCHITECTURES]
# In this file llama.cpp's graph leaves the experts out, so its logits are not a model's.
KNOWN = [n for n in KNOWN if n != "refact-moe"]
PROMISED = [
    "llama-dense",
    "llama-moe",
    "mistral3-dense",
    "qwen2-dense",
    "qwen2moe-moe",
    "qwen3-dense",
    "qwen3moe-moe",
    "gemma-dense",
    "gemma2-dense",
    "gemma3-dense",
    "phi2-dense",
    "phi3-dense",
    "phimoe-moe",
    "smollm3-dense",
    "granite-dense",
    "granitemoe-moe",
    "olmo2-dense",
    "olmoe-moe",
    "command-r-dense",
    "cohere2-dense",
    "glm4-dense",
    "glm4moe-moe",
    "gpt-oss-moe",
    "starcoder2-dense",
    "stablelm-dense",
    "falcon-dense",
    "gpt2-dense",
    "gptneox-dense",
    "internlm2-dense",
    "exaone4-dense",
    "ernie4_5-moe",
    "hunyuan-dense-dense",
    "hunyuan-moe-moe",
    "seed_oss-dense",
    "minimax-m2-moe",
    "bailingmoe2-moe",
    "dots1-moe",
]
ON_TWINS = ["llama-dense", "gemma3-dense", "gpt-oss-moe", "glm4moe-moe", "bloom-dense"]
NOT_CAUSAL = {"dream-dense", "llada-dense", "llada-moe-moe", "rnd1-moe"}

Make = Callable[..., pathlib.Path]


@pytest.fixture(scope="module")
def make(shared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes a skeleton's file, once per test run."""
    pytest.importorskip("gguf", reason="the gguf package writes the golden files")
    folder = tmp_path_factory.mktemp("golden")
    main = runpy.run_path(str(shared / "golden" / "expand.py"), run_name="expand")["main"]

    def made(name: str, matrices: str = "F32") -> pathlib.Path:
        path = folder / f"{name}-{matrices}.gguf"
        if not path.exists():
            skeleton = str(shared / "golden" / "skeletons" / f"{name}.json")
            before, sys.argv = sys.argv, ["expand", skeleton, str(path), "--matrices", matrices]
            try:
                main()
            finally:
                sys.argv = before
        return path

    return made


def tiny(path: pathlib.Path, executor: str = "") -> Runner:
    return open_runner(path, cache_type="f32", max_tokens=160, max_seqs=4, executor=executor)


def golden(name: str) -> tuple[list[int], Floats]:
    file = np.load(SHARED / "logits" / f"{name}.npz")
    return file["tokens"].tolist(), file["logits"]


def nmse(got: Floats, wanted: Floats) -> float:
    return float(np.square(got - wanted).sum() / np.square(wanted).sum())


def one_of_four(runner: Runner, tokens: list[int]) -> Floats:
    """The tokens as the third of four sequences in one step, blocks out of order."""
    per = -(-len(tokens) // BLOCK)
    runner.step.clear()
    for i, shift in enumerate((5, 1, 0, 3)):
        mine = [(t + shift) % runner.config.n_vocab for t in tokens]
        blocks = [4 * j + (3 - i) for j in range(per)]
        runner.step.add(mine, 0, blocks, "all" if i == 2 else "none")
    return runner.run().copy()


@pytest.mark.parametrize("name", KNOWN)
def test_logits_are_llama_cpps_however_the_tokens_are_fed(name: str, make: Make) -> None:
    tokens, wanted = golden(name)
    runner = tiny(make(name))
    whole = run_alone(runner, tokens)
    assert nmse(whole, wanted) <= 1e-5
    assert (whole.argmax(axis=1) == wanted.argmax(axis=1)).all()
    fed = [one_of_four(runner, tokens)]
    if name not in NOT_CAUSAL:
        fed += [run_alone(runner, tokens, chunk=chunk) for chunk in (1, 7)]
    runner.close()
    for other in fed:
        assert np.abs(other - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("name", ON_TWINS)
def test_twins_give_the_same_logits(name: str, make: Make) -> None:
    tokens, wanted = golden(name)
    runner = tiny(make(name), "twins")
    assert nmse(run_alone(runner, tokens), wanted) <= 1e-5
    runner.close()


@pytest.mark.parametrize("matrices", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("name", ["llama-dense", "qwen3moe-moe"])
def test_quantised_files_agree_with_their_floats(name: str, matrices: str, make: Make) -> None:
    """Twins decode the weights to float and round nothing; kernels round activations to 8 bits."""
    tokens, _ = golden(name)
    fast, exact = tiny(make(name, matrices)), tiny(make(name, matrices), "twins")
    assert nmse(run_alone(fast, tokens), run_alone(exact, tokens)) <= 2e-3
    fast.close()
    exact.close()


def test_every_promised_architecture_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    if not SKELETONS:
        pytest.skip("reference files are not beside this checkout")
    rest = [n for n in SKELETONS if n not in KNOWN]
    with capsys.disabled():
        executor = "compiled" if "compiled" in EXECUTORS else "twins"
        print(f"\n{len(KNOWN)} of {len(SKELETONS)} golden files are run by {executor}; the rest:")
        print(" ".join(rest))
    assert set(PROMISED) <= set(KNOWN)
    assert len(KNOWN) >= 60
