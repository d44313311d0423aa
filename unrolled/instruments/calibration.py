"""Is an alignment score more than chance? Nulls, intervals and corrections for any metric of `unrolled.alignment`.

The null hypothesis is that samples are paired at random: rows of one side are relabelled, the same way in all layers. A
maximum over layer pairs is compared with the maxima that relabelled data reach, which corrects for having searched.
Prepared neighbours and kernels are relabelled; nothing is searched again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unrolled.instruments.alignment import get_metric
from unrolled.instruments.alignment_base import Features, Metric, Representation, representations
from unrolled.instruments.alignment_grid import (
    LayerFeatures,
    Layers,
    check_paired,
    layer_grid,
    named_layers,
    prepare_layers,
)


@dataclass(frozen=True)
class HeldOut:
    """A layer pair chosen on one half of the samples and judged on the other.

    `score`, `chance` (mean under relabelling) and `p_value` belong to the `n` held-out samples and this one pair.
    """

    pair: tuple[str, str]
    score: float
    chance: float
    p_value: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Best-aligned layers of two models, next to what chance would give.

    Attributes:
        metric: the metric with its options.
        n: samples.
        layers: layer names of both models.
        scores: [layers of a, layers of b] raw scores; NaN for constant layers, which are listed in `constant`.
        best: names of the best pair; `score` its raw value.
        chance: expected `score` if samples were paired at random, the search over layers included (null "moments":
            of the best pair alone).
        null_mean, null_std: exact moments under relabelling for each pair alone, where a closed form is known.
        null_best: [draws] best value over the grid after each relabelling (null "permutation").
        p_value: share of relabellings whose best value reaches `score`, counting the data as one; None for "moments".
        threshold: the value that relabelled data exceed in a share `alpha` of draws.
        calibrated: 0 at or below `threshold`, 1 at the best possible value, linear between.
        z: distance of `score` from its own null mean in standard deviations. It takes no account of the search over
            layers and nulls are skewed, so it is no substitute for `p_value`.
        interval: confidence interval of the best pair's score over samples, as if the pair had been chosen beforehand:
            searching raises the score and its interval alike, which `held_out` avoids; see `bootstrap_interval`.
        held_out: see `held_out`.
    """

    metric: str
    n: int
    layers: tuple[list[str], list[str]]
    scores: Tensor
    best: tuple[str, str]
    score: float
    chance: float
    null_mean: Tensor | None
    null_std: Tensor | None
    null_best: Tensor | None
    p_value: float | None
    threshold: float | None
    calibrated: float | None
    z: float | None
    alpha: float
    interval: tuple[float, float] | None
    held_out: HeldOut | None
    constant: tuple[list[str], list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON."""
        return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in asdict(self).items()}

    def summary(self) -> str:
        """One line: score, chance, p and interval, never the score alone."""
        parts = [f"{self.metric} = {self.score:.4g} at {self.best[0]} x {self.best[1]}", f"chance {self.chance:.4g}"]
        if self.p_value is not None:
            draws = 0 if self.null_best is None else len(self.null_best)
            parts.append(f"p = {self.p_value:.2g} ({draws} relabellings, best of {self.scores.numel()} pairs)")
            parts.append(f"calibrated {self.calibrated:.4g}")
        elif self.z is not None:
            parts.append(f"z = {self.z:.3g} for this pair alone, search over {self.scores.numel()} pairs not corrected")
        if self.interval is not None:
            parts.append(f"interval {self.interval[0]:.4g} to {self.interval[1]:.4g}")
        return f"{'; '.join(parts)}; n = {self.n}"


def compare(
    features_a: LayerFeatures | Layers,
    features_b: LayerFeatures | Layers,
    metric: str | Metric = "mutual_knn",
    *,
    null: str = "permutation",
    draws: int = 200,
    alpha: float = 0.05,
    resamples: int = 100,
    select_held_out: bool = False,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Score all pairs of layers and judge the best one against chance.

    Args:
        features_a, features_b: one layer [n, d], several [n, layers, d], a mapping or sequence of layers (see
            `prepare_layers`), or `Layers` prepared before (then there is no interval and no held-out selection).
        metric: name or object; `options` go with a name, e.g. `k=10`.
        null: "permutation" relabels samples `draws` times; the smallest p-value is 1 / (draws + 1). "moments" uses
            exact means and variances only: instant, but uncorrected for the search and without a p-value.
        alpha: level of `threshold`.
        resamples: half-samples for the interval of the best pair; 0 leaves it out.
        select_held_out: also choose the pair on half of the samples and judge it on the other half.

    Raises:
        ValueError: bad features, options or null; "moments" for a metric without a closed form.
    """
    chosen = get_metric(metric, **options)
    if null not in ("permutation", "moments"):
        raise ValueError(f"null must be 'permutation' or 'moments', got {null!r}")
    if draws < 1 or not 0 < alpha < 1:
        raise ValueError(f"draws must be positive and alpha between 0 and 1, got draws={draws}, alpha={alpha}")
    stored = None
    if not isinstance(features_a, Layers) and not isinstance(features_b, Layers):
        stored = features_a, features_b = dict(named_layers(features_a)), dict(named_layers(features_b))
    left = features_a if isinstance(features_a, Layers) else prepare_layers(features_a, [chosen])
    right = features_b if isinstance(features_b, Layers) else prepare_layers(features_b, [chosen])
    grid = layer_grid(left, right, chosen)
    row, column = _best(grid.scores, chosen)
    score = float(grid.scores[row, column])
    names = left.names[row], right.names[column]
    z = None
    if grid.null_mean is not None and grid.null_std is not None and float(grid.null_std[row, column]) > 0:
        z = float((score - grid.null_mean[row, column]) / grid.null_std[row, column])
    null_best, p_value, threshold, calibrated = None, None, None, None
    if null == "permutation":
        null_best = null_of_best(left, right, chosen, draws=draws, seed=seed)
        chance = float(null_best.mean())
        p_value = permutation_p_value(score, null_best, higher_is_closer=chosen.higher_is_closer)
        threshold, calibrated = calibrate(score, null_best, chosen, alpha=alpha)
    elif grid.null_mean is None:
        raise ValueError(
            f"null 'moments' needs a closed form, which {chosen!r} lacks for this input: use null='permutation'"
        )
    else:
        chance = float(grid.null_mean[row, column])
    interval, judged = None, None
    if stored is not None:
        pair = stored[0][names[0]], stored[1][names[1]]
        if resamples and left.n // 2 >= _fewest(chosen):
            interval = bootstrap_interval(*pair, chosen, resamples=resamples, seed=seed)
        if select_held_out:
            judged = held_out(*stored, chosen, draws=draws, seed=seed)
    return Comparison(
        metric=repr(chosen), n=left.n, layers=(left.names, right.names), scores=grid.scores, best=names, score=score,
        chance=chance, null_mean=grid.null_mean, null_std=grid.null_std, null_best=null_best, p_value=p_value,
        threshold=threshold, calibrated=calibrated, z=z, alpha=alpha, interval=interval, held_out=judged,
        constant=(left.constant, right.constant),
    )  # fmt: skip


def null_of_best(a: Layers, b: Layers, metric: str | Metric, *, draws: int = 200, seed: int = 0) -> Tensor:
    """[draws] best value over the layer grid after relabelling the samples of b, the same way in all its layers."""
    metric = get_metric(metric)
    check_paired(a, b)
    grids = metric.null_grids(a.of(metric), b.of(metric), relabellings(a.n, draws, seed))
    return torch.stack([grid[_best(grid, metric)] for grid in grids])


def relabellings(n: int, draws: int, seed: int = 0) -> Iterator[Tensor]:
    """`draws` uniform permutations [n]; a seed gives the same ones on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randperm(n, generator=generator) for _ in range(draws))


def permutation_p_value(score: float, null: Tensor, *, higher_is_closer: bool = True) -> float:
    """(1 + null values at least as extreme) / (draws + 1), valid for any number of draws (Phipson and Smyth 2010).

    Values within float32 rounding count as reached, so that it cannot make equal scores significant.
    """
    sign = 1.0 if higher_is_closer else -1.0
    slack = 1e-7 + 1e-6 * abs(score)
    return float((1 + (sign * null.double() >= sign * score - slack).sum()) / (len(null) + 1))


def calibrate(score: float, null: Tensor, metric: Metric, *, alpha: float = 0.05) -> tuple[float, float]:
    """Threshold at level alpha, and the score rescaled so that the threshold is 0 and the best possible value 1.

    The threshold is the ceil((1 - alpha)(draws + 1))-th smallest of the null values and the score together (for
    distances: largest), as in arXiv 2602.14486.
    """
    sign = 1.0 if metric.higher_is_closer else -1.0
    together = torch.cat([sign * null.double(), torch.tensor([sign * score], dtype=torch.float64)]).sort().values
    threshold = float(together[min(len(together), math.ceil((1 - alpha) * len(together))) - 1])
    best = sign * metric.range[1 if metric.higher_is_closer else 0]
    room = best - threshold
    return sign * threshold, max(0.0, (sign * score - threshold) / room) if room > 0 else 0.0


def bootstrap_interval(
    x: Features | Representation, y: Features | Representation, metric: str | Metric, *, resamples: int = 200,
    confidence: float = 0.95, seed: int = 0, **options: Any,
) -> tuple[float, float]:  # fmt: skip
    """Confidence interval over the choice of samples, from half-samples drawn without replacement.

    Drawing with replacement would repeat samples, and copies are each other's nearest neighbours. Half-samples spread
    about as much around their mean as the full sample around its expectation (delete-half jackknife), so the interval
    is the score plus and minus a normal quantile times their standard deviation, cut to the metric's range. It refers
    to data sets of this size: scores themselves depend on n.

    Raises:
        ValueError: fewer than two resamples, or half of the samples too few for the metric.
    """
    chosen = get_metric(metric, **options)
    left, right = representations(x, y, min_samples=chosen.min_samples)
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be at least 2 and confidence in (0, 1), got {resamples} and {confidence}")
    half = left.n // 2
    if half < _fewest(chosen):
        raise ValueError(
            f"{left.n} samples are too few: half of them must be at least {_fewest(chosen)} for {chosen!r}"
        )
    values = []
    for order in relabellings(left.n, resamples, seed):
        rows = order[:half].to(left.x.device)
        try:
            values.append(chosen(left.x[rows], right.x[rows]))
        except ValueError as error:
            if "zero variance" not in str(error):
                raise
    if len(values) < 2:
        raise ValueError("almost all half-samples are constant: the interval is undefined")
    spread = float(torch.tensor(values, dtype=torch.float64).std())
    reach = spread * float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor((1 + confidence) / 2)))
    score, (low, high) = chosen(left, right), chosen.range
    return max(low, score - reach), min(high, score + reach)


def held_out(
    features_a: LayerFeatures,
    features_b: LayerFeatures,
    metric: str | Metric,
    *,
    draws: int = 200,
    seed: int = 0,
    **options: Any,
) -> HeldOut:
    """Choose the best layer pair on a random half of the samples, and score and test that pair on the other half.

    The p-value concerns one pair chosen beforehand, so it needs no correction for the number of layers.
    """
    chosen = get_metric(metric, **options)
    sides = dict(named_layers(features_a)), dict(named_layers(features_b))
    n = len(next(iter(sides[0].values())))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    picked, judged = (
        [{name: _rows(layer, part) for name, layer in side.items()} for side in sides] for part in order.tensor_split(2)
    )
    first, second = (prepare_layers(side, [chosen]) for side in picked)
    scores = layer_grid(first, second, chosen).scores
    row, column = _best(scores, chosen)
    pair = list(sides[0])[row], list(sides[1])[column]
    left, right = (prepare_layers({name: side[name]}, [chosen]) for name, side in zip(pair, judged, strict=True))
    score = float(layer_grid(left, right, chosen).scores)
    null = null_of_best(left, right, chosen, draws=draws, seed=seed + 1)
    p_value = permutation_p_value(score, null, higher_is_closer=chosen.higher_is_closer)
    return HeldOut(pair, score, float(null.mean()), p_value, left.n)


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


def chance_level(
    metric: str | Metric, x: Features, y: Features, *, draws: int = 200, seed: int = 0, **options: Any
) -> tuple[float, float]:
    """Mean and standard deviation of the metric when rows are paired at random: exact where known, else from draws."""
    chosen = get_metric(metric, **options)
    left, right = (prepare_layers(side, [chosen]) for side in (x, y))
    grid = layer_grid(left, right, chosen)
    if grid.null_mean is not None and grid.null_std is not None:
        return float(grid.null_mean), float(grid.null_std)
    null = null_of_best(left, right, chosen, draws=draws, seed=seed)
    return float(null.mean()), float(null.std())


def _best(scores: Tensor, metric: Metric) -> tuple[int, int]:
    sign: Callable[[Tensor], Tensor] = (lambda t: t) if metric.higher_is_closer else torch.neg
    flat = int(torch.nan_to_num(sign(scores), nan=-math.inf).argmax())
    return flat // scores.shape[1], flat % scores.shape[1]


def _fewest(metric: Metric) -> int:
    k = getattr(metric, "k", 0)
    return max(metric.min_samples, k + 1)


def _rows(layer: Features, rows: Tensor) -> Features:
    return layer[rows.to(layer.device)] if isinstance(layer, Tensor) else torch.as_tensor(layer)[rows]
