"""A call that must be made (`tool_choice` "required", or a name): how to get it and read it.

The family's own marker is put behind the prompt, and what follows is held to a JSON schema that
has a place for nothing but a call.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llamoot.errors import BadRequest
from llamoot.text.output import functions
from llamoot.text.syntax import Syntax

# Families that write a call as JSON behind their marker; others are given the JSON alone.
_JSON = {"hermes": "<tool_call>\n", "granite": "<|tool_call|>", "llama": ""}
DEFINITIONS = ("$defs", "definitions")
_READ = Syntax("forced", bare_json=True)


class Forced(NamedTuple):
    """Encode `suffix` (trusted) behind the prompt, hold the answer to `schema`, read it so."""

    suffix: str
    schema: dict[str, Any]
    syntax: Syntax


def forced_call(
    tools: Sequence[Mapping[str, Any]], choice: str, syntax: Syntax, *, reasoning: bool = False
) -> Forced | None:
    """How to force the call `choice` asks for; None where it asks for none ("auto", "none").

    `reasoning`: the prompt has opened a reasoning region, which is closed first. BadRequest where
    the tool is not offered.
    """
    if choice in ("auto", "none", ""):
        return None
    known = functions(tools)
    if choice != "required" and choice not in known:
        offered = ", ".join(known) or "none"
        raise BadRequest(f"no tool '{choice}' is offered; there are: {offered}", "tool_choice")
    if not known:
        raise BadRequest("a tool call is required and no tool is offered", "tool_choice")
    names = list(known) if choice == "required" else [choice]
    key = "parameters" if syntax.name == "llama" else "arguments"
    forms, definitions = [], dict[str, Any]()
    for n, name in enumerate(names):
        arguments = _renamed(known[name] or {"type": "object"}, f"t{n}_")
        for where in DEFINITIONS:
            found = arguments.pop(where, {})
            definitions |= {f"t{n}_{title}": part for title, part in found.items()}
        forms.append(_form(name, key, arguments))
    closing = f"{syntax.think[0][1]}\n\n" if reasoning and syntax.think else ""
    schema = {**(forms[0] if len(forms) == 1 else {"anyOf": forms}), "$defs": definitions}
    return Forced(closing + _JSON.get(syntax.name, ""), schema, _READ)


def _form(name: str, key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The schema of one call."""
    return {
        "type": "object",
        "properties": {"name": {"const": name}, key: arguments},
        "required": ["name", key],
        "additionalProperties": False,
    }


def _renamed(value: Any, prefix: str) -> Any:
    """A schema whose references name definitions of a common place, apart by `prefix`."""
    if isinstance(value, Mapping):
        return {
            k: _reference(v, prefix) if k == "$ref" else _renamed(v, prefix)
            for k, v in value.items()
        }
    return [_renamed(item, prefix) for item in value] if isinstance(value, list) else value


def _reference(value: Any, prefix: str) -> Any:
    for where in DEFINITIONS:
        if isinstance(value, str) and value.startswith(f"#/{where}/"):
            return f"#/$defs/{prefix}{value.removeprefix(f'#/{where}/')}"
    return value
