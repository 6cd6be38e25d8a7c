"""hd.measure.control: rows about real play from the episodes of each player."""

import numpy as np
import pytest

from hd.measure import control
from hd.run.intervals import interval_over_episodes


def episodes(returns, lengths=None):
    """Rows as hd.play.play returns them."""
    return [{"game": "breakout", "seed": 3, "episode": k, "return": float(total), "length": length,
             "sticky": 0.25}
            for k, (total, length) in enumerate(zip(returns, lengths or [9] * len(returns)))]


def values(rows):
    return {r["metric"]: (r["value"], r["baseline"]) for r in rows}


def test_the_policy_stands_beside_random_play_and_every_other_player():
    played = {"policy": episodes([1, 2, 6], [10, 20, 60]), "random": episodes([0, 1, 1]),
              "tracker": episodes([8, 8, 11]), "ram_policy": episodes([4, 6])}
    rows = control.rows_of(played, 1234, seed=0)
    found = values(rows)
    low, high = interval_over_episodes([1, 2, 6], seed=0)
    assert found == {
        "real_return": (3, pytest.approx(2 / 3)), "real_return[ci_low]": (low, None),
        "real_return[ci_high]": (high, None), "real_return[tracker]": (9, None),
        "real_return[ram_policy]": (5, None), "training_steps[ram_policy]": (1234, None),
        "real_length": (30, None), "episodes": (3, None)}
    assert low < 3 < high
    assert {(r["game"], r["split"]) for r in rows} == {("breakout", "real")}


def test_a_game_without_a_tracker_has_no_row_about_it_and_one_episode_no_interval():
    found = values(control.rows_of({"policy": episodes([5]), "random": episodes([1]),
                                    "ram_policy": episodes([2])}, 10, seed=0))
    assert "real_return[tracker]" not in found and found["real_return[ram_policy]"] == (2, None)
    assert np.isnan(found["real_return[ci_low]"][0]) and np.isnan(found["real_return[ci_high]"][0])


def test_points_won_are_counted_window_by_window_beside_those_of_play_by_chance():
    rewards = np.zeros((2, 18))
    rewards[0, :4] = [-1, -1, -1, 1]  # the prefill
    rewards[:, 4] = 1, -3  # of the points of the first window one in two is won
    rewards[0, 12:14] = 2, 1  # the second has none, the third is all won; the rest is no window
    rows = control.share_won_rows(rewards, prefill=8, game="pong", window=8)
    assert [(r["step"], r["value"], r["baseline"]) for r in rows] == [(16, 0.5, 0.25),
                                                                      (32, 1.0, 0.25)]
    assert {r["metric"] for r in rows} == {"share_won"}
    assert control.share_won_rows(rewards.clip(0), prefill=8, game="breakout", window=8) == []
