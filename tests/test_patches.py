"""Pictures <-> codes at places: what is cut is joined again, what is coded is drawn again."""

import numpy as np
import pytest
import torch
from tiny import refusal

from hd.patches import PatchCodec, cut, join

SIDE, PLACES, L, K = 21, 16, 2, 12


def pictures(num_frames=200):
    """A grey field with one bright square that wanders."""
    rng = np.random.default_rng(0)
    frames = np.full((num_frames, 84, 84), 60, np.uint8)
    corners = rng.integers(0, 78, (num_frames, 2))
    for frame, (row, column) in zip(frames, corners):
        frame[row:row + 6, column:column + 6] = 200
    return frames, corners


def fitted(frames, **sizes):
    codec = PatchCodec(**{"patch": SIDE, "num_levels": L, "num_codes": K} | sizes)
    return codec, codec.fit(frames, torch.Generator().manual_seed(0))


def test_patches_are_cut_row_by_row_and_joined_again():
    frames = torch.arange(2 * 84 * 84).reshape(2, 84, 84)
    patches = cut(frames, SIDE)
    assert patches.shape == (2, PLACES, SIDE * SIDE)
    assert torch.equal(patches[1, 5].view(SIDE, SIDE), frames[1, 21:42, 21:42])
    assert torch.equal(join(patches, SIDE), frames)


def test_the_background_is_code_zero_on_every_level_and_drawn_without_error():
    frames, _ = pictures()
    codec, _ = fitted(frames)
    empty = np.full((3, 84, 84), 60, np.uint8)
    tokens = codec.encode(empty)
    assert tokens.shape == (3, L, PLACES) and not tokens.any()
    assert np.array_equal(codec.decode(tokens).numpy(), empty)


def test_only_the_places_that_an_object_touches_have_other_codes():
    frames, corners = pictures()
    codec, _ = fitted(frames)
    tokens = codec.encode(frames).numpy()
    for codes, (row, column) in zip(tokens, corners):
        touched = {(r // SIDE) * 4 + c // SIDE
                   for r in (row, row + 5) for c in (column, column + 5)}
        assert set(codes.any(0).nonzero()[0].tolist()) <= touched


def test_more_codes_and_more_levels_leave_less():
    frames, _ = pictures(600)
    few, more, finer = (fitted(frames, num_codes=codes, num_levels=levels)[1]
                        for codes, levels in ((8, 1), (64, 1), (64, 3)))
    assert finer < more < few < 1


def test_the_object_is_drawn_where_it_is():
    frames, _ = pictures(2000)
    codec, _ = fitted(frames, num_codes=256, num_levels=3)
    drawn = codec.decode(codec.encode(frames[:50])).numpy().astype(int)
    is_object = frames[:50] == 200
    assert np.abs(drawn - frames[:50])[is_object].mean() < 14  # a tenth of its contrast
    assert np.abs(drawn - frames[:50])[~is_object].mean() < 1


def test_one_place_holds_the_whole_picture():
    frames, _ = pictures()
    codec, left = fitted(frames, patch=84, num_levels=3, num_codes=64)
    tokens = codec.encode(frames)
    drawn = codec.decode(tokens).float() - torch.from_numpy(frames).float()
    empty = 60 - torch.from_numpy(frames).float()
    assert tokens.shape == (200, 3, 1)
    left_of_all = (drawn.pow(2).mean() / empty.pow(2).mean()).item()
    assert left_of_all == pytest.approx(left, rel=0.02)


@pytest.mark.parametrize("down, right", [(3, -2), (-5, 0), (0, 4)])
def test_moved_frames_have_the_codes_of_what_stands_elsewhere(down, right):
    frames, corners = pictures()
    codec, _ = fitted(frames)
    inside = ((corners > 6) & (corners < 72)).all(1)
    elsewhere = np.full_like(frames, 60)
    for frame, (row, column) in zip(elsewhere, corners):
        frame[max(0, row + down):row + down + 6, max(0, column + right):column + right + 6] = 200
    moved = codec.encode(frames[inside], (down, right))
    assert torch.equal(moved, codec.encode(elsewhere[inside]))
    assert not torch.equal(moved, codec.encode(frames[inside]))


def test_codes_fitted_to_moved_frames_show_these_better():
    """The square stands at one place of a grid that moves cut anywhere."""
    frames = np.full((400, 84, 84), 60, np.uint8)
    corners = SIDE * np.random.default_rng(0).integers(0, 4, (400, 2)) + 6
    for frame, (row, column) in zip(frames, corners):
        frame[row:row + 6, column:column + 6] = np.arange(6) * 30 + 70
    moves = np.random.default_rng(1).integers(-10, 11, (400, 2))
    errors = []
    for moved_by in (None, moves):
        codec = PatchCodec(patch=SIDE, num_levels=L, num_codes=K)
        codec.fit(frames, torch.Generator().manual_seed(0), moves=moved_by)
        errors.append([(codec.decode(codec.encode(frames, shift)).float()
                        - codec.moved(frames, shift).float()).pow(2).mean().item()
                       for shift in ((0, 0), (9, -8))])
    (still, moved), (still_too, moved_too) = errors
    assert moved_too < 0.7 * moved and still < still_too


def test_a_frame_that_is_not_moved_is_the_frame():
    frames, _ = pictures(20)
    codec, _ = fitted(pictures()[0])
    assert np.array_equal(codec.moved(frames, (0, 0)).numpy(), frames)


def test_what_is_moved_out_of_the_frame_is_lost():
    frames, _ = pictures()
    codec, _ = fitted(frames)
    corner = np.full((1, 84, 84), 60, np.uint8)
    corner[0, :4, :4] = 200
    assert codec.encode(corner).any() and not codec.encode(corner, (-4, 0)).any()


def test_the_same_generator_fits_the_same_codes():
    frames, _ = pictures()
    first, again = fitted(frames)[0], fitted(frames)[0]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(),
                                                 again.state_dict().values()))


def test_codes_come_as_the_smallest_whole_numbers_that_hold_them():
    frames, _ = pictures(600)
    assert fitted(frames)[0].encode(frames[:1]).dtype == torch.uint8
    assert fitted(frames, num_codes=300)[0].encode(frames[:1]).dtype == torch.int16


def test_a_side_that_does_not_divide_the_picture_is_refused():
    assert "divides 84; got 13" in refusal(PatchCodec, patch=13)


def test_too_few_foreground_patches_for_the_codes_are_refused():
    frames = np.full((40, 84, 84), 60, np.uint8)
    assert f"hold 0 patches that are not background; {K} codes" in refusal(fitted, frames)


@pytest.mark.parametrize("frames", [np.zeros((2, 84, 84), np.float32),
                                    np.zeros((2, 4, 84, 84), np.uint8)])
def test_frames_of_another_kind_are_refused(frames):
    codec = fitted(pictures()[0])[0]
    assert "frames must be uint8 of shape (N, 84, 84)" in refusal(codec.encode, frames)
