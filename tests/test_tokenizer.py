"""hd.tokenizer: fitting codes to training rows, taking them over, encoding all rows."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import refusal

from hd import tokenizer
from hd.config import TokenizerConfig
from hd.quantization import LibraryVQ, ResidualVQ
from hd.run.training import Unkept

N, D, L, K = 600, 384, 2, 16
CFG = TokenizerConfig(num_levels=L, num_codes=K, commitment_costs=(0.1, 0.2), num_steps=8,
                      batch_size=128)


@pytest.fixture(scope="module")
def embeddings():
    """Rows of unit length around twenty directions."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, D))[rng.integers(0, 20, N)] + 0.5 * rng.normal(size=(N, D))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fitted(embeddings, is_train=None, seed=0):
    is_train = np.ones(N, bool) if is_train is None else is_train
    return tokenizer.train(CFG, embeddings, is_train, Unkept("tokenizer", seed))


# ---- building and fitting


def test_it_is_built_as_the_config_says():
    model = tokenizer.build(dataclasses.replace(
        CFG, decay=0.5, kmeans_iterations=3, refill_below=0.25, project_dim=32))
    assert isinstance(model, ResidualVQ) and model.codebooks.shape == (L, K, 32)
    assert model.commitment_costs == (0.1, 0.2) and model.slices is None
    assert (model.decay, model.kmeans_iterations, model.refill_below) == (0.5, 3, 0.25)
    assert tokenizer.build(dataclasses.replace(CFG, kind="product")).slices is not None
    assert isinstance(tokenizer.build(dataclasses.replace(CFG, kind="library")), LibraryVQ)


def test_codes_come_much_closer_to_the_rows_than_their_mean(embeddings):
    model, record = fitted(embeddings)
    assert not model.training and len(record["history"]) == CFG.num_steps
    with torch.no_grad():
        error = (torch.from_numpy(embeddings) - model(torch.from_numpy(embeddings)).quantized)
    assert error.pow(2).sum(1).mean() < 0.5 * embeddings.var(0).sum()


def test_what_is_held_out_teaches_nothing(embeddings):
    is_train = np.arange(N) % 3 > 0
    model, _ = fitted(embeddings, is_train)
    changed = np.where(is_train[:, None], embeddings, -7.0).astype(np.float32)
    again, _ = fitted(changed, is_train)
    assert torch.equal(model.codebooks, again.codebooks)
    other = np.where(is_train[:, None], -embeddings, embeddings)
    assert not torch.equal(model.codebooks, fitted(other, is_train)[0].codebooks)


def test_the_same_seed_gives_the_same_codebooks_and_another_does_not(embeddings):
    first, again, other = (fitted(embeddings, seed=seed)[0].codebooks for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ---- codebooks that trained together with an encoder


def test_adopted_codebooks_are_those_of_the_source_to_the_bit_and_its_own(embeddings):
    source = fitted(embeddings)[0].train()
    kept = {name: value.clone() for name, value in source.state_dict().items()}
    model = tokenizer.adopted(CFG, source)
    assert not model.training and model.state_dict().keys() == kept.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    rows = torch.from_numpy(embeddings)
    assert torch.equal(model.encode(rows), source.eval().encode(rows))
    source.codebooks.zero_()
    assert torch.equal(model.codebooks, kept["codebooks"])


@pytest.mark.parametrize("fields, shape", [
    ({"num_codes": 8}, "(2, 8, 384)"),
    ({"num_levels": 1, "commitment_costs": (0.1,)}, "(1, 16, 384)"),
    ({"project_dim": 32}, "(2, 16, 32)"),
])
def test_codebooks_of_another_shape_are_refused_in_one_line(fields, shape):
    message = refusal(tokenizer.adopted, dataclasses.replace(CFG, **fields), ResidualVQ(
        L, K, D, commitment_costs=(0.1, 0.2)))
    assert "trained codebooks of shape (2, 16, 384)" in message
    assert message.endswith(f"the tokenizer's config asks for {shape}")


# ---- all rows


def test_all_rows_are_encoded_in_pieces_as_at_once(embeddings, monkeypatch):
    model, _ = fitted(embeddings)
    expected = model.encode(torch.from_numpy(embeddings)).numpy()
    monkeypatch.setattr(tokenizer, "ENCODE_ROWS", 250)
    found = tokenizer.encode_all(model, embeddings)
    assert found.dtype == np.int16 and found.shape == (N, L)
    np.testing.assert_array_equal(found, expected)


def test_codes_of_any_shape_become_their_vectors(embeddings):
    model, _ = fitted(embeddings)
    codes = np.array([[[3, 0], [15, 7]]], np.int16)
    found = tokenizer.quantized(model, codes)
    assert found.shape == (1, 2, D) and found.dtype == np.float32
    expected = model.codebooks[0, [3, 15]] + model.codebooks[1, [0, 7]]
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-6)
