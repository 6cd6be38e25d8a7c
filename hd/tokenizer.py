"""Embeddings <-> tokens: fitting a quantizer to frozen embeddings, encoding all of them.

The quantizer itself, ResidualVQ, is in hd.quantization.
"""

from __future__ import annotations

import numpy as np
import torch

from hd.config import InputError, TokenizerConfig
from hd.quantization import LibraryVQ, ResidualVQ
from hd.run import training
from hd.run.machine import device
from hd.run.runs import Run, rng_for
from hd.run.training import Unkept

ENCODE_ROWS = 8192  # at once: their distances to all codes stay in the cache


def build(cfg: TokenizerConfig) -> ResidualVQ | LibraryVQ:
    """An untrained tokenizer."""
    if cfg.kind == "library":
        return LibraryVQ(cfg.num_levels, cfg.num_codes, decay=cfg.decay)
    return ResidualVQ(cfg.num_levels, cfg.num_codes, commitment_costs=cfg.commitment_costs,
                      decay=cfg.decay, kmeans_iterations=cfg.kmeans_iterations,
                      refill_below=cfg.refill_below, kind=cfg.kind, project_dim=cfg.project_dim)


def train(cfg: TokenizerConfig, embeddings: np.ndarray, is_train: np.ndarray,
          run: Run | Unkept) -> tuple[ResidualVQ, dict]:
    """Fit the codebooks to embeddings (N, D) of the rows that is_train (N,) bool allows."""
    rows = np.flatnonzero(is_train)

    def batches(i: int):
        picks = rng_for(run.seed, "tokenizer", i).choice(rows, cfg.batch_size)
        return {"embeddings": torch.from_numpy(embeddings[np.sort(picks)])}

    model = build(cfg)
    record = training.train(model, batches, cfg, run)
    return model, record


def adopted(cfg: TokenizerConfig, source: ResidualVQ) -> ResidualVQ:
    """The codebooks that trained together with an encoder, as they are.

    Raises InputError where they are not those that the config asks for.
    """
    model = build(cfg)
    if source.codebooks.shape != model.codebooks.shape:
        raise InputError(f"the encoder trained codebooks of shape {tuple(source.codebooks.shape)}; "
                         f"the tokenizer's config asks for {tuple(model.codebooks.shape)}")
    model.load_state_dict(source.state_dict())
    return model.to(device()).eval()


def encode_all(model: ResidualVQ, embeddings: np.ndarray) -> np.ndarray:
    """embeddings (N, D) -> codes (N, L) int16, in pieces that fit the memory."""
    parts = [model.encode(torch.tensor(embeddings[i:i + ENCODE_ROWS]).to(device()))
             for i in range(0, len(embeddings), ENCODE_ROWS)]
    return torch.cat(parts).to(torch.int16).cpu().numpy()


def quantized(model: ResidualVQ, codes: np.ndarray) -> np.ndarray:
    """codes (..., L) -> quantized vectors (..., D) float32."""
    chosen = torch.from_numpy(codes.astype(np.int64)).to(device())
    return model.decode(chosen).cpu().numpy()
