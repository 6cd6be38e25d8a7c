"""hd.report.tables: what metrics mean, and tables from tiny inputs."""

import ast

import numpy as np
import pytest
from tiny import TinyReplay, long_table, record_of, write_table

from hd.atari import GAMES
from hd.config import InputError
from hd.measure import frames, probes
from hd.report import tables
from hd.run import metrics
from hd.run.intervals import interval_over_seeds
from hd.run.runs import row
from hd.run.storage import ROOT

# Metric names that are put together from variables, by the expression that does it.
COMPOSED = {
    "f'r2_{place}'": ["r2_ball_x"], "f'error_{place}'": ["error_ball_x"],
    "key + suffix": ["state_correlation", "f1_overall",
                     *(f"f1_{name}" for name in probes.CATEGORIES),
                     "rms_error_ball_x[at 70]",
                     *(f"{kind}_{name}[untrained]" for kind in ("r2", "error")
                       for game in GAMES.values() for name in game.coordinates)],
    "key": ["r2_ball_x[source tracker]", "f1_overall[source agent]"],
    "prefix + metric + suffix": ["transfer_l2_accuracy", "transfer_l0_changed_accuracy[one_level]",
                                 "transfer_l1_cross_entropy", "transfer_l1_changed_cross_entropy"],
    "f'{prefix}{metric}[ngram]'": ["transfer_l0_cross_entropy[ngram]"],
    "metric": ["seed_temporal_consistency", "seed_temporal_consistency_mean", "seed_diversity",
               "embedding_norm_deviation", "seed_state_correlation[columns]",
               "seed_pair_correlation", "box_agreement_ball_x[columns]", "box_found_player_y"],
    "f'{metric}[{name}]'": ["temporal_consistency[dinov2]", "f1_overall[thinned]",
                            "seed_state_correlation[columns][dinov2]"],
    "prefix + metric": ["l0_accuracy", "l2_changed_accuracy", "l1_cross_entropy",
                        "l0_changed_cross_entropy", "transfer_l2_accuracy",
                        "transfer_l0_changed_accuracy[one_level]", "transfer_l1_cross_entropy",
                        "transfer_l1_changed_cross_entropy"],
    "f'{prefix}{metric}[{name}]'": ["l0_accuracy[repeat_last]", "l1_changed_accuracy[frequency]"],
    "f'l{level}_{name}'": ["l0_usage", "l2_perplexity"],
    "f'l{level}_{name}[from {threshold:g}]'": ["l0_shared_frames[from 0]",
                                               "l2_shared_codes[from 0.001]"],
    "f'transfer_l0_gain{suffix}'": ["transfer_l0_gain[one_level]"],
    "f'dream_error_{name}{suffix}'": ["dream_error_ball_x", "dream_error_player_x[re-encoded]"],
    "f'dream_error_{name}'": ["dream_error_ball_x"],
    "f'dream_turn_recall_{name}'": ["dream_turn_recall_ball_y"],
    "f'dream_reward_{name}'": ["dream_reward_recall", "dream_reward_precision"],
    "f'dream_turn_recall_{name}{suffix}'": ["dream_turn_recall_ball_x[re-encoded]"],
    "f'dreams_with_turn_{name}'": ["dreams_with_turn_ball_y"],
    "f'l{level}_state_floor{suffix}'": ["l0_state_floor[sticky 0.25]",
                                        "l2_state_floor[sticky 0.25, ball in play]"],
    "f'l{level}_state_error{suffix}'": ["l1_state_error[sticky 0]"],
    "f'branching_states[sticky {sticky:g}]'": ["branching_states[sticky 0]"],
    "f'{name}_average_precision'": ["reward_average_precision", "end_average_precision"],
    "name": ["steps", "episodes", "windows_of_24", "games_ended", "episode_length", "return",
             "rewarded_share"],
}


# ---- metrics

def metric_arguments():
    """The first argument of every call of row(...) in the package, with its file."""
    for path in sorted((ROOT / "hd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("row", "runs.row"):
                yield path.name, node.args[0]


def sample_names(argument):
    """Metric names an argument of row(...) can stand for; None when the test does not know."""
    source = ast.unparse(argument)
    if source in COMPOSED:
        return COMPOSED[source]
    if isinstance(argument, ast.Call) and ast.unparse(argument.func) in ("named", "metrics.named"):
        return sample_names(argument.args[0])  # brackets do not change what a metric means
    if isinstance(argument, ast.Constant):
        return [argument.value]
    if isinstance(argument, ast.JoinedStr):
        holes = {ast.unparse(part.value) for part in argument.values
                 if isinstance(part, ast.FormattedValue)}
        if holes <= {"level"} or "[" in argument.values[0].value:
            return ["".join(part.value if isinstance(part, ast.Constant) else "1"
                            for part in argument.values)]
    return None


def test_every_metric_that_the_package_writes_is_explained():
    found = list(metric_arguments())
    assert len(found) > 20
    for name, argument in found:
        samples = sample_names(argument)
        assert samples, f"{name}: add {ast.unparse(argument)!r} with its names to COMPOSED"
        for metric in samples:
            assert metrics.key_of(metric) in metrics.METRICS


def test_what_is_counted_about_the_stored_frames_is_explained():
    rows = frames.rows_of(TinyReplay(), asked={"random": 1.0}, length=24)
    names = {entry["metric"] for entry in rows}
    assert {metrics.key_of(name) for name in names} <= set(metrics.METRICS)
    assert names == {"boundary_violations", *COMPOSED["name"]}


def test_the_share_of_a_source_that_was_asked_for_and_not_played_is_explained_too():
    rows = frames.rows_of(TinyReplay(), asked={"random": 1.0, "tracker": 3.0}, length=24)
    found = {(entry["metric"], entry["game"], entry["split"]): (entry["value"], entry["baseline"])
             for entry in rows if metrics.key_of(entry["metric"]) == "source_share"}
    assert found["source_share[random]", "all", "train"] == (1.0, 0.25)
    assert found["source_share[tracker]", "pong", "val"] == (0.0, 0.75)
    assert len(found) == 2 * 5, "Breakout has no held-out episode"


def test_explaining_a_table_gives_one_row_per_kind_of_metric():
    table = long_table([row("l0_usage", 1), row("l1_usage", 1), row("diversity", 1)])
    assert list(tables.explain(table).index) == ["diversity", "l{level}_usage"]
    with pytest.raises(InputError, match="'speed' is not explained"):
        tables.explain(["speed"])


@pytest.mark.parametrize(("value", "text"), [
    (0.5, "0.500"), (0.12345, "0.123"), (0.9996, "1.00"), (-0.04567, "-0.0457"), (307.34, "307"),
    (1234.5, "1,230"), (27000, "27,000"), (5, "5"), (0, "0"), (-0.0, "0"), (1.0, "1"),
    (0.00001234, "1.23e-05"), (float("nan"), "–"), (None, "–")])
def test_numbers_are_printed_with_three_significant_digits_and_counts_in_full(value, text):
    assert tables.number(value) == text


def test_the_number_of_digits_can_be_chosen():
    assert tables.number(0.12345, digits=2) == "0.12"


# ---- tables

def test_a_table_is_found_in_the_published_and_in_the_fresh_layout(tmp_path):
    write_table(tmp_path / "results" / "quick", [row("diversity", 1.25)])
    write_table(tmp_path / "fresh", [row("diversity", 1.5)])
    for folder, value in (("results", 1.25), ("fresh", 1.5)):
        table = tables.fresh_or_published(tmp_path / folder, "quick", "encoder", "base", seed=0)
        assert table["value"].tolist() == [value]


def test_all_seeds_are_read_in_order_and_nothing_but_this_variants_tables(tmp_path):
    for seed in (10, 2):
        path = write_table(tmp_path, [row("real_return", seed)], stage="policy", seed=seed)
        path.with_name(f"{path.stem}-episodes.csv").write_text("player,return\nrandom,1\n")
    write_table(tmp_path, [row("real_return", 7)], stage="policy", variant="base2")
    table = tables.fresh_or_published(tmp_path, "quick", "policy")
    assert table["seed"].tolist() == [2, 10]
    assert [record["seed"] for record in table.attrs["records"]] == [2, 10]
    assert len(tables.episodes(tmp_path, "quick")) == 2
    assert tables.fresh_or_published(tmp_path, "quick", "policy", seed=10)["value"].tolist() == [10]


def test_a_missing_table_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="hd run 02_encoder --profile desk --variant base --seed"):
        tables.fresh_or_published(tmp_path, "desk", "encoder")
    with pytest.raises(InputError, match="unknown profile 'dekk'; allowed: smoke"):
        tables.fresh_or_published(tmp_path, "dekk", "encoder")


def test_a_table_of_another_profile_or_a_damaged_one_is_refused(tmp_path):
    path = write_table(tmp_path, [row("diversity", 1)])
    with pytest.raises(InputError, match="holds profile quick, not desk"):
        tables.fresh_or_published(tmp_path, "desk", "encoder")
    path.write_text(path.read_text().replace("1.0", "2.0"))
    with pytest.raises(InputError, match="damaged"):
        tables.fresh_or_published(tmp_path, "quick", "encoder")


def test_seeds_of_different_configs_are_not_pooled(tmp_path):
    write_table(tmp_path, [row("diversity", 1)], seed=0)
    write_table(tmp_path, [row("diversity", 1)], seed=1, config={"lr": 2.0})
    with pytest.raises(InputError, match="different configs"):
        tables.fresh_or_published(tmp_path, "quick", "encoder")


def test_a_pivot_shows_value_and_baseline_per_game_in_the_fixed_order():
    table = long_table([row("l0_usage", 0.5, game="breakout", baseline=0.98765),
                        row("l0_usage", 1.0, game="pong"), row("exposures", 12.34, split="train")])
    wide = tables.pivot(table)
    assert wide.columns.tolist() == ["pong", "breakout", "all"]
    assert wide.loc["l0_usage"].tolist() == ["1", "0.500 (0.988)", ""]
    assert wide.loc["exposures"].tolist() == ["", "", "12.3"]
    assert wide.index.name is None and wide.columns.name is None


def test_a_pivot_takes_patterns_keeps_steps_apart_and_counts_seeds():
    rows = [row("dream_l0_accuracy", 0.25 * step, game="pong", step=step) for step in (1, 2)]
    table = long_table([*rows, row("dreams", 9, game="pong")], seeds=(0, 1))
    wide = tables.pivot(table, ["dream_l{level}_accuracy"])
    assert wide.index.tolist() == ["dream_l0_accuracy, step 1", "dream_l0_accuracy, step 2"]
    assert wide["pong"].tolist() == ["0.250", "0.500"]
    assert wide["seeds"].tolist() == [2, 2]
    with pytest.raises(InputError, match=r"no metric 'diversity'.*dreams"):
        tables.pivot(table, ["diversity"])


def test_a_pattern_for_all_levels_leaves_the_changed_codes_out():
    table = long_table([row(f"l{level}_{part}accuracy", 0.5) for level in range(3)
                        for part in ("", "changed_")] + [row("l0_accuracy[frequency]", 0.1)])
    found = tables.summarise(table, ["l{level}_accuracy", "l0_accuracy[frequency]"])
    assert found["metric"].tolist() == [
        "l0_accuracy", "l1_accuracy", "l2_accuracy", "l0_accuracy[frequency]"]


def test_over_seeds_gives_mean_interval_and_n():
    table = long_table(lambda seed: [row("real_return", 3.0 * seed, game="pong", baseline=-20)],
                       seeds=range(5))
    shown = tables.over_seeds(table).iloc[0]
    low, high = interval_over_seeds([0.0, 3.0, 6.0, 9.0, 12.0])
    assert (shown["mean"], shown["baseline"], shown["n"]) == ("6", "-20", 5)
    assert shown[tables.SPREAD] == f"[{tables.number(low)}, {tables.number(high)}]"
    assert tables.over_seeds(table[table["seed"] == 1])[tables.SPREAD].tolist() == ["–"]
    assert tables.over_seeds(table[table["seed"] < 3])[tables.SPREAD].tolist() == ["0, 3, 6"]


def test_the_best_baseline_stands_beside_a_mean_by_name_where_it_is_another_method():
    table = long_table([
        row("l0_accuracy", 0.6, game="pong", baseline=0.5),
        row("l0_accuracy[repeat_last]", 0.7, game="pong"),
        row("l0_accuracy[frequency]", 0.2, game="pong"),
        row("l0_accuracy", 0.6, game="breakout", baseline=0.5),
        row("l0_accuracy[repeat_last]", 0.4, game="breakout"),
        row("l0_accuracy[source tracker]", 0.9, game="pong", baseline=0.3),
        row("dream_error_ball_x", 9.0, game="pong", step=1, baseline=20.0),
        row("dream_error_ball_x[extrapolated]", 1.0, game="pong", step=1),
        row("dream_error_ball_x", 9.0, game="pong", step=5, baseline=20.0),
        row("diversity", 1.0, game="pong", baseline=0.5)])
    shown = tables.over_seeds(table)
    names = shown.index + " " + shown["game"]
    found = dict(zip(names, shown["baseline"]))
    assert found["l0_accuracy pong"] == "0.700 last code"
    assert found["l0_accuracy breakout"] == "0.500"
    assert found["l0_accuracy[source tracker] pong"] == "0.300"
    assert found["dream_error_ball_x, step 1 pong"] == "1 last velocity", "less is better"
    assert found["dream_error_ball_x, step 5 pong"] == "20"
    assert found["diversity pong"] == "0.500", "neither more nor less is better"


@pytest.mark.parametrize(("seeds_with_rows", "words"), [
    ((), "n-gram"), ((0, 1), "best trivial predictor"),
    ((1,), "n-gram or best trivial predictor")])
def test_what_a_baseline_is_goes_by_the_rows_that_a_table_has(seeds_with_rows, words):
    def rows(seed):
        counted = [row("l0_accuracy[back_off]", 0.5)] if seed in seeds_with_rows else []
        return [row("l0_accuracy", 0.6, baseline=0.5), *counted]

    table = long_table(rows, stage="world_model", seeds=(0, 1))
    assert tables.explain(table)["baseline"].tolist() == [words]
    assert tables.explain(["l0_accuracy"])["baseline"].tolist() == ["best trivial predictor"]
    assert tables.baseline_words("random play", table) == "random play"


def test_optional_metrics_are_shown_where_the_table_has_them():
    table = long_table([row("diversity", 1), row("real_return", 2)])
    names = [tables.over_seeds(table, ["diversity"], optional=optional).index.tolist()
             for optional in ((), ("real_return", "l0_accuracy"))]
    assert names == [["diversity"], ["diversity", "real_return"]]
    with pytest.raises(InputError, match="l0_accuracy"):
        tables.over_seeds(table, ["l0_accuracy"])


def test_the_same_seed_never_counts_twice():
    table = long_table([row("diversity", 1), row("diversity", 2)])
    with pytest.raises(InputError, match="twice"):
        tables.summarise(table)


def test_a_missing_value_lowers_n_instead_of_hiding_the_others():
    table = long_table(lambda seed: [row("real_return", [1.0, np.nan, 2.0][seed])],
                       seeds=(0, 1, 2))
    found = tables.summarise(table).iloc[0]
    assert (found["mean"], found["n"]) == (1.5, 2)


def test_a_caption_names_seeds_device_commit_and_seconds():
    line = " ".join(tables.provenance_line(record_of()).split())
    assert line == ("profile quick, variant base, seed 0 (n=1), device Test CPU, commit abc1234, "
                    "40 s")
    other = record_of(seed=2, device="GPU", git={"commit": "def5678", "dirty": True},
                      games=["pong"])
    both = tables.provenance_line([record_of(), other])
    assert max(map(len, both.splitlines())) <= 76, "a longer line is clipped on the page"
    assert " ".join(both.split()) == (
        "profile quick, variant base, seeds 0, 2 (n=2), games pong+breakout+ms_pacman, pong, "
        "device Test CPU; GPU, commit abc1234, def5678 (dirty), 80 s")


def test_the_epoch_table_keeps_the_last_evaluation_and_skips_other_rows():
    def evaluated(s):
        return {"val_codes": 3.0 / s, "train_codes": 1.0 / s, "val_l0_accuracy": 0.5,
                "val_l1_accuracy": 0.25, "val_l2_accuracy": 0.125} if s % 2 == 0 else {}

    history = [{"step": s, "codes": 2.0 / s, **evaluated(s)} for s in range(1, 21)]
    table = tables.seed_epoch_table(history, steps_per_epoch=4, num_rows=3)
    assert table.index.tolist() == ["epoch 1.50", "epoch 3", "epoch 5"]
    assert table.loc["epoch 5"].tolist() == [
        "0.100", "0.0500", "0.150", "0.500", "0.250", "0.125"]


def test_costs_leave_out_what_was_not_asked_for_and_miss_no_stage_of_the_chain(tmp_path):
    chain = ("frames", "encoder", "tokenizer", "decoder", "world_model", "imagination", "policy")
    measured = {"made_seconds": 7.0, "peak_memory_mb": 90.0, "profile": "quick"}
    for stage in chain:
        write_table(tmp_path / "quick", [row("steps", 1)], stage=stage, **measured)
    assert tables.costs(tmp_path, "quick")["stage"].tolist() == [*chain]
    write_table(tmp_path / "quick", [row("steps", 1)], stage="entropy_floor", **measured)
    found = tables.costs(tmp_path, "quick")
    assert found["stage"].tolist() == [*chain, "entropy_floor"]
    assert found["making (s)"].tolist() == ["7"] * 8
    (tmp_path / "quick" / "tokenizer" / "base-seed0.csv").unlink()
    with pytest.raises(InputError, match="no table of stage tokenizer"):
        tables.costs(tmp_path, "quick")
