"""Metrics that are cosines between fixed unit vectors, one per representation, with their exact null moments.

Mutual k-NN, CKNNA, CKA and most forms of RSA turn a representation into one n x n matrix of unit norm and compare by
the inner product. A whole grid of layers is then one matrix product, and the mean and variance under random relabelling
of the samples have closed forms:

- symmetric matrices (`embedded.DenseEmbedding`). The relabelling group acts on hollow symmetric matrices, and on
  symmetric ones with zero row sums, as the sum of three different irreducible representations, of dimensions 1, n - 1
  and n (n - 3) / 2. With t the component along the first and p, q the squared norms of the other two, Schur's lemma
  gives mean t_a t_b and variance p_a p_b / (n - 1) + q_a q_b / (n (n - 3) / 2). For unbiased CKA p = t = 0 and q = 1.
- k-NN matrices (`embedded.SparseEmbedding`), hollow and not symmetric: the moments of Mantel's statistic, sums of
  products of six class totals (Mantel 1967).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.embedded import DenseEmbedding, Embedding, SparseEmbedding, symmetric_matrix
from unrolled.alignment.metric import Metric, stacked
from unrolled.alignment.sparse import (
    blockwise_grid,
    looked_up_nulls,
    mantel_moments,
    sparse_grid,
    sparse_nulls,
    sparse_product,
)
from unrolled.ops.gram import accumulator, triangle_relabelling
from unrolled.ops.permutation_moments import permutation_moments

_BUDGET = 2**29  # bytes of scratch for one grid product
_MOVES = 1e-8  # standard deviation below which a value changes by rounding alone
_CACHED = 2**16  # entries of a kernel relabelled at a time
_STACK = 2**31  # bytes of stacked layers for null grids
_MOVED = 2**25  # relabelled entries of layers held at a time
_LOOKED_UP = 16  # samples for each entry of a row of all layers together above which entries are looked up
_SPARSER = 64  # samples for each neighbour above which sparse products of whole grids are cheaper than dense ones


class EmbeddingMetric(Metric):
    """A metric whose `prepare` returns an `Embedding` and whose value is the inner product."""

    def compare(self, a: Any, b: Any) -> float:
        """Cosine of the two embeddings."""
        (a,), (b,) = _alike([a], [b])
        if isinstance(a, DenseEmbedding):
            wide = accumulator(a.vector)
            value = float(a.vector.to(wide) @ b.vector.to(wide))
        else:
            value = sparse_product(a, b)
        return max(-1.0, min(1.0, value))

    def relabel(self, prepared: Any, order: Tensor) -> Any:
        """Embedding of the samples in another order: entries move, nothing is searched again."""
        order = order.to(prepared.columns.device if isinstance(prepared, SparseEmbedding) else prepared.vector.device)
        if isinstance(prepared, DenseEmbedding):
            index = triangle_relabelling(order)
            moved = (
                prepared.vector[index],
                prepared.vector[index.numel() :][order[: prepared.vector.numel() - index.numel()]],
            )
            features = None if prepared.features is None else prepared.features[order]
            return replace(prepared, vector=torch.cat(moved), features=features)
        inverse = torch.argsort(order)
        return replace(prepared, columns=inverse[prepared.columns[order]], values=prepared.values[order])

    def null_moments(self, rows: Sequence[Any], columns: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Exact mean and variance over all relabellings; see the module docstring."""
        kept_rows, kept_columns = _present(rows), _present(columns)
        a, b = [rows[i] for i in kept_rows], [columns[j] for j in kept_columns]
        if not a or not b or not _embedded(a, b):
            return None
        n = a[0].n
        if isinstance(a[0], DenseEmbedding):
            components = [torch.tensor([e.components for e in side], dtype=torch.float64) for side in (a, b)]
            moments = schur_moments(components[0], components[1], n)
        else:
            totals = [torch.stack([e.totals for e in side]).double().cpu() for side in (a, b)]
            moments = mantel_moments(totals[0], totals[1], n)
        where = torch.tensor(kept_rows)[:, None], torch.tensor(kept_columns)[None, :]
        mean, variance = (torch.full((len(rows), len(columns)), math.nan, dtype=torch.float64) for _ in range(2))
        mean[where], variance[where] = moments
        return mean, variance

    def null_shapes(self, rows: Sequence[Any], columns: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
        """Exact skewness over all relabellings, and how far a sample may move the value; `ops.permutation_moments`."""
        kept_rows, kept_columns = _present(rows), _present(columns)
        a, b = (
            [rows[i].shape for i in kept_rows if _embedded(rows)],
            [columns[j].shape for j in kept_columns if _embedded(columns)],
        )
        if not a or not b:
            return None
        first, second, third = permutation_moments([e.sums for e in a], [e.sums for e in b])
        variance = second - first**2
        variance = np.where(variance > _MOVES**2, variance, np.inf)  # what relabelling does not move is not skewed
        where = torch.tensor(kept_rows)[:, None], torch.tensor(kept_columns)[None, :]
        skewness, share = (torch.full((len(rows), len(columns)), math.nan, dtype=torch.float64) for _ in range(2))
        skewness[where] = torch.from_numpy((third - 3 * first * second + 2 * first**3) / variance**1.5)
        share[where] = torch.tensor([[math.sqrt(x.share * y.share) for y in b] for x in a], dtype=torch.float64)
        return skewness, share

    def grid(self, rows: Sequence[Any], columns: Sequence[Any]) -> Tensor:
        """All pairs by one matrix product; a missing (None) layer gives NaN."""
        if not _embedded(rows, columns):
            return super().grid(rows, columns)
        kept_rows, kept_columns = _present(rows), _present(columns)
        out = torch.full((len(rows), len(columns)), math.nan, dtype=torch.float64)
        if kept_rows and kept_columns:
            a, b = _alike([rows[i] for i in kept_rows], [columns[j] for j in kept_columns])
            # rounding must not lift a cosine above 1
            out[torch.tensor(kept_rows)[:, None], torch.tensor(kept_columns)[None, :]] = _product(a, b).clamp(-1, 1)
        return out

    def null_grids(self, rows: Sequence[Any], columns: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """`grid` after relabelling all columns alike, once for each order."""
        kept_rows, kept_columns = _present(rows), _present(columns)
        a, b = [rows[i] for i in kept_rows], [columns[j] for j in kept_columns]
        large = bool(a and b) and _embedded(a, b) and _stack_bytes(a, b) > _STACK
        if not a or not b or not _embedded(a, b) or (large and not whole_grids([*a, *b])):
            yield from super().null_grids(rows, columns, orders)
            return
        a, b = _alike(a, b)
        if large:
            products = self._stacked_nulls(a, b, orders)
        else:
            products = _dense_nulls(a, b, orders) if isinstance(a[0], DenseEmbedding) else sparse_nulls(a, b, orders)
        where = torch.tensor(kept_rows)[:, None], torch.tensor(kept_columns)[None, :]
        for values in products:
            out = torch.full((len(rows), len(columns)), math.nan, dtype=torch.float64)
            out[where] = values.double().cpu()
            yield out

    def _stacked_nulls(self, a: Sequence[Any], b: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """By looking entries up, or, of so many layers that most looks meet some, by sparse products."""
        if _LOOKED_UP * sum(e.columns.shape[1] for e in a) <= a[0].n:
            yield from looked_up_nulls(a, b, orders)
            return
        entries = sum(e.columns.numel() for e in b)
        for some in stacked(orders, max(1, _MOVED // entries)):  # the layers of a are laid out once for all of these
            moved = [self.relabel(e, order) for order in some for e in b]
            yield from sparse_grid(a, moved).reshape(len(a), len(some), len(b)).unbind(1)


def whole_grids(layers: Sequence[Any]) -> bool:
    """Whether `grid` of these layers is a sparse product: best of many at once, and a pair the same in any company."""
    present = [e for e in layers if e is not None]
    return all(
        isinstance(e, SparseEmbedding) and e.columns.device.type == "cpu" and _SPARSER * e.columns.shape[1] < e.n
        for e in present
    )


def _embedded(*sides: Sequence[Any]) -> bool:
    """Whether all layers are embeddings; a subclass may prepare something else for large or rank-based cases."""
    return all(e is None or isinstance(e, DenseEmbedding | SparseEmbedding) for side in sides for e in side)


def _present(layers: Sequence[Any]) -> list[int]:
    return [i for i, layer in enumerate(layers) if layer is not None]


def _alike(a: list[Any], b: list[Any]) -> tuple[list[Any], list[Any]]:
    """Both sides in float64 if their precisions differ, as they may between models or layers."""
    field = "vector" if isinstance(a[0], DenseEmbedding) else "values"
    if len({getattr(e, field).dtype for e in a + b}) == 1:
        return a, b
    return tuple([replace(e, **{field: getattr(e, field).double()}) for e in side] for side in (a, b))  # type: ignore[return-value]


def _product(a: Sequence[Embedding], b: Sequence[Embedding]) -> Tensor:
    if isinstance(a[0], DenseEmbedding):
        length = a[0].vector.numel()
        step = max(1, _BUDGET // 12 // (len(a) + len(b)))
        total = torch.zeros(len(a), len(b), dtype=torch.float64)
        for start in range(0, length, step):
            left, right = (torch.stack([e.vector[start : start + step] for e in side]) for side in (a, b))  # type: ignore[union-attr]
            wide = accumulator(left)  # so that ties with nulls stay ties
            total += (left.to(wide) @ right.to(wide).T).double().cpu()
        return total
    return sparse_grid(a, b) if whole_grids([*a, *b]) else blockwise_grid(a, b)  # type: ignore[arg-type]


def _stack_bytes(a: Sequence[Embedding], b: Sequence[Embedding]) -> int:
    if isinstance(a[0], DenseEmbedding):
        return 4 * a[0].vector.numel() * (len(a) + 2 * min(len(a), len(b)))
    return 4 * a[0].n ** 2 * len(a)


def _dense_nulls(a: Sequence[Any], b: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
    if len(a) < len(b):  # moving the smaller side by the inverse order gives the same products
        yield from (grid.T for grid in _dense_nulls(b, a, (torch.argsort(order) for order in orders)))
        return
    n = b[0].n
    kernels = [symmetric_matrix(e).flatten() for e in b]
    # a look-up of many layers reads them together
    layers = torch.stack(kernels, 1) if len(b) > 2 else None
    left = torch.stack([symmetric_matrix(e).triu_() for e in a])
    step = max(1, _CACHED // n)
    blocks = [(start, left[:, start : start + step, start:].flatten(1)) for start in range(0, n, step)]
    for order in orders:
        order = order.to(left.device)
        total = torch.zeros(len(a), len(b), dtype=accumulator(left), device=left.device)
        for start, block in blocks:  # rows whose keys and entries stay in cache
            keys = (n * order[start : start + step, None] + order[start:]).flatten()
            if layers is None:
                total += block @ torch.stack([kernel.index_select(0, keys) for kernel in kernels]).T
            else:
                total += block @ layers.index_select(0, keys)
        yield total


def schur_moments(a: Tensor, b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Moments from components [L, 3] and [M, 3]."""
    mean, middle, rest = (a[:, None, i] * b[None, :, i] for i in range(3))
    return mean, middle / (n - 1) + (rest * 2 / (n * (n - 3)) if n > 3 else 0 * rest)
