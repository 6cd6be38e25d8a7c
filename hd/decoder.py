"""Quantized vectors -> the newest frame, only to look at codes and dreams.

A small deconvolution trained on frozen tokens: no gradient reaches the encoder from it. Pixels
that differ from the game's mean picture weigh more, or a ball of two pixels would never be drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from hd import encoder, replay, tokenizer
from hd.config import DecoderConfig
from hd.run import runs, training
from hd.run.runs import Run, row
from hd.run.training import Loss

MOVING = 0.1  # a pixel moves where it differs this much from the game's mean picture
MOVING_WEIGHT = 20.0
BACKGROUND_ROWS = 500
DECODE_ROWS = 256
NEAREST_ROWS = 5000  # of each game, among which the frame nearest to a code is looked for


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


class _Frames:
    """Quantized vectors beside the newest frame of stored rows."""

    def __init__(self, run: Run):
        self.data, self.codes = replay.open_run(run), tokenizer.tokens(run)
        self.tokenizer = tokenizer.load(run).cpu()
        self.background = np.stack([self._mean_frame(run, game) for game in run.games])

    def _mean_frame(self, run, game):
        rows = np.flatnonzero(self.data.is_train & self.data.in_game(game))
        picks = rows[::-(-len(rows) // BACKGROUND_ROWS)]
        return self.data.newest(picks).mean(0, dtype=np.float32) / 255

    def batch(self, rows) -> dict:
        codes = torch.from_numpy(self.codes[rows].astype(np.int64))
        return {"quantized": self.tokenizer.decode(codes),
                "frame": torch.from_numpy(self.data.newest(rows)),
                "background": torch.from_numpy(self.background[self.data.game_idx[rows]])}


def train(run: Run) -> tuple[Decoder, dict]:
    """Train on the training episodes of all games."""
    frames = _Frames(run)
    rows = np.flatnonzero(frames.data.is_train)

    def batches(i: int):
        picks = runs.rng_for(run.seed, "decoder", i).choice(rows, run.cfg.batch_size)
        return frames.batch(np.sort(picks))

    runs.seed_everything(run.seed)  # so that no earlier stage decides the initial weights
    model = Decoder(run.cfg)
    record = training.train(model, batches, run)
    return model, record


def load(run: Run) -> Decoder:
    """The trained decoder; raises InputError when it is missing or damaged."""
    run = run.at("decoder")
    return runs.load_model(run, Decoder(run.cfg))


def drawer(run: Run) -> Callable:
    """A function from tokens (..., L) int64 to frames (..., 84, 84) uint8, as this run's decoder
    draws them; raises InputError now when decoder or tokenizer is missing or damaged."""
    model, codes = load(run), tokenizer.load(run)

    @torch.no_grad()
    def draw(tokens) -> np.ndarray:
        flat = tokens.reshape(-1, tokens.shape[-1]).to(runs.device())
        drawn = [model(codes.decode(flat[i:i + DECODE_ROWS]))
                 for i in range(0, len(flat), DECODE_ROWS)]
        frames = (torch.cat(drawn) * 255).round().to(torch.uint8).cpu().numpy()
        return frames.reshape(*tokens.shape[:-1], 84, 84)

    return draw


def decode_tokens(run: Run, tokens) -> np.ndarray:
    """tokens (..., L) int64 -> frames (..., 84, 84) uint8, as this run's decoder draws them."""
    return drawer(run)(tokens)


def beside_truth(run: Run, rows) -> dict[str, np.ndarray]:
    """Stored frames (n, 84, 84) uint8 and what their codes decode to, by name."""
    codes = torch.from_numpy(tokenizer.tokens(run)[rows].astype(np.int64))
    return {"real game": replay.open_run(run).newest(rows),
            "its codes": decode_tokens(run, codes)}


@torch.no_grad()
def measure(run: Run, model: Decoder) -> list[dict]:
    """Squared pixel error on held-out episodes, on all and on moving pixels, per game.

    The baseline is the game's mean training picture.
    """
    frames, rows = _Frames(run), []
    for game in run.games:
        picks = np.flatnonzero(~frames.data.is_train & frames.data.in_game(game))
        picks = picks[::-(-len(picks) // run.profile.probes.max_rows)]
        totals = np.zeros(5)
        for i in range(0, len(picks), DECODE_ROWS):
            batch = training.to_device(frames.batch(picks[i:i + DECODE_ROWS]), runs.device())
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


def most_shared_codes(run: Run, *, count: int = 3) -> list[dict]:
    """The coarse codes that all games use most evenly, with what they look like.

    Ranked by the smallest share of frames that any game gives the code, where that ties by the next
    smallest. Each: code, its shares
    (games,), the frame that its level 0 alone decodes to (84, 84) uint8, and each game's real
    frame whose embedding lies nearest to it, by game.
    """
    data, codes = replay.open_run(run), tokenizer.tokens(run)[:, 0].astype(np.int64)
    book, source = tokenizer.load(run).codebooks[0], encoder.embeddings(run)
    shares = np.stack([np.bincount(codes[data.in_game(game)], minlength=len(book))
                       / data.in_game(game).sum() for game in run.games])
    model, found, ranked = load(run), [], np.sort(shares, axis=0)
    for code in np.lexsort((*-ranked[::-1],))[:count]:
        with torch.no_grad():
            drawn = (model(book[code][None]) * 255).round().to(torch.uint8)[0].cpu().numpy()
        nearest = {}
        for game in run.games:
            rows = np.flatnonzero(data.in_game(game))
            rows = rows[::-(-len(rows) // NEAREST_ROWS)]
            distances = np.linalg.norm(source[rows] - book[code].cpu().numpy(), axis=1)
            nearest[game] = data.newest(rows[[distances.argmin()]])[0]
        found.append({"code": int(code), "shares": shares[:, code], "decoded": drawn,
                      "nearest": nearest})
    return found
