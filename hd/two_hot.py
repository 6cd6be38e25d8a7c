"""Real numbers as distributions over bins: rewards and values of any size in one loss.

Two-hot symlog bins as in DreamerV3 (Hafner et al. 2023, eqs. 8-10).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def symlog(x):
    """sign(x) log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x):
    """Inverse of symlog."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


class TwoHot(nn.Module):
    """Real numbers as distributions over bins that are even in symlog space."""

    def __init__(self, num_bins: int = 63, limit: float = 10.0):
        super().__init__()
        self.register_buffer("bins", torch.linspace(-limit, limit, num_bins), persistent=False)

    def encode(self, values):
        """(...) -> (..., num_bins): weight on the two nearest bins; their mean is the value."""
        edges = symexp(self.bins)
        x = values.float().clamp(edges[0], edges[-1]).contiguous()
        upper = torch.searchsorted(edges, x).clamp(1, len(edges) - 1)
        share = ((x - edges[upper - 1]) / (edges[upper] - edges[upper - 1]))[..., None]
        return (F.one_hot(upper, len(edges)) * share
                + F.one_hot(upper - 1, len(edges)) * (1 - share))

    def decode(self, logits):
        """(..., num_bins) -> (...): the expected value, in the original units."""
        return (logits.float().softmax(-1) * symexp(self.bins)).sum(-1)

    def loss(self, logits, values):
        """Cross-entropy in nats against encode(values), one number per element (...)."""
        return -(self.encode(values) * logits.float().log_softmax(-1)).sum(-1)
