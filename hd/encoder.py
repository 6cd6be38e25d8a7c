"""CNN from stacked frames to embeddings, trained by temporal InfoNCE.

The network is Mnih et al. (2015)'s three convolutions with the seed document's head; the loss is
van den Oord et al. (2018), eq. 4, with three choices of negatives. Under the "spatiotemporal"
objective (global-local contrast: Deep InfoMax, Hjelm et al. 2019, for the same step; ST-DIM, Anand
et al. 2019, for the next) an embedding must tell what is at every place of the picture and what
comes next there, so that a small ball counts as much as a large background. What the same network
could know is shown by the "supervised" objective, which reads the emulator's coordinates.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hd import replay
from hd.atari import check_frames
from hd.config import EncoderConfig, InputError, TokenizerConfig
from hd.measure import game_state, probes
from hd.negatives import BATCHES
from hd.quantization import ResidualVQ
from hd.run import runs, training
from hd.run.runs import Run, row
from hd.run.training import Loss

EMBED_ROWS = 1024
SCALED_ROWS = 64  # of pixels that become numbers at once on a CPU
WATCHED_ROWS = 512  # held-out rows of each game whose geometry is watched during training
STRETCH = 64  # consecutive rows that stay together when held-out rows are thinned
PCA_ROWS, PCA_COMPONENTS = 2000, 100
MAPS, PLACES = 64, 7 * 7  # of what the convolutions make of a frame stack


class AtariEncoder(nn.Module):
    """(N, 4, 84, 84) uint8 -> (N, 384) float32 of unit length; 1,881,888 parameters.

    num_coordinates: for the "supervised" objective, how many coordinates one linear layer more
    reads from the embedding; 0 for none. Under the "spatiotemporal" objective two more predict
    the local features of the same step and of the next; none of them is part of what embeds.
    """

    def __init__(self, cfg: EncoderConfig | None = None, *, dim: int = 384,
                 num_coordinates: int = 0):
        super().__init__()
        self.cfg = cfg or EncoderConfig()
        self.convolutions = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3), nn.ReLU(inplace=True), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(3136, 512), nn.ReLU(inplace=True), nn.Linear(512, dim), nn.LayerNorm(dim))
        self.apply(_initialise)
        # Made last, so that the network starts from the same weights under both objectives.
        self.readout = nn.Linear(dim, num_coordinates) if num_coordinates else None
        is_local = self.cfg.objective == "spatiotemporal"
        if is_local and self.cfg.negatives == "single":
            raise InputError('encoder.objective "spatiotemporal" needs encoder.negatives '
                             '"in_batch" or "chunk"; got "single"')
        self.predictors = nn.ModuleList(
            nn.Linear(dim, PLACES * MAPS) for _ in ("same step", "next step") if is_local)
        self.to(memory_format=torch.channels_last)
        costs = self.cfg.commitment_costs
        self.quantizer = ResidualVQ(
            len(costs), TokenizerConfig.num_codes, dim, commitment_costs=costs) if costs else None

    def forward(self, frames):
        """frames (N, 4, 84, 84) uint8, oldest first -> (N, 384) float32, unit length.

        Raises InputError for another shape or type; an array is as good as a tensor.
        """
        return self._embedded(self._convolved(frames))

    def _convolved(self, frames):
        """frames (N, 4, 84, 84) uint8 -> local features (N, MAPS * PLACES)."""
        check_frames(frames)
        return self.convolutions(_scaled(torch.as_tensor(frames), self.head[0].weight.dtype))

    def _embedded(self, features):
        return F.normalize(self.head(features).float(), dim=1)

    def loss(self, batch) -> Loss:
        """batch: frames (M, 4, 84, 84) and for each anchor the rows of itself, its positive and
        what it must tell apart: negatives (N, 1) rows, or excluded (N, N) bool. With targets
        (M, V), NaN where unknown, the mean squared error of reading those instead."""
        features = self._convolved(batch["frames"])
        embeddings, commitment = self._embedded(features), 0.0
        if "targets" in batch:
            return Loss(self._reading_error(embeddings, batch["targets"]))
        if self.quantizer is not None:  # codebooks that train along: contrast what codes keep
            embeddings, _, commitment = self.quantizer(embeddings)
            embeddings = F.normalize(embeddings, dim=1)
        anchors, positives = embeddings[batch["anchor"]], embeddings[batch["positive"]]
        others = {"excluded": batch["excluded"]} if "excluded" in batch else \
            {"negatives": embeddings[batch["negatives"]]}
        loss = self._local_loss(features, anchors, batch) if self.predictors else \
            temporal_infonce(anchors, positives, temperature=self.cfg.temperature, **others)
        similarity = (anchors * positives).sum(1).mean()
        return Loss(loss + commitment, {"positive_similarity": similarity})

    def _local_loss(self, features, anchors, batch):
        """Mean over the same step and the next: at every place, which of the batch's local
        features are those that an anchor's embedding predicts?"""
        local = F.normalize(_places_first(features), dim=2)
        # An anchor is barred from being its own next step; as the same step it is a choice.
        anchor, positive, excluded = (batch[name] for name in ("anchor", "positive", "excluded"))
        is_own = anchor[:, None] == positive[None, :]
        losses = [temporal_infonce(F.normalize(_places_first(predictor(anchors)), dim=2),
                                   local[:, rows], temperature=self.cfg.temperature, excluded=bars)
                  for predictor, rows, bars in zip(self.predictors, (anchor, positive),
                                                   (excluded & ~is_own, excluded))]
        return torch.stack(losses).mean()

    def _reading_error(self, embeddings, targets):
        # Coordinates of a unit vector are about 1/sqrt(dim); a linear layer wants them about 1.
        read = self.readout(embeddings * embeddings.shape[1] ** 0.5).float()
        is_known = ~targets.isnan()
        errors = (read - targets.nan_to_num()).masked_fill(~is_known, 0.0)
        return errors.square().sum() / is_known.sum()


def _scaled(frames, dtype):
    """frames uint8 -> pixels / 255, channels last, in the type that the convolutions read: dtype,
    or autocast's. A slice at a time on a CPU, so that all between stays in its cache."""
    kind = frames.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    out = torch.empty_like(frames, dtype=dtype, memory_format=torch.channels_last)
    rows = SCALED_ROWS if kind == "cpu" else max(1, len(frames))
    for into, pixels in zip(out.split(rows), frames.split(rows)):
        into.copy_(pixels.to(dtype).div_(255))
    return out


def _places_first(rows):
    """(N, MAPS * PLACES) -> (PLACES, N, MAPS) float32."""
    return rows.float().unflatten(1, (MAPS, PLACES)).permute(2, 0, 1)


def temporal_infonce(anchors, positives, *, temperature, negatives=None, excluded=None):
    """Each anchor must pick its own next frame (van den Oord et al. 2018, eq. 4).

    anchors, positives: (N, D), unit length; row i of both comes from the same episode.
    Without negatives row i chooses among the N positives, less those with excluded[i, j]
    ((N, N) bool; the diagonal must be False); both may then be (P, N, D), P such tasks of equal
    weight. With negatives (N, M, D) it chooses between its positive and its own M negatives (the
    seed: M = 1).
    Returns nats, a scalar; an encoder that knows nothing scores the log of the number of choices.
    Raises InputError for other shapes.
    """
    tasks = (2,) if negatives is not None else (2, 3)
    if anchors.shape != positives.shape or anchors.ndim not in tasks:
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
            logits = anchors @ positives.mT / temperature
            if excluded is not None:
                logits = logits.masked_fill(excluded, float("-inf"))
            logits = logits.flatten(0, -2)
            target = torch.arange(anchors.shape[-2], device=anchors.device)
            target = target.repeat(len(logits) // len(target))
        return F.cross_entropy(logits, target)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


# ---- the stage

def chance_loss(run: Run) -> float:
    """What an encoder that knows nothing scores: in nats, the log of the number of choices.

    Under the "supervised" objective 1: the squared deviations of the coordinates from their mean.
    """
    cfg = run.at("encoder").cfg
    if cfg.objective == "supervised":
        return 1.0
    data = replay.open_run(run)
    starts = np.flatnonzero(data.is_train & data.has_next)
    batch = BATCHES[cfg.negatives](runs.rng_for(run.seed, "encoder", 0), starts, data, cfg)
    if "negatives" in batch:
        return float(np.log(1 + batch["negatives"].shape[1]))
    barred = [batch["excluded"]]
    if cfg.objective == "spatiotemporal":
        barred.append(barred[0] & (batch["anchor"][:, None] != batch["positive"][None, :]))
    return float(np.mean([np.log((~bars).sum(1)).mean() for bars in barred]))


def train(run: Run) -> tuple[AtariEncoder, dict]:
    """Train on the training episodes of all games; returns the encoder and the record."""
    data = replay.open_run(run)
    batches = _frames_to_read(run, data) if run.cfg.objective == "supervised" else \
        frames_to_compare(run, data)
    watched = {game: held_out_stretches(data, game, WATCHED_ROWS) for game in data.games}
    runs.seed_everything(run.seed)  # so that no earlier stage decides the initial weights
    model = _network(run)
    record = training.train(model, batches, run, evaluate=lambda m: _geometry(m, data, watched))
    return model, record


def _network(run: Run) -> AtariEncoder:
    """The network of a run's config and games, with new weights."""
    is_supervised = run.cfg.objective == "supervised"
    return AtariEncoder(run.cfg, num_coordinates=(
        game_state.num_coordinates(run.games) if is_supervised else 0))


def frames_to_compare(run: Run, data) -> Callable[[int], dict]:
    """The i-th contrastive batch of training rows of hd.replay.Replay, from i alone."""
    starts = np.flatnonzero(data.is_train & data.has_next)
    make = BATCHES[run.cfg.negatives]

    def batches(i: int):
        batch = make(runs.rng_for(run.seed, "encoder", i), starts, data, run.cfg)
        frames = data.stack(batch.pop("rows"))
        return {"frames": torch.from_numpy(frames),
                **{key: torch.from_numpy(value) for key, value in batch.items()}}

    return batches


def _frames_to_read(run: Run, data) -> Callable[[int], dict]:
    """Random training rows and the standardised coordinates to read from each."""
    targets = game_state.standardised(game_state.coordinates(data, np.arange(len(data))),
                                      data.is_train)
    training_rows = np.flatnonzero(data.is_train)

    def batches(i: int):
        rows = runs.rng_for(run.seed, "encoder", i).choice(training_rows, run.cfg.batch_size)
        return {"frames": torch.from_numpy(data.stack(rows)),
                "targets": torch.from_numpy(targets[rows])}

    return batches


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
    return runs.load_model(run, _network(run))


@torch.no_grad()
def embed_frames(model: AtariEncoder, frames) -> torch.Tensor:
    """frames (N, 4, 84, 84) uint8, stored or just seen -> embeddings (N, 384) float32.

    The one way from frames to embeddings when nothing trains: its precision is that of training
    (hd.run.training.precision), because lower bits decide which code is the nearest.
    """
    device = runs.device()
    dtype = training.precision(model.cfg, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        return model(torch.as_tensor(frames).to(device))


def embed(model: AtariEncoder, data, rows) -> np.ndarray:
    """Embeddings (N, 384) float32 of stored rows (N,), with progress."""
    out = np.empty((len(rows), 384), np.float32)
    for i in runs.progress(range(0, len(rows), EMBED_ROWS), "embedding"):
        out[i:i + EMBED_ROWS] = embed_frames(model, data.stack(rows[i:i + EMBED_ROWS])).cpu()
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
    return _network(run.at("encoder")).to(runs.device()).eval()


def measure(run: Run) -> list[dict]:
    """Geometry of the embeddings on held-out episodes, beside the untrained encoder's."""
    data = replay.open_run(run)
    learned, fresh = embeddings(run), untrained(run)
    embeds = (*fresh.convolutions.parameters(), *fresh.head.parameters())
    rows = [row("parameters", sum(p.numel() for p in embeds), split="train")]
    for game in ("all", *run.games):
        picks, stretches = held_out_stretches(data, game, run.profile.probes.max_rows)
        pair = (learned[picks], embed(fresh, data, picks))
        smooth = [probes.temporal_consistency(x, stretches, seed=run.seed) for x in pair]
        spread = [probes.diversity(x, seed=run.seed) for x in pair]
        rows += [row("temporal_consistency", smooth[0], game=game, baseline=smooth[1]),
                 row("diversity", spread[0], game=game, baseline=spread[1])]
    return rows


def held_out_stretches(data, game: str, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
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
    return game_state.probe_rows(run, {
        "trained": lambda picks: learned[picks],
        "untrained": lambda picks: embed(fresh, data, picks),
        "pixel_pca": lambda picks: pca(data.stack(picks))}, baseline="untrained")
