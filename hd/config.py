"""Every number that decides a result: one frozen dataclass per stage, the profiles, the ablations.

Nothing else in the package holds a hyperparameter. A field's type says what it may hold, and
resolve refuses anything else before any work. Sources: the seed document (2026) for the sizes and
costs, DreamerV3 (Hafner et al. 2023) for the actor-critic, AtariARI (Anand et al. 2019) for the
probes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from hd.ablations import ABLATIONS, HI_DREAMER, HI_DREAMER_AT, Ablation

GAMES = ("pong", "breakout", "ms_pacman")
STAGES = ("frames", "encoder", "tokenizer", "decoder", "world_model", "imagination", "policy",
          "entropy_floor", "transfer", "agent")
UPSTREAM = {
    "frames": (),
    "encoder": ("frames",),
    "tokenizer": ("encoder",),
    "decoder": ("tokenizer",),
    "world_model": ("tokenizer",),
    "imagination": ("world_model", "decoder"),
    "policy": ("world_model",),
    "entropy_floor": ("world_model",),
    "transfer": ("frames",),
    "agent": (),
}
BESIDE_CHAIN = ("entropy_floor", "transfer", "agent")  # stages that are made only when asked for
TRAINED = ("encoder", "tokenizer", "decoder", "world_model", "policy")
NOTEBOOKS = {  # of book/pipeline: the one that makes a stage
    "frames": "01_frames",
    "encoder": "02_encoder",
    "tokenizer": "03_tokenizer",
    "decoder": "03_tokenizer",
    "world_model": "04_world_model",
    "imagination": "05_imagination",
    "policy": "06_policy",
    "entropy_floor": "08_entropy_floor",
    "transfer": "09_transfer",
    "agent": "10_agent",
}
CHAIN = tuple(dict.fromkeys(made_by for stage, made_by in NOTEBOOKS.items()
                            if stage not in BESIDE_CHAIN))  # notebooks that hd run all executes
INSIDE = {"transfer": ("encoder", "tokenizer", "world_model"),
          "agent": ("place_model", "agent_policy")}  # what a stage trains by itself


# What fields may hold. Numbers are finite, and a whole number passes where a float is expected.
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
PositiveOrZero = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]  # a chance, or the decay of a running mean
MASKS = ("causal", "hierarchical", "seed", "strict")  # see hd.world_model
FEATURES = ("codes", "hidden")  # what a policy sees
SOURCES = ("random", "repeat", "tracker", "agent")  # who plays; steps store the position here


class InputError(ValueError):
    """What a user asked for cannot be done: one line saying what, where, and what is allowed."""


@dataclass(frozen=True)
class FramesConfig:
    """Playing the real games. Steps are agent steps of four emulator frames."""

    num_steps: Count = 100_000  # at least, per game; whole episodes only
    min_episodes: CountOrZero = 4
    sticky: BelowOne = 0.0  # chance that the emulator repeats an action; 0.0 as in Atari-100k
    noop_max: CountOrZero = 30
    sources: Mapping[Literal[SOURCES], PositiveOrZero] = field(
        default_factory=lambda: {"random": 1.0})
    val_share: Share = 0.2  # of the episodes of each game: what is chosen is chosen on them
    # Read once, for the numbers of a table; None: a table, split "val", is of what validates.
    test_share: Annotated[float, Gt(0), Lt(1)] | None = 0.2


@dataclass(frozen=True)
class TrainedStage:
    """What every trained stage has in common; see hd.run.training."""

    num_steps: Count = 1000
    batch_size: Count = 256
    accumulate: Count = 1  # batches per optimizer step
    lr: PositiveOrZero = 3e-4  # 0 trains nothing, for comparison
    weight_decay: PositiveOrZero = 0.0
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    # "cosine": warm-up of min(1000, 5%) of the steps, then cosine
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Positive = 1.0  # maximal gradient norm
    # "auto": bfloat16 or float16 where the device is fast
    precision: Literal["auto", "float32"] = "auto"
    eval_every: CountOrZero = 0  # steps between evaluations; 0 evaluates at the end only


@dataclass(frozen=True)
class EncoderConfig(TrainedStage):
    """CNN and temporal InfoNCE."""

    # "spatiotemporal": contrastive at every place; "supervised" reads RAM: the ceiling
    objective: Literal["contrastive", "spatiotemporal", "supervised"] = "contrastive"
    commitment_costs: tuple[PositiveOrZero, ...] = ()  # one a level: codebooks train along
    negatives: Literal["single", "in_batch", "chunk"] = "single"  # "single" is the seed's
    temperature: Positive = 0.1
    weight_decay: PositiveOrZero = 1e-5
    chunk: Annotated[int, Ge(2)] = 64  # consecutive frames per chunk, for "chunk"
    group: Count = 8  # near frames drawn together, for "in_batch"
    min_distance: CountOrZero = 10  # frames between anchor and the single negative


@dataclass(frozen=True)
class TokenizerConfig(TrainedStage):
    """(Residual) vector quantization of frozen embeddings with EMA codebooks."""

    # "product": each level its own slice; "library": other people's
    kind: Literal["residual", "product", "library"] = "residual"
    num_levels: Count = 3
    num_codes: Count = 256
    project_dim: CountOrZero = 0  # of a PCA before quantization; 0 quantizes embeddings
    commitment_costs: tuple[PositiveOrZero, ...] = (0.05, 0.25, 0.60)
    decay: BelowOne = 0.99
    kmeans_iterations: CountOrZero = 10  # 0 starts from a random subset of the first batch
    # Codes used less than this part of a fair share are refilled; 0 never refills.
    refill_below: PositiveOrZero = 0.1


@dataclass(frozen=True)
class DecoderConfig(TrainedStage):
    """Deconvolution from quantized vectors to the newest frame."""

    width: Count = 32


@dataclass(frozen=True)
class WorldModelConfig(TrainedStage):
    """Transformer over [L0, L1, L2, action] tokens."""

    num_levels: Count = 3
    num_codes: Count = 256
    num_actions: Count = 18
    num_layers: Count = 6
    dim: Count = 384
    num_heads: Count = 6
    ffn_dim: Count = 1536
    dropout: BelowOne = 0.1
    attention_dropout: BelowOne = 0.1  # on attention weights; 0 is twice as fast on a CPU
    max_steps: Annotated[int, Ge(2)] = 64  # longest sequence, and the training window
    mask: Literal[MASKS] = "seed"
    level_weights: tuple[PositiveOrZero, ...] = (1.0, 0.5, 0.1)
    detach_heads: bool = True  # reward and continue heads send no gradient into the model
    # "meaning": ALE ids; "index": position in the game's minimal set
    actions: Literal["meaning", "index"] = "meaning"
    # "windows", the seed's: a random 5% of windows is held out
    split: Literal["episodes", "windows"] = "episodes"
    game_shares: tuple[PositiveOrZero, ...] = ()  # of a batch, per game; empty: as windows are
    # "epoch": each step once per epoch; "stride1": every start is a window
    windows: Literal["epoch", "stride1"] = "epoch"
    lr: PositiveOrZero = 3e-4
    weight_decay: PositiveOrZero = 0.1
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    schedule: Literal["constant", "cosine"] = "cosine"
    batch_size: Count = 32
    accumulate: Count = 2


@dataclass(frozen=True)
class ImaginationConfig:
    """Open-loop dreams from held-out real context."""

    num_dreams: Count = 200  # per game
    context: Count = 16  # real steps before a dream
    horizon: Count = 50  # cut to what the world model's max_steps leaves


@dataclass(frozen=True)
class PolicyConfig(TrainedStage):
    """Actor-critic in the frozen world model (DreamerV3's losses, the seed's sizes)."""

    game: Literal[GAMES] = "pong"
    loss: Literal["reinforce", "ppo"] = "reinforce"
    features: Literal[FEATURES] = "codes"  # "hidden": what is made of the past, and the codes
    critic: Literal["two_hot", "scalar"] = "two_hot"  # "scalar" is the seed's
    hidden: Count = 512
    context: Count = 16
    horizon: Count = 15
    gamma: Annotated[float, Gt(0), Le(1)] = 0.997
    lam: Share = 0.95
    entropy: PositiveOrZero = 3e-4
    uniform_mix: BelowOne = 0.01
    return_decay: BelowOne = 0.99  # of the percentile range that scales the advantages
    critic_ema: Share = 0.98
    ppo_clip: Positive = 0.2
    ppo_epochs: Count = 4
    ppo_minibatches: Count = 1  # into which a batch of dreams is dealt in each of them
    batch_size: Count = 64
    eval_episodes: Count = 100
    eval_sticky: BelowOne = 0.0

    @property
    def least_range(self) -> float:
        """What the range of returns that scales the advantages counts as at least."""
        return 1.0  # Hafner et al. 2023, eq. 7


@dataclass(frozen=True)
class PlaceModelConfig(TrainedStage):
    """World model over tokens at places; num_steps is not used: the agent counts its updates."""

    width: Count = 32  # numbers at each place
    code_width: Count = 32  # of what stands for a code
    num_blocks: Count = 2  # of two convolutions, before the action and again after it
    # Numbers at each place inside a block, whose second convolution is then a linear map; twice as
    # many inside the map by which codes enter. None: as many as outside, and codes enter linearly.
    hidden: Count | None = None
    steps: Annotated[int, Ge(1), Le(4)] = 4  # that it looks back, within a stack of frames
    num_actions: Count = 18
    temperature: Positive = 0.5  # of what dreams draw: below 1 a code that is likely is likelier
    ema: BelowOne = 0.99  # of the weights, whose average plays and dreams; 0 takes the last
    code_weight: Positive = 0.1  # of a nat of codes, all places together, beside one of reward
    batch_size: Count = 128
    lr: PositiveOrZero = 3e-3
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    matrix_lr: Positive | None = None  # of hidden weights, see hd.run.muon; None for Adam's lr


@dataclass(frozen=True)
class AgentPolicyConfig(PolicyConfig):
    """The agent's actor-critic: as the policy's, tuned to returns that are signs of points."""

    # A dream costs many times what a pass over it does, so each is learned from more than once.
    loss: Literal["reinforce", "ppo"] = "ppo"
    ppo_minibatches: Count = 4
    lr: PositiveOrZero = 2.5e-4
    features: Literal[FEATURES] = "hidden"
    hidden: Count = 256
    gamma: Annotated[float, Gt(0), Le(1)] = 0.985
    entropy: PositiveOrZero = 1e-3
    batch_size: Count = 128
    smallest_range: Positive = 0.1  # of returns, that advantages are scaled by

    @property
    def least_range(self) -> float:
        """What the range of returns that scales the advantages counts as at least."""
        return self.smallest_range


@dataclass(frozen=True)
class AgentConfig:
    """The online loop: a block of play with the present policy, then updates, again."""

    num_steps: Count = 100_000  # agent steps in all, random prefill included
    prefill: Count = 5000  # of them by chance, before anything is trained
    block: Count = 256  # steps of all emulators together between updates
    num_emulators: Annotated[int, Ge(3)] = 8  # of what is played anew, two judge the others' probes
    model_warmup: CountOrZero = 1600  # updates of the world model after the prefill
    dreams_warmup: CountOrZero = 20  # batches of dreams that the policy learns from, then
    model_updates: CountOrZero = 128  # a block
    dreams: Count = 16  # a block, each learned from as agent_policy says
    anneal: bool = True  # learning rates fall to 0 over the steps, along a straight line
    life_ends: bool = True  # a lost life ends the dream; the game itself goes on
    recent_steps: Count = 5000  # of which a batch takes recent_share, the rest from all steps
    recent_share: Share = 0.5
    patch: Count = 12  # pixels of a place's side; divides 84
    num_levels: Count = 3
    num_codes: Count = 256
    kind: Literal["residual", "product"] = "residual"
    surprise_share: Share = 0.5  # of the world model's batches: by how badly it foretold a step
    outcome_share: Share = 0.06  # of them: shortly before a reward or death
    forget: Share = 0.1  # of the changes of places, in half of what the world model learns from
    shifts: CountOrZero = 16  # ways in which frames are also moved against the grid of places
    fit_moved: bool | None = None  # whether the codec is fitted to these too; None for no
    sticky: BelowOne = 0.0
    noop_max: CountOrZero = 30
    eval_episodes: Count = 100
    learner: Literal["dqn"] | None = None  # instead of a model and dreams, see measure.model_free
    # Games whose agents learn first, each from the world model of the one before, and the last of
    # which gives its model to this one; None for a model that starts from nothing.
    start_from: Literal["others"] | tuple[str, ...] | None = None


@dataclass(frozen=True)
class RamPolicyConfig:
    """Cross-entropy method for a linear policy on the true state, a reference player."""

    population: Count = 40  # candidates per generation
    elites: Count = 8  # of them, from which the next generation is drawn
    generations: Count = 14
    episodes: Count = 1  # per candidate
    max_steps: Count = 700  # agent steps after which a training episode is cut off
    noise: PositiveOrZero = 0.3  # added to the elites' deviation; fades to 0
    final_episodes: Count = 3  # per finalist: the best of each generation, and the last mean
    eval_episodes: Count = 5  # at most: two players that never miss rally on to the step limit


@dataclass(frozen=True)
class EntropyFloorConfig:
    """How much of the next code is open: branches of the emulator, and steps that look alike."""

    num_states: Count = 200  # per game, from which the emulator is branched
    num_branches: Annotated[int, Ge(2)] = 32  # per state
    sticky: BelowOne = 0.25  # of the branches; without sticky actions they are all the same
    contexts: tuple[Count, ...] = (1, 2, 4, 8, 16)  # steps of codes and actions that look alike


@dataclass(frozen=True)
class TransferConfig:
    """Pre-training on all games but one, adapting the world model to that one."""

    budgets: tuple[Count, ...] = (1000, 5000, 20_000)  # steps of the new game, whole episodes
    source_steps: Count = 300  # of training on the source games
    num_steps: Count = 80  # of training on the new game


@dataclass(frozen=True)
class ProbeConfig:
    """Linear probes as AtariARI's and small MLP probes for coordinates."""

    max_rows: Count = 50_000  # rows per game over both splits
    epochs: Count = 100
    patience: Count = 15
    fit_on: Literal["train", "validation"] = "train"  # whose episodes; scored on the test's
    # Of linear probes. AtariARI: False, 5e-4 and 64; here they see 10 to 100 times fewer batches.
    standardise: bool = True
    lr: Positive = 5e-3
    batch_size: Count = 256


@dataclass(frozen=True)
class Profile:
    """One size of the whole study."""

    name: str
    purpose: str
    frames: FramesConfig = FramesConfig()
    encoder: EncoderConfig = EncoderConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    decoder: DecoderConfig = DecoderConfig()
    world_model: WorldModelConfig = WorldModelConfig()
    imagination: ImaginationConfig = ImaginationConfig()
    policy: PolicyConfig = PolicyConfig()
    ram_policy: RamPolicyConfig = RamPolicyConfig()
    entropy_floor: EntropyFloorConfig = EntropyFloorConfig()
    transfer: TransferConfig = TransferConfig()
    agent: AgentConfig = AgentConfig()
    place_model: PlaceModelConfig = PlaceModelConfig()
    agent_policy: AgentPolicyConfig = AgentPolicyConfig()
    probes: ProbeConfig = ProbeConfig()


_SMALL_WORLD_MODEL = WorldModelConfig(
    num_layers=3, dim=96, num_heads=3, ffn_dim=384, max_steps=16, accumulate=1, lr=1e-3,
    attention_dropout=0.0)

PROFILES = {
    "smoke": Profile(
        "smoke", "tests, CI and nbval; tiny models, at least four whole episodes a game",
        frames=FramesConfig(num_steps=1500, val_share=0.25, test_share=0.25),
        encoder=EncoderConfig(num_steps=40, batch_size=64, precision="float32"),
        tokenizer=TokenizerConfig(num_steps=40, batch_size=512, precision="float32"),
        decoder=DecoderConfig(num_steps=40, batch_size=32, width=16, lr=1e-3,
                              precision="float32"),
        world_model=replace(_SMALL_WORLD_MODEL, num_layers=2, dim=48, ffn_dim=96, num_steps=60,
                            batch_size=16, max_steps=24, precision="float32"),
        imagination=ImaginationConfig(num_dreams=8, context=8, horizon=15),
        policy=PolicyConfig(num_steps=20, batch_size=16, context=8, hidden=64, eval_episodes=2,
                            precision="float32"),
        ram_policy=RamPolicyConfig(population=4, elites=2, generations=2, max_steps=200),
        entropy_floor=EntropyFloorConfig(num_states=8, num_branches=8),
        transfer=TransferConfig(budgets=(300, 600), source_steps=20, num_steps=10),
        agent=AgentConfig(num_steps=768, prefill=512, block=64, num_emulators=4, model_warmup=20,
                          dreams_warmup=4, model_updates=2, dreams=2, eval_episodes=2),
        place_model=PlaceModelConfig(width=16, batch_size=32, precision="float32"),
        agent_policy=AgentPolicyConfig(hidden=32, batch_size=16, precision="float32"),
        probes=ProbeConfig(max_rows=1000, epochs=5),
    ),
    "quick": Profile(
        "quick", "the newcomer's first report: frames to policy in ten minutes on two cores",
        frames=FramesConfig(num_steps=10_000, min_episodes=8),
        encoder=EncoderConfig(num_steps=400, batch_size=128),
        tokenizer=TokenizerConfig(num_steps=400, batch_size=2048),
        decoder=DecoderConfig(num_steps=400, batch_size=64, lr=1e-3),
        world_model=replace(_SMALL_WORLD_MODEL, num_steps=600, max_steps=32, eval_every=100),
        imagination=ImaginationConfig(num_dreams=64, horizon=15),
        policy=PolicyConfig(num_steps=250, eval_episodes=5),
        ram_policy=RamPolicyConfig(population=20, elites=5, generations=6, max_steps=400,
                                   eval_episodes=2),
        agent=AgentConfig(num_steps=12_800, eval_episodes=10),
        probes=ProbeConfig(max_rows=4000, epochs=25),
    ),
    "audit": Profile(
        "audit", "ablations: few whole episodes seen many times",
        frames=FramesConfig(num_steps=5400, min_episodes=6),  # of which about 3,200 train
        encoder=EncoderConfig(num_steps=600, batch_size=128, eval_every=100),
        tokenizer=TokenizerConfig(num_steps=300, batch_size=2048),
        decoder=DecoderConfig(num_steps=400, batch_size=64, lr=1e-3),
        world_model=replace(_SMALL_WORLD_MODEL, num_layers=4, dim=128, num_heads=4, ffn_dim=512,
                            num_steps=320, batch_size=16, max_steps=64, eval_every=16),
        imagination=ImaginationConfig(num_dreams=200, horizon=48),
        policy=PolicyConfig(num_steps=300, eval_episodes=100),
        transfer=TransferConfig(budgets=(1000, 3000), source_steps=160, num_steps=120),
        agent=AgentConfig(num_steps=46_080, anneal=False),
        probes=ProbeConfig(max_rows=8000, epochs=40),
    ),
    "desk": Profile(
        "desk", "the seed's sizes, trained as far as two processor cores get in two hours",
        encoder=EncoderConfig(num_steps=2400, batch_size=256, eval_every=300),
        tokenizer=TokenizerConfig(num_steps=1500, batch_size=4096),
        decoder=DecoderConfig(num_steps=1500, batch_size=64, lr=1e-3),
        world_model=WorldModelConfig(num_steps=300, eval_every=30, attention_dropout=0.0),
        imagination=ImaginationConfig(num_dreams=200, horizon=48),
        policy=PolicyConfig(num_steps=120, eval_episodes=20),
        agent=AgentConfig(model_updates=64, dreams=8),
        place_model=PlaceModelConfig(width=64, batch_size=256),
        agent_policy=AgentPolicyConfig(batch_size=256),
        probes=ProbeConfig(max_rows=20_000, epochs=40),
    ),
    "paper": Profile(
        "paper", "the seed's sizes and lengths (world model: 60,000 of 146,250 steps), for one GPU",
        encoder=EncoderConfig(num_steps=35_000, batch_size=256, eval_every=3500),
        tokenizer=TokenizerConfig(num_steps=3650, batch_size=4096),
        decoder=DecoderConfig(num_steps=10_000, batch_size=256, lr=1e-3),
        world_model=WorldModelConfig(num_steps=60_000, eval_every=1500, windows="stride1"),
        imagination=ImaginationConfig(num_dreams=500),
        policy=PolicyConfig(num_steps=20_000, batch_size=512),
        agent=AgentConfig(prefill=5008, num_emulators=16, model_updates=64, dreams=8),
        place_model=PlaceModelConfig(width=64, batch_size=256),
        agent_policy=AgentPolicyConfig(batch_size=512),
        transfer=TransferConfig(source_steps=6000, num_steps=2000),
    ),
}


def variants() -> dict[str, Mapping[str, object]]:
    """Every variant's name and the fields in which it differs from base ("mask.strict", ...).

    "base" is the faithful pipeline, "hi-dreamer" our own, the others are ablations' arms.
    """
    arms = {f"{name}.{arm}": fields
            for name, chosen in ABLATIONS.items() for arm, fields in chosen.arms.items()}
    return {"base": {}, "hi-dreamer": HI_DREAMER, **arms}


def resolve(profile: str, variant: str = "base",
            overrides: Mapping[str, object] | None = None, games=GAMES) -> Profile:
    """The profile with the variant's fields, then the overrides ("stage.field": value), applied.

    The policy plays the first of the games where the profile's game is not among them.
    Raises InputError for an unknown profile, variant or field, a value of another type or out of
    its choices, and for a variant whose policy needs a game that is not among the games.
    """
    allowed("profile", profile, PROFILES)
    known = variants()
    allowed("variant", variant, known)
    resolved, fields = PROFILES[profile], dict(known[variant])
    if variant == "hi-dreamer":
        fields |= HI_DREAMER_AT.get(profile, {})
    fields |= overrides or {}
    for key, value in fields.items():
        resolved = _with_field(resolved, key, value)
    if resolved.policy.game in games:
        return resolved
    if "policy.game" in fields:
        raise InputError(f"variant {variant} needs the game {resolved.policy.game}; the games are "
                         f"{', '.join(games)}")
    return replace(resolved, policy=replace(resolved.policy, game=games[0]))


def ablation(name: str) -> Ablation:
    """The ablation of this name; raises InputError that lists the known ones."""
    allowed("ablation", name, ABLATIONS)
    return ABLATIONS[name]


def variants_of(ablation: str) -> tuple[str, ...]:
    """The variants that an ablation compares: base, then each of its arms."""
    return "base", *(f"{ablation}.{arm}" for arm in ABLATIONS[ablation].arms)


def allowed(what: str, value, choices) -> None:
    """Raise InputError naming the choices unless value is one of them."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"unknown {what} {value!r}; allowed: {', '.join(choices)}")


def check_games(games) -> tuple[str, ...]:
    """The games as a tuple in the fixed order; raises InputError for unknown, repeated or none."""
    if not isinstance(games, (str, tuple, list)):
        raise InputError(f"games must be one or more of {', '.join(GAMES)}; got {games!r}")
    games = tuple(games.split(",")) if isinstance(games, str) else tuple(games)
    for game in games:
        allowed("game", game, GAMES)
    if not games or len(set(games)) != len(games):
        raise InputError(f"games must be one or more of {', '.join(GAMES)}, each once; got {games}")
    return tuple(game for game in GAMES if game in games)


def check_seed(seed) -> int:
    """The seed as an int; raises InputError unless it is a whole number from 0 to 2**31 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise InputError(f"seed must be a whole number from 0 to {2**31 - 1}; got {seed!r}")
    return seed


def check_seeds(seeds) -> tuple[int, ...]:
    """The seeds as a tuple; raises InputError unless there are some, each a seed and each once."""
    seeds = tuple(map(check_seed, seeds))
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds must be one or more whole numbers, each once; got "
                         f"{', '.join(map(str, seeds)) or 'none'}")
    return seeds


def check_value(what: str, kind, value, *, like) -> None:
    """Raise InputError unless value is of the kind: a type, as a field of a config declares it.

    like: an example of what would do.
    """
    if get_origin(kind) is Literal:
        return allowed(what, value, get_args(kind))
    from pydantic import ConfigDict, TypeAdapter, ValidationError  # late: takes a tenth of a second

    strict = ConfigDict(strict=True, allow_inf_nan=False)
    try:
        TypeAdapter(kind, config=strict).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise InputError(f"{what} must be like {like!r}; got {value!r}: "
                         f"{reason[0].lower()}{reason[1:]}") from None


def _with_field(profile: Profile, key: str, value) -> Profile:
    stage, _, name = key.partition(".")
    sections = [f.name for f in dataclasses.fields(Profile) if f.name not in ("name", "purpose")]
    allowed("config section", stage, sections)
    section = getattr(profile, stage)
    kinds = get_type_hints(type(section), include_extras=True)
    allowed(f"field of {stage}", name, kinds)
    check_value(key, kinds[name], value, like=getattr(section, name))
    return replace(profile, **{stage: replace(section, **{name: value})})
