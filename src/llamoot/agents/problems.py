"""What a server says went wrong, in the many shapes in which it says so. No I/O.

`problem_in` finds the message in an error body of any known shape: `error` as object or text,
`detail` as text or list, flat messages, HTML, and events of a stream.
"""

import json
import re
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from llamoot.agents.sse import EventParser

_OVERFLOW = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context window|"
    r"longer than the (maximum )?(model|context)|max_model_len|available context size",
    re.IGNORECASE,
)


class Problem(Struct, frozen=True):
    """What a server says went wrong."""

    message: str
    code: str = ""
    type: str = ""
    param: str = ""


def loads(payload: bytes) -> Any:
    """JSON read with everything forgiven that can be. Raises ValueError."""
    try:
        return json.loads(payload.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None


def problem_of(value: Any) -> Problem | None:
    """The problem in decoded JSON; None where there is none."""
    if isinstance(value, str):
        return Problem(value) if value.strip() else None
    if not isinstance(value, dict):
        return None
    inner = value.get("error")
    if isinstance(inner, dict):
        found = problem_of({"object": "error", **inner}) or Problem(json.dumps(inner)[:2000])
        return found if found.type else replace(found, type=_label(value, "type"))
    if isinstance(inner, str) and inner.strip():
        return Problem(inner, _label(value, "code"), _label(value, "error_type"))
    detail = value.get("detail", value.get("errors"))
    message = value.get("message", value.get("msg"))
    if isinstance(message, dict):
        detail, message = message.get("detail", message), None
    code, kind, param = (_label(value, key) for key in ("code", "type", "param"))
    if isinstance(detail, list) and detail:
        rows = [row for row in detail if isinstance(row, dict)]
        text = "; ".join(_located(row) for row in rows) or str(detail)
        where = rows[0].get("loc") if rows else None
        if not param and isinstance(where, list) and where:
            param = next((str(w) for w in where if w not in ("body", "query")), "")
        return Problem(text, code, kind or (_label(rows[0], "type") if rows else ""), param)
    if isinstance(detail, str | dict) and detail and not message:
        return Problem(detail if isinstance(detail, str) else json.dumps(detail)[:2000], code, kind)
    if isinstance(message, str) and (message.strip() or code):
        return Problem(message or code, code, kind, param)
    return None


def _located(row: dict[str, Any]) -> str:
    where = row.get("loc")
    place = ".".join(str(w) for w in where) if isinstance(where, list) else ""
    text = str(row.get("msg", row.get("message", row)))
    return f"{place}: {text}" if place else text


def _label(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    return "" if found is None or isinstance(found, bool | dict | list) else str(found)


def problem_in(body: bytes) -> Problem:
    """The problem that an error body of any shape reports; never fails."""
    text = body.decode("utf-8", "replace").strip()
    if text[:1] in ("{", "[", '"'):
        try:
            found = problem_of(loads(body.strip()))
        except ValueError:
            found = None
        if found:
            return found
    if text[:1] == "<":
        title = re.search(r"<(title|h1)[^>]*>(.*?)</\1", text, re.IGNORECASE | re.DOTALL)
        plain = title.group(2) if title else re.sub(r"<[^>]*>", " ", text)
        return Problem("an HTML page: " + " ".join(plain.split())[:2000], type="html")
    parser = EventParser()
    for _, payload in [*parser.feed(body), *parser.finish()]:
        try:
            found = problem_of(loads(payload))
        except ValueError:
            continue
        if found:
            return found
    return Problem(" ".join(text.split()) or "an empty body")


def is_overflow(problem: Problem) -> bool:
    """Does the server say that the prompt does not fit its context?"""
    return bool(_OVERFLOW.search(f"{problem.code} {problem.type} {problem.message}"))
