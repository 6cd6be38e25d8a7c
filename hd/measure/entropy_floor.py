"""How much of the next code is open: floors of the loss, by what its model is given.

Two floors, which must not be confused. Given the emulator's full state and the action, only sticky
actions leave anything open: the emulator is branched from saved states (`branch`). Given the codes
and actions of the last steps, which is what a world model sees, more is open: stored steps of
different episodes that look alike are compared, in the error of a guess (`disagreement`) and in
nats (`shown_nats`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from scipy.special import digamma

from hd.atari import GAMES, AtariGame, GameState, ball_in_play
from hd.config import EntropyFloorConfig, FramesConfig
from hd.encoder import AtariEncoder, embed
from hd.quantization import ResidualVQ
from hd.run.machine import device
from hd.run.metrics import named
from hd.run.runs import progress, rng_for, row
from hd.windows import Windows

FIRST_STEP = 20  # an episode's first steps are nearly the same in all episodes
SPACING = 40  # steps between two branched states, on average
PLAIN_BRANCHES = 2  # without sticky actions: enough to see whether anything is left open


def rows_of(windows: Windows, encode: Callable, cfg: EntropyFloorConfig,
            frames: FramesConfig) -> list[dict]:
    """Both floors per game: rows split "fresh" for branched states, "all" for stored steps.

    encode: stacks (M, 4, 84, 84) uint8 -> codes (M, L) int64, as the stored steps have them, see
    encoder_to_codes; frames: how the stored steps were played.
    """
    rows = []
    for game in windows.data.games:
        states, found = branched(game, cfg, frames, windows.seed)
        rows += state_rows(game, states, found, encode) + twin_rows(windows, game, cfg.contexts)
    return rows


def encoder_to_codes(eyes: AtariEncoder, codes: ResidualVQ) -> Callable[[np.ndarray], np.ndarray]:
    """Stacks (M, 4, 84, 84) uint8 -> codes (M, L) int64, as stored steps have."""
    def encode(stacks):
        embeddings = embed(eyes, SimpleNamespace(stack=stacks.__getitem__),
                           np.arange(len(stacks)))
        return codes.encode(torch.from_numpy(embeddings).to(device())).cpu().numpy()

    return encode


# ---- given the emulator's state

@dataclass(frozen=True)
class State:
    """Where the emulator is branched: its state, the action to try, the last 3 frames seen."""

    emulator: GameState
    action: int  # ALE id
    frames: np.ndarray  # (3, 84, 84) uint8, oldest first
    in_play: bool  # see hd.atari.ball_in_play


@dataclass(frozen=True)
class Branches:
    """One step tried several times from one state.

    frames: (F, 84, 84) uint8, each distinct next frame once. which: (n,) the frame of each branch.
    num_outcomes: distinct (frame, RAM, reward).
    """

    frames: np.ndarray
    which: np.ndarray
    num_outcomes: int


def fresh_states(game: str, rng: np.random.Generator, cfg: FramesConfig) -> Iterator[State]:
    """Endless states at random steps of episodes of random play, each with a random action.

    Steps are about SPACING apart and not among an episode's first FIRST_STEP. No episode is a
    stored one as long as rng is none of hd.collection's.
    """
    env, actions = AtariGame(game, sticky=cfg.sticky, noop_max=cfg.noop_max), GAMES[game].actions
    while True:
        frame, info = env.reset(seed=int(rng.integers(2**31)))
        seen = deque([frame], maxlen=3)
        for step in itertools.count():
            if step >= FIRST_STEP and rng.random() * SPACING < 1:
                yield State(env.clone_state(), int(rng.choice(actions)), np.stack(seen),
                            bool(ball_in_play(game, info["ram"])))
            frame, _, terminated, truncated, info = env.step(rng.choice(actions))
            if terminated or truncated:
                break
            seen.append(frame)


def branch(env: AtariGame, state: State, *, sticky: float, seeds: Sequence[int]) -> Branches | None:
    """Restore the state and take its action once per seed, which draws the sticky actions.

    None where a branch ends the game: no code follows there, in the stored steps either.
    """
    env.sticky = sticky
    places, outcomes, which = {}, set(), []
    for seed in seeds:
        env.restore_state(state.emulator)
        env.np_random = np.random.default_rng(seed)
        frame, reward, terminated, _, info = env.step(state.action)
        if terminated:
            return None
        seen = frame.tobytes()
        which.append(places.setdefault(seen, len(places)))
        outcomes.add((seen, info["ram"].tobytes(), reward))
    frames = np.frombuffer(b"".join(places), np.uint8).reshape(-1, 84, 84)
    return Branches(frames, np.array(which), len(outcomes))


def branched(game: str, cfg: EntropyFloorConfig, frames: FramesConfig,
             seed: int) -> tuple[list[State], dict[float, list[Branches]]]:
    """cfg.num_states fresh states and, by sticky probability, the branches of each."""
    rng = rng_for(seed, "entropy floor", game)
    counts = {cfg.sticky: cfg.num_branches, 0.0: PLAIN_BRANCHES}
    if not cfg.sticky:
        counts = {0.0: cfg.num_branches}
    env, states, found = AtariGame(game), [], {sticky: [] for sticky in counts}
    env.reset(seed=0)
    candidates = fresh_states(game, rng, frames)
    for _ in progress(range(cfg.num_states), f"branching {game}"):
        tried = [None]
        while any(one is None for one in tried):
            state = next(candidates)
            tried = [branch(env, state, sticky=sticky, seeds=rng.integers(2**62, size=count))
                     for sticky, count in counts.items()]
        states.append(state)
        for branches, one in zip(found.values(), tried):
            branches.append(one)
    return states, found


def state_rows(game: str, states: list[State], found: dict[float, list[Branches]],
               encode: Callable) -> list[dict]:
    """What is open given the state and the action; the baseline knows nothing of the state.

    states, found: as from branched. Without sticky actions nothing is open: that is measured like
    the rest, not assumed.
    """
    in_play = np.array([state.in_play for state in states])
    rows = [row("states", len(states), game=game, split="fresh")]
    has_ball = "ball_y" in GAMES[game].labels
    if has_ball:
        rows.append(row("states[ball in play]", in_play.sum(), game=game, split="fresh"))
    shares = {sticky: np.mean([one.num_outcomes > 1 for one in branches])
              for sticky, branches in found.items()}
    for sticky, branches in found.items():
        others = [share for other, share in shares.items() if other != sticky]
        rows.append(row(named("branching_states", sticky=sticky), shares[sticky], game=game,
                        split="fresh", baseline=others[0] if others else None))
        codes = codes_of(states, branches, encode)
        rows += _floor_rows(codes, game, sticky=sticky)
        if has_ball and sticky and in_play.any():
            rows += _floor_rows(codes[in_play], game, "ball in play", sticky=sticky)
    return rows


def codes_of(states: list[State], branches: list[Branches], encode: Callable) -> np.ndarray:
    """(states, branches, L): the code of each branch's frame after the 3 frames seen before it."""
    stacks = [np.concatenate([np.broadcast_to(state.frames, (len(one.frames), 3, 84, 84)),
                              one.frames[:, None]], 1) for state, one in zip(states, branches)]
    # Each distinct stack is encoded once: in another place of a batch rounding may differ.
    offsets = np.cumsum([0, *map(len, stacks)])[:-1]
    which = offsets[:, None] + np.stack([one.which for one in branches])
    return encode(np.concatenate(stacks))[which]


def _floor_rows(codes: np.ndarray, game: str, *words: str, sticky: float) -> list[dict]:
    """Means over states of what is open in codes (states, branches, L), beside all states pooled.

    The baselines are of each level alone, which for later levels knows less than the value does.
    """
    nats = np.mean([open_nats(one) for one in codes], axis=0)
    errors = np.mean([guess_errors(one) for one in codes], axis=0)
    rows = []
    for level in range(codes.shape[2]):
        pooled = codes[:, :, level].reshape(-1, 1)
        for what, found, base in (("floor", nats, open_nats(pooled)),
                                  ("error", errors, guess_errors(pooled))):
            name = named(f"l{level}_state_{what}", *words, sticky=sticky)
            rows.append(row(name, found[level], game=game, split="fresh", baseline=base[0]))
    return rows


# ---- counting

def joint_ids(*columns: np.ndarray) -> np.ndarray:
    """Columns (n,) of whole numbers from 0 -> (n,) ids 0..m-1, equal where all columns are."""
    ids = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        column = column.astype(np.int64)
        ids = np.unique(ids * (column.max(initial=0) + 1) + column, return_inverse=True)[1].ravel()
    return ids


def entropy(counts: np.ndarray) -> float:
    """Nats, from counts: the plug-in estimate plus (m - 1) / 2n for m outcomes in n draws (Miller
    1955), at most log(n), more than which n draws cannot show."""
    shares = counts / counts.sum()
    corrected = -(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum())
    return float(min(corrected, np.log(counts.sum())))


def open_nats(codes: np.ndarray) -> np.ndarray:
    """codes (n, L) -> (L,) nats: H(L0), H(L1 | L0), H(L2 | L0, L1), as differences of joints."""
    joints = [entropy(np.bincount(joint_ids(*codes.T[:level + 1])))
              for level in range(codes.shape[1])]
    return np.diff(joints, prepend=0.0)


def guess_errors(codes: np.ndarray) -> np.ndarray:
    """codes (n, L) -> (L,): how often the best guess of a level, given those before it, is wrong.

    1 - sum over contexts of the largest share: a little low for few branches, as each guess is
    chosen with the branches that score it.
    """
    errors, context = [], np.zeros(len(codes), np.int64)
    for column in codes.T:
        cells = joint_ids(context, column)
        best = np.zeros(context.max() + 1)
        np.maximum.at(best, context, np.bincount(cells)[cells])
        errors.append(1 - best.sum() / len(codes))
        context = cells
    return np.array(errors)


# ---- given what the world model sees

def twin_rows(windows: Windows, game: str, contexts: Sequence[int]) -> list[dict]:
    """How often stored steps of different episodes with the same last k codes and actions differ
    in the next code, and how many nats that shows to be open; step=k. The baseline compares any two
    steps of the game, or is the level's entropy over all of them.

    L1 is compared where the next L0 agrees, L2 where the next L0 and L1 do.
    """
    data, rows = windows.data, []
    picks = np.flatnonzero(data.in_game(game))
    codes, episodes = windows.tokens[picks].T.astype(np.int64), data.episode_ids[picks]
    symbols = joint_ids(*codes, windows.actions[picks])
    has_next, age = data.has_next[picks], picks - data.starts[picks]
    following = np.roll(codes, -1, axis=1)
    usable = np.flatnonzero(has_next)
    any_two = disagreements(np.zeros(len(usable), np.int64), following[:, usable],
                            episodes[usable])[1]
    any_step = open_nats(following[:, usable].T) if len(usable) else np.zeros(len(following))
    for k, ids in look_alike(symbols, contexts):
        usable = np.flatnonzero(has_next & (age >= k - 1))
        alike = ids[usable], following[:, usable], episodes[usable]
        share, found = disagreements(*alike)
        rows.append(row("twin_share", share, game=game, split="all", step=k))
        rows += [row(f"l{level}_twin_disagreement", value, game=game, split="all", step=k,
                     baseline=base)
                 for level, (value, base) in enumerate(zip(found, any_two)) if value is not None]
        rows += [row(f"l{level}_context_floor", value, game=game, split="all", step=k,
                     baseline=base)
                 for level, (value, base) in enumerate(zip(shown_nats(*alike), any_step)) if share]
    return rows


def look_alike(symbols: np.ndarray, contexts: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(k, ids (n,)) for every k of contexts: equal ids where the last k symbols are equal.

    Exact, so no two contexts are ever taken for one. The first k - 1 ids mean nothing.
    """
    ids = symbols
    for k in range(1, max(contexts, default=0) + 1):
        ids = joint_ids(np.roll(ids, 1), symbols) if k > 1 else ids
        if k in contexts:
            yield k, ids


def disagreements(groups, following, episodes) -> tuple[float, list[float | None]]:
    """(share of steps with a twin in another episode, disagreement of each level).

    groups, episodes: (n,); following: (L, n) next codes. A level is compared among those that
    agree in the levels before it; None where no two of different episodes are left.
    """
    share, found = twin_share(joint_ids(groups), episodes), []
    for codes in following:
        found.append(disagreement(groups, codes, episodes))
        groups = joint_ids(groups, codes)
    return share, found


def disagreement(groups, outcomes, episodes) -> float | None:
    """Chance that two members of a group, of different episodes, differ in their outcome.

    (n,) each. The mean over all that have such a partner; None without any. In each group it is
    an unbiased estimate of D = 1 - sum p^2. The error E = 1 - max p of the best guess has
    D / 2 <= E <= D, because (max p)^2 <= sum p^2 <= max p and 1 - (max p)^2 = E (1 + max p) <= 2E.
    """
    groups = joint_ids(groups)
    cells = joint_ids(groups, outcomes)
    pairs, same = cross_pairs(groups, episodes), cross_pairs(cells, episodes)
    group_of = np.zeros(len(same), np.int64)
    group_of[cells] = groups
    same = np.bincount(group_of, same, minlength=len(pairs))
    known = pairs > 0
    if not known.any():
        return None
    return float(np.average(1 - same[known] / pairs[known], weights=np.bincount(groups)[known]))


def shown_nats(groups, following, episodes) -> list[float]:
    """Of each level the nats of its next code that stay open in a group, as far as they show: on
    average a lower bound of the conditional entropy, given the group and the levels before.

    groups, episodes: (n,); following: (L, n) next codes. The mean over all n steps, of which those
    without a twin in another episode show nothing and count as 0.
    """
    found = []
    if not len(groups):
        return [0.0] * len(following)
    for codes in following:
        groups = joint_ids(groups)
        found.append(float(_shown_of_groups(groups, codes, episodes)[groups].mean()))
        groups = joint_ids(groups, codes)
    return found


def _shown_of_groups(groups, outcomes, episodes) -> np.ndarray:
    """Groups (n,), ids from 0 -> one number per group: from a step of each episode in it at random,
    n draws of which c_i came out as i, sum of c_i / n (psi(n) - psi(c_i)).

    H = sum over m of E[(1 - p)^m] / m, and its first n - 1 terms, none of them negative, are what
    this estimates without bias (Zhang 2012): never too much on average. From two draws: D.
    """
    # Steps of one episode are no independent draws; its first one is no typical one.
    order = np.random.default_rng(0).permutation(len(groups))
    drawn = order[np.unique(joint_ids(groups, episodes)[order], return_index=True)[1]]
    members = groups[drawn]
    cells, sizes = joint_ids(members, outcomes[drawn]), np.bincount(members)
    counts, group_of = np.bincount(cells), np.zeros(cells.max() + 1, np.int64)
    group_of[cells] = members
    terms = counts / sizes[group_of] * (digamma(sizes[group_of]) - digamma(counts))
    return np.bincount(group_of, terms, minlength=len(sizes))


def twin_share(groups: np.ndarray, episodes: np.ndarray) -> float:
    """Share of members of groups, ids from 0, that meet another episode in theirs; (n,) each."""
    return float((cross_pairs(groups, episodes) > 0)[groups].mean()) if len(groups) else 0.0


def cross_pairs(ids: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Ordered pairs of different episodes within each id: sizes^2 - sum over episodes of theirs.

    ids: (n,) from 0, none left out; episodes: (n,). Returns one number per id.
    """
    cells = joint_ids(ids, episodes)
    id_of = np.zeros(cells.max(initial=-1) + 1, np.int64)
    id_of[cells] = ids
    return np.bincount(ids) ** 2 - np.bincount(id_of, np.bincount(cells) ** 2).astype(np.int64)
