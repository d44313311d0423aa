"""What is equal but for rounding stays equal: in ranks, in ceilings, between a score and its nulls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

import unrolled.alignment as al
from unrolled.alignment import kernels
from unrolled.alignment.layers import prepare_layers
from unrolled.alignment.people import correlation_rdms, noise_ceiling, unit_ranks, upper
from unrolled.alignment.registry import get_metric
from unrolled.alignment.scale import compare_large
from unrolled.alignment.significance import SMALLEST, cantelli_bound


def rated(people: int, levels: int, n: int, seed: int) -> np.ndarray:
    """Dissimilarities [people, n, n] of so many levels."""
    rng = np.random.default_rng(seed)
    values = np.triu(rng.integers(1, levels + 1, (people, n, n)), 1).astype(float)
    return values + values.swapaxes(1, 2)


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_a_ceiling_of_two_people_is_how_their_ratings_correlate(levels: int) -> None:
    people = rated(2, levels, 30, seed=levels)
    low, high = noise_ceiling(people)
    expected = spearmanr(*upper(people)).statistic
    assert low == pytest.approx(expected, abs=1e-10)
    assert high >= low


def test_a_ceiling_of_many_people_is_by_the_others_ratings() -> None:
    people = rated(4, 3, 25, seed=0)
    ranks = unit_ranks(upper(people))

    expected = []
    for i in range(4):
        others = np.delete(ranks, i, 0).sum(0).round(9)
        expected.append(spearmanr(others, upper(people)[i]).statistic)
    assert noise_ceiling(people)[0] == pytest.approx(np.mean(expected), abs=1e-9)


def test_distances_that_differ_by_rounding_are_tied_beside_people() -> None:
    labels = torch.arange(40) % 5
    layer = F.one_hot(labels, 5).float()
    distances = upper(correlation_rdms([layer]))[0]
    assert len(np.unique(unit_ranks(distances[None])[0].round(12))) == 2
    assert unit_ranks(np.zeros((1, 6))).tolist() == [[0.0] * 6]


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_tiles_rank_where_the_largest_dissimilarity_is_one(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [
        (torch.randn(60, 8, generator=generator).relu() * (torch.rand(60, 8, generator=generator) < 0.4)).double()
        + 1e-3 * torch.eye(60, 8).double()
        for _ in range(2)
    ]
    sides = [torch.where(side.sum(1, keepdim=True) == 0, torch.eye(60, 8).double(), side) for side in sides]
    whole = al.rsa(*sides, method=method, dissimilarity="cosine")
    monkeypatch.setattr(kernels, "RSA_DENSE", 10)
    assert al.rsa(*sides, method=method, dissimilarity="cosine") == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("name", ["mutual_knn", "cknna", "unbiased_cka", "cka", "rsa"])
@pytest.mark.parametrize("n", [65, 200, 500])
def test_a_relabelling_that_changes_nothing_reaches_the_score(name: str, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, y = (F.one_hot(torch.randint(0, 2, (n,), generator=generator), 2).float() for _ in range(2))
    first = y.argmax(1) == 0
    order = torch.arange(n)
    for some in (first, ~first):  # within a class all samples are alike
        places = some.nonzero().flatten()
        order[places] = places[torch.randperm(len(places), generator=generator)]
    metric = get_metric(name)
    left, right = (prepare_layers({"layer": side}, [metric]).of(metric) for side in (x, y))
    score = float(metric.grid(left, right))
    (null,) = metric.null_grids(left, right, [order])
    assert al.permutation_p_value(score, null.flatten()) == 1.0


def test_where_no_relabelling_changes_the_score_there_is_no_evidence() -> None:
    for seed in range(20):
        n, k = 20 + 2 * seed, 3 + seed % 8
        other = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
        result = al.compare(torch.eye(n), other, "mutual_knn", k=k, null="moments")
        assert result.p_value == 1.0
        assert result.z is None
    grid = al.compare({"ids": torch.eye(40), "other": torch.randn(40, 5)}, torch.randn(40, 5), null="moments")
    assert grid.p_value > 1e-3
    assert cantelli_bound(1e200, 3).value == SMALLEST


def test_layers_of_two_precisions_compare_above_the_dense_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "DENSE_LIMIT", 50)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, 4, generator=generator) for _ in range(2))
    wide = al.compare(x.double(), y.double(), "cka").score
    assert al.compare(x, y.double(), "cka").score == pytest.approx(wide, rel=1e-5)


@pytest.mark.parametrize("name", ["mutual_knn", "cknna", "cycle_knn", "lcs_knn"])
@pytest.mark.parametrize("offset", ["everywhere", "one channel"])
def test_neighbours_are_those_of_float64_where_all_rows_point_one_way(name: str, offset: str) -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(200, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    sides = [signal + 4 * torch.randn(200, 64, generator=generator) for _ in range(2)]
    far = torch.full((64,), 3000.0) if offset == "everywhere" else 30000.0 * F.one_hot(torch.tensor(3), 64)
    sides = [side + far for side in sides]  # float32 holds what is left to four digits
    metric = get_metric(name)
    assert metric(*sides) == pytest.approx(metric(*(side.double() for side in sides)), abs=1e-6)


def test_a_large_comparison_warns_where_all_rows_point_one_way() -> None:
    x = torch.randn(300, 8) + 1000
    with pytest.warns(UserWarning, match="'a': its rows point so nearly one way"):
        compare_large({"a": x}, {"b": torch.randn(300, 8)}, "mutual_knn", queries=50, draws=5)


def test_a_large_comparison_has_no_z_where_nothing_moves() -> None:
    result = compare_large({"ids": torch.eye(151)}, {"b": torch.randn(151, 8)}, "mutual_knn", queries=151, draws=20)
    assert result.z is None


def test_layers_of_one_name_and_missing_labels_are_refused() -> None:
    x, y = torch.randn(30, 4), torch.randn(30, 4)
    with pytest.raises(ValueError, match="features_a has two layers of the name 'b'"):
        al.compare([("b", x), ("b", y)], y)
    for missing in (None, float("nan")):
        labels = np.array([missing, *"abcdefghijklmnopqrstuvwxyzABC"], dtype=object)
        with pytest.raises(ValueError, match="groups has 1 missing labels"):
            al.compare(x, y, groups=labels)
