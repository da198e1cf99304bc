"""Compiled kernels for this process, from the cache of object code; built where it has none.

Loading needs llvmlite alone: numba is imported only by the build processes. A file of the cache
is named by a hash of the module's source, of every source it imports, of the target and of the
llvmlite version, so nothing stale is ever loaded and nothing needs to be cleared.
"""

import ctypes
import functools
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
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
        self._building: dict[str, subprocess.Popen[str]] = {}
        self._told = False
        self._lock = threading.Lock()

    def load(self, modules: Iterable[str]) -> None:
        """Make these modules' kernels callable; compiles those that the cache does not hold."""
        with self._lock:
            wanted = sorted(set(modules) - self._modules)
            found = {name: _read(self.path(name)) for name in wanted}
            self._start([name for name, file in found.items() if file is None])
            for name, file in found.items():
                self._add(name, *(file or self._built(name)))

    def expect(self, modules: Iterable[str]) -> None:
        """Compile in the background what the cache does not hold and `load` will ask for."""
        with self._lock:
            wanted = [name for name in modules if name not in self._modules]
            self._start([name for name in wanted if _read(self.path(name)) is None])

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

    def _start(self, modules: Iterable[str]) -> None:
        """Begin to compile these modules, those apart that are being compiled already."""
        missing = [name for name in modules if name not in self._building]
        if missing and not self._told:
            self._told = True
            self._find_room()
            print(f"llamoot: compiling kernels for {self.target.cpu} … once", file=sys.stderr)
        self._compile(missing)

    def _compile(self, modules: list[str]) -> None:
        """One process for these modules, one after the other."""
        if not modules:
            return
        pairs = [f"{name}={self.path(name)}" for name in modules]
        # The folder above the package as working directory makes the package importable there.
        process = subprocess.Popen(
            [sys.executable, "-m", "llamoot.kernels.build", self.target.key, *pairs],
            cwd=FOLDER.parents[1],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._building |= dict.fromkeys(modules, process)

    def _built(self, name: str) -> tuple[dict[str, Any], bytes]:
        """What was compiled for a module, as soon as its file is there."""
        process, path = self._building[name], self.path(name)
        file = _read(path)
        while file is None and process.poll() is None:
            time.sleep(0.01)
            file = _read(path)
        file = file or _read(path)
        if file is None:
            _, errors = process.communicate()
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise LlamootError(f"compiling kernels/{name}.py for {self.target.cpu} failed: {last}")
        return file

    def _find_room(self) -> None:
        """Use a folder of this process alone where the user's cache cannot be written."""
        folder = env.cache_folder() / "kernels"
        if not _writable(folder):
            print(
                f"llamoot: {folder} cannot be written; kernels are compiled anew at every start "
                "(set LLAMOOT_CACHE to a folder that can)",
                file=sys.stderr,
            )
            self._spare = tempfile.TemporaryDirectory(prefix="llamoot-kernels-")


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
