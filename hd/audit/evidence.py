"""Looking up measured values in published tables, and comparing them over seeds.

A Measurement is one metric of one variant over its seeds, with where it came from;
hd.audit.claims builds the audit's table from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from hd.config import GAMES
from hd.report.tables import commit_of, device_of, listed, load_with_record, paths_of
from hd.run.intervals import interval_over_seeds
from hd.run.metrics import named
from hd.run.storage import ROOT, sha256_of

# What the seed trained on: of a stage, how many examples in all, and whose training others rest on.
EXAMPLES = {"encoder": 30 * 300_000, "world_model": 40 * 234_000}  # epochs of frames, of windows
RESTS_ON = {"encoder": "encoder", "tokenizer": "encoder", "entropy_floor": "encoder",
            "world_model": "world_model", "imagination": "world_model", "policy": "world_model",
            "transfer": "world_model"}
COUNTED = {"back_off": "back-off", "ngram": "an n-gram", "repeat_last": "the last code",
           "frequency": "the most frequent code"}  # what only counts, by what stands in brackets


@dataclass(frozen=True)
class Source:
    """A file of results below the results folder, and what its record says made it; trained: on
    how many examples, as a share of the seed's (nan where nothing of the kind was trained); split:
    of its row that was taken, where one was."""

    path: str
    stage: str
    variant: str
    device: str
    seed: int
    trained: float = math.nan
    split: str | None = None


@dataclass(frozen=True)
class Measurement:
    """values, baselines: one number per seed, indexed by seed; sources: where they stand."""

    values: pd.Series
    baselines: pd.Series
    profile: str
    sources: tuple[Source, ...]

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def baseline(self) -> float:
        """Mean over seeds; nan where the metric has none."""
        return float(self.baselines.mean())

    @property
    def bounds(self) -> tuple[float, float]:
        """95% interval of the mean over seeds; nan for few (hd.run.intervals.FEWEST_SEEDS)."""
        return interval_over_seeds(self.values)

    @property
    def trained(self) -> float:
        """On what share of the seed's examples, where least; nan where nothing was trained."""
        return float(pd.Series([source.trained for source in self.sources], dtype=float).min())

    @property
    def device(self) -> str:
        return listed((source.device for source in self.sources), "; ")

    @property
    def split(self) -> str:
        """Of which part of the data, as the tables name it; several where seeds differ."""
        return listed(filter(None, dict.fromkeys(source.split for source in self.sources)))

    @property
    def paths(self) -> list[str]:
        return list(dict.fromkeys(source.path for source in self.sources))

    def __sub__(self, other: Measurement) -> Measurement:
        """The difference, seed by seed over the seeds that pair; also of the baselines."""
        values = (self.values - other.values)[self._pairs_with(other)].dropna()
        return Measurement(values, self.baselines - other.baselines, self.profile,
                           _of_seeds(self.sources + other.sources, values.index))

    def map(self, how: Callable) -> Measurement:
        """how(values) and how(baselines), for instance another unit."""
        return replace(self, values=how(self.values), baselines=how(self.baselines))

    def against(self, other: Measurement) -> Measurement:
        """The values with the other's as the baseline, over the seeds that pair."""
        seeds = self._pairs_with(other)
        return replace(self, values=self.values[seeds], baselines=other.values[seeds],
                       sources=_of_seeds(self.sources + other.sources, seeds))

    def _pairs_with(self, other: Measurement) -> pd.Index:
        """The seeds that both have, without those where one stands on the episodes on which things
        were chosen and the other on test episodes: those are other episodes."""
        splits = {}
        for source in self.sources + other.sources:
            splits.setdefault(source.seed, set()).add(source.split)
        seeds = self.values.index.intersection(other.values.index)
        return seeds[[not {"val", "test"} <= splits.get(seed, set()) for seed in seeds]]

    def above_baseline(self) -> Measurement:
        """What the values are above their baseline, seed by seed."""
        return replace(self, values=(self.values - self.baselines).dropna())


def _of_seeds(sources: Iterable[Source], seeds: Iterable[int]) -> tuple[Source, ...]:
    return tuple(source for source in sources if source.seed in set(seeds))


def beside_best(found: Measurement, trivial: Mapping[str, Measurement | None], better: str
                ) -> tuple[Measurement, str]:
    """A metric with the best of several trivial baselines, of which `found` has one already under
    the words that come first in `trivial` (None there); those not measured are left out. The words
    for the best come with it; better: "higher" or "lower"."""
    words, *others = trivial
    best = found
    for name in others:
        one = trivial[name]
        if one and found.values.index.isin(one.values.index).all():
            beside = found.against(one)
            if (beside.baseline > best.baseline) == (better == "higher"):
                best, words = beside, name
    return best, words


def mean_of(found: Iterable[Measurement | None]) -> Measurement | None:
    """The mean of several metrics, seed by seed; None unless all are there."""
    found = list(found)
    if not found or any(one is None for one in found):
        return None
    return Measurement(sum(one.values for one in found) / len(found),
                       sum(one.baselines for one in found) / len(found), found[0].profile,
                       tuple(source for one in found for source in one.sources))


def best_counted(look: Callable[[str], Measurement | None], metric: str, better: str
                 ) -> tuple[str, Measurement] | None:
    """Of the methods that only count: words for the best and what look(its metric) finds; better:
    "higher" or "lower". In older tables the n-gram is the metric's own baseline and has no row, and
    back-off is not measured, which the words say. None where none is measured."""
    found = {words: look(named(metric, method)) for method, words in COUNTED.items()}
    own = look(metric)
    has_row = found[COUNTED["back_off"]] or found[COUNTED["ngram"]]
    if own and not has_row and not own.baselines.isna().any():
        found[COUNTED["ngram"]] = replace(own, values=own.baselines)
    found = {words: one for words, one in found.items() if one}
    if not found:
        return None
    words, best = (max if better == "higher" else min)(found.items(), key=lambda one: one[1].mean)
    back_off = COUNTED["back_off"]
    return (words if back_off in found else f"{words} ({back_off} is not measured)"), best


@dataclass(frozen=True)
class Tables:
    """The tables of one profile: below a results folder with a folder per profile (None: the
    published ones), or below the profile's own folder of fresh results."""

    profile: str
    root: Path | None = None

    def read(self, stage: str, variant: str) -> Iterator[tuple[Path, dict, dict]]:
        """A variant's tables by seed: (path, rows by metric and game, the record beside it)."""
        for path in paths_of(self.root, self.profile, stage, variant):
            rows, record = _load(str(path), sha256_of(path))
            if record["profile"] == self.profile:
                yield path, rows, record

    def _source(self, path: Path, record: Mapping) -> Source:
        below = path.relative_to(Path(self.root or ROOT / "results")).as_posix()
        return Source(f"results/{below}", record["stage"], record["variant"], device_of(record),
                      record["seed"], self._trained(record))

    def _trained(self, record: Mapping) -> float:
        trained = RESTS_ON.get(record["stage"])
        if trained is None:
            return math.nan
        if record["stage"] == "transfer":  # on two games, before it adapts to the third
            config = record["inside"]["world_model"]
            return (record["config"]["source_steps"] * config["batch_size"]
                    * config.get("accumulate", 1) / EXAMPLES[trained])
        if trained != record["stage"]:
            beside = [one for variant in (record["variant"], "base")
                      for _, _, one in self.read(trained, variant)]
            if not beside:
                return math.nan
            # The very run that it read, where that is published; else another of the profile's.
            read = "".join(record.get("inputs", ()))
            record = next((one for one in beside if one["identity"][:10] in read), beside[0])
        config = record["config"]
        examples = config["num_steps"] * config["batch_size"] * config.get("accumulate", 1)
        return examples / EXAMPLES[trained]

    def find(self, stage: str, metric: str, variant: str = "base", *, game: str = "all",
             step: float | None = None, split: str | None = None) -> Measurement | None:
        """One metric over the seeds that are published, or None where it is not measured."""
        rows, sources = [], []
        for path, table, record in self.read(stage, variant):
            chosen = [row for row in table.get((metric, game), ()) if row["step"] == step
                      and split in (None, row["split"])]
            if len(chosen) == 1:
                rows += chosen
                sources.append(replace(self._source(path, record), split=chosen[0]["split"]))
        if not rows:
            return None
        # Older tables were judged on the episodes on which things were chosen: they give way.
        splits = {row["split"] for row in rows}
        if {"val", "test"} <= splits:
            rows, sources = zip(*((row, source) for row, source in zip(rows, sources)
                                  if row["split"] != "val"))
        seeds = [int(row["seed"]) for row in rows]
        return Measurement(pd.Series([row["value"] for row in rows], seeds, float),
                           pd.Series([row["baseline"] for row in rows], seeds, float),
                           self.profile, tuple(sources))

    def mean_over_games(self, stage: str, metric: str, variant: str = "base", **where
                        ) -> Measurement | None:
        """The mean over the three games, seed by seed; None unless all are measured."""
        return mean_of(self.find(stage, metric, variant, game=game, **where) for game in GAMES)

    def last_of_history(self, stage: str, key: str, variant: str = "base") -> Measurement | None:
        """The last recorded value of a learning curve, over seeds."""
        values, sources = {}, []
        for path, _, record in self.read(stage, variant):
            beside = path.with_name(f"{path.stem}-history.csv")
            if not beside.exists():
                continue
            curve = pd.read_csv(beside)
            if key not in curve or curve[key].isna().all():
                continue
            values[record["seed"]] = curve[key].dropna().iloc[-1]
            sources.append(self._source(beside, record))
        return self._without_baseline(values, sources)

    def made_seconds(self, stage: str, variant: str = "base") -> Measurement | None:
        """Seconds that training the stage took, from the provenance beside its tables."""
        found = list(self.read(stage, variant))
        return self._without_baseline(
            {record["seed"]: record["made_seconds"] for _, _, record in found},
            [self._source(path.with_suffix(".json"), record) for path, _, record in found])

    def _without_baseline(self, values: dict[int, float], sources: list[Source]
                          ) -> Measurement | None:
        """values: seed -> number; None without any."""
        if not values:
            return None
        return Measurement(pd.Series(values, dtype=float), pd.Series(float("nan"), list(values)),
                           self.profile, tuple(sources))


def devices_and_commits(records: Iterable[Mapping]) -> str:
    """What provenance records name, each with its stages where there are several."""
    parts = []
    for what, read in (("Device", device_of), ("Commit", commit_of)):
        stages = {}
        for record in records:
            stages.setdefault(read(record), []).append(record["stage"])
        parts.append(f"{what}: " + "; ".join(
            name if len(stages) == 1 else f"{name} ({listed(made)})"
            for name, made in stages.items()) + ".")
    return " ".join(parts)


@lru_cache(maxsize=512)
def _load(path: str, digest: str) -> tuple[dict, dict]:
    """A checked table's rows by (metric, game), no step as None, and the record beside it."""
    table, record = load_with_record(Path(path))
    rows = {}
    for row in table.to_dict("records"):
        step = None if pd.isna(row["step"]) else row["step"]
        rows.setdefault((row["metric"], row["game"]), []).append({**row, "step": step})
    return rows, record
