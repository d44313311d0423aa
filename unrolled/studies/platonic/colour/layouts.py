"""From colours that are neighbours to a layout in three dimensions, laid over CIELAB."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unrolled.studies.statistics import classical_mds

Array = NDArray[Any]
Zeros = Literal["add half", "floor", "leave out"]


def lab_of_rgb(rgb: Array) -> Array:
    """CIELAB (D65) of sRGB in [0, 1], [..., 3]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    relative = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def pixel_pairs(images: Array, count: int, radius: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Colours of `count` pairs of different pixels of one image at most `radius` apart, [count, 3] uint8 each."""
    n, height, width, _ = images.shape
    reach = math.floor(radius)
    steps = np.array(
        [
            (dy, dx)
            for dy in range(-reach, reach + 1)
            for dx in range(-reach, reach + 1)
            if 0 < dy * dy + dx * dx <= radius * radius
        ]
    )
    first, second = [], []
    left = count
    while left > 0:  # pairs that reach over the edge are drawn again
        which, y, x = (generator.integers(size, size=left) for size in (n, height, width))
        dy, dx = steps[generator.integers(len(steps), size=left)].T
        inside = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        which, y, x, dy, dx = (part[inside] for part in (which, y, x, dy, dx))
        first.append(images[which, y, x])
        second.append(images[which, y + dy, x + dx])
        left -= len(which)
    return np.concatenate(first), np.concatenate(second)


def count_colours(first: Array, second: Array, bins: int, min_count: int) -> tuple[Array, Array]:
    """Symmetric counts [k, k] of pairs of colours and the middles of their bins [k, 3] in [0, 1].

    R, G and B are cut into `bins` equal parts; colours in fewer than `min_count` pairs are left out.
    """
    codes = []
    for colours in (first, second):
        part = colours.astype(np.int64) * bins // 256
        codes.append((part[:, 0] * bins + part[:, 1]) * bins + part[:, 2])
    total = bins**3
    table = np.bincount(codes[0] * total + codes[1], minlength=total * total).reshape(total, total)
    table = table + table.T
    seen = np.flatnonzero(table.sum(1) >= min_count)
    middles = (np.stack([seen // bins**2, seen // bins % bins, seen % bins], 1) + 0.5) / bins
    return table[np.ix_(seen, seen)].astype(np.float64), middles


def dissimilarities(counts: Array, zeros: Zeros) -> tuple[Array, Array]:
    """max(PMI) - PMI of counts [k, k], zero on the diagonal, and which of its entries are observed."""
    import torch

    from unrolled.theory import pointwise_mutual_information

    smoothed = counts + 0.5 if zeros == "add half" else counts
    pmi = pointwise_mutual_information(torch.as_tensor(smoothed)).numpy().copy()
    observed = np.isfinite(pmi)
    pmi[~observed] = pmi[observed].min()
    out = pmi.max() - pmi
    np.fill_diagonal(out, 0)
    return out, observed if zeros == "leave out" else np.ones_like(observed)


def embed(distances: Array, observed: Array | None = None, *, fits: int, seed: int) -> Array:
    """Points [k, 3] whose distances are near `distances` [k, k]: multidimensional scaling by stress majorisation.

    Starts are the classical solution and `fits - 1` random ones; the smallest stress wins. Unobserved pairs take the
    fitted distance in every iteration, so they have no say.
    """
    generator = np.random.default_rng(seed)
    k = len(distances)
    weights = np.ones((k, k), dtype=bool) if observed is None else observed | np.eye(k, dtype=bool)
    best, least = np.zeros((k, 3)), math.inf
    for fit in range(fits):
        points = classical_mds(distances, 3)[0] if fit == 0 else generator.normal(size=(k, 3)) * distances.std()
        stress = math.inf
        for _ in range(300):
            near = np.sqrt(np.maximum(((points[:, None] - points[None]) ** 2).sum(-1), 1e-18))
            wanted = np.where(weights, distances, near)
            before, stress = stress, float(((wanted - near) ** 2).sum())
            if before - stress < 1e-6 * max(stress, 1e-12):
                break
            ratio = wanted / near
            np.fill_diagonal(ratio, 0)
            # Guttman transform, whose weights are all one once gaps are filled
            points = (np.diag(ratio.sum(1)) - ratio) @ points / k
        if stress < least:
            best, least = points, stress
    return best


def laid_over(points: Array, target: Array) -> tuple[Array, float]:
    """`points` [k, 3] moved, turned, mirrored if need be and scaled onto `target` [k, 3], and R2 of the fit.

    R2 is the share of the target's variance that is met (Kabsch and Umeyama, reflections allowed).
    """
    x, y = points - points.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(x.T @ y)
    total = float((x**2).sum())
    placed = x @ (u @ vt) * (singular.sum() / max(total, 1e-12)) + target.mean(0)
    return placed, float(singular.sum() ** 2 / max(total * float((y**2).sum()), 1e-12))


def made_up_images(count: int, generator: np.random.Generator) -> Array:
    """Smooth random fields of colour [count, 32, 32, 3] uint8: neighbours are alike, and nothing else is true."""
    from scipy.ndimage import gaussian_filter

    fields = gaussian_filter(generator.normal(size=(count, 32, 32, 3)), sigma=(0, 5, 5, 0), mode="wrap")
    base = generator.uniform(0.1, 0.9, size=(count, 1, 1, 3))
    out: Array = (255 * np.clip(base + 0.1 * fields / fields.std(), 0, 1)).astype(np.uint8)
    return out
