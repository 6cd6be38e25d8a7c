"""hd.decoder, and hd.measure.decoded on what it draws: pictures of codes, which teach nothing to
what made the codes."""

import dataclasses

import numpy as np
import pytest
import torch

from hd import decoder
from hd.config import PROFILES, DecoderConfig
from hd.decoder import MOVING_WEIGHT, Decoder, Pictures
from hd.measure import decoded
from hd.quantization import ResidualVQ
from hd.run import runs, training
from hd.run.training import Unkept

L, K, D = 3, 7, 384
BALLS = ((10, 20), (60, 50))  # where the ball is under code 0 and under code 1


@pytest.fixture(scope="module")
def codes():
    """A tokenizer of seven codes a level."""
    torch.manual_seed(0)
    model = ResidualVQ(L, K, D)
    model(torch.nn.functional.normalize(torch.randn(50, D), dim=1))
    return model.eval()


def pictures(which):
    """(N,) 0 or 1 -> (N, 84, 84) uint8: a grey court with a ball of 8 x 8 pixels."""
    frames = np.full((len(which), 84, 84), 90, np.uint8)
    for frame, code in zip(frames, which):
        y, x = BALLS[code]
        frame[y : y + 8, x : x + 8] = 230
    return frames


def smoke(**fields):
    """The decoder's config of a smoke run, with some fields changed."""
    return dataclasses.replace(PROFILES["smoke"].decoder, **fields)


def batches(codes):
    background = torch.from_numpy(pictures([0, 1]).mean(0, dtype=np.float32) / 255)

    def make(i):
        which = runs.rng_for(i).integers(0, 2, 8)
        tokens = torch.from_numpy(which)[:, None] * torch.tensor([[1, 2, 3]])
        return {"quantized": codes.decode(tokens), "frame": torch.from_numpy(pictures(which)),
                "background": background.expand(8, 84, 84)}  # fmt: skip

    return make


def test_quantized_vectors_become_frames_between_black_and_white():
    model = Decoder(DecoderConfig(width=4))
    frames = model(10 * torch.randn(5, D))
    assert frames.shape == (5, 84, 84) and frames.dtype == torch.float32
    assert frames.min() >= 0 and frames.max() <= 1


def test_frames_are_float32_under_autocast():
    model = Decoder(DecoderConfig(width=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(2, D)).dtype == torch.float32


def test_the_whole_screen_depends_on_the_vector():
    model = Decoder(DecoderConfig(width=4))
    a, b = model(torch.stack([torch.zeros(D), torch.randn(D)]))
    assert (a != b).float().mean() > 0.99


class Drawn(Decoder):
    """Draws what it was told to."""

    def forward(self, quantized):
        return self.picture


def test_the_loss_is_the_squared_error_in_which_moving_pixels_weigh_more():
    model = Drawn(DecoderConfig(width=4))
    truth, background = torch.full((1, 84, 84), 51, dtype=torch.uint8), torch.full((1, 84, 84), 0.2)
    truth[0, 3, 4] = 255  # moves: 1.0 where the mean picture has 0.2
    model.picture = torch.full((1, 84, 84), 0.3)
    loss = model.loss({"quantized": torch.zeros(1, D), "frame": truth, "background": background})
    num_pixels = 84 * 84
    still, moving = (num_pixels - 1) * 0.1**2, 0.7**2
    weighted = (still + (1 + MOVING_WEIGHT) * moving) / num_pixels
    torch.testing.assert_close(loss.total, torch.tensor(weighted))
    error = (still + moving) / num_pixels
    torch.testing.assert_close(loss.parts["squared_error"], torch.tensor(error))


def test_no_gradient_reaches_what_made_the_vectors(codes):
    batch = batches(codes)(0)
    assert not batch["quantized"].requires_grad
    producer = torch.nn.Linear(2, D)
    batch["quantized"] = producer(torch.randn(8, 2))
    model = Decoder(DecoderConfig(width=4))
    model.loss(batch).total.backward()
    assert producer.weight.grad is None and producer.bias.grad is None
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("lr", [3e-3, 0.0])
def test_it_learns_to_tell_two_codes_pictures_apart_and_not_at_learning_rate_zero(lr, codes):
    cfg = smoke(lr=lr, num_steps=60, width=8)
    torch.manual_seed(0)
    model = Decoder(cfg)
    before = {name: value.clone() for name, value in codes.state_dict().items()}
    training.train(model, batches(codes), cfg, Unkept("decoder"))
    with torch.no_grad():
        drawn = model(codes.decode(torch.tensor([[0, 0, 0], [1, 2, 3]])))
    error = [[(drawn[i] - torch.from_numpy(pictures([j])[0]) / 255).pow(2).mean().item()
              for j in (0, 1)] for i in (0, 1)]  # fmt: skip
    is_told_apart = 2 * error[0][0] < error[0][1] and 2 * error[1][1] < error[1][0]
    assert is_told_apart == (lr > 0)
    assert all(torch.equal(before[name], value) for name, value in codes.state_dict().items())


class Stored:
    """Forty stored steps of two games, each showing the ball of its code."""

    games = ("pong", "breakout")

    def __init__(self):
        self.which = np.arange(40) % 2
        self.game_idx = np.repeat([0, 1], 20)
        self.is_train = np.arange(40) % 20 < 15
        self.is_test = ~self.is_train
        self.asked = set()

    def in_game(self, game):
        return self.game_idx == self.games.index(game)

    def newest(self, rows):
        self.asked |= set(np.asarray(rows).tolist())
        return pictures(self.which[rows])


@pytest.fixture
def stored(codes):
    """The stored steps beside their codes."""
    data = Stored()
    return Pictures(data, (data.which[:, None] * np.array([[1, 2, 3]])).astype(np.int16), codes)


def train(stored, **fields):
    """A decoder trained on them."""
    return decoder.train(smoke(**fields), stored, Unkept("decoder"))[0]


def test_a_games_mean_picture_is_that_of_its_training_steps_thinned(monkeypatch):
    data = Stored()
    data.which[data.is_train] = data.game_idx[data.is_train]  # a ball of its own for each game
    found = decoder.mean_pictures(data)
    assert found.dtype == np.float32 and found.shape == (2, 84, 84)
    np.testing.assert_allclose(found, pictures([0, 1]) / 255, atol=1e-6)
    assert len(data.asked) == 30 and all(data.is_train[row] for row in data.asked)
    monkeypatch.setattr(decoder, "BACKGROUND_ROWS", 8)
    data.asked.clear()
    decoder.mean_pictures(data)
    assert data.asked == {*range(0, 15, 2), *range(20, 35, 2)}


def test_a_batch_holds_the_vectors_of_a_rows_codes_beside_its_frame_and_its_games_mean(stored,
                                                                                       codes):
    batch = stored.batch(np.array([3, 38]))
    tokens = torch.tensor([[1, 2, 3], [0, 0, 0]])
    assert torch.equal(batch["quantized"], codes.decode(tokens))
    assert torch.equal(batch["frame"], torch.from_numpy(pictures([1, 0])))
    assert torch.equal(batch["background"], torch.from_numpy(stored.background))


def test_it_trains_on_training_episodes_only(stored):
    stored.data.asked.clear()
    train(stored, num_steps=3, width=4, batch_size=16)
    assert stored.data.asked and all(stored.data.is_train[row] for row in stored.data.asked)


def test_the_initial_weights_depend_on_the_seed_alone(stored):
    def initial(num_draws):
        torch.rand(num_draws)
        decay = 0.1 * num_draws
        return train(stored, num_steps=1, width=4, lr=0.0, weight_decay=decay).start.weight

    assert torch.equal(initial(0), initial(5))


def test_held_out_errors_stand_beside_those_of_the_mean_picture(stored):
    model = train(stored, num_steps=40, width=8, lr=3e-3)
    stored.data.asked.clear()
    rows = decoded.rows_of(stored, model.eval(), max_rows=2000)
    assert stored.data.asked == set(np.flatnonzero(~stored.data.is_train).tolist())
    assert {(row["game"], row["metric"]) for row in rows} == {
        (game, metric)
        for game in ("pong", "breakout")
        for metric in ("pixel_error", "moving_pixel_error")
    }
    # The mean picture misses half of the contrast (140 / 255) at each of the two balls' places.
    for row in rows:
        place = 2 * 64 / 84**2 if row["metric"] == "pixel_error" else 1.0
        assert row["baseline"] == pytest.approx((70 / 255) ** 2 * place, rel=0.2)
        assert row["value"] >= 0


def test_tokens_are_drawn_as_the_decoder_draws_their_vectors(stored, codes, monkeypatch):
    model = train(stored, num_steps=2, width=4)
    monkeypatch.setattr(decoder, "DECODE_ROWS", 4)
    tokens = torch.randint(0, K, (2, 5, L))
    frames = decoder.drawer(model.eval(), codes)(tokens)
    assert frames.shape == (2, 5, 84, 84) and frames.dtype == np.uint8
    with torch.no_grad():
        expected = model(codes.decode(tokens.view(-1, L))).view(2, 5, 84, 84) * 255
    # Rounding to whole grey levels.
    assert np.abs(frames - expected.numpy()).max() <= 0.51
