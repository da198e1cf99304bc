"""Writes tiny model files with the project's own writer; what tests of models share."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from llamoot.gguf.types import TensorType
from llamoot.gguf.writer import Writer
from llamoot.kernels.table import Floats

Shape = tuple[int, ...]


def random(name: str, shape: Shape, seed: int = 7) -> Floats:
    """Weights that keep activations near 1; the same for a name in every file."""
    rng = np.random.default_rng([seed, *name.encode()])
    x = rng.standard_normal(shape, np.float32)
    if "norm" in name and not name.endswith(".bias"):
        return 1 + np.float32(0.1) * x
    return x * np.float32(0.1 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1]))


def write_model(
    path: pathlib.Path,
    arch: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, Shape | Floats],
    more: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """`keys` are below the architecture's name, `more` are whole; a tensor is a shape or values."""
    values = {n: random(n, t) if isinstance(t, tuple) else t for n, t in tensors.items()}
    with Writer(path) as writer:
        writer.add("general.architecture", arch)
        for key, value in keys.items():
            writer.add(f"{arch}.{key}", value)
        for key, value in (more or {}).items():
            writer.add(key, value)
        for name, x in values.items():
            writer.declare(name, TensorType.F32, x.shape)
        for x in values.values():
            writer.write(np.ascontiguousarray(x, np.float32))
    return path
