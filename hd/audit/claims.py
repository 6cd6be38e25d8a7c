"""The audit: every claim of the seed document with its numbers, ours, and a verdict by rule.

A function per claim takes the tables of one profile and yields rows of the audit (verdicts.entry),
the leading one first; None where nothing is measured. results/claims.csv is written from published
tables by `python -m hd publish`; the rules are those of hd.audit.verdicts, and each row's
definition says what was compared with what.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from hd.audit.evidence import Measurement, Tables, beside_best, best_counted, mean_of
from hd.audit.verdicts import (
    ARTEFACT,
    BY_CONSTRUCTION,
    FIRST,
    NOT_REPRODUCED,
    REPRODUCED,
    TOLERANCE,
    TOO_FEW,
    UNDECIDED,
    UNTESTED,
    Difference,
    SameNumber,
    entry,
    exactly,
    judge,
    reaches,
    settled,
    share,
)
from hd.config import GAMES
from hd.report import reference
from hd.report.tables import number
from hd.run.intervals import FEWEST_SEEDS
from hd.run.metrics import named
from hd.run.storage import ROOT, write_atomically

COLUMNS = ("id", "claim", "metric", "definition", "seed_value", "ours_seed_protocol",
           "protocol_baseline", "ours_honest", "baseline", "n", "seeds", "ci_low", "ci_high",
           "trained", "verdict", "direction", "profile", "split", "device", "evidence", "notebook")
PROFILES = ("paper", "desk", "audit")  # largest first; the first that has a number leads
COUNTED_STEPS = 5  # for which a code that only counts time stays the same
SEED_TOKENS = 2.4e9  # 40 epochs of 234K windows of 64 steps of 4 tokens
Rows = Iterator[dict | None]


# ---- frames, embeddings and codes

def parameters(claim: str, stage: str, metric: str = "parameters"
               ) -> Callable[[Tables], Rows]:
    """C01, C13: a network of the seed's sizes, counted."""
    def rows(t: Tables) -> Rows:
        found = t.find(stage, metric, split="train")
        if found:
            seed = reference.seed_value(claim, "parameters")
            yield entry("parameters", "exact count of the network with the seed's sizes", found,
                        seed=seed, verdict=exactly(seed, found))
    return rows


# A random unit vector that stays for COUNTED_STEPS: unrelated vectors lie sqrt(2) apart.
BLIND = {"temporal_consistency": 1 / COUNTED_STEPS, "diversity": math.sqrt(2)}
BLIND_WORDS = f"random unit vectors, another every {COUNTED_STEPS} steps, by construction"


def _beside_blind(found: Measurement, metric: str, better: str, more: dict | None = None
                  ) -> tuple[Measurement, str]:
    """A measure of the embeddings beside the best of an untrained encoder, vectors that see nothing
    and more, and the words for which."""
    blind = replace(found, values=found.values.map(lambda _: BLIND[metric]))
    return beside_best(found, {"untrained encoder": None, BLIND_WORDS: blind, **(more or {})},
                       better)


def _geometry(t: Tables, claim: str, metric: str, *, better: str,
              definition: str) -> Rows:
    """A measure of the embeddings as the seed takes it, beside held-out episodes."""
    seed = reference.seed_value(claim, metric)
    for variant, frames in (("base", "sticky 0"), ("sticky.v5", "sticky 0.25, as in v5")):
        for game in ("pong", "all", "breakout", "ms_pacman"):
            honest = t.find("encoder", metric, variant, game=game)
            protocol = t.find("encoder", f"seed_{metric}", variant, game=game)
            if honest and protocol:
                where = "pooled over games" if game == "all" else game
                honest, words = _beside_blind(honest, metric, better)
                protocol, same = _beside_blind(protocol, metric, better, {
                    "the pixels as they are": t.find(
                        "encoder", named(f"seed_{metric}", "pixels"), variant, game=game)})
                beside = "" if same == words else f"; by its protocol {same}"
                yield entry(f"{metric}, {where}, {frames}",
                            f"{definition}; baseline: {words}{beside}", honest,
                            seed=seed if game == "pong" else math.nan, protocol=protocol,
                            verdict=FIRST if game != "pong" else judge(
                                seed, protocol=protocol, honest=honest, better=better,
                                trivial=same == BLIND_WORDS))


def temporal_consistency(t: Tables) -> Rows:
    """C02. Pooled, random pairs cross games, which lowers the ratio for any encoder."""
    return _geometry(t, "C02", "temporal_consistency", better="lower", definition=(
        "distance of consecutive over random pairs; seed (Pong): every 100th pair of all steps, "
        "across episode ends; honest: held-out episodes"))


def diversity(t: Tables) -> Rows:
    """C03."""
    return _geometry(t, "C03", "diversity", better="higher", definition=(
        "mean distance of 1000 random embeddings; uncorrelated unit vectors have 1.414; seed "
        "(Pong): of all steps; honest: of held-out episodes"))


def state_correlation(t: Tables) -> Rows:
    """C04."""
    seed = reference.seed_value("C04", "game_state_correlation")
    protocol = t.find("encoder", "seed_state_correlation", game="pong")
    honest, trivial = _beside_untrained(t, "state_correlation")
    if protocol and honest:
        yield entry("state_correlation", "best |r| over 384 dimensions, mean of coordinates, Pong; "
                    "seed: pixel boxes, all frames; honest: RAM, held out, ball in play; not "
                    f"tested: three times DINOv2's; baseline: {trivial}; by its protocol untrained "
                    "encoder, the one measured", honest, seed=seed, protocol=protocol,
                    verdict=judge(seed, protocol=protocol, honest=honest, better="higher"))
    pairs = t.find("encoder", "seed_pair_correlation", game="pong")
    if pairs:
        yield entry("pair_correlation", "rank correlation of embedding and label distances over "
                    "pairs of frames: the measure by which the seed judged DINOv2, not its own "
                    "encoder; the two are not comparable; beside an untrained encoder", None,
                    seed=reference.seed_value("C04", "game_state_correlation_dinov2"),
                    protocol=pairs, verdict=FIRST)
    boxes = t.find("encoder", named("seed_state_correlation", "columns"), game="pong")
    yield entry("state_correlation, boxes on the paddles", "as the first row, with the pixel boxes "
                "where the paddles are: the seed's hold a wall in every frame; baseline: untrained "
                "encoder", boxes, verdict=FIRST)
    words = "R2 of ball_x by a small MLP, held out, Pong, ball in play"
    for arm in ("base", "negatives.in_batch", "negatives.chunk", "objective.supervised"):
        found, trivial = _beside_untrained(t, "r2_ball_x", arm)
        yield entry("r2_ball_x" if arm == "base" else f"r2_ball_x, {arm}",
                    f"{words}; baseline: {trivial}", found, verdict=FIRST)
    pixels = t.find("encoder", named("r2_ball_x", "pixel_pca"), game="pong")
    yield entry("r2_ball_x, pixel PCA", words, pixels, verdict=FIRST)


def _beside_untrained(t: Tables, metric: str, variant: str = "base"
                      ) -> tuple[Measurement | None, str]:
    """A higher-is-better metric of Pong's embeddings beside the untrained encoder, or principal
    components of the pixels where they have more, and the words for which."""
    found = t.find("encoder", metric, variant, game="pong")
    if found is None:
        return None, ""
    return beside_best(found, {"untrained encoder": None, "pixel PCA": t.find(
        "encoder", named(metric, "pixel_pca"), variant, game="pong")}, "higher")


def dinov2(t: Tables) -> Rows:
    """C05, where DINOv2's weights are on disk."""
    for metric, claim, name in (
            ("seed_temporal_consistency", "C05", "temporal_consistency_dinov2"),
            ("seed_pair_correlation", "C04", "game_state_correlation_dinov2")):
        found = t.find("encoder", named(metric, "dinov2"), game="pong")
        if found:
            seed = reference.seed_value(claim, name)
            yield entry(named(metric, "dinov2"), "frozen DINOv2 ViT-S/14 by the seed's protocol",
                        found, seed=seed, protocol=found, verdict=exactly(seed, found))


def one_encoder(t: Tables) -> Rows:
    """C06: one encoder should know nearly as much of a game as an encoder of its own."""
    for metric in ("f1_overall", "r2_ball_x"):
        for game in GAMES:
            joint = t.find("encoder", metric, game=game)
            single = t.find("encoder", metric, f"base-{game}", game=game)
            if joint and single:
                enough = single.map(lambda x: (1 - TOLERANCE) * x)
                both = joint.against(enough)
                untrained = joint.baselines[both.values.index].mean()
                is_poor = max(both.mean, single.mean) < untrained
                poor = "neither is better than an untrained encoder" if is_poor else ""
                yield entry(f"{metric}, {game}", "one encoder for three games, held out; baseline: "
                            "nine tenths of an encoder of its own for the game; reproduced if "
                            "clearly above", both, verdict=Difference(
                                joint - enough, "higher", poor=poor))
                yield entry(f"{metric}, {game}, and an untrained one", "the same encoder; "
                            "baseline: untrained encoder", joint, verdict=FIRST)
    seed = reference.seed_value("C06", "temporal_consistency_mean_over_games")
    honest = t.mean_over_games("encoder", "temporal_consistency")
    protocol = t.find("encoder", "seed_temporal_consistency_mean", split="seed")
    if honest and protocol:
        (honest, words), (protocol, same) = (_beside_blind(one, "temporal_consistency", "lower")
                                             for one in (honest, protocol))
        yield entry("temporal_consistency, mean over games", "as C02, one encoder for three games; "
                    f"the norm of 1.0 holds by construction; baseline: {words}", honest,
                    seed=seed, protocol=protocol,
                    verdict=judge(seed, protocol=protocol, honest=honest, better="lower",
                                  trivial=same == BLIND_WORDS))


def single_level(t: Tables) -> Rows:
    """C07. Level 0 of a residual VQ does not depend on later ones: it is a single-level VQ."""
    for metric, name, scale in (("l0_usage", "codes_used", 256), ("l0_perplexity", "perplexity", 1),
                                ("l0_repeat_rate", "repeat_rate", 1)):
        seed = reference.seed_value("C07", name)
        honest = t.find("tokenizer", metric, "levels.one") or t.find("tokenizer", metric)
        if not honest:
            continue
        honest = honest.map(lambda x, k=scale: k * x)
        if protocol := t.find("tokenizer", metric, "sticky.v5"):
            protocol = protocol.map(lambda x, k=scale: k * x)
        counter = 1 - 1 / COUNTED_STEPS if metric == "l0_repeat_rate" else 256
        honest, protocol = (one and replace(one, baselines=one.values.map(lambda _, x=counter: x))
                            for one in (honest, protocol))
        yield entry(name, "one level of 256 codes (level 0), held-out episodes of three games; "
                    "seed's column: sticky 0.25; baseline: a code that counts time, another every "
                    f"{COUNTED_STEPS} steps, by construction", honest, seed=seed,
                    protocol=protocol, verdict=exactly(seed, protocol or honest, trivial=True))
    seconds = t.made_seconds("tokenizer", "levels.one")
    if seconds:
        seed = reference.seed_value("C07", "training_seconds")
        yield entry("training_seconds", "fitting one level; another machine than the seed's",
                    seconds, seed=seed, verdict=FIRST)


def projection(t: Tables) -> Rows:
    """C08."""
    projected = t.find("tokenizer", "l0_usage", "quantizer.projected_plain")
    direct = t.find("tokenizer", "l0_usage", "codebook.neither")
    if projected and direct:
        yield entry("codes_used, 128 of 384 columns", "codes used on held-out episodes after PCA "
                    "to 128, no k-means, no refill; baseline: the same on all 384; what we can "
                    "measure beside it",
                    projected.map(lambda x: 256 * x).against(direct.map(lambda x: 256 * x)),
                    seed=reference.seed_value("C08", "codes_used_projected_128"),
                    verdict=UNTESTED + "the seed projected DINOv2's embeddings, not its own")
    cured = t.find("tokenizer", "l2_variance_explained", "quantizer.projected")
    base = t.find("tokenizer", "l2_variance_explained")
    if cured and base:
        yield entry("l2_variance_explained, 128 columns", "with k-means and refill; baseline: all "
                    "384 columns", cured.against(base), verdict=FIRST)


def three_levels(t: Tables) -> Rows:
    """C09."""
    for level in range(3):
        seed = reference.seed_value("C09", f"perplexity_l{level}")
        found = t.find("tokenizer", f"l{level}_perplexity")
        if found:
            yield entry(f"l{level}_perplexity", "held-out episodes of three games; baseline: "
                        "random codes, by construction", found, seed=seed,
                        verdict=exactly(seed, found, trivial=True))
    for arm, words in (("base", "three residual levels"),
                       ("quantizer.product", "three slices of equal bits"),
                       ("codebook.library", "vector-quantize-pytorch")):
        yield entry(f"l2_variance_explained, {arm}", f"variance of held-out embeddings explained "
                    f"by all codes, {words}; baseline: their mean",
                    t.find("tokenizer", "l2_variance_explained", arm), verdict=FIRST)


def commitment(t: Tables) -> Rows:
    """C10."""
    for arm in ("flat", "reversed", "zero"):
        same = mean_of(t.find("tokenizer", f"l{level}_same_as_base", f"commitment.{arm}")
                       for level in range(3))
        if same:
            yield entry(f"same tokens, frozen encoder, {arm}", "share of held-out codes equal to "
                        "those under the seed's schedule; 1: the schedule does nothing; baseline: "
                        "chance", same,
                        verdict=NOT_REPRODUCED + BY_CONSTRUCTION if (same.values == 1).all()
                        else REPRODUCED)
    base = t.find("tokenizer", "l0_variance_explained", "commitment_joint.seed")
    for arm in ("flat", "reversed", "zero"):
        for metric, game in (("l0_variance_explained", "all"), ("l0_state_information", "pong")):
            own = t.find("tokenizer", metric, "commitment_joint.seed", game=game)
            other = t.find("tokenizer", metric, f"commitment_joint.{arm}", game=game)
            if base and own and other:
                verdict = Difference(own - other, "higher")
                yield entry(f"{metric}, trained together, {game}, beside {arm}", "encoder and "
                            "codebooks train together under the seed's schedule; baseline: "
                            f"{arm}; reproduced if clearly more", own.against(other),
                            verdict=verdict)


def sharing(t: Tables) -> Rows:
    """C11."""
    shared = [t.find("tokenizer", named(f"l{level}_shared_frames", at_least=0.001))
              for level in range(3)]
    if all(shared):
        yield entry("shared_frames, level 0 and level 2", "share of frames on coarse codes that "
                    "each game uses for at least a thousandth of its frames; baseline: the same of "
                    "the finest codes; reproduced if clearly more", shared[0].against(shared[2]),
                    verdict=Difference(shared[0] - shared[2], "higher"))
    information = [t.find("tokenizer", f"l{level}_game_information") for level in range(3)]
    if all(information):
        rise = information[2] - information[0]
        yield entry("game_information, level 2 minus level 0", "nats that the code holds about the "
                    "game; reproduced if it rises from level 0 to 2", rise,
                    verdict=Difference(rise, "higher"))
        for level, found in enumerate(information):
            yield entry(f"l{level}_game_information", "nats that the code holds about the game; "
                        "baseline: H(game), a code that no other game uses", found, verdict=FIRST)
    for level in range(3):
        for threshold in (0, 0.001, 0.01):
            name = named(f"l{level}_shared_frames", at_least=threshold)
            none = ", none of which is as common, by construction" * (threshold > 1 / 256)
            yield entry(name, "share of frames on codes that each game uses for at least that "
                        f"share of its frames; baseline: random codes{none}",
                        t.find("tokenizer", name), verdict=FIRST)
        name = named(f"l{level}_shared_codes", at_least=0)
        yield entry(name, "the seed's set intersection: one stray use counts",
                    t.find("tokenizer", name), verdict=FIRST)


def joint_codebook(t: Tables) -> Rows:
    """C12."""
    found = t.find("tokenizer", "l0_usage")
    if found:
        seed, codes = reference.seed_value("C12", "codes_used_joint"), found.map(lambda x: 256 * x)
        yield entry("codes_used_joint", "codes of level 0 that occur in held-out episodes of any "
                    "game; of the tokenizers of C09, whose first level C07 is about too; not "
                    "tested: whether two epochs are enough; baseline: random codes, by "
                    "construction", codes, seed=seed, verdict=exactly(seed, codes, trivial=True))
    for game in ("all", *GAMES):
        found = t.find("tokenizer", "l0_perplexity", game=game)
        if found:
            seed = reference.seed_value("C12", "perplexity_joint") if game == "all" else math.nan
            yield entry(f"l0_perplexity, {game}", "under the joint codebook; baseline: random "
                        "codes, by construction", found, seed=seed,
                        verdict=exactly(seed, found, trivial=True) if game == "all" else FIRST)


# ---- the world model, the policy, transfer

def _size(t: Tables, variant: str = "base") -> str:
    """How many parameters a variant's world model has, beside the seed's: for a definition."""
    ours = t.find("world_model", "parameters", variant, split="train")
    if ours is None:
        return ""
    seed = reference.seed_value("C13", "parameters")
    return f"; {number(ours.mean / 1e6)}M parameters, the seed's about {number(seed / 1e6)}M"


def _helps(t: Tables, name: str, own: str, other: str, definition: str, *,
           is_claimed: bool = True) -> Rows:
    """A row of a loss of the next code, mean over games, of the variant own beside another's, and
    whether it is lower. Codes that change lead, as copying predicts the others; of models that
    counting beats over all codes of the level no verdict is given, since they gain there by
    expecting change. Nor where the claim is not about the level (is_claimed)."""
    mine, theirs = (t.mean_over_games("world_model", name, variant) for variant in (own, other))
    if not mine or not theirs:
        return
    every, poor = name.replace("changed_", ""), ""
    losses = [t.mean_over_games("world_model", every, variant) for variant in (own, other)]
    counted, of_these = (best_counted(lambda one: t.mean_over_games("world_model", one), metric,
                                      "lower") for metric in (every, name))
    if of_these and every != name:
        definition += f"; {of_these[0]} {number(of_these[1].mean)}"
    if all(losses) and counted:
        definition += (f"; over all codes of the level {number(losses[0].mean)} and "
                       f"{number(losses[1].mean)}, {counted[0]} {number(counted[1].mean)}")
        if min(one.mean for one in losses) > counted[1].mean:
            poor = f"over all codes of the level neither is better than {counted[0]}"
    suffix = {"base": "mask.seed"}.get(own, own) if other == "mask.causal" else ""
    yield entry(", ".join(filter(None, (name, suffix))), definition + _size(t, own),
                mine.against(theirs), verdict=Difference(
                    mine - theirs, "lower", poor=poor) if is_claimed else FIRST)


def masks(t: Tables) -> Rows:
    """C14."""
    for part, level, variant in itertools.product(
            ("changed_", ""), range(3), ("base", "mask.hierarchical", "mask.strict")):
        yield from _helps(t, f"l{level}_{part}cross_entropy", variant, "mask.causal",
                          "nats, mean over games, held-out episodes; baseline: plain causal "
                          "attention, equal steps; reproduced if clearly below")


def windows(t: Tables) -> Rows:
    """C15."""
    found = t.find("frames", "boundary_violations")
    if found:
        yield entry("boundary_violations", "windows that cross an episode's end, of all that are "
                    "cut inside episodes: none can; baseline: windows cut anywhere", found,
                    seed=0.0, verdict=exactly(0.0, found) + BY_CONSTRUCTION)
    steps, cut = (_over_parts(t, metric) for metric in ("steps", "windows_of_64"))
    if steps and cut and reaches(reference.seed_value("C15", "timesteps"), steps.mean):
        seed = reference.seed_value("C15", "windows")
        yield entry("windows of 64 steps", "in about as many steps of random play as the seed's; "
                    "baseline: windows cut anywhere", cut.against(steps.map(lambda x: x - 63)),
                    seed=seed, verdict=SameNumber(cut, seed))
    for game in GAMES:
        found = t.find("world_model", "window_share", game=game)
        if found:
            seed = reference.seed_value("C15", f"window_share_{game}")
            yield entry(f"window_share, {game}", "of training windows; depends on how long "
                        "episodes of the playing policy are; baseline: share of steps; reproduced "
                        "if clearly the seed's number within a tenth", found, seed=seed,
                        learned=False, verdict=SameNumber(found, seed))


def _over_parts(t: Tables, metric: str) -> Measurement | None:
    """A count of the frames' table, all parts of the split together."""
    parts = [t.find("frames", metric, split=part) for part in ("train", "val", "test")]
    parts = [part for part in parts if part]
    return mean_of(parts).map(lambda x: x * len(parts)) if parts else None


def overlap(t: Tables) -> Rows:
    """C16: the seed holds out windows that overlap with those it trains on."""
    words = ("Pong, few episodes seen often (exposures are in the tables); seed's column: a random "
             "5% of windows held out; honest: whole episodes, equal updates")
    rule = ("; accuracies are compared by their errors: not reproduced if windows clearly miss the "
            "seed's number; where they reach it, reproduced if episodes clearly do too, artefact "
            "if they do not and are clearly worse, or if counting reaches it")
    for size, metric, level in itertools.product(
            ("exposures_seed", "exposures", "exposures_large"),
            ("accuracy", "changed_accuracy", "cross_entropy"), range(3)):
        name = f"l{level}_{metric}"
        overlapping = t.find("world_model", name, f"{size}.windows-pong", game="pong")
        honest = t.find("world_model", name, f"{size}.episodes-pong", game="pong")
        better = "lower" if metric == "cross_entropy" else "higher"
        counted = [best_counted(lambda one, variant=f"{size}.{split}-pong": t.find(
            "world_model", one, variant, game="pong"), name, better)
            for split in ("windows", "episodes")]
        if not overlapping or not honest or not all(counted):
            continue
        has_number = metric == "accuracy"  # the seed's
        seed = reference.seed_value("C16", f"accuracy_l{level}") if has_number else math.nan
        yield entry(f"{name}, {size}", f"{words}{rule * has_number}; baseline: {counted[1][0]}; by "
                    f"its protocol {counted[0][0]}{_size(t, f'{size}.episodes-pong')}",
                    honest.against(counted[1][1]), seed=seed,
                    protocol=overlapping.against(counted[0][1]),
                    verdict=_beside_episodes(seed, overlapping, honest, counted[0][1])
                    if has_number else FIRST)


def _beside_episodes(seed: float, overlapping: Measurement, honest: Measurement,
                     counted: Measurement) -> str | Difference | SameNumber:
    """Of an accuracy near 1 on windows that overlap with those that were trained on, beside the
    same on whole episodes and what counts best on the windows."""
    windows, episodes, trivial = (SameNumber(one, seed, "higher", near_one=True)
                                  for one in (overlapping, honest, counted))
    if trivial.is_reached:
        return ARTEFACT
    if not windows.is_reached or episodes.is_reached:
        return episodes if windows.is_reached else windows
    return Difference(overlapping - honest, "higher", clear=ARTEFACT,
                      reached=windows)


def dropout(t: Tables) -> Rows:
    """C17, its second half first: whether anything is overfitted."""
    seen_by_seed = None  # on windows, with dropout in training
    if windows := _losses(t, "exposures.windows-pong"):
        seen_by_seed = windows["val_codes"] - windows["codes"]
    for variant, split in (("exposures.episodes-pong", "episodes held out"),
                           ("exposures.windows-pong", "windows held out")):
        found = _losses(t, variant)
        if not found:
            continue
        held, noisy, still = (found[key] for key in ("val_codes", "codes", "train_codes"))
        gap = (held - still).against(held - noisy)
        words = ("nats at the last step, Pong, dropout off on both sides; seed's column: windows "
                 "held out, dropout on in training; baseline: the same split with dropout on in "
                 f"training{_size(t, variant)}")
        if split.startswith("episodes"):
            yield entry(f"held-out minus training loss, {split}", f"{words}; not reproduced if "
                        "clearly above 0: then something is overfitted", gap,
                        protocol=seen_by_seed, verdict=Difference(gap, "lower"))
        else:
            yield entry(f"held-out minus training loss, {split}", f"{words}; reproduced, for "
                        "dropout, if clearly above 0 without it", gap, protocol=seen_by_seed,
                        verdict=Difference(gap, "higher"))


def _losses(t: Tables, variant: str) -> dict[str, Measurement]:
    """The last losses over codes of a world model's learning curve; empty unless all are there."""
    found = {key: t.last_of_history("world_model", key, variant)
             for key in ("val_codes", "codes", "train_codes")}
    return found if all(found.values()) else {}


def inversion(t: Tables) -> Rows:
    """C18."""
    for game in GAMES:
        yield from _inverted(t, game, "base", f", {game}", "held-out episodes")
    for size in ("exposures_seed", "exposures"):
        yield from _inverted(t, "pong", f"{size}.windows-pong", f", overlapping windows, {size}",
                             "Pong, few episodes seen often, the seed's split")


def _inverted(t: Tables, game: str, variant: str, where: str, words: str) -> Rows:
    """Level 2 beside level 1, and the same of what counts best; no verdict on a model that counting
    beats at either."""
    levels, counted = [], []
    for level in (1, 2):
        def look(metric):
            return t.find("world_model", metric, variant, game=game)
        levels.append(look(f"l{level}_accuracy"))
        counted.append(best_counted(look, f"l{level}_accuracy", "higher"))
    if not all(levels) or not all(counted):
        return
    each = ", ".join(f"level {level} {number(own.mean)}, {name} {number(best.mean)}"
                     for level, own, (name, best) in zip((1, 2), levels, counted))
    is_poor = any(own.mean < best.mean for own, (_, best) in zip(levels, counted))
    gap = levels[1] - levels[0]
    yield entry(f"accuracy of level 2 minus level 1{where}", f"{words}; the seed's is above 0 from "
                f"its epoch 31 of 40 on; {each}; baseline: the same difference of what counts best"
                f"{_size(t, variant)}", gap.against(counted[1][1] - counted[0][1]),
                seed=reference.seed_value("C18", "accuracy_l2_minus_l1"),
                verdict=Difference(gap, "higher", poor=(
                    "the model is no better than counting" if is_poor else "")))


def floor(t: Tables) -> Rows:
    """C19. Whether the floor is the seed's number takes several seeds: it is an average over states
    from which the emulator is branched."""
    seed = reference.seed_value("C19", "l0_error_floor")
    words = ("share of next coarse codes that no predictor can name, from branches of the "
             "emulator; baseline: one who knows nothing of the state; ")
    sticky = named("l0_state_error", sticky=0.25)  # the seed's own stickiness
    if found := t.mean_over_games("entropy_floor", sticky):
        yield entry("L0 error given the state, mean over games, sticky 0.25", f"{words}reproduced "
                    "if it clearly is the seed's number within a tenth", found, seed=seed,
                    page="report/dynamics", verdict=SameNumber(found, seed))
    for game in GAMES:
        yield entry(f"L0 error given the state, {game}, sticky 0.25", f"{words}the seed's number "
                    "is of three games together", t.find("entropy_floor", sticky, game=game),
                    page="report/dynamics", verdict=FIRST)
        still = t.find("entropy_floor", named("l0_state_error", sticky=0), game=game)
        yield entry(f"L0 error given the state, {game}, sticky 0", f"{words}without sticky actions "
                    "nothing is open, by construction", still, page="report/dynamics",
                    verdict=FIRST)
    for game in GAMES:
        def look(metric, game=game):
            return t.find("world_model", metric, game=game)
        error, counted = look("l0_accuracy"), best_counted(look, "l0_accuracy", "higher")
        if error and counted:
            error, trivial = (one.map(lambda x: 1 - x) for one in (error, counted[1]))
            yield entry(f"L0 error of the world model, {game}", "1 - accuracy on held-out "
                        f"episodes, sticky 0; baseline: {counted[0]}{_size(t)}",
                        error.against(trivial),
                        verdict=FIRST)
    for game in GAMES:
        for step in (1, 2, 4, 8, 16):
            found = t.find("entropy_floor", "l0_twin_disagreement", game=game, step=step)
            twins = t.find("entropy_floor", "twin_share", game=game, step=step)
            if found and twins:
                yield entry(f"L0 disagreement of steps that look alike, {game}, last {step}",
                            "given equal codes and actions of so many steps, other episodes; the "
                            "best guess is wrong between half as often and as often; only for the "
                            f"share of steps that has such a twin ({twins.mean:.2g}); baseline: "
                            "any two steps", found, verdict=FIRST, page="report/dynamics")


def loss_weights(t: Tables) -> Rows:
    """C20."""
    for part, level in itertools.product(("changed_", ""), range(3)):
        rule = ("the claim is not about this level" if level else "reproduced if clearly below")
        yield from _helps(t, f"l{level}_{part}cross_entropy", "base", "loss_weights.equal",
                          "nats, mean over games, weights 1.0/0.5/0.1; baseline: equal weights, "
                          f"equal steps; {rule}", is_claimed=not level)


def cost(t: Tables) -> Rows:
    """C21."""
    speed = t.find("world_model", "tokens_per_second", split="train")
    if speed and t.profile in ("desk", "paper"):
        hours = speed.map(lambda x: SEED_TOKENS / x / 3600)
        yield entry("training_hours", "the seed's 2.4 billion tokens at the speed measured here",
                    hours, seed=reference.seed_value("C21", "training_hours"),
                    verdict=UNTESTED + "no T4 is at hand; this is another device")


def frozen_codebooks(t: Tables) -> Rows:
    """C22."""
    moved = t.find("world_model", "codebook_change", split="train")
    if not moved:
        return
    still = bool((moved.values == 0).all())
    yield entry("codebook_change", "largest change of a codebook while the world model trains; "
                "0: usage cannot change, so that the claim says nothing", moved,
                verdict=ARTEFACT + BY_CONSTRUCTION if still else NOT_REPRODUCED)
    for level in range(3):
        used = t.find("tokenizer", f"l{level}_usage")
        if used:
            codes = used.map(lambda x: 256 * x)
            seed = reference.seed_value("C22", f"codes_used_l{level}")
            yield entry(f"codes_used_l{level}", "on held-out episodes; baseline: random codes, by "
                        "construction", codes, seed=seed,
                        verdict=exactly(seed, codes, trivial=True))


def returns(variants: dict[str, str]) -> Callable[[Tables], Rows]:
    """C23, C24: variants: name -> the game it plays. Players to compare with follow a variant that
    is measured; where none is, they say nothing about the claim."""
    def rows(t: Tables) -> Rows:
        found = {variant: t.find("policy", "real_return", variant, game=game)
                 for variant, game in variants.items()}
        for variant, measured in found.items():
            low = t.find("policy", named("real_return", "ci_low"), variant, game=variants[variant])
            yield entry(f"real_return, {variants[variant]}, {variant}", "mean unclipped return of "
                        "whole real episodes at the final checkpoint, sticky 0; baseline: random "
                        "play from the same starts; a seed beats it whose interval over episodes "
                        "lies above its mean, which is taken as exact", measured,
                        verdict=_beside_random(measured, low))
        if any(found.values()):
            for player in ("tracker", "ram_policy"):
                name = named("real_return", player)
                yield entry(name, "scripted player on RAM, or a small policy trained on RAM",
                            t.find("policy", name, game="pong"), verdict=FIRST, learned=False)
    return rows


def _beside_random(measured: Measurement | None, low: Measurement | None) -> str:
    """In how many seeds the lower end of the interval over episodes is above random play."""
    if measured is None or low is None:
        return FIRST
    count, num_seeds = int((low.values > measured.baselines).sum()), len(measured.values)
    said = (f"above random play in {count} of {num_seeds}" if count or num_seeds < FEWEST_SEEDS
            else "does not beat random play")
    after = "" if math.isnan(measured.trained) else (
        f" after {share(measured.trained)} of the seed's training examples")
    return f"{FIRST}, {said}{after}"


def transfer(t: Tables) -> Rows:
    """C25: what pre-training on the other games saves, and whether it beats counting."""
    words = ("nats of next-L0 cross-entropy that pre-training on the two other games saves on "
             "held-out episodes")
    one_level = named("transfer_l0_gain", "one_level")
    for step in (1000, 3000, 5000, 20_000):
        gain, alone = (t.mean_over_games("transfer", name, step=step)
                       for name in ("transfer_l0_gain", one_level))
        if gain and alone:
            yield entry(f"transfer_l0_gain, mean over games, {step} steps, beside one level",
                        f"{words}, three levels; baseline: one level; reproduced if clearly more",
                        gain.against(alone), verdict=Difference(gain - alone, "higher"))
        if gain:
            yield entry(f"transfer_l0_gain, mean over games, {step} steps", f"{words}, three "
                        "levels; baseline: none saved", gain, verdict=Difference(gain, "higher"))
    for game, step in itertools.product(GAMES, (1000, 3000, 5000, 20_000)):
        def look(metric, game=game, step=step):
            return t.find("transfer", metric, game=game, step=step)
        for name, levels in (("transfer_l0_gain", "three levels"), (one_level, "one level")):
            yield entry(f"{name}, {game}, {step} steps", f"{words}, {levels}; baseline: none saved",
                        look(name), verdict=FIRST)
        adapted = look("transfer_l0_cross_entropy")
        counted = best_counted(look, "transfer_l0_cross_entropy", "lower")
        if adapted and counted:
            yield entry(f"transfer_l0_cross_entropy, {game}, {step} steps", "nats of the "
                        "pre-trained and adapted model of three levels, held-out episodes; "
                        f"baseline: {counted[0]} of the same steps of the new game",
                        adapted.against(counted[1]), verdict=FIRST)


# ---- all of them

@dataclass(frozen=True)
class Claim:
    """One claim in our words; rows(tables of one profile) -> its rows, the leading one first."""

    id: str
    statement: str
    rows: Callable[[Tables], Rows]
    missing: str = "its runs are not published"  # why there is no number, where there is none
    needs_training: bool = False  # as long as the seed's: on less a verdict is provisional
    leads: str = ""  # what the metric of the leading row starts with, where that matters
    is_learned: bool = True  # whether its numbers depend on what was trained


POLICIES = {"base": "pong", "policy_horizon.short": "pong", "policy_horizon.long": "pong",
             "policy_features.hidden": "pong", "policy_game.breakout": "breakout",
             "policy_game.ms_pacman": "ms_pacman"}
NO_WEIGHTS = "DINOv2's weights are not on disk (the loader reads them from HD_DINOV2)"
CLAIMS = (
    Claim("C01", "The encoder has 1.88M parameters",
          parameters("C01", "encoder"), is_learned=False),
    Claim("C02", "Embeddings of consecutive frames lie close together",
          temporal_consistency, needs_training=True),
    Claim("C03", "Embeddings stay diverse: no collapse", diversity, needs_training=True),
    Claim("C04", "Embeddings correlate with the game's state, 3 times as much as DINOv2's",
          state_correlation, needs_training=True),
    Claim("C05", "Frozen DINOv2 sees motion but not position", dinov2, NO_WEIGHTS),
    Claim("C06", "One encoder serves three games", one_encoder, needs_training=True,
          leads="f1_overall"),
    Claim("C07", "A single level of 256 codes is fully used and smooth in time",
          single_level, needs_training=True),
    Claim("C08", "Projecting 384 columns to 128 before quantization loses codes",
          projection),
    Claim("C09", "Three residual levels are fully used", three_levels,
          needs_training=True),
    Claim("C10", "Commitment costs 0.05/0.25/0.60 are what makes levels differ",
          commitment, needs_training=True),
    Claim("C11", "Coarse codes are shared between games, finer ones are the games' own",
          sharing, needs_training=True),
    Claim("C12", "One codebook for three games is fully used", joint_codebook,
          needs_training=True),
    Claim("C13", "The world model has about 11M parameters",
          parameters("C13", "world_model", named("parameters", "seed sizes")), is_learned=False),
    Claim("C14", "The hierarchical mask helps prediction", masks, needs_training=True),
    Claim("C15", "No window crosses an episode's end (in rows below: games share windows "
          "38/27/35%)", windows),
    Claim("C16", "The next codes are predicted with 99.7/98.3/98.5% accuracy",
          overlap, needs_training=True),
    Claim("C17", "Validation loss below training loss comes from dropout, nothing is overfitted",
          dropout, needs_training=True),
    Claim("C18", "The finest level is easier to predict than the middle one",
          inversion, needs_training=True),
    Claim("C19", "The error that remains is the game's own randomness", floor,
          needs_training=True, leads="L0 error given"),
    Claim("C20", "Loss weights 1.0/0.5/0.1 help the coarse level", loss_weights,
          needs_training=True),
    Claim("C21", "Training takes 7 hours on a T4", cost, "no T4 is at hand", is_learned=False),
    Claim("C22", "All codes stay in use while the world model trains",
          frozen_codebooks, needs_training=True),
    Claim("C23", "REINFORCE in the frozen world model plays Pong",
          returns(POLICIES)),
    Claim("C24", "PPO in the frozen world model plays Pong",
          returns({"policy.ppo": "pong"})),
    Claim("C25", "Hierarchical codes carry over from game to game", transfer,
          needs_training=True),
)


# ---- the table

def table(results: Path | None = None) -> pd.DataFrame:
    """The audit's table from the published tables below results: COLUMNS, all claims in order."""
    rows = []
    for claim in CLAIMS:
        found = [row for profile in PROFILES for row in settled(
            [row for row in claim.rows(Tables(profile, results)) if row],
            needs_training=claim.needs_training)]
        found.sort(key=lambda row: not row["metric"].startswith(claim.leads))
        if found and found[0]["verdict"].endswith(TOO_FEW):  # a smaller profile may decide it
            metric = found[0]["metric"]
            found.sort(key=lambda row: (row["metric"] != metric
                                        or row["verdict"].startswith(UNDECIDED)))
        if not found:
            found = [dict.fromkeys(COLUMNS, math.nan) | {
                "metric": "", "definition": "", "verdict": UNTESTED + claim.missing, "n": 0,
                **dict.fromkeys(("seeds", "direction", "profile", "split", "device", "evidence",
                                 "notebook"), "")}]
        known = {} if claim.is_learned else {"trained": math.nan}
        rows += [{**row, **known, "id": claim.id, "claim": claim.statement} for row in found]
    return pd.DataFrame(rows)[list(COLUMNS)]


def write(root: Path = ROOT) -> None:
    """results/claims.csv from the published tables of a repository."""
    found = table(root / "results")
    write_atomically(root / "results" / "claims.csv",
                     lambda aside: found.to_csv(aside, index=False, float_format="%.8g"))


def load(root: Path = ROOT) -> pd.DataFrame:
    """results/claims.csv as it is published."""
    text = ["metric", "definition", "seeds", "direction", "profile", "split", "device", "evidence",
            "notebook"]
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


def agrees(stored: pd.DataFrame, results: Path | None = None) -> bool:
    """Whether the stored table is what the published tables give: words equal, numbers to 1e-7."""
    fresh = table(results)
    if len(stored) != len(fresh):
        return False
    words = ["id", "claim", "metric", "definition", "verdict", "direction", "split", "evidence",
             "notebook"]
    numbers = ["seed_value", "ours_seed_protocol", "protocol_baseline", "ours_honest", "baseline",
               "n", "ci_low", "trained"]
    same = (stored[words].fillna("") == fresh[words].fillna("")).all(axis=None)
    return bool(same) and np.allclose(stored[numbers].astype(float), fresh[numbers].astype(float),
                                      rtol=1e-7, equal_nan=True)


def changed(root: Path = ROOT) -> pd.DataFrame:
    """The claims whose verdict is another than under the rules before, which
    results/verdicts-before.csv keeps with the reason for the change: before, now, why."""
    before = pd.read_csv(root / "results" / "verdicts-before.csv", index_col="id")
    now = summary(load(root))["verdict"]
    found = pd.DataFrame({"before": before["verdict"], "now": now, "why": before["why"]})
    return found[[old != new for old, new in zip(found["before"], found["now"])]]
