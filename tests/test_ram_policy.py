"""hd.measure.ram_policy: what it sees of RAM, how it acts, what the search finds."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from hd.atari import GAMES
from hd.config import InputError, RamPolicyConfig
from hd.measure import ram_policy
from hd.measure.ram_policy import RamPolicy, features, train

TINY = RamPolicyConfig(population=5, elites=2, generations=3, episodes=2, max_steps=30)


def ram_of(game, *, changes=(), **values):
    """RAM (128,) with the named state variables set, and addresses of no meaning changed."""
    ram = np.zeros(128, np.uint8)
    for address, value in (*changes, *((GAMES[game].labels[k], v) for k, v in values.items())):
        ram[address] = value
    return ram


def test_features_are_positions_and_their_changes_and_no_other_part_of_ram_matters():
    before = ram_of("breakout", player_x=100, ball_x=250, ball_y=9, score=7)
    now = ram_of("breakout", player_x=90, ball_x=3, ball_y=11, score=99, changes=[(1, 44)])
    assert features("breakout", now, before).tolist() == [90, 3, 11, -10, -247, 2]
    both = features("breakout", np.stack([now, before]), np.stack([before, before]))
    assert both.shape == (2, 6)
    assert both[1].tolist() == [100, 250, 9, 0, 0, 0]


@pytest.mark.parametrize(("game", "count"), [("pong", 4), ("breakout", 3), ("ms_pacman", 12)])
def test_positions_are_the_labels_of_places_and_never_a_score(game, count):
    found = ram_policy.addresses(game).tolist()
    names = [name for name, address in GAMES[game].labels.items() if address in found]
    assert len(names) == len(found) == count
    assert all(name.endswith(("_x", "_y")) for name in names)


def follower():
    """In Breakout: right (3) while the ball is right of the paddle, else left (4)."""
    weights, bias = np.zeros((4, 6)), np.array([-1.0, -1.0, 0.0, 0.0])
    weights[2] = [-1, 1, 0, 0, 0, 0]
    return RamPolicy("breakout", weights, bias)


def test_the_action_with_the_largest_function_of_the_features_is_taken():
    agent = follower()
    right = ram_of("breakout", player_x=50, ball_x=51)
    left = ram_of("breakout", player_x=50, ball_x=49)
    assert agent.actions(right, right) == 3
    assert agent.actions(np.stack([left, right]), np.stack([left, left])).tolist() == [4, 3]


def test_every_episode_is_compared_with_its_own_last_step_and_a_new_one_with_itself():
    weights = np.zeros((4, 6))
    weights[3, 4] = 1.0  # LEFT when the ball has moved to the right
    act = RamPolicy("breakout", weights, np.array([0.5, 0, 0, 0])).act()

    def chosen(episodes, steps, balls):
        ram = np.stack([ram_of("breakout", ball_x=ball) for ball in balls])
        seen = SimpleNamespace(episodes=np.array(episodes), steps=np.array(steps), ram=ram)
        return act(seen, None).tolist()

    assert chosen([0, 1], [0, 0], [10, 90]) == [0, 0]
    assert chosen([0, 1], [1, 1], [20, 80]) == [4, 0]
    assert chosen([1, 2], [2, 0], [85, 200]) == [4, 0]
    assert chosen([1, 2], [0, 1], [99, 201]) == [0, 4], "episode 1 has begun anew"


def test_weights_found_for_standardised_features_act_the_same_on_ram():
    rng = np.random.default_rng(0)
    drawn, centre, spread = rng.normal(size=(6, 9)), rng.normal(size=8) * 50, rng.uniform(1, 9, 8)
    agent = ram_policy._unscaled("pong", drawn, centre, spread)
    ram, previous = rng.integers(0, 256, (2, 40, 128)).astype(np.uint8)
    z = (features("pong", ram, previous) - centre) / spread
    expected = np.array(GAMES["pong"].actions)[(z @ drawn[:, :-1].T + drawn[:, -1]).argmax(-1)]
    assert (agent.actions(ram, previous) == expected).all()
    assert len(set(expected.tolist())) > 3


def test_the_search_finds_the_weights_that_earn_most(monkeypatch):
    best = np.random.default_rng(1).normal(size=4)

    def score(candidate, **settings):
        return -float(np.square(candidate.bias - best).sum()), 10

    monkeypatch.setattr(ram_policy, "_score", score)
    monkeypatch.setattr(ram_policy, "_scale", lambda *inputs: (np.zeros(6), np.ones(6), 100))
    cfg = RamPolicyConfig(population=30, elites=6, generations=20, noise=0.1)
    agent, record = train("breakout", cfg, seed=0, num_workers=1)
    np.testing.assert_allclose(agent.bias, best, atol=0.25)
    assert record["steps"] == 100 + 30 * 20 * 10 + 21 * 10
    assert record["history"][-1]["mean"] > record["history"][0]["best"]


def test_the_final_decides_and_not_the_search(monkeypatch):
    final = []

    def score(candidate, *, starts, **settings):
        worth = float(candidate.bias[0])
        if len(starts) == 1:
            return worth, 1
        final.append(worth)
        return -worth, 1

    monkeypatch.setattr(ram_policy, "_score", score)
    monkeypatch.setattr(ram_policy, "_scale", lambda *inputs: (np.zeros(6), np.ones(6), 100))
    cfg = RamPolicyConfig(population=9, elites=3, generations=4, final_episodes=4)
    agent, record = train("breakout", cfg, seed=0, num_workers=1)
    assert len(final) == 5, "the best of each generation and the last mean"
    assert agent.bias[0] == min(final) < max(final)
    assert record["final"] == -min(final)


def test_the_seed_decides_the_policy_and_the_number_of_processes_does_not():
    found = [train("pong", TINY, seed=seed, num_workers=workers)
             for seed, workers in ((0, 1), (0, 2), (1, 1))]
    weights = [agent.weights for agent, _ in found]
    assert (weights[0] == weights[1]).all()
    assert found[0][1] == found[1][1]
    assert (weights[0] != weights[2]).any()


def test_a_training_episode_is_cut_off_after_the_stated_number_of_steps():
    assert ram_policy._score(follower(), starts=[1, 2, 3], sticky=0.0, max_steps=20)[1] == 60
    _, record = train("pong", TINY, seed=0, num_workers=1)
    assert record["steps"] == 30 + 5 * 3 * 2 * 30 + 4 * 3 * 30
    assert [entry["generation"] for entry in record["history"]] == [0, 1, 2]


def test_a_score_is_the_mean_return_of_the_real_game():
    idle = RamPolicy("pong", np.zeros((6, 8)), np.array([1.0, 0, 0, 0, 0, 0]))
    score, steps = ram_policy._score(idle, starts=[7, 8], sticky=0.0, max_steps=5000)
    assert score == -21, "a player that stands still loses every point"
    assert steps < 5000


@pytest.mark.parametrize("wrong", [{"elites": 0}, {"elites": 6}, {"generations": 0},
                                   {"episodes": 0}, {"max_steps": 0},
                                   {"final_episodes": 0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(InputError, match="ram_policy needs 1 <= elites <= population"):
        train("pong", dataclasses.replace(TINY, **wrong), seed=0)


def test_an_unknown_game_is_refused():
    with pytest.raises(InputError, match="unknown game 'doom'; allowed: pong"):
        train("doom", TINY, seed=0)
