"""Attention blocks: what the mask hides stays hidden, and the cache changes nothing but speed."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hd.transformer import FEW_QUERIES, Block, KVCache, Transformer, attention, dropout

B, S, DIM, HEADS, LAYERS = 2, 11, 24, 3, 4
# Double precision: sums in another order differ by about 1e-16 times a few hundred terms.
ROUNDING = 1e-12


@pytest.fixture(autouse=True)
def one_thread():
    """On matrices this small a second thread costs more than it brings."""
    torch.set_num_threads(1)


def small_transformer(**changes):
    sizes = {"dim": DIM, "num_layers": LAYERS, "num_heads": HEADS, "ffn_dim": 40, "dropout": 0.1}
    return Transformer(**sizes | changes).double().eval()


def any_mask(length=S):
    """Random, but every position sees itself and nobody sees the future."""
    return torch.rand(length, length).round().bool().tril() | torch.eye(length, dtype=torch.bool)


def test_output_has_the_shape_of_the_input():
    x = torch.randn(B, S, DIM, dtype=torch.double)
    assert small_transformer()(x, any_mask()).shape == (B, S, DIM)


def test_a_block_equals_attention_written_out_in_loops():
    block = Block(DIM, HEADS, 40, dropout=0.1).double().eval()
    x, mask = torch.randn(B, S, DIM, dtype=torch.double), any_mask()
    width = DIM // HEADS
    queries, keys, values = block.attention_in(block.attention_norm(x)).chunk(3, -1)
    mixed = torch.zeros_like(x)
    for b in range(B):
        for i in range(S):
            seen = [j for j in range(S) if mask[i, j]]
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                scores = keys[b, seen, part] @ queries[b, i, part] / math.sqrt(width)
                mixed[b, i, part] = scores.softmax(0) @ values[b, seen, part]
    attended = x + block.attention_out(mixed)
    expected = attended + block.ffn_out(F.gelu(block.ffn_in(block.ffn_norm(attended))))
    torch.testing.assert_close(block(x, mask), expected, rtol=0, atol=ROUNDING)


def test_a_position_that_sees_only_itself_is_computed_as_if_alone():
    model, x = small_transformer(), torch.randn(B, S, DIM, dtype=torch.double)
    together = model(x, torch.eye(S, dtype=torch.bool))
    for i in range(S):
        alone = model(x[:, i:i + 1], torch.ones(1, 1, dtype=torch.bool))
        torch.testing.assert_close(together[:, i:i + 1], alone, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("chunks", [[S], [1] * S, [5, 2, 1, 3]], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_cached_output_equals_the_full_forward_however_it_is_cut(chunks, batch_size):
    model, mask = small_transformer(), any_mask()
    x = torch.randn(batch_size, S, DIM, dtype=torch.double)
    cache, parts, first = KVCache(model, batch_size, mask), [], 0
    for length in chunks:
        last = first + length
        parts.append(model.extend(x[:, first:last], cache))
        first = last
    torch.testing.assert_close(torch.cat(parts, 1), model(x, mask), rtol=0, atol=ROUNDING)
    assert cache.length == S > FEW_QUERIES, "both ways to attend must be tried"


@pytest.mark.parametrize("last", [1, 2, 4])
def test_outputs_of_the_last_positions_alone_are_those_of_all(last):
    model, mask, x = small_transformer(), any_mask(), torch.randn(B, S, DIM, dtype=torch.double)
    cache, expected = KVCache(model, B, mask), model(x, mask)
    found = model.extend(x[:, :5], cache, last=last)
    torch.testing.assert_close(found, expected[:, 5 - last:5], rtol=0, atol=ROUNDING)
    # What comes behind sees the keys and values of the others all the same.
    found = model.extend(x[:, 5:], cache, last=last)
    torch.testing.assert_close(found, expected[:, -last:], rtol=0, atol=ROUNDING)


def test_a_batch_that_is_cut_to_fit_the_processor_gives_the_same_output(monkeypatch):
    model, mask, x = small_transformer(), any_mask(), torch.randn(7, S, DIM, dtype=torch.double)
    monkeypatch.setattr("hd.transformer.CACHED_ROWS", 2 * S)  # of 7 sequences: 2, 2, 2, 1
    cache = KVCache(model, 7, mask)
    found = torch.cat([model.extend(part, cache) for part in (x[:, :9], x[:, 9:])], 1)
    torch.testing.assert_close(found, model(x, mask), rtol=0, atol=ROUNDING)


def test_a_cache_that_is_longer_than_needed_gives_the_same_output():
    model, mask, x = small_transformer(), any_mask(S + 6), torch.randn(B, S, DIM).double()
    cached = model.extend(x, KVCache(model, B, mask))
    torch.testing.assert_close(cached, model(x, mask[:S, :S]), rtol=0, atol=ROUNDING)


def test_a_full_cache_refuses_another_position():
    model, x = small_transformer(), torch.randn(B, S, DIM, dtype=torch.double)
    cache = KVCache(model, B, any_mask())
    model.extend(x, cache)
    with pytest.raises(ValueError, match=f"holds {S} positions; {S + 1} are needed"):
        model.extend(x[:, :1], cache)


def test_under_autocast_a_cpu_keeps_keys_and_values_whole_and_follows_the_full_forward():
    model, mask, x = small_transformer().float(), any_mask(), torch.randn(B, S, DIM)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = KVCache(model, B, mask)
        cached = torch.cat([model.extend(x[:, i:i + 1], cache) for i in range(S)], 1)
        full = model(x, mask)
    assert cache.memory.dtype == torch.float32
    # bfloat16 keeps 8 bits; outputs are LayerNormed, so of order 1.
    torch.testing.assert_close(cached, full, rtol=0, atol=0.1)


# While training in bfloat16 on a CPU attention is made of its parts: see hd.transformer.
def attended(parts, mask):
    """Output and the gradients of queries, keys and values under a loss that weighs all."""
    parts = [part.detach().requires_grad_() for part in parts]
    out = attention(*parts, mask)
    return [out, *torch.autograd.grad((out.double() * out.double()).sum(), parts)]


def causal_in_pairs(length):
    """Whole pairs of positions: the last key that a half of the rows sees lies behind the half."""
    step = torch.arange(length) // 2
    return step[:, None] >= step[None, :]


@pytest.mark.parametrize("mask", [any_mask(1), any_mask(2), any_mask(7), any_mask(64),
                                  causal_in_pairs(10), torch.ones(6, 6, dtype=torch.bool)],
                         ids=lambda mask: str(tuple(mask.shape)))
def test_training_in_bfloat16_attends_as_in_double_precision_forward_and_back(mask):
    torch.manual_seed(0)
    parts = torch.randn(3, B, HEADS, len(mask), 16).bfloat16()
    exact = attended(parts.double(), mask)
    for found, expected in zip(attended(parts, mask), exact):
        # bfloat16 keeps 8 bits: each of a few roundings is 1/256 at most.
        assert (found - expected).norm() <= 0.02 * expected.norm()


def test_training_in_bfloat16_sends_nothing_and_no_gradient_past_the_mask():
    mask, parts = any_mask(), torch.randn(3, B, HEADS, S, 16).bfloat16().requires_grad_()
    first = attention(*parts, mask)[:, :, 0]  # of the row that sees itself alone
    gradient, = torch.autograd.grad(first.sum(), parts)
    assert gradient[2, :, :, 0].all() and not gradient[:, :, :, 1:].any()
    changed = parts.detach().clone()
    changed[1, :, :, 1:], changed[2, :, :, 1:] = 9.0, -9.0
    assert torch.equal(attention(*changed.requires_grad_(), mask)[:, :, 0], first)


def test_dropout_acts_in_training_mode_only():
    model, mask, x = small_transformer(), any_mask(), torch.randn(B, S, DIM, dtype=torch.double)
    assert torch.equal(model(x, mask), model(x, mask))
    model.train()
    assert not torch.allclose(model(x, mask), model(x, mask))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(share):
    torch.manual_seed(0)
    x = torch.ones(400, 500, requires_grad=True)
    dropped = dropout(x, share)
    is_zero = dropped == 0
    # 200,000 draws: a deviation of 0.001; the share itself is a multiple of 1/256.
    assert is_zero.float().mean().item() == pytest.approx(round(256 * share) / 256, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    dropped.sum().backward()
    assert torch.equal(x.grad == 0, is_zero)


def test_dropout_depends_on_the_seed_alone():
    def drawn(seed):
        torch.manual_seed(seed)
        return dropout(torch.ones(7, 11), 0.3)

    assert torch.equal(drawn(3), drawn(3)) and not torch.equal(drawn(3), drawn(4))
    # 77 bytes of the generator decide; seeded by torch's, they are the same on every machine.
    torch.manual_seed(3)
    rng = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, ()))))
    is_zero = np.frombuffer(rng.bytes(77), np.uint8) < round(256 * 0.3)
    assert np.array_equal(drawn(3).flatten().numpy() == 0, is_zero)
    assert torch.equal(dropout(torch.ones(3), 0.0), torch.ones(3))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="got 25 and 3"):
        small_transformer(dim=25)
