"""The contact test: does the dream feel the hand? Asked before any policy is trusted to it.

From states shortly before a contact, under the actions that were really taken: does the dream lose
the point, or the life? And if one action is held instead: does the dream bring what the emulator
brings from the same states?
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from hd.agent import Agent, Emulators
from hd.atari import GAMES, AtariGame, labels
from hd.config import AgentConfig
from hd.experience import Store
from hd.imagination import Rollout, imagine, replayed
from hd.play import Observation
from hd.run import training
from hd.run.metrics import named
from hd.run.runs import progress, rng_for, row

HELD = 14  # steps for which one action is held
SAMPLES = 8  # dreams from each state
BRANCHES = 60  # states from which one action is held


def near(game: str, ram: np.ndarray) -> np.ndarray:
    """ram (..., T, 128) of steps in order -> bool (..., T): a contact is within about five steps,
    as GAMES[game].near_contact has it."""
    return GAMES[game].near_contact({name: value.astype(int) for name, value
                                     in labels(game, ram).items() if value.ndim == ram.ndim - 1})


def approaches(game: str, store: Store, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Emulators and times (N,) at which a contact comes near, with `steps` steps of the same
    episode before and GAMES[game].lost_within after."""
    horizon = GAMES[game].lost_within
    is_near = near(game, store.ram[:, :store.length])
    first = is_near & ~np.roll(is_near, 1, -1)
    first[:, :steps] = False
    first[:, max(0, store.length - horizon):] = False
    emulators, times = first.nonzero()
    window = times[:, None] + np.arange(horizon - 1)
    whole = (times - steps >= store.starts[emulators, times]) & ~store.ends[
        emulators[:, None], window].any(1)
    return emulators[whole], times[whole]


def is_lost(game: str, store: Store, emulators, times) -> np.ndarray:
    """(N,) bool: a point or a life is lost within GAMES[game].lost_within steps."""
    window = emulators[:, None], times[:, None] + np.arange(GAMES[game].lost_within)
    return ((store.rewards[window] < 0) | (store.continues[window] == 0)).any(1)


def recorded(game: str, act: Callable, cfg: AgentConfig, *, num_steps: int, seed: int) -> Store:
    """A new Store of num_steps steps that act plays, as hd.play.play would ask it."""
    E = cfg.num_emulators
    emulators, store = Emulators(cfg, game, seed), Store(cfg, (84 // cfg.patch) ** 2)
    generator = torch.Generator().manual_seed(seed)
    stacks = deque([emulators.frames.copy()] * 4, maxlen=4)
    for t in progress(range(min(num_steps // E, store.frames.shape[1])), f"recording {game}"):
        fresh = t - store.next_start() == 0
        stacks.append(emulators.frames.copy())
        for frames in stacks:
            frames[fresh] = emulators.frames[fresh]
        seen = Observation(np.stack(stacks, 1), emulators.ram.copy(), np.arange(E),
                           t - store.next_start())
        actions = np.asarray(act(seen, generator))
        frames, ram = emulators.frames.copy(), emulators.ram.copy()
        store.add(frames, ram, actions, *emulators.step(actions, t))
    return store


@torch.no_grad()
def dreamed_losses(agent: Agent, store: Store, emulators, times, seed: int) -> np.ndarray:
    """(N,): what is lost in a dream of GAMES[game].lost_within steps under the true actions, the
    mean of SAMPLES: points below zero, and the chance of a life's or a game's end."""
    return lost_in(dreamed(agent, store, emulators, times, seed))


def lost_in(rollout: Rollout) -> np.ndarray:
    """(N,): what dreamed_losses says of dreams that dreamed made."""
    lost = (-rollout.rewards).clamp_min(0).sum(1) + 1 - rollout.continues.prod(1)
    return lost.view(SAMPLES, -1).mean(0).cpu().numpy()


def dreamed(agent: Agent, store: Store, emulators, times, seed: int) -> Rollout:
    """SAMPLES dreams of GAMES[game].lost_within steps from each state (N,), under the true actions:
    the first sample of all N, then the second."""
    tokens, actions = store.windows(emulators, times, agent.model.cfg.steps)
    horizon = GAMES[agent.game].lost_within
    to_do = store.actions[emulators[:, None], times[:, None] + np.arange(horizon)]
    return _dreams(agent, tokens, actions[:, :-1], replayed(_tiled(agent, to_do)), horizon, seed)


@torch.no_grad()
def played_on(agent: Agent, store: Store, emulators, times, seed: int) -> Rollout:
    """As dreamed, but under what the agent's policy does in the dream."""
    tokens, actions = store.windows(emulators, times, agent.model.cfg.steps)
    return _dreams(agent, tokens, actions[:, :-1], agent.policy.actor.act,
                   GAMES[agent.game].lost_within, seed)


def _dreams(agent: Agent, tokens, past, act: Callable, horizon: int, seed: int) -> Rollout:
    """SAMPLES dreams from each context, one sample of all after the other."""
    with training.autocast(agent.model.cfg):
        return imagine(agent.model, _tiled(agent, tokens), _tiled(agent, past), act,
                       horizon=horizon, generator=torch.Generator().manual_seed(seed),
                       features="hidden")


def _tiled(agent: Agent, part: np.ndarray) -> torch.Tensor:
    """(N, ...) -> (SAMPLES N, ...) on the agent's device."""
    tiled = np.tile(part, (SAMPLES, *[1] * (part.ndim - 1)))
    return torch.from_numpy(tiled).long().to(agent.model.codebooks.device)


def ram_features(game: str, store: Store, emulators, times) -> np.ndarray:
    """(N, F): places and speeds in RAM, and the actions of the next GAMES[game].lost_within
    steps."""
    def places(at):
        state = labels(game, store.ram[emulators, at])
        return np.stack([state[name].astype(float) for name in GAMES[game].coordinates], 1)

    horizon = GAMES[game].lost_within
    to_do = store.actions[emulators[:, None], times[:, None] + np.arange(horizon)]
    known = np.array(GAMES[game].actions)
    chosen = (to_do[..., None] == known).reshape(len(to_do), -1).astype(float)
    return np.concatenate([places(times), places(times) - places(times - 1), chosen], 1)


def new_play(agent: Agent, cfg: AgentConfig, players: dict[str, Callable], *, num_steps: int,
             seed: int) -> dict[str, Store]:
    """num_steps steps of each player that nothing was trained on, with the agent's tokens."""
    stores = {}
    for name, act in players.items():
        store = recorded(agent.game, act, cfg, num_steps=num_steps,
                         seed=int(rng_for(seed, "contact", name).integers(2**31)))
        store.encode(agent.codec)
        stores[name] = store
    return stores


def rows_of(agent: Agent, played: dict[str, Store], fitted_on: Store, *, seed: int) -> list[dict]:
    """Rows about contacts in new play (new_play): the AUC of the dreamed loss, beside that of
    gradient boosting on RAM fitted on the steps that the agent played itself; how many contacts,
    and the share of them that is lost. Of the agent's own contacts also the share that it loses
    where it plays on in its dream: where that is far smaller, the policy wins in the dream alone.

    A player whose contacts all end alike has no AUC, a game that does not say what is near a
    contact no rows.
    """
    game, steps, rows = agent.game, agent.model.cfg.steps, []
    if GAMES[game].near_contact is None:
        return []
    known = approaches(game, fitted_on, steps)
    truth = is_lost(game, fitted_on, *known)
    boosted = None
    if 0 < truth.sum() < len(truth):
        boosted = HistGradientBoostingClassifier(random_state=seed).fit(
            ram_features(game, fitted_on, *known), truth)
    for name, seen in played.items():
        at = approaches(game, seen, steps)
        lost = is_lost(game, seen, *at)
        rows.append(row(named("contacts", source=name), len(lost), game=game, split="test"))
        if not 0 < lost.sum() < len(lost):
            continue
        rows.append(row(named("contact_lost_share", source=name), lost.mean(), game=game,
                        split="test"))
        if name == "agent":
            in_dreams = lost_in(played_on(agent, seen, *at, seed)).clip(max=1).mean()
            rows.append(row(named("contact_lost_share", "dreamed", source=name), in_dreams,
                            game=game, split="test"))
        by_ram = None if boosted is None else roc_auc_score(
            lost, boosted.predict_proba(ram_features(game, seen, *at))[:, 1])
        rows.append(row(named("contact_auc", source=name),
                        roc_auc_score(lost, dreamed_losses(agent, seen, *at, seed)), game=game,
                        split="test", baseline=by_ram))
    return rows


def held_action_rows(agent: Agent, act: Callable, cfg: AgentConfig, *, seed: int) -> list[dict]:
    """Rows about held_returns: how far the dreamed ones are from the emulator's, the mean over
    actions; beside it the error of expecting nothing."""
    dreamed, real = map(np.array, zip(*held_returns(agent, act, cfg, seed=seed).values()))
    return [row("held_action_error", np.abs(dreamed - real).mean(), game=agent.game, split="test",
                baseline=np.abs(real).mean())]


def held_returns(agent: Agent, act: Callable, cfg: AgentConfig, *, seed: int
                 ) -> dict[int, tuple[float, float]]:
    """ALE action -> the sum of the rewards' signs when it is held for HELD steps, (dreamed, in the
    emulator), the mean over BRANCHES states of the play of act."""
    game, steps = agent.game, agent.model.cfg.steps
    rng, generator = rng_for(seed, "held"), torch.Generator().manual_seed(seed)
    env, branch = (AtariGame(game, sticky=0.0, noop_max=cfg.noop_max) for _ in range(2))
    frame, info = env.reset(seed=int(rng.integers(2**31)))
    frames, past, states, contexts = deque([frame] * 4, maxlen=4), deque([0] * 3, maxlen=3), [], []
    length = 0
    while len(states) < BRANCHES:
        seen = Observation(np.stack(frames)[None], info["ram"][None], np.zeros(1, int),
                           np.array([length]))
        if length > steps and rng.random() < 0.1:
            states.append(env.clone_state())
            contexts.append((np.stack(frames)[-steps:], list(past)[4 - steps:]))
        action = int(act(seen, generator)[0])
        frame, _, terminated, truncated, info = env.step(action)
        frames.append(frame)
        past.append(action)
        length += 1
        if terminated or truncated:
            frame, info = env.reset(seed=int(rng.integers(2**31)))
            frames, past, length = deque([frame] * 4, maxlen=4), deque([0] * 3, maxlen=3), 0
    tokens = agent.codec.encode(np.concatenate([stack for stack, _ in contexts])).cpu().numpy()
    tokens = tokens.reshape(BRANCHES, steps, *tokens.shape[1:])
    before = np.array([actions for _, actions in contexts], np.int64).reshape(BRANCHES, steps - 1)
    found = {}
    for action in GAMES[game].actions:
        real = float(np.mean([_held(branch, state, action) for state in states]))
        held = replayed(_tiled(agent, np.full((BRANCHES, HELD), action)))
        rollout = _dreams(agent, tokens, before, held, HELD, seed)
        found[action] = rollout.rewards.float().sum(1).mean().item(), real
    return found


def _held(env: AtariGame, state, action: int) -> float:
    """The sum of the rewards' signs when one action is held for HELD steps from a state."""
    env.restore_state(state)
    total = 0.0
    for _ in range(HELD):
        _, reward, terminated, truncated, _ = env.step(action)
        total += np.sign(reward)
        if terminated or truncated:
            break
    return total
