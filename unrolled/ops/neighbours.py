"""Exact nearest neighbours by inner product, tiled so that memory does not grow with n^2, on any device.

Scores that are equal as floating-point numbers are ordered by index, so a list is reproducible. That order is
arbitrary: `unrolled.ops.ties` has what does not depend on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unrolled.errors import require
from unrolled.ops.rows import as_floats, check_array, unit_rows
from unrolled.ops.top_k import Best

Rows = Tensor | np.ndarray  # [n, d]; a numpy memory map is read tile by tile
_TILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Neighbours:
    """`indices` [q, k] int64, nearest first, equal scores by lower index, and their `scores` [q, k]."""

    indices: Tensor
    scores: Tensor


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
    n = check_neighbours(x, k)
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


def _all_pairs(x: Rows, k: int, normalize: bool, size: int, device: torch.device) -> Neighbours:
    n, block = len(x), _blocks(x, normalize, device)
    best: Best | None = None
    for start_i in range(0, n, size):
        rows = block(start_i, start_i + size)
        best = best or Best(n, k, size, rows)
        for start_j in range(start_i, n, size):
            columns = rows if start_j == start_i else block(start_j, start_j + size)
            for first, strip in best.strips(rows):
                # every query meets its candidates in ascending order, as the tie rule of `Best` needs
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
    scores, indices = best.done()
    return Neighbours(indices, scores)


def _query_pairs(x: Rows, k: int, queries: Tensor, normalize: bool, size: int, device: torch.device) -> Neighbours:
    n, block = len(x), _blocks(x, normalize, device)
    results: list[tuple[Tensor, Tensor]] = []
    for part in queries.split(size):
        rows = load_rows(x, part, normalize, device)
        best = Best(len(part), k, size, rows)
        for start in range(0, n, size):
            columns = block(start, start + size)
            for first, strip in best.strips(rows):
                asked = part[first : first + len(strip)]
                scores = best.products(strip, columns)
                inside = ((asked >= start) & (asked < start + len(columns))).nonzero()[:, 0]
                scores[inside, asked[inside] - start] = -torch.inf
                best.take(first, scores, start)
        results.append(best.done())
    scores, indices = (torch.cat(parts) for parts in zip(*results, strict=True))
    return Neighbours(indices, scores)


def _blocks(x: Rows, normalize: bool, device: torch.device) -> Callable[[int, int], Tensor]:
    """Rows from .. to by `load_rows`: a part of all, loaded once, where these take no more than tiles may."""
    if x.shape[0] * x.shape[1] * 4 > _TILE_BYTES:
        return lambda start, stop: load_rows(x, slice(start, stop), normalize, device)
    loaded = load_rows(x, slice(None), normalize, device)
    return lambda start, stop: loaded[start:stop]


def check_neighbours(x: Rows, k: int) -> int:
    """n of [n, d] features `x`, in which k neighbours can be searched for; ValueError where they cannot."""
    check_array(x)
    if x.ndim != 2:
        raise ValueError(f"x must be [n, d], got shape {tuple(x.shape)}")
    n = int(x.shape[0])
    if not 1 <= k < n:
        raise ValueError(f"k must be between 1 and n - 1 = {n - 1}, got {k}: lower k or give more samples")
    return n


def load_rows(x: Rows, rows: slice | Tensor, normalize: bool, device: torch.device) -> Tensor:
    """Rows of `x` on `device`, in float32 at least, of length 1 if `normalize`; refuses NaN and infinite values."""
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
    data = load_rows(x, slice(None), normalize, torch.device("cpu")).float().contiguous().numpy()
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
