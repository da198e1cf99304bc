"""SentencePiece unigram vocabularies (T5, XLM-R) and their normaliser."""

import re
from collections.abc import Mapping

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
        scores: Mapping[str, tuple[float, int]],
        unknown: int,
        lowest: float,
        charsmap: CharsMap | None,
        prefix: bool,
        merge_spaces: bool,
    ) -> None:
        """`scores`: token -> (score, id); `lowest`: the smallest score of a normal token."""
        self.scores, self.unknown = scores, unknown
        self.unknown_score = lowest - UNKNOWN_PENALTY
        self.charsmap, self.prefix, self.merge_spaces = charsmap, prefix, merge_spaces
        self.longest: dict[str, int] = {}
        for token in scores:
            head = token[:2]
            if len(token) > self.longest.get(head, 0):
                self.longest[head] = len(token)
        inner = re.compile(f"[^{SPACE}]{SPACE}")
        self.splits = not any(inner.search(token) for token in scores if SPACE in token[1:])
        self.cache: dict[str, list[int]] = {}

    def normalize(self, text: str) -> str:
        if self.charsmap is not None:
            text = self.charsmap.normalize(text)
        if self.merge_spaces:
            words = [word for word in text.split(" ") if word]
            return "".join(SPACE + word for word in words) if words else ""
        text = text.replace(" ", SPACE)
        return SPACE + text if self.prefix and text.strip(SPACE) else text

    def encode(self, text: str) -> list[int]:
        normal = self.normalize(text)
        chunks = re.findall(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+", normal) if self.splits else [normal]
        out: list[int] = []
        for chunk in chunks:
            ids = self.cache.get(chunk)
            if ids is None:
                if len(self.cache) > 100_000:
                    self.cache.clear()
                ids = self.cache[chunk] = self._best(chunk)
            if out and ids and out[-1] == ids[0] == self.unknown:
                ids = ids[1:]  # unknown next to unknown is one unknown
            out += ids
        return out

    def _best(self, text: str) -> list[int]:
        n = len(text)
        best = [0.0] + [float("-inf")] * n
        came: list[tuple[int, int]] = [(0, self.unknown)] * (n + 1)
        for start in range(n):
            base = best[start]
            longest = max(self.longest.get(text[start : start + 2], 1), 1)
            for stop in range(start + 1, min(n, start + longest) + 1):
                found = self.scores.get(text[start:stop])
                if found is not None and base + found[0] > best[stop]:
                    best[stop], came[stop] = base + found[0], (start, found[1])
            if text[start] not in self.scores and base + self.unknown_score > best[start + 1]:
                best[start + 1], came[start + 1] = (
                    base + self.unknown_score,
                    (start, self.unknown),
                )
        out, at = list[int](), n
        while at > 0:
            at, i = came[at]
            if not (out and out[-1] == i == self.unknown):
                out.append(i)
        return out[::-1]
