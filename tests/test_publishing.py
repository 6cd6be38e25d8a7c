"""hd.book.publishing: the headline, and what is copied into results/ and figures/ when."""

import re

import pytest
from tiny import commit, git, write_benchmark, write_table

from hd.book import publishing
from hd.config import InputError
from hd.report import benchmarks
from hd.report import tables as report
from hd.run.runs import row

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


# ---- the benchmark

@pytest.fixture
def benchmark_folder(tmp_path, monkeypatch):
    """Where python -m hd bench would have written; empty."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts" / "benchmark"


def test_publishing_the_benchmark_copies_every_device_with_its_provenance(checkout,
                                                                          benchmark_folder):
    for kind in ("cpu", "gpu", "cpu-quick"):
        write_benchmark(benchmark_folder, kind)
    written = [path.relative_to(checkout).as_posix()
               for path in publishing.publish_benchmark(root=checkout)]
    assert written == [f"results/benchmark/{name}" for name in (
        "cpu-profile.csv", "cpu.csv", "cpu.json", "gpu-profile.csv", "gpu.csv", "gpu.json")]
    found = benchmarks.published(checkout / "results" / "benchmark")
    assert found["kind"].tolist() == ["cpu"] * 3 + ["gpu"] * 3


def test_publishing_the_benchmark_refuses_dirty_trees_and_nothing(checkout, benchmark_folder):
    with pytest.raises(InputError, match=r"no benchmark below .* make it: python -m hd bench"):
        publishing.publish_benchmark(root=checkout)
    write_benchmark(benchmark_folder, dirty=True)
    with pytest.raises(InputError, match=r"cpu\.csv was not made from a clean commit"):
        publishing.publish_benchmark(root=checkout)
    write_benchmark(benchmark_folder)
    (checkout / "new.py").write_text("")
    with pytest.raises(InputError, match=r"clean git tree; 1 changed, first new\.py"):
        publishing.publish_benchmark(root=checkout)
    assert not (checkout / "results").exists()
