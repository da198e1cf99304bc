"""What this machine can do at most: bytes read and 8-bit products. Build time only."""

from llamoot.kernels.atomics import claim
from llamoot.kernels.dot import dot_small_tile, read_addresses, zero_tile
from llamoot.kernels.op import op
from llamoot.kernels.simd import LANES, add, load_ints, load_quads, stack, store, total

STEP = 4 * LANES  # bytes of one vector
TOKENS = 8
TABLE, PLACE = 8 * TOKENS, 64


@op
def read(work: int, rows: int, thread: int, threads: int, x: int, size: int, out: int) -> None:
    """Read `rows` pieces of `size` bytes, a multiple of 256, that lie one after another."""
    while True:
        piece = claim(work)
        if piece >= rows:
            break
        p = x + piece * size
        a, b, c, d = load_ints(p), load_ints(p), load_ints(p), load_ints(p)
        for i in range(p, p + size, 4 * STEP):
            a, b = add(a, load_ints(i)), add(b, load_ints(i + STEP))
            c, d = add(c, load_ints(i + 2 * STEP)), add(d, load_ints(i + 3 * STEP))
        store(out + 8 * (piece % 64), total(add(add(a, b), add(c, d))))


@op
def multiply(work: int, rows: int, thread: int, threads: int, x: int, turns: int, out: int) -> None:
    """`rows` times `turns` times 8 dot products of a vector; `x` has a few hundred bytes."""
    table = stack(TABLE)
    for i in range(TOKENS):
        store(table + 8 * i, x + PLACE * i)
    base = read_addresses(table, TOKENS)
    weights = load_quads(x)
    while True:
        piece = claim(work)
        if piece >= rows:
            break
        sums = zero_tile(base)
        for _ in range(turns):
            sums = dot_small_tile(sums, weights, base, 0)
        for i in range(TOKENS):
            store(out + 8 * (piece % 64), total(sums[i]))
