"""The audit: every claim of the seed document with its numbers, ours, and a verdict by rule.

results/claims.csv is written from published tables by `python -m hd publish`; the rules are those
of hd.audit.verdicts, and each row's definition says what was compared with what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hd.audit import dynamics_claims as about_dynamics
from hd.audit import representation_claims as about_codes
from hd.audit.evidence import Tables
from hd.audit.verdicts import UNTESTED
from hd.report import tables as report
from hd.run.storage import ROOT, write_atomically

COLUMNS = ("id", "claim", "metric", "definition", "seed_value", "ours_seed_protocol",
           "ours_honest", "baseline", "n", "ci_low", "ci_high", "verdict", "profile", "device",
           "evidence", "notebook")
PROFILES = ("paper", "desk", "audit")  # largest first; the first that has a number leads


@dataclass(frozen=True)
class Claim:
    """One claim in our words; rows(tables of one profile) -> its rows, the leading one first."""

    id: str
    statement: str
    rows: Callable[[Tables], Iterator[dict | None]]
    missing: str = "its runs are not published"  # why there is no number, where there is none


_POLICIES = {"base": "pong", "policy_horizon.short": "pong", "policy_horizon.long": "pong",
             "policy_features.hidden": "pong", "policy_game.breakout": "breakout",
             "policy_game.ms_pacman": "ms_pacman"}
_NO_WEIGHTS = "DINOv2's weights are not on disk (the loader reads them from HD_DINOV2)"
CLAIMS = (
    Claim("C01", "The encoder has 1.88M parameters",
          about_codes.parameters("C01", "encoder")),
    Claim("C02", "Embeddings of consecutive frames lie close together",
          about_codes.temporal_consistency),
    Claim("C03", "Embeddings stay diverse: no collapse", about_codes.diversity),
    Claim("C04", "Embeddings correlate with the game's state, 3 times as much as DINOv2's",
          about_codes.state_correlation),
    Claim("C05", "Frozen DINOv2 sees motion but not position", about_codes.dinov2, _NO_WEIGHTS),
    Claim("C06", "One encoder serves three games", about_codes.one_encoder),
    Claim("C07", "A single level of 256 codes is fully used and smooth in time",
          about_codes.single_level),
    Claim("C08", "Projecting 384 columns to 128 before quantization loses codes",
          about_codes.projection),
    Claim("C09", "Three residual levels are fully used", about_codes.three_levels),
    Claim("C10", "Commitment costs 0.05/0.25/0.60 are what makes levels differ",
          about_codes.commitment),
    Claim("C11", "Coarse codes are shared between games, finer ones are the games' own",
          about_codes.sharing),
    Claim("C12", "One codebook for three games is fully used", about_codes.joint_codebook),
    Claim("C13", "The world model has about 11M parameters",
          about_codes.parameters("C13", "world_model", "parameters[seed sizes]")),
    Claim("C14", "The hierarchical mask helps prediction", about_dynamics.masks),
    Claim("C15", "No window crosses an episode's end; games share windows 38/27/35%",
          about_dynamics.windows),
    Claim("C16", "The next codes are predicted with 99.7/98.3/98.5% accuracy",
          about_dynamics.overlap),
    Claim("C17", "Validation loss below training loss comes from dropout, nothing is overfitted",
          about_dynamics.dropout),
    Claim("C18", "The finest level is easier to predict than the middle one",
          about_dynamics.inversion),
    Claim("C19", "The error that remains is the game's own randomness", about_dynamics.floor),
    Claim("C20", "Loss weights 1.0/0.5/0.1 help the coarse level", about_dynamics.loss_weights),
    Claim("C21", "Training takes 7 hours on a T4", about_dynamics.cost, "no T4 is at hand"),
    Claim("C22", "All codes stay in use while the world model trains",
          about_dynamics.frozen_codebooks),
    Claim("C23", "REINFORCE in the frozen world model plays Pong",
          about_dynamics.returns(_POLICIES)),
    Claim("C24", "PPO in the frozen world model plays Pong",
          about_dynamics.returns({"policy.ppo": "pong"})),
    Claim("C25", "Hierarchical codes carry over from game to game", about_dynamics.transfer),
)


def table(results: Path | None = None) -> pd.DataFrame:
    """The audit's table from the published tables below results: COLUMNS, all claims in order."""
    rows = []
    for claim in CLAIMS:
        found = [row for profile in PROFILES for row in claim.rows(Tables(profile, results)) if row]
        if not found:
            found = [dict.fromkeys(COLUMNS, math.nan) | {
                "metric": "", "definition": "", "verdict": UNTESTED + claim.missing, "n": 0,
                "profile": "", "device": "", "evidence": "", "notebook": ""}]
        rows += [{**row, "id": claim.id, "claim": claim.statement} for row in found]
    return pd.DataFrame(rows)[list(COLUMNS)]


def write(root: Path = ROOT) -> None:
    """results/claims.csv from the published tables of a repository."""
    found = table(root / "results")
    write_atomically(root / "results" / "claims.csv",
                     lambda aside: found.to_csv(aside, index=False, float_format="%.8g"))


def load(root: Path = ROOT) -> pd.DataFrame:
    """results/claims.csv as it is published."""
    text = ["metric", "definition", "profile", "device", "evidence", "notebook"]
    stored = pd.read_csv(root / "results" / "claims.csv", dtype=dict.fromkeys(text, str))
    return stored.fillna(dict.fromkeys(text, ""))


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: the leading row's verdict, indexed by id."""
    leading = found.groupby("id", sort=False).first()
    return leading[["claim", "verdict"]].rename_axis(index=None)


def counted(results: Path | None = None) -> dict[str, int]:
    """How many claims got each verdict, without its reason; empty where no claim has a number."""
    verdicts = summary(table(results))["verdict"].str.split(",").str[0]
    tested = ~verdicts.str.startswith(UNTESTED.split(",")[0])
    return verdicts.value_counts().to_dict() if tested.any() else {}


def in_markdown(results: Path | None = None) -> str:
    """The 25 verdicts as a markdown table; empty where no claim has a number yet."""
    found = summary(table(results))
    if found["verdict"].str.startswith(UNTESTED).all():
        return ""
    return "\n".join(["**The audit**: 25 claims of the seed document, judged by rule from the "
                      "published tables", "", "| claim | what it says | verdict |", "|---|---|---|",
                      *(f"| {name} | {row['claim']} | {row['verdict']} |"
                        for name, row in found.iterrows())])


def agrees(stored: pd.DataFrame, results: Path | None = None) -> bool:
    """Whether the stored table is what the published tables give: words equal, numbers to 1e-7."""
    fresh = table(results)
    if len(stored) != len(fresh):
        return False
    words = ["id", "claim", "metric", "definition", "verdict", "evidence", "notebook"]
    numbers = ["seed_value", "ours_seed_protocol", "ours_honest", "baseline", "n", "ci_low"]
    same = (stored[words].fillna("") == fresh[words].fillna("")).all(axis=None)
    return bool(same) and np.allclose(stored[numbers].astype(float), fresh[numbers].astype(float),
                                      rtol=1e-7, equal_nan=True)


def numbers(found: pd.DataFrame) -> pd.DataFrame:
    """The audit's numbers as text, a row each, indexed by claim."""
    number = report.number
    shown = pd.DataFrame({
        "metric": found["metric"], "seed": [number(x) for x in found["seed_value"]],
        "its protocol": [number(x) for x in found["ours_seed_protocol"]],
        "honest": [number(x) for x in found["ours_honest"]],
        "95% interval": [f"{number(low)} to {number(high)}" if n > 1 else "–" for low, high, n in
                         zip(found["ci_low"], found["ci_high"], found["n"])],
        "baseline": [number(x) for x in found["baseline"]], "n": found["n"].astype(int),
        "profile": found["profile"], "verdict": found["verdict"]})
    return shown.set_axis(found["id"], axis=0).rename_axis(index=None)


def sources(found: pd.DataFrame) -> pd.DataFrame:
    """What each row compares, on which device, from which tables, on which page."""
    shown = found[["metric", "definition", "device", "evidence", "notebook"]]
    return shown.set_axis(found["id"], axis=0).rename_axis(index=None)
