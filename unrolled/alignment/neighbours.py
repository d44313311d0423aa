"""Metrics of agreement between nearest-neighbour lists. Similarity is the cosine; a sample is not its own neighbour."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from unrolled.alignment.embedded import SparseEmbedding
from unrolled.alignment.embedding import EmbeddingMetric
from unrolled.alignment.metric import DENSE_LIMIT, Features, Metric, Representation, stacked, whole
from unrolled.ops.neighbours import Neighbours, nearest_neighbours
from unrolled.ops.ties import shuffled_ties
from unrolled.ops.top_k import top_k

_TABLES = 2**29  # entries of look-up tables for null grids
_KEYS = 2**22  # look-ups at a time
_ROW_INVARIANCES = frozenset({"rotation", "scale", "row_scale", "permutation"})


class MutualKNN(EmbeddingMetric):
    """Share of common nearest neighbours: the mean over samples of |N_x(i) & N_y(i)| / k (Huh et al. 2024).

    By chance k / (n - 1). With ties for the last place (duplicates), tied samples share it, and the value is the inner
    product of the two membership matrices over the root of their squared norms; without ties these are both n k, which
    is the definition above. So the value is 1 for identical features, and duplicates do not agree merely by their
    order.
    """

    name: ClassVar[str] = "mutual_knn"
    few_numbers: ClassVar[bool] = True
    invariances = _ROW_INVARIANCES

    def __init__(self, *, k: int = 10):
        self.k = whole("k", k)

    def prepare(self, x: Features | Representation) -> SparseEmbedding:
        """Unit-norm membership matrix."""
        members = Representation.of(x).membership(self.k)
        return SparseEmbedding.of(members.columns, members.weights)


class CKNNA(EmbeddingMetric):
    """Centred kernel alignment over common nearest neighbours, corrected (Huh et al. 2024, appendix).

    <M_x K, M_y L> / (|M_x K| |M_y L|), where K and L are the U-centred cosine kernels and M_x, M_y mask each row to its
    k nearest neighbours. Centring comes first and each norm is taken on its own mask, so the value lies in [-1, 1] and
    equals unbiased CKA of the normalised rows at k = n - 1. The published code masks first; see `legacy.cknna`. Even
    so, independent features score above zero for k near n / 2: read it against its null.
    """

    name: ClassVar[str] = "cknna"
    few_numbers: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    invariances = _ROW_INVARIANCES
    min_samples = 4

    def __init__(self, *, k: int = 10):
        self.k = whole("k", k)

    def prepare(self, x: Features | Representation) -> SparseEmbedding:
        """Unit-norm matrix of masked, U-centred cosines."""
        rep = Representation.of(x, min_samples=self.min_samples)
        n, dense = rep.n, rep.cosine if rep.n <= DENSE_LIMIT else None
        members = rep.membership(self.k)
        near = members.columns
        # U-centring needs the row sums of the hollow kernel, and then only its entries at the neighbours
        if dense is not None:
            sums, cosine = dense.sum(1) - dense.diagonal(), dense.gather(1, near)
        else:
            unit = rep.unit
            sums = unit @ unit.sum(0) - unit.square().sum(1)
            blocks = _row_blocks(n, near.shape[1] * rep.d)
            cosine = torch.cat([(unit[near[rows]] @ unit[rows, :, None])[..., 0] for rows in blocks])
        shift, level = sums / (n - 2), sums.sum() / ((n - 1) * (n - 2))
        values = (cosine - shift[:, None] - shift[near] + level) * members.weights
        return SparseEmbedding.of(members.columns, values)


class _ListMetric(Metric):
    """Metrics of the ordered lists [n, k]; ties are broken at random, see `ops.neighbours.shuffled_ties`."""

    few_numbers: ClassVar[bool] = True
    invariances = _ROW_INVARIANCES

    def __init__(self, *, k: int = 10):
        self.k = whole("k", k)

    def prepare(self, x: Features | Representation) -> Tensor:
        """[n, k] neighbour indices, nearest first."""
        rep = Representation.of(x)
        wanted = self.k if self.k >= rep.n - 1 else self.k + 1  # one more shows whether the last place is tied
        if rep.n > DENSE_LIMIT or not 1 <= self.k < rep.n:
            neighbours = nearest_neighbours(rep.directions, wanted)
        else:
            values, indices = top_k(rep.cosine.clone().fill_diagonal_(-torch.inf), wanted)
            neighbours = Neighbours(indices, values)
        return shuffled_ties(rep.directions, self.k, neighbours)

    def relabel(self, prepared: Any, order: Tensor) -> Tensor:
        """Lists of the samples in another order, by renaming."""
        order = order.to(prepared.device)
        return torch.argsort(order)[prepared[order]]

    def null_grids(self, rows: Sequence[Any], columns: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """`grid` after relabelling all columns alike, once for each order; by look-ups, up to 16 orders at a time."""
        present = [a for a in rows if a is not None]
        if not present or len(present) * len(present[0]) ** 2 > _TABLES:
            yield from super().null_grids(rows, columns, orders)
            return
        tables = [None if a is None else _places(a) for a in rows]
        for some in stacked(orders, max(1, min(16, _KEYS // present[0].numel()))):
            place = torch.argsort(some.to(present[0].device), 1)
            grids = torch.full((len(some), len(rows), len(columns)), math.nan, dtype=torch.float64)
            for j, b in enumerate(columns):
                for i, table in enumerate(tables):
                    if b is not None and table is not None:
                        grids[:, i, j] = self._values(table, place, b).double().cpu()
            yield from grids

    @abstractmethod
    def _values(self, table: Tensor, place: Tensor, b: Tensor) -> Tensor:
        """[m] values for the lists b [n, k] with samples renamed by `place` [m, n]; `table` is of `_places`."""

    def _ranks(self, table: Tensor, place: Tensor, b: Tensor) -> Tensor:
        """[m, n, k] places that the members of each renamed list of b have in the list of its sample; k if none."""
        return _look_up(table, place[:, :, None], place[:, b])


class CycleKNN(_ListMetric):
    """Share of samples found again after one step among the neighbours of each side.

    `direction="y_then_x"` (the published one): i counts if it is an x-neighbour of one of its y-neighbours. "x_then_y"
    is the reverse, "mean" the average of both. Up to k^2 paths lead back, so chance is far above k / (n - 1).
    """

    name: ClassVar[str] = "cycle_knn"
    share_of_samples = True

    def __init__(self, *, k: int = 10, direction: str = "y_then_x"):
        if direction not in ("y_then_x", "x_then_y", "mean"):
            raise ValueError(f"direction must be 'y_then_x', 'x_then_y' or 'mean', got {direction!r}")
        super().__init__(k=k)
        self.direction = direction
        self.symmetric = direction == "mean"

    def compare(self, a: Any, b: Any) -> float:
        """Share in [0, 1]."""
        if self.direction == "mean":
            return (cycle_shares(a, b) + cycle_shares(b, a)) / 2
        return cycle_shares(a, b) if self.direction == "y_then_x" else cycle_shares(b, a)

    def _values(self, table: Tensor, place: Tensor, b: Tensor) -> Tensor:
        members = place[:, b]
        # y of x or x of y: both steps together lead from a sample to one whose list holds it
        met = _look_up(table, members, place[:, :, None]) < self.k
        shares = []
        if self.direction != "x_then_y":
            shares.append(met.any(2).double().mean(1))
        if self.direction != "y_then_x":
            times = torch.zeros(place.shape, device=place.device)
            shares.append((times.scatter_add_(1, members.flatten(1), met.flatten(1).float()) > 0).double().mean(1))
        return torch.stack(shares).mean(0)


class LCSKNN(_ListMetric):
    """Mean length of the longest common subsequence of the ordered neighbour lists, as a share of k."""

    name: ClassVar[str] = "lcs_knn"

    def compare(self, a: Any, b: Any) -> float:
        """Share in [0, 1]."""
        total = sum(float(common_subsequence(a[r], b[r]).sum()) for r in _row_blocks(a.shape[0], self.k**2))
        return float(total / (a.shape[0] * self.k))

    def _values(self, table: Tensor, place: Tensor, b: Tensor) -> Tensor:
        ranks = self._ranks(table, place, b)
        lengths = (ranks < self.k).sum(2).flatten()
        _correct(lengths, lengths > 1, common_subsequence, ranks)
        return lengths.reshape(place.shape).sum(1).double() / (len(b) * self.k)


class EditKNN(_ListMetric):
    """One minus the mean Levenshtein distance of the ordered neighbour lists, as a share of k."""

    name: ClassVar[str] = "edit_knn"

    def compare(self, a: Any, b: Any) -> float:
        """Share in [0, 1]."""
        total = sum(float(levenshtein(a[r], b[r]).sum()) for r in _row_blocks(a.shape[0], self.k**2))
        return float(1 - total / (a.shape[0] * self.k))

    def _values(self, table: Tensor, place: Tensor, b: Tensor) -> Tensor:
        ranks = self._ranks(table, place, b)
        distances = torch.full((place.numel(),), self.k, device=place.device)
        _correct(distances, (ranks < self.k).any(2).flatten(), levenshtein, ranks)
        return 1 - distances.reshape(place.shape).sum(1).double() / (len(b) * self.k)


def _places(lists: Tensor) -> Tensor:
    """[n, n] place of each sample (column) in the list of each (row) of `lists` [n, k]; k if it is not there."""
    n, k = lists.shape
    table = torch.full((n, n), k, dtype=torch.uint8 if k < 256 else torch.int32, device=lists.device)
    return table.scatter_(1, lists, torch.arange(k, device=lists.device).to(table.dtype).expand(n, k))


def _look_up(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    keys = rows * len(table) + columns
    return table.flatten().index_select(0, keys.flatten()).reshape(keys.shape)


def _correct(values: Tensor, where: Tensor, function: Callable[[Tensor, Tensor], Tensor], ranks: Tensor) -> None:
    """Put what `function` gives for the lists 0 .. k - 1 and `ranks` [m, n, k] into `values` [m n] where it is needed.

    The result of lists that share no member, or for a subsequence a single one, is known.
    """
    k = ranks.shape[2]
    needed = where.nonzero()[:, 0]
    for rows in _row_blocks(len(needed), k * k):
        lists = ranks.flatten(0, 1)[needed[rows]].long()
        values[needed[rows]] = function(torch.arange(k, device=lists.device).expand_as(lists), lists).to(values)


def _row_blocks(n: int, per_row: int) -> Iterator[slice]:
    step = max(1, 2**25 // per_row)
    return (slice(start, start + step) for start in range(0, n, step))


def cycle_shares(back: Tensor, out: Tensor) -> float:
    """Share of samples that are among the neighbours `back` of their neighbours `out`, both [n, k]."""
    n, k = out.shape
    me = torch.arange(n, device=out.device)
    returned = sum(int((back[out[r]].flatten(1) == me[r, None]).any(1).sum()) for r in _row_blocks(n, k * k))
    return returned / n


def common_subsequence(a: Tensor, b: Tensor) -> Tensor:
    """[n] lengths for lists [n, k]. Row i of the table is the running maximum of max(above, above-left + match)."""
    equal = (a[:, :, None] == b[:, None, :]).to(torch.int32)
    row = equal.new_zeros(a.shape[0], a.shape[1] + 1)
    for i in range(a.shape[1]):
        row = torch.cat([row[:, :1], torch.maximum(row[:, 1:], row[:, :-1] + equal[:, i])], 1).cummax(1).values
    return row[:, -1]


def levenshtein(a: Tensor, b: Tensor) -> Tensor:
    """[n] distances for lists [n, k]. Insertions along a row are a running minimum of cost minus column."""
    equal = (a[:, :, None] == b[:, None, :]).to(torch.int32)
    column = torch.arange(b.shape[1] + 1, device=a.device, dtype=torch.int32)
    row = column.expand(a.shape[0], -1)
    for i in range(a.shape[1]):
        inner = torch.minimum(row[:, 1:] + 1, row[:, :-1] + 1 - equal[:, i])
        row = (torch.cat([row[:, :1] + 1, inner], 1) - column).cummin(1).values + column
    return row[:, -1]
