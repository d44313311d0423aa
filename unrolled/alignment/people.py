"""Layers beside what people, or cells, find alike: representational similarity analysis with its noise ceiling.

Dissimilarities are compared by Spearman's correlation (Kriegeskorte et al. 2008, Nili et al. 2014), of every person by
themselves; a score is the mean over people. `beside_people` does all of it for the layers of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unrolled.ops.rows import unit_rows, varies

Array = NDArray[Any]
LARGEST = 4096
"""Stimuli at most: all their pairs are held for every layer and person, 8 bytes each."""
_FEWEST = 4


def upper(rdm: Array) -> Array:
    """The entries above the diagonal of [..., n, n], [..., n (n - 1) / 2] float64."""
    rows, columns = np.triu_indices(rdm.shape[-1], 1)
    return np.asarray(rdm, dtype=np.float64)[..., rows, columns]


def unit_ranks(values: Array) -> Array:
    """Ranks [..., m], centred and of unit length: the inner product of two such vectors is Spearman's correlation.

    What differs by less than 1e-12 of the largest value is tied, as it differs by rounding.
    """
    from scipy.stats import rankdata

    values = np.asarray(values, dtype=np.float64)
    largest = np.abs(values).max(-1, keepdims=True)
    ranks = rankdata((values / np.where(largest > 0, largest, 1.0)).round(12), axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    norm = np.linalg.norm(ranks, axis=-1, keepdims=True)
    out: Array = ranks / np.where(norm > 0, norm, 1.0)
    return out


def checked_rdms(rdms: Any, name: str) -> Array:
    """Dissimilarities [s, n, n] of s people or layers as float64, each of which tells pairs apart.

    Args:
        rdms: [s, n, n], or [n, n] of one.
        name: of the argument, for messages.

    Raises:
        ValueError: not square, fewer than 4 stimuli or more than `LARGEST`, not symmetric, not finite, or one in which
            all pairs are equally dissimilar, which has no order to correlate.
    """
    array = np.asarray(rdms, dtype=np.float64)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or not len(array) or array.shape[1] != array.shape[2]:
        raise ValueError(f"{name} must be [people, n, n] or [n, n] dissimilarities, got shape {np.shape(rdms)}")
    n = array.shape[-1]
    if n < _FEWEST:
        raise ValueError(
            f"{name} has {n} stimuli, {n * (n - 1) // 2} pairs: a correlation over pairs needs at least {_FEWEST} "
            "stimuli; give more"
        )
    if n > LARGEST:
        raise ValueError(f"{name} has {n:,} stimuli: at most {LARGEST:,} are compared; give some of them")
    off = ~np.eye(n, dtype=bool)
    for i, one in enumerate(array):
        values = one[off]
        if not np.isfinite(values).all():
            raise ValueError(f"{name}[{i}] has NaN or infinite dissimilarities: drop these stimuli on both sides")
        if not np.allclose(one, one.T, rtol=1e-4, atol=1e-6 * np.abs(values).max()):
            raise ValueError(f"{name}[{i}] is not symmetric: give (rdm + rdm.T) / 2")
        if np.ptp(values) <= 1e-6 * np.abs(values).max():
            raise ValueError(
                f"{name}[{i}] is constant: all pairs are equally dissimilar, so there is no order to compare; leave it "
                "out"
            )
    return array


def noise_ceiling(rdms: Array) -> tuple[float, float]:
    """Bounds of what a perfect model can score on people [s, n, n], by Spearman's correlation (Nili et al. 2014).

    Each person against the mean of the others' ranks (lower), and against the mean of all (upper); means over people.

    Raises:
        ValueError: one person, who has nobody to agree with; and as `checked_rdms`.
    """
    people = checked_rdms(rdms, "rdms")
    if len(people) < 2:
        raise ValueError("rdms: a noise ceiling is how well people agree; give at least 2 of them")
    ranks = unit_ranks(upper(people))
    together = ranks.sum(0)
    low = [float(unit_ranks(together - each) @ each) for each in ranks]
    high = [float(unit_ranks(together) @ each) for each in ranks]
    return float(np.mean(low)), float(np.mean(high))


def correlation_rdms(features: Sequence[torch.Tensor]) -> Array:
    """1 - Pearson correlation between samples for features [n, d] of each layer, [layers, n, n] float64.

    A row whose entries are equal, up to the rounding of their dtype, correlates with nothing: it is at distance 1 of
    all others.
    """
    out = []
    for layer in features:
        wide = layer.double()
        certain = varies((layer if layer.is_floating_point() else wide).mT)
        rows = unit_rows(torch.where(certain[:, None], wide - wide.mean(1, keepdim=True), 0))
        out.append((1 - rows @ rows.mT).fill_diagonal_(0).numpy())
    return np.stack(out)


@dataclass(frozen=True)
class Agreement:
    """How well layers' dissimilarities agree with people's.

    Attributes:
        by_layer: [layers] mean over people of Spearman's correlation.
        best: index of the best layer.
        score: of the best layer.
        tau: mean over people of Kendall's tau-a of the best layer.
        resampled: score of the best layer on every resampling of images and people.
        interval: 95 % of these.
        null: mean of the best layer's score after shuffling the images.
        p: share of shufflings whose best layer is at least as good, with the data as one of them.
    """

    by_layer: Array
    best: int
    score: float
    tau: float
    resampled: list[float]
    interval: tuple[float, float]
    null: float
    p: float


def agreement(layers: Array, people: Array, *, draws: int, seed: int = 0) -> Agreement:
    """Compare dissimilarities of layers [l, n, n] with those of people [s, n, n].

    The p-value is corrected for the choice of the best layer, since every shuffling chooses its own.

    Raises:
        ValueError: as `checked_rdms` of people.
    """
    from unrolled.alignment.kernels import compare_rdms

    people = checked_rdms(people, "people")
    ours, theirs = unit_ranks(upper(layers)), unit_ranks(upper(people))
    by_layer = (ours @ theirs.T).mean(1)
    best = int(by_layer.argmax())
    generator = np.random.default_rng(seed)
    shuffled = shuffled_best(ours, theirs.mean(0), people.shape[-1], draws, generator)
    resampled = [float(resampled_scores(layers[best : best + 1], people, generator)[0]) for _ in range(draws)]
    tau = np.mean([compare_rdms(torch.as_tensor(layers[best]), torch.as_tensor(one), "tau-a") for one in people])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Agreement(
        by_layer=by_layer,
        best=best,
        score=float(by_layer[best]),
        tau=float(tau),
        resampled=resampled,
        interval=(float(low), float(high)),
        null=float(np.mean(shuffled)),
        p=share_at_least(shuffled, by_layer[best]),
    )


def shuffled_best(ours: Array, theirs: Array, n: int, draws: int, generator: np.random.Generator) -> list[float]:
    """Best score of layers' unit ranks [l, m] with people's mean ones [m] after each shuffling of the stimuli."""
    ranks = np.zeros((n, n))
    rows, columns = np.triu_indices(n, 1)
    ranks[rows, columns] = theirs
    ranks += ranks.T
    scores = []
    for _ in range(draws):
        order = generator.permutation(n)
        scores.append(float((ours @ ranks[np.ix_(order, order)][rows, columns]).max()))
    return scores


def share_at_least(shuffled: Sequence[float], score: float) -> float:
    """Share of shufflings whose score is at least `score`, with the data as one of them."""
    return (1 + sum(value >= score - 1e-12 for value in shuffled)) / (len(shuffled) + 1)


def resampled_scores(models: Array, people: Array, generator: np.random.Generator) -> Array:
    """Scores [l] of [l, n, n] on images and people drawn with replacement, without pairs of an image with itself."""
    n = models.shape[-1]
    images = np.sort(generator.integers(n, size=n))
    while images[0] == images[-1]:  # of one image there are no pairs
        images = np.sort(generator.integers(n, size=n))
    rows, columns = np.triu_indices(n, 1)
    rows, columns = images[rows], images[columns]
    apart = rows != columns
    rows, columns = rows[apart], columns[apart]
    ours = unit_ranks(models[:, rows, columns])
    chosen, counts = np.unique(generator.integers(len(people), size=len(people)), return_counts=True)
    scores = ours @ unit_ranks(people[chosen][:, rows, columns]).T
    out: Array = scores @ counts / counts.sum()
    return out
