"""Actor, critic and their losses: closed forms, and bandits that are learned inside a dream."""

import math

import numpy as np
import pytest
import torch
from tiny import refusal, stored_steps

from hd import config, policy
from hd.atari import GAMES
from hd.config import InputError, PolicyConfig, WorldModelConfig
from hd.imagination import Rollout
from hd.policy import Actor, ActorCritic, Critic, lambda_returns, ppo_objective
from hd.run import training
from hd.run.machine import device
from hd.run.training import Unkept
from hd.two_hot import TwoHot
from hd.world_model import SLOTS, WorldModel, num_features

B, T, H, K, D = 2, 3, 5, 7, 8
FEATURES = 3 * D
LEGAL = (0, 1, 3, 4, 11, 12)
GAMMA, LAM = 0.9, 0.8


@pytest.fixture(autouse=True)
def one_thread():
    """On matrices this small a second thread costs more than it brings."""
    torch.set_num_threads(1)


def tiny_config(**changes):
    return PolicyConfig(**{"hidden": 32, "horizon": H, "gamma": GAMMA, "lam": LAM} | changes)


def tiny_dream(kind=WorldModel, **changes):
    sizes = {"num_codes": K, "num_layers": 1, "dim": 12, "num_heads": 2, "ffn_dim": 20,
             "max_steps": T + H}
    return kind(WorldModelConfig(**sizes | changes), torch.randn(3, K, D)).eval()


def agent_in(dream=None, **changes):
    return ActorCritic(tiny_config(**changes), dream or tiny_dream(), LEGAL, FEATURES)


def contexts(batch_size=B, ppo_pass=0):
    return {"tokens": torch.randint(K, (batch_size, T, 3)),
            "actions": torch.randint(18, (batch_size, T - 1)), "pass": ppo_pass}


def any_rollout():
    legal = torch.tensor(LEGAL)
    return Rollout(torch.randint(K, (B, H + 1, 3)), torch.randn(B, H + 1, FEATURES),
                   legal[torch.randint(len(LEGAL), (B, H))], torch.randn(B, H) * 3,
                   torch.rand(B, H))


def scored(agent, rollout, ppo_pass=0):
    """The loss of a given rollout."""
    agent.dream = lambda tokens, actions, generator: rollout
    return agent.loss(contexts(ppo_pass=ppo_pass))


def randomised(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


# ---- lambda-returns

def test_lambda_returns_of_three_steps_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    continues = torch.tensor([[1.0, 0.5, 1.0]])
    values = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    third = 3 + 0.9 * 40
    second = 2 + 0.9 * 0.5 * (0.2 * 30 + 0.8 * third)
    first = 1 + 0.9 * (0.2 * 20 + 0.8 * second)
    returns = lambda_returns(rewards, continues, values, gamma=0.9, lam=0.8)
    torch.testing.assert_close(returns, torch.tensor([[first, second, third]]))


def any_trajectory():
    return torch.randn(B, H), torch.rand(B, H), torch.randn(B, H + 1)


def test_lambda_zero_looks_one_step_ahead():
    rewards, continues, values = any_trajectory()
    returns = lambda_returns(rewards, continues, values, gamma=GAMMA, lam=0.0)
    torch.testing.assert_close(returns, rewards + GAMMA * continues * values[:, 1:])


def test_lambda_one_sums_all_rewards_and_the_last_value():
    rewards, continues, values = any_trajectory()
    returns = lambda_returns(rewards, continues, values, gamma=GAMMA, lam=1.0)
    for t in range(H):
        expected, discount = torch.zeros(B), torch.ones(B)
        for later in range(t, H):
            expected += discount * rewards[:, later]
            discount = discount * GAMMA * continues[:, later]
        torch.testing.assert_close(returns[:, t], expected + discount * values[:, H])


def test_nothing_behind_the_end_of_an_episode_counts():
    rewards, continues, values = any_trajectory()
    continues[:, 2] = 0.0
    before = lambda_returns(rewards, continues, values, gamma=GAMMA, lam=LAM)
    rewards[:, 3:], values[:, 3:], continues[:, 3:] = 99.0, -99.0, 1.0
    after = lambda_returns(rewards, continues, values, gamma=GAMMA, lam=LAM)
    assert torch.equal(before[:, :3], after[:, :3])
    assert torch.equal(before[:, 2], rewards[:, 2])


# ---- PPO's objective

@pytest.mark.parametrize("ratio, advantage, expected", [
    (1.0, 2.0, 2.0), (1.1, 2.0, 2.2), (1.5, 2.0, 2.4), (0.5, 2.0, 1.0),
    (1.1, -2.0, -2.2), (1.5, -2.0, -3.0), (0.5, -2.0, -1.6), (0.9, -2.0, -1.8)])
def test_ppo_clips_what_would_move_the_policy_too_far(ratio, advantage, expected):
    old = torch.tensor([-1.3])
    value = ppo_objective(old + math.log(ratio), old, torch.tensor([advantage]), clip=0.2)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_ppo_gives_no_gradient_beyond_the_clip_and_the_policy_gradient_at_ratio_one():
    log_probs = torch.tensor([math.log(1.5), math.log(0.5), 0.0, 0.0], requires_grad=True)
    advantages = torch.tensor([2.0, -2.0, 2.0, -3.0])
    ppo_objective(log_probs, torch.zeros(4), advantages, clip=0.2).sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([0.0, 0.0, 2.0, -3.0]))


# ---- actor

def test_the_actor_gives_no_probability_to_actions_the_game_lacks():
    probabilities = randomised(Actor(tiny_config(), FEATURES, LEGAL))(
        torch.randn(B, T, FEATURES)).exp()
    illegal = [i for i in range(18) if i not in LEGAL]
    assert probabilities.shape == (B, T, 18)
    assert (probabilities[..., illegal] == 0).all()
    assert (probabilities[..., list(LEGAL)] > 0).all()


def test_the_actors_probabilities_sum_to_one():
    log_probs = randomised(Actor(tiny_config(), FEATURES, LEGAL))(torch.randn(B, T, FEATURES))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(B, T))


def test_the_uniform_mixture_is_a_floor_for_every_legal_action():
    actor = Actor(tiny_config(uniform_mix=0.12), FEATURES, LEGAL)
    with torch.no_grad():
        actor.layers[-1].bias[3] = 1e4  # as sure as can be
    probabilities = actor(torch.randn(B, FEATURES)).exp()
    floor = 0.12 / len(LEGAL)
    expected = torch.full((B, len(LEGAL)), floor)
    expected[:, LEGAL.index(3)] = 1 - 0.12 + floor
    torch.testing.assert_close(probabilities[:, list(LEGAL)], expected)


def test_without_a_mixture_the_actor_is_the_softmax_over_legal_actions():
    actor, features = Actor(tiny_config(uniform_mix=0.0), FEATURES, LEGAL), torch.randn(B, FEATURES)
    expected = actor.layers(features)[:, list(LEGAL)].log_softmax(-1)
    torch.testing.assert_close(actor(features)[:, list(LEGAL)], expected)


def test_actions_are_drawn_with_the_actors_probabilities_and_by_the_generator():
    actor, num_draws = randomised(Actor(tiny_config(), FEATURES, LEGAL)), 6000
    features = torch.randn(1, FEATURES)
    shares = actor(features).exp()[0]
    draws = [actor.act(features.expand(num_draws, -1), torch.Generator().manual_seed(seed))
             for seed in (1, 1, 2)]
    assert draws[0].shape == (num_draws,)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    counted = torch.bincount(draws[0], minlength=18) / num_draws
    assert ((counted - shares).abs() <= 5 * (shares * (1 - shares) / num_draws).sqrt()).all()


# ---- critic

@pytest.mark.parametrize("kind", ["two_hot", "scalar"])
def test_values_start_at_zero(kind):
    critic = Critic(tiny_config(critic=kind), FEATURES)
    # The far two-hot bins are at 22,025: their float32 sum cancels to about 1e-4.
    assert critic(torch.randn(B, T, FEATURES)).abs().max() < 1e-3


def test_the_two_hot_critic_pays_the_likelihood_of_its_target():
    critic = randomised(Critic(tiny_config(critic="two_hot"), FEATURES))
    features, targets = torch.randn(B, T, FEATURES), torch.randn(B, T) * 20
    logits, two_hot = critic.layers(features), TwoHot()
    torch.testing.assert_close(critic(features), two_hot.decode(logits))
    torch.testing.assert_close(critic.loss(features, targets), two_hot.loss(logits, targets))


def test_the_scalar_critic_pays_half_the_squared_error():
    critic = randomised(Critic(tiny_config(critic="scalar"), FEATURES))
    features, targets = torch.randn(B, T, FEATURES), torch.randn(B, T)
    assert critic(features).shape == (B, T)
    torch.testing.assert_close(critic.loss(features, targets),
                               (critic(features) - targets).square() / 2)


@pytest.mark.parametrize("kind", ["two_hot", "scalar"])
def test_a_critic_learns_the_value_it_is_shown(kind):
    critic = Critic(tiny_config(critic=kind), FEATURES)
    features, targets = torch.randn(2, FEATURES), torch.tensor([-3.0, 12.0])
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        critic.loss(features, targets).mean().backward()
        optimizer.step()
    torch.testing.assert_close(critic(features), targets, rtol=0, atol=0.3)


def test_the_slow_critic_moves_by_its_share_and_only_then():
    agent = agent_in(critic_ema=0.9)
    randomised(agent.critic)
    before = [p.clone() for p in agent.slow_critic.parameters()]
    scored(agent, any_rollout()).total.backward()
    assert all(torch.equal(p, old) for p, old in zip(agent.slow_critic.parameters(), before))
    agent.after_step()
    for slow, old, fast in zip(agent.slow_critic.parameters(), before, agent.critic.parameters()):
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast)


def test_the_slow_critic_starts_as_the_critic_and_takes_no_gradient():
    agent = agent_in()
    pairs = zip(agent.slow_critic.parameters(), agent.critic.parameters())
    assert all(torch.equal(slow, fast) for slow, fast in pairs)
    scored(agent, any_rollout()).total.backward()
    assert not any(p.requires_grad for p in agent.slow_critic.parameters())
    assert all(p.grad is None for p in agent.slow_critic.parameters())
    assert all(p.grad is not None for p in agent.critic.parameters())


# ---- losses on a rollout

def parts_by_hand(agent, rollout, return_range):
    """Actor and critic loss of the first pass over a rollout, written out step by step."""
    cfg, features = agent.cfg, rollout.features
    with torch.no_grad():
        values = agent.slow_critic(features)
        log_probs = agent.actor(features[:, :-1])
    returns = lambda_returns(rollout.rewards, rollout.continues, values, gamma=GAMMA, lam=LAM)
    scale = max(1.0, return_range[1] - return_range[0])
    actor, critic = [], []
    for b in range(B):
        alive = 1.0
        for t in range(H):
            taken, advantage = rollout.actions[b, t], (returns[b, t] - values[b, t]) / scale
            legal = log_probs[b, t, list(LEGAL)]
            entropy = -(legal.exp() * legal).sum()
            # PPO's first pass has ratio 1, so its objective is the advantage itself.
            objective = advantage * (1.0 if cfg.loss == "ppo" else log_probs[b, t, taken])
            actor.append(-alive * (objective + cfg.entropy * entropy).item())
            critic.append(alive * sum(agent.critic.loss(features[b, t], target).item()
                                      for target in (returns[b, t], values[b, t])))
            alive *= rollout.continues[b, t].item()
    return {"actor": np.mean(actor), "critic": np.mean(critic)}, returns


@pytest.mark.parametrize("loss", ["reinforce", "ppo"])
@pytest.mark.parametrize("critic", ["two_hot", "scalar"])
def test_loss_is_the_formula_written_out_step_by_step(loss, critic):
    agent, rollout = agent_in(loss=loss, critic=critic, entropy=0.3), any_rollout()
    randomised(agent.actor)
    for network in (agent.critic, agent.slow_critic):
        torch.nn.init.normal_(network.layers[-1].weight, std=1e-3)  # values of order 1
    result = scored(agent, rollout)
    expected, returns = parts_by_hand(agent, rollout, agent.return_range.tolist())
    got = {name: result.parts[name].item() for name in expected}
    assert got == pytest.approx(expected, rel=1e-4)
    assert result.total.item() == pytest.approx(sum(expected.values()), rel=1e-4)
    assert result.parts["imagined_return"].item() == pytest.approx(returns[:, 0].mean().item())
    assert result.parts["imagined_reward"].item() == pytest.approx(rollout.rewards.mean().item())


def test_the_entropy_of_an_actor_without_preference_is_the_log_of_its_choices():
    agent = agent_in()
    for parameter in agent.actor.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    entropy = scored(agent, any_rollout()).parts["entropy"].item()
    assert entropy == pytest.approx(math.log(len(LEGAL)), rel=1e-5)


def test_steps_behind_a_certain_end_teach_nothing():
    agent, rollout = agent_in(), any_rollout()
    randomised(agent)
    rollout.continues[:, 1] = 0.0
    rollout.features.requires_grad_()
    scored(agent, rollout).total.backward()
    moved = rollout.features.grad.abs().sum(-1)
    assert (moved[:, :2] > 0).all()
    assert (moved[:, 2:] == 0).all()


def test_the_return_range_is_a_mean_of_percentiles_first_and_a_moving_average_later():
    agent = agent_in(return_decay=0.6)
    found = []
    for _ in range(4):
        rollout = any_rollout()
        scored(agent, rollout)
        returns = lambda_returns(rollout.rewards, rollout.continues, torch.zeros(B, H + 1),
                                 gamma=GAMMA, lam=LAM)
        found.append(np.percentile(returns.numpy(), [5, 95]))
        # Shares of the newest: 1, 1/2, then 0.4 for good, as 1/3 is less.
        expected = found[0]
        for share, newest in zip((1 / 2, 0.4, 0.4), found[1:]):
            expected = (1 - share) * expected + share * newest
        np.testing.assert_allclose(agent.return_range, expected, rtol=0, atol=1e-3)


def test_small_returns_are_not_blown_up():
    agent, rollout = agent_in(entropy=0.0), any_rollout()
    rollout.rewards.mul_(1e-2)
    expected, _ = parts_by_hand(agent, rollout, (0.0, 0.0))
    assert scored(agent, rollout).parts["actor"].item() == pytest.approx(
        expected["actor"], rel=1e-3)
    assert agent.return_range.diff() < 1


def test_ppo_reuses_the_dream_of_pass_zero_and_reinforce_dreams_anew():
    for loss, num_dreams in (("ppo", 2), ("reinforce", 6)):
        agent, dreamt = agent_in(loss=loss), []
        dream = agent.dream

        def counted(tokens, actions, generator, dream=dream, dreamt=dreamt):
            dreamt.append(1)
            return dream(tokens, actions)

        agent.dream = counted
        for i in range(6):
            agent.loss(contexts(ppo_pass=i % 3))
        assert len(dreamt) == num_dreams


def test_ppo_measures_its_later_passes_against_the_policy_of_pass_zero():
    agent, rollout = agent_in(loss="ppo", ppo_clip=0.2), any_rollout()
    first = scored(agent, rollout).parts["actor"]
    randomised(agent.actor)  # far away, so that ratios leave the clip
    clipped = scored(agent, rollout, ppo_pass=1).parts["actor"]
    afresh = scored(agent, rollout, ppo_pass=0).parts["actor"]
    assert clipped.item() != pytest.approx(afresh.item(), rel=1e-3)
    assert first.item() == pytest.approx(afresh.item(), rel=1e-3)  # ratio 1 in pass 0


def test_every_epoch_deals_the_dreams_into_minibatches_anew(monkeypatch):
    agent = agent_in(loss="ppo", ppo_epochs=3, ppo_minibatches=2)
    assert agent.num_passes == 6
    seen, score = [], agent._score
    monkeypatch.setattr(agent, "_score", lambda rollout, *rest: (
        seen.append((rollout, *rest)), score(rollout, *rest))[1])
    for ppo_pass in range(6):
        agent.loss(contexts(8, ppo_pass) | {"seed": 5})
    whole = agent._dreamt
    targets = [whole[name] for name in ("returns", "values", "alive")]
    rows = [[int((whole["features"] == features).all(-1).all(-1).nonzero()[0])
             for features in part.features] for part, *_ in seen]
    epochs = [rows[2 * epoch] + rows[2 * epoch + 1] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs) and epochs[0] != epochs[1]
    for dealt, (part, *dealt_targets, old) in zip(rows, seen):
        assert torch.equal(part.actions, whole["actions"][dealt])
        assert torch.equal(part.rewards, whole["rewards"][dealt])
        assert torch.equal(old, whole["log_probs"][dealt])
        for one, of_all in zip(dealt_targets, targets):
            assert torch.equal(one, of_all[dealt])


def test_a_dream_starts_from_the_context_and_lasts_for_the_horizon():
    agent, batch = agent_in(), contexts()
    rollout = agent.dream(batch["tokens"], batch["actions"])
    assert torch.equal(rollout.tokens[:, 0], batch["tokens"][:, -1])
    assert rollout.actions.shape == (B, H)
    assert set(rollout.actions.flatten().tolist()) <= set(LEGAL)


def test_the_global_seed_decides_the_dream():
    agent, batch, dreams = agent_in(), contexts(16), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        dreams.append(agent.dream(batch["tokens"], batch["actions"]).tokens)
    assert torch.equal(dreams[0], dreams[1])
    assert not torch.equal(dreams[0], dreams[2])


def test_an_agent_that_sees_the_hidden_state_dreams_and_learns_from_features_of_that_width():
    dream = tiny_dream()
    agent = ActorCritic(tiny_config(features="hidden"), dream, LEGAL,
                        num_features(dream, "hidden"))
    batch = contexts()
    assert agent.dream(batch["tokens"], batch["actions"]).features.shape == (
        B, H + 1, 12 + FEATURES)
    agent.loss(batch).total.backward()
    assert all(p.grad is not None for p in agent.actor.parameters())


@pytest.mark.parametrize("variant", ["base", "policy_horizon.short", "policy_horizon.long"])
def test_a_dream_longer_than_the_smoke_model_reads_is_refused_in_one_line(variant):
    profile = config.resolve("smoke", variant)
    dream = WorldModel(profile.world_model, torch.randn(3, 256, D)).eval()
    agent = ActorCritic(profile.policy, dream, LEGAL, FEATURES)
    context = profile.policy.context
    batch = {"tokens": torch.randint(K, (B, context, 3)),
             "actions": torch.randint(18, (B, context - 1)), "pass": 0}
    if variant == "policy_horizon.long":
        with pytest.raises(InputError, match="together are 38 steps; the world model "
                                             "reads at most 24") as refused:
            agent.loss(batch)
        assert "\n" not in str(refused.value)
    else:
        assert torch.isfinite(agent.loss(batch).total)


# ---- can it learn?

class Bandit(WorldModel):
    """A dream that pays 1 for action 3 while L0 is even, for action 11 while it is odd."""

    def right_actions(self, tokens):
        return torch.where(tokens[..., 0] % 2 == 0, 3, 11)

    def features(self, tokens, past=None):
        self.seen = tokens
        return super().features(tokens, past)

    def extend(self, ids, cache):
        if (cache.length + ids.shape[1]) % len(SLOTS) == 0:  # up to an action
            self.acted = ids[:, -1]
        return super().extend(ids, cache)

    def outcome(self, hidden):
        paid = (self.acted == self.right_actions(self.seen)).float()
        return None, paid, torch.full_like(paid, 50.0)


def trained_in_bandit(num_steps=100, **changes):
    """The agent and its dream after num_steps steps of a plain training loop."""
    dream = tiny_dream(Bandit)
    # Far apart: among codes that lie mixed a policy gradient may give up the odd one out.
    torch.nn.init.eye_(dream.codebooks[0]).mul_(4)
    agent = agent_in(dream, entropy=0.03, **changes).train()
    optimizer = training.make_optimizer(agent, agent.cfg)
    for step in range(num_steps):
        optimizer.zero_grad()
        agent.loss(contexts(96, ppo_pass=step % 4)).total.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), agent.cfg.clip)
        optimizer.step()
        agent.after_step()
    return agent, dream


def chance_of_right_action(agent, dream):
    """Mean probability, over all L0, of the action that pays there."""
    tokens = torch.randint(K, (K, 3))
    tokens[:, 0] = torch.arange(K)
    with torch.no_grad():
        probabilities = agent.actor(dream.features(tokens)).exp()
    return probabilities.gather(1, dream.right_actions(tokens)[:, None]).mean().item()


@pytest.mark.parametrize("loss", ["reinforce", "ppo"])
def test_the_action_that_pays_in_each_state_is_learned(loss):
    assert chance_of_right_action(*trained_in_bandit(loss=loss, lr=5e-3)) > 0.9


def test_the_scalar_critic_learns_the_bandit_too():
    assert chance_of_right_action(*trained_in_bandit(critic="scalar", lr=5e-3)) > 0.9


@pytest.mark.parametrize("loss", ["reinforce", "ppo"])
def test_nothing_is_learned_without_learning(loss):
    assert chance_of_right_action(*trained_in_bandit(loss=loss, lr=0.0)) < 0.4  # 1/6 by chance


def test_the_world_model_stays_frozen():
    agent, _ = trained_in_bandit(num_steps=0)
    dream = agent._dream_in[0]
    before = {name: value.clone() for name, value in dream.state_dict().items()}
    optimizer = training.make_optimizer(agent, tiny_config(lr=1e-2))
    for _ in range(3):
        agent.loss(contexts()).total.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in dream.state_dict().items())
    assert all(p.grad is None for p in dream.parameters())
    assert not dream.training


def test_the_world_model_is_no_part_of_what_is_trained_or_stored():
    agent = agent_in()
    networks = {name.split(".")[0] for name in agent.state_dict()}
    assert networks == {"actor", "critic", "slow_critic", "return_range", "num_ranges"}


# ---- training on arrays, without a run or a folder

def test_a_model_that_learned_indices_reads_ale_ids_in_the_policys_dream():
    dream = tiny_dream(actions="index")
    learned = dream.action_embedding.weight.detach().clone()
    assert policy.with_ale_ids(dream, "pong") is dream
    for index, action in enumerate(GAMES["pong"].actions):
        assert torch.equal(dream.action_embedding.weight[action], learned[index])


def test_a_model_that_learned_ale_ids_is_left_as_it_is():
    dream = tiny_dream()
    learned = dream.action_embedding.weight.detach().clone()
    policy.with_ale_ids(dream, "pong")
    assert torch.equal(dream.action_embedding.weight, learned)


def steps_to_dream_from(lengths=(20, 30, 25)):
    """Stored steps of Breakout, the second episode held out, and codes at random."""
    data = stored_steps({"pong": (40,), "breakout": lengths}, held_out=(2,))
    return data, np.random.default_rng(1).integers(0, K, (len(data), 3)).astype(np.int16)


def train_on_arrays(*, seed=0, **changes):
    cfg = tiny_config(**{"game": "breakout", "context": T, "batch_size": 4, "num_steps": 3}
                      | changes)
    dream = tiny_dream().to(device())
    return policy.train(cfg, dream, *steps_to_dream_from(), Unkept("policy", seed=seed))


def test_arrays_are_enough_to_train_on_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    agent, record = train_on_arrays()
    assert record["history"][-1]["step"] == 3 and record["wall_seconds"] > 0
    assert all(math.isfinite(entry["imagined_return"]) for entry in record["history"])
    assert agent.actor.is_legal.nonzero().flatten().tolist() == list(GAMES["breakout"].actions)
    assert not agent.training and list(tmp_path.iterdir()) == []


def test_the_seed_of_a_training_decides_the_policy():
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(9)  # the same world model
        agent, _ = train_on_arrays(seed=seed)
        found.append(torch.cat([p.detach().flatten().cpu() for p in agent.actor.parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize(("loss", "passes"), [("reinforce", 1), ("ppo", 2)])
def test_a_policy_dreams_on_from_training_episodes_of_its_own_game_only(monkeypatch, loss, passes):
    seen = []

    def watched(agent, batches, cfg, run, *, checkpoint_every):
        seen.extend(batches(i) for i in range(40))
        assert checkpoint_every == passes
        return {"history": []}

    monkeypatch.setattr(training, "train", watched)
    train_on_arrays(loss=loss, ppo_epochs=2)
    data, tokens = steps_to_dream_from()
    first = {tuple(tokens[row].tolist() + tokens[row + 1].tolist()): row
             for row in range(len(data) - 1)}
    rows = [first[tuple(context[:2].flatten().tolist())] for batch in seen
            for context in batch["tokens"]]
    # Rows 0 to 39 are Pong's, 60 to 89 are held out.
    assert {row // 10 for row in rows} <= {4, 5, 9, 10, 11} and len(set(rows)) > 20
    assert [batch["pass"] for batch in seen[:4]] == [i % passes for i in range(4)]
    assert torch.equal(seen[0]["tokens"], seen[1]["tokens"]) == (passes == 2)
    for batch, row in zip(seen, rows[::4]):
        assert batch["actions"][0].tolist() == data.actions[row:row + T - 1].tolist()


def test_episodes_shorter_than_the_context_are_refused_in_one_line():
    assert refusal(train_on_arrays, context=26) == (
        "no training episode of breakout has 26 steps; lower policy.context or collect more frames")
