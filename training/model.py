"""The built-in model in PyTorch: the llama architecture, small. Trained here, run by the engine."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the model. `hidden` and `dim` are multiples of 32, so every block type fits."""

    vocab: int = 512
    dim: int = 160
    layers: int = 4
    heads: int = 5
    hidden: int = 448
    context: int = 1024
    rope_base: float = 10_000.0
    eps: float = 1e-5

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of the last axis, as the llama architecture does."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2)


class Layer(nn.Module):
    """Attention and feed-forward, each after a norm, each added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, h = shape.dim, shape.hidden
        self.heads = shape.heads
        self.attn_norm = nn.RMSNorm(d, eps=shape.eps)
        self.attn_q = nn.Linear(d, d, bias=False)
        self.attn_k = nn.Linear(d, d, bias=False)
        self.attn_v = nn.Linear(d, d, bias=False)
        self.attn_output = nn.Linear(d, d, bias=False)
        self.ffn_norm = nn.RMSNorm(d, eps=shape.eps)
        self.ffn_gate = nn.Linear(d, h, bias=False)
        self.ffn_up = nn.Linear(d, h, bias=False)
        self.ffn_down = nn.Linear(h, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, dim = x.shape
        h = self.attn_norm(x)
        q, k, v = (
            w(h).view(batch, length, self.heads, -1).transpose(1, 2)
            for w in (self.attn_q, self.attn_k, self.attn_v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_output(a.transpose(1, 2).reshape(batch, length, dim))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Abacus(nn.Module):
    """Token ids (batch, length) in, logits (batch, length, vocabulary) out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.dim)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.dim, eps=shape.eps)
        self.output = nn.Linear(shape.dim, shape.vocab, bias=False)
        half = shape.dim // shape.heads // 2
        freqs = shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(shape.context, dtype=torch.float32)[:, None] * freqs
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(self._start)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.token_embd(tokens)
        for layer in self.blk:
            x = layer(x, self.cos[:length], self.sin[:length])
        return self.output(self.output_norm(x))
