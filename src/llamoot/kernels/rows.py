"""Row-wise arithmetic: add, mul, scale, clamp, softcap, gather, spread, combine.

Every buffer is an address and a stride in bytes; a stride of 0 repeats one vector on every row.
"""

from llamoot.kernels.op import inner, op
from llamoot.kernels.pieces import cut, row_pieces
from llamoot.kernels.simd import LANES, fma, load_float, load_int, mul, splat, zero_floats
from llamoot.kernels.vector import divide, get, less, more, put, tanh


@op
def add(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    a: int,
    a_stride: int,
    b: int,
    b_stride: int,
    width: int,
    by: float,
) -> None:
    """out = a + b * by"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                x = get(a + row * a_stride + 4 * c, end - c)
                y = get(b + row * b_stride + 4 * c, end - c)
                put(out + row * out_stride + 4 * c, fma(y, splat(by), x), end - c)
        first, stop, start, end = cut(work, rows, width)


@op
def multiply(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    a: int,
    a_stride: int,
    b: int,
    b_stride: int,
    width: int,
) -> None:
    """out = a * b"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                x = get(a + row * a_stride + 4 * c, end - c)
                y = get(b + row * b_stride + 4 * c, end - c)
                put(out + row * out_stride + 4 * c, mul(x, y), end - c)
        first, stop, start, end = cut(work, rows, width)


@inner
def scale_row(out: int, x: int, width: int, by: float) -> None:
    """out = x * by, one row"""
    for c in range(0, width, LANES):
        put(out + 4 * c, mul(get(x + 4 * c, width - c), splat(by)), width - c)


@op
def multiply_parts(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    a: int,
    a_stride: int,
    b: int,
    b_stride: int,
    width: int,
    parts: int,
) -> None:
    """Each of `parts` equal parts of a row of a, times one value of b"""
    size = width // parts
    first, stop = row_pieces(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for part in range(parts):
                at = row * out_stride + 4 * size * part
                from_a = a + row * a_stride + 4 * size * part
                scale_row(out + at, from_a, size, load_float(b + row * b_stride + 4 * part))
        first, stop = row_pieces(work, rows, width)


@op
def scale(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    by: float,
) -> None:
    """out = x * by"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            here = out + row * out_stride + 4 * start
            scale_row(here, x + row * x_stride + 4 * start, end - start, by)
        first, stop, start, end = cut(work, rows, width)


@op
def clamp(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    limit: float,
) -> None:
    """out = min(max(x, -limit), limit)"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                v = more(splat(-limit), get(x + row * x_stride + 4 * c, end - c))
                put(out + row * out_stride + 4 * c, less(splat(limit), v), end - c)
        first, stop, start, end = cut(work, rows, width)


@op
def softcap(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    cap: float,
) -> None:
    """out = cap * tanh(x / cap)"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                v = tanh(divide(get(x + row * x_stride + 4 * c, end - c), splat(cap)))
                put(out + row * out_stride + 4 * c, mul(v, splat(cap)), end - c)
        first, stop, start, end = cut(work, rows, width)


@op
def scale_by_pos(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    pos: int,
    factors: int,
) -> None:
    """out = x * factors[pos]"""
    first, stop = row_pieces(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            by = load_float(factors + 4 * load_int(pos + 4 * row))
            scale_row(out + row * out_stride, x + row * x_stride, width, by)
        first, stop = row_pieces(work, rows, width)


@op
def gather(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    width: int,
    wanted: int,
) -> None:
    """out[i] = x[wanted[i]]"""
    first, stop = row_pieces(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            there = x + load_int(wanted + 4 * row) * x_stride
            scale_row(out + row * out_stride, there, width, 1.0)
        first, stop = row_pieces(work, rows, width)


@op
def spread(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    weights: int,
    weights_stride: int,
    width: int,
    top_k: int,
) -> None:
    """out[t * k + j] = x[t] * weights[t, j]; rows are those of out"""
    first, stop = row_pieces(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            t, j = row // top_k, row % top_k
            by = load_float(weights + t * weights_stride + 4 * j)
            scale_row(out + row * out_stride, x + t * x_stride, width, by)
        first, stop = row_pieces(work, rows, width)


@op
def combine(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    out: int,
    out_stride: int,
    x: int,
    x_stride: int,
    weights: int,
    weights_stride: int,
    width: int,
    top_k: int,
) -> None:
    """out[t] = sum over j of weights[t, j] * x[t * k + j]; address 0 for weights: a plain sum"""
    first, stop, start, end = cut(work, rows, width)
    while first < stop:
        for row in range(first, stop):
            for c in range(start, end, LANES):
                total = zero_floats()
                for j in range(top_k):
                    v = get(x + (row * top_k + j) * x_stride + 4 * c, end - c)
                    if weights == 0:
                        total = fma(v, splat(1.0), total)
                    else:
                        by = load_float(weights + row * weights_stride + 4 * j)
                        total = fma(v, splat(by), total)
                put(out + row * out_stride + 4 * c, total, end - c)
        first, stop, start, end = cut(work, rows, width)
