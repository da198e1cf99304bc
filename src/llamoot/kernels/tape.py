"""The tape: operations in order, with the address of everything they need, and where to wait.

It is recorded once per model. Every entry names a kernel ("module.operation"), whose live rows it
works on and the values of its parameters; `finish` turns all of it into words for the compiled
loop. Entries that touch different data share one barrier: an entry waits for those before it only
if it reads what they write, or writes what they read or write.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llamoot.kernels.memory import address, aligned
from llamoot.kernels.pool import Pool
from llamoot.kernels.step import N_LOGITS, N_OUTPUTS, N_SEQS, N_TOKENS, Step
from llamoot.kernels.table import Buf

Array = npt.NDArray[Any]
Value = int | float | Array | Buf | None
T = TypeVar("T")

COUNTS = {"tokens": N_TOKENS, "outputs": N_OUTPUTS, "logits": N_LOGITS, "seqs": N_SEQS}


@dataclass(frozen=True)
class Span:
    """Columns of a buffer, or all of some other memory: what dependencies are counted in."""

    root: int  # identity of the object that owns the memory
    start: int = 0
    stop: int = 1 << 62

    def meets(self, other: "Span") -> bool:
        """True if the two share memory."""
        return self.root == other.root and self.start < other.stop and other.start < self.stop


def span(thing: object) -> Span:
    """What a buffer (or any other object that stands for memory) covers."""
    if not isinstance(thing, Buf):
        return Span(id(thing))
    root = thing.root or thing
    row = max(root.data.strides[0], 1)
    start = (address(thing.data) - address(root.data)) % row
    return Span(id(root), start, start + thing.data.shape[1] * 4)


@dataclass
class Entry:
    """One operation of the tape; `barrier` says whether all wait after it."""

    kernel: str
    count: str
    per_row: int
    values: dict[str, Value]
    barrier: bool = False


class Tape:
    """Records operations, then runs them on a pool as often as wanted."""

    def __init__(self, step: Step, pool: Pool) -> None:
        """`step` is the header that every run of the tape reads."""
        self.step, self.pool = step, pool
        self.entries: list[Entry] = []
        self._reads: list[Span] = []
        self._writes: list[Span] = []
        self._kept: list[object] = []  # memory whose address the tape holds
        self._derived: dict[tuple[str, Span], Any] = {}
        self._words: Array = np.zeros((0, 3), np.int64)
        self._counters: Array = np.zeros(0, np.int64)

    def add(
        self,
        kernel: str,
        rows: Buf | str,
        reads: Sequence[object],
        writes: Sequence[object],
        **values: Value,
    ) -> None:
        """Append an operation that works on the live rows of `rows` (or of a count by name).

        A value may be a number, an array (its address), None (0), or a Buf: then it fills the
        parameter of that name and `<name>_stride`, the bytes from one row to the next.
        """
        read, written = [span(x) for x in reads], [span(x) for x in writes]
        if self._conflicts(read, written):
            self.entries[-1].barrier = True
            self._reads, self._writes = [], []
        self._reads += read
        self._writes += written
        gone = [key for key in self._derived if any(key[1].meets(w) for w in written)]
        for key in gone:
            del self._derived[key]
        self._kept += [*reads, *writes, *values.values()]
        count, per_row = (rows.rows, rows.per_row) if isinstance(rows, Buf) else (rows, 1)
        self.entries.append(Entry(kernel, count, per_row, values))

    def derived(self, kind: str, x: Buf, make: Callable[[], T]) -> T:
        """What `make` recorded from `x` (its 8-bit form, say), until something writes to `x`."""
        key = (kind, span(x))
        if key not in self._derived:
            made = make()
            self._derived[key] = made
        found: T = self._derived[key]
        return found

    def array(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Working memory that lives as long as the tape."""
        made = aligned(shape, dtype)
        self._kept.append(made)
        return made

    def finish(self) -> None:
        """Load the kernels and write the words; nothing may be added after."""
        library = self.pool.library
        library.load(entry.kernel.partition(".")[0] for entry in self.entries)
        self._words = aligned((len(self.entries), 3))
        self._counters = aligned(8 * len(self.entries))
        for i, entry in enumerate(self.entries):
            kernel = library.kernel(entry.kernel)
            rows = address(self.step.head) + 8 * COUNTS[entry.count]
            head = [address(self._counters) + 64 * i, rows, entry.per_row]
            words = kernel.words(head, _plain(entry.values))
            self._kept.append(words)
            last = i == len(self.entries) - 1
            self._words[i] = kernel.address, address(words), entry.barrier or last

    def run(self) -> None:
        """Execute every operation for what the step header holds."""
        if len(self._words):
            self.pool.run(self._words, self._counters)

    @property
    def barriers(self) -> int:
        """How often the threads wait for each other in one run."""
        return sum(entry.barrier for entry in self.entries[:-1]) + bool(self.entries)

    def _conflicts(self, read: list[Span], written: list[Span]) -> bool:
        after = any(r.meets(w) for r in read for w in self._writes)
        over = any(w.meets(x) for w in written for x in (*self._reads, *self._writes))
        return after or over


def _plain(values: dict[str, Value]) -> dict[str, float]:
    """Buffers and arrays as addresses and strides."""
    plain: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Buf):
            assert value.data.dtype == np.float32 and value.data.strides[1] == 4
            plain[name], plain[f"{name}_stride"] = address(value.data), value.data.strides[0]
        elif value is None or isinstance(value, np.ndarray):
            plain[name] = address(value)
        else:
            plain[name] = value
    return plain
