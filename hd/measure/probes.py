"""What a representation knows about the true state of the game, read from held-out episodes.

Everything here takes arrays, one row per step, and no models. Linear probes follow AtariARI (Anand
et al. 2019, and its released code); a small MLP reads coordinates. Features are standardised with
mean and deviation of the rows a probe is fitted on, unless the config says otherwise for linear
ones: the coordinates of a unit-length embedding are tiny (about 0.05), and the step size would
then decide how much a probe finds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial.distance import pdist
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score, r2_score
from torch import nn
from torch.nn import functional as F

from hd import config
from hd.atari import check_frames
from hd.config import InputError, ProbeConfig
from hd.run.runs import device, rng_for

MIN_ENTROPY = 0.6  # nats; AtariARI leaves out what hardly varies
VALIDATION_SHARE = 1 / 8  # of the training episodes, for early stopping (AtariARI: 10 of 80%)
LR, BATCH, HIDDEN = 5e-3, 256, 256  # of the MLP
CLIP = 5.0  # deviations; else what hardly varied in training upsets a probe when it does in a test
BLOCK = 4096  # rows handled at once when nothing is trained
Variables = Mapping[str, np.ndarray]  # name -> (N,)
# AtariARI's summary categories for the variables of the three games.
CATEGORIES = {
    "agent_localization": ("player_x", "player_y"),
    "small_object_localization": ("ball_x", "ball_y"),
    "other_localization": ("enemy_x", "enemy_y", "sue_x", "sue_y", "inky_x", "inky_y", "pinky_x",
                           "pinky_y", "blinky_x", "blinky_y", "fruit_x", "fruit_y"),
    "score_clock_lives_display": ("score", "player_score", "enemy_score", "num_lives"),
    "misc": ("blocks_hit_count", "block_bit_map", "ghosts_count", "dots_eaten",
             "player_direction"),
}


@dataclass(frozen=True)
class Split:
    """Which rows a probe is fitted on and which it is judged on.

    Raises InputError when an episode is on both sides, a side is empty or a shape does not fit.
    """

    train: np.ndarray  # (N,) bool
    test: np.ndarray  # (N,) bool
    episode_ids: np.ndarray  # (N,)
    frame_keys: np.ndarray | None = None  # (N,), equal where the frames are, see frame_keys

    def __post_init__(self):
        masks = self.train.dtype == self.test.dtype == bool
        if not masks or not self.train.shape == self.test.shape == self.episode_ids.shape:
            raise InputError("a probe needs train and test as bool masks, and with episode_ids one "
                             "entry per row each")
        shared = np.intersect1d(self.episode_ids[self.train], self.episode_ids[self.test])
        num_train, num_test = self.train.sum(), self.test.sum()
        if len(shared) or not num_train or not num_test:
            raise InputError("a probe needs training and test rows of different episodes; got "
                             f"{num_train} and {num_test}, {len(shared)} episodes on both sides")

    def fit_and_validation(self, rows: np.ndarray | None = None, *, seed: int):
        """Training rows (those in rows) as two (N,) masks; 1/8 of the episodes validate.

        Raises InputError when fewer than two training episodes have rows.
        """
        train = self.train if rows is None else self.train & rows
        episodes = np.unique(self.episode_ids[train])
        if len(episodes) < 2:
            raise InputError(f"a probe needs two training episodes or more; got {len(episodes)}")
        count = max(1, round(VALIDATION_SHARE * len(episodes)))
        chosen = rng_for("probe", seed).permutation(episodes)[:count]
        validation = train & np.isin(self.episode_ids, chosen)
        return train & ~validation, validation

    def scorable(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(N,) mask: test rows (those in rows) whose frame occurs in no training row."""
        found = self.test if rows is None else self.test & rows
        if self.frame_keys is not None:
            found = found & ~np.isin(self.frame_keys, self.frame_keys[self.train])
        return found

    def scored(self, rows: np.ndarray | None = None) -> np.ndarray:
        """As scorable; raises InputError when none is left."""
        scored = self.scorable(rows)
        if not scored.any():
            raise InputError(f"none of {self.test.sum()} test rows is usable and not in training")
        return scored


@dataclass(frozen=True)
class Probe:
    """A fitted probe: standardise or not, apply the model, read the variables from its outputs."""

    names: tuple[str, ...]
    mean: torch.Tensor | None  # (D,), of the fitted rows; None: features are taken as they are
    deviation: torch.Tensor | None  # (D,)
    model: nn.Module
    read: Callable[[torch.Tensor], torch.Tensor]  # outputs (N, C) -> (N, V)

    def inputs(self, features: np.ndarray) -> torch.Tensor:
        """(N, D) as they are, or in deviations from the mean of the fitted rows, clipped."""
        if self.mean is None:
            return _tensor(features)
        return ((_tensor(features) - self.mean) / self.deviation).clamp(-CLIP, CLIP)

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """features (N, D) -> name -> (N,) values, in the units of the labels or targets."""
        blocks = self.inputs(features).split(BLOCK)
        read = torch.cat([self.read(self.model(block)) for block in blocks])
        return dict(zip(self.names, read.T.cpu().numpy()))


@dataclass(frozen=True)
class CoordinateScore:
    """How well a coordinate is read on n held-out rows; errors in its own units."""

    r2: float
    median_error: float  # absolute
    baseline_error: float  # the same for always predicting the training mean (whose R2 is <= 0)
    n: int


def f1_of(probe: Probe, features: np.ndarray, labels: Variables, *,
          rows: np.ndarray) -> dict[str, float]:
    """Weighted F1 of a fitted linear probe at rows (N,) bool, its own labels name -> (N,)."""
    return _f1(labels, probe.predict(features[rows]), rows)


def majority_f1(labels: Variables, split: Split) -> dict[str, float]:
    """The baseline of f1_of where frames are new: the most frequent training class."""
    labels, rows = varying_labels(labels, split), split.scored()
    majority = {name: np.bincount(values[split.train]).argmax() for name, values in labels.items()}
    return _f1(labels, {name: np.full(rows.sum(), top) for name, top in majority.items()}, rows)


def varying_labels(labels: Variables, split: Split) -> dict[str, np.ndarray]:
    """Variables with 0.6 nats of entropy or more over both sides; (N, k) labels count as k.

    Raises InputError when none is left.
    """
    single = {}
    for name, values in labels.items():
        single |= {name: values} if values.ndim == 1 else {
            f"{name}_{k}": column for k, column in enumerate(values.T)}
    used = split.train | split.test
    varying = {name: values for name, values in single.items()
               if entropy(np.bincount(values[used])) >= MIN_ENTROPY}
    if not varying:
        raise InputError(f"no label of {', '.join(labels)} has {MIN_ENTROPY} nats of entropy")
    return varying


def fit_linear_probe(features: np.ndarray, labels: Variables, split: Split, *, cfg: ProbeConfig,
                     seed: int) -> Probe:
    """One linear softmax per variable, all at once, fitted on training episodes only.

    features (N, D); labels name -> (N,) uint8. Each softmax has the classes of the fitted rows, not
    all 256: what no row has can only be pushed down, at a cost in time. Starts at the class
    frequencies; each variable keeps the epoch of its own best validation accuracy.
    """
    sides = split.fit_and_validation(seed=seed)
    values = np.stack(list(labels.values()), axis=1)
    fitted, judged = (torch.as_tensor(values[side], device=device()) for side in sides)
    classes, ids, counts = zip(*(column.unique(return_inverse=True, return_counts=True)
                                 for column in fitted.T))
    sizes = [len(known) for known in classes]
    model = nn.utils.skip_init(nn.Linear, features.shape[1], sum(sizes))
    model.weight.data.zero_()
    model.bias.data = torch.cat(counts).div(len(fitted)).log()

    def loss(outputs, wanted):
        parts = zip(outputs.split(sizes, dim=1), wanted.T)
        return sum(F.cross_entropy(part, column) for part, column in parts)

    def read(outputs):
        parts = zip(outputs.split(sizes, dim=1), classes)
        return torch.stack([known[part.argmax(1)] for part, known in parts], dim=1)

    def accuracy(outputs):
        return (read(outputs) == judged).float().mean(0)

    owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    task = _Task(tuple(labels), torch.stack(ids, dim=1), loss, read, accuracy, owner)
    return _fit(model, features, sides, task, cfg=cfg, seed=seed)


def category_means(game: str, f1: Mapping[str, float]) -> dict[str, float]:
    """Mean F1 of each of AtariARI's categories that has a variable; "overall", the mean of those.

    f1: name -> F1; _<number> at a name's end is ignored. Raises InputError for an unknown name.
    """
    category_of = {name: category for category, names in CATEGORIES.items() for name in names}
    members = {category: [] for category in CATEGORIES}
    for name, value in f1.items():
        stem = re.sub(r"_\d+$", "", name)
        config.allowed(f"state variable of {game}", stem, category_of)
        members[category_of[stem]].append(value)
    means = {category: float(np.mean(values)) for category, values in members.items() if values}
    return {**means, "overall": float(np.mean(list(means.values())))}


def read_coordinates(probe: Probe, features: np.ndarray, targets: Variables, *,
                     fitted: np.ndarray, scored: np.ndarray) -> dict[str, CoordinateScore]:
    """R2 and median absolute error of a fitted probe at scored (N,) bool, per coordinate; fitted:
    what its baseline knows."""
    scores = {}
    for name, read in probe.predict(features[scored]).items():
        truth = targets[name][scored].astype(np.float64)
        mean = targets[name][fitted].mean(dtype=np.float64)
        errors = [float(np.median(np.abs(truth - guess))) for guess in (read, mean)]
        scores[name] = CoordinateScore(float(r2_score(truth, read)), *errors, len(truth))
    return scores


def fit_coordinate_probe(features: np.ndarray, targets: Variables, split: Split, *,
                         rows: np.ndarray, cfg: ProbeConfig, seed: int) -> Probe:
    """An MLP D -> 256 -> 256 -> V on standardised targets, fitted on training rows in rows only.

    features (N, D); targets name -> (N,); rows (N,) bool: where the targets mean something, for
    instance with the ball in play. Keeps the epoch with the smallest squared error on validation
    episodes. Raises InputError when too few episodes are left, or a feature is not finite.
    """
    sides = split.fit_and_validation(rows, seed=seed)
    values = np.stack(list(targets.values()), axis=1)
    fitted, judged = (_tensor(values[side]) for side in sides)
    centre, spread = _mean_and_deviation(fitted)
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(features.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, len(targets)))

    def read(outputs):
        return outputs * spread + centre

    def closeness(outputs):
        return -F.mse_loss(outputs, (judged - centre) / spread).reshape(1)

    task = _Task(tuple(targets), (fitted - centre) / spread, F.mse_loss, read, closeness)
    cfg = replace(cfg, standardise=True, lr=LR, batch_size=BATCH)
    return _fit(model, features, sides, task, cfg=cfg, seed=seed)


def state_correlation(features: np.ndarray, targets: Variables, rows: np.ndarray) -> float:
    """The seed document's measure: best |Pearson r| over the D dimensions, mean over the targets.

    features (N, D); rows (N,) bool. The best of D on the very rows it is chosen on: above 0 for
    any representation, comparable only at equal D and N. What is constant counts as 0.
    """
    columns = np.column_stack([features[rows], *(target[rows] for target in targets.values())])
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(columns, rowvar=False))
    return float(np.abs(r[-len(targets):, :-len(targets)]).max(axis=1).mean())


def temporal_consistency(embeddings: np.ndarray, episode_ids: np.ndarray, *, seed: int,
                         stride: int = 1) -> float:
    """Mean distance of embeddings stride rows apart in an episode / diversity (any two rows).

    embeddings (N, D), the rows of an episode consecutive and in order; episode_ids (N,).
    0: nothing moves; 1: neighbours are strangers; nan: all is one point. Raises InputError when
    no episode has a pair.
    """
    same = episode_ids[stride:] == episode_ids[:-stride]
    if not same.any():
        raise InputError(f"temporal consistency needs an episode of more than {stride} rows")
    steps = np.linalg.norm((embeddings[stride:] - embeddings[:-stride])[same], axis=1)
    strangers = diversity(embeddings, seed=seed)
    return float(steps.mean(dtype=np.float64)) / strangers if strangers else float("nan")


def diversity(embeddings: np.ndarray, *, seed: int, num: int = 1000) -> float:
    """Mean Euclidean distance over all pairs of num random rows (all of them if N <= num).

    embeddings (N, D). Uncorrelated unit vectors give sqrt(2), a collapsed encoder 0.
    """
    chosen = rng_for("diversity", seed).permutation(len(embeddings))[:num]
    return float(pdist(embeddings[chosen]).mean())


def pixel_pca(fit_frames: np.ndarray, num_components: int) -> Callable[[np.ndarray], np.ndarray]:
    """PCA of pixels as a representation: frames (N, 4, 84, 84) uint8 -> (N, C) float32.

    fit_frames (M, 4, 84, 84) uint8, M >= C. Works on 42x42 means of 2x2 pixels (7,056 numbers a
    row: four times fewer, and a ball still shows) by randomized SVD with a fixed seed.
    """
    pca = PCA(num_components, svd_solver="randomized", iterated_power=2, random_state=0)
    pca = pca.fit(_halved(fit_frames))
    return lambda frames: np.concatenate(
        [pca.transform(_halved(frames[i:i + BLOCK])) for i in range(0, len(frames), BLOCK)])


def frame_keys(frames: np.ndarray) -> np.ndarray:
    """(N, ...) uint8 -> (N,) uint64, equal where rows are byte-identical (64 bits of BLAKE2b)."""
    digests = (hashlib.blake2b(np.ascontiguousarray(row), digest_size=8).digest() for row in frames)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


@dataclass(frozen=True)
class _Task:
    names: tuple[str, ...]
    wanted: torch.Tensor  # (N, V), for the loss
    loss: Callable  # outputs, wanted -> scalar
    read: Callable  # outputs -> (N, V)
    score: Callable  # outputs on the validation rows -> (S,), larger is better
    owner: torch.Tensor | None = None  # which score each row of a parameter answers to; None: one


def _fit(model: nn.Module, features: np.ndarray, sides: tuple, task: _Task, *, cfg: ProbeConfig,
         seed: int) -> Probe:
    """Adam with early stopping; keeps the best epoch, for each score apart."""
    scale = _mean_and_deviation(_tensor(features[sides[0]])) if cfg.standardise else (None, None)
    probe = Probe(task.names, *scale, model.to(device()), task.read)
    inputs, validation = (probe.inputs(features[side]) for side in sides)
    owner = torch.zeros(1, dtype=torch.long) if task.owner is None else task.owner
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr, fused=True)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.2, patience=max(1, cfg.patience // 3), threshold=0)
    generator = torch.Generator().manual_seed(seed)
    best, best_scores, stale = model.state_dict(), -torch.inf, 0
    for _ in range(cfg.epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(cfg.batch_size):
            optimizer.zero_grad()
            task.loss(model(inputs[batch]), task.wanted[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            scores = task.score(model(validation))
        improved = scores > best_scores
        best_scores = torch.where(improved, scores, best_scores)
        mask = improved[owner]
        best = {name: torch.where(mask.view(-1, *[1] * (now.ndim - 1)), now, best[name])
                for name, now in model.state_dict().items()}
        plateau.step(scores.mean().item())
        stale = 0 if improved.any() else stale + 1
        if stale >= cfg.patience:
            break
    model.load_state_dict(best)
    return probe


def _mean_and_deviation(values):
    """Over rows; a column that does not vary has deviation 1."""
    deviation = values.std(0, correction=0)
    return values.mean(0), deviation.where(deviation > 1e-6, torch.ones_like(deviation))


def _tensor(values) -> torch.Tensor:
    values = torch.as_tensor(np.array(values, dtype=np.float32), device=device())
    if not values.isfinite().all():
        raise InputError("the representation to be probed has values that are not finite")
    return values


def _f1(labels, guesses, rows):
    return {name: float(f1_score(labels[name][rows], guess, average="weighted"))
            for name, guess in guesses.items()}


def _halved(frames):
    """(N, 4, 84, 84) uint8 -> (N, 7056) float32 in [0, 1]."""
    check_frames(frames)
    pairs = frames[..., 0::2].astype(np.uint16) + frames[..., 1::2]
    sums = pairs[..., 0::2, :] + pairs[..., 1::2, :]
    return sums.reshape(len(frames), -1) * np.float32(1 / 1020)
