"""Probes find what is there, nothing that is not, and never look at the held-out episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hd import atari
from hd.config import GAMES, InputError, ProbeConfig
from hd.measure import probes

CFG = ProbeConfig(epochs=30, patience=8)
EPISODES, LENGTH, DIM = 12, 100, 24
ROWS = np.ones(EPISODES * LENGTH, bool)


@pytest.fixture(autouse=True)
def one_thread(fixed_seeds_and_threads):
    """On matrices as small as these, threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def split():
    return split_by_last_episodes()


def split_by_last_episodes(frame_keys=None):
    """Twelve episodes of 100 rows, the last three held out."""
    episode_ids = np.repeat(np.arange(EPISODES), LENGTH)
    return probes.Split(episode_ids < 9, episode_ids >= 9, episode_ids, frame_keys)


def a_label_and_features_that_show_it(rng):
    """Seven classes at linearly separable places, at the scale of unit-length embeddings."""
    label = rng.integers(7, size=len(ROWS)).astype(np.uint8)
    places = rng.normal(size=(7, DIM))
    features = places[label] + 0.05 * rng.normal(size=(len(ROWS), DIM))
    return label * 30, (features * 0.01).astype(np.float32)


def f1_scores(features, labels, split, **chosen):
    """As hd.measure.game_state scores: a linear probe, fitted, read where frames are new."""
    varying = probes.varying_labels(labels, split)
    probe = probes.fit_linear_probe(features, varying, split, **chosen)
    return probes.f1_of(probe, features, varying, rows=split.scored())


def coordinate_scores(features, targets, split, *, rows, **chosen):
    """As hd.measure.game_state scores: a small MLP, fitted, read where frames are new."""
    probe = probes.fit_coordinate_probe(features, targets, split, rows=rows, **chosen)
    return probes.read_coordinates(probe, features, targets, fitted=split.train & rows,
                                   scored=split.scored(rows))


# Split

def test_masks_of_numbers_or_of_other_lengths_are_refused():
    good, ids = np.array([True, False]), np.arange(2)
    for train, test in ((good.astype(int), ~good), (good, np.ones(3, bool))):
        with pytest.raises(InputError, match="bool masks, and with episode_ids one entry per row"):
            probes.Split(train, test, ids)


def test_an_episode_on_both_sides_is_refused():
    episode_ids = np.array([0, 0, 1, 1])
    with pytest.raises(InputError, match="1 episodes on both sides"):
        probes.Split(np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 1], bool), episode_ids)


def test_a_side_without_rows_is_refused():
    with pytest.raises(InputError, match="4 and 0"):
        probes.Split(np.ones(4, bool), np.zeros(4, bool), np.arange(4))


def test_validation_takes_whole_training_episodes_and_no_test_row(split):
    fit, validation = split.fit_and_validation(seed=0)
    assert np.array_equal(fit ^ validation, split.train)
    assert not (fit & validation).any()
    assert len(np.unique(split.episode_ids[validation])) == 1  # round(9 / 8)
    assert not np.isin(split.episode_ids[fit], split.episode_ids[validation]).any()


def test_a_single_training_episode_is_refused_because_none_is_left_for_validation():
    split = probes.Split(np.array([True, False]), np.array([False, True]), np.arange(2))
    with pytest.raises(InputError, match="two training episodes"):
        split.fit_and_validation(seed=0)


def test_test_rows_whose_frame_occurs_in_training_are_not_scored():
    keys = np.arange(len(ROWS))
    keys[1000:1005] = keys[:5]
    scored = split_by_last_episodes(keys).scored()
    assert np.array_equal(np.flatnonzero(scored), [*range(900, 1000), *range(1005, 1200)])


def test_f1_counts_no_duplicate_of_a_training_frame(rng):
    """Every test row but the duplicates carries a wrong label, so the score drops from 1/3 to 0."""
    label, features = a_label_and_features_that_show_it(rng)
    label[1000:] = (label[1000:] + 30) % 210
    keys = np.arange(len(ROWS))
    plain = f1_scores(features, {"x": label}, split_by_last_episodes(keys), cfg=CFG, seed=0)
    keys[900:1000] = keys[:100]
    unique = f1_scores(features, {"x": label}, split_by_last_episodes(keys), cfg=CFG, seed=0)
    assert plain["x"] > 0.3
    assert unique["x"] == 0.0


def test_when_every_test_frame_occurs_in_training_nothing_is_scored():
    with pytest.raises(InputError, match="none of 300 test rows"):
        split_by_last_episodes(np.zeros(len(ROWS))).scored()


def test_frame_keys_are_equal_exactly_where_stacks_are_byte_identical(rng):
    frames = rng.integers(256, size=(5, 4, 6, 7), dtype=np.uint8)
    frames[3] = frames[1]
    frames[4] = frames[0]
    frames[4, 3, 5, 6] ^= 1
    keys = probes.frame_keys(frames)
    assert keys.shape == (5,)
    assert (keys[:, None] == keys).sum() == 5 + 2


# Linear probes

def test_a_linearly_decodable_label_is_read_from_features_of_any_scale(rng, split):
    label, features = a_label_and_features_that_show_it(rng)
    for scale in (1e-3, 1.0, 1e3):
        f1 = f1_scores(features * scale, {"x": label}, split, cfg=CFG, seed=0)
        assert f1["x"] > 0.98


def test_without_standardising_the_scale_of_features_decides_what_a_probe_finds(rng, split):
    label, features = a_label_and_features_that_show_it(rng)
    raw = replace(CFG, standardise=False)
    tiny, large = (f1_scores(features * scale, {"x": label}, split, cfg=raw, seed=0)["x"]
                   for scale in (0.1, 100.0))
    assert tiny < 0.7 and large > 0.98
    slow = f1_scores(features * 100, {"x": label}, split, cfg=replace(raw, lr=1e-6), seed=0)["x"]
    assert slow < 0.5


def test_how_linear_probes_are_fitted_changes_no_coordinate_probe(rng, split):
    features = rng.normal(size=(len(ROWS), DIM)).astype(np.float32)
    targets = {"y": (features @ rng.normal(size=DIM)).astype(np.float32)}
    other = replace(CFG, standardise=False, lr=1e-6, batch_size=8)
    first, second = (coordinate_scores(features, targets, split, rows=ROWS, cfg=cfg, seed=0)
                     for cfg in (CFG, other))
    assert first == second


def test_random_features_are_hardly_better_than_the_majority_class(rng, split):
    label, _ = a_label_and_features_that_show_it(rng)
    features = rng.normal(size=(len(ROWS), DIM)).astype(np.float32)
    f1 = f1_scores(features, {"x": label}, split, cfg=CFG, seed=0)["x"]
    # Seven equal classes: guessing at random scores 1/7, always the same one (1/7) / 4.
    assert f1 < 1 / 7 + 0.06
    assert probes.majority_f1({"x": label}, split)["x"] < 0.08


def test_shuffled_labels_cannot_be_read(rng, split):
    label, features = a_label_and_features_that_show_it(rng)
    f1 = f1_scores(features, {"x": rng.permutation(label)}, split, cfg=CFG, seed=0)
    assert f1["x"] < 1 / 7 + 0.06


def test_variables_learned_together_score_as_each_would_alone(rng, split):
    label, features = a_label_and_features_that_show_it(rng)
    other = rng.integers(5, size=len(ROWS)).astype(np.uint8)
    both = f1_scores(features, {"x": label, "other": other}, split, cfg=CFG, seed=0)
    alone = f1_scores(features, {"x": label}, split, cfg=CFG, seed=0)
    assert both["x"] == pytest.approx(alone["x"], abs=0.02)  # only the learning rate is shared
    assert both["other"] < 0.3


def test_a_class_unseen_in_training_counts_as_an_error(rng, split):
    label, features = a_label_and_features_that_show_it(rng)
    label[split.test & (label == 60)] = 255
    missing = (label[split.test] == 255).mean()
    f1 = f1_scores(features, {"x": label}, split, cfg=CFG, seed=0)
    assert f1["x"] == pytest.approx(1 - missing, abs=0.02)


def test_majority_is_the_most_frequent_training_class(split):
    label = np.where(np.arange(len(ROWS)) % 5 < 3, 8, 9).astype(np.uint8)
    label[split.test] = 9 - (np.arange(300) % 4 == 0)  # the other class rules the test side
    # Guessing 8 everywhere: precision 1/4, recall 1, F1 0.4 on a quarter of the rows, else 0.
    assert probes.majority_f1({"x": label}, split)["x"] == pytest.approx(0.4 / 4)


def test_labels_below_the_entropy_limit_are_dropped(split):
    rows = np.arange(len(ROWS))
    labels = {"constant": np.zeros(len(ROWS), np.uint8),
              "rare": (rows % 10 < 3).astype(np.uint8),  # 0.611 nats
              "rarer": (rows % 7 < 2).astype(np.uint8)}  # 0.598 nats
    assert set(probes.varying_labels(labels, split)) == {"rare"}
    with pytest.raises(InputError, match="no label of constant"):
        probes.varying_labels({"constant": labels["constant"]}, split)


def test_array_valued_labels_become_one_variable_per_column(rng, split):
    bits = rng.integers(3, size=(len(ROWS), 4)).astype(np.uint8)
    bits[:, 2] = 1
    varying = probes.varying_labels({"bits": bits}, split)
    assert list(varying) == ["bits_0", "bits_1", "bits_3"]
    assert np.array_equal(varying["bits_3"], bits[:, 3])


@pytest.mark.parametrize("kind", ["linear", "coordinate"])
def test_what_the_test_episodes_hold_never_reaches_the_fitted_probe(rng, split, kind):
    label, features = a_label_and_features_that_show_it(rng)
    other_label, other_features = label.copy(), features.copy()
    other_label[split.test] = 77
    other_features[split.test] = rng.normal(size=(300, DIM)) * 1000
    results = []
    for x, y in ((features, label), (other_features, other_label)):
        if kind == "linear":
            probe = probes.fit_linear_probe(x, {"x": y}, split, cfg=CFG, seed=0)
        else:
            probe = probes.fit_coordinate_probe(x, {"x": y}, split, rows=ROWS, cfg=CFG, seed=0)
        results.append((probe.predict(features[split.train])["x"],
                        probe.model.state_dict().values()))
    assert np.array_equal(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_scores_depend_on_the_seed_alone_and_leave_the_random_state_as_it_was(rng, split):
    label, features = a_label_and_features_that_show_it(rng)
    features += 0.05 * rng.normal(size=features.shape).astype(np.float32)

    def scores(seed):
        return (f1_scores(features, {"x": label}, split, cfg=CFG, seed=seed),
                coordinate_scores(features, {"x": label}, split, rows=ROWS, cfg=CFG, seed=seed))

    before = torch.get_rng_state()
    first = scores(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert scores(0) == first
    assert scores(1) != first


def test_features_that_are_not_finite_are_refused(rng, split):
    label, features = a_label_and_features_that_show_it(rng)
    features[5, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        f1_scores(features, {"x": label}, split, cfg=CFG, seed=0)


def test_category_means_average_inside_categories_first():
    f1 = {"ball_x": 0.2, "ball_y": 0.4, "player_x": 0.5, "score": 0.6,
          "blocks_hit_count": 0.9, "block_bit_map_0": 0.1, "block_bit_map_12": 0.2}
    means = probes.category_means("breakout", f1)
    assert means == pytest.approx({
        "agent_localization": 0.5, "small_object_localization": 0.3,
        "score_clock_lives_display": 0.6, "misc": 0.4, "overall": 0.45})


@pytest.mark.parametrize("game", GAMES)
def test_every_state_variable_of_a_game_has_a_category(game):
    labels = atari.labels(game, np.zeros((2, 128), np.uint8))
    assert probes.category_means(game, dict.fromkeys(labels, 0.25))["overall"] == 0.25


def test_a_variable_without_category_is_refused_by_name():
    with pytest.raises(InputError, match="pong 'bat_x'"):
        probes.category_means("pong", {"bat_x": 0.3})


# Coordinates

def test_a_linear_function_of_the_features_is_read_in_its_own_units(rng, split):
    features = rng.normal(size=(len(ROWS), DIM)).astype(np.float32) * 0.05
    target = 80 + 600 * features @ np.eye(DIM)[0]  # deviation 30
    score = coordinate_scores(features, {"x": target}, split, rows=ROWS, cfg=CFG, seed=0)
    assert score["x"].r2 > 0.9
    assert score["x"].median_error < 6
    assert score["x"].baseline_error == pytest.approx(0.6745 * 30, rel=0.2)  # of a normal
    assert score["x"].n == 300


def test_noise_is_neither_read_nor_learned_by_heart(rng, split):
    features = rng.normal(size=(len(ROWS), DIM)).astype(np.float32)
    target = rng.integers(160, size=len(ROWS)).astype(np.uint8)
    patient = ProbeConfig(epochs=60, patience=60)
    score = coordinate_scores(features, {"x": target}, split, rows=ROWS, cfg=patient,
                              seed=0)
    assert -0.2 < score["x"].r2 <= 0.1  # the last epoch instead of the best: -0.5
    assert score["x"].median_error > 0.85 * score["x"].baseline_error


def test_rows_where_a_coordinate_means_nothing_neither_teach_nor_count(rng, split):
    features = rng.normal(size=(len(ROWS), DIM)).astype(np.float32)
    target = 20 * features[:, 0] + 100
    rows = np.arange(len(ROWS)) % 3 > 0
    other = np.where(rows, target, 1e4)
    scores = [coordinate_scores(features, {"x": x}, split, rows=rows, cfg=CFG, seed=0)
              for x in (target, other)]
    assert scores[0] == scores[1]
    assert scores[0]["x"].n == 200


def test_state_correlation_finds_the_best_dimension_of_each_target(rng):
    features = rng.normal(size=(500, 3))
    features[:, 1] = 0.7  # constant: counts as 0
    rows = np.arange(500) >= 10
    noisy = features[:, 2] + 0.8 * rng.normal(size=500)
    features[:10] = 1e6
    one = probes.state_correlation(features, {"a": -3 * features[:, 0]}, rows)
    both = probes.state_correlation(features, {"a": -3 * features[:, 0], "b": noisy}, rows)
    expected = abs(np.corrcoef(features[rows, 2], noisy[rows])[0, 1])
    assert one == pytest.approx(1.0)
    assert both == pytest.approx((1 + expected) / 2)


# Geometry

def test_temporal_consistency_of_three_steps_on_a_line_is_three_quarters():
    embeddings = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    # Steps 1 and 2, mean 1.5; pairs 1, 2 and 3, mean 2.
    assert probes.temporal_consistency(embeddings, np.zeros(3), seed=0) == pytest.approx(0.75)
    # With stride 2 one step of 3.
    assert probes.temporal_consistency(embeddings, np.zeros(3), seed=0,
                                       stride=2) == pytest.approx(1.5)


def test_temporal_consistency_takes_no_step_across_an_episode_end():
    embeddings = np.array([[0.0], [1.0], [101.0], [102.0]])
    value = probes.temporal_consistency(embeddings, np.array([0, 0, 1, 1]), seed=0)
    assert value == pytest.approx(1 / probes.diversity(embeddings, seed=0))
    with pytest.raises(InputError, match="more than 2 rows"):
        probes.temporal_consistency(embeddings, np.array([0, 0, 1, 1]), seed=0, stride=2)


def test_diversity_is_root_two_for_unrelated_unit_vectors_and_zero_after_a_collapse(rng):
    embeddings = rng.normal(size=(1500, 384)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert probes.diversity(embeddings, seed=0) == pytest.approx(2**0.5, abs=0.005)
    collapsed = np.ones((30, 384), np.float32)
    assert probes.diversity(collapsed, seed=0) == 0.0
    assert np.isnan(probes.temporal_consistency(collapsed, np.zeros(30), seed=0))


# Pixels

def test_pixel_pca_keeps_where_a_small_square_is(rng):
    frames = np.zeros((160, 4, 84, 84), np.uint8)
    column = rng.integers(82, size=160)
    for frame, x in zip(frames, column):
        frame[:, 40:42, x:x + 2] = 255
    represent = probes.pixel_pca(frames[:120], 45)
    features = represent(frames[120:])
    assert features.shape == (40, 45)
    assert features.dtype == np.float32
    assert np.array_equal(features, probes.pixel_pca(frames[:120], 45)(frames[120:]))
    known = represent(frames[:120])
    nearest = np.linalg.norm(features[:, None] - known, axis=2).argmin(axis=1)
    assert np.median(np.abs(column[:120][nearest] - column[120:])) <= 1


def test_pixel_pca_refuses_frames_of_another_kind(rng):
    frames = rng.integers(256, size=(60, 4, 84, 84), dtype=np.uint8)
    represent = probes.pixel_pca(frames, 7)
    for use in (lambda wrong: probes.pixel_pca(wrong, 7), represent):
        with pytest.raises(InputError, match="these are channels-last"):
            use(frames.transpose(0, 2, 3, 1))


def test_pixel_pca_sees_means_of_two_by_two_pixels(rng):
    frames = rng.integers(256, size=(3, 4, 84, 84), dtype=np.uint8)
    means = frames.reshape(3, 4, 42, 2, 42, 2).mean(axis=(3, 5)).reshape(3, -1) / 255
    assert np.allclose(probes._halved(frames), means, atol=1e-6)  # float32
