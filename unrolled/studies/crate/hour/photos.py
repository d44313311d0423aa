"""What `crate-hour` measures on annotated photos: how maps and MaskCut fit things.

Maps are measured as in `crate-emergence`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unrolled.data.masks import Scene
from unrolled.studies.cells import Cell, Context, Result
from unrolled.studies.crate.emergence import maps
from unrolled.studies.crate.emergence.cells import Source
from unrolled.studies.crate.emergence.photos import Halves, as_square, coco, generated, ignored, things
from unrolled.studies.crate.hour.networks import Given, studied

_TAU, _STAGES = 0.15, 3  # of MaskCut, as the CRATE papers have them
_PATCH = 4


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


def _jaccard(mask: Tensor, inside: Tensor, area: Tensor) -> float:
    """Jaccard index, in pixels, of patches [n] with things; `inside` and `area` are pixels of each patch."""
    both = float((inside * mask).sum())
    union = float((area * mask).sum() + inside.sum()) - both
    return both / max(union, 1.0)
