"""Samples that are known in pairs, divided so that a fit sees none of its pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def thirds(samples: int, seed: int, *, of: int = 1) -> tuple[Rows, Rows, Rows]:
    """Rows that score, rows that only the one side is fitted with, and rows of only the other; each in order.

    Args:
        samples: how many.
        seed: of the division.
        of: rows of one sample, one after another, which stay together.
    """
    order = np.random.default_rng(seed).permutation(samples)
    third = samples // 3
    half = third + (samples - third) // 2
    scored, one, other = (np.sort(part) for part in (order[:third], order[third:half], order[half:]))
    return _rows(scored, of), _rows(one, of), _rows(other, of)


def _rows(chosen: Rows, of: int) -> Rows:
    return (chosen[:, None] * of + np.arange(of)).reshape(-1)
