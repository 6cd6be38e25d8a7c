"""What a report page found, in one sentence of numbers from the tables, and the numbers of the
picture below it (hd.report.finding_figures). Each page opens with both.

Nothing is typed: where a table is missing, so is the part of the sentence that would tell of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from hd.ablations import ABLATIONS, COMPARED
from hd.report import ablation_tables, benchmarks, reference, words
from hd.report.tables import (
    BEST_TRIVIAL,
    TITLES,
    agents_of,
    baseline_words,
    best_baselines,
    device_of,
    fresh_or_published,
    largest,
    listed,
    minutes_of,
    number,
    summarise,
)
from hd.run.intervals import FEWEST_SEEDS, SIGNIFICANT
from hd.run.metrics import named, parsed

STEP = 15  # of a dream, of which the sentence tells
NOTHING = "Nothing is measured here yet."
UNTRAINED = "untrained encoder's embeddings"
DRAWN = 12  # ablations' arms, and bars of the benchmark


def show(sentence: str) -> None:
    """In a notebook: what was found."""
    from IPython.display import Markdown, display
    display(Markdown(sentence))


def _all_of(parts: Iterable[str]) -> str:
    """a, b and c"""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _by_game(values: Mapping[str, float]) -> str:
    """0.958 in Pong and 0.983 in Breakout"""
    return _all_of(f"{number(value)} in {TITLES[game]}" for game, value in values.items())


def _made_by(table: pd.DataFrame) -> str:
    """(desk, seeds 0, 1, 2)"""
    records = table.attrs["records"]
    return (f"({records[0]['profile']}, seed{'s' * (len(records) > 1)} "
            f"{listed(sorted(record['seed'] for record in records))})")


# ---- representation

def ball_read(results_dir) -> pd.DataFrame:
    """How well the ball's x is read, R², a row each: game, what it is read from, value; base's and
    hi-dreamer's codes, each at its largest profile, the embeddings that these very codes stand for,
    and the encoder of the last of them untrained."""
    rows, untrained = [], {}
    for variant in COMPARED:
        of_codes = _ball_x(largest(results_dir, "tokenizer", variant))
        of_encoder = _ball_x(largest(results_dir, "encoder", variant))
        embedded = of_codes["baseline"] if len(of_codes) else of_encoder["mean"]
        for read, values in (("embeddings", embedded), ("codes", of_codes["mean"])):
            rows += [{"game": game, "read": f"{variant}'s {read}", "value": value}
                     for game, value in values.items() if not np.isnan(value)]
        untrained |= of_encoder["baseline"].dropna().to_dict()
    rows = [{"game": game, "read": UNTRAINED, "value": value}
            for game, value in untrained.items()] + rows
    return pd.DataFrame(rows, columns=["game", "read", "value"])


def _ball_x(table: pd.DataFrame | None) -> pd.DataFrame:
    """What summarise has of the ball's x, by game; empty without a table or a ball in it."""
    if table is None or not (table["metric"] == "r2_ball_x").any():
        return pd.DataFrame(columns=["mean", "baseline"], dtype=float)
    return summarise(table, ["r2_ball_x"]).set_index("game")


def representation(results_dir) -> str:
    """What embeddings and codes know of the ball, and of the whole state."""
    found = ball_read(results_dir)
    if found.empty:
        return NOTHING
    parts = [f"from {'an ' if read == UNTRAINED else ''}{read} with "
             + _by_game(own.set_index("game")["value"])
             for read, own in found.groupby("read", sort=False)][::-1]
    made = [f"{variant}'s {_made_by(table)}, {' and '.join(own['split'].unique())} episodes"
            for variant in COMPARED
            if len(own := _ball_x(table := largest(results_dir, "tokenizer", variant)))]
    text = (f"Where the ball is (its x; R², 1 is exact) is read {'; '.join(parts)}"
            + (f"; codes and embeddings: {'; '.join(made)}" if made else "") + ".")
    for variant in COMPARED[::-1]:
        table = largest(results_dir, "encoder", variant)
        if table is not None and (table["metric"] == "f1_overall").any():
            state = summarise(table, ["f1_overall"])
            more = (state["mean"] > state["baseline"]).sum()
            return (f"{text} Of the whole state in RAM, {variant}'s embeddings tell more than an "
                    f"untrained encoder's in {more} of {len(state)} games {_made_by(table)}.")
    return text


PROTOCOLS = {  # how linear probes are fitted: base and the arms of probe_protocol, in words
    "base": "standardised features", "probe_protocol.raw": "features as they are",
    "probe_protocol.atariari": "AtariARI's protocol",
    "probe_protocol.st_dim_atariari": "AtariARI's protocol, trained as ST-DIM",
    "probe_protocol.unseen": "fitted on episodes that the encoder did not see"}
PROBED = {"": "trained", "untrained": "untrained", "pixel_pca": "pixels", "majority": "majority"}


def show_protocols(profile: str, results_dir=None) -> None:
    """In a notebook: F1 of the whole state by other protocols of linear probes, a row per protocol,
    in each cell what is probed (PROBED), the mean over seeds; nothing where none is published."""
    from IPython.display import display
    table = ablation_tables.arms("probe_protocol", profile, results_dir=results_dir)
    if table.empty:
        return
    found = summarise(table, [named("f1_overall", word) for word in PROBED])
    found = found.assign(
        protocol=found["variant"].map(PROTOCOLS), text=found["mean"].map(number),
        probed=[PROBED[" ".join(parsed(metric).words)] for metric in found["metric"]])
    found["probed"] = pd.Categorical(found["probed"], [*PROBED.values()], ordered=True)
    cells = found.sort_values("probed").groupby(["protocol", "game"])["text"].agg(" / ".join)
    wide = cells.unstack().rename(columns=TITLES).rename_axis(columns=" / ".join(PROBED.values()))
    display(wide.loc[[words for words in PROTOCOLS.values() if words in wide.index]]
            .rename_axis(index=None))


# ---- dynamics

def dream_errors(results_dir) -> tuple[str, pd.DataFrame]:
    """The variant, hi-dreamer where it is measured, and how far the ball's x is off in its dreams:
    a row per game and step, with the median error in RAM units (of 160) of the dream, of what is
    read from the codes of the truth, and of the better of a still and a straight guess."""
    metric = "dream_error_ball_x"
    for variant in COMPARED[::-1]:
        table = largest(results_dir, "imagination", variant)
        if table is not None and (table["metric"] == metric).any():
            dreamt = summarise(table, [metric])
            dreamt["guess"] = [value for value, _ in best_baselines(dreamt, table)]
            read = summarise(table, [named(metric, "re-encoded")])
            found = dreamt.merge(read, on=["game", "step"], suffixes=("", "_read"))
            found = found.rename(columns={"mean": "dream", "mean_read": "truth"})
            return variant, found[["game", "step", "dream", "truth", "guess"]]
    return COMPARED[0], pd.DataFrame(columns=["game", "step", "dream", "truth", "guess"])


def dynamics(results_dir) -> str:
    """How well the next code is predicted where it changes, and where the ball is in a dream."""
    variant, errors = dream_errors(results_dir)
    parts, table = [], largest(results_dir, "world_model", variant)
    metric = "l0_changed_accuracy"
    if table is not None and (table["metric"] == metric).any():
        found = summarise(table, [metric])
        best = [value for value, _ in best_baselines(found, table)]
        parts.append(f"Where the coarse code changes, {variant}'s world model {_made_by(table)} "
                     f"names the next one in a share of "
                     f"{_by_game(found.set_index('game')['mean'])} "
                     f"({baseline_words(BEST_TRIVIAL, table)} "
                     f"{_by_game(dict(zip(found['game'], best)))})")
    for row in errors[errors["step"] == STEP].to_dict("records"):
        parts.append(f"after {STEP} dreamed steps the ball's x in {TITLES[row['game']]} is off by "
                     f"{number(row['dream'])} of 160 ({number(row['truth'])} read from the codes "
                     f"of the truth, {number(row['guess'])} by a still or straight guess)")
    return f"{'; '.join(parts)}." if parts else NOTHING


CHANGED = {  # the variants that the ablation recipe crosses, in words
    "base": "base", "recipe.codes": "hi-dreamer's codes",
    "recipe.world_model": "hi-dreamer's world model", "recipe.both": "both"}
SOON = 5  # steps of a dream: a ball still flies straight in most


def changed_codes(profile: str, results_dir=None) -> pd.DataFrame:
    """What base with hi-dreamer's codes, its world model or both names of the coarse codes that
    change: a row per variant and game with words, mean, guess (the best trivial predictor of the
    same codes) and the number of seeds n; empty where the ablation recipe is not published."""
    table = ablation_tables.arms("recipe", profile, results_dir=results_dir)
    columns = ["words", "game", "mean", "guess", "n"]
    if table.empty:
        return pd.DataFrame(columns=columns)
    found = summarise(table, ["l0_changed_accuracy"])
    found["guess"] = [value for value, _ in best_baselines(found, table)]
    return found.assign(words=found["variant"].map(CHANGED))[columns]


def changed_dreams(profile: str, results_dir=None) -> pd.DataFrame:
    """How far the ball's x is off in the dreams of the same variants: a row per variant, game and
    step with words, dream (median error in RAM units) and guess, that of the better of a still and
    a straight guess."""
    table = ablation_tables.arms("recipe", profile, stage="imagination", results_dir=results_dir)
    columns = ["words", "game", "step", "dream", "guess"]
    if table.empty:
        return pd.DataFrame(columns=columns)
    found = summarise(table, ["dream_error_ball_x"])
    found["guess"] = [value for value, _ in best_baselines(found, table)]
    return found.rename(columns={"mean": "dream"}).assign(
        words=found["variant"].map(CHANGED))[columns]


def which_change(profile: str, results_dir=None) -> str:
    """What hi-dreamer's codes and its world model bring, each alone and together."""
    codes, dreams = (read(profile, results_dir) for read in (changed_codes, changed_dreams))
    if codes.empty:
        return NOTHING
    num_seeds = codes["n"].max()
    beaten = [f"{words} in {(own['mean'] > own['guess']).sum()} of {len(own)} games"
              for words, own in codes.groupby("words", sort=False)]
    text = (f"Of the coarse codes that change, more are named right than by the best trivial "
            f"predictor of the same codes: by {_all_of(beaten)} ({profile}, "
            f"{num_seeds} seed{'s' if num_seeds > 1 else ''}).")
    soon = dreams[dreams["step"] == SOON]
    if len(soon):
        off = [f"{words} {_by_game(own.set_index('game')['dream'])}"
               for words, own in soon.groupby("words", sort=False)]
        guess = _by_game(soon.groupby("game", sort=False)["guess"].min())
        text += (f" After {SOON} dreamed steps the ball's x is off, of 160: {'; '.join(off)}; a "
                 f"still or straight guess {guess}.")
    return text


def show_changed_codes(profile: str, results_dir=None) -> None:
    """In a notebook: changed_codes, a row per variant, in brackets the best trivial predictor."""
    from IPython.display import display
    if len(found := changed_codes(profile, results_dir)):
        found["text"] = [f"{number(row['mean'])} ({number(row['guess'])})"
                         for row in found.to_dict("records")]
        wide = found.pivot(index="words", columns="game", values="text")
        display(wide.loc[found["words"].unique(), found["game"].unique()]
                .rename(columns=TITLES).rename_axis(index=None, columns=None))


# ---- transfer

def gains(results_dir) -> pd.DataFrame:
    """What pre-training on the other games saves on a game's coarse codes, in nats: a row per game,
    levels (three or one) and steps of the game that adapting saw: value."""
    table, rows = largest(results_dir, "transfer"), []
    for levels, word in (("three levels", ""), ("one level", "one_level")):
        name = named("transfer_l0_gain", word)
        if table is not None and (table["metric"] == name).any():
            rows += [{"game": row["game"], "levels": levels, "step": row["step"],
                      "value": row["mean"]} for row in summarise(table, [name]).to_dict("records")]
    return pd.DataFrame(rows, columns=["game", "levels", "step", "value"])


def transfer(results_dir) -> str:
    """How much of the code is shared between games, and what pre-training saves."""
    parts, codes, metric = [], largest(results_dir, "tokenizer"), "l0_game_information"
    if codes is not None and (codes["metric"] == metric).any():
        (shared,) = summarise(codes, [metric]).to_dict("records")
        parts.append(f"The coarse code tells {number(shared['mean'])} of the "
                     f"{number(shared['baseline'])} nats that there are to tell about which game "
                     f"is played {_made_by(codes)}; a code that tells all of them is of one game "
                     "alone, and there is nothing to share.")
    found = gains(results_dir)
    found = found[found["step"] > 0]  # before its first step a model from scratch knows nothing
    if len(found):
        saved = found.groupby(["step", "levels"])["value"].mean().map(number)
        texts = [f"with {levels} " + ", ".join(f"{saved[step, levels]} nats a code after "
                                               f"{number(step)} steps of a new game"
                                               for step in sorted(own["step"].unique()))
                 for levels, own in found.groupby("levels", sort=False)]
        parts.append(f"Pre-training on the two other games saves, {'; '.join(texts)}, beside the "
                     "same model from scratch: the mean over games "
                     f"{_made_by(largest(results_dir, 'transfer'))}.")
    return " ".join(parts) or NOTHING


# ---- ablations

def changes(profile: str, results_dir=None) -> pd.DataFrame:
    """How many times base's value an arm has: a row per arm with ablation, arm, metric in words,
    ratio (the geometric mean over games), n seeds that both have; the farthest from 1 first. Of the
    first metric of an ablation that is positive in all games; without those that hold out other
    data."""
    rows = []
    for name in ablation_tables.published(profile, results_dir=results_dir):
        if any("world_model.split" in fields for fields in ABLATIONS[name].arms.values()):
            continue
        table = ablation_tables.arms(name, profile, results_dir=results_dir)
        for metric in ABLATIONS[name].metrics:
            both = _beside_base(table, metric)
            if len(both) and (both[["mean", "mean_base"]] > 0).all(axis=None):
                both["log"] = np.log(both["mean"] / both["mean_base"])
                rows += [{"ablation": name, "arm": arm.removeprefix(f"{name}."),
                          "metric": words.in_words(own["metric"].iloc[0]),
                          "ratio": np.exp(own["log"].mean()), "n": own["n"].min()}
                         for arm, own in both.groupby("variant", sort=False)]
                break
    found = pd.DataFrame(rows, columns=["ablation", "arm", "metric", "ratio", "n"])
    order = np.log(found["ratio"].astype(float)).abs().sort_values(ascending=False, kind="stable")
    return found.loc[order.index].reset_index(drop=True)


def _beside_base(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """summarise of each arm and, as columns with _base, of base on the same seeds."""
    seeds = {arm: set(own["seed"]) for arm, own in table.groupby("variant")}
    parts = []
    for arm in (name for name in seeds if name != "base"):
        is_shared = table["seed"].isin(seeds[arm] & seeds.get("base", set()))
        own = table[is_shared & table["variant"].isin(("base", arm))]
        if len(own):
            found = summarise(own, [metric])
            found["step"] = found["step"].fillna(-1)
            base, keys = found["variant"] == "base", ["metric", "game", "step", "split"]
            parts.append(found[~base].merge(found[base], on=keys, suffixes=("", "_base")))
    return pd.concat(parts) if parts else pd.DataFrame()


def ablations(profile: str, results_dir=None) -> str:
    """How many arms there are and how firm, and which moved what it is about farthest."""
    found = changes(profile, results_dir)
    if found.empty:
        return NOTHING
    names, first = ablation_tables.published(profile, results_dir=results_dir), found.iloc[0]
    seeds = [own["seed"].nunique() for name in names for arm, own in ablation_tables.arms(
        name, profile, results_dir=results_dir).groupby("variant") if arm != "base"]
    firm = sum(num >= FEWEST_SEEDS for num in seeds)
    return (f"Of {len(seeds)} arms of {len(names)} ablations ({profile}), {firm} have the "
            f"{FEWEST_SEEDS} seeds that an interval takes; the others show a direction. Farthest "
            f"from base is **{first['ablation']}: {first['arm']}**, with {number(first['ratio'])} "
            f"times base's *{first['metric']}* ({first['n']} seed{'s' * int(first['n'] > 1)}). "
            "Arms that hold out other data are not counted among these.")


# ---- performance

def performance(measured: pd.DataFrame) -> str:
    """How fast the stages are beside what a user would write, how many bars are met, on what, and
    which has the least room; measured: of hd.report.benchmarks.published."""
    judged = measured[measured["bar"] != ""]
    if judged.empty:
        return NOTHING
    num_met = (judged["met"].astype(str) == "True").sum()
    is_speed = judged["unit"].str.endswith("/s") & judged["bar"].str.startswith(">=")
    speeds = [f"{row['stage']} {number(row['ratio'])} ({row['against']})"
              for row in judged[is_speed].to_dict("records")]
    crossed = sum(row["ratio_min"] < benchmarks.limit(row) if row["bar"].startswith(">=")
                  else row["ratio_max"] > benchmarks.limit(row)
                  for row in judged.to_dict("records"))
    nearest = benchmarks.nearest(judged, 1).iloc[0]
    return (f"How many times as fast as what stands in brackets: {'; '.join(speeds)}. "
            f"{num_met} of {len(judged)} bars are met by the median on "
            f"{listed(judged['device'], '; ')}, and across {crossed} of them reaches the spread; "
            f"*{nearest['stage']}*, against {nearest['against']}, has the least room: "
            f"{number(nearest['ratio'])} times theirs, where {nearest['bar']} is the bar.")


# ---- control

def control(results_dir) -> str:
    """What the agent of each game's largest profile reached, beside chance, a human and others."""
    parts = []
    for game, (profile, name) in agents_of(results_dir).items():
        table = fresh_or_published(results_dir, profile, "agent", name)
        records = table.attrs["records"]
        (row,) = summarise(table, ["real_return"]).to_dict("records")
        human, other = (reference.anchor("atari100k", method, TITLES[game])
                        for method in ("Human", "DIAMOND"))
        parts.append(f"**{number(row['mean'])} in {TITLES[game]}** after "
                     f"{number(records[0]['config']['num_steps'], 6)} steps and "
                     f"{minutes_of(records):.0f} minutes on {listed(map(device_of, records))} "
                     f"({row['n']} seed{'s' * (row['n'] > 1)}; random play "
                     f"{number(row['baseline'])}, a human {number(human)}, DIAMOND "
                     f"{number(other)})")
    if not parts:
        return NOTHING
    return (f"An agent that learns in its own dreams while it plays reaches {'; '.join(parts)}. "
            "DIAMOND's are after 100,000 steps, as published.")


def returns_of_agents(results_dir) -> dict[str, float]:
    """The mean return of the agent of each game's largest profile, by the game's title."""
    return {TITLES[game]: summarise(fresh_or_published(results_dir, profile, "agent", name),
                                    ["real_return"])["mean"].item()
            for game, (profile, name) in agents_of(results_dir).items()}


OF_AGENTS = tuple(name for name, one in ABLATIONS.items() if one.measure == "agent")
ARMS = {  # what an arm of OF_AGENTS does otherwise than base, in words
    "one_level": "one level of codes", "product": "as many bits, but no levels",
    "places_9": "9 places, so fewer bits",
    "one_place": "one place for the whole picture, so fewer bits",
    "prefill": "a model of random play alone", "uniform": "steps drawn evenly",
    "unmoved": "frames are not moved", "model_free": "no world model (DQN)",
    "others": "starts from two other games", "falling": "rates that fall to zero",
    "all_steps": "rates that fall over all the benchmark's steps",
    "moved": "codes fitted to moved frames too", "more": "that, and more codes",
    "fine": "that, more codes of smaller places", "muon": "a model that learns by Muon",
    "hidden": "a model with hidden layers at each place", "both": "that, and by Muon"}


def agent_arms(profile: str, results_dir=None) -> pd.DataFrame:
    """How far the agents' returns in Pong are from base's: ablation_tables.differences of all their
    ablations, corrected together, with words for each arm; the attributes hold base (seed ->
    return), chance (random play) and the records of the tables."""
    def read(name, arm):
        return fresh_or_published(results_dir, profile, "agent",
                                  f"{name}.{arm}-pong").attrs["records"]

    found = ablation_tables.differences(OF_AGENTS, profile, "real_return", results_dir=results_dir)
    found = found[found["game"] == "pong"].reset_index(drop=True)
    found["words"] = found["arm"].map(lambda arm: ARMS.get(arm, arm))
    found["where"] = [device and f" (on {device}, {minutes_of(read(name, arm)):.0f} minutes)"
                      for device, name, arm in zip(found["device"], found["ablation"],
                                                   found["arm"])]
    if len(found):
        table = fresh_or_published(results_dir, profile, "agent", "base-pong")
        own = table[table["metric"] == "real_return"]
        found.attrs = {"base": dict(zip(own["seed"], own["value"])),
                       "chance": own["baseline"].mean(), "records": table.attrs["records"]}
    return found


def agents_need(profile: str, results_dir=None, *, brief: bool = False) -> str:
    """Which arms play clearly better and worse than base, and which are not told apart; unless
    brief also those with too few seeds."""
    found = agent_arms(profile, results_dir)
    if found.empty:
        return NOTHING
    base, records = pd.Series(found.attrs["base"]), found.attrs["records"]
    firm = found["p"] < SIGNIFICANT
    groups = (("better", found[firm & (found["mean"] > 0)]),
              ("worse", found[firm & (found["mean"] < 0)]),
              ("no clear difference", found[~firm & (found["n"] >= FEWEST_SEEDS)]),
              (f"fewer than {FEWEST_SEEDS} seeds, a direction", found[found["n"] < FEWEST_SEEDS]))
    parts = [f"{words.capitalize()}: " + "; ".join(
        f"{row['words']}{row['where']} {row['mean']:+.1f}{_bounds(row)}"
        for row in own.to_dict("records"))
        for words, own in groups[:3 if brief else 4] if len(own)]
    return (f"After {number(records[0]['config']['num_steps'], 6)} steps of Pong the agent as it "
            f"is scores {number(base.mean())}, random play {number(found.attrs['chance'])} "
            f"({profile}, {len(base)} seeds, {listed(map(device_of, records))}, "
            f"{number(minutes_of(records), 2)} minutes). Change in points "
            f"on the same seeds, with 95% intervals. {'. '.join(parts)}.")


def _bounds(row: Mapping) -> str:
    return "" if pd.isna(row["low"]) else f" [{row['low']:+.1f}, {row['high']:+.1f}]"
