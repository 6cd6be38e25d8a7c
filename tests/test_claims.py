"""The audit's table: values found over seeds, verdicts by rule, all 25 claims."""

import math

import pandas as pd
import pytest

from hd.audit import claims, verdicts
from hd.audit.evidence import Found, Tables, mean_of
from hd.run import runs


def found(values, baselines=None, profile="audit"):
    seeds = range(len(values))
    return Found(pd.Series(values, seeds, float),
                 pd.Series(baselines or [math.nan] * len(values), seeds, float), profile, "a CPU",
                 ("results/audit/encoder/base-seed0.csv",))


def save(root, rows, *, stage="encoder", variant="base", seed=0, monkeypatch):
    """A metric table with provenance below root/audit, as publishing leaves it."""
    monkeypatch.setenv("HD_ARTIFACTS", str(root))
    run = runs.start(stage, profile="audit", variant=variant, seed=seed)
    runs.save_table(run, rows)
    made = root / "audit" / "results" / stage
    target = root / "published" / "audit" / stage
    target.mkdir(parents=True, exist_ok=True)
    for path in made.glob(f"{run.name}*"):
        path.rename(target / path.name)
    return root / "published"


# ---- verdicts


@pytest.mark.parametrize(
    ("protocol", "honest", "baselines", "verdict"),
    [
        ([0.26], [0.30, 0.31, 0.29], [0.60, 0.61, 0.62], verdicts.REPRODUCED),
        ([0.20], [0.30, 0.31, 0.29], [0.60, 0.61, 0.62], verdicts.REPRODUCED),  # even better
        ([0.40], [0.30, 0.31, 0.29], [0.60, 0.61, 0.62], verdicts.NOT_REPRODUCED),
        ([0.26], [0.70, 0.71, 0.72], [0.60, 0.61, 0.62], verdicts.ARTEFACT),  # baseline is better
        ([0.26], [0.10, 0.11, 0.12], [0.27, 0.26, 0.25], verdicts.ARTEFACT),  # and reaches it too
        ([0.26], [0.30, 0.90, 0.60], [0.60, 0.61, 0.62], verdicts.ARTEFACT),  # not clearly below
    ])  # fmt: skip
def test_a_lower_is_better_claim_is_judged_by_number_baseline_and_interval(
        protocol, honest, baselines, verdict):
    assert verdicts.judge(0.26, protocol=found(protocol), honest=found(honest, baselines),
                          better="lower") == verdict


def test_where_higher_is_better_everything_is_mirrored():
    high = {"protocol": found([0.9]), "better": "higher"}
    good, poor = found([0.8, 0.82], [0.5, 0.5]), found([0.4, 0.42], [0.5, 0.5])
    assert verdicts.judge(0.85, honest=good, **high) == verdicts.REPRODUCED
    assert verdicts.judge(0.85, honest=poor, **high) == verdicts.ARTEFACT
    assert verdicts.judge(1.85, honest=good, **high) == verdicts.NOT_REPRODUCED


def test_a_count_is_reproduced_within_a_tenth():
    assert verdicts.exactly(256, found([240.0])) == verdicts.REPRODUCED
    assert verdicts.exactly(256, found([77.0])) == verdicts.NOT_REPRODUCED
    assert verdicts.exactly(0, found([0.0])) == verdicts.REPRODUCED
    assert verdicts.exactly(0, found([0.01])) == verdicts.NOT_REPRODUCED


def test_one_seed_is_never_clearly_above_or_below():
    assert not found([5.0]).is_above() and not found([-5.0]).is_below()
    assert found([5.0, 6.0]).is_above() and found([-5.0, -6.0]).is_below()


def test_a_row_says_where_its_number_stands():
    row = verdicts.entry("m", "what it is", found([1.0, 3.0], [0.5, 0.5]), verdict=verdicts.FIRST)
    assert (row["ours_honest"], row["baseline"], row["n"]) == (2.0, 0.5, 2)
    assert row["ci_low"] == 1.0 and row["ci_high"] == 3.0
    assert row["evidence"] == "results/audit/encoder/base-seed0.csv"
    assert row["notebook"] == "report/representation"
    assert verdicts.entry("m", "", None, verdict=verdicts.FIRST) is None


# ---- values over seeds


def test_differences_pair_the_seeds_that_both_have():
    gap = found([5.0, 7.0, 9.0]) - found([1.0, 2.0])
    assert gap.values.to_dict() == {0: 4.0, 1: 5.0}


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
    assert one.tables == ("results/audit/encoder/base-seed0.csv",
                          "results/audit/encoder/base-seed2.csv")
    assert tables.find("encoder", "diversity", "sticky.v5", game="pong").mean == 9.0
    assert tables.find("encoder", "dreams", game="pong", step=15).mean == 5
    assert tables.find("encoder", "dreams", game="pong") is None
    assert tables.find("encoder", "diversity", "negatives.chunk") is None


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


def test_the_published_table_is_what_the_published_tables_give():
    expected = claims.table()
    stored = claims.load()
    assert stored["id"].tolist() == expected["id"].tolist()
    for column in ("claim", "metric", "verdict", "evidence", "notebook", "profile"):
        assert stored[column].fillna("").tolist() == expected[column].fillna("").tolist(), column
    for column in ("seed_value", "ours_seed_protocol", "ours_honest", "baseline", "n", "ci_low"):
        # The file keeps eight digits.
        pd.testing.assert_series_equal(stored[column], expected[column].astype(float), rtol=1e-7,
                                       check_dtype=False)


def test_verdicts_are_of_the_five_kinds_and_name_tables_that_exist():
    stored = claims.load()
    kinds = (verdicts.REPRODUCED, verdicts.ARTEFACT, verdicts.NOT_REPRODUCED, verdicts.FIRST)
    for row in stored.to_dict("records"):
        assert row["verdict"] in kinds or row["verdict"].startswith(verdicts.UNTESTED)
        for name in row["evidence"].split():
            assert (claims.ROOT / name).exists(), name


def test_the_summary_has_one_verdict_a_claim():
    assert claims.summary(claims.load()).index.tolist() == [f"C{k:02}" for k in range(1, 26)]
