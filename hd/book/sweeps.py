"""Sweeps: the chain for variants and seeds as jobs, and which of them are to be made.

The Snakefile brings them into order and dispatches them, here or on a cluster; whether one is up
to date is asked where it is asked for a single notebook, of hd.book.notebooks.is_current.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hd import config
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
    the name of the first; base comes first and lends its names also where it is not asked for.
    Raises InputError in one line.
    """
    config.allowed("notebook", until, CHAIN)
    chain, planned = CHAIN[:CHAIN.index(until) + 1], {}
    variants = list(variants)
    for seed in seeds:
        first_with = {}  # what a notebook makes: name of the first that makes it
        for variant in dict.fromkeys(["base", *variants]):
            names = {}
            for notebook in chain:
                job = notebooks.plan(notebook, profile=profile, variant=variant, seed=seed,
                                     games=games)
                made = (notebook, *(run.identity for run in job.runs))
                first = first_with.setdefault(made, job)
                names[notebook] = first.target.stem
                if variant in variants:
                    needs = tuple(names[other] for other in _needed(job))
                    planned.setdefault(names[notebook], Planned(first, needs))
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


def _needed(job: Job) -> list[str]:
    """The notebooks that make what this job's stages read."""
    stages = {stage for run in job.runs for stage in config.UPSTREAM[run.stage]}
    return sorted({config.NOTEBOOKS[stage] for stage in stages} - {job.source.stem})
