"""Dissimilarities of stimuli measured several times: noise covariance, Mahalanobis and crossnobis distances.

For recordings with noise, of brains or of networks with dropout. A distance of measured means is biased upwards by
their noise; the crossnobis distance multiplies differences of *different* repetitions, so that noise averages out: it
is 0 in expectation for stimuli that do not differ, and can be negative. Compare the matrices by `compare_rdms`.

Sources: A. Walther et al., Reliability of dissimilarity measures for multi-voxel pattern analysis, NeuroImage 2016; J.
Diedrichsen et al., Comparing representational geometries using whitened unbiased-distance-matrix similarity, 2021. As
in rsatoolbox, all are squared and divided by the number of channels.

Letters: `r` repetitions, `n` stimuli, `d` channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unrolled.alignment.metric import Features
from unrolled.ops.gram import accumulator
from unrolled.ops.rows import as_floats


def noise_covariance(x: Features, *, shrinkage: float | None = None) -> Tensor:
    """Covariance of the noise between channels, from what repetitions of a stimulus differ by.

    Args:
        x: [r, n, d] measurements, r >= 2.
        shrinkage: 0 is the covariance of the residuals, singular below d residuals, 1 its diagonal; None takes the
            share that minimises the expected squared error (Schaefer and Strimmer 2005).

    Returns:
        [d, d] symmetric, float64; positive definite with some shrinkage, if no channel is constant.

    Raises:
        ValueError: not [r, n, d], one repetition, not finite, a shrinkage outside 0..1, or a channel without noise.
    """
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be in 0..1 or None, got {shrinkage}")
    x = _repeated(x, "x")
    repetitions, n, d = x.shape
    residuals = (x - x.mean(0)).reshape(-1, d)
    count, free = repetitions * n, (repetitions - 1) * n
    covariance = residuals.T @ residuals / free
    variance = covariance.diagonal()
    rounding = (8 * torch.finfo(x.dtype).eps * x.abs().amax((0, 1))).square()
    if bool((silent := ~(variance > rounding)).any()):
        which = ", ".join(map(str, silent.nonzero()[:5, 0].tolist()))
        raise ValueError(f"x: channels {which} do not vary between repetitions, so their noise is unknown: drop them")
    if shrinkage is None:
        unit = residuals / variance.sqrt()
        products = unit.T @ unit / (count - 1)
        squares = unit.square().T @ unit.square() / (count - 1)
        uncertain = (squares - products.square()) * count / free**2
        off = ~torch.eye(d, dtype=torch.bool, device=x.device)
        total = float(products[off].square().sum())
        shrinkage = min(1.0, max(0.0, float(uncertain[off].sum()) / total)) if total > 0 else 1.0
    return covariance * (1 - shrinkage) + torch.diag(variance) * shrinkage


def mahalanobis_rdm(x: Features, covariance: Tensor | None = None) -> Tensor:
    """Squared Mahalanobis distances of the stimuli's means, over d: (x_i - x_j)' S^-1 (x_i - x_j) / d.

    Args:
        x: [r, n, d] measurements, whose mean over repetitions counts, or [n, d].
        covariance: S [d, d] of the noise, such as `noise_covariance(x)`; None: the identity, squared Euclidean
            distances.

    Returns:
        [n, n] float64, symmetric, zero on the diagonal. Noise of the means makes all of it larger: see
        `crossnobis_rdm`.

    Raises:
        ValueError: another shape, not finite, or a covariance that is not positive definite.
    """
    values = as_floats(x, "x")
    means = _repeated(values[None] if values.ndim == 2 else values, "x", fewest=1).mean(0, keepdim=True)
    rows = _whitened(means, covariance)[0]
    return _symmetric(rows @ rows.T)


def crossnobis_rdm(x: Features, covariance: Tensor | None = None) -> Tensor:
    """Cross-validated squared Mahalanobis distances over d: the mean of (x_i - x_j)_a' S^-1 (x_i - x_j)_b over a != b.

    a and b are different repetitions, all pairs of which count (the same as leaving out one repetition at a time). If
    their noise is independent and S was not estimated from it, the expectation is the distance without noise. With S
    from the residuals of x itself stimuli that do not differ still have 0 but for a term that falls with r n.

    Args:
        x: [r, n, d] measurements, r >= 2.
        covariance: as in `mahalanobis_rdm`.

    Returns:
        [n, n] float64, symmetric, zero on the diagonal, with negative entries.

    Raises:
        ValueError: as `mahalanobis_rdm`, or one repetition.
    """
    rows = _whitened(_repeated(x, "x"), covariance)
    repetitions, total = len(rows), rows.sum(0)
    # products of different repetitions: all products less those of one with itself
    same = sum((each @ each.T for each in rows), torch.zeros_like(total @ total.T))
    return _symmetric((total @ total.T - same) / (repetitions * (repetitions - 1)))


def _repeated(x: Features, name: str, *, fewest: int = 2) -> Tensor:
    values = as_floats(x, name)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"{name} must be [repetitions, stimuli, channels], got shape {tuple(values.shape)}")
    if len(values) < fewest:
        raise ValueError(f"{name} has one repetition: noise is what repetitions differ by; give at least {fewest}")
    if values.shape[1] < 2:
        raise ValueError(f"{name} has one stimulus: there is no pair of them; give more")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} has NaN or infinite values: drop these stimuli or channels")
    return values.to(accumulator(values))


def _whitened(x: Tensor, covariance: Tensor | None) -> Tensor:
    """[r, n, d] without their mean, such that inner products are those by S^-1, over d."""
    d = x.shape[-1]
    x = x - x.mean((0, 1))  # distances stay, and are not differences of large numbers
    if covariance is None:
        return x / d**0.5
    given = as_floats(covariance, "covariance").to(x)
    if given.shape != (d, d) or not bool(torch.isfinite(given).all()):
        raise ValueError(f"covariance must be finite and [{d}, {d}], got shape {tuple(given.shape)}")
    factor, failed = torch.linalg.cholesky_ex(given)
    pivots = factor.diagonal()
    if int(failed) or float(pivots.min()) <= 1e-7 * float(pivots.max()):
        raise ValueError(
            "covariance is not positive definite, so it has no inverse: shrink it, noise_covariance(x) does, or drop "
            "channels"
        )
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT / d**0.5


def _symmetric(gram: Tensor) -> Tensor:
    """|a|^2 + |b|^2 - 2 a'b of a matrix of inner products, exactly symmetric."""
    norms = gram.diagonal()
    out = norms[:, None] + norms - gram - gram.T
    return ((out + out.T) / 2).fill_diagonal_(0)
