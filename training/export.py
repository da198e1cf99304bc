"""Write the trained model as the GGUF file that the package ships.

    python training/export.py runs/abacus src/llamoot/models/abacus.gguf

Matrices are stored as Q8_0, norms as F32; both the engine and llama.cpp load the file.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from corpus import END, SPECIAL, TEMPLATE, THINK, THOUGHT

from llamoot.gguf.types import TensorType, ValueType
from llamoot.gguf.writer import Writer
from llamoot.quant.encode import encode

CONTROL, USER_DEFINED, NORMAL = 3, 4, 1


def metadata(shape: dict, vocabulary: dict[str, int], merges: list[str]) -> list[tuple]:
    """(key, value type, value) rows, as llama.cpp reads them."""
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    thinking = (THINK, THOUGHT)
    kinds = [USER_DEFINED if t in thinking else CONTROL if t in SPECIAL else NORMAL for t in tokens]
    u32, f32, text = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING
    return [
        ("general.architecture", text, "llama"),
        ("general.name", text, "abacus"),
        ("general.description", text, "built-in model of llamoot; it only calculates"),
        ("general.license", text, "mit"),
        ("general.file_type", u32, 7),
        ("llama.block_count", u32, shape["layers"]),
        ("llama.context_length", u32, shape["context"]),
        ("llama.embedding_length", u32, shape["dim"]),
        ("llama.feed_forward_length", u32, shape["hidden"]),
        ("llama.attention.head_count", u32, shape["heads"]),
        ("llama.attention.head_count_kv", u32, shape["heads"]),
        ("llama.attention.layer_norm_rms_epsilon", f32, shape["eps"]),
        ("llama.rope.dimension_count", u32, shape["dim"] // shape["heads"]),
        ("llama.rope.freq_base", f32, shape["rope_base"]),
        ("llama.vocab_size", u32, shape["vocab"]),
        ("tokenizer.ggml.model", text, "gpt2"),
        ("tokenizer.ggml.pre", text, "qwen2"),
        ("tokenizer.ggml.tokens", ValueType.ARRAY, tokens),
        ("tokenizer.ggml.token_type", ValueType.ARRAY, np.array(kinds, np.int32)),
        ("tokenizer.ggml.merges", ValueType.ARRAY, merges),
        ("tokenizer.ggml.bos_token_id", u32, vocabulary[END]),
        ("tokenizer.ggml.eos_token_id", u32, vocabulary[END]),
        ("tokenizer.ggml.padding_token_id", u32, vocabulary[END]),
        ("tokenizer.ggml.add_bos_token", ValueType.BOOL, False),
        ("tokenizer.chat_template", text, TEMPLATE),
    ]


def tensors(weights: dict[str, torch.Tensor]) -> list[tuple[str, TensorType, np.ndarray]]:
    """(GGUF name, type, values) of every tensor."""
    rows = []
    for name, value in weights.items():
        x = value.float().numpy()
        rows.append((name, TensorType.F32 if x.ndim == 1 else TensorType.Q8_0, x))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    saved = torch.load(options.run / "model.pt", weights_only=True)
    tokenizer = json.loads((options.run / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = tensors(saved["weights"])
    with Writer(options.out) as out:
        for key, kind, value in metadata(saved["shape"], vocabulary, merges):
            out.add(key, value, kind)
        for name, kind, x in rows:
            out.declare(name, kind, x.shape)
        for _, kind, x in rows:
            out.write(np.ascontiguousarray(x) if x.ndim == 1 else encode(x, kind))
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
