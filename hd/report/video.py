"""Videos of dreams beside the truth, as files and inside pages."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import imageio.v2 as imageio
import numpy as np
import torch

from hd import config, play, stages
from hd.atari import check_frames
from hd.config import GAMES, InputError
from hd.encoder import embed_frames
from hd.imagination import imagine, replayed
from hd.measure import dreams
from hd.policy import with_ale_ids
from hd.report import pictures, published
from hd.run import runs
from hd.run.machine import device
from hd.run.runs import Run
from hd.run.storage import write_atomically

PLAYERS = ("recorded", "random", "agent", "tracker", "online")
ONLINE_HORIZON = 24  # steps of an online agent's dream before it starts again
VIDEO_BYTES = 8_000_000  # what a page may hold
MAX_STEPS = 3000  # of a video
NO_FFMPEG = "a video needs the package imageio-ffmpeg, which is not installed"


def side_by_side_video(columns: Mapping[str, np.ndarray], path: Path | str, *, fps: int = 15,
                       scale: int = 3, notes: Sequence[str] | None = None,
                       marks: Mapping[str, np.ndarray] | None = None) -> Path | None:
    """Write an mp4 (h264, yuv420p: plays in any browser) of videos beside each other.

    columns: name, written on top, -> (T, 84, 84) uint8, all of the same T. notes: T texts for the
    line below the names. marks: name -> (T, 2) column and row to be circled, NaN for none.
    Returns the path; None, after a line that says so, without the package imageio-ffmpeg. Raises
    InputError for unequal shapes or lengths, another ending than .mp4, and when the disk is full.
    """
    path = _mp4(path)
    shapes = {np.shape(frames) for frames in columns.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 3 or not shape[0]:
        raise InputError(f"videos side by side need the same shape (T, height, width); got "
                         f"{ {name: np.shape(frames) for name, frames in columns.items()} }")
    for frames in columns.values():
        check_frames(frames, shape[1:])
    for name, along in {**({"notes": notes} if notes else {}), **(marks or {})}.items():
        if len(along) != shape[0]:
            raise InputError(f"{name} must have one entry for each of the {shape[0]} frames; got "
                             f"{len(along)}")
    if not can_write_videos():
        print(f"{Path(path).name} is not written: {NO_FFMPEG}")
        return None

    def write(aside):
        # One thread and no version tags: the same frames give the same bytes.
        with imageio.get_writer(aside, format="FFMPEG", fps=fps, codec="libx264", quality=8,
                                pixelformat="yuv420p", macro_block_size=2, output_params=[
                                    "-threads", "1", "-fflags", "+bitexact", "-flags:v",
                                    "+bitexact", "-movflags", "+faststart"]) as video:
            for t in range(shape[0]):
                video.append_data(_titled({name: frames[t] for name, frames in columns.items()},
                                          scale, notes[t] if notes else "",
                                          {name: at[t] for name, at in (marks or {}).items()}))
        _check_whole(aside, shape[0])

    write_atomically(path, write)
    return path


def can_write_videos() -> bool:
    """Whether the package is there that brings ffmpeg; it is large, and some machines lack it."""
    return find_spec("imageio_ffmpeg") is not None


def _check_whole(path: Path, num_frames: int) -> None:
    """Raise OSError unless all frames can be read back: imageio drops ffmpeg's error of writing."""
    import imageio_ffmpeg
    try:
        found = imageio_ffmpeg.count_frames_and_secs(str(path))[0]
    except RuntimeError:
        found = 0
    if found != num_frames:
        raise OSError(f"only {found} of the video's {num_frames} frames arrived, is the disk full?")


def _titled(columns: Mapping[str, np.ndarray], scale: int, note: str,
            marks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Frames (84, 84) by name -> one picture (height, width, 3), even in both, names on top, and
    circles around marks (2,)."""
    height, width = (scale * side for side in next(iter(columns.values())).shape)
    gap, head = 8, 44
    picture = np.full((head + height + height % 2, len(columns) * (width + gap), 3), 255, np.uint8)
    picture = picture[:, :picture.shape[1] // 2 * 2]
    for i, (name, frame) in enumerate(columns.items()):
        left = i * (width + gap)
        big = np.repeat(np.repeat(frame, scale, 0), scale, 1)
        big = np.repeat(big[..., None], 3, 2)
        if name in marks and np.isfinite(marks[name]).all():
            centre = tuple(int(x) for x in (marks[name] + 0.5) * scale)
            cv2.circle(big, centre, 3 * scale, (230, 60, 40), 2, cv2.LINE_AA)
        picture[head:head + height, left:left + width] = big
        cv2.putText(picture, name, (left + 2, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1,
                    cv2.LINE_AA)
    cv2.putText(picture, note, (2, 37), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 90, 150), 1,
                cv2.LINE_AA)
    return picture


def embed_video(path: Path | str | None):
    """The mp4 as IPython HTML holding the video itself: the built book needs no other file.

    None for the video that could not be written. The bytes depend on the ffmpeg version: tag the
    cell nbval-ignore-output.
    """
    if path is None:
        return None
    from IPython.display import HTML
    content = Path(path).read_bytes()
    if len(content) > VIDEO_BYTES:
        raise InputError(f"{Path(path).name} has {len(content):,} bytes; a page holds videos of at "
                         f"most {VIDEO_BYTES:,}")
    return HTML('<video controls loop muted playsinline style="max-width: 100%" '
                f'src="data:video/mp4;base64,{base64.b64encode(content).decode()}"></video>')


def show_published(figures: Path | None = None) -> None:
    """In a notebook: the published videos of base's and hi-dreamer's dreams at the largest profile
    that has both; a line of text where none has."""
    from IPython.display import Markdown, display
    films = published.dreams(figures=figures)
    for variant, film in films.items():
        profile = film.parents[1].name
        display(Markdown(f"**{variant}**, {profile}, seed 0"))
        published.show(film, f"dreams of {variant}, {profile}", figures=figures)
    if not films:
        print("No profile has published dreams of both variants.")


def _mp4(path: Path | str) -> Path:
    if Path(path).suffix.lower() != ".mp4":
        raise InputError(f"a video's name must end in .mp4; got {Path(path).name}")
    return Path(path)


def play_video(*, game: str, profile: str = "quick", variant: str = "base", seed: int = 0,
               games=GAMES, policy: str = "recorded", steps: int = 120,
               out: Path | str | None = None) -> Path:
    """A video of the real game, of its codes decoded, and of the dream from the same context.

    policy: who acts in the real game: "random", "agent" (the policy that only dreamed), "tracker",
    "online" (hd.agent, with its own codes and its own dream), or "recorded", a stored held-out
    episode. The dream gets the same actions and starts again from real context whenever
    its horizon is over; the line on top says where. The ball (MsPacman: the player) is circled
    where RAM has it, and where a probe reads it from the real and from the dreamed codes; without
    stored frames to fit that probe on, by RAM only. games: those of the chain, but for "online",
    whose agent knows one game. steps: after the context. out: the mp4, by default
    play-<game>-<policy>.mp4 among the run's figures. Raises InputError in one line.
    """
    config.allowed("game", game, config.check_games(games))
    config.allowed("policy", policy, PLAYERS)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise InputError(f"steps must be a whole number from 1 to {MAX_STEPS}; got {steps!r}")
    if out:
        _mp4(out)
    if not can_write_videos():
        raise InputError(NO_FFMPEG)
    if policy == "online":
        return online_video(runs.start("agent", profile=profile, variant=variant, seed=seed,
                                       games=[game]), steps=steps, out=out)
    run = runs.start("imagination", profile=profile, variant=variant, seed=seed, games=games)
    watch = _recorded if policy == "recorded" else functools.partial(_played, policy)
    frames, ram, tokens, actions = watch(run, game, run.cfg.context + steps)
    dreamed, notes = _dreamed(run, game, tokens, actions)
    drawn = stages.drawer_of(run)(torch.stack([tokens, dreamed]))
    columns = {f"real game ({policy})": frames, "its codes, decoded": drawn[0], "dream": drawn[1]}
    found = pictures.places(run, game, ram, _readable(run, tokens=tokens, dreamed=dreamed))
    out = Path(out or run.root / "figures" / run.name / f"play-{game}-{policy}.mp4")
    return side_by_side_video(columns, out, notes=notes, marks=dict(zip(columns, found.values())))


def _readable(run: Run, **codes) -> dict:
    """The codes, if there are stored frames that a probe can learn to read them from; else none,
    so that published weights play in a clone that has collected nothing."""
    if runs.finished(run.at("frames")):
        return codes
    print("Only what RAM says is circled: the probe that reads codes is fitted on stored frames. "
          f"To collect them: {run.at('frames').command}")
    return {}


def _recorded(run: Run, game: str, length: int):
    """Of a stretch of n = length steps of a test episode: frames (n, 84, 84), ram (n, 128), tokens
    (n, 3), actions (n,)."""
    data, codes = stages.load(run.at("frames")), stages.tokens_of(run)
    starts = data.window_starts(length, data.is_test & data.in_game(game))
    if not len(starts):
        raise InputError(f"no test episode of {game} has {length} steps; ask for fewer steps")
    rows = runs.rng_for(run.seed, "play", game).choice(starts) + np.arange(length)
    return (data.newest(rows), data.ram[rows], torch.from_numpy(codes[rows].astype(np.int64)),
            torch.from_numpy(data.actions[rows].astype(np.int64)))


def _played(policy: str, run: Run, game: str, length: int):
    """As _recorded, but of a fresh real episode that this policy plays; n is less if it ends."""
    trained_for = run.profile.policy.game
    if policy == "agent" and game != trained_for:
        raise InputError(f"the agent of variant {run.variant} plays {trained_for}; for {game} "
                         f"take variant policy_game.{game}")
    players = {"random": lambda: play.random_act(game),
               "tracker": lambda: play.tracker_act(game),
               "agent": lambda: stages.act_of(run)}
    act, stacks, ram, actions = players[policy](), [], [], []

    def recorded(seen, generator):
        chosen = act(seen, generator)
        if len(stacks) < length:
            stacks.append(seen.frames[0])
            ram.append(seen.ram[0])
            actions.append(int(chosen[0]))
        return chosen

    eyes, codes = stages.load(run.at("encoder")), stages.load(run.at("tokenizer"))
    play.play(recorded, game, num_episodes=1, seed=run.seed,
                    sticky=run.profile.policy.eval_sticky)
    if len(stacks) <= run.cfg.context:
        raise InputError(f"the episode ended after {len(stacks)} steps, before its dream began")
    frames = torch.from_numpy(np.stack(stacks))
    tokens = torch.cat([codes.encode(embed_frames(eyes, part)) for part in frames.split(256)])
    return frames[:, -1].numpy(), np.stack(ram), tokens.cpu(), torch.tensor(actions)


def online_video(run: Run, *, steps: int, at_end: bool = False,
                 out: Path | str | None = None) -> Path:
    """play_video of an online agent's run, of the first steps of an episode, or with at_end of its
    last; returns the mp4."""
    columns, notes = _online(run, slice(-steps, None) if at_end else slice(steps))
    named = f"play-{stages.game_of(run)}-online.mp4"
    return side_by_side_video(columns, Path(out or run.root / "figures" / run.name / named),
                              notes=notes)


@torch.no_grad()
def _online(run: Run, part: slice):
    """A part of an episode of an online agent: columns of frames (n, 84, 84), and what to say
    about each step. The dream starts again from real context every ONLINE_HORIZON steps."""
    made, frames, actions, notes, total = stages.load(run), [], [], [], 0.0
    act, context = made.act(), made.model.cfg.steps

    def recorded(seen, generator):
        chosen = act(seen, generator)
        frames.append(seen.frames[0, -1])
        actions.append(int(chosen[0]))
        return chosen

    def count(episode, frame, reward):
        nonlocal total
        total += reward
        notes.append(f"{total:+g} points")

    play.play(recorded, made.game, num_episodes=1, seed=run.seed, sticky=run.cfg.sticky,
              watch=count)
    frames, notes = np.stack(frames[part]), notes[part]
    tokens, actions = made.codec.encode(frames).long(), torch.tensor(actions[part])
    dreamed = tokens.clone()
    for last in range(context - 1, len(tokens) - 1, ONLINE_HORIZON):
        to_do = actions[last:last + ONLINE_HORIZON][None].to(tokens.device)
        past = actions[last - context + 1:last][None].to(tokens.device)
        rollout = imagine(made.model, tokens[None, last - context + 1:last + 1], past,
                          replayed(to_do), horizon=min(to_do.shape[1], len(tokens) - 1 - last),
                          generator=torch.Generator().manual_seed(run.seed), features="hidden")
        dreamed[last + 1:last + 1 + rollout.tokens.shape[1] - 1] = rollout.tokens[0, 1:]
    columns = {"real game (the agent)": frames,
               "its codes, decoded": made.codec.decode(tokens).cpu().numpy(),
               "its dream": made.codec.decode(dreamed).cpu().numpy()}
    return columns, notes


def _dreamed(run: Run, game: str, tokens, actions):
    """Codes (n, 3) of dreams under actions (n,), each from the real context (tokens) before it,
    the first one's context left as it is; and what to say about each step, n texts."""
    context, model = run.cfg.context, with_ale_ids(stages.load(run), game)
    horizon = dreams.num_steps(run.cfg, run.profile.world_model.max_steps)
    last_real = torch.arange(context - 1, len(tokens) - 1, horizon)
    past = last_real[:, None] + torch.arange(1 - context, 1)
    padded = torch.cat([actions, actions.new_zeros(horizon)])
    to_do = padded[last_real[:, None] + torch.arange(horizon)]
    rollout = imagine(model, tokens[past].to(device()), actions[past[:, :-1]].to(device()),
                      replayed(to_do.to(device())), horizon=horizon,
                      generator=torch.Generator().manual_seed(run.seed))
    dreamed = torch.cat([tokens[:context], rollout.tokens[:, 1:].flatten(0, 1).cpu()])
    notes = ["context: real codes, the dream starts after these"] * context + [
        f"dream, step {1 + k % horizon} of {horizon} without a look at the game"
        for k in range(len(tokens) - context)]
    return dreamed[:len(tokens)], notes
