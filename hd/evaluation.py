"""Play the real games, compare with baselines, put intervals around means, check the pipeline.

Scores follow DIAMOND's protocol (Alonso et al. 2024): whole episodes, rewards unclipped, no end on
a lost life, up to 30 no-ops at the start, sticky actions stated; at most 27,000 agent steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from hd import decoder, encoder, policy, replay, runs, tokenizer, world_model
from hd.atari import GAMES, AtariGame, tracker_action
from hd.config import InputError, allowed
from hd.imagination import imagine, replayed
from hd.runs import Run, row
from hd.windows import Windows
from hd.world_model import MASKS, WorldModel, hierarchical_mask

PARALLEL = 16  # episodes that are played side by side
RESAMPLES = 9999


@dataclass
class Observation:
    """What a policy may look at: frames (B, 4, 84, 84) uint8, oldest first; ram (B, 128) uint8."""

    frames: np.ndarray
    ram: np.ndarray


def play(act: Callable, game: str, *, num_episodes: int, seed: int, sticky: float,
         noop_max: int = 30, watch: Callable | None = None) -> list[dict]:
    """Play whole real episodes: rows game, seed, episode, return, length, sticky.

    act(observation, generator) -> ALE action ids (B,), one for each running episode. Episode k is
    started from (seed, k). watch(episode, frame, reward), if given, sees every step.
    Raises InputError for an unknown game or no episodes.
    """
    allowed("game", game, GAMES)
    if num_episodes < 1:
        raise InputError(f"num_episodes must be at least 1; got {num_episodes}")
    generator = torch.Generator().manual_seed(seed)
    starts = np.random.SeedSequence([seed, list(GAMES).index(game)]).generate_state(num_episodes)
    games = [AtariGame(game, sticky=sticky, noop_max=noop_max)
             for _ in range(min(PARALLEL, num_episodes))]
    waiting = list(range(num_episodes))
    running = [_Episode(env, waiting.pop(0), starts) for env in games]
    rows, bar = [], runs.progress(range(num_episodes), f"playing {game}")
    # Batches are tiny here: a second thread would only wait for the first.
    with _threads(1):
        while running:
            seen = Observation(np.stack([e.frames for e in running]),
                               np.stack([e.ram for e in running]))
            ids = np.atleast_1d(np.asarray(act(seen, generator)))
            for episode, action in zip(list(running), ids):
                reward = episode.step(int(action))
                if watch:
                    watch(episode.number, episode.frames[-1], reward)
                if episode.is_over:
                    bar.update()
                    rows.append({"game": game, "seed": seed, "episode": episode.number,
                                 "return": episode.total, "length": episode.length,
                                 "sticky": sticky})
                    running.remove(episode)
                    if waiting:
                        running.append(_Episode(episode.env, waiting.pop(0), starts))
    bar.close()
    return sorted(rows, key=lambda r: r["episode"])


@contextlib.contextmanager
def _threads(count: int):
    """Let torch use so many threads inside the with block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Episode:
    """One running episode with its stack of frames."""

    def __init__(self, env: AtariGame, number: int, starts):
        self.env, self.number = env, number
        frame, info = env.reset(seed=int(starts[number]))
        self.frames, self.ram = np.repeat(frame[None], 4, 0), info["ram"]
        self.total, self.length, self.is_over = 0.0, 0, False

    def step(self, action: int) -> float:
        frame, reward, terminated, truncated, info = self.env.step(action)
        self.frames = np.concatenate([self.frames[1:], frame[None]])
        self.ram = info["ram"]
        self.total, self.length = self.total + reward, self.length + 1
        self.is_over = terminated or truncated
        return reward


def random_act(game: str) -> Callable:
    """Uniform over the game's legal actions."""
    legal = torch.tensor(GAMES[game].actions)
    return lambda seen, generator: legal[
        torch.randint(len(legal), (len(seen.ram),), generator=generator)]


def tracker_act(game: str) -> Callable:
    """The scripted ball tracker that reads RAM (Pong and Breakout)."""
    return lambda seen, generator: [tracker_action(game, ram) for ram in seen.ram]


def policy_act(run: Run) -> Callable:
    """The trained policy in the real game: frames -> embedding -> codes -> features -> action."""
    eyes, codes, agent = encoder.load(run), tokenizer.load(run), policy.load(run)
    dream_in = world_model.load(run)

    @torch.no_grad()
    def act(seen: Observation, generator):
        frames = torch.from_numpy(seen.frames).to(runs.device())
        features = dream_in.features(codes.encode(eyes(frames)))
        return agent.actor.act(features, generator).cpu()

    return act


def interval(values, *, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of values (n,); NaN for n < 2."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile",
                            rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)


def measure_policy(run: Run) -> tuple[list[dict], list[dict]]:
    """(metric rows, per-episode rows) of the trained policy beside random play, in the real game.

    The baseline column is random play under the same protocol and the same episode starts.
    """
    cfg, game = run.cfg, run.cfg.game
    protocol = {"num_episodes": cfg.eval_episodes, "seed": run.seed, "sticky": cfg.eval_sticky}
    players = {"policy": policy_act(run), "random": random_act(game)}
    if game != "ms_pacman":
        players["tracker"] = tracker_act(game)
    episodes = [{"player": name, **played} for name, act in players.items()
                for played in play(act, game, **protocol)]
    rows = []
    returns = {name: [e["return"] for e in episodes if e["player"] == name] for name in players}
    lengths = [e["length"] for e in episodes if e["player"] == "policy"]
    rows.append(row("real_return", np.mean(returns["policy"]), game=game, split="real",
                    baseline=np.mean(returns["random"])))
    for name, bound in zip(("low", "high"), interval(returns["policy"], seed=run.seed)):
        rows.append(row(f"real_return[ci_{name}]", bound, game=game, split="real"))
    if "tracker" in players:
        rows.append(row("real_return[tracker]", np.mean(returns["tracker"]), game=game,
                        split="real"))
    rows += [row("real_length", np.mean(lengths), game=game, split="real"),
             row("episodes", len(lengths), game=game, split="real")]
    return rows, episodes


# ---- dreams beside the truth

@torch.no_grad()
def dream(run: Run, game: str, *, num_dreams: int):
    """Open-loop dreams under the true actions from held-out episodes.

    Returns (rollout, true tokens (B, H+1, 3), true rewards (B, H), rows (B, H+1) of the stored
    steps): context of cfg.context real steps, then min(cfg.horizon, what the model can read).
    """
    cfg, model = run.at("imagination").cfg, world_model.load(run)
    windows = Windows(run.at("world_model"))
    horizon = min(cfg.horizon, model.cfg.max_steps - cfg.context)
    if horizon < 1:
        raise InputError(f"imagination.context {cfg.context} leaves no room to dream in "
                         f"world_model.max_steps {model.cfg.max_steps}")
    length = cfg.context + horizon
    mask = ~windows.data.is_train & windows.data.in_game(game)
    starts = windows.data.window_starts(length, mask)
    rng = runs.rng_for(run.seed, "dreams", game)
    starts = np.sort(rng.choice(starts, min(num_dreams, len(starts)), replace=False))
    batch = windows.batch(starts, length)
    context = cfg.context
    rollout = imagine(model, batch["tokens"][:, :context].to(runs.device()),
                      batch["actions"][:, :context - 1].to(runs.device()),
                      replayed(batch["actions"][:, context - 1:].to(runs.device())),
                      horizon=horizon, generator=torch.Generator().manual_seed(run.seed))
    rows = starts[:, None] + np.arange(context - 1, length)
    return rollout, batch["tokens"][:, context - 1:], batch["rewards"][:, context - 1:-1], rows


def measure_dreams(run: Run) -> list[dict]:
    """Share of dreamed codes equal to the true ones after 1, 5, 15, ... steps, beside copying the
    last real step; rewards summed over a dream beside the truth."""
    rows = []
    for game in run.games:
        rollout, truth, rewards, _ = dream(run, game, num_dreams=run.cfg.num_dreams)
        dreamed = rollout.tokens.cpu()
        for step in (k for k in (1, 5, 15, 50) if k < truth.shape[1]):
            for level in range(3):
                right = (dreamed[:, step, level] == truth[:, step, level]).float().mean()
                copied = (truth[:, 0, level] == truth[:, step, level]).float().mean()
                rows.append(row(f"dream_l{level}_accuracy", right, game=game, step=step,
                                baseline=copied))
        total = rollout.rewards.sum(1).cpu().numpy()
        rows += [row("dream_reward_error", np.abs(total - rewards.sum(1).numpy()).mean(),
                     game=game, step=truth.shape[1] - 1,
                     baseline=np.abs(rewards.sum(1).numpy()).mean()),
                 row("dreams", len(truth), game=game)]
    return rows


def dream_frames(run: Run, game: str) -> dict[str, np.ndarray]:
    """The first of the seeded dreams as frames (H+1, 84, 84) uint8: truth, its codes, the dream.

    Index 0 is the last real step.
    """
    rollout, _, _, rows = dream(run, game, num_dreams=run.cfg.num_dreams)
    return {**decoder.beside_truth(run, rows[0]),
            "dream": decoder.decode_tokens(run, rollout.tokens[0])}


# ---- the validation suite

def check(run: Run) -> Iterator[tuple[str, bool, str]]:
    """(what, whether it holds, detail) about the data, the masks and the model; no training."""
    yield from replay.check(run)
    data = replay.open_run(run)
    legal = all(np.isin(data.actions[data.in_game(g)], GAMES[g].actions).all() for g in run.games)
    yield "every action is legal in its game", legal, f"{len(data)} steps"
    for kind in MASKS:
        mask = hierarchical_mask(4, kind)
        future = bool(torch.triu(mask, 1).any())
        yield (f"mask {kind} shows nothing of the future and every position itself",
               not future and bool(mask.diagonal().all()), f"{int(mask.sum())} of 256 pairs open")
    yield from _check_model(run)


def _check_model(run: Run) -> Iterator[tuple[str, bool, str]]:
    cfg = run.profile.world_model
    model = WorldModel(cfg)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(cfg.num_codes, (2, 5, 3), generator=generator)
    actions = torch.randint(18, (2, 5), generator=generator)
    out = model(tokens, actions)
    shapes = [tuple(x.shape) for x in out.code_logits]
    yield ("code logits are three times (B, T-1, K)", shapes == [(2, 4, cfg.num_codes)] * 3,
           f"{shapes[0]}")
    yield ("reward and continue are (B, T)",
           out.reward.shape == out.continue_logits.shape == (2, 5), f"{tuple(out.reward.shape)}")
    loss = model.loss({"tokens": tokens, "actions": actions, "rewards": torch.zeros(2, 5),
                       "continues": torch.ones(2, 5)}).total
    loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    yield ("every parameter gets a gradient", not idle, f"{len(idle)} without")
    yield ("the loss is finite", bool(torch.isfinite(loss)), f"{loss.item():.3f}")
    encoder_size = sum(p.numel() for p in encoder.AtariEncoder().parameters())
    yield ("the encoder has 1,881,888 parameters", encoder_size == 1_881_888, f"{encoder_size:,}")
