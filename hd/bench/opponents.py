"""What a user of torch would write instead: the same models and batches by the usual means.

float32, images in the order NCHW, nn.MultiheadAttention with a float mask, a DataLoader with two
workers, a full forward pass for every dreamed token.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from hd.encoder import AtariEncoder
from hd.world_model import PREDICTED_AT, WorldModel

NUM_WORKERS = 2


class PlainEncoder(AtariEncoder):
    """The encoder in torch's default memory layout."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.to(memory_format=torch.contiguous_format)

    def _convolved(self, frames):
        return self.convolutions(frames.float() / 255)


class PlainBlock(nn.Module):
    """hd.transformer.Block on nn.MultiheadAttention and nn.Dropout."""

    def __init__(self, cfg):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(cfg.dim), nn.LayerNorm(cfg.dim)
        self.attention = nn.MultiheadAttention(cfg.dim, cfg.num_heads, batch_first=True,
                                               dropout=cfg.attention_dropout)
        self.ffn = nn.Sequential(
            nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU(), nn.Dropout(cfg.dropout),
            nn.Linear(cfg.ffn_dim, cfg.dim), nn.Dropout(cfg.dropout))

    def forward(self, x, mask):
        normed = self.attention_norm(x)
        mixed = self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        x = x + mixed
        return x + self.ffn(self.ffn_norm(x))


class PlainTransformer(nn.Module):
    """hd.transformer.Transformer, without a cache."""

    def __init__(self, cfg, allowed):
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(cfg) for _ in range(cfg.num_layers))
        self.norm = nn.LayerNorm(cfg.dim)
        added = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
        self.register_buffer("mask", added, persistent=False)

    def forward(self, x, mask):
        """(B, n, dim) -> (B, n, dim); of the bool mask (n, n) only the size is read."""
        added = self.mask[:len(mask), :len(mask)]
        for block in self.blocks:
            x = block(x, added)
        return self.norm(x)


class PlainWorldModel(WorldModel):
    """The world model with the same embeddings, heads and losses on a PlainTransformer."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.transformer = PlainTransformer(cfg, self.mask)


# ---- batches

class Triples(Dataset):
    """Anchor, next frame and a random other one as 4-stacks held in memory (N, 4, 84, 84)."""

    def __init__(self, stacks):
        self.stacks = stacks

    def __len__(self):
        return len(self.stacks) - 1

    def __getitem__(self, row):
        other = int(torch.randint(len(self.stacks), ()))
        return self.stacks[row], self.stacks[row + 1], self.stacks[other]


def triples_to_batch(items) -> dict:
    """Items of Triples -> what AtariEncoder.loss reads."""
    order = torch.arange(len(items))
    return {"frames": torch.stack([stack for column in zip(*items) for stack in column]),
            "anchor": order, "positive": order + len(items),
            "negatives": order[:, None] + 2 * len(items)}


class StepWindows(Dataset):
    """Windows of consecutive steps of tensors by name, (N, ...) each."""

    def __init__(self, columns: dict, length: int):
        self.columns, self.length = columns, length

    def __len__(self):
        return len(self.columns["tokens"]) - self.length + 1

    def __getitem__(self, start):
        return {name: column[start:start + self.length] for name, column in self.columns.items()}


class LoaderFeed:
    """Batches of a DataLoader with two workers, at most `count` after each start()."""

    def __init__(self, data: Dataset, *, batch_size: int, count: int, collate=None):
        sampler = RandomSampler(data, replacement=True, num_samples=batch_size * count)
        self.loader = DataLoader(data, batch_size, sampler=sampler, num_workers=NUM_WORKERS,
                                 persistent_workers=True, collate_fn=collate)

    def start(self) -> LoaderFeed:
        """Begin another `count` batches with the same workers; none is made ahead of this."""
        self.batches = iter(self.loader)
        return self

    def next(self):
        return next(self.batches)


# ---- dreams

@torch.no_grad()
def next_code(model, tokens, actions, level: int):
    """Logits (B, K) of one code of the next step, by a full forward pass.

    tokens (B, T, 3), actions (B, T): the steps so far, all acted on. For level 1 and 2 the last
    step is the one being dreamed, with the codes up to there; its action does not matter.
    """
    hidden = model.hidden(tokens, actions)
    return model.code_heads[level](hidden[:, -1, PREDICTED_AT[level]])
