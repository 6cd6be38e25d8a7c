"""Claims C01 to C12: what the tables say of frames, embeddings and codes.

Each function takes the tables of one profile and yields rows of the audit
(hd.audit.verdicts.entry), the leading one first; None where nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hd.audit.evidence import Tables, mean_of
from hd.audit.verdicts import FIRST, NOT_REPRODUCED, REPRODUCED, entry, exactly, judge
from hd.config import GAMES
from hd.report import reference


def parameters(claim: str, stage: str, metric: str = "parameters"
               ) -> Callable[[Tables], Iterator[dict | None]]:
    """C01, C13: a network of the seed's sizes, counted."""
    def rows(t: Tables) -> Iterator[dict | None]:
        found = t.find(stage, metric, split="train")
        if found:
            seed = reference.seed_value(claim, "parameters")
            yield entry("parameters", "exact count of the network with the seed's sizes", found,
                        seed=seed, verdict=exactly(seed, found))
    return rows


def _geometry(t: Tables, claim: str, metric: str, *, better: str,
              definition: str) -> Iterator[dict | None]:
    """A measure of the embeddings as the seed takes it, beside held-out episodes."""
    seed = reference.seed_value(claim, metric)
    for variant, frames in (("base", "sticky 0"), ("sticky.v5", "sticky 0.25, as in v5")):
        for game in ("pong", "all", "breakout", "ms_pacman"):
            honest = t.find("encoder", metric, variant, game=game)
            protocol = t.find("encoder", f"seed_{metric}", variant, game=game)
            if honest and protocol:
                where = "pooled over games" if game == "all" else game
                yield entry(f"{metric}, {where}, {frames}", definition, honest, seed=seed,
                            protocol=protocol,
                            verdict=judge(seed, protocol=protocol, honest=honest, better=better))


def temporal_consistency(t: Tables) -> Iterator[dict | None]:
    """C02. Pooled, random pairs cross games, which lowers the ratio for any encoder."""
    return _geometry(t, "C02", "temporal_consistency", better="lower", definition=(
        "distance of consecutive over random pairs; seed (Pong): every 100th pair of all steps, "
        "across episode ends; honest: held-out episodes; baseline: untrained encoder"))


def diversity(t: Tables) -> Iterator[dict | None]:
    """C03."""
    return _geometry(t, "C03", "diversity", better="higher", definition=(
        "mean distance of 1000 random embeddings; uncorrelated unit vectors have 1.414; seed "
        "(Pong): of all steps; honest: of held-out episodes; baseline: untrained encoder"))


def state_correlation(t: Tables) -> Iterator[dict | None]:
    seed = reference.seed_value("C04", "game_state_correlation")
    protocol = t.find("encoder", "seed_state_correlation", game="pong")
    honest = t.find("encoder", "state_correlation", game="pong")
    if protocol and honest:
        yield entry("state_correlation", "best |r| over 384 dimensions, mean of coordinates, Pong; "
                    "seed: pixel boxes, all frames; honest: RAM, held out, ball in play; baseline: "
                    "untrained encoder", honest, seed=seed, protocol=protocol,
                    verdict=judge(seed, protocol=protocol, honest=honest, better="higher"))
    pairs = t.find("encoder", "seed_pair_correlation", game="pong")
    if pairs:
        yield entry("pair_correlation", "rank correlation of embedding and label distances over "
                    "pairs of frames: the measure by which the seed judged DINOv2, not its own "
                    "encoder; the two are not comparable; baseline: untrained encoder", pairs,
                    seed=reference.seed_value("C04", "game_state_correlation_dinov2"),
                    protocol=pairs, verdict=FIRST)
    boxes = t.find("encoder", "seed_state_correlation[columns]", game="pong")
    yield entry("state_correlation, boxes on the paddles", "as the first row, with the pixel boxes "
                "where the paddles are: the seed's hold a wall in every frame; baseline: untrained "
                "encoder", boxes, verdict=FIRST)
    found = t.find("encoder", "r2_ball_x", game="pong")
    words = "R2 of ball_x by a small MLP, held out, Pong, ball in play; baseline: untrained encoder"
    yield entry("r2_ball_x", words, found, verdict=FIRST)
    for arm in ("negatives.in_batch", "negatives.chunk", "objective.supervised"):
        yield entry(f"r2_ball_x, {arm}", words, t.find("encoder", "r2_ball_x", arm, game="pong"),
                    verdict=FIRST)
    pixels = t.find("encoder", "r2_ball_x[pixel_pca]", game="pong")
    yield entry("r2_ball_x, pixel PCA", words.partition(";")[0], pixels, verdict=FIRST)


def dinov2(t: Tables) -> Iterator[dict | None]:
    """C05, where DINOv2's weights are on disk."""
    for metric, claim, name in (
            ("seed_temporal_consistency", "C05", "temporal_consistency_dinov2"),
            ("seed_pair_correlation", "C04", "game_state_correlation_dinov2")):
        found = t.find("encoder", f"{metric}[dinov2]", game="pong")
        if found:
            seed = reference.seed_value(claim, name)
            yield entry(f"{metric}[dinov2]", "frozen DINOv2 ViT-S/14 by the seed's protocol",
                        found, seed=seed, protocol=found, verdict=exactly(seed, found))


def one_encoder(t: Tables) -> Iterator[dict | None]:
    seed = reference.seed_value("C06", "temporal_consistency_mean_over_games")
    honest = t.mean_over_games("encoder", "temporal_consistency")
    protocol = t.find("encoder", "seed_temporal_consistency_mean", split="seed")
    if honest and protocol:
        yield entry("temporal_consistency, mean over games", "as C02, one encoder for three games; "
                    "the norm of 1.0 holds by construction", honest, seed=seed, protocol=protocol,
                    verdict=judge(seed, protocol=protocol, honest=honest, better="lower"))
    for metric in ("f1_overall", "r2_ball_x", "temporal_consistency"):
        for game in GAMES:
            joint = t.find("encoder", metric, game=game)
            single = t.find("encoder", metric, f"base-{game}", game=game)
            if joint and single:
                yield entry(f"{metric}, {game}", "one encoder for three games; baseline: an "
                            "encoder of its own for the game", joint.against(single),
                            verdict=FIRST)


def single_level(t: Tables) -> Iterator[dict | None]:
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
        words = ("one level of 256 codes (level 0), held-out episodes of three games; seed's "
                 "column: sticky 0.25; baseline: random codes")
        yield entry(name, words, honest, seed=seed, protocol=protocol,
                    verdict=exactly(seed, protocol or honest))
    seconds = t.made_seconds("tokenizer", "levels.one")
    if seconds:
        seed = reference.seed_value("C07", "training_seconds")
        yield entry("training_seconds", "fitting one level; another machine than the seed's",
                    seconds, seed=seed, verdict=FIRST)


def projection(t: Tables) -> Iterator[dict | None]:
    projected = t.find("tokenizer", "l0_usage", "quantizer.projected_plain")
    direct = t.find("tokenizer", "l0_usage", "codebook.neither")
    if projected and direct:
        less = projected - direct
        verdict = REPRODUCED if less.is_below() else NOT_REPRODUCED
        yield entry("codes_used, 128 of 384 columns", "codes used on held-out episodes after PCA "
                    "to 128, no k-means, no refill; baseline: the same on all 384; another claim "
                    "than the seed's, whose embeddings were DINOv2's",
                    projected.map(lambda x: 256 * x).against(direct.map(lambda x: 256 * x)),
                    seed=reference.seed_value("C08", "codes_used_projected_128"), verdict=verdict)
    cured = t.find("tokenizer", "l2_variance_explained", "quantizer.projected")
    base = t.find("tokenizer", "l2_variance_explained")
    if cured and base:
        yield entry("l2_variance_explained, 128 columns", "with k-means and refill; baseline: all "
                    "384 columns", cured.against(base), verdict=FIRST)


def three_levels(t: Tables) -> Iterator[dict | None]:
    for level in range(3):
        seed = reference.seed_value("C09", f"perplexity_l{level}")
        found = t.find("tokenizer", f"l{level}_perplexity")
        if found:
            yield entry(f"l{level}_perplexity", "held-out episodes of three games; baseline: "
                        "random codes", found, seed=seed, verdict=exactly(seed, found))
    for arm, words in (("base", "three residual levels"),
                       ("quantizer.product", "three slices of equal bits"),
                       ("codebook.library", "vector-quantize-pytorch")):
        yield entry(f"l2_variance_explained, {arm}", f"variance of held-out embeddings explained "
                    f"by all codes, {words}; baseline: their mean",
                    t.find("tokenizer", "l2_variance_explained", arm), verdict=FIRST)


def commitment(t: Tables) -> Iterator[dict | None]:
    for arm in ("flat", "reversed", "zero"):
        same = mean_of(t.find("tokenizer", f"l{level}_same_as_base", f"commitment.{arm}")
                       for level in range(3))
        if same:
            yield entry(f"same tokens, frozen encoder, {arm}", "share of held-out codes equal to "
                        "those under the seed's schedule; 1: the schedule does nothing; baseline: "
                        "chance", same,
                        verdict=NOT_REPRODUCED if (same.values == 1).all() else REPRODUCED)
    base = t.find("tokenizer", "l0_variance_explained", "commitment_joint.seed")
    for arm in ("flat", "reversed", "zero"):
        for metric, game in (("l0_variance_explained", "all"), ("l0_state_information", "pong")):
            own = t.find("tokenizer", metric, "commitment_joint.seed", game=game)
            other = t.find("tokenizer", metric, f"commitment_joint.{arm}", game=game)
            if base and own and other:
                gain = own - other
                verdict = REPRODUCED if gain.is_above() else NOT_REPRODUCED
                yield entry(f"{metric}, trained together, {game}", f"encoder and codebooks train "
                            f"together under the seed's schedule; baseline: {arm}",
                            own.against(other), verdict=verdict)


def sharing(t: Tables) -> Iterator[dict | None]:
    information = [t.find("tokenizer", f"l{level}_game_information") for level in range(3)]
    if all(information):
        rises = (information[2] - information[0]).is_above()
        verdict = REPRODUCED if rises else NOT_REPRODUCED
        for level, found in enumerate(information):
            yield entry(f"l{level}_game_information", "nats that the code holds about the game; "
                        "reproduced if it rises from level 0 to 2 (interval clear of 0); "
                        "baseline: H(game), a code that no other game uses", found, verdict=verdict)
    for level in range(3):
        for threshold in ("0", "0.001", "0.01"):
            found = t.find("tokenizer", f"l{level}_shared_frames[from {threshold}]")
            yield entry(f"l{level}_shared_frames[from {threshold}]", "share of frames on codes "
                        "that each game uses for at least that share of its frames; baseline: "
                        "random codes", found, verdict=FIRST)
        yield entry(f"l{level}_shared_codes[from 0]", "the seed's set intersection: one stray use "
                    "counts", t.find("tokenizer", f"l{level}_shared_codes[from 0]"), verdict=FIRST)


def joint_codebook(t: Tables) -> Iterator[dict | None]:
    found = t.find("tokenizer", "l0_usage")
    if found:
        seed = reference.seed_value("C12", "codes_used_joint")
        yield entry("codes_used_joint", "codes of level 0 that occur in held-out episodes of any "
                    "game; baseline: random codes", found.map(lambda x: 256 * x), seed=seed,
                    verdict=exactly(seed, found.map(lambda x: 256 * x)))
    for game in ("all", *GAMES):
        found = t.find("tokenizer", "l0_perplexity", game=game)
        if found:
            seed = reference.seed_value("C12", "perplexity_joint")
            yield entry(f"l0_perplexity, {game}", "under the joint codebook; baseline: random "
                        "codes", found, seed=seed, verdict=exactly(seed, found))
