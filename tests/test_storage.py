"""hd.run.storage: files appear whole or not at all, and paths are shown without where they lie."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import refusal

from hd.run import storage

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits and permissions")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An artefact root of its own."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    return tmp_path.resolve()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def run_python(code, *args):
    """A process of its own that runs code with the arguments; returns it finished."""
    imports = "import sys\nfrom hd.run import storage\nfrom pathlib import Path\n"
    code = imports + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=storage.ROOT,
    )


# ---- writing


def test_text_json_and_arrays_come_back_as_they_were_written(folder):
    storage.write_text(folder / "a" / "b.txt", "ball ● paddle\n")
    storage.write_json(folder / "c.json", {"x": [1, 2.5, None], "name": "ü"})
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    storage.write_array(folder / "d.npy", array)
    assert (folder / "a" / "b.txt").read_text(encoding="utf-8") == "ball ● paddle\n"
    assert json.loads((folder / "c.json").read_text(encoding="utf-8"))["x"] == [1, 2.5, None]
    stored = np.load(folder / "d.npy")
    assert stored.dtype == np.int16 and (stored == array).all()
    assert files_in(folder) == ["b.txt", "c.json", "d.npy"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(folder):
    path = folder / "model.json"
    storage.write_text(path, "old")

    def half(aside):
        aside.write_text("ne")
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        storage.write_atomically(path, half)
    assert path.read_text() == "old"
    assert files_in(folder) == ["model.json"]


def test_a_writer_that_is_interrupted_leaves_no_half_file(folder):
    def half(aside):
        aside.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_atomically(folder / "model.json", half)
    assert files_in(folder) == []


def test_nothing_stands_under_the_final_name_while_it_is_written(folder):
    path = folder / "model.json"

    def look(aside):
        aside.write_text("new")
        assert aside.parent == folder and not path.exists()

    storage.write_atomically(path, look)
    assert path.read_text() == "new"


def test_a_full_disk_is_one_line_and_leaves_no_half_file(folder):
    def full(aside):
        aside.write_bytes(b"x" * 10)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = refusal(storage.write_atomically, folder / "model.json", full)
    assert "$HD_ARTIFACTS/model.json" in message and os.strerror(errno.ENOSPC) in message
    assert files_in(folder) == []


def test_a_file_in_the_way_of_a_folder_is_one_line(folder):
    (folder / "smoke").write_text("not a folder")
    message = refusal(storage.write_text, folder / "smoke" / "encoder" / "x.json", "{}")
    assert "HD_ARTIFACTS" in message and "cannot write" in message
    assert files_in(folder) == ["smoke"]


def test_a_file_that_the_writer_itself_misses_is_not_blamed_on_the_folder(folder):
    with pytest.raises(FileNotFoundError):
        storage.write_atomically(folder / "x.txt", lambda aside: (folder / "none").read_text())


WRITERS = {
    "text.json": "lambda aside: aside.write_text('x' * 100_000)",
    "array.npy": "lambda aside: numpy.save(aside, numpy.zeros(100_000))",
    "steps.npz": "lambda aside: numpy.savez(aside, x=numpy.zeros(100_000))",
    "model.safetensors": "lambda aside: save_file({'x': torch.zeros(100_000)}, aside)",
    "table.csv": "lambda aside: pandas.DataFrame(numpy.ones((50_000, 2))).to_csv(aside)",
}


@posix_only
def test_when_the_system_stops_a_write_every_kind_of_file_is_one_line_and_gone(folder):
    # RLIMIT_FSIZE makes a real write fail half-way, as a full disk does, without root.
    code = f"""
    import json, resource
    import numpy, pandas, torch
    from safetensors.torch import save_file
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for name, write in {{{", ".join(f"{k!r}: {v}" for k, v in WRITERS.items())}}}.items():
        try:
            storage.write_atomically(Path(sys.argv[1]) / name, write)
        except storage.InputError as error:
            print(json.dumps([name, str(error)]))
    """
    done = run_python(code, folder)
    assert done.returncode == 0, done.stderr
    refused = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(refused) == set(WRITERS)
    for name, message in refused.items():
        assert len(message.splitlines()) == 1 and name in message and "free space" in message
    assert files_in(folder) == []


READ_ONLY = """
    import os
    if os.geteuid() == 0:  # root may write anywhere
        os.setgid(65534), os.setuid(65534)
    try:
        ATTEMPT
    except storage.InputError as error:
        print(error)
"""


@posix_only
@pytest.mark.parametrize(
    "attempt",
    [
        "storage.write_text(Path(sys.argv[1]) / 'x.json', '{}')",
        "storage.check_writable(Path(sys.argv[1]) / 'smoke')",
        "storage.check_writable(Path(sys.argv[1]))",
    ],
)
def test_a_read_only_folder_is_one_line_before_work_starts(attempt, monkeypatch):
    # Not below tmp_path, whose parents only their owner may enter.
    with tempfile.TemporaryDirectory(prefix="hd-") as name:
        folder = Path(name).resolve()
        monkeypatch.setenv("HD_ARTIFACTS", str(folder))
        os.chmod(folder, 0o555)
        done = run_python(READ_ONLY.replace("ATTEMPT", attempt), folder)
        os.chmod(folder, 0o755)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1 and "Permission denied" in done.stdout
        assert "cannot write $HD_ARTIFACTS" in done.stdout
        assert files_in(folder) == []


STRANGER = """
    import os
    root = Path(sys.argv[1])
    os.umask(0o022)
    with storage.exclusive(root / "ours" / "table"):
        pass  # leaves its lock, which only its owner may write
    if sys.argv[2] == "shared":
        os.chmod(root / "ours", 0o777)
    os.setgid(4242), os.setuid(4242)
    try:
        with storage.exclusive(root / "ours" / "table"):
            print("entered")
    except storage.InputError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may be two")
@pytest.mark.parametrize(("folder", "place"), [("own", "ours"), ("shared", "ours/.table.lock")])
def test_what_belongs_to_another_user_is_one_line_that_says_whose_and_what_to_do(
        folder, place, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="hd-") as name:
        os.chmod(name, 0o755)  # as a folder that users share
        monkeypatch.setenv("HD_ARTIFACTS", name)
        done = run_python(STRANGER, name, folder)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        assert f"Permission denied: $HD_ARTIFACTS/{place} belongs to user root; ask" in done.stdout
        assert "set HD_ARTIFACTS to a folder of your own" in done.stdout


def test_a_refused_write_in_ones_own_folder_blames_no_other_user(folder):
    error = PermissionError(errno.EACCES, "Permission denied")
    assert "belongs to" not in str(storage.cannot_write(folder / "x.json", error))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users as POSIX knows them")
def test_an_owner_without_a_name_is_named_by_number(folder, monkeypatch):
    def nameless(path):
        raise KeyError("no such user")
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(folder).st_uid + 1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "owner", nameless)
    error = PermissionError(errno.EACCES, "Permission denied")
    said = str(storage.cannot_write(folder / "below" / "x.json", error))
    assert f"belongs to user {os.stat(folder).st_uid}; ask" in said


@posix_only
def test_a_process_killed_while_writing_leaves_the_old_file(folder):
    path = folder / "model.json"
    storage.write_text(path, "old")
    code = """
    import os, signal
    def half(aside):
        aside.write_text("ne")
        os.kill(os.getpid(), signal.SIGKILL)
    storage.write_atomically(Path(sys.argv[1]), half)
    """
    assert run_python(code, path).returncode == -9
    assert path.read_text() == "old"


def test_a_writable_folder_stays_as_empty_as_it_was(folder):
    storage.check_writable(folder / "smoke")
    assert files_in(folder) == []


# ---- records that notice damage


RECORD = {"step": 40, "loss": 0.1234567890123, "files": {"a": "00"}, "games": ("pong",)}


def test_a_record_comes_back_as_it_was_written(folder):
    storage.write_record(folder / "r.json", RECORD)
    assert storage.read_record(folder / "r.json") == {**RECORD, "games": ["pong"]}


def test_a_record_in_which_any_single_bit_flipped_is_never_read(folder):
    path = folder / "r.json"
    storage.write_record(path, RECORD)
    whole, read = path.read_bytes(), storage.read_record(path)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            # Only blanks between the fields may change unnoticed: they carry nothing.
            assert storage.read_record(path) == read
            assert whole[position : position + 1].isspace()
        except ValueError:
            pass


def test_a_truncated_record_is_never_read(folder):
    path = folder / "r.json"
    storage.write_record(path, RECORD)
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            storage.read_record(path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"', "{}"])
def test_json_of_another_shape_is_not_taken_for_a_record(folder, content):
    (folder / "r.json").write_text(content)
    with pytest.raises(ValueError):
        storage.read_record(folder / "r.json")


def test_the_digest_is_that_of_the_bytes(folder):
    (folder / "x").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert storage.sha256_of(folder / "x") == expected


def test_safetensors_survive_an_atomic_write(folder):
    tensors = {"w": torch.arange(6.0).view(2, 3)}
    path = folder / "m.safetensors"
    storage.write_atomically(path, lambda aside: save_file(tensors, aside))
    assert torch.equal(load_file(path)["w"], tensors["w"])


# ---- what users see


def test_paths_are_shown_relative_to_the_repository_or_the_artefact_root(folder):
    assert storage.shown(storage.ROOT / "hd" / "runs.py") == "hd/runs.py"
    assert storage.shown(folder / "smoke" / "x.json") == "$HD_ARTIFACTS/smoke/x.json"


def test_a_path_from_elsewhere_is_shown_by_its_name_only(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("private-home") / "x.json"
    assert storage.shown(elsewhere) == "x.json"


def test_a_tilde_in_hd_artifacts_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    monkeypatch.setenv("HD_ARTIFACTS", "~/runs")
    assert storage.artifacts_root() == (tmp_path / "runs").resolve()
    monkeypatch.setenv("HD_ARTIFACTS", "~nobody-of-this-name/runs")
    if os.name == "posix":
        assert "there is no such home folder" in refusal(storage.artifacts_root)


def test_without_a_checkout_artefacts_go_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ROOT", tmp_path / "site-packages")
    monkeypatch.delenv("HD_ARTIFACTS")
    monkeypatch.chdir(tmp_path)
    assert storage.artifacts_root() == tmp_path.resolve() / ".artifacts"
    said = refusal(storage.require_checkout, "hd run")
    assert said.startswith("hd run needs a checkout") and ".artifacts in the current folder" in said


def test_in_a_checkout_nothing_is_refused():
    assert storage.is_checkout()
    storage.require_checkout("hd run")


def test_artefacts_go_to_the_repository_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("HD_ARTIFACTS")
    assert storage.artifacts_root() == storage.ROOT / ".artifacts"
    monkeypatch.setenv("HD_ARTIFACTS", "")
    assert storage.artifacts_root() == storage.ROOT / ".artifacts"
    assert storage.shown(storage.artifacts_root() / "smoke") == ".artifacts/smoke"
