"""Small stand-ins that tests of several modules share: metric tables, stored episodes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from hd.config import GAMES
from hd.runs import COLUMNS


def record_of(**changes):
    return {"stage": "encoder", "profile": "quick", "variant": "base", "seed": 0,
            "games": list(GAMES), "config": {"lr": 1.0}, "device": "Test CPU",
            "git": {"commit": "abc1234567", "dirty": False}, "wall_seconds": 40.0, **changes}


def write_table(folder, rows, *, stage="encoder", variant="base", seed=0, **changes):
    """A table with its provenance, as runs.save_table leaves it: <folder>/<stage>/<name>.csv."""
    path = Path(folder) / stage / f"{variant}-seed{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows).assign(stage=stage, variant=variant, seed=seed)[list(COLUMNS)]
    table.to_csv(path, index=False)
    record = record_of(stage=stage, variant=variant, seed=seed, **changes)
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


def long_table(rows, stage="encoder", seeds=(0,)):
    """The table in memory; rows(seed) -> rows, or the same rows for every seed."""
    return pd.concat([pd.DataFrame(rows(seed) if callable(rows) else rows).assign(
        stage=stage, variant="base", seed=seed) for seed in seeds], ignore_index=True)


def without_speeds(path):
    """The lines of a table that no clock decides."""
    return [line for line in path.read_bytes().splitlines() if b",tokens_per_second," not in line]


class TinyReplay:
    """Three episodes of two games; a row's frames are filled with its number."""

    games = ("pong", "breakout")
    episode_ids = np.repeat([0, 1, 2], [5, 3, 4])
    is_train = episode_ids != 1
    ram = np.zeros((12, 128), np.uint8)
    ram[:, 49], ram[1, 54] = 128, 100  # Pong's ball, in play in row 1 only
    rewards, continues = np.zeros(12, np.float32), np.ones(12, np.float32)

    def __len__(self):
        return len(self.episode_ids)

    def window_starts(self, length, mask=None):
        return np.arange(0) if mask is None else np.flatnonzero(mask)

    def in_game(self, game):
        return (self.episode_ids == 2) == (game == "breakout")

    def stack(self, rows):
        return np.stack([np.full((4, 84, 84), row, np.uint8) for row in rows])
