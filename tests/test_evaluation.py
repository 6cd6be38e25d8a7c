"""hd.measure.evaluation: dreams against the truth, the validation suite."""

import dataclasses
import types

import numpy as np
import pytest
import torch

from hd import replay, stages, tokenizer, windows
from hd.config import InputError
from hd.measure import evaluation
from hd.run import runs


@pytest.fixture(scope="module")
def frames_run(tmp_path_factory):
    """Finished frames of a very small smoke run of two games."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        run = runs.start("frames", profile="smoke", games=["pong", "breakout"],
                         overrides={"frames.num_steps": 300, "frames.min_episodes": 2,
                                    "frames.val_share": 0.5})
        stages.make(run)
        yield run


def test_the_validation_suite_holds_on_fresh_frames(frames_run):
    found = list(evaluation.check(frames_run))
    assert len(found) >= 12
    assert [what for what, holds, _ in found if not holds] == []


def test_the_validation_suite_notices_an_illegal_action_and_a_shared_episode(
        frames_run, monkeypatch):
    data = replay.open_run(frames_run)
    actions = data.actions.copy()
    actions[0] = 17  # no action of Pong
    is_train = data.is_train.copy()
    is_train[0] = not is_train[0]
    broken = dataclasses.replace(data, actions=actions, is_train=is_train)
    monkeypatch.setattr(replay, "open_run", lambda run: broken)
    failed = [what for what, holds, _ in evaluation.check(frames_run) if not holds]
    assert any("legal" in what for what in failed)
    assert any("both sides" in what for what in failed)


@pytest.mark.parametrize(("stated", "expected"), [((), None), ((3.0, 1.0), 0.75)])
def test_training_batches_hold_the_stated_share_of_each_game(frames_run, monkeypatch, stated,
                                                             expected):
    data = replay.open_run(frames_run)
    monkeypatch.setattr(windows.tokenizer, "tokens",
                        lambda run: np.zeros((len(data), 3), np.int16))
    section = dataclasses.replace(frames_run.profile.world_model, game_shares=stated,
                                  batch_size=16)
    profile = dataclasses.replace(frames_run.profile, world_model=section)
    run = dataclasses.replace(frames_run, stage="world_model", profile=profile)
    found = windows.Windows(run)
    drawn = np.concatenate([found.batch_starts(i) for i in range(200)])
    assert data.is_train[drawn].all()
    share = (data.game_idx[drawn] == 0).mean()
    assert share == pytest.approx(found.shares()[0] if expected is None else expected, abs=0.02)
    assert found.shares().sum() == pytest.approx(1)


def test_shares_that_do_not_fit_the_games_are_refused(frames_run, monkeypatch):
    monkeypatch.setattr(windows.tokenizer, "tokens", lambda run: np.zeros((1, 3), np.int16))
    section = dataclasses.replace(frames_run.profile.world_model, game_shares=(1.0, 1.0, 1.0))
    profile = dataclasses.replace(frames_run.profile, world_model=section)
    run = dataclasses.replace(frames_run, stage="world_model", profile=profile)
    with pytest.raises(InputError, match="a number from 0 for each of pong, breakout; got"):
        windows.Windows(run).shares()


# ---- what dreams keep

def values(rows):
    return {(r["metric"], r["step"]): (r["value"], r["baseline"]) for r in rows}


def test_a_dream_that_scores_is_found_by_its_rewards_whatever_their_sign_and_order():
    true = np.array([[0, 1, 0], [0, 0, 0], [-1, 1, 0], [0, 0, 0]], np.float32)
    dreamed = np.array([[0.5, 0, 0], [0.1, 0, 0.1], [-0.4, 0.4, 0], [0.6, 0, 0]], np.float32)
    found = values(evaluation._reward_rows(dreamed, true, "pong"))
    # Sums of |reward| 0.5, 0.2, 0.8, 0.6: dreams 2 and 0 score and are ranked first and third.
    value, base = found["dream_reward_average_precision", 3]
    assert (value, base) == (pytest.approx((1 / 1 + 2 / 3) / 2), 0.5)
    error, no_reward = found["dream_reward_error", 3]
    assert error == pytest.approx((0.5 + 0.2 + 0 + 0.6) / 4)
    assert no_reward == pytest.approx(1 / 4)


def test_without_a_reward_in_the_sample_nothing_is_said_about_finding_them():
    rows = evaluation._reward_rows(np.ones((2, 3)), np.zeros((2, 3)), "pong")
    assert [r["metric"] for r in rows] == ["dream_reward_error"]


@pytest.fixture
def plain_eyes(monkeypatch):
    """Pong in three stretches of six steps whose codes are player_y, ball_x and ball_y themselves,
    off by one each: the probe just reads them. Returns the rows, as dream gives them."""
    rng = np.random.default_rng(0)
    ram = np.zeros((18, 128), np.uint8)
    for address in (50, 51, 49, 54):
        ram[:, address] = rng.integers(20, 200, 18)
    ram[8, 54] = 0  # out of play when the second dream begins
    ram[17, 54] = 0  # and at the end of the third
    codes = ram[:, [51, 49, 54]].astype(np.int64) + 1
    data = types.SimpleNamespace(ram=ram, starts=np.repeat([0, 6, 12], 6))
    monkeypatch.setattr(replay, "open_run", lambda run: data)
    monkeypatch.setattr(tokenizer, "load", lambda run: None)
    monkeypatch.setattr(tokenizer, "tokens", lambda run: codes.astype(np.int16))
    monkeypatch.setattr(tokenizer, "quantized", lambda model, codes: codes.astype(np.float32))
    probe = types.SimpleNamespace(predict=lambda x: {
        "player_y": x[:, 0], "enemy_y": x[:, 0], "ball_x": x[:, 1], "ball_y": x[:, 2]})
    monkeypatch.setattr(evaluation, "_coordinate_probe", lambda *inputs: probe)
    return ram, codes, np.array([[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13],
                                 [12, 13, 14, 15, 16, 17]])


def test_the_ball_is_read_from_dreamed_and_true_codes_beside_its_last_true_place(plain_eyes):
    ram, codes, stored = plain_eyes
    dreamed = torch.from_numpy(codes[stored]).clone()
    dreamed[..., 1] += 7
    found = values(evaluation._coordinate_rows(None, "pong", dreamed, stored))
    ball_x = ram[:, 49].astype(float)
    moved = np.median(np.abs([ball_x[0] - ball_x[1], ball_x[12] - ball_x[13]]))
    assert found["dreams_in_play", 1] == (2, None)
    assert found["dream_error_ball_x", 1] == (8, moved)
    assert found["dream_error_ball_x[re-encoded]", 1] == (1, None)
    assert found["dream_error_ball_y", 1][0] == found["dream_error_player_y", 1][0] == 1


def test_positions_go_on_as_the_last_two_true_steps_moved(plain_eyes):
    ram, codes, stored = plain_eyes
    found = values(evaluation._coordinate_rows(None, "pong", torch.from_numpy(codes[stored]),
                                               stored))
    ball_x = ram[:, 49].astype(float)
    # The first dream begins an episode: nothing moved yet. The third begins at row 12, as does
    # its episode.
    errors = [abs(ball_x[0] - ball_x[1]), abs(ball_x[12] - ball_x[13])]
    assert found["dream_error_ball_x[extrapolated]", 1] == (np.median(errors), None)
    later = stored + np.array([1, 0, 1])[:, None]  # 1 to 6 and 13 to 18 would leave their episode
    found = values(evaluation._coordinate_rows(None, "pong", torch.from_numpy(codes[later[:, :3]]),
                                               later[:, :3]))
    speed = ball_x[[1, 13]] - ball_x[[0, 12]]
    errors = np.abs(ball_x[[1, 13]] + speed - ball_x[[2, 14]])
    assert found["dream_error_ball_x[extrapolated]", 1] == (np.median(errors), None)


def test_the_ball_of_a_dream_is_placed_on_the_frame_as_read_from_its_codes(plain_eyes, monkeypatch):
    _, codes, stored = plain_eyes
    truth = torch.from_numpy(codes[stored])
    dreamed = truth.clone()
    dreamed[..., 1] += 20
    monkeypatch.setattr(evaluation, "dream", lambda *inputs: (
        types.SimpleNamespace(tokens=dreamed[2:]), truth[2:], None, stored[2:]))
    balls = evaluation.dream_places(None, "pong")
    assert list(balls) == ["real game", "its codes", "dream"]
    np.testing.assert_allclose(balls["its codes"][:5, 0] - balls["real game"][:5, 0], 84 / 160)
    moved = balls["dream"][:5] - balls["its codes"][:5]
    np.testing.assert_allclose(moved, [[20 * 84 / 160, 0]] * 5)
    assert all(np.isnan(places[5]).all() for places in balls.values()), "out of play"


def paths(turn, num=4, length=19):
    """(num, length) positions that turn back at a step."""
    steps = np.arange(length, dtype=np.float64)
    return np.tile(100 + 4 * np.minimum(steps, 2 * turn - steps), (num, 1))


@pytest.mark.parametrize(("turn", "share"), [(8, 1.0), (10, 1.0), (5, 0.0)])
def test_a_turn_counts_where_the_dream_turns_within_two_steps(turn, share):
    labels = {"ball_x": paths(8), "player_y": paths(3)}
    read = {"": {"ball_x": paths(turn), "player_y": paths(3)},
            "[re-encoded]": {"ball_x": paths(8), "player_y": paths(3)}}
    in_play = np.ones((4, 19), bool)
    in_play[3, 12] = False
    found = values(evaluation._turn_rows(labels, read, in_play, "pong"))
    assert found["dreams_with_turn_ball_x", 15] == (3, None)
    assert found["dream_turn_recall_ball_x", 15] == (share, share)  # all turn at once
    assert found["dream_turn_recall_ball_x[re-encoded]", 15] == (1.0, None)
    assert not any("player" in name for name, _ in found)


def test_a_dream_that_turns_all_the_time_has_not_foreseen_a_late_turn():
    labels, trembling = {"ball_x": paths(12)}, paths(12)
    trembling[:, 2::6] += 30
    trembling[:, 5::6] -= 30
    found = values(evaluation._turn_rows(labels, {"": {"ball_x": trembling}},
                                         np.ones((4, 19), bool), "pong"))
    assert found["dream_turn_recall_ball_x", 15] == (0.0, 0.0)


def test_scoring_steps_are_found_within_two_steps_in_their_own_dream():
    true, dreamed = np.zeros((4, 20), np.float32), np.zeros((4, 20), np.float32)
    true[0, 5], true[1, 9] = 1, -1
    dreamed[0, 7], dreamed[1, 2], dreamed[2, 0], dreamed[3, 3] = 0.6, -0.9, 0.49, 0.5
    found = values(evaluation._reward_rows(dreamed, true, "pong"))
    assert found["dream_reward_recall", 20][0] == 0.5
    assert found["dream_reward_precision", 20][0] == pytest.approx(1 / 3)
    quiet = values(evaluation._reward_rows(dreamed * 0, true, "pong"))
    assert quiet["dream_reward_recall", 20] == (0.0, 0.0)
    assert ("dream_reward_precision", 20) not in quiet


def test_only_dreams_with_the_ball_in_play_at_both_steps_are_scored(plain_eyes):
    ram, codes, stored = plain_eyes
    dreamed = torch.from_numpy(codes[stored]).clone()
    dreamed[1:, 5] += 100  # neither dream is looked at
    found = values(evaluation._coordinate_rows(None, "pong", dreamed, stored))
    assert found["dreams_in_play", 5] == (1, None)
    assert found["dream_error_ball_x", 5] == (1, abs(float(ram[5, 49]) - float(ram[0, 49])))
    assert {step for _, step in found} == {1, 5}
