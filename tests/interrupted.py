"""A stage made and measured in a process of its own, which a test may kill or starve of disk.

python tests/interrupted.py STAGE [MOST_BYTES_OF_A_FILE]; STAGE "chain" makes what all others need.
It says "working" once everything is imported. Bad endings are one line and exit code 2, as in hd.
"""

import sys

from hd import config, stages
from hd.config import InputError
from hd.run import runs, training

# Small enough for seconds, with enough steps to be killed in any of them.
TINY = {"frames.num_steps": 300, "frames.min_episodes": 4, "frames.val_share": 0.25,
        "frames.test_share": 0.25,
        "encoder.num_steps": 30, "encoder.batch_size": 16,
        "tokenizer.num_steps": 40, "tokenizer.batch_size": 300, "decoder.num_steps": 30,
        "world_model.num_steps": 40, "world_model.max_steps": 12, "world_model.eval_every": 10,
        "imagination.context": 4, "imagination.num_dreams": 3,
        "policy.num_steps": 30, "policy.context": 4, "policy.horizon": 5,
        "policy.eval_episodes": 1, "ram_policy.generations": 1, "ram_policy.eval_episodes": 1,
        "entropy_floor.num_states": 3, "entropy_floor.num_branches": 4,
        "transfer.budgets": (300,), "transfer.source_steps": 10, "transfer.num_steps": 8,
        "agent.num_steps": 320, "agent.prefill": 128,
        "probes.max_rows": 300, "probes.epochs": 2}  # fmt: skip
CHAIN = ("frames", "encoder", "tokenizer", "decoder", "world_model", "imagination", "policy",
         "entropy_floor")  # fmt: skip
STAGES = (*CHAIN, "transfer", "agent", "ablation")


def run_of(stage):
    return runs.start(stage, profile="smoke",
                      games=["pong"] if stage == "agent" else config.GAMES)


def make(stage):
    if stage == "ablation":
        stages.compare("mask", profile="smoke", seeds=(0,))
        return
    for each in CHAIN if stage == "chain" else (stage,):
        stages.make(run_of(each))
        stages.measure(run_of(each))


def main(stage, limit=None):
    # In place of the profile, so that every way to start a run finds it.
    config.PROFILES["smoke"] = config.resolve("smoke", overrides=TINY)
    training.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every step
    print("working", flush=True)
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        make(stage)
    except InputError as error:
        print(f"hd: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
