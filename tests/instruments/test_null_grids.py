"""Relabellings scored many at a time: each metric's own way against one by one, and against the data they stand for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import unrolled.alignment as al
from unrolled.alignment.kernels import _average_ranks
from unrolled.alignment.metric import Metric
from unrolled.alignment.predictivity import _leading
from unrolled.ops.gram import gram, linear_hsic, relabelled_hsic, u_center
from unrolled.ops.permutation_moments import Factors, _symmetric_triangles, orbit_sums

pytestmark = pytest.mark.filterwarnings("ignore:.*copies of other rows", "ignore:.*correlate perfectly")

METRICS = {
    **{name: al.get_metric(name) for name in (*al.METRICS, "unbiased_cka")},
    "svcca": al.get_metric("svcca", dims=3),
    "cycle_x_then_y": al.get_metric("cycle_knn", direction="x_then_y"),
    "cycle_mean": al.get_metric("cycle_knn", direction="mean"),
    "pls_4": al.get_metric("pls_predictivity", components=4, folds=3),
    "rsa_whitened": al.get_metric("rsa", method="whitened"),
}


def side(n: int, widths: tuple[int, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(n, d, generator=generator, dtype=torch.float64) for d in widths]
    return [*layers, torch.ones(n, 3, dtype=torch.float64), one_hot(n, seed)]


def one_hot(n: int, seed: int, categories: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(categories, dtype=torch.float64)[torch.randint(categories, (n,), generator=generator)]


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_scoring_many_relabellings_at_a_time_equals_scoring_one_by_one(metric: Metric) -> None:
    n = 30
    # as many layers as make each way of laying them out in memory; narrow, and wider than the samples
    for left, right in ((side(n, (4, 40), 0), side(n, (5,), 1)), ([side(n, (4,), 0)[0]], [side(n, (5,), 1)[0]])):
        x, y = al.prepare_layers(left, [metric]), al.prepare_layers(right, [metric])
        units = al.Units.of(n, [row // 2 for row in range(n)])
        chosen = metric.for_units(units)
        orders = list(units.relabellings(18, 3))
        at_once = torch.stack(list(chosen.null_grids(x.of(metric), y.of(metric), iter(orders))))
        one_by_one = torch.stack(list(Metric.null_grids(chosen, x.of(metric), y.of(metric), orders)))
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-9, equal_nan=True)
        bests = list(chosen.null_bests(x.of(metric), y.of(metric), iter(orders)))
        expected = [float(grid[al.layers.best_pair(grid, chosen)]) for grid in one_by_one]
        np.testing.assert_allclose(bests, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", ["mutual_knn", "cknna", "cka", "unbiased_cka", "rsa", "ridge_predictivity"])
def test_a_relabelling_that_changes_nothing_reaches_the_score(metric: str) -> None:
    chosen = al.get_metric(metric)
    for n, seed in itertools.product((65, 500), range(2, 12)):
        left, right = (one_hot(n, each, 20).float() for each in (seed, seed + 1))
        x, y = (al.prepare_layers(layer, [chosen]).of(chosen) for layer in (left, right))
        among_copies = torch.argsort(right.argmax(1), stable=True)
        order = torch.empty(n, dtype=torch.long)
        for rows in among_copies.split(right.sum(0).long().tolist()):
            order[rows] = rows.flip(0)
        null = torch.cat([grid.flatten() for grid in chosen.null_grids(x, y, [order])])
        assert al.permutation_p_value(float(chosen.grid(x, y)), null) == 1.0


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 3), (3, 1), (70, 80)])
def test_leading_singular_vectors(shape: tuple[int, int]) -> None:
    matrices = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.svd(matrices).U[:, :, 0]
    matrices[1] *= 1e-90
    found = _leading(matrices)
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(5, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_product_of_zeros_has_no_leading_vector_and_spoils_no_other() -> None:
    matrices = torch.stack([torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 3.0, 2.0]))]).double()
    assert _leading(matrices).abs().tolist() == [[0, 0, 0], [0, 1, 0]]


def test_ranks_average_ties() -> None:
    assert _average_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0, 1.0, 3.0])).tolist() == [5, 1.5, 5, 3, 1.5, 5]


@pytest.mark.parametrize("unbiased", [False, True])
def test_hsic_of_many_orders(unbiased: bool) -> None:
    x, y = ((layer := side(20, (width,), 0)[0]) - layer.mean(0) for width in (3, 4))
    orders = torch.stack(list(al.relabellings(20, 5)))
    expected = torch.stack([linear_hsic(x, y[order], unbiased=unbiased) for order in orders])
    torch.testing.assert_close(relabelled_hsic(x, y, orders, unbiased=unbiased), expected)


def test_triangles_of_a_symmetric_matrix_are_counted_in_blocks() -> None:
    a = torch.randn(600, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = a + a.T + 1
    assert _symmetric_triangles(a) == pytest.approx(float((a @ a * a).sum()))


@pytest.mark.parametrize("hollow", [False, True])
def test_third_moments_from_narrow_features_are_those_of_their_kernel(hollow: bool) -> None:
    x = (layer := side(70, (3,), 0)[0].exp()) - layer.mean(0)
    kernel = u_center(gram(x)) if hollow else gram(x)
    kernel /= kernel.norm()
    for few, whole in zip(
        orbit_sums(Factors.of_kernel(x, hollow=hollow), symmetric=True).sums,
        orbit_sums(kernel, symmetric=True).sums, strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(few, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("unbiased", [False, True])
def test_shapes_of_narrow_features_are_those_of_wide_ones(unbiased: bool, size: float) -> None:
    layers = [side(70, (3,), seed)[0] for seed in (0, 1)]
    layers[0][0] *= size
    wide = [torch.cat([layer, torch.zeros(70, 67, dtype=torch.float64)], 1) for layer in layers]
    metric = al.CKA(unbiased=unbiased)
    few, whole = (metric.null_shapes(*([metric.prepare(layer)] for layer in pair)) for pair in (layers, wide))
    assert few is not None
    assert whole is not None
    for left, right in zip(few, whole, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("null", ["permutation", "moments"])
def test_relabellings_are_shown_as_they_are_scored(null: str) -> None:
    """Soft matching of wide layers takes minutes: it said nothing meanwhile."""
    seen = []

    def shown(orders: Iterable[Tensor]) -> Iterator[Tensor]:
        for order in orders:
            seen.append(order)
            yield order

    x, y = side(30, (4, 5), 0)[:2], side(30, (3,), 1)[:1]
    plain = al.compare(x, y, "soft_matching", null=null, draws=19, resamples=0)
    watched = al.compare(x, y, "soft_matching", null=null, draws=19, resamples=0, progress=shown)
    assert watched.p_value == plain.p_value
    assert len(seen) >= 10  # after ten that reach the score "moments" stops
    assert null == "moments" or len(seen) == 19
