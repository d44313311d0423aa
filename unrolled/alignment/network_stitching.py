"""Do two networks pass each other's messages? Stitching by one affine map, and pairs of units that fire alike.

Stitching (Lenc and Vedaldi 2015; Bansal et al. 2021): the front of one network, one trained affine map on tokens, the
back of another. Rosetta neurons (Dravid et al. 2023): units of two networks that are each other's best correlated one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unrolled.alignment.dependence import relabellings
from unrolled.ops.rows import unit_rows, varies
from unrolled.tables import Brief

Stage = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """How activations of a layer lie: `width` channels on a `grid`, as a map or as tokens after `prefix` others."""

    width: int
    grid: tuple[int, int]
    prefix: int
    map: bool

    @classmethod
    def of(cls, value: Tensor, *, prefix: int = 0) -> Layout:
        """Of activations [b, c, h, w] or [b, prefix + h w, d].

        Raises:
            ValueError: another shape, or tokens that form no square grid.
        """
        if value.ndim == 4:
            return cls(value.shape[1], (value.shape[2], value.shape[3]), 0, True)
        side = round((value.shape[1] - prefix) ** 0.5) if value.ndim == 3 and value.shape[1] > prefix else 0
        if value.ndim != 3 or side * side != value.shape[1] - prefix or not side:
            raise ValueError(
                f"value has shape {tuple(value.shape)} with prefix={prefix}: must be [b, c, h, w], or tokens of a "
                "square grid after the prefix"
            )
        return cls(value.shape[2], (side, side), prefix, False)


def on_grid(value: Tensor, layout: Layout, grid: tuple[int, int]) -> Tensor:
    """The places of a layer, averaged or repeated to another grid: [b, h w, width], without prefix tokens."""
    image = value if layout.map else value[:, layout.prefix :].mT.unflatten(2, layout.grid)
    if layout.grid != grid:
        image = nn.functional.adaptive_avg_pool2d(image, grid)
    return image.flatten(2).mT


class Stitched(nn.Module):
    """Front of one network, an affine map, back of another; only the map has parameters that train.

    Between grids of different size, places are averaged or repeated. Prefix tokens go through the same map; where the
    front has none and the back wants some, they are learned constants.

    Args:
        front: stages of the first network, from images to a layer.
        back: stages of the second, from a layer to logits.
        source: layout of the first network's layer.
        target: layout of the second network's.
    """

    def __init__(self, *, front: list[Stage], back: list[Stage], source: Layout, target: Layout) -> None:
        super().__init__()
        self._front, self._back = front, back
        self.source, self.target = source, target
        self.affine = nn.Linear(source.width, target.width)
        learned = target.prefix if source.prefix != target.prefix else 0
        self.prefix = nn.Parameter(torch.zeros(learned, target.width))

    def places(self, images: Tensor) -> Tensor:
        """[b, prefix + h w, width] of the front, on the back's grid, with the prefix tokens that the back shares."""
        with torch.no_grad():
            value = images
            for stage in self._front:
                value = stage(value)
            places = on_grid(value, self.source, self.target.grid)
            if self.source.prefix and self.source.prefix == self.target.prefix:
                places = torch.cat([value[:, : self.source.prefix], places], 1)
            return places

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images [b, c, h, w]."""
        tokens = self.affine(self.places(images))
        if len(self.prefix):
            tokens = torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], 1)
        value: Tensor = tokens.mT.unflatten(2, self.target.grid) if self.target.map else tokens
        for stage in self._back:
            value = stage(value)
        return value

    @torch.no_grad()
    def match(self, images: Tensor, wanted: Tensor, *, ridge: float = 1e-3) -> None:
        """Set the map to the ridge regression from the front's places to `wanted`, the other network's own layer.

        Args:
            images: [b, c, h, w].
            wanted: what the second network has at its layer for these images.
            ridge: penalty relative to the mean square of the front's places.
        """
        first = self.target.prefix
        shared = first and self.source.prefix == first
        places = self.places(images)
        aim = on_grid(wanted, self.target, self.target.grid)
        if shared:
            aim = torch.cat([wanted[:, :first], aim], 1)
        elif first:
            self.prefix.copy_(wanted[:, :first].mean(0))
        x, y = places.flatten(0, 1).double(), aim.flatten(0, 1).double()
        mean, middle = x.mean(0), y.mean(0)
        x, y = x - mean, y - middle
        gram = x.mT @ x
        gram += (
            ridge * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=gram.dtype, device=x.device)
        )
        weight = torch.linalg.solve(gram, x.mT @ y)
        self.affine.weight.copy_(weight.mT)
        self.affine.bias.copy_(middle - mean @ weight)


@dataclass(frozen=True, kw_only=True, repr=False)
class Rosetta(Brief):
    """Units of two networks that are each other's best correlated one.

    Attributes:
        pairs: [p, 2] units of the first and of the second network, best first.
        correlation: [p] their correlations.
        threshold: what the best mutual pair of relabelled images exceeds in 5 % of draws.
        null_pairs: [draws] how many mutual pairs relabelled images have above the median of `correlation`.
        units: in both networks.
    """

    pairs: Tensor
    correlation: Tensor
    threshold: float
    null_pairs: Tensor
    units: tuple[int, int]

    @property
    def significant(self) -> int:
        """Mutual pairs that exceed `threshold`, which corrects for all pairs of units."""
        return int((self.correlation > self.threshold).sum())


def rosetta(a: Tensor, b: Tensor, *, draws: int = 100, seed: int = 0) -> Rosetta:
    """Match the units of two networks by the correlation of their activations over images and places.

    Args:
        a, b: [images, places, units] on the same grid. Units without variance match nothing.
        draws: relabellings of the images of b, which keep where in the image a unit likes to fire.

    Raises:
        ValueError: shapes that do not fit, fewer than 4 images, or values that are not finite.
    """
    if a.ndim != 3 or b.ndim != 3 or a.shape[:2] != b.shape[:2] or len(a) < 4 or draws < 1:
        raise ValueError(
            "a and b must be [images, places, units] with the same images (4 or more) and places, and draws at least "
            f"1; got {tuple(a.shape)}, {tuple(b.shape)} and draws={draws}"
        )
    if not bool(torch.isfinite(a.sum())) or not bool(torch.isfinite(b.sum())):
        raise ValueError("a and b must be finite: drop the images that are not, on both sides")
    first, second = _standardised(a), _standardised(b)
    pairs, correlation = _mutual(first.flatten(0, 1).mT @ second.flatten(0, 1))
    middle = float(correlation.median()) if len(correlation) else 1.0
    best, above = [], []
    for order in relabellings(len(a), draws, seed):
        _, null = _mutual(first.flatten(0, 1).mT @ second[order.to(b.device)].flatten(0, 1))
        best.append(float(null.max()) if len(null) else -1.0)
        above.append(int((null > middle).sum()))
    # as in `significance.calibrate`: a further relabelling is above it with a probability of at most 0.05
    threshold = sorted(best)[min(draws, math.ceil(0.95 * (draws + 1))) - 1]
    return Rosetta(
        pairs=pairs, correlation=correlation, threshold=threshold, null_pairs=torch.tensor(above),
        units=(a.shape[2], b.shape[2]),
    )  # fmt: skip


def _standardised(value: Tensor) -> Tensor:
    columns = value.flatten(0, 1).float()
    centred = torch.where(varies(columns), columns - columns.mean(0), 0)
    return unit_rows(centred.mT).mT.unflatten(0, value.shape[:2])


def _mutual(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that are the maximum of their row and of their column, best first; only positive correlations count."""
    best = correlation.argmax(1)
    rows = torch.arange(len(correlation), device=correlation.device)
    keep = (correlation.argmax(0)[best] == rows) & (correlation[rows, best] > 0)
    values = correlation[rows, best][keep]
    order = values.argsort(descending=True)
    pairs = torch.stack([rows[keep], best[keep]], 1)[order]
    return pairs.cpu(), values[order].double().cpu()


def layer_values(stages: list[Stage], images: Tensor, depth: int) -> Any:
    """Activations after the first `depth` stages."""
    value = images
    with torch.no_grad():
        for stage in stages[:depth]:
            value = stage(value)
    return value
