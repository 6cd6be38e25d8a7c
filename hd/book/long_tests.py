"""The last outcome of each test that takes minutes: results/long-tests.csv.

`make test-long` writes it through tests/conftest.py, from a clean tree only, so that the commit in
a row is the code that was tested. A row stays until its test runs again or is gone.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from hd.book.publishing import check_clean
from hd.report.words import fold
from hd.run import machine
from hd.run.storage import ROOT, write_atomically

COLUMNS = ("test", "outcome", "seconds", "commit", "device", "date")


def tested_commit(root: Path = ROOT) -> str:
    """The commit of root's clean tree; raises InputError in one line when there is none."""
    check_clean(root)
    return machine.asked_git(root, "rev-parse", "HEAD")


def publish(outcomes: Mapping[str, tuple[str, float]], *, collected: Iterable[str],
            root: Path = ROOT) -> Path:
    """Write what ran into root's results/long-tests.csv; returns the file.

    outcomes: pytest's name of a test, "tests/test_x.py::test_y[z]" -> (outcome, seconds).
    collected: the names of all long tests that exist in the files looked at: other rows of these
    files, and rows of files that are gone, are removed. Raises InputError for a dirty tree.
    """
    commit, path = tested_commit(root), root / "results" / "long-tests.csv"
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    rows = {name: {"test": name, "outcome": outcome, "seconds": round(seconds, 1),
                   "commit": commit, "device": machine.device_name(), "date": today}
            for name, (outcome, seconds) in outcomes.items()}
    collected = {*collected}
    files = {_file_of(name) for name in collected}
    earlier = pd.read_csv(path).to_dict("records") if path.exists() else []
    for row in earlier:
        file = _file_of(row["test"])
        if row["test"] in collected or (file not in files and (root / file).exists()):
            rows.setdefault(row["test"], row)
    table = pd.DataFrame([rows[name] for name in sorted(rows)], columns=list(COLUMNS))
    write_atomically(path, lambda aside: table.to_csv(aside, index=False))
    return path


def published(root: Path = ROOT) -> pd.DataFrame | None:
    """For a page: what each long test checks, in words, and how it last ended, as text.

    Where nothing is published it prints a line that says so, and returns None.
    """
    path = root / "results" / "long-tests.csv"
    if not path.exists():
        print("No long test has been published. To run them: make test-long")
        return None
    table = pd.read_csv(path)
    return pd.DataFrame({
        "checked": [in_words(name) for name in table["test"]], "outcome": table["outcome"],
        "seconds": [f"{seconds:,.0f}" for seconds in table["seconds"]],
        "commit": table["commit"].str[:7], "device": table["device"], "date": table["date"]})


def show() -> None:
    """In a notebook: how many of the published long tests passed last, and behind a click each."""
    if (found := published()) is not None:
        print((found["outcome"] == "passed").sum(), "of", len(found), "long tests passed last")
        fold(found, "Each of them")


def in_words(name: str) -> str:
    """"tests/test_x.py::test_a_b[z]" -> "a b (z)": names of tests are sentences."""
    words, _, parameters = name.rpartition("::")[2].partition("[")
    words = re.sub(r"^test_", "", words).replace("_", " ")
    return f"{words} ({parameters[:-1]})" if parameters else words


def _file_of(name: str) -> str:
    return name.partition("::")[0]
