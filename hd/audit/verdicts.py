"""Verdicts by rule: from measured numbers to reproduced, artefact, not reproduced, undecided.

Nothing is measured here and no verdict is typed: each follows from numbers by `judge`, `exactly`,
`by_difference` or the rule that a claim's own row states in its definition.
"""

from __future__ import annotations

import math

from hd.audit.evidence import Measurement

REPRODUCED, ARTEFACT, NOT_REPRODUCED = "reproduced", "artefact", "not reproduced"
UNDECIDED = "undecided"  # a difference on one seed: there is no interval to judge it by
FIRST, UNTESTED = "first measured here", "cannot be tested here, because "
TOLERANCE = 0.1  # of the seed's number: what counts as the same number
NOTEBOOKS = {"encoder": "report/representation", "tokenizer": "report/representation",
             "world_model": "report/dynamics", "imagination": "report/dynamics",
             "policy": "report/control", "transfer": "report/transfer",
             "entropy_floor": "report/dynamics", "frames": "report/performance"}


def by_difference(gap: Measurement, better: str, *, clear: str = REPRODUCED,
                  unclear: str = NOT_REPRODUCED) -> str:
    """The one rule for differences over seeds; better: "higher" or "lower".

    clear where the whole interval of the gap lies on the better side of 0, unclear where it does
    not, undecided where fewer than two seeds have the difference.
    """
    if len(gap.values) < 2:
        return UNDECIDED
    low, high = gap.bounds
    is_clear = low > 0 if better == "higher" else high < 0
    return clear if is_clear else unclear


def judge(seed: float, *, protocol: Measurement, honest: Measurement, better: str) -> str:
    """A claim that has a number, by the seed's protocol and by an honest one.

    not reproduced: the seed's protocol does not give its number (within TOLERANCE, or better).
    artefact: it does, but its own baseline reaches that number too, or the honest protocol does
    not clearly beat its baseline. reproduced: it clearly does; undecided: on one seed.
    """
    sign, slack = (1 if better == "higher" else -1), TOLERANCE * abs(seed)
    if sign * (protocol.mean - seed) < -slack:
        return NOT_REPRODUCED
    if sign * (protocol.baseline - seed) >= -slack:
        return ARTEFACT
    return by_difference(honest.above_baseline(), better, unclear=ARTEFACT)


def exactly(seed: float, found: Measurement) -> str:
    """For counts: reproduced within TOLERANCE."""
    return REPRODUCED if abs(found.mean - seed) <= TOLERANCE * abs(seed) else NOT_REPRODUCED


def entry(metric: str, definition: str, honest: Measurement | None, *, verdict: str,
          seed: float = math.nan, protocol: Measurement | None = None,
          page: str = "") -> dict | None:
    """A row of the audit's table without id and claim; None where nothing was measured.

    page: where it is shown; by default that of the first table's stage, or of the ablations.
    """
    if honest is None:
        return None
    low, high = honest.bounds
    is_ablated = any("." in source.variant for source in honest.sources)
    paths = honest.paths + (protocol.paths if protocol else [])
    return {"metric": metric, "definition": definition, "seed_value": seed,
            "ours_seed_protocol": protocol.mean if protocol else math.nan,
            "ours_honest": honest.mean, "baseline": honest.baseline, "n": len(honest.values),
            "ci_low": low, "ci_high": high, "verdict": verdict, "profile": honest.profile,
            "device": honest.device, "evidence": " ".join(dict.fromkeys(paths)),
            "notebook": page or ("report/ablations" if is_ablated
                                 else NOTEBOOKS[honest.sources[0].stage])}
