"""Intervals hold the expected score of as many samples, near a ceiling too, and are not wide for nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import unrolled.alignment as al


def drawn(case: str, seed: int, n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 8, generator=g), torch.randn(n, 8, generator=g)
    if case == "near the ceiling":
        return x, x + 0.5 * y
    if case == "clusters":
        centres = 3 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(7))
        which = torch.randint(5, (n,), generator=g)
        return centres[0][which] + x, centres[1][which] + y
    return x, y


def covered(case: str, metric: al.Metric, sets: int = 60) -> tuple[float, float]:
    """Share of intervals that hold the expected score, and their mean width over that of 1.96 true deviations."""
    scores = np.array([metric(*drawn(case, 1000 + seed)) for seed in range(300)])
    intervals = np.array([al.score_interval(*drawn(case, s), metric, resamples=40, seed=s) for s in range(sets)])
    inside = (intervals[:, 0] <= scores.mean()) & (scores.mean() <= intervals[:, 1])
    return float(inside.mean()), float((intervals[:, 1] - intervals[:, 0]).mean() / (2 * 1.96 * scores.std()))


@pytest.mark.parametrize("case", ["near the ceiling", pytest.param("clusters", marks=pytest.mark.slow)])
def test_a_share_of_samples_is_covered_near_its_ceiling(case: str) -> None:
    share, _ = covered(case, al.CycleKNN(k=10))
    assert share >= 0.87


@pytest.mark.parametrize(
    "metric", [pytest.param(al.MutualKNN(k=5), marks=pytest.mark.slow), al.CKA(unbiased=True)], ids=repr
)
def test_independent_sides_have_no_wider_an_interval_than_they_need(metric: al.Metric) -> None:
    share, width = covered("independent", metric)
    assert share >= 0.87
    assert width < 1.45


def test_identical_sides_of_a_metric_without_a_share_have_no_spread() -> None:
    x, _ = drawn("independent", 0)
    assert al.score_interval(x, x, "mutual_knn", k=5) == pytest.approx((1, 1))
    low, high = al.score_interval(x, x, "cycle_knn", k=5)
    assert low == pytest.approx(60 / (60 + 1.96**2), abs=1e-3)  # Wilson's, for 60 of 60
    assert high == 1
