"""How far an alignment score would move on other samples: the interval of the score at this many samples."""

from __future__ import annotations

import math
from typing import Any

import torch

from unrolled.alignment.dependence import Blocks, Groups, Units
from unrolled.alignment.metric import Features, Metric, Representation, representations
from unrolled.alignment.registry import get_metric

_BY_CHANCE = 2.0  # null standard deviations within which a score is taken for one of independent sides


def score_interval(
    x: Features | Representation, y: Features | Representation, metric: str | Metric, *, resamples: int = 200,
    confidence: float = 0.95, groups: Groups | None = None, blocks: Blocks | None = None, seed: int = 0, **options: Any,
) -> tuple[float, float]:  # fmt: skip
    """Confidence interval of the expected score of this many samples, from subsamples of three quarters of them.

    It says how far the score would move on other samples, *as many as these*. It is no interval for a population:
    scores depend on n (mutual k-NN falls with it, biased CKA and SVCCA too), and the value at n = infinity is as a rule
    outside.

    Subsamples are drawn without replacement: with it, samples would repeat, and copies are each other's nearest
    neighbours. The variance of scores of m of n samples, times m / (n - m), is that of the full score (delete-d
    jackknife); half-samples, for which the factor is 1, see twice the share of neighbours and so less spread near a
    ceiling. A score that independent sides would reach too is of second order in the samples, and that variance then
    counts the null's own (1 + n / m) times instead of once; where closed-form moments are known, this is taken off. The
    interval is the score plus and minus a normal quantile times the root, and at least Wilson's for metrics that are a
    share of the samples, which near 1 hardly vary from subsample to subsample. It is cut to the metric's range.

    Heavy tails (a covariance that does not exist) are not covered as promised: one sample in the tail decides.

    Args:
        x, y, metric, options: as the metric takes them.
        resamples: subsamples.
        confidence: how often the interval should hold the expected score.
        groups, blocks: rows that depend on each other are left out whole, see `compare`.
        seed: of the subsamples.

    Raises:
        ValueError: fewer than two resamples, or three quarters of the samples too few for the metric.
    """
    chosen = get_metric(metric, **options)
    left, right = representations(x, y, min_samples=chosen.min_samples)
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be at least 2 and confidence in (0, 1), got {resamples} and {confidence}")
    units = Units.of(left.n, groups, blocks)
    if not enough_rows(chosen, units, resamples, seed):
        raise ValueError(
            f"{left.n} samples are too few: three quarters of them must be at least {_fewest(chosen)} for {chosen!r}"
        )
    values = []
    for part in units.subsamples(resamples, seed):
        rows, same = part.to(left.x.device), chosen.for_units(units.of_rows(part))
        try:
            values.append(same(Representation(left.x[rows]), Representation(right.x[rows])))
        except ValueError as error:
            if "zero variance" not in str(error):
                raise
    if len(values) < 2:
        raise ValueError("almost all subsamples are constant: the interval is undefined")
    whole = chosen.for_units(units)
    score, share = whole(left, right), units.subsample / units.count
    spread = float(torch.tensor(values, dtype=torch.float64).var()) * share / (1 - share)
    if units.members is None:
        spread = _second_order(whole, left, right, score, spread, share)
    quantile = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + confidence) / 2)))
    reach = quantile * math.sqrt(spread)
    low, high = score - reach, score + reach
    if chosen.share_of_samples:
        least, most = _wilson(score, units.count, quantile)
        low, high = min(low, least), max(high, most)
    return max(chosen.range[0], low), min(chosen.range[1], high)


def enough_rows(metric: Metric, units: Units, resamples: int, seed: int) -> bool:
    """Whether all subsamples are large enough for the metric."""
    return min((len(rows) for rows in units.subsamples(resamples, seed)), default=0) >= _fewest(metric)


def _fewest(metric: Metric) -> int:
    return max(metric.min_samples, getattr(metric, "k", 0) + 1)


def _second_order(
    metric: Metric, left: Representation, right: Representation, score: float, spread: float, share: float
) -> float:
    """`spread` without what the jackknife counts too often where the score is within reach of independent sides."""
    moments = metric.null_moments([metric.prepare(left)], [metric.prepare(right)])
    if moments is None:
        return spread
    mean, variance = (float(moment) for moment in moments)
    if (score - mean) ** 2 > _BY_CHANCE**2 * variance:
        return spread
    return max(spread - variance / share, spread / (1 + 1 / share))


def _wilson(share: float, count: int, quantile: float) -> tuple[float, float]:
    square = quantile**2 / count
    middle = (share + square / 2) / (1 + square)
    reach = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return middle - reach, middle + reach
