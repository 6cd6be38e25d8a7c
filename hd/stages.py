"""Every stage by name: make it, with what it needs; load what it made; measure it into its table.

This is the one place that knows both the models and the runs: it fetches what a stage works on,
calls `train` and what measures, and stores what they return. Notebooks, ablations, the command line
and tests all come through make, load and measure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hd import (
    agent,
    atari,
    collection,
    config,
    decoder,
    encoder,
    experience,
    play,
    policy,
    tokenizer,
    world_model,
)
from hd.config import InputError
from hd.imagination import DreamEnv
from hd.measure import (
    checks,
    codes,
    contact,
    control,
    decoded,
    dinov2,
    dreams,
    embeddings,
    entropy_floor,
    frames,
    game_state,
    model_free,
    places,
    predictions,
    ram_policy,
    seed_protocol,
    transfer,
)
from hd.replay import Replay
from hd.run import machine, runs, storage
from hd.run.runs import Run
from hd.run.storage import artifacts_root, read_record, sha256_of, write_record
from hd.windows import Windows

DREAMS_FROM = 1600  # new real steps that an agent plays, for its dreams to start from


def make(run: Run) -> dict:
    """Make the stage and, before it, every stage it needs that is not finished; its record.

    A finished stage is left as it is, an interrupted one continues. A stage that only measures
    (imagination, entropy_floor) has nothing to make: its record is empty. Raises what training
    raises: InputError, NonFiniteLoss, TimeLimitReached.
    """
    for stage in config.UPSTREAM[run.stage]:
        if runs.finished_or_cleared(run.at(stage)) is None:
            make(run.at(stage))
    return STAGES[run.stage].make(run)


def load(run: Run):
    """What a finished stage made: frames give their Replay, trained stages their model in eval mode
    on the device, imagination the world model it dreams in.

    Raises InputError, with the command that makes it, where it is missing or damaged.
    """
    return STAGES[run.stage].load(run)


def measure(run: Run) -> pd.DataFrame:
    """Measure a made stage; save its table, provenance and learning curve; returns the table."""
    began = time.monotonic()
    rows = [{**one, "split": _judged_on(run)} if one["split"] == "test" else one
            for one in STAGES[run.stage].measure(run)]
    made = runs.finished(run) or {}
    runs.save_beside(run, "history", made.get("history", []))
    return runs.save_table(run, rows, wall_seconds=time.monotonic() - began,
                           made_seconds=made.get("wall_seconds", 0.0),
                           made={part: made[part] for part in ("device", "git") if part in made})


def _judged_on(run: Run) -> str:
    """The split of what a stage measures on held-out episodes: "val" where those are the ones on
    which things were chosen, as in a split in two and in the seed's, by windows."""
    is_of_seed = run.stage == "world_model" and run.cfg.split == "windows"
    is_in_two = run.stage != "agent" and not run.at("frames").cfg.test_share
    return "val" if is_of_seed or is_in_two else "test"


def measured(run: Run) -> pd.DataFrame:
    """The run's table: the one that is there if this very code made it from this run, else new."""
    path = run.root / "results" / run.stage / f"{run.name}.csv"
    with contextlib.suppress(InputError, OSError, ValueError):
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if (record.get("identity"), record.get("code")) == (run.identity, storage.CODE):
            return runs.load_table(path)
    return measure(run)


# ---- what stages read of each other

def embeddings_of(run: Run) -> np.ndarray:
    """(N, 384) float32 of every stored step, all games in order; made once, then mapped."""
    run = run.at("encoder")

    def embed():
        data = load(run.at("frames"))
        return encoder.embed(load(run), data, np.arange(len(data)))

    return runs.cached_array(run, "embeddings", embed)


def tokens_of(run: Run) -> np.ndarray:
    """(N, L) int16 codes of every stored step, all games in order; made once, then mapped."""
    run = run.at("tokenizer")
    return runs.cached_array(
        run, "tokens", lambda: tokenizer.encode_all(load(run), embeddings_of(run)))


def windows_of(run: Run) -> Windows:
    """The windows that the run's world model learns from and is judged on."""
    return Windows(run.at("world_model").cfg, load(run.at("frames")), tokens_of(run),
                   seed=run.seed)


def drawer_of(run: Run) -> Callable:
    """From tokens (..., L) int64 to frames (..., 84, 84) uint8, as the run's decoder draws them."""
    return decoder.drawer(load(run.at("decoder")), load(run.at("tokenizer")))


def act_of(run: Run) -> Callable:
    """The trained policy in the real game, for hd.play.play."""
    return play.policy_act(*(load(run.at(stage)) for stage in ("encoder", "tokenizer", "policy")))


# ---- frames

def _collect(run: Run) -> dict:
    """With the trained policy where frames.sources asks for the "agent"."""
    trained = next(iter(run.upstream), None)
    return collection.collect(run, make_agent=trained and functools.partial(_agent, trained))


def _agent(trained: Run) -> collection.Agent:
    runs.require(trained)
    return collection.Agent(trained.identity, trained.cfg.game,
                            functools.partial(_begin, trained))


def _begin(trained: Run) -> Callable:
    return play.one_at_a_time(act_of(trained))


def _open_frames(run: Run) -> Replay:
    """The stored steps, split by the config's shares and the run's seed."""
    runs.require(run)
    return _opened(run, run.games)


def _opened(run: Run, games: tuple[str, ...]) -> Replay:
    return Replay.open(run.folder, games, val_share=run.cfg.val_share,
                       test_share=run.cfg.test_share, seed=run.seed)


def _measure_frames(run: Run) -> list[dict]:
    return frames.rows_of(load(run), asked=run.cfg.sources,
                          length=run.profile.world_model.max_steps)


# ---- encoder

def _train_encoder(run: Run) -> dict:
    data, targets = load(run.at("frames")), None
    if run.cfg.objective == "supervised":
        targets = game_state.standardised(
            game_state.coordinates(data, np.arange(len(data))), data.is_train)
    return encoder.train(run.cfg, data, run, targets=targets,
                         evaluate=embeddings.watch(data))[1]


def _load_encoder(run: Run) -> encoder.AtariEncoder:
    network = encoder.network(run.cfg, game_state.num_coordinates(run.games))
    return runs.load_model(run, network)


def untrained_encoder(run: Run) -> encoder.AtariEncoder:
    """The baseline of all that is measured on embeddings."""
    return encoder.untrained(run.at("encoder").cfg, run.seed,
                             game_state.num_coordinates(run.games))


def _measure_encoder(run: Run) -> list[dict]:
    data, learned, fresh = load(run.at("frames")), embeddings_of(run), untrained_encoder(run)
    cfg, seed = run.profile.probes, run.seed
    return (embeddings.geometry_rows(data, learned, fresh, max_rows=cfg.max_rows, seed=seed)
            + embeddings.probe_rows(data, learned, fresh, cfg=cfg, seed=seed)
            + seed_protocol.rows_of(data, learned, fresh, seed=seed)
            + dinov2.rows_of(data, learned, fresh, frames=run.at("frames"), cfg=cfg))


# ---- tokenizer and decoder

def _train_tokenizer(run: Run) -> dict:
    """Codebooks that trained together with the encoder are taken over as they are."""
    if run.at("encoder").cfg.commitment_costs:
        model = tokenizer.adopted(run.cfg, load(run.at("encoder")).quantizer)
        with runs.exclusive(run):
            return runs.finished_or_cleared(run) or runs.save_model(run, model, wall_seconds=0.0)
    data = load(run.at("frames"))
    return tokenizer.train(run.cfg, embeddings_of(run), data.is_train, run)[1]


def _measure_tokenizer(run: Run) -> list[dict]:
    data, given, made = load(run.at("frames")), embeddings_of(run), tokens_of(run)
    model, num_codes = load(run), run.cfg.num_codes
    rows = codes.rows_of(data, made, given, model, num_codes=num_codes, seed=run.seed)
    if (base := _base_of(run)) is not None:
        rows += codes.same_rows(made[data.is_test], tokens_of(base)[data.is_test], num_codes)
    return rows + codes.game_rows(data, made) + codes.probe_rows(
        data, made, given, model, cfg=run.profile.probes, seed=run.seed)


def _base_of(run: Run) -> Run | None:
    """base's tokenizer, where it is made and quantizes the same embeddings to as many levels."""
    base = dataclasses.replace(run, profile=config.resolve(run.profile.name, games=run.games),
                               variant="base")
    own = [run.at("encoder").identity, run.cfg.num_levels]
    is_like = own == [base.at("encoder").identity, base.cfg.num_levels]
    return base if run.variant != "base" and is_like and runs.finished(base) else None


def _pictures(run: Run) -> decoder.Pictures:
    return decoder.Pictures(load(run.at("frames")), tokens_of(run), load(run.at("tokenizer")))


def shared_codes(run: Run, *, count: int = 3) -> list[dict]:
    """The coarse codes that all games use most evenly, see hd.measure.codes.most_shared."""
    model = load(run.at("decoder"))
    return codes.most_shared(load(run.at("frames")), tokens_of(run), embeddings_of(run),
                             load(run.at("tokenizer")).codebooks[0],
                             lambda vectors: decoder.as_frames(model(vectors)), count=count)


# ---- world model and dreams

def _train_world_model(run: Run) -> dict:
    codebooks = load(run.at("tokenizer")).codebooks
    _check_codebooks(run, codebooks)
    return world_model.train(run.cfg, windows_of(run), codebooks, run)[1]


def _load_world_model(run: Run) -> world_model.WorldModel:
    codebooks = load(run.at("tokenizer")).codebooks
    _check_codebooks(run, codebooks)
    return runs.load_model(run, world_model.build(run.cfg, codebooks))


def _check_codebooks(run: Run, codebooks: torch.Tensor) -> None:
    """Raise InputError that names both runs where the world model reads other codes."""
    source = run.at("tokenizer")
    world_model.check_codebooks(run.cfg, codebooks,
                                f"the tokenizer {source.name} ({source.identity[:10]})",
                                f"the world model {run.name} ({run.identity[:10]})")


def _measure_world_model(run: Run) -> list[dict]:
    model = load(run)
    return predictions.rows_of(model, windows_of(run)) + predictions.cost_rows(
        model, load(run.at("tokenizer")).codebooks,
        wall_seconds=runs.require(run)["wall_seconds"])


_dreamt: dict[tuple, dreams.Dreamt] = {}  # by folder and game: a page asks for the same again


def dreams_of(run: Run, game: str) -> dreams.Dreamt:
    """The run's dreams of a game; kept for the next caller."""
    run = run.at("imagination")
    model = load(run)  # refuses what is missing or damaged, also before what is kept
    key = run.folder, game
    if key not in _dreamt:
        while len(_dreamt) >= len(config.GAMES):
            del _dreamt[next(iter(_dreamt))]
        _dreamt[key] = dreams.dream(model, windows_of(run), game, run.cfg)
    return _dreamt[key]


def coordinate_probe(run: Run, game: str):
    """Reads where things are from the run's quantized vectors; see hd.measure.game_state."""
    made, model = tokens_of(run), load(run.at("tokenizer"))
    return game_state.coordinate_probe(
        load(run.at("frames")), game, lambda picks: tokenizer.quantized(model, made[picks]),
        cfg=run.profile.probes, seed=run.seed)


def _measure_dreams(run: Run) -> list[dict]:
    data, model, rows = load(run.at("frames")), load(run.at("tokenizer")), []
    for game in run.games:
        rows += dreams.rows_of(dreams_of(run, game), data, model, coordinate_probe(run, game))
    return rows


def dream_env(run: Run, game: str, *, horizon: int = 15, features: str = "codes") -> DreamEnv:
    """A trained world model as a gymnasium environment in which any agent can act.

    Dreams of `horizon` steps start from the context that run's imagination takes, real steps of
    the game's validation episodes; actions are ALE ids, render() draws the decoded codes. Of an
    online agent's run (stage "agent") they start from steps that the agent plays anew, and features
    are "hidden". Raises InputError in one line for an unknown game and where a stage is missing or
    its file does not fit.
    """
    config.allowed("game", game, run.games)
    if run.stage == "agent":
        return _agents_dream_env(run, horizon)
    run = run.at("imagination")
    model, data = policy.with_ale_ids(load(run), game), load(run.at("frames"))
    starts = data.window_starts(run.cfg.context, data.in_game(game) & data.is_val)
    rows = starts[:, None] + np.arange(run.cfg.context)
    tokens, actions = (torch.from_numpy(column[rows].astype(np.int64)).to(machine.device())
                       for column in (tokens_of(run), data.actions))
    return DreamEnv(model, tokens, actions[:, :-1], horizon=horizon, features=features,
                    decode=drawer_of(run))


def _agents_dream_env(run: Run, horizon: int) -> DreamEnv:
    made, cfg = load(run), dataclasses.replace(run.cfg, num_steps=DREAMS_FROM)
    store = contact.recorded(made.game, made.act(), cfg, num_steps=DREAMS_FROM, seed=run.seed)
    store.encode(made.codec)
    places = np.indices((cfg.num_emulators, store.length)).reshape(2, -1)
    tokens, actions = (torch.from_numpy(part.astype(np.int64)).to(machine.device())
                       for part in store.windows(*places, made.model.cfg.steps))
    return DreamEnv(made.model, tokens, actions[:, :-1], horizon=horizon, features="hidden",
                    decode=lambda codes: made.codec.decode(codes).cpu())


# ---- policy

def _dream_in(run: Run) -> world_model.WorldModel:
    """The world model that the run's policy dreams in, reading ALE ids."""
    return policy.with_ale_ids(load(run.at("world_model")), run.cfg.game)


def _train_policy(run: Run) -> dict:
    return policy.train(run.cfg, _dream_in(run), load(run.at("frames")), tokens_of(run), run)[1]


def _load_policy(run: Run) -> policy.ActorCritic:
    return runs.load_model(run, policy.build(run.cfg, _dream_in(run)))


def _measure_policy(run: Run) -> list[dict]:
    played, protocol = _played(run, act_of(run), run.cfg.game, run.cfg.eval_episodes,
                               run.cfg.eval_sticky)
    played["ram_policy"], training_steps = _play_ram_policy(run, protocol)
    _save_episodes(run, played)
    return control.rows_of(played, training_steps, seed=run.seed)


def _played(run: Run, act: Callable, game: str, num_episodes: int, sticky: float):
    """Episodes by player, "policy" first, and the protocol that all of them follow."""
    protocol = {"game": game, "num_episodes": num_episodes, "seed": run.seed, "sticky": sticky}
    played = {"policy": play.play(act, **protocol)}
    players = {"random": play.random_act}
    if atari.GAMES[game].tracker:
        players["tracker"] = play.tracker_act
    for name, player in players.items():
        played[name] = remembered(run, name, protocol,
                                  lambda player=player: play.play(player(game), **protocol))
    return played, protocol


def _save_episodes(run: Run, played: dict[str, list[dict]]) -> None:
    runs.save_beside(run, "episodes", [{"player": name, **episode}
                                       for name, rows in played.items() for episode in rows])


def _play_ram_policy(run: Run, protocol: dict) -> tuple[list[dict], int]:
    """Episodes of the policy on the true state, the first of those that the policy plays, and the
    real steps it was trained with; trained and played once per profile."""
    cfg = run.profile.ram_policy
    protocol = {**protocol, "num_episodes": min(cfg.eval_episodes, protocol["num_episodes"])}

    def train_and_play():
        agent, record = ram_policy.train(protocol["game"], cfg, seed=protocol["seed"],
                                         sticky=protocol["sticky"])
        return {"episodes": play.play(agent.act(), **protocol), **record}

    settings = {**protocol, "config": dataclasses.asdict(cfg)}
    found = remembered(run, "ram_policy", settings, train_and_play, code=[ram_policy.__file__])
    return found["episodes"], found["steps"]


def remembered(run: Run, player: str, settings: dict, make: Callable, *, code=()):
    """make(), kept as JSON below the profile's folder, so that all arms share it.

    settings and the contents of hd.play, of hd.atari and of the files in code decide it, and the
    versions of what draws the numbers; a file that is damaged or of something else is remade.
    """
    files = map(Path, (play.__file__, atari.__file__, *code))
    key = json.loads(json.dumps({
        "player": player, **settings, "code": [sha256_of(path) for path in files],
        "versions": {name: importlib.metadata.version(name)
                     for name in ("ale-py", "numpy", "torch")}}, sort_keys=True))
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = run.root / "players" / f"{player}-{digest[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        record = read_record(path)
        if record["key"] == key:
            return record["made"]
    made = make()
    write_record(path, {"key": key, "made": made})
    return made


# ---- entropy floor

def _measure_floor(run: Run) -> list[dict]:
    encode = entropy_floor.encoder_to_codes(load(run.at("encoder")), load(run.at("tokenizer")))
    return entropy_floor.rows_of(windows_of(run), encode, run.cfg, run.at("frames").cfg)


# ---- transfer: all games but one train encoder, codes and world model, then it meets that one

class Rotation:
    """One target game: its source games, and every training from them and on it.

    Encoder and codes never see the target game.
    """

    def __init__(self, run: Run, target: str):
        self.run, self.target = run.at("transfer"), target
        # What a variant says about the split or the games' shares is about all three games.
        model = dataclasses.replace(run.profile.world_model, num_steps=self.run.cfg.source_steps,
                                    eval_every=0, split="episodes", game_shares=())
        self.source = dataclasses.replace(
            run, stage="world_model", parent=self.run,
            games=tuple(game for game in run.games if game != target),
            profile=dataclasses.replace(run.profile, world_model=model))

    def pretraining(self, levels: int) -> Run:
        """The training of a world model on the source games."""
        if levels == 3:
            return self.source
        return _changed(self.source, transfer.LEVELS[levels], level_weights=(1.0, 0.0, 0.0))

    def adaptation(self, levels: int, budget: int, start: str) -> Run:
        """The training of a world model on budget steps of the target game."""
        before = self.pretraining(levels)
        origin = f"{start}_{before.identity[:10]}" if start == "pretrained" else start
        return _changed(before, f"{self.target}-{budget}-{transfer.LEVELS[levels]}-{origin}",
                        num_steps=self.run.cfg.num_steps)

    @functools.cached_property
    def data(self) -> Replay:
        """The stored steps of the target game."""
        stored = self.run.at("frames")
        runs.require(stored)
        return _opened(stored, (self.target,))

    @functools.cached_property
    def codes(self) -> np.ndarray:
        """(N, 3) int16: the target's steps in the codes of the source games."""
        def encode():
            rows = np.arange(len(self.data))
            seen = encoder.embed(load(self.source.at("encoder")), self.data, rows)
            return tokenizer.encode_all(load(self.source.at("tokenizer")), seen)

        return runs.cached_array(self.source.at("tokenizer"), f"tokens-{self.target}", encode)

    def source_windows(self, levels: int) -> Windows:
        """Windows of the source games."""
        run = self.pretraining(levels)
        return Windows(run.cfg, load(run.at("frames")),
                       transfer.first_levels(tokens_of(self.source), levels), seed=run.seed)

    def target_windows(self, levels: int, budget: int) -> Windows:
        """Windows of the target game; training may use budget steps."""
        run = self.adaptation(levels, budget, "scratch")
        return Windows(run.cfg, self.data, transfer.first_levels(self.codes, levels),
                       seed=run.seed, only=transfer.within_budget(self.data, budget))

    def model(self, levels: int, budget: int, start: str) -> world_model.WorldModel:
        """A finished world model; with budget 0 as it began."""
        before = self.pretraining(levels)
        if budget:
            return load(self.adaptation(levels, budget, start))
        if start == "pretrained":
            return load(before)
        return world_model.untrained(before.cfg, load(before.at("tokenizer")).codebooks,
                                     before.seed)

    def parts(self) -> Iterator[tuple[str, Run, Callable]]:
        """(what it is, its run, a function that makes it) of each part, in order."""
        source, games = self.source, ", ".join(self.source.games)
        yield f"episodes of {games}", source.at("frames"), self._share_episodes
        for stage in ("encoder", "tokenizer"):
            part = source.at(stage)
            yield f"{stage} of {games}", part, functools.partial(STAGES[stage].make, part)
        for levels, name in transfer.LEVELS.items():
            yield (f"world model of {games}, {name}", self.pretraining(levels),
                   functools.partial(self._pretrain, levels))
            for budget in self.run.cfg.budgets:
                for start in transfer.STARTS:
                    yield (f"{self.target} on {budget} steps, {name}, {start}",
                           self.adaptation(levels, budget, start),
                           functools.partial(self._adapt, levels, budget, start))

    def _share_episodes(self) -> None:
        """Link the stored episodes of the source games; those that cannot be linked are played."""
        have, want = self.run.at("frames"), self.source.at("frames")
        runs.require(have)
        want.folder.mkdir(parents=True, exist_ok=True)
        for path in (path for game in want.games for path in have.folder.glob(f"*-{game}.np[yz]")):
            with contextlib.suppress(OSError):
                os.link(path, want.folder / path.name)
        _collect(want)

    def _pretrain(self, levels: int) -> None:
        run = self.pretraining(levels)
        world_model.train(run.cfg, self.source_windows(levels),
                          load(run.at("tokenizer")).codebooks, run)

    def _adapt(self, levels: int, budget: int, start: str) -> None:
        """Train one world model on the target's steps, from the pre-trained one or from scratch."""
        run = self.adaptation(levels, budget, start)
        world_model.train(run.cfg, self.target_windows(levels, budget),
                          load(run.at("tokenizer")).codebooks, run,
                          start=self.model(levels, 0, start))


def _changed(run: Run, part: str, **fields) -> Run:
    """The run of a part whose world model has other fields."""
    model = dataclasses.replace(run.profile.world_model, **fields)
    profile = dataclasses.replace(run.profile, world_model=model)
    return dataclasses.replace(run, part=part, profile=profile)


def rotations(run: Run) -> list[Rotation]:
    """One for each game as the target; raises InputError unless there are three games."""
    if len(run.games) < 3:
        raise InputError(f"transfer needs two source games and a target: three games; got "
                         f"{', '.join(run.games)}")
    return [Rotation(run, target) for target in run.games]


def _train_transfer(run: Run) -> dict:
    """Make every part that is not finished.

    A part is a training with a folder of its own, so that an interrupted run continues inside it.
    """
    seconds = 0.0
    for rotation in rotations(run):
        for what, part, make_part in rotation.parts():
            if runs.finished_or_cleared(part) is None:
                if run.must_stop():
                    raise runs.TimeLimitReached(f"transfer stopped before {what}; what is "
                                                f"finished is kept, the same command continues")
                print(what, flush=True)
                make_part()
            seconds += runs.require(part)["wall_seconds"]
    with runs.exclusive(run):
        return runs.finished_or_cleared(run) or runs.finish(run, [], wall_seconds=seconds)


def _measure_transfer(run: Run) -> list[dict]:
    """Of each target, for each budget and before any."""
    rows = []
    for rotation in rotations(run):
        for budget in (0, *rotation.run.cfg.budgets):
            seen = {levels: rotation.target_windows(levels, budget)
                    for levels in transfer.LEVELS}
            rows += transfer.rows_of(
                seen, lambda levels, start, of=rotation, budget=budget: of.model(
                    levels, budget, start), budget=budget)
    return rows


# ---- the online agent

def game_of(run: Run) -> str:
    """The one game of an agent's run; raises InputError where the run names several."""
    if len(run.games) != 1:
        raise InputError(f"an agent learns one game; got {', '.join(run.games)}: name one of them")
    return run.games[0]


def _train_agent(run: Run) -> dict:
    if run.cfg.learner:
        return _train_model_free(run)
    game, start = game_of(run), None
    for before in run.upstream:
        if runs.finished_or_cleared(before) is None:
            print(f"first an agent of {game_of(before)}, from whose world model this one starts")
            make(before)
        start = load(before).model
    return agent.train(run.cfg, run.profile.place_model, run.profile.agent_policy, game, run,
                       start=start)[1]


def _train_model_free(run: Run) -> dict:
    with runs.exclusive(run):
        if record := runs.finished_or_cleared(run):
            return record
        made, record = model_free.train(run.cfg, game_of(run), seed=run.seed,
                                        must_stop=run.must_stop)
        return runs.save_model(run, made, **record)


def _load_agent(run: Run) -> agent.Agent | model_free.ModelFree:
    if run.cfg.learner:
        return runs.load_model(run, model_free.ModelFree(game_of(run)))
    return runs.load_model(run, agent.Agent(run.cfg, run.profile.place_model,
                                            run.profile.agent_policy, game_of(run)))


def _measure_agent(run: Run) -> list[dict]:
    game, record = game_of(run), runs.require(run)
    played, _ = _played(run, load(run).act(), game, run.cfg.eval_episodes, run.cfg.sticky)
    _save_episodes(run, played)
    by_chance = float(np.mean([episode["return"] for episode in played["random"]]))
    return (control.rows_of(played, seed=run.seed)
            + control.curve_rows(record.get("history", []), game=game, random_return=by_chance)
            + _rows_of_new_play(run, load(run)))


def _rows_of_new_play(run: Run, made: agent.Agent) -> list[dict]:
    """Points won while it learned; what the codes hold and what dreams know of contacts, in as many
    new steps of each player as a fifth of the agent's own; none where what it played is not there
    (restored weights, a learner without a model)."""
    cfg = run.cfg
    if not (run.folder / experience.PLAYED).exists():
        return []
    players = {"random": play.random_act(made.game), "agent": made.act()}
    if atari.GAMES[made.game].tracker:
        players["tracker"] = play.tracker_act(made.game)
    fitted_on = experience.Store.saved(cfg, made.codec.num_places, run.folder)
    played = contact.new_play(made, cfg, players, num_steps=cfg.num_steps // 5, seed=run.seed)
    return (control.share_won_rows(fitted_on.rewards[:, :fitted_on.length], cfg.prefill,
                                   game=made.game)
            + places.rows_of(made, played, cfg=run.profile.probes, seed=run.seed)
            + places.changed_pixels_rows(made, played, agent.shifts_of(cfg, run.seed))
            + contact.rows_of(made, played, fitted_on, seed=run.seed)
            + contact.held_action_rows(made, made.act(), cfg, seed=run.seed))


# ---- the stages

@dataclasses.dataclass(frozen=True)
class Stage:
    """make(run) -> record; load(run) -> what it made; measure(run) -> rows of its table."""

    make: Callable[[Run], dict]
    load: Callable[[Run], object]
    measure: Callable[[Run], list[dict]]


def _nothing_to_make(run: Run) -> dict:
    return {}


def _nothing_to_load(run: Run) -> None:
    raise InputError(f"stage {run.stage} makes a table and nothing to load")


STAGES = {
    "frames": Stage(_collect, _open_frames, _measure_frames),
    "encoder": Stage(_train_encoder, _load_encoder, _measure_encoder),
    "tokenizer": Stage(_train_tokenizer,
                       lambda run: runs.load_model(run, tokenizer.build(run.cfg)),
                       _measure_tokenizer),
    "decoder": Stage(
        lambda run: decoder.train(run.cfg, _pictures(run), run)[1],
        lambda run: runs.load_model(run, decoder.Decoder(run.cfg)),
        lambda run: decoded.rows_of(_pictures(run), load(run),
                                     max_rows=run.profile.probes.max_rows)),
    "world_model": Stage(_train_world_model, _load_world_model, _measure_world_model),
    "imagination": Stage(_nothing_to_make, lambda run: load(run.at("world_model")),
                         _measure_dreams),
    "policy": Stage(_train_policy, _load_policy, _measure_policy),
    "entropy_floor": Stage(_nothing_to_make, _nothing_to_load, _measure_floor),
    "transfer": Stage(_train_transfer, _nothing_to_load, _measure_transfer),
    "agent": Stage(_train_agent, _load_agent, _measure_agent),
}


# ---- the validation suite

def check(run: Run) -> Iterator[checks.Check]:
    """(what, whether it holds, detail) about the run's stored steps, the masks and the model."""
    return checks.suite(load(run.at("frames")), run.profile.world_model)


# ---- ablations

def compare(ablation: str, *, profile: str, seeds, games=config.GAMES,
            time_limit: float | None = None) -> pd.DataFrame:
    """Make and measure base and every arm of an ablation, for all seeds; returns their tables.

    Arms share the stages in which they agree. Finished arms are not trained again, and not measured
    again by the code that measured them; the tables of chosen.also are saved, not returned.
    Raises InputError for an unknown ablation, no seeds or one given twice, and for games without
    one that an arm needs.
    """
    chosen, seeds = config.ablation(ablation), config.check_seeds(seeds)
    for variant in config.variants_of(ablation):
        config.resolve(profile, variant, games=config.check_games(games))
    deadline = time.monotonic() + time_limit if time_limit else None
    tables = []
    for seed in seeds:
        for variant in config.variants_of(ablation):
            left = max(deadline - time.monotonic(), 1e-3) if deadline else None
            run = runs.start(chosen.measure, profile=profile, variant=variant, seed=seed,
                             games=games, time_limit=left)
            print(f"{variant}, seed {seed}", flush=True)
            for stage in (chosen.measure, *chosen.also):
                made = run.at(stage)
                make(made)
                table = measured(made)
                if stage == chosen.measure:
                    tables.append(table)
    return pd.concat(tables, ignore_index=True)


CURVES = {  # what to watch while a stage trains
    "encoder": ("loss",), "tokenizer": ("squared_error",), "decoder": ("loss",),
    "world_model": ("codes", "l0_accuracy", "l0_changed_accuracy"),
    "policy": ("imagined_return",), "agent": ("return",)}


def curve_axis(stage: str) -> dict[str, str]:
    """What a stage's curves are drawn over: keyword arguments of figures.learning_curves."""
    if stage == "world_model":
        return {"x": "exposures", "xlabel": "exposures of each training step"}
    return {"x": "step", "xlabel": "training step"}


def histories(ablation: str, *, profile: str, seed: int, games=config.GAMES) -> dict[str, list]:
    """The learning curve of each measured arm of one seed: variant -> list of dicts.

    World models have "exposures" beside "step": how often each training step was seen by then.
    """
    chosen, curves = config.ablation(ablation), {}
    for variant in config.variants_of(ablation):
        run = runs.start(chosen.measure, profile=profile, variant=variant, seed=seed, games=games)
        path = run.root / "results" / run.stage / f"{run.name}.csv"
        if not path.with_name(f"{run.name}-history.csv").exists():
            continue  # nothing trained here: codebooks that came with the encoder
        table = runs.load_beside(run, "history")
        found = runs.load_table(path).set_index("metric")["value"]
        if "exposures" in found.index:
            table["exposures"] = found["exposures"] * table["step"] / table["step"].iloc[-1]
        curves[variant] = [entry.dropna().to_dict() for _, entry in table.iterrows()]
    return curves


def figures_folder(profile: str) -> Path:
    """Where a profile's figures that belong to no single run are saved."""
    return artifacts_root() / profile / "figures"
