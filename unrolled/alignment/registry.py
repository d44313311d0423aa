"""Alignment of representations: how alike two sets of features of the same samples are.

Plain functions `mutual_knn(x, y, k=10)` take features [n, d] (torch or NumPy, rows paired) and return a float. Each has
a metric object (`MutualKNN(k=10)`) with `prepare` and `compare` for many layers. A bare value says little: its level by
chance depends on n, d and the number of layer pairs tried, so report it through `unrolled.alignment.compare`.

Neighbour metrics and CKNNA use cosines of rows; CKA, SVCCA, RSA and the rest take rows as given. All computation
follows the device of the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from unrolled.alignment import legacy
from unrolled.alignment.function import FunctionMetric
from unrolled.alignment.kernels import CKA, RSA, compare_rdms, rdm
from unrolled.alignment.linear import PWCCA, SVCCA, Procrustes
from unrolled.alignment.matching import SoftMatching
from unrolled.alignment.metric import Features, Metric, Representation, prepare_features
from unrolled.alignment.neighbours import CKNNA, LCSKNN, CycleKNN, EditKNN, MutualKNN
from unrolled.alignment.predictivity import PLSPredictivity, RidgePredictivity, Stitching
from unrolled.errors import suggestion
from unrolled.plugins import load_plugin, plugins

METRICS: dict[str, type[Metric]] = {
    metric.name: metric
    for metric in (
        MutualKNN, CycleKNN, LCSKNN, EditKNN, CKNNA, CKA, SVCCA, PWCCA, Procrustes, SoftMatching, RSA,
        RidgePredictivity, PLSPredictivity, Stitching,
    )
}  # fmt: skip
_UNBIASED = "unbiased_cka"  # `cka` with an option


def metric_name(name: str) -> str:
    """The name that a metric has, of one in other case or with hyphens for underscores: `mutual_knn` of "Mutual-kNN".

    A metric whose name is spelled as given goes first. Of an unknown name the name itself.
    """
    spellings = (name, name.lower(), name.replace("-", "_"), name.lower().replace("-", "_"))
    return next(
        (each for each in spellings if each in METRICS or each == _UNBIASED or each in plugins("metrics")), name
    )


def metric_class(name: str) -> type[Metric] | None:
    """The class of a metric by its name, of this package or of one that adds to it; None for an unknown name.

    Raises:
        ValueError: a package adds something of that name which is no metric.
    """
    name = metric_name(name)
    if name == _UNBIASED:
        return CKA
    if name in METRICS:
        return METRICS[name]
    added: type[Metric] | None = load_plugin("metrics", name)
    if added is not None and not (isinstance(added, type) and issubclass(added, Metric)):
        raise ValueError(f"metric {name!r}: what the package adds is no subclass of unrolled.alignment.Metric")
    return added


def get_metric(metric: str | Metric | Callable[..., float], **options: Any) -> Metric:
    """Metric object from a name such as "mutual_knn" ("unbiased_cka" is "cka" with unbiased=True) and its options.

    Names are taken in any case, and with hyphens for underscores ("Mutual-kNN").

    A function of your own, of features [n, d_x] and [n, d_y], is taken as `FunctionMetric`; `options` are its keyword
    arguments, but for `higher_is_closer`, `range` and `symmetric`, which say what it is.

    Raises:
        ValueError: unknown name (the known ones are listed), options the metric does not have, or options given with
            an object.
    """
    if isinstance(metric, Metric):
        if options:
            raise ValueError(f"options {sorted(options)} given with a metric object: set them when making it")
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        return metric(**options)
    if callable(metric) and not isinstance(metric, type):
        return FunctionMetric(metric, **options)
    name = metric_name(metric) if isinstance(metric, str) else ""
    kind = metric_class(name)
    if name == _UNBIASED:
        options = {"unbiased": True, **options}
    if kind is None:
        hint = suggestion(str(metric), [*METRICS, _UNBIASED, *plugins("metrics")])
        raise ValueError(f"metric={metric!r} is not known; {hint}")
    known = list(inspect.signature(kind).parameters)
    for option in options:
        if option not in known:
            raise ValueError(f"{metric} has no option {option!r}: it has {', '.join(known) or 'none'}")
    return kind(**options)


def mutual_knn(x: Features, y: Features, k: int = 10) -> float:
    """Share of common k nearest neighbours, in [0, 1]; chance is k / (n - 1). See `MutualKNN`."""
    return MutualKNN(k=k)(x, y)


def cycle_knn(x: Features, y: Features, k: int = 10, *, direction: str = "y_then_x") -> float:
    """Share of samples found among the x-neighbours of their y-neighbours, in [0, 1]. See `CycleKNN`."""
    return CycleKNN(k=k, direction=direction)(x, y)


def lcs_knn(x: Features, y: Features, k: int = 10) -> float:
    """Mean longest common subsequence of neighbour lists as a share of k, in [0, 1]. See `LCSKNN`."""
    return LCSKNN(k=k)(x, y)


def edit_knn(x: Features, y: Features, k: int = 10) -> float:
    """One minus the mean Levenshtein distance of neighbour lists over k, in [0, 1]. See `EditKNN`."""
    return EditKNN(k=k)(x, y)


def cknna(x: Features, y: Features, k: int = 10) -> float:
    """Centred kernel alignment on common nearest neighbours, corrected, in [-1, 1]. See `CKNNA`."""
    return CKNNA(k=k)(x, y)


def cka(x: Features, y: Features, *, unbiased: bool = False, kernel: str = "linear", sigma: float = 1.0) -> float:
    """Centred kernel alignment, in [0, 1] (unbiased: in [-1, 1]). See `CKA`."""
    return CKA(unbiased=unbiased, kernel=kernel, sigma=sigma)(x, y)


def svcca(x: Features, y: Features, dims: int | float = 10, *, standardize: bool = False) -> float:
    """Mean canonical correlation of the leading principal subspaces, in [0, 1]. See `SVCCA`."""
    return SVCCA(dims=dims, standardize=standardize)(x, y)


def pwcca(x: Features, y: Features, dims: int | float = 0.99) -> float:
    """Projection-weighted canonical correlation with the weights of x, in [0, 1]. See `PWCCA`."""
    return PWCCA(dims=dims)(x, y)


def procrustes(x: Features, y: Features, *, kind: str = "angular", alpha: float = 1.0) -> float:
    """Shape distance, 0 for features equal up to offset, scale and rotation. See `Procrustes`."""
    return Procrustes(kind=kind, alpha=alpha)(x, y)


def soft_matching(x: Features, y: Features, *, kind: str = "correlation") -> float:
    """Mean correlation of units matched as well as can be, in [-1, 1]. See `SoftMatching`."""
    return SoftMatching(kind=kind)(x, y)


def rsa(x: Features, y: Features, *, method: str = "spearman", dissimilarity: str = "correlation") -> float:
    """Agreement of the two matrices of pairwise dissimilarities, in [-1, 1]. See `RSA`."""
    return RSA(method=method, dissimilarity=dissimilarity)(x, y)


def ridge_predictivity(x: Features, y: Features, *, alpha: float = 1.0, folds: int = 10, seed: int = 0) -> float:
    """Median held-out correlation of the columns of y with their ridge prediction from x. See `RidgePredictivity`."""
    return RidgePredictivity(alpha=alpha, folds=folds, seed=seed)(x, y)


def pls_predictivity(x: Features, y: Features, *, components: int = 25, folds: int = 10, seed: int = 0) -> float:
    """As `ridge_predictivity` with partial least squares. See `PLSPredictivity`."""
    return PLSPredictivity(components=components, folds=folds, seed=seed)(x, y)


def stitching(
    x: Features, y: Features, *, affine: bool = True, alpha: float = 1e-3, folds: int = 10, seed: int = 0
) -> float:
    """Held-out variance of y explained by a linear (affine) map of x, at most 1. See `Stitching`."""
    return Stitching(affine=affine, alpha=alpha, folds=folds, seed=seed)(x, y)


__all__ = [
    "CKA", "CKNNA", "LCSKNN", "METRICS", "PWCCA", "RSA", "SVCCA", "CycleKNN", "EditKNN", "Features", "Metric",
    "MutualKNN", "PLSPredictivity", "Procrustes", "Representation", "RidgePredictivity", "SoftMatching", "Stitching",
    "cka", "cknna", "compare_rdms", "cycle_knn", "edit_knn", "get_metric", "lcs_knn", "legacy", "mutual_knn",
    "pls_predictivity", "prepare_features", "procrustes", "pwcca", "rdm", "ridge_predictivity", "rsa", "soft_matching",
    "stitching", "svcca",
]  # fmt: skip
