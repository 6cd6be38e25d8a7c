"""Small stand-ins that tests share: metric tables, a benchmark, stored episodes, refusals."""

import hashlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from hd.atari import GAMES
from hd.config import InputError
from hd.measure.dreams import Dreamt
from hd.replay import Replay
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
            "games": list(GAMES), "config": {"lr": 1.0, "num_steps": 10, "batch_size": 2},
            "device": "Test CPU",
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
    """The lines of a table that no clock decides, without its minutes."""
    lines = [line for line in path.read_bytes().splitlines() if b",tokens_per_second," not in line]
    if b"minutes" not in (names := lines[0].split(b",")):
        return lines
    at = names.index(b"minutes")
    return [b",".join(values[:at] + values[at + 1:]) for values in (x.split(b",") for x in lines)]


def stored_steps(lengths, *, held_out=(), validation=(), seed=0):
    """A Replay without frames: legal actions at random, no rewards, no ends, zeros as RAM.

    lengths: game -> steps of each episode; held_out, for the test, and validation (the same unless
    they are given): numbers of episodes, counted over all games.
    """
    rng, games = np.random.default_rng(seed), tuple(lengths)
    steps = [sum(lengths[game]) for game in games]
    episodes = [length for game in games for length in lengths[game]]
    ids = np.repeat(np.arange(len(episodes)), episodes)
    data = Replay(
        games, Path(), (), offsets=np.cumsum([0, *steps]), episode_ids=ids,
        game_idx=np.repeat(np.arange(len(games), dtype=np.int8), steps),
        starts=np.cumsum([0, *episodes])[ids],
        is_train=~np.isin(ids, [*held_out, *validation]), is_test=np.isin(ids, held_out),
        is_val=np.isin(ids, validation or held_out),
        actions=np.concatenate([rng.choice(GAMES[game].actions, count)
                                for game, count in zip(games, steps)]).astype(np.int8),
        rewards=np.zeros(len(ids), np.float32), continues=np.ones(len(ids), np.float32),
        source=np.zeros(len(ids), np.int8))
    vars(data)["ram"] = np.zeros((len(ids), 128), np.uint8)  # else it would be read from disk
    return data


class PlainEyes:
    """Pong in three stretches of six steps whose codes are player_y, ball_x and ball_y themselves,
    off by one each, and a probe that just reads them; rows: of three dreams of five steps."""

    rng = np.random.default_rng(0)
    ram = np.zeros((18, 128), np.uint8)
    for address in (50, 51, 49, 54):
        ram[:, address] = rng.integers(20, 200, 18)
    ram[8, 54] = 0  # out of play when the second dream begins
    ram[17, 54] = 0  # and at the end of the third
    codes = torch.from_numpy(ram[:, [51, 49, 54]].astype(np.int64) + 1)
    rows = np.array([[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13], [12, 13, 14, 15, 16, 17]])
    data = SimpleNamespace(ram=ram, starts=np.repeat([0, 6, 12], 6))
    quantizer = SimpleNamespace(decode=lambda codes: codes.float())
    probe = SimpleNamespace(predict=lambda x: {
        "player_y": x[:, 0], "enemy_y": x[:, 0], "ball_x": x[:, 1], "ball_y": x[:, 2]})

    @classmethod
    def dreamt(cls, tokens, rows=rows):
        """Dreams that say tokens (B, H+1, 3) where rows (B, H+1) really happened."""
        return Dreamt("pong", SimpleNamespace(tokens=tokens), cls.codes[rows], None, rows)


def episode_rows(lengths):
    """The episode of each row of episodes of these lengths."""
    return np.repeat(np.arange(len(lengths)), lengths)


def write_game(folder, game, lengths, **changes):
    """Files as hd.collection leaves them; frame i of a game shows the number i (and the game)."""
    num_steps = sum(lengths)
    frames = np.zeros((num_steps, 84, 84), np.uint8)
    frames[:, 0, 0], frames[:, 83, 83] = np.arange(num_steps), len(game)
    columns = {"actions": np.arange(num_steps, dtype=np.int8) % 18,
               "rewards": np.arange(num_steps, dtype=np.float32),
               "continues": np.ones(num_steps, np.float32),
               "ram": np.full((num_steps, 128), len(game), np.uint8),
               "lives": np.zeros(num_steps, np.uint8), "source": np.zeros(num_steps, np.int8),
               "episode_ids": episode_rows(lengths).astype(np.int32)}
    np.save(folder / f"frames-{game}.npy", changes.pop("frames", frames))
    columns = {name: column for name, column in {**columns, **changes}.items()
               if column is not None}
    np.savez(folder / f"steps-{game}.npz", **columns)


class TinyReplay:
    """Three episodes of two games; a row's frames are filled with its number."""

    games = ("pong", "breakout")
    episode_ids = np.repeat([0, 1, 2], [5, 3, 4])
    is_train = episode_ids != 1
    is_test = is_val = ~is_train
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
