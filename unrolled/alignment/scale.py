"""Alignment of large samples: an unbiased estimate from sampled queries, and how scores depend on sample size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.chance import Comparison
from unrolled.alignment.dependence import Blocks, Groups, Units
from unrolled.alignment.metric import Metric
from unrolled.alignment.registry import get_metric
from unrolled.alignment.significance import RELATIVE, ROUNDING, tail_p_value
from unrolled.alignment.streaming import StreamingCKA
from unrolled.ops.gram import accumulator
from unrolled.ops.rows import as_floats, check_array, nearly_one_way
from unrolled.ops.ties import Membership, membership

LARGE = 50_000
"""Samples above which `unrolled align` takes `compare_large`: n x n kernels no longer fit."""


_NO_P = f"none, as every relabelling would be a pass over all samples; there is one of {LARGE:,} samples or fewer"


@dataclass(frozen=True)
class SampledScore:
    """Mutual k-NN of n samples, estimated from some of them as queries against all as gallery.

    Attributes:
        score: unbiased estimate; `standard_error` concerns the choice of queries only, for this gallery.
        chance: k / (n - 1); less where ties share places.
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
    Samples tied for the last place share it, as in `MutualKNN`.

    Raises:
        ValueError: unequal numbers of samples, k >= n, or fewer than two queries.
    """
    n = _paired(x, y)
    count = min(queries, n)
    if count < 2:
        raise ValueError(f"queries must be at least 2, got {queries}")
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    a, b = (membership(side, k, queries=chosen, tile=tile) for side in (x, y))
    return _sampled(a, b, k, n)


def compare_large(
    features_a: Mapping[str, Tensor | np.ndarray],
    features_b: Mapping[str, Tensor | np.ndarray],
    metric: str | Metric = "mutual_knn",
    *,
    queries: int = 1024,
    draws: int = 200,
    groups: Groups | None = None,
    blocks: Blocks | None = None,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """All pairs of layers of two models on samples too many for n x n kernels; a few tiles of memory.

    Mutual k-NN is estimated from sampled queries: the interval is 1.96 standard errors of the best pair's estimate, cut
    to the metric's range, and concerns the choice of queries alone. Its null relabels queries among themselves and the
    others among themselves, which needs no further neighbours; the p-value is the share of relabellings whose best pair
    reaches the score, and where none does the tail of a Pareto distribution fitted to them, or the bound as far as that
    is believed (`p_method` says so). z is the distance from chance in standard deviations of that null, for the best
    pair alone.
    Unbiased linear CKA is computed in one pass over all samples, with 0 as its chance and no p-value, as every
    relabelling would be such a pass. Layers without variance score NaN and are listed in `constant`.

    Args:
        features_a, features_b: layer name -> [n, d]; numpy memory maps stay on disk.
        metric: mutual k-NN or unbiased linear CKA, by name or as an object; `options` go with a name.
        queries: samples whose neighbours are searched; with groups whole ones, so that there can be more.
        draws: relabellings.
        groups, blocks: as in `compare`; a series can be cut into blocks, but not shifted.
        seed: of the choice of queries and the relabellings.

    Raises:
        ValueError: another metric, unequal numbers of samples, k >= n, no layer with variance on one side, or groups or
            blocks that do not fit.
    """
    chosen = get_metric(metric, **options)
    names = list(features_a), list(features_b)
    constant = (
        [name for name, x in features_a.items() if _constant(x)],
        [name for name, x in features_b.items() if _constant(x)],
    )
    for what, side, all_names in zip(("features_a", "features_b"), constant, names, strict=True):
        if len(side) == len(all_names):
            raise ValueError(f"{what}: all layers have zero variance ({', '.join(side)}): similarity is undefined")
    used_a, used_b = (
        [(i, x) for i, (name, x) in enumerate(side.items()) if name not in left_out]
        for side, left_out in zip((features_a, features_b), constant, strict=True)
    )
    first = next(iter(features_a.values()))
    for layer in (*features_a.values(), *features_b.values()):
        _paired(first, layer)
    kind = type(chosen).__name__
    n = len(next(iter(features_a.values())))
    scores, errors = (torch.full((len(names[0]), len(names[1])), math.nan, dtype=torch.float64) for _ in range(2))
    z, p, interval = None, None, None
    if kind == "MutualKNN":
        k = int(chosen.k)  # type: ignore[attr-defined]
        units = Units.of(n, groups, blocks)
        asked = _queries(units, queries, seed)
        for name, layer in (*features_a.items(), *features_b.items()):
            _warn_of_one_way(name, layer[: len(asked)])
        found_a, found_b = ([membership(layer, k, queries=asked) for _, layer in used] for used in (used_a, used_b))
        chances = torch.full_like(scores, math.nan)
        for (i, _), left in zip(used_a, found_a, strict=True):
            for (j, _), right in zip(used_b, found_b, strict=True):
                one = _sampled(left, right, k, n)
                scores[i, j], errors[i, j], chances[i, j] = one.score, one.standard_error, one.chance
        null = list(relabelled_scores(found_a, found_b, asked, n, _orders(units, asked, draws, seed)))
        row, column = _largest(scores)
        score, chance = float(scores[row, column]), float(chances[row, column])
        place = [i for i, _ in used_a].index(row), [j for j, _ in used_b].index(column)
        spread = float(torch.stack([grid[place] for grid in null]).std()) if draws > 1 else 0.0
        z = (score - chance) / spread if spread > ROUNDING + RELATIVE * abs(chance) else None
        p = tail_p_value(score, torch.stack([grid.max() for grid in null]))
        reach = 1.96 * float(errors[row, column])
        interval = max(chosen.range[0], score - reach), min(chosen.range[1], score + reach)
    elif kind == "CKA" and chosen.unbiased and chosen.kernel == "linear":  # type: ignore[attr-defined]
        chance, units = 0.0, Units.of(n, groups, blocks)
        for i, x in used_a:
            for j, y in used_b:
                scores[i, j] = _streamed_cka(x, y)
    else:
        raise ValueError(
            f"metric: {chosen!r} needs n x n kernels, too large for {n:,} samples; take mutual_knn or unbiased_cka, or "
            f"fewer samples (at most {LARGE:,})"
        )
    row, column = _largest(scores)
    return Comparison(
        metric=f"{chosen!r}, {len(asked):,} sampled queries" if kind == "MutualKNN" else repr(chosen), n=n,
        layers=names, scores=scores, best=(names[0][row], names[1][column]), score=float(scores[row, column]),
        chance=chance, null_mean=None, null_std=None, null_best=None, p_value=p.value if p else None, threshold=None,
        calibrated=None, z=z, alpha=0.05, interval=interval, held_out=None, constant=constant,
        p_method=p.method if p else _NO_P, units=units.description,
    )  # fmt: skip


def relabelled_scores(
    a: Sequence[Membership], b: Sequence[Membership], queries: Tensor, n: int, orders: Iterable[Tensor]
) -> Iterator[Tensor]:
    """[len(a), len(b)] sampled mutual k-NN after each relabelling of b.

    Args:
        a, b: neighbourhoods of the same queries, one entry a layer.
        queries: [q] rows that they are of, ascending; `n`: all rows.
        orders: permutations [n] that take queries to queries.
    """
    count = len(queries)
    place = torch.arange(count)[:, None]
    held = [_entries(each) for each in a]
    keys = torch.cat([(place * n + columns)[weights > 0] for columns, weights in held]).unique()
    table = torch.zeros(len(keys), len(a), dtype=torch.float64)
    for layer, (columns, weights) in enumerate(held):
        positive = weights > 0
        table[torch.searchsorted(keys, (place * n + columns)[positive]), layer] = weights[positive]
    moved = [_entries(each) for each in b]
    norms = [[float(weights.square().sum().sqrt()) for _, weights in side] for side in (held, moved)]
    scale = torch.outer(*(torch.tensor(each, dtype=torch.float64) for each in norms))
    for order in orders:
        inverse, source = torch.argsort(order), torch.searchsorted(queries, order[queries])
        sums = []
        for columns, weights in moved:
            wanted = place * n + inverse[columns[source]]
            at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
            hit = (keys[at] == wanted) & (weights[source] > 0)
            sums.append(weights[source][hit] @ table[at[hit]])
        yield torch.stack(sums, 1) / scale


def _entries(members: Membership) -> tuple[Tensor, Tensor]:
    return members.columns.cpu(), members.weights.cpu().double()


def _queries(units: Units, count: int, seed: int) -> Tensor:
    """Ascending rows of random whole units, together at least `count` where there are as many."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(units.count, generator=generator)
    if units.members is None:
        return order[: min(count, units.n)].sort().values
    sizes = torch.tensor([len(units.members[i]) for i in order.tolist()]).cumsum(0)
    taken = order[: int((sizes < count).sum()) + 1]
    return torch.cat([units.members[i] for i in taken.tolist()]).sort().values


def _orders(units: Units, queries: Tensor, draws: int, seed: int) -> Iterator[Tensor]:
    """Relabellings that take queries to queries."""
    if units.shift:
        raise ValueError("blocks='shift' would take queries to other samples: give the rows of a block instead")
    asked = torch.zeros(units.n, dtype=torch.bool)
    asked[queries] = True
    return units.relabellings(draws, seed, apart=asked)


def _largest(scores: Tensor) -> tuple[int, int]:
    return divmod(int(scores.nan_to_num(nan=-math.inf).argmax()), scores.shape[1])


def _sampled(a: Membership, b: Membership, k: int, n: int) -> SampledScore:
    """Score and error from the neighbourhoods of some queries."""
    count = len(a.columns)
    if not a.tied and not b.tied:
        overlap = _overlap(a.columns[:, :k].cpu(), b.columns[:, :k].cpu())
        score, chance, residual = float(overlap.mean()), k / (n - 1), overlap
    else:
        sizes = [each.weights.double().square().sum(1).cpu() for each in (a, b)]
        scale = math.sqrt(float(sizes[0].mean()) * float(sizes[1].mean()))
        overlap = _shared_overlap(a, b, n) / scale
        score, chance = float(overlap.mean()), k * k / (n - 1) / scale
        # of a ratio: the norms vary with the choice of queries too
        residual = overlap - score * sum(each / each.mean() for each in sizes) / 2
    # sampling without replacement: no error is left when every sample is a query
    error = float(residual.std()) / math.sqrt(count) * math.sqrt(1 - count / n)
    return SampledScore(score, error, chance, n, k, count)


def _shared_overlap(a: Membership, b: Membership, n: int) -> Tensor:
    """[q] inner products of the weights of two neighbourhoods."""
    parts = []
    for rows in torch.arange(len(a.columns)).split(max(1, 2**24 // n)):
        entries = [(each.columns[rows].cpu(), each.weights[rows].cpu().double()) for each in (a, b)]
        dense = torch.zeros(len(rows), n, dtype=torch.float64).scatter_add_(1, *entries[0])
        parts.append((dense.gather(1, entries[1][0]) * entries[1][1]).sum(1))
    return torch.cat(parts)


def _constant(x: Tensor | np.ndarray, block: int = 8192) -> bool:
    """Whether all rows are equal up to rounding; reads blocks until one differs."""
    first = as_floats(x[0])
    slack = 8 * torch.finfo(torch.float32).eps * float(first.abs().max())
    for start in range(0, len(x), block):
        if float((as_floats(x[start : start + block]) - first).abs().max()) > slack:
            return False
    return True


def _warn_of_one_way(name: str, rows: Tensor | np.ndarray) -> None:
    """Layers are not read at once here, so that they cannot be widened."""
    values = as_floats(rows)
    if values.dtype == torch.float32 and nearly_one_way(values):
        warnings.warn(
            f"layer {name!r}: its rows point so nearly one way that float32 cosines tie neighbours; give float64, or "
            "features less their mean",
            stacklevel=3,
        )


def _streamed_cka(x: Tensor | np.ndarray, y: Tensor | np.ndarray, block: int = 8192) -> float:
    centers = [as_floats(side[:block]) for side in (x, y)]  # far from the origin sums of products lose what varies
    center_x, center_y = (rows.to(accumulator(rows)).mean(0) for rows in centers)
    stream = StreamingCKA(unbiased=True, center_x=center_x, center_y=center_y)
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
        a, b = (membership(_take(side, rows), near, queries=first) for side in (x, y))
        out.append(_sampled(a, b, near, size))
    return out


def _paired(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> int:
    check_array(x, "x")
    check_array(y, "y")
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
