"""Claims C13 to C25: what the tables say of the world model, the policy and transfer.

As hd.audit.representation_claims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from hd.audit.evidence import Tables
from hd.audit.verdicts import ARTEFACT, FIRST, NOT_REPRODUCED, REPRODUCED, UNTESTED, entry, exactly
from hd.config import GAMES
from hd.report import reference

SEED_TOKENS = 2.4e9  # 40 epochs of 234K windows of 64 steps of 4 tokens


def masks(t: Tables) -> Iterator[dict | None]:
    for level in range(3):
        causal = t.mean_over_games("world_model", f"l{level}_cross_entropy", "mask.causal")
        for variant in ("base", "mask.hierarchical", "mask.strict"):
            own = t.mean_over_games("world_model", f"l{level}_cross_entropy", variant)
            if own and causal:
                verdict = REPRODUCED if (own - causal).is_below() else NOT_REPRODUCED
                name = "mask.seed" if variant == "base" else variant
                yield entry(f"l{level}_cross_entropy, {name}", "nats, mean over games, held-out "
                            "episodes; reproduced if clearly below plain causal attention's "
                            "(baseline), equal steps", own.against(causal), verdict=verdict)


def windows(t: Tables) -> Iterator[dict | None]:
    found = t.find("frames", "boundary_violations")
    if found:
        yield entry("boundary_violations", "training windows that cross an episode end; baseline: "
                    "windows cut anywhere", found, seed=0.0, verdict=exactly(0.0, found))
    for game in GAMES:
        share = t.find("world_model", "window_share", game=game)
        if share:
            seed = reference.seed_value("C15", f"window_share_{game}")
            yield entry(f"window_share, {game}", "of training windows; depends on how long "
                        "episodes of the playing policy are; baseline: share of steps", share,
                        seed=seed, verdict=exactly(seed, share))


def overlap(t: Tables) -> Iterator[dict | None]:
    for size in ("exposures", "exposures_large"):
        for metric in ("accuracy", "changed_accuracy", "cross_entropy"):
            for level in range(3):
                name = f"l{level}_{metric}"
                overlapping = t.find("world_model", name, f"{size}.windows-pong", game="pong")
                honest = t.find("world_model", name, f"{size}.episodes-pong", game="pong")
                if not overlapping or not honest:
                    continue
                copied = t.find("world_model", f"{name}[repeat_last]", f"{size}.episodes-pong",
                                game="pong")
                gap = overlapping - honest
                parted = gap.is_below() if metric == "cross_entropy" else gap.is_above()
                if len(gap.values) == 1:
                    parted = gap.mean < 0 if metric == "cross_entropy" else gap.mean > 0
                seed = reference.seed_value("C16", f"accuracy_l{level}") \
                    if metric == "accuracy" else math.nan
                yield entry(f"{name}, {size}", "Pong, few episodes seen often (exposures are in "
                            "the tables); seed's column: a random 5% of windows held out; honest: "
                            "whole episodes; artefact if the first is clearly better; baseline: "
                            "repeat-last", honest.against(copied), seed=seed,
                            protocol=overlapping, verdict=ARTEFACT if parted else NOT_REPRODUCED)


def dropout(t: Tables) -> Iterator[dict | None]:
    for variant, split in (("exposures.windows-pong", "windows held out"),
                           ("exposures.episodes-pong", "episodes held out")):
        held = t.last_of_history("world_model", "val_codes", variant)
        noisy = t.last_of_history("world_model", "codes", variant)
        still = t.last_of_history("world_model", "train_codes", variant)
        if held and noisy and still:
            gap = (held - still).against(held - noisy)
            memorised = gap.is_above() if len(gap.values) > 1 else gap.mean > 0
            yield entry(f"held-out minus training loss, {split}", "nats at the last step, Pong; "
                        "honest: dropout off on both sides; baseline: dropout on in training, as "
                        "the seed compares; artefact if the gap is clearly above 0 without dropout",
                        gap, protocol=held - noisy, verdict=ARTEFACT if memorised else REPRODUCED)


def inversion(t: Tables) -> Iterator[dict | None]:
    seed = reference.seed_value("C18", "accuracy_l2_minus_l1")
    for game in GAMES:
        levels = [t.find("world_model", f"l{level}_accuracy", game=game) for level in (1, 2)]
        if all(levels):
            gap = levels[1] - levels[0]
            verdict = REPRODUCED if gap.is_above() else NOT_REPRODUCED
            yield entry(f"accuracy of level 2 minus level 1, {game}", "held-out episodes; "
                        "baseline: the same difference of the n-gram", gap, seed=seed,
                        verdict=verdict)
    windows = [t.find("world_model", f"l{level}_accuracy", "exposures.windows-pong", game="pong")
               for level in (1, 2)]
    if all(windows):
        gap = windows[1] - windows[0]
        yield entry("accuracy of level 2 minus level 1, overlapping windows", "Pong, few "
                    "episodes seen often, the seed's split", gap, seed=seed,
                    verdict=REPRODUCED if gap.is_above() else NOT_REPRODUCED)


def floor(t: Tables) -> Iterator[dict | None]:
    seed = reference.seed_value("C19", "l0_error_floor")
    for game in GAMES:
        error = t.find("world_model", "l0_accuracy", game=game)
        for sticky in ("0", "0.25"):
            floor = t.find("entropy_floor", f"l0_state_error[sticky {sticky}]", game=game)
            if floor and error:
                found = error.map(lambda x: 1 - x).against(floor)
                yield entry(f"L0 error, {game}, above the floor given the state, sticky {sticky}",
                            "1 - accuracy on held-out episodes; baseline: the error that no "
                            "predictor can avoid, from branches of the emulator; reproduced if "
                            "that floor is the seed's", found, seed=seed,
                            verdict=exactly(seed, floor), page="report/dynamics")
    for game in GAMES:
        for step in (1, 2, 4, 8, 16):
            found = t.find("entropy_floor", "l0_twin_disagreement", game=game, step=step)
            share = t.find("entropy_floor", "twin_share", game=game, step=step)
            if found and share:
                yield entry(f"L0 disagreement of steps that look alike, {game}, last {step}",
                            "given equal codes and actions of so many steps, other episodes; the "
                            "best guess is wrong between half as often and as often; only for the "
                            f"share of steps that has such a twin ({share.mean:.2g}); baseline: "
                            "any two steps", found, verdict=FIRST, page="report/dynamics")


def loss_weights(t: Tables) -> Iterator[dict | None]:
    for level in range(3):
        own = t.mean_over_games("world_model", f"l{level}_cross_entropy")
        equal = t.mean_over_games("world_model", f"l{level}_cross_entropy", "loss_weights.equal")
        if own and equal:
            gain = own - equal
            verdict = REPRODUCED if gain.is_below() else NOT_REPRODUCED
            yield entry(f"l{level}_cross_entropy", "nats, mean over games, weights 1.0/0.5/0.1; "
                        "baseline: equal weights, equal steps; reproduced if clearly below",
                        own.against(equal), verdict=verdict)


def cost(t: Tables) -> Iterator[dict | None]:
    speed = t.find("world_model", "tokens_per_second", split="train")
    if speed and t.profile in ("desk", "paper"):
        hours = speed.map(lambda x: SEED_TOKENS / x / 3600)
        yield entry("training_hours", "the seed's 2.4 billion tokens at the speed measured here",
                    hours, seed=reference.seed_value("C21", "training_hours"),
                    verdict=UNTESTED + "no T4 is at hand; this is another device")


def frozen_codebooks(t: Tables) -> Iterator[dict | None]:
    moved = t.find("world_model", "codebook_change", split="train")
    if not moved:
        return
    still = bool((moved.values == 0).all())
    yield entry("codebook_change", "largest change of a codebook while the world model trains; "
                "0: usage cannot change, so that the claim says nothing", moved, seed=0.0,
                verdict=ARTEFACT if still else NOT_REPRODUCED)
    for level in range(3):
        used = t.find("tokenizer", f"l{level}_usage")
        if used:
            codes = used.map(lambda x: 256 * x)
            seed = reference.seed_value("C22", f"codes_used_l{level}")
            yield entry(f"codes_used_l{level}", "on held-out episodes; baseline: random codes",
                        codes, seed=seed, verdict=exactly(seed, codes))


def returns(variants: dict[str, str]) -> Callable[[Tables], Iterator[dict | None]]:
    def rows(t: Tables) -> Iterator[dict | None]:
        for variant, game in variants.items():
            found = t.find("policy", "real_return", variant, game=game)
            if found:
                yield entry(f"real_return, {game}, {variant}", "mean unclipped return of whole "
                            "real episodes at the final checkpoint, sticky 0; baseline: random "
                            "play from the same starts", found, verdict=FIRST)
        for player in ("tracker", "ram_policy"):
            yield entry(f"real_return[{player}]", "scripted player on RAM, or a small policy "
                        "trained on RAM", t.find("policy", f"real_return[{player}]", game="pong"),
                        verdict=FIRST)
    return rows


def transfer(t: Tables) -> Iterator[dict | None]:
    """C25: what pre-training on the other games saves, and whether it beats counting."""
    for game in GAMES:
        for step in (1000, 3000, 5000, 20_000):
            where = {"game": game, "step": step}
            for suffix, levels in (("", "three levels"), ("[one_level]", "one level")):
                found = t.find("transfer", f"transfer_l0_gain{suffix}", **where)
                yield entry(f"transfer_l0_gain{suffix}, {game}, {step} steps", "nats of next-L0 "
                            "cross-entropy that pre-training on the two other games saves on "
                            f"held-out episodes, {levels}; baseline: none saved", found,
                            verdict=FIRST)
            adapted = t.find("transfer", "transfer_l0_cross_entropy", **where)
            counted = t.find("transfer", "transfer_l0_cross_entropy[ngram]", **where)
            if adapted and counted:
                yield entry(f"transfer_l0_cross_entropy, {game}, {step} steps", "nats of the "
                            "pre-trained and adapted model of three levels, held-out episodes; "
                            "baseline: an n-gram counted on the same steps of the new game",
                            adapted.against(counted), verdict=FIRST)
