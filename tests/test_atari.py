"""hd.atari: the environment equals gymnasium's, frame by frame; RAM, clones, the tracker."""

import dataclasses
import os
import subprocess
import sys

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from ale_py import roms
from gymnasium.utils.env_checker import check_env
from tiny import refusal

from hd import atari, config
from hd.atari import (
    ACTION_MEANINGS,
    GAMES,
    AtariGame,
    ball_in_play,
    check_frames,
    labels,
    tracker_action,
)
from hd.config import InputError
from hd.run import storage

gymnasium.register_envs(ale_py)


def emulator(game):
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path(GAMES[game].rom))
    ale.reset_game()
    return ale


def play(env, seed, num_steps, actions=range(18)):
    """Bytes of everything seen in num_steps random actions."""
    rng = np.random.default_rng(7)
    frame, info = env.reset(seed=seed)
    seen = [frame.tobytes(), info["ram"].tobytes()]
    for _ in range(num_steps):
        frame, reward, terminated, _, info = env.step(rng.choice(actions))
        seen += [frame.tobytes(), reward, terminated, info["ram"].tobytes(), info["lives"]]
        if terminated:
            break
    return seen


def returns(game, act, *, seed, max_steps=6000):
    env = AtariGame(game, max_steps=max_steps)
    _, info = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(act(info["ram"]))
        total, done = total + reward, terminated or truncated
    return total


def test_the_games_are_the_configured_ones_with_the_emulators_own_action_ids():
    assert tuple(GAMES) == config.GAMES
    assert {a.name: a.value for a in ale_py.Action.__members__.values()} == {
        name: i for i, name in enumerate(ACTION_MEANINGS)}
    for name, game in GAMES.items():
        minimal = emulator(name).getMinimalActionSet()
        assert game.actions == tuple(int(action.value) for action in minimal)
        assert game.gym_id in gymnasium.registry


def test_an_unknown_game_is_refused_with_the_list_of_known_ones():
    for refused in (lambda: AtariGame("tennis"), lambda: labels("tennis", np.zeros(128, np.uint8))):
        with pytest.raises(InputError, match="'tennis'; allowed: pong, breakout, ms_pacman"):
            refused()


BOXING = """
from hd import atari
atari.add_game("boxing", atari.Game(
    "Boxing", "boxing", "ALE/Boxing-v5", tuple(range(18)),
    {"player_x": 32, "player_y": 34, "enemy_x": 33, "enemy_y": 35, "player_score": 18},
    ("player_x", "player_y", "enemy_x", "enemy_y"), atari.Place("player_x", "player_y", 0.0, 0.0)))

if __name__ == "__main__":  # processes that play import the lines above
    from hd import stages
    from hd.measure import game_state
    from hd.report import tables
    from hd.run import runs
    run = runs.start("frames", profile="smoke", games="boxing", overrides={
        "frames.num_steps": 60, "frames.min_episodes": 3, "frames.sources": {"tracker": 1.0}})
    stages.make(run)
    table, data = stages.measure(run), stages.load(run)
    print(tables.TITLES["boxing"], *sorted(set(table["game"])))
    print(game_state.coordinates(data, data.starts[:1]).shape, set(data.source.tolist()))
"""


def test_a_fourth_game_needs_its_name_and_its_entry_and_nothing_else(tmp_path):
    script = tmp_path / "boxing.py"
    script.write_text(BOXING)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(storage.ROOT),
                               "HD_ARTIFACTS": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Boxing all boxing", "(1, 4) {0}"]


def test_a_game_that_is_known_is_not_replaced():
    assert "there is a game pong already" in refusal(atari.add_game, "pong", GAMES["breakout"])
    assert GAMES["pong"].title == "Pong"


def test_a_name_without_an_entry_is_one_line_that_says_where_it_belongs(monkeypatch):
    monkeypatch.setattr(config, "GAMES", (*config.GAMES, "boxing"))
    assert "not in hd.atari.GAMES: add" in refusal(AtariGame, "boxing")


@pytest.mark.parametrize(("changes", "says"), [
    ({"coordinates": ("ball_z",)}, "Pong: coordinates and place may only name labels"),
    ({"place": atari.Place("ball_x", "bal_y", 0.0, 0.0)}, "got bal_y"),
    ({"actions": (0, 18)}, "ALE's ids 0 to 17"),
    ({"actions": ()}, "ALE's ids 0 to 17"),
])
def test_an_entry_that_does_not_fit_together_is_refused(changes, says):
    assert says in refusal(dataclasses.replace, GAMES["pong"], **changes)


@pytest.mark.parametrize("game", GAMES)
def test_frames_rewards_and_ends_equal_gymnasiums_preprocessing(game):
    reference = gymnasium.wrappers.AtariPreprocessing(
        gymnasium.make(GAMES[game].gym_id, frameskip=1, repeat_action_probability=0.0,
                       full_action_space=True, disable_env_checker=True),
        noop_max=0, frame_skip=4, screen_size=84, grayscale_obs=True)
    env, rng, ends = AtariGame(game, noop_max=0), np.random.default_rng(0), []
    assert np.array_equal(env.reset(seed=0)[0], reference.reset(seed=0)[0])
    for step in range(1500):
        action = int(rng.integers(18))
        frame, reward, terminated, truncated, info = env.step(action)
        expected = reference.step(action)
        assert np.array_equal(frame, expected[0]), step
        assert (reward, terminated, truncated) == expected[1:4], step
        assert np.array_equal(info["ram"], reference.unwrapped.ale.getRAM()), step
        assert info["lives"] == expected[4]["lives"], step
        if terminated:
            ends.append(step)
            assert np.array_equal(env.reset()[0], reference.reset()[0]), step
        if ends and step > ends[0] + 100:
            break
    assert ends, "the comparison must include the end of an episode"


def test_the_same_seed_gives_the_same_episode_whatever_was_played_before():
    env = AtariGame("breakout", sticky=0.25)
    first = play(env, 3, 150)
    play(env, 4, 33)
    assert play(env, 3, 150) == first == play(AtariGame("breakout", sticky=0.25), 3, 150)


def test_resets_play_one_to_noop_max_emulator_frames_without_action():
    env, ale, rams = AtariGame("breakout", noop_max=30), emulator("breakout"), []
    for _ in range(31):
        rams.append(ale.getRAM().tobytes())
        ale.act(0)
    starts = [rams.index(env.reset(seed=seed)[1]["ram"].tobytes()) for seed in range(200)]
    assert min(starts) == 1 and max(starts) == 30 and len(set(starts)) > 25
    without = AtariGame("breakout", noop_max=0)
    assert without.reset(seed=5)[1]["ram"].tobytes() == rams[0]


class Recorder:
    """An emulator that notes what it is asked to do."""

    def __init__(self, ale):
        self.ale, self.acts = ale, []

    def __getattr__(self, name):
        return getattr(self.ale, name)

    def act(self, action):
        self.acts.append(action)
        return self.ale.act(action)


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_each_emulator_frame_repeats_the_previous_action_with_the_sticky_chance(sticky):
    env = AtariGame("pong", sticky=sticky, noop_max=0)
    env.reset(seed=1)
    env._ale = recorder = Recorder(env._ale)
    for step in range(700):
        env.step(3 + step % 2)
    acts = np.array(recorder.acts).reshape(-1, 4)
    wanted = 3 + np.arange(700) % 2
    late = (acts != wanted[:, None]).mean(0)
    # A change of action takes effect at frame i unless it was kept i + 1 times in a row;
    # four standard errors of a share among 700 steps.
    expected = sticky ** np.arange(1, 5)
    assert np.all(np.abs(late - expected) <= 4 * np.sqrt(expected * (1 - expected) / 700))


def test_a_restored_state_goes_on_as_the_original_did_also_in_another_environment():
    env, rng = AtariGame("pong", sticky=0.25), np.random.default_rng(2)
    env.reset(seed=9)
    for _ in range(60):
        frame = env.step(int(rng.integers(18)))[0]
    state, actions = env.clone_state(), rng.integers(18, size=80)

    def go_on(env):
        return [(f.tobytes(), r, i["ram"].tobytes())
                for f, r, _, _, i in (env.step(a) for a in actions)]

    expected, other = go_on(env), AtariGame("pong", sticky=0.25)
    other.reset(seed=1)
    for branch in (env, other):
        assert np.array_equal(branch.restore_state(state), frame)
        assert go_on(branch) == expected
    env.restore_state(state)
    env.np_random = np.random.default_rng(0)
    assert go_on(env) != expected, "the clone must include the sticky actions' randomness"


def test_an_episode_is_truncated_at_max_steps_and_not_terminated():
    env = AtariGame("pong", max_steps=5)
    env.reset(seed=0)
    outcomes = [env.step(0)[2:4] for _ in range(5)]
    assert outcomes == [(False, False)] * 4 + [(False, True)]
    assert AtariGame("pong").max_steps * 4 == 108_000


def test_losing_a_life_does_not_end_the_episode():
    env = AtariGame("breakout")
    _, info = env.reset(seed=0)
    lives = [info["lives"]]
    while not (outcome := env.step(1))[2]:
        lives.append(outcome[4]["lives"])
    assert sorted(set(lives)) == [1, 2, 3, 4, 5]
    assert outcome[4]["lives"] == 0


def test_wrong_actions_and_settings_are_refused():
    env = AtariGame("pong")
    env.reset(seed=0)
    for action in (-1, 18):
        with pytest.raises(InputError, match=f"action {action}; allowed: ALE ids 0 to 17"):
            env.step(action)
    for wrong in ({"sticky": 1.0}, {"sticky": -0.1}, {"noop_max": -1}, {"max_steps": 0}):
        with pytest.raises(InputError, match="pong: needs"):
            AtariGame("pong", **wrong)


def test_the_environment_follows_gymnasiums_interface():
    check_env(AtariGame("breakout"), skip_render_check=True)
    env = AtariGame("breakout")
    env.reset(seed=0)
    assert env.render().shape == (210, 160, 3)


def test_labels_are_the_named_ram_bytes():
    ram = np.arange(3 * 128, dtype=np.uint8).reshape(3, 128) // 2
    for game in GAMES:
        for name, values in labels(game, ram).items():
            address = GAMES[game].labels[name]
            expected = ram[:, address] if isinstance(address, int) else ram[:, :30]
            assert np.array_equal(values, expected), name
    assert labels("breakout", ram)["block_bit_map"].shape == (3, 30)
    assert np.array_equal(labels("pong", ram[1])["ball_x"], ram[1, 49])


def screens_and_ram(game, num_steps):
    env, rng = AtariGame(game), np.random.default_rng(0)
    env.reset(seed=0)
    screens, rams = [], []
    for _ in range(num_steps):
        outcome = env.step(rng.choice(GAMES[game].actions))
        screens.append(env.render())
        rams.append(outcome[4]["ram"])
        if outcome[2]:
            env.reset()
    return np.array(screens), np.array(rams)


def test_pongs_ball_is_in_play_exactly_when_the_screen_shows_it():
    screens, ram = screens_and_ram("pong", 1000)
    is_shown = (screens[:, 34:194] == 236).all(-1).any((1, 2))
    in_play, ball_y = ball_in_play("pong", ram), ram[:, 54]
    is_bouncing = ball_y == 44  # for one step at most it is under the upper border
    assert np.array_equal(in_play & ~is_bouncing, is_shown)
    assert is_bouncing.mean() < 0.02
    assert 0.3 < in_play.mean() < 0.9


@pytest.mark.parametrize(("game", "colour", "rows"), [
    ("pong", (236, 236, 236), slice(34, 194)), ("breakout", (200, 72, 72), slice(94, 188))])
def test_the_ball_is_where_the_frame_shows_it(game, colour, rows):
    screens, ram = screens_and_ram(game, 400)
    is_ball = (screens[:, rows, 8:152] == colour).all(-1)
    shown = is_ball.any((1, 2)) & ball_in_play(game, ram)
    assert shown.sum() > 50
    places = atari.on_frame(game, labels(game, ram))
    assert places.shape == (400, 2)
    for picture, place in zip(is_ball[shown], places[shown]):
        y, x = (np.flatnonzero(picture.any(axis)).mean() for axis in (1, 0))
        seen = np.array([(x + 8.5) * 84 / 160, (y + rows.start + 0.5) * 84 / 210]) - 0.5
        assert np.abs(place - seen).max() < 2, "within two pixels of 84"


def test_breakouts_ball_is_in_play_exactly_when_the_screen_shows_it():
    screens, ram = screens_and_ram("breakout", 800)
    in_play, ball_y = ball_in_play("breakout", ram), ram[:, 101]
    is_ball_coloured = (screens[:, :, 8:152] == (200, 72, 72)).all(-1)
    free = is_ball_coloured[:, 93:189].any((1, 2))  # between bricks and paddle, of its own colour
    assert free[(ball_y > 84) & (ball_y < 176)].all()
    assert not free[~in_play].any()
    gone = ball_y >= 187
    assert gone.any() and not in_play[gone].any()
    assert not is_ball_coloured[gone, 193:].any()
    assert 0.3 < in_play.mean() < 0.9
    assert ball_in_play("ms_pacman", ram).all()


def test_the_tracker_wins_pong_and_scores_in_breakout():
    assert returns("pong", lambda ram: tracker_action("pong", ram), seed=0) > 10
    assert returns("breakout", lambda ram: tracker_action("breakout", ram), seed=0) > 20
    with pytest.raises(InputError, match="no tracker for 'ms_pacman'; allowed: pong, breakout"):
        tracker_action("ms_pacman", np.zeros(128, np.uint8))


@pytest.mark.parametrize(("call", "message"), [
    (lambda env: env.step(1.5), "unknown action 1.5"),
    (lambda env: env.step(None), "unknown action None"),
    (lambda env: env.step(-1), "unknown action -1"),
    (lambda env: labels("pong", np.zeros((2, 127), np.uint8)), "got shape (2, 127)"),
    (lambda env: AtariGame("pong", sticky="no"), "0 <= sticky < 1"),
    (lambda env: AtariGame("pong", max_steps=2.5), "whole numbers noop_max >= 0 and max_steps"),
    (lambda env: AtariGame("breakout").restore_state(env.clone_state()),
     "a state of pong cannot be restored in breakout"),
])
def test_what_the_environment_cannot_do_is_one_line(call, message):
    env = AtariGame("pong")
    env.reset(seed=0)
    assert message in refusal(call, env)


STACKS = np.zeros((2, 4, 84, 84), np.uint8)


@pytest.mark.parametrize(("frames", "said"), [
    (STACKS.transpose(0, 2, 3, 1), "uint8 of shape (2, 84, 84, 4); these are channels-last: the 4 "
                                   "belongs before the picture's two sides"),
    (STACKS[0].transpose(1, 2, 0), "uint8 of shape (84, 84, 4); these are channels-last"),
    (STACKS[0], "uint8 of shape (4, 84, 84); one alone needs a dimension of 1 in front"),
    (STACKS / 255, "float64 of shape (2, 4, 84, 84); pixels are whole numbers from 0 to 255"),
    (torch.zeros(2, 4, 84, 84), "float32 of shape (2, 4, 84, 84); pixels are whole numbers"),
    (STACKS.astype(np.int64), "int64 of shape (2, 4, 84, 84)"),
    (np.zeros((2, 4, 210, 160), np.uint8), "uint8 of shape (2, 4, 210, 160)"),
    (STACKS.tolist(), "list of shape ()")], ids=lambda case: str(case)[:40])
def test_frames_of_other_size_type_or_order_are_refused_in_one_line_that_says_which(frames, said):
    with pytest.raises(InputError) as caught:
        check_frames(frames)
    assert str(caught.value).startswith(
        f"frames must be uint8 of shape (N, 4, 84, 84), oldest frame first; got {said}")
    assert len(str(caught.value).splitlines()) == 1


def test_stacks_and_single_frames_of_the_right_kind_pass():
    check_frames(STACKS)
    check_frames(torch.from_numpy(STACKS))
    check_frames(STACKS[:, -1], (84, 84))
    with pytest.raises(InputError, match=r"\(N, 84, 84\); got uint8 of shape \(2, 4, 84, 84\)"):
        check_frames(STACKS, (84, 84))
