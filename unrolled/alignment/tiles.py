"""Dissimilarities of more samples than one matrix should hold: made again a tile of rows at a time, never kept.

A representation is kept as its rows and a few numbers; what is summed over pairs is summed over tiles. So memory is a
tile and, for ranks, a table of classes, whatever the number of samples.

Letters: `n` samples, `m` = n (n - 1) / 2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unrolled.ops.gram import accumulator

Form = Literal["cosine", "euclidean", "sqeuclidean"]
SCRATCH = 2**28
"""Bytes of a tile and what is computed from it, both sides together."""
_ARRAYS = 16  # arrays of the size of a tile that are alive at once, at most
_COARSE, _CLASSES = 2**18, 2**24  # of equal width; then so many of about equally many pairs


@dataclass(frozen=True)
class RankTable:
    """Ranks of pairs by classes of near-equal dissimilarities, whose members are tied.

    The range is cut into equal parts, and each of these into as many classes as its share of all pairs asks for, so
    that a class of a smooth distribution holds a handful. Equal dissimilarities are always of one class.

    Attributes:
        low, high: smallest and largest dissimilarity.
        first, width: [parts] int64 number of the first class of a part, and of its classes.
        ranks: [classes] float64, the mean rank of its pairs, from 1.
    """

    low: float
    high: float
    first: Tensor
    width: Tensor
    ranks: Tensor

    def classes(self, values: Tensor) -> Tensor:
        """int64, which class each value is of."""
        place = (values - self.low).mul_(len(self.first) / (self.high - self.low))
        part = place.long().clamp_(max=len(self.first) - 1)
        width = self.width[part]
        inside = (place.sub_(part).mul_(width)).long()
        return self.first[part].add_(inside.minimum(width - 1))

    def of(self, values: Tensor) -> Tensor:
        """The rank of each value."""
        return self.ranks[self.classes(values)]


@dataclass(frozen=True)
class TiledRDM:
    """Dissimilarities of n samples, compared by their values or by their ranks.

    Attributes:
        rows: [n, d] of unit length for "cosine", centred otherwise.
        form: what is made of them.
        scale: by which dissimilarities are divided, and then rounded, before they are ranked; None where their values
            are compared.
        table: of ranks; None where values are compared.
        mean: of what is compared, over pairs.
        sums: [n] over the pairs of each sample, mean taken off.
        square: sum of its squares over pairs, mean taken off.
    """

    rows: Tensor
    form: Form
    scale: float | None = None
    table: RankTable | None = None
    mean: float = 0.0
    sums: Tensor | None = None
    square: float = 0.0

    @classmethod
    def of(cls, rows: Tensor, form: Form, *, ranks: bool) -> TiledRDM:
        """Look at all pairs, twice (by ranks, four times).

        Raises:
            ValueError: all pairs are equally dissimilar.
        """
        plain = cls(rows, form)
        low, high, total = math.inf, -math.inf, 0.0
        for values in plain.values():
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            total += float(values.sum())
        if high - low <= 1e-6 * max(abs(low), abs(high)):
            raise ValueError("x has no similarity structure: all pairwise dissimilarities are equal")
        m = plain.pairs
        if not ranks:
            return replace(plain, mean=total / m)._with_sums()
        scaled = replace(plain, scale=max(abs(low), abs(high)))
        return replace(scaled, table=scaled._table(low, high), mean=(m + 1) / 2)._with_sums()

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.rows)

    @property
    def pairs(self) -> int:
        """m."""
        return self.n * (self.n - 1) // 2

    def values(self) -> Iterator[Tensor]:
        """What is compared, mean not taken off, of all pairs in the order of `triangle`, a tile at a time."""
        for start, stop in self._tiles():
            yield self._tile(start, stop)[self._above(start, stop)]

    def dot(self, other: TiledRDM) -> float:
        """Sum over pairs of the products, means taken off; samples are the same in the same order."""
        return math.fsum(
            float(((a - self.mean) * (b - other.mean)).sum())
            for a, b in zip(self.values(), other.values(), strict=True)
        )

    def relabelled(self, order: Tensor) -> TiledRDM:
        """The samples in another order."""
        assert self.sums is not None
        order = order.to(self.rows.device)
        return replace(self, rows=self.rows[order], sums=self.sums[order])

    def _tiles(self) -> Iterator[tuple[int, int]]:
        step = max(1, SCRATCH // (8 * _ARRAYS * self.n))
        return ((start, min(start + step, self.n - 1)) for start in range(0, self.n - 1, step))

    def _above(self, start: int, stop: int) -> Tensor:
        """[rows, n - start] whether a pair is above the diagonal."""
        return torch.ones(stop - start, self.n - start, dtype=torch.bool, device=self.rows.device).triu_(1)

    def _tile(self, start: int, stop: int) -> Tensor:
        """[rows, n - start] of rows `start` to `stop` with all samples from `start` on; below the diagonal too."""
        x, y = self.rows[start:stop], self.rows[start:]
        tile = x @ y.T
        if self.form == "cosine":
            tile = tile.neg_().add_(1)
        else:
            both = x.square().sum(1)[:, None] + y.square().sum(1)
            tile = torch.addcmul(both, tile, tile.new_tensor(-2.0))
            tile.mul_(tile > 16 * torch.finfo(tile.dtype).eps * both)  # rows equal but for rounding are 0 apart
            tile = tile.sqrt_() if self.form == "euclidean" else tile
        if self.scale is None:
            return tile
        tile = tile.div_(self.scale).round_(decimals=12)  # what differs by rounding is tied
        return tile if self.table is None else self.table.of(tile)

    def _table(self, low: float, high: float) -> RankTable:
        assert self.scale is not None
        low, high = (round(bound / self.scale, 12) for bound in (low, high))
        where = self.rows.device
        even = torch.ones(_COARSE, dtype=torch.int64, device=where)
        table = RankTable(low, high, torch.arange(_COARSE, device=where), even, even)
        counts = self._counts(table)
        width = 1 + (counts.double() * (_CLASSES / self.pairs)).long()
        table = RankTable(low, high, width.cumsum(0) - width, width, even)
        counts = self._counts(replace(table, ranks=torch.empty(int(width.sum()), device=where)))
        ends = counts.cumsum(0).to(accumulator(self.rows))
        return replace(table, ranks=ends.sub_((counts - 1).to(ends).div_(2)))

    def _counts(self, table: RankTable) -> Tensor:
        """How many pairs are of each class."""
        counts = torch.zeros(len(table.ranks), dtype=torch.int64, device=self.rows.device)
        for values in self.values():
            counts += torch.bincount(table.classes(values), minlength=len(counts))
        return counts

    def _with_sums(self) -> TiledRDM:
        sums = self.rows.new_zeros(self.n)
        square = []
        for start, stop in self._tiles():
            tile = (self._tile(start, stop) - self.mean).mul_(self._above(start, stop))
            square.append(float(tile.square().sum()))
            sums[start:stop] += tile.sum(1)
            sums[start:] += tile.sum(0)
        return replace(self, sums=sums, square=math.fsum(square))


def similarity(a: TiledRDM, b: TiledRDM, *, whitened: bool) -> float:
    """Correlation of what is compared; `whitened` as in `RSA`, by the row sums alone: see `whitened_product`."""
    if not whitened:
        return a.dot(b) / math.sqrt(a.square * b.square)
    product, *norms = (
        whitened_product(x, y, dot) for x, y, dot in ((a, b, a.dot(b)), (a, a, a.square), (b, b, b.square))
    )
    return product / math.sqrt(norms[0] * norms[1])


def whitened_product(a: TiledRDM, b: TiledRDM, dot: float) -> float:
    """a' V^(-1) b from a'b.

    With u = row sums over n - 2, the part u_i + u_j of a pair is divided by n, the rest by 2; the two are orthogonal.
    """
    assert a.sums is not None
    assert b.sums is not None
    n = a.n
    rows = float(a.sums @ b.sums) / (n - 2)
    return (dot - rows) / 2 + rows / n


def components(a: TiledRDM, *, whitened: bool) -> tuple[float, float, float]:
    """(t, p, q) of `alignment.embedding`: the parts of the unit vector that relabelling keeps apart."""
    assert a.sums is not None
    norm = whitened_product(a, a, a.square) if whitened else a.square
    factor = 1 / a.n if whitened else 1.0  # of the row sums' part, squared
    p = factor * float(a.sums @ a.sums) / (a.n - 2) / norm
    return 0.0, p, max(0.0, 1.0 - p)
