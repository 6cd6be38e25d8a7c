"""What the benchmark measures beside speed: whether a step grows with what is stored, and whether
the largest one fits a card."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from hd import encoder, policy
from hd.bench import synthetic
from hd.bench.timed_stages import GAMES, Kept, Sizes, Training, windows_of
from hd.bench.timing import Duel, milliseconds
from hd.config import Profile
from hd.replay import Replay
from hd.run.machine import device, peak_memory_mb, resident_memory_mb
from hd.run.runs import Run
from hd.world_model import WorldModel

CARD_MB = 16_000.0


def fitting(sizes: Sizes) -> Iterator[Duel]:
    """A training step of each model at its largest, in a process of its own: all that it holds
    counts, its own memory and the accelerator's."""
    spawn = multiprocessing.get_context("spawn")
    for stage in ("encoder", "world_model", "policy"):
        def most(stage=stage):
            with ProcessPoolExecutor(1, spawn) as process:
                return process.submit(_most_memory_mb, stage, sizes.largest).result()
        batch_size = getattr(sizes.largest, stage).batch_size
        yield Duel(f"a step of {stage.replace('_', ' ')} at {sizes.largest.name}, batch "
                   f"{batch_size}", "MB", most, lambda: CARD_MB, "a card of 16 GB", "<= 1",
                   max_pairs=1, warm_up=False)


def _most_memory_mb(stage: str, profile: Profile) -> float:
    run = Run(stage, profile, games=GAMES)
    Training(run, _network(run)).steps(Kept(synthetic.batches(profile)[stage]), 1)
    return peak_memory_mb()


def _network(run: Run) -> torch.nn.Module:
    if run.stage == "encoder":
        return encoder.AtariEncoder(run.cfg)
    codes = run.at("world_model").cfg.num_codes
    model = WorldModel(run.at("world_model").cfg, torch.randn(3, codes, 384))
    if run.stage == "world_model":
        return model
    return policy.build(run.cfg, model.to(device()).eval().requires_grad_(False))


def growing(sizes: Sizes, folder: Path) -> Iterator[Duel]:
    """Training and reading from many stored steps, against few."""
    run, few = Run("encoder", sizes.profile, games=GAMES), sizes.growth[0]
    trainer = Training(run, encoder.AtariEncoder(run.cfg))
    world_model = Run("world_model", sizes.profile, games=GAMES)
    folders = {n: synthetic.write_steps(folder / f"growth-{n}", GAMES[0], n) for n in sizes.growth}

    def opened(n):
        data = Replay.open(folders[n], GAMES, val_share=0.0, seed=0)
        windows, length = windows_of(world_model, data), world_model.cfg.max_steps
        starts = data.window_starts(length)[:world_model.cfg.batch_size]
        return (encoder.frames_to_compare(run.cfg, data, run.seed),
                lambda: windows.batch(starts, length))

    def training_step(batches):
        count = 2 * sizes.steps
        return lambda: 1000 / trainer.rate_with_reading(batches, count, count)

    unseen = itertools.count(1_000_000)  # batches that no training step has read

    def read(batches, batch_of_windows):
        for i in itertools.islice(unseen, sizes.batches):
            batches(i), batch_of_windows()

    def memory(n):
        def held():
            batches = opened(n)[0]
            trainer.rate_with_reading(batches, 1, 1)
            return resident_memory_mb()
        return held

    def on_disk(n):
        return lambda: sum(path.stat().st_size for path in folders[n].iterdir()) / n
    for n in sizes.growth[1:]:
        name, against = f"{n:,} stored steps", f"{few:,} stored steps"
        yield Duel(f"{name}, disk", "bytes/step", on_disk(n), on_disk(few), against, "<= 1.01",
                   max_pairs=1)
        yield Duel(f"{name}, memory while training", "MB", memory(n), memory(few), against,
                   "<= 1.1")
        now, then = opened(n), opened(few)
        here = functools.partial(read, *now)
        yield Duel(f"{name}, encoder training", "ms/step", training_step(now[0]),
                   training_step(then[0]), against, "<= 1.1", profiled=here)
        yield Duel(f"{name}, reading", "ms/batch", milliseconds(here, sizes.batches),
                   milliseconds(functools.partial(read, *then), sizes.batches), against)
        del now, then, here
