"""Write the trained model as the GGUF file that the package ships.

    python training/export.py runs/abacus src/llamoot/models/abacus.gguf
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from corpus import ASSISTANT, END, SPECIAL, TEMPLATE, THINK, THOUGHT

from llamoot.gguf.types import TensorType, ValueType
from llamoot.gguf.writer import GGUFWriter
from llamoot.quant.encode import encode

CONTROL, USER_DEFINED, NORMAL = 3, 4, 1


def metadata(shape: dict, vocabulary: dict[str, int], merges: list[str]) -> list[tuple]:
    """(key, value type, value) rows, as llama.cpp reads them."""
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    thinking = (THINK, THOUGHT)
    kinds = [
        USER_DEFINED if t in thinking else CONTROL if t in SPECIAL else NORMAL for t in tokens
    ]
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
        ("tokenizer.ggml.tokens", text, tokens),
        ("tokenizer.ggml.token_type", ValueType.INT32, np.array(kinds, np.int32)),
        ("tokenizer.ggml.merges", text, merges),
        ("tokenizer.ggml.bos_token_id", u32, vocabulary[ASSISTANT]),
        ("tokenizer.ggml.eos_token_id", u32, vocabulary[END]),
        ("tokenizer.ggml.padding_token_id", u32, vocabulary[END]),
        ("tokenizer.ggml.add_bos_token", ValueType.BOOL, False),
        ("tokenizer.chat_template", text, TEMPLATE),
    ]
