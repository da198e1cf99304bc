"""Whether a council helps, said with numbers: paired tests, intervals, flips, tokens spent.

An unreadable answer is wrong. Methods are compared on the same questions, so every test is
paired: McNemar's exact test for "is it better", and the paired difference with its interval.
Sources: McNemar 1947; Wilson 1927 for a share's interval.
"""

import math
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

Z95 = 1.959963984540054
LEVEL = 0.05


class Outcome(Struct, frozen=True):
    """One method's answer to one question. `tokens` are those it generated in all its calls."""

    right: bool
    readable: bool
    tokens: int
    seconds: float


class Row(Struct, frozen=True):
    """One method over all questions, and against the baseline it is compared with."""

    method: str
    right: int
    asked: int
    low: float
    high: float
    unreadable: int
    tokens: float  # generated per question
    seconds: float  # per question
    against: str = ""
    gained: int = 0  # wrong there, right here
    lost: int = 0  # right there, wrong here
    p: float = 1.0
    difference: float = 0.0
    difference_low: float = 0.0
    difference_high: float = 0.0
    finding: str = ""


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not n:
        return 0.0, 1.0
    share, squared = right / n, Z95 * Z95 / n
    middle = (share + squared / 2) / (1 + squared)
    half = Z95 * math.sqrt(share * (1 - share) / n + squared / (4 * n)) / (1 + squared)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that gains and losses are equally likely."""
    n = gained + lost
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def paired(gained: int, lost: int, n: int) -> tuple[float, float, float]:
    """(difference of the shares, its 95 % interval), from the pairs that disagree."""
    if not n:
        return 0.0, -1.0, 1.0
    mean = (gained - lost) / n
    spread = math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0.0)) / n
    return mean, mean - Z95 * spread, mean + Z95 * spread


def finding(p: float, difference: float) -> str:
    """The sentence for a comparison; silence is not evidence."""
    if p >= LEVEL:
        return "no evidence of benefit"
    return "better" if difference > 0 else "worse"


def row(
    method: str,
    outcomes: Sequence[Outcome],
    against: str = "",
    baseline: Sequence[Outcome] | None = None,
) -> Row:
    """Figures of one method, compared with a baseline on the same questions where there is one."""
    n = len(outcomes)
    right = sum(o.right for o in outcomes)
    low, high = wilson(right, n)
    more: dict[str, Any] = {}
    if baseline is not None:
        gained = sum(o.right and not b.right for o, b in zip(outcomes, baseline, strict=True))
        lost = sum(b.right and not o.right for o, b in zip(outcomes, baseline, strict=True))
        p = mcnemar(gained, lost)
        difference, least, most = paired(gained, lost, n)
        more = {
            "against": against,
            "gained": gained,
            "lost": lost,
            "p": p,
            "difference": difference,
            "difference_low": least,
            "difference_high": most,
            "finding": finding(p, difference),
        }
    return Row(
        method=method,
        right=right,
        asked=n,
        low=low,
        high=high,
        unreadable=sum(not o.readable for o in outcomes),
        tokens=sum(o.tokens for o in outcomes) / n if n else 0.0,
        seconds=sum(o.seconds for o in outcomes) / n if n else 0.0,
        **more,
    )
