"""The seed document's own way of measuring its encoder, so that its figures can be repeated.

What it did is read from its author's public code (github.com/ssrhaso/hidreamer and the earlier
ssrhaso/dreamer: src/validate_encoder.py, testing/embedding_semantics.py; written anew here). The
honest way stands in hd.measure.embeddings. What cannot be known: which commit of that code made the
published figures, with which weights, which frames (Pong-v5, with sticky actions, by the code's
default) and which random rows, since its draws have no fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from hd import atari
from hd.config import InputError
from hd.encoder import AtariEncoder, embed
from hd.measure import probes
from hd.replay import Replay, thin
from hd.run.metrics import named
from hd.run.runs import rng_for, row

EVERY = 100  # the seed looks at one in so many consecutive pairs
NUM_ROWS, NUM_PAIR_ROWS = 1000, 500
MIN_FOUND = 10  # frames with a label, below which the seed leaves it out
PLAYER_BAND, ENEMY_BAND, FIELD = slice(73, 76), slice(8, 11), slice(14, 77)  # columns, rows
Represent = Callable[[np.ndarray], np.ndarray]  # stored rows (n,) -> (n, D)


@dataclass(frozen=True)
class Sample:
    """The stored rows that the seed's protocol looks at.

    first: (P,), every 100th row, each compared with the next row in the buffer, also where an
    episode (or, over several games, a game) ends between them. random: (R,) distinct rows of all
    steps, training and held out alike; the two halves are the random pairs.
    """

    first: np.ndarray
    random: np.ndarray

    @classmethod
    def draw(cls, rows: np.ndarray, *, seed: int, max_pairs: int | None = None,
             num_random: int = 2 * NUM_ROWS) -> Sample:
        """From rows (N,) of the buffer, consecutive; at most max_pairs consecutive pairs."""
        if len(rows) < 2:
            raise InputError("the seed's protocol needs two stored steps or more")
        first = rows[:-1:EVERY]
        first = thin(first, max_pairs or len(first))
        num_random = min(num_random, len(rows)) // 2 * 2
        return cls(first, rng_for("seed_protocol", seed).choice(
            rows, num_random, replace=False))

    def represented(self, represent: Represent) -> Represent:
        """The same representation, asked only once for all the rows that are looked at."""
        known = np.unique(np.concatenate([self.first, self.first + 1, self.random]))
        features = np.asarray(represent(known), np.float32)
        return lambda rows: features[np.searchsorted(known, rows)]


def temporal_ratio(sample: Sample, represent: Represent) -> float:
    """Mean distance of every 100th consecutive pair / mean distance of 1000 random pairs.

    Honest: all pairs within held-out episodes, see probes.temporal_consistency. 0 where all rows
    are one point.
    """
    steps = np.linalg.norm(represent(sample.first) - represent(sample.first + 1), axis=1)
    left, right = (represent(half) for half in np.split(sample.random, 2))
    strangers = np.linalg.norm(left - right, axis=1).mean(dtype=np.float64)
    return float(steps.mean(dtype=np.float64) / strangers) if strangers else 0.0


def geometry(sample: Sample, represent: Represent) -> dict[str, float]:
    """Temporal consistency, diversity and norms of one buffer as the seed takes them.

    Diversity: mean distance over all pairs of 1000 random rows of the whole buffer (honest: of
    held-out episodes). Norm deviation: the largest |norm - 1|; AtariEncoder divides by the norm,
    so that 0 says nothing about it.
    """
    norms = np.linalg.norm(represent(sample.random).astype(np.float64), axis=1)
    return {"seed_temporal_consistency": temporal_ratio(sample, represent),
            "seed_diversity": float(pdist(represent(sample.random[:NUM_ROWS])).mean()),
            "embedding_norm_deviation": float(np.abs(norms - 1).max())}


def row_boxes(frames: np.ndarray) -> dict[str, np.ndarray]:
    """The seed's labels of Pong: frames (N, 84, 84) uint8 -> name -> (N,) pixels, NaN: not found.

    It looks for the paddles in rows: the player's in rows 60 to 79, the enemy's in 4 to 23, each
    "y" the mean column whose mean over those rows is above 100. But Pong's paddles stand at the
    left and right, and both boxes hold a wall, which lifts every column above 100: the label is
    the middle of the screen in every frame. The ball: mean place of pixels above 150 in rows 20
    to 63, which the paddles (147, 148) do not reach, and a blurred ball not always.
    """
    boxes = {}
    for name, rows in (("player_y", slice(60, 80)), ("enemy_y", slice(4, 24))):
        boxes[name] = _centre(frames[:, rows].mean(1) > 100)
    bright = frames[:, 20:64] > 150
    return {**boxes, "ball_x": _centre(bright, axis=2), "ball_y": 20 + _centre(bright, axis=1)}


def column_boxes(frames: np.ndarray) -> dict[str, np.ndarray]:
    """As row_boxes, with the boxes where Pong's paddles are: what the seed meant to measure.

    Paddles: mean row of pixels brighter than the background (87) in the three columns of each,
    between the walls. Ball: mean place of such pixels outside those columns.
    """
    field = frames[:, FIELD] > 100
    rest = field.copy()
    rest[:, :, PLAYER_BAND] = rest[:, :, ENEMY_BAND] = False
    return {"player_y": FIELD.start + _centre(field[:, :, PLAYER_BAND], axis=1),
            "enemy_y": FIELD.start + _centre(field[:, :, ENEMY_BAND], axis=1),
            "ball_x": _centre(rest, axis=2), "ball_y": FIELD.start + _centre(rest, axis=1)}


def half_bright_boxes(frames: np.ndarray) -> dict[str, np.ndarray]:
    """The labels on which the seed judged DINOv2, as row_boxes; they hold walls and scores too.

    A pixel counts above half of the frame's brightest. Paddles: mean row that has one among the
    ten columns at the left (the enemy's) or right. Ball: mean place of all of them.
    """
    bright = frames > frames.max((1, 2), keepdims=True) * 0.5
    return {"player_y": _centre(bright[:, :, -10:].any(2)),
            "enemy_y": _centre(bright[:, :, :10].any(2)),
            "ball_x": _centre(bright, axis=2), "ball_y": _centre(bright, axis=1)}


def _centre(mask: np.ndarray, axis: int = 1) -> np.ndarray:
    """(N, ...) bool -> (N,): mean position along an axis of what is True; NaN where nothing is."""
    counts = mask.sum(tuple(i for i in range(1, mask.ndim) if i != axis))
    total = counts.sum(1)
    weighted = counts @ np.arange(counts.shape[1])
    return np.where(total > 0, weighted / np.maximum(total, 1), np.nan)


def state_correlation(features: np.ndarray, boxes: dict[str, np.ndarray]) -> float:
    """The seed's game-state correlation: mean over its labels of the best |r| over dimensions.

    features (N, D); boxes name -> (N,), NaN where a box found nothing. A label found in fewer
    than 10 frames is left out, and so is a constant one: its correlation is NaN, and the seed's
    mean keeps what is above 0. The best of D on the very rows it is chosen on, no split. 0 where
    no label is left. Honest: state_correlation in game_state.probe_rows.
    """
    best = [probes.state_correlation(features, {name: values}, is_found)
            for name, values in boxes.items()
            if (is_found := values > 0).sum() >= MIN_FOUND and np.ptp(values[is_found]) > 0]
    return float(np.mean(best)) if best else 0.0


def pair_correlation(features: np.ndarray, boxes: dict[str, np.ndarray]) -> float:
    """How the seed judged DINOv2: do frames with distant embeddings have distant labels?

    Mean over the labels of Spearman's rank correlation, over all pairs of rows, of 1 - cosine and
    of the difference of the label. features (N, D); boxes name -> (N,). Another measure than
    state_correlation, and far smaller: the seed compares its encoder's best |r| with this of
    DINOv2. Constant labels are left out; 0 where none is left.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    found = []
    for values in boxes.values():
        rows = np.flatnonzero(values >= 0)
        if len(rows) >= MIN_FOUND and np.ptp(values[rows]) > 0:
            distances = pdist(unit[rows], "sqeuclidean") / 2  # 1 - cosine
            if np.ptp(distances) > 0:
                found.append(spearmanr(distances, pdist(values[rows, None])).statistic)
    return float(np.mean(found)) if found else 0.0


def state_scores(data, sample: Sample, represent: Represent) -> dict[str, float]:
    """The scores of Pong's state by three kinds of boxes, on 1000 (500) random rows."""
    picks, few = sample.random[:NUM_ROWS], sample.random[:NUM_PAIR_ROWS]
    frames, features = data.newest(picks), represent(picks)
    by_columns = state_correlation(features, column_boxes(frames))
    return {"seed_state_correlation": state_correlation(features, row_boxes(frames)),
            named("seed_state_correlation", "columns"): by_columns,
            "seed_pair_correlation":
            pair_correlation(features[:len(few)], half_bright_boxes(frames[:len(few)]))}


def box_scores(data, sample: Sample) -> dict[str, float]:
    """How far Pong's pixel boxes are right: |r| with RAM, and how often they find anything."""
    picks = sample.random[:NUM_ROWS]
    labels = atari.labels("pong", data.ram[picks])
    in_play = atari.ball_in_play("pong", data.ram[picks])
    frames, scores = data.newest(picks), {}
    for word, boxes in (("", row_boxes(frames)), ("columns", column_boxes(frames))):
        for name, values in boxes.items():
            here = in_play if name.startswith("ball_") else np.ones(len(picks), bool)
            is_found = here & ~np.isnan(values)
            scores[named(f"box_agreement_{name}", word)] = probes.state_correlation(
                values[:, None], {name: labels[name]}, is_found) if is_found.sum() > 1 else 0.0
            scores[named(f"box_found_{name}", word)] = is_found.sum() / max(here.sum(), 1)
    return scores


def scores(data: Replay, represent: Represent, *, seed: int,
           **limits) -> dict[tuple[str, str], float]:
    """(metric, game) -> value by the seed's protocol; limits: see Sample.draw.

    Over "all" games the random pairs cross games, which lowers the ratio; the mean is that of the
    games' own ratios.
    """
    found = {}
    for game in ("all", *data.games):
        sample = Sample.draw(np.flatnonzero(data.in_game(game)), seed=seed, **limits)
        ask = sample.represented(represent)
        values = geometry(sample, ask)
        if game == "pong":
            values |= state_scores(data, sample, ask)
        found |= {(metric, game): value for metric, value in values.items()}
    found["seed_temporal_consistency_mean", "all"] = float(np.mean(
        [found["seed_temporal_consistency", game] for game in data.games]))
    return found


def pixels(data, picks: np.ndarray) -> np.ndarray:
    """The newest frames of stored rows (n,) -> (n, 1764), means of 2x2 pixels in [0, 1]."""
    frames = data.newest(picks).reshape(len(picks), 42, 2, 42, 2)
    return frames.mean((2, 4), dtype=np.float32).reshape(len(picks), -1) / 255


def rows_of(data: Replay, learned: np.ndarray, fresh: AtariEncoder, *, seed: int) -> list[dict]:
    """The seed's measures of the trained encoder, beside the untrained one by the same protocol.

    learned (N, D): embeddings of all stored steps; fresh: the same network before training. All
    steps, no split, of whatever frames there are: sticky actions only under sticky.v5.
    """
    trained = scores(data, lambda picks: learned[picks], seed=seed)
    untrained = scores(data, lambda picks: embed(fresh, data, picks), seed=seed)
    table = [row(metric, value, game=game, split="seed", baseline=untrained[metric, game])
             for (metric, game), value in trained.items()]
    for game in ("all", *data.games):
        sample = Sample.draw(np.flatnonzero(data.in_game(game)), seed=seed)
        ratio = temporal_ratio(sample, sample.represented(lambda picks: pixels(data, picks)))
        table.append(row(named("seed_temporal_consistency", "pixels"), ratio, game=game,
                         split="seed"))
    if "pong" in data.games:
        sample = Sample.draw(np.flatnonzero(data.in_game("pong")), seed=seed)
        table += [row(metric, value, game="pong", split="seed")
                  for metric, value in box_scores(data, sample).items()]
    return table
