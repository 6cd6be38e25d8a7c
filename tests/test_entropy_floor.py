"""hd.measure.entropy_floor: branches of the emulator, and steps that look alike."""

import dataclasses
import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tiny import refusal

from hd import collection, encoder
from hd.atari import GAMES, AtariGame
from hd.config import EncoderConfig, EntropyFloorConfig, FramesConfig, InputError
from hd.measure import entropy_floor
from hd.measure.entropy_floor import (
    branch,
    cross_pairs,
    disagreement,
    disagreements,
    entropy,
    fresh_states,
    guess_errors,
    joint_ids,
    look_alike,
    open_nats,
    twin_rows,
)
from hd.report import figures
from hd.run import runs
from hd.run.runs import row


@pytest.fixture(scope="module")
def states():
    """Six states of Breakout, whose paddle moves with every action at once."""
    return list(itertools.islice(
        fresh_states("breakout", np.random.default_rng(5), FramesConfig()), 6))


@pytest.fixture(scope="module")
def env():
    game = AtariGame("breakout")
    game.reset(seed=1)
    return game


def exact_outcomes(env, state, sticky):
    """{frame: probability} by hand: the old action is held for j of the four emulator frames."""
    shares = {}
    for held in range(5):
        env.sticky, env.np_random = 0.5, None
        env.restore_state(state.emulator)
        draws = np.where(np.arange(4) < held, 0.0, 1.0)
        env.np_random = SimpleNamespace(random=lambda n, draws=draws: draws)
        frame = env.step(state.action)[0].tobytes()
        chance = sticky ** held * (1 - sticky if held < 4 else 1)
        shares[frame] = shares.get(frame, 0.0) + chance
        env.np_random = np.random.default_rng(0)
    assert sum(shares.values()) == pytest.approx(1)
    return shares


# ---- branches

def test_without_sticky_actions_all_branches_of_a_state_are_one(env, states):
    for state in states:
        found = branch(env, state, sticky=0.0, seeds=range(4))
        assert found.num_outcomes == len(found.frames) == 1
        assert found.which.tolist() == [0] * 4


def test_a_branch_is_the_step_that_the_episode_would_have_taken(env, states):
    state = states[2]
    found = branch(env, state, sticky=0.0, seeds=[3])
    env.sticky = 0.0
    env.restore_state(state.emulator)
    assert (found.frames[0] == env.step(state.action)[0]).all()
    env.restore_state(state.emulator)
    assert (env.render()[..., 0] > 0).any() and (state.frames[-1] == env._frame()).all()


def test_branches_differ_by_their_seeds_alone_and_the_same_seeds_give_the_same(env, states):
    results = [branch(env, state, sticky=0.4, seeds=range(30)) for state in states]
    again = [branch(env, state, sticky=0.4, seeds=range(30)) for state in states]
    assert any(one.num_outcomes > 1 for one in results)
    for one, other in zip(results, again):
        assert (one.which == other.which).all() and (one.frames == other.frames).all()


def test_sampled_branches_come_as_often_as_sticky_actions_make_them(env, states):
    state = next(s for s in states if branch(env, s, sticky=0.5, seeds=range(20)).num_outcomes > 2)
    exact = exact_outcomes(env, state, sticky=0.25)
    found = branch(env, state, sticky=0.25, seeds=range(500))
    shares = np.bincount(found.which) / 500
    sampled = {frame.tobytes(): share for frame, share in zip(found.frames, shares)}
    assert set(sampled) <= set(exact)
    for frame, share in exact.items():  # four standard errors of 500 draws
        assert sampled.get(frame, 0.0) == pytest.approx(share, abs=0.08)


def test_no_code_is_asked_for_where_a_branch_ends_the_game(states):
    class Ending:
        np_random = None

        def restore_state(self, state):
            pass

        def step(self, action):
            ends = self.np_random.random() < 0.5
            return np.zeros((84, 84), np.uint8), 0.0, ends, False, {"ram": np.zeros(128, np.uint8)}

    assert branch(Ending(), states[0], sticky=0.25, seeds=range(20)) is None


def test_fresh_states_have_the_last_frames_and_lie_in_episodes_that_are_not_stored(states):
    for state in states:
        assert state.frames.shape == (3, 84, 84) and state.action in GAMES["breakout"].actions
        assert state.emulator.steps >= entropy_floor.FIRST_STEP
    stored = [collection.play_episode(AtariGame("breakout"), FramesConfig(), seed=0, episode=k)
              for k in range(3)]
    seen = {frame.tobytes() for episode in stored for frame in episode["frames"][20:]}
    moved = [state.frames.tobytes() for state in states]
    assert len(set(moved)) == len(moved)
    stacks = {episode["frames"][t - 2:t + 1].tobytes()
              for episode in stored for t in range(20, len(episode["frames"]))}
    assert len(seen) > 20 and not stacks & set(moved)


# ---- rows of branched states

SMALL = EntropyFloorConfig(num_states=3, num_branches=8, sticky=0.4)


def rows_of_states(cfg=SMALL, *, seed=0):
    states, found = entropy_floor.branched("breakout", cfg, FramesConfig(), seed)
    return entropy_floor.state_rows("breakout", states, found, column_codes)


def column_codes(stacks):
    """A tokenizer that reads where the paddle is (the bottom rows), then that of the frame before,
    then nothing."""
    assert stacks.shape[1:] == (4, 84, 84) and stacks.dtype == np.uint8
    paddle = stacks[:, :, 75:78, 10:74].astype(int).sum(2).argmax(-1)
    return np.stack([paddle[:, 3], paddle[:, 2], np.zeros(len(stacks), int)], 1)


def values(rows):
    return {(entry["metric"], entry["step"]): entry for entry in rows}


def test_the_floor_without_sticky_actions_is_measured_and_is_zero():
    rows = values(rows_of_states())
    assert rows["branching_states[sticky 0]", None]["value"] == 0
    assert rows["branching_states[sticky 0]", None]["baseline"] == (
        rows["branching_states[sticky 0.4]", None]["value"]) > 0
    for level in range(3):
        for kind in ("floor", "error"):
            assert rows[f"l{level}_state_{kind}[sticky 0]", None]["value"] == 0
    assert rows["l0_state_floor[sticky 0.4]", None]["value"] > 0
    # The frame before the action is the same in all branches, and so is a code of it.
    assert rows["l1_state_floor[sticky 0.4]", None]["value"] == 0
    assert rows["l1_state_floor[sticky 0.4]", None]["baseline"] > 0
    assert rows["states", None]["value"] == 3
    assert {entry["split"] for entry in rows.values()} == {"fresh"}


def test_the_same_seed_measures_the_same_and_another_seed_other_states():
    first, again = (rows_of_states() for _ in range(2))
    assert first == again
    assert first != rows_of_states(seed=1)


def test_at_no_sticky_actions_each_state_is_branched_that_one_way():
    cfg = dataclasses.replace(SMALL, sticky=0.0)
    states, found = entropy_floor.branched("breakout", cfg, FramesConfig(), 0)
    assert len(states) == 3 and list(found) == [0.0]
    assert all(len(one.which) == 8 and one.num_outcomes == 1 for one in found[0.0])
    rows = entropy_floor.state_rows("breakout", states, found, column_codes)
    assert values(rows)["branching_states[sticky 0]", None]["baseline"] is None


def test_both_floors_of_every_game_stand_in_the_table():
    codes = np.tile([[1, 2, 3], [4, 5, 6]], (4, 1))
    windows = windows_of(codes, [0] * 8, [0] * 4 + [1] * 4)
    windows.data.games, windows.seed = ("breakout",), 0
    cfg = dataclasses.replace(SMALL, contexts=(1, 2))
    rows = entropy_floor.rows_of(windows, column_codes, cfg, FramesConfig())
    assert rows == rows_of_states(cfg) + twin_rows(windows, "breakout", (1, 2))


def test_stacks_become_codes_as_stored_steps_do(monkeypatch):
    class Eyes:
        cfg = EncoderConfig(precision="float32")

        def __call__(self, frames):
            return frames[:, -1, 0, :2].float().repeat(1, 192)

    class Codes:
        def encode(self, embeddings):
            return embeddings[:, :3].long()

    monkeypatch.setattr(encoder, "EMBED_ROWS", 2)
    stacks = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), np.uint8)
    found = entropy_floor.encoder_to_codes(Eyes(), Codes())(stacks)
    assert found.tolist() == stacks[:, -1, 0, [0, 1, 0]].tolist()


@pytest.mark.parametrize(("name", "wrong"), [
    ("num_states", 0), ("num_branches", 1), ("sticky", 1.0), ("contexts", (0, 2))])
def test_numbers_that_measure_nothing_are_refused_before_any_work(name, wrong):
    message = refusal(runs.start, "entropy_floor", profile="smoke", games=["breakout"],
                      overrides={f"entropy_floor.{name}": wrong})
    assert message.startswith(f"entropy_floor.{name} must be like ")


# ---- counting

def test_entropy_is_the_plug_in_estimate_with_miller_and_madows_correction_and_a_limit():
    assert entropy(np.array([6, 2])) == pytest.approx(
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25) + 1 / 16)
    assert entropy(np.array([9])) == 0
    assert entropy(np.ones(5)) == pytest.approx(np.log(5))  # not log 5 + 4/10


def test_the_correction_brings_few_branches_nearer_to_the_true_entropy():
    p = np.array([0.75, 0.1875, 0.046875, 0.01171875, 0.00390625])  # of sticky actions
    truth = -(p * np.log(p)).sum()
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.choice(5, 32, p=p)) for _ in range(2000)]
    draws = [counts[counts > 0] for counts in draws]
    plain = np.mean([-(c / 32 * np.log(c / 32)).sum() for c in draws])
    corrected = np.mean([entropy(c) for c in draws])
    assert abs(corrected - truth) < 0.03 < abs(plain - truth)


def test_levels_add_up_and_are_given_the_levels_before_them():
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 3, 4000)
    codes = np.stack([coarse, 2 * coarse, rng.integers(0, 4, 4000)], 1)
    found = open_nats(codes)
    assert found[0] == pytest.approx(np.log(3), abs=0.01)
    assert found[1] == 0
    assert found[2] == pytest.approx(np.log(4), abs=0.01)
    errors = guess_errors(codes)
    assert errors == pytest.approx([2 / 3, 0, 3 / 4], abs=0.03)


def test_the_error_of_the_best_guess_by_hand():
    codes = np.array([[7, 1], [7, 1], [7, 2], [4, 9], [4, 5]])
    assert guess_errors(codes) == pytest.approx([2 / 5, 2 / 5])


def test_joint_ids_are_equal_exactly_where_all_columns_are():
    columns = [np.array([3, 3, 0, 3, 0]), np.array([1, 2, 1, 1, 1])]
    ids = joint_ids(*columns)
    assert ids.tolist() == [1, 2, 0, 1, 0]


# ---- twins

def naive_disagreement(groups, outcomes, episodes):
    """The definition, pair by pair."""
    total, count = 0.0, 0
    for group in set(groups):
        members = [i for i, g in enumerate(groups) if g == group]
        pairs = [(i, j) for i, j in itertools.permutations(members, 2)
                 if episodes[i] != episodes[j]]
        if pairs:
            share = np.mean([outcomes[i] != outcomes[j] for i, j in pairs])
            total, count = total + len(members) * share, count + len(members)
    return total / count if count else None


def test_disagreement_equals_its_definition_pair_by_pair():
    rng = np.random.default_rng(7)
    groups, outcomes = rng.integers(5, 14, 60), rng.integers(0, 3, 60)
    episodes = rng.integers(10, 14, 60)
    expected = naive_disagreement(groups.tolist(), outcomes.tolist(), episodes.tolist())
    assert disagreement(groups, outcomes, episodes) == pytest.approx(expected)


def test_members_of_one_episode_are_no_twins():
    groups, outcomes = np.array([4, 4, 4, 6, 6]), np.array([0, 1, 2, 0, 1])
    assert disagreement(groups, outcomes, np.array([0, 0, 0, 1, 1])) is None
    assert cross_pairs(joint_ids(groups), np.array([0, 0, 2, 1, 1])).tolist() == [4, 0]
    assert disagreements(groups, outcomes[None], np.array([0, 0, 2, 1, 1]))[0] == 3 / 5


def test_disagreement_estimates_one_minus_the_sum_of_squares_without_bias():
    p = np.array([0.6, 0.3, 0.1])
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(4000), 3)  # only three members each
    outcomes = rng.choice(3, 12_000, p=p)
    found = disagreement(groups, outcomes, np.tile([0, 1, 2], 4000))
    assert found == pytest.approx(1 - (p ** 2).sum(), abs=0.015)  # three standard errors
    assert found / 2 <= 1 - p.max() <= found


def test_a_level_is_compared_among_those_that_agree_in_the_levels_before():
    groups = np.zeros(4, int)
    following = np.array([[1, 1, 2, 2], [5, 5, 6, 7], [0, 3, 0, 0]])
    share, found = disagreements(groups, following, np.array([0, 1, 2, 3]))
    assert share == 1
    assert found == pytest.approx([8 / 12, 1 / 2, 1])


def windows_of(codes, actions, episode_ids):
    """What twin_rows reads of hd.windows.Windows."""
    ids = np.asarray(episode_ids)
    starts = np.array([np.flatnonzero(ids == e)[0] for e in ids])
    data = SimpleNamespace(in_game=lambda game: np.ones(len(ids), bool), episode_ids=ids,
                           starts=starts, has_next=np.append(ids[1:] == ids[:-1], False))
    return SimpleNamespace(data=data, tokens=np.asarray(codes, np.int16),
                           actions=np.asarray(actions, np.int8))


def test_look_alike_finds_the_same_contexts_as_comparing_windows_of_symbols():
    symbols = np.random.default_rng(4).integers(0, 3, 80)
    found = dict(look_alike(symbols, (1, 3, 4)))
    assert list(found) == [1, 3, 4]
    for k, ids in found.items():
        words = [tuple(symbols[t - k + 1:t + 1]) for t in range(k - 1, 80)]
        same = [[a == b for b in words] for a in words]
        assert ((ids[k - 1:, None] == ids[k - 1:]) == same).all()


def test_a_context_holds_the_action_all_levels_and_nothing_of_other_episodes():
    # Two episodes of four steps with the same codes and actions, but for what is changed.
    codes, actions = np.tile([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1]], (2, 1)), [0, 3, 1, 0] * 2
    ids = [0] * 4 + [1] * 4

    def shares(codes, actions):
        rows = values(twin_rows(windows_of(codes, actions, ids), "pong", (1, 2, 3, 4)))
        return [round(6 * rows["twin_share", k]["value"]) for k in (1, 2, 3, 4)], rows

    # Three steps of each episode have a next one; of those, two have two steps of context, ...
    found, rows = shares(codes, actions)
    assert found == [6, 6, 6, 0]
    assert rows["l0_twin_disagreement", 3]["value"] == 0
    assert rows["l0_twin_disagreement", 3]["baseline"] == pytest.approx(2 / 3)
    assert not any(step == 4 for metric, step in rows if metric != "twin_share")
    changed = codes.copy()
    changed[6, 2] = 0  # the fine code of the third step of the second episode
    assert shares(changed, actions)[0] == [4, 3, 0, 0]
    assert shares(codes, [0, 3, 1, 0, 0, 3, 4, 0])[0] == [4, 3, 0, 0]


# ---- figures

def floor_tables():
    games = ("pong", "breakout")
    floor = [row(f"l{level}_state_floor[{kind}]", value * (level + 1), game=game, split="fresh")
             for game in games for level in range(3)
             for kind, value in (("sticky 0.25", 0.2), ("sticky 0.25, ball in play", 9.0),
                                 ("sticky 0", 0.0))]
    twins = [row("twin_share", 0.5 / k, game=game, split="all", step=k)
             for game in games for k in (1, 2, 4)]
    twins += [row("l0_twin_disagreement", 0.4 / k, game=game, split="all", step=k)
              for game in games for k in (1, 2)]
    model = [row(f"l{level}_cross_entropy", 1.0 + level, game=game, baseline=2.0 + level)
             for game in games for level in range(3)]
    return [pd.DataFrame(rows).assign(stage=stage, variant="base", seed=0)
            for rows, stage in ((floor + twins, "entropy_floor"), (model, "world_model"))]


def test_the_ladder_stands_from_the_ngram_down_to_the_floors():
    fig = figures.floor_ladder(*floor_tables())
    assert [ax.get_title() for ax in fig.axes] == ["Pong, n=1", "Breakout, n=1"]
    heights = [patch.get_height() for patch in fig.axes[0].patches]
    assert heights == pytest.approx([2, 3, 4, 1, 2, 3, 0.2, 0.4, 0.6, 0, 0, 0])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "n-gram", "world model", "floor given the state, sticky 0.25",
        "floor given the state, sticky 0"]
    plt.close(fig)
    floor, model = floor_tables()
    with pytest.raises(InputError, match="no game in common"):
        figures.floor_ladder(floor, model[model["game"] == "ms_pacman"])


@pytest.mark.parametrize(("outcomes", "nats"), [
    ([3, 3, 3, 3], 0), ([1, 2], 1), ([1, 2, 1], 1 / 3 * 1.5 + 2 / 3 * 0.5)])
def test_what_episodes_show_to_be_open_by_hand(outcomes, nats):
    # psi(2) - psi(1) = 1, psi(3) - psi(1) = 1 + 1/2, psi(3) - psi(2) = 1/2.
    n = len(outcomes)
    found = entropy_floor.shown_nats(np.zeros(n, int), np.array([outcomes]), np.arange(n))
    assert found == [pytest.approx(nats)]


def test_of_an_episode_one_step_of_a_context_is_a_draw():
    episodes = np.array([0, 0, 0, 1])
    found = entropy_floor.shown_nats(np.zeros(4, int), np.array([[1, 1, 1, 4]]), episodes)
    assert found == [pytest.approx(1)], "two draws that differ, and not one of four"
    own = entropy_floor.shown_nats(np.zeros(4, int), np.array([[1, 2, 3, 4]]), episodes * 0)
    assert own == [0], "an episode has no twin in itself"


def test_steps_without_a_twin_count_as_nothing_open():
    groups, outcomes = np.array([0, 0, 1, 2]), np.array([[1, 2, 5, 6]])
    assert entropy_floor.shown_nats(groups, outcomes, np.arange(4)) == [pytest.approx(0.5)]


@pytest.mark.parametrize("num_draws", [2, 5, 40])
def test_what_is_shown_is_on_average_at_most_the_entropy_and_nears_it_with_many_draws(num_draws):
    rng, shares = np.random.default_rng(0), np.array([0.5, 0.25, 0.125, 0.125])
    contexts = 4000
    outcomes = rng.choice(4, (contexts * num_draws), p=shares)[None]
    groups = np.repeat(np.arange(contexts), num_draws)
    (found,) = entropy_floor.shown_nats(groups, outcomes, np.arange(contexts * num_draws))
    entropy = -(shares * np.log(shares)).sum()
    terms = [(shares * (1 - shares) ** m).sum() / m for m in range(1, num_draws)]
    assert found == pytest.approx(sum(terms), abs=0.02)  # 4000 contexts scatter it by 0.008 at most
    assert found < entropy + 0.01
    assert num_draws < 40 or found > entropy - 0.02


def test_a_finer_level_is_open_only_given_the_coarser_ones():
    following = np.array([[1, 1, 2, 2], [5, 5, 6, 6]])
    coarse, fine = entropy_floor.shown_nats(np.zeros(4, int), following, np.arange(4))
    assert coarse > 0.5 and fine == 0


def test_the_ladder_has_a_rung_for_the_context_where_it_is_measured():
    floor, model = floor_tables()
    more = pd.DataFrame([row(f"l{level}_context_floor", 0.4, game=game, split="all", step=step)
                         for game in ("pong", "breakout") for level in range(3)
                         for step in (1, 2)]).assign(stage="entropy_floor", variant="base", seed=0)
    fig = figures.floor_ladder(pd.concat([floor, more]), model)
    assert fig.legends[0].get_texts()[2].get_text() == "floor given the last step"
    assert [patch.get_height() for patch in fig.axes[0].patches][6:9] == [0.4] * 3
    plt.close(fig)


def test_the_ladder_names_what_counted_in_newer_tables():
    floor, model = floor_tables()
    counted = model.assign(metric=model["metric"] + "[back_off]", value=2.0, baseline=np.nan)
    fig = figures.floor_ladder(floor, pd.concat([model, counted]))
    assert fig.legends[0].get_texts()[0].get_text() == "best trivial predictor"
    plt.close(fig)


def test_twin_curves_show_disagreement_while_there_are_twins():
    fig = figures.twin_curves(floor_tables()[0])
    disagreeing, shares = fig.axes[0].lines
    bands = fig.axes[0].collections[0].get_segments()
    assert [band[:, 1].tolist() for band in bands] == [[0.2, 0.4], [0.1, 0.2]]
    assert disagreeing.get_ydata().tolist() == [0.4, 0.2]
    assert shares.get_xdata().tolist() == [1, 2, 4]
    plt.close(fig)
