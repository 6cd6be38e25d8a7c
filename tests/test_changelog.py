"""hd.book.changelog: which commit changed which result, from git's history."""

import pytest
from tiny import commit, git, refusal

from hd.book import changelog
from hd.run.machine import asked_git
from hd.run.storage import ROOT


@pytest.fixture
def repository(tmp_path):
    """Three commits, of which the first and the last change tables."""
    git(tmp_path, "init", "-q")
    table = tmp_path / "results" / "audit" / "agent" / "base-pong-seed0.csv"
    table.parent.mkdir(parents=True)
    for text in ("1", "2"):
        table.write_text(text)
        (tmp_path / "results" / "claims.csv").write_text(text)
        commit(tmp_path)
        (tmp_path / "code.py").write_text(text)
        (tmp_path / "results" / "note.json").write_text(text)
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "-q", "-m", "only code_")
    git(tmp_path, "reset", "-q", "--hard", "HEAD~1")
    return tmp_path


def test_only_commits_that_change_tables_are_listed_the_newest_first(repository):
    first, last = (asked_git(repository, "rev-parse", "--short=7", name)
                   for name in ("HEAD~2", "HEAD"))
    found = changelog.entries(repository)
    assert [entry.commit for entry in found] == [last, first]
    assert found[0].tables == ("audit agent", "claims") and found[0].subject == "state"


def test_a_page_names_each_commit_once_and_the_last_one_at_its_end(repository):
    text = changelog.page(repository)
    for entry in changelog.entries(repository):
        assert text.count(f"(`{entry.commit}`: audit agent, claims)") == 1
    assert changelog.commit_of(text) == changelog.entries(repository)[0].commit


def test_what_markdown_would_read_is_shown_as_it_stands():
    assert changelog._plain("a_b *c* {d}") == r"a\_b \*c\* \{d\}"


def test_a_folder_without_history_is_one_line(tmp_path):
    assert "no history of results/" in refusal(changelog.entries, tmp_path)


def test_the_books_changelog_is_what_git_says_up_to_its_last_commit():
    if asked_git(ROOT, "rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("needs git's whole history")
    text = (ROOT / changelog.PAGE).read_text(encoding="utf-8")
    assert text == changelog.page(ROOT, changelog.commit_of(text))
