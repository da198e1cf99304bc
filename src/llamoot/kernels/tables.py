"""Tables of sixteen bytes that nibbles are places in. Build time only: imports numba."""

from typing import Any

from llvmlite import ir

from llamoot.kernels.op import constants
from llamoot.kernels.simd import LANES, QUADS, TARGET, Typed, call_intrinsic
from llamoot.quant import codebooks

NONLINEAR, DOUBLED = 0, 1  # IQ4's values; E2M1's, doubled, plus 12 to make them small
_TABLES = (
    [int(x) for x in codebooks.NONLINEAR],
    [int(x) + 12 for x in codebooks.E2M1],
)


def _shuffle() -> str:
    """The instruction that looks up all bytes of a vector at once; '' where there is none."""
    if TARGET.has("neon"):
        return "llvm.aarch64.neon.tbl1.v16i8"
    if LANES == 4:
        return "llvm.x86.ssse3.pshuf.b.128" if TARGET.has("ssse3") else ""
    return "llvm.x86.avx512.pshuf.b.512" if LANES == 16 else "llvm.x86.avx2.pshuf.b"


@constants
def lookup(typing: Any, places: Any, table: Any) -> Typed:
    """The byte of a table (NONLINEAR or DOUBLED) at each of `places`, which are 0…15."""
    values = _TABLES[table.literal_value]

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if name := _shuffle():
            whole = ir.Constant(QUADS.ir, values * (QUADS.n // 16))
            return call_intrinsic(builder, name, QUADS.ir, [whole, args[0]])
        found = ir.Constant(QUADS.ir, [values[0]] * QUADS.n)
        for place in range(1, 16):
            here = builder.icmp_signed("==", args[0], ir.Constant(QUADS.ir, [place] * QUADS.n))
            found = builder.select(here, ir.Constant(QUADS.ir, [values[place]] * QUADS.n), found)
        return found

    return QUADS(places, table), emit
