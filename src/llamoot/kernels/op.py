"""How a kernel function becomes an operation of the tape. Build time only: imports numba.

An operation is written as a plain function with annotated parameters::

    @op
    def scale(work: int, rows: int, thread: int, threads: int, out: int, x: int, by: float): ...

The first four are given to every operation: `work` is the address of its work counter (see
`atomics.claim`), `rows` the live rows of this step, `thread` of `threads` who is calling. The rest
are its own: `int` is an address, a stride or a count (int64), `float` a number (float32).
All threads of the pool call the same operation with the same arguments; they share the work by
claiming pieces of it. A claimed piece must not depend on `threads`, so that results do not.

In memory the arguments are 64-bit words: counter address, address of the row count, rows per live
row, then the operation's own (a float as the bits of a double). `build.py` writes the small entry
function that unpacks them: `void name(int64 words, int64 thread, int64 threads)`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from numba import njit, types
from numba.extending import intrinsic

GIVEN = ("work", "rows", "thread", "threads")
WORK, ROWS, PER_ROW, OWN = range(4)  # places of the words

# No nnan, no ninf: masked scores are -inf, and a broken file may hold NaN.
FLAGS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

Emit = Callable[..., Any]
F = TypeVar("F", bound=Callable[..., Any])


def instruction(function: Callable[..., tuple[Any, Emit]]) -> Any:
    """A function that writes LLVM instructions: numba's `intrinsic`, with a type."""
    return intrinsic(function)


def constants(function: Callable[..., tuple[Any, Emit]]) -> Any:
    """The same, for functions that are told the values of arguments which are constants."""
    return intrinsic(prefer_literal=True)(function)


def inner(function: F) -> F:
    """A helper of operations, compiled into each of them."""
    compiled: F = njit(**FLAGS)(function)
    return compiled


def inline(function: F) -> F:
    """A helper that must be inlined, because it returns or takes many vectors."""
    compiled: F = njit(**FLAGS, forceinline=True)(function)
    return compiled


def expand(function: F) -> F:
    """A helper written out in its callers before types are known.

    For the many small steps of a matrix product: one large function compiles in half the time.
    """
    compiled: F = njit(**FLAGS, inline="always")(function)
    return compiled


@dataclass(frozen=True)
class Op:
    """One operation: its numba function and the names and types of its own parameters."""

    module: str  # file of this folder, without .py
    name: str
    function: Any
    parameters: tuple[str, ...]
    types: tuple[type, ...]

    def compile(self) -> Any:
        """The numba overload for int64 and float32 parameters."""
        own = [types.int64 if kind is int else types.float32 for kind in self.types]
        signature = (*[types.int64] * len(GIVEN), *own)
        self.function.compile(signature)
        return self.function.overloads[signature]


def op(function: Callable[..., None]) -> Op:
    """Mark a function as an operation; `build.py` finds it in its module."""
    parameters = inspect.signature(function).parameters
    names, kinds = tuple(parameters), tuple(p.annotation for p in parameters.values())
    assert names[: len(GIVEN)] == GIVEN and all(kind in (int, float) for kind in kinds)
    skip = len(GIVEN)
    module = function.__module__.rpartition(".")[2]
    return Op(module, function.__name__, njit(**FLAGS)(function), names[skip:], kinds[skip:])
