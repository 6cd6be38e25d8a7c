"""hd.collection: what is stored is what was played, on any number of processes, after any stop."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import refusal

from hd import collection
from hd.atari import GAMES, AtariGame
from hd.collection import SOURCES, Agent, collect_game, play_episode
from hd.config import FramesConfig, InputError
from hd.run import runs

CFG = FramesConfig(num_steps=450, min_episodes=2, sources={"random": 1.0})
KILLED = """
from pathlib import Path
from hd.collection import collect_game
from hd.config import FramesConfig

if __name__ == "__main__":
    collect_game("breakout", FramesConfig(num_steps=4000, min_episodes=2), folder=Path("."),
                 num_workers=2)
"""


def collect(folder, cfg=CFG, *, num_workers=1, **options):
    return collect_game("breakout", cfg, folder=folder, seed=5, num_workers=num_workers, **options)


def stored(folder, game="breakout"):
    """Every array of the two files, by name."""
    with np.load(folder / f"steps-{game}.npz") as steps:
        return {"frames": np.load(folder / f"frames-{game}.npy"), **steps}


def assert_same(folder, other):
    ours, theirs = stored(folder), stored(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert np.array_equal(array, theirs[name]), name
        assert array.dtype == theirs[name].dtype, name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert collect(folder)
    return folder


def flip_byte(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def test_stored_rows_are_frame_seen_action_after_it_and_what_it_caused(uninterrupted):
    data = stored(uninterrupted)
    first = data["episode_ids"] == 0
    # The seed of an episode's reset is the second draw of its generator, after the source.
    rng = np.random.default_rng(np.random.SeedSequence([5, 1, 0]))
    rng.choice(len(SOURCES), p=[1.0, 0.0, 0.0, 0.0])
    env = AtariGame("breakout")
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    for i in np.flatnonzero(first):
        assert np.array_equal(data["frames"][i], frame)
        assert np.array_equal(data["ram"][i], info["ram"]) and data["lives"][i] == info["lives"]
        frame, reward, terminated, _, info = env.step(data["actions"][i])
        assert data["rewards"][i] == reward and data["continues"][i] == 1 - terminated
    assert terminated and first.sum() < len(first)


def test_whole_episodes_are_stored_and_no_more_than_needed(uninterrupted, tmp_path):
    data = stored(uninterrupted)
    lengths = np.bincount(data["episode_ids"])
    assert lengths.sum() == len(data["frames"]) >= 450 > lengths[:-1].sum()
    ends = np.cumsum(lengths) - 1
    assert np.array_equal(np.flatnonzero(data["continues"] == 0), ends)
    assert collect(tmp_path, FramesConfig(num_steps=1, min_episodes=3))
    assert len(np.bincount(stored(tmp_path)["episode_ids"])) == 3


def test_the_files_do_not_depend_on_the_number_of_processes(uninterrupted, tmp_path):
    reports = []
    assert collect(tmp_path, num_workers=2, progress=lambda *report: reports.append(report))
    assert_same(uninterrupted, tmp_path)
    assert reports[0] == (0, 450) and reports[-1] == (450, 450) and reports == sorted(reports)
    assert {p.name for p in tmp_path.iterdir()} == {"frames-breakout.npy", "steps-breakout.npz"}


def test_another_seed_gives_other_episodes(uninterrupted, tmp_path):
    collect_game("breakout", CFG, folder=tmp_path, seed=6, num_workers=1)
    shortest = min(len(stored(f)["actions"]) for f in (tmp_path, uninterrupted))
    assert not np.array_equal(stored(tmp_path)["actions"][:shortest],
                              stored(uninterrupted)["actions"][:shortest])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_stopped_collection_keeps_its_episodes_and_continues(
        uninterrupted, tmp_path, monkeypatch, num_workers):
    reports = []
    assert not collect(tmp_path, num_workers=num_workers,
                       progress=lambda *report: reports.append(report),
                       should_stop=lambda: reports[-1][0] > 0)
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("parts-breakout/*.npz")}
    assert len(kept) >= 1 and not (tmp_path / "frames-breakout.npy").exists()
    played, real = [], collection.play_episode
    monkeypatch.setattr(collection, "play_episode",
                        lambda env, cfg, **k: played.append(k["episode"]) or real(env, cfg, **k))
    assert collect(tmp_path)
    assert_same(uninterrupted, tmp_path)
    assert not {int(p.stem) for p in kept} & set(played)


def test_a_stop_inside_a_long_episode_is_heard():
    looks = []
    env = AtariGame("pong")
    assert play_episode(env, FramesConfig(), seed=0, episode=0,
                        should_stop=lambda: looks.append(1) or len(looks) == 2) is None
    assert len(looks) == 2


def make_foreign(path):
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "settings": "another run's", "actions": arrays["actions"] + 1})


@pytest.mark.parametrize("damage", [
    flip_byte, make_foreign, lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_damaged_and_foreign_parts_are_played_again(uninterrupted, tmp_path, damage):
    reports = []
    collect(tmp_path, progress=lambda *report: reports.append(report),
            should_stop=lambda: reports[-1][0] > 0)
    damage(tmp_path / "parts-breakout" / "000000.npz")
    assert collect(tmp_path)
    assert_same(uninterrupted, tmp_path)


def test_complete_files_are_kept_and_damaged_ones_made_again(uninterrupted, tmp_path, monkeypatch):
    collect(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(collection, "play_episode", None)
        assert collect(tmp_path), "complete files must not be played again"
    for name in ("frames-breakout.npy", "steps-breakout.npz"):
        flip_byte(tmp_path / name)
        assert collect(tmp_path)
        assert_same(uninterrupted, tmp_path)


def test_more_steps_or_other_settings_are_collected_anew(uninterrupted, tmp_path):
    collect(tmp_path)
    assert collect(tmp_path, FramesConfig(num_steps=700, min_episodes=2))
    data, before = stored(tmp_path), stored(uninterrupted)
    assert len(data["actions"]) >= 700
    assert np.array_equal(data["actions"][:len(before["actions"])], before["actions"])
    collect(tmp_path, FramesConfig(num_steps=700, min_episodes=2, sticky=0.25))
    assert not np.array_equal(stored(tmp_path)["frames"], data["frames"])


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and process groups")
def test_after_kill_9_no_worker_is_left_and_the_collection_continues(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path,
                               start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("parts-breakout/0*.npz")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ProcessLookupError):
        for _ in range(400):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    parts = sorted(tmp_path.glob("parts-breakout/0*.npz"))
    before = parts[0].stat().st_mtime_ns
    reports = []
    cfg = FramesConfig(num_steps=4000, min_episodes=2)
    collect_game("breakout", cfg, folder=tmp_path, num_workers=1,
                 progress=lambda *report: reports.append(report),
                 should_stop=lambda: len(reports) > 2)
    assert reports[0][0] > 0 and parts[0].stat().st_mtime_ns == before


def test_the_sources_follow_their_shares_and_are_recorded():
    cfg = FramesConfig(sources={"repeat": 3.0, "tracker": 1.0})
    env, found = AtariGame("breakout", max_steps=40), []
    for episode in range(60):
        arrays = play_episode(env, cfg, seed=0, episode=episode)
        assert len(set(arrays["source"].tolist())) == 1 and arrays["source"].dtype == np.int8
        found.append(SOURCES[arrays["source"][0]])
        if found[-1] == "tracker":
            assert np.mean(arrays["actions"] == 1) < 0.5, "it does more than fire"
    assert set(found) == {"repeat", "tracker"}
    assert abs(found.count("repeat") - 45) <= 1
    assert set(found[:4]) == {"repeat", "tracker"}, "the first few episodes hold every source"
    held = [play_episode(env, FramesConfig(sources={"repeat": 1.0}), seed=1, episode=k)["actions"]
            for k in range(60)]
    changes = np.mean([np.mean(np.diff(actions.astype(int)) != 0) for actions in held])
    # A new action every 8 steps, one time in four the same again.
    assert abs(changes - 0.75 / 8) < 0.02


AGENT_CFG = FramesConfig(num_steps=500, min_episodes=4, sources={"agent": 1.0, "random": 1.0})


def begin_counting(seed):
    """An agent whose action depends on its seed and on all it saw in its episode so far."""
    rng, total = np.random.default_rng(seed), 0

    def choose(frame, ram):
        nonlocal total
        assert frame.shape == (84, 84) and ram.shape == (128,)
        total += int(frame.sum()) + int(ram[99])
        return GAMES["breakout"].actions[(total + rng.integers(4)) % 4]

    return choose


def make_counting():
    return begin_counting


AGENT = Agent("policy 1", "breakout", make_counting)


def test_the_agents_episodes_do_not_depend_on_the_number_of_processes_or_on_a_stop(tmp_path):
    one, two, stopped = (tmp_path / name for name in ("one", "two", "stopped"))
    assert collect(one, AGENT_CFG, agent=AGENT)
    assert collect(two, AGENT_CFG, agent=AGENT, num_workers=2)
    assert_same(one, two)
    reports = []
    assert not collect(stopped, AGENT_CFG, agent=AGENT, should_stop=lambda: reports[-1][0] > 0,
                       progress=lambda *report: reports.append(report))
    assert list(stopped.glob("parts-breakout/0*.npz"))
    assert collect(stopped, AGENT_CFG, agent=AGENT)
    assert_same(one, stopped)
    sources = stored(one)["source"]
    assert {SOURCES[k] for k in np.unique(sources)} == {"agent", "random"}
    first = int(stored(one)["episode_ids"][sources == SOURCES.index("agent")][0])
    again = play_episode(AtariGame("breakout"), AGENT_CFG, seed=5, begin=begin_counting,
                         episode=first)
    assert np.array_equal(stored(one)["frames"][stored(one)["episode_ids"] == first],
                          again["frames"])


def test_another_agent_is_another_collection(tmp_path):
    assert collect(tmp_path, AGENT_CFG, agent=AGENT)
    with np.load(tmp_path / "steps-breakout.npz") as steps:
        assert '"agent": "policy 1"' in str(steps["settings"])
    played = []
    other = Agent("policy 2", "breakout", lambda: lambda seed: played.append(seed) or (
        lambda frame, ram: 1))
    assert collect(tmp_path, AGENT_CFG, agent=other)
    assert played, "episodes of another policy must not be kept"


def test_a_game_the_agent_was_not_trained_for_is_played_at_random_and_recorded_as_that(tmp_path):
    other = Agent("policy 1", "pong", lambda: pytest.fail("the policy is not needed"))
    assert collect(tmp_path, FramesConfig(num_steps=50, min_episodes=1, sources={"agent": 1.0}),
                   agent=other)
    assert set(stored(tmp_path)["source"].tolist()) == {SOURCES.index("random")}


def test_a_game_without_a_ball_records_random_instead_of_the_tracker():
    arrays = play_episode(AtariGame("ms_pacman", max_steps=10),
                          FramesConfig(sources={"tracker": 1.0}), seed=0, episode=0)
    assert set(arrays["source"].tolist()) == {SOURCES.index("random")}
    assert arrays["continues"].min() == 1.0, "a truncated episode did not end the game"


@pytest.mark.parametrize("cfg, message", [
    (FramesConfig(sources={"expert": 1.0}), "'expert'; allowed: random, repeat, tracker, agent"),
    (FramesConfig(sources={"agent": 0.5}), "the source agent needs a trained policy"),
    (FramesConfig(sources={"random": -1.0}), "shares must be 0 or more"),
    (FramesConfig(sources={"random": 0.0}), "a share above 0"),
    (FramesConfig(num_steps=0), "num_steps >= 1")])
def test_wrong_settings_are_refused_before_playing(tmp_path, cfg, message):
    with pytest.raises(InputError, match=message):
        collect(tmp_path, cfg)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("chosen", "message"), [
    ({"num_workers": 0}, "num_workers must be a whole number from 1, or None; got 0"),
    ({"num_workers": 1.5}, "got 1.5"), ({"seed": -1}, "seed must be a whole number")])
def test_wrong_numbers_are_refused_before_playing(tmp_path, chosen, message):
    assert message in refusal(collection.collect_game, "pong", FramesConfig(), folder=tmp_path,
                              **chosen)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
def test_as_many_processes_play_as_cores_may_be_used(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(collection, "_play_in_workers", lambda *job: asked.append(job[2]))
    monkeypatch.setattr(collection, "_play_here", lambda *job: asked.append(1))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for cores in ({0}, {0, 1, 2}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: cores)
        collection.collect_game("pong", FramesConfig(), folder=tmp_path)
    assert asked == [1, 3]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        collect(tmp_path / "file" / "below")


def test_the_stage_collects_every_game_once_and_stops_at_its_time_limit():
    overrides = {"frames.num_steps": 120, "frames.min_episodes": 1}
    chosen = {"profile": "smoke", "games": ["breakout", "ms_pacman"], "overrides": overrides}
    with pytest.raises(runs.TimeLimitReached, match="the same command continues"):
        collection.collect(runs.start("frames", time_limit=1e-3, **chosen))
    run = runs.start("frames", **chosen)
    record = collection.collect(run)
    assert set(record["files"]) == {"frames-breakout.npy", "steps-breakout.npz",
                                    "frames-ms_pacman.npy", "steps-ms_pacman.npz"}
    assert collection.collect(run) == runs.finished(run)
