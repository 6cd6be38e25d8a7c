"""Notebooks run strictly, appear whole, are not run twice; the book's own are fit to be run."""

import ast
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from filelock import FileLock

import hd.book.building
from hd import config
from hd.book import notebooks
from hd.book.notebooks import NotebookError
from hd.config import InputError
from hd.run import runs, storage

PARAMETERS = """profile = "smoke"
variant = "base"
seed = 0
games = ["pong", "breakout", "ms_pacman"]
time_limit = 0  # seconds; 0 is none"""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PAGES = sorted(path for folder in ("pipeline", "report")
               for path in (storage.ROOT / "book" / folder).glob("*.ipynb"))
PIPELINE = [path for path in PAGES if path.parent.name == "pipeline"]


def write_notebook(path, *cells, parameters=PARAMETERS):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL})
    tags = {"tags": ["parameters"]}
    notebook.cells = [nbformat.v4.new_code_cell(parameters, metadata=tags),
                      *map(nbformat.v4.new_code_cell, cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def book(tmp_path, monkeypatch):
    """An empty book and an empty artefact folder."""
    monkeypatch.setattr(notebooks, "BOOK", tmp_path / "book")
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "book" / "pipeline"


@pytest.fixture
def ran(monkeypatch):
    """Replaces the kernel: the jobs that would have run, with the seconds each had left."""
    jobs = []

    def run(job, deadline, cwd, said):
        jobs.append((job, deadline and deadline - time.monotonic()))
        notebook = nbformat.read(job.source, 4)
        notebook.metadata["papermill"] = {"input_path": "a", "output_path": "b", "duration": 1.0}
        return notebook
    monkeypatch.setattr(notebooks, "_run", run)
    return jobs


def executed(tmp_path, profile="smoke"):
    folder = tmp_path / "artifacts" / profile / "notebooks" / "pipeline"
    return sorted(path.name for path in folder.glob("[!.]*"))


# ---- what is refused

@pytest.mark.parametrize(("wrong", "says"), [
    ({"profile": "smok"}, "unknown profile 'smok'; allowed: smoke, quick"),
    ({"variant": "mask.stric"}, "unknown variant 'mask.stric'; allowed: base"),
    ({"games": ["pong", "doom"]}, "unknown game 'doom'; allowed: pong"),
    ({"seed": -1}, "seed must be a whole number from 0"),
    ({"seed": True}, "seed must be a whole number from 0"),
    ({"variant": "policy_game.breakout", "games": ["pong"]}, "needs the game breakout"),
    ({"time_limit": 0}, "time limit must be more than 0 seconds"),
    ({"parameters": {"sed": 1}}, "unknown parameter 'sed' of 07_ablation; allowed: ablation, "),
    ({"parameters": {"profile": "smoke"}}, "profile, variant, seed, games, time_limit are options"),
    ({"parameters": {"seeds": "x"}}, "seeds of 07_ablation must be like [0]; got ['x']: input "),
    ({"parameters": {"seeds": ["0"]}}, "must be like [0]"),
    ({"parameters": {"seeds": []}}, "must be like [0]"),
    ({"parameters": {"seeds": [0, -1]}}, "seed must be a whole number from 0"),
    ({"parameters": {"ablation": 3}}, "must be like 'mask'"),
    ({"parameters": {"ablation": "maks"}}, "unknown ablation 'maks'; allowed: split, exposures"),
])
def test_bad_input_is_refused_in_one_line_before_anything_runs(book, ran, wrong, says):
    write_notebook(book / "07_ablation.ipynb",
                   parameters=PARAMETERS + '\nablation = "mask"\nseeds = [0]')
    with pytest.raises(InputError) as refused:
        notebooks.execute("07_ablation", **{"profile": "smoke", **wrong})
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not ran


@pytest.mark.parametrize(("given", "means"), [
    ("1", [1]), (1, [1]), ("0,1,2", [0, 1, 2]), ((0, 2), [0, 2]), ("[3, 4]", [3, 4])])
def test_a_list_may_be_given_as_on_a_command_line(book, given, means):
    write_notebook(book / "07_ablation.ipynb",
                   parameters=PARAMETERS + '\nablation = "mask"\nseeds = [0]')
    job = notebooks.plan("07_ablation", profile="smoke", parameters={"seeds": given})
    # papermill would hand a tuple to the notebook as text.
    assert job.parameters["seeds"] == means


def test_an_unknown_notebook_is_refused_with_the_list_of_the_known(book):
    write_notebook(book / "02_encoder.ipynb")
    with pytest.raises(InputError, match="unknown notebook '02_enc'; allowed: 02_encoder"):
        notebooks.execute("02_enc", profile="smoke")


def test_a_notebook_that_declares_less_than_the_options_is_refused(book):
    write_notebook(book / "02_encoder.ipynb", parameters='profile = "smoke"')
    with pytest.raises(InputError, match="02_encoder must declare profile, variant, seed"):
        notebooks.execute("02_encoder", profile="smoke")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(book, ran, monkeypatch,
                                                                        tmp_path):
    write_notebook(book / "02_encoder.ipynb")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="cannot write"):
        notebooks.execute("02_encoder", profile="smoke")
    assert not ran


# ---- what a kernel does

def test_a_completed_notebook_appears_under_its_name_with_its_parameters(book, tmp_path, capsys):
    write_notebook(book / "02_encoder.ipynb", "import os, sys, pathlib\nprint('seen', seed, games)",
                   "print(os.environ['HD_ARTIFACTS'], sys.executable, pathlib.Path.cwd().name)")
    path = notebooks.execute("02_encoder", profile="smoke", seed=3, games=["pong"])
    assert executed(tmp_path) == ["02_encoder-base-pong-seed3.ipynb",
                                  "02_encoder-base-pong-seed3.json"]
    said = capsys.readouterr().out  # live, not only in the notebook
    assert "seen 3 ['pong']" in said
    root, python, folder = next(line for line in said.splitlines() if " hd-" in line).split()
    assert Path(root) == storage.artifacts_root() and Path(python) == Path(sys.executable)
    notebook = nbformat.read(path, 4)
    kept = notebook.cells[-1].outputs[0].text
    assert kept.split() == ["$HD_ARTIFACTS", kept.split()[1], folder], "no place of this machine"
    assert not Path(kept.split()[1]).is_absolute()
    assert not {"input_path", "output_path"} & set(notebook.metadata.papermill)


def test_a_failing_cell_keeps_the_partial_notebook_and_names_it_in_one_line(book, tmp_path):
    write_notebook(book / "02_encoder.ipynb", "kept = 5\nprint(kept)", "raise ValueError('a\\nb')")
    with pytest.raises(NotebookError) as failed:
        notebooks.execute("02_encoder", profile="smoke")
    assert str(failed.value) == (
        "02_encoder failed in cell [4]: ValueError: a b; kept: "
        "$HD_ARTIFACTS/smoke/notebooks/pipeline/02_encoder.partial.ipynb")
    assert executed(tmp_path) == ["02_encoder.partial.ipynb"]


@pytest.mark.parametrize(("module", "kind"), [
    ("hd.config", InputError), ("hd.run.runs", runs.TimeLimitReached)])
def test_our_own_exceptions_leave_the_kernel_under_their_own_type(book, module, kind):
    write_notebook(book / "02_encoder.ipynb",
                   f"from {module} import {kind.__name__}\nraise {kind.__name__}('one line')")
    with pytest.raises(kind, match=r"^one line$"):
        notebooks.execute("02_encoder", profile="smoke")


def test_a_notebook_that_overruns_its_time_limit_is_stopped(book, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "SHORTEST", 2.0)
    write_notebook(book / "02_encoder.ipynb", "import time\ntime.sleep(60)")
    began = time.monotonic()
    with pytest.raises(runs.TimeLimitReached, match="02_encoder was stopped at its time limit"):
        notebooks.execute("02_encoder", profile="smoke", time_limit=3)
    assert time.monotonic() - began < 20
    assert executed(tmp_path) == ["02_encoder.partial.ipynb"]


@pytest.mark.skipif(os.name != "posix", reason="a Python without its library says so elsewhere too")
def test_a_kernel_that_cannot_start_is_named_with_its_own_words(book, monkeypatch):
    write_notebook(book / "02_encoder.ipynb")
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(NotebookError) as failed:
        notebooks.execute("02_encoder", profile="smoke")
    assert ("its kernel died or did not start (ModuleNotFoundError: No module named 'encodings')"
            in str(failed.value))
    assert "out of memory" not in str(failed.value)


def test_a_kernel_that_was_killed_may_have_lacked_memory(book):
    write_notebook(book / "02_encoder.ipynb", "import os, signal\nos.kill(os.getpid(), 9)")
    with pytest.raises(NotebookError, match=r"did not start \(out of memory\?\): "):
        notebooks.execute("02_encoder", profile="smoke")


def test_a_closed_pipe_is_not_taken_for_a_full_disk(book, monkeypatch):
    def refuse(*words, **settings):
        raise BrokenPipeError
    write_notebook(book / "02_encoder.ipynb")
    plan = notebooks.plan("02_encoder", profile="smoke")
    monkeypatch.setattr("papermill.execute_notebook", refuse)
    with pytest.raises(BrokenPipeError):
        notebooks.run_job(plan)


# ---- what is not run again

def test_an_unchanged_notebook_is_not_run_again(book, ran, capsys):
    write_notebook(book / "02_encoder.ipynb")
    first = notebooks.execute("02_encoder", profile="smoke").read_bytes()
    second = notebooks.execute("02_encoder", profile="smoke", time_limit=1000).read_bytes()
    assert len(ran) == 1 and first == second
    assert capsys.readouterr().out.endswith("02_encoder: up to date\n")


@pytest.mark.parametrize("what", ["force", "source", "notebook", "stamp", "stage", "gone"])
def test_what_changed_or_was_damaged_is_run_again(book, ran, what, monkeypatch):
    source = write_notebook(book / "02_encoder.ipynb")
    run = runs.start("encoder", profile="smoke")
    weights = run.folder / "model.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"weights")
    runs.finish(run, [weights], wall_seconds=1.0)
    path = notebooks.execute("02_encoder", profile="smoke")
    if what == "source":
        write_notebook(source, "1")
    elif what == "gone":
        (run.folder / "finished.json").unlink()
    elif what != "force":
        target = {"notebook": path, "stamp": path.with_suffix(".json"), "stage": weights}[what]
        target.write_bytes(target.read_bytes()[:-2])
    notebooks.execute("02_encoder", profile="smoke", force=what == "force")
    assert len(ran) == 2


def test_other_parameters_make_another_file(book, ran, tmp_path):
    write_notebook(book / "07_ablation.ipynb",
                   parameters=PARAMETERS + '\nablation = "mask"\nseeds = [0]')
    notebooks.execute("07_ablation", profile="smoke")
    notebooks.execute("07_ablation", profile="smoke",
                      parameters={"ablation": "policy", "seeds": "[0, 1]"})
    assert ran[1][0].parameters["seeds"] == [0, 1]
    assert [name for name in executed(tmp_path) if name.endswith(".ipynb")] == [
        "07_ablation-ablation=policy-seeds=0+1.ipynb", "07_ablation.ipynb"]


@pytest.mark.parametrize(("notebook", "made"), [
    ("10_agent", {("agent", "base-pong-seed0"), ("agent", "base-ms_pacman-seed0")}),
    ("07_ablation", {(stage, f"{variant}-pong+ms_pacman-seed{seed}")
                     for stage in ("tokenizer", "encoder") for seed in (0, 3)
                     for variant in ("base", "sticky.v5")})])
def test_a_notebook_whose_table_is_gone_is_executed_again(book, monkeypatch, notebook, made):
    """Also where it makes an agent for each game, or the arms of an ablation."""
    write_notebook(book / f"{notebook}.ipynb", parameters=PARAMETERS + (
        '\nablation = "sticky"\nseeds = [0, 3]' if notebook == "07_ablation" else ""))
    chosen = {"profile": "smoke", "games": ["pong", "ms_pacman"]}
    job = notebooks.plan(notebook, **chosen)
    assert {(run.stage, run.name) for run in job.runs} == made and len(job.runs) == len(made)

    def run_all(job, deadline, cwd, said):
        for run in job.runs:
            runs.save_table(run, [runs.row("m", 1.0)])
        notebook = nbformat.read(job.source, 4)
        notebook.metadata["papermill"] = {}
        return notebook

    monkeypatch.setattr(notebooks, "_run", run_all)
    notebooks.execute(notebook, **chosen)
    for run in job.runs:
        assert notebooks.is_current(job)
        (run.root / "results" / run.stage / f"{run.name}.csv").unlink()
        assert not notebooks.is_current(job)
        notebooks.execute(notebook, **chosen)


def test_a_second_process_on_the_same_notebook_is_refused(book, ran, monkeypatch):
    write_notebook(book / "02_encoder.ipynb")
    monkeypatch.setattr(storage, "LOCK_PATIENCE", 0.1)
    path = notebooks.execute("02_encoder", profile="smoke")
    with (FileLock(path.with_name(f".{path.name}.lock")),
          pytest.raises(InputError, match=r"another process is working on .*02_encoder.ipynb")):
        notebooks.execute("02_encoder", profile="smoke", force=True)


def test_the_chain_shares_one_time_limit_and_says_where_it_stands(book, ran, capsys):
    for notebook in notebooks.CHAIN:
        write_notebook(book / f"{notebook}.ipynb")
    paths = notebooks.execute_all(profile="smoke", time_limit=1000)
    assert [path.stem for path in paths] == list(notebooks.CHAIN)
    left = [seconds for _, seconds in ran]
    assert left == sorted(left, reverse=True) and 900 < left[-1] < left[0] <= 1000
    assert "[2/6] 02_encoder: started" in capsys.readouterr().out
    with pytest.raises(runs.TimeLimitReached, match="came before 02_encoder; the same command"):
        notebooks.execute_all(profile="smoke", time_limit=1, force=True)


# ---- the book

def small_book(folder, text="# Title"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_config.yml").write_text('title: small\nexecute: {execute_notebooks: "off"}\n')
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (folder / "index.md").write_text(f"{text}\n")


def test_the_staged_book_shows_what_was_executed_and_keeps_the_rest(book, ran, tmp_path, capsys):
    small_book(tmp_path / "book")
    write_notebook(book / "02_encoder.ipynb", "'published'")
    write_notebook(book / "03_tokenizer.ipynb", "'published'")
    path = notebooks.execute("02_encoder", profile="smoke")
    path.write_text(path.read_text().replace("published", "fresh"))
    staged = hd.book.building.stage_book("smoke")
    assert "fresh" in (staged / "pipeline" / "02_encoder.ipynb").read_text()
    assert "published" in (staged / "pipeline" / "03_tokenizer.ipynb").read_text()
    assert "pipeline/03_tokenizer: shown as published" in capsys.readouterr().out


def test_report_pages_read_the_fresh_tables_or_stay_as_published(book, ran, tmp_path, capsys,
                                                                 monkeypatch):
    small_book(tmp_path / "book")
    for page in ("claims", "dynamics"):
        write_notebook(tmp_path / "book" / "report" / f"{page}.ipynb", "1",
                       parameters="results_dir = None")
    runs.save_table(runs.start("encoder", profile="smoke"), [runs.row("m", 1.0)])
    replaced = notebooks._run

    def run(job, deadline, cwd, said):
        if job.source.stem == "dynamics":
            raise InputError("no table of stage world_model")
        return replaced(job, deadline, cwd, said)
    monkeypatch.setattr(notebooks, "_run", run)
    hd.book.building.stage_book("smoke")
    given, = (job.parameters["results_dir"] for job, _ in ran)
    assert not Path(given).is_absolute(), "a page shows no path of the reader's machine"
    shown = (tmp_path / "book" / "report" / given).resolve()
    assert pd.read_csv(shown / "smoke" / "encoder" / "base-seed0.csv")["metric"].tolist() == ["m"]
    assert (shown / "paper" / "agent" / "base-pong-seed0.csv").exists(), "what was not run"
    said = capsys.readouterr().out
    assert "report/dynamics: the fresh tables do not suffice: no table of stage" in said
    assert "report/dynamics: shown as published" in said


def test_fresh_tables_replace_all_published_seeds_of_their_variant(tmp_path, monkeypatch):
    old = tmp_path / "published" / "results" / "quick" / "encoder"
    fresh = tmp_path / "quick" / "results" / "encoder"
    names = {old: ("base-seed0.csv", "base-seed1.csv", "base-seed1.json", "base-pong-seed0.csv",
                   "mask.strict-seed0.csv"), fresh: ("base-seed0.csv", "base-seed0-history.csv")}
    for folder in names:
        folder.mkdir(parents=True)
        for name in names[folder]:
            (folder / name).write_text("new" if folder == fresh else "old")
    monkeypatch.setattr(hd.book.building, "ROOT", tmp_path / "published")
    both = hd.book.building._fresh_among_published(tmp_path / "quick") / "quick" / "encoder"
    assert {path.name: path.read_text() == "new" for path in both.iterdir()} == {
        "base-seed0.csv": True, "base-seed0-history.csv": True, "base-pong-seed0.csv": False,
        "mask.strict-seed0.csv": False}


def test_the_book_builds_and_a_broken_one_leaves_the_old_in_place(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    small_book(tmp_path, "# First title")
    index = hd.book.building.build_book(tmp_path)
    small_book(tmp_path, "# Second title\n\n[broken](nowhere.md)")
    with pytest.raises(NotebookError, match=r"could not be built: ./index.md:3: WARNING") as failed:
        hd.book.building.build_book(tmp_path)
    assert "\n" not in str(failed.value)
    assert "First title" in index.read_text(encoding="utf-8")


def test_a_page_executed_before_a_change_is_shown_with_a_line_that_says_so(book, ran, tmp_path,
                                                                            capsys):
    small_book(tmp_path / "book")
    write_notebook(book / "02_encoder.ipynb", "'old'")
    notebooks.execute("02_encoder", profile="smoke", seed=3, games=["pong"])
    capsys.readouterr()
    hd.book.building.stage_book("smoke", seed=3, games=["pong"])
    assert capsys.readouterr().out == ""
    write_notebook(book / "02_encoder.ipynb", "'new'")
    staged = hd.book.building.stage_book("smoke", seed=3, games=["pong"])
    assert "'old'" in (staged / "pipeline" / "02_encoder.ipynb").read_text()
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith("pipeline/02_encoder: shown as executed before something it depends on")
    assert line.endswith("python -m hd run 02_encoder --profile smoke --variant base --seed 3 "
                         "--games pong")


@pytest.fixture
def last_book(tmp_path):
    """The first page of a complete book, built before from sources that are no longer there."""
    page = tmp_path / "artifacts" / "smoke" / "book" / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("the last book")
    (page.parents[2] / "gone.md").write_text("")
    return page


def test_staging_replaces_every_source_and_leaves_the_last_book(book, last_book, tmp_path):
    small_book(tmp_path / "book")
    staged = hd.book.building.stage_book("smoke")
    assert {path.name for path in staged.iterdir()} == {"_build", "_config.yml", "_toc.yml",
                                                        "index.md"}
    assert last_book.read_text() == "the last book"


def test_a_disk_that_is_full_while_staging_is_one_line_and_leaves_the_last_book(
        book, last_book, tmp_path, monkeypatch):
    small_book(tmp_path / "book")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
    monkeypatch.setattr(shutil, "copytree",
                        functools.partial(shutil.copytree, copy_function=full))
    with pytest.raises(InputError) as refused:
        hd.book.building.stage_book("smoke")
    assert str(refused.value) == (
        f"cannot write $HD_ARTIFACTS/smoke/book: [Errno {errno.ENOSPC}] "
        f"{os.strerror(errno.ENOSPC)}; free space or set HD_ARTIFACTS to a folder that can be "
        f"written")
    assert last_book.read_text() == "the last book"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_new_book_that_cannot_be_put_in_place_gives_way_to_the_last_one(moment, last_book,
                                                                          monkeypatch):
    place, new = last_book.parent, last_book.parents[1] / "new"
    new.mkdir()
    (new / "index.html").write_text("the new book")
    rename, moved = Path.rename, []

    def interrupted(path, target):
        moved.append(path)
        if len(moved) == 2 and moment == "before":
            raise KeyboardInterrupt
        rename(path, target)
        if len(moved) == 2 and moment == "after":
            raise KeyboardInterrupt
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hd.book.building._replace(new, place)
    assert last_book.read_text() == ("the last book" if moment == "before" else "the new book")
    assert not place.with_name("replaced").exists()


def test_a_book_whose_replacement_was_killed_comes_back(last_book, tmp_path):
    place = last_book.parent
    place.rename(place.with_name("replaced"))
    hd.book.building._put_back(place)
    assert last_book.read_text() == "the last book"


REPORT = """
import sys
from pathlib import Path
from hd.book import notebooks
from hd.__main__ import main
notebooks.BOOK = Path(sys.argv[1])
sys.exit(main(["report", "--no-run", "--profile", "smoke"]))
"""


def building(tmp_path):
    """A process of hd report in the middle of building a book, leader of its own group."""
    small_book(tmp_path / "book")
    process = subprocess.Popen(
        [sys.executable, "-c", REPORT, str(tmp_path / "book")], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "HD_ARTIFACTS": str(tmp_path / "artifacts")})
    built = tmp_path / "artifacts" / "smoke" / "book" / "_build"
    deadline = time.monotonic() + 120
    while not list(built.glob("partial-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


# A terminal sends Ctrl-C to the whole group, kill -INT to one process.
@pytest.mark.skipif(os.name != "posix", reason="process groups")
@pytest.mark.parametrize("send", [os.killpg, pytest.param(os.kill, marks=pytest.mark.long)])
def test_ctrl_c_while_the_book_is_built_is_one_line_and_leaves_the_last_book(send, last_book,
                                                                              tmp_path):
    process = building(tmp_path)
    send(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "hd: interrupted; the same command continues\n"
    assert last_book.read_text() == "the last book"
    assert [path.name for path in last_book.parents[1].iterdir()] == ["html"]


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")
def test_a_disk_that_is_full_while_the_book_is_built_is_one_line_and_leaves_the_last_book(
        last_book, tmp_path):
    import resource

    small_book(tmp_path / "book")
    done = subprocess.run(
        [sys.executable, "-c", REPORT, str(tmp_path / "book")], capture_output=True, text=True,
        env={**os.environ, "HD_ARTIFACTS": str(tmp_path / "artifacts")}, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("hd: ") and os.strerror(errno.EFBIG) in done.stderr
    assert last_book.read_text() == "the last book"
    assert {path.name for path in last_book.parents[1].iterdir()} <= {"html", "build.log"}


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_after_kill_9_the_build_ends_too_and_the_same_command_makes_the_book(last_book, tmp_path):
    process = building(tmp_path)
    process.kill()
    process.communicate(timeout=60)  # until what it started has closed the pipes, too
    assert last_book.read_text() == "the last book"
    with pytest.raises(ProcessLookupError):
        for _ in range(400):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    done = subprocess.run([sys.executable, "-c", REPORT, str(tmp_path / "book")], timeout=120,
                          env={**os.environ, "HD_ARTIFACTS": str(tmp_path / "artifacts")})
    assert done.returncode == 0 and "Title" in last_book.read_text()
    assert {path.name for path in last_book.parents[1].iterdir()} == {"html", "build.log"}


# ---- the notebooks of the book

def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_the_book_has_the_ablation_and_a_notebook_for_every_stage():
    assert set(notebooks.names()) == {"07_ablation", *config.NOTEBOOKS.values()}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_names_its_kernel(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # missing cell ids are only a warning
        nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
    assert nbformat.read(path, 4).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_notebook_holds_the_outputs_of_one_complete_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert [output.text for cell in cells for output in cell.outputs
            if output.get("name") == "stderr"] == []  # a reader's page shows warnings too
    assert not any("injected-parameters" in tags(cell) for cell in cells)


@pytest.mark.parametrize("path", PIPELINE, ids=lambda path: path.stem)
def test_a_pipeline_notebook_stores_nothing_that_nbval_ignores(path):
    ignored = [cell for cell in code_cells(path) if "nbval-ignore-output" in tags(cell)]
    assert ignored and [cell for cell in ignored if cell.outputs] == []


def test_thinning_empties_what_nbval_ignores_and_keeps_the_rest(book):
    path = write_notebook(book / "02_encoder.ipynb", "1", "2")
    notebook = nbformat.read(path, 4)
    for count, cell in enumerate(notebook.cells, 1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", text="said")]
        cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
    notebook.cells[1].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    page = path.parents[1] / "report" / "control.ipynb"
    page.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, page)
    notebooks.thin_stored()
    for stored, outputs in ((path, [1, 0, 1]), (page, [1, 1, 1])):
        cells = code_cells(stored)
        assert [len(cell.outputs) for cell in cells] == outputs
        assert [cell.execution_count for cell in cells] == [1, 2, 3]
        assert not any("execution" in cell.metadata for cell in cells)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_notebook_only_calls_the_package(path):
    for cell in code_cells(path):
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_notebook_has_short_cells_each_with_words_before_it(path):
    cells = [cell for cell in nbformat.read(path, 4).cells
             if "remove-cell" not in tags(cell)]  # which no page shows
    for before, cell in zip([None, *cells], cells):
        lines = cell.source.splitlines()
        if cell.cell_type == "code":
            assert len(lines) <= 15, f"aim at 12 lines: {lines[0]}"
            assert before is not None and before.cell_type == "markdown", lines[0]
            assert max(map(len, lines)) <= 80, "long lines are clipped in the book"


@pytest.mark.parametrize("path", PIPELINE, ids=lambda path: path.stem)
def test_a_pipeline_notebook_has_one_parameters_cell_of_the_smoke_profile(path):
    found = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
    assert len(found) == 1
    values = {node.targets[0].id: ast.literal_eval(node.value)
              for node in ast.parse(found[0].source).body}
    expected = {"profile": "smoke", "variant": "base", "seed": 0, "games": list(config.GAMES),
                "time_limit": 0}
    if path.stem == "07_ablation":
        expected |= {"ablation": "mask", "seeds": [0]}
    assert values == expected
