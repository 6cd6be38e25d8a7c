"""Which commit changed which result: a page of the book, from git's history of results/.

python -m hd.book.changelog writes it as of the present commit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from hd.config import InputError
from hd.run.machine import asked_git
from hd.run.storage import ROOT, shown, write_text

PAGE = Path("book") / "appendix" / "changelog.md"
BEGIN = """<!-- Written by python -m hd.book.changelog; do not edit by hand. -->

# Changelog of results

Every commit that changed a published table, the newest first. Where numbers move for another reason
than more runs, the commit says at its end which ones (`result-changing`). The numbers before and
after are in git: `git show COMMIT -- results`."""
ENDS = "Up to commit `{commit}`. What came later: `git log {commit}..HEAD -- results`."


class Entry(NamedTuple):
    """One commit that changed tables."""

    date: str  # YYYY-MM-DD
    commit: str
    subject: str
    tables: tuple[str, ...]  # "audit agent", of profile and stage, or a file's name


def entries(root: Path = ROOT, until: str = "HEAD") -> list[Entry]:
    """The commits up to `until` that changed a table below results/, the newest first.

    Raises InputError where git's history is not at hand.
    """
    told = asked_git(root, "log", "--no-merges", "--abbrev=7", "--name-only",
                     "--format=%x00%as%x09%h%x09%s", until, "--", "results/*.csv")
    if not told:
        raise InputError(f"{shown(root)} has no history of results/")
    found = []
    for text in told.split("\0")[1:]:
        line, *paths = text.strip().splitlines()
        tables = dict.fromkeys(_table_of(path) for path in paths if path)
        found.append(Entry(*line.split("\t", 2), tuple(tables)))
    return found


def _table_of(path: str) -> str:
    """results/audit/agent/base-seed0.csv -> audit agent; results/claims.csv -> claims."""
    return " ".join(Path(path).parts[1:-1]) or Path(path).stem


def page(root: Path = ROOT, until: str = "HEAD") -> str:
    """The whole page in markdown, as of a commit."""
    parts, date = [BEGIN], ""
    found = entries(root, until)
    for entry in found:
        if entry.date != date:
            parts.append(f"\n## {entry.date}\n")
            date = entry.date
        parts.append(f"- {_plain(entry.subject)}\n  (`{entry.commit}`: {', '.join(entry.tables)})")
    return "\n".join([*parts, "", ENDS.format(commit=found[0].commit), ""])


def _plain(subject: str) -> str:
    """A commit's subject as markdown that shows what stands there."""
    return re.sub(r"([\\`*_{}\[\]<>#|$])", r"\\\1", subject)


def commit_of(text: str) -> str:
    """The commit up to which a page was written."""
    return re.search(r"^Up to commit `(\w+)`", text, re.MULTILINE).group(1)


if __name__ == "__main__":
    write_text(ROOT / PAGE, page())
