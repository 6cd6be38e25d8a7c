"""The world model: masks through the full depth, layout, cache, rewards, loss, learning."""

import math

import numpy as np
import pytest
import torch
from tiny import refusal, stored_steps

from hd import world_model
from hd.config import PROFILES, InputError, WorldModelConfig
from hd.quantization import ResidualVQ
from hd.run import training
from hd.run.machine import device
from hd.run.training import Unkept
from hd.windows import Windows
from hd.world_model import (
    ACTION,
    LEVELS,
    MASKS,
    PREDICTED_AT,
    SLOTS,
    WorldModel,
    draw,
    hierarchical_mask,
    num_features,
)

B, T, L, K, A = 2, 5, 3, 7, 6
MAX_STEPS = 9
# In double precision an untouched output differs by rounding only, a touched one far more.
UNTOUCHED, TOUCHED = 1e-12, 1e-9


@pytest.fixture(autouse=True)
def one_thread():
    """On matrices this small a second thread costs more than it brings."""
    torch.set_num_threads(1)


def tiny_config(**changes):
    sizes = {"num_codes": K, "num_actions": A, "num_layers": 3, "dim": 24, "num_heads": 2,
             "ffn_dim": 40, "max_steps": MAX_STEPS}
    return WorldModelConfig(**sizes | changes)


def lively_model(codebooks=None, **changes):
    """In eval mode and double precision, with weights so large that every effect shows."""
    model = WorldModel(tiny_config(**changes), codebooks).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def any_steps(batch_size=B, num_steps=T):
    return (torch.randint(K, (batch_size, num_steps, L)),
            torch.randint(A, (batch_size, num_steps)))


def any_batch():
    tokens, actions = any_steps()
    return {"tokens": tokens, "actions": actions, "rewards": torch.randn(B, T),
            "continues": torch.rand(B, T).round()}


# ---- masks

TWO_STEPS = {
    #  query: L0 L1 L2 action of the first step, then of the second; 1 = may attend
    "causal": ["1000 0000", "1100 0000", "1110 0000", "1111 0000",
               "1111 1000", "1111 1100", "1111 1110", "1111 1111"],
    "hierarchical": ["1000 0000", "1100 0000", "1110 0000", "1111 0000",
                     "1111 1000", "1001 1100", "1001 1110", "1111 1111"],
    "seed": ["1000 0000", "1100 0000", "1110 0000", "1111 0000",
             "1111 1000", "1001 1100", "1001 1110", "1001 1111"],
    "strict": ["1000 0000", "1100 0000", "1110 0000", "1001 0000",
               "1001 1000", "1001 1100", "1001 1110", "1001 1001"],
}


@pytest.mark.parametrize("kind", MASKS)
def test_mask_of_two_steps_is_the_one_written_by_hand(kind):
    by_hand = [[bit == "1" for bit in line.replace(" ", "")] for line in TWO_STEPS[kind]]
    assert hierarchical_mask(2, kind).tolist() == by_hand


@pytest.mark.parametrize("kind", MASKS)
def test_no_position_sees_the_future_and_every_position_sees_itself(kind):
    mask = hierarchical_mask(T, kind)
    assert mask.shape == (4 * T, 4 * T)
    assert mask.dtype == torch.bool
    assert not mask.triu(1).any()
    assert mask.diagonal().all()


@pytest.mark.parametrize("kind", MASKS)
def test_within_a_step_a_position_sees_what_stands_left_of_it(kind):
    blocks = hierarchical_mask(T, kind).view(T, 4, T, 4)
    expected = torch.ones(4, 4).tril().bool()
    if kind == "strict":
        expected[3, 1:3] = False  # the action sees no detail, not even of its own step
    for t in range(T):
        assert torch.equal(blocks[t, :, t], expected)


@pytest.mark.parametrize("kind", MASKS)
def test_a_longer_mask_begins_with_the_shorter_one_and_treats_every_past_step_alike(kind):
    mask = hierarchical_mask(T, kind)
    assert torch.equal(mask[:12, :12], hierarchical_mask(3, kind))
    blocks = mask.view(T, 4, T, 4)
    for t in range(T):
        for past in range(t):
            assert torch.equal(blocks[t, :, past], blocks[1, :, 0])


def test_an_unknown_mask_is_refused_with_the_four_that_exist():
    with pytest.raises(InputError, match="'diagonal'; allowed: causal, hierarchical, seed, strict"):
        hierarchical_mask(T, "diagonal")


def influence(model, num_steps):
    """(4T, 4T) bool: does the output at the row's position move when the column's token does?

    Asserts that each output either moves visibly or stays as it was.
    """
    tokens, actions = any_steps(1, num_steps)
    steps = torch.cat([tokens, actions[..., None]], -1).view(1, -1)
    changed = steps + torch.eye(4 * num_steps, dtype=torch.long)  # row i changes position i
    changed = torch.cat([steps, changed]).view(-1, num_steps, 4)
    with torch.no_grad():
        hidden = model.hidden(changed[..., :3] % K, changed[..., 3] % A).flatten(1, 2)
    distance = (hidden[1:] - hidden[:1]).abs().amax(-1).T
    assert ((distance < UNTOUCHED) | (distance > TOUCHED)).all()
    return distance > TOUCHED


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("kind", MASKS)
def test_a_change_reaches_exactly_the_outputs_to_which_the_mask_opens_a_path(kind, num_layers):
    # A path of num_layers steps (a position may stay where it is): the mask's boolean power.
    paths = torch.linalg.matrix_power(hierarchical_mask(4, kind).double(), num_layers)
    model = lively_model(mask=kind, num_layers=num_layers)
    assert torch.equal(influence(model, 4), paths > 0)


def test_strict_carries_no_past_detail_to_any_later_step_nor_to_its_own_coarse_positions():
    moved = influence(lively_model(mask="strict", num_layers=6), T).view(T, 4, T, 4)
    for past in range(T):
        for detail in (1, 2):
            assert not moved[past + 1:, :, past, detail].any()
            assert not moved[past, (0, 3), past, detail].any()


@pytest.mark.parametrize("kind", ["hierarchical", "seed"])
def test_the_other_hierarchical_masks_carry_past_detail_indirectly_from_two_layers_on(kind):
    shallow = influence(lively_model(mask=kind, num_layers=1), T).view(T, 4, T, 4)
    deep = influence(lively_model(mask=kind, num_layers=2), T).view(T, 4, T, 4)
    assert not shallow[1, (1, 2), 0, 1:3].any()
    assert deep[1, (1, 2), 0, 1:3].all()


# ---- forward

def test_predictions_have_the_shapes_of_the_contract():
    out = WorldModel(tiny_config())(*any_steps())
    assert [x.shape for x in out.code_logits] == [(B, T - 1, K)] * L
    assert out.reward.shape == out.continue_logits.shape == (B, T)
    assert {x.dtype for x in (*out.code_logits, out.reward, out.continue_logits)} == {torch.float}


def moved_predictions(slot, t):
    """Which steps' predictions move when slot (0, 1, 2 codes, 3 action) of step t changes."""
    model, (tokens, actions) = lively_model(mask="causal"), any_steps()
    changed = tokens.clone(), actions.clone()
    part = changed[1][:, t] if slot == 3 else changed[0][:, t, slot]
    part.add_(1).remainder_(A if slot == 3 else K)
    with torch.no_grad():
        before, after = model(tokens, actions), model(*changed)
    pairs = zip([*before.code_logits, before.reward_logits, before.continue_logits[..., None]],
                [*after.code_logits, after.reward_logits, after.continue_logits[..., None]])
    return [[i for i in range(x.shape[1]) if (x[:, i] - y[:, i]).abs().max() > TOUCHED]
            for x, y in pairs]


def test_the_action_decides_the_next_codes_and_its_own_reward_but_nothing_before():
    assert moved_predictions(3, 2) == [[2, 3], [2, 3], [2, 3], [2, 3, 4], [2, 3, 4]]


def test_l0_is_predicted_before_it_is_seen_and_l1_and_l2_after():
    # Index 1 of the logits is about the codes of step 2.
    assert moved_predictions(0, 2) == [[2, 3], [1, 2, 3], [1, 2, 3], [2, 3, 4], [2, 3, 4]]


def test_l1_is_seen_by_l2_of_its_step_only():
    assert moved_predictions(1, 2) == [[2, 3], [2, 3], [1, 2, 3], [2, 3, 4], [2, 3, 4]]


def test_l2_is_seen_by_no_prediction_about_its_own_step():
    assert moved_predictions(2, 2) == [[2, 3], [2, 3], [2, 3], [2, 3, 4], [2, 3, 4]]


def test_the_expected_reward_is_the_decoded_reward_distribution():
    model = lively_model()
    out = model(*any_steps())
    torch.testing.assert_close(out.reward, model.two_hot.decode(out.reward_logits))


def test_an_untrained_model_expects_no_reward():
    # The far bins are at 22,025: their float32 sum cancels to about 1e-4.
    assert WorldModel(tiny_config())(*any_steps()).reward.abs().max() < 1e-3


def test_more_steps_than_the_model_reads_are_refused():
    model = WorldModel(tiny_config())
    model(*any_steps(num_steps=MAX_STEPS))
    with pytest.raises(InputError, match=f"at most {MAX_STEPS} steps; got {MAX_STEPS + 1}"):
        model(*any_steps(num_steps=MAX_STEPS + 1))
    with pytest.raises(InputError, match=f"{MAX_STEPS + 1} steps; the world model reads at most"):
        model.make_cache(B, MAX_STEPS + 1)


def test_another_number_of_levels_is_refused():
    with pytest.raises(InputError, match="num_levels=4"):
        WorldModel(tiny_config(num_levels=4))
    with pytest.raises(InputError, match=r"tokens \(B, T, 3\); got \(2, 5, 4\)"):
        WorldModel(tiny_config())(torch.zeros(B, T, 4, dtype=torch.long), any_steps()[1])


@pytest.mark.parametrize(("levels", "codes"), [(4, K), (1, K), (3, 9)])
def test_codebooks_of_other_levels_or_codes_are_refused_by_what_made_them(levels, codes):
    books = ResidualVQ(levels, codes, 4, commitment_costs=[0.1] * levels).codebooks
    for make in (world_model.build, lambda cfg, books: world_model.untrained(cfg, books, 0)):
        assert refusal(make, tiny_config(), books) == (
            f"the tokenizer has {levels} levels of {codes} codes; the world model reads 3 levels "
            f"of {K} codes")
    assert refusal(world_model.check_codebooks, tiny_config(), books, "A", "B").startswith(
        f"A has {levels} levels of {codes} codes; B reads 3 levels")


def test_the_desk_profile_has_the_seeds_eleven_million_parameters():
    cfg = PROFILES["desk"].world_model
    dim, ffn, codes = 384, 1536, 256
    embeddings = 3 * codes * dim + 18 * dim + 4 * dim + 4 * 64 * dim
    block = (3 * dim * dim + 3 * dim) + (dim * dim + dim) + 2 * dim * ffn + ffn + dim + 4 * dim
    code_heads = 3 * (codes * dim + codes)
    reward_and_continue = 2 * (dim * dim + dim) + (63 * dim + 63) + (dim + 1)
    expected = embeddings + 6 * block + 2 * dim + code_heads + reward_and_continue
    counted = sum(p.numel() for p in WorldModel(cfg).parameters())
    assert counted == expected == 11_665_216


# ---- key-value cache

@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("prefill", [1, 2, 9])
@pytest.mark.parametrize("kind", MASKS)
def test_extending_the_cache_gives_the_full_forwards_outputs(kind, prefill, batch_size):
    model, (tokens, actions) = lively_model(mask=kind), any_steps(batch_size)
    ids = torch.cat([tokens, actions[..., None]], -1).flatten(1)
    cache = model.make_cache(batch_size, T)
    found = [model.extend(ids[:, :prefill], cache)]
    found += [model.extend(one, cache) for one in ids[:, prefill:].split(1, 1)]
    with torch.no_grad():
        full = model.hidden(tokens, actions).flatten(1, 2)[:, prefill - 1:]
    torch.testing.assert_close(torch.stack(found, 1), full, rtol=0, atol=UNTOUCHED)


def test_the_cache_refuses_what_is_behind_its_last_step():
    model, step = lively_model(), torch.zeros(B, 4, dtype=torch.long)
    for num_steps in (2, MAX_STEPS):
        cache = model.make_cache(B, num_steps)
        for _ in range(num_steps):
            model.extend(step, cache)
        with pytest.raises(InputError, match=f"made for {num_steps} steps"):
            model.extend(step[:, :1], cache)


# ---- drawing codes

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_are_drawn_as_often_as_their_shares_say(dtype):
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.125, 0.375, 0.0], [0.9, 0.0, 0.01, 0.0, 0.0, 0.09]],
                          dtype=dtype)
    num_draws = 20_000
    drawn = draw((3 * shares).repeat_interleave(num_draws, 0), torch.Generator().manual_seed(0))
    counted = torch.stack([row.bincount(minlength=6) for row in drawn.view(2, -1)]) / num_draws
    deviations = (shares * (1 - shares) / num_draws).sqrt()
    assert ((counted - shares).abs() <= 5 * deviations).all()
    assert not counted[shares == 0].any(), "what has no share is never drawn"


def test_a_number_next_to_one_draws_the_last_code_that_has_a_share(monkeypatch):
    shares = torch.tensor([[0.3, 0.7, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]]) * 0.77
    for chance, expected in ((1 - 2**-24, [1, 3, 0]), (1.0, [1, 3, 0]), (0.0, [0, 0, 0])):
        monkeypatch.setattr(torch, "rand", lambda *size, chance=chance, **_: torch.full(
            size, chance))
        assert draw(shares, torch.Generator()).tolist() == expected


def test_each_row_draws_by_its_own_number_and_the_generator_decides():
    shares = torch.full((500, 7), 1 / 7)
    first, again, other = (draw(shares, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.dtype == torch.int64 and first.shape == (500,)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique()) == 7


# ---- features

def test_features_are_the_tokenizers_vectors_of_each_level_side_by_side():
    vq = ResidualVQ(L, K, 4)
    vq.codebooks.normal_()
    model, (tokens, _) = WorldModel(tiny_config(), vq.codebooks), any_steps()
    expected = vq.decode(tokens, per_level=True).flatten(-2)
    assert expected.shape == (B, T, L * 4)
    assert torch.equal(model.features(tokens), expected)
    assert torch.equal(model.features(tokens[:, 0]), expected[:, 0])


def test_what_the_model_makes_of_the_past_stands_before_the_codes():
    model, (tokens, _) = WorldModel(tiny_config(), torch.randn(L, K, 4)), any_steps()
    past = torch.randn(B, 24)
    found = model.features(tokens[:, 0], past)
    assert found.shape == (B, num_features(model, "hidden")) == (B, 24 + L * 4)
    assert torch.equal(found, torch.cat([past, model.features(tokens[:, 0])], -1))
    assert num_features(model, "codes") == L * 4


def test_slots_stand_in_the_order_of_the_layout_and_each_code_is_predicted_from_the_one_before():
    assert (*LEVELS, ACTION) == tuple(SLOTS) == (0, 1, 2, 3)
    assert {level: (level - 1) % len(SLOTS) for level in LEVELS} == PREDICTED_AT


def test_codebooks_are_stored_with_the_model_and_never_trained():
    given = torch.randn(L, K, 4)
    model, original = WorldModel(tiny_config(), given), given.clone()
    optimizer = training.make_optimizer(model, model.cfg)
    model.loss(any_batch()).total.backward()
    optimizer.step()
    given.zero_()  # what happens to the tokenizer later is none of the model's business
    assert torch.equal(model.codebooks, original)
    assert torch.equal(model.state_dict()["codebooks"], original)
    assert "codebooks" not in dict(model.named_parameters())


def test_features_without_codebooks_are_refused():
    with pytest.raises(InputError, match="no codebooks"):
        WorldModel(tiny_config()).features(torch.zeros(B, L, dtype=torch.long))


# ---- loss

def test_loss_is_the_weighted_sum_of_what_each_head_says_about_its_target():
    model, batch = lively_model(level_weights=(1.0, 0.5, 0.1)).float(), any_batch()
    out, loss = model(batch["tokens"], batch["actions"]), model.loss(batch)
    cross_entropy = [
        -np.mean([out.code_logits[level][b, t].log_softmax(0)[batch["tokens"][b, t + 1, level]]
                  .item() for b in range(B) for t in range(T - 1)]) for level in range(L)]
    keep = out.continue_logits.sigmoid()
    going_on = -(batch["continues"] * keep.log() + (1 - batch["continues"]) * (1 - keep).log())
    reward = model.two_hot.loss(out.reward_logits, batch["rewards"])
    by_hand = {**{f"l{level}_cross_entropy": x for level, x in enumerate(cross_entropy)},
               "codes": np.dot(cross_entropy, [1.0, 0.5, 0.1]),
               "reward": reward.mean().item(), "continue": going_on.mean().item()}
    assert {k: v.item() for k, v in loss.parts.items()} == pytest.approx(by_hand, rel=1e-5)
    assert loss.total.item() == pytest.approx(
        by_hand["codes"] + by_hand["reward"] + by_hand["continue"], rel=1e-5)


def test_an_untrained_model_pays_the_log_of_the_number_of_codes():
    parts = WorldModel(tiny_config()).loss(any_batch()).parts
    for level in range(L):
        assert parts[f"l{level}_cross_entropy"].item() == pytest.approx(math.log(K), abs=0.1)


def outcome_gradient(detach_heads):
    """Largest gradient that the reward and continue losses send into the transformer."""
    model = lively_model(detach_heads=detach_heads)
    parts = model.loss(any_batch() | {"continues": torch.ones(B, T).double()}).parts
    (parts["reward"] + parts["continue"]).backward()
    assert model.reward_head[0].weight.grad.abs().max() > 0
    assert model.continue_head[0].weight.grad.abs().max() > 0
    return max(0.0 if p.grad is None else p.grad.abs().max().item()
               for p in (*model.transformer.parameters(), *model.code_embeddings.parameters()))


def test_detached_heads_send_no_gradient_into_the_transformer():
    assert outcome_gradient(detach_heads=True) == 0.0


def test_heads_that_are_not_detached_train_the_transformer_too():
    assert outcome_gradient(detach_heads=False) > 1e-4


def test_every_parameter_learns_from_a_batch():
    model = WorldModel(tiny_config(max_steps=T))
    model.loss(any_batch()).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# ---- can it learn?

def clock_batch(batch_size=48, num_steps=6):
    """A clock of K hours that the action moves on; it pays at hour 0 and stops at hour 3."""
    actions = torch.randint(A, (batch_size, num_steps))
    start = torch.randint(K, (batch_size, 1))
    hours = torch.cat([start, start + actions.cumsum(1)], 1) % K
    tokens = torch.stack([hours, (3 * hours + 2) % K, (5 * hours + 1) % K], -1)
    return {"tokens": tokens[:, :-1], "actions": actions,
            "rewards": (hours[:, 1:] == 0).float(), "continues": (hours[:, 1:] != 3).float()}


def accuracies_after_training(lr):
    """Share of right guesses for L0, L1, L2, reward and continue on new data."""
    cfg = tiny_config(dim=32, num_layers=2, ffn_dim=64, dropout=0.0, lr=lr)
    model = WorldModel(cfg)
    optimizer = training.make_optimizer(model, cfg)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(clock_batch()).total.backward()
        optimizer.step()
    batch = clock_batch(200)
    with torch.no_grad():
        out = model.eval()(batch["tokens"], batch["actions"])
    right = [x.argmax(-1) == batch["tokens"][:, 1:, level]
             for level, x in enumerate(out.code_logits)]
    right += [out.reward.round() == batch["rewards"],
              (out.continue_logits > 0) == (batch["continues"] == 1)]
    return [x.float().mean().item() for x in right]


def test_a_clock_moved_by_actions_is_learned():
    assert min(accuracies_after_training(lr=5e-3)) > 0.95


def test_a_clock_moved_by_actions_is_not_learned_without_learning():
    codes = accuracies_after_training(lr=0.0)[:L]
    assert max(codes) < 0.4  # one in seven by chance


# ---- training on arrays, without a run or a folder

@pytest.fixture
def empty_root(tmp_path, monkeypatch):
    """Where a run would leave its files."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    return tmp_path


def clock_windows(**changes):
    """Windows of stored steps whose codes are an hour that the actions move on; and codebooks."""
    cfg = tiny_config(num_actions=18, num_layers=1, max_steps=T, batch_size=16,
                      **{"lr": 1e-2, "dropout": 0.0, "num_steps": 40, "eval_every": 20} | changes)
    data = stored_steps({"pong": (60, 80, 70), "breakout": (50, 40)}, held_out=(1, 4))
    hours = np.concatenate([[0], data.actions[:-1].cumsum()]) % K
    tokens = np.stack([hours, (3 * hours + 2) % K, (5 * hours + 1) % K], 1).astype(np.int16)
    return cfg, Windows(cfg, data, tokens, seed=0), torch.randn(L, K, 4).to(device())


def test_arrays_are_enough_to_train_on_and_nothing_is_written(empty_root):
    cfg, windows, books = clock_windows()
    model, record = world_model.train(cfg, windows, books, Unkept("world_model", seed=3))
    first, last = record["history"][0], record["history"][-1]
    assert last["step"] == cfg.num_steps and record["wall_seconds"] > 0
    assert last["val_codes"] < 0.8 * first["val_codes"]
    assert {"loss", "train_codes", "val_l0_accuracy", "val_l2_changed_accuracy"} <= set(last)
    assert not model.training and torch.equal(model.codebooks, books)
    assert list(empty_root.iterdir()) == []


def weights(model):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])


def test_the_seed_of_a_training_decides_its_weights():
    cfg, windows, books = clock_windows(lr=0.0, weight_decay=0.0)
    found = [weights(world_model.train(cfg, windows, books, Unkept("world_model", seed=seed))[0])
             for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(found[0], weights(world_model.untrained(cfg, books, 3)))


def test_a_model_that_is_given_goes_on_learning_instead_of_a_new_one():
    cfg, windows, books = clock_windows(lr=0.0, weight_decay=0.0)
    start = world_model.untrained(cfg, books, 8)
    before = weights(start)
    model, _ = world_model.train(cfg, windows, books, Unkept("world_model", seed=3), start=start)
    assert model is start and torch.equal(weights(model), before)


def test_codebooks_that_do_not_fit_are_refused_before_training():
    cfg, windows, books = clock_windows()
    assert "reads 3 levels of 7 codes" in refusal(
        world_model.train, cfg, windows, books[:, :5], Unkept("world_model"))
