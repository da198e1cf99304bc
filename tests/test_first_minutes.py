"""What a new user meets: the built-in model, a fresh machine, and everything that goes wrong."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamoot.agents.files import BUILT_IN
from llamoot.cli.main import VERBS

pytestmark = pytest.mark.model

SUM = "What is 27 + 48?"
SCRIPTED = str(Path(__file__).parents[1] / "examples" / "scripted.toml")
BASE = [sys.executable, "-c", "from llamoot.cli.main import main; main()"]
ONLY_ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux has this file")


def typed(
    *args: str, out: int = subprocess.PIPE, before: Callable[[], None] | None = None, **env: str
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command in a process of its own, without stdin."""
    child = subprocess.run(
        [*BASE, *args], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **env}, preexec_fn=before, timeout=300,
    )  # fmt: skip
    return child.returncode, child.stdout or "", child.stderr


def one_sentence(err: str) -> str:
    """The last line, which is all that a fault may say of itself."""
    assert "Traceback" not in err and "internal error" not in err, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("llamoot: "), err
    return last


@pytest.fixture
def abacus() -> Path:
    if not BUILT_IN.is_file():
        pytest.skip("the built-in model is not in this tree")
    return BUILT_IN


def test_three_experts_of_the_built_in_model_really_run(abacus: Path, tmp_path: Path) -> None:
    code, out, err = typed("ask", SUM, "-m", "abacus*3", "--events", "-p", "vote")
    events = [json.loads(line) for line in out.splitlines()]
    answers = [event for event in events if event["type"] == "answer"]
    assert code == 0 and len({answer["seat"] for answer in answers}) == 3, err
    assert all(answer["usage"]["completion_tokens"] > 0 for answer in answers)
    assert events[-1]["type"] == "council_finished"


def test_the_built_in_model_says_what_it_is_and_what_to_do_next(
    abacus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = typed("ask", SUM, LLAMOOT_MODELS=str(tmp_path))
    if "asking found at" in err:
        pytest.skip("a server answers on a usual port of this machine")
    said = [line for line in err.splitlines() if "only calculates" in line]
    assert code == 0 and out.strip() and len(said) == 1
    assert all(way in said[0] for way in ("llamoot pull", "OPENAI_BASE_URL", "llamoot init"))
    code, out, err = typed("ask", "Who wrote Hamlet?", LLAMOOT_MODELS=str(tmp_path))
    assert code == 0 and out.strip(), err


def test_pull_without_a_name_lists_what_to_begin_with() -> None:
    code, out, _ = typed("pull")
    rows = out.splitlines()
    assert code == 0 and len(rows) == 3 and all(" GB " in row or " MB " in row for row in rows)
    assert json.loads(typed("pull", "--json")[1])[0]["bytes"] > 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_verb_and_its_options(shell: str) -> None:
    code, out, _ = typed("completion", shell)
    assert code == 0 and all(verb in out for verb in VERBS)
    assert "show-dissent" in out and "cache-type" in out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["ask", SUM, "--protcol", "vote"], 2, "did you mean --protocol?"),
        (["aks", SUM], 2, "did you mean 'ask'?"),
        (["ask", SUM, "-c", "nowhere.toml"], 2, "nowhere.toml"),
        (["ask", SUM, "-m", "abacsu"], 3, "no model file 'abacsu'"),
        (["ask", SUM, "-m", "http://127.0.0.1:9/v1#m"], 3, "cannot reach"),
        (["run", "nowhere.gguf", "-p", "x"], 2, "no model file"),
        (["run", "FOLDER", "-p", "x"], 2, "is a folder"),
        (["inspect", "FOLDER"], 1, "Is a directory"),
        (["inspect", "nowhere.gguf"], 1, "nowhere.gguf"),
        (["quantize", "nowhere.gguf", "x.gguf", "Q8_0"], 1, "nowhere.gguf"),
        (["inspect", "CUT"], 1, "the file at"),
        (["run", "CUT", "-p", "x"], 1, "the file at"),
        (["ask", SUM, "-m", "TEXT"], 3, "too short to be a GGUF file"),
        (["init", "-o", "FOLDER/no/x.toml"], 1, "is the path right?"),
        (["ask", "-"], 2, "the question is empty"),
    ],
)
def test_a_wrong_word_or_file_is_one_sentence(
    args: list[str], code: int, words: str, tmp_path: Path, abacus: Path
) -> None:
    cut, text = tmp_path / "cut.gguf", tmp_path / "text.gguf"
    cut.write_bytes(abacus.read_bytes()[:200_000])
    text.write_text("hi\n")
    here = {"FOLDER": tmp_path, "CUT": cut, "TEXT": text}
    for name, path in here.items():
        args = [word.replace(name, str(path)) for word in args]
    found, out, err = typed(*args, LLAMOOT_MODELS=str(tmp_path / "none"))
    assert (found, out) == (code, "") and words in one_sentence(err), err


def test_a_home_that_cannot_be_written_is_told_and_does_not_stop_the_answer() -> None:
    nowhere = {"LLAMOOT_DATA": "", "XDG_DATA_HOME": "", "HOME": os.devnull}
    code, out, err = typed("ask", "What is 17 + 25?", "-c", SCRIPTED, **nowhere)
    assert (code, out) == (0, "42\n") and "set LLAMOOT_DATA" in err and "Traceback" not in err
    code, out, err = typed("runs", **nowhere)
    assert code == 1 and "set LLAMOOT_DATA" in one_sentence(err)


def test_a_cache_that_cannot_be_written_is_told_and_kernels_work(tmp_path: Path) -> None:
    load = "from llamoot.kernels.library import library; library().load(['quantize'])"
    child = subprocess.run(
        [sys.executable, "-c", load], capture_output=True, text=True, timeout=300,
        env={**os.environ, "LLAMOOT_CACHE": os.devnull},
    )  # fmt: skip
    assert child.returncode == 0 and "set LLAMOOT_CACHE" in child.stderr, child.stderr


def test_a_disk_that_is_full_is_one_sentence(tmp_path: Path, abacus: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    code, out, err = typed("ask", "What is 17 + 25?", "-c", SCRIPTED, before=small)
    assert (code, out) == (0, "42\n") and "Traceback" not in err
    target = str(tmp_path / "x.gguf")
    code, _, err = typed("quantize", str(abacus), target, "F16", before=small)
    assert code != 0 and one_sentence(err) and not Path(target).exists()


@ONLY_ON_LINUX
def test_an_output_that_takes_nothing_ends_the_command_quietly() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    code, _, err = typed("ask", "What is 17 + 25?", "-c", SCRIPTED, "-q", out=full)
    os.close(full)
    assert code == 1 and "make room" in one_sentence(err)
    read, write = os.pipe()
    os.close(read)
    code, _, err = typed("ask", "What is 17 + 25?", "-c", SCRIPTED, "-q", out=write)
    os.close(write)
    assert (code, err) == (0, "")


def test_closed_streams_are_no_fault() -> None:
    def closed() -> None:
        os.close(0)
        os.close(1)

    code, _, err = typed("ask", "What is 17 + 25?", "-c", SCRIPTED, "-q", before=closed)
    assert (code, err) == (0, "")
    code, _, err = typed("ask", "-", "-c", SCRIPTED, before=closed)
    assert code == 2 and "the question is empty" in one_sentence(err)


@pytest.mark.parametrize("cold", [False, True])
def test_ctrl_c_stops_at_once_and_leaves_no_process(
    cold: bool, tmp_path: Path, abacus: Path
) -> None:
    # The numpy kernels are slow enough to be interrupted in the middle of an answer.
    more = {"LLAMOOT_CACHE": str(tmp_path)} if cold else {"LLAMOOT_KERNELS": "twins"}
    child = subprocess.Popen(
        [*BASE, "run", "abacus", "-p", "1 2 3", "--regex", "[0-9]{100}"], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **more}, bufsize=0,
    )  # fmt: skip
    assert child.stdout and child.stderr
    (child.stderr if cold else child.stdout).read(1)  # it compiles, or it answers
    time.sleep(0.2)
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and one_sentence(err.decode()) == "llamoot: stopped"
    for _ in range(100):
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process of the command is still there")


@ONLY_ON_LINUX
def test_nothing_needs_a_network_once_it_is_installed(abacus: Path) -> None:
    cut = ["unshare", "--user", "--net", "--map-root-user"]
    if subprocess.run([*cut, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody cut a network off")
    child = subprocess.run(
        [*cut, *BASE, "ask", SUM, "-q"], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0 and child.stdout.strip(), child.stderr


def cpu_seconds(*args: str) -> float:
    """Of one command and what it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    typed(*args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_starting_is_quick(abacus: Path) -> None:
    """Seconds of processor time: those do not depend on what else the machine does."""
    remote = ("ask", SUM, "-q", "-m", "http://127.0.0.1:9/v1#m")
    assert min(cpu_seconds(*remote) for _ in range(5)) < 0.4
    local = ("ask", SUM, "-q", "-m", "abacus*3")
    typed(*local)
    assert min(cpu_seconds(*local) for _ in range(3)) < 1.5


def test_a_remote_council_loads_neither_engine_nor_parser_libraries() -> None:
    heavy = ("numpy", "llvmlite", "numba", "typer", "pydantic", "rich", "jinja2", "tokenizers")
    code = (
        "import sys; from llamoot.cli.main import main\n"
        "try: main(['ask', 'x', '-q', '-m', 'http://127.0.0.1:9/v1#m'])\n"
        f"except SystemExit: print([m for m in {heavy!r} if m in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout.strip() == "[]", child.stdout
