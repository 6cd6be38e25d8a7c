"""The stages as a DAG: each notebook of the chain for every variant and seed.

snakemake --cores all --config profile=smoke variants=[base,mask.strict] seeds=[0,1]
(python -m hd sweep gives the same, and recovers by itself from whatever stopped it)

Outputs are the executed notebooks. What they train lies in content-addressed folders that
Snakemake neither knows nor deletes, so a rerun finds finished stages and checkpoints. Where two
variants agree on everything that decides a stage, its notebook runs once, under the first's name.
"""

import os
import re
import sys

from hd import config as hd_config
from hd.book import notebooks
from hd.run import runs
from hd.run.storage import artifacts_root, package_files

SETTINGS = {"profile": "audit", "variants": "base", "seeds": 0, "games": hd_config.GAMES,
            "until": "06_policy"}
for name in config:
    hd_config.allowed("setting", name, SETTINGS)
SETTINGS |= config


def listed(value):
    """A list, from a list, one value, or text with commas."""
    if isinstance(value, str):
        return value.split(",")
    return list(value) if isinstance(value, (list, tuple)) else [value]


def jobs_of(variant, seed):
    """{notebook: job} of one chain."""
    return {notebook: notebooks.plan(notebook, profile=SETTINGS["profile"], variant=variant,
                                     seed=seed, games=listed(SETTINGS["games"]))
            for notebook in CHAIN}


def needed(job):
    """The notebooks that make what this job's stages read."""
    stages = {stage for run in job.runs for stage in hd_config.UPSTREAM[run.stage]}
    return sorted({runs.NOTEBOOKS[stage] for stage in stages} - {job.source.stem})


hd_config.allowed("notebook", SETTINGS["until"], notebooks.CHAIN)
CHAIN = notebooks.CHAIN[: notebooks.CHAIN.index(SETTINGS["until"]) + 1]
VARIANTS = [str(variant) for variant in listed(SETTINGS["variants"])]
SEEDS = [int(seed) for seed in listed(SETTINGS["seeds"])]
CODE = [str(path) for path in package_files()]

TARGETS = []  # what was asked for
JOBS = {}  # file name -> (job, file names of what it needs)
first_with = {}  # what a notebook makes -> file name of the first that makes it
for seed in SEEDS:
    for variant in dict.fromkeys(["base", *VARIANTS]):
        files = {}
        for notebook, job in jobs_of(variant, seed).items():
            made = (notebook, *(run.identity for run in job.runs))
            files[notebook] = first_with.setdefault(made, job.target.stem)
            if files[notebook] == job.target.stem:
                JOBS[job.target.stem] = job, [files[other] for other in needed(job)]
        if variant in VARIANTS:
            TARGETS += [file for file in files.values() if file not in TARGETS]

# Jobs on other machines must write to the same place, wherever they are started.
os.environ["HD_ARTIFACTS"] = str(artifacts_root())
FOLDER = f"{SETTINGS['profile']}/notebooks/pipeline"


workdir: str(artifacts_root())


localrules: all


rule all:
    input: expand(f"{FOLDER}/{{file}}.ipynb", file=TARGETS)


def command(wildcards):
    """The command line of one notebook; with exec, Snakemake itself is its parent."""
    job = JOBS[wildcards.file][0]
    given = job.parameters
    words = ["run", job.source.stem, "--profile", given["profile"], "--variant", given["variant"],
             "--seed", given["seed"], "--games", ",".join(given["games"])]
    return " ".join(map(str, words))


def time_limit(wildcards, resources):
    """Where a job's run time is limited, it stops two minutes earlier with a checkpoint."""
    minutes = resources.get("runtime")
    return f"--time-limit {max(60, 60 * minutes - 120)}" if isinstance(minutes, int) else ""


# One at a time with all cores: two trainings on the same cores slow each other down many times.
rule notebook:
    input:
        upstream=lambda wildcards: [f"{FOLDER}/{file}.ipynb" for file in JOBS[wildcards.file][1]],
        template=lambda wildcards: str(JOBS[wildcards.file][0].source),
        code=CODE,
    output: f"{FOLDER}/{{file}}.ipynb"
    wildcard_constraints: file="|".join(map(re.escape, JOBS))
    message: "{wildcards.file}"
    params:
        start=("exec " if os.name == "posix" else "") + f'"{sys.executable}" -m hd',
        command=command,
        time_limit=time_limit,
    threads: workflow.cores or 1
    shell: "{params.start} {params.command} {params.time_limit} --with-parent"
