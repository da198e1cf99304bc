"""Conversations the built-in model learns from, all made here from a seed.

A conversation is (prompt, reply): the prompt in the model's own chat format up to where it must
speak, the reply with the working inside <think> and the answer after it.
"""

import random
from collections.abc import Iterator

from llamoot.council.problems import Problem, Split, problems

USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
THINK, THOUGHT = "<think>", "</think>"
SPECIAL = (END, USER, ASSISTANT, SYSTEM, THINK, THOUGHT)

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{# thinks in <think>working</think>answer #}"
)

ONLY_CALCULATES = "I only calculate. Ask me for a sum, a difference, a product or a comparison."

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a careful mathematician.",
    "Answer with a number.",
    "Be brief.",
)
HEADS = (*([""] * 12), "Please: ", "Question: ", "Hi! ", "Quick question: ", "Q: ", "Solve this: ")
TAILS = (
    *("", "", "", "", " Answer with a number.", " Answer with a number only.", " Think first."),
    *(" Only the result.", " Please.", " Thanks!", " Reply with the answer only.", "\n"),
)

SUBJECTS = (
    *("the capital of France", "the weather", "a good book", "the moon", "music", "history"),
    *("Python", "the sea", "love", "a recipe for bread", "your name", "the president", "football"),
    *("Rome", "the meaning of life", "a poem", "a joke", "dogs", "cats", "physics", "my garden"),
)
OTHERS = (
    *("What is {s}?", "Tell me about {s}.", "Write about {s}", "Who invented {s}?", "Why {s}?"),
    *("Explain {s} to me.", "What do you think of {s}?", "hello", "Hi!", "How are you?", "{s}"),
    *("Where is {s}?", "Can you help me with {s}?", "Translate {s}.", "Once upon a time", "Hello"),
)


def chat(*turns: tuple[str, str]) -> str:
    """The prompt for these (role, content) turns, ending where the model speaks."""
    return "".join(f"<|{role}|>{content}{END}" for role, content in turns) + ASSISTANT


def reply(working: str, answer: str) -> str:
    """What the model says: working, answer, end."""
    thought = f"{THINK}{working}{THOUGHT}" if working else ""
    return f"{thought}{answer}{END}"


def plain(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """A question asked directly, sometimes under a system message."""
    turns = [("user", rng.choice(HEADS) + problem.question + rng.choice(TAILS))]
    if rng.random() < 0.2:
        turns.insert(0, ("system", rng.choice(SYSTEMS)))
    return chat(*turns), reply(problem.working, problem.answer)


def other(rng: random.Random) -> tuple[str, str]:
    """Something that is not arithmetic, and the honest answer to it."""
    question = rng.choice(OTHERS).format(s=rng.choice(SUBJECTS))
    if rng.random() < 0.3:
        words = [rng.choice(SUBJECTS).split()[-1] for _ in range(rng.randint(1, 9))]
        question = " ".join(words) + rng.choice("?.! ")
    return chat(("user", question)), reply("", ONLY_CALCULATES)


def conversations(seed: int, split: Split, turns: tuple = ()) -> Iterator[tuple[str, str]]:
    """Endless conversations. `turns` are makers of a council's turns: (rng, problem) -> pair."""
    rng = random.Random(f"corpus/{seed}/{split}")
    for problem in problems(seed, split):
        dice = rng.random()
        if dice < 0.04:
            yield other(rng)
        elif turns and dice < 0.44:
            yield rng.choice(turns)(rng, problem)
        else:
            yield plain(rng, problem)
