"""Representations as unit vectors of symmetric matrices, or of such with few entries a row: what metrics compare.

What their null moments need is computed once each, when it is asked for; `embedding` has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from unrolled.ops.gram import accumulator, from_triangle, triangle
from unrolled.ops.permutation_moments import Factors, OrbitSums, orbit_sums

_FEW = 384  # samples of matrices so small that calls cost more than arithmetic
_WIDE = 2**28  # products of a sparse matrix with itself above which the dense form is cheaper
_LARGE = 100.0  # norm of a diagonal that may be subtracted again from sums of third powers of a unit matrix


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
        matrix = symmetric_matrix(self).to(accumulator(self.vector))
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


def symmetric_matrix(e: DenseEmbedding) -> Tensor:
    """[n, n] symmetric matrix whose entries on and above the diagonal are those of the vector."""
    above = e.n * (e.n - 1) // 2
    matrix = from_triangle(e.vector[:above], e.n)
    if e.vector.numel() > above:
        matrix.diagonal().copy_(e.vector[above:])
    return matrix


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
