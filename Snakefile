"""The stages as a DAG: each notebook of the chain for every variant and seed.

snakemake --cores all --config profile=smoke variants=[base,mask.strict] seeds=[0,1]
(python -m hd sweep gives the same)

Snakemake brings the notebooks into order and dispatches them; hd.book.sweeps says which, from
their stamps. So no file's age decides anything: what Snakemake takes for outputs are marks of this
sweep alone, and it neither knows nor deletes executed notebooks, trained stages and checkpoints.
"""

import os
import re
import shutil
import sys
from uuid import uuid4

from hd import config as hd_config
from hd.book import sweeps
from hd.run.storage import artifacts_root

SETTINGS = {"profile": "audit", "variants": "base", "seeds": 0, "games": hd_config.GAMES,
            "until": hd_config.CHAIN[-1]}
for name in config:
    hd_config.allowed("setting", name, SETTINGS)
SETTINGS |= config


def listed(value):
    """A list, from a list, one value, or text with commas."""
    if isinstance(value, str):
        return value.split(",")
    return list(value) if isinstance(value, (list, tuple)) else [value]


PLANNED = sweeps.plan(
    profile=SETTINGS["profile"], variants=map(str, listed(SETTINGS["variants"])),
    seeds=map(int, listed(SETTINGS["seeds"])), games=listed(SETTINGS["games"]),
    until=SETTINGS["until"])

# A job on another machine reads this file again: it must write to the same place and leave the
# mark that is waited for. What it needs has been made, else it would not have been dispatched.
if workflow.is_main_process:
    os.environ |= {"HD_ARTIFACTS": str(artifacts_root()), "HD_SWEEP": uuid4().hex}
    TO_MAKE = sweeps.to_make(PLANNED)
    print(f"{len(PLANNED) - len(TO_MAKE)} of {len(PLANNED)} notebooks are up to date",
          file=sys.stderr)
else:
    TO_MAKE = []
MARKS = f".sweep/{os.environ['HD_SWEEP']}"  # a folder of empty files, one a finished notebook


workdir: str(artifacts_root())


envvars:
    "HD_ARTIFACTS",
    "HD_SWEEP",


localrules: all


onsuccess:
    shutil.rmtree(MARKS, ignore_errors=True)


onerror:
    shutil.rmtree(MARKS, ignore_errors=True)


rule all:
    input: expand(f"{MARKS}/{{name}}", name=TO_MAKE)


def marks_of_needed(wildcards):
    """The marks that a notebook waits for."""
    return [f"{MARKS}/{name}" for name in PLANNED[wildcards.name].needs if name in TO_MAKE]


def time_limit(wildcards, resources):
    """Where a job's run time is limited, it stops two minutes earlier with a checkpoint."""
    minutes = resources.get("runtime")
    return f"--time-limit {max(60, 60 * minutes - 120)}" if isinstance(minutes, int) else ""


# One at a time with all cores: two trainings on the same cores slow each other down many times.
# With exec, Snakemake itself is the parent with which a notebook ends.
rule notebook:
    input: marks_of_needed
    output: touch(f"{MARKS}/{{name}}")
    wildcard_constraints: name="|".join(map(re.escape, PLANNED))
    message: "{wildcards.name}"
    params:
        start=("exec " if os.name == "posix" else "") + f'"{sys.executable}" -m hd',
        arguments=lambda wildcards: PLANNED[wildcards.name].job.arguments,
        time_limit=time_limit,
    threads: workflow.cores or 1
    shell: "{params.start} {params.arguments} {params.time_limit} --with-parent"
