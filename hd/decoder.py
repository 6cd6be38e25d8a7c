"""Quantized vectors -> the newest frame, only to look at codes and dreams.

A small deconvolution trained on frozen tokens: no gradient reaches the encoder from it. Pixels
that differ from the game's mean picture weigh more, or a ball of two pixels would never be drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hd.config import DecoderConfig
from hd.quantization import ResidualVQ
from hd.replay import Replay, thin
from hd.run import training
from hd.run.machine import device
from hd.run.runs import Run, rng_for, seed_everything
from hd.run.training import Loss, Unkept

MOVING = 0.1  # a pixel moves where it differs this much from the game's mean picture
MOVING_WEIGHT = 20.0
BACKGROUND_ROWS = 500
DECODE_ROWS = 256


class Decoder(nn.Module):
    """Quantized (N, 384) -> frames (N, 84, 84), float32 in [0, 1]."""

    def __init__(self, cfg: DecoderConfig, *, dim: int = 384):
        super().__init__()
        width = cfg.width
        self.start = nn.Linear(dim, 4 * width * 7 * 7)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (4 * width, 7, 7)), nn.SiLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 3), nn.SiLU(),  # 9 x 9
            nn.ConvTranspose2d(2 * width, width, 4, stride=2), nn.SiLU(),  # 20 x 20
            nn.ConvTranspose2d(width, 1, 8, stride=4))  # 84 x 84

    def forward(self, quantized):
        """quantized (N, 384) -> (N, 84, 84) in [0, 1]."""
        return self.layers(self.start(quantized)).squeeze(1).float().sigmoid()

    def loss(self, batch) -> Loss:
        """batch: quantized (N, 384), frame (N, 84, 84) uint8, background (N, 84, 84) float32."""
        truth = batch["frame"].float() / 255
        squared = (self(batch["quantized"].detach()) - truth).pow(2)
        moving = (truth - batch["background"]).abs() > MOVING
        return Loss((squared * (1 + MOVING_WEIGHT * moving)).mean(),
                    {"squared_error": squared.mean()})


def mean_pictures(data: Replay) -> np.ndarray:
    """(games, 84, 84) float32 in [0, 1]: what the training frames of each game have in common."""
    def mean_of(game):
        rows = np.flatnonzero(data.is_train & data.in_game(game))
        return data.newest(thin(rows, BACKGROUND_ROWS)).mean(0, dtype=np.float32) / 255
    return np.stack([mean_of(game) for game in data.games])


class Pictures:
    """Quantized vectors beside the newest frame of stored rows, as a Decoder's loss reads them.

    codes (N, L) of the N steps of data; quantizer: what made them.
    """

    def __init__(self, data: Replay, codes: np.ndarray, quantizer: ResidualVQ):
        self.data, self.codes = data, codes
        self.quantizer = copy.deepcopy(quantizer).cpu()
        self.background = mean_pictures(data)

    def batch(self, rows) -> dict:
        """rows (n,) -> quantized (n, D), frame (n, 84, 84) uint8, background (n, 84, 84)."""
        codes = torch.from_numpy(self.codes[rows].astype(np.int64))
        return {"quantized": self.quantizer.decode(codes),
                "frame": torch.from_numpy(self.data.newest(rows)),
                "background": torch.from_numpy(self.background[self.data.game_idx[rows]])}


def train(cfg: DecoderConfig, pictures: Pictures, run: Run | Unkept) -> tuple[Decoder, dict]:
    """Train on the training episodes of all games."""
    rows = np.flatnonzero(pictures.data.is_train)

    def batches(i: int):
        picks = rng_for(run.seed, "decoder", i).choice(rows, cfg.batch_size)
        return pictures.batch(np.sort(picks))

    seed_everything(run.seed)  # so that no earlier stage decides the initial weights
    model = Decoder(cfg)
    record = training.train(model, batches, cfg, run)
    return model, record


def drawer(model: Decoder, quantizer: ResidualVQ) -> Callable:
    """A function from tokens (..., L) int64 to frames (..., 84, 84) uint8."""
    @torch.no_grad()
    def draw(tokens) -> np.ndarray:
        flat = tokens.reshape(-1, tokens.shape[-1]).to(device())
        drawn = [model(quantizer.decode(flat[i:i + DECODE_ROWS]))
                 for i in range(0, len(flat), DECODE_ROWS)]
        return as_frames(torch.cat(drawn)).reshape(*tokens.shape[:-1], 84, 84)

    return draw


def as_frames(drawn: torch.Tensor) -> np.ndarray:
    """Pictures (n, 84, 84) in [0, 1] -> uint8."""
    return (drawn * 255).round().to(torch.uint8).cpu().numpy()
