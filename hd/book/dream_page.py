"""The playable dream: an agent, and real games to start from, as files of a page without a server.

The scripts beside SCRIPTS' index.html run the agent's world model, its actor, its critic and its
codec's decoder in the browser. A game's data is one script that any page may load from a disk:
weights in half precision, the large ones in bytes; the states that dreams start from, what really
followed, and PyTorch's outputs at these states, to which the browser's are held.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from hd import stages
from hd.agent import Agent
from hd.atari import ACTION_MEANINGS, GAMES, AtariGame
from hd.book.publishing import check_can_publish
from hd.config import AgentConfig, AgentPolicyConfig, InputError, PlaceModelConfig
from hd.experience import Store
from hd.measure import contact
from hd.run import runs
from hd.run.machine import git_state
from hd.run.runs import Run, rng_for
from hd.run.storage import ROOT, shown, write_atomically, write_text
from hd.run.weights import SCALE

PAGES = ROOT / "book" / "_scripts" / "dream"
SCRIPTS = ("index.html", "model.js", "page.js", "page.css")
LISTED = "games.js"  # the games whose data lie beside it
BEGIN, END = "(window.HD_DREAMS = window.HD_DREAMS || []).push(", ");\n"
NUM_STARTS = 6
PLAYED = 4800  # new real steps that starts are chosen from
AFTER = 100  # real steps that are kept after a start
POINTS_IN = (10, 40)  # after so many steps, and before so many, a start has points in the real game
# Not needed to dream or to play, or made again from what is there.
LEFT_OUT = ("model.codebooks", "policy.slow_critic.", "policy.return_range", "policy.num_ranges",
            "policy.actor.is_legal", "codec.quantizer.counts", "codec.quantizer.sums",
            "codec.quantizer.is_initialised")
# Begins the names of what is kept in bytes, where it has rows: most of the weights.
IN_BYTES = ("policy.critic.layers.", "policy.actor.layers.", "model.seen.", "model.acted.")
KINDS = {"int8": np.int8, "float16": np.float16, "float32": np.float32}


# ---- a game's data

def dream_of(run: Run, *, num_steps: int | None = None) -> dict:
    """All that the page knows of a finished agent's run: configuration, provenance, weights, starts
    and cases. num_steps: that the agent plays anew, to start from; PLAYED unless given.

    Raises InputError where the run is missing or damaged, or where what is played anew is too
    short.
    """
    record, game, num_steps = runs.require(run), stages.game_of(run), num_steps or PLAYED
    missing = tuple(record.get("left_out", ()))
    tensors = _packed({name: tensor.cpu().float()
                       for name, tensor in stages.load(run).state_dict().items()
                       if not name.startswith(LEFT_OUT + missing)})
    dream = {
        "game": game, "title": GAMES[game].title, "legal": list(GAMES[game].actions),
        "meanings": list(ACTION_MEANINGS), "keys": keys_of(game),
        "config": {"agent": dataclasses.asdict(run.cfg),
                   "place_model": dataclasses.asdict(run.profile.place_model),
                   "agent_policy": dataclasses.asdict(run.profile.agent_policy)},
        "has_critic": not any("policy.critic.".startswith(name) for name in missing),
        "made_by": {"profile": run.profile.name, "variant": run.variant, "seed": run.seed,
                    "steps": run.cfg.num_steps, "identity": run.identity,
                    "commit": record.get("made_by", record["git"])["commit"],
                    "written_at": git_state()},
        "tensors": tensors}
    agent = agent_of(dream)
    dream["starts"] = starts_of(agent, run.cfg, num_steps=num_steps, seed=run.seed)
    dream["starts_from"] = (
        f"Dreams start from {NUM_STARTS} states of {num_steps:,} new steps, which the agent played "
        f"after it had learned and never learns from: states with points {POINTS_IN[0]} to "
        f"{POINTS_IN[1]} steps later, where there are enough, that differ from each other in as "
        f"many places as possible.")
    dream["cases"], cases = cases_of(agent, dream["starts"])
    dream["tensors"] = tensors | cases
    return dream


def keys_of(game: str) -> dict[str, str]:
    """What each arrow key, and "fire", does: a word of ALE's action names. A game without UP and
    DOWN whose player is known to move up and down only calls these RIGHT and LEFT."""
    legal = {ACTION_MEANINGS[action] for action in GAMES[game].actions}
    sides = {"left": "LEFT", "right": "RIGHT"}
    labels = GAMES[game].labels
    if "UP" in legal:
        keys = {"up": "UP", "down": "DOWN", **sides}
    elif "player_y" in labels and "player_x" not in labels:
        keys = {"up": "RIGHT", "down": "LEFT"}
    else:
        keys = sides
    return keys | ({"fire": "FIRE"} if "FIRE" in legal else {})


def agent_of(dream: Mapping) -> Agent:
    """The agent whose weights a dream holds, in eval mode; the browser computes with the same."""
    configs = dream["config"]
    agent = Agent(AgentConfig(**configs["agent"]), PlaceModelConfig(**configs["place_model"]),
                  AgentPolicyConfig(**configs["agent_policy"]), dream["game"])
    state = {name: torch.from_numpy(np.array(tensor, np.float32))
             for name, tensor in dream["tensors"].items() if not name.startswith("case.")}
    scales = {name: state.pop(name) for name in dream["tensors"] if name.endswith(SCALE)}
    state |= {name.removesuffix(SCALE): state[name.removesuffix(SCALE)] * scale
              for name, scale in scales.items()}
    found = agent.load_state_dict(state, strict=False)
    known = LEFT_OUT if dream["has_critic"] else (*LEFT_OUT, "policy.critic.")
    lost = [name for name in found.missing_keys if not name.startswith(known)]
    if lost or found.unexpected_keys:
        raise InputError(f"the dream of {dream['game']} does not hold the weights of this code's "
                         f"agent: {', '.join([*lost, *found.unexpected_keys])[:200]}")
    agent.codec.quantizer.is_initialised.fill_(True)
    agent.model.read_codebooks(agent.codec.quantizer.codebooks)
    return agent.eval()


def _packed(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Halves; of what is kept in bytes, bytes and what each row (rows, 1, ...) of them is
    multiplied by."""
    packed = {}
    for name, tensor in state.items():
        if name.startswith(IN_BYTES) and tensor.ndim > 1:
            size = tensor.abs().amax(tuple(range(1, tensor.ndim)), keepdim=True)
            scale = (size / 127).clamp_min(1e-12)
            packed[name] = (tensor / scale).round().to(torch.int8).numpy()
            packed[name + SCALE] = scale.numpy()
        else:
            packed[name] = tensor.half().numpy()
    return packed


def starts_of(agent: Agent, cfg: AgentConfig, *, num_steps: int, seed: int) -> list[dict]:
    """NUM_STARTS states of new real episodes that the agent plays, and what followed.

    Each has a context of the same episode before it and AFTER steps of it behind it, with points
    within POINTS_IN where there are enough such states. The first is drawn; each further one is the
    state with the most places that no chosen state shows alike.
    """
    drawn = int(rng_for(seed, "dream page").integers(2**31))
    playing = dataclasses.replace(cfg, num_steps=num_steps)
    store = contact.recorded(agent.game, agent.act(), playing, num_steps=num_steps, seed=drawn)
    store.encode(agent.codec)
    steps = agent.model.cfg.steps
    emulators, times = _candidates(store, steps)
    tokens = store.tokens[0, emulators, times]
    picked = [int(rng_for(seed, "dream start").integers(len(times)))]
    apart = np.full(len(times), np.inf)
    while len(picked) < NUM_STARTS:
        differing = (tokens != tokens[picked[-1]]).any(1).sum(1)
        apart = np.minimum(apart, differing)
        picked.append(int(apart.argmax()))
    _, info = AtariGame(agent.game).reset(seed=0)
    return [_start(store, int(emulators[k]), int(times[k]), steps, info["lives"]) for k in picked]


def _candidates(store: Store, steps: int):
    """Emulators and times (N,) of the states that starts_of chooses from."""
    last = store.length - AFTER
    emulators, times = np.indices((len(store.actions), max(0, last))).reshape(2, -1)
    behind = times[:, None] + np.arange(AFTER)
    fits = ((times - steps + 1 >= store.starts[emulators, times])
            & ~store.ends[emulators[:, None], behind].any(1))
    has_points = store.rewards[emulators[:, None], behind[:, slice(*POINTS_IN)]].any(1)
    chosen = fits & has_points if (fits & has_points).sum() >= NUM_STARTS else fits
    if chosen.sum() < NUM_STARTS:
        raise InputError(f"{store.actions.shape[0] * store.length} new steps hold "
                         f"{chosen.sum()} states to start from, with {AFTER} steps behind them; "
                         f"{NUM_STARTS} are needed")
    return emulators[chosen], times[chosen]


def _start(store: Store, e: int, t: int, steps: int, lives: int) -> dict:
    """A state and what followed it: tokens (T, L, G) of the last T steps, the actions between
    them, the lives left; then AFTER actions, rewards and continues, and AFTER + 1 frames as one
    picture, one below the other."""
    before, behind = slice(t - steps + 1, t + 1), slice(t, t + AFTER)
    lost = int((store.continues[e, store.starts[e, t]:t] == 0).sum())
    film = store.frames[e, t:t + AFTER + 1].reshape(-1, store.frames.shape[-1])
    _, png = cv2.imencode(".png", film, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return {"episode_step": int(t - store.starts[e, t]), "lives": max(1, lives - lost),
            "tokens": store.tokens[0, e, before].tolist(),
            "past": store.actions[e, before][:-1].tolist(),
            "actions": store.actions[e, behind].tolist(),
            "rewards": store.rewards[e, behind].tolist(),
            "continues": store.continues[e, behind].tolist(),
            "next": store.tokens[0, e, t + 1].tolist(),
            "film": f"data:image/png;base64,{base64.b64encode(png).decode()}"}


@torch.no_grad()
def cases_of(agent: Agent, starts: list[dict]) -> tuple[list[dict], dict]:
    """PyTorch's outputs, in float32, at each start under the action really taken there.

    -> for each start the place whose codes are asked for, one that really changed where there is
    one, and its true codes, of which each level is given the coarser ones; and arrays: change
    (N, G), codes (N, L, K) logits, outcome (N, 4) logits, actor (N, legal) log-probabilities, value
    (N,), all named "case." and that.
    """
    model, policy = agent.model, agent.policy
    tokens = torch.tensor([start["tokens"] for start in starts])
    past, now = (torch.tensor([start[name] for start in starts]) for name in ("past", "actions"))
    following = torch.tensor([start["next"] for start in starts])
    dream = model.dreamer(tokens, past, horizon=1)
    acted = model.act(dream.state, now[:, 0])
    changed = (following != tokens[:, -1]).any(1)
    at = changed.float().argmax(1)
    rows = torch.arange(len(starts))
    asked = torch.zeros_like(changed)
    asked[rows, at] = True
    known, codes = model.at_places(acted, asked, dream.places), following[rows, :, at]
    logits = [model.code_logits(level, known, codes[:, :level], dream.tables, dream.keys)
              for level in range(model.num_levels)]
    seen = dream.features()
    found = {"change": model.change(acted)[..., 0], "codes": torch.stack(logits, 1),
             "outcome": torch.cat([model.outcome(acted)[0], model.outcome(acted)[1][:, None]], 1),
             "actor": policy.actor(seen)[:, policy.actor.is_legal], "value": policy.critic(seen)}
    return ([{"place": int(place), "codes": each} for place, each in zip(at, codes.tolist())],
            {f"case.{name}": value.float().numpy() for name, value in found.items()})


# ---- a game's data as a script

def write(dream: Mapping, path: Path) -> Path:
    """A dream as a script; returns the path.

    The tensors' bytes stand one after the other, those of each tensor sorted by their place in the
    number, since first bytes are alike and can be packed (zlib).
    """
    tensors = dream["tensors"]
    packed = zlib.compress(b"".join(_planes(tensor) for tensor in tensors.values()), 9)
    content = {**dream, "tensors": [
        {"name": name, "shape": tensor.shape, "kind": tensor.dtype.name}
        for name, tensor in tensors.items()], "bytes": base64.b64encode(packed).decode()}
    write_text(path, f"{BEGIN}{json.dumps(content, separators=(',', ':'))}{END}")
    return path


def read(path: Path) -> dict:
    """What write wrote; raises InputError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
        dream = json.loads(text.removeprefix(BEGIN).removesuffix(END))
        packed, tensors, at = zlib.decompress(base64.b64decode(dream.pop("bytes"))), {}, 0
        for each in dream["tensors"]:
            kind, shape = np.dtype(KINDS[each["kind"]]), each["shape"]
            size = kind.itemsize * int(np.prod(shape))
            planes = np.frombuffer(packed[at:at + size], np.uint8).reshape(kind.itemsize, -1)
            tensors[each["name"]] = planes.T.copy().view(kind).reshape(shape)
            at += size
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise InputError(f"{shown(path)} is no dream that this code wrote: {error}") from None
    return {**dream, "tensors": tensors}


def _planes(tensor: np.ndarray) -> bytes:
    little = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
    return little.reshape(-1, 1).view(np.uint8).T.tobytes()


# ---- pages

def publish(agents: Sequence[Run], *, root: Path = ROOT) -> list[Path]:
    """Write the dreams of finished agents, of a game each, into the book below root; returns the
    files.

    Raises InputError before anything is written: when the tree is dirty, or an agent is missing or
    was not made from a clean commit.
    """
    check_can_publish(agents, root)
    folder = root / PAGES.relative_to(ROOT)
    return [*[_add(dream, folder) for dream in [dream_of(run) for run in agents]], folder / LISTED]


def write_page(run: Run, folder: Path, *, num_steps: int | None = None) -> Path:
    """The page of the book with this run's dream alone, in a folder; returns its index.html."""
    dream = dream_of(run, num_steps=num_steps)
    for name in SCRIPTS:
        write_atomically(folder / name, lambda aside, name=name: shutil.copyfile(PAGES / name,
                                                                                aside))
    for old in folder.glob("dream-*.js"):
        old.unlink()
    _add(dream, folder)
    return folder / "index.html"


def _add(dream: Mapping, folder: Path) -> Path:
    """Write a dream into a folder and list all that are there, in the order of GAMES."""
    path = write(dream, folder / f"dream-{dream['game']}.js")
    games = [{"game": name, "title": game.title, "file": f"dream-{name}.js"}
             for name, game in GAMES.items() if (folder / f"dream-{name}.js").exists()]
    write_text(folder / LISTED, f"window.HD_GAMES = {json.dumps(games)};\n")
    return path
