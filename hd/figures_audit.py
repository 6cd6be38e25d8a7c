"""Figures of the studies that stand beside the chain: transfer to another game."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hd.config import GAMES
from hd.figures import COLOURS, GREY, _axis_label, _panels, styled
from hd.report import TITLES, number, summarise


@styled
def transfer_curves(table: pd.DataFrame) -> Figure:
    """A panel per target game: L0 cross-entropy over the steps of it that adaptation saw.

    table: transfer's long table. Pre-trained and from scratch, three levels and one; dashed: the
    n-gram of the same steps. Budgets stand evenly. 95% interval over seeds if there are several.
    """
    name = "transfer_l0_cross_entropy"
    games = [game for game in GAMES if game in set(table["game"])]
    fig, (axes,) = _panels(1, len(games), width=3.2, height=3.0)
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
    axes[0].set_ylabel(_axis_label(name))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig
