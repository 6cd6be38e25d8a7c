"""The contact test: which states count, what is lost after them, and a dream that knows it."""

import dataclasses

import numpy as np
import pytest
import torch

from hd import config, play
from hd.agent import Agent
from hd.atari import GAMES
from hd.config import AgentConfig
from hd.experience import Store
from hd.measure import contact, places
from hd.measure.contact import approaches, is_lost, near

SMOKE = config.PROFILES["smoke"]
CFG = dataclasses.replace(SMOKE.agent, num_emulators=2, num_steps=800)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def pong_ram(ball_x, ball_y=100):
    ram = np.zeros((len(ball_x), 128), np.uint8)
    ram[:, 49], ram[:, 54] = ball_x, ball_y
    return ram


def test_in_pong_the_ball_must_fly_towards_the_agents_side():
    ram = pong_ram([100, 150, 170, 190, 170, 150])
    assert near("pong", ram).tolist() == [False, False, True, True, False, False]
    assert not near("pong", pong_ram([100, 150, 170, 190], ball_y=0)).any()


def test_in_ms_pacman_any_ghost_counts():
    ram = np.zeros((2, 128), np.uint8)
    ram[:, [10, 16]] = 80  # the player; the ghosts are in a corner
    ram[1, [8, 14]] = 70, 75  # pinky
    assert near("ms_pacman", ram).tolist() == [False, True]


def store_of(ram, rewards=None, ends=()):
    store = Store(AgentConfig(num_emulators=1, num_steps=len(ram), num_levels=1), num_places=1)
    rewards = np.zeros(len(ram)) if rewards is None else rewards
    for t in range(len(ram)):
        end = np.array([t in ends])
        store.add(np.zeros((1, 84, 84)), ram[t:t + 1], np.zeros(1), rewards[t:t + 1], ~end, end)
    return store


def test_an_approach_is_counted_once_and_only_with_all_its_steps_in_the_episode():
    flight = [100, 150, 170, 180, 190]
    x = flight * 8
    store = store_of(pong_ram(x), ends=(21,))
    _, times = approaches("pong", store, 4)
    # Every fifth step from the second on; near an end, and where 14 steps are not left, none.
    expected = [t for t in range(2, 40, 5)
                if t >= 4 and t + 14 <= 40 and not t <= 21 < t + 13
                and not 22 <= t < 26]
    assert times.tolist() == expected


def test_a_point_against_is_a_loss_and_one_for_is_none():
    rewards = np.zeros(40)
    rewards[10], rewards[35] = -1, 1
    store = store_of(pong_ram([0] * 40), rewards)
    at = np.array([0, 0, 0, 0]), np.array([0, 5, 10, 25])
    assert is_lost("pong", store, *at).tolist() == [True, True, True, False]


@pytest.mark.parametrize("game", GAMES)
def test_a_loss_comes_within_the_stated_steps_of_a_contact(game):
    store = contact.recorded(game, play.random_act(game), CFG, num_steps=1600, seed=2)
    lost = (store.rewards < 0) | (store.continues == 0)
    is_near = near(game, store.ram[:, :store.length])
    losses = [(e, t) for e, t in zip(*lost[:, :store.length].nonzero()) if t > 40]
    first = is_near & ~np.roll(is_near, 1, -1)
    before = [first[e, t - GAMES[game].lost_within + 1:t + 1].any() for e, t in losses]
    assert len(losses) >= 4 and np.mean(before) > 0.9


def test_what_is_recorded_is_what_the_player_would_see_in_hd_play():
    seen = []

    def act(observation, generator):
        seen.append(observation)
        return play.random_act("pong")(observation, generator)

    store = contact.recorded("pong", act, CFG, num_steps=40, seed=3)
    assert store.length == 20 and len(seen) == 20
    for t, observation in enumerate(seen):
        before = np.maximum(np.arange(t - 3, t + 1), 0)
        assert np.array_equal(observation.frames[1], store.frames[1, before])
        assert observation.steps.tolist() == [t, t]


def test_the_rows_of_an_untrained_agent_are_near_chance_and_stand_beside_ram():
    torch.manual_seed(0)
    made = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, "pong").eval()
    fitted_on = contact.recorded("pong", play.tracker_act("pong"), CFG, num_steps=800, seed=1)
    made.fit_codec(fitted_on.frames[:, :200].reshape(-1, 84, 84), seed=0)
    players = {"random": play.random_act("pong")}
    played = contact.new_play(made, CFG, players, num_steps=800, seed=0)
    found = {row["metric"]: row for row in contact.rows_of(made, played, fitted_on, seed=0)}
    assert found["contacts[source random]"]["value"] > 5
    assert 0 <= found["contact_auc[source random]"]["value"] <= 1
    assert all(row["split"] == "test" for row in found.values())


@pytest.mark.parametrize(("sign", "share"), [(0, 1.0), (1, 0.0), (2, 0.0)])
def test_an_agent_that_always_or_never_loses_in_its_dreams_is_said_to(sign, share):
    torch.manual_seed(0)
    made = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, "pong").eval()
    fitted_on = contact.recorded("pong", play.tracker_act("pong"), CFG, num_steps=800, seed=1)
    made.fit_codec(fitted_on.frames[:, :200].reshape(-1, 84, 84), seed=0)
    bias = made.model.outcome_head[-1].bias.data
    bias[sign], bias[-1] = 50.0, 50.0  # one sign of the reward for sure, and no end
    seen = contact.new_play(made, CFG, {"agent": play.random_act("pong")}, num_steps=800, seed=0)
    rows = {row["metric"]: row["value"] for row in contact.rows_of(made, seen, fitted_on, seed=0)}
    assert rows["contact_lost_share[source agent, dreamed]"] == pytest.approx(share, abs=1e-6)
    assert 0 < rows["contact_lost_share[source agent]"] < 1


def test_a_held_action_is_measured_against_the_emulator():
    torch.manual_seed(0)
    made = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, "pong").eval()
    row, = contact.held_action_rows(made, play.random_act("pong"), CFG, seed=0)
    assert row["metric"] == "held_action_error" and row["value"] >= 0
    found = contact.held_returns(made, play.random_act("pong"), CFG, seed=0)
    assert tuple(found) == GAMES["pong"].actions
    assert row["value"] == np.mean([abs(dreamed - real) for dreamed, real in found.values()])
    assert row["baseline"] == np.mean([abs(real) for _, real in found.values()])
    assert 0 < row["baseline"] <= 1 and len(GAMES["pong"].actions) == 6


def test_codes_that_decode_to_the_picture_hold_as_much_as_the_picture():
    torch.manual_seed(0)
    cfg = dataclasses.replace(CFG, num_emulators=6, num_steps=2400, num_levels=3, num_codes=256)
    made = Agent(cfg, SMOKE.place_model, SMOKE.agent_policy, "pong").eval()
    players = {"tracker": play.tracker_act("pong")}
    frames = contact.recorded("pong", players["tracker"], cfg, num_steps=2400, seed=9).frames
    made.fit_codec(frames[:, :300].reshape(-1, 84, 84), seed=0)
    played = contact.new_play(made, cfg, players, num_steps=2400, seed=0)
    found = {row["metric"]: row for row in places.rows_of(
        made, played, cfg=config.ProbeConfig(epochs=15), seed=0)}
    paddle = found["r2_player_y[source tracker]"]
    assert paddle["baseline"] > 0.8 and paddle["value"] > paddle["baseline"] - 0.1
    assert set(found) == {f"{kind}_{name}[source tracker]" for kind in ("r2", "error")
                          for name in GAMES["pong"].coordinates}


@pytest.mark.parametrize(("of_all", "expected"), [(False, 0.5), (True, 0.0)])
def test_codes_of_the_background_alone_show_wrong_what_comes_and_right_what_goes(of_all, expected):
    """A square jumps to a place of its own at every step: half of what changes is where it was."""
    made = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, "pong").eval()
    store = Store(CFG, made.codec.num_places)
    store.length = 30
    for t in range(store.length):
        row, column = 12 * (t % 7), 24 * (t % 3)
        store.frames[:, t, row + 2:row + 8, column + 2:column + 8] = 200
    store.starts[1] = 10
    made.codec.quantizer.codebooks.zero_()
    if of_all:
        made.codec.quantizer.codebooks[0, 1] = torch.nn.functional.pad(
            torch.full((6, 6), 200 / 255), (2, 4, 2, 4)).flatten()
    rows = places.changed_pixels_rows(made, {"agent": store}, np.array([[0, 0], [12, 0]]))
    assert [row["metric"] for row in rows] == [
        "changed_pixels_wrong[source agent]", "changed_pixels_wrong[source agent, moved]"]
    assert rows[0]["value"] == expected and {row["baseline"] for row in rows} == {1.0}
    assert bool(rows[1]["value"] == 0) is of_all
    assert places.changed_pixels_rows(made, {"agent": Store(CFG, 49)}, np.zeros((1, 2), int)) == []
