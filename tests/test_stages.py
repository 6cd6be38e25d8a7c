"""hd.stages: whole chains without notebooks, ablations that share what they agree on."""

import json

import pandas as pd
import pytest

from hd import config, runs, stages, windows
from hd.config import InputError
from hd.runs import COLUMNS

TINY = {"frames.num_steps": 200, "frames.min_episodes": 3, "frames.val_share": 0.34,
        "encoder.num_steps": 2, "encoder.batch_size": 8, "tokenizer.num_steps": 2,
        "tokenizer.batch_size": 300, "decoder.num_steps": 2, "world_model.num_steps": 2,
        "world_model.max_steps": 12, "imagination.context": 4, "imagination.num_dreams": 3,
        "policy.num_steps": 2, "policy.context": 4, "policy.horizon": 5,
        "policy.eval_episodes": 1, "entropy_floor.num_states": 2,
        "entropy_floor.num_branches": 3, "probes.max_rows": 300, "probes.epochs": 2}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain of every stage on Breakout, made and measured once: stage -> (run, table)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        made = {}
        for stage in (s for s in config.STAGES if s != "transfer"):  # it needs three games
            run = runs.start(stage, profile="smoke", games=["breakout"], overrides=TINY)
            stages.make(run)
            made[stage] = run, stages.measure(run)
        yield made


def test_every_stage_leaves_a_table_of_the_schema_with_its_provenance(chain):
    for stage, (run, table) in chain.items():
        assert tuple(table.columns) == COLUMNS
        assert table["metric"].notna().all() and len(table) > 0
        path = run.root / "results" / stage / f"{run.name}.csv"
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["identity"] == run.identity
        assert len(record["inputs"]) == len(config.UPSTREAM[stage])
        assert (runs.load_table(path)["metric"] == table["metric"]).all()


def test_the_chain_of_one_game_trains_the_policy_on_that_game(chain):
    run, table = chain["policy"]
    assert run.profile.policy.game == "breakout"
    assert set(table["game"]) == {"breakout"}
    assert (run.root / "results" / "policy" / f"{run.name}-episodes.csv").exists()


def test_a_variant_shares_the_folders_of_the_stages_it_leaves_alone(chain):
    base = chain["world_model"][0]
    strict = runs.start("world_model", profile="smoke", games=["breakout"],
                        variant="mask.strict", overrides=TINY)
    assert strict.at("tokenizer").folder == base.at("tokenizer").folder
    assert strict.folder != base.folder


def test_making_a_finished_stage_again_trains_nothing(chain):
    run = chain["world_model"][0]
    before = (run.folder / "finished.json").stat().st_mtime_ns
    stages.make(run)
    assert (run.folder / "finished.json").stat().st_mtime_ns == before


def test_unknown_ablations_and_no_seeds_are_refused_before_any_work():
    with pytest.raises(InputError, match="unknown ablation 'masks'; allowed: split, mask, "):
        stages.compare("masks", profile="smoke", seeds=[0])
    with pytest.raises(InputError, match="seeds must hold at least one"):
        stages.compare("mask", profile="smoke", seeds=[])


def steps_in(found, starts):
    """All stored rows that windows starting there hold."""
    return set((starts[:, None] + range(found.run.cfg.max_steps)).ravel().tolist())


@pytest.mark.parametrize(("variant", "is_shared"), [("base", False), ("split.windows", True)])
def test_only_the_seeds_split_holds_out_steps_that_training_has_seen(chain, variant, is_shared):
    run = runs.start("world_model", profile="smoke", games=["breakout"], variant=variant,
                     overrides=TINY)
    found = windows.Windows(run)
    held_out, training = found.held_out(), found.training_starts(0)
    assert not set(held_out.tolist()) & set(training.tolist())
    seen = steps_in(found, training)
    shared = len(steps_in(found, held_out) & seen) / len(steps_in(found, held_out))
    assert shared > 0.9 if is_shared else shared == 0


def test_a_world_models_learning_curve_is_kept_with_its_training_loss_without_dropout(chain):
    run, _ = chain["world_model"]
    history = pd.read_csv(run.root / "results" / "world_model" / f"{run.name}-history.csv")
    assert {"step", "codes", "train_codes", "val_codes", "val_l0_accuracy"} <= set(history)
    assert history["step"].iloc[-1] == run.cfg.num_steps


def test_the_arms_of_an_ablation_are_compared_with_base_and_their_curves_kept(chain, monkeypatch):
    start = runs.start
    monkeypatch.setattr(runs, "start", lambda stage, **chosen: start(
        stage, **{**chosen, "overrides": TINY}))
    table = stages.compare("loss_weights", profile="smoke", seeds=[0], games=["breakout"])
    assert table["variant"].unique().tolist() == ["base", "loss_weights.equal"]
    curves = stages.histories("loss_weights", profile="smoke", seed=0, games=["breakout"])
    assert list(curves) == ["base", "loss_weights.equal"]
    assert all(entry["exposures"] > 0 for curve in curves.values() for entry in curve)
