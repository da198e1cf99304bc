"""The 8-bit dot product, in the best form the target has. Build time only: imports numba.

`LOWERING` says which form that is. Weights come as QUADS: four neighbouring columns of each of
LANES rows. Four activation bytes are repeated over the rows, and each row's sum of four products
is added to its int32 lane. Every form gives the same integers.

*Small* weights are 0…127: bytes that may be read as signed or unsigned alike. *Wide* ones are
signed bytes; a form that only multiplies unsigned by signed bytes adds BIAS to each of them, which
`floats_tile` takes back through the sum of the activations.
"""

from typing import Any

from llvmlite import ir
from numba import types

from llamoot.kernels.op import constants, instruction
from llamoot.kernels.simd import (
    FLOATS,
    INTS,
    LANES,
    QUADS,
    TARGET,
    Typed,
    Vec,
    call_intrinsic,
    write,
    write_first,
)

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _choose() -> str:
    if TARGET.has("avx512vnni") and LANES == 16:
        return "avx512-vnni"
    if TARGET.has("avxvnni") and LANES == 8:
        return "avx-vnni"
    if LANES == 16:
        return "avx512"
    if LANES == 8:
        return "avx2"
    return "neon-dotprod" if TARGET.has("dotprod") else "generic"


LOWERING = _choose()
BIAS = 128 if LOWERING in ("avx512-vnni", "avx-vnni") else 0


def _vnni(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    bits = 32 * LANES
    # Older LLVM takes int32 vectors; newer ones read that declaration too and convert.
    args = [total, builder.bitcast(unsigned, INTS.ir), builder.bitcast(signed, INTS.ir)]
    return call_intrinsic(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", INTS.ir, args)


def _pair_sums(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """maddubs adds pairs of products in int16: safe while no product exceeds 127 * 128."""
    name = "llvm.x86.avx512.pmaddubs.w.512" if LANES == 16 else "llvm.x86.avx2.pmadd.ub.sw"
    shorts = ir.VectorType(_I16, 2 * LANES)
    pairs = call_intrinsic(builder, name, shorts, [unsigned, signed])
    name = "llvm.x86.avx512.pmaddw.d.512" if LANES == 16 else "llvm.x86.avx2.pmadd.wd"
    ones = ir.Constant(shorts, [1] * (2 * LANES))
    fours = call_intrinsic(builder, name, INTS.ir, [pairs, ones])
    return builder.add(total, fours)


def _sdot(builder: Any, total: Any, weights: Any, signed: Any) -> Any:
    return call_intrinsic(
        builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", INTS.ir, [total, weights, signed]
    )


def _plain(builder: Any, total: Any, weights: Any, signed: Any) -> Any:
    """Sixteen-bit products of even and odd bytes, which LLVM knows how to add in pairs."""
    shorts, longs = ir.VectorType(_I16, 4 * LANES), ir.VectorType(_I32, 4 * LANES)
    a, b = builder.sext(weights, shorts), builder.sext(signed, shorts)
    products = builder.sext(builder.mul(a, b), longs)  # at most 128 * 127: fits 16 bits
    undefined = ir.Constant(longs, ir.Undefined)
    for first in range(4):
        places = [4 * lane + first for lane in range(LANES)]
        mask = ir.Constant(ir.VectorType(_I32, LANES), places)
        total = builder.add(total, builder.shuffle_vector(products, undefined, mask))
    return total


def _dot_small(builder: Any, total: Any, weights: Any, signed: Any) -> Any:
    if LOWERING in ("avx512-vnni", "avx-vnni"):
        return _vnni(builder, total, weights, signed)
    if LOWERING in ("avx512", "avx2"):
        return _pair_sums(builder, total, weights, signed)
    form = _sdot if LOWERING == "neon-dotprod" else _plain
    return form(builder, total, weights, signed)


def _dot_wide(builder: Any, total: Any, weights: Any, signed: Any) -> Any:
    if BIAS:
        flipped = builder.xor(weights, ir.Constant(QUADS.ir, [-BIAS] * QUADS.n))
        return _vnni(builder, total, flipped, signed)
    if LOWERING not in ("avx512", "avx2"):
        return _dot_small(builder, total, weights, signed)
    # |w| * (x with w's sign): the same product, and |w| is at most 128.
    zero = ir.Constant(QUADS.ir, None)
    below = builder.icmp_signed("<", weights, zero)
    size = builder.select(below, builder.sub(zero, weights), weights)
    turned = builder.select(below, builder.sub(zero, signed), signed)
    return _pair_sums(builder, total, size, turned)


# --- tiles: one vector for each token ----------------------------------------------------------


def _each(builder: Any, tile: Any, make: Any) -> Any:
    """A tile of make(token, vector) for every vector of `tile`."""
    for token in range(tile.type.count):
        vector = make(token, builder.extract_value(tile, token))
        tile = builder.insert_value(tile, vector, token)
    return tile


def read_splat(builder: Any, base: Any, token: int, offset: Any, vec: Vec) -> Any:
    """32 bits at base[token] + offset, repeated over a vector of any lanes."""
    scalar = ir.FloatType() if vec.lane == "f32" else _I32
    address = builder.add(builder.extract_value(base, token), offset)
    value = builder.load(builder.inttoptr(address, scalar.as_pointer()), typ=scalar)
    value.align = 4
    wide = ir.VectorType(scalar, LANES)
    one = builder.insert_element(ir.Constant(wide, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    splat = builder.shuffle_vector(one, ir.Constant(wide, ir.Undefined), zeros)
    return builder.bitcast(splat, vec.ir)


def _dot_tile(form: Any) -> Any:
    @instruction
    def dot(typing: Any, tile: Any, weights: Any, base: Any, offset: Any) -> Typed:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            tile, weights, base, offset = args

            def one(token: int, vector: Any) -> Any:
                x = read_splat(builder, base, token, offset, QUADS)
                return form(builder, vector, weights, x)

            return _each(builder, tile, one)

        return tile(tile, weights, base, types.int64), emit

    return dot


# tile[t] += weights · the four bytes at base[t] + offset
dot_small_tile, dot_wide_tile = _dot_tile(_dot_small), _dot_tile(_dot_wide)


def _tile(vec: Vec, base: Any) -> Any:
    return types.UniTuple(vec, base.count)


@instruction
def zero_tile(typing: Any, base: Any) -> Typed:
    """Sums of int32 that begin at nothing."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return _tile(INTS, base)(base), emit


@instruction
def same_tile(typing: Any, vector: Any, base: Any) -> Typed:
    """The same vector for every token of `base`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile = ir.Constant(context.get_value_type(signature.return_type), None)
        return _each(builder, tile, lambda token, _: args[0])

    return _tile(vector, base)(vector, base), emit


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call_intrinsic(builder, f"llvm.fma.v{LANES}f32", a.type, [a, b, c])


@constants
def floats_tile(typing: Any, tile: Any, base: Any, offset: Any, bias: Any) -> Typed:
    """float(tile[t]) + bias (a constant) * the float at base[t] + offset.

    Exact for the sums of a block: all are whole numbers below 2^24.
    """
    n = float(bias.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out = ir.Constant(context.get_value_type(signature.return_type), None)
        factor = ir.Constant(FLOATS.ir, [n] * LANES)

        def one(token: int, _: Any) -> Any:
            whole = builder.sitofp(builder.extract_value(args[0], token), FLOATS.ir)
            if not n:
                return whole
            return _fused(
                builder, factor, read_splat(builder, args[1], token, args[2], FLOATS), whole
            )

        return _each(builder, out, one)

    return _tile(FLOATS, base)(tile, base, types.int64, bias), emit


@instruction
def scaled_tile(typing: Any, tile: Any, scale: Any) -> Typed:
    """tile[t] * scale"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _each(builder, args[0], lambda _, vector: builder.fmul(vector, args[1]))

    return tile(tile, scale), emit


@instruction
def add_scaled_tile(typing: Any, out: Any, tile: Any, scale: Any) -> Typed:
    """out[t] + tile[t] * scale, rounded once"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def one(token: int, vector: Any) -> Any:
            return _fused(builder, builder.extract_value(args[1], token), args[2], vector)

        return _each(builder, args[0], one)

    return out(out, tile, scale), emit


@instruction
def add_product_tile(typing: Any, out: Any, tile: Any, base: Any, offset: Any) -> Typed:
    """out[t] + tile[t] * the float at base[t] + offset, rounded once"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def one(token: int, vector: Any) -> Any:
            factor = read_splat(builder, args[2], token, args[3], out.dtype)
            return _fused(builder, builder.extract_value(args[1], token), factor, vector)

        return _each(builder, args[0], one)

    return out(out, tile, base, types.int64), emit


@instruction
def add_outer_tile(typing: Any, out: Any, vector: Any, base: Any, offset: Any) -> Typed:
    """out[t] + vector * the float at base[t] + offset, rounded once"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def one(token: int, sums: Any) -> Any:
            factor = read_splat(builder, args[2], token, args[3], vector)
            return _fused(builder, args[1], factor, sums)

        return _each(builder, args[0], one)

    return out(out, vector, base, types.int64), emit


@constants
def read_addresses(typing: Any, table: Any, n: Any) -> Typed:
    """A tuple of `n` (a constant) addresses from the table of int64 at `table`."""
    kind = types.UniTuple(types.int64, n.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.get_value_type(kind)
        room = builder.inttoptr(args[0], array.as_pointer())
        tile = ir.Constant(array, ir.Undefined)
        for token in range(n.literal_value):
            place = builder.gep(room, [ir.Constant(_I32, 0), ir.Constant(_I32, token)])
            tile = builder.insert_value(tile, builder.load(place, typ=array.element), token)
        return tile

    return kind(types.int64, n), emit


@instruction
def store_tile(typing: Any, tile: Any, table: Any, offset: Any, live: Any, lanes: Any) -> Typed:
    """The first `lanes` lanes of the first `live` vectors to (address in `table`) + offset."""
    count = tile.count

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        tile, table, offset, live, lanes = args
        whole = builder.icmp_signed(">=", lanes, ir.Constant(_I64, LANES))
        for token in range(count):
            with builder.if_then(builder.icmp_signed("<", ir.Constant(_I64, token), live)):
                entry = builder.add(table, ir.Constant(_I64, 8 * token))
                address = builder.load(builder.inttoptr(entry, _I64.as_pointer()), typ=_I64)
                address = builder.add(address, offset)
                vector = builder.extract_value(tile, token)
                with builder.if_else(whole) as (all_of_it, some):
                    with all_of_it:
                        write(builder, address, vector)
                    with some:
                        write_first(builder, address, vector, lanes)
        return context.get_dummy_value()

    return types.void(tile, *[types.int64] * 4), emit
