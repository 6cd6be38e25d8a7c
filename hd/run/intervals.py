"""How far a mean can be trusted: over seeds by Student's t, over episodes by the bootstrap."""

from __future__ import annotations

import numpy as np
from scipy import stats

SIGNIFICANT = 0.05
FEWEST_SEEDS = 5  # with fewer there is no interval: they are shown one by one
RESAMPLES = 9999


def interval_over_seeds(values) -> tuple[float, float]:
    """95% interval of the mean of values (n,) by t; NaN below FEWEST_SEEDS.

    The bootstrap of two or three values is their least and most, which holds the mean in a half or
    three quarters of all cases.
    """
    values = np.asarray(values, float)
    if len(values) < FEWEST_SEEDS:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def p_value(values) -> float:
    """Of the mean of values (n,) being 0, two-sided, by t; NaN below FEWEST_SEEDS."""
    values = np.asarray(values, float)
    if len(values) < FEWEST_SEEDS:
        return float("nan")
    if np.ptp(values) == 0:
        return float(values[0] == 0)
    return float(stats.ttest_1samp(values, 0).pvalue)


def corrected(p_values) -> np.ndarray:
    """p-values (n,) of several comparisons at once by Holm's method (1979): where none is real,
    one below 0.05 turns up in at most 5% of cases. NaN are not comparisons and stay."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)  # NaN last
    steps = np.arange((~np.isnan(p_values)).sum(), 0, -1)
    found = np.full(len(p_values), np.nan)
    real = order[:len(steps)]
    found[real] = np.minimum(1, np.maximum.accumulate(p_values[real] * steps))
    return found


def interval_over_episodes(values, *, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of values (n,); NaN for n < 2."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile",
                            rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)
