"""A broken file ends in success or in ModelFileError naming path and place: soon, and small."""

import pathlib
import resource
import time
from collections import Counter

import numpy as np
import pytest

from llamoot.errors import ModelFileError
from llamoot.gguf.metadata import Strings
from llamoot.gguf.reader import open_gguf
from llamoot.gguf.types import TensorType, ValueType
from llamoot.gguf.writer import Writer

pytestmark = pytest.mark.pure
LIES = (0, 1, 2, 5, 255, 65536, 2**31 - 1, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1)


def seeds(folder: pathlib.Path) -> list[bytes]:
    """Good files that together use every part of the format."""
    rich = folder / "rich.gguf"
    with Writer(rich, alignment=64) as out:
        out.add("general.architecture", "llama")
        out.add("texts", ["", "a", "x" * 300] * 20)
        out.add("deep", [[1, 2], [3], []])
        out.add("deeper", [[["a", "b"]], [[]]])
        out.add("flags", [True, False])
        for kind in ValueType:
            if kind not in (ValueType.ARRAY, ValueType.STRING):
                out.add(kind.name, 1, kind)
                out.add(f"{kind.name}s", [1, 0, 1], ValueType.ARRAY, kind)
        shapes = {kind.name: (kind, (2, 1, kind.block)) for kind in TensorType}
        for name, (kind, shape) in shapes.items():
            out.declare(name, kind, shape)
        for kind, shape in shapes.values():
            out.write(np.zeros(kind.nbytes(shape), np.uint8))
    plain = folder / "plain.gguf"
    with Writer(plain) as out:
        out.add("general.architecture", "llama")
        out.add("tokens", [f"token {i}" for i in range(3000)])
        out.declare("a", TensorType.F32, (4, 4))
        out.write(np.zeros(16, np.float32))
    return [rich.read_bytes(), plain.read_bytes()]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four of: bits turned, a number replaced by a lie, a piece cut, doubled or moved."""
    broken = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        # Most of what can go wrong is in the front, before the tensors' data.
        place = int(rng.integers(0, len(broken)) ** rng.choice([1.0, 0.6]))
        match rng.integers(0, 6):
            case 0:
                broken[place] ^= 1 << int(rng.integers(0, 8))
            case 1:
                width = int(rng.choice([1, 4, 8]))
                lie = int(LIES[rng.integers(0, len(LIES))]) & (1 << 8 * width) - 1
                broken[place : place + width] = lie.to_bytes(width, "little")
            case 2:
                del broken[max(place, 1) :]
            case 3:
                del broken[place : place + int(rng.integers(1, 40))]
            case 4:
                n = int(rng.integers(1, 200))
                broken[place:place] = broken[place : place + n]
            case 5:  # arrays in arrays, far deeper than any file has
                broken[place:place] = bytes([9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]) * 500
        if not broken:
            break
    return bytes(broken)


def visit(path: pathlib.Path) -> str:
    """Open, and look at all there is; tells how it ended."""
    try:
        with open_gguf(path) as gguf:
            for value in gguf.metadata.values():
                if isinstance(value, Strings):
                    assert len(list(value)) == len(value)
            for tensor in gguf.tensors.values():
                assert tensor.raw.size == tensor.type.nbytes(tensor.shape)
                tensor.raw.sum()
    except ModelFileError as error:
        assert str(error).startswith(f"{path}: {error.where}: ") and error.where
        return "refused"
    return "read"


def campaign(folder: pathlib.Path, n: int, seed: int) -> tuple[Counter[str], float, float]:
    """How `n` mutated files ended, the longest time (s) and the growth of memory (MB)."""
    rng, good = np.random.default_rng(seed), seeds(folder)
    ends: Counter[str] = Counter()
    longest, before = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = folder / "broken.gguf"
    for i in range(n):
        path.write_bytes(mutated(good[i % len(good)], rng))
        started = time.perf_counter()
        ends[visit(path)] += 1
        longest = max(longest, time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return ends, longest, (after - before) / 1024


def test_broken_files_are_refused_soon_and_small(tmp_path: pathlib.Path) -> None:
    ends, longest, megabytes = campaign(tmp_path, 2000, seed=1)
    assert ends["read"] > 20 and ends["refused"] > 200, "the mutations reach both ends"
    assert longest < 1 and megabytes < 64


def huge_counts(width: int) -> list[bytes]:
    return [lie.to_bytes(8, "little") for lie in LIES if lie >= 1 << width]


@pytest.mark.parametrize("lie", huge_counts(31))
@pytest.mark.parametrize("place", [8, 16, 24], ids=["tensors", "keys", "key length"])
def test_lying_counts_cost_nothing(tmp_path: pathlib.Path, place: int, lie: bytes) -> None:
    data = seeds(tmp_path)[0]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data[:place] + lie + data[place + 8 :])
    started = time.perf_counter()
    assert visit(path) == "refused" and time.perf_counter() - started < 1


def strings(n: int, text: bytes = b"") -> bytes:
    """An array of `n` strings, its type included."""
    one = len(text).to_bytes(8, "little") + text
    return (8).to_bytes(4, "little") + n.to_bytes(8, "little") + one * n


def nest(n: int, part: bytes) -> bytes:
    return (9).to_bytes(4, "little") + n.to_bytes(8, "little") + part * n


HOSTILE = {  # values that a fast reader might choke on, and how they must end
    "empty strings": (strings(300_000), "read"),
    "zeros in strings": (strings(100_000, b"a" + bytes(8) + b"b"), "read"),
    "strings of 300 bytes": (strings(20_000, b"x" * 300), "read"),
    "small arrays": (nest(9_000, strings(2, b"a")), "read"),
    "too many arrays": (nest(60_000, strings(2, b"a")), "refused"),
    "arrays of arrays of arrays": (nest(300, nest(300, nest(1, strings(0)))), "refused"),
}


@pytest.mark.parametrize(("value", "end"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_arrays_cost_little(tmp_path: pathlib.Path, value: bytes, end: str) -> None:
    path = tmp_path / "hostile.gguf"
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
    key = (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little")
    path.write_bytes(head + key + value)
    times = []
    for _ in range(3):  # the best of three: a busy machine's caches are not the reader's fault
        started = time.process_time()
        assert visit(path) == end
        times.append(time.process_time() - started)
    assert min(times) < 1


def test_more_entries_than_any_model_has_are_refused(tmp_path: pathlib.Path) -> None:
    """Counts that the file's size does allow are bounded too."""
    path = tmp_path / "broken.gguf"
    empty = bytes(8) + (0).to_bytes(4, "little") + bytes(1)  # a key of no letters, type uint8
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (10**6).to_bytes(8, "little")
    path.write_bytes(head + empty * 10**6)
    assert visit(path) == "refused"


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        print(campaign(pathlib.Path(name), int(sys.argv[1]), int(sys.argv[2])))
