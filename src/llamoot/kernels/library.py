"""Compiled kernels for this process, from the cache of object code; built where it has none.

Loading needs llvmlite alone: numba is imported only by the build processes. A file of the cache
is named by a hash of the module's source, of every source it imports, of the target and of the
llvmlite version, so nothing stale is ever loaded and nothing needs to be cleared.
"""

import ctypes
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt

from llamoot import env
from llamoot.errors import LlamootError
from llamoot.kernels.target import Target, current

FOLDER = Path(__file__).parent
_IMPORT = re.compile(r"^from llamoot\.kernels\.(\w+) import|^from llamoot\.kernels import (\w+)")

Entry = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True)
class Kernel:
    """One compiled operation: `void entry(words, thread, threads)` at `address`."""

    name: str
    address: int
    parameters: tuple[str, ...]
    types: tuple[str, ...]

    def words(self, head: Sequence[int], values: Mapping[str, float]) -> npt.NDArray[Any]:
        """All its words: the three that every kernel has, then its own parameters in order.

        A wrong or missing name is a TypeError.
        """
        if set(values) != set(self.parameters):
            wrong = sorted(set(values) ^ set(self.parameters))
            raise TypeError(f"{self.name} takes {', '.join(self.parameters)}; see {wrong}")
        words = np.zeros(len(head) + len(values), np.int64)
        words[: len(head)] = head
        for i, (name, kind) in enumerate(zip(self.parameters, self.types), len(head)):
            if kind == "float":
                words[i : i + 1].view(np.float64)[0] = values[name]
            else:
                words[i] = values[name]
        return words


class Library:
    """Kernels by the name "module.operation"; their modules are built and loaded when asked for."""

    def __init__(self, target: Target) -> None:
        """`target` is what the kernels are compiled for."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.target = target
        machine = llvm.Target.from_default_triple().create_target_machine()
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._kernels: dict[str, Kernel] = {}
        self._modules: set[str] = set()
        self._spare: tempfile.TemporaryDirectory[str] | None = None

    def load(self, modules: Iterable[str]) -> None:
        """Make these modules' kernels callable; compiles those that the cache does not hold."""
        wanted = {name: self.path(name) for name in sorted(set(modules) - self._modules)}
        found = {name: _read(path) for name, path in wanted.items()}
        missing = {name: wanted[name] for name, file in found.items() if file is None}
        if missing:
            built = self._build(missing)
            found |= {name: _read(path) for name, path in built.items()}
        for name, file in found.items():
            if file is None:
                raise LlamootError(f"kernels/{name}.py: its object code cannot be read back")
            self._add(name, *file)

    def kernel(self, name: str) -> Kernel:
        """The operation "module.name"; its module is loaded if need be."""
        if name not in self._kernels:
            self.load([name.partition(".")[0]])
        return self._kernels[name]

    def path(self, module: str) -> Path:
        """The file of the cache that holds this module for this target."""
        folder = Path(self._spare.name) if self._spare else env.cache_folder() / "kernels"
        return folder / f"{module}-{self._key(module)}.o"

    def _key(self, module: str) -> str:
        what = [self.target.key, llvmlite.__version__, str(sys.maxsize)]
        for name in sorted(_sources(module)):
            what.append(_text(name))
        return hashlib.sha256("\0".join(what).encode()).hexdigest()[:32]

    def _add(self, module: str, ops: dict[str, Any], code: bytes) -> None:
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self._modules.add(module)
        for op, about in ops.items():
            name = f"{module}.{op}"
            address = self._engine.get_function_address(about["symbol"])
            parameters, types = tuple(about["parameters"]), tuple(about["types"])
            self._kernels[name] = Kernel(name, address, parameters, types)

    def _build(self, missing: dict[str, Path]) -> dict[str, Path]:
        """Compile modules in as many processes as there are processors; returns their files."""
        if not self._spare and not _writable(next(iter(missing.values())).parent):
            folder = env.cache_folder()
            print(
                f"llamoot: {folder} cannot be written; kernels are compiled anew at every start "
                "(set LLAMOOT_CACHE to a folder that can)",
                file=sys.stderr,
            )
            self._spare = tempfile.TemporaryDirectory(prefix="llamoot-kernels-")
            missing = {name: self.path(name) for name in missing}
        print(f"llamoot: compiling kernels for {self.target.cpu} … once", file=sys.stderr)
        parts: list[list[str]] = [[] for _ in range(min(os.cpu_count() or 1, len(missing)))]
        load = [0] * len(parts)
        for name in sorted(missing, key=lambda name: -len(_text(name))):
            least = load.index(min(load))
            parts[least].append(f"{name}={missing[name]}")
            load[least] += len(_text(name))
        running = [self._start(part) for part in parts]
        for process in running:
            _, errors = process.communicate()
            if process.returncode:
                last = (errors.strip().splitlines() or ["no message"])[-1]
                raise LlamootError(f"compiling kernels for {self.target.cpu} failed: {last}")
        return missing

    def _start(self, pairs: list[str]) -> "subprocess.Popen[str]":
        # The folder above the package as working directory makes the package importable there.
        return subprocess.Popen(
            [sys.executable, "-m", "llamoot.kernels.build", self.target.key, *pairs],
            cwd=FOLDER.parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


@functools.cache
def _for_target(target: Target) -> Library:
    return Library(target)


def library() -> Library:
    """The library of the current target, shared by all models of this process."""
    return _for_target(current())


@functools.cache
def _text(module: str) -> str:
    return (FOLDER / f"{module}.py").read_text()


@functools.cache
def _sources(module: str) -> frozenset[str]:
    """The module and all modules of this folder that it imports, directly or not."""
    found = {module}
    for line in _text(module).splitlines():
        match = _IMPORT.match(line)
        if match:
            found |= _sources(match[1] or match[2])
    return frozenset(found)


def _read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Contents of one file of the cache; None where there is none or it is damaged."""
    try:
        header, _, code = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    try:
        about = json.loads(header)
        intact = about["sha256"] == hashlib.sha256(code).hexdigest()
        return (about["ops"], code) if intact else None
    except (ValueError, KeyError, TypeError):
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
