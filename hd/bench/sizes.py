"""How much work each timing of the benchmark does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from hd.bench.emulators import GAME
from hd.config import PROFILES, Profile

GAMES = (GAME,)


@dataclass(frozen=True)
class Sizes:
    """Amounts of one timing; the defaults are for a CPU. The models are those of profile, and of
    largest what must fit a card."""

    profile: Profile
    largest: Profile = PROFILES["paper"]
    episode: int = 800  # agent steps per process
    frames: int = 2000  # stored steps from which batches are read
    encoder_steps: int = 16  # of training; a loader needs some until its workers keep up
    steps: int = 4  # of training the world model
    small_steps: int = 40  # of training a small transformer beside a busy process
    updates: int = 3  # of the policy
    batches: int = 5  # read
    rows: int = 300_000  # embeddings that are quantized
    dreams: tuple[int, ...] = (64, 1024)  # batch sizes
    horizon: int = 15
    growth: tuple[int, ...] = (30_000, 100_000, 300_000, 1_000_000)  # stored steps
    product: int = 2048  # rows of the matrices that give the peak
    # Of dreams by full forward passes: every token, or (steps ahead, level) that stand for it.
    tokens: dict = field(default_factory=lambda: {
        64: ((0, 0), (7, 1), (14, 2)), 1024: ((7, 0),)})


def sizes_for(kind: str, *, quick: bool = False) -> Sizes:
    """kind: "cpu" or "gpu". A GPU times the models of paper, a CPU those of desk; quick: of
    smoke, as little as shows that everything runs."""
    if quick:
        tiny = _resized(PROFILES["smoke"], anchors=8, windows=2)
        return Sizes(tiny, tiny, episode=20, frames=60, encoder_steps=1, steps=1, small_steps=1,
                     updates=1, batches=1, rows=1200, dreams=(3,), horizon=2, growth=(100, 300),
                     product=64, tokens={})
    if kind == "gpu":
        return Sizes(_resized(PROFILES["paper"], anchors=256, windows=32), encoder_steps=40,
                     steps=20, updates=10, batches=20, product=8192, tokens={})
    return Sizes(_resized(PROFILES["desk"], anchors=256, windows=16))


def _resized(profile: Profile, *, anchors: int, windows: int) -> Profile:
    """The profile with the benchmark's batch sizes and one batch a step."""
    return dataclasses.replace(
        profile, encoder=dataclasses.replace(profile.encoder, batch_size=anchors),
        world_model=dataclasses.replace(profile.world_model, batch_size=windows, accumulate=1))
