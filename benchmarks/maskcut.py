"""MaskCut on a 60 x 60 grid against SciPy's dense generalised eigen-solve, at equal masks.

python -m benchmarks.maskcut [--side 60] [--dim 384] [--rounds 3]

The dense form solves (D - W) x = lambda D x for its second eigenvector only (`subset_by_index`), which is faster than
for all of them, and shares everything else with the package: affinities, sides, components. Both are given a repeated
solve for free when a stage was blanked.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from benchmarks.timing import interleaved, machine
from unrolled.instruments import maskcut
from unrolled.instruments.regions import spectral


def scene(side: int, dim: int, seed: int = 0) -> Tensor:
    """Features [side * side, dim] of three discs on a background that varies smoothly, with noise on every token."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    labels = np.zeros((side, side), np.int64)
    for k, (row, column, radius) in enumerate([(0.3, 0.3, 0.17), (0.65, 0.7, 0.2), (0.75, 0.25, 0.14)], start=1):
        labels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = k
    centres = rng.normal(size=(4, dim))
    drift = np.stack([y, x], -1) @ rng.normal(size=(2, dim))
    features = centres[labels] + 0.7 * drift + 1.2 * rng.normal(size=(side, side, dim))
    return torch.from_numpy(features.reshape(-1, dim).astype(np.float32))


def generalised(joined: Tensor, eps: float, count: int, solver: str) -> tuple[Tensor, Tensor]:
    """SciPy's solve, in place of the package's `_eigenvectors`."""
    w = np.where(joined.numpy(), 1.0, eps)
    d = np.diag(w.sum(1))
    values, vectors = scipy.linalg.eigh(d - w, d, subset_by_index=[1, count])
    vectors /= np.linalg.norm(vectors, axis=0)
    peaks = vectors[np.abs(vectors).argmax(0), np.arange(count)]
    return torch.from_numpy(values), torch.from_numpy(vectors * np.sign(peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=60)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    features, grid = scene(args.side, args.dim), (args.side, args.side)
    print(machine())
    fast = interleaved({"lanczos": lambda: maskcut(features, grid, masks=3)}, args.rounds)["lanczos"]
    masks = maskcut(features, grid, masks=3)
    with mock.patch.object(spectral, "_eigenvectors", generalised):
        start = time.perf_counter()
        want = maskcut(features, grid, masks=3)
        slow = time.perf_counter() - start
    print(f"masks of {[int(m.sum()) for m in masks]} tokens, equal: {torch.equal(masks, want)}")
    print(f"Lanczos {fast:.2f} s, SciPy dense {slow:.2f} s, {slow / fast:.1f}x")


if __name__ == "__main__":
    main()
