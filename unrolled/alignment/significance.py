"""p-values: shares of relabellings as exact fractions, and tails beyond them by three exact moments or by a Pareto fit.

A share of relabellings (b + 1) / (m + 1) is valid whatever the data are, and can say no less than 1 / (m + 1). Where
the first three moments of the null are known in closed form, a Pearson III (shifted gamma) distribution gives the whole
tail at once (Josse, Pages and Husson 2008, with the moments of Kazi-Aoual et al. 1995). It is used where it is certain
to matter little or to hold; the rest is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from unrolled.alignment.metric import Metric

SMALLEST = 1e-300
"""p-values below this are given as this: they are bounds."""
SHOWN = 1e-6
"""p-values below this are printed as below this: no tail was held against relabellings further out."""
ROUNDING, RELATIVE = 1e-7, 1e-6
"""Scores that are closer than the first and the second's share of them count as equal: they differ by rounding."""

_BOUND = "a bound"
_ENOUGH = 10  # relabellings that reach the score, after which no more are drawn


@dataclass(frozen=True)
class PValue:
    """A p-value and how it was found, in words."""

    value: float
    method: str


def p_text(p: float, method: str = "") -> str:
    """A p-value in print, no smaller than its null supports: a bound below `SHOWN` or where `method` says so."""
    return f"< {max(p, SHOWN):.2g}" if p < SHOWN or method.endswith(_BOUND) else f"{p:.2g}"


def p_phrase(p: float, method: str = "") -> str:
    """`p = 0.012` or `p < 1e-06`."""
    shown = p_text(p, method)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def permutation_p_value(score: float, null: Tensor, *, higher_is_closer: bool = True) -> float:
    """(1 + null values at least as extreme) / (draws + 1), valid for any number of draws (Phipson and Smyth 2010).

    Values within float32 rounding count as reached, so that it cannot make equal scores significant; so does NaN.

    Raises:
        ValueError: the score is NaN.
    """
    sign = 1.0 if higher_is_closer else -1.0
    missed = int((sign * null.double() < _bar(score, sign)).sum())
    return (1 + len(null) - missed) / (len(null) + 1)


def resolved_p_value(score: float, null: Iterable[float], *, higher_is_closer: bool = True) -> PValue:
    """Draw until ten null values reach the score or `null` ends.

    Stopped at draw m, p is 10 / m, which is valid as the fixed share is (Besag and Clifford 1991). If none of all
    values reached the score, the tail of a generalised Pareto distribution fitted to the largest takes over
    (Knijnenburg et al. 2009), with a shape of at least 0, so that it does not end before the score.
    """
    sign = 1.0 if higher_is_closer else -1.0
    reached, seen = 0, []
    for value in null:
        seen.append(sign * value)
        reached += not seen[-1] < _bar(score, sign)
        if reached == _ENOUGH:
            return PValue(_ENOUGH / len(seen), f"{len(seen)} relabellings, until {_ENOUGH} reached the score")
    return tail_p_value(sign * score, torch.tensor(seen, dtype=torch.float64))


def tail_p_value(score: float, null: Tensor) -> PValue:
    """`permutation_p_value` if any null value reaches the score, else the Pareto tail of `resolved_p_value`.

    The fit is believed as far beyond the m relabellings as these reach: at 1 / (m + 1)^2 the p-value is a bound.
    """
    p = permutation_p_value(score, null)
    if p > 1 / (len(null) + 1):
        return PValue(p, f"{len(null)} relabellings")
    tail, basis = min(pareto_tail(score, null.numpy()), p), f"Pareto tail of {len(null)} relabellings, none of which"
    if tail < p * p:
        return PValue(p * p, f"{basis} reached the score: {_BOUND}")
    return PValue(tail, f"{basis} reached the score")


def pareto_tail(score: float, null: np.ndarray) -> float:
    """Probability of a value of at least `score`, from the largest tenth (at most 250) of null values below it."""
    count = max(2, min(250, len(null) // 10))
    ordered = np.sort(null)[::-1]
    if len(ordered) <= count:
        return 1 / (len(null) + 1)
    threshold = (ordered[count - 1] + ordered[count]) / 2
    excess = ordered[:count] - threshold
    mean, variance = float(excess.mean()), float(excess.var())
    if not mean > 0 or not score > threshold:
        return 1 / (len(null) + 1)
    shape = 0.5 * (1 - mean**2 / variance) if variance > 0 else 0.0
    far = score - threshold
    log = -far / mean if shape <= 0 else -math.log1p(shape * far / (mean * (1 - shape))) / shape
    return count / len(null) * math.exp(max(log, -700.0))


def cantelli_bound(z: float, pairs: int) -> PValue:
    """The largest p-value of a score `z` exact standard deviations above the exact mean, the best of so many pairs.

    Cantelli's inequality, P(Z >= z) <= 1 / (1 + z^2), times the pairs: true of every distribution, whatever its tail.
    """
    value = max(min(1.0, pairs / (1 + z * z)), SMALLEST) if z > 0 else 1.0
    return PValue(value, f"Cantelli's inequality for two exact moments, times {pairs} pairs of layers: {_BOUND}")


def pearson_tail(z: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Upper tail at `z` of the Pearson III distribution of mean 0, variance 1 and this skewness.

    A negative skewness counts as none, for the tail would end too early.
    """
    skewed = skewness > 1e-3
    shape = 4 / np.where(skewed, skewness, 1.0) ** 2
    gamma = special.gammaincc(shape, np.clip(shape + z * np.sqrt(shape), 0, None))
    tail: np.ndarray = np.where(skewed, gamma, special.ndtr(-z))
    return tail


def calibrate(score: float, null: Tensor, metric: Metric, *, alpha: float = 0.05) -> tuple[float, float | None]:
    """Threshold at level alpha, and the score rescaled so that the threshold is 0 and the best possible value 1; None
    where no value is the best.

    The threshold is the ceil((1 - alpha)(draws + 1))-th smallest of the null values and the score together (for
    distances: largest), as in arXiv 2602.14486.
    """
    sign = 1.0 if metric.higher_is_closer else -1.0
    together = torch.cat([sign * null.double(), torch.tensor([sign * score], dtype=torch.float64)]).sort().values
    threshold = float(together[min(len(together), math.ceil((1 - alpha) * len(together))) - 1])
    best = sign * metric.range[1 if metric.higher_is_closer else 0]
    if math.isinf(best):
        return sign * threshold, None
    room = best - threshold
    return sign * threshold, max(0.0, (sign * score - threshold) / room) if room > 0 else 0.0


def benjamini_hochberg(p_values: Sequence[float] | Tensor, *, alpha: float = 0.05) -> tuple[Tensor, Tensor]:
    """Control the false discovery rate over many comparisons (Benjamini and Hochberg 1995).

    Returns:
        Adjusted p-values and whether each is at most alpha, both in the order given.

    Raises:
        ValueError: p-values that are not in [0, 1].
    """
    p = torch.as_tensor(p_values, dtype=torch.float64).flatten()
    if not p.numel() or not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("p_values must be a non-empty list of numbers in [0, 1]")
    order = p.argsort(descending=True)
    ranks = torch.arange(p.numel(), 0, -1, dtype=torch.float64)
    adjusted = torch.empty_like(p)
    adjusted[order] = (p[order] * p.numel() / ranks).cummin(0).values.clamp_max(1)
    return adjusted, adjusted <= alpha


def _bar(score: float, sign: float) -> float:
    if math.isnan(score):
        raise ValueError("score is NaN: nothing was measured that chance could be held against")
    return sign * score - ROUNDING - RELATIVE * abs(score)
