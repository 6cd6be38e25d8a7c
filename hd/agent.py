"""The online loop: play a block with the present policy, store it, train, dream, again.

After a prefill by chance the codec of places is fitted once; then the world model of places and the
actor-critic learn by turns from all that was played, recent steps more often. The work is a list of
chunks, and what happens in chunk k depends only on the seed, k and what was before: a run that is
killed goes on from the chunk that was done last, and ends with the same weights.
"""

from __future__ import annotations

import copy
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from hd.atari import GAMES, NOOP, AtariGame
from hd.config import AgentConfig, AgentPolicyConfig, InputError, PlaceModelConfig
from hd.experience import STORED, Store
from hd.patches import PatchCodec
from hd.place_model import PlaceModel
from hd.play import Observation
from hd.policy import ActorCritic
from hd.run import runs, training
from hd.run.captured import captured
from hd.run.machine import cpu_count, device, generator_on, kept_memory
from hd.run.runs import Run, rng_for, seed_everything
from hd.run.storage import write_atomically
from hd.run.training import Feed, Unkept

LOADERS = 4  # threads that make batches for a GPU
WARMUP_CHUNK = 50  # updates between checkpoints before the first block
CURVE_EVERY = 1024  # steps between points of the learning curve


class Chunk(NamedTuple):
    """Steps to play, all emulators together, then updates of the world model, and batches of
    dreams that the policy learns from."""

    steps: int
    model_updates: int
    dreams: int


def chunks_of(cfg: AgentConfig) -> list[Chunk]:
    """The whole work, in order. Raises InputError where the budget does not hold the prefill."""
    if cfg.prefill + cfg.block > cfg.num_steps:
        raise InputError(f"the agent's {cfg.num_steps} steps must hold its prefill of "
                         f"{cfg.prefill} and a block of {cfg.block}")
    if cfg.prefill % cfg.num_emulators or cfg.block % cfg.num_emulators:
        raise InputError(f"prefill and block must be multiples of the {cfg.num_emulators} "
                         f"emulators; got {cfg.prefill} and {cfg.block}")
    if cfg.surprise_share + cfg.outcome_share > 1:
        raise InputError(f"surprise_share and outcome_share are shares of one batch: at most 1 "
                         f"together; got {cfg.surprise_share} and {cfg.outcome_share}")
    warmup = [Chunk(0, min(WARMUP_CHUNK, cfg.model_warmup - done), 0)
              for done in range(0, cfg.model_warmup, WARMUP_CHUNK)]
    warmup += [Chunk(0, 0, min(WARMUP_CHUNK, cfg.dreams_warmup - done))
               for done in range(0, cfg.dreams_warmup, WARMUP_CHUNK)]
    blocks = (cfg.num_steps - cfg.prefill) // cfg.block
    return [Chunk(cfg.prefill, 0, 0), *warmup,
            *[Chunk(cfg.block, cfg.model_updates, cfg.dreams)] * blocks]


def shifts_of(cfg: AgentConfig, seed: int) -> np.ndarray:
    """(1 + cfg.shifts, 2) pixels down and right: none, and random ones by at most half a place."""
    half = cfg.patch // 2
    random = rng_for(seed, "agent shifts").integers(-half, half + 1, (cfg.shifts, 2))
    return np.concatenate([np.zeros((1, 2), int), random])


class Agent(nn.Module):
    """Codec, world model and policy of one game, as they are kept together."""

    def __init__(self, cfg: AgentConfig, model_cfg: PlaceModelConfig,
                 policy_cfg: AgentPolicyConfig, game: str):
        super().__init__()
        self.game = game
        self.codec = PatchCodec(patch=cfg.patch, num_levels=cfg.num_levels,
                                num_codes=cfg.num_codes, kind=cfg.kind)
        self.model = PlaceModel(model_cfg, self.codec.quantizer.codebooks, self.codec.num_places)
        self.policy = ActorCritic(policy_cfg, self.model, GAMES[game].actions,
                                  self.model.num_features, self.codec.num_places)

    def fit_codec(self, frames: np.ndarray, seed: int, moves: np.ndarray | None = None) -> float:
        """Fit the codec to frames (N, 84, 84), moved by moves (N, 2) or not; the world model reads
        its codes from then on."""
        left = self.codec.fit(frames, torch.Generator().manual_seed(seed), moves=moves)
        self.model.read_codebooks(self.codec.quantizer.codebooks)
        return left

    @torch.no_grad()
    def choose(self, tokens, actions, generator):
        """tokens (B, T, L, G), actions (B, T-1): the last steps -> ALE ids (B,).

        In the precision of dreams, through the very functions that dreams call.
        """
        with training.autocast(self.policy.cfg):
            dream = self.model.dreamer(tokens, actions, horizon=1)
            return self.policy.actor.act(dream.features(), generator)

    def act(self) -> Callable:
        """The policy in a real game, for hd.play.play."""
        steps, past = self.model.cfg.steps, {}

        def act(seen: Observation, generator):
            frames = seen.frames[:, -steps:]
            tokens = self.codec.encode(frames.reshape(-1, *frames.shape[2:]))
            nothing = (NOOP,) * (steps - 1)
            for episode, played in zip(seen.episodes.tolist(), seen.steps.tolist()):
                past[episode] = past.get(episode, nothing) if played else nothing
            before = torch.tensor([past[episode] for episode in seen.episodes.tolist()],
                                  dtype=torch.int64).view(len(frames), steps - 1)
            chosen = self.choose(tokens.unflatten(0, (-1, steps)), before.to(tokens.device),
                                 generator).cpu()
            for episode, action in zip(seen.episodes.tolist(), chosen.tolist()):
                past[episode] = (*past[episode], action)[1:]
            return chosen

        return act


class Emulators:
    """E games side by side, each episode started from (seed, emulator, its first step)."""

    def __init__(self, cfg: AgentConfig, game: str, seed: int):
        self.seed, self.life_ends = seed, cfg.life_ends
        self.games = [AtariGame(game, sticky=cfg.sticky, noop_max=cfg.noop_max)
                      for _ in range(cfg.num_emulators)]
        E = len(self.games)
        self.frames, self.ram = np.zeros((E, 84, 84), np.uint8), np.zeros((E, 128), np.uint8)
        self.lives = np.zeros(E, int)
        for e in range(E):
            self._begin(e, 0)

    def _begin(self, emulator: int, start: int) -> None:
        seed = int(rng_for(self.seed, "agent episode", emulator, start).integers(2**31))
        self._show(emulator, *self.games[emulator].reset(seed=seed))

    def _show(self, emulator: int, frame, info) -> None:
        self.frames[emulator], self.ram[emulator] = frame, info["ram"]
        self.lives[emulator] = info["lives"]

    def step(self, actions, time_step: int):
        """actions (E,) at this step -> rewards, continues, ends (E,); frames are the next ones."""
        rewards, continues, ends = [], [], []
        for e, (game, action) in enumerate(zip(self.games, actions)):
            lives = self.lives[e]
            frame, reward, terminated, truncated, info = game.step(action)
            self._show(e, frame, info)
            rewards.append(reward)
            continues.append(not (terminated or (self.life_ends and self.lives[e] < lives)))
            ends.append(terminated or truncated)
            if ends[-1]:
                self._begin(e, time_step + 1)
        return np.array(rewards), np.array(continues, np.float32), np.array(ends)

    def catch_up(self, store: Store) -> None:
        """Play the running episodes again, as the store has them: the emulator is a function of
        its start and the actions."""
        starts = store.next_start()
        for e, start in enumerate(starts.tolist()):
            self._begin(e, start)
            for action in store.actions[e, start:store.length]:
                frame, *_, info = self.games[e].step(action)
                self._show(e, frame, info)


# ---- the loop

def train(cfg: AgentConfig, model_cfg: PlaceModelConfig, policy_cfg: AgentPolicyConfig, game: str,
          run: Run | Unkept, *, start: PlaceModel | None = None) -> tuple[Agent, dict]:
    """Play and learn until cfg.num_steps; the agent in eval mode, and the record.

    start: another game's world model, from which this one goes on.

    The record's "history" has a point about every thousand steps, its "episodes" a row for each
    episode that ended: step, return, length, minutes. A finished run is loaded, an interrupted one
    continues. Raises TimeLimitReached after a checkpoint, NonFiniteLoss, InputError.
    """
    work = chunks_of(cfg)
    _check_learning(model_cfg, policy_cfg)
    seed_everything(run.seed)
    agent = Agent(cfg, model_cfg, policy_cfg, game).to(device())
    if start is not None:
        agent.model.go_on_from(start)
    if isinstance(run, Unkept):
        with kept_memory():
            return agent, _Loop(cfg, agent, run).run(work)
    with runs.exclusive(run):
        if record := runs.finished_or_cleared(run):
            return runs.load_model(run, agent), record
        loop = _Loop(cfg, agent, run)
        with kept_memory():
            record = loop.run(work)
        record = runs.save_model(run, agent.eval(), also=[loop.store.save(run.folder)], **record)
        loop.remove_blocks()
        return agent, record


def _check_learning(model_cfg: PlaceModelConfig, policy_cfg: AgentPolicyConfig) -> None:
    """Raise InputError for what the loop does otherwise than a training of its own would."""
    for cfg in (model_cfg, policy_cfg):
        if cfg.accumulate != 1 or cfg.schedule != "constant":
            raise InputError(f"an agent's world model and policy learn from one batch a step, and "
                             f"agent.anneal says how: accumulate must be 1 and schedule constant; "
                             f"got {cfg.accumulate} and {cfg.schedule}")
    if model_cfg.matrix_lr is not None and model_cfg.weight_decay:
        raise InputError(f"place_model.matrix_lr takes a weight_decay of 0; "
                         f"got {model_cfg.weight_decay}")
    if policy_cfg.loss == "ppo" and policy_cfg.batch_size % policy_cfg.ppo_minibatches:
        raise InputError(f"agent_policy.batch_size must be a multiple of its ppo_minibatches, "
                         f"{policy_cfg.ppo_minibatches}; got {policy_cfg.batch_size}")


class _Loop:
    """What is between a chunk and the next: models, optimizers, what was played, the records."""

    def __init__(self, cfg: AgentConfig, agent: Agent, run: Run | Unkept):
        self.cfg, self.agent, self.run_of = cfg, agent, run
        self.store = Store(cfg, agent.codec.num_places, shifts_of(cfg, run.seed))
        # What is played and dreamt in is the moving average of what learns.
        learns = copy.deepcopy(agent.model)
        # The policy dreams in the average as it was before a chunk's updates.
        self.dreamt_in = copy.deepcopy(agent.model).requires_grad_(False).eval()
        agent.policy.dream_from_now_on_in(self.dreamt_in)
        agent.policy.foresee = captured(agent.policy.foresee)
        self.choose = captured(lambda **seen: {"actions": agent.choose(**seen)})
        self.learners = {
            "model": _Learner(learns, learns.cfg, run, "agent model", "place_model",
                              average=agent.model, matrix_lr=learns.cfg.matrix_lr),
            "policy": _Learner(agent.policy, agent.policy.cfg, run, "agent policy",
                               "agent_policy")}
        self.history: list[dict] = []
        self.episodes: list[dict] = []
        self.spent, self.began = 0.0, time.monotonic()
        self.at_once = device().type == "cpu" and cpu_count() > 1

    @property
    def is_kept(self) -> bool:
        return not isinstance(self.run_of, Unkept)

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def run(self, work: list[Chunk]) -> dict:
        done = self._resume() if self.is_kept else 0
        self.emulators = Emulators(self.cfg, self.agent.game, self.run_of.seed)
        self.emulators.catch_up(self.store)
        slowest, last_saved = 0.0, time.monotonic()
        with tqdm(total=self.cfg.num_steps, initial=self.store.actions.shape[0] * self.store.length,
                  desc="agent", unit="step", mininterval=2.0, file=sys.stdout) as bar:
            for k in range(done, len(work)):
                started = time.monotonic()
                self._chunk(k, work[k])
                self._record(is_last=k + 1 == len(work))
                bar.update(self._steps_done() - bar.n)
                bar.set_postfix_str(self._said(), refresh=False)
                slowest = max(slowest, time.monotonic() - started)
                if not self.is_kept or k + 1 == len(work):
                    continue
                must_stop = self.run_of.must_stop(margin=2 * slowest + 1.0)
                if must_stop or time.monotonic() - last_saved > training.CHECKPOINT_SECONDS:
                    self._checkpoint(k + 1)
                    last_saved = time.monotonic()
                    if must_stop:
                        raise runs.TimeLimitReached(
                            f"agent stopped at step {self._steps_done()} of {self.cfg.num_steps} "
                            f"with a checkpoint; the same command continues it")
        del self.agent.policy.foresee  # what was captured is of this loop alone
        return {"history": self.history, "episodes": self.episodes, "wall_seconds": self.seconds}

    def _steps_done(self) -> int:
        return len(self.store.actions) * self.store.length

    def _said(self) -> str:
        last = [episode["return"] for episode in self.episodes[-5:]]
        return f"last returns {', '.join(f'{value:g}' for value in last) or 'none yet'}"

    def _chunk(self, k: int, chunk: Chunk) -> None:
        first, is_first = self.store.length, not self.store.length
        if chunk.steps:
            self._play(k, chunk.steps // self.cfg.num_emulators, by_chance=is_first)
        if is_first:
            frames = self.store.frames[:, :self.store.length].reshape(-1, 84, 84)
            rng = rng_for(self.run_of.seed, "agent codec")
            moves = (self.store.shifts[self.store.drawn_shifts(rng, len(frames))]
                     if self.cfg.fit_moved else None)
            self.agent.fit_codec(frames, self.run_of.seed, moves)
            self.learners["model"].model.read_codebooks(self.agent.codec.quantizer.codebooks)
        self.store.encode(self.agent.codec, first)
        if self.cfg.surprise_share:
            self.agent.eval()
            rng = rng_for(self.run_of.seed, "agent surprise", k)
            self.store.measure_surprise(self.agent.model, rng, max(0, first - 1))
        self._learn(chunk)

    def _learn(self, chunk: Chunk) -> None:
        """The updates of a chunk. The policy dreams in the world model as it was before them, so
        that both learn at the same time where there are two cores, each on one."""
        store, model, policy = self.store, self.agent.model, self.agent.policy
        self.dreamt_in.load_state_dict(model.state_dict())

        def transitions(i: int):
            rng = rng_for(self.run_of.seed, "agent model", i)
            return store.model_batch(rng, model.cfg.batch_size, model.cfg.steps)

        def contexts(i: int):
            if i % policy.num_passes:
                return {"pass": i % policy.num_passes}  # what was dreamt is learned from again
            rng = rng_for(self.run_of.seed, "agent policy", i)
            return store.policy_batch(rng, policy.cfg.batch_size, model.cfg.steps)

        if self.cfg.anneal:
            for learner in self.learners.values():
                learner.slow_down(1 - self._steps_done() / self.cfg.num_steps)
        jobs = [(self.learners["model"], chunk.model_updates, transitions),
                (self.learners["policy"], chunk.dreams * policy.num_passes, contexts)]
        with ThreadPoolExecutor(2 if self.at_once else 1) as pool:
            for job in [pool.submit(learner.learn, updates, batches)
                        for learner, updates, batches in jobs]:
                job.result()

    def _play(self, k: int, steps: int, *, by_chance: bool) -> None:
        """So many steps of every emulator, by chance or by the policy, into the store."""
        rng = rng_for(self.run_of.seed, "agent play", k)
        generator = generator_on(device(), int(rng.integers(2**31)))
        legal, store = np.array(GAMES[self.agent.game].actions), self.store
        returns, first = self._returns_so_far(), store.length
        self.agent.eval()
        for _ in range(steps):
            if by_chance:
                actions = rng.choice(legal, len(store.actions))
            else:
                actions = self._choose(generator)
            seen, t = (self.emulators.frames.copy(), self.emulators.ram.copy()), store.length
            rewards, continues, ends = self.emulators.step(actions, t)
            store.add(*seen, actions, rewards, continues, ends)
            returns += rewards
            for e in ends.nonzero()[0].tolist():
                self.episodes.append({
                    "step": self._steps_done(), "return": float(returns[e]),
                    "length": int(t + 1 - store.starts[e, t]),
                    "minutes": round(self.seconds / 60, 2)})
                returns[e] = 0
        if self.is_kept:
            block = {name: getattr(store, name)[:, first:store.length] for name in STORED}
            write_atomically(self._block(k), lambda aside: np.savez_compressed(aside, **block))

    def _returns_so_far(self):
        """(E,): of the episodes that run."""
        return np.array([self.store.rewards[e, start:self.store.length].sum(dtype=float)
                         for e, start in enumerate(self.store.next_start().tolist())])

    def _choose(self, generator):
        """(E,) ALE ids for the frames that the emulators show; their tokens are stored."""
        store, t = self.store, self.store.length
        store.tokens[0, :, t] = self.agent.codec.encode(self.emulators.frames).cpu().numpy()
        everyone = np.arange(len(store.actions))
        at, is_real = store.past(np.full(len(everyone), t), store.next_start(),
                                 self.agent.model.cfg.steps)
        actions = np.where(is_real, store.actions[everyone[:, None], at], NOOP)[:, :-1]
        seen = {"tokens": torch.from_numpy(store.tokens[0, everyone[:, None], at]),
                "actions": torch.from_numpy(actions.copy())}
        seen = training.to_device(seen, device())
        return self.choose(**seen, generator=generator)["actions"].cpu().numpy()

    # ---- records

    def _record(self, *, is_last: bool) -> None:
        """A point of the learning curve, where one is due."""
        step = self._steps_done()
        if not is_last and self.history and step - self.history[-1]["step"] < CURVE_EVERY:
            return
        lately = [episode["return"] for episode in self.episodes[-10:]]
        point = {"step": step, "minutes": round(self.seconds / 60, 2),
                 "return": float(np.mean(lately)) if lately else None}
        for name, learner in self.learners.items():
            point |= {f"{name}_{key}": value for key, value in learner.means().items()}
        self.history.append(point)

    def _beside(self) -> dict[str, nn.Module]:
        """What a checkpoint keeps beside the learners."""
        return {"codec": self.agent.codec, "average": self.agent.model}

    def _checkpoint(self, done: int) -> None:
        tensors = {f"{part}.{name}": value for part, module in self._beside().items()
                   for name, value in module.state_dict().items()}
        for name, learner in self.learners.items():
            tensors |= {f"{name}.{key}": value for key, value in learner.state.tensors().items()}
        tensors["store.surprise"] = torch.from_numpy(
            self.store.surprise[:, :self.store.length].copy())
        runs.save_checkpoint(self.run_of, tensors, {
            "step": done, "length": self.store.length, "history": self.history,
            "episodes": self.episodes, "wall_seconds": self.seconds,
            "learners": {name: learner.notes() for name, learner in self.learners.items()}})

    def _resume(self) -> int:
        """The number of chunks that are done; everything is put back to there."""
        saved = runs.load_checkpoint(self.run_of)
        if saved is None:
            self.remove_blocks()
            return 0
        tensors, notes = saved
        apart: dict[str, dict] = {name: {} for name in (*self._beside(), *self.learners, "store")}
        for key, value in tensors.items():
            owner, _, name = key.partition(".")
            apart[owner][name] = value
        for part, module in self._beside().items():
            module.load_state_dict(apart[part])
        for name, learner in self.learners.items():
            learner.resume(apart[name], notes["learners"][name])
        self.history, self.episodes = notes["history"], notes["episodes"]
        self.spent = notes["wall_seconds"]
        for k in range(notes["step"]):
            if self._block(k).exists():
                self._read_block(self._block(k))
        if self.store.length != notes["length"]:
            raise InputError(self._damaged(self._block(notes["step"]).parent))
        self.store.encode(self.agent.codec)
        self.store.surprise[:, :self.store.length] = apart["store"]["surprise"]
        self.store.weigh_surprise()
        return notes["step"]

    def _block(self, k: int) -> Path:
        """Where what chunk k played is kept."""
        return self.run_of.folder / "blocks" / f"{k:06d}.npz"

    def _read_block(self, path: Path) -> None:
        store = self.store
        try:
            with np.load(path, allow_pickle=False) as block:
                until = store.length + block["actions"].shape[1]
                for name in STORED:
                    getattr(store, name)[:, store.length:until] = block[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            raise InputError(self._damaged(path)) from None
        store.length = until

    def _damaged(self, path: Path) -> str:
        return (f"{runs.shown(path)} is damaged or not complete: remove the folder above it, then "
                f"start again: {self.run_of.command}")

    def remove_blocks(self) -> None:
        """What was played is not kept once the agent is finished."""
        for path in self._block(0).parent.glob("*.npz"):
            path.unlink()


class _Learner:
    """A model with its optimizer, its count of updates and what it reported lately; perhaps another
    whose weights are the moving average of the model's."""

    def __init__(self, model: nn.Module, cfg, run: Run | Unkept, name: str, config: str,
                 average: nn.Module | None = None, matrix_lr: float | None = None):
        self.model, self.cfg, self.average = model, cfg, average
        self.run_of, self.config = run, config
        self.unkept = Unkept(stage=name, seed=run.seed)
        self.optimizer = training.make_optimizer(model, cfg, matrix_lr)
        self.dtype = training.precision(cfg, device())
        self.scaler = torch.amp.GradScaler(device().type, enabled=self.dtype == torch.float16)
        self.state = training.State(model, self.optimizer, self.scaler)
        # A scaler looks at values, which a captured function must not.
        self.update = self._update if self.scaler.is_enabled() else captured(self._update)
        if self.is_captured:
            for group in self.optimizer.param_groups:
                # Read anew by every replay.
                group |= {"capturable": True, "lr": torch.tensor(cfg.lr, device=device())}
        self.done, self.gathered = 0, {}

    @property
    def is_captured(self) -> bool:
        return self.update != self._update

    def slow_down(self, share: float) -> None:
        """From now on learn at this share of cfg.lr."""
        for group in self.optimizer.param_groups:
            if self.is_captured:
                group["lr"].fill_(share * self.cfg.lr)
            else:
                group["lr"] = share * self.cfg.lr

    def learn(self, updates: int, batches: Callable[[int], dict]) -> None:
        """So many updates; batches(i) makes the i-th batch from i and what is stored."""
        if not updates:
            return
        torch.set_num_threads(1)  # of this thread alone; a second would mostly wait for the first
        self.model.train()
        with ThreadPoolExecutor(LOADERS if self.is_captured else 1) as loader:
            feed = Feed(lambda i: training.pinned(batches(i)), loader, self.done,
                        self.done + updates, ahead=2 * LOADERS if self.is_captured else 1)
            for step in range(self.done, self.done + updates):
                if self.is_captured:
                    batch = training.prepared(self.model, feed.next(), self.dtype)
                    parts = self.update(**batch)
                else:
                    parts = training.one_step(self.model, feed, self.optimizer, self.scaler,
                                              self.dtype, self.cfg, self.unkept, step)
                if self.average is not None:
                    self._follow(step)
                for key, value in parts.items():
                    total, count = self.gathered.get(key, (0.0, 0))
                    self.gathered[key] = (total + value, count + 1)
        self.gathered = {key: (float(total), count)
                         for key, (total, count) in self.gathered.items()}
        self.done += updates
        gathered = {"loss": [torch.tensor(self.gathered["loss"][0])]}
        training.require_finite(self.model, gathered, self.done, self.run_of, config=self.config)

    def _update(self, **batch) -> dict[str, torch.Tensor]:
        return training.update(self.model, [batch], self.optimizer, self.scaler, self.dtype,
                               self.cfg)

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """The average follows the model: a plain mean at first, until cfg.ema forgets faster."""
        share = max(1 / (step + 1), 1 - self.cfg.ema)
        torch._foreach_lerp_([*self.average.parameters()], [*self.model.parameters()], share)

    def means(self) -> dict[str, float]:
        """Of every part since the last call."""
        found = {key: total / count for key, (total, count) in self.gathered.items()}
        self.gathered = {}
        return found

    def notes(self) -> dict:
        """What a checkpoint keeps beside the tensors."""
        return {"done": self.done, "gathered": self.gathered,
                "scaler": self.scaler.state_dict()}

    def resume(self, tensors: dict, notes: dict) -> None:
        """Put everything back to where a checkpoint was written."""
        self.state.load(tensors, notes["scaler"])
        self.done = notes["done"]
        self.gathered = {key: tuple(value) for key, value in notes["gathered"].items()}
