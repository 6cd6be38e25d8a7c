"""Dreams: shapes, the right distribution, determinism, and the dream as an environment."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny import refusal

from hd.config import InputError, WorldModelConfig
from hd.imagination import DreamEnv, imagine, replayed
from hd.world_model import ACTION, MASKS, Dreamer, WorldModel

B, T, H, K, A, D = 2, 5, 4, 7, 6, 3
FEATURES = 3 * D
MAX_STEPS = 11


@pytest.fixture(autouse=True)
def one_thread():
    """On matrices this small a second thread costs more than it brings."""
    torch.set_num_threads(1)


def tiny_model(**changes):
    sizes = {"num_codes": K, "num_actions": A, "num_layers": 3, "dim": 24, "num_heads": 2,
             "ffn_dim": 40, "max_steps": MAX_STEPS}
    return WorldModel(WorldModelConfig(**sizes | changes), torch.randn(3, K, D)).eval()


def lively_model(**changes):
    """With weights so large that every token, action and reward shows."""
    model = tiny_model(**changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def clockwork(ends=False, reward_bin=31):
    """A model written by hand: L0' = (2a + 3) mod K, then L1 = (3 L0 + 1), L2 = (5 L1 + 2) mod K.

    Blocks pass their input on, embeddings are unit vectors, heads look them up.
    """
    model = tiny_model(num_layers=1)
    for parameter in (*model.transformer.blocks.parameters(), *model.code_heads.parameters(),
                      *model.reward_head.parameters(), *model.continue_head.parameters(),
                      model.position_embedding.weight, model.level_embedding.weight):
        torch.nn.init.zeros_(parameter)
    for table in (*model.code_embeddings, model.action_embedding):
        torch.nn.init.eye_(table.weight)
    with torch.no_grad():
        for action in range(A):
            model.code_heads[0].weight[(2 * action + 3) % K, action] = 50.0
        for code in range(K):
            model.code_heads[1].weight[(3 * code + 1) % K, code] = 50.0
            model.code_heads[2].weight[(5 * code + 2) % K, code] = 50.0
        model.reward_head[-1].bias[reward_bin] = 50.0
        model.continue_head[-1].bias.fill_(-50.0 if ends else 50.0)
    return model


def clockwork_codes(actions):
    """(B, H) actions -> (B, H, 3) the codes that follow them."""
    l0 = (2 * actions + 3) % K
    l1 = (3 * l0 + 1) % K
    return torch.stack([l0, l1, (5 * l1 + 2) % K], -1)


def any_context(batch_size=B, num_steps=T):
    return (torch.randint(K, (batch_size, num_steps, 3)),
            torch.randint(A, (batch_size, num_steps - 1)))


def any_act(features, generator):
    return torch.randint(A, (len(features),), generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- imagine

@pytest.mark.parametrize("num_steps", [1, T])
def test_rollouts_have_the_shapes_and_types_of_the_contract(num_steps):
    rollout = imagine(tiny_model(), *any_context(B, num_steps), any_act, horizon=H,
                      generator=seeded())
    assert rollout.tokens.shape == (B, H + 1, 3)
    assert rollout.features.shape == (B, H + 1, FEATURES)
    assert rollout.actions.shape == rollout.rewards.shape == rollout.continues.shape == (B, H)
    assert rollout.tokens.dtype == rollout.actions.dtype == torch.int64
    assert {x.dtype for x in (rollout.features, rollout.rewards, rollout.continues)} == {
        torch.float32}
    assert ((rollout.tokens >= 0) & (rollout.tokens < K)).all()
    assert ((rollout.continues >= 0) & (rollout.continues <= 1)).all()


def test_a_rollout_starts_at_the_last_real_step_and_its_features_are_those_of_its_tokens():
    model, (tokens, actions) = tiny_model(), any_context()
    rollout = imagine(model, tokens, actions, any_act, horizon=H, generator=seeded())
    assert torch.equal(rollout.tokens[:, 0], tokens[:, -1])
    assert torch.equal(rollout.features, model.features(rollout.tokens))


def test_the_policy_is_given_the_newest_features_and_the_generator():
    calls, generator = [], seeded()

    def act(features, given):
        calls.append((features, given))
        return any_act(features, given)

    rollout = imagine(tiny_model(), *any_context(), act, horizon=H, generator=generator)
    assert len(calls) == H
    for h, (features, given) in enumerate(calls):
        assert torch.equal(features, rollout.features[:, h])
        assert given is generator


def test_the_same_generator_dreams_the_same_dream_and_another_one_another():
    model, context = tiny_model(), any_context(16)
    dreams = [imagine(model, *context, any_act, horizon=H, generator=seeded(seed))
              for seed in (3, 3, 4)]
    for name in ("tokens", "actions", "rewards", "continues"):
        assert torch.equal(getattr(dreams[0], name), getattr(dreams[1], name))
    assert not torch.equal(dreams[0].tokens, dreams[2].tokens)


def test_dreaming_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    model, context = tiny_model(), any_context()
    torch.set_rng_state(before)
    imagine(model, *context, any_act, horizon=H, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_greedy_dream_needs_no_chance():
    model, context = lively_model(), any_context()
    act = torch.randint(A, (B, H))
    dreams = [imagine(model, *context, replayed(act), horizon=H, generator=seeded(seed),
                      greedy=True) for seed in (3, 4)]
    assert torch.equal(dreams[0].tokens, dreams[1].tokens)


@pytest.mark.parametrize("num_steps", [1, T])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_a_greedy_dream_is_what_the_full_forward_says(kind, batch_size, num_steps):
    model = lively_model(mask=kind).double()
    tokens, actions = any_context(batch_size, num_steps)
    acted = torch.randint(A, (batch_size, H))
    rollout = imagine(model, tokens, actions, replayed(acted), horizon=H, generator=seeded(),
                      greedy=True)
    whole = torch.cat([tokens, rollout.tokens[:, 1:]], 1)
    with torch.no_grad():
        # The action at the dream's last step is still open: any will do.
        out = model(whole, torch.cat([actions, acted, acted[:, :1]], 1))
    dreamed = slice(num_steps - 1, num_steps - 1 + H)
    for level, logits in enumerate(out.code_logits):
        assert torch.equal(logits[:, dreamed].argmax(-1), rollout.tokens[:, 1:, level])
    torch.testing.assert_close(rollout.rewards, out.reward[:, dreamed], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(rollout.continues, out.continue_logits[:, dreamed].float().sigmoid())
    assert rollout.rewards.std() > 1e-2  # or the comparison would compare nothing


@pytest.mark.parametrize("num_steps", [1, T])
@pytest.mark.parametrize("kind", MASKS)
def test_hidden_features_are_the_full_forwards_at_the_action_before_and_the_codes(kind, num_steps):
    model = lively_model(mask=kind).double()
    tokens, actions = any_context(B, num_steps)
    acted = torch.randint(A, (B, H))
    rollout = imagine(model, tokens, actions, replayed(acted), horizon=H, generator=seeded(),
                      features="hidden")
    assert rollout.features.shape == (B, H + 1, model.cfg.dim + FEATURES)
    whole = torch.cat([tokens, rollout.tokens[:, 1:]], 1)
    done = torch.cat([actions, acted, acted[:, :1]], 1)  # what is done last is not seen
    with torch.no_grad():
        at_actions = model.hidden(whole, done)[:, :-1, ACTION]
    before = torch.cat([torch.zeros_like(at_actions[:, :1]), at_actions], 1)  # nothing at first
    past, codes = rollout.features.split([model.cfg.dim, FEATURES], -1)
    torch.testing.assert_close(past, before[:, num_steps - 1:])
    assert torch.equal(codes, model.features(rollout.tokens))
    assert past.std(1).min() > 1e-3  # or the comparison would compare nothing


def test_hidden_features_are_where_the_next_codes_are_predicted_from():
    model, (tokens, actions) = lively_model(), any_context()
    rollout = imagine(model, tokens, actions, any_act, horizon=1, generator=seeded(),
                      features="hidden", greedy=True)
    assert rollout.features.dtype == torch.float32
    with torch.no_grad():
        logits = model.code_heads[0](rollout.features[:, 1, :model.cfg.dim])
    assert torch.equal(logits.argmax(-1), rollout.tokens[:, 1, 0])


def test_what_the_policy_sees_does_not_change_what_is_dreamed():
    model, context, acted = lively_model().double(), any_context(), torch.randint(A, (B, H))
    codes, hidden = (imagine(model, *context, replayed(acted), horizon=H, generator=seeded(),
                             features=features) for features in ("codes", "hidden"))
    assert torch.equal(codes.tokens, hidden.tokens)
    torch.testing.assert_close(codes.rewards, hidden.rewards, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(codes.continues, hidden.continues)
    assert torch.equal(codes.features, hidden.features[..., -FEATURES:])


def test_unknown_features_are_refused():
    with pytest.raises(InputError, match="unknown features 'pixels'; allowed: codes, hidden"):
        imagine(tiny_model(), *any_context(), any_act, horizon=H, generator=seeded(),
                features="pixels")


def test_sampled_codes_follow_the_models_joint_distribution_of_l0_and_l1():
    num_dreams, model = 4000, lively_model()
    tokens, actions = any_context(1)
    acted = torch.tensor([[2]])
    following = torch.stack([torch.arange(K)] * 3, -1)[:, None]  # each L0 that may come next
    whole = torch.cat([tokens.expand(K, -1, -1), following], 1)
    done = torch.cat([actions, acted, acted], 1).expand(K, -1)
    with torch.no_grad():
        logits = model(whole, done).code_logits
    shares = logits[0][0, -1].softmax(0)[:, None] * logits[1][:, -1].softmax(-1)
    rollout = imagine(model, tokens.expand(num_dreams, -1, -1), actions.expand(num_dreams, -1),
                      replayed(acted.expand(num_dreams, -1)), horizon=1, generator=seeded())
    cells = rollout.tokens[:, 1, 0] * K + rollout.tokens[:, 1, 1]
    counted = torch.bincount(cells, minlength=K * K).view(K, K) / num_dreams
    assert shares.max() > 2 / K ** 2  # not uniform, or any sampler would do
    five_deviations = 5 * (shares * (1 - shares) / num_dreams).sqrt() + 1 / num_dreams
    assert ((counted - shares).abs() < five_deviations).all()


@pytest.mark.parametrize("greedy", [False, True])
def test_a_deterministic_world_is_continued_as_it_must(greedy):
    acted = torch.randint(A, (B, H))
    rollout = imagine(clockwork(), *any_context(), replayed(acted), horizon=H,
                      generator=seeded(), greedy=greedy)
    assert torch.equal(rollout.tokens[:, 1:], clockwork_codes(acted))
    assert torch.equal(rollout.continues, torch.ones(B, H))


def test_replayed_actions_are_those_of_the_rollout():
    acted = torch.randint(A, (B, H))
    rollout = imagine(tiny_model(), *any_context(), replayed(acted), horizon=H, generator=seeded())
    assert torch.equal(rollout.actions, acted)


def test_a_dream_keeps_no_gradient_even_when_the_model_could_learn():
    rollout = imagine(tiny_model(), *any_context(), any_act, horizon=H, generator=seeded())
    assert not any(x.requires_grad for x in vars(rollout).values())


def test_a_context_with_as_many_actions_as_steps_is_refused():
    tokens, actions = any_context()
    too_many = torch.cat([actions, actions[:, :1]], 1)
    with pytest.raises(InputError, match=f"got {T} steps and {T} actions"):
        imagine(tiny_model(), tokens, too_many, any_act, horizon=H, generator=seeded())


def test_a_dream_beyond_what_the_model_reads_is_refused_before_it_starts():
    room = MAX_STEPS - T
    imagine(tiny_model(), *any_context(), any_act, horizon=room, generator=seeded())
    with pytest.raises(InputError, match=f"{MAX_STEPS + 1} steps; the world model reads at most"):
        imagine(tiny_model(), *any_context(), any_act, horizon=room + 1, generator=seeded())


@pytest.mark.parametrize(("tokens", "actions", "message"), [
    (torch.zeros(B, T, 2, dtype=torch.long), None, "codes must be int64 of shape (B, T, 3); got"),
    (torch.zeros(B, T, 3), None, "got torch.float32"),
    ([[[0, 0, 0]]], None, "got list of shape ()"),
    (torch.full((B, T, 3), K), None, f"codes must be from 0 to {K - 1}; got {K} to {K}"),
    (None, torch.full((B, T - 1), -1), f"actions must be from 0 to {A - 1}; got -1 to -1"),
    (None, torch.zeros(B + 1, T - 1, dtype=torch.long), "actions must be int64 of shape"),
])
def test_a_context_that_the_model_cannot_know_is_refused_in_one_line(tokens, actions, message):
    good = any_context()
    context = (good[0] if tokens is None else tokens, good[1] if actions is None else actions)
    assert message in refusal(imagine, tiny_model(), *context, any_act, horizon=H,
                              generator=seeded())


@pytest.mark.parametrize(("chosen", "message"), [
    (torch.zeros(1, dtype=torch.long), f"shape ({B}); got torch.int64 of shape (1,)"),
    (torch.zeros(B), "got torch.float32"),
    ([0] * B, "got list"),
    (torch.full((B,), A), f"chosen actions must be from 0 to {A - 1}; got {A} to {A}"),
])
def test_a_policy_that_does_not_choose_one_known_action_for_each_dream_is_refused(chosen, message):
    assert message in refusal(imagine, tiny_model(), *any_context(), lambda *seen: chosen,
                              horizon=H, generator=seeded())


def test_a_dream_of_no_step_is_refused():
    with pytest.raises(InputError, match="at least one step; got 0"):
        imagine(tiny_model(), *any_context(), any_act, horizon=0, generator=seeded())


@pytest.mark.parametrize("features", ["codes", "hidden"])
@pytest.mark.parametrize("horizon", [H, MAX_STEPS - T])
def test_a_dream_that_is_over_takes_no_further_step(horizon, features):
    with torch.no_grad():
        dream = Dreamer(tiny_model(), *any_context(), horizon=horizon, features=features)
        for _ in range(horizon):
            dream.step(torch.zeros(B, dtype=torch.long), seeded())
        with pytest.raises(InputError, match="all taken"):
            dream.step(torch.zeros(B, dtype=torch.long), seeded())


# ---- the dream as an environment

@pytest.mark.filterwarnings("ignore::UserWarning")  # advice on bounds and on a missing spec
def test_the_dream_passes_gymnasiums_checker():
    check_env(DreamEnv(tiny_model(), *any_context(), horizon=H))


def test_an_episode_is_truncated_at_the_horizon_and_not_before():
    env = DreamEnv(clockwork(), *any_context(), horizon=H)
    env.reset(seed=0)
    ends = [env.step(2)[2:4] for _ in range(H)]
    assert ends == [(False, False)] * (H - 1) + [(False, True)]


def test_an_episode_terminates_when_the_model_says_so():
    env = DreamEnv(clockwork(ends=True), *any_context(), horizon=H)
    env.reset(seed=0)
    assert env.step(2)[2:4] == (True, False)


def test_the_environment_shows_the_features_of_its_tokens_and_the_models_reward():
    model = clockwork(reward_bin=34)
    env = DreamEnv(model, *any_context(), horizon=H)
    features, info = env.reset(seed=0)
    assert features in env.observation_space
    for action in (4, 0, 5):
        features, reward, _, _, info = env.step(np.int64(action))
        assert info["tokens"].tolist() == clockwork_codes(torch.tensor(action)).tolist()
        shown = model.features(torch.from_numpy(info["tokens"])).numpy()
        np.testing.assert_array_equal(features, shown)
        # Bin 34 stands three steps of 20/62 above zero in symlog space.
        assert reward == pytest.approx(np.expm1(3 * 20 / 62), rel=1e-4)


def test_the_environment_can_show_what_the_model_makes_of_the_past():
    model, (tokens, actions) = lively_model(), any_context(1)
    env = DreamEnv(model, tokens, actions, horizon=H, features="hidden")
    features, _ = env.reset(seed=0)
    assert features in env.observation_space and features.shape == (model.cfg.dim + FEATURES,)
    with torch.no_grad():
        past = model.hidden(tokens[:, :-1], actions)[0, -1, ACTION]
        codes = model.features(tokens[0, -1])
    np.testing.assert_allclose(features, torch.cat([past, codes]), rtol=0, atol=1e-4)
    assert env.step(2)[0].shape == features.shape


def test_the_seed_decides_the_context_and_the_dream():
    env = DreamEnv(tiny_model(), *any_context(40), horizon=H)

    def episode(seed):
        _, info = env.reset(seed=seed)
        return [info["tokens"].tolist()] + [env.step(1)[4]["tokens"].tolist() for _ in range(H)]

    assert episode(5) == episode(5)
    assert episode(5) != episode(6)


def test_every_episode_starts_from_one_of_the_contexts():
    tokens, actions = any_context(40)
    env = DreamEnv(tiny_model(), tokens, actions, horizon=H)
    known = {tuple(last) for last in tokens[:, -1].tolist()}
    seen = {tuple(env.reset(seed=seed)[1]["tokens"].tolist()) for seed in range(15)}
    assert seen <= known
    assert len(seen) > 5


def test_render_gives_the_decoded_newest_frame_or_none_without_a_decoder():
    blind = DreamEnv(tiny_model(), *any_context(), horizon=H)
    blind.reset(seed=0)
    assert blind.render() is None
    drawn = []

    def decode(tokens):
        drawn.append(tokens)
        return np.full((len(tokens), 84, 84), 77, np.uint8)

    env = DreamEnv(tiny_model(), *any_context(), horizon=H, decode=decode)
    _, info = env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (84, 84, 3)
    assert frame.dtype == np.uint8
    assert (frame == 77).all()
    assert drawn[0].tolist() == [info["tokens"].tolist()]
    assert env.render_mode == "rgb_array"


def test_the_environments_actions_are_the_models():
    env = DreamEnv(tiny_model(), *any_context(), horizon=H)
    assert env.action_space == gymnasium.spaces.Discrete(A)
    assert env.observation_space.shape == (FEATURES,)
