"""hd.config: profiles, ablations, and what bad input gets to read."""

import dataclasses
import json
import subprocess
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from tiny import refusal

from hd import config
from hd.ablations import ABLATIONS, HI_DREAMER, HI_DREAMER_AT
from hd.config import GAMES, PROFILES

SECTIONS = [f.name for f in dataclasses.fields(config.Profile) if f.name not in ("name", "purpose")]


def flat(profile):
    """Every number of a profile by "section.field"."""
    return {
        f"{section}.{field}": value
        for section in SECTIONS
        for field, value in dataclasses.asdict(getattr(profile, section)).items()
    }


def kinds_of(section):
    """What each field of a section may hold, by name."""
    return get_type_hints(type(getattr(PROFILES["smoke"], section)), include_extras=True)


CHOICES = {f"{section}.{name}": get_args(kind) for section in SECTIONS
           for name, kind in kinds_of(section).items() if get_origin(kind) is Literal}


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


# ---- profiles and variants


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_resolves_to_itself(name):
    assert config.resolve(name) == PROFILES[name]
    assert PROFILES[name].name == name


def test_the_five_profiles_are_those_of_the_readme():
    assert list(PROFILES) == ["smoke", "quick", "audit", "desk", "paper"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_arm_differs_from_base_in_exactly_the_fields_it_declares(ablation, profile):
    if ABLATIONS[ablation].at not in ("", profile):
        return
    base = flat(config.resolve(profile))
    for arm, declared in ABLATIONS[ablation].arms.items():
        changed = flat(config.resolve(profile, f"{ablation}.{arm}"))
        differing = {key: value for key, value in changed.items() if value != base[key]}
        assert differing == dict(declared)


@pytest.mark.parametrize("profile", PROFILES)
def test_hi_dreamer_differs_from_base_in_what_it_declares(profile):
    base, changed = (flat(config.resolve(profile, name)) for name in ("base", "hi-dreamer"))
    declared = {**HI_DREAMER, **HI_DREAMER_AT.get(profile, {})}
    assert {key for key, value in changed.items() if value != base[key]} <= set(declared)
    assert {key: changed[key] for key in declared} == declared
    stated = config.resolve(profile, "hi-dreamer", {"world_model.num_steps": 7})
    assert stated.world_model.num_steps == 7, "what a user states comes last"


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_no_arm_changes_what_lies_behind_the_stage_that_is_measured(ablation):
    measured = config.STAGES.index(ABLATIONS[ablation].measure)
    inside = {part: stage for stage, parts in config.INSIDE.items() for part in parts
              if part not in config.STAGES}
    for declared in ABLATIONS[ablation].arms.values():
        parts = {key.split(".")[0] for key in declared} - {"probes"}  # which only measure
        stages = {inside.get(part, part) for part in parts}
        assert all(config.STAGES.index(stage) <= measured for stage in stages)


def test_an_arm_stated_for_one_profile_names_it():
    assert {chosen.at for chosen in ABLATIONS.values()} <= {"", *PROFILES}


def test_no_two_variants_have_the_same_name_or_the_same_fields():
    fields = [repr(sorted(declared.items())) for declared in config.variants().values()]
    assert len(set(fields)) == len(fields)


@pytest.mark.parametrize("name", PROFILES)
def test_every_value_of_every_profile_is_what_its_field_may_hold(name):
    for section in SECTIONS:
        for field, kind in kinds_of(section).items():
            value = getattr(getattr(PROFILES[name], section), field)
            config.check_value(f"{section}.{field}", kind, value, like=value)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_text_is_one_of_stated_choices_and_every_number_has_a_range(section):
    for name, kind in kinds_of(section).items():
        assert kind not in (str, int, float), f"{section}.{name}"


def test_a_given_value_is_kept_as_it_was_given():
    given = {"encoder.clip": 2, "frames.sources": {"random": 1}, "policy.lam": 1}
    resolved = config.resolve("smoke", overrides=given)
    # Identities hash the text of the values: 2 and 2.0 are different runs.
    kept = {key: flat(resolved)[key] for key in given}
    assert json.dumps(kept) == json.dumps(given)


def test_importing_the_configs_does_not_wait_for_pydantic():
    code = "import sys, hd.config; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", PROFILES)
def test_dreams_and_policies_fit_into_what_the_world_model_can_read(name):
    profile = PROFILES[name]
    assert profile.imagination.context < profile.world_model.max_steps
    assert profile.policy.context + profile.policy.horizon <= profile.world_model.max_steps


@pytest.mark.parametrize("name", PROFILES)
def test_tokenizer_and_world_model_agree_on_levels_and_codes(name):
    profile = PROFILES[name]
    assert profile.tokenizer.num_codes == profile.world_model.num_codes
    assert profile.tokenizer.num_levels == profile.world_model.num_levels
    assert len(profile.tokenizer.commitment_costs) == profile.tokenizer.num_levels
    assert profile.tokenizer.batch_size >= profile.tokenizer.num_codes


def test_every_stage_comes_after_what_it_needs():
    for stage, needed in config.UPSTREAM.items():
        assert all(config.STAGES.index(s) < config.STAGES.index(stage) for s in needed)
    assert set(config.UPSTREAM) == set(config.STAGES)


@pytest.mark.parametrize("section", SECTIONS)
def test_configs_cannot_be_changed_in_place(section):
    part = getattr(PROFILES["smoke"], section)
    name = dataclasses.fields(part)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, name, getattr(part, name))


def test_a_profile_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROFILES["smoke"].encoder = PROFILES["quick"].encoder


def test_overrides_change_their_field_and_nothing_else():
    base = flat(config.resolve("smoke", "mask.causal"))
    changed = flat(config.resolve("smoke", "mask.causal", {"encoder.lr": 1e-2}))
    assert {k: v for k, v in changed.items() if v != base[k]} == {"encoder.lr": 1e-2}


def test_an_override_wins_over_the_variant():
    profile = config.resolve("smoke", "mask.causal", {"world_model.mask": "strict"})
    assert profile.world_model.mask == "strict"


def test_a_whole_number_passes_where_a_float_is_expected():
    assert config.resolve("smoke", overrides={"encoder.clip": 2}).encoder.clip == 2


def test_the_policy_plays_one_of_the_games_that_are_there():
    assert config.resolve("smoke").policy.game == "pong"
    assert config.resolve("smoke", games=("breakout", "ms_pacman")).policy.game == "breakout"


def test_a_variant_is_never_quietly_played_on_another_game():
    message = refusal(config.resolve, "smoke", "policy_game.breakout", games=("pong",))
    assert "breakout" in message and "pong" in message


# ---- sizes of the models


def test_the_encoder_has_the_seeds_number_of_parameters():
    from hd.encoder import AtariEncoder

    assert num_parameters(AtariEncoder(PROFILES["desk"].encoder)) == 1_881_888


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("smoke", 0, 200_000),
        ("quick", 300_000, 700_000),
        ("audit", 1_000_000, 2_300_000),
        ("desk", 10_500_000, 12_000_000),
        ("paper", 10_500_000, 12_000_000),
    ],
)
def test_world_models_have_the_size_their_profile_promises(name, least, most):
    from hd.world_model import WorldModel

    assert least < num_parameters(WorldModel(PROFILES[name].world_model)) < most


# ---- bad input


@pytest.mark.parametrize("profile", ["Smoke", "", None, 3, ["smoke"]])
def test_an_unknown_profile_is_refused_with_the_list_of_all(profile):
    message = refusal(config.resolve, profile)
    assert repr(profile) in message
    assert all(name in message for name in PROFILES)


@pytest.mark.parametrize("variant", ["mask", "causal", "mask.Causal", None])
def test_an_unknown_variant_is_refused_with_the_list_of_all(variant):
    message = refusal(config.resolve, "smoke", variant)
    assert all(name in message for name in ("base", "mask.causal", "policy.ppo"))


@pytest.mark.parametrize("key", ["encoders.lr", "lr", "", "name.x"])
def test_an_unknown_section_is_refused_with_the_list_of_all(key):
    message = refusal(config.resolve, "smoke", overrides={key: 1})
    assert all(section in message for section in SECTIONS)


@pytest.mark.parametrize("key", ["encoder.learning_rate", "encoder", "encoder.lr.x"])
def test_an_unknown_field_is_refused_with_the_list_of_all(key):
    message = refusal(config.resolve, "smoke", overrides={key: 1})
    assert "negatives" in message and "batch_size" in message


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_out_of_its_choices_is_refused_with_the_list_of_all(key):
    message = refusal(config.resolve, "smoke", overrides={key: "nonsense"})
    assert key in message and "'nonsense'" in message
    assert all(choice in message for choice in CHOICES[key])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder.lr", "0.1"),
        ("encoder.num_steps", 1.5),
        ("encoder.num_steps", True),
        ("world_model.detach_heads", 1),
        ("tokenizer.commitment_costs", 0.25),
        ("tokenizer.commitment_costs", ("a", "b", "c")),
        ("frames.sources", "random"),
        ("encoder.lr", None),
        ("encoder.lr", True),
        ("encoder.betas", (0.9,)),
    ],
)
def test_a_value_of_another_type_is_refused_with_an_example(key, value):
    message = refusal(config.resolve, "smoke", overrides={key: value})
    section, name = key.split(".")
    assert key in message and repr(getattr(getattr(PROFILES["smoke"], section), name)) in message
    assert f"got {value!r}: " in message


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("frames.num_steps", 0, "greater than or equal to 1"),
        ("encoder.num_steps", 0, "greater than or equal to 1"),
        ("encoder.batch_size", 0, "greater than or equal to 1"),
        ("encoder.accumulate", -1, "greater than or equal to 1"),
        ("encoder.lr", -1e-4, "greater than or equal to 0"),
        ("encoder.temperature", 0.0, "greater than 0"),
        ("encoder.lr", float("nan"), "a finite number"),
        ("encoder.lr", float("inf"), "a finite number"),
        ("encoder.betas", (0.9, 1.0), "less than 1"),
        ("encoder.chunk", 1, "greater than or equal to 2"),
        ("tokenizer.commitment_costs", (0.1, -0.1, 0.1), "greater than or equal to 0"),
        ("tokenizer.decay", 1.0, "less than 1"),
        ("world_model.dropout", 1.0, "less than 1"),
        ("world_model.max_steps", 1, "greater than or equal to 2"),
        ("imagination.horizon", 0, "greater than or equal to 1"),
        ("policy.gamma", 0.0, "greater than 0"),
        ("policy.gamma", 1.01, "less than or equal to 1"),
        ("policy.lam", 1.01, "less than or equal to 1"),
        ("frames.sticky", 1.0, "less than 1"),
        ("frames.val_share", 1.01, "less than or equal to 1"),
        ("frames.sources", {"random": -0.5}, "greater than or equal to 0"),
        ("frames.sources", {"expert": 0.5}, "'random', 'repeat', 'tracker' or 'agent'"),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_the_range(key, value, says):
    message = refusal(config.resolve, "smoke", overrides={key: value})
    assert message.startswith(f"{key} must be like ") and f"got {value!r}: " in message
    assert says in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frames.val_share", 0),
        ("frames.val_share", 1),
        ("policy.gamma", 1),
        ("policy.lam", 0.0),
        ("encoder.lr", 0.0),
        ("world_model.dropout", 0),
        ("tokenizer.kmeans_iterations", 0),
        ("encoder.eval_every", 0),
        ("encoder.commitment_costs", ()),
    ],
)
def test_the_ends_of_a_range_that_belong_to_it_are_taken(key, value):
    assert flat(config.resolve("smoke", overrides={key: value}))[key] == value


def test_the_chain_is_every_notebook_that_makes_a_stage_up_to_the_policy():
    stages = config.STAGES[: config.STAGES.index("policy") + 1]
    assert tuple(dict.fromkeys(config.NOTEBOOKS[stage] for stage in stages)) == config.CHAIN
    assert set(config.NOTEBOOKS) == set(config.STAGES)


def test_games_come_in_one_order_however_they_are_given():
    assert config.check_games("ms_pacman,pong") == ("pong", "ms_pacman")
    assert config.check_games(["breakout", "pong"]) == ("pong", "breakout")
    assert config.check_games(GAMES[::-1]) == GAMES


@pytest.mark.parametrize(
    "games", ["tetris", "", [], (), "pong,pong", ["pong", "pong"], "pong,", None, 3, [None]]
)
def test_games_that_are_unknown_repeated_or_missing_are_refused_with_the_list_of_all(games):
    message = refusal(config.check_games, games)
    assert all(game in message for game in GAMES)


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_whole_numbers_are_seeds(seed):
    assert config.check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 2**31, 1.0, "0", None, True])
def test_anything_else_is_refused_as_a_seed_with_the_range(seed):
    assert "0 to 2147483647" in refusal(config.check_seed, seed)
