"""World model over tokens at places: what the neighbours and the action do to each place.

A step is L x G codes (hd.patches), G places on a grid. What is seen of the last steps is mixed
between neighbouring places by convolutions, so that what it learns of an object at one place holds
at all places. Where an object stands inside its place changes its codes altogether: so the model
also learns from frames that are moved against the grid (random shifts, as in Kostrikov et al.
2020), and is told where each place then is. First it says where anything changes, then, for these
places alone, the new codes level by level, each given the coarser ones: most places are background
and cost nothing. Rewards are predicted by sign, as the agent learns from signs (Mnih et al. 2015).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hd.config import InputError, PlaceModelConfig, allowed
from hd.run.training import Loss
from hd.world_model import check_ids, draw

SIGNS = (-1.0, 0.0, 1.0)  # of a reward, in the order of the head's outputs
WAVES = 6  # of the place's row and column each: sines and cosines, the longest over two frames


class PlaceModel(nn.Module):
    """Predicts the next step's tokens, the reward's sign and whether the episode goes on.

    codebooks (L, K, P) of all places; codes enter and are predicted by their vectors, together
    with what is learned of each code by itself.
    """

    def __init__(self, cfg: PlaceModelConfig, codebooks: torch.Tensor, num_places: int):
        super().__init__()
        grid = round(num_places**0.5)
        if grid**2 != num_places:
            raise InputError(f"places must form a square; got {num_places} of them")
        self.cfg, self.num_places = cfg, num_places
        self.num_levels, self.num_codes, patch = codebooks.shape
        rows_and_columns = torch.cartesian_prod(*[(torch.arange(grid) + 0.5) / grid] * 2)
        self.register_buffer("centres", 2 * rows_and_columns - 1, persistent=False)
        width, code = cfg.width, cfg.code_width
        self.register_buffer("codebooks", torch.empty_like(codebooks))
        self.read_codebooks(codebooks)
        self.register_buffer("signs", torch.tensor(SIGNS), persistent=False)
        # What is seen.
        self.code_projection = nn.Linear(patch, code, bias=False)
        self.code_embedding = nn.Parameter(torch.zeros(self.num_levels, self.num_codes, code))
        self.inputs = (nn.Linear(cfg.steps * code, width) if cfg.hidden is None else
                       nn.Sequential(nn.Linear(cfg.steps * code, 2 * cfg.hidden), nn.SiLU(),
                                     nn.Linear(2 * cfg.hidden, width)))
        self.place_input = nn.Linear(2 + 4 * WAVES, width)
        self.past_actions = nn.Linear((cfg.steps - 1) * cfg.num_actions, width)
        self.seen = nn.ModuleList(_Block(width, grid, cfg.hidden, is_global=i == 0)
                                  for i in range(cfg.num_blocks))
        self.seen_norm = nn.LayerNorm(width)
        # What the action makes of it.
        self.action = nn.Embedding(cfg.num_actions, 2 * width)
        nn.init.normal_(self.action.weight, std=0.3)
        self.acted = nn.ModuleList(_Block(width, grid, cfg.hidden, is_global=i == 0)
                                   for i in range(cfg.num_blocks))
        self.acted_norm = nn.LayerNorm(width)
        # What is predicted.
        self.change = nn.Linear(width, 1)
        nn.init.zeros_(self.change.weight)
        nn.init.constant_(self.change.bias, -2.0)  # few places change
        self.place_query = nn.Linear(2 + 4 * WAVES, width)
        for part in self.place_query.parameters():
            nn.init.zeros_(part)
        self.coarser = nn.Linear(code, width)
        self.queries = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, code))
            for _ in range(self.num_levels))
        self.key_projections = nn.ModuleList(nn.Linear(patch, code, bias=False)
                                             for _ in range(self.num_levels))
        self.key_embedding = nn.Parameter(
            0.02 * torch.randn(self.num_levels, self.num_codes, code))
        self.code_bias = nn.Parameter(torch.zeros(self.num_levels, self.num_codes))
        self.summary = nn.Linear(width, 8)
        self.outcome_head = nn.Sequential(nn.Linear(8 * num_places, 128), nn.SiLU(),
                                          nn.Linear(128, len(SIGNS) + 1))
        for part in self.outcome_head[-1].parameters():
            nn.init.zeros_(part)

    @torch.no_grad()
    def read_codebooks(self, codebooks: torch.Tensor) -> None:
        """Take over codebooks (L, K, P), every level scaled to a mean square of 1: what the finer
        levels add is small, and would be learned late."""
        size = codebooks.pow(2).mean((1, 2), keepdim=True).sqrt()
        self.codebooks.copy_(codebooks / size.clamp_min(1e-6))

    def go_on_from(self, other: PlaceModel) -> None:
        """Take over what the model of another game learned, but for what it learned of single
        codes, which are other patches there."""
        of_codes = ("codebooks", "code_embedding", "key_embedding", "code_bias")
        taken = {name: part for name, part in other.state_dict().items() if name not in of_codes}
        self.load_state_dict(self.state_dict() | taken)

    # ---- from tokens to predictions

    def tables(self):
        """(L K, E): what each code of each level is read as."""
        return (self.code_projection(self.codebooks) + self.code_embedding).flatten(0, 1)

    def embed(self, tokens, tables):
        """tokens (..., L, G) -> (..., G, E): the sum over levels."""
        offsets = torch.arange(self.num_levels, device=tokens.device) * self.num_codes
        return F.embedding(tokens + offsets[:, None], tables).sum(-3)

    def places(self, shift=None):
        """(1, G, 2 + 4 WAVES), or (B, G, ...) for shift (B, 2), rows down and columns right in
        shares of the frame's side: where each place's content stands in the frame, by its row and
        column and their waves."""
        at = self.centres[None] if shift is None else self.centres - 2 * shift[:, None]
        waves = at[..., None] * (torch.pi / 2 * 2.0 ** torch.arange(WAVES, device=at.device))
        return torch.cat([at, waves.sin().flatten(-2), waves.cos().flatten(-2)], -1)

    def state(self, embedded, actions, places):
        """embedded (B, T, G, E) of the last T = cfg.steps steps, oldest first, the actions between
        them (B, T-1) and where the places are -> (B, G, width): all that is known before the next
        action."""
        B = len(embedded)
        past = F.one_hot(actions, self.cfg.num_actions).flatten(1).to(embedded.dtype)
        x = self.inputs(embedded.transpose(1, 2).reshape(B, self.num_places, -1))
        x = x + self.place_input(places) + self.past_actions(past)[:, None]
        for block in self.seen:
            x = block(x)
        return self.seen_norm(x)

    def act(self, state, actions):
        """state (B, G, width), actions (B,) -> (B, G, width): what is known of the next step."""
        scale, shift = self.action(actions).to(state.dtype)[:, None].chunk(2, -1)
        x = state * (1 + scale) + shift
        for block in self.acted:
            x = block(x)
        return self.acted_norm(x)

    def outcome(self, acted):
        """The reward's sign as logits (B, 3) and the continue logit (B,)."""
        out = self.outcome_head(self.summary(acted).flatten(1)).float()
        return out[:, :-1], out[:, -1]

    def code_logits(self, level: int, at, coarser, tables, keys):
        """at (M, width) at changing places, coarser (M, level) codes -> (M, K)."""
        if level:
            offsets = torch.arange(level, device=coarser.device) * self.num_codes
            at = at + self.coarser(F.embedding(coarser + offsets, tables).sum(1))
        return (self.queries[level](at) @ keys[level].T + self.code_bias[level]).float()

    def keys(self):
        """Of each level (K, E): what a code is recognised by."""
        return [project(book) + embedding for project, book, embedding in
                zip(self.key_projections, self.codebooks, self.key_embedding)]

    @property
    def is_everywhere(self) -> bool:
        """Whether codes are predicted at all places, and only those that count are read: a GPU
        would wait to see how many they are, and must not where its work is captured."""
        return self.codebooks.is_cuda

    def picked(self, values, changes):
        """values (B, G, ...) at the places (B, G) bool that change, or everywhere -> (M, ...)."""
        return values.flatten(0, 1) if self.is_everywhere else values[changes]

    def at_places(self, acted, changes, places):
        """acted (B, G, width) at the places (B, G) bool that change -> (M, width)."""
        query = self.place_query(places).expand(len(acted), -1, -1)
        return self.picked(acted, changes) + self.picked(query, changes).to(acted.dtype)

    def loss(self, batch) -> Loss:
        """batch: tokens (B, T, L, G) of T = cfg.steps steps, actions (B, T) with the one at the
        last of them, next (B, L, G), rewards and continues (B,) of that action; perhaps the shift
        (B, 2) of the frames, see places.

        Codes count in nats a step, all places and levels together, times cfg.code_weight.
        """
        nats, acted = self._nats(batch)
        parts = {name: each.mean() for name, each in nats.items()}
        total = self.cfg.code_weight * sum(parts.values())
        signs, going_on = self.outcome(acted)
        parts["reward"] = F.cross_entropy(signs, batch["rewards"].sign().long() + 1)
        parts["continue"] = F.binary_cross_entropy_with_logits(going_on, batch["continues"])
        return Loss(total + parts["reward"] + parts["continue"], parts)

    def surprise(self, batch):
        """(B,): the nats that the codes of the next step took; batch as loss has it."""
        return sum(self._nats(batch)[0].values())

    def _nats(self, batch):
        """Of a batch as loss has it: name -> (B,), the nats of what changes and of each level's
        codes, and what was known of the next step (B, G, width)."""
        tokens, actions = batch["tokens"].long(), batch["actions"]
        target, tables, keys = batch["next"].long(), self.tables(), self.keys()
        places = self.places(batch.get("shift"))
        state = self.state(self.embed(tokens, tables), actions[:, :-1], places)
        acted = self.act(state, actions[:, -1])
        changes = (target != tokens[:, -1]).any(1)
        nats = {"changes": F.binary_cross_entropy_with_logits(
            self.change(acted)[..., 0].float(), changes.float(), reduction="none").sum(1)}
        at = self.at_places(acted, changes, places)
        codes = self.picked(target.transpose(1, 2), changes)
        rows = None if self.is_everywhere else changes.nonzero()[:, 0]
        for level in range(self.num_levels):
            logits = self.code_logits(level, at, codes[:, :level], tables, keys)
            each = F.cross_entropy(logits, codes[:, level], reduction="none")
            nats[f"l{level}_cross_entropy"] = (
                (each.view_as(changes) * changes).sum(1) if rows is None
                else each.new_zeros(len(tokens)).index_add(0, rows, each))
        return nats, acted

    # ---- dreams

    def check_tokens(self, tokens) -> None:
        """Raise InputError in one line unless tokens are (B, T, L, G) codes of this layout."""
        shape = ("B", self.cfg.steps, self.num_levels, self.num_places)
        check_ids("codes", tokens, shape, self.num_codes)

    @property
    def num_features(self) -> int:
        """F, the width of what a policy sees: the state, place by place."""
        return self.num_places * self.cfg.width

    def dreamer(self, tokens, actions, *, horizon: int, features: str = "hidden") -> PlaceDreamer:
        """A dream from real context, see PlaceDreamer; for hd.imagination."""
        allowed("features of a model of places", features, ("hidden",))
        return PlaceDreamer(self, tokens, actions)


class PlaceDreamer:
    """The model's state during a dream, or beside a real game: the last steps."""

    def __init__(self, model: PlaceModel, tokens, actions):
        """tokens (B, T, L, G), actions (B, T-1): the last T = cfg.steps steps. Raises InputError
        for another T."""
        wanted = (model.cfg.steps, model.num_levels, model.num_places)
        if tuple(tokens.shape[1:]) != wanted or actions.shape[1] != wanted[0] - 1:
            raise InputError(f"a dream starts from tokens (B, {', '.join(map(str, wanted))}) and "
                             f"the {wanted[0] - 1} actions between; got {tuple(tokens.shape)} and "
                             f"{tuple(actions.shape)}")
        self.model, self.tokens = model, tokens[:, -1].long()
        self.tables, self.keys, self.places = model.tables(), model.keys(), model.places()
        self.embedded, self.actions = model.embed(tokens.long(), self.tables), actions
        self.state = model.state(self.embedded, actions, self.places)

    def features(self):
        """(B, F): what the policy sees of the step the dream stands at."""
        return self.state.flatten(1)

    def step(self, actions, generator, greedy: bool = False):
        """actions (B,) -> expected sign of the reward (B,), continue probability (B,); self.tokens
        is the next step, sampled with the generator, or the most likely."""
        model = self.model
        acted = model.act(self.state, actions)
        chance = (model.change(acted)[..., 0].float() / model.cfg.temperature).sigmoid()
        if greedy:
            changes = chance > 0.5
        else:
            changes = torch.rand(chance.shape, generator=generator,
                                 device=generator.device).to(chance.device) < chance
        codes = self._new_codes(acted, changes, generator, greedy)
        if model.is_everywhere:
            codes = codes.unflatten(0, changes.shape).transpose(1, 2)
            self.tokens = torch.where(changes[:, None], codes, self.tokens)
        else:
            self.tokens = self.tokens.clone()
            self.tokens.transpose(1, 2)[changes] = codes
        signs, going_on = model.outcome(acted)
        embedded = model.embed(self.tokens, self.tables)
        self.embedded = torch.cat([self.embedded[:, 1:], embedded[:, None]], 1)
        self.actions = torch.cat([self.actions[:, 1:], actions[:, None]], 1)
        self.state = model.state(self.embedded, self.actions, self.places)
        return signs.softmax(-1) @ model.signs, going_on.sigmoid()

    def _new_codes(self, acted, changes, generator, greedy):
        """(M, L): the codes of the places that change, or of all, see picked."""
        model = self.model
        at = model.at_places(acted, changes, self.places)
        codes = at.new_zeros((len(at), model.num_levels), dtype=torch.int64)
        for level in range(model.num_levels if len(at) else 0):
            logits = model.code_logits(level, at, codes[:, :level], self.tables, self.keys)
            codes[:, level] = logits.argmax(-1) if greedy else draw(
                (logits / model.cfg.temperature).softmax(-1), generator)
        return codes


class _Block(nn.Module):
    """x + two 3 x 3 convolutions over the grid, or one into so many hidden numbers at each place
    and a linear map back; a global one also shows every place the mean and the maximum over all."""

    def __init__(self, width: int, grid: int, hidden: int | None, *, is_global: bool):
        super().__init__()
        self.grid, self.norm, inside = grid, nn.LayerNorm(width), hidden or width
        self.first = nn.Conv2d(width, inside, 3, padding=1)
        self.second = (nn.Conv2d(inside, width, 3, padding=1) if hidden is None
                       else nn.Linear(inside, width))
        for part in self.second.parameters():
            nn.init.zeros_(part)
        self.overview = nn.Linear(2 * inside, inside) if is_global else None

    def forward(self, x):
        """(B, G, width) -> (B, G, width)."""
        y = self._convolve(self.first, self.norm(x))
        if self.overview is not None:
            y = y + self.overview(torch.cat([y.mean(1), y.amax(1)], 1))[:, None]
        y = F.silu(y)
        return x + (self.second(y) if isinstance(self.second, nn.Linear)
                    else self._convolve(self.second, y))

    def _convolve(self, layer, x):
        # A view of (B, grid, grid, width) is a picture with its channels last: nothing is copied.
        pictures = x.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        return layer(pictures).permute(0, 2, 3, 1).flatten(1, 2)
