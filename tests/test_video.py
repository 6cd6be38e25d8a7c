"""hd.report.video: videos that play in any browser, and dreams beside the game they began in."""

import base64
import os
import re
import sys
from types import SimpleNamespace

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from tiny import refusal

from hd import stages
from hd.config import InputError
from hd.encoder import AtariEncoder
from hd.quantization import ResidualVQ
from hd.report import video
from hd.run import runs
from hd.world_model import WorldModel


def clip(num_frames=7, shade=0):
    return np.stack([np.full((84, 84), shade + 20 * t, np.uint8) for t in range(num_frames)])


def test_a_video_has_every_frame_even_sides_and_its_columns_in_order(tmp_path):
    path = video.side_by_side_video({"truth": clip(), "dream": clip(shade=100)},
                                    tmp_path / "two.mp4", scale=3)
    with imageio.get_reader(path) as film:
        meta, frames = film.get_meta_data(), [np.asarray(frame) for frame in film]
    assert (len(frames), meta["fps"], meta["codec"]) == (7, 15, "h264")
    assert meta["pix_fmt"].startswith("yuv420p")
    assert frames[0].shape == (44 + 252, 2 * 260, 3)
    for t, frame in enumerate(frames):  # the middle of each column; h264 keeps it within a few
        assert frame[170, 126, 0] == pytest.approx(20 * t, abs=6)
        assert frame[170, 260 + 126, 0] == pytest.approx(100 + 20 * t, abs=6)
    assert frames[0][:44].min() < 100 < frames[0][:44].max()  # the names, dark on white


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")
def test_a_disk_that_is_full_is_one_line_and_leaves_no_half_video(tmp_path, monkeypatch):
    # ffmpeg writes, in a process of its own that inherits the limit.
    import resource

    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 255, (20, 84, 84)).astype(np.uint8)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(InputError) as refused:
            video.side_by_side_video({"noise": noise}, tmp_path / "x.mp4")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    message = str(refused.value)
    assert message.startswith("cannot write $HD_ARTIFACTS/x.mp4: only ") and "\n" not in message
    assert "of the video's 20 frames" in message and list(tmp_path.iterdir()) == []


def test_a_marked_place_is_circled_in_its_own_column_and_step(tmp_path):
    places = np.full((7, 2), np.nan)
    places[3] = 60, 20  # column, row
    path = video.side_by_side_video({"truth": clip(), "dream": clip()}, tmp_path / "m.mp4",
                                    scale=3, marks={"dream": places})
    with imageio.get_reader(path) as film:
        frames = [np.asarray(frame).astype(int) for frame in film]
    redness = [frame[44:, :, 0] - frame[44:, :, 2] for frame in frames]
    for t, red in enumerate(redness):
        rows, columns = np.nonzero(red > 60)
        assert (len(rows) > 0) == (t == 3)
    rows, columns = np.nonzero(redness[3] > 60)
    assert rows.mean() == pytest.approx(20.5 * 3, abs=2)
    assert columns.mean() == pytest.approx(260 + 60.5 * 3, abs=2)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    one, two = (video.side_by_side_video({"a": clip()}, tmp_path / f"{k}.mp4", scale=1,
                                         notes=[f"step {t}" for t in range(7)]).read_bytes()
                for k in range(2))
    assert one == two


def test_videos_of_unequal_length_are_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match="same shape"):
        video.side_by_side_video({"a": clip(3), "b": clip(4)}, tmp_path / "x.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("settings", "message"), [
    ({"path": "clip.gif"}, "a video's name must end in .mp4; got clip.gif"),
    ({"path": "clip"}, "a video's name must end in .mp4; got clip"),
    ({"notes": ["one"]}, "notes must have one entry for each of the 7 frames; got 1"),
    ({"marks": {"a": np.zeros((8, 2))}}, "a must have one entry for each of the 7 frames; got 8"),
])
def test_names_and_lengths_that_do_not_fit_are_refused(tmp_path, settings, message):
    chosen = {"path": "clip.mp4", **settings}
    chosen["path"] = tmp_path / chosen["path"]
    assert message in refusal(video.side_by_side_video, {"a": clip()}, **chosen)
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_pixels_from_0_to_1_is_refused_rather_than_drawn_black(tmp_path):
    with pytest.raises(InputError, match="got float64 of shape"):
        video.side_by_side_video({"a": clip() / 255}, tmp_path / "x.mp4")


def test_an_embedded_video_needs_no_other_file(tmp_path, monkeypatch):
    path = video.side_by_side_video({"a": clip()}, tmp_path / "a.mp4", scale=1)
    html = video.embed_video(path).data
    content = re.search(r'src="data:video/mp4;base64,([^"]+)"', html)[1]
    assert base64.b64decode(content) == path.read_bytes()
    monkeypatch.setattr(video, "VIDEO_BYTES", 10)
    with pytest.raises(InputError, match="at most 10"):
        video.embed_video(path)


def test_published_dreams_of_both_variants_are_shown_from_the_largest_profile(
        tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda page, raw=False: shown.append(page))
    for place in ("quick/base", "quick/hi-dreamer", "desk/base", "audit/base", "audit/hi-dreamer"):
        (tmp_path / f"{place}-seed0").mkdir(parents=True)
        (tmp_path / f"{place}-seed0" / "dream.mp4").write_bytes(b"film")
    video.show_published(tmp_path)
    assert [one.data for one in shown[::2]] == ["**base**, audit, seed 0",
                                                "**hi-dreamer**, audit, seed 0"]
    assert [re.search(r'src="([^"]+)"', one["text/html"])[1] for one in shown[1::2]] == [
        f"../../figures/audit/{variant}-seed0/dream.mp4" for variant in ("base", "hi-dreamer")]
    video.show_published(tmp_path / "desk")
    assert len(shown) == 4 and "No profile has published dreams" in capsys.readouterr().out


@pytest.fixture
def untrained(monkeypatch, tmp_path):
    """Every stage of a smoke run, untrained and small; the decoder draws a step's coarse code."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    cfg = runs.start("imagination", profile="smoke").profile.world_model
    tokenizer = ResidualVQ().eval()
    tokenizer.codebooks.normal_(std=0.05)
    model = WorldModel(cfg, tokenizer.codebooks.clone()).eval()
    made = {"encoder": AtariEncoder().eval(), "tokenizer": tokenizer, "imagination": model}
    drawn = []

    def draw(tokens):
        drawn.append(tokens)
        return tokens[..., 0, None, None].expand(*tokens.shape[:-1], 84, 84).numpy().astype("uint8")

    monkeypatch.setattr(stages, "load", lambda run: made[run.stage])
    monkeypatch.setattr(stages, "drawer_of", lambda run: draw)
    return drawn


def test_a_played_video_starts_every_dream_from_real_context(untrained, tmp_path):
    path = video.play_video(game="breakout", profile="smoke", policy="random", steps=20,
                            out=tmp_path / "play.mp4")
    (real, dreamed), = untrained
    context = 8  # of the smoke profile; its horizon is 15, so the second dream has 5 steps
    assert real.shape == dreamed.shape == (context + 20, 3)
    assert (real[:context] == dreamed[:context]).all()
    assert (real[context:] != dreamed[context:]).any()
    with imageio.get_reader(path) as film:
        assert film.count_frames() == context + 20
        assert film.get_meta_data()["size"] == (3 * 260, 44 + 252)


@pytest.fixture
def drawn_with(monkeypatch):
    """What play_video has drawn: frames and marks by column, instead of a file."""
    found = {}
    monkeypatch.setattr(video, "side_by_side_video", lambda columns, out, *, notes, marks: (
        found.update(columns=columns, marks=marks)))
    return found


def test_the_ball_is_circled_by_ram_and_as_each_columns_own_codes_say(
        untrained, drawn_with, monkeypatch):
    steps, context = 5, 8
    ram = np.zeros((context + steps, 128), np.uint8)
    ram[:, 49], ram[:, 54] = 60 + 4 * np.arange(13), 90
    ram[10, 54] = 0  # no ball in play
    tokens = torch.stack([torch.arange(13) * k for k in (3, 5, 7)], 1) + 60
    dreamed = tokens + torch.tensor([9, 0, 0])
    monkeypatch.setattr(video, "_recorded", lambda run, game, length: (
        clip(length), ram, tokens, torch.zeros(length)))
    monkeypatch.setattr(video, "_dreamed", lambda *inputs: (dreamed, [""] * 13))
    monkeypatch.setattr(video.runs, "finished", lambda run: {"stage": run.stage})
    monkeypatch.setattr(stages, "load",
                        lambda run: SimpleNamespace(decode=lambda codes: codes.double()))
    probe = SimpleNamespace(predict=lambda x: {"ball_x": x[:, 0], "ball_y": x[:, 2]})
    monkeypatch.setattr(stages, "coordinate_probe", lambda *inputs: probe)
    video.play_video(game="pong", profile="smoke", steps=steps)
    names = ["real game (recorded)", "its codes, decoded", "dream"]
    assert list(drawn_with["columns"]) == list(drawn_with["marks"]) == names
    real, codes, dream = drawn_with["marks"].values()
    in_play = np.arange(13) != 10
    assert all(np.isnan(places[10]).all() for places in (real, codes, dream))
    one = np.array([84 / 160, 84 / 210])  # RAM's units are screen pixels of 160 x 210
    moves = np.arange(13)[in_play, None]
    np.testing.assert_allclose(real[in_play] - real[0], moves * [4, 0] * one, atol=1e-9)
    np.testing.assert_allclose(codes[in_play] - real[0], (moves * [3, 7] - [0, 30]) * one,
                               atol=1e-9)
    np.testing.assert_allclose((dream - codes)[in_play], [[9 * one[0], 0]] * 12, atol=1e-9)


def test_without_stored_frames_only_ram_says_where_the_ball_is(untrained, drawn_with, capsys):
    video.play_video(game="breakout", profile="smoke", policy="random", steps=20)
    assert list(drawn_with["marks"]) == ["real game (random)"]
    assert drawn_with["marks"]["real game (random)"].shape == (8 + 20, 2)
    assert "hd run 01_frames --profile smoke" in capsys.readouterr().out


def test_a_chain_of_fewer_games_can_be_watched(untrained, drawn_with, capsys):
    video.play_video(game="breakout", games=["breakout"], profile="smoke", policy="random", steps=9)
    assert list(drawn_with["columns"]) == ["real game (random)", "its codes, decoded", "dream"]
    assert "--seed 0 --games breakout" in capsys.readouterr().out


def test_a_circle_lies_on_the_ball_that_the_played_frame_shows(untrained, drawn_with):
    video.play_video(game="pong", profile="smoke", policy="random", steps=120)
    frames, marks = (drawn_with[part]["real game (random)"] for part in ("columns", "marks"))
    shown = np.isfinite(marks).all(1)
    assert 20 < shown.sum() < len(shown), "the ball comes into play after a while"
    hits = []
    for frame, (column, row) in zip(frames[shown], marks[shown]):
        column, row = round(column), round(row)
        near = frame[max(row - 2, 0):row + 3, max(column - 2, 0):column + 3].astype(int)
        hits.append(near.size > 0 and np.ptp(near) > 30)
    assert np.mean(hits) > 0.9


def test_a_dream_is_told_apart_from_its_context_in_the_line_on_top(untrained):
    run = runs.start("imagination", profile="smoke")
    tokens, actions = torch.randint(256, (8 + 20, 3)), torch.zeros(28, dtype=torch.long)
    dreamed, notes = video._dreamed(run, "pong", tokens, actions)
    assert len(dreamed) == len(notes) == 28
    assert all(note.startswith("context") for note in notes[:8])
    assert [int(re.search(r"step (\d+)", note)[1]) for note in notes[8:]] == [
        *range(1, 16), *range(1, 6)]


def test_every_dream_goes_on_from_the_real_step_before_it_with_the_actions_taken(
        untrained, monkeypatch):
    def count_on(model, tokens, actions, act, *, horizon, generator):
        assert (tokens[:, :-1, 0] == actions).all()  # in the context, action t stands at step t
        steps = torch.stack([tokens[:, -1] + k for k in range(horizon + 1)], 1)
        acted = torch.stack([act(None, generator) for _ in range(horizon)], 1)
        is_there = steps[:, :-1, 0] < 38
        assert (acted == steps[:, :-1, 0])[is_there].all()
        return SimpleNamespace(tokens=steps)

    monkeypatch.setattr(video, "imagine", count_on)
    run, numbers = runs.start("imagination", profile="smoke"), torch.arange(38)
    tokens = numbers[:, None].repeat(1, 3)
    assert (video._dreamed(run, "pong", tokens, numbers)[0] == tokens).all()


def test_changing_the_real_future_changes_only_the_dreams_that_start_after_it(untrained):
    run = runs.start("imagination", profile="smoke")
    tokens, actions = torch.randint(256, (8 + 30, 3)), torch.zeros(38, dtype=torch.long)
    before = video._dreamed(run, "pong", tokens, actions)[0]
    changed = tokens.clone()
    changed[8:] = (changed[8:] + 1) % 256
    after = video._dreamed(run, "pong", changed, actions)[0]
    # Dream one covers steps 8 to 22 and starts from steps 0 to 7.
    assert (before[:23] == after[:23]).all()


@pytest.mark.parametrize(("wrong", "message"), [
    ({"game": "tennis"}, "unknown game 'tennis'; allowed: pong"),
    ({"game": "pong", "games": ["breakout"]}, "unknown game 'pong'; allowed: breakout"),
    ({"policy": "me"}, "unknown policy 'me'; allowed: recorded, random, agent, tracker"),
    ({"out": "dream.mp3"}, "a video's name must end in .mp4; got dream.mp3"),
    ({"steps": 0}, "steps must be a whole number from 1 to 3000; got 0"),
    ({"game": "ms_pacman", "policy": "agent"}, "take variant policy_game.ms_pacman"),
    ({"game": "ms_pacman", "policy": "tracker"}, "no tracker for 'ms_pacman'")])
def test_a_video_that_cannot_be_made_is_refused_in_one_line(untrained, wrong, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        video.play_video(**{"game": "pong", "profile": "smoke", **wrong})
    assert "\n" not in str(error.value)


def test_without_ffmpeg_pages_have_no_video_and_play_says_what_it_needs(tmp_path, monkeypatch,
                                                                       capsys):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as where it is not installed
    path = tmp_path / "dream.mp4"
    written = video.side_by_side_video({"real": np.zeros((2, 84, 84), np.uint8)}, path)
    needs = "a video needs the package imageio-ffmpeg, which is not installed"
    assert capsys.readouterr().out == f"dream.mp4 is not written: {needs}\n"
    assert written is video.embed_video(written) is None and not path.exists()
    assert refusal(video.play_video, game="pong") == needs
