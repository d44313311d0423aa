"""Optimal transport between two sets of equal weights: the best share-out of scores, exactly.

Every row has weight 1 / p and every column 1 / q. With p = q the best transport is an assignment (Birkhoff). Otherwise
rows and columns are copied until both are as many, where that is few copies, or the linear program is solved from few
of its variables, more being let in until the dual prices prove that none would gain. Of several share-outs those are
left out that prices prove to be smaller than another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, sparse

Array = np.ndarray[Any, np.dtype[np.float64]]

GAP = 1e-9
"""The value is at most this far, for scores of size 1, below that of the best transport."""
_COPIES = 3  # of the wider side, up to which the assignment is faster than the program
_BEST = 5  # pairs let into the program at a time, of each row and column
_BLUR, _STEPS = 0.005, 150  # of the regularised transport whose prices say which pairs to begin with
_ROUGH, _FEW_STEPS = 0.02, 20  # of the one whose prices bound a transport: a fifth of the time, and 0.3 % too high


def best_transport(scores: Array) -> float:
    """The largest sum_ij P_ij scores_ij over P >= 0 with row sums 1 / p and column sums 1 / q.

    Args:
        scores: [p, q] finite float64, of size 1 or so.

    Returns:
        The value of a transport that keeps both sums exactly; no transport has more than `GAP` above it.
    """
    p, q = scores.shape
    copied = math.lcm(p, q)
    if copied > _COPIES * max(p, q):
        return _program(scores)
    rows, columns = optimize.linear_sum_assignment(
        scores.repeat(copied // p, 0).repeat(copied // q, 1) if p != q else scores, maximize=True
    )
    return float(scores[rows // (copied // p), columns // (copied // q)].mean())


def largest_transport(several: Sequence[Array]) -> float:
    """The largest `best_transport` of some [p, q] scores, at least one, with as few of them solved as may be.

    Assignments, of p = q, take no longer than a bound. Of the others those are solved whose `transport_bound` is above
    the largest value so far, from the largest bound on.
    """
    square = [scores for scores in several if scores.shape[0] == scores.shape[1]]
    best = max(map(best_transport, square), default=-math.inf)
    others = [scores for scores in several if scores.shape[0] != scores.shape[1]]
    bounds = [transport_bound(scores) for scores in others]
    for place in np.argsort(bounds)[::-1]:
        if bounds[place] <= best:
            break
        best = max(best, best_transport(others[place]))
    return best


def transport_bound(scores: Array) -> float:
    """A number, but for rounding, that no transport of scores [p, q] is above: by prices that are feasible."""
    _, column = _prices(scores, _ROUGH, _FEW_STEPS)
    row = (scores - column).max(1)
    return float(row.mean() + (scores - row[:, None]).max(0).mean())


def _program(scores: Array) -> float:
    """By the transport problem in whole numbers: rows supply q / g and columns take p / g, with g their divisor."""
    p, q = scores.shape
    divisor = math.gcd(p, q)
    sums = np.repeat([q // divisor, p // divisor], [p, q]).astype(float)
    gain = _reduced(scores, *_prices(scores, _BLUR, _STEPS))  # good guesses, of which nothing hangs
    admitted = _worth(gain, _BEST) | _worth(gain.T, _BEST).T
    admitted[_corner(p, q)] = True
    while True:
        rows, columns = np.nonzero(admitted)
        ends = np.stack([rows, p + columns], 1).ravel()
        constraints = sparse.csc_matrix(
            (np.ones(len(ends)), ends, np.arange(0, len(ends) + 1, 2)), shape=(p + q, len(rows))
        )
        solved = optimize.linprog(
            -scores[rows, columns],
            A_eq=constraints,
            b_eq=sums,
            method="highs-ds",
            options={"dual_feasibility_tolerance": GAP / 10, "presolve": False},
        )
        if solved.status:
            raise RuntimeError(f"the transport of {p} x {q} scores was not solved: {solved.message}")
        price = -solved.eqlin.marginals
        gain = _reduced(scores, price[:p], price[p:])
        missing = (gain > GAP / 2) & ~admitted
        if not missing.any():
            # vertices of this problem are whole numbers
            return float(np.round(solved.x) @ scores[rows, columns]) * divisor / (p * q)
        admitted |= missing & _worth(gain, _BEST)


def _prices(scores: Array, blur: float, steps: int) -> tuple[Array, Array]:
    """Prices of rows [p] and columns [q] of a regularised transport (Sinkhorn)."""
    p, q = scores.shape
    size = max(float(np.abs(scores).max()), np.finfo(float).tiny)
    kernel = np.exp((scores / size - 1) / blur)
    column = np.ones(q)
    for _ in range(steps):
        row = 1 / (p * (kernel @ column))
        column = 1 / (q * (row @ kernel))
    return -size * blur * np.log(row), -size * blur * np.log(column)


def _reduced(scores: Array, row: Array, column: Array) -> Array:
    """[p, q] scores less their prices."""
    return scores - row[:, None] - column


def _worth(scores: Array, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[p, q] the largest `count` of each row."""
    chosen = np.zeros(scores.shape, dtype=bool)
    count = min(count, scores.shape[1])
    np.put_along_axis(chosen, np.argpartition(-scores, count - 1, 1)[:, :count], True, 1)
    return chosen


def _corner(p: int, q: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pairs that hold one transport at least, whatever the scores: rows and columns met in their order."""
    last = np.unique(np.concatenate([np.arange(1, p + 1) * q, np.arange(1, q + 1) * p])) - 1
    return last // q, last // p
