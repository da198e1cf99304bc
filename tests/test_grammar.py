"""Constrained output: whatever the logits say, what comes out has the shape that was asked for."""

import json
import random
import re
from typing import Any

import numpy as np
import pytest

from llamoot.engine.grammar import Grammar, Vocabulary
from llamoot.engine.sampler import Params, Sampler
from llamoot.errors import BadRequest

pytestmark = pytest.mark.pure

EOS = 300


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """Every byte, some words, and a token that ends the answer."""
    words = ['"', "true", "false", '":', '", "', "the", " a", "12", "é", "{}", "[]", "null", "ab"]
    pieces = [bytes([i]) for i in range(256)] + [w.encode() for w in words]
    pieces += [b"?"] * (EOS - len(pieces)) + [b"</s>"]
    return Vocabulary(pieces, [EOS], [EOS])


def write(grammar: Grammar, vocabulary: Vocabulary, seed: int, most: int = 4000) -> str:
    """What a model with random weights answers under the grammar."""
    rng, sampler, ids = np.random.default_rng(seed), Sampler(Params(seed=seed)), list[int]()
    while len(ids) < most:
        grammar.start_mask()
        logits = rng.normal(size=320).astype(np.float32) * 3
        token = sampler.choose(logits, ids, grammar.mask()).id
        ids.append(token)
        grammar.accept(token)
        if token == EOS or grammar.is_complete():
            break
    return b"".join(vocabulary.pieces[i] for i in ids if i != EOS).decode()


def a_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema whose answers cannot grow for ever."""
    kinds = ["string", "integer", "boolean", "enum", "null", "number", "pattern"]
    kind = rng.choice(kinds if depth > 2 else [*kinds, "object", "object", "array", "anyOf"])
    match kind:
        case "object":
            names = rng.sample(["a", "name", "é", "x y", "value"], rng.randint(0, 3))
            return {
                "type": "object",
                "properties": {name: a_schema(rng, depth + 1) for name in names},
                "required": [name for name in names if rng.random() < 0.7],
                "additionalProperties": False,
            }
        case "array":
            items, most = a_schema(rng, depth + 1), rng.randint(0, 3)
            return {"type": "array", "items": items, "maxItems": most}
        case "anyOf":
            return {"anyOf": [a_schema(rng, depth + 1) for _ in range(2)]}
        case "enum":
            return {"enum": rng.sample([1, "two", None, True, 2.5], 2)}
        case "string":
            return {"type": "string", "maxLength": rng.randint(0, 12)}
        case "pattern":
            return {"type": "string", "pattern": "^[a-f]{2,5}$"}
        case "integer":
            return {"type": "integer", "minimum": 0, "maximum": 10 ** rng.randint(1, 9)}
        case "number":
            return {"type": "number", "minimum": 0, "maximum": 8}
    return {"type": kind}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    match schema["type"]:
        case "object":
            known = schema["properties"]
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(known)
                and all(fits(v, known[k]) for k, v in value.items())
            )
        case "array":
            inner = (
                [fits(v, schema["items"]) for v in value] if isinstance(value, list) else [False]
            )
            return all(inner) and len(inner) <= schema["maxItems"]
        case "string":
            whole = isinstance(value, str) and re.search(schema.get("pattern", ""), value)
            return bool(whole) and len(value) <= schema.get("maxLength", 99)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
    low, high = schema["minimum"], schema["maximum"]
    return isinstance(value, int if schema["type"] == "integer" else int | float) and (
        low <= value <= high
    )


def test_200_schemas_are_answered_with_json_that_fits(vocabulary: Vocabulary) -> None:
    for seed in range(200):
        schema = a_schema(random.Random(seed))
        text = write(Grammar(vocabulary, "schema", schema, 320), vocabulary, seed)
        assert fits(json.loads(text), schema), (schema, text)


def a_regex(rng: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(rng.randint(1, 3)):
        atom = rng.choice(["a", "the", "[a-z]", "[0-9]", "é", "[^x]", r"\.", "x|y", "(?:ab|c)"])
        if depth < 2 and rng.random() < 0.4:
            atom = a_regex(rng, depth + 1)
        parts.append(f"(?:{atom})" + rng.choice(["", "", "?", "{2}", "{1,4}"]))
    return "".join(parts)


def test_200_expressions_are_answered_with_matches(vocabulary: Vocabulary) -> None:
    for seed in range(200):
        regex = a_regex(random.Random(seed))
        text = write(Grammar(vocabulary, "regex", regex, 320), vocabulary, seed)
        assert re.fullmatch(regex, text, re.DOTALL), (regex, text)


def test_choices_gbnf_and_lark_are_kept(vocabulary: Vocabulary) -> None:
    options = ["yes", "no", 'say "so"', "é\n", "the"]
    for seed in range(20):
        choice = Grammar(vocabulary, "choice", options, 320)
        assert write(choice, vocabulary, seed) in options
        gbnf = 'root ::= word (" " word)? "."\nword ::= [a-c]+ | "the"'
        text = write(Grammar(vocabulary, "grammar", gbnf, 320), vocabulary, seed)
        assert re.fullmatch(r"(?:[a-c]+|the)(?: (?:[a-c]+|the))?\.", text)
        lark = 'start: "[" /[0-9]{1,3}/ "]"'
        text = write(Grammar(vocabulary, "grammar", lark, 320), vocabulary, seed)
        assert re.fullmatch(r"\[\d{1,3}\]", text)


def test_any_json_object_ends_in_time(vocabulary: Vocabulary) -> None:
    grammar = Grammar(vocabulary, "json", None, 320)
    for byte in b'{\n  "a": 1':
        assert grammar.mask()[byte]
        grammar.accept(byte)
    assert not grammar.mask()[ord("x")] and grammar.mask()[ord("}")]


def test_a_constraint_waits_for_the_end_of_reasoning(vocabulary: Vocabulary) -> None:
    grammar = Grammar(vocabulary, "choice", ["ab"], 320, after=b"</think>")
    for byte in b"Let me see. <think> is no end </thin":
        assert grammar.mask() is None
        grammar.accept(byte)
    for byte in b"k>":
        assert grammar.mask() is None and not grammar.is_complete()
        grammar.accept(byte)
    mask = grammar.mask()
    assert mask is not None
    assert {vocabulary.pieces[i] for i in np.flatnonzero(mask)} <= {b"a", b"ab"}


def test_an_answer_may_begin_with_reasoning_where_the_model_likes(vocabulary: Vocabulary) -> None:
    think = 299
    silent = Grammar(vocabulary, "choice", ["yes"], 320, after=b"</think>", unless=think)
    mask = silent.mask()
    assert mask is not None and mask[think] and mask[ord("y")] and not mask[ord("n")]
    silent.accept(ord("y"))
    mask = silent.mask()
    assert mask is not None and not mask[think] and mask[ord("e")]
    loud = Grammar(vocabulary, "choice", ["yes"], 320, after=b"</think>", unless=think)
    loud.accept(think)
    for byte in b"well, no</think>":
        assert loud.mask() is None
        loud.accept(byte)
    mask = loud.mask()
    assert mask is not None and mask[ord("y")] and not mask[think]


def test_the_mask_covers_logits_that_are_wider_than_the_vocabulary(vocabulary: Vocabulary) -> None:
    mask = Grammar(vocabulary, "regex", ".*", 512).mask()
    assert mask is not None and mask.shape == (512,) and not mask[EOS + 1 :].any()


@pytest.mark.parametrize(
    ("kind", "value"),
    [("regex", "(("), ("schema", {"type": "colour"}), ("grammar", "root ::= ("), ("choice", 7)],
)
def test_a_broken_constraint_is_the_callers_error(
    vocabulary: Vocabulary, kind: str, value: Any
) -> None:
    with pytest.raises(BadRequest, match=f"the {kind} constraint"):
        Grammar(vocabulary, kind, value, 320)
