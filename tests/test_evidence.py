"""The statistics behind `bench council`, against cases worked by hand and simulation."""

import random
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamoot.council.evidence import Outcome, mcnemar, paired, row, wilson
from llamoot.council.problems import KINDS, held_out, problems

pytestmark = pytest.mark.pure


def outcomes(pattern: str) -> list[Outcome]:
    return [Outcome(c == "+", c != "?", 10, 0.1) for c in pattern]


def test_mcnemar_is_the_exact_binomial() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar(3, 3) == 1.0


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_does_not_depend_on_who_is_called_first(a: int, b: int) -> None:
    assert mcnemar(a, b) == mcnemar(b, a)
    assert 0 < mcnemar(a, b) <= 1


def test_no_difference_is_called_no_evidence() -> None:
    same = row("vote", outcomes("++-+"), "single", outcomes("++-+"))
    assert same.finding == "no evidence of benefit" and same.p == 1.0


def test_a_clear_gain_and_a_clear_loss_are_named() -> None:
    better = row("vote", outcomes("+" * 20), "single", outcomes("-" * 12 + "+" * 8))
    assert (better.gained, better.lost, better.finding) == (12, 0, "better")
    worse = row("vote", outcomes("-" * 12 + "+" * 8), "single", outcomes("+" * 20))
    assert worse.finding == "worse" and worse.difference == pytest.approx(-0.6)


def test_unreadable_answers_are_wrong_and_counted() -> None:
    found = row("vote", outcomes("+??-"))
    assert found.right == 1 and found.unreadable == 2


def test_the_paired_interval_covers_the_truth_about_19_times_in_20() -> None:
    rng, covered = random.Random(1), 0
    for _ in range(400):
        pairs = [(rng.random() < 0.15, rng.random() < 0.05) for _ in range(200)]
        gained = sum(a and not b for a, b in pairs)
        lost = sum(b and not a for a, b in pairs)
        _, low, high = paired(gained, lost, 200)
        covered += low <= 0.15 * 0.95 - 0.05 * 0.85 <= high
    assert covered / 400 > 0.92


def test_wilson_stays_inside_zero_and_one() -> None:
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == pytest.approx(1.0)
    low, high = wilson(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-3) and high == pytest.approx(0.5962, abs=1e-3)


def test_problems_are_right_and_training_never_sees_the_held_out() -> None:
    for split in ("train", "test"):
        for problem in islice(problems(3, split), 2000):
            if problem.kind in ("sum", "difference"):
                plain = problem.question.replace("−", "-")
                numbers = [
                    int(w) for w in "".join(c if c.isdigit() else " " for c in plain).split()
                ]
                expected = sum(numbers) if problem.kind == "sum" else None
                if expected is not None:
                    assert problem.answer == str(expected)
                    assert held_out("+", *numbers) == (split == "test")


def test_the_same_seed_makes_the_same_problems_of_every_kind() -> None:
    first = list(islice(problems(5, "test"), 300))
    assert first == list(islice(problems(5, "test"), 300))
    assert {p.kind for p in first} == set(KINDS)
    assert first != list(islice(problems(6, "test"), 300))
