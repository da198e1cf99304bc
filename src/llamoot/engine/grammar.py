"""Output that must have a shape: JSON schema, regular expression, choices, GBNF or Lark.

llguidance works out which tokens may come next. It is asked on another thread while the forward
pass runs, so that its time is hidden behind it, and imported when the first constraint is opened:
most runs have none, and it takes a tenth of a second.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np

from llamoot.engine.sampler import Mask
from llamoot.errors import BadRequest

# One space, or a new line and its indent: a model must not lose itself in white space.
JSON = {"whitespace_flexible": True, "whitespace_pattern": r" ?|\n[ \t]{0,24}"}


class Vocabulary:
    """The bytes of every token, as llguidance wants them; opened once per model."""

    def __init__(
        self, pieces: Sequence[bytes], special: Sequence[int], stop_ids: Sequence[int]
    ) -> None:
        """`special` tokens have no text of their own; `stop_ids` end an answer."""
        self._library: Any = import_module("llguidance")
        self.pieces, self.n = pieces, len(pieces)
        # a special token is marked by a byte that UTF-8 never holds
        marked = set(special) | set(stop_ids)
        self.tokens = [b"\xff" + p if i in marked else p for i, p in enumerate(pieces)]
        self.special_token_ids = sorted(marked)
        self.eos_token_id, self.bos_token_id = stop_ids[0], None
        self._ids = {piece: i for i, piece in enumerate(pieces) if i not in marked and piece}
        self._longest = max(map(len, pieces), default=1)
        wrapper = self._library.TokenizerWrapper(self)
        self.tokenizer = self._library.LLTokenizer(wrapper, eos_token=list(stop_ids))
        self.pool = ThreadPoolExecutor(1, "grammar")

    def __call__(self, text: bytes) -> list[int]:
        """Greedy ids of a text; llguidance asks only to see whether it may."""
        ids, at = [], 0
        while at < len(text):
            stops = range(min(len(text), at + self._longest), at, -1)
            stop = next((s for s in stops if text[at:s] in self._ids), at + 1)
            if text[at:stop] in self._ids:
                ids.append(self._ids[text[at:stop]])
            at = stop
        return ids

    def grammar(self, kind: str, value: Any) -> str:
        """llguidance's own notation; BadRequest says what is wrong with the constraint."""
        matcher, convert = self._library.LLMatcher, self._library.grammar_from
        try:
            match kind:
                case "json":
                    text = matcher.grammar_from_json_schema({"type": "object"}, overrides=JSON)
                case "schema":
                    text = matcher.grammar_from_json_schema(value, overrides=JSON)
                case "regex":
                    text = matcher.grammar_from_regex(value)
                case "choice":
                    options = " | ".join(json.dumps(v, ensure_ascii=False) for v in value)
                    text = matcher.grammar_from_lark("start: " + options)
                case _:
                    text = convert("grammar", value)
        except (TypeError, ValueError) as error:
            raise BadRequest(f"the {kind} constraint cannot be read: {error}", "format") from None
        wrong = matcher.validate_grammar(text, self.tokenizer)
        if wrong and not wrong.startswith("WARNING"):
            raise BadRequest(f"the {kind} constraint is not usable: {wrong}", "format")
        return str(text)

    def matcher(self, grammar: str) -> Any:
        """A fresh state of the grammar."""
        return self._library.LLMatcher(self.tokenizer, grammar)


class Grammar:
    """The constraint on one sequence; with `after`, it begins where that text has come."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        kind: str,
        value: Any,
        n_logits: int,
        after: bytes = b"",
        unless: int | None = None,
    ) -> None:
        """`n_logits`: width of the mask, at least the number of tokens. With the token `unless`
        the answer may begin with reasoning instead, and only then does it wait for `after`."""
        self._vocabulary, self._n = vocabulary, n_logits
        self._unless, self._close = unless, after
        self._after = after if unless is None else b""
        self._matcher = vocabulary.matcher(vocabulary.grammar(kind, value))
        self._seen = b""
        self._mask: Future[Mask] | None = None

    def start_mask(self) -> None:
        """Begin to work out what may come next, on the grammar's thread."""
        if not self._after and self._mask is None:
            self._mask = self._vocabulary.pool.submit(self._work_out)

    def mask(self) -> Mask | None:
        """(n_logits,) which tokens may come next; None while everything may."""
        if self._after:
            return None
        self.start_mask()
        assert self._mask is not None
        mask = self._mask.result()
        if self._unless is not None:
            mask[self._unless] = True
        return mask

    def accept(self, token: int) -> None:
        """This token came."""
        self._mask = None
        begins, self._unless = token == self._unless, None
        if begins:
            self._after = self._close
        elif not self._after:
            self._matcher.consume_token(token)
        elif token < self._vocabulary.n:
            self._seen = (self._seen + self._vocabulary.pieces[token])[-4096:]
            if self._after in self._seen:
                self._after = b""

    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        return not self._after and bool(self._matcher.is_stopped())

    def _work_out(self) -> Mask:
        if self._matcher.is_error():
            return np.zeros(self._n, np.bool_)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.zeros(self._n, np.bool_)
        known = np.unpackbits(bits, bitorder="little")[: self._n]
        mask[: len(known)] = known
        return mask
