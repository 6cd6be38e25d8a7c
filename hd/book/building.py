"""The book: executed notebooks laid over a copy of its sources, then built without execution.

Whatever stops the work, the last complete book stays readable until a new one is complete.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from hd.book import notebooks
from hd.config import InputError
from hd.report import published
from hd.run.storage import (
    ROOT,
    artifacts_root,
    exclusive,
    sha256_of,
    shown,
    write_text,
    writing,
)

# The build ends with the process that started it: else, after kill -9, it would write on beside
# the next one.
BUILD = ("from hd.book.notebooks import end_with_parent; end_with_parent(); "
         "from jupyter_book.cli.main import main; main()")


def stage_book(profile: str, **chosen) -> Path:
    """Copy the book beside the profile's runs with its executed notebooks; returns the folder.

    chosen: as for notebooks.plan. Report notebooks are executed on the fresh tables; what was not
    run stays as published.
    """
    jobs = [notebooks.plan(notebook, profile=profile, **chosen) for notebook in notebooks.names()]
    book = artifacts_root() / profile / "book"
    aside = book.with_name(".book-staging")
    with exclusive(book), writing(book):
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(notebooks.BOOK, aside, ignore=shutil.ignore_patterns(
            "_build", ".*", "__pycache__", "conftest.py", "*.partial.ipynb"))
        for job in jobs:
            if job.target.exists() and not notebooks.is_current(job):
                print(f"{_page(job)}: shown as executed before something it depends on changed; "
                      f"execute it again: {job.command}", flush=True)
        for job in [*jobs, *_report_jobs(book.parent)]:
            if job.target.exists():
                shutil.copyfile(job.target, aside / f"{_page(job)}.ipynb")
            else:
                print(f"{_page(job)}: shown as published", flush=True)
        _bring_figures(aside)
        book.mkdir(exist_ok=True)
        for old in book.iterdir():
            if old.name != "_build":  # the last complete book, untouched until the next is
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        for new in aside.iterdir():
            new.rename(book / new.name)
        aside.rmdir()
    return book


def _bring_figures(book: Path) -> None:
    """Copy the published figures into a staged book whose pages show any, and let them find it."""
    for page in [*book.rglob("*.md"), *book.rglob("*.ipynb")]:
        up = "../" * len(page.parent.relative_to(book).parts)
        text = page.read_text(encoding="utf-8")
        from_here = re.sub(rf"(?<![./])\.\./{re.escape(up)}figures/", f"{up}figures/", text)
        if from_here != text:
            shutil.copytree(published.FIGURES, book / "figures", dirs_exist_ok=True)
            write_text(page, from_here)


def _page(job: notebooks.Job) -> str:
    return job.source.relative_to(notebooks.BOOK).with_suffix("").as_posix()


def _report_jobs(root: Path) -> list[notebooks.Job]:
    """Report notebooks executed on the fresh tables, where there are any, and the published ones
    of what was not run."""
    jobs: list[notebooks.Job] = []
    if not any((root / "results").rglob("*.csv")):
        return jobs
    tables = _fresh_among_published(root)
    digests = {path.as_posix(): sha256_of(path) for path in sorted(tables.rglob("*.csv"))}
    for notebook in notebooks.names("report"):
        source = notebooks.BOOK / "report" / f"{notebook}.ipynb"
        given = {"results_dir": _relative(tables, source.parent), "profile": root.name}
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


def _fresh_among_published(root: Path) -> Path:
    """A copy of the published tables in which a profile's fresh ones take their places, all seeds
    of a variant together: seeds of other settings do not belong beside them."""
    both, fresh = root / "tables", root / "results"
    shutil.rmtree(both, ignore_errors=True)
    shutil.copytree(ROOT / "results", both, ignore=shutil.ignore_patterns("*.safetensors"))
    files = [path for path in fresh.rglob("*-seed*") if path.is_file()]
    for path in files:
        variant = path.name.rpartition("-seed")[0]
        place = both / root.name / path.parent.relative_to(fresh)
        for old in place.glob(f"{glob.escape(variant)}-seed*"):
            old.unlink()
    for path in files:
        place = both / root.name / path.relative_to(fresh)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return both


def _relative(path: Path, start: Path) -> str:
    """path as seen from start; whole where it lies on another drive."""
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:
        return path.as_posix()


def build_book(source: Path) -> Path:
    """Build the HTML book strictly and offline, executing nothing; returns its index.html.

    It is built aside and put in place when complete. Raises NotebookError naming the log, and
    InputError when the folder cannot be written.
    """
    source = Path(source).resolve()
    built, html = source / "_build", source / "_build" / "html"
    with exclusive(source), writing(built):
        built.mkdir(exist_ok=True)
        _put_back(html)
        for leftover in built.glob("partial*"):
            shutil.rmtree(leftover, ignore_errors=True)
        aside = built / f"partial-{os.getpid()}"
        try:
            _replace(_built_aside(source, aside, built / "build.log"), html)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return html / "index.html"


def _built_aside(source: Path, aside: Path, log: Path) -> Path:
    """The folder of the new pages; raises NotebookError with the first warning of the log."""
    command = [sys.executable, "-c", BUILD, "build", str(source), "--path-output", str(aside),
               "-W", "-n", "--keep-going"]
    # Not straight into the log: on a full disk that would lose the reason with the rest.
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, check=False)
    text = re.sub(r"\x1b\[[\d;]*m", "", done.stdout.decode("utf-8", errors="replace"))
    write_text(log, text)
    html = aside / "_build" / "html"
    if done.returncode or not (html / "index.html").exists():
        found = re.search(r"^.*(?:WARNING|ERROR|Error:).*$", text, flags=re.MULTILINE)
        reason = found.group() if found else f"exit code {done.returncode}"
        reason = notebooks.one_line(reason.replace(str(source), "."))
        raise notebooks.NotebookError(f"the book could not be built: {reason}; log: {shown(log)}")
    return html


def _replace(new: Path, place: Path) -> None:
    """Put a complete folder in place of the old one."""
    old = place.with_name("replaced")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if place.exists():
            place.rename(old)
        new.rename(place)
    finally:
        _put_back(place)


def _put_back(place: Path) -> None:
    """The old folder comes back where it was moved away and no new one followed."""
    old = place.with_name("replaced")
    if old.exists() and not place.exists():
        old.rename(place)
    shutil.rmtree(old, ignore_errors=True)
