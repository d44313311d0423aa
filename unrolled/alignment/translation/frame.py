"""The frame in which one side is matched: centred rows of unit length in their leading principal directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unrolled.ops.rows import as_rows
from unrolled.tables import Brief

Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Frame(Brief):
    """What features [n, d] are brought into, and out of.

    Attributes:
        mean: [d] of the rows it was fitted to.
        axes: [d, w] orthonormal, the leading principal directions of centred rows of unit length.
        length: mean norm of the centred rows, in the units of the features.
    """

    mean: Array
    axes: Array
    length: float

    @classmethod
    def of(cls, x: Array, width: int) -> Frame:
        """Fitted to x [n, d], with as many directions as its rows have, at most `width`."""
        mean = x.mean(0)
        unit = unit_rows(x - mean)
        values, vectors = np.linalg.eigh(unit.T @ unit)
        rank = int((values > values[-1] * len(values) * np.finfo(np.float64).eps).sum())
        axes = vectors[:, ::-1][:, : min(width, rank)]
        return cls(mean, np.ascontiguousarray(axes), float(np.linalg.norm(x - mean, axis=1).mean()))

    def codes(self, x: Array) -> Array:
        """[n, w] of x [n, d]: rows of unit length, but for what lies outside the directions."""
        return unit_rows(x - self.mean) @ self.axes

    def features(self, codes: Array) -> Array:
        """[n, d] of codes [n, w], as far from the mean as rows are on the average."""
        return self.mean + self.length * unit_rows(codes @ self.axes.T)


def unit_rows(x: Array) -> Array:
    """Rows of x over their norms; zero rows stay zero."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    out: Array = x / np.where(norm > 0, norm, 1.0)
    return out


def rows_of(x: Any, name: str, *, least: int = 1, width: int | None = None) -> Array:
    """Features as float64 [n, d] on the CPU.

    Raises:
        ValueError: naming the argument: no numbers [n, d], entries that are not finite, fewer than `least` rows, or
            another width than `width`.
    """
    rows = as_rows(x, name).double().cpu().numpy()
    if len(rows) < least:
        raise ValueError(f"{name} has {len(rows)} rows: at least {least} are needed")
    if width is not None and rows.shape[1] != width:
        raise ValueError(f"{name} has {rows.shape[1]} columns, not {width}: give features of the same layer")
    return rows


def varied_rows(x: Any, name: str, *, least: int) -> Array:
    """As `rows_of`, and not all rows equal.

    Raises:
        ValueError: naming the argument.
    """
    rows = rows_of(x, name, least=least)
    if not float(np.ptp(rows, axis=0).max()) > 0:
        raise ValueError(f"{name} has zero variance: all {len(rows)} rows are equal")
    return rows
