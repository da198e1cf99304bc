"""The bookkeeping of cache and schedule, played against an imagined memory."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llamoot.engine.blocks import Blocks
from llamoot.engine.scheduler import Chunk, Scheduler
from llamoot.engine.sequence import Sequence
from llamoot.engine.speculate import Lookup

pytestmark = pytest.mark.pure

SIZE = 4


class Memory:
    """What a real cache would hold: the token at each position of each block."""

    def __init__(self, n_blocks: int, max_tokens: int = 12, max_seqs: int = 4) -> None:
        self.blocks = Blocks(n_blocks, SIZE)
        self.scheduler = Scheduler(self.blocks, max_tokens, max_seqs, max_mixed=6)
        self.cells = [[-1] * SIZE for _ in range(n_blocks)]
        self.n_computed = 0

    def submit(self, ids: list[int], max_new: int = 3, siblings: int = 0) -> Sequence:
        family = [Sequence(list(ids), max_new=max_new) for _ in range(1 + siblings)]
        family[0].siblings = family[1:]
        self.scheduler.waiting.append(family[0])
        return family[0]

    def step(self, guess: list[int] | None = None) -> bool:
        batch = self.scheduler.schedule(lambda seq: list(guess or []))
        for source, target in self.blocks.copies:
            self.cells[target] = list(self.cells[source])
        self.blocks.copies.clear()
        written = set()
        for chunk in batch:
            for i, token in enumerate(chunk.tokens + chunk.guesses, chunk.seq.n_done):
                place = chunk.seq.blocks[i // SIZE], i % SIZE
                assert place not in written, "two sequences write one place in one step"
                written.add(place)
                self.cells[place[0]][place[1]] = token
        for chunk in batch:
            self.settle(chunk)
        return bool(batch)

    def settle(self, chunk: Chunk) -> None:
        seq = chunk.seq
        self.n_computed += len(chunk.tokens)
        assert (
            self.read(seq, seq.n_done + len(chunk.tokens)) == seq.ids[: seq.n_done] + chunk.tokens
        )
        at_end, first = chunk.reaches_end, seq.n_new == 0
        self.blocks.wrote(seq, len(chunk.tokens))
        if not at_end:
            return
        family = [seq]
        if first:
            self.scheduler.fork(seq)
            family += seq.siblings
        for member in family:
            n_right = min(len(chunk.guesses), seq.id % 3)
            member.ids += [*chunk.guesses[:n_right], member.id * 100 + member.n_new]
            self.blocks.wrote(member, n_right)
            if member.n_new >= member.max_new:
                self.end(member)

    def end(self, seq: Sequence) -> None:
        self.scheduler.end(seq)
        seq.finish = "length"

    def read(self, seq: Sequence, n: int) -> list[int]:
        return [self.cells[seq.blocks[i // SIZE]][i % SIZE] for i in range(n)]

    def drain(self) -> None:
        for _ in range(2000):
            if not self.step():
                break
        assert not self.scheduler.running and not self.scheduler.waiting


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=20)


class Bookkeeping(RuleBasedStateMachine):
    """Random orders; after every step each sequence finds its own tokens in the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(n_blocks=10)
        self.seqs: list[Sequence] = []

    @rule(ids=PROMPTS, max_new=st.integers(1, 12), siblings=st.integers(0, 2))
    def submit(self, ids: list[int], max_new: int, siblings: int) -> None:
        self.seqs.append(self.memory.submit(ids, max_new, siblings))

    @rule(guess=st.lists(st.integers(0, 1), max_size=5))
    def step(self, guess: list[int]) -> None:
        self.memory.step(guess)

    @precondition(lambda self: self.seqs)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        seq = self.seqs[which % len(self.seqs)]
        if seq.finish is None:
            self.memory.end(seq)

    @invariant()
    def what_is_done_is_in_the_cache(self) -> None:
        if self.memory.blocks.copies:
            return
        for seq in self.memory.scheduler.running:
            assert self.memory.read(seq, seq.n_done) == seq.ids[: seq.n_done]

    def teardown(self) -> None:
        self.memory.drain()
        assert self.memory.blocks.n_free == 10


Bookkeeping.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_bookkeeping_survives_random_orders = Bookkeeping.TestCase


def test_sequences_submitted_together_compute_a_common_prefix_once() -> None:
    memory = Memory(n_blocks=200, max_tokens=16, max_seqs=8)
    prefix = [random.Random(1).randrange(9) for _ in range(100)]
    for i in range(5):
        memory.submit([*prefix, 50 + i, 60 + i, 70 + i])
    memory.drain()
    assert memory.n_computed <= 100 + 5 * (SIZE + 3) + 5 * 3


def test_a_prefix_asked_again_is_found_to_the_token() -> None:
    memory = Memory(n_blocks=50)
    prefix = list(range(22))  # five blocks and a half
    memory.submit([*prefix, 90], max_new=1)
    memory.drain()
    memory.n_computed = 0
    memory.submit([*prefix, 91, 92], max_new=1)
    memory.drain()
    assert memory.n_computed == 2


def test_an_answer_becomes_part_of_the_prefix() -> None:
    memory = Memory(n_blocks=50)
    seq = memory.submit(list(range(9)), max_new=8)
    memory.drain()
    memory.n_computed = 0
    memory.submit([*seq.ids, 1], max_new=1)
    memory.drain()
    assert memory.n_computed == 2  # the last token of the answer was never computed


def test_samples_of_one_prompt_share_its_evaluation() -> None:
    memory = Memory(n_blocks=50)
    memory.submit(list(range(10)), max_new=4, siblings=3)
    memory.drain()
    assert memory.n_computed == 10 + 4 * 3


def test_different_adapters_share_nothing() -> None:
    memory = Memory(n_blocks=50)
    memory.submit(list(range(16)), max_new=1)
    memory.drain()
    memory.n_computed = 0
    memory.submit(list(range(16)), max_new=1).space = b"adapter"
    memory.drain()
    assert memory.n_computed == 16


def test_a_cancelled_writer_leaves_its_work_to_those_who_wait() -> None:
    memory = Memory(n_blocks=50, max_tokens=8)
    first = memory.submit(list(range(30)))
    second = memory.submit(list(range(30)))
    memory.step()
    memory.end(first)
    assert second.n_done == 0
    memory.drain()
    assert second.n_new == 3 and second.n_cached == 8


def test_the_prefix_unused_longest_is_forgotten_first() -> None:
    memory = Memory(n_blocks=8)
    for start in (0, 100):
        memory.submit(list(range(start, start + 12)), max_new=1)
        memory.drain()
    memory.submit(list(range(200, 210)), max_new=1)  # needs three blocks, two are unused
    memory.drain()
    memory.n_computed = 0
    memory.submit(list(range(100, 112)), max_new=1)
    memory.drain()
    assert memory.n_computed == 1
    memory.submit(list(range(12)), max_new=1)
    memory.drain()
    assert memory.n_computed > 1 + 1


def test_a_long_prompt_does_not_stall_who_is_decoding() -> None:
    memory = Memory(n_blocks=60, max_tokens=12)
    short = memory.submit([1, 2], max_new=40)
    memory.step()
    memory.submit(list(range(10, 110)), max_new=1)
    for n in range(2, 15):
        memory.step()
        assert short.n_new == n


def test_the_youngest_makes_way_and_comes_back() -> None:
    memory = Memory(n_blocks=7, max_seqs=3)
    seqs = [memory.submit([i] * 5, max_new=16) for i in range(3)]
    memory.drain()
    assert [seq.n_new for seq in seqs] == [16, 16, 16]
    assert all(seq.ids[5:] == [seq.id * 100 + i for i in range(16)] for seq in seqs)


def test_look_up_follows_the_text_and_believes_it_more_each_time() -> None:
    text = list(range(100, 200))
    lookup = Lookup([text])
    ids, sizes = [1, 100, 101], []
    while len(ids) < 50:
        guesses = lookup.guess(ids, 15)
        assert guesses == text[len(ids) - 1 :][: len(guesses)]
        sizes.append(len(guesses))
        ids += [*guesses, text[len(ids) - 1 + len(guesses)]]
        lookup.learn(len(guesses), len(guesses))
    assert sizes[:3] == [4, 8, 15]
    assert lookup.guess([7, 8, 9], 15) == []
    assert lookup.guess([7, 120, 121], 3) == [122, 123, 124]
