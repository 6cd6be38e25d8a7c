"""Muon: weights of hidden layers move along their momentum, made orthogonal.

Jordan et al. 2024. Every direction in which a gradient points moves a weight equally far, not only
the few that it is large in, so that a small model learns more from each batch.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

MOMENTUM = 0.9
SMALLEST = 8  # rows and columns of a weight that moves so; smaller ones have too few directions
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: steep at 0, and then between 0.7 and 1.2
ITERATIONS = 5


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers and convolutions that Muon moves; tables, biases, norms and
    layers with few outputs are not among them."""
    weights = [part.weight for part in model.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    return [weight for weight in weights
            if weight.requires_grad and min(len(weight), weight[0].numel()) >= SMALLEST]


class Muon(torch.optim.Adam):
    """Muon for the hidden weights of a model, Adam for the rest.

    matrix_lr: of the hidden weights, in the units of their directions, which are orthogonal; it
    rises and falls with the learning rate of the rest. PyTorch's own computes matrix by matrix in
    bfloat16; where a processor lacks it, that takes about as long as the rest of an update.
    """

    def __init__(self, model: nn.Module, *, lr: float, matrix_lr: float, betas):
        matrices = hidden_weights(model)
        are_matrices = {id(weight) for weight in matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in are_matrices]
        groups = [{"params": others},
                  {"params": matrices, "times": matrix_lr / lr if lr else 0.0}]
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self._step_supports_amp_scaling = False  # a scaler must leave out steps that overflow

    @torch.no_grad()
    def step(self, closure=None):
        """One step; the gradients of hidden weights are gone after it."""
        group = self.param_groups[1]
        alike = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                alike[len(weight), weight[0].numel()].append(weight)
        for (rows, columns), weights in alike.items():
            momenta = [self._momentum(weight) for weight in weights]
            gradients = [weight.grad for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
            directions = orthogonal(torch.stack([each.flatten(1) for each in ahead]))
            size = group["lr"] * group["times"] * max(1, rows / columns) ** 0.5
            for weight, direction in zip(weights, directions):
                weight.sub_(size * direction.view(weight.shape))
                weight.grad = None  # Adam leaves what has no gradient
        return super().step(closure)

    def _momentum(self, weight):
        """The running mean of a weight's gradients; a "step" is what Adam looks for in a state."""
        state = self.state[weight]
        if not state:
            state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
        return state["momentum"]


def orthogonal(matrices):
    """(N, R, C) -> (N, R, C), nearly U V^T of the singular value decomposition U S V^T, by
    Newton's and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if is_tall else x
