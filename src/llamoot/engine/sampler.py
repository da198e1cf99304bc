"""From logits to a token: llama.cpp's chain, in its order and meaning, on numpy vectors.

bias and mask · penalties · DRY · top-k · typical · top-p · min-p · XTC · temperature · draw
(or, with mirostat 2: bias and mask · temperature · mirostat)

A vocabulary of 150,000 must not cost milliseconds, so nothing is sorted as a whole where that can
be avoided: the k most likely are found through the maxima of groups, a draw from everything goes
through sums of groups. Draws are numbered: the n-th draw of a seed is the same whatever else runs.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ids = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

GROUP = 256
DRAW, XTC = range(2)  # streams of random numbers
MAX_LOG = 88.7228391  # of the largest float32, as llama.cpp has it


@dataclass(frozen=True, slots=True)
class Params:
    """How the next token is chosen; the defaults choose from the plain distribution."""

    temperature: float = 1.0  # 0: the most likely one
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # tokens the penalties look back on; -1: all
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: frozenset[int] = frozenset()  # tokens no repetition is counted across
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat_tau: float = 0.0  # 0: off
    mirostat_eta: float = 0.1
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int = -1  # -1: none; n: the chosen token and the n most likely


@dataclass(frozen=True, slots=True)
class Chosen:
    """One generated token; log-probabilities are natural and of the raw distribution."""

    id: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Candidates:
    """What is left to choose from; `ids` None stands for the whole vocabulary, unsorted."""

    logits: Floats
    ids: Ids | None = None
    is_sorted: bool = False

    def keep(self, rows: Ids | slice, is_sorted: bool) -> "Candidates":
        """Only some of them, in that order."""
        ids = self.ids
        if ids is None:
            ids = rows if isinstance(rows, np.ndarray) else np.arange(len(self.logits))[rows]
        else:
            ids = ids[rows]
        return Candidates(self.logits[rows], ids, is_sorted)

    def sorted(self) -> "Candidates":
        """The same, most likely first, ties in the order of ids."""
        if self.is_sorted:
            return self
        return self.keep(descending(self.logits), True)


def uniform(seed: int, number: int, stream: int) -> float:
    """The `number`-th random number of a stream of `seed`, in [0, 1): splitmix64 of the three."""
    mask = (1 << 64) - 1
    z = seed & mask
    for salt in (number, stream):
        z = (z + (salt + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
    return (z >> 11) / (1 << 53)


def descending(logits: Floats) -> Ids:
    """Indices from the largest to the smallest; ties in the order of indices where they are few."""
    return np.argsort(-logits, kind="stable" if len(logits) < 4096 else "quicksort")


def top(logits: Floats, k: int) -> Ids:
    """Indices of the k largest, largest first, ties in the order of indices."""
    n = len(logits)
    groups = n // GROUP
    if k >= n:
        return descending(logits)
    if k * 4 < GROUP and groups >= 4:
        # k of the group maxima reach the bound, so at least k of all do
        maxima = logits[: groups * GROUP].reshape(groups, GROUP).max(axis=0)
        bound = np.partition(maxima, GROUP - k)[GROUP - k]
    else:
        bound = np.partition(logits, n - k)[n - k]
    rows = np.flatnonzero(logits >= bound)
    return rows[descending(logits[rows])[:k]]


def softmax(logits: Floats) -> Floats:
    """Probabilities, float64 for the few and float32 for the many."""
    exact = logits.astype(np.float64) if len(logits) < 4096 else logits
    p: Floats = np.exp(exact - exact.max())
    p /= p.sum()  # numpy adds in pairs: no precision is lost
    return p


def logprobs(logits: Floats, token: int, n: int) -> Chosen:
    """The token with its log-probability, and the `n` most likely ones with theirs."""
    peak = float(logits.max())
    total = peak + math.log(float(np.exp(logits - np.float32(peak)).sum()))
    best = tuple((int(i), float(logits[i]) - total) for i in top(logits, n)) if n else ()
    return Chosen(token, float(logits[token]) - total, best)


class Sampler:
    """The chain of one sequence; mirostat is all the state there is."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.mu = 2 * params.mirostat_tau
        p = params
        follows_order = p.typical_p >= 1 and p.xtc_probability <= 0 and not p.mirostat_tau
        self._is_greedy = p.temperature <= 0 and follows_order

    def choose(self, logits: Floats, ids: list[int], mask: Mask | None) -> Chosen:
        """The next token after `ids`; `logits` (vocab,) are the same before and after."""
        p = self.params
        changes = self._changes(logits, ids)
        rows = np.fromiter(changes.keys(), np.intp, len(changes))
        before = logits[rows]  # a copy of the whole vocabulary would cost more than the choice
        logits[rows] = np.fromiter(changes.values(), logits.dtype, len(changes))
        left = Candidates(logits)
        if mask is not None:
            left = left.keep(np.flatnonzero(mask), False)
        row = self._choose(left, len(ids))
        token = row if left.ids is None else int(left.ids[row])
        logits[rows] = before
        return Chosen(token) if p.logprobs < 0 else logprobs(logits, token, p.logprobs)

    def _choose(self, left: Candidates, number: int) -> int:
        """Row of `left` that is chosen."""
        p = self.params
        if self._is_greedy:
            return int(left.logits.argmax())
        if p.mirostat_tau:
            return self._mirostat(left.logits, number)
        left = Candidates(left.logits)
        for cut in (top_k, typical, top_p, min_p):
            left = cut(left, p)
        if p.xtc_probability > 0 and uniform(p.seed, number, XTC) <= p.xtc_probability:
            left = xtc(left, p)
        if p.temperature <= 0:
            row = int(left.logits.argmax())
        else:
            scale = np.float32(1 / p.temperature)
            row = draw(left.logits * scale, uniform(p.seed, number, DRAW))
        return row if left.ids is None else int(left.ids[row])

    def _changes(self, logits: Floats, ids: list[int]) -> dict[int, float]:
        """Logits that bias, penalties and DRY change, with their new values."""
        p = self.params
        new = {
            token: float(logits[token]) + bias
            for token, bias in p.logit_bias.items()
            if 0 <= token < len(logits)
        }
        if p.mirostat_tau:
            return new
        for token, n in counts(ids, p).items():
            x = new.get(token, float(logits[token]))
            x = x * p.repeat_penalty if x <= 0 else x / p.repeat_penalty
            new[token] = x - n * p.frequency_penalty - p.presence_penalty
        for token, penalty in (dry(ids, p) if p.dry_multiplier else {}).items():
            new[token] = new.get(token, float(logits[token])) - penalty
        return new

    def _mirostat(self, logits: Floats, number: int) -> int:
        """Mirostat 2: leave out what surprises more than mu, and steer mu towards tau."""
        p = self.params
        scaled = logits / np.float32(max(p.temperature, 1e-3))
        likely = np.flatnonzero(softmax(scaled) >= 2.0**-self.mu)
        rows = likely if len(likely) else np.array([scaled.argmax()])
        row = draw(scaled[rows], uniform(p.seed, number, DRAW))
        chance = float(softmax(scaled[rows])[row])
        self.mu -= p.mirostat_eta * (-math.log2(max(chance, 1e-45)) - p.mirostat_tau)
        return int(rows[row])


def counts(ids: list[int], p: Params) -> Counter[int]:
    """How often each token occurs in the window that the penalties look back on."""
    off = p.repeat_penalty == 1 and not p.frequency_penalty and not p.presence_penalty
    if off or p.repeat_last_n == 0:
        return Counter()
    return Counter(ids if p.repeat_last_n < 0 else ids[-p.repeat_last_n :])


def dry(ids: list[int], p: Params) -> dict[int, float]:
    """Tokens that would continue a repetition, with what is taken from their logits.

    A token that followed an earlier occurrence of the last n tokens is punished by
    multiplier * base ** (n - allowed_length); no repetition reaches back over a breaker.
    """
    n = len(ids)
    limit = next((i for i, t in enumerate(reversed(ids)) if t in p.dry_breakers), n)
    if n <= p.dry_allowed_length or limit < p.dry_allowed_length or p.dry_base < 1:
        return {}
    longest: dict[int, int] = {}
    last = ids[-1]
    for end in range(n - 2, -1, -1):
        if ids[end] != last:
            continue
        length = 1
        while length < limit and length <= end and ids[end - length] == ids[n - 1 - length]:
            length += 1
        follower = ids[end + 1]
        length = min(length, limit)
        if length >= max(p.dry_allowed_length, longest.get(follower, 0)):
            longest[follower] = length
    highest = int(MAX_LOG / math.log(p.dry_base)) if p.dry_base > 1.000001 else 0
    return {
        token: p.dry_multiplier
        * p.dry_base ** min(length - p.dry_allowed_length, highest or length)
        for token, length in longest.items()
        if token not in p.dry_breakers
    }


def top_k(left: Candidates, p: Params) -> Candidates:
    """The k most likely."""
    if p.top_k <= 0:
        return left
    return left.keep(top(left.logits, min(p.top_k, len(left.logits))), True)


def typical(left: Candidates, p: Params) -> Candidates:
    """Those whose surprise is nearest to the expected one, until their sum exceeds `typical_p`."""
    if p.typical_p >= 1:
        return left
    chances = softmax(left.logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(chances)
        entropy = np.nansum(chances * surprise)
        nearness = -np.abs(surprise - entropy)
    return left.keep(_first_reaching(nearness, chances, p.typical_p, "right"), False)


def top_p(left: Candidates, p: Params) -> Candidates:
    """The most likely ones that together reach `top_p`."""
    if p.top_p >= 1:
        return left
    chances = softmax(left.logits)
    return left.keep(_first_reaching(left.logits, chances, p.top_p, "left"), True)


def _first_reaching(
    keys: Floats, chances: Floats, mass: float, side: Literal["left", "right"]
) -> Ids:
    """Rows in descending order of `keys`, as few as sum up to `mass` (right: to more than it)."""
    k = 48  # most often enough, and found without sorting everything
    while True:
        rows = top(keys, k)
        sums = np.cumsum(chances[rows], dtype=np.float64)
        n = int(np.searchsorted(sums, mass, side=side)) + 1
        if n <= len(rows) or k >= len(keys):
            return rows[:n]
        k *= 16


def min_p(left: Candidates, p: Params) -> Candidates:
    """Those at least `min_p` times as likely as the most likely one."""
    if p.min_p <= 0:
        return left
    bound = left.logits.max() + math.log(p.min_p)
    return left.keep(np.flatnonzero(left.logits >= bound), left.is_sorted)


def xtc(left: Candidates, p: Params) -> Candidates:
    """Without the top choices, as long as one with at least `xtc_threshold` remains."""
    if p.xtc_threshold > 0.5 or len(left.logits) < 2:
        return left
    left = left.sorted()
    n = int((softmax(left.logits) >= p.xtc_threshold).sum())
    return left.keep(slice(n - 1, None), True) if n > 1 else left


def draw(logits: Floats, u: float) -> int:
    """An index with the probability of its logit; `u` in [0, 1) decides."""
    weights = np.exp(logits - logits.max())
    n = len(weights)
    if n <= 4 * GROUP:
        return _walk(weights, u)
    sums = np.add.reduceat(weights, np.arange(0, n, GROUP)).astype(np.float64)
    ends = np.cumsum(sums)
    target = u * ends[-1]
    group = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
    inside = weights[group * GROUP : (group + 1) * GROUP]
    share = (target - (ends[group] - sums[group])) / sums[group]
    return group * GROUP + _walk(inside, min(max(share, 0.0), 1.0))


def _walk(weights: Floats, u: float) -> int:
    ends = np.cumsum(weights, dtype=np.float64)
    row = int(np.searchsorted(ends, u * ends[-1], side="right"))
    return min(row, int(np.flatnonzero(weights)[-1]))  # rounding must not choose the impossible
