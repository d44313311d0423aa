"""Which solutions are trusted: by bounds on the condition numbers of the systems, never by how a solution looks.

A solution x of A x = q, with A = H + diag(ridge) and H = K^T K over the weighted pairs, carries the rounding E of the
statistics, |E| <= eps |A|. What is read off it, V^T K x, errs by V^T K A^-1 E x. Two bounds settle that this is little:

    eps |A| |A^-1| <= share                      the error is a share of |V^T K A^-1| |q|, for every query q,
    eps |A| |x| |A^-1|^(1/2) <= share |K x|      it is a share of |V| |K x|, because |K A^-1|^2 <= |A^-1| .

The second admits queries that lie among the keys, under a ridge as small as may be. A bound on the residual alone would
admit more, wrongly: a small residual is as good as the system it belongs to.
"""

from __future__ import annotations

import torch
from torch import Tensor

# rounding of the statistics, as a share of the least eigenvalue, up to which a computed inverse is as large as the true
# one; where rounding is all that keeps a system from being singular, only the ridge bounds it
CREDIBLE = 2.0**-5


class Imprecise(ArithmeticError):
    """Solutions may mean nothing in this precision: the systems are too close to singular for it."""


def share(dtype: torch.dtype) -> float:
    """What rounding may leave: ten bits; 14 in float64, after which nothing comes. Over the precision, it is the
    largest condition number: 8e3, and 3e11."""
    return 2.0**-14 if dtype == torch.float64 else 2.0**-10


def conditioned(gram: Tensor, grown: Tensor, inverse: Tensor) -> bool:
    """Whether all condition numbers are small enough, by the trace or else by the rows as bounds of the norm.

    Args:
        gram: [..., d, d], positive semidefinite.
        grown: [...], bound of the norm of what is added to it.
        inverse: [...], bound of the norm of the inverse of the sum.
    """
    most = share(gram.dtype) / torch.finfo(gram.dtype).eps
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    condition = (trace + grown) * inverse
    if float(condition.amax()) <= most:  # which NaN is not
        return True
    doubtful = ~(condition <= most)
    return float(((row_bound(gram[doubtful]) + grown[doubtful]) * inverse[doubtful]).amax()) <= most


def norm_of_inverse(systems: Tensor) -> Tensor:
    """A bound of it for systems [..., d, d]; without meaning, but large, for what is singular to working precision."""
    return _norm(torch.linalg.inv_ex(systems)[0])


def solve_each(systems: Tensor, rhs: Tensor) -> Tensor:
    """Solve systems [..., d, d], scaled to a unit diagonal, by one factorisation each: rhs [..., d] -> [..., d]."""
    root = systems.diagonal(dim1=-2, dim2=-1).detach().sqrt()
    solution: Tensor = torch.linalg.solve_ex(systems / (root[..., None] * root[..., None, :]), rhs / root)[0]
    return solution / root


@torch.no_grad()
def trust_each(systems: Tensor, ridges: Tensor, x: Tensor, strict: bool, replaced: Tensor | None = None) -> Tensor:
    """Which of the solutions of `solve_each` are trusted, [...]: the bounds of the module by an inverse each, for the
    systems as they are or scaled to a unit diagonal, as channels of other units would have them.

    Args:
        systems: [..., d, d].
        ridges: [..., d], of their diagonals.
        x: [..., d].
        strict: x itself must be right, not only what is read off it.
        replaced: [...], where the ridges stand for smaller ones, so that they must not matter; None for nowhere.
    """
    eps, most = torch.finfo(x.dtype).eps, share(x.dtype)
    diagonal = systems.diagonal(dim1=-2, dim2=-1)
    root = diagonal.sqrt()
    outer = root[..., None] * root[..., None, :]
    scaled = systems / outer
    inverse = torch.linalg.inv_ex(scaled)[0]
    size, plain = _norm(inverse), _norm(inverse / outer)
    wrong, plainly = eps * _norm(scaled), eps * _norm(systems)
    if replaced is not None:
        wrong = wrong + replaced * (ridges / diagonal).amax(-1)
        plainly = plainly + replaced * ridges.amax(-1)
    trusted = (wrong * size <= most) | (plainly * plain <= most)
    if not strict:
        pairs = (x * (systems @ x[..., None])[..., 0] - ridges * x.square()).sum(-1).clamp_min(0).sqrt()
        size = torch.where(wrong * size <= CREDIBLE, size, (diagonal / ridges).amax(-1))
        left = wrong * torch.linalg.vector_norm(x * root, dim=-1)
        # of a solution without meaning the pairs can overflow, and all would be below them
        trusted = trusted | ((left * size.sqrt() <= most * pairs) & pairs.isfinite())
    return trusted


def row_bound(symmetric: Tensor) -> Tensor:
    """The largest sum of a row's sizes, which the spectral norm of symmetric matrices [..., d, d] is not above."""
    return symmetric.abs().sum(-1).amax(-1)


def _norm(symmetric: Tensor) -> Tensor:
    """A bound of the spectral norm of matrices [..., d, d], above it by a factor of d^(1/8) at most."""
    size = torch.linalg.matrix_norm(symmetric)
    power = symmetric / size[..., None, None]
    for _ in range(2):
        power = power @ power
    return size * torch.linalg.matrix_norm(power) ** 0.25
