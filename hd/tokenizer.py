"""The tokenizer stage: embeddings <-> tokens by quantization, and what the codes are worth.

The quantizer itself, ResidualVQ, is in hd.quantization.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from hd import atari, config, encoder, replay
from hd.config import InputError
from hd.measure import game_state
from hd.quantization import LibraryVQ, ResidualVQ
from hd.run import runs, training
from hd.run.runs import Run, row

ENCODE_ROWS = 8192  # at once: their distances to all codes stay in the cache
SHARED_FROM = (0, 0.001, 0.01)  # share of a game's frames from which on a code is that game's
STATE_BINS = 8


# ---- the stage

def build(run: Run) -> ResidualVQ | LibraryVQ:
    """An untrained tokenizer of this run's config."""
    cfg = run.at("tokenizer").cfg
    if cfg.kind == "library":
        return LibraryVQ(cfg.num_levels, cfg.num_codes, decay=cfg.decay)
    return ResidualVQ(cfg.num_levels, cfg.num_codes, commitment_costs=cfg.commitment_costs,
                      decay=cfg.decay, kmeans_iterations=cfg.kmeans_iterations,
                      refill_below=cfg.refill_below, kind=cfg.kind, project_dim=cfg.project_dim)


def train(run: Run) -> tuple[ResidualVQ, dict]:
    """Fit the codebooks to the training episodes' embeddings of all games; those that trained
    together with the encoder are taken over as they are."""
    if run.at("encoder").cfg.commitment_costs:
        return _adopt(run)
    embeddings = encoder.embeddings(run.at("encoder"))
    data = replay.open_run(run)
    rows = np.flatnonzero(data.is_train)

    def batches(i: int):
        picks = runs.rng_for(run.seed, "tokenizer", i).choice(rows, run.cfg.batch_size)
        return {"embeddings": torch.from_numpy(embeddings[np.sort(picks)])}

    model = build(run)
    record = training.train(model, batches, run)
    return model, record


def _adopt(run: Run) -> tuple[ResidualVQ, dict]:
    """The encoder's own codebooks as this stage's model."""
    model, source = build(run), encoder.load(run).quantizer
    if source.codebooks.shape != model.codebooks.shape:
        raise InputError(f"the encoder trained codebooks of shape {tuple(source.codebooks.shape)}; "
                         f"the tokenizer's config asks for {tuple(model.codebooks.shape)}")
    model.load_state_dict(source.state_dict())
    with runs.exclusive(run):
        record = runs.finished_or_cleared(run) or runs.save_model(run, model, wall_seconds=0.0)
    return model.to(runs.device()).eval(), record


def load(run: Run) -> ResidualVQ:
    """The trained tokenizer; raises InputError when it is missing or damaged."""
    return runs.load_model(run.at("tokenizer"), build(run))


def tokens(run: Run) -> np.ndarray:
    """(N, L) int16 codes of every stored step, all games in order; made once, then mapped."""
    run = run.at("tokenizer")

    def make():
        return encode_all(load(run), encoder.embeddings(run.at("encoder")))

    return runs.cached_array(run, "tokens", make)


def encode_all(model: ResidualVQ, embeddings) -> np.ndarray:
    """embeddings (N, D) -> codes (N, L) int16, in pieces that fit the memory."""
    parts = [model.encode(torch.tensor(embeddings[i:i + ENCODE_ROWS]).to(runs.device()))
             for i in range(0, len(embeddings), ENCODE_ROWS)]
    return torch.cat(parts).to(torch.int16).cpu().numpy()


@torch.no_grad()
def measure(run: Run, model: ResidualVQ) -> list[dict]:
    """Metric rows on held-out episodes: per level, pooled and per game."""
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
    rows += _sharing_rows(codes[held_out].astype(np.int64), data.game_idx[held_out], run)
    for game in run.games:
        rows += _state_rows(codes, data, game, run.seed)
    rows += (game_state.bit_rows(run) + game_state.place_rows(run)
             + _same_tokens_rows(run, codes))
    for level in range(codes.shape[1]):
        information = mutual_information(codes[held_out, level], data.game_idx[held_out])
        rows.append(row(f"l{level}_game_information", information,
                        baseline=entropy(data.game_idx[held_out])))
    return rows


def probe(run: Run, model: ResidualVQ) -> list[dict]:
    """Probes of the true state on quantized vectors, beside the continuous embeddings."""
    source, codes = encoder.embeddings(run.at("encoder")), tokens(run)
    return game_state.probe_rows(run, {"quantized": lambda picks: quantized(model, codes[picks]),
                                       "continuous": lambda picks: source[picks]},
                                 baseline="continuous")


def _sharing_rows(codes, game_idx, run: Run) -> list[dict]:
    """How far the games share codes, per level: frames on shared codes, and shared codes.

    A code is a game's own when at least a threshold of that game's frames use it; it is shared
    when it is every game's. The threshold 0 is the set intersection: one stray use counts.
    """
    rows, games = [], np.unique(game_idx)
    random = runs.rng_for(run.seed, "sharing").integers(0, run.cfg.num_codes, codes.shape)
    for level in range(codes.shape[1]):
        for threshold in SHARED_FROM:
            found = []
            for x in (codes[:, level], random[:, level]):
                counts = np.stack([np.bincount(x[game_idx == game], minlength=run.cfg.num_codes)
                                   for game in games])
                shares = counts / counts.sum(1, keepdims=True)
                is_shared = ((counts > 0) & (shares >= threshold)).all(0)
                found.append((is_shared[x].mean(), is_shared.sum() / run.cfg.num_codes))
            for name, value, base in zip(("shared_frames", "shared_codes"), *found):
                rows.append(row(f"l{level}_{name}[from {threshold:g}]", value, baseline=base))
    return rows


def _state_rows(codes, data, game: str, seed: int) -> list[dict]:
    """What each level's code tells about where things are: mutual information with RAM.

    Mean over the game's coordinates, each cut into STATE_BINS equally frequent bins, on held-out
    rows with the ball in play; the baseline is the same with the bins shuffled (counting alone
    finds some information).
    """
    picks = np.flatnonzero(~data.is_train & data.in_game(game))
    picks = picks[atari.ball_in_play(game, data.ram[picks])]
    places = atari.labels(game, data.ram[picks])
    found = np.zeros((2, codes.shape[1]))
    for name in game_state.COORDINATES[game]:
        column = places[name].astype(float)
        edges = np.unique(np.quantile(column, np.linspace(0, 1, STATE_BINS + 1)[1:-1]))
        bins = np.searchsorted(edges, column, side="right")
        shuffled = runs.rng_for(seed, "state", game, name).permutation(bins)
        for level in range(codes.shape[1]):
            found[:, level] += [mutual_information(codes[picks, level], x)
                                for x in (bins, shuffled)]
    found /= len(game_state.COORDINATES[game])
    return [row(f"l{level}_state_information", value, game=game, baseline=base)
            for level, (value, base) in enumerate(found.T)]


def _same_tokens_rows(run: Run, codes) -> list[dict]:
    """Share of held-out steps whose code is that of the base variant, where both quantize the
    same embeddings and base is made; the baseline is chance."""
    base = dataclasses.replace(run, profile=config.resolve(run.profile.name, games=run.games),
                               variant="base")
    own = [run.at("encoder").identity, run.cfg.num_levels]
    if run.variant == "base" or own != [base.at("encoder").identity, base.cfg.num_levels] or (
            runs.finished(base) is None):
        return []
    held_out = ~replay.open_run(run).is_train
    same = (codes[held_out] == tokens(base)[held_out]).mean(0)
    return [row(f"l{level}_same_as_base", value, baseline=1 / run.cfg.num_codes)
            for level, value in enumerate(same)]


def quantized(model: ResidualVQ, codes: np.ndarray) -> np.ndarray:
    """codes (..., L) -> quantized vectors (..., D) float32."""
    chosen = torch.from_numpy(codes.astype(np.int64)).to(runs.device())
    return model.decode(chosen).cpu().numpy()


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
