"""Transfer to another game: all games but one train encoder, codes and world model, then the world
model adapts to the one left out.

Encoder and codes never see the target game. Beside each adapted world model stands one from
scratch with the same codes, batches and number of steps. The models of one level read and predict
only level 0 of the same codes: in a residual VQ it is exactly a single-level VQ, since no level
depends on a later one. With one seed a difference is a number, not yet a finding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from functools import cached_property

import numpy as np
import torch

from hd import encoder, play, tokenizer, world_model
from hd.config import InputError
from hd.replay import Replay
from hd.run import runs
from hd.run.runs import Run, row
from hd.windows import Windows
from hd.world_model import WorldModel

STARTS = ("pretrained", "scratch")
LEVELS = {3: "three_levels", 1: "one_level"}


class Rotation:
    """One target game: its source games, and every training from them and on it."""

    def __init__(self, run: Run, target: str):
        self.run, self.target = run.at("transfer"), target
        # What a variant says about the split or the games' shares is about all three games.
        model = dataclasses.replace(run.profile.world_model, num_steps=self.run.cfg.source_steps,
                                    eval_every=0, split="episodes", game_shares=())
        self.source = dataclasses.replace(
            run, stage="world_model", parent=self.run,
            games=tuple(game for game in run.games if game != target),
            profile=dataclasses.replace(run.profile, world_model=model))

    def pretraining(self, levels: int) -> Run:
        """The training of a world model on the source games."""
        if levels == 3:
            return self.source
        return _changed(self.source, LEVELS[levels], level_weights=(1.0, 0.0, 0.0))

    def adaptation(self, levels: int, budget: int, start: str) -> Run:
        """The training of a world model on budget steps of the target game."""
        before = self.pretraining(levels)
        origin = f"{start}_{before.identity[:10]}" if start == "pretrained" else start
        return _changed(before, f"{self.target}-{budget}-{LEVELS[levels]}-{origin}",
                        num_steps=self.run.cfg.num_steps)

    @cached_property
    def data(self) -> Replay:
        """The stored steps of the target game."""
        frames = self.run.at("frames")
        runs.require(frames)
        return Replay.open(frames.folder, (self.target,), val_share=frames.cfg.val_share,
                           seed=frames.seed)

    @cached_property
    def codes(self) -> np.ndarray:
        """(N, 3) int16: the target's steps in the codes of the source games."""
        def make():
            rows = np.arange(len(self.data))
            seen = encoder.embed(encoder.load(self.source), self.data, rows)
            return tokenizer.encode_all(tokenizer.load(self.source), seen)

        return runs.cached_array(self.source.at("tokenizer"), f"tokens-{self.target}", make)

    def source_windows(self, levels: int) -> Windows:
        """Windows of the source games."""
        codes = first_levels(tokenizer.tokens(self.source), levels)
        return Windows(self.pretraining(levels), tokens=codes)

    def target_windows(self, levels: int, budget: int) -> Windows:
        """Windows of the target game; training may use budget steps."""
        return Windows(self.adaptation(levels, budget, "scratch"), data=self.data,
                       tokens=first_levels(self.codes, levels),
                       only=within_budget(self.data, budget))

    def model(self, levels: int, budget: int, start: str) -> WorldModel:
        """A finished world model; with budget 0 as it began."""
        if budget:
            return world_model.load(self.adaptation(levels, budget, start))
        if start == "pretrained":
            return world_model.load(self.pretraining(levels))
        return world_model.untrained(self.pretraining(levels))


def _changed(run: Run, part: str, **fields) -> Run:
    """The run of a part whose world model has other fields."""
    model = dataclasses.replace(run.profile.world_model, **fields)
    profile = dataclasses.replace(run.profile, world_model=model)
    return dataclasses.replace(run, part=part, profile=profile)


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


# ---- the stage

def rotations(run: Run) -> list[Rotation]:
    """One for each game as the target; raises InputError unless there are three games."""
    if len(run.games) < 3:
        raise InputError(f"transfer needs two source games and a target: three games; got "
                         f"{', '.join(run.games)}")
    return [Rotation(run, target) for target in run.games]


def train(run: Run) -> dict:
    """Make every part that is not finished; returns the record of the stage.

    A part is a training with a folder of its own, so that an interrupted run continues inside it.
    Raises TimeLimitReached, InputError and what training raises.
    """
    run, seconds = run.at("transfer"), 0.0
    for rotation in rotations(run):
        for what, part, make in _parts(rotation):
            if runs.finished_or_cleared(part) is None:
                if run.must_stop():
                    raise runs.TimeLimitReached(f"transfer stopped before {what}; what is "
                                                f"finished is kept, the same command continues")
                print(what, flush=True)
                make()
            seconds += runs.require(part)["wall_seconds"]
    with runs.exclusive(run):
        return runs.finished_or_cleared(run) or runs.finish(run, [], wall_seconds=seconds)


def _parts(rotation: Rotation):
    """(what it is, its run, a function that makes it) of each part, in order."""
    source, target = rotation.source, rotation.target
    games = ", ".join(source.games)
    yield f"episodes of {games}", source.at("frames"), lambda: _share_episodes(rotation)
    for stage, module in (("encoder", encoder), ("tokenizer", tokenizer)):
        part = source.at(stage)
        yield f"{stage} of {games}", part, lambda part=part, module=module: module.train(part)
    for levels, name in LEVELS.items():
        before = rotation.pretraining(levels)
        yield (f"world model of {games}, {name}", before, lambda before=before, levels=levels:
               world_model.train(before, windows=rotation.source_windows(levels)))
        for budget in rotation.run.cfg.budgets:
            for start in STARTS:
                yield (f"{target} on {budget} steps, {name}, {start}",
                       rotation.adaptation(levels, budget, start),
                       lambda choice=(levels, budget, start): _adapt(rotation, *choice))


def _share_episodes(rotation: Rotation) -> None:
    """Link the stored episodes of the source games; those that cannot be linked are played."""
    have, want = rotation.run.at("frames"), rotation.source.at("frames")
    runs.require(have)
    want.folder.mkdir(parents=True, exist_ok=True)
    for path in (path for game in want.games for path in have.folder.glob(f"*-{game}.np[yz]")):
        with contextlib.suppress(OSError):
            os.link(path, want.folder / path.name)
    play.collect(want)


def _adapt(rotation: Rotation, levels: int, budget: int, start: str) -> None:
    """Train one world model on the target's steps, from the pre-trained one or from scratch."""
    world_model.train(rotation.adaptation(levels, budget, start),
                      windows=rotation.target_windows(levels, budget),
                      start=rotation.model(levels, 0, start))


def measure(run: Run) -> list[dict]:
    """Next-code metrics on held-out episodes of each target, for each budget and before any.

    The value is the pre-trained model's, the baseline column the one from scratch with as many
    steps; [ngram] is counted on the same steps of the target, [one_level] is the pair that knows
    level 0 only. step: the budget.
    """
    return [found for rotation in rotations(run) for budget in (0, *rotation.run.cfg.budgets)
            for found in _measure(rotation, budget)]


@torch.no_grad()
def _measure(rotation: Rotation, budget: int) -> list[dict]:
    where = {"game": rotation.target, "step": budget}
    used = within_budget(rotation.data, budget).sum()
    rows = [row("transfer_steps", used, split="train", **where)]
    for levels, name in LEVELS.items():
        windows = rotation.target_windows(levels, budget)
        starts, suffix = windows.held_out(), "" if levels == 3 else f"[{name}]"
        pretrained, scratch = (world_model.score_windows(
            rotation.model(levels, budget, start), windows, starts) for start in STARTS)
        for level in range(levels):
            last, following = world_model.pairs(windows, starts, level)
            everywhere, changed = np.ones(len(last), bool), last != following
            for infix, subset in (("", everywhere), ("changed_", changed)):
                if not subset.any():  # a code that never changes
                    continue
                prefix = f"transfer_l{level}_{infix}"
                rows += [row(prefix + metric + suffix, value, baseline=base, **where)
                         for metric, value, base in _means(pretrained[level], scratch[level],
                                                           subset)]
                if levels == 3:
                    counted = world_model.baselines(windows.run, windows, rotation.target, level,
                                                    starts)["ngram"]
                    rows += [row(f"{prefix}{metric}[ngram]", value, **where)
                             for metric, value, _ in _means(counted, counted, subset)]
        saved = scratch[0].nats.mean() - pretrained[0].nats.mean()
        rows.append(row(f"transfer_l0_gain{suffix}", saved, baseline=0.0, **where))
    return rows


def _means(score, other, subset):
    """(metric, mean of score, mean of other) over a subset of the predictions."""
    for metric, field in (("cross_entropy", "nats"), ("accuracy", "is_right")):
        yield metric, getattr(score, field)[subset].mean(), getattr(other, field)[subset].mean()
