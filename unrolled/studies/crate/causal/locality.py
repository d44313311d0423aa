"""How local the effect of a removal is, over classes and patches, and whether heads are of the class they mark."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unrolled.studies.cells import Result

Floats = NDArray[np.float64]
_FOLDS, _SHUFFLES, _RELABELLINGS = 20, 20, 2000


def effective_number(amounts: Tensor) -> Tensor:
    """(sum |a|)^2 / sum a^2 over the last dimension, `[..., m]` to `[...]`: m where all are alike, 1 of a single one.

    NaN where all are 0.
    """
    sizes = amounts.double().abs()
    return sizes.sum(-1).square() / sizes.square().sum(-1)


def class_means(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Means of `values` [..., n] over the samples of each class, [..., classes]; NaN of a class without any."""
    members = torch.nn.functional.one_hot(labels, classes).to(values)
    return values @ members / members.sum(0)


def class_numbers(change: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The effective number of classes whose mean changes, and the same under shuffled labels.

    Means of few samples differ by chance alone, the more so where the change is small: the number under shuffled labels
    has the same noise and no classes, and is what the first is to be divided by.

    Args:
        change: of a score of every sample, `[places, n]`.
        labels: int64 `[n]`.

    Returns:
        Two `[places]`, the second a mean over shuffles of the labels.
    """
    _, labels = labels.unique(return_inverse=True)  # of classes that occur
    classes = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(_SHUFFLES)]
    shuffled = [effective_number(class_means(change, labels[order], classes)) for order in orders]
    return effective_number(class_means(change, labels, classes)), torch.stack(shuffled).mean(0)


def classes_left(change: Tensor, labels: Tensor) -> float:
    """Mean effective number of classes over places, over that under shuffled labels: 1 if no class is hit more."""
    real, shuffled = class_numbers(change, labels)
    return float(real.nanmean() / shuffled.nanmean())


def jackknife(statistic: Callable[[Tensor], float], samples: int, folds: int = _FOLDS) -> tuple[float, float]:
    """A statistic of all samples and its standard error, from leaving out one fold of them at a time.

    Args:
        statistic: from the places of the samples used, int64 `[m]`, to a number.
        samples: how many there are.
        folds: they are dealt into in turn, so that sorted ones do not matter.
    """
    every = torch.arange(samples)
    folds = min(folds, samples)
    without = np.array([statistic(every[every % folds != fold]) for fold in range(folds)])
    error = float(np.sqrt((folds - 1) / folds * np.square(without - without.mean()).sum()))
    return statistic(every), error


def marked_classes(marks: Floats, falls: Floats, seed: int = 0) -> Result:
    """Whether the class that a head marks most is the one that falls when the head is removed.

    Heads that matter to all classes, and classes that suffer from every removal, are taken out first: rows and columns
    of both tables are centred, so that only *this* head for *this* class is left. The null gives the classes of the
    marks other names, the same for all heads.

    Args:
        marks: `[heads, classes]`, how much of a head's attention a class gets.
        falls: `[heads, classes]`, by how much its score falls without the head, on other samples.
        seed: of the relabellings.

    Returns:
        `fall`: centred fall of the class with the largest centred mark, mean over heads; `correlation` of the centred
        tables; `p`, two-sided for the correlation; `null_low` and `null_high`, ends of the middle 95 % of `fall` when
        classes are renamed.
    """
    one, other = _interaction(marks), _interaction(falls)
    rng = np.random.default_rng(seed)

    def of(order: NDArray[np.int64]) -> tuple[float, float]:
        named = one[:, order]
        size = np.linalg.norm(named) * np.linalg.norm(other)
        fall = float(np.take_along_axis(other, named.argmax(1)[:, None], 1).mean())
        return fall, float((named * other).sum() / size) if size > 0 else 0.0

    fall, correlation = of(np.arange(marks.shape[1]))
    null = np.array([of(rng.permutation(marks.shape[1])) for _ in range(_RELABELLINGS)])
    low, high = np.quantile(null[:, 0], [0.025, 0.975])
    p = (1 + int((np.abs(null[:, 1]) >= abs(correlation) - 1e-12).sum())) / (1 + _RELABELLINGS)
    return {"fall": fall, "correlation": correlation, "p": p, "null_low": float(low), "null_high": float(high)}


def _interaction(table: Floats) -> Floats:
    centred = table - table.mean(1, keepdims=True)
    return np.asarray(centred - centred.mean(0, keepdims=True))
