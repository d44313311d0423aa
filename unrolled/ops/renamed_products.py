"""Inner products of matrices with few entries a row, after the samples of one side took new names; for many orders.

Few entries of two matrices are at one place: of k in a row of n, chance makes k^2 / n meet. So every entry is first
looked up in a table where those of the fixed side are marked, columns modulo a power of two: a few kilobytes a row,
which stay in cache since rows are taken in their new order. What passes is searched for among the sorted entries, so
that the table decides how fast the sums are and not what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Entries = tuple[Tensor, Tensor]  # columns [n, m] and values [n, m] of the entries of each row
_APART = 32  # columns of the table for each mark of a row: one entry in so many passes by chance
_TABLE = 2**27  # bytes of the table at most
_BLOCK = 2**16  # entries looked up at a time


@dataclass(frozen=True)
class _Fixed:
    """The entries of all matrices of a side, by place.

    Attributes:
        places: row n + column, sorted, each once.
        starts: [places + 1] where the entries of a place begin.
        matrix, value: of each entry.
        marks: [n, width] whether there is an entry in a column modulo `width`, a power of two.
    """

    places: np.ndarray
    starts: np.ndarray
    matrix: np.ndarray
    value: np.ndarray
    marks: np.ndarray

    @classmethod
    def of(cls, side: Sequence[Entries]) -> _Fixed:
        columns, values, matrix = _beside(side)
        n, count = columns.shape
        wanted = min((max(n, 2) - 1).bit_length(), (_APART * count).bit_length())
        width = 1 << max(0, min(wanted, (_TABLE // n).bit_length() - 1))
        rows = np.arange(n)[:, None]
        marks = np.zeros((n, width), bool)
        marks[rows, columns & (width - 1)] = True
        keys = (rows * n + columns).ravel()
        order = np.argsort(keys, kind="stable")
        keys_sorted = keys[order]
        starts = np.flatnonzero(np.diff(keys_sorted, prepend=-1))
        places = keys_sorted[starts]
        return cls(
            places, np.append(starts, len(keys)), np.tile(matrix, n)[order], values.ravel()[order].astype(np.float64),
            marks,
        )  # fmt: skip


def renamed_products(
    fixed: Sequence[Entries], moved: Sequence[Entries], orders: Iterable[Tensor]
) -> Iterator[np.ndarray]:
    """[fixed, moved] float64 inner products for each order, with sample `order[i]` of the moved side called i.

    Args:
        fixed, moved: matrices [n, n] of either side. Columns are integers, on the CPU; an entry that is padding has
            value zero.
        orders: permutations [n].
    """
    left = _Fixed.of(fixed)
    columns, values, matrix = _beside(moved)
    n, count = columns.shape
    width, marks, step = left.marks.shape[1], left.marks.ravel(), max(1, _BLOCK // count)
    before = width * np.arange(n)[:, None]
    for order in orders:
        old = order.cpu().numpy()
        new = np.empty_like(old)
        new[old] = np.arange(n)
        pairs, products = [], []
        for start in range(0, n, step):
            rows = slice(start, start + step)
            renamed = np.take(new, np.take(columns, old[rows], axis=0))
            folded = renamed & (width - 1)
            folded += before[rows]
            passed = np.flatnonzero(np.take(marks, folded))
            row, place = np.divmod(passed, count)
            row += start
            keys = row * n + renamed.ravel()[passed]
            at = np.searchsorted(left.places, keys).clip(max=len(left.places) - 1)
            met = left.places[at] == keys
            row, place, at = row[met], place[met], at[met]
            times = left.starts[at + 1] - left.starts[at]
            which = np.repeat(np.arange(len(at)), times)
            entry = np.arange(len(which)) + np.repeat(left.starts[at] - (times.cumsum() - times), times)
            pairs.append(left.matrix[entry] * len(moved) + matrix[place[which]])
            products.append(left.value[entry] * values[old[row], place][which])
        # added up row by row, so that a pair has the same sum in any company
        total = np.bincount(np.concatenate(pairs), np.concatenate(products), len(fixed) * len(moved))
        yield total.reshape(len(fixed), len(moved))


def _beside(side: Sequence[Entries]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns and values [n, entries of a row of all matrices], and the matrix of each of these."""
    columns = np.concatenate([columns.numpy() for columns, _ in side], axis=1)
    values = np.concatenate([values.numpy() for _, values in side], axis=1)
    return columns, values, np.repeat(np.arange(len(side)), [columns.shape[1] for columns, _ in side])
