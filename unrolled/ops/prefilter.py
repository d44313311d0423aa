"""Nearest neighbours by products of bfloat16 numbers, the candidates scored again exactly: as right as a full search.

For machines that multiply bfloat16 (or TF32) much faster than float32: AMX, tensor cores. Every row x is rounded to
b(x), so that such products lose nothing more, and a = <b(x), b(y)> comes in float32 by
`torch.set_float32_matmul_precision("medium")`; where a machine has no such units that is an ordinary product, nothing
is gained, and the result is the same. With e(x) = x - b(x), whose norm is computed and not estimated, and by
Cauchy-Schwarz

    |<x, y> - a|  <=  |e(x)| |y| + |b(x)| |e(y)|  +  g |b(x)| |b(y)|  +  t.

The third term is the float32 accumulation of d exact products, in any order: a step that rounds loses u = 2^-24, one
that cuts off no more than u = 2^-22, and d of them g = d u / (1 - d u); t is what units may lose that take subnormal
numbers for zero. For a query x let R be the right side with the longest y and longest e(y) there are, plus the rounding
of the scores that are returned. If T is the k-th largest a, the k rows with an a of at least T have scores of T - R or
more, and those with a < T - 2 R less than that: these cannot be among the k nearest, not even tied. Only a list of the
largest a is held. If its end is not below T - 2 R, rows may be missing from it, and the query is searched for in full:
so it is with near copies, rows of very different lengths, or scores that differ by less than bfloat16 tells apart.

Letters: `n` rows of width `d`, `k` neighbours, `m` >= k places of a list, `q` queries.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from unrolled.ops.neighbours import Neighbours, Rows, check_neighbours, load_rows, nearest_neighbours, tile_size
from unrolled.ops.rows import power_of_two
from unrolled.ops.top_k import Best, top_k

Load = Callable[[slice | Tensor], Tensor]

_SPARE = 4  # places of a list beyond five quarters of k
_WORTH = 8  # rows for each place of a list below which a full search costs less
_WIDE = 2**20  # width from which float32 sums are too far off for lists to hold
_HELD = 2**29  # bytes of rows that are held, once as they are and once rounded, instead of loaded again
_SIDE = 1024  # of tiles of rows that are held
_TOGETHER = {"cpu": 2**16}  # numbers of candidates scored at a time: what a cache holds


def prefiltered_neighbours(
    x: Rows,
    k: int,
    *,
    queries: Tensor | None = None,
    normalize: bool = True,
    tile: int | None = None,
    device: torch.device | str | None = None,
) -> Neighbours:
    """As `nearest_neighbours`, and as exact, by the prefilter of the module docstring.

    Slower where bfloat16 has no units of its own, so nothing chooses it by itself: `python -m benchmarks.neighbours`
    says whether a machine gains by it.

    Scores are inner products summed in float64 and rounded once, to float32 where the search is in that, and of equal
    ones that of the lower index comes first. Queries that are searched for in full have the neighbours and scores of
    `nearest_neighbours`. Where float32 holds every sum (small whole numbers, say) both functions agree to the bit.
    Elsewhere scores differ by what `nearest_neighbours` loses in one float32 product, and of neighbours whose scores
    differ by less than that another may come first.

    Args:
        x, k, queries, normalize, tile, device: as in `nearest_neighbours`. Memory is a few tiles, O(q k), three
            numbers a row, and rows of up to 512 MiB, in float32 and in float64; a larger memory map is read again for
            every tile of rows.

    Raises:
        ValueError: as `nearest_neighbours`; a device without float64.
    """
    n, d = check_neighbours(x, k), int(x.shape[1])
    target = torch.device(device) if device is not None else x.device if isinstance(x, Tensor) else torch.device("cpu")
    full = partial(nearest_neighbours, x, k, normalize=normalize, tile=tile, device=target)
    m = k + k // 4 + _SPARE
    if m * _WORTH > n or not 0 < d < _WIDE:
        return full(queries=queries)
    if queries is not None and not (queries.ndim == 1 and len(queries) and 0 <= queries.min() <= queries.max() < n):
        raise ValueError(f"queries must be a non-empty vector of row indices in 0..{n - 1}")
    if target.type == "mps":
        raise ValueError("device 'mps' has no float64, in which candidates are scored: use nearest_neighbours")
    size, held = tile_size(n, tile), 4 * n * d <= _HELD
    if held and tile is None:
        size = min(n, _SIDE)
    load: Load = partial(load_rows, x, normalize=normalize, device=target)
    load = _hold(load) if held else load
    scale = 1.0 if normalize else _scale(load, n, size)
    near: Load = lambda rows: _rounded(load(rows) / scale)  # noqa: E731
    near = _hold(near) if held else near
    asked = torch.arange(n, device=target) if queries is None else queries.to(target)
    with _fast_products():
        values, indices = _longest(near, n, m, size, None if queries is None else asked)
    limit = values[:, k - 1].double() - 2 * _radius(load, near, n, size, scale)[asked]
    whole = values[:, -1] < limit  # lists that hold every candidate
    if 2 * int(whole.sum()) < len(asked):
        return full(queries=queries)
    indices, by_index = torch.sort(indices, dim=1)  # so that of equal scores the first has the lower index
    candidate = (values.gather(1, by_index) >= limit[:, None]) & whole[:, None]
    scores, places = top_k(_scored(load, asked, indices, candidate, max(1, _TOGETHER.get(target.type, 2**24) // d)), k)
    indices = indices.gather(1, places)
    missing = (~whole).nonzero()[:, 0]
    if len(missing):
        again = full(queries=asked[missing])
        scores[missing], indices[missing] = again.scores, again.indices
    return Neighbours(indices, scores)


def _longest(near: Load, n: int, m: int, size: int, queries: Tensor | None) -> tuple[Tensor, Tensor]:
    """The m largest products of rounded rows for all rows, or for `queries`: values and indices, each [q, m]."""
    if queries is None:
        rows = near(slice(0, size))
        best = Best(n, m, size, rows)
        for start in range(0, n, size):
            rows = near(slice(start, start + size))
            for beyond in range(start, n, size):
                columns = rows if beyond == start else near(slice(beyond, beyond + size))
                for first, strip in best.strips(rows):
                    products = best.products(strip, columns)
                    if beyond == start:
                        products.diagonal(first).fill_(-torch.inf)
                    best.take(start + first, products, beyond)
                    if beyond > start:
                        best.take(beyond, products.T, start + first)
        return best.done()
    lists = []
    for part in queries.split(size):
        rows = near(part)
        best = Best(len(part), m, size, rows)
        for start in range(0, n, size):
            columns = near(slice(start, start + size))
            for first, strip in best.strips(rows):
                places = part[first : first + len(strip)] - start
                products = best.products(strip, columns)
                inside = ((places >= 0) & (places < len(columns))).nonzero()[:, 0]
                products[inside, places[inside]] = -torch.inf
                best.take(first, products, start)
        lists.append(best.done())
    values, indices = (torch.cat(parts) for parts in zip(*lists, strict=True))
    return values, indices


def _radius(load: Load, near: Load, n: int, size: int, scale: float) -> Tensor:
    """[n] float64, R of the module docstring for every row as a query, in units of scale^2; infinite where scores may
    leave the range of their precision."""
    parts = []
    for start in range(0, n, size):
        part = slice(start, start + size)
        rows, rounded = load(part), near(part).double()
        exact = rows.double() / scale
        parts.append(torch.stack([each.norm(dim=1) for each in (exact, rounded, exact - rounded)]))
    lengths = torch.cat(parts, 1)
    (length, close, error), (longest, widest, worst) = lengths, lengths.amax(1)
    d, kind = rows.shape[1], torch.finfo(torch.float32)  # the coarser, whichever scores have
    radius = error * longest + close * worst + _growth(d) * close * widest
    radius += (8 * kind.eps + d * 2.0**-50) * length * longest
    radius = radius * (1 + 2.0**-20) + d * 2.0**-110 + kind.smallest_normal * kind.eps / scale / scale
    return radius.masked_fill(~(length * longest * scale * scale < kind.max / 4), torch.inf)


def _growth(d: int) -> float:
    """By how much of |x| |y| a float32 sum of d exact products may be off, in any order and even where it cuts off."""
    lost = d * 2.0**-22
    return lost / (1 - lost)


def _scored(load: Load, asked: Tensor, indices: Tensor, candidate: Tensor, step: int) -> Tensor:
    """[q, m] inner products of the rows `asked` [q] with the candidates among `indices` [q, m]; -inf of the others."""
    scores = load(asked[:1]).new_full(candidate.shape, -torch.inf)
    row, place = candidate.nonzero(as_tuple=True)
    for some, where in zip(row.split(step), place.split(step), strict=True):
        rows, others = load(asked[some]), load(indices[some, where])
        scores[some, where] = rows.double().mul_(others.double()).sum(1).to(scores.dtype)
    return scores


def _rounded(rows: Tensor) -> Tensor:
    """float32 rows that are bfloat16 numbers, none of them subnormal, since some units take these for zero."""
    near = rows.bfloat16().float()
    return near.masked_fill_(near.abs() < torch.finfo(torch.float32).smallest_normal, 0)


def _scale(load: Load, n: int, size: int) -> float:
    """The power of two with which no product of rows overflows."""
    peaks = [load(slice(start, start + size)).abs().amax() for start in range(0, n, size)]
    return float(power_of_two(torch.stack(peaks).amax()))


def _hold(load: Load) -> Load:
    rows = load(slice(None))
    return lambda some: rows[some] if isinstance(some, slice) else rows.index_select(0, some)


@contextlib.contextmanager
def _fast_products() -> Iterator[None]:
    """Products of float32 matrices by bfloat16 or TF32 units where there are any: rounded rows are exact in both."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
