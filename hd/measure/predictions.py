"""How well a world model predicts next codes, rewards and ends, given the true past."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score

from hd.config import WorldModelConfig
from hd.measure.baselines import NextCode, Score, Steps
from hd.measure.frames import of_source
from hd.run.machine import device
from hd.run.metrics import named
from hd.run.runs import row
from hd.run.training import to_device
from hd.windows import Windows
from hd.world_model import SLOTS, WorldModel

STRETCH = 250  # steps of an episode that a counted predictor is fitted without, to be tried on them


def exposures(windows: Windows) -> float:
    """How often training saw each step that it may see, on average."""
    cfg = windows.cfg
    steps = cfg.num_steps * cfg.accumulate * cfg.batch_size * cfg.max_steps
    return steps / windows.may_train.sum()


@torch.no_grad()
def rows_of(model: WorldModel, windows: Windows) -> list[dict]:
    """Next-code, reward and end-of-episode metrics per game on test episodes.

    Codes: nats and accuracy per level, on all and on changed codes; the baseline column is that of
    the best trivial predictor, each of which has a row of its own; so has each source of the
    held-out data, where there are several.
    """
    rows, games = [], windows.data.games
    for game in games:
        starts = windows.held_out(game)
        scored = score_windows(model, windows, starts)
        bases = [baselines(windows, game, level, starts) for level in range(3)]
        for level, base in enumerate(bases):
            last, following = pairs(windows, starts, level)
            for name, subset in (("", slice(None)), ("changed_", last != following)):
                rows += _code_rows(scored[level], base, subset, f"l{level}_{name}", game)
        rows += _outcome_rows(scored["reward"], scored["ends"], windows, starts, game)
        for source, is_from in windows.data.by_source(starts).items():
            found = _source_rows(scored, bases, windows, starts, is_from)
            rows += of_source(found, source)
    for game, share in zip(games, windows.shares()):
        steps = windows.may_train & windows.data.in_game(game)
        rows.append(row("window_share", share, game=game, split="train",
                        baseline=steps.sum() / windows.may_train.sum()))
    return [*rows, row("exposures", exposures(windows), split="train")]


def _source_rows(scored, bases, windows, starts, is_from) -> list[dict]:
    """The metrics of measure on the windows of one source, is_from (W,) bool."""
    rows, game = [], windows.data.games[windows.data.game_idx[starts[0]]]
    for level, base in enumerate(bases):
        last, following = pairs(windows, starts, level)
        own = np.repeat(is_from, len(last) // len(starts))
        for name, subset in (("", own), ("changed_", own & (last != following))):
            if subset.any():
                rows += _code_rows(scored[level], base, subset, f"l{level}_{name}", game)
    outcomes = [scored[key].reshape(len(starts), -1)[is_from].ravel() for key in ("reward", "ends")]
    return rows + _outcome_rows(*outcomes, windows, starts[is_from], game)


def cost_rows(model: WorldModel, codebooks: torch.Tensor, *, wall_seconds: float) -> list[dict]:
    """Size, training speed, and how far the frozen codebooks moved (not at all).

    codebooks: the tokenizer's; wall_seconds: that the training took.
    """
    cfg = model.cfg
    trained = cfg.num_steps * cfg.accumulate * cfg.batch_size * cfg.max_steps * len(SLOTS)
    moved = (model.codebooks - codebooks).abs().max()
    seed_sizes = WorldModel(WorldModelConfig())
    sizes = [sum(p.numel() for p in one.parameters()) for one in (model, seed_sizes)]
    return [row("parameters", sizes[0], split="train"),
            row(named("parameters", "seed sizes"), sizes[1], split="train"),
            row("tokens_per_second", trained / wall_seconds, split="train"),
            row("codebook_change", moved, split="train")]


def score_windows(model, windows, starts) -> dict:
    """The model's Score per level over all windows, and its rewards and P(end), flattened."""
    cfg, out = windows.cfg, {0: [], 1: [], 2: [], "reward": [], "ends": []}
    for i in range(0, len(starts), cfg.batch_size):
        batch = windows.batch(starts[i:i + cfg.batch_size], cfg.max_steps)
        batch = to_device(batch, device())
        predicted = model(batch["tokens"], batch["actions"])
        for level, logits in enumerate(predicted.code_logits):
            target = batch["tokens"][:, 1:, level]
            nats = F.cross_entropy(logits.float().transpose(1, 2), target, reduction="none")
            out[level].append((nats.cpu(), (logits.argmax(-1) == target).cpu()))
        out["reward"].append(predicted.reward.cpu())
        out["ends"].append(1 - predicted.continue_logits.float().sigmoid().cpu())
    scores = {level: Score(*(torch.cat(x).flatten().numpy() for x in zip(*out[level])))
              for level in range(3)}
    return scores | {key: torch.cat(out[key]).flatten().numpy() for key in ("reward", "ends")}


def pairs(windows, starts, level) -> tuple[np.ndarray, np.ndarray]:
    """Code at t and at t+1 for every prediction made inside the windows."""
    codes = windows.tokens[starts[:, None] + np.arange(windows.cfg.max_steps), level]
    return codes[:, :-1].ravel(), codes[:, 1:].ravel()


def baselines(windows, game, level, starts) -> dict[str, Score]:
    """Trivial predictors, counted on the game's training steps, scored on the same pairs."""
    data, cfg = windows.data, windows.cfg
    fit = np.flatnonzero(windows.may_train & data.has_next & data.in_game(game))
    # Where held-out windows stand inside training episodes, each step is a stretch by itself.
    length = 1 if cfg.split == "windows" else STRETCH
    stretches = fit - (fit - data.starts[fit]) % length
    at = (starts[:, None] + np.arange(cfg.max_steps - 1)).ravel()

    def steps(rows, stretches=None):
        return Steps(level, windows.tokens[rows], windows.tokens[rows + 1], windows.actions[rows],
                     stretches)

    return NextCode.fit(steps(fit, stretches), num_codes=cfg.num_codes).scores(steps(at))


def _code_rows(score: Score, baselines, subset, prefix, game) -> list[dict]:
    rows = []
    for metric, field, best in (("cross_entropy", "nats", min), ("accuracy", "is_right", max)):
        means = {name: getattr(x, field)[subset].mean() for name, x in baselines.items()}
        rows.append(row(prefix + metric, getattr(score, field)[subset].mean(), game=game,
                        baseline=best(means.values())))
        rows += [row(named(prefix + metric, name), value, game=game)
                 for name, value in means.items()]
    return rows


def _outcome_rows(rewards, ends, windows, starts, game) -> list[dict]:
    """Average precision of scoring events and of episode ends; the baseline is the base rate."""
    at = (starts[:, None] + np.arange(windows.cfg.max_steps)).ravel()
    truth, over = windows.data.rewards[at], windows.data.continues[at] == 0
    fit = windows.data.rewards[windows.may_train & windows.data.in_game(game)]
    rows = [row("reward_squared_error", np.square(rewards - truth).mean(), game=game,
                baseline=np.square(fit.mean() - truth).mean())]
    for name, event, score in (("reward", truth != 0, np.abs(rewards)), ("end", over, ends)):
        if event.any():
            rows.append(row(f"{name}_average_precision", average_precision_score(event, score),
                            game=game, baseline=event.mean()))
    return rows
