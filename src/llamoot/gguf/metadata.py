"""Key-value pairs of a GGUF file: a missing key is an error unless a default is given."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from llamoot.errors import ModelFileError

Offsets = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class Strings(Sequence[str]):
    """An array of strings, decoded when asked for; `data[starts[i] : starts[i] + lengths[i]]`.

    `data` is the whole file as bytes, so that a tokenizer can work on the bytes themselves.
    """

    def __init__(self, data: Bytes, starts: Offsets, lengths: Offsets) -> None:
        self.data, self.starts, self.lengths = data, starts, lengths

    def __len__(self) -> int:
        return len(self.starts)

    def raw(self, i: int) -> bytes:
        """Bytes of string `i`, whatever their encoding."""
        start = int(self.starts[i])
        return self.data[start : start + int(self.lengths[i])].tobytes()

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "Strings": ...
    def __getitem__(self, i: int | slice) -> "str | Strings":
        if isinstance(i, slice):
            return Strings(self.data, self.starts[i], self.lengths[i])
        return self.raw(i).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        view = memoryview(self.data)  # type: ignore[arg-type]
        for start, length in zip(self.starts.tolist(), self.lengths.tolist()):
            yield str(view[start : start + length], "utf-8", "replace")

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"


class Metadata(Mapping[str, Any]):
    """Values by key: numbers, bools and str; numeric arrays as numpy; string arrays as Strings."""

    def __init__(
        self, path: str, values: dict[str, Any], spans: dict[str, tuple[int, int]]
    ) -> None:
        """`spans` are the bytes (start, stop) of each pair in the file, key and type included."""
        self._path, self._values, self.spans = path, values, spans

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def need(self, key: str, kind: type | None = None) -> Any:
        """Value of `key`, which must be there; ModelFileError where it is missing or not a `kind`.

        `kind` is int, float (a whole number will do), bool, str, np.ndarray or Strings.
        """
        if key not in self._values:
            raise ModelFileError(self._path, key, "is missing; the file cannot be run without it")
        value = self._values[key]
        if kind is None or type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        found = type(value).__name__
        raise ModelFileError(self._path, key, f"expected {kind.__name__}, file has {found}")

    def maybe(self, key: str, default: Any, kind: type | None = None) -> Any:
        """Value of `key`, or `default` where it is missing; see `need` for `kind`."""
        return self.need(key, kind) if key in self._values else default
