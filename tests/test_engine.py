"""The engine over a real, tiny model: what many sequences at once may and may not change."""

import json
import pathlib
import queue
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llamoot.engine.budget import Settings, decide
from llamoot.engine.engine import Engine
from llamoot.engine.sampler import Params
from llamoot.engine.sequence import Output, Sequence
from llamoot.errors import BadRequest, ContextOverflow, Overloaded
from llamoot.gguf.reader import open_gguf
from llamoot.model.config import read_config
from llamoot.model.runner import open_runner, run_alone

pytestmark = pytest.mark.model

GREEDY = Params(temperature=0)
Make = Callable[..., Engine]


@pytest.fixture
def make(shared: pathlib.Path) -> Iterator[Make]:
    """Engines over stories260K, closed when the test ends."""
    engines = []

    def open_engine(**options: Any) -> Engine:
        waiting = options.pop("max_waiting", 256)
        options = {"executor": "compiled", "max_seqs": 8, "context": 512} | options
        runner = open_runner(shared / "models/stories260K.gguf", **options)
        engines.append(Engine(runner, runner.n_blocks, max_waiting=waiting))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def finish(engine: Engine, *seqs: Sequence) -> list[list[int]]:
    """Submit, step until done, and give what each generated."""
    for seq in seqs:
        engine.submit(seq)
    for _ in range(10_000):
        if not engine.step():
            break
    return [seq.ids[seq.n_prompt :] for seq in seqs]


def prompt(n: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [1, *(rng.randrange(3, 500) for _ in range(n - 1))]


def solo(make: Make, ids: list[int], params: Params, n: int) -> list[int]:
    return finish(make(), Sequence(list(ids), params, max_new=n))[0]


def test_greedy_tokens_are_the_references(make: Make, shared: pathlib.Path) -> None:
    cases = json.loads((shared / "models/stories260K.expected.json").read_text())["cases"]
    seqs = [Sequence(c["prompt_ids"], GREEDY, max_new=len(c["greedy_ids"])) for c in cases]
    assert finish(make(), *seqs) == [c["greedy_ids"] for c in cases]


def test_a_common_prefix_is_computed_once_and_never_again(make: Make) -> None:
    engine = make(context=2048, max_tokens=256)
    prefix = prompt(1000)
    tails = [prompt(20, seed) for seed in range(1, 6)]
    first = finish(engine, *(Sequence(prefix + t, GREEDY, max_new=8) for t in tails))
    assert engine.n_prompt <= 1000 + 5 * 32
    engine.n_prompt = 0
    seqs = [Sequence(prefix + t, GREEDY, max_new=8) for t in tails]
    assert finish(engine, *seqs) == first
    assert engine.n_prompt == 5  # of each prompt the last token, whose logits are wanted
    engine.n_prompt = 0
    other = [Sequence(prefix + prompt(20, seed), GREEDY, max_new=2) for seed in range(11, 16)]
    finish(engine, *other)
    assert engine.n_prompt <= 5 * 20
    assert all(seq.cached >= 1000 for seq in other)


def test_shared_prefixes_change_no_answer(make: Make) -> None:
    engine = make()
    prefix = prompt(70)
    asked = [prefix[:n] + prompt(9, n) for n in (40, 64, 65, 70, 70)]
    together = finish(engine, *(Sequence(list(p), GREEDY, max_new=20) for p in asked))
    again = finish(engine, *(Sequence(list(p), GREEDY, max_new=20) for p in asked))
    assert together == again == [solo(make, p, GREEDY, 20) for p in asked]


def test_samples_of_a_prompt_share_it_and_differ_by_their_seeds(make: Make) -> None:
    engine = make()
    family = [Sequence(prompt(50), Params(seed=s), max_new=12) for s in range(4)]
    family[0].siblings = family[1:]
    outputs: list[list[int]] = [[] for _ in family]
    for seq, out in zip(family, outputs):
        seq.sink = lambda o, out=out: out.extend(c.id for c in o.tokens)
    finish(engine, family[0])
    assert engine.n_prompt == 50
    assert outputs == [solo(make, prompt(50), Params(seed=s), 12) for s in range(4)]
    assert engine.blocks.n_free == engine.n_blocks


def test_a_long_prompt_does_not_stall_who_is_decoding(make: Make) -> None:
    engine = make(max_tokens=128)
    talker = Sequence(prompt(5), GREEDY, max_new=100)
    engine.submit(talker)
    engine.step()
    engine.submit(Sequence(prompt(400), GREEDY, max_new=1))
    longest, steps = 0.0, 0
    while talker.n_new < 8:
        before, started = talker.n_new, time.perf_counter()
        assert engine.step() and talker.n_new == before + 1
        longest, steps = max(longest, time.perf_counter() - started), steps + 1
    assert longest < 5


@pytest.mark.parametrize("kind", ["greedy", "seeded"])
def test_64_sequences_in_any_company_say_what_they_say_alone(make: Make, kind: str) -> None:
    rng = random.Random(4)
    engine, alone = make(n_blocks=40), make(max_seqs=1)
    seqs, cancelled = list[Sequence](), set[int]()
    for i in range(64):
        params = GREEDY if kind == "greedy" else Params(seed=i, top_k=50)
        start = prompt(rng.choice([0, 40, 80]) + 1, 3)
        ids = start + prompt(rng.randrange(1, 60), i)
        seqs.append(Sequence(ids, params, max_new=rng.randrange(1, 25)))
    todo = list(seqs)
    while todo or engine.n_running or engine.n_waiting:
        for _ in range(min(len(todo), rng.randrange(0, 4))):
            engine.submit(todo.pop())
        if rng.random() < 0.15:
            victim = rng.choice(seqs)
            engine.cancel(victim)
            if victim.finish is None and victim not in todo:
                cancelled.add(victim.id)
        engine.step()
    ended = [seq for seq in seqs if seq.finish in ("stop", "length")]
    assert len(ended) > 40 and cancelled
    assert engine.blocks.n_free == engine.n_blocks
    for seq in ended:
        twin = Sequence(seq.ids[: seq.n_prompt], seq.params, max_new=seq.max_new)
        assert finish(alone, twin) == [seq.ids[seq.n_prompt :]]


def test_a_cancelled_sequence_is_gone_within_one_step(make: Make) -> None:
    engine = make()
    told = list[Output]()
    seq = Sequence(prompt(40), GREEDY, max_new=300, sink=told.append)
    engine.submit(seq)
    for _ in range(3):
        engine.step()
    engine.cancel(seq)
    engine.cancel(seq)
    assert engine.blocks.n_free < engine.n_blocks
    assert not engine.step()
    assert engine.blocks.n_free == engine.n_blocks and engine.n_running == 0
    assert [o.finish for o in told][-1] == "cancelled" and len(told) == 4


def test_a_full_queue_and_a_long_prompt_are_refused_before_anything_runs(make: Make) -> None:
    engine = make(max_waiting=2)
    engine.submit(Sequence(prompt(3)))
    engine.submit(Sequence(prompt(3)))
    with pytest.raises(Overloaded, match="2 requests are waiting"):
        engine.submit(Sequence(prompt(3)))
    with pytest.raises(ContextOverflow) as caught:
        engine.submit(Sequence(prompt(512)))
    assert (caught.value.n_prompt, caught.value.n_context) == (512, 512)
    for wrong in ([], [512], [-1]):
        with pytest.raises(BadRequest):
            engine.submit(Sequence(wrong))
    assert engine.n_steps == 0


def test_an_answer_ends_where_the_context_does(make: Make) -> None:
    seq = Sequence(prompt(500), GREEDY)
    finish(make(), seq)
    assert seq.finish == "length" and len(seq.ids) == 512


def test_memory_is_refused_with_the_numbers(shared: pathlib.Path) -> None:
    with open_gguf(shared / "models/stories260K.gguf") as gguf:
        config = read_config(gguf)
        roomy = decide(gguf, config, Settings(), exact=False, free=1 << 33)
        assert roomy.context == 512 and roomy.n_blocks * 32 >= 512
        tight = decide(gguf, config, Settings(), exact=False, free=roomy.weights + (130 << 20))
        assert tight.n_blocks < roomy.n_blocks or tight.cache <= 2 << 20
        with pytest.raises(Overloaded, match=r"1000000 tokens 0\.6 GB, but 0\.2 GB of mem"):
            decide(gguf, config, Settings(context=1_000_000), exact=False, free=200 << 20)


@pytest.mark.parametrize("params", [GREEDY, Params(seed=3), Params(seed=4, repeat_penalty=1.2)])
def test_speculation_changes_nothing_but_the_number_of_steps(make: Make, params: Params) -> None:
    plain = solo(make, prompt(6), params, 300)
    engine = make()
    passage = plain[:150] + prompt(3) + plain[150:]
    seq = Sequence(prompt(6), params, max_new=300, drafts=(passage,))
    assert finish(engine, seq) == [plain]
    assert engine.n_steps < 300 / 4
    wrong = Sequence(prompt(6), params, max_new=100, drafts=(prompt(400, 9),))
    assert finish(make(), wrong) == [plain[:100]]


def test_penalties_and_stop_ids_hold_under_speculation(make: Make) -> None:
    plain = solo(make, prompt(6), GREEDY, 60)
    stop = frozenset([plain[40]])
    n = next(i for i, t in enumerate(plain) if t in stop) + 1
    seq = Sequence(prompt(6), GREEDY, max_new=60, drafts=(plain,), stop_ids=stop)
    assert finish(make(), seq) == [plain[:n]] and seq.finish == "stop"


def test_logits_and_embeddings_of_a_batch_are_those_of_one(make: Make) -> None:
    engine = make(max_tokens=48)
    ids = prompt(100)
    talker = Sequence(prompt(30, 5), GREEDY, max_new=10)
    asked = [
        Sequence(list(ids), pooling="logits"),
        Sequence(list(ids), pooling="mean"),
        Sequence(list(ids[:40]), pooling="last"),
        Sequence(list(ids), pooling="cls"),
    ]
    told: dict[int, Output] = {}
    for seq in asked:
        seq.sink = lambda output, id=seq.id: told.__setitem__(id, output)
    finish(engine, talker, *asked)
    reference = make(max_tokens=512).runner
    expected = run_alone(reference, ids)
    assert np.allclose(told[asked[0].id].pooled, expected, atol=1e-3)
    step = reference.step
    step.clear()
    step.add(ids, 0, list(range(4)), "all")
    reference.run(logits=False)
    hidden = reference.hidden()
    assert np.allclose(told[asked[1].id].pooled, hidden.mean(axis=0), atol=1e-3)
    assert np.allclose(told[asked[2].id].pooled, hidden[39], atol=1e-3)
    assert np.allclose(told[asked[3].id].pooled, hidden[0], atol=1e-3)
    assert talker.ids[30:] == solo(make, prompt(30, 5), GREEDY, 10)
    assert engine.blocks.n_free == engine.n_blocks


def test_a_dead_thread_leaves_nobody_waiting(make: Make) -> None:
    engine = make()
    engine.start()
    news: queue.SimpleQueue[Output] = queue.SimpleQueue()

    def fail(output: Output) -> None:
        raise ValueError("the owner of this sequence is broken")

    engine.submit(Sequence(prompt(9), GREEDY, max_new=400, sink=news.put))
    news.get(timeout=10)
    engine.submit(Sequence(prompt(5), GREEDY, sink=fail))
    while (output := news.get(timeout=10)).error is None:
        pass
    assert isinstance(output.error, ValueError)
    with pytest.raises(ValueError, match="owner"):
        engine.submit(Sequence(prompt(5)))


def test_closing_tells_everybody(make: Make) -> None:
    engine = make()
    engine.start()
    news: queue.SimpleQueue[Output] = queue.SimpleQueue()
    for seed in range(12):
        engine.submit(Sequence(prompt(9, seed), GREEDY, sink=news.put))
    engine.close()
    engine.close()
    errors = 0
    while errors < 12:
        output = news.get(timeout=5)
        errors += isinstance(output.error, Overloaded) or output.finish is not None
    with pytest.raises(Overloaded):
        engine.submit(Sequence(prompt(5)))


def test_adapters_and_seeds_are_part_of_the_question(make: Make) -> None:
    seeds = [replace(GREEDY, temperature=1.0, seed=s) for s in (1, 1, 2)]
    same, again, other = finish(make(), *(Sequence(prompt(20), p, max_new=20) for p in seeds))
    assert same == again != other


@pytest.mark.peer
def test_greedy_with_penalties_is_llama_cpps(make: Make, shared: pathlib.Path) -> None:
    """200 tokens of stories260K, token for token."""
    lib: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path = str(shared / "models/stories260K.gguf")
    model = lib.Llama(path, n_ctx=512, verbose=False, seed=0, logits_all=False)
    p = Params(
        temperature=0,
        repeat_penalty=1.3,
        repeat_last_n=64,
        frequency_penalty=0.2,
        presence_penalty=0.1,
    )
    ids = model.tokenize(b"Once upon a time")
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    penalties = lib.llama_sampler_init_penalties(512, 64, 1.3, 0.2, 0.1)
    lib.llama_sampler_chain_add(chain, penalties)
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    for token in ids:
        lib.llama_sampler_accept(chain, token)
    theirs, todo = list[int](), list(ids)
    for _ in range(200):
        model.eval(todo)
        todo = [lib.llama_sampler_sample(chain, model.ctx, -1)]
        theirs += todo
    lib.llama_sampler_free(chain)
    assert solo(make, ids, p, 200) == theirs
