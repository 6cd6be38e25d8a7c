"""What is varied: one ablation a question; hd.config makes every arm a variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ablation:
    """Arms that each differ from the same profile's base in exactly the fields they declare."""

    question: str
    measure: str  # the stage whose table answers the question
    metrics: tuple[str, ...]  # the metrics of that table that answer it
    arms: Mapping[str, Mapping[str, object]]
    also: tuple[str, ...] = ()  # further stages that are measured for every arm
    of_also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # theirs that answer it
    at: str = ""  # the profile whose sizes the arms are stated for; elsewhere some equal base's


_NEXT_CODE = ("l0_changed_accuracy", "l1_changed_accuracy", "l2_changed_accuracy")
_OF_AGENT = ("real_return", "contact_auc[source agent]")
_CODES = ("l0_usage", "l2_variance_explained", "r2_ball_x")
_OFTEN = 720  # steps: on one game of `audit`, up to 200 exposures of each training step
# On Pong alone 500 exposures of each training step, a fifth of the seed's.
_OF_SEEDS_SIZE = {"world_model.num_steps": 10_000, "world_model.eval_every": 500}
_SEED_COSTS, _FLAT, _ZERO = (0.05, 0.25, 0.60), (0.25, 0.25, 0.25), (0.0, 0.0, 0.0)
_ATARIARI = {"probes.standardise": False, "probes.lr": 5e-4, "probes.batch_size": 64}
_AT_EVERY_PLACE = {"encoder.objective": "spatiotemporal", "encoder.negatives": "chunk"}

# The variant "hi-dreamer": an encoder that must tell what is where, a world model whose codes all
# count and which learns from rewards, and a policy that sees what that model makes of the past.
HI_DREAMER = {**_AT_EVERY_PLACE, "encoder.temperature": 0.3, "encoder.lr": 5e-4,
              "encoder.schedule": "cosine", "world_model.level_weights": (1.0, 1.0, 1.0),
              "world_model.detach_heads": False, "policy.features": "hidden",
              "policy.entropy": 1e-2}
COMPARED = ("base", "hi-dreamer")  # the variants that stand beside each other
AGENT_VARIANT = "hi-dreamer"  # whose policy plays where frames.sources asks for the "agent"
_WITHOUT_POLICY = {key: value for key, value in HI_DREAMER.items() if key.split(".")[0] != "policy"}
# Of as many episodes as a mixture needs to train, validate and test on each source.
_RANDOM = {"frames.min_episodes": 13}
_MIXTURE = {**_RANDOM, "frames.sources": {"random": 0.5, "repeat": 0.25, "tracker": 0.25}}
_AGENT = {**_RANDOM, "frames.sources": {"random": 0.5, "agent": 0.5}}
HI_DREAMER_AT = {  # what the variant adds at a profile
    # 1M parameters instead of 11M: in less time they see each step several times as often.
    "desk": {"encoder.num_steps": 3600, "world_model.num_layers": 4, "world_model.dim": 128,
             "world_model.num_heads": 4, "world_model.ffn_dim": 512, "world_model.num_steps": 3000,
             "world_model.accumulate": 1, "world_model.lr": 2e-3, "world_model.dropout": 0.0,
             "world_model.eval_every": 200, "policy.num_steps": 600},
}


def _of_hi_dreamer(*stages: str) -> dict[str, object]:
    """What the variant sets in these stages at desk."""
    return {key: value for key, value in (HI_DREAMER | HI_DREAMER_AT["desk"]).items()
            if key.split(".")[0] in stages}


def _together(costs) -> dict[str, object]:
    """Encoder and codebooks train together; many near negatives, since one far one forgets."""
    return {"encoder.negatives": "in_batch", "encoder.commitment_costs": costs}


ABLATIONS = {
    "split": Ablation(
        "How much of the seed's accuracy comes from held-out windows that overlap training?",
        "world_model", ("l0_accuracy", "l0_changed_accuracy", "l0_cross_entropy"),
        {"windows": {"world_model.split": "windows"}}),
    "exposures": Ablation(
        "When do the two splits part, if training sees every step more than a hundred times?",
        "world_model", ("l0_accuracy", "l0_changed_accuracy", "l0_cross_entropy"),
        {"episodes": {"world_model.num_steps": _OFTEN},
         "windows": {"world_model.num_steps": _OFTEN, "world_model.split": "windows"}}),
    "exposures_large": Ablation(
        "Does a model of twice the size memorise overlapping windows sooner?",
        "world_model", ("l0_accuracy", "l0_changed_accuracy", "l0_cross_entropy"),
        {"episodes": {"world_model.num_steps": _OFTEN, "world_model.dim": 192,
                      "world_model.ffn_dim": 768},
         "windows": {"world_model.num_steps": _OFTEN, "world_model.dim": 192,
                     "world_model.ffn_dim": 768, "world_model.split": "windows"}}),
    "exposures_seed": Ablation(
        "Where do the two splits part for a model of the seed's size? (at desk, on a GPU)",
        "world_model", ("l0_accuracy", "l0_changed_accuracy", "l0_cross_entropy"),
        {"episodes": _OF_SEEDS_SIZE,
         "windows": {**_OF_SEEDS_SIZE, "world_model.split": "windows"}}),
    "recipe": Ablation(
        "Which change made hi-dreamer better: its codes, or a small world model that trains long?",
        "world_model", _NEXT_CODE,
        {"codes": _of_hi_dreamer("encoder"), "world_model": _of_hi_dreamer("world_model"),
         "both": _of_hi_dreamer("encoder", "world_model")}, also=("imagination",), at="desk"),
    "mask": Ablation(
        "Does the hierarchical mask predict or dream better than plain causal attention?",
        "world_model", _NEXT_CODE,
        {"causal": {"world_model.mask": "causal"},
         "hierarchical": {"world_model.mask": "hierarchical"},
         "strict": {"world_model.mask": "strict"}}, also=("imagination",)),
    "context": Ablation(
        "How many steps of the past does the world model need?",
        "world_model", _NEXT_CODE,
        {"short": {"world_model.max_steps": 16, "world_model.batch_size": 64}}),
    "loss_weights": Ablation(
        "Do the weights 1.0/0.5/0.1 help the coarse level?",
        "world_model", _NEXT_CODE,
        {"equal": {"world_model.level_weights": (1.0, 1.0, 1.0)}}),
    "actions": Ablation(
        "Do shared action meanings help over indices into each game's minimal set?",
        "world_model", _NEXT_CODE,
        {"index": {"world_model.actions": "index"}}),
    "negatives": Ablation(
        "Which negatives make the contrastive encoder keep the game's state?",
        "encoder", ("temporal_consistency", "f1_overall", "r2_ball_x"),
        {"in_batch": {"encoder.negatives": "in_batch"},
         "chunk": {"encoder.negatives": "chunk"}}, also=("tokenizer",)),
    "objective": Ablation(
        "What could the same network know: trained on what is at every place, or on RAM itself?",
        "encoder", ("f1_overall", "r2_ball_x"),
        {"supervised": {"encoder.objective": "supervised"}, "spatiotemporal": _AT_EVERY_PLACE},
        also=("tokenizer",)),
    "probe_protocol": Ablation(
        "What do linear probes find on features as they are, by AtariARI's whole protocol (in "
        "ST-DIM's encoder too), or fitted on episodes that the encoder did not see?",
        "encoder", ("f1_overall",),
        {"raw": {"probes.standardise": False}, "atariari": _ATARIARI,
         "st_dim_atariari": {**_AT_EVERY_PLACE, **_ATARIARI},
         "unseen": {"probes.fit_on": "validation"}}),
    "sticky": Ablation(
        "What do the seed's sticky actions change?",
        "tokenizer", ("l0_repeat_rate", "l0_perplexity", "r2_ball_x"),
        {"v5": {"frames.sticky": 0.25}}, also=("encoder",)),
    "sources": Ablation(
        "Does data of several players, instead of random play alone, keep the state better?",
        "world_model", ("l0_changed_accuracy", "l0_changed_cross_entropy",
                        "reward_average_precision", "l0_changed_accuracy[source random]",
                        "l0_changed_accuracy[source tracker]"),
        {"random": _RANDOM, "mixture": _MIXTURE, "hi_dreamer": {**_WITHOUT_POLICY, **_RANDOM},
         "hi_dreamer_mixture": {**_WITHOUT_POLICY, **_MIXTURE},
         "hi_dreamer_agent": {**_WITHOUT_POLICY, **_AGENT}},
        also=("frames", "encoder", "tokenizer"),
        of_also={"tokenizer": ("f1_overall", "r2_ball_x", "r2_ball_x[source random]",
                               "r2_ball_x[source tracker]", "r2_ball_x[source agent]")}),
    "commitment": Ablation(
        "Can the commitment schedule change tokens when the encoder is frozen?",
        "tokenizer", (*_CODES, "l2_same_as_base"),
        {"flat": {"tokenizer.commitment_costs": _FLAT},
         "reversed": {"tokenizer.commitment_costs": _SEED_COSTS[::-1]},
         "zero": {"tokenizer.commitment_costs": _ZERO}}),
    "commitment_joint": Ablation(
        "Can the schedule change tokens when encoder and codebooks train together?",
        "tokenizer", (*_CODES, "l0_state_information", "l0_game_information"),
        {"seed": _together(_SEED_COSTS), "flat": _together(_FLAT),
         "reversed": _together(_SEED_COSTS[::-1]), "zero": _together(_ZERO)}),
    "codebook": Ablation(
        "Do the k-means start and the refill of dead codes matter? What does a library get?",
        "tokenizer", _CODES,
        {"no_kmeans": {"tokenizer.kmeans_iterations": 0},
         "no_refill": {"tokenizer.refill_below": 0.0},
         "neither": {"tokenizer.kmeans_iterations": 0, "tokenizer.refill_below": 0.0},
         "library": {"tokenizer.kind": "library"}}),
    "levels": Ablation(
        "What does each further level of residual codes bring?",
        "tokenizer", ("l0_variance_explained", "l0_usage", "r2_ball_x", "f1_overall"),
        {"one": {"tokenizer.num_levels": 1, "tokenizer.commitment_costs": (0.05,)},
         "two": {"tokenizer.num_levels": 2, "tokenizer.commitment_costs": (0.05, 0.25)},
         "four": {"tokenizer.num_levels": 4,
                  "tokenizer.commitment_costs": (0.05, 0.25, 0.60, 0.60)}}),
    "quantizer": Ablation(
        "Equal bits, other codes: product instead of residual, 128 instead of 384 columns?",
        "tokenizer", _CODES,
        {"product": {"tokenizer.kind": "product"},
         "projected": {"tokenizer.project_dim": 128},
         "projected_plain": {"tokenizer.project_dim": 128, "tokenizer.kmeans_iterations": 0,
                             "tokenizer.refill_below": 0.0}}),
    "policy": Ablation(
        "Does the policy's loss matter: REINFORCE or PPO?",
        "policy", ("real_return",), {"ppo": {"policy.loss": "ppo"}}),
    "critic": Ablation(
        "Does the critic's form matter: two-hot bins or one number, as the seed's?",
        "policy", ("real_return",), {"scalar": {"policy.critic": "scalar"}}),
    "policy_horizon": Ablation(
        "How far should the dreams go that a policy learns from?",
        "policy", ("real_return",),
        {"short": {"policy.horizon": 5},
         "long": {"policy.horizon": 30}}),
    "policy_features": Ablation(
        "Does a policy play better when it sees what the world model makes of the past?",
        "policy", ("real_return",),
        {"hidden": {"policy.features": "hidden"}}),
    "agent_codes": Ablation(
        "Which codes does the agent need: levels, equal bits without levels, how many places?",
        "agent", _OF_AGENT,
        {"one_level": {"agent.num_levels": 1}, "product": {"agent.kind": "product"},
         "places_9": {"agent.patch": 28},
         "one_place": {"agent.patch": 84, "agent.shifts": 0}}),
    "agent_data": Ablation(
        "What must the agent's world model learn from: its own play, what it foretold badly, "
        "moved frames? What is learned from the same steps without one?",
        "agent", _OF_AGENT,
        # As many updates in all as base makes at `quick`, none of them on its own play.
        {"prefill": {"agent.model_warmup": 5440, "agent.model_updates": 0},
         "uniform": {"agent.surprise_share": 0.0}, "unmoved": {"agent.shifts": 0},
         "model_free": {"agent.learner": "dqn"}}),
    "agent_codec": Ablation(
        "Does the agent play better with codes that show more of what it meets: fitted to moved "
        "frames too, more of them, of smaller places?",
        "agent", (*_OF_AGENT, "changed_pixels_wrong[source agent]"),
        {"moved": {"agent.fit_moved": True},
         "more": {"agent.fit_moved": True, "agent.num_codes": 1024},
         "fine": {"agent.fit_moved": True, "agent.num_codes": 512, "agent.patch": 7}},
        at="audit"),
    "agent_model": Ablation(
        "Does the agent play better where its world model learns by Muon instead of Adam, or has "
        "hidden layers at each place instead of every second convolution?",
        "agent", _OF_AGENT,
        {"muon": {"place_model.matrix_lr": 0.02}, "hidden": {"place_model.hidden": 64},
         "both": {"place_model.matrix_lr": 0.02, "place_model.hidden": 64}}, at="audit"),
    "agent_rates": Ablation(
        "Does an agent end better where learning rates fall to zero, over as many steps or over "
        "all that the benchmark allows?", "agent", _OF_AGENT,
        {"falling": {"agent.anneal": True},
         "all_steps": {"agent.anneal": True, "agent.num_steps": 100_000}}, at="audit"),
    "agent_transfer": Ablation(
        "Does a world model that learned two games learn the third with fewer of its steps?",
        "agent", _OF_AGENT, {"others": {"agent.start_from": "others"}}),
    "policy_game": Ablation(
        "Can the other two games be learned in the dream?",
        "policy", ("real_return",),
        {"breakout": {"policy.game": "breakout"},
         "ms_pacman": {"policy.game": "ms_pacman"}}),
}
