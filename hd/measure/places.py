"""Do the agent's codes hold what it acts on? Where things are, read from codes at places.

A small MLP reads RAM's coordinates from what a frame's codes decode to; the same MLP on the pixels
themselves is what such a probe can know at all. And without any probe: what codes show of the
pixels that changed.
"""

from __future__ import annotations

import numpy as np
import torch

from hd import atari
from hd.agent import Agent
from hd.config import ProbeConfig
from hd.experience import Store
from hd.measure import probes
from hd.measure.game_state import places_of
from hd.patches import PatchCodec
from hd.replay import thin
from hd.run.metrics import named
from hd.run.runs import row

DIFFERENT = 26  # grey levels of 256, by more than which a pixel changed or is shown wrong
SHOWN_STEPS = 2000  # of a player, at most
TEST_EMULATORS = 2  # of each store: their episodes are judged, those of the others teach


def rows_of(agent: Agent, played: dict[str, Store], *, cfg: ProbeConfig, seed: int) -> list[dict]:
    """Rows r2_* and error_* of every coordinate and player: read from codes; the baseline is the
    same read from pixels. played: stores with frames and tokens of each player; one probe for all.
    """
    frames, tokens, ram, groups, is_test, source = _joined(played)
    picks = thin(np.arange(len(frames)), cfg.max_rows)
    truth, in_play = places_of(agent.game, ram[picks]), atari.ball_in_play(agent.game, ram[picks])
    split = probes.Split(~is_test[picks], is_test[picks], groups[picks])
    features = {"codes": _decoded(agent, tokens[picks]),
                "pixels": frames[picks].reshape(len(picks), -1).astype(np.float32) / 255}
    scores = {}
    for name, made in features.items():
        probe = probes.fit_coordinate_probe(made, truth, split, rows=in_play, cfg=cfg, seed=seed)
        for player in played:
            scores[name, player] = probes.read_coordinates(
                probe, made, truth, fitted=split.train & in_play,
                scored=split.test & in_play & (source[picks] == player))
    rows = []
    for player in played:
        of_codes, of_pixels = scores["codes", player], scores["pixels", player]
        for place, score in of_codes.items():
            rows += [row(named(f"r2_{place}", source=player), score.r2, game=agent.game,
                         split="test", baseline=of_pixels[place].r2),
                     row(named(f"error_{place}", source=player), score.median_error,
                         game=agent.game, split="test", baseline=of_pixels[place].median_error)]
    return rows


def changed_pixels_rows(agent: Agent, played: dict[str, Store], shifts: np.ndarray) -> list[dict]:
    """Rows changed_pixels_wrong of every player: of the pixels that changed since the step before,
    the share that codes show wrong, beside what keeps showing the step before. "moved": of frames
    moved by the shifts (S, 2) but the first, which the world model learns from too."""
    rows = []
    for player, store in played.items():
        at = np.argwhere(store.starts[:, :store.length] < np.arange(store.length))
        at = at[thin(np.arange(len(at)), SHOWN_STEPS)]
        for words, moves in (("", shifts[:1]), ("moved", shifts[1:])):
            num_changed = num_wrong = 0
            for part, move in zip(np.array_split(at, len(moves) or 1), moves.tolist()):
                if len(part):
                    changed, wrong = _changed_pixels(agent.codec, store, *part.T, tuple(move))
                    num_changed, num_wrong = num_changed + changed, num_wrong + wrong
            if num_changed:
                rows.append(row(named("changed_pixels_wrong", words, source=player),
                                num_wrong / num_changed, game=agent.game, split="test",
                                baseline=1.0))
    return rows


def _changed_pixels(codec: PatchCodec, store: Store, emulators, times, shift) -> tuple[int, int]:
    """How many pixels changed up to these steps, moved by the shift, and how many of them the
    codes show wrong."""
    now, before = store.frames[emulators, times], store.frames[emulators, times - 1]
    now, before = (codec.moved(frames, shift).int() for frames in (now, before))
    shown = codec.decode(codec.encode(store.frames[emulators, times], shift)).int()
    changed = (now - before).abs() > DIFFERENT
    return int(changed.sum()), int((changed & ((now - shown).abs() > DIFFERENT)).sum())


def _joined(played: dict[str, Store]):
    """Of all steps of all stores: frames, tokens, ram, the emulator as a group, whether it is one
    that is judged, and the player."""
    parts = []
    for number, (player, store) in enumerate(played.items()):
        E, T = len(store.actions), store.length
        emulators = np.repeat(np.arange(E), T)
        parts.append((store.frames[:, :T].reshape(-1, 84, 84),
                      store.tokens[0, :, :T].reshape(E * T, *store.tokens.shape[3:]),
                      store.ram[:, :T].reshape(-1, 128), 1000 * number + emulators,
                      emulators >= E - TEST_EMULATORS, np.full(E * T, player)))
    return [np.concatenate(column) for column in zip(*parts)]


def _decoded(agent: Agent, tokens) -> np.ndarray:
    """tokens (n, L, G) -> the pictures they decode to, as rows (n, 7056) float32 from 0 to 1."""
    frames = [agent.codec.decode(torch.from_numpy(part).to(agent.codec.background.device))
              for part in np.array_split(tokens, 1 + len(tokens) // 1000)]
    return torch.cat(frames).flatten(1).cpu().numpy().astype(np.float32) / 255
