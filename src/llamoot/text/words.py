"""Vocabularies that take the longest token that fits: WordPiece (BERT) and RWKV."""

import unicodedata
from collections.abc import Mapping

CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def bert_words(text: str, lowercase: bool, strip_accents: bool) -> list[str]:
    """BERT's normalisation and split: at spaces; punctuation and ideographs stand alone.

    "Héllo, World" gives ["hello", ",", "world"]. What it drops cannot be brought back.
    """
    if strip_accents:
        text = "".join(c for c in unicodedata.normalize("NFD", text) if _category(c) != "Mn")
    if lowercase:
        text = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    out: list[str] = []
    for char in text:
        category = _category(char)
        if char in "\t\n\r" or category[0] == "Z":
            out.append(" ")
        elif char in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
            continue
        elif _stands_alone(char, category):
            out.append(f" {char} ")
        else:
            out.append(char)
    return "".join(out).split(" ")


def _category(char: str) -> str:
    return unicodedata.category(char)


def _stands_alone(char: str, category: str) -> bool:
    code = ord(char)
    if category[0] == "P" or (code < 0x7F and category[0] == "S"):
        return True
    return code >= 0x3400 and any(low <= code <= high for low, high in CJK)


class WordPiece:
    """Greedy longest match over ▁word; a word with a part that matches nothing is unknown."""

    def __init__(
        self, ids: Mapping[bytes, int], unknown: int, lowercase: bool, strip_accents: bool
    ) -> None:
        self.ids, self.unknown = ids, unknown
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self.longest = max(map(len, ids), default=1)

    def encode(self, text: str) -> list[int]:
        out: list[int] = []
        for word in bert_words(text, self.lowercase, self.strip_accents):
            if word:
                out += self._word("▁".encode() + word.encode())
        return out

    def _word(self, word: bytes) -> list[int]:
        found, start, mark = [], 0, "▁".encode()
        while start < len(word):
            if start and word.startswith(mark, start):
                return [self.unknown]  # written by the user: no word begins here
            for stop in range(min(len(word), start + self.longest), start, -1):
                i = self.ids.get(word[start:stop])
                if i is not None:
                    found.append(i)
                    start = stop
                    break
            else:
                return [self.unknown]
        return found


class LongestMatch:
    """RWKV: at each byte the longest token that starts there; tokens are raw bytes."""

    def __init__(self, ids: Mapping[bytes, int], unknown: int | None) -> None:
        self.ids, self.unknown = ids, unknown
        self.lengths: dict[bytes, list[int]] = {}
        sizes: dict[bytes, set[int]] = {}
        for token in ids:
            sizes.setdefault(token[:2], set()).add(len(token))
        self.lengths = {head: sorted(found, reverse=True) for head, found in sizes.items()}

    def encode(self, text: str) -> list[int]:
        data, at, out = text.encode(), 0, list[int]()
        while at < len(data):
            i, size = self._longest(data, at)
            if i is not None:
                out.append(i)
            at += size
        return out

    def _longest(self, data: bytes, at: int) -> tuple[int | None, int]:
        for head in (data[at : at + 2], data[at : at + 1]):
            for size in self.lengths.get(head, ()):
                i = self.ids.get(data[at : at + size])
                if i is not None and at + size <= len(data):
                    return i, size
        return self.unknown, 1
