"""Alignment of large samples: an unbiased estimate from sampled queries, and how scores depend on sample size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unrolled.ops.neighbours import nearest_neighbours


@dataclass(frozen=True)
class SampledScore:
    """Mutual k-NN of n samples, estimated from some of them as queries against all as gallery.

    Attributes:
        score: unbiased estimate; `standard_error` concerns the choice of queries only, for this gallery.
        chance: k / (n - 1).
        n, k, queries: gallery, neighbours, queries.
    """

    score: float
    standard_error: float
    chance: float
    n: int
    k: int
    queries: int


def mutual_knn_sampled(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    k: int = 10,
    *,
    queries: int = 1024,
    seed: int = 0,
    tile: int | None = None,
) -> SampledScore:
    """Estimate `mutual_knn(x, y, k)` from a random sample of queries, each searched against all samples exactly.

    Costs queries x n x d instead of n^2 x d operations and a few tiles of memory; x and y may be numpy memory maps.
    Ties are ordered by index: remove duplicates first if there are many.

    Raises:
        ValueError: unequal numbers of samples, k >= n, or fewer than two queries.
    """
    n = _paired(x, y)
    count = min(queries, n)
    if count < 2:
        raise ValueError(f"queries must be at least 2, got {queries}")
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    a, b = (nearest_neighbours(side, k, queries=chosen, tile=tile).indices.cpu() for side in (x, y))
    overlap = _overlap(a, b)
    # sampling without replacement: no error is left when every sample is a query
    error = float(overlap.std()) / math.sqrt(count) * math.sqrt(1 - count / n)
    return SampledScore(float(overlap.mean()), error, k / (n - 1), n, k, count)


def mutual_knn_curve(
    x: Tensor | np.ndarray, y: Tensor | np.ndarray, sizes: Sequence[int], *,
    k: int | None = 10, share: float | None = None,
    queries: int = 1024, seed: int = 0,
) -> list[SampledScore]:  # fmt: skip
    """Mutual k-NN of the same queries against growing galleries, at fixed k or at k proportional to the gallery.

    At fixed k scores fall as the gallery grows (arXiv 2604.18572), so a score means little without its n.

    Args:
        sizes: gallery sizes, at most n; the queries are part of the smallest gallery.
        k: fixed number of neighbours, or None with `share`, for k = max(1, round(share x size)).

    Raises:
        ValueError: both or neither of k and share, or sizes outside 3..n.
    """
    n = _paired(x, y)
    if (k is None) == (share is None):
        raise ValueError("give either k or share (then k=None)")
    if not sizes or min(sizes) < 3 or max(sizes) > n:
        raise ValueError(f"sizes must lie between 3 and n = {n}, got {list(sizes)}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    count = min(queries, min(sizes))
    out = []
    for size in sizes:
        near = k if k is not None else max(1, round((share or 0.0) * size))
        rows = order[:size].numpy()
        first = torch.arange(count)
        a, b = (nearest_neighbours(_take(side, rows), near, queries=first).indices.cpu() for side in (x, y))
        overlap = _overlap(a, b)
        error = float(overlap.std()) / math.sqrt(count) * math.sqrt(1 - count / size)
        out.append(SampledScore(float(overlap.mean()), error, near / (size - 1), size, near, count))
    return out


def _paired(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> int:
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0]:
        raise ValueError(f"x and y must be [n, d] with the same n, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    return int(x.shape[0])


def _take(x: Tensor | np.ndarray, rows: np.ndarray) -> Tensor | np.ndarray:
    return x[torch.from_numpy(rows).to(x.device)] if isinstance(x, Tensor) else np.asarray(x[rows])


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """[q] share of common entries of two lists [q, k], whose entries are distinct."""
    k = a.shape[1]
    both = torch.cat([a, b], 1).sort(dim=1).values
    return (both[:, 1:] == both[:, :-1]).sum(1).double() / k
