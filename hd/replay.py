"""Stored episodes as training sees them: split by episode, windows inside episodes, frames stacked
when read.

A row is one step: the frame seen, the action after it, what that action caused. Rows of several
games stand one after the other; a row number is valid over all of them. Frames stay on disk.
"""

from __future__ import annotations

import io
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from hd.collection import SOURCES, STEP_TYPES
from hd.config import InputError, allowed, check_games, check_seed
from hd.run.storage import shown

STACK = 4


class FrameFile:
    """The frames of one game on disk, (N, 84, 84) uint8 in the format of numpy.

    Read where they are asked for, by any number of threads, and not mapped: a mapped file is read
    page by page. Raises InputError naming the file when it is missing, damaged or something else.
    """

    def __init__(self, path: Path):
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            self._file = io.FileIO(path)
        except (OSError, ValueError, EOFError) as error:
            raise _unusable(path, error) from None
        weakref.finalize(self, self._file.close)
        is_in_order = stored.dtype == np.uint8 and stored.flags.c_contiguous
        if not is_in_order or stored.shape[1:] != (84, 84):
            raise _unusable(path, f"holds {stored.shape} {stored.dtype}, not (N, 84, 84) uint8")
        self.path, self._lock = path, threading.Lock()
        self._length, self._offset = len(stored), stored.offset

    def __len__(self) -> int:
        return self._length

    def read_into(self, out: np.ndarray, first: int) -> None:
        """Fill out (n, 84, 84) uint8, contiguous, with the frames from number first on."""
        left = memoryview(out).cast("B")
        with self._lock:
            self._file.seek(self._offset + first * out[0].nbytes)
            while left:  # the system gives two gigabytes at once at most
                count = self._file.readinto(left)
                if not count:
                    raise _unusable(self.path, "it became shorter while it was read")
                left = left[count:]


@dataclass(frozen=True, eq=False)
class Replay:
    """The stored steps of several games, N in all.

    offsets: (games + 1,) first row of each game, then N. game_idx: (N,) int8, index into games.
    episode_ids: (N,) int64, unique over games; starts: (N,) int64, first row of a row's episode.
    is_train, is_val, is_test: (N,) bool, see split_three_ways. actions: (N,) int8 ALE ids;
    rewards, continues: (N,) float32; source: (N,) int8, an index into hd.collection.SOURCES.
    """

    games: tuple[str, ...]
    folder: Path
    frames: tuple[FrameFile, ...]
    offsets: np.ndarray
    game_idx: np.ndarray
    episode_ids: np.ndarray
    starts: np.ndarray
    is_train: np.ndarray
    is_val: np.ndarray
    is_test: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    continues: np.ndarray
    source: np.ndarray

    @classmethod
    def open(cls, folder: Path, games: tuple[str, ...], *, val_share: float, seed: int,
             test_share: float | None = None) -> Replay:
        """Open the files that hd.collection wrote, split by episode within each game, see
        split_three_ways.

        Raises InputError naming the file that is missing, damaged or does not fit the others, and
        where a game or a source has too few episodes for the split.
        """
        games, folder = check_games(games), Path(folder)
        frames, steps = zip(*(_open_game(folder, game) for game in games))
        local_ids = [game_steps["episode_ids"].astype(np.int64) for game_steps in steps]
        first_ids = np.cumsum([0, *(ids[-1] + 1 for ids in local_ids)])
        episode_ids = np.concatenate([ids + first for ids, first in zip(local_ids, first_ids)])
        parts = []
        for game, ids, game_steps in zip(games, local_ids, steps):
            source = game_steps["source"]
            parts.append(split_three_ways(ids, val_share=val_share, test_share=test_share,
                                          seed=seed, source=source))
            if test_share and val_share:
                _check_parts(game, ids, source, parts[-1])
        is_train, is_val, is_test = map(np.concatenate, zip(*parts))
        lengths = [len(game_frames) for game_frames in frames]
        return cls(
            games, folder, frames, offsets=np.cumsum([0, *lengths]),
            game_idx=np.repeat(np.arange(len(games), dtype=np.int8), lengths),
            episode_ids=episode_ids,
            starts=np.flatnonzero(np.diff(episode_ids, prepend=-1))[episode_ids],
            is_train=is_train, is_val=is_val, is_test=is_test,
            **{name: np.concatenate([game_steps[name] for game_steps in steps])
               for name in ("actions", "rewards", "continues", "source")})

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def ram(self) -> np.ndarray:
        """(N, 128) uint8; read from disk when first asked for."""
        columns = [_load(_steps_file(self.folder, game), ("ram",))["ram"] for game in self.games]
        for game, ram, length in zip(self.games, columns, np.diff(self.offsets)):
            if ram.shape != (length, 128) or ram.dtype != np.uint8:
                raise _unusable(_steps_file(self.folder, game), f"ram is {ram.shape} {ram.dtype}")
        return np.concatenate(columns)

    @cached_property
    def has_next(self) -> np.ndarray:
        """(N,) bool: the next row is of the same episode."""
        return np.append(self.episode_ids[1:] == self.episode_ids[:-1], False)

    def in_game(self, game: str) -> np.ndarray:
        """(N,) bool: the rows of one game, or of "all"."""
        allowed("game", game, (*self.games, "all"))
        if game == "all":
            return np.ones(len(self), bool)
        return self.game_idx == self.games.index(game)

    def by_source(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """rows (n,) -> source -> (n,) bool, which of them it chose the actions of.

        Empty where all are of one source: there is nothing to tell apart.
        """
        found = np.unique(self.source[rows])
        return {SOURCES[k]: self.source[rows] == k for k in found} if len(found) > 1 else {}

    def stack(self, rows: np.ndarray) -> np.ndarray:
        """rows (...) -> (..., 4, 84, 84) uint8, oldest first; an episode's first frame repeats."""
        flat = np.ravel(rows)
        _check_rows(flat, len(self))
        ages = np.arange(STACK - 1, -1, -1)
        sources = np.maximum(flat[:, None] - ages, self.starts[flat][:, None])
        return self._gather(sources.ravel()).reshape(*np.shape(rows), STACK, 84, 84)

    def newest(self, rows: np.ndarray) -> np.ndarray:
        """rows (...) -> (..., 84, 84) uint8, the frame seen at each."""
        return self._gather(np.ravel(rows)).reshape(*np.shape(rows), 84, 84)

    def window_starts(self, length: int, rows_mask: np.ndarray | None = None) -> np.ndarray:
        """See the function window_starts."""
        return window_starts(self.episode_ids, length, rows_mask)

    def chunk_starts(self, length: int) -> np.ndarray:
        """window_starts within training episodes, computed once; InputError when there is none."""
        return _training_windows(self, length)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        """(M,) -> (M, 84, 84); rows that follow each other are one read."""
        _check_rows(rows, len(self))
        out = np.empty((len(rows), 84, 84), np.uint8)
        game = np.searchsorted(self.offsets, rows, side="right") - 1
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(game) != 0)) + 1
        for begin, end in pairwise([0, *cuts.tolist(), len(rows)] if len(rows) else []):
            first = int(rows[begin] - self.offsets[game[begin]])
            self.frames[game[begin]].read_into(out[begin:end], first)
        return out


def _check_rows(rows: np.ndarray, count: int) -> None:
    """Raise InputError unless rows (M,) are numbers of stored steps, of which there are count."""
    if len(rows) and rows.dtype.kind not in "iu":
        raise InputError(f"rows must be whole numbers; got {rows.dtype}")
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise InputError(f"rows run from 0 to {count - 1}; got {rows.min()} to {rows.max()}")


@lru_cache(maxsize=4)
def _training_windows(data: Replay, length: int) -> np.ndarray:
    starts = data.window_starts(length, data.is_train)
    if not len(starts):
        raise InputError(f"no training episode has {length} steps; ask for shorter chunks or "
                         f"collect more frames")
    return starts


def thin(rows: np.ndarray, most: int) -> np.ndarray:
    """Of rows (n,) every k-th, k as small as leaves at most `most`."""
    return rows[::-(-len(rows) // most)] if len(rows) else rows


def split_by_episode(episode_ids: np.ndarray, *, val_share: float, seed: int,
                     source: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """episode_ids (N,) -> (train, val), bool (N,): each row on one side, no episode on both.

    val_share of the episodes, rounded; with a share strictly between 0 and 1 and at least two
    episodes each side gets one. source (N,): each source's episodes are split by themselves, so
    that both sides hold it; where every source has one episode, all are split together.
    """
    if not isinstance(val_share, (int, float)) or not 0 <= val_share <= 1:
        raise InputError(f"val_share must be from 0 to 1; got {val_share!r}")
    check_seed(seed)
    if source is not None and np.shape(source) != np.shape(episode_ids):
        raise InputError(f"source and episode_ids must have one entry per step; got shapes "
                         f"{np.shape(source)} and {np.shape(episode_ids)}")
    every = np.unique(episode_ids)
    groups = [every] if source is None else [np.unique(episode_ids[source == one])
                                             for one in np.unique(source)]
    groups = groups if max(map(len, groups)) > 1 else [every]
    chosen = []
    for episodes in groups:
        num_val = int(val_share * len(episodes) + 0.5)
        if 0 < val_share < 1:
            num_val = min(max(num_val, 1), len(episodes) - 1)
        chosen.extend(np.random.default_rng(seed).permutation(episodes)[:num_val])
    val = np.isin(episode_ids, chosen)
    return ~val, val


def split_three_ways(episode_ids: np.ndarray, *, val_share: float, test_share: float | None,
                     seed: int, source: np.ndarray | None = None
                     ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """episode_ids (N,) -> (train, val, test), bool (N,): each row in one part, no episode in two.

    val is that of split_by_episode, test is test_share of all episodes, chosen among the others in
    the same way. Without a test_share it is split in two: test is val. Raises InputError where the
    shares leave nothing to train on.
    """
    rest, val = split_by_episode(episode_ids, val_share=val_share, seed=seed, source=source)
    if test_share is None:
        return rest, val, val
    if not 0 < test_share < 1 - val_share:
        raise InputError(f"val_share must be 0 or more, test_share more, and both leave episodes "
                         f"to train on; got {val_share!r} and {test_share!r}")
    test = np.zeros_like(val)
    test[rest] = split_by_episode(
        episode_ids[rest], val_share=test_share / (1 - val_share), seed=seed,
        source=None if source is None else source[rest])[1]
    return rest & ~test, val, test


def _check_parts(game: str, episode_ids: np.ndarray, source: np.ndarray, parts) -> None:
    """Raise InputError unless each source has an episode in each of the parts (3 of (N,) bool)."""
    for one in np.unique(source):
        own = source == one
        if not all((part & own).any() for part in parts):
            count = len(np.unique(episode_ids[own]))
            raise InputError(
                f"{game} has {count} episodes of source {SOURCES[one]}: to train, validate and "
                f"test on it takes 3 of each source; raise frames.min_episodes")


def window_starts(episode_ids: np.ndarray, length: int,
                  rows_mask: np.ndarray | None = None) -> np.ndarray:
    """First rows of all windows of `length` steps inside one episode, (W,) int64, ascending.

    Their number is the sum of max(0, n - length + 1) over the episodes' lengths n. With rows_mask
    (N,) bool only windows whose every row is True. Raises InputError for a length below 1.
    """
    _check_length(length)
    first, lengths = _segments(episode_ids, rows_mask)
    counts = np.maximum(0, lengths - length + 1)
    return _arithmetic(first, counts, 1)


def epoch_windows(episode_ids: np.ndarray, length: int, rng: np.random.Generator,
                  rows_mask: np.ndarray | None = None) -> np.ndarray:
    """One epoch: first rows of windows that tile each episode from a random offset, shuffled.

    No step is in two windows. The offset is uniform over 0..length-1 (less where the episode would
    hold no window), so over epochs a step meets every position; on average length - 1 steps at
    an episode's two ends are left out of an epoch. Exposures: len(result) * length. Raises
    InputError for a length below 1.
    """
    _check_length(length)
    first, lengths = _segments(episode_ids, rows_mask)
    first, lengths = first[lengths >= length], lengths[lengths >= length]
    offsets = rng.integers(0, np.minimum(length - 1, lengths - length) + 1)
    return rng.permutation(_arithmetic(first + offsets, (lengths - offsets) // length, length))


def _check_length(length) -> None:
    if not isinstance(length, (int, np.integer)) or length < 1:
        raise InputError(f"a window's length must be a whole number from 1; got {length!r}")


def tiles(starts: np.ndarray, length: int) -> np.ndarray:
    """Of all windows' first rows, ascending, those that tile each episode from its first row."""
    is_first = np.diff(starts, prepend=-2) > 1
    first = starts[is_first][np.cumsum(is_first) - 1]
    return starts[(starts - first) % length == 0]


def sample_windows(starts: np.ndarray, game_idx: np.ndarray, *, batch_size: int,
                   rng: np.random.Generator,
                   shares: Mapping[int, float] | None = None) -> np.ndarray:
    """A random batch of windows, (batch_size,) of starts, with replacement, shuffled.

    starts, game_idx: (W,), where a window starts and the index of its game, ascending. shares:
    game index -> weight; None draws uniformly over all windows. Each game's number of windows in
    a batch is its quota rounded down or up at random, right on average (systematic sampling).
    """
    if len(starts) == 0:
        raise InputError("there is no window to sample: every episode is shorter than a window")
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number from 1; got {batch_size!r}")
    if shares is None:
        return starts[rng.integers(len(starts), size=batch_size)]
    if min(shares.values(), default=0) < 0 or not sum(shares.values()) > 0:
        raise InputError(f"shares must be 0 or more, one above 0; got {dict(shares)}")
    quotas = np.cumsum([0.0, *shares.values()]) / sum(shares.values()) * batch_size
    # Rounded first: the last quota must come out as batch_size whatever the random shift.
    edges = np.floor(np.round(quotas, 9) + rng.random()).astype(int)
    lows, highs = np.searchsorted(game_idx, [list(shares), [game + 1 for game in shares]])
    counts = np.diff(edges)
    without = np.array(list(shares))[(counts > 0) & (lows == highs)]
    if len(without):
        raise InputError(f"game {without[0]} has a share of the batch but no window")
    picks = [rng.integers(low, high, count) for low, high, count in zip(lows, highs, counts)
             if count]
    return starts[rng.permutation(np.concatenate(picks))]


def _segments(episode_ids: np.ndarray,
              rows_mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """First row and length of each stretch of rows of one episode (with the mask: all True)."""
    ids = np.asarray(episode_ids)
    kept = np.ones(len(ids), bool) if rows_mask is None else np.asarray(rows_mask, bool)
    if kept.shape != ids.shape:
        raise InputError(f"rows_mask must have one entry per step; got {kept.shape} for "
                         f"{ids.shape}")
    changes = (ids[1:] != ids[:-1]) | (kept[1:] != kept[:-1])
    first = np.concatenate([[0], np.flatnonzero(changes) + 1])[:len(ids)]
    lengths = np.diff(first, append=len(ids))
    return first[kept[first]], lengths[kept[first]]


def _arithmetic(first: np.ndarray, counts: np.ndarray, step: int) -> np.ndarray:
    """first[i], first[i] + step, ..., counts[i] numbers each, joined."""
    before = np.cumsum(counts) - counts
    return np.repeat(first - step * before, counts) + step * np.arange(counts.sum())


def _steps_file(folder: Path, game: str) -> Path:
    return folder / f"steps-{game}.npz"


def _open_game(folder: Path, game: str) -> tuple[FrameFile, dict[str, np.ndarray]]:
    """The frames and the columns of steps (without RAM), checked."""
    frames = FrameFile(folder / f"frames-{game}.npy")
    path, dtypes = _steps_file(folder, game), {**STEP_TYPES, "episode_ids": np.int32}
    steps = _load(path, [name for name in dtypes if name != "ram"])
    for name, column in steps.items():
        if column.shape != (len(frames),) or column.dtype != dtypes[name]:
            raise _unusable(path, f"{name} is {column.shape} {column.dtype}, not ({len(frames)},) "
                                  f"{np.dtype(dtypes[name])} as frames-{game}.npy needs")
    jumps = np.diff(steps["episode_ids"], prepend=-1)
    if not len(jumps) or jumps[0] != 1 or not np.isin(jumps, (0, 1)).all():
        raise _unusable(path, "episode_ids do not count up from 0")
    return frames, steps


def _load(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile,
            zlib.error) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, problem: object) -> InputError:
    reason = "is missing" if isinstance(problem, FileNotFoundError) else f"is damaged ({problem})"
    return InputError(f"{shown(path)} {reason}; make it again: python -m hd run 01_frames")
