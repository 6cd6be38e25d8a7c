"""Windows of consecutive steps: which train a world model, and which validate or test it."""

from __future__ import annotations

import functools

import numpy as np
import torch

from hd import replay
from hd.atari import GAMES
from hd.config import InputError, WorldModelConfig
from hd.replay import Replay
from hd.run.runs import rng_for

HELD_OUT_WINDOWS = 0.05  # share of windows that the seed's split holds out


def action_ids(kind: str, data: Replay) -> np.ndarray:
    """(N,) the actions as a model reads them: kind "meaning", ALE ids, or "index", indices into
    each game's minimal set."""
    if kind == "meaning":
        return data.actions
    ids = np.empty_like(data.actions)
    for index, game in enumerate(data.games):
        table = np.zeros(18, ids.dtype)
        table[list(GAMES[game].actions)] = np.arange(len(GAMES[game].actions))
        ids[data.game_idx == index] = table[data.actions[data.game_idx == index]]
    return ids


class Windows:
    """Training and held-out windows of stored steps as tensors.

    tokens (N, L): the codes of the N steps of data. seed: of everything that is drawn. only: (N,)
    bool, the training steps that may be used; all by default.
    """

    def __init__(self, cfg: WorldModelConfig, data: Replay, tokens: np.ndarray, *, seed: int,
                 only: np.ndarray | bool = True):
        self.cfg, self.data, self.tokens, self.seed, self.only = cfg, data, tokens, seed, only
        self.actions = action_ids(cfg.actions, data)

    @functools.cached_property
    def may_train(self) -> np.ndarray:
        """(N,) bool: the rows that training, and what is counted as a baseline, may see."""
        return self._of_seeds_split if self.cfg.split == "windows" else (
            self.data.is_train & self.only)

    @property
    def _of_seeds_split(self) -> np.ndarray:
        """(N,) bool: the rows that the seed's split, by windows, has to do with."""
        return (self.data.is_train | self.data.is_val) & self.only

    def batch(self, starts, length: int) -> dict:
        """Rows starts + 0..length-1 as tokens (B, T, 3), actions, rewards, continues (B, T)."""
        rows = starts[:, None] + np.arange(length)
        return {"tokens": torch.from_numpy(self.tokens[rows].astype(np.int64)),
                "actions": torch.from_numpy(self.actions[rows].astype(np.int64)),
                "rewards": torch.from_numpy(self.data.rewards[rows]),
                "continues": torch.from_numpy(self.data.continues[rows])}

    def training_starts(self, epoch: int) -> np.ndarray:
        """Shuffled first rows of one epoch's windows, by cfg.split and cfg.windows."""
        cfg, is_train = self.cfg, self.data.is_train & self.only
        rng = rng_for(self.seed, "windows", epoch)
        if cfg.split == "windows":
            starts = self._random_windows()[1]
        elif cfg.windows == "stride1":
            starts = self.data.window_starts(cfg.max_steps, is_train)
        else:
            starts = replay.epoch_windows(self.data.episode_ids, cfg.max_steps, rng=rng,
                                          rows_mask=is_train)
        return rng.permutation(self._found(starts, "training"))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as its training
    def epoch(self, number: int) -> np.ndarray:
        """training_starts, kept while the epoch lasts."""
        return self.training_starts(number)

    def batch_starts(self, i: int) -> np.ndarray:
        """First rows of the i-th training batch: the next of the epoch, or, where the config
        states shares, each game's share of all training windows at random."""
        cfg, size = self.cfg, self.cfg.batch_size
        if cfg.game_shares:
            starts = np.sort(self.epoch(0))
            rng = rng_for(self.seed, "shares", i)
            return replay.sample_windows(starts, self.data.game_idx[starts], batch_size=size,
                                         rng=rng, shares=dict(enumerate(self.shares())))
        per_epoch = len(self.epoch(0)) // size or 1
        first = (i % per_epoch) * size
        # An epoch may hold fewer windows than the first: its last batch begins it again.
        return self.epoch(i // per_epoch).take(np.arange(first, first + size), mode="wrap")

    def shares(self) -> np.ndarray:
        """(games,) the share of each game in the training batches; adds up to one."""
        stated, games = self.cfg.game_shares, self.data.games
        if not stated:
            return np.bincount(self.data.game_idx[self.epoch(0)], minlength=len(games)) / len(
                self.epoch(0))
        if len(stated) != len(games) or min(stated) < 0 or sum(stated) <= 0:
            raise InputError(f"world_model.game_shares needs a number from 0 for each of "
                             f"{', '.join(games)}; got {stated}")
        return np.array(stated) / sum(stated)

    def held_out(self, game: str = "all", *, part: str = "test") -> np.ndarray:
        """First rows of windows that follow each other from the start of each episode of a part,
        "test" or "val", what is left after the last whole one being in none; the seed's split holds
        out a random share of all other windows, whatever the part.

        Raises InputError where there is none.
        """
        if self.cfg.split == "windows":
            starts = self._random_windows()[0]
            return self._found(starts[self.data.in_game(game)[starts]], f"held-out {game}")
        rows = {"test": self.data.is_test, "val": self.data.is_val}[part]
        starts = self.data.window_starts(self.cfg.max_steps, rows & self.data.in_game(game))
        words = {"test": "test", "val": "validation"}[part]
        return self._found(replay.tiles(starts, self.cfg.max_steps), f"{words} {game}")

    def _random_windows(self) -> tuple[np.ndarray, np.ndarray]:
        """The seed's split: a random share of all windows is held out, the others train. Nearly
        every held-out step stands in training windows too. Test episodes are left alone."""
        starts = self.data.window_starts(self.cfg.max_steps, self._of_seeds_split)
        rng = rng_for(self.seed, "random windows")
        chosen = rng.permutation(len(starts))[:max(1, round(HELD_OUT_WINDOWS * len(starts)))]
        is_held_out = np.zeros(len(starts), bool)
        is_held_out[chosen] = True
        return starts[is_held_out], starts[~is_held_out]

    def _found(self, starts, which: str):
        if not len(starts):
            raise InputError(f"no {which} episode has {self.cfg.max_steps} steps; lower "
                             f"world_model.max_steps or collect more frames")
        return starts
