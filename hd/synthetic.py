"""Data made up for timings: what a stage works on where what it says does not matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from hd.collection import STEP_TYPES
from hd.config import Profile

READ_BYTES = 2**24


def batches(profile: Profile) -> dict[str, dict]:
    """For encoder, world_model and policy one batch of random numbers, as their losses read it."""
    count, (windows, length) = profile.encoder.batch_size, (
        profile.world_model.batch_size, profile.world_model.max_steps)
    anchors, (dreams, context) = torch.arange(count), (
        profile.policy.batch_size, profile.policy.context)

    def codes(*shape):
        return torch.randint(profile.world_model.num_codes, (*shape, 3))

    def actions(*shape):
        return torch.randint(profile.world_model.num_actions, shape)
    return {"encoder": {"frames": torch.randint(256, (3 * count, 4, 84, 84), dtype=torch.uint8),
                        "anchor": anchors, "positive": anchors + count,
                        "negatives": anchors[:, None] + 2 * count},
            "world_model": {"tokens": codes(windows, length), "actions": actions(windows, length),
                            "rewards": torch.zeros(windows, length),
                            "continues": torch.ones(windows, length)},
            "policy": {"tokens": codes(dreams, context), "actions": actions(dreams, context - 1),
                       "pass": 0}}


def clustered_rows(count: int, dim: int = 384) -> torch.Tensor:
    """Unit vectors (count, dim) in 2000 clusters of unequal size, noise in 32 directions: codes
    have something to find, and something is left over for every level."""
    rng = torch.Generator().manual_seed(0)
    centres, directions = (torch.randn(n, dim, generator=rng) for n in (2000, 32))
    weights = 1 / torch.arange(1.0, 2001)
    chosen = torch.multinomial(weights, count, replacement=True, generator=rng)
    rows = torch.randn(count, 32, generator=rng) @ directions.div_(32**0.5 * 2)
    return F.normalize(rows.add_(centres[chosen]), dim=1)


def write_steps(folder: Path, game: str, num_steps: int) -> Path:
    """Stored steps in hd.collection's files, all zeros, episodes of 900; returns folder.

    Frames are a sparse file that takes no space, read once: as those of a collection that just
    ended, they are in memory where it suffices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"frames-{game}.npy", "wb+") as handle:
        header = {"descr": "|u1", "fortran_order": False, "shape": (num_steps, 84, 84)}
        np.lib.format.write_array_header_1_0(handle, header)
        handle.truncate(handle.tell() + num_steps * 84 * 84)
        while handle.read(READ_BYTES):
            pass
    shapes = {name: (num_steps, 128) if name == "ram" else num_steps for name in STEP_TYPES}
    columns = {name: np.zeros(shapes[name], dtype) for name, dtype in STEP_TYPES.items()}
    np.savez(folder / f"steps-{game}.npz", **columns,
             episode_ids=np.arange(num_steps, dtype=np.int32) // 900)
    return folder
