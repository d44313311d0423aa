"""Metrics of prediction on held-out samples: ridge and partial least squares predictivity, and linear stitching.

Relabelled y are further columns of the same products, so some orders at a time cost little more than one. Throughout,
y [n, m, d] are m versions of the same samples.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.dependence import Units
from unrolled.alignment.metric import Features, Metric, Representation, stacked, whole
from unrolled.ops.gram import accumulator
from unrolled.ops.rows import varies

_SMALL = 64  # side up to which squaring a product is faster than Lanczos steps
_TOGETHER = 2**26  # bytes of relabelled features predicted at a time


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

    def compare(self, a: Any, b: Any) -> float:
        """Value of predicting b from a."""
        return float(self._values(a, b[:, None])[0])

    def null_grids(self, rows: Sequence[Any], columns: Sequence[Any], orders: Iterable[Tensor]) -> Iterator[Tensor]:
        """`grid` after relabelling all columns alike, once for each order; up to 16 orders at a time."""
        pairs = [(i, j) for i, a in enumerate(rows) for j, b in enumerate(columns) if a is not None and b is not None]
        scratch = max((self._scratch(rows[i], columns[j]) for i, j in pairs), default=1)
        for some in stacked(orders, max(1, min(16, _TOGETHER // scratch))):
            grids = torch.full((len(some), len(rows), len(columns)), math.nan, dtype=torch.float64)
            for i, j in pairs:
                moved = columns[j][some.T.to(columns[j].device)]
                grids[:, i, j] = self._values(rows[i], moved).double().cpu()
            yield from grids

    @abstractmethod
    def _values(self, x: Tensor, y: Tensor) -> Tensor:
        """[m] values of predicting y [n, m, d] from x [n, d_x]."""

    def _scratch(self, a: Tensor, b: Tensor) -> int:
        """Bytes needed for one relabelling."""
        return 8 * b.numel()

    def _splits(self, n: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Training rows and held-out rows, fold by fold."""
        units = self._units if self._units is not None else Units(n)
        parts = [part.to(device) for part in units.parts(min(self.folds, units.count), self.seed)]
        for i, test in enumerate(parts):
            yield torch.cat([p for j, p in enumerate(parts) if j != i]), test


class _Predictivity(_CrossValidated):
    """Median over the columns of y of the correlation with their prediction, held out."""

    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    invariances = frozenset({"scale", "offset", "permutation"})

    @abstractmethod
    def _predicted(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Held-out rows [q] and their prediction [q, m, d], fold by fold."""

    def _values(self, x: Tensor, y: Tensor) -> Tensor:
        prediction = torch.empty_like(y)
        for test, values in self._predicted(x, y):
            prediction[test] = values
        return _median_correlation(prediction, y)


class RidgePredictivity(_Predictivity):
    """Median over the columns of y of the correlation between y and its ridge prediction from x, held out.

    Args:
        alpha: penalty on squared weights, for features of unit root-mean-square (features are rescaled as a whole).
        folds: held-out parts; predictions of all parts are pooled before correlating. `seed` shuffles the samples once.

    Columns of y without variance are left out.
    """

    name: ClassVar[str] = "ridge_predictivity"

    def __init__(self, *, alpha: float = 1.0, folds: int = 10, seed: int = 0):
        super().__init__(folds=folds, seed=seed)
        if not alpha > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        self.alpha = alpha

    def _predicted(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for train, test in self._splits(len(x), x.device):
            # constants per fold cancel only if each fold's own training mean is used for both sides
            yield test, _ridge(x[train], y[train], x[test], self.alpha, offset=True)


class PLSPredictivity(_Predictivity):
    """As `RidgePredictivity`, with partial least squares (PLS2) on `components` latent variables.

    Equal to scikit-learn's where that has converged, except that components end where the training rows of x, or what
    is left to be predicted of y, hold nothing but rounding. A further one is divided by that rounding, and predicts at
    will for a held-out row that alone differs in some direction, such as the one row of zeros beside a constant column.
    """

    name: ClassVar[str] = "pls_predictivity"

    def __init__(self, *, components: int = 25, folds: int = 10, seed: int = 0):
        super().__init__(folds=folds, seed=seed)
        components = whole("components", components)
        if components < 1:
            raise ValueError(f"components must be positive, got {components}")
        self.components = components

    def _predicted(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        splits = list(self._splits(len(x), x.device))
        means = [(x[train].mean(0), y[train].mean(0)) for train, _ in splits]
        centred = x.new_zeros(len(splits), max(len(train) for train, _ in splits), x.shape[1])  # zeros add nothing
        crosses, floors = [], []
        for fold, (train, _), (x_mean, y_mean) in zip(centred, splits, means, strict=True):
            fold[: len(train)] = x[train] - x_mean
            crosses.append(fold[: len(train)].T @ (y[train] - y_mean).flatten(1))
            floors.append(torch.finfo(torch.float32).eps * x[train].norm())
        cross = torch.stack(crosses).unflatten(2, y.shape[1:]).transpose(1, 2)
        weights = _pls(centred, cross, torch.stack(floors), self.components)
        for (_, test), (x_mean, y_mean), fitted in zip(splits, means, weights, strict=True):
            yield test, ((x[test] - x_mean) @ fitted).transpose(0, 1) + y_mean

    def _scratch(self, a: Tensor, b: Tensor) -> int:
        return super()._scratch(a, b) + 32 * self.folds * a.shape[1] * b.shape[1]


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

    def _values(self, x: Tensor, y: Tensor) -> Tensor:
        missed, total = torch.zeros(2, y.shape[1], dtype=y.dtype, device=y.device)
        for train, test in self._splits(len(x), x.device):
            known, held = y[train], y[test]
            prediction = _ridge(x[train], known, x[test], self.alpha, offset=self.affine)
            missed += (held - prediction).square().sum((0, 2))
            total += (held - known.mean(0)).square().sum((0, 2))
        return 1 - missed / total


def _ridge(x: Tensor, y: Tensor, at: Tensor, alpha: float, *, offset: bool) -> Tensor:
    """Ridge prediction [q, m, d] of y [n, m, d] at new rows, through the smaller of the d_x x d_x or n x n systems."""
    x_mean, y_mean = (x.mean(0), y.mean(0)) if offset else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1:]))
    x, at, flat = x - x_mean, at - x_mean, (y - y_mean).flatten(1)
    n, d = x.shape
    system = x.T @ x if d <= n else x @ x.T
    # a smaller penalty is lost in the rounding of the products, and whether a factor exists would hang on that rounding
    system.diagonal().add_(max(alpha, len(system) * torch.finfo(x.dtype).eps * float(system.trace())))
    factor = torch.linalg.cholesky(system)
    solved = at @ torch.cholesky_solve(x.T @ flat, factor) if d <= n else at @ x.T @ torch.cholesky_solve(flat, factor)
    return solved.unflatten(1, y.shape[1:]) + y_mean


def _pls(x: Tensor, cross: Tensor, floor: Tensor, components: int) -> Tensor:
    """PLS2 weights [folds, m, d_x, d], by deflating x'y alone (Dayal and MacGregor 1997).

    Args:
        x: [folds, n, d_x] centred.
        cross: [folds, m, d_x, d] products x'y with m versions of y.
        floor: [folds] norm of a score that is rounding: what float32 features hold below this is.
        components: how many at most.
    """
    enough = 1e-10 * cross.flatten(2).norm(dim=2)
    weights, rotations, loadings = torch.zeros_like(cross), *(cross.new_zeros(*cross.shape[:2], 0, x.shape[2]),) * 2
    more = torch.ones_like(enough, dtype=torch.bool)
    for _ in range(min(components, *x.shape[1:])):
        more &= cross.flatten(2).norm(dim=2) > enough
        if not more.any():
            break
        direction = _leading(cross.flatten(0, 1)).unflatten(0, cross.shape[:2])
        rotation = direction - ((loadings @ direction[..., None]) * rotations).sum(2)
        score = x @ rotation.mT  # [folds, n, m]
        size = score.square().sum(1)
        more &= size > floor[:, None] ** 2
        scale = torch.where(more, 1 / size, 0)[..., None]  # those that have ended gain nothing more
        loading = (x.mT @ score).mT * scale
        gain = (rotation[..., None, :] @ cross)[..., 0, :] * scale
        cross = cross - loading[..., None] * (gain * size[..., None])[..., None, :]
        weights += rotation[..., None] * gain[..., None, :]
        rotations, loadings = (
            torch.cat([rows, new[..., None, :]], 2) for rows, new in ((rotations, rotation), (loadings, loading))
        )
    return weights


def _leading(matrices: Tensor) -> Tensor:
    """[m, d] unit left singular vectors of the largest singular values of [m, d, e]; zero for a matrix of zeros."""
    rows, columns = matrices.shape[1:]
    if min(rows, columns) <= _SMALL:
        wide = rows <= columns
        vector = _dominant(matrices @ matrices.mT if wide else matrices.mT @ matrices)
        vector = vector if wide else (matrices @ vector[:, :, None])[:, :, 0]
        return vector / vector.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny)
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    vectors = [svds(matrix.cpu().numpy(), k=1, v0=start)[0][:, 0].copy() for matrix in matrices]
    return torch.from_numpy(np.stack(vectors)).to(matrices)


def _dominant(products: Tensor) -> Tensor:
    """[m, d] eigenvectors of the largest eigenvalues of [m, d, d] positive semidefinite matrices, of any length.

    Squaring doubles the logarithms of the ratios of eigenvalues; a matrix of rank one is left. Vectors whose
    eigenvalues differ by less than rounding stay mixed, as they are in any decomposition.
    """
    tiny = torch.finfo(products.dtype).tiny
    for _ in range(14):
        products = products / products.diagonal(dim1=1, dim2=2).sum(1).clamp_min(tiny)[:, None, None]
        norms = products.square().sum((1, 2))
        for _ in range(3):
            products = products @ products
        if not bool(((norms > 0) & (norms < 0.999)).any()):  # (1 - 0.999)^8 is rounding
            break
    place = products.diagonal(dim1=1, dim2=2).argmax(1)
    return products[torch.arange(len(products), device=products.device), place]


def _median_correlation(prediction: Tensor, y: Tensor) -> Tensor:
    """[m] medians over the columns that vary of y [n, m, d], the same ones for every m."""
    varies = (y[:, 0] - y[0, 0]).abs().amax(0) > 0
    p, t = prediction[..., varies], y[..., varies]
    p, t = p - p.mean(0), t - t.mean(0)
    norms = p.norm(dim=0) * t.norm(dim=0)
    # a column predicted to be constant is not predicted at all
    correlations = torch.where(
        norms > 0, (p * t).sum(0) / norms.clamp_min(torch.finfo(norms.dtype).tiny), torch.zeros_like(norms)
    )
    ordered, columns = correlations.clamp(-1, 1).sort(1).values, correlations.shape[1]
    return (ordered[:, (columns - 1) // 2] + ordered[:, columns // 2]) / 2
