"""One stage at work without a pause, and the memory it holds, looked at again and again.

python tests/soak.py NAME SECONDS, in the artefact root of a chain (tests/interrupted.py). NAME is
one of ACTIVITIES. Prints a JSON list: the megabytes that only this process holds.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import threading
import time

import interrupted
import numpy as np
import psutil

from hd import atari, collection, config, stages
from hd.play import play as play_episodes
from hd.run import runs, training

LOOK_SECONDS = 0.25


def training_of(stage):
    """Train in another folder than the chain's, with records and checkpoints, until time is up."""
    def until(deadline):
        run = runs.start(stage, profile="smoke", overrides={
            f"{stage}.num_steps": 10**7, f"{stage}.eval_every": 50})
        try:
            stages.make(dataclasses.replace(run, deadline=deadline))
        except runs.TimeLimitReached:
            return
        raise AssertionError(f"{stage} came to an end")
    return until


def collect(deadline):
    """Play episodes as a collection does."""
    env, cfg = atari.AtariGame("breakout"), config.PROFILES["smoke"].frames
    for episode in itertools.count():
        played = collection.play_episode(env, cfg, seed=0, episode=episode,
                                         should_stop=lambda: time.monotonic() > deadline)
        if played is None or time.monotonic() > deadline:
            return


def dream(deadline):
    """Act at random in the dream."""
    env = stages.dream_env(interrupted.run_of("imagination"), "pong", horizon=5)
    rng = np.random.default_rng(0)
    while time.monotonic() < deadline:
        env.reset(seed=int(rng.integers(2**31)))
        is_over = False
        while not is_over:
            *_, is_over, _ = env.step(int(rng.integers(env.action_space.n)))


def play(deadline):
    """The trained policy in the real game, cut off when the time is up."""
    run = interrupted.run_of("policy")
    act = stages.act_of(run)

    def until(seen, generator):
        if time.monotonic() > deadline:
            raise TimeoutError
        return act(seen, generator)

    with contextlib.suppress(TimeoutError):
        for seed in itertools.count():
            play_episodes(until, run.cfg.game, num_episodes=2, seed=seed, sticky=0.25)


ACTIVITIES = {"frames": collect, **{stage: training_of(stage) for stage in config.TRAINED},
              "imagination": dream, "real_game": play}


def watched(work, seconds):
    """[MB] seen while work(deadline) ran."""
    process, seen, is_over = psutil.Process(), [], threading.Event()

    def look():
        while not is_over.wait(LOOK_SECONDS):
            seen.append(round(process.memory_full_info().uss / 2**20, 1))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work(time.monotonic() + seconds)
    finally:
        is_over.set()
        looking.join()
    return seen


def main(name, seconds):
    config.PROFILES["smoke"] = config.resolve("smoke", overrides=interrupted.TINY)
    training.CHECKPOINT_SECONDS = 2.0
    print("working", flush=True)
    print(json.dumps(watched(ACTIVITIES[name], float(seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
