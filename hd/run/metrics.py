"""The names of metrics and their meaning: the one place that builds, reads and explains them.

A name is a metric, and in brackets what sets its value apart from the plain one:

    r2_ball_x                       the plain value
    r2_ball_x[untrained]            another method's, or another count of the same quantity
    r2_ball_x[source tracker]       on the held-out steps that this source played
    rms_error_ball_x[at 70]         where the ball is near this place (RAM units)
    l0_state_floor[sticky 0.25]     at this share of sticky actions
    l0_state_floor[sticky 0.25, ball in play]       the same, and words beside it
    l0_shared_frames[from 0.001]    counting what has at least this share
    seed_state_correlation[columns][dinov2]         a word added to a name that has one

Write `named("r2_ball_x", "untrained")`, read `parsed("r2_ball_x[untrained]").words`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from hd.config import InputError

NUMBERS = {"at": "at", "sticky": "sticky", "from": "at_least"}  # in brackets: in a Name


class Metric(NamedTuple):
    """What a metric is: in words, its unit, "higher", "lower" or "", and its baseline."""

    definition: str
    unit: str
    better: str
    baseline: str


@dataclass(frozen=True)
class Name:
    """A metric's name in parts; see named for what they mean."""

    metric: str
    words: tuple[str, ...] = ()
    source: str | None = None
    at: float | None = None
    sticky: float | None = None
    at_least: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing stands in brackets."""
        return self == Name(self.metric)


def named(metric: str, *words: str, source: str | None = None, at: float | None = None,
          sticky: float | None = None, at_least: float | None = None) -> str:
    """The name of a metric, with what sets this value apart in brackets.

    words: a method, or any other words; empty ones are left out, so named("m", "") is "m".
    source: who played the steps; at: a place; sticky: the share of sticky actions; at_least: the
    smallest share that counts. A metric that already has brackets gets further ones. Raises
    ValueError for words that could not be read back.
    """
    words = tuple(word for word in words if word)
    wrong = [word for word in (*words, source or "") if re.search(r"[][,]", word)]
    if wrong:
        raise ValueError(f"a part of a metric's name holds a bracket or comma: {wrong[0]!r}")
    parts = [f"{key} {value:g}" for key, value in zip(NUMBERS, (at, sticky, at_least))
             if value is not None]
    parts += [] if source is None else [f"source {source}"]
    parts += words
    return f"{metric}[{', '.join(parts)}]" if parts else metric


def parsed(name: str) -> Name:
    """A name in its parts: what named was given."""
    metric, _, inside = name.partition("[")
    found, words = {}, []
    parts = re.split(r"\]\[|, ", inside.removesuffix("]")) if inside else []
    for part in parts:
        if number := re.fullmatch(r"(at|sticky|from) ([\d.e+-]+)", part):
            found[NUMBERS[number[1]]] = float(number[2])
        elif part.startswith("source "):
            found["source"] = part.removeprefix("source ")
        else:
            words.append(part)
    return Name(metric, tuple(words), **found)


# name | definition | unit | better | baseline. {level} 0 is the coarsest, other words in braces
# stand for any; val_metric is the metric on held-out windows while training. The notation page has
# the formulas.
_METRICS = """
steps | stored agent steps | count | - | -
episodes | whole episodes, stored or played | count | - | -
windows_of_{length} | windows of so many steps inside episodes | count | - | -
boundary_violations | windows that cross an episode's end | count | lower | windows cut anywhere
games_ended | episodes that ran to their end | count | - | -
episode_length | mean length of stored episodes | steps | - | -
return | mean unclipped score of stored episodes | points | - | -
rewarded_share | steps that score | share | - | -
source_share | steps that a source played | share | - | share of episodes asked of it
temporal_consistency | distance of consecutive / of random pairs | ratio | lower | untrained encoder
diversity | mean distance of 1000 random embeddings | distance | - | untrained encoder
f1_{category} | RAM state by linear probes, weighted F1 | F1 | higher | {probed}
r2_{coordinate} | R2 of a coordinate read by an MLP, ball in play | R2 | higher | {probed}
error_{coordinate} | median absolute error of that | RAM units | lower | {probed}
rms_error_{coordinate} | root mean square error of that, by place | RAM units | lower | {probed}
ball_share | training steps with the ball at a place | share | - | equal shares
state_correlation | best |r| over dimensions, mean of coordinates | |r| | higher | {probed}
seed_temporal_consistency | every 100th pair, any episode | ratio | lower | untrained encoder
seed_temporal_consistency_mean | mean of that over games | ratio | lower | untrained encoder
seed_diversity | diversity over all steps, no split | distance | - | untrained encoder
embedding_norm_deviation | largest |norm - 1| | distance | lower | untrained encoder
seed_state_correlation | best |r| with the seed's pixel boxes | |r| | higher | untrained encoder
seed_pair_correlation | Spearman of distances of pairs | rho | higher | untrained encoder
box_agreement_{coordinate} | |r| of a pixel box and RAM | |r| | higher | -
box_found_{coordinate} | frames in which a pixel box finds something | share | - | -
dinov2_weights | 1 where DINOv2 weights were found | 0 or 1 | - | -
l{level}_usage | codes that occur | share | higher | random codes
l{level}_perplexity | exp of the codes' entropy | codes | higher | random codes
l{level}_repeat_rate | steps whose code equals the last | share | - | random codes
l{level}_cosine | embedding and its codes up to here | cosine | higher | mean embedding
l{level}_variance_explained | by the codes up to here | share | higher | mean embedding
l{level}_shared_frames | frames on codes that every game uses | share | - | random codes
l{level}_shared_codes | codes that every game uses | share | - | random codes
l{level}_state_information | of code and RAM coordinates in 8 bins | nats | higher | bins shuffled
state_bits | entropy of RAM labels, each by itself or all together | bits | - | log2 of the steps
l{level}_same_as_base | steps with the code that base gives them | share | - | chance
l{level}_game_information | mutual information of code and game | nats | - | ceiling: H(game)
pixel_error | decoded pixels in 0..1 | squared | lower | mean picture
moving_pixel_error | where the game differs from its mean picture | squared | lower | mean picture
l{level}_changed_cross_entropy | next code where it changes | nats | lower | best trivial predictor
l{level}_changed_accuracy | next code where it changes | share | higher | best trivial predictor
l{level}_cross_entropy | next code, given the true past | nats | lower | best trivial predictor
l{level}_accuracy | next code, given the true past | share | higher | best trivial predictor
reward_squared_error | predicted reward | points² | lower | mean training reward
reward_average_precision | finding rewards by |predicted reward| | share | higher | base rate
end_average_precision | finding episode ends by P(end) | share | higher | base rate
window_share | training windows drawn from the game | share | - | share of training steps
parameters | trained numbers of the model | count | - | -
tokens_per_second | in training, four tokens a step | tokens/s | higher | -
codebook_change | largest change of a codebook while the world model trains | distance | - | -
exposures | how often training saw each step | times | - | -
transfer_l{level}_cross_entropy | next code of a game new to it | nats | lower | from scratch
transfer_l{level}_accuracy | next code of a game new to it | share | higher | from scratch
transfer_l{level}_changed_cross_entropy | that where the code changes | nats | lower | from scratch
transfer_l{level}_changed_accuracy | that where the code changes | share | higher | from scratch
transfer_l0_gain | nats that pre-training saves on L0 codes | nats | higher | no gain
transfer_steps | steps of the new game that adapting saw | count | - | -
dream_l{level}_accuracy | dreamed codes that are true at a step | share | higher | last step copied
dream_reward_error | |dreamed - true| reward of a dream | points | lower | no reward
dream_reward_average_precision | finding dreams that score | share | higher | base rate
dream_error_{coordinate} | median, from dreamed codes | RAM units | lower | still or straight guess
dream_turn_recall_{coordinate} | truth's first turn in time, ± 2 | share | higher | another dream
dreams_with_turn_{coordinate} | dreams in play whose truth turns within 15 steps | count | - | -
dream_reward_recall | scoring steps dreamed within 2 steps | share | higher | another dream
dream_reward_precision | dreamed ones true within 2 steps | share | higher | another dream
dreams_in_play | dreams with the ball in play at start and step | count | - | -
dreams | dreams scored | count | - | -
states | states from which the emulator was branched | count | - | -
branching_states | states whose branches differ in frame, RAM or reward | share | - | other sticky
l{level}_state_floor | open given state, action, earlier levels | nats | - | level over all states
l{level}_state_error | best guess from all that is wrong | share | - | one guess for all states
l{level}_context_floor | open given the last codes, action, earlier levels | nats | - | any step
twin_share | steps whose last k steps another episode had too | share | - | -
l{level}_twin_disagreement | such steps that differ in the next code | share | - | any two steps
real_return | mean unclipped score of real episodes | points | higher | random play
changed_pixels_wrong | pixels changed in a step that codes show wrong | share | lower | step before
contacts | states shortly before a contact, in new play | count | - | -
contact_lost_share | contacts that lose a point or a life; dreamed: in its own dream | share | - | -
contact_auc | AUC of the dream knowing that it is lost | AUC | higher | gradient boosting on RAM
held_action_error | dreamed return of one held action, against the emulator | points | lower | zero
training_return | mean return of the last ten training episodes | points | higher | random play
share_won | points won of all points, in 4,096 training steps | share | higher | random play
training_steps | real steps a reference player was trained with | count | - | -
real_length | mean length of real episodes | steps | - | -
loss | what the stage minimises (supervised: squared deviations) | nats | lower | -
positive_similarity | cosine of a frame's embedding and the next's | cosine | - | -
squared_error | reconstruction error | squared | lower | -
codes | next-code loss, levels weighted | nats | lower | -
train_codes | that on training windows, without dropout | nats | lower | -
reward | two-hot loss of the reward head | nats | lower | -
continue | loss of the continue head | nats | lower | -
actor | the actor's loss | points, scaled | lower | -
critic | the critic's loss | nats | lower | -
entropy | of the policy | nats | - | -
imagined_{quantity} | lambda-return at a dream's start, reward per step | points | higher | -
""".replace("{probed}", "untrained encoder; codes: embeddings")

METRICS = {name: Metric(*("" if part == "-" else part for part in parts))
           for name, *parts in (line.split(" | ") for line in _METRICS.strip().splitlines())}


def key_of(name: str) -> str:
    """The entry of METRICS that explains a metric's name; raises InputError for an unknown one."""
    metric = parsed(name).metric
    for known in (metric, metric.removeprefix("val_")):
        found = next((key for key in METRICS if matches(key, known)), None)
        if found is not None:
            return found
    raise InputError(f"metric {name!r} is not explained; add it to hd.run.metrics.METRICS")


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern: {level} stands for a digit, other words in braces for any."""
    regex = re.sub(r"\{(\w+)\}", lambda hole: r"\d" if hole[1] == "level" else r"\w+", pattern)
    return pattern == name or re.fullmatch(regex, name) is not None
