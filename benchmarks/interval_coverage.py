"""How often the interval of an alignment score holds the expected score of as many samples, and how wide it is.

    python -m benchmarks.interval_coverage --n 100 --sets 200 --metric cycle_knn --metric rsa

Nominal is 95 %. Width is over that of plus and minus 1.96 true standard deviations, which no interval knows.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import unrolled.alignment as al

CASES = ("independent", "normal", "clusters", "near the ceiling", "heavy tails")
METRICS = ("mutual_knn", "cycle_knn", "cka", "unbiased_cka", "svcca", "procrustes", "rsa")


def draw(case: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Paired features [n, 8] twice."""
    g = torch.Generator().manual_seed(seed)
    x, y, shared = (torch.randn(n, 8, generator=g) for _ in range(3))
    if case == "normal":
        return shared + 0.7 * x, shared + 0.7 * y
    if case == "clusters":
        centres = 3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(7))
        which = torch.randint(5, (n,), generator=g)
        return centres[0][which] + x, centres[1][which] + y
    if case == "near the ceiling":
        return x, x + 0.5 * y
    if case == "heavy tails":
        shared = shared / (torch.randn(n, 2, generator=g).square().sum(1, keepdim=True) / 2).sqrt()  # t, 2 degrees
        return shared + 0.7 * x, shared + 0.7 * y
    return x, y


def main() -> None:
    """Print one row a metric and case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=100)
    parser.add_argument("--metric", action="append")
    options = parser.parse_args()
    print("| metric | case | coverage | 95 % of it | width |\n|---|---|---|---|---|")
    for name in options.metric or METRICS:
        metric = al.get_metric(name)
        for case in CASES:
            scores = np.array([metric(*draw(case, options.n, 10_000 + s)) for s in range(5 * options.sets)])
            found = np.array(
                [
                    al.score_interval(*draw(case, options.n, s), metric, resamples=options.resamples, seed=s)
                    for s in range(options.sets)
                ]
            )
            hits = int(((found[:, 0] <= scores.mean()) & (scores.mean() <= found[:, 1])).sum())
            low, high = stats.binomtest(hits, options.sets).proportion_ci(method="exact")
            width = (found[:, 1] - found[:, 0]).mean() / (2 * 1.96 * scores.std())
            print(
                f"| {name} | {case} | {hits / options.sets:.3f} | {low:.3f} to {high:.3f} | {width:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
