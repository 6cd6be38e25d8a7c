"""What is varied: one ablation a question; hd.config makes every arm a variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ablation:
    """Arms that each differ from the same profile's base in exactly the fields they declare."""

    question: str
    measure: str  # the stage whose table answers the question
    metrics: tuple[str, ...]  # the metrics of that table that answer it
    arms: Mapping[str, Mapping[str, object]]


_NEXT_CODE = ("l0_changed_accuracy", "l1_changed_accuracy", "l2_changed_accuracy")
_CODES = ("l0_usage", "l2_variance_explained", "r2_ball_x")

ABLATIONS = {
    "split": Ablation(
        "How much of the seed's accuracy comes from held-out windows that overlap training?",
        "world_model", ("l0_accuracy", "l0_changed_accuracy", "l0_cross_entropy"),
        {"windows": {"world_model.split": "windows"}}),
    "mask": Ablation(
        "Does the hierarchical mask predict or dream better than plain causal attention?",
        "world_model", _NEXT_CODE,
        {"causal": {"world_model.mask": "causal"},
         "hierarchical": {"world_model.mask": "hierarchical"},
         "strict": {"world_model.mask": "strict"}}),
    "negatives": Ablation(
        "Which negatives make the contrastive encoder keep the game's state?",
        "encoder", ("temporal_consistency", "f1_overall", "r2_ball_x"),
        {"in_batch": {"encoder.negatives": "in_batch"},
         "chunk": {"encoder.negatives": "chunk"}}),
    "objective": Ablation(
        "What could the same network know, if it were trained on the game's state itself?",
        "encoder", ("f1_overall", "r2_ball_x"),
        {"supervised": {"encoder.objective": "supervised"}}),
    "commitment": Ablation(
        "Can the commitment schedule change tokens when the encoder is frozen?",
        "tokenizer", _CODES,
        {"flat": {"tokenizer.commitment_costs": (0.25, 0.25, 0.25)},
         "reversed": {"tokenizer.commitment_costs": (0.60, 0.25, 0.05)},
         "zero": {"tokenizer.commitment_costs": (0.0, 0.0, 0.0)}}),
    "codebook": Ablation(
        "Do the k-means start and the refill of dead codes matter?",
        "tokenizer", _CODES,
        {"no_kmeans": {"tokenizer.kmeans_iterations": 0},
         "no_refill": {"tokenizer.refill_below": 0.0}}),
    "loss_weights": Ablation(
        "Do the weights 1.0/0.5/0.1 help the coarse level?",
        "world_model", _NEXT_CODE,
        {"equal": {"world_model.level_weights": (1.0, 1.0, 1.0)}}),
    "actions": Ablation(
        "Do shared action meanings help over indices into each game's minimal set?",
        "world_model", _NEXT_CODE,
        {"index": {"world_model.actions": "index"}}),
    "sticky": Ablation(
        "What do the seed's sticky actions change?",
        "tokenizer", ("l0_repeat_rate", "l0_perplexity", "r2_ball_x"),
        {"v5": {"frames.sticky": 0.25}}),
    "policy": Ablation(
        "Does the policy loss or the critic's form matter?",
        "policy", ("real_return",),
        {"ppo": {"policy.loss": "ppo"},
         "scalar_critic": {"policy.critic": "scalar"}}),
    "policy_game": Ablation(
        "Can the other two games be learned in the dream?",
        "policy", ("real_return",),
        {"breakout": {"policy.game": "breakout"},
         "ms_pacman": {"policy.game": "ms_pacman"}}),
}
