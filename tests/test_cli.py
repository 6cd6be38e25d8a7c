"""The command line: bad input is one line and exit code 2, everything else reaches the package."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from test_notebooks import PARAMETERS, write_notebook

from hd import config
from hd.__main__ import EXAMPLES, main, make_parser
from hd.book import building, notebooks
from hd.run import runs, storage


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book with the whole chain and the ablation."""
    monkeypatch.setattr(notebooks, "BOOK", tmp_path / "book")
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    for name in notebooks.CHAIN:
        write_notebook(tmp_path / "book" / "pipeline" / f"{name}.ipynb")
    write_notebook(tmp_path / "book" / "pipeline" / "07_ablation.ipynb",
                   parameters=PARAMETERS + '\nablation = "mask"\nseeds = [0]')


@pytest.fixture
def called(monkeypatch):
    """What the command line asks of hd.book.notebooks and hd.book.building, instead of doing it."""
    calls = []
    monkeypatch.setattr(notebooks, "execute", lambda *a, **k: calls.append(("execute", a, k)))
    monkeypatch.setattr(notebooks, "execute_all", lambda **k: calls.append(("execute_all", k)))
    monkeypatch.setattr(building, "stage_book", lambda **k: calls.append(("stage_book", k)))
    monkeypatch.setattr(building, "build_book",
                        lambda source: calls.append(("build_book",)))
    return calls


def one_line(capsys):
    """stderr, which must be a single line of ours, with nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"hd: [^\n]+\n", err), (out, err)
    return err


# ---- bad input

@pytest.mark.parametrize(("words", "says"), [
    ("", "command"),
    ("rnu", "invalid choice: 'rnu'"),
    ("run", "notebook"),
    ("run 02_encodr", "unknown notebook '02_encodr'; allowed: 01_frames, 02_encoder"),
    ("run 02_encoder --profile smok", "unknown profile 'smok'; allowed: smoke, quick"),
    ("run all --profile smok", "unknown profile 'smok'; allowed: smoke, quick"),
    ("run 02_encoder --variant strict", "unknown variant 'strict'; allowed: base, "),
    ("run 02_encoder --seed -1", "seed must be a whole number from 0 to 2147483647; got -1"),
    ("run 02_encoder --seed one", "seed must be a whole number from 0 to 2147483647; got 'one'"),
    ("run 02_encoder --seed 1.5", "seed must be a whole number from 0 to 2147483647; got 1.5"),
    ("run 02_encoder --games pong,pacman", "unknown game 'pacman'; allowed: pong, breakout"),
    ("run 02_encoder --games pong,pong", "each once"),
    ("run 02_encoder --time-limit 0", "time limit must be more than 0 seconds; got 0"),
    ("run 02_encoder --time-limit -5", "time limit must be more than 0 seconds; got -5"),
    ("run 02_encoder --time-limit soon", "time limit must be more than 0 seconds; got 'soon'"),
    ("run 02_encoder --profil smoke", "unrecognized arguments: --profil"),
    ("run 02_encoder -p steps 3", "unknown parameter 'steps' of 02_encoder; allowed: none"),
    ("run 02_encoder -p seed 3", "seed, games, time_limit are options"),
    ("run 07_ablation -p seeds zero", "seeds of 07_ablation must be like [0]; got ['zero']"),
    ("run 07_ablation -p ablation maks", "unknown ablation 'maks'; allowed: split, "),
    ("run 07_ablation -p seeds [0] -p seeds [1]", "parameter seeds is given twice"),
    ("run 07_ablation -p seeds 1,1", "seeds must be one or more whole numbers, each once; got 1"),
    ("run 07_ablation --variant mask.strict", "-p ablation and -p seeds, not with --variant"),
    ("run 07_ablation --seed 1", "-p ablation and -p seeds, not with --variant and --seed"),
    ("run 07_ablation -p ablation policy_game --games pong", "policy_game.breakout needs the game"),
    ("run all -p ablation mask", "-p needs one notebook"),
    ("report --variant strict", "unknown variant 'strict'"),
    ("report --no-run --profile smok", "unknown profile 'smok'"),
    ("sweep --seeds 0,x", "seed must be a whole number"),
    ("sweep --seeds 0,0", "each once; got 0, 0"),
    ("sweep --variants base,strict", "unknown variant 'strict'"),
    ("sweep --variants policy_game.breakout --games pong", "needs the game breakout"),
    ("sweep --until 07_ablation", "unknown notebook '07_ablation'; allowed: 01_frames"),
    ("sweep --cores 0", "cores must be a whole number from 1, or all; got 0"),
    ("sweep --cores many", "cores must be a whole number from 1, or all; got 'many'"),
    ("play --game doom", "unknown game 'doom'"),
    ("play --game pong --games breakout", "unknown game 'pong'; allowed: breakout"),
    ("play --policy best", "unknown policy 'best'; allowed: recorded, random, agent, tracker"),
    ("play --out dream.gif", "a video's name must end in .mp4; got dream.gif"),
    ("play --steps 0", "steps must be a whole number from 1 to 3000; got 0"),
    ("check --profile smok", "unknown profile 'smok'"),
    ("bench --pairs 0", "pairs must be a whole number from 1; got 0"),
    ("bench --pairs two", "pairs must be a whole number from 1; got 'two'"),
    ("publish", "publish needs either --profile or --benchmark"),
    ("publish --profile quick --benchmark", "publish needs either --profile or --benchmark"),
    ("publish --profile smok", "unknown profile 'smok'"),
])
def test_bad_input_is_one_line_and_exit_code_2(book, capsys, words, says):
    assert main(words.split()) == 2
    assert says in one_line(capsys)


def test_a_mistake_is_refused_without_importing_torch():
    code = ("import sys; from hd.__main__ import main; "
            "code = main(['run', '02_encoder', '--profile', 'smok']); "
            "main(['profiles']); assert 'torch' not in sys.modules; sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"hd: unknown [^\n]*\n", done.stderr)


@pytest.mark.parametrize(("error", "code", "says"), [
    (config.InputError("what, where"), 2, "what, where"),
    (runs.TimeLimitReached("stopped at step 5"), 75, "stopped at step 5"),
    (notebooks.NotebookError("cell 3\nfailed"), 1, "cell 3 failed"),
    (KeyboardInterrupt(), 130, "interrupted; the same command continues"),
])
def test_every_ending_has_its_exit_code_and_one_line(book, capsys, monkeypatch, error, code, says):
    def fail(*words, **settings):
        raise error
    monkeypatch.setattr(notebooks, "execute", fail)
    assert main(["run", "02_encoder"]) == code
    assert one_line(capsys) == f"hd: {says}\n"


# ---- where the output goes

def hd(*words, code="from hd.__main__ import main; sys.exit(main(sys.argv[1:]))", **settings):
    """The finished command in a process of its own, its output as bytes."""
    environment = {**os.environ, **settings.pop("env", {})}
    return subprocess.run([sys.executable, "-c", "import sys; " + code, *words], timeout=120,
                          capture_output=True, env=environment, cwd=storage.ROOT, **settings)


SAY = ("from hd import __main__; from hd.book import notebooks; "
       "notebooks.execute = lambda *a, **k: print('a bar: \\u2588 done'); "
       "sys.exit(__main__.main(['run', '01_frames', '--profile', 'smoke']))")


@pytest.mark.parametrize("encoding", [
    {"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_what_the_outputs_encoding_lacks_is_substituted_and_work_goes_on(encoding):
    done = hd(code=SAY, env=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [b"a", b"bar:", b"?", b"done"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes")
@pytest.mark.parametrize("is_flushed", [True, False])
def test_output_that_nobody_reads_stops_cleanly_and_is_named_as_that(is_flushed):
    read, write = os.pipe()
    os.close(read)  # as `| head` does when it has seen enough
    words = f"print('x', flush={is_flushed})"
    code = SAY.replace("print('a bar: \\u2588 done')", words)
    done = subprocess.run([sys.executable, "-c", "import sys; " + code], stdout=write,
                          stderr=subprocess.PIPE, timeout=120, cwd=storage.ROOT)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == (b"hd: what reads the output was closed, so this stopped; the same "
                           b"command continues\n")


def test_profiles_are_shown_without_docstrings_too():
    done = hd("profiles", env={"PYTHONOPTIMIZE": "2"})
    assert done.returncode == 0 and b"smoke" in done.stdout, done.stderr


def test_an_installed_package_says_that_commands_need_a_checkout(tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    shutil.copytree(storage.ROOT / "hd", installed / "hd",
                    ignore=shutil.ignore_patterns("__pycache__"))
    elsewhere.mkdir()
    code = ("sys.path.insert(0, sys.argv[1]); from hd.__main__ import main; "
            "from hd.run import runs; "
            "[print(main(words.split()), words, file=sys.stderr) for words in sys.argv[2:]]; "
            "print(runs.start('frames', profile='smoke').root)")
    words = ("run 01_frames", "report", "sweep", "check", "bench", "publish --benchmark", "restore")
    environment = {name: value for name, value in os.environ.items() if name != "HD_ARTIFACTS"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; " + code, installed, *words], timeout=120,
        capture_output=True, text=True, cwd=elsewhere,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"})
    lines = done.stderr.splitlines()
    assert lines[1::2] == [f"2 {command}" for command in words], done.stderr
    for line, command in zip(lines[::2], words):
        assert line.startswith(f"hd: hd {command.split()[0]} needs a checkout of the project")
    assert done.stdout.strip() == str(elsewhere.resolve() / ".artifacts" / "smoke")
    assert [path.name for path in installed.iterdir()] == ["hd"]


# ---- help

@pytest.mark.parametrize("command", EXAMPLES)
def test_every_commands_help_shows_examples_that_parse(capsys, command):
    with pytest.raises(SystemExit):
        make_parser().parse_args([command, "--help"])
    shown = re.findall(r"^  python -m hd (.+)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert shown
    for line in shown:
        args = make_parser().parse_args(line.split())
        assert args.name == command
        assert getattr(args, "profile", None) in (None, *config.PROFILES)
        assert getattr(args, "game", None) in (None, *config.GAMES)


def test_there_are_examples_of_every_command():
    commands = make_parser()._subparsers._group_actions[0].choices
    assert set(EXAMPLES) == set(commands)


# ---- what the commands ask for

def test_run_hands_everything_to_the_notebook(book, called):
    words = ("run 07_ablation --profile audit --variant mask.strict --seed 2 --games pong "
             "--time-limit 90 -p ablation negatives -p seeds [0,1] --force")
    assert main(words.split()) == 0
    assert called == [("execute", ("07_ablation",), {
        "profile": "audit", "variant": "mask.strict", "seed": 2, "games": ("pong",),
        "time_limit": 90, "force": True, "parameters": {"ablation": "negatives",
                                                        "seeds": "[0,1]"}})]


def test_run_defaults_to_the_quick_profile_of_all_games(book, called):
    assert main(["run", "all"]) == 0
    assert called == [("execute_all", {"profile": "quick", "variant": "base", "seed": 0,
                                       "games": config.GAMES, "time_limit": None,
                                       "force": False})]


@pytest.mark.parametrize(("words", "steps"), [
    ("report", ["execute_all", "stage_book", "build_book"]),
    ("report --no-run", ["stage_book", "build_book"]),
])
def test_report_runs_the_chain_then_builds_the_book(called, words, steps):
    assert main(words.split()) == 0
    assert [call[0] for call in called] == steps


def test_check_prints_what_holds_and_fails_when_something_does_not(monkeypatch, capsys):
    from hd import stages
    monkeypatch.setattr(stages, "make", lambda run: None)
    monkeypatch.setattr(stages, "check", lambda run: [("a", True, "5"), ("b", False, "6")])
    assert main(["check"]) == 1
    assert capsys.readouterr().out == "holds  a: 5\nFAILS  b: 6\n"


def test_profiles_shows_every_profile_and_what_each_variant_changes(capsys):
    assert main(["profiles"]) == 0
    shown = capsys.readouterr().out
    for name in (*config.PROFILES, *config.variants()):
        assert re.search(rf"^{re.escape(name)} ", shown, flags=re.MULTILINE)
    assert re.search(r"^mask.strict +world_model.mask = strict$", shown, flags=re.MULTILINE)


# ---- sweeps

def jobs_in(text):
    """The names of the jobs of a dry run."""
    return sorted(re.findall(r"^Job \d+: (\S+)$", text, flags=re.MULTILINE))


def test_a_sweep_runs_shared_stages_once(book, capsys, tmp_path, monkeypatch):
    pytest.importorskip("snakemake")
    monkeypatch.chdir(tmp_path)
    words = "sweep --profile smoke --variants base,mask.strict,policy.ppo --seeds 0 --dry-run"
    assert main(words.split()) == 0
    assert jobs_in("".join(capsys.readouterr())) == sorted([
        *notebooks.CHAIN, "04_world_model-mask.strict-seed0", "05_imagination-mask.strict-seed0",
        "06_policy-mask.strict-seed0", "06_policy-policy.ppo-seed0"])


def test_the_slurm_profile_describes_jobs_that_stop_before_their_run_time(book, capsys, tmp_path,
                                                                         monkeypatch):
    pytest.importorskip("snakemake")
    from snakemake.cli import main as snakemake
    monkeypatch.chdir(tmp_path)
    # The executor plugin is not a dependency; the local one takes the same resources.
    words = ("--profile workflow/slurm --executor local --cores 8 --dry-run --printshellcmds "
             "--config profile=smoke variants=base seeds=[0,1] until=01_frames")
    words = words.replace("workflow", str(storage.ROOT / "workflow")).split()
    with pytest.raises(SystemExit) as done:
        snakemake(["--snakefile", str(storage.ROOT / "Snakefile"), *words])
    text = "".join(capsys.readouterr())
    assert done.value.code == 0
    assert jobs_in(text) == ["01_frames", "01_frames-base-seed1"]
    assert "hd run 01_frames --profile smoke --variant base --seed 1" in text
    assert "--time-limit 7080" in text and "runtime=120" in text


def test_a_second_sweep_at_the_same_time_is_refused(book, capsys, tmp_path, monkeypatch):
    pytest.importorskip("snakemake")
    monkeypatch.setattr(storage, "LOCK_PATIENCE", 0.1)
    with storage.exclusive(storage.artifacts_root() / "sweep"):
        assert main(["sweep", "--profile", "smoke", "-n"]) == 2
    assert "another process is working on" in one_line(capsys)
