"""Every picture of the study: figures beside their baselines, and videos of dreams.

With hd.report.figures_audit the only module that imports matplotlib. A figure is drawn on white in
colours that colour-blind readers can tell apart (Okabe and Ito 2008); baselines are grey.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from hd import atari, world_model
from hd.config import GAMES, InputError
from hd.measure import evaluation
from hd.report.tables import METRICS, TITLES, key_of, number, summarise
from hd.run.runs import Run
from hd.run.storage import write_atomically, write_text

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
MAX_POINTS = 3000  # in a scatter
LEVELS = ("L0 coarse", "L1 middle", "L2 fine")
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.28)}  # a legend that hides nothing


def styled(draw):
    """Draw in this module's style, whatever the session's own settings are."""
    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        with plt.rc_context(STYLE):
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


def axis_label(metric: str) -> str:
    return f"{metric} ({METRICS[key_of(metric)].unit})"


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
        is_train = data.is_train[rows[first]]
        for side, name, colour in ((is_train, "training", COLOURS[0]),
                                   (~is_train, "held out", COLOURS[1])):
            ax.plot(np.flatnonzero(side), lengths[side], "o", ms=4, color=colour,
                    label=f"{name} (n={side.sum()})")
        ax.axhline(lengths.mean(), color=GREY, ls="--", label=f"mean {lengths.mean():.0f}")
        ax.set(title=TITLES[game], xlabel="episode", ylabel="length (agent steps)")
        ax.set_ylim(0, lengths.max() * 1.1)
        ax.legend(**BELOW)
    return fig


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
        for i, (name, value) in enumerate((known if isinstance(known, Mapping)
                                           else {"baseline": known}).items()):
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
    tokenizer table, below the ceiling H(game); 95% interval over seeds if there are several."""
    found = summarise(table, ["l{level}_game_information"])
    fig, ((ax,),) = panels(1, 1, width=3.4, height=2.7)
    bars(ax, found, np.arange(len(found)), 0.6, COLOURS[0])
    ax.axhline(found["baseline"].mean(), color=GREY, ls="--", label="H(game), the most possible")
    ax.set_xticks(range(len(found)), LEVELS[:len(found)])
    most = found["baseline"].mean() or 1.0  # of a single game there is nothing to tell
    ax.set(ylabel="what codes tell of the game (nats)", ylim=(0, most * 1.15))
    ax.legend(**BELOW)
    return fig


@styled
def attention_masks(num_steps: int = 3) -> Figure:
    """The four masks side by side: row = query, column = key, dark = may attend."""
    names = ["L0", "L1", "L2", "a"] * num_steps
    fig, (axes,) = panels(1, len(world_model.MASKS), width=2.9, height=3.1)
    for ax, kind in zip(axes, world_model.MASKS):
        mask = world_model.hierarchical_mask(num_steps, kind).numpy()
        ax.imshow(mask, cmap="Blues", vmin=0, vmax=1.3)
        for edge in range(4, 4 * num_steps, 4):
            ax.axhline(edge - 0.5, color=GREY, lw=0.8)
            ax.axvline(edge - 0.5, color=GREY, lw=0.8)
        ax.set_xticks(range(len(names)), names, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(title=f"{kind}: {mask.sum()} of {mask.size}", xlabel="may see (key)")
    axes[0].set_ylabel("reads (query)")
    return fig


@styled
def accuracy_table_figure(table: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Next-code accuracy (or cross_entropy) per level beside n-gram, repeat-last and frequency:
    games down, all codes left and changed codes right. table: the world model's long table."""
    games = [game for game in GAMES if game in set(table["game"])]
    fig, axes = panels(len(games), 2, width=3.6, height=2.1, sharey="row")
    for line, game in zip(axes, games):
        own = summarise(table[table["game"] == game]).set_index("metric")
        for ax, infix, words in zip(line, ("", "changed_"), ("all codes", "codes that change")):
            names = [f"l{level}_{infix}{metric}" for level in range(3)]
            drawn = {"world model": own.loc[names], "n-gram": own.loc[names].assign(
                mean=own.loc[names, "baseline"], low=np.nan, high=np.nan)}
            for suffix in ("repeat_last", "frequency"):
                drawn[suffix.replace("_", " ")] = own.loc[[f"{n}[{suffix}]" for n in names]]
            for i, (name, found) in enumerate(drawn.items()):
                colour = COLOURS[0] if i == 0 else ("", "#555555", "#8f8f8f", "#c8c8c8")[i]
                bars(ax, found, np.arange(3) + 0.2 * (i - 1.5), 0.2, colour, label=name, turn=90)
            ax.set_xticks(range(3), LEVELS)
            ax.set_title(f"{TITLES[game]}, {words}")
            ax.margins(y=0.25)
        line[0].set_ylabel(axis_label(f"l0_{metric}").replace("l0_", "").replace("_", " "))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


@styled
def metric_bars(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """A panel per metric: value beside baseline for each game; 95% interval over seeds, n."""
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
            bars(ax, found.assign(mean=found["baseline"], low=np.nan, high=np.nan), place + 0.2,
                  0.38, "#a8a8a8", label=words.partition(";")[0])
        ax.set_xticks(place, [TITLES[game] for game in found["game"]], fontsize=8)
        ax.set(ylabel=axis_label(metric), title=f"n={found['n'].max()}")
        ax.margins(y=0.1)
        ax.legend(**BELOW)
    for ax in axes.flat[len(metrics):]:
        ax.remove()
    return fig


def bars(ax, found, place, width, colour, *, label=None, turn=0) -> None:
    """Bars of summarise's rows with their value written on them, and whiskers where n > 1."""
    drawn = ax.bar(place, found["mean"], width, color=colour, label=label)
    ax.bar_label(drawn, [number(value, 2) for value in found["mean"]], fontsize=6, padding=2,
                 rotation=turn)
    if found["low"].notna().any():
        whiskers = np.abs(found[["low", "high"]].to_numpy().T - found["mean"].to_numpy())
        ax.errorbar(place, found["mean"], whiskers, fmt="none", ecolor="black", capsize=2, lw=1)


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
    for ax, step in zip(axes[0], steps):
        ax.set_title(f"step {step}" if step else "last real step" if "dream" in lines else "step 0")
    return fig


@styled
def arm_bars(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """A panel per metric: a bar per arm (variant) for each game, 95% interval over seeds.

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
            low, high = evaluation.interval(scores)
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
