"""Reads GGUF files over a memory map; every count, length and offset is checked before its use.

Versions 1 to 3, files in parts (`-00001-of-0000N`), any alignment. Nothing here copies a tensor.
What is wrong with a file is told as ModelFileError with its path and the place in it.
"""

import contextlib
import mmap
import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any

import numpy as np

from llamoot.errors import ModelFileError
from llamoot.gguf.metadata import Bytes, Metadata, Strings
from llamoot.gguf.scan import scan_strings
from llamoot.gguf.types import NUMPY, TensorType, ValueType

MAX_DIMS, MAX_DEPTH, MAX_ENTRIES, DEFAULT_ALIGNMENT = 4, 4, 1 << 16, 32
MAX_NESTED = 10_000  # arrays in arrays; no model has any, and each costs a Python step
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
U32, U64 = Struct("<I"), Struct("<Q")
SCALARS = {kind: np.dtype(code) for kind, code in NUMPY.items()}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor. `shape` is numpy order, outermost first; `raw` is its bytes in the file."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int  # from the beginning of its file
    raw: Bytes  # read-only, memory-mapped
    path: str  # the part it lies in

    @property
    def nbytes(self) -> int:
        return self.raw.size

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


class Cursor:
    """A place in the file that only moves forward and never past the end."""

    def __init__(self, path: str, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0
        self.count_bytes = 8  # of lengths and counts; 4 in version 1
        self.nested = 0  # arrays in arrays so far

    def fail(self, what: str, message: str) -> ModelFileError:
        return ModelFileError(self.path, f"byte {self.at}, {what}", message)

    def take(self, n: int, what: str) -> int:
        """Move over `n` bytes; returns where they begin."""
        left = len(self.data) - self.at
        if n > left:
            raise self.fail(what, f"needs {n} bytes, the file has {left} left")
        start = self.at
        self.at += n
        return start

    def u32(self, what: str) -> int:
        return int(U32.unpack_from(self.data, self.take(4, what))[0])

    def count(self, what: str, each: int = 0, most: int | None = None) -> int:
        """A count whose things take at least `each` bytes, so that a lie is found at once."""
        start = self.take(self.count_bytes, what)
        n = int((U64 if self.count_bytes == 8 else U32).unpack_from(self.data, start)[0])
        if n * each > len(self.data) - self.at or (most is not None and n > most):
            self.at = start
            raise self.fail(what, f"counts {n}, more than the file can hold")
        return n

    def text(self, what: str) -> str:
        """A name; it has to be UTF-8."""
        n = self.count(what, 1, 65535)
        start = self.take(n, what)
        try:
            return str(self.data[start : self.at], "utf-8")
        except UnicodeDecodeError:
            self.at = start
            raise self.fail(what, "is not valid UTF-8") from None


class GGUF:
    """An open file: `metadata`, and `tensors` by name in the order of the file."""

    def __init__(self, path: str, version: int, metadata: Metadata, alignment: int) -> None:
        self.path, self.version, self.metadata = path, version, metadata
        self.alignment = alignment
        self.tensors: dict[str, Tensor] = {}
        self.parts: list[str] = [path]
        self.data_offset = 0
        self._maps: list[mmap.mmap] = []

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.metadata.need("general.architecture", str))

    def __enter__(self) -> "GGUF":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the memory map back; views still in use keep theirs until they are dropped."""
        self.tensors = {}
        for one in self._maps:
            with contextlib.suppress(BufferError):
                one.close()
        self._maps = []


def open_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Open a file, and all its parts where it is the first of several."""
    first = _open_part(str(path))
    named = PART.search(str(path))
    n_parts = first.metadata.maybe("split.count", 1, int)
    if first.metadata.maybe("split.no", 0, int) != 0:
        raise ModelFileError(path, "split.no", "is a later part; open the one named -00001-of-…")
    if n_parts > 1 and (named is None or (int(named[1]), int(named[2])) != (1, n_parts)):
        raise ModelFileError(
            path,
            "split.count",
            f"is {n_parts}, so its name must end in -00001-of-{n_parts:05}.gguf",
        )
    for i in range(2, n_parts + 1):
        part = _open_part(PART.sub(f"-{i:05}-of-{n_parts:05}.gguf", str(path)))
        if part.metadata.maybe("split.no", -1, int) != i - 1:
            raise ModelFileError(part.path, "split.no", f"is not {i - 1}; the parts do not match")
        twice = part.tensors.keys() & first.tensors.keys()
        if twice:
            raise ModelFileError(part.path, min(twice), "is in an earlier part already")
        first.tensors.update(part.tensors)
        first.parts.append(part.path)
        first._maps += part._maps
    promised = first.metadata.maybe("split.tensors.count", len(first.tensors), int)
    if promised != len(first.tensors):
        found = len(first.tensors)
        raise ModelFileError(path, "split.tensors.count", f"is {promised}, the parts hold {found}")
    return first


def _open_part(path: str) -> GGUF:
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise ModelFileError(path, "byte 0", "too short to be a GGUF file")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(path, "open", error.strerror or str(error)) from None
    cursor = Cursor(path, memoryview(mapped))
    version, n_tensors, n_pairs = _header(cursor)
    data = np.frombuffer(mapped, np.uint8)
    metadata = _metadata(cursor, data, n_pairs)
    alignment = metadata.maybe("general.alignment", DEFAULT_ALIGNMENT, int)
    if not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ModelFileError(path, "general.alignment", f"{alignment} is not a power of two")
    file_ = GGUF(path, version, metadata, alignment)
    file_._maps.append(mapped)
    _tensors(file_, cursor, data, n_tensors)
    return file_


def _header(cursor: Cursor) -> tuple[int, int, int]:
    magic = bytes(cursor.data[:4])
    if magic != b"GGUF":
        raise cursor.fail("magic", f"is {magic!r}, not b'GGUF'; this is not a GGUF file")
    cursor.at = 4
    version = cursor.u32("version")
    if version & 0xFFFF == 0:
        raise cursor.fail("version", "the file is big-endian; convert it to little-endian")
    if not 1 <= version <= 3:
        raise cursor.fail("version", f"{version} is not known; this reader knows 1 to 3")
    cursor.count_bytes = 4 if version == 1 else 8
    # The least a tensor takes: a name's length, dimensions, type, offset; a pair: length, type.
    n_tensors = cursor.count("tensor count", cursor.count_bytes + 16, MAX_ENTRIES)
    return version, n_tensors, cursor.count("key count", cursor.count_bytes + 5, MAX_ENTRIES)


def _metadata(cursor: Cursor, data: Bytes, n_pairs: int) -> Metadata:
    values: dict[str, Any] = {}
    spans = {}
    for i in range(n_pairs):
        start = cursor.at
        key = cursor.text(f"key {i}")
        if key in values:
            raise cursor.fail(f"key {key!r}", "is there twice")
        values[key] = _value(cursor, data, _kind(cursor, key), key, 0)
        spans[key] = start, cursor.at
    return Metadata(cursor.path, values, spans)


def _kind(cursor: Cursor, key: str) -> ValueType:
    number = cursor.u32(f"type of {key!r}")
    if number > max(ValueType):
        raise cursor.fail(f"type of {key!r}", f"{number} is not a value type")
    return ValueType(number)


def _value(cursor: Cursor, data: Bytes, kind: ValueType, key: str, depth: int) -> Any:
    what = f"value of {key!r}"
    if kind is ValueType.ARRAY:
        return _array(cursor, data, key, depth)
    if kind is ValueType.STRING:
        n = cursor.count(what, 1)
        start = cursor.take(n, what)
        return str(cursor.data[start : start + n], "utf-8", "replace")
    scalar = SCALARS[kind]
    start = cursor.take(scalar.itemsize, what)
    value = data[start : cursor.at].view(scalar)[0].item()
    return bool(value) if kind is ValueType.BOOL else value


def _array(cursor: Cursor, data: Bytes, key: str, depth: int) -> Any:
    what = f"array {key!r}"
    kind = _kind(cursor, key)
    if kind is ValueType.STRING:
        n = cursor.count(what, cursor.count_bytes)
        found = scan_strings(data, cursor.at, n, cursor.count_bytes)
        if found is None:
            raise cursor.fail(what, f"one of its {n} strings runs past the end of the file")
        starts, lengths, cursor.at = found
        return Strings(data, starts, lengths)
    if kind is ValueType.ARRAY:
        if depth >= MAX_DEPTH:
            raise cursor.fail(what, f"arrays lie more than {MAX_DEPTH} deep in each other")
        n = cursor.count(what, 4 + cursor.count_bytes, MAX_NESTED - cursor.nested)
        cursor.nested += n
        return [_array(cursor, data, key, depth + 1) for _ in range(n)]
    dtype = np.dtype(NUMPY[kind])
    n = cursor.count(what, dtype.itemsize)
    start = cursor.take(n * dtype.itemsize, what)
    values = data[start : cursor.at].view(dtype)
    return values.astype(np.bool_) if kind is ValueType.BOOL else values


def _tensors(file: GGUF, cursor: Cursor, data: Bytes, n_tensors: int) -> None:
    rows = []
    names = set()
    for i in range(n_tensors):
        name = cursor.text(f"name of tensor {i}")
        if name in names:
            raise cursor.fail(f"tensor {name!r}", "is there twice")
        names.add(name)
        rows.append((name, *_tensor_entry(cursor, name)))
    base = cursor.at + -cursor.at % file.alignment
    file.data_offset = base
    for name, kind, shape, offset in rows:
        n = kind.nbytes(shape)
        where = f"tensor {name!r}"
        if offset % file.alignment:
            raise ModelFileError(file.path, where, f"offset {offset} is not aligned")
        if base + offset + n > data.size:
            raise ModelFileError(
                file.path, where, f"ends at byte {base + offset + n}, the file at {data.size}"
            )
        start = base + offset
        file.tensors[name] = Tensor(name, kind, shape, start, data[start : start + n], file.path)
    _no_overlap(file)


def _tensor_entry(cursor: Cursor, name: str) -> tuple[TensorType, tuple[int, ...], int]:
    """Type, numpy shape and offset of one tensor."""
    what = f"tensor {name!r}"
    n_dims = cursor.u32(what)
    if n_dims > MAX_DIMS:
        raise cursor.fail(what, f"has {n_dims} dimensions, at most {MAX_DIMS} are known")
    width = cursor.count_bytes
    start = cursor.take(n_dims * width, what)
    dims = [
        int.from_bytes(cursor.data[start + i * width : start + (i + 1) * width], "little")
        for i in range(n_dims)
    ]
    if 0 in dims or prod(dims) >= 1 << 63:
        raise cursor.fail(what, f"dimensions {dims} are empty or too large")
    number = cursor.u32(what)
    try:
        kind = TensorType(number)
    except ValueError:
        raise cursor.fail(what, f"type {number} is not known or no longer in use") from None
    shape = tuple(reversed(dims)) or (1,)
    if shape[-1] % kind.block:
        raise cursor.fail(what, f"rows of {shape[-1]} are not whole {kind.name} blocks")
    return kind, shape, int(U64.unpack_from(cursor.data, cursor.take(8, what))[0])


def _no_overlap(file: GGUF) -> None:
    end, before = 0, ""
    for tensor in sorted(file.tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise ModelFileError(file.path, f"tensor {tensor.name!r}", f"overlaps {before!r}")
        end, before = tensor.offset + tensor.nbytes, tensor.name
