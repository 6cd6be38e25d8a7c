"""hd.measure.dream_events: turns of a path, and events matched in time."""

import numpy as np
import pytest

from hd.measure import dream_events
from hd.measure.dream_events import firsts, matched, near, of_others, turns


def marks(*steps, length=12):
    return np.isin(np.arange(length), steps)


def test_a_bounce_is_marked_around_the_step_at_which_it_happens():
    path = np.array([[0, 3, 6, 9, 12, 15, 12, 9, 6, 3, 0]])
    assert turns(path)[0].nonzero()[0].tolist() == [5]
    between = np.array([[0, 4, 8, 12, 16, 18, 14, 10, 6, 2, -2]])  # turns between two steps
    assert turns(between)[0].nonzero()[0].tolist() == [4, 5]
    slow = np.array([[0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0]])
    assert not turns(slow).any(), "less movement than counts"
    wide = np.array([[0, 8, 16, 24, 32, 40, 40, 32, 24, 16, 8, 0]])
    assert turns(wide)[0].nonzero()[0].tolist() == [5, 6]


@pytest.mark.parametrize("path", [
    [0, 3, 6, 9, 12, 15, 18, 21, 24],  # straight on
    [5, 5, 5, 5, 5, 5, 5, 5, 5],  # at rest
    [0, 0, 0, 0, 9, 18, 27, 36, 45],  # begins to move
    [9, 11, 9, 11, 9, 11, 9, 11, 9],  # trembles
    [0, 0, 50, 0, 0, 0, 0, 0, 0],  # too near the edge to be seen
])
def test_what_is_no_bounce_is_not_marked(path):
    assert not turns(np.array([path])).any()


def test_a_path_and_its_mirror_turn_at_the_same_steps():
    path = np.random.default_rng(0).normal(size=(20, 15)).cumsum(1) * 9
    assert (turns(path) == turns(-path)).all()
    assert (turns(path) == turns(path[:, ::-1])[:, ::-1]).all()
    assert turns(path).any() and not turns(path)[:, [0, 1, 2, -3, -2, -1]].any()


def test_of_a_rows_first_run_the_middle_is_kept():
    events = np.stack([marks(3), marks(3, 4, 5), marks(3, 4), marks(), marks(11), marks(2, 7, 8)])
    kept = firsts(events)
    assert [row.nonzero()[0].tolist() for row in kept] == [[3], [4], [3], [], [11], [2]]


def test_near_is_symmetric_and_stops_at_the_edges():
    assert near(marks(0, 6)[None])[0].nonzero()[0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert near(marks(6)[None], 0)[0].nonzero()[0].tolist() == [6]
    assert near(marks(11)[None], 1)[0].nonzero()[0].tolist() == [10, 11]


def test_events_are_matched_in_their_own_row_only():
    events = np.stack([marks(5), marks(5), marks(2, 9)])
    others = np.stack([marks(7), marks(8), marks(1)])
    assert matched(events, others) == pytest.approx(2 / 4)
    assert matched(events, events[::-1]) == pytest.approx(1 / 4)
    assert matched(others, events) == pytest.approx(2 / 3)
    assert np.isnan(matched(marks()[None], marks(3)[None]))


def test_chance_takes_the_events_of_another_row():
    events = np.eye(6, dtype=bool)
    assert (of_others(events).sum(0) == 1).all()
    assert not (of_others(events) & events).any()
    assert dream_events.matched(events, of_others(events)) == 0.0
