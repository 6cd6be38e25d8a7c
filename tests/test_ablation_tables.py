"""hd.report.ablation_tables and the split's curves: what the ablations page reads and shows."""

import pandas as pd
import pytest

from hd.ablations import ABLATIONS
from hd.config import InputError
from hd.report import ablation_tables, figures
from hd.run import runs

METRICS = ("l0_changed_accuracy", "l1_changed_accuracy", "l2_changed_accuracy")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Writes tables of a variant as publishing leaves them; returns the results folder."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))

    def write(variant, values, *, games=("pong", "breakout", "ms_pacman"), stage="world_model",
              metrics=METRICS, baseline=0.5, split="val"):
        for seed, value in enumerate(values):
            run = runs.start(stage, profile="audit", variant=variant, seed=seed, games=games)
            rows = [runs.row(metric, value + k, game=game, baseline=baseline, split=split)
                    for k, metric in enumerate(metrics) for game in games]
            runs.save_table(run, rows)
        (tmp_path / "published").mkdir(exist_ok=True)
        target = tmp_path / "published" / "audit"
        if not target.exists():
            target.symlink_to(tmp_path / "audit" / "results", target_is_directory=True)
        return tmp_path / "published"

    return write


def test_arms_stand_beside_base_with_interval_baseline_and_seeds(published):
    published("base", [0.1, 0.3, 0.8])
    published("mask.causal", [0.2, 0.4])
    root = published("mask.strict", [0.4])
    wide = ablation_tables.compared("mask", "audit", results_dir=root)
    row = wide[wide["game"] == "breakout"].loc["l0_changed_accuracy"]
    assert row["base"] == "0.200 of 0.10, 0.30", "of the seeds that some arm has"
    assert row["strict"] == "0.400"
    assert (row["baseline"], row["seeds"]) == ("0.500", 1)
    assert list(wide.index.unique()) == list(METRICS)


def test_an_arm_with_another_baseline_has_it_in_brackets(published):
    published("base", [0.1])
    root = published("mask.strict", [0.4], baseline=0.7)
    wide = ablation_tables.compared("mask", "audit", results_dir=root)
    assert wide["strict"].iloc[0] == "0.400 (0.700)"
    assert (wide["base"].iloc[0], wide["baseline"].iloc[0]) == ("0.100", "0.500")


def test_base_is_left_out_where_it_was_judged_on_another_split(published):
    published("base", [0.1], split="test")
    root = published("mask.strict", [0.4], split="val")
    wide = ablation_tables.compared("mask", "audit", results_dir=root)
    assert list(wide.columns) == ["game", "strict", "baseline", "seeds"]
    assert (wide["strict"].iloc[0], wide["baseline"].iloc[0]) == ("0.400", "0.500")
    assert ablation_tables.differences(["mask"], "audit", METRICS[0], results_dir=root).empty
    published("mask.strict", [0.4], split="test")
    assert "base" in ablation_tables.compared("mask", "audit", results_dir=root)


def test_an_ablation_without_a_published_arm_is_not_listed_and_refused_with_its_command(published):
    root = published("base", [0.1])
    assert ablation_tables.published("audit", results_dir=root) == []
    with pytest.raises(InputError, match="-p ablation mask"):
        ablation_tables.compared("mask", "audit", results_dir=root)


def test_an_ablation_on_one_game_is_compared_with_base_on_that_game(published):
    published("base", [0.9])
    published("base", [0.1], games=("pong",))
    root = published("mask.causal", [0.2], games=("pong",))
    wide = ablation_tables.compared("mask", "audit", results_dir=root)
    assert wide["game"].unique().tolist() == ["pong"]
    assert wide["base"].tolist() == ["0.100", "1.10", "2.10"]


def test_metrics_of_further_stages_follow_under_their_stages_name(published):
    chosen = ABLATIONS["sources"]
    for variant in ("base", "sources.mixture"):
        published(variant, [0.1], metrics=chosen.metrics)
        root = published(variant, [0.7], stage="tokenizer", metrics=chosen.of_also["tokenizer"])
    wide = ablation_tables.compared("sources", "audit", results_dir=root)
    assert list(wide.index.unique()) == [
        *chosen.metrics, *(f"tokenizer: {name}" for name in chosen.of_also["tokenizer"])]
    assert set(wide.loc["tokenizer: f1_overall", "mixture"]) == {"0.700"}


def test_every_published_ablation_is_shown_with_its_question(published, capsys):
    published("base", [0.1])
    root = published("mask.strict", [0.4])
    ablation_tables.show_all("audit", results_dir=root)
    assert "Markdown" in capsys.readouterr().out


def curve(seed, level):
    return pd.DataFrame({"seed": seed, "step": [1, 4, 9], "exposures": [0.5, 2.0, 4.5],
                         "codes": [3.0, 2.0, 1.0], "train_codes": [2.9, 1.9, None],
                         "val_codes": [3.1, 2.2, 2.0],
                         **{f"val_l{k}_accuracy": [0.1, level, level] for k in range(3)}})


def test_split_curves_draw_each_seed_thin_and_the_mean_thick():
    both = {name: pd.concat([curve(0, level), curve(1, level + 0.2)])
            for name, level in (("whole episodes", 0.2), ("overlapping windows", 0.6))}
    axes = figures.split_curves(both).axes
    assert len(axes) == 4
    mean = next(line for line in axes[0].lines if line.get_label() == "whole episodes")
    assert mean.get_ydata().tolist() == pytest.approx([0.1, 0.3, 0.3])
    assert len(axes[0].lines) == 2 * (2 + 1)


def test_curves_that_are_not_published_are_said_to_be_missing(capsys):
    figures.show_split_curves("smoke")
    assert "-p ablation exposures" in capsys.readouterr().out
