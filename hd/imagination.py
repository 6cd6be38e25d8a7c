"""Roll the world model forward from real context under any policy callable.

The dream never knows what acts in it: `act(features, generator) -> ids` is all it asks of a
policy. Features are either "codes", the codebook vectors of a step side by side (F = 3 D), or
"hidden", what the world model makes of the past and those codes side by side (F = cfg.dim + 3 D):
the transformer's output at the action before the step, from which the step's codes are predicted.
DreamEnv is the same dream as a gymnasium environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch

from hd.world_model import check_ids, num_features


@dataclass
class Rollout:
    """A batch of imagined trajectories; index h of actions, rewards, continues is what was done
    at tokens[:, h], what it brought, and whether the episode went on (a probability)."""

    tokens: torch.Tensor  # (B, H+1, 3) or (B, H+1, L, G) int64; the first is the last real step
    features: torch.Tensor  # (B, H+1, F) float32
    actions: torch.Tensor  # (B, H) int64, ALE ids
    rewards: torch.Tensor  # (B, H) float32
    continues: torch.Tensor  # (B, H) float32 in [0, 1]


@torch.no_grad()
def imagine(world_model, tokens, actions, act: Callable, *, horizon: int,
            generator: torch.Generator, greedy: bool = False, features: str = "codes") -> Rollout:
    """tokens (B, T, 3), actions (B, T-1) real context -> Rollout of `horizon` imagined steps.

    act(features (B, F), generator) -> action ids (B,), features "codes" or "hidden".
    For hd.world_model T + horizon must fit cfg.max_steps; hd.place_model reads tokens
    (B, T, L, G) of T = cfg.steps steps. Raises InputError for codes or actions that the world model
    does not know, and when act returns anything but one id for each dream.
    """
    world_model.check_tokens(tokens)
    check_ids("actions", actions, (len(tokens), "T-1"), world_model.cfg.num_actions)
    dream = world_model.dreamer(tokens, actions, horizon=horizon, features=features)
    steps, seen = [dream.tokens], [dream.features()]
    outcomes: list[tuple] = []
    for _ in range(horizon):
        chosen = act(seen[-1], generator)
        check_ids("chosen actions", chosen, (len(tokens),), world_model.cfg.num_actions)
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

    contexts: tokens (N, T, 3), of a model of places (N, T, L, G), and actions (N, T-1) of real play
    to start from. An episode ends when a sampled continue says so, and is truncated after `horizon`
    steps. Without a decoder render() returns None; with one, the decoded newest frame as
    (84, 84, 3) uint8. features: "codes" or "hidden", as in imagine; a model of places has "hidden"
    alone. hd.stages.dream_env makes one of a run.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, world_model, tokens, actions, *, horizon: int = 15, decode=None,
                 features: str = "codes"):
        self.world_model, self.contexts = world_model, (tokens, actions)
        self.horizon, self.decode, self.features = horizon, decode, features
        self.render_mode = "rgb_array" if decode else None
        self.action_space = gymnasium.spaces.Discrete(world_model.cfg.num_actions)
        width = (getattr(world_model, "num_features", None)  # a model of places says it itself
                 or num_features(world_model, features))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Start from a random context; returns features (F,) and {"tokens": (3,) or (L, G)}."""
        super().reset(seed=seed)
        self.generator = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        pick = int(self.np_random.integers(len(self.contexts[0])))
        tokens, actions = (part[pick:pick + 1] for part in self.contexts)
        with torch.no_grad():
            self.dream = self.world_model.dreamer(tokens, actions, horizon=self.horizon,
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
