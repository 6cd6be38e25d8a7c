"""What was collected: steps, episodes, scores, and who played them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hd.collection import SOURCES
from hd.replay import Replay
from hd.run.metrics import named, parsed
from hd.run.runs import row


def rows_of(data: Replay, *, asked: Mapping[str, float], length: int) -> list[dict]:
    """Rows for each game and part of the split, and about windows of `length` steps.

    asked: the share of episodes that each source was asked for, FramesConfig.sources.
    """
    rows = []
    for game in ("all", *data.games):
        for split, side in parts_of(data).items():
            picks = side & data.in_game(game)
            ids = data.episode_ids[picks]
            num_episodes = len(np.unique(ids))
            starts = data.window_starts(length, picks)
            values = {"steps": picks.sum(), "episodes": num_episodes,
                      f"windows_of_{length}": len(starts),
                      "games_ended": (data.continues[picks] == 0).sum()}
            if num_episodes:
                values |= {"episode_length": picks.sum() / num_episodes,
                           "return": data.rewards[picks].sum() / num_episodes,
                           "rewarded_share": (data.rewards[picks] != 0).mean()}
            rows += [row(name, value, game=game, split=split) for name, value in values.items()]
    rows += _source_rows(data, asked)
    starts, ids = data.window_starts(length), data.episode_ids
    anywhere = np.arange(len(data) - length + 1)
    crossing = [(ids[x] != ids[x + length - 1]).sum() for x in (starts, anywhere)]
    return [*rows, row("boundary_violations", crossing[0], split="train", baseline=crossing[1])]


def parts_of(data: Replay) -> dict[str, np.ndarray]:
    """The parts of the split by name, (N,) bool each; two where what validates tests as well."""
    apart = {} if (data.is_val == data.is_test).all() else {"test": data.is_test}
    return {"train": data.is_train, "val": data.is_val, **apart}


def _source_rows(data: Replay, asked: Mapping[str, float]) -> list[dict]:
    """The share of the steps that each source played, beside the share of episodes asked of it;
    nothing where one source was asked for and played. Episodes of good players are long, and a
    game that a source cannot play is played at random."""
    rows = []
    shares = [asked.get(name, 0.0) / sum(asked.values()) for name in SOURCES]
    present = np.flatnonzero((np.bincount(data.source, minlength=len(SOURCES)) > 0)
                             | (np.array(shares) > 0))
    if len(present) < 2:
        return []
    for game in ("all", *data.games):
        for split, side in parts_of(data).items():
            picks = side & data.in_game(game)
            rows += [row(named("source_share", SOURCES[k]), (data.source[picks] == k).mean(),
                         game=game, split=split, baseline=shares[k])
                     for k in present if picks.any()]
    return rows


def of_source(rows: list[dict], source: str) -> list[dict]:
    """Rows measured on the steps of one source alone, named metric[source name]; those of other
    methods, metric[method], are left out."""
    return [{**one, "metric": named(one["metric"], source=source)} for one in rows
            if parsed(one["metric"]).is_plain]
