"""Small stand-ins that tests share: metric tables, a benchmark, stored episodes, refusals."""

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hd.config import GAMES, InputError
from hd.report import benchmarks
from hd.run import machine
from hd.run.runs import COLUMNS
from hd.run.storage import sha256_of


def refusal(function, *args, **kwargs) -> str:
    """The one line with which function refuses."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def git(root, *words):
    subprocess.run(["git", "-C", str(root), "-c", "user.name=test",
                    "-c", "user.email=test@example.org", *words], check=True, capture_output=True)


def commit(root) -> str:
    """Everything below root as one commit more; returns its hash."""
    git(root, "add", "--all")
    git(root, "commit", "-q", "-m", "state")
    return machine.asked_git(root, "rev-parse", "HEAD")


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


def write_benchmark(folder, kind="cpu", dirty=False):
    """A published benchmark of three rows, one bar not met."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("encoder training", ">= 3", "True", 4.0), ("reading", "<= 0.1", "False", 0.25),
            ("matrix product", "", "", 1.5)]
    fixed = {"unit": "images/s", "ours": 1234.5, "theirs": 2.0, "against": "theirs", "pairs": 5,
             "device": "Test CPU", "threads": 2, "commit": "abc1234567", "dirty": dirty}
    table = pd.DataFrame([{"stage": stage, "bar": bar, "met": met, "ratio": ratio,
                           "ratio_min": ratio / 2, "ratio_max": ratio * 2, **fixed}
                          for stage, bar, met, ratio in rows])
    profile = pd.DataFrame([("reading", "theirs", "replay._gather", 0.625, 12)],
                           columns=list(benchmarks.PROFILE_COLUMNS))
    path = folder / f"{kind}.csv"
    table[list(benchmarks.COLUMNS)].to_csv(path, index=False)
    profile.to_csv(benchmarks.profile_beside(path), index=False)
    path.with_suffix(".json").write_text(json.dumps({
        "git": {"commit": "abc1234567", "dirty": dirty}, "device": "Test CPU", "threads": 2,
        "processes": 2, "packages": {"torch": "2.0"}, "wall_seconds": 400.0,
        "sha256": sha256_of(path),
        "profile_sha256": sha256_of(benchmarks.profile_beside(path))}))
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
    source = np.zeros(12, np.int8)
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
