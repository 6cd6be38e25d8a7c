"""The true state of the games as numbers to read from a representation: coordinates in RAM.

The rows every representation is judged by (probe_rows), and targets for a network that is trained
on the state itself.
"""

from __future__ import annotations

import numpy as np

from hd import atari, probes, replay
from hd.runs import Run, row

COORDINATES = {  # read by a small MLP; ball_x is the honest one, the opponent betrays ball_y
    "pong": ("player_y", "enemy_y", "ball_x", "ball_y"),
    "breakout": ("player_x", "ball_x", "ball_y"),
    "ms_pacman": ("player_x", "player_y", "blinky_x", "blinky_y"),
}


def num_coordinates(games) -> int:
    """V: how many coordinates the games have together."""
    return sum(len(COORDINATES[game]) for game in games)


def coordinates(data, rows) -> np.ndarray:
    """(n, V) float32 in RAM units at stored rows: every game's COORDINATES side by side.

    NaN in the columns of other games, and in a ball's while none is in play.
    """
    table = np.full((len(rows), num_coordinates(data.games)), np.nan, np.float32)
    first = 0
    for index, game in enumerate(data.games):
        here = np.flatnonzero(data.game_idx[rows] == index)
        ram = data.ram[rows[here]]
        labels, in_play = atari.labels(game, ram), atari.ball_in_play(game, ram)
        for column, name in enumerate(COORDINATES[game], start=first):
            is_known = in_play | (not name.startswith("ball_"))
            table[here, column] = np.where(is_known, labels[name], np.nan)
        first += len(COORDINATES[game])
    return table


def standardised(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(N, V) -> (N, V) float32 in deviations from the mean of the known values at rows (N,) bool.

    NaN stays NaN; a column that never varies there is left at its distance from the mean.
    """
    known = ~np.isnan(table) & rows[:, None]
    count = known.sum(0).clip(1)
    mean = np.where(known, table, 0).sum(0, dtype=np.float64) / count
    spread = np.sqrt((np.where(known, table - mean, 0) ** 2).sum(0) / count)
    return ((table - mean) / np.where(spread > 0, spread, 1)).astype(np.float32)


def ball_column(data, rows) -> np.ndarray:
    """(n,) float: RAM's ball_x at stored rows; NaN without a ball in play."""
    columns = np.full(len(rows), np.nan)
    for index, game in enumerate(data.games):
        here = np.flatnonzero(data.game_idx[rows] == index)
        ram = data.ram[rows[here]]
        if "ball_x" in atari.GAMES[game].labels:
            column = atari.labels(game, ram)["ball_x"]
            columns[here] = np.where(atari.ball_in_play(game, ram), column, np.nan)
    return columns


def probe_rows(run: Run, representations: dict, *, baseline: str) -> list[dict]:
    """What representations (name -> function from stored rows (N,) to features (N, D)) know.

    The first one's scores are the rows' values, those of `baseline` stand beside them; every
    other one has rows of its own, named metric[representation].
    """
    data, cfg, rows = replay.open_run(run), run.profile.probes, []
    main = next(iter(representations))
    for game in run.games:
        scores = {}
        picks = np.flatnonzero(data.in_game(game))
        picks = picks[::-(-len(picks) // cfg.max_rows)]
        labels = atari.labels(game, data.ram[picks])
        in_play = atari.ball_in_play(game, data.ram[picks])
        split = probes.Split(data.is_train[picks], ~data.is_train[picks],
                             data.episode_ids[picks], probes.frame_keys(data.stack(picks)))
        varying = probes.varying_labels(labels, split)
        for name, represent in representations.items():
            features = represent(picks)
            f1 = probes.f1_scores(features, varying, split, cfg=cfg, seed=run.seed)
            scores[name] = {f"f1_{key}": value
                            for key, value in probes.category_means(game, f1).items()}
            places = {key: labels[key] for key in COORDINATES[game]}
            read = probes.coordinate_scores(features, places, split, rows=in_play, cfg=cfg,
                                            seed=run.seed)
            scores[name] |= {f"r2_{key}": score.r2 for key, score in read.items()}
            scores[name] |= {f"error_{key}": score.median_error for key, score in read.items()}
            scores[name]["state_correlation"] = probes.state_correlation(
                features, places, in_play & split.test)
        majority = probes.category_means(game, probes.majority_f1(varying, split))
        scores["majority"] = {f"f1_{key}": value for key, value in majority.items()}
        for name, metrics in scores.items():
            suffix = "" if name == main else f"[{name}]"
            rows += [row(key + suffix, value, game=game,
                         baseline=scores[baseline].get(key) if name == main else None)
                     for key, value in metrics.items()]
    return rows
