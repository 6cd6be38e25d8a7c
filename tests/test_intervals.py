"""hd.run.intervals: how far a mean can be trusted."""

import subprocess
import sys

import numpy as np
import pytest

from hd.run.intervals import corrected, interval_over_episodes, interval_over_seeds, p_value


def test_an_interval_contains_the_mean_narrows_with_n_and_is_nan_for_one_value():
    rng = np.random.default_rng(0)
    few, many = rng.normal(3, 1, 10), rng.normal(3, 1, 1000)
    low, high = interval_over_episodes(few)
    assert low < few.mean() < high
    assert interval_over_episodes(many)[1] - interval_over_episodes(many)[0] < high - low
    assert np.isnan(interval_over_episodes([1.0])).all()
    assert interval_over_episodes([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval_over_episodes(few) == (low, high), "the resampling is seeded"


def test_the_interval_over_seeds_is_students_and_holds_the_mean_in_95_of_100_cases():
    low, high = interval_over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low, high) == pytest.approx((3 - 2.776 * 0.5**0.5, 3 + 2.776 * 0.5**0.5), abs=1e-3)
    assert np.isnan(interval_over_seeds([1.0, 2.0, 3.0, 4.0])).all()
    rng = np.random.default_rng(0)
    bounds = np.array([interval_over_seeds(rng.normal(size=5)) for _ in range(2000)])
    assert 0.935 < np.mean((bounds[:, 0] < 0) & (bounds[:, 1] > 0)) < 0.965


def test_p_values_agree_with_the_interval_and_need_five_seeds():
    seen = np.array([0.1, 0.3, 0.2, 0.4, 0.05])
    assert p_value(seen) < 0.05 and interval_over_seeds(seen)[0] > 0
    assert np.isnan(p_value(seen[:4]))
    assert (p_value([0.0] * 5), p_value([1.0] * 5)) == (1.0, 0.0)


def test_corrected_p_values_are_holms():
    assert corrected([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan],
                                                                  nan_ok=True)
    assert corrected([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert len(corrected([])) == 0


def test_whoever_reads_intervals_loads_no_models():
    code = ("import sys, hd.run.intervals; "
            "print(sorted({'torch', 'ale_py', 'sklearn', 'pandas'} & set(sys.modules)))")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
