"""hd.report.figures: what each picture draws, from tiny inputs."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tiny import TinyReplay, long_table

from hd import world_model
from hd.report import figures
from hd.run import runs
from hd.run.runs import row
from hd.world_model import MASKS


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def titles(fig):
    return [ax.get_title() for ax in fig.axes]


def heights(ax):
    return [round(patch.get_height(), 6) for patch in ax.patches]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_frame_strip_rings_the_ball_where_ram_says_and_only_while_it_is_in_play():
    fig = figures.frame_strip(TinyReplay(), "pong", [0, 1])
    assert len(fig.axes) == 10
    rings = [len(ax.lines) for ax in fig.axes]
    assert rings == [0] * 9 + [1]
    (x,), (y,) = fig.axes[9].lines[0].get_data()
    # RAM (128, 100) is screen (79.5, 87.5), the middle of pixel 80 of 160 and of 88 of 210.
    assert (x, y) == pytest.approx((80 * 84 / 160 - 0.5, 88 * 84 / 210 - 0.5))


def test_the_ring_lies_on_the_ball_of_the_real_game():
    from hd.atari import AtariGame, tracker_action
    env, on_ball = AtariGame("pong"), []
    frame, info = env.reset(seed=1)
    for _ in range(60):
        frame, *_, info = env.step(tracker_action("pong", info["ram"]))
        if info["ram"][54]:
            data = SimpleNamespace(stack=lambda rows, f=frame: np.repeat(f[None, None], 4, 1),
                                   ram=info["ram"][None])
            fig = figures.frame_strip(data, "pong", [0])
            (x,), (y,) = fig.axes[4].lines[0].get_data()
            patch = frame[round(y) - 1:round(y) + 2, round(x) - 1:round(x) + 2]
            on_ball.append(patch.max() > frame[40, 42] + 40)
            plt.close(fig)
        if len(on_ball) == 5:
            break
    assert on_ball == [True] * 5


def test_episode_lengths_show_every_episode_on_its_side():
    fig = figures.episode_lengths(TinyReplay())
    training, held_out, mean = fig.axes[0].lines
    assert training.get_ydata().tolist() == [5] and held_out.get_ydata().tolist() == [3]
    assert mean.get_ydata()[0] == 4
    assert legend(fig.axes[0]) == ["training (n=1)", "validation (n=1)", "mean 4"]


def test_learning_curves_draw_training_held_out_and_baseline_with_units():
    history = [{"step": s, "codes": 1 / s, "loss": 2 / s} for s in (1, 2, 3)]
    history[-1]["val_codes"] = 0.5
    fig = figures.learning_curves({"a": history, "b": history}, ["codes", "loss"],
                                  {"codes": {"n-gram": 0.7, "frequency": 0.9}, "loss": 5.5})
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "a training", "a held out", "b training", "b held out", "n-gram", "frequency", "baseline"]
    assert all(ax.get_legend() is None for ax in fig.axes), "one for all panels"
    assert [len(ax.lines) for ax in fig.axes] == [6, 3]
    assert fig.axes[1].lines[-1].get_ydata()[0] == 5.5
    assert [ax.get_ylabel() for ax in fig.axes] == ["codes (nats)", "loss (nats)"]


def test_an_embedding_map_colours_by_word_and_by_number():
    rows = np.random.default_rng(0).normal(size=(40, 6))
    ball = np.where(np.arange(40) % 4 == 0, np.nan, np.arange(40.0))
    fig = figures.embedding_map(rows, {"game": ["pong"] * 10 + ["breakout"] * 30, "ball_x": ball})
    words, numbers, scale = fig.axes
    assert legend(words) == ["Pong", "Breakout"]
    assert [len(part.get_offsets()) for part in words.collections] == [10, 30]
    assert [len(part.get_offsets()) for part in numbers.collections] == [10, 30]
    assert scale.get_ylabel() == "ball_x"
    assert words.get_title() == "by game, n=40"


def test_a_large_embedding_map_is_thinned():
    rows = np.random.default_rng(0).normal(size=(figures.MAX_POINTS * 2 + 1, 3))
    fig = figures.embedding_map(rows, {"ball_x": rows[:, 0]})
    assert sum(len(part.get_offsets()) for part in fig.axes[0].collections) <= figures.MAX_POINTS


def test_code_usage_sorts_codes_and_draws_the_even_share():
    tokens = np.array([[0, 3], [0, 3], [0, 3], [2, 1]])
    fig = figures.code_usage({"pong": tokens, "breakout": tokens}, num_codes=5)
    assert len(fig.axes) == 4
    assert heights(fig.axes[0]) == [0.75, 0.25, 0, 0, 0]
    assert fig.axes[0].lines[0].get_ydata()[0] == 0.2
    assert titles(fig)[0] == "Pong L0: 2 of 5 used,\nperplexity 2"


def test_game_information_stands_below_its_ceiling():
    table = long_table(lambda seed: [
        row(f"l{level}_game_information", 1 - 0.3 * level + 0.01 * seed, baseline=1.1)
        for level in range(3)], stage="tokenizer", seeds=(0, 1))
    ax = figures.game_information(table).axes[0]
    assert heights(ax) == [1.005, 0.705, 0.405]
    (ceiling,) = (line for line in ax.lines if line.get_label().startswith("H(game)"))
    assert ceiling.get_ydata()[0] == 1.1
    assert [t.get_text() for t in ax.get_xticklabels()] == list(figures.LEVELS)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 3 and len(dots[0].get_ydata()) == 2, "two seeds a bar, and no whiskers"


def test_all_four_masks_are_drawn_as_they_are():
    fig = figures.attention_masks(num_steps=2)
    for ax, kind in zip(fig.axes, MASKS, strict=True):
        mask = world_model.hierarchical_mask(2, kind).numpy()
        assert (ax.images[0].get_array() == mask).all()
        assert ax.get_title() == f"{kind}: {mask.sum()} of 64"
        assert [t.get_text() for t in ax.get_xticklabels()] == ["L0", "L1", "L2", "a"] * 2


def test_accuracies_stand_beside_all_three_baselines_on_all_and_on_changed_codes():
    rows = []
    for level in range(3):
        for part, shift in (("", 0), ("changed_", 0.1)):
            name = f"l{level}_{part}accuracy"
            rows += [row(name, 0.5 + shift, game="pong", baseline=0.4),
                     row(f"{name}[repeat_last]", 0.3, game="pong"),
                     row(f"{name}[frequency]", 0.2, game="pong")]
    fig = figures.accuracy_table_figure(long_table(rows, stage="world_model"))
    assert titles(fig) == ["Pong, all codes", "Pong, codes that change"]
    assert heights(fig.axes[0]) == [0.5] * 3 + [0.4] * 3 + [0.3] * 3 + [0.2] * 3
    assert heights(fig.axes[1])[:3] == [0.6] * 3
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "world model", "n-gram", "last code", "most frequent code"]
    assert fig.axes[0].get_ylabel() == "accuracy (share)"


def test_the_ngrams_bars_carry_no_seeds_of_the_world_model():
    rows = [row(f"l{level}_{part}accuracy", 0.5, game="pong", baseline=0.25)
            for level in range(3) for part in ("", "changed_")]
    fig = figures.accuracy_table_figure(long_table(rows, stage="world_model", seeds=(0, 1)))
    dots = {float(line.get_ydata()[0]) for line in fig.axes[0].lines}
    assert dots == {0.5} and len(fig.axes[0].lines) == 3, "one line of dots for each level"


def test_newer_accuracies_stand_beside_back_off_in_place_of_the_ngram():
    rows = []
    for level in range(3):
        for name in (f"l{level}_accuracy", f"l{level}_changed_accuracy"):
            rows += [row(name, 0.5, game="pong", baseline=0.4),
                     *(row(f"{name}[{word}]", value, game="pong") for word, value in
                       (("repeat_last", 0.3), ("frequency", 0.2), ("back_off", 0.4)))]
    fig = figures.accuracy_table_figure(long_table(rows, stage="world_model"))
    assert heights(fig.axes[0]) == [0.5] * 3 + [0.4] * 3 + [0.3] * 3 + [0.2] * 3
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "world model", "back-off", "last code", "most frequent code"]


def test_metric_bars_draw_value_and_baseline_for_each_game():
    table = long_table([row("f1_overall", 0.6, game="pong", baseline=0.4),
                        row("f1_overall", 0.7, game="breakout", baseline=0.5),
                        row("diversity", 1.2)])
    fig = figures.metric_bars(table, ["f1_overall", "diversity"])
    assert heights(fig.axes[0]) == [0.6, 0.7, 0.4, 0.5]
    assert legend(fig.axes[0]) == ["measured", "untrained encoder"]
    assert heights(fig.axes[1]) == [1.2]
    assert fig.axes[1].get_ylabel() == "diversity (distance)"


def test_arm_bars_draw_every_arm_and_bases_baseline():
    arms = {"base": 0.5, "mask.strict": 0.25}
    table = pd.concat([
        long_table([row("l0_accuracy", value, game=game, baseline=0.4)
                    for game in ("pong", "breakout")]).assign(variant=arm)
        for arm, value in arms.items()])
    fig = figures.arm_bars(table, ["l0_accuracy"])
    assert heights(fig.axes[0]) == [0.5, 0.5, 0.25, 0.25]
    (baseline,) = fig.axes[0].collections
    assert [segment[0, 1] for segment in baseline.get_segments()] == [0.4, 0.4]
    assert {text.get_text() for text in fig.legends[0].get_texts()} == {*arms, "baseline"}


def test_a_dream_strip_shows_the_chosen_steps_that_exist():
    frames = np.stack([np.full((84, 84), k, np.uint8) for k in range(6)])
    fig = figures.film_strip({"real game": frames, "its codes": frames + 50, "dream": frames + 100},
                             steps=(0, 2, 9))
    assert len(fig.axes) == 6
    assert titles(fig)[:2] == ["last real step", "step 2"]
    shown = [int(ax.images[0].get_array()[0, 0]) for ax in fig.axes]
    assert shown == [0, 2, 50, 52, 100, 102]


def test_returns_show_every_episode_the_random_line_and_anchors():
    episodes = [{"player": player, "game": "pong", "return": float(value)}
                for player, values in (("policy", (-20, -18, -19)), ("random", (-21, -21)))
                for value in values]
    ax = figures.returns_plot(episodes, {"Human": 14.6}).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [-20, -18, -19]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["policy\nn=3", "random\nn=2"]
    dashed = {line.get_label(): line.get_ydata()[0] for line in ax.lines
              if line.get_label() in ("random play, mean", "Human")}
    assert dashed == {"random play, mean": -21, "Human": 14.6}


def test_figures_are_saved_in_the_runs_own_folder_and_small_ones_as_svg_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    run = runs.start("encoder", profile="smoke", variant="mask.strict", seed=3)
    figures.save(figures.attention_masks(1), run, "masks")
    folder = tmp_path / "smoke" / "figures" / "mask.strict-seed3"
    assert (folder / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "masks.svg").read_text()
    monkeypatch.setattr(figures, "SVG_BYTES", 10)
    figures.save(figures.attention_masks(1), folder, "masks")
    assert [path.name for path in folder.iterdir()] == ["masks.png"]


def test_drawing_leaves_the_sessions_own_style_alone():
    with plt.rc_context({"font.size": 17}):
        fig = figures.attention_masks(1)
        assert plt.rcParams["font.size"] == 17
    assert fig.axes[0].title.get_fontsize() == figures.STYLE["axes.titlesize"]
