"""Real play of a trained policy beside other players, and an interval over its episodes."""

from __future__ import annotations

import numpy as np

from hd.run.intervals import interval_over_episodes
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
    for name, bound in zip(("low", "high"), interval_over_episodes(returns["policy"], seed=seed)):
        rows.append(row(named("real_return", f"ci_{name}"), bound, game=game, split="real"))
    rows += [row(named("real_return", name), np.mean(returns[name]), game=game, split="real")
             for name in ("tracker", "ram_policy") if name in played]
    if training_steps is not None:
        rows.append(row(named("training_steps", "ram_policy"), training_steps, game=game,
                        split="real"))
    rows += [row("real_length", np.mean(lengths), game=game, split="real"),
             row("episodes", len(lengths), game=game, split="real")]
    return rows


def share_won_rows(rewards: np.ndarray, prefill: int, *, game: str, window: int = 4096
                   ) -> list[dict]:
    """Rows about an agent while it learned, in a game in which points are lost as well as won: of
    the rewards that are not zero, the share above zero, in every `window` steps after the prefill;
    beside it that of the prefill, which is played by chance. Episodes are long, so that their
    returns come late; points come at once.

    rewards: (E, T) of E emulators side by side (hd.experience.Store).
    """
    if not (rewards < 0).any():
        return []
    E, T = rewards.shape

    def share(part):
        return np.mean(part[part != 0] > 0) if part.any() else np.nan

    each = max(1, window // E)
    starts = range(prefill // E, T - each + 1, each)
    return [row("share_won", share(rewards[:, start:start + each]), game=game, split="real",
                step=(start + each) * E, baseline=share(rewards[:, :prefill // E]))
            for start in starts if rewards[:, start:start + each].any()]


def curve_rows(history: list[dict], *, game: str, random_return: float) -> list[dict]:
    """Rows about an agent while it learned: the mean return of the last ten training episodes at
    each point of its record (hd.agent.train), beside that of random play."""
    return [row("training_return", point["return"], game=game, split="real", step=point["step"],
                baseline=random_return)
            for point in history if point["return"] is not None]
