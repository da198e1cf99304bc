"""The architectures that are known, one row each; see traits.py for what a trait means.

Source of the rows: the graphs of llama.cpp, checked against its logits by tests/test_golden.py.
"""

from dataclasses import replace

from llamoot.model.traits import Traits

LLAMA = Traits()
NEOX = Traits(rope="halves")
MOE = Traits(rope="halves", norm_topk=True)
LAYER = Traits(norm="layer", act="gelu", ffn="plain", rope="")
GEMMA = Traits(rope="halves", act="gelu", embed_scale="sqrt_dim")
SANDWICH = {"attn_post_norm": "post_attention_norm", "ffn_post_norm": "post_ffw_norm"}
GEMMA2 = replace(GEMMA, attn_post_norm="post_attention_norm", ffn_post_norm="post_ffw_norm")
POST = Traits(
    rope="halves",
    attn_norm="",
    ffn_norm="",
    attn_post_norm="post_attention_norm",
    ffn_post_norm="post_ffw_norm",
)
COMMAND = Traits(norm="layer", parallel="yes", ffn_norm="", logit_scale="mul")
GRANITE = Traits(logit_scale="div", norm_topk=True)

ARCHITECTURES: dict[str, Traits] = {
    "arcee": Traits(act="relu2", ffn="plain"),
    "command-r": COMMAND,
    "cohere2": replace(COMMAND, window=-1, window_step=4, rope_windowed_only=True),
    "exaone": NEOX,
    "exaone4": replace(
        POST, window=4096, window_step=4, window_min_layers=64, rope_windowed_only=True
    ),
    "ernie4_5": Traits(norm_topk=True, ignored=("attn_output.bias",)),
    "ernie4_5-moe": Traits(norm_topk=True, ignored=("attn_output.bias",)),
    "falcon": Traits(
        rope="halves", norm="layer", act="gelu", ffn="plain", parallel="yes", ffn_norm=""
    ),
    "gemma": GEMMA,
    "gemma2": replace(
        GEMMA2,
        window=4096,
        window_step=2,
        attn_softcap=50.0,
        final_softcap=30.0,
        attn_scale_dim_at=46,
    ),
    "gemma3": replace(
        GEMMA2,
        window=-1,
        window_step=6,
        window_base=10000.0,
        window_unscaled=True,
        final_softcap=-1.0,
        attn_scale_dim_at=62,
    ),
    "glm4": Traits(
        ffn="fused",
        attn_post_norm="post_attention_norm",
        ffn_post_norm="post_ffw_norm",
        rope_sections="blocks",
    ),
    "glm4moe": Traits(
        rope="halves", ffn_norm="post_attention_norm", gate="sigmoid", rope_sections="blocks"
    ),
    "gpt-oss": Traits(
        rope="halves",
        ffn_norm="post_attention_norm",
        window=-1,
        window_step=2,
        gate="softmax_after",
        norm_topk=False,
        experts_clamped=True,
    ),
    "gpt2": replace(LAYER, learned_positions=True),
    "gptneox": replace(LAYER, rope="halves", parallel="file"),
    "granite": GRANITE,
    "granitemoe": GRANITE,
    "hunyuan-dense": Traits(rope="halves", qk_norm_after_rope=True),
    "hunyuan-moe": Traits(rope="halves", qk_norm_after_rope=True, norm_topk=True),
    "internlm2": LLAMA,
    "bailingmoe": LLAMA,
    "bailingmoe2": NEOX,
    "dots1": NEOX,
    "llama": Traits(norm_topk=True),
    "minimax-m2": replace(MOE, gate="sigmoid"),
    "mistral3": Traits(norm_topk=True, temperature=True),
    "olmo2": replace(POST, window=-1, window_step=4, window_unscaled=True),
    "olmoe": replace(NEOX, norm_topk=False),
    "phi2": Traits(
        rope="halves", norm="layer", act="gelu", ffn="plain", parallel="yes", ffn_norm=""
    ),
    "phi3": Traits(rope="halves", ffn="fused"),
    "phimoe": MOE,
    "qwen2": NEOX,
    "qwen2moe": replace(NEOX, norm_topk=False),
    "qwen3": NEOX,
    "qwen3moe": MOE,
    "seed_oss": Traits(rope="halves", ffn_norm="post_attention_norm"),
    "smollm3": Traits(no_rope_step=4),
    "stablelm": Traits(rope="halves", norm="layer", parallel="normless"),
    "starcoder2": replace(LAYER, rope="halves"),
}
