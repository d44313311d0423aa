"""p-values are exact fractions, tails hold beyond them, and third moments are exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import sparse, stats

import unrolled.alignment as al
from unrolled.alignment import embedded
from unrolled.alignment.chance import compare
from unrolled.alignment.significance import (
    SMALLEST,
    cantelli_bound,
    p_phrase,
    p_text,
    pareto_tail,
    pearson_tail,
    resolved_p_value,
)
from unrolled.ops.permutation_moments import orbit_sums, permutation_moments


def matrix(n: int, *, symmetric: bool, diagonal: bool, seed: int) -> torch.Tensor:
    a = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a = a + a.T if symmetric else a
    return a if diagonal else a.fill_diagonal_(0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("diagonal", [True, False])
def test_three_moments_equal_those_over_all_permutations(symmetric: bool, diagonal: bool) -> None:
    a, b = (matrix(5, symmetric=symmetric, diagonal=diagonal, seed=seed) for seed in (0, 1))
    values = np.array([float((a * b[list(p)][:, list(p)]).sum()) for p in itertools.permutations(range(5))])
    expected = [np.mean(values**order) for order in (1, 2, 3)]
    other = orbit_sums(b, symmetric=symmetric)
    for held in (a, sparse.csr_array(a.numpy())):
        got = permutation_moments([orbit_sums(held, symmetric=symmetric)], [other])
        np.testing.assert_allclose(got[:, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "metric", [al.MutualKNN(k=5), al.CKNNA(k=5), al.CKA(), al.CKA(unbiased=True), al.RSA()], ids=repr
)
def test_skewness_agrees_with_permutations(metric: al.Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 2, generator=generator) @ torch.randn(2, 6, generator=generator) for _ in range(2))
    a, b = metric.prepare(x), metric.prepare(y)
    skewness, share = (float(value) for value in metric.null_shapes([a], [b]) or ())
    null = torch.cat([grid.flatten() for grid in metric.null_grids([a], [b], al.relabellings(40, 4000))])
    assert float(stats.skew(null.numpy())) == pytest.approx(skewness, abs=0.25)
    monkeypatch.setattr(embedded, "_FEW", 0)  # as for many samples
    again, _ = (float(value) for value in metric.null_shapes([metric.prepare(x)], [metric.prepare(y)]) or ())
    assert again == pytest.approx(skewness, rel=1e-4)
    assert 1 / 40 <= share < 1


def test_layers_without_variance_have_no_skewness() -> None:
    x = torch.randn(30, 4)
    layers = al.prepare_layers({"constant": torch.ones(30, 4), "own": x}, ["cka"])
    skewness, _ = al.CKA().null_shapes(layers.of(al.CKA()), layers.of(al.CKA())) or ()
    assert torch.isnan(skewness).tolist() == [[True, True], [True, False]]
    assert al.compare(layers, layers, "cka", null="moments").p_value < 1e-6


def test_the_share_of_relabellings_is_an_exact_fraction() -> None:
    for draws in (19, 99, 199, 999):
        null = torch.arange(draws) / draws
        reached = (draws + 1) // 20 - 1
        score = float(null[draws - reached]) if reached else 2.0
        assert al.permutation_p_value(score, null) == 0.05
        assert al.permutation_p_value(score, null) <= 0.05
    assert al.permutation_p_value(2.0, torch.zeros(999)) == 0.001


def test_draws_end_when_p_is_resolved() -> None:
    drawn: list[float] = []

    def null() -> object:
        for value in np.random.default_rng(0).uniform(size=999):
            drawn.append(value)
            yield value

    p = resolved_p_value(0.5, null())  # type: ignore[arg-type]
    assert p.value == 10 / len(drawn)
    assert len(drawn) < 40
    assert f"{len(drawn)} relabellings" in p.method
    low = resolved_p_value(
        -0.5, (-value for value in np.random.default_rng(0).uniform(size=999)), higher_is_closer=False
    )
    assert low.value == p.value
    assert resolved_p_value(0.995, np.linspace(0, 1, 999)).value == pytest.approx(6 / 1000)


def test_sequential_p_values_are_uniform() -> None:
    generator = np.random.default_rng(0)
    p = np.array([resolved_p_value(generator.normal(), generator.normal(size=199)).value for _ in range(2000)])
    for level in (0.05, 0.1, 0.5):
        assert stats.binomtest(int((p <= level).sum()), len(p), level).pvalue > 0.001


@pytest.mark.parametrize(("draw", "tail"), [("normal", stats.norm.sf), ("exponential", lambda x: math.exp(-x))])
def test_pareto_tails_are_of_the_right_order_and_not_too_small(draw: str, tail: object) -> None:
    null = getattr(np.random.default_rng(0), draw)(size=999)
    for score in (4.0, 5.0):
        true = float(tail(score))  # type: ignore[operator]
        assert true / 3 < pareto_tail(score, null) < 200 * true  # an exponential tail lies above a normal one


def test_the_smallest_p_value_is_a_bound() -> None:
    null = np.random.default_rng(0).normal(size=999)
    p = resolved_p_value(1e5, null)
    assert p.value == 1e-6, "as far beyond 1 in 1,000 as 1,000 relabellings reach, and no farther"
    assert p.method == "Pareto tail of 999 relabellings, none of which reached the score: a bound"
    assert p_text(p.value, p.method) == "< 1e-06"
    near = resolved_p_value(4.0, null)
    assert 1e-6 < near.value < 1e-3
    assert p_text(near.value, near.method) == f"{near.value:.2g}"
    assert p_text(SMALLEST) == p_text(9e-7) == "< 1e-06"
    assert p_text(1e-6) == "1e-06"
    assert p_text(0.0123) == "0.012"
    assert resolved_p_value(1.0, np.zeros(99)).value <= 0.01


def test_pearson_tail_is_normal_without_skewness_and_chi_squared_with_that_of_it() -> None:
    z = np.array([0.0, 1.5, 4.0])
    np.testing.assert_allclose(pearson_tail(z, np.zeros(3)), stats.norm.sf(z))
    np.testing.assert_allclose(pearson_tail(z, np.full(3, -1.0)), stats.norm.sf(z))
    chi = stats.chi2(3)
    np.testing.assert_allclose(pearson_tail((z - 3) / math.sqrt(6), np.full(3, math.sqrt(8 / 3))), chi.sf(z), rtol=1e-9)


def outliers(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 4, generator=generator)
    x[torch.randperm(40, generator=generator)[:2]] = 30 * torch.randn(4, generator=generator)
    return x


def test_one_sample_that_dominates_both_sides_is_not_judged_by_moments() -> None:
    # two outliers on either side meet once in 780 draws, which three moments do not know
    x, y = outliers(0), outliers(1)
    order = torch.cat([y.norm(dim=1).argsort(), torch.arange(0)])[torch.argsort(x.norm(dim=1).argsort())]
    met = al.compare(x, y[order], "unbiased_cka", null="moments", resamples=0)
    assert met.score > 0.8
    assert "relabellings" in met.p_method
    assert met.p_value > 2e-4


def test_cantelli_bounds_every_distribution() -> None:
    # the distribution for which the inequality is an equation: 2 with probability 1 / 5, else -1 / 2
    assert cantelli_bound(2.0, 1).value == pytest.approx(1 / 5)
    rare = torch.zeros(1000, dtype=torch.float64)
    rare[0] = 1.0
    z = float((1.0 - rare.mean()) / rare.std(correction=0))
    assert 1 / 1000 <= cantelli_bound(z, 1).value <= 1.001 / 1000
    assert cantelli_bound(2.0, 144).value == 1.0
    assert cantelli_bound(-3.0, 1).value == 1.0
    assert p_phrase(*vars(cantelli_bound(1000.0, 10)).values()) == "p < 1e-05"


def test_a_hub_does_not_cost_relabellings_where_no_tail_could_reach_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1500, 6, generator=generator)
    common[0] = 1e-3  # the same in every direction: a neighbour of many
    sides = [torch.cat([common, 0.05 * torch.randn(1500, 6, generator=generator)], 1) for _ in range(2)]
    monkeypatch.setattr("unrolled.alignment.chance._DOMINANT", 0.0)  # as if one sample carried much of both
    found = compare(*sides, "mutual_knn", null="moments", resamples=0)
    assert found.p_method.startswith("Cantelli")
    assert found.p_value == pytest.approx(1 / (1 + found.z**2))
    drawn = compare(*sides, "mutual_knn", null="permutation", draws=50, resamples=0)
    assert float(drawn.null_best.max()) < found.score / 5


def test_layers_that_a_sample_dominates_do_not_forbid_the_tail_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    common = torch.randn(1500, 6, generator=torch.Generator().manual_seed(0))
    sides = [{"first": common[:, :5], "second": common} for _ in range(2)]
    real = al.MutualKNN.null_shapes

    def hub_in_the_first(self: al.MutualKNN, rows: list, columns: list) -> tuple[torch.Tensor, torch.Tensor]:
        skewness, share = real(self, rows, columns)
        share[0], share[:, 0] = 1.0, 1.0
        return skewness, share

    monkeypatch.setattr(al.MutualKNN, "null_shapes", hub_in_the_first)
    found = compare(*sides, "mutual_knn", null="moments", resamples=0)
    assert "Pearson III" in found.p_method
    assert found.p_value < 1e-100


def test_moments_name_the_pair_that_is_judged_where_it_is_not_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(200, 1, generator=generator)
    sides = [
        {
            "wide": torch.randn(200, 400, generator=generator),
            "narrow": common + torch.randn(200, 1, generator=generator),
        }
        for _ in range(2)
    ]
    result = compare(*sides, "cka", null="moments", resamples=0)
    assert result.best == ("wide", "wide")
    assert result.p_value is not None
    assert result.p_value < 1e-4
    assert result.p_method.startswith("of narrow x narrow, furthest beyond its chance: ")
    alone = compare(sides[0]["narrow"], sides[1]["narrow"], "cka", null="moments", resamples=0)
    assert "furthest" not in alone.p_method
