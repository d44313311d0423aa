"""Anchors of two sides: centroids of each, matched by how alike they are among themselves (quadratic assignment)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unrolled.alignment.translation.frame import Array

Order = NDArray[np.int64]
Generator = np.random.Generator
_KMEANS = 4  # starts of the clusters that a control moves


def centroids(x: Array, clusters: int, generator: Generator) -> Array:
    """[clusters, w] by k-means of x [n, w] from one k-means++ start."""
    from sklearn.cluster import KMeans

    seed = int(generator.integers(2**31))
    centres: Array = KMeans(clusters, n_init=1, random_state=seed).fit(x).cluster_centers_
    return centres


def similarities(centres: Array) -> Array:
    """[k, k] inner products of centred rows, scaled so that the squares of the entries add up to 1."""
    centred = centres - centres.mean(0)
    gram = centred @ centred.T
    scale = np.linalg.norm(gram)
    out: Array = gram / scale if scale > 0 else gram
    return out


def matched(a: Array, b: Array, *, starts: int, generator: Generator) -> tuple[Order, float]:
    """The order of b's rows and columns that agrees best with a, both symmetric [k, k], and the sum of the products.

    Of scaled `similarities` that sum is a correlation of at most 1. Each start is a random doubly stochastic matrix,
    taken to a permutation by SciPy's FAQ (Vogelstein et al. 2015) and improved by exchanging pairs (2-opt). SciPy's
    own 2-opt loops over pairs in Python, so that exchanges are compared here at once.
    """
    from scipy.optimize import quadratic_assignment

    best: tuple[Order, float] | None = None
    for _ in range(starts):
        options = {"P0": "randomized", "maximize": True, "rng": generator}
        first = quadratic_assignment(a, b, method="faq", options=options).col_ind
        order, value = two_opt(a, b, np.asarray(first, dtype=np.int64))
        if best is None or value > best[1]:
            best = order, value
    assert best is not None
    return best


def two_opt(a: Array, b: Array, order: Order) -> tuple[Order, float]:
    """`order` after exchanging the pair that gains most until none gains, and the sum of a times b in that order.

    Args:
        a, b: symmetric [k, k].
        order: [k], a permutation; row i of a goes with row order[i] of b.
    """
    order = order.copy()
    # an exchange that gains no more than rounding may go round in circles
    least = 1e-12 * float(np.linalg.norm(a) * np.linalg.norm(b))
    while True:
        other = b[np.ix_(order, order)]
        product = a @ other
        gain = 2 * _gains(a, other, product)
        i, j = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[i, j] <= least:
            return order, float(np.trace(product))
        order[[i, j]] = order[[j, i]]


def _gains(a: Array, b: Array, product: Array) -> Array:
    """[k, k] half of what sum(a * b) gains where rows and columns i and j of b are exchanged; `product` is a @ b."""
    of_a, of_b, diagonal = np.diag(a), np.diag(b), np.diag(product)
    # sum over k of (a[i, k] - a[j, k]) (b[k, j] - b[k, i]), without k = i and k = j, whose terms stay or are below
    gains = product + product.T - diagonal[:, None] - diagonal[None, :]
    gains -= (of_a[:, None] - a) * (b - of_b[:, None]) + (a - of_a[None, :]) * (of_b[None, :] - b)
    gains += 0.5 * (of_a[:, None] - of_a[None, :]) * (of_b[None, :] - of_b[:, None])
    return np.asarray(gains, dtype=np.float64)


def rearranged(y: Array, clusters: int, generator: Generator) -> Array:
    """y [m, d] with its clusters moved to where they might as well have been; each keeps its size and its shape.

    Ward's tree joins the centroids two by two. Every join is a contrast of centroids, and all are orthonormal rows C
    [k - 1, k], so that C times the centroids holds how they lie. Coarse joins, those above the widest gap between the
    lengths of its rows, are mixed by a random rotation, and fine ones by another. The second moments of coarse and of
    fine differences stay, and how clusters lie to each other does not: where centroids are draws of a normal
    distribution, or of one around draws of another, the new places are about as likely as the old ones.
    """
    from scipy.cluster.hierarchy import ward
    from scipy.stats import ortho_group
    from sklearn.cluster import KMeans

    fitted = KMeans(clusters, n_init=_KMEANS, random_state=int(generator.integers(2**31))).fit(y)
    centres, labels = fitted.cluster_centers_, fitted.labels_
    contrasts = tree_contrasts(ward(centres))
    joins = contrasts @ centres
    length = np.linalg.norm(joins, axis=1)
    order = np.argsort(-length)
    contrasts, joins, length = contrasts[order], joins[order], np.maximum(length[order], np.finfo(float).tiny)
    coarse = clusters - 1 if clusters < 5 else 2 + int((length[1:-2] / length[2:-1]).argmax())
    parts = [part for part in (joins[:coarse], joins[coarse:]) if len(part)]
    turned = np.concatenate([ortho_group.rvs(len(part), random_state=generator) @ part for part in parts])
    moved: Array = y + (centres.mean(0) + contrasts.T @ turned - centres)[labels]
    return moved


def tree_contrasts(tree: Array) -> Array:
    """[k - 1, k] orthonormal: of each join of SciPy's `tree`, the mean of the one part less that of the other."""
    leaves = len(tree) + 1
    parts = list(np.eye(leaves))
    rows = []
    for join in tree:
        one, other = parts[int(join[0])], parts[int(join[1])]
        row = one / one.sum() - other / other.sum()
        rows.append(row / np.linalg.norm(row))
        parts.append(one + other)
    return np.stack(rows)
