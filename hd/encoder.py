"""CNN from stacked frames to embeddings, trained by temporal InfoNCE.

The network is Mnih et al. (2015)'s three convolutions with the seed document's head; the loss is
van den Oord et al. (2018), eq. 4, with three choices of negatives.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hd import atari, probes, replay, runs, training
from hd.config import EncoderConfig, InputError, TokenizerConfig
from hd.quantization import ResidualVQ
from hd.runs import Run, row
from hd.training import Loss

EMBED_ROWS = 1024
WATCHED_ROWS = 512  # held-out rows of each game whose geometry is watched during training
STRETCH = 64  # consecutive rows that stay together when held-out rows are thinned
PCA_ROWS, PCA_COMPONENTS = 2000, 100
COORDINATES = {  # read by a small MLP; ball_x is the honest one, the opponent betrays ball_y
    "pong": ("player_y", "enemy_y", "ball_x", "ball_y"),
    "breakout": ("player_x", "ball_x", "ball_y"),
    "ms_pacman": ("player_x", "player_y", "blinky_x", "blinky_y"),
}


class AtariEncoder(nn.Module):
    """(N, 4, 84, 84) uint8 -> (N, 384) float32 of unit length; 1,881,888 parameters."""

    def __init__(self, cfg: EncoderConfig | None = None, *, dim: int = 384):
        super().__init__()
        self.cfg = cfg or EncoderConfig()
        self.convolutions = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3), nn.ReLU(inplace=True), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(3136, 512), nn.ReLU(inplace=True), nn.Linear(512, dim), nn.LayerNorm(dim))
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)
        costs = self.cfg.commitment_costs
        self.quantizer = ResidualVQ(
            len(costs), TokenizerConfig.num_codes, dim, commitment_costs=costs) if costs else None

    def forward(self, frames):
        """frames (N, 4, 84, 84) uint8, oldest first -> (N, 384) float32, unit length.

        Raises InputError for another shape or type.
        """
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1:] != (4, 84, 84):
            raise InputError(f"frames must be uint8 of shape (N, 4, 84, 84), oldest frame first; "
                             f"got {frames.dtype} of shape {tuple(frames.shape)}")
        x = frames.to(self.head[0].weight.dtype).div_(255)
        x = self.convolutions(x.contiguous(memory_format=torch.channels_last))
        return F.normalize(self.head(x).float(), dim=1)

    def loss(self, batch) -> Loss:
        """batch: frames (M, 4, 84, 84) and for each anchor the rows of itself, its positive and
        what it must tell apart: negatives (N, 1) rows, or excluded (N, N) bool."""
        embeddings, commitment = self(batch["frames"]), 0.0
        if self.quantizer is not None:  # codebooks that train along: contrast what codes keep
            embeddings, _, commitment = self.quantizer(embeddings)
            embeddings = F.normalize(embeddings, dim=1)
        anchors, positives = embeddings[batch["anchor"]], embeddings[batch["positive"]]
        others = {"excluded": batch["excluded"]} if "excluded" in batch else \
            {"negatives": embeddings[batch["negatives"]]}
        loss = temporal_infonce(anchors, positives, temperature=self.cfg.temperature, **others)
        similarity = (anchors * positives).sum(1).mean()
        return Loss(loss + commitment, {"positive_similarity": similarity})


def temporal_infonce(anchors, positives, *, temperature, negatives=None, excluded=None):
    """Each anchor must pick its own next frame (van den Oord et al. 2018, eq. 4).

    anchors, positives: (N, D), unit length; row i of both comes from the same episode.
    Without negatives row i chooses among the N positives, less those with excluded[i, j]
    ((N, N) bool; the diagonal must be False). With negatives (N, M, D) it chooses between its
    positive and its own M negatives (the seed: M = 1).
    Returns nats, a scalar; an encoder that knows nothing scores the log of the number of choices.
    Raises InputError for other shapes.
    """
    if anchors.shape != positives.shape or anchors.ndim != 2:
        raise InputError(f"anchors and positives must both be (N, D); got {tuple(anchors.shape)} "
                         f"and {tuple(positives.shape)}")
    if negatives is not None and (negatives.ndim != 3 or negatives.shape[::2] != anchors.shape):
        raise InputError(f"negatives must be (N, M, D) with N, D = {tuple(anchors.shape)}; got "
                         f"{tuple(negatives.shape)}")
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, positives = anchors.float(), positives.float()
        if negatives is not None:
            positive = (anchors * positives).sum(1, keepdim=True)
            negative = torch.einsum("nd,nmd->nm", anchors, negatives.float())
            logits = torch.cat([positive, negative], 1) / temperature
            target = torch.zeros(len(anchors), dtype=torch.long, device=anchors.device)
        else:
            logits = anchors @ positives.T / temperature
            if excluded is not None:
                logits = logits.masked_fill(excluded, float("-inf"))
            target = torch.arange(len(anchors), device=anchors.device)
        return F.cross_entropy(logits, target)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


# ---- batches: which frames are anchors, positives and negatives

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


# ---- the stage

def chance_loss(run: Run) -> float:
    """Nats that an encoder which knows nothing scores: the log of the number of choices."""
    data, cfg = replay.open_run(run), run.at("encoder").cfg
    starts = np.flatnonzero(data.is_train & data.has_next)
    batch = BATCHES[cfg.negatives](runs.rng_for(run.seed, "encoder", 0), starts, data, cfg)
    if "negatives" in batch:
        return float(np.log(1 + batch["negatives"].shape[1]))
    return float(np.log((~batch["excluded"]).sum(1)).mean())


def ball_column(data, rows) -> np.ndarray:
    """(n,) float: RAM's ball_x at stored rows; NaN without a ball in play."""
    columns = np.full(len(rows), np.nan)
    for index, game in enumerate(data.games):
        here = np.flatnonzero(data.game_idx[rows] == index)
        ram = data.ram[rows[here]]
        if "ball_x" in atari.GAMES[game].labels:
            column = atari.labels(game, ram)["ball_x"]
            columns[here] = np.where(atari.ball_in_play(game, ram), column, np.nan)
    return columns


def train(run: Run) -> tuple[AtariEncoder, dict]:
    """Train on the training episodes of all games; returns the encoder and the record."""
    data = replay.open_run(run)
    starts = np.flatnonzero(data.is_train & data.has_next)
    make = BATCHES[run.cfg.negatives]

    def batches(i: int):
        batch = make(runs.rng_for(run.seed, "encoder", i), starts, data, run.cfg)
        frames = data.stack(batch.pop("rows"))
        return {"frames": torch.from_numpy(frames),
                **{key: torch.from_numpy(value) for key, value in batch.items()}}

    watched = {game: _stretches(data, game, WATCHED_ROWS) for game in data.games}
    runs.seed_everything(run.seed)  # so that no earlier stage decides the initial weights
    model = AtariEncoder(run.cfg)
    record = training.train(model, batches, run, evaluate=lambda m: _geometry(m, data, watched))
    return model, record


def _geometry(model, data, watched: dict) -> dict:
    """Diversity and temporal consistency within each game on held-out rows, while training."""
    values = {}
    for game, (picks, stretches) in watched.items():
        found = embed(model, data, picks)
        values[f"val_diversity[{game}]"] = probes.diversity(found, seed=0)
        values[f"val_temporal_consistency[{game}]"] = probes.temporal_consistency(
            found, stretches, seed=0)
    return values


def load(run: Run) -> AtariEncoder:
    """The trained encoder; raises InputError when it is missing or damaged."""
    run = run.at("encoder")
    return runs.load_model(run, AtariEncoder(run.cfg))


@torch.no_grad()
def embed(model: AtariEncoder, data, rows) -> np.ndarray:
    """Embeddings (N, 384) float32 of stored rows (N,), with progress."""
    out = np.empty((len(rows), 384), np.float32)
    device = runs.device()
    dtype = training.precision(model.cfg, device)
    for i in runs.progress(range(0, len(rows), EMBED_ROWS), "embedding"):
        frames = torch.from_numpy(data.stack(rows[i:i + EMBED_ROWS])).to(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            out[i:i + EMBED_ROWS] = model(frames).cpu().numpy()
    return out


def embeddings(run: Run) -> np.ndarray:
    """(N, 384) float32 of every stored step, all games in order; made once, then mapped."""
    run = run.at("encoder")

    def make():
        data = replay.open_run(run)
        return embed(load(run), data, np.arange(len(data)))

    return runs.cached_array(run, "embeddings", make)


def untrained(run: Run) -> AtariEncoder:
    """The baseline: the same network before training."""
    torch.manual_seed(run.seed)
    return AtariEncoder(run.at("encoder").cfg).to(runs.device()).eval()


def measure(run: Run) -> list[dict]:
    """Geometry of the embeddings on held-out episodes, beside the untrained encoder's."""
    data = replay.open_run(run)
    learned, fresh = embeddings(run), untrained(run)
    rows = [row("parameters", sum(p.numel() for p in fresh.parameters()), split="train")]
    for game in ("all", *run.games):
        picks, stretches = _stretches(data, game, run.profile.probes.max_rows)
        pair = (learned[picks], embed(fresh, data, picks))
        smooth = [probes.temporal_consistency(x, stretches, seed=run.seed) for x in pair]
        spread = [probes.diversity(x, seed=run.seed) for x in pair]
        rows += [row("temporal_consistency", smooth[0], game=game, baseline=smooth[1]),
                 row("diversity", spread[0], game=game, baseline=spread[1])]
    return rows


def _stretches(data, game: str, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out rows in order, thinned by whole stretches of one episode; and each row's stretch."""
    picks = np.flatnonzero(~data.is_train & data.in_game(game))
    every = -(-len(picks) // max_rows)
    picks = picks[(np.arange(len(picks)) // STRETCH) % every == 0]
    begins = (np.diff(picks, prepend=-2) != 1) | (data.starts[picks] == picks)
    return picks, np.cumsum(begins)


def probe(run: Run) -> list[dict]:
    """Probes of the true state on the trained encoder, the untrained one and PCA of pixels."""
    data = replay.open_run(run)
    learned, fresh = embeddings(run), untrained(run)
    fit = runs.rng_for(run.seed, "pca").choice(np.flatnonzero(data.is_train), PCA_ROWS)
    pca = probes.pixel_pca(data.stack(np.sort(fit)), PCA_COMPONENTS)
    return probe_rows(run, {
        "trained": lambda picks: learned[picks],
        "untrained": lambda picks: embed(fresh, data, picks),
        "pixel_pca": lambda picks: pca(data.stack(picks))}, baseline="untrained")


def probe_rows(run: Run, representations: dict, *, baseline: str) -> list[dict]:
    """What representations (name -> function from stored rows (N,) to features (N, D)) know.

    The first one's scores are the rows' values, those of `baseline` stand beside them; every
    other one has rows of its own, named metric[representation].
    """
    data, cfg, rows = replay.open_run(run), run.profile.probes, []
    main = next(iter(representations))
    for game in run.games:
        scores = {}
        picks = np.flatnonzero(data.in_game(game))
        picks = picks[::-(-len(picks) // cfg.max_rows)]
        labels = atari.labels(game, data.ram[picks])
        in_play = atari.ball_in_play(game, data.ram[picks])
        split = probes.Split(data.is_train[picks], ~data.is_train[picks],
                             data.episode_ids[picks], probes.frame_keys(data.stack(picks)))
        varying = probes.varying_labels(labels, split)
        for name, represent in representations.items():
            features = represent(picks)
            f1 = probes.f1_scores(features, varying, split, cfg=cfg, seed=run.seed)
            scores[name] = {f"f1_{key}": value
                            for key, value in probes.category_means(game, f1).items()}
            places = {key: labels[key] for key in COORDINATES[game]}
            read = probes.coordinate_scores(features, places, split, rows=in_play, cfg=cfg,
                                            seed=run.seed)
            scores[name] |= {f"r2_{key}": score.r2 for key, score in read.items()}
            scores[name] |= {f"error_{key}": score.median_error for key, score in read.items()}
            scores[name]["state_correlation"] = probes.state_correlation(
                features, places, in_play & split.test)
        majority = probes.category_means(game, probes.majority_f1(varying, split))
        scores["majority"] = {f"f1_{key}": value for key, value in majority.items()}
        for name, metrics in scores.items():
            suffix = "" if name == main else f"[{name}]"
            rows += [row(key + suffix, value, game=game,
                         baseline=scores[baseline].get(key) if name == main else None)
                     for key, value in metrics.items()]
    return rows
