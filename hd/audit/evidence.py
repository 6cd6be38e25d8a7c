"""Looking up measured values in published tables, and comparing them over seeds.

A Found is one metric of one variant over its seeds, with where it came from; hd.audit.claims
builds the audit's table from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from hd.config import GAMES
from hd.report.tables import commit_of, listed, load_with_record, paths_of
from hd.run.intervals import interval
from hd.run.storage import ROOT, sha256_of


@dataclass(frozen=True)
class Found:
    """values, baselines: one number per seed, indexed by seed; tables: where they stand."""

    values: pd.Series
    baselines: pd.Series
    profile: str
    device: str
    tables: tuple[str, ...]

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def baseline(self) -> float:
        """Mean over seeds; nan where the metric has none."""
        return float(self.baselines.mean())

    @property
    def bounds(self) -> tuple[float, float]:
        """95% bootstrap interval of the mean over seeds; nan for one seed."""
        return interval(self.values)

    def combine(self, other: Found, how: Callable) -> Found:
        """how(values, other's values), seed by seed over the seeds both have; also of baselines."""
        values = how(self.values, other.values).dropna()
        return Found(values, how(self.baselines, other.baselines), self.profile,
                     listed([self.device, other.device], "; "),
                     tuple(dict.fromkeys(self.tables + other.tables)))

    def __sub__(self, other: Found) -> Found:
        return self.combine(other, lambda a, b: a - b)

    def map(self, how: Callable) -> Found:
        """how(values) and how(baselines), for instance another unit."""
        return Found(how(self.values), how(self.baselines), self.profile, self.device, self.tables)

    def against(self, other: Found) -> Found:
        """The same values with the other's values as the baseline."""
        return Found(self.values, other.values, self.profile,
                     listed([self.device, other.device], "; "),
                     tuple(dict.fromkeys(self.tables + other.tables)))

    def against_own_baseline(self) -> Found:
        """What the values are above their baseline."""
        return self.map_values(self.values - self.baselines)

    def map_values(self, values: pd.Series) -> Found:
        return Found(values, self.baselines, self.profile, self.device, self.tables)

    def is_above(self, bound: float = 0.0) -> bool:
        """Clearly: with the whole interval over seeds, which one seed does not have."""
        return bool(self.bounds[0] > bound)

    def is_below(self, bound: float = 0.0) -> bool:
        return bool(self.bounds[1] < bound)


def mean_of(found: Iterable[Found | None]) -> Found | None:
    """The mean of several metrics, seed by seed; None unless all are there."""
    found = list(found)
    if not found or any(one is None for one in found):
        return None
    return Found(sum(one.values for one in found) / len(found),
                 sum(one.baselines for one in found) / len(found), found[0].profile,
                 listed((one.device for one in found), "; "),
                 tuple(dict.fromkeys(name for one in found for name in one.tables)))


@dataclass(frozen=True)
class Tables:
    """The tables of one profile: below a results folder with a folder per profile (None: the
    published ones), or below the profile's own folder of fresh results."""

    profile: str
    root: Path | None = None

    def read(self, stage: str, variant: str) -> Iterator[tuple[Path, pd.DataFrame, dict]]:
        """A variant's tables by seed: (path, table, the record beside it)."""
        for path in paths_of(self.root, self.profile, stage, variant):
            table, record = _load(str(path), sha256_of(path))
            if record["profile"] == self.profile:
                yield path, table, record

    def _shown(self, path: Path) -> str:
        return f"results/{path.relative_to(Path(self.root or ROOT / 'results')).as_posix()}"

    def find(self, stage: str, metric: str, variant: str = "base", *, game: str = "all",
             step: float | None = None, split: str | None = None) -> Found | None:
        """One metric over the seeds that are published, or None where it is not measured."""
        parts = []
        for path, table, record in self.read(stage, variant):
            chosen = (table["metric"] == metric) & (table["game"] == game)
            chosen &= table["step"].isna() if step is None else table["step"] == step
            if split is not None:
                chosen &= table["split"] == split
            rows = table[chosen]
            if len(rows) == 1:
                parts.append((rows.iloc[0], record, self._shown(path)))
        if not parts:
            return None
        seeds = [int(row["seed"]) for row, _, _ in parts]
        return Found(pd.Series([row["value"] for row, _, _ in parts], seeds, float),
                     pd.Series([row["baseline"] for row, _, _ in parts], seeds, float),
                     self.profile, listed(record["device"] for _, record, _ in parts),
                     tuple(path for _, _, path in parts))

    def mean_over_games(self, stage: str, metric: str, variant: str = "base") -> Found | None:
        """The mean over the three games, seed by seed; None unless all are measured."""
        return mean_of(self.find(stage, metric, variant, game=game) for game in GAMES)

    def last_of_history(self, stage: str, key: str, variant: str = "base") -> Found | None:
        """The last recorded value of a learning curve, over seeds."""
        values, records, names = {}, [], []
        for path, _, record in self.read(stage, variant):
            beside = path.with_name(f"{path.stem}-history.csv")
            if not beside.exists():
                continue
            curve = pd.read_csv(beside)
            if key not in curve or curve[key].isna().all():
                continue
            values[record["seed"]] = curve[key].dropna().iloc[-1]
            records.append(record)
            names.append(self._shown(beside))
        if not values:
            return None
        return Found(pd.Series(values, dtype=float), pd.Series(float("nan"), list(values)),
                     self.profile, listed(r["device"] for r in records), tuple(names))

    def made_seconds(self, stage: str, variant: str = "base") -> Found | None:
        """Seconds that training the stage took, from the provenance beside its tables."""
        found = list(self.read(stage, variant))
        if not found:
            return None
        records = [record for _, _, record in found]
        seeds = [record["seed"] for record in records]
        return Found(pd.Series([r["made_seconds"] for r in records], seeds, float),
                     pd.Series(float("nan"), seeds), self.profile,
                     listed(r["device"] for r in records),
                     tuple(self._shown(path.with_suffix(".json")) for path, _, _ in found))


def devices_and_commits(records: Iterable[Mapping]) -> str:
    """What provenance records name, each with its stages where there are several."""
    parts = []
    for what, read in (("Device", lambda record: record["device"]), ("Commit", commit_of)):
        stages = {}
        for record in records:
            stages.setdefault(read(record), []).append(record["stage"])
        parts.append(f"{what}: " + "; ".join(
            name if len(stages) == 1 else f"{name} ({listed(made)})"
            for name, made in stages.items()) + ".")
    return " ".join(parts)


@lru_cache(maxsize=512)
def _load(path: str, digest: str) -> tuple[pd.DataFrame, dict]:
    return load_with_record(Path(path))
