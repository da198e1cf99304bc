"""SentencePiece unigram vocabularies (T5, XLM-R) and their normaliser."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

SPACE = "▁"
UNKNOWN_PENALTY = 10.0


class CharsMap:
    """The normaliser of a SentencePiece file: a double-array trie from texts to replacements.

    Layout: u32 size, the trie as u32 units, then zero-terminated UTF-8 replacements. A unit holds
    its label in bits 0-7, "has a value" in bit 8, the offset to its children in bits 10-30 (times
    256 if bit 9 is set); a unit with bit 31 is a value: where the replacement starts.
    """

    def __init__(self, data: bytes) -> None:
        """ValueError where the trie is cut short."""
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 or 4 + size > len(data) or size % 4:
            raise ValueError("the trie is longer than the array that holds it")
        self.units: list[int] = np.frombuffer(data[4 : 4 + size], "<u4").tolist()
        self.texts = data[4 + size :]

    def longest(self, data: bytes, at: int) -> tuple[bytes, int] | None:
        """Replacement of the longest known text that starts at `at`, and that text's length."""
        units, found = self.units, None
        node = self._children(0, 0)
        for stop in range(at, len(data)):
            node ^= data[stop]
            if not data[stop] or node >= len(units) or units[node] & 0x800000FF != data[stop]:
                break
            leaf = units[node] & 0x100
            node = self._children(node, node)
            if leaf and node < len(units):
                found = (units[node] & 0x7FFFFFFF, stop + 1 - at)
        if found is None:
            return None
        start, length = found
        end = self.texts.find(b"\0", start)
        return self.texts[start : end if end >= 0 else len(self.texts)], length

    def _children(self, node: int, base: int) -> int:
        unit = self.units[node] if node < len(self.units) else 0
        return base ^ ((unit >> 10) << ((unit & 0x200) >> 6))

    def normalize(self, text: str) -> str:
        data, at, out = text.encode(), 0, bytearray()
        while at < len(data):
            hit = self.longest(data, at)
            if hit is None:
                width = _width(data[at])
                out += data[at : at + width]
                at += width
            else:
                out += hit[0]
                at += hit[1]
        return out.decode("utf-8", "replace")


def _width(byte: int) -> int:
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


class Unigram:
    """The most likely way to write a text as tokens (Viterbi over log-probabilities)."""

    def __init__(
        self,
        ids: Mapping[bytes, int],
        scores: Sequence[float],
        unknown: int,
        lowest: float,
        normal: Callable[[str], str],
        cut: Callable[[str], list[str]],
    ) -> None:
        """`scores` by id; `lowest`: the smallest of a normal token; `cut`: see `Words`."""
        self.ids, self.scores, self.unknown = ids, scores, unknown
        self.unknown_score = lowest - UNKNOWN_PENALTY
        self.normal, self.cut = normal, cut
        self.longest = max(map(len, ids), default=1)
        self.seen: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        out: list[int] = []
        for chunk in self.cut(self.normal(text)):
            ids = self.seen.get(chunk)
            if ids is None:
                if len(self.seen) > 100_000:
                    self.seen.clear()
                ids = self.seen[chunk] = self._best(chunk.encode())
            if out and ids and out[-1] == ids[0] == self.unknown:
                ids = ids[1:]  # unknown next to unknown is one unknown
            out += ids
        return out

    def _best(self, text: bytes) -> list[int]:
        n = len(text)
        best = [0.0] + [float("-inf")] * n
        came: list[tuple[int, int]] = [(0, self.unknown)] * (n + 1)
        ids, scores, start = self.ids, self.scores, 0
        while start < n:
            base, width = best[start], _width(text[start])
            for stop in range(start + 1, min(n, start + self.longest) + 1):
                i = ids.get(text[start:stop])
                if i is not None and base + scores[i] > best[stop]:
                    best[stop], came[stop] = base + scores[i], (start, i)
            stop = start + width
            if text[start:stop] not in ids and base + self.unknown_score > best[stop]:
                best[stop], came[stop] = base + self.unknown_score, (start, self.unknown)
            start = stop
        out, at = list[int](), n
        while at > 0:
            at, i = came[at]
            if not (out and out[-1] == i == self.unknown):
                out.append(i)
        return out[::-1]


class Plamo:
    """PLaMo 2's way: the least cost from the end of the text, in ten-thousandths of a score.

    A character that is no token costs UNKNOWN_COST and becomes its bytes. Of equal ways the one
    with the longer token wins.
    """

    UNKNOWN_COST = 10_000_000

    def __init__(
        self, ids: Mapping[bytes, int], scores: Sequence[float], byte_ids: Sequence[int | None]
    ) -> None:
        self.ids = {token.decode("utf-8", "replace"): i for token, i in ids.items()}
        self.costs, self.byte_ids = [-round(score * 1e4) for score in scores], byte_ids
        self.longest = max(map(len, self.ids), default=1)

    def encode(self, text: str) -> list[int]:
        text = text.removeprefix("\ufeff")
        n = len(text)
        best: list[float] = [float("inf")] * n + [0.0]
        taken: list[tuple[int, int | None]] = [(1, None)] * n
        for start in range(n - 1, -1, -1):
            for size in range(min(self.longest, n - start), 0, -1):
                i = self.ids.get(text[start : start + size])
                if i is not None and best[start + size] + self.costs[i] < best[start]:
                    best[start], taken[start] = best[start + size] + self.costs[i], (size, i)
            if best[start + 1] + self.UNKNOWN_COST < best[start]:
                best[start], taken[start] = best[start + 1] + self.UNKNOWN_COST, (1, None)
        out, at = list[int](), 0
        while at < n:
            size, i = taken[at]
            found = [i] if i is not None else [self.byte_ids[b] for b in text[at].encode()]
            out += [j for j in found if j is not None]
            at += size
        return out


def normalizer(charsmap: CharsMap | None, prefix: bool, merge_spaces: bool) -> Callable[[str], str]:
    """What SentencePiece does to a text first: its map, then ▁ for spaces, one before the text."""

    def normal(text: str) -> str:
        if charsmap is not None:
            text = charsmap.normalize(text)
        if merge_spaces:
            return "".join(SPACE + word for word in text.split(" ") if word)
        text = text.replace(" ", SPACE)
        return SPACE + text if prefix and text.strip(SPACE) else text

    return normal
