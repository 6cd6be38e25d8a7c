"""What a user of torch would write instead: the same models and batches by the usual means.

float32, images in the order NCHW, nn.MultiheadAttention with a float mask, a DataLoader with two
workers, a full forward pass for every dreamed token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from hd.encoder import AtariEncoder
from hd.imagination import Rollout
from hd.world_model import PREDICTED_AT, SLOTS, WorldModel

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


def dream(actor_critic, tokens, actions, generator: torch.Generator | None = None) -> Rollout:
    """hd.policy.ActorCritic.dream by the usual means: a cache that grows by torch.cat, torch's
    attention kernel, torch.multinomial. Under autocast keys and values are as it makes them."""
    model, cfg = actor_critic.dream_in, actor_critic.cfg
    generator = generator or torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    with torch.no_grad():
        return _Dream(model, tokens, actions, generator).roll(actor_critic.actor.act, cfg.horizon)


class _Dream:
    """A world model's dream under the policy's codes: its cache, a pair of tensors a block."""

    def __init__(self, model, tokens, actions, generator):
        """tokens (B, T, 3), actions (B, T-1)."""
        self.model, self.generator, self.length = model, generator, 0
        self.cache: list[tuple | None] = [None] * len(model.transformer.blocks)
        self.tokens, filled = tokens[:, -1], F.pad(actions, (0, 1))
        # The last L2 is fed together with the action that is chosen for it.
        self._extend(model.embed(tokens, filled)[:, :len(SLOTS) * tokens.shape[1] - 2])

    def roll(self, act, horizon: int) -> Rollout:
        """horizon steps under act(features, generator) -> ids."""
        steps, outcomes = [self.tokens], []
        for _ in range(horizon):
            chosen = act(self.model.features(self.tokens), self.generator)
            outcomes.append((chosen, *self._step(chosen)))
            steps.append(self.tokens)
        seen = torch.stack(steps, 1)
        return Rollout(seen, self.model.features(seen),
                       *(torch.stack(column, 1) for column in zip(*outcomes)))

    def _step(self, actions):
        """Feed (B,) actions; returns reward and continue, and stands at the next step."""
        model, codes = self.model, []
        fed = torch.cat([self._token(2, self.tokens[:, 2]), self._token(3, actions)], 1)
        hidden = self._extend(fed)
        _, reward, keep = model.outcome(hidden)
        for level in range(3):
            shares = model.code_heads[level](hidden).float().softmax(-1).to(self.generator.device)
            drawn = torch.multinomial(shares, 1, generator=self.generator)[:, 0]
            codes.append(drawn.to(hidden.device))
            if level < 2:
                hidden = self._extend(self._token(level, codes[level]))
        self.tokens = torch.stack(codes, -1)
        return reward, keep.float().sigmoid()

    def _token(self, slot: int, ids):
        """(B,) ids of slot 0, 1, 2 (codes) or 3 (action) -> (B, 1, dim), at the next position."""
        tables = (*self.model.code_embeddings, self.model.action_embedding)
        return (tables[slot](ids) + self.model.level_embedding.weight[slot])[:, None]

    def _extend(self, x):
        """(B, n, dim) behind what is there -> the transformer's output at the last, (B, dim)."""
        model, end = self.model, self.length + x.shape[1]
        if self.length:  # the context comes with its positions
            x = x + model.position_embedding.weight[self.length:end]
        mask = model.mask[self.length:end, :end]
        for layer, block in enumerate(model.transformer.blocks):
            x = self._attended(layer, block, x, mask)
            x = x + block.ffn_out(F.gelu(block.ffn_in(block.ffn_norm(x))))
        self.length = end
        return model.transformer.norm(x)[:, -1]

    def _attended(self, layer: int, block, x, mask):
        B, n, dim = x.shape
        qkv = block.attention_in(block.attention_norm(x))
        queries, keys, values = qkv.view(B, n, 3, block.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.cache[layer] is not None:
            keys, values = (torch.cat([old, new], 2)
                            for old, new in zip(self.cache[layer], (keys, values)))
        self.cache[layer] = (keys, values)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return x + block.attention_out(mixed.transpose(1, 2).reshape(B, n, dim))
