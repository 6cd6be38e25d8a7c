"""Whole episodes of the real games under any policy, and the players that policies are held to.

Scores follow DIAMOND's protocol (Alonso et al. 2024): whole episodes, rewards unclipped, no end on
a lost life, up to 30 no-ops at the start, sticky actions stated; at most 27,000 agent steps.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from hd.atari import GAMES, AtariGame, tracker_action
from hd.config import InputError, allowed, check_seed
from hd.encoder import AtariEncoder, embed_frames
from hd.policy import ActorCritic
from hd.quantization import ResidualVQ
from hd.run.runs import progress
from hd.world_model import ACTION, SLOTS, no_past

PARALLEL = 16  # episodes that are played side by side


@dataclass
class Observation:
    """What a policy may look at, one row per running episode.

    frames (B, 4, 84, 84) uint8, oldest first; ram (B, 128) uint8; episodes (B,) int, the
    episode's number; steps (B,) int, how many steps of it were played: 0 at its start.
    """

    frames: np.ndarray
    ram: np.ndarray
    episodes: np.ndarray
    steps: np.ndarray


def play(act: Callable, game: str, *, num_episodes: int, seed: int, sticky: float,
         noop_max: int = 30, watch: Callable | None = None) -> list[dict]:
    """Play whole real episodes: rows game, seed, episode, return, length, sticky.

    act(observation, generator) -> ALE action ids (B,), one for each running episode. Episode k is
    started from (seed, k). watch(episode, frame, reward), if given, sees every step.
    Raises InputError for an unknown game, settings out of range, and when act returns anything but
    one ALE id for each episode.
    """
    allowed("game", game, GAMES)
    check_seed(seed)
    if not isinstance(num_episodes, int) or num_episodes < 1:
        raise InputError(f"num_episodes must be a whole number from 1; got {num_episodes!r}")
    generator = torch.Generator().manual_seed(seed)
    starts = np.random.SeedSequence([seed, list(GAMES).index(game)]).generate_state(num_episodes)
    games = [AtariGame(game, sticky=sticky, noop_max=noop_max)
             for _ in range(min(PARALLEL, num_episodes))]
    waiting = list(range(num_episodes))
    running = [_Episode(env, waiting.pop(0), starts) for env in games]
    rows, bar = [], progress(range(num_episodes), f"playing {game}")
    # Batches are tiny here: a second thread would only wait for the first.
    with _threads(1):
        while running:
            seen = Observation(np.stack([e.frames for e in running]),
                               np.stack([e.ram for e in running]),
                               np.array([e.number for e in running]),
                               np.array([e.length for e in running]))
            ids = _action_ids(act(seen, generator), len(running))
            for episode, action in zip(list(running), ids):
                reward = episode.step(action)
                if watch:
                    watch(episode.number, episode.frames[-1], reward)
                if episode.is_over:
                    bar.update()
                    rows.append({"game": game, "seed": seed, "episode": episode.number,
                                 "return": episode.total, "length": episode.length,
                                 "sticky": sticky})
                    running.remove(episode)
                    if waiting:
                        running.append(_Episode(episode.env, waiting.pop(0), starts))
    bar.close()
    return sorted(rows, key=lambda r: r["episode"])


def _action_ids(chosen, num_episodes: int) -> np.ndarray:
    """What a policy chose as whole numbers (num_episodes,), checked; a step checks their range."""
    ids = np.atleast_1d(chosen.cpu() if isinstance(chosen, torch.Tensor) else np.asarray(chosen))
    if ids.shape != (num_episodes,) or ids.dtype.kind not in "iu":
        raise InputError(f"a policy must choose one ALE id for each of the {num_episodes} running "
                         f"episodes; got {ids.dtype} of shape {ids.shape}")
    return ids


@contextlib.contextmanager
def _threads(count: int):
    """Let torch use so many threads inside the with block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Episode:
    """One running episode with its stack of frames."""

    def __init__(self, env: AtariGame, number: int, starts):
        self.env, self.number = env, number
        frame, info = env.reset(seed=int(starts[number]))
        self.frames, self.ram = np.repeat(frame[None], 4, 0), info["ram"]
        self.total, self.length, self.is_over = 0.0, 0, False

    def step(self, action: int) -> float:
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.frames = np.concatenate([self.frames[1:], frame[None]])
        self.ram = info["ram"]
        self.total, self.length = self.total + reward, self.length + 1
        self.is_over = terminated or truncated
        return reward


# ---- the trained policy

def policy_act(eyes: AtariEncoder, codes: ResidualVQ, agent: ActorCritic) -> Callable:
    """A trained policy in the real game: frames -> embedding -> codes -> features -> action."""
    memory = None
    if agent.cfg.features == "hidden":
        memory = Memory(agent.dream_in, context=agent.cfg.context)

    @torch.no_grad()
    def act(seen: Observation, generator):
        tokens = codes.encode(embed_frames(eyes, seen.frames))
        if memory is None:
            return agent.actor.act(agent.dream_in.features(tokens), generator).cpu()
        actions = agent.actor.act(memory.features(seen, tokens), generator)
        memory.keep(actions)
        return actions.cpu()

    return act


class Memory:
    """The last steps of every running episode, and what the world model makes of them.

    With the step that is seen at most `context` steps, as at the start of a dream; fewer at the
    start of an episode.
    """

    def __init__(self, world_model, *, context: int):
        self.world_model, self.context = world_model, context
        self.past: dict[int, torch.Tensor] = {}  # by episode: (n, 4), the ids of its last steps
        self.tokens = None  # (B, 3) of the step that is seen

    def features(self, seen: Observation, tokens):
        """tokens (B, 3) of the step that is seen -> (B, F) float32: the transformer's output at the
        action before it, nothing at an episode's first step, and the codes of the step itself.
        Positions count from the oldest step that is remembered."""
        nothing = tokens.new_zeros(0, len(SLOTS))
        self.past = {episode: self.past.get(episode, nothing) if played else nothing
                     for episode, played in zip(seen.episodes.tolist(), seen.steps.tolist())}
        self.tokens = tokens
        return self.world_model.features(tokens, self._made_of_the_past())

    def _made_of_the_past(self):
        """(B, dim): the transformer's output at the last action of each running episode."""
        lengths = torch.tensor([len(steps) for steps in self.past.values()])
        known = lengths.nonzero()[:, 0]
        made = no_past(self.world_model, len(lengths))
        if len(known):
            # Shorter pasts are padded behind their last step: no mask shows a position the future.
            padded = pad_sequence(list(self.past.values()), batch_first=True)[known]
            hidden = self.world_model.hidden(padded[..., :ACTION], padded[..., ACTION])
            newest = hidden[torch.arange(len(known)), lengths[known] - 1, ACTION]
            made[known] = newest.to(made.dtype)
        return made

    def keep(self, actions) -> None:
        """Remember what is done (B,) at the step that features was asked about."""
        steps = torch.cat([self.tokens, actions[:, None]], 1)
        for episode, step in zip(self.past, steps):
            longer = torch.cat([self.past[episode], step[None]])
            self.past[episode] = longer[max(0, len(longer) + 1 - self.context):]


# ---- a policy among the players that collect

def one_at_a_time(act: Callable) -> Callable:
    """begin of hd.collection.Agent: seed -> what chooses the actions of one episode.

    Episodes are played one at a time and on one thread, so that neither the number of processes
    nor that of threads changes an action.
    """
    def begin(seed: int) -> Callable:
        generator, steps = torch.Generator().manual_seed(seed), itertools.count()
        frames: deque = deque(maxlen=4)

        def choose(frame: np.ndarray, ram: np.ndarray) -> int:
            frames.extend([frame] if frames else [frame] * 4)
            seen = Observation(np.stack(frames)[None], ram[None], np.zeros(1, int),
                               np.array([next(steps)]))
            with _threads(1):
                return int(act(seen, generator)[0])

        return choose

    return begin


# ---- players to compare with

def random_act(game: str) -> Callable:
    """Uniform over the game's legal actions."""
    legal = torch.tensor(GAMES[game].actions)
    return lambda seen, generator: legal[
        torch.randint(len(legal), (len(seen.ram),), generator=generator)]


def tracker_act(game: str) -> Callable:
    """The scripted ball tracker that reads RAM (Pong and Breakout)."""
    return lambda seen, generator: [tracker_action(game, ram) for ram in seen.ram]
