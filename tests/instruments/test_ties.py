"""Ties do not make independent features agree, and features without ties are compared as before."""

from __future__ import annotations

import warnings

import pytest
import torch
from scipy import stats

import unrolled.alignment as al
from unrolled.alignment.copies import copied_share
from unrolled.alignment.scale import compare_large
from unrolled.ops.neighbours import nearest_neighbours

pytestmark = pytest.mark.filterwarnings("ignore:.*are copies of other rows")


def tied(kind: str, n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "one-hot":
        return torch.eye(8)[torch.randint(8, (n,), generator=generator)]
    if kind == "binary":
        return (torch.rand(n, 4, generator=generator) > 0.5).float()
    return torch.randn(n // 6, 8, generator=generator)[torch.randint(n // 6, (n,), generator=generator)]


@pytest.mark.parametrize("kind", ["one-hot", "binary", "repeated"])
@pytest.mark.parametrize("metric", ["lcs_knn", "edit_knn", "cycle_knn", "mutual_knn"])
def test_independent_features_with_ties_are_not_significant(metric: str, kind: str) -> None:
    chosen, hits, repeats = al.get_metric(metric, k=5), 0, 60
    for seed in range(repeats):
        a, b = (al.prepare_layers(tied(kind, 48, 2 * seed + side), [chosen]) for side in (0, 1))
        score = float(al.layer_grid(a, b, chosen).scores)
        hits += al.permutation_p_value(score, al.null_of_best(a, b, chosen, draws=19, seed=seed)) <= 0.05
    assert stats.binomtest(hits, repeats, 0.05).pvalue > 0.001


@pytest.mark.parametrize("kind", ["one-hot", "repeated"])
def test_sampled_neighbours_with_ties_are_not_significant(kind: str) -> None:
    hits = 0
    for seed in range(60):
        x, y = tied(kind, 240, 2 * seed), tied(kind, 240, 2 * seed + 1)
        hits += compare_large({"x": x}, {"y": y}, k=5, queries=60, draws=19, seed=seed).p_value <= 0.05
    assert stats.binomtest(hits, 60, 0.05).pvalue > 0.001


@pytest.mark.parametrize("metric", ["lcs_knn", "edit_knn", "mutual_knn"])
def test_equal_features_with_ties_agree_entirely(metric: str) -> None:
    x = tied("repeated", 60, 0)
    assert al.get_metric(metric, k=5)(x, x.clone()) == pytest.approx(1.0, abs=1e-6)


def test_lists_without_ties_are_those_of_the_search() -> None:
    x = torch.randn(80, 6, dtype=torch.float64)
    assert torch.equal(al.LCSKNN(k=7).prepare(x), nearest_neighbours(x, 7).indices)
    assert torch.equal(al.LCSKNN(k=79).prepare(x), nearest_neighbours(x, 79).indices)


def test_sampled_scores_with_ties_are_the_exact_one_when_all_are_asked() -> None:
    x, y = tied("repeated", 120, 0), tied("repeated", 120, 1)
    found = al.mutual_knn_sampled(x, y, 5, queries=120, tile=32)
    assert found.score == pytest.approx(al.mutual_knn(x, y, 5), abs=1e-6)
    assert found.chance == pytest.approx(al.chance_level("mutual_knn", x, y, k=5)[0], abs=1e-6)
    some = [al.mutual_knn_sampled(x, y, 5, queries=60, seed=seed) for seed in range(40)]
    z = torch.tensor([(each.score - found.score) / each.standard_error for each in some])
    assert abs(float(z.mean())) < 0.6
    assert 0.7 < float(z.std()) < 1.4


@pytest.mark.filterwarnings("default:.*are copies of other rows")
@pytest.mark.parametrize("metric", sorted(al.METRICS))
def test_every_metric_warns_of_many_copies(metric: str) -> None:
    x, y = torch.randn(60, 5), torch.randn(60, 4)
    chosen = al.get_metric(metric)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen(x, y)
    with pytest.warns(UserWarning, match="x: 33 % of the 60 rows are copies"):
        chosen(torch.cat([x[:50], x[:10]]), y)


def test_shares_of_copies() -> None:
    x = torch.randn(30, 3)
    assert copied_share(x) == 0
    assert copied_share(torch.cat([x, x[:10]])) == pytest.approx(20 / 40)
    assert copied_share(torch.cat([x, x[:1], x[:1]])) == pytest.approx(3 / 32)


def test_an_identical_pair_of_large_samples_has_a_p_value_above_zero() -> None:
    x = torch.randn(300, 8)
    same = compare_large({"x": x}, {"x": x}, queries=300)
    assert same.score == 1.0
    assert same.p_value is not None
    assert same.p_value == 201**-2, "as far beyond 200 relabellings as these reach"
    assert "Pareto tail" in same.p_method
    assert same.z is not None
