"""Kinds of layers apart from plain attention: latent, recurrent, and encoders."""

import pathlib
from typing import Any

import numpy as np
import pytest

from llamoot.kernels.step import Step
from llamoot.kernels.table import Floats
from llamoot.model.runner import Runner, open_runner, run_alone
from llamoot.model.slots import Slots
from tiny_models import Shape, random, write_model

pytestmark = pytest.mark.model

VOCAB, DIM, FF, HEADS = 40, 64, 96, 4
TOKENS = [(11 * i + 5) % VOCAB for i in range(37)]
FFN = {"ffn_norm": (DIM,), "ffn_gate": (FF, DIM), "ffn_up": (FF, DIM), "ffn_down": (DIM, FF)}
KEYS = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": DIM,
    "feed_forward_length": FF,
    "attention.head_count": HEADS,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
OUTSIDE: dict[str, Shape] = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}


def layered(each: dict[str, Shape], layers: int = 2) -> dict[str, Shape]:
    """The tensors of every layer, with whole names."""
    return {
        f"blk.{i}.{name}" + ("" if name.endswith(".bias") else ".weight"): shape
        for i in range(layers)
        for name, shape in each.items()
    }


def opened(path: pathlib.Path, **more: Any) -> Runner:
    return open_runner(path, max_tokens=64, max_seqs=4, cache_type="f32", **more)


RANK, TURNED, PLAIN, VALUE = 32, 8, 16, 24


def latent(path: pathlib.Path, absorbed: bool) -> pathlib.Path:
    """The same model with keys and values expanded by one matrix, or absorbed by two."""
    tensors: dict[str, Shape | Floats] = {**OUTSIDE}
    tensors |= layered(
        {
            "attn_norm": (DIM,),
            "attn_q": (HEADS * (PLAIN + TURNED), DIM),
            "attn_kv_a_mqa": (RANK + TURNED, DIM),
            "attn_kv_a_norm": (RANK,),
            "attn_output": (DIM, HEADS * VALUE),
            **FFN,
        }
    )
    for i in range(2):
        name = f"blk.{i}.attn_kv_b.weight"
        joint = random(name, (HEADS * (PLAIN + VALUE), RANK))
        heads = joint.reshape(HEADS, PLAIN + VALUE, RANK)
        if absorbed:
            tensors[f"blk.{i}.attn_k_b.weight"] = heads[:, :PLAIN].transpose(0, 2, 1)
            tensors[f"blk.{i}.attn_v_b.weight"] = heads[:, PLAIN:]
        else:
            tensors[name] = joint
    sizes = {
        "attention.kv_lora_rank": RANK,
        "rope.dimension_count": TURNED,
        "attention.head_count_kv": 1 if absorbed else HEADS,
        "attention.key_length": RANK + TURNED if absorbed else PLAIN + TURNED,
        "attention.value_length": RANK if absorbed else VALUE,
    }
    if absorbed:
        sizes |= {"attention.key_length_mla": PLAIN + TURNED, "attention.value_length_mla": VALUE}
    return write_model(path, "deepseek2", {**KEYS, **sizes}, tensors)


def test_absorbed_latent_attention_is_the_expanded_one(tmp_path: pathlib.Path) -> None:
    results = []
    for absorbed in (False, True):
        runner = opened(latent(tmp_path / f"{absorbed}.gguf", absorbed))
        results.append(run_alone(runner, TOKENS))
        runner.close()
    assert np.abs(results[0] - results[1]).max() < 1e-4 * np.abs(results[0]).max()


def test_absorbed_latent_attention_caches_one_short_row(tmp_path: pathlib.Path) -> None:
    wide, short = (opened(latent(tmp_path / f"{a}.gguf", a)) for a in (False, True))
    assert short.block_bytes < wide.block_bytes
    wide.close()
    short.close()


@pytest.fixture
def hybrid(tmp_path: pathlib.Path) -> pathlib.Path:
    """Mamba-2 in the first layer, attention in the second."""
    inner, state, heads = 128, 16, 4
    wide = inner + 2 * state
    ssm = {
        "attn_norm": (DIM,),
        "ssm_in": (2 * inner + 2 * state + heads, DIM),
        "ssm_conv1d": (wide, 4),
        "ssm_conv1d.bias": (wide,),
        "ssm_dt.bias": (heads,),
        "ssm_d": (heads, 1),
        "ssm_norm": (1, inner),
        "ssm_out": (DIM, inner),
        **FFN,
    }
    attention = {
        "attn_norm": (DIM,),
        **{f"attn_{n}": (DIM, DIM) for n in ("q", "k", "v", "output")},
        **FFN,
    }
    tensors: dict[str, Shape | Floats] = {**OUTSIDE, **layered(ssm, 1)}
    tensors["blk.0.ssm_a"] = -np.abs(random("blk.0.ssm_a", (heads, 1))) - np.float32(0.1)
    second = {k.replace("blk.0", "blk.1"): v for k, v in layered(attention, 1).items()}
    keys = {
        **KEYS,
        "attention.head_count_kv": np.array([0, HEADS], np.int32),
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": heads,
        "ssm.group_count": 1,
    }
    path = tmp_path / "hybrid.gguf"
    return write_model(path, "granitehybrid", keys, {**tensors, **second})


def test_state_belongs_to_its_sequence(hybrid: pathlib.Path) -> None:
    """Two sequences decoded in turn, one joining late, give what each gives alone."""
    runner = opened(hybrid)
    assert runner.recurrent
    other = [(3 * i + 2) % VOCAB for i in range(20)]
    alone = [run_alone(runner, tokens)[-1].copy() for tokens in (TOKENS[:20], other)]
    step, last = runner.step, np.zeros((2, VOCAB), np.float32)
    for i in range(20):
        step.clear()
        step.add([TOKENS[i]], i, [5], "last")
        if i == 3:
            step.add(other[:4], 0, [2], "last")
        elif i > 3:
            step.add([other[i]], i, [2], "last")
        rows = runner.run()
        last[: len(rows)] = rows
    runner.close()
    assert np.abs(last - alone).max() < 1e-5 * np.abs(last).max()


def test_state_is_cleared_where_a_sequence_begins(hybrid: pathlib.Path) -> None:
    runner = opened(hybrid)
    first = run_alone(runner, TOKENS).copy()
    run_alone(runner, TOKENS[::-1])
    again = run_alone(runner, TOKENS)
    runner.close()
    assert (first == again).all()


def step_of(*seqs: tuple[int, int]) -> Step:
    """One token for each (first block, position)."""
    step = Step(8, 4, 1)
    for block, pos in seqs:
        step.add([0], pos, [block], "none")
    return step


def test_slot_is_kept_while_a_sequence_runs() -> None:
    slots = Slots(2)
    first = step_of((7, 0), (9, 0))
    slots.assign(first)
    held = first.slot[:2].tolist()
    assert sorted(held) == [0, 1]
    swapped = step_of((9, 1), (7, 1))
    slots.assign(swapped)
    assert swapped.slot[:2].tolist() == held[::-1]


def test_slot_goes_to_a_new_sequence_from_the_one_unused_longest() -> None:
    slots = Slots(2)
    slots.assign(step_of((7, 0), (9, 0)))
    slots.assign(step_of((9, 1)))
    third = step_of((3, 0), (9, 2))
    slots.assign(third)
    assert len(set(third.slot[:2].tolist())) == 2
    with pytest.raises(AssertionError, match="no longer there"):
        slots.assign(step_of((7, 1)))


ENCODER = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": DIM,
    "feed_forward_length": FF,
    "attention.head_count": HEADS,
    "attention.layer_norm_epsilon": 1e-5,
    "attention.causal": False,
    "pooling_type": 1,
    "tokenizer.ggml.token_type_count": 2,
    "vocab_size": VOCAB,
}


def encoder(path: pathlib.Path, arch: str) -> pathlib.Path:
    shared: dict[str, Shape] = {
        "attn_output": (DIM, DIM),
        "attn_output_norm": (DIM,),
        "attn_output_norm.bias": (DIM,),
        "ffn_up": (FF, DIM),
        "ffn_down": (DIM, FF),
        "layer_output_norm": (DIM,),
        "layer_output_norm.bias": (DIM,),
    }
    if arch == "bert":
        for name in ("q", "k", "v", "output"):
            shared |= {f"attn_{name}": (DIM, DIM), f"attn_{name}.bias": (DIM,)}
        shared |= {"ffn_up.bias": (FF,), "ffn_down.bias": (DIM,)}
    else:
        shared |= {"attn_qkv": (3 * DIM, DIM), "ffn_gate": (FF, DIM)}
    outside: dict[str, Shape] = {
        "token_embd.weight": (VOCAB, DIM),
        "token_types.weight": (2, DIM),
        "token_embd_norm.weight": (DIM,),
        "token_embd_norm.bias": (DIM,),
    }
    if arch == "bert":
        outside["position_embd.weight"] = (128, DIM)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB - 5))]
    more = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": np.array([3] * 5 + [1] * (VOCAB - 5), np.int32),
        f"{arch}.tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.token_type_count": 2,
    }
    keys = {k: v for k, v in ENCODER.items() if not k.startswith("tokenizer")}
    return write_model(path, arch, keys, {**outside, **layered(shared)}, more)


def hidden(path: pathlib.Path, tokens: list[int]) -> Floats:
    runner = opened(path)
    runner.step.add(tokens, 0, [0, 1], "all")
    assert runner.run().size == 0
    rows = runner.hidden().copy()
    runner.close()
    return rows


@pytest.mark.parametrize("arch", ["bert", "nomic-bert"])
def test_encoder_looks_both_ways(arch: str, tmp_path: pathlib.Path) -> None:
    path = encoder(tmp_path / "e.gguf", arch)
    before, after = hidden(path, TOKENS[:9]), hidden(path, [*TOKENS[:8], 7])
    assert np.abs(before[0] - after[0]).max() > 1e-3


@pytest.mark.peer
@pytest.mark.parametrize("arch", ["bert", "nomic-bert"])
def test_encoder_gives_llama_cpps_hidden_rows(arch: str, tmp_path: pathlib.Path) -> None:
    peer = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference here")
    path = encoder(tmp_path / "e.gguf", arch)
    tokens = [2, *TOKENS[:20], 3]
    model = peer.Llama(
        str(path), embedding=True, n_ctx=64, pooling_type=0, verbose=False, n_threads=1
    )
    batch = peer.llama_batch_init(64, 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
        batch.seq_id[i][0], batch.n_seq_id[i] = 0, 1
    assert peer.llama_encode(model.ctx, batch) == 0
    rows = [peer.llama_get_embeddings_ith(model.ctx, i) for i in range(len(tokens))]
    wanted = np.array([np.ctypeslib.as_array(row, (DIM,)).copy() for row in rows])
    peer.llama_batch_free(batch)
    model.close()
    got = hidden(path, tokens)
    assert np.square(got - wanted).sum() / np.square(wanted).sum() < 1e-5


def gemma4(path: pathlib.Path, moe: bool, own: int, shared: int) -> pathlib.Path:
    """Windowed and full layers of different shapes; `own` is the width of per-layer inputs."""
    layers, windowed = 6, [True, True, False, True, True, False]
    keys: dict[str, Any] = {
        **KEYS,
        "block_count": layers,
        "vocab_size": VOCAB,
        "attention.head_count_kv": np.array([2, 2, 1, 2, 2, 1], np.int32),
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.key_length_swa": 16,
        "attention.value_length_swa": 16,
        "rope.dimension_count": 32,
        "rope.dimension_count_swa": 16,
        "rope.freq_base": 1000000.0,
        "rope.freq_base_swa": 10000.0,
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": np.array(windowed),
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": own,
        "final_logit_softcapping": 30.0,
    }
    if moe:
        keys |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    factors = np.ones(16, np.float32)
    factors[4:] = 1e30  # these pairs do not turn
    tensors: dict[str, Shape | Floats] = {**OUTSIDE, "rope_freqs.weight": factors}
    if own:
        wide = own * layers
        tensors["per_layer_token_embd.weight"] = (VOCAB, wide)
        tensors |= {
            "per_layer_model_proj.weight": (wide, DIM),
            "per_layer_proj_norm.weight": (own,),
        }
    for i in range(layers):
        head, kv = (16, 2) if windowed[i] else (32, 1)
        each: dict[str, Shape] = {"attn_q": (HEADS * head, DIM), "attn_output": (DIM, HEADS * head)}
        each |= {"attn_norm": (DIM,), "attn_q_norm": (head,), **FFN}
        each |= {"post_attention_norm": (DIM,), "post_ffw_norm": (DIM,)}
        if i < layers - shared:
            each |= {"attn_k": (kv * head, DIM), "attn_k_norm": (head,)}
            if windowed[i]:  # full layers take their keys as values
                each["attn_v"] = (kv * head, DIM)
        if own:
            each |= {"inp_gate": (own, DIM), "proj": (DIM, own), "post_norm": (DIM,)}
        if moe:
            each |= {"ffn_gate_inp": (4, DIM), "ffn_gate_up_exps": (4, 64, DIM)}
            each |= {"ffn_down_exps": (4, DIM, 32), "pre_ffw_norm_2": (DIM,)}
            each |= {"post_ffw_norm_1": (DIM,), "post_ffw_norm_2": (DIM,)}
            tensors[f"blk.{i}.ffn_gate_inp.scale"] = (DIM,)
            tensors[f"blk.{i}.ffn_down_exps.scale"] = np.array([0.5, 1, 1.5, 2], np.float32)
        tensors[f"blk.{i}.layer_output_scale.weight"] = np.array([0.7 + 0.1 * i], np.float32)
        tensors |= {f"blk.{i}.{name}.weight": shape for name, shape in each.items()}
    more = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(VOCAB)],
        "tokenizer.ggml.scores": np.zeros(VOCAB, np.float32),
        "tokenizer.ggml.token_type": np.ones(VOCAB, np.int32),
    }
    return write_model(path, "gemma4", keys, tensors, more)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("moe", "own", "shared"), [(False, 0, 0), (False, 8, 3), (True, 0, 0)], ids=str
)
def test_gemma4_gives_llama_cpps_logits(
    moe: bool, own: int, shared: int, tmp_path: pathlib.Path
) -> None:
    peer = pytest.importorskip("llama_cpp", reason="llama-cpp-python is the reference here")
    path = gemma4(tmp_path / "g.gguf", moe, own, shared)
    runner = opened(path)
    got = run_alone(runner, TOKENS[:30])
    runner.close()
    more = {"n_threads": 1, "type_k": 0, "type_v": 0, "verbose": False}
    model = peer.Llama(str(path), n_ctx=64, logits_all=True, **more)
    model.eval(TOKENS[:30])
    wanted = np.array(model.scores[:30])
    model.close()
    # llama.cpp looks GELU up in a table of half precision.
    assert np.square(got - wanted).sum() / np.square(wanted).sum() < 1e-4
    assert (got.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.9
