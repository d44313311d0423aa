"""What `crate-hour` measures on annotated photos: how maps and MaskCut fit things, and regions that people drew.

Maps are measured as in `crate-emergence`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unrolled.data.masks import Scene
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.emergence import maps
from unrolled.studies.crate.emergence.cells import Source
from unrolled.studies.crate.emergence.photos import Halves, as_square, bsds, coco, generated, ignored, things
from unrolled.studies.crate.hour.networks import Given, studied

_TAU, _STAGES = 0.15, 3  # of MaskCut, as the CRATE papers have them
_PATCH = 4
_SMALLEST, _LARGEST = 0.02, 0.5  # share of the photo that a region has, for `Heads`


@dataclass(frozen=True, kw_only=True)
class OnPhotos(Cell):
    """What is measured on annotated photos.

    Attributes:
        network: None for the patches' colours.
        source: of the photos.
        photos: of either half.
        side: pixels of a side at which the network sees them.
    """

    network: Given | None
    source: Source
    photos: int
    side: int

    def require(self, context: Context) -> None:
        """The photos."""
        self.scenes(context)

    def halves(self, context: Context) -> Halves:
        """Photos with things."""
        return generated(self.photos) if self.source == "generated" else coco(context.data_dir, self.photos)

    def scenes(self, context: Context) -> tuple[Scene, ...]:
        """Those that are reported on."""
        return self.halves(context).report


@dataclass(frozen=True, kw_only=True)
class Things(OnPhotos):
    """How maps of every layer and head fit things."""

    network: Given

    def compute(self, context: Context) -> Result:
        """As `maps.segmentation` says, cut by `maps.RULE` alone."""
        result = maps.segmentation(studied(self.network, context), self.halves(context), self.side)
        by_map = {name: rules[maps.RULE] for name, rules in result["maps"].items()}
        return {**result, "maps": by_map}


@dataclass(frozen=True, kw_only=True)
class Cuts(OnPhotos):
    """How the objects that MaskCut finds in a layer's keys, together, fit things."""

    def compute(self, context: Context) -> Result:
        """`layers`, the mean Jaccard index of each on the choosing half; `layer`, the best of them, and on the other
        half, by photo, `jaccard` there and `middle`, that of a bump in the middle as large as each mask."""
        halves = self.halves(context)
        layers = [[row[0] for row in rows] for rows in self._scored(context, halves.choose)]
        means = torch.tensor(layers).mean(0)
        best = int(means.argmax())
        rows = [rows[best] for rows in self._scored(context, halves.report, only=best)]
        return {
            "layers": [round(mean, 4) for mean in means.tolist()],
            "layer": best,
            "jaccard": [round(row[0], 4) for row in rows],
            "middle": [round(row[1], 4) for row in rows],
        }

    def _scored(
        self, context: Context, scenes: Sequence[Scene], only: int | None = None
    ) -> Iterator[list[tuple[float, float]]]:
        """Of each photo, by layer, the Jaccard index of the mask and of a bump as large."""
        from unrolled.instruments.regions.emergence import centre_prior
        from unrolled.instruments.regions.overlap import pixels_in_patches
        from unrolled.instruments.regions.spectral import maskcut

        for scene, grid, keys in self._keys(context, scenes):
            inside, area = pixels_in_patches({"": things(scene)}, grid, ignored(scene))
            order = centre_prior(grid).flatten().argsort(descending=True)
            row = []
            for layer, features in enumerate(keys):
                if only not in (None, layer):
                    row.append((0.0, 0.0))
                    continue
                mask = maskcut(features, grid, _TAU, _STAGES).flatten(1).any(0)
                bump = torch.zeros_like(mask).scatter_(0, order[: int(mask.sum())], True)
                row.append((_jaccard(mask, inside[0], area), _jaccard(bump, inside[0], area)))
            yield row

    def _keys(self, context: Context, scenes: Sequence[Scene]) -> Iterator[tuple[Scene, tuple[int, int], Tensor]]:
        """Photos with the keys [layers, patches, d], or in one layer the mean colours of the patches."""
        from unrolled.instruments.regions.emergence import patch_colours

        if self.network is None:
            grid = (self.side // _PATCH, self.side // _PATCH)
            for scene in scenes:
                yield scene, grid, patch_colours(as_square([scene], self.side)[0], grid)[None]
            return
        for batch, patches in maps.read(studied(self.network, context), scenes, self.side):
            for index, scene in enumerate(batch):
                yield scene, patches.grid, patches.features["key"][:, index].float().cpu()


@dataclass(frozen=True, kw_only=True)
class Roles(OnPhotos):
    """Whether the heads of a layer keep to the same kinds of things and stuff from photo to photo."""

    network: Given
    layer: int
    parts: int

    def compute(self, context: Context) -> Result:
        """As `maps.consistency` says, by the class token's attention."""
        model = studied(self.network, context)
        return maps.consistency(model, self.scenes(context), self.side, self.layer, self.parts, "class token")


@dataclass(frozen=True, kw_only=True)
class Heads(OnPhotos):
    """Whether some head looks at a region that somebody drew, in photos that several people cut into regions."""

    network: Given

    def halves(self, context: Context) -> Halves:
        """Photos with regions."""
        return with_regions(self.source, self.photos, context)

    def compute(self, context: Context) -> Result:
        """Jaccard index of each region with its best head's largest entries, as many as the region has patches.

        Returns:
            `layers`, the mean of each on the choosing half; `layer`, the best of them, and on the other half, by photo
            and the mean over regions, `jaccard` there, `moved`, the same of the maps moved around the edges, and
            `middle`, that of a bump in the middle as large as the region.
        """
        halves = self.halves(context)
        layers = torch.stack([row[0] for row in self._scored(context, halves.choose)]).mean(0)
        best = int(layers.argmax())
        rows = list(self._scored(context, halves.report))
        return {
            "layers": [round(mean, 4) for mean in layers.tolist()],
            "layer": best,
            "jaccard": [round(float(row[0][best]), 4) for row in rows],
            "moved": [round(float(row[1][best]), 4) for row in rows],
            "middle": [round(float(row[2]), 4) for row in rows],
        }

    def _scored(self, context: Context, scenes: Sequence[Scene]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each photo, by layer, that of the maps and of the moved ones; and that of the bump."""
        from unrolled.instruments.regions.emergence import centre_prior, moved_patches

        count = 0
        for batch, patches in maps.read(studied(self.network, context), scenes, self.side):
            assert patches.attention is not None
            bump = centre_prior(patches.grid).flatten()
            for index, scene in enumerate(batch):
                attention = patches.attention[:, index].cpu()
                order = moved_patches(patches.grid, torch.Generator().manual_seed(count))
                inside, area, _ = regions(scene, patches.grid)
                share = inside.sum(1) / area.sum()
                inside = inside[(share >= _SMALLEST) & (share <= _LARGEST)]
                count += 1
                if not len(inside):
                    continue
                here, moved = (
                    _largest(each, inside, area).amax(1).mean(1) for each in (attention, attention[..., order])
                )
                yield here, moved, _largest(bump, inside, area).mean()


@dataclass(frozen=True, kw_only=True)
class CutRegions(Cuts):
    """How every object that MaskCut finds in a layer's keys fits the region, of those a person drew, that it fits best.

    What `Cuts` returns, the mean over objects and people.
    """

    def halves(self, context: Context) -> Halves:
        """Photos with regions."""
        return with_regions(self.source, self.photos, context)

    def _scored(
        self, context: Context, scenes: Sequence[Scene], only: int | None = None
    ) -> Iterator[list[tuple[float, float]]]:
        from unrolled.instruments.regions.emergence import centre_prior
        from unrolled.instruments.regions.spectral import maskcut

        for scene, grid, keys in self._keys(context, scenes):
            drawn = regions(scene, grid)
            order = centre_prior(grid).flatten().argsort(descending=True)
            row = []
            for layer, features in enumerate(keys):
                masks = torch.zeros(0, len(order), dtype=torch.bool)
                if only in (None, layer):
                    masks = maskcut(features, grid, _TAU, _STAGES).flatten(1)
                    masks = masks[masks.any(1)]
                bumps = [torch.zeros_like(each).scatter_(0, order[: int(each.sum())], True) for each in masks]
                row.append((_best(masks, *drawn), _best(bumps, *drawn)))
            yield row


@dataclass(frozen=True, kw_only=True)
class Edges(OnPhotos):
    """How borders between clusters of a layer's keys fit those that people drew."""

    def halves(self, context: Context) -> Halves:
        """Photos with regions."""
        return with_regions(self.source, self.photos, context)

    def compute(self, context: Context) -> Result:
        """`layers`, F of each on the choosing half; `layer`, the best of them, and there what `maps.borders` says of
        the other half."""
        from unrolled.instruments.anatomy import find_stacks

        halves = self.halves(context)
        model = None if self.network is None else studied(self.network, context)
        depth = 1 if model is None else len(find_stacks(model)[0].blocks)
        layers = [maps.borders(model, halves.choose, self.side, layer)["f"] for layer in range(depth)]
        best = max(range(depth), key=layers.__getitem__)
        return {
            "layers": [round(f, 4) for f in layers],
            "layer": best,
            **maps.borders(model, halves.report, self.side, best),
        }


def with_regions(source: Source, count: int, context: Context) -> Halves:
    """Photos that people cut into regions, `count` of either half: of BSDS every other one, or made-up ones."""
    if source == "generated":
        return generated(count)
    scenes = bsds(context.data_dir, 2 * count)
    return Halves(scenes[::2], scenes[1::2])


def regions(scene: Scene, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of each region in each patch [r, n], all pixels of each patch [n], and which person drew it [r]."""
    from unrolled.instruments.regions.overlap import pixels_in_patches

    masks, people = {}, []
    for person, labels in enumerate(scene.segmentations):
        for label in np.unique(labels):
            masks[f"{person} {label}"] = torch.from_numpy(labels == label)
            people.append(person)
    inside, area = pixels_in_patches(masks, grid)
    return inside, area, torch.tensor(people)


def _largest(values: Tensor, inside: Tensor, area: Tensor) -> Tensor:
    """Jaccard index of every region [r, n] with as many of a map's largest entries; [..., n] -> [..., r]."""
    ranks = values.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    count = (inside.sum(1) / area.mean()).round().clamp(min=1)
    masks = ranks[..., None, :] < count[:, None]
    both, size = (masks * inside).sum(-1), (masks * area).sum(-1)
    return both / (size + inside.sum(1) - both)


def _best(masks: Sequence[Tensor] | Tensor, inside: Tensor, area: Tensor, people: Tensor) -> float:
    """Mean over masks [n] and people of the Jaccard index with the region that fits best; 0 of no mask."""
    scores = []
    for mask in masks:
        both = inside @ mask.to(inside)
        fits = both / (area[mask].sum() + inside.sum(1) - both)
        scores.append(torch.stack([fits[people == person].max() for person in people.unique()]).mean())
    return float(torch.stack(scores).mean()) if scores else 0.0


def _jaccard(mask: Tensor, inside: Tensor, area: Tensor) -> float:
    """Jaccard index, in pixels, of patches [n] with things; `inside` and `area` are pixels of each patch."""
    both = float((inside * mask).sum())
    union = float((area * mask).sum() + inside.sum()) - both
    return both / max(union, 1.0)
