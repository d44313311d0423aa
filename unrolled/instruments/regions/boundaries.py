"""Boundary precision, recall and F-measure against several human annotators (BSDS500; Arbelaez et al., TPAMI 2011)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import maximum_flow

from unrolled.tables import Brief

Bools = NDArray[np.bool_]


@dataclass(frozen=True, repr=False)
class BoundaryCounts(Brief):
    """Counts of one image, each `[thresholds]`; sums over images give the precision and recall of a data set."""

    thresholds: NDArray[np.float64]
    matched: NDArray[np.int64]
    """Predicted boundary pixels that some annotator drew."""
    predicted: NDArray[np.int64]
    recalled: NDArray[np.int64]
    """Annotated pixels that were predicted, summed over annotators."""
    annotated: NDArray[np.int64]


def label_boundary(labels: NDArray[np.integer]) -> Bools:
    """Thin boundary of labels `[h, w]`: pixels whose right, lower or lower-right neighbour has another label."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(f"labels: needs integers [h, w], got {labels.dtype} {labels.shape}")
    out = np.zeros(labels.shape, bool)
    out[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    out[:-1] |= labels[:-1] != labels[1:]
    out[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return out


def boundary_counts(
    predicted: NDArray[np.floating] | Bools,
    annotations: Sequence[NDArray[np.integer]],
    *,
    thresholds: Sequence[float] | None = None,
    tolerance: float = 0.0075,
    matching: Literal["one-to-one", "nearest"] = "one-to-one",
) -> BoundaryCounts:
    """Match predicted boundary pixels to those of each annotator.

    Args:
        predicted: thin boundaries `[h, w]`: boolean, or a strength in 0..1 that is cut at each threshold.
        annotations: segmentations `[h, w]`, integer labels, one for each annotator.
        thresholds: cut strengths at or above these; default 0.5 for booleans, else 0.05 to 0.95 in 19 steps (the
            benchmark's 99 take five times as long).
        tolerance: largest distance of a match, as a share of the image's diagonal; the benchmark's is 0.0075.
        matching: `"one-to-one"`: a largest matching of pixels within the tolerance. The benchmark's takes the one of
            least total distance among nearly largest ones, which changes counts little. `"nearest"`: a pixel matches
            if any is within the tolerance, faster, and more generous to thick boundaries.

    Raises:
        ValueError: sizes that differ, no annotation, or an option out of range.
    """
    predicted = np.asarray(predicted)
    if predicted.ndim != 2 or predicted.dtype.kind not in "bf":
        raise ValueError(f"predicted: needs booleans or floats [h, w], got {predicted.dtype} {predicted.shape}")
    if not np.isfinite(predicted).all():
        raise ValueError("predicted: holds NaN or infinite values")
    if not annotations:
        raise ValueError("annotations: is empty; boundaries need at least one annotator")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: a share of the diagonal, between 0 and 1")
    if matching not in ("one-to-one", "nearest"):
        raise ValueError(f"matching={matching!r}: choose 'one-to-one' or 'nearest'")
    wrong = [np.shape(a) for a in annotations if np.shape(a) != predicted.shape]
    if wrong:
        raise ValueError(f"annotations: {wrong[0]} does not fit the prediction {predicted.shape}")
    if thresholds is None:
        thresholds = [0.5] if predicted.dtype == bool else [i / 20 for i in range(1, 20)]
    reach = tolerance * math.hypot(*predicted.shape)
    truths = [label_boundary(a) for a in annotations]
    match = _one_to_one if matching == "one-to-one" else _nearest
    counts = np.zeros((4, len(thresholds)), np.int64)
    annotated = sum(int(t.sum()) for t in truths)
    last: tuple[int, NDArray[np.int64]] | None = None
    for index, threshold in enumerate(thresholds):
        drawn = predicted.astype(np.float64) >= threshold
        size = int(drawn.sum())
        if last is None or last[0] != size:  # equal sizes are equal sets: cuts of one map are nested
            hit, count = np.zeros_like(drawn), 0
            for truth in truths:
                ours, theirs = match(drawn, truth, reach)
                hit |= ours
                count += int(theirs.sum())
            last = size, np.array([hit.sum(), size, count, annotated])
        counts[:, index] = last[1]
    return BoundaryCounts(np.asarray(thresholds, np.float64), *counts)


def boundary_f(counts: Iterable[BoundaryCounts]) -> dict[str, float]:
    """Precision, recall and F of a data set.

    Returns:
        `ods_f`, `ods_precision`, `ods_recall`, `ods_threshold`: at the one threshold that is best for all images;
        `ois_f`: at the best threshold of every image. NaN where nothing is annotated or drawn.

    Raises:
        ValueError: no counts, or images counted at different thresholds.
    """
    items = list(counts)
    if not items:
        raise ValueError("counts: is empty")
    if any(not np.array_equal(item.thresholds, items[0].thresholds) for item in items):
        raise ValueError("counts: images were counted at different thresholds")
    table = np.array([[c.matched, c.predicted, c.recalled, c.annotated] for c in items], np.float64)
    precision, recall, f = _scores(table.sum(0))
    best = int(np.nanargmax(f)) if not np.isnan(f).all() else 0
    each = np.array([_scores(row)[2] for row in table])
    choice = np.nanargmax(np.where(np.isnan(each), -1, each), axis=1)
    chosen = table[np.arange(len(table)), :, choice].sum(0)[:, None]
    return {
        "ods_f": float(f[best]),
        "ods_precision": float(precision[best]),
        "ods_recall": float(recall[best]),
        "ods_threshold": float(items[0].thresholds[best]),
        "ois_f": float(_scores(chosen)[2][0]),
    }


def boundary_interval(
    counts: Iterable[BoundaryCounts], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `ods_f` at its threshold, resampling the images.

    Raises:
        ValueError: no counts, or a level outside (0, 1).
    """
    items = list(counts)
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1")
    best = boundary_f(items)["ods_threshold"]
    chosen = int(np.argmin(np.abs(items[0].thresholds - best)))
    table = np.array([[c.matched, c.predicted, c.recalled, c.annotated] for c in items], np.float64)[..., chosen]
    index = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
    low, high = np.nanquantile(_scores(table[index].sum(1).T)[2], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _scores(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F `[thresholds]` of counts `[4, thresholds]`; drawing nothing has F 0."""
    matched, predicted, recalled, annotated = table
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(predicted > 0, matched / predicted, np.nan)
        recall = np.where(annotated > 0, recalled / annotated, np.nan)
        f = 2 * precision * recall / (precision + recall)
    f = np.where((precision == 0) | (recall == 0) | ((predicted == 0) & (annotated > 0)), 0.0, f)
    return precision, recall, f


def _nearest(a: Bools, b: Bools, reach: float) -> tuple[Bools, Bools]:
    def near(mask: Bools, other: Bools) -> Bools:
        if not other.any():
            return np.zeros_like(mask)
        close: Bools = mask & (ndimage.distance_transform_edt(~other) <= reach)
        return close

    return near(a, b), near(b, a)


def _one_to_one(a: Bools, b: Bools, reach: float) -> tuple[Bools, Bools]:
    """A largest matching of the pixels of `a` and `b` at most `reach` apart: which pixels of each are matched."""
    hit_a, hit_b = np.zeros_like(a), np.zeros_like(b)
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    if len(rows) == 0 or len(columns) == 0:
        return hit_a, hit_b
    steps = math.floor(reach)
    padded = np.full((b.shape[0] + 2 * steps, b.shape[1] + 2 * steps), -1, np.int64)
    padded[steps : steps + b.shape[0], steps : steps + b.shape[1]][b] = np.arange(len(columns))
    y, x = np.divmod(rows, a.shape[1])
    offsets = [
        (dy, dx)
        for dy in range(-steps, steps + 1)
        for dx in range(-steps, steps + 1)
        if dy * dy + dx * dx <= reach * reach
    ]
    neighbours = np.stack([padded[y + steps + dy, x + steps + dx] for dy, dx in offsets], 1)
    source, slot = np.nonzero(neighbours >= 0)
    target = neighbours[source, slot]
    # unit flow from a source through the pixels of `a`, then of `b`, to a sink
    ours, theirs = len(rows), len(columns)
    start = np.concatenate([np.full(ours, ours + theirs), source, ours + np.arange(theirs)])
    end = np.concatenate([np.arange(ours), ours + target, np.full(theirs, ours + theirs + 1)])
    edges = coo_matrix((np.ones(len(start), np.int32), (start, end)), shape=(ours + theirs + 2,) * 2).tocsr()
    flow = maximum_flow(edges, ours + theirs, ours + theirs + 1, method="dinic").flow
    out = flow[ours + theirs].toarray()[0, :ours] > 0
    into = flow[ours + theirs + 1].toarray()[0, ours : ours + theirs] < 0
    hit_a.flat[rows[out]] = True
    hit_b.flat[columns[into]] = True
    return hit_a, hit_b
