"""Which type each tensor of a file gets: llama.cpp's choice (llama-quant.cpp, without an imatrix).

Most matrices get the type the file is named after; a few that matter more get more bits, and
what is small or delicate stays as it is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llamoot.gguf.types import FileType as F
from llamoot.gguf.types import TensorType as T

# File types that can be made, and the type of most of their matrices.
DEFAULT = {
    F.F32: T.F32,
    F.F16: T.F16,
    F.BF16: T.BF16,
    F.Q4_0: T.Q4_0,
    F.Q4_1: T.Q4_1,
    F.Q5_0: T.Q5_0,
    F.Q5_1: T.Q5_1,
    F.Q8_0: T.Q8_0,
    F.Q2_K: T.Q2_K,
    F.Q3_K_S: T.Q3_K,
    F.Q3_K_M: T.Q3_K,
    F.Q3_K_L: T.Q3_K,
    F.Q4_K_S: T.Q4_K,
    F.Q4_K_M: T.Q4_K,
    F.Q5_K_S: T.Q5_K,
    F.Q5_K_M: T.Q5_K,
    F.Q6_K: T.Q6_K,
    F.IQ4_NL: T.IQ4_NL,
    F.IQ4_XS: T.IQ4_XS,
    F.TQ1_0: T.TQ1_0,
    F.TQ2_0: T.TQ2_0,
    F.MXFP4_MOE: T.MXFP4,
}
ALIASES = {
    "Q3_K": F.Q3_K_M,
    "Q4_K": F.Q4_K_M,
    "Q5_K": F.Q5_K_M,
    "MXFP4": F.MXFP4_MOE,
}
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_inp_shexp\.weight|altup|laurel"
    r"|per_layer_model_proj|^position_embd\.weight|^token_types\.weight|ssm_conv1d|shortconv\.conv"
    r"|time_mix_(first|[wvag][012]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
)
# Rows that are not whole blocks of the left type take the right one, and then F16.
NARROW = {
    T.TQ1_0: T.Q4_0,
    T.TQ2_0: T.Q4_0,
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.IQ4_XS: T.IQ4_NL,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}


@dataclass(frozen=True)
class Model:
    """What the choice depends on beside a tensor's name."""

    arch: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0

    @property
    def gqa(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // max(self.n_kv_heads, 1)


def choose(
    file_type: F, model: Model, tensors: Mapping[str, tuple[int, ...]]
) -> dict[str, T | None]:
    """Type of each tensor (numpy shapes by name); None for one that stays as it is."""
    rank = _value_rank(tensors)
    tied = "output.weight" not in tensors
    types: dict[str, T | None] = {}
    for name, shape in tensors.items():
        types[name] = None
        if name.endswith("weight") and len(shape) > 1 and not KEPT.search(name):
            kind = _named(file_type, model, name, shape, rank.get(name, 0), len(rank), tied)
            types[name] = _fitting(kind, shape[-1])
    return types


def _fitting(kind: T, cols: int) -> T:
    if cols % kind.block:
        kind = NARROW.get(kind, T.F16)
    return T.F16 if cols % kind.block else kind


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _value_rank(names: Iterable[str]) -> dict[str, int]:
    """The matrices that make values, counted by layer."""
    found = [n for n in names if re.search(r"attn_(v|qkv|kv_b)\.weight", n)]
    return {name: i for i, name in enumerate(sorted(found, key=_layer))}


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _named(
    file: F, model: Model, name: str, shape: tuple[int, ...], rank: int, n_ranks: int, tied: bool
) -> T:
    kind = DEFAULT[file]
    if file in (F.F32, F.F16, F.BF16):
        return kind
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        if file is F.MXFP4_MOE or model.arch == "falcon" or shape[-1] % kind.block:
            return T.Q8_0
        return kind if kind is T.Q8_0 else T.Q6_K
    if file is F.MXFP4_MOE:
        return T.MXFP4 if len(shape) == 3 else T.Q8_0
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return T.Q4_K if file in (F.TQ1_0, F.TQ2_0) else kind
    if "attn_v.weight" in name:
        return _values(file, model, rank, n_ranks)
    if "attn_k.weight" in name:
        return T.Q8_0 if model.n_experts == 8 else kind
    if "ffn_down" in name:
        return _down(file, model, _layer(name))
    if "attn_output.weight" in name:
        return _output(file, model)
    if "attn_qkv.weight" in name:
        fused = {F.Q3_K_M: T.Q4_K, F.Q3_K_L: T.Q4_K, F.Q4_K_M: T.Q5_K, F.Q5_K_M: T.Q6_K}
        return fused.get(file, kind)
    return kind


def _values(file: F, model: Model, i: int, n: int) -> T:
    kind = DEFAULT[file]
    if model.n_experts == 8:
        return T.Q8_0
    if file is F.Q2_K:
        kind = T.Q4_K if model.gqa >= 4 else T.Q3_K
    elif file is F.Q3_K_M:
        kind = T.Q5_K if i < 2 else T.Q4_K
    elif (
        file is F.Q3_K_L
        or (file is F.Q4_K_S and i < 4)
        or (file in (F.IQ4_NL, F.IQ4_XS) and model.gqa >= 4)
    ):
        kind = T.Q5_K
    elif file in (F.Q4_K_M, F.Q5_K_M) and _more_bits(i, n):
        kind = T.Q6_K
    large = model.n_layers == 80 and model.gqa > 1 and model.arch in ("llama", "qwen2")
    return T.Q5_K if large and kind in (T.Q3_K, T.Q4_K) else kind


def _down(file: F, model: Model, i: int) -> T:
    n, falcon = model.n_layers, model.arch == "falcon"
    early, more = i < n // 8, _more_bits(i, n)
    if file is F.Q2_K:
        return T.Q3_K
    if file is F.Q3_K_M:
        return T.Q5_K if i < n // 16 else T.Q4_K if not falcon or more else T.Q3_K
    if file is F.Q3_K_L:
        return T.Q4_K if falcon else T.Q5_K
    if file is F.Q4_K_M and falcon:
        return T.Q6_K if i < n // 16 else T.Q5_K if more else T.Q4_K
    if file in (F.Q4_K_M, F.Q5_K_M) and more:
        return T.Q6_K
    if early and (file in (F.IQ4_NL, F.IQ4_XS) or (file is F.Q4_K_S and not falcon)):
        return T.Q5_K
    return DEFAULT[file]


def _output(file: F, model: Model) -> T:
    small = (F.Q2_K, F.Q3_K_S, F.Q3_K_M, F.IQ4_NL, F.IQ4_XS, F.Q4_K_S, F.Q4_K_M)
    if model.arch == "falcon":
        return T.Q4_K if file is F.Q3_K_L else DEFAULT[file]
    if model.n_experts == 8:
        return T.Q5_K if file in small else DEFAULT[file]
    more = {F.Q2_K: T.Q3_K, F.Q3_K_M: T.Q4_K, F.Q3_K_L: T.Q5_K}
    return more.get(file, DEFAULT[file])
