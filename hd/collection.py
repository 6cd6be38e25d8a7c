"""Playing whole episodes on all cores into files that training reads piece by piece.

Each finished episode is a file of its own until all are there: a collection that was killed or
stopped continues where it was. What is stored does not depend on the number of processes.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import ale_py
import cv2
import numpy as np
from tqdm import tqdm

from hd.atari import GAMES, AtariGame, game_named, tracker_action
from hd.config import SOURCES, FramesConfig, InputError, allowed, check_seed
from hd.run.machine import cpu_count
from hd.run.storage import sha256_of, write_atomically

REPEAT_MEAN = 8  # steps for which "repeat" holds a random action, on average
TRACKER_EPSILON = 0.2  # share of random actions among those of the collecting "tracker"
STOP_MARGIN = 2.0  # seconds before a time limit at which a collection stops
STOP_CHECK = 256  # steps between two looks at should_stop inside an episode
STEP_TYPES = {"actions": np.int8, "rewards": np.float32, "continues": np.float32,
              "ram": np.uint8, "lives": np.uint8, "source": np.int8}


@dataclass(frozen=True)
class Agent:
    """A trained policy that plays one of the games; hd.play brings it.

    name: decides, as what it was trained with does, how it plays. make() -> begin is called once in
    every process, so it must be picklable; begin(seed) -> choose starts an episode, in which
    choose(frame (84, 84), ram (128,)) -> ALE id is asked at every step and may remember the others.
    """

    name: str
    game: str
    make: Callable = field(compare=False)


@dataclass(frozen=True)
class _Job:
    """What decides the content of a game's episodes, and where they are kept."""

    game: str
    cfg: FramesConfig
    folder: Path
    seed: int
    agent: Agent | None = None

    @property
    def frames(self) -> Path:
        return self.folder / f"frames-{self.game}.npy"

    @property
    def steps(self) -> Path:
        return self.folder / f"steps-{self.game}.npz"

    @property
    def parts(self) -> Path:
        return self.folder / f"parts-{self.game}"

    def part(self, episode: int) -> Path:
        return self.parts / f"{episode:06d}.npz"

    @cached_property
    def settings(self) -> str:
        """Stored in every file; a file with other settings is never used."""
        agent = {"agent": self.agent.name} if self.agent else {}
        return json.dumps({**agent, "game": self.game, "seed": self.seed, "sticky": self.cfg.sticky,
                           "noop_max": self.cfg.noop_max, "sources": dict(self.cfg.sources),
                           "ale": ale_py.__version__}, sort_keys=True)


def collect_game(game: str, cfg: FramesConfig, *, folder: Path, seed: int = 0,
                 num_workers: int | None = None,
                 progress: Callable[[int, int], None] = lambda done, total: None,
                 should_stop: Callable[[], bool] = lambda: False,
                 agent: Agent | None = None) -> bool:
    """Play whole episodes until num_steps and min_episodes are reached; store them in folder.

    frames-<game>.npy: (N, 84, 84) uint8, each frame once, that after an episode's end not at all.
    steps-<game>.npz, a row per step: actions int8 (ALE ids, done after seeing the frame), rewards
    and continues float32 (0.0 where the step ended the game), ram (N, 128) and lives uint8 (as
    seen before the action), source int8 (index into SOURCES), episode_ids int32 from 0.

    Episode k depends on the settings, seed and k only; num_workers (default: one for each core
    that this process may use) changes nothing. Episodes already stored are kept, damaged ones
    played again; so are final files. progress gets the steps done and asked for. False when
    should_stop() ended it before the end.
    Raises InputError for unknown games or sources, for the source "agent" without an agent, and
    when the folder cannot be written.
    """
    game_named(game)
    check_seed(seed)
    _check(cfg, agent)
    if num_workers is not None and (not isinstance(num_workers, int) or num_workers < 1):
        raise InputError(f"num_workers must be a whole number from 1, or None; got {num_workers!r}")
    job = _Job(game, cfg, Path(folder), seed, agent)
    if not _is_complete(job):
        lengths = _whole_parts(job)
        workers = num_workers or cpu_count()

        def report() -> None:
            progress(min(sum(lengths.values()), cfg.num_steps), cfg.num_steps)

        report()
        if workers == 1:
            _play_here(job, lengths, report, should_stop)
        else:
            _play_in_workers(job, lengths, workers, report, should_stop)
        needed = _episodes_needed(lengths, cfg)
        if needed is None:
            return False
        _merge(job, [lengths[k] for k in range(needed)])
    shutil.rmtree(job.parts, ignore_errors=True)
    return True


def play_episode(env: AtariGame, cfg: FramesConfig, *, seed: int, episode: int,
                 should_stop: Callable[[], bool] = lambda: False,
                 begin: Callable | None = None) -> dict | None:
    """One whole episode as arrays by name, a row per step; None when should_stop() ended it.

    begin: of the Agent that plays this game. Where a source cannot play the game, random does.
    """
    key = [seed, list(GAMES).index(env.game), episode]
    rng = np.random.default_rng(np.random.SeedSequence(key))
    rng.random()  # unused: the episodes of earlier versions drew their source here
    source = source_of(episode, cfg)
    is_able = {"tracker": GAMES[env.game].tracker is not None, "agent": begin is not None}
    source = source if is_able.get(source, True) else "random"
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    agent = begin(int(rng.integers(2**31))) if source == "agent" else None
    rows, frames, action, done = [], [], None, False
    while not done:
        action = agent(frame, info["ram"]) if agent else \
            _choose(env.game, source, info["ram"], action, rng)
        frames.append(frame)
        seen = info
        frame, reward, terminated, truncated, info = env.step(action)
        rows.append((action, reward, not terminated, seen["ram"], seen["lives"]))
        done = terminated or truncated
        if len(rows) % STOP_CHECK == 0 and should_stop():
            return None
    columns = [*zip(*rows), [SOURCES.index(source)] * len(rows)]
    steps = {name: np.array(column, dtype)
             for (name, dtype), column in zip(STEP_TYPES.items(), columns)}
    return {"frames": np.stack(frames), **steps}


def source_of(episode: int, cfg: FramesConfig) -> str:
    """Who plays an episode. Multiples of the golden ratio fill the shares evenly, so that the first
    few episodes hold every source."""
    shares = np.cumsum([cfg.sources.get(source, 0.0) for source in SOURCES])
    position = (episode + 0.5) * (5**0.5 - 1) / 2 % 1
    return SOURCES[np.searchsorted(shares, position * shares[-1], side="right")]


def _choose(game: str, source: str, ram: np.ndarray, last: int | None, rng) -> int:
    """The next action of a collecting policy, given the RAM seen and its last action."""
    actions = GAMES[game].actions
    if source == "repeat" and last is not None and rng.random() >= 1 / REPEAT_MEAN:
        return last
    if source == "tracker" and rng.random() >= TRACKER_EPSILON:
        return tracker_action(game, ram)
    return actions[int(rng.random() * len(actions))]


def _check(cfg: FramesConfig, agent: Agent | None) -> None:
    for source, share in cfg.sources.items():
        allowed("source in frames.sources", source, SOURCES)
        if not 0 <= share < float("inf"):
            raise InputError(f"frames.sources: shares must be 0 or more; {source} has {share}")
    if not sum(cfg.sources.values()) > 0 or cfg.num_steps < 1:
        raise InputError(f"frames: needs num_steps >= 1 and a source with a share above 0; got "
                         f"{cfg.num_steps} and {dict(cfg.sources)}")
    if cfg.sources.get("agent") and agent is None:
        raise InputError("frames.sources: the source agent needs a trained policy, which "
                         "hd.stages.make brings along")


def _episodes_needed(lengths: dict[int, int], cfg: FramesConfig) -> int | None:
    """How many first episodes suffice; None while one of them is missing."""
    total, episode = 0, 0
    while total < cfg.num_steps or episode < cfg.min_episodes:
        if episode not in lengths:
            return None
        total += lengths[episode]
        episode += 1
    return episode


def _next_missing(lengths: dict[int, int], running=()) -> int:
    taken = {*lengths, *running}
    return next(k for k in range(len(taken) + 1) if k not in taken)


def _is_short(lengths: dict[int, int], num_running: int, cfg: FramesConfig) -> bool:
    """Whether the running episodes, if of average length, will leave too few."""
    mean = sum(lengths.values()) / max(1, len(lengths))
    return (num_running == 0 or mean * (len(lengths) + num_running) < cfg.num_steps
            or len(lengths) + num_running < cfg.min_episodes)


def _play_here(job: _Job, lengths: dict[int, int], report, should_stop) -> None:
    """Play the missing episodes into lengths, in this process, until they suffice."""
    while _episodes_needed(lengths, job.cfg) is None and not should_stop():
        episode = _next_missing(lengths)
        if length := _play_part(job, episode, should_stop):
            lengths[episode] = length
            report()


def _play_in_workers(job: _Job, lengths: dict[int, int], workers: int, report,
                     should_stop) -> None:
    """As _play_here, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    stop, running = context.Event(), {}
    pool = ProcessPoolExecutor(workers, context, start_worker, (stop,))
    try:
        while _episodes_needed(lengths, job.cfg) is None and not should_stop():
            while len(running) < workers and _is_short(lengths, len(running), job.cfg):
                episode = _next_missing(lengths, running.values())
                running[pool.submit(_play_part, job, episode)] = episode
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                lengths[running.pop(future)] = future.result()
                report()
    except BrokenProcessPool:
        raise RuntimeError(
            f"a process that played {job.game} died (out of memory, or a script that collects "
            "outside of if __name__ == '__main__'); the same command continues with the episodes "
            "already stored") from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_stop = None  # in a worker: the event with which the parent ends it


def start_worker(stop) -> None:
    """Initialises a worker process: quiet on Ctrl-C, gone when its parent is."""
    global _stop
    _stop = stop
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us

    def follow_parent() -> None:
        # After kill -9 of the parent a pool's workers would otherwise wait for ever.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


@lru_cache(maxsize=1)
def _environment(game: str, sticky: float, noop_max: int) -> AtariGame:
    return AtariGame(game, sticky=sticky, noop_max=noop_max)  # loading a ROM takes 0.1 s


@lru_cache(maxsize=1)
def _begin_of(agent: Agent) -> Callable:
    return agent.make()  # loading a policy takes seconds


atexit.register(_environment.cache_clear)  # emulators alive at exit make ALE print a warning


def _play_part(job: _Job, episode: int, should_stop=None) -> int | None:
    """Play one episode into its file; its number of steps, None when it was stopped."""
    env = _environment(job.game, job.cfg.sticky, job.cfg.noop_max)
    plays = job.agent is not None and job.agent.game == job.game
    arrays = play_episode(env, job.cfg, seed=job.seed, episode=episode,
                          begin=_begin_of(job.agent) if plays else None,
                          should_stop=should_stop or _stop.is_set)
    if arrays is None:
        return None
    write_atomically(job.part(episode),
                     lambda aside: np.savez(aside, **arrays, settings=job.settings))
    return len(arrays["actions"])


def _read(path: Path, job: _Job) -> dict | None:
    """A file's arrays; None when it is missing, damaged (zip checks sums) or of other settings."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None
    return arrays if str(arrays.get("settings")) == job.settings else None


def _whole_parts(job: _Job) -> dict[int, int]:
    """Steps of every stored episode that reads back whole; clears what a killed merge left."""
    for leftover in (*job.folder.glob(f".frames-{job.game}.*"),
                     *job.folder.glob(f".steps-{job.game}.*")):
        leftover.unlink()
    lengths = {int(path.stem): _length(path, job) for path in job.parts.glob("[0-9]*.npz")}
    return {k: length for k, length in lengths.items() if length is not None}


def _length(path: Path, job: _Job) -> int | None:
    """Steps of a stored episode; None when it does not read back whole."""
    arrays = _read(path, job)
    return None if arrays is None else len(arrays["actions"])


def _is_complete(job: _Job) -> bool:
    """Whether the final files are there, whole, and of exactly this job."""
    steps = _read(job.steps, job)
    if steps is None or not job.frames.exists():
        return False
    lengths = dict(enumerate(np.bincount(steps["episode_ids"]).tolist()))
    return (_episodes_needed(lengths, job.cfg) == len(lengths)
            and sha256_of(job.frames) == str(steps["frames_sha256"]))


def _merge(job: _Job, lengths: list[int]) -> None:
    """Join the first parts into the two final files, never holding more than one part's frames."""
    job.steps.unlink(missing_ok=True)  # old steps must never stand beside new frames
    columns: dict[str, list] = {name: [] for name in STEP_TYPES}

    def write_frames(aside: Path) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (sum(lengths), 84, 84)}
        with open(aside, "wb") as handle:  # no memory map: on a full disk that kills the process
            np.lib.format.write_array_header_1_0(handle, header)
            for episode in range(len(lengths)):
                arrays = _read(job.part(episode), job)
                if arrays is None or arrays["frames"].shape != (lengths[episode], 84, 84):
                    raise InputError(f"episode {episode} in {job.parts.name} was damaged while "
                                     "collecting; the same command plays it again")
                handle.write(arrays["frames"].data)
                for name, column in columns.items():
                    column.append(arrays[name])

    write_atomically(job.frames, write_frames)
    steps = {name: np.concatenate(column) for name, column in columns.items()}
    ids = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    digest = sha256_of(job.frames)
    write_atomically(job.steps, lambda aside: np.savez(
        aside, **steps, episode_ids=ids, settings=job.settings, frames_sha256=digest))


# ---- the stage

def collect(run, *, make_agent: Callable[[], Agent] | None = None) -> dict:
    """Collect every game of the Run; returns the record. Continues where it was interrupted.

    make_agent: asked, unless the stage is finished, for the trained policy among the players.
    Raises TimeLimitReached with all finished episodes kept.
    """
    from hd.run import (
        runs,  # not above: workers import this module, and torch with runs, in a second
    )

    run = run.at("frames")
    with runs.exclusive(run):
        if record := runs.finished_or_cleared(run):
            return record
        began, agent = time.monotonic(), make_agent() if make_agent else None
        for game in run.games:
            with tqdm(total=run.cfg.num_steps, desc=f"collecting {game}", unit="step",
                      mininterval=2.0, file=sys.stdout) as bar:
                is_done = collect_game(
                    game, run.cfg, folder=run.folder, seed=run.seed, agent=agent,
                    progress=lambda done, total, bar=bar: bar.update(done - bar.n),
                    should_stop=lambda: run.must_stop(margin=STOP_MARGIN))
            if not is_done:
                raise runs.TimeLimitReached(f"frames stopped while playing {game}; its finished "
                                            f"episodes are kept, the same command continues")
        files = [run.folder / name for game in run.games
                 for name in (f"frames-{game}.npy", f"steps-{game}.npz")]
        return runs.finish(run, files, wall_seconds=time.monotonic() - began)
