"""What the pages show: small tables of metrics, captions, costs.

Everything is read from metric tables (hd.run.runs.save_table); nothing here trains or draws.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hd import atari, config
from hd.ablations import ABLATIONS
from hd.config import GAMES, InputError
from hd.run import runs
from hd.run.intervals import interval_over_seeds
from hd.run.metrics import METRICS, Metric, Name, key_of, matches, named, parsed
from hd.run.storage import ROOT, shown

# Pages show whole tables: nothing is cut to dots.
pd.set_option("display.max_colwidth", 400, "display.max_rows", 400, "display.max_columns", 40)

KEYS = ["stage", "variant", "game", "step", "split", "metric"]
TRIVIAL = {  # methods that learn nothing of the game, by what stands in a metric's brackets
    "repeat_last": "last code", "frequency": "most frequent code", "extrapolated": "last velocity",
    "majority": "most frequent value", "pixel_pca": "pixels", "untrained": "untrained",
    "ngram": "n-gram", "back_off": "back-off", "copied": "last place"}
# In METRICS, the best of those with a row beside; of tables without such a row as the first, what
# older ones hold in its place.
BEST_TRIVIAL = "best trivial predictor"
BEST_OF_ROWS = {BEST_TRIVIAL: ("back_off", "n-gram"),
                "still or straight guess": ("copied", "last true one")}
SPREAD = "seeds or 95% interval"  # of FEWEST_SEEDS seeds and more the interval
TITLES = {**{name: game.title for name, game in atari.GAMES.items()}, "all": "all games"}


def explain(metrics: Iterable[str] | pd.DataFrame) -> pd.DataFrame:
    """One row per metric of a table (or list of names): meaning, unit, better, baseline."""
    used = set(map(key_of, getattr(metrics, "metric", metrics)))
    rows = {key: METRICS[key] for key in METRICS if key in used}
    if isinstance(metrics, pd.DataFrame):
        rows = {key: metric._replace(baseline=baseline_words(metric.baseline, metrics))
                for key, metric in rows.items()}
    return pd.DataFrame(rows.values(), index=list(rows), columns=Metric._fields)


def baseline_words(declared: str, table: pd.DataFrame) -> str:
    """What the baseline column of a table holds where METRICS declares this in words.

    Older tables have one method's score where newer ones have the best of several: of next codes an
    n-gram's, of (code, action) alone; of dreamed places the last true one.
    """
    if declared not in BEST_OF_ROWS:
        return declared
    method, before = BEST_OF_ROWS[declared]
    new = set(table.loc[table["metric"].str.contains(method, regex=False), "seed"])
    return (declared if new == set(table["seed"]) else before if not new
            else f"{before} or {declared}")


def number(value, digits: int = 3) -> str:
    """The value to so many significant digits, whole numbers in full: 0.500, 1,230, 27,000."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value):
        return f"{int(value):,}"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def fresh_or_published(results_dir, profile: str, stage: str, variant: str = "base",
                       seed: int | None = None) -> pd.DataFrame:
    """A stage's long table of one profile and variant, all seeds unless one is given.

    results_dir: a tree with a folder per profile (None: the published one, the repository's) or one
    profile's fresh results. attrs["records"] are the provenance records. Raises InputError when
    there is none, one is damaged or of another profile, or seeds disagree on the config.
    """
    paths = _require_paths(results_dir, profile, stage, variant, seed)
    tables, records = zip(*map(load_with_record, paths))
    if others := {record["profile"] for record in records} - {profile}:
        raise InputError(f"{shown(paths[0].parent)} holds profile {listed(others)}, not {profile}")
    if any(record["config"] != records[0]["config"] for record in records):
        raise InputError(f"the seeds of {stage}, profile {profile}, variant {variant} were made "
                         f"with different configs; make them again")
    table = pd.concat(tables, ignore_index=True)
    table.attrs["records"] = list(records)
    if results_dir is not None and not _are_published(records, profile, stage, variant):
        table.attrs["published_as"] = (profile, stage, variant, seed)
    return table


def episodes(results_dir, profile: str, variant: str = "base",
             seed: int | None = None) -> pd.DataFrame:
    """Every real episode that was played: player, game, seed, episode, return, length, sticky."""
    paths = [path.with_name(f"{path.stem}-episodes.csv")
             for path in _require_paths(results_dir, profile, "policy", variant, seed)]
    if missing := [path for path in paths if not path.exists()]:
        raise InputError(f"{shown(missing[0])} is missing")
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


def load_with_record(path: Path) -> tuple[pd.DataFrame, dict]:
    """A checked table and the provenance beside it."""
    return runs.load_table(path), json.loads(path.with_suffix(".json").read_text("utf-8"))


def has_table(results_dir, profile: str, stage: str) -> bool:
    """Whether there is a table of base of this stage."""
    return bool(paths_of(results_dir, profile, stage))


PLAY = {  # by who plays, hd.config.SOURCES
    "agent": "own play", "random": "random play", "tracker": "a tracker's play"}
AGENT_ROWS = (  # in words, what stands in brackets, the metrics, of which the lowest is shown
    ("return", "random play", "real_return"),
    ("points won, last 4,096 steps", "random play", "share_won"),
    ("own figure in its codes, R²", "pixels", r"r2_player_[xy]\[source agent\]"),
    ("ball in its codes, R²", "pixels", r"r2_ball_[xy]\[source agent\]"),
    ("changed pixels shown wrong by codes", "the step before",
     r"changed_pixels_wrong\[source agent\]"),
    *((f"lost contacts foretold, {words}, AUC", "from RAM", rf"contact_auc\[source {source}\]")
      for source, words in PLAY.items()),
    ("a held action's return, error", "zero", "held_action_error"),
)


def agents_in_short(results_dir) -> pd.DataFrame | None:
    """What the online agents reached, in words: AGENT_ROWS down, games across, each cell the text
    "value (baseline)", a mean if seeds > 1; of each game's largest profile that has any, after a
    line on its steps and seeds. None where there is no table, after a line that says so.
    """
    columns = {}
    if not (found := agents_of(results_dir)):
        print(f"No table of an online agent. To make one: python -m hd run agent --game "
              f"{config.GAMES[0]} --profile audit")
        return None
    for game, (profile, name) in found.items():
        table = fresh_or_published(results_dir, profile, "agent", name)
        records = table.attrs["records"]
        print(f"{TITLES[game]}, {profile}: {records[0]['config']['num_steps']:,} steps in "
              f"{minutes_of(records):.0f} minutes, seeds "
              f"{listed(sorted(record['seed'] for record in records))}, "
              f"{listed({device_of(record) for record in records})}")
        columns[TITLES[game]] = {
            f"{words} ({beside})": _lowest(table[table["metric"].str.fullmatch(metrics)])
            for words, beside, metrics in AGENT_ROWS} | {
            f"lost contacts, {words} (contacts)": _lost_of_contacts(table, source)
            for source, words in PLAY.items()}
    wide = pd.DataFrame(columns).fillna("")
    return wide[(wide != "").any(axis=1)]


def _lost_of_contacts(table: pd.DataFrame, source: str) -> str:
    """"lost (contacts)" of play by a source, over all seeds, on which its contact_auc rests; else
    ""."""
    found = [table.loc[table["metric"] == f"{metric}[source {source}]"].set_index("seed")["value"]
             for metric in ("contacts", "contact_lost_share")]
    if any(one.empty for one in found):
        return ""
    contacts, share = found
    return with_baseline(number((contacts * share).round().sum(), 6), contacts.sum())


def minutes_of(records: Iterable[Mapping]) -> float:
    """How long what these records are about took to make, the mean over seeds."""
    return float(pd.Series([record["made_seconds"] for record in records]).mean()) / 60


def longest(records: Iterable[Mapping]) -> float:
    """Minutes that what these records are about took to make, of the seed that took most."""
    return max(record["made_seconds"] for record in records) / 60


def over_episodes(table: pd.DataFrame) -> tuple[float, float]:
    """The interval of one seed's return over its episodes."""
    low, high = (table.loc[table["metric"] == named("real_return", bound), "value"].item()
                 for bound in ("ci_low", "ci_high"))
    return low, high


def agent_runs(results_dir) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(game, variant, table of all seeds) of every run of the online agent: base and each course of
    its learning rates, game by game, the largest profile first."""
    rates = [f"agent_rates.{arm}" for arm in ABLATIONS["agent_rates"].arms]
    for game, variant in itertools.product(config.GAMES, ("base", *rates)):
        for profile in profiles_of(results_dir, "agent", f"{variant}-{game}"):
            yield game, variant, fresh_or_published(results_dir, profile, "agent",
                                                    f"{variant}-{game}")


def runs_of_agents(results_dir) -> pd.DataFrame:
    """What the online agent reached wherever it was trained: a row for each of agent_runs, as text.
    The interval is over the episodes of a single seed, else the seeds stand one by one."""
    rows, games = [], []
    for game, variant, table in agent_runs(results_dir):
        records = table.attrs["records"]
        (row,) = summarise(table, ["real_return"]).to_dict("records")
        bounds = over_episodes(table) if row["n"] == 1 else (row["low"], row["high"])
        played = table.loc[table["metric"] == "episodes", "value"]
        games.append(TITLES[game])
        rows.append({
            "profile": records[0]["profile"], "variant": variant,
            "return (random play)": with_baseline(number(row["mean"]), row["baseline"]),
            "95% interval, or seeds": spread(row["seeds"], *bounds),
            "seeds (episodes)": with_baseline(str(row["n"]), played.min()),
            "steps": number(records[0]["config"]["num_steps"], 6),
            "minutes": number(minutes_of(records), 2),
            "device": listed(map(device_of, records))})
    return pd.DataFrame(rows, index=games)


def _lowest(rows: pd.DataFrame) -> str:
    """"value (baseline)" of the metric whose last step has the lowest mean over seeds, else ""."""
    if rows.empty:
        return ""
    found = summarise(rows).sort_values("step").groupby("metric").tail(1)
    lowest = found.loc[found["mean"].idxmin()]
    return with_baseline(number(lowest["mean"]), lowest["baseline"])


def agents(results_dir) -> pd.DataFrame | None:
    """What the online agents reached, game by game, over_seeds, after its provenance; of each
    game's largest profile that has any.

    None where there is no table.
    """
    shown_tables = []
    for profile, name in agents_of(results_dir).values():
        table = fresh_or_published(results_dir, profile, "agent", name)
        print(provenance_line(table))
        shown_tables.append(over_seeds(table[table["step"].isna()]))
    return pd.concat(shown_tables) if shown_tables else None


def _are_published(records: Iterable[Mapping], profile: str, stage: str, variant: str) -> bool:
    """Whether the tables of these records are among the published ones, by their content."""
    published = {load_with_record(path)[1].get("sha256")
                 for path in paths_of(None, profile, stage, variant)}
    return {record.get("sha256") for record in records} <= published


def agent_points(results_dir, *, num_profiles: int = 2) -> dict[str, dict[str, list[dict]]]:
    """The learning curves of the online agents of each game's largest profiles: game -> "profile,
    device, seed" -> points; the last of them has "is_final" and is the return of the last policy in
    whole episodes."""
    curves: dict[str, dict[str, list[dict]]] = {}
    of_games = [(game, profile, path) for game in config.GAMES
                for profile in profiles_of(results_dir, "agent", f"base-{game}")[:num_profiles]
                for path in paths_of(results_dir, profile, "agent", f"base-{game}")]
    for game, profile, path in of_games:
        beside = path.with_name(f"{path.stem}-history.csv")
        table, record = load_with_record(path)
        if not beside.exists() or record["profile"] != profile:
            continue
        points = pd.read_csv(beside)[["step", "minutes", "return"]].dropna().to_dict("records")
        (score,) = table.loc[table["metric"] == "real_return", "value"]
        points.append({"step": record["config"]["num_steps"],
                       "minutes": record["made_seconds"] / 60, "return": score,
                       "is_final": True})
        name = f"{profile}, {device_of(record)}, seed {record['seed']}"
        curves.setdefault(game, {})[name] = points
    return curves


def shares_won(results_dir) -> pd.DataFrame:
    """The points that the agents of `agents` won while they learned: rows of share_won, of every
    game in which points are lost as well."""
    found = [fresh_or_published(results_dir, profile, "agent", name)
             for profile, name in agents_of(results_dir).values()]
    rows = pd.concat(found) if found else pd.DataFrame({"metric": []})
    return rows[rows["metric"] == "share_won"]


def agents_of(results_dir) -> dict[str, tuple[str, str]]:
    """Of each game that has an online agent: the largest profile that has one, and what its tables'
    names begin with there; smoke says nothing about quality."""
    found = {game: profiles_of(results_dir, "agent", f"base-{game}") for game in config.GAMES}
    return {game: (profiles[0], f"base-{game}") for game, profiles in found.items() if profiles}


def is_measured(results_dir, profile: str, stage: str) -> bool:
    """has_table, after a line that says how to make one where there is none."""
    if found := has_table(results_dir, profile, stage):
        return found
    print(f"No table of stage {stage} at profile {profile}. To make one: python -m hd run "
          f"{config.NOTEBOOKS[stage]} --profile {profile}")
    return False


def largest(results_dir, stage: str, variant: str = "base") -> pd.DataFrame | None:
    """A variant's table of a stage at the largest profile that has one; None where none has.
    smoke says nothing about quality."""
    found = profiles_of(results_dir, stage, variant)
    return fresh_or_published(results_dir, found[0], stage, variant) if found else None


def profiles_of(results_dir, stage: str, variant: str = "base") -> list[str]:
    """The profiles that have a variant's table of a stage, the largest first; without smoke."""
    return [profile for profile in reversed(config.PROFILES) if profile != "smoke"
            and any(load_with_record(path)[1]["profile"] == profile
                    for path in paths_of(results_dir, profile, stage, variant))]


def _require_paths(results_dir, profile, stage, variant, seed) -> list[Path]:
    config.allowed("profile", profile, config.PROFILES)
    if paths := paths_of(results_dir, profile, stage, variant, seed):
        return paths
    made_by, root = config.NOTEBOOKS.get(stage, "all"), Path(results_dir or ROOT / "results")
    raise InputError(f"no table of stage {stage} below {shown(root)}; make it: python -m hd run "
                     f"{made_by} --profile {profile} --variant {variant} --seed {seed or 0}")


def paths_of(results_dir, profile: str, stage: str, variant: str = "base",
             seed: int | None = None) -> list[Path]:
    """A variant's tables by seed; results_dir as in fresh_or_published. A folder of fresh results
    may be another profile's: the record beside a table says which."""
    root = Path(results_dir or ROOT / "results")
    return (tables_of(root / profile / stage, variant, seed)
            or tables_of(root / stage, variant, seed))


def tables_of(folder: Path, variant: str, seed: int | None = None) -> list[Path]:
    """The variant's tables in a stage's folder, by seed."""
    named = re.compile(re.escape(variant) + r"-seed(\d+)\.csv")
    found = {int(match[1]): path for path in folder.glob("*.csv")
             if (match := named.fullmatch(path.name))}
    return [found[k] for k in sorted(found) if seed in (None, k)]


def provenance_line(source: Mapping | Iterable[Mapping] | pd.DataFrame) -> str:
    """A caption: profile, variant, seeds with their number n, device, commit, seconds in all.

    source: a record, several, or a table of fresh_or_published. A fresh run's caption differs
    from machine to machine.
    """
    records = source.attrs["records"] if isinstance(source, pd.DataFrame) else source
    records = [records] if isinstance(records, Mapping) else list(records)
    seeds = sorted({record["seed"] for record in records})
    word = "seed" if len(seeds) == 1 else "seeds"
    parts = [f"profile {listed(r['profile'] for r in records)}",
             f"variant {listed(r['variant'] for r in records)}",
             f"{word} {listed(seeds)} (n={len(seeds)})"]
    games = listed("+".join(r["games"]) for r in records)
    if games != "+".join(GAMES):
        parts.append(f"games {games}")
    parts += [f"device {listed((device_of(r) for r in records), '; ')}",
              f"commit {listed(commit_of(r) for r in records)}",
              f"{sum(r['wall_seconds'] for r in records):,.0f} s"]
    return textwrap.fill(", ".join(parts), 76)


def listed(values: Iterable, mark: str = ", ") -> str:
    return mark.join(str(value) for value in dict.fromkeys(values))


def device_of(record: Mapping) -> str:
    """The device that made what a table is about: it may have been measured on another."""
    return record.get("made", {}).get("device") or record["device"]


def commit_of(record: Mapping) -> str:
    state = record["git"]
    name = (state["commit"] or "unknown")[:7]
    return name + (" (dirty)" if state["dirty"] else "")


def summarise(table: pd.DataFrame, metrics: Iterable[str] | None = None) -> pd.DataFrame:
    """One row per number: KEYS, mean over seeds, low and high (95% interval by t), baseline, n,
    and the seeds one by one.

    table: long (runs.COLUMNS). metrics: names, or patterns such as "l{level}_accuracy"; they also
    decide the order. Raises InputError for a metric that is not there, or a seed counted twice.
    """
    table = table.copy(deep=False)
    table.attrs = {}  # records, which pandas would copy at every step
    if metrics is not None:
        table = pd.concat([_rows_of(table, wanted) for wanted in metrics])
    table = table.astype({"step": float, "value": float, "baseline": float})
    if table.duplicated([*KEYS, "seed"]).any():
        raise InputError("a table holds the same metric of the same seed twice")
    rows = []
    for keys, group in table.groupby(KEYS, dropna=False, sort=False):
        values = group["value"].dropna()
        rows.append((*keys, values.mean(), *interval_over_seeds(values), group["baseline"].mean(),
                     len(values), tuple(values)))
    return pd.DataFrame(rows, columns=[*KEYS, "mean", "low", "high", "baseline", "n", "seeds"])


def spread(values, low: float, high: float, digits: int = 3) -> str:
    """How far the mean of values can be trusted, as text: [the interval] where there is one, else
    the values one by one; "" where there is one value."""
    if not math.isnan(low):
        return f"[{number(low, digits)}, {number(high, digits)}]"
    return ", ".join(number(value, digits) for value in values) if len(values) > 1 else ""


def with_spread(mean: str, values, low: float, high: float) -> str:
    """"0.500 [0.400, 0.600]", "0.500 of 0.40, 0.60" or "0.500": a mean as text, and its spread."""
    found = spread(values, low, high, digits=2 if math.isnan(low) else 3)
    return f"{mean} {'' if found.startswith('[') else 'of '}{found}" if found else mean


def _rows_of(table: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """The rows of a metric, or of a pattern of metrics; raises InputError where there are none."""
    found = table[[matches(wanted, name) for name in table["metric"]]]
    if found.empty:
        raise InputError(f"no metric {wanted!r} in this table; there are: "
                         f"{listed(table['metric'])}")
    return found


def pivot(table: pd.DataFrame, metrics: Iterable[str] | None = None, *,
          optional: Iterable[str] = (), digits: int = 3) -> pd.DataFrame:
    """Metrics down, games across; each cell the text "value (baseline)", a mean if seeds > 1.

    The baseline is the best of those of best_baselines, by name where it is not the metric's own.
    optional: metrics that are shown too where the table has them.
    """
    found = summarise(table, _with(metrics, optional, table))
    found = found.assign(label=_labels(found), text=[
        with_baseline(number(mean, digits), value, digits, name=name)
        for mean, (value, name) in zip(found["mean"], best_baselines(found, table))])
    wide = found.pivot(index="label", columns="game", values="text").fillna("")
    wide = wide.loc[found["label"].unique(), [g for g in (*GAMES, "all") if g in wide.columns]]
    if found["n"].max() > 1:
        wide["seeds"] = found.groupby("label")["n"].max()
    return wide.rename_axis(index=None, columns=None)


def over_seeds(table: pd.DataFrame, metrics: Iterable[str] | None = None, *,
               optional: Iterable[str] = (), digits: int = 3) -> pd.DataFrame:
    """Metrics and games down; columns game, mean, SPREAD, baseline, n; text.

    The baseline is the best of those of best_baselines, by name where it is not the metric's own.
    A fresh table has the published mean beside its own, where there is one. optional: metrics that
    are shown too where the table has them, such as those that only long dreams have.
    """
    found = summarise(table, _with(metrics, optional, table))
    bounds = [spread(*row, digits) or "–" for row in zip(found["seeds"], found["low"],
                                                         found["high"])]
    shown_table = pd.DataFrame({
        "game": found["game"], "mean": [number(x, digits) for x in found["mean"]],
        SPREAD: bounds, "baseline": [" ".join(filter(None, (number(value, digits), name)))
                                    for value, name in best_baselines(found, table)],
        "n": found["n"]})
    if "published_as" in table.attrs:
        shown_table["published"] = _published_means(table.attrs["published_as"], found, digits)
    return shown_table.set_axis(_labels(found), axis=0)


def _with(metrics, optional: Iterable[str], table: pd.DataFrame) -> list[str] | None:
    """metrics and those optional ones that the table has; None, all of them, for None."""
    there = [metric for metric in optional if (table["metric"] == metric).any()]
    return [*metrics, *there] if metrics else metrics


def _without_method(name: Name) -> Name:
    """The quantity that a trivial method's row is about."""
    return replace(name, words=tuple(word for word in name.words if word not in TRIVIAL))


def best_baselines(found: pd.DataFrame, table: pd.DataFrame) -> list[tuple[float, str]]:
    """For each row of found, a summary of table: the best value among its own baseline and the
    TRIVIAL methods that the table has of the same quantity, and the method's name, "" where it is
    the row's own; where neither is better, its own.

    An own baseline of BEST_OF_ROWS is called by the one method that gave it, if it was one.
    """
    wanted = {parsed(metric) for metric in found["metric"]}
    methods = [name for name in dict.fromkeys(table["metric"])
               if any(word in TRIVIAL for word in parsed(name).words)
               and _without_method(parsed(name)) in wanted]
    others = summarise(table, methods) if methods else found[:0]
    beside = {}
    for row in others.to_dict("records"):
        name = parsed(row["metric"])
        left = _without_method(name)
        (method,) = set(name.words) - set(left.words)
        place = *(str(row[key]) for key in KEYS if key != "metric"), left
        beside.setdefault(place, []).append((row["mean"], TRIVIAL[method]))
    best = []
    for row in found.to_dict("records"):
        place = *(str(row[key]) for key in KEYS if key != "metric"), parsed(row["metric"])
        better = {"higher": max, "lower": min}.get(METRICS[key_of(row["metric"])].better)
        known = [(row["baseline"], ""), *beside.get(place, [])]
        known = [one for one in known if not math.isnan(one[0])]
        declared = METRICS[key_of(row["metric"])].baseline
        if declared in BEST_OF_ROWS and baseline_words(declared, table) == declared:
            known = known[::-1]  # among equals the first is taken: one with a name
        best.append(better(known, key=lambda one: one[0]) if better and known
                    else (row["baseline"], ""))
    return best


def _published_means(names, found: pd.DataFrame, digits: int) -> list[str]:
    """The published mean of each row of a summary, with its split where that is another; a dash
    where nothing is published."""
    try:
        published = summarise(fresh_or_published(None, *names))
    except InputError:
        return ["–"] * len(found)
    keys = [key for key in KEYS if key not in ("variant", "split")]
    rows = {(*map(str, row[keys]), row["split"]): row["mean"] for _, row in published.iterrows()}
    texts = []
    for _, row in found.iterrows():
        place = tuple(map(str, row[keys]))
        own, held_out = row["split"], ("test", "val")
        others = held_out if own in held_out else ()
        split = next((split for split in (own, *others) if (*place, split) in rows), own)
        text = number(rows.get((*place, split)), digits)
        texts.append(text if split == own else f"{text} ({split})")
    return texts


def _labels(found: pd.DataFrame) -> list[str]:
    """Metric names, with whatever else tells rows of the same metric apart."""
    labels = []
    for row in found.to_dict("records"):
        same = found[found["metric"] == row["metric"]]
        extra = [str(row[key]) for key in ("stage", "variant", "split") if same[key].nunique() > 1]
        if not math.isnan(row["step"]):
            extra.append(f"step {row['step']:g}")
        labels.append(", ".join([row["metric"], *extra]))
    return labels


def with_baseline(text: str, baseline, digits: int = 3, *, name: str = "") -> str:
    """"0.50 (0.40 pixels)", "0.50 (0.40)", "0.50": a value as text and what stands beside it."""
    if pd.isna(baseline):
        return text
    return f"{text} ({' '.join(filter(None, (number(baseline, digits), name)))})"


def costs(results_dir, profile: str) -> pd.DataFrame:
    """What measuring each stage of base took, from the provenance beside its tables, as text.

    Stages beside the chain are left out where nobody made them; a missing one of the chain raises
    InputError.
    """
    rows = []
    for stage in config.STAGES:
        if stage in config.BESIDE_CHAIN and not has_table(results_dir, profile, stage):
            continue
        for record in fresh_or_published(results_dir, profile, stage).attrs["records"]:
            rows.append({"stage": stage, "seed": record["seed"],
                         "making (s)": number(record["made_seconds"]),
                         "measuring (s)": number(record["wall_seconds"]),
                         "peak memory (MB)": number(record["peak_memory_mb"]),
                         "device": device_of(record), "commit": commit_of(record)})
    return pd.DataFrame(rows)


def seed_epoch_table(history: list[dict], *, steps_per_epoch: float | None = None,
                     num_rows: int = 8, digits: int = 3) -> pd.DataFrame:
    """The seed's table of training: loss over codes and accuracy per level, held out, as text.

    history: the world model's; evaluations are thinned evenly to num_rows, the last one kept.
    steps_per_epoch turns steps into epochs.
    """
    seen = [entry for entry in history if "val_codes" in entry]
    count = min(num_rows, len(seen))
    seen = [seen[(i + 1) * len(seen) // count - 1] for i in range(count)]
    unit = "epoch" if steps_per_epoch else "step"
    columns = {"training loss": "codes", "without dropout": "train_codes",
               "held-out loss": "val_codes",
               **{f"L{level} accuracy": f"val_l{level}_accuracy" for level in range(3)}}
    return pd.DataFrame(
        {name: [number(entry[key], digits) for entry in seen] for name, key in columns.items()},
        index=[f"{unit} {number(e['step'] / (steps_per_epoch or 1), digits)}" for e in seen])
