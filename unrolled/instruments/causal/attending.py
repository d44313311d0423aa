"""Segmentation as a score: how well what the class token attends to fits what people marked."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from unrolled.instruments.regions.overlap import jaccard
from unrolled.instruments.regions.patches import read_patches
from unrolled.instruments.regions.segmentation import threshold_attention, upsample


class Marked(TypedDict):
    """What is marked on one photo: the grid (H, W) of its patches, things `[h, w]`, pixels that do not count."""

    grid: tuple[int, int]
    things: Tensor
    ignore: Tensor | None


class Attending(nn.Module):
    """A model whose output is the class token's attention in one block, `[b, heads, patches]`, for `marked_jaccard`.

    Args:
        network: a vision transformer that `read_patches` understands.
        layer: the block; negative numbers count from the end. The papers read the last but one.
        prefix: tokens before the patches; default what the model says.
    """

    reads_inside = True
    """What it returns is read while it runs, so no block may be left out."""

    def __init__(self, network: nn.Module, layer: int = -2, *, prefix: int | None = None) -> None:
        super().__init__()
        self.network, self.layer, self.prefix = network, layer, prefix

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Of preprocessed images `[b, c, h, w]` with that grid of patches."""
        patches = read_patches(self.network, images, layers=[self.layer], prefix=self.prefix, grid=grid)
        assert patches.attention is not None
        return patches.attention[0]


def marked_jaccard(output: Tensor, targets: Marked, *, keep: float = 0.6) -> Tensor:
    """Jaccard index `[1]` of the patches that hold `keep` of the heads' mean attention with the things of one photo."""
    grid, things = targets["grid"], targets["things"]
    mask = threshold_attention(output.float().mean(1).cpu(), keep, by="mass")
    large = upsample(mask[0].float(), grid, (things.shape[0], things.shape[1]), smooth=False) > 0.5
    return jaccard(large[None], things[None].cpu(), ignore=targets["ignore"])[0].nan_to_num(0.0)


def marked(grid: tuple[int, int], things: Any, ignore: Any = None) -> Marked:
    """The targets of one photo, of NumPy arrays or tensors."""
    return {
        "grid": grid,
        "things": torch.as_tensor(things).bool(),
        "ignore": None if ignore is None else torch.as_tensor(ignore).bool(),
    }
