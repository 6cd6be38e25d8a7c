"""hd.replay: split by episode, windows inside episodes, four frames stacked when read."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny import episode_rows, refusal, write_game

from hd.config import InputError
from hd.replay import (
    FrameFile,
    Replay,
    epoch_windows,
    sample_windows,
    split_by_episode,
    split_three_ways,
    thin,
    tiles,
    window_starts,
)

LENGTHS = {"pong": (9, 3, 1, 6), "breakout": (2, 5, 7)}
GAMES = tuple(LENGTHS)
OTHER = {"val_share": 0.25, "seed": 0}


@pytest.fixture
def folder(tmp_path):
    for game, lengths in LENGTHS.items():
        write_game(tmp_path, game, lengths)
    return tmp_path


@pytest.fixture
def data(folder):
    return Replay.open(folder, GAMES, **OTHER)


# ---- reading

def test_rows_of_several_games_stand_one_after_the_other(data):
    assert data.games == ("pong", "breakout") and len(data) == 33
    assert data.offsets.tolist() == [0, 19, 33]
    assert data.game_idx.tolist() == [0] * 19 + [1] * 14
    assert data.episode_ids.tolist() == episode_rows((9, 3, 1, 6, 2, 5, 7)).tolist()
    assert data.starts[[0, 8, 9, 12, 18, 19, 21, 32]].tolist() == [0, 0, 9, 12, 13, 19, 21, 26]
    assert data.rewards[[0, 18, 19, 32]].tolist() == [0, 18, 0, 13]
    assert data.in_game("breakout").sum() == 14 and data.in_game("all").all()
    assert data.ram[[0, 18, 19, 32], 5].tolist() == [4, 4, 8, 8]
    assert np.flatnonzero(~data.has_next).tolist() == [8, 11, 12, 18, 20, 25, 32]


def test_frames_stay_on_disk_until_they_are_asked_for(data):
    assert [len(frames) for frames in data.frames] == [19, 14]
    assert "ram" not in vars(data), "RAM is read when first asked for"
    assert not any(isinstance(value, np.ndarray) for frames in data.frames
                   for value in vars(frames).values())


def test_rows_that_follow_each_other_are_one_read_within_a_game(data, monkeypatch):
    asked, read_into = [], FrameFile.read_into
    monkeypatch.setattr(FrameFile, "read_into", lambda self, out, first: (
        asked.append((self.path.stem, first, len(out))), read_into(self, out, first)))
    data.newest(np.array([30, 3, 4, 5, 5, 18, 19, 20]))
    assert asked == [("frames-breakout", 11, 1), ("frames-pong", 3, 3), ("frames-pong", 5, 1),
                     ("frames-pong", 18, 1), ("frames-breakout", 0, 2)]


def test_threads_that_read_at_once_get_what_each_asked_for(data):
    rows = np.random.default_rng(0).permutation(33)
    expected = data.newest(rows)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: data.newest(rows), range(200)):
            assert np.array_equal(found, expected)


def test_a_file_that_shrinks_while_it_is_read_is_named_in_one_line(data, folder):
    path = folder / "frames-pong.npy"
    path.write_bytes(path.read_bytes()[:-1])
    assert data.newest([17])[0, 0, 0] == 17
    with pytest.raises(InputError, match=r"frames-pong.npy is damaged .*became shorter"):
        data.newest([18])


def test_the_file_is_closed_with_its_last_reader(folder):
    frames = FrameFile(folder / "frames-pong.npy")
    handle = frames._file
    del frames
    assert handle.closed


def test_a_stack_holds_the_four_newest_frames_and_never_another_episodes(data):
    rows = np.random.default_rng(0).permutation(33)
    stacks = data.stack(rows)
    assert stacks.shape == (33, 4, 84, 84) and stacks.dtype == np.uint8
    for row, stack in zip(rows, stacks):
        first = data.starts[row]
        wanted = [max(row - age, first) for age in (3, 2, 1, 0)]
        local = [w if w < 19 else w - 19 for w in wanted]
        assert stack[:, 0, 0].tolist() == local
        assert set(stack[:, 83, 83].tolist()) == {4 if row < 19 else 8}
    assert data.stack([9])[0, :, 0, 0].tolist() == [9, 9, 9, 9]
    assert data.stack([11])[0, :, 0, 0].tolist() == [9, 9, 10, 11]


def test_rows_keep_their_shape_and_may_repeat(data):
    rows = np.array([[[32, 0, 32]], [[5, 19, 6]]])
    assert data.stack(rows).shape == (2, 1, 3, 4, 84, 84)
    assert data.newest(rows).shape == (2, 1, 3, 84, 84)
    assert data.newest(rows)[..., 0, 0].ravel().tolist() == [13, 0, 13, 5, 0, 6]
    assert np.array_equal(data.stack(rows)[..., -1, :, :], data.newest(rows))
    assert data.stack(np.array([], int)).shape == (0, 4, 84, 84)


@pytest.mark.parametrize("row", [-1, 33])
def test_a_row_outside_the_stored_ones_is_refused(data, row):
    with pytest.raises(InputError, match="rows run from 0 to"):
        data.newest([3, row])


IDS = np.repeat([0, 1, 2], [5, 3, 4])


@pytest.mark.parametrize(("call", "message"), [
    (lambda data: data.stack([-1]), "rows run from 0 to 32; got -1 to -1"),
    (lambda data: data.stack([33]), "rows run from 0 to 32; got 33 to 33"),
    (lambda data: data.newest(np.array([0.5])), "rows must be whole numbers; got float64"),
    (lambda data: data.in_game("tennis"), "unknown game 'tennis'; allowed: "),
    (lambda data: window_starts(IDS, 0), "a window's length must be a whole number from 1"),
    (lambda data: window_starts(IDS, 2.5), "got 2.5"),
    (lambda data: window_starts(IDS, 2, np.ones(3, bool)), "one entry per step; got (3,)"),
    (lambda data: epoch_windows(IDS, 0, np.random.default_rng(0)), "got 0"),
    (lambda data: split_by_episode(IDS, val_share=float("nan"), seed=0), "got nan"),
    (lambda data: split_by_episode(IDS, val_share="0.2", seed=0), "got '0.2'"),
    (lambda data: split_by_episode(IDS, val_share=0.2, seed=-1), "seed must be a whole"),
    (lambda data: split_by_episode(IDS, val_share=0.2, seed=0, source=IDS[:3]),
     "one entry per step; got shapes (3,) and (12,)"),
    (lambda data: sample(batch_size=0), "batch_size must be a whole number from 1; got 0"),
    (lambda data: sample(shares={0: 0.0}), "shares must be 0 or more, one above 0"),
    (lambda data: sample(shares={0: 2.0, 1: -1.0}), "shares must be 0 or more, one above 0"),
])
def test_what_a_public_function_cannot_do_is_one_line(data, call, message):
    assert message in refusal(call, data)


def sample(batch_size=4, **chosen):
    return sample_windows(np.arange(6), np.zeros(6, int), batch_size=batch_size,
                                 rng=np.random.default_rng(0), **chosen)


@pytest.mark.parametrize("changes, message", [
    ({"frames": np.zeros((19, 84, 83), np.uint8)}, r"frames-pong.npy .*\(19, 84, 83\)"),
    ({"frames": np.zeros((19, 84, 84), np.float32)}, "frames-pong.npy .*float32"),
    ({"frames": np.asfortranarray(np.zeros((19, 84, 84), np.uint8))}, "frames-pong.npy"),
    ({"frames": np.zeros((18, 84, 84), np.uint8)}, r"steps-pong.npz .*\(19,\).*not \(18,\)"),
    ({"rewards": np.zeros(19, np.float64)}, "steps-pong.npz .*rewards is .*float64"),
    ({"actions": None}, "steps-pong.npz .*actions"),
    ({"episode_ids": np.zeros(19, np.int32)[::-1] + 1}, "steps-pong.npz .*count up from 0"),
    ({"episode_ids": np.array([0, 1, 0] + [1] * 16, np.int32)}, "count up from 0"),
    ({"rewards": np.array([{}] * 19, object)}, "steps-pong.npz .*is damaged")])
def test_files_that_do_not_fit_are_named(folder, changes, message):
    write_game(folder, "pong", LENGTHS["pong"], **changes)
    with pytest.raises(InputError, match=message) as raised:
        Replay.open(folder, GAMES, **OTHER)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["frames-pong.npy", "steps-pong.npz"])
def test_missing_truncated_and_empty_files_are_named(folder, name):
    content = (folder / name).read_bytes()
    for write in (lambda p: p.write_bytes(content[:-200]), lambda p: p.write_bytes(b""),
                  lambda p: p.unlink()):
        write(folder / name)
        with pytest.raises(InputError, match=name):
            Replay.open(folder, GAMES, **OTHER)


def test_an_unknown_game_is_refused(folder):
    with pytest.raises(InputError, match="'tennis'; allowed: pong"):
        Replay.open(folder, ["tennis"], **OTHER)


# ---- split

@pytest.mark.parametrize("num_episodes, val_share, num_val", [
    (10, 0.2, 2), (10, 0.25, 3), (10, 0.04, 1), (10, 0.99, 9), (2, 0.01, 1), (2, 0.99, 1),
    (10, 0.0, 0), (10, 1.0, 10), (1, 0.3, 0)])
def test_val_share_of_the_episodes_is_held_out(num_episodes, val_share, num_val):
    ids = np.random.default_rng(1).integers(0, num_episodes, 300) * 7
    ids[:num_episodes] = np.arange(num_episodes) * 7
    train, val = split_by_episode(ids, val_share=val_share, seed=3)
    assert train.dtype == val.dtype == bool and np.array_equal(train, ~val)
    assert len(np.unique(ids[val])) == num_val
    assert not set(ids[train]) & set(ids[val])


def test_the_split_depends_on_the_seed_only():
    ids = episode_rows([5] * 40)
    first = split_by_episode(ids, val_share=0.3, seed=0)[1]
    assert np.array_equal(first, split_by_episode(ids, val_share=0.3, seed=0)[1])
    assert not np.array_equal(first, split_by_episode(ids, val_share=0.3, seed=1)[1])
    with pytest.raises(InputError, match="val_share must be from 0 to 1"):
        split_by_episode(ids, val_share=1.5, seed=0)


def test_every_source_is_on_both_sides():
    ids = np.repeat(np.arange(9) + 40, 5)
    source = np.repeat([0, 2, 1, 0, 2, 0, 0, 1, 0], 5)
    for seed in range(5):
        train, val = split_by_episode(ids, val_share=0.2, seed=seed, source=source)
        assert set(source[train]) == set(source[val]) == {0, 1, 2}
        assert len(np.unique(ids[val])) == 3 and not set(ids[train]) & set(ids[val])
    of_one = split_by_episode(ids, val_share=0.2, seed=1, source=np.zeros(45))
    assert np.array_equal(of_one, split_by_episode(ids, val_share=0.2, seed=1))
    apart = split_by_episode(ids[:10], val_share=0.2, seed=1, source=source[:10])
    assert np.array_equal(apart, split_by_episode(ids[:10], val_share=0.2, seed=1))


@pytest.mark.parametrize("num_episodes, val_share, test_share, sizes", [
    (10, 0.2, 0.2, (6, 2, 2)), (5, 0.2, 0.2, (3, 1, 1)), (4, 0.25, 0.25, (2, 1, 1)),
    (3, 0.01, 0.5, (1, 1, 1)), (11, 0.2, 0.3, (6, 2, 3)), (10, 0.0, 0.2, (8, 0, 2))])
def test_each_episode_trains_validates_or_tests(num_episodes, val_share, test_share, sizes):
    ids = np.repeat(np.arange(num_episodes) * 7, np.arange(num_episodes) % 4 + 2)
    parts = split_three_ways(ids, val_share=val_share, test_share=test_share, seed=3)
    assert tuple(len(np.unique(ids[part])) for part in parts) == sizes
    assert (np.sum(parts, 0) == 1).all() and sum(sizes) == num_episodes


def test_without_a_test_share_what_validates_is_what_tests():
    ids = episode_rows([5] * 10)
    train, val, test = split_three_ways(ids, val_share=0.3, test_share=None, seed=2)
    assert np.array_equal(val, test) and np.array_equal(train, ~val)
    assert np.array_equal(val, split_by_episode(ids, val_share=0.3, seed=2)[1])


def test_what_a_split_in_two_held_out_validates_in_a_split_in_three():
    ids = episode_rows([5] * 40)
    _, val, test = split_three_ways(ids, val_share=0.3, test_share=0.2, seed=0)
    assert np.array_equal(val, split_by_episode(ids, val_share=0.3, seed=0)[1])
    assert not np.array_equal(test, split_three_ways(ids, val_share=0.3, test_share=0.2,
                                                     seed=1)[2])


def test_every_source_is_in_all_three_parts():
    ids = np.repeat(np.arange(9) + 40, 5)
    source = np.repeat([0, 2, 1, 0, 2, 0, 2, 1, 1], 5)
    for seed in range(5):
        for part in split_three_ways(ids, val_share=0.2, test_share=0.2, seed=seed, source=source):
            assert set(source[part]) == {0, 1, 2}


@pytest.mark.parametrize("val_share, test_share", [
    (0.5, 0.5), (0.2, 0.9), (0.2, -0.1), (0.2, 0), (1, 0.1)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val_share, test_share):
    with pytest.raises(InputError, match="leave episodes to train on; got"):
        split_three_ways(IDS, val_share=val_share, test_share=test_share, seed=0)


def test_a_source_with_too_few_episodes_for_three_parts_is_refused_by_name(tmp_path):
    write_game(tmp_path, "pong", (4, 3, 5, 2, 6),
               source=np.repeat([0, 1, 0, 1, 0], (4, 3, 5, 2, 6)).astype(np.int8))
    Replay.open(tmp_path, ("pong",), **OTHER)
    assert refusal(Replay.open, tmp_path, ("pong",), **OTHER, test_share=0.25) == (
        "pong has 2 episodes of source repeat: to train, validate and test on it takes 3 of each "
        "source; raise frames.min_episodes")


def test_opened_steps_validate_where_they_neither_train_nor_test(folder):
    data = Replay.open(folder, GAMES, **OTHER, test_share=0.25)
    for game in GAMES:
        rows = data.in_game(game)
        sizes = [len(np.unique(data.episode_ids[part & rows]))
                 for part in (data.is_train, data.is_val, data.is_test)]
        assert sizes == [len(LENGTHS[game]) - 2, 1, 1]
    assert not (data.is_train & data.is_test).any()


def test_every_game_is_split_by_itself(data):
    for game in LENGTHS:
        rows = data.in_game(game)
        assert 0 < len(np.unique(data.episode_ids[rows & ~data.is_train])) < len(LENGTHS[game])
    assert not set(data.episode_ids[data.is_train]) & set(data.episode_ids[~data.is_train])


def test_rows_are_told_apart_by_source_only_where_there_are_several(data):
    assert data.by_source(np.arange(20)) == {}
    source = np.zeros(33, np.int8)
    source[4:7], source[19:] = 1, 3
    changed = dataclasses.replace(data, source=source)
    found = changed.by_source(np.array([3, 6, 20, 5]))
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "random": [True, False, False, False], "repeat": [False, True, False, True],
        "agent": [False, False, True, False]}
    assert changed.by_source(np.arange(19, 33)) == {}


# ---- windows

def brute_force_starts(ids, length, mask):
    return [t for t in range(len(ids) - length + 1)
            if len(set(ids[t:t + length])) == 1 and all(mask[t:t + length])]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 50])
def test_windows_are_all_those_inside_one_episode(length):
    rng = np.random.default_rng(length)
    lengths = rng.integers(1, 12, 30)
    ids, mask = episode_rows(lengths), rng.random(lengths.sum()) < 0.9
    starts = window_starts(ids, length)
    assert starts.tolist() == brute_force_starts(ids, length, np.ones(len(ids)))
    assert len(starts) == np.maximum(0, lengths - length + 1).sum()
    assert window_starts(ids, length, mask).tolist() == brute_force_starts(ids, length, mask)


def test_windows_do_not_join_equal_ids_that_are_apart():
    assert window_starts(np.array([0, 0, 1, 0, 0]), 3).tolist() == []
    assert window_starts(np.array([], int), 3).tolist() == []


def test_chunks_are_windows_of_training_episodes(data):
    assert data.chunk_starts(3) is data.chunk_starts(3)
    assert data.chunk_starts(3).tolist() == window_starts(data.episode_ids, 3,
                                                          data.is_train).tolist()
    with pytest.raises(InputError, match="no training episode has 20 steps"):
        data.chunk_starts(20)


def test_tiles_cover_each_episode_from_its_first_row():
    ids = episode_rows((8, 2, 3, 10))
    assert tiles(window_starts(ids, 3), 3).tolist() == [0, 3, 10, 13, 16, 19]
    assert tiles(window_starts(ids, 1), 1).tolist() == list(range(23))
    assert tiles(np.array([], int), 3).tolist() == []


@pytest.mark.parametrize("length", [1, 4, 7])
def test_an_epoch_visits_no_step_twice_and_every_step_in_the_long_run(length):
    rng = np.random.default_rng(0)
    lengths = np.array([30, length, 3, 2 * length - 1, 11])
    ids = episode_rows(lengths)
    mask = ids != 4
    visits, num_windows = np.zeros(len(ids), int), []
    for _ in range(300):
        starts = epoch_windows(ids, length, rng, mask)
        rows = starts[:, None] + np.arange(length)
        assert len(np.unique(rows)) == rows.size
        assert (ids[rows] == ids[rows[:, :1]]).all()
        visits[rows] += 1
        num_windows.append(len(starts))
    wanted = mask & (lengths[ids] >= length)
    assert np.array_equal(visits > 0, wanted)
    inner = np.flatnonzero(ids == 0)[length:-length]
    assert (visits[inner] == 300).all(), "steps away from the ends are in every epoch"
    # The first row of the long episode opens an epoch only at offset 0.
    assert abs(visits[0] / 300 - 1 / length) < 0.1
    assert max(num_windows) <= (lengths[:4] // length).sum()


def test_the_order_of_an_epoch_is_shuffled_and_drawn_from_the_generator():
    ids = episode_rows((200,))
    first, again, other = (epoch_windows(ids, 3, np.random.default_rng(s)) for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert (np.diff(first) < 0).any()


def test_batches_hold_each_game_with_its_exact_share():
    starts = np.arange(100) * 10
    game_idx = np.repeat([0, 1, 2], [90, 7, 3])
    rng, shares, totals = np.random.default_rng(0), {0: 1.0, 2: 1.5, 1: 0.7}, np.zeros(3)
    drawn = set()
    for _ in range(2000):
        batch = sample_windows(starts, game_idx, batch_size=16, rng=rng, shares=shares)
        assert len(batch) == 16 and set(batch) <= set(starts)
        counts = np.bincount(game_idx[batch // 10], minlength=3)
        quotas = np.array([1.0, 0.7, 1.5]) / 3.2 * 16
        assert np.all(np.abs(counts - quotas) < 1)
        totals += counts
        drawn |= set(batch)
    assert drawn == set(starts)
    # A count is a quota rounded at random: standard error at most 0.5 / sqrt(2000) = 0.011.
    assert np.allclose(totals / 2000, quotas, atol=0.05)


def test_without_shares_every_window_is_equally_likely():
    game_idx = np.repeat([0, 1], [30, 10])
    drawn = sample_windows(np.arange(40), game_idx, batch_size=40_000,
                           rng=np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=40)
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))


def test_a_share_without_windows_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="game 1 has a share of the batch but no window"):
        sample_windows(np.arange(5), np.zeros(5, int), batch_size=4, rng=rng,
                       shares={0: 1.0, 1: 1.0})
    with pytest.raises(InputError, match="no window to sample"):
        sample_windows(np.array([], int), np.array([], int), batch_size=4, rng=rng)


# ---- fewer rows

@pytest.mark.parametrize("count, most, step", [
    (10, 10, 1), (10, 99, 1), (10, 9, 2), (10, 5, 2), (10, 4, 3), (10, 1, 10), (1, 1, 1)])
def test_thinned_rows_are_every_kth_with_k_as_small_as_leaves_at_most_so_many(count, most, step):
    rows = np.arange(count) * 7 + 3
    found = thin(rows, most)
    assert found.tolist() == rows[::step].tolist() and len(found) <= most
    assert step == 1 or len(rows[::step - 1]) > most


def test_no_rows_stay_no_rows():
    assert thin(np.zeros(0, np.int64), 5).tolist() == []
