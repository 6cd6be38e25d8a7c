"""Every stage by name: make it, with what it needs, and measure it into its table.

The notebooks call the same functions one by one; ablations and tests make whole chains here.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pandas as pd

from hd import config, decoder, encoder, play, policy, replay, tokenizer, world_model
from hd.config import InputError
from hd.measure import dinov2, entropy_floor, evaluation, seed_protocol, transfer
from hd.run import runs, storage
from hd.run.runs import Run
from hd.run.storage import artifacts_root

MAKE = {"frames": play.collect, "encoder": encoder.train, "tokenizer": tokenizer.train,
        "decoder": decoder.train, "world_model": world_model.train, "policy": policy.train,
        "transfer": transfer.train}


def make(run: Run) -> None:
    """Make the stage and, before it, every stage it needs that is not finished.

    Raises what training raises: InputError, NonFiniteLoss, TimeLimitReached.
    """
    for stage in config.UPSTREAM[run.stage]:
        if runs.finished_or_cleared(run.at(stage)) is None:
            make(run.at(stage))
    if run.stage in MAKE:
        MAKE[run.stage](run)


def measure(run: Run) -> pd.DataFrame:
    """Measure a made stage; save its table, provenance and learning curve; returns the table."""
    began = time.monotonic()
    rows = ROWS[run.stage](run)
    made = runs.finished(run) or {}
    runs.save_beside(run, "history", made.get("history", []))
    return runs.save_table(run, rows, wall_seconds=time.monotonic() - began,
                           made_seconds=made.get("wall_seconds", 0.0))


def measured(run: Run) -> pd.DataFrame:
    """The run's table: the one that is there if this very code made it from this run, else new."""
    path = run.root / "results" / run.stage / f"{run.name}.csv"
    with contextlib.suppress(InputError, OSError, ValueError):
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if (record.get("identity"), record.get("code")) == (run.identity, storage.CODE):
            return runs.load_table(path)
    return measure(run)


def _policy_rows(run: Run) -> list[dict]:
    rows, episodes = evaluation.measure_policy(run)
    runs.save_beside(run, "episodes", episodes)
    return rows


ROWS = {
    "frames": replay.measure,
    "encoder": lambda run: (encoder.measure(run) + encoder.probe(run)
                            + seed_protocol.rows(run) + dinov2.rows(run)),
    "tokenizer": lambda run: (tokenizer.measure(run, tokenizer.load(run))
                              + tokenizer.probe(run, tokenizer.load(run))),
    "decoder": lambda run: decoder.measure(run, decoder.load(run)),
    "world_model": lambda run: world_model.measure(run, world_model.load(run)),
    "imagination": evaluation.measure_dreams,
    "policy": _policy_rows,
    "entropy_floor": entropy_floor.measure,
    "transfer": transfer.measure,
}


def compare(ablation: str, *, profile: str, seeds, games=config.GAMES,
            time_limit: float | None = None) -> pd.DataFrame:
    """Make and measure base and every arm of an ablation, for all seeds; returns their tables.

    Arms share the stages in which they agree. Finished arms are not trained again, and not measured
    again by the code that measured them; the tables of chosen.also are saved, not returned.
    Raises InputError for an unknown ablation or no seeds.
    """
    chosen = config.ablation(ablation)
    if not seeds:
        raise InputError("seeds must hold at least one whole number")
    deadline = time.monotonic() + time_limit if time_limit else None
    tables = []
    for seed in seeds:
        for variant in ("base", *(f"{ablation}.{arm}" for arm in chosen.arms)):
            left = max(deadline - time.monotonic(), 1e-3) if deadline else None
            run = runs.start(chosen.measure, profile=profile, variant=variant, seed=seed,
                             games=games, time_limit=left)
            print(f"{variant}, seed {seed}", flush=True)
            for stage in (chosen.measure, *chosen.also):
                made = run.at(stage)
                make(made)
                table = measured(made)
                if stage == chosen.measure:
                    tables.append(table)
    return pd.concat(tables, ignore_index=True)


CURVES = {  # what to watch while a stage trains
    "encoder": ("loss",), "tokenizer": ("squared_error",), "decoder": ("loss",),
    "world_model": ("codes", "l0_accuracy", "l0_changed_accuracy"),
    "policy": ("imagined_return",)}


def curve_axis(stage: str) -> dict[str, str]:
    """What a stage's curves are drawn over: keyword arguments of figures.learning_curves."""
    if stage == "world_model":
        return {"x": "exposures", "xlabel": "exposures of each training step"}
    return {"x": "step", "xlabel": "training step"}


def histories(ablation: str, *, profile: str, seed: int, games=config.GAMES) -> dict[str, list]:
    """The learning curve of each measured arm of one seed: variant -> list of dicts.

    World models have "exposures" beside "step": how often each training step was seen by then.
    """
    chosen, curves = config.ablation(ablation), {}
    for variant in ("base", *(f"{ablation}.{arm}" for arm in chosen.arms)):
        run = runs.start(chosen.measure, profile=profile, variant=variant, seed=seed, games=games)
        path = run.root / "results" / run.stage / f"{run.name}.csv"
        if not path.with_name(f"{run.name}-history.csv").exists():
            continue  # nothing trained here: codebooks that came with the encoder
        table = runs.load_beside(run, "history")
        found = runs.load_table(path).set_index("metric")["value"]
        if "exposures" in found.index:
            table["exposures"] = found["exposures"] * table["step"] / table["step"].iloc[-1]
        curves[variant] = [entry.dropna().to_dict() for _, entry in table.iterrows()]
    return curves


def figures_folder(profile: str) -> Path:
    """Where a profile's figures that belong to no single run are saved."""
    return artifacts_root() / profile / "figures"
