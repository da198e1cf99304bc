"""One opened model file: text in, text out. Tokenizer and engine meet here.

`open_model` opens a file once per process: whoever asks again for the same file gets the same
engine, so that agents of one model share its cache and its batch. `Model` is also what
`llamoot.load` returns; its methods wait for their result, `agents/local.py` has those that do not.
"""

import os
import queue
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence as Many
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from llamoot import env
from llamoot.agents.answer import Answer
from llamoot.agents.types import ChatRequest, ChatToken, Format, Sampling
from llamoot.engine.budget import Settings, decide, free_memory
from llamoot.engine.engine import Engine
from llamoot.engine.grammar import Grammar, Vocabulary
from llamoot.engine.sampler import Params
from llamoot.engine.sequence import Output, Pooling, Sequence
from llamoot.errors import BadRequest, Overloaded
from llamoot.gguf.reader import open_gguf
from llamoot.model.config import read_config
from llamoot.model.runner import open_runner
from llamoot.text.stream import TextStream
from llamoot.text.syntax import PLAIN, Syntax
from llamoot.text.tokenizer import Tokenizer, load_tokenizer

BREAKERS = b'\n:"*'  # no repetition is counted across these (DRY), as in llama.cpp
FINAL = "<|channel|>final<|message|>"  # where harmony's answer begins
# Where neither the request nor the file says anything: as llama.cpp does it.
DEFAULTS: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
# Keys under general.sampling of a file, and what they are called here.
SUGGESTED = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
}
AS_FITS = Settings()
SAMPLING = set(Sampling.__struct_fields__) & set(Params.__dataclass_fields__) - {"seed", "logprobs"}
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "last": "last", "rank": "rank"}
Floats = npt.NDArray[np.float32]


class Model:
    """A model file that is open. Safe to use from several threads."""

    def __init__(self, path: str | os.PathLike[str], settings: Settings = AS_FITS) -> None:
        """Open `path`; ModelFileError if it is broken, Overloaded if it does not fit memory."""
        started = time.perf_counter()
        gguf = open_gguf(path)
        try:
            exact = (settings.executor or env.get("LLAMOOT_KERNELS")) == "twins"
            budget = decide(gguf, read_config(gguf), settings, exact, free_memory())
        finally:
            gguf.close()
        self.path, self.settings, self.budget = Path(path), settings, budget
        runner = open_runner(
            path,
            context=budget.context,
            max_tokens=settings.max_tokens,
            max_seqs=settings.max_seqs,
            n_blocks=budget.n_blocks,
            cache_type=settings.cache_type,
            threads=settings.threads,
            executor=settings.executor,
            adapters=dict(settings.adapters),
        )
        self.metadata, self.config = runner.gguf.metadata, runner.config
        self.name = str(self.metadata.maybe("general.name", "") or self.path.stem)
        self.tokenizer: Tokenizer = load_tokenizer(self.metadata, path)
        self.engine = Engine(runner, budget.n_blocks)
        self.engine.start()
        self.load_s = time.perf_counter() - started

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.engine.context

    @property
    def n_bytes(self) -> int:
        """Memory of weights and cache."""
        return self.budget.weights + self.budget.cache

    # -- answers

    def ask(
        self,
        request: ChatRequest,
        ids: list[int],
        *,
        syntax: Syntax = PLAIN,
        reasoning: bool = False,
        may_reason: bool = False,
        load_s: float = 0.0,
    ) -> Answer:
        """An answer to the prompt `ids`, not begun yet; the request's messages play no part.

        `syntax` is how the model marks reasoning and calls. `reasoning`: the prompt opened a
        region of it; `may_reason`: the answer may. A format applies to what comes after.
        """
        sampling, last = request.sampling, ids[-1] if ids else -1
        seq = Sequence(
            ids,
            self.params(sampling),
            max_new=self.context_length if sampling.max_tokens is None else sampling.max_tokens,
            stop_ids=self.tokenizer.eog,
            rules=self._rules(request.format, syntax, reasoning, may_reason),
            drafts=tuple(self.tokenizer.encode(d, add_special=False) for d in request.drafts),
            adapters=request.adapters,
        )
        stream = TextStream(
            self.tokenizer,
            syntax=syntax,
            tools=[msgspec.to_builtins(tool) for tool in request.tools],
            stop=sampling.stop,
            reasoning=reasoning,
            # The engine refuses ids outside the vocabulary; this only must not trip over them.
            after_special=0 <= last < self.tokenizer.size and self.tokenizer.is_control(last),
        )
        return Answer(seq, stream, self.tokenizer, load_s)

    def stream(self, answer: Answer) -> Iterator[ChatToken]:
        """The answer in pieces; closing the iterator early stops the engine's work on it."""
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        answer.seq.sink = outputs.put
        self.engine.submit(answer.seq)
        try:
            while not answer.is_done:
                piece = answer.take(outputs.get())
                if piece is not None:
                    yield piece
        finally:
            self.engine.cancel(answer.seq)

    def generate(self, prompt: str | list[int], max_tokens: int = 256, **sampling: Any) -> str:
        """The continuation of `prompt`; keywords are the fields of `agents.types.Sampling`."""
        how = Sampling(max_tokens=max_tokens, **sampling)
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        answer = self.ask(ChatRequest(messages=(), sampling=how), ids)
        return "".join(piece.text for piece in self.stream(answer))

    def params(self, sampling: Sampling) -> Params:
        """What is not asked for is as the file says, or as llama.cpp does it."""
        given = {name: value for name in SAMPLING if (value := getattr(sampling, name)) is not None}
        seed = int.from_bytes(os.urandom(7), "little") if sampling.seed is None else sampling.seed
        logprobs = -1 if sampling.logprobs is None else sampling.logprobs
        breakers = self._breakers if sampling.dry_multiplier else frozenset[int]()
        return Params(
            **{**self._defaults, **given}, seed=seed, logprobs=logprobs, dry_breakers=breakers
        )

    # -- tokens, embeddings, logits

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, ids: Many[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self.tokenizer.decode(ids)

    def embed(self, texts: Many[str] | Many[list[int]], *, normalize: bool = True) -> list[Floats]:
        """One vector (dim,) for each text, of length 1 if `normalize`."""
        return [self.vector(rows, normalize) for rows in self._pooled(texts, self.pooling)]

    def logits(self, ids: Many[int]) -> Floats:
        """Logits (n, vocab) of every position of one sequence."""
        return self._pooled([list(ids)], "logits")[0]

    @property
    def pooling(self) -> Pooling:
        """How token vectors become one; models that do not say are averaged."""
        return POOLINGS.get(self.config.pooling, "mean")

    def pooled(self, text: str | list[int], pooling: Pooling) -> Sequence:
        """A sequence, not begun yet, that ends with an embedding or with logits."""
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        return Sequence(ids, pooling=pooling)

    def close(self) -> None:
        """Stop the engine and give its memory back; safe to call twice."""
        self.engine.close()

    def _pooled(self, texts: Many[str] | Many[list[int]], pooling: Pooling) -> list[Floats]:
        results: list[queue.SimpleQueue[Output]] = []
        for text in texts:
            seq = self.pooled(text, pooling)
            results.append(queue.SimpleQueue())
            seq.sink = results[-1].put
            self.engine.submit(seq)
        rows = []
        for result in results:
            output = result.get()
            if output.error is not None or output.pooled is None:
                raise output.error or Overloaded("the engine was closed while the request ran")
            rows.append(output.pooled)
        return rows

    @staticmethod
    def vector(row: Floats, normalize: bool = True) -> Floats:
        """An embedding as it is given out: of length 1 if `normalize`."""
        length = float(np.linalg.norm(row)) if normalize else 1.0
        return row / np.float32(length or 1.0)

    def _rules(
        self, format: Format | None, syntax: Syntax, reasoning: bool, may_reason: bool
    ) -> Grammar | None:
        if format is None:
            return None
        open_, close = syntax.think[0] if syntax.think else ("", "")
        after, unless = close if reasoning else "", None
        if "harmony" in syntax.calls.values():
            after = FINAL
        elif may_reason and not reasoning and open_:
            unless = self.tokenizer.find(open_)
            after = close if unless is not None else ""
        n, value = self.config.n_vocab, format.value
        return Grammar(self._vocabulary, format.kind, value, n, after.encode(), unless)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        special = [i for i in range(self.tokenizer.size) if self.tokenizer.is_control(i)]
        stops = sorted(self.tokenizer.eog) or [self.tokenizer.eos or 0]
        return Vocabulary(self.tokenizer.pieces, special, stops)

    @cached_property
    def _breakers(self) -> frozenset[int]:
        pieces = enumerate(self.tokenizer.pieces)
        return frozenset(i for i, piece in pieces if any(c in piece for c in BREAKERS))

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """The file's own sampling, over llama.cpp's."""
        read = {
            name: self.metadata.maybe("general.sampling." + key, None)
            for key, name in SUGGESTED.items()
        }
        return {**DEFAULTS, **{name: value for name, value in read.items() if value is not None}}


def load(path: str | os.PathLike[str], **settings: Any) -> Model:
    """Open a model for this program alone; keywords are the fields of `Settings`."""
    return Model(path, Settings(**settings))


class _Slot:
    """A model file that somebody has open, and how many have."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.model: Model | None = None


_slots: dict[str, _Slot] = {}
_slots_lock = threading.Lock()


def open_model(path: str | os.PathLike[str], settings: Settings = AS_FITS) -> Model:
    """The model in `path`, opened now or by somebody before; give it back with `close_model`.

    Whoever opens it first decides how; BadRequest for one who needs more context than that.
    """
    with _slots_lock:
        slot = _slots.setdefault(os.path.realpath(path), _Slot())
        slot.users += 1
    try:
        with slot.lock:  # whoever comes second waits for the first
            if slot.model is None:
                slot.model = Model(path, settings)
            n = slot.model.context_length
            if settings.context > n:
                message = f"{path} is open with a context of {n} tokens, not {settings.context}"
                raise BadRequest(message + "; close it first", "context")
            return slot.model
    except BaseException:
        _leave(slot)
        raise


def close_model(model: Model) -> None:
    """One user less; the last one frees the model's memory."""
    with _slots_lock:
        slots = [slot for slot in _slots.values() if slot.model is model]
    for slot in slots:
        _leave(slot)


def _leave(slot: _Slot) -> None:
    with _slots_lock:
        slot.users -= 1
        if slot.users:
            return
        for key in [k for k, s in _slots.items() if s is slot]:
            del _slots[key]
    if slot.model is not None:
        slot.model.close()
