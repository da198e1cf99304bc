"""LoRA adapters, per request, against the same matrices merged into the model's file."""

import pathlib

import numpy as np
import pytest

from llamoot.engine.engine import Engine
from llamoot.engine.sampler import Params
from llamoot.engine.sequence import Output, Sequence
from llamoot.errors import BadRequest, ModelFileError
from llamoot.gguf.reader import GGUF, open_gguf
from llamoot.gguf.types import TensorType
from llamoot.gguf.writer import Writer
from llamoot.model.runner import open_runner
from llamoot.quant.decode import decode

pytestmark = pytest.mark.model

IDS = [1, 403, 407, 261, 378, 44, 300, 17, 9, 260]
RANK, ALPHA = 4, 6.0


def targets(base: GGUF) -> list[str]:
    kinds = ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_down")
    return [f"blk.{i}.{kind}.weight" for i in range(5) for kind in kinds]


def halves(base: GGUF, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows, cols = base.tensors[name].shape
    rng = np.random.default_rng([seed, *name.encode()])
    a, b = rng.normal(size=(RANK, cols)), rng.normal(size=(rows, RANK))
    return (a * 0.08).astype(np.float32), (b * 0.08).astype(np.float32)


def write_adapter(path: pathlib.Path, base: GGUF, seed: int, arch: str = "llama") -> str:
    with Writer(path) as out:
        out.add("general.type", "adapter")
        out.add("general.architecture", arch)
        out.add("adapter.type", "lora")
        out.add("adapter.lora.alpha", ALPHA)
        made = [(name, *halves(base, name, seed)) for name in targets(base)]
        for name, a, b in made:
            out.declare(f"{name}.lora_a", TensorType.F32, a.shape)
            out.declare(f"{name}.lora_b", TensorType.F32, b.shape)
        for _, a, b in made:
            out.write(a)
            out.write(b)
    return str(path)


def write_merged(path: pathlib.Path, base: GGUF, scales: dict[int, float]) -> pathlib.Path:
    """The model with `scale * alpha / rank * b @ a` of every adapter (by seed) in its matrices."""
    with Writer(path) as out:
        for key in base.metadata:
            if key.startswith(("llama.", "general.architecture")):
                out.add(key, base.metadata.maybe(key, None))
        tokens = [f"t{i}" for i in range(512)]
        out.add("tokenizer.ggml.model", "llama")
        out.add("tokenizer.ggml.tokens", tokens)
        for name, tensor in base.tensors.items():
            out.declare(name, TensorType.F32, tensor.shape)
        for name, tensor in base.tensors.items():
            values = decode(tensor.raw, tensor.type, tensor.shape).astype(np.float64)
            for seed, scale in scales.items():
                if name in targets(base):
                    a, b = halves(base, name, seed)
                    values = values + scale * ALPHA / RANK * (b.astype(np.float64) @ a)
            out.write(values.astype(np.float32))
    return path


@pytest.fixture(scope="module")
def base(shared: pathlib.Path) -> GGUF:
    return open_gguf(shared / "models/stories260K.gguf")


def logits_of(engine: Engine, *asked: dict[str, float]) -> list[np.ndarray]:
    told: dict[int, Output] = {}
    seqs = [Sequence(list(IDS), pooling="logits", adapters=scales) for scales in asked]
    for seq in seqs:
        seq.sink = lambda output, id=seq.id: told.__setitem__(id, output)
        engine.submit(seq)
    while engine.step():
        pass
    return [np.asarray(told[seq.id].pooled) for seq in seqs]


def opened(path: object, executor: str, adapters: dict[str, str] | None = None) -> Engine:
    runner = open_runner(str(path), max_seqs=4, executor=executor, adapters=adapters)
    return Engine(runner, runner.n_blocks)


@pytest.mark.parametrize("executor", ["twins", "compiled"])
def test_each_request_gets_its_own_mixture(
    base: GGUF, tmp_path: pathlib.Path, executor: str
) -> None:
    files = {n: write_adapter(tmp_path / f"{n}.gguf", base, i) for i, n in enumerate("xy")}
    engine = opened(base.path, executor, files)
    asked: list[dict[str, float]] = [{}, {"x": 1.0}, {"x": 0.5, "y": -1.0}]
    ours = logits_of(engine, *asked)
    for n, (got, scales) in enumerate(zip(ours, asked)):
        by_seed = {"xy".index(name): scale for name, scale in scales.items()}
        merged = write_merged(tmp_path / f"m{n}.gguf", base, by_seed)
        alone = opened(merged, executor)
        (want,) = logits_of(alone, {})
        alone.close()
        assert ((got - want) ** 2).sum() / (want**2).sum() < 1e-8
    assert ((ours[0] - ours[1]) ** 2).sum() / (ours[0] ** 2).sum() > 1e-3
    engine.close()


def test_adapters_share_no_prefix_and_are_kept_while_decoding(
    base: GGUF, tmp_path: pathlib.Path
) -> None:
    files = {"x": write_adapter(tmp_path / "x.gguf", base, 0)}
    ids, params = IDS * 7, Params(temperature=0)
    engine = opened(base.path, "compiled", files)
    both = [Sequence(list(ids), params, max_new=20, adapters=a) for a in ({}, {"x": 1.0})]
    for seq in both:
        engine.submit(seq)
    while engine.step():
        pass
    engine.close()
    for seq, path in zip(both, (base.path, write_merged(tmp_path / "m.gguf", base, {0: 1.0}))):
        alone = opened(path, "compiled")
        plain = Sequence(list(ids), params, max_new=20)
        alone.submit(plain)
        while alone.step():
            pass
        alone.close()
        assert seq.cached == 0 and seq.ids == plain.ids


def test_wrong_adapters_are_refused_by_name(base: GGUF, tmp_path: pathlib.Path) -> None:
    files = {"x": write_adapter(tmp_path / "x.gguf", base, 0)}
    engine = opened(base.path, "twins", files)
    with pytest.raises(BadRequest, match="'z': open are x"):
        engine.submit(Sequence(list(IDS), adapters={"z": 1.0}))
    engine.close()
    other = write_adapter(tmp_path / "o.gguf", base, 0, arch="qwen2")
    with pytest.raises(ModelFileError, match="made for qwen2"):
        opened(base.path, "twins", {"o": other})
    with pytest.raises(ModelFileError, match="no LoRA adapter"):
        opened(base.path, "twins", {"o": str(base.path)})
