"""How alike texts are, 0 to 1. The smallest pair counts: one who disagrees is not averaged away."""

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:['’]t)?")
_DENY = frozenset(["not", "no", "never", "none", "neither", "nor", "without", "cannot"])


def smallest_cosine(vectors: Sequence[Sequence[float]]) -> float:
    """Least cosine of any two vectors; 1 for fewer than two, 0 where a vector is zero."""
    norms = [math.sqrt(math.fsum(x * x for x in v)) for v in vectors]
    least = 1.0
    for i, one in enumerate(vectors):
        for j in range(i):
            scale = norms[i] * norms[j]
            dot = math.fsum(a * b for a, b in zip(one, vectors[j])) if scale else 0.0
            least = min(least, dot / scale if scale else 0.0)
    return least


def smallest_overlap(texts: Sequence[str]) -> float:
    """Least cosine of word counts of any two texts; where one denies and one does not, half."""
    bags = [Counter(_WORD.findall(text.casefold())) for text in texts]
    least = 1.0
    for i, one in enumerate(bags):
        for j in range(i):
            other = bags[j]
            scale = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
            value = sum(n * other[word] for word, n in one.items()) / scale if scale else 0.0
            least = min(least, value * (1.0 if _denials(one) == _denials(other) else 0.5))
    return min(least, 1.0)


def _denials(bag: Counter[str]) -> int:
    return sum(n for word, n in bag.items() if word in _DENY or word.endswith(("n't", "n’t"))) % 2
