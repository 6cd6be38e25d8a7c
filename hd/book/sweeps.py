"""Sweeps: the chain for variants and seeds as jobs, and which of them are to be made.

The Snakefile brings them into order and dispatches them, here or on a cluster; whether one is up
to date is asked where it is asked for a single notebook, of hd.book.notebooks.is_current.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hd import config
from hd.ablations import AGENT_VARIANT
from hd.book import notebooks
from hd.book.notebooks import Job
from hd.config import CHAIN, GAMES


@dataclass(frozen=True)
class Planned:
    """One notebook of a sweep."""

    job: Job
    needs: tuple[str, ...]  # names of the planned notebooks that make what its stages read


def plan(*, profile: str, variants: Iterable[str], seeds: Iterable[int], games=GAMES,
         until: str = CHAIN[-1]) -> dict[str, Planned]:
    """The notebooks of every chain up to one of them, by name, each after those that it needs.

    Where variants agree on everything that decides a notebook's stages, it stands here once, under
    the name of the first; base comes first and lends its names also where it is not asked for, then
    the variant whose policy may play for others. Raises InputError in one line.
    """
    config.allowed("notebook", until, CHAIN)
    chain, planned = CHAIN[:CHAIN.index(until) + 1], {}
    variants = list(variants)
    before = ["base", *(variant for variant in variants if variant == AGENT_VARIANT)]
    for seed in seeds:
        first_with = {}  # what a notebook makes: the first that makes it
        maker = {}  # a run's identity: name of the notebook that makes it
        for variant in dict.fromkeys([*before, *variants]):
            for notebook in chain:
                job = notebooks.plan(notebook, profile=profile, variant=variant, seed=seed,
                                     games=games)
                made = (notebook, *(run.identity for run in job.runs))
                first = first_with.setdefault(made, job)
                name = first.target.stem
                maker |= {run.identity: name for run in job.runs}
                if variant in variants:
                    read = {maker.get(source.identity) for run in job.runs
                            for source in run.upstream}
                    planned.setdefault(name, Planned(first, tuple(sorted(read - {name, None}))))
    return planned


def to_make(planned: dict[str, Planned]) -> list[str]:
    """Names of the notebooks that are not up to date, and of those that need one of them.

    The latter ask again when it is their turn: what they read may come out as it was.
    """
    names = []
    for name, one in planned.items():
        if not set(one.needs).isdisjoint(names) or not notebooks.is_current(one.job):
            names.append(name)
    return names
