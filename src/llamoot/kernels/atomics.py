"""What the tape needs below Python: atomic words, a pause, a call through a pointer.

Every address is that of an int64. Build time only: imports numba.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llamoot.kernels.op import Emit, inner, instruction

_I64 = ir.IntType(64)


def _call(builder: Any, name: str, args: list[Any]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [a.type for a in args])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@instruction
def fetch_add(typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Add to a word, atomically; returns what it held before."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@instruction
def load_word(typing: Any, address: Any) -> tuple[Any, Emit]:
    """Read a word that another thread writes (acquire)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8, typ=_I64)

    return types.int64(types.int64), emit


@instruction
def store_word(typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Write a word that another thread reads (release)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        builder.store_atomic(args[1], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@instruction
def swap_if(typing: Any, address: Any, expected: Any, value: Any) -> tuple[Any, Emit]:
    """Write a word if it holds `expected`; True if it did."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@instruction
def pause(typing: Any) -> tuple[Any, Emit]:
    """Tell the processor that this thread is only waiting."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        machine = builder.module.triple.split("-")[0]
        if machine in ("x86_64", "amd64"):
            _call(builder, "llvm.x86.sse2.pause", [])
        elif machine in ("aarch64", "arm64"):
            _call(builder, "llvm.aarch64.hint", [ir.Constant(ir.IntType(32), 1)])
        return context.get_dummy_value()

    return types.void(), emit


@instruction
def call_entry(typing: Any, entry: Any, words: Any, thread: Any, threads: Any) -> tuple[Any, Emit]:
    """Call `void entry(int64 words, int64 thread, int64 threads)` through its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@instruction
def call_plain(typing: Any, address: Any) -> tuple[Any, Emit]:
    """Call a function of the operating system that takes nothing, through its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@inner
def claim(work: int) -> int:
    """The next piece of an operation's work: 0, 1, 2, … over all threads together."""
    before: int = fetch_add(work, 1)
    return before
