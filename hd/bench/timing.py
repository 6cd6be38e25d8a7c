"""Two ways of doing the same work, timed in turn: A B A B, on the same machine and threads.

The ratio is taken pair by pair, so it holds when the machine's speed drifts.
"""

from __future__ import annotations

import cProfile
import dataclasses
import operator
import os
import pstats
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hd.run.machine import device

LONG_ENOUGH = 0.3  # seconds that a timing of a short piece of work is made to last
BARS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Comparison:
    """Ours beside theirs: each call does its work and returns a value in `unit`.

    bar: what ours / theirs must be, such as ">= 3"; empty where it is only reported. max_pairs:
    for work that takes long. profiled: work in this process for Python's profiler, where torch's
    would see nothing of ours. elsewhere: our side works in another process, where no profiler
    sees it. may_fail: what goes wrong is reported and the benchmark goes on.
    """

    stage: str
    unit: str
    ours: Callable[[], float]
    theirs: Callable[[], float]
    against: str
    bar: str = ""
    max_pairs: int | None = None
    warm_up: bool = True
    profiled: Callable[[], object] | None = None
    elsewhere: bool = False
    may_fail: bool = False

    @property
    def is_timed(self) -> bool:
        """Whether the values are rates or times."""
        return self.unit.endswith("/s") or self.unit.startswith("ms/")

    def that_may_fail(self) -> Comparison:
        """The same, on a device where it may not work."""
        return dataclasses.replace(self, may_fail=True)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, the accelerator's work included."""
    _synchronize()
    began = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def per_second(work: Callable[[], object], amount: float) -> Callable[[], float]:
    """The rate of work that does so much at a call."""
    return lambda: amount / seconds(work)


def milliseconds(work: Callable[[], object], amount: float = 1) -> Callable[[], float]:
    """The time of one of `amount` equal pieces that a call does."""
    return lambda: 1000 * seconds(work) / amount


def matrix_products(dtype: torch.dtype, size: int) -> Callable[[], float]:
    """GFLOP/s of products of two (size, size) matrices, as many as take LONG_ENOUGH: what this
    machine reaches at best, the peak that shares refer to."""
    first, second = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    out = torch.empty_like(first)

    def multiply(times=1):
        for _ in range(times):
            torch.mm(first, second, out=out)
    multiply()
    times = max(1, round(LONG_ENOUGH / seconds(multiply)))
    return per_second(lambda: multiply(times), 2e-9 * size**3 * times)


def named(dtype: torch.dtype) -> str:
    """As a table shows it."""
    return str(dtype).removeprefix("torch.")


def measure(comparison: Comparison, pairs: int) -> dict:
    """Median values of both sides; median, least and largest of ours / theirs, pair by pair."""
    pairs = min(pairs, comparison.max_pairs or pairs)
    if comparison.warm_up:
        comparison.ours(), comparison.theirs()
    values = [(comparison.ours(), comparison.theirs()) for _ in range(pairs)]
    ratios = [ours / theirs for ours, theirs in values]
    ours, theirs = map(statistics.median, zip(*values))
    ratio = statistics.median(ratios)
    return {"stage": comparison.stage, "unit": comparison.unit, "ours": ours, "theirs": theirs,
            "against": comparison.against, "ratio": ratio, "ratio_min": min(ratios),
            "ratio_max": max(ratios), "pairs": pairs, "bar": comparison.bar,
            "met": is_met(ratio, comparison.bar)}


def is_met(ratio: float, bar: str) -> bool | None:
    """Whether the ratio keeps a bar such as ">= 3" or "<= 0.1"; None where there is no bar."""
    if not bar:
        return None
    sign, limit = bar.split()
    return BARS[sign](ratio, float(limit))


def where_time_goes(comparison: Comparison, top: int = 8) -> list[dict]:
    """The parts of our side that take the most time themselves: stage, against, part, share of
    all time, calls. Nothing for values that are no times, or work that is done elsewhere."""
    if comparison.elsewhere or not comparison.is_timed:
        return []
    look = _look_at_python if comparison.profiled else _look_at_torch
    spent = sorted(look(comparison.profiled or comparison.ours), reverse=True)
    total = sum(taken for taken, _, _ in spent) or 1.0
    return [{"stage": comparison.stage, "against": comparison.against, "part": part,
             "share": taken / total, "calls": calls} for taken, part, calls in spent[:top]]


def _look_at_torch(work) -> list[tuple]:
    """(time, operator, calls), of the accelerator where there is one."""
    activities, column = [torch.profiler.ProfilerActivity.CPU], "self_cpu_time_total"
    if device().type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        column = "self_device_time_total"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would print its start and its end
    with torch.profiler.profile(activities=activities) as profile:
        work()
    return [(getattr(event, column), event.key, event.count) for event in profile.key_averages()]


def _look_at_python(work) -> list[tuple]:
    """(time, function, calls)."""
    profile = cProfile.Profile()
    profile.runcall(work)
    found = []
    for (path, _, name), (_, calls, own, *_) in pstats.Stats(profile).stats.items():
        place = "" if path == "~" else f"{Path(path).stem}."
        found.append((own, f"{place}{name}", calls))
    return found
