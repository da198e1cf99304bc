"""Every odd or broken answer gives the right text, or a typed error that keeps the text so far.

Each row of `wire_rows.ROWS` goes over a real socket as given and in small pieces, and through the
same `Incoming` cut at every byte. Run with -s to see what the `openai` package makes of the rows.
"""

import asyncio
import random
from collections.abc import Iterable

import pytest

from llamoot.agents.accumulate import Incoming
from llamoot.agents.http import OpenAIAgent
from llamoot.agents.misbehave import MisbehavingServer
from llamoot.agents.types import ChatRequest, ChatToken, Message
from llamoot.errors import AgentError
from wire_rows import ROWS, Row, Want

pytestmark = pytest.mark.pure
ASK = ChatRequest(messages=(Message("user", "Hi"),))
NAMES = [f"{row.number}-{row.name}" for row in ROWS]


def summed(tokens: Iterable[ChatToken], error: AgentError | None) -> Want:
    """What came, in the form in which it is wanted."""
    tokens = list(tokens)
    calls: dict[int, list[str]] = {}
    for piece in (piece for token in tokens for piece in token.tools):
        row = calls.setdefault(piece.index, ["", "", ""])
        row[0], row[1] = row[0] or piece.id, row[1] or piece.name
        row[2] += piece.arguments
    finishes = [token.finish_reason for token in tokens if token.finish_reason]
    assert len(finishes) == (error is None), "exactly one end"
    assert error is not None or tokens[-1].finish_reason, "nothing follows the end"
    usage = tokens[-1].usage if tokens else None
    text = "".join(token.text for token in tokens)
    if error is not None:
        assert error.partial == text, "the error keeps the text"
    return Want(
        text=text,
        finish=finishes[0] if finishes else "",
        reasoning="".join(token.reasoning for token in tokens),
        refusal="".join(token.refusal for token in tokens),
        calls=tuple((r[0], r[1], r[2]) for r in calls.values()),
        completion_tokens=usage.completion_tokens if usage else None,
        error=type(error).__name__ if error else "",
        says=str(error) if error else "",
    )


def same(got: Want, want: Want) -> None:
    assert got.error == want.error, got
    assert want.says in got.says
    assert got.text == want.text
    if not want.error:
        assert (got.finish, got.reasoning, got.refusal) == (
            want.finish,
            want.reasoning,
            want.refusal,
        )
        assert got.calls == want.calls
        if want.completion_tokens is not None:
            assert got.completion_tokens == want.completion_tokens


async def ask(url: str) -> Want:
    agent = OpenAIAgent("A", "m", url, key="sk-0123456789abcdef", retries=0)
    tokens: list[ChatToken] = []
    try:
        async for token in agent.chat(ASK):
            tokens.append(token)
    except AgentError as error:
        return summed(tokens, error)
    finally:
        await agent.close()
    return summed(tokens, None)


def over_socket(row: Row, **more: object) -> Want:
    async def run() -> Want:
        async with MisbehavingServer(row.play(**more)) as server:
            return await asyncio.wait_for(ask(server.url), 20)

    return asyncio.run(run())


def cut(body: bytes, places: Iterable[int]) -> Want:
    """Through the parser and accumulator that the socket path uses, cut at `places`."""
    got, start, tokens = Incoming("A"), 0, []
    for place in [*sorted(places), len(body)]:
        if place > start:
            tokens += got.feed(body[start:place])
            start = place
    tokens += got.end()
    if got.failure is None:
        tokens.append(got.last())
    return summed(tokens, got.failure)


def test_all_73_rows_are_here() -> None:
    assert {row.number for row in ROWS} == set(range(1, 74))


@pytest.mark.parametrize("row", ROWS, ids=NAMES)
def test_row_over_a_real_socket(row: Row) -> None:
    same(over_socket(row), row.want)


@pytest.mark.parametrize("row", [r for r in ROWS if len(r.body) < 9000], ids=lambda r: r.name)
@pytest.mark.parametrize("drip", [1, 7])
def test_row_over_a_real_socket_in_small_pieces(row: Row, drip: int) -> None:
    if "body" in row.act:
        pytest.skip("this row is about its own pieces")
    same(over_socket(row, drip=drip), row.want)


PLAIN = [row for row in ROWS if not {"status", "headers", "end", "body"} & set(row.act)]


@pytest.mark.parametrize("row", PLAIN, ids=lambda r: f"{r.number}-{r.name}")
def test_row_cut_at_every_byte(row: Row) -> None:
    body, whole = row.body, cut(row.body, ())
    same(whole, row.want)
    if len(body) < 9000:
        for place in range(1, len(body)):
            assert cut(body, (place,)) == whole
        assert cut(body, range(len(body))) == whole
    chance = random.Random(row.number)
    for _ in range(20 if len(body) < 9000 else 5):
        most = min(len(body), 200)
        assert cut(body, chance.sample(range(len(body) + 1), most)) == whole


def test_a_stream_cut_at_byte_k_and_closed_is_never_taken_for_an_answer() -> None:
    from wire_rows import GOOD, STOP, event

    finished = GOOD.index(event(STOP)) + len(event(STOP)) - 2
    for k in range(len(GOOD)):
        got = cut(GOOD[:k], ())
        assert bool(got.error) == (k < finished), k
        assert "Hello".startswith(got.text)


def test_what_openai_makes_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints a table; keeps that this package is right where `openai` is wrong."""
    openai = pytest.importorskip("openai", reason="the openai package is not installed")

    async def theirs(url: str) -> str:
        client = openai.AsyncOpenAI(base_url=url, api_key="sk-x", max_retries=0, timeout=10)
        text = reason = ""
        try:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            async for part in stream:
                for one in (part and part.choices) or ():
                    if not one.index and one.delta is not None:
                        text += one.delta.content or ""
                    reason = one.finish_reason or reason
        except Exception as error:  # whatever it raises is the finding
            return f"ERR {type(error).__name__}"
        finally:
            await client.close()
        return f"{text[:20]!r} {reason}"

    async def run() -> list[tuple[Row, str]]:
        out = []
        for row in ROWS:
            async with MisbehavingServer(row.play()) as server:
                out.append((row, await theirs(server.url)))
        return out

    wrong = []
    for row, got in asyncio.run(run()):
        want = f"{row.want.text[:20]!r} "
        full = got.startswith(want) and got != want  # the text, and some finish reason
        right = got.startswith("ERR") if row.want.error else full
        if not right and not row.want.calls and not row.want.reasoning:
            wrong.append(f"  {row.number:3} {row.name:28} got {got}")
    with capsys.disabled():
        print(f"\nopenai {openai.__version__} is wrong on {len(wrong)} of {len(ROWS)} inputs:")
        print("\n".join(wrong))
    assert len(wrong) > 10
