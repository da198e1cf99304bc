"""The engine: token ids in, token ids out, many sequences at once.

`step` is the whole of it: take orders, choose a batch, one forward pass, one new token for whoever
reached the end of what it knows. One thread does nothing else; everybody else leaves orders
(`submit`, `cancel`) and is told through the sequence's sink, which runs on the engine's thread.
"""

import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from time import perf_counter

import numpy as np

from llamoot.engine.blocks import Blocks
from llamoot.engine.sampler import Chosen, Floats
from llamoot.engine.scheduler import Chunk, Scheduler
from llamoot.engine.sequence import Finish, Output, Sequence
from llamoot.errors import BadRequest, ContextOverflow, LlamootError, Overloaded
from llamoot.kernels.step import BLOCK
from llamoot.model.runner import Runner

MIXED = 64  # prompt tokens of a step that others wait for: a step stays short
MAX_WAITING = 256

FAILURES = (
    LlamootError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Engine:
    """One model, one cache, one batch. Thread-safe: `submit`, `cancel`, `close`, the counts."""

    def __init__(self, runner: Runner, n_blocks: int, *, max_waiting: int = MAX_WAITING) -> None:
        step = runner.step
        self.runner, self.n_blocks, self.max_waiting = runner, n_blocks, max_waiting
        self.context = min(step.max_blocks, n_blocks) * BLOCK
        self.blocks = Blocks(n_blocks, BLOCK, reuse=not runner.recurrent)
        whole = not runner.config.causal
        self.scheduler = Scheduler(
            self.blocks, step.max_tokens, step.max_seqs, MIXED, step.max_outputs, whole
        )
        self.n_steps = self.n_prompt = self.n_generated = 0  # what was computed so far
        self._orders: deque[Sequence] = deque()
        self._cancels: deque[Sequence] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False

    # -- orders, from any thread

    def submit(self, seq: Sequence) -> None:
        """Queue a sequence; refused here if it can never run or if too many wait."""
        self._check(seq)
        with self._wake:
            if self._failure or self._closed:
                raise self._failure or Overloaded("the engine was closed; open the model again")
            n = len(self._orders) + len(self.scheduler.waiting)
            if n >= self.max_waiting:
                raise Overloaded(f"{n} requests are waiting, the most this engine keeps; try later")
            self._orders.append(seq)
            if self.runner.recurrent:  # a state cannot be forked: every sample for itself
                self._orders.extend(seq.siblings)
                seq.siblings = []
            self._wake.notify()

    def cancel(self, seq: Sequence) -> None:
        """Stop a sequence before the next step; its blocks are free then. Safe to call twice."""
        with self._wake:
            self._cancels.append(seq)
            self._wake.notify()

    def start(self) -> None:
        """Let a thread of its own take the steps."""
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step; whoever is still running is told. Safe to call twice."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        self._end_all(Overloaded("the engine was closed while the request ran"))
        self.runner.close()

    @property
    def n_running(self) -> int:
        """Sequences that have a place in the batch."""
        return len(self.scheduler.running)

    @property
    def n_waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self.scheduler.waiting) + len(self._orders)

    # -- steps, on one thread

    def step(self) -> bool:
        """One forward pass for whoever needs one; False when there was nothing to do."""
        self._take_orders()
        batch = self.scheduler.schedule(self._guess)
        for chunk in batch:
            if chunk.reaches_end and chunk.seq.rules:
                chunk.seq.rules.start_mask()
        for part in _by_result(batch):
            self._load(part)
            rows = self._run(part)
            self._settle(part, rows)
        self.n_steps += bool(batch)
        return bool(batch)

    def _live(self) -> None:
        try:
            while not self._closed:
                if not self.step():
                    with self._wake:
                        self._wake.wait_for(lambda: self._closed or self._orders or self._cancels)
        except FAILURES as failure:
            self._failure = failure
        finally:
            failed = RuntimeError("the engine stopped")
            self._failure = self._failure or (None if self._closed else failed)
            if self._failure:
                self._end_all(self._failure)

    def _take_orders(self) -> None:
        while self._orders:
            self.scheduler.waiting.append(self._orders.popleft())
        while self._cancels:
            seq = self._cancels.popleft()
            if seq.finish is None:
                self._end(seq, "cancelled", ())

    def _check(self, seq: Sequence) -> None:
        n = len(seq.ids)
        if n == 0:
            raise BadRequest("the prompt has no tokens; write something", "prompt")
        vocab = self.runner.config.n_vocab
        wrong = next((i for i in seq.ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise BadRequest(f"token {wrong} is outside the vocabulary of {vocab}", "prompt")
        if n + (not seq.pooling) > self.context:
            raise ContextOverflow(n, self.context)
        if self.scheduler.whole and n > self.scheduler.max_tokens:
            raise ContextOverflow(n, self.scheduler.max_tokens)
        if 1 + len(seq.siblings) > self.scheduler.max_seqs:
            n_most = self.scheduler.max_seqs
            raise BadRequest(f"{1 + len(seq.siblings)} samples, at most {n_most} at once", "n")
        known = self.runner.adapted.adapters if self.runner.adapted else {}
        unknown = sorted(set(seq.adapters) - set(known))
        if unknown:
            what = f"open are {', '.join(known)}" if known else "the model was opened without any"
            raise BadRequest(f"no adapter is called {unknown[0]!r}: {what}", "adapters")
        writes = self.runner.has_logits and self.runner.config.causal
        if not seq.pooling and not writes:
            raise BadRequest("this model makes embeddings and no text; use `embed`", "model")

    def _guess(self, seq: Sequence) -> list[int]:
        if seq.lookup is None or self.runner.recurrent:  # a state cannot be taken back
            return []
        room = min(seq.max_new - seq.n_new, self.context - len(seq.ids)) - 1
        most = self.runner.step.max_outputs - self.scheduler.max_seqs
        return seq.lookup.guess(seq.ids, min(room, most))

    def _load(self, batch: list[Chunk]) -> None:
        """Write the batch into the step header, after copying what is about to diverge."""
        for source, target in self.blocks.copies:
            self.runner.copy_block(source, target)
        self.blocks.copies.clear()
        step = self.runner.step
        step.clear()
        for chunk in batch:
            seq = chunk.seq
            wanted = "last" if chunk.reaches_end else "none"
            if chunk.guesses or seq.pooling not in ("", "last"):
                wanted = "all"
            first = step.n_tokens
            step.add(chunk.tokens + chunk.guesses, seq.n_done, seq.blocks, wanted)
            if self.runner.adapted:
                self.runner.adapted.set_scales(first, step.n_tokens, seq.adapters)

    def _run(self, batch: list[Chunk]) -> Floats:
        """Rows of logits, or of hidden states for embeddings, in the order they were asked for."""
        started = perf_counter()
        for chunk in batch:
            chunk.seq.admitted = chunk.seq.admitted or started
        if batch[0].seq.pooling not in ("", "logits"):
            self.runner.run(logits=False)
            hidden: Floats = self.runner.hidden()
            return hidden
        logits: Floats = self.runner.run()
        return logits

    def _settle(self, batch: list[Chunk], rows: Floats) -> None:
        """Enter what was computed and tell the owners what came of it."""
        start = 0
        for chunk in batch:
            seq = chunk.seq
            whole = seq.pooling not in ("", "last")
            n = len(chunk.tokens) if whole else chunk.reaches_end * (1 + len(chunk.guesses))
            mine, start = rows[start : start + n], start + n
            at_end, first, at_start = chunk.reaches_end, seq.n_new == 0, seq.n_done == 0
            self.blocks.wrote(seq, len(chunk.tokens))
            self.n_prompt += first * len(chunk.tokens)
            if seq.pooling:
                self._pool(seq, mine, at_start, at_end)
            elif at_end:
                self._continue(seq, mine, chunk.guesses, first)

    def _continue(self, seq: Sequence, rows: Floats, guesses: list[int], first: bool) -> None:
        """Choose what follows; with the prompt just done, for its siblings too."""
        family = [seq]
        if first:
            seq.cached = seq.n_cached
            self.scheduler.fork(seq)
            family += [s for s in seq.siblings if s.finish is None]
        for member in family:
            if first:
                member.cached = seq.n_cached if member is seq else seq.n_prompt
                member.first_token = perf_counter()
            chosen, finish = self._choose(member, rows, guesses)
            member.last_token = perf_counter()
            if len(chosen) > 1:
                self.blocks.wrote(member, len(chosen) - 1)  # guesses that were right
            self.n_generated += len(chosen)
            if member.lookup:
                member.lookup.learn(len(guesses), len(chosen) - 1)
            if finish:
                self._end(member, finish, tuple(chosen))
            else:
                member.sink(Output(tuple(chosen)))

    def _choose(
        self, seq: Sequence, rows: Floats, guesses: list[int]
    ) -> tuple[list[Chosen], Finish | None]:
        """Tokens for as many rows as the guesses hold; they are appended to the sequence."""
        chosen: list[Chosen] = []
        for row, guess in zip(rows, [*guesses, None]):
            mask = seq.rules.mask() if seq.rules else None
            if mask is not None and not mask.any():
                return chosen, "stop"
            chosen.append(seq.sampler.choose(row, seq.ids, mask))
            token = chosen[-1].id
            seq.ids.append(token)
            if seq.rules:
                seq.rules.accept(token)
            if token in seq.stop_ids or (seq.rules and seq.rules.is_complete()):
                return chosen, "stop"
            if seq.n_new >= seq.max_new or len(seq.ids) >= self.context:
                return chosen, "length"
            if token != guess:
                break
        return chosen, None

    def _pool(self, seq: Sequence, rows: Floats, at_start: bool, at_end: bool) -> None:
        """Gather the embedding from the hidden states `rows` (n, dim) of one chunk."""
        if seq.pooling == "logits":
            seq.rows.append(rows.copy())
            seq.pooled = np.concatenate(seq.rows) if at_end else None
        elif seq.pooling == "mean":
            total = rows.sum(axis=0, dtype=np.float64)
            seq.pooled = total if seq.pooled is None else seq.pooled + total
        elif seq.pooling == "last":
            seq.pooled = rows[-1].copy() if len(rows) else None
        elif at_start:
            seq.pooled = rows[0].copy()
        if at_end and seq.pooled is not None:
            if seq.pooling == "mean":
                seq.pooled = (seq.pooled / len(seq.ids)).astype(np.float32)
            if seq.pooling != "logits":
                seq.pooled = self.runner.finished(seq.pooled)
            self._end(seq, "stop", ())

    def _end(self, seq: Sequence, finish: Finish, tokens: tuple[Chosen, ...]) -> None:
        """The sequence is over, and its siblings with it where they never started."""
        orphans = [s for s in seq.siblings if seq.n_new == 0 and s.finish is None]
        for member in (seq, *orphans):
            self.scheduler.end(member)
            member.finish, member.ended = finish, perf_counter()
            member.sink(Output(tokens, finish, None, member.pooled))

    def _end_all(self, error: BaseException) -> None:
        """Nobody must wait for a thread that is gone."""
        left = [*self.scheduler.running, *self.scheduler.waiting, *self._orders]
        self._orders.clear()
        for seq in left:
            family: Iterable[Sequence] = (seq,) if seq.n_new else (seq, *seq.siblings)
            for member in family:
                if member.finish is None:
                    self.scheduler.end(member)
                    member.finish, member.ended = "cancelled", perf_counter()
                    with suppress(*FAILURES):  # a broken owner must not keep the others waiting
                        member.sink(Output(error=error))


def _by_result(batch: list[Chunk]) -> list[list[Chunk]]:
    """Passes of one step: one for all who generate, one for embeddings, one for each of logits."""
    generating = [c for c in batch if not c.seq.pooling]
    embedding = [c for c in batch if c.seq.pooling not in ("", "logits")]
    logits = [[c] for c in batch if c.seq.pooling == "logits"]
    return [part for part in (generating, embedding, *logits) if part]
