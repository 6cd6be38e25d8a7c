"""Pre-norm attention blocks (Vaswani et al. 2017) for any mask, with a key-value cache.

This module knows nothing of games or levels: it maps (B, S, dim) to (B, S, dim). `forward` reads
whole sequences and learns; `extend` continues them from a cache and does not learn.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FEW_QUERIES = 8  # at once: up to here a CPU attends faster by plain products
CACHED_ROWS = 1024  # positions that a CPU takes through all blocks at once: they fit its cache


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
    """Keys and values of the positions seen so far, for every layer; preallocated.

    mask (S, S) bool, True = row may attend to column: all S positions that there is room for.
    On a CPU they keep the precision of the weights, also under autocast, and few queries at a time
    are answered by plain products: its fused kernel is slow for those, and slower in bfloat16.
    """

    def __init__(self, transformer: Transformer, batch_size: int, mask):
        blocks = transformer.blocks
        weight, heads = blocks[0].attention_in.weight, blocks[0].num_heads
        self.is_on_cpu, dtype = weight.device.type == "cpu", weight.dtype
        if not self.is_on_cpu and torch.is_autocast_enabled(weight.device.type):
            dtype = torch.get_autocast_dtype(weight.device.type)
        self.memory = torch.empty(len(blocks), 2, batch_size, heads, len(mask),
                                  transformer.dim // heads, device=weight.device, dtype=dtype)
        self.mask, self.length = mask, 0
        self.added = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))

    @property
    def max_length(self) -> int:
        return len(self.mask)

    def split(self, rows: int):
        """Caches of so many sequences each, which write into this one's memory."""
        for memory in self.memory.split(rows, 2):
            part = copy.copy(self)
            part.memory = memory
            yield part

    def store(self, layer: int, pairs) -> None:
        """Keys and values (B, n, 2, heads, width) of the positions behind those that are there."""
        end = self.length + pairs.shape[1]
        self.memory[layer, :, :, :, self.length:end] = pairs.permute(2, 0, 3, 1, 4)

    def attend(self, layer: int, queries, end: int):
        """Queries (B, n, heads, width) of the last n positions before `end` -> (B, n, dim)."""
        (B, n, heads, width), rows = queries.shape, slice(end - queries.shape[1], end)
        keys, values = self.memory[layer, :, :, :, :end]
        queries = queries.transpose(1, 2).to(keys.dtype)
        if self.is_on_cpu and n <= FEW_QUERIES:
            with torch.autocast("cpu", enabled=False):
                scores = torch.baddbmm(self.added[rows, :end], queries.flatten(0, 1),
                                       keys.flatten(0, 1).mT, alpha=width ** -0.5)
                mixed = (scores.softmax(-1) @ values.flatten(0, 1)).view(B, heads, n, width)
        else:
            with torch.autocast(keys.device.type, enabled=False):
                mixed = F.scaled_dot_product_attention(queries, keys, values,
                                                       attn_mask=self.mask[rows, :end])
        return mixed.transpose(1, 2).reshape(B, n, -1)


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

    def forward(self, x, mask):
        """x (B, n, dim); mask (n, n) bool, True = may attend -> (B, n, dim)."""
        B, n, dim = x.shape
        qkv = self.attention_in(self.attention_norm(x))
        queries, keys, values = qkv.view(B, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attention(queries, keys, values, mask,
                          self.attention_dropout if self.training else 0.0)
        return self._fed_forward(x + self.attention_out(mixed.transpose(1, 2).reshape(B, n, dim)))

    def _fed_forward(self, x):
        share = self.dropout if self.training else 0.0
        hidden = dropout(F.gelu(self.ffn_in(self.ffn_norm(x))), share)
        return x + dropout(self.ffn_out(hidden), share)

    def extend(self, x, cache: KVCache, layer: int, last: int):
        """x (B, n, dim) behind the cached positions -> (B, last, dim), the output at the last of
        them. The keys and values of all n are stored; nothing else is computed of the others."""
        B, n, dim = x.shape
        normed, end = self.attention_norm(x), cache.length + n
        if last == n:
            qkv = self.attention_in(normed).view(B, n, 3, self.num_heads, -1)
            queries, pairs = qkv[:, :, 0], qkv[:, :, 1:]
        else:
            weight, bias = self.attention_in.weight, self.attention_in.bias
            queries = F.linear(normed[:, n - last:], weight[:dim], bias[:dim])
            pairs = F.linear(normed, weight[dim:], bias[dim:])
            queries = queries.view(B, last, self.num_heads, -1)
            pairs = pairs.view(B, n, 2, self.num_heads, -1)
        cache.store(layer, pairs)
        x = x[:, n - last:] + self.attention_out(cache.attend(layer, queries, end))
        return self._fed_forward(x)


class Transformer(nn.Module):
    """A stack of blocks and a last LayerNorm."""

    def __init__(self, *, dim: int, num_layers: int, num_heads: int, ffn_dim: int, dropout: float,
                 attention_dropout: float | None = None):
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, ffn_dim, dropout, attention_dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x, mask):
        """(B, n, dim) -> (B, n, dim); mask (n, n) bool, True = row may attend to column."""
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    @torch.no_grad()
    def extend(self, x, cache: KVCache, *, last: int | None = None):
        """(B, n, dim) behind the cached positions -> (B, last, dim), the output at the last of
        them, by default at all n. Raises ValueError where the cache has no room for n more."""
        n = x.shape[1]
        if cache.length + n > cache.max_length:
            raise ValueError(f"the cache holds {cache.max_length} positions; "
                             f"{cache.length + n} are needed")
        wanted = [n] * (len(self.blocks) - 1) + [n if last is None else last]
        rows = max(1, CACHED_ROWS // n) if x.device.type == "cpu" else len(x)
        parts = []
        for part, own in zip(x.split(rows), cache.split(rows)):
            for layer, block in enumerate(self.blocks):
                part = block.extend(part, own, layer, wanted[layer])
            parts.append(part)
        cache.length += n
        return self.norm(torch.cat(parts))
