"""A learner without a world model, as a reference: DQN (Mnih et al. 2015) of Stable-Baselines3.

It plays as many steps as the agent in the same emulators, as many of them by chance at first,
learns from the signs of the same rewards, and takes a lost life for an end where the agent does.
Needs the extra "model_free".
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hd.agent import CURVE_EVERY
from hd.atari import GAMES, AtariGame
from hd.config import AgentConfig, InputError
from hd.replay import STACK
from hd.run.machine import device
from hd.run.runs import TimeLimitReached

UPDATES = 2  # a step of the real game, of 32 transitions each
EXPLORING = 0.25  # of the training, until the share of random actions has fallen to AT_RANDOM
AT_RANDOM = 0.01
SEEN = gymnasium.spaces.Box(0, 255, (STACK, 84, 84), np.uint8)


class ModelFree(nn.Module):
    """What chooses an action in one game: the network of DQN, (B, 4, 84, 84) -> values (B, A)."""

    def __init__(self, game: str):
        super().__init__()
        try:
            from stable_baselines3.dqn.policies import CnnPolicy
        except ImportError:
            raise InputError("a learner without a model needs stable-baselines3: pip install -e "
                             "'.[model_free]'") from None
        self.game = game
        actions = gymnasium.spaces.Discrete(len(GAMES[game].actions))
        self.q_net = CnnPolicy(SEEN, actions, lr_schedule=lambda left: 0.0).q_net

    def act(self) -> Callable:
        """For hd.play.play: the action of the highest value, at times another, as in training."""
        legal = torch.tensor(GAMES[self.game].actions)

        @torch.no_grad()
        def act(seen, generator):
            best = self.q_net(torch.from_numpy(seen.frames).to(device())).argmax(1).cpu()
            other = torch.randint(len(legal), best.shape, generator=generator)
            is_other = torch.rand(best.shape, generator=generator) < AT_RANDOM
            return legal[torch.where(is_other, other, best)]

        return act


class Learnable(gymnasium.Env):
    """One game as DQN learns from it: stacks of frames (4, 84, 84), actions by their number among
    the game's, rewards by sign. info["episode_over"] is (return, length) of a whole game."""

    def __init__(self, game: str, cfg: AgentConfig):
        self.legal, self.life_ends = GAMES[game].actions, cfg.life_ends
        self.game = AtariGame(game, sticky=cfg.sticky, noop_max=cfg.noop_max)
        self.observation_space = SEEN
        self.action_space = gymnasium.spaces.Discrete(len(self.legal))
        self.is_over = True

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """A new game where the last is over; after a lost life the game goes on."""
        super().reset(seed=seed)
        if self.is_over:
            frame, info = self.game.reset(seed=int(self.np_random.integers(2**31)))
            self.frames, self.lives = np.repeat(frame[None], STACK, 0), info["lives"]
            self.total, self.length, self.is_over = 0.0, 0, False
        return self.frames, {}

    def step(self, action):
        frame, reward, terminated, truncated, info = self.game.step(self.legal[int(action)])
        self.frames = np.concatenate([self.frames[1:], frame[None]])
        self.total, self.length = self.total + reward, self.length + 1
        is_lost = self.life_ends and info["lives"] < self.lives
        self.lives, self.is_over = info["lives"], terminated or truncated
        over = {"episode_over": (self.total, self.length)} if self.is_over else {}
        return self.frames, float(np.sign(reward)), terminated or is_lost, truncated, over


def train(cfg: AgentConfig, game: str, *, seed: int,
          must_stop: Callable[[], bool] = lambda: False) -> tuple[ModelFree, dict]:
    """Learn for cfg.num_steps; what chooses, in eval mode, and the record, as hd.agent.train has
    it. The library keeps no checkpoint of what was played: raises TimeLimitReached where must_stop,
    asked after each step, says so, and InputError where the library is not installed.
    """
    made = ModelFree(game).to(device())
    from stable_baselines3 import DQN
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: Learnable(game, cfg)] * cfg.num_emulators)
    learner = DQN(
        "CnnPolicy", envs, learning_rate=1e-4, buffer_size=cfg.num_steps,
        learning_starts=cfg.prefill, batch_size=32, train_freq=1,
        gradient_steps=UPDATES * cfg.num_emulators, target_update_interval=1000,
        exploration_fraction=EXPLORING, exploration_final_eps=AT_RANDOM, seed=seed,
        device=device(), optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False})
    began, episodes, history = time.monotonic(), [], []

    def minutes() -> float:
        return round((time.monotonic() - began) / 60, 2)

    with tqdm(total=cfg.num_steps, desc="without a model", unit="step", mininterval=2.0,
              file=sys.stdout) as bar:
        def after_step(now: dict, _) -> bool:
            step = learner.num_timesteps
            episodes.extend({"step": step, "return": over[0], "length": over[1],
                             "minutes": minutes()}
                            for info in now["infos"] if (over := info.get("episode_over")))
            last = history[-1]["step"] if history else 0
            if step >= cfg.num_steps or step - last >= CURVE_EVERY:
                lately = [episode["return"] for episode in episodes[-10:]]
                history.append({"step": step, "minutes": minutes(),
                                "return": float(np.mean(lately)) if lately else None})
            bar.update(step - bar.n)
            return not must_stop()

        learner.learn(cfg.num_steps, callback=after_step)
    if learner.num_timesteps < cfg.num_steps:
        raise TimeLimitReached(
            f"stopped at step {learner.num_timesteps} of {cfg.num_steps}; a learner without a "
            f"model keeps no checkpoint: the same command starts it again")
    made.q_net.load_state_dict(learner.q_net.state_dict())
    return made.eval(), {"history": history, "episodes": episodes,
                         "wall_seconds": time.monotonic() - began}
