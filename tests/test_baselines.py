"""Trivial predictors of the next code: closed forms, and all of them are distributions."""

import math

import numpy as np
import pytest

from hd.measure.baselines import SMOOTHING, NextCode

K, A = 5, 3
# Codes 0 0 1 2 0 0 1, so six steps; actions done at the first six of them.
CODES = np.array([0, 0, 1, 2, 0, 0, 1])
LAST, FOLLOWING, ACTIONS = CODES[:-1], CODES[1:], np.array([1, 2, 0, 0, 1, 2])


def fitted():
    return NextCode.fit(LAST, FOLLOWING, ACTIONS, num_codes=K, num_actions=A)


def score_of(name, last, following, action):
    scored = fitted().scores(np.array([last]), np.array([following]), np.array([action]))[name]
    return math.exp(-scored.nats[0]), bool(scored.is_right[0])


def test_frequency_is_the_smoothed_share_of_the_next_code():
    # Next codes 0 1 2 0 0 1: three 0, two 1, one 2; one pseudo-count for each of the five codes.
    expected = np.array([4, 3, 2, 1, 1]) / 11
    np.testing.assert_allclose(fitted().frequency, expected, rtol=1e-12)
    for code in range(K):
        probability, is_right = score_of("frequency", 2, code, 0)
        assert probability == pytest.approx(expected[code], rel=1e-12)
        assert is_right == (code == 0)


def test_repeat_last_gives_its_share_to_the_last_code_and_spreads_the_rest_by_frequency():
    # Two of six steps repeat; with one pseudo-count on each side 3/8.
    assert fitted().repeat_share == pytest.approx(3 / 8, rel=1e-12)
    assert score_of("repeat_last", 2, 2, 0) == (pytest.approx(3 / 8 + 5 / 8 * 2 / 11), True)
    assert score_of("repeat_last", 2, 0, 0) == (pytest.approx(5 / 8 * 4 / 11), False)


def test_ngram_counts_what_followed_code_and_action_pulled_towards_the_frequency():
    # (0, action 1) was followed by 0 twice, (0, action 2) by 1 twice.
    after_1 = (2 + SMOOTHING * 4 / 11) / (2 + SMOOTHING)
    assert score_of("ngram", 0, 0, 1) == (pytest.approx(after_1), True)
    assert score_of("ngram", 0, 1, 1) == (
        pytest.approx(SMOOTHING * 3 / 11 / (2 + SMOOTHING)), False)
    assert score_of("ngram", 0, 1, 2) == (
        pytest.approx((2 + SMOOTHING * 3 / 11) / (2 + SMOOTHING)), True)


def test_ngram_falls_back_to_the_frequency_where_it_never_was():
    for code, share in enumerate(np.array([4, 3, 2, 1, 1]) / 11):
        assert score_of("ngram", 4, code, 2)[0] == pytest.approx(share)


@pytest.mark.parametrize("name", ["repeat_last", "frequency", "ngram"])
def test_probabilities_over_the_next_code_sum_to_one(name):
    for last in range(K):
        for action in range(A):
            scored = fitted().scores(np.full(K, last), np.arange(K), np.full(K, action))[name]
            assert np.exp(-scored.nats).sum() == pytest.approx(1, rel=1e-12)


def test_ngram_knows_a_deterministic_world_that_the_others_cannot():
    rng = np.random.default_rng(0)
    actions, codes = rng.integers(0, A, 4001), [0]
    for action in actions[:-1]:
        codes.append((codes[-1] + 1 + action) % K)
    codes, actions = np.array(codes), actions[:-1]
    model = NextCode.fit(codes[:-1], codes[1:], actions, num_codes=K, num_actions=A)
    scores = model.scores(codes[:-1], codes[1:], actions)
    accuracy = {name: score.is_right.mean() for name, score in scores.items()}
    assert accuracy["ngram"] == 1.0
    assert accuracy["repeat_last"] == 0.0
    # One in five codes by chance; 4000 steps put it within 0.04 (six standard deviations).
    assert accuracy["frequency"] == pytest.approx(1 / K, abs=0.04)


def test_small_stored_integers_do_not_overflow():
    codes, actions = np.array([255, 254, 255], np.int16), np.array([17, 16], np.int8)
    following = codes[1:].astype(np.int64)
    model = NextCode.fit(codes[:-1], following, actions, num_codes=256, num_actions=18)
    ngram = model.scores(codes[:-1], following, actions)["ngram"]
    assert ngram.is_right.all()
    assert model.ngram[255 * 18 + 17, 254] == 1
    assert model.ngram.sum() == 2
