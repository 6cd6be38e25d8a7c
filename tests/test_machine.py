"""hd.run.machine: memory that a training keeps, and what else a machine says of itself."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from tiny import commit, git

from hd import config
from hd.run import machine, runs, training
from hd.run.storage import ROOT

MEGABYTES = 100


@pytest.mark.parametrize("wrong", ["gpu", "cpu:x", "cuda:99", "1.5"])
def test_a_device_that_torch_cannot_use_is_refused_in_one_line(monkeypatch, wrong):
    monkeypatch.setenv("HD_DEVICE", wrong)
    with pytest.raises(config.InputError) as refused:
        machine.device()
    assert str(refused.value) == ("HD_DEVICE must name a device that torch can use here: cpu, or "
                                  f"cuda with a GPU; got {wrong!r}")
    monkeypatch.setenv("HD_DEVICE", "cpu")
    assert machine.device() == torch.device("cpu")


needs_glibc = pytest.mark.skipif(machine._glibc() is None, reason="needs glibc")

# What other tests left of a process's memory would decide: each measurement has its own process.
MEASURED = """
import json, resource
import torch
from hd.run import machine

def fill_blocks(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(MEGABYTES * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def kept():
    return machine.resident_memory_mb() - at_first

torch.set_num_threads(1)
torch.ones(3)
at_first, found = machine.resident_memory_mb(), {}
"""


def measured(code):
    """What code leaves in the dict `found`, run behind MEASURED in a process of its own. There
    fill_blocks(count) fills and frees large blocks and says how often the system had to find a
    page for them, and kept() is the memory in MB that the process holds more than at first."""
    pytest.importorskip("resource")
    words = MEASURED.replace("MEGABYTES", str(MEGABYTES)) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", words + "\nprint(json.dumps(found))"], text=True,
                          capture_output=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_glibc
def test_freed_memory_stays_inside_and_goes_back_to_the_system_after():
    found = measured("""
        found["outside"] = fill_blocks(10)
        with machine.kept_memory():
            # A small block may take a bit of the first one's place: the next one needs another.
            found["inside"], found["kept"] = fill_blocks(10), kept()
        found["after"] = kept()
    """)
    assert found["inside"] < 0.5 * found["outside"]
    assert found["kept"] > 0.9 * MEGABYTES
    assert found["after"] < 0.1 * MEGABYTES


@needs_glibc
def test_what_is_kept_and_unused_can_be_given_back_inside():
    found = measured("""
        with machine.kept_memory():
            fill_blocks(1)
            found["kept"] = kept()
            machine.give_back_memory()
            found["given back"] = kept()
    """)
    assert found["kept"] > 0.9 * MEGABYTES
    assert found["given back"] < 0.1 * MEGABYTES


@needs_glibc
def test_memory_goes_back_when_training_fails_too():
    found = measured("""
        try:
            with machine.kept_memory():
                fill_blocks(1)
                found["kept"] = kept()
                raise ZeroDivisionError
        except ZeroDivisionError:
            found["after"] = kept()
    """)
    assert found["kept"] > 0.9 * MEGABYTES
    assert found["after"] < 0.1 * MEGABYTES


def test_without_glibc_nothing_is_kept_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(machine, "_glibc", lambda: None)
    with machine.kept_memory():
        machine.give_back_memory()
        assert torch.ones(3).sum() == 3


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_no_glibc(monkeypatch, error):
    def refuse(name):
        raise error("no such library")
    machine._glibc.cache_clear()
    monkeypatch.setattr(machine.ctypes, "CDLL", refuse)
    try:
        assert machine._glibc() is None
    finally:
        machine._glibc.cache_clear()


@needs_glibc
def test_training_keeps_memory_until_it_ends(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(machine._glibc(), "mallopt", lambda *option: asked.append(option))
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    model, run = torch.nn.Linear(2, 1), runs.Run("decoder", config.PROFILES["smoke"])
    keeping, usual = list(machine.KEEPING.items()), list(machine.USUAL.items())

    def loss(batch):
        assert asked == keeping
        return training.Loss(model(batch).square().mean())
    model.loss = loss
    training.train(model, lambda i: torch.ones(3, 2), run.cfg, run)
    assert asked == keeping + usual


# ---- cores

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")


@needs_affinity
def test_the_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 9})
    assert machine.cpu_count() == 3


def test_where_there_is_no_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert machine.cpu_count() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cpu_count() == 1


@needs_affinity
def test_torch_starts_as_many_threads_as_cores_may_be_used():
    code = ("import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import torch; "
            "from hd.run import machine; print(machine.cpu_count(), torch.get_num_threads())")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=ROOT, env=environment)
    assert done.stdout.split() == ["1", "1"], done.stderr


# ---- the commit

@pytest.fixture
def tree(tmp_path):
    """A git tree with one commit, and a folder inside of it."""
    git(tmp_path, "init", "-q")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("x")
    commit(tmp_path)
    return tmp_path


def test_a_folder_inside_another_git_tree_has_no_commit_of_its_own(tree):
    assert len(machine.asked_git(tree, "rev-parse", "HEAD")) == 40
    assert machine.asked_git(tree / "inner", "rev-parse", "HEAD") is None
    assert machine.asked_git(tree / "inner", "status", "--porcelain") is None


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_gits_own_variables_do_not_make_it_speak_of_another_tree(tree, tmp_path_factory,
                                                                 monkeypatch, name):
    own = machine.asked_git(tree, "rev-parse", "HEAD")
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    monkeypatch.setenv(name, str(other / ".git" if name == "GIT_DIR" else other))
    assert machine.asked_git(tree, "rev-parse", "HEAD") == own
    assert machine.asked_git(tree, "status", "--porcelain") == ""


def test_names_beyond_ascii_are_read_in_any_locale(tree):
    git(tree, "config", "core.quotepath", "false")
    (tree / "Müll").write_text("x")
    code = ("import sys; from hd.run import machine; "
            "print(ascii(machine.asked_git(sys.argv[1], 'status', '--porcelain')))")
    done = subprocess.run([sys.executable, "-c", code, str(tree)], capture_output=True, cwd=ROOT,
                          env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0",
                               "PYTHONCOERCECLOCALE": "0"})
    assert done.stdout.split() == [b"'??", rb"M\xfcll'"], done.stderr
