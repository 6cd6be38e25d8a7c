"""hd.measure.checks.suite: the whole validation suite on freshly collected frames."""

import dataclasses

import pytest

from hd import stages
from hd.measure import checks
from hd.run import runs


@pytest.fixture(scope="module")
def frames_run(tmp_path_factory):
    """Finished frames of a very small smoke run of two games."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        run = runs.start("frames", profile="smoke", games=["pong", "breakout"],
                         overrides={"frames.num_steps": 300, "frames.min_episodes": 3,
                                    "frames.val_share": 0.3, "frames.test_share": 0.3})
        stages.make(run)
        yield run


def test_the_validation_suite_holds_on_fresh_frames(frames_run):
    found = list(stages.check(frames_run))
    assert len(found) >= 12
    assert [what for what, holds, _ in found if not holds] == []


def test_the_validation_suite_notices_an_illegal_action_and_a_shared_episode(frames_run):
    data = stages.load(frames_run)
    actions = data.actions.copy()
    actions[0] = 17  # no action of Pong
    is_train = data.is_train.copy()
    is_train[0] = not is_train[0]
    broken = dataclasses.replace(data, actions=actions, is_train=is_train)
    failed = [what for what, holds, _ in checks.suite(broken, frames_run.profile.world_model)
              if not holds]
    assert any("legal" in what for what in failed)
    assert any("two parts" in what for what in failed)
