"""A stem that begins with the directions of the images' own patches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolled.models.stem import LayerNormStem

IMAGES = 4096
"""How many training images the patches are taken from, at most."""
_PIXELS = 2**20  # numbers of images that are looked at at once
_FLOOR = 1e-4  # of the largest eigenvalue: directions with less hardly occur, and are not blown up further


def whiten_stem(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the first convolution of a model's stem to whiten its own patches, in place.

    Filters are the patches' principal directions over their standard deviations, largest first, then the same negated,
    each pair a half-wave of one direction behind GELU; more filters than that stay as they are. All are scaled so that
    outputs have, on average, the variance that they had. Of "airbench" (arXiv 2404.00498), which keeps these filters
    where here they are learned on.

    Args:
        model: with a timm `patch_embed`, whose first convolution takes the image.
        batches: images as the model sees them, `[b, c, h, w]`; the first `IMAGES`.

    Raises:
        ValueError: the model has no such stem, or there are no images.
    """
    convolution = _first_convolution(model)
    covariance = _covariance(convolution, batches)
    filters = whitening_filters(covariance, convolution.out_channels)
    with torch.no_grad():
        weight = convolution.weight.flatten(1).double().cpu()
        filters = filters * (_variance(weight, covariance) / _variance(filters, covariance)).sqrt()
        weight[: len(filters)] = filters
        convolution.weight.copy_(weight.view_as(convolution.weight))


def whitening_filters(covariance: Tensor, count: int) -> Tensor:
    """The first `count` of the rows that whiten `covariance` `[k, k]`, largest variance first, and of these negated.

    Returns:
        float64 `[min(count, 2 k), k]`: row i times a vector of that covariance has variance 1, and rows are
        uncorrelated, but for directions below 1e-4 of the largest variance, which come out smaller.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    order = values.argsort(descending=True)
    scale = values[order].clamp(min=_FLOOR * float(values.max())).rsqrt()
    rows = (vectors[:, order] * scale).T
    return torch.cat([rows, -rows])[:count]


def _first_convolution(model: nn.Module) -> nn.Conv2d:
    stem: Any = getattr(model, "patch_embed", None)
    convolutions = [] if stem is None else [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    if not convolutions or convolutions[0].groups != 1:
        raise ValueError(f"whiten_stem: {type(model).__name__} has no convolution in a `patch_embed`; leave it off")
    if isinstance(stem, LayerNormStem):
        raise ValueError("whiten_stem: this stem normalises every patch first; choose stem 'linear' or 'conv'")
    return convolutions[0]


def _covariance(convolution: nn.Conv2d, batches: Iterable[Tensor]) -> Tensor:
    """Of all patches that the convolution sees whole in the images, in its order, float64 `[k, k]`."""
    size = convolution.weight[0].numel()
    total, products, patches = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
    for images in _few(batches):
        rows = F.unfold(images, convolution.kernel_size, stride=convolution.stride).movedim(1, 2).flatten(0, 1).double()
        total += rows.sum(0)
        products += rows.T @ rows
        patches += len(rows)
    if not patches:
        raise ValueError("whiten_stem: there are no images to take patches from")
    mean = total / patches
    covariance = products / patches - torch.outer(mean, mean)
    if not bool(covariance.diagonal().max() > 1e-12 * mean.square().max()):
        raise ValueError("whiten_stem: the training images are all of one colour, so that no direction is larger")
    return covariance


def _few(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The first `IMAGES` images `[b, c, h, w]`, as many at once as are a few megabytes."""
    left = IMAGES
    for batch in batches:
        step = max(1, _PIXELS // batch[0].numel())
        yield from batch[:left].cpu().split(step)
        left -= len(batch)
        if left <= 0:
            return


def _variance(filters: Tensor, covariance: Tensor) -> Tensor:
    """Mean variance of the filters' outputs."""
    return torch.einsum("ij,jk,ik->i", filters, covariance, filters).mean()
