"""Keeps a user's text from forging control tokens, through whatever a template does to it.

Before rendering, the first character of every would-be control token in the inputs becomes a
private-use character drawn at random; after it, it is put back and its place remembered. A name of
a control token that begins at such a place came from the inputs and stays text.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llamoot.text.tokenizer import Part

PREFIX = 3


class Mask:
    """One rendering's substitution of characters."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names`: the control tokens."""
        self._by_prefix: dict[str, list[str]] = {}
        for name in sorted(names, key=len, reverse=True):
            self._by_prefix.setdefault(name[:PREFIX], []).append(name)
        firsts = sorted({prefix[0] for prefix in self._by_prefix if prefix})
        base = 0x100000 + secrets.randbelow(0xF000)
        self._private = {char: chr(base + i) for i, char in enumerate(firsts)}
        self._always = {c: p for c, p in self._private.items() if not c.isalnum()}
        self._back = {p: c for c, p in self._private.items()}
        self._table = str.maketrans(self._always)

    def _name_at(self, text: str, at: int) -> str | None:
        found = self._by_prefix.get(text[at : at + PREFIX], ())
        short = self._by_prefix.get(text[at : at + 1], ()) or self._by_prefix.get(
            text[at : at + 2], ()
        )
        return next((name for name in (*found, *short) if text.startswith(name, at)), None)

    def hide(self, value: Any, *, names_only: bool = False) -> Any:
        """`value` with all its texts masked; `names_only`: only where a whole name stands, for
        the model's own turns, in which templates look for markers."""
        if isinstance(value, str):
            return self._hide(value, names_only)
        if isinstance(value, Mapping):
            return {
                self.hide(k, names_only=True): self.hide(v, names_only=names_only)
                for k, v in value.items()
            }
        if isinstance(value, Sequence):
            return [self.hide(item, names_only=names_only) for item in value]
        return value

    def _hide(self, text: str, names_only: bool) -> str:
        if not any(char in text for char in self._private):
            return text
        keep = "<" if text.startswith("<tool_response>") else ""  # templates look for it
        if not names_only:
            text = keep + text[len(keep) :].translate(self._table)
            if len(self._always) == len(self._private):
                return text
        out, start = [], 0
        for at, char in enumerate(text):
            if char in self._private and self._name_at(text, at):
                out += [text[start:at], self._private[char]]
                start = at + 1
        return "".join((*out, text[start:]))

    def reveal(self, text: str) -> list[Part]:
        """The rendered text with the characters put back, in trusted and other parts."""
        for private in self._back:
            text = text.replace(json.dumps(private)[1:-1], private)
        if not any(private in text for private in self._back):
            return [Part(text, True)]
        places = [at for at, char in enumerate(text) if char in self._back]
        text = text.translate({ord(p): c for p, c in self._back.items()})
        parts, start = [], 0
        for at in places:
            name = self._name_at(text, at) if at >= start else None
            if name:
                parts += [Part(text[start:at], True), Part(name, False)]
                start = at + len(name)
        parts.append(Part(text[start:], True))
        return [part for part in parts if part.text]
