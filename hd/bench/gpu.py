"""What a GPU offers beside the program's own way: compiled training steps, attention by blocks.

The program itself compiles nothing: these rows show what that leaves on the table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from hd.bench import synthetic
from hd.bench.sizes import Sizes
from hd.bench.steps import SameBatch, Training, network
from hd.bench.timing import Comparison, milliseconds, named
from hd.run import training
from hd.run.machine import device
from hd.run.training import to_device
from hd.world_model import SLOTS, hierarchical_mask

# Largest difference of two ways of attending, of the largest value: some roundings of the type.
AGREE_WITHIN = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-4}
LONGER = 4  # times the training window: where skipping what a mask forbids begins to pay


def compiled_training(sizes: Sizes) -> Iterator[Comparison]:
    """A training step of encoder and world model as it is, against the same with the model
    compiled; the batch lies on the device. Compiling happens in the warm-up."""
    for stage in ("encoder", "world_model"):
        profile = sizes.profile
        batch = to_device(synthetic.batches(profile)[stage], device())
        feed, count = SameBatch(batch), sizes.steps
        plain = Training(stage, profile, network(stage, profile))
        other = Training(stage, profile, _with_compiled_loss(network(stage, profile)))
        yield Comparison(f"a training step of {stage.replace('_', ' ')} at {profile.name}",
                         "ms/step", functools.partial(plain.milliseconds, feed, count),
                         functools.partial(other.milliseconds, feed, count),
                         "the same step by torch.compile")


def compiled(function):
    """The function, compiled at its first call."""
    return torch.compile(function)


def _with_compiled_loss(model: torch.nn.Module) -> torch.nn.Module:
    """The model with a loss that torch compiles at its first call."""
    model.loss = compiled(model.loss)
    return model


def attention_by_blocks(sizes: Sizes) -> Iterator[Comparison]:
    """One layer's attention under the world model's mask, forward and back: torch's dense kernel,
    as the program calls it, against flex_attention, which skips blocks that the mask forbids."""
    cfg = sizes.profile.world_model
    dtype = training.precision(cfg, device()) or torch.float32
    for num_steps in (cfg.max_steps, LONGER * cfg.max_steps):
        mask = hierarchical_mask(num_steps, cfg.mask).to(device())
        shape = (3, cfg.batch_size, cfg.num_heads, len(SLOTS) * num_steps, cfg.dim // cfg.num_heads)
        parts = torch.randn(shape, device=device(), dtype=dtype).requires_grad_()
        dense = functools.partial(F.scaled_dot_product_attention, attn_mask=mask)
        by_blocks = flexible_attention(mask)
        what = f"dense attention under the mask, {len(SLOTS) * num_steps} tokens"
        yield Comparison(what, "ms/layer", _forward_and_back(dense, parts, sizes.steps),
                         _forward_and_back(by_blocks, parts, sizes.steps), "flex_attention")
        yield Comparison(f"{what}, largest difference", "of the largest value",
                         functools.partial(largest_difference, dense, by_blocks, parts),
                         functools.partial(float, AGREE_WITHIN[dtype]),
                         f"what {named(dtype)} may round away", "<= 1", max_pairs=1)


def flexible_attention(mask: torch.Tensor):
    """flex_attention under mask (S, S) bool, True = may attend, compiled: what it is made for.
    Takes queries, keys and values (B, heads, S, width)."""
    def may_attend(batch, head, query, key):
        return mask[query, key]
    blocks = create_block_mask(may_attend, None, None, *mask.shape, device=mask.device)
    return functools.partial(compiled(flex_attention), block_mask=blocks)


def _forward_and_back(attend, parts, times: int):
    def work():
        for _ in range(times):
            attend(*parts).sum().backward()
    return milliseconds(work, times)


def largest_difference(one, other, parts) -> float:
    """Of the outputs of two ways of attending, and of the gradients where parts need them: the
    largest absolute difference, as a share of the largest value. parts: queries, keys, values
    stacked."""
    found = [_outcomes(attend, parts) for attend in (one, other)]
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*found))


def _outcomes(attend, parts) -> list[torch.Tensor]:
    """The output, and the gradient of a weighted sum of it, float32."""
    out = attend(*parts)
    outcomes = [out.detach().float()]
    if parts.requires_grad:
        weights = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype)
        outcomes.append(torch.autograd.grad((out * weights).sum(), parts)[0].float())
    return outcomes


MEASURED = (compiled_training, attention_by_blocks)
