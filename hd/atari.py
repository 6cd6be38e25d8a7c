"""The real games: what they are, an environment straight on the emulator, a scripted player.

Frames are 84x84 grey, the maximum of the last two of four emulator frames (Mnih et al. 2015).
Action ids are ALE's own 0..17 everywhere. No reward clipping, no end of episode at a lost life.
RAM addresses: AtariARI (Anand et al. 2019).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import ale_py
import cv2
import gymnasium
import numpy as np
from ale_py import roms

from hd import config
from hd.config import InputError, allowed

ACTION_MEANINGS = (
    "NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "DOWNRIGHT", "DOWNLEFT",
    "UPFIRE", "RIGHTFIRE", "LEFTFIRE", "DOWNFIRE", "UPRIGHTFIRE", "UPLEFTFIRE", "DOWNRIGHTFIRE",
    "DOWNLEFTFIRE")
NOOP, FIRE, RIGHT, LEFT = 0, 1, 3, 4
FRAME_SKIP = 4


def _towards(distance: int, tolerance: int, up: int, down: int) -> int:
    return up if distance > tolerance else down if distance < -tolerance else NOOP


def _track_pong(ram: np.ndarray) -> int:
    """Go where the ball will land, strike flat balls off centre so that rallies end.

    One step moves the paddle by 22 and it coasts: moving only every second step of the ball's way
    (its x advances 4 a step) keeps that in check. RAM 58 and 56: -dx and dy per emulator frame.
    """
    x, y, player_y = int(ram[49]), int(ram[54]), int(ram[51])
    if not y or (x // 4) % 2:
        return NOOP
    ball_dx, ball_dy = -int(ram[58:59].view(np.int8)[0]), int(ram[56:57].view(np.int8)[0])
    if ball_dx <= 0:
        return _towards(119 - player_y, 8, LEFT, RIGHT)
    top, height = 44, 163
    folded = (y + ball_dy * max(0, 188 - x) - top) % (2 * height)
    landing = top + min(folded, 2 * height - folded)
    off_centre = 0 if abs(ball_dy) > 1 else 3 if ram[50] < 126 else -3
    return _towards(landing - player_y - 7 - off_centre, 8, LEFT, RIGHT)


def _track_breakout(ram: np.ndarray) -> int:
    if not ram[101]:
        return FIRE
    # The paddle's centre is 6 right of its address; it moves about 12 a step.
    return _towards(int(ram[99]) - int(ram[72]) - 6, 6, RIGHT, LEFT)


def _ball_past(along: str, line: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The ball is in play, past a line of RAM's `along` and on its way to larger values."""
    def is_near(state):
        x, y = state[along], state["ball_y"]
        in_play = (y > 0) & (np.roll(y, 1, -1) > 0)
        return in_play & (x >= line) & (x > np.roll(x, 1, -1))
    return is_near


def _ghost_within(distance: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A ghost is nearer to the player than that, columns and rows together."""
    def is_near(state):
        return np.min([abs(state[f"{ghost}_x"] - state["player_x"])
                       + abs(state[f"{ghost}_y"] - state["player_y"])
                       for ghost in ("blinky", "pinky", "inky", "sue")], 0) < distance
    return is_near


class Place(NamedTuple):
    """What is followed on pictures: two labels of its place in RAM, and the shift from there to its
    centre on the 160 x 210 screen, measured on rendered frames."""

    x: str
    y: str
    right: float
    down: float


@dataclass(frozen=True)
class Game:
    """All that the study knows of one game; the appendix "Contributing" says how to add one.

    Raises InputError in one line for what does not fit together.
    """

    title: str  # on figures and in tables
    rom: str
    gym_id: str  # gymnasium's name
    actions: tuple[int, ...]  # ALE ids of the useful ones
    labels: Mapping[str, int | range]  # RAM addresses of its state (AtariARI)
    coordinates: tuple[str, ...]  # the labels that probes read as numbers, by a small MLP
    place: Place  # of the ball, or of the player where there is none
    ball_y_end: int = 256  # from this ball_y on the ball is below the field, where none sees it
    tracker: Callable[[np.ndarray], int] | None = None  # RAM (128,) -> ALE id, a scripted player
    # Labels, int (..., T) of steps in order -> bool (..., T): about five steps before a contact
    near_contact: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None
    lost_within: int = 14  # steps after that, in which a point or a life is lost, or not

    def __post_init__(self):
        unknown = {*self.coordinates, *self.place[:2]} - {*self.labels}
        if unknown:
            raise InputError(f"{self.title}: coordinates and place may only name labels, of which "
                             f"a RAM address is known; got {', '.join(sorted(unknown))}")
        known = range(len(ACTION_MEANINGS))
        if not self.actions or not {*self.actions} <= {*known}:
            raise InputError(f"{self.title}: actions must be some of ALE's ids 0 to {known[-1]}; "
                             f"got {self.actions}")


GAMES = {
    "pong": Game(
        "Pong", "pong", "ALE/Pong-v5", (0, 1, 3, 4, 11, 12), {
            "player_y": 51, "enemy_y": 50, "ball_x": 49, "ball_y": 54,
            "enemy_score": 13, "player_score": 14},
        # ball_x is the honest one: the opponent betrays ball_y.
        ("player_y", "enemy_y", "ball_x", "ball_y"), Place("ball_x", "ball_y", -48.5, -12.5),
        tracker=_track_pong, near_contact=_ball_past("ball_x", 164)),
    "breakout": Game(
        "Breakout", "breakout", "ALE/Breakout-v5", (0, 1, 3, 4), {
            "player_x": 72, "ball_x": 99, "ball_y": 101, "blocks_hit_count": 77, "score": 84,
            "block_bit_map": range(30)},
        ("player_x", "ball_x", "ball_y"), Place("ball_x", "ball_y", -48.5, 10.5),
        # A slow ball is out of the picture, and the life with it, after 17 steps.
        near_contact=_ball_past("ball_y", 140), lost_within=20, ball_y_end=187,
        tracker=_track_breakout),
    "ms_pacman": Game(
        "MsPacman", "ms_pacman", "ALE/MsPacman-v5", (0, 2, 3, 4, 5, 6, 7, 8, 9), {
            "sue_x": 6, "inky_x": 7, "pinky_x": 8, "blinky_x": 9, "sue_y": 12, "inky_y": 13,
            "pinky_y": 14, "blinky_y": 15, "player_x": 10, "player_y": 16, "fruit_x": 11,
            "fruit_y": 17, "ghosts_count": 19, "player_direction": 56, "dots_eaten": 119,
            "player_score": 120, "num_lives": 123},
        ("player_x", "player_y", "blinky_x", "blinky_y"),
        # A life is counted out some twenty steps after the ghost has it.
        Place("player_x", "player_y", -8.5, 5.5), near_contact=_ghost_within(24), lost_within=30),
}


def add_game(name: str, game: Game) -> None:
    """Make one more game known to this process, after the others: to try it before it is added
    to the two tables for good. A program that collects frames must do so where it is imported, for
    the processes that play. Raises InputError for a name that is known already.
    """
    if name in GAMES or name in config.GAMES:
        raise InputError(f"there is a game {name} already; take another name")
    GAMES[name] = game
    config.GAMES = (*config.GAMES, name)


def check_frames(frames, shape: tuple[int, ...] = (4, 84, 84)) -> None:
    """Raise InputError in one line unless frames, an array or a tensor, are (N, *shape) uint8:
    stacks of four, oldest first, or single frames (N, 84, 84)."""
    found = tuple(getattr(frames, "shape", ()))
    kind = str(getattr(frames, "dtype", type(frames).__name__)).removeprefix("torch.")
    if kind == "uint8" and len(found) == 1 + len(shape) and found[1:] == shape:
        return
    wanted = f"(N, {', '.join(map(str, shape))})"
    order = ", oldest frame first" if len(shape) == 3 else ""
    hint = ""
    if found[-3:] == (*shape[1:], shape[0]):
        hint = f"; these are channels-last: the {shape[0]} belongs before the picture's two sides"
    elif found == shape:
        hint = "; one alone needs a dimension of 1 in front"
    elif kind.startswith(("float", "bfloat")):
        hint = "; pixels are whole numbers from 0 to 255, not scaled"
    raise InputError(f"frames must be uint8 of shape {wanted}{order}; got {kind} of shape "
                     f"{found}{hint}")


def game_named(game: str) -> Game:
    """The Game; raises InputError that lists the known ones."""
    if game in config.GAMES and game not in GAMES:
        raise InputError(f"{game} is in hd.config.GAMES but not in hd.atari.GAMES: add what there "
                         f"is to know of it; book/appendix/contributing.md says what")
    allowed("game", game, GAMES)
    return GAMES[game]


def labels(game: str, ram: np.ndarray) -> dict[str, np.ndarray]:
    """ram (..., 128) uint8 -> state variables, each (...), a bit map (..., bytes)."""
    if np.shape(ram)[-1:] != (128,):
        raise InputError(f"ram must be (..., 128) uint8; got shape {np.shape(ram)}")
    return {name: ram[..., address] if isinstance(address, int) else ram[..., list(address)]
            for name, address in game_named(game).labels.items()}


def on_frame(game: str, state: Mapping[str, np.ndarray]) -> np.ndarray:
    """State variables by name, each (...), in RAM units -> column and row (..., 2) float on an
    84x84 frame of what the game's place follows."""
    place = game_named(game).place
    return np.stack([(np.asarray(state[place.x], float) + place.right + 0.5) * 84 / 160 - 0.5,
                     (np.asarray(state[place.y], float) + place.down + 0.5) * 84 / 210 - 0.5], -1)


def ball_in_play(game: str, ram: np.ndarray) -> np.ndarray:
    """ram (..., 128) -> bool (...): the ball is on the screen. A game without a ball: all True.

    Both games hold ball_y = 0 between a miss and the next serve, while ball_x keeps a stale value.
    Breakout's ball falls on unseen below the screen's field.
    """
    ball_y = labels(game, ram).get("ball_y", np.ones(ram.shape[:-1], np.uint8))
    return (ball_y > 0) & (ball_y < game_named(game).ball_y_end)


def _action_id(action) -> int:
    try:
        found = operator.index(action)
    except (TypeError, ValueError):
        found = -1
    if not 0 <= found < len(ACTION_MEANINGS):
        raise InputError(f"unknown action {action}; allowed: ALE ids 0 to 17")
    return found


@dataclass(frozen=True)
class GameState:
    """All that decides how an AtariGame goes on."""

    game: str
    emulator: ale_py.ALEState
    held: int
    steps: int
    screens: np.ndarray
    rng: dict


class AtariGame(gymnasium.Env):
    """One game, straight on the emulator. Observation (84, 84) uint8, action an ALE id (0..17).

    sticky: chance, per emulator frame, that the previous action is repeated instead (Machado et
    al. 2018); drawn here rather than in ALE, whose cloned states forget the previous action.
    noop_max: a reset is followed by 1..noop_max emulator frames without action; 0 for none.
    max_steps: agent steps of four emulator frames after which the episode is truncated.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, game: str, *, sticky: float = 0.0, noop_max: int = 30,
                 max_steps: int = 27_000):
        rom = game_named(game).rom
        are_numbers = isinstance(sticky, (int, float)) and all(
            isinstance(count, (int, np.integer)) for count in (noop_max, max_steps))
        if not are_numbers or not 0.0 <= sticky < 1.0 or noop_max < 0 or max_steps < 1:
            raise InputError(f"{game}: needs 0 <= sticky < 1, and whole numbers noop_max >= 0 and "
                             f"max_steps >= 1; got {sticky}, {noop_max}, {max_steps}")
        self.game, self.sticky, self.noop_max, self.max_steps = game, sticky, noop_max, max_steps
        self.observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTION_MEANINGS))
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(roms.get_rom_path(rom))
        self._screens = np.zeros((2, 210, 160), np.uint8)  # the last two, newest first
        self._shrunk_from = np.zeros((210, 160), np.uint8)
        self._shrunk = np.zeros((84, 84), np.uint8)
        self._changed = np.zeros(42 + 2, bool)  # bands of five rows, and a border
        self._held = NOOP
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """-> frame (84, 84), info with ram (128,) uint8 and lives. The seed decides everything."""
        super().reset(seed=seed)
        self._ale.reset_game()
        if self.noop_max:
            for _ in range(self.np_random.integers(1, self.noop_max + 1)):
                self._ale.act(NOOP)
        self._held, self._steps = NOOP, 0
        self._ale.getScreenGrayscale(self._screens[0])
        self._screens[1] = 0
        return self._frame(), self._info()

    def step(self, action: int):
        """-> frame, reward (the game's own points), terminated, truncated, info as in reset.

        As in gymnasium's AtariPreprocessing, an episode that ends inside the four emulator frames
        shows the screens pooled before that.
        """
        action = _action_id(action)
        ale, reward, terminated = self._ale, 0, False
        kept = self.np_random.random(FRAME_SKIP) < self.sticky if self.sticky else None
        for i in range(FRAME_SKIP):
            if kept is None or not kept[i]:
                self._held = action
            reward += ale.act(self._held)
            if ale.game_over():
                terminated = True
                break
            if i >= FRAME_SKIP - 2:
                ale.getScreenGrayscale(self._screens[FRAME_SKIP - 1 - i])
        self._steps += 1
        truncated = self._steps >= self.max_steps
        return self._frame(), float(reward), terminated, truncated, self._info()

    def render(self) -> np.ndarray:
        """The screen (210, 160, 3) uint8; after restore_state it is right from the next step on."""
        return self._ale.getScreenRGB()

    def clone_state(self) -> GameState:
        """Everything that decides how the episode goes on, the randomness included."""
        rng = self.np_random.bit_generator.state
        emulator = self._ale.cloneState(include_rng=True)
        return GameState(self.game, emulator, self._held, self._steps, self._screens.copy(), rng)

    def restore_state(self, state: GameState) -> np.ndarray:
        """Go back to a cloned state, also of another AtariGame of this game; -> its frame."""
        if state.game != self.game:
            raise InputError(f"a state of {state.game} cannot be restored in {self.game}")
        self._ale.restoreState(state.emulator)
        self._held, self._steps = state.held, state.steps
        self._screens[:] = state.screens
        self.np_random.bit_generator.state = state.rng
        return self._frame()

    def _frame(self) -> np.ndarray:
        """The pooled screen, shrunk; only where rows changed since the last call.

        Five rows make exactly two, so the parts are bit for bit those of the whole.
        """
        pooled = np.maximum(self._screens[0], self._screens[1], out=self._screens[0])
        differs = pooled.view(np.uint64) != self._shrunk_from.view(np.uint64)
        np.any(differs.reshape(42, -1), axis=1, out=self._changed[1:-1])
        edges = (self._changed[1:] != self._changed[:-1]).nonzero()[0].tolist()
        for first, last in zip(edges[::2], edges[1::2]):
            rows = pooled[5 * first:5 * last]
            self._shrunk_from[5 * first:5 * last] = rows
            self._shrunk[2 * first:2 * last] = cv2.resize(
                rows, (84, 2 * (last - first)), interpolation=cv2.INTER_AREA)
        return self._shrunk.copy()

    def _info(self) -> dict:
        return {"ram": self._ale.getRAM(), "lives": self._ale.lives()}


def tracker_action(game: str, ram: np.ndarray) -> int:
    """A scripted player that reads RAM (128,): its paddle meets the ball; Breakout's fires it.

    A function of RAM alone, so that it is a baseline for policies without memory.
    Raises InputError for a game without one.
    """
    if tracker := game_named(game).tracker:
        return tracker(ram)
    able = [name for name, one in GAMES.items() if one.tracker]
    raise InputError(f"no tracker for {game!r}; allowed: {', '.join(able)}")
