"""Which rows go to which expert: the plan that `matmul` of experts' weights follows.

Words of 64 bits: how many experts have rows; the address of the order; for each of those experts
its number, and where its rows begin and end in the order; the order: row numbers, expert by
expert, ascending.
"""

from llamoot.kernels.atomics import claim
from llamoot.kernels.op import inner, op
from llamoot.kernels.simd import load_float, load_long, store


@inner
def _expert(address: int, n_experts: int) -> int:
    """A number of an expert; never one that does not exist."""
    return min(max(int(load_float(address)), 0), n_experts - 1)


@op
def plan(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    ids: int,  # floats: `per_token` whole numbers in each live row
    ids_stride: int,
    per_token: int,
    n_experts: int,
    plan: int,
    begins: int,  # scratch: a word for each expert
) -> None:
    """Sort the rows t * per_token + j by the expert that ids[t, j] names."""
    if claim(work) > 0:
        return
    order = plan + 8 * (2 + 3 * n_experts)
    for e in range(n_experts):
        store(begins + 8 * e, 0)
    for t in range(rows):
        for j in range(per_token):
            place = begins + 8 * _expert(ids + t * ids_stride + 4 * j, n_experts)
            store(place, load_long(place) + 1)
    active, begin, entry = 0, 0, plan + 16
    for e in range(n_experts):
        count = load_long(begins + 8 * e)
        store(begins + 8 * e, begin)
        if count > 0:
            store(entry, e)
            store(entry + 8, begin)
            store(entry + 16, begin + count)
            entry += 24
            active += 1
        begin += count
    for t in range(rows):
        for j in range(per_token):
            place = begins + 8 * _expert(ids + t * ids_stride + 4 * j, n_experts)
            at = load_long(place)
            store(order + 8 * at, t * per_token + j)
            store(place, at + 1)
    store(plan, active)
    store(plan + 8, order)
