"""hd.windows: action ids, full batches, refusals; splits and shares are tested on real frames."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import stored_steps

from hd import config, windows
from hd.config import PROFILES, InputError, WorldModelConfig

CFG = PROFILES["smoke"].world_model


def test_action_ids_are_ale_ids_or_indices_into_each_games_own_actions():
    games = ("pong", "ms_pacman")
    data = SimpleNamespace(games=games, actions=np.array([0, 3, 12, 9, 2], np.int8),
                           game_idx=np.array([0, 0, 0, 1, 1]))
    assert windows.action_ids("meaning", data).tolist() == [0, 3, 12, 9, 2]
    # Pong plays 0 1 3 4 11 12, Ms. Pac-Man 0 2 3 4 5 6 7 8 9.
    assert windows.action_ids("index", data).tolist() == [0, 2, 5, 8, 1]
    cfg = config.resolve("smoke", "actions.index").world_model
    found = windows.Windows(cfg, data, np.zeros((5, 3), np.int16), seed=0)
    assert found.actions.tolist() == [0, 2, 5, 8, 1]


def test_training_batches_are_full_although_epochs_differ_in_length(monkeypatch):
    # Epoch 0 holds 2 x 32 windows, every later one half of that.
    monkeypatch.setattr(windows.Windows, "training_starts", lambda self, epoch: np.arange(
        64 if epoch == 0 else 32) + 1000 * epoch)
    data = SimpleNamespace(actions=None)
    found = windows.Windows(dataclasses.replace(CFG, batch_size=32), data, None, seed=0)
    starts = [found.batch_starts(i).tolist() for i in range(4)]
    assert starts[:2] == [list(range(32)), list(range(32, 64))]
    assert starts[2:] == [list(range(1000, 1032))] * 2


@pytest.mark.parametrize("kind", ["epoch", "stride1"])
def test_too_short_episodes_are_refused_by_name(kind):
    empty, one_row = np.zeros(0, np.int64), np.zeros(1, np.int64)
    data = SimpleNamespace(
        is_train=one_row == 0, is_test=one_row > 0, is_val=one_row > 0,
        episode_ids=one_row,
        in_game=lambda game: one_row == 0,
        window_starts=lambda length, mask: empty, actions=one_row)
    found = windows.Windows(dataclasses.replace(CFG, windows=kind), data, None, seed=0)
    with pytest.raises(InputError, match="no training episode has 24 steps"):
        found.training_starts(0)


# ---- parts

@pytest.mark.parametrize("game", ["pong", "breakout"])
def test_validation_and_test_windows_tile_the_episodes_of_their_part(game):
    data = stored_steps({"pong": (40, 60, 24), "breakout": (90, 80, 50)}, held_out=(1, 3),
                        validation=(2, 4))
    found = windows.Windows(WorldModelConfig(max_steps=8), data, np.zeros((len(data), 3), np.int16),
                            seed=0)
    for part, episode in (("test", {"pong": 1, "breakout": 3}[game]),
                          ("val", {"pong": 2, "breakout": 4}[game])):
        first = np.flatnonzero(data.episode_ids == episode)
        assert found.held_out(game, part=part).tolist() == first[:len(first) - 7:8].tolist()


def test_the_seeds_split_by_windows_leaves_test_episodes_alone():
    data = stored_steps({"pong": (40, 60, 24), "breakout": (90, 80, 50)}, held_out=(1, 3),
                        validation=(2,))
    found = windows.Windows(WorldModelConfig(max_steps=8, split="windows"), data,
                            np.zeros((len(data), 3), np.int16), seed=0)
    starts = np.concatenate([found.held_out(), found.training_starts(0)])
    inside = starts[:, None] + np.arange(8)
    assert not data.is_test[inside].any()
    assert np.array_equal(np.unique(inside), np.flatnonzero(~data.is_test))
    assert (found.may_train == ~data.is_test).all() and data.is_val.any()
    assert np.array_equal(found.held_out(), found.held_out(part="val"))


# ---- the games' shares

def windows_with(shares, seed=0):
    """Windows of 8 steps of two games, twice as many of Breakout, with the stated shares."""
    data = stored_steps({"pong": (40, 60), "breakout": (90, 80, 50)}, held_out=(1, 3))
    cfg = WorldModelConfig(max_steps=8, batch_size=16, game_shares=shares)
    return windows.Windows(cfg, data, np.zeros((len(data), 3), np.int16), seed=seed)


@pytest.mark.parametrize(("stated", "expected"), [((), None), ((3.0, 1.0), 0.75)])
def test_training_batches_hold_the_stated_share_of_each_game(stated, expected):
    found = windows_with(stated)
    drawn = np.concatenate([found.batch_starts(i) for i in range(200)])
    assert found.data.is_train[drawn].all()
    share = (found.data.game_idx[drawn] == 0).mean()
    assert share == pytest.approx(found.shares()[0] if expected is None else expected, abs=0.02)
    assert found.shares().sum() == pytest.approx(1)


def test_shares_that_do_not_fit_the_games_are_refused():
    with pytest.raises(InputError, match="a number from 0 for each of pong, breakout; got"):
        windows_with((1.0, 1.0, 1.0)).shares()
