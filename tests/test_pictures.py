"""hd.report.pictures: where things are in frames, as RAM and as codes say."""

import numpy as np
import pytest
import torch
from tiny import PlainEyes

from hd import config, stages
from hd.report import pictures
from hd.run import runs


@pytest.fixture
def run(monkeypatch):
    """A run of dreams of PlainEyes, 20 units off where they dream of the ball."""
    dreamed = PlainEyes.codes[PlainEyes.rows[2:]].clone()
    dreamed[..., 1] += 20
    made = {"frames": PlainEyes.data, "tokenizer": PlainEyes.quantizer}
    monkeypatch.setattr(stages, "load", lambda run: made[run.stage])
    monkeypatch.setattr(stages, "coordinate_probe", lambda run, game: PlainEyes.probe)
    monkeypatch.setattr(stages, "dreams_of",
                        lambda run, game: PlainEyes.dreamt(dreamed, PlainEyes.rows[2:]))
    return runs.Run("imagination", config.PROFILES["smoke"])


def test_the_ball_of_a_dream_is_placed_on_the_frame_as_read_from_its_codes(run):
    balls = pictures.dream_places(run, "pong")
    assert list(balls) == ["real game", "its codes", "dream"]
    np.testing.assert_allclose(balls["its codes"][:5, 0] - balls["real game"][:5, 0], 84 / 160)
    moved = balls["dream"][:5] - balls["its codes"][:5]
    np.testing.assert_allclose(moved, [[20 * 84 / 160, 0]] * 5)
    assert all(np.isnan(places[5]).all() for places in balls.values()), "out of play"


def test_without_codes_nothing_but_ram_is_asked(monkeypatch):
    monkeypatch.setattr(stages, "load", lambda run: pytest.fail("loaded something"))
    found = pictures.places(runs.Run("imagination", config.PROFILES["smoke"]), "pong",
                            PlainEyes.ram, {})
    assert list(found) == ["real game"] and found["real game"].shape == (18, 2)


def test_pictures_of_a_dream_are_of_its_rows_their_codes_and_what_was_dreamed(run, monkeypatch):
    class Frames:
        def newest(self, rows):
            return np.multiply.outer(rows, np.ones((84, 84))).astype(np.uint8)

    monkeypatch.setattr(stages, "load", lambda run: Frames())
    monkeypatch.setattr(stages, "tokens_of", lambda run: PlainEyes.codes.numpy().astype(np.int16))
    monkeypatch.setattr(stages, "drawer_of", lambda run: lambda tokens: tokens[..., 1].numpy())
    found = pictures.dream_frames(run, "pong")
    assert list(found) == ["real game", "its codes", "dream"]
    assert found["real game"][:, 0, 0].tolist() == PlainEyes.rows[2].tolist()
    assert (found["its codes"] == PlainEyes.codes[PlainEyes.rows[2], 1].numpy()).all()
    assert (found["dream"] - found["its codes"] == 20).all()
    share, frames = pictures.ranked_dreams(run, "pong", count=3)
    assert share.tolist() == [1.0], "the coarse codes, level 0, are all true"
    assert frames["real game"].shape == (1, 6, 84, 84)
    assert torch.equal(torch.from_numpy(frames["dream"][0]), torch.from_numpy(found["dream"]))
