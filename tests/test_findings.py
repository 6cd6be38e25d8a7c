"""hd.report.findings: what pages open with is read from tables; and its pictures."""

import re

import matplotlib.pyplot as plt
import pytest
from tiny import write_table

from hd.report import agent_figures, finding_figures, findings
from hd.run.runs import row


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def test_without_tables_every_page_says_that_nothing_is_measured(tmp_path):
    for sentence in (findings.representation(tmp_path), findings.dynamics(tmp_path),
                     findings.transfer(tmp_path), findings.ablations("quick", tmp_path),
                     findings.control(tmp_path)):
        assert sentence == findings.NOTHING


def test_the_ball_is_read_from_embeddings_codes_and_an_untrained_encoder(tmp_path):
    for variant, values in (("base", (0.25, -0.5)), ("hi-dreamer", (0.75, 0.5))):
        for stage, value in zip(("encoder", "tokenizer"), values):
            write_table(tmp_path / "quick", [
                row("r2_ball_x", value, game="pong",
                    baseline=0.625 if stage == "encoder" else value + 0.125),
                row("f1_overall", value, game="pong", baseline=0.5),
                row("f1_overall", value, game="breakout", baseline=0.875)],
                stage=stage, variant=variant)
    table = findings.ball_read(tmp_path)
    assert dict(zip(table["read"], table["value"])) == {
        findings.UNTRAINED: 0.625, "base's embeddings": -0.375, "base's codes": -0.5,
        "hi-dreamer's embeddings": 0.625, "hi-dreamer's codes": 0.5}, "of the same encoder"
    sentence = findings.representation(tmp_path)
    assert "from hi-dreamer's codes with 0.500 in Pong" in sentence
    assert "; codes and embeddings: base's (quick, seed 0), test episodes; hi-dreamer's" in sentence
    assert sentence.endswith("more than an untrained encoder's in 1 of 2 games (quick, seed 0).")
    (ax,) = finding_figures.ball_read(table).axes
    assert [bar.get_width() for bar in ax.patches] == [0.625, 0, 0, 0.625, 0.5]
    assert [text.get_text() for text in ax.texts][2] == "-0.500", "what is drawn as 0 is said"


def test_dreams_stand_beside_the_codes_of_the_truth_and_the_better_guess(tmp_path):
    rows = [row("dream_error_ball_x", 9.0, game="pong", step=step, baseline=20.0)
            for step in (1, 15)]
    rows += [row("dream_error_ball_x[re-encoded]", 3.0, game="pong", step=step) for step in (1, 15)]
    rows += [row("dream_error_ball_x[extrapolated]", 7.0, game="pong", step=15)]
    write_table(tmp_path / "quick", rows, stage="imagination")
    write_table(tmp_path / "quick", [
        row("l0_changed_accuracy", 0.5, game="pong", baseline=0.25),
        row("l0_changed_accuracy[repeat_last]", 0.375, game="pong")], stage="world_model")
    variant, errors = findings.dream_errors(tmp_path)
    assert variant == "base" and errors["guess"].tolist() == [20.0, 7.0]
    sentence = findings.dynamics(tmp_path)
    assert "0.500 in Pong (n-gram 0.375 in Pong)" in sentence
    assert "off by 9 of 160 (3 read from the codes of the truth, 7 by a still" in sentence
    (ax,) = finding_figures.dream_errors(errors, variant).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[9, 9], [3, 3], [20, 7]]


def test_gains_are_told_after_steps_of_the_new_game(tmp_path):
    rows = [row(f"transfer_l0_gain{word}", value, game="pong", step=step)
            for word, values in (("", (2.5, 0.5, 0.25)), ("[one_level]", (1.5, 0.75, 0.125)))
            for step, value in zip((0, 1000, 3000), values)]
    write_table(tmp_path / "quick", rows, stage="transfer")
    write_table(tmp_path / "quick", [row("l0_game_information", 1.0, baseline=1.125)],
                stage="tokenizer")
    sentence = findings.transfer(tmp_path)
    assert sentence.startswith("The coarse code tells 1 of the 1.12 nats")
    assert "saves, with three levels 0.500 nats a code after 1,000 steps of a new game, 0.250 " \
           "nats a code after 3,000 steps of a new game; with one level 0.750" in sentence
    assert sentence.endswith("of a new game, beside the same model from scratch: the mean over "
                             "games (quick, seed 0).")
    (ax,) = finding_figures.gains(findings.gains(tmp_path)).axes
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [
        [2.5, 0.5, 0.25], [1.5, 0.75, 0.125]]


def test_the_arm_that_is_farthest_from_base_comes_first(tmp_path):
    for variant, value in (("base", 0.5), ("mask.causal", 0.25), ("mask.strict", 0.75)):
        for seed in (0, 1):
            write_table(tmp_path / "audit", [
                row("l0_changed_accuracy", value, game=game) for game in ("pong", "breakout")],
                stage="world_model", variant=variant, seed=seed, profile="audit")
    table = findings.changes("audit", tmp_path)
    assert table["arm"].tolist() == ["causal", "strict"]
    assert table["ratio"].tolist() == pytest.approx([0.5, 1.5])
    sentence = findings.ablations("audit", tmp_path)
    assert sentence.startswith("Of 2 arms of 1 ablations (audit), 0 have the 5 seeds")
    assert "**mask: causal**, with 0.500 times base's" in sentence and "(2 seeds)" in sentence
    (ax,) = finding_figures.changes(table).axes
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == \
        pytest.approx([0.5, 1.5])
    assert ax.texts[0].get_text().startswith("mask: causal (next coarse code where it changes")


def test_an_arm_stands_beside_base_on_the_same_seeds(tmp_path):
    for variant, values in (("base", (0.5, 0.125)), ("mask.strict", (0.75,))):
        for seed, value in enumerate(values):
            write_table(tmp_path / "audit", [row("l0_changed_accuracy", value, game="pong")],
                        stage="world_model", variant=variant, seed=seed, profile="audit")
    (found,) = findings.changes("audit", tmp_path).to_dict("records")
    assert found["ratio"] == pytest.approx(1.5) and found["n"] == 1


def test_the_agents_of_the_largest_profile_are_told_with_their_device(tmp_path):
    for profile, value in (("quick", -20.0), ("desk", 7.5)):
        write_table(tmp_path / profile, [
            row("real_return", value, game="pong", baseline=-20.5)], stage="agent",
            variant="base-pong", profile=profile, made_seconds=600.0, games=["pong"],
            made={"device": "Test GPU"})
    sentence = findings.control(tmp_path)
    assert ("**7.50 in Pong** after 10 steps and 10 minutes on Test GPU (1 seed; random play -20.5"
            in sentence)
    assert "-20 in Pong" not in sentence


def test_names_beside_a_panel_keep_a_gap_and_stay_inside():
    assert agent_figures.apart([0.1, 0.15, 0.9], 0.1) == pytest.approx([0.1, 0.2, 0.9])
    assert agent_figures.apart([0.95, 0.96, 0.97], 0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_who_is_far_above_all_others_stands_at_the_top_with_an_arrow():
    history = [{"step": 1000, "minutes": 1.0, "return": 200.0},
               {"step": 2000, "minutes": 2.0, "return": 300.0, "is_final": True}]
    fig = agent_figures.agent_curves({"ms_pacman": {"a": history}},
                                     {"ms_pacman": {"a human": 6952.0, "DIAMOND": 1958.0}})
    marks = fig.axes[1]
    assert [text.get_text() for text in marks.texts] == ["DIAMOND 1,958", "a human 6,952 ↑"]
    assert 1958 < marks.get_ylim()[1] < 2200, "the curves keep their room"
    drawn = [line.get_ydata()[0] for line in marks.lines if line.get_marker() == "_"]
    assert drawn == [1958.0]


def write_agents(root, variant, values, baseline=-20.5, **changes):
    for seed, value in enumerate(values):
        path = write_table(root / "quick", [row("real_return", value, game="pong",
                                                baseline=baseline)], stage="agent", seed=seed,
                           variant=variant, config={"num_steps": 12800},
                           **{"made_seconds": 90.0} | changes)
        for file in (path, path.with_suffix(".json")):
            file.rename(file.with_name(file.name.replace("-seed", "-pong-seed")))


def test_arms_of_agents_are_told_by_their_differences_on_the_same_seeds(tmp_path):
    write_agents(tmp_path, "base", (-18, -10, -14, -16, -12))
    write_agents(tmp_path, "agent_codes.product", (-15, -7.5, -11, -13, -8.5))
    write_agents(tmp_path, "agent_codes.one_place", (-20.5, -20.5, -20.5, -20.5, -20.5))
    write_agents(tmp_path, "agent_codes.one_level", (-10, -18, -14, -12, -16))
    write_agents(tmp_path, "agent_transfer.others", (-20, -12))
    found = findings.agent_arms("quick", tmp_path).set_index("arm")
    assert list(found.index) == ["product", "one_level", "others", "one_place"]
    assert found["n"].tolist() == [5, 5, 2, 5] and found["mean"].tolist() == [3, 0, -2, -6.5]
    assert found.loc["product", "gaps"] == {0: 3, 1: 2.5, 2: 3, 3: 3, 4: 3.5}
    assert found["p"].isna().tolist() == [False, False, True, False]
    sentence = findings.agents_need("quick", tmp_path)
    assert "the agent as it is scores -14, random play -20.5 (quick, 5 seeds" in sentence
    assert "Better: as many bits, but no levels +3.0 [+2.6, +3.4]." in sentence
    assert "Worse: one place for the whole picture, so fewer bits -6.5 [-10.4, -2.6]." in sentence
    assert "No clear difference: one level of codes +0.0 [-" in sentence
    assert sentence.endswith("a direction: starts from two other games -2.0.")
    assert "direction" not in findings.agents_need("quick", tmp_path, brief=True)


def test_an_arm_that_was_made_elsewhere_names_its_device(tmp_path):
    write_agents(tmp_path, "base", (-18, -10, -14, -16, -12))
    write_agents(tmp_path, "agent_data.model_free", (-21, -20, -20, -20, -20), device="a CPU",
                 made_seconds=1440.0)
    sentence = findings.agents_need("quick", tmp_path)
    assert "Worse: no world model (DQN) (on a CPU, 24 minutes) -6.2 [-9.8, -2.6]." in sentence
    assert "Test CPU, " in sentence and "(on Test CPU)" not in sentence, "base's is named once"


def test_a_picture_of_arms_has_a_dot_per_seed_and_base_among_them(tmp_path):
    write_agents(tmp_path, "base", (-18, -10, -14, -16, -12))
    write_agents(tmp_path, "agent_codes.product", (-15, -7.5, -11, -13, -8.5))
    write_agents(tmp_path, "agent_codes.one_place", (-20.5, -20.25))
    (ax,) = agent_figures.arms(findings.agent_arms("quick", tmp_path)).axes
    dots = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    assert [len(xs) for xs in dots] == [5, 5, 2], "the best arm first, base in its place"
    assert [label.get_text() for label in ax.get_yticklabels()][1] == "base"
    assert [(text.get_text(), text.get_weight()) for text in ax.texts] == [
        ("+3.0", "bold"), ("", "normal"), ("-6.4", "normal")]


def test_without_arms_of_agents_the_page_says_so(tmp_path, capsys):
    write_agents(tmp_path, "base", (-18,))
    assert findings.agents_need("quick", tmp_path) == findings.NOTHING
    agent_figures.show_arms("quick", tmp_path)
    assert capsys.readouterr().out == "No ablation of agents is published at profile quick.\n"


def test_codes_and_world_model_are_told_alone_and_together(tmp_path, capsys):
    for variant, accuracy, error in (("base", 0.1, 20), ("recipe.codes", 0.7, 8),
                                     ("recipe.world_model", 0.4, 15), ("recipe.both", 0.8, 3)):
        own = 0.2 if variant in ("base", "recipe.world_model") else 0.6  # of the same codes
        write_table(tmp_path / "desk", [
            row("l0_changed_accuracy", accuracy, game=game, baseline=own)
            for game in ("pong", "breakout")], stage="world_model", variant=variant)
        write_table(tmp_path / "desk", [
            row("dream_error_ball_x", error + step, game="pong", baseline=0, step=step)
            for step in (5, 15)], stage="imagination", variant=variant)
    sentence = findings.which_change("desk", tmp_path)
    assert ("base in 0 of 2 games, hi-dreamer's codes in 2 of 2 games, hi-dreamer's world model in "
            "2 of 2 games and both in 2 of 2 games (desk, 1 seed)") in sentence
    assert sentence.endswith("off, of 160: base 25 in Pong; hi-dreamer's codes 13 in Pong; "
                             "hi-dreamer's world model 20 in Pong; both 8 in Pong; a still or "
                             "straight guess 0 in Pong.")
    findings.show_changed_codes("desk", tmp_path)
    assert "0.700 (0.600)" in capsys.readouterr().out
    (ax,) = finding_figures.changed_dreams(findings.changed_dreams("desk", tmp_path)).axes
    assert {line.get_label(): list(line.get_ydata()) for line in ax.lines} == {
        "base": [25, 35], "hi-dreamer's codes": [13, 23], "hi-dreamer's world model": [20, 30],
        "both": [8, 18], "still or straight guess, the better": [0, 0]}
    assert findings.which_change("audit", tmp_path) == findings.NOTHING


def test_f1_by_other_protocols_stands_by_what_is_probed(tmp_path, capsys):
    for variant, trained, untrained in (("base", 0.5, 0.8), ("probe_protocol.raw", 0.4, 0.1)):
        write_table(tmp_path / "desk", [
            row(f"f1_overall{what}", value, game="pong") for what, value in (
                ("", trained), ("[untrained]", untrained), ("[pixel_pca]", 0.7),
                ("[majority]", 0.05))], stage="encoder", variant=variant)
    findings.show_protocols("desk", tmp_path)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "trained / untrained / pixels / majority"
    assert [re.split(r"  +", line) for line in lines] == [
        ["standardised features", "0.500 / 0.800 / 0.700 / 0.0500"],
        ["features as they are", "0.400 / 0.100 / 0.700 / 0.0500"]]
    findings.show_protocols("audit", tmp_path)
    assert capsys.readouterr().out == ""
