"""hd.measure.checks: every check holds for what is right and fails for what is wrong."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import write_game

from hd.config import PROFILES
from hd.measure import checks
from hd.replay import Replay

CFG = dataclasses.replace(PROFILES["smoke"].world_model, max_steps=5)


@pytest.fixture
def data(tmp_path):
    for game, lengths in {"pong": (9, 3, 1, 6), "breakout": (2, 5, 7)}.items():
        num_rows = sum(lengths)
        write_game(tmp_path, game, lengths, actions=np.tile([0, 1, 3], num_rows)[:num_rows].astype(
            np.int8))
    return Replay.open(tmp_path, ("pong", "breakout"), val_share=0.25, test_share=0.25, seed=0)


def failing(found):
    return [what for what, holds, _ in found if not holds]


def test_the_checks_notice_a_window_split_or_end_that_is_wrong(data):
    def fails(changed):
        return failing(checks.of_steps(changed, 5))

    assert fails(data) == []
    mixed, ended = data.is_train.copy(), data.continues.copy()
    mixed[0], ended[0] = not mixed[0], 0
    assert "two parts" in fails(dataclasses.replace(data, is_train=mixed))[0]
    tested = data.is_test | data.is_train
    assert "two parts" in fails(dataclasses.replace(data, is_test=tested))[0]
    assert "games end" in fails(dataclasses.replace(data, continues=ended))[0]
    broken = dataclasses.replace(data, starts=np.maximum(data.starts - 1, 0))
    assert "first stack" in fails(broken)[0]
    rewards = np.where(np.arange(len(data)) == 3, np.nan, data.rewards)
    assert fails(dataclasses.replace(data, rewards=rewards)) == ["rewards are finite"]


def test_the_suite_holds_for_sound_steps_and_looks_at_steps_masks_and_model(data):
    found = list(checks.suite(data, CFG))
    assert failing(found) == []
    said = " ".join(what for what, _, _ in found)
    for word in ("split", "legal", "mask causal", "mask strict", "logits", "gradient", "encoder"):
        assert word in said


def test_the_suite_notices_an_action_that_a_game_lacks(data):
    actions = data.actions.copy()
    actions[-1] = 2  # up: Breakout has no such move
    found = failing(checks.suite(dataclasses.replace(data, actions=actions), CFG))
    assert found == ["every action is legal in its game"]


@pytest.mark.parametrize("wrong, place", [(True, (3, 4)), (False, (5, 5))])
def test_the_suite_notices_a_mask_that_shows_the_future_or_hides_a_position_from_itself(
    data, monkeypatch, wrong, place
):
    true = checks.hierarchical_mask

    def mask(num_steps, kind):
        found = true(num_steps, kind).clone()
        if kind == "seed":
            found[place] = wrong
        return found

    monkeypatch.setattr(checks, "hierarchical_mask", mask)
    assert failing(checks.suite(data, CFG)) == [
        "mask seed shows nothing of the future and every position itself"]


def test_the_suite_notices_a_parameter_that_nothing_trains(data, monkeypatch):
    class WithIdle(checks.WorldModel):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.idle = torch.nn.Linear(2, 2)

    monkeypatch.setattr(checks, "WorldModel", WithIdle)
    assert failing(checks.suite(data, CFG)) == ["every parameter gets a gradient"]
