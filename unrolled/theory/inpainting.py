"""Completion of pictures without learning: the smoothest membrane through what is visible."""

from __future__ import annotations

import torch
from torch import Tensor


def harmonic(images: Tensor, removed: Tensor, *, tolerance: float = 1e-4, iterations: int = 500) -> Tensor:
    """Removed pixels as the membrane over the visible ones: each the mean of its neighbours (Laplace's equation).

    Solved by conjugate gradients; the image's border is free.

    Args:
        images: `[n, c, h, w]`; removed pixels are not read.
        removed: `[n, 1, h, w]`, true for removed.
        tolerance: of the residual, relative to where it began.
        iterations: at most so many.
    """
    free = removed.to(images)
    known = images * (1 - free)

    def laplace(x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for axis in (2, 3):
            step = x.diff(dim=axis)
            result.narrow(axis, 0, step.shape[axis]).sub_(step)
            result.narrow(axis, 1, step.shape[axis]).add_(step)
        return result

    start = free * (known.sum((2, 3), keepdim=True) / (1 - free).sum((2, 3), keepdim=True))
    x, residual = start, -free * laplace(known + start)
    direction, energy = residual, residual.square().sum((2, 3), keepdim=True)
    goal = tolerance**2 * energy
    for _ in range(iterations):
        if bool((energy <= goal).all()):
            break
        image = free * laplace(direction)
        curve = (direction * image).sum((2, 3), keepdim=True)
        step = torch.where(curve > 0, energy / curve.clamp_min(1e-30), 0.0)
        x, residual = x + step * direction, residual - step * image
        after = residual.square().sum((2, 3), keepdim=True)
        direction = residual + torch.where(energy > 0, after / energy.clamp_min(1e-30), 0.0) * direction
        energy = after
    return known + free * x
