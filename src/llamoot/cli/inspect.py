"""`llamoot inspect MODEL`: what a model file holds, and what running it would take."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from llamoot.cli.options import Argument, Option
from llamoot.errors import ModelFileError
from llamoot.gguf.metadata import Strings
from llamoot.gguf.reader import GGUF, Tensor, open_gguf
from llamoot.gguf.types import FileType
from llamoot.kernels.step import BLOCK
from llamoot.kernels.table import CacheType
from llamoot.model.config import Config, read_config
from llamoot.model.plan import Sizes, choose_sizes, memory_plan

FEW = 6  # values of a long array that are shown
LONG = 200  # characters of a long text that are shown
BATCH = 512  # tokens computed at once
CACHES: tuple[CacheType, ...] = ("f16", "q8_0")


def inspect(
    model: Annotated[Path, Argument(metavar="MODEL", help="model file")],
    tensors: Annotated[bool, Option("--tensors", help="a row for every tensor")] = False,
    as_json: Annotated[bool, Option("--json", help="print all of it as JSON")] = False,
) -> None:
    """Metadata, tensors, bytes by type and memory plan of a model file."""
    with open_gguf(model) as gguf:
        found = describe(gguf)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(_lines(found, tensors)))


def describe(gguf: GGUF) -> dict[str, Any]:
    """Everything that `inspect` shows, ready for JSON; arrays and texts are shortened."""
    rows = list(gguf.tensors.values())
    kind = gguf.metadata.maybe("general.file_type", None)
    known = [one.name for one in FileType if one == kind]
    return {
        "path": gguf.path,
        "parts": len(gguf.parts),
        "version": gguf.version,
        "architecture": gguf.metadata.maybe("general.architecture", None),
        "file_type": known[0] if known else kind,
        "parameters": sum(t.n_elements for t in rows),
        "bytes": sum(t.nbytes for t in rows),
        "metadata": {key: _short(value) for key, value in gguf.metadata.items()},
        "tensors": [_tensor(t) for t in rows],
        "types": _types(rows),
        "memory": _memory(gguf),
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.type.name,
        "shape": list(tensor.shape),
        "bytes": tensor.nbytes,
        "offset": tensor.offset,
    }


def _types(rows: Iterable[Tensor]) -> dict[str, dict[str, int]]:
    types: dict[str, dict[str, int]] = {}
    for tensor in sorted(rows, key=lambda t: t.type):
        row = types.setdefault(tensor.type.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += tensor.n_elements
        row["bytes"] += tensor.nbytes
    return types


def _short(value: Any) -> Any:
    """A value as JSON has it; long ones as their count and beginning."""
    if isinstance(value, str):
        if len(value) <= LONG:
            return value
        return {"characters": len(value), "first": value[:LONG]}
    if isinstance(value, Strings | np.ndarray | list):
        first = [_short(v.item() if isinstance(v, np.generic) else v) for v in value[:FEW]]
        return first if len(value) <= FEW else {"count": len(value), "first": first}
    if isinstance(value, float):
        if not np.isfinite(value):
            return str(value)
        shorter = float(str(np.float32(value)))  # most are float32: 1e-05, not 9.9999997e-06
        return shorter if np.float32(shorter) == value else value
    return value


def _memory(gguf: GGUF) -> dict[str, Any]:
    """Bytes that running one sequence takes, or `unknown`: why that cannot be said."""
    weights = sum(t.nbytes for t in gguf.tensors.values())
    try:
        config = read_config(gguf)
        plans = {kind: memory_plan(gguf, _one(config, kind)) for kind in CACHES}
    except ModelFileError as error:
        return {"weights": weights, "unknown": str(error).removeprefix(f"{gguf.path}: ")}
    return {
        "weights": plans["f16"].weights,
        "context": config.context,
        "cache_per_token": {kind: plan.block // BLOCK for kind, plan in plans.items()},
        "cache_for_context": {kind: plan.cache for kind, plan in plans.items()},
        "compute": plans["f16"].scratch,
        "total": {kind: plan.total for kind, plan in plans.items()},
    }


def _one(config: Config, kind: CacheType) -> Sizes:
    return choose_sizes(config, config.context, BATCH, 1, cache_type=kind)


def _lines(found: dict[str, Any], every_tensor: bool) -> Iterable[str]:
    parts = f", {found['parts']} parts" if found["parts"] > 1 else ""
    yield f"{found['path']}: GGUF version {found['version']}{parts}"
    yield (
        f"{found['architecture']}, {found['file_type']}, "
        f"{found['parameters'] / 1e6:.2f} M parameters, {_size(found['bytes'])}"
    )
    yield "\nmetadata"
    yield from _table([[key, _cell(value)] for key, value in found["metadata"].items()])
    rows = found["tensors"] if every_tensor else _grouped(found["tensors"])
    yield f"\ntensors ({len(found['tensors'])})"
    yield from _table(
        [[t["name"], t["type"], " x ".join(map(str, t["shape"])), _size(t["bytes"])] for t in rows]
    )
    yield "\nbytes by type"
    yield from _table(
        [
            [
                name,
                f"{row['tensors']} tensors",
                f"{row['parameters'] / 1e6:.2f} M",
                _size(row["bytes"]),
            ]
            for name, row in found["types"].items()
        ]
    )
    yield "\nmemory"
    yield from _table(_memory_rows(found["memory"]))


def _memory_rows(memory: dict[str, Any]) -> list[list[str]]:
    rows = [["weights", _size(memory["weights"])]]
    if "unknown" in memory:
        return [*rows, ["cache, compute", f"cannot be said: {memory['unknown']}"]]
    for kind in CACHES:
        per_token, whole = memory["cache_per_token"][kind], memory["cache_for_context"][kind]
        context = f"{_size(whole)} for {memory['context']} tokens"
        rows.append([f"cache {kind}", f"{_size(per_token)} per token, {context}"])
    rows.append(["compute", f"{_size(memory['compute'])} for {BATCH} tokens at once"])
    both = [f"{_size(memory['total'][kind])} with {kind} cache" for kind in CACHES]
    return [*rows, ["all, whole context", ", ".join(both)]]


def _grouped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for the tensors of all layers that are alike; its bytes are those of all."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        name = re.sub(r"^(\w+)\.\d+\.", r"\1.*.", row["name"])
        groups.setdefault((name, row["type"], *row["shape"]), []).append(row)
    return [
        {
            **alike[0],
            "name": key[0] if len(alike) == 1 else f"{key[0]} ({len(alike)})",
            "bytes": sum(row["bytes"] for row in alike),
        }
        for key, alike in groups.items()
    ]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        if "count" in value:
            first = ", ".join(_cell(v) for v in value["first"])
            return f"[{first}, …] ({value['count']})"
        return f"{_cell(value['first'])}… ({value['characters']} characters)"
    if isinstance(value, list):
        return "[" + ", ".join(_cell(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _table(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        row = ["".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cell) for cell in row]
        padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths)]
        yield "  " + "  ".join([*padded, row[-1]])


def _size(n: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= unit:
            return f"{n / unit:.2f} {name}"
    return f"{n} B"
