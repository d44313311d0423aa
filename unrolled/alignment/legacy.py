"""The metrics of Huh et al. 2024 with the numbers of their published code, faults included.

Use these only to reproduce published values; each docstring names what differs from `unrolled.alignment`. Rows are
taken as given (the published pipeline clamps and l2-normalises them beforehand: `prepare_features`). Neighbours are
ordered by inner product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unrolled.alignment.metric import Features, as_features
from unrolled.alignment.neighbours import common_subsequence, cycle_shares, levenshtein
from unrolled.ops.gram import gram
from unrolled.ops.neighbours import nearest_neighbours
from unrolled.ops.rows import moderate


def mutual_knn(x: Features, y: Features, k: int = 10) -> float:
    """Mutual k-NN. Fault: which of several tied neighbours counts depends on the sort, not on the data."""
    a, b = _lists(x, y, k)
    return float((a[:, :, None] == b[:, None, :]).sum()) / a.numel()


def cycle_knn(x: Features, y: Features, k: int = 10) -> float:
    """Cycle k-NN along y, then x. Fault: not symmetric, and the published driver passes its arguments reversed."""
    a, b = _lists(x, y, k)
    return cycle_shares(a, b)


def lcs_knn(x: Features, y: Features, k: int = 10) -> float:
    """Longest common subsequence of neighbour lists, 0..k. Fault: not divided by k, although the paper plots a share.

    With the optional fork library installed, the published code loses most of its results; that is not imitated.
    """
    return float(common_subsequence(*_lists(x, y, k)).double().mean())


def edit_knn(x: Features, y: Features, k: int = 10) -> float:
    """1 - Levenshtein distance / k. Fault: with the optional fork library, scores are far too high (not imitated)."""
    return 1 - float(levenshtein(*_lists(x, y, k)).double().mean()) / k


def cka(x: Features, y: Features, *, unbiased: bool = False, kernel: str = "linear", sigma: float = 1.0) -> float:
    """CKA. Fault: 1e-6 in the denominator, so that features of small scale score too low, even against themselves.

    Every product is taken as published, so that values agree to the last digits on one machine. A float32 kernel whose
    entries are nearly equal (rbf, rows much closer than `sigma`) leaves little but rounding: `unrolled.alignment`
    refuses it, this form returns it.
    """
    if kernel not in ("linear", "rbf"):
        raise ValueError(f"kernel must be 'linear' or 'rbf', got {kernel!r}")
    k, l = (_kernel(side, kernel, sigma) for side in _pair(x, y))
    hsic = _song if unbiased else _gretton
    return float(hsic(k, l) / (torch.sqrt(hsic(k, k) * hsic(l, l)) + 1e-6))


def cknna(x: Features, y: Features, k: int = 10, *, unbiased: bool = True) -> float:
    """CKNNA with three faults.

    Kernels are masked before they are centred, so that the value exceeds 1 for anisotropic features and large k, and
    does not end at CKA; the trace pairs entry (i, j) with (j, i), so that only reciprocal neighbours count there; and
    1e-6 is added to the denominator.
    """
    left, right = _pair(x, y)
    if not 2 <= k <= left.shape[0] - (1 if unbiased else 0):
        raise ValueError(f"k must be between 2 and {left.shape[0] - 1}, got {k}")
    kernels = [gram(side) for side in (left, right)]
    masks = []
    for kernel in kernels:
        ranked = kernel.clone().fill_diagonal_(-torch.inf) if unbiased else kernel
        masks.append(torch.zeros_like(kernel).scatter_(1, ranked.topk(k, dim=1).indices, 1.0))
    hsic = _song if unbiased else _gretton

    def similarity(i: int, j: int) -> Tensor:
        mask = masks[i] * masks[j]
        return hsic(mask * kernels[i], mask * kernels[j])

    return float(similarity(0, 1)) / float(torch.sqrt(similarity(0, 0) * similarity(1, 1)) + 1e-6)


def svcca(x: Features, y: Features, dim: int = 10, *, seed: int | None = 0) -> float:
    """SVCCA with four faults.

    Singular vectors are randomised without a seed, so that the published value changes from call to call (by about
    0.05); CCA is iterative; noise is added against NaN; and columns are standardised, which breaks invariance to
    rotation. Here the draw is seeded; `seed=None` uses torch's global generator, as published.
    """
    from sklearn.cross_decomposition import CCA

    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        bases = []
        for side in _pair(x, y):
            standard = (side - side.mean(0)) / (side.std(0) + 1e-8)
            bases.append(torch.svd_lowrank(standard, q=dim)[0].cpu().numpy())
        noise = torch.randn(2, len(bases[0]), dim, dtype=torch.float64).numpy() * 1e-10
    left, right = CCA(n_components=dim).fit(*bases).transform(*bases)
    left, right = left + noise[0], right + noise[1]
    return float(np.mean([np.corrcoef(left[:, i], right[:, i])[0, 1] for i in range(dim)]))


def _pair(x: Features, y: Features) -> tuple[Tensor, Tensor]:
    a, b = as_features(x, "x"), as_features(y, "y")
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"x has {a.shape[0]} samples and y {b.shape[0]}: rows must be the same samples in the same order"
        )
    return a, b


def _lists(x: Features, y: Features, k: int) -> tuple[Tensor, Tensor]:
    a, b = (nearest_neighbours(moderate(side)[0], k, normalize=False).indices for side in _pair(x, y))
    return a, b


def _kernel(x: Tensor, kernel: str, sigma: float) -> Tensor:
    return gram(x) if kernel == "linear" else torch.exp(-(torch.cdist(x, x) ** 2) / (2 * sigma**2))


# Both in O(n^3), product by product, as published: cheaper forms round differently, by 1e-4 of a float32 kernel whose
# entries are nearly equal, and can be negative (and CKA then NaN) where the products give 0.


def _gretton(k: Tensor, l: Tensor) -> Tensor:
    """tr(k H l H)."""
    centring = torch.eye(k.shape[0], dtype=k.dtype, device=k.device) - 1 / k.shape[0]
    return torch.trace(k @ centring @ l @ centring)


def _song(k: Tensor, l: Tensor) -> Tensor:
    """Unbiased HSIC for matrices that need not be symmetric, term by term."""
    n = k.shape[0]
    k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)
    paths = (k @ l).sum()
    return ((k * l.T).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * paths / (n - 2)) / (n * (n - 3))
