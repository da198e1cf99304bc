"""Arguments of tool calls that are not written as JSON, brought into it."""

import ast
import json
import re
from typing import Any

QUOTE = '<|"|>'
SCALARS = {"true": True, "false": False, "null": None, "none": None}


def as_object(value: Any) -> str:
    """JSON text of arguments that came as an object, or as a string that holds one."""
    if isinstance(value, str):
        try:
            if isinstance(json.loads(value), dict):
                return value
        except ValueError:
            pass
    return json.dumps(value, ensure_ascii=False)


def coerce(text: str, schema: dict[str, Any], key: str) -> Any:
    """The value written as `text`: what the schema of `key` says, else JSON, else the text."""
    wanted = (schema.get("properties") or {}).get(key) or {}
    types = wanted.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and set(types) <= {"string", "null"} and text != "null":
        return text
    try:
        return json.loads(text.strip())
    except ValueError:
        return SCALARS.get(text.strip().lower(), text) if "string" not in types else text


def python_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """name.call(key="value", …) as a name and its arguments; None if it is anything else."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and not tree.args):
        return None
    if tree.func.attr != "call" or not isinstance(tree.func.value, ast.Name):
        return None
    try:
        values = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords if k.arg}
        json.dumps(values)
    except (ValueError, TypeError):
        return None
    return tree.func.value.id, values


def gemma_object(text: str) -> dict[str, Any] | None:
    """{key:<|"|>text<|"|>,n:3,list:[…]} as an object; None where it is not well formed."""
    try:
        value, at = _gemma_value(text, 0, 0)
    except (ValueError, IndexError):
        return None
    return value if isinstance(value, dict) and not text[at:].strip() else None


def _gemma_value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > 100:
        raise ValueError("too deep")
    if text.startswith(QUOTE, at):
        end = text.index(QUOTE, at + len(QUOTE))
        return text[at + len(QUOTE) : end], end + len(QUOTE)
    if text[at] == "{":
        return _gemma_items(text, at + 1, depth)
    if text[at] == "[":
        out, at = list[Any](), at + 1
        while text[at] != "]":
            value, at = _gemma_value(text, at, depth + 1)
            out.append(value)
            at += text[at] == ","
        return out, at + 1
    scalar = re.compile(r"[^,}\]]*").match(text, at)
    word = scalar.group().strip() if scalar else ""
    end = scalar.end() if scalar else at
    if word.lower() in SCALARS:
        return SCALARS[word.lower()], end
    try:
        return json.loads(word), end
    except ValueError:
        return word, end


def _gemma_items(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    out: dict[str, Any] = {}
    while text[at] != "}":
        if text.startswith(QUOTE, at):
            key, at = _gemma_value(text, at, depth)
            at = text.index(":", at)
        else:
            colon = text.index(":", at)
            key, at = text[at:colon].strip(), colon
        out[key], at = _gemma_value(text, at + 1, depth + 1)
        at += text[at] == ","
    return out, at + 1
