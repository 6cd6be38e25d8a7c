"""Pictures <-> codes at places: a frame less its background, cut into patches, a code a level each.

What an agent acts on is small and local: a ball, a paddle. A patch holds it or does not, so that
few codes change from step to step, and a codebook that all places share learns an object once,
wherever it is. The newest frame alone is coded; what moves is for the model of the past to see.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hd.atari import check_frames
from hd.config import InputError
from hd.quantization import ResidualVQ, nearest

SIDE = 84  # of a frame, in pixels
ENCODE_FRAMES = 512  # at once
BACKGROUND_FRAMES = 2000  # whose median is the background
EMPTY = 0.02  # a patch that differs nowhere by more (of 1) is background


def cut(frames, side: int):
    """frames (..., 84, 84) -> patches (..., G, side * side), row by row."""
    grid = SIDE // side
    parts = frames.reshape(*frames.shape[:-2], grid, side, grid, side).transpose(-2, -3)
    return parts.reshape(*frames.shape[:-2], grid * grid, side * side)


def join(patches, side: int):
    """patches (..., G, side * side) -> frames (..., 84, 84)."""
    grid = SIDE // side
    parts = patches.reshape(*patches.shape[:-2], grid, grid, side, side).transpose(-2, -3)
    return parts.reshape(*patches.shape[:-2], SIDE, SIDE)


class PatchCodec(nn.Module):
    """frames (N, 84, 84) uint8 <-> tokens (N, L, G) int64, G = (84 / patch)^2 places.

    Each level has one codebook for all places, and its code 0 is "nothing (left)", so that the
    background is code 0 on every level. fit must be called before use; nothing trains after it.
    """

    def __init__(self, *, patch: int = 12, num_levels: int = 3, num_codes: int = 256,
                 kind: str = "residual"):
        super().__init__()
        if patch < 1 or SIDE % patch:
            raise InputError(f"patches must have a side that divides {SIDE}; got {patch}")
        self.patch, self.num_places = patch, (SIDE // patch) ** 2
        self.quantizer = ResidualVQ(num_levels, num_codes, SIDE * SIDE, kind=kind,
                                    num_groups=self.num_places,
                                    commitment_costs=(0.0,) * num_levels).eval()
        self.register_buffer("background", torch.zeros(SIDE, SIDE))

    @torch.no_grad()
    def fit(self, frames: np.ndarray, generator: torch.Generator, *,
            moves: np.ndarray | None = None, iterations: int = 15,
            max_patches: int = 60_000) -> float:
        """The background and the codebooks from frames (N, 84, 84) uint8; returns the error left.

        moves (N, 2): the codebooks see each frame moved, as encode's shift says; None for none. The
        error is the mean squared difference over the patches that are not background, as a share of
        their mean square. Raises InputError for too few of them.
        """
        check_frames(frames, (SIDE, SIDE))
        chosen = _some(len(frames), BACKGROUND_FRAMES, generator).numpy()
        self.background.copy_(torch.from_numpy(frames[chosen]).float().median(0).values / 255)
        chosen = _some(len(frames), 4 * BACKGROUND_FRAMES, generator).numpy()
        moves = np.zeros((len(frames), 2), int) if moves is None else moves
        rows = torch.cat([self._differences(torch.from_numpy(frames[at]), tuple(move.tolist()))
                          for move, at in _by_row(moves, chosen)]).flatten(0, 1)
        rows = rows[rows.abs().amax(1) > EMPTY]
        num_codes = self.quantizer.codebooks.shape[1]
        if len(rows) < num_codes:
            raise InputError(f"the frames hold {len(rows)} patches that are not background; "
                             f"{num_codes} codes need as many")
        rows = rows[_some(len(rows), max_patches, generator)].to(self.background.device)
        whole = rows.pow(2).mean()
        for level in range(len(self.quantizer.codebooks)):
            part = self.quantizer._part(rows, level)
            book = _spread_codes(part, num_codes, generator, iterations)
            self.quantizer.codebooks[level] = book
            rows = rows - book[nearest(part, book)]
        self.quantizer.is_initialised.fill_(True)
        return (rows.pow(2).mean() / whole).item()

    @torch.no_grad()
    def encode(self, frames, shift: tuple[int, int] = (0, 0)):
        """frames (N, 84, 84) uint8, an array or a tensor -> tokens (N, L, G) uint8 or int16, on
        the device of the codebooks.

        shift: by so many pixels down and to the right what differs from the background is moved
        before it is cut; what leaves the frame is lost.
        """
        check_frames(frames, (SIDE, SIDE))
        num_levels, num_codes = self.quantizer.codebooks.shape[:2]
        dtype = torch.uint8 if num_codes <= 256 else torch.int16
        parts = []
        for i in range(0, len(frames), ENCODE_FRAMES):
            rows = self._differences(torch.as_tensor(frames[i:i + ENCODE_FRAMES]), shift)
            tokens = rows.new_zeros((*rows.shape[:2], num_levels), dtype=dtype)
            is_something = (rows != 0).any(-1)  # nothing is code 0 on every level
            tokens[is_something] = self.quantizer.encode_groups(rows[is_something]).to(dtype)
            parts.append(tokens.transpose(1, 2))
        return torch.cat(parts)

    @torch.no_grad()
    def moved(self, frames, shift: tuple[int, int]):
        """frames (N, 84, 84) uint8, of which what differs from the background is moved, see
        encode -> frames as they are coded."""
        return self._shown(self._differences(torch.as_tensor(frames), shift))

    @torch.no_grad()
    def decode(self, tokens):
        """tokens (..., L, G) -> frames (..., 84, 84) uint8."""
        # A quantizer of one group has no axis for it.
        rows = self.quantizer.decode(tokens.long().squeeze(-1) if self.num_places == 1
                                     else tokens.long())
        return self._shown(rows.unflatten(-1, (self.num_places, -1)))

    def _shown(self, rows):
        """Patches of what differs from the background (..., G, P) -> frames (..., 84, 84) uint8."""
        frames = join(rows, self.patch) + self.background
        return (255 * frames.clamp(0, 1)).round().to(torch.uint8)

    def _differences(self, frames, shift: tuple[int, int] = (0, 0)):
        """(N, 84, 84) uint8 -> patches of what differs from the background (N, G, P), of 1."""
        differences = frames.to(self.background.device).float() / 255 - self.background
        if any(shift):
            down, right = shift
            differences = F.pad(differences, (right, -right, down, -down))
        return cut(differences, self.patch)


def _by_row(rows: np.ndarray, chosen: np.ndarray):
    """Each different row of rows (N, 2), and which of the chosen numbers have it."""
    for row in np.unique(rows[chosen], axis=0):
        yield row, chosen[(rows[chosen] == row).all(1)]


def _some(count: int, at_most: int, generator: torch.Generator):
    """At most so many different numbers below count, in random order."""
    return torch.randperm(count, generator=generator)[:at_most]


def _spread_codes(rows, num_codes: int, generator: torch.Generator, iterations: int):
    """Lloyd's k-means (N, P) -> (num_codes, P) whose code 0 stays zero.

    Starts, and refills codes that lost all rows, where the error is large, as k-means++ does:
    most of what earlier levels left over is nearly nothing.
    """
    def drawn(error, count):
        chance = error.clamp_min(1e-9).cpu()
        return rows[torch.multinomial(chance, count, replacement=count > len(rows),
                                      generator=generator).to(rows.device)]

    book = torch.cat([torch.zeros_like(rows[:1]), drawn(rows.pow(2).sum(1), num_codes - 1)])
    for _ in range(iterations):
        codes = nearest(rows, book)
        counts = torch.bincount(codes, minlength=num_codes)
        error = (rows - book[codes]).pow(2).sum(1)
        book = torch.zeros_like(book).index_add_(0, codes, rows) / counts.clamp_min(1)[:, None]
        if num_lost := int((counts == 0).sum()):
            book[counts == 0] = drawn(error, num_lost)
        book[0] = 0
    return book
