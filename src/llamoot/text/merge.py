"""The one algorithm behind byte-pair and SentencePiece-BPE vocabularies: merge the best pair.

Pieces are bytes. Which pair is best is the caller's: a rank in a list of merges, or the score of
the token both make. Ties go to the leftmost pair, as in the programs that trained the vocabulary.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

Rank = Callable[[bytes, bytes], float | None]


def merge_pairs(symbols: list[bytes], rank: Rank) -> list[bytes]:
    """Merge neighbours, lowest rank first, until no pair has one; O(n log n) in the symbols.

    ["l", "o", "w"] with rank(l, o) = 1 and rank(lo, w) = 2 gives ["low"].
    """
    n = len(symbols)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))
    queue = []
    for left in range(n - 1):
        cost = rank(symbols[left], symbols[left + 1])
        if cost is not None:
            queue.append((cost, left, left + 1, len(symbols[left]) + len(symbols[left + 1])))
    heapify(queue)
    while queue:
        _, left, right, size = heappop(queue)
        if not symbols[left] or not symbols[right]:
            continue
        if len(symbols[left]) + len(symbols[right]) != size:
            continue  # one of the two grew since this pair was queued
        symbols[left] += symbols[right]
        symbols[right] = b""
        after[left] = right = after[right]
        if right < n:
            before[right] = left
            cost = rank(symbols[left], symbols[right])
            if cost is not None:
                heappush(queue, (cost, left, right, len(symbols[left]) + len(symbols[right])))
        first = before[left]
        if first >= 0:
            cost = rank(symbols[first], symbols[left])
            if cost is not None:
                heappush(queue, (cost, first, left, len(symbols[first]) + len(symbols[left])))
    return [symbol for symbol in symbols if symbol]
