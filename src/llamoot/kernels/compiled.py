"""The executor that runs a forward pass as a tape of compiled kernels on a pool of threads."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llamoot.kernels.cache import LayerCache, Shape
from llamoot.kernels.library import library
from llamoot.kernels.memory import address, aligned
from llamoot.kernels.pack import pack
from llamoot.kernels.pool import give_back, lease
from llamoot.kernels.recorder import Recorder
from llamoot.kernels.step import Step
from llamoot.kernels.table import Buf, Cache, CacheType, Kernels, Rows, Weight
from llamoot.kernels.tape import Tape

# What every model needs, slowest first: compiled while the first weights are still being packed.
COMMON = ("attention", "store", "rows", "norm", "act", "rope", "quantize")


class Compiled:
    """`Executor` of compiled kernels; `threads` 0 means one for each core it may use."""

    def __init__(self, step: Step, threads: int = 0) -> None:
        """The first start on a machine compiles the kernels that are asked for."""
        library().expect(COMMON)
        self._pool = lease(threads)
        self._step = step
        self.tape = Tape(step, self._pool)
        self.kernels: Kernels = Recorder(self.tape)
        self._packed: dict[tuple[int, int, tuple[int, ...]], Weight] = {}
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads a step has."""
        return self._pool.threads

    def buffer(self, width: int, rows: Rows = "tokens", per_row: int = 1) -> Buf:
        """Working memory for `per_row` rows of `width` floats for each live row."""
        capacity = self._step.max_outputs if rows == "logits" else self._step.max_tokens
        return Buf(aligned((capacity * per_row, width), np.float32), rows, per_row)

    def cache(
        self, n_blocks: int, n_kv_heads: int, head_dim: int, v_dim: int, type: CacheType
    ) -> Cache:
        """Keys and values of one layer, zeroed."""
        return LayerCache(Shape(n_kv_heads, head_dim, v_dim), n_blocks, type)

    def weight(
        self, name: str, raw: npt.NDArray[np.uint8], type: int, shape: tuple[int, ...]
    ) -> Weight:
        """A matrix, packed for the kernels; `raw` is the file's bytes, shape numpy order.

        The same bytes are packed once: an embedding table that is also the output matrix.
        """
        key = (address(raw), type, shape)
        if key not in self._packed:
            self._packed[key] = pack(self._pool, name, raw, type, shape)
        return self._packed[key]

    def table(
        self, name: str, raw: npt.NDArray[np.uint8], type: int, shape: tuple[int, ...]
    ) -> Weight:
        """A matrix whose rows are looked up."""
        return self.weight(name, raw, type, shape)

    def record(self, forward: Callable[[Kernels], None]) -> None:
        """Write the forward pass to the tape; no weight is asked for after that."""
        self._packed.clear()
        forward(self.kernels)
        self.tape.finish()

    def run(self) -> None:
        """Run the tape for what the step header holds."""
        self.tape.run()

    def close(self) -> None:
        """Give the threads back and forget the tape's memory."""
        if not self._closed:
            self._closed = True
            give_back(self._pool)
            self.tape = Tape(self._step, self._pool)
            self.kernels = Recorder(self.tape)
