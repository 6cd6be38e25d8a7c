"""Pre-norm attention blocks (Vaswani et al. 2017) for any mask, with a key-value cache.

This module knows nothing of games or levels: it maps (B, S, dim) to (B, S, dim).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def dropout(x, share: float):
    """x (...) with a random share of elements zeroed and the others scaled up (inverted dropout).

    A CPU draws torch's Bernoulli numbers one after the other; there random bytes, ten times
    cheaper, decide, so that the share is rounded to a multiple of 1/256.
    """
    if share == 0 or x.device.type != "cpu":
        return F.dropout(x, share)
    rng, zeroed = np.random.SFC64(int(torch.randint(2**62, ()))), max(1, round(256 * share))
    noise = rng.random_raw(-(-x.numel() // 8)).view(np.uint8)[:x.numel()]
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(torch.from_numpy(noise).view(x.shape), zeroed, out=kept)
    return x * kept.mul_(256 / (256 - zeroed))


def attention(queries, keys, values, mask, share: float = 0.0):
    """softmax(Q K^T / sqrt(width)) V (Vaswani et al. 2017, eq. 1), weights dropped by share.

    queries (B, heads, n, width); keys, values (B, heads, S, width); mask (n, S) bool, True = may
    attend -> (B, heads, n, width).
    A CPU's fused kernel is slow backwards in bfloat16 and does not skip what a mask forbids.
    There, while training, the two halves of the rows are attended plainly, each only to what some
    row of it may see: half the time for a row's rounding more.
    """
    is_slow = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
    if share or not (is_slow and queries.requires_grad):
        return F.scaled_dot_product_attention(queries, keys.to(queries.dtype),
                                              values.to(queries.dtype), attn_mask=mask,
                                              dropout_p=share)
    added = torch.zeros_like(mask, dtype=queries.dtype).masked_fill_(~mask, float("-inf"))
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    mixed, half = [], -(-len(mask) // 2)
    for asked, barred in zip(queries.flatten(0, 1).split(half, 1), added.split(half)):
        end = int(barred.isfinite().any(0).nonzero()[-1]) + 1
        scores = torch.baddbmm(barred[:, :end], asked, keys[:, :end].mT,
                               alpha=asked.shape[-1] ** -0.5)
        mixed.append(scores.softmax(-1) @ values[:, :end])
    return torch.cat(mixed, 1).view_as(queries)


class KVCache:
    """Keys and values of the positions seen so far, for every layer; preallocated."""

    def __init__(self, transformer: Transformer, batch_size: int, max_length: int):
        blocks = transformer.blocks
        weight = blocks[0].attention_in.weight
        heads, width = blocks[0].num_heads, transformer.dim // blocks[0].num_heads
        shape = (len(blocks), 2, batch_size, heads, max_length, width)
        dtype = weight.dtype
        if torch.is_autocast_enabled(weight.device.type):
            dtype = torch.get_autocast_dtype(weight.device.type)
        self.memory = torch.empty(shape, device=weight.device, dtype=dtype)
        self.length, self.max_length = 0, max_length

    def extend(self, layer: int, keys, values):
        """Store (B, heads, n, width) behind what is there; returns all keys and values so far."""
        end = self.length + keys.shape[2]
        if end > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} positions; {end} are needed")
        self.memory[layer, 0, :, :, self.length:end] = keys
        self.memory[layer, 1, :, :, self.length:end] = values
        return self.memory[layer, 0, :, :, :end], self.memory[layer, 1, :, :, :end]


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm and around a residual.

    attention_dropout, on attention weights, is `dropout` unless given. On a CPU anything but 0
    takes the slow path of scaled_dot_product_attention.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float,
                 attention_dropout: float | None = None):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got {dim} and {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention_in, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ffn_in, self.ffn_out = nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)

    def forward(self, x, mask, cache: KVCache | None = None, layer: int = 0):
        """x (B, n, dim); mask (n, S) bool, True = may attend; S counts the cached positions too."""
        B, n, dim = x.shape
        share = self.dropout if self.training else 0.0
        qkv = self.attention_in(self.attention_norm(x))
        queries, keys, values = qkv.view(B, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        mixed = attention(queries, keys, values, mask,
                          self.attention_dropout if self.training else 0.0)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(B, n, dim))
        hidden = dropout(F.gelu(self.ffn_in(self.ffn_norm(x))), share)
        return x + dropout(self.ffn_out(hidden), share)


class Transformer(nn.Module):
    """A stack of blocks and a last LayerNorm."""

    def __init__(self, *, dim: int, num_layers: int, num_heads: int, ffn_dim: int, dropout: float,
                 attention_dropout: float | None = None):
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, ffn_dim, dropout, attention_dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x, mask, cache: KVCache | None = None):
        """(B, n, dim) -> (B, n, dim). With a cache, x are the positions behind the cached ones.

        mask: (n, S) bool, True = row may attend to column; S = cached positions + n.
        """
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)
