"""What makes one architecture differ from another, as data: a row of traits each, no code.

The default is llama: RMS norm before attention and before a gated feed-forward, rotary positions
on adjacent pairs. What the tensors of a file already say (biases, norms of queries and keys,
sinks, fused projections, shared experts, output gates) is not repeated here.
Source of the rows: the graphs of llama.cpp, checked against its logits by tests/test_golden.py.
"""

from dataclasses import dataclass
from typing import Literal

from llamoot.kernels.table import Act

Gate = Literal["softmax", "sigmoid", "softmax_after", "sqrt_softplus"]


@dataclass(frozen=True)
class Traits:
    """One architecture. Tensor names are given without `blk.N.` and without `.weight`."""

    # positions
    rope: Literal["adjacent", "halves", ""] = "adjacent"
    rope_sections: Literal["", "blocks", "interleaved"] = ""  # M-RoPE: which pairs stand still
    no_rope_step: int = 0  # every n-th layer has no rope
    rope_windowed_only: bool = False  # full-attention layers have no rope, where windows exist
    alibi: float = 0.0  # largest bias where the file does not say
    learned_positions: bool = False  # position_embd is added to the embeddings
    # norms
    norm: Literal["rms", "layer"] = "rms"
    default_eps: float = 0.0  # where the file may leave it out
    bare_norm: bool = False  # norms without weights
    embd_norm: str = ""  # norm of the embeddings
    output_norm: str = "output_norm"
    attn_norm: str = "attn_norm"  # before attention; "" for none
    ffn_norm: str = "ffn_norm"  # before the feed-forward; "" for none
    attn_post_norm: str = ""  # of what attention returns
    ffn_post_norm: str = ""
    # Attention and feed-forward both read the layer's input: always, where the file says so, or
    # where there is no norm between them.
    parallel: Literal["no", "yes", "file", "normless"] = "no"
    # attention
    causal: bool = True
    attn_scale: float = 0.0  # fixed; 0: attention.scale of the file, or 1/sqrt(head_dim)
    attn_scale_key: str = "attention.scale"
    attn_scale_dim_at: int = 0  # with so many layers: 1/sqrt(dim / heads), not of head_dim
    attn_softcap: float = 0.0  # default of attn_logit_softcapping, where it is used at all
    qk_norm_after_rope: bool = False
    qk_norm_l2: bool = False  # weightless norm of queries and keys after rope (llama4)
    v_norm: bool = False  # weightless RMS norm of the values
    temperature: bool = False  # scale queries by attention.temperature_*
    temperature_scale: float = 0.0  # defaults of these
    temperature_floor: int = 0
    pooling: int = 0  # default of pooling_type
    # windows
    window: int = 0  # default of attention.sliding_window; -1: no default but used if there
    window_step: int = 0  # every n-th layer is full, where the file has no pattern
    window_full_first: bool = False  # the full one comes first of the n
    window_min_layers: int = 0  # fewer layers: no window at all
    window_base: float = 0.0  # rope base of windowed layers; 0: as the others
    window_unscaled: bool = False  # rope of windowed layers ignores scaling
    window_chunk: bool = False  # chunks, not a sliding window (llama4)
    # feed-forward
    act: Act = "silu"
    ffn: Literal["gated", "plain", "fused"] = "gated"
    # experts
    gate: Gate = "softmax"  # where the file does not say
    norm_topk: bool | None = None  # None: expert_weights_norm of the file
    experts_act: Act | None = None  # None: act
    experts_clamped: bool = False  # gpt-oss: alpha 1.702, limit 7, + 1
    experts_weigh_input: bool = False  # llama4
    one_expert: bool = False  # a single expert is a mixture too
    expert_ff_divided: bool = False  # default of expert_feed_forward_length: ff / used
    dense_and_experts: bool = False  # a dense feed-forward beside the routed one
    # scales
    embed_scale: Literal["", "sqrt_dim"] = ""
    embed_factor: float = 1.0  # default of embedding_scale
    logit_scale: Literal["", "mul", "div"] = ""
    final_softcap: float = 0.0  # default of final_logit_softcapping; -1: only if the file says so
    # tensors that llama.cpp loads and then leaves out
    ignored: tuple[str, ...] = ()
