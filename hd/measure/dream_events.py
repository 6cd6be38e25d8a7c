"""Do dreams bounce and score when the truth does? Events in paths and rewards, matched in time."""

from __future__ import annotations

import numpy as np

WITHIN = 2  # steps by which an event may come too early or too late
SPAN = 3  # steps before and after a turn over which movement is measured
MOVED = 4.0  # RAM units that count as movement over such a span


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
    for row in np.flatnonzero(events.any(1)):
        first = events[row].argmax()
        length = np.append(~events[row, first:], True).argmax()
        kept[row, first + (length - 1) // 2] = True
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
