"""Dreams beside the truth: codes, places and rewards, and whether they bounce and score in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from hd import atari
from hd.config import ImaginationConfig, InputError
from hd.imagination import Rollout, imagine, replayed
from hd.measure.probes import Probe
from hd.quantization import ResidualVQ
from hd.replay import Replay
from hd.run.machine import device
from hd.run.metrics import named
from hd.run.runs import rng_for, row
from hd.tokenizer import quantized
from hd.windows import Windows
from hd.world_model import WorldModel

DREAM_STEPS = (1, 5, 15, 48)  # steps into a dream at which it is compared with the truth
TURN_STEPS = 15  # of a dream, in which the ball's first turn is looked for
REWARD_SEEN = 0.5  # from here on a dreamed reward is a scoring event
WITHIN = 2  # steps by which an event may come too early or too late
SPAN = 3  # steps before and after a turn over which movement is measured
MOVED = 4.0  # RAM units that count as movement over such a span


@dataclass(frozen=True)
class Dreamt:
    """Open-loop dreams of one game under the true actions, beside what really happened.

    B dreams of H steps. tokens (B, H+1, L), rewards (B, H): the true ones; index 0 of tokens is the
    last real step before a dream. rows (B, H+1): the stored steps themselves.
    """

    game: str
    rollout: Rollout
    tokens: torch.Tensor
    rewards: torch.Tensor
    rows: np.ndarray


def num_steps(cfg: ImaginationConfig, max_steps: int) -> int:
    """How long dreams are: as stated, or what max_steps of a model leave after the context."""
    return min(cfg.horizon, max_steps - cfg.context)


@torch.no_grad()
def dream(model: WorldModel, windows: Windows, game: str, cfg: ImaginationConfig) -> Dreamt:
    """cfg.num_dreams dreams, or as many as there are starts, from test episodes of a game:
    cfg.context real steps, then num_steps under the actions that were really done."""
    context, horizon = cfg.context, num_steps(cfg, model.cfg.max_steps)
    if horizon < 1:
        raise InputError(f"imagination.context {context} leaves no room to dream in "
                         f"world_model.max_steps {model.cfg.max_steps}")
    length = context + horizon
    starts = windows.data.window_starts(length,
                                        windows.data.is_test & windows.data.in_game(game))
    rng = rng_for(windows.seed, "dreams", game)
    starts = np.sort(rng.choice(starts, min(cfg.num_dreams, len(starts)), replace=False))
    batch = windows.batch(starts, length)
    actions = batch["actions"].to(device())
    rollout = imagine(model, batch["tokens"][:, :context].to(device()), actions[:, :context - 1],
                      replayed(actions[:, context - 1:]), horizon=horizon,
                      generator=torch.Generator().manual_seed(windows.seed))
    return Dreamt(game, rollout, batch["tokens"][:, context - 1:],
                  batch["rewards"][:, context - 1:-1],
                  starts[:, None] + np.arange(context - 1, length))


def ranked(dreamt: Dreamt, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Dreams chosen by rule, not by taste: of all, ordered by how many of their first 15 coarse
    codes are true, those at `count` evenly spaced ranks, the best first.

    Returns (count,) the share of true codes and (count,) the numbers of the dreams.
    """
    near = slice(1, 16)
    dreamed = dreamt.rollout.tokens.cpu()
    share = (dreamed[:, near, 0] == dreamt.tokens[:, near, 0]).float().mean(1).numpy()
    ranks = np.linspace(0, len(share) - 1, min(count, len(share))).round().astype(int)
    picks = np.argsort(-share, kind="stable")[ranks]
    return share[picks], picks


def rows_of(dreamt: Dreamt, data: Replay, quantizer: ResidualVQ, probe: Probe) -> list[dict]:
    """What the dreams of one game keep of the truth, after 1, 5, 15, ... steps.

    The share of dreamed codes equal to the true ones, beside copying the last real step; where a
    probe sees the ball in them; rewards summed over a dream, and whether it scores.
    probe: reads the coordinates from quantized vectors, see hd.measure.game_state.
    """
    rows, game, truth = [], dreamt.game, dreamt.tokens
    dreamed = dreamt.rollout.tokens.cpu()
    for step in _steps_within(truth.shape[1]):
        for level in range(truth.shape[2]):
            right = (dreamed[:, step, level] == truth[:, step, level]).float().mean()
            copied = (truth[:, 0, level] == truth[:, step, level]).float().mean()
            rows.append(row(f"dream_l{level}_accuracy", right, game=game, step=step,
                            baseline=copied))
    rows += _coordinate_rows(dreamt, data, quantizer, probe)
    rows += _reward_rows(dreamt.rollout.rewards.cpu().numpy(), dreamt.rewards.numpy(), game)
    return [*rows, row("dreams", len(truth), game=game)]


def _steps_within(length: int) -> list[int]:
    """Of DREAM_STEPS those that dreams of `length` steps, the real first one included, have."""
    return [step for step in DREAM_STEPS if step < length]


def _reward_rows(dreamed, true, game: str) -> list[dict]:
    """dreamed, true: (B, H) rewards. Without a reward in the sample nothing can be found."""
    total, horizon = true.sum(1), true.shape[1]
    rows = [row("dream_reward_error", np.abs(dreamed.sum(1) - total).mean(), game=game,
                step=horizon, baseline=np.abs(total).mean())]
    scores = (true != 0).any(1)
    if scores.any():
        found = average_precision_score(scores, np.abs(dreamed).sum(1))
        rows.append(row("dream_reward_average_precision", found, game=game, step=horizon,
                        baseline=scores.mean()))
        events, dreamed_events = true != 0, np.abs(dreamed) >= REWARD_SEEN
        chance = of_others(dreamed_events)
        rows += [row(f"dream_reward_{name}", matched(*pair), game=game, step=horizon,
                     baseline=matched(*other))
                 for name, pair, other in (
                     ("recall", (events, dreamed_events), (events, chance)),
                     ("precision", (dreamed_events, events), (chance, events)))
                 if pair[0].any()]
    return rows


def _coordinate_rows(dreamt: Dreamt, data: Replay, quantizer, probe) -> list[dict]:
    """Median absolute error, in RAM units, of coordinates read by a probe from dreamed codes; and
    whether the ball turns in the dream where it truly turns.

    [copied] stays at the true position of the last real step, [extrapolated] goes on as the true
    last two steps moved; the baseline is the better of these. [re-encoded] reads the codes of the
    truth, all that a perfect dream could show. Scored are dreams with the ball in play at both of
    these steps.
    """
    game, stored, rows = dreamt.game, dreamt.rows, []
    labels = {name: values.astype(np.float64)
              for name, values in atari.labels(game, data.ram[stored]).items()}
    earlier = atari.labels(game, data.ram[_before(data, stored)])
    in_play = atari.ball_in_play(game, data.ram[stored])
    read = {word: probe.predict(quantized(quantizer, codes.reshape(-1, codes.shape[-1])))
            for word, codes in (("", dreamt.rollout.tokens.cpu().numpy()),
                                  ("re-encoded", dreamt.tokens.numpy()))}
    read = {word: {name: values.reshape(stored.shape) for name, values in found.items()}
            for word, found in read.items()}
    for step in _steps_within(stored.shape[1]):
        scored = in_play[:, 0] & in_play[:, step]
        rows.append(row("dreams_in_play", scored.sum(), game=game, step=step))
        if not scored.any():
            continue
        for name in atari.GAMES[game].coordinates:
            last, true = (labels[name][scored, k] for k in (0, step))
            speed = last - earlier[name][scored].astype(np.float64)
            guesses = {word: found[name][scored, step] for word, found in read.items()}
            guesses |= {"copied": last, "extrapolated": last + step * speed}
            errors = {word: np.median(np.abs(guess - true)) for word, guess in guesses.items()}
            bar = min(errors["copied"], errors["extrapolated"])
            rows += [row(named(f"dream_error_{name}", word), error, game=game, step=step,
                         baseline=None if word else bar) for word, error in errors.items()]
    return rows + _turn_rows(labels, read, in_play, game)


def _before(data, stored) -> np.ndarray:
    """(B,) the rows one step before the first of each dream's (B, H+1), or these themselves where
    an episode begins."""
    return np.maximum(stored[:, 0] - 1, data.starts[stored[:, 0]])


def _turn_rows(labels, read, in_play, game: str) -> list[dict]:
    """Of the futures in which the ball turns within TURN_STEPS, those whose dream first turns then.

    labels, read[word]: name -> (B, H+1) true positions, and as read from codes. The baseline
    looks for the turns of other dreams; only dreams with the ball in play throughout are scored.
    """
    rows, last = [], TURN_STEPS + SPAN
    for name in ("ball_x", "ball_y"):
        if name not in labels or in_play.shape[1] <= last:
            continue
        scored = in_play[:, :last + 1].all(1)
        turning = firsts(turns(labels[name][scored, :last + 1]))
        rows.append(row(f"dreams_with_turn_{name}", turning.any(1).sum(), game=game,
                        step=TURN_STEPS))
        if not turning.any():
            continue
        for word, found in read.items():
            # The first turns only: a path that trembles turns all the time, but first at once.
            dreamed = firsts(turns(found[name][scored, :last + 1]))
            chance = matched(turning, of_others(dreamed))
            rows.append(row(named(f"dream_turn_recall_{name}", word),
                            matched(turning, dreamed), game=game, step=TURN_STEPS,
                            baseline=None if word else chance))
    return rows


# ---- events in paths and rewards, matched in time

def turns(path: np.ndarray) -> np.ndarray:
    """path (B, T) positions -> (B, T) bool: the steps around which the direction reverses.

    Over SPAN steps before and after such a step the path moves by at least MOVED, and in opposite
    directions. A turn marks up to 2 SPAN - 1 steps; the first and last SPAN steps are never marked.
    """
    path, marked = np.asarray(path, np.float64), np.zeros(np.shape(path), bool)
    steps = slice(SPAN, path.shape[1] - SPAN)
    middle = path[:, steps]
    before, after = middle - path[:, :-2 * SPAN], path[:, 2 * SPAN:] - middle
    marked[:, steps] = (before * after < 0) & (np.minimum(abs(before), abs(after)) >= MOVED)
    return marked


def firsts(events: np.ndarray) -> np.ndarray:
    """events (B, T) bool -> the same with only the middle of each row's first run of marks."""
    kept = np.zeros_like(events)
    for i in np.flatnonzero(events.any(1)):
        first = events[i].argmax()
        length = np.append(~events[i, first:], True).argmax()
        kept[i, first + (length - 1) // 2] = True
    return kept


def near(events: np.ndarray, within: int = WITHIN) -> np.ndarray:
    """events (B, T) bool -> (B, T) bool: the steps with an event at most `within` steps away."""
    found = events.copy()
    for shift in range(1, within + 1):
        found[:, shift:] |= events[:, :-shift]
        found[:, :-shift] |= events[:, shift:]
    return found


def matched(events: np.ndarray, others: np.ndarray) -> float:
    """Share of events (B, T) bool with one of the others in the same row at most WITHIN steps
    away; NaN without events."""
    return float(near(others)[events].mean()) if events.any() else float("nan")


def of_others(events: np.ndarray) -> np.ndarray:
    """Each row's events replaced by those of the row half the sample away: what chance finds."""
    return np.roll(events, len(events) // 2, axis=0)
