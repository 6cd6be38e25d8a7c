"""The real games: what they are, an environment over the emulator, and the collection of episodes.

Frames are 84x84 grey, the maximum of the last two of four emulator frames (Mnih et al. 2015).
Action ids are ALE's own 0..17 everywhere. No reward clipping, no end of episode at a lost life.
RAM addresses: AtariARI (Anand et al. 2019).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import ale_py
import cv2
import gymnasium
import numpy as np
from ale_py import roms

from hd.config import FramesConfig, InputError, allowed
from hd.storage import sha256_of, write_atomically

ACTION_MEANINGS = (
    "NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT",
    "UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE",
    "DOWNLEFTFIRE")
NOOP, FIRE, RIGHT, LEFT = 0, 1, 3, 4
FRAME_SKIP = 4
SOURCES = ("random", "repeat", "tracker")  # who chose an action; `source` in the steps file
REPEAT_MEAN = 8  # steps for which "repeat" holds a random action, on average
TRACKER_EPSILON = 0.2  # share of random actions among those of the collecting "tracker"
STOP_CHECK = 256  # steps between two looks at should_stop inside an episode


@dataclass(frozen=True)
class Game:
    """One game: ROM, gymnasium's name, useful actions (ALE ids) and RAM addresses of its state."""

    rom: str
    gym_id: str
    actions: tuple[int, ...]
    labels: dict[str, int | range]


GAMES = {
    "pong": Game("pong", "ALE/Pong-v5", (0, 1, 3, 4, 11, 12), {
        "player_y": 51, "enemy_y": 50, "ball_x": 49, "ball_y": 54,
        "enemy_score": 13, "player_score": 14}),
    "breakout": Game("breakout", "ALE/Breakout-v5", (0, 1, 3, 4), {
        "player_x": 72, "ball_x": 99, "ball_y": 101, "blocks_hit_count": 77, "score": 84,
        "block_bit_map": range(30)}),
    "ms_pacman": Game("ms_pacman", "ALE/MsPacman-v5", (0, 2, 3, 4, 5, 6, 7, 8, 9), {
        "sue_x": 6, "inky_x": 7, "pinky_x": 8, "blinky_x": 9, "sue_y": 12, "inky_y": 13,
        "pinky_y": 14, "blinky_y": 15, "player_x": 10, "player_y": 16, "fruit_x": 11,
        "fruit_y": 17, "ghosts_count": 19, "player_direction": 56, "dots_eaten": 119,
        "player_score": 120, "num_lives": 123}),
}


def game_named(game: str) -> Game:
    """The Game; raises InputError that lists the known ones."""
    allowed("game", game, GAMES)
    return GAMES[game]


def labels(game: str, ram: np.ndarray) -> dict[str, np.ndarray]:
    """ram (..., 128) uint8 -> state variables, each (...), a bit map (..., bytes)."""
    return {name: ram[..., address] if isinstance(address, int) else ram[..., list(address)]
            for name, address in game_named(game).labels.items()}


def ball_in_play(game: str, ram: np.ndarray) -> np.ndarray:
    """ram (..., 128) -> bool (...): the ball is on the screen. A game without a ball: all True.

    Both games hold ball_y = 0 between a miss and the next serve while ball_x keeps a stale value.
    Breakout's ball falls on unseen below the field, which ends at ball_y 187.
    """
    state = labels(game, ram)
    if "ball_y" not in state:
        return np.ones(ram.shape[:-1], bool)
    return (state["ball_y"] > 0) & (state["ball_y"] < (187 if game == "breakout" else 256))


@dataclass(frozen=True)
class GameState:
    """All that decides how an AtariGame goes on."""

    emulator: ale_py.ALEState
    held: int
    steps: int
    screens: np.ndarray
    rng: dict


class AtariGame(gymnasium.Env):
    """One game, straight on the emulator. Observation (84, 84) uint8, action an ALE id (0..17).

    sticky: chance, per emulator frame, that the previous action is repeated instead (Machado et
    al. 2018); drawn here rather than in ALE, whose cloned states forget the previous action.
    noop_max: a reset is followed by 1..noop_max emulator frames without action; 0 for none.
    max_steps: agent steps of four emulator frames after which the episode is truncated.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, game: str, *, sticky: float = 0.0, noop_max: int = 30,
                 max_steps: int = 27_000):
        rom = game_named(game).rom
        if not 0.0 <= sticky < 1.0 or noop_max < 0 or max_steps < 1:
            raise InputError(f"{game}: needs 0 <= sticky < 1, noop_max >= 0, max_steps >= 1; "
                             f"got {sticky}, {noop_max}, {max_steps}")
        self.game, self.sticky, self.noop_max, self.max_steps = game, sticky, noop_max, max_steps
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTION_MEANINGS))
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(roms.get_rom_path(rom))
        self._screens = np.zeros((2, *self._ale.getScreenDims()), np.uint8)
        self._held = NOOP
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """-> frame (84, 84), info with ram (128,) uint8 and lives. The seed decides everything."""
        super().reset(seed=seed)
        self._ale.reset_game()
        for _ in range(self.np_random.integers(1, self.noop_max + 1) if self.noop_max else 0):
            self._ale.act(NOOP)
        self._held, self._steps = NOOP, 0
        self._ale.getScreenGrayscale(self._screens[0])
        self._screens[1] = 0
        return self._frame(), self._info()

    def step(self, action: int):
        """-> frame, reward (the game's own points), terminated, truncated, info as in reset.

        As in gymnasium's AtariPreprocessing, an episode that ends inside the four emulator frames
        shows the screens pooled before that.
        """
        action = int(action)
        if not 0 <= action < 18:
            raise InputError(f"unknown action {action}; allowed: ALE ids 0 to 17")
        ale, reward, terminated = self._ale, 0, False
        kept = self.np_random.random(FRAME_SKIP) < self.sticky if self.sticky else None
        for i in range(FRAME_SKIP):
            if kept is None or not kept[i]:
                self._held = action
            reward += ale.act(self._held)
            if ale.game_over():
                terminated = True
                break
            if i >= FRAME_SKIP - 2:
                ale.getScreenGrayscale(self._screens[FRAME_SKIP - 1 - i])
        self._steps += 1
        truncated = self._steps >= self.max_steps
        return self._frame(), float(reward), terminated, truncated, self._info()

    def render(self) -> np.ndarray:
        """The emulator's screen (210, 160, 3) uint8; after restore_state only from the next step."""
        return self._ale.getScreenRGB()

    def clone_state(self) -> GameState:
        """Everything that decides how the episode goes on, the randomness included."""
        rng = self.np_random.bit_generator.state
        emulator = self._ale.cloneState(include_rng=True)
        return GameState(emulator, self._held, self._steps, self._screens.copy(), rng)

    def restore_state(self, state: GameState) -> np.ndarray:
        """Go back to a cloned state, also of another AtariGame of this game; -> its frame."""
        self._ale.restoreState(state.emulator)
        self._held, self._steps = state.held, state.steps
        self._screens[:] = state.screens
        self.np_random.bit_generator.state = state.rng
        return self._frame()

    def _frame(self) -> np.ndarray:
        np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        return cv2.resize(self._screens[0], (84, 84), interpolation=cv2.INTER_AREA)

    def _info(self) -> dict:
        return {"ram": self._ale.getRAM(), "lives": self._ale.lives()}


def tracker_action(game: str, ram: np.ndarray) -> int:
    """A scripted player that reads RAM (128,): its paddle meets the ball; Breakout's fires it.

    A function of RAM alone, so that it is a baseline for policies without memory.
    Raises InputError for a game without a ball.
    """
    if game == "pong":
        return _track_pong(ram)
    if game == "breakout":
        if not ram[101]:
            return FIRE
        # The paddle's centre is 6 right of its address; it moves about 12 a step.
        return _towards(int(ram[99]) - int(ram[72]) - 6, 6, RIGHT, LEFT)
    raise InputError(f"no tracker for {game!r}; allowed: pong, breakout")


def _towards(distance: int, tolerance: int, up: int, down: int) -> int:
    return up if distance > tolerance else down if distance < -tolerance else NOOP


def _track_pong(ram: np.ndarray) -> int:
    """Go where the ball will land, strike flat balls off centre so that rallies end.

    One step moves the paddle by 22 and it coasts: moving only every second step of the ball's way
    (its x advances 4 a step) keeps that in check. RAM 58 and 56: -dx and dy per emulator frame.
    """
    x, y, player_y = int(ram[49]), int(ram[54]), int(ram[51])
    if not y or (x // 4) % 2:
        return NOOP
    ball_dx, ball_dy = -int(ram[58:59].view(np.int8)[0]), int(ram[56:57].view(np.int8)[0])
    if ball_dx <= 0:
        return _towards(119 - player_y, 8, LEFT, RIGHT)
    top, height = 44, 163
    folded = (y + ball_dy * max(0, 188 - x) - top) % (2 * height)
    landing = top + min(folded, 2 * height - folded)
    off_centre = 0 if abs(ball_dy) > 1 else 3 if ram[50] < 126 else -3
    return _towards(landing - player_y - 7 - off_centre, 8, LEFT, RIGHT)


@dataclass(frozen=True)
class _Job:
    """What decides the content of episode k of a game, and where its part is kept."""

    game: str
    seed: int
    cfg: FramesConfig
    folder: Path
    settings: str = field(init=False)

    def __post_init__(self):
        for source, share in self.cfg.sources.items():
            allowed("source of frames", source, SOURCES)
            if not share >= 0:
                raise InputError(f"frames.sources: a share must be >= 0; {source} has {share}")
        if not sum(self.cfg.sources.values()) > 0 or self.cfg.num_steps < 1:
            raise InputError("frames: needs num_steps >= 1 and one source with a share above 0")
        settings = {"game": self.game, "seed": self.seed, "sticky": self.cfg.sticky,
                    "noop_max": self.cfg.noop_max, "sources": dict(self.cfg.sources),
                    "ale": ale_py.__version__}
        object.__setattr__(self, "settings", json.dumps(settings, sort_keys=True))

    def part(self, episode: int) -> Path:
        return self.folder / f"parts-{self.game}" / f"{episode:06d}.npz"


def collect_game(game: str, cfg: FramesConfig, *, folder: Path, seed: int = 0,
                 num_workers: int | None = None,
                 progress: Callable[[int, int], None] = lambda done, total: None,
                 should_stop: Callable[[], bool] = lambda: False) -> bool:
    """Play whole episodes until num_steps and min_episodes are reached; store them in folder.

    frames-<game>.npy: (N, 84, 84) uint8. steps-<game>.npz, one row per step: actions int8 (ALE
    ids), rewards, continues float32 (0.0 where the step ended the game), ram (N, 128) uint8, lives
    uint8, source int8 (index into SOURCES), episode_ids int32 from 0; also settings and
    frames_sha256. The frame after the last action of an episode is not stored.

    Episode k depends on (seed, game, k) only, so the files do not depend on num_workers (all cores
    by default). Each finished episode is a file of its own until the end: a killed or stopped
    collection continues there, damaged parts are played again, complete files are kept.
    progress(steps done, steps asked for). Returns False when should_stop() ended it early.
    """
    game_named(game)
    job = _Job(game, seed, cfg, Path(folder))
    if not _is_complete(job):
        lengths = _whole_parts(job)
        num_workers = num_workers or os.cpu_count() or 1
        play = _play_here if num_workers == 1 else _play_in_workers
        progress(min(sum(lengths.values()), cfg.num_steps), cfg.num_steps)
        if not play(job, lengths, num_workers, progress, should_stop):
            return False
        _merge(job, _episodes_needed(lengths, cfg))
    shutil.rmtree(job.part(0).parent, ignore_errors=True)
    return True


def play_episode(env: AtariGame, cfg: FramesConfig, *, seed: int, episode: int,
                 should_stop: Callable[[], bool] = lambda: False) -> dict | None:
    """One whole episode as arrays by name, a row per step; None when should_stop() ended it."""
    key = [seed, list(GAMES).index(env.game), episode]
    rng = np.random.default_rng(np.random.SeedSequence(key))
    shares = np.array([cfg.sources.get(source, 0.0) for source in SOURCES])
    source = rng.choice(len(SOURCES), p=shares / shares.sum())
    if SOURCES[source] == "tracker" and "ball_y" not in GAMES[env.game].labels:
        source = SOURCES.index("random")
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    columns = {name: [] for name in ("frames", "ram", "lives", "actions", "rewards", "continues")}
    action, done = None, False
    while not done:
        action = _choose(env.game, source, info["ram"], action, rng)
        seen = frame, info["ram"], info["lives"], action
        frame, reward, terminated, truncated, info = env.step(action)
        for column, value in zip(columns.values(), (*seen, reward, not terminated)):
            column.append(value)
        done = terminated or truncated
        if len(columns["actions"]) % STOP_CHECK == 0 and should_stop():
            return None
    types = {"actions": np.int8, "rewards": np.float32, "continues": np.float32}
    arrays = {name: np.array(column, types.get(name, np.uint8))
              for name, column in columns.items()}
    return {**arrays, "source": np.full(len(arrays["actions"]), source, np.int8)}


def _choose(game: str, source: int, ram: np.ndarray, last: int | None, rng) -> int:
    """The collecting policies: the next action, given the RAM seen and the last action."""
    actions, name = GAMES[game].actions, SOURCES[source]
    if name == "repeat" and last is not None and rng.random() >= 1 / REPEAT_MEAN:
        return last
    if name == "tracker" and rng.random() >= TRACKER_EPSILON:
        return tracker_action(game, ram)
    return actions[int(rng.random() * len(actions))]


def _play_here(job: _Job, lengths: dict, num_workers: int, progress, should_stop) -> bool:
    """Play the missing episodes in this process, into lengths; True when there are enough."""
    while _episodes_needed(lengths, job.cfg) is None:
        episode = _next_missing(lengths, ())
        length = None if should_stop() else _play_part(job, episode, should_stop)
        if length is None:
            return False
        lengths[episode] = length
        progress(min(sum(lengths.values()), job.cfg.num_steps), job.cfg.num_steps)
    return True


def _play_in_workers(job: _Job, lengths: dict, num_workers: int, progress, should_stop) -> bool:
    """As _play_here, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    stop, running, stopped = context.Event(), {}, False
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (stop,))
    try:
        while not stopped and _episodes_needed(lengths, job.cfg) is None:
            while len(running) < num_workers and _is_short(lengths, len(running), job.cfg):
                episode = _next_missing(lengths, running.values())
                running[pool.submit(_play_part, job, episode)] = episode
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                lengths[running.pop(future)] = future.result()
                progress(min(sum(lengths.values()), job.cfg.num_steps), job.cfg.num_steps)
            stopped = should_stop()
    except BrokenProcessPool:
        raise RuntimeError(f"a process collecting {job.game} died (out of memory?); the same "
                           "command continues with the episodes already stored") from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
    return _episodes_needed(lengths, job.cfg) is not None


def _is_short(lengths: dict, num_running: int, cfg: FramesConfig) -> bool:
    """Whether the running episodes, if of average length, will still leave too few steps."""
    mean = sum(lengths.values()) / len(lengths) if lengths else 1.0
    expected = sum(lengths.values()) + num_running * mean
    return (num_running == 0 or expected < cfg.num_steps
            or len(lengths) + num_running < cfg.min_episodes)


def _next_missing(lengths: dict, running) -> int:
    taken = {*lengths, *running}
    return next(k for k in range(len(taken) + 1) if k not in taken)


def _episodes_needed(lengths: dict, cfg: FramesConfig) -> int | None:
    """How many first episodes suffice; None while one of them is missing."""
    total, episode = 0, 0
    while total < cfg.num_steps or episode < cfg.min_episodes:
        if episode not in lengths:
            return None
        total += lengths[episode]
        episode += 1
    return episode


_stop = None  # in a worker: the event by which the parent ends it


def _start_worker(stop) -> None:
    global _stop
    _stop = stop
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers itself

    # A parent killed by kill -9 would leave its workers waiting for ever.
    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@lru_cache(maxsize=1)
def _environment(game: str, sticky: float, noop_max: int) -> AtariGame:
    return AtariGame(game, sticky=sticky, noop_max=noop_max)  # loading a ROM takes 0.1 s


def _play_part(job: _Job, episode: int, should_stop=None) -> int | None:
    """Play one episode into its file; its number of steps, None when it was stopped."""
    env = _environment(job.game, job.cfg.sticky, job.cfg.noop_max)
    arrays = play_episode(env, job.cfg, seed=job.seed, episode=episode,
                          should_stop=should_stop or _stop.is_set)
    if arrays is None:
        return None
    write_atomically(job.part(episode),
                     lambda aside: np.savez(aside, **arrays, settings=job.settings))
    return len(arrays["actions"])


def _read(path: Path, job: _Job, name: str | None = None) -> dict | None:
    """The arrays (or one) of a file; None when missing, damaged (zip checks sums) or of another job."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["settings"]) == job.settings:
                return {key: stored[key] for key in ([name] if name else stored.files)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    return None


def _whole_parts(job: _Job) -> dict[int, int]:
    """Steps of each stored episode that can be read back whole; clears what a killed merge left."""
    for leftover in job.folder.glob(f".*-{job.game}.*.np[yz]"):
        leftover.unlink()
    lengths = {}
    for path in sorted(job.part(0).parent.glob("[0-9]*.npz")):
        if (arrays := _read(path, job)) is not None:
            lengths[int(path.stem)] = len(arrays["actions"])
    return lengths


def _is_complete(job: _Job) -> bool:
    """Whether the final files are there, whole, and of exactly this job."""
    frames = job.folder / f"frames-{job.game}.npy"
    steps = _read(job.folder / f"steps-{job.game}.npz", job)
    if steps is None or not frames.exists():
        return False
    lengths = dict(enumerate(np.bincount(steps["episode_ids"]).tolist()))
    return (_episodes_needed(lengths, job.cfg) == len(lengths)
            and sha256_of(frames) == str(steps["frames_sha256"]))


def _merge(job: _Job, num_episodes: int) -> None:
    frames = job.folder / f"frames-{job.game}.npy"
    steps = job.folder / f"steps-{job.game}.npz"
    steps.unlink(missing_ok=True)  # old steps must never stand beside new frames
    columns = []

    def write_frames(aside: Path) -> None:
        # Plain writes: on a full disk a memory map would kill the process.
        total = math.prod((1,))
        with open(aside, "wb") as handle:
            np.lib.format.write_array_header_1_0(handle, {"total": total})

    write_atomically(frames, write_frames)
    del columns
