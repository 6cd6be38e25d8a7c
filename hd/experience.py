"""What an agent has played so far, and what it learns from: steps drawn by age, outcome, surprise.

The emulators stand side by side. A step is the frame seen, the action after it and what came of
it; world model and policy read its tokens, which are made again from the frames when needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hd.atari import NOOP
from hd.config import AgentConfig
from hd.patches import SIDE, PatchCodec
from hd.place_model import PlaceModel
from hd.run import training
from hd.run.storage import write_atomically

# Of Store, in an agent's blocks: tokens are made again from frames.
STORED = ("frames", "ram", "actions", "rewards", "continues", "ends", "starts")
PLAYED = "played.npz"  # in the folder of a finished agent
UNMOVED = 0.25  # of the world model's batches; the others are moved by one of Store.shifts
OUTCOME_AHEAD = 8  # steps before an outcome that count as shortly before it
SURPRISE_POWER = 0.7  # of the nats a step took, by which it is drawn (Schaul et al. 2016)
REMEASURED = 1024  # old steps a chunk, whose surprise is measured anew


class Store:
    """All that was played: (E, T) steps of E emulators side by side, T rising.

    frames (E, T, 84, 84) and ram (E, T, 128) uint8, actions int64, rewards and continues float32,
    ends bool, starts: the step at which the episode of each step began. tokens (S, E, T, L, G): of
    the frames moved by each of the shifts (S, 2), pixels down and right, the first (0, 0). surprise
    float32: the nats that what followed a step took when they were last measured, 0 until then.
    """

    def __init__(self, cfg: AgentConfig, num_places: int, shifts=((0, 0),)):
        E, T = cfg.num_emulators, cfg.num_steps // cfg.num_emulators + 1
        self.cfg, self.length, self.shifts = cfg, 0, np.array(shifts)
        self.frames = np.zeros((E, T, 84, 84), np.uint8)
        self.ram = np.zeros((E, T, 128), np.uint8)
        self.tokens = np.zeros((len(shifts), E, T, cfg.num_levels, num_places),
                               np.uint8 if cfg.num_codes <= 256 else np.int16)
        self.actions = np.zeros((E, T), np.int64)
        self.rewards, self.continues = np.zeros((2, E, T), np.float32)
        self.ends = np.zeros((E, T), bool)
        self.starts = np.zeros((E, T), np.int64)
        self.surprise = np.zeros((E, T), np.float32)
        self._reach = np.zeros(0)  # of surprise, the running sum that steps are drawn by

    def add(self, frames, ram, actions, rewards, continues, ends) -> None:
        """One step of every emulator: what was seen (E, 84, 84) and (E, 128), what was done, and
        what came of it (E,)."""
        t = self.length
        self.frames[:, t], self.ram[:, t] = frames, ram
        self.actions[:, t], self.rewards[:, t] = actions, rewards
        self.continues[:, t], self.ends[:, t] = continues, ends
        self.starts[:, t] = self.next_start()
        self.length += 1

    def encode(self, codec: PatchCodec, first: int = 0) -> None:
        """The tokens of all steps from the first on, from their frames."""
        if first == self.length:
            return
        frames = self.frames[:, first:self.length]
        for shift, tokens in zip(self.shifts.tolist(), self.tokens):
            coded = codec.encode(frames.reshape(-1, 84, 84), tuple(shift)).cpu().numpy()
            tokens[:, first:self.length] = coded.reshape(*frames.shape[:2], *coded.shape[1:])

    def save(self, folder: Path) -> Path:
        """All but frames and tokens into a file of this folder."""
        kept = {name: getattr(self, name)[:, :self.length] for name in STORED if name != "frames"}
        write_atomically(folder / PLAYED, lambda aside: np.savez_compressed(aside, **kept))
        return folder / PLAYED

    @classmethod
    def saved(cls, cfg: AgentConfig, num_places: int, folder: Path) -> Store:
        """What save wrote: a store without frames and tokens."""
        store = cls(cfg, num_places)
        with np.load(folder / PLAYED, allow_pickle=False) as kept:
            store.length = kept["actions"].shape[1]
            for name in kept.files:
                getattr(store, name)[:, :store.length] = kept[name]
        return store

    def next_start(self):
        """(E,): where the episode of the step to come began."""
        t = self.length
        return np.where(self.ends[:, t - 1], t, self.starts[:, t - 1]) if t else np.zeros(
            len(self.actions), np.int64)

    @staticmethod
    def past(times, starts, steps: int):
        """(N, steps) times up to `times`, the first of an episode repeated before its start, and
        whether each is a step of the episode."""
        at = times[:, None] + np.arange(1 - steps, 1)
        return np.maximum(at, starts[:, None]), at >= starts[:, None]

    def windows(self, emulators, times, steps: int, moved=0):
        """tokens (N, steps, L, G) and actions (N, steps) of the steps up to and with `times`; moved
        (N,): by which of the shifts."""
        at, is_real = self.past(times, self.starts[emulators, times], steps)
        actions = np.where(is_real, self.actions[emulators[:, None], at], NOOP)
        return self.tokens[np.reshape(moved, (-1, 1)), emulators[:, None], at], actions

    def drawn_shifts(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count,): by which of the shifts frames are moved that the world model learns from."""
        return np.where(rng.random(count) < UNMOVED, 0, rng.integers(0, len(self.shifts), count))

    def pick(self, rng: np.random.Generator, count: int):
        """Emulators and times (count,) of steps with a next one, recent ones more often."""
        emulators = rng.integers(0, len(self.actions), count)
        last = self.length - 1
        recent = max(0, last - self.cfg.recent_steps // len(self.actions))
        first = np.where(rng.random(count) < self.cfg.recent_share, recent, 0)
        return emulators, rng.integers(first, last)

    def pick_before_outcomes(self, rng: np.random.Generator, count: int):
        """Emulators and times (n <= count,) of steps with a reward or a lost life among what comes
        of them and of the OUTCOME_AHEAD - 1 steps after; none where nothing has happened yet."""
        emulators, times = ((self.rewards[:, :self.length - 1] != 0)
                            | (self.continues[:, :self.length - 1] == 0)).nonzero()
        if not len(times):
            return emulators, times
        picked = rng.integers(0, len(times), count)
        emulators, times = emulators[picked], times[picked]
        return emulators, np.maximum(times - rng.integers(0, OUTCOME_AHEAD, count),
                                     self.starts[emulators, times])

    def pick_surprising(self, rng: np.random.Generator, count: int):
        """Emulators and times (count,), the more often the worse what followed was foretold; none
        where nothing was measured yet."""
        if not self._reach.size or not self._reach[-1]:
            return np.zeros((2, 0), np.int64)
        drawn = np.searchsorted(self._reach, self._reach[-1] * rng.random(count), side="right")
        return np.divmod(drawn.clip(max=self._reach.size - 1), self._reach.size // len(self.ends))

    def measure_surprise(self, model: PlaceModel, rng: np.random.Generator, first: int) -> None:
        """Of all steps from the first on that have a next one, and of REMEASURED others."""
        last = self.length - 1
        emulators, times = np.indices((len(self.ends), max(0, last - first))).reshape(2, -1)
        times += first
        if first:
            emulators = np.append(emulators, rng.integers(0, len(self.ends), REMEASURED))
            times = np.append(times, rng.integers(0, min(first, last), REMEASURED))
        for part in np.array_split(np.arange(len(times)), -(-len(times) // REMEASURED) or 1):
            at = emulators[part], times[part]
            batch = {name: value.to(model.codebooks.device)
                     for name, value in self.transitions(*at, model.cfg.steps).items()}
            with torch.no_grad(), training.autocast(model.cfg):
                found = model.surprise(batch).float().cpu().numpy()
            self.surprise[at] = np.where(self.ends[at], 0, found)  # nothing follows an end
        self.weigh_surprise()

    def weigh_surprise(self) -> None:
        """Make ready for pick_surprising what self.surprise holds."""
        self._reach = np.cumsum(self.surprise[:, :max(0, self.length - 1)].astype(float)
                                ** SURPRISE_POWER)

    def transitions(self, emulators, times, steps: int, moved=None) -> dict:
        """For hd.place_model.PlaceModel: steps up to and with `times`, and what came of them."""
        moved = np.zeros(len(times), np.int64) if moved is None else moved
        tokens, actions = self.windows(emulators, times, steps, moved)
        ended = self.ends[emulators, times][:, None, None]
        after = np.where(ended, tokens[:, -1], self.tokens[moved, emulators, times + 1])
        parts = {"tokens": tokens, "actions": actions, "next": after,
                 "shift": (self.shifts[moved] / SIDE).astype(np.float32),
                 "rewards": self.rewards[emulators, times],
                 "continues": self.continues[emulators, times]}
        return {name: torch.from_numpy(part) for name, part in parts.items()}

    def model_batch(self, rng: np.random.Generator, count: int, steps: int) -> dict:
        """For hd.place_model.PlaceModel.loss: a share of the steps by surprise, another from
        shortly before outcomes, which are few and decide; some changes are forgotten, see
        forget_changes."""
        emulators, times = self.pick(rng, count)
        decisive = self.pick_before_outcomes(rng, int(self.cfg.outcome_share * count))
        emulators[:len(decisive[0])], times[:len(decisive[1])] = decisive
        surprising = self.pick_surprising(rng, int(self.cfg.surprise_share * count))
        start = count - len(surprising[0])
        emulators[start:], times[start:] = surprising
        moved = self.drawn_shifts(rng, count)
        batch = self.transitions(emulators, times, steps, moved)
        batch["tokens"] = torch.from_numpy(
            forget_changes(batch["tokens"].numpy(), rng, self.cfg.forget))
        return batch

    def policy_batch(self, rng: np.random.Generator, count: int, steps: int) -> dict:
        """Real contexts for hd.policy.ActorCritic.loss."""
        tokens, actions = self.windows(*self.pick(rng, count), steps)
        return {"tokens": torch.from_numpy(tokens).long(), "pass": 0,
                "actions": torch.from_numpy(actions[:, :-1].copy()),
                "seed": int(rng.integers(2**31))}


def forget_changes(tokens: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    """tokens (N, T, L, G) in which, in half of the rows, such a share of the places that changed
    show what they showed before, or nothing: dreams lose an object now and then, and a model that
    has seen it missing brings it back."""
    changed = (tokens[:, 1:] != tokens[:, :-1]).any(2)
    is_row = rng.random((len(tokens), 1, 1)) < 0.5
    forgotten = changed & is_row & (rng.random(changed.shape, np.float32) < share)
    shows_nothing = rng.random((len(tokens), 1, 1, 1)) < 0.5
    instead = np.where(shows_nothing, 0, tokens[:, :-1])
    now = np.where(forgotten[:, :, None], instead, tokens[:, 1:]).astype(tokens.dtype)
    return np.concatenate([tokens[:, :1], now], 1)
