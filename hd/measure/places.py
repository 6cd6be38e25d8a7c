"""Do the agent's codes hold what it acts on? Where things are, read from codes at places.

A small MLP reads RAM's coordinates from what a frame's codes decode to; the same MLP on the pixels
themselves is what such a probe can know at all.
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
from hd.replay import thin
from hd.run.metrics import named
from hd.run.runs import row

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
