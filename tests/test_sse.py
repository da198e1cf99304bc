"""The event parser follows WHATWG's rules, whatever the cuts, and never raises but for its cap."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamoot.agents.sse import Event, EventParser, EventTooLong

pytestmark = pytest.mark.pure

PARTS = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b"data:  c ", b"data", b"data:", b": note", b":", b"event: x",
         b"event:", b"id: 7", b"retry: 10", b"other: y", b"\n", b"\n\n", b"\r", b"\r\n",
         b"\r\n\r\n", b"\xc3\xa9", b"\xff", b"\xe2\x80\xa8", b"error: no", b'{"a":1}', b" ",
         b"\xef\xbb\xbf", b"\x00"]
    ),
    max_size=40,
).map(b"".join)  # fmt: skip


def events(pieces: list[bytes]) -> list[Event]:
    parser = EventParser()
    out = [event for piece in pieces for event in parser.feed(piece)]
    return out + parser.finish()


def by_the_book(body: bytes) -> list[Event]:
    """The standard's algorithm on a whole stream, written as plainly as it reads."""
    out: list[Event] = []
    data: list[bytes] = []
    name = ""
    lines = re.split(rb"\r\n|\r|\n", body.removeprefix(b"\xef\xbb\xbf"))
    for line in [*lines, b""]:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if b"\n".join(data):
                out.append((name, b"\n".join(data)))
            data, name = [], ""
        elif field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"error":  # ours, not the standard's
            out.append(("error", value))
        elif line.lstrip()[:1] == b"{":  # ours
            out.append(("line", line))
    return out


@given(PARTS)
def test_events_are_those_of_the_standard(body: bytes) -> None:
    assert events([body]) == by_the_book(body)


@given(PARTS, st.lists(st.integers(0, 300), max_size=8))
def test_cuts_change_nothing(body: bytes, places: list[int]) -> None:
    cuts = sorted({0, len(body), *(p for p in places if p < len(body))})
    pieces = [body[a:b] for a, b in itertools.pairwise(cuts)]
    assert events(pieces) == events([body])
    assert events([body[i : i + 1] for i in range(len(body))]) == events([body])


@given(st.binary(max_size=300))
def test_no_bytes_raise(body: bytes) -> None:
    assert events([body]) == by_the_book(body)


def test_a_lone_cr_ends_a_line_at_once() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\r\r") == [("", b"a")]
    assert parser.feed(b"\ndata: b\r\n\r") == [("", b"b")]
    assert parser.feed(b"\n") == []


def test_two_blank_lines_are_not_two_events() -> None:
    assert events([b"data: a\r\n\r\n\r\ndata: b\r\n\r\n"]) == [("", b"a"), ("", b"b")]


@pytest.mark.parametrize("line", [b"x", b"data: x\n"])
def test_the_cap_holds_for_lines_and_for_events(line: bytes) -> None:
    parser = EventParser(limit=1000)
    with pytest.raises(EventTooLong):
        for _ in range(2000):
            parser.feed(line)
