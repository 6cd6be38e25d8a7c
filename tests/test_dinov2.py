"""hd.measure.dinov2: a tiny model of DINOv2's kind through the real loader, and what is refused."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hd import encoder
from hd.config import InputError
from hd.measure import dinov2, embeddings
from hd.replay import Replay
from hd.run import runs

LENGTHS = (30, 26, 34, 28)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder as save_pretrained leaves it: one layer, DINOv2-S's width, random weights."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino") / "tiny"
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(
        hidden_size=384, num_hidden_layers=1, num_attention_heads=6, mlp_ratio=1, image_size=56,
        patch_size=14)).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def copy(weights, tmp_path, monkeypatch):
    """A copy of the folder that a test may spoil, named by HD_DINOV2."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for path in weights.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("HD_DINOV2", str(folder))
    return folder


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A Pong of four short episodes with random frames and RAM, as if it had been collected."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    rng, num_rows = np.random.default_rng(0), sum(LENGTHS)
    run = runs.start("encoder", profile="smoke", games=["pong"], overrides={"probes.epochs": 2})
    folder = run.at("frames").folder
    folder.mkdir(parents=True)
    np.save(folder / "frames-pong.npy", rng.integers(0, 256, (num_rows, 84, 84), dtype=np.uint8))
    np.savez(folder / "steps-pong.npz",
             actions=np.zeros(num_rows, np.int8), rewards=np.zeros(num_rows, np.float32),
             continues=np.ones(num_rows, np.float32), lives=np.zeros(num_rows, np.uint8),
             ram=rng.integers(1, 9, (num_rows, 128)).astype(np.uint8),
             source=np.zeros(num_rows, np.int8),
             episode_ids=np.repeat(np.arange(4), LENGTHS).astype(np.int32))  # fmt: skip
    runs.finish(run.at("frames"), [], wall_seconds=0.0)
    return run, Replay.open(folder, ("pong",), val_share=0.25, seed=0)


def refused(match, call):
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


# ---- the model


def test_an_embedding_is_the_unit_cls_token_of_the_newest_frame(weights):
    frames = np.random.default_rng(0).integers(0, 256, (5, 84, 84), dtype=np.uint8)
    model = dinov2.load(weights)
    found = dinov2.embed(model, SimpleNamespace(newest=lambda rows: frames[rows]), np.arange(5))
    assert found.shape == (5, 384) and found.dtype == np.float32
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    with torch.no_grad():
        tokens = model(pixel_values=dinov2.prepared(frames[3:4])).last_hidden_state
    assert tokens.shape == (1, 1 + 16 * 16, 384)
    expected = (tokens[0, 0] / tokens[0, 0].norm()).numpy()
    np.testing.assert_allclose(found[3], expected, atol=1e-5)
    assert np.abs(found[3] - found[2]).max() > 1e-3


def test_dinov2_refuses_frames_of_another_kind():
    with pytest.raises(InputError, match=r"\(N, 84, 84\); got uint8 of shape \(3, 4, 84, 84\)"):
        dinov2.prepared(np.zeros((3, 4, 84, 84), np.uint8))


def test_frames_are_prepared_as_dinov2_was_trained():
    frames = np.stack([np.full((84, 84), 51), np.full((84, 84), 255)]).astype(np.uint8)
    frames[1, :, :42] = 0
    found = dinov2.prepared(frames)
    assert found.shape == (2, 3, 224, 224) and found.dtype == torch.float32
    for channel, (mean, deviation) in enumerate(
        [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]
    ):
        grey = torch.full((224, 224), (0.2 - mean) / deviation)
        torch.testing.assert_close(found[0, channel], grey)
        # The whole frame is seen, and what bicubic overshoots at an edge is clamped.
        assert found[1, channel].min().item() == pytest.approx((0 - mean) / deviation)
        assert found[1, channel].max().item() == pytest.approx((1 - mean) / deviation)
        assert (found[1, channel, :, :110] < 0).all() and (found[1, channel, :, 114:] > 0).all()


# ---- what is refused


def test_without_the_variable_one_row_says_that_there_are_no_weights(monkeypatch):
    monkeypatch.delenv("HD_DINOV2", raising=False)
    run = runs.start("encoder", profile="smoke")
    (entry,) = dinov2.rows_of(None, None, None, frames=run, cfg=run.profile.probes)
    assert (entry["metric"], entry["value"]) == ("dinov2_weights", 0)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named_in_one_line(copy, name):
    assert dinov2.folder() == copy
    (copy / name).unlink()
    refused(f"config.json and model.safetensors; in spoilt there is no {name}$", dinov2.folder)


def test_pickled_weights_are_never_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refused("no model.safetensors; a pytorch_model.bin is never unpickled", dinov2.folder)


@pytest.mark.parametrize("changes", [{"hidden_size": 768}, {"model_type": "vit"}])
def test_another_model_is_refused_in_one_line(copy, changes):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (name, value), = changes.items()  # fmt: skip
    refused(f"hidden_size 384, patch_size 14; got .*{name} {value}", dinov2.folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config_is_refused_in_one_line(copy, text):
    (copy / "config.json").write_text(text)
    refused("cannot be read as JSON", dinov2.folder)


def test_damaged_weights_are_refused_in_one_line(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    refused("the weights in spoilt cannot be loaded", lambda: dinov2.load(copy))


def test_weights_of_another_size_or_without_a_tensor_are_refused_in_one_line(copy):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    cls = tensors.pop("embeddings.cls_token")
    save_file(tensors, path, metadata={"format": "pt"})
    refused("lacks 1 tensors, the first is embeddings.cls_token", lambda: dinov2.load(copy))
    save_file({**tensors, "embeddings.cls_token": cls[..., :7].clone()}, path,
              metadata={"format": "pt"})  # fmt: skip
    refused("cannot be loaded", lambda: dinov2.load(copy))


def test_a_missing_library_is_named_with_the_command_that_installs_it(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(r"pip install -e '\.\[dinov2\]'", lambda: dinov2.load(weights))


# ---- rows


def test_rows_are_embedded_once_and_kept_for_these_weights_and_frames(copy, stored):
    run, _ = stored
    asked = []

    def embed(rows):
        asked.append(rows.tolist())
        return np.repeat(rows[:, None], 384, 1).astype(np.float32)

    memory = dinov2.Memory(run, copy, embed)
    assert memory(np.array([9, 4, 9]))[:, 0].tolist() == [9, 4, 9]
    assert memory(np.array([4, 30, 9]))[:, 5].tolist() == [4, 30, 9]
    assert asked == [[4, 9], [30]]
    assert dinov2.Memory(run, copy, embed)(np.array([30, 4]))[:, 0].tolist() == [30, 4]
    assert len(asked) == 2
    with open(memory.path, "r+b") as handle:  # damaged: made again
        handle.seek(-3, 2)
        handle.write(b"xyz")
    dinov2.Memory(run, copy, embed)(np.array([30, 4]))
    assert asked[2:] == [[4, 30]]
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert dinov2.Memory(run, copy, embed).path != memory.path


def test_the_table_has_every_measure_beside_the_encoders_on_the_same_rows(
    copy, stored, monkeypatch
):
    run, data = stored
    views = dict(zip(("dino", "learned", "fresh"), np.random.default_rng(0).normal(
        size=(3, len(data), 384)).astype(np.float32)))  # fmt: skip
    monkeypatch.setattr(dinov2, "embed", lambda model, data, rows: views["dino"][rows])
    monkeypatch.setattr(encoder, "embed", lambda fresh, data, rows: fresh[rows])
    given = {"frames": run.at("frames"), "cfg": run.profile.probes}
    table = dinov2.rows_of(data, views["learned"], views["fresh"], **given)
    by_name = {(entry["metric"], entry["game"]): entry for entry in table}
    assert len(by_name) == len(table) and by_name["dinov2_weights", "all"]["value"] == 1
    for name in ("dinov2", "thinned"):
        for metric in ("temporal_consistency", "diversity", "f1_overall", "r2_ball_x",
                       "state_correlation", "seed_temporal_consistency", "seed_diversity",
                       "seed_state_correlation", "seed_pair_correlation"):  # fmt: skip
            assert by_name[f"{metric}[{name}]", "pong"]["baseline"] is not None, metric
    # Each side is judged by its own features: the untrained encoder's are the baselines.
    for entry in dinov2.rows_of(data, views["fresh"], views["fresh"], **given):
        if entry["metric"].endswith("[thinned]"):
            assert entry["value"] == pytest.approx(entry["baseline"]), entry["metric"]
        elif entry["metric"] != "dinov2_weights":
            assert entry["value"] == by_name[entry["metric"], entry["game"]]["value"]


def test_dinov2_sees_few_rows(copy, stored, monkeypatch):
    run, data = stored
    monkeypatch.setattr(dinov2, "PROBE_ROWS", 60)
    monkeypatch.setattr(dinov2, "GEOMETRY_ROWS", 20)
    monkeypatch.setattr(dinov2, "SEED_SAMPLE", {"max_pairs": 1, "num_random": 8})
    seen, features = [], np.random.default_rng(0).normal(size=(len(data), 384)).astype(np.float32)
    monkeypatch.setattr(dinov2, "embed",
                        lambda model, data, rows: seen.append(rows) or features[rows])  # fmt: skip
    monkeypatch.setattr(encoder, "embed", lambda fresh, data, rows: fresh[rows])
    dinov2.rows_of(data, features, features, frames=run.at("frames"), cfg=run.profile.probes)
    seen = np.concatenate(seen)
    assert len(np.unique(seen)) == len(seen) < 60 + embeddings.STRETCH + 2 * (2 + 8)
