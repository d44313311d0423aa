"""Which head answers to which part, tested against chance; and copying labels between images patch by patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unrolled.instruments.regions.spectral import check_features
from unrolled.ops.rows import unit_rows
from unrolled.tables import Brief

Floats = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class HeadSemantics(Brief):
    """Record of `head_semantics`; h heads, p parts."""

    lift: Floats
    """`[h, p]`, geometric mean over images of the attention a part gets, relative to its area: 1 = as by chance."""
    consistency: float
    """Share in 0..1 of the variation of log lift, over heads and images, that a head's identity explains."""
    chance: float
    """Mean `consistency` of the null."""
    p_value: float
    """Share of the null at least as consistent, counting the observation itself."""
    z: Floats
    """`[h, p]`, how far each mean log lift over the heads' mean is from the null, in its standard deviations."""
    p: Floats
    """`[h, p]`, two-sided p-values of `z`, corrected for all heads and parts by the null's largest |z|."""
    images: NDArray[np.int64]
    """`[p]`, in how many images each part occurs."""
    null: str
    """What was shuffled."""


def head_semantics(
    attention: Sequence[Tensor] | Tensor,
    parts: Sequence[Tensor] | Tensor,
    *,
    names: int | None = None,
    null: Literal["heads", "images"] = "heads",
    draws: int = 1000,
    seed: int = 0,
) -> HeadSemantics:
    """Whether heads keep to their parts across images, more than shuffled heads do.

    The profile of a head in an image is the log of its attention to each part over the part's area. If heads have
    roles, a head's profiles agree between images and differ from other heads'. The null `"heads"` permutes the heads
    within every image, so it keeps each image's maps and forgets whose they are. A head that always looks at one place
    also passes that test when parts keep their places; the null `"images"` permutes which image's part map goes with
    which attention, and only what follows the content of the image survives it. That null needs maps of one grid.

    Args:
        attention: for each image `[h, n]`, non-negative; or `[images, h, n]`.
        parts: for each image integer part labels `[n]` on the same grid, -1 where there is no part.
        names: number of parts; default the largest label + 1.
        null: what to shuffle.
        draws: number of shuffles.
        seed: of the shuffles.

    Raises:
        ValueError: fewer than two images or heads, maps that do not fit, or no part in at least two images.
    """
    if null not in ("heads", "images"):
        raise ValueError(f"null={null!r}: choose 'heads' or 'images'")
    if draws < 1:
        raise ValueError(f"draws={draws}: must be at least 1")
    maps = [a.detach().double().cpu().numpy() for a in attention]
    labels = [np.asarray(p.cpu()) for p in parts]
    _check_maps(maps, labels)
    count = names if names is not None else int(max(label.max() for label in labels)) + 1
    rng = np.random.default_rng(seed)
    observed = np.stack([_profile(m, label, count) for m, label in zip(maps, labels, strict=True)])
    present = ~np.isnan(observed[:, 0])
    if not (present.sum(0) >= 2).any():
        raise ValueError("parts: no part occurs in two images, so nothing can be consistent")
    if null == "images" and len({m.shape for m in maps}) > 1:
        raise ValueError("attention: null='images' pairs maps with parts of other images, so all need one grid")
    share, effect = _consistency(observed)
    shares, effects = np.empty(draws), np.empty((draws, *effect.shape))
    images, heads = observed.shape[:2]
    stacked = np.stack(maps) if null == "images" else None
    for draw in range(draws):
        if stacked is None:
            order = rng.permuted(np.tile(np.arange(heads), (images, 1)), axis=1)
            shuffled = np.take_along_axis(observed, order[..., None], 1)
        else:
            order = rng.permutation(images)
            shuffled = np.stack([_profile(m, labels[i], count) for m, i in zip(stacked, order, strict=True)])
        shares[draw], effects[draw] = _consistency(shuffled)
    spread = effects.std(0)
    z = np.divide(effect - effects.mean(0), spread, out=np.zeros_like(effect), where=spread > 1e-12)
    null_z = np.divide(effects - effects.mean(0), spread, out=np.zeros_like(effects), where=spread > 1e-12)
    largest = np.abs(null_z).max((1, 2))
    with np.errstate(invalid="ignore"):
        lift = np.exp(_mean(observed))
    return HeadSemantics(
        lift=lift,
        consistency=share,
        chance=float(shares.mean()),
        p_value=float((1 + (shares >= share - 1e-12).sum()) / (1 + draws)),
        z=z,
        p=(1 + (largest >= np.abs(z)[..., None] - 1e-12).sum(-1)) / (1 + draws),
        images=present.sum(0),
        null=null,
    )


@dataclass(frozen=True, repr=False)
class Matches(Brief):
    """Record of `nearest_patches`, for each patch of the first image."""

    index: Tensor
    """int64 `[n]`, the most similar patch of the second image."""
    similarity: Tensor
    """`[n]`, cosine, in -1..1."""
    mutual: Tensor
    """Boolean `[n]`, whether that patch's own most similar patch is this one."""


def nearest_patches(a: Tensor, b: Tensor) -> Matches:
    """Match every patch of one image to the most similar patch of another by cosine similarity.

    Args:
        a: features `[n, d]`.
        b: features `[m, d]`.

    Raises:
        ValueError: widths that differ, or non-finite features.
    """
    similarity = _similarity(a, b)
    best = similarity.max(1)
    back = similarity.argmax(0)
    index = torch.arange(len(similarity), device=similarity.device)
    return Matches(best.indices, best.values, back[best.indices] == index)


def copy_segmentation(
    source: Tensor, labels: Tensor, target: Tensor, *, neighbours: int = 5, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Give each patch of `target` the label of the patches of `source` that look like it.

    The `neighbours` most similar source patches vote with weights softmax(cosine / temperature).

    Args:
        source: features `[n, d]` of one or several annotated images.
        labels: integer `[n]`, at least 0, or -1 for unlabelled patches, which do not vote.
        target: features `[m, d]`.
        neighbours: at least 1; fewer vote where fewer are labelled.
        temperature: > 0; small values let the most similar patch decide.

    Returns:
        Labels int64 `[m]` and their share of the vote `[m]` in 0..1.

    Raises:
        ValueError: shapes that do not fit, no labelled patch, or an option out of range.
    """
    if labels.shape != source.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: needs integers [{len(source)}], got {labels.dtype} {tuple(labels.shape)}")
    if neighbours < 1 or not temperature > 0:
        raise ValueError(f"neighbours={neighbours}, temperature={temperature}: must be at least 1, and positive")
    labels = labels.to(source.device).long()
    known = labels >= 0
    if not bool(known.any()):
        raise ValueError("labels: no patch is labelled")
    similarity = _similarity(target, source[known])
    best = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
    weights = (best.values / temperature).softmax(1)
    votes = weights.new_zeros(len(target), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[known][best.indices], weights)
    share, winner = votes.max(1)
    return winner, share.clamp(max=1)


def pool_labels(labels: Tensor, grid: tuple[int, int], *, purity: float = 0.5) -> Tensor:
    """Labels of pixels as labels of patches: each patch takes its commonest label.

    Args:
        labels: integers `[h, w]`, -1 for none; h and w at least the grid.
        grid: (H, W).
        purity: patches in which the commonest label covers at most this share are -1.

    Returns:
        int64 `[H * W]`, row-major.
    """
    if labels.dim() != 2 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels: needs integers [h, w], got {labels.dtype} {tuple(labels.shape)}")
    if not 0 <= purity < 1:
        raise ValueError(f"purity={purity}: must be at least 0 and below 1")
    height, width = labels.shape
    if min(grid) < 1 or height < grid[0] or width < grid[1]:
        raise ValueError(f"labels: {height} x {width} pixels are fewer than the grid {grid[0]} x {grid[1]}")
    # the patch of each pixel; patches differ by a pixel where the sides do not divide
    row = torch.arange(height, device=labels.device) * grid[0] // height
    column = torch.arange(width, device=labels.device) * grid[1] // width
    patch = (row[:, None] * grid[1] + column).flatten()
    values, index = labels.long().unique(return_inverse=True)
    counts = torch.bincount(patch * len(values) + index.flatten(), minlength=grid[0] * grid[1] * len(values))
    counts = counts.reshape(-1, len(values))
    most, which = counts.max(1)
    return torch.where(most > purity * counts.sum(1), values[which], -1)


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    a, b = check_features(a, (1, len(a))), check_features(b, (1, len(b)))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features: widths {a.shape[1]} and {b.shape[1]} differ; use one model and layer for both")
    return unit_rows(a) @ unit_rows(b.to(a)).mT


def _check_maps(maps: list[Floats], labels: list[NDArray[np.integer]]) -> None:
    if len(maps) != len(labels) or len(maps) < 2:
        raise ValueError(f"attention: {len(maps)} images for {len(labels)} part maps; needs two or more of each")
    heads = {m.shape[0] if m.ndim == 2 else -1 for m in maps}
    if len(heads) != 1 or min(heads) < 2:
        raise ValueError("attention: needs [h, n] for every image, with one number of heads, at least two")
    for number, (map_, label) in enumerate(zip(maps, labels, strict=True)):
        if label.shape != map_.shape[1:] or label.dtype.kind not in "iu":
            raise ValueError(f"parts[{number}]: needs integers [{map_.shape[1]}], got {label.dtype} {label.shape}")
        if not np.isfinite(map_).all() or (map_ < 0).any():
            raise ValueError(f"attention[{number}]: holds negative, NaN or infinite entries")


def _profile(attention: Floats, labels: NDArray[np.integer], parts: int) -> Floats:
    """Log lift `[h, parts]` of one image; NaN for absent parts."""
    members = labels[:, None] == np.arange(parts)
    area = members.mean(0)
    total = attention.sum(1, keepdims=True)
    share = np.divide(attention @ members, total, out=np.tile(area, (len(attention), 1)), where=total > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # half a patch of attention at the mean keeps the log finite for a head that ignores a part
        ridge = 0.5 / len(labels)
        profile: Floats = np.log((share + ridge) / (area + ridge))
    profile[:, area == 0] = np.nan
    return profile


def _mean(profiles: Floats) -> Floats:
    """Mean over images `[h, p]`, NaN where a part never occurs."""
    present = ~np.isnan(profiles)
    count = present.sum(0)
    sums = np.where(present, profiles, 0).sum(0)
    return np.divide(sums, count, out=np.full(sums.shape, np.nan), where=count > 0)


def _consistency(profiles: Floats) -> tuple[float, Floats]:
    """Share of variation explained by the head, and each head's mean deviation `[h, p]` from the heads' mean."""
    centred = profiles - profiles.mean(1, keepdims=True)  # what all heads of an image share is not a role
    present = ~np.isnan(centred)
    count = present.sum(0)
    effect = np.nan_to_num(_mean(centred))
    total = np.where(present, centred, 0) ** 2
    between = float((count * effect**2).sum())
    return between / float(total.sum()) if total.sum() > 0 else 0.0, effect
