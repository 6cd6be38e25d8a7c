"""Frames to look at: stored ones, what their codes decode to, dreams, and where things are in them.
"""

from __future__ import annotations

import numpy as np
import torch

from hd import atari, stages
from hd.measure import contact, dreams
from hd.run.runs import Run, rng_for
from hd.tokenizer import quantized


def beside_truth(run: Run, rows, dreamed=None) -> dict[str, np.ndarray]:
    """Stored frames (..., 84, 84) uint8 of rows (...) and what their codes decode to, by name; with
    dreamed (..., L) int64 also what these codes decode to, as "dream"."""
    draw = stages.drawer_of(run)
    codes = torch.from_numpy(stages.tokens_of(run)[rows].astype(np.int64))
    found = {"real game": stages.load(run.at("frames")).newest(rows), "its codes": draw(codes)}
    return found if dreamed is None else {**found, "dream": draw(dreamed)}


def dream_frames(run: Run, game: str) -> dict[str, np.ndarray]:
    """The first of the seeded dreams as frames (H+1, 84, 84) uint8: truth, its codes, the dream.

    Index 0 is the last real step.
    """
    dreamt = stages.dreams_of(run, game)
    return beside_truth(run, dreamt.rows[0], dreamt.rollout.tokens[0])


def dream_places(run: Run, game: str) -> dict[str, np.ndarray]:
    """Where the ball (MsPacman: the player) is in dream_frames: places of its columns."""
    dreamt = stages.dreams_of(run, game)
    ram = stages.load(run.at("frames")).ram[dreamt.rows[0]]
    return places(run, game, ram, {"its codes": dreamt.tokens[0],
                                   "dream": dreamt.rollout.tokens[0]})


def places(run: Run, game: str, ram: np.ndarray, codes: dict) -> dict[str, np.ndarray]:
    """Where the ball (MsPacman: the player) is at T steps: (T, 2) column and row on a frame.

    ram (T, 128) says it as "real game", and for all of them when no ball is in play: NaN. codes:
    name -> (T, L), from each of which a probe reads it; without codes no stored frames are needed.
    """
    found = {"real game": atari.labels(game, ram)}
    if codes:
        model, probe = stages.load(run.at("tokenizer")), stages.coordinate_probe(run, game)
        found |= {name: probe.predict(quantized(model, chosen.cpu().numpy()))
                  for name, chosen in codes.items()}
    is_shown = atari.ball_in_play(game, ram)[:, None]
    return {name: np.where(is_shown, atari.on_frame(game, state), np.nan)
            for name, state in found.items()}


def ranked_dreams(run: Run, game: str, *, count: int = 10) -> tuple[np.ndarray, dict]:
    """Dreams chosen by rule, see hd.measure.dreams.ranked: (count,) the share of true codes, and
    {"real game", "its codes", "dream"}: frames (count, H+1, 84, 84) uint8; index 0 of a dream is
    the last real step."""
    dreamt = stages.dreams_of(run, game)
    share, picks = dreams.ranked(dreamt, count)
    return share, beside_truth(run, dreamt.rows[picks], dreamt.rollout.tokens.cpu()[picks])


def contacts(run: Run, *, count: int = 10, num_steps: int = 4800) -> list[dict]:
    """Contacts of an online agent in num_steps steps that it plays anew, half of them lost where
    there are as many, in the order in which they came.

    Each has is_lost; dreamed_loss, the mean of some dreams from GAMES[game].lost_within steps
    before under the true actions; and "real game" and "dream", one of these dreams decoded: frames
    (H + 1, 84, 84) uint8 of H = lost_within - 1 steps. Empty where the play holds none, and for a
    learner without a model.
    """
    if run.cfg.learner:
        return []
    made, cfg, rng = stages.load(run), run.cfg, rng_for(run.seed, "contact pictures")
    store = contact.new_play(made, cfg, {"agent": made.act()},
                             num_steps=min(num_steps, cfg.num_steps), seed=run.seed)["agent"]
    at = np.stack(contact.approaches(made.game, store, made.model.cfg.steps))
    is_lost = contact.is_lost(made.game, store, *at)
    picked = _half_of_each(is_lost, count, rng)
    if not len(picked):
        return []
    emulators, times = at[:, picked]
    rollout = contact.dreamed(made, store, emulators, times, run.seed)
    tokens = rollout.tokens[:len(picked), :-1]
    steps = times[:, None] + np.arange(tokens.shape[1])
    frames = {"real game": store.frames[emulators[:, None], steps],
              "dream": made.codec.decode(tokens).cpu().numpy()}
    return [{"is_lost": bool(lost), "dreamed_loss": float(loss),
             **{name: films[k] for name, films in frames.items()}}
            for k, (lost, loss) in enumerate(zip(is_lost[picked], contact.lost_in(rollout)))]


def levels(run: Run, *, num_steps: int = 4800) -> dict[str, np.ndarray]:
    """What each level of an online agent's codes shows: a frame (84, 84) uint8 as "real game", and
    decoded from its coarsest level alone, from two, ... as "1 level", "2 levels", ... Of num_steps
    steps that the agent plays anew, the frame in the middle by how many places hold something."""
    made, cfg = stages.load(run), run.cfg
    store = contact.new_play(made, cfg, {"agent": made.act()},
                             num_steps=min(num_steps, cfg.num_steps), seed=run.seed)["agent"]
    frames = store.frames[:, :store.length].reshape(-1, *store.frames.shape[-2:])
    tokens = made.codec.encode(frames)
    held = (tokens != 0).any(1).sum(1)
    middle = int(held.argsort(stable=True)[len(held) // 2])
    found = {"real game": frames[middle]}
    for count in range(1, tokens.shape[1] + 1):
        some = tokens[middle].clone()
        some[count:] = 0  # the code of nothing left
        found[f"{count} level{'s' * (count > 1)}"] = made.codec.decode(some).cpu().numpy()
    return found


def held_actions(run: Run) -> dict[str, tuple[float, float]]:
    """What holding one action brings an online agent, by the action's name: see
    hd.measure.contact.held_returns. Empty for a learner without a model."""
    if run.cfg.learner:
        return {}
    made = stages.load(run)
    found = contact.held_returns(made, made.act(), run.cfg, seed=run.seed)
    return {atari.ACTION_MEANINGS[action].lower(): pair for action, pair in found.items()}


def _half_of_each(is_true: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Up to count numbers of is_true (N,) bool, rising: half of them true ones where there are as
    many, and as many false ones; drawn at random."""
    true, false = (rng.permutation(np.flatnonzero(kind)) for kind in (is_true, ~is_true))
    num_true = max(min(len(true), count // 2), min(len(true), count - len(false)))
    return np.sort(np.concatenate([true[:num_true], false[:count - num_true]]))
