"""The mesa solve as a graph: a fixed number of conjugate-gradient steps, decided by no value."""

from __future__ import annotations

import torch
from torch import Tensor


def recorded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor | float,
    decay: Tensor | None,
    gate: Tensor | None,
    *,
    ridge_decays: bool,
    steps: int,
) -> Tensor:
    """Outputs [b, h, t, dv] of `mesa`, for what `torch.export`, `torch.jit.trace` and FX record.

    Every system is solved by `steps` conjugate gradients from the Jacobi guess, all of them at once: t^2 numbers a
    head, where the solvers by chunks keep to a bounded memory. As many steps as the keys are wide are exact but for
    rounding. Nothing is certified.
    """
    dtype, wide = v.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    ridges: Tensor | float = ridge
    if not isinstance(ridge, float | int):  # [h] or [h, dk]
        ridges = ridge.to(wide).reshape(q.shape[1], 1, -1)
    weights = torch.ones_like(q[0, 0] @ k[0, 0].transpose(-2, -1)).tril()  # [t, t]
    if decay is not None:
        reach = decay.to(wide).log().cumsum(-1)[..., None]
        # zeros above the diagonal, before they are raised to powers that overflow
        weights = ((reach - reach.transpose(-2, -1)) * weights).exp() * weights
        ridges = ridges * reach.exp() if ridge_decays else ridges
    if gate is not None:
        weights = weights * gate.to(wide)[..., None, :]

    def apply(x: Tensor) -> Tensor:
        return ((x @ k.transpose(-2, -1)) * weights) @ k + ridges * x

    x = q / (weights @ k.square() + ridges)
    residual = q - apply(x)
    direction, size = residual, _dot(residual, residual)
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(steps):
        image = apply(direction)
        length = size / _dot(direction, image).clamp_min(tiny)
        x, residual = x + length * direction, residual - length * image
        before, size = size, _dot(residual, residual)
        direction = residual + (size / before.clamp_min(tiny)) * direction
    out: Tensor = ((x @ k.transpose(-2, -1)) * weights) @ v
    return out.to(dtype)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
