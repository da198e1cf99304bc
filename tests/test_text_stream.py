"""Streaming: pieces join to the whole text, whole characters only, stop strings never shown."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamoot.gguf.reader import open_gguf
from llamoot.text.output import Delta, OutputParser
from llamoot.text.stream import StopStrings, TextStream
from llamoot.text.syntax import HERMES, PLAIN, ROWS, detect
from llamoot.text.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.pure
NAMES = ["qwen2", "llama-spm", "gpt-2", "deepseek-llm"]
TOOLS = [{"name": "weather", "parameters": {}}]


@cache
def opened(path) -> Tokenizer:  # type: ignore[no-untyped-def]
    with open_gguf(path) as file:
        return load_tokenizer(file.metadata, path)


def tokenizer_of(shared, name) -> Tokenizer:  # type: ignore[no-untyped-def]
    return opened(shared / "vocab" / f"ggml-vocab-{name}.gguf")


def cut(items, rng):  # type: ignore[no-untyped-def]
    """The items in order, in runs of random length."""
    at = 0
    while at < len(items):
        size = rng.randrange(1, 6)
        yield items[at : at + size]
        at += size


@settings(max_examples=120, deadline=None)
@given(text=st.text(max_size=80), seed=st.integers(0, 2**32))
@pytest.mark.parametrize("name", NAMES)
def test_streamed_pieces_join_to_the_decoded_text(shared, name, text, seed):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, name)
    ids = tokenizer.encode(text, add_special=False)
    stream = TextStream(tokenizer, after_special=True)
    pieces = [stream.feed(*run).text for run in cut(ids, random.Random(seed))]
    for piece in pieces:
        assert "\ufffd" not in piece or "\ufffd" in text, "half a character was shown"
    assert "".join(pieces) + stream.finish().text == tokenizer.decode(ids)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_random_ids_stream_to_what_their_bytes_say(shared, name, data):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
    ids = [i for i in ids if not tokenizer.is_control(i)]
    stream = TextStream(tokenizer)
    text = "".join(stream.feed(i).text for i in ids) + stream.finish().text
    assert text == b"".join(map(tokenizer.piece, ids)).decode("utf-8", "replace")


def test_an_incomplete_character_waits_and_ends_as_a_replacement(shared):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, "gpt-2")
    ids = tokenizer.encode("🚀", add_special=False)
    assert len(ids) > 1
    stream = TextStream(tokenizer)
    assert [stream.feed(i).text for i in ids] == [""] * (len(ids) - 1) + ["🚀"]
    stream = TextStream(tokenizer)
    assert stream.feed(*ids[:-1]).text == ""
    assert stream.finish().text == "\ufffd"


def test_control_tokens_are_not_shown_unless_the_family_marks_with_them(shared):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, "qwen2")
    ids = tokenizer.encode("a<|im_start|>b", add_special=False, parse_special=True)
    stream = TextStream(tokenizer, syntax=HERMES)
    assert stream.feed(*ids).text + stream.finish().text == "ab"


STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@settings(max_examples=400)
@given(text=st.text("ab\nc", max_size=30), stops=STOPS, seed=st.integers(0, 2**32))
def test_text_before_a_stop_is_shown_and_the_stop_is_not(text, stops, seed):  # type: ignore[no-untyped-def]
    stream = StopStrings(stops)
    shown = ""
    for piece in cut(text, random.Random(seed)):
        shown += stream.feed(piece)
        assert not any(stop in shown for stop in stops)
    shown += stream.finish()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (shown, stream.found) == (text, None)
    else:
        assert stream.found in stops
        assert text.startswith(shown + stream.found)
        assert not any(stop in shown for stop in stops)


def test_what_cannot_be_a_stop_is_shown_at_once():  # type: ignore[no-untyped-def]
    stream = StopStrings(["END", "\n\n"])
    assert [stream.feed(piece) for piece in ["a", "b E", "N", "x", "\n", "c"]] == [
        "a",
        "b ",
        "",
        "ENx",
        "",
        "\nc",
    ]


def test_stops_do_not_end_reasoning(shared):  # type: ignore[no-untyped-def]
    tokenizer = tokenizer_of(shared, "qwen2")
    syntax = detect("<think></think>")
    stream = TextStream(tokenizer, syntax=syntax, stop=["\n\n"])
    ids = tokenizer.encode("<think>one\n\ntwo</think>\n\nyes\n\nno", add_special=False)
    deltas = [stream.feed(i) for i in ids] + [stream.finish()]
    assert "".join(d.reasoning for d in deltas) == "one\n\ntwo"
    assert "".join(d.text for d in deltas) == "yes"
    assert stream.stopped == "\n\n"


MARKERS = sorted({marker for _, row in ROWS for marker in (*row.calls, *row.inner, *row.drop)})
SCRAPS = [
    *MARKERS,
    "<think>",
    "</think>",
    "</tool_call>",
    "{",
    "}",
    "[",
    '"name"',
    ": ",
    '"weather"',
]
SCRAPS += [
    '"arguments"',
    ",",
    "<function=",
    ">",
    "<parameter=",
    "text",
    "\n",
    "call:",
    "functions.",
]
SYNTAXES = [PLAIN, HERMES, *(row for _, row in ROWS), detect("<think><|python_tag|>")]


def merged(deltas: list[Delta]):  # type: ignore[no-untyped-def]
    calls: dict[int, list[str]] = {}
    for piece in (piece for delta in deltas for piece in delta.tools):
        found = calls.setdefault(piece.index, ["", ""])
        found[0] += piece.name
        found[1] += piece.arguments
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), calls


@settings(max_examples=300, deadline=None)
@given(
    scraps=st.lists(st.sampled_from(SCRAPS), max_size=25),
    syntax=st.sampled_from(SYNTAXES),
    seed=st.integers(0, 2**32),
)
def test_any_output_gives_the_same_in_pieces_of_any_size(scraps, syntax, seed):  # type: ignore[no-untyped-def]
    text = "".join(scraps)
    whole = OutputParser(syntax, TOOLS)
    want = merged([whole.feed(text), whole.finish()])
    for pieces in ([*text], [*cut(text, random.Random(seed))]):
        parser = OutputParser(syntax, TOOLS)
        assert merged([*map(parser.feed, pieces), parser.finish()]) == want


@settings(max_examples=300)
@given(st.lists(st.sampled_from(SCRAPS), max_size=25).map("".join))
def test_without_markers_of_a_family_every_text_passes_unchanged(text):  # type: ignore[no-untyped-def]
    parser = OutputParser(PLAIN, TOOLS)
    assert "".join(parser.feed(char).text for char in text) + parser.finish().text == text
    parser = OutputParser(HERMES)  # no tools offered: nothing is a call
    assert "".join(parser.feed(char).text for char in text) + parser.finish().text == text


def test_a_call_that_is_none_is_given_out_as_text():  # type: ignore[no-untyped-def]
    for text in (
        "<tool_call>\nnot json at all",
        '<tool_call>{"name": ',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>[1, 2]</tool_call> after",
    ):
        parser = OutputParser(HERMES, TOOLS)
        deltas = [*map(parser.feed, text), parser.finish()]
        assert merged(deltas) == (text, "", {})


def test_arguments_stream_before_the_call_is_complete():  # type: ignore[no-untyped-def]
    parser = OutputParser(HERMES, TOOLS)
    first = parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "Zür')
    assert [(p.name, p.arguments) for p in first.tools] == [("weather", '{"city": "Zür')]
    assert parser.feed('ich"}').tools[0].arguments == 'ich"}'
