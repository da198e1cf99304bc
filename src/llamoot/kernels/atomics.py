"""What the tape needs below Python: atomic words, a pause, a call through a pointer.

Every address is that of an int64. Build time only: imports numba.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llamoot.kernels.op import inner

_I64 = ir.IntType(64)
Emit = Callable[..., Any]


@intrinsic
def fetch_add(typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Add to a word, atomically; returns what it held before."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def load_word(typing: Any, address: Any) -> tuple[Any, Emit]:
    """Read a word that another thread writes (acquire)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8, typ=_I64)

    return types.int64(types.int64), emit


@intrinsic
def store_word(typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Write a word that another thread reads (release)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        builder.store_atomic(args[1], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def pause(typing: Any) -> tuple[Any, Emit]:
    """Tell the processor that this thread is only waiting."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        machine = builder.module.triple.split("-")[0]
        if machine in ("x86_64", "amd64"):
            builder.asm(kind, "pause", "~{memory}", [], side_effect=True)
        elif machine in ("aarch64", "arm64"):
            builder.asm(kind, "yield", "~{memory}", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def call_entry(typing: Any, entry: Any, words: Any, thread: Any, threads: Any) -> tuple[Any, Emit]:
    """Call `void entry(int64 words, int64 thread, int64 threads)` through its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@inner
def claim(work: int) -> int:
    """The next piece of an operation's work: 0, 1, 2, … over all threads together."""
    return fetch_add(work, 1)
