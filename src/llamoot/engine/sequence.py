"""One sequence: what is asked for, what is known so far, and what it tells its owner.

Times are seconds of `time.perf_counter`.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, Protocol

from llamoot.engine.sampler import Chosen, Floats, Mask, Params, Sampler
from llamoot.engine.speculate import Lookup

Finish = Literal["stop", "length", "cancelled"]

Pooling = Literal["", "mean", "cls", "last", "rank", "logits"]

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Output:
    """News for the owner of a sequence. After `finish` or `error` comes nothing."""

    tokens: tuple[Chosen, ...] = ()
    finish: Finish | None = None
    error: BaseException | None = None
    pooled: Floats | None = None  # (dim,) embedding, not normalised; or logits (n, vocab)


class Rules(Protocol):
    """A constraint on the output; see grammar.py."""

    def start_mask(self) -> None:
        """Begin to work out what may come next, on another thread."""

    def mask(self) -> Mask | None:
        """Which tokens may come next; None if all."""

    def accept(self, token: int) -> None:
        """This token came."""

    def is_complete(self) -> bool:
        """Whether nothing can follow."""


Sink = Callable[[Output], None]


@dataclass(eq=False, slots=True)
class Sequence:
    """Everything about one sequence. Counts of tokens include the prompt unless they say not."""

    ids: list[int]
    params: Params = field(default_factory=Params)
    max_new: int = 1 << 30
    stop_ids: frozenset[int] = frozenset()
    sink: Sink = lambda output: None
    rules: Rules | None = None
    drafts: tuple[list[int], ...] = ()  # texts the answer probably repeats
    adapters: dict[str, float] = field(default_factory=dict)
    pooling: Pooling = ""  # not empty: wants hidden states, or logits, of its prompt and no text
    siblings: list["Sequence"] = field(default_factory=list)  # further samples of the same prompt

    id: int = field(default_factory=lambda: next(_numbers))
    space: bytes = b""
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    n_done: int = 0
    n_cached: int = 0
    n_prompt: int = 0
    cached: int = 0  # prompt tokens that were not computed
    cancelled: bool = False
    finish: Finish | None = None
    pooled: Floats | None = None  # the embedding, or its sum so far
    rows: list[Floats] = field(default_factory=list)  # logits so far
    sampler: Sampler = field(init=False)
    lookup: Lookup | None = None
    submitted: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    ended: float = 0.0

    def __post_init__(self) -> None:
        self.n_prompt = len(self.ids)
        self.sampler = Sampler(self.params)
        if self.adapters:
            named = repr(sorted(self.adapters.items())).encode()
            self.space = blake2b(named, digest_size=16).digest()
        if self.pooling:
            self.space = self.id.to_bytes(8, "little")  # every token's own row is needed
        if self.drafts:
            self.lookup = Lookup((*self.drafts, self.ids))

    @property
    def n_new(self) -> int:
        """Tokens generated so far."""
        return len(self.ids) - self.n_prompt

    @property
    def n_left(self) -> int:
        """Tokens that are known and not in the cache."""
        return len(self.ids) - self.n_done

    @property
    def is_decoding(self) -> bool:
        """Whether one token per step is all it needs."""
        return self.n_new > 0 and self.n_left == 1
