"""The same steps of a game on other people's stacks, with as many processes as ours has.

Worker processes import this module: torch is not needed here.
"""

from __future__ import annotations

import atexit
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv

from hd.atari import FRAME_SKIP, GAMES, AtariGame
from hd.collection import play_episode, start_worker
from hd.config import FramesConfig

GAME = "pong"
PATIENCE = 120.0  # seconds until every process has started


class Player:
    """One episode of random play, as our collection plays it and on the bare emulator.

    num_steps: agent steps after which the episode is cut off. actions: what was done, ALE ids.
    """

    def __init__(self, num_steps: int):
        self.env = AtariGame(GAME, noop_max=0, max_steps=num_steps)
        self.cfg = FramesConfig(sources={"random": 1.0})
        self.bare = ale_py.ALEInterface()
        self.bare.setFloat("repeat_action_probability", 0.0)
        self.bare.loadROM(roms.get_rom_path(GAMES[GAME].rom))
        self.actions = self.collect()["actions"].tolist()

    def collect(self) -> dict:
        """Frames, RAM, actions and rewards as arrays, the same at every call."""
        return play_episode(self.env, self.cfg, seed=0, episode=0)

    def emulate(self) -> None:
        """The very same emulator frames, with nothing read from them."""
        self.bare.reset_game()
        for action in self.actions:
            for _ in range(FRAME_SKIP):
                self.bare.act(action)


class Players:
    """A Player in each of several processes; close() ends them."""

    def __init__(self, num_processes: int, num_steps: int):
        context = multiprocessing.get_context("spawn")
        self.num_processes, self._stop = num_processes, context.Event()
        self._pool = ProcessPoolExecutor(
            num_processes, context, _start,
            (self._stop, context.Barrier(num_processes), num_steps))

    def collect(self) -> None:
        """Every process plays the episode once."""
        self._everywhere("collect")

    def emulate(self) -> None:
        """Every process steps the bare emulator through the episode once."""
        self._everywhere("emulate")

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _everywhere(self, what: str) -> None:
        jobs = [self._pool.submit(_play, what) for _ in range(self.num_processes)]
        for job in jobs:
            job.result()


_player = _together = None  # in a worker


def _start(stop, together, num_steps: int) -> None:
    global _player, _together
    start_worker(stop)
    _player, _together = Player(num_steps), together


@atexit.register
def _forget() -> None:
    global _player
    _player = None  # emulators alive at exit make ALE print a warning


def _play(what: str) -> None:
    _together.wait(PATIENCE)  # else a process that is ready early would play for a late one too
    getattr(_player, what)()


def standard_env() -> gymnasium.Env:
    """The game behind gymnasium's standard wrapper: 84x84 grey, pooled, four frames a step."""
    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    env = gymnasium.make(GAMES[GAME].gym_id, frameskip=1, repeat_action_probability=0.0,
                         full_action_space=True)
    return gymnasium.wrappers.AtariPreprocessing(env, noop_max=0)


def gymnasium_envs(num_processes: int) -> gymnasium.vector.VectorEnv:
    """gymnasium's AsyncVectorEnv, a process for each game."""
    return gymnasium.vector.AsyncVectorEnv([standard_env] * num_processes, context="spawn")


def ale_envs(num_threads: int) -> gymnasium.vector.VectorEnv:
    """ale-py's own vector environment, a thread for each game."""
    return AtariVectorEnv(GAMES[GAME].rom, num_threads, num_threads=num_threads, noop_max=0,
                          use_fire_reset=False, full_action_space=True)


def step_all(envs, actions) -> None:
    """Reset, then do the same actions (ALE ids, in order) in all of the games."""
    envs.reset(seed=0)
    for action in actions:
        envs.step(np.full(envs.num_envs, action))
