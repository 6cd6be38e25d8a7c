"""Transfer to another game: what a world model gains from having learned other games before.

Beside each adapted world model stands one from scratch with the same codes, batches and number of
steps. The models of one level read and predict only level 0 of the same codes: in a residual VQ it
is exactly a single-level VQ, since no level depends on a later one. With one seed a difference is a
number, not yet a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from hd.measure import predictions
from hd.replay import Replay
from hd.run.metrics import named
from hd.run.runs import row
from hd.windows import Windows
from hd.world_model import WorldModel

STARTS = ("pretrained", "scratch")
LEVELS = {3: "three_levels", 1: "one_level"}


def first_levels(codes: np.ndarray, levels: int) -> np.ndarray:
    """codes (N, 3) with 0 in place of every code beyond the first levels."""
    return np.where(np.arange(codes.shape[1]) < levels, codes, 0).astype(codes.dtype)


def within_budget(data: Replay, budget: int) -> np.ndarray:
    """(N,) bool: the first whole training episodes that together have at least budget steps.

    All training episodes where they have fewer; a smaller budget is part of a larger one.
    """
    lengths = np.bincount(data.episode_ids, weights=data.is_train)
    is_needed = np.cumsum(lengths) - lengths < budget
    return data.is_train & is_needed[data.episode_ids]


@torch.no_grad()
def rows_of(windows: Mapping[int, Windows], model: Callable[[int, str], WorldModel], *,
            budget: int) -> list[dict]:
    """Next-code metrics on test episodes of the target, the one game of the windows.

    windows: levels -> what adapting on budget steps saw; model(levels, start): as adapted, or for
    a budget of 0 as it began. The value is the pre-trained model's, the baseline column the one
    from scratch with as many steps; the trivial predictors ([back_off] and others) are counted on
    the same steps of the target, [one_level] is the pair that knows level 0 only. step: the budget.
    """
    data = windows[3].data
    target, = data.games
    where = {"game": target, "step": budget}
    used = within_budget(data, budget).sum()
    rows = [row("transfer_steps", used, split="train", **where)]
    for levels, name in LEVELS.items():
        seen = windows[levels]
        starts, word = seen.held_out(), "" if levels == 3 else name
        pretrained, scratch = (predictions.score_windows(model(levels, start), seen, starts)
                               for start in STARTS)
        for level in range(levels):
            last, following = predictions.pairs(seen, starts, level)
            everywhere, changed = np.ones(len(last), bool), last != following
            # One level alone reads the same codes: the predictors are those of three.
            trivial = predictions.baselines(seen, target, level, starts) if levels == 3 else {}
            for infix, subset in (("", everywhere), ("changed_", changed)):
                if not subset.any():  # a code that never changes
                    continue
                prefix = f"transfer_l{level}_{infix}"
                rows += [row(named(prefix + metric, word), value, baseline=base, **where)
                         for metric, value, base in _means(pretrained[level], scratch[level],
                                                           subset)]
                rows += [row(named(prefix + metric, method), value, **where)
                         for method, counted in trivial.items()
                         for metric, value, _ in _means(counted, counted, subset)]
        saved = scratch[0].nats.mean() - pretrained[0].nats.mean()
        rows.append(row(named("transfer_l0_gain", word), saved, baseline=0.0, **where))
    return rows


def _means(score, other, subset):
    """(metric, mean of score, mean of other) over a subset of the predictions."""
    for metric, field in (("cross_entropy", "nats"), ("accuracy", "is_right")):
        yield metric, getattr(score, field)[subset].mean(), getattr(other, field)[subset].mean()
