"""Test episodes are read by what measures, and by no training, watching or choosing."""

import shutil

import numpy as np
import pytest
import torch

from hd import decoder, encoder, policy, stages, tokenizer, world_model
from hd.measure import embeddings, game_state
from hd.replay import Replay
from hd.run import runs
from hd.run.training import Unkept
from hd.windows import Windows

GAME = "breakout"
TINY = {"frames.num_steps": 400, "frames.min_episodes": 5, "frames.val_share": 0.2,
        "frames.test_share": 0.2, "policy.game": GAME, "policy.num_steps": 3,
        "encoder.num_steps": 4, "tokenizer.num_steps": 4, "decoder.num_steps": 3,
        "world_model.num_steps": 5, "world_model.eval_every": 2, "encoder.eval_every": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        run = runs.start("policy", profile="smoke", games=[GAME], overrides=TINY)
        stages.make(run.at("frames"))
        yield run


def opened(run, folder):
    cfg = run.at("frames").cfg
    return Replay.open(folder, (GAME,), val_share=cfg.val_share, test_share=cfg.test_share, seed=0)


@pytest.fixture(scope="module")
def spoilt(run, tmp_path_factory):
    """The same stored steps, but for the rows of test episodes, in which everything is another."""
    folder = tmp_path_factory.mktemp("spoilt")
    for path in run.at("frames").folder.glob("*.np[yz]"):
        shutil.copy(path, folder / path.name)
    is_test = opened(run, folder).is_test
    frames = np.load(folder / f"frames-{GAME}.npy", mmap_mode="r+")
    frames[is_test] = 255 - frames[is_test]
    frames.flush()
    steps = dict(np.load(folder / f"steps-{GAME}.npz"))
    other = {"actions": 1, "rewards": 1e6, "continues": 0.5, "ram": 99, "lives": 77}
    for name, value in other.items():
        steps[name][is_test] = value
    np.savez(folder / f"steps-{GAME}.npz", **steps)
    return folder


def trained(run, folder, *, split="episodes", objective="contrastive"):
    """Everything that is trained on the steps in a folder: weights, and what was watched."""
    def cfg(stage, **fields):
        return type(run.at(stage).cfg)(**{**vars(run.at(stage).cfg), **fields})

    data, every = opened(run, folder), np.arange(len(opened(run, folder)))
    targets = None
    if objective == "supervised":
        targets = game_state.standardised(game_state.coordinates(data, every), data.is_train)
    eyes, *found = encoder.train(cfg("encoder", objective=objective), data, Unkept("encoder", 0),
                                 targets=targets, evaluate=embeddings.watch(data))
    vectors = encoder.embed(eyes, data, every)
    quantizer, record = tokenizer.train(cfg("tokenizer"), vectors, data.is_train,
                                        Unkept("tokenizer", 0))
    tokens = tokenizer.encode_all(quantizer, vectors)
    found.append(record)
    drawn = decoder.train(cfg("decoder"), decoder.Pictures(data, tokens, quantizer),
                          Unkept("decoder", 0))
    model, record = world_model.train(cfg("world_model", split=split),
                                      Windows(cfg("world_model", split=split), data, tokens,
                                              seed=0), quantizer.codebooks,
                                      Unkept("world_model", 0))
    found += [drawn[1], record]
    agent, record = policy.train(cfg("policy"), policy.with_ale_ids(model, GAME), data, tokens,
                                 Unkept("policy", 0))
    histories = [[{key: value for key, value in entry.items() if "second" not in key}
                  for entry in one["history"]] for one in (*found, record)]
    weights = [part.state_dict() for part in (eyes, quantizer, drawn[0], model, agent)]
    return weights, histories


@pytest.mark.parametrize("how", [{}, {"split": "windows"}, {"objective": "supervised"}])
def test_other_test_episodes_change_no_weight_and_nothing_that_is_watched(run, spoilt, how):
    (weights, histories), (again, watched) = (trained(run, folder, **how) for folder in
                                              (run.at("frames").folder, spoilt))
    for one, other in zip(weights, again):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name
    assert histories == watched and all(histories)
    assert any(key.startswith("val_") for key in histories[-2][-1]), "validation was watched"


def test_other_validation_episodes_change_what_is_watched(run, tmp_path):
    """The check above can fail: the same change of validation episodes does show."""
    folder = tmp_path / "steps"
    shutil.copytree(run.at("frames").folder, folder)
    is_val = opened(run, folder).is_val
    frames = np.load(folder / f"frames-{GAME}.npy", mmap_mode="r+")
    frames[is_val] = 255 - frames[is_val]
    frames.flush()
    (weights, histories), (again, watched) = (trained(run, one) for one in
                                              (run.at("frames").folder, folder))
    assert all(torch.equal(value, again[3][name]) for name, value in weights[3].items())
    assert histories != watched
