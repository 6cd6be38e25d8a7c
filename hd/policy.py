"""Actor-critic in the dream: lambda-returns, REINFORCE and PPO on a Rollout.

Sizes from the seed document; critic, return normalisation and uniform mixture from DreamerV3
(Hafner et al. 2023, eqs. 4-11); PPO's clipped objective from Schulman et al. (2017), eq. 7.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from torch import nn

from hd.atari import GAMES
from hd.config import InputError, PolicyConfig
from hd.imagination import Rollout, imagine
from hd.replay import Replay
from hd.run import training
from hd.run.machine import generator_on
from hd.run.runs import Run, rng_for, seed_everything
from hd.run.training import Loss, Unkept
from hd.two_hot import TwoHot
from hd.world_model import WorldModel, draw, num_features

ROLLOUT = tuple(part.name for part in dataclasses.fields(Rollout))  # the names of its parts
PER_PLACE = 16  # numbers that a place's features are summed up to


def lambda_returns(rewards, continues, values, *, gamma: float, lam: float):
    """G_t = r_t + gamma c_t ((1 - lam) v_{t+1} + lam G_{t+1}),  G_H = v_H.

    rewards, continues (B, H), values (B, H+1) -> (B, H).
    """
    following = values[:, -1]
    returns = []
    for t in reversed(range(rewards.shape[1])):
        mixed = (1 - lam) * values[:, t + 1] + lam * following
        following = rewards[:, t] + gamma * continues[:, t] * mixed
        returns.append(following)
    return torch.stack(returns[::-1], 1)


class Actor(nn.Module):
    """Features (..., F) -> log-probabilities (..., 18) over the legal ALE ids of one game.

    places: how many places the features speak of, one after the other; 0 for features of a whole.
    """

    def __init__(self, cfg: PolicyConfig, num_features: int, legal_ids, places: int = 0):
        super().__init__()
        self.uniform_mix = cfg.uniform_mix
        self.layers = _mlp(num_features, cfg.hidden, 18, places)
        is_legal = torch.zeros(18, dtype=torch.bool)
        is_legal[list(legal_ids)] = True
        self.register_buffer("is_legal", is_legal)

    def forward(self, features):
        logits = self.layers(features).float().masked_fill(~self.is_legal, float("-inf"))
        uniform = self.is_legal / self.is_legal.sum()
        mixed = (1 - self.uniform_mix) * logits.softmax(-1) + self.uniform_mix * uniform
        return mixed.clamp_min(1e-30).log().masked_fill(~self.is_legal, float("-inf"))

    @torch.no_grad()
    def act(self, features, generator):
        """Sample action ids (B,) for features (B, F)."""
        return draw(self(features).exp(), generator)


class Critic(nn.Module):
    """Features (..., F) -> value (...), by two-hot bins or by one number (the seed's)."""

    def __init__(self, cfg: PolicyConfig, num_features: int, places: int = 0):
        super().__init__()
        self.two_hot = TwoHot() if cfg.critic == "two_hot" else None
        self.layers = _mlp(num_features, cfg.hidden, len(self.two_hot.bins) if self.two_hot else 1,
                           places)
        for part in self.layers[-1].parameters():
            nn.init.zeros_(part)  # values start at zero, as in DreamerV3

    def forward(self, features):
        out = self.layers(features)
        return self.two_hot.decode(out) if self.two_hot else out.float().squeeze(-1)

    def loss(self, features, *targets):
        """The sum, over the targets (...) given, of their negative log-likelihood, in nats; half
        squared error if scalar."""
        out = self.layers(features)
        if self.two_hot:
            return sum(self.two_hot.loss(out, target) for target in targets)
        return sum(0.5 * (out.float().squeeze(-1) - target).pow(2) for target in targets)


class ActorCritic(nn.Module):
    """Actor, critic and the critic's slow copy; loss(batch) dreams and scores the dream."""

    def __init__(self, cfg: PolicyConfig, dream_in, legal_ids, num_features: int,
                 places: int = 0):
        super().__init__()
        self.cfg = cfg
        self.actor = Actor(cfg, num_features, legal_ids, places)
        self.critic = Critic(cfg, num_features, places)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("return_range", torch.zeros(2))  # running 5th and 95th percentile
        self.register_buffer("num_ranges", torch.zeros(()))
        self.register_buffer("percentiles", torch.tensor([0.05, 0.95]), persistent=False)
        self._dream_in = [dream_in]  # in a list: the frozen world model is no part of this module
        self._dreamt: dict[str, torch.Tensor] = {}  # see foresee
        self._seed = 0  # of that

    def loss(self, batch) -> Loss:
        """batch: tokens (B, T, 3), actions (B, T-1) real contexts; pass, the PPO pass (0 = new);
        perhaps the seed of what is drawn. Or what before_update makes of it.

        Dreams under the present policy (PPO: under the policy of pass 0, then reused).
        """
        if "pass" in batch:
            batch = self.before_update(batch)
        parts = self._dreamt
        if "rows" in batch:
            parts = {name: part[batch["rows"]] for name, part in parts.items()}
        targets = [parts[name] for name in ("returns", "values", "alive", "log_probs")]
        return self._score(Rollout(**{name: parts[name] for name in ROLLOUT}), *targets)

    def before_update(self, batch) -> dict:
        """In pass 0 dream anew; then the rows (N,) of the dreams that this pass learns from, or
        nothing where it learns from all."""
        this = batch["pass"] % self.num_passes
        if not this:
            seed = batch.get("seed")
            self._seed = int(torch.randint(2**31, ())) if seed is None else seed
            self._dreamt = self.foresee(tokens=batch["tokens"], actions=batch["actions"],
                                        generator=generator_on(batch["tokens"].device, self._seed))
        if self.num_minibatches == 1:
            return {}
        epoch, minibatch = divmod(this, self.num_minibatches)
        dealt = torch.randperm(len(self._dreamt["returns"]),
                               generator=torch.Generator().manual_seed(self._seed + epoch))
        return {"rows": dealt.chunk(self.num_minibatches)[minibatch]}

    @torch.no_grad()
    def foresee(self, *, tokens, actions, generator) -> dict[str, torch.Tensor]:
        """Of contexts as loss has them: the parts of a Rollout by name, and beside them (B, H)
        each what its losses need: returns, values, alive (see _targets), log_probs of the actions.
        """
        rollout = self.dream(tokens, actions, generator)
        returns, values, alive = self._targets(rollout)
        return {**vars(rollout), "returns": returns, "values": values, "alive": alive,
                "log_probs": self._log_probs(rollout)[0]}

    @property
    def num_minibatches(self) -> int:
        """Into how many a batch of dreams is dealt, each for an update of its own."""
        return self.cfg.ppo_minibatches if self.cfg.loss == "ppo" else 1

    @property
    def num_passes(self) -> int:
        """How many updates are made of a batch of dreams."""
        return self.cfg.ppo_epochs * self.num_minibatches if self.cfg.loss == "ppo" else 1

    @property
    def dream_in(self):
        """The frozen world model, reading ALE ids."""
        return self._dream_in[0]

    def dream_from_now_on_in(self, world_model) -> None:
        """Change the world model that the policy dreams in."""
        self._dream_in[0] = world_model

    def dream(self, tokens, actions, generator: torch.Generator | None = None) -> Rollout:
        """A rollout of cfg.horizon steps under the present policy, from real context. generator: of
        what is drawn; torch's own seeds one unless it is given."""
        generator = generator or generator_on(tokens.device, int(torch.randint(2**31, ())))
        return imagine(self.dream_in, tokens, actions, self.actor.act,
                       horizon=self.cfg.horizon, generator=generator,
                       features=self.cfg.features)

    @torch.no_grad()
    def _targets(self, rollout):
        """Lambda-returns, the slow critic's values, and how probable it is that the dream still
        runs, (B, H) each."""
        values = self.slow_critic(rollout.features)
        returns = lambda_returns(rollout.rewards, rollout.continues, values,
                                 gamma=self.cfg.gamma, lam=self.cfg.lam)
        alive = torch.cat([torch.ones_like(rollout.continues[:, :1]),
                           rollout.continues[:, :-1]], 1).cumprod(1)
        quantiles = torch.quantile(returns.flatten(), self.percentiles)
        self.num_ranges += 1
        # A plain mean at first, then a moving average: the start at zero leaves no trace.
        share = (1 / self.num_ranges).clamp_min(1 - self.cfg.return_decay)
        self.return_range.lerp_(quantiles, share)
        return returns, values[:, :-1], alive

    def _log_probs(self, rollout):
        log_probs = self.actor(rollout.features[:, :-1])
        taken = log_probs.gather(-1, rollout.actions[..., None])[..., 0]
        entropy = -(log_probs.exp() * log_probs.clamp_min(-100)).sum(-1)
        return taken, entropy

    def _score(self, rollout, returns, values, weights, old_log_probs) -> Loss:
        """old_log_probs (B, H): of what was done, when the dream was new."""
        cfg, features = self.cfg, rollout.features[:, :-1]
        taken, entropy = self._log_probs(rollout)
        scale = (self.return_range[1] - self.return_range[0]).clamp_min(cfg.least_range)
        advantages = (returns - values) / scale
        if cfg.loss == "ppo":
            objective = ppo_objective(taken, old_log_probs, advantages, clip=cfg.ppo_clip)
        else:
            objective = taken * advantages
        actor_loss = -(weights * (objective + cfg.entropy * entropy)).mean()
        # The critic is also held near its slow copy, as in DreamerV3.
        critic_loss = (weights * self.critic.loss(features, returns, values)).mean()
        return Loss(actor_loss + critic_loss, {
            "actor": actor_loss, "critic": critic_loss, "entropy": entropy.mean(),
            "imagined_return": returns[:, 0].mean(), "imagined_reward": rollout.rewards.mean()})

    @torch.no_grad()
    def after_step(self):
        """Move the slow critic towards the critic."""
        torch._foreach_lerp_([*self.slow_critic.parameters()], [*self.critic.parameters()],
                             1 - self.cfg.critic_ema)


def ppo_objective(log_probs, old_log_probs, advantages, *, clip: float):
    """Schulman et al. 2017, eq. 7, elementwise: min(ratio A, clip(ratio, 1 +- clip) A)."""
    ratio = (log_probs - old_log_probs).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def _mlp(dim: int, hidden: int, out: int, places: int = 0) -> nn.Sequential:
    """From features (..., dim); those of several places are first summed up place by place."""
    summed_up = [nn.Unflatten(-1, (places, dim // places)), nn.Linear(dim // places, PER_PLACE),
                 nn.Flatten(-2), nn.LayerNorm(places * PER_PLACE)] if places else []
    return nn.Sequential(*summed_up, nn.Linear(places * PER_PLACE or dim, hidden),
                         nn.LayerNorm(hidden), nn.SiLU(),
                         nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.SiLU(),
                         nn.Linear(hidden, out))


# ---- training and use

def build(cfg: PolicyConfig, dream_in: WorldModel) -> ActorCritic:
    """An untrained actor-critic for cfg.game, dreaming in the given world model."""
    return ActorCritic(cfg, dream_in, GAMES[cfg.game].actions,
                       num_features(dream_in, cfg.features))


def with_ale_ids(model: WorldModel, game: str) -> WorldModel:
    """The model, so that it reads ALE ids even if it learned indices into the minimal sets."""
    if model.cfg.actions == "index":
        ids, weight = list(GAMES[game].actions), model.action_embedding.weight.data
        weight[ids] = weight[:len(ids)].clone()
    return model


def train(cfg: PolicyConfig, dream_in: WorldModel, data: Replay, tokens: np.ndarray,
          run: Run | Unkept) -> tuple[ActorCritic, dict]:
    """Train in the frozen world model from the training episodes' contexts of one game.

    dream_in reads ALE ids; tokens (N, L): the codes of the N steps of data.
    """
    starts = data.window_starts(cfg.context, data.is_train & data.in_game(cfg.game))
    if not len(starts):
        raise InputError(f"no training episode of {cfg.game} has {cfg.context} steps; "
                         f"lower policy.context or collect more frames")
    seed_everything(run.seed)  # so that no earlier stage decides the initial weights
    model = build(cfg, dream_in)
    passes = model.num_passes

    def batches(i: int):
        first = rng_for(run.seed, "policy", i // passes).choice(starts, cfg.batch_size)
        rows = first[:, None] + np.arange(cfg.context)
        return {"tokens": torch.from_numpy(tokens[rows].astype(np.int64)),
                "actions": torch.from_numpy(data.actions[rows[:, :-1]].astype(np.int64)),
                "pass": i % passes}

    record = training.train(model, batches, cfg, run, checkpoint_every=passes)
    return model, record
