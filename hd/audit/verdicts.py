"""Verdicts by rule: from measured numbers to reproduced, artefact, not reproduced, undecided.

Nothing is measured here and no verdict is typed: each follows from numbers by `judge`, `exactly`,
a `Difference` or the rule that a claim's own row states in its definition. A verdict's first words,
up to a comma, are its kind; what follows is why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hd.audit.evidence import Measurement
from hd.run.intervals import FEWEST_SEEDS, SIGNIFICANT, corrected, p_value

REPRODUCED, ARTEFACT, NOT_REPRODUCED = "reproduced", "artefact", "not reproduced"
UNDECIDED = "undecided"  # a difference that is not shown, or on fewer than FEWEST_SEEDS
TOO_FEW = f"where {FEWEST_SEEDS} are needed"  # ends a verdict that lacks seeds
PROVISIONAL = "provisional"  # on less training than the seed's
FIRST, UNTESTED = "first measured here", "cannot be tested here, because "
BY_CONSTRUCTION = ", by construction"
ALONE = "; the difference alone: "  # what it would decide, were the models good enough
TOLERANCE = 0.1  # of the seed's number: what counts as the same number
ENOUGH = 0.9  # of the examples that the seed trained on
NOTEBOOKS = {"encoder": "report/representation", "tokenizer": "report/representation",
             "world_model": "report/dynamics", "imagination": "report/dynamics",
             "policy": "report/control", "transfer": "report/transfer",
             "entropy_floor": "report/dynamics", "frames": "report/performance"}


@dataclass(frozen=True, eq=False)
class Difference:
    """A verdict that rests on a difference over seeds; better: "higher" or "lower".

    clear where the mean is better than 0 by Student's t, against where it is worse. Undecided where
    neither can be shown, which is evidence for neither, and on fewer than FEWEST_SEEDS: then there
    is a direction and no verdict. `settled` decides, since all differences of a claim are
    corrected together. poor: why what was trained is too poor to decide, whatever the difference;
    what that would decide is told beside it. reached: the number that has to come out as well,
    and clearly.
    """

    gap: Measurement
    better: str
    clear: str = REPRODUCED
    against: str = NOT_REPRODUCED
    poor: str = ""
    reached: SameNumber | None = None

    @property
    def p(self) -> float:
        both = [p_value(self.gap.values), *([self.reached.p] if self.reached else [])]
        return float(np.max(both))  # NaN where one has too few seeds

    @property
    def direction(self) -> str:
        """In how many seeds it points the claim's way; "" where better is not the claim's way."""
        values = self.gap.values
        if self.clear != REPRODUCED:
            return ""
        agree = (values > 0) if self.better == "higher" else (values < 0)
        return f"{self.better} in {agree.sum()} of {len(values)}"

    def verdict(self, corrected_p: float) -> str:
        if math.isnan(corrected_p):
            found = [self.gap, *([self.reached.found] if self.reached else [])]
            alone = _too_few(min(found, key=lambda one: len(one.values)))
        elif corrected_p >= SIGNIFICANT and self.reached and (
                self.reached.p > p_value(self.gap.values)):  # it is the number that is in doubt
            alone = self.reached.verdict(corrected_p)
        elif corrected_p >= SIGNIFICANT:
            alone = f"{UNDECIDED}, no difference shown by {len(self.gap.values)} seeds"
        else:
            is_better = self.gap.mean > 0 if self.better == "higher" else self.gap.mean < 0
            alone = self.clear if is_better else self.against
        if not self.poor:
            return alone
        told = f"{ALONE}{alone}"
        if alone.startswith(UNDECIDED):  # what it lacks besides
            told = alone.replace(f"{UNDECIDED},", "; and") if alone.endswith(TOO_FEW) else ""
        return f"{UNDECIDED}, {self.poor}{told}"


@dataclass(frozen=True, eq=False)
class SameNumber:
    """A verdict on whether a mean over seeds is a number within TOLERANCE, or, with better "higher"
    or "lower", that or better: reproduced where it clearly is by Student's t, not reproduced where
    it clearly is not; else undecided, as for a Difference.

    number: not 0, of which a tenth is nothing (`exactly`). near_one: of a share near 1, whose error
    is to be the number's within TOLERANCE.
    """

    found: Measurement
    number: float
    better: str = ""
    near_one: bool = False

    @property
    def _limits(self) -> tuple[float, float]:
        return limits(self.number, self.better, near_one=self.near_one)

    @property
    def is_reached(self) -> bool:
        """Whether the mean is the number."""
        least, most = self._limits
        return least <= self.found.mean <= most

    @property
    def p(self) -> float:
        """Of the limit that is the harder to tell from: inside both have to be, outside the nearer
        one."""
        return max(p_value(self.found.values - limit)
                   for limit in self._limits if math.isfinite(limit))

    @property
    def direction(self) -> str:
        """In how many seeds the number is reached."""
        values, (least, most) = self.found.values, self._limits
        return f"reached in {values.between(least, most).sum()} of {len(values)}"

    def verdict(self, corrected_p: float) -> str:
        if math.isnan(corrected_p):
            return _too_few(self.found)
        if corrected_p >= SIGNIFICANT:
            return f"{UNDECIDED}, not told from its number by {len(self.found.values)} seeds"
        return REPRODUCED if self.is_reached else NOT_REPRODUCED


def _too_few(found: Measurement) -> str:
    count = len(found.values)
    return f"{UNDECIDED}, {count} {'seed' if count == 1 else 'seeds'} {TOO_FEW}"


def settled(rows: list[dict], *, needs_training: bool) -> list[dict]:
    """The rows of one claim at one profile with their differences, also those from a number,
    decided and corrected together by Holm's method, and their direction beside them.

    needs_training: what less training than the seed's decides is provisional; an artefact that a
    rule states without a difference is not, as a baseline that needs no training shows it.
    """
    open_ones = [row for row in rows if isinstance(row["verdict"], Difference | SameNumber)]
    p_values = corrected([row["verdict"].p for row in open_ones])
    for row in rows:
        row["direction"] = ""
        row["is_final"] = row["verdict"] == ARTEFACT or BY_CONSTRUCTION in str(row["verdict"])
    for row, p in zip(open_ones, p_values):
        row |= {"verdict": row["verdict"].verdict(p), "direction": row["verdict"].direction}
    for row in rows:
        is_short = needs_training and not row["trained"] >= ENOUGH and not row["is_final"]
        after = "" if not is_short else "; how far it was trained is not published" if math.isnan(
            row["trained"]) else f" after {share(row['trained'])} of the seed's training examples"
        if row["verdict"] in (REPRODUCED, ARTEFACT, NOT_REPRODUCED) and is_short:
            row["verdict"] = f"{PROVISIONAL}, {row['verdict']}{after}"
        elif ALONE in row["verdict"]:
            row["verdict"] += after
        del row["is_final"]
    return rows


def share(trained: float) -> str:
    """Of the seed's examples, as a percentage."""
    return "–" if math.isnan(trained) else f"{100 * trained:.2g}%"


def judge(seed: float, *, protocol: Measurement, honest: Measurement, better: str,
          trivial: bool = False) -> str | Difference | SameNumber:
    """A claim that has a number, by the seed's protocol and by an honest one; trivial: the seed's
    protocol has a baseline with its number by construction.

    artefact: by the seed's protocol the baseline reaches its number (within TOLERANCE, or better),
    so that the number shows nothing, whether or not it comes out; or it clearly comes out, and the
    honest protocol is clearly worse than its own baseline. not reproduced: by the seed's protocol
    its number clearly does not come out. reproduced: it clearly does, and the honest one is clearly
    better. undecided: none of these is shown.
    """
    if reaches(seed, protocol.baseline, better):
        return ARTEFACT + BY_CONSTRUCTION * trivial
    number = SameNumber(protocol, seed, better)
    if not number.is_reached:
        return number
    return Difference(honest.above_baseline(), better, against=ARTEFACT, reached=number)


def limits(number: float, better: str = "", *, near_one: bool = False) -> tuple[float, float]:
    """The least and the most that is still a number, within TOLERANCE, or, with better "higher" or
    "lower", that or better; near_one: of a share near 1, by its error."""
    reach = TOLERANCE * abs(1 - number if near_one else number)
    return (-math.inf if better == "lower" else number - reach,
            math.inf if better == "higher" else number + reach)


def reaches(seed: float, value: float, better: str = "") -> bool:
    """Whether a value is the seed's within its limits; not so where there is none."""
    least, most = limits(seed, better)
    return least <= value <= most


def exactly(seed: float, found: Measurement, *, trivial: bool = False) -> str:
    """For counts: reproduced within TOLERANCE. trivial: the baseline is a method that has its
    number by construction; where that is the seed's number, or more, it shows nothing, whether or
    not it comes out."""
    if trivial and reaches(seed, found.baseline, "higher"):
        return ARTEFACT + BY_CONSTRUCTION
    return REPRODUCED if reaches(seed, found.mean) else NOT_REPRODUCED


def entry(metric: str, definition: str, honest: Measurement | None, *,
          verdict: str | Difference | SameNumber, seed: float = math.nan,
          protocol: Measurement | None = None, page: str = "", learned: bool = True
          ) -> dict | None:
    """A row of the audit's table without id, claim and direction; None where nothing was measured.

    honest: None where only the seed's protocol is. n, seeds and what follows are of what is judged:
    of the seed's protocol where its number is held against that, else of the honest one; split is
    of the honest one.
    page: where it is shown; by default that of the first table's stage, or of the ablations.
    learned: whether it depends on what was trained.
    """
    of_protocol = not math.isnan(seed) and not isinstance(verdict, Difference)
    shown = (verdict.found if isinstance(verdict, SameNumber)
             else protocol if protocol and of_protocol else honest or protocol)
    if shown is None or shown.values.empty:  # not measured, or on no seed that pairs
        return None
    low, high = shown.bounds
    first = honest or shown
    is_ablated = any("." in source.variant for source in first.sources)
    paths = [path for one in (honest, protocol) if one for path in one.paths]
    return {"metric": metric, "definition": definition, "seed_value": seed,
            "ours_seed_protocol": protocol.mean if protocol else math.nan,
            "protocol_baseline": protocol.baseline if protocol else math.nan,
            "ours_honest": honest.mean if honest else math.nan,
            "baseline": honest.baseline if honest else math.nan, "n": len(shown.values),
            "seeds": " ".join(f"{value:.4g}" for value in shown.values),
            "ci_low": low, "ci_high": high, "trained": shown.trained if learned else math.nan,
            "verdict": verdict, "profile": shown.profile, "split": first.split,
            "device": shown.device,
            "evidence": " ".join(dict.fromkeys(paths)),
            "notebook": page or ("report/ablations" if is_ablated
                                 else NOTEBOOKS[first.sources[0].stage])}
