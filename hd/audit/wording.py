"""The audit in words: rows of results/claims.csv as the claims page and the headline show them."""

from __future__ import annotations

import contextlib
import html
import math
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hd.audit import claims
from hd.audit.verdicts import UNTESTED, share
from hd.config import GAMES, InputError
from hd.report.tables import SPREAD, TITLES, number, spread
from hd.report.words import in_words

SPLITS = {"val": ", validation episodes", "test": ", test episodes"}


def in_markdown(results: Path | None = None) -> str:
    """The 25 verdicts as a markdown table; empty where no claim has a number yet."""
    found = claims.summary(claims.table(results))
    if found["verdict"].str.startswith(UNTESTED).all():
        return ""
    return "\n".join(["**The audit**: 25 claims of the seed document, judged by rule from the "
                      "published tables", "", "| claim | what it says | verdict |", "|---|---|---|",
                      *(f"| {name} | {row['claim']} | {row['verdict']} |"
                        for name, row in found.iterrows())])


def in_short(found: pd.DataFrame) -> pd.DataFrame:
    """The 25 leading rows as text, indexed by claim: the verdict and the numbers it rests on."""
    leading = found.drop_duplicates("id")
    directions = leading["direction"].map(lambda text: f" ({text})" if text else "")
    shown = pd.DataFrame({
        "verdict": leading["verdict"] + directions, "seed": leading["seed_value"].map(number),
        "here": [_said(row) for row in leading.to_dict("records")],
        "n": leading["n"].astype(int), "trained": leading["trained"].map(share)})
    return shown.set_axis(leading["id"] + ": " + leading["claim"], axis=0).rename_axis(index=None)


def _said(row: Mapping) -> str:
    """A row's numbers as words: what, ours, in brackets what stands beside it, by its protocol."""
    if math.isnan(row["ours_honest"]):
        return "–"
    named_beside = re.search("baseline: ([^;]*)(; by its protocol ([^;]*))?", row["definition"])
    words, of_protocol = named_beside.group(1, 3) if named_beside else ("", "")
    text = (f"{_in_words(row['metric'])}: "
            f"{_beside(row['ours_honest'], row['baseline'], words)}")
    if not math.isnan(row["ours_seed_protocol"]):
        beside = _beside(row["ours_seed_protocol"], row["protocol_baseline"], of_protocol or "")
        text += f"; by its protocol {beside}"
    return f"{text} ({row['profile']}{SPLITS.get(row['split'], '')})"


def _beside(value: float, baseline: float, words: str = "") -> str:
    before = f"{words}: " if words else ""
    return number(value) + ("" if math.isnan(baseline) else f" ({before}{number(baseline)})")


def _in_words(metric: str) -> str:
    """A row's metric, of which the part before a comma is a metric's name or words already."""
    name, comma, more = metric.partition(", ")
    with contextlib.suppress(InputError):  # words already
        if re.fullmatch(r"\w+(\[[^]]*\])*", name):
            name = in_words(name)
    name = name.replace("_", " ")
    for game in GAMES:
        more = re.sub(rf"\b{game}\b", TITLES[game], more)
    return f"{name}{comma}{more}"


def in_full(found: pd.DataFrame) -> str:
    """HTML: for each claim a line with its verdict that unfolds to all its rows."""
    parts = []
    for name, rows in found.groupby("id", sort=False):
        first = rows.iloc[0]
        heading = f"{name}: {first['claim']}: {first['verdict']} ({len(rows)} rows)"
        parts.append(f"<details><summary>{html.escape(heading)}</summary>"
                     f"{_numbers(rows).to_html(index=False, border=0)}</details>")
    return "\n".join(parts)


def _numbers(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the audit as text: what was compared, the numbers, and where they stand."""
    spreads = [spread([*map(float, seeds.split())], low, high) or "–" for seeds, low, high
               in zip(rows["seeds"], rows["ci_low"], rows["ci_high"])]
    return pd.DataFrame({
        "metric": rows["metric"], "seed": [number(x) for x in rows["seed_value"]],
        "its protocol": [number(x) for x in rows["ours_seed_protocol"]],
        "honest": [number(x) for x in rows["ours_honest"]], SPREAD: spreads,
        "baseline": [number(x) for x in rows["baseline"]], "n": rows["n"].astype(int),
        "trained": [share(x) for x in rows["trained"]], "verdict": rows["verdict"],
        "points the claim's way": rows["direction"], "what is compared": rows["definition"],
        "profile": rows["profile"], "split": rows["split"], "device": rows["device"],
        "tables": rows["evidence"], "page": rows["notebook"]})
