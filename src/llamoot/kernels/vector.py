"""What the kernels other than matrix products need of vectors: partial loads, exp, tanh, halves.

Build time only. As in `simd.py`, FLOATS is a register of float32, and no fast-math flag is set.
"""

from typing import Any

from llvmlite import ir
from numba import types

from llamoot.kernels.op import Emit, inline, instruction
from llamoot.kernels.simd import (
    FLOATS,
    HALVES,
    INTS,
    LANES,
    SHORTS,
    TARGET,
    absolute,
    add,
    as_floats,
    call_intrinsic,
    fma,
    ints,
    load_floats,
    mul,
    nearest,
    pointer,
    shift,
    splat,
    store,
    sub,
    write_first,
    zero_floats,
)

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LANE = [float(i) for i in range(LANES)]


@instruction
def load_part(typing: Any, address: Any, n: Any) -> tuple[Any, Emit]:
    """The first `n` lanes from memory and zeros; nothing behind them is read."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.Constant(ir.VectorType(_I64, LANES), list(range(LANES)))
        one = builder.insert_element(ir.Constant(lanes.type, None), args[1], _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, LANES), None)
        mask = builder.icmp_signed("<", lanes, builder.shuffle_vector(one, one, zeros))
        place = pointer(builder, args[0], FLOATS.ir)
        name = f"llvm.masked.load.v{LANES}f32.p0"
        given = [place, ir.Constant(_I32, 1), mask, ir.Constant(FLOATS.ir, None)]
        return call_intrinsic(builder, name, FLOATS.ir, given)

    return FLOATS(types.int64, types.int64), emit


@instruction
def store_part(typing: Any, address: Any, v: Any, n: Any) -> tuple[Any, Emit]:
    """Write the first `n` lanes; what follows them in memory is not touched."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write_first(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, FLOATS, types.int64), emit


@instruction
def lanes(typing: Any) -> tuple[Any, Emit]:
    """0.0, 1.0, 2.0, …"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(FLOATS.ir, _LANE)

    return FLOATS(), emit


@instruction
def divide(typing: Any, a: Any, b: Any) -> tuple[Any, Emit]:
    """a / b"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fdiv(*args)

    return FLOATS(FLOATS, FLOATS), emit


def _choose(sign: str) -> Any:
    @instruction
    def choose(typing: Any, a: Any, b: Any) -> tuple[Any, Emit]:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(sign, *args), *args)

        return FLOATS(FLOATS, FLOATS), emit

    return choose


# The smaller, the larger of each pair: one instruction each. Where one is NaN it is the second.
less, more = _choose("<"), _choose(">")


@instruction
def root(typing: Any, v: Any) -> tuple[Any, Emit]:
    """Square roots."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call_intrinsic(builder, f"llvm.sqrt.v{LANES}f32", FLOATS.ir, list(args))

    return FLOATS(FLOATS), emit


@instruction
def where_below(typing: Any, a: Any, b: Any, yes: Any, no: Any) -> tuple[Any, Emit]:
    """`yes` in the lanes where a < b, else `no`."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return FLOATS(FLOATS, FLOATS, FLOATS, FLOATS), emit


def _folded(builder: Any, v: Any, pair: Any) -> Any:
    """Lanes to one number: the upper half on the lower half until one is left."""
    n = LANES
    while n > 1:
        n //= 2
        low = ir.Constant(ir.VectorType(_I32, n), list(range(n)))
        high = ir.Constant(ir.VectorType(_I32, n), list(range(n, 2 * n)))
        v = pair(builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high))
    return builder.extract_element(v, _I32(0))


@instruction
def sum_floats(typing: Any, v: Any) -> tuple[Any, Emit]:
    """The sum of the lanes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _folded(builder, args[0], builder.fadd)

    return types.float32(FLOATS), emit


@instruction
def top_float(typing: Any, v: Any) -> tuple[Any, Emit]:
    """The greatest of the lanes."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _folded(builder, args[0], larger)

    return types.float32(FLOATS), emit


@instruction
def first_lane(typing: Any, v: Any) -> tuple[Any, Emit]:
    """One number of a vector whose lanes are all the same."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.extract_element(args[0], _I32(0))

    return types.float32(FLOATS), emit


@instruction
def swap_pairs(typing: Any, v: Any) -> tuple[Any, Emit]:
    """Lanes 1, 0, 3, 2, …"""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = ir.Constant(ir.VectorType(_I32, LANES), [i ^ 1 for i in range(LANES)])
        return builder.shuffle_vector(args[0], args[0], places)

    return FLOATS(FLOATS), emit


@instruction
def halves(typing: Any, v: Any) -> tuple[Any, Emit]:
    """The bits of float16, to the nearest; what is too large becomes infinite."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if TARGET.has("f16c") or LANES == 16 or TARGET.has("neon"):
            return builder.bitcast(builder.fptrunc(args[0], HALVES.ir), SHORTS.ir)
        return _narrow(builder, args[0])

    return SHORTS(FLOATS), emit


def _narrow(builder: Any, value: Any) -> Any:
    """The same in integers, for processors without the instruction."""
    wide = INTS.ir

    def constant(x: int) -> Any:
        return ir.Constant(wide, [x] * LANES)

    bits = builder.bitcast(value, wide)
    sign = builder.lshr(builder.and_(bits, constant(0x80000000)), constant(16))
    size = builder.and_(bits, constant(0x7FFFFFFF))
    # Small ones: adding 0.5 leaves the subnormal's bits, rounded, at the end of the mantissa.
    half = ir.Constant(FLOATS.ir, [0.5] * LANES)
    small = builder.bitcast(builder.fadd(builder.bitcast(size, FLOATS.ir), half), wide)
    small = builder.sub(small, builder.bitcast(half, wide))
    odd = builder.and_(builder.lshr(size, constant(13)), constant(1))
    normal = builder.add(builder.sub(size, constant(112 << 23)), builder.add(odd, constant(0xFFF)))
    normal = builder.lshr(normal, constant(13))
    large = builder.icmp_unsigned(">=", size, constant(0x47800000))
    result = builder.select(builder.icmp_unsigned("<", size, constant(113 << 23)), small, normal)
    result = builder.or_(builder.select(large, constant(0x7C00), result), sign)
    return builder.trunc(result, SHORTS.ir)


@inline
def get(address: int, n: int) -> Any:
    """A vector from memory, or the `n` lanes that are left of a row."""
    if n >= LANES:
        return load_floats(address)
    return load_part(address, n)


@inline
def put(address: int, v: Any, n: int) -> None:
    """A vector to memory, or as much of it as is left of a row."""
    if n >= LANES:
        store(address, v)
    else:
        store_part(address, v, n)


@inline
def constant(x: Any) -> Any:
    """A Python number in every lane, as float32."""
    return splat(types.float32(x))


@inline
def exp(x: Any) -> Any:
    """e ** x with a relative error of 2e-7; 0 below -87, e ** 88 above 88."""
    y = more(constant(-87.0), less(constant(88.0), x))
    n = nearest(mul(y, constant(1.4426950408889634)))
    r = fma(n, constant(-0.693145751953125), y)
    r = fma(n, constant(-1.428606820309417e-06), r)
    p = fma(r, constant(1.9875691500e-4), constant(1.3981999507e-3))
    p = fma(p, r, constant(8.3334519073e-3))
    p = fma(p, r, constant(4.1665795894e-2))
    p = fma(p, r, constant(1.6666665459e-1))
    p = fma(p, r, constant(5.0000001201e-1))
    p = add(fma(mul(p, r), r, r), constant(1.0))
    power = as_floats(shift(ints(add(n, constant(127.0))), 23))
    return where_below(x, constant(-87.0), zero_floats(), mul(p, power))


@inline
def sigmoid(x: Any) -> Any:
    """1 / (1 + e ** -x)"""
    return divide(constant(1.0), add(constant(1.0), exp(sub(zero_floats(), x))))


@inline
def tanh(x: Any) -> Any:
    """Hyperbolic tangent: a polynomial near 0, from exp elsewhere."""
    z = mul(x, x)
    p = fma(z, constant(-5.70498872745e-3), constant(2.06390887954e-2))
    p = fma(p, z, constant(-5.37397155531e-2))
    p = fma(p, z, constant(1.33314422036e-1))
    p = fma(p, z, constant(-3.33332819422e-1))
    near = fma(mul(p, z), x, x)
    far = sub(mul(constant(2.0), sigmoid(mul(x, constant(2.0)))), constant(1.0))
    return where_below(absolute(x), constant(0.625), near, far)


@inline
def erf(x: Any) -> Any:
    """Error function, absolute error 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    a = absolute(x)
    t = divide(constant(1.0), fma(a, constant(0.3275911), constant(1.0)))
    p = fma(t, constant(1.061405429), constant(-1.453152027))
    p = fma(p, t, constant(1.421413741))
    p = fma(p, t, constant(-0.284496736))
    p = fma(p, t, constant(0.254829592))
    y = sub(constant(1.0), mul(mul(p, t), exp(sub(zero_floats(), mul(a, a)))))
    return where_below(x, zero_floats(), sub(zero_floats(), y), y)


@inline
def softplus(x: Any) -> Any:
    """log(1 + e ** x): the greater of x and 0, and log(1 + u) as the series of 2 artanh."""
    u = exp(sub(zero_floats(), absolute(x)))
    s = divide(u, add(u, constant(2.0)))
    z = mul(s, s)
    p = fma(z, constant(2.0 / 15), constant(2.0 / 13))
    p = fma(p, z, constant(2.0 / 11))
    p = fma(p, z, constant(2.0 / 9))
    p = fma(p, z, constant(2.0 / 7))
    p = fma(p, z, constant(2.0 / 5))
    p = fma(p, z, constant(2.0 / 3))
    p = fma(p, z, constant(2.0))
    return fma(p, s, more(zero_floats(), x))
