"""What codes are worth: use, reconstruction, what they tell of game and state, what is shared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hd import atari
from hd.config import ProbeConfig
from hd.measure import game_state
from hd.quantization import ResidualVQ
from hd.replay import Replay, thin
from hd.run.machine import device
from hd.run.metrics import named
from hd.run.runs import rng_for, row
from hd.tokenizer import quantized

SHARED_FROM = (0, 0.001, 0.01)  # share of a game's frames from which on a code is that game's
STATE_BINS = 8
NEAREST_ROWS = 5000  # of each game, among which the frame nearest to a code is looked for


@torch.no_grad()
def rows_of(data: Replay, codes: np.ndarray, embeddings: np.ndarray, model: ResidualVQ, *,
            num_codes: int, seed: int) -> list[dict]:
    """Rows on test episodes: per level, pooled and per game.

    codes (N, L), embeddings (N, D): of all N steps of data; model: what quantizes them.
    """
    rng = rng_for(seed, "random codes")
    rows = []
    for game in ("all", *data.games):
        picks = np.flatnonzero(data.is_test & data.in_game(game))
        chosen = codes[picks].astype(np.int64)
        random = rng.integers(0, num_codes, chosen.shape)
        same_episode = np.flatnonzero(np.diff(data.episode_ids[picks]) == 0)
        for level in range(chosen.shape[1]):
            rows += _usage_rows(chosen[:, level], random[:, level], game, level, num_codes)
            repeats = [(x[same_episode, level] == x[same_episode + 1, level]).mean()
                       for x in (chosen, random)]
            rows.append(row(f"l{level}_repeat_rate", repeats[0], game=game, baseline=repeats[1]))
        rows += _reconstruction_rows(model, embeddings[picks], game)
    rows += _sharing_rows(codes[data.is_test].astype(np.int64), data.game_idx[data.is_test],
                          num_codes, seed)
    for game in data.games:
        rows += _state_rows(codes, data, game, seed)
    return rows + game_state.bit_rows(data) + game_state.place_rows(data)


def game_rows(data: Replay, codes: np.ndarray) -> list[dict]:
    """What each level's code tells about the game."""
    rows, games = [], data.game_idx[data.is_test]
    for level in range(codes.shape[1]):
        information = mutual_information(codes[data.is_test, level], games)
        rows.append(row(f"l{level}_game_information", information, baseline=entropy(games)))
    return rows


def probe_rows(data: Replay, codes: np.ndarray, embeddings: np.ndarray, model: ResidualVQ, *,
               cfg: ProbeConfig, seed: int) -> list[dict]:
    """Probes of the true state on quantized vectors, beside the continuous embeddings."""
    return game_state.probe_rows(
        data, {"quantized": lambda picks: quantized(model, codes[picks]),
               "continuous": lambda picks: embeddings[picks]},
        baseline="continuous", cfg=cfg, seed=seed)


def _sharing_rows(codes, game_idx, num_codes: int, seed: int) -> list[dict]:
    """How far the games share codes, per level: frames on shared codes, and shared codes.

    A code is a game's own when at least a threshold of that game's frames use it; it is shared
    when it is every game's. The threshold 0 is the set intersection: one stray use counts.
    """
    rows, games = [], np.unique(game_idx)
    random = rng_for(seed, "sharing").integers(0, num_codes, codes.shape)
    for level in range(codes.shape[1]):
        for threshold in SHARED_FROM:
            found = []
            for x in (codes[:, level], random[:, level]):
                counts = np.stack([np.bincount(x[game_idx == game], minlength=num_codes)
                                   for game in games])
                shares = counts / counts.sum(1, keepdims=True)
                is_shared = ((counts > 0) & (shares >= threshold)).all(0)
                found.append((is_shared[x].mean(), is_shared.sum() / num_codes))
            for name, value, base in zip(("shared_frames", "shared_codes"), *found):
                rows.append(row(named(f"l{level}_{name}", at_least=threshold), value,
                                baseline=base))
    return rows


def _state_rows(codes, data, game: str, seed: int) -> list[dict]:
    """What each level's code tells about where things are: mutual information with RAM.

    Mean over the game's coordinates, each cut into STATE_BINS equally frequent bins, on test
    rows with the ball in play; the baseline is the same with the bins shuffled (counting alone
    finds some information).
    """
    picks = np.flatnonzero(data.is_test & data.in_game(game))
    picks = picks[atari.ball_in_play(game, data.ram[picks])]
    places = atari.labels(game, data.ram[picks])
    found = np.zeros((2, codes.shape[1]))
    for name in atari.GAMES[game].coordinates:
        column = places[name].astype(float)
        edges = np.unique(np.quantile(column, np.linspace(0, 1, STATE_BINS + 1)[1:-1]))
        bins = np.searchsorted(edges, column, side="right")
        shuffled = rng_for(seed, "state", game, name).permutation(bins)
        for level in range(codes.shape[1]):
            found[:, level] += [mutual_information(codes[picks, level], x)
                                for x in (bins, shuffled)]
    found /= len(atari.GAMES[game].coordinates)
    return [row(f"l{level}_state_information", value, game=game, baseline=base)
            for level, (value, base) in enumerate(found.T)]


def same_rows(codes: np.ndarray, others: np.ndarray, num_codes: int) -> list[dict]:
    """Share of steps whose code another tokenizer gives them too, codes and others (n, L); the
    baseline is chance."""
    return [row(f"l{level}_same_as_base", value, baseline=1 / num_codes)
            for level, value in enumerate((codes == others).mean(0))]


def _usage_rows(chosen, random, game, level, num_codes):
    def scores(x):
        counts = np.bincount(x, minlength=num_codes)
        return (counts > 0).mean(), np.exp(entropy(x))
    return [row(f"l{level}_{name}", value, game=game, baseline=base)
            for name, value, base in zip(("usage", "perplexity"), scores(chosen), scores(random))]


def _reconstruction_rows(model, embeddings, game):
    """Cosine and variance explained after each level; the baseline is the mean embedding."""
    rows_in = torch.from_numpy(embeddings).to(device())
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


@torch.no_grad()
def most_shared(data: Replay, codes: np.ndarray, embeddings: np.ndarray, codebook: torch.Tensor,
                decode: Callable, *, count: int = 3) -> list[dict]:
    """The coarse codes that all games use most evenly, with what they look like; chosen and shown
    on what is not of test episodes.

    Ranked by the smallest share of frames that any game gives the code, where that ties by the next
    smallest. codebook (K, D) of level 0; decode: vectors (1, D) -> frames (1, 84, 84) uint8. Each:
    code, its shares (games,), what it decodes to alone (84, 84), and each game's real frame whose
    embedding lies nearest to it, by game.
    """
    coarse, found = codes[:, 0].astype(np.int64), []
    seen = {game: data.in_game(game) & ~data.is_test for game in data.games}
    shares = np.stack([np.bincount(coarse[rows], minlength=len(codebook)) / rows.sum()
                       for rows in seen.values()])
    ranked = np.sort(shares, axis=0)
    for code in np.lexsort((*-ranked[::-1],))[:count]:
        nearest = {}
        for game in data.games:
            rows = thin(np.flatnonzero(seen[game]), NEAREST_ROWS)
            distances = np.linalg.norm(embeddings[rows] - codebook[code].cpu().numpy(), axis=1)
            nearest[game] = data.newest(rows[[distances.argmin()]])[0]
        found.append({"code": int(code), "shares": shares[:, code],
                      "decoded": decode(codebook[code][None])[0], "nearest": nearest})
    return found
