"""What goes wrong goes wrong in one line, before work is lost, and the same command mends it."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import refusal, without_speeds

from hd import stages
from hd.__main__ import main
from hd.config import ABLATIONS, GAMES, PROFILES, UPSTREAM, InputError
from hd.run import runs, storage

TINY = {"frames.num_steps": 200, "frames.min_episodes": 4, "frames.val_share": 0.25,
        "frames.test_share": 0.25,
        "encoder.num_steps": 2, "encoder.batch_size": 8, "tokenizer.num_steps": 2,
        "tokenizer.batch_size": 300}  # fmt: skip
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")


def start(stage, **overrides):
    return runs.start(stage, profile="smoke", games="breakout", overrides={**TINY, **overrides})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artefacts up to the tokens and a table, made once."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(root))
        patch.setenv("WANDB_MODE", "disabled")
        run = start("tokenizer")
        stages.make(run)
        stages.embeddings_of(run)
        stages.tokens_of(run)
        runs.save_table(run, [runs.row("usage", 0.5, game="breakout")])
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty artefact root of its own."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path.resolve()


@pytest.fixture
def copy(made, root):
    """A copy of the artefacts that a test may damage."""
    shutil.copytree(made, root, dirs_exist_ok=True)
    return root


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


HARMS = pytest.mark.parametrize("harm", [truncate, flip_bit])


def half_written(root):
    """Files that are neither whole artefacts nor locks nor the kept copy of a failed notebook."""
    return [path for path in root.rglob(".*") if path.is_file() and path.suffix != ".lock"
            and path.name != ".lock"]  # fmt: skip


def hd(*words, **settings):
    """The finished command, in a process of its own as users start it."""
    return subprocess.run([sys.executable, "-m", "hd", *words], capture_output=True, text=True,
                          timeout=120, cwd=storage.ROOT, **settings)  # fmt: skip


def the_line(done):
    """The line with which a command refused that had started a kernel."""
    # A kernel that ends may add warnings of Python's own, but nothing that looks like a crash.
    lines = [line for line in done.stderr.splitlines() if line.startswith("hd: ")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


# ---- bad input

BAD = [
    (["run", "02_encoder", "--profile", "small"], PROFILES),
    (["run", "02_encoder", "--variant", "mask.all"], ["base", "mask.causal"]),
    (["run", "02_encoder", "--games", "tetris"], GAMES),
    (["run", "02_encoder", "--games", "pong,pong"], GAMES),
    (["run", "02_encoder", "--seed", "-1"], ["0 to 2147483647"]),
    (["run", "02_encoder", "--seed", "one"], ["0 to 2147483647"]),
    (["run", "2_encoder"], ["01_frames", "02_encoder", "all"]),
    (["run", "02_encoder", "--time-limit", "soon"], ["seconds"]),
    (["run", "02_encoder", "-p", "learning_rate", "1"], ["learning_rate"]),
    (["run", "07_ablation", "-p", "ablation", "masks"], ABLATIONS),
    (["run", "06_policy", "--variant", "policy_game.breakout", "--games", "pong"], ["breakout"]),
    (["run"], ["notebook"]),
    (["runs"], ["run", "report"]),
    ([], ["command"]),
]


@pytest.mark.parametrize(("words", "named"), BAD, ids=lambda x: " ".join(x) if x else "nothing")
def test_bad_input_is_one_line_that_says_what_is_allowed(words, named, root, capsys):
    profile = ["--profile", "smoke"] if words[:1] == ["run"] and "--profile" not in words else []
    assert main([*words, *(profile if len(words) > 1 else [])]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert all(name in captured.err for name in named)
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(root, monkeypatch, capsys):
    (root / "file").write_text("")
    monkeypatch.setenv("HD_ARTIFACTS", str(root / "file"))
    assert main(["run", "01_frames", "--profile", "smoke"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "cannot write" in captured.err and "HD_ARTIFACTS" in captured.err


# Imagination and the entropy floor have nothing to make.
MADE = [stage for stage in stages.STAGES if stage not in ("imagination", "entropy_floor")]


@pytest.mark.parametrize("stage", [stage for stage in MADE if UPSTREAM[stage]])
def test_a_stage_whose_input_is_missing_names_the_command_that_makes_it(stage, root):
    run = start(stage)
    if stage == "transfer":  # it refuses fewer than three games before it looks for anything
        run = dataclasses.replace(run, games=GAMES)
    message = refusal(stages.STAGES[stage].make, run)
    earlier = MADE[: MADE.index(stage)]
    assert any(run.at(needed).command in message for needed in earlier)
    assert not list(run.folder.rglob("*.safetensors"))


def test_a_notebook_whose_input_is_missing_makes_it_first(root):
    done = hd("run", "02_encoder", "--profile", "smoke", "--games", "pong")
    assert done.returncode == 0, done.stderr
    run = runs.start("encoder", profile="smoke", games=["pong"])
    assert runs.finished(run) and runs.finished(run.at("frames"))


COMMANDS = ("run 01_frames", "run all", "report", "report --no-run", "check", "restore", "play",
            "sweep --cores 1")  # fmt: skip
WITHOUT_PRIVILEGES = """
import ctypes, json, os, sys
from hd.__main__ import main
if os.geteuid() == 0:  # root may write anywhere until it gives up all its capabilities
    words = ctypes.c_uint32 * 2, ctypes.c_uint32 * 6
    assert ctypes.CDLL(None).capset(words[0](0x20080522, 0), words[1]()) == 0
for command in json.loads(sys.argv[1]):
    print(f"{main([*command.split(), '--profile', 'desk'])} {command}", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="gives up privileges as Linux knows them")
@pytest.mark.long
def test_in_a_read_only_folder_every_command_is_one_line_before_any_work(root):
    root.chmod(0o555)
    done = subprocess.run([sys.executable, "-c", WITHOUT_PRIVILEGES, json.dumps(COMMANDS)],
                          capture_output=True, text=True, timeout=300, cwd=storage.ROOT)
    root.chmod(0o755)
    assert done.stdout == "" and not list(root.iterdir())
    lines = done.stderr.splitlines()
    assert lines[1::2] == [f"2 {command}" for command in COMMANDS], done.stderr
    for line in lines[::2]:
        assert line.startswith("hd: cannot write $HD_ARTIFACTS") and "Permission denied" in line


@posix_only
def test_a_disk_that_is_full_while_a_notebook_runs_is_one_line_and_leaves_nothing_half(root):
    import resource

    # No file may grow beyond 300 kB: room for the kernel, not for frames.
    limit = (300_000, 300_000)
    done = hd("run", "01_frames", "--profile", "smoke", "--games", "breakout",
              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))  # fmt: skip
    line = the_line(done)
    assert "cannot write $HD_ARTIFACTS/smoke" in line and "free space" in line
    assert not half_written(root)
    assert not list(root.rglob("finished.json")) and not list(root.rglob("*.csv"))


# ---- damaged artefacts


def changed(run):
    """What the stage's folder holds, by digest."""
    return {path.name: storage.sha256_of(path) for path in run.folder.glob("[!.]*")
            if path.suffix != ".json"}  # fmt: skip


@HARMS
@pytest.mark.parametrize(
    ("stage", "name", "use"),
    [
        ("frames", "frames-breakout.npy", stages.load),
        ("frames", "steps-breakout.npz", stages.load),
        ("frames", "finished.json", stages.load),
        ("encoder", "model.safetensors", stages.load),
        ("encoder", "finished.json", stages.embeddings_of),
        ("tokenizer", "model.safetensors", stages.load),
        ("tokenizer", "finished.json", stages.tokens_of),
    ],
)
def test_a_damaged_artefact_is_never_used_and_its_command_makes_the_same_again(
    stage, name, use, harm, copy
):
    run = start(stage)
    before = changed(run)
    harm(run.folder / name)
    message = refusal(use, run)
    assert f"{run.folder.name}/{name}" in message and run.command in message
    stages.make(run)
    use(run)
    after = changed(run)
    assert after == {name: before[name] for name in after}


@HARMS
@pytest.mark.parametrize(
    ("stage", "name", "use"),
    [("encoder", "embeddings", stages.embeddings_of), ("tokenizer", "tokens", stages.tokens_of)],
)
def test_a_damaged_derived_array_is_made_again_and_the_same(stage, name, use, harm, copy):
    run = start(stage)
    whole = np.array(use(run))
    harm(run.folder / f"{name}.npy")
    assert np.array_equal(use(run), whole)


@HARMS
@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_damaged_table_is_named(suffix, harm, copy):
    run = start("tokenizer")
    path = run.root / "results" / "tokenizer" / f"{run.name}.csv"
    harm(path.with_suffix(suffix))
    try:
        table = runs.load_table(path)
    except InputError as error:
        assert "tokenizer/base-breakout-seed0.csv" in str(error)
    else:  # only what the .json says beside the digest of the table
        assert suffix == ".json" and table["value"].tolist() == [0.5]


def test_an_edited_config_never_meets_an_old_artefact(copy):
    old = start("tokenizer")
    before = changed(old)
    edited = start("tokenizer", **{"encoder.lr": 1e-5})
    assert edited.at("frames").folder == old.at("frames").folder
    assert "stage encoder is missing" in refusal(stages.STAGES["tokenizer"].make, edited)
    assert changed(old) == before


# ---- two processes, interruptions


@posix_only
def test_two_processes_on_the_same_stage_train_it_once_and_both_end_well(root):
    import test_training

    command = [sys.executable, "-c", test_training.CHILD, str(Path(__file__).parent)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for _ in range(2)]  # fmt: skip
    outputs = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    run = test_training.start(num_steps=60)
    assert len(runs.require(run)["history"]) == 60
    assert not half_written(root) and len(list(run.folder.glob("*.safetensors"))) == 1


CHAIN = ("run", "all", "--profile", "smoke")


def tables(root):
    return {path.relative_to(root).as_posix(): without_speeds(path)
            for path in root.rglob("*.csv")}  # fmt: skip


@posix_only
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_chain_killed_at_random_instants_ends_with_the_same_tables(root, monkeypatch):
    folders = [root / "whole", root / "killed"]
    monkeypatch.setenv("HD_ARTIFACTS", str(folders[0]))
    done = subprocess.run([sys.executable, "-m", "hd", *CHAIN], cwd=storage.ROOT, timeout=900,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("HD_ARTIFACTS", str(folders[1]))
    for attempt in range(40):
        process = subprocess.Popen([sys.executable, "-m", "hd", *CHAIN], cwd=storage.ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        try:
            patience = random.SystemRandom().uniform(3, 40) if attempt < 12 else 600
            _, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            continue
        assert process.returncode == 0, errors.decode()
        break
    assert process.returncode == 0
    whole, killed = map(tables, folders)
    assert set(whole) == set(killed) and len(whole) >= 6
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert not half_written(folders[1])


@posix_only
@pytest.mark.long
@pytest.mark.parametrize("seconds", [1, 4, 7])
def test_ctrl_c_is_one_line_and_its_own_exit_code(seconds, root):
    process = subprocess.Popen(
        [sys.executable, "-m", "hd", "run", "01_frames", "--profile", "quick"],
        cwd=storage.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)  # fmt: skip
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines().count("hd: interrupted; the same command continues") == 1
    assert not half_written(root)
