"""Arithmetic problems with known answers: what the built-in model learns and the bench asks.

Every problem is drawn from a seed. A fixed tenth of all operand pairs, chosen by a hash, is held
out: `split="test"` draws only those, `split="train"` never does, so a right answer to a test
problem was computed and not remembered. `working` is the column method written down; the model
learns to think in it.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]
Kind = Literal["sum", "difference", "product", "comparison", "story"]
KINDS: tuple[Kind, ...] = ("sum", "difference", "product", "comparison", "story")

NAMES = (
    *("Tom", "Lily", "Ben", "Anna", "Sam", "Mia", "Max", "Eva", "Leo", "Zoe"),
    *("Noah", "Ida", "Paul", "Nina", "Omar", "Rosa", "Jack", "Lena", "Amir", "Kim"),
)
THINGS = (
    *("apples", "books", "coins", "eggs", "pens", "cards", "stamps", "balls", "cups"),
    *("shells", "stones", "nuts", "keys", "cakes", "flowers", "stickers", "marbles"),
)
GROUPS = ("boxes", "bags", "baskets", "rows", "packs", "shelves", "trays")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its answer as it should be written, and the working that leads there."""

    kind: Kind
    question: str
    answer: str
    working: str


def held_out(sign: str, a: int, b: int) -> bool:
    """Whether the pair belongs to the tenth that training never sees."""
    return zlib.crc32(f"{sign}{min(a, b)},{max(a, b)}".encode()) % 10 == 0


def add_working(a: int, b: int) -> str:
    """Column addition from the right: '7+8=15 2+4+1=7' for 27 + 48."""
    columns: list[str] = []
    carry = 0
    while a or b or not columns:
        total = a % 10 + b % 10 + carry
        columns.append(f"{a % 10}+{b % 10}{'+1' if carry else ''}={total}")
        carry, a, b = total // 10, a // 10, b // 10
    return " ".join(columns)


def subtract_working(a: int, b: int) -> str:
    """Column subtraction from the right with borrowing: '12-8=4 4-2-1=1' for 52 - 38."""
    if a < b:
        return f"{b}-{a}: {subtract_working(b, a)}"
    columns: list[str] = []
    borrow = 0
    while a or b or not columns:
        top, low = a % 10, b % 10 + borrow
        if top < low:
            top += 10
        columns.append(f"{top}-{b % 10}{'-1' if borrow else ''}={top - low}")
        borrow, a, b = int(top >= 10), a // 10, b // 10
    return " ".join(columns)


def multiply_working(a: int, b: int) -> str:
    """Digit times digit, then the sum: '7*4=28 20*4=80 80+28: 0+8=8 8+2=10' for 27 * 4."""
    if a < 10:
        return f"{a}*{b}={a * b}"
    ones, tens = a % 10 * b, a // 10 * 10 * b
    return f"{a % 10}*{b}={ones} {a // 10 * 10}*{b}={tens} {tens}+{ones}: {add_working(tens, ones)}"


SUM = (
    *("What is {a} + {b}?", "{a} + {b} = ?", "{a}+{b}", "{a} + {b}", "Calculate {a} + {b}."),
    *("What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?"),
    *("How much is {a} + {b}?", "Compute {a} + {b}", "what is {a}+{b}", "{a} plus {b}?"),
    *("What's {a} + {b}?", "{a} + {b} =", "{a}+{b}=?", "How much do {a} and {b} make?"),
    *("What do you get if you add {b} to {a}?", "the sum of {a} and {b}", "Solve {a} + {b}."),
)
DIFFERENCE = (
    *("What is {a} - {b}?", "{a} - {b} = ?", "{a}-{b}", "{a} - {b}", "Calculate {a} - {b}."),
    *("What is {a} minus {b}?", "Subtract {b} from {a}.", "How much is {a} - {b}?"),
    *("What is the difference between {a} and {b}?", "Compute {a} - {b}", "what is {a}-{b}"),
    *("What's {a} - {b}?", "{a} - {b} =", "{a}-{b}=?", "What is {a} − {b}?", "Solve {a} - {b}."),
    *("Take {b} away from {a}.", "How much is {a} less {b}?", "{a} minus {b}?"),
)
PRODUCT = (
    *("What is {a} * {b}?", "{a} * {b} = ?", "{a}*{b}", "{a} x {b}", "Calculate {a} * {b}."),
    *("What is {a} times {b}?", "Multiply {a} by {b}.", "What is the product of {a} and {b}?"),
    *("How much is {a} × {b}?", "Compute {a} * {b}", "what is {a}*{b}", "What is {a} × {b}?"),
    *("What's {a} times {b}?", "{a} * {b} =", "{a}*{b}=?", "What is {a} x {b}?", "{a} times {b}"),
)
LARGER = (
    *("Which is larger, {a} or {b}?", "Which is bigger, {a} or {b}?", "Which number is greater: "),
    *("What is the larger of {a} and {b}?",),
)
STORY_ADD = (
    "{n} has {a} {t} and buys {b}. How many {t} does {n} have?",
    "{n} has {a} {t} and buys {b} more. How many {t} does {n} have now?",
    "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?",
    "{n} has {a} {t} and {m} has {b}. How many {t} do they have together?",
    "There are {a} {t} on the table and {b} in the bag. How many {t} are there?",
    "{n} finds {a} {t} today and {b} tomorrow. How many {t} is that?",
)
STORY_TAKE = (
    "{n} has {a} {t} and loses {b}. How many {t} are left?",
    "{n} has {a} {t}. {n} gives {b} to {m}. How many {t} does {n} have left?",
    "{n} had {a} {t} and sold {b} of them. How many {t} does {n} have now?",
    "There are {a} {t} in the box. {n} takes {b}. How many {t} are left in the box?",
)
STORY_TIMES = (
    "{n} has {b} {g} with {a} {t} each. How many {t} does {n} have?",
    "There are {b} {g} of {a} {t}. How many {t} are there in all?",
    "{n} buys {b} {g}. Each holds {a} {t}. How many {t} is that?",
)


def _pair(
    rng: random.Random, split: Split, sign: str, top_a: int, top_b: int, least: int = 0
) -> tuple[int, int]:
    """Two operands of the split, each with a random number of digits so short ones are common."""
    while True:
        a = rng.randint(least, rng.choice((9, 99, 99, top_a)) if top_a > 99 else top_a)
        b = rng.randint(least, min(top_b, rng.choice((9, 99, 99, top_b))))
        if held_out(sign, a, b) == (split == "test"):
            return a, b


def _sum(rng: random.Random, split: Split) -> Problem:
    a, b = _pair(rng, split, "+", 999, 999)
    question = rng.choice(SUM).format(a=a, b=b)
    return Problem("sum", question, str(a + b), add_working(a, b))


def _difference(rng: random.Random, split: Split) -> Problem:
    a, b = _pair(rng, split, "-", 999, 999)
    template = rng.choice(DIFFERENCE)
    if a < b and ("difference" in template or rng.random() < 0.8):
        a, b = b, a
    return Problem("difference", template.format(a=a, b=b), str(a - b), subtract_working(a, b))


def _product(rng: random.Random, split: Split) -> Problem:
    a, b = _factors(rng, split)
    first, second = (a, b) if rng.random() < 0.7 else (b, a)
    question = rng.choice(PRODUCT).format(a=first, b=second)
    return Problem("product", question, str(a * b), multiply_working(a, b))


def _factors(rng: random.Random, split: Split) -> tuple[int, int]:
    """Up to 99 times up to 9. The small table itself is always trained: it cannot be derived."""
    if split == "train" and rng.random() < 0.25:
        return rng.randint(0, 9), rng.randint(0, 9)
    while True:
        a, b = rng.randint(10, 99), rng.randint(2, 9)
        if held_out("*", a, b) == (split == "test"):
            return a, b


def _comparison(rng: random.Random, split: Split) -> Problem:
    a, b = _pair(rng, split, "<", 999, 999)
    if a == b:
        return _comparison(rng, split)
    if rng.random() < 0.5:
        word, yes = rng.choice((("greater", a > b), ("larger", a > b), ("less", a < b)))
        answer = "yes" if yes else "no"
        return Problem("comparison", f"Is {a} {word} than {b}?", answer, f"{a}{'<>'[a > b]}{b}")
    template = rng.choice(LARGER)
    question = template.format(a=a, b=b)
    if "{a}" not in template:
        question = f"{template}{a} or {b}?"
    return Problem("comparison", question, str(max(a, b)), f"{a}{'<>'[a > b]}{b}")


def _story(rng: random.Random, split: Split) -> Problem:
    n, m = rng.sample(NAMES, 2)
    words = {"n": n, "m": m, "t": rng.choice(THINGS), "g": rng.choice(GROUPS)}
    sign = rng.choice("+-*")
    if sign == "*":
        a, b = _factors(rng, split)
        text, answer, working = rng.choice(STORY_TIMES), a * b, multiply_working(a, b)
    else:
        a, b = _pair(rng, split, sign, 99, 99, least=1)
        a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
        answer = a + b if sign == "+" else a - b
        working = add_working(a, b) if sign == "+" else subtract_working(a, b)
        text = rng.choice(STORY_ADD if sign == "+" else STORY_TAKE)
    spoken = working if ":" in working else f"{a}{sign}{b}: {working}"
    return Problem("story", text.format(a=a, b=b, **words), str(answer), spoken)


MAKERS = dict(zip(KINDS, (_sum, _difference, _product, _comparison, _story)))


def problems(seed: int, split: Split, kinds: tuple[Kind, ...] = KINDS) -> Iterator[Problem]:
    """Endless problems of the given kinds, in equal shares on average, the same for one seed."""
    rng = random.Random(f"{seed}/{split}")
    while True:
        yield MAKERS[rng.choice(kinds)](rng, split)
