"""How scores of models depend on what the models can do: rank correlations, bootstraps over models, maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from unrolled.studies.results import NOT_RUN, Estimate, Values

Array = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Places = np.ndarray[Any, np.dtype[np.int64]]


def rank_correlations(x: Array, y: Array) -> Array:
    """Spearman's of every row of x and y [r, n], over its finite pairs; NaN of a constant side or fewer than three."""
    from scipy.stats import rankdata

    keep = np.isfinite(x) & np.isfinite(y)
    count = keep.sum(1, keepdims=True)
    ranks = (rankdata(np.where(keep, side, np.inf), axis=1) * keep for side in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (keep * (rank - rank.sum(1, keepdims=True) / count) for rank in ranks)
        rho = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(count[:, 0] < 3, math.nan, rho)


def spearman(x: Any, y: Any) -> float:
    """Rank correlation of the finite pairs of x and y [n]; NaN where a side is constant or fewer than three remain."""
    one, other = (np.asarray(side, dtype=np.float64)[None] for side in (x, y))
    return float(rank_correlations(one, other)[0])


def over_models(
    statistic: Callable[[Places], Array], models: int, *, of: int = 1, draws: int = 4000, seed: int = 0
) -> Estimate:
    """A statistic with its 95 % bootstrap interval over models, since the pairs of one model are not independent.

    Args:
        statistic: from the places of the models drawn, with repetitions, [r, m], to r numbers; a NaN is left out.
        models: how many there are to draw from.
        of: how many statistics are looked at: the interval is at 1 - 0.05 / of, so that all hold theirs in 95 % of
            cases at least (Bonferroni).
        draws: of models.
        seed: of the draws.

    Returns:
        the statistic of all models; both ends are NaN if fewer than half of the draws gave a number.
    """
    drawn = np.random.default_rng(seed).integers(models, size=(draws, models))
    values = np.concatenate([statistic(part) for part in np.array_split(drawn, max(1, draws // 500))])
    values = values[np.isfinite(values)]
    tail = 0.025 / of
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) >= draws / 2 else (math.nan, math.nan)
    value = float(statistic(np.arange(models)[None])[0])
    return Estimate(value, float(low), float(high), f"bootstrap over {models} models{corrected(of)}")


def corrected(of: int) -> str:
    """How an interval that allows for several says so; "" of one alone."""
    return f", corrected for {of} that are looked at" * (of > 1)


def correlation(x: Any, y: Any, *, of: int = 1) -> Estimate:
    """`spearman` of two numbers of each model [m], with its interval over models.

    It reaches as far as the wider of a bootstrap's and of Fisher's z (Bonett and Wright 2000), since few models drawn
    again often repeat the same few orders; of fewer than 4 it is the bootstrap's. `of` is how many correlations are
    looked at, as in `over_models`.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    drawn = over_models(lambda places: rank_correlations(a[places], b[places]), len(a), of=of)
    count = int((np.isfinite(a) & np.isfinite(b)).sum())
    if count < 4 or not math.isfinite(drawn.value):
        return drawn
    basis = f"the wider of a bootstrap and Fisher's z over {count} models{corrected(of)}"
    return drawn.reaching(Estimate.of_ranks(drawn.value, count, basis, of=of))


def area(statistic: Callable[[Places], Array], models: int) -> Estimate:
    """`over_models` of an area under a curve, a probability, whose interval is no point where all pairs are in order.

    It reaches as far as the exact interval of a share of as many independent models: pairs of one model are not.
    """
    drawn = over_models(statistic, models)
    if not math.isfinite(drawn.value):
        return drawn
    basis = f"the wider of a bootstrap over {models} models and the exact interval of a share of them"
    return drawn.reaching(Estimate.of_share(drawn.value, models, basis))


def difference(one: Values, other: Values) -> Estimate | Values:
    """Mean of the one less that of the other, of different things, with Welch's 95 % interval; none of fewer than 2."""
    from scipy.stats import ttest_ind

    if min(len(one), len(other)) < 2:
        return Values()
    ends = ttest_ind(list(one), list(other), equal_var=False).confidence_interval(0.95)
    basis = f"Welch's over {one.count} and {other.count}"
    return Estimate(one.mean - other.mean, float(ends.low), float(ends.high), basis)


def of_pairs(scores: Mapping[tuple[Hashable, Hashable], float], kinds: tuple[str, str]) -> Values:
    """Mean score of the pairs of each model, by models of the kind whose 95 % interval is the wider.

    Pairs that share a model are not independent, and many models of one kind that differ little say nothing of few of
    the other that differ much. Of a single model there is no interval, which counts as the widest.

    Args:
        scores: of pairs of a model of the one kind and a model of the other.
        kinds: what they are called, such as `("image network", "text model")`.
    """
    sides = []
    for side, kind in enumerate(kinds):
        of: dict[Hashable, list[float]] = {}
        for pair, score in scores.items():
            of.setdefault(pair[side], []).append(score)
        sides.append(Values({model: fmean(some) for model, some in of.items()}, kind))

    def width(values: Values) -> float:
        ends = values.interval()
        return math.inf if ends is None else ends[1] - ends[0]

    return max(sides, key=width)


def pairs_of(drawn: Places, allowed: Mask) -> tuple[Places, Places, Mask]:
    """The pairs among the models of each row of `drawn` [r, m], as places of the one and the other, [r, pairs].

    The third says which of them are `allowed` [models, models]; a model drawn twice makes no pair with itself.
    """
    first, second = np.triu_indices(drawn.shape[1], k=1)
    rows, columns = drawn[:, first], drawn[:, second]
    return rows, columns, (rows != columns) & allowed[rows, columns]


def pair_places(chosen: Places, allowed: Mask) -> tuple[Places, Places]:
    """The allowed pairs among `chosen` models [m], as places of the one and the other."""
    rows, columns, keep = pairs_of(chosen[None], allowed)
    return rows[keep], columns[keep]


def classical_mds(distance: Array, dims: int = 2) -> tuple[Array, float]:
    """Points [m, dims] with distances near the given ones (Torgerson 1952), and the share of variance they hold."""
    squared = np.square(distance)
    centred = squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-0.5 * centred)
    top = np.argsort(values)[::-1][:dims]
    positive = np.clip(values, 0, None)
    points = vectors[:, top] * np.sqrt(positive[top])
    return points, float(positive[top].sum() / positive.sum()) if positive.sum() > 0 else 0.0


class PValue(Estimate):
    """A p-value as it is judged: inside a range that ends at it or above, and never outside one.

    A large p does not say that nothing is there.
    """

    def __init__(self, value: float) -> None:
        super().__init__(value, 0.0, value, "up to a p-value, which says nothing where it is large")

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, `not run` for None and `undefined` for NaN."""
    if value is None:
        return NOT_RUN
    return f"{value:.{digits}f}" if math.isfinite(value) else "undefined"
