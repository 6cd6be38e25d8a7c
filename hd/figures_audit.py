"""Pictures of the audit's own measurements; the style and the helpers are those of hd.figures."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hd.config import GAMES, InputError
from hd.figures import COLOURS, GREY, LEVELS, bars, panels, styled
from hd.report import TITLES, summarise

FLOOR = re.compile(r"l0_state_floor\[(sticky [\d.]+)\]")


@styled
def floor_ladder(table: pd.DataFrame, world_model_table: pd.DataFrame) -> Figure:
    """A panel per game: nats of the next code that the n-gram, the world model and one who sees
    the emulator's state are left with, a group of bars per level.

    table: of entropy_floor; world_model_table: of world_model, all of one variant. Whiskers: 95%
    over seeds. The n-gram sees its own level and the action only. Raises InputError where the
    tables have no game in common.
    """
    games = [game for game in GAMES
             if game in set(table["game"]) & set(world_model_table["game"])]
    if not games:
        raise InputError("the tables of entropy_floor and world_model have no game in common")
    model = summarise(world_model_table, ["l{level}_cross_entropy"])
    model = model[model["metric"].isin([f"l{level}_cross_entropy" for level in range(3)])]
    ngram = model.assign(mean=model["baseline"], low=np.nan, high=np.nan)
    kinds = list(dict.fromkeys(match[1] for name in table["metric"]
                               if (match := FLOOR.fullmatch(name))))
    rungs = {"n-gram": ngram, "world model": model}
    for kind in kinds:
        rungs[f"floor given the state, {kind}"] = summarise(
            table, [f"l{level}_state_floor[{kind}]" for level in range(3)])
    fig, (axes,) = panels(1, len(games), width=3.6, height=2.7)
    width, colours = 0.8 / len(rungs), (GREY, *COLOURS)
    for ax, game in zip(axes, games):
        for i, (name, found) in enumerate(rungs.items()):
            place = np.arange(3) + (i - (len(rungs) - 1) / 2) * width
            bars(ax, found[found["game"] == game], place, 0.9 * width, colours[i], label=name)
        ax.set_xticks(range(3), LEVELS)
        ax.set(title=f"{TITLES[game]}, n={model['n'].min()}", ylabel="next code (nats)")
        ax.margins(y=0.15)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


@styled
def twin_curves(table: pd.DataFrame) -> Figure:
    """A panel per game: disagreement of steps that look alike, by how many steps look alike.

    The best guess from as many steps is wrong at least half of that and at most all of it: the
    thick lines. Dashed: the share of steps that have a twin at all, without which nothing is
    known. table: of entropy_floor.
    """
    shares = summarise(table, ["twin_share"])
    games = [game for game in GAMES if game in set(shares["game"])]
    fig, (axes,) = panels(1, len(games), height=2.6, width=3.0)
    for ax, game in zip(axes, games):
        here = table[table["game"] == game]
        for level, name in enumerate(LEVELS):
            if f"l{level}_twin_disagreement" not in set(here["metric"]):
                continue
            found = summarise(here, [f"l{level}_twin_disagreement"])
            place = found["step"] * 1.06 ** (level - 1)  # side by side, on the logarithmic axis
            ax.plot(place, found["mean"], ".-", color=COLOURS[level], label=name)
            ax.vlines(place, found["mean"] / 2, found["mean"], color=COLOURS[level], lw=3,
                      alpha=0.4)
        own = shares[shares["game"] == game]
        ax.plot(own["step"], own["mean"], "--", color=GREY, label="steps with a twin")
        ax.set_xscale("log", base=2)
        ax.set_xticks(own["step"], [f"{step:g}" for step in own["step"]])
        ax.set(title=f"{TITLES[game]}, n={own['n'].min()}", xlabel="last steps that are equal",
               ylabel="share of steps", ylim=(-0.03, 1.03))
    handles = {line.get_label(): line for ax in axes for line in ax.lines}
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    return fig
