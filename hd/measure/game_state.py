"""The true state of the games as numbers to read from a representation: coordinates in RAM.

The rows every representation is judged by (probe_rows), and targets for a network that is trained
on the state itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import entropy

from hd import atari
from hd.atari import GAMES
from hd.config import ProbeConfig
from hd.measure import probes
from hd.measure.frames import of_source
from hd.replay import Replay, thin
from hd.run.metrics import named, parsed
from hd.run.runs import row

PLACE_WIDTH = 20  # RAM units, of the places that ball_x is looked at in
MIN_ROWS = 10  # of test episodes, below which a place has no error of its own


def num_coordinates(games) -> int:
    """V: how many coordinates the games have together."""
    return sum(len(GAMES[game].coordinates) for game in games)


def coordinates(data, rows) -> np.ndarray:
    """(n, V) float32 in RAM units at stored rows: every game's coordinates side by side.

    NaN in the columns of other games, and in a ball's while none is in play.
    """
    table = np.full((len(rows), num_coordinates(data.games)), np.nan, np.float32)
    first = 0
    for index, game in enumerate(data.games):
        here = np.flatnonzero(data.game_idx[rows] == index)
        ram = data.ram[rows[here]]
        labels, in_play = atari.labels(game, ram), atari.ball_in_play(game, ram)
        for column, name in enumerate(GAMES[game].coordinates, start=first):
            is_known = in_play | (not name.startswith("ball_"))
            table[here, column] = np.where(is_known, labels[name], np.nan)
        first += len(GAMES[game].coordinates)
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


def state_bits(labels) -> tuple[float, float]:
    """Bits that state variables take on n steps, labels name -> (n,) or (n, k): the sum of their
    entropies, and the entropy of their combinations. A code of fewer bits than the second cannot
    hold the state; n steps show at most log2 n bits of it."""
    table = np.column_stack(list(labels.values()))
    combinations = np.unique(table, axis=0, return_inverse=True)[1].ravel()
    *apart, together = (float(entropy(np.unique(column, return_counts=True)[1], base=2))
                        for column in (*table.T, combinations))
    return sum(apart), together


def bit_rows(data: Replay) -> list[dict]:
    """state_bits of all AtariARI variables on each game's test steps."""
    rows = []
    for game in data.games:
        ram = data.ram[data.is_test & data.in_game(game)]
        for name, bits in zip(("apart", "together"), state_bits(atari.labels(game, ram))):
            rows.append(row(named("state_bits", name), bits, game=game, baseline=np.log2(len(ram))))
    return rows


def place_rows(data: Replay) -> list[dict]:
    """Share of the training steps with the ball in play that have it at each place, a stretch of
    PLACE_WIDTH named by its middle; the baseline is an equal share of all places."""
    rows = []
    for game in data.games:
        if "ball_x" in GAMES[game].coordinates:
            ram = data.ram[data.is_train & data.in_game(game)]
            column = atari.labels(game, ram)["ball_x"][atari.ball_in_play(game, ram)]
            places, counts = np.unique(_place(column), return_counts=True)
            rows += [row(named("ball_share", at=place), count / len(column), game=game,
                         split="train", baseline=1 / len(places))
                     for place, count in zip(places, counts)]
    return rows


def _place(column):
    """The middle of the place that each value (n,) lies in."""
    return np.asarray(column, np.int64) // PLACE_WIDTH * PLACE_WIDTH + PLACE_WIDTH // 2


def probe_rows(data: Replay, representations: dict, *, baseline: str, cfg: ProbeConfig,
               seed: int) -> list[dict]:
    """What representations (name -> function from stored rows (N,) to features (N, D)) know.

    The first one's scores are the rows' values, those of `baseline` stand beside them; every
    other one has rows of its own, named metric[representation]. Where the test episodes are of
    several sources, the same probes' scores on each follow, named metric[source name].
    """
    rows, main = [], next(iter(representations))
    for game in data.games:
        picks, fitted = _fitted_or_judged(data, game, cfg)
        judged = _Judged(data, game, picks, fitted, cfg, seed)
        scores, of_sources = {}, {}
        for name, represent in representations.items():
            scores[name], of_sources[name] = judged.scores(represent(picks))
        majority = probes.category_means(game, probes.majority_f1(judged.varying, judged.split))
        scores["majority"] = {f"f1_{key}": value for key, value in majority.items()}
        for name, metrics in scores.items():
            if name == main:
                rows += [row(key, value, game=game, baseline=scores[baseline].get(key))
                         for key, value in metrics.items()]
            else:
                rows += [row(named(key, name), value, game=game)
                         for key, value in metrics.items() if parsed(key).is_plain]
        for source, metrics in of_sources[main].items():
            rows += of_source(
                [row(key, value, game=game, baseline=of_sources[baseline][source][key])
                 for key, value in metrics.items()], source)
    return rows


def places_of(game: str, ram: np.ndarray) -> dict[str, np.ndarray]:
    """ram (..., 128) -> the game's coordinates by name, (...) each, in RAM units."""
    found = atari.labels(game, ram)
    return {name: found[name] for name in GAMES[game].coordinates}


def coordinate_probe(data: Replay, game: str, represent: Callable, *, cfg: ProbeConfig,
                     seed: int) -> probes.Probe:
    """Reads the game's coordinates from features; fitted on cfg.fit_on's episodes.

    represent: stored rows (n,) -> features (n, D).
    """
    picks, fitted = _fitted_or_judged(data, game, cfg)
    ram = data.ram[picks]
    split = probes.Split(fitted, data.is_test[picks], data.episode_ids[picks])
    return probes.fit_coordinate_probe(represent(picks), places_of(game, ram), split,
                                       rows=atari.ball_in_play(game, ram), cfg=cfg, seed=seed)


def _fitted_or_judged(data: Replay, game: str, cfg: ProbeConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n,) of the game's test episodes and of those that probes are fitted on, thinned; and
    which (n,) bool are of the latter."""
    is_fitted = data.is_train if cfg.fit_on == "train" else data.is_val
    picks = thin(np.flatnonzero(data.in_game(game) & (is_fitted | data.is_test)), cfg.max_rows)
    return picks, is_fitted[picks]


class _Judged:
    """What the probes of one game are fitted to and judged by, at stored rows `picks` (n,); fitted
    (n,) bool: those that they are fitted on."""

    def __init__(self, data: Replay, game: str, picks, fitted, cfg: ProbeConfig, seed: int):
        self.game, self.cfg, self.seed = game, cfg, seed
        ram = data.ram[picks]
        self.in_play, labels = atari.ball_in_play(game, ram), atari.labels(game, ram)
        self.split = probes.Split(fitted, data.is_test[picks], data.episode_ids[picks],
                                  probes.frame_keys(data.stack(picks)))
        self.varying = probes.varying_labels(labels, self.split)
        self.places = places_of(game, ram)
        sources = {source: is_from for source, is_from in data.by_source(picks).items()
                   if self.split.scorable(self.in_play & is_from).any()}
        self.sources = sources if len(sources) > 1 else {}

    def scores(self, features) -> tuple[dict, dict]:
        """Of features (n, D): metric -> value on all test rows, and source -> the same."""
        chosen = {"cfg": self.cfg, "seed": self.seed}
        probe_pair = (
            probes.fit_linear_probe(features, self.varying, self.split, **chosen),
            probes.fit_coordinate_probe(features, self.places, self.split, rows=self.in_play,
                                        **chosen))
        everywhere = np.ones(len(features), bool)
        found = self._read(probe_pair, features, everywhere)
        # Chosen as the best of D on the rows it is measured on: no measure for a part of them.
        found["state_correlation"] = probes.state_correlation(
            features, self.places, self.in_play & self.split.test)
        found |= self._by_place(probe_pair[1], features)
        return found, {source: self._read(probe_pair, features, is_from)
                       for source, is_from in self.sources.items()}

    def _read(self, probe_pair, features, among) -> dict[str, float]:
        linear, places = probe_pair
        f1 = probes.f1_of(linear, features, self.varying, rows=self.split.scored(among))
        read = probes.read_coordinates(places, features, self.places,
                                       fitted=self.split.train & self.in_play,
                                       scored=self.split.scored(self.in_play & among))
        found = {f"f1_{key}": value
                 for key, value in probes.category_means(self.game, f1).items()}
        found |= {f"r2_{key}": score.r2 for key, score in read.items()}
        return found | {f"error_{key}": score.median_error for key, score in read.items()}

    def _by_place(self, probe, features) -> dict[str, float]:
        """Root mean square error of ball_x at each place, test rows."""
        if "ball_x" not in self.places:
            return {}
        scored = self.split.scored(self.in_play)
        truth = self.places["ball_x"][scored].astype(float)
        squared = (probe.predict(features[scored])["ball_x"] - truth) ** 2
        places = _place(truth)
        return {named("rms_error_ball_x", at=place): float(np.sqrt(squared[places == place].mean()))
                for place, count in zip(*np.unique(places, return_counts=True))
                if count >= MIN_ROWS}
