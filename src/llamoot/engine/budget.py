"""How much memory a model will take, decided before any of it is taken.

A model that does not fit is refused with the numbers; the system never has to kill anything.
"""

from dataclasses import dataclass
from pathlib import Path

from llamoot.errors import BadRequest, Overloaded
from llamoot.gguf.reader import GGUF
from llamoot.kernels.step import BLOCK
from llamoot.kernels.table import CacheType
from llamoot.model.config import Config
from llamoot.model.plan import MOST_CONTEXT, SPARE_CONTEXT, cache_block_bytes

LEAST_CONTEXT = 512  # below this a model is refused rather than squeezed in
WORKING = 128 << 20  # bytes for activations, tables and the program itself


@dataclass(frozen=True)
class Settings:
    """What an engine is opened with; 0 stands for a choice that fits model and machine."""

    context: int = 0  # positions of one sequence
    max_seqs: int = 8  # sequences in one batch
    max_tokens: int = 512  # tokens in one step
    cache_type: CacheType = "f16"
    cache_tokens: int = 0  # positions the cache holds over all sequences
    threads: int = 0
    adapters: tuple[tuple[str, str], ...] = ()  # LoRA: names that requests use, and paths
    executor: str = ""  # compiled or twins; empty: as LLAMOOT_KERNELS says

    @classmethod
    def of(cls, cache_type: str, *, context: int, max_seqs: int, threads: int) -> "Settings":
        """Settings with a cache type that somebody typed; BadRequest if there is no such type."""
        known: dict[str, CacheType] = {"f32": "f32", "f16": "f16", "q8_0": "q8_0"}
        if cache_type not in known:
            what = f"cache type '{cache_type}' is not one of {', '.join(known)}"
            raise BadRequest(what, "cache_type")
        return cls(context, max_seqs, cache_type=known[cache_type], threads=threads)


@dataclass(frozen=True)
class Budget:
    """What was decided; sizes in bytes."""

    context: int
    n_blocks: int
    weights: int
    cache: int


def free_memory() -> int:
    """Bytes this process may still take, by the system's and the container's account."""
    free = 1 << 62
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    limit, used = (_lines(Path("/sys/fs/cgroup") / f"memory.{n}") for n in ("max", "current"))
    if limit and used and limit[0].isdigit():
        free = min(free, int(limit[0]) - int(used[0]))
    return free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or none of its business
        return []


def decide(gguf: GGUF, config: Config, settings: Settings, exact: bool, free: int) -> Budget:
    """Context and cache that fit into `free` bytes; Overloaded with the numbers where none do.

    `exact`: matrices are kept as float32 and not in the file's form.
    """
    weights = sum(4 * t.n_elements if exact else t.nbytes for t in gguf.tensors.values())
    block = cache_block_bytes(config, settings.cache_type)
    room = max(0, free - weights - WORKING) // max(block, 1) * BLOCK  # positions
    context = settings.context or min(config.context, MOST_CONTEXT)
    least = context if settings.context else min(context, LEAST_CONTEXT)
    need = settings.cache_tokens or least
    if need > room:
        raise Overloaded(
            f"{gguf.path}: weights take {_size(weights)} and a cache of {need} tokens "
            f"{_size(-(-need // BLOCK) * block)}, but {_size(free)} of memory are free; "
            "choose a smaller context, an 8-bit cache (q8_0) or a smaller model"
        )
    context = min(context, room)
    spare = (settings.max_seqs - 1) * min(context, SPARE_CONTEXT)
    positions = settings.cache_tokens or min(context + spare, room)
    n_blocks = -(-max(positions, context) // BLOCK)
    return Budget(context, n_blocks, weights, n_blocks * block)


def _size(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"
