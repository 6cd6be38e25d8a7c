"""Real play of a trained policy beside other players, and an interval over its episodes."""

from __future__ import annotations

import numpy as np

from hd.run.intervals import interval
from hd.run.metrics import named
from hd.run.runs import row


def rows_of(played: dict[str, list[dict]], training_steps: int | None = None, *,
            seed: int) -> list[dict]:
    """Rows about the episodes of each player (hd.play.play): "policy", beside "random" and the
    other players to compare with; training_steps: real steps that "ram_policy" was trained with.

    The baseline column is random play under the same protocol and the same episode starts.
    """
    rows, game = [], played["policy"][0]["game"]
    returns = {name: [e["return"] for e in rows] for name, rows in played.items()}
    lengths = [e["length"] for e in played["policy"]]
    rows.append(row("real_return", np.mean(returns["policy"]), game=game, split="real",
                    baseline=np.mean(returns["random"])))
    for name, bound in zip(("low", "high"), interval(returns["policy"], seed=seed)):
        rows.append(row(named("real_return", f"ci_{name}"), bound, game=game, split="real"))
    rows += [row(named("real_return", name), np.mean(returns[name]), game=game, split="real")
             for name in ("tracker", "ram_policy") if name in played]
    if training_steps is not None:
        rows.append(row(named("training_steps", "ram_policy"), training_steps, game=game,
                        split="real"))
    rows += [row("real_length", np.mean(lengths), game=game, split="real"),
             row("episodes", len(lengths), game=game, split="real")]
    return rows


def curve_rows(history: list[dict], *, game: str, random_return: float) -> list[dict]:
    """Rows about an agent while it learned: the mean return of the last ten training episodes at
    each point of its record (hd.agent.train), beside that of random play."""
    return [row("training_return", point["return"], game=game, split="real", step=point["step"],
                baseline=random_return)
            for point in history if point["return"] is not None]
