"""hd.windows: action ids, full batches, refusals; splits and shares are tested on real frames."""

from types import SimpleNamespace

import numpy as np
import pytest

from hd import windows
from hd.config import InputError
from hd.run import runs


def test_action_ids_are_ale_ids_or_indices_into_each_games_own_actions():
    games = ("pong", "ms_pacman")
    data = SimpleNamespace(games=games, actions=np.array([0, 3, 12, 9, 2], np.int8),
                           game_idx=np.array([0, 0, 0, 1, 1]))
    meaning = runs.start("world_model", profile="smoke", games=games)
    assert windows.action_ids(meaning, data).tolist() == [0, 3, 12, 9, 2]
    index = runs.start("world_model", profile="smoke", games=games, variant="actions.index")
    # Pong plays 0 1 3 4 11 12, Ms. Pac-Man 0 2 3 4 5 6 7 8 9.
    assert windows.action_ids(index, data).tolist() == [0, 2, 5, 8, 1]


def test_training_batches_are_full_although_epochs_differ_in_length(monkeypatch):
    # Epoch 0 holds 2 x 32 windows, every later one half of that.
    monkeypatch.setattr(windows.Windows, "training_starts", lambda self, epoch: np.arange(
        64 if epoch == 0 else 32) + 1000 * epoch)
    found = object.__new__(windows.Windows)
    found.run = runs.start("world_model", profile="smoke",
                           overrides={"world_model.batch_size": 32})
    starts = [found.batch_starts(i).tolist() for i in range(4)]
    assert starts[:2] == [list(range(32)), list(range(32, 64))]
    assert starts[2:] == [list(range(1000, 1032))] * 2


@pytest.mark.parametrize("kind", ["epoch", "stride1"])
def test_too_short_episodes_are_refused_by_name(kind):
    run = runs.start("world_model", profile="smoke", overrides={"world_model.windows": kind})
    empty, one_row = np.zeros(0, np.int64), np.zeros(1, np.int64)
    found = object.__new__(windows.Windows)
    found.run = run
    found.data = SimpleNamespace(
        is_train=one_row == 0, episode_ids=one_row, in_game=lambda game: one_row == 0,
        window_starts=lambda length, mask: empty)
    with pytest.raises(InputError, match="no training episode has 24 steps"):
        found.training_starts(0)
