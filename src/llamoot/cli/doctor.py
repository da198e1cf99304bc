"""`llamoot doctor`: really asks every member of the council one small question."""

import asyncio
import time
from typing import Annotated, Any

from llamoot import api
from llamoot.agents.types import AgentSpec, ChatRequest, Message, Sampling
from llamoot.cli import ask as asking
from llamoot.cli import render
from llamoot.cli.options import Option
from llamoot.council.calls import Member
from llamoot.errors import LlamootError

_QUESTION = "What is 2 + 2? Answer with a number."


def doctor(
    config: asking.Config = None,
    council: asking.Name = None,
    member: asking.Members = None,
    deadline: Annotated[float, Option(help="seconds for each member")] = 60.0,
    json: asking.Json = False,
) -> int:
    """Ask each member; the exit code is 3 if the quorum or the chair does not answer."""
    made = api.panel(asyncio.run(api.configure(config, member or [], council=council)))
    rows = asyncio.run(_visit(api.Council.of(made), deadline))
    quorum = sum(row["ok"] for row in rows if row["expert"]) >= made.rules.quorum
    chair = any(row["ok"] for row in rows if row["label"] == made.chairs[0])
    if json:
        render.print_json({"members": rows, "quorum": quorum, "chair": chair})
    else:
        for row in rows:
            mark = "answers" if row["ok"] else "FAILS"
            what = row["text"] if row["ok"] else row["error"]
            print(f"{row['label']:6} {row['id']:24} {mark:8} {row['seconds']:6.2f} s  {what}")
        print(f"quorum of {made.rules.quorum}: {'yes' if quorum else 'NO'}", end=", ")
        print(f"chair {made.chairs[0]}: {'yes' if chair else 'NO'}")
    return 0 if quorum and chair else 3


async def _visit(council: api.Council, limit: float) -> list[dict[str, Any]]:
    members = council.members(council.panel)
    seats = {place.label: place for place in council.panel.places}
    seen: dict[int, Member] = {}
    for member in members:
        seen.setdefault(id(member.agent), member)
    checks = [_ask(member, seats[member.seat.label].spec, limit) for member in seen.values()]
    rows = dict(zip(seen, await asyncio.gather(*checks)))
    await council.close()
    return [
        {
            "label": member.seat.label,
            "id": seats[member.seat.label].spec.id,
            "expert": seats[member.seat.label].expert,
            **rows[id(member.agent)],
        }
        for member in members
    ]


async def _ask(member: Member, spec: AgentSpec, limit: float) -> dict[str, Any]:
    began = time.monotonic()
    request = ChatRequest(
        messages=(Message("user", _QUESTION),),
        model=member.agent.model,
        sampling=Sampling(max_tokens=256, temperature=member.sampling.temperature),
    )
    text, error = "", ""
    try:
        async with asyncio.timeout(limit):
            async for token in member.agent.chat(request):
                text += token.text
    except TimeoutError:
        error = f"no answer within {limit:g} s"
    except LlamootError as caught:
        error = str(caught)
    if not error and not text.strip():
        error = "answered with nothing"
    return {
        "ok": not error,
        "text": render.brief(text, 40),
        "error": error,
        "seconds": round(time.monotonic() - began, 3),
        "key": spec.api_key_env,
    }
