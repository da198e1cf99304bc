"""Which tokens of which sequences the next forward pass computes.

Every sequence has tokens that are known (`ids`) and tokens that are computed (`n_done`). A step
computes some of the difference: the one new token of each decoding sequence first, with its
drafts, then prompt chunks up to a budget of tokens, oldest sequence first.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from llamoot.engine.blocks import Blocks
from llamoot.engine.sequence import Sequence


@dataclass(slots=True)
class Chunk:
    """Part of a step: tokens of `seq` from `seq.n_done` on, then guesses at what follows them."""

    seq: Sequence
    tokens: list[int]
    guesses: list[int] = field(default_factory=list)

    @property
    def reaches_end(self) -> bool:
        """Whether it computes the last known token, so that a next one can be chosen."""
        return self.seq.n_done + len(self.tokens) == len(self.seq.ids)


Guess = Callable[[Sequence], list[int]]


class Scheduler:
    """`max_tokens` a step, `max_mixed` prompt tokens a step while somebody is decoding."""

    def __init__(
        self,
        blocks: Blocks,
        max_tokens: int,
        max_seqs: int,
        max_mixed: int,
        max_outputs: int = 64,
        whole: bool = False,
    ) -> None:
        """`max_outputs` rows of logits fit a step; `whole` prompts are never split: those of
        models whose tokens see what follows them."""
        self.blocks, self.max_outputs, self.whole = blocks, max_outputs, whole
        self.max_tokens, self.max_seqs, self.max_mixed = max_tokens, max_seqs, max_mixed
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def schedule(self, guess: Guess) -> list[Chunk]:
        """The next step's chunks; empty when nobody has anything to compute."""
        batch: list[Chunk] = []
        room = self.max_tokens
        # decode
        for seq in [s for s in self.running if s.is_decoding]:
            guesses = guess(seq) if room > self.max_seqs else []
            if seq in self.running and self._make_room(seq, 1 + len(guesses)):
                batch.append(Chunk(seq, seq.ids[-1:], guesses[: self._n_writable(seq) - 1]))
                room -= 1 + len(batch[-1].guesses)
        batch = [chunk for chunk in batch if chunk.seq in self.running]
        # prefill
        budget = min(room, self.max_mixed) if batch and not self.whole else room
        self._admit()
        placed = {chunk.seq.id for chunk in batch}
        for seq in [s for s in self.running if s.id not in placed]:
            n = self._n_prompt_tokens(seq, budget)
            if n > 0 and self.blocks.reserve(seq, n):
                batch.append(Chunk(seq, seq.ids[seq.n_done : seq.n_done + n]))
                budget -= n
        if not batch and self.running:
            batch = self._unblock()
        return batch

    def end(self, seq: Sequence) -> None:
        """The sequence leaves; its blocks are free at once."""
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        self.blocks.release(seq)

    def fork(self, seq: Sequence) -> None:
        """The siblings of a sequence whose prompt is done start where it stands."""
        for sibling in (s for s in seq.siblings if s.finish is None):
            self.blocks.fork(seq, sibling)
            sibling.admitted = seq.admitted
            self.running.append(sibling)

    def _admit(self) -> None:
        seats = self.max_seqs - sum(1 + self._n_to_come(s) for s in self.running)
        while self.waiting and seats >= 1 + self._n_to_come(self.waiting[0]):
            seq = self.waiting[0]
            if not self.blocks.admit(seq, spare=len(self.running)):
                break
            self.waiting.popleft()
            seats -= 1 + self._n_to_come(seq)
            seq.admitted = seq.admitted or perf_counter()
            self.running.append(seq)

    @staticmethod
    def _n_to_come(seq: Sequence) -> int:
        """Siblings that will join when its prompt is done."""
        return 0 if seq.n_new else len(seq.siblings)

    def _n_prompt_tokens(self, seq: Sequence, budget: int) -> int:
        """How many tokens of a prompt to compute now."""
        self.blocks.advance(seq)
        if self.whole:
            return seq.n_left if seq.n_left <= budget else 0
        if budget <= 0 or self.blocks.must_wait(seq):
            return 0
        if seq.pooling == "logits":
            budget = min(budget, self.max_outputs)
        return self.blocks.n_unclaimed(seq, min(seq.n_left, budget))

    def _n_writable(self, seq: Sequence) -> int:
        return len(seq.blocks) * self.blocks.size - seq.n_done

    def _make_room(self, seq: Sequence, n: int) -> bool:
        """Blocks for `n` more positions (one, if there are not enough); the youngest make way."""
        if self.blocks.reserve(seq, n):
            return True
        while not self.blocks.reserve(seq, 1):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back into the queue; what it knows stays, what it computed may be found again."""
        self.running.remove(seq)
        self.blocks.release(seq)
        self.waiting.appendleft(seq)

    def _unblock(self) -> list[Chunk]:
        """Nobody can move: prompts hold all blocks and none has enough. The youngest make way."""
        while len(self.running) > 1:
            self._preempt(self.running[-1])
            for seq in self.running:
                n = self._n_prompt_tokens(seq, self.max_tokens)
                if n > 0 and self.blocks.reserve(seq, n):
                    return [Chunk(seq, seq.ids[seq.n_done : seq.n_done + n])]
        return []
