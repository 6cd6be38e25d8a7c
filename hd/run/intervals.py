"""How far a mean can be trusted: intervals over seeds or episodes."""

from __future__ import annotations

import numpy as np
from scipy import stats

RESAMPLES = 9999


def interval(values, *, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of values (n,); NaN for n < 2."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile",
                            rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)
