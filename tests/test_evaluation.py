"""hd.evaluation: real episodes, intervals, dreams against the truth, the validation suite."""

import dataclasses

import numpy as np
import pytest
import torch

from hd import evaluation, replay, runs, stages, windows
from hd.atari import GAMES
from hd.config import InputError
from hd.evaluation import interval, play, random_act, tracker_act


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


def test_play_returns_one_row_per_whole_episode():
    rows = play(random_act("breakout"), "breakout", num_episodes=3, seed=5, sticky=0.25)
    assert [row["episode"] for row in rows] == [0, 1, 2]
    assert all(set(row) == {"game", "seed", "episode", "return", "length", "sticky"}
               for row in rows)
    assert all(row["length"] > 50 and row["return"] >= 0 for row in rows)
    assert {(row["game"], row["seed"], row["sticky"]) for row in rows} == {("breakout", 5, 0.25)}


def test_playing_twice_from_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    first, again, other = (play(random_act("breakout"), "breakout", num_episodes=2, seed=seed,
                                sticky=0.0) for seed in (1, 1, 2))
    assert first == again
    assert [row["length"] for row in first] != [row["length"] for row in other]


def test_a_policy_sees_its_own_episode_with_the_newest_frame_last():
    seen = []

    def act(observation, generator):
        seen.append(observation.frames.copy())
        return np.ones(len(observation.ram), int)

    watched = []
    play(act, "breakout", num_episodes=1, seed=0, sticky=0.0,
         watch=lambda episode, frame, reward: watched.append(frame.copy()))
    assert (seen[0] == seen[0][:, :1]).all(), "an episode starts with its first frame four times"
    assert (seen[7][0, 3] == watched[6]).all() and (seen[7][0, 2] == watched[5]).all()


def test_the_scripted_tracker_beats_random_play_in_pong():
    tracked = play(tracker_act("pong"), "pong", num_episodes=1, seed=0, sticky=0.0)
    chance = play(random_act("pong"), "pong", num_episodes=1, seed=0, sticky=0.0)
    assert tracked[0]["return"] > 0 > chance[0]["return"]


@pytest.mark.parametrize(("game", "episodes", "message"), [
    ("doom", 1, "unknown game 'doom'; allowed: pong, breakout, ms_pacman"),
    ("pong", 0, "num_episodes must be at least 1; got 0")])
def test_play_refuses_what_it_cannot_do_in_one_line(game, episodes, message):
    with pytest.raises(InputError, match=message):
        play(lambda seen, generator: 0, game, num_episodes=episodes, seed=0, sticky=0.0)


def test_an_interval_contains_the_mean_narrows_with_n_and_is_nan_for_one_value():
    rng = np.random.default_rng(0)
    few, many = rng.normal(3, 1, 10), rng.normal(3, 1, 1000)
    low, high = interval(few)
    assert low < few.mean() < high
    assert interval(many)[1] - interval(many)[0] < high - low
    assert np.isnan(interval([1.0])).all()
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval(few) == (low, high), "the resampling is seeded"


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


def test_random_play_uses_only_legal_actions():
    act = random_act("breakout")
    seen = evaluation.Observation(np.zeros((500, 4, 84, 84), np.uint8),
                                  np.zeros((500, 128), np.uint8))
    ids = act(seen, torch.Generator().manual_seed(0))
    assert set(ids.tolist()) == set(GAMES["breakout"].actions)
