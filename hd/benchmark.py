"""Side-by-side timings of the hot stages: ours and what a user would pick instead, in one run.

Both sides run in turn, A B A B, with the same threads; the ratio is taken pair by pair, so it
holds when the machine's speed drifts. Rows go to results/benchmark below the artefact folder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gymnasium
import numpy as np
import pandas as pd
import torch
from ale_py import ALEInterface, roms
from ale_py.vector_env import AtariVectorEnv
from torch import nn
from vector_quantize_pytorch import ResidualVQ as TheirVQ

from hd import atari, machine, runs
from hd.config import EncoderConfig, WorldModelConfig
from hd.encoder import AtariEncoder, temporal_infonce
from hd.imagination import imagine
from hd.storage import artifacts_root, shown, write_atomically
from hd.tokenizer import ResidualVQ
from hd.world_model import WorldModel

PAIRS = 5


@dataclass
class Duel:
    """Ours against theirs; each call does `units` of work and returns nothing."""

    stage: str
    unit: str
    units: int
    ours: Callable[[], object]
    theirs: Callable[[], object]
    against: str


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(duel: Duel, pairs: int = PAIRS) -> dict:
    """Median units per second of both sides, and the median, least and largest ratio of pairs."""
    duel.ours(), duel.theirs()  # a warm-up each
    times = [(_seconds(duel.ours), _seconds(duel.theirs)) for _ in range(pairs)]
    ratios = [theirs / ours for ours, theirs in times]
    ours, theirs = (duel.units / statistics.median(side) for side in zip(*times))
    return {"stage": duel.stage, "unit": duel.unit, "ours": ours, "theirs": theirs,
            "against": duel.against, "ratio": statistics.median(ratios),
            "ratio_min": min(ratios), "ratio_max": max(ratios), "pairs": pairs,
            "device": machine.device_name(), "threads": torch.get_num_threads()}


def collecting(steps: int = 1000) -> Iterator[Duel]:
    """One process: our environment against the bare emulator, the standard wrappers and ale-py's
    own vector environment with one game."""
    env = atari.AtariGame("pong")
    bare = ALEInterface()
    bare.loadROM(roms.get_rom_path("pong"))
    wrapped = gymnasium.wrappers.AtariPreprocessing(gymnasium.make(
        "ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0, full_action_space=True))

    vector = AtariVectorEnv("pong", 1, num_threads=1, full_action_space=True)

    def ours():
        env.reset(seed=0)
        for _ in range(steps):
            env.step(0)

    def emulator():
        bare.reset_game()
        for _ in range(4 * steps):
            bare.act(0)

    def standard():
        wrapped.reset(seed=0)
        for _ in range(steps):
            wrapped.step(0)

    def vectorised():
        vector.reset(seed=0)
        for _ in range(steps):
            vector.step(np.zeros(1, np.int64))

    yield Duel("collecting", "steps", steps, ours, emulator, "the bare emulator")
    yield Duel("collecting", "steps", steps, ours, vectorised, "ale-py AtariVectorEnv, one game")
    yield Duel("collecting", "steps", steps, ours, standard, "gymnasium AtariPreprocessing")


def encoding(batch: int = 256) -> Iterator[Duel]:
    """One training step of the encoder, against float32 in the default memory layout."""
    frames = torch.randint(256, (batch, 4, 84, 84), dtype=torch.uint8)
    device = runs.device()
    fast, plain = AtariEncoder(EncoderConfig()).to(device), AtariEncoder(EncoderConfig())
    plain = plain.to(device, memory_format=torch.contiguous_format)

    def ours():
        with torch.autocast(device.type, dtype=torch.bfloat16):
            half = fast(frames.to(device)).chunk(2)
        temporal_infonce(*half, temperature=0.1).backward()
        fast.zero_grad()

    def theirs():
        pixels = frames.to(device).float() / 255
        embeddings = nn.functional.normalize(plain.head(plain.convolutions(pixels)), dim=1)
        temporal_infonce(*embeddings.chunk(2), temperature=0.1).backward()
        plain.zero_grad()

    yield Duel("encoder training", "images", batch, ours, theirs,
               "the same network in float32, NCHW")


def quantizing(num_rows: int = 30_000) -> Iterator[Duel]:
    """Fitting three levels of 256 codes for 20 batches, then encoding all rows."""
    rows = torch.nn.functional.normalize(torch.randn(num_rows, 384), dim=1)

    def fit(model):
        model.train()
        for i in range(20):
            model(rows[i * 1024:(i + 1) * 1024])
        model.eval()
        with torch.no_grad():
            model(rows)

    yield Duel("residual VQ", "rows", num_rows, lambda: fit(ResidualVQ()),
               lambda: fit(TheirVQ(dim=384, num_quantizers=3, codebook_size=256,
                                   kmeans_init=True)), "vector-quantize-pytorch")


def world_modelling(batch: int = 4) -> Iterator[Duel]:
    """One training step of the 11M-parameter model, against attention with a float mask."""
    cfg, device = WorldModelConfig(), runs.device()
    model = WorldModel(cfg).to(device)
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(
        cfg.dim, cfg.num_heads, cfg.ffn_dim, cfg.dropout, "gelu", batch_first=True,
        norm_first=True), cfg.num_layers, enable_nested_tensor=False).to(device)
    tokens = torch.randint(cfg.num_codes, (batch, cfg.max_steps, 3), device=device)
    data = {"tokens": tokens, "actions": tokens[..., 0] % 18,
            "rewards": torch.zeros(tokens.shape[:2], device=device),
            "continues": torch.ones(tokens.shape[:2], device=device)}
    mask = torch.zeros(model.mask.shape, device=device).masked_fill(~model.mask, float("-inf"))

    def ours():
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = model.loss(data).total
        loss.backward()
        model.zero_grad()

    def theirs():
        hidden = layers(model.embed(tokens, data["actions"]), mask=mask)
        (model.code_heads[0](hidden).square().mean() * 3).backward()
        layers.zero_grad()
        model.zero_grad()

    yield Duel("world-model training", "tokens", batch * cfg.max_steps * 4, ours, theirs,
               "nn.TransformerEncoder with a float mask, float32")


def imagining(batch: int = 16, horizon: int = 15) -> Iterator[Duel]:
    """Dreams with the KV cache, against a full forward pass for every token."""
    model = WorldModel(WorldModelConfig(), torch.randn(3, 256, 384)).to(runs.device()).eval()
    tokens = torch.randint(256, (batch, 16, 3), device=runs.device())
    actions = tokens[:, 1:, 0] % 18
    generator = torch.Generator().manual_seed(0)

    def act(features, generator):
        return torch.zeros(len(features), dtype=torch.long, device=features.device)

    @torch.no_grad()
    def full():
        codes, acted = tokens, torch.cat([actions, actions[:, :1]], 1)
        for _ in range(horizon):
            for _ in range(3):
                model(codes, acted)
            codes = torch.cat([codes, codes[:, -1:]], 1)
            acted = torch.cat([acted, acted[:, -1:]], 1)

    yield Duel("imagination", "steps", batch * horizon,
               lambda: imagine(model, tokens, actions, act, horizon=horizon, generator=generator),
               full, "a full forward pass for every token")


def main(pairs: int = PAIRS) -> int:
    """Run every duel, print and store the table; returns 0."""
    rows = []
    for make in (collecting, encoding, quantizing, world_modelling, imagining):
        for duel in make():
            rows.append(measure(duel, pairs))
            last = rows[-1]
            print(f"{last['stage']:22} {last['ours']:10,.0f} {last['unit']}/s, "
                  f"{last['ratio']:.2f}x {last['against']} "
                  f"({last['ratio_min']:.2f} to {last['ratio_max']:.2f})", flush=True)
    path = artifacts_root() / "benchmark" / "benchmark.csv"
    table = pd.DataFrame(rows).assign(commit=machine.git_state()["commit"],
                                      dirty=machine.git_state()["dirty"], numpy=np.__version__,
                                      torch=torch.__version__)
    write_atomically(path, lambda aside: table.to_csv(aside, index=False, float_format="%.4g"))
    print(f"written: {shown(path)}")
    return 0
