"""Rows that are copies of others: their neighbours are ties, and they are seldom independent samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unrolled.ops.gram import accumulator
from unrolled.ops.rows import as_rows

MANY = 0.1
"""Share of rows with a copy above which a metric warns."""

_BLOCK = 8192  # rows that are widened at a time
_PROBED = 256  # rows whose near copies are looked for


def copied_share(x: Tensor) -> float:
    """Share of the rows of x [n, d] that equal another row, entry by entry; O(n d)."""
    direction = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = direction.to(x.device, accumulator(x))
    key = torch.cat([part.to(direction) @ direction for part in x.split(_BLOCK)])
    order = key.argsort()
    close = (key[order][1:] - key[order][:-1]) <= 1e-6 * key.abs().max()
    at = close.nonzero()[:, 0]
    same = (x[order[at]] == x[order[at + 1]]).all(1)
    copied = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    copied[order[at[same]]] = True
    copied[order[at[same] + 1]] = True
    return int(copied.sum()) / len(x)


def near_copied_share(x: Tensor) -> float:
    """Share of (at most 256) rows that lie ten times nearer to another row than to half of them.

    0 where features vary in fewer than eight directions, in which rows come close by chance.
    """
    centred = (x - x.mean(0)).to(accumulator(x))
    small = centred.T @ centred if x.shape[1] <= len(x) else centred @ centred.T
    if not float(small.trace() ** 2) > 8 * float(small.square().sum()):
        return 0.0
    rows = torch.linspace(0, len(x) - 1, min(_PROBED, len(x))).round().long().to(x.device)
    distance = torch.cdist(centred[rows], centred)
    distance[torch.arange(len(rows), device=x.device), rows] = torch.inf
    near = distance.min(1).values < 0.1 * distance.median(1).values
    return int(near.sum()) / len(rows)


def warn_of_copies(x: Tensor, name: str) -> None:
    """Warn if more than `MANY` of the rows are copies of others."""
    share = copied_share(x)
    if share > MANY:
        warnings.warn(
            f"{name}: {100 * share:.0f} % of the {len(x):,} rows are copies of other rows. Ties between them are "
            "broken at random or shared; if copies are of one photo, video or document, give groups to compare()",
            stacklevel=3,
        )


def note_copies(layers: Mapping[str, Any], name: str) -> None:
    """Warn if many rows of the last layer are copies, or near copies, of others: they suggest groups."""
    layer, values = list(layers.items())[-1]
    x = as_rows(values)
    if len(x) < 4:
        return
    exact = copied_share(x)
    share = max(exact, near_copied_share(x.float()))
    if share > MANY:
        warnings.warn(
            f"{name}: {100 * share:.0f} % of the {len(x):,} rows of {layer} are {'' if exact >= share else 'near '}"
            "copies of other rows. If they come from one photo, video or document, p-values are too small: say so by "
            "groups=",
            stacklevel=3,
        )
