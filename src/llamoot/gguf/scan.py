"""Finds where the strings of an array begin, without a Python step for each.

Each string follows its own length, so only a walk from the first to the last is certain. But a
length below 256 is one byte and seven zeros, and text holds no zeros: those runs are found all
at once, and kept as far as each one leads exactly to the next. Where that chain breaks (a long
string, an empty one, a zero byte) a plain walk takes over for a while.
"""

from array import array
from struct import Struct

import numpy as np

from llamoot.gguf.metadata import Bytes, Offsets

WINDOW = 1 << 18  # bytes looked at together
WALK, LONGEST = 256, 1 << 16  # strings walked over one by one
U32, U64 = Struct("<I"), Struct("<Q")
Found = tuple[Offsets, Offsets, int]


def scan_strings(data: Bytes, at: int, n: int, width: int) -> Found | None:
    """Starts and lengths of `n` strings from byte `at`, and the byte after the last.

    `width` is the size of a length, 8 (or 4 in version 1). None where one passes the end.
    """
    unpack = (U64 if width == 8 else U32).unpack_from
    view, size = memoryview(data), data.size  # type: ignore[arg-type]
    starts, lengths = np.empty(n, np.int64), np.empty(n, np.int64)
    done, walk = 0, WALK
    while done < n:
        if width == 8 and n - done > WALK:
            places, sizes = _chain(data, at, n - done)
            stop = done + len(places)
            starts[done:stop], lengths[done:stop] = places, sizes
            if len(places):
                at = int(places[-1] + sizes[-1])
            # Where the chain breaks all the time, ever longer walks keep the work linear.
            done, walk = stop, WALK if len(places) > walk else min(2 * walk, LONGEST)
        found = array("q")
        for _ in range(min(walk, n - done)):
            if at + width > size:
                return None
            length = unpack(view, at)[0]
            at += width
            if length > size - at:
                return None
            found.extend((at, length))
            at += length
        stop = done + len(found) // 2
        starts[done:stop], lengths[done:stop] = found[0::2], found[1::2]
        done = stop
    return starts, lengths, at


def _chain(data: Bytes, at: int, most: int) -> tuple[Offsets, Offsets]:
    """Starts and lengths of up to `most` strings from `at` that the runs of zeros give away."""
    window = data[at : at + min(WINDOW, 64 * most)]
    zero = window == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    seven = np.flatnonzero(four[1:-3] & four[4:])  # bytes i+1 … i+7 are zero
    sizes = window[seven].astype(np.int64)
    after = seven + 8 + sizes
    if not len(seven) or seven[0] != 0:
        return seven[:0], sizes[:0]
    breaks = np.flatnonzero(seven[1:] != after[:-1])
    n = min(int(breaks[0]) + 1 if len(breaks) else len(seven), most)
    if after[n - 1] > len(window):  # the last one may pass the end of the file
        n -= 1
    return seven[:n] + 8 + at, sizes[:n]
