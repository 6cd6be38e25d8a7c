"""Verdicts by rule: from measured numbers to reproduced, artefact, not reproduced.

Nothing is measured here and no verdict is typed: each follows from numbers by `judge`, `exactly`
or the rule that a claim's own row states in its definition.
"""

from __future__ import annotations

import math
from pathlib import Path

from hd.audit.evidence import Found

REPRODUCED, ARTEFACT, NOT_REPRODUCED = "reproduced", "artefact", "not reproduced"
FIRST, UNTESTED = "first measured here", "cannot be tested here, because "
TOLERANCE = 0.1  # of the seed's number: what counts as the same number
NOTEBOOKS = {"encoder": "report/representation", "tokenizer": "report/representation",
             "world_model": "report/dynamics", "imagination": "report/dynamics",
             "policy": "report/control", "transfer": "report/transfer",
             "entropy_floor": "report/dynamics", "frames": "report/performance"}


def judge(seed: float, *, protocol: Found, honest: Found, better: str) -> str:
    """reproduced: the seed's protocol gives its number (within TOLERANCE, or better), the honest
    one beats its baseline, and the baseline does not reach the seed's number. artefact: it gives
    the number, but so does a method without understanding, or the honest protocol takes it away.
    not reproduced: the number does not come out."""
    sign, slack = (1 if better == "higher" else -1), TOLERANCE * abs(seed)
    if sign * (protocol.mean - seed) < -slack:
        return NOT_REPRODUCED
    above = honest.against_own_baseline()
    wins = above.is_above() if sign > 0 else above.is_below()
    if len(honest.values) < 2:
        wins = sign * above.mean > 0
    baseline_reaches = sign * (honest.baseline - seed) >= -slack
    return REPRODUCED if wins and not baseline_reaches else ARTEFACT


def exactly(seed: float, found: Found) -> str:
    """For counts: reproduced within TOLERANCE."""
    return REPRODUCED if abs(found.mean - seed) <= TOLERANCE * abs(seed) else NOT_REPRODUCED


def entry(metric: str, definition: str, honest: Found | None, *, verdict: str,
          seed: float = math.nan, protocol: Found | None = None,
          page: str = "") -> dict | None:
    """A row of the audit's table without id and claim; None where nothing was measured."""
    if honest is None:
        return None
    low, high = honest.bounds
    stage = honest.tables[0].split("/")[2]
    ablated = any("." in Path(name).stem.split("-seed")[0] for name in honest.tables)
    return {"metric": metric, "definition": definition, "seed_value": seed,
            "ours_seed_protocol": protocol.mean if protocol else math.nan,
            "ours_honest": honest.mean, "baseline": honest.baseline, "n": len(honest.values),
            "ci_low": low, "ci_high": high, "verdict": verdict, "profile": honest.profile,
            "device": honest.device,
            "evidence": " ".join(dict.fromkeys((*honest.tables,
                                                *(protocol.tables if protocol else ())))),
            "notebook": page or ("report/ablations" if ablated else NOTEBOOKS[stage])}
