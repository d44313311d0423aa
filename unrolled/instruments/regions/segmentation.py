"""Masks out of attention maps and token features: thresholds, token PCA, refinement to pixels.

Maps are `[..., n]` or `[..., H, W]` on the grid of patches; masks are boolean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from unrolled.instruments.regions.spectral import check_features
from unrolled.tables import Brief

Threshold = Literal["mass", "fraction"]


def threshold_attention(attention: Tensor, keep: float = 0.6, *, by: Threshold) -> Tensor:
    """Binarise attention maps.

    The two published rules differ, so there is no default: `"mass"` keeps the largest entries that together hold `keep`
    of the map's sum (DINO, arXiv 2104.14294: an entry is dropped while the sum of it and all smaller ones is at most
    1 - keep); `"fraction"` keeps the largest `keep` of the entries (Emergence of segmentation, arXiv 2308.16271).

    Args:
        attention: non-negative `[..., n]`.
        keep: in (0, 1].
        by: which rule.

    Returns:
        Boolean `[..., n]`. A map without contrast, where no rule can choose, is all False.

    Raises:
        ValueError: negative or non-finite entries, or an option out of range.
    """
    if not attention.is_floating_point() or attention.dim() < 1 or attention.shape[-1] == 0:
        raise ValueError(f"attention: needs a floating tensor [..., n], got {attention.dtype} {tuple(attention.shape)}")
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: must be above 0 and at most 1")
    if by not in ("mass", "fraction"):
        raise ValueError(f"by={by!r}: choose 'mass' or 'fraction'")
    values = attention.detach().double() if attention.device.type != "mps" else attention.detach().float()
    if not bool(values.isfinite().all()) or bool((values < 0).any()):
        raise ValueError("attention: holds negative, NaN or infinite entries")
    ordered, index = values.sort(dim=-1, stable=True)
    n = ordered.shape[-1]
    if by == "mass":
        # rounding must not drop an entry more than the sum allows
        chosen = ordered.cumsum(-1) > (1 - keep) * ordered.sum(-1, keepdim=True) * (1 + 1e-9)
    else:
        chosen = (torch.arange(n, device=values.device) >= n - max(1, round(keep * n))).expand_as(ordered)
    mask = torch.zeros_like(chosen).scatter(-1, index, chosen)
    flat = ordered[..., -1:] - ordered[..., :1] <= 1e-6 * ordered[..., -1:]
    return mask & ~flat


def upsample(maps: Tensor, grid: tuple[int, int], size: tuple[int, int], *, smooth: bool = False) -> Tensor:
    """Grid maps at the size of the image.

    Args:
        maps: `[..., n]`, boolean, integer or floating.
        grid: (H, W) with H W = n.
        size: (height, width) wanted.
        smooth: bilinear instead of nearest; floating maps only.

    Returns:
        `[..., height, width]` in the type of `maps`.
    """
    if maps.shape[-1] != grid[0] * grid[1]:
        raise ValueError(f"grid={tuple(grid)}: must be (H, W) with H * W = {maps.shape[-1]}")
    if smooth and not maps.is_floating_point():
        raise ValueError("smooth=True: needs floating maps; upsample first, then threshold")
    planes = maps.reshape(-1, 1, *grid)
    planes = planes if maps.is_floating_point() else planes.float()
    planes = (
        F.interpolate(planes, size, mode="bilinear") if smooth else F.interpolate(planes, size, mode="nearest-exact")
    )
    return planes.reshape(*maps.shape[:-1], *size).to(maps.dtype)


@dataclass(frozen=True, repr=False)
class TokenPCA(Brief):
    """Record of `token_pca`."""

    scores: Tensor
    """`[..., n, components]` coordinates of each token, as many leading dimensions as the features had."""
    explained: Tensor
    """`[components]`, share of the variance."""
    directions: Tensor
    """`[components, d]`, orthonormal rows. A component that has no variance has zero scores."""


def token_pca(features: Tensor, components: int = 3, *, mask: Tensor | None = None) -> TokenPCA:
    """Principal components of the tokens of one image, or jointly of several.

    The sign of a component, which PCA leaves open, is fixed: the score of largest magnitude is positive.

    Args:
        features: `[n, d]`, or `[b, n, d]` for images of one grid analysed together.
        components: how many, at most min(tokens, d).
        mask: boolean, `features` without the last dimension: fit on these tokens only; the others score 0.

    Raises:
        ValueError: shapes that do not fit, non-finite features, too many components, or fewer than two tokens.
    """
    rows = check_features(features.flatten(0, -2), (1, features.shape[:-1].numel()))
    chosen = torch.ones(len(rows), dtype=torch.bool, device=rows.device) if mask is None else mask.flatten()
    if len(chosen) != len(rows) or chosen.dtype != torch.bool:
        raise ValueError(f"mask: must be boolean {tuple(features.shape[:-1])}, got {chosen.dtype} {tuple(mask.shape)}")  # type: ignore[union-attr]
    fitted = rows[chosen]
    if len(fitted) < 2:
        raise ValueError(f"features: PCA needs at least two tokens, got {len(fitted)}")
    if not 1 <= components <= min(fitted.shape):
        raise ValueError(f"components={components}: {len(fitted)} tokens of width {rows.shape[1]} have at most "
                         f"{min(fitted.shape)}")  # fmt: skip
    centred = fitted - fitted.mean(0)
    if rows.device.type != "mps":
        centred = centred.double()
    # the eigenvectors of the d x d covariance: n is often much larger than d
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)[:, :components]
    total = values.sum()
    real = values[:components] > 1e-10 * torch.maximum(total, fitted.square().sum().to(total))
    scores = torch.where(real, centred @ vectors, 0)
    peak = scores.gather(0, scores.abs().argmax(0, keepdim=True))[0]
    sign = torch.where(peak < 0, -1.0, 1.0).to(scores)
    out = rows.new_zeros(len(rows), components)
    out[chosen] = (scores * sign).to(rows)
    return TokenPCA(
        scores=out.reshape(*features.shape[:-1], components),
        explained=torch.where(real, values[:components] / total.where(total > 0, 1), 0).to(rows),
        directions=(vectors * sign).mT.to(rows),
    )


@dataclass(frozen=True, repr=False)
class PCAColours(Brief):
    """Record of `pca_colours`."""

    foreground: Tensor
    """Boolean `[b, H, W]`."""
    colours: Tensor
    """`[b, H, W, 3]` in 0..1; background is 0."""
    scores: Tensor
    """`[b, H, W]`, the first component, foreground positive."""
    threshold: float
    """Scores above it are foreground."""


def pca_colours(features: Tensor, grid: tuple[int, int], *, threshold: float | None = None) -> PCAColours:
    """Foreground from the first component of all images together, then its next PCA as colours (arXiv 2308.16271).

    The paper keeps scores above 12, on its own features' scale. Which sign is foreground is open; here it is the side
    that touches the images' borders less.

    Args:
        features: `[b, n, d]`, images of one class, e.g. U_k^T z of all heads side by side.
        grid: (H, W) with H W = n.
        threshold: of the first component's scores; default Otsu's, which separates them into two groups best.

    Returns:
        Foreground and colours, each of the three components scaled to 0..1 over the foreground of all images together.
        Without variance, or with less than four foreground tokens, there is no foreground.

    Raises:
        ValueError: shapes that do not fit, or non-finite features.
    """
    if features.dim() != 3:
        raise ValueError(f"features: needs [b, n, d], got {tuple(features.shape)}; add a dimension for a single image")
    check_features(features[0], grid)
    first = token_pca(features, 1)
    scores = first.scores[..., 0].unflatten(-1, grid)
    border = torch.ones(grid, dtype=torch.bool, device=features.device)
    border[1:-1, 1:-1] = False
    given = threshold is not None
    threshold = float(threshold) if threshold is not None else _otsu(scores.flatten())
    if not float(first.explained[0]) > 0:
        empty = torch.zeros_like(scores, dtype=torch.bool)
        return PCAColours(empty, scores.new_zeros(*scores.shape, 3), scores, threshold)
    options = [(scores, threshold), (-scores, threshold if given else -threshold)]
    scores, threshold = min(options, key=lambda o: _border_share(o[0] > o[1], border))
    foreground = scores > threshold
    colours = scores.new_zeros(*scores.shape, 3)
    if int(foreground.sum()) < 4 or features.shape[-1] < 3:
        return PCAColours(torch.zeros_like(foreground), colours, scores, threshold)
    inner = token_pca(features, 3, mask=foreground.flatten(1)).scores.unflatten(1, grid)[foreground]
    low, high = inner.amin(0), inner.amax(0)
    colours[foreground] = torch.where(high > low, (inner - low) / (high - low).clamp(min=1e-12), 0.5)
    return PCAColours(foreground, colours, scores, threshold)


def refine_mask(mask: Tensor, image: Tensor, *, radius: int = 8, eps: float = 1e-3, min_overlap: float = 0.5) -> Tensor:
    """Fit masks to the edges of the image by a guided filter (He, Sun and Tang, 2010), in place of a dense CRF.

    The mask is regressed on the colours of the image in every window and the average regression is cut at 1/2: edges
    follow those of the image, at a cost linear in the number of pixels. Holes are filled, and, as MaskCut's published
    post-processing does with its CRF, a mask that changed beyond recognition is dropped.

    Args:
        mask: boolean `[k, h, w]`, at the resolution of the image.
        image: `[3, h, w]`, floating, in 0..1.
        radius: of the window, in pixels; of the order of a patch.
        eps: variance of a colour channel that counts as an edge.
        min_overlap: masks with a lower Jaccard index before and after come back empty.

    Returns:
        Boolean `[k, h, w]`.
    """
    from scipy import ndimage

    if mask.dim() != 3 or mask.dtype != torch.bool:
        raise ValueError(f"mask: needs boolean [k, h, w], got {mask.dtype} {tuple(mask.shape)}")
    if image.shape != (3, *mask.shape[1:]) or not image.is_floating_point():
        raise ValueError(f"image: needs floating [3, {mask.shape[1]}, {mask.shape[2]}], got {tuple(image.shape)}")
    if radius < 1 or not eps > 0:
        raise ValueError(f"radius={radius}, eps={eps}: must be at least 1, and positive")
    guide = image.double() if image.device.type != "mps" else image.float()
    p = mask.to(guide)
    mean_i, mean_p = _box(guide, radius), _box(p, radius)
    outer = _box((guide[:, None] * guide).flatten(0, 1), radius).unflatten(0, (3, 3)) - mean_i[:, None] * mean_i
    cov = _box((p[:, None] * guide).flatten(0, 1), radius).unflatten(0, (len(p), 3)) - mean_p[:, None] * mean_i
    system = outer.permute(2, 3, 0, 1) + eps * torch.eye(3).to(guide)
    a = torch.linalg.solve(system, cov.permute(2, 3, 1, 0)).permute(3, 2, 0, 1)  # [k, 3, h, w]
    b = mean_p - (a * mean_i).sum(1)
    soft = (_box(a.flatten(0, 1), radius).unflatten(0, (len(p), 3)) * guide).sum(1) + _box(b, radius)
    out = torch.zeros_like(mask)
    for k, plane in enumerate((soft > 0.5).cpu().numpy()):
        filled = torch.from_numpy(ndimage.binary_fill_holes(plane)).to(mask.device)
        union = (filled | mask[k]).sum()
        if union and (filled & mask[k]).sum() >= min_overlap * union:
            out[k] = filled
    return out


def _box(planes: Tensor, radius: int) -> Tensor:
    """Mean over windows of side 2 radius + 1 clipped at the border, `[k, h, w]`."""
    for dim in (-1, -2):
        n = planes.shape[dim]
        sums = F.pad(planes.cumsum(dim), (1, 0) if dim == -1 else (0, 0, 1, 0))
        index = torch.arange(n, device=planes.device)
        high, low = (index + radius + 1).clamp(max=n), (index - radius).clamp(min=0)
        width = (high - low).to(planes)
        planes = (sums.index_select(dim, high) - sums.index_select(dim, low)) / (width if dim == -1 else width[:, None])
    return planes


def _otsu(values: Tensor) -> float:
    """The threshold that maximises the variance between the two groups it makes, midway between neighbours."""
    ordered = values.double().cpu().sort().values
    n = len(ordered)
    below = torch.arange(1, n, dtype=torch.float64)
    sums = ordered.cumsum(0)
    between = (sums[-1] * below / n - sums[:-1]).square() / (below * (n - below))
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def _border_share(mask: Tensor, border: Tensor) -> float:
    """Share of the border covered, relative to the share of everything covered."""
    covered = mask.double().mean()
    return float(mask[:, border].double().mean() / covered) if covered > 0 else float("inf")
