"""The audit's table: values found over seeds, verdicts by rule, all 25 claims."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from hd.audit import claims, verdicts, wording
from hd.audit.evidence import (
    Measurement,
    Source,
    Tables,
    beside_best,
    best_counted,
    mean_of,
)
from hd.config import GAMES, PROFILES
from hd.run import metrics, runs


def found(values, baselines=None, profile="audit", stage="encoder", variant="base"):
    seeds = range(len(values))
    sources = tuple(Source(f"results/audit/{stage}/{variant}-seed{seed}.csv", stage, variant,
                           "a CPU", seed) for seed in seeds)
    return Measurement(pd.Series(values, seeds, float),
                       pd.Series(baselines or [math.nan] * len(values), seeds, float), profile,
                       sources)


def save(root, rows, *, stage="encoder", variant="base", seed=0, games=GAMES, history=(),
         monkeypatch):
    """A metric table with provenance below root/audit, as publishing leaves it."""
    monkeypatch.setenv("HD_ARTIFACTS", str(root))
    run = runs.start(stage, profile="audit", variant=variant, seed=seed, games=list(games))
    if history:
        runs.save_beside(run, "history", history)
    runs.save_table(run, rows)
    made = root / "audit" / "results" / stage
    target = root / "published" / "audit" / stage
    target.mkdir(parents=True, exist_ok=True)
    for path in made.glob(f"{run.name}*"):
        path.rename(target / path.name)
    return root / "published"


# ---- verdicts


def settled(verdict):
    """The verdict of a row that stands alone."""
    row = {"verdict": verdict, "trained": math.nan}
    return verdicts.settled([row], needs_training=False)[0]["verdict"]


TOO_FEW = "undecided, {} where 5 are needed"
FEW, MANY = [0.30, 0.31, 0.29], [0.30, 0.31, 0.29, 0.30, 0.32]
WIDE = [0.30, 0.90, 0.60, 0.50, 0.80]
NOTHING_SHOWN = f"{verdicts.UNDECIDED}, no difference shown by 5 seeds"


NEAR, FAR = [0.26, 0.27, 0.25, 0.26, 0.26], [0.40, 0.41, 0.39, 0.40, 0.42]
NOISY = [0.10, 0.60, 0.50, 0.20, 0.50]
NOT_TOLD = "undecided, not told from its number by 5 seeds"


@pytest.mark.parametrize(
    ("protocol", "same_protocol", "honest", "baseline", "verdict"),
    [
        (NEAR, [0.60] * 5, MANY, 0.60, verdicts.REPRODUCED),
        ([0.20] * 5, [0.60] * 5, MANY, 0.60, verdicts.REPRODUCED),  # better than the seed
        (FAR, [0.60] * 5, MANY, 0.60, verdicts.NOT_REPRODUCED),
        (FAR[:1], [0.60], MANY, 0.60, TOO_FEW.format("1 seed")),  # one rule for few seeds
        (NEAR[:3], [0.60] * 3, MANY, 0.60, TOO_FEW.format("3 seeds")),
        (NOISY, [0.70] * 5, MANY, 0.60, NOT_TOLD),
        ([0.26, 0.30, 0.27, 0.31, 0.24], [0.70] * 5, MANY, 0.60, NOT_TOLD),  # near, not clearly
        (NEAR, [0.60] * 5, MANY, 0.20, verdicts.ARTEFACT),  # worse than the baseline
        (NEAR, [0.28] * 5, MANY, 0.60, verdicts.ARTEFACT),  # the baseline reaches it too
        (FAR[:1], [0.28], MANY, 0.60, verdicts.ARTEFACT),  # the baseline alone reaches it
        (NEAR, [0.60] * 5, WIDE, 0.60, NOTHING_SHOWN),
        (NEAR, [0.60] * 5, FEW, 0.60, TOO_FEW.format("3 seeds")),
        (NEAR, [0.60] * 5, [0.30], 0.60, TOO_FEW.format("1 seed")),
        (NEAR, None, MANY, 0.60, verdicts.REPRODUCED),
    ])  # fmt: skip
def test_a_lower_is_better_claim_is_judged_by_number_baseline_and_interval(
        protocol, same_protocol, honest, baseline, verdict):
    judged = verdicts.judge(0.26, protocol=found(protocol, same_protocol),
                            honest=found(honest, [baseline] * len(honest)), better="lower")
    assert settled(judged) == verdict


def test_the_seeds_number_is_held_against_the_baseline_of_the_seeds_own_protocol():
    """Under the honest protocol the baseline may lie where the seed's number does: other frames."""
    honest = found(MANY, [0.45, 0.44, 0.43, 0.44, 0.45])
    assert settled(verdicts.judge(0.44, protocol=found([0.44] * 5, [0.60] * 5), honest=honest,
                                  better="lower")) == verdicts.REPRODUCED
    assert verdicts.judge(0.44, protocol=found([0.44], [0.43]), honest=honest,
                          better="lower") == verdicts.ARTEFACT


def test_where_higher_is_better_everything_is_mirrored():
    far = found([0.9, 0.91, 0.89, 0.9, 0.92], [0.5] * 5)
    high = {"protocol": far, "better": "higher"}
    good = found([0.8, 0.82, 0.81, 0.79, 0.8], [0.5] * 5)
    poor = found([0.4, 0.42, 0.41, 0.4, 0.4], [0.5] * 5)
    assert settled(verdicts.judge(0.85, honest=good, **high)) == verdicts.REPRODUCED
    assert settled(verdicts.judge(0.85, honest=poor, **high)) == verdicts.ARTEFACT
    assert settled(verdicts.judge(1.85, honest=good, **high)) == verdicts.NOT_REPRODUCED


UP = [0.2, 0.3, 0.25, 0.2, 0.3]


@pytest.mark.parametrize(("gap", "better", "verdict", "direction"), [
    (UP, "higher", verdicts.REPRODUCED, "higher in 5 of 5"),
    (UP, "lower", verdicts.NOT_REPRODUCED, "lower in 0 of 5"),
    ([-x for x in UP], "lower", verdicts.REPRODUCED, "lower in 5 of 5"),
    ([*UP[:3], -0.4, -0.5], "higher", NOTHING_SHOWN, "higher in 3 of 5"),
    ([0.0] * 5, "lower", NOTHING_SHOWN, "lower in 0 of 5"),
    ([1.0] * 5, "higher", verdicts.REPRODUCED, "higher in 5 of 5"),
    (UP[:4], "higher", TOO_FEW.format("4 seeds"), "higher in 4 of 4"),
    ([-9.0], "higher", TOO_FEW.format("1 seed"), "higher in 0 of 1"),
    ([], "lower", TOO_FEW.format("0 seeds"), "lower in 0 of 0")])
def test_a_difference_needs_five_seeds_and_says_where_they_point(gap, better, verdict, direction):
    row = {"verdict": verdicts.Difference(found(gap), better), "trained": math.nan}
    row = verdicts.settled([row], needs_training=False)[0]
    assert (row["verdict"], row["direction"]) == (verdict, direction)


RULES = {  # how the differences of claims become verdicts
    "a gap": lambda rng: verdicts.Difference(found(rng.normal(size=5)), "higher"),
    "an honest protocol beside its baseline": lambda rng: verdicts.judge(
        1.0, protocol=found([1.0] * 5, [5.0] * 5), honest=found(rng.normal(size=5), [0.0] * 5),
        better="lower"),
    "two splits": lambda rng: verdicts.Difference(
        found(rng.normal(size=5)) - found(rng.normal(size=5)), "higher", clear=verdicts.ARTEFACT),
    "a number, or better": lambda rng: verdicts.SameNumber(
        found(rng.normal(1.1, 0.01, 5)), 1.0, "lower"),
    "a number": lambda rng: verdicts.SameNumber(found(rng.normal(0.9, 0.01, 5)), 1.0)}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_where_there_is_nothing_a_claim_of_many_rows_gets_a_verdict_in_one_case_of_twenty(rule):
    rng = np.random.default_rng(0)

    def decided(num_rows):
        rows = [{"verdict": rule(rng), "trained": math.nan} for _ in range(num_rows)]
        return any(not row["verdict"].startswith(verdicts.UNDECIDED)
                   for row in verdicts.settled(rows, needs_training=False))

    assert sum(decided(8) for _ in range(400)) / 400 < 0.075, "of 400 claims"
    assert 0.03 < sum(decided(1) for _ in range(800)) / 800 < 0.07


@pytest.mark.parametrize(("verdict", "trained", "expected"), [
    (verdicts.NOT_REPRODUCED, 0.002,
     "provisional, not reproduced after 0.2% of the seed's training examples"),
    (verdicts.REPRODUCED, 0.5, "provisional, reproduced after 50% of the seed's training examples"),
    (verdicts.REPRODUCED, 1.0, verdicts.REPRODUCED),
    (verdicts.REPRODUCED, math.nan,
     "provisional, reproduced; how far it was trained is not published"),
    (verdicts.ARTEFACT, 0.002, verdicts.ARTEFACT),  # the untrained baseline reaches it
    (verdicts.NOT_REPRODUCED + verdicts.BY_CONSTRUCTION, 0.002,
     verdicts.NOT_REPRODUCED + verdicts.BY_CONSTRUCTION)])
def test_what_less_training_than_the_seeds_decides_is_provisional(verdict, trained, expected):
    row = {"verdict": verdict, "trained": trained}
    assert verdicts.settled([dict(row)], needs_training=True)[0]["verdict"] == expected
    assert verdicts.settled([dict(row)], needs_training=False)[0]["verdict"] == verdict


def test_what_a_poor_model_would_decide_says_after_how_much_training():
    row = {"verdict": verdicts.Difference(found(UP), "higher", poor="it is poor"), "trained": 0.01}
    assert verdicts.settled([row], needs_training=True)[0]["verdict"] == (
        "undecided, it is poor; the difference alone: reproduced after 1% of the seed's training "
        "examples")


def test_a_difference_on_less_training_is_provisional_whatever_it_shows():
    row = {"verdict": verdicts.Difference(found(UP), "higher", clear=verdicts.ARTEFACT),
           "trained": 0.01}
    assert verdicts.settled([row], needs_training=True)[0]["verdict"] == (
        "provisional, artefact after 1% of the seed's training examples")


def test_a_count_is_reproduced_within_a_tenth():
    assert verdicts.exactly(256, found([240.0])) == verdicts.REPRODUCED
    assert verdicts.exactly(256, found([77.0])) == verdicts.NOT_REPRODUCED
    assert verdicts.exactly(0, found([0.0])) == verdicts.REPRODUCED
    assert verdicts.exactly(0, found([0.01])) == verdicts.NOT_REPRODUCED


@pytest.mark.parametrize(("values", "verdict"), [
    ([0.0031, 0.0030, 0.0029, 0.0031, 0.0030], verdicts.REPRODUCED),
    ([0.0050, 0.0051, 0.0049, 0.0050, 0.0052], verdicts.NOT_REPRODUCED),
    ([0.0010, 0.0050, 0.0030, 0.0020, 0.0060], NOT_TOLD),
    ([0.0030] * 4, TOO_FEW.format("4 seeds"))])
def test_a_number_is_the_seeds_where_all_of_its_interval_is_near(values, verdict):
    assert settled(verdicts.SameNumber(found(values), 0.003)) == verdict


@pytest.mark.parametrize(("better", "values", "verdict", "direction"), [
    ("", [0.5, 0.51, 0.5, 0.49, 0.5], verdicts.NOT_REPRODUCED, "reached in 0 of 5"),
    ("lower", [0.5, 0.51, 0.5, 0.49, 0.5], verdicts.REPRODUCED, "reached in 5 of 5"),
    ("higher", [0.5, 0.51, 0.5, 0.49, 0.5], verdicts.NOT_REPRODUCED, "reached in 0 of 5"),
    ("higher", [0.95, 0.8, 1.2, 0.6, 0.99], NOT_TOLD, "reached in 3 of 5"),
    ("higher", [0.5, 2.0], TOO_FEW.format("2 seeds"), "reached in 1 of 2")])
def test_a_number_may_be_reached_from_one_side(better, values, verdict, direction):
    row = {"verdict": verdicts.SameNumber(found(values), 1.0, better), "trained": math.nan}
    row = verdicts.settled([row], needs_training=False)[0]
    assert (row["verdict"], row["direction"]) == (verdict, direction)


def test_near_one_it_is_the_errors_that_are_compared():
    nearly = found([0.95, 0.951, 0.949, 0.95, 0.95])
    assert settled(verdicts.SameNumber(nearly, 0.997, "higher")) == verdicts.REPRODUCED
    assert settled(verdicts.SameNumber(nearly, 0.997, "higher", near_one=True)) == (
        verdicts.NOT_REPRODUCED)


def test_what_is_held_against_a_number_is_what_a_row_shows():
    protocol, honest = found([0.5, 0.6]), found([0.1, 0.2, 0.3])
    row = verdicts.entry("m", "", honest, protocol=protocol,
                         verdict=verdicts.SameNumber(protocol, 1.0, "higher"))
    assert (row["n"], row["seeds"], row["ours_honest"]) == (2, "0.5 0.6", pytest.approx(0.2))
    assert row["evidence"].split() == honest.paths, "what the honest number rests on too"
    row = verdicts.entry("m", "", honest, protocol=protocol,
                         verdict=verdicts.Difference(honest, "higher"))
    assert row["n"] == 3


@pytest.mark.parametrize(("seed", "verdict", "n"), [
    (1.0, verdicts.ARTEFACT, 2), (math.nan, verdicts.FIRST, 3)])
def test_a_row_shows_the_seeds_protocol_where_the_seeds_number_is_judged(seed, verdict, n):
    row = verdicts.entry("m", "", found([0.1, 0.2, 0.3]), protocol=found([0.5, 0.6]), seed=seed,
                         verdict=verdict)
    assert row["n"] == n


def test_a_number_that_its_baseline_has_by_construction_says_so():
    judged = {"protocol": found([0.9], [0.85]), "honest": found([0.9], [0.1]), "better": "higher"}
    assert verdicts.judge(0.85, **judged) == verdicts.ARTEFACT
    assert verdicts.judge(0.85, **judged, trivial=True) == (
        verdicts.ARTEFACT + verdicts.BY_CONSTRUCTION)


def test_a_poor_model_keeps_the_direction_which_only_the_claims_way_has():
    row = {"verdict": verdicts.Difference(found(UP), "higher", poor="it is"), "trained": math.nan}
    assert verdicts.settled([row], needs_training=False)[0]["direction"] == "higher in 5 of 5"
    gap = verdicts.Difference(found(UP), "higher", clear=verdicts.ARTEFACT)
    assert gap.direction == "", "higher is not the claim's way"


@pytest.mark.parametrize(("gap", "text"), [
    (UP, "undecided, it is poor; the difference alone: reproduced"),
    ([-x for x in UP], "undecided, it is poor; the difference alone: not reproduced"),
    (UP[:3], "undecided, it is poor; and 3 seeds where 5 are needed"),
    ([*UP[:3], -0.4, -0.5], "undecided, it is poor")])
def test_what_a_poor_model_would_decide_is_told_beside_why_it_does_not(gap, text):
    assert settled(verdicts.Difference(found(gap), "higher", poor="it is poor")) == text


def test_a_count_that_a_trivial_method_has_too_is_an_artefact_whether_or_not_it_comes_out():
    random_codes = found([250.0], [256.0])
    artefact = verdicts.ARTEFACT + verdicts.BY_CONSTRUCTION
    assert verdicts.exactly(256, random_codes, trivial=True) == artefact
    assert verdicts.exactly(256, random_codes) == verdicts.REPRODUCED
    assert verdicts.exactly(256, found([250.0], [20.0]), trivial=True) == verdicts.REPRODUCED
    assert verdicts.exactly(256, found([20.0], [256.0]), trivial=True) == artefact


def test_a_row_says_where_its_number_stands():
    row = verdicts.entry("m", "what it is", found([1.0, 3.0], [0.5, 0.5]), verdict=verdicts.FIRST)
    assert (row["ours_honest"], row["baseline"], row["n"]) == (2.0, 0.5, 2)
    assert row["seeds"] == "1 3" and math.isnan(row["ci_low"]), "two seeds have no interval"
    assert row["evidence"] == ("results/audit/encoder/base-seed0.csv "
                               "results/audit/encoder/base-seed1.csv")
    assert row["notebook"] == "report/representation"
    assert verdicts.entry("m", "", None, verdict=verdicts.FIRST) is None
    alone = verdicts.entry("m", "", None, protocol=found([3.0], [1.0]), verdict=verdicts.FIRST)
    assert math.isnan(alone["ours_honest"]) and math.isnan(alone["baseline"])
    assert (alone["ours_seed_protocol"], alone["protocol_baseline"], alone["seeds"]) == (3, 1, "3")
    arm = found([1.0], stage="world_model", variant="mask.strict")
    assert verdicts.entry("m", "", arm, verdict="")["notebook"] == "report/ablations"


# ---- values over seeds


def test_differences_pair_the_seeds_that_both_have():
    gap = found([5.0, 7.0, 9.0]) - found([1.0, 2.0])
    assert gap.values.to_dict() == {0: 4.0, 1: 5.0}
    assert {source.seed for source in gap.sources} == {0, 1}, "no table of a seed without its pair"


def test_seeds_pair_only_where_both_stand_on_the_same_episodes(tmp_path, monkeypatch):
    for seed, games, split in ((0, GAMES, "val"), (1, GAMES, "test"), (0, ("pong",), "test")):
        root = save(tmp_path, [runs.row("f1_overall", 0.5, game="pong", split=split)], seed=seed,
                    games=games, monkeypatch=monkeypatch)
    tables = Tables("audit", root)
    chosen_on = tables.find("encoder", "f1_overall", game="pong", split="val")
    reported = tables.find("encoder", "f1_overall", "base-pong", game="pong")
    assert chosen_on.values.index.tolist() == reported.values.index.tolist() == [0]
    assert (chosen_on - reported).values.empty and chosen_on.against(reported).values.empty
    assert (reported - reported).values.to_dict() == {0: 0.0}
    rows = claims.table(root)
    assert "f1_overall, pong" not in rows[rows["id"] == "C06"]["metric"].tolist(), "no such row"


def test_a_mean_over_metrics_is_taken_seed_by_seed_and_needs_all_of_them():
    both = mean_of([found([1.0, 2.0], [0.0, 0.0]), found([3.0, 6.0], [1.0, 1.0])])
    assert both.values.to_dict() == {0: 2.0, 1: 4.0} and both.baseline == 0.5
    assert mean_of([found([1.0]), None]) is None


def test_values_are_found_by_metric_game_step_and_variant(tmp_path, monkeypatch):
    rows = [runs.row("diversity", 1.2, game="pong", baseline=0.4),
            runs.row("diversity", 1.3, game="all"),
            runs.row("dreams", 5, game="pong", step=15)]
    for seed in (0, 2):
        root = save(tmp_path, rows, seed=seed, monkeypatch=monkeypatch)
    save(tmp_path, [runs.row("diversity", 9.0, game="pong")], variant="sticky.v5",
         monkeypatch=monkeypatch)
    tables = Tables("audit", root)
    one = tables.find("encoder", "diversity", game="pong")
    assert one.values.to_dict() == {0: 1.2, 2: 1.2} and one.baseline == 0.4
    assert one.paths == ["results/audit/encoder/base-seed0.csv",
                         "results/audit/encoder/base-seed2.csv"]
    assert tables.find("encoder", "diversity", "sticky.v5", game="pong").mean == 9.0
    assert tables.find("encoder", "dreams", game="pong", step=15).mean == 5
    assert tables.find("encoder", "dreams", game="pong") is None
    assert tables.find("encoder", "diversity", "negatives.chunk") is None


def test_numbers_of_test_episodes_are_not_pooled_with_older_ones(tmp_path, monkeypatch):
    for seed, split, value in ((0, "val", 9.0), (1, "test", 3.0), (2, "test", 5.0)):
        root = save(tmp_path, [runs.row("diversity", value, game="pong", split=split)], seed=seed,
                    monkeypatch=monkeypatch)
    found = Tables("audit", root).find("encoder", "diversity", game="pong")
    assert found.values.to_dict() == {1: 3.0, 2: 5.0}
    assert found.paths == [f"results/audit/encoder/base-seed{seed}.csv" for seed in (1, 2)]


def test_a_baseline_is_of_the_seeds_that_both_have():
    beside = found([5.0, 7.0, 9.0]).against(found([1.0, 2.0]))
    assert beside.values.tolist() == [5.0, 7.0] and beside.baseline == 1.5


def test_the_best_of_what_only_counts_is_found_by_name():
    known = {"a[back_off]": found([0.3, 0.5]), "a[repeat_last]": found([0.2, 0.2])}
    assert best_counted(known.get, "a", "higher") == ("back-off", known["a[back_off]"])
    assert best_counted(known.get, "a", "lower") == ("the last code", known["a[repeat_last]"])
    assert best_counted(known.get, "b", "lower") is None
    old = {"a": found([0.9], [0.4]), "a[repeat_last]": found([0.2])}
    words, best = best_counted(old.get, "a", "higher")
    assert (words, best.mean) == ("an n-gram (back-off is not measured)", 0.4), (
        "the metric's own baseline there")


def test_the_best_trivial_baseline_is_found_beside_the_metrics_own():
    own = found([0.5, 0.7], [0.4, 0.4])
    pixels, worse = found([0.6, 0.6]), found([0.1, 0.1])
    trivial = {"untrained": None, "pixels": pixels, "noise": worse, "other": None}
    best, words = beside_best(own, trivial, "higher")
    assert (words, best.baseline, best.mean) == ("pixels", 0.6, 0.6)
    best, words = beside_best(own, trivial, "lower")
    assert (words, best.baseline) == ("noise", 0.1)
    one_seed = {"untrained": None, "pixels": found([0.9])}
    assert beside_best(own, one_seed, "higher") == (own, "untrained"), "not of all its seeds"


# ---- the table


def test_all_25_claims_have_a_row_even_where_nothing_is_published(tmp_path):
    table = claims.table(tmp_path)
    assert list(table.columns) == list(claims.COLUMNS)
    assert table["id"].tolist() == [f"C{k:02}" for k in range(1, 26)]
    assert table["verdict"].str.startswith(verdicts.UNTESTED).all()


def test_a_published_number_turns_up_under_its_claim(tmp_path, monkeypatch):
    root = save(tmp_path, [runs.row("parameters", 1_881_888, split="train")],
                monkeypatch=monkeypatch)
    row = claims.table(root).set_index("id").loc["C01"]
    assert row["verdict"] == verdicts.REPRODUCED
    assert row["seed_value"] == row["ours_honest"] == 1_881_888
    assert row["profile"] == "audit"


def test_fresh_results_of_one_profile_are_judged_too(tmp_path, monkeypatch):
    save(tmp_path, [runs.row("parameters", 1_881_888, split="train")], monkeypatch=monkeypatch)
    row = claims.table(tmp_path / "published" / "audit").set_index("id").loc["C01"]
    assert (row["verdict"], row["notebook"]) == (verdicts.REPRODUCED, "report/representation")
    assert row["evidence"] == "results/encoder/base-seed0.csv"


def test_players_to_compare_with_never_lead_a_claim_and_do_not_stand_alone(tmp_path, monkeypatch):
    def returns_of(name):
        return runs.row(metrics.named("real_return", name), 20.0, game="pong", split="real")

    root = save(tmp_path, [runs.row("real_return", -20.0, game="pong", split="real"),
                           returns_of("tracker"), returns_of("ram_policy")], stage="policy",
                monkeypatch=monkeypatch)
    table = claims.table(root).set_index("id")
    assert table.loc["C23", "ours_honest"].tolist() == [-20.0, 20.0, 20.0]
    assert table.loc["C24", "verdict"].startswith(verdicts.UNTESTED), "PPO was not run"
    save(tmp_path, [runs.row("real_return", -19.0, game="pong", split="real")], stage="policy",
         variant="policy.ppo", monkeypatch=monkeypatch)
    table = claims.table(root).set_index("id")
    assert table.loc["C24", "ours_honest"].tolist() == [-19.0, 20.0, 20.0]


@pytest.mark.parametrize(("overlapping", "honest", "copied", "decided"), [
    (0.998, 0.5, 0.1, "provisional, artefact"), (0.95, 0.5, 0.1, "provisional, not reproduced"),
    (0.998, 0.9975, 0.1, "provisional, reproduced"), (0.95, 0.5, 0.998, "artefact")])
def test_windows_beside_episodes_are_held_against_the_seeds_errors(tmp_path, monkeypatch, decided,
                                                                   overlapping, honest, copied):
    def saved(split, value, seed):
        trivial = metrics.named("l0_accuracy", "repeat_last")
        rows = [runs.row(name, one, game="pong") for name, one in (
            ("l0_accuracy", value), (trivial, copied), ("l0_changed_accuracy", value),
            (metrics.named("l0_changed_accuracy", "repeat_last"), 0.0))]
        return save(tmp_path, rows, stage="world_model", variant=f"exposures.{split}", seed=seed,
                    games=("pong",), monkeypatch=monkeypatch)

    def verdict(root):
        rows = claims.table(root)
        return rows[rows["id"] == "C16"]["verdict"].tolist()

    saved("windows", overlapping, 0)
    root = saved("episodes", honest, 0)
    without_number = verdicts.FIRST
    assert verdict(root) == [
        "artefact" if decided == "artefact" else TOO_FEW.format("1 seed"), without_number]
    for seed in range(1, 5):
        saved("windows", overlapping, seed)
        saved("episodes", honest + 0.0001 * seed, seed)
    leading, other = verdict(root)
    assert leading.startswith(decided) and other == without_number


@pytest.mark.parametrize(("split", "decided"), [
    ("windows", "provisional, reproduced"),  # dropout alone made it lower
    ("episodes", "provisional, not reproduced")])  # overfitted
def test_held_out_loss_above_training_loss_is_undecided_on_one_seed(tmp_path, monkeypatch, split,
                                                                   decided):
    def saved(seed):
        history = [{"step": 1, "val_codes": 2.0 + seed, "codes": 2.5, "train_codes": 1.0}]
        return save(tmp_path, [runs.row("exposures", 9.0)], stage="world_model",
                    variant=f"exposures.{split}", seed=seed, games=("pong",), history=history,
                    monkeypatch=monkeypatch)

    def verdict(root):
        rows = claims.table(root)
        return rows[rows["id"] == "C17"]["verdict"].item()

    assert verdict(saved(0)) == TOO_FEW.format("1 seed")
    for seed in range(1, 5):
        root = saved(seed)
    assert verdict(root).startswith(decided)


@pytest.mark.parametrize(("counted", "verdict"), [
    (0.1, "provisional, reproduced after"),
    (0.7, "undecided, the model is no better than counting; the difference alone: "
     "reproduced after"),
    (0.55, "undecided, the model is no better than counting")])
def test_levels_are_compared_only_where_the_model_beats_counting(tmp_path, monkeypatch, counted,
                                                                 verdict):
    rows = [runs.row(f"l{level}_accuracy", value, game="pong")
            for level, value in ((1, 0.5), (2, 0.6))]
    rows += [runs.row(metrics.named(f"l{level}_accuracy", "repeat_last"), counted, game="pong")
             for level in (1, 2)]
    for seed in range(5):
        root = save(tmp_path, rows, stage="world_model", seed=seed, monkeypatch=monkeypatch)
    table = claims.table(root).set_index("id").loc["C18"]
    assert table["verdict"].startswith(verdict)
    assert table["ours_honest"] == pytest.approx(0.1) and table["baseline"] == 0
    assert "level 1 0.500, the last code" in table["definition"]


def test_the_seeds_column_of_overfitting_is_on_windows_with_dropout(tmp_path, monkeypatch):
    for split, held in (("windows", 1.9), ("episodes", 4.0)):
        history = [{"step": 1, "val_codes": held, "codes": 2.5, "train_codes": 1.0}]
        root = save(tmp_path, [runs.row("exposures", 9.0)], stage="world_model",
                    variant=f"exposures.{split}", games=("pong",), history=history,
                    monkeypatch=monkeypatch)
    table = claims.table(root).set_index("id").loc["C17"]
    assert table["ours_honest"].tolist() == pytest.approx([3.0, 0.9])
    assert table["ours_seed_protocol"].tolist() == pytest.approx([-0.6, -0.6])
    assert table["baseline"].tolist() == pytest.approx([1.5, -0.6])


@pytest.mark.parametrize(("steps", "counted"), [(300_000, True), (30_000, False)])
def test_windows_are_counted_where_there_are_as_many_steps_as_the_seeds(tmp_path, monkeypatch,
                                                                        steps, counted):
    rows = [runs.row(name, share * steps, split=part)
            for name, scale in (("steps", 1), ("windows_of_64", 0.82))
            for part, share in (("train", 0.8 * scale), ("val", 0.2 * scale))]
    root = save(tmp_path, [*rows, runs.row("boundary_violations", 0, split="train")],
                stage="frames", monkeypatch=monkeypatch)
    table = claims.table(root).set_index("metric")
    assert table.loc["boundary_violations", "verdict"] == "reproduced, by construction"
    assert ("windows of 64 steps" in table.index) == counted
    if counted:
        found = table.loc["windows of 64 steps"]
        assert (found["ours_honest"], found["baseline"]) == (246_000, 299_937)


@pytest.mark.parametrize(("smaller", "poor", "leads"), [
    (UP[:2], "", "desk"), (UP, "", "audit"), ([*UP[:3], -0.4, -0.5], "", "desk"),
    (UP, "it is poor", "desk")])
def test_a_smaller_profile_leads_where_it_decides_what_lacks_seeds(monkeypatch, smaller, poor,
                                                                   leads):
    def rows(t):
        if t.profile == "desk":
            few = found([0.1, 0.2], profile="desk")
            yield verdicts.entry("number", "", few, verdict=verdicts.Difference(few, "higher"))
        if t.profile == "audit":
            gap = found(smaller)
            yield verdicts.entry("number", "", gap, verdict=verdicts.Difference(
                gap, "higher", poor=poor))
    monkeypatch.setattr(claims, "CLAIMS", (claims.Claim("C01", "a claim", rows),))
    assert claims.table()["profile"].tolist()[0] == leads


def test_the_published_table_is_what_the_published_tables_give():
    expected = claims.table()
    stored = claims.load()
    assert stored["id"].tolist() == expected["id"].tolist()
    for column in ("claim", "metric", "verdict", "direction", "evidence", "notebook", "profile"):
        assert stored[column].fillna("").tolist() == expected[column].fillna("").tolist(), column
    for column in ("seed_value", "ours_seed_protocol", "protocol_baseline", "ours_honest",
                   "baseline", "n", "ci_low"):
        # The file keeps eight digits.
        pd.testing.assert_series_equal(stored[column], expected[column].astype(float), rtol=1e-7,
                                       check_dtype=False)


def test_verdicts_are_of_the_seven_kinds_and_name_tables_that_exist():
    stored = claims.load()
    kinds = (verdicts.REPRODUCED, verdicts.ARTEFACT, verdicts.NOT_REPRODUCED, verdicts.UNDECIDED,
             verdicts.PROVISIONAL, verdicts.FIRST, verdicts.UNTESTED.partition(",")[0])
    for row in stored.to_dict("records"):
        assert row["verdict"].partition(",")[0] in kinds
        for name in row["evidence"].split():
            assert (claims.ROOT / name).exists(), name


def test_the_summary_has_one_verdict_a_claim():
    assert claims.summary(claims.load()).index.tolist() == [f"C{k:02}" for k in range(1, 26)]


def test_the_page_has_a_line_for_each_claim_and_unfolds_to_every_row():
    stored = claims.load()
    short = wording.in_short(stored)
    assert [line[:5] for line in short.index] == [f"C{k:02}: " for k in range(1, 26)]
    correlated = short["here"][[line.startswith("C04") for line in short.index]].item()
    assert re.fullmatch(r"best .*: [\d.]+ \(pixel PCA: [\d.]+\); by its protocol [\d.]+ "
                        r"\(untrained encoder, .*: [\d.]+\) \(desk, test episodes\)", correlated)
    assert short["verdict"].str.replace(r" \(\w+ in \d of \d\)", "", regex=True).tolist() == (
        claims.summary(stored)["verdict"].tolist())
    page = wording.in_full(stored)
    assert page.count("<details>") == 25
    assert page.count("<tr>") == len(stored), "and the headings have a class of their own"


def test_a_changed_verdict_says_why():
    found = claims.changed()
    assert len(found) and found["why"].notna().all() and (found["before"] != found["now"]).all()


def test_rows_say_how_much_of_the_seeds_training_they_rest_on(tmp_path, monkeypatch):
    root = save(tmp_path, [runs.row("diversity", 1.2, game="pong")], monkeypatch=monkeypatch)
    save(tmp_path, [runs.row("l0_usage", 1.0)], stage="tokenizer", monkeypatch=monkeypatch)
    save(tmp_path, [runs.row("fresh", 1.0, split="train")], stage="frames", monkeypatch=monkeypatch)
    tables = Tables("audit", root)
    cfg = PROFILES["audit"].encoder
    share = cfg.num_steps * cfg.batch_size / (30 * 300_000)
    assert tables.find("encoder", "diversity", game="pong").trained == pytest.approx(share)
    assert tables.find("tokenizer", "l0_usage").trained == pytest.approx(share), "its encoder's"
    assert math.isnan(tables.find("frames", "fresh", split="train").trained)
