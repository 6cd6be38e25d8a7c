"""What the benchmark times, stage by stage: ours, and what a user would pick instead.

A stage yields duels (hd.bench.timing); each is over before the next is made.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from hd import encoder, tokenizer
from hd.bench import emulators, flops, opponents
from hd.bench.synthetic import clustered_rows
from hd.bench.timing import Duel, matrix_products, milliseconds, per_second, seconds
from hd.config import PROFILES, Profile
from hd.imagination import imagine
from hd.quantization import LibraryVQ
from hd.replay import Replay
from hd.run import training
from hd.run.machine import (
    available_memory_mb,
    device,
    device_kind,
    kept_memory,
    resident_memory_mb,
)
from hd.run.runs import Run
from hd.transformer import attention
from hd.windows import Windows
from hd.world_model import WorldModel, hierarchical_mask

GAMES = (emulators.GAME,)
OF_PEAK = ", share of peak"  # how such stages end
CONTEXT = 16  # real steps before a dream
MEMORY_PER_DREAM = 6.0  # MB that a full forward pass of the 11M-parameter model takes at most
CHUNK = 65_536  # rows whose error is computed at once


@dataclass(frozen=True)
class Sizes:
    """How much one timing does; the defaults are for a CPU. The models are those of profile, and
    of largest what must fit a card."""

    profile: Profile
    largest: Profile = PROFILES["paper"]
    episode: int = 800  # agent steps per process
    frames: int = 2000  # stored steps from which batches are read
    encoder_steps: int = 16  # of training; a loader needs some until its workers keep up
    steps: int = 4  # of training the world model
    batches: int = 5  # read
    rows: int = 300_000  # embeddings that are quantized
    dreams: tuple[int, ...] = (64, 1024)  # batch sizes
    horizon: int = 15
    growth: tuple[int, ...] = (30_000, 100_000, 300_000, 1_000_000)  # stored steps
    product: int = 2048  # rows of the matrices that give the peak
    # Of dreams by full forward passes: every token, or (steps ahead, level) that stand for it.
    tokens: dict = field(default_factory=lambda: {
        64: ((0, 0), (7, 1), (14, 2)), 1024: ((7, 0),)})


# ---- collecting

def collecting(sizes: Sizes) -> Iterator[Duel]:
    """Whole episodes into arrays, against the bare emulator stepping the very same frames and the
    vector environments doing the same actions."""
    count, here = os.cpu_count() or 1, emulators.Player(sizes.episode)
    with contextlib.closing(emulators.Players(count, sizes.episode)) as players, \
            contextlib.closing(emulators.gymnasium_envs(count)) as standard, \
            contextlib.closing(emulators.ale_envs(count)) as vector:
        steps = count * len(here.actions)

        def against(theirs, name, bar):
            return Duel("collecting", "steps/s", per_second(players.collect, steps),
                        per_second(theirs, steps), name, bar, profiled=here.collect)
        noun = f"{count} process{'es' * (count > 1)}"
        yield against(players.emulate, f"the bare emulator, {noun}", ">= 0.65")
        yield against(lambda: emulators.step_all(standard, here.actions),
                      f"gymnasium AsyncVectorEnv, {noun}", ">= 1.5")
        yield against(lambda: emulators.step_all(vector, here.actions),
                      f"ale-py AtariVectorEnv, {count} threads", ">= 1.5")


# ---- training

class Training:
    """Optimizer steps of one model as hd.run.training makes them; plain: in float32, and with
    memory as the C library handles it by itself."""

    def __init__(self, run: Run, model: torch.nn.Module, *, plain: bool = False):
        self.run, self.model = run, model.to(device()).train()
        self.dtype = None if plain else training.precision(run.cfg, device())
        self.memory = contextlib.nullcontext if plain else kept_memory
        self.optimizer = training.make_optimizer(model, run.cfg)
        self.scaler = torch.amp.GradScaler(device().type, enabled=self.dtype == torch.float16)
        self.done = 0

    def steps(self, feed, count: int) -> None:
        """feed.next() gives a batch."""
        for _ in range(count):
            training.one_step(self.model, feed, self.optimizer, self.scaler, self.dtype,
                              self.run.cfg, self.run, self.done)
            self.done += 1

    def rate(self, feed, count: int, amount: float) -> float:
        """amount / seconds of count steps, after one that finds its memory and is not timed."""
        with self.memory():
            self.steps(feed, 1)
            return amount / seconds(lambda: self.steps(feed, count))

    def rate_with_reading(self, batches: Callable[[int], dict], count: int, amount: float) -> float:
        """Batches are made one ahead in a thread, as in training."""
        with ThreadPoolExecutor(1) as loader:
            feed = training.Feed(batches, loader, self.done, self.done + count + 1)
            return self.rate(feed, count, amount)


@dataclass
class Kept:
    """A feed that gives the same batch again and again."""

    batch: dict

    def next(self) -> dict:
        return self.batch


@dataclass(frozen=True)
class Contest:
    """One stage's training: ours, theirs, our batches, the arithmetic of a step and the bars."""

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


def _training_duels(sizes: Sizes, contest: Contest) -> Iterator[Duel]:
    """Training, its share of the peak, and reading its batches."""
    count, ours = contest.count, contest.ours
    amount = count * contest.per_step

    def with_reading():
        return ours.rate_with_reading(contest.batches, count, amount)

    def theirs():
        return contest.theirs.rate(contest.feed.start(), count, amount)
    yield Duel(contest.stage, contest.unit, with_reading, theirs, contest.against, contest.bar)
    ours.memory = contextlib.nullcontext
    yield Duel(f"{contest.stage}, memory left to the C library", contest.unit, with_reading, theirs,
               contest.against, max_pairs=3)
    ours.memory = kept_memory
    batch = Kept(contest.batches(0))
    peak = ours.dtype or torch.float32
    yield Duel(f"{contest.stage}{OF_PEAK}", "GFLOP/s",
               lambda: ours.rate(batch, count, 1e-9 * contest.flops * count),
               matrix_products(peak, sizes.product), f"matrix product, {named(peak)}",
               contest.bar_of_peak)

    def read():
        for i in range(sizes.batches):
            contest.batches(i)
    yield Duel(f"reading for {contest.stage}", "ms/batch", milliseconds(read, sizes.batches),
               lambda: 1000 / ours.rate(batch, count, count), "its training step", "<= 0.1",
               profiled=read)

    def memory_after_reading():
        read()
        return resident_memory_mb()
    yield Duel(f"reading for {contest.stage}, memory", "MB", memory_after_reading,
               functools.cache(resident_memory_mb), "after the first batches", "<= 1.05")


def named(dtype: torch.dtype) -> str:
    """As a table shows it."""
    return str(dtype).removeprefix("torch.")


def encoding(sizes: Sizes, data: Replay) -> Iterator[Duel]:
    """The seed's triples: three frame stacks for each anchor."""
    run, on_cpu = Run("encoder", sizes.profile, games=GAMES), device_kind() == "cpu"
    size, model = run.cfg.batch_size, encoder.AtariEncoder(run.cfg)
    stacks = torch.from_numpy(data.stack(np.arange(len(data))))
    feed = opponents.LoaderFeed(opponents.Triples(stacks), batch_size=size,
                                count=sizes.encoder_steps + 1, collate=opponents.triples_to_batch)
    yield from _training_duels(sizes, Contest(
        "encoder training", "images/s", 3 * size, sizes.encoder_steps, Training(run, model),
        encoder.frames_to_compare(run.cfg, data, run.seed),
        Training(run, opponents.PlainEncoder(run.cfg), plain=True), feed,
        "the same network in float32, NCHW, DataLoader of 2 workers",
        flops.encoder_training(model, 3 * size), ">= 3" if on_cpu else "", ""))


def world_modelling(sizes: Sizes, data: Replay) -> Iterator[Duel]:
    """Windows of the played steps with random codes."""
    run, on_cpu = Run("world_model", sizes.profile, games=GAMES), device_kind() == "cpu"
    cfg, windows = run.cfg, windows_of(run, data)
    model = WorldModel(cfg)
    columns = {"tokens": torch.from_numpy(windows.tokens.astype(np.int64)),
               "actions": torch.from_numpy(data.actions.astype(np.int64)),
               "rewards": torch.from_numpy(data.rewards),
               "continues": torch.from_numpy(data.continues)}
    feed = opponents.LoaderFeed(opponents.StepWindows(columns, cfg.max_steps),
                                batch_size=cfg.batch_size, count=sizes.steps + 1)
    yield from _training_duels(sizes, Contest(
        "world-model training", "tokens/s", 4 * cfg.batch_size * cfg.max_steps, sizes.steps,
        Training(run, model), lambda i: windows.batch(windows.batch_starts(i), cfg.max_steps),
        Training(run, opponents.PlainWorldModel(cfg), plain=True), feed,
        "the same model on nn.MultiheadAttention with a float mask, float32, DataLoader",
        flops.world_model_training(model, cfg.batch_size, cfg.max_steps),
        ">= 2" if on_cpu else "", ">= 0.4" if on_cpu else ">= 0.3"))


def windows_of(run: Run, data: Replay) -> Windows:
    """The windows of played steps, with random codes."""
    codes = np.random.default_rng(0).integers(0, run.cfg.num_codes, (len(data), 3), np.int16)
    return Windows(run.cfg, data, codes, seed=run.seed)


def masking(sizes: Sizes) -> Iterator[Duel]:
    """One layer's attention, forward and back, under the world model's mask, against torch's
    kernel: under the same mask, and causal without one, skipping all that lies ahead."""
    cfg = sizes.profile.world_model
    dtype, length = training.precision(cfg, device()) or torch.float32, 4 * cfg.max_steps
    shape = (3, cfg.batch_size, cfg.num_heads, length, cfg.dim // cfg.num_heads)
    parts = torch.randn(shape, device=device(), dtype=dtype).requires_grad_()
    mask = hierarchical_mask(cfg.max_steps, cfg.mask).to(device())

    def layer(attend, **how):
        def forward_and_back():
            for _ in range(sizes.steps):
                attend(*parts, **how).sum().backward()
        return milliseconds(forward_and_back, sizes.steps)
    for against, how in (("under the same mask", {"attn_mask": mask}),
                         ("causal", {"is_causal": True})):
        yield Duel(f"attention under the mask, {length} tokens", "ms/layer",
                   layer(attention, mask=mask), layer(F.scaled_dot_product_attention, **how),
                   f"torch's kernel, {against}")


# ---- quantizing

@torch.no_grad()
def _error_left(model, rows, codes) -> float:
    """Mean squared distance of rows (N, D) and what their codes (N, L) decode to."""
    left = sum((part - model.decode(code.to(device()).long()).cpu()).square().sum().item()
               for part, code in zip(rows.split(CHUNK), codes.split(CHUNK)))
    return left / len(rows)


def quantizing(sizes: Sizes) -> Iterator[Duel]:
    """Fitting the codebooks in one pass, then encoding all rows; and the error that is left."""
    run = Run("tokenizer", sizes.profile, games=GAMES)
    rows, cfg, errors = clustered_rows(sizes.rows), run.cfg, {"ours": [], "theirs": []}

    def side(name, make):
        def rate():
            model, found = make().to(device()).train(), []

            def fit_and_encode():
                for batch in rows.split(cfg.batch_size):
                    model(batch.to(device()))
                found.append(tokenizer.encode_all(model.eval(), rows.numpy()))
            taken = seconds(fit_and_encode)
            errors[name].append(_error_left(model, rows, torch.from_numpy(found[0])))
            return len(rows) / taken
        return rate
    library = "vector-quantize-pytorch ResidualVQ"
    yield Duel("residual VQ, fitting and encoding", "rows/s",
               side("ours", lambda: tokenizer.build(cfg)),
               side("theirs", lambda: LibraryVQ(cfg.num_levels, cfg.num_codes, decay=cfg.decay)),
               library, ">= 2")
    # The errors of the very runs that were timed, one after the other.
    yield Duel("residual VQ, error left", "squared error", *(
        iter(errors[name]).__next__ for name in ("ours", "theirs")), library, "<= 1.01")


# ---- imagining

def imagining(sizes: Sizes) -> Iterator[Duel]:
    """Dreams with the key-value cache, against a full forward pass for every token."""
    cfg, seed = sizes.profile.world_model, torch.Generator().manual_seed(0)
    model = WorldModel(cfg, torch.randn(3, cfg.num_codes, 384)).to(device()).eval()
    for batch in sizes.dreams:
        if device_kind() == "cpu" and available_memory_mb() < MEMORY_PER_DREAM * batch:
            print(f"imagination of {batch} dreams is left out: it needs "
                  f"{MEMORY_PER_DREAM * batch:,.0f} MB of memory", flush=True)
            continue
        steps = CONTEXT + sizes.horizon
        tokens = torch.randint(cfg.num_codes, (batch, steps, 3), device=device())
        actions = tokens[..., 0] % cfg.num_actions

        def ours(tokens=tokens[:, :CONTEXT], actions=actions[:, :CONTEXT - 1]):
            imagine(model, tokens, actions, _stand_still, horizon=sizes.horizon, generator=seed)
        chosen = sizes.tokens.get(batch) or tuple(
            (ahead, level) for ahead in range(sizes.horizon) for level in range(3))

        def theirs(tokens=tokens, actions=actions, chosen=chosen):
            for ahead, level in chosen:
                seen = CONTEXT + ahead + (level > 0)
                opponents.next_code(model, tokens[:, :seen], actions[:, :seen], level)
        is_long = device_kind() == "cpu" and batch > 100
        few = {"max_pairs": 2, "warm_up": False} if is_long else {}
        part = "" if len(chosen) == 3 * sizes.horizon else f", {len(chosen)} of the tokens timed"
        rate = per_second(ours, batch * sizes.horizon)
        yield Duel(f"imagination, {batch} dreams", "steps/s", rate,
                   per_second(theirs, batch * len(chosen) / 3),
                   f"a full forward pass for every token{part}", ">= 10", **few)
        amount = 1e-9 * flops.imagination(model, batch, CONTEXT, sizes.horizon)
        if not is_long:
            yield Duel(f"imagination, {batch} dreams{OF_PEAK}", "GFLOP/s",
                       per_second(ours, amount), matrix_products(torch.float32, sizes.product),
                       "matrix product, float32")


def _stand_still(features, generator):
    return torch.zeros(len(features), dtype=torch.long, device=features.device)
