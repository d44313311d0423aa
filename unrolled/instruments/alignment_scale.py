"""Alignment of large samples: an unbiased estimate from sampled queries, and how scores depend on sample size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolled.instruments.alignment import get_metric
from unrolled.instruments.alignment_base import Metric
from unrolled.instruments.alignment_streaming import StreamingCKA
from unrolled.instruments.calibration import Comparison
from unrolled.ops.neighbours import nearest_neighbours
from unrolled.ops.rows import as_floats, check_kind

LARGE = 50_000
"""Samples above which `unrolled align` takes `compare_large`: n x n kernels no longer fit."""


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


def compare_large(
    features_a: Mapping[str, Tensor | np.ndarray],
    features_b: Mapping[str, Tensor | np.ndarray],
    metric: str | Metric = "mutual_knn",
    *,
    queries: int = 1024,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """All pairs of layers of two models on samples too many for n x n kernels; a few tiles of memory.

    Mutual k-NN is estimated from sampled queries: the interval is 1.96 standard errors of the best pair's estimate, and
    concerns the choice of queries alone. z is the distance from chance in standard errors that count the samples as
    drawn too, so that it does not grow without end as queries become all samples; the p-value is its normal tail times
    the number of layer pairs. Unbiased linear CKA is computed in one pass over all samples, with 0 as its chance and no
    p-value. Layers without variance score NaN and are listed in `constant`.

    Args:
        features_a, features_b: layer name -> [n, d]; numpy memory maps stay on disk.
        metric: mutual k-NN or unbiased linear CKA, by name or as an object; `options` go with a name.
        queries: samples whose neighbours are searched.
        seed: of the choice of queries.

    Raises:
        ValueError: another metric, unequal numbers of samples, k >= n, or no layer with variance on one side.
    """
    chosen = get_metric(metric, **options)
    names = list(features_a), list(features_b)
    constant = (
        [name for name, x in features_a.items() if _constant(x)],
        [name for name, x in features_b.items() if _constant(x)],
    )
    for side, all_names in zip(constant, names, strict=True):
        if len(side) == len(all_names):
            raise ValueError(f"all layers have zero variance ({', '.join(side)}): similarity is undefined")
    used_a, used_b = (
        [(i, x) for i, (name, x) in enumerate(side.items()) if name not in left_out]
        for side, left_out in zip((features_a, features_b), constant, strict=True)
    )
    kind = type(chosen).__name__
    n = len(next(iter(features_a.values())))
    scores, errors = (torch.full((len(names[0]), len(names[1])), math.nan, dtype=torch.float64) for _ in range(2))
    if kind == "MutualKNN":
        k = int(chosen.k)  # type: ignore[attr-defined]
        _paired(next(iter(features_a.values())), next(iter(features_b.values())))
        found_a, found_b = (_query_lists([x for _, x in used], k, queries, n, seed) for used in (used_a, used_b))
        chance = k / (n - 1)
        for (i, _), left in zip(used_a, found_a, strict=True):
            for (j, _), right in zip(used_b, found_b, strict=True):
                overlap = _overlap(left, right)
                scores[i, j] = overlap.mean()
                errors[i, j] = overlap.std() / math.sqrt(len(overlap))
    elif kind == "CKA" and chosen.unbiased and chosen.kernel == "linear":  # type: ignore[attr-defined]
        chance = 0.0
        for i, x in used_a:
            for j, y in used_b:
                scores[i, j] = _streamed_cka(x, y)
    else:
        raise ValueError(
            f"metric: {chosen!r} needs n x n kernels, too large for {n:,} samples; take mutual_knn or unbiased_cka, or "
            f"fewer samples (at most {LARGE:,})"
        )
    row, column = divmod(int(scores.nan_to_num(nan=-math.inf).argmax()), len(names[1]))
    score, error = float(scores[row, column]), float(errors[row, column])
    reach = 1.96 * error * math.sqrt(1 - min(queries, n) / n)  # no choice is left when every sample is a query
    z = (score - chance) / error if error > 0 else None
    p_value = None if z is None else min(1.0, scores.numel() * 0.5 * math.erfc(z / math.sqrt(2)))
    return Comparison(
        metric=f"{chosen!r}, {min(queries, n):,} sampled queries" if kind == "MutualKNN" else repr(chosen), n=n,
        layers=names, scores=scores, best=(names[0][row], names[1][column]), score=score, chance=chance,
        null_mean=None, null_std=None, null_best=None, p_value=p_value, threshold=None, calibrated=None, z=z,
        alpha=0.05, interval=None if z is None else (score - reach, score + reach), held_out=None,
        constant=constant,
    )  # fmt: skip


def _constant(x: Tensor | np.ndarray, block: int = 8192) -> bool:
    """Whether all rows are equal up to rounding; reads blocks until one differs."""
    first = as_floats(x[0])
    slack = 8 * torch.finfo(torch.float32).eps * float(first.abs().max())
    for start in range(0, len(x), block):
        if float((as_floats(x[start : start + block]) - first).abs().max()) > slack:
            return False
    return True


def _query_lists(layers: Sequence[Tensor | np.ndarray], k: int, queries: int, n: int, seed: int) -> list[Tensor]:
    """Neighbours of the same queries in every layer."""
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: min(queries, n)].sort().values
    return [nearest_neighbours(layer, k, queries=chosen).indices.cpu() for layer in layers]


def _streamed_cka(x: Tensor | np.ndarray, y: Tensor | np.ndarray, block: int = 8192) -> float:
    stream = StreamingCKA(unbiased=True)
    for start in range(0, len(x), block):
        stream.update(x[start : start + block], y[start : start + block])
    return stream.compute()


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
    check_kind(x, "x")
    check_kind(y, "y")
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
