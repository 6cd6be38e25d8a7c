"""Real play beside other players, dreams beside the truth, intervals, the validation suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import average_precision_score

from hd import atari, config, decoder, encoder, replay, tokenizer, world_model
from hd.atari import GAMES
from hd.config import InputError, Profile
from hd.imagination import DreamEnv, Rollout, imagine, replayed
from hd.measure import dream_events, game_state, probes, ram_policy
from hd.play import (
    play,
    policy_act,
    random_act,
    reference_episodes,
    remembered,
    tracker_act,
)
from hd.policy import with_ale_ids
from hd.run import runs
from hd.run.runs import Run, row
from hd.windows import Windows
from hd.world_model import MASKS, WorldModel, hierarchical_mask

RESAMPLES = 9999
DREAM_STEPS = (1, 5, 15, 48)  # steps into a dream at which it is compared with the truth
TURN_STEPS = 15  # of a dream, in which the ball's first turn is looked for
REWARD_SEEN = 0.5  # from here on a dreamed reward is a scoring event


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
    protocol = {"game": game, "num_episodes": cfg.eval_episodes, "seed": run.seed,
                "sticky": cfg.eval_sticky}
    played = {"policy": play(policy_act(run), **protocol)}
    makers = {"random": random_act, "tracker": tracker_act}
    players = ("random", "tracker") if GAMES[game].tracker else ("random",)
    for name in players:
        played[name] = reference_episodes(run, name, make=makers[name], protocol=protocol)
    played["ram_policy"], training_steps = _ram_policy(run, dict(protocol))
    episodes = [{"player": name, **episode} for name, rows in played.items() for episode in rows]
    rows = []
    returns = {name: [e["return"] for e in rows] for name, rows in played.items()}
    lengths = [e["length"] for e in played["policy"]]
    rows.append(row("real_return", np.mean(returns["policy"]), game=game, split="real",
                    baseline=np.mean(returns["random"])))
    for name, bound in zip(("low", "high"), interval(returns["policy"], seed=run.seed)):
        rows.append(row(f"real_return[ci_{name}]", bound, game=game, split="real"))
    rows += [row(f"real_return[{name}]", np.mean(returns[name]), game=game, split="real")
             for name in ("tracker", "ram_policy") if name in played]
    rows += [row("training_steps[ram_policy]", training_steps, game=game, split="real"),
             row("real_length", np.mean(lengths), game=game, split="real"),
             row("episodes", len(lengths), game=game, split="real")]
    return rows, episodes


def _ram_policy(run: Run, protocol: dict) -> tuple[list[dict], int]:
    """Episodes of the policy on the true state, and the real steps it was trained with; trained
    and played once per profile."""
    cfg, game = run.profile.ram_policy, protocol["game"]
    # The first of the episodes that the policy plays.
    protocol |= {"num_episodes": min(cfg.eval_episodes, protocol["num_episodes"])}

    def made():
        agent, record = ram_policy.train(game, cfg, seed=protocol["seed"],
                                         sticky=protocol["sticky"])
        return {"episodes": play(agent.act(), **protocol), **record}

    settings = {**protocol, "config": dataclasses.asdict(cfg)}
    found = remembered(run, "ram_policy", settings, made, code=[ram_policy.__file__])
    return found["episodes"], found["steps"]


# ---- dreams beside the truth

def dream_steps(profile: Profile) -> int:
    """How long a profile's dreams are: as stated, or what the model can read after the context."""
    return min(profile.imagination.horizon,
               profile.world_model.max_steps - profile.imagination.context)


_dreamed: dict[tuple, tuple] = {}  # by folder and game: a page asks for the same dreams again


@torch.no_grad()
def dream(run: Run, game: str) -> tuple[Rollout, torch.Tensor, torch.Tensor, np.ndarray]:
    """Open-loop dreams under the true actions from held-out episodes; kept for the next caller.

    Returns (rollout, true tokens (B, H+1, 3), true rewards (B, H), rows (B, H+1) of the stored
    steps): B = cfg.num_dreams or as many as there are starts, context of cfg.context real steps,
    then H = dream_steps.
    """
    run = run.at("imagination")
    model = world_model.load(run)  # refuses what is missing or damaged, also before what is kept
    key = run.folder, game
    if key not in _dreamed:
        while len(_dreamed) >= len(GAMES):
            del _dreamed[next(iter(_dreamed))]
        _dreamed[key] = _dream(run, game, model)
    return _dreamed[key]


def _dream(run: Run, game: str, model: WorldModel):
    cfg, horizon = run.cfg, dream_steps(run.profile)
    if horizon < 1:
        raise InputError(f"imagination.context {cfg.context} leaves no room to dream in "
                         f"world_model.max_steps {model.cfg.max_steps}")
    windows, length, context = Windows(run.at("world_model")), cfg.context + horizon, cfg.context
    mask = ~windows.data.is_train & windows.data.in_game(game)
    starts = windows.data.window_starts(length, mask)
    rng = runs.rng_for(run.seed, "dreams", game)
    starts = np.sort(rng.choice(starts, min(cfg.num_dreams, len(starts)), replace=False))
    batch = windows.batch(starts, length)
    rollout = imagine(model, batch["tokens"][:, :context].to(runs.device()),
                      batch["actions"][:, :context - 1].to(runs.device()),
                      replayed(batch["actions"][:, context - 1:].to(runs.device())),
                      horizon=horizon, generator=torch.Generator().manual_seed(run.seed))
    rows = starts[:, None] + np.arange(context - 1, length)
    return rollout, batch["tokens"][:, context - 1:], batch["rewards"][:, context - 1:-1], rows


def measure_dreams(run: Run) -> list[dict]:
    """What dreams keep of the truth, per game, after 1, 5, 15, ... steps.

    The share of dreamed codes equal to the true ones, beside copying the last real step; where a
    probe sees the ball in them; rewards summed over a dream, and whether it scores.
    """
    rows = []
    for game in run.games:
        rollout, truth, rewards, stored = dream(run, game)
        dreamed = rollout.tokens.cpu()
        for step in (k for k in DREAM_STEPS if k < truth.shape[1]):
            for level in range(3):
                right = (dreamed[:, step, level] == truth[:, step, level]).float().mean()
                copied = (truth[:, 0, level] == truth[:, step, level]).float().mean()
                rows.append(row(f"dream_l{level}_accuracy", right, game=game, step=step,
                                baseline=copied))
        rows += _coordinate_rows(run, game, dreamed, stored)
        rows += _reward_rows(rollout.rewards.cpu().numpy(), rewards.numpy(), game)
        rows.append(row("dreams", len(truth), game=game))
    return rows


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
        chance = dream_events.of_others(dreamed_events)
        rows += [row(f"dream_reward_{name}", dream_events.matched(*pair), game=game, step=horizon,
                     baseline=dream_events.matched(*other))
                 for name, pair, other in (
                     ("recall", (events, dreamed_events), (events, chance)),
                     ("precision", (dreamed_events, events), (chance, events)))
                 if pair[0].any()]
    return rows


def _coordinate_rows(run: Run, game: str, dreamed, stored) -> list[dict]:
    """Median absolute error, in RAM units, of coordinates read by a probe from dreamed codes; and
    whether the ball turns in the dream where it truly turns.

    dreamed (B, H+1, 3) codes; stored (B, H+1) the rows of the true steps. The baseline copies the
    true position at the last real step; [re-encoded] reads the codes of the truth, all that a
    perfect dream could show; [extrapolated] goes on as the true last two steps moved. Scored are
    dreams with the ball in play at both of these steps.
    """
    data, model = replay.open_run(run), tokenizer.load(run)
    probe, rows = _coordinate_probe(run, game, data, model), []
    labels = {name: values.astype(np.float64)
              for name, values in atari.labels(game, data.ram[stored]).items()}
    earlier = atari.labels(game, data.ram[_before(data, stored)])
    in_play, truth = atari.ball_in_play(game, data.ram[stored]), tokenizer.tokens(run)[stored]
    read = {suffix: probe.predict(tokenizer.quantized(model, codes.reshape(-1, codes.shape[-1])))
            for suffix, codes in (("", dreamed.numpy()), ("[re-encoded]", truth))}
    read = {suffix: {name: values.reshape(stored.shape) for name, values in found.items()}
            for suffix, found in read.items()}
    for step in (k for k in DREAM_STEPS if k < stored.shape[1]):
        scored = in_play[:, 0] & in_play[:, step]
        rows.append(row("dreams_in_play", scored.sum(), game=game, step=step))
        if not scored.any():
            continue
        for name in game_state.COORDINATES[game]:
            last, true = (labels[name][scored, k] for k in (0, step))
            speed = last - earlier[name][scored].astype(np.float64)
            guesses = {suffix: found[name][scored, step] for suffix, found in read.items()}
            guesses["[extrapolated]"] = last + step * speed
            rows += [row(f"dream_error_{name}{suffix}", np.median(np.abs(guess - true)),
                         game=game, step=step,
                         baseline=None if suffix else np.median(np.abs(last - true)))
                     for suffix, guess in guesses.items()]
    return rows + _turn_rows(labels, read, in_play, game)


def _before(data, stored) -> np.ndarray:
    """(B,) the rows one step before the first of each dream's (B, H+1), or these themselves where
    an episode begins."""
    return np.maximum(stored[:, 0] - 1, data.starts[stored[:, 0]])


def _turn_rows(labels, read, in_play, game: str) -> list[dict]:
    """Of the futures in which the ball turns within TURN_STEPS, those whose dream first turns then.

    labels, read[suffix]: name -> (B, H+1) true positions, and as read from codes. The baseline
    looks for the turns of other dreams; only dreams with the ball in play throughout are scored.
    """
    rows, last = [], TURN_STEPS + dream_events.SPAN
    for name in ("ball_x", "ball_y"):
        if name not in labels or in_play.shape[1] <= last:
            continue
        scored = in_play[:, :last + 1].all(1)
        turning = dream_events.firsts(dream_events.turns(labels[name][scored, :last + 1]))
        rows.append(row(f"dreams_with_turn_{name}", turning.any(1).sum(), game=game,
                        step=TURN_STEPS))
        if not turning.any():
            continue
        for suffix, found in read.items():
            # The first turns only: a path that trembles turns all the time, but first at once.
            dreamed = dream_events.firsts(dream_events.turns(found[name][scored, :last + 1]))
            chance = dream_events.matched(turning, dream_events.of_others(dreamed))
            rows.append(row(f"dream_turn_recall_{name}{suffix}",
                            dream_events.matched(turning, dreamed), game=game, step=TURN_STEPS,
                            baseline=None if suffix else chance))
    return rows


def _coordinate_probe(run: Run, game: str, data, model) -> probes.Probe:
    """Reads the game's coordinates from quantized vectors; fitted on training episodes."""
    cfg = run.profile.probes
    picks = np.flatnonzero(data.in_game(game))
    picks = picks[::-(-len(picks) // cfg.max_rows)]
    labels = atari.labels(game, data.ram[picks])
    split = probes.Split(data.is_train[picks], ~data.is_train[picks], data.episode_ids[picks])
    return probes.fit_coordinate_probe(
        tokenizer.quantized(model, tokenizer.tokens(run)[picks]),
        {name: labels[name] for name in game_state.COORDINATES[game]}, split,
        rows=atari.ball_in_play(game, data.ram[picks]), cfg=cfg, seed=run.seed)


def dream_env(run: Run, game: str, *, horizon: int = 15, features: str = "codes") -> DreamEnv:
    """A trained world model as a gymnasium environment in which any agent can act.

    Dreams of `horizon` steps start from the context that run's imagination takes, real held-out
    steps of the game; actions are ALE ids, render() draws the decoded codes. Raises InputError in
    one line for an unknown game and where a stage is missing or its file does not fit.
    """
    config.allowed("game", game, run.games)
    run = run.at("imagination")
    model, data = with_ale_ids(world_model.load(run), game), replay.open_run(run)
    starts = data.window_starts(run.cfg.context, data.in_game(game) & ~data.is_train)
    rows = starts[:, None] + np.arange(run.cfg.context)
    tokens, actions = (torch.from_numpy(column[rows].astype(np.int64)).to(runs.device())
                       for column in (tokenizer.tokens(run), data.actions))
    return DreamEnv(model, tokens, actions[:, :-1], horizon=horizon, features=features,
                    decode=decoder.drawer(run))


def dream_frames(run: Run, game: str) -> dict[str, np.ndarray]:
    """The first of the seeded dreams as frames (H+1, 84, 84) uint8: truth, its codes, the dream.

    Index 0 is the last real step.
    """
    rollout, _, _, rows = dream(run, game)
    return {**decoder.beside_truth(run, rows[0]),
            "dream": decoder.decode_tokens(run, rollout.tokens[0])}


def dream_places(run: Run, game: str) -> dict[str, np.ndarray]:
    """Where the ball (MsPacman: the player) is in dream_frames: places of its columns."""
    rollout, truth, _, stored = dream(run, game)
    return places(run, game, replay.open_run(run).ram[stored[0]],
                  {"its codes": truth[0], "dream": rollout.tokens[0]})


def places(run: Run, game: str, ram: np.ndarray, codes: dict) -> dict[str, np.ndarray]:
    """Where the ball (MsPacman: the player) is at T steps: (T, 2) column and row on a frame.

    ram (T, 128) says it as "real game", and for all of them when no ball is in play: NaN. codes:
    name -> (T, L), from each of which a probe reads it; without codes no stored frames are needed.
    """
    found = {"real game": atari.labels(game, ram)}
    if codes:
        data, model = replay.open_run(run), tokenizer.load(run)
        probe = _coordinate_probe(run, game, data, model)
        found |= {name: probe.predict(tokenizer.quantized(model, chosen.cpu().numpy()))
                  for name, chosen in codes.items()}
    is_shown = atari.ball_in_play(game, ram)[:, None]
    return {name: np.where(is_shown, atari.on_frame(game, state), np.nan)
            for name, state in found.items()}


def ranked_dreams(run: Run, game: str, *, count: int = 10) -> tuple[np.ndarray, dict]:
    """Dreams chosen by rule, not by taste: of all seeded dreams, ordered by how many of their
    first 15 coarse codes are true, those at `count` evenly spaced ranks, the best first.

    Returns (count,) the share of true codes and {"real game", "its codes", "dream"}: frames
    (count, H+1, 84, 84) uint8; index 0 of a dream is the last real step.
    """
    rollout, truth, _, rows = dream(run, game)
    dreamed, near = rollout.tokens.cpu(), slice(1, 16)
    share = (dreamed[:, near, 0] == truth[:, near, 0]).float().mean(1).numpy()
    ranks = np.linspace(0, len(share) - 1, min(count, len(share))).round().astype(int)
    picks = np.argsort(-share, kind="stable")[ranks]
    return share[picks], {**decoder.beside_truth(run, rows[picks]),
                          "dream": decoder.decode_tokens(run, dreamed[picks])}


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
