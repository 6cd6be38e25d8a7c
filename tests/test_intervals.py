"""hd.run.intervals: how far a mean can be trusted."""

import subprocess
import sys

import numpy as np

from hd.run.intervals import interval


def test_an_interval_contains_the_mean_narrows_with_n_and_is_nan_for_one_value():
    rng = np.random.default_rng(0)
    few, many = rng.normal(3, 1, 10), rng.normal(3, 1, 1000)
    low, high = interval(few)
    assert low < few.mean() < high
    assert interval(many)[1] - interval(many)[0] < high - low
    assert np.isnan(interval([1.0])).all()
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval(few) == (low, high), "the resampling is seeded"


def test_whoever_reads_intervals_loads_no_models():
    code = ("import sys, hd.run.intervals; "
            "print(sorted({'torch', 'ale_py', 'sklearn', 'pandas'} & set(sys.modules)))")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
