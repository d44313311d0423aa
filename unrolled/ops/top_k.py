"""The largest scores of every row in a defined order, of a whole matrix or of tiles that come one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_STRIP = 1024  # rows of a tile whose scores are looked at while they are in the cache
_GROUP = 16  # scores that are looked at together


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` along the last axis with a defined order: equal values by lower index, at the k-th place too."""
    k = min(k, scores.shape[1])
    values, indices = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    if values.shape[1] > k:
        # topk may keep any of several values equal to the last one; here those of the lowest indices are wanted
        unsure = (values[:, k] == values[:, k - 1]).nonzero()[:, 0]
        values, indices = values[:, :k].contiguous(), indices[:, :k].contiguous()
        if unsure.numel():
            rows = scores[unsure]
            row, column = (rows >= values[unsure, k - 1 :]).nonzero(as_tuple=True)
            counts = torch.bincount(row, minlength=len(rows))
            slot = _places(row, counts)
            candidates = rows.new_full((len(rows), int(counts.max())), -torch.inf)
            columns = torch.zeros_like(candidates, dtype=torch.long)
            candidates[row, slot], columns[row, slot] = rows[row, column], column
            ordered = torch.sort(candidates, dim=1, descending=True, stable=True)
            values[unsure], indices[unsure] = ordered.values[:, :k], columns.gather(1, ordered.indices[:, :k])
    if bool((values[:, 1:] == values[:, :-1]).any()):
        indices, by_index = torch.sort(indices, dim=1)
        values, by_value = torch.sort(values.gather(1, by_index), dim=1, descending=True, stable=True)
        indices = indices.gather(1, by_value)
    return values, indices


class Best:
    """The k best candidates so far of every query, given in tiles that bring them in ascending order.

    A tile is a strip of rows, small enough to be read again from the cache. A query's k-th best score is the limit that
    a candidate has to exceed (an equal one of a higher index loses), and soon hardly any does: maxima over groups of
    scores say where to look. What exceeds it is put beside the best, and sorted in when there is no room left.
    """

    def __init__(self, queries: int, k: int, size: int, like: Tensor):
        self._k = k
        self._values = like.new_full((queries, 2 * k), -torch.inf)
        self._indices = torch.zeros_like(self._values, dtype=torch.long)
        self._filled = torch.full((queries,), 2 * k, device=like.device)  # so that the first are sorted in at once
        self._strip = min(size, _STRIP) if like.device.type == "cpu" else size
        self._buffer = like.new_empty(self._strip * size)

    def strips(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Some rows at a time, and the place of the first."""
        return ((start, rows[start : start + self._strip]) for start in range(0, len(rows), self._strip))

    def products(self, rows: Tensor, columns: Tensor) -> Tensor:
        """[r, c] inner products, in memory that the next call uses again."""
        scores = self._buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
        return torch.mm(rows, columns.T, out=scores)

    def take(self, first: int, scores: Tensor, start: int) -> None:
        """Take up scores [q, c] of the queries from `first` on and the candidates from `start` on."""
        whole = scores.shape[1] // _GROUP * _GROUP
        if 0 < whole < scores.shape[1]:
            self.take(first, scores[:, :whole], start)
            self.take(first, scores[:, whole:], start + whole)
            return
        k, part = self._k, slice(first, first + len(scores))
        entries = _above(scores, self._values[part, k - 1], k) if whole else None
        if entries is None:
            self._sort(torch.arange(part.start, part.stop, device=scores.device), *top_k(scores.contiguous(), k), start)
            return
        row, column = entries
        counts = torch.bincount(row, minlength=len(scores))
        place, value, filled = _places(row, counts), scores[row, column], self._filled[part]
        crowded = filled + counts > 2 * k
        if bool(crowded.any()):
            here = crowded[row]
            slot = (crowded.cumsum(0) - 1)[row[here]], place[here]
            more = value.new_full((int(crowded.sum()), int(counts.max())), -torch.inf)
            columns = torch.zeros_like(more, dtype=torch.long)
            more[slot], columns[slot] = value[here], column[here]
            self._sort(first + crowded.nonzero()[:, 0], more, columns, start)
            row, column, place, value = row[~here], column[~here], place[~here], value[~here]
            counts = counts.masked_fill(crowded, 0)
        beside = (first + row) * 2 * k + filled[row] + place
        self._values.view(-1)[beside], self._indices.view(-1)[beside] = value, column + start
        self._filled[part] += counts

    def done(self) -> tuple[Tensor, Tensor]:
        """The best of all candidates: scores and indices, each [q, k], as `top_k` orders them."""
        waiting = (self._filled > self._k).nonzero()[:, 0]
        self._sort(waiting, self._values[waiting, :0], self._indices[waiting, :0], 0)
        return self._values[:, : self._k].contiguous(), self._indices[:, : self._k].contiguous()

    def _sort(self, queries: Tensor, values: Tensor, columns: Tensor, start: int) -> None:
        """Sort in what lies beside the best of these queries, and `values` of the candidates `start + columns`."""
        k = self._k
        values = torch.cat([self._values[queries], values], 1)
        indices = torch.cat([self._indices[queries], columns + start], 1)
        best, place = torch.topk(values, k + 1)
        tied = (best[:, 1:] == best[:, :-1]).any(1).nonzero()[:, 0]
        if len(tied):  # candidates beside the best are in any order
            by_index = torch.argsort(indices[tied], dim=1)
            by_value = torch.sort(values[tied].gather(1, by_index), dim=1, descending=True, stable=True)
            best[tied], place[tied] = by_value.values[:, : k + 1], by_index.gather(1, by_value.indices)[:, : k + 1]
        self._values[queries] = torch.nn.functional.pad(best[:, :k], (0, k), value=-torch.inf)
        self._indices[queries, :k] = indices.gather(1, place[:, :k])
        self._filled[queries] = k


def _above(scores: Tensor, limit: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """Row and column, rows ascending, of all scores [q, c] that exceed the limit [q] of their row and may be of its k
    largest; None if that is so of too many.

    A group is every (c / _GROUP)-th column, so that maxima are taken along memory, whichever way this lies.
    """
    step = scores.shape[1] // _GROUP
    if scores.stride(1) == 1:
        largest = scores.unflatten(1, (_GROUP, step)).amax(1)
    else:
        largest = scores.T.unflatten(0, (_GROUP, step)).amax(0).T
    near = largest > limit[:, None]
    if step > k and int(near.sum()) > 2 * k * len(limit):  # k groups reach the k-th largest maximum
        reached = torch.topk(largest, k).values[:, -1]
        limit = torch.maximum(limit, torch.nextafter(reached, torch.full_like(reached, -torch.inf)))
        near = largest > limit[:, None]
    row, group = near.nonzero(as_tuple=True)
    if not len(row):
        return row, group
    if len(row) * _GROUP * 2 > scores.numel():
        return None
    last = sum((size - 1) * stride for size, stride in zip(scores.shape, scores.stride(), strict=True))
    kind = torch.int32 if last < 2**31 else torch.int64
    flat = (row * scores.stride(0) + group * scores.stride(1)).to(kind)[:, None]
    flat = flat + scores.stride(1) * step * torch.arange(_GROUP, device=scores.device, dtype=kind)
    members = scores.as_strided((last + 1,), (1,)).index_select(0, flat.view(-1)).view_as(flat)
    which, place = (members > limit[row, None]).nonzero(as_tuple=True)
    return row[which], group[which] + step * place


def _places(row: Tensor, counts: Tensor) -> Tensor:
    """Place of each entry among the entries of its row, of ascending rows with so many each."""
    return torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
