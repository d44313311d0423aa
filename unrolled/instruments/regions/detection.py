"""COCO-style average precision of masks and of their boxes, by pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unrolled.errors import require

Confidence = Literal["order", "area", "constant"]
CONFIDENCE: dict[str, str] = {
    "order": "1 / (1 + k) for the k-th mask of an image: masks found earlier are surer",
    "area": "share of the image that the mask covers",
    "constant": "1 for every mask, so that ties are broken by the order of images and masks",
}
_STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")


def average_precision(
    predicted: Sequence[Tensor],
    target: Sequence[Tensor],
    *,
    confidence: Confidence | Sequence[Tensor] = "order",
    crowd: Sequence[Sequence[bool]] | None = None,
    kinds: Sequence[Literal["bbox", "segm"]] = ("bbox", "segm"),
) -> dict[str, Any]:
    """Class-agnostic average precision, COCO protocol (IoU 0.50 to 0.95, at most 100 masks an image).

    AP depends on how masks are ranked, and the published MaskCut tables do not say how theirs were: state the rule with
    the number.

    Args:
        predicted: for each image, boolean `[k, h, w]`; empty masks are dropped.
        target: for each image, boolean `[t, h, w]`, instances of any class, in the same size; none is allowed.
        confidence: `"order"`, `"area"`, `"constant"` (see `CONFIDENCE`), or for each image scores `[k]`.
        crowd: for each image and instance, whether it is a crowd region, on which predictions are neither right nor
            wrong.
        kinds: `"bbox"` scores the boxes around the masks, `"segm"` the masks.

    Returns:
        `{kind: {AP, AP50, AP75, AP_small, AP_medium, AP_large, AR1, AR10, AR100}}` in 0..1, NaN where there is nothing
        to find, and `confidence`, the rule in words; `images`, `predicted`, `instances`, how many of each.

    Raises:
        ValueError: lists of different length, masks of different size, or an unknown rule.
        MissingExtra: pycocotools is not installed.
    """
    if len(predicted) != len(target) or not target:
        raise ValueError(f"predicted: masks of {len(predicted)} images for targets of {len(target)}; needs one each")
    if not isinstance(confidence, str) and len(confidence) != len(predicted):
        raise ValueError(f"confidence: scores of {len(confidence)} images for {len(predicted)}")
    if crowd is not None and len(crowd) != len(target):
        raise ValueError("crowd: needs one flag for every target instance of every image")
    scorer = ObjectScorer(confidence if isinstance(confidence, str) else None)
    for image, (masks, instances) in enumerate(zip(predicted, target, strict=True)):
        given = None if isinstance(confidence, str) else confidence[image]
        scorer.add(masks, instances, crowd=None if crowd is None else crowd[image], scores=given)
    return scorer.result(kinds=kinds)


class ObjectScorer:
    """Average precision of masks that come one image at a time; they are kept as run lengths.

    Args:
        confidence: how masks are ranked, see `CONFIDENCE`; None where `add` is given scores.

    Raises:
        ValueError: an unknown rule.
        MissingExtra: pycocotools is not installed.
    """

    def __init__(self, confidence: Confidence | None = "order") -> None:
        require("pycocotools.coco", extra="eval", feature="average precision")
        if confidence is not None and confidence not in CONFIDENCE:
            raise ValueError(f"confidence={confidence!r}: choose from {', '.join(CONFIDENCE)}, or give scores")
        self._confidence = confidence
        self._images: list[dict[str, Any]] = []
        self._truths: list[dict[str, Any]] = []
        self._predictions: list[dict[str, Any]] = []

    def add(
        self, masks: Tensor, instances: Tensor, *, crowd: Sequence[bool] | None = None, scores: Tensor | None = None
    ) -> None:
        """One image: boolean masks `[k, h, w]`, empty ones are dropped, and instances `[t, h, w]`.

        Raises:
            ValueError: masks of different size, or scores or crowds of another number.
        """
        image = len(self._images)
        _check_masks(masks, instances, image)
        flags = [False] * len(instances) if crowd is None else list(crowd)
        if len(flags) != len(instances):
            raise ValueError(f"crowd[{image}]: needs {len(instances)} flags, got {len(flags)}")
        sure = _scores(masks, self._confidence, scores, image)
        number = image + 1
        self._images.append({"id": number, "height": instances.shape[-2], "width": instances.shape[-1]})
        for mask, flag in zip(instances, flags, strict=True):
            if bool(mask.any()):
                fields = {"id": len(self._truths) + 1, "iscrowd": int(flag), "ignore": 0}
                self._truths.append(_record(mask, number) | fields)
        self._predictions += [
            _record(m, number) | {"score": s} for m, s in zip(masks, sure, strict=True) if bool(m.any())
        ]

    def result(
        self, *, kinds: Sequence[Literal["bbox", "segm"]] = ("bbox", "segm"), draws: int = 0, seed: int = 0
    ) -> dict[str, Any]:
        """What `average_precision` returns.

        Args:
            kinds: `"bbox"` scores the boxes around the masks, `"segm"` the masks.
            draws: if positive, every kind also holds `interval`: 95 % percentile intervals of `AP` and `AP50`, from so
                many bootstrap samples of the images.
            seed: of the samples.
        """
        instances = sum(not truth["iscrowd"] for truth in self._truths)
        rule = CONFIDENCE[self._confidence] if self._confidence else "scores given by the caller"
        out: dict[str, Any] = {"confidence": rule, "images": len(self._images), "predicted": len(self._predictions)}
        out["instances"] = instances
        for kind in kinds:
            if not instances:
                out[kind] = dict.fromkeys(_STATS, float("nan"))
            elif not self._predictions:  # pycocotools does not take an empty list
                out[kind] = dict.fromkeys(_STATS, 0.0)
            else:
                out[kind] = _evaluate(self._images, self._truths, self._predictions, kind, draws, seed)
            if draws > 0 and "interval" not in out[kind]:
                out[kind]["interval"] = {name: (out[kind][name],) * 2 for name in ("AP", "AP50")}
        return out


def _evaluate(
    images: list[dict[str, Any]], truths: list[dict[str, Any]], detections: Any, kind: str, draws: int, seed: int
) -> dict[str, Any]:
    coco = require("pycocotools.coco", extra="eval", feature="average precision").COCO
    evaluator = require("pycocotools.cocoeval", extra="eval", feature="average precision").COCOeval
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        data = coco()
        data.dataset = {
            "info": {},
            "images": images,
            "annotations": truths,
            "categories": [{"id": 1, "name": "object"}],
        }
        data.createIndex()
        # with both a box and a segmentation it would score boxes of masks by the masks' areas
        keep = {"image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation"}
        run = evaluator(data, data.loadRes([{k: v for k, v in f.items() if k in keep} for f in detections]), kind)
        run.params.useCats = 0
        run.evaluate()
        run.accumulate()
        run.summarize()
        out: dict[str, Any] = {
            name: float(value) if value > -1 else float("nan") for name, value in zip(_STATS, run.stats, strict=False)
        }
        if draws > 0:
            out["interval"] = _intervals(run, len(images), draws, seed)
    return out


def _intervals(run: Any, count: int, draws: int, seed: int) -> dict[str, tuple[float, float]]:
    """Percentile intervals of AP and AP50 over images drawn with replacement, from overlaps computed once."""
    asked = copy.deepcopy(run.params)
    asked.areaRng, asked.areaRngLbl, asked.maxDets = asked.areaRng[:1], asked.areaRngLbl[:1], asked.maxDets[-1:]
    whole = run.evalImgs[:count]  # images vary fastest, and areas of every size come first
    rng = np.random.default_rng(seed)
    values = np.empty((draws, 2))
    for row in values:
        run.evalImgs = [whole[i] for i in rng.integers(count, size=count)]
        run.accumulate(asked)
        precision = run.eval["precision"][..., 0, 0, 0]  # [thresholds, recalls]; -1 where nothing is to be found
        row[:] = [p[p > -1].mean() if (p > -1).any() else np.nan for p in (precision, precision[:1])]
    low, high = np.nanquantile(values, [0.025, 0.975], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("AP", "AP50"))}


def _check_masks(masks: Tensor, instances: Tensor, image: int) -> None:
    for name, value in {"predicted": masks, "target": instances}.items():
        if value.dim() != 3 or value.dtype != torch.bool:
            raise ValueError(f"{name}[{image}]: needs boolean [k, h, w], got {value.dtype} {tuple(value.shape)}")
    if masks.shape[1:] != instances.shape[1:]:
        raise ValueError(
            f"predicted[{image}]: masks {tuple(masks.shape[1:])} do not fit targets {tuple(instances.shape[1:])}; "
            "resize to the targets with nearest neighbours"
        )


def _scores(masks: Tensor, confidence: Confidence | None, scores: Tensor | None, image: int) -> list[float]:
    if confidence == "order":
        return [1 / (1 + k) for k in range(len(masks))]
    if confidence == "area":
        return [float(value) for value in masks.flatten(1).double().mean(1)] if len(masks) else []
    if confidence == "constant":
        return [1.0] * len(masks)
    given = torch.as_tensor([] if scores is None else scores)
    if given.shape != (len(masks),) or not bool(given.isfinite().all()):
        raise ValueError(f"confidence[{image}]: needs {len(masks)} finite scores, got {tuple(given.shape)}")
    return [float(value) for value in given]


def _record(mask: Tensor, image: int) -> dict[str, Any]:
    coding = require("pycocotools.mask", extra="eval", feature="average precision")
    plane = np.asfortranarray(mask.cpu().numpy().astype(np.uint8))
    rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
    top, left = int(rows[0]), int(columns[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {
        "image_id": image,
        "category_id": 1,
        "segmentation": coding.encode(plane),
        "bbox": box,
        "area": int(plane.sum()),
    }
