from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unrolled.instruments import (
    bootstrap_interval,
    class_means,
    covering,
    jaccard,
    layer_sweep,
    matched_iou,
    region_scores,
    score_attention,
    threshold_attention,
    upsample,
)
from unrolled.instruments.regions.overlap import matched_boundary


def square(top: int, left: int, side: int, size: tuple[int, int] = (16, 16)) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_jaccard_counts_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, t, ignore = rng.random((2, 3, 5, 6)) < 0.4, rng.random((2, 5, 6)) < 0.5, rng.random((5, 6)) < 0.2
    got = jaccard(torch.from_numpy(p), torch.from_numpy(t), ignore=torch.from_numpy(ignore))
    for i, j, k in np.ndindex(2, 3, 2):
        a, b = p[i, j] & ~ignore, t[k] & ~ignore
        assert float(got[i, j, k]) == pytest.approx((a & b).sum() / (a | b).sum())


def test_two_empty_masks_have_no_score() -> None:
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert math.isnan(float(jaccard(empty, empty)))
    assert float(jaccard(~empty, empty)) == 0


def test_region_scores() -> None:
    a = square(4, 4, 8)
    same = region_scores(a, a)
    assert same == {"foreground": 1.0, "background": 1.0, "boundary": 1.0}
    thin = region_scores(a, square(5, 5, 6), width=0.001)
    assert thin["foreground"] == pytest.approx(36 / 64)
    assert thin["boundary"] == 0  # neighbouring contours, one pixel wide
    assert math.isnan(region_scores(a & ~a, a & ~a)["foreground"])
    with pytest.raises(ValueError, match="resize"):
        region_scores(a, square(0, 0, 2, (8, 8)))


def test_attention_scores_by_head_and_layer() -> None:
    left, right = square(2, 0, 4, (8, 8)), square(2, 4, 4, (8, 8))
    attention = torch.full((2, 2, 16), 0.001)
    attention[0, 0, [4, 5, 8, 9]] = 1  # head 0 of layer 0 sees the left square, head 1 the right one
    attention[0, 1, [6, 7, 10, 11]] = 1
    attention[1] += torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    rows = score_attention(
        attention, (4, 4), {"cat": left, "dog": right, "absent": left & ~left}, layers=[3, 5], image="a.jpg"
    )
    assert len(rows) == 2 * 2 * 2  # layers, rules, classes
    cat = next(r for r in rows if r["layer"] == 3 and r["by"] == "mass" and r["class"] == "cat")
    dog = next(r for r in rows if r["layer"] == 3 and r["by"] == "mass" and r["class"] == "dog")
    assert cat["image"] == "a.jpg"
    assert (cat["best"], cat["best_head"], cat["head01"]) == (pytest.approx(0.75), 0, 0)
    assert (dog["best"], dog["best_head"]) == (pytest.approx(0.75), 1)
    assert cat["mean"] == pytest.approx(0.375)
    sweep = layer_sweep(rows)
    assert [(r["layer"], r["by"]) for r in sweep] == [(3, "fraction"), (3, "mass"), (5, "fraction"), (5, "mass")]
    best = next(r for r in sweep if r["layer"] == 3 and r["by"] == "mass")
    assert best["best"] == pytest.approx(0.75)
    assert best["fixed"] == pytest.approx(0.375)
    assert best["fixed"] == best[f"head{best['fixed_head']:02d}"]
    assert best["images"] == 1
    assert {(r["class"], r["images"]) for r in class_means(rows)} == {("cat", 1), ("dog", 1)}


def test_scores_are_those_of_enlarged_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 3, 30, generator=generator)
    targets = {str(k): torch.rand(33, 41, generator=generator) < 0.4 for k in range(3)}
    ignore = torch.rand(33, 41, generator=generator) < 0.2
    rows = score_attention(attention, (5, 6), targets, by=["mass"], ignore=ignore)
    masks = upsample(threshold_attention(attention, 0.6, by="mass"), (5, 6), (33, 41))
    want = jaccard(masks, torch.stack(list(targets.values())), ignore=ignore)
    for row in rows:
        for head in range(3):
            assert row[f"head{head:02d}"] == pytest.approx(float(want[row["layer"], head, int(row["class"])]))


def test_images_weigh_the_same_however_many_classes_they_have() -> None:
    def row(image: int, name: str, value: float) -> dict[str, object]:
        return {"image": image, "layer": 0, "by": "mass", "class": name, "best": value, "best_head": 0, "head00": value}

    sweep = layer_sweep([row(0, "a", 1.0), row(0, "b", 0.5), row(1, "a", 0.25)])
    assert sweep[0]["best"] == pytest.approx((0.75 + 0.25) / 2)


def test_ignored_pixels_do_not_count() -> None:
    target = square(0, 0, 4, (8, 8))
    attention = torch.full((1, 1, 16), 0.001)
    attention[0, 0, [0, 1, 4, 5, 15]] = 1
    ignore = square(6, 6, 2, (8, 8))
    rows = score_attention(attention, (4, 4), {"x": target}, by=["mass"], keep=0.9, ignore=ignore)
    assert rows[0]["best"] == 1
    assert score_attention(attention, (4, 4), {"x": ignore}, ignore=ignore) == []


def test_bootstrap_interval_holds_the_mean_and_is_repeatable() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 200)
    low, high = bootstrap_interval([*values, float("nan")])
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 200**0.5, rel=0.2)
    assert (low, high) == bootstrap_interval(values)
    with pytest.raises(ValueError, match="no number"):
        bootstrap_interval([float("nan")])


def test_covering() -> None:
    target = torch.arange(4).repeat_interleave(4).reshape(4, 4)
    assert covering(target + 7, target) == 1
    assert covering(torch.zeros(4, 4, dtype=torch.int64), target) == pytest.approx(0.25)
    assert covering(target // 2, target) == pytest.approx(0.5)


def test_bad_targets_are_named() -> None:
    attention = torch.rand(1, 2, 4)
    for targets in ({"a": square(0, 0, 2), "b": square(0, 0, 2, (8, 8))}, {"a": square(0, 0, 2).float()}):
        with pytest.raises(ValueError, match="targets"):
            score_attention(attention, (2, 2), targets)
    with pytest.raises(ValueError, match="grid"):
        score_attention(attention, (2, 3), {"a": square(0, 0, 2)})


def test_matched_regions() -> None:
    halves = torch.tensor([0, 0, 1, 1])
    assert matched_iou(halves, halves) == 1
    assert matched_iou(1 - halves, halves) == 1
    assert matched_iou(torch.zeros(4, dtype=torch.int64), halves) == pytest.approx(0.25), "one half goes without"
    assert matched_iou(torch.arange(4), halves) == pytest.approx(0.25), "so do two of four pieces"
    with pytest.raises(ValueError, match="do not fit"):
        matched_iou(halves[:2], halves)


def test_matched_boundaries() -> None:
    halves = (torch.arange(40) // 20).expand(30, 40)
    assert matched_boundary(halves, halves) == 1
    assert matched_boundary(1 - halves, halves) == 1, "names of regions mean nothing"
    one = torch.zeros_like(halves)
    assert matched_boundary(one, halves) == 0, "one region has no boundary"
    assert matched_boundary(one, one) == 1
    moved = (torch.arange(40) >= 22).long().expand(30, 40)
    near, wide = (matched_boundary(moved, halves, width=width) for width in (0.02, 0.2))
    assert near == 0, "two columns away, with boundaries of one"
    assert near < wide < matched_iou(moved, halves) < 1
    beside = torch.zeros(30, 40, dtype=torch.bool)
    beside[:, 20:22] = True
    assert matched_boundary(moved, halves, ignore=beside, width=0.1) > matched_boundary(moved, halves, width=0.1) > 0
    assert math.isnan(matched_boundary(halves, halves, ignore=torch.ones_like(beside)))
    with pytest.raises(ValueError, match="do not fit"):
        matched_boundary(halves[:2], halves)
    with pytest.raises(ValueError, match="width"):
        matched_boundary(halves, halves, width=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 14), st.sampled_from([0.02, 0.1, 0.24, 0.6]))
def test_matched_boundaries_are_those_of_each_pair_of_masks(seed: int, height: int, width: int, share: float) -> None:
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 3, (2, -(-height // 3), -(-width // 3)), generator=random)
    ours, theirs = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width]
    ignore = torch.rand(height, width, generator=random) < 0.2
    if ignore.all():
        return
    mine, their = ours[~ignore].unique().tolist(), theirs[~ignore].unique().tolist()
    masks = [[(ours == a) & ~ignore for a in mine], [(theirs == b) & ~ignore for b in their]]
    overlap = np.array([[int((a & b).sum()) / int((a | b).sum()) for a in masks[0]] for b in masks[1]])
    total = 0.0
    for i, j in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
        found = region_scores(ours == mine[j], theirs == their[i], ignore=ignore, width=share)["boundary"]
        total += 1.0 if math.isnan(found) else found
    expected = total / max(overlap.shape)
    assert matched_boundary(ours, theirs, ignore=ignore, width=share) == pytest.approx(expected, abs=1e-6)
