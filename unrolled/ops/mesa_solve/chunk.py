"""Chunkwise arithmetic of the mesa solve: carried statistics, causal products, and the exact block-Woodbury solver.

Legend: n sequences (batch x heads), c chunks, l steps in a chunk, d key width, e value width.

Values and keys are handled stacked, `paired` = [v; k], because G (values on keys) and H (keys on keys) obey the same
recursion. With S = [G; H] of shape [e + d, d]:

    S_t = decay_t S_{t-1} + gate_t paired_t k_t^T .

Within a chunk `between[t, s]` is the decay from step s to step t (lower triangular), so every product with S_t is one
product with the S at the chunk's start plus one masked product inside the chunk, as in chunked linear attention.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from unrolled.errors import MissingExtra
from unrolled.ops.mesa_solve.condition import CREDIBLE, Imprecise, conditioned, norm_of_inverse, row_bound, share

# -log of the largest forgetting across one chunk that costs block Woodbury no more than half of float32's digits
MAX_REACH = 8.0
# the same, within which a preconditioner with a misplaced ridge (see Woodbury) beats the diagonal
MAX_DRIFT = 4.0
# growth of a chunk (see Woodbury.growth) up to which solutions need no refinement
SAFE_GROWTH = 128.0
# width at which LAPACK's unblocked Cholesky is as fast as one in halves
_LEAF = 32


@dataclass
class Problem:
    """A batch of causal least-squares problems, flattened over batch and heads.

    Attributes:
        keys: [n, t, d].
        values: [n, t, e].
        gate: [n, t] weights of the pairs, or None for ones.
        decay: [n, t] in (0, 1], or None for ones.
        ridge: [n, d], positive, in the dtype all arithmetic is done in.
        ridge_decays: the ridge is forgotten like the statistics (it then belongs to the state).
        kernel: "torch", or "triton" for the products of each chunk.
    """

    keys: Tensor
    values: Tensor
    gate: Tensor | None
    decay: Tensor | None
    ridge: Tensor
    ridge_decays: bool
    kernel: str = "torch"

    @property
    def exact(self) -> bool:
        """Whether each chunk's systems differ by low-rank terms only, so that block Woodbury solves them exactly."""
        return self.decay is None or self.ridge_decays


@dataclass
class Carry:
    """What passes from one segment to the next."""

    statistics: Tensor  # [n, e + d, d]: S
    ridge_scale: Tensor  # [n]: the product of all decays if the ridge decays, else ones


@dataclass
class Segment:
    """A run of equal chunks loaded in the arithmetic dtype, with the statistics at the start of each."""

    keys: Tensor  # [n, c, l, d]
    paired: Tensor  # [n, c, l, e + d]
    gate: Tensor | None  # [n, c, l]
    log_decay: Tensor | None  # [n, c, l], summed within the chunk
    between: Tensor | None  # [n, c, l, l]
    statistics: Tensor  # [n, c, e + d, d]
    ridge_scale: Tensor  # [n, c]
    ridge: Tensor  # [n, 1, d]
    ridge_decays: bool
    kernel: str = "torch"
    forgotten: Tensor | None = None  # [n, c], where the ridge was kept from decaying further

    @property
    def width(self) -> int:
        """The value width e."""
        return self.paired.shape[-1] - self.keys.shape[-1]

    @property
    def gram(self) -> Tensor:
        """H at the start of each chunk, [n, c, d, d]."""
        return self.statistics[..., self.width :, :]

    @property
    def from_start(self) -> Tensor | None:
        """Decay from the chunk's start to after each step, [n, c, l]."""
        return None if self.log_decay is None else self.log_decay.exp()

    @property
    def to_end(self) -> Tensor | None:
        """Decay from each step to the chunk's end, [n, c, l]."""
        return None if self.log_decay is None else (self.log_decay[..., -1:] - self.log_decay).exp()

    @property
    def ridges(self) -> Tensor:
        """The ridge of every step, [n, c, 1 or l, d]."""
        scale = self.ridge_scale[..., None]
        if self.ridge_decays and self.log_decay is not None:
            scale = scale * self.log_decay.exp()
        return scale[..., None] * self.ridge[:, :, None, :]

    @property
    def grown(self) -> Tensor:
        """At least the norm of what a chunk's pairs and the ridge add to H, [n, c]."""
        pairs = torch.linalg.vector_norm(self.keys, dim=(-2, -1)).square()
        pairs = pairs if self.gate is None else pairs * self.gate.amax(-1)
        return pairs + self.ridge_scale * self.ridge.amax(-1)

    @property
    def least(self) -> Tensor:
        """The least ridge of a chunk, [n, c]."""
        least = self.ridge_scale * self.ridge.amin(-1)
        return least if self.log_decay is None or not self.ridge_decays else least * self.log_decay[..., -1].exp()

    def is_safe(self) -> bool:
        """Whether no system of these is too close to singular, by its ridge alone."""
        if self.forgotten is not None and bool(self.forgotten.any()):
            return False
        return conditioned(self.gram, self.grown, 1 / self.least)

    def weakest(self) -> Tensor:
        """What is left of each chunk's first system at its end, [n, c, d, d]: no system of the chunk is below it."""
        ridge = self.ridge_scale[..., None] * self.ridge
        if self.log_decay is None:
            return self.gram + torch.diag_embed(ridge)
        left = self.log_decay[..., -1, None].exp()
        return self.gram * left[..., None] + torch.diag_embed(ridge * left if self.ridge_decays else ridge)

    def systems(self) -> Tensor:
        """H_t + diag(ridge_t) of every step, [n, c, l, d, d]: for where nothing cheaper will do."""
        ones = torch.ones_like(self.keys[..., 0])
        pairs = (self.keys[..., :, None] * self.keys[..., None, :]).flatten(-2)
        inside = self.weigh(ones[..., :, None] * ones[..., None, :]) @ pairs
        start = self.gram[..., None, :, :]
        start = start if self.from_start is None else start * self.from_start[..., None, None]
        return start + inside.unflatten(-1, self.gram.shape[-2:]) + torch.diag_embed(self.ridges)

    def weigh(self, scores: Tensor, *, gated: bool = True) -> Tensor:
        """Mask scores [n, c, l, l] to s <= t and weigh them by decay and, unless told otherwise, gate (in place)."""
        scores = scores.tril_() if self.between is None else scores.mul_(self.between)
        return scores.mul_(self.gate[..., None, :]) if gated and self.gate is not None else scores

    def read(self, vectors: Tensor) -> Tensor:
        """G_t x_t for every step: [n, c, l, d] -> [n, c, l, e]."""
        return self._apply(vectors, self.paired[..., : self.width], self.statistics[..., : self.width, :])

    def apply_gram(self, vectors: Tensor) -> Tensor:
        """H_t x_t for every step: [n, c, l, d] -> [n, c, l, d]."""
        return self._apply(vectors, self.keys, self.gram)

    def _apply(self, vectors: Tensor, values: Tensor, statistics: Tensor) -> Tensor:
        if self.kernel == "triton":
            return triton_kernels().causal_product(vectors, self.keys, values, statistics, self.log_decay, self.gate)
        out = vectors @ statistics.mT
        if self.log_decay is not None:
            out.mul_(self.log_decay.exp()[..., None])
        return _add_product(out, self.weigh(vectors @ self.keys.mT), values)

    def apply_transposed(self, errors: Tensor) -> Tensor:
        """G_t^T e_t for every step: [n, c, l, e] -> [n, c, l, d]."""
        if self.kernel == "triton":
            values, cross = self.paired[..., : self.width], self.statistics[..., : self.width, :]
            return triton_kernels().causal_product(errors, values, self.keys, cross.mT, self.log_decay, self.gate)
        out = errors @ self.statistics[..., : self.width, :]
        if self.log_decay is not None:
            out.mul_(self.log_decay.exp()[..., None])
        return _add_product(out, self.weigh(errors @ self.paired[..., : self.width].mT), self.keys)

    def gram_diagonal(self) -> Tensor:
        """diag(H_t) of every step, [n, c, l, d]."""
        start = self.gram.diagonal(dim1=-2, dim2=-1)[..., None, :]
        ones = torch.ones_like(self.keys[..., 0])
        squares = self.weigh(ones[..., :, None] * ones[..., None, :]) @ self.keys.square()
        return squares + (start if self.log_decay is None else start * self.log_decay.exp()[..., None])


def certify(segment: Segment, rhs: Tensor, x: Tensor, stable: bool, tolerance: float, strict: bool) -> None:
    """Raise `Imprecise` unless the solutions of a segment are trusted (see `condition`).

    Within a chunk no system is closer to singular than what the chunk's end leaves of its first.

    Args:
        segment: the systems.
        rhs: [n, c, l, d].
        x: their solutions, [n, c, l, d].
        stable: they came by factors that lose no further digits; then nothing is measured.
        tolerance: what was allowed to be left of a right-hand side.
        strict: x itself must be right, as gradients need it, not only what is read off it.
    """
    eps, most = torch.finfo(x.dtype).eps, share(x.dtype)
    inverse = norm_of_inverse(segment.weakest())
    wrong = eps * (
        torch.minimum(segment.gram.diagonal(dim1=-2, dim2=-1).sum(-1), row_bound(segment.gram)) + segment.grown
    )
    if segment.forgotten is not None:  # where a ridge was kept from decaying further, what is left must not matter
        wrong = wrong + segment.forgotten * segment.ridge_scale * segment.ridge.amax(-1)
    image = segment.apply_gram(x)
    left = wrong[..., None] * _size(x)
    trusted = (wrong * inverse <= most)[..., None].expand(left.shape)
    if not stable:
        error = _size(rhs - torch.addcmul(image, segment.ridges, x))
        trusted = trusted & (error <= max(1024 * eps, 2 * tolerance) * _size(rhs) + left)
        left = left + error
    if not strict:
        inverse = torch.where(wrong * inverse <= CREDIBLE, inverse, 1 / segment.least)
        pairs = (x * image).sum(-1).clamp_min(0).sqrt()
        # of a solution without meaning this can overflow, and all would be below it
        trusted = trusted | ((left * inverse.sqrt()[..., None] <= most * pairs) & pairs.isfinite())
    if not bool(trusted.all()):
        raise Imprecise


def _size(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1)


def triton_kernels() -> ModuleType:
    """`unrolled.ops.mesa_solve.triton`, imported when it is first asked for.

    Raises:
        MissingExtra: Triton is not installed.
    """
    try:
        return importlib.import_module("unrolled.ops.mesa_solve.triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingExtra('kernel "triton" needs `triton`, which is not installed: pip install triton') from error


def segments(steps: int, chunk: int, per_segment: int) -> Iterator[tuple[int, int, int]]:
    """Cut `steps` into runs (first step, chunks, chunk length); the last run holds the odd remainder."""
    full = steps // chunk
    for first in range(0, full, per_segment):
        yield first * chunk, min(per_segment, full - first), chunk
    if steps % chunk:
        yield full * chunk, 1, steps % chunk


def load(problem: Problem, carry: Carry, start: int, chunks: int, length: int) -> tuple[Segment, Carry]:
    """Read one segment and advance the statistics over it."""
    dtype = problem.ridge.dtype

    def cut(x: Tensor) -> Tensor:
        chunked: Tensor = x[:, start : start + chunks * length].unflatten(1, (chunks, length))
        return chunked.to(dtype).contiguous()  # or every product below would copy it

    keys = cut(problem.keys)
    paired = torch.cat([cut(problem.values), keys], dim=-1)
    gate = None if problem.gate is None else cut(problem.gate)
    log_decay = between = None
    if problem.decay is not None:
        log_decay = cut(problem.decay).log().cumsum(-1)
        between = (log_decay[..., :, None] - log_decay[..., None, :]).exp_().tril_()
        # above the diagonal the exponential may overflow, and inf * 0 is not used: tril_ overwrites it
    statistics, last = _advance(carry.statistics, keys, paired, gate, log_decay)
    scale = carry.ridge_scale[:, None].expand(-1, chunks)
    last_scale, forgotten = carry.ridge_scale, None
    if problem.ridge_decays and log_decay is not None:
        total = log_decay[..., -1].cumsum(-1).exp()
        floor = torch.finfo(dtype).eps ** 2  # a ridge forgotten for long must not underflow to a singular system
        last_scale = (carry.ridge_scale * total[:, -1]).clamp_min(floor)
        scale = (scale * torch.nn.functional.pad(total[:, :-1], (1, 0), value=1.0)).clamp_min(floor)
        forgotten = scale <= floor
    segment = Segment(
        keys,
        paired,
        gate,
        log_decay,
        between,
        statistics,
        scale,
        problem.ridge[:, None],
        problem.ridge_decays,
        problem.kernel,
        forgotten,
    )
    return segment, Carry(last, last_scale)


def _advance(
    carried: Tensor, keys: Tensor, paired: Tensor, gate: Tensor | None, log_decay: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Statistics at the start of each chunk, [n, c, e + d, d], and after the last, [n, e + d, d]."""
    weighted = keys
    if log_decay is not None:
        weighted = weighted * (log_decay[..., -1:] - log_decay).exp()[..., None]
    if gate is not None:
        weighted = weighted * gate[..., None]
    growth = paired.mT @ weighted
    forget = None if log_decay is None else log_decay[..., -1].exp()[..., None, None]
    starts = torch.empty_like(growth)
    for i in range(keys.shape[1]):
        starts[:, i] = carried
        carried = growth[:, i].add_(carried if forget is None else carried * forget[:, i])
    return starts, carried.clone()  # not a view, which would keep all of `growth` alive


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Out + left @ right over leading [n, c], in place."""
    return out.flatten(0, 1).baddbmm_(left.flatten(0, 1), right.flatten(0, 1)).view_as(out)


class Woodbury:
    """Solves with A_t = A + sum_{s <= t} u_s u_s^T for all steps of a chunk from two Cholesky factors.

    A = L L^T holds what precedes the chunk, u_s = sqrt(gate_s decay_{s -> end}) k_s, and everything is scaled to the
    decay at the chunk's end, so no factor exceeds one. With W = L^-1 U, the leading minors of M = I + W^T W = R R^T are
    factored by the leading blocks of R, hence one factorisation serves every prefix t:

        A_t^-1 q = L^-T (p - W_{<=t} R_t^-T R_t^-1 W_{<=t}^T p),   p = L^-1 q .

    Exact where the ridge decays with the statistics or nothing decays. With a fixed ridge and decay it solves for a
    ridge that decays around the middle of the chunk instead, which is right within a factor sqrt(largest / smallest
    decay since the chunk's first step): a preconditioner.
    """

    def __init__(self, segment: Segment) -> None:
        gram, ridge = segment.gram, segment.ridge_scale[..., None] * segment.ridge  # [n, c, d, d], [n, c, d]
        scale, self.to_end = segment.gate, segment.to_end
        if segment.log_decay is not None and self.to_end is not None:
            last = segment.log_decay[..., -1:].clamp_min(-MAX_REACH)
            gram = gram * last.exp()[..., None]
            middle = last if segment.ridge_decays else (last - segment.log_decay[..., :1]).clamp_max(0) / 2
            ridge = ridge * middle.exp()
            self.to_end = self.to_end.clamp_min(math.exp(-MAX_REACH))
            scale = self.to_end if scale is None else scale * self.to_end
        # a ridge below the rounding error of the statistics cannot be told from zero: raise it to that error
        rounding = torch.finfo(gram.dtype).eps * gram.diagonal(dim1=-2, dim2=-1)
        self.lower = cholesky(gram + torch.diag_embed(torch.maximum(ridge, rounding)))
        columns = segment.keys if scale is None else segment.keys * scale.sqrt()[..., None]
        self.whitened = torch.linalg.solve_triangular(self.lower.mT, columns, upper=True, left=False)
        self.inner = inner = self.whitened @ self.whitened.mT
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        self.inner_lower = cholesky(inner)

    def growth(self) -> float:
        """Bound on |M|, how far the chunk's pairs outweigh what precedes them: the digits its solves lose."""
        return float(self.inner.abs().sum(-1).amax())

    def solve(self, rhs: Tensor) -> Tensor:
        """A_t^-1 rhs_t for every step, [n, c, l, d] -> [n, c, l, d]."""
        white: Tensor = torch.linalg.solve_triangular(self.lower.mT, rhs, upper=True, left=False)
        seen = white @ self.whitened.mT
        seen = torch.linalg.solve_triangular(self.inner_lower.mT, seen, upper=True, left=False).tril_()
        seen = torch.linalg.solve_triangular(self.inner_lower, seen, upper=False, left=False)
        white.flatten(0, 1).baddbmm_(seen.flatten(0, 1), self.whitened.flatten(0, 1), alpha=-1)
        out: Tensor = torch.linalg.solve_triangular(self.lower, white, upper=False, left=False)
        return out if self.to_end is None else out.mul_(self.to_end[..., None])


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; a matrix that is singular to working precision gets the least diagonal that factors it.

    The added diagonal starts at the rounding error of the matrix's largest entry and grows tenfold until every
    factorisation succeeds, so that a wound-up system (decayed ridge, repeated keys) gives a finite answer.
    """
    lower, failed = _factor(matrix)
    if not failed.any():
        return lower
    largest = matrix.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    jitter = largest.clamp_min(torch.finfo(matrix.dtype).tiny ** 0.5) * torch.finfo(matrix.dtype).eps
    for _ in range(math.ceil(-math.log10(torch.finfo(matrix.dtype).eps))):
        extra = torch.where(failed[..., None], jitter, torch.zeros_like(jitter))
        lower, again = _factor(matrix + torch.diag_embed(extra.expand(matrix.shape[:-1])))
        if not again.any():
            break
        failed, jitter = failed | again, jitter * 10
    return lower


def _factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factor and which matrices failed. On a CPU in halves down to `_LEAF`: LAPACK's own blocks are larger than
    these matrices, so that it would run at a tenth of the speed of the products the halves are made of."""
    width = matrix.shape[-1]
    if matrix.device.type != "cpu" or width < 2 * _LEAF:
        lower, info = torch.linalg.cholesky_ex(matrix)
        return lower, info > 0
    half = width // 2
    matrix, lead = matrix.flatten(0, -3), matrix.shape[:-2]
    lower = matrix.new_empty(matrix.shape).mT
    first, failed = _factor(matrix[:, :half, :half])
    below = torch.linalg.solve_triangular(first.mT, matrix[:, half:, :half], upper=True, left=False)
    last, again = _factor(torch.baddbmm(matrix[:, half:, half:], below, below.mT, alpha=-1))
    lower[:, :half, :half], lower[:, half:, :half], lower[:, half:, half:] = first, below, last
    lower[:, :half, half:] = 0.0
    return lower.unflatten(0, lead), (failed | again).unflatten(0, lead)
