"""hd.measure.frames: what was collected, and who played it."""

import dataclasses

import numpy as np
import pytest
from tiny import refusal, write_game

from hd import stages
from hd.measure import frames
from hd.replay import Replay
from hd.run import runs
from hd.run.runs import row


@pytest.fixture
def data(tmp_path):
    """Two games of 19 and 14 steps, in episodes of a few steps."""
    for game, lengths in {"pong": (9, 3, 1, 6), "breakout": (2, 5, 7)}.items():
        write_game(tmp_path, game, lengths)
    return Replay.open(tmp_path, ("pong", "breakout"), val_share=0.25, test_share=0.25, seed=0)


def table_of(rows):
    return {(row["game"], row["split"], row["metric"]): row["value"] for row in rows}


def test_collected_games_open_measure_and_pass_their_checks():
    overrides = {"frames.num_steps": 500, "frames.min_episodes": 3, "world_model.max_steps": 24}
    run = runs.start("frames", profile="smoke", games=["breakout"], overrides=overrides)
    message = refusal(stages.load, run)
    assert "stage frames is missing" in message and "make it: python -m hd run" in message
    stages.make(run)
    data = stages.load(run)
    assert len(data) >= 500
    made = stages.measure(run)
    table = table_of(made.to_dict("records"))
    for split, side in (("train", data.is_train), ("val", data.is_val), ("test", data.is_test)):
        ids = data.episode_ids[side]
        lengths = np.unique(ids, return_counts=True)[1]
        assert table["breakout", split, "steps"] == lengths.sum()
        assert table["breakout", split, "windows_of_24"] == np.maximum(0, lengths - 23).sum()
        assert table["all", split, "return"] == data.rewards[side].sum() / len(lengths)
    found = list(stages.check(run))
    assert len(found) >= 5 and all(holds for _, holds, _ in found), found


def test_steps_episodes_scores_and_windows_by_hand(data):
    held_out = np.zeros(33, bool)
    held_out[9:13] = held_out[21:26] = True  # Pong's second and third episode, Breakout's second
    continues = np.ones(33, np.float32)
    continues[[18, 25]] = 0
    changed = dataclasses.replace(data, is_train=~held_out, is_val=held_out, is_test=held_out,
                                  continues=continues)
    rows = frames.rows_of(changed, asked={"random": 1.0}, length=3)
    table = table_of(rows)
    assert {name: table["pong", "train", name] for name in (
        "steps", "episodes", "windows_of_3", "games_ended", "episode_length", "return")} == {
        "steps": 15, "episodes": 2, "windows_of_3": 7 + 4, "games_ended": 1,
        "episode_length": 7.5, "return": (sum(range(9)) + sum(range(13, 19))) / 2}
    assert table["pong", "val", "steps"] == 4 and table["pong", "val", "windows_of_3"] == 1
    assert table["breakout", "val", "games_ended"] == 1 == table["all", "val", "games_ended"]
    # All of the first steps but the very first score, as their number.
    assert table["pong", "train", "rewarded_share"] == pytest.approx(14 / 15)
    violations, = (row for row in rows if row["metric"] == "boundary_violations")
    # 33 - 2 windows of three anywhere, of which those inside an episode are 7, 1, 4, 3 and 5.
    assert (violations["value"], violations["baseline"]) == (0, 31 - 20)


def shares_of(data, sources):
    """(game, split, source) -> (share, asked for), as the frames table has them."""
    return {(row["game"], row["split"], row["metric"][len("source_share["):-1]):
            (row["value"], row["baseline"])
            for row in frames.rows_of(data, asked=sources, length=3)
            if row["metric"].startswith("source_share")}


def test_the_share_of_each_source_stands_beside_the_share_asked_for(data):
    assert shares_of(data, {"random": 1.0}) == {}, "one source: nothing to tell"
    source, held_out = np.zeros(33, np.int8), np.zeros(33, bool)
    source[:9], source[26:] = 2, 2  # the tracker's: Pong's first episode, Breakout's last
    held_out[9:13] = held_out[21:] = True
    changed = dataclasses.replace(data, source=source, is_train=~held_out, is_val=held_out & False,
                                  is_test=held_out)
    found = shares_of(changed, {"random": 2.0, "tracker": 5.0, "repeat": 1.0})
    assert found["pong", "train", "tracker"] == (pytest.approx(9 / 15), 0.625)
    assert found["pong", "test", "random"] == (1.0, 0.25)
    assert found["breakout", "test", "tracker"] == (pytest.approx(7 / 12), 0.625)
    assert found["all", "test", "repeat"] == (0.0, 0.125)
    assert "agent" not in {source for _, _, source in found}


def test_rows_of_one_source_bear_its_name_and_those_of_other_methods_are_left_out():
    rows = [row("accuracy", 0.5, game="pong", baseline=0.25), row("accuracy[ngram]", 0.125)]
    found = frames.of_source(rows, "tracker")
    assert found == [row("accuracy[source tracker]", 0.5, game="pong", baseline=0.25)]
    assert rows[0]["metric"] == "accuracy"
