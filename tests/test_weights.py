"""Published weights: small, enough to use, of the right configuration, never from a dirty tree."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hd import config, stages
from hd.config import InputError
from hd.encoder import AtariEncoder
from hd.report import tables
from hd.run import machine, runs, weights


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A finished smoke encoder from a clean tree, and a repository's root to publish in."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(machine, "git_state", lambda: {"commit": "a" * 40, "dirty": False})
    run = runs.start("encoder", profile="smoke")
    model = AtariEncoder(run.cfg)
    runs.save_model(run, model, wall_seconds=3.0)
    return run, model, tmp_path / "repository"


def test_restored_weights_are_the_published_ones_in_half_precision(made):
    run, model, root = made
    weights.publish(run, root=root)
    shutil.rmtree(run.folder)
    assert weights.restore(run, root=root) == ["encoder"]
    restored = runs.load_model(run, AtariEncoder(run.cfg))
    for name, tensor in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor.half().float()), name
    record = runs.finished(run)
    assert record["precision"] == "float16" and record["made_by"]["commit"] == "a" * 40


def test_what_only_training_reads_stays_behind_and_the_rest_embeds_the_same(made):
    _, _, root = made
    run = runs.start("encoder", profile="smoke", variant="hi-dreamer")
    model = AtariEncoder(run.cfg).eval()
    assert any(name.startswith("predictors.") for name in model.state_dict())
    runs.save_model(run, model, wall_seconds=3.0)
    shards = [load_file(path) for path in weights.publish(run, root=root)
              if path.suffix == ".safetensors"]
    assert not any(name.startswith("predictors.") for shard in shards for name in shard)
    shutil.rmtree(run.folder)
    weights.restore(run, root=root)
    restored = runs.load_model(run, AtariEncoder(run.cfg))
    frames = torch.randint(0, 256, (2, 4, 84, 84), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # half precision keeps 11 bits of a weight
        torch.testing.assert_close(restored(frames.to(torch.uint8)), model(frames.to(torch.uint8)),
                                   atol=2e-3, rtol=0)


def test_weights_that_lack_more_than_training_needs_are_refused(made):
    run, model, _ = made
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()
               if not name.startswith("head.2.")}
    save_file(tensors, run.folder / runs.MODEL)
    runs.finish(run, [run.folder / runs.MODEL], wall_seconds=1.0, left_out=["predictors."])
    with pytest.raises(InputError, match="does not fit the encoder"):
        runs.load_model(run, AtariEncoder(run.cfg))


def test_a_byte_a_weight_errs_by_half_a_step_of_its_row_and_keeps_a_row_of_zeros():
    matrix = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    matrix *= torch.tensor([1e-3, 0.1, 0.0, 1.0, 10.0])[:, None]
    packed = weights._packed("decoder", {"start.weight": matrix, "start.bias": matrix[:, 0]})
    assert packed["start.weight"].dtype == torch.int8
    restored = weights._unpacked(packed)
    assert restored.keys() == {"start.weight", "start.bias"}
    step = matrix.abs().amax(1, keepdim=True) / 127
    # A little more than half: the division and the product round too.
    assert ((restored["start.weight"] - matrix).abs() <= 0.501 * step).all()
    assert (restored["start.weight"][2] == 0).all()


PUBLISHED = sorted((weights.ROOT / "results").glob("*/checkpoints/*/*.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "-".join(path.parts[-4::2]))
def test_what_is_published_is_restored_and_loads_ready_for_use(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    record = json.loads(path.read_text(encoding="utf-8"))
    run = runs.start(record["stage"], profile=record["profile"], variant=record["variant"],
                     seed=record["seed"], games=record["games"])
    assert record["stage"] in weights.restore(run)
    made = stages.load(run)
    assert not made.training and all(part.isfinite().all() for part in made.parameters())


def test_the_best_agent_of_each_game_is_published():
    profiles = {game: profile for game, (profile, _) in tables.agents_of(
        weights.ROOT / "results").items()}
    assert {*profiles} == {*config.GAMES}
    for game, profile in profiles.items():
        assert weights.folder_of(runs.start("agent", profile=profile, games=[game])) / (
            "agent.json") in PUBLISHED


def test_a_finished_stage_is_left_alone(made):
    run, _, root = made
    weights.publish(run, root=root)
    before = (run.folder / "model.safetensors").read_bytes()
    assert weights.restore(run, root=root) == []
    assert (run.folder / "model.safetensors").read_bytes() == before


def test_shards_are_small_and_together_everything(made, monkeypatch):
    run, model, root = made
    monkeypatch.setattr(weights, "SHARD_BYTES", 2_000_000)
    files = [path for path in weights.publish(run, root=root) if path.suffix == ".safetensors"]
    largest = max(tensor.numel() * 2 for tensor in model.state_dict().values())
    assert len(files) > 1
    assert all(path.stat().st_size < max(2_000_000, largest) + 4096 for path in files)
    shutil.rmtree(run.folder)
    weights.restore(run, root=root)
    runs.load_model(run, AtariEncoder(run.cfg))


def test_stored_weights_restore_elsewhere_and_say_that_their_tree_was_not_clean(made, monkeypatch):
    run, model, root = made
    monkeypatch.setattr(machine, "git_state", lambda: {"commit": None, "dirty": None})
    runs.save_model(run, model, wall_seconds=3.0)
    with pytest.raises(InputError, match="not made from a clean commit"):
        weights.publish(run, root=root)
    stored = weights.store(run, root=root)
    assert sorted(path.name for path in stored) == ["encoder-0.safetensors", "encoder.json"]
    shutil.rmtree(run.folder)
    assert weights.restore(run, root=root) == ["encoder"]
    assert runs.finished(run)["made_by"] == {"commit": None, "dirty": None}


def test_weights_of_another_configuration_are_refused_by_name_and_hash(made):
    run, _, root = made
    weights.publish(run, root=root)
    other = runs.start("encoder", profile="smoke", seed=1)
    with pytest.raises(InputError, match="encoder are of another configuration") as caught:
        weights.restore(other, root=root)
    assert run.identity[:10] in str(caught.value) and other.identity[:10] in str(caught.value)
    assert not (other.folder / "finished.json").exists()


def test_a_damaged_shard_is_named_and_nothing_is_restored(made):
    run, _, root = made
    shard = next(path for path in weights.publish(run, root=root)
                 if path.suffix == ".safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    shutil.rmtree(run.folder)
    with pytest.raises(InputError, match=r"encoder-0\.safetensors is damaged"):
        weights.restore(run, root=root)
    assert not (run.folder / "finished.json").exists()


def test_weights_from_a_dirty_tree_are_never_published(made, monkeypatch):
    run, model, root = made
    monkeypatch.setattr(machine, "git_state", lambda: {"commit": "a" * 40, "dirty": True})
    runs.save_model(run, model, wall_seconds=3.0)
    with pytest.raises(InputError, match="clean commit"):
        weights.publish(run, root=root)
    assert not root.exists()


def test_the_whole_tree_has_a_limit(made, monkeypatch):
    run, _, root = made
    monkeypatch.setattr(weights, "TREE_BYTES", 1000)
    with pytest.raises(InputError, match="1,000 bytes in all"):
        weights.publish(run, root=root)


def test_publishing_again_replaces_the_older_set(made):
    run, _, root = made
    weights.publish(run, root=root)
    stray = weights.folder_of(run, root) / "policy-0.safetensors"
    stray.write_bytes(b"older")
    weights.publish(run, root=root)
    assert not stray.exists()
    assert json.loads((weights.folder_of(run, root) / "encoder.json").read_text())["seed"] == 0


def test_what_is_not_published_is_said_in_one_line(made):
    run, _, root = made
    with pytest.raises(InputError, match="no weights are published for profile smoke") as caught:
        weights.restore(run, root=root)
    assert len(str(caught.value).splitlines()) == 1
