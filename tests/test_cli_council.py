"""The council's verbs, as a person types them: real processes, real sockets."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llamoot as llamoot_package
from llamoot.agents.misbehave import Act, MisbehavingServer, Received, answer
from llamoot.cli.main import VERBS, main

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[1]
SCRIPTED = str(ROOT / "examples" / "scripted.toml")
MAIN = "from llamoot.cli.main import main; main()"
SUM = "What is 17 + 25? Answer with a number."


def llamoot(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command, run in this process."""
    with pytest.raises(SystemExit) as end:
        main(list(args))
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err


async def process(*args: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """The same in a process of its own."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAIN, *args,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})},
    )  # fmt: skip
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


def test_ask_prints_the_answer_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = llamoot(capsys, "ask", SUM, "-c", SCRIPTED, "--show-dissent")
    assert (code, out) == (0, "42\n")
    assert "vote: 67% agree" in err and "C: 43" in err
    assert "3 calls" in err and "tokens" in err and "no money" in err and "plan was off" in err
    code, out, err = llamoot(capsys, "ask", SUM, "-c", SCRIPTED, "--quiet")
    assert (code, out, err) == (0, "42\n", "")


def test_ask_json_and_events_are_whole_documents(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = llamoot(capsys, "ask", SUM, "-c", SCRIPTED, "--json")
    found = json.loads(out)
    assert (found["answer"], found["how"], found["calls"]) == ("42", "vote", 3)
    assert found["dissent"][0]["answer"] == "43" and len(found["experts"]) == 3
    _, out, _ = llamoot(capsys, "ask", SUM, "-c", SCRIPTED, "--events")
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["type"] == "council_started" and events[-1]["type"] == "council_finished"
    assert {"round_started", "token", "answer", "ballot", "decision"} <= {
        event["type"] for event in events
    }
    total = sum(e.get("usage", {}).get("completion_tokens", 0) for e in events if "seat" in e)
    final = events[-1]["usage"]["completion_tokens"]
    assert total - final == final, "the sum of the calls is the total"


def test_a_run_can_be_shown_exported_replayed_and_written_anew(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    llamoot(capsys, "ask", "Tell me of the sky.", "-c", SCRIPTED, "-p", "synthesize", "-q")
    _, out, _ = llamoot(capsys, "runs", "--json")
    run = json.loads(out)[0]["id"]
    assert "Tell me of the sky." in llamoot(capsys, "runs")[1]
    shown = llamoot(capsys, "show", run[:12])[1]
    assert "## Round 1: independent answers" in shown and "I make it 43." in shown
    path = tmp_path / "run.md"
    assert llamoot(capsys, "export", "last", "-o", str(path))[0] == 0
    assert path.read_text().startswith("# Tell me of the sky.")
    events = json.loads(llamoot(capsys, "export", "--json")[1])
    assert [event["seq"] for event in events] == list(range(len(events)))
    first = json.loads(llamoot(capsys, "show", "--json")[1])
    again = json.loads(llamoot(capsys, "replay", "--json", "-q")[1])
    assert again == first
    code, out, err = llamoot(capsys, "replay", run, "--chair", "C")
    assert (code, out) == (0, "I make it 43.\n") and "1 calls" in err
    assert llamoot(capsys, "resume", run, "-q")[:2] == (0, first["answer"] + "\n")


def test_plan_spends_nothing_and_tells_its_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = llamoot(capsys, "plan", SUM, "-c", SCRIPTED)
    assert code == 0 and "rules of thumb" in out and "calls     3" in out
    assert json.loads(llamoot(capsys, "runs", "--json")[1]) == []
    for _ in range(2):
        llamoot(capsys, "ask", SUM, "-c", SCRIPTED, "-q")
    found = json.loads(llamoot(capsys, "plan", SUM, "-c", SCRIPTED, "--json")[1])
    assert found["measured"] and found["calls"] == 3 and "tokens" in found["past_errors"]
    found = json.loads(
        llamoot(capsys, "plan", "Explain it.", "-c", SCRIPTED, "-p", "debate", "--json")[1]
    )
    assert found["calls"] == 7 and found["rounds"] == ["draft", "revise", "synthesis"]


def test_config_check_explain_and_init(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMOOT_MODELS", str(tmp_path))
    assert "fine" in llamoot(capsys, "config", "check", "-c", SCRIPTED)[1]
    rows = json.loads(llamoot(capsys, "config", "explain", "-c", SCRIPTED, "--json")[1])
    assert {"key": "deadline", "value": 300.0, "origin": "default"} in rows
    bad = tmp_path / "bad.toml"
    bad.write_text('[councils.x]\nmembers = ["m"]\nquorom = 1\n')
    code, _, err = llamoot(capsys, "config", "check", "-c", str(bad))
    assert code == 2 and err.count("\n") == 1 and "did you mean 'quorum'?" in err
    (tmp_path / "tiny-1b.gguf").write_bytes(b"GGUF")
    assert llamoot(capsys, "init")[0] == 0
    assert "tiny-1b" in (tmp_path / "llamoot.toml").read_text()
    assert llamoot(capsys, "config", "check")[0] == 0
    code, _, err = llamoot(capsys, "init")
    assert code == 2 and "--force" in err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["asc", "x"], 2, "did you mean 'ask'?"),
        (["zzz"], 2, "llamoot --help"),
        (["ask", "x", "--confg", "y"], 2, "did you mean --config?"),
        (["ask"], 2, "missing argument"),
        (["ask", "  "], 2, "the question is empty"),
        (["ask", "x", "-c", "/nowhere.toml"], 2, "cannot be read"),
        (["ask", "x", "-c", SCRIPTED, "--council", "defualt"], 2, "did you mean 'default'?"),
        (["ask", "x", "-c", SCRIPTED, "-p", "debait"], 2, "did you mean 'debate'?"),
        (["ask", "x", "-c", SCRIPTED, "--samples", "none"], 2, "samples"),
        (["ask", "x", "-m", "no-such-model.gguf"], 3, "no model file 'no-such-model.gguf'"),
        (["ask", "x", "-m", "http://127.0.0.1:1/v1#m"], 3, "127.0.0.1:1"),
        (["show", "nothing"], 2, "llamoot runs"),
        (["config", "chek"], 2, "did you mean 'check'?"),
    ],
)
def test_every_mistake_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    found, out, err = llamoot(capsys, *args)
    last = err.strip().split("\n")[-1]
    assert (found, out) == (code, "")
    assert last.startswith("llamoot: ") and words in last and "Traceback" not in err


def test_help_names_every_verb_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = llamoot(capsys, "--help")
    assert code == 0 and all(verb in out for verb in VERBS)
    out = llamoot(capsys, "ask", "--help")[1]
    for option in ("--protocol", "--experts", "--deadline", "--json", "--events", "--show-dissent"):
        assert option in out


def test_completion_knows_verbs_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    script = llamoot(capsys, "completion", "bash")[1]
    check = f"{script}\nCOMP_WORDS=(llamoot ask --show); COMP_CWORD=2; _llamoot; echo $COMPREPLY"
    done = subprocess.run(["bash", "-c", check], capture_output=True, text=True)
    assert done.stdout.strip() == "--show-dissent", done.stderr
    assert "-l show-dissent" in llamoot(capsys, "completion", "fish")[1]
    assert llamoot(capsys, "completion", "tcsh")[0] == 2


def server_says(request: Received) -> Act:
    body = request.json()
    wrong = body["model"] == "two" and body.get("temperature") == 0.8
    return Act(body=answer("17 + 25", " = ", "43" if wrong else "42"))


def test_ask_works_against_two_servers_as_the_readme_shows(tmp_path: Path) -> None:
    async def run() -> None:
        async with MisbehavingServer(server_says) as one, MisbehavingServer(server_says) as two:
            text = (ROOT / "examples" / "two-servers.toml").read_text()
            text = text.replace("http://127.0.0.1:8101/v1", one.url)
            text = text.replace("http://127.0.0.1:8102/v1", two.url)
            path = tmp_path / "two.toml"
            path.write_text(text)
            code, out, err = await process("ask", SUM, "--config", str(path), "--show-dissent")
            assert (code, out) == (0, "42\n"), err
            assert "by A calm, B careful, C quick" in err and "agree" in err
            assert len(one.requests) == 1 and 1 <= len(two.requests) <= 2
            assert two.requests[0].json()["messages"][0]["content"].endswith("before you answer.")
            code, out, _ = await process("doctor", "--config", str(path), "--json")
            found = json.loads(out)
            assert code == 0 and found["quorum"] and found["chair"]
            assert [row["ok"] for row in found["members"]] == [True] * 3

    asyncio.run(run())


def test_doctor_is_red_when_the_chair_is_down(tmp_path: Path) -> None:
    async def run() -> None:
        down = Act(status=500, body=b"{}", content_type="application/json", framing="length")
        async with MisbehavingServer(server_says) as one, MisbehavingServer(down) as two:
            path = tmp_path / "two.toml"
            path.write_text(
                f'[agents.a]\nbase_url = "{one.url}"\nmodel = "one"\n'
                f'[agents.b]\nbase_url = "{two.url}"\nmodel = "two"\n'
                '[councils.x]\nmembers = ["a", "a"]\nsynthesizer = "b"\n'
            )
            code, out, _ = await process("doctor", "-c", str(path))
            assert code == 3 and "FAILS" in out and "chair chair: NO" in out

    asyncio.run(run())


def test_ctrl_c_ends_open_calls_and_says_one_line(tmp_path: Path) -> None:
    async def run() -> None:
        hang = Act(body=answer("never ending")[:120], end="hang")
        async with MisbehavingServer(hang) as server:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", MAIN,
                "ask", SUM, "-m", f"{server.url}#m*3", "--quiet",
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            while len(server.requests) < 3:
                await asyncio.sleep(0.01)
            child.send_signal(signal.SIGINT)
            out, err = await asyncio.wait_for(child.communicate(), 10)
            assert (child.returncode, out, err) == (130, b"", b"llamoot: stopped\n")
            assert await server.gone(3)
            code, listed, _ = await process("runs", "--json")
            assert code == 0 and json.loads(listed)[0]["state"] == "failed"

    asyncio.run(run())


def test_lanes_are_drawn_on_a_terminal() -> None:
    """stderr is a pseudo-terminal: the lanes are drawn there, the answer stays on stdout."""
    control, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", MAIN, "ask", SUM, "-c", SCRIPTED],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(terminal)
    drawn = b""
    while True:
        try:
            piece = os.read(control, 65536)
        except OSError:
            break
        if not piece:
            break
        drawn += piece
    out, _ = child.communicate(timeout=20)
    text = drawn.decode()
    assert (child.returncode, out) == (0, b"42\n")
    assert "independent answers" in text and "✓" in text and "I make it 43." in text


def test_a_killed_ask_is_resumed_without_asking_again(tmp_path: Path) -> None:
    """SIGKILL while one of three members still thinks; `resume` asks only that one."""
    hanging = True

    def says(request: Received) -> Act:
        if request.json()["model"] == "slow" and hanging:
            return Act(body=b"", end="hang")
        return Act(body=answer(f"{request.json()['model']} says 42"))

    async def run() -> None:
        nonlocal hanging
        async with MisbehavingServer(says) as server:
            path = tmp_path / "x.toml"
            agents = "".join(
                f'[agents.{n}]\nbase_url = "{server.url}"\nmodel = "{n}"\n'
                for n in ("one", "two", "slow")
            )
            path.write_text(
                agents + '[councils.x]\nmembers = ["one", "two", "slow"]\nquorum = 3\n'
                'protocol = "vote"\nearly_stop = false\n'
            )
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", MAIN, "ask", SUM, "-c", str(path),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            assert child.stderr is not None
            while b"two" not in await child.stderr.readline():
                pass
            await asyncio.sleep(0.3)
            child.kill()
            await child.communicate()
            _, out, _ = await process("runs")
            assert "broken off" in out
            hanging, before = False, len(server.requests)
            code, out, err = await process("resume", "last")
            assert (code, out) == (0, "42\n") and "going on from what is recorded" in err
            again = [request.json()["model"] for request in server.requests[before:]]
            assert again.count("slow") == 1 and len(again) <= 2

    asyncio.run(run())


def test_without_a_file_ask_uses_the_endpoint_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = json.dumps({"object": "list", "data": [{"id": "found-model", "object": "model"}]})

    def says(request: Received) -> Act:
        if request.method == "GET":
            return Act(body=models.encode(), content_type="application/json", framing="length")
        return Act(body=answer("42"))

    async def run() -> None:
        async with MisbehavingServer(says) as server:
            monkeypatch.chdir(tmp_path)
            code, out, err = await process("ask", SUM, env={"OPENAI_BASE_URL": server.url})
            assert (code, out) == (0, "42\n"), err
            assert f"no llamoot.toml: asking found at {server.url}" in err and "found-model" in err

    asyncio.run(run())


def test_a_program_without_an_event_loop_can_ask() -> None:
    council = llamoot_package.Council.open_sync(SCRIPTED)
    heard: list[Any] = []
    assert council.ask_sync(SUM, listener=heard.append).text == "42"
    assert council.ask_sync(SUM).agreement == pytest.approx(2 / 3) and heard
    council.close_sync()


def test_convergence_is_measured_by_an_embeddings_endpoint(tmp_path: Path) -> None:
    def says(request: Received) -> Act:
        body = request.json()
        if "input" in body:
            rows = [{"index": i, "embedding": [1.0, 0.01 * i]} for i in range(len(body["input"]))]
            said = json.dumps({"object": "list", "data": rows}).encode()
            return Act(body=said, content_type="application/json", framing="length")
        return Act(body=answer(f"{body['model']} speaks of it"))

    async def run() -> None:
        async with MisbehavingServer(says) as server:
            path = tmp_path / "x.toml"
            path.write_text(
                f'[endpoints.e]\nbase_url = "{server.url}"\n'
                '[councils.x]\nprotocol = "debate"\nmax_rounds = 4\nmembers = ['
                '{ endpoint = "e", model = "one" }, { endpoint = "e", model = "two" }]\n'
                'embedder = { endpoint = "e", model = "vectors" }\n'
            )
            code, _, err = await process("ask", "Tell me of it.", "-c", str(path))
            assert code == 0 and "likeness 1.00 (cosine)" in err, err
            assert sum("embeddings" in request.target for request in server.requests) == 1

    asyncio.run(run())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_home_is_said_and_the_answer_comes(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    env = {"LLAMOOT_DATA": str(tmp_path / "data")}
    code, out, err = asyncio.run(process("ask", SUM, "-c", SCRIPTED, env=env))
    assert (code, out) == (0, "42\n") and "LLAMOOT_DATA" in err


def test_an_unusable_data_folder_is_said_and_the_answer_comes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = {"LLAMOOT_DATA": str(tmp_path / "file")}
    code, out, err = asyncio.run(process("ask", SUM, "-c", SCRIPTED, env=env))
    assert (code, out) == (0, "42\n") and "set LLAMOOT_DATA" in err


def test_the_key_is_in_no_output_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-secret-9876543210-abcdef"
    data = tmp_path / "data"

    def echo(request: Received) -> Act:
        if request.json()["model"] == "good":
            return server_says(request)
        said = json.dumps({"error": {"message": f"bad key {request.headers['authorization']}"}})
        return Act(
            status=401, body=said.encode(), content_type="application/json", framing="length"
        )

    async def run() -> list[Any]:
        async with MisbehavingServer(echo) as server:
            path = tmp_path / "x.toml"
            path.write_text(
                f'[endpoints.e]\nbase_url = "{server.url}"\napi_key_env = "MY_KEY"\n'
                '[councils.x]\nquorum = 1\nmembers = [{ endpoint = "e", model = "good" }, '
                '{ endpoint = "e", model = "bad" }]\n'
            )
            env = {"MY_KEY": key, "LLAMOOT_DATA": str(data), "LLAMOOT_DEBUG": "1"}
            common = ("-c", str(path))
            shown = await asyncio.gather(
                process("ask", SUM, *common, "--events", env=env),
                process("ask", SUM, *common, "-p", "debate", "--json", env=env),
                process("config", "explain", *common, env=env),
                process("doctor", *common, env=env),
            )
            shown += [await process("show", "last", env=env)]
            assert any(key in request.headers["authorization"] for request in server.requests)
            return shown

    shown = asyncio.run(run())
    assert "42" in shown[0][1] and "401" in shown[0][1]
    assert not any(key in out + err for _, out, err in shown)
    files = [file for file in data.rglob("*") if file.is_file()]
    assert files and not any(key.encode() in file.read_bytes() for file in files)


@pytest.mark.peer
def test_the_openai_package_and_ours_receive_the_same_text() -> None:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")

    async def run() -> None:
        pieces = ("Grüße, ", "世界 ", "— 17 + 25 = ", "42", " 👋🏽")
        async with MisbehavingServer(Act(body=answer(*pieces), drip=3)) as server:
            client = openai.AsyncOpenAI(base_url=server.url, api_key="x")
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            theirs = ""
            async for chunk in stream:
                if chunk.choices:
                    theirs += chunk.choices[0].delta.content or ""
            code, out, _ = await process(
                "ask", "hi", "-m", f"{server.url}#m", "-p", "solo", "--quiet"
            )
            await client.close()
            assert code == 0 and theirs == "".join(pieces) == out.rstrip("\n")

    asyncio.run(run())
