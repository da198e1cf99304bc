"""Compiled kernels are kept: built once, loaded without numba, never stale, never half-written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamoot.errors import ConfigError, LlamootError
from llamoot.kernels import library as lib
from llamoot.kernels.library import Library
from llamoot.kernels.pool import give_back, lease
from llamoot.kernels.target import LEVELS, current, parse

pytestmark = pytest.mark.kernel

SCALE = """
import sys, numpy as np
from llamoot.kernels.library import Entry, library
kernel = library().kernel("loop.nop")
Entry(kernel.address)(kernel.words([0, np.ones(1, np.int64).ctypes.data, 1], {}).ctypes.data, 0, 1)
assert "numba" not in sys.modules
"""


def start(code: str, cache: Path) -> "subprocess.Popen[str]":
    """A Python process with its own cache folder."""
    settings = {**os.environ, "LLAMOOT_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=settings, text=True, stderr=subprocess.PIPE
    )


def finish(process: "subprocess.Popen[str]") -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def test_two_cold_starts_at_once_and_a_warm_one(tmp_path: Path) -> None:
    cold = [start(SCALE, tmp_path) for _ in range(2)]
    for process in cold:
        assert finish(process).count("compiling kernels") <= 1
    files = [path.name for path in (tmp_path / "kernels").iterdir()]
    assert len(files) == 1 and files[0].startswith("loop-"), "one file, nothing half-written"
    assert finish(start(SCALE, tmp_path)) == ""


def test_a_folder_that_cannot_be_written_costs_a_warning_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, where a folder is wanted")
    errors = finish(start(SCALE, tmp_path / "file"))
    assert "cannot be written" in errors and "LLAMOOT_CACHE" in errors


def test_a_warm_forward_pass_never_imports_numba(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from llamoot.kernels.compiled import Compiled\n"
        "from llamoot.kernels.step import Step\n"
        "executor = Compiled(Step(4, 1, 1), 2)\n"
        "x = executor.buffer(32)\n"
        "executor.record(lambda k: k.rmsnorm(x, x, None, 1e-6))\n"
        "executor.run()\n"
        "assert 'numba' not in sys.modules\n"
    )
    finish(subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE))


def test_a_damaged_file_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMOOT_CACHE", str(tmp_path))
    first = Library(current())
    first.load(["loop"])
    path = first.path("loop")
    whole = path.read_bytes()
    for damage in (b"{", b"{}\n", b"[]\ncode", b"null\n", whole[:-1], whole[:1000]):
        path.write_bytes(damage)
        assert lib._read(path) is None
    again = Library(current())
    assert again.kernel("loop.nop").address
    assert lib._read(path) is not None


def test_the_key_follows_every_source_and_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("norm", "loop")
    before = {name: Library(current()).path(name) for name in names}
    copy = tmp_path / "kernels"
    shutil.copytree(lib.FOLDER, copy)
    (copy / "simd.py").write_text((copy / "simd.py").read_text() + "# another source\n")
    monkeypatch.setattr(lib, "FOLDER", copy)
    for cached in (lib._text, lib._sources):
        cached.cache_clear()
    after = {name: Library(current()).path(name) for name in names}
    for cached in (lib._text, lib._sources):
        cached.cache_clear()
    assert after["norm"] != before["norm"], "it imports what was changed"
    assert after["loop"] == before["loop"], "it does not"
    assert Library(parse("x86-64", "")).path("loop") != before["loop"], "another processor"


def test_a_kernel_that_does_not_compile_is_named(tmp_path: Path) -> None:
    library = Library(current())
    library._building["broken"] = subprocess.Popen(
        [sys.executable, "-c", "raise ValueError('no such type')"],
        text=True,
        stderr=subprocess.PIPE,
    )
    library.path = lambda module: tmp_path / module  # type: ignore[method-assign]
    with pytest.raises(LlamootError, match=r"kernels/broken\.py.*no such type"):
        library._built("broken")


def test_targets_say_what_they_have() -> None:
    assert parse("x86-64-v3", "").has("avx2", "fma")
    assert not parse("x86-64-v3", "").has("avx512f")
    assert not parse("x86-64-v4", "-avx512f").has("avx512vl")
    assert parse("x86-64", "+avx2").has("avx2")
    assert not parse("x86-64-v3", "-avx").has("f16c")
    for name in LEVELS:
        assert parse(name, "").flags == ""
    with pytest.raises(ConfigError, match="pentium"):
        parse("pentium", "")
    with pytest.raises(ConfigError, match="avx2"):
        parse("", "avx2")


def test_the_lowering_that_runs_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pool = lease(1)
    target = pool.library.target
    give_back(pool)
    wanted = ("avx512vnni", "avxvnni", "avx512f", "avx2", "f16c", "dotprod", "i8mm")
    with capsys.disabled():
        print(f"\nkernels for {target.cpu}: {', '.join(f for f in wanted if target.has(f))}")
    assert target == current()
