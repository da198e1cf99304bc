"""What kind of answer a question asks for, and the canonical form of the answers it gets.

Two answers agree when their canonical forms are equal. `canonical` returns None where the
answer cannot be read: that is an abstention, counted and shown, never a vote. No text, however
broken, makes anything here raise.
"""

import re
import unicodedata
from typing import Any, Literal

import msgspec
from msgspec import Struct

from llamoot.agents.types import Format
from llamoot.council.numbers import find_numbers

KindName = Literal["number", "choice", "boolean", "span", "json", "code", "text"]


class Kind(Struct, frozen=True):
    """The kind asked for; `options` are (letter, text) of a multiple-choice question."""

    name: KindName = "text"
    options: tuple[tuple[str, str], ...] = ()

    @property
    def exact(self) -> bool:
        """Whether answers of this kind can be counted."""
        return self.name != "text"


TEXT = Kind()
# Texts may be of any length and made to hurt: no pattern sees more of one than this.
_QUESTION, _END, _BEFORE = 4_000, 20_000, 48

_OPTION = re.compile(r"(?:^|\n|\s)\(?([A-Z])[).:]\s+(.+?)(?=\s+\(?[A-Z][).:]\s|\n|$)")
_ASKS: tuple[tuple[KindName, str], ...] = (
    (
        "json",
        r"\b(?:as|in|with|valid|return|output)\s+(?:a\s+)?(?:valid\s+)?json\b"
        r"|\bjson (?:object|array)",
    ),
    (
        "boolean",
        r"\byes or no\b|\byes/no\b|\btrue or false\b|\btrue/false\b"
        r"|^\s*(?:is|are)\b[^?\n]*\d[^?\n]*\b(?:than|equal to|divisible by|prime|even|odd)\b",
    ),
    (
        "number",
        r"\bhow (?:many|much|old|tall|far|long)\b|\bcalculate\b|\bcompute\b|\bwhat percent"
        r"|\b(?:a|one|the|as) (?:single )?(?:number|integer)\b|\bnumber only\b"
        r"|\b(?:add|subtract|multiply|divide)\b[^.?\n]*\d|\bdifference between \d"
        r"|\b(?:larg|small|great|bigg|low|high)(?:er|est)\b,? (?:of|among)?:? ?\d"
        r"|\d\s*[-+*/×÷−^x]\s*\d|\b(?:sum|difference|product|quotient) of\b"
        r"|\b\d+ (?:plus|minus|times|divided by) \d",
    ),
    (
        "code",
        r"\b(?:write|implement|give|show)\b.{0,40}\b"
        r"(?:function|class|script|program|code|regex|query|method)\b",
    ),
    (
        "span",
        r"\b(?:one|a single) word\b|\bword only\b|\bname only\b"
        r"|^\s*(?:who|when|where)\b[^.\n]{0,120}\?\s*$"
        r"|\bwhat is the (?:capital|name|chemical symbol|currency)\b",
    ),
)
_OPEN = re.compile(
    r"\b(?:explain|describe|discuss|why|essay|story|poem|compare|summari[sz]e)\b", re.I
)
_MARK = re.compile(r"(?:\banswer|\bresult|\btotal)\b\W{0,4}(?:is\b(?! not\b|n't)|[:=])|####", re.I)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|$)", re.S)
_BOX = re.compile(r"\\boxed\{([^{}]*)\}|\*\*([^*\n]+)\*\*")
_NOT = re.compile(r"(?:\bnot|n't|n’t|\bnever|\bneither|\bcannot)\b(?:\W+\w+){0,2}\W*$", re.I)
_YES = ("yes", "true", "correct", "right", "valid", "pass", "passes", "passed", "success")
_NO = ("no", "false", "incorrect", "wrong", "invalid", "fail", "fails", "failed", "failure")
_BOOLEAN = re.compile(r"\b(" + "|".join(_YES + _NO) + r")\b", re.I)


def detect(question: str, format: Format | None = None) -> Kind:
    """The kind of answer that `question` asks for; a format settles it."""
    if format is not None and format.kind in ("json", "schema"):
        return Kind("json")
    if format is not None and format.kind == "choice":
        return Kind("choice", tuple((str(v), str(v)) for v in format.value))
    if len(question) > _QUESTION:
        question = question[: _QUESTION // 2] + "\n" + question[-_QUESTION // 2 :]
    options = tuple((found[1], found[2].strip()) for found in _OPTION.finditer(question))
    if len(options) > 1 and [o[0] for o in options] == [chr(65 + i) for i in range(len(options))]:
        return Kind("choice", options)
    for name, pattern in _ASKS:
        if re.search(pattern, question, re.I):
            if name in ("number", "span") and _OPEN.search(question):
                continue
            return Kind(name)
    return Kind()


def canonical(text: str, kind: Kind) -> str | None:
    """The canonical form of the answer in `text`, or None. Applying it again changes nothing."""
    form = _canonical(text, kind)
    for _ in range(8):
        if form is None or not form:
            return None
        again = _canonical(form, kind)
        if again == form:
            return form
        form = again
    return None


def surface(text: str, kind: Kind) -> str:
    """The answer as its author wrote it, without the way to it; `text` itself for open kinds."""
    tidy = unicodedata.normalize("NFC", text).strip()
    if kind.name in ("number", "span"):
        tidy = tidy[-_END:]
    if kind.name == "number":
        found = _pick_number(_clean(tidy))
        return found[0] if found else tidy
    if kind.name in ("choice", "boolean"):
        return canonical(text, kind) or tidy
    if kind.name == "span":
        return _span(tidy) or tidy
    if kind.name == "json":
        value = _json_text(tidy)
        return value if value is not None else tidy
    return tidy


def _denied(text: str, at: int) -> bool:
    """Whether what stands at `at` is denied by the words right before it."""
    return bool(_NOT.search(text[max(0, at - _BEFORE) : at]))


def _canonical(text: str, kind: Kind) -> str | None:
    if kind.name == "code":
        blocks = _FENCE.findall(text)
        lines = ("\n".join(blocks) if blocks else text).replace("\r", "\n").split("\n")
        return "\n".join(line.rstrip() for line in lines if line.strip()) or None
    if kind.name == "json":
        return _canonical_json(text)
    if kind.name != "text":
        text = text[-_END:]  # the answer stands at the end
    text = _clean(unicodedata.normalize("NFKC", text) if kind.name == "text" else text)
    if kind.name == "number":
        found = _pick_number(text)
        return found[1] if found else None
    if kind.name == "boolean":
        return _pick_boolean(text)
    if kind.name == "choice":
        return _pick_choice(text, kind.options)
    if kind.name == "span":
        return _plain_words(_span(text))
    return " ".join(text.casefold().split()) or None


def _clean(text: str) -> str:
    return text.replace("\\(", " ").replace("\\)", " ").replace("\u2060", "").strip()


def _tail(text: str) -> str | None:
    """What follows the last 'answer:' and the like; None where there is no such mark."""
    marks = list(_MARK.finditer(text))
    return text[marks[-1].end() :] if marks else None


def _pick_number(text: str) -> tuple[str, str] | None:
    """(as written, canonical): in a box, after a mark, after the last '=', else the last one."""
    boxes = [first or second for first, second in _BOX.findall(text)]
    tail = _tail(text)
    for part, which in ((boxes[-1] if boxes else None, -1), (tail, 0)):
        found = [(w, c) for at, w, c in find_numbers(part or "") if not _denied(part or "", at)]
        if found:
            sums = (part or "").split("\n")[0].rpartition("=")[2]
            after = [(w, c) for _, w, c in find_numbers(sums)] if "=" in (part or "") else []
            return after[0] if after else found[which]
    last = text.rpartition("\n")[2].strip(" .*`")
    found = [(w, c) for at, w, c in find_numbers(last) if not at]
    if found and len(last) - len(found[0][0]) < 12 and "=" not in last:
        return found[0]
    before, equals, after_equals = text.rpartition("=")
    parts = (after_equals, text) if equals and before else (text,)
    for part, which in zip(parts, (0, -1) if len(parts) == 2 else (-1,)):
        found = [(w, c) for at, w, c in find_numbers(part) if not _denied(part, at)]
        if found:
            return found[which]
    return None


def _pick_boolean(text: str) -> str | None:
    tail = _tail(text)
    for part in (tail, text.rpartition("\n")[2], text):
        for found in _BOOLEAN.finditer(part or ""):
            word = found.group().lower()
            if word == "no" and re.match(
                r"\s+(?:doubt|question|problem)\b", (part or "")[found.end() :]
            ):
                continue
            yes = word in _YES
            return "yes" if yes != bool(_denied(part or "", found.start())) else "no"
    return None


def _pick_choice(text: str, options: tuple[tuple[str, str], ...]) -> str | None:
    letters = [letter for letter, _ in options] or [chr(65 + i) for i in range(26)]
    last = text.rpartition("\n")[2].strip(" .*`()")
    if last in letters or (len(last) == 1 and last.upper() in letters):
        return last if last in letters else last.upper()
    either = "|".join(re.escape(letter) for letter in sorted(letters, key=len, reverse=True))
    standing = re.compile(rf"(?<![\w'’])\(?({either})(?:[).:,]|\b(?!['’]))(?!\s+[a-z]+\s+[a-z])")
    for part in (_tail(text), text):
        found = [m for m in standing.finditer(part or "") if not _denied(part or "", m.start())]
        named = {m[1] for m in found}
        if found and (len(named) == 1 or part is not text):
            return str(found[0][1])
        if len(named) > 1:
            return None
    low = " ".join(text.casefold().split())
    said = {
        letter
        for letter, words in options
        if (at := low.find(" ".join(words.casefold().split()).rstrip("."))) >= 0
        and words.strip(" .")
        and not _denied(low, at)
    }
    return said.pop() if len(said) == 1 else None


def _span(text: str) -> str:
    """A short answer: after a mark, in bold, or the text itself if it is short."""
    tail = _tail(text)
    if tail is not None and tail.strip():
        return tail.strip().split("\n")[0].strip(" *`\"'“”.")
    bold: set[str] = {second or first for first, second in _BOX.findall(text)}
    if len(bold) == 1:
        return bold.pop().strip(" .")
    last = text.strip().rpartition("\n")[2]
    return last.strip(" *`\"'“”.") if len(last.split()) <= 8 else ""


def _plain_words(text: str) -> str | None:
    form = unicodedata.normalize("NFKC", text).casefold()
    numbers = list(find_numbers(form))
    if len(numbers) == 1 and numbers[0][1] == form.strip():
        return numbers[0][2]
    form = " ".join(re.sub(r"[^\w\s.%°$€£/+-]", " ", form).split()).strip(" .")
    return re.sub(r"^(?:the|an|a)\s+", "", form) or None


def _json_text(text: str) -> str | None:
    tries: list[str] = [block.strip() for block in reversed(_FENCE.findall(text))]
    tries.append(text.strip())
    for open_, close in ("{}", "[]"):
        if open_ in text and close in text:
            tries.append(text[text.index(open_) : text.rindex(close) + 1])
    for part in tries:
        try:
            msgspec.json.decode(part)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            continue
        return part
    return None


def _canonical_json(text: str) -> str | None:
    found = _json_text(text)
    if found is None:
        return None
    try:
        value = _even(msgspec.json.decode(found))
        return msgspec.json.encode(value, order="deterministic").decode()
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError, OverflowError):
        return None


def _even(value: Any) -> Any:
    """1.0 becomes 1, everywhere in a JSON value."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    if isinstance(value, list):
        return [_even(item) for item in value]
    if isinstance(value, dict):
        return {key: _even(item) for key, item in value.items()}
    return value
