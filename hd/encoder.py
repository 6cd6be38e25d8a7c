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

from hd.atari import check_frames
from hd.config import EncoderConfig, InputError, TokenizerConfig
from hd.quantization import ResidualVQ
from hd.replay import Replay
from hd.run import training
from hd.run.machine import device
from hd.run.runs import Run, progress, rng_for, seed_everything
from hd.run.training import Loss, Unkept

EMBED_ROWS = 1024
SCALED_ROWS = 64  # of pixels that become numbers at once on a CPU
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


# ---- training and use

def network(cfg: EncoderConfig, num_coordinates: int = 0) -> AtariEncoder:
    """The encoder of a config, with new weights. num_coordinates: how many coordinates the
    "supervised" objective reads; other objectives read none."""
    is_supervised = cfg.objective == "supervised"
    return AtariEncoder(cfg, num_coordinates=num_coordinates if is_supervised else 0)


def train(cfg: EncoderConfig, data: Replay, run: Run | Unkept, *,
          targets: np.ndarray | None = None,
          evaluate: Callable[[AtariEncoder], dict] | None = None) -> tuple[AtariEncoder, dict]:
    """Train on the training episodes of all games; returns the encoder and the record.

    targets (N, V) float32, NaN where unknown: what the "supervised" objective reads from each row.
    evaluate: what is watched while training, see hd.run.training.train.
    """
    if cfg.objective == "supervised":
        if targets is None:
            raise InputError('encoder.objective "supervised" needs targets to read')
        batches = _frames_to_read(cfg, data, targets, run.seed)
    else:
        batches = frames_to_compare(cfg, data, run.seed)
    seed_everything(run.seed)  # so that no earlier stage decides the initial weights
    model = network(cfg, 0 if targets is None else targets.shape[1])
    record = training.train(model, batches, cfg, run, evaluate=evaluate)
    return model, record


def untrained(cfg: EncoderConfig, seed: int, num_coordinates: int = 0) -> AtariEncoder:
    """The baseline: the same network before training, in eval mode, on the device."""
    torch.manual_seed(seed)
    return network(cfg, num_coordinates).to(device()).eval()


# ---- which frames are to be told apart: of a generator, the training rows with a next one, all
# rows and the config, the row numbers and the positions in them that AtariEncoder.loss takes

def _single_batch(rng, starts, data, cfg: EncoderConfig) -> dict:
    """The seed's triples: a row, the next row, and any row at least min_distance away."""
    anchor = rng.choice(starts, cfg.batch_size)
    negative = rng.choice(starts, cfg.batch_size)
    while (near := np.abs(negative - anchor) < cfg.min_distance).any():
        negative[near] = rng.choice(starts, near.sum())
    order = np.arange(cfg.batch_size)
    return {"rows": np.concatenate([anchor, anchor + 1, negative]), "anchor": order,
            "positive": order + cfg.batch_size, "negatives": order[:, None] + 2 * cfg.batch_size}


def _in_batch(rng, starts, data, cfg: EncoderConfig) -> dict:
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


def _chunk_batch(rng, starts, data, cfg: EncoderConfig) -> dict:
    """Chunks of consecutive rows; negatives are the other rows of the anchor's own chunk."""
    num_chunks = max(1, cfg.batch_size // cfg.chunk)
    first = rng.choice(data.chunk_starts(cfg.chunk), num_chunks)
    rows = (first[:, None] + np.arange(cfg.chunk)).ravel()
    inside = np.arange(num_chunks * cfg.chunk).reshape(num_chunks, cfg.chunk)
    anchor, positive = inside[:, :-1].ravel(), inside[:, 1:].ravel()
    chunk = anchor // cfg.chunk
    excluded = (chunk[:, None] != chunk[None, :]) | (anchor[:, None] == positive[None, :])
    return {"rows": rows, "anchor": anchor, "positive": positive, "excluded": excluded}


BATCHES = {"single": _single_batch, "in_batch": _in_batch, "chunk": _chunk_batch}


def frames_to_compare(cfg: EncoderConfig, data: Replay, seed: int) -> Callable[[int], dict]:
    """The i-th contrastive batch of training rows, from i alone."""
    starts = np.flatnonzero(data.is_train & data.has_next)
    make = BATCHES[cfg.negatives]

    def batches(i: int):
        batch = make(rng_for(seed, "encoder", i), starts, data, cfg)
        frames = data.stack(batch.pop("rows"))
        return {"frames": torch.from_numpy(frames),
                **{key: torch.from_numpy(value) for key, value in batch.items()}}

    return batches


def _frames_to_read(cfg: EncoderConfig, data: Replay, targets, seed) -> Callable[[int], dict]:
    """Random training rows and what to read from each."""
    training_rows = np.flatnonzero(data.is_train)

    def batches(i: int):
        rows = rng_for(seed, "encoder", i).choice(training_rows, cfg.batch_size)
        return {"frames": torch.from_numpy(data.stack(rows)),
                "targets": torch.from_numpy(targets[rows])}

    return batches


def chance_loss(cfg: EncoderConfig, data: Replay, seed: int) -> float:
    """What an encoder that knows nothing scores: in nats, the log of the number of choices.

    Under the "supervised" objective 1: the squared deviations of the coordinates from their mean.
    """
    if cfg.objective == "supervised":
        return 1.0
    starts = np.flatnonzero(data.is_train & data.has_next)
    batch = BATCHES[cfg.negatives](rng_for(seed, "encoder", 0), starts, data, cfg)
    if "negatives" in batch:
        return float(np.log(1 + batch["negatives"].shape[1]))
    barred = [batch["excluded"]]
    if cfg.objective == "spatiotemporal":
        barred.append(barred[0] & (batch["anchor"][:, None] != batch["positive"][None, :]))
    return float(np.mean([np.log((~bars).sum(1)).mean() for bars in barred]))


@torch.no_grad()
def embed_frames(model: AtariEncoder, frames) -> torch.Tensor:
    """frames (N, 4, 84, 84) uint8, stored or just seen -> embeddings (N, 384) float32.

    The one way from frames to embeddings when nothing trains: its precision is that of training
    (hd.run.training.precision), because lower bits decide which code is the nearest.
    """
    with training.autocast(model.cfg):
        return model(torch.as_tensor(frames).to(device()))


def embed(model: AtariEncoder, data: Replay, rows) -> np.ndarray:
    """Embeddings (N, 384) float32 of stored rows (N,), with progress."""
    out = np.empty((len(rows), 384), np.float32)
    for i in progress(range(0, len(rows), EMBED_ROWS), "embedding"):
        out[i:i + EMBED_ROWS] = embed_frames(model, data.stack(rows[i:i + EMBED_ROWS])).cpu()
    return out
