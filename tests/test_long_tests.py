"""hd.book.long_tests: how long tests last ended, published from a clean tree only."""

from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import LongTests
from tiny import commit, git

from hd.book import long_tests
from hd.config import InputError
from hd.run import machine, storage

FILE = "tests/test_slow.py"


@pytest.fixture
def checkout(tmp_path):
    """A clean checkout with one file of tests."""
    (tmp_path / "tests").mkdir()
    (tmp_path / FILE).write_text("")
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def rows_of(path):
    return {row["test"]: row for row in pd.read_csv(path).to_dict("records")}


def report(name, when="call", outcome="passed", duration=1.0):
    return SimpleNamespace(nodeid=f"{FILE}::{name}", when=when, outcome=outcome, duration=duration)


def item(name, *, is_long=True):
    return SimpleNamespace(nodeid=f"{FILE}::{name}", get_closest_marker=lambda mark: is_long)


def test_the_long_tests_that_ran_leave_a_row_each_with_all_their_seconds(checkout):
    tested = machine.asked_git(checkout, "rev-parse", "HEAD")
    plugin = LongTests(checkout)
    plugin.pytest_collection_modifyitems([item("a[3]"), item("b"), item("c"), item("left_out"),
                                          item("quick", is_long=False)])
    for each in (report("a[3]", "setup", duration=20.0), report("a[3]", duration=3.0),
                 report("b", outcome="failed"), report("b", "teardown"),
                 report("c", "setup", "skipped"), report("quick")):
        plugin.pytest_runtest_logreport(each)
    plugin.pytest_sessionfinish()
    assert plugin.said == "results/long-tests.csv is written: commit it"
    found = rows_of(checkout / "results" / "long-tests.csv")
    assert {name.rpartition("::")[2]: (row["outcome"], row["seconds"])
            for name, row in found.items()} == {
        "a[3]": ("passed", 23.0), "b": ("failed", 2.0), "c": ("skipped", 1.0)}
    for row in found.values():
        assert tuple(row) == long_tests.COLUMNS and row["commit"] == tested
        assert row["device"] == machine.device_name()


def test_a_tree_that_is_dirty_or_changes_while_tests_run_publishes_nothing(checkout):
    def end_of_tests(plugin):
        plugin.pytest_collection_modifyitems([item("a")])
        plugin.pytest_runtest_logreport(report("a"))
        plugin.pytest_sessionfinish()
        assert not (checkout / "results").exists()
        return plugin.said

    clean = LongTests(checkout)
    (checkout / FILE).write_text("edited")
    assert "clean git tree" in end_of_tests(clean)
    dirty = LongTests(checkout)
    commit(checkout)
    assert "clean git tree" in end_of_tests(dirty)
    moved = LongTests(checkout)
    (checkout / FILE).write_text("edited again")
    commit(checkout)
    assert "another commit" in end_of_tests(moved)


def test_make_test_long_asks_for_publishing():
    makefile = (storage.ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-m pytest tests -m long --publish\n" in makefile


def test_from_a_dirty_tree_nothing_is_published(checkout):
    (checkout / FILE).write_text("edited")
    with pytest.raises(InputError, match=r"clean git tree; 1 changed, first tests/test_slow.py"):
        long_tests.publish({f"{FILE}::a": ("passed", 1.0)}, collected=[f"{FILE}::a"],
                           root=checkout)
    assert not (checkout / "results").exists()


def test_outside_of_a_checkout_nothing_is_published(tmp_path):
    with pytest.raises(InputError, match="needs a git working tree"):
        long_tests.tested_commit(tmp_path)


def test_a_row_stays_until_its_test_runs_again_or_is_gone(checkout):
    (checkout / "tests" / "test_other.py").write_text("")
    first = commit(checkout)
    names = [f"{FILE}::a", f"{FILE}::b", "tests/test_other.py::c", "tests/test_gone.py::d"]
    path = long_tests.publish({name: ("passed", 2.0) for name in names}, collected=names,
                              root=checkout)
    second = commit(checkout)
    # Of the first file only e runs; b is there but was not chosen, a is gone.
    names = [f"{FILE}::b", f"{FILE}::e"]
    long_tests.publish({f"{FILE}::e": ("failed", 61.26)}, collected=names, root=checkout)
    found = rows_of(path)
    assert {name: row["commit"] for name, row in found.items()} == {
        f"{FILE}::b": first, f"{FILE}::e": second, "tests/test_other.py::c": first}
    assert found[f"{FILE}::e"]["outcome"] == "failed" and found[f"{FILE}::e"]["seconds"] == 61.3


def test_a_page_says_in_words_what_was_checked(checkout, capsys):
    assert long_tests.published(checkout) is None
    assert "make test-long" in capsys.readouterr().out
    name = f"{FILE}::test_memory_stays_flat[1800 s]"
    long_tests.publish({name: ("passed", 1834.0)}, collected=[name], root=checkout)
    row, = long_tests.published(checkout).to_dict("records")
    assert row["checked"] == "memory stays flat (1800 s)" and row["seconds"] == "1,834"
    assert row["outcome"] == "passed" and len(row["commit"]) == 7
