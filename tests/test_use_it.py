"""What the README and the book tell a reader to type works: each program and each command."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

from hd import atari, config, play, stages
from hd.__main__ import make_parser
from hd.run import runs, storage, weights

ROOT = storage.ROOT
PAGES = (ROOT / "README.md", ROOT / "book" / "use_it.md")
TINY = {"agent.num_steps": 320, "agent.prefill": 256, "agent.block": 32, "agent.model_warmup": 3,
        "agent.dreams_warmup": 2, "agent.num_codes": 24}
LEFT_OUT = ("make ",)  # .ci/run is make test, and make report is what users begin with
NONE_FITS = "no agent of the present configuration is published"


def blocks_of(page, language):
    """The fenced blocks of a page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands():
    """The lines of the pages' shell blocks, in order and each once, without comments."""
    lines = "".join(block for page in PAGES for block in blocks_of(page, "sh")).splitlines()
    found = dict.fromkeys(line.partition("  #")[0].strip() for line in lines)
    return [line for line in found if line and not line.startswith(LEFT_OUT)]


OURS = [line.removeprefix("python -m hd ") for line in commands()
        if line.startswith("python -m hd ")]
RESTORED = [line for line in OURS if line.startswith("restore ")]


def published_agents():
    """(profile, game) of each published agent of the present configuration, the largest last."""
    found = []
    for profile in config.PROFILES:
        for game in config.GAMES:
            run = runs.start("agent", profile=profile, games=game)
            with contextlib.suppress(FileNotFoundError):
                text = (weights.folder_of(run) / "agent.json").read_text("utf-8")
                if json.loads(text)["identity"] == run.identity:
                    found.append((profile, game))
    return found


# ---- programs

@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The page's programs in Python, in order, for the largest published agent, which is restored;
    where none fits, for a tiny one of Pong. Real games that they play end after 60 steps."""
    text = blocks_of(PAGES[1], "python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        patch.setattr(play, "AtariGame", functools.partial(atari.AtariGame, max_steps=60))
        for profile, game in published_agents()[-1:]:
            weights.restore(runs.start("agent", profile=profile, games=game))
            given = f'profile="{profile}", games="{game}")'
            break
        else:
            game, given = "pong", f'profile="smoke", games="pong", overrides={TINY})'
            stages.make(runs.start("agent", profile="smoke", games=game, overrides=TINY))
        assert text[0].count('profile="paper", games="pong")') == 1
        yield [part.replace('profile="paper", games="pong")', given).replace('"pong"', f'"{game}"')
               for part in text]


def test_the_programs_of_the_page_run_one_after_the_other(programs, capsys):
    names = {}
    for program in programs[:3]:
        exec(program, names)
    points, dream, codes = capsys.readouterr().out.splitlines()[-3:]
    assert float(points) == names["episodes"][0]["return"]
    assert isinstance(names["env"], gymnasium.Env) and dream.startswith(
        f"({names['agent'].model.num_features},) (3, 49) (84, 84, 3) ")
    assert codes == "(5, 3, 49) (5, 84, 84)"


def test_an_agents_dream_starts_from_steps_of_its_game_and_knows_its_codes(programs):
    names = {}
    exec(programs[0], names)
    env = stages.dream_env(names["run"], names["run"].games[0], horizon=3)
    tokens, actions = env.contexts
    assert tokens.shape == (stages.DREAMS_FROM, names["agent"].model.cfg.steps, 3, 49)
    assert set(actions.unique().tolist()) <= {*atari.GAMES[names["run"].games[0]].actions}
    (first, info), (again, _) = env.reset(seed=3), env.reset(seed=3)
    assert (first == again).all() and env.observation_space.contains(first)
    assert any((info["tokens"] == part.numpy()).all() for part in tokens[:, -1])
    assert [env.step(0)[3] for _ in range(3)] == [False, False, True]


@pytest.mark.long
def test_a_fourth_game_is_collected_and_learned_by_the_program_of_the_page(tmp_path):
    (program,) = [part for part in blocks_of(PAGES[1], "python") if "add_game" in part]
    script = tmp_path / "boxing.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=580,
                          env={**os.environ, "PYTHONPATH": str(ROOT),
                               "HD_ARTIFACTS": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(?:frames|agent) \w+$", done.stdout, re.M) == [
        "frames Replay", "agent Agent"]
    assert list((tmp_path / "smoke").glob("frames/*/frames-boxing.npy"))


# ---- commands

@pytest.mark.parametrize("line", OURS)
def test_every_command_of_a_page_parses(line):
    args = make_parser().parse_args(line.split())
    config.resolve(args.profile, getattr(args, "variant", "base"))
    assert getattr(args, "game", None) in (None, *config.GAMES)


@pytest.mark.parametrize("line", RESTORED)
def test_what_a_page_restores_is_published(line):
    args = make_parser().parse_args(line.split())
    run = runs.start("encoder", profile=args.profile, variant=args.variant,
                     games=config.check_games(args.games))
    if len(run.games) == 1 and not published_agents():
        pytest.skip(NONE_FITS)
    records = weights.folder_of(run).glob("*.json")
    found = {path.stem: json.loads(path.read_text("utf-8"))["identity"] for path in records}
    assert found and found == {stage: run.at(stage).identity for stage in found}


def small(line):
    """A command that trains, at smoke and with one seed; others as they stand."""
    if re.match(r"python -m hd run ", line):
        line = re.sub(r"--profile \w+", "--profile smoke", line)
        line = re.sub(r"-p seeds \S+", "-p seeds 0", line)
    return line.replace("python ", f'"{sys.executable}" ', 1)


def shown_agents(line):
    """The command for the published agent that fits best; None where it shows one and none fits."""
    is_of_agent = re.search(r"restore .*--games|--policy online", line)
    if not is_of_agent:
        return line
    for profile, game in published_agents()[-1:]:
        line = re.sub(r"--profile \w+", f"--profile {profile}", line)
        return re.sub(r"(--games?) \w+", rf"\1 {game}", line)
    return None


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_commands_of_the_pages_run_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), clone], check=True)
    kept = {name: value for name, value in os.environ.items()
            if name not in ("HD_ARTIFACTS", "PYTHONPATH")}
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    lines = [shown_agents(line) for line in commands()]
    assert len(lines) >= 8
    for line in filter(None, lines):
        done = subprocess.run(small(line), shell=True, cwd=clone, capture_output=True, text=True,
                              env={**kept, "PATH": tools, "PYTHONPATH": str(clone)})
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    films = list((clone / ".artifacts").rglob("play-*.mp4"))
    assert len(films) >= 1
