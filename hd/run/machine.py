"""What made the numbers: the device, the commit, the memory it took."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hd.config import InputError
from hd.run.storage import CODE, ROOT

if TYPE_CHECKING:
    import torch

# torch is imported inside functions: workers that only play, and bad input, do without it.

PACKAGES = ("torch", "numpy", "pandas", "ale-py", "gymnasium", "scikit-learn", "safetensors")
# mallopt's numbers in glibc's malloc.h; how malloc is while a program trains (memory is neither
# mapped block by block nor given back), and what it comes to by itself where blocks are large.
MALLOC_TRIM, MALLOC_MAP_FROM, MALLOC_MAPS = -1, -3, -4
KEEPING = {MALLOC_MAPS: 0, MALLOC_TRIM: -1}
USUAL = {MALLOC_MAPS: 65_536, MALLOC_TRIM: 2**26, MALLOC_MAP_FROM: 2**25}


def cpu_count() -> int:
    """How many cores this process may use: taskset, a container's or a cluster's allocation give
    it fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device() -> torch.device:
    """The accelerator if there is one, else the CPU; HD_DEVICE overrides. Raises InputError where
    that names no device of this machine."""
    import torch

    if chosen := os.environ.get("HD_DEVICE"):
        return _usable(chosen)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache
def _usable(name: str) -> torch.device:
    import torch

    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):  # no such device, or not in this build of torch
        raise InputError(f"HD_DEVICE must name a device that torch can use here: cpu, or cuda with "
                         f"a GPU; got {name!r}") from None


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """What draws on the device, seeded: on a GPU its own generator, which a captured function
    (hd.run.captured) goes on drawing from; elsewhere a new one."""
    import torch

    if device.type == "cuda":
        return torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def device_kind() -> str:
    """Which benchmark this machine makes, "cpu" or "gpu"."""
    return "cpu" if device().type == "cpu" else "gpu"


def fast_precision(device: torch.device) -> torch.dtype | None:
    """What autocast computes in where a config leaves it to the machine: bfloat16 where it is fast,
    else float16 on a GPU and None, which is float32, on a CPU."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None


def circumstances(wall_seconds: float, packages: Iterable[str] = PACKAGES) -> dict:
    """Commit, code, versions, device, its precision, threads, time and memory behind a number."""
    import torch

    precision = fast_precision(device()) or torch.float32
    return {"git": git_state(), "code": CODE,
            "python": platform.python_version(), "platform": platform.system(),
            "packages": {name: importlib.metadata.version(name) for name in packages},
            "device": device_name(), "precision": str(precision).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "wall_seconds": round(wall_seconds, 2), "peak_memory_mb": peak_memory_mb()}


@lru_cache
def device_name() -> str:
    """What made the numbers: the accelerator's or the processor's name, with the number of
    cores that this process may use."""
    if device().type == "cuda":
        import torch

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {cpu_count()} cores"


@lru_cache
def git_state() -> dict:
    """Commit and whether the tree was dirty; None unless this project is the git tree, for it may
    lie unpacked inside another one."""
    commit, status = asked_git(ROOT, "rev-parse", "HEAD"), asked_git(ROOT, "status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def asked_git(root: Path, *words: str) -> str | None:
    """What git says about the checkout whose top folder is root; None for any other folder, also
    inside of one, and without git."""
    top = _git(root, "rev-parse", "--show-toplevel")
    with contextlib.suppress(OSError):
        if top and os.path.samefile(os.fsdecode(top), root):
            said = _git(root, *words)
            return None if said is None else said.decode("utf-8", errors="replace")
    return None


def _git(root: Path, *words: str) -> bytes | None:
    # GIT_DIR and its like would have git speak of another tree, whatever folder it is asked in.
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")}
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, env=clean)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory_mb() -> float:
    """Peak resident memory of this process (and of the accelerator, added), in MB."""
    try:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    except ImportError:  # Windows
        import psutil
        peak = psutil.Process().memory_info().peak_wset / 2**20
    import torch

    if torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated() / 2**20
    return round(peak, 1)


def resident_memory_mb() -> float:
    """Memory that this process holds now, in MB, without the pages of mapped files where the
    system tells them apart (Linux): it takes those back when it needs them."""
    import psutil  # late: only benchmarks ask

    held = psutil.Process().memory_info()
    return (held.rss - getattr(held, "shared", 0)) / 2**20


def available_memory_mb() -> float:
    """Memory that can be had without swapping, in MB."""
    import psutil

    return psutil.virtual_memory().available / 2**20


@contextlib.contextmanager
def kept_memory():
    """Inside, memory that is freed stays with the process; after, it goes back to the system.

    By itself glibc returns large blocks at once. Every step of a training frees hundreds of
    megabytes and asks for the same again, which the system must find and clear page by page.
    Does nothing where there is no glibc.
    """
    _tell_glibc(KEEPING)
    try:
        yield
    finally:
        _tell_glibc(USUAL)
        give_back_memory()


def give_back_memory() -> None:
    """Return to the system what kept_memory keeps and nothing uses."""
    if library := _glibc():
        library.malloc_trim(0)


def _tell_glibc(options: dict[int, int]) -> None:
    if library := _glibc():
        for option, value in options.items():
            library.mallopt(option, value)


@lru_cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, where it has what kept_memory needs."""
    try:
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return None
