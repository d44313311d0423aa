"""Nulls are calibrated: closed forms agree with permutations, tests keep their size, and intervals cover."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import unrolled.alignment as al
from unrolled.alignment import embedded


def features(n: int, d: int, *, seed: int, shared: torch.Tensor | None = None, spectrum: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) * torch.arange(1, d + 1).float() ** -spectrum
    return x if shared is None else x + shared @ torch.randn(shared.shape[1], d, generator=generator)


CLOSED_FORM = [
    al.MutualKNN(k=10),
    al.CKNNA(k=10),
    al.CKNNA(k=60),
    al.CKA(),
    al.CKA(unbiased=True),
    al.CKA(kernel="rbf", sigma=3.0),
    al.CKA(kernel="rbf", sigma=3.0, unbiased=True),
    al.RSA(),
    al.RSA(method="pearson", dissimilarity="sqeuclidean"),
    al.RSA(method="whitened", dissimilarity="euclidean"),
]


@pytest.mark.parametrize("metric", CLOSED_FORM, ids=repr)
def test_closed_form_moments_agree_with_4000_permutations(metric: al.Metric) -> None:
    n, draws = 72, 4000
    shared = torch.randn(n, 3)
    x, y = (
        features(n, 20, seed=0, shared=shared, spectrum=0.5),
        features(n, 12, seed=1, shared=shared, spectrum=1.0) + 0.3,
    )
    a, b = metric.prepare(x), metric.prepare(y)
    mean, variance = (float(moment) for moment in metric.null_moments([a], [b]) or ())
    null = torch.cat([grid.flatten() for grid in metric.null_grids([a], [b], al.relabellings(n, draws))])
    std = math.sqrt(variance)
    assert float(null.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(draws))
    # the standard error of a standard deviation, allowing for the kurtosis of the null
    kurtosis = float(stats.kurtosis(null.numpy(), fisher=False))
    assert float(null.std()) == pytest.approx(std, rel=4 * math.sqrt((kurtosis - 1) / (4 * draws)))


@pytest.mark.parametrize("metric", CLOSED_FORM, ids=repr)
def test_closed_form_moments_are_exact_over_all_permutations(metric: al.Metric) -> None:
    if getattr(metric, "k", 0) > 4:
        metric = type(metric)(k=3)  # type: ignore[call-arg]
    x, y = features(6, 5, seed=2).double(), features(6, 4, seed=3).double()
    a, b = metric.prepare(x), metric.prepare(y)
    mean, variance = (float(moment) for moment in metric.null_moments([a], [b]) or ())
    orders = (torch.tensor(order) for order in itertools.permutations(range(6)))
    null = torch.cat([grid.flatten() for grid in metric.null_grids([a], [b], orders)])
    assert float(null.mean()) == pytest.approx(mean, abs=1e-9)
    assert float(null.var(correction=0)) == pytest.approx(variance, rel=1e-6)


def test_known_chance_levels() -> None:
    x, y = features(200, 30, seed=0), features(200, 40, seed=1)
    assert al.chance_level("mutual_knn", x, y)[0] == pytest.approx(10 / 199)
    mean, std = al.chance_level("unbiased_cka", x, y)
    assert (mean, std) == (pytest.approx(0, abs=1e-6), pytest.approx(math.sqrt(2 / (200 * 197)), rel=1e-4))
    spectra = [torch.linalg.svdvals(side - side.mean(0)).square() for side in (x, y)]
    ratios = [float(spectrum.sum() ** 2 / spectrum.square().sum()) for spectrum in spectra]
    assert al.chance_level("cka", x, y)[0] == pytest.approx(math.sqrt(ratios[0] * ratios[1]) / 199, rel=1e-4)
    drawn, _ = al.chance_level("svcca", x, y, draws=20)
    assert 0.1 < drawn < 0.5


@pytest.mark.parametrize("metric", ["mutual_knn", "cka", "unbiased_cka", "cknna", "rsa", "procrustes", "lcs_knn"])
@pytest.mark.parametrize("few", [0, 384])
def test_null_grids_equal_computing_on_relabelled_features(
    metric: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FEW", few)
    chosen = al.get_metric(metric)
    a, b = ([features(40, d, seed=s) for d in widths] for s, widths in ((0, (5, 6)), (1, (4, 7, 30))))
    orders = list(al.relabellings(40, 3))
    left, right = al.prepare_layers(a, [chosen]), al.prepare_layers(b, [chosen])
    for swap in (False, True):
        rows, columns = (right, left) if swap else (left, right)
        for order, grid in zip(orders, chosen.null_grids(rows.of(chosen), columns.of(chosen), orders), strict=True):
            expected = [[chosen(x, y[order]) for y in (a if swap else b)] for x in (b if swap else a)]
            np.testing.assert_allclose(grid.numpy(), expected, atol=1e-5)


def false_positives(metric: str, layers: tuple[int, int], *, n: int, repeats: int, draws: int) -> int:
    chosen, hits = al.get_metric(metric), 0
    for repeat in range(repeats):
        sides = []
        for side, count in enumerate(layers):
            stack = [features(n, 8, seed=1000 * repeat + 50 * side + i) for i in range(count)]
            # layers of one model are alike, as in reality
            sides.append(al.prepare_layers([layer + 2 * stack[0] for layer in stack], [chosen]))
        score = al.layer_grid(*sides, chosen).scores.max()
        null = al.null_of_best(*sides, chosen, draws=draws, seed=repeat)
        hits += al.permutation_p_value(float(score), null) <= 0.05
    return hits


@pytest.mark.parametrize(
    "metric", ["unbiased_cka", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mutual_knn", "cka", "cknna"))]
)
def test_the_best_of_many_layers_is_significant_in_five_percent_of_independent_data(metric: str) -> None:
    repeats = 200
    hits = false_positives(metric, (3, 4), n=40, repeats=repeats, draws=39)
    # with 39 draws p <= 0.05 has probability at most exactly 2/40
    assert stats.binomtest(hits, repeats, 0.05).pvalue > 0.001


def test_ignoring_the_search_over_layers_would_not_keep_the_size() -> None:
    chosen, hits, repeats = al.CKA(unbiased=True), 0, 60
    for repeat in range(repeats):
        stacks = ([features(40, 8, seed=99 * repeat + 7 * side + i) for i in range(5)] for side in (0, 1))
        a, b = (al.prepare_layers(stack, [chosen]) for stack in stacks)
        grid = al.layer_grid(a, b, chosen)
        row, column = divmod(int(grid.scores.argmax()), 5)
        single = [
            al.Layers(["it"], 40, {repr(chosen): [side.of(chosen)[i]]}, []) for side, i in ((a, row), (b, column))
        ]
        null = al.null_of_best(*single, chosen, draws=39)
        hits += al.permutation_p_value(float(grid.scores.max()), null) <= 0.05
    assert hits > 0.25 * repeats


def test_held_out_selection_keeps_the_size() -> None:
    hits = 0
    for repeat in range(100):
        a, b = ([features(60, 6, seed=500 * repeat + 10 * side + i) for i in range(4)] for side in (0, 1))
        hits += al.held_out(a, b, "unbiased_cka", draws=19, seed=repeat).p_value <= 0.05
    assert stats.binomtest(hits, 100, 0.05).pvalue > 0.001


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        pytest.param("mutual_knn", {"k": 5}, marks=pytest.mark.slow),
        ("unbiased_cka", {}),
        pytest.param("rsa", {}, marks=pytest.mark.slow),
    ],
)
def test_intervals_cover_the_expected_score(metric: str, options: dict) -> None:
    chosen = al.get_metric(metric, **options)

    def draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        shared = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
        mixing = torch.randn(4, 18, generator=torch.Generator().manual_seed(0))  # one pair of models, many samples
        noise = torch.randn(60, 18, generator=torch.Generator().manual_seed(seed + 10_000))
        both = shared @ mixing + noise
        return both[:, :10], both[:, 10:]

    expected = np.mean([chosen(*draw(seed)) for seed in range(1000, 1300)])
    intervals = [al.score_interval(*draw(seed), chosen, resamples=40, seed=seed) for seed in range(60)]
    covered = sum(low <= expected <= high for low, high in intervals)
    assert covered >= 51  # 95 % nominal; fewer than 51 of 60 would be unlikely even at 92 %


def test_comparison_finds_the_planted_layers_and_never_shows_a_bare_score() -> None:
    shared = torch.randn(120, 5)
    a = {f"a{i}": features(120, 9, seed=i) for i in range(3)} | {"a_match": features(120, 9, seed=8, shared=3 * shared)}
    b = {
        "b_constant": torch.ones(120, 4),
        "b0": features(120, 7, seed=5),
        "b_match": features(120, 7, seed=9, shared=3 * shared),
    }
    result = al.compare(a, b, "mutual_knn", k=5, draws=99, resamples=20, select_held_out=True)
    assert result.best == ("a_match", "b_match")
    assert result.p_value == pytest.approx(0.01)
    assert result.score == pytest.approx(al.mutual_knn(a["a_match"], b["b_match"], 5))
    assert result.calibrated is not None
    assert 0 < result.calibrated < result.score
    assert result.threshold is not None
    assert result.chance < result.threshold < result.score
    assert result.interval is not None
    assert result.interval[0] < result.score < result.interval[1]
    assert result.held_out is not None
    assert result.held_out.pair == result.best
    assert result.constant == ([], ["b_constant"])
    assert bool(torch.isnan(result.scores[:, 0]).all())
    text = result.summary()
    assert "chance" in text
    assert "p = 0.01 (99 relabellings, best of 12 pairs)" in text
    assert json.loads(json.dumps(result.to_dict()))["best"] == ["a_match", "b_match"]
    again = al.compare(a, b, "mutual_knn", k=5, draws=99, resamples=20)
    assert again.interval == result.interval
    assert torch.equal(again.null_best, result.null_best)  # type: ignore[arg-type]


def test_comparison_of_distances_looks_for_the_smallest() -> None:
    shared = torch.randn(60, 5)
    a = [features(60, 6, seed=0), features(60, 6, seed=1, shared=4 * shared)]
    b = [features(60, 6, seed=2, shared=4 * shared), features(60, 6, seed=3)]
    result = al.compare(a, b, "procrustes", draws=19, resamples=0)
    assert result.best == ("layer01", "layer00")
    assert result.p_value == pytest.approx(0.05)
    assert result.score < result.chance
    assert result.calibrated is not None
    assert 0 < result.calibrated <= 1
    assert result.interval is None


def test_moments_null_and_what_it_says() -> None:
    x, y = features(50, 6, seed=0), features(50, 6, seed=1)
    result = al.compare(x, y, "cka", null="moments", resamples=0)
    assert result.chance == pytest.approx(al.chance_level("cka", x, y)[0])
    assert result.p_value is not None
    assert "Pearson III" in result.p_method
    assert result.p_method in result.summary()
    drawn = al.compare(x, y, "cka", draws=2000, resamples=0)
    assert result.p_value == pytest.approx(drawn.p_value, abs=0.03)
    # a metric without a closed form is drawn, and says so
    other = al.compare(x, y, "svcca", null="moments", resamples=0)
    assert "relabellings" in other.p_method
    assert other.p_value == pytest.approx(al.compare(x, y, "svcca", draws=999, resamples=0).p_value, abs=0.15)
    for bad in ({"null": "none"}, {"draws": 0}, {"alpha": 0.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            al.compare(x, y, "cka", **bad)


def test_layers_prepared_once_serve_several_metrics_and_models() -> None:
    stack = torch.randn(40, 3, 8)
    layers = al.prepare_layers((stack[:, i] for i in range(3)), ["mutual_knn", "cka"])
    other = al.prepare_layers(stack, ["mutual_knn", "cka"])
    assert other.names == ["layer00", "layer01", "layer02"]
    grid = al.layer_grid(layers, other, "cka")
    torch.testing.assert_close(grid.scores.diagonal(), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)
    assert al.compare(layers, other, "mutual_knn", draws=19).score == 1.0
    with pytest.raises(ValueError, match="prepare them again"):
        al.layer_grid(layers, other, "cknna")
    with pytest.raises(ValueError, match="layer b has 4 samples and a 5"):
        al.prepare_layers({"a": torch.randn(5, 2), "b": torch.randn(4, 2)}, ["cka"])
    with pytest.raises(ValueError, match="features_a has 40 samples and features_b 5"):
        al.layer_grid(layers, al.prepare_layers(torch.randn(5, 2), ["cka"]), "cka")
    with pytest.raises(ValueError, match="a has NaN"):
        al.prepare_layers({"a": torch.full((5, 2), math.nan)}, ["cka"])
    with pytest.raises(ValueError, match="all layers have zero variance"):
        al.prepare_layers([torch.ones(5, 2)], ["cka"])
    with pytest.raises(ValueError, match="no layers"):
        al.prepare_layers([], ["cka"])


@settings(max_examples=50, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_false_discovery_rates_equal_scipy(p: list[float]) -> None:
    adjusted, rejected = al.benjamini_hochberg(p)
    np.testing.assert_allclose(adjusted.numpy(), stats.false_discovery_control(p, method="bh"), atol=1e-12)
    assert torch.equal(rejected, adjusted <= 0.05)


def test_false_discovery_rate_is_kept_over_many_pairs() -> None:
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        p = np.concatenate([generator.uniform(size=40), generator.uniform(0, 1e-4, size=10)])
        _, rejected = al.benjamini_hochberg(p, alpha=0.1)
        shares.append(float(rejected[:40].sum()) / max(1, int(rejected.sum())))
    assert np.mean(shares) < 0.1
    with pytest.raises(ValueError, match="p_values"):
        al.benjamini_hochberg([1.2])


def test_threshold_is_an_order_statistic_and_the_scale_ends_at_one() -> None:
    null = torch.arange(19).double() / 100
    threshold, calibrated = al.calibrate(0.5, null, al.MutualKNN(), alpha=0.05)
    assert threshold == pytest.approx(0.18)
    assert calibrated == pytest.approx((0.5 - 0.18) / (1 - 0.18))
    assert al.calibrate(1.0, null, al.MutualKNN())[1] == 1.0
    assert al.calibrate(0.1, null, al.MutualKNN())[1] == 0.0
    assert al.calibrate(1.0, torch.ones(19), al.MutualKNN())[1] == 0.0


def test_bad_intervals_are_refused() -> None:
    x, y = features(12, 4, seed=0), features(12, 4, seed=1)
    with pytest.raises(ValueError, match="12 samples are too few"):
        al.score_interval(x, y, "mutual_knn", k=10)
    with pytest.raises(ValueError, match="resamples"):
        al.score_interval(x, y, "cka", resamples=1)
    assert al.compare(x, y, "mutual_knn", k=10, draws=9).interval is None


@pytest.mark.parametrize("name", sorted(al.METRICS))
def test_models_of_different_precision_compare_as_if_they_had_one(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    y = x @ torch.randn(6, 5) + torch.randn(40, 5)
    mixed = al.compare(x, y.double(), name, draws=5, resamples=3)
    assert mixed.score == pytest.approx(al.compare(x, y, name, draws=5, resamples=3).score, abs=1e-5)
    assert al.compare(x.half(), y, name, draws=5, resamples=0).score == pytest.approx(mixed.score, abs=0.02)
