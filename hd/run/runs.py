"""One run of one stage: where it lives, its seed and device, what it leaves behind.

A run's folder is named by a hash of everything that decides its content (its config, seed, games
and, through its inputs, theirs). So an edited config never meets an old artefact, and variants
that agree on a stage share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from hd import config
from hd.ablations import AGENT_VARIANT
from hd.config import InputError
from hd.run import storage
from hd.run.machine import circumstances, device, git_state
from hd.run.storage import (
    artifacts_root,
    check_writable,
    read_record,
    sha256_of,
    shown,
    write_array,
    write_atomically,
    write_json,
    write_record,
)

COLUMNS = ("stage", "variant", "game", "seed", "step", "split", "metric", "value", "baseline")
DAMAGED = "is damaged (its sha256 does not match)"
MODEL = "model.safetensors"
TABLE_COMPANIONS = ("-episodes", "-history")  # what may stand beside a metric table


class TimeLimitReached(Exception):
    """The run stopped at its time limit, with a checkpoint; the same command continues it."""


@dataclass(frozen=True)
class Run:
    """One stage of one profile, variant, seed and set of games."""

    stage: str
    profile: config.Profile
    variant: str = "base"
    seed: int = 0
    games: tuple[str, ...] = config.GAMES
    deadline: float | None = None  # time.monotonic() at which to stop
    part: str = ""  # of a training inside another stage: all that decides it and its config lacks
    parent: Run | None = None  # the run inside which this one is made

    @property
    def cfg(self):
        """The config dataclass of this stage."""
        return getattr(self.profile, self.stage)

    @property
    def name(self) -> str:
        """Table name: variant and seed, games when they are not all of them, and the part."""
        games = "" if self.games == config.GAMES else "-" + "+".join(self.games)
        return f"{self.variant}{games}{self.part and '-' + self.part}-seed{self.seed}"

    @property
    def root(self) -> Path:
        return artifacts_root() / self.profile.name

    @property
    def folder(self) -> Path:
        name = f"seed{self.seed}-{self.identity[:10]}{self.part and '-' + self.part}"
        return self.root / self.stage / name

    @property
    def upstream(self) -> tuple[Run, ...]:
        """The runs that this one reads: of its chain, or for frames that the trained agent plays
        too, the policy of AGENT_VARIANT at this profile and seed; for an agent that starts from
        another's world model, that agent."""
        if self.stage == "agent" and self.cfg.start_from:
            return (self._before(),)
        if self.stage == "frames" and self.cfg.sources.get("agent"):
            profile = config.resolve(self.profile.name, AGENT_VARIANT, games=self.games)
            return (Run("policy", profile, AGENT_VARIANT, self.seed, self.games),)
        return tuple(self.at(stage) for stage in config.UPSTREAM[self.stage])

    def _before(self) -> Run:
        """The agent whose world model this agent starts from. Raises InputError for games that
        cannot come before this one."""
        if len(self.games) != 1:
            raise InputError(f"an agent learns one game; got {', '.join(self.games)}: name one of "
                             f"them")
        (own,), before = self.games, self.cfg.start_from
        if before == "others":
            before = tuple(game for game in config.GAMES if game != own)
        if own in config.check_games(before):
            raise InputError(f"an agent of {own} may start from agents of other games; got "
                             f"{', '.join(before)}")
        *first, last = before
        cfg = dataclasses.replace(self.cfg, start_from=tuple(first) or None)
        return dataclasses.replace(self, games=(last,),
                                   profile=dataclasses.replace(self.profile, agent=cfg))

    @property
    def settings(self) -> dict:
        """All that decides this stage's content beside seed, games and inputs. A field that is
        None decides nothing, so that runs stay what they are when it is added."""
        inside = {stage: _decided(getattr(self.profile, stage))
                  for stage in config.INSIDE.get(self.stage, ())}
        settings = {"config": _decided(self.cfg), "inside": inside, "part": self.part}
        return {name: value for name, value in settings.items() if name == "config" or value}

    @property
    def identity(self) -> str:
        """sha256 over all that decides this stage's content."""
        own = {"stage": self.stage, "seed": self.seed, "games": self.games, **self.settings,
               "inputs": [run.identity for run in self.upstream]}
        return hashlib.sha256(json.dumps(own, sort_keys=True, default=dict).encode()).hexdigest()

    @property
    def command(self) -> str:
        """The command that makes this stage."""
        if self.parent:
            return self.parent.command
        games = "" if self.games == config.GAMES else f" --games {','.join(self.games)}"
        return (f"python -m hd run {config.NOTEBOOKS[self.stage]} --profile {self.profile.name} "
                f"--variant {self.variant} --seed {self.seed}{games}")

    def at(self, stage: str) -> Run:
        """The run of another stage in the same chain."""
        return dataclasses.replace(self, stage=stage,
                                   part=self.part if stage == self.stage else "")

    def must_stop(self, *, margin: float = 0.0) -> bool:
        """True when less than margin seconds are left, or this is a kernel whose parent is gone."""
        if self.deadline is not None and time.monotonic() + margin >= self.deadline:
            return True
        parent = os.environ.get("JPY_PARENT_PID") if "ipykernel" in sys.modules else None
        return os.name == "posix" and parent is not None and int(parent) != os.getppid()


def _decided(cfg) -> dict:
    """The fields of a config that are not None."""
    return {name: value for name, value in dataclasses.asdict(cfg).items() if value is not None}


def start(stage: str, *, profile: str, variant: str = "base", seed: int = 0,
          games: Iterable[str] = config.GAMES, time_limit: float | None = None,
          overrides: dict | None = None) -> Run:
    """A Run from plain values, all checked. Seeds the generators. Raises InputError in one line."""
    config.allowed("stage", stage, config.STAGES)
    games = config.check_games(games)
    resolved = config.resolve(profile, variant, overrides, games)
    if time_limit is not None and (type(time_limit) not in (int, float) or not time_limit >= 0):
        raise InputError(f"time limit must be seconds, 0 for none; got {time_limit!r}")
    deadline = time.monotonic() + time_limit if time_limit else None
    run = Run(stage, resolved, variant, config.check_seed(seed), games, deadline)
    seed_everything(run.seed)
    check_writable(run.root)
    git_state()  # kept: a commit made while it runs is not what ran
    return run


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_for(*keys) -> np.random.Generator:
    """A numpy generator that depends only on the keys (numbers or words)."""
    words = [k if isinstance(k, int) else int.from_bytes(str(k).encode(), "little") for k in keys]
    return np.random.default_rng(np.random.SeedSequence(words))


def progress(steps, what: str):
    """A progress bar with an estimate over a sequence, once it takes more than two seconds; silent
    under TQDM_DISABLE."""
    return tqdm(steps, desc=what, mininterval=2.0, delay=2.0, file=sys.stdout, leave=False)


@contextlib.contextmanager
def exclusive(run: Run):
    """Only one process works on a stage's folder; a second waits shortly, then InputError."""
    lock = run.folder / ".lock"
    with storage.exclusive(run.folder, lock=lock):
        for leftover in {*run.folder.glob(".[!.]*")} - {lock}:  # of killed runs
            leftover.unlink(missing_ok=True)
        yield


def save_checkpoint(run: Run, tensors: dict[str, torch.Tensor], state: dict) -> None:
    """Tensors as safetensors, then a JSON naming them with their sha256: the JSON is the commit."""
    path = run.folder / f"checkpoint-{state['step']:08d}.safetensors"
    tensors = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    write_atomically(path, lambda aside: save_file(tensors, aside))
    write_record(run.folder / "checkpoint.json",
                 {**state, "identity": run.identity, "file": path.name, "sha256": sha256_of(path)})
    for old in run.folder.glob("checkpoint-*.safetensors"):
        if old != path:
            old.unlink()


def load_checkpoint(run: Run) -> tuple[dict, dict] | None:
    """(tensors, state) of the last checkpoint, or None; a damaged one is named and set aside."""
    marker = run.folder / "checkpoint.json"
    if not marker.exists():
        return None
    try:
        state = read_record(marker)
        path = run.folder / state["file"]
        if sha256_of(path) == state["sha256"] and state["identity"] == run.identity:
            return load_file(path), state
    except (OSError, ValueError, KeyError, SafetensorError):
        pass
    print(f"{shown(marker)} is damaged: starting this stage afresh", file=sys.stderr)
    remove_checkpoint(run)
    return None


def remove_checkpoint(run: Run) -> None:
    """Forget the checkpoint (the marker first, so that nothing half-gone is ever read)."""
    (run.folder / "checkpoint.json").unlink(missing_ok=True)
    for path in run.folder.glob("checkpoint-*.safetensors"):
        path.unlink()


def finish(run: Run, files: Iterable[Path], *, wall_seconds: float, **extra) -> dict:
    """Write finished.json, provenance and the files' sha256: from now on it can be loaded."""
    record = {**provenance(run, wall_seconds=wall_seconds),
              "files": {path.name: sha256_of(path) for path in files}, **extra}
    write_record(run.folder / "finished.json", record)
    remove_checkpoint(run)
    return read_record(run.folder / "finished.json")


def finished(run: Run) -> dict | None:
    """The stage's finished.json if it is done and no file is damaged; None when it is not done.

    Raises InputError naming a damaged file, or the hash of the other configuration that what is
    there was made with, and the command that rebuilds it.
    """
    record, unusable = _inspect(run)
    if unusable:
        name, why = next(iter(unusable.items()))
        raise InputError(f"{shown(run.folder / name)} {why}; rebuild it: {run.command}")
    return record


def finished_or_cleared(run: Run) -> dict | None:
    """As finished, for the stage that is about to be made: what is unusable is removed first."""
    record, unusable = _inspect(run)
    if not unusable:
        return record
    name, why = next(iter(unusable.items()))
    print(f"{shown(run.folder / name)} {why}: making it again", file=sys.stderr)
    for name in ("finished.json", *unusable):
        (run.folder / name).unlink(missing_ok=True)
    return None


def _inspect(run: Run) -> tuple[dict | None, dict[str, str]]:
    """The record of a finished stage, and why each of its files that cannot be used cannot."""
    marker = run.folder / "finished.json"
    if not marker.exists():
        return None, {}
    try:
        record = read_record(marker)
        made = [record[name] for name in ("identity", "variant", "seed")]
        # Only names: what a stranger's record lists must not lead out of the folder.
        paths = {run.folder / Path(name).name: digest for name, digest in record["files"].items()}
    except (ValueError, KeyError, AttributeError, TypeError):
        return None, {marker.name: DAMAGED}
    if made[0] != run.identity:  # the folder's name holds the hash, but folders can be copied
        this, that = ("({:.10}, variant {}, seed {})".format(*names) for names in (
            (run.identity, run.variant, run.seed), made))
        return record, {marker.name: f"is of another configuration {that} than this run's "
                                     f"{run.stage} {this}"}
    return record, {path.name: DAMAGED for path, digest in paths.items()
                    if not path.exists() or sha256_of(path) != digest}


def require(run: Run) -> dict:
    """The record of a finished stage; raises InputError with the command that makes it."""
    record = finished(run)
    if record is None:
        raise InputError(f"stage {run.stage} is missing for profile {run.profile.name}, variant "
                         f"{run.variant}, seed {run.seed}; make it: {run.command}")
    return record


def save_model(run: Run, model: torch.nn.Module, *, wall_seconds: float,
               also: Iterable[Path] = (), **extra) -> dict:
    """The model's state as model.safetensors, then finished.json, which names the files `also`
    too."""
    tensors = {k: v.detach().contiguous().cpu() for k, v in model.state_dict().items()}
    write_atomically(run.folder / MODEL, lambda aside: save_file(tensors, aside))
    return finish(run, [run.folder / MODEL, *also], wall_seconds=wall_seconds, **extra)


def load_model(run: Run, model: torch.nn.Module) -> torch.nn.Module:
    """Load a finished stage's weights into model, in eval mode, on the device.

    Raises InputError when they are missing, damaged, of another configuration or of other code.
    """
    left_out = tuple(require(run).get("left_out", ()))  # by published weights: for training only
    own = {name: part for name, part in model.state_dict().items() if name.startswith(left_out)}
    try:
        model.load_state_dict(own | load_file(run.folder / MODEL))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join((str(error).partition("\n")[2] or str(error)).split())[:200]
        raise InputError(f"{shown(run.folder / MODEL)} ({run.identity[:10]}) does not fit "
                         f"the {run.stage} that this code builds ({reason}): remove its folder, "
                         f"then make it again: {run.command}") from None
    return model.to(device()).eval()


def cached_array(run: Run, name: str, make) -> np.ndarray:
    """An array derived from a finished stage: made by make() once, then memory-mapped.

    A sidecar holds its sha256 and that of the stage's record; a damaged or outdated one is remade.
    """
    path, sidecar = run.folder / f"{name}.npy", run.folder / f"{name}.json"
    source = sha256_of(run.folder / "finished.json") if require(run) else None

    def kept() -> np.ndarray | None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads(sidecar.read_text(encoding="utf-8"))
            if record == {"source": source, "sha256": sha256_of(path)}:
                return np.load(path, mmap_mode="r", allow_pickle=False)
        return None
    if (found := kept()) is not None:
        return found
    with exclusive(run):
        if kept() is None:  # else another process made it meanwhile
            write_array(path, make())
            write_json(sidecar, {"source": source, "sha256": sha256_of(path)})
    return np.load(path, mmap_mode="r", allow_pickle=False)


def provenance(run: Run, *, wall_seconds: float) -> dict:
    """What made a table or an artefact; paths are relative, nothing of the environment is kept."""
    inputs = {}
    for source in run.upstream:
        marker = source.folder / "finished.json"
        if marker.exists():
            inputs[marker.relative_to(run.root).as_posix()] = sha256_of(marker)
    return {"stage": run.stage, "profile": run.profile.name, "variant": run.variant,
            "seed": run.seed, "games": list(run.games), "identity": run.identity,
            **run.settings, **circumstances(wall_seconds), "inputs": inputs}


def row(metric: str, value, *, game: str = "all", split: str = "test", step=None,
        baseline=None) -> dict:
    """One row of a metric table; stage, variant and seed are added by save_table."""
    return {"game": game, "step": step, "split": split, "metric": metric,
            "value": float(value), "baseline": None if baseline is None else float(baseline)}


def save_table(run: Run, rows: list[dict], *, wall_seconds: float = 0.0,
               **extra) -> pd.DataFrame:
    """Write results/<stage>/<name>.csv and its provenance .json below the profile's folder.

    wall_seconds: of measuring; extra goes into the provenance.
    """
    table = pd.DataFrame(rows)
    table = table.assign(stage=run.stage, variant=run.variant, seed=run.seed)[list(COLUMNS)]
    path = run.root / "results" / run.stage / f"{run.name}.csv"
    write_atomically(path, lambda aside: table.to_csv(aside, index=False, float_format="%.8g"))
    beside = [path.with_name(f"{run.name}{kind}.csv") for kind in TABLE_COMPANIONS]
    write_json(path.with_suffix(".json"),
               {**provenance(run, wall_seconds=wall_seconds), **extra, "sha256": sha256_of(path),
                "beside": {file.name: sha256_of(file) for file in beside if file.exists()}})
    return table


def save_beside(run: Run, what: str, rows: list[dict]) -> None:
    """Keep rows of another shape beside the table, before it is saved and takes their sha256:
    results/<stage>/<name>-<what>.csv. Without rows, what an earlier run left is removed."""
    path = run.root / "results" / run.stage / f"{run.name}-{what}.csv"
    if rows:
        write_atomically(path, lambda aside: pd.DataFrame(rows).to_csv(aside, index=False))
    else:
        path.unlink(missing_ok=True)


def load_beside(run: Run, what: str) -> pd.DataFrame:
    """What save_beside kept; raises InputError with the command when it is missing, or damaged."""
    path = run.root / "results" / run.stage / f"{run.name}-{what}.csv"
    if path.exists():
        load_table(path.with_name(f"{run.name}.csv"))
        return pd.read_csv(path)
    raise InputError(f"{shown(path)} is missing; make it: {run.command}")


def load_table(path: Path) -> pd.DataFrame:
    """Read a metric table; raises InputError when it is missing, damaged or of another schema."""
    try:
        table = pd.read_csv(path)
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{shown(path)} or its .json is missing or cannot be read") from None
    if tuple(table.columns) != COLUMNS:
        raise InputError(f"{shown(path)} must have the columns {', '.join(COLUMNS)}")
    files = {**record.get("beside", {}), path.name: record.get("sha256")}
    for name, digest in files.items():
        file = path.with_name(Path(name).name)
        if not file.exists() or sha256_of(file) != digest:
            raise InputError(f"{shown(file)} is damaged (its sha256 is not the one in {path.stem}"
                             f".json): make it again with its notebook, or restore it from git")
    return table
