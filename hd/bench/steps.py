"""The models, batches and training steps that are timed, made as the pipeline makes them.

The only module of the benchmark that knows how the pipeline builds a model or a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from hd import encoder, policy, tokenizer
from hd.bench.timing import seconds
from hd.config import Profile
from hd.replay import Replay
from hd.run import training
from hd.run.machine import device, kept_memory
from hd.windows import Windows
from hd.world_model import WorldModel

EMBEDDING_DIM = 384


# ---- models

def network(stage: str, profile: Profile) -> torch.nn.Module:
    """An untrained "encoder", "tokenizer", "world_model" or "policy"; codebooks are random, and
    the policy's world model stands frozen on the device."""
    if stage == "encoder":
        return encoder.AtariEncoder(profile.encoder)
    if stage == "tokenizer":
        return tokenizer.build(profile.tokenizer)
    model = WorldModel(profile.world_model, torch.randn(
        profile.world_model.num_levels, profile.world_model.num_codes, EMBEDDING_DIM))
    if stage == "world_model":
        return model
    return policy.build(profile.policy, model.to(device()).eval().requires_grad_(False))


# ---- batches of stored steps

def encoder_batches(profile: Profile, data: Replay) -> Callable[[int], dict]:
    """The i-th contrastive batch of the stored steps, from i alone."""
    return encoder.frames_to_compare(profile.encoder, data, seed=0)


def windows_of(profile: Profile, data: Replay) -> Windows:
    """The windows of stored steps, with random codes."""
    codes = np.random.default_rng(0).integers(0, profile.world_model.num_codes, (len(data), 3),
                                              np.int16)
    return Windows(profile.world_model, data, codes, seed=0)


# ---- training steps

class Training:
    """Optimizer steps of one model as hd.run.training makes them; plain: in float32, and with
    memory as the C library handles it by itself."""

    def __init__(self, stage: str, profile: Profile, model: torch.nn.Module, *,
                 plain: bool = False):
        self.run, self.cfg = training.Unkept(stage), getattr(profile, stage)
        self.model = model.to(device()).train()
        self.dtype = None if plain else training.precision(self.cfg, device())
        self.memory = contextlib.nullcontext if plain else kept_memory
        self.optimizer = training.make_optimizer(model, self.cfg)
        self.scaler = torch.amp.GradScaler(device().type, enabled=self.dtype == torch.float16)
        self.done = 0

    def steps(self, feed, count: int) -> None:
        """feed.next() gives a batch."""
        for _ in range(count):
            training.one_step(self.model, feed, self.optimizer, self.scaler, self.dtype, self.cfg,
                              self.run, self.done)
            self.done += 1

    def rate(self, feed, count: int, amount: float) -> float:
        """amount / seconds of count steps, after one that finds its memory and is not timed."""
        with self.memory():
            self.steps(feed, 1)
            return amount / seconds(lambda: self.steps(feed, count))

    def rate_with_reading(self, batches: Callable[[int], dict], count: int, amount: float) -> float:
        """As rate; batches are made one ahead in a thread, as in training."""
        with ThreadPoolExecutor(1) as loader:
            feed = training.Feed(batches, loader, self.done, self.done + count + 1)
            return self.rate(feed, count, amount)

    def milliseconds(self, feed, count: int) -> float:
        """The time of one of count steps."""
        return 1000 / self.rate(feed, count, count)


@dataclass
class SameBatch:
    """A feed that gives the same batch again and again."""

    batch: dict

    def next(self) -> dict:
        return self.batch
