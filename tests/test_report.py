"""hd.report and hd.figures: tables, headline, publishing, pictures and videos from tiny inputs."""

import ast
import base64
import hashlib
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import imageio.v2 as imageio
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from hd import (
    evaluation,
    figures,
    game_state,
    probes,
    publishing,
    replay,
    report,
    runs,
    video,
    world_model,
)
from hd.config import GAMES, InputError
from hd.encoder import AtariEncoder
from hd.runs import COLUMNS, row
from hd.storage import ROOT
from hd.tokenizer import ResidualVQ
from hd.world_model import MASKS, WorldModel

# Metric names that are put together from variables, by the expression that does it.
COMPOSED = {
    "key + suffix": ["state_correlation", "f1_overall",
                     *(f"f1_{name}" for name in probes.CATEGORIES),
                     *(f"{kind}_{name}[untrained]" for kind in ("r2", "error")
                       for names in game_state.COORDINATES.values() for name in names)],
    "prefix + metric + suffix": ["transfer_l2_accuracy", "transfer_l0_changed_accuracy[one_level]",
                                 "transfer_l1_cross_entropy", "transfer_l1_changed_cross_entropy"],
    "f'{prefix}{metric}[ngram]'": ["transfer_l0_cross_entropy[ngram]"],
    "metric": ["seed_temporal_consistency", "seed_temporal_consistency_mean", "seed_diversity",
               "embedding_norm_deviation", "seed_state_correlation[columns]",
               "seed_pair_correlation", "box_agreement_ball_x[columns]", "box_found_player_y"],
    "f'{metric}[{name}]'": ["temporal_consistency[dinov2]", "f1_overall[thinned]",
                            "seed_state_correlation[columns][dinov2]"],
    "prefix + metric": ["l0_accuracy", "l2_changed_accuracy", "l1_cross_entropy",
                        "l0_changed_cross_entropy"],
    "f'{prefix}{metric}[{name}]'": ["l0_accuracy[repeat_last]", "l1_changed_accuracy[frequency]"],
    "f'l{level}_{name}'": ["l0_usage", "l2_perplexity"],
    "f'l{level}_{name}[from {threshold:g}]'": ["l0_shared_frames[from 0]",
                                               "l2_shared_codes[from 0.001]"],
    "f'transfer_l0_gain{suffix}'": ["transfer_l0_gain[one_level]"],
    "f'dream_error_{name}{suffix}'": ["dream_error_ball_x", "dream_error_player_x[re-encoded]"],
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


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def record_of(**changes):
    return {"stage": "encoder", "profile": "quick", "variant": "base", "seed": 0,
            "games": list(GAMES), "config": {"lr": 1.0}, "device": "Test CPU",
            "git": {"commit": "abc1234567", "dirty": False}, "wall_seconds": 40.0, **changes}


def write_table(folder, rows, *, stage="encoder", variant="base", seed=0, **changes):
    """A table with its provenance, as runs.save_table leaves it: <folder>/<stage>/<name>.csv."""
    path = Path(folder) / stage / f"{variant}-seed{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows).assign(stage=stage, variant=variant, seed=seed)[list(COLUMNS)]
    table.to_csv(path, index=False)
    record = record_of(stage=stage, variant=variant, seed=seed, **changes)
    record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(record))
    return path


def long_table(rows, stage="encoder", seeds=(0,)):
    """The table in memory; rows(seed) -> rows, or the same rows for every seed."""
    return pd.concat([pd.DataFrame(rows(seed) if callable(rows) else rows).assign(
        stage=stage, variant="base", seed=seed) for seed in seeds], ignore_index=True)


# ---- metrics

def metric_arguments():
    """The first argument of every call of row(...) in the package, with its file."""
    for path in sorted((ROOT / "hd").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("row", "runs.row"):
                yield path.name, node.args[0]


def sample_names(argument):
    """Metric names an argument of row(...) can stand for; None when the test does not know."""
    source = ast.unparse(argument)
    if source in COMPOSED:
        return COMPOSED[source]
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
            assert report.key_of(metric) in report.METRICS


def test_what_is_counted_about_the_stored_frames_is_explained(monkeypatch):
    monkeypatch.setattr(replay, "open_run", lambda run: TinyReplay())
    rows = replay.measure(runs.start("frames", profile="smoke"))
    names = {entry["metric"] for entry in rows}
    assert {report.key_of(name) for name in names} <= set(report.METRICS)
    assert names == {"boundary_violations", *COMPOSED["name"]}


def test_every_metric_says_what_it_is_and_which_way_is_better():
    for name, metric in report.METRICS.items():
        assert metric.definition and metric.unit, name
        assert metric.better in ("higher", "lower", ""), name


def test_a_level_and_its_changed_codes_are_told_apart():
    assert report.key_of("l2_accuracy") == "l{level}_accuracy"
    assert report.key_of("l0_changed_accuracy[repeat_last]") == "l{level}_changed_accuracy"
    assert report.key_of("dream_l1_accuracy") == "dream_l{level}_accuracy"
    assert report.key_of("val_l1_accuracy") == "l{level}_accuracy"
    assert report.key_of("windows_of_24") == "windows_of_{length}"


def test_explaining_a_table_gives_one_row_per_kind_of_metric():
    table = long_table([row("l0_usage", 1), row("l1_usage", 1), row("diversity", 1)])
    assert list(report.explain(table).index) == ["diversity", "l{level}_usage"]
    with pytest.raises(InputError, match="'speed' is not explained"):
        report.explain(["speed"])


@pytest.mark.parametrize(("value", "text"), [
    (0.5, "0.500"), (0.12345, "0.123"), (0.9996, "1.00"), (-0.04567, "-0.0457"), (307.34, "307"),
    (1234.5, "1,230"), (27000, "27,000"), (5, "5"), (0, "0"), (-0.0, "0"), (1.0, "1"),
    (0.00001234, "1.23e-05"), (float("nan"), "–"), (None, "–")])
def test_numbers_are_printed_with_three_significant_digits_and_counts_in_full(value, text):
    assert report.number(value) == text


def test_the_number_of_digits_can_be_chosen():
    assert report.number(0.12345, digits=2) == "0.12"


# ---- tables

def test_a_table_is_found_in_the_published_and_in_the_fresh_layout(tmp_path):
    write_table(tmp_path / "results" / "quick", [row("diversity", 1.25)])
    write_table(tmp_path / "fresh", [row("diversity", 1.5)])
    for folder, value in (("results", 1.25), ("fresh", 1.5)):
        table = report.fresh_or_published(tmp_path / folder, "quick", "encoder", "base", seed=0)
        assert table["value"].tolist() == [value]


def test_all_seeds_are_read_in_order_and_nothing_but_this_variants_tables(tmp_path):
    for seed in (10, 2):
        path = write_table(tmp_path, [row("real_return", seed)], stage="policy", seed=seed)
        path.with_name(f"{path.stem}-episodes.csv").write_text("player,return\nrandom,1\n")
    write_table(tmp_path, [row("real_return", 7)], stage="policy", variant="base2")
    table = report.fresh_or_published(tmp_path, "quick", "policy")
    assert table["seed"].tolist() == [2, 10]
    assert [record["seed"] for record in table.attrs["records"]] == [2, 10]
    assert len(report.episodes(tmp_path, "quick")) == 2
    assert report.fresh_or_published(tmp_path, "quick", "policy", seed=10)["value"].tolist() == [10]


def test_a_missing_table_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="hd run 02_encoder --profile desk --variant base --seed"):
        report.fresh_or_published(tmp_path, "desk", "encoder")
    with pytest.raises(InputError, match="unknown profile 'dekk'; allowed: smoke"):
        report.fresh_or_published(tmp_path, "dekk", "encoder")


def test_a_table_of_another_profile_or_a_damaged_one_is_refused(tmp_path):
    path = write_table(tmp_path, [row("diversity", 1)])
    with pytest.raises(InputError, match="holds profile quick, not desk"):
        report.fresh_or_published(tmp_path, "desk", "encoder")
    path.write_text(path.read_text().replace("1.0", "2.0"))
    with pytest.raises(InputError, match="damaged"):
        report.fresh_or_published(tmp_path, "quick", "encoder")


def test_seeds_of_different_configs_are_not_pooled(tmp_path):
    write_table(tmp_path, [row("diversity", 1)], seed=0)
    write_table(tmp_path, [row("diversity", 1)], seed=1, config={"lr": 2.0})
    with pytest.raises(InputError, match="different configs"):
        report.fresh_or_published(tmp_path, "quick", "encoder")


def test_a_pivot_shows_value_and_baseline_per_game_in_the_fixed_order():
    table = long_table([row("l0_usage", 0.5, game="breakout", baseline=0.98765),
                        row("l0_usage", 1.0, game="pong"), row("exposures", 12.34, split="train")])
    wide = report.pivot(table)
    assert wide.columns.tolist() == ["pong", "breakout", "all"]
    assert wide.loc["l0_usage"].tolist() == ["1", "0.500 (0.988)", ""]
    assert wide.loc["exposures"].tolist() == ["", "", "12.3"]
    assert wide.index.name is None and wide.columns.name is None


def test_a_pivot_takes_patterns_keeps_steps_apart_and_counts_seeds():
    rows = [row("dream_l0_accuracy", 0.25 * step, game="pong", step=step) for step in (1, 2)]
    table = long_table([*rows, row("dreams", 9, game="pong")], seeds=(0, 1))
    wide = report.pivot(table, ["dream_l{level}_accuracy"])
    assert wide.index.tolist() == ["dream_l0_accuracy, step 1", "dream_l0_accuracy, step 2"]
    assert wide["pong"].tolist() == ["0.250", "0.500"]
    assert wide["seeds"].tolist() == [2, 2]
    with pytest.raises(InputError, match=r"no metric 'diversity'.*dreams"):
        report.pivot(table, ["diversity"])


def test_a_pattern_for_all_levels_leaves_the_changed_codes_out():
    table = long_table([row(f"l{level}_{part}accuracy", 0.5) for level in range(3)
                        for part in ("", "changed_")] + [row("l0_accuracy[frequency]", 0.1)])
    found = report.summarise(table, ["l{level}_accuracy", "l0_accuracy[frequency]"])
    assert found["metric"].tolist() == [
        "l0_accuracy", "l1_accuracy", "l2_accuracy", "l0_accuracy[frequency]"]


def test_over_seeds_gives_mean_interval_and_n():
    table = long_table(lambda seed: [row("real_return", 3.0 * seed, game="pong", baseline=-20)],
                       seeds=(0, 1, 2))
    shown = report.over_seeds(table).iloc[0]
    low, high = evaluation.interval([0.0, 3.0, 6.0])
    assert (shown["mean"], shown["baseline"], shown["n"]) == ("3", "-20", 3)
    assert shown["95% interval"] == f"{report.number(low)} to {report.number(high)}"
    assert report.over_seeds(table[table["seed"] == 1])["95% interval"].tolist() == ["–"]


def test_the_same_seed_never_counts_twice():
    table = long_table([row("diversity", 1), row("diversity", 2)])
    with pytest.raises(InputError, match="twice"):
        report.summarise(table)


def test_a_missing_value_lowers_n_instead_of_hiding_the_others():
    table = long_table(lambda seed: [row("real_return", [1.0, np.nan, 2.0][seed])],
                       seeds=(0, 1, 2))
    found = report.summarise(table).iloc[0]
    assert (found["mean"], found["n"]) == (1.5, 2)


def test_a_caption_names_seeds_device_commit_and_seconds():
    line = " ".join(report.provenance_line(record_of()).split())
    assert line == ("profile quick, variant base, seed 0 (n=1), device Test CPU, commit abc1234, "
                    "40 s")
    other = record_of(seed=2, device="GPU", git={"commit": "def5678", "dirty": True},
                      games=["pong"])
    both = report.provenance_line([record_of(), other])
    assert max(map(len, both.splitlines())) <= 76, "a longer line is clipped on the page"
    assert " ".join(both.split()) == (
        "profile quick, variant base, seeds 0, 2 (n=2), games pong+breakout+ms_pacman, pong, "
        "device Test CPU; GPU, commit abc1234, def5678 (dirty), 80 s")


def test_the_epoch_table_keeps_the_last_evaluation_and_skips_other_rows():
    def evaluated(s):
        return {"val_codes": 3.0 / s, "train_codes": 1.0 / s, "val_l0_accuracy": 0.5,
                "val_l1_accuracy": 0.25, "val_l2_accuracy": 0.125} if s % 2 == 0 else {}

    history = [{"step": s, "codes": 2.0 / s, **evaluated(s)} for s in range(1, 21)]
    table = report.seed_epoch_table(history, steps_per_epoch=4, num_rows=3)
    assert table.index.tolist() == ["epoch 1.50", "epoch 3", "epoch 5"]
    assert table.loc["epoch 5"].tolist() == [
        "0.100", "0.0500", "0.150", "0.500", "0.250", "0.125"]


def test_costs_leave_out_what_was_not_asked_for_and_miss_no_stage_of_the_chain(tmp_path):
    chain = ("frames", "encoder", "tokenizer", "decoder", "world_model", "imagination", "policy")
    measured = {"made_seconds": 7.0, "peak_memory_mb": 90.0, "profile": "quick"}
    for stage in chain:
        write_table(tmp_path / "quick", [row("steps", 1)], stage=stage, **measured)
    assert report.costs(tmp_path, "quick")["stage"].tolist() == [*chain]
    write_table(tmp_path / "quick", [row("steps", 1)], stage="entropy_floor", **measured)
    found = report.costs(tmp_path, "quick")
    assert found["stage"].tolist() == [*chain, "entropy_floor"]
    assert found["making (s)"].tolist() == ["7"] * 8
    (tmp_path / "quick" / "tokenizer" / "base-seed0.csv").unlink()
    with pytest.raises(InputError, match="no table of stage tokenizer"):
        report.costs(tmp_path, "quick")


def test_a_stage_that_was_not_measured_is_one_line_and_a_measured_one_its_table(tmp_path, capsys):
    metrics = ["transfer_l0_gain"]
    assert report.where_measured(tmp_path, "quick", "transfer", metrics) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert "No table of stage transfer at profile quick" in line and "09_transfer" in line
    write_table(tmp_path / "quick", [row("transfer_l0_gain", 0.25, game="pong", step=1000)],
                stage="transfer")
    assert report.where_measured(tmp_path, "quick", "transfer", metrics)["mean"].tolist() == [
        "0.250"]
    assert "profile quick, variant base, seed 0" in capsys.readouterr().out
    wide = report.where_measured(tmp_path, "quick", "transfer", metrics, report.pivot)
    assert wide.index.tolist() == ["transfer_l0_gain, step 1000"]


# ---- headline

def test_a_headline_shows_value_beside_baseline_per_game_and_profile(tmp_path):
    write_table(tmp_path / "quick", [row("f1_overall", 0.456, game="pong", baseline=0.3),
                                     row("f1_overall", 0.5, game="breakout", baseline=0.25)])
    dreams = [row("dream_l0_accuracy", 0.01 * step, game="ms_pacman", step=step, baseline=0.5)
              for step in (1, 15, 50)]
    write_table(tmp_path / "quick", dreams, stage="imagination")
    assert publishing.headline(tmp_path) == "\n".join([
        "**quick**: the newcomer's first report: every stage for real in ten minutes on two cores",
        "",
        "| metric | Pong | Breakout | MsPacman | in brackets | seeds |",
        "|---|---|---|---|---|---|",
        "| RAM state read from embeddings, F1 | 0.456 (0.300) | 0.500 (0.250) |  "
        "| untrained encoder | 1 |",
        "| coarse codes right in a dream after 15 steps |  |  | 0.150 (0.500) "
        "| last step copied | 1 |",
        "",
        "Value [95% interval over seeds] (baseline), held-out episodes. Device: Test CPU. "
        "Commit: abc1234."])


def test_a_headline_lists_mixed_commits_and_devices_with_their_stages(tmp_path):
    write_table(tmp_path / "desk", [row("l0_usage", 1)], stage="tokenizer", profile="desk")
    write_table(tmp_path / "desk", [row("l0_accuracy", 1)], stage="world_model", profile="desk",
                device="GPU", git={"commit": "fedcba98", "dirty": False})
    note = publishing.headline(tmp_path).splitlines()[-1]
    assert note.endswith("Device: Test CPU (tokenizer); GPU (world_model). "
                         "Commit: abc1234 (tokenizer); fedcba9 (world_model).")


def test_a_headline_takes_the_other_games_from_the_policys_variants_and_pools_seeds(tmp_path):
    for seed in (0, 1):
        write_table(tmp_path / "audit", [row("real_return", seed, game="pong", baseline=-20)],
                    stage="policy", seed=seed, profile="audit")
    write_table(tmp_path / "audit", [row("real_return", 2, game="breakout", baseline=1.5)],
                stage="policy", variant="policy_game.breakout", profile="audit")
    line = publishing.headline(tmp_path).splitlines()[4]
    assert line == ("| return in the real game | 0.500 [0, 1] (-20) | 2 (1.50) |  | random play "
                    "| 2, 1 |")


def test_profiles_stand_largest_first_and_smoke_makes_no_headline(tmp_path):
    for profile in ("smoke", "quick", "paper"):
        write_table(tmp_path / profile, [row("l0_usage", 1, game="pong")], stage="tokenizer",
                    profile=profile)
    assert re.findall(r"^\*\*(\w+)\*\*", publishing.headline(tmp_path), re.MULTILINE) == [
        "paper", "quick"]


def test_hi_dreamer_has_a_headline_of_its_own_after_base(tmp_path):
    for variant, value in (("base", 0.25), ("hi-dreamer", 0.75)):
        write_table(tmp_path / "quick", [row("r2_ball_x", value, game="pong")], variant=variant)
    lines = publishing.headline(tmp_path).splitlines()
    headings = [line.partition(":")[0] for line in lines if line.startswith("**")]
    assert headings == ["**quick**", "**quick, variant hi-dreamer**"]
    assert [line.split(" | ")[1] for line in lines if "the ball's x" in line] == ["0.250", "0.750"]


def test_the_committed_headlines_are_those_of_the_committed_tables():
    for path, text in publishing.headline_pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make publish"


# ---- publishing

@pytest.fixture
def checkout(tmp_path):
    """A committed repository with the places a headline goes to."""
    root = tmp_path / "checkout"
    (root / "book").mkdir(parents=True)
    marked = f"{publishing.BEGIN}\nold\n{publishing.END}"
    (root / "README.md").write_text(f"# Title\n\n{marked}\n\nmore\n")
    (root / "book" / "headline.md").write_text("old\n")
    git(root, "init", "-q")
    commit(root)
    return root


def git(root, *words):
    subprocess.run(["git", "-C", str(root), "-c", "user.name=test",
                    "-c", "user.email=test@example.org", *words], check=True, capture_output=True)


def commit(root):
    git(root, "add", "--all")
    git(root, "commit", "-q", "-m", "state")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The fresh results folder of profile quick, with one table, its episodes and a figure."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    folder = tmp_path / "artifacts" / "quick"
    path = write_table(folder / "results", [row("real_return", 1, game="pong", baseline=-20)],
                       stage="policy")
    path.with_name("base-seed0-episodes.csv").write_text("player,return\n")
    write_table(folder / "results", [row("l0_accuracy", 0.5, game="pong")], stage="world_model",
                variant="mask.strict")
    for name in ("base-seed0/returns.png", "mask.strict-seed0/bars.png"):
        (folder / "figures" / name).parent.mkdir(parents=True)
        (folder / "figures" / name).write_bytes(b"png")
    return folder / "results"


def test_publishing_copies_tables_figures_and_writes_both_headlines(checkout, fresh):
    written = [path.relative_to(checkout).as_posix()
               for path in publishing.publish("quick", root=checkout)]
    assert written == ["figures/quick/base-seed0/returns.png",
                       "results/quick/policy/base-seed0-episodes.csv",
                       "results/quick/policy/base-seed0.csv",
                       "results/quick/policy/base-seed0.json"]
    table = report.fresh_or_published(checkout / "results", "quick", "policy")
    assert table["value"].tolist() == [1]
    readme = (checkout / "README.md").read_text()
    assert "| return in the real game | 1 (-20) |  |  | random play | 1 |" in readme
    assert readme.startswith("# Title\n\n") and readme.endswith(f"{publishing.END}\n\nmore\n")
    page = (checkout / "book" / "headline.md").read_text()
    assert page.startswith(publishing.HEADER) and "| 1 (-20) |" in page


def test_publishing_takes_one_variant_or_all(checkout, fresh):
    publishing.publish("quick", "mask.strict", root=checkout)
    assert (checkout / "results/quick/world_model/mask.strict-seed0.csv").exists()
    assert not (checkout / "results/quick/policy").exists()
    commit(checkout)
    (fresh.parent / "figures" / "ablation-mask.png").write_bytes(b"png")
    assert len(publishing.publish("quick", "all", root=checkout)) == 8
    assert (checkout / "figures/quick/ablation-mask.png").exists()


def test_publishing_refuses_a_dirty_tree_and_changes_nothing(checkout, fresh):
    (checkout / "new.py").write_text("")
    with pytest.raises(InputError, match=r"clean git tree; 1 changed, first new\.py"):
        publishing.publish("quick", root=checkout)
    assert not (checkout / "results").exists()


def test_publishing_refuses_tables_of_a_dirty_or_unknown_commit(checkout, fresh):
    for state in ({"commit": "abc", "dirty": True}, {"commit": None, "dirty": None}):
        write_table(fresh, [row("l0_usage", 1)], stage="tokenizer", git=state)
        with pytest.raises(InputError, match=r"base-seed0\.csv was not made from a clean commit"):
            publishing.publish("quick", root=checkout)
    assert not (checkout / "results").exists()


def test_publishing_refuses_when_nothing_is_there_or_the_name_is_wrong(checkout, fresh):
    with pytest.raises(InputError, match=r"nothing to publish .* make report PROFILE=desk"):
        publishing.publish("desk", root=checkout)
    with pytest.raises(InputError, match="unknown variant 'bas'; allowed: all, base"):
        publishing.publish("quick", "bas", root=checkout)


def test_publishing_refuses_a_damaged_table_and_a_folder_without_git(checkout, fresh, tmp_path):
    path = fresh / "policy" / "base-seed0.csv"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match="damaged"):
        publishing.publish("quick", root=checkout)
    with pytest.raises(InputError, match="git working tree"):
        publishing.publish("quick", root=tmp_path)


# ---- figures

class TinyReplay:
    """Three episodes of two games; a row's frames are filled with its number."""

    games = ("pong", "breakout")
    episode_ids = np.repeat([0, 1, 2], [5, 3, 4])
    is_train = episode_ids != 1
    ram = np.zeros((12, 128), np.uint8)
    ram[:, 49], ram[1, 54] = 128, 100  # Pong's ball, in play in row 1 only
    rewards, continues = np.zeros(12, np.float32), np.ones(12, np.float32)

    def __len__(self):
        return len(self.episode_ids)

    def window_starts(self, length, mask=None):
        return np.arange(0) if mask is None else np.flatnonzero(mask)

    def in_game(self, game):
        return (self.episode_ids == 2) == (game == "breakout")

    def stack(self, rows):
        return np.stack([np.full((4, 84, 84), row, np.uint8) for row in rows])


def titles(fig):
    return [ax.get_title() for ax in fig.axes]


def heights(ax):
    return [round(patch.get_height(), 6) for patch in ax.patches]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_frame_strip_rings_the_ball_where_ram_says_and_only_while_it_is_in_play():
    fig = figures.frame_strip(TinyReplay(), "pong", [0, 1])
    assert len(fig.axes) == 10
    rings = [len(ax.lines) for ax in fig.axes]
    assert rings == [0] * 9 + [1]
    (x,), (y,) = fig.axes[9].lines[0].get_data()
    # RAM (128, 100) is screen (79.5, 87.5), the middle of pixel 80 of 160 and of 88 of 210.
    assert (x, y) == pytest.approx((80 * 84 / 160 - 0.5, 88 * 84 / 210 - 0.5))


def test_the_ring_lies_on_the_ball_of_the_real_game():
    from hd.atari import AtariGame, tracker_action
    env, on_ball = AtariGame("pong"), []
    frame, info = env.reset(seed=1)
    for _ in range(60):
        frame, *_, info = env.step(tracker_action("pong", info["ram"]))
        if info["ram"][54]:
            data = SimpleNamespace(stack=lambda rows, f=frame: np.repeat(f[None, None], 4, 1),
                                   ram=info["ram"][None])
            fig = figures.frame_strip(data, "pong", [0])
            (x,), (y,) = fig.axes[4].lines[0].get_data()
            patch = frame[round(y) - 1:round(y) + 2, round(x) - 1:round(x) + 2]
            on_ball.append(patch.max() > frame[40, 42] + 40)
            plt.close(fig)
        if len(on_ball) == 5:
            break
    assert on_ball == [True] * 5


def test_episode_lengths_show_every_episode_on_its_side():
    fig = figures.episode_lengths(TinyReplay())
    training, held_out, mean = fig.axes[0].lines
    assert training.get_ydata().tolist() == [5] and held_out.get_ydata().tolist() == [3]
    assert mean.get_ydata()[0] == 4
    assert legend(fig.axes[0]) == ["training (n=1)", "held out (n=1)", "mean 4"]


def test_learning_curves_draw_training_held_out_and_baseline_with_units():
    history = [{"step": s, "codes": 1 / s, "loss": 2 / s} for s in (1, 2, 3)]
    history[-1]["val_codes"] = 0.5
    fig = figures.learning_curves({"a": history, "b": history}, ["codes", "loss"],
                                  {"codes": {"n-gram": 0.7, "frequency": 0.9}, "loss": 5.5})
    assert legend(fig.axes[0]) == ["a training", "a held out", "b training", "b held out",
                                   "n-gram", "frequency"]
    assert [len(ax.lines) for ax in fig.axes] == [6, 3]
    assert fig.axes[1].lines[-1].get_ydata()[0] == 5.5
    assert [ax.get_ylabel() for ax in fig.axes] == ["codes (nats)", "loss (nats)"]


def test_an_embedding_map_colours_by_word_and_by_number():
    rows = np.random.default_rng(0).normal(size=(40, 6))
    ball = np.where(np.arange(40) % 4 == 0, np.nan, np.arange(40.0))
    fig = figures.embedding_map(rows, {"game": ["pong"] * 10 + ["breakout"] * 30, "ball_x": ball})
    words, numbers, scale = fig.axes
    assert legend(words) == ["Pong", "Breakout"]
    assert [len(part.get_offsets()) for part in words.collections] == [10, 30]
    assert [len(part.get_offsets()) for part in numbers.collections] == [10, 30]
    assert scale.get_ylabel() == "ball_x"
    assert words.get_title() == "by game, n=40"


def test_a_large_embedding_map_is_thinned():
    rows = np.random.default_rng(0).normal(size=(figures.MAX_POINTS * 2 + 1, 3))
    fig = figures.embedding_map(rows, {"ball_x": rows[:, 0]})
    assert sum(len(part.get_offsets()) for part in fig.axes[0].collections) <= figures.MAX_POINTS


def test_code_usage_sorts_codes_and_draws_the_even_share():
    tokens = np.array([[0, 3], [0, 3], [0, 3], [2, 1]])
    fig = figures.code_usage({"pong": tokens, "breakout": tokens}, num_codes=5)
    assert len(fig.axes) == 4
    assert heights(fig.axes[0]) == [0.75, 0.25, 0, 0, 0]
    assert fig.axes[0].lines[0].get_ydata()[0] == 0.2
    assert titles(fig)[0] == "Pong L0: 2 of 5 used,\nperplexity 2"


def test_game_information_stands_below_its_ceiling():
    table = long_table(lambda seed: [
        row(f"l{level}_game_information", 1 - 0.3 * level + 0.01 * seed, baseline=1.1)
        for level in range(3)], stage="tokenizer", seeds=(0, 1))
    ax = figures.game_information(table).axes[0]
    assert heights(ax) == [1.005, 0.705, 0.405]
    (ceiling,) = (line for line in ax.lines if line.get_label().startswith("H(game)"))
    assert ceiling.get_ydata()[0] == 1.1
    assert [t.get_text() for t in ax.get_xticklabels()] == list(figures.LEVELS)
    assert len(ax.containers) == 2  # the bars and, with two seeds, their whiskers


def test_all_four_masks_are_drawn_as_they_are():
    fig = figures.attention_masks(num_steps=2)
    for ax, kind in zip(fig.axes, MASKS, strict=True):
        mask = world_model.hierarchical_mask(2, kind).numpy()
        assert (ax.images[0].get_array() == mask).all()
        assert ax.get_title() == f"{kind}: {mask.sum()} of 64"
        assert [t.get_text() for t in ax.get_xticklabels()] == ["L0", "L1", "L2", "a"] * 2


def test_accuracies_stand_beside_all_three_baselines_on_all_and_on_changed_codes():
    rows = []
    for level in range(3):
        for part, shift in (("", 0), ("changed_", 0.1)):
            name = f"l{level}_{part}accuracy"
            rows += [row(name, 0.5 + shift, game="pong", baseline=0.4),
                     row(f"{name}[repeat_last]", 0.3, game="pong"),
                     row(f"{name}[frequency]", 0.2, game="pong")]
    fig = figures.accuracy_table_figure(long_table(rows, stage="world_model"))
    assert titles(fig) == ["Pong, all codes", "Pong, codes that change"]
    assert heights(fig.axes[0]) == [0.5] * 3 + [0.4] * 3 + [0.3] * 3 + [0.2] * 3
    assert heights(fig.axes[1])[:3] == [0.6] * 3
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "world model", "n-gram", "repeat last", "frequency"]
    assert fig.axes[0].get_ylabel() == "accuracy (share)"


def test_metric_bars_draw_value_and_baseline_for_each_game():
    table = long_table([row("f1_overall", 0.6, game="pong", baseline=0.4),
                        row("f1_overall", 0.7, game="breakout", baseline=0.5),
                        row("diversity", 1.2)])
    fig = figures.metric_bars(table, ["f1_overall", "diversity"])
    assert heights(fig.axes[0]) == [0.6, 0.7, 0.4, 0.5]
    assert legend(fig.axes[0]) == ["measured", "untrained encoder"]
    assert heights(fig.axes[1]) == [1.2]
    assert fig.axes[1].get_ylabel() == "diversity (distance)"


def test_arm_bars_draw_every_arm_and_bases_baseline():
    arms = {"base": 0.5, "mask.strict": 0.25}
    table = pd.concat([
        long_table([row("l0_accuracy", value, game=game, baseline=0.4)
                    for game in ("pong", "breakout")]).assign(variant=arm)
        for arm, value in arms.items()])
    fig = figures.arm_bars(table, ["l0_accuracy"])
    assert heights(fig.axes[0]) == [0.5, 0.5, 0.25, 0.25]
    (baseline,) = fig.axes[0].collections
    assert [segment[0, 1] for segment in baseline.get_segments()] == [0.4, 0.4]
    assert {text.get_text() for text in fig.legends[0].get_texts()} == {*arms, "baseline"}


def test_a_dream_strip_shows_the_chosen_steps_that_exist():
    frames = np.stack([np.full((84, 84), k, np.uint8) for k in range(6)])
    fig = figures.film_strip({"real game": frames, "its codes": frames + 50, "dream": frames + 100},
                             steps=(0, 2, 9))
    assert len(fig.axes) == 6
    assert titles(fig)[:2] == ["last real step", "step 2"]
    shown = [int(ax.images[0].get_array()[0, 0]) for ax in fig.axes]
    assert shown == [0, 2, 50, 52, 100, 102]


def test_returns_show_every_episode_the_random_line_and_anchors():
    episodes = [{"player": player, "game": "pong", "return": float(value)}
                for player, values in (("policy", (-20, -18, -19)), ("random", (-21, -21)))
                for value in values]
    ax = figures.returns_plot(episodes, {"Human": 14.6}).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [-20, -18, -19]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["policy\nn=3", "random\nn=2"]
    dashed = {line.get_label(): line.get_ydata()[0] for line in ax.lines
              if line.get_label() in ("random play, mean", "Human")}
    assert dashed == {"random play, mean": -21, "Human": 14.6}


def test_figures_are_saved_in_the_runs_own_folder_and_small_ones_as_svg_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    run = runs.start("encoder", profile="smoke", variant="mask.strict", seed=3)
    figures.save(figures.attention_masks(1), run, "masks")
    folder = tmp_path / "smoke" / "figures" / "mask.strict-seed3"
    assert (folder / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "masks.svg").read_text()
    monkeypatch.setattr(figures, "SVG_BYTES", 10)
    figures.save(figures.attention_masks(1), folder, "masks")
    assert [path.name for path in folder.iterdir()] == ["masks.png"]


def test_drawing_leaves_the_sessions_own_style_alone():
    with plt.rc_context({"font.size": 17}):
        fig = figures.attention_masks(1)
        assert plt.rcParams["font.size"] == 17
    assert fig.axes[0].title.get_fontsize() == figures.STYLE["axes.titlesize"]


# ---- videos

def clip(num_frames=7, shade=0):
    return np.stack([np.full((84, 84), shade + 20 * t, np.uint8) for t in range(num_frames)])


def test_a_video_has_every_frame_even_sides_and_its_columns_in_order(tmp_path):
    path = video.side_by_side_video({"truth": clip(), "dream": clip(shade=100)},
                                    tmp_path / "two.mp4", scale=3)
    with imageio.get_reader(path) as film:
        meta, frames = film.get_meta_data(), [np.asarray(frame) for frame in film]
    assert (len(frames), meta["fps"], meta["codec"]) == (7, 15, "h264")
    assert meta["pix_fmt"].startswith("yuv420p")
    assert frames[0].shape == (44 + 252, 2 * 260, 3)
    for t, frame in enumerate(frames):  # the middle of each column; h264 keeps it within a few
        assert frame[170, 126, 0] == pytest.approx(20 * t, abs=6)
        assert frame[170, 260 + 126, 0] == pytest.approx(100 + 20 * t, abs=6)
    assert frames[0][:44].min() < 100 < frames[0][:44].max()  # the names, dark on white


def test_a_marked_place_is_circled_in_its_own_column_and_step(tmp_path):
    places = np.full((7, 2), np.nan)
    places[3] = 60, 20  # column, row
    path = video.side_by_side_video({"truth": clip(), "dream": clip()}, tmp_path / "m.mp4",
                                    scale=3, marks={"dream": places})
    with imageio.get_reader(path) as film:
        frames = [np.asarray(frame).astype(int) for frame in film]
    redness = [frame[44:, :, 0] - frame[44:, :, 2] for frame in frames]
    for t, red in enumerate(redness):
        rows, columns = np.nonzero(red > 60)
        assert (len(rows) > 0) == (t == 3)
    rows, columns = np.nonzero(redness[3] > 60)
    assert rows.mean() == pytest.approx(20.5 * 3, abs=2)
    assert columns.mean() == pytest.approx(260 + 60.5 * 3, abs=2)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    one, two = (video.side_by_side_video({"a": clip()}, tmp_path / f"{k}.mp4", scale=1,
                                         notes=[f"step {t}" for t in range(7)]).read_bytes()
                for k in range(2))
    assert one == two


def test_videos_of_unequal_length_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match="same shape"):
        video.side_by_side_video({"a": clip(3), "b": clip(4)}, tmp_path / "x.mp4")
    assert not list(tmp_path.iterdir())


def test_an_embedded_video_needs_no_other_file(tmp_path, monkeypatch):
    path = video.side_by_side_video({"a": clip()}, tmp_path / "a.mp4", scale=1)
    html = video.embed_video(path).data
    content = re.search(r'src="data:video/mp4;base64,([^"]+)"', html)[1]
    assert base64.b64decode(content) == path.read_bytes()
    monkeypatch.setattr(video, "VIDEO_BYTES", 10)
    with pytest.raises(InputError, match="at most 10"):
        video.embed_video(path)


def test_published_dreams_of_both_variants_are_shown_from_the_largest_profile(
        tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    for place in ("quick/base", "quick/hi-dreamer", "desk/base", "audit/base", "audit/hi-dreamer"):
        (tmp_path / f"{place}-seed0").mkdir(parents=True)
        video.side_by_side_video({"a": clip()}, tmp_path / f"{place}-seed0" / "dream.mp4", scale=1)
    video.show_published(tmp_path)
    assert [one.data for one in shown[::2]] == ["**base**, audit, seed 0",
                                                "**hi-dreamer**, audit, seed 0"]
    assert all("data:video/mp4;base64," in one.data for one in shown[1::2])
    video.show_published(tmp_path / "desk")
    assert len(shown) == 4 and "No profile has published dreams" in capsys.readouterr().out


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """Every stage of a smoke run, untrained and small; the decoder draws a step's coarse code."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    cfg = runs.start("imagination", profile="smoke").profile.world_model
    tokenizer = ResidualVQ().eval()
    tokenizer.codebooks.normal_(std=0.05)
    model = WorldModel(cfg, tokenizer.codebooks.clone()).eval()
    drawn = []

    def draw(run, tokens):
        drawn.append(tokens)
        return tokens[..., 0, None, None].expand(*tokens.shape[:-1], 84, 84).numpy().astype("uint8")

    monkeypatch.setattr(video.encoder, "load", lambda run: AtariEncoder().eval())
    monkeypatch.setattr(video.tokenizer, "load", lambda run: tokenizer)
    monkeypatch.setattr(video.world_model, "load", lambda run: model)
    monkeypatch.setattr(video.decoder, "decode_tokens", draw)
    return drawn


def test_a_played_video_starts_every_dream_from_real_context(untrained, tmp_path):
    path = video.play_video(game="breakout", profile="smoke", policy="random", steps=20,
                            out=tmp_path / "play.mp4")
    (real, dreamed), = untrained
    context = 8  # of the smoke profile; its horizon is 15, so the second dream has 5 steps
    assert real.shape == dreamed.shape == (context + 20, 3)
    assert (real[:context] == dreamed[:context]).all()
    assert (real[context:] != dreamed[context:]).any()
    with imageio.get_reader(path) as film:
        assert film.count_frames() == context + 20
        assert film.get_meta_data()["size"] == (3 * 260, 44 + 252)


def test_a_dream_is_told_apart_from_its_context_in_the_line_on_top(untrained):
    run = runs.start("imagination", profile="smoke")
    tokens, actions = torch.randint(256, (8 + 20, 3)), torch.zeros(28, dtype=torch.long)
    dreamed, notes = video._dreamed(run, "pong", tokens, actions)
    assert len(dreamed) == len(notes) == 28
    assert all(note.startswith("context") for note in notes[:8])
    assert [int(re.search(r"step (\d+)", note)[1]) for note in notes[8:]] == [
        *range(1, 16), *range(1, 6)]


def test_every_dream_goes_on_from_the_real_step_before_it_with_the_actions_taken(
        untrained, monkeypatch):
    def count_on(model, tokens, actions, act, *, horizon, generator):
        assert (tokens[:, :-1, 0] == actions).all()  # in the context, action t stands at step t
        steps = torch.stack([tokens[:, -1] + k for k in range(horizon + 1)], 1)
        acted = torch.stack([act(None, generator) for _ in range(horizon)], 1)
        is_there = steps[:, :-1, 0] < 38
        assert (acted == steps[:, :-1, 0])[is_there].all()
        return SimpleNamespace(tokens=steps)

    monkeypatch.setattr(video, "imagine", count_on)
    run, numbers = runs.start("imagination", profile="smoke"), torch.arange(38)
    tokens = numbers[:, None].repeat(1, 3)
    assert (video._dreamed(run, "pong", tokens, numbers)[0] == tokens).all()


def test_changing_the_real_future_changes_only_the_dreams_that_start_after_it(untrained):
    run = runs.start("imagination", profile="smoke")
    tokens, actions = torch.randint(256, (8 + 30, 3)), torch.zeros(38, dtype=torch.long)
    before = video._dreamed(run, "pong", tokens, actions)[0]
    changed = tokens.clone()
    changed[8:] = (changed[8:] + 1) % 256
    after = video._dreamed(run, "pong", changed, actions)[0]
    # Dream one covers steps 8 to 22 and starts from steps 0 to 7.
    assert (before[:23] == after[:23]).all()


@pytest.mark.parametrize(("wrong", "message"), [
    ({"game": "tennis"}, "unknown game 'tennis'; allowed: pong"),
    ({"policy": "me"}, "unknown policy 'me'; allowed: recorded, random, agent, tracker"),
    ({"steps": 0}, "steps must be a whole number from 1 to 3000; got 0"),
    ({"game": "ms_pacman", "policy": "agent"}, "take variant policy_game.ms_pacman"),
    ({"game": "ms_pacman", "policy": "tracker"}, "no tracker for 'ms_pacman'")])
def test_a_video_that_cannot_be_made_is_refused_in_one_line(untrained, wrong, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        video.play_video(**{"game": "pong", "profile": "smoke", **wrong})
    assert "\n" not in str(error.value)
