"""hd.encoder: the network, the contrastive loss, and what it is asked to tell apart."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny import refusal

from hd import config, encoder, stages
from hd.config import EncoderConfig, InputError
from hd.encoder import BATCHES, AtariEncoder, temporal_infonce
from hd.measure import game_state
from hd.replay import Replay
from hd.run import runs, training
from hd.run.training import Unkept

N, D = 6, 5
LENGTHS = {"pong": (40, 23, 31, 57), "breakout": (35, 60, 19, 44)}


def unit(*shape, seed=0):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return AtariEncoder()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two stored games of four episodes each; the frame of a row tells its number."""
    folder, first = tmp_path_factory.mktemp("frames"), 0
    for game, lengths in LENGTHS.items():
        num_rows = sum(lengths)
        frames = np.zeros((num_rows, 84, 84), np.uint8)
        frames[:, 0, 0] = np.arange(first, first + num_rows) % 256
        np.save(folder / f"frames-{game}.npy", frames)
        np.savez(
            folder / f"steps-{game}.npz",
            actions=np.zeros(num_rows, np.int8),
            rewards=np.zeros(num_rows, np.float32),
            continues=np.ones(num_rows, np.float32),
            ram=np.zeros((num_rows, 128), np.uint8),
            lives=np.zeros(num_rows, np.uint8),
            source=np.zeros(num_rows, np.int8),
            episode_ids=np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        )
        first += num_rows
    return Replay.open(folder, tuple(LENGTHS), val_share=0.25, seed=0)


def starts_of(data):
    return np.flatnonzero(data.is_train & data.has_next)


def batch_of(kind, data, seed=0, **settings):
    cfg = EncoderConfig(negatives=kind, **{"batch_size": 48, "chunk": 12, "group": 4, **settings})
    return BATCHES[kind](runs.rng_for(seed), starts_of(data), data, cfg), cfg


def candidates(batch, i):
    """Stored rows among which anchor i must find its positive, without the positive."""
    if "negatives" in batch:
        return batch["rows"][batch["negatives"][i]]
    others = ~batch["excluded"][i]
    others[i] = False
    return batch["rows"][batch["positive"][others]]


# ---- the network


def test_it_has_the_seeds_number_of_parameters(network):
    assert sum(p.numel() for p in network.parameters()) == 1_881_888


def test_embeddings_are_float32_of_unit_length(network):
    out = network(torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8))
    assert out.shape == (3, 384) and out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(3, 4, 84, 84),
        torch.zeros(3, 84, 84, 4, dtype=torch.uint8),
        torch.zeros(3, 3, 84, 84, dtype=torch.uint8),
        torch.zeros(4, 84, 84, dtype=torch.uint8),
        torch.zeros(3, 4, 64, 64, dtype=torch.uint8),
        torch.zeros(3, 4, 84, 84, dtype=torch.int64),
    ],
    ids=["float", "channels last", "three frames", "no batch", "small", "int64"],
)
def test_other_frames_are_refused_in_one_line(network, frames):
    pair = {"anchor": torch.tensor([0]), "positive": torch.tensor([1])}
    for use in (network, lambda frames: network.loss({"frames": frames, **pair})):
        with pytest.raises(InputError, match="uint8 of shape") as caught:
            use(frames)
        assert len(str(caught.value).splitlines()) == 1
        assert str(tuple(frames.shape)) in str(caught.value)


def test_an_array_embeds_as_a_tensor_does(network):
    frames = np.random.default_rng(0).integers(0, 256, (1, 4, 84, 84), np.uint8)
    assert torch.equal(network(frames), network(torch.from_numpy(frames)))


def test_each_row_is_embedded_by_itself(network):
    frames = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    # Convolutions of another batch size may add in another order.
    torch.testing.assert_close(network(frames)[2:4], network(frames[2:4]), rtol=1e-4, atol=1e-5)


def test_the_order_of_frames_and_every_frame_matter(network):
    frames = torch.randint(0, 256, (1, 4, 84, 84), dtype=torch.uint8)
    base = network(frames)
    assert (network(frames.flip(1)) - base).abs().max() > 1e-3
    for i in range(4):
        changed = frames.clone()
        changed[:, i] = 0
        assert (network(changed) - base).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pixels_are_scaled_to_one_in_the_type_that_the_convolutions_read(network, dtype):
    rows = encoder.SCALED_ROWS + 1  # more than are scaled at once
    frames = torch.arange(rows * 4 * 84 * 84).mul(7).remainder(256).to(torch.uint8)
    frames, seen = frames.view(rows, 4, 84, 84), []
    hook = network.convolutions.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        network(frames)
    hook.remove()
    assert torch.equal(seen[0], (frames.float() / 255).to(dtype))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


# ---- the loss


def test_an_encoder_that_knows_nothing_scores_log_n():
    same = unit(1, D).expand(N, D)
    loss = temporal_infonce(same, same, temperature=0.1)
    assert loss.item() == pytest.approx(math.log(N), rel=1e-6)


@pytest.mark.parametrize("num_negatives", [1, 3])
def test_with_own_negatives_it_scores_the_log_of_the_number_of_choices(num_negatives):
    same = unit(1, D).expand(N, D)
    negatives = same[:, None].expand(N, num_negatives, D)
    loss = temporal_infonce(same, same, temperature=0.1, negatives=negatives)
    assert loss.item() == pytest.approx(math.log(1 + num_negatives), rel=1e-6)


def test_two_pairs_by_hand():
    # Similarities [[1, 0], [0.6, 0.8]] at temperature 0.5.
    anchors = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    positives = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(1.2 - 1.6))) / 2
    assert temporal_infonce(anchors, positives, temperature=0.5).item() == pytest.approx(expected)


def test_one_negative_by_hand():
    anchors, positives = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    negatives = torch.tensor([[[0.8, 0.6]]])
    loss = temporal_infonce(anchors, positives, temperature=0.1, negatives=negatives)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(8.0 - 6.0)), rel=1e-5)


def test_rows_choose_among_positives_and_not_the_other_way_round():
    # Both anchors are the first positive: one is right for sure, the other wrong for sure.
    anchors = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    positives = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = temporal_infonce(anchors, positives, temperature=1.0)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert loss.item() == pytest.approx((right + wrong) / 2)


def test_excluded_pairs_never_count():
    anchors, positives = unit(N, D), unit(N, D, seed=1)
    excluded = torch.zeros(N, N, dtype=torch.bool)
    excluded[2:, :2], excluded[:2, 2:] = True, True
    loss = temporal_infonce(anchors, positives, temperature=0.1, excluded=excluded)
    parts = [temporal_infonce(anchors[s], positives[s], temperature=0.1)
             for s in (slice(0, 2), slice(2, N))]  # fmt: skip
    torch.testing.assert_close(loss, (2 * parts[0] + (N - 2) * parts[1]) / N)


def test_an_excluded_pair_sends_no_gradient():
    anchors, positives = unit(2, D).requires_grad_(), unit(2, D, seed=1)
    excluded = ~torch.eye(2, dtype=torch.bool)
    loss = temporal_infonce(anchors, positives, temperature=0.1, excluded=excluded)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, anchors)[0].abs().max() == 0.0


def test_the_loss_is_float32_under_autocast_and_for_half_inputs():
    anchors, positives, negatives = unit(N, D), unit(N, D, seed=1), unit(N, 3, D, seed=2)
    for extra in ({}, {"negatives": negatives}):
        expected = temporal_infonce(anchors, positives, temperature=0.1, **extra)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = temporal_infonce(anchors, positives, temperature=0.1, **extra)
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)
        half = {key: value.bfloat16() for key, value in extra.items()}
        loss = temporal_infonce(anchors.bfloat16(), positives.bfloat16(), temperature=0.1, **half)
        assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [
        ((N + 1, D), None),
        ((N, D + 1), None),
        ((N, D), (N, D)),
        ((N, D), (N, 2, D + 1)),
        ((N, D), (N + 1, 2, D)),
    ],
)
def test_other_shapes_are_refused_in_one_line(positives, negatives):
    negatives = None if negatives is None else unit(*negatives)
    with pytest.raises(InputError) as caught:
        temporal_infonce(unit(N, D), unit(*positives), temperature=0.1, negatives=negatives)
    assert len(str(caught.value).splitlines()) == 1 and "(N, " in str(caught.value)


def test_stacked_tasks_have_equal_weight():
    anchors, positives = unit(3, N, D), unit(3, N, D, seed=1)
    excluded = torch.zeros(N, N, dtype=torch.bool)
    excluded[0, 1] = excluded[4, 2] = True
    settings = {"temperature": 0.2, "excluded": excluded}
    apart = [temporal_infonce(a, p, **settings) for a, p in zip(anchors, positives)]
    torch.testing.assert_close(temporal_infonce(anchors, positives, **settings),
                               torch.stack(apart).mean())
    with pytest.raises(InputError, match="must both be"):
        temporal_infonce(anchors, positives, temperature=0.2, negatives=unit(3, N, D))


# ---- which frames are compared


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("seed", range(4))
def test_a_positive_is_the_next_step_of_the_same_training_episode(kind, seed, data):
    batch, _ = batch_of(kind, data, seed)
    anchors, positives = batch["rows"][batch["anchor"]], batch["rows"][batch["positive"]]
    assert (positives == anchors + 1).all()
    assert (data.episode_ids[positives] == data.episode_ids[anchors]).all()
    assert data.is_train[anchors].all() and data.is_train[positives].all()


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("seed", range(4))
def test_no_anchor_has_itself_or_its_positive_among_its_negatives(kind, seed, data):
    batch, _ = batch_of(kind, data, seed)
    for i, anchor in enumerate(batch["rows"][batch["anchor"]]):
        assert not np.isin(candidates(batch, i), [anchor, anchor + 1]).any()


@pytest.mark.parametrize("kind", BATCHES)
def test_nothing_of_a_held_out_episode_is_ever_looked_at(kind, data):
    for seed in range(10):
        batch, _ = batch_of(kind, data, seed)
        assert data.is_train[batch["rows"]].all()


@pytest.mark.parametrize("kind", BATCHES)
def test_both_games_and_all_training_episodes_are_visited(kind, data):
    seen = np.concatenate([batch_of(kind, data, seed)[0]["rows"] for seed in range(30)])
    assert set(data.episode_ids[seen]) == set(data.episode_ids[data.is_train])


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_depends_on_its_generator_alone(kind, data):
    (a, _), (b, _), (c, _) = (batch_of(kind, data, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not np.array_equal(a["rows"], c["rows"])


@pytest.mark.parametrize("min_distance", [2, 10, 50])
def test_the_single_negative_keeps_its_distance(min_distance, data):
    for seed in range(5):
        batch, cfg = batch_of("single", data, seed, min_distance=min_distance)
        assert batch["negatives"].shape == (cfg.batch_size, 1)
        distance = batch["rows"][batch["negatives"][:, 0]] - batch["rows"][batch["anchor"]]
        assert np.abs(distance).min() >= min_distance


@pytest.mark.parametrize("kind", ["in_batch", "chunk"])
def test_negatives_come_from_the_anchors_own_game(kind, data):
    batch, _ = batch_of(kind, data)
    game = data.game_idx[batch["rows"][batch["anchor"]]]
    assert len(set(game)) == 2
    for i in range(len(game)):
        assert (data.game_idx[candidates(batch, i)] == game[i]).all()


def test_in_batch_anchors_tell_apart_all_others_of_their_game(data):
    batch, cfg = batch_of("in_batch", data)
    rows = batch["rows"][batch["anchor"]]
    assert len(rows) == cfg.batch_size
    for i in (0, 17, 47):
        others = (data.game_idx[rows] == data.game_idx[rows[i]]) & ~np.isin(rows, rows[i] - [0, 1])
        assert sorted(candidates(batch, i)) == sorted(rows[others] + 1)


def test_in_batch_rows_come_in_groups_of_near_steps(data):
    batch, cfg = batch_of("in_batch", data)
    groups = batch["rows"][batch["anchor"]].reshape(-1, cfg.group)
    spread = np.ptp(groups, axis=1)
    assert (spread < 4 * cfg.group).mean() > 0.3  # single rows leave a group at an episode's end
    assert np.median(spread) < np.median(np.abs(np.subtract.outer(groups[:, 0], groups[:, 0])))


def test_chunks_are_consecutive_steps_of_one_episode(data):
    batch, cfg = batch_of("chunk", data)
    chunks = batch["rows"].reshape(-1, cfg.chunk)
    assert len(chunks) == cfg.batch_size // cfg.chunk
    assert (np.diff(chunks, axis=1) == 1).all()
    assert (np.ptp(data.episode_ids[chunks], axis=1) == 0).all()


def test_chunk_negatives_are_all_others_of_the_same_chunk(data):
    batch, cfg = batch_of("chunk", data)
    chunks = batch["rows"].reshape(-1, cfg.chunk)
    for i, anchor in enumerate(batch["rows"][batch["anchor"]]):
        chunk = chunks[i // (cfg.chunk - 1)]
        expected = chunk[1:][~np.isin(chunk[1:], [anchor, anchor + 1])]
        assert candidates(batch, i).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", BATCHES)
def test_the_loss_of_a_batch_is_the_loss_of_its_frames(kind, data, network):
    batch, _ = batch_of(kind, data, batch_size=24, chunk=6)
    rows = batch.pop("rows")
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
    with torch.no_grad():
        loss = network.loss({"frames": torch.from_numpy(data.stack(rows)), **tensors})
        vectors = network(torch.from_numpy(data.stack(rows)))
    logits, batch["rows"] = vectors @ vectors.T / 0.1, np.arange(len(rows))
    expected = []
    for i, (anchor, positive) in enumerate(zip(batch["anchor"], batch["positive"])):
        choices = logits[anchor, np.concatenate([[positive], candidates(batch, i)])]
        expected.append(choices.logsumexp(0) - choices[0])
    torch.testing.assert_close(loss.total, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)
    similarity = (vectors[tensors["anchor"]] * vectors[tensors["positive"]]).sum(1).mean()
    torch.testing.assert_close(loss.parts["positive_similarity"], similarity)


# ---- learning


def moving_square(i, batch_size=12):
    """Stacks of a square on its way over the screen, and the stacks one step later."""
    time = runs.rng_for(i).choice(60, batch_size, replace=False)[:, None] + np.arange(5)
    frames = np.zeros((batch_size, 5, 84, 84), np.uint8)
    for row, steps in enumerate(time):
        for slot, step in enumerate(steps):
            x, y = step * 5 % 78, step * 3 % 78
            frames[row, slot, y : y + 6, x : x + 6] = 255
    rows = torch.from_numpy(np.concatenate([frames[:, :4], frames[:, 1:]]))
    order = torch.arange(batch_size)
    return {"frames": rows, "anchor": order, "positive": order + batch_size,
            "excluded": torch.zeros(batch_size, batch_size, dtype=torch.bool)}  # fmt: skip


def smoke(variant="base", **settings):
    """The encoder's config of a smoke run, with some settings changed."""
    profile = config.resolve("smoke", variant)
    return dataclasses.replace(profile.encoder, **settings)


@pytest.mark.parametrize(("lr", "least", "most"), [(1e-3, 0.0, 1.0), (0.0, 1.5, 2.5)])
def test_it_learns_to_follow_a_moving_square_and_not_at_learning_rate_zero(lr, least, most):
    cfg = smoke(lr=lr, num_steps=9, temperature=0.2)
    torch.manual_seed(0)
    history = training.train(AtariEncoder(cfg), moving_square, cfg, Unkept("encoder"))["history"]
    # log(12) = 2.48 is an encoder that knows nothing; next steps in the batch are hard to tell.
    assert least < np.mean([entry["loss"] for entry in history[-4:]]) < most


def test_the_untrained_encoder_is_the_one_that_training_starts_from(data):
    cfg = smoke(lr=0.0, num_steps=1, batch_size=4)
    torch.rand(17)  # whatever came before in this process must not matter
    model, _ = encoder.train(cfg, data, Unkept("encoder", seed=3))
    fresh = encoder.untrained(cfg, 3)
    assert not fresh.training
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_embedding_in_pieces_is_embedding_at_once(data, network, monkeypatch):
    rows = np.arange(30)
    monkeypatch.setattr(encoder, "EMBED_ROWS", 7)
    with torch.no_grad():
        expected = network(torch.from_numpy(data.stack(rows))).numpy()
    found = encoder.embed(network, data, rows)
    assert found.dtype == np.float32 and found.shape == (30, 384)
    # bfloat16 where the processor is fast at it: about three digits.
    np.testing.assert_allclose(found, expected, atol=2e-2)


# ---- what comes next at every place of the picture


def spatiotemporal(**settings):
    return EncoderConfig(objective="spatiotemporal", negatives="chunk", **settings)


def test_the_spatiotemporal_loss_asks_at_every_place_what_is_there_and_what_is_next():
    torch.manual_seed(0)
    model, frames = AtariEncoder(spatiotemporal()), torch.randint(0, 256, (4, 4, 84, 84)).byte()
    order, own = torch.arange(3), torch.diag(torch.ones(2, dtype=torch.bool), -1)
    another_chunk = torch.zeros(3, 3, dtype=torch.bool)
    another_chunk[0, 2] = another_chunk[2, 0] = True
    batch = {"frames": frames, "anchor": order, "positive": order + 1,
             "excluded": own | another_chunk}
    with torch.no_grad():
        loss = model.loss(batch).total
        maps = model.convolutions[:-1](frames.float() / 255)
        expected = []
        for predictor, there, bars in zip(model.predictors, (maps[:3], maps[1:]),
                                          (another_chunk, own | another_chunk)):
            predicted = predictor(model(frames[:3])).view(3, 64, 7, 7)
            for y in range(7):
                for x in range(7):
                    pair = [torch.nn.functional.normalize(maps[:, :, y, x], dim=1)
                            for maps in (predicted, there)]
                    logits = (pair[0] @ pair[1].T / 0.1).masked_fill(bars, -math.inf)
                    expected.append((logits.logsumexp(1) - logits.diagonal()).mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)


def test_it_learns_where_a_square_is_and_is_kept_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = runs.start("encoder", profile="smoke", variant="hi-dreamer", games=tuple(LENGTHS),
                     overrides={"encoder.num_steps": 12, "encoder.lr": 2e-3})  # fmt: skip
    torch.manual_seed(0)
    model = AtariEncoder(run.cfg)
    history = training.train(model, moving_square, run.cfg, run)["history"]
    # Most places hold nothing of twelve squares: log(12) whatever the embedding says.
    losses = [entry["loss"] for entry in history]
    assert losses[0] == pytest.approx(math.log(12), abs=0.1)
    assert np.mean(losses[-3:]) < losses[0] - 0.1
    again = stages.load(run).state_dict()
    assert {name.partition(".")[0] for name in again} == {"convolutions", "head", "predictors"}
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_an_embedding_of_nothing_scores_the_log_of_the_choices(data):
    cfg = spatiotemporal(chunk=8, batch_size=24)
    # Seven anchors a chunk; the first of them is nobody's next step, the others bar themselves.
    expected = (math.log(7) + (math.log(7) + 6 * math.log(6)) / 7) / 2
    assert encoder.chance_loss(cfg, data, 0) == pytest.approx(expected)


def test_its_network_embeds_as_bases():
    torch.manual_seed(0)
    base = AtariEncoder().state_dict()
    torch.manual_seed(0)
    own = AtariEncoder(spatiotemporal()).state_dict()
    assert own.keys() - base.keys() == {
        f"predictors.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert all(torch.equal(own[name], value) for name, value in base.items())


def test_it_needs_negatives_from_the_batch():
    with pytest.raises(InputError, match=r'needs encoder\.negatives "in_batch"'):
        AtariEncoder(EncoderConfig(objective="spatiotemporal"))


# ---- what the same network could know


def coordinates_of(data):
    """The true coordinates of all stored steps, as the stage gives them to read."""
    return game_state.standardised(
        game_state.coordinates(data, np.arange(len(data))), data.is_train)


@pytest.fixture
def moved(data, monkeypatch):
    """The same steps with another RAM in every row."""
    monkeypatch.setitem(data.__dict__, "ram", np.random.default_rng(0).integers(
        1, 180, (len(data), 128)).astype(np.uint8))  # fmt: skip
    return data


def square_and_its_place(i, batch_size=16):
    """Stacks of a square anywhere on the screen, and its column and row in deviations."""
    places = np.random.default_rng(i).integers(0, 75, (batch_size, 2))
    frames = np.zeros((batch_size, 4, 84, 84), np.uint8)
    for frame, (x, y) in zip(frames, places):
        frame[:, y : y + 9, x : x + 9] = 255
    targets = np.column_stack([(places - 37) / 21.6, np.full(batch_size, np.nan)])
    return {"frames": torch.from_numpy(frames), "targets": torch.from_numpy(targets).float()}


@pytest.mark.parametrize(("lr", "least", "most"), [(1e-3, 0.0, 0.7), (0.0, 0.9, 9.0)])
def test_the_supervised_objective_learns_where_a_square_is_and_not_at_learning_rate_zero(
    lr, least, most, data
):
    cfg = smoke("objective.supervised", lr=lr, num_steps=16 if lr else 4)
    assert encoder.chance_loss(cfg, data, 0) == 1.0
    model = AtariEncoder(cfg, num_coordinates=3)
    history = training.train(model, square_and_its_place, cfg, Unkept("encoder"))["history"]
    assert least < np.mean([entry["loss"] for entry in history[-4:]]) < most


def test_it_reads_training_rows_beside_their_own_coordinates(moved):
    data, table = moved, coordinates_of(moved)
    cfg, seen = smoke("objective.supervised", batch_size=16), set()
    make = encoder._frames_to_read(cfg, data, table, 3)
    for i in range(10):
        batch = make(i)
        assert batch["frames"].shape == (16, 4, 84, 84) and batch["targets"].shape == (16, 7)
        # A frame's first pixel is its row's number, modulo 256.
        number = batch["frames"][:, -1, 0, 0].numpy()
        for targets, first in zip(batch["targets"].numpy(), number):
            rows = [r for r in range(first, len(data), 256)
                    if np.array_equal(table[r], targets, equal_nan=True)]  # fmt: skip
            assert len(rows) == 1 and data.is_train[rows[0]]
            seen.update(rows)
    assert len(seen) > 100


def test_the_stage_gives_the_supervised_objective_each_steps_true_coordinates(moved, monkeypatch):
    given = {}
    monkeypatch.setattr(stages, "load", lambda run: moved)
    monkeypatch.setattr(encoder, "train", lambda cfg, data, run, *, targets, evaluate: given.update(
        {cfg.objective: targets}) or (None, {}))
    for variant in ("objective.supervised", "base"):
        stages.STAGES["encoder"].make(
            runs.start("encoder", profile="smoke", variant=variant, games=moved.games))
    np.testing.assert_array_equal(given["supervised"], coordinates_of(moved))
    assert given["contrastive"] is None


def test_the_supervised_objective_without_targets_is_refused_before_any_work(data, monkeypatch):
    monkeypatch.setattr(training, "train", None)
    message = refusal(encoder.train, smoke("objective.supervised"), data, Unkept("encoder"))
    assert message == 'encoder.objective "supervised" needs targets to read'


def test_the_supervised_network_starts_from_base_and_comes_back_as_it_was(
    data, monkeypatch, tmp_path
):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = runs.start("encoder", profile="smoke", variant="objective.supervised",
                     games=data.games, seed=3, overrides={
        "encoder.batch_size": 16, "encoder.num_steps": 1})  # fmt: skip
    fresh = stages.untrained_encoder(run).state_dict()
    torch.manual_seed(run.seed)
    base = AtariEncoder().state_dict()
    assert fresh.keys() - base.keys() == {"readout.weight", "readout.bias"}
    assert len(fresh["readout.bias"]) == 4 + 3
    assert all(torch.equal(fresh[name], value) for name, value in base.items())
    model, _ = encoder.train(run.cfg, data, run, targets=coordinates_of(data))
    again = stages.load(run).state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_unknown_coordinates_count_for_nothing_and_the_rest_by_hand():
    torch.manual_seed(0)
    model = AtariEncoder(num_coordinates=3)
    frames = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    targets = torch.tensor([[1.0, math.nan, 2.0], [math.nan, math.nan, -1.0]])
    loss = model.loss({"frames": frames, "targets": targets}).total
    with torch.no_grad():
        read = model.readout(model(frames) * math.sqrt(384))
    expected = ((read[0, 0] - 1) ** 2 + (read[0, 2] - 2) ** 2 + (read[1, 2] + 1) ** 2) / 3
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.readout.weight.grad[1].abs().max() == 0
