"""Files from strangers cannot run code, and nothing that is written tells a secret or a place.

Strangers can make checksums fit: here every damaged record is signed again.
"""

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny import refusal

from hd import stages
from hd.book import notebooks
from hd.run import runs, storage

NOTEBOOKS = sorted(path for folder in ("pipeline", "report")
                   for path in (notebooks.BOOK / folder).glob("*.ipynb"))
SOURCES = [*sorted((storage.ROOT / "hd").rglob("*.py")), *NOTEBOOKS]
# What runs or unpickles whatever a file says, and what fetches something.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code",
                  "urllib", "requests", "httpx", "http", "socket", "ftplib", "huggingface_hub"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("torch", "hub"), ("os", "system"),
                     ("os", "popen"), ("yaml", "load"), ("yaml", "unsafe_load"),
                     ("pd", "read_pickle"), ("pd", "eval")}
SECRET = "sk-c0ffee5ecretThatMustNotLeak"
TINY = {"frames.num_steps": 200, "frames.min_episodes": 4, "frames.val_share": 0.25,
        "frames.test_share": 0.25,
        "encoder.num_steps": 2, "encoder.batch_size": 8, "probes.max_rows": 300,
        "probes.epochs": 2}  # fmt: skip


def tree_of(path):
    if path.suffix == ".py":
        return ast.parse(path.read_text(encoding="utf-8"))
    cells = nbformat.read(path, 4).cells
    return ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))


def unsafe_in(tree):
    """What in a module could run or fetch something it did not write itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] in UNSAFE_MODULES)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            pair = node.value.id, node.attr
            yield from (".".join(pair) for _ in range(pair in UNSAFE_ATTRIBUTES))
        if isinstance(node, ast.Call):
            yield from _unsafe_call(node)


def _unsafe_call(node):
    name = ast.unparse(node.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in UNSAFE_CALLS:
        yield f"{name}()"
    reads_arrays = name in ("np.load", "numpy.load", "np.save", "np.lib.format.read_array")
    if reads_arrays and given.get("allow_pickle") != "False":
        yield f"{name} without allow_pickle=False"
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        yield f"{name} with allow_pickle or shell"
    if name.endswith("from_pretrained") and (given.get("use_safetensors"),
                                             given.get("local_files_only")) != ("True", "True"):
        yield f"{name} without use_safetensors and local_files_only"
    if "trust_remote_code" in given:
        yield f"{name} with trust_remote_code"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_unpickles_runs_or_fetches_what_a_file_says(path):
    assert sorted(set(unsafe_in(tree_of(path)))) == []


@pytest.mark.parametrize("source", [
    "np.load(path)", "np.load(path, allow_pickle=True)", "import pickle", "from pickle import load",
    "torch.load(path, weights_only=True)", "eval(text)", "subprocess.run(text, shell=True)",
    "from urllib.request import urlopen", "Model.from_pretrained(place)", "yaml.load(text)"])
def test_that_check_sees_what_it_must(source):
    assert list(unsafe_in(ast.parse(source)))


# ---- artefacts of strangers

class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny encoder and its frames, made once."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(root))
        patch.setenv("WANDB_MODE", "disabled")
        stages.make(start("encoder"))
    return root


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    """A copy of them that a stranger may have changed."""
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shutil.copytree(made, tmp_path / "artifacts")
    return tmp_path


def start(stage):
    return runs.start(stage, profile="smoke", games="breakout", overrides=TINY)


def signed_again(run):
    """Make the stage's record fit its files."""
    record = storage.read_record(run.folder / "finished.json")
    record["files"] = {name: storage.sha256_of(run.folder / name) for name in record["files"]}
    storage.write_record(run.folder / "finished.json", record)


def pickled_array(path, bomb):
    np.save(path, np.array([bomb], object), allow_pickle=True)


def pickled_columns(path, bomb):
    np.savez(path, actions=np.array([bomb], object))


def pickled_weights(path, bomb):
    torch.save({"bomb": bomb}, path)


@pytest.mark.parametrize(("stage", "name", "write"), [
    ("frames", "frames-breakout.npy", pickled_array),
    ("frames", "steps-breakout.npz", pickled_columns),
    ("encoder", "model.safetensors", pickled_weights),
])
def test_a_pickle_in_an_artefacts_place_is_refused_in_one_line_and_never_runs(
        stage, name, write, root):
    run = start(stage)
    write(run.folder / name, Bomb(root / "exploded"))
    signed_again(run)
    assert name in refusal(stages.load, run)
    assert not (root / "exploded").exists()


def test_a_pickle_in_a_derived_arrays_place_is_made_again_and_never_runs(root):
    run = start("encoder")
    whole = np.array(stages.embeddings_of(run))
    path = run.folder / "embeddings.npy"
    pickled_array(path, Bomb(root / "exploded"))
    storage.write_json(path.with_suffix(".json"), {
        "source": storage.sha256_of(run.folder / "finished.json"),
        "sha256": storage.sha256_of(path)})
    assert np.array_equal(stages.embeddings_of(run), whole)
    assert not (root / "exploded").exists()


def test_a_pickle_in_a_checkpoints_place_is_set_aside_and_never_runs(root, capsys):
    run = start("encoder")
    runs.save_checkpoint(run, {"w": torch.ones(2)}, {"step": 1})
    path = run.folder / "checkpoint-00000001.safetensors"
    pickled_weights(path, Bomb(root / "exploded"))
    record = storage.read_record(run.folder / "checkpoint.json")
    storage.write_record(run.folder / "checkpoint.json",
                         {**record, "sha256": storage.sha256_of(path)})
    assert runs.load_checkpoint(run) is None
    assert "checkpoint.json is damaged" in capsys.readouterr().err
    assert not (root / "exploded").exists()


def test_another_models_weights_are_refused_in_one_line(root):
    run = start("encoder")
    save_file({"other": torch.ones(2, 3)}, run.folder / "model.safetensors")
    signed_again(run)
    message = refusal(stages.load, run)
    assert "model.safetensors" in message and "does not fit" in message and run.command in message


def test_a_signed_record_of_another_shape_is_damaged_and_no_crash(root):
    run = start("encoder")
    storage.write_record(run.folder / "finished.json", {"files": ["model.safetensors"]})
    assert "finished.json is damaged" in refusal(runs.finished, run)


# ---- notebooks of strangers

@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "evil", "01_frames.ipynb", "pipeline/x"])
def test_only_notebooks_of_the_repository_are_executed(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    assert "unknown notebook" in refusal(
        lambda: notebooks.execute(name, profile="smoke"))
    assert not list(tmp_path.rglob("*.ipynb"))


@pytest.mark.parametrize("notebook", notebooks.names())
def test_what_is_executed_is_the_repositorys_copy_and_not_the_artefact(notebook, tmp_path,
                                                                       monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    job = notebooks.plan(notebook, profile="smoke")
    assert job.source.is_relative_to(storage.ROOT / "book")
    assert job.target.is_relative_to(tmp_path.resolve())


def test_the_build_of_the_book_is_told_to_execute_nothing():
    settings = yaml.safe_load((notebooks.BOOK / "_config.yml").read_text(encoding="utf-8"))
    assert settings["execute"] == {"execute_notebooks": "off"}


# ---- secrets and places

def private_words(root):
    """What no file may hold: the secret, this machine's folders and its name."""
    words = {SECRET, str(root), str(Path.home()), str(storage.ROOT), sys.prefix, sys.base_prefix}
    if len(platform.node()) > 6:  # a shorter name may occur by chance
        words.add(platform.node())
    return {word.encode() for word in words if len(word) > 1}


def leaks(root):
    """{file: the private words in it}."""
    secret, places, found = {SECRET.encode()}, private_words(root), {}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            # Pictures are long texts in which a short word stands by chance.
            content = re.sub(rb"[A-Za-z0-9+/=]{200,}", b"", content)
            words = secret if path.suffix == ".log" else places  # nobody publishes a log
            if seen := sorted(word.decode() for word in words if word in content):
                found[path.relative_to(root).as_posix()] = seen
    return found


def hd(root, *words):
    done = subprocess.run(
        [sys.executable, "-m", "hd", *words], cwd=storage.ROOT, capture_output=True, text=True,
        timeout=900, env={**os.environ, "HD_ARTIFACTS": str(root), "WANDB_MODE": "offline",
                          "WANDB_API_KEY": SECRET, "HD_TEST_TOKEN": SECRET,
                          "AWS_SECRET_ACCESS_KEY": SECRET})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_no_secret_and_no_place_leaks_into_what_a_notebook_writes(tmp_path):
    hd(tmp_path, "run", "01_frames", "--profile", "smoke", "--games", "breakout")
    assert len(list(tmp_path.rglob("*.ipynb"))) == 1 and len(list(tmp_path.rglob("*.csv"))) == 1
    assert leaks(tmp_path) == {}


def test_warnings_in_a_notebook_name_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    warning = f"{storage.ROOT}/hd/x.py:3: UserWarning\n{sys.prefix}/lib\n{tmp_path}/smoke\n"
    cell = nbformat.v4.new_code_cell("pass", outputs=[
        nbformat.v4.new_output("stream", name="stderr", text=warning),
        nbformat.v4.new_output("execute_result", data={"text/plain": f"'{Path.home()}/x'"})])
    given = f"../../..{tmp_path}/smoke/results"
    parameters = nbformat.v4.new_code_cell(
        f'results_dir = "{given}"', metadata={"tags": ["injected-parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[cell, parameters], metadata={
        "papermill": {"parameters": {"results_dir": given, "seed": 0}}})
    notebooks._without_places(notebook)
    assert parameters.source == 'results_dir = "$HD_ARTIFACTS/smoke/results"'
    assert notebook.metadata.papermill.parameters == {
        "results_dir": "$HD_ARTIFACTS/smoke/results", "seed": 0}
    printed, shown = cell.outputs[0].text, cell.outputs[1].data["text/plain"]
    assert printed.splitlines()[0] == "./hd/x.py:3: UserWarning"
    assert printed.splitlines()[-1] == "$HD_ARTIFACTS/smoke"
    assert not any(word.decode() in printed + shown for word in private_words(tmp_path))


@pytest.mark.long
def test_no_secret_and_no_place_leaks_from_the_chain_into_anything_up_to_the_built_book(tmp_path):
    hd(tmp_path, "report", "--profile", "smoke")
    assert len(list(tmp_path.rglob("*.wandb"))) >= 5 and len(list(tmp_path.rglob("*.html"))) >= 15
    assert leaks(tmp_path) == {}
