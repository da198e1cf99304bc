"""What a model needs of memory, computed before anything large is allocated."""

from dataclasses import dataclass
from math import prod

from llamoot.gguf.reader import GGUF
from llamoot.kernels.cache import Shape, block_bytes
from llamoot.kernels.step import BLOCK
from llamoot.kernels.table import CacheType
from llamoot.model.config import Config, read_config
from llamoot.model.scratch import needs
from llamoot.model.slots import state_shapes
from llamoot.model.weights import specs_of, tensor_of

MOST_CONTEXT = 8192  # positions opened where the caller does not say, for models trained on more
SPARE_CONTEXT = 512  # positions kept for each further sequence where the caller does not say
FLOAT = 4


@dataclass(frozen=True)
class Sizes:
    """How much is opened: tokens and rows of logits of a step, sequences, blocks of the cache."""

    max_tokens: int
    max_seqs: int
    max_outputs: int
    max_blocks: int  # of one sequence
    n_blocks: int  # of all
    cache_type: CacheType


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes. Weights are counted as the file stores them; packing keeps that size or nearly."""

    weights: int
    cache: int
    scratch: int
    block: int  # of one cache block over all layers
    sizes: Sizes

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.scratch


def choose_sizes(
    config: Config,
    context: int = 0,
    max_tokens: int = 512,
    max_seqs: int = 16,
    max_outputs: int = 0,
    n_blocks: int = 0,
    cache_type: CacheType = "f16",
) -> Sizes:
    """Zeros filled in; see `open_runner` for what each means."""
    length = context or min(config.context, MOST_CONTEXT)
    per_seq = -(-length // BLOCK)
    spare = (max_seqs - 1) * -(-min(length, SPARE_CONTEXT) // BLOCK)
    outputs = max_outputs or max(64, max_seqs)
    return Sizes(max_tokens, max_seqs, outputs, per_seq, n_blocks or per_seq + spare, cache_type)


def cache_block_bytes(config: Config, cache_type: CacheType) -> int:
    """Bytes of one block of BLOCK positions over all layers."""
    shapes = [Shape(c.n_kv_heads, c.head_dim, c.v_dim) for c in config.layers if c.caches]
    return sum(block_bytes(shape, cache_type) for shape in shapes)


def state_bytes(config: Config) -> int:
    """Bytes that recurrent layers keep for one sequence."""
    shapes = [state_shapes(config, layer).values() for layer in config.layers]
    return sum(FLOAT * prod(shape) for each in shapes for shape in each)


def memory_plan(gguf: GGUF, sizes: Sizes | None = None) -> MemoryPlan:
    """Bytes of the open file `gguf` at `sizes` (None: the defaults); reads no weight.

    Raises ModelFileError for a model that is not known or not whole.
    """
    config = read_config(gguf)
    sizes = sizes or choose_sizes(config)
    specs = specs_of(gguf, config)
    tensors = [tensor_of(gguf, spec.name) for part in specs for spec in part]
    rows = {"tokens": sizes.max_tokens, "outputs": sizes.max_tokens, "logits": sizes.max_outputs}
    scratch = sum(n.width * n.per_row * rows[n.rows] * FLOAT for n in needs(config, specs))
    block = cache_block_bytes(config, sizes.cache_type)
    return MemoryPlan(
        weights=sum(t.nbytes for t in tensors if t is not None),
        cache=block * sizes.n_blocks + state_bytes(config) * sizes.max_seqs,
        scratch=scratch,
        block=block,
        sizes=sizes,
    )
