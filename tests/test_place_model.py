"""The world model of places: its loss by hand, what it can learn, and its dreams."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import refusal

from hd.config import PlaceModelConfig
from hd.imagination import imagine, replayed
from hd.place_model import PlaceModel
from hd.run import training
from hd.run.training import Unkept

L, K, G, P, T = 2, 5, 9, 4, 3
CFG = PlaceModelConfig(width=16, code_width=8, num_blocks=1, steps=T, precision="float32",
                       batch_size=64, lr=3e-3)
STAY, GO = 0, 1


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def tiny_model(**changes):
    torch.manual_seed(0)
    return PlaceModel(dataclasses.replace(CFG, **changes), torch.randn(L, K, P), G)


def any_batch(B=6):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(K, (B, T + 1, L, G), generator=generator)
    tokens[:, -1, :, 3:] = tokens[:, -2, :, 3:]  # three places change at most
    return {"tokens": tokens[:, :-1], "next": tokens[:, -1],
            "actions": torch.randint(18, (B, T), generator=generator),
            "rewards": torch.tensor([-3.0, 0, 0, 2, 0, 0])[:B], "continues": torch.ones(B)}


def walks(count, length=T + 6):
    """One mark that moves a place to the right, around the grid, at every GO: tokens, actions.
    Its fine code says whether it moved last."""
    generator = torch.Generator().manual_seed(3)
    actions = torch.randint(2, (count, length), generator=generator)
    place = torch.randint(G, (count,), generator=generator)
    steps, moved = [], torch.zeros(count, dtype=torch.int64)
    for t in range(length):
        tokens = torch.zeros(count, L, G, dtype=torch.int64)
        tokens[torch.arange(count), 0, place] = 1
        tokens[torch.arange(count), 1, place] = 1 + moved
        steps.append(tokens)
        moved = actions[:, t]
        place = (place + moved) % G
    return torch.stack(steps, 1), actions


def taught(**changes):
    """A model that has seen many walks, and walks that it has not."""
    model = tiny_model(**changes)
    tokens, actions = walks(400)

    def batches(i):
        generator = torch.Generator().manual_seed(i)
        rows = torch.randint(400, (64,), generator=generator)
        first = torch.randint(5, (1,), generator=generator).item()
        return {"tokens": tokens[rows, first:first + T], "next": tokens[rows, first + T],
                "actions": actions[rows, first:first + T],
                "rewards": (tokens[rows, first + T, 0, 0] > 0).float(),
                "continues": torch.ones(64)}

    training.train(model, batches, dataclasses.replace(CFG, num_steps=400), Unkept())
    return model.eval(), walks(450)


def lively_model():
    """A tiny model for which about half of the places change."""
    model = tiny_model()
    for part in model.parameters():
        if part.ndim > 1:
            torch.nn.init.normal_(part, std=0.3)
    torch.nn.init.zeros_(model.change.bias)
    return model


def test_codes_predicted_at_all_places_are_learned_as_those_of_the_places_that_change(monkeypatch):
    model, batch, found = lively_model(), any_batch(), []
    for everywhere in (False, True):
        monkeypatch.setattr(PlaceModel, "is_everywhere", everywhere)
        model.zero_grad()
        loss = model.loss(batch)
        loss.total.backward()
        found.append({**loss.parts, "surprise": model.surprise(batch),
                      **{name: part.grad.clone() for name, part in model.named_parameters()}})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_codes_dreamt_at_all_places_change_only_the_places_that_change(monkeypatch):
    model, batch = lively_model().eval(), any_batch(2)
    many = {name: part.repeat_interleave(4000, 0) for name, part in batch.items()}
    ends, shares = [], []
    for everywhere in (False, True):
        monkeypatch.setattr(PlaceModel, "is_everywhere", everywhere)
        with torch.no_grad():
            dream = model.dreamer(batch["tokens"], batch["actions"][:, 1:], horizon=2)
            dream.step(batch["actions"][:, 0], None, greedy=True)
            ends.append(dream.tokens)
            dream = model.dreamer(many["tokens"], many["actions"][:, 1:], horizon=2)
            dream.step(many["actions"][:, 0], torch.Generator().manual_seed(0))
        per_code = F.one_hot(dream.tokens, K).float()
        shares.append(torch.stack([per_code[:4000].mean(0), per_code[4000:].mean(0)]))
    assert torch.equal(*ends)
    assert 0.1 < (ends[0] != batch["tokens"][:, -1]).float().mean() < 0.9
    torch.testing.assert_close(*shares, rtol=0, atol=0.05)  # 5 deviations of a share of 4000


def test_what_is_surprising_is_what_the_codes_cost_row_by_row():
    model, batch = tiny_model(), any_batch()
    nats, parts = model.surprise(batch), model.loss(batch).parts
    assert nats.shape == batch["tokens"].shape[:1]
    assert nats.mean().item() == pytest.approx(
        sum(value.item() for name, value in parts.items() if name not in ("reward", "continue")),
        rel=1e-5)
    one = {name: value[:1] for name, value in batch.items()}
    assert model.surprise(one).item() == pytest.approx(nats[0].item(), rel=1e-4)


def test_the_loss_is_that_of_every_place_by_itself():
    model, batch = tiny_model(), any_batch()
    parts = model.loss(batch).parts
    tables, keys = model.tables(), model.keys()
    places = model.places()
    acted = model.act(model.state(model.embed(batch["tokens"], tables), batch["actions"][:, :-1],
                                  places), batch["actions"][:, -1])
    changes, codes = 0.0, torch.zeros(L)
    for b in range(len(acted)):
        for place in range(G):
            now, after = batch["tokens"][b, -1, :, place], batch["next"][b, :, place]
            chance = model.change(acted[b, place]).sigmoid()[0]
            is_changed = bool((now != after).any())
            changes -= torch.log(chance if is_changed else 1 - chance)
            at = (acted[b, place] + model.place_query(places)[0, place])[None]
            for level in range(L if is_changed else 0):
                logits = model.code_logits(level, at, after[None, :level], tables, keys)
                codes[level] += F.cross_entropy(logits, after[None, level])
    assert parts["changes"].item() == pytest.approx(changes.item() / 6, rel=1e-4)
    for level in range(L):
        assert parts[f"l{level}_cross_entropy"].item() == pytest.approx(
            codes[level].item() / 6, rel=1e-4)


def test_codes_are_read_by_their_vectors_as_long_as_nothing_else_is_learned():
    model = tiny_model()
    model.codebooks[0, 2] = model.codebooks[0, 3]
    tokens = torch.full((1, L, G), 3)
    twin = tokens.clone()
    twin[0, 0] = 2
    tables = model.tables()
    assert torch.equal(model.embed(tokens, tables), model.embed(twin, tables))


def test_every_level_of_the_codebooks_is_read_at_the_same_size():
    small = torch.randn(L, K, P) * torch.tensor([1.0, 0.01])[:, None, None]
    model = PlaceModel(CFG, small, G)
    assert torch.allclose(model.codebooks.pow(2).mean((1, 2)), torch.ones(L))
    model.read_codebooks(torch.zeros(L, K, P))
    assert not model.codebooks.any()


def test_moved_places_are_known_by_where_their_content_stands():
    model = tiny_model()
    still, moved = model.places(), model.places(torch.tensor([[0.0, 0.0], [1 / 3, 0.0]]))
    assert torch.equal(moved[0], still[0])
    assert torch.allclose(moved[1, 3:], still[0, :6], atol=1e-5)  # a row of a 3 x 3 grid
    batch = any_batch()
    losses = [model.loss(batch | {"shift": torch.full((6, 2), by)}).total for by in (0.0, 0.2)]
    assert losses[0] == model.loss(batch).total != losses[1]


def test_a_change_nearby_matters_more_than_none_and_the_action_matters():
    model, batch = tiny_model(), any_batch()
    for part in model.parameters():  # the second convolutions start at zero: nothing is mixed yet
        torch.nn.init.normal_(part, std=0.3) if not part.any() else None
    tables = model.tables()
    tokens, actions = batch["tokens"], batch["actions"]
    state = model.state(model.embed(tokens, tables), actions[:, :-1], model.places())
    other = tokens.clone()
    other[:, -1, 0, 0] = (other[:, -1, 0, 0] + 1) % K
    moved = model.state(model.embed(other, tables), actions[:, :-1], model.places()) - state
    assert (moved[:, [0, 1, 3, 4]].abs().amax(-1) > 0).all()
    assert not torch.equal(model.act(state, actions[:, -1]),
                           model.act(state, (actions[:, -1] + 1) % 18))


@pytest.mark.parametrize("hidden", [None, 32])
def test_it_learns_what_an_action_moves_and_dreams_it_on(hidden):
    model, (tokens, actions) = taught(hidden=hidden)
    rollout = imagine(model, tokens[:, :T], actions[:, :T - 1], replayed(actions[:, T - 1:]),
                      horizon=6, generator=torch.Generator().manual_seed(0), greedy=True,
                      features="hidden")
    assert (rollout.tokens == tokens[:, T - 1:T + 6]).all(-1).all(-1).float().mean() > 0.95
    is_first = (tokens[:, T:T + 6, 0, 0] > 0).float()
    assert (rollout.rewards - is_first[:, :rollout.rewards.shape[1]]).abs().mean() < 0.05
    assert rollout.features.shape == (450, 7, model.num_features)


def test_hidden_numbers_take_the_place_of_every_second_convolution():
    plain, hidden = tiny_model(), tiny_model(hidden=24)
    convolutions = [sum(isinstance(part, torch.nn.Conv2d) for part in model.modules())
                    for model in (plain, hidden)]
    assert convolutions == [4, 2]
    seen = hidden.seen[0]
    assert (seen.first.out_channels, seen.second.in_features, seen.second.out_features) == (
        24, 24, CFG.width)
    assert [layer.out_features for layer in hidden.inputs if hasattr(layer, "out_features")] == [
        48, CFG.width]
    assert plain.num_features == hidden.num_features


def test_sampled_dreams_agree_with_greedy_ones_where_the_world_is_certain():
    model, (tokens, actions) = taught()
    context = tokens[:, :T], actions[:, :T - 1], replayed(actions[:, T - 1:])
    sampled = imagine(*(model, *context), horizon=2, features="hidden",
                      generator=torch.Generator().manual_seed(0))
    truth = tokens[:, T - 1:T + 2]
    assert (sampled.tokens == truth).all(-1).all(-1).float().mean() > 0.85


def test_a_dream_does_not_change_what_it_starts_from_and_depends_on_its_generator_alone():
    model, batch = tiny_model().eval(), any_batch()
    before = batch["tokens"].clone()
    dreams = [imagine(model, batch["tokens"], batch["actions"][:, :-1],
                      replayed(batch["actions"]), horizon=T, features="hidden",
                      generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(batch["tokens"], before)
    assert torch.equal(dreams[0].tokens, dreams[1].tokens)
    assert not torch.equal(dreams[0].tokens, dreams[2].tokens)


def test_places_that_form_no_square_and_contexts_of_another_length_are_refused():
    assert "must form a square; got 8" in refusal(PlaceModel, CFG, torch.randn(L, K, P), 8)
    model, batch = tiny_model(), any_batch()
    short = batch["tokens"][:, 1:]
    assert "codes must be int64 of shape (B, 3, 2, 9)" in refusal(
        imagine, model, short, batch["actions"][:, :-2], replayed(batch["actions"]), horizon=1,
        generator=torch.Generator(), features="hidden")
    assert "features of a model of places" in refusal(
        imagine, model, batch["tokens"], batch["actions"][:, :-1], replayed(batch["actions"]),
        horizon=1, generator=torch.Generator(), features="codes")
