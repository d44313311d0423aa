"""Annotated photos for the study of emergence: COCO and BSDS as they are read, or generated ones that need no files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from unrolled.data import MaskSource

Half = Literal["choose", "report"]
COCO, BSDS = "coco-panoptic-200", "bsds500-val"


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A photo and what people marked on it, small enough to hold hundreds."""

    half: Half
    """Whether layers and heads may be chosen by it, or scores are reported on it."""
    pixels: Tensor
    """uint8 `[3, h, w]`."""
    labels: Tensor
    """uint8 `[h, w]`: number of the region, 0 where there is none."""
    names: tuple[str, ...] = ()
    """Category of region 1, 2, ..."""
    countable: tuple[bool, ...] = ()
    """Whether each region is a thing."""
    crowds: tuple[bool, ...] = ()
    """Whether each region is several things."""
    people: tuple[NDArray[np.int32], ...] = ()
    """Whole segmentations `[h, w]` by several people, for borders."""

    def things(self) -> Tensor:
        """Pixels of things, boolean `[h, w]`."""
        return torch.tensor([False, *self.countable])[self.labels.long()]

    def ignore(self) -> Tensor:
        """Pixels without a label, which do not count, boolean `[h, w]`."""
        return self.labels == 0

    def instances(self) -> tuple[Tensor, list[bool]]:
        """Masks of things `[k, h, w]`, and which are crowds."""
        chosen = [k for k, thing in enumerate(self.countable) if thing]
        masks = self.labels[None] == torch.tensor([k + 1 for k in chosen], dtype=torch.uint8)[:, None, None]
        return masks, [self.crowds[k] for k in chosen]

    def parts(self, names: tuple[str, ...]) -> Tensor:
        """Category of each pixel as its place in `names`, -1 for none of them, int64 `[h, w]`."""
        places = [names.index(name) if name in names else -1 for name in self.names]
        return torch.tensor([-1, *places])[self.labels.long()]


def as_square(shots: list[Shot], side: int) -> Tensor:
    """Photos squeezed to squares, as the roster's models saw theirs: floats in 0..255, `[b, 3, side, side]`."""
    return torch.cat(
        [F.interpolate(s.pixels[None].float(), (side, side), mode="bilinear", antialias=True) for s in shots]
    )


@cache
def coco(data_dir: Path, count: int) -> tuple[Shot, ...]:
    """COCO's photos with a thing: `count` at most of train2017, to choose by, and of val2017, to report on.

    Raises:
        MissingData: they are not in `data_dir`.
    """
    shots: list[Shot] = []
    for split, half in (("train", "choose"), ("val", "report")):
        own: list[Shot] = []
        source = _open("coco", data_dir / COCO, split)
        for index in range(len(source)):
            if len(own) == count:
                break
            scene = source.load(index)
            labels = np.zeros(scene.size, np.uint8)
            for number, region in enumerate(scene.regions, 1):
                labels[region.mask] = number
            shot = Shot(
                half="choose" if half == "choose" else "report",
                pixels=_pixels(scene.image),
                labels=torch.from_numpy(labels),
                names=tuple(region.category for region in scene.regions),
                countable=tuple(region.thing for region in scene.regions),
                crowds=tuple(region.crowd for region in scene.regions),
            )
            if bool(shot.things().any()):
                own.append(shot)
        shots += own
    return tuple(shots)


@cache
def bsds(data_dir: Path, count: int) -> tuple[Shot, ...]:
    """BSDS500's validation photos at half their size, `count` at most.

    Raises:
        MissingData: they are not in `data_dir`.
    """
    source = _open("bsds", data_dir / BSDS, "val")
    shots = []
    for index in range(min(count, len(source))):
        scene = source.load(index)
        scene = scene.resized((scene.size[0] // 2, scene.size[1] // 2))
        blank = torch.zeros(scene.size, dtype=torch.uint8)
        shots.append(Shot(half="report", pixels=_pixels(scene.image), labels=blank, people=scene.segmentations))
    return tuple(shots)


@cache
def generated(count: int, seed: int = 0) -> tuple[Shot, ...]:
    """Made-up photos with masks, `2 * count`: one or two striped blobs before smooth noise."""
    rng = np.random.default_rng(seed)
    shots = []
    for index in range(2 * count):
        height, width = 48, 64
        y, x = np.mgrid[0:height, 0:width] + 0.5
        coarse = torch.from_numpy(rng.uniform(0, 160, (1, 3, 4, 4)))
        image = F.interpolate(coarse, (height, width), mode="bicubic").numpy()[0]
        labels = np.ones((height, width), np.uint8)
        for blob in range(int(rng.integers(1, 3))):
            centre, reach = rng.uniform(0.25, 0.75, 2) * (height, width), rng.uniform(8, 15, 2)
            inside = ((y - centre[0]) / reach[0]) ** 2 + ((x - centre[1]) / reach[1]) ** 2 < 1
            stripes = 25 * np.sign(np.sin(x * rng.uniform(0.5, 2)))
            colour = rng.uniform(90, 255, 3)
            image = np.where(inside, colour[:, None, None] + stripes, image)
            labels[inside] = 2 + blob
        whole = labels.astype(np.int32)
        shots.append(
            Shot(
                half="choose" if index < count else "report",
                pixels=torch.from_numpy(image.clip(0, 255).astype(np.uint8)),
                labels=torch.from_numpy(labels),
                names=("ground", "blob", "blob"),
                countable=(False, True, True),
                crowds=(False, False, False),
                people=(whole,),
            )
        )
    return tuple(shots)


def samples() -> tuple[Shot, ...]:
    """scikit-learn's two photos, which may be shown, without annotations."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    return tuple(
        Shot(half="report", pixels=_pixels(photo), labels=torch.zeros(photo.shape[:2], dtype=torch.uint8))
        for photo in photos
    )


def commonest(shots: tuple[Shot, ...], count: int) -> tuple[str, ...]:
    """The categories that the most photos have, at least two."""
    found: dict[str, int] = {}
    for shot in shots:
        for name in set(shot.names):
            found[name] = found.get(name, 0) + 1
    ordered = sorted(found, key=lambda name: (-found[name], name))
    return tuple(name for name in ordered if found[name] >= 2)[:count]


def _open(name: str, folder: Path, split: str) -> MaskSource:
    from unrolled.data import open_masks
    from unrolled.errors import MissingData
    from unrolled.studies.base import data_missing

    try:
        return open_masks(name, data_dir=folder, split=split)
    except MissingData as error:
        raise data_missing(folder.name, error) from error


def _pixels(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).movedim(-1, 0).contiguous()
