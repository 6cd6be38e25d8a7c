"""Floating-point operations that a model cannot avoid: two for each product that is added up.

Counted from shapes: products with weights, and attention scores where the mask allows them.
A training step takes three times the products of its forward pass, less what nobody needs: the
gradient of an input that does not learn. Norms, activations, dropout and embeddings are left out,
as usual; they are small.
"""

from __future__ import annotations

from torch import nn

from hd.world_model import LEVELS, SLOTS

SIDE = 84  # of a frame


def encoder_training(model, num_images: int) -> float:
    """One step of hd.encoder.AtariEncoder on so many frame stacks: 3 forward - first layer."""
    layers = _encoder_layers(model)
    return num_images * (3.0 * sum(layers) - layers[0])  # pixels need no gradient


def _encoder_layers(model) -> list[int]:
    """Of one image, per layer: 2 outputs x inputs of each."""
    side, found = SIDE, []
    for layer in (*model.convolutions, *model.head):
        if isinstance(layer, nn.Conv2d):
            side = (side - layer.kernel_size[0]) // layer.stride[0] + 1
            found.append(2 * side**2 * layer.weight.numel())
        elif isinstance(layer, nn.Linear):
            found.append(2 * layer.weight.numel())
    return found


def world_model_forward(model, batch_size: int, num_steps: int) -> float:
    """One forward pass of hd.world_model.WorldModel over windows of num_steps steps."""
    cfg, positions = model.cfg, len(SLOTS) * num_steps
    codes = len(LEVELS) * (num_steps - 1) * 2 * cfg.dim * cfg.num_codes
    return float(batch_size * (_blocks(model, positions) + codes + num_steps * _outcome(model)))


def world_model_training(model, batch_size: int, num_steps: int) -> float:
    """One training step on such windows: 3 forward; heads cut off from the model return nothing."""
    unneeded = 2 * 2 * model.cfg.dim**2 if model.cfg.detach_heads else 0
    return (3 * world_model_forward(model, batch_size, num_steps)
            - batch_size * num_steps * unneeded)


def imagination(model, batch_size: int, context: int, horizon: int) -> float:
    """A dream with a key-value cache: every position once, heads where a code or outcome is read.

    The last step's L2 and action are never fed. The last block computes the keys and values of all
    positions, and all else at those alone whose output is read: the last of the past (what a
    policy may see), and three in each step.
    """
    cfg, fed = model.cfg, len(SLOTS) * (context + horizon) - 2
    read = len(LEVELS) * horizon + (context > 1)
    heads = horizon * (len(LEVELS) * 2 * cfg.dim * cfg.num_codes + _outcome(model))
    unread = (fed - read) * (_weights(cfg) - 4 * cfg.dim**2)
    return float(batch_size * (_blocks(model, fed) - unread + heads))


def _blocks(model, positions: int) -> int:
    """All blocks over so many positions: their weights, and 4 d for each allowed pair."""
    cfg = model.cfg
    pairs = int(model.mask[:positions, :positions].sum())
    return cfg.num_layers * (positions * _weights(cfg) + pairs * 4 * cfg.dim)


def _weights(cfg) -> int:
    """One block at one position: 8 d^2 + 4 d f."""
    return 8 * cfg.dim**2 + 4 * cfg.dim * cfg.ffn_dim


def _outcome(model) -> int:
    """Reward and continue heads at one position."""
    layers = (*model.reward_head, *model.continue_head)
    return sum(2 * layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
