"""`llamoot bench council`: does a council answer better than its best member, at equal tokens?"""

import asyncio
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Struct

from llamoot import api
from llamoot.cli import render
from llamoot.cli.options import Argument, Option
from llamoot.council.answers import canonical, detect
from llamoot.council.evidence import Outcome, Row, row
from llamoot.council.panel import Panel, panel
from llamoot.council.problems import problems
from llamoot.errors import AgentError, BadRequest, CouncilFailed

MOST_SAMPLES = 16  # of self-consistency, however many tokens it is given
ALONE = "one sample"
BEST = "best single"
SAME = "self-consistency"


class Question(Struct, frozen=True):
    """One line of a file of questions."""

    question: str
    answer: str


def evidence(
    members: Annotated[list[str] | None, Argument(help="members, as for `ask`")] = None,
    config: Annotated[Path | None, Option("--config", "-c")] = None,
    questions: Annotated[Path | None, Option(help="JSON lines: question, answer")] = None,
    n: Annotated[int, Option("--problems", "-n", min=2, help="questions to ask")] = 200,
    seed: Annotated[int, Option(help="of the generated questions")] = 7,
    protocols: Annotated[str, Option(help="which to compare")] = "vote,debate,synthesize",
    samples: Annotated[int, Option(min=2, help="of each member")] = 3,
    temperature: Annotated[float, Option(min=0.0, help="of samples")] = 0.8,
    parallel: Annotated[int, Option(min=1, help="questions at a time")] = 4,
    out: Annotated[Path | None, Option(help="write the figures as JSON")] = None,
    json: Annotated[bool, Option("--json")] = False,
) -> None:
    """Compare one sample, the best single expert, self-consistency and the protocols.

    Every method answers the same questions. Self-consistency is given the tokens that each
    protocol spent. Tests are paired; an unreadable answer is wrong.
    """
    asked = read(questions, n) if questions else made(seed, n)
    bench = Bench(config, members or [], samples, temperature, parallel)
    rows = asyncio.run(bench.compare(asked, protocols.split(",")))
    figures = {
        "questions": str(questions) if questions else f"generated, seed {seed}",
        "asked": len(asked),
        "members": bench.names,
        "samples": samples,
        "temperature": temperature,
        "rows": msgspec.to_builtins(rows),
    }
    if out:
        out.write_text(msgspec.json.format(msgspec.json.encode(figures), indent=1).decode() + "\n")
    if json:
        render.print_json(figures)
    else:
        print("\n".join(table(rows)))


def made(seed: int, n: int) -> list[Question]:
    """Held-out problems of the built-in model's kinds."""
    return [Question(p.question, p.answer) for p in islice(problems(seed, "test"), n)]


def read(path: Path, n: int) -> list[Question]:
    """The first n lines of a file; a broken line is an error that names its number."""
    done: list[Question] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or len(done) == n:
            continue
        try:
            done.append(msgspec.json.decode(line, type=Question))
        except msgspec.DecodeError as error:
            raise BadRequest(f"{path}:{number}: {error}", "questions") from None
    if not done:
        raise BadRequest(f"{path}: holds no question", "questions")
    return done


class Bench:
    """Plays methods over questions; every method is a council of its own."""

    def __init__(
        self, config: Path | None, members: list[str], samples: int, heat: float, parallel: int
    ) -> None:
        self.config, self.members, self.samples, self.heat = config, members, samples, heat
        self.parallel = parallel
        self.names: list[str] = []

    async def compare(self, asked: list[Question], protocols: Iterable[str]) -> list[Row]:
        """The table, best single expert and self-consistency first computed."""
        alone = await self.play(ALONE, asked, await self.panel("solo", 1, self.heat, one=True))
        single = await self.best(asked)
        rows = [row(ALONE, alone, BEST, single), row(BEST, single)]
        cost = max(sum(o.tokens for o in alone) / len(asked), 1.0)
        for protocol in protocols:
            made = await self.panel(protocol, self.samples, self.heat)
            outcomes = await self.play(protocol, asked, made)
            rows.append(row(protocol, outcomes, BEST, single))
            spent = sum(o.tokens for o in outcomes) / len(asked)
            count = min(MOST_SAMPLES, max(1, round(spent / cost)))
            same = await self.same(asked, count)
            name = f"{SAME} of {count} (the tokens of {protocol})"
            rows.append(row(name, same, BEST, single))
            rows.append(row(f"{protocol} against {SAME} of {count}", outcomes, name, same))
        return rows

    async def best(self, asked: list[Question]) -> list[Outcome]:
        """Every member alone and greedy; the one that turned out best (a generous baseline)."""
        made = await self.panel("solo", 1, 0.0)
        self.names = [place.spec.id for place in made.places]
        tried = []
        for place in made.places:
            alone = msgspec.structs.replace(made, places=(place,), chairs=(place.label,))
            tried.append(await self.play(f"{BEST}: {place.spec.id}", asked, alone))
        return max(tried, key=lambda outcomes: sum(o.right for o in outcomes))

    async def same(self, asked: list[Question], count: int) -> list[Outcome]:
        """`count` samples of the first member and a plain majority."""
        made = await self.panel("vote", count, self.heat, one=True)
        places = tuple(msgspec.structs.replace(p, logprobs=False) for p in made.places)
        made = msgspec.structs.replace(made, places=places, early_stop=False)
        return await self.play(f"{SAME} of {count}", asked, made)

    async def panel(self, protocol: str, samples: int, heat: float, one: bool = False) -> Panel:
        """The configured members, all at one temperature; `one`: only the first of them."""
        changes: dict[str, Any] = {"protocol": protocol, "samples": samples}
        found = panel(await api.configure(self.config, self.members, **changes))
        places = found.places[:samples] if one else found.places
        places = tuple(
            msgspec.structs.replace(
                p, sampling=msgspec.structs.replace(p.sampling, temperature=heat)
            )
            for p in places
        )
        labels = tuple(p.label for p in places)
        chairs = tuple(c for c in found.chairs if c in labels) or labels[:1]
        rules = msgspec.structs.replace(found.rules, quorum=(len(places) + 1) // 2)
        return msgspec.structs.replace(found, places=places, chairs=chairs, rules=rules)

    async def play(self, name: str, asked: list[Question], made: Panel) -> list[Outcome]:
        """One method over all questions, with a line of progress."""
        council, gate = api.Council.of(made), asyncio.Semaphore(self.parallel)
        done = 0

        async def one(question: Question, seed: int) -> Outcome:
            nonlocal done
            async with gate:
                outcome = await _answer(council, question)
            done += 1
            if sys.stderr.isatty() or done == len(asked):
                end = "\n" if done == len(asked) else ""
                print(f"\r{name}: {done} of {len(asked)}", end=end, file=sys.stderr, flush=True)
            return outcome

        try:
            return list(await asyncio.gather(*(one(q, i) for i, q in enumerate(asked))))
        finally:
            await council.close()


async def _answer(council: api.Council, question: Question) -> Outcome:
    kind = detect(question.question)
    began = time.perf_counter()
    try:
        done = await council.ask(question.question)
    except (CouncilFailed, AgentError):
        return Outcome(False, False, 0, time.perf_counter() - began)
    form = canonical(done.text, kind)
    right = form is not None and form == canonical(question.answer, kind)
    tokens = done.usage.completion_tokens
    return Outcome(right, form is not None, tokens, time.perf_counter() - began)


def table(rows: list[Row]) -> list[str]:
    """A Markdown table; the last column says what the comparison shows."""
    lines = [
        "| method | right | 95 % | unreadable | tokens | + / − | p | against the best single |",
        "|---|---:|---|---:|---:|---|---:|---|",
    ]
    for r in rows:
        share = f"{r.right / r.asked:.1%}" if r.asked else "–"
        said = r.finding if not r.against or r.against == BEST else f"{r.finding} (vs {r.against})"
        flips = f"{r.gained} / {r.lost}" if r.against else ""
        p = f"{r.p:.3g}" if r.against else ""
        lines.append(
            f"| {r.method} | {share} | {r.low:.1%}–{r.high:.1%} | {r.unreadable} "
            f"| {r.tokens:.0f} | {flips} | {p} | {said} |"
        )
    return lines
