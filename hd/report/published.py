"""What git holds of what runs make, and how a page shows a published figure.

The rule, for publishing and for tests: of figures those that a page shows, each in one format;
every metric table with its provenance; of the longer tables beside those only what a page or a
claim reads. Pages refer to a figure's file, so that no notebook holds it a second time.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from hd.ablations import COMPARED
from hd.config import GAMES, PROFILES
from hd.run.storage import ROOT

FIGURES = ROOT / "figures"
FROM_A_PAGE = "../../figures"  # as a page of book/report sees FIGURES
OF_AGENTS = ("levels", "contacts", "held", "play")  # what agents' files are called
FORMATS = (".svg", ".png", ".mp4")  # of a drawing: the smallest file is published
READ_BESIDE = (  # by the control page; the claims page and C17; the reasons of bars not reached;
    # the control page's curves of agents
    "policy/base-seed*-episodes.csv", "world_model/exposures.*-history.csv",
    "world_model/hi-dreamer-seed*-history.csv", "agent/base-*-history.csv")


def dreams(*, figures: Path | None = None) -> dict[str, Path]:
    """The videos of COMPARED at the largest profile that has all of them, by variant; or none."""
    for profile in reversed(PROFILES):
        films = {variant: _film(variant, profile, figures) for variant in COMPARED}
        if all(film.exists() for film in films.values()):
            return films
    return {}


def of_agents(drawing: str, *, figures: Path | None = None) -> dict[str, Path]:
    """A drawing of OF_AGENTS of the agents of seed 0, by game, at the largest profile that has any;
    else empty."""
    for profile in reversed(PROFILES):
        places = {game: Path(figures or FIGURES) / profile / f"base-{game}-seed0" for game in GAMES}
        found = {game: next(filter(Path.exists, (place / f"{drawing}{kind}" for kind in FORMATS)),
                            None) for game, place in places.items()}
        if any(found.values()):
            return {game: path for game, path in found.items() if path}
    return {}


def _film(variant: str, profile: str, figures: Path | None) -> Path:
    return Path(figures or FIGURES) / profile / f"{variant}-seed0" / "dream.mp4"


def shown(*, figures: Path | None = None) -> set[Path]:
    """Every published figure that a page shows; of a profile larger than that of the shown dreams
    also a video that still waits for the other variant's."""
    found = set()
    for profile in reversed(PROFILES):
        films = {_film(variant, profile, figures) for variant in COMPARED}
        found |= set(filter(Path.exists, films))
        if films <= found:
            break
    for drawing in OF_AGENTS:
        found |= {*of_agents(drawing, figures=figures).values()}
    return found


def is_shown_kind(place: str) -> bool:
    """Whether a page shows figures of this name; place: below a profile's figures, such as
    base-seed0/dream.mp4."""
    drawings = (f"base-{game}-seed0/{drawing}{kind}"
                for game in GAMES for drawing in OF_AGENTS for kind in FORMATS)
    return place in {*drawings, *(f"{variant}-seed0/dream.mp4" for variant in COMPARED)}


def is_read_beside(place: str) -> bool:
    """Whether a page or a claim reads such a table beside a metric table; place: below a profile's
    results, such as policy/base-seed0-episodes.csv."""
    return any(fnmatchcase(place, pattern) for pattern in READ_BESIDE)


def show(path: Path, words: str, *, figures: Path | None = None) -> None:
    """In a notebook of book/report: a published picture or video, by reference to its file.

    words: what stands in its place where it cannot be shown.
    """
    from IPython.display import display
    place = f"{FROM_A_PAGE}/{path.relative_to(figures or FIGURES).as_posix()}"
    page = {"text/plain": f"{words}: {place}", "text/markdown": f"![{words}]({place})"}
    if path.suffix == ".mp4":
        # Jupyter takes the HTML; the book the markdown, by which Sphinx copies the file.
        page["text/html"] = (f'<video controls loop muted playsinline style="max-width: 100%" '
                             f'src="{place}" title="{words}"></video>')
        page["text/markdown"] = (f"```{{image}} {place}\n:class: controls\n:alt: {words}\n"
                                 f":width: 100%\n```")
    display(page, raw=True)
