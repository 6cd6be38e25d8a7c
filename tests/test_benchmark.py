"""hd.bench.benchmark and its parts: fair opponents, counted operations, ratios beside bars."""

import dataclasses
import functools
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import refusal, write_benchmark
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hd.bench import (
    benchmark,
    emulators,
    flops,
    gpu,
    opponents,
    sharing,
    sizes,
    steps,
    synthetic,
    timed_stages,
    timing,
)
from hd.bench.timing import Comparison
from hd.config import PROFILES, EncoderConfig, InputError, WorldModelConfig
from hd.encoder import AtariEncoder
from hd.imagination import imagine
from hd.replay import Replay
from hd.report import benchmarks, figures, findings
from hd.run import training
from hd.run.machine import device
from hd.world_model import WorldModel, hierarchical_mask

SMALL = WorldModelConfig(num_layers=2, dim=24, num_heads=3, ffn_dim=40, max_steps=7, num_codes=11,
                         dropout=0.0, attention_dropout=0.0)


def comparison(ours, theirs, **settings):
    return Comparison("a stage", "images/s", iter(ours).__next__, iter(theirs).__next__, "theirs",
                **settings)


# ---- timing

def test_a_ratio_is_the_median_of_pairs_that_follow_each_other_without_the_warm_up():
    found = timing.measure(comparison([99, 2, 30, 8], [1, 1, 10, 2], bar=">= 3"), pairs=3)
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (3, 2, 4)
    assert (found["ours"], found["theirs"], found["pairs"], found["met"]) == (8, 2, 3, True)


def test_long_work_takes_fewer_pairs_and_no_warm_up_when_it_says_so():
    found = timing.measure(comparison([6, 8], [2, 2], max_pairs=2, warm_up=False), pairs=5)
    assert (found["ratio"], found["pairs"], found["met"]) == (3.5, 2, None)


@pytest.mark.parametrize(("ratio", "bar", "met"), [
    (3.0, ">= 3", True), (2.99, ">= 3", False), (0.1, "<= 0.1", True), (0.11, "<= 0.1", False),
    (0.5, "", None)])
def test_a_bar_is_met_on_its_own_side_only(ratio, bar, met):
    assert timing.is_met(ratio, bar) is met


def slow_part():
    return sum(i * i for i in range(30_000))


def test_the_profile_names_the_parts_that_take_the_time():
    rows = timing.where_time_goes(comparison([], [], profiled=slow_part))
    assert any(row["part"].startswith("test_benchmark.") for row in rows[:2])
    assert rows == sorted(rows, key=lambda row: -row["share"]) and rows[0]["share"] <= 1
    rows = torch.randn(200, 200)
    product = Comparison("a", "images/s", lambda: rows @ rows, None, "b")
    assert "aten::mm" in {row["part"] for row in timing.where_time_goes(product)}
    assert timing.where_time_goes(Comparison("a", "MB", None, None, "b")) == []
    assert timing.where_time_goes(Comparison("a", "ms/step", None, None, "b", elsewhere=True)) == []


# ---- opponents do the same work

def test_the_bare_emulator_goes_through_the_very_frames_of_the_collected_episode():
    player = emulators.Player(30)
    played = player.collect()
    player.emulate()
    assert len(player.actions) == 30 and len(set(player.actions)) > 3
    assert np.array_equal(player.bare.getRAM(), player.env._ale.getRAM())
    assert not np.array_equal(player.bare.getRAM(), played["ram"][0])


def test_the_plain_encoder_has_the_same_loss_from_the_same_weights():
    cfg = EncoderConfig()
    ours, plain = AtariEncoder(cfg), opponents.PlainEncoder(cfg)
    plain.load_state_dict(ours.state_dict())
    stacks = torch.randint(256, (6, 4, 84, 84), dtype=torch.uint8)
    data = opponents.Triples(stacks)
    batch = opponents.triples_to_batch([data[row] for row in (0, 3, 4)])
    assert torch.equal(batch["frames"][batch["anchor"]], stacks[[0, 3, 4]])
    assert torch.equal(batch["frames"][batch["positive"]], stacks[[1, 4, 5]])
    assert plain.loss(batch).total.item() == pytest.approx(ours.loss(batch).total.item(), rel=1e-4)
    assert plain.convolutions[0].weight.is_contiguous()


def same_weights(model):
    """A PlainWorldModel with the weights of a WorldModel."""
    plain = opponents.PlainWorldModel(model.cfg)
    names = {"attention_in.weight": "attention.in_proj_weight",
             "attention_in.bias": "attention.in_proj_bias", "attention_out": "attention.out_proj",
             "ffn_in": "ffn.0", "ffn_out": "ffn.3"}
    weights = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        weights[key] = value
    plain.load_state_dict(weights)
    return plain


def test_the_plain_world_model_predicts_the_same_from_the_same_weights():
    model = WorldModel(SMALL)
    tokens, actions = torch.randint(11, (2, 5, 3)), torch.randint(18, (2, 5))
    batch = {"tokens": tokens, "actions": actions, "rewards": torch.randn(2, 5),
             "continues": torch.ones(2, 5)}
    ours, theirs = (one.loss(batch) for one in (model, same_weights(model)))
    assert list(theirs.parts) == list(ours.parts)
    assert theirs.total.item() == pytest.approx(ours.total.item(), rel=1e-5)


def test_full_forward_passes_dream_the_codes_that_the_cache_dreams():
    model = WorldModel(SMALL, torch.randn(3, 11, 5)).eval()
    with torch.no_grad():  # large weights: the likeliest code then depends on all of the past
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    tokens, actions = torch.randint(11, (4, 3, 3)), torch.randint(18, (4, 3))
    dream = imagine(model, tokens, actions[:, :2], lambda *_: actions[:, 2], horizon=1,
                    generator=torch.Generator(), greedy=True)
    codes, acted = [], torch.cat([actions, actions[:, -1:]], 1)
    for level in range(3):  # codes that are not known yet, and the next action, must not matter
        known = torch.stack([*codes, *[torch.zeros_like(actions[:, 0])] * (3 - level)], -1)
        longer = torch.cat([tokens, known[:, None]], 1)
        seen = (longer, acted) if level else (tokens, actions)
        codes.append(opponents.next_code(model, *seen, level).argmax(-1))
    assert torch.equal(torch.stack(codes, -1), dream.tokens[:, 1])


def test_dreams_by_the_usual_means_are_the_dreams_of_the_cache():
    cfg = dataclasses.replace(PROFILES["smoke"].policy, context=3, horizon=4)
    profile = dataclasses.replace(PROFILES["smoke"], world_model=SMALL, policy=cfg)
    model = steps.network("policy", profile)
    with torch.no_grad():  # so sure of every code and action that sampling has no choice
        for weight in model.dream_in.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
        for head in (*model.dream_in.code_heads, model.actor.layers[-1]):
            head.weight.mul_(1e4)
    model.actor.uniform_mix = 0.0
    tokens, actions = torch.randint(11, (5, 3, 3)), torch.randint(18, (5, 2))
    ours, plain = model.dream(tokens, actions), opponents.dream(model, tokens, actions)
    assert len(ours.tokens.unique()) > 5
    for name in ("tokens", "actions"):
        assert torch.equal(getattr(plain, name), getattr(ours, name))
    for name in ("features", "rewards", "continues"):  # attention rounds in another order
        assert torch.allclose(getattr(plain, name), getattr(ours, name), atol=1e-4)


def test_a_loader_gives_as_many_batches_as_asked_each_time():
    columns = {"tokens": torch.arange(20)[:, None].expand(20, 3), "rewards": torch.arange(20.0)}
    feed = opponents.LoaderFeed(opponents.StepWindows(columns, 4), batch_size=5, count=2)
    for _ in range(2):
        feed.start()
        batches = [feed.next(), feed.next()]
        with pytest.raises(StopIteration):
            feed.next()
        assert {name: tuple(part.shape) for name, part in batches[1].items()} == {
            "tokens": (5, 4, 3), "rewards": (5, 4)}
        assert (batches[0]["rewards"].diff(dim=1) == 1).all()


# ---- counted operations

def counted(work, without_attention=False):
    """What torch counts, attention as plain products over all pairs."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    by_kind = counter.get_flop_counts()["Global"]
    return sum(count for kind, count in by_kind.items()
               if not (without_attention and "bmm" in str(kind)))


def test_operations_of_the_encoder_are_those_that_torch_counts():
    model = AtariEncoder(EncoderConfig())
    frames = torch.zeros(3, 4, 84, 84, dtype=torch.uint8)
    assert flops.encoder_training(model, 3) == counted(lambda: model(frames).sum().backward())


@pytest.mark.parametrize("detached", [True, False])
def test_operations_of_the_world_model_are_those_that_torch_counts(detached):
    model = WorldModel(WorldModelConfig(**{**vars(SMALL), "detach_heads": detached}))
    model.mask.fill_(True)  # torch counts what a mask forbids, too
    batch = {"tokens": torch.randint(11, (2, 5, 3)), "actions": torch.randint(18, (2, 5)),
             "rewards": torch.zeros(2, 5), "continues": torch.ones(2, 5)}
    assert flops.world_model_training(model, 2, 5) == counted(
        lambda: model.loss(batch).total.backward())


def test_a_mask_that_allows_fewer_pairs_costs_fewer_operations():
    model = WorldModel(SMALL)
    allowed = int(model.mask[:20, :20].sum())
    full = flops.world_model_forward(model, 2, 5)
    model.mask.fill_(True)
    saved = flops.world_model_forward(model, 2, 5) - full
    assert saved == 2 * SMALL.num_layers * (400 - allowed) * 4 * SMALL.dim > 0


def test_operations_of_a_dream_are_those_that_torch_counts():
    model = WorldModel(SMALL, torch.randn(3, 11, 5)).eval()
    model.mask.fill_(False)  # attention apart: with a cache it reads what the mask allows
    tokens, actions = torch.randint(11, (2, 3, 3)), torch.randint(18, (2, 2))
    assert flops.imagination(model, 2, 3, 4) == counted(
        lambda: imagine(model, tokens, actions, timed_stages._stand_still, horizon=4,
                        generator=torch.Generator()), without_attention=True)


# ---- stored steps and embeddings that are made up

def test_made_up_steps_are_stored_as_collected_ones_and_take_no_space(tmp_path):
    data = Replay.open(synthetic.write_steps(tmp_path, "pong", 2000), ("pong",), val_share=0.0,
                       seed=0)
    assert len(data) == 2000 and data.episode_ids.max() == 2
    assert data.stack(np.array([5, 1999])).shape == (2, 4, 84, 84)
    frames = (tmp_path / "frames-pong.npy").stat()
    assert frames.st_size > 2000 * 84 * 84
    if hasattr(frames, "st_blocks"):
        assert frames.st_blocks * 512 < 1e6


def test_made_up_embeddings_are_unit_vectors_in_clusters():
    rows = synthetic.clustered_rows(300)
    assert torch.allclose(rows.norm(dim=1), torch.ones(300), atol=1e-5)
    cosines = rows @ rows.T - 2 * torch.eye(300)
    assert (cosines.max(1).values > 0.5).float().mean() > 0.3
    assert cosines.median().abs() < 0.1


# ---- beside a busy process

def test_the_small_transformer_reads_32_windows_of_64_tokens_in_4_layers_of_128():
    cfg = sharing.small_transformer().world_model
    read = synthetic.batches(sharing.small_transformer())["world_model"]["tokens"]
    assert (cfg.num_layers, cfg.dim, cfg.accumulate) == (4, 128, 1)
    assert read.shape == (32, 16, 3)  # the action is the fourth token of a step


def test_only_the_process_with_torchs_own_threads_starts_without_settings(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    started = []

    class Started(sharing.Steps):
        def __init__(self, program, environment):
            started.append((program.split(";")[0], environment))

        def close(self):
            pass
    monkeypatch.setattr(sharing, "Steps", Started)
    beside, alone = sharing.beside_a_busy_process(sizes.sizes_for("cpu"))
    assert (beside.bar, alone.bar) == ("<= 2.5", "<= 1.1")
    (ours, mine), (torchs, untouched) = started
    assert ours.startswith("from hd.") and torchs == "import torch"
    assert mine.items() - untouched.items() == {("OMP_WAIT_POLICY", "PASSIVE"),
                                                ("GOMP_SPINCOUNT", "7")} | {
        pair for pair in os.environ.items() if pair[0].startswith(("OMP_", "MKL_", "KMP_"))}


def test_a_process_that_ended_is_named_in_one_line():
    process = sharing.Steps("raise SystemExit(3)", dict(os.environ))
    with pytest.raises(RuntimeError, match="that makes the steps ended with exit code 3"):
        process.milliseconds()
    process.close()


# ---- what a GPU offers

def test_attention_by_blocks_is_attention_under_the_mask(monkeypatch):
    monkeypatch.setattr(gpu, "compiled", lambda function: function)
    parts = torch.randn(3, 2, 3, 160, 16)  # two blocks of 128, the second partly filled
    mask = hierarchical_mask(40, "seed")
    dense, other = (functools.partial(F.scaled_dot_product_attention, attn_mask=allowed)
                    for allowed in (mask, hierarchical_mask(40, "causal")))
    by_blocks = gpu.flexible_attention(mask)
    assert gpu.largest_difference(dense, by_blocks, parts) < gpu.AGREE_WITHIN[torch.float32]
    assert gpu.largest_difference(other, by_blocks, parts) > 0.1


def test_ways_of_attending_that_differ_only_backwards_are_told_apart():
    parts = torch.randn(3, 2, 3, 7, 5).requires_grad_()

    def without_keys(queries, keys, values):
        return F.scaled_dot_product_attention(queries, keys.detach(), values)
    assert gpu.largest_difference(F.scaled_dot_product_attention, without_keys, parts) > 0.1


def test_a_row_that_fails_is_a_line_and_the_rest_goes_on(capsys):
    def sound(sizes):
        yield comparison([4, 4], [2, 2])

    def broken(sizes):
        yield comparison([], [])
        raise RuntimeError("no such\nkernel")
    measured = benchmark._Measured(0.0)
    for one in benchmark._guarded(None, (broken, sound)):
        measured.add(one, 1)
    assert [row["ratio"] for row in measured.rows] == [2]
    failed, left_out, _ = capsys.readouterr().out.splitlines()
    assert failed.endswith("a stage, against theirs, failed: StopIteration")
    assert left_out == "broken is left out: no such kernel"


def test_a_row_of_the_cpu_that_fails_ends_the_benchmark():
    with pytest.raises(StopIteration):
        benchmark._Measured(0.0).add(comparison([], []), 1)


def test_the_gpus_part_is_refused_without_a_gpu_before_any_work(monkeypatch):
    monkeypatch.setenv("HD_DEVICE", "cpu")
    assert refusal(benchmark.main, gpu_only=True) == (
        "the GPU's part of the benchmark needs a GPU: torch sees none")


def test_what_a_gpu_is_for_is_measured_until_the_time_is_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setattr(benchmark, "device_kind", lambda: "gpu")
    monkeypatch.setattr(gpu, "compiled", lambda function: function)
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.01)
    assert benchmark.main(pairs=1, quick=True, gpu_only=True, seconds=600) == 0
    table = benchmarks.load_with_record(tmp_path / "benchmark" / "gpu-quick.csv")[0]
    stages = "\n".join(table["stage"])
    for part in ("a training step of encoder", "a training step of world model", "policy update",
                 "imagination"):
        assert part in stages
    if device().type == "cpu":  # flex_attention has no backward pass there
        assert "flex_attention, failed: FlexAttention does not support backward on CPU" in (
            capsys.readouterr().out)
    assert benchmark.main(pairs=1, quick=True, gpu_only=True, seconds=0) == 0
    assert "the time is over, 1 rows are measured" in capsys.readouterr().out


# ---- all of it

@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A whole quick benchmark with one process; the table's path."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(folder))
        patch.setattr("os.sched_getaffinity", lambda process: {0})
        patch.setattr(timing, "LONG_ENOUGH", 0.01)
        assert benchmark.main(pairs=1, quick=True) == 0
    path, = (folder / "benchmark").glob("*-quick.csv")
    return path


def test_the_benchmark_measures_every_stage_and_leaves_only_its_tables(measured):
    table, profile, record = benchmarks.load_with_record(measured)
    stages = table["stage"].to_list()
    if training.precision(EncoderConfig(), device()) is not None:
        assert stages[0].startswith("matrix product")
    for word in ("collecting", "reading", "encoder training", "share of peak",
                 "world-model training", "attention under the mask", "residual VQ", "error left",
                 "imagination", "policy update", "beside a busy process", "stored steps", "memory",
                 "disk", "a step of encoder", "a step of world model", "a step of policy"):
        assert any(word in stage for stage in stages)
    assert (table[["ours", "theirs", "ratio"]] > 0).all(axis=None)
    beside_peak = {stage for stage in stages if stage.endswith("share of peak")}
    missed = set(table.loc[table["met"] == "False", "stage"])
    assert beside_peak and beside_peak <= set(profile["stage"]) <= beside_peak | missed
    assert record["packages"]["vector-quantize-pytorch"] and record["processes"] == 1
    left = {path.name for path in measured.parent.glob("[!.]*")}
    assert left == {measured.name, f"{measured.stem}.json", f"{measured.stem}-profile.csv"}


def test_a_damaged_benchmark_is_refused(measured, tmp_path):
    for path in measured.parent.glob("[!.]*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = tmp_path / measured.name
    table.write_text(table.read_text().replace("collecting", "Collecting"))
    with pytest.raises(InputError, match="is damaged"):
        benchmarks.load_with_record(table)
    table.unlink()
    with pytest.raises(InputError, match="missing or cannot be read"):
        benchmarks.load_with_record(table)


def test_the_benchmark_says_before_any_work_which_package_it_lacks(monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package vector-quantize-pytorch"):
        benchmark.main(quick=True)


# ---- what the page shows

def test_the_page_shows_ratios_bars_and_where_time_goes(tmp_path, capsys):
    write_benchmark(tmp_path)
    table = benchmarks.published(tmp_path)
    assert capsys.readouterr().out == ("cpu: Test CPU, 2 threads, 2 processes, torch 2.0,\n"
                                       "     commit abc1234, 400 s\n")
    words = benchmarks.in_words(table)
    assert words["bar"].tolist() == [">= 3 ✓", "<= 0.1 ✗", ""]
    assert [text.split(" ", 1)[1] for text in words["ratio [least, most]"]] == [
        "[2, 8], n=5", "[0.125, 0.500], n=5", "[0.750, 3], n=5"]
    assert list(words.index) == table["stage"].tolist()
    benchmarks.not_met(table)
    assert capsys.readouterr().out == ("cpu: reading, against theirs: 0.250, bar <= 0.1\n"
                                       "1 of 2 bars are met.\n")
    assert benchmarks.where_time_goes(table)["share of time"].tolist() == ["62.5%"]
    ax, = figures.benchmark_ratios(benchmarks.nearest(table, 2)).axes
    assert [text.get_text() for text in ax.texts] == [
        "reading, against theirs", "encoder training, against theirs"], "the least room first"


@pytest.mark.parametrize(("count", "stages"), [(1, ["reading"]),
                                               (9, ["reading", "encoder training"])])
def test_the_bars_with_the_least_room_come_first(tmp_path, count, stages):
    write_benchmark(tmp_path)
    table = benchmarks.published(tmp_path)
    assert benchmarks.nearest(table, count)["stage"].tolist() == stages, "and none without a bar"
    sentence = findings.performance(table)
    assert "in brackets: encoder training 4 (theirs). 1 of 2 bars are met by the median on Test " \
           "CPU, and across 2 of them reaches the spread; *reading*, against theirs," in sentence
    assert "0.250 times theirs, where <= 0.1 is the bar" in sentence


def test_a_page_without_a_benchmark_says_so_in_one_line(tmp_path, capsys):
    table = benchmarks.published(tmp_path)
    benchmarks.not_met(table)
    figures.show_benchmark(table)
    assert benchmarks.in_words(table) is benchmarks.where_time_goes(table) is None
    assert capsys.readouterr().out == ("No benchmark is published. To make one: python -m hd bench,"
                                       " then python -m hd publish --benchmark\n")
