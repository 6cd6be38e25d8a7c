"""hd.measure.transfer and its stage: a tiny run of all rotations, what parts share, how they stop.
"""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import stored_steps

from hd import config, stages, world_model
from hd.config import InputError, WorldModelConfig
from hd.measure import predictions, transfer
from hd.measure.transfer import LEVELS, STARTS
from hd.quantization import ResidualVQ
from hd.report import figures
from hd.run import runs
from hd.run.machine import device
from hd.stages import Rotation
from hd.windows import Windows
from hd.world_model import WorldModel

TINY = {"frames.num_steps": 200, "frames.min_episodes": 4, "frames.val_share": 0.25,
        "frames.test_share": 0.25,
        "encoder.num_steps": 1, "encoder.batch_size": 8, "tokenizer.num_steps": 1,
        "tokenizer.batch_size": 300, "tokenizer.kmeans_iterations": 1,
        "world_model.max_steps": 12, "world_model.batch_size": 4, "transfer.budgets": (100, 900),
        "transfer.source_steps": 2, "transfer.num_steps": 3}


@pytest.fixture(autouse=True)
def one_thread():
    """On matrices this small a second thread costs more than it brings."""
    torch.set_num_threads(1)


def start(stage="transfer", **chosen):
    overrides = {**TINY, **chosen.pop("overrides", {})}
    return runs.start(stage, profile="smoke", overrides=overrides, **chosen)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run stopped before its sixth part and inside a later one, and its table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        patch.setenv("WANDB_MODE", "disabled")
        torch.set_num_threads(1)
        run, looks = start(), []

        def must_stop(self, *, margin=0.0):
            looks.append(self)
            return (sum(seen.stage == "transfer" for seen in looks) == 6
                    or (looks.count(self) == 2 and self == stopped_inside(run)))

        with pytest.MonkeyPatch.context() as limited:
            limited.setattr(runs.Run, "must_stop", must_stop)
            with pytest.raises(runs.TimeLimitReached, match="stopped before pong on 100 steps, "):
                stages.make(run)
            with pytest.raises(runs.TimeLimitReached, match="world_model stopped at step 2 of 3"):
                stages.make(run)
        stages.make(run)
        yield run, stages.measure(run)


def stopped_inside(run):
    """The part that the run of these tests was stopped in."""
    return Rotation(run, "pong").adaptation(3, 900, "pretrained")


def value(table, metric, *, game="pong", step=100, column="value"):
    chosen = table[(table["metric"] == metric) & (table["game"] == game) & (table["step"] == step)]
    return chosen[column].item()


# ---- what is refused, counted and cut

@pytest.mark.parametrize("games", ["pong", "pong,breakout"])
def test_fewer_than_three_games_are_refused_in_one_line(games):
    with pytest.raises(InputError, match="two source games and a target: three games; got pong"):
        stages.STAGES["transfer"].make(start(games=games))


# Five episodes of 3, 5, 2, 4, 6 steps; the second is held out.
EPISODES = SimpleNamespace(episode_ids=np.repeat(np.arange(5), [3, 5, 2, 4, 6]))
EPISODES.is_train = EPISODES.episode_ids != 1


@pytest.mark.parametrize(("budget", "episodes"), [
    (0, []), (1, [0]), (3, [0]), (4, [0, 2]), (5, [0, 2]), (6, [0, 2, 3]), (99, [0, 2, 3, 4])])
def test_a_budget_is_filled_with_the_first_whole_training_episodes(budget, episodes):
    chosen = transfer.within_budget(EPISODES, budget)
    assert chosen.tolist() == np.isin(EPISODES.episode_ids, episodes).tolist()


def test_a_model_of_one_level_sees_nothing_of_the_finer_codes():
    codes = np.arange(12, dtype=np.int16).reshape(4, 3)
    assert transfer.first_levels(codes, 1).tolist() == [[0, 0, 0], [3, 0, 0], [6, 0, 0], [9, 0, 0]]
    assert (transfer.first_levels(codes, 3) == codes).all()
    assert transfer.first_levels(codes, 1).dtype == codes.dtype


def test_level_0_of_three_is_exactly_a_tokenizer_of_one_level():
    books = []
    for levels in (1, 3):
        model = ResidualVQ(levels, 7, 5, commitment_costs=(0.05, 0.25, 0.6)).train()
        for step in range(20):
            torch.manual_seed(step)  # as hd.run.training does
            model(torch.randn(40, 5))
        books.append(model.codebooks[0])
    assert torch.equal(*books)


def test_arrays_and_models_are_enough_for_the_rows_of_a_target():
    data = stored_steps({"pong": (30, 20, 30)}, held_out=(1,))
    cfg = WorldModelConfig(num_codes=7, num_layers=1, dim=12, num_heads=2, ffn_dim=20, max_steps=5,
                           batch_size=4)
    codes = np.random.default_rng(0).integers(0, 7, (len(data), 3)).astype(np.int16)
    windows = {levels: Windows(cfg, data, transfer.first_levels(codes, levels), seed=0,
                               only=transfer.within_budget(data, 25)) for levels in LEVELS}
    models = {}
    for levels, start_ in ((levels, start_) for levels in LEVELS for start_ in STARTS):
        torch.manual_seed(len(models))
        models[levels, start_] = WorldModel(cfg).to(device()).eval()
    rows = transfer.rows_of(windows, lambda *chosen: models[chosen], budget=25)
    found = {row["metric"]: (row["value"], row["baseline"]) for row in rows}
    assert {(row["game"], row["step"]) for row in rows} == {("pong", 25)}
    assert found["transfer_steps"][0] == 30, "whole episodes"
    starts = windows[3].held_out()
    for levels, word in ((3, ""), (1, "[one_level]")):
        with torch.no_grad():
            nats = [predictions.score_windows(models[levels, start_], windows[levels], starts)[0]
                    .nats.mean() for start_ in STARTS]
        assert found[f"transfer_l0_cross_entropy{word}"] == pytest.approx(tuple(nats))
        assert found[f"transfer_l0_gain{word}"] == pytest.approx((nats[1] - nats[0], 0))
        assert nats[0] != nats[1]
    for name, counted in predictions.baselines(windows[3], "pong", 2, starts).items():
        assert found[f"transfer_l2_accuracy[{name}]"][0] == counted.is_right.mean()


# ---- what decides a part

def test_the_sources_encoder_and_codes_are_those_of_a_run_without_the_target():
    rotation = Rotation(start(), "breakout")
    assert rotation.source.games == ("pong", "ms_pacman")
    for stage in ("frames", "encoder", "tokenizer"):
        alone = start(stage, games=["pong", "ms_pacman"])
        assert rotation.source.at(stage).folder == alone.folder


def test_every_part_has_a_folder_of_its_own():
    run = start()
    folders = [part.folder for target in config.GAMES
               for _, part, _ in Rotation(run, target).parts()]
    assert len(set(folders)) == len(folders) == 3 * (3 + 2 + 2 * 2 * 2)


def test_more_source_steps_make_new_pretrained_models_and_keep_those_from_scratch():
    one = Rotation(start(), "pong")
    more = Rotation(start(overrides={"transfer.source_steps": 9}), "pong")
    for levels in LEVELS:
        assert one.pretraining(levels).folder != more.pretraining(levels).folder
        same = {name: one.adaptation(levels, 100, name).folder ==
                more.adaptation(levels, 100, name).folder for name in STARTS}
        assert same == {"pretrained": False, "scratch": True}


def test_a_part_names_the_command_of_its_run_and_belongs_to_its_stage_only():
    run = start(seed=3)
    part = Rotation(run, "pong").adaptation(1, 100, "scratch")
    assert part.command == run.command and "09_transfer" in part.command
    assert part.at("world_model").folder == part.folder and part.part in part.folder.name
    assert part.at("tokenizer").part == ""


def test_a_variant_of_split_and_shares_still_holds_out_whole_episodes():
    run = start(overrides={"world_model.split": "windows", "world_model.game_shares": (1., 2., 3.)})
    cfg = Rotation(run, "pong").source.cfg
    assert cfg.split == "episodes" and cfg.game_shares == ()


# ---- a whole run

def test_a_part_that_was_stopped_ends_as_one_that_was_not(made):
    part = stopped_inside(made[0])
    stopped = stages.load(part).state_dict()
    shutil.rmtree(part.folder)
    Rotation(made[0], "pong")._adapt(3, 900, "pretrained")
    assert all(torch.equal(stopped[key], value)
               for key, value in stages.load(part).state_dict().items())
    assert runs.finished(made[0])["wall_seconds"] > 0


def test_the_source_games_are_not_played_again(made):
    run, _ = made
    for rotation in stages.rotations(run):
        folder = rotation.source.at("frames").folder
        assert {path.name.split("-")[1].split(".")[0] for path in folder.glob("frames-*.npy")} == \
            set(rotation.source.games)
        for game in rotation.source.games:
            name = f"frames-{game}.npy"
            assert (folder / name).samefile(run.at("frames").folder / name)


def test_the_table_has_every_target_budget_level_and_condition_once(made):
    run, table = made
    assert not table.duplicated(["game", "step", "metric"]).any()
    kinds = ["cross_entropy", "accuracy", "changed_cross_entropy", "changed_accuracy"]
    methods = ("", "[back_off]", "[frequency]", "[repeat_last]")
    expected = {"transfer_steps", "transfer_l0_gain", "transfer_l0_gain[one_level]",
                *(f"transfer_l{level}_{kind}{method}" for kind in kinds
                  for level in range(3) for method in methods),
                *(f"transfer_l0_{kind}[one_level]" for kind in kinds)}
    for _, own in table.groupby(["game", "step"]):
        # A code that never changes in these few steps has no row about its changes.
        assert expected - set(own["metric"]) <= {name for name in expected if "changed" in name}
        assert set(own["metric"]) <= expected
    assert set(zip(table["game"], table["step"])) == {
        (game, step) for game in run.games for step in (0, 100, 900)}
    assert np.isfinite(table["value"]).all()


def test_before_adapting_from_scratch_and_counting_know_nothing(made):
    _, table = made
    for game in config.GAMES:
        assert value(table, "transfer_l1_cross_entropy[frequency]", game=game, step=0) == \
            pytest.approx(math.log(256))
        untrained = value(table, "transfer_l0_cross_entropy", game=game, step=0, column="baseline")
        assert untrained == pytest.approx(math.log(256), rel=0.05)  # small initial weights
        assert value(table, "transfer_steps", game=game, step=0) == 0


def test_the_gain_is_what_the_pretrained_model_saves_against_the_one_from_scratch(made):
    _, table = made
    for suffix in ("", "[one_level]"):
        name = f"transfer_l0_cross_entropy{suffix}"
        saved = value(table, name, column="baseline") - value(table, name)
        assert value(table, f"transfer_l0_gain{suffix}") == pytest.approx(saved, abs=1e-4)


def test_the_steps_used_reach_the_budget_or_are_all_there_are(made):
    run, table = made
    for rotation in stages.rotations(run):
        used = value(table, "transfer_steps", game=rotation.target)
        assert used >= 100
        more = value(table, "transfer_steps", game=rotation.target, step=900)
        assert more >= 900 or more == rotation.data.is_train.sum()


def test_adapting_reads_only_the_budgets_steps_of_the_target_in_the_sources_codes(made):
    run, _ = made
    rotation = Rotation(run, "ms_pacman")
    windows = rotation.target_windows(3, 100)
    rows = windows.batch_starts(0)[:, None] + np.arange(12)
    assert rotation.data.games == ("ms_pacman",)
    assert transfer.within_budget(rotation.data, 100)[rows].all()
    assert rotation.data.is_train[rows].all()
    assert not rotation.data.is_train[windows.held_out()].any()
    assert (rotation.codes[windows.held_out()] == windows.tokens[windows.held_out()]).all()
    assert len(stages.tokens_of(rotation.source)) != len(rotation.codes)


def test_both_models_of_a_pair_get_the_same_batches_and_only_the_first_weights_differ(
        made, monkeypatch):
    run, _ = made
    seen = []
    monkeypatch.setattr(
        world_model, "train", lambda cfg, windows, codebooks, run, *, start: seen.append(
            (windows.batch(windows.batch_starts(2), 12), start.state_dict())))
    for start_ in STARTS:
        Rotation(run, "pong")._adapt(1, 100, start_)
    (first, learned), (second, fresh) = seen
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(learned["code_heads.0.weight"], fresh["code_heads.0.weight"])
    assert (first["tokens"][..., 1:] == 0).all() and first["tokens"][..., 0].any()
    trained = stages.load(Rotation(run, "pong").pretraining(1)).state_dict()
    assert all(torch.equal(learned[key], trained[key]) for key in trained)


def test_making_a_finished_run_again_trains_nothing_and_a_damaged_part_is_made_again(
        made, monkeypatch, capsys):
    run, table = made
    made_again, train = [], world_model.train
    monkeypatch.setattr(
        world_model, "train", lambda cfg, windows, codebooks, part, **chosen: made_again.append(
            part.part) or train(cfg, windows, codebooks, part, **chosen))
    stages.make(run)
    assert made_again == []
    part = Rotation(run, "breakout").adaptation(3, 900, "pretrained")
    weights = part.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InputError, match="rebuild it: python -m hd run 09_transfer"):
        stages.measure(run)
    stages.make(run)
    assert made_again == [part.part]
    assert "does not match): making it again" in capsys.readouterr().err
    rotation = Rotation(run, "breakout")
    seen = {levels: rotation.target_windows(levels, 900) for levels in LEVELS}
    again = [row for row in transfer.rows_of(
        seen, lambda levels, start: rotation.model(levels, 900, start), budget=900)
             if row["metric"] == "transfer_l2_cross_entropy"]
    assert again[0]["value"] == value(table, "transfer_l2_cross_entropy", game="breakout", step=900)


def test_the_curves_show_every_condition_of_every_target(made):
    _, table = made
    fig = figures.transfer_curves(table)
    assert [ax.get_title() for ax in fig.axes] == [
        "to Pong, n=1", "to Breakout, n=1", "to MsPacman, n=1"]
    (words,) = [[text.get_text() for text in legend.get_texts()] for legend in fig.legends]
    assert sorted(words) == sorted([
        "back-off", *(f"{how}, {what}" for how in ("pre-trained", "from scratch")
                    for what in ("three levels", "one level"))])
    old = table[~table["metric"].str.contains("frequency|repeat_last")].assign(
        metric=lambda rows: rows["metric"].str.replace("back_off", "ngram"))
    assert "n-gram" in [text.get_text() for legend in figures.transfer_curves(old).legends
                        for text in legend.get_texts()], "tables from before back-off"
    drawn = [line.get_ydata().tolist() for line in fig.axes[0].get_lines()]
    wanted = [value(table, "transfer_l0_cross_entropy", step=step) for step in (0, 100, 900)]
    assert wanted in drawn
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["0", "100", "900"]
