"""The book: executed notebooks laid over a copy of its sources, then built without execution."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from hd import notebooks
from hd.config import InputError
from hd.storage import ROOT, artifacts_root, sha256_of, shown


def stage_book(profile: str, **chosen) -> Path:
    """Copy the book beside the profile's runs with its executed notebooks; returns the folder.

    chosen: as for notebooks.plan. Report notebooks are executed on the fresh tables; what was not
    run stays as published.
    """
    jobs = [notebooks.plan(notebook, profile=profile, **chosen) for notebook in notebooks.names()]
    book = artifacts_root() / profile / "book"
    aside = book.with_name(".book-staging")
    with notebooks.exclusive(book):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(notebooks.BOOK, aside, ignore=shutil.ignore_patterns(
            "_build", ".*", "__pycache__", "conftest.py", "*.partial.ipynb"))
        for job in [*jobs, *_report_jobs(book.parent)]:
            page = job.source.relative_to(notebooks.BOOK)
            if job.target.exists():
                shutil.copyfile(job.target, aside / page)
            else:
                print(f"{page.with_suffix('').as_posix()}: shown as published", flush=True)
        if (book / "_build").exists():
            (book / "_build").rename(aside / "_build")
        shutil.rmtree(book, ignore_errors=True)
        aside.rename(book)
    return book


def _report_jobs(root: Path) -> list[notebooks.Job]:
    """Report notebooks executed on the fresh tables, where there are any."""
    fresh, jobs = root / "results", []
    tables = sorted([*fresh.rglob("*.csv"), *(ROOT / "results").rglob("*.csv")])
    digests = {path.as_posix(): sha256_of(path) for path in tables}
    for notebook in notebooks.names("report") if any(fresh.rglob("*.csv")) else ():
        source = notebooks.BOOK / "report" / f"{notebook}.ipynb"
        given = {"results_dir": _relative(fresh, source.parent), "profile": root.name}
        given = {name: given[name] for name in notebooks.declared_in(source) if name in given}
        target = root / "notebooks" / "report" / source.name
        job = notebooks.Job(source, target, given, tables=digests)
        try:
            notebooks.run_job(job, cwd=source.parent)
        except InputError as error:
            job.target.unlink(missing_ok=True)
            print(f"report/{notebook}: the fresh tables do not suffice: {error}", flush=True)
        jobs.append(job)
    return jobs


def _relative(path: Path, start: Path) -> str:
    """path as seen from start; whole where it lies on another drive."""
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:
        return path.as_posix()


def build_book(source: Path) -> Path:
    """Build the HTML book strictly and offline, executing nothing; returns its index.html.

    It is built aside and put in place when complete. Raises NotebookError naming the log.
    """
    built = Path(source).resolve() / "_build"
    aside, log = built / "partial", built / "build.log"
    with notebooks.exclusive(built / "html"):
        shutil.rmtree(aside, ignore_errors=True)
        command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build",
                   str(built.parent), "--path-output", str(aside), "-W", "-n", "--keep-going"]
        with open(log, "w", encoding="utf-8") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, check=False)
        index = aside / "_build" / "html" / "index.html"
        if done.returncode or not index.exists():
            text = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
            found = re.search(r"^.*(?:WARNING|ERROR|Error:).*$", text, flags=re.MULTILINE)
            reason = found.group() if found else f"exit code {done.returncode}"
            reason = notebooks.one_line(reason.replace(str(built.parent), "."))
            raise notebooks.NotebookError(f"the book could not be built: {reason}; "
                                          f"log: {shown(log)}")
        shutil.rmtree(built / "html", ignore_errors=True)
        index.parent.rename(built / "html")
        shutil.rmtree(aside, ignore_errors=True)
    return built / "html" / "index.html"
