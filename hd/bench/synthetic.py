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
    """One batch of random numbers for encoder, world_model and policy, as their losses read it.

    encoder: triples of frames (3 N, 4, 84, 84) uint8; world_model: windows of tokens (B, T, 3);
    policy: contexts (B, C, 3). N, B, T and C are the profile's.
    """
    model, policy = profile.world_model, profile.policy
    anchor = torch.arange(profile.encoder.batch_size)
    frames = torch.randint(256, (3 * len(anchor), 4, 84, 84), dtype=torch.uint8)
    windows, contexts = (model.batch_size, model.max_steps), (policy.batch_size, policy.context)

    def played(batch, length):
        return {"tokens": torch.randint(model.num_codes, (batch, length, 3)),
                "actions": torch.randint(model.num_actions, (batch, length))}
    dreamed_from = played(*contexts)
    return {"encoder": {"frames": frames, "anchor": anchor, "positive": anchor + len(anchor),
                        "negatives": anchor[:, None] + 2 * len(anchor)},
            "world_model": {**played(*windows), "rewards": torch.zeros(windows),
                            "continues": torch.ones(windows)},
            "policy": {"tokens": dreamed_from["tokens"],
                       "actions": dreamed_from["actions"][:, :-1], "pass": 0}}


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
