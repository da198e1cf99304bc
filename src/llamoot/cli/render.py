"""How runs are shown without a terminal: one object, one line of cost, lines of progress."""

import sys
from typing import Any

import msgspec

from llamoot.council.events import (
    Answer,
    Convergence,
    CouncilResumed,
    CouncilStarted,
    Event,
    ExpertFailed,
    RoundStarted,
    Warned,
)
from llamoot.council.folds import Transcript

_STAGES = {
    "draft": "independent answers",
    "revise": "reading the others",
    "ballot": "ranking one another",
    "synthesis": "the final text",
}


def note(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def outcome(done: Transcript) -> dict[str, Any]:
    """A run as one object: the answer, how it came about, who said what, what it cost."""
    started = done.started
    members = done.members
    return {
        "run": done.run,
        "state": done.state,
        "question": done.question,
        "answer": done.text,
        "council": started.council if started else "",
        "protocol": started.protocol if started else "",
        "kind": started.kind if started else "",
        "how": done.how,
        "seat": done.seat,
        "agreement": round(done.agreement, 4),
        "dissent": [msgspec.to_builtins(position) for position in done.dissent],
        "experts": [
            {
                "label": seat,
                "id": members[seat].id if seat in members else seat,
                "round": number,
                "stage": fold.stage,
                "status": result.status,
                "text": result.text if isinstance(result, Answer) else result.partial,
                "message": "" if isinstance(result, Answer) else result.message,
                "seconds": round(result.seconds, 3),
                "usage": msgspec.to_builtins(result.usage),
            }
            for number, fold in done.rounds.items()
            for seat, result in sorted(fold.outcomes.items())
        ],
        "warnings": [{"code": w.code, "message": w.message} for w in done.warnings],
        "failure": msgspec.to_builtins(done.failure) if done.failure else None,
        **cost(done),
    }


def cost(done: Transcript) -> dict[str, Any]:
    return {
        "calls": done.calls,
        "usage": msgspec.to_builtins(done.usage),
        "seconds": round(done.seconds, 3),
        "cost": round(done.cost, 6),
    }


def cost_line(done: Transcript) -> str:
    """What a run cost, in one line."""
    usage = done.usage
    parts = [
        f"{done.calls} calls",
        f"{usage.prompt_tokens + usage.completion_tokens:,} tokens"
        f" ({usage.prompt_tokens:,} read, {usage.completion_tokens:,} written)",
        f"{done.seconds:.1f} s",
        f"cost {done.cost:.4f}" if done.cost else "no money",
        f"run {done.run}",
    ]
    return " · ".join(parts)


def plan_line(errors: dict[str, float]) -> str:
    """How wrong the plan was, in one line."""
    parts = [
        f"{error:+.0%} {name}" if error < 2 else f"{error + 1:,.0f} times the {name}"
        for name, error in errors.items()
    ]
    return "plan was off by " + ", ".join(parts) if parts else "nothing to compare the plan with"


def how_line(done: Transcript) -> str:
    """How the answer came about, in one line."""
    who = f", in the words of {done.seat}" if done.seat else ""
    if done.how == "vote":
        return f"vote: {done.agreement:.0%} agree{who}"
    ways = {"verbatim": "best single answer", "single": "one answer", "synthesis": "synthesis"}
    return ways.get(done.how, done.how) + who


def dissent_lines(done: Transcript) -> list[str]:
    return [f"  {', '.join(p.seats)}: {p.answer}" for p in done.dissent]


def brief(text: str, width: int = 72) -> str:
    """A text on one line of at most `width` characters, its end rather than its beginning."""
    line = " ".join(text.split())
    return line if len(line) <= width else "…" + line[-(width - 1) :]


def markdown(done: Transcript) -> str:
    """A run as a Markdown document."""
    members = done.members
    lines = [f"# {brief(done.question, 100)}", "", done.question, "", "## Answer", ""]
    failed = done.failure
    lines += [done.text if failed is None else f"*{failed.code}*: {failed.message}"]
    lines += ["", f"*{how_line(done)} · {cost_line(done)}*"]
    for number, fold in done.rounds.items():
        lines += ["", f"## Round {number}: {_STAGES[fold.stage]}"]
        if fold.likeness is not None:
            lines += ["", f"Likeness {fold.likeness:.2f}"]
        for seat, result in sorted(fold.outcomes.items()):
            name = members[seat].id if seat in members else seat
            lines += ["", f"### {seat} ({name}), {result.seconds:.1f} s", ""]
            if isinstance(result, ExpertFailed):
                lines += [f"*{result.status}*: {result.message}"]
            else:
                lines += [result.text]
    if done.ballots:
        lines += ["", "## Ballots", "", "| seat | vote | weight |", "|---|---|---|"]
        for b in done.ballots:
            vote = " > ".join(" = ".join(group) for group in b.ranking) or b.choice or "abstains"
            lines += [f"| {b.seat} | {brief(vote, 60)} | {b.weight:.2f} |"]
    flips = [flip for decision in done.decisions for flip in decision.flips]
    if flips:
        lines += ["", "## Changes of mind", "", *(f"- {flip}" for flip in flips)]
    if done.dissent:
        lines += ["", "## Dissent", "", *dissent_lines(done)]
    if done.warnings:
        lines += ["", "## Notes", "", *(f"- {w.message}" for w in done.warnings)]
    return "\n".join(lines)


class Plain:
    """Progress in plain lines on stderr."""

    def __call__(self, event: Event) -> None:
        line = progress(event)
        if line:
            note(line)

    def __enter__(self) -> "Plain":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""


def progress(event: Event) -> str:
    """The line that tells of an event; '' where there is nothing to tell."""
    if isinstance(event, CouncilStarted):
        who = ", ".join(f"{m.label} {m.id}" for m in event.members)
        return f"{event.council}: {event.protocol} on a {event.kind} by {who}"
    if isinstance(event, CouncilResumed):
        return "going on from what is recorded"
    if isinstance(event, RoundStarted):
        return f"round {event.round}: {_STAGES[event.stage]}"
    if isinstance(event, Answer):
        cut = " (cut off)" if event.status == "truncated" else ""
        return f"  {event.seat} {event.seconds:.1f} s{cut}: {brief(event.text)}"
    if isinstance(event, ExpertFailed):
        return f"  {event.seat} {event.seconds:.1f} s: {event.status}: {event.message}"
    if isinstance(event, Convergence):
        return f"  likeness {event.likeness:.2f} ({event.measure})"
    return f"  note: {event.message}" if isinstance(event, Warned) else ""
