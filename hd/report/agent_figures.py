"""Pictures of the online agent: how it learned, beside others, and what its dreams know."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hd import atari
from hd.report import findings, published, reference
from hd.report.figures import COLOURS, GREY, WIDE, Figure, legible, panels, show, styled
from hd.report.tables import agent_points, number, shares_won
from hd.run.intervals import SIGNIFICANT

OTHERS = {  # in anchors.csv: on the figure
    "Human": "a human", "Random": "random play", "DIAMOND": "DIAMOND", "BBF": "BBF",
    "IRIS": "IRIS", "DreamerV3 2023 (v1)": "DreamerV3"}
OTHERS_STEPS = 100_000  # after which they were scored
GAP = 0.1  # of a panel's height, between two names beside it


def show_agents(results_dir) -> None:
    """Show agent_curves beside what others reached after 100,000 steps; a line without any."""
    curves = agent_points(results_dir)
    if not curves:
        print("No learning curve of an online agent is there.")
        return
    anchors = {game: {words: reference.anchor("atari100k", name, atari.GAMES[game].title)
                      for name, words in OTHERS.items()} for game in curves}
    show(agent_curves(curves, anchors))


def show_shares_won(results_dir) -> None:
    """Show share_won_curves of the games in which points are lost as well; a line without any."""
    won = shares_won(results_dir)
    if len(won):
        show(share_won_curves(won))
    else:
        print("No agent is there of a game in which points are lost.")


def show_arms(profile: str, results_dir=None) -> None:
    """Show arms of agent_arms, where ablations of agents are published; else a line."""
    if len(found := findings.agent_arms(profile, results_dir)):
        show(arms(found))
    else:
        print(f"No ablation of agents is published at profile {profile}.")


def show_published(drawing: str, words: str) -> None:
    """Show the published ones of published.OF_AGENTS, game by game, under these words; a line where
    there are none."""
    found = published.of_agents(drawing)
    for game, path in found.items():
        published.show(path, f"{atari.GAMES[game].title}: {words}")
    if not found:
        print(f"Not published: {words}.")


@legible
def agent_curves(histories: Mapping[str, Mapping[str, list[dict]]],
                 anchors: Mapping[str, Mapping[str, float]] | None = None) -> Figure:
    """A line of panels per game: the return of the last training episodes over minutes, on a
    logarithmic axis, and over steps of the real game; a star where the last policy's whole episodes
    were scored. histories: game -> name -> points of an agent's record, or of
    hd.report.tables.agent_points; anchors: game -> name -> a return that others reached after
    OTHERS_STEPS steps, marked there."""
    fig, axes = panels(len(histories), 2, width=WIDE / 2, height=3.1, sharey="row")
    for line, (game, curves) in zip(axes, histories.items()):
        for ax, x, xlabel in zip(line, ("minutes", "step"), ("minutes", "thousands of steps")):
            scale = 1000 if x == "step" else 1
            for (name, history), colour in zip(curves.items(), COLOURS):
                points = [point for point in history
                          if point["return"] is not None and not point.get("is_final")]
                ax.plot([point[x] / scale for point in points],
                        [point["return"] for point in points], color=colour,
                        label=textwrap.fill(name, 32), marker="." if len(points) < 15 else None)
                for point in history:
                    if point.get("is_final"):
                        ax.plot(point[x] / scale, point["return"], "*", ms=13, color=colour,
                                clip_on=False)
                if not points:
                    ax.text(0.5, 0.5, "no episode ended", ha="center", va="center",
                            transform=ax.transAxes)
            ax.set(xlabel=xlabel)
        line[0].set_xscale("log")
        line[0].xaxis.set_major_formatter("{x:g}")
        line[0].set_ylabel(f"{atari.GAMES[game].title}, return")
        _marks(line[1], (anchors or {}).get(game, {}))
        line[0].legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), borderaxespad=0.2,
                       handlelength=1.2, labelspacing=0.2, fontsize=10)
    return fig


def _marks(ax, values: Mapping[str, float]) -> None:
    """A mark at each value where others were scored, and its name at the right edge; who is far
    above all the others (a human in MsPacman) stands at the top with an arrow."""
    if not values:
        return
    others = [value for name, value in values.items() if name != OTHERS["Human"]]
    low, high = ax.get_ylim()
    low, high = min(low, *others), max(high, *others)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    ax.set(xlim=(0, max(ax.get_xlim()[1], 1.06 * OTHERS_STEPS / 1000)), ylim=(low, high))
    ranked = sorted(values.items(), key=lambda one: one[1])
    heights = apart([(min(value, high) - low) / (high - low) for _, value in ranked])
    for (name, value), height in zip(ranked, heights):
        if value <= high:
            ax.plot(OTHERS_STEPS / 1000, value, "_", ms=12, mew=2, color=GREY)
        ax.annotate(f"{name} {number(value)}{' ↑' if value > high else ''}",
                    (OTHERS_STEPS / 1000, min(value, high)), xytext=(1.03, height),
                    textcoords="axes fraction", va="center", fontsize=10, color="#505050",
                    annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": "#c8c8c8", "lw": 0.8,
                                "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 6})


def apart(heights: Sequence[float], gap: float = GAP) -> list[float]:
    """Rising heights of names, moved as little up, then down below 1, as leaves them a gap."""
    found: list[float] = []
    for height in heights:
        found.append(max([height, *(below + gap for below in found[-1:])]))
    highest = 1.0
    for i in reversed(range(len(found))):
        found[i] = min(found[i], highest)
        highest = found[i] - gap
    return found


@legible
def arms(table: pd.DataFrame) -> Figure:
    """A line per arm and base: a dot per seed and a bar at their mean; the arm's difference from
    base on the same seeds beside it, bold where it is one by Holm's method. Dashed: random play.
    table: of findings.agent_arms."""
    base = table.attrs["base"]
    rows = [{"words": "base", "values": base, "mean": 0.0, "text": "", "p": 1.0},
            *table.assign(text=[f"{row['mean']:+.1f}" for row in table.to_dict("records")])
            .to_dict("records")]
    rows.sort(key=lambda row: -row["mean"])
    fig, ((ax,),) = panels(1, 1, width=WIDE, height=0.9 + 0.5 * len(rows))
    for place, row in enumerate(rows):
        values, is_base = list(row["values"].values()), row["values"] is base
        colour = GREY if is_base else COLOURS[0]
        ax.plot(values, [place] * len(values), "o", ms=6, color=colour, alpha=0.6)
        ax.plot(np.mean(values), place, "|", ms=18, mew=3, color=colour)
        ax.annotate(row["text"], (1.02, place), xycoords=("axes fraction", "data"), va="center",
                    weight="bold" if row["p"] < SIGNIFICANT else "normal")
    ax.axvline(table.attrs["chance"], color=GREY, ls="--", lw=1)
    ax.axvline(np.mean(list(base.values())), color="#d8d8d8", lw=1, zorder=0)
    ax.set(xlabel="return in Pong", ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticks(range(len(rows)), [textwrap.fill(row["words"], 24) for row in rows])
    return fig


@legible
def share_won_curves(table: pd.DataFrame) -> Figure:
    """A panel per game: of the points between one place on the curve and the next, the share that
    the agent won, over steps of the real game; dashed: play by chance. table: rows of share_won."""
    games = list(dict.fromkeys(table["game"]))
    fig, (axes,) = panels(1, len(games), width=WIDE, height=3.2)
    for ax, game in zip(axes, games):
        for (seed, rows), colour in zip(table[table["game"] == game].groupby("seed"), COLOURS):
            ax.plot(rows["step"], rows["value"], marker=".", color=colour, label=f"seed {seed}")
            ax.axhline(rows["baseline"].iloc[0], color=colour, ls="--", lw=0.8,
                       label="play by chance")
        ax.axhline(0.5, color=GREY, ls=":", label="as many won as lost")
        ax.set(xlabel="steps of the real game", ylabel=f"{atari.GAMES[game].title}, points won",
               xlim=(0, None), ylim=(0, 1))
        ax.legend()
    return fig


@legible
def levels(found: Mapping[str, np.ndarray], game: str) -> Figure:
    """Under the game's title a frame beside what one, two, ... levels of its codes decode to, with
    the root mean square error in grey levels of 256. found: of hd.report.pictures.levels."""
    real = found["real game"].astype(float)
    fig, (axes,) = panels(1, len(found), width=WIDE / len(found), height=2.1)
    for ax, (name, frame) in zip(axes, found.items()):
        ax.imshow(frame, cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        error = np.sqrt(((frame - real) ** 2).mean())
        ax.set_title(name if name == "real game" else f"{name}\nerror {number(error, 2)}")
    fig.suptitle(atari.GAMES[game].title, x=0.01, ha="left")
    return fig


@legible
def held_actions(found: Mapping[str, tuple[float, float]], game: str) -> Figure:
    """Under the game's title what holding an action brings: a dot for the dream, a line for the
    emulator. found: of hd.report.pictures.held_actions; where there are none, a line says so."""
    fig, ((ax,),) = panels(1, 1, width=WIDE, height=1.2 + 0.32 * max(1, len(found)))
    for place, (dreamed, real) in enumerate(found.values()):
        ax.plot([dreamed, real], [place] * 2, color="#c8c8c8", lw=2, zorder=1)
        ax.plot(real, place, "|", ms=16, mew=3, color=GREY, label="" if place else "emulator")
        ax.plot(dreamed, place, "o", ms=6, color=COLOURS[0], label="" if place else "dream")
    title = atari.GAMES[game].title
    fig.suptitle(title if found else f"{title}: no model to dream with", x=0.01, ha="left")
    if found:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    ax.axvline(0, color="#d8d8d8", lw=1, zorder=0)
    ax.set_yticks(range(len(found)), list(found))
    ax.set(xlabel="sum of rewards' signs while one action is held",
           ylim=(max(1, len(found)) - 0.5, -0.5))
    return fig


@styled
def contacts(found: Sequence[Mapping]) -> Figure:
    """Contacts below and beside each other: the real game above, a dream from the same state under
    the same actions below, at four steps up to the outcome. found: of hd.report.pictures.contacts;
    where there are none, a line says so."""
    fig, axes = panels(max(1, -(-len(found) // 2)), 2, width=3.3, height=2.0)
    if not found:
        fig.suptitle("no contact in new play", fontsize=8)
    for ax, contact in zip(axes.flat, [*found, *[None] * axes.size]):
        if contact is None:
            ax.set_visible(False)
            continue
        films = [contact["real game"], contact["dream"]]
        steps = np.linspace(0, len(films[0]) - 1, 4).round().astype(int)
        apart = [np.pad(film[steps], ((0, 0), (0, 4), (0, 4)), constant_values=255)
                 for film in films]
        ax.imshow(np.vstack([np.hstack(film) for film in apart]), cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=42 + 88 * np.arange(4), yticks=[42, 130])
        ax.set_xticklabels([f"step {step}" for step in steps], fontsize=6)
        ax.set_yticklabels(["real", "dream"], fontsize=6)
        ax.tick_params(length=0)
        ax.set_title(f"{'lost' if contact['is_lost'] else 'not lost'}; the dreams: "
                     f"{contact['dreamed_loss']:.2f} lost", fontsize=7)
    return fig
