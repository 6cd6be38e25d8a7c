"""What embeddings are like: their geometry, and what probes read from them.

Everything is of test episodes, and stands beside the same network before training.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hd.config import ProbeConfig
from hd.encoder import AtariEncoder, embed
from hd.measure import game_state, probes
from hd.replay import Replay
from hd.run.metrics import named
from hd.run.runs import rng_for, row

WATCHED_ROWS = 512  # validation rows of each game whose geometry is watched in training
STRETCH = 64  # consecutive rows that stay together when held-out rows are thinned
PCA_ROWS, PCA_COMPONENTS = 2000, 100


def held_out_stretches(data, game: str, max_rows: int, *,
                       part: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Rows of a part, "test" or "val", in order, thinned by whole stretches of one episode; and
    each row's stretch."""
    rows = {"test": data.is_test, "val": data.is_val}[part]
    picks = np.flatnonzero(rows & data.in_game(game))
    every = -(-len(picks) // max_rows)
    picks = picks[(np.arange(len(picks)) // STRETCH) % every == 0]
    begins = (np.diff(picks, prepend=-2) != 1) | (data.starts[picks] == picks)
    return picks, np.cumsum(begins)


def watch(data: Replay) -> Callable[[AtariEncoder], dict]:
    """What to watch while an encoder trains: a function from it to its diversity and temporal
    consistency within each game, on some validation rows."""
    watched = {game: held_out_stretches(data, game, WATCHED_ROWS, part="val")
               for game in data.games}

    def geometry(model):
        values = {}
        for game, (picks, stretches) in watched.items():
            found = embed(model, data, picks)
            values[named("val_diversity", game)] = probes.diversity(found, seed=0)
            values[named("val_temporal_consistency", game)] = probes.temporal_consistency(
                found, stretches, seed=0)
        return values

    return geometry


def geometry_rows(data: Replay, learned: np.ndarray, fresh: AtariEncoder, *, max_rows: int,
                  seed: int) -> list[dict]:
    """Size of the network and geometry of its embeddings.

    learned (N, D): of all stored steps; fresh: the same network before training, the baseline.
    """
    embeds = (*fresh.convolutions.parameters(), *fresh.head.parameters())
    rows = [row("parameters", sum(p.numel() for p in embeds), split="train")]
    for game in ("all", *data.games):
        picks, stretches = held_out_stretches(data, game, max_rows)
        pair = (learned[picks], embed(fresh, data, picks))
        smooth = [probes.temporal_consistency(x, stretches, seed=seed) for x in pair]
        spread = [probes.diversity(x, seed=seed) for x in pair]
        rows += [row("temporal_consistency", smooth[0], game=game, baseline=smooth[1]),
                 row("diversity", spread[0], game=game, baseline=spread[1])]
    return rows


def probe_rows(data: Replay, learned: np.ndarray, fresh: AtariEncoder, *, cfg: ProbeConfig,
               seed: int) -> list[dict]:
    """Probes of the true state on the trained encoder, the untrained one and PCA of pixels."""
    fit = rng_for(seed, "pca").choice(np.flatnonzero(data.is_train), PCA_ROWS)
    pca = probes.pixel_pca(data.stack(np.sort(fit)), PCA_COMPONENTS)
    return game_state.probe_rows(data, {
        "trained": lambda picks: learned[picks],
        "untrained": lambda picks: embed(fresh, data, picks),
        "pixel_pca": lambda picks: pca(data.stack(picks))}, baseline="untrained", cfg=cfg,
        seed=seed)
