"""Events, the store, resume, replay: a run is its events, and nothing of it is lost."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from councils import OPEN, SUM, by_stage, play, scripted, seat, stage_of
from llamoot.agents.misbehave import Act, MisbehavingServer, Received, answer
from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import ChatRequest, Message
from llamoot.council.council import Council
from llamoot.council.events import Event, SynthesisToken, Token, decode, encode
from llamoot.council.folds import Transcript
from llamoot.council.panel import Place
from llamoot.council.store import Store
from llamoot.errors import BadRequest, CouncilFailed, LlamootError, Transport

pytestmark = pytest.mark.pure

# A process that forks a child per line it is told: "RUN STOP". The child plays or resumes a debate
# of five remote agents and kills itself with SIGKILL right after event number STOP.
SCRIPT = """
import asyncio, os, signal, sys
from llamoot.agents.catalog import open_agent
from llamoot.agents.types import AgentSpec
from llamoot.council.calls import Rules
from llamoot.council.council import Council
from llamoot.council.panel import Panel, Place
from llamoot.council.store import Store

base_url, folder = sys.argv[1:]

async def main(run_id, stop, path):
    places = tuple(
        Place(label=n, spec=AgentSpec(id=n, model=n, base_url=base_url)) for n in "ABCDE"
    )
    panel = Panel(
        name="five", places=places, chairs=tuple("EABCD"), protocol="debate",
        min_rounds=2, max_rounds=2, rules=Rules(quorum=5, deadline=30.0), seed=1,
    )
    store = Store(path)
    council = Council(panel, open_agent, store=store)
    seen = 0
    def listener(event):
        nonlocal seen
        seen += 1
        if seen == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    if run_id == "new":
        run = council.start("What colour is it? Explain.", listener=listener)
    else:
        run = council.resume(run_id, listener)
    done = await run.wait()
    await council.close()
    return 0 if done.text == "Blue." else 1

for line in sys.stdin:
    run_id, stop, path = line.split()
    child = os.fork()
    if not child:
        os._exit(asyncio.run(main(run_id, int(stop), path)))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
DRAFTS = {"A": "it is red", "B": "it is blue", "C": "it is pink", "D": "blue", "E": "a blue one"}


def said(request: Received) -> Act:
    """The server's answer: by model and stage, each model a little slower than the last."""
    seat, stage = asked(request)
    text = {"draft": DRAFTS[seat], "revise": f"{seat} says blue", "synthesis": "Blue."}[stage]
    return Act(body=answer(text), before=0.003 * (ord(seat) - 64))


def asked(request: Received) -> tuple[str, str]:
    body = request.json()
    messages = tuple(Message("user", m["content"]) for m in body["messages"])
    return body["model"], stage_of(ChatRequest(messages=messages))


def recorded(path: Path) -> list[Event]:
    store = Store(path)
    events = list(store.events(store.find("last").id))
    store.close()
    return events


def test_kill_after_every_event_then_resume_gives_the_same_answer(tmp_path: Path) -> None:
    """SIGKILL right after each event that matters of a five-agent, two-round debate; the calls
    are counted at the server."""
    script = tmp_path / "zygote.py"
    script.write_text(SCRIPT)

    async def run() -> None:
        async with MisbehavingServer(said) as server:
            zygote = await asyncio.create_subprocess_exec(
                sys.executable, str(script), server.url, str(tmp_path),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip

            async def child(run_id: str, stop: int, path: Path) -> int:
                assert zygote.stdin and zygote.stdout
                zygote.stdin.write(f"{run_id} {stop} {path}\n".encode())
                return int(await zygote.stdout.readline())

            assert await child("new", 0, tmp_path / "whole.sqlite") == 0
            assert len(server.requests) == 11
            events = recorded(tmp_path / "whole.sqlite")[:-1]
            stops = [
                i for i, e in enumerate(events, 1) if not isinstance(e, Token | SynthesisToken)
            ]
            asked_again = 0
            for stop in stops:
                path = tmp_path / f"kill{stop}.sqlite"
                assert await child("new", stop, path) == -signal.SIGKILL
                past = Transcript.of(recorded(path))
                done = {(s, f.stage) for f in past.rounds.values() for s in f.answers}
                server.requests.clear()
                assert await child("last", 0, path) == 0, f"killed at event {stop}"
                again = [asked(request) for request in server.requests]
                assert not done & set(again), f"event {stop}: asked again {done & set(again)}"
                assert len(done) + len(again) == 11, f"event {stop}: {sorted(again)}"
                asked_again += len(again)
            print(
                f"\nkilled after each of {len(stops)} events, resumed to the same answer; ", end=""
            )
            print(f"{asked_again} open calls were asked, no completed one")
            zygote.stdin and zygote.stdin.close()
            await zygote.wait()

    asyncio.run(run())


def test_events_survive_encoding_and_are_numbered_without_a_gap(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.sqlite")
    heard: list[Event] = []
    done = play(seat(scripted("42", "42", "43"), store=store), SUM, listener=heard.append)
    kept = list(store.events(done.run))
    assert [encode(e) for e in kept] == [encode(e) for e in heard] and [
        e.seq for e in kept
    ] == list(range(len(kept)))
    assert all(decode(encode(event)) == event for event in kept)
    again = Transcript.of(kept)
    assert (again.text, again.usage, again.calls) == (done.text, done.usage, done.calls)
    row = store.find("last")
    assert (row.state, row.answer, row.question) == ("finished", "42", SUM)


def test_replaying_asks_nobody(tmp_path: Path) -> None:
    agents = scripted("42", "42", "43")
    store = Store(tmp_path / "runs.sqlite")
    council = seat(agents, store=store)
    done = play(council)
    before = [len(agent.requests) for agent in agents]

    async def again() -> Transcript:
        return await council.resume(done.run).wait()

    replayed = asyncio.run(again())
    assert replayed.text == done.text and [len(a.requests) for a in agents] == before


def test_another_chair_reuses_the_drafts(tmp_path: Path) -> None:
    agents = scripted(
        by_stage(draft="one", synthesis="by A"), by_stage(draft="two", synthesis="by B")
    )
    store = Store(tmp_path / "runs.sqlite")
    council = seat(agents, protocol="synthesize", store=store)
    first = play(council, OPEN)
    assert first.text == "by A"

    async def again(chair: str) -> Transcript:
        return await council.rechair(first.run, chair).wait()

    second = asyncio.run(again("B"))
    assert second.text == "by B" and second.run != first.run and second.calls == 1
    assert [len(agent.requests) for agent in agents] == [2, 2]
    with pytest.raises(BadRequest, match="nobody called 'Z'"):
        asyncio.run(again("Z"))


def test_a_failed_run_is_tried_again_from_its_answers(tmp_path: Path) -> None:
    calls = []

    def flaky(_: Any) -> Any:
        calls.append(1)
        return Transport("B", "down") if len(calls) == 1 else "42"

    agents = scripted("42", flaky)
    council = seat(agents, protocol="vote", quorum=2, store=Store(tmp_path / "runs.sqlite"))
    failed = play(council)
    assert failed.failure and failed.failure.code == "quorum_lost"

    async def again() -> Transcript:
        return await council.resume(failed.run).wait()

    done = asyncio.run(again())
    assert done.text == "42" and len(agents[0].requests) == 1


def test_the_same_key_joins_a_running_and_a_finished_run(tmp_path: Path) -> None:
    agents = scripted(Reply(text="42", first_delay=0.1), "42")
    council = seat(agents, protocol="vote", store=Store(tmp_path / "runs.sqlite"))

    async def run() -> list[Transcript]:
        one = council.start(SUM, key="k")
        two = council.start(SUM, key="k")
        assert one is two
        done = await one.wait()
        three = council.start(SUM, key="k")
        other = council.start(SUM, key="other")
        return [done, await three.wait(), await other.wait()]

    done, third, other = asyncio.run(run())
    assert done.run == third.run != other.run and third.text == "42"
    assert len(agents[0].requests) == 2


def test_a_run_of_another_process_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    mine = seat(scripted(Reply(text="42", first_delay=0.3), "42"), store=Store(path), quorum=2)
    agents = scripted("1", "2")
    theirs = seat(agents, store=Store(path))

    async def run() -> list[Transcript]:
        one = mine.start(SUM, key="k")
        two = theirs.start(SUM, key="k")
        return [await one.wait(), await two.wait()]

    one, two = asyncio.run(run())
    assert one.text == two.text == "42" and one.run == two.run
    assert not any(agent.requests for agent in agents)


def test_a_store_that_cannot_be_written_is_said_in_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(LlamootError, match="set LLAMOOT_DATA"):
        Store(blocked / "runs.sqlite")


def test_a_disk_that_fills_up_ends_recording_and_not_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.sqlite")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    long = "word " * 20000 + "42"
    done = play(seat(scripted(long, long, long), protocol="vote", store=store))
    assert done.text == "42" and "not_recorded" in [w.code for w in done.warnings]


def test_runs_are_found_by_beginning_word_and_last(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.sqlite")
    first = play(seat(scripted("42"), store=store), "What is 40 + 2?")
    second = play(seat(scripted("blue"), store=store), "What colour is 100%_ sky?")
    assert store.find("last").id == second.run
    assert store.find(first.run[:-2]).id == first.run
    assert [row.id for row in store.runs(words="40 + 2")] == [first.run]
    assert [row.id for row in store.runs(words="sky")] == [second.run]
    with pytest.raises(BadRequest, match="llamoot runs"):
        store.find("zzz")
    with pytest.raises(BadRequest, match="several"):
        store.find("1")


KEY = "sk-very-secret-key-0123456789"


def test_no_key_is_in_any_event_error_repr_or_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Servers that echo the key in what they refuse with."""
    monkeypatch.setenv("SOME_KEY", KEY)
    agents: list[Any] = scripted(
        Transport("A", f"401 wrong key {KEY}", body=KEY),
        Reply(text="half", error=Transport("B", f"broke {KEY}")),
        "42",
    )
    council = seat(agents, protocol="vote", store=Store(tmp_path / "runs.sqlite"), quorum=1)
    places = tuple(_with_key(place) for place in council.panel.places)
    council.panel = msgspec.structs.replace(council.panel, places=places)
    heard: list[Event] = []
    caplog.set_level("DEBUG")
    done = play(council, SUM, listener=heard.append)
    assert done.text == "42" and len(done.rounds[1].failures) == 2
    pages = [file.read_bytes() for file in tmp_path.iterdir()]
    assert len(pages) > 1 and any(b"***" in page for page in pages)
    assert not any(KEY.encode() in page for page in pages)
    shown = [repr(done), repr(council.panel), caplog.text, *(str(encode(e)) for e in heard)]
    assert not any(KEY in text for text in shown) and "SOME_KEY" in repr(council.panel)
    with pytest.raises(CouncilFailed) as caught:
        asyncio.run(_ask(council))
    assert KEY not in str(caught.value) and "***" in str(caught.value)


async def _ask(council: Council) -> None:
    council.panel = msgspec.structs.replace(
        council.panel, rules=msgspec.structs.replace(council.panel.rules, quorum=3)
    )
    await council.ask(SUM)


def _with_key(place: Place) -> Place:
    spec = msgspec.structs.replace(place.spec, api_key_env="SOME_KEY")
    return msgspec.structs.replace(place, spec=spec)


def test_a_listener_that_comes_late_hears_everything() -> None:
    agents = [ScriptedAgent("A", Reply(text="a b c 42", delay=0.02))]

    async def run() -> tuple[list[Event], list[Event]]:
        run = seat(agents).start(SUM)
        await asyncio.sleep(0.05)
        late = [event async for event in run.follow()]
        return late, run.events

    late, events = asyncio.run(run())
    assert late == events and len(late) > 6
