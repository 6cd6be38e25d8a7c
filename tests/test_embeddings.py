"""hd.measure.embeddings: held-out stretches, and geometry beside the untrained network."""

import numpy as np
import pytest

from hd.config import EncoderConfig
from hd.encoder import AtariEncoder
from hd.measure import embeddings, probes

LENGTHS = {"pong": (40, 23, 31, 57), "breakout": (35, 60, 19, 44)}


class Steps:
    """What is read of the stored steps of two games of four episodes; two of them are held out."""

    games = tuple(LENGTHS)
    lengths = np.array([n for lengths in LENGTHS.values() for n in lengths])
    episode_ids = np.repeat(np.arange(8), lengths)
    starts = (np.cumsum(lengths) - lengths)[episode_ids]
    is_val, is_test = np.isin(episode_ids, [1, 6]), np.isin(episode_ids, [3, 5])
    is_train = ~is_val & ~is_test

    def in_game(self, game):
        is_first = self.episode_ids < 4
        return {"all": np.ones(309, bool), "pong": is_first, "breakout": ~is_first}[game]


@pytest.fixture
def data():
    return Steps()


@pytest.fixture
def asked(monkeypatch):
    """The rows that embed is asked for; a "network" is the table of its embeddings, and a real
    network embeds as the table FRESH."""
    seen = []

    def embed(model, data, rows):
        seen.append(rows)
        return (FRESH if isinstance(model, AtariEncoder) else model)[rows]

    monkeypatch.setattr(embeddings, "embed", embed)
    return seen


LEARNED, FRESH = np.random.default_rng(0).normal(size=(2, 309, 5)).astype(np.float32)


@pytest.mark.parametrize("most", [64, 100, 10_000])
def test_thinning_keeps_whole_stretches_of_held_out_steps(most, data):
    picks, stretches = embeddings.held_out_stretches(data, "all", most)
    held_out = np.flatnonzero(data.is_test)
    assert np.isin(picks, held_out).all() and (np.diff(picks) > 0).all()
    assert len(picks) <= max(most, embeddings.STRETCH) + embeddings.STRETCH
    assert len(picks) == len(held_out) if most >= len(held_out) else len(picks) < len(held_out)
    # A seam between stretches or episodes, and nothing else, begins a new stretch.
    seams = (np.diff(picks) != 1) | (np.diff(data.episode_ids[picks]) != 0)
    assert (np.diff(stretches) == seams).all()


def test_while_training_the_geometry_of_each_games_validation_steps_is_watched(data, asked):
    found = embeddings.watch(data)(LEARNED)
    rows = {game: np.flatnonzero(data.is_val & data.in_game(game)) for game in data.games}
    assert [seen.tolist() for seen in asked] == [rows[game].tolist() for game in data.games]
    assert found == {
        f"val_{name}[{game}]": value
        for game, picks in rows.items()
        for name, value in (
            ("diversity", probes.diversity(LEARNED[picks], seed=0)),
            ("temporal_consistency", probes.temporal_consistency(
                LEARNED[picks], data.episode_ids[picks], seed=0)))
    }


def test_geometry_stands_beside_the_untrained_networks_on_the_same_steps(data, asked):
    rows = embeddings.geometry_rows(data, LEARNED, AtariEncoder(), max_rows=1000, seed=4)
    table = {(row["metric"], row["game"]): row for row in rows}
    assert len(table) == len(rows) == 1 + 2 * 3
    for game in ("all", *data.games):
        picks = np.flatnonzero(data.is_test & data.in_game(game))
        row = table["diversity", game]
        assert row["value"] == pytest.approx(probes.diversity(LEARNED[picks], seed=4))
        assert row["baseline"] == pytest.approx(probes.diversity(FRESH[picks], seed=4))
        row = table["temporal_consistency", game]
        for side, vectors in (("value", LEARNED), ("baseline", FRESH)):
            assert row[side] == pytest.approx(probes.temporal_consistency(
                vectors[picks], data.episode_ids[picks], seed=4))


@pytest.mark.parametrize("settings", [
    {}, {"objective": "supervised"}, {"objective": "spatiotemporal", "negatives": "chunk"}])
def test_the_size_counts_what_embeds_and_nothing_that_only_training_uses(data, asked, settings):
    model = AtariEncoder(EncoderConfig(**settings), num_coordinates=3)
    first = embeddings.geometry_rows(data, LEARNED, model, max_rows=100, seed=0)[0]
    assert (first["metric"], first["value"]) == ("parameters", 1_881_888)
