"""hd.run.metrics: every metric's name can be built, read back and is explained."""

import csv
from dataclasses import asdict

import numpy as np
import pytest

from hd.config import InputError
from hd.run import metrics
from hd.run.metrics import Name, named, parsed
from hd.run.storage import ROOT


def stored_names():
    """Every metric that the published tables hold."""
    names = set()
    for path in (ROOT / "results").glob("*/*/*.csv"):
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if "metric" in rows.fieldnames:
                names.update(one["metric"] for one in rows)
    return sorted(names)


@pytest.mark.parametrize(("name", "parts"), [
    ("r2_ball_x", Name("r2_ball_x")),
    ("r2_ball_x[untrained]", Name("r2_ball_x", ("untrained",))),
    ("l0_accuracy[repeat_last]", Name("l0_accuracy", ("repeat_last",))),
    ("real_return[ci_low]", Name("real_return", ("ci_low",))),
    ("dream_error_ball_x[re-encoded]", Name("dream_error_ball_x", ("re-encoded",))),
    ("states[ball in play]", Name("states", ("ball in play",))),
    ("parameters[seed sizes]", Name("parameters", ("seed sizes",))),
    ("r2_ball_x[source tracker]", Name("r2_ball_x", source="tracker")),
    ("rms_error_ball_x[at 70]", Name("rms_error_ball_x", at=70)),
    ("l0_state_floor[sticky 0]", Name("l0_state_floor", sticky=0)),
    ("l0_state_floor[sticky 0.25, ball in play]",
     Name("l0_state_floor", ("ball in play",), sticky=0.25)),
    ("l0_shared_frames[from 0.001]", Name("l0_shared_frames", at_least=0.001))])
def test_a_name_is_built_of_its_parts_and_read_back_to_them(name, parts):
    assert parsed(name) == parts
    words = asdict(parts)
    assert named(words.pop("metric"), *words.pop("words"), **words) == name


def test_every_published_name_is_read_and_built_again_byte_for_byte():
    names = stored_names()
    assert len(names) > 400
    for name in names:
        words = asdict(parsed(name))
        assert named(words.pop("metric"), *words.pop("words"), **words) == name


def test_a_word_added_to_a_name_that_has_one_gets_its_own_brackets():
    both = named("seed_state_correlation[columns]", "dinov2")
    assert both == "seed_state_correlation[columns][dinov2]"
    assert parsed(both) == Name("seed_state_correlation", ("columns", "dinov2"))


def test_without_words_a_name_is_plain():
    assert named("diversity") == named("diversity", "") == "diversity"
    assert parsed("diversity").is_plain and not parsed("diversity[untrained]").is_plain


def test_numbers_are_written_shortly_whatever_their_type():
    assert named("ball_share", at=np.int64(150)) == "ball_share[at 150]"
    assert named("branching_states", sticky=0.0) == "branching_states[sticky 0]"


@pytest.mark.parametrize("word", ["two, words", "a[b", "a]b"])
def test_what_could_not_be_read_back_is_refused(word):
    with pytest.raises(ValueError, match="bracket or comma"):
        named("diversity", word)
    with pytest.raises(ValueError, match="bracket or comma"):
        named("diversity", source=word)


def test_every_published_metric_is_explained():
    assert {metrics.key_of(name) for name in stored_names()} <= set(metrics.METRICS)


def test_every_metric_says_what_it_is_and_which_way_is_better():
    for name, metric in metrics.METRICS.items():
        assert metric.definition and metric.unit, name
        assert metric.better in ("higher", "lower", ""), name


def test_a_level_and_its_changed_codes_are_told_apart():
    assert metrics.key_of("l2_accuracy") == "l{level}_accuracy"
    assert metrics.key_of("l0_changed_accuracy[repeat_last]") == "l{level}_changed_accuracy"
    assert metrics.key_of("dream_l1_accuracy") == "dream_l{level}_accuracy"
    assert metrics.key_of("val_l1_accuracy") == "l{level}_accuracy"
    assert metrics.key_of("windows_of_24") == "windows_of_{length}"


def test_an_unknown_metric_is_refused_with_the_place_that_explains_it():
    with pytest.raises(InputError, match=r"'speed' is not explained; add it to hd\.run\.metrics"):
        metrics.key_of("speed")
