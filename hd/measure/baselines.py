"""What trivial predictors of the next code reach: repeat-last, code frequency, n-gram.

Each is fitted by counting on training steps and scored on the same held-out steps as the world
model, in nats and in accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMOOTHING = 4.0  # pseudo-counts that pull an n-gram towards the code frequencies


@dataclass
class Score:
    """Per scored step (n,): negative log-likelihood in nats, and whether the guess was right."""

    nats: np.ndarray
    is_right: np.ndarray


@dataclass
class NextCode:
    """Counts over training steps of one level of one game."""

    frequency: np.ndarray  # (K,) smoothed shares of the next code
    repeat_share: float  # share of steps whose code equals the last one
    ngram: np.ndarray  # (K * A, K) counts of (code, action) -> next code

    @classmethod
    def fit(cls, last, following, actions, *, num_codes: int, num_actions: int) -> NextCode:
        """last, following, actions: (n,) ints of consecutive training steps."""
        counts = np.bincount(following, minlength=num_codes).astype(np.float64)
        frequency = (counts + 1) / (counts.sum() + num_codes)
        context = last.astype(np.int64) * num_actions + actions
        cells = np.bincount(context * num_codes + following,
                            minlength=num_codes * num_actions * num_codes)
        repeat = (np.sum(last == following) + 1) / (len(last) + 2)
        return cls(frequency, float(repeat),
                   cells.reshape(-1, num_codes).astype(np.float32))

    def scores(self, last, following, actions) -> dict[str, Score]:
        """Score of each baseline on held-out steps (n,): repeat_last, frequency, ngram."""
        num_actions = len(self.ngram) // len(self.frequency)
        usual = self.frequency[following]
        repeats = last == following
        repeat = np.where(repeats, self.repeat_share + (1 - self.repeat_share) * usual,
                          (1 - self.repeat_share) * usual)
        seen = self.ngram[last.astype(np.int64) * num_actions + actions].astype(np.float64)
        shares = (seen + SMOOTHING * self.frequency) / (seen.sum(1, keepdims=True) + SMOOTHING)
        picked = np.take_along_axis(shares, following[:, None].astype(np.int64), 1)[:, 0]
        return {"repeat_last": Score(-np.log(repeat), repeats),
                "frequency": Score(-np.log(usual), following == self.frequency.argmax()),
                "ngram": Score(-np.log(picked), following == shares.argmax(1))}
