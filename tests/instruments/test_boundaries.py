from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import linear_sum_assignment

from unrolled.instruments import boundary_counts, boundary_f, boundary_interval, label_boundary


def halves(size: int = 60, split: int = 30) -> np.ndarray:
    labels = np.zeros((size, size), np.int64)
    labels[:, split:] = 1
    return labels


def test_boundaries_are_one_pixel_wide() -> None:
    edge = label_boundary(halves())
    assert edge.sum() == 60
    assert edge[:, 29].all()
    assert not label_boundary(np.ones((5, 5), np.int64)).any()


@pytest.mark.parametrize("matching", ["one-to-one", "nearest"])
def test_a_shift_within_the_tolerance_is_forgiven_and_beyond_it_is_not(matching: str) -> None:
    truth = [halves(split=30)]
    for shift, expected in ((0, 1.0), (2, 1.0), (5, 0.0)):
        counts = boundary_counts(label_boundary(halves(split=30 + shift)), truth, tolerance=0.03, matching=matching)  # type: ignore[arg-type]
        assert boundary_f([counts])["ods_f"] == pytest.approx(expected)


def test_one_pixel_matches_once() -> None:
    thick = np.zeros((60, 60), bool)
    thick[:, 28:32] = True
    rules: tuple[Literal["one-to-one", "nearest"], ...] = ("one-to-one", "nearest")
    scores = {rule: boundary_f([boundary_counts(thick, [halves()], tolerance=0.03, matching=rule)]) for rule in rules}
    assert scores["one-to-one"]["ods_precision"] == pytest.approx(0.25)
    assert scores["nearest"]["ods_precision"] == 1
    assert scores["one-to-one"]["ods_recall"] == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_the_matching_is_a_largest_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn, labels = rng.random((12, 14)) < 0.2, (rng.random((12, 14)) < 0.1).astype(np.int64)
    truth = label_boundary(labels)
    reach = 0.13 * np.hypot(12, 14)
    a, b = np.argwhere(drawn), np.argwhere(truth)
    near = np.linalg.norm(a[:, None] - b[None], axis=-1) <= reach
    rows, columns = linear_sum_assignment(near, maximize=True)
    counts = boundary_counts(drawn, [labels], tolerance=0.13)
    assert counts.matched[0] == counts.recalled[0] == near[rows, columns].sum()


def test_annotators_add_up() -> None:
    plain = np.zeros((60, 60), np.int64)
    counts = boundary_counts(label_boundary(halves()), [halves(), halves(), plain])
    assert (counts.matched[0], counts.predicted[0], counts.recalled[0], counts.annotated[0]) == (60, 60, 120, 120)


def test_best_threshold_of_the_set_and_of_each_image() -> None:
    soft = np.where(label_boundary(halves()), 0.8, 0.0) + np.where(label_boundary(halves(split=10)), 0.3, 0.0)
    weak = soft / 4  # the same map, quieter
    counts = [boundary_counts(map_, [halves()], thresholds=[0.1, 0.25, 0.5]) for map_ in (soft, weak)]
    scores = boundary_f(counts)
    assert scores["ods_threshold"] == pytest.approx(0.1)
    assert scores["ods_f"] == pytest.approx(2 * (120 / 180) / (1 + 120 / 180))
    assert scores["ois_f"] == 1


def test_drawing_nothing_scores_nothing() -> None:
    scores = boundary_f([boundary_counts(np.zeros((60, 60), bool), [halves()])])
    assert scores["ods_f"] == 0
    assert np.isnan(scores["ods_precision"])


def test_people_agree_with_each_other_more_than_with_a_grid(shared: Path) -> None:
    path = shared / "data" / "bsds500-val" / "bsds500_val.npz"
    if not path.is_file():
        pytest.skip("no BSDS500")
    with np.load(path) as z:
        offsets, payload = z["mask_offsets"], z["mask_payload"]
        people = [
            np.asarray(Image.open(io.BytesIO(payload[offsets[m] : offsets[m + 1]].tobytes())))
            for m in np.flatnonzero(z["mask_image"] == 3)
        ]
    human = boundary_f([boundary_counts(label_boundary(people[0]), people[1:])])
    lattice = np.zeros(people[0].shape, bool)
    lattice[::20] = lattice[:, ::20] = True
    grid = boundary_f([boundary_counts(lattice, people[1:])])
    assert human["ods_f"] > grid["ods_f"] + 0.2


def test_bad_input_is_named() -> None:
    edge = label_boundary(halves())
    for argument, call in {
        "annotations": lambda: boundary_counts(edge, [halves(20, 10)]),
        "at least one": lambda: boundary_counts(edge, []),
        "tolerance": lambda: boundary_counts(edge, [halves()], tolerance=2),
        "matching": lambda: boundary_counts(edge, [halves()], matching="hungarian"),  # type: ignore[arg-type]
        "NaN": lambda: boundary_counts(edge * np.nan, [halves()]),
        "labels": lambda: label_boundary(np.zeros((3, 3, 3), np.int64)),
        "counts": lambda: boundary_f([]),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()


def test_interval_of_the_f_measure() -> None:
    truth = np.repeat([[0] * 8 + [1] * 8], 16, 0)
    right, wrong = label_boundary(truth), np.zeros((16, 16), bool)
    wrong[:, 1] = True
    counts = [boundary_counts(right if i % 2 else wrong, [truth]) for i in range(8)]
    low, high = boundary_interval(counts)
    assert 0 < low < boundary_f(counts)["ods_f"] < high < 1
    assert boundary_interval(counts[1::2]) == (1, 1)
    with pytest.raises(ValueError, match="empty"):
        boundary_interval([])
