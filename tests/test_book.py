"""The book as a reader gets it: a strict build, pages that need no network, maths that renders."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import nbformat
import pytest
from browser import CHROMIUM, Browser, in_browser

from hd.book import notebooks
from hd.book.building import build_book, stage_book
from hd.report import published

# What makes a browser load something: attributes by tag; links are only followed when clicked.
LOADING = {"script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "frame": ("src",),
           "video": ("src", "poster"), "audio": ("src",), "source": ("src", "srcset"),
           "track": ("src",), "embed": ("src",), "object": ("data",), "input": ("src",),
           "link": ("href",), "base": ("href",), "body": ("background",), "form": ("action",),
           "image": ("href", "xlink:href"), "use": ("href", "xlink:href")}  # fmt: skip
ONLY_NAMED = {"canonical", "prev", "next", "author", "license", "search", "index"}  # of <link>
ELSEWHERE = re.compile(r"(?:https?:|ftp:|wss?:)?//\S", re.IGNORECASE)
IN_STYLES = re.compile(
    r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
IN_SCRIPTS = re.compile(
    r"""(?:\bsrc\s*=\s*|\.href\s*=\s*|\b(?:import|importScripts|fetch|Worker|EventSource|WebSocket|"""
    r"""getScript|getJSON|sendBeacon)\s*\(\s*|\bimport\s+|\bfrom\s+|\.open\(\s*["']GET["'],\s*)"""
    r"""["'`]((?:https?:|wss?:)?//[^"'`]+)""")


class Loads(HTMLParser):
    """Collects the addresses that a page would load from elsewhere, without its scripts' doing."""

    def __init__(self, text):
        super().__init__()
        self.found, self.inside = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.inside = tag
        relation = set(given.get("rel", "").split())
        if not (tag == "link" and relation and relation <= ONLY_NAMED):
            values = [given.get(name, "") for name in LOADING.get(tag, ())]
            self.found += [value for value in values if ELSEWHERE.match(value.strip())]
            self.found += [value for name, value in given.items() if name == "srcset"
                           and ELSEWHERE.search(value)]  # fmt: skip
        self.found += IN_STYLES.findall(given.get("style", ""))
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.found += [given["content"]] * bool(ELSEWHERE.search(given["content"]))

    def handle_data(self, text):
        kinds = {"style": IN_STYLES, "script": IN_SCRIPTS}
        self.found += kinds[self.inside].findall(text) if self.inside in kinds else []

    def handle_endtag(self, tag):
        self.inside = ""


def loads_of(path):
    """What a file of the book would load from elsewhere."""
    text = path.read_text("utf-8", errors="replace")
    if path.suffix == ".html":
        return Loads(text).found
    pattern = {".css": IN_STYLES, ".svg": IN_STYLES, ".js": IN_SCRIPTS, ".mjs": IN_SCRIPTS}
    return pattern[path.suffix].findall(text) if path.suffix in pattern else []


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The folder of the built HTML of the committed book, in which one notebook has a trap."""
    source = tmp_path_factory.mktemp("book") / "book"
    shutil.copytree(notebooks.BOOK, source, ignore=shutil.ignore_patterns("_build"))
    shutil.copytree(published.FIGURES, source.parent / "figures")
    page = source / "pipeline" / "01_frames.ipynb"
    notebook = nbformat.read(page, 4)
    trap = f"open({str(source.parent / 'executed')!r}, 'w').close()"
    notebook.cells.append(nbformat.v4.new_code_cell(trap))
    nbformat.write(notebook, page)
    return build_book(source).parent


def shown_files(page):
    """The files that a page of the book shows: pictures and videos."""
    names = re.findall(r'<(?:img|video)\b[^>]*?\bsrc="(?!data:)([^"]+)"', page.read_text("utf-8"))
    return [(page.parent / name).resolve() for name in names]


def in_chromium(page, folder, *options):
    """What headless Chromium printed after it opened a page without any network."""
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-default-apps",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", "--virtual-time-budget=15000",
         f"--user-data-dir={folder}", *options, page],
        capture_output=True, text=True, timeout=120)
    return done.stdout


def dom_of(page, tmp_path, query=""):
    """The page after its scripts ran."""
    return in_chromium(page.as_uri() + query, tmp_path)


def requests_of(page, folder):
    """The addresses that a page asked the network for in Chromium; not Chromium's own."""
    log = folder / f"{page.stem}-net.json"
    in_chromium(page.as_uri(), folder / "profile", f"--log-net-log={log}")
    text = log.read_text("utf-8")
    # Chromium may be ended before it closes the list of events.
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    asked = [event["params"] for event in events["events"] if "url" in event.get("params", {})]
    return {params["url"] for params in asked
            if params.get("initiator") not in (None, "not an origin")}


def test_the_book_builds_with_every_page_of_its_table_of_contents(pages):
    toc = (notebooks.BOOK / "_toc.yml").read_text(encoding="utf-8")
    wanted = re.findall(r"(?:file|root): (\S+)", toc)
    assert len(wanted) >= 15
    assert [name for name in wanted if not (pages / f"{name}.html").exists()] == []


@pytest.mark.parametrize("folder", ["pipeline", "report"])
def test_the_table_of_contents_lists_every_notebook_of_a_folder_once(folder):
    toc = (notebooks.BOOK / "_toc.yml").read_text(encoding="utf-8")
    listed = re.findall(rf"file: {folder}/(\w+)", toc)
    assert sorted(listed) == list(notebooks.names(folder)) and listed
    assert folder != "pipeline" or listed == sorted(listed), "in the order of the data flow"


def test_every_pipeline_notebook_that_a_page_names_exists():
    pages = [notebooks.ROOT / "README.md", *notebooks.BOOK.rglob("*.md")]
    named = {name for page in pages
             for name in re.findall(r"\b\d\d_[a-z_]+\b", page.read_text(encoding="utf-8"))}
    assert named and named <= set(notebooks.names())


def test_building_the_book_executes_no_cell(pages):
    assert "executed" in (pages / "pipeline" / "01_frames.html").read_text("utf-8")
    assert not (pages.parents[2] / "executed").exists()


def test_no_page_style_or_script_loads_anything_from_elsewhere(pages):
    found = {path.relative_to(pages).as_posix(): loads_of(path)
             for path in pages.rglob("*.*") if path.is_file()}
    assert sum(name.endswith(".html") for name in found) >= 15
    assert {page: hosts for page, hosts in found.items() if hosts} == {}


def test_published_videos_and_curves_are_files_of_the_built_book(pages):
    videos = shown_files(pages / "report" / "dynamics.html")
    wanted = [film.read_bytes() for film in published.dreams().values()]
    assert [file.read_bytes() for file in videos if file.suffix == ".mp4"] == wanted
    curves = {file.name for file in shown_files(pages / "report" / "ablations.html")
              if "-curves." in file.name}
    assert curves == {path.name for path in published.FIGURES.glob("audit/*-curves.*")}
    assert all(file.is_relative_to(pages) for file in videos)


def test_a_staged_book_shows_published_figures_from_its_own_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    staged, shows = stage_book("smoke"), re.compile(r"\} ((?:\.\./)*figures/[\w/-]+\.\w+)")
    found = {(page.relative_to(staged).as_posix(), (page.parent / name).resolve())
             for page in [*staged.rglob("*.md"), *staged.rglob("*.ipynb")]
             for name in shows.findall(page.read_text("utf-8"))}
    assert {"index.md", "report/dynamics.ipynb"} <= {page for page, _ in found}
    assert [(page, file) for page, file in found
            if not (file.exists() and file.is_relative_to(staged))] == []
    films = [file.read_bytes() for page, file in found
             if page == "report/dynamics.ipynb" and file.suffix == ".mp4"]
    assert sorted(films) == sorted(film.read_bytes() for film in published.dreams().values())


OUTSIDE = "https://example.org/x"
EXTERNAL = {
    "a.html": f'<script src="{OUTSIDE}.js"></script>', "b.html": f'<img src="{OUTSIDE}.png">',
    "c.html": f'<link rel="stylesheet" href="{OUTSIDE}.css">',
    "d.html": f"<style>@import '{OUTSIDE}.css';</style>",
    "e.html": f'<p style="background: url({OUTSIDE}.png)">',
    "f.html": '<img src="//example.org/x">', "g.html": f'<script>fetch("{OUTSIDE}")</script>',
    "h.css": f"@font-face {{src: url({OUTSIDE})}}",
    "i.js": f'import("{OUTSIDE}.js")', "j.js": f'image.src = "{OUTSIDE}.png"',
    "k.html": f'<img srcset="x.png 1x, {OUTSIDE}.png 2x">',
    "l.html": f'<meta http-equiv="refresh" content="0; url={OUTSIDE}">',
    "m.html": f'<iframe src="{OUTSIDE}"></iframe>'}


@pytest.mark.parametrize("name", EXTERNAL)
def test_that_check_sees_every_way_to_load(name, tmp_path):
    (tmp_path / name).write_text(EXTERNAL[name])
    assert loads_of(tmp_path / name)


def test_a_link_to_click_loads_nothing(tmp_path):
    (tmp_path / "a.html").write_text(f'<a href="{OUTSIDE}">there</a><img src="here.png">')
    assert loads_of(tmp_path / "a.html") == []


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


@in_browser
def test_the_dream_of_the_built_book_is_played_from_a_file(pages, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(pages / "dream.html")
        browser.wait_for("HDPage.checked !== undefined")
        browser.click(".playButton")
        browser.wait_for("HDPage.step > 3")
        assert browser.errors == []
    loading = [page.name for page in pages.rglob("*.html")
               if "page.js" in page.read_text("utf-8") and page.parent == pages]
    assert loading == ["dream.html"], "only the page of the dream loads its scripts"


@in_browser
def test_no_page_is_wider_than_a_phone(pages, tmp_path):
    width, too_wide = 390, {}
    with Browser(tmp_path) as browser:
        browser.screen(width, 844, touch=True)
        for page in sorted({*pages.rglob("*.html")} - {*pages.glob("_static/**/*.html")}):
            browser.open(page)
            needed = browser.evaluate("document.documentElement.scrollWidth")
            if needed > width:
                too_wide[page.relative_to(pages).as_posix()] = needed
    assert too_wide == {}


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, which .ci/run installs")
def test_a_browser_asks_for_nothing_from_elsewhere_on_any_page(pages, tmp_path):
    trap = tmp_path / "trap.html"
    trap.write_text(f'<img src="{OUTSIDE}.png"><script>fetch("{OUTSIDE}.json")</script>')
    assert requests_of(trap, tmp_path) == {f"{OUTSIDE}.png", f"{OUTSIDE}.json"}
    asked = {page.relative_to(pages).as_posix(): requests_of(page, tmp_path)
             for page in pages.rglob("*.html")}
    assert {page: urls for page, urls in asked.items() if urls} == {}
