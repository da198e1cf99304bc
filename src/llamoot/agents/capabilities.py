"""What a server was found not to understand, learned one parameter at a time. No I/O.

A 400 or 422 that names a parameter drops or renames exactly that one, once, and every later
request to the same base URL and model is built without it. Nothing is learned from a refusal
that names none, nor for what a request means: model, messages, tools.
"""

import re
from collections.abc import Iterable

from llamoot.agents.problems import Problem, is_overflow

# Old name -> the name to try instead; the other way round where the new one is refused.
_OTHER_NAME = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "random_seed",
    "repeat_penalty": "repetition_penalty",
    "structured_outputs": "guided_decoding",
}
_KEPT = {"model", "messages", "tools", "tool_choice"}
_VALUE = re.compile(
    r"too large|too big|too small|at least|at most|less than|greater than|exceed|maximum|"
    r"must be (between|in the range|positive)",
    re.IGNORECASE,
)
# A limit that was refused for its value may not silently become no limit.
_LIMITS = {"max_tokens", "max_completion_tokens"}


class Capability:
    """What one endpoint takes for one model: names replaced, and names left out ("")."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def apply(self, body: dict[str, object]) -> dict[str, object]:
        """`body` with what was learned."""
        if not self.names:
            return body
        out = {}
        for name, value in body.items():
            known = self.names.get(name, name)
            if known:
                out[known] = value
        if "stream" not in out:
            out.pop("stream_options", None)
        return out

    def learn(self, problem: Problem, body: dict[str, object], sent: Iterable[str]) -> bool:
        """Was something learned (here or by a concurrent call), so that asking again may help?

        `body` is the request before `apply`, `sent` the names that were on the wire.
        """
        name = _named(problem, sent)
        if not name:
            return False
        original = next((k for k, v in self.names.items() if v == name and k in body), name)
        if self.names.get(original, original) != name:
            return True  # a concurrent call has learned it meanwhile
        other = _OTHER_NAME.get(original)
        if original == name and other and other not in body:
            self.names[original] = other
        elif original in _LIMITS and original == name:
            return False
        else:
            self.names[original] = ""
        return True


def _named(problem: Problem, sent: Iterable[str]) -> str:
    """The one sent parameter that the refusal is about."""
    names = [name for name in sent if name not in _KEPT]
    if is_overflow(problem):
        return ""
    named = problem.param.split(".")[0].split("[")[0]
    if not named or named not in names:
        found = [
            (match.start(), name)
            for name in names
            if (match := re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", problem.message))
        ]
        named = min(found)[1] if found else ""
        if named == "stream" and not re.search(r"['\"`]stream['\"`]|stream(ing)? (is )?not",
                                               problem.message):  # fmt: skip
            return ""
    if named in _LIMITS and _VALUE.search(problem.message):
        return ""
    return named


_known: dict[tuple[str, str], Capability] = {}


def capability(base_url: str, model: str) -> Capability:
    """The record of one endpoint and model, shared by all agents of the process."""
    return _known.setdefault((base_url, model), Capability())
