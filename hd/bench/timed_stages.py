"""What the benchmark times, stage by stage: ours, and what a user would pick instead.

A stage yields comparisons (hd.bench.timing); each is over before the next is made.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from hd import tokenizer
from hd.bench import emulators, flops, opponents, synthetic
from hd.bench.sizes import Sizes
from hd.bench.steps import SameBatch, Training, encoder_batches, network, windows_of
from hd.bench.timing import (
    Comparison,
    matrix_products,
    milliseconds,
    named,
    per_second,
    seconds,
)
from hd.config import TrainedStage
from hd.imagination import imagine
from hd.quantization import LibraryVQ
from hd.replay import Replay
from hd.run import training
from hd.run.machine import (
    available_memory_mb,
    cpu_count,
    device,
    device_kind,
    kept_memory,
    resident_memory_mb,
)
from hd.transformer import attention
from hd.world_model import SLOTS, hierarchical_mask

OF_PEAK = ", share of peak"  # how such stages end
CONTEXT = 16  # real steps before a dream
MEMORY_PER_DREAM = 6.0  # MB that a full forward pass of the 11M-parameter model takes at most
MANY_DREAMS = 100  # from which on a CPU takes long for them
CHUNK = 65_536  # rows whose error is computed at once


# ---- collecting

def collecting(sizes: Sizes) -> Iterator[Comparison]:
    """Whole episodes into arrays, against the bare emulator stepping the very same frames and the
    vector environments doing the same actions."""
    count, here = cpu_count(), emulators.Player(sizes.episode)
    with contextlib.closing(emulators.Players(count, sizes.episode)) as players, \
            contextlib.closing(emulators.gymnasium_envs(count)) as standard, \
            contextlib.closing(emulators.ale_envs(count)) as vector:
        steps = count * len(here.actions)

        def against(theirs, name, bar):
            return Comparison("collecting", "steps/s", per_second(players.collect, steps),
                              per_second(theirs, steps), name, bar, profiled=here.collect)
        processes = "1 process" if count == 1 else f"{count} processes"
        yield against(players.emulate, f"the bare emulator, {processes}", ">= 0.65")
        yield against(lambda: emulators.step_all(standard, here.actions),
                      f"gymnasium AsyncVectorEnv, {processes}", ">= 1.5")
        yield against(lambda: emulators.step_all(vector, here.actions),
                      f"ale-py AtariVectorEnv, {count} threads", ">= 1.5")


# ---- training

@dataclass(frozen=True)
class Trainings:
    """Two trainings of one stage: ours, theirs, the batches of each, the arithmetic of a step and
    the bars."""

    stage: str
    unit: str
    per_step: int  # units that a step works on
    count: int  # of steps
    ours: Training
    batches: Callable[[int], dict]
    theirs: Training
    feed: opponents.LoaderFeed
    against: str
    flops: float  # of a step
    bar: str
    bar_of_peak: str

    def train_ours(self) -> float:
        """Units a second, batches made one ahead."""
        return self.ours.rate_with_reading(self.batches, self.count, self.count * self.per_step)

    def train_theirs(self) -> float:
        """Units a second, batches from the DataLoader."""
        return self.theirs.rate(self.feed.start(), self.count, self.count * self.per_step)


def _compare_trainings(sizes: Sizes, both: Trainings) -> Iterator[Comparison]:
    """Training, its share of the peak, and reading its batches."""
    count, ours = both.count, both.ours
    yield Comparison(both.stage, both.unit, both.train_ours, both.train_theirs, both.against,
                     both.bar)
    ours.memory = contextlib.nullcontext
    yield Comparison(f"{both.stage}, memory left to the C library", both.unit, both.train_ours,
                     both.train_theirs, both.against, max_pairs=3)
    ours.memory = kept_memory
    batch = SameBatch(both.batches(0))
    peak = ours.dtype or torch.float32
    yield Comparison(f"{both.stage}{OF_PEAK}", "GFLOP/s",
                     lambda: ours.rate(batch, count, 1e-9 * both.flops * count),
                     matrix_products(peak, sizes.product), f"matrix product, {named(peak)}",
                     both.bar_of_peak)

    def read():
        for i in range(sizes.batches):
            both.batches(i)
    yield Comparison(f"reading for {both.stage}", "ms/batch", milliseconds(read, sizes.batches),
                     lambda: ours.milliseconds(batch, count), "its training step", "<= 0.1",
                     profiled=read)

    def memory_after_reading():
        read()
        return resident_memory_mb()
    yield Comparison(f"reading for {both.stage}, memory", "MB", memory_after_reading,
                     functools.cache(resident_memory_mb), "after the first batches", "<= 1.05")


def _halves_on_a_cpu(cfg: TrainedStage) -> bool:
    """Whether this is a CPU that is fast in half precision, on which the bars of training rest."""
    return device_kind() == "cpu" and training.precision(cfg, device()) is not None


def encoding(sizes: Sizes, data: Replay) -> Iterator[Comparison]:
    """The seed's triples: three frame stacks for each anchor."""
    profile, halves = sizes.profile, _halves_on_a_cpu(sizes.profile.encoder)
    size, model = profile.encoder.batch_size, network("encoder", profile)
    stacks = torch.from_numpy(data.stack(np.arange(len(data))))
    feed = opponents.LoaderFeed(opponents.Triples(stacks), batch_size=size,
                                count=sizes.encoder_steps + 1, collate=opponents.triples_to_batch)
    yield from _compare_trainings(sizes, Trainings(
        "encoder training", "images/s", 3 * size, sizes.encoder_steps,
        Training("encoder", profile, model), encoder_batches(profile, data),
        Training("encoder", profile, opponents.PlainEncoder(profile.encoder), plain=True), feed,
        "the same network in float32, NCHW, DataLoader of 2 workers",
        flops.encoder_training(model, 3 * size), ">= 3" if halves else "", ""))


def world_modelling(sizes: Sizes, data: Replay) -> Iterator[Comparison]:
    """Windows of the played steps with random codes."""
    profile, halves = sizes.profile, _halves_on_a_cpu(sizes.profile.world_model)
    cfg, windows, model = profile.world_model, windows_of(profile, data), network(
        "world_model", profile)
    columns = {"tokens": torch.from_numpy(windows.tokens.astype(np.int64)),
               "actions": torch.from_numpy(data.actions.astype(np.int64)),
               "rewards": torch.from_numpy(data.rewards),
               "continues": torch.from_numpy(data.continues)}
    feed = opponents.LoaderFeed(opponents.StepWindows(columns, cfg.max_steps),
                                batch_size=cfg.batch_size, count=sizes.steps + 1)
    yield from _compare_trainings(sizes, Trainings(
        "world-model training", "tokens/s", len(SLOTS) * cfg.batch_size * cfg.max_steps,
        sizes.steps,
        Training("world_model", profile, model),
        lambda i: windows.batch(windows.batch_starts(i), cfg.max_steps),
        Training("world_model", profile, opponents.PlainWorldModel(cfg), plain=True), feed,
        "the same model on nn.MultiheadAttention with a float mask, float32, DataLoader",
        flops.world_model_training(model, cfg.batch_size, cfg.max_steps),
        ">= 2" if halves else "", ">= 0.4" if device_kind() == "cpu" else ">= 0.3"))


def masking(sizes: Sizes) -> Iterator[Comparison]:
    """One layer's attention, forward and back, under the world model's mask, against torch's
    kernel: under the same mask, and causal without one, skipping all that lies ahead."""
    cfg = sizes.profile.world_model
    dtype, length = training.precision(cfg, device()) or torch.float32, len(SLOTS) * cfg.max_steps
    shape = (3, cfg.batch_size, cfg.num_heads, length, cfg.dim // cfg.num_heads)
    parts = torch.randn(shape, device=device(), dtype=dtype).requires_grad_()
    mask = hierarchical_mask(cfg.max_steps, cfg.mask).to(device())

    def layer(attend, **how):
        def forward_and_back():
            for _ in range(sizes.steps):
                attend(*parts, **how).sum().backward()
        return milliseconds(forward_and_back, sizes.steps)
    kernels = {"under the same mask": {"attn_mask": mask}, "causal": {"is_causal": True}}
    for which, how in kernels.items():
        yield Comparison(f"attention under the mask, {length} tokens", "ms/layer",
                         layer(attention, mask=mask),
                         layer(F.scaled_dot_product_attention, **how), f"torch's kernel, {which}")


# ---- quantizing

@torch.no_grad()
def _error_left(model, rows, codes) -> float:
    """Mean squared distance of rows (N, D) and what their codes (N, L) decode to."""
    left = sum((part - model.decode(code.to(device()).long()).cpu()).square().sum().item()
               for part, code in zip(rows.split(CHUNK), codes.split(CHUNK)))
    return left / len(rows)


def quantizing(sizes: Sizes) -> Iterator[Comparison]:
    """Fitting the codebooks in one pass, then encoding all rows; and the error that is left."""
    cfg, rows = sizes.profile.tokenizer, synthetic.clustered_rows(sizes.rows)
    errors: dict[str, list[float]] = {"ours": [], "theirs": []}

    def fit_and_encode(model):
        for batch in rows.split(cfg.batch_size):
            model(batch.to(device()))
        return tokenizer.encode_all(model.eval(), rows.numpy())

    def side(name, make):
        def rate():
            model, codes = make().to(device()).train(), []
            taken = seconds(lambda: codes.append(fit_and_encode(model)))
            errors[name].append(_error_left(model, rows, torch.from_numpy(codes[0])))
            return len(rows) / taken
        return rate
    library = "vector-quantize-pytorch ResidualVQ"
    yield Comparison(
        "residual VQ, fitting and encoding", "rows/s",
        side("ours", lambda: network("tokenizer", sizes.profile)),
        side("theirs", lambda: LibraryVQ(cfg.num_levels, cfg.num_codes, decay=cfg.decay)),
        library, ">= 2")
    # The errors of the very runs that were timed, one after the other.
    ours, theirs = (iter(errors[name]).__next__ for name in ("ours", "theirs"))
    yield Comparison("residual VQ, error left", "squared error", ours, theirs, library, "<= 1.01")


# ---- imagining

def imagining(sizes: Sizes) -> Iterator[Comparison]:
    """Dreams with the key-value cache, against a full forward pass for every token."""
    model = network("world_model", sizes.profile).to(device()).eval()
    for batch in sizes.dreams:
        if device_kind() == "cpu" and available_memory_mb() < MEMORY_PER_DREAM * batch:
            print(f"imagination of {batch} dreams is left out: it needs "
                  f"{MEMORY_PER_DREAM * batch:,.0f} MB of memory", flush=True)
            continue
        yield from _compare_dreams(sizes, model, batch)


def _compare_dreams(sizes: Sizes, model, batch: int) -> Iterator[Comparison]:
    """batch dreams, and their share of the peak."""
    cfg, seed = model.cfg, torch.Generator().manual_seed(0)
    tokens = torch.randint(cfg.num_codes, (batch, CONTEXT + sizes.horizon, 3), device=device())
    actions = tokens[..., 0] % cfg.num_actions
    every_token = tuple((ahead, level) for ahead in range(sizes.horizon) for level in range(3))
    chosen = sizes.tokens.get(batch) or every_token

    def ours():
        imagine(model, tokens[:, :CONTEXT], actions[:, :CONTEXT - 1], _stand_still,
                horizon=sizes.horizon, generator=seed)

    def theirs():
        for ahead, level in chosen:
            seen = CONTEXT + ahead + (level > 0)
            opponents.next_code(model, tokens[:, :seen], actions[:, :seen], level)
    against = "a full forward pass for every token"
    if chosen != every_token:
        against += f", {len(chosen)} of the tokens timed"
    is_long = device_kind() == "cpu" and batch > MANY_DREAMS
    yield Comparison(f"imagination, {batch} dreams", "steps/s",
                     per_second(ours, batch * sizes.horizon),
                     per_second(theirs, batch * len(chosen) / 3), against, ">= 10",
                     max_pairs=2 if is_long else None, warm_up=not is_long)
    if not is_long:
        amount = 1e-9 * flops.imagination(model, batch, CONTEXT, sizes.horizon)
        yield Comparison(f"imagination, {batch} dreams{OF_PEAK}", "GFLOP/s",
                         per_second(ours, amount), matrix_products(torch.float32, sizes.product),
                         "matrix product, float32")


def _stand_still(features, generator):
    return torch.zeros(len(features), dtype=torch.long, device=features.device)


def updating(sizes: Sizes) -> Iterator[Comparison]:
    """The whole update of the policy: dreams, loss and optimizer step, against the same with
    dreams by torch's kernel and torch's sampling."""
    profile, cfg = sizes.profile, sizes.profile.policy
    batch = SameBatch(synthetic.batches(profile)["policy"])

    def update(model):
        trained = Training("policy", profile, model)
        return lambda: trained.milliseconds(batch, sizes.updates)
    plain = network("policy", profile)
    plain.dream = functools.partial(opponents.dream, plain)
    yield Comparison(f"policy update, {cfg.batch_size} dreams of {cfg.horizon} steps", "ms/update",
                     update(network("policy", profile)), update(plain),
                     "dreams by torch's attention kernel and multinomial")
