"""workflow/gpu: wheels that travel, refusals before any work, and what a campaign leaves."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "workflow" / "gpu"))

import campaign
import wheels

from hd.ablations import ABLATIONS

NO_WHEELS = Path("no-such-folder")


@pytest.fixture
def work(tmp_path):
    """Ten minutes of work, as a machine may be busy, that writes below tmp_path."""
    (tmp_path / "scratch" / "site").mkdir(parents=True)
    (tmp_path / "fresh").mkdir()
    return campaign.Work(time.monotonic() + 600, tmp_path / "fresh", tmp_path / "scratch" / "site",
                         tmp_path / "artifacts")


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises((campaign.Refused, wheels.Refused)) as caught:
        function(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def write_wheel(folder, name, *asked, size=0):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", *(f"Requires-Dist: {one}" for one in asked)]
        lines += ["", "Requires-Dist: of-the-description"]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines))
        archive.writestr("padding", bytes(size))


# ---- wheels

@pytest.fixture
def registry(monkeypatch):
    """Stands for pip: name -> (what it asks for, bytes); returns it with the rounds of pins."""
    registry, rounds = {}, []

    def fetch(folder, python, pins):
        rounds.append(pins)
        for pin in pins:
            asked, size = registry[pin.partition("==")[0]]
            write_wheel(folder, pin.partition("==")[0].replace("-", "_"), *asked, size=size)
    monkeypatch.setattr(wheels, "_fetch", fetch)
    return registry, rounds


def test_wheels_are_what_is_asked_for_on_that_python_less_what_the_machine_has(
        registry, monkeypatch, tmp_path):
    known, rounds = registry
    known |= {"gymnasium": (["farama-notifications>=0.0.1", "numpy>=1.2",
                             "box2d ; extra == 'box2d'",
                             "importlib-metadata ; python_version < '3.10'"], 0),
              "farama-notifications": ([], 0)}
    monkeypatch.setattr(wheels, "needed", lambda python: map(
        wheels.Requirement, ("gymnasium", "torch>=2", "wandb", "numpy")))
    made = wheels.download(tmp_path / "wheels", "3.12", {"numpy"}, 40)
    assert [path.name.partition("-")[0] for path in made] == ["farama_notifications", "gymnasium"]
    assert [[pin.partition("==")[0] for pin in pins] for pins in rounds] == [
        ["gymnasium"], ["farama-notifications"]]


def test_versions_are_those_of_the_lock_for_the_machines_python():
    pins = wheels.locked("3.12")
    assert pins["gymnasium"] and not set("<>=~, ") & set("".join(pins.values()))
    asked = {wheels.canonicalize_name(one.name) for one in wheels.needed("3.12")}
    assert asked - wheels.LEFT_OUT.keys() <= pins.keys()
    assert wheels.LEFT_OUT.keys() <= asked  # nothing is left out that nobody asks for


def test_too_many_megabytes_are_refused_in_one_line_and_nothing_is_left(registry, monkeypatch,
                                                                        tmp_path, capsys):
    known, _ = registry
    known |= {"scipy": ([], 3_000_000), "ale-py": ([], 10)}
    monkeypatch.setattr(wheels, "needed", lambda python: map(
        wheels.Requirement, ("scipy", "ale-py")))
    nothing = tmp_path / "none.txt"
    nothing.write_text("# nothing\n")
    words = ["--to", str(tmp_path / "wheels"), "--brought", str(nothing), "--limit-mb", "2"]
    assert wheels.main(words) == 2
    assert capsys.readouterr().err == (
        "wheels: over 2 MB (scipy 3 MB, ale-py 0 MB): add what the machine has to "
        "on_the_machine.txt\n")
    assert not (tmp_path / "wheels").exists()


def test_a_package_without_a_version_and_a_list_that_is_not_there_are_named(registry, monkeypatch,
                                                                            tmp_path):
    monkeypatch.setattr(wheels, "needed", lambda python: [wheels.Requirement("no-such-package")])
    assert refusal(wheels.download, tmp_path / "wheels", "3.12", (), 40) == (
        "requirements.lock has no version of no-such-package")
    assert refusal(wheels.names_in, tmp_path / "list.txt") == (
        "list.txt cannot be read: No such file or directory")


# ---- refusals before any work

@pytest.mark.parametrize(("words", "says"), [
    (["nope", "--out", "x"], "unknown campaign 'nope'; allowed: smoke, bench, agents, exposures, "
     "desk, audit, agent-arms, agents-1, agents-2, agents-fine, agent-pong, "
     "agent-breakout, agent-ms_pacman"),
    (["smoke", "--seconds", "5", "--out", "x"], "smoke needs at least 60 seconds; got 5"),
    (["smoke", "--seconds", "nan", "--out", "x"], "smoke needs at least 60 seconds; got nan"),
    (["smoke", "--seconds", "soon", "--out", "x"],
     "argument --seconds: invalid float value: 'soon'"),
    (["smoke"], "the following arguments are required: --out"),
    (["smoke", "--out", __file__], "test_gpu_campaign.py is not an empty folder")])
def test_a_campaign_that_cannot_be_is_refused_in_one_line(words, says, capsys):
    assert campaign.main(words) == 2
    assert capsys.readouterr() == ("", f"campaign: {says}\n")


def test_missing_packages_are_named_unless_they_are_among_the_wheels(monkeypatch, tmp_path):
    there = campaign._is_installed
    monkeypatch.setattr(campaign, "_is_installed",
                        lambda name: name not in ("ale-py", "gymnasium", "wandb") and there(name))
    assert refusal(campaign.check, "smoke", 60, tmp_path, NO_WHEELS) == (
        "neither installed nor among the wheels in no-such-folder: ale-py, gymnasium; make the "
        "wheels where there is a network: python workflow/gpu/wheels.py")
    write_wheel(tmp_path / "wheels", "ale_py")
    assert campaign.missing_packages(tmp_path / "wheels") == ["gymnasium"]
    write_wheel(tmp_path / "wheels", "gymnasium")
    assert campaign.check("smoke", 60, tmp_path / "new", tmp_path / "wheels").needs_gpu is False


def test_torch_and_where_it_is_needed_a_gpu_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(campaign, "missing_packages", lambda wheels=None: [])
    monkeypatch.setattr(campaign, "sees_gpu", lambda: False)
    assert refusal(campaign.check, "bench", 240, tmp_path) == "bench needs a GPU; torch sees none"
    monkeypatch.setattr(campaign, "sees_gpu", lambda: True)
    assert campaign.check("bench", 240, tmp_path) is campaign.CAMPAIGNS["bench"]
    monkeypatch.setattr(campaign, "_is_installed", lambda name: False)
    assert refusal(campaign.check, "bench", 240, tmp_path) == (
        "torch is not installed in the Python that runs this")


def test_wheels_are_installed_only_where_a_package_is_missing(work, monkeypatch, tmp_path):
    write_wheel(tmp_path / "wheels", "broken")  # no wheel that pip would take
    monkeypatch.setattr(campaign, "FOLDER", tmp_path / "wheels")
    work.site.rmdir()
    campaign.install(work)
    assert work.exit_code == 0
    work.site.rmdir()
    monkeypatch.setattr(campaign, "missing_packages", lambda wheels=None: ["broken"])
    campaign.install(work)
    assert work.exit_code == campaign.FAILED
    assert "broken" in (work.out / "log.txt").read_text()


# ---- a command of a campaign

def test_what_is_printed_names_no_path_of_the_machine(work, capsys):
    work.python("-c", f"import sys; print({str(work.artifacts)!r} + '/a', {str(campaign.ROOT)!r} + "
                      f"'/hd', {str(work.site)!r}, sys.prefix + '/lib'); print('warned: ' + "
                      f"{str(Path.home())!r} + '/x', file=sys.stderr)")
    printed = capsys.readouterr().out
    assert printed == "$HD_ARTIFACTS/a ./hd scratch/site python/lib\nwarned: ~/x\n"
    assert (work.out / "log.txt").read_text() == printed and work.exit_code == 0


def test_commands_find_the_package_the_wheels_and_the_artefacts(work, capsys):
    (work.site / "carried.py").write_text("print('carried')")
    work.python("-c", "import os, carried, hd.config; print(os.environ['HD_ARTIFACTS'])")
    assert capsys.readouterr().out == "carried\n$HD_ARTIFACTS\n" and work.exit_code == 0


def test_a_failed_command_is_the_last_one(work, capsys):
    work.python("-c", "raise SystemExit(3)")
    work.python("-c", "print('next')")
    assert work.exit_code == campaign.FAILED and capsys.readouterr().out == ""


def test_a_command_that_overruns_its_time_is_stopped_and_none_is_begun_after(work, monkeypatch):
    monkeypatch.setattr(campaign, "ENDING", 0.5)
    work.deadline = time.monotonic() + campaign.PACKING + 0.5
    began = time.monotonic()
    work.python("-c", "import time; time.sleep(60)")
    assert work.exit_code == campaign.OUT_OF_TIME and time.monotonic() - began < 30
    work.exit_code = 0
    work.python("-c", "raise SystemExit(3)")
    assert work.exit_code == campaign.OUT_OF_TIME


# ---- agents

@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("HD_DEVICE", "cpu")
    monkeypatch.setenv("WANDB_MODE", "offline")


def unpacked(work, folder) -> Path:
    """The artefact folder that a campaign's archives of runs make."""
    for name in campaign.pack(work.kept, work.out, room=6)[0]:
        zipfile.ZipFile(work.out / name).extractall(folder)
    return folder


def test_agents_that_learned_side_by_side_are_at_home_as_if_made_there(work, on_cpu, tmp_path,
                                                                      monkeypatch, capsys):
    campaign.agents(work, ("pong", "breakout"), profile="smoke")
    assert work.exit_code == 0, capsys.readouterr().out
    assert sorted(line.partition(":")[0] for line in capsys.readouterr().out.splitlines()
                  if " steps in " in line) == ["base-breakout-seed0", "base-pong-seed0"]
    monkeypatch.setenv("HD_ARTIFACTS", str(unpacked(work, tmp_path / "home")))
    from hd.run import runs
    for game in ("pong", "breakout"):
        run = runs.start("agent", profile="smoke", games=(game,))
        assert runs.finished(run)["history"][-1]["step"] == run.cfg.num_steps


def test_an_agent_that_ran_out_of_time_comes_with_all_that_the_same_command_needs(
        work, on_cpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(campaign, "ENDING", 600)  # so that the loop has a second, and may take more
    campaign.agents(work, ("pong",), profile="smoke")
    said = capsys.readouterr().out
    assert work.exit_code == campaign.OUT_OF_TIME and "with a checkpoint" in said, said
    home = unpacked(work, tmp_path / "home")
    whole = next((work.artifacts / "smoke" / "agent").rglob("checkpoint-*.safetensors"))
    came = home / whole.relative_to(work.artifacts)
    pieces = sorted(came.parent.glob(f"{came.name}.*"), key=lambda path: int(path.suffix[1:]))
    assert len(pieces) > 1
    assert b"".join(piece.read_bytes() for piece in pieces) == whole.read_bytes()
    assert (came.parent / "checkpoint.json").exists()
    assert (came.parent / "blocks" / "000000.npz").exists()


def test_an_ablations_agents_are_measured_there_and_their_tables_kept(work, on_cpu, monkeypatch,
                                                                      capsys):
    arms = ABLATIONS["agent_data"].arms
    assert any("agent.learner" in fields for fields in arms.values())
    for arm in ("prefill", "unmoved"):  # fewer do
        monkeypatch.delitem(arms, arm)
    campaign.arms_of_agents(work, ("agent_data",), profile="smoke", seeds=[1])
    said = capsys.readouterr().out
    assert work.exit_code == 0, said
    tables = {name.rpartition("/")[2] for name in work.kept["tables"] if name.endswith("seed1.csv")}
    assert tables == {"base-pong-seed1.csv", "agent_data.uniform-pong-seed1.csv"}


def test_ablations_are_compared_seed_by_seed_and_their_tables_kept(work, on_cpu, monkeypatch,
                                                                   capsys):
    brief = """for arm in ("episodes", "windows"):
    config.ABLATIONS["exposures_seed"].arms[arm]["world_model.num_steps"] = 20
"""
    monkeypatch.setattr(campaign, "COMPARE", campaign.COMPARE.replace("try:", f"{brief}try:"))
    campaign.comparisons(work, [("smoke", "pong", [0, 1], ("exposures_seed",)),
                                ("smoke", "pong", [0], ("base:frames", "base"))])
    said = capsys.readouterr().out
    assert work.exit_code == 0, said
    for seed in (0, 1):
        assert f"exposures_seed, smoke, seed {seed}: measured" in said
    assert "base:frames, smoke, seed 0: measured" in said
    assert "base, smoke, seed 0: measured" in said
    assert {name.rpartition("/")[2] for name in work.kept["tables"] if name.endswith(".csv")} == {
        f"{arm}-pong-seed{seed}{kind}" for seed in (0, 1) for kind in (".csv", "-history.csv")
        for arm in ("base", "exposures_seed.episodes", "exposures_seed.windows")}


def test_one_that_fails_does_not_keep_the_others_from_their_work(work, capsys):
    script = "import sys; words = sys.argv[3:]; print(words); raise SystemExit(words == ['a'])"
    campaign.side_by_side(work, script, [("a",), ("b",), ("c", "d")], at_once=1)
    assert capsys.readouterr().out == "['a']\n['b']\n['c', 'd']\n"
    assert work.exit_code == campaign.FAILED


def test_a_gpu_is_shared_by_mps_while_agents_learn_and_only_then(work, monkeypatch, tmp_path):
    asked = tmp_path / "asked.txt"
    mps = tmp_path / campaign.MPS
    mps.write_text(f"#!/bin/sh\necho \"$CUDA_MPS_PIPE_DIRECTORY $@\" >> {asked}\n"
                   f"[ $# -gt 0 ] || cat >> {asked}\n")
    mps.chmod(0o755)
    with campaign.shared_gpu(tmp_path):
        assert not asked.exists() and "CUDA_MPS_PIPE_DIRECTORY" not in os.environ  # none there
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match="inside"), campaign.shared_gpu(tmp_path):
        assert asked.read_text() == f"{tmp_path} -d\n"
        raise RuntimeError("inside")
    assert asked.read_text().splitlines()[1:] == [f"{tmp_path} ", "quit"]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


# ---- what is left behind

def test_archives_are_few_and_small_and_what_does_not_fit_is_named(work, monkeypatch, tmp_path):
    monkeypatch.setattr(campaign, "MAX_BYTES", 10_000)
    made = tmp_path / "made"
    made.mkdir()
    for name in ("a.csv", "b.csv", "large.bin", "w0.bin", "w1.bin", "w2.bin", ".hidden"):
        size = {"a": 10, "b": 10, "l": 12_000}.get(name[0], 6_000)
        (made / name).write_bytes(os.urandom(size))
    work.keep("weights", made, made.glob("*.bin"))
    work.keep("tables", made, made.glob("*.csv"))
    work.keep("tables", made, made.glob(".h*"))
    written, left_out = campaign.pack(work.kept, work.out, room=3)
    assert written == ["tables.zip", "weights-1.zip", "weights-2.zip"]
    assert left_out == ["large.bin", "w2.bin"]
    assert max(path.stat().st_size for path in work.out.iterdir()) < 10_000
    with zipfile.ZipFile(work.out / "tables.zip") as archive:
        assert archive.namelist() == ["a.csv", "b.csv"]
        assert archive.read("a.csv") == (made / "a.csv").read_bytes()


def test_an_archive_stays_small_whatever_is_in_it(work, monkeypatch, tmp_path):
    monkeypatch.setattr(campaign, "MAX_BYTES", 5_000)
    for number in range(40):
        (tmp_path / f"{'long' * 20}-{number}.bin").write_bytes(os.urandom(number * 40))
    work.keep("figures", tmp_path, tmp_path.glob("*.bin"))
    written, left_out = campaign.pack(work.kept, work.out, room=20)
    assert left_out == [] and len(written) > 1
    assert max(path.stat().st_size for path in work.out.iterdir()) < 5_000


def test_a_log_that_is_too_long_keeps_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "MAX_BYTES", 100)
    log = tmp_path / "log.txt"
    log.write_bytes(b"-" * 100 + b"end")
    campaign.shorten(log)
    assert log.read_bytes() == b"-" * 47 + b"end"


def test_a_campaign_leaves_its_record_its_log_and_archives_of_what_it_kept(monkeypatch, tmp_path,
                                                                          capsys):
    def brief(work):
        work.python("-c", "import os; from pathlib import Path; "
                          "Path(os.environ['HD_ARTIFACTS']).mkdir(parents=True); "
                          "(Path(os.environ['HD_ARTIFACTS']) / 'table.csv').write_text('a,b'); "
                          "raise SystemExit(75)")
        work.keep("tables", work.artifacts, work.artifacts.glob("*.csv"))
    monkeypatch.setitem(campaign.CAMPAIGNS, "brief", campaign.Campaign(brief, 20, needs_gpu=False))
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    out = tmp_path / "fresh"
    assert campaign.main(["brief", "--seconds", "60", "--out", str(out)]) == campaign.OUT_OF_TIME
    assert sorted(path.name for path in out.iterdir()) == ["campaign.json", "log.txt", "tables.zip"]
    about = json.loads((out / "campaign.json").read_text())
    assert (about["campaign"], about["exit_code"], about["left_out"]) == ("brief", 75, [])
    assert list(about["sha256"]) == ["tables.zip"]
    assert capsys.readouterr().out.startswith("brief: tables.zip after ")


@pytest.mark.long
@pytest.mark.timeout(1500)  # a machine may be busy with something else
def test_the_smoke_campaign_leaves_tables_figures_and_weights_that_restore(tmp_path):
    out, artifacts = tmp_path / "fresh", tmp_path / "artifacts"
    done = subprocess.run(
        [sys.executable, campaign.__file__, "smoke", "--seconds", "1200", "--out",
         str(out)], env={**os.environ, "HD_ARTIFACTS": str(artifacts), "HD_DEVICE": "cpu"},
        capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:]
    left = {path.name: path for path in out.iterdir()}
    assert left.keys() == {"tables.zip", "figures.zip", "weights.zip", "campaign.json", "log.txt"}
    assert all(path.stat().st_size < 15_000_000 for path in left.values())
    inside = {kind: zipfile.ZipFile(left[f"{kind}.zip"])
              for kind in ("tables", "figures", "weights")}
    for stage in ("frames", "encoder", "tokenizer", "world_model", "imagination", "policy"):
        assert f"smoke/results/{stage}/base-pong-seed0.csv" in inside["tables"].namelist()
    assert any(name.endswith((".png", ".svg")) for name in inside["figures"].namelist())
    places = (str(tmp_path), str(campaign.ROOT), sys.prefix)
    texts = [left["log.txt"].read_text(), left["campaign.json"].read_text(), done.stdout]
    texts += [inside["tables"].read(name).decode() for name in inside["tables"].namelist()]
    assert not any(place in text for place in places for text in texts)
    from hd.run import runs, weights
    inside["weights"].extractall(tmp_path / "checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path / "elsewhere"))
        run = runs.start("encoder", profile="smoke", games=("pong",))
        assert weights.restore(run, root=tmp_path / "checkout") == [
            "encoder", "tokenizer", "decoder", "world_model", "policy"]
