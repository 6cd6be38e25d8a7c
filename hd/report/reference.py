"""Other people's figures: anchors from papers and repositories, and what the seed document claims.

results/reference/ holds both with source and mark; nothing here was measured by this project.
"""

from __future__ import annotations

import pandas as pd

from hd import config
from hd.report.tables import number
from hd.run.storage import ROOT

FOLDER = ROOT / "results" / "reference"


def anchors(section: str, games=None) -> pd.DataFrame:
    """A section of anchors.csv as text: one row per method, a column per game or metric.

    Marks: V read in the primary source, R recomputed from raw files, S from a survey. Raises
    InputError for an unknown section.
    """
    table = pd.read_csv(FOLDER / "anchors.csv")
    config.allowed("section of anchors", section, table["section"].unique().tolist())
    table = table[table["section"] == section]
    if games is not None:
        table = table[table["metric"].isin(games)]
    spread = [f" ± {number(sd)}" if pd.notna(sd) else "" for sd in table["sd"]]
    text = [number(value) + more for value, more in zip(table["value"], spread)]
    wide = table.assign(text=text).pivot_table(
        index=["method", "mark"], columns="metric", values="text", aggfunc="first", sort=False)
    return wide.fillna("–").reset_index("mark").rename_axis(index=None, columns=None)


def anchor(section: str, method: str, metric: str) -> float:
    """One number of anchors.csv; raises KeyError where it has none."""
    table = pd.read_csv(FOLDER / "anchors.csv").set_index(["section", "method", "metric"])
    return float(table.loc[(section, method, metric), "value"])


def anchor_interval(section: str, method: str, metric: str) -> tuple[float, float]:
    """The 95% interval over seeds beside one number of anchors.csv, as published or recomputed; the
    number twice where there is none. Raises KeyError where it has no number."""
    table = pd.read_csv(FOLDER / "anchors.csv").set_index(["section", "method", "metric"])
    row = table.loc[(section, method, metric)]
    return tuple(row[["ci_lo", "ci_hi"]].fillna(row["value"]).astype(float))


def seed_value(claim: str, metric: str) -> float:
    """The number that the seed document prints for a claim (its last epoch's); nan for words only.

    Raises KeyError for a metric that seed.csv does not hold.
    """
    table = pd.read_csv(FOLDER / "seed.csv")
    rows = table[(table["id"] == claim) & (table["metric"] == metric)]
    if rows.empty:
        raise KeyError(f"{claim} {metric}")
    return float(rows.sort_values("epoch")["value"].iloc[-1])
