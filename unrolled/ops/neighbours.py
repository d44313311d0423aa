"""Exact nearest neighbours by inner product, tiled so that memory does not grow with n^2, on any device.

Ties. Scores that are equal as floating-point numbers are ordered by index, so a list is reproducible. That order is
arbitrary, and two representations with many duplicates would seem to agree because both prefer low indices; hence
`membership`, which lets all samples tied for the last place share it (weights that sum to k), treats scores within
`tolerance` as tied, and does not depend on the order of the samples; and, where an order is needed, `shuffled_ties`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unrolled.errors import require
from unrolled.ops.rows import as_floats, check_array, unit_rows
from unrolled.reading import read_object

Rows = Tensor | np.ndarray  # [n, d]; a numpy memory map is read tile by tile
_TILE_BYTES = 64 * 2**20
_STRIP = 1024  # rows of a tile whose scores are looked at while they are in the cache
_GROUP = 16  # scores that are looked at together
_MAX_SHARED = 2**27


@dataclass(frozen=True)
class Neighbours:
    """`indices` [q, k] int64, nearest first, equal scores by lower index, and their `scores` [q, k]."""

    indices: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Membership:
    """Who belongs to each neighbourhood and how much.

    `columns` [q, m] int64 and `weights` [q, m]; the weights of a row sum to k. Without ties m = k and all weights are
    1. Padding has weight 0. `tied` counts the rows whose last place was shared.
    """

    columns: Tensor
    weights: Tensor
    tied: int


def nearest_neighbours(
    x: Rows,
    k: int,
    *,
    queries: Tensor | None = None,
    normalize: bool = True,
    tile: int | None = None,
    device: torch.device | str | None = None,
    backend: str = "torch",
) -> Neighbours:
    """The k rows of `x` with the largest inner product with each query row, the row itself excluded. Exact.

    Args:
        x: [n, d] float features; half precision is searched in float32. A numpy memory map is read tile by tile.
        k: neighbours per query, 1 <= k < n.
        queries: [q] indices of the rows to search for; all rows if None (then each tile of scores serves both its rows
            and its columns, which halves the work).
        normalize: l2-normalise rows first, so that scores are cosines.
        tile: rows and columns of a score tile; by default tiles take 64 MiB. Memory is a few tiles plus O(q k).
        device: where to search; by default where `x` is.
        backend: "torch", or "faiss" for its flat inner-product index (optional package; the order among ties is its
            own).

    Raises:
        ValueError: bad k, shape, tile, queries or backend.
        MissingExtra: backend "faiss" without faiss installed.
    """
    n = _check(x, k)
    if queries is not None and (
        queries.ndim != 1 or queries.numel() == 0 or not 0 <= int(queries.min()) <= int(queries.max()) < n
    ):
        raise ValueError(f"queries must be a non-empty vector of row indices in 0..{n - 1}")
    if backend == "faiss":
        return _faiss(x, k, queries, normalize)
    if backend != "torch":
        raise ValueError(f"backend must be 'torch' or 'faiss', got {backend!r}")
    target = (
        torch.device(device) if device is not None else (x.device if isinstance(x, Tensor) else torch.device("cpu"))
    )
    size = tile_size(n, tile)
    with _full_precision():
        if queries is None:
            return _all_pairs(x, k, normalize, size, target)
        return _query_pairs(x, k, queries.to(target), normalize, size, target)


def tile_size(n: int, tile: int | None = None) -> int:
    """Side of a square score tile: `tile` if given, else what fits 64 MiB of float32."""
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be positive, got {tile}")
    return min(n, tile if tile is not None else int((_TILE_BYTES / 4) ** 0.5))


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
    n = _check(x, k)
    neighbours = nearest_neighbours(x, min(k + 1, n - 1), queries=queries, normalize=normalize, tile=tile)

    def rows_of_scores(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        size = tile_size(n, tile)
        device = neighbours.indices.device
        step = max(1, size * size // n)
        for start in range(0, rows.numel(), step):
            part = rows[start : start + step]
            part = part if queries is None else queries.to(device)[part]
            asked = _load(x, part, normalize, device)
            scores = torch.cat(
                [asked @ _load(x, slice(at, at + size), normalize, device).T for at in range(0, n, size)], 1
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


def _all_pairs(x: Rows, k: int, normalize: bool, size: int, device: torch.device) -> Neighbours:
    n, block = len(x), _blocks(x, normalize, device)
    best: _Best | None = None
    for start_i in range(0, n, size):
        rows = block(start_i, start_i + size)
        best = best or _Best(n, k, size, rows)
        for start_j in range(start_i, n, size):
            columns = rows if start_j == start_i else block(start_j, start_j + size)
            for first, strip in best.strips(rows):
                # every query meets its candidates in ascending order, as the tie rule of `_Best` needs
                at, after = start_i + first, start_i + first + len(strip)
                skipped = max(0, at - start_j)  # columns left of the diagonal
                scores = best.products(strip, columns[skipped:])
                square = max(0, after - start_j - skipped)  # columns that are rows of the strip too
                if square:
                    scores.fill_diagonal_(-torch.inf)
                best.take(at, scores, start_j + skipped)
                if square < scores.shape[1]:
                    best.take(start_j + skipped + square, scores[:, square:].T, at)
    assert best is not None
    return best.done()


def _query_pairs(x: Rows, k: int, queries: Tensor, normalize: bool, size: int, device: torch.device) -> Neighbours:
    n, block = len(x), _blocks(x, normalize, device)
    results: list[Neighbours] = []
    for part in queries.split(size):
        rows = _load(x, part, normalize, device)
        best = _Best(len(part), k, size, rows)
        for start in range(0, n, size):
            columns = block(start, start + size)
            for first, strip in best.strips(rows):
                asked = part[first : first + len(strip)]
                scores = best.products(strip, columns)
                inside = ((asked >= start) & (asked < start + len(columns))).nonzero()[:, 0]
                scores[inside, asked[inside] - start] = -torch.inf
                best.take(first, scores, start)
        results.append(best.done())
    return Neighbours(torch.cat([each.indices for each in results]), torch.cat([each.scores for each in results]))


class _Best:
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

    def done(self) -> Neighbours:
        """The best of all candidates."""
        waiting = (self._filled > self._k).nonzero()[:, 0]
        self._sort(waiting, self._values[waiting, :0], self._indices[waiting, :0], 0)
        return Neighbours(self._indices[:, : self._k].contiguous(), self._values[:, : self._k].contiguous())

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


def _blocks(x: Rows, normalize: bool, device: torch.device) -> Callable[[int, int], Tensor]:
    """Rows from .. to as `_load` gives them: a part of all, loaded once, where these take no more than tiles may."""
    if x.shape[0] * x.shape[1] * 4 > _TILE_BYTES:
        return lambda start, stop: _load(x, slice(start, stop), normalize, device)
    loaded = _load(x, slice(None), normalize, device)
    return lambda start, stop: loaded[start:stop]


def neighbours_to_folder(
    x: Rows,
    k: int,
    folder: str | Path,
    *,
    tile: int | None = None,
    normalize: bool = True,
    device: torch.device | str | None = None,
) -> np.ndarray:
    """All n neighbour lists, written block by block to `folder` and continued where an interrupted run stopped.

    The folder holds `indices.npy` ([n, k] int64, memory-mapped) and `progress.json` (the request, and the rows done).
    The result is the same however often the run was interrupted.

    Returns:
        Read-only memory map of the indices.

    Raises:
        ValueError: the folder belongs to another request (n, d, k, normalisation, tile or data differ).
    """
    n = _check(x, k)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = tile_size(n, tile)
    probe = _load(x, slice(0, n, max(1, n // 64)), False, torch.device("cpu")).double()
    request = {
        "n": n,
        "d": int(x.shape[1]),
        "k": k,
        "normalize": normalize,
        "tile": size,
        "probe": [float(probe.sum()), float(probe.square().sum())],
    }
    progress, target = folder / "progress.json", folder / "indices.npy"
    done = 0
    if progress.exists():
        state = read_object(progress)
        if state.get("request") != request:
            raise ValueError(
                f"folder {folder} holds neighbours of another request ({state.get('request')}): choose another folder"
            )
        done = int(state["done"])
    store = np.lib.format.open_memmap(target, mode="r+" if done else "w+", dtype=np.int64, shape=(n, k))
    while done < n:
        stop = min(done + size, n)
        neighbours = nearest_neighbours(
            x, k, queries=torch.arange(done, stop), normalize=normalize, tile=size, device=device
        )
        store[done:stop] = neighbours.indices.cpu().numpy()
        store.flush()  # the rows must be on disk before they are declared done
        partial = progress.with_suffix(".part")
        partial.write_text(json.dumps({"request": request, "done": stop}))
        partial.replace(progress)
        done = stop
    stored: np.ndarray = np.load(target, mmap_mode="r", allow_pickle=False)
    return stored


def _check(x: Rows, k: int) -> int:
    check_array(x)
    if x.ndim != 2:
        raise ValueError(f"x must be [n, d], got shape {tuple(x.shape)}")
    n = int(x.shape[0])
    if not 1 <= k < n:
        raise ValueError(f"k must be between 1 and n - 1 = {n - 1}, got {k}: lower k or give more samples")
    return n


def _load(x: Rows, rows: slice | Tensor, normalize: bool, device: torch.device) -> Tensor:
    if isinstance(rows, Tensor):
        part = x[rows.to(x.device) if isinstance(x, Tensor) else rows.cpu().numpy()]
    else:
        part = x[rows]
    part = as_floats(part).to(device)
    if not bool(torch.isfinite(part.sum())) and not bool(torch.isfinite(part).all()):  # NaN would be everyone's nearest
        raise ValueError("x has NaN or infinite values: drop these samples on both sides")
    return unit_rows(part) if normalize else part


def _faiss(x: Rows, k: int, queries: Tensor | None, normalize: bool) -> Neighbours:
    faiss = require("faiss", extra="faiss", feature="backend='faiss'")
    data = _load(x, slice(None), normalize, torch.device("cpu")).float().contiguous().numpy()
    wanted = np.arange(len(data)) if queries is None else queries.cpu().numpy()
    index = faiss.IndexFlatIP(data.shape[1])
    index.add(data)
    scores, indices = index.search(data[wanted], k + 1)
    # the query itself is usually first, but a duplicate or a longer vector may precede it or push it out of the list
    keep = indices != wanted[:, None]
    keep[keep.all(1), -1] = False
    return Neighbours(torch.from_numpy(indices[keep].reshape(-1, k)), torch.from_numpy(scores[keep].reshape(-1, k)))


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Search in full float32: TF32 changes about 2 % of the ten nearest neighbours."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
