"""How attention is cut into pieces, and what working memory that takes; no numba here.

Queries: the heads that share one key/value head, of all rows of one sequence, form a list of
(row, head) pairs; a *tile* is at most 32 neighbours of that list. Keys: they are cut into *parts*
of 8 blocks; each part has its own softmax, and parts are joined in order. Where a sequence has few
rows (decoding), parts are done apart, by any thread, and joined afterwards; otherwise one thread
walks them all. The arithmetic is the same, so neither threads, nor neighbours, nor the way a
prompt was cut into steps change a bit of the result.
"""

from typing import NamedTuple

TILE = 32  # queries of one tile
SPLIT_ROWS = 4  # rows of a sequence up to which its parts are done apart
PART_BLOCKS = 8  # blocks of a part
PIECE = 32  # positions of a block, and floats that a row of values is filled up to
LINE = 64

# What is kept of each query of a tile, in one line for each thing (see attention_block).
GREATEST, FACTOR, SLOPE, ALL_GREATEST, ALL_TOTAL = (4 * TILE * i for i in range(5))  # float32
FROM, UNTIL, PLACE = (4 * TILE * 5 + 8 * TILE * i for i in range(3))  # int64
TOTALS = 4 * TILE * 5 + 8 * TILE * 3  # a vector of partial sums
STATE_BYTES = TOTALS + LINE * TILE


class Plan(NamedTuple):
    """Offsets (bytes) inside one thread's working memory, and its size."""

    queries: int
    keys: int
    values: int
    sums: int
    all_sums: int
    scores: int
    state: int
    n_bytes: int
    query_stride: int
    sum_stride: int


def plan(head_dim: int, v_dim: int) -> Plan:
    """Working memory for heads of these dimensions; the kernels compile this function too."""
    query_stride = 4 * PIECE * (-(-head_dim // PIECE))
    sum_stride = 4 * PIECE * (-(-v_dim // PIECE))
    keys = TILE * query_stride
    values = keys + PIECE * 4 * head_dim
    sums = values + PIECE * sum_stride
    all_sums = sums + TILE * sum_stride
    scores = all_sums + TILE * sum_stride
    state = scores + TILE * PIECE * 4
    n_bytes = -(-(state + STATE_BYTES) // LINE) * LINE
    return Plan(0, keys, values, sums, all_sums, scores, state, n_bytes, query_stride, sum_stride)


def most_parts(max_blocks: int) -> int:
    """Parts of the longest sequence."""
    return -(-max_blocks // PART_BLOCKS)


def partial_floats(max_seqs: int, max_blocks: int, n_heads: int, v_dim: int) -> int:
    """Floats that parts done apart leave behind: greatest score, total and sums of each."""
    row = plan(v_dim, v_dim).sum_stride // 4 + 2
    return max_seqs * SPLIT_ROWS * n_heads * most_parts(max_blocks) * row
