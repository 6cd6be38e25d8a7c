"""A sweep makes what is not up to date, once for all variants that agree; killed, it continues.

What is up to date is asked of the notebooks' stamps alone: no file's age decides anything.
"""

import os
import shutil
import subprocess
import sys
import time

import pytest
from test_notebooks import write_notebook
from tiny import refusal

from hd import config
from hd.__main__ import main
from hd.book import notebooks, sweeps
from hd.run import runs, storage

CHAIN = list(config.CHAIN)
SMOKE = {"profile": "smoke", "variants": ["base"], "seeds": [0]}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with the whole chain, whose notebooks need no kernel; returns the folder."""
    def run(job, deadline, cwd, said):
        import nbformat
        notebook = nbformat.read(job.source, 4)
        notebook.metadata["papermill"] = {}
        return notebook
    monkeypatch.setattr(notebooks, "_run", run)
    monkeypatch.setattr(notebooks, "BOOK", tmp_path / "book")
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    for name in CHAIN:
        write_notebook(tmp_path / "book" / "pipeline" / f"{name}.ipynb")
    return tmp_path / "book" / "pipeline"


def executed():
    """The plan of a sweep of base, all of whose notebooks have been executed."""
    planned = sweeps.plan(**SMOKE)
    for one in planned.values():
        notebooks.run_job(one.job)
    return planned


def states_below(folder):
    """Every file with when it was written and how."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*") if path.is_file()}


def finish(run, content):
    """A finished stage of one file."""
    (run.folder / "model.safetensors").write_bytes(content)
    runs.finish(run, [run.folder / "model.safetensors"], wall_seconds=1.0)


# ---- what is planned

def test_variants_that_agree_share_a_notebook_under_the_name_of_the_first(book):
    planned = sweeps.plan(profile="smoke", variants=["mask.strict", "policy.ppo"], seeds=[0])
    assert set(planned) == {*CHAIN[:5], *(f"{notebook}-{variant}-seed0" for notebook, variant in [
        ("04_world_model", "mask.strict"), ("05_imagination", "mask.strict"),
        ("06_policy", "mask.strict"), ("06_policy", "policy.ppo")])}


def test_only_what_the_asked_for_variants_read_is_planned(book):
    planned = sweeps.plan(profile="smoke", variants=["mask.strict"], seeds=[0])
    assert list(planned) == [*CHAIN[:3], *(f"{name}-mask.strict-seed0" for name in CHAIN[3:])]


def test_every_seed_has_a_chain_of_its_own_up_to_the_last_notebook_asked_for(book):
    planned = sweeps.plan(**{**SMOKE, "seeds": [0, 7]}, until="02_encoder")
    assert list(planned) == ["01_frames", "02_encoder", "01_frames-base-seed7",
                             "02_encoder-base-seed7"]


def test_a_notebook_needs_those_that_make_what_its_stages_read_and_comes_after_them(book):
    planned = sweeps.plan(profile="smoke", variants=["base", "mask.strict"], seeds=[0])
    names = list(planned)
    assert planned["05_imagination-mask.strict-seed0"].needs == (
        "03_tokenizer", "04_world_model-mask.strict-seed0")
    for name, one in planned.items():
        assert all(names.index(needed) < names.index(name) for needed in one.needs)


def test_frames_that_a_policy_plays_wait_for_that_policy(book):
    planned = sweeps.plan(profile="smoke", variants=["sources.hi_dreamer_agent", "hi-dreamer"],
                          seeds=[0])
    names = list(planned)
    frames, policy = "01_frames-sources.hi_dreamer_agent-seed0", "06_policy-hi-dreamer-seed0"
    assert planned[frames].needs == (policy,)
    assert names.index(policy) < names.index(frames)
    alone = sweeps.plan(profile="smoke", variants=["sources.hi_dreamer_agent"], seeds=[0])
    assert alone[frames].needs == ()


@pytest.mark.parametrize(("wrong", "says"), [
    ({"until": "07_ablation"}, "unknown notebook '07_ablation'; allowed: 01_frames"),
    ({"variants": ["base", "strict"]}, "unknown variant 'strict'"),
    ({"profile": "smok"}, "unknown profile 'smok'"),
    ({"seeds": [-1]}, "seed must be a whole number"),
])
def test_bad_input_is_refused_in_one_line(book, wrong, says):
    assert says in refusal(sweeps.plan, **{**SMOKE, **wrong})


# ---- what is made

def test_a_finished_sweep_leaves_nothing_to_make_whatever_the_age_of_the_files(book):
    planned = executed()
    for path in (*book.glob("*.ipynb"), planned["01_frames"].job.target):
        os.utime(path, (time.time() + 100,) * 2)
    assert sweeps.to_make(planned) == []


def test_a_changed_notebook_and_what_needs_it_are_to_be_made(book):
    planned = executed()
    write_notebook(book / "04_world_model.ipynb", "'changed'")
    assert sweeps.to_make(planned) == CHAIN[3:]


@pytest.mark.parametrize("name", ["hd/config.py", "hd/measure/probes.py", "hd/run/new.py"])
def test_after_an_edit_anywhere_in_the_package_everything_is_to_be_made(book, tmp_path, monkeypatch,
                                                                        name):
    shutil.copytree(storage.ROOT / "hd", tmp_path / "hd")
    monkeypatch.setattr(storage, "ROOT", tmp_path)
    assert storage.package_digest() == storage.CODE
    planned = executed()
    with open(tmp_path / name, "a") as module:
        module.write("# edited\n")
    monkeypatch.setattr(storage, "CODE", storage.package_digest())
    assert sweeps.to_make(planned) == CHAIN


def test_a_renamed_module_is_other_code(tmp_path, monkeypatch):
    shutil.copytree(storage.ROOT / "hd", tmp_path / "hd")
    monkeypatch.setattr(storage, "ROOT", tmp_path)
    (tmp_path / "hd" / "measure" / "probes.py").rename(tmp_path / "hd" / "measure" / "moved.py")
    assert storage.package_digest() != storage.CODE


def test_a_notebook_is_made_again_when_the_stage_it_reads_came_out_otherwise(book):
    encoder, tokenizer = (runs.start(stage, profile="smoke") for stage in ("encoder", "tokenizer"))
    for run in (encoder, tokenizer):
        run.folder.mkdir(parents=True)
        finish(run, b"once")
    planned = executed()
    finish(encoder, b"once")  # as a deterministic device makes it again, in another time
    assert sweeps.to_make(planned) == []
    finish(encoder, b"another time")
    assert not notebooks.is_current(planned["03_tokenizer"].job)
    shutil.rmtree(encoder.folder)
    assert notebooks.is_current(planned["03_tokenizer"].job), "its page still shows what it read"
    assert not notebooks.is_current(planned["02_encoder"].job)


# ---- through Snakemake

@pytest.fixture
def snakemake(tmp_path, monkeypatch):
    pytest.importorskip("snakemake")
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_names_what_is_not_up_to_date_and_changes_nothing(book, snakemake, capfd,
                                                                    tmp_path):
    executed()
    write_notebook(book / "06_policy.ipynb", "'changed'")
    before = states_below(tmp_path / "artifacts" / "smoke")
    capfd.readouterr()
    assert main(["sweep", "--profile", "smoke", "--dry-run"]) == 0
    said = "".join(capfd.readouterr())
    assert "5 of 6 notebooks are up to date" in said
    assert "Job 1: 06_policy\n" in said and "Job 2" not in said
    assert states_below(tmp_path / "artifacts" / "smoke") == before


@pytest.fixture
def project(tmp_path):
    """A copy of the project whose book has two small notebooks."""
    root = tmp_path / "project"
    shutil.copytree(storage.ROOT / "hd", root / "hd")
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(storage.ROOT / name, root)
    for name in CHAIN[:2]:
        write_notebook(root / "book" / "pipeline" / f"{name}.ipynb", "import time; time.sleep(3)")
    return root


def sweep(project, *words):
    """A process of hd sweep in a copy of the project, leader of its own group."""
    command = ["-m", "hd", "sweep", "--profile", "smoke", "--until", CHAIN[1], *words]
    return subprocess.Popen(
        [sys.executable, *command], cwd=project, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={
            **os.environ, "PYTHONPATH": str(project), "HD_ARTIFACTS": str(project / "artifacts")})


def made_by(process):
    """The notebooks that a sweep executed."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return [name for name in CHAIN if f"{name}: done" in said]


@pytest.mark.long
def test_a_sweep_makes_everything_once_and_again_after_an_edit_in_a_folder(project, snakemake):
    assert made_by(sweep(project)) == CHAIN[:2]
    assert made_by(sweep(project)) == []
    with open(project / "hd" / "measure" / "probes.py", "a") as module:
        module.write("# edited\n")
    assert made_by(sweep(project)) == CHAIN[:2]
    assert not list((project / "artifacts" / ".sweep").iterdir())


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_sweep_continues_with_what_is_not_made(project, snakemake):
    process = sweep(project)
    for line in process.stdout:
        if line.startswith(f"{CHAIN[1]}: started"):
            break
    process.kill()
    process.communicate(timeout=120)  # until the notebook that ran has ended, too
    assert made_by(sweep(project)) == CHAIN[1:2]
