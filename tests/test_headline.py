"""hd.book.headline: what the README and the book say in numbers, from the published tables."""

import re

from tiny import write_table

from hd.book import headline
from hd.run.runs import row


def test_a_headline_shows_value_beside_baseline_per_game_and_profile(tmp_path):
    write_table(tmp_path / "quick", [row("f1_overall", 0.456, game="pong", baseline=0.3),
                                     row("f1_overall", 0.5, game="breakout", baseline=0.25)])
    dreams = [row("dream_l0_accuracy", 0.01 * step, game="ms_pacman", step=step, baseline=0.5)
              for step in (1, 15, 50)]
    write_table(tmp_path / "quick", dreams, stage="imagination")
    assert headline.in_full(tmp_path) == "\n".join([
        "**quick**: the newcomer's first report: frames to policy in ten minutes on two cores",
        "",
        "| metric | Pong | Breakout | MsPacman | in brackets | seeds |",
        "|---|---|---|---|---|---|",
        "| RAM state read from embeddings, F1 | 0.456 (0.300) | 0.500 (0.250) |  "
        "| untrained encoder | 1 |",
        "| coarse codes right in a dream after 15 steps |  |  | 0.150 (0.500) "
        "| last step copied | 1 |",
        "",
        "Value of seeds, from 5 on [95% interval] (baseline, or a better trivial one by name), "
        "test episodes. Device: Test CPU. Commit: abc1234."])


def test_a_headline_says_which_episodes_its_numbers_are_of(tmp_path):
    write_table(tmp_path / "desk", [row("r2_ball_x", 0.5, game="pong", split="val")],
                profile="desk")
    assert "held-out episodes, on which settings were chosen too. D" in headline.in_full(tmp_path)
    said = "".join(short(tmp_path))
    assert "| 0.500 † |" in said
    assert "†: on held-out episodes, on which settings were chosen too, and not to be" in said
    write_table(tmp_path / "desk", [row("real_return", 0.5, game="pong", split="real")],
                stage="policy", profile="desk")
    write_table(tmp_path / "desk", [row("l0_usage", 0.5, game="pong")], stage="tokenizer",
                profile="desk")
    assert "test episodes or held-out episodes, on which" in headline.in_full(tmp_path)


def test_a_headline_lists_mixed_commits_and_devices_with_their_stages(tmp_path):
    write_table(tmp_path / "desk", [row("l0_usage", 1)], stage="tokenizer", profile="desk")
    write_table(tmp_path / "desk", [row("l0_accuracy", 1)], stage="world_model", profile="desk",
                device="GPU", git={"commit": "fedcba98", "dirty": False})
    note = headline.in_full(tmp_path).splitlines()[-1]
    assert note.endswith("Device: Test CPU (tokenizer); GPU (world_model). "
                         "Commit: abc1234 (tokenizer); fedcba9 (world_model).")


def test_a_headline_takes_the_other_games_from_the_policys_variants_and_pools_seeds(tmp_path):
    for seed in (0, 1):
        write_table(tmp_path / "audit", [row("real_return", seed, game="pong", baseline=-20)],
                    stage="policy", seed=seed, profile="audit")
    write_table(tmp_path / "audit", [row("real_return", 2, game="breakout", baseline=1.5)],
                stage="policy", variant="policy_game.breakout", profile="audit")
    line = headline.in_full(tmp_path).splitlines()[4]
    assert line == ("| return in the real game | 0.500 of 0, 1 (-20) | 2 (1.50) |  | random play "
                    "| 2, 1 |")


def test_profiles_stand_largest_first_and_smoke_makes_no_headline(tmp_path):
    for profile in ("smoke", "quick", "paper"):
        write_table(tmp_path / profile, [row("l0_usage", 1, game="pong")], stage="tokenizer",
                    profile=profile)
    assert re.findall(r"^\*\*(\w+)\*\*", headline.in_full(tmp_path), re.MULTILINE) == [
        "paper", "quick"]


def test_hi_dreamer_has_a_headline_of_its_own_after_base(tmp_path):
    for variant, value in (("base", 0.25), ("hi-dreamer", 0.75)):
        write_table(tmp_path / "quick", [row("r2_ball_x", value, game="pong")], variant=variant)
    lines = headline.in_full(tmp_path).splitlines()
    headings = [line.partition(":")[0] for line in lines if line.startswith("**")]
    assert headings == ["**quick**", "**quick, variant hi-dreamer**"]
    assert [line.split(" | ")[1] for line in lines if "the ball's x" in line] == ["0.250", "0.750"]


# ---- the short table

def short(folder):
    """The lines of the short table, without the count of verdicts."""
    lines = headline.summary(folder, claims_page="claims").splitlines()
    return lines[next(k for k, line in enumerate(lines) if line.startswith("| profile")):]


def test_base_stands_beside_hi_dreamer_at_the_largest_profile_that_has_both(tmp_path):
    for profile, variants in (("quick", ("base", "hi-dreamer")), ("desk", ("base",)),
                              ("smoke", ("base", "hi-dreamer"))):
        for variant in variants:
            write_table(tmp_path / profile, [row("real_return", 3, game="pong", baseline=2.0)],
                        stage="policy", variant=variant, profile=profile)
    first, _, line, *_ = short(tmp_path)
    assert first == "| profile quick | game | base | hi-dreamer | seeds |"
    assert line == ("| return in the real game | Pong | 3 (random play 2) | 3 (random play 2) "
                    "| 1, 1 |")


def test_the_best_trivial_method_stands_in_brackets_under_its_name(tmp_path):
    rows = [row("l0_accuracy", 0.625, game="pong", baseline=0.25),
            row("l0_accuracy", 0.625, game="breakout", baseline=0.75)]
    rows += [row("l0_accuracy[repeat_last]", 0.5, game=game) for game in ("pong", "breakout")]
    write_table(tmp_path / "desk", rows, stage="world_model", profile="desk")
    _, _, pong, breakout, *_ = short(tmp_path)
    assert "| Pong | 0.625 (last code 0.500) | – |" in pong
    assert "| Breakout | 0.625 (n-gram 0.750) | – |" in breakout


def test_newer_tables_name_the_one_predictor_that_was_best_in_all_seeds(tmp_path):
    others = (0.5, 0.75), (0.5, 0.25)  # of the last code, of back-off, by seed
    for seed, (last, counted) in enumerate(zip(*others)):
        rows = [row("l0_accuracy", 0.9, game="pong", baseline=0.8),
                row("l0_accuracy[back_off]", 0.8, game="pong"),
                row("l0_accuracy[repeat_last]", 0.5, game="pong"),
                row("l0_accuracy", 0.9, game="breakout", baseline=max(last, counted)),
                row("l0_accuracy[back_off]", counted, game="breakout"),
                row("l0_accuracy[repeat_last]", last, game="breakout")]
        write_table(tmp_path / "desk", rows, stage="world_model", profile="desk", seed=seed)
    _, _, pong, breakout, *_ = short(tmp_path)
    assert "(back-off 0.800)" in pong
    assert "(last code 0.625)" in breakout
    full = next(line for line in headline.in_full(tmp_path).splitlines() if "coarse code" in line)
    assert "(back-off 0.800)" in full and "| best trivial predictor |" in full


def test_where_seeds_differ_in_the_best_predictor_no_single_one_is_named(tmp_path):
    for seed, (last, counted) in enumerate(((0.5, 0.75), (0.75, 0.5))):
        rows = [row("l0_accuracy", 0.9, game="pong", baseline=0.75),
                row("l0_accuracy[back_off]", counted, game="pong"),
                row("l0_accuracy[repeat_last]", last, game="pong")]
        write_table(tmp_path / "desk", rows, stage="world_model", profile="desk", seed=seed)
    assert "(best trivial predictor 0.750)" in short(tmp_path)[2]


def test_bold_says_that_the_whole_interval_is_above_the_baseline(tmp_path):
    for seed, value in enumerate((0.5, 0.75, 0.5, 0.75, 0.625)):
        rows = [row("r2_ball_x", value, game="pong", baseline=0.25),
                row("r2_ball_x", value, game="breakout", baseline=0.625)]
        write_table(tmp_path / "desk", rows, seed=seed, profile="desk")
    _, _, pong, breakout, *_ = short(tmp_path)
    assert "| **0.625** [0.470, 0.780] (untrained encoder 0.250) |" in pong
    assert "| 0.625 [0.470, 0.780] (untrained encoder 0.625) |" in breakout


def test_few_seeds_stand_one_by_one_and_are_never_bold(tmp_path):
    for seed, value in enumerate((0.5, 0.75)):
        write_table(tmp_path / "desk", [row("r2_ball_x", value, game="pong", baseline=0.25)],
                    seed=seed, profile="desk")
    assert "| 0.625 of 0.50, 0.75 (untrained encoder 0.250) |" in short(tmp_path)[2]


def test_the_published_table_has_at_most_twelve_rows_and_counts_every_claim():
    text = headline.summary(claims_page="claims")
    assert 0 < len(re.findall(r"^\| (?!profile|the agent)\w", text, re.MULTILINE)) <= 12
    (line,) = (line for line in text.splitlines() if line.startswith("Of "))
    of, *counts = map(int, re.findall(r"(?:Of | )(\d+) ", line))
    assert of == sum(counts) == 25 and line.endswith("(claims).")


def test_the_agents_stand_first_with_what_others_reached(tmp_path):
    def write(profile, game, seed, value):
        write_table(tmp_path / profile, [
            row("real_return", value, game=game, baseline=-20.0),
            row("real_return[ci_low]", value - 1, game=game),
            row("real_return[ci_high]", value + 1, game=game)], stage="agent",
            variant=f"base-{game}", seed=seed, profile=profile, made_seconds=600.0,
            config={"num_steps": 46_080, "batch_size": 2})

    write("quick", "pong", 0, -13.0)
    write("audit", "pong", 0, 12.0)
    write("audit", "breakout", 0, 5.0)
    write("desk", "breakout", 0, 8.0)
    write("audit", "ms_pacman", 0, 5.0)
    write("audit", "ms_pacman", 1, 7.0)
    lines = headline.summary(tmp_path, claims_page="claims").splitlines()
    assert lines[0].startswith("| the agent | profile | steps | minutes | return |")
    assert lines[2] == ("| Pong | audit | 46,080 | 10 | 12 [11, 13] | -20 | 14.6 | 14.6 | 18.4 "
                        "| 20.4 | 16.7 | 1 |")
    assert lines[3].startswith("| Breakout | desk | 46,080 | 10 | 8 [7, 9] | -20 | 30.5 |")
    assert lines[4].startswith("| MsPacman | audit | 46,080 | 10 | 6 of 5, 7 | -20 |")


def test_the_committed_headlines_are_those_of_the_committed_tables():
    for path, text in headline.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make publish"


def test_the_standing_says_whom_an_agent_is_above_in_each_game(tmp_path):
    assert headline.standing(tmp_path) == headline.NOTHING
    for game, value, by_chance in (("pong", 18.0, -20), ("breakout", 1.5, 1.75)):
        write_table(tmp_path / "audit", [
            row("real_return", value, game=game, baseline=by_chance),
            row("real_return[ci_low]", value - 1, game=game),
            row("real_return[ci_high]", value + 1, game=game)],
                    stage="agent", variant=f"base-{game}", profile="audit")
    assert headline.standing(tmp_path).startswith(
        "Pong (1 seed): above random play, people and BBF, level with IRIS and DreamerV3, below "
        "DIAMOND. Breakout (1 seed): level with random play, below people, IRIS, DreamerV3, "
        "DIAMOND and BBF. *Level*: ")


def test_the_abstract_says_what_plays_and_how_many_that_only_dreamed_beat_random(
        tmp_path, monkeypatch):
    assert headline.abstract(tmp_path) == headline.NOTHING
    monkeypatch.setattr(headline.claims, "counted", lambda root: {"reproduced": 3, "artefact": 1})
    for game, value, seconds in (("pong", 12.5, 600), ("ms_pacman", 500, 1800)):
        made = {"device": "GPU", "git": {"commit": None, "dirty": None}} if seconds == 600 else {}
        write_table(tmp_path / "audit", [row("real_return", value, game=game, baseline=-20)],
                    stage="agent", variant=f"base-{game}", profile="audit", made_seconds=seconds,
                    config={"num_steps": 5000, "num_levels": 2, "patch": 12}, made=made)
    for variant, low in (("base", -21), ("hi-dreamer", -19)):
        write_table(tmp_path / "desk", [
            row("real_return", low + 1, game="pong", baseline=-20.5),
            row("real_return[ci_low]", low, game="pong")], stage="policy", variant=variant,
                    config={"num_steps": 300 if low == -19 else 120})
    text = headline.abstract(tmp_path)
    assert "audited its 4 claims: 3 reproduced, 1 artefact." in text
    assert "Of 2 policies that were trained in dreams alone, by at most 300 updates, 1 beat " \
        "random play." in text
    assert "2 levels of codes at each of 49 places" in text
    assert "In 10 to 30 minutes on GPU, Test CPU, it reaches 12.5 in Pong after 5,000 steps" in text
    assert "steps (random play -20, a human 14.6, DIAMOND 20.4); 500 in MsPacman" in text
    assert "500 in MsPacman" in text and "Breakout" not in text
