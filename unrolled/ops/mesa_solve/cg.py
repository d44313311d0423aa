"""Conjugate gradients for many small systems at once, with a per-system stop.

Used on one system per token, (H_t + diag(ridge)) x_t = q_t, whose products with H_t are chunkwise; MesaNet
(arXiv 2506.05233) solves these with 30 plain steps from the Jacobi guess q / diag(H + ridge).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def conjugate_gradient(
    operator: Operator,
    rhs: Tensor,
    start: Tensor,
    *,
    tolerance: float,
    steps: int,
    precondition: Operator | None = None,
) -> Tensor:
    """Solve operator(x) = rhs for symmetric positive definite systems stacked along the leading dimensions.

    A system stops, and stays exactly as it is, once r^T B r <= tolerance^2 rhs^T B rhs with r its residual and B the
    preconditioner (the identity for None: relative residual norm). The recursive residual drifts away from the true
    one, so when all systems have stopped early the true residual is formed and, where it is not small enough, the
    iteration restarted from it as often as that helps.

    Args:
        operator: [..., d] -> [..., d], the same systems every time.
        rhs: [..., d].
        start: [..., d].
        tolerance: relative, > 0; 0 runs all `steps` unless a system is solved exactly.
        steps: largest number of products with the operator, start and restarts not counted.
        precondition: approximate inverse of the operator, symmetric positive definite.
    """
    if steps <= 0:
        return start
    apply = precondition if precondition is not None else lambda r: r
    goal = tolerance**2 * _dot(rhs, apply(rhs))
    x, best = start, torch.full_like(goal, torch.inf)
    while True:
        residual = rhs - operator(x)
        z = apply(residual)
        size = _dot(residual, z)
        # a restart that did not at least halve the residual means rounding is reached; keep the best seen
        active = (size > goal) & (size < 0.25 * best)
        if steps <= 0 or not bool(active.any()):
            return x
        best = torch.minimum(size, best)
        x, steps = _descend(operator, apply, x, residual, z, size, active, goal, steps)


def _descend(
    operator: Operator,
    apply: Operator,
    x: Tensor,
    residual: Tensor,
    z: Tensor,
    size: Tensor,
    active: Tensor,
    goal: Tensor,
    steps: int,
) -> tuple[Tensor, int]:
    """One run of conjugate gradients until every active system meets its goal; returns x and the steps left."""
    direction = z
    zero = torch.zeros_like(size)
    while steps > 0:
        image = operator(direction)
        curvature = _dot(direction, image)
        active = active & (curvature > 0)
        length = torch.where(active, size / torch.where(active, curvature, 1.0), zero)
        x = torch.addcmul(x, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1)
        z = apply(residual)
        previous, size = size, torch.where(active, _dot(residual, z), size)
        steps -= 1
        active = active & (size > goal)
        if not bool(active.any()):
            break
        ratio = torch.where(active, size / torch.where(active, previous, 1.0), zero)
        direction = torch.addcmul(z, ratio, direction)
    return x, steps


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
