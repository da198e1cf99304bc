"""Kinds of answers, canonical forms, votes and rankings."""

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamoot.agents.types import Format, Message
from llamoot.council.answers import Kind, canonical, detect, surface
from llamoot.council.ballots import borda, copeland, read_ranking, tally, unassailable, winners
from llamoot.council.flow import Reply, Round, Seat
from llamoot.council.measures import smallest_cosine, smallest_overlap
from llamoot.council.protocols import Case, vote

pytestmark = pytest.mark.pure

CITIES = (("A", "Paris"), ("B", "Lyon"), ("C", "Nice"))
KINDS = [Kind(name) for name in ("number", "boolean", "span", "json", "code", "text")]
KINDS += [Kind("choice", CITIES), Kind("choice")]

NUMBERS = [
    ("1,234.5", "1234.5"), ("1.234,5", "1234.5"), ("1 234,5", "1234.5"), ("1'234.5", "1234.5"),
    ("1,234", "1234"), ("1.234", "1.234"), ("1.234.567", "1234567"), ("1,234,567", "1234567"),
    ("0,123", "0.123"), ("1,5", "1.5"), ("½", "0.5"), ("2 ½", "2.5"), ("1 1/2", "1.5"),
    ("3/4", "0.75"), ("1/3", "1/3"), ("12 %", "12%"), ("12%", "12%"), ("12 percent", "12%"),
    ("−3", "-3"), ("-3", "-3"), ("+3", "3"), ("3.0", "3"), ("007", "7"), ("5 km", "5000 m"),
    ("5,000 m", "5000 m"), ("2 h", "7200 s"), ("$5", "5 $"), ("5 dollars", "5 $"),
    ("75 apples", "75"), ("6.02e3", "6020"), ("6.02 × 10^3", "6020"), ("seventy-five", "75"),
    ("twelve", "12"), ("27 + 48 = 75", "75"), ("The answer is 75 because 27 + 48.", "75"),
    ("First 27, then 48.\n\n75", "75"), ("\\boxed{75}", "75"), ("so **75** it is, not 74", "75"),
    ("#### 75", "75"), ("Answer: 17 + 25 = 42", "42"), ("x", None), ("", None), ("1/0", None),
    ("It is not 5", None), ("the answer is not 5, it is 6", "6"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "form"), NUMBERS)
def test_numbers_have_one_canonical_form(text: str, form: str | None) -> None:
    assert canonical(text, Kind("number")) == form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B) Lyon", "B"), ("Answer: B", "B"),
        ("The answer is B.", "B"), ("It is not A, it is B", "B"), ("Lyon", "B"),
        ("I think A good option is C", "C"), ("A and B", None), ("It is Lyon, not Nice.", "B"),
        ("Some thought.\n\nC", "C"), ("none of these", None),
    ],
)  # fmt: skip
def test_choices_are_read_from_letters_or_texts(text: str, form: str | None) -> None:
    assert canonical(text, Kind("choice", CITIES)) == form


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Yes", "yes"), ("No.", "no"), ("True", "yes"), ("FALSE", "no"),
        ("This is not a failure", "yes"), ("That is not true", "no"), ("It isn't correct", "no"),
        ("never wrong", "yes"), ("no doubt, yes", "yes"), ("Thinking…\nno", "no"), ("maybe", None),
    ],
)  # fmt: skip
def test_negated_words_turn_the_verdict(text: str, form: str | None) -> None:
    assert canonical(text, Kind("boolean")) == form


def test_json_agrees_whatever_the_order_of_its_keys() -> None:
    kind = Kind("json")
    one = canonical('```json\n{"b": 1.0, "a": [2]}\n```', kind)
    assert one == canonical('Here: {"a":[2],"b":1}', kind) == '{"a":[2],"b":1}'
    assert canonical("{broken", kind) is None
    assert canonical("[" * 5000, kind) is None


def test_spans_agree_despite_case_article_and_marks() -> None:
    kind = Kind("span")
    forms = {canonical(t, kind) for t in ("The Eiffel Tower.", "eiffel tower", "**Eiffel Tower**")}
    assert forms == {"eiffel tower"}


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("What is 17 + 25? Answer with a number.", "number"), ("Multiply 45 by 7.", "number"),
        ("49 x 9", "number"), ("Tom has 12 apples and buys 7. How many?", "number"),
        ("Which is larger, 5 or 57?", "number"), ("Is 9 greater than 57?", "boolean"),
        ("Is the sea salty? yes or no", "boolean"), ("Which? A) Paris B) Lyon C) Nice", "choice"),
        ("Who wrote Faust?", "span"), ("Return JSON with a and b", "json"),
        ("Write a Python function that sorts", "code"), ("Explain why 3 + 4 is 7", "text"),
        ("Is rust a good language?", "text"), ("Tell me a story", "text"),
    ],
)  # fmt: skip
def test_the_kind_follows_from_the_question(question: str, name: str) -> None:
    assert detect(question).name == name


def test_a_format_settles_the_kind() -> None:
    assert detect("anything", Format("schema", {})).name == "json"
    assert detect("anything", Format("choice", ["x", "y"])).options == (("x", "x"), ("y", "y"))


def test_what_is_shown_is_the_answer_as_it_was_written() -> None:
    assert surface("27 + 48 = 75", Kind("number")) == "75"
    assert surface("about 1,234.5 in all", Kind("number")) == "1,234.5"
    assert surface("nothing here", Kind("number")) == "nothing here"


HOSTILE = [
    "1 " * 100_000, "not " * 100_000, "is 1" + "1" * 400_000, "**" * 100_000, "A) " + " " * 300_000,
    "answer: " * 50_000, "```\n" * 100_000, "[" * 200_000, "1,1" * 100_000, "A B " * 100_000,
    "\\boxed{" * 50_000, "yes no " * 50_000, "a" * 2_000_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_no_text_however_long_takes_long(text: str) -> None:
    began = time.process_time()
    detect(text)
    for kind in KINDS:
        canonical(text, kind)
        surface(text, kind)
    read_ranking(text, ["A", "B", "C"])
    assert time.process_time() - began < 5.0


NUMERIC = st.text(alphabet="0123456789.,-−+/½%eE ×^*=$ kmshg°\n'", max_size=24)


@settings(max_examples=400, deadline=None)
@given(text=st.one_of(st.text(max_size=60), NUMERIC), kind=st.sampled_from(KINDS))
def test_canonical_form_is_idempotent(text: str, kind: Kind) -> None:
    form = canonical(text, kind)
    assert form is None or canonical(form, kind) == form


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=80), kind=st.sampled_from(KINDS))
def test_no_bytes_make_an_answer_raise(raw: bytes, kind: Kind) -> None:
    text = raw.decode("utf-8", "surrogateescape")
    canonical(text, kind)
    surface(text, kind)


@given(value=st.integers(-(10**12), 10**12), places=st.integers(0, 4), sep=st.sampled_from(",.' _"))
def test_grouping_does_not_change_a_number(value: int, places: int, sep: str) -> None:
    point = "." if sep != "." else ","
    whole, digits = abs(value) // 10**places, f"{abs(value) % 10**places:0{places}d}"
    grouped = f"{whole:,}".replace(",", sep)
    if places and (sep in ",." or len(digits) != 3):
        grouped += point + digits
    elif places:
        return
    elif sep == "." and grouped.count(".") == 1:
        return  # 1.234 is read as a decimal number: the documented rule
    sign = "-" if value < 0 else ""
    plain = canonical(f"{sign}{whole}" + (f".{digits}" if places else ""), Kind("number"))
    if sep in ",." and places and grouped.count(sep) == 0:
        return  # without a group there is only one mark, which follows the rule for one mark
    assert canonical(sign + grouped, Kind("number")) == plain


VOTES = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.1, 5.0)), max_size=9)


@given(votes=VOTES, seed=st.integers(0, 999))
def test_votes_are_anonymous_and_neutral(votes: list[tuple[str, float]], seed: int) -> None:
    mixed = list(votes)
    random.Random(seed).shuffle(mixed)
    assert winners(tally(mixed)) == winners(tally(votes))
    names = dict(zip("abcd", random.Random(seed).sample("wxyz", 4)))
    renamed = winners(tally((names[c], w) for c, w in votes))
    assert renamed == sorted(names[c] for c in winners(tally(votes)))


RANKINGS = st.lists(st.permutations("abcd").map(lambda p: tuple((c,) for c in p)), max_size=6)


@given(rankings=RANKINGS, seed=st.integers(0, 999), cut=st.integers(1, 4))
def test_rankings_are_anonymous_and_neutral(rankings: list[Any], seed: int, cut: int) -> None:
    ballots = [(r[:cut], frozenset("abcd")) for r in rankings]
    mixed = list(ballots)
    random.Random(seed).shuffle(mixed)
    names = dict(zip("abcd", random.Random(seed).sample("wxyz", 4)))
    renamed = [
        (tuple(tuple(names[c] for c in g) for g in r), frozenset(names.values()))
        for r, _ in ballots
    ]
    for rule in (borda, copeland):
        scores = rule(ballots)
        assert rule(mixed) == pytest.approx(scores)
        assert rule(renamed) == pytest.approx({names[c]: s for c, s in scores.items()})


def test_borda_and_copeland_agree_with_a_worked_example() -> None:
    rank = [(("a",), ("b",), ("c",))] * 3 + [(("b",), ("c",), ("a",))] * 2
    ballots = [(r, frozenset("abc")) for r in rank]
    assert borda(ballots) == pytest.approx({"a": 0.6, "b": 0.7, "c": 0.2})
    assert copeland(ballots) == {"a": 2.0, "b": 0.0, "c": -2.0}


@settings(max_examples=400, deadline=None)
@given(
    raw=st.one_of(st.binary(max_size=120), st.text(max_size=120).map(str.encode)),
    count=st.integers(0, 30),
)
def test_a_ballot_of_any_bytes_never_raises(raw: bytes, count: int) -> None:
    names = [chr(65 + i % 26) * (1 + i // 26) for i in range(count)]
    ranking, problems = read_ranking(raw, names)
    flat = [name for group in ranking for name in group]
    assert len(flat) == len(set(flat)) and set(flat) <= set(names)
    assert ranking or problems


@pytest.mark.parametrize(
    ("text", "ranking"),
    [
        ('{"ranking": ["B", "A", "C"]}', (("B",), ("A",), ("C",))),
        ('Sure! {"ranking": [["B", "C"], "A"]} is my view', (("B", "C"), ("A",))),
        ('["C", "c", "C"]', (("C",),)),
        ('{"ranking": ["Answer B", "Z"]}', (("B",),)),
        ('{"scores": {"A": "7", "B": 9, "C": "NaN"}}', (("B",), ("A",))),
        ('{"scores": {"A": NaN, "B": 9}}', ()),
        ("I say B > A = C", (("B",), ("A", "C"))),
        ("1. Response C\n2. Response A", (("C",), ("A",))),
        ("no idea", ()),
        ("", ()),
        ('{"ranking": []}', ()),
    ],
)
def test_ballots_are_read_as_meant(text: str, ranking: Any) -> None:
    assert read_ranking(text, ["A", "B", "C"])[0] == ranking


def test_twenty_seventh_member_has_a_label_of_its_own() -> None:
    text = '{"ranking": ["AA", "A"]}'
    names = [chr(65 + i) for i in range(26)] + ["AA"]
    assert read_ranking(text, names)[0] == (("AA",), ("A",))


@settings(max_examples=200, deadline=None)
@given(
    answers=st.lists(st.sampled_from(["1", "2", "3", "?"]), min_size=1, max_size=7),
    order=st.randoms(use_true_random=False),
    logprobs=st.lists(st.one_of(st.none(), st.floats(0.01, 1.0)), min_size=7, max_size=7),
)
def test_early_stop_never_changes_the_outcome(
    answers: list[str], order: random.Random, logprobs: list[float | None]
) -> None:
    seats = tuple(Seat(chr(65 + i)) for i in range(len(answers)))
    case = Case((Message("user", "how many?"),), seats, seats, Kind("number"))
    replies = [Reply(s.label, a, "ok", c) for s, a, c in zip(seats, answers, logprobs)]
    full = _outcome(case, replies)
    order.shuffle(replies)
    flow = vote(case)
    round = next(flow)
    assert isinstance(round, Round) and round.settled is not None
    for count in range(len(replies) + 1):
        if round.settled(replies[:count]):
            early = replies[:count] + [Reply(r.seat, "", "cancelled") for r in replies[count:]]
            early.sort(key=lambda reply: reply.seat)
            assert canonical(_outcome(case, early), case.kind) == canonical(full, case.kind)


def _outcome(case: Case, replies: list[Reply]) -> str:
    flow = vote(case)
    next(flow)
    step: Any = sorted(replies, key=lambda reply: reply.seat)
    while True:
        try:
            flow.send(step)
        except StopIteration as end:
            return str(end.value.text)
        step = None


def test_a_leader_is_unassailable_only_beyond_the_open_votes() -> None:
    assert unassailable({"x": 3.0, "y": 1.0}, 1.9) == "x"
    assert unassailable({"x": 3.0, "y": 1.0}, 2.0) is None
    assert unassailable({}, 0.0) is None


def test_likeness_is_that_of_the_worst_pair_and_sees_denial() -> None:
    assert smallest_cosine([[1, 0], [1, 0], [0, 1]]) == 0.0
    assert smallest_cosine([[0, 0], [1, 0]]) == 0.0
    assert smallest_cosine([[1, 2]]) == 1.0
    same = smallest_overlap(["the cat sat here", "the cat sat here"])
    denied = smallest_overlap(["the cat sat here", "the cat never sat here"])
    assert same == pytest.approx(1.0) and denied < 0.6
