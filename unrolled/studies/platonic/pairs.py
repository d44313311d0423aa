"""Scores of all pairs of models with their chance level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.platonic.given import GivenFeatures
from unrolled.studies.platonic.zoo import Features
from unrolled.studies.results import Results

if TYPE_CHECKING:
    from unrolled.alignment.dependence import Blocks, Groups
    from unrolled.alignment.metric import Metric

Array = np.ndarray[Any, np.dtype[np.float64]]
_OPTIONS = {"rsa": {"dissimilarity": "cosine"}}


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

    @classmethod
    def of(cls, results: Results[Any], cell: PairScores | None) -> Pairs | None:
        """The results of a cell; None where it was not run."""
        for row in results.of(PairScores):
            if row.cell == cell:
                return cls(**{name: np.asarray(values, dtype=np.float64) for name, values in row.result.items()})
        return None


@dataclass(frozen=True, kw_only=True)
class PairScores(Cell):
    """Alignment of every model with every other, or with others.

    Attributes:
        of: the models' features.
        against: align them with these instead of with each other.
        metric: a symmetric one for which higher is closer.
        k: neighbours, of a metric that has them.
        last: compare the last layers, instead of the best pair of layers.
        draws: relabellings of the images; without any there are no chance and p-values.
    """

    of: tuple[Features, ...]
    against: tuple[Features | GivenFeatures, ...] = ()
    metric: str = "mutual_knn"
    k: int | None = None
    last: bool = False
    draws: int = 0

    def compute(self, context: Context) -> Result:
        """`score`, `chance` and `p_value` of `Pairs`, as lists."""
        from unrolled.alignment.registry import get_metric

        options = {**_OPTIONS.get(self.metric, {}), **({} if self.k is None else {"k": self.k})}
        models, others = ([self._layers(each, context) for each in side] for side in (self.of, self.against))
        metric = get_metric(self.metric, **options)
        pairs = pair_scores(models, metric, against=others or None, draws=self.draws)
        return {"score": pairs.score.tolist(), "chance": pairs.chance.tolist(), "p_value": pairs.p_value.tolist()}

    def _layers(self, features: Features | GivenFeatures, context: Context) -> dict[str, Tensor]:
        layers = dict(features.load(context))
        return dict([layers.popitem()]) if self.last else layers


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
        representations = prepare_layers(layers, [metric]).of(metric)
        prepared += representations
        owner += [place] * len(representations)
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
