"""Each metric gives the number its definition gives the slow way, and the legacy ones those of the published code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from alignment_helpers import changed, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog
from scipy.spatial.distance import pdist

import unrolled.alignment as al


def neighbour_sets(x: torch.Tensor, k: int) -> list[list[int]]:
    unit = torch.nn.functional.normalize(x, dim=1)
    return (unit @ unit.T).fill_diagonal_(-9).argsort(dim=1, descending=True)[:, :k].tolist()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(6, 30), seed=st.integers(0, 999), data=st.data())
def test_neighbour_metrics_equal_their_definitions(n: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n - 1))
    x, y = pair(n, seed=seed)
    a, b = neighbour_sets(x, k), neighbour_sets(y, k)
    assert al.mutual_knn(x, y, k) == pytest.approx(
        np.mean([len(set(p) & set(q)) / k for p, q in zip(a, b, strict=True)])
    )
    assert al.cycle_knn(x, y, k) == pytest.approx(np.mean([any(i in a[j] for j in b[i]) for i in range(n)]))
    assert al.cycle_knn(x, y, k, direction="x_then_y") == pytest.approx(al.cycle_knn(y, x, k))

    def lcs(p: list[int], q: list[int]) -> int:
        table = np.zeros((k + 1, k + 1), int)
        for i in range(k):
            for j in range(k):
                table[i + 1, j + 1] = table[i, j] + 1 if p[i] == q[j] else max(table[i, j + 1], table[i + 1, j])
        return int(table[k, k])

    def edit(p: list[int], q: list[int]) -> int:
        table = np.add.outer(np.arange(k + 1), np.arange(k + 1))
        for i in range(k):
            for j in range(k):
                table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (p[i] != q[j]))
        return int(table[k, k])

    assert al.lcs_knn(x, y, k) == pytest.approx(np.mean([lcs(p, q) for p, q in zip(a, b, strict=True)]) / k)
    assert al.edit_knn(x, y, k) == pytest.approx(1 - np.mean([edit(p, q) for p, q in zip(a, b, strict=True)]) / k)


@pytest.mark.parametrize(("dx", "dy"), [(1, 1), (5, 5), (7, 3), (6, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_matching_is_the_best_share_out_of_correlations(dx: int, dy: int, dtype: torch.dtype) -> None:
    x, y = pair(33, dx, dy)
    between = np.corrcoef(x.numpy(), y.numpy(), rowvar=False)[:dx, dx:]
    sums = np.vstack([np.kron(np.eye(dx), np.ones(dy)), np.kron(np.ones(dx), np.eye(dy))])
    best = linprog(-between.ravel(), A_eq=sums, b_eq=np.repeat([1 / dx, 1 / dy], [dx, dy]))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-9
    x, y = x.to(dtype), y.to(dtype)
    assert al.soft_matching(x, y) == pytest.approx(-best.fun, abs=tolerance)
    assert al.soft_matching(x, y, kind="distance") == pytest.approx(math.sqrt(2 + 2 * best.fun), abs=tolerance)


@settings(max_examples=15, deadline=None)
@given(widths=st.tuples(*[st.integers(1, 6)] * 3), seed=st.integers(0, 999))
def test_soft_matching_distance_keeps_the_triangle_inequality(widths: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y, z = (torch.randn(9, width, generator=generator, dtype=torch.float64) for width in widths)
    distance = al.SoftMatching(kind="distance")
    assert distance(x, z) <= distance(x, y) + distance(y, z) + 1e-6


def test_soft_matching_knows_units_again_in_any_order_scale_and_number() -> None:
    x, _ = pair(50, 6, 6)
    scale = torch.tensor([1e-20, 1e20, 3.0, 1.0, 0.1, 7.0], dtype=x.dtype)
    again = (scale * x + scale)[:, [3, 1, 0, 5, 4, 2]]
    assert al.soft_matching(x, again) == pytest.approx(1)
    assert al.soft_matching(x, torch.cat([again, again], 1)) == pytest.approx(1)  # every unit twice
    assert al.soft_matching(x, -x) < 0.5  # the sign of a unit is part of it
    dead = torch.cat([again, torch.full((50, 3), 2.0, dtype=x.dtype)], 1)
    assert al.soft_matching(x, dead) == pytest.approx(1)
    with pytest.raises(ValueError, match="kind must be 'correlation' or 'distance'"):
        al.soft_matching(x, x, kind="cosine")


@settings(max_examples=15, deadline=None)
@given(n=st.integers(4, 40), share=st.floats(0, 1), seed=st.integers(0, 999), data=st.data())
def test_what_is_like_a_third_is_alike_by_as_much_as_both_leave_over(
    n: int, share: float, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n - 1))
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    a, c = a * share + b, c * share + b
    assert al.mutual_knn(a, c, k) >= al.mutual_knn(a, b, k) + al.mutual_knn(b, c, k) - 1 - 1e-9


def test_duplicates_do_not_agree_by_their_order() -> None:
    # two unrelated groupings of the samples into groups of equal rows, larger than k
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(10, 8, generator=generator)[torch.randint(10, (400,), generator=generator)] for _ in range(2))
    metric = al.MutualKNN(k=5)
    a, b = metric.prepare(x), metric.prepare(y)
    mean, variance = (float(moment) for moment in metric.null_moments([a], [b]) or ())
    assert abs(metric.compare(a, b) - mean) < 4 * math.sqrt(variance)
    assert al.mutual_knn(x, x, 5) == pytest.approx(1)
    by_index = [
        torch.sort(_one_hot_scores(s), dim=1, descending=True, stable=True).indices[:, :5].tolist() for s in (x, y)
    ]
    naive = np.mean([len(set(p) & set(q)) / 5 for p, q in zip(*by_index, strict=True)])
    assert naive > 4 * 5 / 399  # ordering ties by index would claim several times the level by chance


def _one_hot_scores(x: torch.Tensor) -> torch.Tensor:
    return (x[:, None] == x[None]).all(2).float().fill_diagonal_(-1)


def test_cknna_ends_at_unbiased_cka_and_is_near_zero_for_independent_anisotropic_features() -> None:
    x, y = pair(60)
    unit = [torch.nn.functional.normalize(s, dim=1) for s in (x, y)]
    assert al.cknna(x, y, k=59) == pytest.approx(al.cka(*unit, unbiased=True), abs=1e-9)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 64, generator=generator) + 1.5 for _ in range(2))
    assert abs(al.cknna(a, b, k=250)) < 0.05
    assert al.legacy.cknna(*(torch.nn.functional.normalize(s, dim=1) for s in (a, b)), k=250) > 1


def test_large_samples_take_the_tiled_path_to_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pair(80)
    wide = [torch.randn(80, 100, dtype=torch.float64), torch.randn(80, 90, dtype=torch.float64)]
    metrics = [al.CKNNA(k=7), al.CKA(), al.CKA(unbiased=True), al.MutualKNN(), al.LCSKNN()]
    before = [[m.compare(m.prepare(a), m.prepare(b)) for a, b in ((x, y), wide)] for m in metrics]
    for module in ("metric", "neighbours", "kernels"):
        monkeypatch.setattr(f"unrolled.alignment.{module}.DENSE_LIMIT", 20)
    for metric, values in zip(metrics, before, strict=True):
        after = [metric.compare(metric.prepare(a), metric.prepare(b)) for a, b in ((x, y), wide)]
        assert after == pytest.approx(values, abs=1e-9)
        grid = metric.grid([metric.prepare(x)], [metric.prepare(y)])
        assert float(grid) == pytest.approx(values[0], abs=1e-9)


def test_shared_kernels_change_nothing() -> None:
    x, y = pair()
    rep = al.Representation(x + 50)
    for metric in (al.CKA(), al.MutualKNN(), al.CKNNA(), al.LCSKNN()):
        fresh = metric.compare(metric.prepare(x + 50), metric.prepare(y))
        assert metric.compare(metric.prepare(rep), metric.prepare(y)) == pytest.approx(fresh, abs=1e-9)


def test_canonical_correlations_of_linear_maps_and_of_scikit_learn() -> None:
    from sklearn.cross_decomposition import CCA

    x, y = pair(200, 5, 4)
    assert al.svcca(x, changed(x, "linear", 0), dims=5) == pytest.approx(1)
    left, right = CCA(n_components=4, scale=False, max_iter=5000, tol=1e-10).fit_transform(x.numpy(), y.numpy())
    expected = np.mean([np.corrcoef(left[:, i], right[:, i])[0, 1] for i in range(4)])
    assert al.svcca(x, y, dims=4 + 1) == pytest.approx(expected, abs=1e-3)
    assert al.pwcca(x, changed(x, "linear", 0), dims=1.0) == pytest.approx(1)


def test_procrustes_is_a_metric_and_matches_scipy() -> None:
    from scipy.spatial import procrustes

    x, y = pair(30, 4, 4)
    z = torch.randn(30, 4, dtype=torch.float64)
    similarity = al.procrustes(x, y, kind="similarity")
    assert 1 - similarity**2 == pytest.approx(procrustes(x.numpy(), y.numpy())[2])
    assert al.procrustes(x, y) <= al.procrustes(x, z) + al.procrustes(z, y)
    assert al.procrustes(x, y) == pytest.approx(math.acos(similarity))


@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean", "sqeuclidean"])
def test_rsa_equals_scipy(dissimilarity: str) -> None:
    x, y = pair(25)
    u, v = pdist(x.numpy(), dissimilarity), pdist(y.numpy(), dissimilarity)
    assert al.rsa(x, y, dissimilarity=dissimilarity) == pytest.approx(stats.spearmanr(u, v).statistic)
    assert al.rsa(x, y, dissimilarity=dissimilarity, method="pearson") == pytest.approx(stats.pearsonr(u, v).statistic)
    signs = [np.sign(np.subtract.outer(w, w))[np.triu_indices(len(w), 1)] for w in (u.round(1), v.round(1))]
    rounded = [torch.from_numpy(np.zeros((25, 25))) for _ in range(2)]
    for matrix, w in zip(rounded, (u, v), strict=True):
        matrix[tuple(torch.triu_indices(25, 25, 1))] = torch.from_numpy(w.round(1))
        matrix += matrix.T.clone()
    assert al.compare_rdms(*rounded, "tau-a") == pytest.approx(float((signs[0] * signs[1]).mean()))


def test_whitened_rsa_solves_with_the_covariance_of_dissimilarities() -> None:
    n = 9
    x, y = pair(n)
    pairs = torch.triu_indices(n, n, 1).T
    contrasts = torch.zeros(len(pairs), n, dtype=torch.float64)
    rows = torch.arange(len(pairs))
    contrasts[rows, pairs[:, 0]], contrasts[rows, pairs[:, 1]] = 1, -1
    covariance = (contrasts @ contrasts.T) ** 2
    u, v = (torch.from_numpy(pdist(s.numpy(), "sqeuclidean")) for s in (x, y))
    u, v = u - u.mean(), v - v.mean()

    def product(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return p @ torch.linalg.solve(covariance, q)

    expected = product(u, v) / (product(u, u) * product(v, v)).sqrt()
    assert al.rsa(x, y, method="whitened", dissimilarity="sqeuclidean") == pytest.approx(float(expected))


def test_ridge_predicts_a_linear_map_and_not_noise_and_matches_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    x, y = pair(120, 8, 5)
    assert al.ridge_predictivity(x, x @ torch.randn(8, 3, dtype=x.dtype), alpha=1e-6) == pytest.approx(1, abs=1e-6)
    assert abs(al.ridge_predictivity(x, torch.randn(120, 30, dtype=x.dtype))) < 0.2
    metric = al.RidgePredictivity(alpha=2.0, folds=4)
    a, b = metric.prepare(x), metric.prepare(y)
    prediction = torch.empty_like(b)
    for train, test in metric._splits(120, a.device):
        fitted = Ridge(alpha=2.0).fit(a[train].numpy(), b[train].numpy())
        prediction[test] = torch.from_numpy(fitted.predict(a[test].numpy()))
    expected = np.median([np.corrcoef(prediction[:, i], b[:, i])[0, 1] for i in range(5)])
    assert metric(x, y) == pytest.approx(expected)
    wide = torch.randn(30, 200, dtype=x.dtype)
    assert -1 <= al.ridge_predictivity(wide, y[:30]) <= 1


def test_stitching_needs_the_offset_it_is_not_given() -> None:
    x, _ = pair(100, 4)
    y = x @ torch.randn(4, 6, dtype=x.dtype) + 20
    assert al.stitching(x, y) == pytest.approx(1, abs=1e-4)
    assert al.stitching(x, y, affine=False) < 0.5


def test_preparation_limits_outliers_per_layer_or_over_all_layers() -> None:
    layers = [torch.randn(20, 4), 10 * torch.randn(20, 6)]
    separate = al.prepare_features(layers, normalize=False)
    together = al.prepare_features(layers, normalize=False, threshold="global")
    assert separate[0].abs().max() == layers[0].abs().flatten().sort().values[int(0.95 * 80)]
    assert float(together[0].abs().max()) == float(layers[0].abs().max())
    named = al.prepare_features({"block00": layers[0]})
    torch.testing.assert_close(named["block00"].norm(dim=1), torch.ones(20))
    stacked = torch.stack([layers[0], layers[0] * 5], 1)
    torch.testing.assert_close(al.prepare_features(stacked)[:, 0], al.prepare_features(stacked)[:, 1])
    assert torch.equal(al.prepare_features(layers[0], clamp=None, normalize=False), layers[0])
    for bad in ({"clamp": 0.0}, {"threshold": "x"}, {"quantile": "x"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            al.prepare_features(layers[0], **bad)


# --- the published code ---------------------------------------------------------------------------------------------


def test_legacy_metrics_reproduce_the_published_numbers(shared: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(shared / "golden" / "alignment.safetensors")
    golden = json.loads((shared / "golden" / "alignment.json").read_text())
    values, k = golden["values"], golden["topk"]
    assert torch.equal(al.prepare_features(tensors["a"], normalize=False), tensors["a_clamped_exact"])
    torch.testing.assert_close(
        al.prepare_features(tensors["a"], normalize=False, quantile="per_sample"), tensors["a_clamped_inexact"]
    )
    x, y = al.prepare_features(tensors["a"]), al.prepare_features(tensors["b"])
    ours = {
        "cycle_knn": al.legacy.cycle_knn(x, y, k),
        "mutual_knn": al.legacy.mutual_knn(x, y, k),
        "lcs_knn": al.legacy.lcs_knn(x, y, k),
        "edit_distance_knn": al.legacy.edit_knn(x, y, k),
        "cka": al.legacy.cka(x, y),
        "unbiased_cka": al.legacy.cka(x, y, unbiased=True),
        "cka_rbf_sigma1": al.legacy.cka(x, y, kernel="rbf"),
        "cka_rbf_sigma1_unbiased": al.legacy.cka(x, y, kernel="rbf", unbiased=True),
        "cknna": al.legacy.cknna(x, y, k),
        "cknna_biased": al.legacy.cknna(x, y, k, unbiased=False),
        "mutual_knn_without_outlier_clamp": al.mutual_knn(tensors["a"], tensors["b"], k),
    }
    for name, value in ours.items():
        assert value == pytest.approx(values[name], abs=2e-4), name
    assert al.legacy.svcca(x, y, golden["svcca_dim"]) == pytest.approx(values["svcca"], abs=0.02)
    # where the published form is right, the corrected metrics agree with it
    assert al.mutual_knn(x, y, k) == pytest.approx(values["mutual_knn"], abs=2e-4)
    assert al.cycle_knn(x, y, k) == pytest.approx(values["cycle_knn"], abs=2e-4)
    assert al.lcs_knn(x, y, k) * k == pytest.approx(values["lcs_knn"], abs=2e-4)
    assert al.cka(x, y) == pytest.approx(values["cka"], abs=2e-4)
    assert al.cka(x, y, unbiased=True) == pytest.approx(values["unbiased_cka"], abs=2e-4)


def test_legacy_faults_are_there_and_corrected() -> None:
    x, y = pair(50)
    small = x * 1e-3
    assert al.legacy.cka(small, small) < 0.99
    assert al.cka(small, small) == pytest.approx(1)
    unseeded = {al.legacy.svcca(x, y, 3, seed=seed) for seed in (0, 1, 0)}
    assert len(unseeded) == 2
    assert al.svcca(x, y, 3) == al.svcca(x, y, 3)
    with pytest.raises(ValueError, match="k must be between 2"):
        al.legacy.cknna(x, y, 1)


def test_every_public_name_is_there() -> None:
    for name in al.__all__:
        assert hasattr(al, name), name
