"""Translation without pairs: two kernels matched as matrices, and the linear map that the match gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def match_kernels(a: Array, b: Array, *, starts: int, seed: int) -> Array:
    """order [n] with which b[order][:, order] is most like a, from the entries of both [n, n] alone.

    A quadratic assignment, solved approximately from several random starts (fast approximate QAP, Vogelstein et al.
    2015, then exchanges of two); diagonals count.
    """
    from scipy.optimize import quadratic_assignment

    generator = np.random.default_rng(seed)
    left, right = (kernel - kernel.mean() for kernel in (a, b))
    best, value = np.arange(len(a)), -np.inf
    for _ in range(starts):
        options = {"maximize": True, "P0": "randomized", "rng": generator, "maxiter": 60}
        rough = quadratic_assignment(left, right, method="faq", options=options)
        guess = np.c_[np.arange(len(a)), rough.col_ind]
        options = {"maximize": True, "partial_guess": guess, "rng": generator}
        fine = quadratic_assignment(left, right, method="2opt", options=options)
        if fine.fun > value:
            best, value = fine.col_ind, fine.fun
    return np.asarray(best)


def retrieved(x: Array, y: Array, order: Array, truth: Array) -> float:
    """Share of rows of x whose linear (orthogonal) image is nearest, by cosine, to their true partner in y.

    The map is fitted to the matching `order` that was found without pairs.
    """
    left, right = x - x.mean(0), y - y.mean(0)
    u, _, vt = np.linalg.svd(left.T @ right[order])
    moved = left @ (u @ vt)
    cosine = moved @ right.T / np.maximum(np.outer(np.linalg.norm(moved, axis=1), np.linalg.norm(right, axis=1)), 1e-12)
    return float((cosine.argmax(1) == truth).mean())
