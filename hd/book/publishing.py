"""The headline table, and copying fresh tables and figures into the published ones.

results/ and figures/ change only here, and only from a clean tree.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hd import config
from hd.audit import claims
from hd.audit.evidence import devices_and_commits
from hd.config import GAMES, InputError
from hd.report import benchmarks
from hd.report.benchmarks import KINDS, fresh_folder, profile_beside
from hd.report.tables import (
    TITLES,
    fresh_or_published,
    listed,
    load_with_record,
    number,
    summarise,
    tables_of,
    with_baseline,
)
from hd.run.machine import asked_git
from hd.run.runs import BESIDE
from hd.run.storage import ROOT, artifacts_root, shown, write_atomically, write_text

NOTHING = "*The headline table appears here after `make publish`: nothing has been published yet.*"
HEADER = "<!-- Written by hd.book.publishing from the published tables; do not edit by hand. -->"
BEGIN, END = "<!-- headline:begin -->", "<!-- headline:end -->"

HEADLINE = (  # stage, metric, in words, what stands in brackets
    ("encoder", "f1_overall", "RAM state read from embeddings, F1", "untrained encoder"),
    ("encoder", "r2_ball_x", "the ball's x read from embeddings, R²", "untrained encoder"),
    ("tokenizer", "l0_usage", "share of coarse codes in use", "random codes"),
    ("tokenizer", "l0_perplexity", "perplexity of coarse codes, of 256", "random codes"),
    ("tokenizer", "l2_variance_explained", "variance explained by all levels", "mean embedding"),
    ("world_model", "l0_accuracy", "next coarse code, accuracy", "n-gram"),
    ("world_model", "l0_changed_accuracy", "next coarse code, where it changes", "n-gram"),
    ("imagination", "dream_l0_accuracy", "coarse codes right in a dream", "last step copied"),
    ("policy", "real_return", "return in the real game", "random play"),
)
DREAM_STEP = 15  # the longest dream that a headline looks at


def headline(results_dir=None) -> str:
    """Markdown: for each published profile, largest first, the headline metrics beside baselines.

    base, then hi-dreamer; the policy's other games come from base's policy_game variants. smoke
    says nothing about quality and is left out.
    """
    root = Path(results_dir or ROOT / "results")
    parts = [_headline_of(root, name, variant) for name in reversed(config.PROFILES)
             if name != "smoke" for variant in ("base", "hi-dreamer")]
    return "\n\n".join(part for part in parts if part) or NOTHING


def _headline_of(root: Path, profile: str, chosen: str) -> str:
    lines, records = [], []
    others = [f"policy_game.{game}" for game in GAMES if chosen == "base"]
    for stage, metric, words, baseline in HEADLINE:
        variants = [chosen, *others * (stage == "policy")]
        tables = [fresh_or_published(root, profile, stage, variant) for variant in variants
                  if tables_of(root / profile / stage, variant)]
        tables = [table for table in tables if metric in set(table["metric"])]
        if not tables:
            continue
        records += [record for table in tables for record in table.attrs["records"]]
        found = summarise(pd.concat(tables), [metric])
        if found["step"].notna().any():
            step = found["step"][found["step"] <= DREAM_STEP].max()
            found, words = found[found["step"] == step], f"{words} after {step:g} steps"
        cells = {row["game"]: _headline_cell(row) for row in found.to_dict("records")}
        lines.append("| " + " | ".join([words, *(cells.get(game, "") for game in GAMES), baseline,
                                        listed(found["n"])]) + " |")
    if not lines:
        return ""
    games = " | ".join(TITLES[game] for game in GAMES)
    named = profile if chosen == "base" else f"{profile}, variant {chosen}"
    return "\n".join([f"**{named}**: {config.PROFILES[profile].purpose}", "",
                      f"| metric | {games} | in brackets | seeds |", "|---|---|---|---|---|---|",
                      *lines, "", "Value [95% interval over seeds] (baseline), held-out episodes. "
                      + devices_and_commits(records)])


def _headline_cell(row: Mapping) -> str:
    bounds = f" [{number(row['low'])}, {number(row['high'])}]" if row["n"] > 1 else ""
    return with_baseline(number(row["mean"]) + bounds, row["baseline"])


def headline_pages(root: Path = ROOT) -> dict[Path, str]:
    """The whole text of book/headline.md and README.md with the verdicts and the headline of
    root's tables."""
    parts = [claims.in_markdown(root / "results"), headline(root / "results")]
    text, readme = "\n\n".join(filter(None, parts)), root / "README.md"
    page = readme.read_text(encoding="utf-8")
    if not 0 <= page.find(BEGIN) < page.find(END):
        raise InputError(f"README.md must hold {BEGIN} and {END}")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    return {root / "book" / "headline.md": f"{HEADER}\n\n{text}\n",
            readme: f"{before}{BEGIN}\n{text}\n{END}{after}"}


def write_headline(root: Path = ROOT) -> None:
    """Write the headline of the published tables into the book and the README."""
    for path, text in headline_pages(root).items():
        write_text(path, text)


def publish(profile: str, variant: str = "base", seed: int | None = None, *,
            root: Path = ROOT) -> list[Path]:
    """Copy a profile's fresh tables and figures into root's results/ and figures/; write the
    headline and the audit's table of claims.

    variant: one, or "all". Returns the copies. Before anything is copied, raises InputError when
    the tree is dirty, nothing is there, a table is damaged or was made from a dirty tree. Tables
    may come from several commits: the headline lists them.
    """
    config.allowed("profile", profile, config.PROFILES)
    config.allowed("variant", variant, ("all", *config.variants()))
    check_clean(root)
    source, copies = artifacts_root() / profile, []
    for path in sorted((source / "results").glob("*/*-seed*.csv")):
        if path.stem.endswith(BESIDE):
            continue
        record = load_with_record(path)[1]
        if variant not in ("all", record["variant"]) or seed not in (None, record["seed"]):
            continue
        if record["git"]["dirty"] is not False:
            raise InputError(f"{shown(path)} was not made from a clean commit; commit, then make "
                             f"it again: make report PROFILE={profile}")
        copies += [path, path.with_suffix(".json"), *_beside(path, record)]
        copies += (source / "figures" / path.stem).glob("[!.]*.*")
    if not copies:
        raise InputError(f"nothing to publish below {shown(source / 'results')} for variant "
                         f"{variant}; make it: make report PROFILE={profile}")
    if variant == "all":  # figures that compare variants belong to no single run
        copies += filter(Path.is_file, (source / "figures").glob("[!.]*.*"))
    targets = {}
    for path in copies:
        kind, *rest = path.relative_to(source).parts
        targets[root.joinpath(kind, profile, *rest)] = path
    for target, path in targets.items():
        write_atomically(target, lambda aside, path=path: shutil.copyfile(path, aside))
    write_headline(root)
    claims.write(root)
    return sorted(targets)


def _beside(path: Path, record: Mapping) -> list[Path]:
    """The files beside a table that its record names; all where an older record names none."""
    beside = [path.with_name(f"{path.stem}{kind}.csv") for kind in BESIDE]
    return [file for file in beside if file.exists()
            and file.name in record.get("beside", [file.name])]


def publish_benchmark(*, root: Path = ROOT) -> list[Path]:
    """Copy what python -m hd bench measured, on each kind of device, into root's
    results/benchmark/; returns the copies. Raises InputError as publish does."""
    check_clean(root)
    paths = [fresh_folder() / f"{kind}.csv" for kind in KINDS]
    if not (paths := [path for path in paths if path.exists()]):
        raise InputError(f"no benchmark below {shown(fresh_folder())}; make it: python -m hd bench")
    for path in paths:
        record = benchmarks.load_with_record(path)[2]
        if record["git"]["dirty"] is not False:
            raise InputError(f"{shown(path)} was not made from a clean commit; commit, then make "
                             f"it again: python -m hd bench")
    copies = [copy for path in paths
              for copy in (path, path.with_suffix(".json"), profile_beside(path))]
    targets = {root / "results" / "benchmark" / path.name: path for path in copies}
    for target, path in targets.items():
        write_atomically(target, lambda aside, path=path: shutil.copyfile(path, aside))
    return sorted(targets)


def check_clean(root: Path) -> None:
    """Raise InputError unless root is a git working tree without changes."""
    changed = asked_git(root, "status", "--porcelain")
    if changed is None:
        raise InputError("publishing needs a git working tree")
    if changed := changed.splitlines():
        raise InputError(f"publishing needs a clean git tree; {len(changed)} changed, first "
                         f"{changed[0].split(maxsplit=1)[-1]}: commit or remove them")
