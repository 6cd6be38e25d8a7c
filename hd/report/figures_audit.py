"""Pictures of the audit's own measurements, in the style of hd.report.figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hd.audit import goals
from hd.config import GAMES, InputError
from hd.report.figures import COLOURS, GREY, LEVELS, axis_label, bars, panels, show, styled
from hd.report.tables import (
    TITLES,
    fresh_or_published,
    load_with_record,
    number,
    provenance_line,
    summarise,
    tables_of,
)
from hd.run.storage import ROOT

AT = r"(?:rms_error_ball_x|ball_share)\[at (\d+)\]$"
BAR = re.compile(r"([<>]=) ([\d.]+)")
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


@styled
def transfer_curves(table: pd.DataFrame) -> Figure:
    """A panel per target game: L0 cross-entropy over the steps of it that adaptation saw.

    table: transfer's long table. Pre-trained and from scratch, three levels and one; dashed: the
    n-gram of the same steps. Budgets stand evenly. 95% interval over seeds if there are several.
    """
    name = "transfer_l0_cross_entropy"
    games = [game for game in GAMES if game in set(table["game"])]
    fig, (axes,) = panels(1, len(games), width=3.2, height=3.0)
    for ax, game in zip(axes, games):
        own = table[table["game"] == game]
        for suffix, words, dash in (("", "three levels", "o-"), ("[one_level]", "one level", "s:")):
            found = summarise(own, [name + suffix]).sort_values("step")
            place = np.arange(len(found))
            bounds = np.abs(found[["low", "high"]].to_numpy().T - found["mean"].to_numpy())
            ax.errorbar(place, found["mean"], bounds if found["n"].min() > 1 else None, fmt=dash,
                        color=COLOURS[0], capsize=2, ms=4, label=f"pre-trained, {words}")
            ax.plot(place, found["baseline"], dash, color=COLOURS[1], ms=4,
                    label=f"from scratch, {words}")
        counted = summarise(own, [f"{name}[ngram]"]).sort_values("step")
        ax.plot(place, counted["mean"], "--", color=GREY, label="n-gram")
        ax.set_xticks(place, [number(step) for step in found["step"]])
        ax.set(title=f"to {TITLES[game]}, n={found['n'].min()}", xlabel="steps of the new game")
    axes[0].set_ylabel(axis_label(name))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


SPLITS = {"exposures.episodes": "whole episodes held out",
          "exposures.windows": "overlapping windows held out"}


def show_split_curves(profile: str) -> None:
    """Show, where they are published, the curves of both splits over exposures; else say so."""
    curves = split_curves_of(profile)
    if len(curves) < len(SPLITS):
        print(f"The ablation exposures is not published at profile {profile}. To make it: python "
              f"-m hd run 07_ablation --profile {profile} --games pong -p ablation exposures")
        return
    show(split_curves(curves))


def split_curves_of(profile: str) -> dict[str, pd.DataFrame]:
    """Words for the split -> its published learning curves of all seeds, with exposures."""
    found = {}
    for variant, words in SPLITS.items():
        parts = []
        for path in tables_of(ROOT / "results" / profile / "world_model", f"{variant}-pong"):
            table, record = load_with_record(path)
            curve = pd.read_csv(path.with_name(f"{path.stem}-history.csv"))
            exposures = table.set_index("metric")["value"]["exposures"]
            parts.append(curve.assign(seed=record["seed"], exposures=exposures * curve["step"]
                                      / curve["step"].iloc[-1]))
        if parts:
            found[words] = pd.concat(parts, ignore_index=True)
    return found


@styled
def split_curves(curves: dict[str, pd.DataFrame]) -> Figure:
    """Next-code accuracy per level, and the losses, over exposures of each training step.

    curves: split -> rows with seed, exposures, val_l{level}_accuracy, val_codes, train_codes and
    codes (dropout on). Thin lines are seeds, thick ones their mean.
    """
    fig, axes = panels(1, 4, width=2.9, height=2.9)
    for level, ax in enumerate(axes[0][:3]):
        for colour, (name, curve) in zip(COLOURS, curves.items()):
            _seeds_and_mean(ax, curve, f"val_l{level}_accuracy", colour, "-", name)
        ax.set(title=f"{LEVELS[level]}: next code, held out", xscale="log",
               xlabel="exposures of each step", ylabel="accuracy", ylim=(0, 1))
    for colour, (name, curve) in zip(COLOURS, curves.items()):
        for key, dash, words in (("val_codes", "-", "held out"), ("train_codes", "--", "training"),
                                 ("codes", ":", "training, dropout on")):
            _seeds_and_mean(axes[0][3], curve, key, colour, dash, f"{name}: {words}")
    axes[0][3].set(title="loss over codes", xscale="log", xlabel="exposures of each step",
                   ylabel="nats, levels weighted")
    handles = {label: line for ax in axes[0] for line, label in
               zip(*ax.get_legend_handles_labels())}
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return fig


def _seeds_and_mean(ax, curve: pd.DataFrame, key: str, colour: str, dash: str, label: str) -> None:
    known = curve.dropna(subset=[key])
    for _, own in known.groupby("seed"):
        ax.plot(own["exposures"], own[key], dash, color=colour, lw=0.6, alpha=0.5)
    mean = known.groupby("step")[["exposures", key]].mean()
    ax.plot(mean["exposures"], mean[key], dash, color=colour, lw=1.8, label=label)


@styled
def ten_dreams(shares: np.ndarray, frames: Mapping[str, np.ndarray], *,
               steps: Sequence[int] = (5, 15)) -> Figure:
    """Dreams beside each other, the best left: at each step the truth, its codes, the dream.

    shares (n,): of true coarse codes; frames: name -> (n, H+1, 84, 84), of
    hd.measure.evaluation.ranked_dreams.
    """
    steps = [step for step in steps if step < next(iter(frames.values())).shape[1]]
    lines = [(step, name) for step in steps for name in frames]
    fig, axes = panels(len(lines), len(shares), width=0.9, height=0.95)
    for line, (step, name) in zip(axes, lines):
        for ax, film in zip(line, frames[name]):
            ax.imshow(film[step], cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"step {step}\n{name}", fontsize=6)
    for ax, share in zip(axes[0], shares):
        ax.set_title(f"{share:.0%} true", fontsize=7)
    return fig


@styled
def shared_codes(found: Sequence[dict]) -> Figure:
    """A line per coarse code (hd.decoder.most_shared_codes): decoded, and each game's frame that
    lies nearest to it, with the share of the game's frames on that code."""
    games = list(found[0]["nearest"])
    fig, axes = panels(len(found), 1 + len(games), width=1.6, height=1.75)
    for line, one in zip(axes, found):
        pictures = [("decoded", one["decoded"])] + [
            (f"{TITLES[game]}: {share:.2%}", one["nearest"][game])
            for game, share in zip(games, one["shares"])]
        for ax, (title, picture) in zip(line, pictures):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[], title=title)
        line[0].set_ylabel(f"code {one['code']}")
    return fig


def show_ball_places(results_dir=None) -> None:
    """Show ball_places of hi-dreamer at the largest profile whose tables have it."""
    for profile in goals.measured("representation", results_dir):
        codes = fresh_or_published(results_dir, profile, "tokenizer", "hi-dreamer")
        if codes["metric"].str.startswith("rms_error_ball_x").any():
            print(provenance_line(codes))
            show(ball_places(codes))
            return
    print("hi-dreamer's ball is not measured here.")


@styled
def ball_places(table: pd.DataFrame) -> Figure:
    """A panel per game: how well the ball is read from codes and from embeddings, by where it is,
    over the share of training steps that have it there (grey).

    table: of tokenizer. Raises InputError where it does not say where the ball is.
    """
    found = summarise(table).assign(at=lambda rows: rows["metric"].str.extract(AT, expand=False))
    found = found.dropna(subset="at").astype({"at": float}).sort_values("at")
    games = [game for game in GAMES if game in set(found["game"])]
    if not games:
        raise InputError("the table of tokenizer has no error by place")
    fig, (axes,) = panels(1, len(games), width=3.6, height=2.5)
    for ax, game in zip(axes, games):
        here = found[found["game"] == game]
        share, error = (here[here["metric"].str.startswith(f"{name}[")]
                        for name in ("ball_share", "rms_error_ball_x"))
        seen = ax.twinx()
        seen.bar(share["at"], share["mean"], 18, color="#dddddd", label="training steps")
        seen.set(ylabel="share of training steps", ylim=(0, None))
        ax.plot(error["at"], error["mean"], "o-", ms=3, color=COLOURS[0], label="from codes")
        ax.fill_between(error["at"], error["low"], error["high"], color=COLOURS[0], alpha=0.2)
        ax.plot(error["at"], error["baseline"], "o-", ms=3, color=COLOURS[1],
                label="from embeddings")
        ax.set(title=f"{TITLES[game]}, n={error['n'].max()}", xlabel="ball_x (RAM units)",
               ylabel="root mean square error", ylim=(0, None), zorder=seen.get_zorder() + 1)
        ax.patch.set_visible(False)
    handles = [*axes[0].get_legend_handles_labels()[0], seen.containers[0]]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


def show_benchmark(table: pd.DataFrame) -> None:
    """Show the ratios of hd.report.benchmarks.published beside their bars, if there are any."""
    if (table["bar"] != "").any():
        show(benchmark_ratios(table[table["bar"] != ""]))


@styled
def benchmark_ratios(table: pd.DataFrame) -> Figure:
    """A panel per device, a line per bar: the median ratio of ours to theirs with its least and
    most, on a logarithmic axis, and the bar as a stroke; shaded is where the bar is met."""
    kinds = list(dict.fromkeys(table["kind"]))
    longest = table["kind"].value_counts().max()
    fig, axes = panels(len(kinds), 1, width=7.5, height=0.9 + 0.24 * longest)
    for (ax,), kind in zip(axes, kinds):
        rows = table[table["kind"] == kind].to_dict("records")
        low = min(min(row["ratio_min"], _limit(row)) for row in rows) / 2
        high = max(max(row["ratio_max"], _limit(row)) for row in rows) * 2
        for place, row in enumerate(rows):
            limit, ratio = _limit(row), row["ratio"]
            ends = (limit, high) if row["bar"].startswith(">=") else (low, limit)
            ax.barh(place, ends[1] - ends[0], 0.8, left=ends[0], color="#eeeeee")
            ax.plot([limit, limit], [place - 0.4, place + 0.4], color="black")
            colour = COLOURS[0] if str(row["met"]) == "True" else COLOURS[4]
            ax.plot([row["ratio_min"], row["ratio_max"]], [place] * 2, color=colour, lw=1)
            ax.plot(ratio, place, "o", ms=5, color=colour)
        ax.set_yticks(range(len(rows)), [f"{row['stage']}\nagainst {_cut(row['against'])}"
                                         for row in rows], fontsize=6)
        ax.set(xscale="log", xlim=(low, high), ylim=(len(rows) - 0.4, -0.6),
               xlabel="ours / theirs (shaded: the bar is met)", title=kind)
    return fig


def _limit(row: Mapping) -> float:
    return float(BAR.fullmatch(row["bar"])[2])


def _cut(text: str, length: int = 48) -> str:
    return text if len(text) <= length else text[:length - 1].rstrip(" ,") + "…"
