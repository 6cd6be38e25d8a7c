"""What tokens and dreams must reach to be worth playing in: bars, and which variant is over them.

The bars of probes are what others report with more pixels (results/reference); the rest says what
a player needs: where the ball is, where it will be, whether it scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from hd import reference, report
from hd.config import GAMES, PROFILES, resolve
from hd.evaluation import dream_steps
from hd.evidence import Found, Tables, devices_and_commits

VARIANTS = ("base", "hi-dreamer")
BALL_GAMES = ("pong", "breakout")
LEVELS = (0, 1, 2)
STEP = 15  # of a dream
STAGES = {"representation": ("encoder", "tokenizer"),
          "dynamics": ("world_model", "entropy_floor", "imagination")}


@dataclass(frozen=True)
class Goal:
    """words: what is measured; baseline: what the brackets hold. find(tables, variant, game).

    Who is over a bar by chance has not reached it: is_chance says that the baseline is chance.
    """

    topic: str  # of STAGES
    words: str
    baseline: str
    games: tuple[str, ...]
    bar: Callable[[str], float]  # of a game
    find: Callable[[Tables, str, str], Found | None]
    higher: bool = True
    is_chance: bool = False

    def is_reached(self, found: Found, game: str) -> bool:
        if self.is_chance and not found.mean > found.baseline:
            return False
        bar = self.bar(game)
        return found.mean >= bar if self.higher else found.mean <= bar


def _metric(stage: str, metric: str, *, step: float | None = None) -> Callable:
    return lambda t, variant, game: t.find(stage, metric, variant, game=game, step=step)


def _of_whole_dreams(metric: str) -> Callable:
    """A metric that stands at the last step of the profile's dreams."""
    def find(t: Tables, variant: str, game: str) -> Found | None:
        return t.find("imagination", metric, variant, game=game,
                      step=dream_steps(resolve(t.profile, variant)))
    return find


def _lost_in_codes(t: Tables, variant: str, game: str) -> Found | None:
    """Probes on continuous embeddings less those on codes; both stand in the tokenizer's table."""
    codes = t.find("tokenizer", "f1_overall", variant, game=game)
    return codes and Found(codes.baselines - codes.values, codes.values * math.nan, codes.profile,
                           codes.device, codes.tables)


def _least_usage(t: Tables, variant: str, game: str) -> Found | None:
    found = [t.find("tokenizer", f"l{level}_usage", variant) for level in LEVELS]
    if None in found:
        return None
    return min(found, key=lambda one: one.mean)


def _way_to_floor(level: int) -> Callable:
    """How much of the n-gram's cross-entropy above the floor the world model saves: 1 is all."""
    def find(t: Tables, variant: str, game: str) -> Found | None:
        model = t.find("world_model", f"l{level}_cross_entropy", variant, game=game)
        floor = t.find("entropy_floor", f"l{level}_state_floor[sticky 0]", variant, game=game)
        floor = floor or t.find("entropy_floor", f"l{level}_state_floor[sticky 0]", game=game)
        if model is None or floor is None:
            return None
        saved = (model.baselines - model.values) / (model.baselines - floor.mean)
        return Found(saved, saved * math.nan, model.profile, model.device,
                     model.tables + floor.tables)
    return find


def _probe_bar(game: str) -> float:
    """ST-DIM's weighted F1 (Anand et al. 2019), which sees the full screen."""
    return reference.anchor("AtariARI probe F1", "ST-DIM", report.TITLES[game])


def _always(value: float) -> Callable[[str], float]:
    return lambda game: value


GOALS = (
    Goal("representation", "F1 of RAM state by linear probes; bar: ST-DIM", "untrained encoder",
         GAMES, _probe_bar, _metric("encoder", "f1_overall")),
    Goal("representation", "F1 lost in the codes", "", GAMES, _always(0.05), _lost_in_codes,
         higher=False),
    Goal("representation", "R2 of ball_x read from codes", "embeddings", BALL_GAMES, _always(0.9),
         _metric("tokenizer", "r2_ball_x")),
    Goal("representation", "R2 of ball_y read from codes", "embeddings", BALL_GAMES, _always(0.9),
         _metric("tokenizer", "r2_ball_y")),
    Goal("representation", "median error of ball_x read from codes, of 160", "embeddings",
         BALL_GAMES, _always(4.0), _metric("tokenizer", "error_ball_x"), higher=False),
    Goal("representation", "codes in use, least used level", "random codes", ("all",),
         _always(0.95), _least_usage),
    *(Goal("dynamics", f"next L{level} code: way from n-gram (0) to floor (1)", "",
           GAMES, _always(0.5), _way_to_floor(level)) for level in LEVELS),
    Goal("dynamics", f"median error of ball_x after {STEP} dreamed steps, of 160",
         "last true place", BALL_GAMES, _always(8.0),
         _metric("imagination", "dream_error_ball_x", step=STEP), higher=False),
    Goal("dynamics", "first turn of ball_x dreamed within 2 steps", "another dream", BALL_GAMES,
         _always(0.6), _metric("imagination", "dream_turn_recall_ball_x", step=STEP),
         is_chance=True),
    *(Goal("dynamics", f"scoring steps of dreams: {name}", "another dream", GAMES, _always(0.8),
           _of_whole_dreams(f"dream_reward_{name}"), is_chance=True)
      for name in ("recall", "precision")),
)


def table(topic: str, profile: str, *, results_dir=None) -> pd.DataFrame:
    """The goals of a topic, with what the brackets hold: game, bar, and for each variant mean
    [95% interval] (baseline), n seeds; ✓ before one that reaches the bar, – where nothing is
    measured."""
    tables, rows = Tables(profile, results_dir), []
    for goal in (goal for goal in GOALS if goal.topic == topic):
        for game in goal.games:
            row = {"what (in brackets)": goal.words + f" ({goal.baseline})" * bool(goal.baseline),
                   "game": report.TITLES[game],
                   "bar": f"{'≥' if goal.higher else '≤'} {goal.bar(game):g}"}
            for variant in VARIANTS:
                found = goal.find(tables, variant, game)
                row[variant] = "–" if found is None else (
                    "✓ " * goal.is_reached(found, game) + _cell(found))
            rows.append(row)
    return pd.DataFrame(rows).set_index("what (in brackets)").rename_axis(index=None)


def show(topic: str, profile: str, *, results_dir=None) -> None:
    """The tables of all profiles at which hi-dreamer is measured, the largest first; that of the
    given profile where it is measured at none."""
    from IPython.display import Markdown, display
    found = {name: table(topic, name, results_dir=results_dir) for name in reversed(PROFILES)}
    both = [name for name, goals in found.items() if (goals["hi-dreamer"] != "–").any()]
    for name in both or [profile]:
        display(Markdown(f"**{name}**: {PROFILES[name].purpose}"))
        display(found[name])
        for variant in VARIANTS:
            records = [record for stage in STAGES[topic] for _, _, record
                       in Tables(name, results_dir).read(stage, variant)]
            if records:
                display(Markdown(f"{variant}. {devices_and_commits(records)}"))


def _cell(found: Found) -> str:
    text = report.number(found.mean)
    if len(found.values) > 1:
        text += f" [{', '.join(report.number(bound) for bound in found.bounds)}]"
    if not math.isnan(found.baseline):
        text += f" ({report.number(found.baseline)})"
    return f"{text}, n={len(found.values)}"
