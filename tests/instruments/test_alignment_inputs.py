"""What every metric does with arrays of the wrong kind, of any scale, and without variance in places."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from alignment_helpers import pair
from hypothesis import given, settings
from hypothesis import strategies as st

import unrolled.alignment as al
from unrolled.alignment.metric import Metric
from unrolled.alignment.network_stitching import rosetta
from unrolled.instruments import maskcut
from unrolled.ops.neighbours import nearest_neighbours
from unrolled.ops.rows import unit_rows
from unrolled.theory import normalize_tokens

METRICS: list[Metric] = [
    *(metric() for name, metric in al.METRICS.items() if name != "pls_predictivity"),
    al.PLSPredictivity(components=3, folds=3),
    al.CKA(unbiased=True),
    al.CKA(kernel="rbf", sigma=2.0),
    al.SVCCA(standardize=True),
    al.RSA(method="tau-a", dissimilarity="cosine"),
    al.RSA(method="whitened", dissimilarity="sqeuclidean"),
    al.RSA(method="pearson", dissimilarity="euclidean"),
    al.Procrustes(alpha=0.0),
]
BAD: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "masked": (lambda x: np.ma.masked_less(x, 0), r"masked array.*\.filled"),
    "masked without a mask": (np.ma.asarray, "masked array"),
    "a number": (lambda x: 3.0, r"must be \[n, d\]"),
    "none": (lambda x: None, "array of numbers"),
    "objects": (lambda x: x.astype(object), "array of numbers.*object"),
    "words": (lambda x: x.astype(str), "array of numbers"),
    "dates": (lambda x: x.astype("datetime64[s]"), "array of numbers"),
    "ragged": (lambda x: [[1.0, 2.0], [3.0]], "array of numbers"),
    "complex array": (lambda x: x + 1j, "is complex"),
    "complex tensor": (lambda x: torch.from_numpy(x) + 1j, "is complex"),
    "vector": (lambda x: x[:, 0], r"must be \[n, d\]"),
    "tokens": (lambda x: x[None], r"must be \[n, d\]"),
    "no columns": (lambda x: x[:, :0], r"must be \[n, d\]"),
    "no rows": (lambda x: x[:0], "0 samples"),
    "meta": (lambda x: torch.empty(40, 6, device="meta"), "meta device"),
    "sparse tensor": (lambda x: torch.from_numpy(x).to_sparse(), r"sparse.*to_dense"),
    "sparse rows": (lambda x: torch.from_numpy(x).to_sparse_csr(), r"sparse.*to_dense"),
    "sparse matrix": (lambda x: scipy.sparse.csr_matrix(x), r"sparse.*toarray"),
    "quantised": (lambda x: torch.quantize_per_tensor(torch.from_numpy(x).float(), 0.1, 0, torch.qint8), "dequantize"),
    "NaN": (lambda x: np.where(np.arange(40)[:, None] == 7, math.nan, x), r"NaN.*1 of 40 rows \(7\)"),
    "infinite": (lambda x: np.where(np.arange(40)[:, None] == 7, math.inf, x), r"infinite.*\(7\)"),
}
GOOD: dict[str, Callable[[np.ndarray], Any]] = {
    "reversed": lambda x: x[::-1, ::-1][::-1, ::-1][:, ::-1],
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "of the other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "long double": lambda x: x.astype(np.longdouble),
    "column-major": np.asfortranarray,
    "lists": lambda x: x.tolist(),
    "a tensor with gradients": lambda x: torch.from_numpy(x).requires_grad_(),
}


@pytest.fixture(params=METRICS, ids=repr)
def metric(request: pytest.FixtureRequest) -> Metric:
    return request.param


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", BAD)
def test_no_library_error_reaches_who_passes_a_wrong_array(metric: Metric, kind: str) -> None:
    make, message = BAD[kind]
    x, y = pair()
    bad = make(x.numpy())
    with pytest.raises(ValueError, match=f"^x.*{message}"):
        metric(bad, y)
    with pytest.raises(ValueError, match=f"^y.*{message}"):
        metric(y, bad)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", BAD)
def test_neither_do_comparisons_streams_and_searches(kind: str) -> None:
    make, message = BAD[kind]
    x, y = pair()
    bad = make(x.numpy())
    with pytest.raises(ValueError, match="array of numbers" if kind == "ragged" else message.split(".*")[0]):
        al.compare({"block00": bad}, {"block00": y}, "cka", draws=3, resamples=0)
    for stream in (al.StreamingCKA(), al.StreamingMetric("cka")):
        if kind != "no rows":
            with pytest.raises(ValueError, match=f"^x.*{message}"):
                stream.update(bad, y)
    if isinstance(bad, np.ndarray | torch.Tensor) and kind not in ("no columns", "no rows"):
        with pytest.raises(ValueError, match="x"):
            nearest_neighbours(bad, 3)
        with pytest.raises(ValueError, match="x"):
            al.mutual_knn_sampled(bad, y, 3)
    if kind not in ("NaN", "infinite"):  # losses leave looking to the trainer
        with pytest.raises(ValueError, match="x"):
            al.cka_loss(bad, y)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", GOOD)
def test_arrays_torch_cannot_share_are_taken_as_their_values(kind: str) -> None:
    x, y = pair()
    given_ = GOOD[kind](x.numpy())
    want = x.flip(1) if kind == "reversed" else x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert al.cka(given_, y) == pytest.approx(al.cka(want, y), rel=1e-12)  # sums differ with the layout
        stream = al.StreamingCKA()
        stream.update(given_, y.numpy())
        assert stream.compute() == pytest.approx(al.cka(want, y, unbiased=True))
        assert torch.equal(
            nearest_neighbours(torch.as_tensor(given_) if kind == "lists" else given_, 3).indices,
            nearest_neighbours(want, 3).indices,
        )


def test_truth_values_and_integers_count_as_numbers() -> None:
    x, y = pair()
    assert al.cka(x.numpy() > 0, y) == al.cka((x > 0).float(), y)
    large = (x * 1e3).long() + 2**40  # float32 would round the differences away
    assert al.cka(large, y, unbiased=True) == pytest.approx(
        al.cka((x * 1e3).long().double(), y, unbiased=True), abs=1e-9
    )


@pytest.mark.parametrize("power", [-30, -25, 20, 30, 35])
def test_no_scale_of_float32_changes_a_metric_that_declares_it(metric: Metric, power: int) -> None:
    x, y = (side.float() for side in pair())
    if "scale" in metric.invariances:
        value = metric(x, y)
        assert metric(x * 10.0**power, y) == pytest.approx(value, abs=1e-5)
        assert metric(x, y * 10.0**power) == pytest.approx(value, abs=1e-5)
        assert metric(x * 10.0**power, y * 10.0**-power) == pytest.approx(value, abs=1e-5)
    else:  # the kernel's width is in the units of the features
        wide = al.CKA(kernel="rbf", sigma=2.0 * 10.0**power)
        assert wide(x * 10.0**power, y * 10.0**power) == pytest.approx(metric(x, y), abs=1e-5)


def test_no_scale_of_single_rows_does_either(metric: Metric) -> None:
    x, y = (side.float() for side in pair())
    if "row_scale" in metric.invariances:
        value = metric(x, y)
        scaled = al.Representation(x * torch.logspace(-30, 30, 40)[:, None])
        assert metric(scaled, y) == pytest.approx(value, abs=1e-5)
        al.CKA().prepare(scaled)  # what another metric prepared before must not matter
        assert metric(scaled, y) == pytest.approx(value, abs=1e-5)


@given(power=st.integers(-90, 90), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=50, deadline=None)
def test_unit_rows_know_no_scale(power: int, seed: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    unit = unit_rows(x)
    assert torch.equal(unit, torch.nn.functional.normalize(x, dim=-1))
    assert torch.equal(unit_rows(x * 2.0**power), unit)
    assert torch.equal(unit_rows(torch.cat([x, 0 * x[:1]]))[3], torch.zeros(7, dtype=dtype))
    rows = x.double().requires_grad_()
    assert torch.autograd.gradcheck(unit_rows, rows)


def test_smallest_and_largest_numbers_have_unit_vectors() -> None:
    for size in (3e38, 1e-38, 1e-44):
        torch.testing.assert_close(
            unit_rows(torch.full((1, 4), size)), torch.full((1, 4), 0.5), rtol=0.2 if size < 1e-40 else 1e-6, atol=0
        )


def test_other_norms_know_no_scale_either() -> None:
    x, y = (side.float() for side in pair(36))
    for size in (1e-30, 1e30):
        assert torch.equal(maskcut(x * size, (6, 6)), maskcut(x, (6, 6)))
        torch.testing.assert_close(normalize_tokens(x * size), normalize_tokens(x))
        small, ordinary = (rosetta(side[:, None], y[:, None], draws=5) for side in (x * size, x))
        assert torch.equal(small.pairs, ordinary.pairs)
        for loss in (al.cka_loss, al.procrustes_loss, al.rsa_loss, al.soft_knn_loss):
            assert float(loss(x * size, y)) == pytest.approx(float(loss(x, y)), abs=1e-5)
        stream = al.StreamingCKA()
        stream.update(x * size, y)
        assert stream.compute() == pytest.approx(al.cka(x, y, unbiased=True), abs=1e-5)


@pytest.mark.parametrize("loss", [al.cka_loss, al.procrustes_loss, al.rsa_loss, al.soft_knn_loss])
@pytest.mark.parametrize("case", ["constant", "constant but for rounding", "zero", "a zero row"])
def test_losses_of_batches_without_structure_have_finite_gradients(loss: Any, case: str) -> None:
    y = torch.randn(16, 5)
    x = torch.full((16, 6), 0.3) * torch.linspace(0.5, 1.5, 6)
    if case == "constant but for rounding":
        x = x * (1 + 1e-7 * torch.rand(16, 1))
    elif case == "zero":
        x = torch.zeros(16, 6)
    elif case == "a zero row":
        x = torch.randn(16, 6)
        x[3] = 0
    for sides in ((x, y), (y, x), (x, x)):
        a, b = (side.clone().requires_grad_() for side in sides)
        value = loss(a, b)
        value.backward()
        assert math.isfinite(value.item())
        for side in (a, b):
            assert float(side.grad.abs().max()) < 1e3
    if case != "a zero row" and loss is not al.soft_knn_loss:
        assert float(loss(x, y)) == pytest.approx(1, abs=1e-3)


def test_partial_least_squares_ends_where_the_training_rows_do() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(100, 10, generator=g, dtype=torch.float64)
    y = x @ torch.randn(10, 6, generator=g, dtype=torch.float64) + 0.05 * torch.randn(100, 6, generator=g)
    both = [torch.cat([side, torch.full((100, 1), 3.0)], 1) for side in (x, y)]
    for side in both:
        side[0] = 0  # so that the constant column tells row 0 apart: in nine folds of ten it does not vary
    for a, b in ((both[0], y), (x, both[1]), tuple(both)):
        assert al.pls_predictivity(a, b) == pytest.approx(al.ridge_predictivity(a, b), abs=2e-3)


@pytest.mark.parametrize(
    ("n", "dx", "dy", "components"), [(60, 8, 5, 3), (40, 90, 70, 4), (30, 4, 1, 4), (25, 80, 3, 24)]
)
def test_partial_least_squares_equals_scikit_learn(n: int, dx: int, dy: int, components: int) -> None:
    from sklearn.cross_decomposition import PLSRegression

    x, y = pair(n, dx, dy)
    metric = al.PLSPredictivity(components=components, folds=4)
    a, b = metric.prepare(x), metric.prepare(y)
    prediction = torch.empty_like(b)
    for train, test in metric._splits(n, a.device):
        model = PLSRegression(min(components, len(train) - 1), scale=False, tol=1e-14, max_iter=20_000)
        fitted = model.fit(a[train].numpy(), b[train].numpy()).predict(a[test].numpy())
        prediction[test] = torch.from_numpy(fitted).reshape(len(test), -1)
    expected = np.median([np.corrcoef(prediction[:, i], b[:, i])[0, 1] for i in range(dy)])
    assert metric.compare(a, b) == pytest.approx(expected, abs=1e-5)


def test_few_wide_rows_and_nearly_constant_sides_have_a_value(metric: Metric) -> None:
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(12, 50, generator=g), torch.randn(12, 50, generator=g)
    odd = torch.randn(1, 8, generator=g).repeat(40, 1)
    odd[7] = torch.randn(8, generator=g)  # 39 equal rows of 40: constant in the training part of one fold
    other = torch.randn(40, 8, generator=g)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="subspaces of")
        for x, y in (wide, (odd, other), (other, odd), (odd, odd)):
            if isinstance(metric, al.CKA) and metric.unbiased and x is not wide[0]:
                with pytest.raises(ValueError, match="no similarity structure"):  # one sample apart is none, U-centred
                    metric(x, y)
                continue
            low, high = metric.range
            assert low <= metric(x, y) <= high


@pytest.mark.parametrize("name", ["ridge_predictivity", "pls_predictivity", "stitching"])
@pytest.mark.parametrize("rows", [4, 20])
def test_relabelling_equals_recomputing_with_duplicates(name: str, rows: int) -> None:
    g = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, 30, generator=g)[torch.randint(rows, (60,), generator=g)] for _ in range(2))
    metric = al.get_metric(name)
    for seed in range(3):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        moved = metric.compare(metric.prepare(x), metric.relabel(metric.prepare(y), order))
        assert moved == pytest.approx(metric(x, y[order]), abs=1e-9)


def test_a_column_that_is_constant_but_for_rounding_predicts_nothing() -> None:
    x, y = (side.float() for side in pair())
    noise = 0.3 * (1 + 1e-7 * torch.randn(40, 9, generator=torch.Generator().manual_seed(1)))
    for metric in (
        al.SVCCA(standardize=True), al.RidgePredictivity(alpha=1e-9), al.PLSPredictivity(components=3),
        al.SoftMatching(),
    ):  # fmt: skip
        assert metric(torch.cat([x, noise], 1), y) == pytest.approx(metric(x, y), abs=1e-3)
        assert metric(x, torch.cat([y, noise], 1)) == pytest.approx(metric(x, y), abs=1e-3)


def test_a_penalty_below_rounding_needs_no_luck_with_the_factorisation() -> None:
    x, y = pair()
    x = x[:, :1] @ torch.ones(1, 30, dtype=x.dtype)
    for alpha in (1e-300, 1e-20):
        assert -1 <= al.ridge_predictivity(x, y, alpha=alpha) <= 1
        assert al.stitching(x, y, alpha=alpha) <= 1


@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean", "sqeuclidean"])
def test_dissimilarities_that_differ_by_rounding_are_tied(dissimilarity: str) -> None:
    x = torch.randn(20, 33, generator=torch.Generator().manual_seed(3))[torch.arange(60) % 20]
    y = torch.randn(60, 9, generator=torch.Generator().manual_seed(4))
    value = al.rsa(x, y, dissimilarity=dissimilarity)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(5))
    assert al.rsa(x[:, order], y, dissimilarity=dissimilarity) == pytest.approx(value, abs=1e-9)
    assert float(al.rdm(x, dissimilarity)[0, 20]) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_legacy_rbf_is_the_published_number_in_float32(unbiased: bool, size: float) -> None:
    x, y = (size * side.float() for side in pair(64, 12, 9))
    n = len(x)
    k, l = (torch.exp(-(torch.cdist(s, s) ** 2) / 2) for s in (x, y))
    centring = torch.eye(n) - 1 / n

    def hsic(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        if not unbiased:
            return torch.trace(p @ centring @ q @ centring)
        p, q = p.clone().fill_diagonal_(0), q.clone().fill_diagonal_(0)
        paths = 2 * torch.mm(p, q).sum() / (n - 2)
        return ((p * q.T).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2)) - paths) / (n * (n - 3))

    want = float(hsic(k, l) / (torch.sqrt(hsic(k, k) * hsic(l, l)) + 1e-6))
    assert al.legacy.cka(x, y, kernel="rbf", unbiased=unbiased) == pytest.approx(want, abs=1e-7, nan_ok=True)


def test_streams_refuse_what_rounding_alone_makes_vary() -> None:
    y = torch.randn(50, 4)
    for unbiased in (False, True):
        for value in (0.3, 1e30, 1e-30):
            stream = al.StreamingCKA(unbiased=unbiased)
            stream.update(torch.full((50, 3), value), y)
            with pytest.raises(ValueError, match="x has zero variance"):
                stream.compute()
    stream = al.StreamingCKA()
    stream.update(torch.randn(50, 3, dtype=torch.float64) * 1e100, y)
    with pytest.raises(ValueError, match="too large"):
        stream.compute()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: al.mutual_knn(x, y, k=2.5), "k must be a whole number, got 2.5"),  # type: ignore[arg-type]
        (lambda x, y: al.lcs_knn(x, y, k="3"), "k must be a whole number"),  # type: ignore[arg-type]
        (lambda x, y: al.mutual_knn(x, y, k=True), "k must be a whole number"),
        (lambda x, y: al.ridge_predictivity(x, y, folds=2.5), "folds must be a whole number"),  # type: ignore[arg-type]
        (lambda x, y: al.pls_predictivity(x, y, components=2.5), "components must be"),  # type: ignore[arg-type]
        (lambda x, y: al.get_metric(["cka"]), "is not known"),  # type: ignore[arg-type]
        (lambda x, y: al.compare_rdms(np.ma.masked_less(x[:5, :5], 0), x[:5, :5]), "a is a masked array"),
        (lambda x, y: al.mutual_knn_sampled(x.tolist(), y, 3), "x must be a tensor or an array"),  # type: ignore[arg-type]
        (lambda x, y: al.compare(None, y), "features_a must be"),  # type: ignore[arg-type]
        (lambda x, y: al.prepare_features(np.ma.masked_less(x, 0)), "x is a masked array"),
    ],
)
def test_wrong_options_and_containers_are_named(call: Callable[..., Any], message: str) -> None:
    x, y = (side.numpy() for side in pair())
    with pytest.raises(ValueError, match=message):
        call(x, y)


def test_numpy_counts_and_matrices_are_taken() -> None:
    x, y = (side.numpy() for side in pair())
    assert al.mutual_knn(x, y, k=np.int64(5)) == al.mutual_knn(x, y, k=5)
    far = [al.rdm(side).numpy() for side in (x, y)]
    assert al.compare_rdms(*far) == pytest.approx(al.rsa(x, y), abs=1e-6)


def test_held_out_selection_takes_what_comparing_takes() -> None:
    x, y = (side.numpy() for side in pair(60))
    expected = al.compare(x[::-1].copy(), y, select_held_out=True, resamples=0, draws=9).held_out
    assert expected is not None
    for same in (x[::-1], x[::-1].astype(">f8")):
        assert al.compare(same, y, select_held_out=True, resamples=0, draws=9).held_out == expected
