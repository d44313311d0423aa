from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unrolled.errors import MissingExtra
from unrolled.instruments import ObjectScorer, average_precision


def boxes(*corners: tuple[int, int, int, int], size: tuple[int, int] = (80, 100)) -> Tensor:
    masks = torch.zeros(len(corners), *size, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, corners, strict=True):
        mask[top:bottom, left:right] = True
    return masks


TRUTH = [boxes((5, 5, 45, 45), (50, 60, 70, 90)), boxes((10, 10, 60, 60))]


@pytest.fixture(autouse=True)
def _coco() -> None:
    pytest.importorskip("pycocotools")


def test_perfect_masks_score_one_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    got = average_precision(TRUTH, TRUTH)
    for kind in ("bbox", "segm"):
        assert got[kind]["AP"] == pytest.approx(1)
        assert got[kind]["AR100"] == pytest.approx(1)
        assert got[kind]["AR1"] == pytest.approx(2 / 3)
    assert math.isnan(got["segm"]["AP_large"])
    assert (got["images"], got["predicted"], got["instances"]) == (2, 3, 3)
    assert "earlier" in got["confidence"]
    assert capsys.readouterr().out == ""


def test_boxes_forgive_what_masks_do_not() -> None:
    ring = TRUTH[1].clone()
    ring[0, 20:50, 20:50] = False
    got = average_precision([boxes(), ring], [boxes(), TRUTH[1]])
    assert got["bbox"]["AP"] == pytest.approx(1)
    assert got["segm"]["AP"] == pytest.approx(0.3, abs=0.01)  # overlap 0.64: passes 0.5, 0.55 and 0.6


def test_the_confidence_rule_decides_the_ranking() -> None:
    false, right = boxes((0, 0, 4, 4)), TRUTH[1]
    predicted = [torch.cat([false, right])]
    order = average_precision(predicted, [right], confidence="order")["segm"]["AP"]
    area = average_precision(predicted, [right], confidence="area")["segm"]["AP"]
    given = average_precision(predicted, [right], confidence=[torch.tensor([0.1, 0.9])])
    assert order == pytest.approx(0.5)
    assert area == pytest.approx(1)
    assert given["segm"]["AP"] == pytest.approx(1)
    assert given["confidence"] == "scores given by the caller"
    assert average_precision(predicted, [right], confidence="constant")["segm"]["AP"] == pytest.approx(0.5)


def test_crowds_are_neither_right_nor_wrong() -> None:
    predicted = [torch.cat([TRUTH[0][1:], TRUTH[0][:1]])]
    assert average_precision(predicted, [TRUTH[0]], crowd=[[False, True]])["segm"]["AP"] == pytest.approx(1)
    assert average_precision(predicted, [TRUTH[0][:1]])["segm"]["AP"] == pytest.approx(0.5, abs=0.01)


def test_nothing_found_and_nothing_to_find() -> None:
    assert average_precision([boxes()], [TRUTH[1]])["segm"]["AP"] == 0
    blank = torch.zeros(3, 80, 100, dtype=torch.bool)
    assert average_precision([blank], [TRUTH[1]])["segm"]["AP"] == 0
    assert math.isnan(average_precision([TRUTH[1]], [boxes()])["segm"]["AP"])


def test_bad_input_is_named() -> None:
    for argument, call in {
        "predicted": lambda: average_precision(TRUTH[:1], TRUTH),
        "resize": lambda: average_precision([boxes(size=(40, 40))], TRUTH[:1]),
        "confidence": lambda: average_precision(TRUTH, TRUTH, confidence="depth"),  # type: ignore[arg-type]
        "finite scores": lambda: average_precision(TRUTH[1:], TRUTH[1:], confidence=[torch.tensor([float("nan")])]),
        "crowd": lambda: average_precision(TRUTH, TRUTH, crowd=[[False], [False]]),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *args: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"unrolled\[eval\]"):
        average_precision(TRUTH, TRUTH)


def test_intervals_come_from_drawing_images() -> None:
    scorer = ObjectScorer("order")
    for i in range(12):
        scorer.add(TRUTH[1] if i % 2 else boxes((0, 60, 8, 90)), TRUTH[1])
    got = scorer.result(draws=100)
    low, high = got["segm"]["interval"]["AP"]
    assert 0.02 < low < got["segm"]["AP"] < high < 0.9
    assert got["segm"]["interval"]["AP50"] == pytest.approx((low, high)), "every mask is right or wholly wrong"
    assert got["segm"]["AP"] == pytest.approx(average_precision(
        [TRUTH[1] if i % 2 else boxes((0, 60, 8, 90)) for i in range(12)], [TRUTH[1]] * 12)["segm"]["AP"])  # fmt: skip
    sure = ObjectScorer()
    for _ in range(3):
        sure.add(TRUTH[1], TRUTH[1])
    assert sure.result(draws=20)["bbox"]["interval"]["AP"] == pytest.approx((1, 1))
    none = ObjectScorer()
    none.add(boxes(), TRUTH[1])
    assert none.result(draws=5)["segm"]["interval"]["AP"] == (0, 0)


def precision_by_hand(found: list[list[tuple[float, Tensor]]], truth: list[Tensor], threshold: float) -> float:
    """COCO's average precision at one overlap, without its code: 101 recalls of the interpolated curve."""
    ranked = []
    for image, (masks, instances) in enumerate(zip(found, truth, strict=True)):
        free = set(range(len(instances)))
        for score, mask in sorted(masks, key=lambda each: -each[0]):  # equal ones stay in their order
            overlaps = {t: float((mask & instances[t]).sum()) / float((mask | instances[t]).sum()) for t in free}
            best = max(sorted(overlaps, reverse=True), key=lambda t: overlaps[t], default=None)
            hit = best is not None and overlaps[best] >= threshold
            free -= {best} if hit else set()
            ranked.append((-score, image, hit))
    ranked.sort(key=lambda each: each[:2])
    hits = torch.tensor([hit for *_, hit in ranked]).cumsum(0).double()
    precision = (hits / torch.arange(1, len(hits) + 1)).flip(0).cummax(0).values.flip(0)
    recall = hits / sum(map(len, truth))
    points = torch.searchsorted(recall, torch.linspace(0, 1, 101, dtype=torch.float64))
    return float(torch.cat([precision, torch.zeros(1, dtype=torch.float64)])[points].mean())


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_equal_confidences_rank_in_the_order_of_images(levels: int) -> None:
    g = torch.Generator().manual_seed(levels)

    def drawn(count: int) -> list[tuple[int, int, int, int]]:
        corners = torch.randint(0, 50, (count, 2), generator=g)
        sides = torch.randint(8, 30, (count, 2), generator=g)
        return [(*c.tolist(), *(c + s).tolist()) for c, s in zip(corners, sides, strict=True)]

    truth, predicted, scores = [], [], []
    for _ in range(12):
        places = drawn(3)
        moved = [tuple(int(v) + int(torch.randint(-3, 4, (1,), generator=g)) for v in place) for place in places[:2]]
        near = [tuple(max(value, 0) for value in place) for place in moved]
        truth.append(boxes(*places))
        predicted.append(boxes(*drawn(2), *near, places[2]))  # type: ignore[arg-type]
        scores.append(torch.randint(levels, (5,), generator=g).double() / levels)
    found = [list(zip(s.tolist(), masks, strict=True)) for s, masks in zip(scores, predicted, strict=True)]
    got = average_precision(predicted, truth, confidence=scores, kinds=("segm",))["segm"]
    wanted = [precision_by_hand(found, truth, 0.5 + 0.05 * step) for step in range(10)]
    assert got["AP50"] == pytest.approx(wanted[0], abs=1e-12)
    assert got["AP75"] == pytest.approx(wanted[5], abs=1e-12)
    assert got["AP"] == pytest.approx(sum(wanted) / 10, abs=1e-12)
    assert 0.2 < got["AP50"] < 0.95
