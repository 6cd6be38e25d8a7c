"""hd.measure.model_free: DQN on the agent's budget, and what it may learn from."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest
import torch
from tiny import refusal

from hd import config, stages
from hd.atari import GAMES
from hd.measure import model_free
from hd.run import runs
from hd.run.runs import TimeLimitReached

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("stable_baselines3"),
                                reason="the extra model_free is not installed")
CFG = dataclasses.replace(config.PROFILES["smoke"].agent, learner="dqn")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))


def run_of(**options):
    return runs.start("agent", profile="smoke", variant="agent_data.model_free", games=["pong"],
                      overrides={"agent.num_steps": 320, "agent.prefill": 128,
                                 "agent.eval_episodes": 1}, **options)


def test_it_learns_plays_and_is_measured_beside_random_play():
    run = run_of()
    record = stages.make(run)
    assert record["history"][-1]["step"] == 320 and record["wall_seconds"] > 0
    table = stages.measure(run).set_index("metric")
    assert -21 <= table.loc["real_return", "value"] <= 21
    assert not table.index.str.startswith("contact").any(), "it has no dream"
    assert stages.make(run) == runs.require(run), "a finished run is not trained again"


def test_a_lost_life_ends_what_is_learned_from_and_the_game_goes_on():
    env = model_free.Learnable("breakout", CFG)
    env.reset(seed=0)
    rng, ends = np.random.default_rng(0), []
    for _ in range(1500):
        frames, reward, terminated, _, info = env.step(rng.integers(4))
        assert frames.shape == (4, 84, 84) and reward in (-1.0, 0.0, 1.0)
        if terminated:
            ends.append(info.get("episode_over"))
            env.reset()
        if len(ends) == 10:
            break
    assert [end is not None for end in ends] == [False] * 4 + [True] + [False] * 4 + [True]
    assert ends[4][0] >= 0 and ends[4][1] > 20, "points and length of the whole game"


def test_its_actions_are_the_games_own():
    made = model_free.ModelFree("breakout")
    seen = type("Seen", (), {"frames": np.zeros((40, 4, 84, 84), np.uint8)})
    chosen = made.act()(seen, torch.Generator().manual_seed(0))
    assert chosen.shape == (40,) and set(chosen.tolist()) <= {*GAMES["breakout"].actions}


def test_one_that_is_stopped_says_that_it_starts_again():
    with pytest.raises(TimeLimitReached, match="starts it again"):
        stages.make(run_of(time_limit=0.01))


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.dqn.policies", None)
    assert "pip install" in refusal(model_free.ModelFree, "pong")
