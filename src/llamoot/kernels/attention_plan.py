"""How attention is cut into pieces, and what working memory that takes; no numba here.

Queries: the heads that share one key/value head, of all rows of one sequence, form a list of
(row, head) pairs; a *tile* is at most 32 neighbours of that list. Keys: a tile walks all blocks it
may see. Where a sequence has few rows (decoding), its keys are cut into parts of whole blocks,
each done apart and merged afterwards, so that several threads share one long context. The cut
depends on the length of the sequence alone: neither threads nor neighbours change a result.
"""

from dataclasses import dataclass

TILE = 32  # queries of one tile
SPLIT_ROWS = 4  # rows of a sequence up to which its keys are cut into parts
PART_BLOCKS = 8  # blocks of a part, at least
MAX_PARTS = 32
PIECE = 32  # positions of a block, and floats that a row of values is filled up to
LINE = 64
STATE_BYTES = TILE * (4 * 4 + 3 * 8)  # what is kept of each query, see attention_block


@dataclass(frozen=True)
class Plan:
    """Offsets (bytes) inside one thread's working memory, and its size."""

    queries: int
    keys: int
    values: int
    sums: int
    scores: int
    state: int
    n_bytes: int
    query_stride: int
    sum_stride: int


def plan(head_dim: int, v_dim: int) -> Plan:
    """Working memory for heads of these dimensions."""
    query_stride, sum_stride = 4 * _filled(head_dim), 4 * _filled(v_dim)
    queries = 0
    keys = queries + TILE * query_stride
    values = keys + PIECE * 4 * head_dim
    sums = values + PIECE * sum_stride
    scores = sums + TILE * sum_stride
    state = scores + TILE * PIECE * 4
    n_bytes = -(-(state + STATE_BYTES) // LINE) * LINE
    return Plan(queries, keys, values, sums, scores, state, n_bytes, query_stride, sum_stride)


def partial_floats(max_seqs: int, n_heads: int, v_dim: int) -> int:
    """Floats that the parts of all sequences leave for the merge: sums, maximum, total."""
    return max_seqs * SPLIT_ROWS * n_heads * MAX_PARTS * (_filled(v_dim) + 2)


def _filled(dims: int) -> int:
    return -(-dims // PIECE) * PIECE
