"""Tables as pages show them: words in place of metric names, few rows, all the rest one click away.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping

import pandas as pd

from hd import config
from hd.report import reference
from hd.report.tables import (
    TITLES,
    TRIVIAL,
    baseline_words,
    fresh_or_published,
    has_table,
    is_measured,
    number,
    over_seeds,
    pivot,
    profiles_of,
    provenance_line,
)
from hd.run.metrics import METRICS, key_of, matches, parsed

LEVEL_WORDS = ("coarse", "middle", "fine")
OBJECTS = {"player": "own figure", "enemy": "opponent"}
BRACKETS = TRIVIAL | {
    "ci_low": "low end of the 95% interval", "ci_high": "high end of the 95% interval",
    "tracker": "a scripted player", "ram_policy": "a player trained on RAM",
    "re-encoded": "read from the codes of the truth", "one_level": "one level",
    "apart": "each by itself", "together": "all together", "continuous": "embeddings"}
SHORT = {  # {level} and {coordinate} become words; what is not here is called by its definition
    "f1_overall": "whole state in RAM, F1",
    "r2_{coordinate}": "{coordinate}, R²",
    "error_{coordinate}": "{coordinate}, median error (RAM units)",
    "temporal_consistency": "distance of consecutive frames, of random ones",
    "diversity": "mean distance of frames",
    "l{level}_usage": "{level} codes in use, share",
    "l{level}_perplexity": "perplexity of {level} codes",
    "l{level}_repeat_rate": "{level} code as a step before, share",
    "l{level}_variance_explained": "variance explained by the codes down to the {level} one",
    "l{level}_same_as_base": "{level} codes as base gives them, share",
    "l{level}_game_information": "what the {level} code tells of the game (nats)",
    "state_bits": "bits of the state",
    "pixel_error": "decoded picture, squared error",
    "moving_pixel_error": "decoded picture where something moves, squared error",
    "l{level}_accuracy": "next {level} code, accuracy",
    "l{level}_changed_accuracy": "next {level} code where it changes, accuracy",
    "l{level}_cross_entropy": "next {level} code (nats)",
    "l{level}_changed_cross_entropy": "next {level} code where it changes (nats)",
    "reward_squared_error": "reward, squared error",
    "reward_average_precision": "finding steps that score, average precision",
    "exposures": "how often training saw each step",
    "dream_l{level}_accuracy": "dreamed {level} codes that are true, share",
    "dream_error_{coordinate}": "{coordinate} in dreams, median error (RAM units)",
    "dream_turn_recall_{coordinate}": "turns of {coordinate} dreamed in time, share",
    "dream_reward_recall": "scoring steps dreamed in time, share",
    "dream_reward_precision": "dreamed scoring steps that are true, share",
    "dream_reward_average_precision": "finding dreams that score, average precision",
    "l{level}_state_error": "{level} code: best guess from the whole state is wrong, share",
    "l{level}_context_floor": "{level} code: what last codes and action leave open (nats)",
    "twin_share": "steps that another episode had too, share",
    "l{level}_twin_disagreement": "such steps that differ in the next {level} code, share",
    "transfer_l{level}_cross_entropy": "next {level} code of the new game (nats)",
    "transfer_l0_gain": "what pre-training saves on coarse codes (nats)",
    "real_return": "return in the real game (points)",
    "real_length": "length of an episode (steps)",
    "training_steps": "real steps trained with",
}
LABEL = re.compile(r"(?:(?P<stage>\w+): )?(?P<name>\w+(?:\[[^]]*\])*)(?P<more>, .*)?")
# Of the many that anchors.csv has: the two ends of the scale, and who is compared with most.
BEST_KNOWN = ("Random", "Human", "EfficientZero", "IRIS", "TWM", "DreamerV3 2023 (v1)", "STORM",
              "DIAMOND", "TWISTER", "Simulus", "BBF")


def in_words(label: str) -> str:
    """A metric's name, also with a stage before it or with step or split behind it, in words."""
    parts = LABEL.fullmatch(label)
    name = parsed(parts["name"])
    said = [_plain(name.metric), *(BRACKETS.get(word, word) for word in name.words)]
    said += [f"{name.source}'s play"] if name.source else []
    said += [f"{words} {value:g}" for words, value in (
        ("near", name.at), ("sticky", name.sticky), ("from", name.at_least)) if value is not None]
    before = f"{parts['stage'].replace('_', ' ')}: " if parts["stage"] else ""
    return f"{before}{', '.join(said)}{parts['more'] or ''}"


def _plain(metric: str) -> str:
    pattern = next((pattern for pattern in SHORT if matches(pattern, metric)), None)
    text = SHORT[pattern] if pattern else METRICS[pattern := key_of(metric)].definition
    holes = re.sub(r"\{(\w+)\}", r"(?P<\1>\\w+)", pattern)
    for hole, found in re.fullmatch(holes, metric).groupdict().items():
        is_named = hole == "level" and int(found) < len(LEVEL_WORDS)
        word = LEVEL_WORDS[int(found)] if is_named else found
        word = _of_object(word) if hole == "coordinate" else word.replace("_", " ")
        is_said = f"{{{hole}}}" in text
        text = text.replace(f"{{{hole}}}", word) if is_said else f"{text} ({word})"
    return text


def _of_object(coordinate: str) -> str:
    """ball_x -> ball's x"""
    name, _, axis = coordinate.rpartition("_")
    return f"{OBJECTS.get(name, name).replace('_', ' ')}'s {axis}"


def brief(table: pd.DataFrame, metrics: Iterable[str], *, optional: Iterable[str] = (),
          steps: Iterable[float] | None = None) -> pd.DataFrame:
    """hd.report.tables.pivot in words: metrics down, with what the brackets hold, games across.

    steps: of metrics that are measured at several, those that are shown.
    """
    if steps is not None:
        table = table[table["step"].isna() | table["step"].isin(list(steps))]
    wide = pivot(table, metrics, optional=optional)
    names = []
    for label, cells in zip(wide.index, wide.astype(str).to_numpy()):
        beside = _beside(label, table) if any("(" in cell for cell in cells) else ""
        names.append(in_words(label) + (f" ({beside})" if beside else ""))
    return wide.set_axis(names, axis=0).rename(columns=TITLES)


def whole(table: pd.DataFrame, metrics: Iterable[str] | None = None) -> pd.DataFrame:
    """hd.report.tables.pivot for the page of one run: a metric's words, and at the end its name."""
    wide = pivot(table, metrics).rename(columns=TITLES)
    wide["name"] = wide.index
    return wide.set_axis([in_words(label) for label in wide.index], axis=0)


def _beside(label: str, table: pd.DataFrame) -> str:
    """What stands in the brackets of a row of pivot."""
    name = LABEL.fullmatch(label)["name"]
    declared = baseline_words(METRICS[key_of(name)].baseline, table)
    own, _, of_codes = declared.partition("; codes: ")
    return of_codes if of_codes and "tokenizer" in set(table["stage"]) else own


def fold(frame: pd.DataFrame, words: str) -> None:
    """In a notebook: a whole table behind one click on the words."""
    from IPython.display import HTML, display
    display(HTML(f"<details><summary>{html.escape(words)} ({len(frame)} rows)</summary>\n"
                 f"{frame.to_html(border=0)}\n</details>"))


def show(results_dir, profile: str, stage: str, metrics: Iterable[str], *,
         optional: Iterable[str] = (), steps: Iterable[float] | None = None) -> None:
    """In a notebook: brief of a stage's table of base after its provenance, and behind a click the
    same metrics over_seeds, by the names that results/ has. Of a stage beside the chain that has no
    table at this profile it is the largest profile's; where none has any, a line says so. A missing
    one of the chain raises InputError."""
    from IPython.display import display
    if stage in config.BESIDE_CHAIN and not has_table(results_dir, profile, stage):
        profile = next(iter(profiles_of(results_dir, stage)), profile)
        if not is_measured(results_dir, profile, stage):
            return
    table = fresh_or_published(results_dir, profile, stage)
    print(provenance_line(table))
    display(brief(table, metrics, optional=optional, steps=steps))
    fold(over_seeds(table, metrics, optional=optional),
         "Seed by seed, all steps, by the names in results/")


def show_anchors(section: str, games: Iterable[str], methods: Iterable[str] = BEST_KNOWN, *,
                 ours: Mapping[str, float] | None = None) -> None:
    """In a notebook: what others report by these methods, and behind a click by all; ours, a number
    of some of the games: a row before them."""
    from IPython.display import display
    found = reference.anchors(section, games)
    best = found.loc[[method for method in methods if method in found.index]]
    if ours:
        own = pd.DataFrame({game: number(value) for game, value in ours.items()}, ["this agent"])
        best = pd.concat([own.reindex(columns=best.columns), best]).fillna("")
    display(best)
    fold(found, "All methods")
