"""Metrics of linear relation: canonical correlations, Procrustes shape distances, predictivity and stitching."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.dependence import Units
from unrolled.alignment.metric import Features, Metric, Representation, whole
from unrolled.ops.gram import accumulator
from unrolled.ops.rows import varies

_SMALL = 64  # side up to which a whole singular value decomposition is as fast as Lanczos steps


@dataclass(frozen=True)
class Subspace:
    """Leading principal subspace of centred features: orthonormal basis [n, r], spectrum [r], axes [r, d]."""

    basis: Tensor
    spectrum: Tensor
    axes: Tensor


class _CCA(Metric):
    """Canonical correlations of leading principal subspaces, by SVD and therefore without seeds or iterations."""

    invariances = frozenset({"rotation", "scale", "offset", "permutation"})

    def __init__(self, *, dims: int | float, standardize: bool = False):
        if not (isinstance(dims, int) and dims >= 1) and not (isinstance(dims, float) and 0 < dims <= 1):
            raise ValueError(f"dims must be a number of components >= 1 or a share of variance in (0, 1], got {dims!r}")
        self.dims, self.standardize = dims, standardize

    def prepare(self, x: Features | Representation) -> Subspace:
        """Principal subspace kept by `dims`, never more than the numerical rank."""
        rep = Representation.of(x)
        centred = rep.centred.to(accumulator(rep.x))
        if self.standardize:
            kept = centred[:, varies(rep.x)]
            centred = kept / kept.std(0)
        basis, spectrum, axes = torch.linalg.svd(centred, full_matrices=False)
        rank = int((spectrum > spectrum[0] * max(centred.shape) * torch.finfo(rep.x.dtype).eps).sum())
        if isinstance(self.dims, int):
            keep = min(self.dims, rank)
        else:
            share = spectrum.square().cumsum(0) / spectrum.square().sum()
            keep = min(int((share < self.dims - 1e-12).sum()) + 1, rank)
        return Subspace(basis[:, :keep], spectrum[:keep], axes[:keep])

    def relabel(self, prepared: Subspace, order: Tensor) -> Subspace:
        """The samples in another order."""
        return Subspace(prepared.basis[order.to(prepared.basis.device)], prepared.spectrum, prepared.axes)


class SVCCA(_CCA):
    """Mean canonical correlation of the leading principal subspaces (Raghu et al. 2017).

    Args:
        dims: components kept on each side, or the share of variance they must explain (0.99 in that paper).
        standardize: give columns unit variance first, as the code of Huh et al. 2024 does; this forgoes invariance to
            rotation.

    The mean is over the smaller of the two numbers of components. Two subspaces whose dimensions add up to n - 1 or
    more always intersect, so keep `dims` well below n / 2.
    """

    name: ClassVar[str] = "svcca"

    def __init__(self, *, dims: int | float = 10, standardize: bool = False):
        super().__init__(dims=dims, standardize=standardize)
        if standardize:
            self.invariances = frozenset({"scale", "offset", "permutation"})

    def compare(self, a: Any, b: Any) -> float:
        """Mean correlation in [0, 1]."""
        _warn_if_full(a, b)
        return float(torch.linalg.svdvals(a.basis.T @ b.basis).clamp(max=1).mean())


class PWCCA(_CCA):
    """Canonical correlations weighted by how much of x each canonical direction of x accounts for (Morcos et al. 2018).

    The weight of direction h is sum_j |<h, x_j>| over the columns of x. Not symmetric: the weights are those of x.
    """

    name: ClassVar[str] = "pwcca"
    symmetric = False
    invariances = frozenset({"scale", "offset", "permutation"})

    def __init__(self, *, dims: int | float = 0.99):
        super().__init__(dims=dims)

    def compare(self, a: Any, b: Any) -> float:
        """Weighted mean correlation in [0, 1]."""
        _warn_if_full(a, b)
        left, correlations, _ = torch.linalg.svd(a.basis.T @ b.basis, full_matrices=False)
        weights = (left.T @ (a.spectrum[:, None] * a.axes)).abs().sum(1)
        return float((weights * correlations.clamp(max=1)).sum() / weights.sum())


def _warn_if_full(a: Subspace, b: Subspace) -> None:
    n = a.basis.shape[0]
    if a.basis.shape[1] + b.basis.shape[1] >= n:
        warnings.warn(
            f"subspaces of {a.basis.shape[1]} and {b.basis.shape[1]} dimensions among {n} samples correlate perfectly "
            "whatever the data: lower dims or give more samples",
            stacklevel=3,
        )


class Procrustes(Metric):
    """Distance between shapes: features up to offset, scale and rotation (Williams et al. 2021).

    With x and y centred and of unit Frobenius norm, s = |x'y|_* is the best overlap over rotations.

    Args:
        kind: "angular" arccos(s) in [0, pi/2], a metric in the mathematical sense; "euclidean" sqrt(2 - 2 s); or
            "similarity" s itself.
        alpha: 1 compares shapes; towards 0 features are whitened first, so that alpha=0 compares subspaces as CCA does.
            In between, singular values s become alpha s + (1 - alpha) |s| / sqrt(rank), which no scale of the features
            changes. netrep has alpha s + (1 - alpha): its distance is this one only for centred features of Frobenius
            norm sqrt(rank), and for others depends on their scale.
    """

    name: ClassVar[str] = "procrustes"

    def __init__(self, *, kind: str = "angular", alpha: float = 1.0):
        if kind not in ("angular", "euclidean", "similarity"):
            raise ValueError(f"kind must be 'angular', 'euclidean' or 'similarity', got {kind!r}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
        self.kind, self.alpha = kind, alpha
        self.invariances = frozenset(
            {"rotation", "scale", "offset", "permutation"} | ({"linear"} if alpha == 0 else set())
        )

    @property
    def range(self) -> tuple[float, float]:  # type: ignore[override]
        """Depends on `kind`."""
        return (0.0, {"angular": math.pi / 2, "euclidean": math.sqrt(2), "similarity": 1.0}[self.kind])

    @property
    def higher_is_closer(self) -> bool:  # type: ignore[override]
        """Only for "similarity"."""
        return self.kind == "similarity"

    def prepare(self, x: Features | Representation) -> Tensor:
        """[n, r] centred features of unit norm, up to rotation."""
        rep = Representation.of(x)
        centred: Tensor = rep.centred.to(accumulator(rep.x))
        centred = centred / centred.norm()
        if self.alpha < 1 or rep.d > rep.n:
            basis, spectrum, _ = torch.linalg.svd(centred, full_matrices=False)
            kept = spectrum > spectrum[0] * max(centred.shape) * torch.finfo(rep.x.dtype).eps
            basis, spectrum = basis[:, kept], spectrum[kept]
            # whitening makes all directions equal; the factor keeps both terms on one scale
            spectrum = self.alpha * spectrum + (1 - self.alpha) * spectrum.norm() / math.sqrt(len(spectrum))
            centred = basis * spectrum
        shape: Tensor = centred / centred.norm()
        return shape

    def compare(self, a: Any, b: Any) -> float:
        """Distance (or similarity) of two prepared representations."""
        overlap = min(1.0, float(torch.linalg.svdvals(a.T @ b).sum()))
        if self.kind == "similarity":
            return overlap
        return math.acos(overlap) if self.kind == "angular" else math.sqrt(max(0.0, 2 - 2 * overlap))

    def relabel(self, prepared: Tensor, order: Tensor) -> Tensor:
        """The samples in another order."""
        return prepared[order.to(prepared.device)]


class _CrossValidated(Metric):
    """Prediction of y from x on held-out folds; not symmetric."""

    symmetric = False
    min_samples = 4

    def __init__(self, *, folds: int = 10, seed: int = 0):
        folds, seed = whole("folds", folds), whole("seed", seed)
        if folds < 2:
            raise ValueError(f"folds must be at least 2, got {folds}")
        self.folds, self.seed = folds, seed
        self._units: Units | None = None

    def prepare(self, x: Features | Representation) -> Tensor:
        """[n, d] features of unit root-mean-square, so that penalties do not depend on scale."""
        rep = Representation.of(x, min_samples=self.min_samples)
        wide = rep.moderate[0].to(accumulator(rep.x))
        wide = torch.where(varies(rep.x), wide, wide[0])  # nothing is fitted to the rounding of a constant column
        return wide / rep.centred.to(wide).square().mean().sqrt()

    def relabel(self, prepared: Tensor, order: Tensor) -> Tensor:
        """The samples in another order."""
        return prepared[order.to(prepared.device)]

    def for_units(self, units: Units) -> _CrossValidated:
        """This metric with folds of whole units."""
        other = copy.copy(self)
        other._units = units
        return other

    def _splits(self, n: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        units = self._units if self._units is not None else Units(n)
        parts = [part.to(device) for part in units.parts(min(self.folds, units.count), self.seed)]
        for i, test in enumerate(parts):
            yield torch.cat([p for j, p in enumerate(parts) if j != i]), test


class RidgePredictivity(_CrossValidated):
    """Median over the columns of y of the correlation between y and its ridge prediction from x, held out.

    Args:
        alpha: penalty on squared weights, for features of unit root-mean-square (features are rescaled as a whole).
        folds: held-out parts; predictions of all parts are pooled before correlating. `seed` shuffles the samples once.

    Columns of y without variance are left out.
    """

    name: ClassVar[str] = "ridge_predictivity"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    invariances = frozenset({"scale", "offset", "permutation"})

    def __init__(self, *, alpha: float = 1.0, folds: int = 10, seed: int = 0):
        super().__init__(folds=folds, seed=seed)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha = alpha

    def compare(self, a: Any, b: Any) -> float:
        """Median correlation of predicting b from a."""
        prediction = torch.empty_like(b)
        for train, test in self._splits(a.shape[0], a.device):
            # constants per fold cancel only if each fold's own training mean is used for both sides
            prediction[test] = _ridge(a[train], b[train], a[test], self.alpha, offset=True)
        return _median_correlation(prediction, b)


class PLSPredictivity(_CrossValidated):
    """As `RidgePredictivity`, with partial least squares (PLS2) on `components` latent variables.

    Equal to scikit-learn's where that has converged, except that components end where the training rows of x, or what
    is left to be predicted of y, hold nothing but rounding. A further one is divided by that rounding, and predicts at
    will for a held-out row that alone differs in some direction, such as the one row of zeros beside a constant column.
    """

    name: ClassVar[str] = "pls_predictivity"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    invariances = frozenset({"scale", "offset", "permutation"})

    def __init__(self, *, components: int = 25, folds: int = 10, seed: int = 0):
        super().__init__(folds=folds, seed=seed)
        components = whole("components", components)
        if components < 1:
            raise ValueError(f"components must be positive, got {components}")
        self.components = components

    def compare(self, a: Any, b: Any) -> float:
        """Median correlation of predicting b from a."""
        prediction = torch.empty_like(b)
        for train, test in self._splits(a.shape[0], a.device):
            prediction[test] = _pls(a[train], b[train], a[test], self.components)
        return _median_correlation(prediction, b)


class Stitching(_CrossValidated):
    """Share of the variance of y that a linear map of x explains on held-out samples, all columns pooled (R^2).

    Args:
        affine: fit an offset too; otherwise the map is linear and offsets matter.
        alpha: ridge penalty, small by default so that the map is close to least squares.
    """

    name: ClassVar[str] = "stitching"
    range: ClassVar[tuple[float, float]] = (-math.inf, 1.0)

    def __init__(self, *, affine: bool = True, alpha: float = 1e-3, folds: int = 10, seed: int = 0):
        super().__init__(folds=folds, seed=seed)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.affine, self.alpha = affine, alpha
        self.invariances = frozenset({"rotation", "scale", "permutation"} | ({"offset"} if affine else set()))

    def compare(self, a: Any, b: Any) -> float:
        """Held-out R^2 of mapping a to b."""
        missed = total = 0.0
        for train, test in self._splits(a.shape[0], a.device):
            prediction = _ridge(a[train], b[train], a[test], self.alpha, offset=self.affine)
            missed += float((b[test] - prediction).square().sum())
            total += float((b[test] - b[train].mean(0)).square().sum())
        return 1 - missed / total


def _ridge(x: Tensor, y: Tensor, at: Tensor, alpha: float, *, offset: bool) -> Tensor:
    """Ridge prediction at new rows, through whichever of the d x d or n x n systems is smaller."""
    x_mean, y_mean = (x.mean(0), y.mean(0)) if offset else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
    x, y, at = x - x_mean, y - y_mean, at - x_mean
    n, d = x.shape
    system = x.T @ x if d <= n else x @ x.T
    # a smaller penalty is lost in the rounding of the products, and whether a factor exists would hang on that rounding
    system.diagonal().add_(max(alpha, len(system) * torch.finfo(x.dtype).eps * float(system.trace())))
    factor = torch.linalg.cholesky(system)
    weights = torch.cholesky_solve(x.T @ y, factor) if d <= n else x.T @ torch.cholesky_solve(y, factor)
    return at @ weights + y_mean


def _pls(x: Tensor, y: Tensor, at: Tensor, components: int) -> Tensor:
    """PLS2 prediction at new rows, by deflating x'y alone (Dayal and MacGregor 1997)."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    # what float32 features hold below this is their rounding, and so is the norm of a score from it
    floor = torch.finfo(torch.float32).eps * float(x.norm())
    x, at = x - x_mean, at - x_mean
    cross = x.T @ (y - y_mean)
    enough = 1e-10 * float(cross.norm())
    weights = x.new_zeros(x.shape[1], y.shape[1])
    rotations, loadings = x.new_zeros(0, x.shape[1]), x.new_zeros(0, x.shape[1])
    for _ in range(min(components, *x.shape)):
        if not float(cross.norm()) > enough:
            break
        direction = _leading(cross)
        rotation = direction - rotations.T @ (loadings @ direction)
        score = x @ rotation
        size = score.square().sum()
        if not float(size) > floor**2:
            break
        loading = score @ x / size
        gain = rotation @ cross / size
        cross = cross - torch.outer(loading, gain) * size
        weights += torch.outer(rotation, gain)
        rotations, loadings = (
            torch.cat([rows, new[None]]) for rows, new in ((rotations, rotation), (loadings, loading))
        )
    return at @ weights + y_mean


def _leading(matrix: Tensor) -> Tensor:
    """Unit left singular vector of the largest singular value."""
    if matrix.shape[1] == 1:
        return matrix[:, 0] / matrix.norm()
    if min(matrix.shape) <= _SMALL:
        return torch.linalg.svd(matrix, full_matrices=False)[0][:, 0]
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    return torch.from_numpy(svds(matrix.cpu().numpy(), k=1, v0=start)[0][:, 0].copy()).to(matrix)


def _median_correlation(prediction: Tensor, y: Tensor) -> float:
    varies = (y - y[0]).abs().amax(0) > 0
    p, t = prediction[:, varies], y[:, varies]
    p, t = p - p.mean(0), t - t.mean(0)
    norms = p.norm(dim=0) * t.norm(dim=0)
    # a column predicted to be constant is not predicted at all
    correlations = torch.where(
        norms > 0, (p * t).sum(0) / norms.clamp_min(torch.finfo(norms.dtype).tiny), torch.zeros_like(norms)
    )
    return float(correlations.clamp(-1, 1).quantile(0.5) if correlations.numel() < 2**24 else correlations.median())
