"""Whole episodes of the real games under any policy, and the players that policies are held to.

Scores follow DIAMOND's protocol (Alonso et al. 2024): whole episodes, rewards unclipped, no end on
a lost life, up to 30 no-ops at the start, sticky actions stated; at most 27,000 agent steps.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from hd import atari, collection, encoder, policy, tokenizer
from hd.atari import GAMES, AtariGame, tracker_action
from hd.config import InputError, allowed, check_seed
from hd.run import runs
from hd.run.runs import Run
from hd.run.storage import read_record, sha256_of, write_record

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
    rows, bar = [], runs.progress(range(num_episodes), f"playing {game}")
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

def policy_act(run: Run) -> Callable:
    """The trained policy in the real game: frames -> embedding -> codes -> features -> action."""
    eyes, codes, agent = encoder.load(run), tokenizer.load(run), policy.load(run)
    memory = None
    if agent.cfg.features == "hidden":
        memory = Memory(agent.dream_in, context=agent.cfg.context)

    @torch.no_grad()
    def act(seen: Observation, generator):
        frames = torch.from_numpy(seen.frames).to(runs.device())
        tokens = codes.encode(eyes(frames))
        if memory is None:
            return agent.actor.act(agent.dream_in.features(tokens), generator).cpu()
        actions = agent.actor.act(memory.features(seen, tokens), generator)
        memory.keep(actions)
        return actions.cpu()

    return act


class Memory:
    """The last steps of every running episode, and what the world model makes of them.

    At most `context` steps, as at the start of a dream; fewer at the start of an episode.
    """

    def __init__(self, world_model, *, context: int):
        self.world_model, self.context = world_model, context
        self.windows: dict[int, torch.Tensor] = {}  # by episode: (n, 4) codes and action

    def features(self, seen: Observation, tokens):
        """tokens (B, 3) of the step that is seen -> (B, dim) float32, the transformer's output at
        its L2. Positions count from the start of each window."""
        nothing, newest = tokens.new_zeros(0, 4), F.pad(tokens, (0, 1))
        self.windows = {
            episode: torch.cat([self.windows.get(episode, nothing) if played else nothing,
                                step[None]])[-self.context:]
            for episode, played, step in zip(seen.episodes.tolist(), seen.steps.tolist(), newest)}
        windows = list(self.windows.values())
        # Shorter windows are padded behind their last step: no mask lets a position see the future.
        padded = pad_sequence(windows, batch_first=True)
        hidden = self.world_model.hidden(padded[..., :3], padded[..., 3])
        last = torch.tensor([len(window) - 1 for window in windows], device=tokens.device)
        return hidden[torch.arange(len(windows), device=tokens.device), last, 2].float()

    def keep(self, actions) -> None:
        """Remember what is done (B,) after the step that features was asked about."""
        for window, action in zip(self.windows.values(), actions):
            window[-1, 3] = action


# ---- the trained policy among the players that collect

def collect(run: Run) -> dict:
    """The frames stage: hd.collection's, with the trained policy where frames.sources asks for the
    "agent". Raises InputError with the command that makes this policy when it is not finished."""
    run = run.at("frames")
    trained = next(iter(run.upstream), None)
    return collection.collect(run, make_agent=trained and functools.partial(_agent, trained))


def _agent(trained: Run) -> collection.Agent:
    runs.require(trained)
    return collection.Agent(trained.identity, trained.cfg.game,
                            functools.partial(_collector, trained))


def _collector(trained: Run) -> Callable:
    """begin of collection.Agent. Episodes are played one at a time and on one thread, so that
    neither the number of processes nor that of threads changes an action."""
    act = policy_act(trained)

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


def reference_episodes(run: Run, player: str, *, make: Callable, protocol: dict) -> list[dict]:
    """What play says of "random" or "tracker", played once per profile; see remembered.

    make(game) -> act; protocol: game, num_episodes, seed, sticky.
    """
    return remembered(run, player, protocol, lambda: play(make(protocol["game"]), **protocol))


def remembered(run: Run, player: str, settings: dict, make: Callable, *, code=()):
    """make(), kept as JSON below the profile's folder, so that all arms share it.

    settings and the contents of this module, of hd.atari and of the files in code decide it, and
    the versions of what draws the numbers; a file that is damaged or of something else is remade.
    """
    files = (Path(__file__), Path(atari.__file__), *map(Path, code))
    key = json.loads(json.dumps({
        "player": player, **settings, "code": [sha256_of(path) for path in files],
        "versions": {name: importlib.metadata.version(name)
                     for name in ("ale-py", "numpy", "torch")}}, sort_keys=True))
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = run.root / "players" / f"{player}-{digest[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = read_record(path)
        if record["key"] == key:
            return record["made"]
    made = make()
    write_record(path, {"key": key, "made": made})
    return made
