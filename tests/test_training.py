"""hd.run.training: one loop for all stages, which no interruption may change."""

import dataclasses
import math
import os
import random
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny import refusal
from torch import nn

from hd.config import InputError, WorldModelConfig
from hd.run import machine, runs, storage, training
from hd.run.training import Loss, NonFiniteLoss, Unkept, warmup_cosine

SECRET = "c0ffee-secret-that-must-not-leak"
NUM_STEPS = 23


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An artefact root of its own; tracking only where a test asks for it."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path.resolve()


class Line(nn.Module):
    """A regression with everything a checkpoint must keep: matrix, vector, buffer, dropout."""

    def __init__(self, dropout=0.3):
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3, 2)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def loss(self, batch) -> Loss:
        x, y = batch
        if self.training:
            self.seen += len(x)
        error = (self.linear(self.dropout(x)) - y).pow(2).mean()
        return Loss(error, {"size": x.abs().mean()})


def batches(i):
    """A noisy line with gradients of very different sizes."""
    rng = runs.rng_for(7, i)
    x = torch.from_numpy(rng.normal(size=(4, 3)) * 10 ** rng.uniform(-1, 1)).float()
    return x, x[:, :2] * torch.tensor([2.0, -1.0]) + 0.5


def start(stage="encoder", *, time_limit=None, **fields):
    fields = {"num_steps": NUM_STEPS, "precision": "float32", "lr": 0.05, **fields}
    overrides = {f"{stage}.{name}": value for name, value in fields.items()}
    return runs.start(stage, profile="smoke", overrides=overrides, time_limit=time_limit)


def train(model, make_batches, run, **settings):
    """Train with the run's own config; returns the record."""
    return training.train(model, make_batches, run.cfg, run, **settings)


def result(run):
    """What must be the same however often a run was interrupted."""
    digest = storage.sha256_of(run.folder / "model.safetensors")
    return digest, runs.require(run)["history"]


def train_in_pieces(run, make_batches=batches, **settings):
    """Train, and start again after every stop at the time limit; returns the number of stops."""
    for stops in range(1000):
        try:
            train(Line(), make_batches, run, **settings)
            return stops
        except runs.TimeLimitReached as stop:
            assert "the same command continues" in str(stop)
    raise AssertionError("it never finishes")


@pytest.fixture
def uninterrupted(tmp_path_factory):
    """The result of a run of this config that nothing interrupts, made elsewhere."""

    def reference(**settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("reference")))
            run = start(**settings)
            train(Line(), batches, run)
            return result(run)

    return reference


def frozen(function):
    """A version of a function of i that counts its calls."""

    def counted(i):
        counted.calls.append(i)
        return function(i)

    counted.calls = []
    return counted


# ---- the step


@pytest.mark.parametrize(
    ("step", "num_steps", "factor"),
    [
        (0, 200, 0.1),
        (4, 200, 0.5),
        (9, 200, 1.0),
        (10, 200, 1.0),
        (105, 200, 0.5),
        (200, 200, 0.0),
        (499, 100_000, 0.5),
        (1000, 100_000, 1.0),
        (1000 + 99_000 // 4, 100_000, 0.5 + math.sqrt(0.125)),
        (0, 1, 1.0),
    ],
)
def test_the_schedule_is_a_linear_warm_up_and_a_cosine_to_zero(step, num_steps, factor):
    assert warmup_cosine(step, num_steps) == pytest.approx(factor, abs=1e-9)


def by_the_textbook(cfg, optimizer, num_batches=1):
    """The same training written down plainly."""
    model = Line(dropout=0.0)
    optimizer = optimizer(model)
    for step in range(cfg.num_steps):
        if cfg.schedule == "cosine":
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * warmup_cosine(step, cfg.num_steps)
        parts = [batches(step * num_batches + i) for i in range(num_batches)]
        loss = model.loss([torch.cat(part) for part in zip(*parts)]).total
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for p, gradient in zip(model.parameters(), gradients):
            p.grad = gradient * min(1.0, cfg.clip / (norm.item() + 1e-6))
        optimizer.step()
    return model.linear.weight


def trained_weight(run):
    model = Line(dropout=0.0)
    train(model, batches, run)
    return model.linear.weight


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_a_constant_schedule_is_adam_with_coupled_decay_and_clipped_gradients(clip):
    run = start(clip=clip, weight_decay=0.01)
    expected = by_the_textbook(
        run.cfg, lambda m: torch.optim.Adam(m.parameters(), lr=0.05, weight_decay=0.01)
    )
    # Rounding only: the same operations in the same order but for the clipping factor.
    torch.testing.assert_close(trained_weight(run), expected, rtol=1e-4, atol=1e-5)


def test_clipping_changes_what_is_learned():
    weights = [trained_weight(start(clip=clip)) for clip in (0.5, 1e9)]
    assert (weights[0] - weights[1]).abs().max() > 1e-2


def test_a_cosine_schedule_is_adamw_with_warm_up_and_decay_on_matrices_only():
    run = start("world_model", accumulate=1, weight_decay=0.2)

    def adamw(model):
        decay = [{"params": [model.linear.weight]},
                 {"params": [model.linear.bias], "weight_decay": 0.0}]  # fmt: skip
        return torch.optim.AdamW(decay, lr=1.0, betas=run.cfg.betas, weight_decay=0.2)

    expected = by_the_textbook(run.cfg, adamw)
    torch.testing.assert_close(trained_weight(run), expected, rtol=1e-4, atol=1e-5)


def test_accumulated_batches_equal_one_big_batch():
    run = start("world_model", accumulate=3, weight_decay=0.0)
    expected = by_the_textbook(
        run.cfg,
        lambda m: torch.optim.AdamW(m.parameters(), lr=1.0, betas=run.cfg.betas, weight_decay=0.0),
        num_batches=3,
    )
    # The loss is a mean over rows; only the order of summation differs.
    torch.testing.assert_close(trained_weight(run), expected, rtol=1e-3, atol=1e-4)


def test_decay_is_kept_from_vectors():
    optimizer = training.make_optimizer(Line(), WorldModelConfig(weight_decay=0.1))
    assert [[p.ndim for p in g["params"]] for g in optimizer.param_groups] == [[2], [1]]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]


def test_every_batch_is_made_once_and_in_order():
    counted = frozen(batches)
    train(Line(), counted, start("world_model", accumulate=2))
    assert counted.calls == list(range(2 * NUM_STEPS))


def test_half_precision_is_never_used_where_float32_is_asked_for():
    for device in ("cpu", "cuda"):
        assert training.precision(start().cfg, torch.device(device)) is None


@pytest.mark.parametrize("is_fast, name", [(True, "bfloat16"), (False, "float32")])
def test_provenance_says_what_a_processor_computes_in(is_fast, name, monkeypatch):
    monkeypatch.setenv("HD_DEVICE", "cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast)
    assert machine.circumstances(1.0)["precision"] == name
    cfg = dataclasses.replace(start().cfg, precision="auto")
    used = training.precision(cfg, torch.device("cpu"))
    assert str(used or torch.float32) == f"torch.{name}"


def test_batches_of_any_nesting_move_to_the_device():
    batch = {"a": torch.zeros(2), "b": [torch.ones(3), (torch.ones(1), 5)], "c": "word"}
    moved = training.to_device(batch, torch.device("meta"))
    tensors = [moved["a"], moved["b"][0], moved["b"][1][0]]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved["b"][1][1] == 5 and moved["c"] == "word" and isinstance(moved["b"][1], tuple)


# ---- what is recorded


def test_it_learns_and_at_learning_rate_zero_it_does_not():
    def last_loss(lr):
        history = train(Line(0.0), batches, start(num_steps=150, lr=lr))["history"]
        return sum(entry["loss"] / entry["size"] ** 2 for entry in history[-20:]) / 20

    assert last_loss(0.05) < 0.1 * last_loss(0.0)


class Told(Line):
    """Its loss is what the batch says."""

    def loss(self, batch) -> Loss:
        return Loss(0.0 * self.linear.weight.sum() + batch, {"double": 2 * batch})


def test_a_record_is_the_mean_over_its_steps():
    run = start(num_steps=400)
    history = train(Told(), lambda i: torch.tensor(float(i)), run)["history"]
    assert [entry["step"] for entry in history] == list(range(2, 401, 2))
    assert [entry["loss"] for entry in history] == [i + 0.5 for i in range(0, 400, 2)]
    assert history[3]["double"] == 2 * history[3]["loss"]


def test_a_model_is_evaluated_every_so_often_and_at_the_end_without_gradients():
    modes = []

    def evaluate(model):
        modes.append((model.training, torch.is_grad_enabled()))
        return {"val_loss": float(len(modes))}

    record = train(Line(), batches, start(num_steps=12, eval_every=5), evaluate=evaluate)
    scored = {e["step"]: e["val_loss"] for e in record["history"] if "val_loss" in e}
    # Powers of two before the first, when most changes.
    assert scored == {1: 1.0, 2: 2.0, 4: 3.0, 5: 4.0, 10: 5.0, 12: 6.0}
    assert set(modes) == {(False, False)}


def test_evaluation_does_not_change_what_is_learned(uninterrupted):
    run = start(eval_every=3)
    train(Line(), batches, run, evaluate=lambda model: {"draw": torch.rand(()).item()})
    assert result(run)[0] == uninterrupted()[0]


# ---- interruptions


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(uninterrupted):
    digest, history = uninterrupted()
    assert (digest, history) == uninterrupted()
    other = dataclasses.replace(start(), seed=1)
    train(Line(), batches, other)
    assert result(other)[0] != digest  # dropout is drawn from the seed


@pytest.mark.parametrize("stage", ["encoder", "world_model"])
def test_a_run_stopped_after_every_step_ends_as_one_that_was_not(stage, uninterrupted):
    # Fewer records than steps, so that a stop falls between two records.
    settings = {"stage": stage, "num_steps": 11, "eval_every": 4}
    run = start(**settings, time_limit=1e-3)
    assert train_in_pieces(run) == 10
    assert result(run) == uninterrupted(**settings)


class Picture(nn.Module):
    """A convolution whose weights lie channels last in memory, as the encoder's do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(54, 1))
        self.to(memory_format=torch.channels_last)

    def loss(self, batch) -> Loss:
        return Loss(self.layers(batch).pow(2).mean())


def noise(i):
    return torch.from_numpy(runs.rng_for(i).normal(size=(3, 4, 5, 5))).float()


@pytest.mark.parametrize("stage", ["encoder", "world_model"])
def test_moments_of_weights_that_lie_channels_last_survive_a_stop(stage, root, monkeypatch):
    def weights(time_limit):
        run = start(stage, num_steps=8, accumulate=1, lr=0.01, time_limit=time_limit)
        while True:
            model = Picture()
            try:
                train(model, noise, run)
                return model.layers[0].weight
            except runs.TimeLimitReached:
                pass

    monkeypatch.setenv("HD_ARTIFACTS", str(root / "whole"))
    whole = weights(None)
    monkeypatch.setenv("HD_ARTIFACTS", str(root / "stopped"))
    assert torch.equal(weights(1e-3), whole)


def test_what_was_gathered_between_two_records_survives_a_stop():
    run = start(num_steps=400, time_limit=1e-3)
    with pytest.raises(runs.TimeLimitReached):
        train(Told(), lambda i: torch.tensor(float(i)), run)
    again = dataclasses.replace(run, deadline=None)
    history = train(Told(), lambda i: torch.tensor(float(i)), again)["history"]
    assert history[0] == {"step": 2, "loss": 0.5, "double": 1.0}


def test_a_time_limit_is_kept():
    def slow(i):
        time.sleep(0.01)
        return batches(i)

    began = time.monotonic()
    run = start(num_steps=100_000, time_limit=1.6)
    with pytest.raises(runs.TimeLimitReached, match="encoder stopped at step "):
        train(Line(), slow, run)
    assert time.monotonic() - began < 1.6
    assert runs.load_checkpoint(run)[1]["step"] > 1


def test_checkpoints_are_written_only_where_the_stage_allows_them(uninterrupted):
    run = start(time_limit=1e-3)
    with pytest.raises(runs.TimeLimitReached, match="step 5 of 23"):
        train(Line(), batches, run, checkpoint_every=5)
    assert train_in_pieces(run, checkpoint_every=5) == 3
    assert result(run) == uninterrupted()


def interrupting(when, error):
    def make(i):
        if i == when:
            raise error
        return batches(i)

    return make


@pytest.mark.parametrize("when", [0, 1, 14])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no more")])
def test_a_run_that_breaks_off_anywhere_ends_the_same_when_it_is_repeated(
    when, error, uninterrupted, monkeypatch
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    run = start()
    with pytest.raises(type(error)):
        train(Line(), interrupting(when, error), run)
    counted = frozen(batches)
    train(Line(), counted, run)
    assert result(run) == uninterrupted()
    assert counted.calls[0] == max(0, when)  # nothing done before is done again


def child():
    """What the killed process runs: a checkpoint after every step, and time to be killed in."""
    training.CHECKPOINT_SECONDS = 0.0

    def slow(i):
        time.sleep(0.01)
        return batches(i)

    print("training", flush=True)
    train(Line(), slow, start(num_steps=60))


CHILD = "import sys; sys.path.insert(0, sys.argv[1]); import test_training; test_training.child()"


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_process_killed_at_random_instants_ends_as_one_that_was_not(uninterrupted):
    run, killed_while_training = start(num_steps=60), 0
    for attempt in range(9):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(Path(__file__).parent)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "training\n", process.stderr.read()
        if attempt < 3:
            time.sleep(random.SystemRandom().uniform(0.05, 0.4))
            process.kill()
        _, errors = process.communicate(timeout=60)
        assert errors == ""
        killed_while_training += process.returncode == -9
        if process.returncode == 0:
            break
    assert process.returncode == 0 and killed_while_training >= 1
    assert result(run) == uninterrupted(num_steps=60)
    left = {path.name for path in run.folder.iterdir()}
    assert left == {".lock", "finished.json", "model.safetensors"}


def test_a_finished_stage_is_loaded_and_not_trained_again():
    run, counted = start(), frozen(batches)
    first = train(Line(), batches, run)
    model = Line()
    assert train(model, counted, run) == first
    assert counted.calls == []
    assert not model.training
    expected = runs.load_model(run, Line())
    assert torch.equal(model.linear.weight, expected.linear.weight)


def test_a_changed_config_is_trained_anew():
    train(Line(), batches, start())
    counted = frozen(batches)
    train(Line(), counted, start(lr=0.01))
    assert len(counted.calls) == NUM_STEPS


def test_a_config_edited_after_an_interruption_never_meets_the_old_checkpoint():
    run = start(time_limit=1e-3)
    with pytest.raises(runs.TimeLimitReached):
        train(Line(), batches, run)
    before = {path.name: storage.sha256_of(path) for path in run.folder.glob("checkpoint*")}
    counted = frozen(batches)
    train(Line(), counted, start(lr=0.01))
    assert counted.calls == list(range(NUM_STEPS))
    assert before == {path.name: storage.sha256_of(path)
                      for path in run.folder.glob("checkpoint*")}  # fmt: skip


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-*.safetensors"])
@pytest.mark.parametrize("truncated", [True, False])
def test_a_damaged_checkpoint_is_named_and_training_starts_afresh(
    name, truncated, uninterrupted, capsys
):
    run = start(time_limit=1e-3)
    with pytest.raises(runs.TimeLimitReached):
        train(Line(), batches, run)
    path = next(run.folder.glob(name))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + (b"" if truncated else b"#" + content[middle + 1 :]))
    counted = frozen(batches)
    train(Line(), counted, dataclasses.replace(run, deadline=None))
    assert "checkpoint.json is damaged: starting this stage afresh" in capsys.readouterr().err
    assert counted.calls == list(range(NUM_STEPS))
    assert result(run) == uninterrupted()


def test_a_damaged_model_is_named_and_made_again(uninterrupted, capsys):
    run = start()
    train(Line(), batches, run)
    path = run.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"#")
    train(Line(), batches, run)
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert result(run) == uninterrupted()


# ---- losses that are not finite


def broken_from(step, value=float("nan")):
    def make(i):
        x, y = batches(i)
        return x, (y + value if i >= step else y)

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(value):
    run = start()
    with pytest.raises(NonFiniteLoss) as caught:
        train(Line(), broken_from(4, value), run)
    message = str(caught.value)
    assert isinstance(caught.value, InputError) and len(message.splitlines()) == 1
    assert all(word in message for word in ("encoder", "step 5", "no checkpoint yet", "encoder.lr"))
    assert not (run.folder / "finished.json").exists()


def test_the_last_good_checkpoint_is_named_and_good(monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    run = start(num_steps=400)  # recorded every second step, checkpointed after every one
    with pytest.raises(NonFiniteLoss) as caught:
        train(Line(), broken_from(10), run)
    assert "step 11" in str(caught.value) and "checkpoint.json" in str(caught.value)
    tensors, state = runs.load_checkpoint(run)
    assert state["step"] == 10
    assert all(tensor.isfinite().all() for tensor in tensors.values())


class Steep(Line):
    """A finite loss with a gradient that is not."""

    def loss(self, batch) -> Loss:
        return Loss((self.linear.weight * 0.0).abs().sum().sqrt())


def test_weights_that_are_not_finite_are_never_kept():
    run = start(num_steps=1)
    with pytest.raises(NonFiniteLoss, match="weight is not finite"):
        train(Steep(), batches, run)
    assert not list(run.folder.glob("*.safetensors"))


# ---- without a run


def files(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def trained_without_a_run(run, make_batches=batches, *, stage=None, seed=None, **settings):
    """(weights, record) of the same training for someone who has no run."""
    model = Line()
    free = Unkept(stage or run.stage, run.seed if seed is None else seed)
    record = training.train(model, make_batches, run.cfg, free, **settings)
    assert not model.training
    return model.state_dict(), record


@pytest.mark.parametrize("stage", ["encoder", "world_model"])
def test_without_a_run_it_ends_with_the_same_weights_and_writes_nothing(stage, root, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.delenv("WANDB_MODE")
    run = start(stage, num_steps=11, eval_every=4)
    watch = {"evaluate": lambda model: {"val_size": model.linear.weight.abs().sum().item()}}
    weights, record = trained_without_a_run(run, **watch)
    assert files(root) == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    kept = Line()
    expected = train(kept, batches, run, **watch)
    assert record.keys() == {"history", "wall_seconds"}
    assert record["history"] == expected["history"] and record["wall_seconds"] > 0
    for name, value in kept.state_dict().items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("other", [{"stage": "decoder"}, {"seed": 1}])
def test_without_a_run_the_draws_depend_on_stage_and_seed(other):
    run = start(num_steps=3)
    weights, _ = trained_without_a_run(run)
    assert not torch.equal(weights["linear.weight"],
                           trained_without_a_run(run, **other)[0]["linear.weight"])


def test_without_a_run_a_time_limit_stops_and_promises_nothing(root):
    free = Unkept("encoder", deadline=time.monotonic())
    with pytest.raises(runs.TimeLimitReached, match=r"^encoder stopped at step 1 of 23$"):
        training.train(Line(), batches, start().cfg, free)
    assert files(root) == []


def test_without_a_run_a_loss_that_is_not_finite_is_refused_in_one_line(root):
    message = refusal(training.train, Line(), broken_from(4), start().cfg, Unkept("encoder"))
    assert "encoder: the loss or a weight is not finite at or before step 5" in message
    steep = refusal(training.train, Steep(), batches, start(num_steps=1).cfg, Unkept("encoder"))
    assert "weight is not finite" in steep
    assert files(root) == []


# ---- tracking


def tracked_records(path):
    """The records of an offline wandb run: LevelDB's log format after seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, header = 32768, struct.Struct("<IHB")
    content, position, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while position + header.size <= len(content):
        left = block - position % block
        if left < header.size:
            position += left
            continue
        _, length, kind = header.unpack_from(content, position)
        position += header.size
        parts += content[position : position + length]
        position += length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def tracked_history(path):
    """[{metric: JSON}] of an offline run."""
    return [
        {(item.key or ".".join(item.nested_key)): item.value_json for item in record.history.item}
        for record in tracked_records(path)
        if record.HasField("history")
    ]


@pytest.fixture
def tracked(root, monkeypatch):
    """(record, file) of a short run tracked with the default settings, a secret around it."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", SECRET[:20] * 2)
    monkeypatch.setenv("HD_TEST_SECRET", SECRET)
    record = train(Line(), batches, start(num_steps=7))
    return record, next(root.rglob("run-*.wandb"))


def test_runs_are_tracked_offline_by_default_and_every_metric_can_be_read_back(tracked):
    record, path = tracked
    assert path.parent.name.startswith("offline-run-")
    read = [
        {key: float(value) for key, value in entry.items() if key in ("step", "loss", "size")}
        for entry in tracked_history(path)
    ]
    assert len(read) == 7
    for entry, expected in zip(read, record["history"]):
        assert entry == pytest.approx(expected)


def test_tracking_keeps_the_config_but_no_secret_no_host_and_no_place(tracked, root):
    import platform

    content = tracked[1].read_bytes()
    assert b"num_steps" in content and b"smoke-base" in content
    private = [SECRET[:20], str(root), str(Path.home()), str(storage.ROOT)]
    if len(platform.node()) > 6:  # a shorter name may occur by chance
        private.append(platform.node())
    assert not [word for word in private if word.encode() in content]
    for written in (root / "smoke" / "wandb").rglob("*"):
        if written.is_file():
            assert SECRET[:20].encode() not in written.read_bytes(), written.name


@pytest.mark.parametrize("when", ["init", "finish"])
def test_a_full_disk_under_the_tracker_is_one_line(when, root, monkeypatch):
    import logging

    import wandb

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb if when == "init" else wandb.Run, when, full)
    loud = logging.raiseExceptions
    with pytest.raises(InputError) as refused:
        train(Line(), batches, start(num_steps=3))
    assert str(refused.value).startswith(
        "cannot write $HD_ARTIFACTS/smoke/wandb: No space left on device; free space")
    assert logging.raiseExceptions == loud
    monkeypatch.undo()
    if wandb.run is not None:
        wandb.run.finish()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken")])
def test_a_run_that_breaks_off_is_closed_for_tracking_too(error, root, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(type(error)):
        train(Line(), interrupting(3, error), start())
    assert wandb.run is None  # else the next stage would be tracked under this one's name
    assert capsys.readouterr().err == ""


def test_without_wandb_training_goes_on_untracked_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    run = runs.start("tokenizer", profile="smoke")
    with training.tracker_for(run, run.cfg) as tracker:
        tracker.log({"loss": 1.0}, step=3)
    assert capsys.readouterr().out == (
        "tokenizer is not tracked: the package wandb is not installed\n")
    assert not (tmp_path / "smoke" / "wandb").exists()


def test_a_feed_gives_every_batch_in_order_and_makes_no_more_ahead_than_asked():
    asked = []

    def batches(i):
        asked.append(i)
        return i

    with ThreadPoolExecutor(1) as loader:
        feed = training.Feed(batches, loader, 3, 9, ahead=2)
        given = [feed.next() for _ in range(2)]
        loader.submit(lambda: None).result()  # all that was asked for until now is made
        assert asked == [3, 4, 5, 6]
        given += [feed.next() for _ in range(4)]
    assert given == asked == [3, 4, 5, 6, 7, 8]
