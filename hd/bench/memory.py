"""What the benchmark measures beside speed: whether a step grows with what is stored, and whether
the largest one fits a card."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hd.bench import synthetic
from hd.bench.sizes import GAMES, Sizes
from hd.bench.steps import SameBatch, Training, encoder_batches, network, windows_of
from hd.bench.timing import Comparison, milliseconds
from hd.config import Profile
from hd.replay import Replay
from hd.run.machine import peak_memory_mb, resident_memory_mb

CARD_MB = 16_000.0
UNREAD = 1_000_000  # number of a batch that no training step has read


# ---- the largest step

def fitting(sizes: Sizes) -> Iterator[Comparison]:
    """A training step of each model at its largest, in a process of its own: all that it holds
    counts, its own memory and the accelerator's."""
    for stage in ("encoder", "world_model", "policy"):
        batch_size = getattr(sizes.largest, stage).batch_size
        yield Comparison(
            f"a step of {stage.replace('_', ' ')} at {sizes.largest.name}, batch {batch_size}",
            "MB", functools.partial(_most_memory_elsewhere, stage, sizes.largest), lambda: CARD_MB,
            "a card of 16 GB", "<= 1", max_pairs=1, warm_up=False)


def _most_memory_elsewhere(stage: str, profile: Profile) -> float:
    """Of a training step in a process of its own, in MB."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_most_memory_mb, stage, profile).result()


def _most_memory_mb(stage: str, profile: Profile) -> float:
    batch = synthetic.batches(profile)[stage]
    Training(stage, profile, network(stage, profile)).steps(SameBatch(batch), 1)
    return peak_memory_mb()


# ---- many stored steps

class Stored:
    """Made-up steps on disk, from which batches of encoder and world model are read."""

    def __init__(self, folder: Path, sizes: Sizes, num_steps: int):
        self.folder, self.sizes, self.num_steps = folder, sizes, num_steps
        synthetic.write_steps(folder, GAMES[0], num_steps)
        self.unread = itertools.count(UNREAD)

    def batches(self) -> Callable[[int], dict]:
        """The encoder's batches from steps that are opened anew."""
        return encoder_batches(self.sizes.profile, self._opened())

    def reading(self) -> Callable[[], None]:
        """Work that reads new batches of the encoder and a batch of the world model for each."""
        data, cfg = self._opened(), self.sizes.profile.world_model
        batches = encoder_batches(self.sizes.profile, data)
        windows = windows_of(self.sizes.profile, data)
        starts = data.window_starts(cfg.max_steps)[:cfg.batch_size]

        def read():
            for i in itertools.islice(self.unread, self.sizes.batches):
                batches(i)
                windows.batch(starts, cfg.max_steps)
        return read

    def bytes_per_step(self) -> float:
        """What a step takes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir()) / self.num_steps

    def _opened(self) -> Replay:
        return Replay.open(self.folder, GAMES, val_share=0.0, seed=0)


def growing(sizes: Sizes, folder: Path) -> Iterator[Comparison]:
    """Training and reading from many stored steps, against few."""
    trained = Training("encoder", sizes.profile, network("encoder", sizes.profile))
    few, *larger = (Stored(folder / f"growth-{n}", sizes, n) for n in sizes.growth)

    def memory(stored):
        def held():
            trained.rate_with_reading(stored.batches(), 1, 1)
            return resident_memory_mb()
        return held

    def training_step(stored):
        batches, count = stored.batches(), 2 * sizes.steps
        return lambda: 1000 / trained.rate_with_reading(batches, count, count)

    against = f"{few.num_steps:,} stored steps"
    for many in larger:
        name = f"{many.num_steps:,} stored steps"
        yield Comparison(f"{name}, disk", "bytes/step", many.bytes_per_step, few.bytes_per_step,
                         against, "<= 1.01", max_pairs=1)
        yield Comparison(f"{name}, memory while training", "MB", memory(many), memory(few),
                         against, "<= 1.1")
        read_many, read_few = many.reading(), few.reading()
        yield Comparison(f"{name}, encoder training", "ms/step", training_step(many),
                         training_step(few), against, "<= 1.1", profiled=read_many)
        yield Comparison(f"{name}, reading", "ms/batch", milliseconds(read_many, sizes.batches),
                         milliseconds(read_few, sizes.batches), against)
        del read_many, read_few  # what they hold must not count as the next one's memory
