"""Opening models: what the numbers mean, what is refused, what a runner promises."""

import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from llamoot.errors import BadRequest, ConfigError, ContextOverflow, ModelFileError
from llamoot.gguf.reader import open_gguf
from llamoot.kernels.step import BLOCK
from llamoot.model.config import read_config
from llamoot.model.plan import choose_sizes, memory_plan
from llamoot.model.rope import alibi_slopes, rope_of
from llamoot.model.runner import Runner, open_runner, run_alone
from tiny_models import write_model

pytestmark = pytest.mark.model

DIM, HEADS, KV, FF, VOCAB, LAYERS = 64, 4, 2, 96, 50, 2


def shapes(layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Tensors of a tiny llama, numpy order."""
    kv = DIM // HEADS * KV
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, DIM),
        "output_norm.weight": (DIM,),
    }
    for i in range(layers):
        found |= {
            f"blk.{i}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (DIM,),
                "attn_q": (DIM, DIM),
                "attn_k": (kv, DIM),
                "attn_v": (kv, DIM),
                "attn_output": (DIM, DIM),
                "ffn_norm": (DIM,),
                "ffn_gate": (FF, DIM),
                "ffn_up": (FF, DIM),
                "ffn_down": (DIM, FF),
            }.items()
        }
    return found


def write(
    path: pathlib.Path,
    tensors: dict[str, tuple[int, ...]] | None = None,
    arch: str = "llama",
    **more: object,
) -> pathlib.Path:
    keys: dict[str, object] = {
        "block_count": LAYERS,
        "context_length": 128,
        "embedding_length": DIM,
        "feed_forward_length": FF,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV,
        "attention.layer_norm_rms_epsilon": 1e-5,
        **{k.replace("__", "."): v for k, v in more.items()},
    }
    given = {key: value for key, value in keys.items() if value is not None}
    return write_model(path, arch, given, shapes() if tensors is None else tensors)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "tiny.gguf")


@pytest.fixture
def runner(path: pathlib.Path) -> Iterator[Runner]:
    opened = open_runner(path, max_tokens=96, max_seqs=4, n_blocks=12, cache_type="f32")
    yield opened
    opened.close()


TOKENS = [(7 * i + 3) % VOCAB for i in range(40)]


def test_unknown_architecture_is_refused_by_name_with_what_is_known(tmp_path: pathlib.Path) -> None:
    file = write(tmp_path / "x.gguf", arch="parrot", tensors={})
    with pytest.raises(ModelFileError, match=r"'parrot' is not known; known are .*llama.*qwen3"):
        open_runner(file)


def test_missing_tensor_is_named_with_its_shape(tmp_path: pathlib.Path) -> None:
    tensors = shapes()
    del tensors["blk.1.attn_k.weight"]
    with pytest.raises(ModelFileError, match=r"blk.1.attn_k.weight: is missing.*\(32, 64\)"):
        open_runner(write(tmp_path / "x.gguf", tensors))


def test_misshapen_tensor_is_named_with_both_shapes(tmp_path: pathlib.Path) -> None:
    tensors = shapes() | {"blk.0.ffn_up.weight": (FF, DIM // 2)}
    wanted = r"blk.0.ffn_up.weight: expected \(96, 64\): file has F32 \(96, 32\)"
    with pytest.raises(ModelFileError, match=wanted):
        open_runner(write(tmp_path / "x.gguf", tensors))


@pytest.mark.parametrize("key", ["context_length", "embedding_length", "block_count"])
def test_missing_key_is_named(tmp_path: pathlib.Path, key: str) -> None:
    with pytest.raises(ModelFileError, match=f"llama.{key}"):
        open_runner(write(tmp_path / "x.gguf", **{key: None}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__head_count_kv", 3),
        ("rope__dimension_count", 17),
        ("rope__dimension_count", 64),
        ("block_count", 0),
        ("expert_count", 4),
        ("embedding_length", 0),
        ("attention__head_count", -4),
        ("attention__head_count", "four"),
        ("attention__key_length", 1 << 33),
        ("feed_forward_length", np.array([96], np.int32)),
        ("swiglu_clamp_exp", "wide"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    tmp_path: pathlib.Path, key: str, value: object
) -> None:
    with pytest.raises(ModelFileError, match="llama"):
        open_runner(write(tmp_path / "x.gguf", **{key: value}))


def test_unknown_executor_is_a_configuration_error(path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="LLAMOOT_KERNELS"):
        open_runner(path, executor="abacus")


def test_logits_do_not_depend_on_chunks_neighbours_or_blocks(runner: Runner) -> None:
    whole = run_alone(runner, TOKENS)
    assert np.abs(run_alone(runner, TOKENS, chunk=1) - whole).max() < 1e-5
    assert np.abs(run_alone(runner, TOKENS, chunk=7) - whole).max() < 1e-5
    step = runner.step
    step.clear()
    step.add(TOKENS[:5], 0, [9], "last")
    step.add(TOKENS, 0, [3, 1], "all")
    step.add(TOKENS[:30], 0, [7], "none")
    mixed = runner.run()
    assert np.abs(mixed[1:] - whole).max() < 1e-5
    assert np.abs(mixed[0] - whole[4]).max() < 1e-5


def test_only_wanted_rows_have_logits(runner: Runner) -> None:
    whole = run_alone(runner, TOKENS)
    runner.step.clear()
    runner.step.add(TOKENS, 0, [0, 1], "last")
    assert runner.run().shape == (1, VOCAB)
    assert np.abs(runner.run()[0] - whole[-1]).max() < 1e-5
    assert runner.run(logits=False).shape == (0, VOCAB)
    assert runner.hidden().shape == (1, DIM)


def test_hidden_rows_make_the_logits(runner: Runner) -> None:
    """With tied embeddings, logits are hidden rows times the embedding table."""
    runner.step.clear()
    runner.step.add(TOKENS, 0, [0, 1], "all")
    logits = runner.run().copy()
    table = runner.gguf.tensors["token_embd.weight"].raw.view(np.float32).reshape(VOCAB, DIM)
    assert np.abs(runner.hidden() @ table.T - logits).max() < 1e-4


def test_copied_block_goes_on_like_the_original(runner: Runner) -> None:
    """Copy on write: two sequences share a first block and part in a copy of the second."""
    whole = run_alone(runner, TOKENS)
    runner.copy_block(1, 5)
    runner.step.clear()
    runner.step.add([TOKENS[-1]], len(TOKENS) - 1, [0, 5], "last")
    assert np.abs(runner.run()[0] - whole[-1]).max() < 1e-5


def test_half_precision_and_8_bit_caches_stay_close(path: pathlib.Path) -> None:
    exact = open_runner(path, max_tokens=64, max_seqs=1, cache_type="f32", executor="twins")
    wanted = run_alone(exact, TOKENS)
    exact.close()
    for cache, bound in (("f16", 1e-5), ("q8_0", 1e-3)):
        opened = open_runner(path, max_tokens=64, max_seqs=1, cache_type=cache)  # type: ignore[arg-type]
        error = np.square(run_alone(opened, TOKENS) - wanted).sum() / np.square(wanted).sum()
        opened.close()
        assert error < bound


def test_tokens_are_checked_before_they_are_run(runner: Runner) -> None:
    with pytest.raises(BadRequest, match="token 50"):
        run_alone(runner, [1, 50])
    with pytest.raises(BadRequest, match="no tokens"):
        run_alone(runner, [])
    with pytest.raises(ContextOverflow):
        run_alone(runner, [1] * 129)


def test_memory_plan_is_what_is_allocated(path: pathlib.Path) -> None:
    with open_gguf(path) as gguf:
        plan = memory_plan(gguf, choose_sizes(read_config(gguf), max_tokens=32, n_blocks=6))
    opened = open_runner(path, max_tokens=32, n_blocks=6)
    assert opened.block_bytes == plan.block == 2 * LAYERS * BLOCK * DIM // HEADS * KV * 2
    assert plan.cache == 6 * plan.block
    assert plan.weights == sum(4 * int(np.prod(s)) for s in shapes().values())
    opened.close()


def test_rope_scaling_ends_in_one_table(tmp_path: pathlib.Path) -> None:
    plain = read_config(open_gguf(write(tmp_path / "a.gguf")))
    half = DIM // HEADS // 2
    rope = rope_of(plain, plain.layers[0], None)
    assert rope is not None
    assert np.allclose(rope.freqs, 10000.0 ** (-np.arange(half) / half))
    scaled = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}
    linear = read_config(open_gguf(write(tmp_path / "b.gguf", **scaled)))
    slow = rope_of(linear, linear.layers[0], None)
    assert slow is not None and np.allclose(slow.freqs * 4, rope.freqs)
    yarn = {**scaled, "rope__scaling__type": "yarn"}
    config = read_config(open_gguf(write(tmp_path / "c.gguf", **yarn)))
    mixed = rope_of(config, config.layers[0], None)
    assert mixed is not None
    assert np.isclose(mixed.freqs[0], rope.freqs[0])  # fast pairs stay
    assert np.isclose(mixed.freqs[-1] * 4, rope.freqs[-1])  # slow pairs are interpolated
    assert np.isclose(mixed.scale, 0.1 * np.log(4) + 1)
    factors = np.linspace(1, 3, half, dtype=np.float32)
    llama3 = rope_of(plain, plain.layers[0], factors)
    assert llama3 is not None and np.allclose(llama3.freqs * factors, rope.freqs)


def test_alibi_slopes_halve_from_head_to_head() -> None:
    assert np.allclose(alibi_slopes(8, 8.0), 0.5 ** np.arange(1, 9))
    assert np.allclose(alibi_slopes(6, 8.0)[4:], [2.0**-1.0, 2.0**-3.0])


STORIES = "stories260K.expected.json"


@pytest.fixture(scope="module")
def stories(shared: pathlib.Path) -> Iterator[tuple[Runner, list[dict[str, list[int]]]]]:
    cases = json.loads((shared / "models" / STORIES).read_text())["cases"]
    opened = open_runner(shared / "models" / "stories260K.gguf", cache_type="f32", max_seqs=4)
    yield opened, cases
    opened.close()


def test_stories_continue_token_for_token(stories: tuple[Runner, list[dict]]) -> None:  # type: ignore[type-arg]
    """All prompts decoded greedily together, as sequences of one batch."""
    runner, cases = stories
    texts = [list(case["prompt_ids"]) for case in cases][: runner.step.max_seqs]
    blocks = [list(range(8 * i, 8 * i + 8)) for i in range(len(texts))]
    done = [0] * len(texts)
    for _ in cases[0]["greedy_ids"]:
        runner.step.clear()
        for i, text in enumerate(texts):
            runner.step.add(text[done[i] :], done[i], blocks[i], "last")
            done[i] = len(text)
        for text, row in zip(texts, runner.run()):
            text.append(int(row.argmax()))
    for case, text in zip(cases, texts):
        assert text == case["prompt_ids"] + case["greedy_ids"]


def test_stories_begin_with_the_expected_probabilities(
    stories: tuple[Runner, list[dict]],  # type: ignore[type-arg]
) -> None:
    runner, cases = stories
    for case in cases:
        row = run_alone(runner, case["prompt_ids"])[-1].astype(np.float64)
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        for token, wanted in case["first_token_top8_logprobs"]:
            assert abs(logprobs[token] - wanted) < 1e-3
