"""hd.measure.dreams: dreams from plain arrays, what they keep of the truth, events matched in time.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import PlainEyes, refusal, stored_steps

from hd.config import ImaginationConfig, WorldModelConfig
from hd.measure import dreams
from hd.measure.dreams import Dreamt, firsts, matched, near, of_others, turns
from hd.run.machine import device
from hd.windows import Windows
from hd.world_model import WorldModel

K, CONTEXT, MAX_STEPS = 7, 3, 8


# ---- dreaming

def dreaming(*, held_out=(1, 3), num_dreams=20, context=CONTEXT, horizon=48, seed=0):
    """A model, the windows of two games with codes at random and settings of dreams."""
    data = stored_steps({"pong": (12, 30), "breakout": (20, 25)}, held_out=held_out)
    cfg = WorldModelConfig(num_codes=K, num_layers=1, dim=12, num_heads=2, ffn_dim=20,
                           max_steps=MAX_STEPS)
    tokens = np.random.default_rng(1).integers(0, K, (len(data), 3)).astype(np.int16)
    model = WorldModel(cfg, torch.randn(3, K, 5)).to(device()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # every token shows
    settings = ImaginationConfig(context=context, horizon=horizon, num_dreams=num_dreams)
    return model, Windows(cfg, data, tokens, seed=seed), settings


def test_dreams_begin_in_held_out_episodes_of_their_game_and_hold_what_truly_followed():
    model, windows, cfg = dreaming()
    windows.data.rewards[:] = np.arange(len(windows.data))
    found = dreams.dream(model, windows, "pong", cfg)
    rows, data = found.rows, windows.data
    assert rows.shape == (20, 1 + MAX_STEPS - CONTEXT)  # as long as the model can read
    assert (np.diff(rows, axis=1) == 1).all() and len(np.unique(rows[:, 0])) == 20
    # Episode 1 is Pong's held-out one, rows 12 to 41; the context is behind a dream's first row.
    assert rows.min() >= 12 + CONTEXT - 1 and rows.max() < 42
    assert (found.tokens.numpy() == windows.tokens[rows]).all()
    assert (found.rewards.numpy() == data.rewards[rows[:, :-1]]).all()
    assert torch.equal(found.rollout.tokens[:, 0].cpu(), found.tokens[:, 0])
    assert (found.rollout.actions.cpu().numpy() == data.actions[rows[:, :-1]]).all()


def test_all_starts_are_dreamed_from_where_there_are_fewer_than_asked_for():
    model, windows, cfg = dreaming(num_dreams=1000)
    found = dreams.dream(model, windows, "breakout", cfg)
    assert len(found.rows) == 25 - MAX_STEPS + 1


def test_dreams_are_as_long_as_stated_where_the_model_reads_more():
    model, windows, cfg = dreaming(horizon=2)
    assert dreams.dream(model, windows, "pong", cfg).rollout.tokens.shape == (20, 3, 3)
    assert dreams.num_steps(cfg, MAX_STEPS) == 2 and dreams.num_steps(cfg, 4) == 1


def test_the_seed_of_the_windows_decides_the_dreams():
    model, windows, cfg = dreaming(num_dreams=5)
    first, again = (dreams.dream(model, windows, "pong", cfg) for _ in range(2))
    assert torch.equal(first.rollout.tokens, again.rollout.tokens)
    windows.seed = 7
    assert (dreams.dream(model, windows, "pong", cfg).rows != first.rows).any()


def test_a_context_that_leaves_no_room_to_dream_is_refused_in_one_line():
    model, windows, cfg = dreaming(context=MAX_STEPS)
    assert refusal(dreams.dream, model, windows, "pong", cfg) == (
        "imagination.context 8 leaves no room to dream in world_model.max_steps 8")


def test_dreams_are_ranked_by_how_many_of_their_first_coarse_codes_are_true():
    truth = torch.zeros(4, 21, 3, dtype=torch.long)
    dreamed = truth.clone()
    for dream, wrong in enumerate((6, 0, 15, 3)):
        dreamed[dream, 1:1 + wrong, 0] = 1
    dreamed[1, 0], dreamed[1, 16:], dreamed[1, :, 1:] = 1, 1, 1  # none of it counts
    found = Dreamt("pong", SimpleNamespace(tokens=dreamed), truth, None, None)
    share, picks = dreams.ranked(found, 4)
    assert picks.tolist() == [1, 3, 0, 2]
    assert share.tolist() == pytest.approx([1, 12 / 15, 9 / 15, 0])
    assert dreams.ranked(found, 2)[1].tolist() == [1, 2], "the best and the worst"
    assert dreams.ranked(found)[1].tolist() == [1, 3, 0, 2], "never one of them twice"


# ---- what dreams keep

def values(rows):
    return {(r["metric"], r["step"]): (r["value"], r["baseline"]) for r in rows}


def test_a_dream_that_scores_is_found_by_its_rewards_whatever_their_sign_and_order():
    true = np.array([[0, 1, 0], [0, 0, 0], [-1, 1, 0], [0, 0, 0]], np.float32)
    dreamed = np.array([[0.5, 0, 0], [0.1, 0, 0.1], [-0.4, 0.4, 0], [0.6, 0, 0]], np.float32)
    found = values(dreams._reward_rows(dreamed, true, "pong"))
    # Sums of |reward| 0.5, 0.2, 0.8, 0.6: dreams 2 and 0 score and are ranked first and third.
    value, base = found["dream_reward_average_precision", 3]
    assert (value, base) == (pytest.approx((1 / 1 + 2 / 3) / 2), 0.5)
    error, no_reward = found["dream_reward_error", 3]
    assert error == pytest.approx((0.5 + 0.2 + 0 + 0.6) / 4)
    assert no_reward == pytest.approx(1 / 4)


def test_without_a_reward_in_the_sample_nothing_is_said_about_finding_them():
    rows = dreams._reward_rows(np.ones((2, 3)), np.zeros((2, 3)), "pong")
    assert [r["metric"] for r in rows] == ["dream_reward_error"]


def coordinate_rows(dreamed, rows=PlainEyes.rows):
    """What is said of dreams of these tokens, by metric and step."""
    return values(dreams._coordinate_rows(PlainEyes.dreamt(dreamed, rows), PlainEyes.data,
                                          PlainEyes.quantizer, PlainEyes.probe))


def test_the_ball_is_read_from_dreamed_and_true_codes_beside_its_last_true_place():
    ram, dreamed = PlainEyes.ram, PlainEyes.codes[PlainEyes.rows]
    dreamed[..., 1] += 7
    found = coordinate_rows(dreamed)
    ball_x = ram[:, 49].astype(float)
    moved = np.median(np.abs([ball_x[0] - ball_x[1], ball_x[12] - ball_x[13]]))
    assert found["dreams_in_play", 1] == (2, None)
    assert found["dream_error_ball_x", 1] == (8, moved)
    assert found["dream_error_ball_x[re-encoded]", 1] == (1, None)
    assert found["dream_error_ball_y", 1][0] == found["dream_error_player_y", 1][0] == 1


def test_positions_go_on_as_the_last_two_true_steps_moved():
    codes, rows, ball_x = PlainEyes.codes, PlainEyes.rows, PlainEyes.ram[:, 49].astype(float)
    found = coordinate_rows(codes[rows])
    # The first dream begins an episode: nothing moved yet. The third begins at row 12, as does
    # its episode.
    errors = [abs(ball_x[0] - ball_x[1]), abs(ball_x[12] - ball_x[13])]
    assert found["dream_error_ball_x[extrapolated]", 1] == (np.median(errors), None)
    later = rows[:, :3] + np.array([1, 0, 1])[:, None]
    found = coordinate_rows(codes[later], later)
    speed = ball_x[[1, 13]] - ball_x[[0, 12]]
    errors = np.abs(ball_x[[1, 13]] + speed - ball_x[[2, 14]])
    assert found["dream_error_ball_x[extrapolated]", 1] == (np.median(errors), None)


def test_the_bracket_holds_the_better_of_the_last_place_and_the_last_velocity():
    codes, rows = PlainEyes.codes, PlainEyes.rows
    later = rows[:, :3] + np.array([1, 0, 1])[:, None]
    found = coordinate_rows(codes[later], later)
    for name in ("ball_x", "ball_y", "player_y"):
        still = [found[f"dream_error_{name}[{word}]", 1][0] for word in ("copied", "extrapolated")]
        assert found[f"dream_error_{name}", 1][1] == min(still)
        assert still[0] != still[1]


def paths(turn, num=4, length=19):
    """(num, length) positions that turn back at a step."""
    steps = np.arange(length, dtype=np.float64)
    return np.tile(100 + 4 * np.minimum(steps, 2 * turn - steps), (num, 1))


@pytest.mark.parametrize(("turn", "share"), [(8, 1.0), (10, 1.0), (5, 0.0)])
def test_a_turn_counts_where_the_dream_turns_within_two_steps(turn, share):
    labels = {"ball_x": paths(8), "player_y": paths(3)}
    read = {"": {"ball_x": paths(turn), "player_y": paths(3)},
            "re-encoded": {"ball_x": paths(8), "player_y": paths(3)}}
    in_play = np.ones((4, 19), bool)
    in_play[3, 12] = False
    found = values(dreams._turn_rows(labels, read, in_play, "pong"))
    assert found["dreams_with_turn_ball_x", 15] == (3, None)
    assert found["dream_turn_recall_ball_x", 15] == (share, share)  # all turn at once
    assert found["dream_turn_recall_ball_x[re-encoded]", 15] == (1.0, None)
    assert not any("player" in name for name, _ in found)


def test_a_dream_that_turns_all_the_time_has_not_foreseen_a_late_turn():
    labels, trembling = {"ball_x": paths(12)}, paths(12)
    trembling[:, 2::6] += 30
    trembling[:, 5::6] -= 30
    found = values(dreams._turn_rows(labels, {"": {"ball_x": trembling}},
                                         np.ones((4, 19), bool), "pong"))
    assert found["dream_turn_recall_ball_x", 15] == (0.0, 0.0)


def test_scoring_steps_are_found_within_two_steps_in_their_own_dream():
    true, dreamed = np.zeros((4, 20), np.float32), np.zeros((4, 20), np.float32)
    true[0, 5], true[1, 9] = 1, -1
    dreamed[0, 7], dreamed[1, 2], dreamed[2, 0], dreamed[3, 3] = 0.6, -0.9, 0.49, 0.5
    found = values(dreams._reward_rows(dreamed, true, "pong"))
    assert found["dream_reward_recall", 20][0] == 0.5
    assert found["dream_reward_precision", 20][0] == pytest.approx(1 / 3)
    quiet = values(dreams._reward_rows(dreamed * 0, true, "pong"))
    assert quiet["dream_reward_recall", 20] == (0.0, 0.0)
    assert ("dream_reward_precision", 20) not in quiet


def test_only_dreams_with_the_ball_in_play_at_both_steps_are_scored():
    ram, dreamed = PlainEyes.ram, PlainEyes.codes[PlainEyes.rows]
    dreamed[1:, 5] += 100  # neither dream is looked at
    found = coordinate_rows(dreamed)
    assert found["dreams_in_play", 5] == (1, None)
    assert found["dream_error_ball_x", 5] == (1, abs(float(ram[5, 49]) - float(ram[0, 49])))
    assert {step for _, step in found} == {1, 5}


def test_the_rows_of_a_game_compare_codes_with_copying_the_last_real_step():
    dreamed = PlainEyes.codes[PlainEyes.rows]
    dreamed[0, 1, 0] += 1
    found = Dreamt("pong", SimpleNamespace(tokens=dreamed, rewards=torch.zeros(3, 5)),
                   PlainEyes.codes[PlainEyes.rows], torch.zeros(3, 5), PlainEyes.rows)
    rows = values(dreams.rows_of(found, PlainEyes.data, PlainEyes.quantizer, PlainEyes.probe))
    truth = found.tokens[..., 0]
    copied = (truth[:, 0] == truth[:, 1]).float().mean().item()
    assert rows["dream_l0_accuracy", 1] == (pytest.approx(2 / 3), copied)
    assert rows["dream_l0_accuracy", 5][0] == rows["dream_l2_accuracy", 1][0] == 1
    assert rows["dream_reward_error", 5] == (0, 0)
    assert ("dream_error_ball_x", 1) in rows
    assert {name: value for (name, _), (value, _) in rows.items()}["dreams"] == 3


# ---- events in paths and rewards

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
    assert matched(events, of_others(events)) == 0.0
