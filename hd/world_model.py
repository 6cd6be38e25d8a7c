"""World model over [L0, L1, L2, action] tokens: masks, embeddings, heads, their loss, and dreams.

This module owns the token layout. L0 at t+1 is predicted at the action position of t, L1 at t+1
from L0 at t+1, L2 from L1; reward and continue of step t are read at the action position of t. The
seed document's sizes; two-hot symlog rewards as in DreamerV3 (Hafner et al. 2023, eqs. 8-10).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hd.config import FEATURES, MASKS, InputError, WorldModelConfig, allowed
from hd.replay import thin
from hd.run import training
from hd.run.machine import device
from hd.run.runs import Run, seed_everything
from hd.run.training import Loss, Unkept
from hd.transformer import KVCache, Transformer
from hd.two_hot import TwoHot
from hd.windows import Windows

# The slots of a step, in order: the codes of its levels, then the action taken there.
L0, L1, L2, ACTION = SLOTS = range(4)
LEVELS = (L0, L1, L2)
PREDICTED_AT = {L0: ACTION, L1: L0, L2: L1}  # the slot just before, so L0's is the step before's
EVALUATION_WINDOWS = 64  # validation windows scored during training, all games pooled


def hierarchical_mask(num_steps: int, kind: str) -> torch.Tensor:
    """Which position may attend to which: (4T, 4T) bool, True = may attend (4 slots a step).

    Layout of a step: [L0, L1, L2, action]. No position sees the future; within a step a position
    sees itself and what stands left of it.
    causal: all of the past. hierarchical: L1 and L2 see only past L0 and past actions; L0 and
    action see all of the past. seed: L1, L2 and action see only past L0 and past actions; L0 sees
    all of the past. strict: L0 and action see L0 and actions only, past and in their own step; L1
    and L2 see past L0 and actions, and of their own step what stands left of them.
    Raises InputError for an unknown kind.
    """
    allowed("mask", kind, MASKS)
    position = torch.arange(len(SLOTS) * num_steps)
    step, slot = position // len(SLOTS), position % len(SLOTS)
    own_step = step[:, None] == step[None, :]
    left = (slot[:, None] >= slot[None, :]) & own_step
    past = step[:, None] > step[None, :]
    coarse_key = ((slot == L0) | (slot == ACTION))[None, :]
    detail_query = ((slot == L1) | (slot == L2))[:, None]
    if kind == "causal":
        return left | past
    if kind == "hierarchical":
        return left | (past & (coarse_key | ~detail_query))
    if kind == "seed":
        return left | (past & (coarse_key | (slot == L0)[:, None]))
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
        if cfg.num_levels != len(LEVELS):
            raise InputError(f"the token layout has three levels; got num_levels={cfg.num_levels}")
        dim, codes = cfg.dim, cfg.num_codes
        self.code_embeddings = nn.ModuleList(nn.Embedding(codes, dim) for _ in LEVELS)
        self.action_embedding = nn.Embedding(cfg.num_actions, dim)
        self.level_embedding = nn.Embedding(len(SLOTS), dim)
        self.position_embedding = nn.Embedding(len(SLOTS) * cfg.max_steps, dim)
        self.transformer = Transformer(dim=dim, num_layers=cfg.num_layers, ffn_dim=cfg.ffn_dim,
                                       num_heads=cfg.num_heads, dropout=cfg.dropout,
                                       attention_dropout=cfg.attention_dropout)
        self.code_heads = nn.ModuleList(nn.Linear(dim, codes) for _ in LEVELS)
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
        if num_levels != len(LEVELS):
            raise InputError(f"the world model reads tokens (B, T, 3); got {tuple(tokens.shape)}")
        num_positions = len(SLOTS) * T
        if len(self.mask) < num_positions:
            raise InputError(f"the world model reads at most {self.cfg.max_steps} steps; got {T}")
        parts = [table(tokens[..., level]) for level, table in enumerate(self.code_embeddings)]
        parts.append(self.action_embedding(actions))
        x = torch.stack(parts, 2) + self.level_embedding.weight
        return x.reshape(B, num_positions, -1) + self.position_embedding.weight[:num_positions]

    def hidden(self, tokens, actions):
        """(B, T, 4, dim): the transformer's output at every slot."""
        x = self.embed(tokens, actions)
        out = self.transformer(x, self.mask[:x.shape[1], :x.shape[1]])
        return out.view(*tokens.shape[:2], len(SLOTS), -1)

    def forward(self, tokens, actions) -> Prediction:
        """tokens (B, T, 3) int64, actions (B, T) int64 ALE ids -> Prediction."""
        hidden = self.hidden(tokens, actions)
        logits = [self.code_heads[L0](hidden[:, :-1, PREDICTED_AT[L0]]),
                  self.code_heads[L1](hidden[:, 1:, PREDICTED_AT[L1]]),
                  self.code_heads[L2](hidden[:, 1:, PREDICTED_AT[L2]])]
        return Prediction(logits, *self.outcome(hidden[:, :, ACTION]))

    def outcome(self, hidden):
        """Reward logits, expected reward and continue logits from action slots (..., dim)."""
        hidden = hidden.detach() if self.cfg.detach_heads else hidden
        reward_logits = self.reward_head(hidden)
        return (reward_logits, self.two_hot.decode(reward_logits),
                self.continue_head(hidden).squeeze(-1))

    def make_cache(self, batch_size: int, num_steps: int) -> KVCache:
        """An empty cache for num_steps steps; raises InputError beyond cfg.max_steps."""
        if num_steps > self.cfg.max_steps:
            raise InputError(f"context and horizon together are {num_steps} steps; the world "
                             f"model reads at most {self.cfg.max_steps}")
        num_positions = len(SLOTS) * num_steps
        return KVCache(self.transformer, batch_size, self.mask[:num_positions, :num_positions])

    @torch.no_grad()
    def extend(self, ids, cache: KVCache):
        """ids (B, n) int64 of the n slots behind the cached ones, codes and actions as the layout
        has them -> (B, dim), the transformer's output at the last of them."""
        first, last = cache.length, cache.length + ids.shape[1]
        if last > cache.max_length:
            raise InputError(f"the cache was made for {cache.max_length // len(SLOTS)} steps, "
                             f"all taken")
        weight = self.level_embedding.weight
        x = torch.empty(*ids.shape, self.cfg.dim, device=weight.device, dtype=weight.dtype)
        for slot, table in enumerate((*self.code_embeddings, self.action_embedding)):
            own = slice((slot - first) % len(SLOTS), None, len(SLOTS))
            x[:, own] = table(ids[:, own]) + weight[slot]
        x += self.position_embedding.weight[first:last]
        return self.transformer.extend(x, cache, last=1)[:, 0]

    def features(self, tokens, past=None):
        """The policy's view of tokens (..., 3): their codebook vectors side by side (..., 3 D).

        past (..., dim), if given, stands before them: what the model made of the steps before, its
        output at the last action. Raises InputError for a model without codebooks.
        """
        if self.codebooks is None:
            raise InputError("this world model has no codebooks: give them at construction")
        parts = [] if past is None else [past.to(self.codebooks.dtype)]
        parts += [self.codebooks[level][tokens[..., level]] for level in LEVELS]
        return torch.cat(parts, -1)

    def check_tokens(self, tokens) -> None:
        """Raise InputError in one line unless tokens are (B, T, 3) codes that this model knows."""
        check_ids("codes", tokens, ("B", "T", len(LEVELS)), self.cfg.num_codes)

    def dreamer(self, tokens, actions, *, horizon: int, features: str = "codes") -> Dreamer:
        """A dream from real context, see Dreamer."""
        return Dreamer(self, tokens, actions, horizon=horizon, features=features)

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


# ---- dreams

def check_ids(what: str, ids, shape: tuple, count: int) -> None:
    """Raise InputError unless ids are whole numbers below count, of this shape; a letter in it
    stands for any length."""
    kind = getattr(ids, "dtype", type(ids).__name__)
    found = tuple(getattr(ids, "shape", ()))
    fits = len(found) == len(shape) and all(
        isinstance(wanted, str) or wanted == length for wanted, length in zip(shape, found))
    if kind not in (torch.int64, torch.int32) or not fits:
        raise InputError(f"{what} must be int64 of shape ({', '.join(map(str, shape))}); got "
                         f"{kind} of shape {found}")
    # On an accelerator looking at values would wait for it at every step; it refuses them itself.
    if ids.device.type == "cpu" and ids.numel() and not 0 <= ids.min() <= ids.max() < count:
        raise InputError(f"{what} must be from 0 to {count - 1}; got {ids.min().item()} to "
                         f"{ids.max().item()}")


class Dreamer:
    """The world model's state during a dream: its cache and the step it stands at."""

    def __init__(self, world_model: WorldModel, tokens, actions, *, horizon: int,
                 features: str = "codes"):
        """tokens (B, T, 3), actions (B, T-1) int64: real context, the last step still to be acted
        on. Raises InputError on shapes that do not fit, no horizon, T + horizon beyond
        cfg.max_steps, or unknown features."""
        allowed("features", features, FEATURES)
        if horizon < 1:
            raise InputError(f"the horizon must be at least one step; got {horizon}")
        if tokens.shape[1] != actions.shape[1] + 1:
            raise InputError(f"context needs one step more than actions; got {tokens.shape[1]} "
                             f"steps and {actions.shape[1]} actions")
        self.model, (B, T, _) = world_model, tokens.shape
        self.shows_past = features == "hidden"
        self.cache = world_model.make_cache(B, T + horizon)
        self.tokens = self.unread = tokens[:, -1]  # unread: ids that the cache does not hold yet
        self.past = no_past(world_model, B)
        if T > 1:
            steps = torch.cat([tokens[:, :-1], actions[..., None]], -1)
            self.past = world_model.extend(steps.flatten(1), self.cache)

    def features(self):
        """(B, F) float32: what the policy sees of the step the dream stands at."""
        return self.model.features(self.tokens, self.past if self.shows_past else None)

    def step(self, actions, generator, greedy: bool = False):
        """actions (B,) -> reward (B,), continue probability (B,); self.tokens is the next step.

        Codes are sampled with the generator, or the most likely are taken.
        """
        model, read = self.model, torch.cat([self.unread, actions[:, None]], 1)
        self.past = hidden = model.extend(read, self.cache)
        _, reward, keep = model.outcome(hidden)
        codes = []
        for level in LEVELS:
            if level != L0:
                hidden = model.extend(codes[-1], self.cache)
            codes.append(_pick(model.code_heads[level](hidden), generator, greedy)[:, None])
        # The last code is read together with the action: no prediction is asked of its slot.
        self.tokens, self.unread = torch.cat(codes, 1), codes[-1]
        return reward, keep.float().sigmoid()


def no_past(world_model: WorldModel, batch_size: int):
    """What stands for the past (B, dim) at an episode's first step, in dreams and in real play."""
    weight = world_model.level_embedding.weight
    return torch.zeros(batch_size, world_model.cfg.dim, device=weight.device, dtype=weight.dtype)


def num_features(world_model: WorldModel, features: str) -> int:
    """F, the width of the features of this kind, "codes" or "hidden" (the past and the codes)."""
    allowed("features", features, FEATURES)
    codes = world_model.codebooks.shape[0] * world_model.codebooks.shape[2]
    return codes + (world_model.cfg.dim if features == "hidden" else 0)


def _pick(logits, generator, greedy: bool):
    """(B, K) -> (B,): a sample, or the mode."""
    return logits.argmax(-1) if greedy else draw(logits.float().softmax(-1), generator)


def draw(shares, generator):
    """shares (B, K), none negative -> (B,) int64: k of each row with probability shares[k] / sum.

    One uniform number for each row, drawn where the generator lives, and the running sum of the
    shares say which k: on a CPU ten times as fast as torch.multinomial.
    """
    bounds = shares.cumsum(-1)
    total = bounds[:, -1:]
    chance = torch.rand(len(shares), 1, generator=generator, device=generator.device)
    # Rounding must not carry a number to the total, behind the last share that is not zero.
    at = torch.minimum(chance.to(total) * total, total.nextafter(torch.zeros_like(total)))
    return (bounds <= at).sum(-1)


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
    for side, starts in (("train", windows.epoch(0)), ("val", windows.held_out(part="val"))):
        batch = windows.batch(thin(starts, EVALUATION_WINDOWS), cfg.max_steps)
        scored[side] = training.to_device(batch, device())
    model = start or untrained(cfg, codebooks, run.seed)
    record = training.train(model, batches, cfg, run, evaluate=lambda m: _evaluate(m, scored))
    return model, record


def _evaluate(model, scored: dict) -> dict:
    """Loss over codes on training and on validation windows, both without dropout, and next-code
    accuracy per level on the latter, on all and on changed codes."""
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
