"""`llamoot init`: a commented llamoot.toml from what is found on this machine."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec

from llamoot.agents.discovery import discover
from llamoot.agents.types import AgentSpec
from llamoot.cli import render
from llamoot.cli.options import Option
from llamoot.council.config import NAME, parse
from llamoot.errors import BadRequest

_HEAD = """\
# llamoot.toml: who sits in the council. `llamoot config check` reads it strictly,
# `llamoot config explain` shows every value and where it comes from.
# Keys never stand here: api_key_env names the variable that holds one.
"""
_EXAMPLE = """\
# An endpoint, and an agent that is asked there:
# [endpoints.mine]
# base_url = "http://localhost:11434/v1"
# api_key_env = "OPENAI_API_KEY"
# [agents.large]
# endpoint = "mine"
# model = "qwen3:8b"
"""
_TAIL = """\
[councils.default]
members = [{members}]
protocol = "auto"        # solo, vote, synthesize, debate, review; auto: by the kind of answer
deadline = 300           # seconds for everything
# synthesizer = "{first}"   # who writes the final text; default: the largest
# quorum = 2             # answers that are enough; default: half of the members
# max_rounds = 2         # of a debate
# max_total_tokens = 20000
"""


def init(
    out: Annotated[Path, Option("--out", "-o", help="file to write")] = Path(NAME),
    force: Annotated[bool, Option("--force", help="replace an existing file")] = False,
    show: Annotated[bool, Option("--print", help="only print it")] = False,
) -> None:
    """Look for endpoints, local servers and models, and write a configuration of them."""
    text = document(asyncio.run(discover()))
    parse(text, str(out))
    if show:
        print(text, end="")
        return
    if out.exists() and not force:
        raise BadRequest(f"{out} exists already; --force replaces it, --out names another", "out")
    out.write_text(text, "utf-8")
    render.note(f"wrote {out}; try: llamoot ask 'What is 17 + 25?' --config {out}")


def document(specs: list[AgentSpec]) -> str:
    """The file for these agents; without any, one that uses the built-in model."""
    parts = [_HEAD]
    bases = list(dict.fromkeys(spec.base_url for spec in specs if spec.base_url))
    for i, base in enumerate(bases, 1):
        key = next(spec.api_key_env for spec in specs if spec.base_url == base)
        parts.append(f"[endpoints.e{i}]\nbase_url = {_quoted(base)}")
        parts[-1] += f"\napi_key_env = {_quoted(key)}\n" if key else "\n"
    if not bases:
        parts.append(_EXAMPLE)
    specs = specs[:6] or [AgentSpec(id="abacus", model="abacus")]
    for spec in specs:
        lines = [f"[agents.{_quoted(spec.id)}]", f"model = {_quoted(spec.model)}"]
        if spec.base_url:
            lines.append(f'endpoint = "e{bases.index(spec.base_url) + 1}"')
        if len(specs) == 1:
            lines.append("samples = 3              # several samples of one model are a council")
        lines.append("# persona = 'You doubt everything.'\n# temperature = 0.8\n")
        parts.append("\n".join(lines))
    members = ", ".join(_quoted(spec.id) for spec in specs)
    parts.append(_TAIL.format(members=members, first=specs[0].id))
    return "\n".join(parts)


def _quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's."""
    return msgspec.json.encode(text).decode()
