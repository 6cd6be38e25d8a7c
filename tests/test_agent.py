"""The online loop: its work, its store, its emulators, and that a killed run ends like another."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import refusal
from torch import nn

from hd import agent, config, experience, play, stages
from hd.agent import Agent, Emulators, chunks_of
from hd.atari import GAMES, AtariGame
from hd.config import AgentConfig, InputError, PlaceModelConfig
from hd.experience import Store
from hd.imagination import imagine
from hd.measure import contact
from hd.place_model import PlaceModel
from hd.report import agent_figures, pictures, tables
from hd.run import runs, training, weights
from hd.run.runs import TimeLimitReached
from hd.run.training import Loss, Unkept

SMOKE = config.PROFILES["smoke"]
CFG = dataclasses.replace(SMOKE.agent, num_steps=320, prefill=256, block=32, model_warmup=3,
                          dreams_warmup=2, num_codes=24)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def tiny_agent(**changes):
    torch.manual_seed(0)
    return Agent(dataclasses.replace(CFG, **changes), SMOKE.place_model, SMOKE.agent_policy, "pong")


def learned(**changes):
    return agent.train(dataclasses.replace(CFG, **changes), SMOKE.place_model, SMOKE.agent_policy,
                       "pong", Unkept())


def agent_run(**overrides):
    fields = {f"agent.{name}": value for name, value in dataclasses.asdict(CFG).items()}
    return runs.start("agent", profile="smoke", games=["pong"], overrides=fields | overrides)


def agent_run_of(game):
    return dataclasses.replace(agent_run(), games=(game,))


def test_the_codec_is_fitted_to_moved_frames_where_it_is_asked_for():
    never, no, yes = (learned(fit_moved=asked)[0].codec.quantizer.codebooks
                      for asked in (None, False, True))
    assert torch.equal(never, no) and not torch.equal(never, yes)


def test_the_work_holds_the_prefill_the_warmup_and_the_blocks_that_fit():
    cfg = AgentConfig(num_steps=1000, prefill=200, block=300, num_emulators=4, model_warmup=120,
                      dreams_warmup=60, model_updates=7, dreams=3)
    assert [tuple(chunk) for chunk in chunks_of(cfg)] == [
        (200, 0, 0), (0, 50, 0), (0, 50, 0), (0, 20, 0), (0, 0, 50), (0, 0, 10),
        (300, 7, 3), (300, 7, 3)]


@pytest.mark.parametrize("changes, message", [
    ({"num_steps": 270}, "270 steps must hold its prefill of 256 and a block of 32"),
    ({"block": 30}, "multiples of the 4 emulators; got 256 and 30"),
    ({"surprise_share": 0.99}, "shares of one batch: at most 1 together; got 0.99 and 0.06")])
def test_budgets_that_do_not_fit_are_refused_before_any_work(changes, message):
    assert message in refusal(learned, **changes)


def test_an_agent_learns_one_game_only():
    with pytest.raises(InputError, match="an agent learns one game; got pong, breakout"):
        stages.make(runs.start("agent", profile="smoke", games=["pong", "breakout"]))


def filled_store(lengths=(5, 4), steps=9):
    """Two emulators: episodes of 5 steps in the first, of 4 in the second; what is stored at a
    step is its number."""
    cfg = dataclasses.replace(CFG, num_emulators=2, num_levels=2, forget=0.0)
    store = Store(cfg, num_places=3)
    for t in range(steps):
        both = np.full(2, t)
        ends = np.array([(t + 1) % length == 0 for length in lengths])
        store.tokens[0, :, t] = t
        store.add(np.full((2, 84, 84), t), np.full((2, 128), t), both, both, ~ends, ends)
    return store


def test_windows_repeat_an_episodes_first_step_and_know_no_action_before_it():
    store = filled_store()
    tokens, actions = store.windows(np.array([0, 0, 1]), np.array([6, 4, 4]), 3)
    assert tokens.shape == (3, 3, 2, 3)
    assert tokens[:, :, 0, 0].tolist() == [[5, 5, 6], [2, 3, 4], [4, 4, 4]]
    assert actions.tolist() == [[0, 5, 6], [2, 3, 4], [0, 0, 4]]


def test_batches_hold_what_came_next_and_no_step_of_the_next_episode():
    store = filled_store()
    batch = store.model_batch(np.random.default_rng(0), 200, 3)
    now, after = batch["tokens"][:, -1, 0, 0].long(), batch["next"][:, 0, 0].long()
    goes_on = batch["continues"] > 0
    assert goes_on.any() and (~goes_on).any()
    assert torch.equal(after[goes_on], now[goes_on] + 1)
    assert torch.equal(after[~goes_on], now[~goes_on])
    assert torch.equal(batch["rewards"], now.float()) and now.max() == 7  # 8 has no next step yet


def test_the_steps_of_a_batch_are_moved_alike_and_it_says_by_how_much():
    cfg = dataclasses.replace(CFG, num_emulators=1, num_steps=100, num_levels=1, forget=0.0)
    store = Store(cfg, num_places=1, shifts=[(0, 0), (3, -2), (-1, 5)])
    for t in range(60):
        store.tokens[:, 0, t] = np.array([100, 150, 200])[:, None, None] + t % 50
        one = np.ones(1)
        store.add(np.zeros((1, 84, 84)), np.zeros((1, 128)), one, one, one, ~one.astype(bool))
    batch = store.model_batch(np.random.default_rng(0), 400, 3)
    moved = {(0, 0): 2, (3, -2): 3, (-1, 5): 4}
    seen = [moved[tuple(shift)] for shift in (batch["shift"] * 84).round().int().tolist()]
    assert set(seen) == {2, 3, 4} and 0.3 < np.mean(np.array(seen) == 2) < 0.6
    assert (batch["tokens"][:, :, 0, 0] // 50 == torch.tensor(seen)[:, None]).all()
    assert (batch["next"][:, 0, 0] // 50 == torch.tensor(seen)).all()


def test_steps_shortly_before_outcomes_are_learned_from_more_often():
    cfg = dataclasses.replace(CFG, num_emulators=2, num_steps=2000, num_levels=1,
                              outcome_share=0.4, recent_share=0.0)
    store, rng = Store(cfg, num_places=1), np.random.default_rng(0)
    store.length, store.continues[:] = 900, 1
    assert len(store.pick_before_outcomes(rng, 10)[0]) == 0
    store.rewards[0, 400], store.starts[1, 300:] = -1, 300
    store.continues[1, 302] = 0
    emulators, times = store.pick_before_outcomes(rng, 4000)
    assert set(zip(emulators.tolist(), times.tolist())) == {
        *((0, t) for t in range(393, 401)), *((1, t) for t in range(300, 303))}
    store.tokens[0, 0, 393:401] = 1
    batch = store.model_batch(rng, 5000, 2)  # nothing is surprising: nothing was measured
    assert (batch["tokens"][:, -1] == 1).float().mean().item() == pytest.approx(0.2, abs=0.03)


class Foretells(torch.nn.Module):
    """A world model to which a step is as surprising as its number says."""

    def __init__(self):
        super().__init__()
        self.cfg = dataclasses.replace(PlaceModelConfig(), steps=3)
        self.register_buffer("codebooks", torch.zeros(1))
        self.asked = 0

    def surprise(self, batch):
        self.asked += len(batch["actions"])
        return batch["tokens"][:, -1, 0, 0].float()


def test_steps_that_were_foretold_badly_are_learned_from_more_often():
    store, rng, model = filled_store(), np.random.default_rng(0), Foretells()
    assert store.pick_surprising(rng, 5)[0].tolist() == [], "nothing is measured yet"
    store.measure_surprise(model, rng, 0)
    assert model.asked == 16, "of nine steps of two emulators the last has no next one"
    assert store.surprise[0, :9].tolist() == [0, 1, 2, 3, 0, 5, 6, 7, 0], "step 4 ends a game"
    emulators, times = store.pick_surprising(rng, 40_000)
    drawn = np.zeros_like(store.surprise)
    np.add.at(drawn, (emulators, times), 1)
    expected = store.surprise**experience.SURPRISE_POWER
    assert drawn / len(times) == pytest.approx(expected / expected.sum(), abs=0.01)


def test_only_what_is_new_and_some_of_what_is_old_is_measured_again():
    store, rng, model = filled_store(), np.random.default_rng(0), Foretells()
    store.measure_surprise(model, rng, 6)
    assert model.asked == 2 * 2 + experience.REMEASURED
    assert store.surprise[:, 6:8].tolist() == [[6, 7], [6, 0]]


def test_a_share_of_the_batch_is_drawn_by_surprise():
    store = filled_store()
    store.cfg = dataclasses.replace(store.cfg, surprise_share=0.5, outcome_share=0.0,
                                    recent_share=0.0)
    store.surprise[1, 6] = 3.0
    store.weigh_surprise()
    now = store.model_batch(np.random.default_rng(0), 4000, 3)["tokens"][:, -1, 0, 0]
    assert (now == 6).float().mean().item() == pytest.approx(0.5 + 0.5 / 8, abs=0.02)


def test_forgotten_changes_show_what_was_there_or_nothing():
    tokens = np.full((4000, 2, 1, 5), 3, np.uint8)
    tokens[:, 1, :, :2] = 7  # two of five places change
    seen = experience.forget_changes(tokens, np.random.default_rng(0), 0.5)
    assert seen.dtype == np.uint8 and (seen[:, 0] == 3).all() and (seen[:, 1, :, 2:] == 3).all()
    now = seen[:, 1, 0, :2]
    for value, share in ((7, 0.75), (3, 0.125), (0, 0.125)):
        assert (now == value).mean() == pytest.approx(share, abs=0.02)
    whole_rows = (now == 7).all(1).mean()
    assert whole_rows == pytest.approx(0.5 + 0.5 * 0.25, abs=0.03)
    assert np.array_equal(experience.forget_changes(tokens, np.random.default_rng(0), 0.0), tokens)


def test_shifts_begin_with_none_and_stay_within_half_a_place():
    shifts = agent.shifts_of(AgentConfig(patch=12, shifts=200), seed=0)
    assert shifts[0].tolist() == [0, 0] and np.abs(shifts).max() == 6
    assert np.array_equal(shifts, agent.shifts_of(AgentConfig(patch=12, shifts=200), seed=0))
    assert agent.shifts_of(AgentConfig(shifts=0), seed=0).tolist() == [[0, 0]]


def test_recent_steps_are_picked_more_often():
    cfg = dataclasses.replace(CFG, num_emulators=2, num_steps=2000, recent_steps=200,
                              recent_share=0.5)
    store = Store(cfg, num_places=3)
    store.length = 1000
    _, times = store.pick(np.random.default_rng(0), 20_000)
    assert times.max() == 998
    assert (times >= 899).mean() == pytest.approx(0.5 + 0.5 * 100 / 999, abs=0.02)


def test_emulators_catch_up_to_the_same_frames():
    cfg = dataclasses.replace(CFG, num_emulators=3, num_steps=600)
    first, store = Emulators(cfg, "breakout", 4), Store(cfg, num_places=3)
    rng = np.random.default_rng(0)
    for t in range(150):
        actions = rng.choice(GAMES["breakout"].actions, 3)
        seen = first.frames.copy(), first.ram.copy()
        store.add(*seen, actions, *first.step(actions, t))
    assert store.ends.any()
    again = Emulators(cfg, "breakout", 4)
    again.catch_up(store)
    assert np.array_equal(again.frames, first.frames) and np.array_equal(again.ram, first.ram)
    assert np.array_equal(again.lives, first.lives)


def test_a_lost_life_ends_the_dream_but_not_the_episode():
    for life_ends in (True, False):
        cfg = dataclasses.replace(CFG, num_emulators=1, life_ends=life_ends)
        emulators, lost = Emulators(cfg, "breakout", 0), []
        for t in range(120):
            before = emulators.lives[0]
            _, continues, ends = emulators.step([1 if t % 3 else 3], t)
            if emulators.lives[0] < before and not ends[0]:
                lost.append(continues[0])
        assert lost and set(lost) == {0.0 if life_ends else 1.0}


def test_the_policy_sees_in_the_real_game_what_it_sees_in_a_dream():
    """The same episode, played through hd.play and read from the store as contexts of dreams."""
    cfg = dataclasses.replace(CFG, num_emulators=1)
    made, emulators = tiny_agent().eval(), Emulators(cfg, "pong", 7)
    store = Store(cfg, made.codec.num_places)
    rng = np.random.default_rng(1)
    for t in range(60):
        actions = rng.choice(GAMES["pong"].actions, 1)
        seen = emulators.frames.copy(), emulators.ram.copy()
        store.add(*seen, actions, *emulators.step(actions, t))
    made.fit_codec(store.frames[0, :60], seed=0)
    store.tokens[0, 0, :60] = made.codec.encode(store.frames[0, :60]).numpy()

    in_play, played = [], iter(store.actions[0, :60])

    def record(features, generator):
        in_play.append(features.clone())
        return torch.tensor([next(played)])

    made.policy.actor.act = record
    act, frames = made.act(), store.frames[0]
    for t in range(60):
        stack = frames[np.maximum(np.arange(t - 3, t + 1), 0)][None]
        act(play.Observation(stack, store.ram[:1, t], np.zeros(1, int), np.array([t])), None)
    steps = made.model.cfg.steps
    for t in range(60):
        tokens, actions = store.windows(np.array([0]), np.array([t]), steps)
        rollout = imagine(made.model, torch.from_numpy(tokens).long(),
                          torch.from_numpy(actions[:, :-1]), lambda features, generator:
                          torch.zeros(1, dtype=torch.int64), horizon=1, features="hidden",
                          generator=torch.Generator().manual_seed(0))
        assert torch.equal(rollout.features[:, 0], in_play[t]), t


@pytest.mark.parametrize("matrix_lr", [None, 0.02])
def test_a_run_that_is_stopped_anywhere_ends_with_the_same_bits(matrix_lr, monkeypatch):
    asked = {} if matrix_lr is None else {"place_model.matrix_lr": matrix_lr}
    run = agent_run(**asked)
    whole = stages.make(run)
    expected = stages.load(run).state_dict()
    other = agent_run(**asked | {"agent.eval_episodes": 3})  # another identity, the same work
    stop_at = iter([1, 2, 4, 6, 10_000])
    for _ in range(4):
        left = next(stop_at)

        def must_stop(self, *, margin=0.0, counted=[0], left=left):  # noqa: B006
            counted[0] += 1
            return counted[0] >= left

        monkeypatch.setattr(runs.Run, "must_stop", must_stop)
        try:
            continued = stages.make(other)
            break
        except TimeLimitReached as stopped:
            assert "with a checkpoint; the same command continues it" in str(stopped)
    else:
        monkeypatch.setattr(runs.Run, "must_stop", lambda self, *, margin=0.0: False)
        continued = stages.make(other)
    found = stages.load(other).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    strip = [{key: value for key, value in point.items() if key != "minutes"}
             for point in continued["history"]]
    assert strip == [{key: value for key, value in point.items() if key != "minutes"}
                     for point in whole["history"]]
    assert not list((other.folder / "blocks").glob("*"))


def test_what_plays_is_the_average_of_what_learned():
    made, followed = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    cfg = dataclasses.replace(SMOKE.place_model, ema=0.75)
    learner = agent._Learner(made, cfg, Unkept(), "tiny", "place_model", average=followed)
    expected = None
    for step, value in enumerate([8.0, 4.0, 0.0, 4.0, 8.0, 0.0]):
        nn.init.constant_(made.weight, value)
        learner._follow(step)
        share = max(1 / (step + 1), 0.25)
        expected = value if expected is None else expected + share * (value - expected)
        assert followed.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize(("fields", "says"), [
    ({"place_model.accumulate": 2}, "must be 1 and schedule constant; got 2 and constant"),
    ({"agent_policy.schedule": "cosine"}, "schedule constant; got 1 and cosine"),
    ({"agent_policy.ppo_minibatches": 7}, "must be a multiple of its ppo_minibatches, 7; got "),
    ({"place_model.matrix_lr": 0.02, "place_model.weight_decay": 0.1}, "decay of 0; got 0.1"),
])
def test_what_the_loop_cannot_learn_by_is_refused_before_any_work(fields, says, tmp_path,
                                                                  monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    run = agent_run(**fields)
    assert says in refusal(stages.make, run)
    assert not run.folder.exists()


def test_a_loss_that_is_not_finite_names_what_to_lower_and_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HD_ARTIFACTS", str(tmp_path))
    run = agent_run()
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint.json").write_text("{}")
    model = nn.Linear(1, 1)
    learner = agent._Learner(model, SMOKE.place_model, run, "agent model", "place_model")
    nn.init.constant_(model.weight, float("nan"))
    model.loss = lambda batch: Loss(model.weight.sum(), {})
    with pytest.raises(training.NonFiniteLoss, match=(
            "^place_model: the loss or a weight is not finite at or before step 2; the last good "
            r"checkpoint is .*agent.*checkpoint.json; lower place_model.lr")):
        learner.learn(2, lambda i: {})


def test_updates_as_a_gpu_makes_them_are_the_updates(monkeypatch):
    def wrapped(function):
        return lambda **inputs: function(**inputs)

    cfg, ends = SMOKE.place_model, []
    for capture in (lambda function: function, wrapped):
        monkeypatch.setattr(agent, "captured", capture)
        torch.manual_seed(0)
        model = PlaceModel(cfg, torch.randn(3, 16, 144), 49)
        learner = agent._Learner(model, cfg, Unkept(), "tiny", "place_model")
        learner.slow_down(0.5)

        def batches(i):
            generator = torch.Generator().manual_seed(i)
            return {"tokens": torch.randint(16, (5, cfg.steps, 3, 49), generator=generator),
                    "next": torch.randint(16, (5, 3, 49), generator=generator),
                    "actions": torch.randint(18, (5, cfg.steps), generator=generator),
                    "rewards": torch.zeros(5), "continues": torch.ones(5)}

        learner.learn(3, batches)
        ends.append(model.state_dict())
    assert learner.is_captured
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, msg=name)


def test_the_policy_dreams_in_a_copy_that_is_no_part_of_what_is_kept():
    made, _ = learned()
    assert made.policy.dream_in is not made.model
    assert not [name for name in made.state_dict() if name.startswith("policy.dream")]
    live = dict(made.model.named_parameters())
    assert any(not torch.equal(part, live[name])  # as it was before the last updates
               for name, part in made.policy.dream_in.named_parameters())


def test_a_damaged_block_is_named_with_what_to_do(monkeypatch):
    run = agent_run(**{"agent.eval_episodes": 4})
    counted = []
    monkeypatch.setattr(runs.Run, "must_stop",
                        lambda self, *, margin=0.0: counted.append(1) or len(counted) == 3)
    with pytest.raises(TimeLimitReached):
        stages.make(run)
    block = run.folder / "blocks" / "000000.npz"
    block.write_bytes(block.read_bytes()[:1000])
    message = refusal(stages.make, run)
    assert "000000.npz is damaged" in message and "python -m hd run 10_agent" in message


def test_a_finished_agent_plays_whole_episodes_and_its_table_says_how_it_learned():
    run = agent_run(**{"agent.eval_episodes": 1})
    stages.make(run)
    table = stages.measure(run).set_index("metric")
    assert table.loc["episodes", "value"] == 1
    assert -21 <= table.loc["real_return", "value"] <= 21
    assert runs.load_beside(run, "episodes")["player"].tolist() == ["policy", "random", "tracker"]
    assert runs.load_beside(run, "history")["step"].tolist()[-1] == 320


def test_each_game_can_be_played_by_an_untrained_agent():
    for game in GAMES:
        made = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, game).eval()
        frame, info = AtariGame(game).reset(seed=0)
        act = made.act()
        seen = play.Observation(np.repeat(frame[None], 4, 0)[None], info["ram"][None],
                                np.zeros(1, int), np.zeros(1, int))
        assert act(seen, torch.Generator().manual_seed(0)).item() in GAMES[game].actions


def test_the_report_shows_the_agents_of_the_largest_profile_that_has_any(tmp_path, capsys):
    assert tables.agents_in_short(tmp_path) is None and tables.agents(tmp_path) is None
    assert tables.agent_points(tmp_path) == {}
    assert "python -m hd run agent --game pong" in capsys.readouterr().out
    run = agent_run(**{"agent.eval_episodes": 1})
    stages.make(run)
    stages.measure(run)
    made = run.root / "results" / "agent"
    for profile, steps in (("audit", 320), ("quick", 64)):
        folder = tmp_path / profile / "agent"
        folder.mkdir(parents=True)
        for path in made.glob(f"{run.name}*"):
            shutil.copy(path, folder / path.name)
        record = json.loads((folder / f"{run.name}.json").read_text())
        history = pd.DataFrame({"step": [steps], "minutes": [1.5], "return": [-20.5]})
        history.to_csv(folder / f"{run.name}-history.csv", index=False)
        record |= {"profile": profile, "beside": {}}
        (folder / f"{run.name}.json").write_text(json.dumps(record))
    found = tables.agents(tmp_path)
    assert "profile audit" in capsys.readouterr().out
    assert set(found["game"]) == {"pong"} and "real_return" in found.index
    for path in (tmp_path / "quick" / "agent").glob(f"{run.name}.*"):
        shutil.copy(path, path.with_name(f"agent_rates.falling-pong-seed0{path.suffix}"))
    everywhere = tables.runs_of_agents(tmp_path)
    assert everywhere["profile"].tolist() == ["audit", "quick", "quick"]
    assert everywhere["variant"].tolist() == ["base", "base", "agent_rates.falling"]
    assert everywhere["return (random play)"].tolist() == 3 * ["{} ({})".format(
        *found.loc["real_return", ["mean", "baseline"]])]
    short = tables.agents_in_short(tmp_path)
    assert "Pong, audit: 320 steps" in capsys.readouterr().out and list(short) == ["Pong"]
    returned, by_chance = found.loc["real_return", ["mean", "baseline"]]
    assert short.loc["return (random play)", "Pong"] == (
        f"{returned} ({by_chance})")
    assert not found.index.str.startswith("training_return").any()
    curve, smaller = tables.agent_points(tmp_path)["pong"].values()
    assert [name.partition(",")[0] for name in tables.agent_points(tmp_path)["pong"]] == [
        "audit", "quick"], "the largest profile first"
    assert smaller[0]["step"] == 64
    assert curve[:-1] == [{"step": 320, "minutes": 1.5, "return": -20.5}]
    assert curve[-1]["is_final"] and curve[-1]["step"] == run.cfg.num_steps
    assert curve[-1]["return"] == float(found.loc["real_return", "mean"])
    fig = agent_figures.agent_curves(tables.agent_points(tmp_path), {"pong": {"Human": 14.6}})
    assert [ax.get_ylabel() for ax in fig.axes] == ["Pong, return", ""], "one for both panels"
    stars = [line for line in fig.axes[0].get_lines() if line.get_marker() == "*"]
    assert [line.get_ydata().tolist() for line in stars] == [[curve[-1]["return"]]] * 2
    mark = next(line for line in fig.axes[1].get_lines() if line.get_marker() == "_")
    assert mark.get_xydata().tolist() == [[100, 14.6]], "where others were scored"


def test_the_report_shows_the_points_that_agents_won_while_they_learned(tmp_path, monkeypatch):
    assert tables.shares_won(tmp_path).empty
    rows = pd.DataFrame({"metric": ["real_return", "share_won", "share_won"], "game": "pong",
                         "seed": 0, "step": [np.nan, 64, 128], "value": [-20.0, 0.1, 0.4],
                         "baseline": [-20.5, 0.05, 0.05]})
    monkeypatch.setattr(tables, "agents_of",
                        lambda results_dir: {"pong": ("audit", "base-pong")})
    monkeypatch.setattr(tables, "fresh_or_published", lambda *args: rows)
    found = tables.shares_won(tmp_path)
    assert found["value"].tolist() == [0.1, 0.4]
    (ax,) = agent_figures.share_won_curves(found).axes
    drawn = [line.get_ydata() for line in ax.get_lines()]
    assert drawn[0].tolist() == [0.1, 0.4] and set(drawn[1]) == {0.05} and set(drawn[2]) == {0.5}


def test_published_agents_are_restored_and_play_the_same(tmp_path):
    run = agent_run(**{"agent.eval_episodes": 1})
    stages.make(run)
    made = stages.load(run)
    weights.store(run, root=tmp_path)
    assert [path.name for path in (tmp_path / "results" / "smoke" / "checkpoints").iterdir()] == [
        "base-pong"]
    shutil.rmtree(run.folder)
    assert weights.restore(run, root=tmp_path) == ["agent"]
    restored = stages.load(run)
    for name, part in made.state_dict().items():
        if not name.startswith(weights.LEFT_OUT["agent"]):
            assert torch.allclose(restored.state_dict()[name], part, atol=2e-3, rtol=1e-3), name
    frame, info = AtariGame("pong").reset(seed=0)
    seen = play.Observation(np.repeat(frame[None], 4, 0)[None], info["ram"][None],
                            np.zeros(1, int), np.zeros(1, int))
    assert restored.act()(seen, torch.Generator().manual_seed(0)).item() in GAMES["pong"].actions


def test_contacts_are_shown_in_the_real_game_and_dreamed(monkeypatch):
    """A tracker in the place of the agent's policy, which meets the ball."""
    torch.manual_seed(0)
    made = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, "pong").eval()
    frames = contact.recorded("pong", play.random_act("pong"), CFG, num_steps=400, seed=1).frames
    made.fit_codec(frames[:, :200].reshape(-1, 84, 84), seed=0)
    monkeypatch.setattr(made, "act", lambda: play.tracker_act("pong"))
    monkeypatch.setattr(stages, "load", lambda run: made)
    run = dataclasses.replace(agent_run(), profile=dataclasses.replace(
        SMOKE, agent=dataclasses.replace(SMOKE.agent, num_steps=2000)))
    found = pictures.contacts(run, count=4, num_steps=1200)
    assert 2 <= len(found) <= 4
    for each in found:
        assert each["real game"].shape == each["dream"].shape == (GAMES["pong"].lost_within, 84, 84)
        assert each["dreamed_loss"] >= 0
    assert len(agent_figures.contacts(found).axes) == len(found) + len(found) % 2
    assert pictures.contacts(run, num_steps=80) == []
    assert not any(ax.get_visible() for ax in agent_figures.contacts([]).axes)


def test_each_further_level_of_codes_decodes_closer_to_the_frame(monkeypatch):
    torch.manual_seed(0)
    made = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, "pong").eval()
    frames = contact.recorded("pong", play.random_act("pong"), CFG, num_steps=400, seed=1).frames
    made.fit_codec(frames[:, :200].reshape(-1, 84, 84), seed=0)
    monkeypatch.setattr(stages, "load", lambda run: made)
    found = pictures.levels(agent_run(), num_steps=200)
    assert list(found) == ["real game", "1 level", "2 levels", "3 levels"]
    real = found["real game"].astype(float)
    errors = [((frame - real) ** 2).mean() for frame in list(found.values())[1:]]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]
    whole = made.codec.decode(made.codec.encode(found["real game"][None]))[0].numpy()
    np.testing.assert_array_equal(found["3 levels"], whole)
    titles = [ax.get_title() for ax in agent_figures.levels(found, "pong").axes]
    assert titles[0] == "real game" and titles[1].startswith("1 level\nerror ")


def test_a_held_actions_returns_are_drawn_by_its_name(monkeypatch):
    made = SimpleNamespace(act=lambda: None)
    monkeypatch.setattr(stages, "load", lambda run: made)
    monkeypatch.setattr(contact, "held_returns",
                        lambda *args, seed: {0: (0.5, -0.5), 3: (0.0, 1.0)})
    found = pictures.held_actions(agent_run())
    assert found == {"noop": (0.5, -0.5), "right": (0.0, 1.0)}
    (ax,) = agent_figures.held_actions(found, "pong").axes
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == [0.5, 0.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["noop", "right"]
    assert pictures.held_actions(agent_run(**{"agent.learner": "dqn"})) == {}
    assert agent_figures.held_actions({}, "pong").get_suptitle() == "Pong: no model to dream with"


def test_half_of_the_pictures_are_of_one_kind_where_there_are_enough():
    rng = np.random.default_rng(0)
    few = np.array([True] * 2 + [False] * 9)
    assert few[pictures._half_of_each(few, 6, rng)].sum() == 2
    assert len(pictures._half_of_each(few, 6, rng)) == 6
    many = np.array([True] * 9 + [False] * 9)
    assert many[pictures._half_of_each(many, 6, rng)].sum() == 3
    assert len(pictures._half_of_each(~few[:3], 6, rng)) == 3


def test_an_agent_may_go_on_from_the_world_model_of_others_that_learn_first(monkeypatch, capsys):
    run = agent_run(**{"agent.start_from": "others"})
    (before,), own = run.upstream, agent_run()
    assert before.games == ("ms_pacman",) and before.upstream[0].games == ("breakout",)
    assert before.upstream[0].identity == agent_run_of("breakout").identity, "that of base"
    assert run.identity != own.identity and own.upstream == ()
    given = {}

    def train(cfg, model_cfg, policy_cfg, game, run, *, start):
        given[game] = start
        return None, {}

    monkeypatch.setattr(stages.agent, "train", train)
    monkeypatch.setattr(stages, "load", lambda run: type("Made", (), {"model": run.games[0]}))
    stages.make(run)
    assert given == {"breakout": None, "ms_pacman": "breakout", "pong": "ms_pacman"}
    assert "first an agent of ms_pacman" in capsys.readouterr().out
    wrong = agent_run(**{"agent.start_from": ("breakout", "pong")})
    assert refusal(getattr, wrong, "upstream").startswith("an agent of pong may start from agents")
    assert "unknown game" in refusal(
        getattr, agent_run(**{"agent.start_from": ("chess",)}), "upstream")
    several = dataclasses.replace(run, games=("pong", "breakout"))
    assert refusal(getattr, several, "upstream").startswith("an agent learns one game")


def test_what_a_model_learned_of_single_codes_stays_behind():
    torch.manual_seed(0)
    one, other = (Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, game).model
                  for game in ("pong", "breakout"))
    before = {name: part.clone() for name, part in other.state_dict().items()}
    for part in one.parameters():
        nn.init.normal_(part)
    other.go_on_from(one)
    same = {name for name, part in other.state_dict().items() if torch.equal(part, before[name])}
    assert same == {"codebooks", "code_embedding", "key_embedding", "code_bias"}


def test_where_an_agents_model_starts_decides_what_it_learns():
    torch.manual_seed(1)
    start = Agent(CFG, SMOKE.place_model, SMOKE.agent_policy, "breakout").model
    made = [agent.train(CFG, SMOKE.place_model, SMOKE.agent_policy, "pong", Unkept(seed=0),
                        start=first)[0] for first in (start, None)]
    weights_of = [one.model.inputs.weight for one in made]
    assert not torch.allclose(*weights_of)
