"""Images that need no download: scikit-learn's handwritten digits, and a made-up set for trying things."""

from __future__ import annotations

import numpy as np

from unrolled.data.sources import ArraySource


def digits() -> ArraySource:
    """The 1,797 handwritten digits that come with scikit-learn: 8x8, grey, 10 classes.

    The original values 0..16 become uint8 0..255, rounded, which moves a pixel by at most 1/510 of the range.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return ArraySource(
        images,
        data.target,
        classes=[str(number) for number in range(10)],
        title="digits",
        description="scikit-learn digits, 8x8 grey",
    )


def synthetic_images(n: int, size: int = 32, classes: int = 10, channels: int = 3, seed: int = 0) -> ArraySource:
    """Made-up images that a small model can learn: each class is one coarse pattern under noise.

    Args:
        n: number of images; the classes are as even as they can be.
        size: side in pixels.
        classes: number of classes.
        channels: 1 or 3.
        seed: noise and order. The patterns do not depend on it, so two seeds make a training and a test set.
    """
    if min(n, size, classes) < 1 or channels not in (1, 3):
        raise ValueError(
            f"n, size and classes must be positive and channels 1 or 3, not {(n, size, classes, channels)}"
        )
    patterns = np.random.default_rng(0).uniform(-1, 1, (classes, 4, 4, channels))
    cell = -(-size // 4)
    patterns = patterns.repeat(cell, axis=1).repeat(cell, axis=2)[:, :size, :size]
    rng = np.random.default_rng(np.random.SeedSequence((seed, 2)))
    labels = rng.permutation(np.arange(n) % classes)
    noise = rng.normal(0, 25, (n, size, size, channels))
    images = np.clip(128 + 60 * patterns[labels] + noise, 0, 255).astype(np.uint8)
    return ArraySource(
        images, labels, classes=[f"pattern {label}" for label in range(classes)], title=f"synthetic (seed {seed})"
    )
