"""The council's own turns, in the council's own words: marked answers, revisions, syntheses.

The prompts are made by the council's code, so a change of its words reaches the next training.
"""

import random

from corpus import chat, reply

from llamoot.agents.types import Message
from llamoot.council import prompts
from llamoot.council.answers import Kind
from llamoot.council.problems import Problem


def _kind(problem: Problem) -> Kind:
    return Kind("boolean" if problem.answer in ("yes", "no") else "number")


def _wrong(rng: random.Random, answer: str) -> str:
    """A believable mistake: the opposite, a digit changed, or a carry forgotten."""
    if answer in ("yes", "no"):
        return "no" if answer == "yes" else "yes"
    value = int(answer)
    near = value + rng.choice((-100, -20, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20, 100))
    return str(near)


def _entries(rng: random.Random, problem: Problem) -> list[tuple[str, str]]:
    """Distinct answers of two to four experts, numbered; mostly with the right one among them."""
    texts = {_wrong(rng, problem.answer) for _ in range(rng.randint(1, 3))}
    if rng.random() < 0.85:
        texts.add(problem.answer)
    shuffled = sorted(texts)
    rng.shuffle(shuffled)
    return [(str(i), text) for i, text in enumerate(shuffled, 1)]


def _turn(*parts: str) -> str:
    (message,) = prompts.ask((Message("user", parts[0]),), *parts[1:])
    return chat(("user", message.content))


def marked(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """The opening of a vote: the question and how to mark the answer."""
    hint = prompts.hint(_kind(problem), problem.question)
    return _turn(problem.question, hint), reply(problem.working, problem.answer)


def revision(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """A debate's second round."""
    entries = _entries(rng, problem)
    hint = prompts.hint(_kind(problem), problem.question)
    own = rng.choice(entries)[0]
    tail = prompts.REVISE.format(own=own) if rng.random() < 0.8 else prompts.REVISE_ANEW
    prompt = _turn(problem.question, prompts.listing(entries), hint, tail)
    return prompt, reply(problem.working, problem.answer)


def synthesis(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """The final answer from candidates."""
    hint = prompts.hint(_kind(problem), problem.question) if rng.random() < 0.5 else ""
    listed = prompts.listing(_entries(rng, problem))
    prompt = _turn(problem.question, listed, prompts.SYNTHESIS, hint)
    return prompt, reply(problem.working, problem.answer)


TURNS = (marked, marked, marked, marked, marked, marked, revision, synthesis)
