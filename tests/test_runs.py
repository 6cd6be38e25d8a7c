"""hd.run.runs: where a stage lives, what makes it another one, and how damage is noticed."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import refusal

from hd import config
from hd.config import InputError
from hd.run import machine, runs, storage
from hd.run.runs import row

SECRET = "c0ffee-secret-that-must-not-leak"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An artefact root of its own, and a secret in the environment."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    return tmp_path.resolve()


def start(stage="encoder", **chosen):
    return runs.start(stage, **{"profile": "smoke", **chosen})


def made(run, **extra):
    """A finished stage with a small model."""
    model = torch.nn.Linear(3, 2)
    runs.save_model(run, model, wall_seconds=1.0, **extra)
    return model


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def truncate(path, _=None):
    path.write_bytes(path.read_bytes()[:-2])  # the last byte of a JSON file is a line end


# ---- what a run's identity depends on


def test_identity_and_folder_are_the_same_in_another_process():
    code = "from hd.run import runs; print(runs.start('policy', profile='smoke').identity)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == start("policy").identity
    assert start("policy").identity[:10] in start("policy").folder.name


READ_THE_ENCODER = ("encoder", "tokenizer", "decoder", "world_model", "imagination", "policy",
                    "entropy_floor", "transfer")
CHANGES = [
    ({"seed": 1}, config.STAGES),
    ({"games": ("pong",)}, config.STAGES),
    ({"overrides": {"frames.sticky": 0.25}}, ("frames", *READ_THE_ENCODER)),
    ({"overrides": {"frames.sources": {"repeat": 1.0}}},
     ("frames", *READ_THE_ENCODER)),
    ({"overrides": {"encoder.lr": 1e-2}}, READ_THE_ENCODER),
    ({"overrides": {"tokenizer.decay": 0.9}}, READ_THE_ENCODER[1:]),
    ({"overrides": {"decoder.width": 8}}, ("decoder", "imagination")),
    ({"overrides": {"world_model.dropout": 0.0}},
     ("world_model", "imagination", "policy", "entropy_floor", "transfer")),
    ({"overrides": {"imagination.horizon": 3}}, ("imagination",)),
    ({"overrides": {"entropy_floor.num_states": 3}}, ("entropy_floor",)),
    ({"overrides": {"policy.hidden": 8}}, ("policy",)),
    ({"overrides": {"transfer.num_steps": 3}}, ("transfer",)),
    ({"overrides": {"agent.block": 32}}, ("agent",)),
    ({"overrides": {"place_model.width": 8}}, ("agent",)),
    ({"overrides": {"agent_policy.hidden": 8}}, ("agent",)),
    ({"overrides": {"probes.epochs": 3}}, ()),
    ({"time_limit": 50}, ()),
]


@pytest.mark.parametrize(("chosen", "changed"), CHANGES, ids=lambda x: str(x)[:60])
def test_a_change_gives_new_folders_to_its_own_and_later_stages_and_to_no_other(chosen, changed):
    def folders(**chosen):
        return {stage: start(stage, **chosen).folder for stage in config.STAGES}

    base, other = folders(), folders(**chosen)
    assert {stage for stage in config.STAGES if base[stage] != other[stage]} == set(changed)


def test_identity_is_of_the_profiles_numbers_and_folders_of_different_profiles_never_meet():
    assert start().root != start(profile="quick").root
    assert start().identity != start(profile="quick").identity


def test_variants_that_agree_on_a_stage_share_its_folder():
    base, causal = start("policy"), start("policy", variant="mask.causal")
    for stage in ("frames", "encoder", "tokenizer", "decoder"):
        assert base.at(stage).folder == causal.at(stage).folder
    for stage in ("world_model", "imagination", "policy"):
        assert base.at(stage).folder != causal.at(stage).folder


def test_tables_of_different_variants_seeds_and_games_have_different_names():
    names = [
        start(**chosen).name
        for chosen in ({}, {"variant": "mask.causal"}, {"seed": 1}, {"games": "pong"},
                       {"games": "pong,breakout"})
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert names[0] == "base-seed0"


def test_the_command_of_a_run_names_everything_that_is_not_the_default():
    run = start("tokenizer", variant="mask.causal", seed=3, games="pong,breakout")
    expected = (
        "python -m hd run 03_tokenizer --profile smoke --variant mask.causal --seed 3 "
        "--games pong,breakout"
    )
    assert run.command == expected


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"stage": "encodr"}, "world_model"),
        ({"profile": "smok"}, "smoke"),
        ({"variant": "mask.all"}, "mask.causal"),
        ({"seed": -1}, "2147483647"),
        ({"games": "tetris"}, "ms_pacman"),
        ({"games": None}, "ms_pacman"),
        ({"overrides": {"encoder.width": 3}}, "temperature"),
        ({"time_limit": -1}, "seconds"),
        ({"time_limit": "long"}, "seconds"),
        ({"time_limit": float("nan")}, "seconds"),
    ],
)
def test_bad_input_is_refused_in_one_line_that_says_what_is_allowed(chosen, named, root):
    assert named in refusal(start, **chosen)
    assert not list(root.iterdir())


def test_an_artefact_root_that_cannot_be_written_is_refused_before_any_work(root, monkeypatch):
    (root / "file").write_text("")
    monkeypatch.setenv("HD_ARTIFACTS", str(root / "file"))
    assert "HD_ARTIFACTS" in refusal(start)


# ---- seeds, device, time


def test_starting_a_run_seeds_every_generator():
    def draws(seed):
        start(seed=seed)
        return np.random.rand(), torch.rand(()).item()

    assert draws(1) == draws(1) != draws(2)


def test_a_generator_depends_on_each_of_its_keys_and_on_nothing_else():
    def draw(*keys):
        return runs.rng_for(*keys).random()

    base = draw(0, "encoder", 5)
    np.random.seed(3)
    assert draw(0, "encoder", 5) == base
    assert len({base, draw(1, "encoder", 5), draw(0, "policy", 5), draw(0, "encoder", 6)}) == 4


def test_a_run_must_stop_when_less_than_the_margin_is_left():
    run = start(time_limit=1000)
    assert not run.must_stop()
    assert not run.must_stop(margin=900)
    assert run.must_stop(margin=1001)
    assert not start().must_stop(margin=1e9)
    assert not start(time_limit=0).must_stop(margin=1e9)
    assert dataclasses.replace(run, deadline=time.monotonic() - 1).must_stop()


@pytest.mark.skipif(os.name != "posix", reason="process ids of parents are POSIX")
def test_a_kernel_stops_when_the_process_that_started_it_is_gone(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getppid()))
    assert not start().must_stop()
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getppid() + 1))
    assert start().must_stop()
    # A program started from a kernel inherits the variable; it is nobody's orphan.
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert not start().must_stop()


# ---- finished stages


def test_a_stage_that_is_not_made_is_not_finished_and_its_command_is_named():
    run = start("tokenizer", seed=2)
    assert runs.finished(run) is None
    message = refusal(runs.require, run)
    assert run.command in message and "stage tokenizer is missing" in message


def test_a_finished_model_comes_back_whole_and_ready_to_use():
    run = start()
    model = made(run, history=[{"step": 1, "loss": 0.5}])
    loaded = runs.load_model(run, torch.nn.Linear(3, 2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters()))
    assert not loaded.training
    assert runs.require(run)["history"] == [{"step": 1, "loss": 0.5}]


def test_loading_a_model_that_is_missing_names_the_command():
    run = start()
    assert run.command in refusal(runs.load_model, run, torch.nn.Linear(3, 2))


@pytest.mark.parametrize("harm", [truncate, flip_bit])
@pytest.mark.parametrize("name", ["model.safetensors", "finished.json"])
def test_a_damaged_artefact_is_named_with_the_command_that_rebuilds_it(name, harm):
    run = start()
    made(run)
    harm(run.folder / name, 150)
    message = refusal(runs.finished, run)
    assert f"{run.folder.name}/{name}" in message and run.command in message


def test_a_file_that_vanished_is_named_as_damaged():
    run = start()
    made(run)
    (run.folder / "model.safetensors").unlink()
    assert "model.safetensors is damaged" in refusal(runs.finished, run)


def test_every_byte_of_a_model_is_watched():
    run = start()
    made(run)
    path = run.folder / "model.safetensors"
    for position in range(0, path.stat().st_size, 7):
        flip_bit(path, position)
        assert "model.safetensors is damaged" in refusal(runs.finished, run)
        flip_bit(path, position)
    assert runs.finished(run)


def copied(source, target):
    """A finished stage of another configuration, put where target looks for its own."""
    made(source)
    target.folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source.folder, target.folder)


@pytest.mark.parametrize("stage", ["tokenizer", "world_model"])
def test_a_stage_of_another_configuration_is_refused_by_name_and_hash(stage):
    run = start(stage)
    other = start(stage, seed=1, overrides={f"{stage}.lr": 0.5})
    copied(other, run)
    for load in (runs.finished, lambda run: runs.load_model(run, torch.nn.Linear(3, 2))):
        message = refusal(load, run)
        assert f"of another configuration ({other.identity[:10]}, variant base, seed 1)" in message
        assert f"this run's {stage} ({run.identity[:10]}, variant base, seed 0)" in message
        assert run.command in message


def test_what_is_of_another_configuration_is_cleared_before_the_stage_is_made_again(capsys):
    run, other = start(), start(seed=1)
    copied(other, run)
    assert runs.finished_or_cleared(run) is None
    assert other.identity[:10] in capsys.readouterr().err
    assert runs.finished(run) is None and runs.finished(other)


def test_weights_of_a_network_that_the_code_no_longer_builds_are_refused_by_name_and_hash():
    run = start("world_model")
    made(run)
    message = refusal(runs.load_model, run, torch.nn.Linear(3, 5))
    assert f"model.safetensors ({run.identity[:10]}) does not fit the world_model" in message
    assert "size mismatch for weight" in message and run.command in message


def test_what_is_damaged_is_cleared_before_the_stage_is_made_again(capsys):
    run = start()
    made(run)
    truncate(run.folder / "model.safetensors")
    assert runs.finished_or_cleared(run) is None
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert runs.finished(run) is None
    assert not (run.folder / "model.safetensors").exists()


def test_a_strangers_record_cannot_have_files_outside_its_folder_removed(root):
    run = start()
    made(run)
    (root / "precious.txt").write_text("keep me")
    record = runs.require(run)
    record["files"] = {"../../../precious.txt": "0" * 64, str(root / "precious.txt"): "0" * 64}
    storage.write_record(run.folder / "finished.json", record)
    assert runs.finished_or_cleared(run) is None
    assert (root / "precious.txt").read_text() == "keep me"


def test_a_field_that_is_none_is_no_part_of_what_a_run_is():
    run, other = (runs.start("agent", profile="smoke", variant=variant, games=["pong"])
                  for variant in ("base", "agent_data.model_free"))
    assert run.cfg.learner is None and "learner" not in run.settings["config"]
    assert other.settings["config"] == {**run.settings["config"], "learner": "dqn"}
    assert other.identity != run.identity


# ---- checkpoints


def test_a_checkpoint_comes_back_as_it_was_written_and_only_the_last_is_kept():
    run = start()
    for step in (10, 20):
        tensors = {"w": torch.full((2, 3), float(step))}
        runs.save_checkpoint(run, tensors, {"step": step, "history": [{"loss": 0.1}]})
    tensors, state = runs.load_checkpoint(run)
    assert torch.equal(tensors["w"], torch.full((2, 3), 20.0))
    assert state["step"] == 20 and state["history"] == [{"loss": 0.1}]
    assert [p.name for p in run.folder.glob("*.safetensors")] == ["checkpoint-00000020.safetensors"]


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-00000010.safetensors"])
@pytest.mark.parametrize("harm", [truncate, flip_bit])
def test_a_damaged_checkpoint_is_named_and_forgotten(name, harm, capsys):
    run = start()
    runs.save_checkpoint(run, {"w": torch.ones(2, 3)}, {"step": 10})
    harm(run.folder / name, 30)
    assert runs.load_checkpoint(run) is None
    assert "checkpoint.json is damaged" in capsys.readouterr().err
    assert not list(run.folder.glob("checkpoint*"))


def test_a_checkpoint_killed_before_its_marker_leaves_the_one_before(monkeypatch):
    run = start()
    runs.save_checkpoint(run, {"w": torch.zeros(2)}, {"step": 10})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        runs.save_checkpoint(run, {"w": torch.ones(2)}, {"step": 20})
    tensors, state = runs.load_checkpoint(run)
    assert state["step"] == 10 and torch.equal(tensors["w"], torch.zeros(2))


def test_finishing_forgets_the_checkpoint():
    run = start()
    runs.save_checkpoint(run, {"w": torch.zeros(2)}, {"step": 10})
    made(run)
    assert not list(run.folder.glob("checkpoint*"))


# ---- arrays derived from a stage


def counting(array):
    def make():
        make.calls += 1
        return array

    make.calls = 0
    return make


def test_a_derived_array_is_made_once_and_then_mapped():
    run = start()
    made(run)
    make = counting(np.arange(6.0).reshape(2, 3))
    for _ in range(2):
        array = runs.cached_array(run, "embeddings", make)
        assert isinstance(array, np.memmap) and (array == make()).all()
    assert make.calls == 1 + 2


@pytest.mark.parametrize("suffix", ["npy", "json"])
@pytest.mark.parametrize("harm", [truncate, flip_bit, lambda path, _: path.unlink()])
def test_a_damaged_derived_array_is_made_again(suffix, harm):
    run = start()
    made(run)
    make = counting(np.arange(60.0).reshape(20, 3))
    runs.cached_array(run, "embeddings", make)
    harm(run.folder / f"embeddings.{suffix}", 140 if suffix == "npy" else 20)
    assert (runs.cached_array(run, "embeddings", make) == np.arange(60.0).reshape(20, 3)).all()
    assert make.calls == 2


def test_a_derived_array_is_made_again_after_its_stage_was():
    run = start()
    made(run)
    make = counting(np.zeros(3))
    runs.cached_array(run, "embeddings", make)
    made(run, note="another training")
    runs.cached_array(run, "embeddings", make)
    assert make.calls == 2


def test_nothing_is_derived_from_a_stage_that_is_missing():
    run, make = start(), counting(np.zeros(3))
    assert run.command in refusal(runs.cached_array, run, "embeddings", make)
    assert make.calls == 0


# ---- one process per stage

HOLDER = """
import sys, time
from pathlib import Path
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """Start processes that hold a run's lock; returns the function that does."""
    processes = []

    def hold(run):
        run.folder.mkdir(parents=True)
        command = [sys.executable, "-c", HOLDER, str(run.folder / ".lock")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_process_on_the_same_stage_is_refused_in_one_line(holder, monkeypatch):
    run = start()
    holder(run)
    monkeypatch.setattr(storage, "LOCK_PATIENCE", 0.1)
    with pytest.raises(InputError) as caught, runs.exclusive(run):
        pytest.fail("both are working")
    message = str(caught.value)
    assert "another process" in message and run.folder.name in message
    assert len(message.splitlines()) == 1
    with runs.exclusive(start(seed=1)):
        pass  # another stage's folder is free


def test_the_lock_of_a_killed_process_is_free_at_once(holder):
    run = start()
    holder(run).kill()
    with runs.exclusive(run):
        pass


def test_the_lock_is_free_again_after_an_error():
    run = start()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), runs.exclusive(run):
            raise KeyboardInterrupt


def test_what_a_killed_process_left_half_written_is_cleared():
    run = start()
    made(run)
    before = set(run.folder.iterdir())
    (run.folder / ".model.12345.safetensors").write_bytes(b"half")
    (run.folder / ".finished.12345.json").write_bytes(b"{")
    (run.folder / ".tmp16IEz4").write_bytes(b"half")  # as safetensors calls it
    with runs.exclusive(run):
        pass
    assert {path.name for path in set(run.folder.iterdir()) - before} <= {".lock"}
    assert runs.finished(run)


# ---- tables and provenance

ROWS = [
    row("accuracy", 0.5, game="pong", baseline=0.25),
    row("loss", np.float32(1.25), step=7, split="train"),
    row("loss", torch.tensor(2.0)),
]


def table_path(run, stage=None):
    return run.root / "results" / (stage or run.stage) / f"{run.name}.csv"


def test_a_table_has_exactly_the_columns_of_the_contract_and_comes_back():
    run = start(variant="mask.causal", seed=3)
    runs.save_table(run, ROWS)
    text = table_path(run).read_text()
    assert text.splitlines()[0] == "stage,variant,game,seed,step,split,metric,value,baseline"
    assert text.splitlines()[1] == "encoder,mask.causal,pong,3,,test,accuracy,0.5,0.25"
    table = runs.load_table(table_path(run))
    assert tuple(table.columns) == runs.COLUMNS
    assert list(table["value"]) == [0.5, 1.25, 2.0]
    assert table["baseline"].isna().tolist() == [False, True, True]


def test_a_table_written_twice_is_the_same_byte_for_byte():
    run = start()
    runs.save_table(run, ROWS)
    first = table_path(run).read_bytes()
    runs.save_table(run, ROWS)
    assert table_path(run).read_bytes() == first


def test_provenance_says_what_made_the_table():
    upstream, run = start("frames", seed=3), start("encoder", seed=3)
    storage.write_json(upstream.folder / "finished.json", {})
    runs.save_table(run, ROWS, wall_seconds=12.5)
    record = json.loads(table_path(run).with_suffix(".json").read_text())
    assert record["config"]["temperature"] == run.cfg.temperature
    assert (record["profile"], record["variant"], record["seed"]) == ("smoke", "base", 3)
    assert record["packages"]["torch"].startswith("2.")
    assert record["wall_seconds"] == 12.5 and record["peak_memory_mb"] > 10
    assert record["device"] and set(record["git"]) == {"commit", "dirty"}
    assert record["inputs"] == {
        f"frames/{upstream.folder.name}/finished.json": storage.sha256_of(
            upstream.folder / "finished.json"
        )
    }


def test_nothing_that_is_written_holds_a_place_or_a_secret_of_this_machine(root):
    run = start()
    storage.write_json(start("frames").folder / "finished.json", {})
    runs.save_table(run, ROWS)
    runs.save_checkpoint(run.at("policy"), {"w": torch.ones(2)}, {"step": 10})
    made(run)
    runs.cached_array(run, "embeddings", lambda: np.zeros(3))
    private = [SECRET, str(root), str(Path.home()), str(storage.ROOT), sys.prefix]
    written = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(written) >= 7
    for path in written:
        content = path.read_bytes()
        leaked = [word for word in private if len(word) > 1 and word.encode() in content]
        assert not leaked, f"{path.name} contains {leaked}"


def test_a_damaged_table_is_named():
    run = start()
    runs.save_table(run, ROWS)
    text = table_path(run).read_text()
    table_path(run).write_text(text.replace("0.5", "0.9"))
    message = refusal(runs.load_table, table_path(run))
    assert "encoder/base-seed0.csv is damaged" in message


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("content", [None, "", "\xff\xfe"])
def test_a_table_that_is_missing_or_cannot_be_read_is_named(suffix, content):
    run = start()
    runs.save_table(run, ROWS)
    path = table_path(run).with_suffix(suffix)
    path.unlink() if content is None else path.write_bytes(content.encode("latin1"))
    assert "base-seed0.csv" in refusal(runs.load_table, table_path(run))


def test_a_table_with_other_columns_is_refused_with_the_right_ones():
    run = start()
    runs.save_table(run, ROWS)
    pd.read_csv(table_path(run)).rename(columns={"value": "score"}).to_csv(table_path(run))
    assert ", ".join(runs.COLUMNS) in refusal(runs.load_table, table_path(run))


# ---- what stands beside a table


def beside(run, what="history"):
    return table_path(run).with_name(f"{run.name}-{what}.csv")


def test_what_stands_beside_a_table_comes_back():
    run = start()
    runs.save_beside(run, "history", [{"step": 1, "loss": 0.5}])
    runs.save_table(run, ROWS)
    assert runs.load_beside(run, "history").to_dict("records") == [{"step": 1, "loss": 0.5}]
    assert run.command in refusal(runs.load_beside, run, "episodes")


@pytest.mark.parametrize("harm", [truncate, flip_bit])
def test_damage_beside_a_table_is_named(harm):
    run = start()
    runs.save_beside(run, "history", [{"step": k, "loss": 0.5} for k in range(9)])
    runs.save_table(run, ROWS)
    harm(beside(run), 30)
    for message in (refusal(runs.load_beside, run, "history"),
                    refusal(runs.load_table, table_path(run))):  # fmt: skip
        assert "encoder/base-seed0-history.csv is damaged" in message


def test_a_file_beside_a_table_that_a_newer_one_replaced_or_that_vanished_is_named():
    run = start()
    runs.save_beside(run, "history", [{"step": 1}])
    runs.save_table(run, ROWS)
    runs.save_beside(run, "history", [{"step": 2}])  # killed before the table of the same run
    assert "history.csv is damaged" in refusal(runs.load_table, table_path(run))
    beside(run).unlink()
    assert "history.csv is damaged" in refusal(runs.load_table, table_path(run))


def test_no_rows_remove_what_an_earlier_run_left_beside_the_table():
    run = start()
    runs.save_beside(run, "history", [{"step": 1}])
    runs.save_beside(run, "history", [])
    runs.save_table(run, ROWS)
    assert not beside(run).exists() and len(runs.load_table(table_path(run))) == len(ROWS)


def test_provenance_names_the_commit_at_which_a_run_began(monkeypatch):
    at = {"commit": "began"}
    monkeypatch.setattr(machine, "asked_git", lambda root, *words: at["commit"])
    machine.git_state.cache_clear()
    try:
        runs.start("encoder", profile="smoke")
        at["commit"] = "committed while it ran"
        assert machine.circumstances(1.0)["git"]["commit"] == "began"
    finally:
        machine.git_state.cache_clear()
