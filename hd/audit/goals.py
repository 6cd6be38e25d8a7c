"""What tokens, dreams and the agent must reach: bars, and which variant or run is over them.

The bars of probes are what others report with more pixels (results/reference); the rest says what
a player needs: where the ball is, where it will be, whether it scores. An agent's bars depend on
what it may cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pandas as pd

from hd.ablations import COMPARED
from hd.audit.evidence import Measurement, Tables, devices_and_commits
from hd.config import GAMES, PROFILES, resolve
from hd.measure import dreams
from hd.report import reference, words
from hd.report.tables import (
    PLAY,
    TITLES,
    TRIVIAL,
    agent_runs,
    device_of,
    listed,
    longest,
    number,
    summarise,
    with_baseline,
    with_spread,
)
from hd.run.metrics import METRICS, key_of, named

BALL_GAMES = ("pong", "breakout")
CONTROLLED = {"pong": ("player_y",), "breakout": ("player_x",),
              "ms_pacman": ("player_x", "player_y")}  # what the actions move
LEVELS = (0, 1, 2)
STEP = 15  # of a dream
FIRST_STEPS = (1, 5)  # of a dream, in which a ball seldom bounces
STILL = "last true place or velocity, the better"
CONTEXT = 1  # last steps of codes and actions, of which the context floor is taken
STAGES = {"representation": ("encoder", "tokenizer"),
          "dynamics": ("world_model", "entropy_floor", "imagination")}


@dataclass(frozen=True)
class Goal:
    """words: what is measured; baseline: what the brackets hold. find(tables, variant, game).

    must_beat: who is no better than the baseline, chance or a trivial method, has not reached the
    bar; without a bar that is all there is to reach. reason: why it is not reached where it is not,
    and where the evidence stands.
    """

    topic: str  # of STAGES
    words: str
    baseline: str
    games: tuple[str, ...]
    bar: Callable[[str], float] | None  # of a game
    find: Callable[[Tables, str, str], Measurement | None]
    higher: bool = True
    must_beat: bool = False
    reason: str = ""

    def bar_text(self, game: str, found: Measurement | None = None) -> str:
        """The bar of a game; where it is the baseline alone, that of what was found."""
        if self.bar is None:
            if found and found.baseline == 0 and not self.higher:
                return "0, as exact as the guess"
            beaten = number(found.baseline) if found else "brackets"
            return f"{'>' if self.higher else '<'} {beaten}"
        return f"{'≥' if self.higher else '≤'} {self.bar(game):g}"

    def is_reached(self, found: Measurement, game: str) -> bool:
        sign = 1 if self.higher else -1
        is_exact = found.baseline == 0 and not self.higher  # an error that nobody can beat
        if self.must_beat and not sign * found.mean > sign * found.baseline:
            return is_exact and found.mean == 0
        return self.bar is None or sign * found.mean >= sign * self.bar(game)


def _metric(stage: str, metric: str, *, step: float | None = None) -> Callable:
    return lambda t, variant, game: t.find(stage, metric, variant, game=game, step=step)


def _beside_best(stage: str, metric: str, *, step: float | None = None) -> Callable:
    """A metric beside the best of its own baseline and the trivial methods with rows."""
    def find(t: Tables, variant: str, game: str) -> Measurement | None:
        found = t.find(stage, metric, variant, game=game, step=step)
        return found and _against_best(t, found, stage, metric, variant, game=game, step=step)
    return find


def _against_best(t: Tables, found: Measurement, stage: str, metric: str, variant: str,
                  **where) -> Measurement:
    best = {"higher": max, "lower": min}[METRICS[key_of(metric)].better]
    rows = [t.find(stage, named(metric, word), variant, **where) for word in TRIVIAL]
    known = [found.baselines, *(one.values for one in rows if one)]
    known = [one for one in known if not one.isna().all()]
    return replace(found, baselines=best(known, key=lambda one: one.mean())) if known else found


def _of_controlled(stage: str, metric: str, *, step: float | None = None) -> Callable:
    """A metric of what the actions move, of its worse coordinate, beside the best trivial one."""
    def find(t: Tables, variant: str, game: str) -> Measurement | None:
        names = [f"{metric}_{coordinate}" for coordinate in CONTROLLED[game]]
        found = [_beside_best(stage, name, step=step)(t, variant, game) for name in names]
        worst = {"higher": min, "lower": max}[METRICS[key_of(names[0])].better]
        return worst(found, key=lambda one: one.mean) if all(found) else None
    return find


def _of_whole_dreams(metric: str) -> Callable:
    """A metric that stands at the last step of the profile's dreams."""
    def find(t: Tables, variant: str, game: str) -> Measurement | None:
        chosen = resolve(t.profile, variant)
        length = dreams.num_steps(chosen.imagination, chosen.world_model.max_steps)
        return t.find("imagination", metric, variant, game=game, step=length)
    return find


def _lost_in_codes(t: Tables, variant: str, game: str) -> Measurement | None:
    """Probes on continuous embeddings less those on codes; both stand in the tokenizer's table."""
    codes = t.find("tokenizer", "f1_overall", variant, game=game)
    return codes and replace(codes, values=codes.baselines - codes.values,
                             baselines=codes.values * math.nan)


def _least_usage(t: Tables, variant: str, game: str) -> Measurement | None:
    found = [t.find("tokenizer", f"l{level}_usage", variant) for level in LEVELS]
    if any(one is None for one in found):
        return None
    return min(found, key=lambda one: one.mean)


def _way_to_floor(level: int) -> Callable:
    """How much of the best trivial predictor's cross-entropy above the floor the world model
    saves: 1 is all. The floor is what the last codes and the action leave open, and in brackets
    stands the way to the bound beneath it, the emulator's floor. Where a variant's tables lack the
    former, the way is that to the latter, without brackets."""
    def find(t: Tables, variant: str, game: str) -> Measurement | None:
        metric = f"l{level}_cross_entropy"
        model = _beside_best("world_model", metric)(t, variant, game)
        name = named(f"l{level}_state_floor", sticky=0)
        bound = (t.find("entropy_floor", name, variant, game=game)
                 or t.find("entropy_floor", name, game=game))
        context = t.find("entropy_floor", f"l{level}_context_floor", variant, game=game,
                         step=CONTEXT)
        floor = context or bound
        if model is None or floor is None:
            return None
        saved, to_bound = ((model.baselines - model.values) / (model.baselines - one.mean)
                           if one else model.values * math.nan
                           for one in (floor, context and bound))
        return replace(model, values=saved, baselines=to_bound,
                       sources=model.sources + floor.sources)
    return find


def _probe_bar(game: str) -> float:
    """ST-DIM's weighted F1 (Anand et al. 2019), which sees the full screen."""
    return reference.anchor("AtariARI probe F1", "ST-DIM", TITLES[game])


def _always(value: float) -> Callable[[str], float]:
    return lambda game: value


def _dreamed(step: int) -> str:
    return f"{step} dreamed step{'s' * (step > 1)}"


GOALS = (
    Goal("representation", "F1 of RAM state by linear probes; bar: ST-DIM",
         "untrained encoder or pixels, the better", GAMES, _probe_bar,
         _beside_best("encoder", "f1_overall"),
         reason="A frame is told from its neighbours of the same stretch: what stands still there, "
                "like score and lives, need not be known, and a linear softmax asks for the exact "
                "place. Of where the player is, the untrained network mostly keeps "
                "more (`f1_agent_localization` in the encoder's table)."),
    Goal("representation", "F1 lost in the codes", "", GAMES, _always(0.05), _lost_in_codes,
         higher=False,
         reason="Three codes are few for exact places and scores, and a game does not use them "
                "all: games share almost no codes (`l0_usage` by game in the tokenizer's table)."),
    Goal("representation", "R2 of ball_x read from codes", "embeddings", BALL_GAMES, _always(0.9),
         _metric("tokenizer", "r2_ball_x"),
         reason="The embeddings hold it (in brackets above) and half of all frames are read within "
                "the bar of the error. The squared error is made where the ball seldom is, which "
                "is partly so in the embeddings too (the figure below)."),
    Goal("representation", "R2 of ball_y read from codes", "embeddings", BALL_GAMES, _always(0.9),
         _metric("tokenizer", "r2_ball_y"), reason="Lost in the codes, as above."),
    Goal("representation", "median error of ball_x read from codes, of 160", "embeddings",
         BALL_GAMES, _always(4.0), _metric("tokenizer", "error_ball_x"), higher=False,
         reason="Lost in the codes, as above."),
    Goal("representation", "R2 of the controlled object read from codes", "embeddings", GAMES,
         _always(0.9), _of_controlled("tokenizer", "r2"),
         reason="Three codes say first what fills the picture; a paddle is few pixels of it. The "
                "embeddings hold it better (in brackets)."),
    Goal("representation", "codes in use, least used level", "random codes", ("all",),
         _always(0.95), _least_usage, reason="Codes that no held-out frame falls on."),
    *(Goal("dynamics", f"next L{level} code: way from the best trivial predictor (0) to "
           "the floor (1)", "to the emulator's", GAMES, _always(0.5), _way_to_floor(level),
           reason="Counting with back-off is strong on codes that are easy to foresee; whether "
                  "training ended too early or too late, the world model's history shows.")
      for level in LEVELS),
    *(Goal("dynamics", f"median error of ball_x after {_dreamed(step)}", STILL, BALL_GAMES,
           None, _beside_best("imagination", "dream_error_ball_x", step=step), higher=False,
           must_beat=True,
           reason="A straight line by the last velocity is nearly right until the ball bounces; "
                  "the codes of the truth are read with a larger error "
                  "(`dream_error_ball_x[re-encoded]`).") for step in FIRST_STEPS),
    *(Goal("dynamics", f"median error of the controlled object after {_dreamed(step)}", STILL,
           GAMES, _always(8.0) if step == STEP else None,
           _of_controlled("imagination", "dream_error", step=step), higher=False, must_beat=True,
           reason="What the codes lose of it (on the page before), no dream can know; the actions "
                  "that move it are known.") for step in (1, STEP)),
    Goal("dynamics", f"median error of ball_x after {STEP} dreamed steps, of 160",
         STILL, BALL_GAMES, _always(8.0),
         _beside_best("imagination", "dream_error_ball_x", step=STEP), higher=False, must_beat=True,
         reason="The codes of the truth themselves are read with an error "
                "(`dream_error_ball_x[re-encoded]` below), and codes are drawn at random at every "
                "step, so small errors add up."),
    Goal("dynamics", "first turn of ball_x dreamed within 2 steps", "another dream", BALL_GAMES,
         _always(0.6), _metric("imagination", "dream_turn_recall_ball_x", step=STEP),
         must_beat=True,
         reason="Read from the codes of the truth, turns are missed too "
                "(`dream_turn_recall_ball_x[re-encoded]` in the table of imagination), and a dream "
                "that is late by three steps counts as blind."),
    *(Goal("dynamics", f"scoring steps of dreams: {name}", "another dream", GAMES, _always(0.8),
           _of_whole_dreams(f"dream_reward_{name}"), must_beat=True,
           reason="In a real context the reward head finds scoring steps (in Pong: "
                  "`reward_average_precision` below); over its length the dream drifts away from "
                  "the ball that scores. Random play scores rarely.")
      for name in ("recall", "precision")),
)


def table(topic: str, profile: str, *, results_dir=None) -> pd.DataFrame:
    """The goals of a topic, with what the brackets hold: game, bar, and for each variant mean
    its seeds or [95% interval] (baseline), n; ✓ before one that reaches the bar, – where nothing is
    measured."""
    tables, rows = Tables(profile, results_dir), []
    for goal in _of_topic(topic):
        for game in goal.games:
            brackets = f" ({goal.baseline})" if goal.baseline else ""
            row = {"what (in brackets)": goal.words + brackets, "game": TITLES[game],
                   "bar": goal.bar_text(game)}
            for variant in COMPARED:
                found = goal.find(tables, variant, game)
                mark = "✓ " if found and goal.is_reached(found, game) else ""
                row[variant] = mark + _cell(found)
            rows.append(row)
    return pd.DataFrame(rows).set_index("what (in brackets)").rename_axis(index=None)


def _of_topic(topic: str) -> list[Goal]:
    return [goal for goal in GOALS if goal.topic == topic]


def in_short(topic: str, profile: str, *, results_dir=None) -> pd.DataFrame:
    """The goals of a topic, one row each: for each variant the mean of each of the games in turn,
    after ✓ where it reaches the bar, – where nothing is measured; the bars, and the games."""
    tables, rows = Tables(profile, results_dir), []
    for goal in _of_topic(topic):
        found = {variant: [goal.find(tables, variant, game) for game in goal.games]
                 for variant in COMPARED}
        beaten = f"better than {goal.baseline.partition(',')[0]}"
        bars = (beaten if goal.bar is None else goal.bar_text(game) for game in goal.games)
        texts = {variant: ", ".join(_in_short(goal, *one) for one in zip(cells, goal.games))
                 for variant, cells in found.items()}
        what = goal.words.replace("R2", "R²").replace("ball_", "the ball's ")
        for level in LEVELS:
            what = what.replace(f"L{level} code", f"{words.LEVEL_WORDS[level]} code")
        rows.append({"what": what, **texts, "bar": listed(bars),
                     "games": listed(TITLES[game] for game in goal.games)})
    return pd.DataFrame(rows).set_index("what").rename_axis(index=None)


def _in_short(goal: Goal, found: Measurement | None, game: str) -> str:
    if found is None:
        return "–"
    return ("✓ " if goal.is_reached(found, game) else "") + number(found.mean)


def show(topic: str, profile: str, *, results_dir=None) -> None:
    """In a notebook: in_short of the largest profile at which hi-dreamer is measured, else of the
    given one, with devices and commits; behind a click the whole table of each such profile."""
    from IPython.display import Markdown, display
    profiles = measured(topic, results_dir) or [profile]
    display(Markdown(f"**{profiles[0]}**: {PROFILES[profiles[0]].purpose}"))
    display(in_short(topic, profiles[0], results_dir=results_dir))
    for name in profiles:
        words.fold(table(topic, name, results_dir=results_dir), f"With seeds and baselines, {name}")
        for variant in COMPARED:
            records = [record for stage in STAGES[topic] for _, _, record
                       in Tables(name, results_dir).read(stage, variant)]
            if records:
                display(Markdown(f"{name}, {variant}. {devices_and_commits(records)}"))


def show_unreached(topic: str, *, results_dir=None) -> None:
    """In a notebook: each bar of a topic that no variant reaches at the largest profile at which
    hi-dreamer is measured, with the best value of each such game and the reason found."""
    from IPython.display import Markdown, display
    profile = next(iter(measured(topic, results_dir)), None)
    if profile is None:
        display(Markdown("hi-dreamer is not measured here."))
        return
    tables = Tables(profile, results_dir)
    lines = [line for goal in _of_topic(topic) for line in _shortfall(goal, tables)]
    display(Markdown("\n".join([f"At **{profile}**:", "", *lines] if lines else
                               [f"At **{profile}** every bar that is measured is reached."])))


def measured(topic: str, results_dir) -> list[str]:
    """The profiles at which hi-dreamer is measured, the largest first."""
    def is_measured(profile: str) -> bool:
        tables = Tables(profile, results_dir)
        return any(list(tables.read(stage, "hi-dreamer")) for stage in STAGES[topic])

    return [profile for profile in reversed(PROFILES) if is_measured(profile)]


def _shortfall(goal: Goal, tables: Tables) -> list[str]:
    """A line about the games in which no variant reaches the goal; none where all are reached."""
    missed = []
    for game in goal.games:
        found = {variant: goal.find(tables, variant, game) for variant in COMPARED}
        found = {variant: one for variant, one in found.items() if one is not None}
        if found and not any(goal.is_reached(one, game) for one in found.values()):
            best = (max if goal.higher else min)(found, key=lambda name: found[name].mean)
            missed.append(f"{TITLES[game]} {number(found[best].mean)} ({best}), "
                          f"bar {goal.bar_text(game, found[best])}")
    return [f"- **{goal.words}**: {'; '.join(missed)}. {goal.reason}"] if missed else []


@dataclass(frozen=True)
class Budget:
    """What an agent may cost, and the return (unclipped, of whole episodes) that num_seeds seeds
    must then reach, or exceed: bars, by game."""

    words: str
    bars: dict[str, float]
    num_seeds: int
    minutes: float = math.inf  # of one game and seed
    on_gpu: bool | None = None  # None: on either
    must_exceed: bool = False

    def says(self, bar: float) -> str:
        return f"{'>' if self.must_exceed else '≥'} {number(bar)}"

    def allows(self, records: list[dict]) -> bool:
        on_cores = {device_of(record).endswith("cores") for record in records}
        return (longest(records) <= self.minutes
                and (self.on_gpu is None or on_cores == {not self.on_gpu}))

    def is_reached(self, bar: float, found: dict) -> bool:
        """Whether there are enough seeds, and all of their interval passes the bar; under five
        seeds, which have none, each of the seeds."""
        lowest = min(found["seeds"]) if math.isnan(found["low"]) else found["low"]
        return found["n"] >= self.num_seeds and self.is_passed(bar, lowest)

    def is_passed(self, bar: float, found: float) -> bool:
        return found > bar if self.must_exceed else found >= bar


BUDGETS = (
    Budget("processor cores, three hours", {"pong": 0, "breakout": 10, "ms_pacman": 800},
           num_seeds=3, minutes=180, on_gpu=False, must_exceed=True),
    Budget("one graphics card, ten minutes", {"pong": 15, "breakout": 30, "ms_pacman": 1500},
           num_seeds=3, minutes=10, on_gpu=True),
    Budget("any; bar: the best world-model agent of others",
           {game: reference.anchor("atari100k", method, TITLES[game]) for game, method in (
               ("pong", "DIAMOND"), ("breakout", "Simulus-A (Aug 2026)"),
               ("ms_pacman", "OC-STORM"))}, num_seeds=5),
)


@dataclass(frozen=True)
class Gate:
    """What an agent should pass on its way to a return: the worst of these metrics has to reach
    what is needed, given what stands beside it."""

    words: str
    metrics: str  # a pattern
    beside: str
    needed: Callable[[float], float]
    higher: bool = True
    before: float = math.inf  # of a metric by step, its last one until then counts
    games: tuple[str, ...] = GAMES

    def worst(self, table: pd.DataFrame) -> pd.Series | None:
        rows = table[table["metric"].str.fullmatch(self.metrics) & ~(table["step"] > self.before)]
        if rows.empty:
            return None
        found = summarise(rows).sort_values("step").groupby("metric").tail(1)
        return found.sort_values("mean", ascending=self.higher).iloc[0]

    def cell(self, table: pd.DataFrame, game: str) -> str:
        """What an agent's table has, after ✓ where it passes, else with what it needs; – where
        nothing is measured, or the gate is not this game's."""
        worst = self.worst(table)
        if worst is None or game not in self.games:
            return "–"
        needed, has = self.needed(worst["baseline"]), with_baseline(
            number(worst["mean"]), worst["baseline"])
        if worst["mean"] >= needed if self.higher else worst["mean"] <= needed:
            return f"✓ {has}"
        return f"{has}, needs {'≥' if self.higher else '≤'} {number(needed)}"


def _probed(metric: str) -> str:
    return metric + r"_[xy]\[source (random|agent)\]"


GATES = (
    Gate("own figure in its codes, R²", _probed("r2_player"), "pixels", lambda beside: 0.95),
    Gate("ball in its codes, R²", _probed("r2_ball"), "pixels", lambda beside: 0.95),
    Gate("median error of either, of 160", _probed("error_(player|ball)"), "pixels",
         lambda beside: 3.0, higher=False),
    *(Gate(f"lost contacts foretold, {words}, AUC", rf"contact_auc\[source {source}\]", "from RAM",
           lambda beside, least=0.9 if source == "agent" else 0: max(least, beside))
      for source, words in PLAY.items()),
    Gate("a held action's return, error", "held_action_error", "zero", lambda beside: 0.05,
         higher=False),
    Gate("return of the last ten episodes by 25,500 steps", "training_return", "random play",
         lambda beside: -18.0, before=25_500, games=("pong",)),
)


def _best_runs(results_dir) -> Iterator[tuple[Budget, str, tuple | None]]:
    """Of each budget and game the best run that it allows, by its mean, but one that reaches the
    bar before all others: (its return, variant, table); None where there is none."""
    runs = list(agent_runs(results_dir))
    for budget, game in itertools.product(BUDGETS, GAMES):
        allowed = [(_return_of(table), variant, table) for name, variant, table in runs
                   if name == game and budget.allows(table.attrs["records"])]
        yield budget, game, max(allowed, default=None, key=lambda one, budget=budget, game=game: (
            budget.is_reached(budget.bars[game], one[0]), one[0]["mean"]))


def agent_bars(results_dir) -> pd.DataFrame:
    """The bars of each budget, one row for each game, as text: the best run that the budget allows,
    ✓ before a return that reaches the bar, and how many minutes the longest of its seeds took."""
    rows, names = [], []
    for budget, game, best in _best_runs(results_dir):
        bar = budget.bars[game]
        row = {"game": TITLES[game], "return": "–", "bar": budget.says(bar), "run": "–",
               "seeds": f"{best[0]['n'] if best else 0} of {budget.num_seeds}"}
        if best:
            found, variant, table = best
            records = table.attrs["records"]
            mark = ("✓ " if budget.is_reached(bar, found)
                    else "over it: " if budget.is_passed(bar, found["mean"]) else "")
            shown = with_spread(number(found["mean"]), found["seeds"], found["low"], found["high"])
            row |= {"return": f"{mark}{shown}", "run": f"{records[0]['profile']}, {variant}, "
                                                      f"{longest(records):.0f} minutes"}
        rows.append(row)
        names.append(budget.words)
    return pd.DataFrame(rows, index=names)


def agent_gates(results_dir) -> pd.DataFrame:
    """The GATES, a row each, and how the runs of agent_bars stand before them, a column each."""
    runs = {f"{TITLES[game]}, {best[2].attrs['records'][0]['profile']}, {best[1]}": (best[2], game)
            for _, game, best in _best_runs(results_dir) if best}
    return pd.DataFrame({name: [gate.cell(*run) for gate in GATES] for name, run in runs.items()},
                        index=[f"{gate.words} ({gate.beside})" for gate in GATES])


def _return_of(table: pd.DataFrame) -> dict:
    (row,) = summarise(table, ["real_return"]).to_dict("records")
    return row


def _cell(found: Measurement | None) -> str:
    if found is None:
        return "–"
    text = with_spread(number(found.mean), found.values, *found.bounds)
    if not math.isnan(found.baseline):
        text += f" ({number(found.baseline)})"
    return f"{text}, n={len(found.values)}"
