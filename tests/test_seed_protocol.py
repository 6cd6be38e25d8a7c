"""hd.measure.seed_protocol: the seed's measures by hand, and how honest ones differ."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from hd.config import InputError
from hd.measure import probes, seed_protocol
from hd.measure.seed_protocol import Sample

PLAYER, ENEMY, BALL = 147, 148, 236


def pong_frame(player_y=40, enemy_y=30, ball=(50, 20)):
    """A frame with Pong's grey values and places; ball (column, row) or None. Paddles 7 rows."""
    frame = np.full((84, 84), 87, np.uint8)
    frame[10:14] = frame[78:] = 236
    frame[player_y : player_y + 7, 73:76] = PLAYER
    frame[enemy_y : enemy_y + 7, 8:11] = ENEMY
    if ball:
        frame[ball[1] : ball[1] + 2, ball[0]] = BALL
    return frame


def pong_frames(num=40, seed=0):
    rng = np.random.default_rng(seed)
    places = [rng.integers(16, 68, 4) for _ in range(num)]
    return np.array([pong_frame(a, b, (c, min(d, 60))) for a, b, c, d in places]), places


# ---- which rows are looked at


def test_every_hundredth_row_is_compared_with_the_next_whatever_lies_between():
    sample = Sample.draw(np.arange(1000, 1301), seed=0)
    assert sample.first.tolist() == [1000, 1100, 1200]
    assert Sample.draw(np.arange(301), seed=0, max_pairs=2).first.tolist() == [0, 200]
    # The last row of the buffer has no next one.
    assert Sample.draw(np.arange(101), seed=0).first.tolist() == [0]


def test_random_rows_are_distinct_and_depend_on_the_seed_alone():
    draw = [Sample.draw(np.arange(5, 3005), seed=seed).random for seed in (1, 1, 2)]
    assert len(np.unique(draw[0])) == 2000 and draw[0].min() >= 5
    assert np.array_equal(draw[0], draw[1]) and not np.array_equal(draw[0], draw[2])
    assert len(Sample.draw(np.arange(7), seed=0).random) == 6


def test_a_buffer_of_one_step_is_refused_in_one_line():
    with pytest.raises(InputError, match="two stored steps or more"):
        Sample.draw(np.arange(1), seed=0)


def test_a_representation_is_asked_once_and_answers_as_it_would():
    table, asked = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32), []
    sample = Sample.draw(np.arange(100, 450), seed=0)
    ask = sample.represented(lambda rows: asked.append(rows) or table[rows])
    for rows in (sample.first, sample.first + 1, sample.random):
        np.testing.assert_array_equal(ask(rows), table[rows])
    assert len(asked) == 1


# ---- geometry


def test_temporal_consistency_by_hand():
    points = np.zeros((400, 2), np.float32)
    points[[1, 101, 201, 301], 0] = [3, 3, 6, 0]  # the next rows of 0, 100, 200, 300
    sample = Sample(np.array([0, 100, 200, 300]), np.array([0, 5, 1, 201]))
    # Steps 3, 3, 6, 0; strangers |0 - 1| = 3 and |5 - 201| = 6.
    assert seed_protocol.temporal_ratio(sample, lambda rows: points[rows]) == pytest.approx(3 / 4.5)


def test_an_episode_that_ends_between_two_rows_counts_unlike_in_the_honest_measure():
    # Within an episode nothing moves; every row at 100 begins a new one.
    episodes = np.arange(1, 802) // 100
    points = np.eye(9, dtype=np.float32)[episodes % 9]
    sample = Sample.draw(np.arange(801)[99:], seed=0)
    assert seed_protocol.temporal_ratio(sample, lambda rows: points[rows]) == 0
    sample = Sample.draw(np.arange(801)[98:], seed=0)
    assert seed_protocol.temporal_ratio(sample, lambda rows: points[rows]) > 1
    assert probes.temporal_consistency(points, episodes, seed=0) == 0


def test_unit_vectors_have_no_norm_deviation_and_longer_ones_do():
    points = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    sample = Sample.draw(np.arange(300), seed=0)
    found = seed_protocol.geometry(sample, lambda rows: points[rows])
    assert found["embedding_norm_deviation"] < 1e-6
    expected = probes.diversity(points, seed=0)  # all 300 rows either way
    assert found["seed_diversity"] == pytest.approx(expected, rel=1e-6)
    found = seed_protocol.geometry(sample, lambda rows: points[rows] * 1.5)
    assert found["embedding_norm_deviation"] == pytest.approx(0.5, abs=1e-6)


def test_pooled_over_games_the_ratio_is_lower_and_the_mean_is_that_of_the_games():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3000, 4)).astype(np.float32)
    points[1500:, 0] += 30  # two games far apart, each of independent rows
    games = np.repeat([0, 1], 1500)  # of each row
    rows_of = {"all": games < 2, "breakout": games == 0, "ms_pacman": games == 1}
    data = SimpleNamespace(games=("breakout", "ms_pacman"), in_game=rows_of.get)
    found = seed_protocol.scores(data, lambda rows: points[rows], seed=0)
    each = [found["seed_temporal_consistency", game] for game in data.games]
    assert found["seed_temporal_consistency_mean", "all"] == pytest.approx(np.mean(each))
    assert min(each) > 0.7 and found["seed_temporal_consistency", "all"] < 0.4


# ---- pixel boxes


def test_the_seeds_paddle_boxes_hold_a_wall_and_give_the_same_label_for_every_frame():
    frames, _ = pong_frames()
    boxes = seed_protocol.row_boxes(frames)
    assert set(boxes["player_y"]) == set(boxes["enemy_y"]) == {41.5}


def test_boxes_where_the_paddles_are_find_them_and_the_ball():
    boxes = seed_protocol.column_boxes(np.array([pong_frame(40, 30, (50, 20)),
                                                 pong_frame(17, 66, (12, 58))]))  # fmt: skip
    assert boxes["player_y"].tolist() == [43, 20] and boxes["enemy_y"].tolist() == [33, 69]
    assert boxes["ball_x"].tolist() == [50, 12] and boxes["ball_y"].tolist() == [20.5, 58.5]


def test_the_seeds_ball_box_finds_bright_pixels_only_and_not_the_paddles():
    boxes = seed_protocol.row_boxes(np.array([pong_frame(ball=(50, 30)), pong_frame(ball=None)]))
    assert (boxes["ball_x"][0], boxes["ball_y"][0]) == (50, 30.5)
    assert np.isnan(boxes["ball_x"][1]) and np.isnan(boxes["ball_y"][1])


def test_half_bright_boxes_are_pulled_by_the_walls():
    boxes = seed_protocol.half_bright_boxes(pong_frame(40, 30, None)[None])
    walls = [10, 11, 12, 13, *range(78, 84)]
    assert boxes["player_y"][0] == pytest.approx(np.mean([*walls, *range(40, 47)]))
    assert boxes["enemy_y"][0] == pytest.approx(np.mean([*walls, *range(30, 37)]))
    assert 45 < boxes["ball_y"][0] < 60  # there is no ball


# ---- correlations


def test_the_state_correlation_is_the_mean_over_labels_of_the_best_pearson():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 7)), rng.uniform(1, 9, (2, 60))
    labels[0] += 2 * features[:, 3] + 10
    labels[0][:13] = np.nan
    boxes = {"ball_x": labels[0], "ball_y": labels[1]}
    best = [max(abs(pearsonr(features[~np.isnan(values), d], values[~np.isnan(values)])[0])
                for d in range(7)) for values in labels]  # fmt: skip
    found = seed_protocol.state_correlation(features, boxes)
    assert found == pytest.approx(np.mean(best))
    # A constant label and one that is hardly ever found are left out, not counted as 0.
    few = np.where(np.arange(60) < 9, labels[1], np.nan)
    more = {**boxes, "player_y": np.full(60, 41.5), "enemy_y": few}
    assert seed_protocol.state_correlation(features, more) == pytest.approx(found)
    assert seed_protocol.state_correlation(features, {"player_y": np.full(60, 41.5)}) == 0


def test_the_pair_correlation_is_spearmans_over_all_pairs():
    rng = np.random.default_rng(0)
    features, values = rng.normal(size=(20, 4)), rng.uniform(1, 9, 20)
    upper = np.triu_indices(20, k=1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = spearmanr((1 - unit @ unit.T)[upper],
                         np.abs(values[:, None] - values)[upper]).statistic  # fmt: skip
    boxes = {"ball_x": values, "player_y": np.full(20, 3.0)}
    assert seed_protocol.pair_correlation(features, boxes) == pytest.approx(expected)
    angles = values / 9 * 1.5
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3
    assert seed_protocol.pair_correlation(arc, boxes) == pytest.approx(1.0)
    assert seed_protocol.pair_correlation(np.ones((20, 4)), boxes) == 0


def test_boxes_are_judged_by_ram_while_the_ball_is_in_play():
    frames, places = pong_frames()
    ram = np.zeros((40, 128), np.uint8)
    ram[:, [51, 50, 49, 54]] = places
    ram[::4, 54] = 0  # out of play: what the box finds there is not asked about
    ram[::4, 49] = 255
    data = SimpleNamespace(newest=lambda rows: frames[rows], ram=ram)
    found = seed_protocol.box_scores(data, Sample.draw(np.arange(40), seed=0))
    assert found["box_agreement_player_y"] == found["box_agreement_enemy_y"] == 0
    assert found["box_found_player_y"] == 1
    for name in ("player_y", "enemy_y"):
        assert found[f"box_agreement_{name}[columns]"] > 0.95
    for name in ("box_agreement_ball_x", "box_agreement_ball_x[columns]"):
        assert found[name] > 0.95


def test_rows_hold_the_untrained_encoder_by_the_same_protocol_and_are_marked(monkeypatch):
    frames, places = pong_frames(120)
    ram = np.zeros((120, 128), np.uint8)
    ram[:, [51, 50, 49, 54]] = places
    data = SimpleNamespace(games=("pong",), in_game=lambda game: np.ones(120, bool), ram=ram,
                           newest=lambda rows: frames[rows])  # fmt: skip
    points = np.random.default_rng(1).normal(size=(2, 120, 384)).astype(np.float32)
    monkeypatch.setattr(seed_protocol, "embed", lambda fresh, data, rows: fresh[rows])
    table = seed_protocol.rows_of(data, points[0], points[1], seed=0)
    assert {entry["split"] for entry in table} == {"seed"}
    by_name = {(entry["metric"], entry["game"]): entry for entry in table}
    assert len(by_name) == len(table)
    sample = Sample.draw(np.arange(120), seed=0)
    for side, which in ((0, "value"), (1, "baseline")):
        expected = seed_protocol.geometry(sample, lambda rows, side=side: points[side][rows])
        entry = by_name["seed_temporal_consistency", "pong"]
        assert entry[which] == pytest.approx(expected["seed_temporal_consistency"])
    assert {"seed_state_correlation", "seed_pair_correlation"} <= {name for name, _ in by_name}
