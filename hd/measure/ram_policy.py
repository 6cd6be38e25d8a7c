"""A small policy with perfect eyes: what can be learned from the true state, as a reference.

Linear in the positions that RAM holds and in their changes since the last step; found in the real
game by the cross-entropy method with added noise (Szita & Lőrincz 2006); of every generation's
best and the last mean, the one that scores most on fresh starts. Nothing about a game is scripted
but which RAM addresses are positions. Training episodes are cut off after a stated number of
steps; evaluation is by whole episodes, as for every player.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from tqdm import tqdm

from hd.atari import GAMES, AtariGame, game_named
from hd.collection import start_worker
from hd.config import InputError, RamPolicyConfig
from hd.run.machine import cpu_count

KEY = 0x52414D  # "RAM": keeps these random numbers apart from those of other players
FEW_STEPS = 50_000  # of a whole training, below which processes cost more than they bring


@lru_cache
def addresses(game: str) -> np.ndarray:
    """RAM addresses of the game's positions, the labels that end in _x or _y; (P,) int."""
    labels = game_named(game).labels
    return np.array([labels[name] for name in labels if name.endswith(("_x", "_y"))])


def features(game: str, ram: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """ram and that of the step before, (..., 128) uint8 -> positions and changes (..., 2 P)."""
    now, before = (x[..., addresses(game)].astype(np.float64) for x in (ram, previous))
    return np.concatenate([now, now - before], -1)


@dataclass(frozen=True)
class RamPolicy:
    """Takes the legal action whose linear function of the features is largest."""

    game: str
    weights: np.ndarray  # (A, F), A legal actions
    bias: np.ndarray  # (A,)

    def actions(self, ram: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """(..., 128) each -> ALE ids (...); at an episode's start both are the same."""
        scores = features(self.game, ram, previous) @ self.weights.T + self.bias
        return np.array(GAMES[self.game].actions)[scores.argmax(-1)]

    def act(self) -> Callable:
        """For hd.play.play; remembers the previous RAM of every running episode."""
        last: dict[int, np.ndarray] = {}

        def act(seen, generator):
            previous = np.stack([last.get(episode, ram) if played else ram for episode, played, ram
                                 in zip(seen.episodes.tolist(), seen.steps, seen.ram)])
            last.clear()
            last.update(zip(seen.episodes.tolist(), seen.ram))
            return self.actions(seen.ram, previous)

        return act


def train(game: str, cfg: RamPolicyConfig, *, seed: int, sticky: float = 0.0,
          num_workers: int | None = None) -> tuple[RamPolicy, dict]:
    """The policy, and a record: steps, played in the real game in all, and history, a dict per
    generation with the best and mean return of its candidates in their shortened episodes.

    Every candidate of a generation plays from the same starts; the finalists, each generation's
    best and the last mean, from cfg.final_episodes others. record["final"] is the mean return of
    the one that is returned. num_workers (default: all cores) changes nothing. Raises InputError
    for an unknown game or settings that cannot work.
    """
    game_named(game)
    if not 1 <= cfg.elites <= cfg.population or min(cfg.generations, cfg.episodes,
                                                    cfg.final_episodes, cfg.max_steps) < 1:
        raise InputError(f"ram_policy needs 1 <= elites <= population, and generations, episodes, "
                         f"final_episodes and max_steps of at least 1; got {cfg}")
    rng = np.random.default_rng(np.random.SeedSequence([KEY, seed, list(GAMES).index(game)]))
    centre, spread, steps = _scale(game, rng, sticky, cfg.max_steps)
    mean = np.zeros((len(GAMES[game].actions), len(centre) + 1))
    deviation, history, finalists = np.ones_like(mean), [], []
    with _players(cfg, num_workers) as play_all:
        def scores(drawn: np.ndarray, episodes: int) -> tuple[np.ndarray, int]:
            starts = rng.integers(2**31, size=episodes).tolist()
            scored = play_all(partial(_score, starts=starts, sticky=sticky,
                                      max_steps=cfg.max_steps),
                              [_unscaled(game, one, centre, spread) for one in drawn])
            returns, lengths = map(np.array, zip(*scored))
            return returns, int(lengths.sum())

        bar = tqdm(range(cfg.generations), desc=f"RAM policy of {game}", mininterval=2.0,
                   file=sys.stdout, leave=False)
        for generation in bar:
            drawn = mean + deviation * rng.standard_normal((cfg.population, *mean.shape))
            returns, played = scores(drawn, cfg.episodes)
            elites = drawn[np.argsort(-returns, kind="stable")[:cfg.elites]]
            finalists.append(elites[0])
            # Noise that fades keeps the search from settling on its first good guess.
            left = 1 - (generation + 1) / cfg.generations
            mean, deviation = elites.mean(0), elites.std(0) + cfg.noise * left
            steps += played
            history.append({"generation": generation, "best": float(returns.max()),
                            "mean": float(returns.mean()), "steps": steps})
            bar.set_postfix(best=history[-1]["best"], mean=history[-1]["mean"])
        finalists.append(mean)
        returns, played = scores(np.stack(finalists), cfg.final_episodes)
    best = int(returns.argmax())
    return (_unscaled(game, finalists[best], centre, spread),
            {"steps": steps + played, "final": float(returns[best]), "history": history})


def _scale(game: str, rng, sticky: float, max_steps: int):
    """Mean and deviation (F,) of the features in one episode of random play; and its steps."""
    env, legal = _environment(game, sticky, max_steps), GAMES[game].actions
    _, info = env.reset(seed=int(rng.integers(2**31)))
    seen, done = [info["ram"]], False
    while not done:
        _, _, terminated, truncated, info = env.step(legal[rng.integers(len(legal))])
        seen.append(info["ram"])
        done = terminated or truncated
    found = features(game, np.stack(seen[1:]), np.stack(seen[:-1]))
    return found.mean(0), found.std(0).clip(1.0), len(found)


def _unscaled(game: str, drawn: np.ndarray, centre, spread) -> RamPolicy:
    """drawn (A, F + 1), weights of standardised features and a bias -> the policy on RAM."""
    weights = drawn[:, :-1] / spread
    return RamPolicy(game, weights, drawn[:, -1] - weights @ centre)


def _score(candidate: RamPolicy, *, starts, sticky: float, max_steps: int) -> tuple[float, int]:
    """Mean return over shortened episodes, and the steps they took in all."""
    env, total, steps = _environment(candidate.game, sticky, max_steps), 0.0, 0
    for start in starts:
        _, info = env.reset(seed=start)
        ram, previous, done = info["ram"], info["ram"], False
        while not done:
            action = candidate.actions(ram, previous)
            _, reward, terminated, truncated, info = env.step(action)
            ram, previous = info["ram"], ram
            total, steps, done = total + reward, steps + 1, terminated or truncated
    return total / len(starts), steps


class _BlindGame(AtariGame):
    """The game without frames, which nobody looks at here."""

    def _frame(self) -> np.ndarray:
        return self._shrunk


@lru_cache(maxsize=1)
def _environment(game: str, sticky: float, max_steps: int) -> AtariGame:
    return _BlindGame(game, sticky=sticky, max_steps=max_steps)  # loading a ROM takes 0.1 s


atexit.register(_environment.cache_clear)  # emulators alive at exit make ALE print a warning


@contextlib.contextmanager
def _players(cfg: RamPolicyConfig, num_workers: int | None) -> Iterator[Callable]:
    """A map(function, items) -> list over this many processes."""
    most = cfg.population * cfg.generations * cfg.episodes * cfg.max_steps
    workers = num_workers or (cpu_count() if most >= FEW_STEPS else 1)
    if workers == 1:
        yield lambda function, items: list(map(function, items))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, start_worker, (context.Event(),))
    try:
        yield lambda function, items: list(pool.map(function, items))
    except BrokenProcessPool:
        raise RuntimeError("a process that trained the RAM policy died (out of memory, or a "
                           "script outside of if __name__ == '__main__')") from None
    finally:
        pool.shutdown(cancel_futures=True)
