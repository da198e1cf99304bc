"""`run`, `chat` and `embed` as people call them: a process, its streams and its exit code."""

import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from llamoot.agents.types import Message
from llamoot.cli.conversation import Conversation, Leave
from llamoot.errors import BadRequest

pytestmark = pytest.mark.model

LLAMOOT = [sys.executable, "-c", "from llamoot.cli.main import main; main()"]


def call(*args: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LLAMOOT, *args], input=given, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def stories(shared: pathlib.Path) -> str:
    return str(shared / "models/stories260K.gguf")


def test_run_prints_the_references_text(stories: str, shared: pathlib.Path) -> None:
    case = json.loads((shared / "models/stories260K.expected.json").read_text())["cases"][0]
    done = call("run", stories, "-p", case["prompt"], "-n", "100", "--temp", "0")
    assert done.returncode == 0
    assert done.stdout.startswith(case["greedy_text"])
    assert "answer 100 tokens" in done.stderr


def test_run_reads_stdin_stops_and_prints_json(stories: str) -> None:
    args = ("run", stories, "-n", "60", "--temp", "0", "--json", "--stop", "Lily")
    out = json.loads(call(*args, given="Once upon a time").stdout)
    assert out["text"] == ", there was a little girl named " and out["finish_reason"] == "stop"
    assert out["usage"]["prompt_tokens"] == 5 and out["usage"]["load_s"] > 0


def test_a_prompt_longer_than_the_context_names_both_numbers(stories: str) -> None:
    done = call("run", stories, "-p", "hello world " * 400)
    assert done.returncode == 2 and done.stdout == ""
    assert "2402 tokens" in done.stderr and "512" in done.stderr and "Traceback" not in done.stderr


def test_wrong_options_are_one_sentence(stories: str) -> None:
    for args in (("--cache-type", "q3"), ("--regex", "("), ("--json-schema", "{nope")):
        done = call("run", stories, "-p", "x", *args)
        assert done.returncode == 2 and done.stderr.startswith("llamoot: ")
        assert "Traceback" not in done.stderr


def test_ctrl_c_ends_run_at_once(stories: str) -> None:
    args = [*LLAMOOT, "run", stories, "-p", "Once upon a time", "-n", "-1", "--seed", "3"]
    args += ["--ctx", "65536"]
    run = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.read(20)
    run.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 130 and b"Traceback" not in errors
    assert time.monotonic() - started < 5


def test_chat_keeps_its_turns_and_obeys_commands(stories: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "talk.json"
    given = f"hello\n/nope\n/set temperature 0\nhow are you\\\ntoday\n/save {file}\n/exit\nnever\n"
    done = call("chat", stories, "-n", "8", "--seed", "1", given=given)
    assert done.returncode == 0
    assert "no command /nope" in done.stderr and "temperature: 0.0" in done.stderr
    turns = json.loads(file.read_text())
    assert [t["role"] for t in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[2]["content"] == "how are you\ntoday"
    assert done.stdout.strip().split("\n")[0] in turns[1]["content"] + "\n"


def test_embed_prints_a_vector_for_each_text(stories: str) -> None:
    done = call("embed", stories, "one", "two")
    rows = [[float(x) for x in line.split()] for line in done.stdout.splitlines()]
    assert [len(row) for row in rows] == [64, 64] and sum(x * x for x in rows[0]) == pytest.approx(
        1, abs=1e-3
    )
    out: dict[str, Any] = json.loads(call("embed", stories, "--json", given="one\ntwo\n").stdout)
    assert out["embeddings"][1] == pytest.approx(rows[1], abs=1e-4)


def test_a_conversation_can_be_retried_undone_and_loaded(tmp_path: pathlib.Path) -> None:
    talk = Conversation()
    talk.ask("one")
    talk.turns.append(Message("assistant", "1"))
    assert talk.command("/retry") == ("", "one") and talk.turns == []
    talk.ask("two")
    talk.command("/system be brief")
    talk.command(f"/save {tmp_path / 't'}")
    assert talk.command("/undo")[0] == "taken back: two"
    assert "1 turns loaded" in talk.command(f"/load {tmp_path / 't'}")[0]
    assert talk.messages == (Message("system", "be brief"), Message("user", "two"))
    for wrong in ("/what", "/set colour red", "/set temperature hot"):
        with pytest.raises(BadRequest):
            talk.command(wrong)
    with pytest.raises(Leave):
        talk.command("/exit")
