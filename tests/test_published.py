"""hd.report.published: what git holds, and how pages show published figures."""

import re

import pytest

from hd.report import published


def films(folder, *places):
    for place in places:
        path = folder / f"{place}-seed0" / "dream.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"film")


def names(folder, paths):
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def test_dreams_come_from_the_largest_profile_that_has_both_variants(tmp_path):
    films(tmp_path, "quick/base", "quick/hi-dreamer", "desk/base", "audit/base", "audit/hi-dreamer")
    assert names(tmp_path, published.dreams(figures=tmp_path).values()) == [
        "audit/base-seed0/dream.mp4", "audit/hi-dreamer-seed0/dream.mp4"]
    assert published.dreams(figures=tmp_path / "desk") == {}


def test_a_larger_profiles_first_dreams_are_kept_until_the_other_variants_come(tmp_path):
    films(tmp_path, "quick/base", "quick/hi-dreamer", "audit/base", "audit/hi-dreamer", "desk/base")
    assert names(tmp_path, published.shown(figures=tmp_path)) == [
        "audit/base-seed0/dream.mp4", "audit/hi-dreamer-seed0/dream.mp4",
        "desk/base-seed0/dream.mp4"]


def test_contacts_come_from_the_largest_profile_that_has_any(tmp_path):
    for place in ("audit/base-pong-seed0", "audit/base-breakout-seed0", "quick/base-pong-seed0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "contacts.png").write_bytes(b"x")
    found = published.of_agents("contacts", figures=tmp_path)
    assert list(found) == ["pong", "breakout"]
    assert names(tmp_path, published.shown(figures=tmp_path)) == [
        "audit/base-breakout-seed0/contacts.png", "audit/base-pong-seed0/contacts.png"]
    assert published.is_shown_kind("base-pong-seed0/contacts.svg")
    assert published.of_agents("contacts", figures=tmp_path / "audit") == {}


@pytest.mark.parametrize(("place", "is_read"), [
    ("policy/base-seed2-episodes.csv", True), ("policy/policy.ppo-seed0-episodes.csv", False),
    ("world_model/exposures.windows-pong-seed1-history.csv", True),
    ("world_model/exposures_large.windows-pong-seed1-history.csv", False),
    ("encoder/base-seed0-history.csv", False)])
def test_tables_beside_a_table_are_kept_where_something_reads_them(place, is_read):
    assert published.is_read_beside(place) == is_read


def test_a_page_refers_to_a_figure_instead_of_holding_it(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda page, raw: shown.append(page))
    films(tmp_path, "desk/base")
    for name in ("desk/base-seed0/dream.mp4", "desk/curves.svg"):
        published.show(tmp_path / name, "words", figures=tmp_path)
    video, picture = shown
    assert 'src="../../figures/desk/base-seed0/dream.mp4"' in video["text/html"]
    assert re.match(r"```{image} ../../figures/desk/base-seed0/dream.mp4\n:class: controls\n",
                    video["text/markdown"])
    assert picture["text/markdown"] == "![words](../../figures/desk/curves.svg)"
