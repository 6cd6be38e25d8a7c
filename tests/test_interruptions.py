"""Every stage, stopped at any instant or starved of disk, ends as if nothing had happened.

All of these take minutes: make test-long. Each stage runs in a process of its own at tiny sizes,
with a checkpoint after every step; its upstream stages are made once.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import interrupted
import pytest
import soak
from tiny import without_speeds

from hd.run.storage import ROOT, sha256_of

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits"),
]
KILLS = 4
FILE_LIMITS = (700, 200_000)  # bytes: at the first no table can be written, at the second weights
SOAK_SECONDS = float(os.environ.get("HD_SOAK_SECONDS", 120))
STAGES = pytest.mark.parametrize("stage", interrupted.STAGES)
RANDOM = random.SystemRandom()


def spawn(root, stage, *words, script="interrupted.py", wandb="disabled"):
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), stage, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "HD_ARTIFACTS": str(root), "WANDB_MODE": wandb})  # fmt: skip


def begin(*words, **settings):
    """The process, once it has imported everything and begins to work."""
    process = spawn(*words, **settings)
    assert process.stdout.readline() == "working\n", process.stderr.read()
    return process


def finish(root, stage, *words):
    """(exit code, stderr, seconds of work) of a process that nothing interrupts."""
    process = begin(root, stage, *words)
    began = time.monotonic()
    _, errors = process.communicate(timeout=500)
    assert "Traceback" not in errors, errors
    return process.returncode, errors, time.monotonic() - began


def results(root):
    """Every table, but for the speeds in it, and the digest of every artefact."""
    arrays = [path for path in root.rglob("*") if path.suffix in (".npy", ".npz", ".safetensors")]
    return {path.relative_to(root).as_posix(): read(path) for read, paths in (
        (sha256_of, arrays), (without_speeds, root.rglob("*.csv"))) for path in paths}  # fmt: skip


def disowned(root):
    """Derived arrays that their sidecar does not vouch for: who reads one next makes it again."""
    found = set()
    for path in root.rglob("*.npy"):
        sidecar = path.with_suffix(".json")
        if sidecar.exists() and sha256_of(path) not in sidecar.read_text(errors="replace"):
            found.add(path.relative_to(root).as_posix())
    return found


def half_written(root):
    return [path for path in root.rglob(".*") if path.is_file() and path.suffix != ".lock"
            and path.name != ".lock"]  # fmt: skip


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[RANDOM.randrange(len(content))] ^= 1 << RANDOM.randrange(8)
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:RANDOM.randrange(path.stat().st_size)])


class Made(NamedTuple):
    """Artefact roots that lack only this stage, and have it; what is in that, seconds of work."""

    start: Path
    whole: Path
    results: dict
    seconds: float


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The artefact root of a chain that nothing interrupted."""
    root = tmp_path_factory.mktemp("chain")
    assert finish(root, "chain")[0] == 0
    return root


@pytest.fixture(scope="module")
def uninterrupted(chain, tmp_path_factory):
    """stage -> what it is when nothing interrupts it."""
    known = {}

    def of(stage):
        if stage not in known:
            start, whole = (tmp_path_factory.mktemp(stage) / name for name in ("start", "whole"))
            shutil.copytree(chain, start)
            for folder in (start / "smoke" / stage, start / "smoke" / "results" / stage):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(start, whole)
            code, errors, seconds = finish(whole, stage)
            assert code == 0, errors
            known[stage] = Made(start, whole, results(whole), seconds)
        return known[stage]

    return of


@pytest.fixture
def root(tmp_path):
    return tmp_path / "artifacts"


def kill_at_a_random_instant(root, stage, seconds):
    """Whether the process still ran when it was killed."""
    process = begin(root, stage)
    try:
        process.communicate(timeout=RANDOM.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode == -9


@STAGES
def test_a_stage_killed_at_random_instants_ends_with_the_same_files_bit_for_bit(
    stage, root, uninterrupted
):
    made = uninterrupted(stage)
    for attempt in range(1, 9):  # a process that ended before it was killed proves nothing
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(made.start, root)
        if was_killed := kill_at_a_random_instant(root, stage, made.seconds / attempt):
            break
    assert was_killed
    for _ in range(KILLS - 1):
        kill_at_a_random_instant(root, stage, 0.8 * made.seconds)
    assert finish(root, stage)[0] == 0
    assert results(root) == made.results and not half_written(root)


@STAGES
def test_what_a_killed_stage_left_may_be_damaged_and_the_files_end_the_same(
    stage, root, uninterrupted
):
    made = uninterrupted(stage)
    shutil.copytree(made.start, root)
    for harm in (truncate, flip_bit):
        kill_at_a_random_instant(root, stage, made.seconds)
        # Not what is linked to upstream files, whose damage is another stage's to mend.
        left = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size
                and not path.name.startswith(".") and path.stat().st_nlink == 1
                and not (made.start / path.relative_to(root)).exists()]  # fmt: skip
        if left:
            harm(RANDOM.choice(left))
    code, errors, _ = finish(root, stage)
    assert code == 0, errors
    unread = disowned(root)
    assert len(unread) <= 2, "no more than what was harmed"
    found, wanted = ({name: content for name, content in side.items() if name not in unread}
                     for side in (results(root), made.results))
    assert found == wanted and not half_written(root)


@STAGES
def test_any_damaged_file_of_a_finished_stage_is_noticed_and_made_again_the_same(
    stage, root, uninterrupted
):
    made = uninterrupted(stage)
    shutil.copytree(made.whole, root)
    own = [root / name for name in made.results if not (made.start / name).exists()]
    for harm, path in zip((truncate, flip_bit) * len(own), own):
        harm(path)
    code, errors, _ = finish(root, stage)
    assert code == 0, errors
    assert results(root) == made.results and not half_written(root)


@STAGES
@pytest.mark.parametrize("limit", FILE_LIMITS)
def test_a_full_disk_is_one_line_in_every_stage_and_with_space_again_it_continues(
    stage, limit, root, uninterrupted
):
    # No file may grow beyond the limit: what a full disk does, without root.
    made = uninterrupted(stage)
    shutil.copytree(made.start, root)
    code, errors, _ = finish(root, stage, limit)
    lines = [line for line in errors.splitlines() if line.startswith("hd: ")]
    if code or limit == min(FILE_LIMITS):  # a stage of small files only has room enough
        assert code == 2 and len(lines) == 1, errors
        assert lines[0].startswith("hd: cannot write $HD_ARTIFACTS/smoke/"), errors
        assert "free space" in lines[0]
    assert not half_written(root)
    assert finish(root, stage)[0] == 0
    assert results(root) == made.results


@STAGES
def test_two_processes_on_one_stage_end_well_or_in_one_line_and_with_the_same_files(
    stage, root, uninterrupted
):
    made = uninterrupted(stage)
    shutil.copytree(made.start, root)
    processes = [spawn(root, stage) for _ in range(2)]
    endings = [process.communicate(timeout=500)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) in ([0, 0], [0, 2]), endings
    assert all("another process" in text for text, code in zip(endings, codes) if code), endings
    assert results(root) == made.results and not half_written(root)


@pytest.mark.timeout(SOAK_SECONDS + 600)
@pytest.mark.parametrize("seconds", [SOAK_SECONDS], ids=lambda seconds: f"{seconds:g} s")
def test_memory_stays_flat_over_a_soak_of_all_stages_in_turn(seconds, chain, root):
    shutil.copytree(chain, root)
    for name in soak.ACTIVITIES:
        # A process each: what one has freed would hide what the next one leaks.
        process = begin(root, name, seconds / len(soak.ACTIVITIES), script="soak.py",
                        wandb="offline")
        output, errors = process.communicate(timeout=seconds + 500)
        assert process.returncode == 0, errors
        megabytes = json.loads(output)
        quarter = len(megabytes) // 4
        assert quarter >= 3, f"{name}: too few looks at the memory in {seconds:g} s"
        # The first quarter fills caches. What leaks grows in each of the others.
        second, last = megabytes[quarter:2 * quarter], megabytes[-quarter:]
        growth = statistics.median(last) - statistics.median(second)
        assert growth < max(8, 0.03 * statistics.median(second)), f"{name} grew by {growth:.0f} MB"
