"""Run a named campaign on a machine that has torch, and leave what it made in one folder.

    python3 workflow/gpu/campaign.py NAME --seconds 540 --out FOLDER

Packages that the machine lacks come from the wheels beside this file (workflow/gpu/wheels.py).
Left behind are at most 8 files, each under 15 MB: archives of tables, figures and half-precision
weights, a record and what was printed. Exit codes: 2 refused, 75 out of time (what is finished is
packed; on the same machine the same command continues), 1 failed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from wheels import FOLDER, LEFT_OUT, ROOT, canonicalize_name, names_of, needed

FAILED, REFUSED, OUT_OF_TIME = 1, 2, 75
MAX_FILES, MAX_BYTES, PIECE_BYTES = 8, 15_000_000, 14_000_000
KINDS = ("tables", "figures", "weights", "runs")  # in the order of what is wanted first
GAMES = ("pong", "breakout", "ms_pacman")
MPS, SIDE_BY_SIDE, FEWEST_CORES = "nvidia-cuda-mps-control", 12, 2
ZIP_BYTES = 200  # of an archive for each file in it, beside names and content
PACKING = 30.0  # seconds kept for packing
ENDING = 5.0  # seconds after its time within which a command stops by itself


class Refused(Exception):
    """One line that says why a campaign does not begin."""


@dataclass
class Work:
    """What a campaign runs in, and what it keeps: kind -> name in the archive -> file."""

    deadline: float  # a time.monotonic()
    out: Path
    site: Path  # what the wheels were installed into
    artifacts: Path
    kept: dict[str, dict[str, Path]] = field(default_factory=dict)
    exit_code: int = 0

    @property
    def left(self) -> float:
        """Seconds until nothing more may run."""
        return self.deadline - PACKING - time.monotonic()

    def hd(self, *words: str) -> None:
        """python -m hd with these words, stopped when the time is over."""
        self.python("-m", "hd", *words)

    def python(self, *words: str, whatever_failed: bool = False) -> None:
        """The machine's Python with the wheels; its output is printed and kept, machine's paths
        taken out. Nothing is begun after a command that ran out of time, nor, unless
        whatever_failed, after one that failed."""
        if self.exit_code and not (whatever_failed and self.exit_code == FAILED):
            return
        if self.left <= 0:
            self.exit_code = self.exit_code or OUT_OF_TIME
            return
        places = os.pathsep.join([str(self.site), str(ROOT)])
        with subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                env={**os.environ, "PYTHONPATH": places, "HD_ARTIFACTS": str(self.artifacts),
                     "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}) as command:
            overdue = threading.Timer(self.left + ENDING, command.kill)
            overdue.start()
            for line in command.stdout:
                self.say(line.rstrip("\n"))
            code = command.wait()
            overdue.cancel()
        is_over = code == OUT_OF_TIME or (code != 0 and self.left <= 0)
        # Of commands side by side, the first that fails decides.
        self.exit_code = self.exit_code or (OUT_OF_TIME if is_over else FAILED if code else 0)

    def say(self, line: str) -> None:
        """Print a line and keep it in the log."""
        places = {self.artifacts: "$HD_ARTIFACTS", self.site.parent: "scratch", self.out: "out",
                  ROOT: ".", sys.prefix: "python", sys.base_prefix: "python", Path.home(): "~"}
        # The longest first, as one place may lie in another.
        for place, instead in sorted(places.items(), key=lambda one: -len(str(one[0]))):
            if len(str(place)) > 1:
                line = line.replace(str(place), instead)
        print(line, flush=True)
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def keep(self, kind: str, base: Path, files: Iterable[Path]) -> None:
        """Files for the archives of a kind, under their names below base."""
        self.kept.setdefault(kind, {}).update(
            {path.relative_to(base).as_posix(): path for path in sorted(files)
             if path.is_file() and not path.name.startswith(".")})

    def keep_run(self, **chosen) -> None:
        """Tables, figures and half-precision weights of a chain; chosen as for hd.run.runs.start.
        Tables and figures lie as below the artefact folder, weights as in the repository."""
        sys.path[:0] = [str(self.site), str(ROOT)]
        os.environ["HD_ARTIFACTS"] = str(self.artifacts)
        from hd.config import InputError
        from hd.run import runs, weights
        run = runs.start("frames", **chosen)
        for kind, folder in (("tables", run.root / "results"), ("figures", run.root / "figures")):
            self.keep(kind, self.artifacts, folder.rglob("*"))
        halves = self.site.parent / "weights"
        try:
            self.keep("weights", halves, weights.store(run, root=halves))
        except InputError as error:
            self.say(f"no weights: {error}")


# ---- campaigns

def smoke(work: Work) -> None:
    """The chain at tiny sizes, to see that everything works there."""
    chosen = {"profile": "smoke", "games": ("pong",)}
    work.hd("run", "all", "--profile", "smoke", "--games", "pong", "--time-limit",
            str(max(1, int(work.left))))
    work.keep_run(**chosen)


def bench(work: Work) -> None:
    """What the benchmark measures on a GPU."""
    work.python("-c", "from hd.bench.benchmark import main; raise SystemExit(main("
                      f"gpu_only=True, seconds={work.left - 30:.0f}))")
    work.keep("tables", work.artifacts, (work.artifacts / "benchmark").glob("gpu*"))


SHARE = """
import os, sys, time
cores, seconds, *words = sys.argv[1:]
os.sched_setaffinity(0, map(int, cores.split(",")))  # before torch counts them
from hd import config, stages
from hd.run import runs, storage
storage.LOCK_PATIENCE = float(seconds)  # what two need, one makes, and the other waits for it
try:
    work(time.monotonic() + float(seconds), *words)
except runs.TimeLimitReached as over:
    print(f"{' '.join(words)}: {over}")
    raise SystemExit(75)
"""
LEARN = """
def work(deadline, profile, variant, seed, game, *then):
    run = runs.start("agent", profile=profile, variant=variant, seed=int(seed), games=[game],
                     time_limit=deadline - time.monotonic())
    minutes = stages.make(run)["history"][-1]["minutes"]
    print(f"{run.name}: {run.cfg.num_steps} steps in {minutes} minutes", flush=True)
    if then:
        stages.measured(run)
""" + SHARE
COMPARE = """
STAGES = ("frames", "encoder", "tokenizer", "world_model", "imagination")
def work(deadline, profile, games, seed, name):
    chosen = dict(profile=profile, games=games.split(","))
    if name in config.ABLATIONS:
        stages.compare(name, seeds=[int(seed)], **chosen,
                       time_limit=max(1.0, deadline - time.monotonic()))
    else:
        variant, _, stage = name.partition(":")
        for one in [stage] if stage else STAGES:
            run = runs.start(one, variant=variant, seed=int(seed), **chosen,
                             time_limit=max(1.0, deadline - time.monotonic()))
            stages.make(run)
            stages.measured(run)
    print(f"{name}, {profile}, seed {seed}: measured", flush=True)
""" + SHARE


def side_by_side(work: Work, script: str, tasks: Iterable[tuple], *, at_once: int) -> None:
    """The script (LEARN, COMPARE) with each task's words, so many at once, each on its share of the
    cores. One that fails does not keep the others from their work."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(FEWEST_CORES, len(cores) // at_once)

    def do(place, words):
        own = {cores[(place * share + one) % len(cores)] for one in range(share)}
        work.python("-c", script, ",".join(map(str, own)), f"{max(1.0, work.left - ENDING):.0f}",
                    *map(str, words), whatever_failed=True)

    with shared_gpu(work.site.parent), ThreadPoolExecutor(at_once) as pool:
        list(pool.map(do, itertools.count(), tasks))


def agents(work: Work, games: tuple[str, ...] = GAMES, profile: str = "paper", seed: int = 0,
           variant: str = "base") -> None:
    """The online agents of the games, side by side. They are measured at home, where the same
    command also goes on with one that was not done in time."""
    side_by_side(work, LEARN, [(profile, variant, seed, game) for game in games],
                 at_once=len(games))
    made = work.artifacts / profile / "agent"
    work.keep("runs", work.artifacts, made.rglob("*"))
    pieces = work.site.parent / "pieces"
    for name, path in list(work.kept["runs"].items()):
        if path.stat().st_size > PIECE_BYTES:
            del work.kept["runs"][name]
            work.keep("runs", pieces, in_pieces(path, pieces / name))


def arms_of_agents(work: Work, names: tuple[str, ...], profile: str = "quick", seeds=range(5)
                   ) -> None:
    """Base and the arms of ablations of agents in Pong, measured there, seed by seed. An arm
    without a world model is left out: its library is not among the wheels."""
    sys.path.insert(0, str(ROOT))
    from hd.ablations import ABLATIONS
    arms = [f"{name}.{arm}" for name in names for arm, fields in ABLATIONS[name].arms.items()
            if "agent.learner" not in fields]
    chosen = [(profile, variant, seed, "pong") for seed in seeds for variant in (*arms, "base")]
    tasks = [(*words, "then measure") for words in chosen]
    side_by_side(work, LEARN, tasks, at_once=SIDE_BY_SIDE)
    keep_tables(work)


def comparisons(work: Work, chosen: Iterable[tuple[str, str, Iterable[int], tuple[str, ...]]]
                ) -> None:
    """Measured there, of (profile, games, seeds, names): variants in all stages up to dreams or in
    one ("base:transfer"), and base beside the arms of ablations. Each name and seed in a process of
    its own."""
    tasks = [(profile, games, seed, name) for profile, games, seeds, names in chosen
             for name in names for seed in seeds]
    side_by_side(work, COMPARE, tasks, at_once=min(len(tasks), SIDE_BY_SIDE))
    keep_tables(work)


def keep_tables(work: Work) -> None:
    """All tables that were made."""
    work.keep("tables", work.artifacts, work.artifacts.glob("*/results/**/*"))


def in_pieces(path: Path, to: Path) -> list[Path]:
    """A file that fits no archive, as files to.1, to.2, ...: `cat` makes it whole again."""
    to.parent.mkdir(parents=True, exist_ok=True)
    pieces = []
    with open(path, "rb") as whole:
        while part := whole.read(PIECE_BYTES):
            pieces.append(to.with_name(f"{to.name}.{len(pieces) + 1}"))
            pieces[-1].write_bytes(part)
    return pieces


@contextlib.contextmanager
def shared_gpu(scratch: Path):
    """Inside, processes use the GPU at the same time, by NVIDIA's MPS, not by turns; where there is
    no MPS, by turns."""
    if not shutil.which(MPS):
        yield
        return
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": str(scratch), "CUDA_MPS_LOG_DIRECTORY": str(scratch)}
    subprocess.run([MPS, "-d"], check=False)
    try:
        yield
    finally:
        subprocess.run([MPS], input="quit\n", text=True, timeout=10, check=False)
        for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
            del os.environ[name]


@dataclass(frozen=True)
class Campaign:
    """A function of CAMPAIGNS and what it needs; shortest: seconds."""

    run: Callable[[Work], None]
    shortest: float
    needs_gpu: bool = True


CAMPAIGNS = {
    "smoke": Campaign(smoke, shortest=60, needs_gpu=False),
    "bench": Campaign(bench, shortest=180),
    "agents": Campaign(agents, shortest=300),
    # C16 to C18: a model of the seed's size on overlapping windows, and on whole episodes.
    "exposures": Campaign(functools.partial(comparisons, chosen=[
        ("desk", "pong", [0], ("exposures_seed",))]), shortest=300),
    # Which change made hi-dreamer better, what other protocols of probes find; C02, C03, C18, C19.
    # What takes longest comes first.
    "desk": Campaign(functools.partial(comparisons, chosen=[
        ("desk", ",".join(GAMES), range(3), ("recipe", "probe_protocol", "hi-dreamer")),
        ("desk", ",".join(GAMES), range(5), ("base", "base:entropy_floor"))]), shortest=300),
    # All that is varied on few episodes: C06, C10, C14, C16, C17, C20, C25, the page of ablations.
    "audit": Campaign(functools.partial(comparisons, chosen=[
        ("audit", ",".join(GAMES), range(5),
         ("base:transfer", "commitment_joint", "mask", "loss_weights", "quantizer", "codebook",
          "levels", "negatives", "commitment", "sticky", "context", "actions", "objective",
          "hi-dreamer", "base", "base:entropy_floor")),
        ("audit", "pong", range(5), ("exposures", "exposures_large")),
        *(("audit", game, range(5), ("base:encoder",)) for game in GAMES)]), shortest=300),
    # What takes longest comes first: an agent that starts from others waits for two.
    "agent-arms": Campaign(functools.partial(
        arms_of_agents, names=("agent_transfer", "agent_codes", "agent_data")), shortest=300),
    **{f"agents-{seed}": Campaign(functools.partial(agents, seed=seed), shortest=300)
       for seed in (1, 2)},
    "agents-fine": Campaign(functools.partial(agents, variant="agent_codec.fine"), shortest=300),
    **{f"agent-{game}": Campaign(functools.partial(agents, games=(game,)), shortest=300)
       for game in GAMES},
}


# ---- before any work

def check(name: str, seconds: float, out: Path, wheels: Path = FOLDER) -> Campaign:
    """The campaign of this name; raises Refused for all that would stop it later."""
    if name not in CAMPAIGNS:
        raise Refused(f"unknown campaign {name!r}; allowed: {', '.join(CAMPAIGNS)}")
    chosen = CAMPAIGNS[name]
    if not chosen.shortest <= seconds < 1e6:
        raise Refused(f"{name} needs at least {chosen.shortest:.0f} seconds; got {seconds:g}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out.name} is not an empty folder")
    if not _is_installed("torch"):
        raise Refused("torch is not installed in the Python that runs this")
    if missing := missing_packages(wheels):
        raise Refused(f"neither installed nor among the wheels in {_shown(wheels)}: "
                      f"{', '.join(missing)}; make the wheels where there is a network: python "
                      f"workflow/gpu/wheels.py")
    if chosen.needs_gpu and not sees_gpu():
        raise Refused(f"{name} needs a GPU; torch sees none")
    return chosen


def missing_packages(wheels: Path | None = None) -> list[str]:
    """Of the packages that pyproject.toml asks for and a campaign imports: those that are neither
    installed nor among the wheels of a folder."""
    here = "{}.{}".format(*sys.version_info)
    carried = names_of(wheels.glob("*.whl")) if wheels else set()
    names = [canonicalize_name(one.name) for one in needed(here)]
    return [name for name in names
            if name not in LEFT_OUT and name not in carried and not _is_installed(name)]


def sees_gpu() -> bool:
    """Whether torch does; asked in another process, which gives the GPU back at once."""
    asked = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], capture_output=True).returncode == 0


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


# ---- what is left behind

def pack(kept: dict[str, dict[str, Path]], out: Path, room: int) -> tuple[list[str], list[str]]:
    """At most `room` archives in out, each under MAX_BYTES: (their names, what did not fit)."""
    written, left_out = [], []
    for kind in KINDS:
        groups, too_large = _groups(kept.get(kind, {}))
        left_out += too_large
        for number, group in enumerate(groups, 1):
            if len(written) == room:
                left_out += group
                continue
            name = f"{kind}.zip" if len(groups) == 1 else f"{kind}-{number}.zip"
            with zipfile.ZipFile(out / name, "w", zipfile.ZIP_DEFLATED) as archive:
                for inside, path in group.items():
                    archive.write(path, inside)
            written.append(name)
    return written, left_out


def _groups(files: dict[str, Path]) -> tuple[list[dict[str, Path]], list[str]]:
    """Files in order, in groups that fit an archive even if nothing can be compressed; and the
    names of those that fit none."""
    groups, too_large, size = [], [], MAX_BYTES
    for name, path in files.items():
        own = path.stat().st_size + 2 * len(name.encode()) + ZIP_BYTES
        if own >= MAX_BYTES:
            too_large.append(name)
            continue
        if size + own >= MAX_BYTES:
            groups.append({})
            size = ZIP_BYTES
        groups[-1][name] = path
        size += own
    return groups, too_large


def record(name: str, work: Work, seconds: float, archives: list[str], left_out: list[str]) -> dict:
    """What made the archives."""
    digests = {one: hashlib.sha256((work.out / one).read_bytes()).hexdigest() for one in archives}
    return {"campaign": name, "exit_code": work.exit_code, "seconds": round(seconds, 1),
            "python": sys.version.split()[0], "torch": version("torch"),
            "sha256": digests, "left_out": left_out}


# ---- the command

class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is Refused instead of a usage text and an exit."""

    def error(self, message):
        raise Refused(message)


def main(words: list[str] | None = None) -> int:
    """Check, install, run, pack; returns the exit code."""
    began = time.monotonic()
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("name", help=", ".join(CAMPAIGNS))
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder, or a new one")
    try:
        args = parser.parse_args(words)
        chosen = check(args.name, args.seconds, args.out)
    except Refused as refused:
        print(f"campaign: {refused}", file=sys.stderr)
        return REFUSED
    args.out.mkdir(parents=True, exist_ok=True)
    artifacts = Path(os.environ.get("HD_ARTIFACTS") or ROOT / ".artifacts").resolve()
    with tempfile.TemporaryDirectory(prefix="hd-", ignore_cleanup_errors=True) as scratch:
        work = Work(began + args.seconds, args.out.resolve(), Path(scratch) / "site", artifacts)
        install(work)
        if not work.exit_code:
            chosen.run(work)
        archives, left_out = pack(work.kept, work.out, MAX_FILES - 2)
        for name in left_out:
            work.say(f"left out, no room for it: {name}")
    spent = time.monotonic() - began
    work.say(f"{args.name}: {', '.join(archives) or 'no archive'} after {spent:.0f} s, exit code "
             f"{work.exit_code}")
    shorten(work.out / "log.txt")
    about = record(args.name, work, spent, archives, left_out)
    (work.out / "campaign.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return work.exit_code


def install(work: Work) -> None:
    """Put the wheels into the work's own folder, where packages are missing."""
    work.site.mkdir(parents=True)
    if missing_packages():
        wheels = sorted(str(path) for path in FOLDER.glob("*.whl"))
        work.python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
                    "--disable-pip-version-check", "--target", str(work.site), *wheels)


def shorten(log: Path) -> None:
    """Keep the end of a log that is too long to travel."""
    content = log.read_bytes()
    if len(content) >= MAX_BYTES:
        log.write_bytes(content[-MAX_BYTES // 2:])


if __name__ == "__main__":
    sys.exit(main())
