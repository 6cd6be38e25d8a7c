"""hd.measure.predictions: what a world model foresees, on windows of plain arrays."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import stored_steps

from hd.config import WorldModelConfig
from hd.measure import predictions
from hd.measure.baselines import Score
from hd.measure.frames import of_source
from hd.run.machine import device
from hd.windows import Windows
from hd.world_model import WorldModel

K, T = 7, 5


class FourWindows:
    """Windows of three steps of one game: the first and third the tracker's, the others random's;
    the code is 1 wherever the tracker plays and alternates between 2 and 3 elsewhere."""

    cfg = SimpleNamespace(max_steps=3)
    starts = np.array([0, 3, 6, 9])
    tokens = np.repeat(np.array([1, 4, 1, 2, 3, 2, 1, 1, 1, 2, 3, 2])[:, None], 3, 1)
    may_train = np.ones(12, bool)
    data = SimpleNamespace(games=("pong",), game_idx=np.zeros(12, np.int8),
                           rewards=np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0], np.float32),
                           continues=np.ones(12, np.float32),
                           in_game=lambda game: np.ones(12, bool))


def test_metrics_of_a_source_count_its_own_windows_only():
    windows, of_tracker = FourWindows(), np.array([True, False, True, False])
    is_right = np.array([0, 1, 0, 0, 1, 1, 0, 0], bool)  # two predictions a window
    score = Score(np.arange(8.0), is_right)
    base = {name: Score(np.full(8, 7.0), ~is_right) for name in ("back_off", "frequency")}
    base["repeat_last"] = Score(np.full(8, 9.0), np.zeros(8, bool))
    predicted = np.array([0, 0, 0.9, 0, 0, 0, 0.1, 0, 0, 0, 0, 0.5])
    scored = {0: score, 1: score, 2: score, "reward": predicted, "ends": np.zeros(12)}
    rows = predictions._source_rows(scored, [base] * 3, windows, windows.starts, of_tracker)
    found = {r["metric"]: (r["value"], r["baseline"]) for r in of_source(rows, "tracker")}
    assert found["l1_accuracy[source tracker]"] == (0.75, 0.25)
    assert found["l2_cross_entropy[source tracker]"] == (np.mean([0, 1, 4, 5]), 7.0)
    # The tracker's code changes only in its first window: 1, 4, 1.
    assert found["l0_changed_accuracy[source tracker]"] == (0.5, 0.5)
    assert found["reward_average_precision[source tracker]"] == (1.0, pytest.approx(1 / 6))
    assert not [name for name in found if "repeat_last" in name]


@pytest.fixture
def judged():
    """A model at random, and windows of two games that count the hours, the last level one of two
    halves of the day."""
    cfg = WorldModelConfig(num_codes=K, num_layers=1, dim=12, num_heads=2, ffn_dim=20, max_steps=T,
                           batch_size=4, accumulate=3, num_steps=10)
    data = stored_steps({"pong": (30, 40), "breakout": (400, 25)}, held_out=(1, 3))
    data.rewards[33] = 1.0
    data.source[30:50] = 1  # half of Pong's held-out episode
    hours = np.arange(len(data)) % K
    tokens = np.stack([hours, (3 * hours) % K, hours // 4], 1).astype(np.int16)
    model = WorldModel(cfg, torch.randn(3, K, 4)).to(device()).eval()
    return model, Windows(cfg, data, tokens, seed=0)


@torch.no_grad()
def test_scores_are_what_the_model_says_of_every_window_in_order(judged):
    model, windows = judged
    starts = windows.held_out("pong")
    found = predictions.score_windows(model, windows, starts)
    batch = windows.batch(starts, T)
    out = model(batch["tokens"].to(device()), batch["actions"].to(device()))
    for level, logits in enumerate(out.code_logits):
        truth = batch["tokens"][:, 1:, level]
        nats = -logits.cpu().log_softmax(-1).gather(-1, truth[..., None])[..., 0]
        np.testing.assert_allclose(found[level].nats, nats.flatten(), rtol=1e-4, atol=1e-6)
        assert (found[level].is_right == (logits.cpu().argmax(-1) == truth).flatten().numpy()).all()
    np.testing.assert_allclose(found["reward"], out.reward.cpu().flatten(), atol=1e-3)
    np.testing.assert_allclose(found["ends"], 1 - out.continue_logits.cpu().sigmoid().flatten(),
                               rtol=1e-4)


def test_a_table_of_arrays_has_every_game_and_the_trivial_predictors_beside_the_model(judged):
    model, windows = judged
    rows = predictions.rows_of(model, windows)
    found = {(r["metric"], r["game"]): (r["value"], r["baseline"]) for r in rows}
    assert {game for _, game in found} == {"pong", "breakout", "all"}
    starts = windows.held_out("breakout")
    with torch.no_grad():
        scored = predictions.score_windows(model, windows, starts)
    counted = predictions.baselines(windows, "breakout", 0, starts)
    nats = {name: score.nats.mean() for name, score in counted.items()}
    assert set(nats) == {"repeat_last", "frequency", "back_off"}
    assert found["l0_cross_entropy", "breakout"] == (scored[0].nats.mean(), min(nats.values()))
    for name, value in nats.items():
        assert found[f"l0_cross_entropy[{name}]", "breakout"] == (value, None)
    assert found["l0_accuracy[repeat_last]", "breakout"] == (0, None), "an hour never stays"
    assert found["l0_accuracy", "breakout"][1] > 0.9, "counting knows the clock"
    assert found["l1_accuracy[back_off]", "breakout"][0] == 1, "the hour says the finer code"
    assert 0.5 < found["l2_accuracy[repeat_last]", "pong"][0] < 1
    assert found["l2_changed_accuracy[repeat_last]", "pong"] == (0, None)
    assert {name.partition("[")[2] for name, game in found if "source" in name} == {
        "source random]", "source repeat]"}
    assert ("l0_accuracy[source repeat]", "pong") in found
    assert ("l0_accuracy[source repeat]", "breakout") not in found, "one source played it"
    assert ("reward_average_precision", "breakout") not in found, "nothing to find"
    steps = {game: windows.data.is_train[windows.data.in_game(game)].sum()
             for game in ("pong", "breakout")}
    for game, count in steps.items():
        assert found["window_share", game][1] == pytest.approx(count / 430)
    assert found["exposures", "all"][0] == 10 * 3 * 4 * T / 430


def test_costs_are_sizes_tokens_by_the_clock_and_how_far_codebooks_moved(judged):
    model, _ = judged
    moved = model.codebooks + 0.25
    found = {r["metric"]: r["value"] for r in predictions.cost_rows(model, moved,
                                                                    wall_seconds=2.0)}
    assert found["codebook_change"] == pytest.approx(0.25)
    assert found["tokens_per_second"] == 10 * 3 * 4 * T * 4 / 2
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["parameters[seed sizes]"] == 11_665_216
