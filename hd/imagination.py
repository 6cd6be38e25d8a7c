"""Roll the world model forward from real context under any policy callable.

The dream never knows what acts in it: `act(features, generator) -> ids` is all it asks of a
policy. Features are either "codes", the codebook vectors of a step side by side (F = 3 D), or
"hidden", the transformer's output at the step's L2 position, behind all of its codes and before
its action (F = cfg.dim). DreamEnv is the same dream as a gymnasium environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch

from hd.config import CHOICES, InputError, allowed


@dataclass
class Rollout:
    """A batch of imagined trajectories; index h of actions, rewards, continues is what was done
    at tokens[:, h], what it brought, and whether the episode went on (a probability)."""

    tokens: torch.Tensor  # (B, H+1, 3) int64; the first is the last real step
    features: torch.Tensor  # (B, H+1, F) float32
    actions: torch.Tensor  # (B, H) int64, ALE ids
    rewards: torch.Tensor  # (B, H) float32
    continues: torch.Tensor  # (B, H) float32 in [0, 1]


class Dreamer:
    """The world model's state during a dream: its cache and the step it stands at."""

    def __init__(self, world_model, tokens, actions, *, horizon: int, features: str = "codes"):
        """tokens (B, T, 3), actions (B, T-1) int64: real context, the last step still to be acted
        on. Raises InputError on shapes that do not fit, no horizon, T + horizon beyond
        cfg.max_steps, or unknown features."""
        allowed("features", features, CHOICES["policy.features"])
        if horizon < 1:
            raise InputError(f"the horizon must be at least one step; got {horizon}")
        if tokens.shape[1] != actions.shape[1] + 1:
            raise InputError(f"context needs one step more than actions; got {tokens.shape[1]} "
                             f"steps and {actions.shape[1]} actions")
        self.model, (B, T, _) = world_model, tokens.shape
        self.cache = world_model.make_cache(B, T + horizon)
        self.tokens = tokens[:, -1]
        filled = torch.cat([actions, actions.new_zeros(B, 1)], 1)
        # The last L2 is fed together with the action, unless its output is asked for before.
        known = 4 * T - 1 if features == "hidden" else 4 * T - 2
        context = world_model.embed(tokens, filled)[:, :known]
        out = world_model.transformer(context, world_model.mask[:known, :known], self.cache)
        self.hidden = out[:, -1] if features == "hidden" else None

    def features(self):
        """(B, F) float32: what the policy sees of the step the dream stands at."""
        if self.hidden is not None:
            return self.hidden.float()
        return self.model.features(self.tokens)

    def step(self, actions, generator, greedy: bool = False):
        """actions (B,) -> reward (B,), continue probability (B,); self.tokens is the next step.

        Codes are sampled with the generator, or the most likely are taken.
        """
        model = self.model
        fed = model.token(3, actions)
        if self.hidden is None:
            fed = torch.cat([model.token(2, self.tokens[:, 2]), fed], 1)
        hidden = model.extend(fed, self.cache)[:, -1]
        _, reward, keep = model.outcome(hidden)
        codes = [_pick(model.code_heads[0](hidden), generator, greedy)]
        for level in (0, 1):
            hidden = model.extend(model.token(level, codes[level]), self.cache)[:, -1]
            codes.append(_pick(model.code_heads[level + 1](hidden), generator, greedy))
        self.tokens = torch.stack(codes, -1)
        if self.hidden is not None:
            self.hidden = model.extend(model.token(2, codes[2]), self.cache)[:, -1]
        return reward, keep.float().sigmoid()


def num_features(world_model, features: str) -> int:
    """F, the width of the features of this kind, "codes" or "hidden"."""
    allowed("features", features, CHOICES["policy.features"])
    if features == "hidden":
        return world_model.cfg.dim
    return world_model.codebooks.shape[0] * world_model.codebooks.shape[2]


def _pick(logits, generator, greedy):
    """(B, K) -> (B,): a sample, or the mode. Sampling runs where the generator lives."""
    if greedy:
        return logits.argmax(-1)
    shares = logits.float().softmax(-1).to(generator.device)
    return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)


@torch.no_grad()
def imagine(world_model, tokens, actions, act: Callable, *, horizon: int,
            generator: torch.Generator, greedy: bool = False, features: str = "codes") -> Rollout:
    """tokens (B, T, 3), actions (B, T-1) real context -> Rollout of `horizon` imagined steps.

    act(features (B, F), generator) -> action ids (B,), features "codes" or "hidden".
    T + horizon must fit cfg.max_steps.
    """
    dream = Dreamer(world_model, tokens, actions, horizon=horizon, features=features)
    steps, seen = [dream.tokens], [dream.features()]
    outcomes: list[tuple] = []
    for _ in range(horizon):
        chosen = act(seen[-1], generator)
        outcomes.append((chosen, *dream.step(chosen, generator, greedy)))
        steps.append(dream.tokens)
        seen.append(dream.features())
    acted, rewards, continues = (torch.stack(column, 1) for column in zip(*outcomes))
    return Rollout(torch.stack(steps, 1), torch.stack(seen, 1), acted, rewards, continues)


def replayed(actions):
    """A policy that repeats given actions (B, H): open-loop dreams under what really happened."""
    position = iter(range(actions.shape[1]))
    return lambda features, generator: actions[:, next(position)]


class DreamEnv(gymnasium.Env):
    """One dream as a gymnasium environment: observations are the policy's features.

    contexts: tokens (N, T, 3) and actions (N, T-1) of real play to start from. An episode ends
    when a sampled continue says so, and is truncated after `horizon` steps. Without a decoder
    render() returns None; with one, the decoded newest frame as (84, 84, 3) uint8.
    features: "codes" or "hidden", as in imagine. hd.stages.dream_env makes one of a run.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, world_model, tokens, actions, *, horizon: int = 15, decode=None,
                 features: str = "codes"):
        self.world_model, self.contexts = world_model, (tokens, actions)
        self.horizon, self.decode, self.features = horizon, decode, features
        self.render_mode = "rgb_array" if decode else None
        self.action_space = gymnasium.spaces.Discrete(world_model.cfg.num_actions)
        width = num_features(world_model, features)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Start from a random context; returns features (F,) and {"tokens": (3,)}."""
        super().reset(seed=seed)
        self.generator = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        pick = int(self.np_random.integers(len(self.contexts[0])))
        tokens, actions = (part[pick:pick + 1] for part in self.contexts)
        with torch.no_grad():
            self.dream = Dreamer(self.world_model, tokens, actions, horizon=self.horizon,
                                 features=self.features)
        self.steps = 0
        return self._observation(), self._info()

    def step(self, action):
        """An ALE action id -> features, reward, terminated, truncated, info."""
        with torch.no_grad():
            acted = torch.tensor([int(action)], device=self.dream.tokens.device)
            reward, keep = self.dream.step(acted, self.generator)
        self.steps += 1
        ended = bool(self.np_random.random() > keep.item())
        return (self._observation(), float(reward), ended, self.steps >= self.horizon,
                self._info())

    def render(self):
        """The decoded newest frame (84, 84, 3) uint8, or None without a decoder."""
        if self.decode is None:
            return None
        grey = self.decode(self.dream.tokens)[0]
        return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, -1)

    def _observation(self):
        return self.dream.features()[0].float().cpu().numpy()

    def _info(self):
        return {"tokens": self.dream.tokens[0].cpu().numpy().copy()}
