"""Text to token ids and back, for every vocabulary a model file can hold.

A control token written in a user's text is never parsed as one: it becomes the tokens of its
letters, unless `parse_special` asks for more or the text is a trusted part of a template.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from llamoot.errors import BadRequest, ModelFileError
from llamoot.gguf.metadata import Metadata, Strings
from llamoot.text.merge import merge_pairs
from llamoot.text.split import splitter
from llamoot.text.unigram import SPACE, CharsMap, Plamo, Unigram, normalizer
from llamoot.text.vocab import (
    BYTE_TO_CHAR,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER,
    Vocabulary,
    raw_strings,
    read_vocabulary,
    unescape,
)
from llamoot.text.words import LongestMatch, WordPiece

Encode = Callable[[str], list[int]]
SURROGATES = re.compile("[\ud800-\udfff]")
CACHED_WORDS = 100_000


class Part(NamedTuple):
    """A stretch of a prompt; in a trusted one, the names of control tokens are these tokens."""

    text: str
    trusted: bool = False


class Words:
    """Encodes word by word and remembers the words it has seen."""

    def __init__(self, cut: Callable[[str], list[str]], encode: Encode) -> None:
        self.cut, self.word, self.seen = cut, encode, dict[str, list[int]]()

    def __call__(self, text: str) -> list[int]:
        out: list[int] = []
        seen = self.seen
        for word in self.cut(text):
            ids = seen.get(word)
            if ids is None:
                if len(seen) >= CACHED_WORDS:
                    seen.clear()
                ids = seen[word] = self.word(word)
            out += ids
        return out


class Tokenizer:
    """A vocabulary and its algorithm. Safe to share between threads."""

    def __init__(self, vocab: Vocabulary, encode: Encode, strips: Sequence[frozenset[int]]) -> None:
        """`strips`: special tokens that swallow the spaces on their left, and on their right."""
        self.vocab, self._encode = vocab, encode
        self._left, self._right = strips
        roles = vocab.roles
        self.bos, self.eos, self.eot = roles.get("bos"), roles.get("eos"), roles.get("eot")
        self.unk, self.sep, self.pad = roles.get("unk"), roles.get("sep"), roles.get("pad")
        self.eog = vocab.eog
        self.size = len(vocab.tokens)
        self.add_bos, self.add_eos = vocab.add_bos, vocab.add_eos
        self.notes = vocab.notes

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of every token, by id."""
        return tuple(map(self.vocab.piece, range(self.size)))

    @cached_property
    def control_names(self) -> tuple[str, ...]:
        """The names of all control tokens: what a user's text may not smuggle in."""
        return tuple(name.decode("utf-8", "replace") for name in self.vocab.named)

    def is_control(self, i: int) -> bool:
        """Whether token `i` is not part of the text it stands in."""
        return self.vocab.type_of[i] in (CONTROL, UNKNOWN)

    def piece(self, i: int) -> bytes:
        """The bytes token `i` stands for; control tokens stand for their own name."""
        return self.vocab.piece(i)

    def find(self, text: str) -> int | None:
        """Id of the token written `text` in the file, of any type."""
        return self.vocab.find(text)

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Ids of `text`; `add_special` puts bos and eos around where the model wants them."""
        return self.encode_parts([Part(text, parse_special)], add_special=add_special)

    def encode_parts(self, parts: Iterable[Part], *, add_special: bool = True) -> list[int]:
        """Ids of the joined parts; control tokens are parsed in the trusted ones only."""
        out: list[int] = []
        kind = self.vocab.kind
        if add_special and self.bos is not None and (self.add_bos or kind == "wpm"):
            out.append(self.bos)
        prefix = SPACE if kind == "spm" and self.vocab.add_space else ""
        for item in self._fragments(parts):
            if isinstance(item, int):
                out.append(item)
            else:
                out += self._encode(prefix + item.replace(" ", SPACE) if kind == "spm" else item)
        end = self.sep if kind == "wpm" else self.eos if self.add_eos else None
        if add_special and end is not None:
            out.append(end)
        return out

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Exactly the text that was encoded, where the vocabulary has a token for every byte and
        changes nothing before encoding (WordPiece and T5 do). BadRequest for an id that is none.
        """
        out, fresh = [], True
        spaced = self.vocab.add_space or self.vocab.kind == "wpm"
        for i in ids:
            if not 0 <= i < self.size:
                raise BadRequest(f"{i} is not a token id from 0 to {self.size - 1}", "tokens")
            special = self.vocab.type_of[i] in (CONTROL, UNKNOWN, USER)
            piece = b"" if skip_special and self.is_control(i) else self.vocab.piece(i)
            if special:
                fresh = True
            elif piece:
                if fresh and spaced and piece[:1] == b" ":
                    piece = piece[1:]
                fresh = False
            out.append(piece)
        return b"".join(out).decode("utf-8", "replace")

    def _fragments(self, parts: Iterable[Part]) -> list[int | str]:
        """Special tokens as ids, and what lies between them, across the borders of parts."""
        out: list[int | str] = []
        for text, trusted in parts:
            if SURROGATES.search(text):
                text = SURROGATES.sub("\ufffd", text)
            for item in self._partition(text, trusted):
                if isinstance(item, str) and out and isinstance(out[-1], str):
                    out[-1] += item
                else:
                    out.append(item)
        return [item for item in out if item != ""]

    def _partition(self, text: str, trusted: bool) -> list[int | str]:
        found = [name for name in self._user if name in text]
        if trusted:
            found += [name for name in self._control if name in text]
        if not found:
            return [text]
        found.sort(key=len, reverse=True)
        out: list[int | str] = []
        for n, item in enumerate(re.split(f"({'|'.join(map(re.escape, found))})", text)):
            if n % 2 == 0:
                right = out and out[-1] in self._right
                out.append(item.lstrip(" \t\n\v\f\r") if right else item)
                continue
            i = self._user.get(item, self._control.get(item, -1))
            if i in self._left and isinstance(out[-1], str):
                out[-1] = out[-1].rstrip(" \t\n\v\f\r")
            out.append(i)
        return out

    @cached_property
    def _user(self) -> dict[str, int]:
        return {name.decode("utf-8", "replace"): i for name, i in self.vocab.user.items()}

    @cached_property
    def _control(self) -> dict[str, int]:
        return {name.decode("utf-8", "replace"): i for name, i in self.vocab.named.items()}


def load_tokenizer(metadata: Metadata, path: object = "model") -> Tokenizer:
    """The tokenizer a model file describes. ModelFileError where it is broken or unknown."""
    vocab = read_vocabulary(metadata, path)
    if vocab.kind == "bpe":
        encode = _raw_bpe(vocab, metadata) if vocab.family.raw else _bpe(vocab, metadata)
    elif vocab.kind == "spm":
        encode = _spm(vocab)
    elif vocab.kind == "wpm":
        lower = bool(metadata.maybe("tokenizer.ggml.normalizer.lowercase", True))
        strip = bool(metadata.maybe("tokenizer.ggml.normalizer.strip_accents", lower))
        encode = WordPiece(vocab.ids, vocab.roles.get("unk", 0), lower, strip).encode
    elif vocab.kind == "ugm":
        encode = _unigram(vocab, metadata, path)
    elif vocab.kind == "rwkv":
        raw = {unescape(token): i for token, i in vocab.ids.items()}
        encode = LongestMatch(raw, vocab.roles.get("unk")).encode
    elif vocab.kind == "plamo2":
        encode = Plamo(vocab.ids, vocab.scores.tolist(), vocab.byte_ids).encode
    else:
        where = "tokenizer.ggml.model"
        raise ModelFileError(path, where, f"is '{vocab.model}': the file takes token ids, no text")
    return Tokenizer(vocab, encode, _strips(vocab, metadata))


def _bpe(vocab: Vocabulary, metadata: Metadata) -> Encode:
    """GPT-2's way: words, their bytes as characters, merges by rank."""
    rank = _ranks(vocab, metadata)
    ids, whole = vocab.ids, vocab.family.ignore_merges
    bytes_ = [BYTE_TO_CHAR[b].encode() for b in range(256)]
    cut = splitter(vocab.family)

    def word(text: str) -> list[int]:
        symbols = [bytes_[b] for b in text.encode()]
        if whole:
            i = ids.get(b"".join(symbols))
            if i is not None:
                return [i]
        found = map(ids.get, merge_pairs(symbols, rank))
        return [i for i in found if i is not None]  # a few vocabularies lack a byte or two

    return Words(lambda text: [piece for piece, _ in cut(text)], word)


def _ranks(vocab: Vocabulary, metadata: Metadata) -> Callable[[bytes, bytes], float | None]:
    key = "tokenizer.ggml.merges"
    if key not in metadata and metadata.maybe("tokenizer.ggml.pre", "", str) == "kimi-k2":
        ids = vocab.ids  # written without merges: a token made earlier is merged earlier
        return lambda left, right: ids.get(left + right)
    merges = raw_strings(metadata.need(key, Strings))
    ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1)))
    return lambda left, right: ranks.get(left + b" " + right)


def _chunks(vocab: Vocabulary) -> Callable[[str], list[str]]:
    """How to cut a text at its ▁ without cutting a token: whole, if some token has one inside."""
    space = SPACE.encode()
    joined = b"\xff" + b"\xff".join(vocab.ids)
    if re.search(b"(?<!\xff)(?<!" + space + b")" + space, joined):
        return lambda text: [text]
    return re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+").findall


def _characters(vocab: Vocabulary, merge: Callable[[list[bytes]], list[bytes]]) -> Encode:
    """Merges characters; one the vocabulary lacks becomes its bytes."""
    ids, byte_ids, unknown = vocab.ids, vocab.byte_ids, vocab.roles.get("unk")

    def word(text: str) -> list[int]:
        out: list[int] = []
        for symbol in merge([char.encode() for char in text]):
            i = ids.get(symbol)
            for j in [i] if i is not None else [byte_ids[b] for b in symbol]:
                if j is not None:
                    out.append(j)
                elif unknown is not None:
                    out.append(unknown)
        return out

    return word


def _spm(vocab: Vocabulary) -> Encode:
    costs = dict(zip(vocab.ids, (-vocab.scores[list(vocab.ids.values())]).tolist()))
    word = _characters(vocab, lambda s: merge_pairs(s, lambda a, b: costs.get(a + b)))
    return Words(_chunks(vocab), word)


def _raw_bpe(vocab: Vocabulary, metadata: Metadata) -> Encode:
    """Gemma 4's way: merges by rank over characters, ▁ for spaces, newlines apart."""
    rank = _ranks(vocab, metadata)
    chunks, word = _chunks(vocab), _characters(vocab, lambda s: merge_pairs(s, rank))
    if vocab.model == "whitespace":
        lower = bool(metadata.maybe("tokenizer.ggml.normalizer.lowercase", False))
        return Words(lambda text: (text.lower() if lower else text).split(), word)
    gemma = metadata.maybe("tokenizer.ggml.pre", "gemma4", str) != "sarvam-moe"

    def cut(text: str) -> list[str]:
        lines = re.findall("[^\n]+|\n+", text.replace(" ", SPACE))
        return [part for line in lines for part in ([line] if line[0] == "\n" else chunks(line))]

    def encode(text: str) -> list[int]:
        i = vocab.ids.get(text.encode()) if gemma and text[0] == "\n" else None
        return word(text) if i is None else [i]

    return Words(cut, encode)


def _unigram(vocab: Vocabulary, metadata: Metadata, path: object) -> Encode:
    key = "tokenizer.ggml.precompiled_charsmap"
    data = metadata.maybe(key, None)
    try:
        charsmap = None if data is None else CharsMap(np.asarray(data, np.uint8).tobytes())
    except ValueError as error:
        raise ModelFileError(path, key, f"{error}; convert the model again") from None
    scores = np.where(vocab.types == USER, 0.0, vocab.scores.astype(float)).tolist()
    lowest = float(vocab.scores[vocab.types == NORMAL].min(initial=0.0))
    merge = bool(metadata.maybe("tokenizer.ggml.remove_extra_whitespaces", False))
    normal = normalizer(charsmap, vocab.add_space, merge)
    unknown = vocab.roles.get("unk", 2)
    return Unigram(vocab.ids, scores, unknown, lowest, normal, _chunks(vocab)).encode


def _strips(vocab: Vocabulary, metadata: Metadata) -> tuple[frozenset[int], frozenset[int]]:
    """Special tokens that swallow spaces; files do not say so, their names do."""
    name = str(metadata.maybe("general.name", "")).lower()
    architecture = metadata.maybe("general.architecture", "")
    pre = metadata.maybe("tokenizer.ggml.pre", "", str)
    left: set[int | None] = set()
    right: set[int | None] = set()
    if pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code") or architecture in (
        "nomic-bert-moe",
        "jina-bert-v3",
    ):
        left = {vocab.find("<mask>")}
    elif "phi-3" in name or "phi3" in name:
        right = {*vocab.named.values(), *vocab.user.values()}
        right -= {vocab.find(token) for token in ("<unk>", "<s>", "<|endoftext|>")}
    elif "modern-bert" in name:
        left = {vocab.find("[MASK]")}
    return frozenset(i for i in left if i is not None), frozenset(i for i in right if i is not None)
