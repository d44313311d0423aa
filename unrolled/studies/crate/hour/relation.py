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
    left = _left(table)
    rho = _correlation(*left)
    if n < spent + 4 or math.isnan(rho):
        nothing = Estimate(math.nan, math.nan, math.nan, f"{n} networks")
        return Relation(rho=nothing, p=math.nan, networks=n)
    random = np.random.default_rng(seed)
    drawn = np.array([_correlation(*_left(table[:, random.integers(n, size=n)])) for _ in range(_DRAWS)])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    basis = f"the wider of a bootstrap and Fisher's z over {n} networks"
    rank = Estimate.of_ranks(rho, n - spent, basis)
    null = np.array([_correlation(left[0], random.permutation(left[1])) for _ in range(_DRAWS)])
    return Relation(
        rho=Estimate(rho, float(low), float(high), basis).reaching(rank),
        p=float((1 + (np.abs(null) >= abs(rho) - 1e-9).sum()) / (_DRAWS + 1)),
        networks=n,
    )


def _left(table: np.ndarray) -> np.ndarray:
    """Ranks of the first two rows, less what those of the others explain."""
    from scipy.stats import rankdata

    ranks = rankdata(table, axis=1)
    known = np.vstack([np.ones(ranks.shape[1]), ranks[2:]]).T
    fit = np.linalg.lstsq(known, ranks[:2].T, rcond=None)[0]
    rest: np.ndarray = ranks[:2] - (known @ fit).T
    return rest


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sides with mean 0; NaN where one is constant."""
    size = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-9 else math.nan
