"""hd.play: whole real episodes, and what a policy sees of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import refusal

from hd import encoder, policy
from hd import play as playing
from hd.atari import GAMES
from hd.config import EncoderConfig, InputError, PolicyConfig, WorldModelConfig
from hd.encoder import AtariEncoder
from hd.play import Memory, Observation, play, random_act, tracker_act
from hd.quantization import ResidualVQ
from hd.world_model import ACTION, MASKS, Dreamer, WorldModel, num_features

K, D, DIM, CONTEXT = 7, 3, 24, 4


def test_play_returns_one_row_per_whole_episode():
    rows = play(random_act("breakout"), "breakout", num_episodes=3, seed=5, sticky=0.25)
    assert [row["episode"] for row in rows] == [0, 1, 2]
    assert all(set(row) == {"game", "seed", "episode", "return", "length", "sticky"}
               for row in rows)
    assert all(row["length"] > 50 and row["return"] >= 0 for row in rows)
    assert {(row["game"], row["seed"], row["sticky"]) for row in rows} == {("breakout", 5, 0.25)}


def test_playing_twice_from_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    first, again, other = (play(random_act("breakout"), "breakout", num_episodes=2, seed=seed,
                                sticky=0.0) for seed in (1, 1, 2))
    assert first == again
    assert [row["length"] for row in first] != [row["length"] for row in other]


def test_fewer_episodes_are_the_first_of_many():
    def idle(seen, generator):
        return np.zeros(len(seen.ram), int)

    many, few = (play(idle, "pong", num_episodes=count, seed=4, sticky=0.25) for count in (3, 2))
    assert [row["length"] for row in many[:2]] == [row["length"] for row in few]


def test_a_policy_sees_its_own_episode_with_the_newest_frame_last():
    seen = []

    def act(observation, generator):
        seen.append(observation.frames.copy())
        return np.ones(len(observation.ram), int)

    watched = []
    play(act, "breakout", num_episodes=1, seed=0, sticky=0.0,
         watch=lambda episode, frame, reward: watched.append(frame.copy()))
    assert (seen[0] == seen[0][:, :1]).all(), "an episode starts with its first frame four times"
    assert (seen[7][0, 3] == watched[6]).all() and (seen[7][0, 2] == watched[5]).all()


def test_the_scripted_tracker_beats_random_play_in_pong():
    tracked = play(tracker_act("pong"), "pong", num_episodes=1, seed=0, sticky=0.0)
    chance = play(random_act("pong"), "pong", num_episodes=1, seed=0, sticky=0.0)
    assert tracked[0]["return"] > 0 > chance[0]["return"]


@pytest.mark.parametrize(("game", "episodes", "message"), [
    ("doom", 1, "unknown game 'doom'; allowed: pong, breakout, ms_pacman"),
    ("pong", 0, "num_episodes must be a whole number from 1; got 0"),
    ("pong", 1.5, "num_episodes must be a whole number from 1; got 1.5")])
def test_play_refuses_what_it_cannot_do_in_one_line(game, episodes, message):
    with pytest.raises(InputError, match=message):
        play(lambda seen, generator: 0, game, num_episodes=episodes, seed=0, sticky=0.0)


@pytest.mark.parametrize(("chosen", "message"), [
    ([0], "one ALE id for each of the 2 running episodes; got int64 of shape (1,)"),
    ([0, 0, 0], "got int64 of shape (3,)"),
    ([0.0, 1.0], "got float64 of shape (2,)"),
    (None, "got object of shape (1,)"),
    (torch.tensor([[0], [0]]), "of shape (2, 1)"),
    ([0, 18], "unknown action 18; allowed: ALE ids 0 to 17"),
    (torch.tensor([0, -1]), "unknown action -1"),
])
def test_a_policy_that_does_not_choose_one_action_for_each_episode_is_refused(chosen, message):
    # Fewer actions than episodes once left the others standing for ever.
    assert message in refusal(play, lambda seen, generator: chosen, "pong", num_episodes=2, seed=0,
                              sticky=0.0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"seed": -1}, "seed must be a whole number"), ({"sticky": 1.0}, "0 <= sticky < 1"),
    ({"sticky": "0.25"}, "0 <= sticky < 1"), ({"noop_max": 2.5}, "whole numbers noop_max"),
])
def test_settings_out_of_range_are_refused(changes, message):
    chosen = {"num_episodes": 1, "seed": 0, "sticky": 0.0, **changes}
    assert message in refusal(play, lambda seen, generator: [0], "pong", **chosen)


def test_random_play_uses_only_legal_actions():
    act = random_act("breakout")
    seen = Observation(np.zeros((500, 4, 84, 84), np.uint8), np.zeros((500, 128), np.uint8),
                       np.arange(500), np.zeros(500, int))
    ids = act(seen, torch.Generator().manual_seed(0))
    assert set(ids.tolist()) == set(GAMES["breakout"].actions)


# ---- what the policy remembers

def lively_model(**changes):
    """A tiny world model whose outputs depend on every token that they may see."""
    sizes = {"num_codes": K, "num_layers": 2, "dim": DIM, "num_heads": 2, "ffn_dim": 40,
             "max_steps": 9}
    model = WorldModel(WorldModelConfig(**sizes | changes), torch.randn(3, K, D)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def plain_features(model, tokens, actions):
    """Of the last step, from its codes and a plain forward over the n - 1 steps before it; tokens
    (n, 3), actions (n - 1,)."""
    past = model.codebooks.new_zeros(model.cfg.dim)
    if len(actions):
        past = model.hidden(tokens[None, :-1], actions[None])[0, -1, ACTION]
    return torch.cat([past, model.features(tokens[-1])])


def played_frames(count):
    """Stacks (count, 4, 84, 84) uint8 of one episode of Breakout under random play."""
    seen = []

    def act(observation, generator):
        seen.append(observation.frames[0])
        return random_act("breakout")(observation, generator)

    play(act, "breakout", num_episodes=1, seed=3, sticky=0.0)
    return np.stack(seen)[:count]


def seen_by(episodes, steps):
    return Observation(np.zeros((len(episodes), 4, 84, 84), np.uint8),
                       np.zeros((len(episodes), 128), np.uint8), np.array(episodes),
                       np.array(steps))


@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_episodes_of_different_ages_each_see_a_plain_forward_over_their_own_last_steps(kind):
    model = lively_model(mask=kind)
    memory = Memory(model, context=CONTEXT)
    tokens, actions = torch.randint(K, (3, 9, 3)), torch.randint(18, (3, 9))
    begins, ends = (0, 2, 6), (9, 6, 9)
    for now in range(9):
        running = [k for k in range(3) if begins[k] <= now < ends[k]]
        ages = [now - begins[k] for k in running]
        found = memory.features(seen_by(running, ages), tokens[running, now])
        memory.keep(actions[running, now])
        for k, age, features in zip(running, ages, found):
            past = slice(now - min(age, CONTEXT - 1), now)
            expected = plain_features(model, tokens[k, past.start:now + 1], actions[k, past])
            torch.testing.assert_close(features, expected)


@torch.no_grad()
def test_an_episode_that_begins_again_has_forgotten_what_was_before():
    model, tokens = lively_model(), torch.randint(K, (2, 3))
    memory = Memory(model, context=CONTEXT)
    memory.features(seen_by([0], [0]), tokens[:1])
    memory.keep(torch.tensor([3]))
    found = memory.features(seen_by([0], [0]), tokens[1:])[0]
    torch.testing.assert_close(found, plain_features(model, tokens[1:],
                                                     torch.zeros(0, dtype=torch.long)))


@pytest.mark.parametrize("kind", MASKS)
@torch.no_grad()
def test_a_stored_episode_shows_the_same_features_in_real_play_and_in_a_dream(kind):
    model, num_steps = lively_model(mask=kind).float(), 9
    tokens, actions = torch.randint(K, (num_steps, 3)), torch.randint(18, (num_steps - 1,))
    memory, played = Memory(model, context=num_steps), []
    for now in range(num_steps):
        played.append(memory.features(seen_by([7], [now]), tokens[None, now])[0])
        memory.keep(actions[None, min(now, num_steps - 2)])
    dream = Dreamer(model, tokens[None, :1], actions[None, :0], horizon=num_steps - 1,
                    features="hidden")
    dreamed = [dream.features()[0]]
    for now in range(num_steps - 1):
        dream.step(actions[None, now], torch.Generator())
        # The dream goes on with what really came, not with what it drew.
        dream.tokens, dream.unread = tokens[None, now + 1], tokens[None, now + 1]
        dream.cache.length = 4 * (now + 1)
        dreamed.append(dream.features()[0])
    started = [Dreamer(model, tokens[None, :n], actions[None, :n - 1], horizon=1,
                       features="hidden").features()[0] for n in range(1, num_steps)]
    assert played[0].shape == (num_features(model, "hidden"),)
    assert not played[0][:DIM].any(), "nothing was before an episode's first step"
    # float32, in other orders of summation, through two blocks.
    torch.testing.assert_close(torch.stack(dreamed), torch.stack(played), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack(started), torch.stack(played[:-1]), rtol=1e-4,
                               atol=1e-5)
    assert (torch.stack(played)[1:, :DIM].std(0) > 1e-3).all(), "the past must show"


class Eyes:
    """Stands for encoder and tokenizer: three codes that are a function of the frames."""

    cfg = EncoderConfig(precision="float32")

    def __call__(self, frames):
        return frames.double().mean((2, 3))

    def encode(self, means):
        return (means[:, 1:] * 100).long() % K


def test_the_actor_in_the_real_game_sees_what_a_plain_forward_on_the_same_steps_says(monkeypatch):
    model, cfg = lively_model(), PolicyConfig(hidden=8, features="hidden", context=CONTEXT)
    agent = policy.ActorCritic(cfg, model, GAMES["breakout"].actions,
                               num_features(model, "hidden")).eval()
    shown = {}

    def act(features, generator):
        chosen = torch.randint(4, (len(features),), generator=generator)
        shown["features"], shown["actions"] = features, chosen
        return chosen

    monkeypatch.setattr(agent.actor, "act", act)
    monkeypatch.setattr(playing, "PARALLEL", 2)
    real_act, history, compared = playing.policy_act(Eyes(), Eyes(), agent), {}, []

    def watched(seen, generator):
        ids = real_act(seen, generator)
        codes = Eyes().encode(Eyes()(torch.from_numpy(seen.frames)))
        for k, age, code, features, action in zip(
                seen.episodes.tolist(), seen.steps.tolist(), codes, *shown.values()):
            tokens, actions = history.setdefault(k, ([], []))
            assert age == len(tokens), "every episode counts its own steps"
            tokens.append(code)
            if age < 12 or age % 25 == 0:
                past = torch.stack(actions[-CONTEXT + 1:]) if actions else torch.zeros(0).long()
                with torch.no_grad():
                    expected = plain_features(model, torch.stack(tokens[-CONTEXT:]), past)
                torch.testing.assert_close(features, expected)
                compared.append((k, age))
            actions.append(action)
        return ids

    play(watched, "breakout", num_episodes=3, seed=0, sticky=0.0)
    assert {k for k, _ in compared} == {0, 1, 2}
    assert len({tuple(code.tolist()) for tokens, _ in history.values() for code in tokens}) > 5


@pytest.mark.parametrize("is_fast", [True, False], ids=["bfloat16", "float32"])
def test_real_play_gives_stored_frames_the_codes_they_were_stored_with(monkeypatch, is_fast):
    # A processor with fast bfloat16 stores codes of bfloat16 embeddings; any other can compute so.
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast)
    monkeypatch.setenv("HD_DEVICE", "cpu")
    eyes, frames = AtariEncoder().eval(), played_frames(64)
    stored_with = encoder.embed(eyes, SimpleNamespace(stack=frames.__getitem__), np.arange(64))
    codes = ResidualVQ(3, 24).eval()
    codes.codebooks.copy_(torch.from_numpy(stored_with[:24]) * torch.tensor([1, 0.1, 0.01])[
        :, None, None])
    codes.is_initialised.fill_(True)
    stored = codes.encode(torch.from_numpy(stored_with))
    seen_codes = []
    agent = SimpleNamespace(
        cfg=PolicyConfig(), dream_in=SimpleNamespace(features=seen_codes.append),
        actor=SimpleNamespace(act=lambda *_: torch.zeros(16, dtype=torch.long)))
    act = playing.policy_act(eyes, codes, agent)
    for first in range(0, 64, 16):
        act(Observation(frames[first:first + 16], None, np.arange(16), np.zeros(16, int)), None)
    # Other numbers of frames at once are summed in another order, which in bfloat16 may move a
    # frame over the border between two codes: at most one of these.
    assert (torch.cat(seen_codes) != stored).any(1).sum() <= 1
    if is_fast:
        with torch.no_grad():
            in_float32 = codes.encode(eyes(frames))
        assert (in_float32 != stored).any(1).sum() > 1, "or the comparison would compare nothing"


# ---- the policy that collects

def test_a_collecting_policy_sees_its_episode_alone_from_its_first_frame_on():
    seen, draws = [], []

    def act(observation, generator):
        seen.append((observation.frames[0, :, 0, 0].tolist(), observation.steps.tolist()))
        draws.append(int(torch.randint(1000, (1,), generator=generator)))
        return torch.tensor([4])

    begin, ram = playing.one_at_a_time(act), np.zeros(128, np.uint8)
    for seed, shades in ((3, (10, 11, 12, 13, 14)), (4, (20, 21)), (3, (30, 31))):
        choose = begin(seed)
        assert [choose(np.full((84, 84), shade, np.uint8), ram) for shade in shades] == [4] * len(
            shades)
    assert [frames for frames, _ in seen[:5]] == [
        [10, 10, 10, 10], [10, 10, 10, 11], [10, 10, 11, 12], [10, 11, 12, 13], [11, 12, 13, 14]]
    assert [steps for _, steps in seen] == [[0], [1], [2], [3], [4], [0], [1], [0], [1]]
    assert seen[5:7] == [([20, 20, 20, 20], [0]), ([20, 20, 20, 21], [1])]
    assert draws[:2] == draws[7:] != draws[5:7], "the seed decides what is drawn"
