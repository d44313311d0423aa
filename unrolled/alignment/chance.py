"""Is an alignment score more than chance? Nulls, intervals and corrections for any metric of `unrolled.alignment`.

The null hypothesis is that samples are paired at random: rows of one side are relabelled, the same way in all layers. A
maximum over layer pairs is compared with the maxima that relabelled data reach, which corrects for having searched.
Prepared neighbours and kernels are relabelled; nothing is searched again. Where rows depend on each other, whole groups
or blocks of them are relabelled, left out and resampled: `groups=` and `blocks=`, see `dependence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.copies import note_copies
from unrolled.alignment.dependence import Blocks, Groups, Units
from unrolled.alignment.interval import enough_rows, score_interval
from unrolled.alignment.layers import (
    Grid,
    LayerFeatures,
    Layers,
    best_pair,
    check_paired,
    layer_grid,
    named_layers,
    prepare_layers,
)
from unrolled.alignment.metric import Features, Metric, Representation
from unrolled.alignment.registry import get_metric
from unrolled.alignment.significance import (
    RELATIVE,
    ROUNDING,
    SHOWN,
    SMALLEST,
    PValue,
    calibrate,
    cantelli_bound,
    p_phrase,
    pearson_tail,
    permutation_p_value,
    resolved_p_value,
)
from unrolled.ops.rows import as_floats
from unrolled.tables import Tabular

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unrolled.figures import HeatMap

Progress = Callable[[Iterable[Tensor]], Iterable[Tensor]]
"""Gives on what it takes, and shows how many of them there were."""
_MOST = 999  # relabellings where "moments" has to draw: enough for p = 0.001
_DOMINANT = 5.0  # standard deviations that one sample may move a score by
_SURE = (SHOWN, 0.2)  # outside of these a tail by three moments is taken as it is


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


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """Best-aligned layers of two models, next to what chance would give.

    Attributes:
        metric: the metric with its options.
        n: samples.
        layers: layer names of both models.
        scores: [layers of a, layers of b] raw scores; NaN for constant layers, which are listed in `constant`.
        best: names of the best pair; `score` its raw value.
        chance: expected `score` if samples were paired at random, the search over layers included (null "moments":
            of the best pair alone, where a closed form is known).
        null_mean, null_std: exact moments under relabelling for each pair alone, where a closed form is known.
        null_best: [draws] best value over the grid after each relabelling (null "permutation").
        p_value: corrected for the search over layers. Null "permutation": share of relabellings whose best value
            reaches `score`, counting the data as one. "moments": see `compare`.
        threshold: the value that relabelled data exceed in a share `alpha` of draws.
        calibrated: 0 at or below `threshold`, 1 at the best possible value, linear between; None where that is
            infinite.
        z: distance of `score` from its own null mean in standard deviations. It takes no account of the search over
            layers and nulls are skewed, so it is no substitute for `p_value`.
        interval: 95 % confidence interval of the best pair's expected score at this many samples (not of a population:
            scores depend on n), as if the pair had been chosen beforehand: searching raises the score and its interval
            alike, which `held_out` avoids; see `score_interval`.
        held_out: see `held_out`.
        p_method: how `p_value` was found, or why there is none, in words. Null "moments" judges the pair furthest
            beyond its own chance, which is named here where it is not the best one.
        units: what traded places, in words; "" for single rows.
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
    p_method: str = ""
    units: str = ""

    def records(self) -> list[dict[str, Any]]:
        """A row for each pair of layers: their score, and its moments under relabelling where they are known."""
        known = {"score": self.scores, "null_mean": self.null_mean, "null_std": self.null_std}
        tables = {key: value.tolist() for key, value in known.items() if value is not None}
        return [
            {"a": a, "b": b, **{key: table[i][j] for key, table in tables.items()}}
            for i, a in enumerate(self.layers[0])
            for j, b in enumerate(self.layers[1])
        ]

    def __repr__(self) -> str:
        return f"Comparison({self.summary()})"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, ready for JSON."""
        return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in asdict(self).items()}

    def panel(self) -> HeatMap:
        """The scores of all pairs of layers as a map, with a frame around the best."""
        from unrolled.figures import HeatMap

        rows, columns = self.layers
        return HeatMap(
            title=f"{self.metric.split('(')[0]}, n = {self.n}",
            values=self.scores.double().cpu().numpy(),
            rows=rows,
            columns=columns,
            row_label="a",
            column_label="b",
            mark=(rows.index(self.best[0]), columns.index(self.best[1])),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw `panel`; see `unrolled.figures.Panel.plot`."""
        return self.panel().plot(ax)

    def summary(self) -> str:
        """One line: score, chance, p and interval, never the score alone."""
        parts = [f"{self.metric} = {self.score:.4g} at {self.best[0]} x {self.best[1]}", f"chance {self.chance:.4g}"]
        if self.p_value is not None:
            phrase = p_phrase(self.p_value, self.p_method)
            parts.append(f"{phrase} ({self.p_method}, best of {self.scores.numel()} pairs)")
        elif self.p_method:
            parts.append(f"p: {self.p_method}")
        if self.z is not None:
            parts.append(f"z = {self.z:.3g} for this pair alone, the search not corrected")
        if self.calibrated is not None:
            parts.append(f"calibrated {self.calibrated:.4g}")
        if self.interval is not None:
            parts.append(f"95 % interval of the score at this n {self.interval[0]:.4g} to {self.interval[1]:.4g}")
        return f"{'; '.join(parts)}; n = {self.n}" + (f" in {self.units}" if self.units else "")


def compare(
    features_a: LayerFeatures | Layers,
    features_b: LayerFeatures | Layers,
    metric: str | Metric | Callable[..., float] = "mutual_knn",
    *,
    null: str = "permutation",
    draws: int = 200,
    alpha: float = 0.05,
    resamples: int = 100,
    select_held_out: bool = False,
    groups: Groups | None = None,
    blocks: Blocks | None = None,
    seed: int = 0,
    progress: Progress = iter,
    **options: Any,
) -> Comparison:
    """Score all pairs of layers and judge the best one against chance.

    Args:
        features_a, features_b: one layer [n, d], several [n, layers, d], a mapping or sequence of layers (see
            `prepare_layers`), or `Layers` prepared before (then there is no interval and no held-out selection).
        metric: name or object; `options` go with a name, e.g. `k=10`. Or a function of your own that takes features
            [n, d_x] and [n, d_y], tensors with paired rows, and returns a number; for a distance give
            `higher_is_closer=False`, and `range=(0, 1)` where its values are known; other `options` are its keyword
            arguments.
        null: "permutation" relabels samples `draws` times; the smallest p-value is 1 / (draws + 1). "moments" takes the
            Pearson III tail of the exact first three moments, times the number of layer pairs, where it is above 0.2,
            or below 1e-6 at layers that no sample dominates; else Cantelli's bound, which every null of the exact
            mean and variance obeys, where relabellings could not give less; else, and where no moments are known,
            samples are relabelled until ten draws reach the score, at most max(draws, 999) times. `p_method` says
            which it was.
        alpha: level of `threshold`.
        resamples: subsamples for the interval of the best pair at this many samples; 0 leaves it out.
        select_held_out: also choose the pair on half of the samples and judge it on the other half.
        groups: [n] one label a row, where rows depend on each other (captions or crops of a photo, frames of a video,
            sentences of a document): groups of one size trade places whole, and are resampled and left out whole.
        blocks: for rows in order (a series): rows of a block that moves whole, or "shift" for circular shifts.
        progress: shows how many relabellings are scored: it takes them and gives them on.

    Raises:
        ValueError: bad features, options, null, groups or blocks.
    """
    chosen = get_metric(metric, **options)
    if null not in ("permutation", "moments"):
        raise ValueError(f"null must be 'permutation' or 'moments', got {null!r}")
    if draws < 1 or not 0 < alpha < 1:
        raise ValueError(f"draws must be positive and alpha between 0 and 1, got draws={draws}, alpha={alpha}")
    stored = None
    if not isinstance(features_a, Layers) and not isinstance(features_b, Layers):
        features_a = dict(named_layers(features_a, "features_a"))
        features_b = dict(named_layers(features_b, "features_b"))
        stored = features_a, features_b
        shapes = [tuple(getattr(next(iter(side.values()), None), "shape", ())) for side in stored]
        if all(len(shape) == 2 for shape in shapes) and shapes[0][0] != shapes[1][0]:
            # before a metric finds the shorter side too short
            raise ValueError(
                f"features_a has {shapes[0][0]} samples and features_b {shapes[1][0]}: rows must be the same samples"
            )
    left = features_a if isinstance(features_a, Layers) else prepare_layers(features_a, [chosen], "features_a")
    right = features_b if isinstance(features_b, Layers) else prepare_layers(features_b, [chosen], "features_b")
    check_paired(left, right)
    if stored is not None and groups is None and blocks is None:
        for side, name in zip(stored, ("features_a", "features_b"), strict=True):
            note_copies(side, name)
    units = Units.of(left.n, groups, blocks)
    chosen = chosen.for_units(units)
    grid = layer_grid(left, right, chosen)
    result = judged(left, right, chosen, grid, units, null, draws, seed, alpha=alpha, progress=progress)
    if stored is None:
        return result
    pair = Representation(stored[0][result.best[0]]), Representation(stored[1][result.best[1]])
    if resamples and enough_rows(chosen, units, resamples, seed):
        interval = score_interval(*pair, chosen, resamples=resamples, groups=groups, blocks=blocks, seed=seed)
        result = replace(result, interval=interval)
    if select_held_out:
        apart = held_out(*stored, chosen, draws=draws, groups=groups, blocks=blocks, seed=seed)
        result = replace(result, held_out=apart)
    return result


def judged(
    left: Layers, right: Layers, chosen: Metric, grid: Grid, units: Units, null: str, draws: int, seed: int, *,
    alpha: float = 0.05, null_best: Tensor | None = None, progress: Progress = iter,
) -> Comparison:  # fmt: skip
    """`compare` of prepared layers whose `grid` is known, and with null "permutation" perhaps `null_best` [draws]."""
    if units.description:  # closed forms are of single rows
        grid = Grid(grid.scores, None, None)
    row, column = best_pair(grid.scores, chosen)
    score = float(grid.scores[row, column])
    names = left.names[row], right.names[column]
    z = None
    if grid.null_mean is not None and grid.null_std is not None and not _unmoved(grid)[row, column]:
        z = float((score - grid.null_mean[row, column]) / grid.null_std[row, column])
    threshold, calibrated = None, None
    if null == "permutation":
        if null_best is None:
            null_best = _null(left, right, chosen, units, draws, seed, progress)
        chance = float(null_best.mean())
        p = PValue(
            permutation_p_value(score, null_best, higher_is_closer=chosen.higher_is_closer), f"{draws} relabellings"
        )
        threshold, calibrated = calibrate(score, null_best, chosen, alpha=alpha)
    else:
        p, chance = _quick_p_value(left, right, chosen, grid, units, max(draws, _MOST), seed, progress)
    return Comparison(
        metric=repr(chosen), n=left.n, layers=(left.names, right.names), scores=grid.scores, best=names, score=score,
        chance=chance, null_mean=grid.null_mean, null_std=grid.null_std, null_best=null_best, p_value=p.value,
        threshold=threshold, calibrated=calibrated, z=z, alpha=alpha, interval=None, held_out=None,
        constant=(left.constant, right.constant), p_method=p.method, units=units.description,
    )  # fmt: skip


def null_of_best(
    a: Layers, b: Layers, metric: str | Metric, *, draws: int = 200, groups: Groups | None = None,
    blocks: Blocks | None = None, seed: int = 0,
) -> Tensor:  # fmt: skip
    """[draws] best value over the layer grid after relabelling the samples of b, the same way in all its layers."""
    check_paired(a, b)
    units = Units.of(a.n, groups, blocks)
    metric = get_metric(metric).for_units(units)
    return _null(a, b, metric, units, draws, seed)


def held_out(
    features_a: LayerFeatures,
    features_b: LayerFeatures,
    metric: str | Metric,
    *,
    draws: int = 200,
    groups: Groups | None = None,
    blocks: Blocks | None = None,
    seed: int = 0,
    **options: Any,
) -> HeldOut:
    """Choose the best layer pair on a random half of the samples, and score and test that pair on the other half.

    The p-value concerns one pair chosen beforehand, so it needs no correction for the number of layers. Groups and
    blocks are left out whole; a series is cut into blocks of about sqrt(n) rows, which trade places.
    """
    chosen = get_metric(metric, **options)
    sides = dict(named_layers(features_a)), dict(named_layers(features_b))
    units = Units.of(len(next(iter(sides[0].values()))), groups, blocks)
    parts = units.parts(2, seed)
    picked, judged = ([{name: _rows(layer, part) for name, layer in side.items()} for side in sides] for part in parts)
    first, second = (prepare_layers(side, [chosen]) for side in picked)
    scores = layer_grid(first, second, chosen.for_units(units.of_rows(parts[0]))).scores
    row, column = best_pair(scores, chosen)
    pair = list(sides[0])[row], list(sides[1])[column]
    left, right = (prepare_layers({name: side[name]}, [chosen]) for name, side in zip(pair, judged, strict=True))
    rest = units.of_rows(parts[1])
    final = chosen.for_units(rest)
    score = float(layer_grid(left, right, final).scores)
    null = _null(left, right, final, rest, draws, seed + 1)
    p_value = permutation_p_value(score, null, higher_is_closer=chosen.higher_is_closer)
    return HeldOut(pair, score, float(null.mean()), p_value, left.n)


def chance_level(
    metric: str | Metric, x: Features, y: Features, *, draws: int = 200, groups: Groups | None = None,
    blocks: Blocks | None = None, seed: int = 0, **options: Any,
) -> tuple[float, float]:  # fmt: skip
    """Mean and standard deviation of the metric when rows are paired at random: exact where known, else from draws."""
    chosen = get_metric(metric, **options)
    left, right = (prepare_layers(side, [chosen]) for side in (x, y))
    grid = layer_grid(left, right, chosen)
    single = groups is None and blocks is None
    if single and grid.null_mean is not None and grid.null_std is not None:
        return float(grid.null_mean), float(grid.null_std)
    null = null_of_best(left, right, chosen, draws=draws, groups=groups, blocks=blocks, seed=seed)
    return float(null.mean()), float(null.std())


def _unmoved(grid: Grid) -> Tensor:
    """[L, M] pairs whose score is the same for every relabelling, up to rounding: one side has no order to lose."""
    assert grid.null_mean is not None
    assert grid.null_std is not None
    return grid.null_std <= ROUNDING + RELATIVE * grid.null_mean.abs()


def _quick_p_value(
    left: Layers, right: Layers, metric: Metric, grid: Grid, units: Units, most: int, seed: int, progress: Progress
) -> tuple[PValue, float]:
    """p-value of the null "moments" and what the score is by chance."""
    orders, rows, columns = progress(units.relabellings(most, seed)), left.of(metric), right.of(metric)
    if grid.null_mean is None or grid.null_std is None:
        drawn: list[float] = []
        values = (drawn.append(value) or value for value in metric.null_bests(rows, columns, orders))  # type: ignore[func-returns-value]
        score = float(grid.scores[best_pair(grid.scores, metric)])
        return resolved_p_value(score, values, higher_is_closer=metric.higher_is_closer), sum(drawn) / len(drawn)
    mean, unmoved = grid.null_mean, _unmoved(grid)
    std = torch.where(unmoved, math.inf, grid.null_std)  # such a pair has z = 0: no relabelling is further out
    row, column = best_pair(grid.scores, metric)
    chance = float(mean[row, column])
    z = ((grid.scores - mean) / std).nan_to_num(nan=-math.inf)
    shapes = metric.null_shapes(rows, columns)
    if shapes is not None:
        skewness, share = shapes
        tails = np.where(unmoved.numpy(), 1.0, pearson_tail(z.numpy(), skewness.nan_to_num(nan=0.0).numpy()))
        p = max(min(1.0, tails.size * float(tails.min())), SMALLEST)
        # a sample that carries much of both sides moves the score by itself, and no three moments tell how often
        trusted = np.where((share > _DOMINANT * std).numpy(), 1.0, tails)
        sure = max(min(1.0, tails.size * float(trusted.min())), SMALLEST)
        if p >= _SURE[1] or sure < _SURE[0]:
            p, of = (p, tails) if p >= _SURE[1] else (sure, trusted)
            tail = PValue(p, f"Pearson III tail of three exact moments, times {tails.size} pairs of layers")
            return _named(tail, np.unravel_index(of.argmin(), of.shape), (row, column), left, right), chance
    furthest = divmod(int(z.argmax()), z.shape[1])
    bound = _named(cantelli_bound(float(z.max()), z.numel()), furthest, (row, column), left, right)
    if bound.value * (most + 1) < 1:  # all relabellings together could not say less
        return bound, chance
    nulls = metric.null_grids(rows, columns, orders)
    rounding = ROUNDING + RELATIVE * grid.scores.abs()  # of a score, before it is divided by a small deviation
    largest = (float(((null - mean + rounding) / std).nan_to_num(nan=-math.inf).max()) for null in nulls)
    return _named(resolved_p_value(float(z.max()), largest), furthest, (row, column), left, right), chance


def _named(p: PValue, judged: Sequence[Any], best: tuple[int, int], left: Layers, right: Layers) -> PValue:
    """With the pair that was judged in its words, where that is not the best one."""
    row, column = (int(place) for place in judged)
    if (row, column) == best:
        return p
    return PValue(p.value, f"of {left.names[row]} x {right.names[column]}, furthest beyond its chance: {p.method}")


def _null(
    a: Layers, b: Layers, metric: Metric, units: Units, draws: int, seed: int, progress: Progress = iter
) -> Tensor:
    """[draws] best value over the grid for each order of the samples of b."""
    orders = progress(units.relabellings(draws, seed))
    return torch.tensor(list(metric.null_bests(a.of(metric), b.of(metric), orders)), dtype=torch.float64)


def _rows(layer: Features, rows: Tensor) -> Features:
    values = as_floats(layer)
    return values[rows.to(values.device)]
