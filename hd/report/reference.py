"""Other people's figures: anchors from papers and repositories, and what the seed document claims.

results/reference/ holds both with source and mark; nothing here was measured by this project.
"""

from __future__ import annotations

import pandas as pd

from hd import config
from hd.report import tables as report
from hd.run.storage import ROOT

FOLDER = ROOT / "results" / "reference"
OURS = {  # claim -> the stage and metric of our tables that measure the same quantity
    "C02": ("encoder", "temporal_consistency"), "C03": ("encoder", "diversity"),
    "C04": ("encoder", "state_correlation"), "C09": ("tokenizer", "l{level}_perplexity"),
    "C11": ("tokenizer", "l{level}_game_information"), "C12": ("tokenizer", "l0_usage"),
    "C16": ("world_model", "l{level}_accuracy"), "C23": ("policy", "real_return"),
}


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
    spread = [f" ± {report.number(sd)}" if pd.notna(sd) else "" for sd in table["sd"]]
    text = [report.number(value) + more for value, more in zip(table["value"], spread)]
    wide = table.assign(text=text).pivot_table(
        index=["method", "mark"], columns="metric", values="text", aggfunc="first", sort=False)
    return wide.fillna("–").reset_index("mark").rename_axis(index=None, columns=None)


def anchor(section: str, method: str, metric: str) -> float:
    """One number of anchors.csv; raises KeyError where it has none."""
    table = pd.read_csv(FOLDER / "anchors.csv").set_index(["section", "method", "metric"])
    return float(table.loc[(section, method, metric), "value"])


def seed_claims() -> pd.DataFrame:
    """The seed document's claims: one row each, with the figures it prints (its last epoch's)."""
    table = pd.read_csv(FOLDER / "seed.csv")
    table = table[table["id"].fillna("").str.fullmatch(r"C\d\d")]
    table = table[table["epoch"].isna() | (table["epoch"] == table["epoch"].max())]
    text = [f"{metric} {value:.8g}" if pd.notna(value) else metric
            for metric, value in zip(table["metric"], table["value"])]
    table = table.assign(figures=text).groupby(["id", "stage"], sort=False)["figures"]
    return table.agg("; ".join).reset_index().set_index("id").rename_axis(index=None)


def claims_measured(results_dir, profile: str) -> pd.DataFrame:
    """For each claim that our tables measure: metric, game, mean, 95% interval, baseline, n."""
    parts = []
    for claim, (stage, metric) in OURS.items():
        table = report.fresh_or_published(results_dir, profile, stage)
        found = report.over_seeds(table, [metric])
        parts.append(found.reset_index(names="metric").assign(claim=claim))
    return pd.concat(parts).set_index("claim").rename_axis(index=None)


def seed_value(claim: str, metric: str) -> float:
    """The number that the seed document prints for a claim (its last epoch's); nan for words only.

    Raises KeyError for a metric that seed.csv does not hold.
    """
    table = pd.read_csv(FOLDER / "seed.csv")
    rows = table[(table["id"] == claim) & (table["metric"] == metric)]
    if rows.empty:
        raise KeyError(f"{claim} {metric}")
    return float(rows.sort_values("epoch")["value"].iloc[-1])
