"""`pull` against a local server that speaks the hub's API, kills and lies included."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from llamoot.agents.hub import HubFile, choose, quant_of
from llamoot.errors import BadRequest
from llamoot.gguf.types import TensorType
from llamoot.gguf.writer import Writer

pytestmark = pytest.mark.pure
REPO = "owner/Tiny-GGUF"


class Hub(ThreadingHTTPServer):
    """Files by name; `cut` bytes are sent before a connection is dropped, `pause` s between."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.sums = files, {n: hashlib.sha256(d).hexdigest() for n, d in files.items()}
        self.cut, self.pause, self.ranges, self.tree = 0, 0.0, True, False
        self.log: list[tuple[str, str | None, str | None]] = []
        self.cdn: str | None = None
        self.status: list[int] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        hub.log.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path.startswith("/api/models/"):
            self.answer_api(path)
        elif hub.status:
            self.send_error(hub.status.pop())
        elif hub.cdn and path.startswith(f"/{REPO}/"):
            self.send_response(302)
            self.send_header("Location", f"{hub.cdn}/cdn/{path.rpartition('/main/')[2]}")
            self.end_headers()
        else:
            name = unquote(path.rpartition("/main/" if "/main/" in path else "/cdn/")[2])
            self.send_file(hub.files.get(name))

    def answer_api(self, path: str) -> None:
        hub = self.server
        if not path.startswith(f"/api/models/{REPO}/"):
            self.send_error(404)
            return
        rows = [
            {
                "type": "file",
                "rfilename": n,
                "path": n,
                "size": len(d),
                "lfs": {"sha256": hub.sums[n]},
            }
            for n, d in hub.files.items()
        ]
        if hub.tree and "/revision/" in path:
            rows = [{"rfilename": row["rfilename"]} for row in rows]
        body = json.dumps(rows if "/tree/" in path else {"siblings": rows}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, data: bytes | None) -> None:
        hub = self.server
        if data is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and hub.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stop = min(len(data), start + hub.cut) if hub.cut else len(data)
        step = 65536 if hub.pause else max(1, stop - start)
        try:
            for at in range(start, stop, step):
                self.wfile.write(data[at : min(stop, at + step)])
                self.wfile.flush()
                time.sleep(hub.pause)
        except OSError:
            pass  # the client was killed
        if stop < len(data):
            self.close_connection = True


@pytest.fixture
def hub(tmp_path):  # type: ignore[no-untyped-def]
    path = tmp_path / "tiny.gguf"
    with Writer(path) as out:
        out.add("general.architecture", "llama")
        out.add("general.file_type", 7)
        out.add("llama.context_length", 128)
        out.declare("token_embd.weight", TensorType.F32, (512, 1024))
        out.write(bytes(512 * 1024 * 4))
    data = path.read_bytes()
    server = Hub({"Tiny-Q8_0.gguf": data, "Tiny-Q2_K.gguf": b"small" * 99, "README.md": b"x"})
    yield server
    server.shutdown()


def start(hub, folder, *args, **more):  # type: ignore[no-untyped-def]
    home = {"HF_ENDPOINT": hub.url, "LLAMOOT_MODELS": str(folder), "HF_TOKEN": "", **more}
    keep = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-c", "from llamoot.cli.main import main; main()", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**keep, **home},
    )


def llamoot(hub, folder, *args, **more):  # type: ignore[no-untyped-def]
    process = start(hub, folder, *args, **more)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def files(folder):  # type: ignore[no-untyped-def]
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_pull_downloads_and_models_lists_it(hub, tmp_path):  # type: ignore[no-untyped-def]
    folder = tmp_path / "models"
    code, out, err = llamoot(hub, folder, "pull", f"{REPO}:q8_0", "--yes")
    path = folder / REPO / "Tiny-Q8_0.gguf"
    assert (code, out.strip()) == (0, str(path))
    assert "2.1 MB" in err, "the size is shown first"
    assert path.read_bytes() == hub.files["Tiny-Q8_0.gguf"]
    assert files(folder) == ["Tiny-Q8_0.gguf"]
    asked = len(hub.log)
    assert llamoot(hub, folder, "pull", f"{REPO}:Q8_0", "--yes", "--json")[0] == 0
    assert not [p for p, _, _ in hub.log[asked:] if "resolve" in p], "it is here already"
    code, out, _ = llamoot(hub, folder, "models", "--json")
    row = json.loads(out)[-1]
    assert (row["name"], row["architecture"], row["quant"]) == ("Tiny-Q8_0", "llama", "Q8_0")
    assert (row["parameters"], row["context"]) == (512 * 1024, 128)
    assert "Tiny-Q8_0" in llamoot(hub, folder, "models")[1]


def test_a_killed_pull_goes_on_where_it_ended(hub, tmp_path):  # type: ignore[no-untyped-def]
    folder, hub.pause = tmp_path / "models", 0.05
    process = start(hub, folder, "pull", f"{REPO}:Q8_0", "--yes")
    for _ in range(600):
        parts = list(folder.rglob("*.part"))
        if parts and parts[0].stat().st_size > 200_000:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / REPO / "Tiny-Q8_0.gguf").exists(), "no half file under the final name"
    assert "stopped" in llamoot(hub, folder, "models")[2]
    had, hub.pause = parts[0].stat().st_size, 0.0
    assert llamoot(hub, folder, "pull", f"{REPO}:Q8_0", "--yes")[0] == 0
    assert hub.log[-1][1] == f"bytes={had}-"
    assert (folder / REPO / "Tiny-Q8_0.gguf").read_bytes() == hub.files["Tiny-Q8_0.gguf"]
    assert files(folder) == ["Tiny-Q8_0.gguf"]


def test_dropped_connections_and_busy_hubs_are_tried_again(hub, tmp_path):  # type: ignore[no-untyped-def]
    folder, hub.cut, hub.status = tmp_path / "models", 700_000, [503]
    assert llamoot(hub, folder, "pull", f"{REPO}:Q8_0", "--yes")[0] == 0
    assert (folder / REPO / "Tiny-Q8_0.gguf").read_bytes() == hub.files["Tiny-Q8_0.gguf"]
    assert sum(1 for _, asked, _ in hub.log if asked) >= 2


def test_a_hub_without_ranges_sends_everything_again(hub, tmp_path):  # type: ignore[no-untyped-def]
    folder, hub.ranges = tmp_path / "models", False
    part = folder / REPO / f"Tiny-Q8_0.gguf.{hub.sums['Tiny-Q8_0.gguf'][:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"junk" * 1000)
    assert llamoot(hub, folder, "pull", f"{REPO}:Q8_0", "--yes")[0] == 0
    assert (folder / REPO / "Tiny-Q8_0.gguf").read_bytes() == hub.files["Tiny-Q8_0.gguf"]


def test_a_wrong_checksum_is_refused_and_nothing_stays(hub, tmp_path):  # type: ignore[no-untyped-def]
    folder, hub.sums["Tiny-Q8_0.gguf"] = tmp_path / "models", "0" * 64
    code, out, err = llamoot(hub, folder, "pull", f"{REPO}:Q8_0", "--yes")
    assert code != 0 and out == "" and "checksum" in err
    assert files(folder) == []


def test_sizes_come_from_the_tree_where_the_first_answer_has_none(hub, tmp_path):  # type: ignore[no-untyped-def]
    hub.tree = True
    code, out, _ = llamoot(hub, tmp_path / "m", "pull", REPO, "--list", "--json")
    assert code == 0
    assert {row["file"]: row["quant"] for row in json.loads(out)} == {
        "Tiny-Q8_0.gguf": "Q8_0",
        "Tiny-Q2_K.gguf": "Q2_K",
    }


def test_the_token_stays_with_the_hub(hub, tmp_path):  # type: ignore[no-untyped-def]
    other = Hub(hub.files)
    hub.cdn = other.url.replace("127.0.0.1", "localhost")
    code, out, err = llamoot(
        hub, tmp_path / "m", "pull", f"{REPO}:Q8_0", "--yes", HF_TOKEN="hf_secretsecret"
    )
    other.shutdown()
    assert code == 0, err
    assert {auth for _, _, auth in hub.log} == {"Bearer hf_secretsecret"}
    assert {auth for _, _, auth in other.log} == {None}
    assert "hf_secret" not in out + err


@pytest.mark.parametrize(
    ("args", "more", "says"),
    [
        (["owner/Other:Q8_0", "--yes"], {}, "404"),
        (["nonsense", "--yes"], {}, "owner/name"),
        ([f"{REPO}:Q5_K_M", "--yes"], {}, "Q2_K, Q8_0"),
        ([f"{REPO}:Q8_0"], {}, "--yes"),
        ([f"{REPO}:Q8_0", "--yes"], {"LLAMOOT_OFFLINE": "1"}, "LLAMOOT_OFFLINE"),
        ([f"{REPO}:Q8_0", "--yes"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "refused"),
        ([f"{REPO}:Q8_0", "--yes"], {"HF_ENDPOINT": "nonsense"}, "HF_ENDPOINT"),
    ],
)
def test_what_cannot_be_pulled_is_one_sentence(hub, tmp_path, args, more, says):  # type: ignore[no-untyped-def]
    code, out, err = llamoot(hub, tmp_path / "m", "pull", *args, **more)
    assert code != 0 and out == ""
    assert says in err and len(err.strip().splitlines()) <= 2
    assert not list(tmp_path.rglob("*.part"))


def test_choosing_knows_parts_and_prefers_q4_k_m():  # type: ignore[no-untyped-def]
    rows = [
        *(HubFile(f"Q4_K_M/M-Q4_K_M-0000{i}-of-00002.gguf", i) for i in (2, 1)),
        HubFile("M-Q8_0.gguf", 9),
        HubFile("M-UD-Q4_K_XL.gguf", 9),
        HubFile("mmproj-F16.gguf", 1),
        HubFile("M-IQ4_XS.gguf", 9),
    ]
    parts = [f"Q4_K_M/M-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert [file.name for file in choose(rows)] == parts
    assert [file.name for file in choose(rows, "q4_k_m")] == parts
    assert choose(rows, "UD-Q4_K_XL")[0].name == "M-UD-Q4_K_XL.gguf"
    assert choose(rows, "M-Q8_0.gguf")[0].name == "M-Q8_0.gguf"
    assert quant_of("Qwen3-0.6B-BF16.gguf") == "BF16" and quant_of("model.gguf") == ""
    with pytest.raises(BadRequest, match="several"):
        choose([HubFile("A-Q8_0.gguf", 1), HubFile("B-Q8_0.gguf", 1)], "Q8_0")
    with pytest.raises(BadRequest, match="no GGUF"):
        choose([])


def test_tokenize_and_detokenize_undo_each_other(shared, hub, tmp_path):  # type: ignore[no-untyped-def]
    model = str(shared / "models" / "stories260K.gguf")
    code, out, _ = llamoot(hub, tmp_path, "tokenize", model, "Once upon a time")
    assert (code, out.split()) == (0, ["1", "403", "407", "261", "378"])
    code, out, _ = llamoot(hub, tmp_path, "detokenize", model, *out.split())
    assert (code, out) == (0, "Once upon a time\n")
    out = llamoot(hub, tmp_path, "tokenize", model, "Once", "--json")[1]
    assert json.loads(out)["tokens"][-1] == {"id": 403, "text": " Once"}
    assert llamoot(hub, tmp_path, "tokenize", model, "Once", "--count", "--no-bos")[1] == "1\n"
    code, out, err = llamoot(hub, tmp_path, "detokenize", model, "99999")
    assert code == 2 and "511" in err
