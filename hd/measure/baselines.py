"""What trivial predictors of the next code reach: repeat-last, code frequency, back-off.

Each is fitted by counting on training steps and scored on the same held-out steps as the world
model, in nats and in accuracy. Of the past they see one step only, but of that all that the model
is given: every code, the action, and the coarser codes of the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, diags_array

EM_ROUNDS = 50  # more move no weight that matters
MOST_SEEN = 12  # doublings, from which on contexts share a weight
CHUNK = 4096  # steps whose distributions over all codes are held in memory at once


@dataclass
class Score:
    """Per scored step (n,): negative log-likelihood in nats, and whether the guess was right."""

    nats: np.ndarray
    is_right: np.ndarray


@dataclass(frozen=True)
class Steps:
    """n steps and what followed each, as a predictor of the codes of one level is given them.

    last, following: (n, L) codes of a step and of the next; actions: (n,), done in between;
    stretches: (n,) numbers from 0, equal for steps so near each other in time that one says much
    about the other; needed to fit only.
    """

    level: int
    last: np.ndarray
    following: np.ndarray
    actions: np.ndarray
    stretches: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def own(self) -> np.ndarray:
        """(n,) the last code of the level itself."""
        return self.last[:, self.level].astype(np.int64)

    @property
    def target(self) -> np.ndarray:
        """(n,) the next code of the level, which is to be predicted."""
        return self.following[:, self.level].astype(np.int64)

    @property
    def all_codes(self) -> np.ndarray:
        """(L, n) the codes of the last step."""
        return self.last.T.astype(np.int64)

    @property
    def coarser(self) -> np.ndarray:
        """(level, n) the codes of the next step that are predicted before this level's."""
        return self.following[:, :self.level].T.astype(np.int64)

    @property
    def num_stayed(self) -> np.ndarray:
        """(n,) how many of the coarser codes, from the coarsest on, are as in the last step."""
        stays = self.following[:, :self.level] == self.last[:, :self.level]
        return np.cumprod(stays, 1, dtype=np.int64).sum(1)

    def pieces(self) -> Iterator[Steps]:
        """The steps in order, CHUNK at a time."""
        for first in range(0, len(self), CHUNK):
            rows = slice(first, first + CHUNK)
            yield Steps(self.level, self.last[rows], self.following[rows], self.actions[rows])


@dataclass
class NextCode:
    """Counts over training steps of one level of one game."""

    frequency: np.ndarray  # (K,) smoothed shares of the next code
    repeat_share: float  # share of steps whose code equals the last one
    back_off: BackOff

    @classmethod
    def fit(cls, steps: Steps, *, num_codes: int) -> NextCode:
        """steps: training steps with their stretches; codes below num_codes."""
        counts = np.bincount(steps.target, minlength=num_codes).astype(np.float64)
        repeat = (np.sum(steps.own == steps.target) + 1) / (len(steps) + 2)
        return cls((counts + 1) / (counts.sum() + num_codes), float(repeat),
                   BackOff(steps, num_codes))

    def scores(self, steps: Steps) -> dict[str, Score]:
        """Score of each baseline on held-out steps (n,): repeat_last, frequency, back_off."""
        usual, repeats = self.frequency[steps.target], steps.own == steps.target
        repeat = np.where(repeats, self.repeat_share + (1 - self.repeat_share) * usual,
                          (1 - self.repeat_share) * usual)
        return {"repeat_last": Score(-np.log(repeat), repeats),
                "frequency": Score(-np.log(usual), steps.target == self.frequency.argmax()),
                "back_off": self.back_off.score(steps)}


CONTEXTS = (  # what may decide the next code, the longest context first; on level 0 some are equal
    lambda steps: (*steps.all_codes, steps.actions, *steps.coarser),
    lambda steps: (*steps.all_codes, *steps.coarser),
    lambda steps: (*steps.all_codes[:2], *steps.coarser),
    lambda steps: (steps.own, steps.actions, *steps.coarser),
    lambda steps: (steps.own, *steps.coarser),
    lambda steps: (steps.own, *steps.coarser[-1:]),
    lambda steps: steps.coarser,
    lambda steps: steps.coarser[-1:],
    lambda steps: ())


class BackOff:
    """An interpolated back-off n-gram (Jelinek and Mercer 1980): what followed the longest context,
    mixed with what followed a shorter one, and so on down to no context at all.

    After the contexts come the last code again, the code frequencies and, for what was never seen,
    all codes alike. The weight of a context goes by how often training saw it, 1, 2 to 3, 4 to 7,
    ... times, that of the last code by how many coarser codes stay as they were. All are fitted by
    EM to training steps, each predicted from the counts of the other stretches: nothing held out is
    read, and no stretch predicts itself.
    """

    def __init__(self, steps: Steps, num_codes: int):
        """steps: training steps with their stretches; codes below num_codes."""
        self.num_codes = num_codes
        self.parts = [*(Counts(chosen, steps, num_codes) for chosen in CONTEXTS[:-1]),
                      LastAgain(num_codes), Counts(CONTEXTS[-1], steps, num_codes)]
        shares, kinds = (np.array(columns) for columns in
                         zip(*(part.left_out(steps) for part in self.parts)))
        self.weights = fitted_weights(shares, kinds, 1 / num_codes)

    def distribution(self, steps: Steps) -> np.ndarray:
        """(n, K) the probability of each code to be next; of what followed only the coarser codes
        are read."""
        found, left = np.zeros((len(steps), self.num_codes)), np.ones(len(steps))
        for part, weights in zip(self.parts, self.weights):
            shares, kinds = part.shares(steps)
            taken = left * weights[kinds]
            found += (diags_array(taken) @ shares).toarray()
            left -= taken
        return found + left[:, None] / self.num_codes

    def score(self, steps: Steps) -> Score:
        """Score on held-out steps (n,)."""
        nats, is_right = [], []
        for piece in steps.pieces():
            found = self.distribution(piece)
            nats.append(-np.log(found[np.arange(len(piece)), piece.target]))
            is_right.append(found.argmax(1) == piece.target)
        return Score(np.concatenate(nats), np.concatenate(is_right))


class Counts:
    """How often each code followed each context in training; a part of BackOff."""

    def __init__(self, columns_of: Callable, steps: Steps, num_codes: int):
        """columns_of: the columns (n,) of whole numbers from 0 that are a step's context."""
        self.columns_of, self.num_codes = columns_of, num_codes
        self.known = []  # of each column the pairs (context so far, column) that occur, as numbers
        ids = np.zeros(len(steps), np.int64)
        for column in columns_of(steps):
            size = int(column.max(initial=0)) + 1
            known, ids = np.unique(ids * size + column, return_inverse=True)
            self.known.append((known, size))
        self.ids, num_ids = ids, len(self.known[-1][0]) if self.known else 1
        # A row more, which stays empty: the context that was never seen.
        self.cells = csr_array((np.ones(len(ids)), (ids, steps.target)), (num_ids + 1, num_codes))
        self.totals = self.cells.sum(1)

    def shares(self, steps: Steps) -> tuple[csr_array, np.ndarray]:
        """(n, K) the shares of the codes that followed each step's context, and its kind (n,): 0
        never seen, then 1 more for twice as often."""
        ids = np.zeros(len(steps), np.int64)
        for column, (known, size) in zip(self.columns_of(steps), self.known):
            # An unknown context gets the number after the last, whose pairs are unknown as well.
            pairs = np.where(column < size, ids * size + column, -1)
            at = np.searchsorted(known, pairs)
            ids = np.where(np.append(known, -2)[at] == pairs, at, len(known))
        totals = self.totals[ids]
        return diags_array(1 / np.maximum(totals, 1)) @ self.cells[ids], _doublings(totals)

    def left_out(self, steps: Steps) -> tuple[np.ndarray, np.ndarray]:
        """Of the training steps themselves (n,) the share of what followed, and the kind, in the
        counts of all other stretches."""
        cells = self.ids * self.num_codes + steps.target
        totals, right = (_sizes(ids) - _sizes(ids, steps.stretches) for ids in (self.ids, cells))
        return right / np.maximum(totals, 1), _doublings(totals)


class LastAgain:
    """The last code again, by how many coarser codes stay as they were; a part of BackOff."""

    def __init__(self, num_codes: int):
        self.num_codes = num_codes

    def shares(self, steps: Steps) -> tuple[csr_array, np.ndarray]:
        """(n, K) one for the last code, and the kind (n,): 1, and 1 more a coarser code that
        stays."""
        shape = len(steps), self.num_codes
        again = csr_array((np.ones(len(steps)), (np.arange(len(steps)), steps.own)), shape)
        return again, steps.num_stayed + 1

    def left_out(self, steps: Steps) -> tuple[np.ndarray, np.ndarray]:
        """Of training steps (n,) whether the last code followed, and the kind."""
        return (steps.own == steps.target).astype(np.float64), steps.num_stayed + 1


def _doublings(totals: np.ndarray) -> np.ndarray:
    """0 for 0, 1 for 1, 2 for 2 to 3, 3 for 4 to 7, ..., MOST_SEEN at most."""
    return np.minimum(np.ceil(np.log2(totals + 1)), MOST_SEEN).astype(np.int64)


def _sizes(*columns: np.ndarray) -> np.ndarray:
    """Columns (n,) -> (n,) how many rows are equal to each in all of them."""
    ids = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        ids = ids * (int(column.max(initial=0)) + 1) + column
    _, which, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return counts[which]


def fitted_weights(shares: np.ndarray, kinds: np.ndarray, rest: float) -> np.ndarray:
    """shares (J, n): the probability of what followed by each part of a chain; kinds (J, n): which
    of the part's weights holds; rest: the probability when no part is taken. -> (J, kinds) the
    chance that a part is taken where no part before it was.

    Maximum likelihood by EM, as if each part had been taken half a time more and left once more, so
    that no weight is 0 or 1: even a code never seen must have a probability. That of kind 0, a
    context never seen, is 0.
    """
    num_parts, num_kinds = len(shares), MOST_SEEN + 1
    weights = np.full((num_parts, num_kinds), 0.2)
    weights[:, 0] = 0
    for _ in range(EM_ROUNDS):
        chosen = np.take_along_axis(weights, kinds, 1)
        reached = np.cumprod(np.vstack([np.ones(shares.shape[1]), 1 - chosen]), 0)
        mixed = reached * np.vstack([chosen, np.ones(shares.shape[1])])
        mixed *= np.vstack([shares, np.full(shares.shape[1], rest)])
        taken = mixed / mixed.sum(0)
        for j in range(num_parts):
            here = np.bincount(kinds[j], taken[j], num_kinds) + 0.5
            later = np.bincount(kinds[j], taken[j + 1:].sum(0), num_kinds) + 1
            weights[j, 1:] = (here / (here + later))[1:]
    return weights
