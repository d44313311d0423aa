"""Neighbourhoods of samples whose scores are tied, such that the order of the samples decides nothing.

Two representations with many duplicates would seem to agree because both lists prefer low indices; hence `membership`,
which lets all samples tied for the last place share it (weights that sum to k), treats scores within `tolerance` as
tied, and does not depend on the order of the samples; and, where an order is needed, `shuffled_ties`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolled.ops.neighbours import Neighbours, Rows, check_neighbours, load_rows, nearest_neighbours, tile_size
from unrolled.ops.top_k import top_k

_MAX_SHARED = 2**27


@dataclass(frozen=True)
class Membership:
    """Who belongs to each neighbourhood and how much.

    `columns` [q, m] int64 and `weights` [q, m]; the weights of a row sum to k. Without ties m = k and all weights are
    1. Padding has weight 0. `tied` counts the rows whose last place was shared.
    """

    columns: Tensor
    weights: Tensor
    tied: int


def membership(
    x: Rows,
    k: int,
    *,
    queries: Tensor | None = None,
    normalize: bool = True,
    tolerance: float | None = None,
    tile: int | None = None,
) -> Membership:
    """Neighbourhoods in which all samples tied for the last place share it.

    With v the k-th largest score of a row, samples above v + tolerance have weight 1, and the m samples within
    `tolerance` of v share the places that are left equally. This is the expected membership if ties were broken at
    random, and it moves with the samples when these are reordered.

    Args:
        x, k, queries, normalize, tile: as in `nearest_neighbours`.
        tolerance: relative to the largest score; 3e-7 by default (1e-12 for float64), the rounding error of a score.

    Raises:
        ValueError: more than 2**27 shared places, i.e. a large data set made of few distinct rows.
    """
    n = check_neighbours(x, k)
    neighbours = nearest_neighbours(x, min(k + 1, n - 1), queries=queries, normalize=normalize, tile=tile)

    def rows_of_scores(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        size = tile_size(n, tile)
        device = neighbours.indices.device
        step = max(1, size * size // n)
        for start in range(0, rows.numel(), step):
            part = rows[start : start + step]
            part = part if queries is None else queries.to(device)[part]
            asked = load_rows(x, part, normalize, device)
            scores = torch.cat(
                [asked @ load_rows(x, slice(at, at + size), normalize, device).T for at in range(0, n, size)], 1
            )
            scores[torch.arange(part.numel(), device=device), part] = -torch.inf
            yield slice(start, start + part.numel()), scores

    return _share(neighbours, k, n, tolerance, rows_of_scores)


def membership_of_scores(scores: Tensor, k: int, *, tolerance: float | None = None) -> Membership:
    """`membership` from a given [n, n] matrix of similarities; its diagonal is ignored."""
    n = scores.shape[0]
    scores = scores.clone().fill_diagonal_(-torch.inf)
    values, indices = top_k(scores, min(k + 1, n - 1))
    return _share(Neighbours(indices, values), k, n, tolerance, lambda rows: iter([(slice(None), scores[rows])]))


def _share(neighbours: Neighbours, k: int, n: int, tolerance: float | None, rows_of_scores: Any) -> Membership:
    indices, scores = neighbours.indices, neighbours.scores
    columns, weights = indices[:, :k], torch.ones_like(scores[:, :k])
    if scores.shape[1] == k:
        return Membership(columns, weights, 0)
    slack = _slack(scores, tolerance)
    rows = (scores[:, k] >= scores[:, k - 1] - slack).nonzero()[:, 0]
    if not rows.numel():
        return Membership(columns, weights, 0)
    last = scores[rows, k - 1]
    shared = torch.empty(rows.numel(), dtype=torch.long, device=rows.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    stored = 0
    for part, block in rows_of_scores(rows):
        boundary = (block - last[part, None]).abs() <= slack
        above = block > last[part, None] + slack
        row, column = (above | boundary).nonzero(as_tuple=True)
        places = (k - above.sum(1)) / boundary.sum(1)
        weight = torch.where(boundary[row, column], places[row], torch.ones_like(places[row]))
        shared[part] = above.sum(1) + boundary.sum(1)
        stored += row.numel()
        if stored > _MAX_SHARED:
            raise ValueError(
                f"the last neighbour is tied in {rows.numel()} of {n} rows, with {stored / n:.0f} candidates each: "
                "remove duplicate rows"
            )
        parts.append((row, column, weight))
    width = max(k, int(shared.max()))
    if columns.shape[0] * width > _MAX_SHARED:
        raise ValueError(f"rows have up to {width} neighbours tied for the last place at n={n}: remove duplicate rows")
    columns = torch.nn.functional.pad(columns, (0, width - k))
    weights = torch.nn.functional.pad(weights, (0, width - k))
    columns[rows], weights[rows] = 0, 0
    offset = 0
    for row, column, weight in parts:
        local, counts = torch.unique_consecutive(row, return_counts=True)
        slot = torch.arange(row.numel(), device=row.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        target = rows[offset + row]
        columns[target, slot], weights[target, slot] = column, weight.to(weights)
        offset += local.numel()
    return Membership(columns, weights, rows.numel())


def _slack(scores: Tensor, tolerance: float | None) -> float:
    if tolerance is None:
        tolerance = 1e-12 if scores.dtype == torch.float64 else 3e-7
    return tolerance * float(scores.abs().max())


def shuffled_ties(x: Rows, k: int, neighbours: Neighbours, *, tolerance: float | None = None) -> Tensor:
    """[n, k] neighbours by cosine, ties in an order that has nothing to do with the samples' own.

    Rows with scores within `tolerance` of each other are searched again among the samples in a random order. Its seed
    is what the lists of all rows are, so that features of equal neighbourhoods agree entirely, and independent ones by
    chance only. Rows without ties are left as they are.

    Args:
        x: [n, d], as in `nearest_neighbours`.
        k: neighbours.
        neighbours: of `nearest_neighbours(x, min(k + 1, n - 1))`.
        tolerance: as in `membership`.
    """
    scores = neighbours.scores
    tied = ((scores[:, :-1] - scores[:, 1:]) <= _slack(scores, tolerance)).any(1).nonzero()[:, 0]
    lists = neighbours.indices[:, :k].contiguous()
    if not tied.numel():
        return lists
    n, device = len(lists), lists.device
    digest = hashlib.sha256(neighbours.indices.cpu().numpy().tobytes()).digest()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))).to(device)
    mixed = x[order.to(x.device)] if isinstance(x, Tensor) else np.asarray(x[order.cpu().numpy()])
    again = nearest_neighbours(mixed, k, queries=torch.argsort(order)[tied], device=device)
    lists[tied] = order[again.indices]
    return lists
