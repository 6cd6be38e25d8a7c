"""Every picture of the study, in the order of the pipeline: values beside their baselines.

The only module that imports matplotlib. A figure is drawn on white in colours that colour-blind
readers can tell apart (Okabe and Ito 2008); baselines are grey.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from hd import atari, world_model
from hd.config import GAMES, InputError
from hd.report import benchmarks
from hd.report.tables import (
    BEST_TRIVIAL,
    TITLES,
    TRIVIAL,
    baseline_words,
    fresh_or_published,
    load_with_record,
    number,
    provenance_line,
    summarise,
    tables_of,
)
from hd.report.words import LEVEL_WORDS
from hd.run.intervals import interval_over_episodes
from hd.run.metrics import METRICS, key_of, named, parsed
from hd.run.runs import Run
from hd.run.storage import ROOT, write_atomically, write_text

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
GREY = "#7a7a7a"
STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "figure.constrained_layout.use": True, "figure.dpi": 100, "savefig.dpi": 150,
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=COLOURS), "legend.frameon": False,
    "grid.color": "#e4e4e4", "image.cmap": "cividis", "svg.hashsalt": "hd"}
SVG_BYTES = 200_000  # a larger drawing is kept as PNG only
LARGE = {"font.size": 12, "axes.titlesize": 12, "axes.labelsize": 12, "legend.fontsize": 11}
WIDE = 6.6  # inches: with LARGE letters still read on a screen of 390 pixels
TIMES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000)
MAX_POINTS = 3000  # in a scatter
LEVELS = tuple(f"L{level} {word}" for level, word in enumerate(LEVEL_WORDS))
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.28)}  # a legend that hides nothing
SPLITS = {"exposures.episodes": "whole episodes held out",
          "exposures.windows": "overlapping windows held out"}


def styled(draw):
    """Draw in this module's style, whatever the session's own settings are."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with plt.rc_context(STYLE):
            return draw(*args, **kwargs)
    return drawn


def legible(draw):
    """As styled, in letters that are read at the width of a phone too; for figures WIDE."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with plt.rc_context({**STYLE, **LARGE}):
            return draw(*args, **kwargs)
    return drawn


@styled
def show(fig: Figure) -> None:
    """Show the figure where this runs in a notebook, and close it.

    It is shown as the very picture that save stores: the session's plotting backend plays no part.
    """
    _show(fig, _png(fig))


@styled
def save(fig: Figure, where: Run | Path | str, name: str) -> None:
    """Show the figure and write <name>.png, and <name>.svg if small, below a folder.

    where: the folder, or a run, whose figures go to <profile>/figures/<run.name>.
    """
    folder = where.root / "figures" / where.name if isinstance(where, Run) else Path(where)
    picture, drawing = _png(fig), io.StringIO()
    fig.savefig(drawing, format="svg", metadata={"Date": None})
    write_atomically(folder / f"{name}.png", lambda aside: aside.write_bytes(picture))
    if len(drawing.getvalue()) <= SVG_BYTES:
        write_text(folder / f"{name}.svg", drawing.getvalue())
    else:
        (folder / f"{name}.svg").unlink(missing_ok=True)
    _show(fig, picture)


def _png(fig: Figure) -> bytes:
    picture = io.BytesIO()
    fig.savefig(picture)
    return picture.getvalue()


def _show(fig: Figure, picture: bytes) -> None:
    if "ipykernel" in sys.modules:
        width = round(fig.get_size_inches()[0] * STYLE["figure.dpi"])
        display(Image(picture, width=width))
    plt.close(fig)


def panels(rows: int, columns: int, *, width: float = 2.6, height: float = 2.2, **settings):
    """A figure and its axes (rows, columns)."""
    return plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False,
                        **settings)


def times_axis(ax) -> None:
    """Plain numbers, not powers of ten, along a logarithmic axis of ratios."""
    low, high = ax.get_xlim()
    ticks = [tick for tick in TIMES if low <= tick <= high]
    ax.set_xticks([], minor=True)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def axis_label(metric: str) -> str:
    return f"{metric} ({METRICS[key_of(metric)].unit})"


def bars(ax, found, place, width, colour, *, label=None, turn=0) -> None:
    """Bars of summarise's rows with their value written on them, a dot for each of several seeds,
    and whiskers where there is an interval."""
    drawn = ax.bar(place, found["mean"], width, color=colour, label=label)
    ax.bar_label(drawn, [number(value, 2) for value in found["mean"]], padding=2, rotation=turn,
                 fontsize=plt.rcParams["font.size"] * 2 / 3)
    for x, seeds in zip(place, found["seeds"]):
        if isinstance(seeds, tuple) and len(seeds) > 1:  # an arm without this game has none
            ax.plot([x] * len(seeds), seeds, "o", ms=2, color="black")
    if found["low"].notna().any():
        whiskers = np.abs(found[["low", "high"]].to_numpy().T - found["mean"].to_numpy())
        ax.errorbar(place, found["mean"], whiskers, fmt="none", ecolor="black", capsize=2, lw=1)


# ---- frames and films

@styled
def frame_strip(data, game: str, rows: Sequence[int]) -> Figure:
    """One line per stored row: its four stacked frames, and the newest with a ring at the place
    that RAM gives for the ball (MsPacman: the player); no ring while the ball is out of play."""
    rows = np.asarray(rows)
    frames, ram = data.stack(rows), data.ram[rows]
    places = atari.on_frame(game, atari.labels(game, ram))
    in_play, followed = atari.ball_in_play(game, ram), atari.GAMES[game].place.x[:-2]
    fig, axes = panels(len(rows), 5, width=1.5, height=1.6)
    for i, line in enumerate(axes):
        for j, ax in enumerate(line):
            ax.imshow(frames[i, min(j, 3)], cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
            if i == 0:
                ax.set_title(("t - 3", "t - 2", "t - 1", "t", f"t, {followed} by RAM")[j])
        if in_play[i]:
            line[4].plot(*places[i], "o", ms=11, mfc="none", mec=COLOURS[4], mew=1.6)
        line[0].set_ylabel(f"row {rows[i]}")
    fig.suptitle(f"{TITLES[game]}: one observation is four frames")
    return fig


@styled
def episode_lengths(data) -> Figure:
    """A dot per stored episode of a Replay: its number of steps. Dashed: the game's mean."""
    fig, (axes,) = panels(1, len(data.games), height=2.4)
    for ax, game in zip(axes, data.games):
        rows = np.flatnonzero(data.in_game(game))
        _, first, lengths = np.unique(data.episode_ids[rows], return_index=True,
                                      return_counts=True)
        sides = {"training": data.is_train, "validation": data.is_val}
        if (data.is_val != data.is_test).any():
            sides["test"] = data.is_test
        for (name, side), colour in zip(sides.items(), COLOURS):
            side = side[rows[first]]
            ax.plot(np.flatnonzero(side), lengths[side], "o", ms=4, color=colour,
                    label=f"{name} (n={side.sum()})")
        ax.axhline(lengths.mean(), color=GREY, ls="--", label=f"mean {lengths.mean():.0f}")
        ax.set(title=TITLES[game], xlabel="episode", ylabel="length (agent steps)")
        ax.set_ylim(0, lengths.max() * 1.1)
        ax.legend(**BELOW)
    return fig


@styled
def film_strip(lines: Mapping[str, np.ndarray],
               steps: Sequence[int] = (0, 1, 2, 4, 8, 15)) -> Figure:
    """Frames at chosen steps, a line per name; steps beyond the end are left out.

    lines: name -> (n, 84, 84) uint8, all of the same n. For a dream index 0 is the last real step.
    """
    steps = [step for step in steps if step < min(map(len, lines.values()))]
    fig, axes = panels(len(lines), len(steps), width=1.3, height=1.4)
    for line, (name, frames) in zip(axes, lines.items()):
        for ax, step in zip(line, steps):
            ax.imshow(frames[step], cmap="gray", vmin=0, vmax=255)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    first = "last real step" if "dream" in lines else "step 0"
    for ax, step in zip(axes[0], steps):
        ax.set_title(f"step {step}" if step else first)
    return fig


# ---- any stage: training, metrics, ablations

@styled
def learning_curves(history, keys: Sequence[str], baselines: Mapping | None = None, *,
                    x: str = "step", xlabel: str = "training step") -> Figure:
    """A panel per metric over training; dashed curves are the same on held-out data (val_).

    history: list of dicts with `x` and the keys, or several of them by name. baselines: metric ->
    value, or -> {name: value}.
    """
    histories = history if isinstance(history, Mapping) else {"": history}
    columns = min(3, len(keys))
    fig, axes = panels(-(-len(keys) // columns), columns, height=2.9 if len(histories) > 1 else 2.2)
    for ax, key in zip(axes.flat, keys):
        for colour, (name, entries) in zip(COLOURS * len(histories), histories.items()):
            for metric, dash, side in ((key, "-", "training"), (f"val_{key}", "--", "held out")):
                points = [(e[x], e[metric]) for e in entries if metric in e]
                if points:
                    ax.plot(*zip(*points), dash, color=colour, label=f"{name} {side}".strip(),
                            marker="." if len(points) < 15 else None)
        known = (baselines or {}).get(key, {})
        if not isinstance(known, Mapping):
            known = {"baseline": known}
        for i, (name, value) in enumerate(known.items()):
            ax.axhline(value, color=GREY, ls=(":", "-.", "--")[i % 3], label=name)
        ax.set(xlabel=xlabel, ylabel=axis_label(key),
               xscale="log" if x == "exposures" else "linear")
        if len(histories) == 1:
            ax.legend()
    for ax in axes.flat[len(keys):]:
        ax.remove()
    if len(histories) > 1:  # one for all panels, where it hides nothing
        named = {name: line for ax in fig.axes
                 for line, name in zip(*ax.get_legend_handles_labels())}
        fig.legend(named.values(), named, loc="outside lower center", ncols=3)
    return fig


@styled
def metric_bars(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """A panel per metric: value beside baseline for each game; seeds, their interval, n."""
    columns = min(3, len(metrics))
    fig, axes = panels(-(-len(metrics) // columns), columns, width=3.0, height=2.8)
    for ax, metric in zip(axes.flat, metrics):
        found = summarise(table, [metric])
        if found["game"].duplicated().any():
            raise InputError(f"{metric} has several rows for a game: choose one stage, variant, "
                             f"split and step")
        place = np.arange(len(found))
        bars(ax, found, place - 0.2, 0.38, COLOURS[0], label="measured")
        words = METRICS[key_of(metric)].baseline or "baseline"
        if found["baseline"].notna().any():
            beside = found.assign(mean=found["baseline"], low=np.nan, high=np.nan,
                                  seeds=[()] * len(found))
            bars(ax, beside, place + 0.2, 0.38, "#a8a8a8", label=words.partition(";")[0])
        ax.set_xticks(place, [TITLES[game] for game in found["game"]], fontsize=8)
        ax.set(ylabel=axis_label(metric), title=f"n={found['n'].max()}")
        ax.margins(y=0.1)
        ax.legend(**BELOW)
    for ax in axes.flat[len(metrics):]:
        ax.remove()
    return fig


@styled
def arm_bars(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """A panel per metric: a bar per arm (variant) for each game, seeds, and their interval.

    table: long, several variants of one stage. Dashed: base's baseline column, where it has one.
    """
    arms = list(dict.fromkeys(table["variant"]))
    fig, (axes,) = panels(1, len(metrics), width=3.6, height=2.6)
    width = 0.8 / len(arms)
    for ax, metric in zip(axes, metrics):
        found = summarise(table, [metric])
        games = list(dict.fromkeys(found["game"]))
        for i, arm in enumerate(arms):
            own = found[found["variant"] == arm].set_index("game").reindex(games)
            place = np.arange(len(games)) + (i - (len(arms) - 1) / 2) * width
            bars(ax, own, place, 0.9 * width, COLOURS[i % len(COLOURS)], label=arm, turn=90)
            if arm == "base":
                left = np.arange(len(games)) - 0.45
                ax.hlines(own["baseline"], left, left + 0.9, GREY, "--", label="baseline")
        ax.set_xticks(range(len(games)), [TITLES.get(game, game) for game in games])
        ax.set(title=f"n={found['n'].min()}", ylabel=axis_label(metric))
        ax.margins(y=0.2)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


# ---- embeddings and codes

@styled
def embedding_map(embeddings: np.ndarray, colour_by: Mapping[str, Sequence]) -> Figure:
    """The two widest directions (PCA) of embeddings (N, D), a panel per colouring name -> (N,).

    Words become a legend, numbers a colour scale, NaN grey; rows are thinned to MAX_POINTS.
    """
    every = -(-len(embeddings) // MAX_POINTS)
    fitted = PCA(2, svd_solver="full").fit(embeddings[::every])
    places = fitted.transform(embeddings[::every])
    fig, (axes,) = panels(1, len(colour_by), width=3.3, height=2.8)
    for ax, (name, values) in zip(axes, colour_by.items()):
        values = np.asarray(values)[::every]
        if values.dtype.kind in "OUS":
            for colour, word in zip(COLOURS, dict.fromkeys(values.tolist())):
                ax.scatter(*places[values == word].T, s=4, color=colour, lw=0,
                           label=TITLES.get(word, word))
            ax.legend(markerscale=3)
        else:
            gone = np.isnan(values.astype(float))
            ax.scatter(*places[gone].T, s=4, color="#d0d0d0", lw=0)
            shown = ax.scatter(*places[~gone].T, s=4, c=values[~gone], lw=0)
            fig.colorbar(shown, ax=ax, label=name)
        shares = fitted.explained_variance_ratio_
        ax.set(title=f"by {name}, n={len(places)}", xlabel=f"first ({shares[0]:.0%} of variance)",
               ylabel=f"second ({shares[1]:.0%})")
    return fig


@styled
def code_usage(tokens: Mapping[str, np.ndarray], num_codes: int) -> Figure:
    """Share of steps on each code, most frequent first: games across, levels down.

    tokens: game -> (N, L). Dashed: every code equally often.
    """
    num_levels = next(iter(tokens.values())).shape[1]
    fig, axes = panels(num_levels, len(tokens), height=1.8, sharex=True)
    for column, (game, codes) in zip(axes.T, tokens.items()):
        for level, ax in enumerate(column):
            counts = np.bincount(codes[:, level], minlength=num_codes)
            shares = np.sort(counts)[::-1] / len(codes)
            entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
            ax.bar(np.arange(num_codes), shares, width=1.0, color=COLOURS[level])
            ax.axhline(1 / num_codes, color=GREY, ls="--")
            ax.set_title(f"{TITLES[game]} L{level}: {(counts > 0).sum()} of {num_codes} used,\n"
                         f"perplexity {np.exp(entropy):.0f}", fontsize=8)
        column[-1].set_xlabel(f"code, by frequency (n={len(codes)})")
    for ax in axes[:, 0]:
        ax.set_ylabel("share of steps")
    return fig


@styled
def game_information(table: pd.DataFrame) -> Figure:
    """Bars of the information (nats) that each level's code holds about the game, from a
    tokenizer table, below the ceiling H(game); a dot for each of several seeds."""
    found = summarise(table, ["l{level}_game_information"])
    fig, ((ax,),) = panels(1, 1, width=3.4, height=2.7)
    bars(ax, found, np.arange(len(found)), 0.6, COLOURS[0])
    ax.axhline(found["baseline"].mean(), color=GREY, ls="--", label="H(game), the most possible")
    ax.set_xticks(range(len(found)), LEVELS[:len(found)])
    most = found["baseline"].mean() or 1.0  # of a single game there is nothing to tell
    ax.set(ylabel="about the game (nats)", ylim=(0, most * 1.15))
    ax.legend(**BELOW)
    return fig


@styled
def shared_codes(found: Sequence[dict]) -> Figure:
    """A line per coarse code (hd.stages.shared_codes): decoded, and each game's frame that
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


def show_ball_places(profiles: Iterable[str], results_dir=None) -> None:
    """Show ball_places of hi-dreamer at the first of the profiles whose tables have it."""
    for profile in profiles:
        codes = fresh_or_published(results_dir, profile, "tokenizer", "hi-dreamer")
        if any(parsed(name).metric == "rms_error_ball_x" for name in codes["metric"]):
            print(provenance_line(codes))
            show(ball_places(codes))
            return
    print("hi-dreamer's ball is not measured here.")


@legible
def ball_places(table: pd.DataFrame) -> Figure:
    """A panel per game: how well the ball is read from codes and from embeddings, by where it is,
    over the share of training steps that have it there (grey).

    table: of tokenizer. Raises InputError where it does not say where the ball is.
    """
    found = summarise(table)
    names = [parsed(name) for name in found["metric"]]
    found = found.assign(metric=[name.metric for name in names], at=[name.at for name in names])
    found = found[[name.at is not None and not name.words for name in names]]
    found = found[found["metric"].isin(("ball_share", "rms_error_ball_x"))]
    found = found.astype({"at": float}).sort_values("at")
    games = [game for game in GAMES if game in set(found["game"])]
    if not games:
        raise InputError("the table of tokenizer has no error by place")
    fig, axes = panels(len(games), 1, width=WIDE, height=2.8)
    for (ax,), game in zip(axes, games):
        here = found[found["game"] == game]
        share, error = (here[here["metric"] == name]
                        for name in ("ball_share", "rms_error_ball_x"))
        seen = ax.twinx()
        seen.bar(share["at"], share["mean"], 18, color="#dddddd", label="training steps")
        seen.set(ylabel="share of training steps", ylim=(0, None))
        ax.plot(error["at"], error["mean"], "o-", ms=3, color=COLOURS[0], label="from codes")
        ax.fill_between(error["at"], error["low"], error["high"], color=COLOURS[0], alpha=0.2)
        ax.plot(error["at"], error["baseline"], "o-", ms=3, color=COLOURS[1],
                label="from embeddings")
        ax.set(title=f"{TITLES[game]}, n={error['n'].max()}", xlabel="the ball's x (RAM units)",
               ylabel="root mean square error", ylim=(0, None), zorder=seen.get_zorder() + 1)
        ax.patch.set_visible(False)
    handles = [*axes[0, 0].get_legend_handles_labels()[0], seen.containers[0]]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


# ---- the world model

@styled
def attention_masks(num_steps: int = 3) -> Figure:
    """The four masks side by side: row = query, column = key, dark = may attend."""
    names = ["L0", "L1", "L2", "a"] * num_steps
    slots = len(world_model.SLOTS)
    fig, (axes,) = panels(1, len(world_model.MASKS), width=2.9, height=3.1)
    for ax, kind in zip(axes, world_model.MASKS):
        mask = world_model.hierarchical_mask(num_steps, kind).numpy()
        ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.3)
        for edge in range(slots, slots * num_steps, slots):
            ax.axhline(edge - 0.5, color=GREY, lw=0.8)
            ax.axvline(edge - 0.5, color=GREY, lw=0.8)
        ax.set_xticks(range(len(names)), names, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(title=f"{kind}: {mask.sum()} of {mask.size}", xlabel="may see (key)")
    axes[0].set_ylabel("reads (query)")
    return fig


@legible
def accuracy_table_figure(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Next-code accuracy (or cross_entropy) per level beside the trivial predictors: games down,
    all codes left and changed codes right. table: the world model's long table."""
    games = [game for game in GAMES if game in set(table["game"])]
    fig, axes = panels(len(games), 2, width=WIDE / 2, height=2.6, sharey="row")
    for line, game in zip(axes, games):
        own = summarise(table[table["game"] == game]).set_index("metric")
        for ax, infix, words in zip(line, ("", "changed_"), ("all codes", "codes that change")):
            names = [f"l{level}_{infix}{metric}" for level in range(3)]
            drawn = {"world model": own.loc[names]}
            if baseline_words(BEST_TRIVIAL, table) == "n-gram":  # which has no row of its own
                drawn["n-gram"] = own.loc[names].assign(
                    mean=own.loc[names, "baseline"], low=np.nan, high=np.nan, seeds=[()] * 3)
            for guess in ("back_off", "repeat_last", "frequency"):
                rows = [named(name, guess) for name in names]
                if set(rows) <= set(own.index):
                    drawn[TRIVIAL[guess]] = own.loc[rows]
            colours = (COLOURS[0], "#555555", "#8f8f8f", "#c8c8c8")  # grey: trivial predictors
            for i, ((name, found), colour) in enumerate(zip(drawn.items(), colours)):
                bars(ax, found, np.arange(3) + 0.2 * (i - 1.5), 0.2, colour, label=name, turn=90)
            ax.set_xticks(range(3), [name.replace(" ", "\n") for name in LEVELS])
            ax.set_title(f"{TITLES[game]}, {words}")
            ax.margins(y=0.25)
        line[0].set_ylabel(axis_label(f"l0_{metric}").replace("l0_", "").replace("_", " "))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


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
def floor_ladder(table: pd.DataFrame, world_model_table: pd.DataFrame) -> Figure:
    """A panel per game: nats of the next code that the best trivial predictor and the world model
    are left with, that the last codes and action leave open, and that the emulator's state does, a
    group of bars per level.

    table: of entropy_floor; world_model_table: of world_model, all of one variant. Whiskers: 95%
    over seeds. Raises InputError where the tables have no game in common.
    """
    games = [game for game in GAMES
             if game in set(table["game"]) & set(world_model_table["game"])]
    if not games:
        raise InputError("the tables of entropy_floor and world_model have no game in common")
    model = summarise(world_model_table, ["l{level}_cross_entropy"])
    model = model[model["metric"].isin([f"l{level}_cross_entropy" for level in range(3)])]
    trivial = model.assign(mean=model["baseline"], low=np.nan, high=np.nan,
                           seeds=[()] * len(model))
    shares = [name.sticky for name in map(parsed, table["metric"].unique())
              if name.metric == "l0_state_floor" and name.sticky is not None and not name.words]
    rungs = {baseline_words(BEST_TRIVIAL, world_model_table): trivial, "world model": model}
    floors = [f"l{level}_context_floor" for level in range(3)]
    if set(floors) <= set(table["metric"]):
        rungs["floor given the last step"] = summarise(table[table["step"] == 1], floors)
    for sticky in shares:
        rungs[f"floor given the state, sticky {sticky:g}"] = summarise(
            table, [named(f"l{level}_state_floor", sticky=sticky) for level in range(3)])
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

    table: transfer's long table. Pre-trained and from scratch, three levels and one; dashed: what
    counting the same steps gives, by back-off or an n-gram. Budgets stand evenly. A dot for each of
    several seeds.
    """
    name = "transfer_l0_cross_entropy"
    games = [game for game in GAMES if game in set(table["game"])]
    fig, (axes,) = panels(1, len(games), width=3.2, height=3.0)
    for ax, game in zip(axes, games):
        own = table[table["game"] == game]
        for levels, words, dash in (("", "three levels", "o-"), ("one_level", "one level", "s:")):
            found = summarise(own, [named(name, levels)]).sort_values("step")
            place = np.arange(len(found))
            ax.plot(place, found["mean"], dash, color=COLOURS[0], ms=4,
                    label=f"pre-trained, {words}")
            for x, seeds in zip(place, found["seeds"]):
                ax.plot([x] * len(seeds), seeds, ".", ms=2, color=COLOURS[0])
            ax.plot(place, found["baseline"], dash, color=COLOURS[1], ms=4,
                    label=f"from scratch, {words}")
        (counted,) = (word for word in ("back_off", "ngram")
                      if named(name, word) in set(own["metric"]))
        found_by_it = summarise(own, [named(name, counted)]).sort_values("step")
        ax.plot(place, found_by_it["mean"], "--", color=GREY, label=TRIVIAL[counted])
        ax.set_xticks(place, [number(step) for step in found["step"]])
        ax.set(title=f"to {TITLES[game]}, n={found['n'].min()}", xlabel="steps of the new game")
    axes[0].set_ylabel(axis_label(name))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


# ---- dreams and play

@styled
def ten_dreams(shares: np.ndarray, frames: Mapping[str, np.ndarray], *,
               steps: Sequence[int] = (5, 15)) -> Figure:
    """Dreams beside each other, the best left: at each step the truth, its codes, the dream.

    shares (n,): of true coarse codes; frames: name -> (n, H+1, 84, 84), of
    hd.report.pictures.ranked_dreams.
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
def returns_plot(episodes, anchors: Mapping[str, float] | None = None) -> Figure:
    """A dot per real episode for each player, with its mean and 95% interval over episodes.

    episodes: rows (or a table) with player, game, return; random play is also a dashed line.
    anchors: name -> return of other people's players, with their protocol in the name.
    """
    table = pd.DataFrame(episodes)
    games = [game for game in GAMES if game in set(table["game"])]
    fig, (axes,) = panels(1, len(games), width=3.6, height=2.9)
    for ax, game in zip(axes, games):
        here = table[table["game"] == game]
        players = list(dict.fromkeys(here["player"]))
        for i, player in enumerate(players):
            scores = here.loc[here["player"] == player, "return"].to_numpy(float)
            spread = i + 0.25 * np.sin(2.4 * np.arange(len(scores)))  # even, the same every time
            ax.plot(spread, scores, ".", color=COLOURS[i], alpha=0.6, ms=5)
            low, high = interval_over_episodes(scores)
            ax.errorbar(i + 0.38, scores.mean(), fmt="D", color="black", ms=4, capsize=3,
                        yerr=None if np.isnan(low) else [[scores.mean() - low],
                                                         [high - scores.mean()]])
        counts = here["player"].value_counts()
        ax.set_xticks(range(len(players)), [f"{name}\nn={counts[name]}" for name in players])
        random = here.loc[here["player"] == "random", "return"].mean()
        lines = {"random play, mean": random} if "random" in players else {}
        for i, (name, value) in enumerate({**lines, **(anchors or {})}.items()):
            ax.axhline(value, color=GREY, ls=("--", ":", "-.")[i % 3], label=name)
        ax.set(title=TITLES[game], ylabel="return of a real episode (points)",
               xlim=(-0.5, len(players) - 0.2))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(**BELOW)
    return fig


# ---- speed

def show_benchmark(table: pd.DataFrame) -> None:
    """Show benchmark_ratios of the bars of hd.report.benchmarks.published that have the least room,
    if there are any."""
    if (table["bar"] != "").any():
        show(benchmark_ratios(benchmarks.nearest(table, 12)))


@legible
def benchmark_ratios(table: pd.DataFrame) -> Figure:
    """A panel per device, a line per bar: the median ratio of ours to theirs with its least and
    most, on a logarithmic axis, and the bar as a stroke; shaded is where the bar is met."""
    kinds = list(dict.fromkeys(table["kind"]))
    longest = table["kind"].value_counts().max()
    fig, axes = panels(len(kinds), 1, width=WIDE, height=0.9 + 0.5 * longest)
    for (ax,), kind in zip(axes, kinds):
        rows = table[table["kind"] == kind].to_dict("records")
        low = min(min(row["ratio_min"], benchmarks.limit(row)) for row in rows) / 2
        high = max(max(row["ratio_max"], benchmarks.limit(row)) for row in rows) * 2
        for place, row in enumerate(rows):
            limit, ratio = benchmarks.limit(row), row["ratio"]
            ends = (limit, high) if row["bar"].startswith(">=") else (low, limit)
            ax.barh(place, ends[1] - ends[0], 0.4, left=ends[0], color="#eeeeee")
            ax.plot([limit, limit], [place - 0.2, place + 0.2], color="black")
            colour = COLOURS[0] if str(row["met"]) == "True" else COLOURS[4]
            ax.plot([row["ratio_min"], row["ratio_max"]], [place] * 2, color=colour, lw=1.5)
            ax.plot(ratio, place, "o", ms=6, color=colour)
            ax.annotate(_cut(f"{row['stage']}, against {row['against']}"), (0, place - 0.42),
                        xycoords=("axes fraction", "data"), va="center", fontsize=12)
        ax.set(xscale="log", xlim=(low, high), ylim=(len(rows) - 0.4, -0.9), yticks=[],
               xlabel="ours / theirs (shaded: the bar is met)", title=kind)
        times_axis(ax)
    return fig


def _cut(text: str, length: int = 62) -> str:
    return text if len(text) <= length else text[:length - 1].rstrip(" ,") + "…"
