"""(Residual) vector quantization as a module: vectors <-> code numbers.

Each level quantizes what the levels before it left over (residual VQ: Zeghidour et al. 2021), or,
as a control with equally many bits, a slice of its own (product quantization: Jegou et al. 2011).
Codebooks follow exponential moving averages (van den Oord et al. 2017, appendix A.1), start from
k-means and refill codes that nobody picks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from hd.config import InputError, allowed
from hd.run.training import Loss

FAR = 16.0  # a codebook's mean is far from zero: its squared length over the codes' variance


class Quantized(NamedTuple):
    """quantized (..., D), straight-through; tokens (..., L) int64, (..., L, G) where a level has
    several groups; loss, a scalar."""

    quantized: torch.Tensor
    tokens: torch.Tensor
    loss: torch.Tensor


class ResidualVQ(nn.Module):
    """Residual vector quantization with EMA codebooks; one level is plain VQ.

    num_groups: the vector is cut into so many equal slices (of a picture: its places), each with a
    code of its own on every level; a level has one codebook, which its groups share.
    kind "product" gives each level its own slice of the vector instead of what is left over.
    project_dim: quantize that many principal components (of the first batch) instead of the vector.
    Computes in float32, and stays in it when a model around it is cast (moving averages would stand
    still in half precision); embeddings may be of any type. Rows that are not finite are refused.
    """

    def __init__(self, num_levels: int = 3, num_codes: int = 256, dim: int = 384, *,
                 commitment_costs=(0.05, 0.25, 0.60), decay: float = 0.99,
                 kmeans_iterations: int = 10, refill_below: float = 0.1,
                 kind: str = "residual", project_dim: int = 0, num_groups: int = 1):
        super().__init__()
        allowed("kind of quantization", kind, ("residual", "product"))
        if min(num_levels, num_codes, dim, num_groups) < 1:
            raise InputError(f"num_levels, num_codes, dim and num_groups must be at least 1; got "
                             f"{num_levels}, {num_codes}, {dim} and {num_groups}")
        if dim % num_groups:
            raise InputError(f"{dim} columns cannot be cut into {num_groups} equal groups")
        self.dim, self.num_groups = dim, num_groups
        group_dim = dim // num_groups
        if not 0 <= project_dim <= group_dim:
            raise InputError(f"project_dim must be from 0 to {group_dim}; got {project_dim}")
        dim = project_dim or group_dim
        if kind == "product" and dim % num_levels:
            raise InputError(f"product quantization of {dim} columns needs a number of levels that "
                             f"divides it; got {num_levels}")
        if len(commitment_costs) < num_levels:
            raise InputError(f"{num_levels} levels need as many commitment costs; "
                             f"got {tuple(commitment_costs)}")
        self.commitment_costs = tuple(commitment_costs[:num_levels])
        self.decay, self.kmeans_iterations = decay, kmeans_iterations
        self.refill_below = refill_below
        self.register_buffer("codebooks", torch.zeros(num_levels, num_codes, dim))
        self.register_buffer("counts", torch.zeros(num_levels, num_codes))
        self.register_buffer("sums", torch.zeros(num_levels, num_codes, dim))
        self.register_buffer("is_initialised", torch.tensor(False))
        slices = torch.eye(num_levels).repeat_interleave(dim // num_levels, dim=1)
        self.register_buffer("slices", slices if kind == "product" else None, persistent=False)
        self.register_buffer("basis", torch.zeros(dim, group_dim) if project_dim else None)
        self.register_buffer("centre", torch.zeros(group_dim) if project_dim else None)

    def forward(self, embeddings) -> Quantized:
        """embeddings (..., D) -> Quantized.

        In training mode the codebooks learn, and the first forward starts them from that batch
        (at least num_codes rows, else InputError). In eval mode nothing changes state.
        loss: sum over levels of commitment cost x mean squared residual distance. Raises
        InputError for no rows at all, of which there is no mean, as for other wrong embeddings.
        """
        flat = self._groups(embeddings)
        if not len(flat):
            raise InputError("embeddings hold no rows: there is nothing to quantize")
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.training and not self.is_initialised:
                self._start(flat.detach())
            residual = self._project(flat)
            quantized, tokens, loss = torch.zeros_like(residual), [], flat.new_zeros(())
            for level, cost in enumerate(self.commitment_costs):
                part = self._part(residual, level)
                codes = nearest(part.detach(), self.codebooks[level])
                vectors = self.codebooks[level][codes]
                if self.training:
                    self._learn(level, part.detach(), codes)
                left = residual - vectors
                loss = loss + cost * (left if part is residual else part - vectors).pow(2).mean()
                quantized, residual = quantized + vectors, left
                tokens.append(codes)
            quantized = self._unproject(quantized)
        if flat.requires_grad:  # straight through: the difference is exactly zero
            quantized = quantized + (flat - flat.detach())
        return Quantized(quantized.view(embeddings.shape), self._rows(tokens, embeddings.shape),
                         loss)

    @torch.no_grad()
    def encode(self, embeddings):
        """embeddings (..., D) -> tokens (..., L) int64, or (..., L, G); never changes state."""
        codes = self.encode_groups(self._groups(embeddings))
        return self._rows(list(codes.unbind(-1)), embeddings.shape)

    @torch.no_grad()
    def encode_groups(self, rows):
        """rows (N, D / G), of any group each -> codes (N, L) int64."""
        codes = []
        with torch.autocast(rows.device.type, enabled=False):
            residual = self._project(rows)
            for level, codebook in enumerate(self.codebooks):
                codes.append(nearest(self._part(residual, level), codebook))
                if level + 1 < len(self.codebooks):
                    residual = residual - codebook[codes[-1]]
        return torch.stack(codes, -1)

    def decode(self, tokens, per_level: bool = False):
        """tokens (..., L) or (..., L, G) -> quantized (..., D), or each level's own vectors
        (..., L, D)."""
        if self.num_groups > 1:
            return self._decode_groups(tokens, per_level)
        _check_tokens(tokens, *self.codebooks.shape[:2])
        return self._vectors(tokens, per_level)

    def _decode_groups(self, tokens, per_level):
        if tokens.ndim < 2 or tokens.shape[-1] != self.num_groups:
            raise InputError(f"tokens must have {self.num_groups} groups on each level; got shape "
                             f"{tuple(tokens.shape)}")
        tokens = tokens.transpose(-1, -2)
        _check_tokens(tokens, *self.codebooks.shape[:2])
        found = self._vectors(tokens, per_level)  # (..., G, D / G) or (..., G, L, D / G)
        return found.transpose(-2, -3).flatten(-2) if per_level else found.flatten(-2)

    def _groups(self, embeddings):
        """(..., D) -> a row for each group of each (N G, D / G), checked."""
        return _flat(embeddings, self.dim).view(-1, self.dim // self.num_groups)

    def _rows(self, tokens, shape):
        """Each level's codes (N G,) -> (..., L), or (..., L, G), for embeddings (..., D)."""
        if self.num_groups == 1:
            return torch.stack(tokens, -1).view(*shape[:-1], len(tokens))
        return torch.stack([codes.view(*shape[:-1], self.num_groups) for codes in tokens], -2)

    def _vectors(self, tokens, per_level):
        vectors = [book[tokens[..., level]] for level, book in enumerate(self.codebooks)]
        if per_level:
            apart = [self._unproject(vector) for vector in vectors]
            if self.basis is not None:  # the centre once, so that the levels add up
                apart[1:] = [vector - self.centre for vector in apart[1:]]
            return torch.stack(apart, -2)
        total = torch.zeros_like(vectors[0])
        for level in vectors:
            total = total + level
        return self._unproject(total)

    def _apply(self, fn, recurse=True):
        return super()._apply(_in_its_type(fn), recurse)

    def _part(self, rows, level):
        """What a level quantizes of rows (N, D): all of it, or its own slice."""
        return rows if self.slices is None else rows * self.slices[level]

    def _project(self, rows):
        return rows if self.basis is None else (rows - self.centre) @ self.basis.T

    def _unproject(self, rows):
        return rows if self.basis is None else rows @ self.basis + self.centre

    def loss(self, batch) -> Loss:
        """batch {"embeddings" (N, D)} -> the commitment loss and the reconstruction error."""
        out = self(batch["embeddings"])
        error = (batch["embeddings"] - out.quantized).pow(2).sum(-1).mean()
        return Loss(out.loss, {"squared_error": error})

    @torch.no_grad()
    def _start(self, rows):
        num_codes = self.codebooks.shape[1]
        directions = 0 if self.basis is None else len(self.basis)
        if len(rows) < max(num_codes, directions):
            raise InputError(f"the first batch must hold at least {max(num_codes, directions)} "
                             f"rows, one for each code and direction; got {len(rows)}")
        if self.basis is not None:
            self.centre.copy_(rows.mean(0))
            directions = torch.linalg.svd(rows - self.centre, full_matrices=False).Vh
            self.basis.copy_(directions[:len(self.basis)])
        rows = self._project(rows)
        for level in range(len(self.codebooks)):
            part = self._part(rows, level)
            self.codebooks[level] = kmeans(part, num_codes, iterations=self.kmeans_iterations)
            codes = nearest(part, self.codebooks[level])
            self.counts[level] = torch.bincount(codes, minlength=num_codes).float()
            self.sums[level] = self.codebooks[level] * self.counts[level, :, None]
            rows = rows - self.codebooks[level][codes]
        self.is_initialised.fill_(True)

    @torch.no_grad()
    def _learn(self, level, rows, codes):
        """Move the codebook towards the mean of the rows that chose each code."""
        counts = torch.bincount(codes, minlength=self.counts.shape[1]).float()
        sums = torch.zeros_like(self.sums[level]).index_add_(0, codes, rows)
        self.counts[level].lerp_(counts, 1 - self.decay)
        self.sums[level].lerp_(sums, 1 - self.decay)
        floor = 1e-3
        alive = self.counts[level] > floor
        means = self.sums[level] / self.counts[level].clamp_min(floor)[:, None]
        self.codebooks[level] = torch.where(alive[:, None], means, self.codebooks[level])
        if self.refill_below:
            self._refill(level, rows, codes)

    def _refill(self, level, rows, codes):
        # Dead codes are refilled from the current batch, never from older ones: with an encoder
        # that trains, old rows lie where no embedding is any more.
        enough = self.refill_below * len(rows) / self.counts.shape[1]
        dead = (self.counts[level] < enough).nonzero().squeeze(1)
        if len(dead):
            # Where the error is large, as k-means++ starts; a try that wins too little ends soon.
            error = (rows - self.codebooks[level][codes]).pow(2).sum(1)
            error = error.clamp_min(1e-12)
            picks = torch.multinomial(error, len(dead), replacement=True)
            self.codebooks[level, dead] = rows[picks]
            self.counts[level, dead] = enough
            self.sums[level, dead] = rows[picks] * enough


def _in_its_type(fn):
    """What moves a module's tensors to another device, without changing their type."""
    def moved(tensor):
        changed = fn(tensor)
        return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)
    return moved


def _flat(embeddings, dim: int):
    """(..., D) -> (N, D) float32. Raises InputError unless they have D columns and each row is of
    finite numbers whose squares are finite too."""
    if not isinstance(embeddings, torch.Tensor) or not embeddings.ndim:
        raise InputError(f"embeddings must be a tensor (..., {dim}); got {type(embeddings)}")
    if embeddings.shape[-1] != dim:
        raise InputError(f"embeddings must have {dim} columns; got {embeddings.shape[-1]}")
    flat = embeddings.reshape(-1, dim).float()
    lengths = torch.linalg.vector_norm(flat.detach(), dim=1)
    if not lengths.isfinite().all():
        wrong = (~lengths.isfinite()).nonzero()[:, 0].tolist()
        raise InputError(f"row {wrong[0]} of {len(flat)} embeddings is not finite, or too large "
                         f"({len(wrong)} such in all): no codebook learns from it; look at what "
                         f"made the embeddings")
    return flat


def _check_tokens(tokens, num_levels: int, num_codes: int) -> None:
    """Raise InputError unless tokens are whole numbers (..., L) below K."""
    if not isinstance(tokens, torch.Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        raise InputError(f"tokens must be an int64 tensor; got "
                         f"{getattr(tokens, 'dtype', type(tokens))}")
    if not tokens.ndim or tokens.shape[-1] != num_levels:
        raise InputError(f"tokens must have {num_levels} levels; got "
                         f"{tokens.shape[-1] if tokens.ndim else 'one number'}")
    if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < num_codes:
        raise InputError(f"tokens must be from 0 to {num_codes - 1}; got {tokens.min().item()} to "
                         f"{tokens.max().item()}")


def nearest(rows, codebook):
    """Index of the nearest code (Euclidean) for each row: (N, D), (K, D) -> (N,) int64.

    By squares and products, as is fast. Far from zero these are large numbers whose small
    differences decide, and float32 would round them away: there the codebook's mean is taken off
    both first. Unit-length rows never need it: where they lie close together, what rounding decides
    are near ties.
    """
    centre = codebook.mean(0)
    length = centre.pow(2).sum()
    if length > 2 and length > FAR * (codebook - centre).pow(2).sum(1).mean():
        rows, codebook = rows - centre, codebook - centre
    return torch.addmm(codebook.pow(2).sum(1), rows, codebook.T, alpha=-2).argmin(1)


def kmeans(rows, num_codes: int, *, iterations: int):
    """Lloyd's k-means from random distinct rows: (N, D) -> (num_codes, D). Empty codes restart.

    Raises InputError for fewer rows than codes.
    """
    if not 1 <= num_codes <= len(rows):
        raise InputError(f"k-means needs at least one code, and a row for each; got {num_codes} "
                         f"codes and {len(rows)} rows")
    start = torch.randperm(len(rows), device=rows.device)[:num_codes]
    codebook = rows[start].clone()
    for _ in range(iterations):
        codes = nearest(rows, codebook)
        counts = torch.bincount(codes, minlength=num_codes)
        sums = torch.zeros_like(codebook).index_add_(0, codes, rows)
        fresh = rows[torch.randint(len(rows), (num_codes,), device=rows.device)]
        codebook = torch.where((counts > 0)[:, None], sums / counts.clamp_min(1)[:, None], fresh)
    return codebook


class LibraryVQ(nn.Module):
    """vector-quantize-pytorch's ResidualVQ behind the interface of ours, as a cross-check.

    Its own defaults but for the sizes, the decay, the k-means start and the dead-code threshold of
    2 that its README advises. Raises InputError where the library is not installed.
    """

    def __init__(self, num_levels: int, num_codes: int, *, dim: int = 384, decay: float = 0.99):
        super().__init__()
        try:
            from vector_quantize_pytorch import ResidualVQ as Theirs
        except ImportError:
            raise InputError('tokenizer.kind "library" needs the package vector-quantize-pytorch: '
                             "install the dev extra") from None
        self.dim = dim
        self.theirs = Theirs(dim=dim, num_quantizers=num_levels, codebook_size=num_codes,
                             decay=decay, kmeans_init=True, threshold_ema_dead_code=2)

    @property
    def codebooks(self) -> torch.Tensor:
        """(L, K, D)."""
        return self.theirs.codebooks

    def forward(self, embeddings) -> Quantized:
        """embeddings (N, D) -> Quantized; learns in training mode. Raises InputError for rows that
        are not finite, and for no rows at all."""
        flat = _flat(embeddings, self.dim)
        if not len(flat):
            raise InputError("embeddings hold no rows: there is nothing to quantize")
        quantized, tokens, losses = self.theirs(flat)
        return Quantized(quantized, tokens, losses.sum())

    @torch.no_grad()
    def encode(self, embeddings):
        """embeddings (N, D) -> tokens (N, L) int64."""
        was_training = self.training
        tokens = self.eval()(embeddings).tokens
        self.train(was_training)
        return tokens

    def decode(self, tokens, per_level: bool = False):
        """tokens (..., L) -> quantized (..., D), or each level's own vectors (..., L, D)."""
        _check_tokens(tokens, *self.codebooks.shape[:2])
        vectors = [book[tokens[..., level]] for level, book in enumerate(self.codebooks)]
        return torch.stack(vectors, -2) if per_level else sum(vectors)

    def _apply(self, fn, recurse=True):
        return super()._apply(_in_its_type(fn), recurse)

    def loss(self, batch) -> Loss:
        """batch {"embeddings" (N, D)} -> its commitment loss and the reconstruction error."""
        out = self(batch["embeddings"])
        error = (batch["embeddings"] - out.quantized).pow(2).sum(-1).mean()
        return Loss(out.loss, {"squared_error": error})
