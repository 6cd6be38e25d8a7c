"""Notebooks as programs: strict papermill runs, the chain of stages, and the book that shows them.

Everything is checked before a kernel starts. An executed notebook appears under its own name only
when it completed; beside it a stamp says from what it was made, and while that is unchanged and
undamaged the notebook is not executed again.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen

from hd import config
from hd.config import CHAIN, GAMES, InputError
from hd.run import storage
from hd.run.storage import ROOT, artifacts_root, sha256_of, shown

# papermill and hd.run.runs (torch) are imported inside functions: bad input is refused at once.

BOOK = ROOT / "book"
CORE = ("profile", "variant", "seed", "games", "time_limit")
KERNEL_SECONDS = 10  # until a new kernel has imported everything and its time limit counts
SHORTEST = 20.0  # seconds that even the shortest time limit gives a notebook for a first step


class NotebookError(Exception):
    """A notebook or the build of the book failed: one line saying where and what was kept."""


@dataclass(frozen=True)
class Job:
    """One notebook of the book with everything that decides its output."""

    source: Path
    target: Path  # <artifacts>/<profile>/notebooks/<folder>/<name>.ipynb
    parameters: Mapping[str, object]  # without the time limit, which decides nothing
    runs: tuple = ()  # the hd.run.runs.Run of everything it makes
    tables: Mapping[str, str] = field(default_factory=dict)  # what it reads: path -> sha256

    @property
    def partial(self) -> Path:  # the notebook while it runs, and when it failed
        return self.target.with_suffix(".partial.ipynb")

    @property
    def stamp(self) -> Path:
        return self.target.with_suffix(".json")

    @property
    def command(self) -> str:
        """The command that executes it as part of the pipeline."""
        return f"python -m hd {self.arguments}"

    @property
    def arguments(self) -> str:
        """What follows python -m hd in that command."""
        given = self.parameters
        games = "" if tuple(given["games"]) == GAMES else f" --games {','.join(given['games'])}"
        extra = [f" -p {name} {_flat(value)}" for name, value in given.items() if name not in CORE]
        return (f"run {self.source.stem} --profile {given['profile']} --variant "
                f"{given['variant']} --seed {given['seed']}{games}{''.join(extra)}")

    @property
    def key(self) -> str:
        """sha256 over the source, the parameters, the package's code and the stages' identities."""
        parts = {"source": sha256_of(self.source), "code": storage.CODE,
                 "parameters": dict(self.parameters), "tables": dict(self.tables),
                 "runs": {_label(run): run.identity for run in self.runs}}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def names(folder: str = "pipeline") -> tuple[str, ...]:
    """The notebooks of a folder of the book, in order."""
    return tuple(sorted(path.stem for path in (BOOK / folder).glob("*.ipynb")))


def plan(notebook: str, *, profile: str, variant: str = "base", seed: int = 0, games=GAMES,
         parameters: Mapping[str, object] | None = None) -> Job:
    """Check everything about a pipeline notebook's run; raises InputError in one line."""
    config.allowed("notebook", notebook, names())
    games = config.check_games(games)
    config.resolve(profile, variant, games=games)
    core = {"profile": profile, "variant": variant, "seed": config.check_seed(seed),
            "games": list(games)}
    source = BOOK / "pipeline" / f"{notebook}.ipynb"
    declared = declared_in(source)
    if "ablation" in declared and (variant, seed) != ("base", 0):
        raise InputError(f"{notebook} compares base with an ablation's arms: say which with -p "
                         f"ablation and -p seeds, not with --variant and --seed")
    extra = _checked_parameters(notebook, parameters or {}, declared)
    from hd.run import runs
    run = runs.start("frames", **core)
    words = [run.name] if run.name != "base-seed0" else []
    words += [f"{name}={_flat(value)}" for name, value in extra.items() if value != declared[name]]
    target = run.root / "notebooks" / "pipeline" / f"{'-'.join([notebook, *words])}.ipynb"
    return Job(source, target, {**core, **extra}, _made_by(notebook, run, {**declared, **extra}))


def _made_by(notebook: str, run, parameters: Mapping[str, object]) -> tuple:
    """The runs that a notebook makes, given any run of its chain: of an ablation, what it measures
    of every variant and seed; an agent for every game."""
    stages = [stage for stage, made_by in config.NOTEBOOKS.items() if made_by == notebook]
    chains = [run]
    if name := parameters.get("ablation"):
        chosen = config.ablation(name)
        stages = [chosen.measure, *chosen.also]
        chains = [dataclasses.replace(run, seed=seed, variant=variant, profile=config.resolve(
                      run.profile.name, variant, games=run.games))
                  for seed in parameters["seeds"] for variant in config.variants_of(name)]
    made = [chain.at(stage) for chain in chains for stage in stages]
    games = [[(game,) for game in one.games] if one.stage == "agent" else [one.games]
             for one in made]
    return tuple(dataclasses.replace(one, games=own) for one, each in zip(made, games)
                 for own in each)


def _label(run) -> str:
    """What a run is called beside others that a notebook makes or reads."""
    return f"{run.stage}/{run.folder.name}"


def execute(notebook: str, *, time_limit: float | None = None, force: bool = False,
            **chosen) -> Path:
    """Run one pipeline notebook of the book and return the executed copy.

    time_limit: seconds; chosen: as for plan. Raises InputError before any work for bad input, and
    InputError, NonFiniteLoss or TimeLimitReached as the notebook raised them; else NotebookError.
    """
    deadline = _deadline(time_limit)
    job = plan(notebook, **chosen)
    run_job(job, deadline=deadline, force=force)
    return job.target


def execute_all(*, time_limit: float | None = None, force: bool = False, **chosen) -> list[Path]:
    """Run the chain from frames to policy under one time limit; otherwise as execute."""
    began, deadline, executed = time.monotonic(), _deadline(time_limit), 0
    jobs = [plan(notebook, **chosen) for notebook in CHAIN]
    for position, job in enumerate(jobs):
        if position and deadline and deadline - time.monotonic() < SHORTEST:
            from hd.run.runs import TimeLimitReached
            raise TimeLimitReached(f"the time limit came before {job.source.stem}; the same "
                                   f"command continues with it")
        executed += run_job(job, deadline=deadline, force=force,
                             label=f"[{position + 1}/{len(jobs)}] ")
    print(f"{executed} of {len(jobs)} notebooks executed in {time.monotonic() - began:.0f} s: "
          f"{shown(jobs[0].target.parent)}", flush=True)
    return [job.target for job in jobs]


def end_with_parent() -> None:
    """From now on this process ends when the one that started it does.

    A killed sweep takes its notebooks with it, so that the same command can start again.
    """
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        # The kernel notices by itself that this process is gone.
        os._exit(130)
    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


# ---- checks before anything runs

def _deadline(time_limit: float | None) -> float | None:
    """time.monotonic() at which to stop; raises InputError unless the limit is None or positive."""
    is_number = isinstance(time_limit, (int, float)) and not isinstance(time_limit, bool)
    if time_limit is not None and not (is_number and 0 < time_limit < 1e9):
        raise InputError(f"time limit must be more than 0 seconds; got {time_limit!r}")
    return None if time_limit is None else time.monotonic() + time_limit


def declared_in(path: Path) -> dict[str, object]:
    """The parameters of a notebook with their values."""
    import papermill
    found = papermill.inspect_notebook(_plain(path))
    return {name: _value(entry["default"]) for name, entry in found.items()}


def _checked_parameters(notebook, given, declared) -> dict[str, object]:
    """Raise InputError for a parameter the notebook does not declare, or of another type."""
    if not declared.keys() >= set(CORE):
        raise InputError(f"{notebook} must declare {', '.join(CORE)} in its parameters cell")
    free = [name for name in declared if name not in CORE]
    for name in given:
        if name not in free:
            raise InputError(f"unknown parameter {name!r} of {notebook}; allowed: "
                             f"{', '.join(free) or 'none'} ({', '.join(CORE)} are options)")
    checked = {name: _as_declared(value, declared[name]) for name, value in given.items()}
    for name, value in checked.items():
        config.check_value(f"parameter {name} of {notebook}", _kind_of(declared[name]), value,
                           like=declared[name])
    if "ablation" in checked:
        config.ablation(checked["ablation"])
    if "seeds" in checked:
        config.check_seeds(checked["seeds"])
    return checked


def _as_declared(value, example):
    """The value as Python means it where it came as text; "0" and "0,1,2" are lists too."""
    if isinstance(example, str):
        return value
    value = _value(value)
    if not isinstance(example, list):
        return value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _kind_of(example):
    """The type of values like the example; a list has at least one element, all like its first."""
    if isinstance(example, list):
        return Annotated[list[_kind_of(example[0]) if example else Any], MinLen(1)]
    return Any if example is None else type(example)


def _value(text):
    """What a Python literal given as text means; anything else stays as it is."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _flat(value) -> str:
    """A parameter's value as a part of a file name."""
    listed = value if isinstance(value, (list, tuple)) else [value]
    return re.sub(r"[^\w.+-]+", "_", "+".join(map(str, listed)))


def _plain(path: Path) -> str:
    """papermill formats paths: braces must be doubled to stay."""
    return str(path).replace("{", "{{").replace("}", "}}")


# ---- execution

def run_job(job: Job, *, deadline: float | None = None, force: bool = False, label: str = "",
            cwd: Path | None = None) -> bool:
    """Execute the notebook unless it is up to date; returns whether it was executed."""
    label += job.target.stem
    with storage.exclusive(job.target):
        stamp = _read_stamp(job)
        if not force and is_current(job):
            print(f"{label}: up to date", flush=True)
            return False
        before = stamp.get("wall_seconds")
        print(f"{label}: started" + (f", {before:.0f} s last time" if before else ""), flush=True)
        if force:
            job.stamp.unlink(missing_ok=True)
        began, key = time.monotonic(), job.key
        with tempfile.TemporaryFile() as said:
            notebook = _run(job, deadline, cwd, said)
        for place in ("input_path", "output_path"):
            notebook.metadata.papermill.pop(place, None)
        for cell in notebook.cells:
            if "injected-parameters" in cell.metadata.get("tags", ()):
                cell.metadata.tags.append("hide-input")
        _without_places(notebook)
        import nbformat
        storage.write_text(job.target, nbformat.writes(notebook) + "\n")
        job.partial.unlink(missing_ok=True)
        wall = time.monotonic() - began
        storage.write_record(job.stamp, {"key": key, "wall_seconds": round(wall, 2),
                                         **_what_was_made(job)})
        print(f"{label}: done in {wall:.0f} s", flush=True)
        return True


def _run(job: Job, deadline: float | None, cwd: Path | None, said):
    """The executed notebook; what its cells print is shown as it comes, what the kernel's process
    writes by itself goes to the file `said`."""
    import papermill
    from nbclient.exceptions import CellTimeoutError
    for chatty in ("papermill", "asyncio"):  # on Ctrl-C or an error one line suffices
        logging.getLogger(chatty).addHandler(logging.NullHandler())
    given, began = dict(job.parameters), time.monotonic()
    if deadline:
        given["time_limit"] = max(1, int(deadline - began - KERNEL_SECONDS))

    def remaining(cell):
        return max(1.0, deadline - 2.0 - time.monotonic(), began + SHORTEST - time.monotonic())
    try:
        with tempfile.TemporaryDirectory(prefix="hd-", ignore_cleanup_errors=True) as scratch:
            return papermill.execute_notebook(
                _plain(job.source), _plain(job.partial), given, cwd=cwd or scratch,
                kernel_name="python3", language="python", kernel_manager_class=_kernel_class(said),
                start_timeout=180, timeout_func=remaining if deadline else None, progress_bar=False,
                stdout_file=sys.stdout, stderr_file=sys.stderr, coalesce_streams=True)
    except papermill.PapermillExecutionError as error:
        raise _as_raised(error, job) from None
    except CellTimeoutError:
        from hd.run.runs import TimeLimitReached
        raise TimeLimitReached(f"{job.target.stem} was stopped at its time limit; the same "
                               f"command continues it") from None
    except RuntimeError as error:
        raise NotebookError(f"{job.target.stem}: its kernel died or did not start "
                            f"({_last_error(said) or 'out of memory?'}): {one_line(error)}; kept: "
                            f"{shown(job.partial)}") from None
    except BrokenPipeError:  # of what is shown: nothing is wrong with the disk
        raise
    except OSError as error:
        raise storage.cannot_write(job.partial, error) from None


def _last_error(said) -> str:
    """The last error that the kernel's process named in the file; empty where it named none."""
    said.seek(0)
    lines = said.read().decode("utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b|Fatal ", line)]
    return one_line(errors[-1]) if errors else ""


def _kernel_class(stderr):
    """Kernels of the interpreter that runs this, whatever kernels the machine has besides. What
    their processes write by themselves goes to the file stderr."""
    from ipykernel.kernelspec import get_kernel_dict, make_ipkernel_cmd
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    command = make_ipkernel_cmd(executable=sys.executable, extra_arguments=["--log-level=CRITICAL"])
    env = {"HD_ARTIFACTS": str(artifacts_root()).replace("$", "$$"),
           "MPLBACKEND": "module://matplotlib_inline.backend_inline"}

    class ThisPython(AsyncKernelManager):
        kernel_spec = KernelSpec(**{**get_kernel_dict(), "argv": command, "env": env})

        async def start_kernel(self, **settings):
            return await super().start_kernel(stderr=stderr, **settings)
    return ThisPython


def _as_raised(error, job: Job) -> Exception:
    """The exception of the kernel in one line: ours under their own types."""
    from hd.run import runs, training
    ours = {"InputError": InputError, "NonFiniteLoss": training.NonFiniteLoss,
            "TimeLimitReached": runs.TimeLimitReached}
    if error.ename in ours:
        return ours[error.ename](" ".join(error.evalue.split()))
    return NotebookError(f"{job.target.stem} failed in cell [{error.exec_count}]: {error.ename}: "
                         f"{one_line(error.evalue)}; kept: {shown(job.partial)}")


def _without_places(notebook) -> None:
    """Take this machine's folders out of what cells printed, for a warning names its file, and out
    of the parameters that were given, for artefacts may lie outside of the repository."""
    places = {str(artifacts_root()): "$HD_ARTIFACTS", str(ROOT): ".", sys.prefix: "python",
              sys.base_prefix: "python", os.path.expanduser("~"): "~"}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [(output, "text") for output in outputs if "text" in output]
    texts += [(output["data"], "text/plain") for output in outputs
              if "text/plain" in output.get("data", ())]
    texts += [(cell, "source") for cell in notebook.cells
              if "injected-parameters" in cell.metadata.get("tags", ())]
    given = notebook.metadata.get("papermill", {}).get("parameters", {})
    texts += [(given, name) for name, value in given.items() if isinstance(value, str)]
    for holder, key in texts:
        for place, instead in places.items():
            if len(place) > 1:
                way_there = rf"(\.\./)*(\.\.)?{re.escape(place)}"
                holder[key] = re.sub(way_there, instead, holder[key])


def one_line(error) -> str:
    return " ".join(str(error).split())[:300]


def _what_was_made(job: Job) -> dict:
    root = job.target.parents[2]
    tables = [root / "results" / run.stage / f"{run.name}{suffix}"
              for run in job.runs
              for suffix in (".csv", ".json", "-episodes.csv", "-history.csv")]
    return {"files": {path.relative_to(root).as_posix(): sha256_of(path)
                      for path in (job.target, *tables) if path.exists()},
            "finished": [_label(run) for run in job.runs
                         if (run.folder / "finished.json").exists()],
            "read": _what_is_read(job)}


def _what_is_read(job: Job) -> dict[str, dict]:
    """The sha256 of each file of the runs that the job's runs read, where those are usable."""
    from hd.run import runs
    own, read = {_label(run) for run in job.runs}, {}
    for run in job.runs:
        for source in run.upstream:
            with contextlib.suppress(InputError):
                if (label := _label(source)) not in own and (record := runs.finished(source)):
                    read[label] = record["files"]
    return read


def _read_stamp(job: Job) -> dict:
    with contextlib.suppress(OSError, ValueError):
        return storage.read_record(job.stamp)
    return {}


def is_current(job: Job) -> bool:
    """Whether the executed notebook is up to date: nothing that decides it has changed, and nothing
    that it made is missing or damaged.

    The only place that decides this: executing, sweeping and building the book ask here, and about
    stages this asks hd.run.runs.finished.
    """
    from hd.run import runs
    root, stamp = job.target.parents[2], _read_stamp(job)
    try:
        return (stamp["key"] == job.key
                and all(sha256_of(root / name) == digest
                        for name, digest in stamp["files"].items())
                and all(runs.finished(run) for run in job.runs if _label(run) in stamp["finished"])
                and all(files == stamp["read"].get(label, files)
                        for label, files in _what_is_read(job).items()))
    except (KeyError, OSError, InputError):
        return False


# ---- what git stores

def thin_stored(folder: Path | None = None) -> None:
    """Empty, in the pipeline's notebooks, the outputs that nbval ignores; drop from these and the
    report's when cells ran. folder: the book, by default this project's.

    What nobody compares need not be stored: a reader's own run fills it in. Cells stay counted.
    """
    import nbformat
    for path in sorted((folder or BOOK).glob("*/*.ipynb")):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            is_ignored = "nbval-ignore-output" in cell.metadata.get("tags", ())
            if is_ignored and path.parent.name == "pipeline":
                cell.outputs = []
        storage.write_text(path, nbformat.writes(notebook) + "\n")
