"""How well masks fit annotated regions: Jaccard by head, class, image and layer; foreground, background, boundary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unrolled.instruments.regions.segmentation import Threshold, threshold_attention, upsample

Row = dict[str, Any]
Bools = NDArray[np.bool_]


def jaccard(predicted: Tensor, target: Tensor, *, ignore: Tensor | None = None) -> Tensor:
    """Intersection over union of every predicted mask with every target.

    Args:
        predicted: boolean `[..., p, h, w]`.
        target: boolean `[t, h, w]`.
        ignore: boolean `[h, w]`, pixels that do not count.

    Returns:
        `[..., p, t]` float32 in 0..1; NaN where both masks are empty.

    Raises:
        ValueError: masks of different size, or not boolean.
    """
    for name, mask in {"predicted": predicted, "target": target}.items():
        if mask.dtype != torch.bool or mask.dim() < 3:
            raise ValueError(f"{name}: needs boolean masks [..., h, w], got {mask.dtype} {tuple(mask.shape)}")
    size = target.shape[-2:]
    if predicted.shape[-2:] != size or (ignore is not None and ignore.shape != size):
        raise ValueError(
            f"predicted: masks {tuple(predicted.shape[-2:])} do not fit targets {tuple(size)}; resize to the targets "
            "with nearest neighbours"
        )
    p, t = predicted.flatten(-2).float(), target.flatten(-2).to(predicted.device).float()
    if ignore is not None:
        counted = (~ignore).flatten().to(p)
        p, t = p * counted, t * counted
    both = p @ t.mT
    union = p.sum(-1)[..., None] + t.sum(-1) - both
    return torch.where(union > 0, both / union, float("nan"))


def region_scores(
    predicted: Tensor, target: Tensor, *, ignore: Tensor | None = None, width: float = 0.02
) -> dict[str, float]:
    """Jaccard of the foreground, of the background, and of the two boundaries.

    Args:
        predicted: boolean `[h, w]`.
        target: boolean `[h, w]`.
        ignore: boolean `[h, w]`, pixels that do not count.
        width: the boundary of a mask is its pixels within this share of the image's diagonal from its contour
            (Boundary IoU, arXiv 2103.16562), at least one pixel. The image's border is no contour.

    Returns:
        `foreground`, `background`, `boundary`; NaN where neither mask has such pixels.
    """
    if not width > 0:
        raise ValueError(f"width={width}: must be positive")
    pair = torch.stack([predicted.cpu(), target.cpu()]) if predicted.shape == target.shape else predicted[None]
    reach = max(1.0, width * math.hypot(*target.shape[-2:]))
    pairs = {"foreground": pair, "background": ~pair, "boundary": _inner_boundary(pair, reach)}
    # through `jaccard`, which checks sizes
    ends = {name: (masks[:1], masks[1:] if len(masks) == 2 else target[None]) for name, masks in pairs.items()}
    ignore = None if ignore is None else ignore.cpu()
    return {name: float(jaccard(a, b, ignore=ignore)) for name, (a, b) in ends.items()}


def score_attention(
    attention: Tensor,
    grid: tuple[int, int],
    targets: Mapping[str, Tensor],
    *,
    by: Sequence[Threshold] = ("mass", "fraction"),
    keep: float = 0.6,
    ignore: Tensor | None = None,
    layers: Sequence[int] | None = None,
    image: str | int = 0,
) -> list[Row]:
    """Score one image's attention maps, by every layer, head and threshold rule, against its annotated regions.

    Args:
        attention: `[layers, h, n]` of one image, as in `read_patches(...).attention[:, i]`.
        grid: (H, W) with H W = n. Masks are enlarged to the targets by nearest neighbours.
        targets: class name -> boolean `[height, width]`; classes without a pixel that counts are left out.
        by: threshold rules; every one is reported.
        keep: see `threshold_attention`.
        ignore: boolean `[height, width]`.
        layers: numbers to report; default 0, 1, ...
        image: what to call the image in the rows.

    Returns:
        One row for each layer, rule and class: `image, layer, by, class`, and Jaccard indices: `head00`, `head01`, ...
        of each head; `best` of the head that fits this class best here, with its number `best_head` (the papers' score:
        an oracle choice, higher than any fixed head's); `mean` over heads; `averaged`, of the mask of the heads' mean
        map.
    """
    if attention.dim() != 3:
        raise ValueError(f"attention: needs [layers, h, n] of one image, got {tuple(attention.shape)}")
    maps = torch.cat([attention, attention.mean(1, keepdim=True)], 1)
    masks: dict[str, Tensor] = {rule: threshold_attention(maps, keep, by=rule) for rule in by}
    return score_masks(masks, grid, targets, ignore=ignore, layers=layers, image=image)


def score_masks(
    masks: Mapping[str, Tensor],
    grid: tuple[int, int],
    targets: Mapping[str, Tensor],
    *,
    ignore: Tensor | None = None,
    layers: Sequence[int] | None = None,
    image: str | int = 0,
) -> list[Row]:
    """Score masks of whole patches of one image; what `score_attention` does once its maps are cut.

    Args:
        masks: name, such as that of a threshold rule, -> boolean `[layers, k + 1, n]`: k candidates, then the answer
            that was chosen without looking at the targets.
        grid, targets, ignore, layers, image: see `score_attention`.

    Returns:
        The rows of `score_attention`, with `by` the name of the masks.
    """
    first = next(iter(masks.values()))
    if first.dim() != 3 or first.shape[-1] != grid[0] * grid[1]:
        raise ValueError(f"grid={tuple(grid)}: must be (H, W) with H * W = {first.shape[-1]}")
    numbers = list(range(len(first))) if layers is None else list(layers)
    if len(numbers) != len(first):
        raise ValueError(f"layers: {len(numbers)} numbers for {len(first)} layers of attention")
    rows: list[Row] = []
    if not targets:
        return rows
    inside, area = pixels_in_patches(targets, grid, ignore)
    seen = inside.sum(1) > 0
    named = [name for name, here in zip(targets, seen.tolist(), strict=True) if here]
    inside = inside[seen].to(first.device)
    for rule, every in masks.items():
        for number, layer in zip(numbers, every.to(inside), strict=True):
            both = layer @ inside.mT
            scores = both / ((layer @ area.to(inside))[:, None] + inside.sum(1) - both)
            for name, column in zip(named, scores.mT.cpu(), strict=True):
                heads = column[:-1]
                row: Row = {"image": image, "layer": number, "by": rule, "class": name}
                row |= {"best": float(heads.max()), "best_head": int(heads.argmax())}
                row |= {"mean": float(heads.mean()), "averaged": float(column[-1])}
                rows.append(row | {f"head{k:02d}": float(value) for k, value in enumerate(heads)})
    return rows


def pixels_in_patches(
    targets: Mapping[str, Tensor], grid: tuple[int, int], ignore: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How many pixels of each target, and how many that count at all, each patch has when enlarged: `[t, n]`, `[n]`.

    All that the Jaccard index of a mask of whole patches needs, without enlarging any mask.

    Raises:
        ValueError: no target, or targets that are not boolean or differ in size.
    """
    sizes = {tuple(m.shape) for m in targets.values()} | (set() if ignore is None else {tuple(ignore.shape)})
    if len(sizes) != 1 or not targets or any(m.dtype != torch.bool for m in targets.values()):
        raise ValueError(f"targets: need boolean masks of one size, also with ignore; got sizes {sorted(sizes)}")
    stacked = torch.stack(list(targets.values()))
    size = (stacked.shape[-2], stacked.shape[-1])
    n = grid[0] * grid[1]
    patch = upsample(torch.arange(n, device=stacked.device), grid, size).flatten()
    counted = torch.ones(size, device=stacked.device) if ignore is None else (~ignore).to(stacked.device).float()
    planes = torch.cat([stacked.float() * counted, counted[None]]).flatten(1)
    sums = planes.new_zeros(len(planes), n).index_add_(1, patch, planes)
    return sums[:-1], sums[-1]


def layer_sweep(rows: Iterable[Row]) -> list[Row]:
    """Average the rows of `score_attention` by layer and rule: over the classes of an image, then over images.

    Returns:
        One row for each layer and rule, in order: `layer, by, images`, the means of every score of the input, and
        `fixed` with `fixed_head`: the single head that is best on average over these images.
    """
    groups: dict[tuple[int, str], dict[str | int, list[Row]]] = {}
    for row in rows:
        groups.setdefault((row["layer"], row["by"]), {}).setdefault(row["image"], []).append(row)
    out: list[Row] = []
    for (layer, by), images in sorted(groups.items()):
        names = [k for k, v in next(iter(images.values()))[0].items() if isinstance(v, float)]
        means = {
            name: float(np.mean([np.mean([row[name] for row in per_image]) for per_image in images.values()]))
            for name in names
        }
        heads = {name: value for name, value in means.items() if name.startswith("head")}
        fixed = max(heads, key=lambda name: heads[name])
        summary: Row = {"layer": layer, "by": by, "images": len(images), "fixed": heads[fixed]}
        out.append(summary | {"fixed_head": int(fixed.removeprefix("head"))} | means)
    return out


def class_means(rows: Iterable[Row], score: str = "best") -> list[Row]:
    """Average `score` of the rows of `score_attention` by layer, rule and class: `layer, by, class, images, SCORE`."""
    groups: dict[tuple[int, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["layer"], row["by"], row["class"]), []).append(row[score])
    return [
        {"layer": layer, "by": by, "class": name, "images": len(values), score: float(np.mean(values))}
        for (layer, by, name), values in sorted(groups.items())
    ]


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, resampling the values (one for each image); NaN values are left out.

    Raises:
        ValueError: no value, or a level outside (0, 1).
    """
    finite = np.asarray(values, np.float64)
    finite = finite[~np.isnan(finite)]
    if len(finite) == 0:
        raise ValueError("values: hold no number to average")
    low, high = bootstrap_intervals(finite, level=level, draws=draws, seed=seed)
    return float(low), float(high)


def bootstrap_intervals(
    values: np.ndarray, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`bootstrap_interval` of many scores of the same images at once: `[images, ...]` -> two `[...]`; no NaN."""
    table = np.asarray(values, np.float64)
    if table.ndim < 1 or not len(table) or not np.isfinite(table).all():
        raise ValueError(f"values: need finite scores [images, ...], got {table.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1")
    index = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
    means = np.stack([table[drawn].mean(0) for drawn in index])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def covering(predicted: Tensor, target: Tensor) -> float:
    """Segmentation covering of `target` by `predicted` (Arbelaez et al., 2011): in 0..1, 1 where they are the same.

    Args:
        predicted: integer labels `[h, w]`.
        target: integer labels `[h, w]`.

    Returns:
        Jaccard of every target region with the region that fits it best, weighted by its area.
    """
    both = _contingency(predicted, target)
    area = both.sum(1)
    overlap = both / (area[:, None] + both.sum(0) - both)
    return float((area * overlap.amax(1)).sum() / area.sum())


def matched_iou(predicted: Tensor, target: Tensor) -> float:
    """Mean Jaccard index of the target's regions with predicted ones, matched one to one.

    Args:
        predicted: integer labels, of any shape.
        target: integer labels of the same shape.

    Returns:
        In 0..1; the matching is the one that makes it largest, and a region of either left without a partner scores 0.
    """
    overlap, pairs = _matched(_contingency(predicted, target).numpy())
    return float(overlap[pairs].sum() / max(overlap.shape))


def matched_boundary(predicted: Tensor, target: Tensor, *, ignore: Tensor | None = None, width: float = 0.02) -> float:
    """Mean Jaccard index of the boundaries of the target's regions with those of predicted ones (Boundary IoU).

    Args:
        predicted: integer labels `[h, w]`.
        target: integer labels `[h, w]`.
        ignore: boolean `[h, w]`, pixels that do not count.
        width: of a boundary, as in `region_scores`.

    Returns:
        In 0..1; regions are matched as by `matched_iou`, and one left without a partner scores 0. 1 where both are one
        region, which has no boundary. NaN where no pixel counts.
    """
    if predicted.shape != target.shape or target.dim() != 2:
        raise ValueError(f"predicted: labels {tuple(predicted.shape)} do not fit targets {tuple(target.shape)} [h, w]")
    if not width > 0:
        raise ValueError(f"width={width}: must be positive")
    counted = np.ones(target.shape, bool) if ignore is None else ~ignore.cpu().numpy()
    if not counted.any():
        return float("nan")
    reach = max(1.0, width * math.hypot(*target.shape))
    labels = [x.cpu().numpy().astype(np.int32) for x in (predicted, target)]
    ours, theirs = (_near_others(x, reach)[counted] for x in labels)
    a, b = (np.unique(x[counted], return_inverse=True)[1] for x in labels)
    shape = int(b.max()) + 1, int(a.max()) + 1
    pair = b * shape[1] + a

    def count(at: Bools | slice) -> NDArray[np.int64]:
        return np.bincount(pair[at], minlength=shape[0] * shape[1]).reshape(shape)

    rows, columns = _matched(count(slice(None)))[1]
    shared = count(ours & theirs)[rows, columns]
    union = count(ours).sum(0)[columns] + count(theirs).sum(1)[rows] - shared
    return float(np.where(union > 0, shared / np.maximum(union, 1), 1.0).sum() / max(shape))


def _contingency(predicted: Tensor, target: Tensor) -> Tensor:
    """Pixels of every target region in every predicted region, `[t, p]` float64."""
    if predicted.shape != target.shape or not target.numel():
        raise ValueError(f"predicted: labels {tuple(predicted.shape)} do not fit targets {tuple(target.shape)}")
    _, a = predicted.flatten().cpu().unique(return_inverse=True)
    _, b = target.flatten().cpu().unique(return_inverse=True)
    rows, columns = int(b.max()) + 1, int(a.max()) + 1
    return torch.bincount(b * columns + a, minlength=rows * columns).reshape(rows, columns).double()


def _matched(both: NDArray[Any]) -> tuple[NDArray[np.float64], tuple[Any, Any]]:
    """Jaccard of every target region with every predicted one, `[t, p]`, and the pairs of the best matching."""
    from scipy.optimize import linear_sum_assignment

    overlap = both / (both.sum(1)[:, None] + both.sum(0) - both)
    return overlap, linear_sum_assignment(overlap, maximize=True)


def _near_others(labels: NDArray[np.int32], reach: float) -> Bools:
    """Pixels of labels `[h, w]` at most `reach` from one of another label."""
    height, width = labels.shape
    # in each row, how far the next pixel of another label is
    places = np.broadcast_to(np.arange(width, dtype=np.int32), labels.shape)
    change = labels[:, 1:] != labels[:, :-1]
    far = width + int(reach) + 1
    left, right = np.full(labels.shape, -far, np.int32), np.full(labels.shape, width + far, np.int32)
    np.copyto(left[:, 1:], places[:, :-1], where=change)
    np.copyto(right[:, :-1], places[:, 1:], where=change)
    left, right = np.maximum.accumulate(left, axis=1), np.minimum.accumulate(right[:, ::-1], axis=1)[:, ::-1]
    along = np.minimum(places - left, right - places)
    out = along <= int(reach)
    for down in range(1, min(int(reach), height - 1) + 1):
        # a row further, either the pixel below has another label, or one beside it that is near enough
        aside = int(math.sqrt(reach * reach - down * down) + 1e-9)  # a distance of exactly `reach` counts
        near, differs = along <= aside, labels[:-down] != labels[down:]
        out[:-down] |= differs | near[down:]
        out[down:] |= differs | near[:-down]
    return out


def _inner_boundary(masks: Tensor, reach: float) -> Tensor:
    """Pixels of each mask `[k, h, w]` at most `reach` from one outside it."""
    from scipy import ndimage

    out = np.zeros(masks.shape, bool)
    for k, mask in enumerate(masks.numpy()):
        if mask.any() and not mask.all():
            out[k] = mask & (ndimage.distance_transform_edt(mask) <= reach)
    return torch.from_numpy(out)
