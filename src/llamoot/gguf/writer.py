"""Writes GGUF files (version 3): declare everything, then stream the tensors one after another.

    with Writer(path) as out:
        out.add("general.architecture", "llama")
        out.declare("token_embd.weight", TensorType.Q8_0, (32000, 2048))
        for chunk in chunks:
            out.write(chunk)

The file appears under its name only when the block ends well; nothing is held in memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from struct import pack
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from llamoot.gguf.metadata import Strings
from llamoot.gguf.types import NUMPY, TensorType, ValueType

Row = tuple[str, TensorType, tuple[int, ...]]
_KINDS = {np.dtype(code): kind for kind, code in NUMPY.items() if kind is not ValueType.BOOL}


class Writer:
    """One file, or parts `-00001-of-0000N` of at most `part_bytes` of tensor data each."""

    def __init__(
        self, path: str | os.PathLike[str], alignment: int = 32, part_bytes: int | None = None
    ) -> None:
        assert alignment > 0 and alignment & (alignment - 1) == 0, "a power of two"
        self.path, self.alignment, self.part_bytes = Path(path), alignment, part_bytes
        self._pairs: dict[str, bytes] = {}
        self._rows: dict[str, Row] = {}
        self._parts: list[list[Row]] = []
        self._done: list[tuple[Path, Path]] = []  # temporary and final name of each part
        self._file: BinaryIO | None = None
        self._left: list[int] = []  # bytes missing of each tensor of this part, last one first
        if alignment != 32:
            self.add("general.alignment", alignment, ValueType.UINT32)

    def add(
        self, key: str, value: Any, kind: ValueType | None = None, item: ValueType | None = None
    ) -> None:
        """One pair. Without `kind` it follows from the value; `item` is the type in an array."""
        self.add_raw(key, _text(key) + _typed(value, kind, item))

    def add_raw(self, key: str, pair: bytes) -> None:
        """A pair as it stands in another file, its key and type included (`Metadata.spans`)."""
        assert not self._parts, "metadata come before the first tensor's data"
        self._pairs[key] = pair

    def declare(self, name: str, kind: TensorType, shape: tuple[int, ...]) -> None:
        """The next tensor; `shape` is numpy order. Data follow in the order of declaration."""
        assert not self._parts, "declare every tensor before the first one's data"
        assert name not in self._rows, f"{name} is declared twice"
        assert shape and shape[-1] % kind.block == 0, f"{name}: {shape} is not whole {kind.name}s"
        self._rows[name] = name, kind, shape

    @property
    def nbytes(self) -> int:
        """Bytes of all declared tensors."""
        return sum(kind.nbytes(shape) for _, kind, shape in self._rows.values())

    def write(self, data: npt.NDArray[Any] | bytes) -> None:
        """The next bytes of the tensor that is not complete yet."""
        if not self._parts:
            self._parts = self._divide()
            self._begin(0)
        view = memoryview(data).cast("B") if isinstance(data, bytes) else _bytes(data)
        while not self._left and len(self._done) < len(self._parts):
            self._begin(len(self._done))
        assert self._file is not None and self._left, "every declared tensor is written already"
        assert len(view) <= self._left[-1], "these bytes pass the end of their tensor"
        self._file.write(view)
        self._left[-1] -= len(view)
        if not self._left[-1]:
            self._left.pop()
            self._pad(self._file)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def close(self) -> None:
        """Give the finished file its name."""
        if not self._parts:
            self._parts = self._divide()
            self._begin(0)
        assert self._file is not None
        assert not self._left and len(self._done) == len(self._parts), "a tensor is not complete"
        self._file.close()
        for temporary, final in self._done:
            os.replace(temporary, final)

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            self._file.close()
        for temporary, _ in self._done:
            temporary.unlink(missing_ok=True)

    def _divide(self) -> list[list[Row]]:
        parts: list[list[Row]] = [[]]
        size = 0
        for row in self._rows.values():
            n = row[1].nbytes(row[2])
            if self.part_bytes and parts[-1] and size + n > self.part_bytes:
                parts.append([])
                size = 0
            parts[-1].append(row)
            size += n
        return parts

    def _begin(self, i: int) -> None:
        """Header of part `i`; the first part alone carries the metadata."""
        n_parts, rows = len(self._parts), self._parts[i]
        pairs, final = self._pairs if i == 0 else {}, self.path
        if n_parts > 1:
            final = self.path.with_name(f"{self.path.stem}-{i + 1:05}-of-{n_parts:05}.gguf")
            pairs = {**pairs, **_split_pairs(i, n_parts, len(self._rows))}
            if i and self.alignment != 32:
                pairs["general.alignment"] = self._pairs["general.alignment"]
        if self._file is not None:
            self._file.close()
        temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
        self._done.append((temporary, final))
        self._file = temporary.open("wb")
        self._file.write(b"GGUF" + pack("<IQQ", 3, len(rows), len(pairs)))
        for pair in pairs.values():
            self._file.write(pair)
        offset = 0
        for name, kind, shape in rows:
            dims = pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            self._file.write(_text(name) + dims + pack("<IQ", kind, offset))
            offset += kind.nbytes(shape)
            offset += -offset % self.alignment
        self._pad(self._file)
        self._left = [kind.nbytes(shape) for _, kind, shape in reversed(rows)]

    def _pad(self, file: BinaryIO) -> None:
        file.write(bytes(-file.tell() % self.alignment))


def _split_pairs(i: int, n_parts: int, n_tensors: int) -> dict[str, bytes]:
    values = {
        "split.no": (i, ValueType.UINT16),
        "split.count": (n_parts, ValueType.UINT16),
        "split.tensors.count": (n_tensors, ValueType.INT32),
    }
    return {key: _text(key) + _typed(value, kind) for key, (value, kind) in values.items()}


def _bytes(data: npt.NDArray[Any]) -> memoryview:
    flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return memoryview(flat)  # type: ignore[arg-type]


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return pack("<Q", len(data)) + data


def _typed(value: Any, kind: ValueType | None = None, item: ValueType | None = None) -> bytes:
    kind = kind if kind is not None else _kind_of(value)
    return pack("<I", kind) + _encoded(value, kind, item)


def _encoded(value: Any, kind: ValueType, item: ValueType | None) -> bytes:
    if kind is ValueType.STRING:
        return _text(value)
    if kind is not ValueType.ARRAY:
        return np.array(value, NUMPY[kind]).tobytes()
    if item is None:
        item = _item_of(value)
    head = pack("<IQ", item, len(value))
    if item is ValueType.STRING:
        raws = (value.raw(i) for i in range(len(value))) if isinstance(value, Strings) else value
        return head + b"".join(_text(one) for one in raws)
    if item is ValueType.ARRAY:
        return head + b"".join(_encoded(one, ValueType.ARRAY, None) for one in value)
    return head + np.asarray(value).astype(NUMPY[item]).tobytes()


def _kind_of(value: Any) -> ValueType:
    """The type llama.cpp's converters give such a value."""
    if isinstance(value, bool | np.bool_):
        return ValueType.BOOL
    if isinstance(value, int):
        return _integer(value, value)
    if isinstance(value, float):
        return ValueType.FLOAT32
    if isinstance(value, str | bytes):
        return ValueType.STRING
    assert isinstance(value, Sequence | np.ndarray), f"{value!r} has no place in a GGUF file"
    return ValueType.ARRAY


def _item_of(values: Any) -> ValueType:
    if isinstance(values, np.ndarray):
        return ValueType.BOOL if values.dtype == np.bool_ else _KINDS[values.dtype]
    kinds = {_kind_of(value) for value in values}
    if len(kinds) > 1:  # whole numbers of both signs or different sizes
        return _integer(min(values), max(values))
    return kinds.pop() if kinds else ValueType.STRING


def _integer(low: int, high: int) -> ValueType:
    """The first type that holds both."""
    for kind in (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64):
        limits = np.iinfo(NUMPY[kind])
        if limits.min <= low and high <= limits.max:
            return kind
    raise OverflowError(f"{low} … {high} do not fit 64 bits")
