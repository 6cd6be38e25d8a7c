"""Which frames the contrastive encoder is asked to tell apart: three makers of batches.

Each takes a generator, the rows an anchor may be (training rows with a next one), hd.replay.Replay
and the encoder's config, and returns row numbers and positions in them; see AtariEncoder.loss.
"""

from __future__ import annotations

import numpy as np

from hd.config import EncoderConfig


def single_batch(rng, starts, data, cfg: EncoderConfig) -> dict:
    """The seed's triples: a row, the next row, and any row at least min_distance away."""
    anchor = rng.choice(starts, cfg.batch_size)
    negative = rng.choice(starts, cfg.batch_size)
    while (near := np.abs(negative - anchor) < cfg.min_distance).any():
        negative[near] = rng.choice(starts, near.sum())
    order = np.arange(cfg.batch_size)
    return {"rows": np.concatenate([anchor, anchor + 1, negative]), "anchor": order,
            "positive": order + cfg.batch_size, "negatives": order[:, None] + 2 * cfg.batch_size}


def in_batch(rng, starts, data, cfg: EncoderConfig) -> dict:
    """Groups of near rows; an anchor tells its next row from all others' of the same game."""
    centres = rng.choice(starts, -(-cfg.batch_size // cfg.group))
    shifts = rng.integers(0, 4 * cfg.group, (len(centres), cfg.group))
    near = (centres[:, None] + shifts).ravel()[:cfg.batch_size]
    is_start = np.isin(near, starts, assume_unique=False)
    near[~is_start] = rng.choice(starts, (~is_start).sum())
    order = np.arange(len(near))
    game = data.game_idx[near]
    # The same row drawn twice would be its own negative.
    excluded = (game[:, None] != game[None, :]) | (near[:, None] == near[None, :])
    excluded |= near[:, None] == near[None, :] + 1  # the anchor itself as a candidate
    np.fill_diagonal(excluded, False)
    return {"rows": np.concatenate([near, near + 1]), "anchor": order,
            "positive": order + len(near), "excluded": excluded}


def chunk_batch(rng, starts, data, cfg: EncoderConfig) -> dict:
    """Chunks of consecutive rows; negatives are the other rows of the anchor's own chunk."""
    num_chunks = max(1, cfg.batch_size // cfg.chunk)
    first = rng.choice(data.chunk_starts(cfg.chunk), num_chunks)
    rows = (first[:, None] + np.arange(cfg.chunk)).ravel()
    inside = np.arange(num_chunks * cfg.chunk).reshape(num_chunks, cfg.chunk)
    anchor, positive = inside[:, :-1].ravel(), inside[:, 1:].ravel()
    chunk = anchor // cfg.chunk
    excluded = (chunk[:, None] != chunk[None, :]) | (anchor[:, None] == positive[None, :])
    return {"rows": rows, "anchor": anchor, "positive": positive, "excluded": excluded}


BATCHES = {"single": single_batch, "in_batch": in_batch, "chunk": chunk_batch}
