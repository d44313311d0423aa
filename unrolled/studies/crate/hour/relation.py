"""Rank correlations over networks, given what else they differ in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unrolled.studies.results import Estimate

_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Relation:
    """How two numbers of networks go together.

    Attributes:
        rho: Spearman's correlation, partial where something is given; 95 % by the wider of a bootstrap over networks
            and of Fisher's z.
        p: two-sided, by permutation of what is left of the ranks (Freedman and Lane 1983).
        networks: how many.
    """

    rho: Estimate
    p: float
    networks: int

    def __format__(self, spec: str) -> str:
        if math.isnan(self.rho.value):
            return "not defined"
        return f"{self.rho:{spec}}, {f'p = {self.p:.3f}' if self.p >= 0.001 else 'p < 0.001'}"


def relation(
    x: Sequence[float], y: Sequence[float], given: Sequence[Sequence[float]] = (), *, seed: int = 0
) -> Relation:
    """Rank correlation of `x` with `y`, both [n], less what a straight line of the ranks of `given` explains of either.

    NaN where nothing is left of a side, or of fewer than `len(given) + 4` networks.
    """
    table = np.array([x, y, *given], dtype=np.float64)
    n, spent = table.shape[1], len(given)
    one, other = _left(table[None])[0]
    rho = float(_correlations(one[None], other[None])[0])
    if n < spent + 4 or math.isnan(rho):
        nothing = Estimate(math.nan, math.nan, math.nan, f"{n} networks")
        return Relation(rho=nothing, p=math.nan, networks=n)
    random = np.random.default_rng(seed)
    drawn = _left(table[:, random.integers(n, size=(_DRAWS, n))].swapaxes(0, 1))
    low, high = np.nanquantile(_correlations(drawn[:, 0], drawn[:, 1]), [0.025, 0.975])
    null = _correlations(one[None], random.permuted(np.tile(other, (_DRAWS, 1)), axis=1))
    basis = f"the wider of a bootstrap and Fisher's z over {n} networks"
    return Relation(
        rho=Estimate(rho, float(low), float(high), basis).reaching(Estimate.of_ranks(rho, n - spent, basis)),
        p=float((1 + (np.abs(null) >= abs(rho) - 1e-9).sum()) / (_DRAWS + 1)),
        networks=n,
    )


def _left(tables: np.ndarray) -> np.ndarray:
    """Ranks of the first two rows of [r, rows, n], about their mean, less what those of the others explain."""
    from scipy.stats import rankdata

    ranks = rankdata(tables, axis=2)
    ranks -= ranks.mean(2, keepdims=True)
    sides, known = ranks[:, :2], ranks[:, 2:]
    rest: np.ndarray = sides - sides @ np.linalg.pinv(known) @ known if known.shape[1] else sides
    return rest


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows with mean 0, [r, n]; NaN where one is constant."""
    size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 1e-9, (a * b).sum(1) / size, math.nan)
