"""How close decoded pictures come to the true ones."""

from __future__ import annotations

import numpy as np
import torch

from hd.decoder import DECODE_ROWS, MOVING, Decoder, Pictures
from hd.replay import thin
from hd.run.machine import device
from hd.run.runs import row
from hd.run.training import to_device


@torch.no_grad()
def rows_of(pictures: Pictures, model: Decoder, *, max_rows: int) -> list[dict]:
    """Squared pixel error on test episodes, on all and on moving pixels, per game.

    The baseline is the game's mean training picture.
    """
    data, rows = pictures.data, []
    for game in data.games:
        picks = thin(np.flatnonzero(data.is_test & data.in_game(game)), max_rows)
        totals = np.zeros(5)
        for i in range(0, len(picks), DECODE_ROWS):
            batch = to_device(pictures.batch(picks[i:i + DECODE_ROWS]), device())
            truth, mean = batch["frame"].float() / 255, batch["background"]
            moving = (truth - mean).abs() > MOVING
            drawn, usual = (model(batch["quantized"]) - truth).pow(2), (mean - truth).pow(2)
            totals += [x.sum().item() for x in (drawn, usual, drawn[moving], usual[moving],
                                                moving)]
        count = len(picks) * 84 * 84
        rows += [row("pixel_error", totals[0] / count, game=game, baseline=totals[1] / count),
                 row("moving_pixel_error", totals[2] / max(totals[4], 1), game=game,
                     baseline=totals[3] / max(totals[4], 1))]
    return rows
