"""COCO-style average precision of masks and of their boxes, by pycocotools."""

from __future__ import annotations

import contextlib
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
    coco = require("pycocotools.coco", extra="eval", feature="average precision")
    evaluator = require("pycocotools.cocoeval", extra="eval", feature="average precision")
    if len(predicted) != len(target) or not target:
        raise ValueError(f"predicted: masks of {len(predicted)} images for targets of {len(target)}; needs one each")
    if isinstance(confidence, str) and confidence not in CONFIDENCE:
        raise ValueError(f"confidence={confidence!r}: choose from {', '.join(CONFIDENCE)}, or give scores")
    if not isinstance(confidence, str) and len(confidence) != len(predicted):
        raise ValueError(f"confidence: scores of {len(confidence)} images for {len(predicted)}")
    if crowd is not None and [len(c) for c in crowd] != [len(t) for t in target]:
        raise ValueError("crowd: needs one flag for every target instance of every image")
    images: list[dict[str, Any]] = []
    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, (masks, instances) in enumerate(zip(predicted, target, strict=True), start=1):
        _check_masks(masks, instances, number - 1)
        images.append({"id": number, "height": instances.shape[-2], "width": instances.shape[-1]})
        scores = _scores(masks, confidence, number - 1)
        flags = crowd[number - 1] if crowd is not None else [False] * len(instances)
        for mask, flag in zip(instances, flags, strict=True):
            if bool(mask.any()):
                truths.append(_record(mask, number) | {"id": len(truths) + 1, "iscrowd": int(flag), "ignore": 0})
        found += [_record(m, number) | {"score": s} for m, s in zip(masks, scores, strict=True) if bool(m.any())]
    instances_count = sum(not truth["iscrowd"] for truth in truths)
    rule = CONFIDENCE[confidence] if isinstance(confidence, str) else "scores given by the caller"
    out: dict[str, Any] = {"confidence": rule, "images": len(images), "predicted": len(found)}
    out["instances"] = instances_count
    for kind in kinds:
        if not instances_count:
            out[kind] = dict.fromkeys(_STATS, float("nan"))
        elif not found:  # pycocotools does not take an empty list
            out[kind] = dict.fromkeys(_STATS, 0.0)
        else:
            out[kind] = _evaluate(coco.COCO, evaluator.COCOeval, images, truths, found, kind)
    return out


def _evaluate(
    coco: Any, evaluator: Any, images: list[dict[str, Any]], truths: list[dict[str, Any]], found: Any, kind: str
) -> dict[str, float]:
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
        run = evaluator(data, data.loadRes([{k: v for k, v in f.items() if k in keep} for f in found]), kind)
        run.params.useCats = 0
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: float(value) if value > -1 else float("nan") for name, value in zip(_STATS, run.stats, strict=False)}


def _check_masks(masks: Tensor, instances: Tensor, image: int) -> None:
    for name, value in {"predicted": masks, "target": instances}.items():
        if value.dim() != 3 or value.dtype != torch.bool:
            raise ValueError(f"{name}[{image}]: needs boolean [k, h, w], got {value.dtype} {tuple(value.shape)}")
    if masks.shape[1:] != instances.shape[1:]:
        raise ValueError(
            f"predicted[{image}]: masks {tuple(masks.shape[1:])} do not fit targets {tuple(instances.shape[1:])}; "
            "resize to the targets with nearest neighbours"
        )


def _scores(masks: Tensor, confidence: Confidence | Sequence[Tensor], image: int) -> list[float]:
    if confidence == "order":
        return [1 / (1 + k) for k in range(len(masks))]
    if confidence == "area":
        return [float(value) for value in masks.flatten(1).double().mean(1)] if len(masks) else []
    if confidence == "constant":
        return [1.0] * len(masks)
    given = torch.as_tensor(confidence[image])
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
