"""The vocabulary of a model file: tokens as bytes, their types, and the ids that have a role.

Tokens are kept as the file writes them; `piece` gives the bytes a token stands for in a text.
"""

import logging
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot.errors import ModelFileError
from llamoot.gguf.metadata import Metadata, Strings
from llamoot.text.split import FAMILIES, Family

log = logging.getLogger("llamoot")

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
KINDS = {
    "llama": "spm",
    "gpt2": "bpe",
    "gemma4": "bpe",
    "whitespace": "bpe",
    "bert": "wpm",
    "t5": "ugm",
    "rwkv": "rwkv",
    "plamo2": "plamo2",
    "none": "none",
    "no_vocab": "none",
}
# Ids of bos, eos, unk, sep, pad where the file names none.
DEFAULTS: dict[str, dict[str, int]] = {
    "spm": {"bos": 1, "eos": 2, "unk": 0},
    "bpe": {"bos": 11, "eos": 11},
    "wpm": {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103},
    "ugm": {"eos": 1, "unk": 2, "pad": 0},
    "plamo2": {"bos": 1, "eos": 2, "unk": 0, "pad": 3},
}
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unknown": "unk",
    "seperator": "sep",
    "padding": "pad",
    "mask": "mask",
    "cls": "cls",
    "fim_pad": "fim_pad",
    "fim_rep": "fim_rep",
    "fim_sep": "fim_sep",
}
# Files rarely say which tokens end a turn: these do, whatever their type, and become control.
_ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~["
)
_EOT = (
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> "
    "[EOT] <｜end▁of▁sentence｜> <end_of_utterance>"
)
ENDS_TURN = _ENDS.split()
EOT_NAMES = _EOT.split()
BY_NAME = {
    "eot": EOT_NAMES,
    "eom": ["<|eom_id|>"],
    "fim_pad": ["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    "fim_rep": ["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    "fim_sep": ["<|file_sep|>"],
}


BYTE_NAME = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)


def _byte_characters() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself if visible, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


BYTE_TO_CHAR = _byte_characters()
CHAR_TO_BYTE = {ord(char): chr(byte) for byte, char in BYTE_TO_CHAR.items()}


@dataclass
class Vocabulary:
    """What the keys `tokenizer.ggml.*` say, with the usual defaults where they are silent.

    `ids` finds text tokens only: control, unknown and byte tokens are never reached from a text.
    """

    kind: str
    model: str
    tokens: list[bytes]
    types: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    family: Family
    ids: dict[bytes, int] = field(default_factory=dict)
    named: dict[bytes, int] = field(default_factory=dict)  # control and unknown tokens
    user: dict[bytes, int] = field(default_factory=dict)  # user-defined tokens
    roles: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def type_of(self) -> list[int]:
        """`types` as Python numbers, which are faster one by one."""
        found: list[int] = self.types.tolist()
        return found

    @cached_property
    def byte_ids(self) -> list[int | None]:
        """For each byte value, the token `<0xXX>` that stands for it, if there is one."""
        found = {self.tokens[i]: int(i) for i in np.flatnonzero(self.types == BYTE)}
        names = [b"<0x%02X>" % b for b in range(256)]
        return [found.get(name, self.ids.get(name)) for name in names]

    @cached_property
    def eog(self) -> frozenset[int]:
        """Every id that ends a generation."""
        names = {name.encode(): self.find(name) for name in ENDS_TURN}
        found = {i for i in names.values() if i is not None}
        found |= {self.roles[r] for r in ("eos", "eot", "eom", *BY_NAME) if r in self.roles}
        has = {name for name, i in names.items() if i is not None}
        harmony = {b"<|return|>", b"<|call|>"} <= has
        solar = {b"<|flush|>", b"<|calls|>"} <= has or {b"<|flush|>", b"<|call|>"} <= has
        if (harmony or solar) and b"<|end|>" in has:  # ends a message there, not the turn
            found.discard(names[b"<|end|>"] or 0)
        html = names[b"</s>"]
        if html is not None and self.types[html] == NORMAL and html != self.roles.get("eos"):
            found.discard(html)
        return frozenset(found)

    def find(self, text: str) -> int | None:
        """Id of the token written `text`, of any type."""
        raw = text.encode()
        return self.named.get(raw, self.user.get(raw, self.ids.get(raw)))

    def piece(self, i: int) -> bytes:
        """The bytes token `i` stands for; control tokens stand for their own name."""
        token, type_ = self.tokens[i], self.type_of[i]
        if type_ == BYTE and BYTE_NAME.fullmatch(token):
            return bytes.fromhex(token[3:5].decode())
        if self.kind == "rwkv":
            return unescape(token)
        if type_ in (CONTROL, UNKNOWN, USER):
            return token
        if self.kind == "bpe" and not self.family.raw:
            try:
                return token.decode().translate(CHAR_TO_BYTE).encode("latin-1")
            except UnicodeError:
                return token  # not written in GPT-2's characters
        if self.kind == "plamo2" or (self.kind == "bpe" and self.model == "whitespace"):
            return token
        return token.replace("▁".encode(), b" ")


def unescape(token: bytes) -> bytes:
    r"""Bytes of an RWKV token, written with the escapes \n \t \r \xHH and \\."""
    letters = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}

    def plain(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes.fromhex(match[1].decode())
        return letters.get(match[2], match[2])

    return ESCAPE.sub(plain, token) if b"\\" in token else token


def raw_strings(strings: Strings) -> list[bytes]:
    """All strings of an array as bytes, in one pass over the part of the file they lie in."""
    if not len(strings):
        return []
    starts = strings.starts - strings.starts[0]
    stops = starts + strings.lengths
    blob = strings.data[int(strings.starts[0]) :][: int(stops[-1])].tobytes()
    return [blob[a:b] for a, b in zip(starts.tolist(), stops.tolist())]


def read_vocabulary(metadata: Metadata, path: object = "model") -> Vocabulary:
    """Read the vocabulary. ModelFileError where keys are missing, of wrong length or unknown."""
    model = metadata.need("tokenizer.ggml.model", str)
    if model not in KINDS:
        known = ", ".join(KINDS)
        raise ModelFileError(
            path, "tokenizer.ggml.model", f"'{model}' is not a known vocabulary; known: {known}"
        )
    kind = KINDS[model]
    family, notes = _family(metadata, kind, model)
    tokens = [] if kind == "none" else raw_strings(metadata.need("tokenizer.ggml.tokens", Strings))
    tokens = [token or b"[EMPTY_%d]" % i for i, token in enumerate(tokens)]
    types = _array(metadata, "tokenizer.ggml.token_type", len(tokens), NORMAL, path)
    scores = _array(metadata, "tokenizer.ggml.scores", len(tokens), 0, path)
    vocab = Vocabulary(
        kind, model, tokens, types.astype(np.int32), scores.astype(np.float32), family, notes=notes
    )
    _index(vocab)
    _roles(vocab, metadata)
    return vocab


def _family(metadata: Metadata, kind: str, model: str) -> tuple[Family, tuple[str, ...]]:
    name = metadata.maybe("tokenizer.ggml.pre", "", str)
    if kind != "bpe":
        return FAMILIES["default"], ()
    if model in ("gemma4", "whitespace"):
        return FAMILIES[model], ()
    if name in FAMILIES:
        return FAMILIES[name], ()
    what = f"is '{name}', which is not known" if name else "is missing"
    note = f"tokenizer.ggml.pre {what}: words are cut the default way and answers may be worse"
    log.warning(note)
    return FAMILIES["default"], (note,)


def _array(metadata: Metadata, key: str, n: int, default: int, path: object) -> npt.NDArray[Any]:
    values = metadata.maybe(key, None)
    if values is None:
        return np.full(n, default)
    if not isinstance(values, np.ndarray) or len(values) < n:
        raise ModelFileError(path, key, f"must be an array of {n} numbers, one for each token")
    if not np.isfinite(values[:n]).all():
        raise ModelFileError(path, key, "holds a value that is no number; convert the model again")
    return values[:n]


def _index(vocab: Vocabulary) -> None:
    """Fill the dictionaries; tokens that end a turn become control tokens."""
    vocab.ids = dict(zip(vocab.tokens, range(len(vocab.tokens))))
    for name in ENDS_TURN:
        i = vocab.ids.get(name.encode())
        if i is not None and not (name == "</s>" and vocab.types[i] == NORMAL):
            vocab.types[i] = CONTROL  # but </s> is often plain HTML: it must say so itself
    for i in np.flatnonzero((vocab.types != NORMAL) & (vocab.types != UNUSED)).tolist():
        token, type_ = vocab.tokens[i], vocab.types[i]
        if type_ == USER:
            vocab.user[token] = i
        else:
            vocab.ids.pop(token, None)
            if type_ != BYTE:
                vocab.named[token] = i


def _roles(vocab: Vocabulary, metadata: Metadata) -> None:
    n, pre = len(vocab.tokens), metadata.maybe("tokenizer.ggml.pre", "", str)
    roles = {role: i for role, i in DEFAULTS.get(vocab.kind, {}).items() if i < n}
    if vocab.model == "gemma4" or pre in ("chatglm-bpe", "glm4", "glm5"):
        roles.pop("bos", None)
    for key, role in ROLES.items():
        value = metadata.maybe(f"tokenizer.ggml.{key}_token_id", None)
        if isinstance(value, int) and 0 <= value < n:
            roles[role] = value
    for role, names in BY_NAME.items():
        found = [i for i in map(vocab.find, names) if i is not None]
        if found:
            roles.setdefault(role, found[0])
    vocab.roles = roles
    default = {"spm": (True, False), "wpm": (True, False), "ugm": (False, True)}
    add_bos, add_eos = default.get(vocab.kind, (vocab.family.add_bos, False))
    vocab.add_bos = bool(metadata.maybe("tokenizer.ggml.add_bos_token", add_bos))
    vocab.add_eos = bool(metadata.maybe("tokenizer.ggml.add_eos_token", add_eos))
    vocab.add_bos |= pre in ("gemma4", "granite-embed-multi-311m") or vocab.model == "gemma4"
    vocab.add_space = bool(metadata.maybe("tokenizer.ggml.add_space_prefix", vocab.kind == "spm"))
