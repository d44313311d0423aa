"""Rows that depend on each other move, are left out and are resampled as wholes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import unrolled.alignment as al
from unrolled.alignment.dependence import Units
from unrolled.alignment.scale import compare_large

pytestmark = pytest.mark.filterwarnings("ignore:.*copies of other rows")


def grouped(seed: int, *, groups: int = 16, size: int = 5, d: int = 6) -> torch.Tensor:
    """Rows in groups that share most of their features; the sides of two seeds are independent."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(groups, 1, d, generator=generator)
    return (own + 0.3 * torch.randn(groups, size, d, generator=generator)).flatten(0, 1)


LABELS = np.arange(16).repeat(5)


def rejections(p_value: object, repeats: int = 60) -> int:
    return sum(p_value(grouped(2 * seed), grouped(2 * seed + 1), seed) <= 0.05 for seed in range(repeats))  # type: ignore[operator]


@pytest.mark.parametrize("metric", ["mutual_knn", "unbiased_cka", "lcs_knn", "ridge_predictivity"])
@pytest.mark.parametrize("null", ["permutation", "moments"])
def test_whole_groups_keep_the_level_where_single_rows_do_not(metric: str, null: str) -> None:
    def p(x: torch.Tensor, y: torch.Tensor, seed: int, groups: object) -> float:
        options = {"folds": 4} if metric == "ridge_predictivity" else {}
        found = al.compare(x, y, metric, null=null, draws=19, resamples=0, groups=groups, seed=seed, **options)
        return float(found.p_value)  # type: ignore[arg-type]

    repeats = 20 if null == "moments" and metric not in ("mutual_knn", "unbiased_cka") else 60
    kept = rejections(lambda x, y, seed: p(x, y, seed, LABELS), repeats)
    assert stats.binomtest(kept, repeats, 0.05).pvalue > 0.001
    if null == "permutation" and metric != "ridge_predictivity":
        assert rejections(lambda x, y, seed: p(x, y, seed, None), 20) >= 15


def test_held_out_keeps_the_level_of_groups() -> None:
    hits = rejections(
        lambda x, y, seed: al.held_out([x, x + 1], [y], "cka", draws=19, groups=LABELS, seed=seed).p_value
    )
    assert stats.binomtest(hits, 60, 0.05).pvalue > 0.001


def test_large_samples_keep_the_level_of_groups() -> None:
    def p(x: torch.Tensor, y: torch.Tensor, seed: int) -> float:
        return float(compare_large({"x": x}, {"y": y}, k=6, queries=40, draws=19, groups=LABELS, seed=seed).p_value)  # type: ignore[arg-type]

    assert stats.binomtest(rejections(p), 60, 0.05).pvalue > 0.001


@pytest.mark.parametrize("blocks", [8, "shift"])
def test_series_keep_the_level_by_blocks_and_shifts(blocks: object) -> None:
    def series(seed: int) -> torch.Tensor:
        noise = torch.randn(83, 4, generator=torch.Generator().manual_seed(seed))
        return torch.stack([noise[i : i + 4].mean(0) for i in range(80)])

    def rejected(how: object) -> int:
        return sum(
            al.compare(
                series(2 * s), series(2 * s + 1), "mutual_knn", draws=39, resamples=0, blocks=how, seed=s
            ).p_value
            <= 0.05
            for s in range(60)
        )

    assert rejected(blocks) <= 9  # moving averages of four depend a little across blocks of eight
    assert rejected(None) >= 30


def test_relabellings_move_whole_groups_in_order() -> None:
    labels = [name for name in "abcdefg" for _ in range(2)] + ["h"] * 3
    for order in al.relabellings(17, 20, groups=labels):
        moved = [labels[i] for i in order.tolist()]
        assert sorted(order.tolist()) == list(range(17))
        assert order[14:].tolist() == [14, 15, 16]  # no other group has three rows
        assert all(moved[i] == moved[i + 1] and order[i] + 1 == order[i + 1] for i in range(0, 14, 2))
    assert len({tuple(order.tolist()) for order in al.relabellings(17, 20, groups=labels)}) > 15


def test_groups_of_one_row_are_no_groups() -> None:
    plain, single = al.relabellings(12, 3), al.relabellings(12, 3, groups=range(12))
    assert all(torch.equal(a, b) for a, b in zip(plain, single, strict=True))
    x, y = torch.randn(2, 30, 4)
    assert al.compare(x, y, "cka", groups=range(30)).p_value == al.compare(x, y, "cka").p_value


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=6, max_size=12), seed=st.integers(0, 99))
def test_parts_and_subsamples_never_divide_a_group(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    try:
        units = Units.of(len(labels), labels)
    except ValueError:
        return
    parts = units.parts(3, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    for rows in [*parts, *units.subsamples(3, seed)]:
        inside = set(labels[rows.numpy()])
        assert all(np.isin(np.flatnonzero(labels == group), rows.numpy()).all() for group in inside)
        again = units.of_rows(rows)
        assert again.n == len(rows)
        assert again.count == len(inside)


def test_intervals_of_grouped_rows_are_wider() -> None:
    shared = grouped(0, d=4)
    x, y = (torch.cat([shared, grouped(seed, d=3)], 1) for seed in (1, 2))
    narrow, wide = (al.score_interval(x, y, "cka", groups=groups, seed=1) for groups in (None, LABELS))
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])
    found = al.compare(x, y, "cka", groups=LABELS, draws=19, select_held_out=True)
    assert found.interval is not None
    assert found.units == "16 groups of 5 rows"
    assert "16 groups of 5 rows" in found.summary()
    assert found.null_mean is None
    assert found.z is None


def test_folds_leave_whole_groups_out() -> None:
    x, y = grouped(0), grouped(1)
    metric = al.RidgePredictivity(folds=4)
    # rows of a group predict each other; whole groups left out show that the sides are independent
    assert metric(x, y) > 0.3
    assert metric.for_units(Units.of(80, LABELS))(x, y) < 0.2


def test_bad_groups_and_blocks_are_named() -> None:
    x, y = torch.randn(2, 40, 4)
    for said, match in (
        ({"groups": range(39)}, "one label for each of the 40 rows"),
        ({"groups": [0] * 20 + [1] * 20}, "2 ways only"),
        ({"groups": np.full(40, np.nan)}, "not numbers"),
        ({"blocks": 40}, "blocks must be"),
        ({"blocks": "wrong"}, "blocks must be"),
        ({"blocks": 15}, "blocks"),
        ({"groups": range(40), "blocks": 4}, "not both"),
    ):
        with pytest.raises(ValueError, match=match):
            al.compare(x, y, "cka", **said)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shift"):
        compare_large({"x": x}, {"y": y}, k=3, queries=20, blocks="shift")


@pytest.mark.filterwarnings("default:.*copies of other rows")
def test_copies_and_near_copies_suggest_groups() -> None:
    base = torch.randn(30, 24, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 0)
    near = base + 1e-3 * torch.randn(120, 24, generator=torch.Generator().manual_seed(1))
    y = torch.randn(120, 24, generator=torch.Generator().manual_seed(2))
    for x, match in ((base, "100 % of the 120 rows of layer00 are copies"), (near, "are near copies")):
        with pytest.warns(UserWarning, match=match):
            al.compare(x, y, "cka", draws=9, resamples=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        al.compare(y, y.flip(0), "cka", draws=9, resamples=0)
        al.compare(torch.randn(200, 2), torch.randn(200, 2), "cka", draws=9, resamples=0)
        al.compare(base, y, "cka", draws=9, resamples=10, groups=np.arange(30).repeat(4))
