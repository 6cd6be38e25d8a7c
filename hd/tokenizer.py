"""(Residual) vector quantization: embeddings <-> tokens.

Each level quantizes what the levels before it left over (residual VQ: Zeghidour et al. 2021);
codebooks follow exponential moving averages (van den Oord et al. 2017, appendix A.1), start from
k-means and refill codes that nobody picks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from hd import encoder, game_state, replay, runs, training
from hd.config import InputError
from hd.runs import Run, row
from hd.training import Loss

ENCODE_ROWS = 65_536


class Quantized(NamedTuple):
    """quantized (..., D), straight-through; tokens (..., L) int64; loss, a scalar."""

    quantized: torch.Tensor
    tokens: torch.Tensor
    loss: torch.Tensor


class ResidualVQ(nn.Module):
    """Residual vector quantization with EMA codebooks; one level is plain VQ."""

    def __init__(self, num_levels: int = 3, num_codes: int = 256, dim: int = 384, *,
                 commitment_costs=(0.05, 0.25, 0.60), decay: float = 0.99,
                 kmeans_iterations: int = 10, refill_below: float = 0.1):
        super().__init__()
        if len(commitment_costs) < num_levels:
            raise InputError(f"{num_levels} levels need as many commitment costs; "
                             f"got {tuple(commitment_costs)}")
        self.commitment_costs = tuple(commitment_costs[:num_levels])
        self.decay, self.kmeans_iterations = decay, kmeans_iterations
        self.refill_below = refill_below
        self.register_buffer("codebooks", torch.zeros(num_levels, num_codes, dim))
        self.register_buffer("counts", torch.zeros(num_levels, num_codes))
        self.register_buffer("sums", torch.zeros(num_levels, num_codes, dim))
        self.register_buffer("is_initialised", torch.tensor(False))

    def forward(self, embeddings) -> Quantized:
        """embeddings (..., D) -> Quantized.

        In training mode the codebooks learn, and the first forward starts them from that batch
        (at least num_codes rows, else InputError). In eval mode nothing changes state.
        loss: sum over levels of commitment cost x mean squared residual distance.
        """
        shape, dim = embeddings.shape, self.codebooks.shape[2]
        if shape[-1] != dim:
            raise InputError(f"embeddings must have {dim} columns; got {shape[-1]}")
        with torch.autocast(embeddings.device.type, enabled=False):
            residual = flat = embeddings.reshape(-1, dim).float()
            quantized, tokens, loss = torch.zeros_like(flat), [], flat.new_zeros(())
            if self.training and not self.is_initialised:
                self._start(flat.detach())
            for level, cost in enumerate(self.commitment_costs):
                codes = nearest(residual.detach(), self.codebooks[level])
                vectors = self.codebooks[level][codes]
                if self.training:
                    self._learn(level, residual.detach(), codes)
                loss = loss + cost * (residual - vectors).pow(2).mean()
                quantized, residual = quantized + vectors, residual - vectors
                tokens.append(codes)
        # flat - flat.detach() is exactly zero, so the value is the quantized vector itself.
        straight_through = quantized + (flat - flat.detach())
        return Quantized(straight_through.view(shape),
                         torch.stack(tokens, -1).view(*shape[:-1], -1), loss)

    @torch.no_grad()
    def encode(self, embeddings):
        """embeddings (..., D) -> tokens (..., L) int64; never changes state."""
        was_training, self.training = self.training, False
        try:
            return self(embeddings).tokens
        finally:
            self.training = was_training

    def decode(self, tokens, per_level: bool = False):
        """tokens (..., L) -> quantized (..., D), or each level's own vectors (..., L, D)."""
        if tokens.shape[-1] != len(self.codebooks):
            raise InputError(f"tokens must have {len(self.codebooks)} levels; "
                             f"got {tokens.shape[-1]}")
        vectors = [book[tokens[..., level]] for level, book in enumerate(self.codebooks)]
        if per_level:
            return torch.stack(vectors, -2)
        total = torch.zeros_like(vectors[0])
        for level in vectors:
            total = total + level
        return total

    def loss(self, batch) -> Loss:
        """batch {"embeddings" (N, D)} -> the commitment loss and the reconstruction error."""
        out = self(batch["embeddings"])
        error = (batch["embeddings"] - out.quantized).pow(2).sum(-1).mean()
        return Loss(out.loss, {"squared_error": error})

    @torch.no_grad()
    def _start(self, rows):
        num_codes = self.codebooks.shape[1]
        if len(rows) < num_codes:
            raise InputError(f"the first batch must hold at least {num_codes} rows, one for each "
                             f"code; got {len(rows)}")
        for level in range(len(self.codebooks)):
            self.codebooks[level] = kmeans(rows, num_codes, iterations=self.kmeans_iterations)
            codes = nearest(rows, self.codebooks[level])
            self.counts[level] = torch.bincount(codes, minlength=num_codes).float()
            self.sums[level] = self.codebooks[level] * self.counts[level, :, None]
            rows = rows - self.codebooks[level][codes]
        self.is_initialised.fill_(True)

    @torch.no_grad()
    def _learn(self, level, rows, codes):
        """Move the codebook towards the mean of the rows that chose each code."""
        counts = torch.bincount(codes, minlength=self.counts.shape[1]).float()
        sums = torch.zeros_like(self.sums[level]).index_add_(0, codes, rows)
        self.counts[level].lerp_(counts, 1 - self.decay)
        self.sums[level].lerp_(sums, 1 - self.decay)
        floor = 1e-3
        alive = self.counts[level] > floor
        means = self.sums[level] / self.counts[level].clamp_min(floor)[:, None]
        self.codebooks[level] = torch.where(alive[:, None], means, self.codebooks[level])
        if self.refill_below:
            self._refill(level, rows, codes)

    def _refill(self, level, rows, codes):
        # Dead codes are refilled from the current batch, never from older ones: with an encoder
        # that trains, old rows lie where no embedding is any more.
        enough = self.refill_below * len(rows) / self.counts.shape[1]
        dead = (self.counts[level] < enough).nonzero().squeeze(1)
        if len(dead):
            # Where the error is large, as k-means++ starts; a try that wins too little ends soon.
            error = (rows - self.codebooks[level][codes]).pow(2).sum(1)
            error = error.nan_to_num(nan=0.0, posinf=0.0).clamp_min(1e-12)
            picks = torch.multinomial(error, len(dead), replacement=True)
            self.codebooks[level, dead] = rows[picks]
            self.counts[level, dead] = enough
            self.sums[level, dead] = rows[picks] * enough


def nearest(rows, codebook):
    """Index of the nearest code (Euclidean) for each row: (N, D), (K, D) -> (N,) int64."""
    return torch.addmm(codebook.pow(2).sum(1), rows, codebook.T, alpha=-2).argmin(1)


def kmeans(rows, num_codes: int, *, iterations: int):
    """Lloyd's k-means from random distinct rows: (N, D) -> (num_codes, D). Empty codes restart."""
    start = torch.randperm(len(rows), device=rows.device)[:num_codes]
    codebook = rows[start].clone()
    for _ in range(iterations):
        codes = nearest(rows, codebook)
        counts = torch.bincount(codes, minlength=num_codes)
        sums = torch.zeros_like(codebook).index_add_(0, codes, rows)
        fresh = rows[torch.randint(len(rows), (num_codes,), device=rows.device)]
        codebook = torch.where((counts > 0)[:, None], sums / counts.clamp_min(1)[:, None], fresh)
    return codebook


# ---- the stage

def build(run: Run) -> ResidualVQ:
    """An untrained tokenizer of this run's config."""
    cfg = run.at("tokenizer").cfg
    return ResidualVQ(cfg.num_levels, cfg.num_codes, commitment_costs=cfg.commitment_costs,
                      decay=cfg.decay, kmeans_iterations=cfg.kmeans_iterations,
                      refill_below=cfg.refill_below)


def train(run: Run) -> tuple[ResidualVQ, dict]:
    """Fit the codebooks to the training episodes' embeddings of all games."""
    embeddings = encoder.embeddings(run.at("encoder"))
    data = replay.open_run(run)
    rows = np.flatnonzero(data.is_train)

    def batches(i: int):
        picks = runs.rng_for(run.seed, "tokenizer", i).choice(rows, run.cfg.batch_size)
        return {"embeddings": torch.from_numpy(embeddings[np.sort(picks)])}

    model = build(run)
    record = training.train(model, batches, run)
    return model, record


def load(run: Run) -> ResidualVQ:
    """The trained tokenizer; raises InputError when it is missing or damaged."""
    return runs.load_model(run.at("tokenizer"), build(run))


def tokens(run: Run) -> np.ndarray:
    """(N, L) int16 codes of every stored step, all games in order; made once, then mapped."""
    run = run.at("tokenizer")

    def make():
        model, source = load(run), encoder.embeddings(run.at("encoder"))
        parts = [model.encode(torch.tensor(source[i:i + ENCODE_ROWS]).to(runs.device()))
                 for i in range(0, len(source), ENCODE_ROWS)]
        return torch.cat(parts).to(torch.int16).cpu().numpy()

    return runs.cached_array(run, "tokens", make)


@torch.no_grad()
def measure(run: Run, model: ResidualVQ) -> list[dict]:
    """Metric rows on held-out episodes: per level, pooled and per game; see hd.report.METRICS."""
    data, codes = replay.open_run(run), tokens(run)
    embeddings = encoder.embeddings(run.at("encoder"))
    rng = runs.rng_for(run.seed, "random codes")
    rows = []
    for game in ("all", *run.games):
        picks = np.flatnonzero(~data.is_train & data.in_game(game))
        chosen = codes[picks].astype(np.int64)
        random = rng.integers(0, run.cfg.num_codes, chosen.shape)
        same_episode = np.flatnonzero(np.diff(data.episode_ids[picks]) == 0)
        for level in range(chosen.shape[1]):
            rows += _usage_rows(chosen[:, level], random[:, level], game, level, run.cfg.num_codes)
            repeats = [(x[same_episode, level] == x[same_episode + 1, level]).mean()
                       for x in (chosen, random)]
            rows.append(row(f"l{level}_repeat_rate", repeats[0], game=game, baseline=repeats[1]))
        rows += _reconstruction_rows(model, embeddings[picks], game)
    held_out = np.flatnonzero(~data.is_train)
    for level in range(codes.shape[1]):
        information = mutual_information(codes[held_out, level], data.game_idx[held_out])
        rows.append(row(f"l{level}_game_information", information,
                        baseline=entropy(data.game_idx[held_out])))
    return rows


def probe(run: Run, model: ResidualVQ) -> list[dict]:
    """Probes of the true state on quantized vectors, beside the continuous embeddings."""
    source, codes = encoder.embeddings(run.at("encoder")), tokens(run)

    def quantized(picks):
        chosen = torch.from_numpy(codes[picks].astype(np.int64)).to(runs.device())
        return model.decode(chosen).cpu().numpy()

    return game_state.probe_rows(run, {"quantized": quantized, "continuous": lambda x: source[x]},
                              baseline="continuous")


def _usage_rows(chosen, random, game, level, num_codes):
    def scores(x):
        counts = np.bincount(x, minlength=num_codes)
        return (counts > 0).mean(), np.exp(entropy(x))
    return [row(f"l{level}_{name}", value, game=game, baseline=base)
            for name, value, base in zip(("usage", "perplexity"), scores(chosen), scores(random))]


def _reconstruction_rows(model, embeddings, game):
    """Cosine and variance explained after each level; the baseline is the mean embedding."""
    rows_in = torch.from_numpy(embeddings).to(runs.device())
    per_level = model.decode(model.encode(rows_in), per_level=True)
    mean = rows_in.mean(0, keepdim=True)
    spread = (rows_in - mean).pow(2).sum()
    base = torch.cosine_similarity(rows_in, mean).mean()
    out, total = [], torch.zeros_like(rows_in)
    for level in range(per_level.shape[1]):
        total = total + per_level[:, level]
        cosine = torch.cosine_similarity(rows_in, total).mean()
        explained = 1 - (rows_in - total).pow(2).sum() / spread
        out += [row(f"l{level}_cosine", cosine, game=game, baseline=base),
                row(f"l{level}_variance_explained", explained, game=game, baseline=0.0)]
    return out


def entropy(labels) -> float:
    """Entropy in nats of a sample of labels (N,)."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def mutual_information(a, b) -> float:
    """Mutual information in nats between two samples of labels (N,), by counting."""
    joint = a.astype(np.int64) * (int(b.max()) + 1) + b
    return entropy(a) + entropy(b) - entropy(joint)
