"""Weights worth keeping: published small, restored into the folders of runs.

results/<profile>/checkpoints/<variant>/, with the games behind the variant where they are not all,
holds <stage>-<k>.safetensors in shards of at most 14 MB
and <stage>.json with provenance; a fresh clone restores them and can probe, dream and play. They
are in half precision; what only training reads is left out, and the decoder's large matrix, which
only draws, has a byte a weight.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hd.config import GAMES, TRAINED, InputError
from hd.run import runs
from hd.run.runs import Run
from hd.run.storage import ROOT, sha256_of, shown, write_atomically, write_json

SHARD_BYTES, TREE_BYTES = 14_000_000, 12_000_000
STAGES = (*TRAINED, "agent")  # that have weights
LEFT_OUT = {  # by what its names start with; the world model's codebooks are the tokenizer's
    "encoder": ("predictors.",), "tokenizer": ("counts", "sums"), "world_model": ("codebooks",),
    "policy": ("critic.", "slow_critic.", "num_ranges", "return_range"),
    "agent": ("policy.critic.", "policy.slow_critic.", "policy.num_ranges", "policy.return_range",
              "codec.quantizer.counts", "codec.quantizer.sums")}
IN_BYTES = {"decoder": ("start.weight",)}
SCALE = ":scale"  # ends the name of the numbers (rows, 1) that bytes are multiplied by


def folder_of(run: Run, root: Path = ROOT) -> Path:
    """Where a run's weights are published: one set per profile and variant."""
    games = "" if run.games == GAMES else "-" + "+".join(run.games)
    return root / "results" / run.profile.name / "checkpoints" / f"{run.variant}{games}"


def publish(run: Run, *, root: Path = ROOT) -> list[Path]:
    """Write the weights of every finished trained stage of run's chain; returns the files.

    They replace the variant's older ones. Raises InputError when nothing is finished, a stage was
    made from a dirty tree, or all published weights together would be over 12 MB.
    """
    made = _finished_stages(run)
    for stage, record in made.items():
        if record["git"]["dirty"] is not False:
            raise InputError(f"{stage} was not made from a clean commit; its weights are not "
                             f"published")
    folder, shards = folder_of(run, root), {stage: _shards(run.at(stage)) for stage in made}
    _check_size(root, folder, shards)
    files = _write(folder, made, shards)
    for old in set(folder.glob("*")) - set(files):
        old.unlink()
    return files


def store(run: Run, *, root: Path) -> list[Path]:
    """As publish, below another root and from any tree: what a machine hands back. The record of
    each stage says from which tree it was made."""
    made = _finished_stages(run)
    return _write(folder_of(run, root), made, {stage: _shards(run.at(stage)) for stage in made})


def _finished_stages(run: Run) -> dict[str, dict]:
    """The record of each trained stage that is finished; raises InputError for none."""
    made = {stage: record for stage in STAGES if (record := runs.finished(run.at(stage)))}
    if not made:
        raise InputError(f"no trained stage is finished; make one: {run.at('encoder').command}")
    return made


def _write(folder: Path, made: dict[str, dict], shards: dict[str, list[dict]]) -> list[Path]:
    files = []
    for stage, record in made.items():
        names = {}
        for k, tensors in enumerate(shards[stage]):
            path = folder / f"{stage}-{k}.safetensors"
            write_atomically(path, lambda aside, tensors=tensors: save_file(tensors, aside))
            names[path.name] = sha256_of(path)
        kept = {key: value for key, value in record.items() if key not in ("files", "history")}
        how = {"precision": "float16", "left_out": LEFT_OUT.get(stage, ()),
               "in_bytes": IN_BYTES.get(stage, ())}
        write_json(folder / f"{stage}.json", {**kept, **how, "files": names})
        files += [*(folder / name for name in names), folder / f"{stage}.json"]
    return files


def restore(run: Run, *, root: Path = ROOT) -> list[str]:
    """Put published weights where run's chain keeps its own; returns the stages restored.

    A stage that is finished already is left alone. Raises InputError when nothing is published,
    a file is damaged, or a stage's weights are of another configuration, named by its hash.
    """
    folder = folder_of(run, root)
    records = sorted(folder.glob("*.json"))
    if not records:
        raise InputError(f"no weights are published for profile {run.profile.name}, variant "
                         f"{run.variant}; there are: {_published(root)}")
    restored = []
    for stage in STAGES:
        if folder / f"{stage}.json" not in records:
            continue
        record, own = json.loads((folder / f"{stage}.json").read_text("utf-8")), run.at(stage)
        if record["identity"] != own.identity:
            raise InputError(f"the published weights of {stage} are of another configuration "
                             f"({record['identity'][:10]}) than this run's ({own.identity[:10]}): "
                             f"they were made with seed {record['seed']}, games "
                             f"{', '.join(record['games'])}")
        with runs.exclusive(own):
            if runs.finished_or_cleared(own) is None:
                _put(own, folder, record)
                restored.append(stage)
    return restored


def _packed(stage: str, tensors: dict) -> dict:
    """What of a stage's tensors is published: halves, and bytes with a scale for each row."""
    packed = {}
    for name, tensor in tensors.items():
        if name in IN_BYTES.get(stage, ()):
            scale = tensor.abs().amax(1, keepdim=True) / 127
            packed[name + SCALE] = torch.where(scale > 0, scale, 1.0)
            packed[name] = (tensor / packed[name + SCALE]).round().to(torch.int8)
        elif not name.startswith(LEFT_OUT.get(stage, ())):
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
    return packed


def _unpacked(packed: dict) -> dict:
    """The tensors that _packed was given, as near as they were kept."""
    tensors = {name: tensor.float() if tensor.dtype == torch.float16 else tensor
               for name, tensor in packed.items()}
    scales = {name: tensors.pop(name) for name in packed if name.endswith(SCALE)}
    return tensors | {name.removesuffix(SCALE): tensors[name.removesuffix(SCALE)] * scale
                      for name, scale in scales.items()}


def _shards(run: Run) -> list[dict]:
    """What is published of a finished stage's tensors, in groups of at most SHARD_BYTES; one larger
    tensor stands alone."""
    shards, size = [{}], 0
    for name, tensor in _packed(run.stage, load_file(run.folder / runs.MODEL)).items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    return shards


def _check_size(root: Path, folder: Path, shards: dict) -> None:
    others = sum(path.stat().st_size for path in root.glob("results/*/checkpoints/*/*")
                 if path.parent != folder)
    own = sum(tensor.nbytes for groups in shards.values() for group in groups
              for tensor in group.values())
    if others + own > TREE_BYTES:
        raise InputError(f"published weights may take {TREE_BYTES:,} bytes in all; these would "
                         f"make it {others + own:,}: remove others first")


def _put(run: Run, folder: Path, record: dict) -> None:
    tensors = {}
    for name, digest in record["files"].items():
        path = folder / Path(name).name
        if not path.exists() or sha256_of(path) != digest:
            raise InputError(f"{shown(path)} is damaged (its sha256 does not match); restore it "
                             f"from git")
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise InputError(f"{shown(path)} cannot be read: {error}") from None
    tensors = _unpacked(tensors)
    path = run.folder / runs.MODEL
    write_atomically(path, lambda aside: save_file(tensors, aside))
    runs.finish(run, [path], wall_seconds=record["wall_seconds"], precision="float16",
                left_out=record.get("left_out", ()), restored_from=shown(folder),
                made_by=record["git"])


def _published(root: Path) -> str:
    found = sorted(f"{path.parts[-3]} {path.name}" for path in
                   (root / "results").glob("*/checkpoints/*"))
    return ", ".join(found) or "none"
