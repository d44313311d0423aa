"""Scores of all pairs of models with their chance level, and how they depend on what the models can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from unrolled.alignment.dependence import Blocks, Groups
    from unrolled.alignment.metric import Metric

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All pairs of m models, [m, m] each and symmetric, or of m models with q others, [m, q].

    Attributes:
        score: alignment of the best pair of layers.
        chance: its mean when samples are relabelled, the search over layers repeated.
        p_value: share of relabellings that reach the score, the data counted as one; 1 on the diagonal.
    """

    score: Array
    chance: Array
    p_value: Array

    @property
    def gain(self) -> Array:
        """Score above chance, as a share of what is possible: 0 at chance, 1 for identical features."""
        return (self.score - self.chance) / (1 - self.chance)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a cell."""
        return {"score": self.score.tolist(), "chance": self.chance.tolist(), "p_value": self.p_value.tolist()}

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Pairs:
        """From `to_dict`."""
        return cls(**{name: np.asarray(kept[name], dtype=np.float64) for name in ("score", "chance", "p_value")})


def pair_scores(
    models: Sequence[Mapping[str, Tensor]],
    metric: str | Metric,
    *,
    against: Sequence[Mapping[str, Tensor]] | None = None,
    draws: int = 0,
    groups: Groups | None = None,
    blocks: Blocks | None = None,
    seed: int = 0,
) -> Pairs:
    """Align every model with every other, every layer prepared once.

    Args:
        models: layers [n, d] of each, of the same samples.
        against: align the models with these instead of with each other.
        metric: a symmetric one for which higher is closer.
        draws: relabellings of the samples, the same ones for all pairs; without any, chance and p-values are NaN.
        groups, blocks: which samples depend on each other, as in `alignment.compare`.

    Raises:
        ValueError: a metric of another sort, or different numbers of samples.
    """
    from unrolled.alignment.dependence import Units
    from unrolled.alignment.registry import get_metric

    chosen = get_metric(metric)
    if not (chosen.symmetric and chosen.higher_is_closer):
        raise ValueError(f"metric={chosen!r}: must be symmetric, and higher must mean closer")
    everyone = [*models, *(against or ())]
    samples = {len(next(iter(layers.values()))) for layers in everyone}
    if len(samples) != 1:
        raise ValueError(f"models have {sorted(samples)} samples: rows must be the same samples")
    rows, row_of = _prepared(models, chosen)
    columns, column_of = (rows, row_of) if against is None else _prepared(against, chosen)

    def scores(grid: Tensor) -> Array:
        best = _best(grid, row_of, column_of)
        # one draw a pair: below the diagonal the order is inverted, and the mean of two draws would vary too little
        return np.triu(best) + np.triu(best, 1).T if against is None else best

    score = scores(chosen.grid(rows, columns))
    total, reached = np.zeros_like(score), np.zeros_like(score)
    units = Units.of(samples.pop(), groups, blocks)
    for grid in chosen.null_grids(rows, columns, units.relabellings(draws, seed)):
        null = scores(grid)
        total += null
        reached += null >= score - 1e-7 - 1e-6 * np.abs(score)
    p_value = (1 + reached) / (draws + 1) if draws else np.full_like(score, math.nan)
    chance = total / draws if draws else np.full_like(score, math.nan)
    if against is None:
        np.fill_diagonal(p_value, 1.0)
    return Pairs(score=score, chance=chance, p_value=p_value)


def _prepared(models: Sequence[Mapping[str, Tensor]], metric: Metric) -> tuple[list[Any], list[int]]:
    """Prepared layers of all models in a row, and the place of the model each belongs to."""
    from unrolled.alignment.layers import prepare_layers

    prepared: list[Any] = []
    owner: list[int] = []
    for place, layers in enumerate(models):
        own = prepare_layers(layers, [metric]).of(metric)
        prepared += own
        owner += [place] * len(own)
    return prepared, owner


def _best(grid: Tensor, row_of: Sequence[int], column_of: Sequence[int]) -> Array:
    """[layers, layers] to the best pair of layers of each pair of models, [m, q]."""
    filled = torch.nan_to_num(grid, nan=-math.inf)
    rows, columns = (torch.as_tensor(owner, device=grid.device) for owner in (row_of, column_of))
    tall = filled.new_full((int(rows.max()) + 1, filled.shape[1]), -math.inf)
    tall = tall.scatter_reduce(0, rows[:, None].expand_as(filled), filled, "amax")
    best = tall.new_full((len(tall), int(columns.max()) + 1), -math.inf)
    best = best.scatter_reduce(1, columns[None, :].expand_as(tall), tall, "amax")
    return np.asarray(best.cpu().numpy(), dtype=np.float64)


def spearman(x: Any, y: Any) -> float:
    """Rank correlation of the finite pairs; NaN where a side is constant or fewer than three remain."""
    from scipy.stats import spearmanr

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = np.isfinite(a) & np.isfinite(b)
    if keep.sum() < 3 or np.ptp(a[keep]) == 0 or np.ptp(b[keep]) == 0:
        return math.nan
    return float(spearmanr(a[keep], b[keep]).statistic)


def over_models(
    statistic: Callable[[np.ndarray[Any, np.dtype[np.int64]]], float], models: int, *, draws: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic of the models drawn, since the pairs of one model are not independent.

    Args:
        statistic: from the places of the models drawn, with repetitions, to a number; a NaN is left out.
        models: how many there are to draw from.

    Returns:
        both ends, NaN if fewer than half of the draws gave a number.
    """
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(models, size=models)) for _ in range(draws)])
    values = values[np.isfinite(values)]
    if len(values) < draws / 2:
        return math.nan, math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def pair_places(
    chosen: np.ndarray[Any, np.dtype[np.int64]], allowed: np.ndarray[Any, np.dtype[np.bool_]]
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Rows and columns of the allowed pairs among `chosen` models; a model drawn twice makes no pair with itself."""
    first, second = np.triu_indices(len(chosen), k=1)
    rows, columns = chosen[first], chosen[second]
    keep = (rows != columns) & allowed[rows, columns]
    return rows[keep], columns[keep]


def mean_interval(values: Array, *, draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of values [n] with a 95 % bootstrap interval over them."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(len(values), size=(draws, len(values)))].mean(1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def classical_mds(distance: Array) -> tuple[Array, float]:
    """Points [m, 2] whose distances are near the given ones (Torgerson 1952), and the share of variance they hold."""
    squared = np.square(distance)
    centred = squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-0.5 * centred)
    top = np.argsort(values)[::-1][:2]
    positive = np.clip(values, 0, None)
    points = vectors[:, top] * np.sqrt(positive[top])
    return points, float(positive[top].sum() / positive.sum()) if positive.sum() > 0 else 0.0


def interval(entry: Mapping[str, Any]) -> str:
    """`0.61 [0.40, 0.78]` from `rho`, `low` and `high`."""
    return f"{number(entry['rho'], 2)} [{number(entry['low'], 2)}, {number(entry['high'], 2)}]"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, `not run` for None and `undefined` for NaN."""
    if value is None:
        return "not run"
    return f"{value:.{digits}f}" if math.isfinite(value) else "undefined"


def competence_of(rows: list[dict[str, Any]]) -> Any:
    """[m] transfer accuracy of the members, or their probe's on their own data where there are no others."""
    transfers = all(row["transfer"] is not None for row in rows)
    return np.array([row["transfer"] if transfers else row["probe"] for row in rows])


def sound_of(rows: list[dict[str, Any]]) -> Any:
    """[m] whether a member was taught true labels of all classes."""
    return np.array([row["member"]["taught"] == "labels" and not row["member"]["classes"] for row in rows])
