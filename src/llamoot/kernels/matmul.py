"""Products of packed weights and rows of activations. Build time only: imports numba.

`int8_op` and `float_op` make the operation of one weight type; the modules `matmul_<type>.py`
hold one each, so that only what a model needs is compiled. All have the same parameters.

A *tile* is 16 rows of weights times 1, 4 or 8 rows of activations ("tokens"). Weights are unpacked
in registers, once for a tile. Every tile adds up its columns in the same order with the same
roundings, so a token's result does not depend on how many there are.
"""

from collections.abc import Callable
from typing import Any

from llamoot.kernels.atomics import claim
from llamoot.kernels.dot import (
    BIAS,
    add_outer_tile,
    add_product_tile,
    add_scaled_tile,
    dot_small_tile,
    dot_wide_tile,
    floats_tile,
    read_addresses,
    same_tile,
    scaled_tile,
    store_tile,
    zero_tile,
)
from llamoot.kernels.forms import Form
from llamoot.kernels.op import Op, expand, inner, op
from llamoot.kernels.record import (
    LESS,
    LESS_HIGH,
    LESS_LOW,
    RECORD,
    SCALE,
    SUM,
    SUM_HIGH,
    SUM_LOW,
)
from llamoot.kernels.simd import (
    LANES,
    TARGET,
    load_floats,
    load_long,
    prefetch,
    stack,
    store,
    zero_floats,
)

GROUP = 16  # rows of weights that are interleaved
TILE = 8 if LANES == 16 or TARGET.has("neon") else 4  # tokens of the widest: what registers hold
SPAN = 64  # tokens that a thread claims at once
# How far ahead weights are asked for, by the line: the processor alone does not keep enough of
# them under way once several tokens are multiplied.
AHEAD, LINE = 4096, 64
TABLE = 8 * TILE  # bytes of the addresses of a tile

Product = Callable[..., Any]


def _quarter(dot: Any) -> Any:
    """Four vectors of quants, 16 columns, into the sums of a tile."""

    @expand
    def quarter(sums: Any, a: Any, b: Any, c: Any, d: Any, base: Any, x: int) -> Any:
        sums = dot(sums, a, base, x)
        sums = dot(sums, b, base, x + 4)
        sums = dot(sums, c, base, x + 8)
        return dot(sums, d, base, x + 12)

    return quarter


def _block(form: Form) -> Product:
    """One block of 32 columns into the sums of a tile; `x` is its record, relative to `base`."""
    scales, quants, scale_bytes = form.scales, form.quants, form.scale_bytes
    bias = BIAS if form.wide else form.bias
    half = _quarter(dot_wide_tile if form.wide else dot_small_tile)

    @expand
    def whole(p: int, part: int, base: Any, x: int, scale: Any) -> Any:
        a, b, c, d, e, f, g, h = quants(p + scale_bytes, part)
        dots = half(zero_tile(base), a, b, c, d, base, x)
        dots = half(dots, e, f, g, h, base, x + 16)
        return scaled_tile(floats_tile(dots, base, x + LESS, bias), scale)

    @expand
    def one(sums: Any, p: int, part: int, head: Any, base: Any, x: int) -> Any:
        scale = scales(p, part, head)[0]
        return add_product_tile(sums, whole(p, part, base, x, scale), base, x + SCALE)

    @expand
    def minimum(sums: Any, p: int, part: int, head: Any, base: Any, x: int) -> Any:
        scale, least = scales(p, part, head)
        sums = add_product_tile(sums, whole(p, part, base, x, scale), base, x + SCALE)
        return add_outer_tile(sums, least, base, x + SUM)

    @expand
    def halves(p: int, part: int, first: Any, last: Any, base: Any, x: int) -> Any:
        a, b, c, d, e, f, g, h = quants(p + scale_bytes, part)
        low = half(zero_tile(base), a, b, c, d, base, x)
        high = half(zero_tile(base), e, f, g, h, base, x + 16)
        sums = scaled_tile(floats_tile(low, base, x + LESS_LOW, bias), first)
        return add_scaled_tile(sums, floats_tile(high, base, x + LESS_HIGH, bias), last)

    @expand
    def two(sums: Any, p: int, part: int, head: Any, base: Any, x: int) -> Any:
        first, last = scales(p, part, head)
        return add_product_tile(sums, halves(p, part, first, last, base, x), base, x + SCALE)

    @expand
    def two_mins(sums: Any, p: int, part: int, head: Any, base: Any, x: int) -> Any:
        first, last, low, high = scales(p, part, head)
        sums = add_product_tile(sums, halves(p, part, first, last, base, x), base, x + SCALE)
        sums = add_outer_tile(sums, low, base, x + SUM_LOW)
        return add_outer_tile(sums, high, base, x + SUM_HIGH)

    return {"one": one, "min": minimum, "two": two, "two mins": two_mins}[form.kind]


def _int8_product(form: Form) -> Product:
    """(address, part, super-blocks, base, sums) -> sums of a whole row."""
    block, head, blocks = _block(form), form.head, form.blocks
    head_bytes, step = form.head_bytes, form.scale_bytes + form.quant_bytes

    @expand
    def product(p: int, part: int, supers: int, base: Any, sums: Any) -> Any:
        x = 0
        for _ in range(supers):
            shared = head(p, part)
            p += head_bytes
            for _ in range(blocks):
                for line in range(0, step, LINE):
                    prefetch(p + AHEAD + line)
                sums = block(sums, p, part, shared, base, x)
                p += step
                x += RECORD
        return sums

    return product


def _float_product(load: Any, size: int) -> Product:
    """The same for weights of `size` bytes that `load` reads as floats; a super-block is a column.

    Activations are float32.
    """

    @expand
    def product(p: int, part: int, columns: int, base: Any, sums: Any) -> Any:
        p += size * part
        for x in range(columns):
            prefetch(p + AHEAD)
            sums = add_outer_tile(sums, load(p), base, 4 * x)
            p += size * GROUP
        return sums

    return product


def _tile(product: Product, n: int) -> Any:
    """16 rows of weights at `p` times `n` tokens, of which `live` are stored.

    `xs` and `ys` are tables of the addresses of activations and results; `y` is added to the
    latter. `lanes` of the 16 rows exist. `bias` is an address of 16 floats, or 0.
    """

    @inner
    def tile(
        p: int, supers: int, xs: int, ys: int, y: int, live: int, lanes: int, bias: int
    ) -> None:
        base = read_addresses(xs, n)
        for part in range(0, GROUP, LANES):
            if part < lanes:
                first = load_floats(bias + 4 * part) if bias else zero_floats()
                sums = product(p, part, supers, base, same_tile(first, base))
                store_tile(sums, ys, y + 4 * part, live, lanes - part)

    return tile


def _tiles(product: Product) -> Any:
    """A tile of any number of tokens, up to TILE."""
    tile_1, tile_4, tile_n = _tile(product, 1), _tile(product, 4), _tile(product, TILE)

    @inner
    def tiles(
        p: int, supers: int, xs: int, ys: int, y: int, live: int, lanes: int, bias: int
    ) -> None:
        if live == 1:
            tile_1(p, supers, xs, ys, y, live, lanes, bias)
        elif live <= 4:
            tile_4(p, supers, xs, ys, y, live, lanes, bias)
        else:
            tile_n(p, supers, xs, ys, y, live, lanes, bias)

    return tiles


def _rows_op(module: str, product: Product) -> Op:
    """The operation for one type of weights."""
    tiles = _tiles(product)

    def matmul(
        work: int,
        rows: int,
        thread: int,
        threads: int,
        w: int,  # packed weights
        group_bytes: int,
        supers: int,  # super-blocks of a row
        n_out: int,  # rows of weights
        x: int,  # activations: records, or floats for float weights
        x_stride: int,  # bytes
        y: int,
        y_stride: int,
        bias: int,  # floats, each expert's padded to whole groups; or 0
        chunk: int,  # groups that a thread claims at once
        plan: int,  # experts: see experts.py; 0 for one matrix
        share: int,  # rows of y for one row of x
    ) -> None:
        """y (rows, n_out) = x @ w.T + bias"""
        xs, ys = stack(TABLE), stack(TABLE)
        groups = (n_out + GROUP - 1) // GROUP
        chunks = (groups + chunk - 1) // chunk
        sets, spans = 1, (rows + SPAN - 1) // SPAN
        if plan:
            sets, spans = load_long(plan), 1
        first, last, order, expert = 0, rows, 0, 0
        while True:
            piece = claim(work)
            if piece >= sets * spans * chunks:
                break
            begin, piece = piece % chunks * chunk, piece // chunks
            if plan:
                entry = plan + 16 + 24 * piece
                expert, first, last = load_long(entry), load_long(entry + 8), load_long(entry + 16)
                order = load_long(plan + 8)
            else:
                first, last = piece * SPAN, min(rows, piece * SPAN + SPAN)
            end = min(begin + chunk, groups)
            own = w + expert * groups * group_bytes
            while first < last:
                live = min(TILE, last - first)
                for i in range(TILE):
                    row = first + min(i, live - 1)
                    if plan:
                        row = load_long(order + 8 * row)
                    store(xs + 8 * i, x + row // share * x_stride)
                    store(ys + 8 * i, y + row * y_stride)
                for g in range(begin, end):
                    near = bias + 64 * (expert * groups + g) if bias else 0
                    lanes = min(GROUP, n_out - g * GROUP)
                    tiles(own + g * group_bytes, supers, xs, ys, 64 * g, live, lanes, near)
                first += live

    matmul.__module__ = module
    return op(matmul)


def int8_op(module: str, form: Form) -> Op:
    """The operation that multiplies weights of this form; `module` is the file it is for."""
    return _rows_op(module, _int8_product(form))


def float_op(module: str, load: Any, size: int) -> Op:
    """The operation for weights of `size` bytes that `load` reads as float vectors."""
    return _rows_op(module, _float_product(load, size))
