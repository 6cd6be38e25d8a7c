"""hd.stages: whole chains without notebooks, ablations that share what they agree on."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from tiny import refusal

from hd import collection, config, play, stages
from hd.collection import SOURCES
from hd.config import InputError
from hd.measure import dreams
from hd.play import random_act
from hd.quantization import ResidualVQ
from hd.report import figures, pictures
from hd.run import runs, storage
from hd.run.runs import COLUMNS
from hd.run.storage import sha256_of

TINY = {"frames.num_steps": 200, "frames.min_episodes": 4, "frames.val_share": 0.25,
        "frames.test_share": 0.25,
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


@pytest.mark.filterwarnings("ignore::UserWarning")  # advice on bounds and on a missing spec
def test_anyones_agent_can_act_in_a_trained_dream(chain):
    run, _ = chain["imagination"]
    env = stages.dream_env(run, "breakout", horizon=5)
    check_env(env)
    (first, _), (again, info) = env.reset(seed=3), env.reset(seed=3)
    assert (first == again).all() and info["tokens"].shape == (3,)
    for step in range(5):
        seen, reward, _, is_over, _ = env.step(env.action_space.sample())
        assert np.isfinite(seen).all() and np.isfinite(reward) and is_over == (step == 4)
    assert env.render().shape == (84, 84, 3) and env.render().dtype == np.uint8
    with pytest.raises(InputError, match="unknown game 'pong'; allowed: breakout"):
        stages.dream_env(run, "pong")


def test_the_same_dreams_are_dreamed_once_and_never_from_a_missing_model(chain, monkeypatch):
    run, _ = chain["imagination"]
    first, times = stages.dreams_of(run, "breakout"), []
    monkeypatch.setattr(dreams, "imagine", lambda *inputs, **settings: times.append(1))
    assert stages.dreams_of(run, "breakout") is first and not times
    model = run.at("world_model").folder / "model.safetensors"
    model.rename(model.with_suffix(".aside"))
    try:
        with pytest.raises(InputError):
            stages.dreams_of(run, "breakout")
    finally:
        model.with_suffix(".aside").rename(model)


def test_a_dream_starts_from_validation_steps_of_its_game(chain):
    run, _ = chain["imagination"]
    tokens, actions = stages.dream_env(run, "breakout").contexts
    data, codes = stages.load(run.at("frames")), stages.tokens_of(run)
    starts = data.window_starts(run.cfg.context, data.is_val)
    assert tokens.shape == (len(starts), 4, 3) and actions.shape == (len(starts), 3)
    assert (tokens[-1].numpy() == codes[starts[-1]:starts[-1] + 4]).all()
    assert (actions[0].numpy() == data.actions[starts[0]:starts[0] + 3]).all()


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
    with pytest.raises(InputError, match="unknown ablation 'masks'; allowed: split, exposures, "):
        stages.compare("masks", profile="smoke", seeds=[0])
    with pytest.raises(InputError, match="one or more whole numbers, each once; got none"):
        stages.compare("mask", profile="smoke", seeds=[])
    with pytest.raises(InputError, match="each once; got 0, 1, 0"):
        stages.compare("mask", profile="smoke", seeds=[0, 1, 0])


def test_games_without_one_that_an_arm_needs_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(stages, "make", lambda run: pytest.fail("base is trained first"))
    with pytest.raises(InputError, match=r"variant policy_game\.breakout needs the game breakout"):
        stages.compare("policy_game", profile="smoke", seeds=[0], games=["pong"])


TWO_WAYS = {"frames.test_share": None}


def steps_in(found, starts):
    """All stored rows that windows starting there hold."""
    return set((starts[:, None] + range(found.cfg.max_steps)).ravel().tolist())


@pytest.mark.parametrize(("variant", "is_shared"), [("base", False), ("split.windows", True)])
def test_only_the_seeds_split_holds_out_steps_that_training_has_seen(chain, variant, is_shared):
    run = runs.start("world_model", profile="smoke", games=["breakout"], variant=variant,
                     overrides=TINY)
    found = stages.windows_of(run)
    held_out, training = found.held_out(), found.training_starts(0)
    assert not set(held_out.tolist()) & set(training.tolist())
    seen = steps_in(found, training)
    shared = len(steps_in(found, held_out) & seen) / len(steps_in(found, held_out))
    assert shared > 0.9 if is_shared else shared == 0


@pytest.mark.parametrize(("stage", "variant", "overrides", "split"), [
    ("world_model", "base", {}, "test"), ("encoder", "split.windows", {}, "test"),
    ("world_model", "split.windows", {}, "val"), ("agent", "base", TWO_WAYS, "test"),
    ("imagination", "base", TWO_WAYS, "val")])
def test_a_table_says_whether_its_episodes_were_those_on_which_things_were_chosen(
        monkeypatch, stage, variant, overrides, split):
    run = runs.start(stage, profile="smoke", variant=variant, overrides=overrides)
    rows = [runs.row("loss", 1.0), runs.row("loss", 2.0, game="pong", split="train")]
    monkeypatch.setitem(stages.STAGES, stage, dataclasses.replace(stages.STAGES[stage],
                                                                  measure=lambda run: rows))
    assert stages.measure(run)["split"].tolist() == [split, "train"]


def test_a_run_without_a_test_part_is_the_one_from_before_there_was_one():
    one, two = (runs.start("encoder", profile="smoke", overrides={"frames.test_share": share})
                for share in (None, 0.25))
    assert "test_share" not in one.at("frames").settings["config"]
    assert two.at("frames").settings["config"]["test_share"] == 0.25
    assert one.identity != two.identity


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


def started(stage, **chosen):
    return runs.start(stage, profile="smoke", games=["breakout"],
                      **{**chosen, "overrides": TINY | chosen.get("overrides", {})})


def test_the_trained_policy_collects_the_same_on_any_number_of_processes(chain, monkeypatch):
    monkeypatch.setattr(config, "resolve", with_tiny(config.resolve))
    mixed = {"frames.sources": {"random": 1.0, "agent": 1.0}, "frames.min_episodes": 6}
    run = started("frames", overrides=mixed)
    with pytest.raises(InputError, match="stage policy is missing for profile smoke, variant ") \
            as caught:
        stages.make(run)
    assert "hd run 06_policy --profile smoke --variant hi-dreamer" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    stages.make(runs.start("policy", profile="smoke", variant="hi-dreamer", games=["breakout"]))
    stages.make(run)
    assert SOURCES.index("agent") in stages.load(run).source
    agent = stages._agent(run.upstream[0])
    assert run.upstream[0].profile.policy.features == "hidden"
    again = run.folder.with_name("again")
    collection.collect_game("breakout", run.cfg, folder=again, agent=agent, num_workers=1)
    for name in ("frames-breakout.npy", "steps-breakout.npz"):
        assert sha256_of(again / name) == sha256_of(run.folder / name)


def test_equal_tokens_of_an_arm_are_counted_against_base(chain, monkeypatch):
    monkeypatch.setattr(config, "resolve", with_tiny(config.resolve))
    run = runs.start("tokenizer", profile="smoke", games=["breakout"], variant="commitment.zero")
    stages.make(run)
    found = stages.measure(run).set_index("metric")["value"]
    assert [found[f"l{level}_same_as_base"] for level in range(3)] == [1.0, 1.0, 1.0]


def with_tiny(resolve):
    """config.resolve with the tiny sizes of these tests."""
    def resolved(profile, variant="base", overrides=None, games=config.GAMES):
        return resolve(profile, variant, TINY | (overrides or {}), games)
    return resolved


def test_codebooks_that_train_with_the_encoder_are_the_tokenizers(chain):
    joint = {"encoder.commitment_costs": (0.05, 0.25, 0.60), "encoder.batch_size": 100}
    run = started("tokenizer", overrides=joint)
    stages.make(run)
    own = stages.load(run.at("encoder")).quantizer
    assert own.is_initialised and torch.equal(stages.load(run).codebooks, own.codebooks)
    assert run.at("encoder").folder != chain["encoder"][0].folder


def test_a_table_says_which_device_and_commit_made_what_it_measures(chain):
    run, _ = chain["encoder"]
    made = runs.finished(run)
    stages.measure(run)
    record = json.loads((run.root / "results" / "encoder" / f"{run.name}.json").read_text())
    assert record["made"] == {"device": made["device"], "git": made["git"]}


def test_a_table_by_this_very_code_is_not_measured_again(chain, monkeypatch):
    run, _ = chain["tokenizer"]
    first = stages.measured(run)
    monkeypatch.setattr(stages, "measure", lambda run: pytest.fail("measured again"))
    assert stages.measured(run)["value"].tolist() == pytest.approx(first["value"].tolist())
    monkeypatch.setattr(stages, "measure", lambda run: "again")
    monkeypatch.setattr(storage, "CODE", "of a module that was edited")
    assert stages.measured(run) == "again"


def test_the_further_stages_of_an_ablation_get_tables_too(chain, monkeypatch):
    monkeypatch.setattr(config, "resolve", with_tiny(config.resolve))
    table = stages.compare("negatives", profile="smoke", seeds=[0], games=["breakout"])
    assert set(table["stage"]) == {"encoder"}
    run = runs.start("tokenizer", profile="smoke", games=["breakout"],
                     variant="negatives.in_batch")
    assert (run.root / "results" / "tokenizer" / f"{run.name}.csv").exists()


def test_dreams_are_shown_from_the_best_to_the_worst_by_rank(chain):
    share, frames = pictures.ranked_dreams(chain["imagination"][0], "breakout", count=2)
    assert len(share) == 2 and share[0] >= share[1]
    assert set(frames) == {"real game", "its codes", "dream"}
    assert len({film.shape for film in frames.values()}) == 1
    drawn = figures.ten_dreams(share, frames, steps=(1, 3))
    assert len(drawn.axes) == 2 * 3 * 2


def test_the_most_shared_codes_come_with_each_games_nearest_frame(chain):
    run = chain["decoder"][0]
    found = stages.shared_codes(run, count=2)
    assert [set(one["nearest"]) for one in found] == [{"breakout"}] * 2
    assert found[0]["shares"].min() >= found[1]["shares"].min() > 0
    assert len(figures.shared_codes(found).axes) == 2 * 2


def test_the_world_models_table_states_its_size_its_speed_and_that_codebooks_stand_still(chain):
    found = chain["world_model"][1].set_index("metric")["value"]
    assert found["codebook_change"] == 0.0
    assert found["tokens_per_second"] > 0 and found["parameters"] > 10_000


def test_no_window_crosses_an_end_though_many_cut_anywhere_would(chain):
    table = chain["frames"][1]
    row = table[table["metric"] == "boundary_violations"].iloc[0]
    assert row["value"] == 0 and row["baseline"] > 0


# ---- what is refused in one line

@pytest.mark.parametrize("stage", ["entropy_floor", "transfer"])
def test_a_stage_that_makes_only_a_table_has_nothing_to_load(chain, stage):
    assert refusal(stages.load, started(stage)) == (
        f"stage {stage} makes a table and nothing to load")


def test_making_a_stage_that_only_measures_makes_what_it_needs_and_leaves_no_record(chain):
    for stage in ("imagination", "entropy_floor"):
        assert stages.make(chain[stage][0]) == {}
        assert not chain[stage][0].folder.exists()


def test_dreams_are_of_the_world_model_that_they_load(chain):
    dreamer, model = (stages.load(chain[stage][0]) for stage in ("imagination", "world_model"))
    assert all(torch.equal(value, dreamer.state_dict()[name])
               for name, value in model.state_dict().items())


@pytest.mark.parametrize(("levels", "codes"), [(4, 256), (1, 256), (3, 128)])
def test_a_tokenizer_with_other_levels_or_codes_is_refused_by_name_and_hash(
        monkeypatch, levels, codes):
    run = runs.start("world_model", profile="smoke", overrides={
        "tokenizer.num_levels": levels, "tokenizer.num_codes": codes})
    vq = ResidualVQ(levels, codes, 4, commitment_costs=[0.1] * levels)
    load = stages.load
    monkeypatch.setattr(stages, "load",
                        lambda run: vq if run.stage == "tokenizer" else load(run))
    for use in (stages.load, stages.STAGES["world_model"].make):
        assert refusal(use, run) == (
            f"the tokenizer base-seed0 ({run.at('tokenizer').identity[:10]}) has {levels} levels "
            f"of {codes} codes; the world model base-seed0 ({run.identity[:10]}) reads 3 levels of "
            "256 codes")


# ---- players that are played once

@pytest.fixture
def policy_run(monkeypatch, tmp_path):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    return runs.start("policy", profile="smoke")


def counting(calls, made):
    def make():
        calls.append(1)
        return made
    return make


def test_a_player_is_played_once_for_all_arms_and_gives_the_same_rows(policy_run):
    protocol = {"game": "breakout", "num_episodes": 1, "seed": 3, "sticky": 0.25}
    first = stages.remembered(policy_run, "random", protocol,
                              lambda: play.play(random_act("breakout"), **protocol))
    assert first == play.play(random_act("breakout"), **protocol)
    arm = runs.start("policy", profile="smoke", variant="policy.ppo")
    again = stages.remembered(arm, "random", protocol, lambda: pytest.fail("played again"))
    assert again == first
    assert [list(map(type, r.values())) for r in again] == [list(map(type, r.values()))
                                                            for r in first]


def test_another_setting_player_version_or_code_is_played_afresh(policy_run, monkeypatch, tmp_path):
    calls = []
    stages.remembered(policy_run, "random", {"seed": 1}, counting(calls, [1]))
    stages.remembered(policy_run, "random", {"seed": 2}, counting(calls, [2]))
    stages.remembered(policy_run, "tracker", {"seed": 1}, counting(calls, [3]))
    code = tmp_path / "code.py"
    for text in ("one", "another"):
        code.write_text(text)
        stages.remembered(policy_run, "random", {"seed": 1}, counting(calls, [4]), code=[code])
    version = stages.importlib.metadata.version
    monkeypatch.setattr(stages.importlib.metadata, "version",
                        lambda name: "0.0" if name == "ale-py" else version(name))
    stages.remembered(policy_run, "random", {"seed": 1}, counting(calls, [5]))
    assert len(calls) == 6


@pytest.mark.parametrize("damage", [
    lambda text: text[:-30], lambda text: text.replace("1.5", "9.5"), lambda text: "{}",
    lambda text: ""])
def test_a_damaged_file_is_played_again(policy_run, damage):
    calls, settings = [], {"seed": 1, "widths": (2, 3)}
    stages.remembered(policy_run, "random", settings, counting(calls, [1.5]))
    path, = (policy_run.root / "players").glob("*.json")
    path.write_text(damage(path.read_text()))
    assert stages.remembered(policy_run, "random", settings, counting(calls, [1.5])) == [1.5]
    assert len(calls) == 2
    assert stages.remembered(policy_run, "random", settings, counting(calls, [1.5])) == [1.5]
    assert len(calls) == 2, "a file that is whole is believed, tuples in its settings or not"


def test_a_file_of_other_settings_under_the_same_name_is_not_believed(policy_run):
    stages.remembered(policy_run, "random", {"seed": 1}, lambda: [1])
    one, = (policy_run.root / "players").glob("*.json")
    stages.remembered(policy_run, "random", {"seed": 2}, lambda: [2])
    other, = set((policy_run.root / "players").glob("*.json")) - {one}
    one.write_text(other.read_text())
    assert stages.remembered(policy_run, "random", {"seed": 1}, lambda: [3]) == [3]


def test_every_ablation_has_curves_to_watch():
    assert {one.measure for one in config.ABLATIONS.values()} <= {*stages.CURVES}
