"""The pictures that report pages open with, of numbers that hd.report.findings read; each is read
on a phone too."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hd.report import findings
from hd.report.figures import (
    COLOURS,
    GREY,
    WIDE,
    Figure,
    legible,
    panels,
    show,
    times_axis,
)
from hd.report.tables import TITLES, number


def show_ball_read(results_dir) -> None:
    """Show ball_read, where the ball is measured."""
    if len(found := findings.ball_read(results_dir)):
        show(ball_read(found))


def show_dream_errors(results_dir) -> None:
    """Show dream_errors, where dreams are measured."""
    variant, found = findings.dream_errors(results_dir)
    if len(found):
        show(dream_errors(found, variant))


def show_changed_dreams(profile: str, results_dir=None) -> None:
    """Show changed_dreams, where the ablation is published."""
    if len(found := findings.changed_dreams(profile, results_dir)):
        show(changed_dreams(found))


def show_gains(results_dir) -> None:
    """Show gains, where transfer is measured."""
    if len(found := findings.gains(results_dir)):
        show(gains(found))


def show_changes(profile: str, results_dir=None) -> None:
    """Show changes, where ablations are published."""
    if len(found := findings.changes(profile, results_dir)):
        show(changes(found.head(findings.DRAWN)))


@legible
def ball_read(table: pd.DataFrame) -> Figure:
    """A panel per game: R² of the ball's x by what it is read from. table: of findings."""
    games = list(dict.fromkeys(table["game"]))
    fig, axes = panels(len(games), 1, width=WIDE, height=2.2, sharex=True)
    for (ax,), game in zip(axes, games):
        own = table[table["game"] == game]
        colours = [GREY if read == findings.UNTRAINED else COLOURS[read.startswith("hi-")]
                   for read in own["read"]]
        drawn = ax.barh(np.arange(len(own)), own["value"].clip(lower=0), 0.75, color=colours)
        ax.bar_label(drawn, [number(value) for value in own["value"]], padding=3, fontsize=10)
        ax.set_yticks(np.arange(len(own)), own["read"])
        ax.set(title=TITLES[game], xlim=(0, 1.12), ylim=(len(own) - 0.4, -0.6))
    axes[-1, 0].set_xlabel("the ball's x, R² (1 is exact)")
    return fig


@legible
def dream_errors(table: pd.DataFrame, variant: str) -> Figure:
    """A panel per game: how far the ball's x is off, by steps into the dream; evenly spaced."""
    games = list(dict.fromkeys(table["game"]))
    fig, (axes,) = panels(1, len(games), width=WIDE / len(games), height=3.6, sharey=True)
    for ax, game in zip(axes, games):
        own = table[table["game"] == game].sort_values("step")
        place = np.arange(len(own))
        for what, words, dash, colour in (
                ("dream", f"dreams of {variant}", "o-", COLOURS[0]),
                ("truth", "read from the codes of the truth", "s--", COLOURS[1]),
                ("guess", "still or straight guess, the better", "^:", GREY)):
            ax.plot(place, own[what], dash, color=colour, ms=5, label=words)
        ax.set_xticks(place, [f"{step:g}" for step in own["step"]])
        ax.set(title=TITLES[game], xlabel="steps into the dream")
    axes[0].set(ylabel="error of the ball's x, of 160",
                ylim=(-1, 1.1 * table[["dream", "truth", "guess"]].max(axis=None)))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center")
    return fig


@legible
def changed_dreams(table: pd.DataFrame) -> Figure:
    """A panel per game: how far the ball's x is off, by steps into the dream, a line per variant
    and one of the guess; evenly spaced. table: of findings."""
    games = list(dict.fromkeys(table["game"]))
    fig, (axes,) = panels(1, len(games), width=WIDE / len(games), height=3.6, sharey=True)
    for ax, game in zip(axes, games):
        own = table[table["game"] == game].sort_values("step", kind="stable")
        steps = own["step"].unique()
        for words, dash, colour in zip(own["words"].unique(), ("o-", "s--", "D--", "o-"),
                                       (GREY, COLOURS[2], COLOURS[1], COLOURS[0])):
            ax.plot(range(len(steps)), own.loc[own["words"] == words, "dream"], dash, color=colour,
                    ms=5, label=words)
        ax.plot(range(len(steps)), own.groupby("step")["guess"].min(), "^:", color=GREY, ms=5,
                label="still or straight guess, the better")
        ax.set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
        ax.set(title=TITLES[game], xlabel="steps into the dream")
    axes[0].set(ylabel="error of the ball's x, of 160", ylim=(-1, 1.1 * table["dream"].max()))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


@legible
def gains(table: pd.DataFrame) -> Figure:
    """What pre-training saves on a game's coarse codes, by steps of the game that were seen, which
    stand evenly: a colour per game, whole with three levels, dotted with one."""
    fig, ((ax,),) = panels(1, 1, width=WIDE, height=3.6)
    steps = sorted(set(table["step"]))
    for game, colour in zip(dict.fromkeys(table["game"]), COLOURS):
        for levels, dash in (("three levels", "o-"), ("one level", "s:")):
            own = table[(table["game"] == game) & (table["levels"] == levels)]
            ax.plot([steps.index(step) for step in own["step"]], own["value"], dash, color=colour,
                    label=f"{TITLES[game]}, {levels}")
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_xticks(range(len(steps)), [number(step) for step in steps])
    ax.set(xlabel="steps of the new game that adapting saw", ylabel="nats saved")
    ax.legend()
    return fig


@legible
def changes(table: pd.DataFrame) -> Figure:
    """A line per arm: how many times base's value it has, on a logarithmic axis; filled from the
    seeds on that an interval takes. table: rows of findings."""
    fig, ((ax,),) = panels(1, 1, width=WIDE, height=0.8 + 0.5 * len(table))
    for place, row in enumerate(table.to_dict("records")):
        is_firm = row["n"] >= findings.FEWEST_SEEDS
        ax.plot([1, row["ratio"]], [place] * 2, color="#c8c8c8", lw=2, zorder=1)
        ax.plot(row["ratio"], place, "o", ms=7, color=COLOURS[0],
                mfc=COLOURS[0] if is_firm else "white")
        ax.annotate(f"{row['ablation']}: {row['arm']} ({row['metric']}), n={row['n']}",
                    (0, place - 0.42), xycoords=("axes fraction", "data"), fontsize=9,
                    va="center", color="#505050",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    ax.axvline(1, color=GREY, lw=0.8)
    ax.set(xscale="log", xlabel="times base's value", ylim=(len(table) - 0.4, -0.9), yticks=[])
    ax.spines["left"].set_visible(False)
    times_axis(ax)
    return fig
