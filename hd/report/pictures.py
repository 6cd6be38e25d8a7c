"""Frames to look at: stored ones, what their codes decode to, dreams, and where things are in them.
"""

from __future__ import annotations

import numpy as np
import torch

from hd import atari, stages
from hd.measure import dreams
from hd.run.runs import Run
from hd.tokenizer import quantized


def beside_truth(run: Run, rows, dreamed=None) -> dict[str, np.ndarray]:
    """Stored frames (..., 84, 84) uint8 of rows (...) and what their codes decode to, by name; with
    dreamed (..., L) int64 also what these codes decode to, as "dream"."""
    draw = stages.drawer_of(run)
    codes = torch.from_numpy(stages.tokens_of(run)[rows].astype(np.int64))
    found = {"real game": stages.load(run.at("frames")).newest(rows), "its codes": draw(codes)}
    return found if dreamed is None else {**found, "dream": draw(dreamed)}


def dream_frames(run: Run, game: str) -> dict[str, np.ndarray]:
    """The first of the seeded dreams as frames (H+1, 84, 84) uint8: truth, its codes, the dream.

    Index 0 is the last real step.
    """
    dreamt = stages.dreams_of(run, game)
    return beside_truth(run, dreamt.rows[0], dreamt.rollout.tokens[0])


def dream_places(run: Run, game: str) -> dict[str, np.ndarray]:
    """Where the ball (MsPacman: the player) is in dream_frames: places of its columns."""
    dreamt = stages.dreams_of(run, game)
    ram = stages.load(run.at("frames")).ram[dreamt.rows[0]]
    return places(run, game, ram, {"its codes": dreamt.tokens[0],
                                   "dream": dreamt.rollout.tokens[0]})


def places(run: Run, game: str, ram: np.ndarray, codes: dict) -> dict[str, np.ndarray]:
    """Where the ball (MsPacman: the player) is at T steps: (T, 2) column and row on a frame.

    ram (T, 128) says it as "real game", and for all of them when no ball is in play: NaN. codes:
    name -> (T, L), from each of which a probe reads it; without codes no stored frames are needed.
    """
    found = {"real game": atari.labels(game, ram)}
    if codes:
        model, probe = stages.load(run.at("tokenizer")), stages.coordinate_probe(run, game)
        found |= {name: probe.predict(quantized(model, chosen.cpu().numpy()))
                  for name, chosen in codes.items()}
    is_shown = atari.ball_in_play(game, ram)[:, None]
    return {name: np.where(is_shown, atari.on_frame(game, state), np.nan)
            for name, state in found.items()}


def ranked_dreams(run: Run, game: str, *, count: int = 10) -> tuple[np.ndarray, dict]:
    """Dreams chosen by rule, see hd.measure.dreams.ranked: (count,) the share of true codes, and
    {"real game", "its codes", "dream"}: frames (count, H+1, 84, 84) uint8; index 0 of a dream is
    the last real step."""
    dreamt = stages.dreams_of(run, game)
    share, picks = dreams.ranked(dreamt, count)
    return share, beside_truth(run, dreamt.rows[picks], dreamt.rollout.tokens.cpu()[picks])
