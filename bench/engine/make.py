"""Makes GGUF files of real shapes with random weights, to measure engines on.

    python bench/engine/make.py [qwen3-0.6b tinyllama-1.1b mixture ...] [--types Q4_K_M,Q8_0,Q4_0]

Files go to bench/models/ and are made once. Blocks are drawn from a pool of really encoded normal
weights, so every row differs and scales are those of a real file, at the speed of the disk. The
vocabulary is copied from a vocabulary file where one is found (--vocab), else it is made up.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llamoot.gguf.reader import open_gguf
from llamoot.gguf.types import FileType, TensorType, ValueType
from llamoot.gguf.writer import Writer
from llamoot.quant.choose import Model, choose
from llamoot.quant.encode import encode

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "bench" / "models"
VOCABULARIES = ROOT.parent / "shared" / "vocab"
POOL = 1 << 22  # encoded weights to draw from


@dataclass(frozen=True)
class Shape:
    """A model's measures, as its configuration file gives them."""

    arch: str
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    vocab: int
    context: int
    rope_base: float
    eps: float
    vocab_file: str
    tied: bool = True
    qk_norm: bool = False
    experts: int = 0
    experts_used: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


QWEN = "ggml-vocab-qwen2.gguf"
SHAPES = {
    "qwen3-0.6b": Shape(
        "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6, 1e-6, QWEN, qk_norm=True
    ),
    "tinyllama-1.1b": Shape(
        "llama", 22, 2048, 32, 4, 64, 5632, 32000, 2048, 1e4, 1e-5,
        "ggml-vocab-llama-spm.gguf", tied=False, extra={"rope.dimension_count": 64},
    ),
    "mixture": Shape(
        "qwen3moe", 12, 1024, 8, 4, 128, 512, 151936, 32768, 1e6, 1e-6, QWEN,
        qk_norm=True, experts=32, experts_used=8, extra={"expert_feed_forward_length": 512},
    ),
}  # fmt: skip


def tensors(s: Shape) -> dict[str, tuple[int, ...]]:
    """Numpy shapes by name, in the order llama.cpp writes them."""
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (s.vocab, s.dim)}
    if not s.tied:
        found["output.weight"] = (s.vocab, s.dim)
    found["output_norm.weight"] = (s.dim,)
    for i in range(s.layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (s.dim,),
            "attn_q": (q, s.dim),
            "attn_k": (kv, s.dim),
            "attn_v": (kv, s.dim),
            "attn_output": (s.dim, q),
            "ffn_norm": (s.dim,),
        }
        if s.qk_norm:
            layer |= {"attn_q_norm": (s.head_dim,), "attn_k_norm": (s.head_dim,)}
        if s.experts:
            layer |= {
                "ffn_gate_inp": (s.experts, s.dim),
                "ffn_gate_exps": (s.experts, s.ff, s.dim),
                "ffn_up_exps": (s.experts, s.ff, s.dim),
                "ffn_down_exps": (s.experts, s.dim, s.ff),
            }
        else:
            layer |= {
                "ffn_gate": (s.ff, s.dim),
                "ffn_up": (s.ff, s.dim),
                "ffn_down": (s.dim, s.ff),
            }
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found


def describe(out: Writer, name: str, s: Shape, file_type: FileType, vocab: Path) -> None:
    """All metadata a loader asks for."""
    out.add("general.architecture", s.arch)
    out.add("general.name", f"{name} of random weights")
    out.add("general.file_type", int(file_type))
    out.add("general.quantization_version", 2)
    values = {
        "block_count": s.layers,
        "context_length": s.context,
        "embedding_length": s.dim,
        "feed_forward_length": s.ff,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim,
        "attention.layer_norm_rms_epsilon": s.eps,
        "rope.freq_base": s.rope_base,
        "vocab_size": s.vocab,
        **({"expert_count": s.experts, "expert_used_count": s.experts_used} if s.experts else {}),
        **s.extra,
    }
    for key, value in values.items():
        out.add(f"{s.arch}.{key}", value)
    if vocab.exists():
        with open_gguf(vocab) as source:
            data = np.memmap(vocab, np.uint8, "r")
            for key, (start, stop) in source.metadata.spans.items():
                if key.startswith("tokenizer."):
                    out.add_raw(key, data[start:stop].tobytes())
        return
    print(f"{vocab.name} not found: the vocabulary is made up", file=sys.stderr)
    words = [bytes([i]).decode("latin-1") if 33 <= i < 127 else f"<{i}>" for i in range(s.vocab)]
    out.add("tokenizer.ggml.model", "gpt2")
    out.add("tokenizer.ggml.pre", "default")
    out.add("tokenizer.ggml.tokens", words)
    out.add("tokenizer.ggml.token_type", [1] * s.vocab, ValueType.ARRAY, ValueType.INT32)
    out.add("tokenizer.ggml.merges", ["! !"])
    out.add("tokenizer.ggml.eos_token_id", 0)


def spread(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation that keeps activations near 1 and the residual stream from exploding."""
    if "embd" in name or name == "output.weight":
        return 0.05
    return (0.3 if "down" in name or "attn_output" in name else 1.0) / float(np.sqrt(shape[-1]))


class Pool:
    """Encoded blocks of normal weights by type and spread, from which tensors are drawn."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.normal = rng.standard_normal((POOL // 256, 256), dtype=np.float32)
        self.blocks: dict[tuple[TensorType, float], Any] = {}

    def draw(self, kind: TensorType, std: float, n_blocks: int) -> Any:
        """uint8 (n_blocks, bytes of a block)."""
        if (kind, std) not in self.blocks:
            raw = encode(self.normal * np.float32(std), kind, threads=2)
            self.blocks[kind, std] = raw.reshape(-1, kind.block_bytes)
        blocks = self.blocks[kind, std]
        return blocks[self.rng.integers(len(blocks), size=n_blocks)]


def make(name: str, file_type: FileType, folder: Path = MODELS, vocab: Path | None = None) -> Path:
    """The file `name`-`file_type`.gguf in `folder`, made unless it is there already."""
    path = folder / f"{name}-{file_type.name}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    s = SHAPES[name]
    shapes = tensors(s)
    model = Model(s.arch, s.layers, s.heads, s.kv_heads, s.experts)
    types = choose(file_type, model, shapes)
    pool = Pool(np.random.default_rng(7))
    started = time.monotonic()
    with Writer(path) as out:
        describe(out, name, s, file_type, vocab or VOCABULARIES / s.vocab_file)
        for tensor, shape in shapes.items():
            out.declare(tensor, types[tensor] or TensorType.F32, shape)
        for tensor, shape in shapes.items():
            kind = types[tensor] or TensorType.F32
            if tensor.endswith("_norm.weight"):
                noise = pool.rng.standard_normal(shape, dtype=np.float32)
                out.write(1 + np.float32(0.05) * noise)
                continue
            left = int(np.prod(shape)) // kind.block
            while left:
                n = min(left, POOL // kind.block)
                out.write(pool.draw(kind, spread(tensor, shape), n))
                left -= n
    size, seconds = path.stat().st_size / 1e6, time.monotonic() - started
    print(f"{path.name}: {size:.0f} MB in {seconds:.0f} s", file=sys.stderr)
    return path


def main() -> None:
    """Make what the command line names; prints the paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SHAPES), metavar="NAME")
    parser.add_argument("--types", default="Q4_K_M,Q8_0,Q4_0")
    parser.add_argument("--folder", type=Path, default=MODELS)
    parser.add_argument("--vocab", type=Path, help="GGUF file whose vocabulary is copied")
    args = parser.parse_args()
    unknown = set(args.names) - SHAPES.keys()
    if unknown:
        parser.error(f"{', '.join(unknown)} not known; there are {', '.join(SHAPES)}")
    for name in args.names:
        for kind in args.types.split(","):
            print(make(name, FileType[kind], args.folder, args.vocab))


if __name__ == "__main__":
    main()
