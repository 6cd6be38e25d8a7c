"""hd.measure.game_state: coordinates in RAM as a table of numbers to read."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from hd import atari, replay
from hd.atari import GAMES
from hd.collection import SOURCES
from hd.config import PROFILES, InputError
from hd.measure import game_state

CFG = dataclasses.replace(PROFILES["smoke"].probes, epochs=20)


@pytest.fixture
def data():
    """Five rows of Pong, then four of Breakout; the ball is out of play in rows 1 and 6."""
    ram = np.random.default_rng(0).integers(1, 150, (9, 128)).astype(np.uint8)
    ram[1, 54] = 0
    ram[6, 101] = 200
    return SimpleNamespace(
        games=("pong", "breakout"), game_idx=np.array([0] * 5 + [1] * 4, np.int8), ram=ram
    )


def test_a_row_has_its_own_games_coordinates_and_no_other(data):
    table = game_state.coordinates(data, np.array([3, 8]))
    assert table.shape == (2, game_state.num_coordinates(data.games)) == (2, 7)
    assert table[0, :4].tolist() == data.ram[3, [51, 50, 49, 54]].tolist()
    assert table[1, 4:].tolist() == data.ram[8, [72, 99, 101]].tolist()
    assert np.isnan(table[0, 4:]).all() and np.isnan(table[1, :4]).all()


def test_a_ball_out_of_play_is_unknown_and_the_paddles_are_not(data):
    table = game_state.coordinates(data, np.arange(9))
    assert np.isnan(table[1, 2:4]).all() and not np.isnan(table[1, :2]).any()
    assert np.isnan(table[6, 5:]).all() and not np.isnan(table[6, 4])
    assert np.isnan(table).sum() == 5 * 3 + 4 * 4 + 2 + 2


def test_standardising_looks_at_the_given_rows_only():
    table = np.array([[1, 5], [3, 5], [np.nan, 5], [100, np.nan]], np.float32)
    rows = np.array([True, True, True, False])
    found = game_state.standardised(table, rows)
    # Mean 2 and deviation 1 of rows 0 and 1; the second column never varies.
    expected = [[-1, 0], [1, 0], [np.nan, 0], [98, np.nan]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_the_bits_of_a_state_are_its_variables_apart_and_their_combinations_together():
    x = np.repeat([7, 9], 8)  # 1 bit
    bits = np.stack([x > 8, np.tile([0, 1], 8)], 1).astype(np.uint8)  # a copy, and 1 bit of its own
    rare = np.array([1] + [0] * 15)  # -1/16 log2(1/16) - 15/16 log2(15/16) = 0.3373 bits
    apart, together = game_state.state_bits({"x": x, "bits": bits})
    assert (apart, together) == (pytest.approx(3.0), pytest.approx(2.0))
    apart, together = game_state.state_bits({"x": x, "rare": rare})
    assert apart == pytest.approx(1.3373, abs=1e-4)
    # Combinations (7, 1) once, (7, 0) seven times, (9, 0) eight times.
    assert together == pytest.approx(1 / 16 * 4 + 7 / 16 * np.log2(16 / 7) + 0.5)
    assert game_state.state_bits({"all differ": np.arange(16)})[1] == pytest.approx(4.0)


def test_bits_are_of_held_out_steps_beside_the_most_that_so_many_can_show():
    apart, together = game_state.bit_rows(TwoSources())
    # 160 held-out steps of four variables with eleven values and two with two: hardly any
    # combination comes twice.
    assert together["value"] == pytest.approx(np.log2(160), abs=0.05)
    assert together["baseline"] == apart["baseline"] == pytest.approx(np.log2(160))
    assert 4 * 3.2 + 2 * 0.9 < apart["value"] < 4 * np.log2(11) + 2


class TwoSources:
    """Pong in twelve episodes of 40 steps, by turns random's and the tracker's."""

    games = ("pong",)
    rng = np.random.default_rng(0)
    num = 480
    episode_ids = np.arange(num) // 40
    source = np.where(episode_ids % 2, SOURCES.index("tracker"), 0).astype(np.int8)
    is_train, is_test = episode_ids < 8, episode_ids >= 8
    is_val = is_test
    ram = rng.integers(1, 12, (num, 128)).astype(np.uint8) * 15
    ram[:, 13:15] = np.where(ram[:, 13:15] > 90, 150, 15)  # scores that a linear probe can read
    by_source = replay.Replay.by_source

    def in_game(self, game):
        return np.ones(self.num, bool)

    def stack(self, rows):
        return rows.astype(np.int64)[:, None]  # all frames differ


def test_probes_are_judged_on_each_sources_held_out_steps_with_the_same_baseline(monkeypatch):
    data, rng = TwoSources(), np.random.default_rng(1)
    ram = data.ram[:, [51, 50, 49, 54, 13, 14]].astype(np.float32)
    ram += rng.normal(size=ram.shape)  # no two rows alike
    half = ram.copy()
    of_tracker = data.source > 0
    half[of_tracker & ~data.is_train] = rng.permutation(half[of_tracker & ~data.is_train])
    views = {"half": lambda picks: half[picks], "all": lambda picks: ram[picks]}
    judge = {"baseline": "all", "cfg": CFG, "seed": 0}
    table = {row["metric"]: row for row in game_state.probe_rows(data, views, **judge)}
    read, blind = (table[f"r2_ball_x[source {name}]"] for name in ("random", "tracker"))
    assert read["value"] > 0.8 > 0.2 > blind["value"]
    assert read["value"] > table["r2_ball_x"]["value"] > blind["value"]
    assert min(read["baseline"], blind["baseline"]) > 0.8
    f1 = [table[f"f1_score_clock_lives_display[source {name}]"]["value"]
          for name in ("random", "tracker")]
    assert f1[0] > 0.8 > 0.65 > f1[1]
    assert {f"{kind}[source tracker]" for kind in ("f1_overall", "error_ball_y", "r2_enemy_y")} \
        <= set(table)
    assert not [name for name in table if "state_correlation[source" in name]
    monkeypatch.setattr(data, "source", np.zeros(data.num, np.int8))
    again = game_state.probe_rows(data, views, **judge)
    plain = [name for name in table if "[source" not in name]
    assert [(row["metric"], row["value"]) for row in again] == [
        (name, table[name]["value"]) for name in plain], "one source: the table as ever"


def test_the_balls_error_is_told_by_where_it_is_over_how_often_training_had_it_there():
    data, rng = TwoSources(), np.random.default_rng(1)
    ram = data.ram[:, [51, 50, 49, 54]].astype(np.float32)
    ram += rng.normal(size=ram.shape)
    is_left = data.ram[:, 49] < 100
    blind = ram.copy()
    blind[is_left] = rng.permutation(blind[is_left])
    table = {row["metric"]: row for row in game_state.probe_rows(
        data, {"blind": lambda picks: blind[picks], "all": lambda picks: ram[picks]},
        baseline="all", cfg=CFG, seed=0)}
    errors = {name: row for name, row in table.items() if name.startswith("rms_error")}
    assert "rms_error_ball_x[at 70]" in errors and not any("[all]" in name for name in errors)
    left, right = (
        [row["value"] for name, row in errors.items()
         if (int(name[len("rms_error_ball_x[at "):-1]) < 100) is wanted]
        for wanted in (True, False))
    assert np.mean(left) > 1.5 * np.mean(right)
    assert np.mean(left) > 5 * np.mean([row["baseline"] for row in errors.values()])
    # ball_x is 15, 30, ..., 165 with equal chances; those from 60 to 79 are 60 and 75.
    shares = {row["metric"]: row for row in game_state.place_rows(data)}
    assert sum(row["value"] for row in shares.values()) == pytest.approx(1.0)
    train = data.ram[data.is_train]
    in_play = train[atari.ball_in_play("pong", train)][:, 49]
    assert shares["ball_share[at 70]"]["value"] == np.isin(in_play, (60, 75)).mean()
    assert {row["baseline"] for row in shares.values()} == {1 / len(shares)}


def test_the_coordinate_probe_reads_places_and_never_saw_a_held_out_step():
    data, rng = TwoSources(), np.random.default_rng(1)
    ram = data.ram[:, [51, 50, 49, 54]].astype(np.float32)
    ram += rng.normal(size=ram.shape)
    asked = []
    probe = game_state.coordinate_probe(
        data, "pong", lambda picks: asked.append(picks) or ram[picks], cfg=CFG, seed=0)
    assert [picks.tolist() for picks in asked] == [list(range(data.num))]
    picks = np.flatnonzero(~data.is_train & atari.ball_in_play("pong", data.ram))
    read, true = probe.predict(ram[picks]), game_state.places_of("pong", data.ram[picks])
    assert tuple(read) == GAMES["pong"].coordinates
    for name, values in read.items():
        assert np.corrcoef(values, true[name])[0, 1] > 0.9, name
    changed = np.where(data.is_train[:, None], ram, 99.0).astype(np.float32)
    again = game_state.coordinate_probe(data, "pong", lambda picks: changed[picks], cfg=CFG, seed=0)
    for name, values in again.predict(ram[picks]).items():
        np.testing.assert_array_equal(values, read[name])
    few = dataclasses.replace(CFG, max_rows=200)
    game_state.coordinate_probe(
        data, "pong", lambda picks: asked.append(picks) or ram[picks], cfg=few, seed=0)
    assert asked[1].tolist() == list(range(0, data.num, 3))


def test_probes_may_be_fitted_on_validation_episodes_alone():
    data, asked = TwoSources(), []
    data.is_val = (data.episode_ids >= 4) & data.is_train
    data.is_train = data.is_train & ~data.is_val
    ram = data.ram[:, [51, 50, 49, 54]].astype(np.float32)
    cfg = dataclasses.replace(CFG, fit_on="validation")
    game_state.probe_rows(data, {"all": lambda picks: asked.append(picks) or ram[picks]},
                          baseline="all", cfg=cfg, seed=0)
    game_state.coordinate_probe(data, "pong", lambda picks: asked.append(picks) or ram[picks],
                                cfg=cfg, seed=0)
    for picks in asked:
        assert picks.tolist() == np.flatnonzero(data.is_val | data.is_test).tolist()
    data.is_val = data.is_test  # as in a split in two
    with pytest.raises(InputError, match="episodes on both sides"):
        game_state.probe_rows(data, {"all": lambda picks: ram[picks]}, baseline="all", cfg=cfg,
                              seed=0)
