"""Metrics of linear relation up to a change of basis: canonical correlations and Procrustes shape distances."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unrolled.alignment.metric import Features, Metric, Representation
from unrolled.ops.gram import accumulator
from unrolled.ops.rows import varies


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
            varying = centred[:, varies(rep.x)]
            centred = varying / varying.std(0)
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
            significant = spectrum > spectrum[0] * max(centred.shape) * torch.finfo(rep.x.dtype).eps
            basis, spectrum = basis[:, significant], spectrum[significant]
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
