"""The playable dream: the browser computes what PyTorch computes, and the page is played in it."""

import dataclasses
import json
import re
import shutil

import cv2
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from browser import Browser, in_browser
from safetensors.torch import load_file
from tiny import commit, git, refusal

from hd import __main__, agent, config
from hd.book import dream_page
from hd.book.publishing import publish_videos
from hd.experience import Store
from hd.imagination import imagine, replayed
from hd.report import published
from hd.run import machine, runs, weights
from hd.run.weights import SCALE

PUBLISHED = sorted(dream_page.PAGES.glob("dream-*.js"))
TOLERANCE = 1e-3  # of the browser's outputs, from PyTorch's
ALL_BYTES = 6_000_000
SMALL = {"agent.patch": 14, "agent.num_levels": 2, "agent.num_codes": 24, "place_model.width": 10,
         "place_model.code_width": 7, "place_model.num_blocks": 1, "place_model.steps": 3,
         "agent_policy.hidden": 12}
NEW_STEPS = 480
# Numbers from 0 to 1 that are the same in every run (a linear congruential generator).
SEEDED = """(() => {
    let state = 1;
    Math.random = () => (state = (Math.imul(1664525, state) + 1013904223) >>> 0) / 2 ** 32;
})()"""


def tiny_run(**overrides):
    """A finished agent of other sizes than the published ones; its weights are random."""
    run = runs.start("agent", profile="smoke", games=["pong"], overrides=SMALL | overrides)
    torch.manual_seed(1)
    made = agent.Agent(run.cfg, run.profile.place_model, run.profile.agent_policy, "pong")
    with torch.no_grad():
        for part in made.parameters():
            part.add_(0.2 * torch.randn_like(part))
        made.model.change.bias.fill_(0.0)
        made.codec.background.uniform_()
        made.codec.quantizer.codebooks.normal_(std=0.3)
        made.codec.quantizer.codebooks[:, 0] = 0
    made.model.read_codebooks(made.codec.quantizer.codebooks)
    runs.save_model(run, made, wall_seconds=1.0)
    return run


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny_page(tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HD_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        return dream_page.write_page(tiny_run(), tmp_path_factory.mktemp("tiny") / "page",
                                     num_steps=NEW_STEPS)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def opened(browser, page, game="pong"):
    """The page with a game that is ready to be played; returns the game's dream."""
    browser.screen(1000, 900)
    browser.open(page)
    browser.evaluate(SEEDED)
    browser.wait_for("HDPage.checked !== undefined && HDPage.film")
    if browser.evaluate("HDPage.agent.dream.game") != game:
        browser.evaluate(f"HDPage.choose({game!r})")
        browser.wait_for(f"HDPage.agent.dream.game === {game!r} && HDPage.film")
    assert browser.errors == []
    return dream_page.read(page.parent / f"dream-{game}.js")


@pytest.fixture(params=["tiny", *[path.stem.removeprefix("dream-") for path in PUBLISHED]])
def shown(request, browser):
    """The browser with a page that is loaded, and the dream that it shows: a tiny agent's, and each
    published one."""
    is_tiny = request.param == "tiny"
    page = request.getfixturevalue("tiny_page") if is_tiny else dream_page.PAGES / "index.html"
    return browser, opened(browser, page, "pong" if is_tiny else request.param)


@pytest.fixture
def pong(browser):
    opened(browser, dream_page.PAGES / "index.html")
    return browser


# ---- the model

@in_browser
def test_the_browsers_outputs_are_pytorchs_at_every_start(shown):
    browser, dream = shown
    _, wanted = dream_page.cases_of(dream_page.agent_of(dream), dream["starts"])
    found = browser.evaluate("HDPage.agent.cases()")
    assert len(found) == dream_page.NUM_STARTS
    for name in ("change", "codes", "outcome", "actor", "value"):
        expected = wanted[f"case.{name}"].reshape(len(found), -1)
        assert np.ptp(expected) > 10 * TOLERANCE, f"{name} says nothing"
        np.testing.assert_allclose([case[name] for case in found], expected, rtol=0,
                                   atol=TOLERANCE, err_msg=name)
        np.testing.assert_allclose(dream["tensors"][f"case.{name}"].reshape(expected.shape),
                                   expected, rtol=0, atol=1e-4)  # stored on another machine


@in_browser
def test_the_pages_own_check_sees_an_output_that_is_off(shown):
    browser, _ = shown
    right = browser.evaluate("HDPage.agent.error()")
    browser.evaluate("HDPage.agent.tensors['model.code_bias'].data[5] += 0.25")
    off = browser.evaluate("HDPage.agent.error()")
    browser.evaluate("HDPage.agent.tensors['model.code_bias'].data[5] -= 0.25")
    assert right < TOLERANCE < 0.2 < off


@in_browser
def test_greedy_dreams_are_pytorchs_code_for_code(shown):
    # Were two codes equally likely, rounding would decide: no stored start has such a tie.
    browser, dream = shown
    steps, made = 15, dream_page.agent_of(dream)
    found = browser.evaluate(f"""HDPage.agent.dream.starts.map((start) => {{
        const dreamer = HDPage.agent.dreamer(start);
        return start.actions.slice(0, {steps}).map((action) => {{
            const [reward, goesOn] = dreamer.step(action, Math.random, true);
            return {{tokens: [...dreamer.tokens], reward, goesOn}};
        }});
    }})""")
    tokens, past, actions = (torch.tensor([start[name] for start in dream["starts"]])
                             for name in ("tokens", "past", "actions"))
    wanted = imagine(made.model, tokens, past, replayed(actions[:, :steps]), horizon=steps,
                     generator=torch.Generator(), greedy=True, features="hidden")
    assert (wanted.tokens[:, 1:] != wanted.tokens[:, :-1]).any((2, 3)).float().mean() > 0.5
    assert [[step["tokens"] for step in one] for one in found] == (
        wanted.tokens[:, 1:].flatten(2).tolist())
    for name, values in (("reward", wanted.rewards), ("goesOn", wanted.continues)):
        np.testing.assert_allclose([[step[name] for step in one] for one in found], values,
                                   rtol=0, atol=TOLERANCE)


@in_browser
def test_drawn_dreams_change_as_many_places_as_pytorchs(shown):
    browser, dream = shown
    made, start = dream_page.agent_of(dream), dream["starts"][0]
    count, steps = 40, 3
    found = browser.evaluate(f"""Array.from({{length: {count}}}, () => {{
        const dreamer = HDPage.agent.dreamer(HDPage.agent.dream.starts[0]);
        return HDPage.agent.dream.starts[0].actions.slice(0, {steps}).map((action) => {{
            dreamer.step(action, Math.random);
            return dreamer.changes.filter(Boolean).length;
        }});
    }})""")
    alike = {name: torch.tensor([start[name]] * count) for name in ("tokens", "past", "actions")}
    with torch.no_grad():
        dreamer = made.model.dreamer(alike["tokens"], alike["past"], horizon=steps)
        generator, wanted = torch.Generator().manual_seed(0), []
        for t in range(steps):
            acted = made.model.act(dreamer.state, alike["actions"][:, t])
            chance = (made.model.change(acted)[..., 0] / made.model.cfg.temperature).sigmoid()
            wanted.append(chance.sum(1))
            dreamer.step(alike["actions"][:, t], generator)
    expected = torch.stack(wanted, 1).mean(0).numpy()
    # Six standard errors of a mean of sums of as many coins as there are expected changes.
    error = 6 * np.sqrt((expected + 0.5) / count)
    assert (np.abs(np.mean(found, 0) - expected) < error).all()


@in_browser
def test_a_picture_is_what_the_codec_decodes(shown):
    browser, dream = shown
    made = dream_page.agent_of(dream)
    found = browser.evaluate("HDPage.agent.dream.starts.map((start) => "
                             "[...HDPage.agent.codec.decode(HDPage.agent.dreamer(start).tokens)])")
    last = torch.tensor([start["tokens"][-1] for start in dream["starts"]])
    wanted = made.codec.decode(last).flatten(1).numpy()
    assert np.abs(np.array(found) - wanted).max() <= 1 and np.mean(found != wanted) < 1e-3


# ---- the page, played

def pixels(browser):
    return browser.evaluate("[...HDPage.dreamed.getContext('2d').getImageData(0, 0, 84, 84).data]")


@in_browser
def test_held_keys_act_in_the_dream_and_the_picture_moves(pong):
    pong.evaluate("HDPage.root.focus()")
    still = pixels(pong)
    assert not pong.evaluate("HDPage.playing")
    for key, action in (("ArrowUp", 3), ("ArrowDown", 4)):  # Pong's RIGHT is up
        pong.key(key, "keyDown")
        pong.wait_for(f"HDPage.playing && HDPage.action === {action}")
        pong.key(" ", "keyDown")
        pong.wait_for(f"HDPage.action === {action + 8}")  # and fire
        for held in (key, " "):
            pong.key(held, "keyUp")
        pong.wait_for("HDPage.action === 0")
    assert pong.evaluate("HDPage.who") == "you" and pixels(pong) != still


@in_browser
def test_up_and_down_move_the_dreamed_paddle_apart(pong):
    def paddle(key):
        pong.click(".restartButton")
        pong.key(key, "keyDown")
        pong.wait_for("HDPage.step >= 20")  # by then it is at an edge, also on a busy machine
        pong.key(key, "keyUp")
        frame = np.array(pixels(pong)).reshape(84, 84, 4)[16:77, 72:78, 0].astype(float)
        return np.average(np.arange(61), weights=np.abs(frame - np.median(frame)).sum(1) + 1e-9)

    assert paddle("ArrowUp") + 5 < paddle("ArrowDown")


@in_browser
def test_the_agent_takes_over_points_appear_and_a_key_takes_back(pong):
    pong.evaluate("HDPage.speed.value = 30")
    pong.click(".agentButton")
    pong.click(".playButton")
    pong.wait_for("HDPage.who === 'agent' && HDPage.step > 20")
    assert pong.evaluate("HDPage.traced.value.length") > 20
    # All that it does is legal in Pong, and not always the same.
    done = {pong.evaluate("HDPage.action") for _ in range(20)}
    assert done <= set(pong.evaluate("HDPage.agent.dream.legal"))
    note = pong.wait_for("HDPage.note.includes('a point') && HDPage.note", seconds=90)
    assert re.match(r"At step \d+ the dream expects a point (won|lost) \([+−][01]\.\d\d\)\.$", note)
    assert pong.evaluate("HDPage.noted.textContent === HDPage.note")
    assert abs(pong.evaluate("HDPage.points")) > 0.5
    pong.key("ArrowUp", "keyDown")
    pong.wait_for("HDPage.who === 'you' && HDPage.action === 3")
    pong.key("ArrowUp", "keyUp")


@in_browser
def test_fingers_act_by_the_buttons_below_the_picture(pong):
    pong.screen(390, 800, touch=True)
    assert pong.evaluate("document.documentElement.scrollWidth") <= 390
    x, y = pong.evaluate("(() => { const one = document.querySelector('.pad .up');"
                         " one.scrollIntoView({block: 'center'}); const box ="
                         " one.getBoundingClientRect(); return [box.x + 9, box.y + 9]; })()")
    pong.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    pong.wait_for("HDPage.action === 3")
    pong.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    pong.wait_for("HDPage.action === 0")


@in_browser
def test_what_really_followed_runs_in_step_with_the_dream(shown):
    browser, dream = shown
    browser.evaluate("HDPage.speed.value = 30")
    browser.evaluate("HDPage.startsBox.value = 1")
    browser.click(".followedButton")
    browser.wait_for("HDPage.who === 'replay' && HDPage.over", seconds=60)
    start, found = dream["starts"][1], browser.evaluate("HDPage.differences")
    film = frames_of(start)
    background = np.round(255 * dream["tensors"]["codec.background"].astype(np.float32))
    after = film[1:].astype(float)
    np.testing.assert_allclose(found["still"], np.abs(after - film[0]).mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(found["empty"], np.abs(after - background).mean((1, 2)), atol=1e-2)
    assert len(found["dream"]) == dream_page.AFTER == browser.evaluate("HDPage.step")
    last = np.array(pixels(browser)).reshape(84, 84, 4)[..., 0]
    assert found["dream"][-1] == pytest.approx(np.abs(after[-1] - last).mean(), abs=1e-6)
    nearer = sum(np.array(found["dream"]) < np.minimum(found["still"], found["empty"]))
    assert f"In {nearer} of 100 steps the dream was nearer" in browser.evaluate(
        "HDPage.found.textContent")
    rewards = np.sign(start["rewards"]).sum()
    assert float(browser.evaluate("HDPage.realShown.textContent").replace("−", "-")) == rewards
    assert browser.evaluate("HDPage.action") == start["actions"][-1]
    browser.click(".restartButton")  # another dream beside the same frames
    browser.wait_for("HDPage.step > 3 && !HDPage.over")
    assert browser.evaluate("[HDPage.who, HDPage.differences.still[0]]") == [
        "replay", found["still"][0]]


ENDS = "HDPage.agent.model.outcome = () => [new Float32Array([0, 1, 0]), -3]"
GOES_ON = "delete HDPage.agent.model.outcome"


@in_browser
def test_a_dream_that_ends_says_so_and_begins_again(pong):
    pong.evaluate(ENDS)
    pong.click(".playButton")
    note = pong.wait_for("HDPage.over && HDPage.note")
    assert note == "At step 1 the dream expects that the game is over (chance to go on: 0.05)."
    pong.evaluate(GOES_ON)
    pong.wait_for("!HDPage.over && HDPage.step > 2")
    assert pong.evaluate("HDPage.note") == ""


@in_browser
def test_a_life_that_is_lost_is_counted_and_the_dream_goes_on(pong):
    pong.evaluate("HDPage.lives = 3")
    pong.evaluate(ENDS)
    pong.evaluate("HDPage.advance()")
    pong.evaluate(GOES_ON)
    assert pong.evaluate("[HDPage.lives, HDPage.over, HDPage.note]") == [
        2, False, "At step 1 the dream expects that a life is lost (chance to go on: 0.05)."]


@in_browser
def test_the_page_says_how_fast_the_dream_is(pong):
    pong.evaluate("HDPage.speed.value = 30")
    pong.click(".playButton")
    pong.wait_for("HDPage.step > 60")
    said = pong.evaluate("HDPage.measured.textContent")
    found = re.match(r"In this browser a step of the dream takes ([\d.]+) ms: (\d+) steps a second "
                     r"would be possible, (\d+) are shown\.", said)
    assert found, said
    # What a machine reaches is its own; a page that cannot be played at all is a fault.
    assert int(found[2]) >= 5 and int(found[3]) >= 2


@in_browser
def test_the_page_names_the_run_behind_it(shown):
    browser, dream = shown
    by, said = dream["made_by"], browser.evaluate("HDPage.origin.textContent")
    for part in (f"profile {by['profile']}", f"seed {by['seed']}", by["identity"][:10],
                 f"{by['steps']:,} steps", by["commit"][:10], dream["starts_from"]):
        assert part in said


@in_browser
def test_weights_without_a_critic_have_no_value(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    run = tiny_run()
    weights.store(run, root=tmp_path)
    shutil.rmtree(run.folder)
    weights.restore(run, root=tmp_path)
    page = dream_page.write_page(run, tmp_path / "page", num_steps=NEW_STEPS)
    dream = opened(browser, page)
    assert not dream["has_critic"]
    assert not any("critic" in name for name in dream["tensors"])
    assert browser.evaluate("HDPage.valueShown.textContent") == "not in these weights"
    assert browser.evaluate("HDPage.agent.error()") < TOLERANCE


# ---- a game's data

def frames_of(start):
    encoded = np.frombuffer(dream_page.base64.b64decode(start["film"].partition(",")[2]), np.uint8)
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).reshape(-1, 84, 84)


def test_a_dream_that_is_read_is_the_one_that_was_written(tiny_page, tmp_path):
    dream = dream_page.read(tiny_page.parent / "dream-pong.js")
    again = dream_page.read(dream_page.write(dream, tmp_path / "again.js"))
    assert {tensor.dtype.name for tensor in dream["tensors"].values()} == set(dream_page.KINDS)
    assert list(again["tensors"]) == list(dream["tensors"])
    for name, tensor in dream["tensors"].items():
        np.testing.assert_array_equal(again["tensors"][name], tensor)
    assert {**again, "tensors": 0} == {**dream, "tensors": 0}


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: "[]", lambda text: "{}",
                                    lambda text: re.sub('"bytes":"....', '"bytes":"', text)])
def test_a_damaged_dream_is_refused_in_one_line(tiny_page, tmp_path, damage):
    path = tmp_path / "dream-pong.js"
    path.write_text(damage((tiny_page.parent / "dream-pong.js").read_text()))
    assert refusal(dream_page.read, path).startswith("dream-pong.js is no dream that this code")


def test_weights_of_another_model_are_refused_in_one_line(tiny_page):
    dream = dream_page.read(tiny_page.parent / "dream-pong.js")
    del dream["tensors"]["model.change.bias"]
    assert "does not hold the weights" in refusal(dream_page.agent_of, dream)


def test_starts_lie_within_an_episode_and_know_their_past(tiny_page):
    dream = dream_page.read(tiny_page.parent / "dream-pong.js")
    made = dream_page.agent_of(dream)
    assert len(dream["starts"]) == dream_page.NUM_STARTS
    for start in dream["starts"]:
        frames = frames_of(start)
        coded = made.codec.encode(frames[:2]).tolist()
        assert [start["tokens"][-1], start["next"]] == coded
        assert len(frames) == dream_page.AFTER + 1 and len(start["tokens"]) == 3
        assert len(start["past"]) == 2 and start["episode_step"] >= 2
        assert {len(start[name]) for name in ("actions", "rewards", "continues")} == {100}


def test_starts_are_chosen_shortly_before_points_and_not_across_an_end():
    cfg = dataclasses.replace(config.PROFILES["smoke"].agent, num_emulators=2, num_steps=900)
    store, rng = Store(cfg, num_places=1), np.random.default_rng(0)
    for t in range(400):
        ends = np.array([t in (99, 249), t == 5])
        store.add(np.zeros((2, 84, 84)), np.zeros((2, 128)), rng.integers(3, size=2),
                  np.array([t == 180, t == 300]), ~ends, ends)
    emulators, times = dream_page._candidates(store, 4)
    first, second = (set(times[emulators == e].tolist()) for e in (0, 1))
    # 180 is 10 to 39 steps away, but the end at 249 must be AFTER steps away and the start at 100
    # three: steps 141 to 149 alone.
    assert first == set(range(141, 150)) and second == set(range(261, 291))


def test_starts_that_new_play_does_not_hold_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    said = refusal(dream_page.dream_of, tiny_run(), num_steps=80)
    assert "80 new steps hold 0 states to start from" in said


@pytest.mark.parametrize(("game", "keys"), [
    ("pong", {"up": "RIGHT", "down": "LEFT", "fire": "FIRE"}),
    ("breakout", {"left": "LEFT", "right": "RIGHT", "fire": "FIRE"}),
    ("ms_pacman", {"up": "UP", "down": "DOWN", "left": "LEFT", "right": "RIGHT"})])
def test_arrow_keys_move_the_way_that_the_game_moves(game, keys):
    assert dream_page.keys_of(game) == keys


# ---- what is published

def test_the_published_dreams_are_listed_and_light():
    listed = (dream_page.PAGES / dream_page.LISTED).read_text("utf-8")
    games = json.loads(listed.removeprefix("window.HD_GAMES = ").removesuffix(";\n"))
    assert sorted(game["file"] for game in games) == [path.name for path in PUBLISHED] != []
    assert sum(path.stat().st_size for path in dream_page.PAGES.iterdir()) < ALL_BYTES


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_dream_holds_the_published_weights(path):
    dream = dream_page.read(path)
    by = dream["made_by"]
    assert by["written_at"]["dirty"] is False
    run = runs.start("agent", profile=by["profile"], variant=by["variant"], seed=by["seed"],
                     games=[dream["game"]])
    assert by["identity"] == run.identity
    kept = {name: tensor.numpy() for file in weights.folder_of(run).glob("*.safetensors")
            for name, tensor in load_file(file).items()}
    scales = {name: tensor for name, tensor in dream["tensors"].items() if name.endswith(SCALE)}
    own = {name: tensor for name, tensor in dream["tensors"].items()
           if not name.startswith(("case.", "policy.critic.")) and name not in scales}
    assert set(kept) - set(own) == {name for name in kept if name.startswith(dream_page.LEFT_OUT)}
    for name, tensor in own.items():
        if name + SCALE not in scales:
            np.testing.assert_array_equal(tensor, kept[name], err_msg=name)
            continue
        scale = scales[name + SCALE]  # a row's largest is 127 of it, and halves have 11 bits
        off = abs(tensor * scale - kept[name]) / scale
        assert off.max() < 0.5 + 127 / 2**11, name


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A committed repository to publish in; what is made is made from a clean commit."""
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q")
    (root / "README.md").write_text("x")
    commit(root)
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(machine, "git_state", lambda: {"commit": "a" * 40, "dirty": False})
    monkeypatch.setattr(dream_page, "PLAYED", NEW_STEPS)
    return root


def test_publishing_writes_a_game_and_lists_it_from_a_clean_tree_only(checkout):
    run = tiny_run()
    files = dream_page.publish([run], root=checkout)
    assert [path.name for path in files] == ["dream-pong.js", "games.js"]
    assert '"file": "dream-pong.js"' in files[1].read_text()
    assert dream_page.read(files[0])["made_by"]["commit"] == "a" * 40
    assert "needs a clean git tree" in refusal(dream_page.publish, [run], root=checkout)


def test_publishing_videos_writes_what_the_control_page_shows_from_a_clean_tree_only(checkout):
    run = tiny_run()
    (path,) = publish_videos([run], steps=20, root=checkout)
    figures = checkout / "figures"
    assert path.relative_to(figures).as_posix() == f"{run.profile.name}/{run.name}/play.mp4"
    assert [*published.of_agents("play", figures=figures).values()] == [path]
    assert len(imageio.mimread(path)) == 20
    assert "needs a clean git tree" in refusal(publish_videos, [run], root=checkout)


@pytest.mark.parametrize("publish", [dream_page.publish, publish_videos])
def test_an_agent_from_a_dirty_tree_is_not_published(checkout, monkeypatch, publish):
    monkeypatch.setattr(machine, "git_state", lambda: {"commit": "a" * 40, "dirty": True})
    assert "not made from a clean commit" in refusal(publish, [tiny_run()], root=checkout)
    assert [path.name for path in checkout.iterdir() if path.name != ".git"] == ["README.md"]


# ---- the command line

def test_play_interactive_writes_a_page_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setattr(__main__.webbrowser, "open", lambda address: pytest.fail(address))
    written = {}
    monkeypatch.setattr(dream_page, "dream_of", lambda run, num_steps: written.update(run=run) or {
        "game": "breakout", "tensors": {}})
    out = tmp_path / "page"
    assert __main__.main(["play", "--interactive", "--game", "breakout", "--profile", "audit",
                          "--out", str(out)]) == 0
    assert capsys.readouterr().out == "$HD_ARTIFACTS/page/index.html\n"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*dream_page.SCRIPTS, dream_page.LISTED, "dream-breakout.js"])
    assert (written["run"].games, written["run"].profile.name) == (("breakout",), "audit")


@pytest.mark.parametrize("is_there", [False, True])
def test_the_page_is_opened_only_where_there_is_a_screen(tmp_path, monkeypatch, capsys, is_there):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    monkeypatch.setattr(__main__.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if is_there:
        monkeypatch.setenv("DISPLAY", ":0")
    addresses, page = [], tmp_path / "dream" / "index.html"
    monkeypatch.setattr(__main__.webbrowser, "open", addresses.append)
    monkeypatch.setattr(dream_page, "write_page", lambda run, folder: page)
    assert __main__.main(["play", "--interactive"]) == 0
    assert capsys.readouterr().out == "$HD_ARTIFACTS/dream/index.html\n"
    assert addresses == [page.as_uri()] * is_there


@pytest.mark.parametrize(("words", "message"), [
    ("play --interactive --profile smoke", "stage agent is missing for profile smoke, variant base,"
     " seed 0; make it: python -m hd run"),
    ("play --interactive --policy tracker", "it has no policy 'tracker'"),
    ("play --interactive --out {file}", "--interactive writes a folder"),
    ("play --interactive --game doom", "unknown game 'doom'"),
    ("publish --profile audit --weights --dream", "one of --weights, --dream and --video")])
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert __main__.main(words.format(file=tmp_path / "file").split()) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
