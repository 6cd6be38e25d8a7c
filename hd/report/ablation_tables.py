"""What the ablations' published tables say, for the page that shows all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from hd.ablations import ABLATIONS
from hd.config import GAMES, InputError
from hd.report.tables import (
    TITLES,
    best_baselines,
    device_of,
    listed,
    load_with_record,
    number,
    summarise,
    tables_of,
    with_spread,
)
from hd.report.words import fold, in_words
from hd.run.intervals import corrected, interval_over_seeds, p_value
from hd.run.storage import ROOT

ANOTHER = 0.05  # a share: baselines that differ by less are those of other seeds


def arms(ablation: str, profile: str, *, stage: str = "",
         results_dir: Path | None = None) -> pd.DataFrame:
    """The tables of base and of every published arm, one long table; empty without any arm.

    Beside the columns of a table is the device of each. stage: that which the ablation measures, or
    another. An ablation that was run on one game alone is found under that game. Base is left out
    where it was judged on another split than the arms, and of its seeds those that no arm has.
    """
    chosen, root = ABLATIONS[ablation], Path(results_dir or ROOT / "results")
    stage, tables = stage or chosen.measure, []
    of_games = ["", *(f"-{game}" for game in GAMES)]  # at the end of a table's name
    for games in of_games:
        found = [table for arm in chosen.arms
                 for table in _tables(root, profile, stage, f"{ablation}.{arm}{games}")]
        judged = set().union(*map(_judged_on, found))
        seeds = {seed for table in found for seed in table["seed"]}
        tables += [table for table in _tables(root, profile, stage, f"base{games}")
                   if _judged_on(table) <= judged and seeds.issuperset(table["seed"])] + found
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _tables(root: Path, profile: str, stage: str, name: str) -> list[pd.DataFrame]:
    found = (load_with_record(path) for path in tables_of(root / profile / stage, name))
    return [table.assign(device=device_of(record)) for table, record in found]


def _judged_on(table: pd.DataFrame) -> set[str]:
    return {"val", "test"}.intersection(table["split"])


def compared(ablation: str, profile: str, *, results_dir: Path | None = None) -> pd.DataFrame:
    """A row per metric and game, a column per arm, as text: mean, seeds or [95% interval].

    Metrics of further stages come last, their names after the stage's. The baseline is base's (the
    first arm's, where base is missing), or a better trivial one by name; an arm with another one,
    such as an arm with codes of its own, has it in brackets. Raises InputError where no arm is
    published.
    """
    chosen, found = ABLATIONS[ablation], []
    for stage, metrics in {chosen.measure: chosen.metrics, **chosen.of_also}.items():
        table = arms(ablation, profile, stage=stage, results_dir=results_dir)
        if table.empty:
            of_one = f" --game {GAMES[0]}" if chosen.measure == "agent" else ""
            raise InputError(
                f"no arm of {ablation} is published at profile {profile}; make them: python -m hd "
                f"run 07_ablation --profile {profile}{of_one} -p ablation {ablation}")
        rows = summarise(table, metrics)
        rows["guess"], rows["by"] = zip(*best_baselines(rows, table))
        if stage != chosen.measure:
            rows["metric"] = f"{stage}: " + rows["metric"]
        found.append(rows)
    found = pd.concat(found)
    found = found[found["game"].isin([*GAMES, "all"])]
    names = found["variant"].str.removeprefix(f"{ablation}.")
    # Base comes first, or else an arm.
    first = found.drop_duplicates(["metric", "game"]).set_index(["metric", "game"])
    found = found.assign(arm=names, text=[_cell(row, first["guess"][row["metric"], row["game"]])
                                          for row in found.to_dict("records")])
    wide = found.pivot_table(index=["metric", "game"], columns="arm", values="text",
                             aggfunc="first", sort=False).fillna("–")
    wide["baseline"] = [_baseline(first.loc[key]) for key in wide.index]
    wide["seeds"] = found.groupby(["metric", "game"])["n"].min()
    return wide.rename_axis(columns=None).reset_index("game").rename_axis(index=None)


def differences(ablations: Iterable[str], profile: str, metric: str, *,
                results_dir: Path | None = None) -> pd.DataFrame:
    """How far arms are from base in one metric, seed by seed: a row per arm and game with ablation,
    arm, game, device (its own where that is not base's, else ""), values and gaps (by seed), n
    (seeds that both have), mean of the gaps, low and high (95% interval by t) and p (corrected by
    Holm's method over all rows; NaN where seeds are too few). The largest mean first; empty without
    any arm."""
    rows = []
    for name in ablations:
        found = arms(name, profile, results_dir=results_dir)
        found = found[found["metric"] == metric] if len(found) else found
        for game, own in found.groupby("game") if len(found) else ():
            wide = own.pivot_table(index="seed", columns="variant", values="value")
            devices = own.groupby("variant")["device"].agg(listed)
            if "base" not in wide:  # see arms
                continue
            for variant in wide.columns.drop("base"):
                gaps = (wide[variant] - wide["base"]).dropna()
                low, high = interval_over_seeds(gaps)
                other = devices[variant] != devices["base"]
                rows.append({"ablation": name, "arm": variant.removeprefix(f"{name}."),
                             "game": game, "device": devices[variant] if other else "",
                             "values": wide[variant].dropna().to_dict(),
                             "gaps": gaps.to_dict(), "n": len(gaps), "mean": gaps.mean(),
                             "low": low, "high": high, "p": p_value(gaps)})
    columns = ["ablation", "arm", "game", "device", "values", "gaps", "n", "mean", "low", "high",
               "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p"] = corrected(table["p"])
    return table.sort_values("mean", ascending=False, kind="stable", ignore_index=True)


def _cell(row: Mapping, guess: float) -> str:
    """The value, and its own baseline where that is clearly not the row's, guess."""
    own = abs(row["guess"] - guess) > ANOTHER * abs(guess)
    return (with_spread(number(row["mean"]), row["seeds"], row["low"], row["high"])
            + (f" ({_baseline(row)})" if own else ""))


def _baseline(row: Mapping) -> str:
    return " ".join(filter(None, (number(row["guess"]), row["by"])))


def published(profile: str, *, results_dir: Path | None = None) -> list[str]:
    """The ablations of which at least one arm is published."""
    return [name for name in ABLATIONS
            if not arms(name, profile, results_dir=results_dir).empty]


def show_all(profile: str, *, results_dir: Path | None = None) -> None:
    """Each published ablation under its question: what it is about first, in words, and all that
    was measured behind a click."""
    from IPython.display import Markdown, display
    for name in published(profile, results_dir=results_dir):
        display(Markdown(f"## {name}: {ABLATIONS[name].question}"))
        table = compared(name, profile, results_dir=results_dir)
        first = table[table.index == table.index[0]]
        display(first.assign(game=[TITLES[game] for game in first["game"]])
                .set_axis(map(in_words, first.index), axis=0))
        if len(table) > len(first):
            fold(table, "All that was measured, by the names in results/")


def show_folded(ablations: Iterable[str], profile: str, *, results_dir: Path | None = None) -> None:
    """Each published one of these ablations, its whole table behind a click under its question."""
    for name in published(profile, results_dir=results_dir):
        if name in ablations:
            fold(compared(name, profile, results_dir=results_dir), ABLATIONS[name].question)
