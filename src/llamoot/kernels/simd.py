"""Vector types for numba: each function is one LLVM instruction or a handful. Build time only.

A vector holds LANES values of 32 bits (or as many of 16 or 8 bits): a register's worth of weight
rows. A *tile* is a tuple of vectors, one for each token; functions named `…_tile` do the same to
each of them, so that a kernel is written once for any number of tokens. Addresses are int64.

No fast-math flag is set here: a sum is added up in the order it is written, whatever the number
of tokens, so that a token's result does not depend on its batch.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from llamoot.kernels.op import Emit, constants, instruction
from llamoot.kernels.target import current

TARGET = current()
# One register of 32-bit lanes: 512 bits, 256 bits, or the 128 bits that every CPU has.
LANES = 16 if TARGET.has("avx512f", "avx512bw") else 8 if TARGET.has("avx2") else 4

Typed = tuple[Any, Emit]

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()
_LANE = {"i8": _I8, "i16": _I16, "i32": _I32, "f16": _F16, "f32": _F32}


class Vec(types.Type):  # type: ignore[misc]
    """A vector of `n` lanes: i8, i16, i32, f16 or f32."""

    def __init__(self, lane: str, n: int) -> None:
        self.lane, self.n = lane, n
        self.ir = ir.VectorType(_LANE[lane], n)
        super().__init__(name=f"{lane}x{n}")


@register_model(Vec)
class _VecModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vec: Vec) -> None:
        super().__init__(manager, vec, vec.ir)


QUADS = Vec("i8", 4 * LANES)  # four neighbouring columns of each row
INTS, FLOATS = Vec("i32", LANES), Vec("f32", LANES)
HALVES, SHORTS, BYTES = Vec("f16", LANES), Vec("i16", LANES), Vec("i8", LANES)


# --- memory ------------------------------------------------------------------------------------


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """An int64 address as a pointer to an LLVM type."""
    return builder.inttoptr(address, kind.as_pointer())


def _read(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(pointer(builder, address, kind), typ=kind)
    value.align = 1
    return value


def _loader(result: Any, kind: Any) -> Any:
    @instruction
    def load(typing: Any, address: Any) -> Typed:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _read(builder, args[0], kind)

        return result(types.int64), emit

    return load


load_quads, load_ints, load_floats, load_halves, load_shorts, load_bytes = (
    _loader(vec, vec.ir) for vec in (QUADS, INTS, FLOATS, HALVES, SHORTS, BYTES)
)
load_int, load_float = _loader(types.int32, _I32), _loader(types.float32, _F32)
load_long, load_short, load_byte, load_signed = (
    _loader(kind, ir.IntType(kind.bitwidth))
    for kind in (types.int64, types.uint16, types.uint8, types.int8)
)


def write(builder: Any, address: Any, value: Any) -> None:
    """Store a value at an address of any alignment."""
    builder.store(value, pointer(builder, address, value.type)).align = 1


def write_first(builder: Any, address: Any, vector: Any, n: Any) -> None:
    """Store the first `n` lanes; what follows them in memory is not touched."""
    vec = vector.type
    lanes = ir.Constant(ir.VectorType(_I64, vec.count), list(range(vec.count)))
    mask = builder.icmp_signed("<", lanes, _splat(builder, n, vec.count))
    place, align = pointer(builder, address, vec), ir.Constant(_I32, 1)
    name = f"llvm.masked.store.v{vec.count}{_LETTER[vec.element]}.p0"
    call_intrinsic(builder, name, ir.VoidType(), [vector, place, align, mask])


@instruction
def store(typing: Any, address: Any, value: Any) -> Typed:
    """Write a vector or a number at an address of any alignment."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, value), emit


_LETTER = {_I8: "i8", _I16: "i16", _I32: "i32", _F16: "f16", _F32: "f32"}


def call_intrinsic(
    builder: Any, name: str, result: Any, args: list[Any], kinds: list[Any] | None = None
) -> Any:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, kinds or [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


@constants
def stack(typing: Any, n: Any) -> Typed:
    """Address of `n` bytes (a constant) on the stack, 64-byte aligned, alive in this function."""
    size = n.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            room = builder.alloca(ir.ArrayType(_I8, size))
            room.align = 64
        return builder.ptrtoint(room, _I64)

    return types.int64(n), emit


@instruction
def prefetch(typing: Any, address: Any) -> Typed:
    """Ask for a cache line that will be read soon; the address need not exist."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        hints = [ir.Constant(_I32, n) for n in (0, 3, 1)]
        all_args = [pointer(builder, args[0], _I8), *hints]
        call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), all_args)
        return context.get_dummy_value()

    return types.void(types.int64), emit


# --- making vectors ----------------------------------------------------------------------------


def _splat(builder: Any, value: Any, n: int) -> Any:
    kind = ir.VectorType(value.type, n)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, n), [0] * n)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _constant(vec: Vec, value: int) -> Any:
    return ir.Constant(vec.ir, [value] * vec.n)


@instruction
def splat(typing: Any, value: Any) -> Typed:
    """A float32 or int32 in every lane."""
    vec = FLOATS if isinstance(value, types.Float) else INTS
    own = types.float32 if vec is FLOATS else types.int32

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], vec.n)

    return vec(own), emit


def _read_splat(builder: Any, address: Any, vec: Vec) -> Any:
    """Read 32 bits and repeat them over a vector of any lanes."""
    scalar = _F32 if vec.lane == "f32" else _I32
    wide = _splat(builder, _read(builder, address, scalar), LANES)
    return builder.bitcast(wide, vec.ir)


@instruction
def zero_floats(typing: Any) -> Typed:
    """0.0 in every lane."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(FLOATS.ir, None)

    return FLOATS(), emit


# --- arithmetic, lane by lane ------------------------------------------------------------------


def _binary(floating: str, integral: str) -> Any:
    @instruction
    def operate(typing: Any, a: Any, b: Any) -> Typed:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = floating if signature.args[0].lane[0] == "f" else integral
            return getattr(builder, kind)(*args)

        return a(a, a), emit

    return operate


add, sub, mul = _binary("fadd", "add"), _binary("fsub", "sub"), _binary("fmul", "mul")
either = _binary("", "or_")


@constants
def mask_bits(typing: Any, v: Any, bits: Any) -> Typed:
    """v & bits, a constant, in every lane."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.and_(args[0], _constant(v, bits.literal_value))

    return v(v, bits), emit


@constants
def shift(typing: Any, v: Any, n: Any) -> Typed:
    """Bits of every lane moved up by the constant `n` (down by -n, zeros moving in)."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        move = builder.shl if n.literal_value > 0 else builder.lshr
        return move(args[0], _constant(v, abs(n.literal_value)))

    return v(v, n), emit


def _call(name: str, n_args: int, vecs: tuple[Vec, ...]) -> Any:
    """An LLVM intrinsic on `n_args` vectors of one kind."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vec = signature.return_type
        full = f"{name}.v{vec.n}{vec.lane}"
        return call_intrinsic(builder, full, vec.ir, list(args))

    @instruction
    def one(typing: Any, a: Any) -> Typed:
        assert a in vecs
        return a(a), emit

    @instruction
    def two(typing: Any, a: Any, b: Any) -> Typed:
        assert a in vecs
        return a(a, a), emit

    @instruction
    def three(typing: Any, a: Any, b: Any, c: Any) -> Typed:
        assert a in vecs
        return a(a, a, a), emit

    return (one, two, three)[n_args - 1]


absolute = _call("llvm.fabs", 1, (FLOATS,))
nearest = _call("llvm.rint", 1, (FLOATS,))  # halves go to the even neighbour
greater = _call("llvm.maxnum", 2, (FLOATS,))
fma = _call("llvm.fma", 3, (FLOATS,))  # a * b + c, rounded once


@instruction
def largest(typing: Any, v: Any) -> Typed:
    """The greatest lane of a vector of floats."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call_intrinsic(builder, f"llvm.vector.reduce.fmax.v{v.n}f32", _F32, list(args))

    return types.float32(v), emit


@instruction
def total(typing: Any, v: Any) -> Typed:
    """The sum of the lanes of a vector of int32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call_intrinsic(builder, f"llvm.vector.reduce.add.v{v.n}i32", _I32, list(args))

    return types.int32(v), emit


# --- conversions -------------------------------------------------------------------------------


def half_to_float(builder: Any, value: Any) -> Any:
    """f16 lanes to f32, also where the CPU has no instruction for it (the rest never sees Inf)."""
    n = value.type.count
    wide = ir.VectorType(_F32, n)
    if TARGET.has("f16c") or LANES == 16 or TARGET.has("neon"):
        return builder.fpext(value, wide)
    words = ir.VectorType(_I32, n)

    def constant(x: int) -> Any:
        return ir.Constant(words, [x] * n)

    bits = builder.zext(builder.bitcast(value, ir.VectorType(_I16, n)), words)
    size = builder.shl(builder.and_(bits, constant(0x7FFF)), constant(13))
    sign = builder.shl(builder.and_(bits, constant(0x8000)), constant(16))
    scaled = builder.fmul(builder.bitcast(size, wide), ir.Constant(wide, [2.0**112] * n))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, words), sign), wide)


@instruction
def floats(typing: Any, v: Any) -> Typed:
    """float32 of f16, of int32, or of signed bytes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if v.lane == "f16":
            return half_to_float(builder, args[0])
        return builder.sitofp(args[0], FLOATS.ir)

    return FLOATS(v), emit


@instruction
def positive_floats(typing: Any, v: Any) -> Typed:
    """float32 of unsigned bytes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.uitofp(args[0], FLOATS.ir)

    return FLOATS(v), emit


@instruction
def ints(typing: Any, v: Any) -> Typed:
    """int32 of floats that are whole, or of unsigned shorts or bytes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if v.lane == "f32":
            return builder.fptosi(args[0], INTS.ir)
        return builder.zext(args[0], INTS.ir)

    return INTS(v), emit


@instruction
def low_bytes(typing: Any, v: Any) -> Typed:
    """The lowest byte of each int32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.trunc(args[0], BYTES.ir)

    return BYTES(v), emit


@instruction
def as_floats(typing: Any, v: Any) -> Typed:
    """The bits of int32 lanes read as float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], FLOATS.ir)

    return FLOATS(v), emit


def _truncation(kind: Any) -> Any:
    @instruction
    def truncate(typing: Any, value: Any) -> Typed:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.trunc(args[0], ir.IntType(kind.bitwidth))

        return kind(types.int64), emit

    return truncate


# The lowest bits of an int64.
to_byte, to_short, to_int = (_truncation(k) for k in (types.uint8, types.uint16, types.int32))


@instruction
def half_at(typing: Any, address: Any) -> Typed:
    """The f16 at an address as float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = _read(builder, args[0], ir.VectorType(_F16, 1))
        return builder.extract_element(half_to_float(builder, one), ir.Constant(_I32, 0))

    return types.float32(types.int64), emit


@instruction
def brain_at(typing: Any, address: Any) -> Typed:
    """The bfloat16 at an address as float32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.zext(_read(builder, args[0], _I16), _I32)
        return builder.bitcast(builder.shl(bits, ir.Constant(_I32, 16)), _F32)

    return types.float32(types.int64), emit
