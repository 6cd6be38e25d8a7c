"""Frozen DINOv2 (Oquab et al. 2023) as a representation of game frames, beside our encoder.

The weights are the user's own: the environment variable HD_DINOV2 names a folder with DINOv2
ViT-S/14 in Hugging Face format. Nothing is downloaded and nothing is unpickled. A vision
transformer is slow without an accelerator, so it sees about 2000 rows a game (PROBE_ROWS,
GEOMETRY_ROWS and SEED_SAMPLE below). Its rows are named metric[dinov2]; the trained encoder judged
on the very same rows is metric[thinned], and the baseline of both is the untrained encoder there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hd import encoder
from hd.atari import check_frames
from hd.config import InputError, ProbeConfig
from hd.measure import embeddings, game_state, probes, seed_protocol
from hd.replay import Replay
from hd.run import runs
from hd.run.metrics import named, parsed
from hd.run.runs import Run, row
from hd.run.storage import sha256_of, write_atomically, write_json

VARIABLE = "HD_DINOV2"
FILES = ("config.json", "model.safetensors")
WANTED = {"model_type": "dinov2", "hidden_size": 384, "patch_size": 14}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours
SIZE, BATCH = 224, 64  # pixels a side; frames at once
PROBE_ROWS, GEOMETRY_ROWS = 1200, 256  # a game
SEED_SAMPLE = {"max_pairs": 100, "num_random": 500}
KEPT_SEED_METRICS = ("seed_temporal_consistency", "seed_temporal_consistency_mean",
                     "seed_diversity", "seed_state_correlation",
                     named("seed_state_correlation", "columns"), "seed_pair_correlation")


def folder() -> Path | None:
    """The folder that HD_DINOV2 names, checked; None where it names none.

    Raises InputError when a file is missing or the weights are another model's.
    """
    if not os.environ.get(VARIABLE):
        return None
    place = Path(os.environ[VARIABLE])
    if missing := [name for name in FILES if not (place / name).is_file()]:
        pickled = "; a pytorch_model.bin is never unpickled, convert it to safetensors" \
            if (place / "pytorch_model.bin").exists() else ""
        raise InputError(f"{VARIABLE} must name a folder with {' and '.join(FILES)}; in "
                         f"{place.name or place} there is no {missing[0]}{pickled}")
    try:
        settings = json.loads((place / FILES[0]).read_text(encoding="utf-8"))
        found = {name: settings.get(name) for name in WANTED}
    except (OSError, ValueError, AttributeError):
        raise InputError(f"{VARIABLE}: {FILES[0]} in {place.name} cannot be read as JSON") from None
    if found != WANTED:
        raise InputError(f"{VARIABLE} must hold DINOv2 ViT-S/14, {_listed(WANTED)}; "
                         f"got {_listed(found)}")
    return place


def _listed(settings: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def load(place: Path) -> torch.nn.Module:
    """The frozen model of a folder, in eval mode, on the device.

    Raises InputError when the library is missing, or the weights are damaged or not all there.
    """
    try:
        from transformers import Dinov2Model, logging  # late: optional, and it takes seconds
    except ImportError:
        raise InputError("DINOv2 needs the package transformers; install it: "
                         "pip install -e '.[dinov2]'") from None
    logging.set_verbosity_error()
    try:
        model, report = Dinov2Model.from_pretrained(
            place, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"{VARIABLE}: the weights in {place.name} cannot be loaded "
                         f"({reason})") from None
    if absent := sorted(report["missing_keys"]):
        raise InputError(f"{VARIABLE}: {FILES[1]} in {place.name} lacks {len(absent)} tensors, "
                         f"the first is {absent[0]}")
    return model.requires_grad_(False).float().to(runs.device()).eval()


def prepared(frames: np.ndarray) -> torch.Tensor:
    """Grey frames (n, 84, 84) uint8 -> (n, 3, 224, 224) float32 as DINOv2 was trained on.

    The whole frame in [0, 1], resized (bicubic, clamped), the same in three channels, less
    ImageNet's mean, over its deviation. The seed's code goes through Hugging Face's processor,
    which resizes to 256, cuts off 16 pixels a side and, given floats in [0, 1], divides by 255
    once more: nearly black pictures, unless it was changed before the published figures.
    """
    check_frames(frames, (84, 84))
    grey = torch.from_numpy(frames)[:, None].float() / 255
    grey = F.interpolate(grey, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(0, 1)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (grey - mean) / deviation


@torch.no_grad()
def embed(model: torch.nn.Module, data, rows: np.ndarray) -> np.ndarray:
    """The CLS token of the newest frame of stored rows: (n, 384) float32 of unit length.

    One frame, as the seed used it: it cannot see motion. Scaled to unit length, so that distances
    compare with our encoder's.
    """
    out = np.empty((len(rows), WANTED["hidden_size"]), np.float32)
    for i in runs.progress(range(0, len(rows), BATCH), "DINOv2"):
        pixels = prepared(data.newest(rows[i:i + BATCH])).to(runs.device())
        tokens = model(pixel_values=pixels).last_hidden_state
        out[i:i + BATCH] = F.normalize(tokens[:, 0], dim=1).cpu().numpy()
    return out


class Memory:
    """Embeddings of stored rows that are asked for once and then kept beside the frames.

    The file is named by the weights; its sidecar holds the digests of both files of the model, of
    the frames' record and of the file itself. A damaged or outdated one is made again.
    """

    def __init__(self, run: Run, place: Path, embed_rows: Callable[[np.ndarray], np.ndarray]):
        self.run, self.embed_rows = run.at("frames"), embed_rows
        digests = [sha256_of(place / name) for name in FILES]
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:10]
        self.path = self.run.folder / f"dinov2-{name}.safetensors"
        self.source = {"model": digests, "frames": sha256_of(self.run.folder / "finished.json")}
        self.known = {"rows": np.zeros(0, np.int64),
                      "features": np.zeros((0, WANTED["hidden_size"]), np.float32)}
        with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
            record = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
            if record == {**self.source, "sha256": sha256_of(self.path)}:
                self.known = load_file(self.path)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Stored rows (n,) -> (n, 384)."""
        missing = np.setdiff1d(rows, self.known["rows"])
        if len(missing):
            self._add(missing, self.embed_rows(missing))
        return self.known["features"][np.searchsorted(self.known["rows"], rows)]

    def _add(self, rows: np.ndarray, features: np.ndarray) -> None:
        rows = np.concatenate([self.known["rows"], rows])
        features = np.concatenate([self.known["features"], features])
        order = np.argsort(rows)
        self.known = {"rows": rows[order], "features": features[order]}
        with runs.exclusive(self.run):
            write_atomically(self.path, lambda aside: save_file(self.known, aside))
            write_json(self.path.with_suffix(".json"),
                       {**self.source, "sha256": sha256_of(self.path)})


def rows_of(data: Replay, learned: np.ndarray, fresh: encoder.AtariEncoder, *, frames: Run,
            cfg: ProbeConfig) -> list[dict]:
    """What frozen DINOv2 knows, by every measure of the encoder; one row where it is not there.

    learned (N, D), fresh: as in hd.measure.embeddings; frames: the run beside whose frames its
    embeddings are kept, and whose seed is used.
    Raises InputError when HD_DINOV2 names a folder that cannot be used.
    """
    place = folder()
    if place is None:
        return [row("dinov2_weights", 0)]
    model, seed = load(place), frames.seed
    views = {"dinov2": Memory(frames, place, lambda picks: embed(model, data, picks)),
             "thinned": lambda picks: learned[picks],
             "untrained": lambda picks: encoder.embed(fresh, data, picks)}
    return [row("dinov2_weights", 1), *_geometry(data, views, seed),
            *_probes(data, views, cfg, seed), *_seed_protocol(data, views, seed)]


def _geometry(data: Replay, views: dict, seed: int) -> list[dict]:
    scores = {}
    for game in ("all", *data.games):
        num_games = len(data.games) if game == "all" else 1
        picks, stretches = embeddings.held_out_stretches(data, game, GEOMETRY_ROWS * num_games)
        for name, view in views.items():
            features = view(picks)
            scores[name, "temporal_consistency", game] = probes.temporal_consistency(
                features, stretches, seed=seed)
            scores[name, "diversity", game] = probes.diversity(features, seed=seed)
    return _beside_untrained(scores)


def _probes(data: Replay, views: dict, cfg: ProbeConfig, seed: int) -> list[dict]:
    cfg = dataclasses.replace(cfg, max_rows=min(PROBE_ROWS, cfg.max_rows))
    scores = {}
    for entry in game_state.probe_rows(data, views, baseline="untrained", cfg=cfg, seed=seed):
        found = parsed(entry["metric"])
        name = "dinov2" if found.is_plain else " ".join(found.words)
        if name in views:
            scores[name, found.metric, entry["game"]] = entry["value"]
    return _beside_untrained(scores)


def _seed_protocol(data: Replay, views: dict, seed: int) -> list[dict]:
    found = {name: seed_protocol.scores(data, view, seed=seed, **SEED_SAMPLE)
             for name, view in views.items()}
    return _beside_untrained({
        (name, metric, game): value for name, scores in found.items()
        for (metric, game), value in scores.items() if metric in KEPT_SEED_METRICS})


def _beside_untrained(scores: dict) -> list[dict]:
    """(name, metric, game) -> value, as rows metric[name] with the untrained encoder's value."""
    return [row(named(metric, name), value, game=game,
                baseline=scores["untrained", metric, game])
            for (name, metric, game), value in scores.items() if name != "untrained"]
