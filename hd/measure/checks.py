"""The validation suite: what must hold of the stored steps, the masks and the models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hd import encoder
from hd.atari import GAMES
from hd.config import WorldModelConfig
from hd.measure.frames import parts_of
from hd.replay import Replay
from hd.world_model import MASKS, WorldModel, hierarchical_mask

Check = tuple[str, bool, str]  # what, whether it holds, detail


def suite(data: Replay, cfg: WorldModelConfig) -> Iterator[Check]:
    """About the stored steps, the masks and the model; nothing is trained."""
    yield from of_steps(data, cfg.max_steps)
    legal = all(np.isin(data.actions[data.in_game(g)], GAMES[g].actions).all() for g in data.games)
    yield "every action is legal in its game", legal, f"{len(data)} steps"
    for kind in MASKS:
        mask = hierarchical_mask(4, kind)
        future = bool(torch.triu(mask, 1).any())
        yield (f"mask {kind} shows nothing of the future and every position itself",
               not future and bool(mask.diagonal().all()), f"{int(mask.sum())} of 256 pairs open")
    yield from _of_model(cfg)


def _of_model(cfg: WorldModelConfig) -> Iterator[Check]:
    model = WorldModel(cfg)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(cfg.num_codes, (2, 5, 3), generator=generator)
    actions = torch.randint(18, (2, 5), generator=generator)
    out = model(tokens, actions)
    shapes = [tuple(x.shape) for x in out.code_logits]
    yield ("code logits are three times (B, T-1, K)", shapes == [(2, 4, cfg.num_codes)] * 3,
           f"{shapes[0]}")
    yield ("reward and continue are (B, T)",
           out.reward.shape == out.continue_logits.shape == (2, 5), f"{tuple(out.reward.shape)}")
    loss = model.loss({"tokens": tokens, "actions": actions, "rewards": torch.zeros(2, 5),
                       "continues": torch.ones(2, 5)}).total
    loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    yield ("every parameter gets a gradient", not idle, f"{len(idle)} without")
    yield ("the loss is finite", bool(torch.isfinite(loss)), f"{loss.item():.3f}")
    encoder_size = sum(p.numel() for p in encoder.AtariEncoder().parameters())
    yield ("the encoder has 1,881,888 parameters", encoder_size == 1_881_888, f"{encoder_size:,}")


def of_steps(data: Replay, length: int) -> Iterator[Check]:
    """About the stored steps, and their windows of `length` steps."""
    ids, parts = data.episode_ids, parts_of(data)
    apart = sum(len(np.unique(ids[rows])) for rows in parts.values()) == len(np.unique(ids))
    counts = ", ".join(f"{len(np.unique(ids[rows]))} {name}" for name, rows in parts.items())
    yield ("no episode is in two parts of the split",
           apart and bool((sum(rows.astype(int) for rows in parts.values()) == 1).all()),
           f"{counts} episodes")
    starts = data.window_starts(length)
    expected = np.maximum(0, np.bincount(ids) - length + 1).sum()
    inside = (ids[starts] == ids[starts + length - 1]).all()
    yield (f"windows of {length} steps lie inside episodes, and none is missing",
           bool(inside) and len(starts) == expected, f"{len(starts)} windows")
    ends = np.flatnonzero(data.continues == 0)
    yield ("games end only where episodes end", not data.has_next[ends].any(),
           f"{len(ends)} games ended")
    firsts = np.unique(data.starts)
    stacks = data.stack(firsts[:64])
    yield ("an episode's first stack shows only its first frame",
           bool((stacks == stacks[:, -1:]).all()), f"{len(stacks)} of {len(firsts)} looked at")
    yield "rewards are finite", bool(np.isfinite(data.rewards).all()), f"{len(data)} steps"
