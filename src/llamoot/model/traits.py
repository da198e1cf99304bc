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
    rope_leading_dense: bool = False  # layers before the first experts always have rope
    rope_if_finetuned: bool = False  # rope.scaling.finetuned = false means no rope at all
    rope_at_layers: int = 0  # rope only in models of so many layers (0: all)
    alibi: float = 0.0  # largest bias where the file does not say
    alibi_at_layers: int = 0  # ALiBi only in models of so many layers (0: all)
    per_layer: bool = False  # each layer adds embeddings of its own (gemma 4 E models)
    learned_positions: bool = False  # position_embd is added to the embeddings
    token_types: bool = False  # and the first row of token_types, where there is one
    headless: bool = False  # an encoder: hidden rows are all there is, no logits
    # norms
    eps_key: str = ""  # of the norms, where it is not the usual one
    norm: Literal["rms", "layer", "either"] = "rms"  # either: layer where there is no RMS epsilon
    bare_norm: bool = False  # norms without weights
    embd_norm: str = ""  # norm of the embeddings
    embd_bare_norm: bool = False  # weightless norm of the embeddings
    output_norm: str = "output_norm"
    attn_norm: str = "attn_norm"  # before attention; "" for none
    ffn_norm: str = "ffn_norm"  # before the feed-forward; "" for none
    attn_post_norm: str = ""  # of what attention returns
    ffn_post_norm: str = ""
    norm_after_add: bool = False  # these two norm the sum with the residual stream (bert)
    post_eps: float = 0.0  # epsilon of these two; 0: as the others
    # Attention and feed-forward both read the layer's input: always, where the file says so, or
    # where there is no norm between them.
    parallel: Literal["no", "yes", "file", "normless"] = "no"
    # attention
    causal: bool = True
    attn_scale_key: str = "attention.scale"  # where that is 0: 1 / head_dim^attn_scale_power
    attn_scale_power: float = 0.5
    attn_scale_dim_at: int = 0  # with so many layers: 1/sqrt(dim / heads), not of head_dim
    attn_softcap: float = 0.0  # default of attn_logit_softcapping, where it is used at all
    qk_norm_after_rope: bool = False
    qk_norm_l2: bool = False  # weightless norm of queries and keys after rope (llama4)
    v_norm: bool = False  # weightless norm of the values
    attn_gate: Act = "sigmoid"  # of the output gate, where there is one
    temperature: Literal["", "all", "ropeless"] = ""  # layers whose queries grow with the position
    temperature_scale: float = 0.0  # defaults of attention.temperature_*
    temperature_floor: int = 0
    temperature_offset: int = 0
    pooling: int = 0  # default of pooling_type
    latent: bool = False  # latent attention (MLA)
    sparse: bool = False  # attends to its best keys only: exact where all of them are chosen
    yarn_tenths: bool = False  # yarn_log_multiplier is stored times 0.1
    yarn_even: bool = False  # both of YaRN's magnitudes are the same, so they cancel
    q_gated: bool = False  # attn_q holds an output gate behind each head's query
    # recurrent layers
    recurrent: Literal["", "conv", "mamba", "mamba2", "delta", "kda"] = ""  # their kind
    # which layers: those without key/value heads, those the file lists (or all but every n-th),
    # all of them, or all of them beside attention
    recurrent_where: Literal["no_heads", "listed", "all", "beside"] = "no_heads"
    one_mixer: bool = False  # a layer is a mixer or a feed-forward, never both
    no_ffn: bool = False
    # windows
    window: int = 0  # default of attention.sliding_window; -1: no default but used if there
    window_step: int = 0  # every n-th layer is full, where the file has no pattern
    window_full_first: bool = False  # the full one comes first of the n
    window_min_layers: int = 0  # fewer layers: no window at all
    window_base: float = 0.0  # rope base of windowed layers; 0: as the others
    window_unscaled: bool = False  # rope of windowed layers ignores scaling
    window_no_factors: bool = False  # frequency factors are for full layers only
    window_chunk: bool = False  # chunks, not a sliding window (llama4)
    # feed-forward
    act: Act = "silu"
    ffn: Literal["gated", "plain", "fused"] = "gated"
    ff_halved: bool = False  # feed_forward_length counts gate and up together
    # experts
    gate: Gate = "softmax"  # where the file does not say
    norm_topk: bool | None = None  # None: expert_weights_norm of the file
    experts_act: Act | None = None  # None: act
    clamped: bool = False  # gated units as gpt-oss has them: alpha 1.702, limit 7, + 1
    experts_weigh_input: bool = False  # llama4
    one_expert: bool = False  # a single expert is a mixture too
    expert_ff_divided: bool = False  # default of expert_feed_forward_length: ff / used
    dense_and_experts: float = 0.0  # a dense feed-forward beside the routed one, sum scaled so
    shared_scale: float = 1.0  # of the sum of routed and shared experts
    experts_norm: str = ""  # experts read this norm of the layer's input, not the feed-forward's
    doubled_norms: bool = False  # dense and routed have norms of their own (gemma 4)
    router_reads_input: bool = False  # the router reads the layer's input before any norm
    # scales
    embed_scale: Literal["", "sqrt_dim"] = ""
    embed_factor: float = 1.0  # default of embedding_scale
    residual_depth: float = 0.0  # default of residual_scale: this / sqrt(layers)
    logit_scale: Literal["", "mul", "div"] = ""
    logit_factor: float = 1.0  # default of logit_scale
    logit_dim: float = 0.0  # default of logit_scale: this / dim
    final_softcap: float = 0.0  # default of final_logit_softcapping; -1: only if the file says so
    # tensors that llama.cpp loads and then leaves out
    ignored: tuple[str, ...] = ()
