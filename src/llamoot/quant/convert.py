"""Writes a model file again with other tensor types, one piece of a tensor in memory at a time."""

import difflib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llamoot.errors import BadRequest, ModelFileError
from llamoot.gguf.reader import GGUF, Tensor, open_gguf
from llamoot.gguf.types import FileType, TensorType, ValueType
from llamoot.gguf.writer import Writer
from llamoot.quant.choose import ALIASES, DEFAULT, Model, choose
from llamoot.quant.decode import decode
from llamoot.quant.encode import encode

PIECE = 1 << 23  # elements decoded at a time
FLOATS = (TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.F64)
REPLACED = ("general.file_type", "general.quantization_version", "general.alignment")
Progress = Callable[[str, TensorType, int], None]  # tensor, its new type, bytes just written


def file_type(name: str) -> FileType:
    """The file type called `name` in any case; BadRequest names the nearest one."""
    known = {kind.name: kind for kind in DEFAULT} | ALIASES
    upper = name.upper().replace("-", "_")
    if upper in known:
        return known[upper]
    near = difflib.get_close_matches(upper, known, 1, 0.5)
    if upper in FileType.__members__:
        hint = "it needs an importance matrix, which this program does not make"
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"there are {', '.join(known)}"
    raise BadRequest(f"file type '{name}' cannot be written; {hint}", "TYPE")


def shape_of(gguf: GGUF) -> Model:
    """What the choice of types depends on; files without these keys are treated as plain."""

    def first(key: str, default: int) -> int:
        value = gguf.metadata.maybe(f"{gguf.architecture}.{key}", default)
        return int(value[0]) if isinstance(value, np.ndarray) else int(value)

    heads = first("attention.head_count", 1)
    return Model(
        gguf.architecture,
        first("block_count", 1),
        heads,
        first("attention.head_count_kv", heads),
        first("expert_count", 0),
    )


def plan(gguf: GGUF, kind: FileType) -> dict[str, TensorType]:
    """The new type of every tensor, in the order of the file."""
    chosen = choose(kind, shape_of(gguf), {t.name: t.shape for t in gguf.tensors.values()})
    return {name: chosen[name] or tensor.type for name, tensor in gguf.tensors.items()}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    kind: FileType,
    threads: int = 1,
    progress: Progress = lambda name, kind, n: None,
) -> dict[str, Any]:
    """Write `source` to `target` as `kind`; the file appears only once it is complete.

    Returns bytes before and after, counts by tensor type, and how many tensors were quantised
    already before, which costs accuracy.
    """
    source, target = Path(source), Path(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise BadRequest(f"{target} is the file to be read; write to another one", "OUT")
    if not target.parent.is_dir():
        raise BadRequest(f"{target.parent} is no folder; make it first", "OUT")
    with open_gguf(source) as gguf:
        types = plan(gguf, kind)
        again = [t for t in gguf.tensors.values() if t.type not in (*FLOATS, types[t.name])]
        sizes = [types[t.name].nbytes(t.shape) for t in gguf.tensors.values()]
        free = shutil.disk_usage(target.parent).free
        if sum(sizes) > free:
            need, have = sum(sizes) // 10**6, free // 10**6
            raise BadRequest(f"{target.parent} has {have} MB free, {need} MB are needed", "OUT")
        try:
            with Writer(target, gguf.alignment) as out:
                _copy_metadata(gguf, out, kind)
                for tensor in gguf.tensors.values():
                    out.declare(tensor.name, types[tensor.name], tensor.shape)
                for tensor in gguf.tensors.values():
                    for piece in _pieces(tensor, types[tensor.name], threads):
                        out.write(piece)
                        progress(tensor.name, types[tensor.name], piece.size)
        except OSError as error:
            raise ModelFileError(target, "write", error.strerror or str(error)) from None
        before = sum(t.nbytes for t in gguf.tensors.values())
    counts = {t.name: list(types.values()).count(t) for t in sorted(set(types.values()))}
    return {
        "path": str(target),
        "file_type": kind.name,
        "bytes_before": before,
        "bytes": sum(sizes),
        "tensors": counts,
        "requantised": len(again),
    }


def _copy_metadata(gguf: GGUF, out: Writer, kind: FileType) -> None:
    whole = np.memmap(gguf.path, np.uint8, "r")
    for key, (start, stop) in gguf.metadata.spans.items():
        if key in REPLACED or key.startswith("split."):
            continue
        if gguf.version == 1:  # whose lengths are shorter
            out.add(key, gguf.metadata[key])
        else:
            out.add_raw(key, whole[start:stop].tobytes())
    out.add("general.file_type", int(kind), ValueType.UINT32)
    out.add("general.quantization_version", 2, ValueType.UINT32)


def _pieces(tensor: Tensor, kind: TensorType, threads: int) -> Iterator[Any]:
    """The tensor's bytes as `kind`, some rows at a time."""
    cols = tensor.shape[-1]
    rows = tensor.n_elements // cols
    step = max(PIECE // cols, 1)
    row_bytes = tensor.nbytes // rows
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        raw = tensor.raw[start * row_bytes : stop * row_bytes]
        if tensor.type is kind:
            yield raw
            continue
        values = decode(raw, tensor.type, (stop - start, cols))
        if not np.isfinite(values).all():
            where = f"tensor {tensor.name!r}"
            raise ModelFileError(tensor.path, where, "holds a value that is not finite")
        yield encode(values, kind, threads)
