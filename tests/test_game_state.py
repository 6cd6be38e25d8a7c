"""hd.game_state: coordinates in RAM as a table of numbers to read."""

from types import SimpleNamespace

import numpy as np
import pytest

from hd import game_state


@pytest.fixture
def data():
    """Five rows of Pong, then four of Breakout; the ball is out of play in rows 1 and 6."""
    ram = np.random.default_rng(0).integers(1, 150, (9, 128)).astype(np.uint8)
    ram[1, 54] = 0
    ram[6, 101] = 200
    return SimpleNamespace(
        games=("pong", "breakout"), game_idx=np.array([0] * 5 + [1] * 4, np.int8), ram=ram
    )


def test_a_row_has_its_own_games_coordinates_and_no_other(data):
    table = game_state.coordinates(data, np.array([3, 8]))
    assert table.shape == (2, game_state.num_coordinates(data.games)) == (2, 7)
    assert table[0, :4].tolist() == data.ram[3, [51, 50, 49, 54]].tolist()
    assert table[1, 4:].tolist() == data.ram[8, [72, 99, 101]].tolist()
    assert np.isnan(table[0, 4:]).all() and np.isnan(table[1, :4]).all()


def test_a_ball_out_of_play_is_unknown_and_the_paddles_are_not(data):
    table = game_state.coordinates(data, np.arange(9))
    assert np.isnan(table[1, 2:4]).all() and not np.isnan(table[1, :2]).any()
    assert np.isnan(table[6, 5:]).all() and not np.isnan(table[6, 4])
    assert np.isnan(table).sum() == 5 * 3 + 4 * 4 + 2 + 2


def test_standardising_looks_at_the_given_rows_only():
    table = np.array([[1, 5], [3, 5], [np.nan, 5], [100, np.nan]], np.float32)
    rows = np.array([True, True, True, False])
    found = game_state.standardised(table, rows)
    # Mean 2 and deviation 1 of rows 0 and 1; the second column never varies.
    expected = [[-1, 0], [1, 0], [np.nan, 0], [98, np.nan]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
