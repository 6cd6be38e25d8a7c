"""hd.audit.goals: the bars, and which variant is over them."""

import json

import pandas as pd
import pytest

from hd.audit import goals
from hd.report import figures
from hd.run import machine, runs
from hd.run.runs import row


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Writes a table as publishing leaves it; returns the results folder."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "audit").symlink_to(tmp_path / "audit" / "results")

    def write(stage, rows, **of_run):
        runs.save_table(runs.start(stage, profile="audit", **of_run), rows)
        return tmp_path / "published"

    return write


def line(root, topic, words, game):
    """The row, with what its variants say split from whether they reach the bar."""
    table = goals.table(topic, "audit", results_dir=root)
    found = table[(table["game"] == game) & table.index.str.startswith(words)]
    assert len(found) == 1
    cells = dict(found.iloc[0])
    for variant in goals.COMPARED:
        mark, cell = cells[variant].startswith("✓ "), cells[variant].removeprefix("✓ ")
        reached = "–" if cell == "–" else "yes" if mark else "no"
        cells |= {variant: cell, f"{variant} reaches it": reached}
    return cells


def test_the_bar_of_the_probes_is_what_st_dim_reaches(published):
    root = published("encoder", [row("f1_overall", 0.82, game="pong", baseline=0.5),
                                 row("f1_overall", 0.82, game="breakout", baseline=0.5)])
    pong, breakout = (line(root, "representation", "F1 of RAM", game)
                      for game in ("Pong", "Breakout"))
    assert (pong["bar"], breakout["bar"]) == ("≥ 0.81", "≥ 0.88")
    assert (pong["base reaches it"], breakout["base reaches it"]) == ("yes", "no")
    assert pong["base"] == "0.820 (0.500), n=1"
    assert pong["hi-dreamer"] == pong["hi-dreamer reaches it"] == "–"


def test_variants_stand_side_by_side_with_their_intervals(published):
    for seed, value in enumerate((0.90, 0.96)):
        published("tokenizer", [row("r2_ball_x", value, game="pong", baseline=0.97)],
                  variant="hi-dreamer", seed=seed)
    root = published("tokenizer", [row("r2_ball_x", 0.3, game="pong", baseline=0.4)])
    found = line(root, "representation", "R2 of ball_x", "Pong")
    assert found["base"] == "0.300 (0.400), n=1"
    assert found["hi-dreamer"] == "0.930 of 0.90, 0.96 (0.970), n=2"
    assert (found["base reaches it"], found["hi-dreamer reaches it"]) == ("no", "yes")


@pytest.mark.parametrize(("value", "reached"), [(3.9, "yes"), (4.0, "yes"), (4.1, "no")])
def test_an_error_must_be_at_most_its_bar(published, value, reached):
    root = published("tokenizer", [row("error_ball_x", value, game="breakout", baseline=1.0)])
    found = line(root, "representation", "median error", "Breakout")
    assert (found["bar"], found["base reaches it"]) == ("≤ 4", reached)


def test_what_codes_lose_is_embeddings_less_codes(published):
    root = published("tokenizer", [row("f1_overall", 0.6, game="pong", baseline=0.64)])
    found = line(root, "representation", "F1 lost", "Pong")
    assert found["base"] == "0.0400, n=1" and found["base reaches it"] == "yes"


def test_the_level_that_uses_fewest_codes_counts(published):
    root = published("tokenizer", [row(f"l{level}_usage", value, baseline=1.0)
                                   for level, value in enumerate((0.99, 0.94, 1.0))])
    found = line(root, "representation", "codes in use", "all games")
    assert found["base"].startswith("0.940") and found["base reaches it"] == "no"


def test_without_a_context_floor_the_way_is_that_to_the_emulators(published):
    published("entropy_floor", [row("l0_state_floor[sticky 0]", 0.5, game="pong")])
    root = published("world_model", [
        row("l0_cross_entropy", 1.0, game="pong", baseline=2.5),
        row("l1_cross_entropy", 1.0, game="pong", baseline=2.5)])
    found = line(root, "dynamics", "next L0 code", "Pong")
    assert found["base"] == "0.750, n=1" and found["base reaches it"] == "yes"
    assert line(root, "dynamics", "next L1 code", "Pong")["base"] == "–", "its floor is unknown"


def test_the_way_goes_to_the_context_floor_and_that_to_the_emulators_stands_beside(published):
    published("entropy_floor", [row("l0_state_floor[sticky 0]", 0.0, game="pong"),
                                row("l0_context_floor", 0.5, game="pong", step=1),
                                row("l0_context_floor", 0.1, game="pong", step=2)])
    root = published("world_model", [row("l0_cross_entropy", 1.0, game="pong", baseline=1.5)])
    assert line(root, "dynamics", "next L0 code", "Pong")["base"] == "0.500 (0.333), n=1"


def test_the_way_begins_at_the_best_trivial_predictor(published):
    published("entropy_floor", [row("l0_state_floor[sticky 0]", 0.0, game="pong")])
    root = published("world_model", [
        row("l0_cross_entropy", 1.0, game="pong", baseline=4.0),
        row("l0_cross_entropy[repeat_last]", 2.0, game="pong"),
        row("l0_cross_entropy[frequency]", 3.0, game="pong")])
    assert line(root, "dynamics", "next L0 code", "Pong")["base"] == "0.500, n=1"


def test_a_variants_way_goes_to_no_context_floor_of_other_codes(published):
    published("entropy_floor", [row("l0_state_floor[sticky 0]", 0.0, game="pong"),
                                row("l0_context_floor", 0.5, game="pong", step=1)])
    root = published("world_model", [row("l0_cross_entropy", 1.0, game="pong", baseline=2.0)],
                     variant="hi-dreamer")
    assert line(root, "dynamics", "next L0 code", "Pong")["hi-dreamer"] == "0.500, n=1"


@pytest.mark.parametrize(("value", "reached"), [(0.5, "yes"), (1.0, "no"), (3.0, "no")])
def test_the_first_dreamed_steps_must_beat_a_straight_line(published, value, reached):
    root = published("imagination", [
        row("dream_error_ball_x", value, game="pong", step=1, baseline=4.0),
        row("dream_error_ball_x[extrapolated]", 1.0, game="pong", step=1)])
    found = line(root, "dynamics", "median error of ball_x after 1 dreamed step ", "Pong")
    assert found["base reaches it"] == reached and found["bar"] == "< brackets"
    assert found["base"].endswith("(1), n=1")


@pytest.mark.parametrize(("value", "reached"), [(0.0, "yes"), (0.5, "no")])
def test_who_is_as_exact_as_an_exact_guess_has_reached_its_bar(published, value, reached):
    root = published("imagination", [
        row("dream_error_ball_x", value, game="pong", step=1, baseline=4.0),
        row("dream_error_ball_x[extrapolated]", 0.0, game="pong", step=1)])
    found = line(root, "dynamics", "median error of ball_x after 1 dreamed step ", "Pong")
    assert found["base reaches it"] == reached


def test_the_controlled_object_is_read_by_its_worse_coordinate(published):
    root = published("tokenizer", [
        row("r2_player_y", 0.95, game="pong", baseline=0.97),
        row("r2_player_x", 0.95, game="ms_pacman", baseline=0.97),
        row("r2_player_y", 0.75, game="ms_pacman", baseline=0.98)])
    pong, pacman = (line(root, "representation", "R2 of the controlled", game)
                    for game in ("Pong", "MsPacman"))
    assert pong["base"] == "0.950 (0.970), n=1" and pong["base reaches it"] == "yes"
    assert pacman["base"] == "0.750 (0.980), n=1" and pacman["base reaches it"] == "no"


def test_a_dream_that_knows_the_controlled_object_less_than_copying_reaches_no_bar(published):
    root = published("imagination", [
        row("dream_error_player_x", 7.0, game="breakout", step=15, baseline=2.0)])
    found = line(root, "dynamics", "median error of the controlled object after 15", "Breakout")
    assert (found["bar"], found["base reaches it"]) == ("≤ 8", "no")


def test_rewards_of_dreams_are_found_at_the_dreams_last_step(published):
    root = published("imagination", [
        row("dream_reward_recall", 0.9, game="pong", step=48, baseline=0.1),
        row("dream_error_ball_x", 7.0, game="pong", step=15, baseline=50.0),
        row("dream_error_ball_x", 99.0, game="pong", step=48, baseline=50.0)])
    assert line(root, "dynamics", "scoring steps of dreams: recall",
                "Pong")["base"] == "0.900 (0.100), n=1"
    assert line(root, "dynamics", "median error of ball_x after 15", "Pong")["base reaches it"] == (
        "yes")


@pytest.mark.parametrize(("chance", "reached"), [(0.9, "no"), (0.95, "no"), (0.3, "yes")])
def test_a_bar_that_chance_reaches_too_is_not_reached(published, chance, reached):
    root = published("imagination", [
        row("dream_turn_recall_ball_x", 0.9, game="pong", step=15, baseline=chance)])
    assert line(root, "dynamics", "first turn", "Pong")["base reaches it"] == reached


def test_nothing_published_is_a_table_of_dashes(tmp_path):
    for topic in ("representation", "dynamics"):
        table = goals.table(topic, "audit", results_dir=tmp_path)
        assert len(table) >= 10 and set(table["base"]) == set(table["hi-dreamer"]) == {"–"}


def test_every_profile_at_which_hi_dreamer_is_measured_is_shown(published, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    rows = [row("r2_ball_x", 0.3, game="pong", baseline=0.4)]
    root = published("tokenizer", rows)

    def headings(topic, profile):
        shown.clear()
        goals.show(topic, profile, results_dir=root)
        return [one.data.partition(":")[0] for one in shown
                if getattr(one, "data", "").startswith("**")]

    assert headings("representation", "audit") == ["**audit**"]
    assert headings("dynamics", "desk") == ["**desk**"], "measured nowhere: the page's own profile"
    published("tokenizer", rows, variant="hi-dreamer")
    assert headings("representation", "desk") == ["**audit**"]


def test_what_is_shown_names_its_devices_and_commits(published, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    root = published("tokenizer", [row("r2_ball_x", 0.3, game="pong", baseline=0.4)])
    goals.show("representation", "audit", results_dir=root)
    *_, said = shown
    assert said.data.startswith(f"audit, base. Device: {machine.device_name()}. Commit: "
                                f"{machine.git_state()['commit'][:7]}")


def test_in_short_a_goal_is_one_row_with_its_games_in_turn(published, monkeypatch):
    root = published("tokenizer", [row("r2_ball_x", 0.95, game="pong", baseline=0.97),
                                   row("r2_ball_x", 0.4, game="breakout", baseline=0.97)])
    short = goals.in_short("representation", "audit", results_dir=root)
    assert len(short) <= 12 and short.index.is_unique
    found = short.loc["R² of the ball's x read from codes"]
    assert found.tolist() == ["✓ 0.950, 0.400", "–, –", "≥ 0.9", "Pong, Breakout"]
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    goals.show("representation", "audit", results_dir=root)
    (folded,) = (one.data for one in shown if getattr(one, "data", "").startswith("<details>"))
    assert "0.950 (0.970), n=1" in folded, "the whole table is one click away"


def test_fresh_results_of_one_profile_are_read_too(published, tmp_path):
    published("tokenizer", [row("r2_ball_x", 0.3, game="pong", baseline=0.4)])
    fresh = tmp_path / "audit" / "results"
    assert line(fresh, "representation", "R2 of ball_x", "Pong")["base"] == "0.300 (0.400), n=1"
    other = goals.table("representation", "desk", results_dir=fresh)
    assert set(other["base"]) == {"–"}


def unreached(root, monkeypatch, topic):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    goals.show_unreached(topic, results_dir=root)
    first, *lines = shown[0].data.splitlines()
    return first, [line for line in lines if line]


def test_a_bar_that_no_variant_reaches_is_named_with_the_best_value_and_a_reason(
        published, monkeypatch):
    published("tokenizer", [row("r2_ball_x", 0.3, game="pong", baseline=0.97)])
    root = published("tokenizer", [row("r2_ball_x", 0.7, game="pong", baseline=0.97),
                                   row("r2_ball_x", 0.93, game="breakout", baseline=0.97),
                                   row("error_ball_x", 3.0, game="pong", baseline=1.0)],
                     variant="hi-dreamer")
    first, (line,) = unreached(root, monkeypatch, "representation")
    assert first == "At **audit**:"
    said = "- **R2 of ball_x read from codes**: Pong 0.700 (hi-dreamer), bar ≥ 0.9."
    assert line.startswith(said)
    assert len(line) > 100, "a reason follows"


def test_the_best_of_an_error_is_the_smaller_one(published, monkeypatch):
    published("imagination", [row("dream_error_ball_x", 20.0, game="pong", step=15, baseline=50.0)])
    root = published("imagination", [row("dream_error_ball_x", 30.0, game="pong", step=15,
                                         baseline=50.0)], variant="hi-dreamer")
    _, (line,) = unreached(root, monkeypatch, "dynamics")
    assert "Pong 20 (base), bar ≤ 8." in line


def test_every_goal_that_can_be_missed_has_a_reason():
    assert all(goal.reason.strip().endswith(".") for goal in goals.GOALS)


def test_with_every_bar_reached_one_line_says_so(published, monkeypatch):
    root = published("tokenizer", [row("error_ball_x", 3.0, game="pong", baseline=1.0)],
                     variant="hi-dreamer")
    assert unreached(root, monkeypatch, "representation") == (
        "At **audit** every bar that is measured is reached.", [])


def test_where_hi_dreamer_is_not_measured_no_bar_of_its_is_called_reached(published, monkeypatch):
    root = published("tokenizer", [row("error_ball_x", 9.0, game="pong", baseline=1.0)])
    assert unreached(root, monkeypatch, "representation") == (
        "hi-dreamer is not measured here.", [])


def test_where_the_ball_is_lost_is_drawn_for_the_largest_profile_that_says_it(
        published, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(figures, "show", drawn.append)
    root = published("tokenizer", [row("r2_ball_x", 0.7, game="pong")], variant="hi-dreamer")
    figures.show_ball_places(goals.measured("representation", root), root)
    assert not drawn and "not measured" in capsys.readouterr().out
    for seed, left in ((0, 30.0), (1, 40.0)):
        published("tokenizer", [
            row("rms_error_ball_x[at 70]", left, game="pong", baseline=9.0),
            row("rms_error_ball_x[at 150]", 8.0, game="pong", baseline=3.0),
            row("ball_share[at 70]", 0.1, game="pong", split="train"),
            row("ball_share[at 150]", 0.9, game="pong", split="train"),
            row("r2_ball_x", 0.7, game="ms_pacman")], variant="hi-dreamer", seed=seed)
    figures.show_ball_places(goals.measured("representation", root), root)
    ax, steps = drawn[0].axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[35.0, 8.0], [9.0, 3.0]]
    assert ax.lines[0].get_xdata().tolist() == [70.0, 150.0]
    assert [patch.get_height() for patch in steps.patches] == [0.1, 0.9]
    assert ax.get_title() == "Pong, n=2"


@pytest.fixture
def agents(published, tmp_path):
    """Writes an agent's table of Pong as made on a device in so many minutes."""
    def write(value, *, device, minutes, variant="base", seed=0, auc=0.95, ball=0.99):
        published("agent", [
            row("real_return", value, game="pong", baseline=-20.3),
            row("r2_ball_x[source agent]", ball, game="pong", baseline=0.99),
            row("contact_auc[source agent]", auc, game="pong", baseline=0.93)],
            variant=variant, seed=seed, games=("pong",))
        (path,) = (tmp_path / "audit" / "results").rglob(f"{variant}-pong-seed{seed}.json")
        record = json.loads(path.read_text()) | {
            "made": {"device": device}, "made_seconds": 60 * minutes}
        path.write_text(json.dumps(record))
        return tmp_path / "published"
    return write


def bar_of(root, budget):
    table = goals.agent_bars(root)
    (found,) = table[table.index.str.startswith(budget) & (table["game"] == "Pong")].to_dict(
        "records")
    return found


@pytest.mark.parametrize(("device", "minutes", "budget"), [
    ("A processor, 2 cores", 150, "processor cores"), ("A graphics card", 9, "one graphics card")])
def test_an_agent_counts_where_its_device_and_its_minutes_are_allowed(agents, device, minutes,
                                                                      budget):
    root = agents(21.0, device=device, minutes=minutes)
    for words in ("processor cores", "one graphics card"):
        assert bar_of(root, words)["return"] == ("over it: 21" if words == budget else "–")
    agents(21.0, device=device, minutes=181)
    assert bar_of(root, budget)["return"] == "–", "too long for every budget but the last"
    assert bar_of(root, "any")["return"] == "over it: 21"
    agents(21.0, device=device, minutes=1, seed=1)
    assert bar_of(root, budget)["return"] == "–", "one of its seeds took too long"


def test_a_bar_of_agents_needs_as_many_seeds_as_it_asks_for(agents):
    cores = {"device": "A processor, 2 cores", "minutes": 150}
    root = agents(9.0, **cores)
    for seed, value in enumerate((2.0, 1.0)):
        agents(value, variant="agent_rates.all_steps", seed=seed, **cores)
    assert (bar_of(root, "proc")["return"], bar_of(root, "proc")["seeds"]) == (
        "over it: 9", "1 of 3")
    agents(3.0, variant="agent_rates.all_steps", seed=2, **cores)
    assert (bar_of(root, "proc")["return"], bar_of(root, "proc")["seeds"]) == (
        "✓ 2 of 2, 1, 3", "3 of 3")
    agents(-0.5, variant="agent_rates.all_steps", seed=2, **cores)
    assert bar_of(root, "proc")["return"] == "over it: 9", "a mean over the bar, a seed below it"


@pytest.mark.parametrize(("device", "bar", "at_the_bar"), [
    ("A processor, 2 cores", "> 0", "0"), ("A graphics card", "≥ 15", "over it: 15")])
def test_a_bar_is_passed_by_more_or_by_as_much_as_it_says(agents, device, bar, at_the_bar):
    root = agents(float(bar[2:]), device=device, minutes=9)
    found = bar_of(root, "proc" if "processor" in device else "one")
    assert (found["bar"], found["return"]) == (bar, at_the_bar)


def test_five_seeds_reach_a_bar_where_their_interval_does(agents):
    for seed, value in enumerate((21.0, 20.9, 20.3, 21.0, 20.9)):
        root = agents(value, seed=seed, device="A graphics card", minutes=60)
    assert goals.BUDGETS[-1].bars["pong"] > 20.3, "one of them is below it"
    assert bar_of(root, "any")["return"].startswith("✓ 20.8 [")
    agents(14.0, seed=4, device="A graphics card", minutes=60)
    assert not bar_of(root, "any")["return"].startswith("✓")


@pytest.mark.parametrize(("auc", "ball", "foretold", "held"), [
    (0.95, 0.99, "✓ 0.950 (0.930)", "✓ 0.990 (0.990)"),
    (0.92, 0.99, "0.920 (0.930), needs ≥ 0.930", "✓ 0.990 (0.990)"),
    (0.95, 0.90, "✓ 0.950 (0.930)", "0.900 (0.990), needs ≥ 0.950")])
def test_gates_of_the_best_runs_are_open_or_say_what_they_need(agents, auc, ball, foretold, held):
    root = agents(1.0, device="A processor, 2 cores", minutes=150, auc=auc, ball=ball)
    found = goals.agent_gates(root)["Pong, audit, base"]
    assert found["lost contacts foretold, own play, AUC (from RAM)"] == foretold
    assert found["ball in its codes, R² (pixels)"] == held
    assert found["a held action's return, error (zero)"] == "–", "not measured"


@pytest.mark.parametrize(("rows", "text"), [
    ([row("error_ball_x[source agent]", 3.5, game="pong", baseline=1.0),
      row("error_player_y[source random]", 2.0, game="pong", baseline=1.0)],
     "3.50 (1), needs ≤ 3"),
    ([row("error_ball_x[source tracker]", 3.5, game="pong", baseline=1.0)], "–")])
def test_a_gate_asks_for_the_worst_of_its_metrics(rows, text):
    (gate,) = (one for one in goals.GATES if one.words.startswith("median error"))
    assert gate.cell(tabled(rows), "pong") == text


def test_a_gate_at_a_step_takes_the_last_value_until_then_and_knows_its_games():
    (gate,) = (one for one in goals.GATES if one.metrics == "training_return")
    table = tabled([row("training_return", value, game="pong", step=step, baseline=-20.3)
                    for step, value in ((24_000, -19.0), (25_400, -17.0), (30_000, -21.0))])
    assert gate.cell(table, "pong") == "✓ -17 (-20.3)"
    assert gate.cell(table, "breakout") == "–"


def tabled(rows):
    return pd.DataFrame(rows).assign(stage="agent", variant="base", seed=0)
