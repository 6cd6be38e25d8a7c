"""hd.measure.codes: what codes share between games, tell and keep."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hd.measure import codes
from hd.measure.codes import entropy, mutual_information
from hd.quantization import ResidualVQ


def test_sharing_counts_frames_on_codes_that_every_game_uses_often_enough():
    # Code 0 is both games'; code 1 is game 0's and once game 1's; 2 and 3 are one game's.
    first, second = [0] * 4 + [1] * 5 + [2], [0] * 2 + [1] + [3] * 7
    made, games = np.array([first + second]).T, np.repeat([0, 1], 10)
    rows = codes._sharing_rows(made, games, 8, 0)
    by_hand = {"0": ((6 + 6) / 20, 2 / 8), "0.001": ((6 + 6) / 20, 2 / 8)}
    for threshold, (frames, shared) in by_hand.items():
        assert metric(rows, f"l0_shared_frames[from {threshold}]")[0] == pytest.approx(frames)
        assert metric(rows, f"l0_shared_codes[from {threshold}]")[0] == pytest.approx(shared)


def test_a_stray_use_makes_no_shared_code_above_the_threshold():
    made = np.array([[0] * 500 + [1] * 499 + [0]]).T
    rows = codes._sharing_rows(made, np.repeat([0, 1], 500), 8, 0)
    assert metric(rows, "l0_shared_frames[from 0]")[0] == pytest.approx(501 / 1000)
    assert metric(rows, "l0_shared_frames[from 0.01]")[0] == 0.0


def test_entropy_is_the_log_of_the_number_of_equally_frequent_codes():
    assert entropy(np.repeat(np.arange(7), 3)) == pytest.approx(math.log(7))
    assert entropy(np.zeros(9, int)) == 0.0
    assert entropy(np.array([0, 0, 0, 5])) == pytest.approx(
        -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    )


def test_mutual_information_of_equal_and_of_independent_labels():
    a = np.tile(np.arange(3, dtype=np.int16), 4)
    b = np.repeat(np.arange(4), 3)
    assert mutual_information(a, b) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(a, a) == pytest.approx(math.log(3))
    assert mutual_information(a, b % 1) == pytest.approx(0.0, abs=1e-12)


def test_mutual_information_by_hand_and_symmetric():
    # Joint shares 1/2, 1/4, 1/4 of (0, 0), (1, 0), (1, 1).
    a, b = np.array([0, 0, 1, 1], np.int16), np.array([0, 0, 0, 1], np.int8)
    expected = math.log(2) + (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) - 1.5 * math.log(2)
    assert mutual_information(a, b) == pytest.approx(expected)
    assert mutual_information(b, a) == pytest.approx(expected)


def test_mutual_information_does_not_overflow_the_type_of_the_codes():
    a = np.arange(256, dtype=np.int16).repeat(2)
    b = np.arange(512, dtype=np.int16)
    assert mutual_information(a, b) == pytest.approx(math.log(256))


def metric(rows, name):
    (found,) = [row for row in rows if row["metric"] == name]
    return found["value"], found["baseline"]


def test_usage_and_perplexity_are_shares_and_effective_numbers_of_codes():
    chosen, random = np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3])
    rows = codes._usage_rows(chosen, random, "pong", 1, 8)
    assert metric(rows, "l1_usage") == (0.25, 0.5)
    assert metric(rows, "l1_perplexity") == pytest.approx((2.0, 4.0))


def test_reconstruction_is_measured_after_each_level_against_the_mean_embedding():
    model = ResidualVQ(2, 2, 2).eval()
    model.codebooks.copy_(torch.tensor([[[2.0, 0.0], [-2.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]]))
    rows = codes._reconstruction_rows(model, np.array([[3.0, 0.0], [-3.0, 0.0]], np.float32), "all")
    assert metric(rows, "l0_variance_explained") == pytest.approx((1 - 1 / 9, 0.0))
    assert metric(rows, "l1_variance_explained") == pytest.approx((1.0, 0.0))
    assert metric(rows, "l0_cosine")[0] == pytest.approx(1.0)


def test_the_share_of_equal_codes_stands_beside_chance():
    made, others = np.array([[1, 5], [2, 5], [3, 5], [4, 5]]), np.array([[1, 5], [0, 5]] * 2)
    rows = codes.same_rows(made, others, 8)
    assert metric(rows, "l0_same_as_base") == (0.25, 1 / 8)
    assert metric(rows, "l1_same_as_base") == (1.0, 1 / 8)


def test_what_a_code_tells_of_the_game_is_of_held_out_steps_and_at_most_the_games_entropy():
    data = SimpleNamespace(game_idx=np.repeat([0, 1], 6), is_train=np.tile([True, False], 6),
                           is_test=np.tile([False, True], 6))
    of_game, blind = data.game_idx + 3, np.tile([0, 0, 0, 1], 3)  # the second: training alone
    rows = codes.game_rows(data, np.stack([of_game, np.where(data.is_train, blind, 7)], 1))
    assert metric(rows, "l0_game_information") == pytest.approx((math.log(2), math.log(2)))
    assert metric(rows, "l1_game_information") == pytest.approx((0.0, math.log(2)), abs=1e-12)


def test_the_most_shared_codes_are_those_whose_rarest_game_uses_them_most():
    # Shares of codes 0 to 3 in two games of ten steps: 0.5, 0.3, 0.2, 0 and 0.1, 0.3, 0.1, 0.5.
    coarse = np.repeat([0, 1, 2, 0, 1, 2, 3], [5, 3, 2, 1, 3, 1, 5])
    is_first = np.arange(20) < 10
    embeddings = np.stack([np.arange(20.0), np.zeros(20)], 1).astype(np.float32)
    data = SimpleNamespace(
        games=("pong", "breakout"), is_test=np.zeros(20, bool), newest=lambda rows: rows,
        in_game=lambda game: is_first if game == "pong" else ~is_first)
    codebook = torch.tensor([[7.2, 0.0], [12.4, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = codes.most_shared(data, coarse[:, None], embeddings, codebook,
                              lambda vectors: vectors.numpy(), count=3)
    # Codes 0 and 2 tie at 0.1: the next smallest share decides.
    assert [one["code"] for one in found] == [1, 0, 2]
    assert found[0]["shares"].tolist() == [0.3, 0.3] and found[1]["shares"].tolist() == [0.5, 0.1]
    assert found[0]["decoded"].tolist() == pytest.approx([12.4, 0.0])
    assert [one["nearest"] for one in found] == [
        {"pong": 9, "breakout": 12}, {"pong": 7, "breakout": 10}, {"pong": 0, "breakout": 10}]
