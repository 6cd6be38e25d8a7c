"""Side-by-side timings of the hot stages: ours and what a user would pick instead, in one run.

Both sides run in turn with the same threads and processes; the ratio of ours to theirs is held to
a bar. The table, its provenance and, for bars that are not met and for shares of the peak, where
the time goes are written below the artefact folder; hd.book.publishing publishes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from hd.bench import memory as benchmark_memory
from hd.bench import timed_stages as benchmark_stages
from hd.bench.timed_stages import GAMES, OF_PEAK, Sizes
from hd.bench.timing import Duel, matrix_products, measure, where_time_goes
from hd.collection import collect_game
from hd.config import PROFILES, EncoderConfig, FramesConfig, InputError, Profile
from hd.replay import Replay
from hd.report.benchmarks import COLUMNS, PROFILE_COLUMNS, fresh_folder, profile_beside
from hd.run import training
from hd.run.machine import PACKAGES, circumstances, cpu_count, device, device_kind, git_state
from hd.run.runs import seed_everything
from hd.run.storage import exclusive, sha256_of, shown, write_atomically, write_json

LIBRARY = "vector-quantize-pytorch"


def main(*, pairs: int = 5, quick: bool = False) -> int:
    """Run every duel, print each as it ends, store the tables; returns 0.

    quick: tiny sizes, only to see that everything runs. Raises InputError before any work where
    the library to compare with is missing.
    """
    if not find_spec(LIBRARY.replace("-", "_")):
        raise InputError(f"the benchmark needs the package {LIBRARY}: install the dev extra")
    target = fresh_folder() / f"{device_kind()}{'-quick' * quick}.csv"
    with exclusive(target), _scratch(target) as scratch:
        seed_everything(0)
        began, rows, profiles = time.monotonic(), [], []
        with contextlib.closing(duels(sizes_for(device_kind(), quick=quick), scratch)) as all_of:
            for duel in all_of:
                rows.append(measure(duel, pairs))
                print(in_a_line(rows[-1], time.monotonic() - began), flush=True)
                if rows[-1]["met"] is False or duel.stage.endswith(OF_PEAK):
                    profiles += where_time_goes(duel)
        _store(target, rows, profiles, wall_seconds=time.monotonic() - began)
    print(f"written: {shown(target)}")
    return 0


def duels(sizes: Sizes, folder: Path) -> Iterator[Duel]:
    """Every duel, in order. Stored steps go below folder."""
    fast = training.precision(EncoderConfig(), device())
    if fast is not None:
        yield Duel(f"matrix product, {benchmark_stages.named(fast)}", "GFLOP/s",
                   matrix_products(fast, sizes.product),
                   matrix_products(torch.float32, sizes.product), "float32")
    yield from benchmark_memory.fitting(sizes)
    yield from benchmark_stages.collecting(sizes)
    cfg = FramesConfig(num_steps=sizes.frames, sources={"random": 1.0})
    collect_game(GAMES[0], cfg, folder=folder / "frames", num_workers=1)
    data = Replay.open(folder / "frames", GAMES, val_share=0.0, seed=0)
    yield from benchmark_stages.encoding(sizes, data)
    yield from benchmark_stages.world_modelling(sizes, data)
    yield from benchmark_stages.masking(sizes)
    yield from benchmark_stages.quantizing(sizes)
    yield from benchmark_stages.imagining(sizes)
    yield from benchmark_memory.growing(sizes, folder)


def sizes_for(kind: str, *, quick: bool = False) -> Sizes:
    """kind: "cpu" or "gpu". A GPU times the models of paper, a CPU those of desk."""
    if quick:
        tiny = _resized(PROFILES["smoke"], anchors=8, windows=2)
        return Sizes(tiny, tiny, episode=20, frames=60, encoder_steps=1, steps=1, batches=1,
                     rows=1200, dreams=(3,), horizon=2, growth=(100, 300), product=64, tokens={})
    if kind == "gpu":
        return Sizes(_resized(PROFILES["paper"], anchors=256, windows=32), encoder_steps=40,
                     steps=20, batches=20, product=8192, tokens={})
    return Sizes(_resized(PROFILES["desk"], anchors=256, windows=16))


def _resized(profile: Profile, *, anchors: int, windows: int) -> Profile:
    return dataclasses.replace(
        profile, encoder=dataclasses.replace(profile.encoder, batch_size=anchors),
        world_model=dataclasses.replace(profile.world_model, batch_size=windows, accumulate=1))


@contextlib.contextmanager
def _scratch(target: Path):
    """A folder beside the table; what a killed benchmark left there goes first."""
    folder = target.with_name(f"{target.stem}-scratch")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def in_a_line(row: dict, elapsed: float) -> str:
    """A row as it is printed while the benchmark runs."""
    bar = {None: "", True: f", bar {row['bar']}: met", False: f", bar {row['bar']}: NOT met"}
    return (f"{elapsed:4.0f} s  {row['stage']}: {row['ours']:,.4g} {row['unit']}, "
            f"{row['ratio']:.3g} x {row['against']} ({row['theirs']:,.4g}; {row['ratio_min']:.3g} "
            f"to {row['ratio_max']:.3g}, {row['pairs']} pairs){bar[row['met']]}")


def _store(target: Path, rows: list[dict], profiles: list[dict], *, wall_seconds: float) -> None:
    """The table, what was profiled, and their provenance with the sha256 of both."""
    made = circumstances(wall_seconds, (*PACKAGES, LIBRARY))
    table = pd.DataFrame(rows).assign(device=made["device"], threads=made["threads"],
                                      **git_state())
    found = pd.DataFrame(profiles, columns=list(PROFILE_COLUMNS))
    for path, part in ((target, table[list(COLUMNS)]), (profile_beside(target), found)):
        write_atomically(path, lambda aside, part=part: part.to_csv(
            aside, index=False, float_format="%.4g"))
    write_json(target.with_suffix(".json"), {
        **made, "processes": cpu_count(), "sha256": sha256_of(target),
        "profile_sha256": sha256_of(profile_beside(target))})
