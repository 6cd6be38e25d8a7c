"""Side-by-side timings of the hot stages: ours and what a user would pick instead, in one run.

Both sides run in turn with the same threads and processes; the ratio of ours to theirs is held to
a bar. The table, its provenance and, for bars that are not met and for shares of the peak, where
the time goes are written below the artefact folder; hd.book.publishing publishes them.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from hd.bench import gpu, memory, sharing, timed_stages
from hd.bench.sizes import GAMES, Sizes, sizes_for
from hd.bench.timing import Comparison, matrix_products, measure, named, where_time_goes
from hd.collection import collect_game
from hd.config import EncoderConfig, FramesConfig, InputError
from hd.replay import Replay
from hd.report.benchmarks import COLUMNS, PROFILE_COLUMNS, fresh_folder, profile_beside
from hd.run import training
from hd.run.machine import PACKAGES, circumstances, cpu_count, device, device_kind, git_state
from hd.run.runs import seed_everything
from hd.run.storage import exclusive, sha256_of, shown, write_atomically, write_json

LIBRARY = "vector-quantize-pytorch"
NOTHING_MEASURED = 1  # exit code


def main(*, pairs: int = 5, quick: bool = False, gpu_only: bool = False,
         seconds: float | None = None) -> int:
    """Measure every comparison, print each as it ends, store the tables; returns the exit code.

    quick: tiny sizes, only to see that everything runs. gpu_only: what a GPU is for, without the
    rows that time games, disks and loaders. seconds: nothing more is begun after them, and what
    is measured is stored at once, should something end this earlier.
    Raises InputError before any work where the library to compare with, or the GPU, is missing.
    """
    if gpu_only and device_kind() == "cpu":
        raise InputError("the GPU's part of the benchmark needs a GPU: torch sees none")
    if not gpu_only and not find_spec(LIBRARY.replace("-", "_")):
        raise InputError(f"the benchmark needs the package {LIBRARY}: install the dev extra")
    sizes = sizes_for(device_kind(), quick=quick)
    target = fresh_folder() / (f"{table_name()}-quick.csv" if quick else f"{table_name()}.csv")
    measured = _Measured(time.monotonic())
    with exclusive(target), _scratch(target) as scratch:
        seed_everything(0)
        chosen = on_gpu(sizes) if gpu_only else comparisons(sizes, scratch)
        with contextlib.closing(chosen):
            for comparison in chosen:
                measured.add(comparison, pairs)
                if seconds is not None and measured.rows:
                    _store(target, measured)
                if seconds is not None and measured.elapsed > seconds:
                    print(f"the time is over, {len(measured.rows)} rows are measured", flush=True)
                    break
        if not measured.rows:
            return NOTHING_MEASURED
        _store(target, measured)
    print(f"written: {shown(target)}")
    return 0


def comparisons(sizes: Sizes, folder: Path) -> Iterator[Comparison]:
    """Every comparison of this device, in order. Stored steps go below folder."""
    yield from _peaks(sizes)
    yield from memory.fitting(sizes)
    yield from timed_stages.collecting(sizes)
    cfg = FramesConfig(num_steps=sizes.frames, sources={"random": 1.0})
    collect_game(GAMES[0], cfg, folder=folder / "frames", num_workers=1)
    data = Replay.open(folder / "frames", GAMES, val_share=0.0, seed=0)
    yield from timed_stages.encoding(sizes, data)
    yield from timed_stages.world_modelling(sizes, data)
    yield from timed_stages.masking(sizes)
    yield from timed_stages.quantizing(sizes)
    yield from timed_stages.imagining(sizes)
    yield from timed_stages.updating(sizes)
    if device_kind() == "cpu":
        yield from sharing.beside_a_busy_process(sizes)
    else:
        yield from _guarded(sizes, gpu.MEASURED)
    yield from memory.growing(sizes, folder)


def on_gpu(sizes: Sizes) -> Iterator[Comparison]:
    """What a GPU is for, in the order of what is wanted first; needs no game and no library."""
    yield from _guarded(sizes, (_peaks, *gpu.MEASURED, timed_stages.updating,
                                timed_stages.imagining))


def _peaks(sizes: Sizes) -> Iterator[Comparison]:
    """Matrix products in the type that training uses, where that is not float32."""
    fast = training.precision(EncoderConfig(), device())
    if fast is not None:
        yield Comparison(f"matrix product, {named(fast)}", "GFLOP/s",
                         matrix_products(fast, sizes.product),
                         matrix_products(torch.float32, sizes.product), "float32")


def _guarded(sizes: Sizes, makers: tuple[Callable, ...]) -> Iterator[Comparison]:
    """The comparisons of each maker, all of which may fail; so may making one, in a line."""
    for make in makers:
        try:
            for comparison in make(sizes):
                yield comparison.that_may_fail()
        except Exception as error:
            print(f"{make.__name__.strip('_')} is left out: {_in_short(error)}",
                  flush=True)


def table_name() -> str:
    """One of hd.report.benchmarks.KINDS: CPUs without fast half precision have a table of their
    own, as they train in another type."""
    is_plain = device_kind() == "cpu" and training.precision(EncoderConfig(), device()) is None
    return "cpu-float32" if is_plain else device_kind()


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@dataclass
class _Measured:
    """What was measured so far; began is a time.monotonic()."""

    began: float
    rows: list[dict] = field(default_factory=list)
    profiles: list[dict] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def add(self, comparison: Comparison, pairs: int) -> None:
        """Measure, print and keep a comparison; what may fail and does is printed only."""
        try:
            row = measure(comparison, pairs)
        except Exception as error:
            if not comparison.may_fail:
                raise
            print(f"{self.elapsed:4.0f} s  {comparison.stage}, against {comparison.against}, "
                  f"failed: {_in_short(error)}", flush=True)
            return
        self.rows.append(row)
        print(in_a_line(row, self.elapsed), flush=True)
        if row["met"] is False or comparison.stage.endswith(timed_stages.OF_PEAK):
            self.profiles += where_time_goes(comparison)


def in_a_line(row: dict, elapsed: float) -> str:
    """A row as it is printed while the benchmark runs."""
    bar = {None: "", True: f", bar {row['bar']}: met", False: f", bar {row['bar']}: NOT met"}
    return (f"{elapsed:4.0f} s  {row['stage']}: {row['ours']:,.4g} {row['unit']}, "
            f"{row['ratio']:.3g} x {row['against']} ({row['theirs']:,.4g}; {row['ratio_min']:.3g} "
            f"to {row['ratio_max']:.3g}, {row['pairs']} pairs){bar[row['met']]}")


@contextlib.contextmanager
def _scratch(target: Path):
    """A folder beside the table; what a killed benchmark left there goes first."""
    folder = target.with_name(f"{target.stem}-scratch")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _store(target: Path, measured: _Measured) -> None:
    """The table, what was profiled, and their provenance with the sha256 of both."""
    packages = (*PACKAGES, LIBRARY) if _is_installed(LIBRARY) else PACKAGES
    made = circumstances(measured.elapsed, packages)
    table = pd.DataFrame(measured.rows).assign(device=made["device"], threads=made["threads"],
                                               **git_state())
    found = pd.DataFrame(measured.profiles, columns=list(PROFILE_COLUMNS))
    for path, part in ((target, table[list(COLUMNS)]), (profile_beside(target), found)):
        write_atomically(path, lambda aside, part=part: part.to_csv(
            aside, index=False, float_format="%.4g"))
    write_json(target.with_suffix(".json"), {
        **made, "processes": cpu_count(), "sha256": sha256_of(target),
        "profile_sha256": sha256_of(profile_beside(target))})


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
