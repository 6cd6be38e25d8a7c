"""Copying fresh tables and figures into the published ones, by the rule of hd.report.published.

results/ and figures/ change only here, and only from a clean tree.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hd import config, stages
from hd.ablations import COMPARED
from hd.audit import claims
from hd.book import headline
from hd.config import InputError
from hd.report import benchmarks, published
from hd.report.benchmarks import KINDS, fresh_folder, profile_beside
from hd.report.published import FORMATS
from hd.report.tables import load_with_record
from hd.report.video import online_video
from hd.run import runs
from hd.run.machine import asked_git
from hd.run.runs import TABLE_COMPANIONS, Run
from hd.run.storage import ROOT, artifacts_root, sha256_of, shown, write_atomically, write_json

VIDEO_STEPS = 300  # of a published agent at play: 20 seconds


def publish(profile: str, variant: str = "base", seed: int | None = None, *,
            root: Path = ROOT) -> list[Path]:
    """Copy a profile's fresh tables, and those of its figures that pages show, into root's results/
    and figures/; write the headline and the audit's table of claims.

    What is copied is the rule of hd.report.published; figures that no page shows any more go. What
    an arm measured of the very run that base or hi-dreamer names is published under that name too.
    variant: one, or "all". Returns the copies. Before anything is copied, raises InputError when
    the tree is dirty, nothing is there, a table is damaged or was made from a dirty tree. Tables
    may come from several commits: the headline lists them.
    """
    config.allowed("profile", profile, config.PROFILES)
    config.allowed("variant", variant, ("all", *config.variants()))
    check_clean(root)
    source, copies, namesakes = artifacts_root() / profile, [], {}
    for path in sorted((source / "results").glob("*/*-seed*.csv")):
        if path.stem.endswith(TABLE_COMPANIONS):
            continue
        record = load_with_record(path)[1]
        if variant not in ("all", record["variant"]) or seed not in (None, record["seed"]):
            continue
        if record["git"]["dirty"] is not False:
            raise InputError(f"{shown(path)} was not made from a clean commit; commit, then make "
                             f"it again: make report PROFILE={profile}")
        copies += [path, path.with_suffix(".json"), *_beside(path, record)]
        copies += _figures(source / "figures", f"{path.stem}/*")
        if name := _name_of_same_run(path, record):
            namesakes[path] = name
    if not copies:
        raise InputError(f"nothing to publish below {shown(source / 'results')} for variant "
                         f"{variant}; make it: make report PROFILE={profile}")
    targets = {}
    for path in copies:
        kind, *rest = path.relative_to(source).parts
        targets[root.joinpath(kind, profile, *rest)] = path
    for target, path in targets.items():
        if path.suffix == ".json":
            write_json(target, _published_record(path))
        else:
            write_atomically(target, lambda aside, path=path: shutil.copyfile(path, aside))
        if target.suffix in FORMATS:
            for other in {target.with_suffix(kind) for kind in FORMATS} - {target}:
                other.unlink(missing_ok=True)
    renamed = [file for path, name in namesakes.items()
               for file in _publish_as(name, path, root / "results" / profile)]
    _remove_unshown(root / "figures")
    headline.write(root)
    claims.write(root)
    return sorted(filter(Path.exists, [*targets, *renamed]))


def _name_of_same_run(path: Path, record: Mapping) -> str | None:
    """Which of the COMPARED variants is the very run of an arm's table, measured in the same way,
    where it has no fresh table of its own; else None."""
    profile, seed, games = (record[key] for key in ("profile", "seed", "games"))
    measured = config.resolve(profile, record["variant"], games=games).probes
    for name in COMPARED:
        own = path.with_name(path.name.replace(record["variant"], name, 1))
        if own.exists() or config.resolve(profile, name, games=games).probes != measured:
            continue
        run = runs.start(record["stage"], profile=profile, variant=name, seed=seed, games=games)
        if run.identity == record.get("identity"):
            return name
    return None


def _publish_as(name: str, path: Path, results: Path) -> list[Path]:
    """Write a fresh table under another variant's name into a profile's published results, with
    what is read beside it; its record says as which variant it was measured."""
    record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    target = results / path.parent.name / path.name.replace(record["variant"], name, 1)
    table = pd.read_csv(path, dtype=str, keep_default_na=False).assign(variant=name)
    write_atomically(target, lambda aside: table.to_csv(aside, index=False))
    written, beside = [target, target.with_suffix(".json")], {}
    for file, digest in record.get("beside", {}).items():
        copy = target.with_name(file.replace(record["variant"], name, 1))
        if published.is_read_beside(f"{path.parent.name}/{copy.name}"):
            write_atomically(copy, lambda aside, file=file: shutil.copyfile(
                path.with_name(file), aside))
            written.append(copy)
            beside[copy.name] = digest
    write_json(target.with_suffix(".json"),
               {**record, "variant": name, "measured_as": record["variant"],
                "sha256": sha256_of(target), "beside": beside})
    return written


def _beside(path: Path, record: Mapping) -> list[Path]:
    """The files beside a table that its record names, all where an older record names none, and
    that something reads (hd.report.published)."""
    beside = [path.with_name(f"{path.stem}{kind}.csv") for kind in TABLE_COMPANIONS]
    return [file for file in beside if file.exists()
            and file.name in record.get("beside", [file.name])
            and published.is_read_beside(f"{path.parent.name}/{file.name}")]


def _published_record(path: Path) -> dict:
    """A table's provenance without the files beside it that stay behind."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if "beside" in record:
        record["beside"] = {name: digest for name, digest in record["beside"].items()
                            if published.is_read_beside(f"{path.parent.name}/{name}")}
    return record


def _figures(folder: Path, pattern: str) -> list[Path]:
    """A profile's fresh figures of this name that pages show, each in its smallest format."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_size)
    shown_kinds = {}
    for path in found:
        if published.is_shown_kind(path.relative_to(folder).as_posix()):
            shown_kinds.setdefault(path.with_suffix(""), path)
    return list(shown_kinds.values())


def _remove_unshown(figures: Path) -> None:
    """Remove published figures that no page shows, such as a smaller profile's dreams."""
    for path in {*filter(Path.is_file, figures.rglob("*"))} - published.shown(figures=figures):
        path.unlink()


def publish_videos(agents: Sequence[Run], *, steps: int = VIDEO_STEPS,
                   root: Path = ROOT) -> list[Path]:
    """Write a video of finished agents, of a game each, at play beside their dreams into root's
    figures/: how an episode ends. Returns the files.

    Raises InputError before anything is written: when the tree is dirty, or an agent is missing or
    was not made from a clean commit.
    """
    check_can_publish(agents, root)
    figures = root / "figures"
    return [online_video(run, steps=steps, at_end=True,
                         out=figures / run.profile.name / run.name / "play.mp4") for run in agents]


def publish_benchmark(*, root: Path = ROOT) -> list[Path]:
    """Copy what python -m hd bench measured, on each kind of device, into root's
    results/benchmark/; returns the copies. Raises InputError as publish does."""
    check_clean(root)
    paths = [fresh_folder() / f"{kind}.csv" for kind in KINDS]
    if not (paths := [path for path in paths if path.exists()]):
        raise InputError(f"no benchmark below {shown(fresh_folder())}; make it: python -m hd bench")
    for path in paths:
        record = benchmarks.load_with_record(path)[2]
        if record["git"]["dirty"] is not False:
            raise InputError(f"{shown(path)} was not made from a clean commit; commit, then make "
                             f"it again: python -m hd bench")
    copies = [copy for path in paths
              for copy in (path, path.with_suffix(".json"), profile_beside(path))]
    targets = {root / "results" / "benchmark" / path.name: path for path in copies}
    for target, path in targets.items():
        write_atomically(target, lambda aside, path=path: shutil.copyfile(path, aside))
    return sorted(targets)


def check_can_publish(agents: Sequence[Run], root: Path) -> None:
    """Raise InputError unless root is a clean tree, and each agent finished from such a one."""
    check_clean(root)
    for run in agents:
        if runs.require(run)["git"]["dirty"] is not False:
            raise InputError(f"the agent of {stages.game_of(run)} was not made from a clean "
                             f"commit; nothing of it is published")


def check_clean(root: Path) -> None:
    """Raise InputError unless root is a git working tree without changes."""
    changed = asked_git(root, "status", "--porcelain")
    if changed is None:
        raise InputError("publishing needs a git working tree")
    if changed := changed.splitlines():
        raise InputError(f"publishing needs a clean git tree; {len(changed)} changed, first "
                         f"{changed[0].split(maxsplit=1)[-1]}: commit or remove them")
