"""Classifiers on frozen features: logistic regression, nearest neighbours, ridge; tuned on held-out training samples.

Shapes: training features [n, d], queries [m, d], labels [n]. Nothing here sees the labels of the queries.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unrolled.instruments.readouts.probes import widen
from unrolled.ops.rows import unit_rows
from unrolled.ops.top_k import top_k
from unrolled.tables import Brief

LOGISTIC_PENALTIES = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Tried by `logistic`, for a sample's mean loss and standardised features; from strong to weak."""
RIDGE_PENALTIES = tuple(10.0**power for power in range(-8, 3))
"""Tried by `ridge`, relative to the mean eigenvalue of the features' Gram matrix."""

_TOLERANCE = 1e-6  # of the gradient; at scikit-learn's 1e-4 a weak penalty hardly moves from the stronger one before it
_SCORES = 2**24  # similarities held at a time


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Classified(Brief):
    """What a classifier says of the queries.

    Attributes:
        predicted: int64 [m].
        held_out: its accuracy on the held-out training samples, fitted without them.
        setting: what was chosen there, in words; empty where there was nothing to choose.
        tried: setting -> held-out accuracy.
        converged: whether the fit ended by its tolerance and not by its limit of steps.
    """

    predicted: Tensor
    held_out: float
    setting: str = ""
    tried: dict[str, float]
    converged: bool = True


Classifier = Callable[[Tensor, Tensor, Tensor, Tensor], Classified]
"""Training features, labels, indices of the held-out training samples, queries."""


def logistic(
    x: Tensor,
    labels: Tensor,
    held: Tensor,
    queries: Tensor,
    *,
    penalties: Sequence[float] = LOGISTIC_PENALTIES,
    max_iter: int = 1000,
) -> Classified:
    """Logistic regression on standardised features, its penalty chosen on `held`, then fitted on all of `x`.

    Features are standardised by the samples that are fitted, so that the choice knows nothing of the held-out ones.

    Args:
        x: training features [n, d].
        labels: integers [n].
        held: indices of the training samples held out for the choice.
        queries: features [m, d].
        penalties: p of the objective mean cross-entropy + p / 2 |weights|^2. Of equally good ones the strongest wins.
        max_iter: most steps of L-BFGS for one penalty.

    Raises:
        ValueError: shapes that do not fit, fewer than two classes, or a penalty that is not positive.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fit = _division(x, labels, held, queries)
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties={tuple(penalties)}: give at least one, all positive")
    features, asked = widen(x).cpu(), widen(queries).cpu()
    target = labels.cpu().numpy()

    def solve(rows: Tensor | slice, order: Sequence[float]) -> list[tuple[Callable[[Tensor], np.ndarray], bool]]:
        mean, spread = features[rows].mean(0), features[rows].std(0, correction=0)
        spread[spread == 0] = 1
        part, want = ((features[rows] - mean) / spread).numpy(), target[rows]
        solutions = []
        model = LogisticRegression(max_iter=max_iter, warm_start=True, tol=_TOLERANCE)
        for penalty in order:
            model.set_params(C=1 / (penalty * len(want)))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                model.fit(part, want)
            weight, bias, classes = model.coef_.copy(), model.intercept_.copy(), model.classes_
            late = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
            solutions.append((_linear(weight, bias, classes, mean, spread), not late))
        return solutions

    order = sorted(penalties, reverse=True)
    scores = {}
    if len(np.unique(target[fit])) < 2:
        raise ValueError("labels: the training samples have one class only; give at least two")
    for penalty, (predict, _) in zip(order, solve(fit, order), strict=True):
        scores[f"penalty {penalty:g}"] = float((predict(features[held]) == target[held]).mean())
    best = int(np.argmax(list(scores.values())))
    predict, converged = solve(slice(None), order[: best + 1])[-1]  # along the path by which it was chosen
    name = list(scores)[best]
    return Classified(
        predicted=torch.from_numpy(predict(asked).astype(np.int64)),
        held_out=scores[name],
        setting=name,
        tried=scores,
        converged=converged,
    )


def ridge(
    x: Tensor, labels: Tensor, held: Tensor, queries: Tensor, *, penalties: Sequence[float] = RIDGE_PENALTIES
) -> Classified:
    """Least squares from centred features to one-hot labels, its ridge chosen on `held`, then fitted on all of `x`.

    Closed form: one eigendecomposition of the d x d Gram matrix serves every ridge. float64.

    Args:
        x, labels, held, queries: as in `logistic`.
        penalties: relative to the mean eigenvalue of the Gram matrix; positive. Of equally good ones the strongest
            wins.
    """
    fit = _division(x, labels, held, queries)
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties={tuple(penalties)}: give at least one, all positive")
    features, asked = widen(x), widen(queries)
    classes, target = labels.to(features.device).unique(return_inverse=True)
    wanted = F.one_hot(target, len(classes)).to(features.dtype)

    def solve(rows: Tensor | slice) -> Callable[[Tensor, float], Tensor]:
        part, want = features[rows], wanted[rows]
        mean, bias = part.mean(0), want.mean(0)
        values, vectors = torch.linalg.eigh((part - mean).mT @ (part - mean))
        values = values.clamp_min(0)
        shared = vectors.mT @ ((part - mean).mT @ (want - bias))
        scale = values.mean().clamp_min(torch.finfo(values.dtype).tiny)  # constant features: the commonest class

        def predict(rows: Tensor, penalty: float) -> Tensor:
            weight = shared / (values + penalty * scale)[:, None]
            return (((rows - mean) @ vectors) @ weight + bias).argmax(1)

        return predict

    order = sorted(penalties, reverse=True)
    trial = solve(fit)
    tried = {f"ridge {p:g}": float((trial(features[held], p) == target[held]).double().mean()) for p in order}
    best = int(np.argmax(list(tried.values())))
    name = list(tried)[best]
    predicted = classes[solve(slice(None))(asked, order[best])]
    return Classified(predicted=predicted.cpu(), held_out=tried[name], setting=name, tried=tried)


def neighbours(
    x: Tensor, labels: Tensor, held: Tensor, queries: Tensor, *, k: int = 20, temperature: float | None = 0.07
) -> Classified:
    """The classes of the `k` training samples of largest cosine vote.

    Args:
        x, labels, held, queries: as in `logistic`.
        k: neighbours; at most all there are.
        temperature: a neighbour of cosine s has exp(s / temperature) votes, as in DINO (arXiv 2104.14294); None: one
            vote each, equal counts decided by the sum of cosines.
    """
    fit = _division(x, labels, held, queries)
    if k < 1 or (temperature is not None and temperature <= 0):
        raise ValueError(f"k={k}, temperature={temperature}: both must be positive")
    classes, target = labels.to(x.device).unique(return_inverse=True)
    unit, asked = (unit_rows(part.float()) for part in (x, queries.to(x.device)))

    def vote(rows: Tensor | slice, wanted: Tensor) -> Tensor:
        base, of = unit[rows], target[rows]
        out = []
        for part in wanted.split(max(1, _SCORES // len(base))):
            scores, indices = top_k(part @ base.T, k)
            # the largest cosine counts 1, so that no exponential overflows
            weights = torch.ones_like(scores) if temperature is None else ((scores - scores[:, :1]) / temperature).exp()
            if temperature is None:  # less than one vote in all, and so only among equals
                weights = weights + scores / (2 * k + 1)
            votes = torch.zeros(len(part), len(classes), dtype=torch.float64, device=part.device)
            out.append(votes.scatter_add_(1, of[indices], weights.double()).argmax(1))
        return torch.cat(out)

    right = vote(fit, unit[held]) == target[held]
    predicted = classes[vote(slice(None), asked)]
    return Classified(predicted=predicted.cpu(), held_out=float(right.double().mean()), tried={})


def accuracy_interval(right: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy, resampling the `count` samples, of which `right` were right.

    The bootstrap distribution of a share is binomial, so its percentiles are exact and none is drawn.
    """
    from scipy.stats import binom

    if not 0 <= right <= count or count < 1:
        raise ValueError(f"right={right}, count={count}: give 0 <= right <= count, of at least one sample")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1")
    low, high = (float(binom.ppf(q, count, right / count)) / count for q in ((1 - level) / 2, (1 + level) / 2))
    return low, high


def _linear(
    weight: np.ndarray, bias: np.ndarray, classes: np.ndarray, mean: Tensor, spread: Tensor
) -> Callable[[Tensor], np.ndarray]:
    def predict(rows: Tensor) -> np.ndarray:
        scores = ((rows - mean) / spread).numpy() @ weight.T + bias
        return classes[(scores[:, 0] > 0).astype(int) if len(weight) == 1 else scores.argmax(1)]

    return predict


def _division(x: Tensor, labels: Tensor, held: Tensor, queries: Tensor) -> Tensor:
    """Indices of the training samples that are not held out, after everything was found to fit."""
    if x.ndim != 2 or queries.ndim != 2 or x.shape[1] != queries.shape[1]:
        raise ValueError(
            f"x and queries must be [n, d] and [m, d] of one d, got {tuple(x.shape)}, {tuple(queries.shape)}"
        )
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels must be {len(x)} integers, not {labels.dtype} {tuple(labels.shape)}")
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[held.cpu()] = False
    fit = rest.nonzero()[:, 0]
    if not len(held) or not len(fit):
        raise ValueError(f"held: {len(held)} of {len(x)} samples; hold out at least one and leave at least one")
    return fit
