"""LoRA adapters: small matrices beside the model's own, scaled for each token.

`Adapted` is an executor around another. A forward pass knows nothing of it: where it multiplies
by a matrix W that an adapter changes, B (A x) times the token's scale is added to the result.
The file is a GGUF of type "adapter": tensors NAME.lora_a (rank, cols) and .lora_b (rows, rank).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot.errors import ModelFileError
from llamoot.gguf.reader import GGUF, Tensor, open_gguf
from llamoot.gguf.types import TensorType
from llamoot.kernels.step import Step
from llamoot.kernels.table import Buf, CacheType, Executor, Floats, Kernels, Rows, Weight
from llamoot.quant.decode import decode

RANK_STEP = 32  # ranks are padded with zeros to a multiple: kernels like whole blocks
MATRICES = {
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"),
    *("attn_q_a", "attn_q_b", "attn_kv_a_mqa", "ffn_gate", "ffn_up", "ffn_down"),
    *("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"),
}


@dataclass(frozen=True)
class Pair:
    """What one adapter adds to one matrix: factor * b @ (a @ x)."""

    a: Weight
    b: Weight
    factor: float
    # Executors know matrices by the address of their bytes: it must not become another's.
    bytes_: tuple[npt.NDArray[np.uint8], ...]


class Adapter:
    """One file of pairs. `scale` (tokens, 1) says how much of it each token of a step gets."""

    def __init__(self, path: str, base: GGUF, executor: Executor) -> None:
        """ModelFileError where the file is no adapter, or not one of the model `base`."""
        self.pairs: dict[str, Pair] = {}
        self.scale: Buf = executor.buffer(1)
        self.scale_of_outputs: Buf = executor.buffer(1, "outputs")
        with open_gguf(Path(path)) as file:
            kind = (
                file.metadata.maybe("general.type", ""),
                file.metadata.maybe("adapter.type", ""),
            )
            if kind != ("adapter", "lora"):
                raise ModelFileError(path, "general.type", "this is no LoRA adapter")
            if file.architecture != base.architecture:
                what = f"made for {file.architecture}, the model is {base.architecture}"
                raise ModelFileError(path, "general.architecture", what)
            alpha = float(file.metadata.maybe("adapter.lora.alpha", 0.0))
            for name in sorted({n.rpartition(".lora_")[0] for n in file.tensors}):
                self.pairs[name] = _pair(path, name, file, base, executor, alpha)


def _pair(path: str, name: str, file: GGUF, base: GGUF, executor: Executor, alpha: float) -> Pair:
    target = base.tensors.get(name)
    a, b = (file.tensors.get(f"{name}.lora_{half}") for half in "ab")
    if target is None or name.removesuffix(".weight").rpartition(".")[2] not in MATRICES:
        raise ModelFileError(path, name, "adapters of this tensor are not supported")
    if a is None or b is None or (b.shape[0], a.shape[-1]) != target.shape:
        raise ModelFileError(path, name, f"the pair does not fit a matrix {target.shape}")
    rank = a.shape[0]
    pad = -rank % RANK_STEP
    halves = np.pad(_floats(a), ((0, pad), (0, 0))), np.pad(_floats(b), ((0, 0), (0, pad)))
    raw = tuple(np.ascontiguousarray(half).view(np.uint8).reshape(-1) for half in halves)
    low, high = (
        executor.weight(tensor.name, data, TensorType.F32, half.shape)
        for tensor, data, half in zip((a, b), raw, halves)
    )
    return Pair(low, high, (alpha or rank) / rank, raw)


def _floats(tensor: Tensor) -> Floats:
    return decode(tensor.raw, tensor.type, tensor.shape)


class Adapted:
    """`Executor` whose matrices are changed by adapters."""

    def __init__(self, inner: Executor, step: Step, base: GGUF, files: Mapping[str, str]) -> None:
        """`files`: name of each adapter -> its path. Until told otherwise no token gets any."""
        self._inner, self._step = inner, step
        self.kernels: Kernels = inner.kernels
        self.adapters = {name: Adapter(path, base, inner) for name, path in files.items()}
        pairs = [pair for each in self.adapters.values() for pair in each.pairs.values()]
        self._widths = (
            max((pair.a.shape[0] for pair in pairs), default=1),
            max((pair.b.shape[0] for pair in pairs), default=1),
        )
        self._scratch: dict[Rows, tuple[Buf, Buf]] = {}

    def set_scales(self, first: int, stop: int, scales: Mapping[str, float]) -> None:
        """How much of each adapter the tokens `first` to `stop` of the step get."""
        for name, adapter in self.adapters.items():
            adapter.scale.data[first:stop] = scales.get(name, 0.0)

    def record(self, forward: Callable[[Kernels], None]) -> None:
        """Remember the forward pass with what the adapters add to it."""
        self._inner.record(lambda kernels: forward(_Table(kernels, self)))

    def scratch(self, rows: Rows) -> tuple[Buf, Buf]:
        """Working memory: (rows, rank) and (rows, outputs of the widest matrix)."""
        if rows not in self._scratch:
            low, high = self._widths
            self._scratch[rows] = self._inner.buffer(low, rows), self._inner.buffer(high, rows)
        return self._scratch[rows]

    def buffer(self, width: int, rows: Rows = "tokens", per_row: int = 1) -> Buf:
        return self._inner.buffer(width, rows, per_row)

    def cache(
        self, n_blocks: int, n_kv_heads: int, head_dim: int, v_dim: int, type: CacheType
    ) -> Any:
        return self._inner.cache(n_blocks, n_kv_heads, head_dim, v_dim, type)

    def weight(
        self, name: str, raw: npt.NDArray[np.uint8], type: int, shape: tuple[int, ...]
    ) -> Weight:
        return self._inner.weight(name, raw, type, shape)

    def table(
        self, name: str, raw: npt.NDArray[np.uint8], type: int, shape: tuple[int, ...]
    ) -> Weight:
        return self._inner.table(name, raw, type, shape)

    def run(self) -> None:
        self._inner.run()

    def close(self) -> None:
        self._inner.close()


class _Table:
    """The kernels of one pass, with a `matmul` that adds what the adapters say."""

    def __init__(self, kernels: Kernels, owner: Adapted) -> None:
        self._k, self._owner = kernels, owner
        for adapter in owner.adapters.values():
            kernels.gather(adapter.scale_of_outputs, adapter.scale)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._k, name)

    def matmul(self, out: Buf, w: Weight, x: Buf, bias: Floats | None = None) -> None:
        """out (rows) = x @ w.T + bias, and for each adapter + scale * factor * (x @ a.T) @ b.T"""
        k = self._k
        k.matmul(out, w, x, bias)
        for adapter in self._owner.adapters.values():
            pair = adapter.pairs.get(w.name)
            if pair is None:
                continue
            low, high = self._owner.scratch(out.rows)
            low, high = low.columns(0, pair.a.shape[0]), high.columns(0, pair.b.shape[0])
            scale = adapter.scale if out.rows == "tokens" else adapter.scale_of_outputs
            k.matmul(low, pair.a, x)
            k.mul(low, low, scale)
            k.matmul(high, pair.b, low)
            k.add(out, out, high, pair.factor)
