"""Metrics that are cosines between fixed unit vectors, one per representation, with their exact null moments.

Mutual k-NN, CKNNA, CKA and most forms of RSA turn a representation into one n x n matrix of unit norm and compare by
the inner product. A whole grid of layers is then one matrix product, and the mean and variance under random relabelling
of the samples have closed forms:

- symmetric matrices (`DenseEmbedding`). The relabelling group acts on hollow symmetric matrices, and on symmetric ones
  with zero row sums, as the sum of three different irreducible representations, of dimensions 1, n - 1 and n (n - 3) /
  2. With t the component along the first and p, q the squared norms of the other two, Schur's lemma gives mean t_a t_b
  and variance p_a p_b / (n - 1) + q_a q_b / (n (n - 3) / 2). For unbiased CKA p = t = 0 and q = 1.
- k-NN matrices (`SparseEmbedding`), hollow and not symmetric: the moments of Mantel's statistic, sums of products of
  six class totals (Mantel 1967).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from unrolled.alignment.metric import Metric, stacked
from unrolled.ops.gram import accumulator, from_triangle, triangle, triangle_relabelling
from unrolled.ops.permutation_moments import Factors, OrbitSums, orbit_sums, permutation_moments
from unrolled.ops.renamed_products import renamed_products

_BUDGET = 2**29  # bytes of scratch for one grid product
_FEW = 384  # samples of matrices so small that calls cost more than arithmetic
_WIDE = 2**28  # products of a sparse matrix with itself above which the dense form is cheaper
_LARGE = 100.0  # norm of a diagonal that may be subtracted again from sums of third powers of a unit matrix
_CACHED = 2**16  # entries of a kernel relabelled at a time
_STACK = 2**31  # bytes of stacked layers for null grids
_MOVED = 2**25  # relabelled entries of layers held at a time
_LOOKED_UP = 16  # samples for each entry of a row of all layers together above which entries are looked up
_SPARSER = 64  # samples for each neighbour above which sparse products of whole grids are cheaper than dense ones
_ENTRIES = 2**23  # entries of the samples' rows of a matrix that one sparse product is of


@dataclass(frozen=True)
class DenseEmbedding:
    """Unit vector of a symmetric matrix: its entries above the diagonal times sqrt(2), then the diagonal if it counts.

    Attributes:
        vector: [n (n - 1) / 2] or, with the diagonal, [n (n + 1) / 2].
        n: samples.
        components: (t, p, q) of the module docstring.
        features: [n, d] centred features, for linear kernels of such as are narrow.
    """

    vector: Tensor
    n: int
    components: tuple[float, float, float]
    features: Tensor | None = None

    @classmethod
    def of(cls, k: Tensor, *, diagonal: bool, scale: float, features: Tensor | None = None) -> DenseEmbedding:
        """Embed a symmetric matrix: hollow (`diagonal=False`), or with zero row sums (`diagonal=True`).

        Raises:
            ValueError: the matrix is zero up to the rounding error of entries of size `scale`.
        """
        n = k.shape[0]
        vector = triangle(k).mul_(math.sqrt(2))
        if diagonal:
            vector = torch.cat([vector, k.diagonal()])
        wide = accumulator(k)
        norm = float(vector.to(wide).norm())
        if not norm > 4 * n * torch.finfo(k.dtype).eps * scale:
            raise ValueError("x has no similarity structure: its centred kernel is zero up to rounding")
        if diagonal:
            # among matrices with zero row sums, the diagonal carries the middle component
            on = k.diagonal().to(wide) / norm
            t, p = float(on.sum()) / math.sqrt(n - 1), n * float((on - on.mean()).square().sum()) / max(1, n - 2)
        else:
            sums = k.sum(1, dtype=wide) / norm
            t, p = (
                float(sums.sum()) / math.sqrt(n * (n - 1)),
                2 * float((sums - sums.mean()).square().sum()) / max(1, n - 2),
            )
        return cls(vector / norm, n, (t, p, max(0.0, 1.0 - t * t - p)), features)

    @cached_property
    def shape(self) -> Shape:
        """For the third moment under relabelling."""
        if self.features is not None:
            factors = Factors.of_kernel(self.features, hollow=self.vector.numel() < self.n * (self.n + 1) // 2)
            if float(factors.on.norm()) < _LARGE:
                squares = factors.squares(torch.ones_like(factors.on))
                return Shape(orbit_sums(factors, symmetric=True), float(squares.max()))
        matrix = _symmetric(self).to(accumulator(self.vector))
        on = matrix.diagonal().clone()
        matrix.div_(math.sqrt(2)).diagonal().copy_(on)
        return Shape.of(matrix, symmetric=True)


@dataclass(frozen=True)
class SparseEmbedding:
    """Unit vector of an n x n matrix with few entries a row.

    Attributes:
        columns: [n, m] int64; values: [n, m], zero where padded; their norm is 1 / `scale`.
    """

    columns: Tensor
    values: Tensor
    scale: float

    @classmethod
    def of(cls, columns: Tensor, values: Tensor) -> SparseEmbedding:
        """Embed the matrix with `values` at (row, `columns`).

        Raises:
            ValueError: all values are zero.
        """
        wide = values.to(accumulator(values))
        norm = float(wide.square().sum().sqrt())
        if not norm > 0:
            raise ValueError("x has no similarity structure: its centred kernel is zero on all neighbours")
        return cls(columns, values, 1 / norm)

    @cached_property
    def totals(self) -> Tensor:
        """[7] the six class totals of Mantel's statistic, then the sum of all values; needed for null moments only."""
        return _mantel_totals(self.columns, self.values.to(accumulator(self.values)) * self.scale)

    @property
    def n(self) -> int:
        """Samples."""
        return self.columns.shape[0]

    @cached_property
    def shape(self) -> Shape:
        """For the third moment under relabelling."""
        n, m = self.columns.shape
        values = self.values.to(accumulator(self.values)) * self.scale
        if n <= _FEW or m * m * n > _WIDE:
            return Shape.of(values.new_zeros(n, n).scatter_add_(1, self.columns, values), symmetric=False)
        rows = np.repeat(np.arange(n), m)
        entries = (values.flatten().cpu().numpy(), (rows, self.columns.flatten().cpu().numpy()))
        return Shape.of(sparse.coo_array(entries, shape=(n, n)).tocsr(), symmetric=False)


@dataclass(frozen=True)
class Shape:
    """What the third moment of an embedding under relabelling needs, and the largest share of a sample in its norm."""

    sums: OrbitSums
    share: float

    @classmethod
    def of(cls, matrix: Any, *, symmetric: bool) -> Shape:
        """From the [n, n] matrix of unit norm, a tensor or SciPy sparse."""
        squares = matrix.multiply(matrix) if sparse.issparse(matrix) else matrix.square()
        shares = (squares.sum(0) + squares.sum(1)) / 2
        return cls(orbit_sums(matrix, symmetric=symmetric), float(shares.max()))


Embedding = DenseEmbedding | SparseEmbedding


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
            moments = _mantel_moments(totals[0], totals[1], n)
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
        variance = np.clip(second - first**2, 1e-300, None)
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
            products = _dense_nulls(a, b, orders) if isinstance(a[0], DenseEmbedding) else _sparse_nulls(a, b, orders)
        where = torch.tensor(kept_rows)[:, None], torch.tensor(kept_columns)[None, :]
        for values in products:
            out = torch.full((len(rows), len(columns)), math.nan, dtype=torch.float64)
            out[where] = values.double().cpu()
            yield out

    def _stacked_nulls(self, a: Sequence[Any], b: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """By looking entries up, or, of so many layers that most looks meet some, by sparse products."""
        if _LOOKED_UP * sum(e.columns.shape[1] for e in a) <= a[0].n:
            left, right = ([(e.columns, e.values) for e in side] for side in (a, b))
            for total in renamed_products(left, right, orders):
                yield torch.from_numpy(total) * _scales(a)[:, None] * _scales(b)
            return
        entries = sum(e.columns.numel() for e in b)
        for some in stacked(orders, max(1, _MOVED // entries)):  # the layers of a are laid out once for all of these
            moved = [self.relabel(e, order) for order in some for e in b]
            yield from _sparse_grid(a, moved).reshape(len(a), len(some), len(b)).unbind(1)


def sparse_product(a: SparseEmbedding, b: SparseEmbedding) -> float:
    """Inner product of two sparse matrices, a block of rows at a time."""
    n, total = a.n, 0.0
    few = a.columns.shape[1] * b.columns.shape[1] <= 4096
    step = max(1, _BUDGET // 16 // (a.columns.shape[1] * b.columns.shape[1] if few else 4 * n))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        if few:
            hit = a.columns[rows, :, None] == b.columns[rows, None, :]
            products = torch.einsum("nab,na,nb->n", hit.to(a.values.dtype), a.values[rows], b.values[rows])
        else:
            dense = a.values.new_zeros(a.columns[rows].shape[0], n).scatter_add_(1, a.columns[rows], a.values[rows])
            products = (dense.gather(1, b.columns[rows]) * b.values[rows]).sum(1)
        total += float(products.sum(dtype=accumulator(products)))
    return total * a.scale * b.scale


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
        step = max(1, _BUDGET // 4 // (len(a) + len(b)))
        total = torch.zeros(len(a), len(b), dtype=torch.float64)
        for start in range(0, length, step):
            left, right = (torch.stack([e.vector[start : start + step] for e in side]) for side in (a, b))  # type: ignore[union-attr]
            total += (left @ right.T).double().cpu()
        return total
    n = a[0].n
    if whole_grids([*a, *b]):
        return _sparse_grid(a, b)  # type: ignore[arg-type]
    if n > 4 * 4096:  # the dense blocks below cost n^2 per layer, pairs of lists only n k^2 per pair
        return torch.tensor([[sparse_product(x, y) for y in b] for x in a], dtype=torch.float64)  # type: ignore[arg-type]
    step = max(1, _BUDGET // 4 // (n * (len(a) + len(b))))
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for start in range(0, n, step):
        left, right = (_dense_rows(side, slice(start, start + step)) for side in (a, b))  # type: ignore[arg-type]
        total += (left @ right.T).double().cpu()
    return total * _scales(a)[:, None] * _scales(b)


def _sparse_grid(a: Sequence[SparseEmbedding], b: Sequence[SparseEmbedding]) -> Tensor:
    """All inner products of sparse matrices: one sparse product of layers by entries a few rows of samples.

    Its cost is the number of entries that layers share. Blocks depend on n alone, so that a pair has the same value in
    any company.
    """
    n, total = a[0].n, np.zeros((len(a), len(b)))
    step = max(1, _ENTRIES // n)

    def stack(side: Sequence[SparseEmbedding], start: int) -> Any:
        rows = slice(start, min(start + step, n))
        count = rows.stop - start
        keys = [(e.columns[rows] + n * torch.arange(count)[:, None]).flatten().int().numpy() for e in side]
        values = np.concatenate([e.values[rows].flatten().double().numpy() for e in side])
        ends = np.cumsum([0, *(len(key) for key in keys)], dtype=np.int32)
        return sparse.csr_array((values, np.concatenate(keys), ends), shape=(len(side), count * n))

    for start in range(0, n, step):
        left = stack(a, start)
        right = left if a is b else stack(b, start)
        total += (right @ left.T.tocsr()).toarray().T  # only the layers of a are sorted by entry
    return torch.from_numpy(total) * _scales(a)[:, None] * _scales(b)


def _scales(side: Sequence[Any]) -> Tensor:
    return torch.tensor([e.scale for e in side], dtype=torch.float64)


def _dense_rows(side: Sequence[SparseEmbedding], rows: slice) -> Tensor:
    count, n = side[0].columns[rows].shape[0], side[0].n
    dense = side[0].values.new_zeros(len(side), count, n)
    for layer, e in zip(dense, side, strict=True):
        layer.scatter_add_(1, e.columns[rows], e.values[rows])
    return dense.flatten(1)


def _stack_bytes(a: Sequence[Embedding], b: Sequence[Embedding]) -> int:
    if isinstance(a[0], DenseEmbedding):
        return 4 * a[0].vector.numel() * (len(a) + 2 * min(len(a), len(b)))
    return 4 * a[0].n ** 2 * len(a)


def _dense_nulls(a: Sequence[Any], b: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
    if len(a) < len(b):  # moving the smaller side by the inverse order gives the same products
        yield from (grid.T for grid in _dense_nulls(b, a, (torch.argsort(order) for order in orders)))
        return
    n = b[0].n
    kernels = [_symmetric(e).flatten() for e in b]
    # a look-up of many layers reads them together
    layers = torch.stack(kernels, 1) if len(b) > 2 else None
    left = torch.stack([_symmetric(e).triu_() for e in a])
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


def _symmetric(e: DenseEmbedding) -> Tensor:
    """[n, n] symmetric matrix whose entries on and above the diagonal are those of the vector."""
    above = e.n * (e.n - 1) // 2
    matrix = from_triangle(e.vector[:above], e.n)
    if e.vector.numel() > above:
        matrix.diagonal().copy_(e.vector[above:])
    return matrix


def _sparse_nulls(a: Sequence[Any], b: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
    n = a[0].n
    table = a[0].values.new_zeros(n * n, len(a))  # entries first, so that a lookup reads the layers of `a` together
    for i, e in enumerate(a):
        table[:, i] = table.new_zeros(n, n).scatter_add_(1, e.columns, e.values).flatten()
    widest = max(e.columns.numel() for e in b)
    for some in stacked(orders, max(1, min(16, _BUDGET // 16 // (widest * (2 + len(a)))))):
        place = torch.argsort(some.to(table.device), 1)
        nulls = []
        for e in b:
            keys = (n * place[:, :, None] + place[:, e.columns]).flatten()
            entries = (table[:, 0] if len(a) == 1 else table).index_select(0, keys)
            wide = accumulator(e.values)
            nulls.append(e.values.flatten().to(wide) @ entries.to(wide).reshape(len(some), -1, len(a)))
        yield from torch.stack(nulls, 2).cpu() * _scales(a)[:, None] * _scales(b)


def _mantel_totals(columns: Tensor, values: Tensor) -> Tensor:
    """Totals over pairs of entries: equal, transposed, same row, same column, chained, disjoint; then the plain sum."""
    n = columns.shape[0]
    rows_sum = values.sum(1)
    columns_sum = values.new_zeros(n).scatter_add_(0, columns.flatten(), values.flatten())
    keys = torch.arange(n, device=columns.device)[:, None] * n + columns
    flipped = columns * n + torch.arange(n, device=columns.device)[:, None]
    used = values.flatten() != 0
    keys, flipped, flat = keys.flatten()[used], flipped.flatten()[used], values.flatten()[used]
    keys, by_key = keys.sort()
    at = torch.searchsorted(keys, flipped).clamp_max(keys.numel() - 1)
    partner = torch.where(keys[at] == flipped, flat[by_key][at], torch.zeros_like(flat))
    equal, transposed = flat.square().sum(), (flat * partner).sum()
    same_row = rows_sum.square().sum() - equal
    same_column = columns_sum.square().sum() - equal
    chained = (rows_sum * columns_sum).sum() - transposed
    total = rows_sum.sum()
    disjoint = total.square() - equal - transposed - same_row - same_column - 2 * chained
    return torch.stack([equal, transposed, same_row, same_column, chained, disjoint, total])


def schur_moments(a: Tensor, b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Moments from components [L, 3] and [M, 3]."""
    mean, middle, rest = (a[:, None, i] * b[None, :, i] for i in range(3))
    return mean, middle / (n - 1) + (rest * 2 / (n * (n - 3)) if n > 3 else 0 * rest)


def _mantel_moments(a: Tensor, b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Moments from totals [L, 7] and [M, 7]: each class of pairs of entries is relabelled onto itself, uniformly."""
    pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
    counts = torch.tensor([pairs, pairs, triples, triples, triples / 2, triples * (n - 3)], dtype=torch.float64)
    mean = torch.outer(a[:, 6], b[:, 6]) / pairs
    second = (a[:, :6] / counts.clamp_min(1)) @ b[:, :6].T
    return mean, (second - mean.square()).clamp_min(0)
