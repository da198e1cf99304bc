"""How row-wise operations cut their work: pieces of some 4096 values, rows or parts of a row.

What is in a piece depends on the shape alone, never on the number of threads. Build time only.
"""

from llamoot.kernels.atomics import claim
from llamoot.kernels.op import inline, inner

PIECE = 4096  # values; a multiple of every vector's lanes


@inner
def row_pieces(work: int, rows: int, width: int) -> tuple[int, int]:
    """The next rows [first, stop) to work on whole; empty where none is left."""
    size = max(1, PIECE // max(width, 1))
    first = claim(work) * size
    return first, min(first + size, rows)


@inline
def cut(work: int, rows: int, width: int) -> tuple[int, int, int, int]:
    """The next piece (first row, stop row, first column, stop column); first == stop at the end."""
    parts = max(1, -(-width // PIECE))
    size = max(1, PIECE // max(width, 1))
    piece = claim(work)
    first = min(piece // parts * size, rows)
    column = piece % parts * PIECE
    return first, min(first + size, rows), column, min(column + PIECE, width)
