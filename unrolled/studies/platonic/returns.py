"""Diminishing returns: agreement of two models by how many views of a sample each of them averages, and a law of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.float64]]
_EXPONENTS = np.geomspace(0.05, 6.0, 40)
_MANY = 10  # captions that the law is read at


def overlaps(images: Tensor, texts: Tensor, k: int) -> Array:
    """[crops, captions, n]: the share of neighbours of each photo that is common, of means of so many unit vectors.

    Args:
        images: unit vectors [n, crops, d].
        texts: unit vectors [n, captions, e].
        k: neighbours.

    Returns:
        the mean over cyclic runs of crops and of captions, of which all are one choice only.
    """
    sides = [[[neighbours(mean, k) for mean in _runs(side, count)] for count in range(1, side.shape[1] + 1)]
             for side in (images, texts)]  # fmt: skip
    return np.stack([np.stack([common(some, other, k) for other in sides[1]]) for some in sides[0]])


def _runs(side: Tensor, count: int) -> list[Tensor]:
    total = side.shape[1]
    starts = range(total if count < total else 1)
    return [side[:, [(start + i) % total for i in range(count)]].mean(1) for start in starts]


def neighbours(x: Tensor, k: int) -> Array:
    """[n, n] of 0 and 1: who the k nearest rows of each row of x [n, d] are by cosine, itself left out."""
    import torch

    from unrolled.ops.neighbours import nearest_neighbours

    near = nearest_neighbours(x.double(), k).indices
    return np.asarray(torch.zeros(len(x), len(x), dtype=torch.float64).scatter_(1, near, 1.0).numpy())


def common(some: Sequence[Array], other: Sequence[Array], k: int) -> Array:
    """[n] share of common neighbours, the mean over all pairs of tables of `neighbours`."""
    # the mean over pairs of products is the product of means
    share: Array = (np.mean(some, axis=0) * np.mean(other, axis=0)).sum(1) / k
    return share


def fit_law(scores: Array) -> dict[str, Array]:
    """Least-squares fits of s(f, c) = S - a f^-alpha - b c^-beta, exponents from a grid of 0.05 to 6.

    Args:
        scores: [r, crops, captions], one fit for each of r.

    Returns:
        [r] each: `S`, `a`, `alpha`, `b`, `beta`; `r2`, the share of variance; `many`, the law at one crop and ten
        captions over that at one crop and one caption.
    """
    count, crops, captions = scores.shape
    y = scores.reshape(count, -1)
    f, c = np.meshgrid(np.arange(1, crops + 1), np.arange(1, captions + 1), indexing="ij")
    least = np.full(count, np.inf)
    out = {key: np.full(count, np.nan) for key in ("S", "a", "alpha", "b", "beta")}
    for alpha in _EXPONENTS:
        for beta in _EXPONENTS:
            design = np.stack([np.ones(f.size), -(f.ravel() ** -alpha), -(c.ravel() ** -beta)], 1)
            solution = y @ np.linalg.pinv(design).T
            error = ((y - solution @ design.T) ** 2).sum(1)
            better = error < least
            least = np.where(better, error, least)
            for key, value in zip(out, (solution[:, 0], solution[:, 1], alpha, solution[:, 2], beta), strict=True):
                out[key] = np.where(better, value, out[key])
    spread = ((y - y.mean(1, keepdims=True)) ** 2).sum(1)

    def at(captions: int) -> Array:
        value: Array = out["S"] - out["a"] - out["b"] * captions ** -out["beta"]
        return value

    return {**out, "r2": 1 - least / np.maximum(spread, 1e-300), "many": at(_MANY) / at(1)}
