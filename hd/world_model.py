"""World model over [L0, L1, L2, action] tokens: masks, embeddings, heads and their loss.

L0 at t+1 is predicted at the action position of t, L1 at t+1 from L0 at t+1, L2 from L1; reward
and continue of step t are read at the action position of t. The seed document's sizes; two-hot
symlog rewards as in DreamerV3 (Hafner et al. 2023, eqs. 8-10).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hd.config import MASKS, InputError, WorldModelConfig
from hd.replay import thin
from hd.run import training
from hd.run.machine import device
from hd.run.runs import Run, seed_everything
from hd.run.training import Loss, Unkept
from hd.transformer import KVCache, Transformer
from hd.two_hot import TwoHot
from hd.windows import Windows

EVALUATION_WINDOWS = 64  # held-out windows scored during training, all games pooled


def hierarchical_mask(num_steps: int, kind: str) -> torch.Tensor:
    """Which position may attend to which: (4T, 4T) bool, True = may attend.

    Layout of a step: [L0, L1, L2, action]. No position sees the future; within a step a position
    sees itself and what stands left of it.
    causal: all of the past. hierarchical: L1 and L2 see only past L0 and past actions; L0 and
    action see all of the past. seed: L1, L2 and action see only past L0 and past actions; L0 sees
    all of the past. strict: L0 and action see L0 and actions only, past and in their own step; L1
    and L2 see past L0 and actions, and of their own step what stands left of them.
    Raises InputError for an unknown kind.
    """
    if kind not in MASKS:
        raise InputError(f"unknown mask {kind!r}; allowed: {', '.join(MASKS)}")
    position = torch.arange(4 * num_steps)
    step, slot = position // 4, position % 4
    own_step = step[:, None] == step[None, :]
    left = (slot[:, None] >= slot[None, :]) & own_step
    past = step[:, None] > step[None, :]
    coarse_key = ((slot == 0) | (slot == 3))[None, :]
    detail_query = ((slot == 1) | (slot == 2))[:, None]
    if kind == "causal":
        return left | past
    if kind == "hierarchical":
        return left | (past & (coarse_key | ~detail_query))
    if kind == "seed":
        return left | (past & (coarse_key | (slot == 0)[:, None]))
    return (left & (coarse_key | detail_query)) | (past & coarse_key)


@dataclass
class Prediction:
    """code_logits: for each level (B, T-1, K), of step t+1; reward, continue_logits: (B, T)."""

    code_logits: list[torch.Tensor]
    reward_logits: torch.Tensor
    reward: torch.Tensor
    continue_logits: torch.Tensor


class WorldModel(nn.Module):
    """Predicts the next step's codes, the reward and whether the episode goes on.

    codebooks (levels, K, D), if given, are kept for the policy's features and do not train.
    """

    def __init__(self, cfg: WorldModelConfig, codebooks: torch.Tensor | None = None):
        super().__init__()
        self.cfg = cfg
        if cfg.num_levels != 3:
            raise InputError(f"the token layout has three levels; got num_levels={cfg.num_levels}")
        dim, codes = cfg.dim, cfg.num_codes
        self.code_embeddings = nn.ModuleList(nn.Embedding(codes, dim) for _ in range(3))
        self.action_embedding = nn.Embedding(cfg.num_actions, dim)
        self.level_embedding = nn.Embedding(4, dim)
        self.position_embedding = nn.Embedding(4 * cfg.max_steps, dim)
        self.transformer = Transformer(dim=dim, num_layers=cfg.num_layers, ffn_dim=cfg.ffn_dim,
                                       num_heads=cfg.num_heads, dropout=cfg.dropout,
                                       attention_dropout=cfg.attention_dropout)
        self.code_heads = nn.ModuleList(nn.Linear(dim, codes) for _ in range(3))
        self.two_hot = TwoHot()
        self.reward_head = _mlp(dim, len(self.two_hot.bins))
        self.continue_head = _mlp(dim, 1)
        self.apply(_initialise)
        nn.init.zeros_(self.reward_head[-1].weight)  # far bins would shout before they are learned
        self.register_buffer("mask", hierarchical_mask(cfg.max_steps, cfg.mask), persistent=False)
        kept = None if codebooks is None else codebooks.detach().clone()
        self.register_buffer("codebooks", kept)

    def embed(self, tokens, actions):
        """tokens (B, T, 3), actions (B, T) -> (B, 4T, dim), positions from 0."""
        B, T, num_levels = tokens.shape
        if num_levels != 3:
            raise InputError(f"the world model reads tokens (B, T, 3); got {tuple(tokens.shape)}")
        if len(self.mask) < 4 * T:
            raise InputError(f"the world model reads at most {self.cfg.max_steps} steps; got {T}")
        parts = [table(tokens[..., level]) for level, table in enumerate(self.code_embeddings)]
        parts.append(self.action_embedding(actions))
        x = torch.stack(parts, 2) + self.level_embedding.weight
        return x.reshape(B, 4 * T, -1) + self.position_embedding.weight[:4 * T]

    def hidden(self, tokens, actions):
        """(B, T, 4, dim): the transformer's output at every position."""
        x = self.embed(tokens, actions)
        out = self.transformer(x, self.mask[:x.shape[1], :x.shape[1]])
        return out.view(*tokens.shape[:2], 4, -1)

    def forward(self, tokens, actions) -> Prediction:
        """tokens (B, T, 3) int64, actions (B, T) int64 ALE ids -> Prediction."""
        hidden = self.hidden(tokens, actions)
        logits = [self.code_heads[0](hidden[:, :-1, 3]),
                  self.code_heads[1](hidden[:, 1:, 0]),
                  self.code_heads[2](hidden[:, 1:, 1])]
        return Prediction(logits, *self.outcome(hidden[:, :, 3]))

    def outcome(self, hidden):
        """Reward logits, expected reward and continue logits from action positions (..., dim)."""
        hidden = hidden.detach() if self.cfg.detach_heads else hidden
        reward_logits = self.reward_head(hidden)
        return (reward_logits, self.two_hot.decode(reward_logits),
                self.continue_head(hidden).squeeze(-1))

    def make_cache(self, batch_size: int, num_steps: int) -> KVCache:
        """An empty cache for num_steps steps; raises InputError beyond cfg.max_steps."""
        if num_steps > self.cfg.max_steps:
            raise InputError(f"context and horizon together are {num_steps} steps; the world "
                             f"model reads at most {self.cfg.max_steps}")
        return KVCache(self.transformer, batch_size, 4 * num_steps)

    def extend(self, x, cache: KVCache):
        """x (B, n, dim) token embeddings without position, behind the cache -> (B, n, dim)."""
        first, last = cache.length, cache.length + x.shape[1]
        if last > cache.max_length:
            raise InputError(f"the cache was made for {cache.max_length // 4} steps, all taken")
        x = x + self.position_embedding.weight[first:last]
        return self.transformer(x, self.mask[first:last, :last], cache)

    def token(self, slot: int, ids):
        """(B,) ids of slot 0, 1, 2 (codes) or 3 (action) -> (B, 1, dim), without position."""
        table = self.action_embedding if slot == 3 else self.code_embeddings[slot]
        return (table(ids) + self.level_embedding.weight[slot])[:, None]

    def features(self, tokens):
        """The policy's view of tokens (..., 3): their codebook vectors side by side (..., 3 D)."""
        if self.codebooks is None:
            raise InputError("this world model has no codebooks: give them at construction")
        vectors = [self.codebooks[level][tokens[..., level]] for level in range(3)]
        return torch.cat(vectors, -1)

    def loss(self, batch) -> Loss:
        """batch: tokens (B, T, 3), actions, rewards, continues (B, T); codes weighted by level."""
        out = self(batch["tokens"], batch["actions"])
        target = batch["tokens"][:, 1:]
        parts, total = {}, 0.0
        for level, logits in enumerate(out.code_logits):
            parts[f"l{level}_cross_entropy"] = F.cross_entropy(
                logits.float().flatten(0, 1), target[..., level].flatten())
            total = total + self.cfg.level_weights[level] * parts[f"l{level}_cross_entropy"]
        parts["codes"] = total
        parts["reward"] = self.two_hot.loss(out.reward_logits, batch["rewards"]).mean()
        parts["continue"] = F.binary_cross_entropy_with_logits(
            out.continue_logits.float(), batch["continues"])
        return Loss(total + parts["reward"] + parts["continue"], parts)


def _mlp(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, out))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


# ---- training and use

def build(cfg: WorldModelConfig, codebooks: torch.Tensor) -> WorldModel:
    """A new world model over a tokenizer's codebooks (L, K, D), which it keeps a copy of."""
    check_codebooks(cfg, codebooks)
    return WorldModel(cfg, codebooks.clone())


def check_codebooks(cfg: WorldModelConfig, codebooks: torch.Tensor,
                    made_by: str = "the tokenizer", read_by: str = "the world model") -> None:
    """Raise InputError, with the names of both, unless levels and codes are those that cfg reads.
    """
    wanted = cfg.num_levels, cfg.num_codes
    if codebooks.shape[:2] != wanted:
        raise InputError(f"{made_by} has {_levels(codebooks.shape)}; {read_by} reads "
                         f"{_levels(wanted)}")


def _levels(shape) -> str:
    return f"{shape[0]} levels of {shape[1]} codes"


def untrained(cfg: WorldModelConfig, codebooks: torch.Tensor, seed: int) -> WorldModel:
    """The network before training, as train starts it, in eval mode, on the device."""
    seed_everything(seed)  # so that no earlier stage decides the initial weights
    return build(cfg, codebooks).to(device()).eval()


def train(cfg: WorldModelConfig, windows: Windows, codebooks: torch.Tensor, run: Run | Unkept, *,
          start: WorldModel | None = None) -> tuple[WorldModel, dict]:
    """Train on the windows of training episodes; the record's "history" is the per-epoch table.

    start: a model that goes on learning, instead of a new one.
    """
    def batches(i: int):
        return windows.batch(windows.batch_starts(i), cfg.max_steps)

    scored = {}
    for side, starts in (("train", windows.epoch(0)), ("val", windows.held_out())):
        batch = windows.batch(thin(starts, EVALUATION_WINDOWS), cfg.max_steps)
        scored[side] = training.to_device(batch, device())
    model = start or untrained(cfg, codebooks, run.seed)
    record = training.train(model, batches, cfg, run, evaluate=lambda m: _evaluate(m, scored))
    return model, record


def _evaluate(model, scored: dict) -> dict:
    """Loss over codes on training and on held-out windows, both without dropout, and next-code
    accuracy per level on the held-out ones, on all and on changed codes."""
    losses = {f"{side}_codes": model.loss(batch).parts["codes"].item()
              for side, batch in scored.items()}
    tokens = scored["val"]["tokens"]
    logits = model(tokens, scored["val"]["actions"]).code_logits
    accuracy = {}
    for level, x in enumerate(logits):
        last, following = tokens[:, :-1, level], tokens[:, 1:, level]
        right = (x.argmax(-1) == following).float()
        accuracy[f"val_l{level}_accuracy"] = right.mean().item()
        if (last != following).any():
            accuracy[f"val_l{level}_changed_accuracy"] = right[last != following].mean().item()
    return losses | accuracy
