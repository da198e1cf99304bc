"""What the golden files leave out, against llama.cpp on tiny files: scaled positions, routing."""

import pathlib
from typing import Any

import numpy as np
import pytest

from llamoot.kernels.table import Floats
from llamoot.model.runner import open_runner, run_alone
from tiny_models import Shape, write_model

pytestmark = [pytest.mark.model, pytest.mark.peer]

VOCAB, DIM, FF, HEADS, LAYERS = 48, 64, 64, 4, 2
TOKENS = [(11 * i + 5) % VOCAB for i in range(90)]
WORDS = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)],
    "tokenizer.ggml.scores": np.zeros(VOCAB, np.float32),
    "tokenizer.ggml.token_type": np.ones(VOCAB, np.int32),
}
KEYS = {
    "block_count": LAYERS,
    "context_length": 128,
    "embedding_length": DIM,
    "feed_forward_length": FF,
    "vocab_size": VOCAB,
    "attention.head_count": HEADS,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "rope.dimension_count": 16,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
ATTENTION: dict[str, Shape] = {
    "attn_norm": (DIM,),
    "attn_q": (HEADS * 16, DIM),
    "attn_k": (2 * 16, DIM),
    "attn_v": (2 * 16, DIM),
    "attn_output": (DIM, HEADS * 16),
    "ffn_norm": (DIM,),
}
DENSE: dict[str, Shape] = {"ffn_gate": (FF, DIM), "ffn_up": (FF, DIM), "ffn_down": (DIM, FF)}
N_EXPERTS, EXPERT_FF = 8, 32
EXPERTS: dict[str, Shape] = {
    "ffn_gate_inp": (N_EXPERTS, DIM),
    "ffn_gate_exps": (N_EXPERTS, EXPERT_FF, DIM),
    "ffn_up_exps": (N_EXPERTS, EXPERT_FF, DIM),
    "ffn_down_exps": (N_EXPERTS, DIM, EXPERT_FF),
}
MIXTURE = {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": EXPERT_FF}
SHARED: dict[str, Shape] = {
    "ffn_gate_shexp": (EXPERT_FF, DIM),
    "ffn_up_shexp": (EXPERT_FF, DIM),
    "ffn_down_shexp": (DIM, EXPERT_FF),
}
QK_NORM: dict[str, Shape] = {"attn_q_norm": (16,), "attn_k_norm": (16,)}


def write(
    path: pathlib.Path, arch: str, keys: dict[str, Any], each: dict[str, Shape], **outside: Any
) -> str:
    tensors: dict[str, Shape | Floats] = {
        "token_embd.weight": (VOCAB, DIM),
        "output_norm.weight": (DIM,),
        "output.weight": (VOCAB, DIM),
        **{f"{name}.weight": value for name, value in outside.items()},
    }
    for i in range(LAYERS):
        for name, shape in each.items():
            end = "" if name.endswith(".bias") else ".weight"
            tensors[f"blk.{i}.{name}{end}"] = shape
    return str(write_model(path, arch, {**KEYS, **keys}, tensors, WORDS))


def compare(path: str, bound: float = 1e-7) -> None:
    """Our logits against llama.cpp's for the same float32 file."""
    peer = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference here")
    runner = open_runner(path, context=128, cache_type="f32", max_tokens=96, max_outputs=96)
    got = run_alone(runner, TOKENS)
    runner.close()
    more = {"n_threads": 1, "type_k": 0, "type_v": 0, "verbose": False}
    model = peer.Llama(path, n_ctx=128, n_batch=128, logits_all=True, **more)
    model.eval(TOKENS)
    wanted = np.array(model.scores[: len(TOKENS)])
    model.close()
    assert np.square(got - wanted).sum() / np.square(wanted).sum() < bound
    assert (got.argmax(axis=1) == wanted.argmax(axis=1)).all()


def scaled(type: str, factor: float, original: int, **more: Any) -> dict[str, Any]:
    return {
        "rope.scaling.type": type,
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
        **{f"rope.scaling.{key}": value for key, value in more.items()},
    }


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "scaling",
    [
        scaled("linear", 4.0, 32),
        scaled("yarn", 4.0, 32),
        scaled("yarn", 4.0, 32, attn_factor=1.3),
        scaled("none", 4.0, 32),
    ],
    ids=["linear", "yarn", "yarn-attn", "none"],
)
def test_scaled_positions(arch: str, scaling: dict[str, Any], tmp_path: pathlib.Path) -> None:
    compare(write(tmp_path / "m.gguf", arch, scaling, {**ATTENTION, **DENSE}))


def test_llama3_factors_and_an_own_base(tmp_path: pathlib.Path) -> None:
    factors = np.array([1, 1, 1, 1.5, 3, 8, 8, 8], np.float32)
    keys = {"rope.freq_base": 500000.0}
    compare(write(tmp_path / "m.gguf", "llama", keys, {**ATTENTION, **DENSE}, rope_freqs=factors))


# llama.cpp opens at least 256 positions.
@pytest.mark.parametrize("original", [32, 256], ids=["long", "short"])
def test_longrope_takes_the_factors_of_its_context(original: int, tmp_path: pathlib.Path) -> None:
    each = {**ATTENTION, "ffn_up": (2 * FF, DIM), "ffn_down": (DIM, FF)}
    for part in "qkv":
        del each[f"attn_{part}"]
    each["attn_qkv"] = ((HEADS + 4) * 16, DIM)
    factors = {
        "rope_factors_long": np.linspace(1, 9, 8, dtype=np.float32),
        "rope_factors_short": np.linspace(1, 2, 8, dtype=np.float32),
    }
    keys = scaled("longrope", 1.0, original, attn_factor=1.19)
    compare(write(tmp_path / "m.gguf", "phi3", keys, each, **factors))


def test_mistral3_warms_queries_far_away(tmp_path: pathlib.Path) -> None:
    keys = {**scaled("yarn", 4.0, 32, yarn_log_multiplier=1.0), "attention.temperature_scale": 0.1}
    compare(write(tmp_path / "m.gguf", "mistral3", keys, {**ATTENTION, **DENSE}))


def test_partial_rotation(tmp_path: pathlib.Path) -> None:
    each = {**ATTENTION, **DENSE, "post_attention_norm": (DIM,)}
    del each["ffn_norm"]
    compare(write(tmp_path / "m.gguf", "seed_oss", {}, each))
    keys = {"rope.dimension_count": 8, "leading_dense_block_count": 2, **MIXTURE}
    keys |= {"expert_shared_count": 1, "expert_gating_func": 2}
    compare(write(tmp_path / "g.gguf", "glm4moe", keys, {**each, **QK_NORM}))


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "olmoe"])
def test_some_of_many_experts(arch: str, tmp_path: pathlib.Path) -> None:
    each = {**ATTENTION, **EXPERTS}
    if arch == "qwen3moe":
        each |= QK_NORM
    if arch == "olmoe":
        each |= dict.fromkeys(("attn_k", "attn_v"), (DIM, DIM))
        each |= {"attn_q_norm": (DIM,), "attn_k_norm": (DIM,)}
    keys = {**MIXTURE, "feed_forward_length": EXPERT_FF}
    if arch == "olmoe":
        keys["attention.head_count_kv"] = HEADS
    compare(write(tmp_path / "m.gguf", arch, keys, each))


@pytest.mark.parametrize("groups", [0, 4])
def test_experts_by_sigmoid_bias_and_groups(groups: int, tmp_path: pathlib.Path) -> None:
    each = {**ATTENTION, **EXPERTS, **SHARED, "exp_probs_b.bias": (N_EXPERTS,)}
    del each["attn_q"], each["attn_k"], each["attn_v"]
    each |= {"attn_qkv": ((HEADS + 4) * 16, DIM), **QK_NORM}
    keys: dict[str, Any] = {
        **MIXTURE,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
        "leading_dense_block_count": 0,
    }
    if groups:
        keys |= {"expert_group_count": groups, "expert_group_used_count": 2}
    compare(write(tmp_path / "m.gguf", "bailingmoe2", keys, each))


def test_gpt_oss_with_windows_and_yarn(tmp_path: pathlib.Path) -> None:
    each: dict[str, Shape] = {**ATTENTION, **EXPERTS, "attn_sinks": (HEADS,)}
    del each["ffn_norm"]
    each["post_attention_norm"] = (DIM,)
    for name, rows in (("q", HEADS * 16), ("k", 32), ("v", 32), ("output", DIM)):
        each[f"attn_{name}.bias"] = (rows,)
    each |= {"ffn_gate_inp.bias": (N_EXPERTS,), "ffn_down_exps.bias": (N_EXPERTS, DIM)}
    for name in ("gate", "up"):
        each[f"ffn_{name}_exps.bias"] = (N_EXPERTS, EXPERT_FF)
    keys = {**scaled("yarn", 4.0, 32), **MIXTURE, "attention.sliding_window": 16}
    compare(write(tmp_path / "m.gguf", "gpt-oss", keys, each))


@pytest.mark.parametrize("groups", [0, 4])
def test_latent_attention_with_yarn_and_grouped_experts(
    groups: int, tmp_path: pathlib.Path
) -> None:
    rank, turned, plain, value = 32, 8, 16, 24
    each: dict[str, Shape] = {
        "attn_norm": (DIM,),
        "attn_q_a": (40, DIM),
        "attn_q_a_norm": (40,),
        "attn_q_b": (HEADS * (plain + turned), 40),
        "attn_kv_a_mqa": (rank + turned, DIM),
        "attn_kv_a_norm": (rank,),
        "attn_k_b": (HEADS, rank, plain),
        "attn_v_b": (HEADS, value, rank),
        "attn_output": (DIM, HEADS * value),
        "ffn_norm": (DIM,),
        **EXPERTS,
        **SHARED,
        "exp_probs_b.bias": (N_EXPERTS,),
    }
    keys: dict[str, Any] = {
        **MIXTURE,
        **scaled("yarn", 4.0, 32, yarn_log_multiplier=0.0707),
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 40,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + turned,
        "attention.value_length": rank,
        "attention.key_length_mla": plain + turned,
        "attention.value_length_mla": value,
        "rope.dimension_count": turned,
        "leading_dense_block_count": 0,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": 2.5,
    }
    if groups:
        keys |= {"expert_group_count": groups, "expert_group_used_count": 2}
    compare(write(tmp_path / "m.gguf", "deepseek2", keys, each))


def test_delta_net_with_more_value_heads_than_key_heads(tmp_path: pathlib.Path) -> None:
    state, groups, heads, inner = 16, 2, 4, 64
    mixed = 2 * groups * state + inner
    shared: dict[str, Shape] = {"attn_norm": (DIM,), "post_attention_norm": (DIM,), **DENSE}
    delta: dict[str, Shape] = {
        "attn_qkv": (mixed, DIM),
        "attn_gate": (inner, DIM),
        "ssm_conv1d": (mixed, 4),
        "ssm_dt.bias": (heads,),
        "ssm_beta": (heads, DIM),
        "ssm_alpha": (heads, DIM),
        "ssm_norm": (inner // heads,),
        "ssm_out": (DIM, inner),
    }
    full = {**ATTENTION, **QK_NORM, "attn_q": (HEADS * 32, DIM)}
    del full["ffn_norm"]
    layers: dict[str, Shape | Floats] = {}
    for i, own in enumerate((delta, full)):
        for name, shape in {**shared, **own}.items():
            layers[f"blk.{i}.{name}" + ("" if name.endswith(".bias") else ".weight")] = shape
    layers["blk.0.ssm_a"] = -np.linspace(0.5, 2, heads, dtype=np.float32)
    outside: dict[str, Shape] = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}
    keys = {
        **KEYS,
        "attention.recurrent_layers": np.array([1, 0], np.int32),
        "rope.dimension_sections": np.array([3, 3, 2, 0], np.int32),
        "ssm.conv_kernel": 4,
        "ssm.state_size": state,
        "ssm.group_count": groups,
        "ssm.time_step_rank": heads,
        "ssm.inner_size": inner,
    }
    path = write_model(tmp_path / "m.gguf", "qwen35", keys, {**outside, **layers}, WORDS)
    compare(str(path))
