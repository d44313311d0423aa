"""Products of matrices with few entries a row, `embedded.SparseEmbedding`, and what relabelling makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from unrolled.alignment.embedded import SparseEmbedding
from unrolled.alignment.metric import stacked
from unrolled.ops.gram import accumulator
from unrolled.ops.renamed_products import renamed_products

_BUDGET = 2**29  # bytes of scratch for one grid product
_ENTRIES = 2**23  # entries of the samples' rows of a matrix that one sparse product is of


def sparse_product(a: SparseEmbedding, b: SparseEmbedding) -> float:
    """Inner product of two sparse matrices, a block of rows at a time."""
    n, total, wide = a.n, 0.0, accumulator(a.values)
    few = a.columns.shape[1] * b.columns.shape[1] <= 4096
    step = max(1, _BUDGET // 16 // (a.columns.shape[1] * b.columns.shape[1] if few else 4 * n))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        if few:
            hit = a.columns[rows, :, None] == b.columns[rows, None, :]
            products = torch.einsum("nab,na,nb->n", hit.to(wide), a.values[rows].to(wide), b.values[rows].to(wide))
        else:
            dense = a.values.new_zeros(a.columns[rows].shape[0], n).scatter_add_(1, a.columns[rows], a.values[rows])
            products = (dense.gather(1, b.columns[rows]).to(wide) * b.values[rows]).sum(1)
        total += float(products.sum())
    return total * a.scale * b.scale


def sparse_grid(a: Sequence[SparseEmbedding], b: Sequence[SparseEmbedding]) -> Tensor:
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


def blockwise_grid(a: Sequence[SparseEmbedding], b: Sequence[SparseEmbedding]) -> Tensor:
    """All inner products of sparse matrices on any device: dense blocks of rows, or pair by pair if n is large."""
    n = a[0].n
    if n > 4 * 4096:  # the dense blocks below cost n^2 per layer, pairs of lists only n k^2 per pair
        return torch.tensor([[sparse_product(x, y) for y in b] for x in a], dtype=torch.float64)
    step = max(1, _BUDGET // 12 // (n * (len(a) + len(b))))
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for start in range(0, n, step):
        left, right = (_dense_rows(side, slice(start, start + step)) for side in (a, b))
        wide = accumulator(left)  # so that ties with nulls stay ties
        total += (left.to(wide) @ right.to(wide).T).double().cpu()
    return total * _scales(a)[:, None] * _scales(b)


def _scales(side: Sequence[Any]) -> Tensor:
    return torch.tensor([e.scale for e in side], dtype=torch.float64)


def _dense_rows(side: Sequence[SparseEmbedding], rows: slice) -> Tensor:
    count, n = side[0].columns[rows].shape[0], side[0].n
    dense = side[0].values.new_zeros(len(side), count, n)
    for layer, e in zip(dense, side, strict=True):
        layer.scatter_add_(1, e.columns[rows], e.values[rows])
    return dense.flatten(1)


def looked_up_nulls(
    a: Sequence[SparseEmbedding], b: Sequence[SparseEmbedding], orders: Iterable[Tensor]
) -> Iterator[Tensor]:
    """`sparse_grid` for each order of the samples of b, of few layers of many samples; see `renamed_products`."""
    left, right = ([(e.columns, e.values) for e in side] for side in (a, b))
    for total in renamed_products(left, right, orders):
        yield torch.from_numpy(total) * _scales(a)[:, None] * _scales(b)


def sparse_nulls(a: Sequence[Any], b: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
    """All inner products after relabelling the matrices of b alike, once for each order, by look-ups."""
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


def mantel_moments(a: Tensor, b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Moments from totals [L, 7] and [M, 7]: each class of pairs of entries is relabelled onto itself, uniformly."""
    pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
    counts = torch.tensor([pairs, pairs, triples, triples, triples / 2, triples * (n - 3)], dtype=torch.float64)
    mean = torch.outer(a[:, 6], b[:, 6]) / pairs
    second = (a[:, :6] / counts.clamp_min(1)) @ b[:, :6].T
    return mean, (second - mean.square()).clamp_min(0)
