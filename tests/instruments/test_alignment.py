"""Each metric keeps the promises it declares."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from alignment_helpers import changed, pair

import unrolled.alignment as al
from unrolled.alignment.metric import Metric

VARIANTS: list[Metric] = [
    *(metric() for metric in al.METRICS.values() if metric.name not in ("pls_predictivity", "cycle_knn")),
    al.CycleKNN(k=2),
    al.MutualKNN(k=3),
    al.CycleKNN(k=2, direction="mean"),
    al.CycleKNN(k=2, direction="x_then_y"),
    al.CKNNA(k=39),
    al.CKA(unbiased=True),
    al.CKA(kernel="rbf", sigma=2.0),
    al.CKA(kernel="rbf", sigma=2.0, unbiased=True),
    al.SVCCA(dims=0.8),
    al.SVCCA(standardize=True),
    al.Procrustes(kind="euclidean"),
    al.Procrustes(kind="similarity", alpha=0.5),
    al.Procrustes(alpha=0.0),
    al.SoftMatching(kind="distance"),
    al.RSA(method="pearson", dissimilarity="sqeuclidean"),
    al.RSA(method="tau-a", dissimilarity="cosine"),
    al.RSA(method="whitened", dissimilarity="euclidean"),
    al.PLSPredictivity(components=3, folds=3),
    al.Stitching(affine=False),
]
EXACT_ON_ITSELF = {
    "mutual_knn", "lcs_knn", "edit_knn", "cknna", "cka", "svcca", "pwcca", "procrustes", "soft_matching", "rsa",
}  # fmt: skip


@pytest.fixture(params=VARIANTS, ids=repr)
def metric(request: pytest.FixtureRequest) -> Metric:
    return request.param


CHANGES = ("rotation", "scale", "row_scale", "offset", "permutation", "linear")
# a change of x that the definition must notice, for the metrics that do not declare it
NOTICED = {
    "mutual_knn": "offset", "cka": "linear", "rsa": "linear", "cknna": "offset", "lcs_knn": "linear",
    "soft_matching": "rotation",
}  # fmt: skip


def inside(metric: Metric, value: float) -> bool:
    low, high = metric.range
    return isinstance(value, float) and low <= value <= high


def test_metric_keeps_its_declared_invariances_on_both_sides(metric: Metric) -> None:
    x, y = pair()
    value = metric(x, y)
    assert metric.invariances <= set(CHANGES)
    for how in metric.invariances:
        assert metric(changed(x, how, 1), y) == pytest.approx(value, abs=1e-6), f"x {how}"
        assert metric(x, changed(y, how, 2)) == pytest.approx(value, abs=1e-6), f"y {how}"
    if metric.name in NOTICED and NOTICED[metric.name] not in metric.invariances:
        assert metric(changed(x, NOTICED[metric.name], 3), y) != pytest.approx(value, abs=1e-6)


def test_metric_keeps_its_declared_symmetry_and_direction(metric: Metric) -> None:
    x, y = pair()
    forward, backward = metric(x, y), metric(y, x)
    if metric.symmetric:
        assert forward == pytest.approx(backward, abs=1e-9)
    _, unrelated = pair(shared=0.0, seed=5)
    own, other = metric(x, x), metric(x, unrelated)
    assert own > other if metric.higher_is_closer else own < other
    if metric.name in EXACT_ON_ITSELF:
        best = metric.range[1 if metric.higher_is_closer else 0]
        assert own == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    "case", ["independent", "duplicates", "rank one", "wide", "float32", "scaled rows", "one-hot", "huge mean"]
)
def test_metric_stays_in_range(metric: Metric, case: str) -> None:
    x, y = pair(shared=0.0)
    if case == "duplicates":
        x, y = x[:6].repeat(7, 1)[:40], y[:4].repeat(10, 1)
    elif case == "rank one":
        x = x[:, :1] @ torch.ones(1, 6, dtype=x.dtype)
        if getattr(metric, "dissimilarity", "") == "correlation":
            pytest.skip("all rows are constant: there is no correlation distance")
    elif case == "wide":
        x, y = torch.randn(40, 300, dtype=x.dtype), torch.randn(40, 200, dtype=x.dtype)
    elif case == "float32":
        x, y = x.float(), y.float()
    elif case == "scaled rows":
        x, y = x * torch.logspace(-6, 6, 40, dtype=x.dtype)[:, None], y
    elif case == "one-hot":
        x = torch.eye(8, dtype=x.dtype).repeat(5, 1)
    elif case == "huge mean":
        x = x + 1e3
    if case == "wide" and isinstance(metric, al.CKA) and metric.kernel == "rbf" and metric.unbiased:
        with pytest.raises(ValueError, match="no similarity structure"):  # every sample is equally far from every other
            metric(x, y)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="subspaces of")
        assert inside(metric, metric(x, y))


def test_subspaces_that_must_correlate_are_called_out() -> None:
    with pytest.warns(UserWarning, match="subspaces of 39 and 39 dimensions among 40 samples"):
        assert al.pwcca(torch.randn(40, 60), torch.randn(40, 60), dims=1.0) == pytest.approx(1)


def test_constant_features_have_no_similarity(metric: Metric) -> None:
    x, y = pair()
    with pytest.raises(ValueError, match="x has zero variance"):
        metric(torch.ones_like(x), y)
    with pytest.raises(ValueError, match="y has zero variance"):
        metric(x, torch.full_like(y, 0.3))


def test_metric_relabels_what_it_prepared(metric: Metric) -> None:
    x, y = pair()
    order = torch.randperm(40)
    a, b = metric.prepare(x), metric.prepare(y)
    moved = metric.compare(metric.relabel(a, order), metric.relabel(b, order))
    if metric.name not in ("ridge_predictivity", "pls_predictivity", "stitching"):  # folds are drawn by position
        assert moved == pytest.approx(metric.compare(a, b), abs=1e-6)
    assert metric.compare(a, metric.relabel(b, order)) == pytest.approx(metric(x, y[order]), abs=1e-6)


def test_metric_grid_equals_pairs_and_keeps_gaps(metric: Metric) -> None:
    rows = [metric.prepare(pair(seed=s)[0]) for s in range(2)]
    columns = [metric.prepare(pair(seed=s)[1]) for s in range(2)]
    grid = metric.grid(rows, [columns[0], None, columns[1]])
    assert grid.shape == (2, 3)
    assert bool(torch.isnan(grid[:, 1]).all())
    for i in range(2):
        for j in range(2):
            assert float(grid[i, 2 * j]) == pytest.approx(metric.compare(rows[i], columns[j]), abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(5, 2), torch.randn(6, 2), "x has 5 samples and y 6"),
        (torch.randn(5), torch.randn(5, 2), r"x must be \[n, d\]"),
        (torch.randn(1, 2), torch.randn(1, 2), "at least 2"),
        (
            torch.tensor([[0.0, 1], [math.nan, 2], [3, math.inf]]),
            torch.randn(3, 2),
            r"x has NaN or infinite values in 2 of 3 rows \(1, 2\)",
        ),
        (torch.randn(5, 2), torch.randn(5, 2, device="meta"), "x is on cpu and y on meta"),
        ([["a", "b"]], torch.randn(5, 2), "x must be an array of numbers"),
        (torch.randn(5, 2, dtype=torch.complex64), torch.randn(5, 2), "complex"),
    ],
)
def test_bad_features_are_named(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    if isinstance(y, torch.Tensor) and y.device.type == "meta":
        left, right = al.Representation(x), al.Representation(torch.randn(5, 2))
        right.x = y
        with pytest.raises(ValueError, match=message):
            al.cka(left, right)
        return
    with pytest.raises(ValueError, match=message):
        al.cka(x, y)


def test_bad_options_are_named() -> None:
    x, y = pair()
    with pytest.raises(ValueError, match="k must be between 1 and n - 1 = 39"):
        al.mutual_knn(x, y, k=40)
    with pytest.raises(ValueError, match="at least 4"):
        al.cka(x[:3], y[:3], unbiased=True)
    with pytest.raises(ValueError, match=r"metric='mutual' is not known; did you mean 'mutual_knn'"):
        al.get_metric("mutual")
    with pytest.raises(ValueError, match="cka has no option 'k': it has unbiased, kernel, sigma"):
        al.get_metric("unbiased_cka", k=3)
    with pytest.raises(ValueError, match="kernel"):
        al.cka(x, y, kernel="poly")
    with pytest.raises(ValueError, match="x has 1 column, which correlates with nothing"):
        al.rsa(x[:, :1], y)


def test_inputs_may_be_numpy_half_integer_or_of_two_dtypes() -> None:
    x, y = pair()
    assert al.cka(x.numpy(), y.float()) == pytest.approx(al.cka(x, y), abs=1e-6)
    assert al.cka(x.bfloat16(), y.bfloat16()) == pytest.approx(al.cka(x, y), abs=1e-2)
    counts = torch.randint(0, 9, (40, 5))
    assert al.mutual_knn(counts, counts) == 1.0
    assert not al.METRICS["cka"]().prepare(x.requires_grad_()).vector.requires_grad
