"""The frame in which one side is matched: centred rows of unit length in their leading principal directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unrolled.ops import rows
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
    """`ops.rows.unit_rows` of an array: rows of x over their norms; zero rows stay zero."""
    out: Array = rows.unit_rows(torch.from_numpy(x)).numpy()
    return out


def rows_of(x: Any, name: str, *, least: int = 1, width: int | None = None) -> Array:
    """Features as float64 [n, d] on the CPU.

    Raises:
        ValueError: naming the argument: no numbers [n, d], entries that are not finite, fewer than `least` rows, or
            another width than `width`.
    """
    given = rows.as_rows(x, name).double().cpu().numpy()
    if len(given) < least:
        raise ValueError(f"{name} has {len(given)} rows: at least {least} are needed")
    if width is not None and given.shape[1] != width:
        raise ValueError(f"{name} has {given.shape[1]} columns, not {width}: give features of the same layer")
    return given


def varied_rows(x: Any, name: str, *, least: int) -> Array:
    """As `rows_of`, and not all rows equal.

    Raises:
        ValueError: naming the argument.
    """
    given = rows_of(x, name, least=least)
    if not float(np.ptp(given, axis=0).max()) > 0:
        raise ValueError(f"{name} has zero variance: all {len(given)} rows are equal")
    return given
