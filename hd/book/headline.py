"""What the README and the book say in numbers, written from the published tables.

The README and the book's first page have a short table; the book's page measured.md has all.
"""

from __future__ import annotations

import json
import math
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from hd import config
from hd.ablations import COMPARED
from hd.audit import claims, verdicts, wording
from hd.audit.evidence import Tables, devices_and_commits
from hd.config import GAMES, InputError
from hd.patches import SIDE
from hd.report import findings, reference
from hd.report.tables import (
    BEST_TRIVIAL,
    TITLES,
    agents_of,
    baseline_words,
    best_baselines,
    device_of,
    fresh_or_published,
    listed,
    minutes_of,
    number,
    over_episodes,
    summarise,
    tables_of,
    with_spread,
)
from hd.run.intervals import FEWEST_SEEDS
from hd.run.metrics import named
from hd.run.storage import ROOT, write_text

NOTHING = "*The headline table appears here after `make publish`: nothing has been published yet.*"
HEADER = "<!-- Written by hd.book.headline from the published tables; do not edit by hand. -->"
MEASURED = """# Headline numbers of the chain

The verdict on every claim, and every published profile of the chain, the largest first. The
[claims page](report/claims.ipynb) has the numbers behind each verdict, the
[control page](report/control.ipynb) the agents."""
BEGIN, END = "<!-- headline:begin -->", "<!-- headline:end -->"

HEADLINE = (  # stage, metric, in words, what stands in brackets
    ("encoder", "f1_overall", "RAM state read from embeddings, F1", "untrained encoder"),
    ("encoder", "r2_ball_x", "the ball's x read from embeddings, R²", "untrained encoder"),
    ("tokenizer", "l0_usage", "share of coarse codes in use", "random codes"),
    ("tokenizer", "l0_perplexity", "perplexity of coarse codes, of 256", "random codes"),
    ("tokenizer", "l2_variance_explained", "variance explained by all levels", "mean embedding"),
    ("world_model", "l0_accuracy", "next coarse code, accuracy", BEST_TRIVIAL),
    ("world_model", "l0_changed_accuracy", "next coarse code, where it changes", BEST_TRIVIAL),
    ("imagination", "dream_l0_accuracy", "coarse codes right in a dream", "last step copied"),
    ("policy", "real_return", "return in the real game", "random play"),
)
SUMMARY = (  # stage, metric, in words, what its own baseline is
    ("encoder", "f1_overall", "RAM state read from embeddings, F1", "untrained encoder"),
    ("encoder", "r2_ball_x", "the ball's x read from embeddings, R²", "untrained encoder"),
    ("world_model", "l0_accuracy", "next coarse code, accuracy", BEST_TRIVIAL),
    ("policy", "real_return", "return in the real game", "random play"),
)
# Whose returns stand beside the agent's, and their short names.
PUBLISHED = {"Human": "Human", "IRIS": "IRIS", "DreamerV3 2023 (v1)": "DreamerV3",
             "DIAMOND": "DIAMOND", "BBF": "BBF"}
Cell = namedtuple("Cell", ("words", "game", "variant", "num_seeds", "text", "devices", "split"))
DREAM_STEP = 15  # the longest dream that a headline looks at


def in_full(results_dir=None) -> str:
    """Markdown: for each published profile, largest first, the headline metrics beside baselines.

    In brackets the baseline of the metric, or a better trivial one by name. base, then hi-dreamer;
    the policy's other games come from base's policy_game variants. smoke
    says nothing about quality and is left out.
    """
    root = Path(results_dir or ROOT / "results")
    parts = [_headline_of(root, name, variant) for name in reversed(config.PROFILES)
             if name != "smoke" for variant in COMPARED]
    return "\n\n".join(part for part in parts if part) or NOTHING


def _headline_of(root: Path, profile: str, chosen: str) -> str:
    lines, records, splits = [], [], set()
    others = [f"policy_game.{game}" for game in GAMES if chosen == "base"]
    for stage, metric, words, baseline in HEADLINE:
        variants = [chosen, *others * (stage == "policy")]
        tables = [fresh_or_published(root, profile, stage, variant) for variant in variants
                  if tables_of(root / profile / stage, variant)]
        tables = [table for table in tables if metric in set(table["metric"])]
        if not tables:
            continue
        records += [record for table in tables for record in table.attrs["records"]]
        table = pd.concat(tables)
        found, baseline = summarise(table, [metric]), baseline_words(baseline, table)
        if found["step"].notna().any():
            step = found["step"][found["step"] <= DREAM_STEP].max()
            found, words = found[found["step"] == step], f"{words} after {step:g} steps"
        splits |= set(found["split"])
        cells = {row["game"]: _headline_cell(row, *best) for row, best
                 in zip(found.to_dict("records"), best_baselines(found, table))}
        lines.append("| " + " | ".join([words, *(cells.get(game, "") for game in GAMES), baseline,
                                        listed(found["n"])]) + " |")
    if not lines:
        return ""
    games = " | ".join(TITLES[game] for game in GAMES)
    heading = profile if chosen == "base" else f"{profile}, variant {chosen}"
    return "\n".join([f"**{heading}**: {config.PROFILES[profile].purpose}", "",
                      f"| metric | {games} | in brackets | seeds |", "|---|---|---|---|---|---|",
                      *lines, "", f"Value of seeds, from {FEWEST_SEEDS} on [95% interval] "
                      f"(baseline, or a better trivial one by name), {_judged_on(splits)}. "
                      + devices_and_commits(records)])


def _judged_on(splits: set[str]) -> str:
    """Which episodes tables with these splits are about: those from before the split in three were
    judged on the episodes on which settings were chosen."""
    words = {"test": "test episodes",
             "val": "held-out episodes, on which settings were chosen too"}
    return " or ".join(text for split, text in words.items() if split in splits) or "real episodes"


def _headline_cell(row: Mapping, baseline: float, name: str) -> str:
    text = _with_spread(number(row["mean"]), row)
    return text if pd.isna(baseline) else f"{text} ({name}{' ' * bool(name)}{number(baseline)})"


def _with_spread(mean: str, row: Mapping) -> str:
    return with_spread(mean, row["seeds"], row["low"], row["high"])


def summary(results_dir=None, *, claims_page: str) -> str:
    """Markdown for the README and the book's first page: what the agents reached, how many claims
    got which verdict, and base beside hi-dreamer at the largest profile that has both, else base
    alone at its largest.

    claims_page: the link to the page of claims.
    """
    root = Path(results_dir or ROOT / "results")
    counted = claims.counted(root)
    parts = [_agents(root)] if agents_of(root) else []
    parts += [f"Of {sum(counted.values())} claims: "
             + ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
             + f". [Each with its numbers]({claims_page})."] if counted else []
    measured = {profile: _compared(root, profile) for profile in reversed(config.PROFILES)
                if profile != "smoke"}
    for needed in ({*COMPARED}, {COMPARED[0]}):
        for profile, cells in measured.items():
            if needed <= {cell.variant for cell in cells}:
                page = claims_page.replace("claims", "representation")
                return "\n\n".join([*parts, _comparison(profile, cells, page)])
    return "\n\n".join(parts) or NOTHING


def abstract(results_dir=None) -> str:
    """Markdown for the book's first page: what was asked, how the claims fared, what plays, in
    numbers of the published tables; a line where no agent is published."""
    root = Path(results_dir or ROOT / "results")
    agents, counted = agents_of(root), claims.counted(root)
    if not agents or not counted:
        return NOTHING
    scores, minutes, records = [], [], []
    for game, (profile, name) in agents.items():
        table = fresh_or_published(root, profile, "agent", name)
        (row,) = _of_metric(table, "real_return").to_dict("records")
        human, best = (reference.anchor("atari100k", method, TITLES[game])
                       for method in ("Human", "DIAMOND"))
        own = table.attrs["records"]
        scores.append(f"{number(row['mean'])} in {TITLES[game]} after "
                      f"{number(own[0]['config']['num_steps'], 6)} steps (random play "
                      f"{number(row['baseline'])}, a human {number(human)}, DIAMOND "
                      f"{number(best)})")
        records += own
        minutes += [record["made_seconds"] / 60 for record in own]
    cfg = records[0]["config"]
    return "\n".join([
        "Can a few code numbers carry a game well enough to dream it, and to learn playing in the "
        f"dream? We rebuilt a project that says so and audited its {sum(counted.values())} claims: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counted.items())
        + f". {_that_only_dreamed(root)}What plays uses the same kind of codes otherwise: "
        f"{cfg['num_levels']} levels of codes at each of {(SIDE // cfg['patch']) ** 2} places of "
        "the picture, a small world model, and a policy that practises in its dreams while it "
        f"plays. In {min(minutes):.0f} to "
        f"{max(minutes):.0f} minutes on {listed(device_of(record) for record in records)}, it "
        f"reaches {'; '.join(scores)}. DIAMOND's scores are after 100,000 steps on a GPU."])


def standing(results_dir=None) -> str:
    """Markdown, a paragraph for the book's first page: in each game, of how many seeds the mean
    return is, and whose interval it is above, below, and level with: of ours over the last policy's
    episodes, or from the least seed to the greatest, of theirs over seeds where that is known; a
    line where no agent is published."""
    root, parts = Path(results_dir or ROOT / "results"), []
    for game, (profile, name) in agents_of(root).items():
        table = fresh_or_published(root, profile, "agent", name)
        (row,) = _of_metric(table, "real_return").to_dict("records")
        low, high = over_episodes(table) if row["n"] == 1 else (min(row["seeds"]),
                                                                max(row["seeds"]))
        others = {"random play": (row["baseline"], row["baseline"]), **{
            short.replace("Human", "people"): reference.anchor_interval(
                "atari100k", method, TITLES[game]) for method, short in PUBLISHED.items()}}
        above = [name for name, (_, most) in others.items() if most < low]
        below = [name for name, (least, _) in others.items() if high < least]
        level = [name for name in others if name not in above + below]
        parts.append(f"{TITLES[game]} ({row['n']} seed{'s' * (row['n'] > 1)}): " + ", ".join(
            f"{word} {' and '.join(filter(None, (', '.join(names[:-1]), names[-1])))}" for word,
            names in (("above", above), ("level with", level), ("below", below)) if names))
    if not parts:
        return NOTHING
    return (f"{'. '.join(parts)}. *Level*: the intervals meet, ours over our last policy's "
            "episodes or, of several seeds, from the least to the greatest, theirs over seeds "
            f"where we know it. Fewer than {FEWEST_SEEDS} seeds show a direction.")


def _that_only_dreamed(root: Path) -> str:
    """How many of the published policies that were trained in dreams alone beat random play by the
    interval over episodes, a game of a table each, and how far they and their world models were
    trained; empty where there is none."""
    beating, updates, shares = [], [], []
    for path in sorted(root.glob("*/policy/*.csv")):
        if not path.with_suffix(".json").exists():
            continue
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        updates.append(record["config"]["num_steps"])
        tables = Tables(record["profile"], root)
        table = pd.read_csv(path).set_index(["metric", "game"])
        for game, row in table.loc["real_return"].iterrows():
            low = table.loc[(named("real_return", "ci_low"), game), "value"]
            beating.append(bool(low > row["baseline"]))
            found = tables.find("policy", "real_return", record["variant"], game=game)
            shares.append(found.trained if found else math.nan)
    if not beating:
        return ""
    model = "" if np.isnan(shares).all() else (
        f" in world models of at most {verdicts.share(np.nanmax(shares))} of the seed's training")
    return (f"Of {len(beating)} policies that were trained in dreams alone, by at most "
            f"{number(max(updates), 6)} updates{model}, {sum(beating)} beat random play. ")


def _agents(root: Path) -> str:
    """Markdown: what the online agents of each game's largest profile reached, a row a game."""
    lines, devices = [], []
    for game, (profile, name) in agents_of(root).items():
        table = fresh_or_published(root, profile, "agent", name)
        records = table.attrs["records"]
        (row,) = _of_metric(table, "real_return").to_dict("records")
        scores = [reference.anchor("atari100k", method, TITLES[game]) for method in PUBLISHED]
        lines.append("| " + " | ".join([
            TITLES[game], profile, number(records[0]["config"]["num_steps"], 6),
            number(minutes_of(records), 2),
            _of_episodes(row, table), number(row["baseline"]), *map(number, scores),
            str(row["n"])]) + " |")
        devices += [device_of(record) for record in records]
    return "\n".join([
        "| the agent | profile | steps | minutes | return | random play | "
        f"{' | '.join(PUBLISHED.values())} | seeds |",
        "|---|---|---|---|---|---|---|" + "---|" * len(PUBLISHED), *lines, "",
        "Mean unclipped return of whole real episodes by the last policy, "
        "without sticky actions; of one seed with the 95% interval over its episodes. Others' "
        "returns are after 100,000 steps, as published (`results/reference/anchors.csv`). Device: "
        f"{listed(devices, '; ')}."])


def _of_episodes(row: Mapping, table: pd.DataFrame) -> str:
    """The return over seeds; of a single one with its interval over episodes."""
    if row["n"] > 1:
        return _with_spread(number(row["mean"]), row)
    low, high = over_episodes(table)
    return f"{number(row['mean'])} [{number(low)}, {number(high)}]"


def _compared(root: Path, profile: str) -> list[Cell]:
    """What a profile's published tables say of each metric of SUMMARY."""
    cells = []
    for stage, metric, words, own in SUMMARY:
        for variant in COMPARED:
            if tables_of(root / profile / stage, variant):
                table = fresh_or_published(root, profile, stage, variant)
                devices = {device_of(record) for record in table.attrs["records"]}
                found = _of_metric(table, metric)
                in_words = baseline_words(own, table)
                for row, best in zip(found.to_dict("records"), best_baselines(found, table)):
                    after = "" if pd.isna(row["step"]) else f" after {row['step']:g} steps"
                    cells.append(Cell(words + after, row["game"], variant, row["n"],
                                      _beside_best(row, *best, in_words), frozenset(devices),
                                      row["split"]))
    return cells


def _of_metric(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The metric over seeds, a row per game; that of dreams at step DREAM_STEP or before."""
    found = summarise(table[table["metric"] == metric])
    if found["step"].notna().any():
        found = found[found["step"] == found["step"][found["step"] <= DREAM_STEP].max()]
    return found


def _beside_best(row: Mapping, baseline: float, name: str, own: str) -> str:
    """value, seeds or [interval] (best baseline), bold where all of an interval is above it; name:
    of the baseline, "" where it is the metric's own."""
    mean = number(row["mean"])
    if row["low"] > baseline:
        mean = f"**{mean}**"
    text = _with_spread(mean, row)
    return text if pd.isna(baseline) else f"{text} ({name or own} {number(baseline)})"


def _comparison(profile: str, cells: list[Cell], page: str) -> str:
    lines = []
    for words, game in dict.fromkeys((cell.words, cell.game) for cell in cells):
        own = {cell.variant: cell for cell in cells if (cell.words, cell.game) == (words, game)}
        texts = [_marked(own[variant]) if variant in own else "–" for variant in COMPARED]
        seeds = ", ".join(str(own[variant].num_seeds) if variant in own else "–"
                          for variant in COMPARED)
        lines.append("| " + " | ".join([words, TITLES[game], *texts, seeds]) + " |")
    return "\n".join([
        f"| profile {profile} | game | {' | '.join(COMPARED)} | seeds |", "|---|---|---|---|---|",
        *lines, "", f"Each cell: the mean, the seeds one by one (from {FEWEST_SEEDS} on a 95% "
        "interval), and in brackets the best trivial baseline; bold where all of an interval is "
        f"above it. F1 is of standardised features ([why it matters]({page})). Each variant has "
        "codes, sizes and lengths of training of its own. "
        f"{_said_of_splits({cell.split for cell in cells})} "
        f"Seeds: of {', of '.join(COMPARED)}. "
        + " ".join(_made_of(variant, cells) for variant in COMPARED)]).rstrip()


def _marked(cell: Cell) -> str:
    """A cell's text, marked where it is not on test episodes; see _said_of_splits."""
    return f"{cell.text} †" if cell.split == "val" else cell.text


def _said_of_splits(splits: set[str]) -> str:
    """What the mark of a cell means, where there is one."""
    if "val" not in splits:
        return f"On {_judged_on(splits)}."
    return (f"†: on {_judged_on({'val'})}, and not to be compared with a cell without, which is on "
            f"{_judged_on(splits - {'val'})}.")


def _made_of(variant: str, cells: list[Cell]) -> str:
    """On which devices a variant's cells were measured; "" without any."""
    own = [cell for cell in cells if cell.variant == variant]
    if not own:
        return ""
    devices = sorted(set().union(*(cell.devices for cell in own)))
    return f"Device of {variant}: {'; '.join(devices)}."


def pages(root: Path = ROOT) -> dict[Path, str]:
    """The whole text of README.md, of the book's headline.md, abstract.md, standing.md and
    needs.md, which its first page shows, and of its measured.md, which has all headline numbers,
    from root's tables."""
    readme, results = root / "README.md", root / "results"
    page = readme.read_text(encoding="utf-8")
    if not 0 <= page.find(BEGIN) < page.find(END):
        raise InputError(f"README.md must hold {BEGIN} and {END}")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    short = {path: summary(results, claims_page=f"{path}report/claims.ipynb")
             for path in ("book/", "")}
    full = "\n\n".join(filter(None, [wording.in_markdown(results), in_full(results)]))
    return {readme: f"{before}{BEGIN}\n{short['book/']}\n{END}{after}",
            root / "book" / "headline.md": f"{HEADER}\n\n{short['']}\n",
            root / "book" / "abstract.md": f"{HEADER}\n\n{abstract(results)}\n",
            root / "book" / "standing.md": f"{HEADER}\n\n{standing(results)}\n",
            root / "book" / "needs.md":
                f"{HEADER}\n\n{findings.agents_need('quick', results, brief=True)}\n",
            root / "book" / "measured.md": f"{HEADER}\n\n{MEASURED}\n\n{full}\n"}


def write(root: Path = ROOT) -> None:
    """Write the numbers of the published tables into the book and the README."""
    for path, text in pages(root).items():
        write_text(path, text)
