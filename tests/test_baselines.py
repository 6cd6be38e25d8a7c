"""Trivial predictors of the next code: closed forms, and all of them are distributions."""

import math

import numpy as np
import pytest

from hd.measure import baselines
from hd.measure.baselines import BackOff, NextCode, Steps, fitted_weights

K, L = 5, 3


def steps_of(codes, actions=None, *, level=0, num_stretches=1):
    """The steps of codes (n + 1, L), or (n + 1,) for the same on all levels, one after the other,
    cut into stretches of one length."""
    codes = np.asarray(codes)
    codes = np.repeat(codes[:, None], L, 1) if codes.ndim == 1 else codes
    count = len(codes) - 1
    actions = np.zeros(count, np.int64) if actions is None else np.asarray(actions)
    return Steps(level, codes[:-1], codes[1:], actions, np.arange(count) * num_stretches // count)


# Codes 0 0 1 2 0 0 1, so six steps; actions done at the first six of them.
SIX = steps_of([0, 0, 1, 2, 0, 0, 1], [1, 2, 0, 0, 1, 2])


def score_of(name, last, following, model=None):
    scored = (model or NextCode.fit(SIX, num_codes=K)).scores(steps_of([last, following]))[name]
    return math.exp(-scored.nats[0]), bool(scored.is_right[0])


def means(fitted_on, scored_on, num_codes=K):
    """(nats, share right) of each predictor."""
    scores = NextCode.fit(fitted_on, num_codes=num_codes).scores(scored_on)
    return {name: (score.nats.mean(), score.is_right.mean()) for name, score in scores.items()}


def test_frequency_is_the_smoothed_share_of_the_next_code():
    # Next codes 0 1 2 0 0 1: three 0, two 1, one 2; one pseudo-count for each of the five codes.
    expected = np.array([4, 3, 2, 1, 1]) / 11
    np.testing.assert_allclose(NextCode.fit(SIX, num_codes=K).frequency, expected, rtol=1e-12)
    for code in range(K):
        probability, is_right = score_of("frequency", 2, code)
        assert probability == pytest.approx(expected[code], rel=1e-12)
        assert is_right == (code == 0)


def test_repeat_last_gives_its_share_to_the_last_code_and_spreads_the_rest_by_frequency():
    # Two of six steps repeat; with one pseudo-count on each side 3/8.
    assert NextCode.fit(SIX, num_codes=K).repeat_share == pytest.approx(3 / 8, rel=1e-12)
    assert score_of("repeat_last", 2, 2) == (pytest.approx(3 / 8 + 5 / 8 * 2 / 11), True)
    assert score_of("repeat_last", 2, 0) == (pytest.approx(5 / 8 * 4 / 11), False)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", ["repeat_last", "frequency", "back_off"])
def test_probabilities_over_the_next_code_sum_to_one(name, level):
    rng = np.random.default_rng(level)
    model = NextCode.fit(steps_of(rng.integers(0, K, (80, L)), rng.integers(0, 4, 79), level=level,
                                  num_stretches=7), num_codes=K)
    for last, others, action in zip(rng.integers(0, K, (20, L)), rng.integers(0, K, (20, L)),
                                    rng.integers(0, 6, 20)):  # actions that training had not, too
        following = np.repeat(others[None], K, 0)
        following[:, level] = np.arange(K)
        scored = model.scores(Steps(level, np.repeat(last[None], K, 0), following,
                                    np.full(K, action)))[name]
        assert np.exp(-scored.nats).sum() == pytest.approx(1, rel=1e-12)


def test_back_off_scores_what_its_distribution_says(monkeypatch):
    monkeypatch.setattr(baselines, "CHUNK", 11)
    rng = np.random.default_rng(0)
    steps = steps_of(rng.integers(0, K, (60, L)), level=1, num_stretches=4)
    model = BackOff(steps, K)
    found, score = model.distribution(steps), model.score(steps)
    np.testing.assert_allclose(np.exp(-score.nats), found[np.arange(59), steps.target])
    assert (score.is_right == (found.argmax(1) == steps.target)).all()


def test_back_off_knows_a_deterministic_world_that_the_others_cannot():
    rng = np.random.default_rng(0)
    actions, codes = rng.integers(0, 3, 4000), [0]
    for action in actions:
        codes.append((codes[-1] + 1 + action) % K)
    found = means(steps_of(codes, actions, num_stretches=9), steps_of(codes, actions))
    assert found["back_off"][1] == 1.0
    assert found["back_off"][0] < 0.01, "nats"
    assert found["repeat_last"][1] == 0.0
    # One in five codes by chance; 4000 steps put it within 0.04 (six standard deviations).
    assert found["frequency"][1] == pytest.approx(1 / K, abs=0.04)


def test_back_off_reads_the_coarser_codes_of_the_step_it_predicts():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, K, (6001, L))
    codes[:, 1] = (2 * codes[:, 0] + 1) % K  # decided by the coarser code of the same step
    codes[:, 2] = (codes[:, 0] + codes[:, 1]) % K
    for level in (1, 2):
        steps = steps_of(codes, level=level, num_stretches=8)
        found = means(steps, steps)
        assert found["back_off"][0] < 0.01 and found["back_off"][1] == 1.0
        assert found["frequency"][0] > 1.5, "log 5 is 1.6"
    first = steps_of(codes, num_stretches=8)
    assert means(first, first)["back_off"][0] > 1.5, "nothing tells the coarsest"


def test_back_off_reads_the_other_levels_of_the_last_step():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, K, (6001, L))
    codes[1:, 0] = codes[:-1, 1]
    steps = steps_of(codes, num_stretches=8)
    assert means(steps, steps)["back_off"][1] == 1.0


@pytest.mark.parametrize("level", [0, 1, 2])
def test_on_pure_chance_back_off_loses_to_frequency_by_a_hair_at_most(level):
    rng = np.random.default_rng(level)
    shares = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    codes = rng.choice(K, (6001, L), p=shares)
    train, test = (steps_of(part, rng.integers(0, 3, 3000), level=level, num_stretches=10)
                   for part in (codes[:3001], codes[3000:]))
    found = means(train, test)
    # Of 1.4 nats: some 70 weights fitted to 3000 steps cost about 70 / 2 / 3000 = 0.012.
    assert found["back_off"][0] < found["frequency"][0] + 0.02
    # Nobody can do better than the entropy; 3000 steps scatter the mean by 0.015.
    assert found["back_off"][0] > -(shares * np.log(shares)).sum() - 0.05


@pytest.mark.parametrize("level", [0, 1, 2])
def test_where_codes_mostly_repeat_back_off_is_no_worse_than_repeat_last(level):
    rng = np.random.default_rng(level)
    num_codes, stays = 50, rng.random(6000) < 0.9
    codes = rng.integers(0, num_codes, (6001, L))
    for step, stay in enumerate(stays, 1):
        codes[step] = codes[step - 1] if stay else codes[step]
    # Held-out steps have codes that training never had.
    train, test = (steps_of(part, level=level, num_stretches=10)
                   for part in (codes[:3001] % 30, codes[3000:]))
    found = means(train, test, num_codes)
    assert found["back_off"][0] < found["repeat_last"][0] + 0.01
    assert found["back_off"][1] > found["repeat_last"][1] - 0.01


def test_a_finer_code_is_trusted_to_stay_where_the_coarser_ones_stay():
    rng = np.random.default_rng(0)
    num_codes, codes = 200, rng.integers(0, 200, (4001, L))
    stays = rng.random(4000) < 0.5
    for step, stay in enumerate(stays, 1):  # all levels stay, or all of them are drawn anew
        codes[step] = codes[step - 1] if stay else codes[step]
    steps = steps_of(codes, level=2, num_stretches=10)
    test = Steps(2, codes[:-1][stays], codes[1:][stays], np.zeros(stays.sum(), np.int64))
    found = NextCode.fit(steps, num_codes=num_codes).scores(test)
    assert found["back_off"].nats.mean() < 0.1
    assert found["repeat_last"].nats.mean() == pytest.approx(math.log(2), abs=0.05)


def test_weights_are_not_fitted_to_steps_that_are_counted_in_the_same_stretch():
    # Within an episode a code is followed by its successor, which each episode chooses anew.
    rng = np.random.default_rng(0)
    num_codes, codes = 20, []
    for _ in range(40):
        order = rng.permutation(num_codes)
        codes += [*order, *order, *order]
    codes.append(0)
    honest = BackOff(steps_of(codes, num_stretches=40), num_codes)
    single = BackOff(steps_of(codes, num_stretches=len(codes) - 1), num_codes)
    test = steps_of([*rng.permutation(num_codes), *rng.permutation(num_codes)])
    assert honest.score(test).nats.mean() < single.score(test).nats.mean() - 0.02


def test_weights_are_those_that_make_the_training_steps_likeliest():
    # One part that is right with share 1 in a quarter of 4000 steps, and else with 0: a weight w
    # has the likelihood (w + (1 - w) / 2)^1000 ((1 - w) / 2)^3000, which is largest at w = 0 here.
    shares = np.repeat([[1.0, 0.0]], 2000, 0).reshape(1, -1)
    shares[0, 1000:] = 0
    kinds = np.ones((1, 4000), np.int64)
    assert fitted_weights(shares, kinds, 0.5)[0, 1] == pytest.approx(0, abs=0.01)
    # In three quarters: (1 + w)^3000 (1 - w)^1000, largest at w = 1/2.
    shares[0] = np.arange(4000) < 3000
    assert fitted_weights(shares, kinds, 0.5)[0, 1] == pytest.approx(0.5, abs=0.01)


def test_each_kind_of_context_has_a_weight_of_its_own_and_one_never_seen_has_none():
    shares = np.array([[1.0] * 1000 + [0.0] * 3000])
    kinds = np.repeat([[1, 2, 0]], 1000, 1).reshape(1, -1)
    kinds = np.concatenate([kinds, np.full((1, 1000), 2)], 1)
    weights = fitted_weights(shares, kinds, 0.1)
    assert weights[0, 1] > 0.99 and weights[0, 2] < 0.01 and weights[0, 0] == 0


def test_without_any_training_step_every_code_but_the_last_is_alike():
    nothing = Steps(0, *np.zeros((2, 0, L), int), *np.zeros((2, 0), int))
    model = NextCode.fit(nothing, num_codes=K)
    for code in range(1, K):
        assert score_of("frequency", 0, code, model)[0] == pytest.approx(1 / K)
        assert score_of("back_off", 0, code, model)[0] == pytest.approx(2 / 3 / K)


def test_small_stored_integers_do_not_overflow():
    codes = np.array([[255, 254, 255], [254, 255, 253]] * 4, np.int16)
    for level in range(L):
        steps = Steps(level, codes[:-1], codes[1:], np.array([17, 16] * 4, np.int8)[:-1],
                      np.arange(7))
        found = NextCode.fit(steps, num_codes=256).scores(steps)
        assert found["back_off"].is_right.all() and not found["repeat_last"].is_right.any()
        assert (found["back_off"].nats < found["frequency"].nats).all()
