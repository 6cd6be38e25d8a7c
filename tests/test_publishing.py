"""hd.book.publishing: what is copied into results/ and figures/ when."""

import json

import pytest
from tiny import commit, git, write_benchmark, write_table

from hd.book import headline, publishing
from hd.config import InputError
from hd.report import benchmarks, tables
from hd.run import runs
from hd.run.runs import row
from hd.run.storage import sha256_of


@pytest.fixture
def checkout(tmp_path):
    """A committed repository with the places a headline goes to."""
    root = tmp_path / "checkout"
    (root / "book").mkdir(parents=True)
    marked = f"{headline.BEGIN}\nold\n{headline.END}"
    (root / "README.md").write_text(f"# Title\n\n{marked}\n\nmore\n")
    (root / "book" / "headline.md").write_text("old\n")
    git(root, "init", "-q")
    commit(root)
    return root


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The fresh results folder of profile quick: a policy's table with two files beside it, that
    of a variant, and figures of which pages show some."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    folder = tmp_path / "artifacts" / "quick"
    path = write_table(folder / "results", [row("real_return", 1, game="pong", baseline=-20)],
                       stage="policy")
    beside = {}
    for kind in ("episodes", "history"):
        file = path.with_name(f"base-seed0-{kind}.csv")
        file.write_text(f"{kind}\n")
        beside[file.name] = sha256_of(file)
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**record, "beside": beside}))
    write_table(folder / "results", [row("l0_accuracy", 0.5, game="pong")], stage="world_model",
                variant="mask.strict")
    for name, size in (("base-seed0/returns.png", 9), ("base-seed0/dream.mp4", 9),
                       ("mask.strict-seed0/bars.png", 9), ("ablation-mask.png", 5)):
        (folder / "figures" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "figures" / name).write_bytes(b"x" * size)
    return folder / "results"


def below(checkout, folder):
    return sorted(path.relative_to(checkout / folder).as_posix()
                  for path in (checkout / folder).rglob("*") if path.is_file())


def test_publishing_copies_tables_and_shown_figures_and_writes_the_numbers(checkout, fresh):
    written = [path.relative_to(checkout).as_posix()
               for path in publishing.publish("quick", root=checkout)]
    assert written == ["figures/quick/base-seed0/dream.mp4",
                       "results/quick/policy/base-seed0-episodes.csv",
                       "results/quick/policy/base-seed0.csv",
                       "results/quick/policy/base-seed0.json"]
    table = tables.fresh_or_published(checkout / "results", "quick", "policy")
    assert table["value"].tolist() == [1]
    readme = (checkout / "README.md").read_text()
    assert "| return in the real game | Pong | 1 (random play -20) | – | 1, – |" in readme
    assert readme.startswith("# Title\n\n") and readme.endswith(f"{headline.END}\n\nmore\n")
    for name, says in (("headline.md", "| 1 (random play -20) |"), ("measured.md", "| 1 (-20) |")):
        page = (checkout / "book" / name).read_text()
        assert page.startswith(headline.HEADER) and says in page


def test_publishing_takes_one_variant_or_all(checkout, fresh):
    publishing.publish("quick", "mask.strict", root=checkout)
    assert (checkout / "results/quick/world_model/mask.strict-seed0.csv").exists()
    assert not (checkout / "results/quick/policy").exists()
    commit(checkout)
    assert len(publishing.publish("quick", "all", root=checkout)) == 6


def test_of_a_figure_in_two_formats_the_smaller_file_is_published_alone(checkout, fresh):
    made = write_table(fresh, [row("l0_usage", 1, game="pong")], stage="tokenizer")
    for path in (made, made.with_suffix(".json")):
        path.rename(path.with_name(path.name.replace("base", "base-pong")))
    drawings = fresh.parent / "figures" / "base-pong-seed0"
    drawings.mkdir()
    for kind, size in (("png", 5), ("svg", 4)):
        (drawings / f"held.{kind}").write_bytes(b"x" * size)
    publishing.publish("quick", "all", root=checkout)
    assert below(checkout, "figures/quick/base-pong-seed0") == ["held.svg"]
    commit(checkout)
    (drawings / "held.svg").write_bytes(b"x" * 6)
    publishing.publish("quick", "all", root=checkout)
    assert below(checkout, "figures/quick/base-pong-seed0") == ["held.png"]


def test_an_arm_that_is_the_run_of_hi_dreamer_is_published_under_that_name_too(checkout, fresh):
    folder = fresh.parents[1] / "desk" / "results"
    run = runs.start("world_model", profile="desk", variant="hi-dreamer")
    for variant, identity in (("recipe.both", run.identity), ("recipe.codes", "another")):
        path = write_table(folder, [row("l0_accuracy", 0.5, game="pong")], stage="world_model",
                           variant=variant, profile="desk", identity=identity)
    history = path.with_name("recipe.both-seed0-history.csv")
    history.write_text("step\n1\n")
    record = path.with_name("recipe.both-seed0.json")
    record.write_text(json.dumps(json.loads(record.read_text())
                                 | {"beside": {history.name: sha256_of(history)}}))
    publishing.publish("desk", "all", root=checkout)
    assert below(checkout, "results/desk/world_model") == [
        "hi-dreamer-seed0-history.csv", "hi-dreamer-seed0.csv", "hi-dreamer-seed0.json",
        "recipe.both-seed0.csv", "recipe.both-seed0.json", "recipe.codes-seed0.csv",
        "recipe.codes-seed0.json"]
    table = tables.fresh_or_published(checkout / "results", "desk", "world_model", "hi-dreamer")
    assert table["variant"].tolist() == ["hi-dreamer"] and table["value"].tolist() == [0.5]
    assert table.attrs["records"][0]["measured_as"] == "recipe.both"
    commit(checkout)
    write_table(folder, [row("l0_accuracy", 0.75, game="pong")], stage="world_model",
                variant="hi-dreamer", profile="desk", identity=run.identity)
    publishing.publish("desk", "all", root=checkout)
    table = tables.fresh_or_published(checkout / "results", "desk", "world_model", "hi-dreamer")
    assert table["value"].tolist() == [0.75], "its own comes first"


def test_figures_that_no_page_shows_any_more_go_when_something_is_published(checkout, fresh):
    for profile in ("smoke", "desk"):
        for variant in ("base", "hi-dreamer"):
            film = checkout / "figures" / profile / f"{variant}-seed0" / "dream.mp4"
            film.parent.mkdir(parents=True)
            film.write_bytes(b"film")
    commit(checkout)
    written = publishing.publish("quick", root=checkout)
    assert below(checkout, "figures") == ["desk/base-seed0/dream.mp4",
                                          "desk/hi-dreamer-seed0/dream.mp4"]
    assert all(path.exists() for path in written)


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
