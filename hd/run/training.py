"""The one supervised loop: batches, loss, step, record, checkpoint, resume, time limit.

What happens at step k depends only on the seed and k (batches and dropout are drawn from
generators seeded by both), so a run that is killed and continued ends with the same weights as
one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice

import torch
from tqdm import tqdm

from hd.config import InputError, TrainedStage
from hd.run import runs
from hd.run.machine import fast_precision, give_back_memory, kept_memory
from hd.run.muon import Muon
from hd.run.runs import Run
from hd.run.storage import writing

CHECKPOINT_SECONDS = 20.0
NUM_RECORDS = 200  # points on a learning curve


@dataclass
class Loss:
    """What a stage minimises (a scalar) and the named parts worth watching (scalars)."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


class NonFiniteLoss(InputError):
    """The loss became NaN or infinite."""


def warmup_cosine(step: int, num_steps: int) -> float:
    """Learning-rate factor: linear warm-up of min(1000, 5%) of the steps, then a cosine to 0."""
    warmup = max(1, min(1000, round(0.05 * num_steps)))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def precision(cfg: TrainedStage, device: torch.device) -> torch.dtype | None:
    """The autocast type of a config on a device, or None for float32."""
    return None if cfg.precision == "float32" else fast_precision(device)


def autocast(cfg: TrainedStage) -> torch.autocast:
    """The context in which a model of this config computes, here as in training."""
    where = runs.device()
    dtype = precision(cfg, where)
    return torch.autocast(where.type, dtype=dtype, enabled=dtype is not None)


def make_optimizer(model: torch.nn.Module, cfg: TrainedStage,
                   matrix_lr: float | None = None) -> torch.optim.Optimizer | None:
    """AdamW, weight decay on matrices only; plain Adam with coupled decay for a constant schedule;
    Muon for hidden weights, and Adam for the rest, where it is told their matrix_lr.

    None for a model without parameters (EMA codebooks learn in forward).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        return None
    if matrix_lr is not None:
        return Muon(model, lr=cfg.lr, matrix_lr=matrix_lr, betas=cfg.betas)
    if cfg.schedule == "constant":
        return torch.optim.Adam(trained, lr=cfg.lr, betas=cfg.betas,
                                weight_decay=cfg.weight_decay, fused=True)
    groups = [{"params": [p for p in trained if p.ndim >= 2], "weight_decay": cfg.weight_decay},
              {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)


class State:
    """Model, optimizer and scaler as one flat dict of tensors, for checkpoints."""

    def __init__(self, model, optimizer, scaler):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler

    def tensors(self) -> dict[str, torch.Tensor]:
        flat = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.optimizer:
            for i, slots in self.optimizer.state_dict()["state"].items():
                flat |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
        return flat

    def load(self, flat: dict[str, torch.Tensor], scaler: dict) -> None:
        self.model.load_state_dict(
            {k[len("model."):]: v for k, v in flat.items() if k.startswith("model.")})
        if self.optimizer:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            slots: dict[int, dict] = {}
            for key, value in flat.items():
                if key.startswith("optimizer."):
                    _, i, name = key.split(".")
                    # The fused update pairs a weight with its moments by address, so a moment
                    # must be laid out as its weight is (channels last), not as it was stored.
                    if value.shape == parameters[int(i)].shape:
                        value = torch.empty_like(parameters[int(i)]).copy_(value)
                    slots.setdefault(int(i), {})[name] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.scaler.load_state_dict(scaler)


@dataclass(frozen=True)
class Unkept:
    """In place of a Run, for whoever has arrays and no folders: nothing is kept or continued.

    stage, seed: what dropout and other draws of the steps depend on. deadline: time.monotonic().
    """

    stage: str = "unkept"
    seed: int = 0
    deadline: float | None = None

    def must_stop(self, *, margin: float = 0.0) -> bool:
        """True when less than margin seconds are left."""
        return self.deadline is not None and time.monotonic() + margin >= self.deadline


def train(model: torch.nn.Module, batches: Callable[[int], object], cfg: TrainedStage,
          run: Run | Unkept, *, evaluate: Callable[[torch.nn.Module], dict] | None = None,
          checkpoint_every: int = 1) -> dict:
    """Train model with model.loss(batch) -> Loss until cfg.num_steps; returns the record.

    batches(i) makes the i-th batch from i alone; evaluate(model) -> {metric: number} runs every
    cfg.eval_every steps, at the first powers of two and at the end. checkpoint_every: only
    multiples of it are checkpointed.
    The record is the stage's finished.json (Unkept: only this of it); its "history" holds one dict
    per recorded step. A finished stage is loaded and not trained again; an interrupted one
    continues. Raises TimeLimitReached after writing a checkpoint, NonFiniteLoss, InputError.
    """
    model.to(runs.device())
    if isinstance(run, Unkept):
        with kept_memory():
            return _train(model, batches, cfg, run, evaluate, checkpoint_every)
    with runs.exclusive(run):
        if record := runs.finished_or_cleared(run):
            runs.load_model(run, model)
            return record
        with kept_memory():
            return _train(model, batches, cfg, run, evaluate, checkpoint_every)


def _train(model, batches, cfg, run, evaluate, checkpoint_every) -> dict:
    device, is_kept = runs.device(), not isinstance(run, Unkept)
    optimizer = make_optimizer(model, cfg)
    dtype = precision(cfg, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    state = State(model, optimizer, scaler)
    first, history, pending, spent = _resumed(state, run) if is_kept else (0, [], {}, 0.0)
    began = last_saved = time.monotonic()
    slowest = 0.0  # seconds of the longest iteration, so that a time limit is kept, not overrun

    def checkpoint(step):
        require_finite(model, pending, step, run)
        if not is_kept:
            return
        runs.save_checkpoint(run, state.tensors(), {
            "step": step, "history": history, "scaler": scaler.state_dict(),
            "pending": {k: [v.item() for v in values] for k, values in pending.items()},
            "wall_seconds": spent + time.monotonic() - began})
        give_back_memory()  # what many sizes of blocks left between each other

    model.train()
    with tracker_for(run, cfg) as tracker, ThreadPoolExecutor(1) as loader, tqdm(
            total=cfg.num_steps, initial=first, desc=run.stage, mininterval=2.0,
            file=sys.stdout, unit="step") as progress:
        feed = Feed(batches, loader, first * cfg.accumulate, cfg.num_steps * cfg.accumulate)
        for step in range(first, cfg.num_steps):
            iteration = time.monotonic()
            parts = one_step(model, feed, optimizer, scaler, dtype, cfg, run, step)
            for key, value in parts.items():
                pending.setdefault(key, []).append(value)
            done = step + 1
            if _is_due(done, cfg):
                require_finite(model, pending, done, run)
                entry = _flush(pending, done)
                if evaluate and _is_due(done, cfg, evaluation=True):
                    entry |= _evaluate(model, evaluate)
                history.append(entry)
                tracker.log(entry, step=done)
                progress.set_postfix({"loss": f"{entry['loss']:.4g}"}, refresh=False)
            progress.update()
            slowest = max(slowest, time.monotonic() - iteration)
            must_stop = run.must_stop(margin=2 * slowest + 1.0)
            is_old = time.monotonic() - last_saved > CHECKPOINT_SECONDS
            if (must_stop or is_old) and done % checkpoint_every == 0 and done < cfg.num_steps:
                checkpoint(done)
                last_saved = time.monotonic()
                slowest = max(slowest, last_saved - iteration)
                if must_stop:
                    raise runs.TimeLimitReached(_stopped(run, done, cfg))
    wall = spent + time.monotonic() - began
    if not is_kept:
        require_finite(model.eval(), {}, cfg.num_steps, run)
        return {"history": history, "wall_seconds": wall}
    return runs.save_model(run, model.eval(), wall_seconds=wall, history=history)


def _resumed(state: State, run: Run) -> tuple[int, list[dict], dict[str, list], float]:
    """The step to go on from, what was recorded and gathered by then, and the seconds spent; state
    is put back to that step."""
    saved = runs.load_checkpoint(run)
    if saved is None:
        return 0, [], {}, 0.0
    tensors, notes = saved
    state.load(tensors, notes["scaler"])
    pending = {k: [torch.tensor(v) for v in values] for k, values in notes["pending"].items()}
    return notes["step"], notes["history"], pending, notes["wall_seconds"]


def _stopped(run, done: int, cfg: TrainedStage) -> str:
    """What a training says that the time limit stops."""
    said = f"{run.stage} stopped at step {done} of {cfg.num_steps}"
    kept = " with a checkpoint; the same command continues it"
    return said if isinstance(run, Unkept) else said + kept


class Feed:
    """Batches first to end, so many of them made ahead in threads of the executor `loader`."""

    def __init__(self, batches, loader, first, end, ahead: int = 1):
        self.batches, self.loader = batches, loader
        self.to_come = iter(range(first, end))
        self.ahead = deque(loader.submit(batches, i) for i in islice(self.to_come, ahead))

    def next(self):
        batch = self.ahead.popleft().result()
        self.ahead.extend(self.loader.submit(self.batches, i) for i in islice(self.to_come, 1))
        return batch


def one_step(model, feed, optimizer, scaler, dtype, cfg, run, step) -> dict[str, torch.Tensor]:
    """One optimizer step over cfg.accumulate batches; returns the mean parts, detached.

    feed.next() gives a batch; dtype is the autocast type, None for float32. What is drawn depends
    on run.seed, run.stage and step.
    """
    # All 32 bits that the CPU's generator reads must depend on the seed and on the step.
    torch.manual_seed(int(runs.rng_for(run.seed, run.stage, step).integers(2**32)))
    if optimizer and cfg.schedule == "cosine":
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * warmup_cosine(step, cfg.num_steps)
    batches = (prepared(model, feed.next(), dtype) for _ in range(cfg.accumulate))
    return update(model, batches, optimizer, scaler, dtype, cfg)


def prepared(model, batch, dtype):
    """What model.loss takes: the batch, on the device, or what model.before_update makes of it."""
    batch = to_device(batch, runs.device())
    if not hasattr(model, "before_update"):
        return batch
    with torch.autocast(runs.device().type, dtype=dtype, enabled=dtype is not None):
        return model.before_update(batch)


def update(model, batches, optimizer, scaler, dtype, cfg) -> dict[str, torch.Tensor]:
    """One optimizer step over cfg.accumulate batches as model.loss takes them; returns the mean
    parts, detached."""
    kind = runs.device().type
    mean: dict[str, torch.Tensor] = {}
    for batch in batches:
        with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
            loss = model.loss(batch)
        if optimizer:
            scaler.scale(loss.total / cfg.accumulate).backward()
        for key, value in {"loss": loss.total, **loss.parts}.items():
            mean[key] = mean.get(key, 0.0) + value.detach().float() / cfg.accumulate
    if optimizer:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    if hasattr(model, "after_step"):
        model.after_step()
    return mean


def require_finite(model, pending, step, run, *, config: str = "") -> None:
    """Raise NonFiniteLoss unless all losses gathered and all weights are finite numbers.

    config: the one that the model learns by, where it is not its stage's.
    """
    values = [*pending.get("loss", []), *model.state_dict().values()]
    if not all(value.isfinite().all() for value in values):
        saved = None if isinstance(run, Unkept) else run.folder / "checkpoint.json"
        kept = f"the last good checkpoint is {runs.shown(saved)}" if saved and saved.exists() \
            else "there is no checkpoint yet"
        config = config or run.stage
        raise NonFiniteLoss(f"{config}: the loss or a weight is not finite at or before step "
                            f"{step}; {kept}; lower {config}.lr or set precision to float32")


def _flush(pending, step) -> dict:
    """The mean of what was gathered since the last record."""
    entry = {"step": step}
    for key, values in pending.items():
        entry[key] = torch.stack([value.cpu() for value in values]).mean().item()
    pending.clear()
    return entry


def _is_due(done: int, cfg: TrainedStage, *, evaluation: bool = False) -> bool:
    """Whether step `done` is recorded; with evaluation, whether it is also evaluated: every
    eval_every steps, at the end, and at powers of two before the first, when much changes."""
    if done == cfg.num_steps or (cfg.eval_every and done % cfg.eval_every == 0):
        return True
    if done < cfg.eval_every and done & (done - 1) == 0:
        return True
    return not evaluation and done % max(1, cfg.num_steps // NUM_RECORDS) == 0


def _evaluate(model, evaluate) -> dict:
    model.eval()
    with torch.no_grad():
        metrics = evaluate(model)
    model.train()
    return metrics


class Untracked:
    """A tracker that keeps nothing."""

    def log(self, entry: dict, *, step: int) -> None:
        """As wandb's."""


@contextlib.contextmanager
def tracker_for(run: Run | Unkept, cfg: TrainedStage):
    """A wandb run below the profile's folder: offline unless WANDB_MODE says otherwise.

    Closed whatever happens: wandb would give a run left open to the next stage. Raises InputError
    when its files cannot be written. Without the package nothing is tracked, which a line says.
    """
    if isinstance(run, Unkept):
        yield Untracked()
        return
    if find_spec("wandb") is None:
        print(f"{run.stage} is not tracked: the package wandb is not installed", flush=True)
        yield Untracked()
        return
    import wandb  # late: it takes a second, and most commands never train

    settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False,
                              x_disable_meta=True, x_disable_stats=True, host="local")
    folder, loud = run.root / "wandb", logging.raiseExceptions
    logging.raiseExceptions = False  # on a full disk its debug log would print tracebacks
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tracker = wandb.init(
                project="hi-dreamer", name=f"{run.stage}-{run.name}", dir=run.root,
                group=f"{run.profile.name}-{run.variant}", job_type=run.stage,
                mode=os.environ.get("WANDB_MODE", "offline"), settings=settings,
                config={"profile": run.profile.name, "variant": run.variant, "seed": run.seed,
                        **dataclasses.asdict(cfg)})
        try:
            yield tracker
        finally:
            with writing(folder):
                tracker.finish()
    finally:
        logging.raiseExceptions = loud


def to_device(batch, device: torch.device):
    """Move tensors in nested tuples, lists and dicts."""
    return mapped(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(batch):
    """The batch; where there is a GPU in memory that it reads while the program goes on."""
    return mapped(batch, torch.Tensor.pin_memory) if runs.device().type == "cuda" else batch


def mapped(batch, function: Callable[[torch.Tensor], torch.Tensor]):
    """function of every tensor in nested tuples, lists and dicts."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: mapped(value, function) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(mapped(value, function) for value in batch)
    return batch
