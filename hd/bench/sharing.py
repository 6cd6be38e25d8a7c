"""A training step beside one busy process, and alone with torch's own settings of threads.

Settings of threads are read when torch is loaded, so each side is a process of its own: one that
imports hd first, as every command does, and one that imports torch first, without any setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator

from hd.bench.sizes import Sizes
from hd.bench.timing import Comparison
from hd.config import PROFILES, Profile
from hd.run.storage import ROOT

OURS = "from hd.bench import sharing; sharing.answer({small}, {count})"
TORCHS = f"import torch; {OURS}"
BUSY = "print(flush=True)\nwhile True: pass"
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_")  # how variables begin that torch's threads follow


def beside_a_busy_process(sizes: Sizes) -> Iterator[Comparison]:
    """The step of a small transformer, idle and beside one process that keeps a core busy."""
    name = "a small transformer's step"
    with _steps(sizes, OURS, dict(os.environ)) as ours:
        yield Comparison(f"{name}, beside a busy process", "ms/step", lambda: _beside_busy(ours),
                         ours.milliseconds, "the same step alone", "<= 2.5", elsewhere=True)
        untouched = {key: value for key, value in os.environ.items()
                     if not key.startswith(SETTINGS)}
        with _steps(sizes, TORCHS, untouched) as torchs:
            yield Comparison(f"{name}, alone", "ms/step", ours.milliseconds, torchs.milliseconds,
                             "torch's own settings of threads", "<= 1.1", elsewhere=True)


class Steps:
    """A process that waits, makes training steps when asked, and says how long one took."""

    def __init__(self, program: str, environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], env={**environment, "HD_DEVICE": "cpu"}, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def milliseconds(self) -> float:
        """Of one step; raises RuntimeError when the process has ended."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (OSError, ValueError):
            raise RuntimeError(f"the process that makes the steps ended with exit code "
                               f"{self.process.wait()}") from None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def _steps(sizes: Sizes, program: str, environment: dict[str, str]):
    small = sizes.profile.name == "smoke"
    return contextlib.closing(Steps(program.format(small=small, count=sizes.small_steps),
                                    environment))


def _beside_busy(steps: Steps) -> float:
    """steps.milliseconds() while another process keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as busy:
        try:
            busy.stdout.readline()  # it is busy from here on
            return steps.milliseconds()
        finally:
            busy.kill()


# ---- in the process that makes the steps

def answer(tiny: bool, count: int) -> None:
    """For each line read, print the milliseconds of one of count steps; ends with the input."""
    from hd.bench import synthetic
    from hd.bench.steps import SameBatch, Training, network

    profile = small_transformer(tiny=tiny)
    trained = Training("world_model", profile, network("world_model", profile))
    batch = SameBatch(synthetic.batches(profile)["world_model"])
    for _ in sys.stdin:
        print(trained.milliseconds(batch, count), flush=True)


def small_transformer(*, tiny: bool = False) -> Profile:
    """4 layers of 128 that read 32 windows of 64 tokens (audit's world model in short windows);
    tiny: smoke's own."""
    profile = PROFILES["smoke" if tiny else "audit"]
    if tiny:
        return profile
    model = dataclasses.replace(profile.world_model, batch_size=32, max_steps=16, accumulate=1)
    return dataclasses.replace(profile, world_model=model)
