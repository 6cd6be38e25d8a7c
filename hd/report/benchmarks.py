"""The published benchmark as the performance page shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hd.config import InputError
from hd.report.tables import commit_of, number
from hd.report.words import fold
from hd.run.storage import ROOT, artifacts_root, sha256_of, shown

KINDS = ("cpu", "cpu-float32", "gpu")  # see hd.bench.benchmark.table_name
COLUMNS = ("stage", "unit", "ours", "theirs", "against", "ratio", "ratio_min", "ratio_max",
           "pairs", "bar", "met", "device", "threads", "commit", "dirty")
PROFILE_COLUMNS = ("stage", "against", "part", "share", "calls")
BAR = re.compile(r"([<>]=) ([\d.]+)")
MARKS = {"True": "✓", "False": "✗", "": ""}


def fresh_folder() -> Path:
    """Where python -m hd bench writes."""
    return artifacts_root() / "benchmark"


def published_folder() -> Path:
    return ROOT / "results" / "benchmark"


def profile_beside(table: Path) -> Path:
    """Where the time goes, for bars that are not met."""
    return table.with_name(f"{table.stem}-profile.csv")


def load_with_record(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Table, profile and provenance; raises InputError when one is missing, damaged or of
    another schema."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        parts = [pd.read_csv(one, keep_default_na=False) for one in (path, profile_beside(path))]
        digests = [sha256_of(one) for one in (path, profile_beside(path))]
    except (OSError, ValueError):
        raise InputError(f"{shown(path)} or what stands beside it is missing or cannot be read; "
                         f"make it again: python -m hd bench") from None
    if digests != [record.get("sha256"), record.get("profile_sha256")] or [
            tuple(part.columns) for part in parts] != [COLUMNS, PROFILE_COLUMNS]:
        raise InputError(f"{shown(path)} is damaged (it is not as its .json says); make it again: "
                         f"python -m hd bench, or restore it from git")
    return *parts, record


def published(folder: Path | None = None) -> pd.DataFrame:
    """The rows of every device that is published, with a column kind; prints what made each.

    attrs["profile"]: where the time goes. Without any it prints a line that says so.
    """
    folder, tables, profiles = folder or published_folder(), [], []
    for kind in KINDS:
        path = folder / f"{kind}.csv"
        if not path.exists():
            continue
        table, profile, record = load_with_record(path)
        tables.append(table.assign(kind=kind))
        profiles.append(profile.assign(kind=kind))
        print(f"{kind}: {record['device']}, {record['threads']} threads, {record['processes']} "
              f"processes, torch {record['packages']['torch']},\n"
              f"     commit {commit_of(record)}, {record['wall_seconds']:,.0f} s")
    if not tables:
        print("No benchmark is published. To make one: python -m hd bench, then python -m hd "
              "publish --benchmark")
        return pd.DataFrame(columns=[*COLUMNS, "kind"])
    found = pd.concat(tables, ignore_index=True)
    found.attrs["profile"] = pd.concat(profiles, ignore_index=True)
    return found


def in_words(table: pd.DataFrame) -> pd.DataFrame | None:
    """The table as text: value of both sides, ratio [least, most] with the number of pairs, bar
    and whether it is met."""
    if table.empty:
        return None
    rows = table.to_dict("records")
    return pd.DataFrame({
        "against": [row["against"] for row in rows], "unit": [row["unit"] for row in rows],
        "ours": [number(row["ours"]) for row in rows],
        "theirs": [number(row["theirs"]) for row in rows],
        "ratio [least, most]": [
            f"{number(row['ratio'])} [{number(row['ratio_min'])}, {number(row['ratio_max'])}], "
            f"n={row['pairs']}" for row in rows],
        "bar": [f"{row['bar']} {MARKS[str(row['met'])]}".strip() for row in rows]},
        index=_stages(table))


def _stages(table: pd.DataFrame) -> list[str]:
    """The stage of each row, after its device where there are several."""
    several = table["kind"].nunique() > 1
    return [f"{kind}: {stage}" if several else stage
            for kind, stage in zip(table["kind"], table["stage"])]


def limit(row: Mapping) -> float:
    """The number of a row's bar."""
    return float(BAR.fullmatch(row["bar"])[2])


def nearest(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """The rows with a bar that have the least room: whose ratio is, in times, nearest to it or
    farthest beyond, the least first."""
    judged = table[table["bar"] != ""]
    room = pd.Series([row["ratio"] / limit(row) if row["bar"].startswith(">=")
                      else limit(row) / row["ratio"] for row in judged.to_dict("records")],
                     judged.index, dtype=float)
    return judged.loc[room.sort_values(kind="stable").index[:count]]


def show_in_words(table: pd.DataFrame, count: int = 12) -> None:
    """In a notebook: in_words of the bars with the least room, and behind a click of all rows."""
    from IPython.display import display
    if not table.empty:
        display(in_words(nearest(table, count)))
        fold(in_words(table), "All rows")


def show_where_time_goes(table: pd.DataFrame) -> None:
    """In a notebook: where_time_goes behind a click, if anything was profiled."""
    if (found := where_time_goes(table)) is not None:
        fold(found, "Where our time goes")


def not_met(table: pd.DataFrame) -> None:
    """Print each bar that is not met, or that all are."""
    if table.empty:
        return
    missed = table[table["met"].astype(str) == "False"]
    for row in missed.to_dict("records"):
        print(f"{row['kind']}: {row['stage']}, against {row['against']}: "
              f"{number(row['ratio'])}, bar {row['bar']}")
    num_met = int((table["met"].astype(str) == "True").sum())
    print(f"{num_met} of {num_met + len(missed)} bars are met.")


def where_time_goes(table: pd.DataFrame) -> pd.DataFrame | None:
    """The parts of our side that take the most time themselves, for each profiled comparison."""
    profile = table.attrs.get("profile")
    if profile is None or profile.empty:
        return None
    first = ~profile.duplicated(["kind", "stage", "against"])
    stages = [stage if is_first else "" for stage, is_first in zip(_stages(profile), first)]
    return pd.DataFrame({
        "part": profile["part"].to_list(),
        "share of time": [f"{share:.1%}" for share in profile["share"]],
        "calls": [number(calls) for calls in profile["calls"]]}, index=stages)
