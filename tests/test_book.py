"""The book as a reader gets it: a strict build, pages that need no network, maths that renders."""

import re
import shutil
import subprocess

import pytest

from hd import notebooks
from hd.book import build_book

ADDRESS = re.compile(r"""<(?:script|link|img|iframe|video|source)\b[^>]*?(?:src|href)=["']"""
                     r"""((?:https?:)?//[^"']+)["']""")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser",
                                                "google-chrome"))), None)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of the built HTML of the committed book."""
    source = tmp_path_factory.mktemp("book") / "book"
    shutil.copytree(notebooks.BOOK, source, ignore=shutil.ignore_patterns("_build"))
    return build_book(source).parent


def dom_of(page, tmp_path, query=""):
    """The page after its scripts ran in headless Chromium without any network."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
         "--virtual-time-budget=15000", f"--user-data-dir={tmp_path}", page.as_uri() + query],
        capture_output=True, text=True, timeout=120)
    return done.stdout


def test_the_book_builds_with_every_page_of_its_table_of_contents(pages):
    toc = (notebooks.BOOK / "_toc.yml").read_text(encoding="utf-8")
    wanted = re.findall(r"(?:file|root): (\S+)", toc)
    assert len(wanted) >= 15
    assert [name for name in wanted if not (pages / f"{name}.html").exists()] == []


def test_no_page_loads_anything_from_elsewhere(pages):
    found = {path.relative_to(pages).as_posix(): ADDRESS.findall(path.read_text("utf-8"))
             for path in pages.rglob("*.html")}
    assert {page: hosts for page, hosts in found.items() if hosts} == {}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")
def test_maths_renders_in_a_browser_without_network(pages, tmp_path):
    dom = dom_of(pages / "notation.html", tmp_path)
    assert dom.count("<mjx-container") > 10
    assert '<g data-mml-node="merror"' not in dom


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")
def test_search_finds_a_page_in_a_browser_without_network(pages, tmp_path):
    dom = dom_of(pages / "search.html", tmp_path, "?q=commitment")
    found = re.findall(r'<li[^>]*><a href="([^"?#]+)', dom)
    assert any("notation" in page for page in found), found
