"""One attempt at a translation: anchors, pseudo-pairs from codes relative to them, Procrustes, refinement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from unrolled.alignment.translation.anchors import Generator, centroids, matched, similarities
from unrolled.alignment.translation.frame import Array, unit_rows
from unrolled.theory.in_context import ridge_regression

_ROWS = 1024  # compared with all of the other side at a time: memory stays below _ROWS x 10,000 numbers


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of the method; the defaults are the paper's but for those that depend on how many rows there are.

    Attributes:
        width: principal directions of each side that are matched; fewer where a side has fewer.
        clusters: centroids of each side that are matched at a time.
        anchor_sets: k-means runs on each side whose matched centroids are put together.
        starts: of the quadratic assignment of each of them.
        rounds: of refinement.
        sample: rows of x whose neighbours are looked for in a round.
        neighbours: rows of y whose mean a row of x is mapped to; default: a hundredth of y, at most 50.
        rows: of each side that are looked at at most, drawn at random.
        tries: attempts on each control.
        ridge: of the linear map, in mean eigenvalues of the codes' second moments.

    Raises:
        ValueError: a number below its bound.
    """

    width: int = 64
    clusters: int = 20
    anchor_sets: int = 10
    starts: int = 30
    rounds: int = 100
    sample: int = 1000
    neighbours: int | None = None
    rows: int = 10_000
    tries: int = 3
    ridge: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = {"clusters": 3, "width": 2, "rows": 4, "rounds": 0}.get(name, 1)
            if name == "ridge":
                if not (isinstance(value, int | float) and value > 0 and math.isfinite(value)):
                    raise ValueError(f"ridge={value!r}: must be a finite number above 0")
            elif not (value is None and name == "neighbours") and not (
                isinstance(value, int) and not isinstance(value, bool) and value >= least
            ):
                raise ValueError(f"{name}={value!r}: must be a whole number of at least {least}")

    def neighbours_of(self, rows: int) -> int:
        """`neighbours`, or the default for so many rows of y."""
        return min(rows, self.neighbours or max(1, min(50, rows // 100)))


@dataclass(frozen=True)
class Pairs:
    """Codes of rows that are known to belong together, [k, w_x] and [k, w_y]; k is 0 without any."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Attempt:
    """What one attempt ended with.

    Attributes:
        rotation: [w_x, w_y] orthonormal, or with orthonormal columns or rows where the sides' widths differ.
        anchors: correlation of the matched anchors' similarities, mean over their sets; None where pairs were given.
        criterion: mean cosine of rows with the nearest row of the other side, over both directions.
    """

    rotation: Array
    anchors: float | None
    criterion: float


def attempt(x: Array, y: Array, pairs: Pairs, recipe: Recipe, generator: Generator) -> Attempt:
    """From codes x [n, w_x] and y [m, w_y] to a rotation."""
    k = recipe.neighbours_of(len(y))
    agreement: float | None
    if len(pairs):
        first, second, agreement = pairs.x, pairs.y, None
    else:
        first, second, agreement = _anchors(x, y, recipe, generator)
    relative_x, relative_y = (unit_rows(rows @ unit_rows(each).T) for rows, each in ((x, first), (y, second)))
    partners = np.concatenate([_partners(part, relative_y, y, k) for part in _parts(relative_x)])
    rotation = procrustes(x, partners, pairs)
    for _ in range(recipe.rounds):
        some = x[generator.permutation(len(x))[: recipe.sample]]
        step = procrustes(some, _partners(some @ rotation, y, y, k), pairs)
        rotation = _nearest_rotation(rotation + step)
    return Attempt(rotation, agreement, criterion(x, y, rotation))


def _anchors(x: Array, y: Array, recipe: Recipe, generator: Generator) -> tuple[Array, Array, float]:
    """Centroids of x and of y in the same order, all sets together, and the mean agreement of a set."""
    clusters = min(recipe.clusters, len(x) // 2, len(y) // 2)
    first, second, values = [], [], []
    for _ in range(recipe.anchor_sets):
        a, b = centroids(x, clusters, generator), centroids(y, clusters, generator)
        order, value = matched(similarities(a), similarities(b), starts=recipe.starts, generator=generator)
        first.append(a)
        second.append(b[order])
        values.append(value)
    return np.concatenate(first), np.concatenate(second), float(np.mean(values))


def criterion(x: Array, y: Array, rotation: Array) -> float:
    """Mean cosine of translated rows of x with the nearest row of y, and of rows of y with the nearest of those."""
    target = unit_rows(y)
    total, nearest = 0.0, np.full(len(y), -1.0)
    for part in _parts(x):
        cosines = unit_rows(part @ rotation) @ target.T
        total += float(cosines.max(1).sum())
        nearest = np.maximum(nearest, cosines.max(0))
    return 0.5 * (total / len(x) + float(nearest.mean()))


def expected_best(values: Sequence[float], tries: int) -> float:
    """Mean over all choices of `tries` of the values of the largest among them."""
    ordered, r = np.sort(values), min(tries, len(values))
    weights = np.array([math.comb(i, r - 1) for i in range(len(ordered))], dtype=np.float64)
    return float(ordered @ weights / weights.sum())


def linear_map(x: Array, y: Array, rotation: Array, pairs: Pairs, recipe: Recipe) -> Array:
    """[w_x, w_y] ridge regression from rows of x to their mean neighbours in y under `rotation`, and to pairs."""
    k = recipe.neighbours_of(len(y))
    partners = np.concatenate([_partners(part @ rotation, y, y, k) for part in _parts(x)])
    weight = math.sqrt(len(x) / len(pairs)) if len(pairs) else 1.0
    return ridge(np.concatenate([x, weight * pairs.x]), np.concatenate([partners, weight * pairs.y]), recipe.ridge)


def ridge(x: Array, y: Array, strength: float) -> Array:
    """[w_x, w_y] of x [n, w_x] and y [n, w_y]; `strength` in mean eigenvalues of x's second moments."""
    penalty = strength * float(np.square(x).sum()) / x.shape[1]
    fitted: Array = ridge_regression(torch.from_numpy(x), torch.from_numpy(y), penalty).mT.numpy()
    return fitted


def procrustes(x: Array, y: Array, pairs: Pairs | None = None) -> Array:
    """[w_x, w_y] that turns x [n, w_x] nearest to y [n, w_y]; known pairs together weigh as much as these rows."""
    covariance = x.T @ y / len(x)
    if pairs is not None and len(pairs):
        covariance = covariance + pairs.x.T @ pairs.y / len(pairs)
    return _nearest_rotation(covariance)


def _nearest_rotation(matrix: Array) -> Array:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    out: Array = left @ right
    return out


def _partners(queries: Array, keys: Array, values: Array, k: int) -> Array:
    """[q, w] mean of the values whose keys have the largest cosines with each query."""
    scores = queries @ unit_rows(keys).T
    nearest = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    out: Array = values[nearest].mean(1)
    return out


def _parts(rows: Array) -> Iterator[Array]:
    return (rows[i : i + _ROWS] for i in range(0, len(rows), _ROWS))
